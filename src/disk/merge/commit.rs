//! Merges by commit: the backing file gets the data of its overlay, and replaces it.

use super::parts::{begin, copies, must_be_marked, remove, written};
use crate::disk::image_tree::{DiskDelete, ImageSwitch, ImageTree, Rewrite, Running, TreeImage};
use crate::disk::merge_mark::MergeStep;
use crate::error::Result;
use crate::plan::Step;
use crate::plan::deletion::{Change, Deletion};

pub(super) fn commit(
    family: &ImageTree,
    base: &TreeImage,
    overlay: &TreeImage,
    online: Option<&Running>,
    plan: &mut DiskDelete,
) -> Result<()> {
    let bytes = overlay.allocated;
    let by = online.and_then(|running| family.online(running));
    plan.merges.extend(begin(family, base, MergeStep::Commit(overlay.path.clone())));
    for above in family.on(overlay).filter(|above| must_be_marked(above)) {
        plan.merges.extend(begin(family, above, MergeStep::Relink));
    }
    plan.merges.push(Step::Delete(Deletion::Commit {
        online: by.clone(),
        top: overlay.path.clone(),
        base: base.image(),
        bytes,
    }));
    let active = overlay.users.iter().any(|user| user.cfg.is_none());
    if let Some(online) = by.filter(|_| active) {
        plan.pivot.extend(begin(family, base, MergeStep::Pivot(overlay.path.clone())));
        plan.pivot.push(Step::Delete(Deletion::Pivot {
            online,
            top: overlay.path.clone(),
            base: base.path.clone(),
        }));
    }
    plan.online.extend(online.map(|running| running.id.clone()));
    copies(plan, "commit", overlay, base);
    settle_commit(family, base, overlay, online, plan);
    Ok(())
}

/// The steps after the base has all data of the overlay.
pub(super) fn settle_commit(
    family: &ImageTree,
    base: &TreeImage,
    overlay: &TreeImage,
    online: Option<&Running>,
    plan: &mut DiskDelete,
) {
    for above in family.on(overlay) {
        // QEMU has already done that for the images that it has open.
        let by_qemu = online.is_some_and(|running| above.open_in.contains(running));
        if !by_qemu {
            plan.merges.push(Step::Delete(Deletion::Relink {
                file: above.path.clone(),
                below: base.image(),
            }));
        }
        if must_be_marked(above) {
            plan.written.push((above.path.clone(), false));
            plan.rewrites.extend(written(above));
        }
    }
    plan.written.push((base.path.clone(), !must_be_marked(overlay) || !base.users.is_empty()));
    plan.rewrites.extend(overlay.keepers.iter().map(|keeper| Rewrite {
        keeper: keeper.clone(),
        change: Change::Moved { vdev: keeper.vdev.clone(), to: base.image() },
    }));
    plan.switches.extend(overlay.users.iter().map(|user| ImageSwitch {
        user: user.clone(),
        domain: online.filter(|_| user.cfg.is_none()).map(|running| running.id.clone()),
        to: base.image(),
    }));
    remove(overlay, plan);
}
