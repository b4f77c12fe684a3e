//! Disks: which way each one is snapshotted, and what that takes. Pure.
//!
//! One file per way: [`internal`] and [`external`] through QEMU, [`lvm`], [`reflink`] and [`vhd`]. A
//! new way is a file with the same two functions, `create` and `revert`, a line in [`choose`], and a
//! variant of [`Kept`](crate::record::Kept). [`tool`](crate::tool) has the arguments and answers of
//! their tools.

pub mod chain;
pub mod external;
mod found;
pub mod internal;
pub mod lvm;
mod parts;
pub mod qcow2;
pub mod reflink;
mod seen;
pub mod vhd;

pub use found::{DiskFound, short_of_room};
pub(crate) use parts::mib;
pub use parts::{Beside, Context, DiskCreate, DiskRevert, RevertContext, Room, Space};
use parts::{record, refuse, refuse_revert};
pub use seen::{DiskSeen, FileFacts, Node, Place, Sectors, Served};

use jiff::Timestamp;

use crate::domain::{Disk, Format};
use crate::error::Result;
use crate::names::SnapshotName;
use crate::need::What;
use crate::record::{DiskRecord, Kept};
use crate::spec::Wish;
use crate::tool::check_path;

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

/// Refuses disks of which a revert would take what they rest on for changed since: its time is in the future, by the
/// clock of a file server, or from before this host's clock was set back.
pub fn check_clock(seen: &[DiskSeen], planned: &[DiskCreate], now: Timestamp) -> Result<()> {
    let taken = seen.iter().zip(planned).filter(|(_, plan)| !plan.record.snapshot.is_left_out());
    let below = taken.filter_map(|(seen, _)| Some((seen, seen.below.as_ref()?)));
    for (seen, (path, written)) in below {
        if *written > now {
            let why = format!(
                "it rests on {}, which was written to at {written}, and now it is {now}: a revert could not \
                 tell whether it was written to since",
                path.display()
            );
            return Err(refuse(&seen.disk, why).hint(
                "set this host's clock and the file server's right, or wait until that time",
            ));
        }
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

#[cfg(test)]
mod tests;
