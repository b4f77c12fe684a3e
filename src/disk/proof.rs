//! What proves that the content of a disk is still the one of the snapshot. Pure.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::names::is_plain;

/// What tells an internal snapshot from another one of the same name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QcowSnapshot {
    /// QEMU's number for it.
    pub id: String,
    pub name: String,
    /// When QEMU made it, to the nanosecond.
    pub date: Timestamp,
}

impl QcowSnapshot {
    /// Whether a record can hold it. QEMU gives numbers and takes our names, but who has written to an image can have
    /// put anything there.
    pub fn is_plain(&self) -> bool {
        [&self.id, &self.name].iter().all(|text| text.chars().all(is_plain))
    }
}

/// What tells whether a file was written to since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FrozenFile {
    /// The size the guest sees, in bytes.
    pub virtual_size: u64,
    /// The length of the file in bytes.
    pub file_size: u64,
    pub mtime: Timestamp,
    /// Its inode number: a copy is another file. [`ANY_INODE`] of a file that is meant to be copied.
    pub inode: u64,
}

/// The inode number of a file that may be copied: no file has it.
pub const ANY_INODE: u64 = 0;

/// The size of a sector in bytes, in which QEMU and Linux count.
pub const SECTOR: u64 = 512;

impl FrozenFile {
    /// The size the guest sees, in whole sectors. A record of an earlier version has the length of the file
    /// where the kernel served it from a loop device, which leaves out a last sector that is not whole.
    pub fn whole_sectors(&self) -> u64 {
        self.virtual_size - self.virtual_size % SECTOR
    }
}
