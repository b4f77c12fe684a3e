//! The list as JSON.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use crate::record::DisksOnly;

/// The result of `list`. Its JSON form is a contract.
#[derive(Debug, Clone, Serialize)]
pub struct Listing {
    /// Sorted by domain and time.
    pub snapshots: Vec<Snapshot>,
    pub domains: Vec<Current>,
    /// Everything else: all of it with `--all`, otherwise only what the user should not miss.
    pub others: Vec<Other>,
    /// The number of those that are not shown.
    pub hidden: usize,
    /// What could not be inspected.
    pub unseen: Vec<String>,
}

/// A snapshot.
#[derive(Debug, Clone, Serialize)]
pub struct Snapshot {
    /// The domain's current name, if known.
    #[serde(skip)]
    pub group: String,
    /// The domain's name when it was taken.
    pub domain: String,
    pub uuid: Uuid,
    pub name: String,
    pub id: Uuid,
    /// The time of the request.
    pub created: Timestamp,
    /// The user's words.
    pub description: String,
    /// The memory image, or the record of one without memory.
    pub image: PathBuf,
    /// Whether it has its memory.
    pub memory: bool,
    /// If it has no memory, the consistency of its disks.
    pub disks_only: Option<DisksOnly>,
    /// The length of the image in bytes.
    pub size: u64,
    /// The allocated size of the image, in bytes.
    pub size_on_disk: u64,
    /// How much of that it shares with other files, in bytes; unknown on some file systems.
    pub shared: Option<u64>,
    /// Whether it can be reverted to, as far as headers show.
    pub state: Health,
    /// Why not.
    pub why: Vec<String>,
    /// Whether the running domain continues from it.
    pub current: bool,
    pub parent: Option<Uuid>,
    /// The source of that.
    pub parent_by: DescentSource,
    /// Each disk.
    pub disks: Vec<DiskState>,
}

/// Whether a snapshot, or a disk of it, can be reverted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// It can.
    Good,
    /// It cannot.
    Broken,
    /// It was never completed.
    Unfinished,
    /// Unknown without reading more.
    Unread,
    /// The disk is not in the snapshot.
    None,
}

impl Health {
    pub(super) fn word(self) -> &'static str {
        match self {
            Health::Good => "good",
            Health::Broken => "broken",
            Health::Unfinished => "unfinished",
            Health::Unread => "unread",
            Health::None => "none",
        }
    }
}

/// The source of a descent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DescentSource {
    /// The bases of the disks.
    Disks,
    /// Its record: the disks showed it when it was taken.
    Record,
    /// The mark on a disk's file.
    Mark,
    /// Only the order of dates.
    Dates,
    /// It descends from none.
    None,
    /// It descends from one that no longer exists.
    Gone,
    /// Its disks descend from different ones.
    Differ,
    /// No reliable source.
    Unknown,
}

/// A disk of a snapshot.
#[derive(Debug, Clone, Serialize)]
pub struct DiskState {
    pub vdev: String,
    /// `internal`, `external`, `lvm`, `reflink`, `vhd` or `none`.
    pub snapshot: &'static str,
    /// The file or device with its content.
    pub image: PathBuf,
    /// Its allocated size, in bytes, if it contains nothing else.
    pub size_on_disk: Option<u64>,
    /// Whether it can be reverted.
    pub state: Health,
    /// Why not, or why it was left out.
    pub why: Option<String>,
}

/// A running domain, and the snapshot that it continues from.
#[derive(Debug, Clone, Serialize)]
pub struct Current {
    pub name: String,
    pub uuid: Uuid,
    pub domid: Option<u32>,
    pub id: Option<Uuid>,
    /// The source of that.
    pub told: DescentSource,
    /// The snapshot that it is a clone of.
    pub clone_of: Option<Uuid>,
    /// If its disks continue from different snapshots, each disk.
    pub mixed: Vec<DivergedDisk>,
}

/// A disk of a domain whose disks continue from different snapshots.
#[derive(Debug, Clone, Serialize)]
pub struct DivergedDisk {
    pub vdev: String,
    /// The snapshot; null if none that exists here.
    pub id: Option<Uuid>,
}

/// The kind of something that is not a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OtherKind {
    /// An image that cannot be read.
    Damaged,
    /// A snapshot whose deletion was interrupted.
    Deleting,
    /// A second snapshot of one name.
    Collision,
    /// An unfinished image.
    Leftover,
    /// A second image of one snapshot.
    Copy,
    /// A snapshot of a disk without an image.
    Disk,
    /// The previous contents of a disk, kept by a revert.
    Kept,
    /// A file of a snapshot that nothing names.
    Stray,
    /// A save file of xl.
    SaveFile,
    /// A file of another kind.
    Foreign,
}

impl OtherKind {
    /// Whether it is shown without `--all`.
    pub(super) fn is_urgent(self) -> bool {
        matches!(self, OtherKind::Damaged | OtherKind::Deleting | OtherKind::Collision)
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            OtherKind::Damaged => "damaged",
            OtherKind::Deleting => "deleting",
            OtherKind::Collision => "collision",
            OtherKind::Leftover => "leftover",
            OtherKind::Copy => "copy",
            OtherKind::Disk => "disk",
            OtherKind::Kept => "kept",
            OtherKind::Stray => "stray",
            OtherKind::SaveFile => "savefile",
            OtherKind::Foreign => "foreign",
        }
    }
}

/// Something that is not a snapshot.
#[derive(Debug, Clone, Serialize)]
pub struct Other {
    pub kind: OtherKind,
    /// The domain, if known.
    pub domain: Option<String>,
    /// Its UUID; nil if unknown.
    #[serde(skip)]
    pub uuid: Uuid,
    /// The file or device.
    pub path: PathBuf,
    /// The name of the snapshot, if it is one.
    pub name: Option<String>,
    pub id: Option<Uuid>,
    /// When it was taken.
    pub created: Option<Timestamp>,
    /// The explanation.
    pub why: String,
}
