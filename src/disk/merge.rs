//! Deletes a snapshot whose content is in a frozen file, by merging that file with its overlays. Pure.
//!
//! With one overlay there are two ways, and the one that moves less is chosen: *commit* writes the data of
//! the overlay into its backing file, which replaces the overlay, so every configuration that names the
//! overlay must change; *stream* copies the data of the backing file into the overlay, and no path changes.

mod commit;
mod parts;

use self::commit::{commit, settle_commit};
pub(super) use self::parts::{begin, must_be_marked, written};
use self::parts::{copies, remove};
use crate::disk::image_tree::{
    DeleteOptions, DiskDelete, ImageSwitch, ImageTree, Running, TreeImage,
};
use crate::disk::merge_mark::MergeStep;
use crate::disk::proof::{FrozenFile, SECTOR};
use crate::domain::Format;
use crate::error::{Error, Result};
use crate::plan::Step;
use crate::plan::deletion::Deletion;
use crate::tool::quote;

/// Refuses to delete the snapshot of a disk.
pub(super) fn refuse(family: &ImageTree, why: impl Into<String>) -> Error {
    Error::refused(format!("The snapshot of {} cannot be deleted", family.record.vdev))
        .because(why.into())
}

/// What brings back storage that is away.
pub(super) const BRING_BACK: &str = "mount or activate what it is on, and run the command again. If it is gone for good, remove the snapshot's image by \
     hand: xl-snapshot list names it";

/// Refuses to take a file for deleted whose storage is away: the snapshot on it would be left without a record.
pub(super) fn check_away(family: &ImageTree) -> Result<()> {
    match family.away.as_ref().filter(|_| !family.marked) {
        Some(why) => Err(refuse(family, why.clone()).hint(BRING_BACK)),
        None => Ok(()),
    }
}

/// Plans to delete a snapshot whose content is the file `base`.
///
/// `only_stream`: the file is a copy and cannot replace an overlay.
pub(super) fn delete(
    family: &ImageTree,
    proof: Option<&FrozenFile>,
    options: DeleteOptions,
    only_stream: bool,
) -> Result<DiskDelete> {
    let mut plan = DiskDelete::default();
    let Some(base) = &family.base else {
        check_away(family)?;
        plan.notes.push(format!("{}: its file is already deleted", family.record.vdev));
        return Ok(plan);
    };
    let shown = quote(&base.path);
    let facts = base.facts.as_ref().map_err(|why| refuse(family, format!("{shown}: {why}")))?;
    if let Some(mark) = base.merging().filter(|mark| mark.id != family.id) {
        return Err(refuse(
            family,
            format!("{shown} is part of another deletion, of snapshot {}", mark.id),
        )
        .hint("finish that deletion first: see xl-snapshot list"));
    }
    let proof = proof.ok_or_else(|| refuse(family, "the record has no proof of it"))?;
    if !facts.has_inode_of(proof) {
        plan.kept = Some(format!("{shown} is another file than at the snapshot"));
        return Ok(plan);
    }
    let committed = match base.merging().map(|mark| &mark.how) {
        Some(MergeStep::Commit(overlay) | MergeStep::Pivot(overlay)) => Some(overlay),
        _ => None,
    };
    if let Some(keeper) = base.keepers.iter().find(|keeper| keeper.proven && committed.is_none()) {
        plan.kept = Some(format!("{shown} stays: snapshot {} is in it as well", keeper.name));
        return Ok(plan);
    }
    let untouched = facts.is_as(proof.file_size, proof.mtime);
    if !untouched && !family.overlays.is_empty() {
        return Err(refuse(
            family,
            format!(
                "{shown} was written to since, and it is the base of {}",
                quote(&family.overlays[0].path)
            ),
        )
        .hint(
            "the snapshot is lost: delete its memory image by hand, and do not touch the disks",
        ));
    }
    if let Some(overlay) = committed {
        return finish_commit(family, base, overlay, plan);
    }
    match family.overlays.as_slice() {
        [] => {}
        [overlay] if !options.flatten || !overlay.is_foreign() => {
            merge(family, base, overlay, only_stream, &mut plan)?;
        }
        overlays if options.flatten => {
            for overlay in overlays {
                let online = check(family, base, overlay, false)?;
                stream(family, base, overlay, online, &mut plan)?;
            }
        }
        overlays => {
            let all: Vec<_> = overlays.iter().map(named).collect();
            return Err(refuse(family, format!("{shown} is the base of {}", all.join(" and ")))
                .hint(
                    "--flatten copies it into each of them; or remove those that are not needed any more",
                ));
        }
    }
    if plan.merged.iter().any(|merged| merged.how == "commit") {
        return Ok(plan);
    }
    if let Some(who) = base.opened_by.first() {
        return Err(refuse(family, format!("{shown} is open in {who}"))
            .hint("end that program or domain first"));
    }
    if plan.merged.is_empty() && !base.open_in.is_empty() && base.users.is_empty() {
        let who = &base.open_in[0].id;
        return Err(refuse(family, format!("{shown} is open in the QEMU of domain {who}")));
    }
    match keep(base, untouched) {
        Some(why) => plan.kept = Some(format!("{shown} stays: {why}")),
        None => remove(base, &mut plan),
    }
    Ok(plan)
}

/// Describes an overlay and its owner.
fn named(member: &TreeImage) -> String {
    let path = quote(&member.path);
    let user = member.users.first().map(|user| format!("{} of {}", user.vdev, user.domain));
    let keeper = member.keepers.first().map(|keeper| format!("snapshot {}", keeper.name));
    match user.or(keeper) {
        Some(who) => format!("{path} ({who})"),
        None => format!("{path} (which no snapshot and no known domain names)"),
    }
}

/// Why the file with the content is not removed, if it is kept.
fn keep(base: &TreeImage, untouched: bool) -> Option<String> {
    let inside = || base.inside.as_ref().is_ok_and(Vec::is_empty);
    let why = if let Some(user) = base.users.first() {
        format!("it is {} of {}", user.vdev, user.domain)
    } else if let Some(keeper) = base.keepers.first() {
        format!("snapshot {} is in it as well", keeper.name)
    } else if !inside() {
        "there are internal snapshots in it".into()
    } else if !base.created_by_us {
        format!("it was not made by this program; if it is not needed: rm {}", quote(&base.path))
    } else if !untouched {
        "it was written to since the snapshot".into()
    } else {
        return None;
    };
    Some(why)
}

/// Checks that a merge is possible. Returns the domain whose QEMU merges, if one does.
fn check<'a>(
    family: &ImageTree,
    base: &TreeImage,
    overlay: &'a TreeImage,
    alone: bool,
) -> Result<Option<&'a Running>> {
    let refuse = |why: String| refuse(family, why);
    let shown = quote(&overlay.path);
    match &overlay.inside {
        Ok(inside) if inside.is_empty() => {}
        Ok(_) => {
            return Err(refuse(format!(
                "{shown} has internal snapshots, which a merge would damage"
            ))
            .hint("delete those first: xl-snapshot list --all, qemu-img snapshot -l"));
        }
        Err(why) => return Err(refuse(format!("{shown}: {why}"))),
    }
    if let Some(mark) = overlay.merging().filter(|mark| mark.id != family.id) {
        return Err(refuse(format!(
            "{shown} is part of another deletion, of snapshot {}",
            mark.id
        ))
        .hint("finish that deletion first: see xl-snapshot list"));
    }
    let online = overlay.open_in.first();
    let others = [overlay].into_iter().chain(alone.then_some(base));
    for member in others {
        if let Some(who) = member.is_open_elsewhere(online) {
            return Err(refuse(format!("{} is open in {who}", quote(&member.path)))
                .hint("end that program or domain first"));
        }
    }
    if let Some(running) = online {
        if let Some(why) = &running.trouble {
            return Err(refuse(format!("domain {}: {why}", running.id)));
        }
        if family.online(running).is_none() {
            return Err(refuse(format!(
                "the QEMU of domain {} has {shown} open, but it is not the base of any of its disks",
                running.id
            )));
        }
    }
    for keeper in &overlay.keepers {
        if !keeper.proven {
            return Err(refuse(format!(
                "snapshot {} is broken already: {shown} is not as it was",
                keeper.name
            ))
            .hint("delete that one first"));
        }
        if let Some(why) = &keeper.fixed {
            return Err(refuse(format!(
                "the record of snapshot {} in {} cannot be updated: {why}",
                keeper.name,
                quote(&keeper.image)
            ))
            .hint("delete that one first"));
        }
    }
    Ok(online)
}

/// Plans the merge that moves less.
fn merge(
    family: &ImageTree,
    base: &TreeImage,
    overlay: &TreeImage,
    only_stream: bool,
    plan: &mut DiskDelete,
) -> Result<()> {
    if overlay.is_foreign() {
        return Err(refuse(family, format!("it is the base of a clone: {}", named(overlay)))
            .hint("delete the clone first, or give the clone a copy: --flatten"));
    }
    let online = check(family, base, overlay, false)?;
    let no_stream = why_no_stream(base, overlay);
    let no_commit = match only_stream {
        true => Some("it is a copy that replaces no image".into()),
        false => why_no_commit(family, base, overlay, online),
    };
    let streams = base.allocated;
    let commits = overlay.allocated;
    // On a tie, stream: no path changes.
    match (no_stream, no_commit) {
        (None, None) if streams <= commits => stream(family, base, overlay, online, plan)?,
        (None, Some(_)) => return stream(family, base, overlay, online, plan),
        (_, None) => commit(family, base, overlay, online, plan)?,
        (Some(stream), Some(commit)) => {
            return Err(refuse(
                family,
                format!(
                    "{} and {} cannot be merged: no stream, because {stream}; no commit, because {commit}",
                    quote(&base.path),
                    quote(&overlay.path)
                ),
            ));
        }
    }
    if let Some(merged) = plan.merged.last_mut() {
        merged.instead = Some(streams.max(commits));
    }
    Ok(())
}

fn needs(what: u64, member: &TreeImage) -> Option<String> {
    let (_, free) = member.room;
    (what > free).then(|| {
        format!(
            "{} MiB may be needed on the file system of {}, where {} MiB are free",
            what.div_ceil(1 << 20),
            quote(&member.path),
            free >> 20
        )
    })
}

fn why_no_stream(base: &TreeImage, overlay: &TreeImage) -> Option<String> {
    if !base.inside.as_ref().is_ok_and(Vec::is_empty) {
        return Some("there are internal snapshots in the base, which would stay alone".into());
    }
    let marks = must_be_marked(overlay).then(|| overlay.unmarkable.clone()).flatten();
    marks.or_else(|| needs(base.allocated, overlay))
}

fn why_no_commit(
    family: &ImageTree,
    base: &TreeImage,
    overlay: &TreeImage,
    online: Option<&Running>,
) -> Option<String> {
    let sector = |size: u64| size.next_multiple_of(SECTOR);
    if let Some(why) = &base.unmarkable {
        return Some(why.clone());
    }
    if base.facts.is_err() {
        return Some("the base is no regular file".into());
    }
    if !matches!(base.format, Format::Raw | Format::Qcow2) {
        return Some(format!("the base has the format {}", base.format.name()));
    }
    if sector(base.virtual_size) > sector(overlay.virtual_size) {
        return Some("the base is larger than the overlay".into());
    }
    if let Some(user) = base.users.first() {
        return Some(format!("the base is {} of {}", user.vdev, user.domain));
    }
    if let Some(keeper) = base.keepers.first() {
        return Some(format!("the base is the content of snapshot {} too", keeper.name));
    }
    if overlay.users.is_empty() && overlay.keepers.is_empty() {
        return Some("it is not known who names the overlay".into());
    }
    if let Some(who) = base.is_open_elsewhere(online) {
        return Some(format!("the base is open in {who}"));
    }
    for above in family.on(overlay) {
        if let Some(who) = above.is_open_elsewhere(online) {
            return Some(format!("{}, whose base it is, is open in {who}", quote(&above.path)));
        }
        if must_be_marked(above) && above.unmarkable.is_some() {
            return above.unmarkable.clone();
        }
        if let Some(keeper) = above.keepers.iter().find(|keeper| keeper.fixed.is_some()) {
            return Some(format!("the record of snapshot {} cannot be updated", keeper.name));
        }
    }
    needs(overlay.allocated, base)
}

fn stream(
    family: &ImageTree,
    base: &TreeImage,
    overlay: &TreeImage,
    online: Option<&Running>,
    plan: &mut DiskDelete,
) -> Result<()> {
    let bytes = base.allocated;
    if let Some(why) = needs(bytes, overlay) {
        return Err(refuse(family, why).hint("free some space"));
    }
    let frozen = overlay.facts.as_ref().is_ok_and(|facts| !facts.writable);
    if frozen && overlay.users.is_empty() && overlay.keepers.is_empty() {
        let shown = quote(&overlay.path);
        return Err(refuse(family, format!("{shown} is frozen, but no known snapshot names it")).hint(format!(
            "if its snapshot is in another directory, move that below XL_SNAPSHOT_DIR; if there is none any more: \
             chmod u+w {shown}"
        )));
    }
    if must_be_marked(overlay) {
        if let Some(why) = &overlay.unmarkable {
            return Err(refuse(family, format!("{}: {why}", quote(&overlay.path))));
        }
        plan.merges.extend(begin(family, overlay, MergeStep::Stream(base.path.clone())));
        plan.written.push((overlay.path.clone(), false));
        plan.rewrites.extend(written(overlay));
    }
    plan.merges.push(Step::Delete(Deletion::Stream {
        online: online.and_then(|running| family.online(running)),
        top: overlay.path.clone(),
        base: base.path.clone(),
        below: base.below.clone(),
        bytes,
    }));
    plan.online.extend(online.map(|running| running.id.clone()));
    if online.is_none() {
        let others = overlay.users.iter().filter(|user| !user.same).map(|user| user.domain.clone());
        plan.down.extend(others);
    }
    copies(plan, "stream", base, overlay);
    Ok(())
}

/// Continues an interrupted commit.
fn finish_commit(
    family: &ImageTree,
    base: &TreeImage,
    overlay: &std::path::Path,
    mut plan: DiskDelete,
) -> Result<DiskDelete> {
    let overlay = family.overlays.iter().find(|member| member.path == overlay);
    let Some(overlay) = overlay else {
        // Only the last step is missing.
        plan.written.push((base.path.clone(), !base.users.is_empty()));
        plan.rewrites.extend(written(base));
        return Ok(plan);
    };
    let pivoted = matches!(base.merging().map(|mark| &mark.how), Some(MergeStep::Pivot(_)));
    let runs_on_it = overlay.users.iter().any(|user| user.cfg.is_none());
    // What was written to the overlay last was not written after a switch.
    let last = |member: &TreeImage| member.facts.as_ref().ok().map(|facts| facts.mtime);
    let switched = pivoted && last(overlay) <= last(base);
    if switched && base.users.is_empty() && !runs_on_it {
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
    // A guest already writes to the base: the data of the overlay is older.
    let online = base.open_in.first();
    plan.online.extend(online.map(|running| running.id.clone()));
    settle_commit(family, base, overlay, online, &mut plan);
    plan.switches.extend(base.users.iter().filter(|user| user.cfg.is_none()).map(|user| {
        ImageSwitch {
            user: user.clone(),
            domain: online.map(|running| running.id.clone()),
            to: base.image(),
        }
    }));
    Ok(plan)
}
