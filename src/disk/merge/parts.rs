//! The parts of a plan that commit and stream share.

use crate::disk::image_tree::{DiskDelete, ImageTree, Merged, Rewrite, TreeImage};
use crate::disk::merge_mark::{MergeStep, Merging};
use crate::plan::Step;
use crate::plan::deletion::{Change, Deletion};

pub(in crate::disk) fn remove(member: &TreeImage, plan: &mut DiskDelete) {
    plan.removals.push(Step::RemoveFile { path: member.path.clone() });
    plan.removed.push(member.path.display().to_string());
}

/// An image that is not a guest's disk is a base, and it proves snapshots. So does one that only an outdated
/// configuration file names.
pub(in crate::disk) fn must_be_marked(member: &TreeImage) -> bool {
    member.users.is_empty() || member.keepers.iter().any(|keeper| keeper.proven)
}

pub(in crate::disk) fn begin(
    family: &ImageTree,
    member: &TreeImage,
    how: MergeStep,
) -> Option<Step> {
    let facts = member.facts.as_ref().ok()?;
    let mark = Merging {
        id: family.id,
        how,
        size: facts.size,
        mtime: facts.mtime,
        writable: facts.writable,
    };
    Some(Step::Delete(Deletion::Begin { file: member.path.clone(), mark }))
}

/// Counts the bytes that a merge moves, and the space that it may need.
pub(in crate::disk) fn copies(
    plan: &mut DiskDelete,
    how: &'static str,
    from: &TreeImage,
    into: &TreeImage,
) {
    let (device, free) = into.room;
    plan.room.push((device, free, from.allocated, into.path.clone()));
    plan.merged.push(Merged {
        how,
        from: from.path.clone(),
        into: into.path.clone(),
        bytes: from.allocated,
        instead: None,
    });
}

pub(in crate::disk) fn written(member: &TreeImage) -> impl Iterator<Item = Rewrite> {
    // A broken snapshot must not get a new proof.
    member.keepers.iter().filter(|keeper| keeper.proven).map(|keeper| Rewrite {
        keeper: keeper.clone(),
        change: Change::Written { vdev: keeper.vdev.clone() },
    })
}
