//! Observations of the disks of a running domain, before a snapshot. Pure.

use std::path::PathBuf;

use jiff::Timestamp;

use crate::disk::chain::{FileId, Link};
use crate::disk::merge_mark::Merging;
use crate::disk::qcow2::{Defect, Header};
use crate::domain::Disk;
use crate::record::{ANY_INODE, FrozenFile, QcowSnapshot, SECTOR};
use crate::tool::vhd_util;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileFacts {
    pub size: u64,
    pub mtime: Timestamp,
    pub inode: u64,
    /// Whether the inode number stays the same when its file system is mounted again.
    pub lasting: bool,
    pub device: u64,
    /// Whether anybody has write permission. We remove it from the base of an overlay.
    pub writable: bool,
    /// If a merge writes to it, or was interrupted: the state of the file before that. Its overlays see the
    /// same content.
    pub merging: Option<Merging>,
}

impl FileFacts {
    /// Whether its inode number is that in the proof, if inode numbers are stable. Otherwise path, length and time
    /// identify the file.
    pub fn has_inode_of(&self, proof: &FrozenFile) -> bool {
        !self.lasting || proof.inode == ANY_INODE || self.inode == proof.inode
    }

    pub fn id(&self) -> FileId {
        (self.device, self.inode)
    }

    /// Whether it has this length and time, apart from a merge.
    pub fn is_as(&self, size: u64, mtime: Timestamp) -> bool {
        let before = self.merging.as_ref().is_some_and(|it| it.size == size && it.mtime == mtime);
        before || (self.size == size && self.mtime == mtime)
    }

    /// When it was last written to, apart from a merge.
    pub fn written(&self) -> Timestamp {
        self.merging.as_ref().map_or(self.mtime, |merging| merging.mtime.min(self.mtime))
    }
}

/// The backend of a disk, from xenstore.
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

/// QEMU's answer about a disk, from `query-block`; if the domain does not run, that of qemu-img.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    pub file: PathBuf,
    /// The format that QEMU opened it with, by QEMU's name.
    pub driver: String,
    pub read_only: bool,
    /// The size the guest sees, in bytes.
    pub virtual_size: u64,
    pub snapshots: Vec<QcowSnapshot>,
    /// Why the disk's content is not in this file alone, if it is not.
    pub elsewhere: Option<String>,
    /// The number of dirty bitmaps that QEMU will write into the image when it ends.
    pub bitmaps: u32,
    /// The emulated drive that has the same file open, if an HVM guest has not unplugged it.
    pub emulated: Option<String>,
}

/// One disk of a running domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningDisk {
    pub disk: Disk,
    /// Its backend; `None` when xenstore does not know it.
    pub served: Option<Served>,
    /// Its keys in xenstore that name the image: path and value.
    pub params: Vec<(String, String)>,
    /// QEMU's answer, if QEMU serves it, or could.
    pub node: Option<Node>,
    /// Facts about its file; the error if it cannot be read, or is no file.
    pub file: std::result::Result<FileFacts, String>,
    /// The device number, major and minor, if it is a device.
    pub device: Option<(u64, u64)>,
    /// The file that its snapshot would create, and whether that is possible.
    pub place: Option<Place>,
    /// The disk of another domain that may also write to it.
    pub used_by: Option<String>,
    /// Its size as the guest sees it, if xenstore has it.
    pub sectors: Option<Sectors>,
    /// Why its file system cannot make a reflink of it, if it cannot; checked only if the user
    /// wants one, or it would avoid a restore.
    pub clone_trouble: Option<String>,
    /// The chain of the image, if qemu-img knows it and it could be snapshotted; the error if the chain
    /// cannot be followed.
    pub own: std::result::Result<Vec<Link>, String>,
    /// The backing file that was written to last, and when.
    pub below: Option<(PathBuf, Timestamp)>,
    /// Facts about it as a VHD, if it is one.
    pub vhd: Option<std::result::Result<vhd_util::Facts, String>>,
}

/// The size of a disk from its backend (xen/include/public/io/blkif.h, `sectors`, `sector-size`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sectors {
    /// The number of sectors of [`SECTOR`] bytes, whatever `size`.
    pub count: u64,
    /// The sector size that the guest uses, in bytes.
    pub size: u64,
}

impl RunningDisk {
    /// Why an internal snapshot could not be applied, if it could not.
    pub fn defect(&self) -> Option<Defect> {
        let bitmaps = self.node.as_ref().map_or(0, |node| node.bitmaps);
        self.header().and_then(Header::unwritable).or_else(|| Defect::of_bitmaps(bitmaps))
    }

    /// The image's own header, if it is a qcow2 image.
    pub fn header(&self) -> Option<&Header> {
        self.own.as_ref().ok()?.first()?.header.as_ref()
    }

    /// The size the guest sees, in bytes, if known.
    pub fn virtual_size(&self) -> Option<u64> {
        let vhd = || Some(self.vhd.as_ref()?.as_ref().ok()?.virtual_size);
        let told = || Some(self.sectors?.count.saturating_mul(SECTOR));
        // A loop device omits a partial last sector.
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
    /// Why a file cannot be created there, if it cannot.
    pub trouble: Option<String>,
}
