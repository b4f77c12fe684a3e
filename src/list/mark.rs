//! The mark on a disk's file that names the snapshot its content descends from, if the file itself does not
//! show it: a qcow2 file lists its internal snapshots, but not which of them was applied last. Pure.
//!
//! It is a hint. `cp -a` and `rsync -X` copy it, `scp` loses it, `qemu-img snapshot -a` by hand does not
//! update it, and anybody who can write to the file can write any mark. We use it only if the file can descend
//! from the snapshot that it names, and no snapshot of that file was taken since.

use std::fmt;
use std::str;

use jiff::Timestamp;
use uuid::Uuid;

/// The longest mark, in bytes.
pub const LONGEST: usize = 128;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    pub id: Uuid,
    /// When the snapshot was taken or applied.
    pub at: Timestamp,
}

impl Mark {
    /// Parses a mark; anything else gives `None`.
    pub fn parse(text: &[u8]) -> Option<Mark> {
        let (id, at) = str::from_utf8(text).ok()?.split_once(' ')?;
        Some(Mark { id: id.parse().ok()?, at: at.parse().ok()? })
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.id, self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_comes_back_and_nothing_else_is_one() {
        let at = "2026-03-01T02:03:04.123456789Z".parse().unwrap();
        let mark = Mark { id: Uuid::from_u128(7), at };
        assert_eq!(Mark::parse(mark.to_string().as_bytes()), Some(mark));
        assert!(mark.to_string().len() <= LONGEST);
        for wrong in [&b""[..], b" ", b"x y", b"\xff \xff", &mark.to_string().as_bytes()[..36]] {
            assert_eq!(Mark::parse(wrong), None);
        }
    }
}
