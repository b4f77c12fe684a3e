//! Merging by commit: the file below gets what its overlay holds, and takes its place.

use std::path::Path;

use super::{begin, check, copies, must_be_marked, refuse, remove, written};
use crate::disk::family::{DiskDelete, Family, Member, Rewrite, Running, Switch};
use crate::disk::merging::How;
use crate::error::Result;
use crate::plan::Step;
use crate::plan::deletion::{Change, Deletion};
use crate::tool::quote;

pub(super) fn commit(
    family: &Family,
    base: &Member,
    overlay: &Member,
    online: Option<&Running>,
    plan: &mut DiskDelete,
) -> Result<()> {
    let bytes = overlay.allocated;
    let by = online.and_then(|running| family.online(running));
    plan.merges.extend(begin(family, base, How::Commit(overlay.path.clone())));
    for above in family.on(overlay).filter(|above| must_be_marked(above)) {
        plan.merges.extend(begin(family, above, How::Relink));
    }
    plan.merges.push(Step::Delete(Deletion::Commit {
        online: by.clone(),
        top: overlay.path.clone(),
        base: base.image(),
        bytes,
    }));
    let active = overlay.users.iter().any(|user| user.cfg.is_none());
    if let Some(online) = by.filter(|_| active) {
        plan.pivot.extend(begin(family, base, How::Pivot(overlay.path.clone())));
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

/// What follows once the base has all that the overlay holds.
fn settle_commit(
    family: &Family,
    base: &Member,
    overlay: &Member,
    online: Option<&Running>,
    plan: &mut DiskDelete,
) {
    for above in family.on(overlay) {
        // QEMU has done that for those it has open.
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
    plan.switches.extend(overlay.users.iter().map(|user| Switch {
        user: user.clone(),
        domain: online.filter(|_| user.cfg.is_none()).map(|running| running.id.clone()),
        to: base.image(),
    }));
    remove(overlay, plan);
}

/// Goes on with a commit that was cut short.
pub(super) fn finish_commit(
    family: &Family,
    base: &Member,
    overlay: &Path,
    mut plan: DiskDelete,
) -> Result<DiskDelete> {
    let overlay = family.overlays.iter().find(|member| member.path == overlay);
    let Some(overlay) = overlay else {
        // All was done but the last.
        plan.written.push((base.path.clone(), !base.users.is_empty()));
        plan.rewrites.extend(written(base));
        return Ok(plan);
    };
    let pivoted = matches!(base.merging().map(|mark| &mark.how), Some(How::Pivot(_)));
    let runs_on_it = overlay.users.iter().any(|user| user.cfg.is_none());
    if pivoted && base.users.is_empty() && !runs_on_it {
        let (base, overlay) = (quote(&base.path), quote(&overlay.path));
        return Err(refuse(
            family,
            format!("a guest may have written to {base} after {overlay} was merged into it, and is down now"),
        )
        .hint(format!(
            "name {base} in the domain's configuration file in /etc/xen, start the domain, and repeat the command"
        )));
    }
    if base.users.is_empty() {
        let online = check(family, base, overlay, true)?;
        commit(family, base, overlay, online, &mut plan)?;
        return Ok(plan);
    }
    // A guest writes to the base already: what the overlay holds is older.
    let online = base.open_in.first();
    plan.online.extend(online.map(|running| running.id.clone()));
    settle_commit(family, base, overlay, online, &mut plan);
    plan.switches.extend(base.users.iter().filter(|user| user.cfg.is_none()).map(|user| Switch {
        user: user.clone(),
        domain: online.map(|running| running.id.clone()),
        to: base.image(),
    }));
    Ok(plan)
}
