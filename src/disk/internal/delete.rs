//! Deletes an internal snapshot of a qcow2 file.

use crate::disk::image_tree::{DiskDelete, ImageTree};
use crate::disk::merge;
use crate::disk::merge_mark::MergeStep;
use crate::disk::proof::QcowSnapshot;
use crate::error::Result;
use crate::plan::Step;
use crate::plan::deletion::Deletion;
use crate::tool::quote;

/// Plans to delete the snapshot in the QEMU that serves the file, or with qemu-img while nobody has it open.
pub(super) fn plan(family: &ImageTree, proof: Option<&QcowSnapshot>) -> Result<DiskDelete> {
    let mut plan = DiskDelete::default();
    let refuse = |why: String| merge::refuse(family, why);
    let vdev = &family.record.vdev;
    let Some(base) = &family.base else {
        merge::check_away(family)?;
        plan.notes.push(format!("{vdev}: its file is already deleted"));
        return Ok(plan);
    };
    let shown = quote(&base.path);
    let proof = proof.ok_or_else(|| refuse("the record has no proof of its snapshot".into()))?;
    let inside = base.inside.as_ref().map_err(|why| refuse(format!("{shown}: {why}")))?;
    if !inside.contains(proof) {
        plan.notes
            .push(format!("{vdev}: its snapshot {} in {shown} is already deleted", proof.name));
        return Ok(plan);
    }
    // qemu-img selects by name.
    let same = |other: &&QcowSnapshot| other.id == proof.id || other.name == proof.name;
    if inside.iter().filter(same).count() != 1 {
        return Err(refuse(format!(
            "several snapshots in {shown} have the name {} or the ID {}",
            proof.name, proof.id
        )));
    }
    let running = base.open_in.first();
    if let Some(who) = base.is_open_elsewhere(running) {
        return Err(
            refuse(format!("{shown} is open in {who}")).hint("end that program or domain first")
        );
    }
    let mut online = None;
    if let Some(running) = running {
        let id = &running.id;
        if let Some(why) = &running.trouble {
            return Err(refuse(format!("domain {id}: {why}")));
        }
        let runs = base.users.iter().any(|user| user.cfg.is_none() && user.domain == id.name);
        if !runs {
            return Err(refuse(format!("domain {id} runs on images whose base is {shown}")).hint(
                "QEMU deletes internal snapshots only of the image that the guest writes to: delete it \
                 when the domain is shut down",
            ));
        }
        online = family.online(running);
        plan.online.push(id.clone());
    }
    if let Some(mark) = base.merging().filter(|mark| mark.id != family.id) {
        return Err(refuse(format!(
            "{shown} is part of another deletion, of snapshot {}",
            mark.id
        ))
        .hint("finish that deletion first: see xl-snapshot list"));
    }
    // The file proves younger snapshots.
    if merge::must_be_marked(base) {
        if let Some(why) = &base.unmarkable {
            return Err(refuse(format!("{shown}: {why}")));
        }
        if let Some(keeper) = base.keepers.iter().find(|keeper| keeper.fixed.is_some()) {
            return Err(refuse(format!(
                "the record of snapshot {} cannot be updated",
                keeper.name
            ))
            .hint("delete that one first"));
        }
        plan.merges.extend(merge::begin(family, base, MergeStep::Inside));
        plan.written.push((base.path.clone(), false));
        plan.rewrites.extend(merge::written(base));
    }
    plan.merges.push(Step::Delete(Deletion::DeleteInside {
        online,
        file: base.path.clone(),
        snapshot: proof.clone(),
    }));
    plan.removed.push(format!("snapshot {} in {}", proof.name, base.path.display()));
    Ok(plan)
}
