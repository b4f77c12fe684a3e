//! What is seen of the disks of a running domain, before a snapshot. Pure.

use std::path::PathBuf;

use jiff::Timestamp;

use crate::disk::chain::{FileId, Link};
use crate::disk::merging::Merging;
use crate::disk::qcow2::{Ailment, Header};
use crate::domain::Disk;
use crate::record::{ANY_INODE, FrozenFile, QcowSnapshot, SECTOR};
use crate::tool::vhd_util;

/// What is known of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileFacts {
    /// Its length in bytes.
    pub size: u64,
    /// When it was last written to.
    pub mtime: Timestamp,
    /// Its inode number.
    pub inode: u64,
    /// Whether it keeps that number when its file system is mounted again.
    pub lasting: bool,
    /// The number of its file system.
    pub device: u64,
    /// Whether anybody has write permission. We take it from the base of an overlay.
    pub writable: bool,
    /// If a merge writes to it, or was cut short: the file before that. To whoever rests on it, the content
    /// is the same.
    pub merging: Option<Merging>,
}

impl FileFacts {
    /// Whether its inode is the one of then, where that says anything. Where it does not, the path, the length and the
    /// time are what tells a file.
    pub fn has_inode_of(&self, proof: &FrozenFile) -> bool {
        !self.lasting || proof.inode == ANY_INODE || self.inode == proof.inode
    }

    /// Which file it is.
    pub fn id(&self) -> FileId {
        (self.device, self.inode)
    }

    /// Whether it is as it was at that length and time, but for a merge.
    pub fn is_as(&self, size: u64, mtime: Timestamp) -> bool {
        let before = self.merging.as_ref().is_some_and(|it| it.size == size && it.mtime == mtime);
        before || (self.size == size && self.mtime == mtime)
    }

    /// When it was last written to, but for a merge.
    pub fn written(&self) -> Timestamp {
        self.merging.as_ref().map_or(self.mtime, |merging| merging.mtime.min(self.mtime))
    }
}

/// What serves a disk to the guest, from xenstore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Served {
    /// The domain's own QEMU in dom0.
    Qemu,
    /// The kernel's blkback (`phy`).
    Blkback,
    /// Nobody: the domain does not run.
    Nobody,
    /// Something else.
    Other(String),
}

/// What QEMU says of a disk, from `query-block`; if the domain does not run, what qemu-img says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The name of the top node.
    pub name: String,
    /// The file it has open.
    pub file: PathBuf,
    /// The format it opened it with, in QEMU's words.
    pub driver: String,
    /// Whether it is open for reading only.
    pub read_only: bool,
    /// The size the guest sees, in bytes.
    pub virtual_size: u64,
    /// The internal snapshots.
    pub snapshots: Vec<QcowSnapshot>,
    /// Why the file alone is not the disk's content, if that is so.
    pub elsewhere: Option<String>,
    /// The number of dirty bitmaps that QEMU will write into the image when it ends.
    pub bitmaps: u32,
    /// The emulated drive that has the same file open, if an HVM guest has not unplugged it.
    pub emulated: Option<String>,
}

/// One disk of a running domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSeen {
    /// What the configuration says.
    pub disk: Disk,
    /// What serves it; `None` when xenstore does not know it.
    pub served: Option<Served>,
    /// Its keys in xenstore that name the image: path and value.
    pub params: Vec<(String, String)>,
    /// What QEMU says, if QEMU serves it, or could.
    pub node: Option<Node>,
    /// What is known of its file; the error if it cannot be looked at, or is none.
    pub file: std::result::Result<FileFacts, String>,
    /// The number of the device, major and minor, if it is one.
    pub device: Option<(u64, u64)>,
    /// The file that its snapshot would make, and whether its place is free.
    pub place: Option<Place>,
    /// The disk of another domain that may write to it as well.
    pub used_by: Option<String>,
    /// What the guest is told of its size, where xenstore says it.
    pub sectors: Option<Sectors>,
    /// Why its file system cannot clone it, if it cannot; looked at only if that is wished for, or
    /// would spare a restore.
    pub clone_trouble: Option<String>,
    /// The image and those below it, if it is one that qemu-img knows and that could be snapshotted; the
    /// error if they cannot be followed.
    pub own: std::result::Result<Vec<Link>, String>,
    /// The file below the image that was written to last, and when.
    pub below: Option<(PathBuf, Timestamp)>,
    /// What is known of it as a VHD, if it is one.
    pub vhd: Option<std::result::Result<vhd_util::Facts, String>>,
}

/// The size of a disk as its backend tells it (xen/include/public/io/blkif.h, `sectors`, `sector-size`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sectors {
    /// How many sectors of [`SECTOR`] bytes it has, whatever their size.
    pub count: u64,
    /// The size of those that the guest reads and writes, in bytes.
    pub size: u64,
}

impl DiskSeen {
    /// What would keep an internal snapshot from being put back, if something would.
    pub fn ailment(&self) -> Option<Ailment> {
        let bitmaps = self.node.as_ref().map_or(0, |node| node.bitmaps);
        self.header().and_then(Header::unwritable).or_else(|| Ailment::of_bitmaps(bitmaps))
    }

    /// The image's own header, if it is a qcow2 image.
    pub fn header(&self) -> Option<&Header> {
        self.own.as_ref().ok()?.first()?.header.as_ref()
    }

    /// The size the guest sees, in bytes, as far as somebody tells it.
    pub fn virtual_size(&self) -> Option<u64> {
        let vhd = || Some(self.vhd.as_ref()?.as_ref().ok()?.virtual_size);
        let told = || Some(self.sectors?.count.saturating_mul(SECTOR));
        // A loop device leaves out a last sector that is not whole.
        let of_loop = || {
            let size = self.file.as_ref().ok()?.size;
            (self.served == Some(Served::Blkback)).then(|| size - size % SECTOR)
        };
        let node = self.node.as_ref().map(|node| node.virtual_size);
        node.or_else(vhd).or_else(told).or_else(of_loop)
    }
}

/// A path for a new file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub path: PathBuf,
    /// Why a file cannot be made there, if it cannot.
    pub trouble: Option<String>,
}
