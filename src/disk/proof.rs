//! Proofs that the content of a disk is still that of the snapshot. Pure.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::domain::Format;
use crate::names::is_plain;

/// Identifies an internal snapshot among others of the same name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QcowSnapshot {
    /// QEMU's ID.
    pub id: String,
    pub name: String,
    /// When QEMU took it, to the nanosecond.
    pub date: Timestamp,
}

impl QcowSnapshot {
    /// Whether a record can contain it. QEMU gives numbers and takes our names, but anybody who can write to an image
    /// can put any text there.
    pub fn is_plain(&self) -> bool {
        [&self.id, &self.name].iter().all(|text| text.chars().all(is_plain))
    }
}

/// An image below another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    pub path: PathBuf,
    pub format: Format,
    /// Its inode number; 0 for a device.
    pub inode: u64,
}

/// Proves that nobody has written to a file since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FrozenFile {
    /// The size the guest sees, in bytes.
    pub virtual_size: u64,
    /// The length of the file in bytes.
    pub file_size: u64,
    pub mtime: Timestamp,
    /// Its inode number: a copy is another file. [`ANY_INODE`] for a file that may be copied.
    pub inode: u64,
}

/// The inode number of a file that may be copied: no file has it.
pub const ANY_INODE: u64 = 0;

/// The size of a sector in bytes, in which QEMU and Linux count.
pub const SECTOR: u64 = 512;

impl FrozenFile {
    /// The size the guest sees, in whole sectors. For a file on a loop device, a record of an earlier
    /// version has the length of the file; the loop device omits a partial last sector.
    pub fn whole_sectors(&self) -> u64 {
        self.virtual_size - self.virtual_size % SECTOR
    }
}
