//! Deletes the snapshot of a volume.

use crate::disk::image_tree::{DiskDelete, ImageTree};
use crate::disk::merge;
use crate::error::Result;
use crate::plan::Step;
use crate::tool::quote;
use crate::tool::volumes::{self, Volume};

/// Plans to remove the snapshot, identified by its tag.
pub(super) fn plan(
    family: &ImageTree,
    tag: &str,
    (group, name): (&str, &str),
) -> Result<DiskDelete> {
    let mut plan = DiskDelete::default();
    let vdev = &family.record.vdev;
    let volumes = family.volumes.as_ref();
    let volumes =
        volumes.map_err(|why| merge::refuse(family, format!("LVM does not answer: {why}")))?;
    if let Some(why) = volumes::ambiguous(volumes, group) {
        return Err(merge::refuse(family, why));
    }
    // An imported copy of the whole group (vgimportclone) has the tag as well, and is somebody else's.
    let (tagged, elsewhere): (Vec<&Volume>, Vec<&Volume>) = volumes
        .iter()
        .filter(|volume| volume.has_tag(tag))
        .partition(|volume| volume.group == *group);
    match tagged.as_slice() {
        [] if !family.marked && !volumes.iter().any(|volume| volume.group == *group) => {
            let hint = match elsewhere.first() {
                Some(other) => format!(
                    "its snapshot may be {0}; if the group was renamed: vgrename {1} {2}",
                    other.path(),
                    quote(&other.group),
                    quote(group)
                ),
                None => merge::BRING_BACK.into(),
            };
            let why = format!("the volume group {group} is not there");
            return Err(merge::refuse(family, why).hint(hint));
        }
        [] => plan.notes.push(format!("{vdev}: its snapshot {group}/{name} is already deleted")),
        [snapshot] if snapshot.open => {
            return Err(merge::refuse(
                family,
                format!("a program has its snapshot {} open", snapshot.path()),
            )
            .hint(format!(
                "find out who uses it: dmsetup ls --tree; fuser -v /dev/{}",
                snapshot.path()
            )));
        }
        [snapshot] if snapshot.merging => {
            return Err(merge::refuse(family, format!("{} is being merged", snapshot.path()))
                .hint("wait for the end of that: lvs -a"));
        }
        [snapshot] => {
            let call = volumes::remove_tagged(&snapshot.group, &snapshot.name, tag);
            plan.removals.push(Step::Run(call));
            plan.removed.push(snapshot.path());
        }
        [one, other, ..] => {
            return Err(merge::refuse(
                family,
                format!("both {} and {} bear its tag {tag}", one.path(), other.path()),
            ));
        }
    }
    Ok(plan)
}
