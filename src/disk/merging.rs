//! The mark on a file that a deletion writes to although the content that others see of it stays the same.
//! Pure.
//!
//! A merge may take hours, and be cut short by anything. Until it is finished, younger snapshots are proven
//! by what the file was before; and whoever finishes it knows from the mark what was being done. It is an
//! extended attribute, so it is on the file and not beside it.

use std::fmt;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The longest text that is read as a mark: more than a path.
pub const LONGEST: usize = 8 << 10;

/// What a mark says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Merging {
    /// The snapshot that is being deleted.
    pub id: Uuid,
    /// What is done to the file.
    pub how: How,
    /// The length of the file before, in bytes.
    pub size: u64,
    /// When it had been written to before.
    pub mtime: Timestamp,
    /// Whether anybody could write to it before.
    pub writable: bool,
}

/// What a deletion does to a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// It gets what this overlay holds.
    Commit(PathBuf),
    /// It has that, and a running guest may write to it from now on: the overlay is older then.
    Pivot(PathBuf),
    /// It gets what this image below it holds.
    Stream(PathBuf),
    /// It gets another image below it, of the same content.
    Relink,
    /// A snapshot inside of it is deleted.
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
            how: How::Commit("/srv/a \"1\".qcow2".into()),
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
