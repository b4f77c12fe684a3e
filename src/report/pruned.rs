//! What `prune` has done.

use std::fmt;
use std::path::PathBuf;

use indicatif::BinaryBytes;
use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use super::printable;

/// What `prune` has done, or would do. Its JSON form is a contract.
#[derive(Debug, Clone, Serialize)]
pub struct Pruned {
    /// The domain's name.
    pub domain: String,
    /// Whether nothing was changed, as asked for.
    pub dry_run: bool,
    /// What was deleted, or would be, the oldest first.
    pub deleted: Vec<PrunedSnapshot>,
    /// What was kept, the oldest first.
    pub kept: Vec<PrunedSnapshot>,
    /// What should have been deleted and was not, or not as a whole.
    pub failed: Vec<PrunedSnapshot>,
}

/// A snapshot, and what became of it.
#[derive(Debug, Clone, Serialize)]
pub struct PrunedSnapshot {
    pub name: String,
    /// Its identity.
    pub id: Uuid,
    /// When it was asked for.
    pub created: Timestamp,
    /// The memory image, or the record of one without memory.
    pub image: PathBuf,
    /// What the image takes on its file system, in bytes; 0 if its deletion had been interrupted before.
    pub size_on_disk: u64,
    /// Each reason.
    pub why: Vec<String>,
}

impl fmt::Display for Pruned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.deleted.len() + self.kept.len() + self.failed.len();
        let would = if self.dry_run { " would be" } else { "" };
        let size = self.deleted.iter().fold(0, |sum: u64, s| sum.saturating_add(s.size_on_disk));
        let domain = printable(&self.domain);
        let (deleted, size) = (self.deleted.len(), BinaryBytes(size));
        writeln!(f, "{domain}: {deleted} of {all} snapshots{would} deleted, images of {size}")?;
        let mut rows: Vec<_> =
            [("delete", &self.deleted), ("keep", &self.kept), ("failed", &self.failed)]
                .into_iter()
                .flat_map(|(what, all)| all.iter().map(move |snapshot| (what, snapshot)))
                .collect();
        rows.sort_by_key(|(_, snapshot)| (snapshot.created, snapshot.id));
        let width = rows.iter().map(|(_, s)| s.name.chars().count()).max().unwrap_or_default();
        for (what, snapshot) in rows {
            let taken = snapshot.created.strftime("%Y-%m-%d %H:%M");
            let why = printable(&snapshot.why.join(", ")).replace('\n', " ");
            writeln!(f, "  {what:<6}  {:<width$}  {taken}  {why}", snapshot.name)?;
        }
        Ok(())
    }
}
