//! The previous contents of a thick volume: the snapshot that keeps them, which tells a repeated
//! revert what earlier attempts did.

use super::recorded::Recorded;
use crate::disk::{DiskRevert, RevertContext};
use crate::plan::Step;
use crate::tool::volumes::{self, Volume};

/// The prefix of the tag of a volume that keeps the previous contents of a disk.
const BEFORE: &str = "xl-snapshot-before:";
/// The same, of a volume that is deleted after the revert has succeeded.
const DISCARD: &str = "xl-snapshot-discard:";

/// The tag of the volume that keeps the current contents of a disk.
pub(super) fn tag(recorded: &Recorded<'_>, context: RevertContext<'_>) -> String {
    tagged(if context.discard { DISCARD } else { BEFORE }, recorded, context)
}

fn tagged(begin: &str, recorded: &Recorded<'_>, context: RevertContext<'_>) -> String {
    format!("{begin}{}:{}", context.id, recorded.disk.vdev)
}

/// The volumes that reverts to the same snapshot have kept, the newest first: their names end in a
/// time.
fn all<'a>(
    recorded: &Recorded<'_>,
    volumes: &'a [Volume],
    context: RevertContext<'_>,
) -> Vec<&'a Volume> {
    let tags = [BEFORE, DISCARD].map(|begin| tagged(begin, recorded, context));
    let mut all: Vec<_> = volumes
        .iter()
        .filter(|v| v.group == recorded.group && v.origin == recorded.volume)
        .filter(|v| v.is_thick_snapshot() && !v.merging && !v.invalid && !v.writable)
        .filter(|v| tags.iter().any(|tag| v.has_tag(tag)))
        .collect();
    all.sort_by(|one, other| other.name.cmp(&one.name));
    all
}

/// The volume that keeps exactly the current contents of a disk, if an attempt that failed before its
/// merge has left one.
pub(super) fn of_now<'a>(
    recorded: &Recorded<'_>,
    origin: &Volume,
    volumes: &'a [Volume],
    context: RevertContext<'_>,
) -> Option<&'a Volume> {
    let mut all = all(recorded, volumes, context).into_iter();
    all.find(|kept| is_now(kept, origin, context))
}

/// Whether a snapshot has exactly the contents of its volume. Nobody can write to the snapshot, and a write
/// to the volume uses space in it at once (Linux drivers/md/dm-snap.c, `pending_complete`). lvs prints 0.00
/// for nothing at all and 0.01 for anything more (libdm, `dm_percent_to_round_float`).
pub(super) fn is_now(snapshot: &Volume, origin: &Volume, context: RevertContext<'_>) -> bool {
    !context.running && !origin.open && snapshot.used == Some(0)
}

/// Continues an earlier attempt to revert to the same snapshot, which has kept the previous contents.
pub(super) fn continued(
    recorded: &Recorded<'_>,
    put_back: Vec<Step>,
    volumes: &[Volume],
    context: RevertContext<'_>,
) -> DiskRevert {
    let all = all(recorded, volumes, context);
    let discard = tagged(DISCARD, recorded, context);
    let discarded = || all.iter().filter(|kept| context.discard && kept.has_tag(&discard));
    let kept = discarded().next().or(all.first());
    DiskRevert {
        put_back,
        kept: kept.map(|kept| format!("the volume {}", kept.path())),
        discard: discarded().map(|kept| Step::Run(volumes::remove(&kept.path()))).collect(),
        ..DiskRevert::default()
    }
}
