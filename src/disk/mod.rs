//! Disks: which way each one is snapshotted, and what that takes. Pure.
//!
//! One file per way: [`internal`] and [`external`] through QEMU, [`lvm`], [`reflink`] and [`vhd`]. A
//! new way is a file with the same two functions, `create` and `revert`, a line in [`choose`], and a
//! variant of [`Kept`](crate::record::Kept). [`qemu_img`] has that tool's arguments and answers.

pub mod external;
pub mod internal;
pub mod lvm;
pub mod qemu_img;
pub mod reflink;
pub mod vhd;

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use uuid::Uuid;

use crate::disk::lvm::volumes::Volume;
use crate::domain::{Disk, Format};
use crate::error::{Error, Result};
use crate::names::SnapshotName;
use crate::plan::{Action, Step};
use crate::record::{DiskRecord, FrozenFile, Kept, QcowSnapshot};
use crate::spec::Wish;
use crate::tool::check_path;

/// What is known of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileFacts {
    /// Its length in bytes.
    pub size: u64,
    /// When it was last written to.
    pub mtime: Timestamp,
    /// Its inode number.
    pub inode: u64,
    /// The number of its file system.
    pub device: u64,
    /// Whether anybody has write permission. We take it from the base of an overlay.
    pub writable: bool,
}

/// What serves a disk to the guest, from xenstore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Served {
    /// The domain's own QEMU in dom0.
    Qemu,
    /// The kernel's blkback (`phy`).
    Blkback,
    /// Something else.
    Other(String),
}

/// What QEMU says of a disk, from `query-block`.
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
    /// What QEMU says, if QEMU serves it.
    pub node: Option<Node>,
    /// What is known of its file; the error if it cannot be looked at, or is none.
    pub file: std::result::Result<FileFacts, String>,
    /// The number of the device, major and minor, if it is one.
    pub device: Option<(u64, u64)>,
    /// The file that its snapshot would make, and whether its place is free.
    pub place: Option<Place>,
    /// The disk of another domain that may write to it as well.
    pub used_by: Option<String>,
    /// Why its file system cannot clone it, if it cannot; looked at only if that is wished for, or
    /// would spare a restore.
    pub clone_trouble: Option<String>,
    /// What is known of it as a VHD, if it is one.
    pub vhd: Option<std::result::Result<vhd::Facts, String>>,
}

/// A path for a new file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The path.
    pub path: PathBuf,
    /// Why a file cannot be made there, if it cannot.
    pub trouble: Option<String>,
}

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

/// One disk of a snapshot, and the world around it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFound {
    /// What the record says.
    pub record: DiskRecord,
    /// What is known of the file in the record; the error if it cannot be looked at.
    pub file: std::result::Result<FileFacts, String>,
    /// If the content stays in a file that nobody writes to any more, what is known of that file:
    /// the one in the record, or its copy. The error else, or if it cannot be looked at.
    pub frozen: std::result::Result<FileFacts, String>,
    /// The size a guest sees of the frozen file, in bytes; the error if that cannot be told.
    pub virtual_size: std::result::Result<u64, String>,
    /// If the snapshot is inside of the file in the record, what qemu-img says of that file. The
    /// error else, or if it says nothing.
    pub image: std::result::Result<qemu_img::ImageInfo, String>,
    /// The images the running domain has under this disk now, top first; empty if it does not run,
    /// or if qemu-img does not know of chains of its kind.
    pub chain: Vec<qemu_img::ImageInfo>,
    /// The file the running domain writes to now.
    pub top: Option<PathBuf>,
    /// The parent of the file the running domain writes to now, if that is a VHD that has one.
    pub top_parent: Option<PathBuf>,
    /// Whether the file the running domain writes to now has lost its write permission: other
    /// images rest on it.
    pub top_protected: bool,
    /// The files that the one with the content rests on, and when each was last written to; the
    /// error if they are not known. What is no file here, such as a volume, is left out.
    pub below: std::result::Result<Vec<(PathBuf, Timestamp)>, String>,
    /// Who else uses the files, besides the domain that will be destroyed.
    pub used_by: Option<String>,
    /// Where a new image can be made, should one be needed.
    pub place: Place,
    /// The room for a copy of the snapshot, where [`DiskFound::needs_copy`]; the error if it is not
    /// known.
    pub room: Option<std::result::Result<Room, String>>,
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

/// What stands over all disks of one `revert`.
#[derive(Debug, Clone, Copy)]
pub struct RevertContext<'a> {
    /// The domain.
    pub uuid: Uuid,
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
    /// Whether the volume groups have too little for what all disks hold now.
    pub tight: bool,
    /// The host's logical volumes; looked at only if the snapshot has one.
    pub volumes: &'a std::result::Result<Vec<Volume>, String>,
}

/// What one disk adds to the plan of `revert`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DiskRevert {
    /// Steps before the domain is destroyed.
    pub prepare: Vec<Step>,
    /// Steps after it is gone, one after the other.
    pub put_back: Vec<Step>,
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
    match &seen.served {
        Some(Served::Qemu | Served::Blkback) => None,
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
        Kept::Reflink { copy, proof } => reflink::revert(found, copy, proof.as_ref())?,
        Kept::Vhd { proof, .. } => vhd::revert(found, proof.as_ref())?,
    };
    found.check_below(context.created)?;
    Ok(planned)
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
        .hint("somebody snapshotted it by hand; restart the domain on the right image first"));
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

/// Why file systems have too little for all copies at once, if they have.
pub fn short_of_room(rooms: &[&Room]) -> Option<String> {
    let takes: Vec<_> = rooms.iter().map(|room| (room.device, room.free, room.needed)).collect();
    let (device, free, needed) = shortage(&takes)?;
    let place = rooms.iter().find(|room| room.device == device)?;
    Some(format!(
        "the file system of {} has {} free, and {} are needed",
        place.directory.display(),
        mib(free),
        mib(needed)
    ))
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

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

/// Checks that nothing was written to a frozen file since.
///
/// Noticed: every write that moves the file's time, another length, and another file under its
/// path, a copy of it or the base of another disk. Not noticed: a write of the same length after
/// which somebody put the time back (`touch -r`). The time of the last change of the inode (ctime)
/// would tell that, but also moves with a new owner, name or permission, which change nothing. The
/// number of the file system is not in the record, because it may change when the host boots.
fn check_untouched(file: &FileFacts, proof: &FrozenFile) -> std::result::Result<(), String> {
    if file.inode != proof.inode {
        return Err(format!(
            "it is another file now: inode {}, at the snapshot {}",
            file.inode, proof.inode
        ));
    }
    if file.size != proof.file_size {
        return Err(format!(
            "it was written to since: {} bytes long, at the snapshot {}",
            file.size, proof.file_size
        ));
    }
    if file.mtime != proof.mtime {
        return Err(format!(
            "it was written to since: last at {}, at the snapshot {}",
            file.mtime, proof.mtime
        ));
    }
    Ok(())
}

impl DiskFound {
    /// What every kind checks whose content stays in a file that nobody writes to any more: it is
    /// there, it is the one of then and untouched, and there is a place for the new file that its
    /// content goes to. Returns the proof.
    fn check_frozen<'a>(
        &self,
        path: &Path,
        proof: Option<&'a FrozenFile>,
    ) -> Result<&'a FrozenFile> {
        let refuse = |why: String| match path == self.record.path {
            true => refuse_revert(&self.record, why),
            false => refuse_revert(&self.record, format!("its copy {}: {why}", path.display())),
        };
        let proof = proof.ok_or_else(|| refuse("the record has no proof of it".into()))?;
        let file = self.frozen.as_ref().map_err(|why| refuse(why.clone()))?;
        check_untouched(file, proof).map_err(refuse)?;
        let virtual_size = self.virtual_size.as_ref().map_err(|why| refuse(why.clone()))?;
        if *virtual_size != proof.virtual_size {
            return Err(refuse(format!(
                "its size was changed: {virtual_size} bytes, at the snapshot {}",
                proof.virtual_size
            )));
        }
        // A write may come until it is destroyed, when nobody looks any more.
        if self.top.as_deref() == Some(path) {
            return Err(refuse("the domain runs on it now and may write to it".into()).hint(
                "shut the domain down; the snapshot is good as long as nothing was written",
            ));
        }
        if let Some(trouble) = &self.place.trouble {
            return Err(refuse_revert(&self.record, format!("a new file is needed: {trouble}")));
        }
        Ok(proof)
    }

    /// Checks what lies below the file with the content, which shows through it. It was frozen before
    /// the snapshot was asked for, so nothing may have been written to it since. Not noticed: another
    /// file in its place that is older.
    fn check_below(&self, created: Timestamp) -> Result<()> {
        let below = self.below.as_ref().map_err(|why| refuse_revert(&self.record, why.clone()))?;
        match below.iter().find(|(_, written)| *written > created) {
            None => Ok(()),
            Some((path, written)) => Err(refuse_revert(
                &self.record,
                format!(
                    "it rests on {}, which was written to since: last at {written}, the snapshot is \
                     of {created}",
                    path.display()
                ),
            )
            .hint("if only its time is wrong, as from a clock that was set back, put that right")),
        }
    }

    /// Where that stays which the domain wrote since, if it goes on in another file.
    fn kept_in_top(&self) -> Option<String> {
        self.top.as_ref().map(|top| top.display().to_string())
    }

    /// Whether an internal snapshot has to be copied out of its file, because other images rest on
    /// that: it lies below the running domain's image, or has the mark of a base.
    pub fn needs_copy(&self) -> bool {
        let below = self.chain.iter().skip(1).any(|image| image.filename == self.record.path);
        let marked = self.file.as_ref().is_ok_and(|file| !file.writable);
        matches!(self.record.snapshot, Kept::Internal { .. }) && (below || marked)
    }

    /// The step that removes what the domain wrote since: its present overlay, if that rests
    /// directly on the snapshot's file and nothing else can need it.
    fn discard_top(&self) -> Vec<Step> {
        match self.chain.as_slice() {
            [top, below, ..]
                if below.filename == self.record.path
                    && top.filename != self.record.path
                    && top.snapshots().is_empty()
                    && !self.top_protected =>
            {
                vec![Step::RemoveFile { path: top.filename.clone() }]
            }
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
