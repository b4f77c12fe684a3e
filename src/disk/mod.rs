//! Disks: how each one is snapshotted, and the plans for that. Pure.
//!
//! One directory for each kind: [`internal`] and [`external`] through QEMU, [`lvm`], [`reflink`] and
//! [`vhd`], and [`none`] for disks that are left out. [`kinds`] lists them; CONTRIBUTING.md says how to
//! add one. [`tool`](crate::tool) has the arguments and answers of their tools.

pub mod chain;
mod exported;
pub mod exporting;
pub mod external;
pub mod image_tree;
pub mod internal;
pub mod kind;
pub mod kinds;
pub mod lvm;
mod merge;
pub mod merge_mark;
pub mod none;
mod parts;
mod planner;
pub mod proof;
pub mod qcow2;
pub mod reflink;
mod running_disk;
mod snapshot_disk;
pub mod vhd;

use jiff::Timestamp;

use self::exporting::DiskExport;
use self::image_tree::{DeleteOptions, DiskDelete, ImageTree};
use self::kind::{Content, VolumeName};
use self::kinds::DiskMethod;
pub use self::lvm::{short_of_space, tag as volume_tag};
pub use self::parts::{Context, DiskCreate, DiskRevert, NewDomain, RevertContext, Room, Space};
pub(crate) use self::parts::{after, mib};
use self::parts::{refuse, refuse_by_hand, refuse_revert};
use self::planner::ByHand;
pub use self::planner::HostView;
pub use self::running_disk::{FileFacts, Node, Place, RunningDisk, Sectors, Served};
pub use self::snapshot_disk::{SnapshotDisk, check_untouched, short_of_room};
use crate::domain::{Disk, Format};
use crate::error::Result;
use crate::names::SnapshotName;
use crate::need::Requirement;
use crate::record::DiskRecord;
use crate::release::TAPBACK;
use crate::spec::Choice;
use crate::tool::check_path;

/// The name of the file that a new domain gets for a disk.
pub fn beside_file_name(domain: &str, disk: &DiskRecord) -> String {
    format!("{domain}-{}.{}", disk.vdev, disk.snapshot.kind().clone_ending())
}

/// Chooses the user's kind or the default. Refuses a disk that cannot be snapshotted consistently.
pub fn choose(seen: &RunningDisk, choice: Option<&Choice>) -> Result<DiskMethod> {
    let disk = &seen.disk;
    let chosen = choice.map(|choice| choice.how);
    if chosen.is_some_and(DiskMethod::leaves_out) {
        return Ok(DiskMethod::None);
    }
    match (none::unchanging(disk), choice) {
        (Some(_), None) => return Ok(DiskMethod::None),
        (Some(why), Some(_)) => {
            return Err(refuse(disk, format!("it is a {why} disk, which has nothing to snapshot")));
        }
        (None, _) => {}
    }
    if let Some(why) = out_of_reach(seen) {
        return Err(refuse(disk, why));
    }
    let mut all = DiskMethod::ALL.iter().copied();
    if let Some((only, why)) = all.find_map(|how| Some((how, how.only_method(seen)?))) {
        return match chosen {
            Some(how) if how != only && how != DiskMethod::External => {
                Err(refuse(disk, why.into()))
            }
            _ => Ok(only),
        };
    }
    let default = || DiskMethod::ALL.iter().copied().find(|how| how.is_default(seen));
    Ok(chosen.or_else(default).unwrap_or(DiskMethod::External))
}

/// Why no kind of snapshot supports a disk, if none does.
fn out_of_reach(seen: &RunningDisk) -> Option<String> {
    let disk = &seen.disk;
    if let Some(domain) = &disk.backend_domain {
        return Some(format!("it is served by the driver domain {domain}"));
    }
    if let Some(script) = disk.script.as_ref().filter(|_| !disk.is_tap_vhd()) {
        return Some(format!("it is set up by the script {script}"));
    }
    // We would refuse to read a record with that path.
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
        Some(Served::Other(what)) if what == TAPBACK => {
            Some("it is served by tapback (backendtype=tap)".into())
        }
        Some(Served::Other(what)) => Some(format!("it is served by {what}")),
        None => Some("xenstore does not say what serves it".into()),
    }
}

pub fn create(
    seen: &RunningDisk,
    choice: Option<&Choice>,
    context: Context<'_>,
) -> Result<DiskCreate> {
    choose(seen, choice)?.create(seen, choice, context)
}

/// Refuses one file that is two disks of the domain: the snapshot of one would switch the file under the other.
pub fn check_twice(seen: &[RunningDisk], planned: &[DiskCreate]) -> Result<()> {
    let taken = seen.iter().zip(planned).filter(|(_, plan)| !plan.record.snapshot.is_left_out());
    let id = |seen: &RunningDisk| (seen.file.as_ref().ok().map(FileFacts::id), seen.device);
    let mut known: Vec<&RunningDisk> = Vec::new();
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

/// Refuses disks whose bases a revert would consider changed: their time is in the future, by the clock of a file
/// server, or because this host's clock was set back.
pub fn check_clock(seen: &[RunningDisk], planned: &[DiskCreate], now: Timestamp) -> Result<()> {
    let taken = seen.iter().zip(planned).filter(|(_, plan)| !plan.record.snapshot.is_left_out());
    let below = taken.filter_map(|(seen, _)| Some((seen, seen.below.as_ref()?)));
    for (seen, (path, written)) in below {
        if *written > now {
            let why = format!(
                "its base {} was written to at {written}, and now it is {now}: a revert could not \
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

/// Plans to revert one disk.
pub fn revert(found: &SnapshotDisk, context: RevertContext<'_>) -> Result<DiskRevert> {
    let snapshot = &found.record.snapshot;
    if let Some(user) = found.used_by.as_ref().filter(|_| !snapshot.is_left_out()) {
        return Err(refuse_revert(&found.record, format!("it is also used by {user}")));
    }
    let planned = snapshot.planner().revert(found, context);
    let planned = planned.map_err(|error| found.if_moved(error))?;
    found.check_below(context.created)?;
    Ok(planned)
}

/// Checks the content of one disk, and says where to copy it from. `None` if the disk is not in the snapshot.
pub fn export(found: &SnapshotDisk, context: RevertContext<'_>) -> Result<Option<DiskExport>> {
    let record = &found.record;
    if record.snapshot.is_left_out() {
        return Ok(None);
    }
    let planned = match &found.used_by {
        Some(user) => Err(refuse_revert(record, format!("it is also used by {user}"))),
        None => record.snapshot.planner().export(found, context),
    };
    let planned = planned.map_err(|error| found.if_moved(error));
    let planned = planned.and_then(|planned| found.check_below(context.created).map(|()| planned));
    // The errors are those of a revert, under another name.
    planned.map_err(|mut error| {
        error.message = exporting::refused(record);
        error
    })
}

pub fn delete(family: &ImageTree, options: DeleteOptions) -> Result<DiskDelete> {
    family.record.snapshot.planner().delete(family, options)
}

/// Why `--restore-first` needs a copy of a disk, if it does.
pub fn needs_copy_for_new_domain(disk: &DiskRecord) -> Option<&'static str> {
    match disk.snapshot.kind().content() {
        Content::Inside(_) => Some("its snapshot is inside of the image that the domain writes to"),
        Content::Volume(VolumeName { thick: true, .. }) => {
            Some("a thick snapshot can be merged into its volume only")
        }
        Content::Nowhere | Content::Frozen(_) | Content::Volume(_) => None,
    }
}

/// What one disk's revert needs on the host, in addition to the checks in [`revert`]. For a second
/// domain (`for_new_domain`), the old disk is only read.
pub fn needs(found: &SnapshotDisk, for_new_domain: bool) -> Vec<Requirement> {
    let mut needs = found.record.snapshot.planner().needs(found, for_new_domain);
    let below = found.below.iter().flatten();
    needs.extend(below.map(|(path, _)| Requirement::UnwrittenFile(path.clone())));
    needs
}

/// The record of a snapshot of one disk that somebody made by hand.
pub fn by_hand(
    disk: &Disk,
    choice: Option<&Choice>,
    name: Option<&SnapshotName>,
    view: &dyn HostView,
) -> Result<DiskRecord> {
    let refuse = |why: String| refuse_by_hand(disk, why);
    let choice = match choice {
        Some(choice) if choice.how.leaves_out() => return Ok(none::by_hand(disk, Some(choice))),
        Some(choice) => choice,
        None if none::unchanging(disk).is_some() => return Ok(none::by_hand(disk, None)),
        None => {
            return Err(refuse("the SPEC.toml does not say which snapshot it has".into()).hint(
                format!(
                    "give it a [[disk]] with vdev = \"{}\" and snapshot = \"internal\", \"external\" or \
                     \"none\"",
                    disk.vdev
                ),
            ));
        }
    };
    let format = disk.format.ok_or_else(|| refuse("its format is not known".into()))?;
    let chain = view.chain(disk.file(), format).map_err(refuse)?;
    let top = chain.first().ok_or_else(|| refuse("qemu-img says nothing of it".into()))?;
    choice.how.by_hand(disk, &ByHand { choice, name, format, chain: &chain, top, view })
}

/// The formats that QEMU must serve after the revert: those of the disk and its bases.
pub fn formats(found: &SnapshotDisk) -> Vec<Format> {
    if found.record.snapshot.is_left_out() || found.record.snapshot.kind().content().is_tap_vhd() {
        return Vec::new();
    }
    let mut formats: Vec<Format> = found.record.format.into_iter().collect();
    for link in found.own.iter().flatten() {
        if !formats.contains(&link.format) {
            formats.push(link.format);
        }
    }
    formats
}

/// The default file of a disk's snapshot: in the directory of the disk's own file, named after the
/// guest's disk and the snapshot.
pub fn new_file_name(
    domain: &str,
    disk: &Disk,
    choice: Option<&Choice>,
    name: &SnapshotName,
) -> String {
    let how = match choice.map(|choice| choice.how) {
        None | Some(DiskMethod::External) if disk.is_tap_vhd() => DiskMethod::Vhd,
        None => DiskMethod::External,
        Some(how) => how,
    };
    how.new_file_name(&format!("{domain}-{}", disk.vdev), name.as_str())
}

/// The file that a revert creates for a disk.
pub fn revert_file_name(
    domain: &str,
    disk: &DiskRecord,
    name: &SnapshotName,
    stamp: &str,
) -> String {
    let stem = format!("{domain}-{}", disk.vdev);
    disk.snapshot.kind().revert_file_name(&stem, name.as_str(), stamp)
}

#[cfg(test)]
mod tests;
