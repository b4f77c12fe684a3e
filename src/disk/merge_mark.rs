//! The mark on a file that a deletion writes to without changing the content that its users see. Pure.
//!
//! A merge may take hours and may be interrupted. Until it is finished, the previous state of the file, in
//! the mark, proves younger snapshots; and the mark says how to finish the merge. It is an extended
//! attribute, so it moves with the file.

use std::fmt;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The longest mark, in bytes: more than a path.
pub const LONGEST: usize = 8 << 10;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Merging {
    /// The snapshot to be deleted.
    pub id: Uuid,
    pub how: MergeStep,
    /// The previous length of the file, in bytes.
    pub size: u64,
    /// Its previous time of modification.
    pub mtime: Timestamp,
    /// Whether it had write permission before.
    pub writable: bool,
}

/// How a deletion changes a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MergeStep {
    /// It gets the data of this overlay.
    Commit(PathBuf),
    /// It has that data, and a running guest may write to it: the overlay is older.
    Pivot(PathBuf),
    /// It gets the data of this backing file.
    Stream(PathBuf),
    /// It gets another backing file with the same content.
    Relink,
    /// One of its internal snapshots is deleted.
    Inside,
}

impl Merging {
    /// Parses a mark; anything else gives `None`.
    pub fn parse(text: &[u8]) -> Option<Merging> {
        serde_json::from_slice(text).ok()
    }
}

impl fmt::Display for Merging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_comes_back_and_nothing_else_is_one() {
        let mark = Merging {
            id: Uuid::from_u128(7),
            how: MergeStep::Commit("/srv/a \"1\".qcow2".into()),
            size: 1 << 40,
            mtime: "2026-03-01T02:03:04.123456789Z".parse().unwrap(),
            writable: false,
        };
        let text = mark.to_string();
        assert_eq!(Merging::parse(text.as_bytes()), Some(mark));
        for wrong in [&b""[..], b"{}", b"x", &text.as_bytes()[1..]] {
            assert_eq!(Merging::parse(wrong), None);
        }
    }
}
