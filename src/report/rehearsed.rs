//! What a rehearsal has to say.

use std::fmt;

use serde::Serialize;
use uuid::Uuid;

use super::Rows;

/// What a rehearsal has shown. Its JSON form is a contract.
#[derive(Debug, Clone, Serialize)]
pub struct Rehearsed {
    /// The snapshot's name.
    pub name: String,
    /// Its identity.
    pub id: Uuid,
    /// The name of its domain.
    pub domain: String,
    /// The UUID of its domain.
    pub uuid: Uuid,
    /// That this was a rehearsal.
    pub rehearsed: bool,
    /// How long everything took, in milliseconds.
    pub total_ms: f64,
}

impl fmt::Display for Rehearsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rehearsed { name, domain, .. } = self;
        writeln!(
            f,
            "Snapshot {name} of {domain} is good: it was restored, paused, and removed again"
        )?;
        let mut rows = Rows::default();
        rows.add("total", format!("{:.1} s", self.total_ms / 1000.0));
        rows.fmt(f)
    }
}
