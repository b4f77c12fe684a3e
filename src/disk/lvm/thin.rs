//! Reverts of thin volumes, and new volumes from their snapshots.

use super::recorded::{Recorded, check_name, keep_name, new_name};
use crate::disk::parts::refuse_revert;
use crate::disk::{DiskRevert, NewDomain, RevertContext};
use crate::domain::Format;
use crate::error::{Error, Result};
use crate::names::is_volume_part;
use crate::plan::{Step, Switch};
use crate::tool::quote;
use crate::tool::volumes::{self, Volume, device};

/// The prefix of the tag of a volume that a revert made.
const REVERT: &str = "xl-snapshot-revert:";
/// The prefix of the tag of a snapshot.
const SNAPSHOT: &str = "xl-snapshot:";

/// A new volume for another domain.
pub(super) fn thin_for_new_domain(
    recorded: &Recorded<'_>,
    snapshot: &Volume,
    volumes: &[Volume],
    domain: NewDomain<'_>,
) -> Result<DiskRevert> {
    let refuse = |why: String| refuse_revert(recorded.disk, why);
    let name = format!("{}.{}", recorded.volume, domain.name);
    if !is_volume_part(&name) {
        return Err(refuse(format!("LVM allows no volume {name}"))
            .hint("choose another name for the new domain"));
    }
    check_name(recorded.group, &name).map_err(refuse)?;
    if volumes.iter().any(|v| v.group == recorded.group && v.name == name) {
        return Err(refuse(format!("the volume {} exists", recorded.path(&name))));
    }
    let tag = format!("xl-snapshot-of:{}", domain.uuid);
    Ok(DiskRevert {
        prepare: vec![Step::Undoable {
            call: volumes::volume_of_thin(&snapshot.path(), &name, &tag),
            undo: volumes::remove_tagged(recorded.group, &name, &tag),
        }],
        switch: Some((device(recorded.group, &name), Format::Raw)),
        ..DiskRevert::default()
    })
}

/// A new volume for a domain that replaces the original one: after the switch both volumes are renamed, as in
/// [`thin`].
pub(super) fn thin_of_replacement(
    recorded: &Recorded<'_>,
    snapshot: &Volume,
    origin: Option<&Volume>,
    volumes: &[Volume],
    context: RevertContext<'_>,
) -> Result<DiskRevert> {
    let DiskRevert { prepare, discard, kept, switch, .. } =
        thin(recorded, snapshot, origin, volumes, context)?;
    let keep = keep_name(recorded, volumes, context)?;
    let new = new_name(recorded, volumes, context)?;
    let rename = |from: &str, to: &str| {
        Step::Switch(Switch::RenameVolume {
            group: recorded.group.to_owned(),
            from: from.to_owned(),
            to: to.to_owned(),
        })
    };
    let own = origin.map(|_| rename(recorded.volume, &keep));
    let named = recorded.disk.path.clone();
    Ok(DiskRevert {
        prepare,
        switch: Some((device(recorded.group, &new), Format::Raw)),
        settle: own.into_iter().chain([rename(&new, recorded.volume)]).collect(),
        settled: Some(switch.unwrap_or((named, Format::Raw))),
        kept,
        discard,
        ..DiskRevert::default()
    })
}

/// Creates a new volume from the snapshot while the domain still runs, and exchanges the names of both volumes
/// once it is down: LVM can refuse a new volume for many reasons, but hardly a rename. The current volume
/// keeps its contents.
pub(super) fn thin(
    recorded: &Recorded<'_>,
    snapshot: &Volume,
    origin: Option<&Volume>,
    volumes: &[Volume],
    context: RevertContext<'_>,
) -> Result<DiskRevert> {
    if let Some(other) =
        origin.filter(|origin| !is_guests(recorded, snapshot, origin, volumes, context))
    {
        return Err(another(recorded, snapshot, other));
    }
    let elsewhere = recorded.elsewhere(origin);
    let discard = context.discard && elsewhere.is_none();
    let keep = keep_name(recorded, volumes, context)?;
    let new = new_name(recorded, volumes, context)?;
    // lvremove would remove them too.
    let of_others = |origin: &Volume| {
        volumes.iter().find(|volume| {
            let of_it = volume.group == origin.group && volume.origin == origin.name;
            of_it && volume.is_thick_snapshot()
        })
    };
    if let Some(other) = origin.filter(|_| discard).and_then(of_others) {
        return Err(refuse_revert(
            recorded.disk,
            format!("its volume cannot be removed: {} is a snapshot of it", other.path()),
        )
        .hint("remove that first, or revert without --discard-current"));
    }
    // The undo identifies it by this tag, and later reverts know by it whose volume this is.
    let tag = format!("{REVERT}{}", context.keep);
    let back = |from: &str, to: &str, kept: Option<&String>| Step::UndoRenameVolume {
        group: recorded.group.to_owned(),
        from: from.to_owned(),
        to: to.to_owned(),
        kept: kept.cloned(),
    };
    let mut put_back = vec![Step::Run(volumes::rename(recorded.group, &new, recorded.volume))];
    let mut undo_revert = vec![back(recorded.volume, &new, origin.map(|_| &keep))];
    if origin.is_some() {
        put_back.insert(0, Step::Run(volumes::rename(recorded.group, recorded.volume, &keep)));
        undo_revert.push(back(&keep, recorded.volume, None));
    }
    let keep = recorded.path(&keep);
    // Another path, such as /dev/dm-3, may lead to the current volume, which keeps its device.
    let named = device(recorded.group, recorded.volume);
    let by_name =
        [&named, &volumes::mapped(recorded.group, recorded.volume)].contains(&&recorded.disk.path);
    Ok(DiskRevert {
        prepare: vec![Step::Undoable {
            call: volumes::volume_of_thin(&snapshot.path(), &new, &tag),
            undo: volumes::remove_tagged(recorded.group, &new, &tag),
        }],
        put_back,
        undo_revert,
        switch: (!by_name).then_some((named, Format::Raw)),
        discard: origin
            .filter(|_| elsewhere.is_none())
            .map(|_| Step::Run(volumes::remove(&keep)))
            .into_iter()
            .collect(),
        kept: match origin {
            Some(_) => Some(recorded.kept(&keep, elsewhere)),
            None => elsewhere.map(|top| top.display().to_string()),
        },
        ..DiskRevert::default()
    })
}

/// Whether the volume that bears the recorded name now is the guest's: that of which the snapshot was taken, one that
/// a revert made, one of which another snapshot of the disk was taken, or the one that the domain runs on. Else somebody
/// gave the name to another volume, which must not be renamed, let alone removed.
fn is_guests(
    recorded: &Recorded<'_>,
    snapshot: &Volume,
    origin: &Volume,
    volumes: &[Volume],
    context: RevertContext<'_>,
) -> bool {
    let of_disk = format!(":{}", recorded.disk.vdev);
    let snapshots = volumes.iter().filter(|v| v.group == origin.group && v.origin == origin.name);
    // Made by hand from a snapshot, or a snapshot that was merged by hand.
    let from = volumes.iter().filter(|v| v.group == origin.group);
    let from = from.filter(|v| v.name == origin.name || v.name == origin.origin);
    snapshot.origin == origin.name
        || from.flat_map(|v| v.tags_with(SNAPSHOT)).any(|tag| tag.ends_with(&of_disk))
        || origin.tags_with(REVERT).next().is_some()
        || snapshots.flat_map(|v| v.tags_with(SNAPSHOT)).any(|tag| tag.ends_with(&of_disk))
        || (context.running
            && recorded.elsewhere(Some(origin)).is_none()
            && recorded.found.top.is_some())
}

fn another(recorded: &Recorded<'_>, snapshot: &Volume, other: &Volume) -> Error {
    let path = other.path();
    let why = match snapshot.origin.as_str() {
        "" => format!("{path} is another volume than the one of which the snapshot was taken"),
        old => format!(
            "{path} is another volume now: the snapshot was taken of {}",
            recorded.path(old)
        ),
    };
    let (group, volume) = (quote(recorded.group), quote(recorded.volume));
    refuse_revert(recorded.disk, why).hint(format!(
        "give it another name (lvrename {group} {volume} NEW), and the guest's own one its name back, if it exists: \
         lvrename {group} {} {volume}",
        if snapshot.origin.is_empty() { "OLD".into() } else { quote(&snapshot.origin) }
    ))
}
