//! The list as programs get it.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use crate::record::DisksOnly;

/// What `list` has found. Its JSON form is a contract.
#[derive(Debug, Clone, Serialize)]
pub struct Listing {
    /// The snapshots, by domain and time.
    pub snapshots: Vec<Snapshot>,
    /// The domains that run.
    pub domains: Vec<Current>,
    /// What is no snapshot: with `--all` everything, without it what should not be missed.
    pub others: Vec<Other>,
    /// How many of those are not shown.
    pub hidden: usize,
    /// What could not be looked at.
    pub unseen: Vec<String>,
}

/// A snapshot.
#[derive(Debug, Clone, Serialize)]
pub struct Snapshot {
    /// The domain's name now, as far as it is known.
    #[serde(skip)]
    pub group: String,
    /// The domain's name when it was taken.
    pub domain: String,
    /// The domain's UUID.
    pub uuid: Uuid,
    pub name: String,
    /// Its identity.
    pub id: Uuid,
    /// When it was asked for.
    pub created: Timestamp,
    /// The user's words.
    pub description: String,
    /// The memory image, or the record of one without memory.
    pub image: PathBuf,
    /// Whether it has its memory.
    pub memory: bool,
    /// If it has none, what its disks are worth.
    pub disks_only: Option<DisksOnly>,
    /// The length of the image in bytes.
    pub size: u64,
    /// What the image takes on its file system, in bytes.
    pub size_on_disk: u64,
    /// How much of that it shares with other files, in bytes; not known on all file systems.
    pub shared: Option<u64>,
    /// Whether it can be reverted to, as far as a look at headers tells.
    pub state: State,
    /// Why not.
    pub why: Vec<String>,
    /// Whether the running domain goes on from it.
    pub current: bool,
    /// The snapshot it descends from.
    pub parent: Option<Uuid>,
    /// What tells that.
    pub parent_by: Told,
    /// Each disk.
    pub disks: Vec<DiskState>,
}

/// Whether a snapshot, or a disk of it, can be reverted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It can.
    Good,
    /// It cannot.
    Broken,
    /// It was never completed.
    Unfinished,
    /// More would have to be read to know.
    Unread,
    /// The disk is not in the snapshot.
    None,
}

impl State {
    pub(super) fn word(self) -> &'static str {
        match self {
            State::Good => "good",
            State::Broken => "broken",
            State::Unfinished => "unfinished",
            State::Unread => "unread",
            State::None => "none",
        }
    }
}

/// What tells from which snapshot something descends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Told {
    /// The disks, by what they rest on.
    Disks,
    /// Its record: the disks showed it when it was taken.
    Record,
    /// The mark on a disk's file.
    Mark,
    /// Nothing but the order of dates.
    Dates,
    /// It descends from none.
    None,
    /// It descends from one that is not here.
    Gone,
    /// Its disks descend from different ones.
    Differ,
    /// Nothing that could be believed.
    Unknown,
}

/// A disk of a snapshot.
#[derive(Debug, Clone, Serialize)]
pub struct DiskState {
    /// The guest's name of it.
    pub vdev: String,
    /// `internal`, `external`, `lvm`, `reflink`, `vhd` or `none`.
    pub snapshot: &'static str,
    /// The file or device that holds its content.
    pub image: PathBuf,
    /// What that takes, in bytes, where it holds nothing else.
    pub size_on_disk: Option<u64>,
    /// Whether it can be put back.
    pub state: State,
    /// Why not, or why it was left out.
    pub why: Option<String>,
}

/// A domain that runs, and the snapshot from which it goes on.
#[derive(Debug, Clone, Serialize)]
pub struct Current {
    pub name: String,
    pub uuid: Uuid,
    /// Its number.
    pub domid: Option<u32>,
    /// That snapshot.
    pub id: Option<Uuid>,
    /// What tells that.
    pub told: Told,
    /// The snapshot of another domain whose clone it is.
    pub clone_of: Option<Uuid>,
    /// If its disks go on from different snapshots, each that tells.
    pub mixed: Vec<Apart>,
}

/// A disk of a domain whose disks go on from different snapshots.
#[derive(Debug, Clone, Serialize)]
pub struct Apart {
    /// The guest's name of it.
    pub vdev: String,
    /// The snapshot; none of those that are here if it is null.
    pub id: Option<Uuid>,
}

/// What something is that is no snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OtherKind {
    /// An image that cannot be read.
    Damaged,
    /// A snapshot whose deletion was cut short.
    Deleting,
    /// A second snapshot of one name.
    Collision,
    /// An unfinished image.
    Leftover,
    /// A second image of one snapshot.
    Copy,
    /// A snapshot of a disk without an image.
    Disk,
    /// What a disk held before a revert.
    Kept,
    /// A file of a snapshot that nobody names.
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

/// Something that is no snapshot.
#[derive(Debug, Clone, Serialize)]
pub struct Other {
    /// What it is.
    pub kind: OtherKind,
    /// The domain, where that is known.
    pub domain: Option<String>,
    /// Its UUID; nil where that is not known.
    #[serde(skip)]
    pub uuid: Uuid,
    /// The file or device.
    pub path: PathBuf,
    /// The name of the snapshot, where it is one.
    pub name: Option<String>,
    /// Its identity.
    pub id: Option<Uuid>,
    /// When it was taken.
    pub created: Option<Timestamp>,
    /// What is to be said of it.
    pub why: String,
}
