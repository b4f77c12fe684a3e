//! Disks: which way each one is snapshotted, and what that takes. Pure.
//!
//! One file per way: [`internal`] and [`external`] through QEMU, [`lvm`], [`reflink`] and [`vhd`]. A
//! new way is a file with the same two functions, `create` and `revert`, a line in [`choose`], and a
//! variant of [`Kept`](crate::record::Kept). [`qemu_img`] has that tool's arguments and answers.

pub mod chain;
pub mod external;
mod found;
pub mod internal;
pub mod lvm;
pub mod qcow2;
pub mod qemu_img;
pub mod reflink;
mod seen;
pub mod vhd;

pub use found::{DiskFound, Room, short_of_room};
pub use seen::{DiskSeen, FileFacts, Node, Place, Sectors, Served};

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use uuid::Uuid;

use crate::disk::lvm::volumes::Volume;
use crate::domain::{Disk, Format};
use crate::error::{Error, Result};
use crate::names::SnapshotName;
use crate::need::What;
use crate::plan::{Action, Step};
use crate::record::{DiskRecord, Kept};
use crate::spec::Wish;
use crate::tool::check_path;
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
    pub space: Option<lvm::Space>,
    /// Its part of the record, proofs missing.
    pub record: DiskRecord,
}

impl DiskCreate {
    /// A disk that adds nothing but its record.
    fn of(record: DiskRecord) -> Self {
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
    /// Its name, which can be a part of a path.
    pub name: &'a str,
    /// Its UUID.
    pub uuid: Uuid,
}

/// What one disk adds to the plan of `revert`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DiskRevert {
    /// Steps before the domain is destroyed.
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
    /// Steps that delete it, once the revert has succeeded.
    pub discard: Vec<Step>,
    /// What it takes from a volume group.
    pub space: Option<lvm::Space>,
    /// What it takes from a file system.
    pub room: Option<Room>,
}

/// The file that a new domain would have for a disk.
pub fn beside_file_name(domain: &str, disk: &DiskRecord) -> String {
    let ending = if matches!(disk.snapshot, Kept::Vhd { .. }) { "vhd" } else { "qcow2" };
    format!("{domain}-{}.{ending}", disk.vdev)
}

/// How a disk is snapshotted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// Not at all, and why.
    LeftOut(String),
    /// Inside of the qcow2 file.
    Internal,
    /// By an overlay.
    External,
    /// By LVM, with room for so many bytes of changes.
    Lvm(Option<u64>),
    /// By a copy that shares its content.
    Reflink,
    /// By a child of the VHD.
    Vhd,
}

/// Chooses the way: what the user wishes, or the default for its kind. Refuses what cannot be
/// snapshotted consistently.
pub fn choose(seen: &DiskSeen, wish: Option<&Wish>) -> Result<Choice> {
    let disk = &seen.disk;
    if wish == Some(&Wish::None) {
        return Ok(Choice::LeftOut("left out as asked".into()));
    }
    let unchanging = match disk {
        Disk { cdrom: true, .. } => Some("CD-ROM"),
        Disk { writable: false, .. } => Some("read-only"),
        _ => None,
    };
    match (unchanging, wish) {
        (Some(why), None) => return Ok(Choice::LeftOut(why.into())),
        (Some(why), Some(_)) => {
            return Err(refuse(disk, format!("it is a {why} disk, which has nothing to snapshot")));
        }
        (None, _) => {}
    }
    if let Some(why) = out_of_reach(seen) {
        return Err(refuse(disk, why));
    }
    Ok(match wish {
        Some(Wish::External { .. }) | None if disk.is_tap_vhd() => Choice::Vhd,
        Some(_) if disk.is_tap_vhd() => {
            return Err(refuse(
                disk,
                "a VHD that tapdisk serves has external snapshots only".into(),
            ));
        }
        Some(Wish::Internal) => Choice::Internal,
        Some(Wish::External { .. }) => Choice::External,
        Some(Wish::Lvm { size }) => Choice::Lvm(*size),
        Some(Wish::Reflink { .. }) => Choice::Reflink,
        Some(Wish::None) | None if disk.format == Some(Format::Qcow2) => Choice::Internal,
        Some(Wish::None) | None if seen.device.is_some() => Choice::Lvm(None),
        Some(Wish::None) | None => Choice::External,
    })
}

/// Why nothing we know of can snapshot a disk, if that is so.
fn out_of_reach(seen: &DiskSeen) -> Option<String> {
    let disk = &seen.disk;
    if let Some(domain) = &disk.backend_domain {
        return Some(format!("it is served by the driver domain {domain}"));
    }
    if let Some(script) = disk.script.as_ref().filter(|_| !disk.is_tap_vhd()) {
        return Some(format!("it is set up by the script {script}"));
    }
    // A record with that path would not be read again.
    if let Err(why) = check_path(disk.file()) {
        return Some(why.to_string());
    }
    if let Some(user) = &seen.used_by {
        return Some(format!("{user} may write to it as well"));
    }
    if let Some(why) = seen.node.as_ref().and_then(|node| node.elsewhere.as_ref()) {
        return Some(why.clone());
    }
    match &seen.served {
        Some(Served::Qemu | Served::Blkback | Served::Nobody) => None,
        Some(Served::Other(what)) => Some(format!("it is served by {what}")),
        None => Some("xenstore does not say what serves it".into()),
    }
}

/// Plans the snapshot of one disk.
pub fn create(seen: &DiskSeen, wish: Option<&Wish>, context: Context<'_>) -> Result<DiskCreate> {
    match choose(seen, wish)? {
        Choice::LeftOut(why) => Ok(DiskCreate::of(record(seen, Kept::None { why }))),
        Choice::Internal => internal::create(seen, context),
        Choice::External => external::create(seen, context),
        Choice::Lvm(size) => lvm::create(seen, size, context),
        Choice::Reflink => reflink::create(seen),
        Choice::Vhd => vhd::create(seen),
    }
}

/// Refuses one file that is two disks of the domain: the snapshot of one would be switched away under the other.
pub fn check_twice(seen: &[DiskSeen], planned: &[DiskCreate]) -> Result<()> {
    let taken = seen.iter().zip(planned).filter(|(_, plan)| !plan.record.snapshot.is_left_out());
    let id = |seen: &DiskSeen| (seen.file.as_ref().ok().map(FileFacts::id), seen.device);
    let mut known: Vec<&DiskSeen> = Vec::new();
    for (seen, _) in taken.filter(|(seen, _)| id(seen) != (None, None)) {
        if let Some(other) = known.iter().find(|other| id(other) == id(seen)) {
            let why = format!("{} of the same domain is that file too", other.disk.vdev);
            return Err(
                refuse(&seen.disk, why).hint("give each of the two disks a file of its own")
            );
        }
        known.push(seen);
    }
    Ok(())
}

/// Plans to put one disk back.
pub fn revert(found: &DiskFound, context: RevertContext<'_>) -> Result<DiskRevert> {
    let snapshot = &found.record.snapshot;
    let left_out = matches!(snapshot, Kept::None { .. });
    if let Some(user) = found.used_by.as_ref().filter(|_| !left_out) {
        return Err(refuse_revert(&found.record, format!("it is also used by {user}")));
    }
    let planned = match snapshot {
        Kept::None { .. } => DiskRevert::default(),
        Kept::Internal { proof } => internal::revert(found, proof.as_ref(), context)?,
        Kept::External { proof, .. } => external::revert(found, proof.as_ref())?,
        Kept::Lvm { .. } => lvm::revert(found, context)?,
        Kept::Reflink { copy, proof } => reflink::revert(found, copy, proof.as_ref(), context)?,
        Kept::Vhd { proof, .. } => vhd::revert(found, proof.as_ref())?,
    };
    found.check_below(context.created)?;
    Ok(planned)
}

/// What has to be there to put one disk back, besides what [`revert`] looks at itself. For a new domain
/// `beside`, all of the old disk is only read.
pub fn needs(found: &DiskFound, beside: bool) -> Vec<What> {
    let record = &found.record;
    let path = || record.path.clone();
    let mut needs = match &record.snapshot {
        Kept::None { .. } => Vec::new(),
        Kept::Internal { .. } if beside => vec![What::Inside(path())],
        Kept::Internal { .. } if found.needs_copy() => vec![What::Still(path())],
        Kept::Internal { .. } => vec![What::Alone(path())],
        Kept::External { .. } | Kept::Vhd { .. } => vec![What::Still(path())],
        Kept::Reflink { copy, .. } if beside => vec![What::Still(copy.clone())],
        Kept::Reflink { copy, .. } => reflink::needs(&record.path, copy),
        Kept::Lvm { group, volume, size, .. } => lvm::needs(group, volume, *size, beside),
    };
    let below = found.below.iter().flatten();
    needs.extend(below.map(|(path, _)| What::Still(path.clone())));
    needs
}

/// The file that the snapshot of a disk would make, when the user does not say where: beside the
/// disk's own, named after the guest's disk and the snapshot.
pub fn new_file_name(
    domain: &str,
    disk: &Disk,
    wish: Option<&Wish>,
    name: &SnapshotName,
) -> String {
    let vdev = &disk.vdev;
    match wish {
        Some(Wish::Reflink { .. }) => format!("{domain}-{vdev}.at-{name}.img"),
        _ if disk.is_tap_vhd() => format!("{domain}-{vdev}.after-{name}.vhd"),
        _ => format!("{domain}-{vdev}.after-{name}.qcow2"),
    }
}

/// The file that a revert would make for a disk.
pub fn revert_file_name(
    domain: &str,
    disk: &DiskRecord,
    name: &SnapshotName,
    stamp: &str,
) -> String {
    let vdev = &disk.vdev;
    match &disk.snapshot {
        Kept::Reflink { .. } => format!("{domain}-{vdev}.before-revert-{stamp}.img"),
        Kept::Vhd { .. } => format!("{domain}-{vdev}.after-{name}.{stamp}.vhd"),
        _ => format!("{domain}-{vdev}.after-{name}.{stamp}.qcow2"),
    }
}

/// The node QEMU has on top of a disk, checked against the configuration.
fn node(seen: &DiskSeen) -> Result<&Node> {
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

fn record(seen: &DiskSeen, snapshot: Kept) -> DiskRecord {
    DiskRecord {
        vdev: seen.disk.vdev.clone(),
        path: seen.disk.file().to_owned(),
        format: seen.disk.format,
        snapshot,
    }
}

/// A refusal of one disk, with the way out.
fn refuse(disk: &Disk, why: String) -> Error {
    Error::refused(format!("Disk {} ({}) cannot be snapshotted", disk.vdev, disk.file().display()))
        .because(why)
        .hint(format!("leave it out with --disk {},none if its content does not matter", disk.vdev))
}

/// A refusal to put a disk back.
fn refuse_revert(record: &DiskRecord, why: impl Into<String>) -> Error {
    Error::refused(format!("Disk {} ({}) cannot be put back", record.vdev, record.path.display()))
        .because(why.into())
        .hint("nothing was changed; xl-snapshot show tells how each disk of the snapshot is")
}

/// The place for the file that a snapshot makes.
fn place(seen: &DiskSeen) -> Result<&Path> {
    let disk = &seen.disk;
    let place = seen
        .place
        .as_ref()
        .ok_or_else(|| refuse(disk, "there is no place for a new file".into()))?;
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
fn shortage<N: Copy + PartialEq>(takes: &[(N, u64, u64)]) -> Option<(N, u64, u64)> {
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

#[cfg(test)]
pub(crate) mod tests;
