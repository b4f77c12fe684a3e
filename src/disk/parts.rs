//! What one disk adds to a plan, and what all kinds of disks share.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use uuid::Uuid;

use super::seen::{DiskSeen, Node};
use crate::domain::{Disk, Format};
use crate::error::{Error, Result};
use crate::names::SnapshotName;
use crate::plan::{Action, Step};
use crate::record::{DiskRecord, Kept};
use crate::tool::check_path;
use crate::tool::volumes::Volume;
use crate::xlcfg::{Change, literal};

/// What stands over all disks of one `create`.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The snapshot's name.
    pub name: &'a SnapshotName,
    /// Its identity.
    pub id: Uuid,
    /// The host's logical volumes; looked at only if a disk may be one.
    pub volumes: &'a std::result::Result<Vec<Volume>, String>,
    /// Whether QEMU cannot open files by their names.
    pub confined: bool,
}

/// What one disk adds to the plan of `create`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskCreate {
    /// Steps before the guest is suspended.
    pub prepare: Vec<Step>,
    /// Steps while the guest stands still.
    pub still: Vec<Step>,
    /// Its part in the QMP transaction.
    pub action: Option<Action>,
    /// The image the guest goes on with, if it is another one.
    pub switch: Option<(PathBuf, Format)>,
    /// Whether the guest can go on with that image only if the domain is restored.
    pub by_restore: bool,
    /// What it takes from a volume group.
    pub space: Option<Space>,
    /// Its part of the record, proofs missing.
    pub record: DiskRecord,
}

impl DiskCreate {
    /// A disk that adds nothing but its record.
    pub(super) fn of(record: DiskRecord) -> Self {
        DiskCreate {
            prepare: Vec::new(),
            still: Vec::new(),
            action: None,
            switch: None,
            by_restore: false,
            space: None,
            record,
        }
    }
}

/// What stands over all disks of one `revert`.
#[derive(Debug, Clone, Copy)]
pub struct RevertContext<'a> {
    /// The domain; nil if only its name is known.
    pub uuid: Uuid,
    /// Its name.
    pub domain: &'a str,
    /// The snapshot's identity.
    pub id: Uuid,
    /// When the snapshot was asked for.
    pub created: Timestamp,
    /// The name under which internal snapshots and volumes keep what is there now.
    pub keep: &'a SnapshotName,
    /// Whether the domain runs.
    pub running: bool,
    /// Whether what is there now is of no use.
    pub discard: bool,
    /// The domain that is made beside the one of the snapshot, whose disks then stay as they are: every
    /// disk gets a new file or volume, and nothing is put back.
    pub beside: Option<Beside<'a>>,
    /// Whether the volume groups have too little for what all disks hold now.
    pub tight: bool,
    /// The host's logical volumes; looked at only if the snapshot has one.
    pub volumes: &'a std::result::Result<Vec<Volume>, String>,
}

/// A new domain from a snapshot.
#[derive(Debug, Clone, Copy)]
pub struct Beside<'a> {
    /// Its name, which can be a part of a path; of an heir what its volumes are told by.
    pub name: &'a str,
    pub uuid: Uuid,
    /// Whether it is to take the place of the domain of the snapshot.
    pub heir: bool,
}

/// What one disk adds to the plan of `revert`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DiskRevert {
    /// Steps before the domain is destroyed, one after the other.
    pub prepare: Vec<Step>,
    /// Steps after it is gone, one after the other.
    pub put_back: Vec<Step>,
    /// Steps that put it to what it held before, should the revert fail after that; each on those before
    /// it. None if nothing was put back, or the disk's own tools leave no way back.
    pub take_back: Vec<Step>,
    /// Whether it is enough for them that its QEMU is gone: nobody else can have the image open.
    pub only_qemu: bool,
    /// The image the guest goes on with, if it is not the one of the snapshot.
    pub switch: Option<(PathBuf, Format)>,
    /// Where that stays which the guest wrote since, for people.
    pub kept: Option<String>,
    /// Whether that is lost at once, because there is no room for it.
    pub lost: bool,
    /// Steps that delete it, once the revert has succeeded.
    pub discard: Vec<Step>,
    /// What it takes from a volume group.
    pub space: Option<Space>,
    /// What it takes from a file system.
    pub room: Option<Room>,
    /// What the user should know of it.
    pub note: Option<String>,
    /// Of an heir: steps once it has taken the place of the other domain, before `discard`. Its image has
    /// the name in `settled` then.
    pub settle: Vec<Step>,
    /// See there.
    pub settled: Option<(PathBuf, Format)>,
}

/// The room for a copy of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// Where the copy goes.
    pub directory: PathBuf,
    /// The number of the directory's file system.
    pub device: u64,
    /// What is free in it, in bytes.
    pub free: u64,
    /// What the copy takes, in bytes.
    pub needed: u64,
}

/// Space that a snapshot takes from its volume group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Space {
    pub group: String,
    /// What is free in it, in bytes.
    pub free: u64,
    /// What is taken, in bytes.
    pub size: u64,
}

/// The node QEMU has on top of a disk, checked against the configuration.
pub(super) fn node(seen: &DiskSeen) -> Result<&Node> {
    let disk = &seen.disk;
    let node = seen.node.as_ref().ok_or_else(|| {
        refuse(disk, "QEMU does not know it (is the domain just starting or unplugging it?)".into())
    })?;
    if node.file != disk.path {
        return Err(refuse(
            disk,
            format!(
                "QEMU writes to {}, but libxl's configuration names {}",
                node.file.display(),
                disk.path.display()
            ),
        )
        .hint(by_hand(&disk.vdev, node)));
    }
    if let Some(drive) = &node.emulated {
        return Err(refuse(
            disk,
            format!(
                "QEMU also has it open as the emulated drive {drive}, through which the guest may write"
            ),
        )
        .hint("a guest with Xen's PV drivers unplugs its emulated disks at boot"));
    }
    if node.read_only {
        return Err(refuse(disk, "QEMU has it open for reading only".into()));
    }
    Ok(node)
}

/// The way out where somebody has snapshotted a disk by hand.
fn by_hand(vdev: &str, node: &Node) -> String {
    let entry = Format::of_qemu(&node.driver).filter(|_| check_path(&node.file).is_ok());
    let entry = entry.map(|format| Change::new(vdev, &node.file, format).entry());
    match entry {
        Some(entry) => format!(
            "somebody snapshotted it by hand: until the domain's xl configuration file says {}, its next \
             start goes back to the old image; correct the file, shut the domain down, and start it from \
             the file",
            literal(&entry, "'")
        ),
        None => {
            "somebody snapshotted it by hand; restart the domain on the right image first".into()
        }
    }
}

pub(super) fn record(seen: &DiskSeen, snapshot: impl Into<Kept>) -> DiskRecord {
    DiskRecord {
        vdev: seen.disk.vdev.clone(),
        path: seen.disk.file().to_owned(),
        format: seen.disk.format,
        snapshot: snapshot.into(),
    }
}

/// A refusal of one disk, with the way out.
pub(super) fn refuse(disk: &Disk, why: String) -> Error {
    Error::refused(format!("Disk {} ({}) cannot be snapshotted", disk.vdev, disk.file().display()))
        .because(why)
        .hint(format!("leave it out with --disk {},none if its content does not matter", disk.vdev))
}

/// A refusal to put a disk back.
pub(super) fn refuse_revert(record: &DiskRecord, why: impl Into<String>) -> Error {
    Error::refused(format!("Disk {} ({}) cannot be put back", record.vdev, record.path.display()))
        .because(why.into())
        .hint("nothing was changed; xl-snapshot show tells how each disk of the snapshot is")
}

/// A refusal of a snapshot that was made by hand.
pub(super) fn refuse_by_hand(disk: &Disk, why: String) -> Error {
    let (vdev, path) = (&disk.vdev, disk.file().display());
    Error::refused(format!("Disk {vdev} ({path}) cannot be put back"))
        .because(why)
        .hint("see what there is: qemu-img info --backing-chain -f FORMAT FILE")
}

/// The place for the file that a snapshot makes.
pub(super) fn place(seen: &DiskSeen) -> Result<&Path> {
    let disk = &seen.disk;
    let place = seen.place.as_ref().ok_or_else(|| {
        let why = "there is no place for a new file: the domain's name cannot be a part of a path";
        let vdev = &disk.vdev;
        refuse(disk, why.into()).hint(format!("say where it goes with --disk {vdev},HOW,file=PATH"))
    })?;
    match &place.trouble {
        None => Ok(&place.path),
        Some(trouble) => {
            Err(refuse(disk, format!("a new file is needed: {trouble}")).hint(format!(
                "choose another name with --name, or a place with --disk {},HOW,file=PATH",
                disk.vdev
            )))
        }
    }
}

/// What has too little for all that is taken from it, if something has: its name, what is free and
/// what is taken, in bytes. Each taker tells name, free and taken.
pub(super) fn shortage<N: Copy + PartialEq>(takes: &[(N, u64, u64)]) -> Option<(N, u64, u64)> {
    takes.iter().find_map(|(name, free, _)| {
        let needed: u64 = takes
            .iter()
            .filter(|(other, ..)| other == name)
            .fold(0, |sum, (.., size)| sum.saturating_add(*size));
        (needed > *free).then_some((*name, *free, needed))
    })
}

pub(crate) fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}
