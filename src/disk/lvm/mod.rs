//! Snapshots of logical volumes: the guest stays on its volume, LVM keeps the old contents.
//!
//! A revert to a thick snapshot merges it, which consumes it; so it is taken again before the guest
//! runs. A revert to a thin one creates a new volume from it, with the name of the guest's volume.
//! A unique tag identifies a snapshot. During a merge, or after an interrupted one, the guest's
//! volume has another tag, so that a second attempt knows what the first one did.

mod before;
mod delete;
mod export;
mod limits;
pub(super) mod record;
mod recorded;
mod thin;

use uuid::Uuid;

use self::limits::{FULL, POOL_LIMIT, check_pool, held_back};
use self::record::Lvm;
use self::recorded::{Recorded, check_name, keep_name};
use self::thin::{thin, thin_for_new_domain, thin_of_replacement};
use crate::disk::exporting::DiskExport;
use crate::disk::image_tree::{DeleteOptions, DiskDelete, ImageTree};
use crate::disk::parts::{record, refuse, refuse_revert, shortage};
use crate::disk::planner::Planner;
use crate::disk::{
    Context, DiskCreate, DiskRevert, RevertContext, RunningDisk, Served, SnapshotDisk, Space, mib,
};
use crate::domain::Format;
use crate::error::Result;
use crate::names::is_volume_part;
use crate::need::Requirement;
use crate::plan::Step;
use crate::spec::Choice;
use crate::tool::volumes::{self, Volume, device};
use crate::tool::{qemu_img, quote};

/// The prefix of every tag of a merge.
const MERGING: &str = "xl-snapshot-merging:";

impl Planner for Lvm {
    fn is_default(seen: &RunningDisk) -> bool {
        seen.device.is_some()
    }

    fn create(
        seen: &RunningDisk,
        choice: Option<&Choice>,
        context: Context<'_>,
    ) -> Result<DiskCreate> {
        let disk = &seen.disk;
        let size = choice.and_then(|choice| choice.size);
        let volumes = context.volumes.as_ref().map_err(|why| refuse(disk, why.clone()))?;
        let refuse = |why: String| refuse(disk, why);
        let volume = seen
            .device
            .and_then(|device| volumes.iter().find(|volume| volume.has_device(device)))
            // LVM shows its own hidden volumes in brackets.
            .filter(|volume| is_volume_part(&volume.name) && is_volume_part(&volume.group))
            .ok_or_else(|| refuse("it is not a logical volume".into()))?;
        if let Some(why) = volumes::ambiguous(volumes, &volume.group) {
            return Err(refuse(why));
        }
        if disk.format != Some(Format::Raw) {
            return Err(refuse("LVM would miss what QEMU keeps of its image in memory".into()));
        }
        if let Some(why) = volume.sick() {
            return Err(refuse(why));
        }
        if let Some(why) = volume.moving().or_else(|| volume.crowded()) {
            return Err(refuse(why));
        }
        if volume.is_thick_snapshot() {
            return Err(refuse("it is a snapshot itself, and LVM takes none of those".into()));
        }
        if volume.open && seen.served == Some(Served::Nobody) {
            return Err(refuse("the domain does not run, and another program has it open".into())
                .hint(format!(
                    "find out who uses it: dmsetup ls --tree; fuser -v /dev/{}",
                    volume.path()
                )));
        }
        // LVM then refuses a snapshot: find out before the guest is suspended.
        if volumes.iter().any(|v| v.merging && v.group == volume.group && v.origin == volume.name) {
            return Err(refuse("a snapshot is being merged into it".into())
                .hint("finish the revert that began it, or wait for the end of the merge"));
        }
        let name = format!("{}.{}", volume.name, context.name);
        check_name(&volume.group, &name).map_err(refuse)?;
        if volumes.iter().any(|v| v.group == volume.group && v.name == name) {
            return Err(refuse(format!("the volume {}/{name} exists", volume.group))
                .hint("choose another name with --name"));
        }
        let tag = tag(context.id, &disk.vdev);
        let (call, size) = if volume.is_thin() {
            if size.is_some() {
                return Err(refuse("a snapshot of a thin volume has no size".into()));
            }
            check_pool(volumes, volume, POOL_LIMIT).map_err(refuse)?;
            (volumes::snapshot_thin(&volume.path(), &name, &tag), None)
        } else {
            let full = volume.full_snapshot_size();
            let size = size.map_or(full, |size| volume.allocated(size).min(full));
            if size > volume.group_free {
                return Err(refuse(format!(
                    "its snapshot takes {}, and {} is free in the group {}{}",
                    mib(size),
                    mib(volume.group_free),
                    volume.group,
                    held_back(volume)
                ))
                .hint(format!(
                    "free some space, or pass a smaller size if the guest will not write that much: \
                     --disk {},lvm,size=SIZE (once that is full, the snapshot is lost)",
                    disk.vdev
                )));
            }
            (volumes::snapshot_thick(&volume.path(), &name, &tag, size), Some(size))
        };
        Ok(DiskCreate {
            in_pause: vec![Step::Undoable {
                call,
                undo: volumes::remove_tagged(&volume.group, &name, &tag),
            }],
            space: size.map(|size| Space {
                group: volume.group.clone(),
                free: volume.group_free,
                size,
            }),
            ..DiskCreate::of(record(
                seen,
                Lvm {
                    group: volume.group.clone(),
                    volume: volume.name.clone(),
                    snapshot: name,
                    size,
                },
            ))
        })
    }

    /// Plans to revert a volume.
    fn revert(&self, found: &SnapshotDisk, context: RevertContext<'_>) -> Result<DiskRevert> {
        let disk = &found.record;
        let Lvm { group, volume, snapshot, size } = self;
        let recorded = Recorded { found, disk, group, volume, snapshot, size: *size };
        let volumes =
            context.volumes.as_ref().map_err(|why| refuse_revert(disk, why.clone()))?.as_slice();
        if let Some(why) = volumes::ambiguous(volumes, group) {
            return Err(refuse_revert(disk, why));
        }
        let tag = tag(context.id, &disk.vdev);
        let mut tagged: Vec<&Volume> =
            volumes.iter().filter(|volume| volume.has_tag(&tag)).collect();
        // An imported copy of the whole group (vgimportclone) has the tag as well.
        if tagged.iter().any(|volume| volume.group == *group) {
            tagged.retain(|volume| volume.group == *group);
        }
        let origin = volumes.iter().find(|v| v.group == *group && v.name == *volume);
        if context.new_domain.is_some() && !matches!(tagged.as_slice(), [one] if !one.merging) {
            return Err(refuse_revert(
                disk,
                format!("its snapshot {} does not exist", recorded.path(snapshot)),
            )
            .hint("an interrupted revert may have merged it: repeat that revert first"));
        }
        let sick = match (tagged.as_slice(), context.new_domain) {
            ([snapshot], None) => snapshot.sick(),
            _ => None,
        };
        if let Some(why) = sick {
            return Err(refuse_revert(disk, why));
        }
        let in_place = context.new_domain.is_none_or(|domain| domain.replacement);
        if let Some(why) = origin.filter(|_| in_place).and_then(Volume::moving) {
            return Err(refuse_revert(disk, why));
        }
        let rested_on = found.base_of.as_deref().filter(|_| in_place).map(quote);
        match tagged.as_slice() {
            [] => retake(&recorded, origin, volumes, &tag, context),
            [snapshot] if snapshot.merging => {
                finish_merge(&recorded, snapshot, volumes, &tag, context)
            }
            [snapshot] if snapshot.group != *group => Err(refuse_revert(
                disk,
                format!("its snapshot {} is in another group now", snapshot.path()),
            )
            .hint(format!(
                "if the group was renamed: vgrename {} {}",
                quote(&snapshot.group),
                quote(group)
            ))),
            // We made it read-only: somebody gave another volume the tag, or made this one writable.
            [snapshot] if snapshot.writable => Err(refuse_revert(
                disk,
                format!(
                    "{} bears its tag, but is not read-only as its snapshot is",
                    snapshot.path()
                ),
            )),
            [snapshot] if snapshot.is_thin() != size.is_none() => Err(refuse_revert(
                disk,
                format!("{} bears its tag, but is of another kind", snapshot.path()),
            )),
            [snapshot] if snapshot.invalid => Err(refuse_revert(
                disk,
                format!(
                    "its snapshot {} is lost: more was written since than it could hold",
                    snapshot.path()
                ),
            )),
            [_] if rested_on.is_some() => Err(refuse_revert(
                disk,
                format!("{} rests on its volume, and would have other contents", rested_on.unwrap_or_default()),
            )
            .hint("make that image independent (qemu-img convert), or remove it; or revert to a new domain with --as")),
            // Other reverts may be reading it for the same purpose.
            [snapshot] if !snapshot.is_thin() && context.new_domain.is_some() => {
                copied(found, snapshot)
            }
            [snapshot] if snapshot.open => Err(refuse_revert(
                disk,
                format!("a program has its snapshot {} open", snapshot.path()),
            )
            .hint(format!(
                "find out who uses it: dmsetup ls --tree; fuser -v /dev/{}",
                snapshot.path()
            ))),
            [snapshot] if snapshot.is_thin() => {
                let crowded = snapshot.crowded().map_or(Ok(()), Err);
                crowded
                    .and_then(|()| check_pool(volumes, snapshot, FULL))
                    .map_err(|why| refuse_revert(disk, why))?;
                match context.new_domain {
                    Some(domain) if domain.replacement => {
                        thin_of_replacement(&recorded, snapshot, origin, volumes, context)
                    }
                    Some(domain) => thin_for_new_domain(&recorded, snapshot, volumes, domain),
                    None => thin(&recorded, snapshot, origin, volumes, context),
                }
            }
            [snapshot] => thick(&recorded, snapshot, origin, volumes, &tag, context),
            [one, other, ..] => Err(refuse_revert(
                disk,
                format!("both {} and {} bear its tag {tag}", one.path(), other.path()),
            )),
        }
    }

    /// A merge into a thick volume waits until nobody has it open; a thin volume is only renamed.
    fn needs(&self, _: &SnapshotDisk, for_new_domain: bool) -> Vec<Requirement> {
        let in_place = self.size.is_some() && !for_new_domain;
        let volume =
            in_place.then(|| Requirement::ExclusiveFile(device(&self.group, &self.volume)));
        let changes = in_place || self.size.is_none();
        volume.into_iter().chain(changes.then_some(Requirement::VolumeArchive)).collect()
    }

    fn export(
        &self,
        found: &SnapshotDisk,
        context: RevertContext<'_>,
    ) -> Result<Option<DiskExport>> {
        let tag = tag(context.id, &found.record.vdev);
        export::plan(self, found, context, &tag).map(Some)
    }

    fn delete(&self, family: &ImageTree, _: DeleteOptions) -> Result<DiskDelete> {
        let tag = tag(family.id, &family.record.vdev);
        delete::plan(family, &tag, (&self.group, &self.snapshot))
    }
}

/// Which group has too little space for all snapshots together, if any.
pub fn short_of_space(spaces: &[&Space]) -> Option<String> {
    let takes: Vec<_> =
        spaces.iter().map(|space| (space.group.as_str(), space.free, space.size)).collect();
    let (group, free, needed) = shortage(&takes)?;
    Some(format!(
        "the volume group {group} has {} free, and all of them together take {}",
        mib(free),
        mib(needed)
    ))
}

/// A copy in a file: a thick snapshot cannot have snapshots, and a merge would consume the snapshot.
fn copied(found: &SnapshotDisk, snapshot: &Volume) -> Result<DiskRevert> {
    let room = found.room_for_copy()?.clone();
    let copy = &found.place.path;
    Ok(DiskRevert {
        prepare: vec![Step::NewFile {
            path: copy.clone(),
            fill: qemu_img::copy_device(&device(&snapshot.group, &snapshot.name), copy),
        }],
        switch: Some((copy.clone(), Format::Qcow2)),
        room: Some(room),
        ..DiskRevert::default()
    })
}

fn thick(
    recorded: &Recorded<'_>,
    snapshot: &Volume,
    origin: Option<&Volume>,
    volumes: &[Volume],
    tag: &str,
    context: RevertContext<'_>,
) -> Result<DiskRevert> {
    let refuse = |why: String| refuse_revert(recorded.disk, why);
    let origin = origin.filter(|origin| origin.name == snapshot.origin).ok_or_else(|| {
        match snapshot.origin.as_str() {
            "" => refuse(format!("{} bears its tag, but is no snapshot", snapshot.path())),
            other => refuse(format!("{} is a snapshot of {other} now", snapshot.path()))
                .hint(recorded.renamed(other)),
        }
    })?;
    let merging = merging_tag(context.id, &recorded.disk.vdev);
    // An earlier attempt has reverted it, and failed after that.
    if before::is_now(snapshot, origin, context) {
        let marked = origin.has_tag(&merging);
        let unmark = marked.then(|| Step::Run(volumes::delete_tag(&origin.path(), &merging)));
        return Ok(before::continued(recorded, unmark.into_iter().collect(), volumes, context));
    }
    // A merge writes the snapshot's data to the origin, and the origin's other snapshots must keep
    // the old data. None of them may overflow.
    let others = volumes
        .iter()
        .filter(|v| v.group == origin.group && v.origin == origin.name && v.is_thick_snapshot())
        .filter(|other| other.name != snapshot.name && !other.invalid);
    for other in others {
        let room = other.size.saturating_sub(other.used_bytes());
        if other.size < origin.full_snapshot_size() && room < snapshot.used_bytes() {
            return Err(refuse(format!(
                "that would overflow the snapshot {}: it has room for {}, and up to {} is needed",
                other.path(),
                mib(room),
                mib(snapshot.used_bytes())
            ))
            .hint(format!("lvextend or lvremove {} first", other.path())));
        }
    }
    // A volume that already keeps it needs no more space.
    let of_now = before::of_now(recorded, origin, volumes, context);
    let keep = match of_now {
        Some(kept) => kept.name.clone(),
        None => keep_name(recorded, volumes, context)?,
    };
    let full = origin.full_snapshot_size();
    let crowded = origin.crowded();
    let fits = full <= origin.group_free && crowded.is_none();
    // What the guest wrote since is not in the volume, if the domain uses another disk now.
    let elsewhere = recorded.elsewhere(Some(origin));
    let context = RevertContext { discard: context.discard && elsewhere.is_none(), ..context };
    let keeps = of_now.is_none() && fits && !context.tight;
    if !keeps && of_now.is_none() && !context.discard {
        return Err(refuse(crowded.unwrap_or_else(|| {
            format!(
                "keeping its current contents needs {}, and {} is free in the group {}{}",
                mib(full),
                mib(origin.group_free),
                recorded.group,
                held_back(origin)
            )
        }))
        .hint(match elsewhere {
            Some(top) => format!(
                "free some space. The domain uses {} now, so that --discard-current does not apply to this volume",
                quote(top)
            ),
            None => "free some space, or discard the contents with --discard-current".into(),
        }));
    }
    // LVM may refuse every change of the group (a full metadata area, `metadata_read_only`, a lock): a change that
    // leaves nothing behind tells before the domain is destroyed.
    let rehearsed = Step::Rehearse(volumes::rehearse(&origin.path()));
    let mut put_back = vec![Step::AwaitClosed { volume: origin.path() }];
    if keeps {
        let tag = before::tag(recorded, context);
        put_back.push(Step::Run(volumes::snapshot_thick(&origin.path(), &keep, &tag, full)));
    }
    // After an interrupted revert to another snapshot, the volume had that one's contents until
    // now.
    let stale = origin.tags_with(MERGING).filter(|tag| *tag != merging);
    put_back.extend(stale.map(|tag| Step::Run(volumes::delete_tag(&origin.path(), tag))));
    put_back.extend([
        Step::Run(volumes::add_tag(&origin.path(), &merging)),
        Step::Run(volumes::merge(&snapshot.path())),
        Step::AwaitMerged { volume: origin.path() },
    ]);
    put_back.extend(take_again(recorded, snapshot.size, tag, &merging));
    if of_now.is_some() {
        return Ok(before::continued(recorded, put_back, volumes, context));
    }
    let keep = recorded.path(&keep);
    Ok(DiskRevert {
        prepare: vec![rehearsed],
        put_back,
        discard: (keeps && elsewhere.is_none())
            .then(|| Step::Run(volumes::remove(&keep)))
            .into_iter()
            .collect(),
        kept: keeps.then(|| recorded.kept(&keep, elsewhere)),
        lost: !keeps,
        space: keeps.then(|| Space {
            group: origin.group.clone(),
            free: origin.group_free,
            size: full,
        }),
        ..DiskRevert::default()
    })
}

/// Finishes a merge that was interrupted, or waits until nobody has the volumes open.
fn finish_merge(
    recorded: &Recorded<'_>,
    snapshot: &Volume,
    volumes: &[Volume],
    tag: &str,
    context: RevertContext<'_>,
) -> Result<DiskRevert> {
    if context.running {
        return Err(refuse_revert(
            recorded.disk,
            "a merge of its snapshot waits, and the domain runs on it: \
             what it wrote since cannot be told from the snapshot any more",
        ));
    }
    let origin = recorded.path(recorded.volume);
    let merging = merging_tag(context.id, &recorded.disk.vdev);
    let mut put_back = vec![
        Step::AwaitClosed { volume: origin.clone() },
        Step::Run(volumes::activate(&origin, false)),
        Step::Run(volumes::activate(&origin, true)),
        Step::AwaitMerged { volume: origin },
    ];
    put_back.extend(take_again(recorded, snapshot.size, tag, &merging));
    Ok(before::continued(recorded, put_back, volumes, context))
}

/// The snapshot does not exist. If a revert was interrupted after the merge, the volume itself has
/// its contents, and a tag says so.
fn retake(
    recorded: &Recorded<'_>,
    origin: Option<&Volume>,
    volumes: &[Volume],
    tag: &str,
    context: RevertContext<'_>,
) -> Result<DiskRevert> {
    let merging = merging_tag(context.id, &recorded.disk.vdev);
    let merged = origin.filter(|origin| origin.has_tag(&merging)).zip(recorded.size);
    match merged {
        Some((_, size)) if !context.running => {
            let put_back = take_again(recorded, size, tag, &merging);
            Ok(before::continued(recorded, put_back, volumes, context))
        }
        Some(_) => Err(refuse_revert(
            recorded.disk,
            "an interrupted revert merged its snapshot, and the domain has run since",
        )),
        None => Err(refuse_revert(
            recorded.disk,
            format!("its snapshot {} no longer exists", recorded.path(recorded.snapshot)),
        )),
    }
}

fn take_again(recorded: &Recorded<'_>, size: u64, tag: &str, merging: &str) -> Vec<Step> {
    let origin = recorded.path(recorded.volume);
    vec![
        Step::Run(volumes::snapshot_thick(&origin, recorded.snapshot, tag, size)),
        Step::Run(volumes::delete_tag(&origin, merging)),
    ]
}

/// The tag that identifies the snapshot of one disk.
pub fn tag(id: Uuid, vdev: &str) -> String {
    format!("xl-snapshot:{id}:{vdev}")
}

/// The tag of the guest's volume while the snapshot is merged into it.
fn merging_tag(id: Uuid, vdev: &str) -> String {
    format!("{MERGING}{id}:{vdev}")
}

#[cfg(test)]
mod tests;
