//! Deletes a snapshot that is the parent of a VHD.

use crate::disk::image_tree::{DiskDelete, ImageTree};
use crate::disk::merge;
use crate::disk::proof::FrozenFile;
use crate::error::Result;
use crate::plan::Step;
use crate::tool::quote;

/// Plans to remove the file. A file with children is kept: vhd-util only coalesces a child into its
/// parent, and only while nobody has either open.
pub(super) fn plan(family: &ImageTree, proof: Option<&FrozenFile>) -> Result<DiskDelete> {
    let mut plan = DiskDelete::default();
    let Some(base) = &family.base else {
        merge::check_away(family)?;
        plan.notes.push(format!("{}: its file is already deleted", family.record.vdev));
        return Ok(plan);
    };
    let shown = quote(&base.path);
    let facts = base.facts.as_ref().map_err(|why| merge::refuse(family, why.clone()))?;
    if proof.is_none_or(|proof| !facts.has_inode_of(proof)) {
        plan.kept = Some(format!("{shown} is another file than at the snapshot"));
        return Ok(plan);
    }
    if let Some(child) = family.children.first() {
        return Err(merge::refuse(family, format!("{} is a child of {shown}", quote(child))).hint(
            "delete the younger snapshots first, and remove the children that are not needed",
        ));
    }
    if let Some(who) = base.is_open_elsewhere(None) {
        return Err(merge::refuse(family, format!("{shown} is open in {who}"))
            .hint("end that program or domain first"));
    }
    match (base.users.first(), base.created_by_us) {
        (Some(user), _) => {
            plan.kept = Some(format!("{shown} stays: it is {} of {}", user.vdev, user.domain))
        }
        (None, false) => {
            plan.kept = Some(format!("{shown} stays: it was not made by this program"))
        }
        (None, true) => {
            plan.removals.push(Step::RemoveFile { path: base.path.clone() });
            plan.removed.push(base.path.display().to_string());
        }
    }
    Ok(plan)
}
