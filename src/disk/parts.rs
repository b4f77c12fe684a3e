//! The part of one disk in a plan, and helpers for all kinds of disks.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use uuid::Uuid;

use super::running_disk::{Node, RunningDisk};
use crate::domain::{Disk, Format};
use crate::error::{Error, Result};
use crate::names::SnapshotName;
use crate::plan::{Action, Step};
use crate::record::{DiskRecord, DiskSnapshot};
use crate::tool::check_path;
use crate::tool::volumes::Volume;
use crate::xlcfg::{Change, literal};

/// Common to all disks of one `create`.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    pub name: &'a SnapshotName,
    pub id: Uuid,
    /// The host's logical volumes; read only if a disk may be one.
    pub volumes: &'a std::result::Result<Vec<Volume>, String>,
    /// Whether QEMU cannot open files by name (`dm_restrict`).
    pub confined: bool,
}

/// The part of one disk in the plan of `create`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskCreate {
    /// Steps before the guest is suspended.
    pub prepare: Vec<Step>,
    /// Steps while the guest is suspended.
    pub in_pause: Vec<Step>,
    /// Its action in the QMP transaction.
    pub action: Option<Action>,
    /// The image in which the guest continues, if it changes.
    pub switch: Option<(PathBuf, Format)>,
    /// Whether the domain must be restored to use that image.
    pub by_restore: bool,
    /// The space that it needs in a volume group.
    pub space: Option<Space>,
    /// Its part of the record, without proofs.
    pub record: DiskRecord,
}

impl DiskCreate {
    /// A disk that adds only its record.
    pub(super) fn of(record: DiskRecord) -> Self {
        DiskCreate {
            prepare: Vec::new(),
            in_pause: Vec::new(),
            action: None,
            switch: None,
            by_restore: false,
            space: None,
            record,
        }
    }
}

/// Common to all disks of one `revert`.
#[derive(Debug, Clone, Copy)]
pub struct RevertContext<'a> {
    /// Of the domain; nil if only its name is known.
    pub uuid: Uuid,
    pub domain: &'a str,
    /// The snapshot's identity.
    pub id: Uuid,
    /// The time of the request for the snapshot.
    pub created: Timestamp,
    /// The name of internal snapshots and volumes that keep the current contents.
    pub keep: &'a SnapshotName,
    /// Whether the domain runs.
    pub running: bool,
    /// Whether to discard the current contents.
    pub discard: bool,
    /// The second domain, if one is created. The disks of the original domain then do not change: every
    /// disk gets a new file or volume.
    pub new_domain: Option<NewDomain<'a>>,
    /// Whether the volume groups lack space to keep the current contents.
    pub tight: bool,
    /// The host's logical volumes; read only if the snapshot has one.
    pub volumes: &'a std::result::Result<Vec<Volume>, String>,
}

/// A new domain from a snapshot.
#[derive(Debug, Clone, Copy)]
pub struct NewDomain<'a> {
    /// Its name, which can be a part of a path; for a replacement, the name that its volumes contain.
    pub name: &'a str,
    pub uuid: Uuid,
    /// Whether it will replace the original domain.
    pub replacement: bool,
}

/// The part of one disk in the plan of `revert`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DiskRevert {
    /// Steps before the domain is destroyed, one after the other.
    pub prepare: Vec<Step>,
    /// Steps after the domain is gone, one after the other.
    pub put_back: Vec<Step>,
    /// Steps that return the disk to its previous contents if the revert fails later; each depends on
    /// those before it. None if the disk was not reverted, or its tools have no way back.
    pub undo_revert: Vec<Step>,
    /// Whether they need only wait for QEMU's end: nobody else can have the image open.
    pub only_qemu: bool,
    /// The image in which the guest continues, if it is not the one of the snapshot.
    pub switch: Option<(PathBuf, Format)>,
    /// Where the data that the guest wrote since is kept, for the report.
    pub kept: Option<String>,
    /// Whether that data is lost at once, because there is no space for it.
    pub lost: bool,
    /// Steps that delete it after the revert has succeeded.
    pub discard: Vec<Step>,
    /// The space that it needs in a volume group.
    pub space: Option<Space>,
    /// The space that it needs on a file system.
    pub room: Option<Room>,
    pub note: Option<String>,
    /// For a replacement: steps after the switch and before `discard`. Its image then has the name in
    /// `settled`.
    pub settle: Vec<Step>,
    /// See `settle`.
    pub settled: Option<(PathBuf, Format)>,
}

/// The space for a copy of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    pub directory: PathBuf,
    pub device: u64,
    /// In bytes.
    pub free: u64,
    /// In bytes.
    pub needed: u64,
}

/// Space that a snapshot takes from its volume group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Space {
    pub group: String,
    /// In bytes.
    pub free: u64,
    /// The space needed, in bytes.
    pub size: u64,
}

/// QEMU's top node of a disk, checked against the configuration.
pub(super) fn node(seen: &RunningDisk) -> Result<&Node> {
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

/// The hint if somebody has snapshotted a disk by hand.
fn by_hand(vdev: &str, node: &Node) -> String {
    let entry = Format::of_qemu(&node.driver).filter(|_| check_path(&node.file).is_ok());
    let entry = entry.map(|format| Change::new(vdev, &node.file, format).entry());
    match entry {
        Some(entry) => format!(
            "it was snapshotted by hand: until the domain's xl configuration file says {}, its next \
             start goes back to the old image; correct the file, shut the domain down, and start it from \
             the file",
            literal(&entry, "'")
        ),
        None => "it was snapshotted by hand; restart the domain on the right image first".into(),
    }
}

pub(super) fn record(seen: &RunningDisk, snapshot: impl Into<DiskSnapshot>) -> DiskRecord {
    DiskRecord {
        vdev: seen.disk.vdev.clone(),
        path: seen.disk.file().to_owned(),
        format: seen.disk.format,
        snapshot: snapshot.into(),
    }
}

/// A refusal of one disk, with a hint.
pub(super) fn refuse(disk: &Disk, why: String) -> Error {
    Error::refused(format!("Disk {} ({}) cannot be snapshotted", disk.vdev, disk.file().display()))
        .because(why)
        .hint(format!("leave it out with --disk {},none if you do not need its content", disk.vdev))
}

/// A refusal to revert a disk.
pub(super) fn refuse_revert(record: &DiskRecord, why: impl Into<String>) -> Error {
    Error::refused(format!("Disk {} ({}) cannot be reverted", record.vdev, record.path.display()))
        .because(why.into())
        .hint("nothing was changed; run xl-snapshot show to see the state of each disk")
}

/// A refusal of a snapshot that was made by hand.
pub(super) fn refuse_by_hand(disk: &Disk, why: String) -> Error {
    let (vdev, path) = (&disk.vdev, disk.file().display());
    Error::refused(format!("Disk {vdev} ({path}) cannot be reverted"))
        .because(why)
        .hint("inspect the chain: qemu-img info --backing-chain -f FORMAT FILE")
}

/// The place for the file that a snapshot makes.
pub(super) fn place(seen: &RunningDisk) -> Result<&Path> {
    let disk = &seen.disk;
    let place = seen.place.as_ref().ok_or_else(|| {
        let why = "there is no place for a new file: the domain's name cannot be a part of a path";
        let vdev = &disk.vdev;
        refuse(disk, why.into()).hint(format!("pass a path: --disk {vdev},HOW,file=PATH"))
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

/// The first group or file system with too little space for all requests: its name, free and needed
/// bytes. Each request has name, free and needed bytes.
pub(super) fn shortage<N: Copy + PartialEq>(takes: &[(N, u64, u64)]) -> Option<(N, u64, u64)> {
    takes.iter().find_map(|(name, free, _)| {
        let needed: u64 = takes
            .iter()
            .filter(|(other, ..)| other == name)
            .fold(0, |sum, (.., size)| sum.saturating_add(*size));
        (needed > *free).then_some((*name, *free, needed))
    })
}

/// The name of what a revert creates, from the name of what it keeps.
pub(crate) fn after(keep: &str) -> String {
    keep.replacen("before-revert-", "after-revert-", 1)
}

/// An amount for people. Of less than a MiB, all KiB are told, so that too little does not look like enough.
pub(crate) fn mib(bytes: u64) -> String {
    match bytes >> 20 {
        0 if bytes > 0 => format!("{} KiB", bytes.div_ceil(1024)),
        mib => format!("{mib} MiB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_told_in_mib_or_kib() {
        for (bytes, told) in [
            (0, "0 MiB"),
            (1, "1 KiB"),
            (1025, "2 KiB"),
            ((1 << 20) - 1, "1024 KiB"),
            (1 << 20, "1 MiB"),
            ((2 << 20) - 1, "1 MiB"),
        ] {
            assert_eq!(mib(bytes), told);
        }
    }
}
