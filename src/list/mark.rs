//! The mark on a disk's file that tells from which snapshot its content descends, where nothing in the file
//! does: qcow2 keeps the internal snapshots of a file, but not which of them was put back last. Pure.
//!
//! It is a hint. `cp -a` and `rsync -X` take it along, `scp` loses it, `qemu-img snapshot -a` by hand does not
//! know of it, and whoever may write to the file may write what they like. It is believed only if the
//! snapshot it names is one that the file can descend from, and none of that file was taken since.

use std::fmt;
use std::str;

use jiff::Timestamp;
use uuid::Uuid;

/// The longest text that is read as a mark.
pub const LONGEST: usize = 128;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    pub id: Uuid,
    /// When the file had its content: the snapshot had been taken, or was put back.
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
