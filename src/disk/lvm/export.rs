//! The volume that has the content of a disk, for a copy of it.

use super::record::Lvm;
use crate::disk::exporting::DiskExport;
use crate::disk::parts::refuse_revert;
use crate::disk::{RevertContext, SnapshotDisk};
use crate::domain::Format;
use crate::error::Result;
use crate::tool::qemu_img::Whole;
use crate::tool::volumes::{self, Volume, device};

/// The size of QEMU's tables of a qcow2 image, as a fraction of its content: 8 bytes for each cluster of 64 KiB, and 2
/// for its reference count.
const TABLES: u64 = (64 << 10) / 16;
/// The size of an empty image.
const EMPTY: u64 = 1 << 20;

/// Says which volume is copied.
pub(super) fn plan(
    kept: &Lvm,
    found: &SnapshotDisk,
    context: RevertContext<'_>,
    tag: &str,
) -> Result<DiskExport> {
    let refuse = |why: String| refuse_revert(&found.record, why);
    let volumes = context.volumes.as_ref().map_err(|why| refuse(why.clone()))?;
    let Lvm { group, snapshot: name, size, .. } = kept;
    if let Some(why) = volumes::ambiguous(volumes, group) {
        return Err(refuse(why));
    }
    let tagged: Vec<&Volume> =
        volumes.iter().filter(|volume| volume.group == *group && volume.has_tag(tag)).collect();
    let snapshot = match tagged.as_slice() {
        [] => return Err(refuse(format!("its snapshot {group}/{name} no longer exists"))),
        [one] => *one,
        [one, other, ..] => {
            return Err(refuse(format!(
                "both {} and {} bear its tag {tag}",
                one.path(),
                other.path()
            )));
        }
    };
    let path = snapshot.path();
    if snapshot.merging {
        return Err(refuse(format!("{path} is being merged by a revert"))
            .hint("finish that revert: repeat it"));
    }
    if snapshot.writable || snapshot.is_thin() != size.is_none() {
        return Err(refuse(format!("{path} bears its tag, but is not what the snapshot made")));
    }
    if snapshot.invalid {
        return Err(refuse(format!(
            "its snapshot {path} is lost: more was written since than it could hold"
        )));
    }
    if !snapshot.is_active() {
        return Err(refuse(format!("its snapshot {path} is not active"))
            .hint(format!("activate it: lvchange -ay -K {path}")));
    }
    // qemu-img does not know which parts of a device were never written to.
    let most = snapshot.used.filter(|_| snapshot.is_thin()).map(|_| {
        let used = snapshot.used_bytes() + snapshot.size / 10_000;
        used.saturating_add(used / TABLES).saturating_add(snapshot.size / TABLES) + EMPTY
    });
    let from = Whole::Image { path: device(group, &snapshot.name), format: Format::Raw };
    Ok(DiskExport { most, ..DiskExport::of(from) })
}
