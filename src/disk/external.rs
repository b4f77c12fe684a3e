//! External snapshots: the guest goes on in a qcow2 overlay, the file it used stays as it is.
//!
//! The base loses its write permission. That mark keeps our own revert from rewriting it (root
//! ignores permissions, so nothing else changes for Xen), and shows an administrator in `ls -l`
//! that other images rest on the file.

use crate::disk::{
    Context, DiskCreate, DiskFound, DiskRevert, DiskSeen, check_frozen, node, qemu_img, record,
    refuse, refuse_revert,
};
use crate::domain::Format;
use crate::error::Result;
use crate::plan::{Action, Step};
use crate::record::{FrozenFile, Kept};

/// QEMU's limit for the name of a node (block.c, `node_name[32]`).
const MAX_NODE_NAME: usize = 31;

/// Plans an external snapshot.
pub(super) fn create(seen: &DiskSeen, context: Context<'_>) -> Result<DiskCreate> {
    let disk = &seen.disk;
    let format = disk.format.ok_or_else(|| refuse(disk, "its format is not known".into()))?;
    let node = node(seen)?;
    let facts = seen.file.as_ref().map_err(|why| refuse(disk, why.clone()))?;
    let place = seen
        .overlay
        .as_ref()
        .ok_or_else(|| refuse(disk, "there is no place for an overlay".into()))?;
    if let Some(trouble) = &place.trouble {
        return Err(refuse(disk, format!("its overlay cannot be made: {trouble}")).hint(format!(
            "choose another name with --name, or a place with --disk {},external,file=PATH",
            disk.vdev
        )));
    }
    let overlay = &place.path;
    let mut prepare = vec![Step::NewFile {
        path: overlay.clone(),
        fill: qemu_img::create_overlay(overlay, &disk.path, format, node.virtual_size),
    }];
    if facts.writable {
        prepare.push(Step::Protect { path: disk.path.clone() });
    }
    let mut new_node = format!("{}-{}", disk.vdev, context.tag);
    new_node.truncate(MAX_NODE_NAME);
    Ok(DiskCreate {
        prepare,
        action: Some(Action::Overlay {
            vdev: disk.vdev.clone(),
            node: node.name.clone(),
            file: overlay.clone(),
            new_node,
        }),
        switch: Some((overlay.clone(), Format::Qcow2)),
        record: record(seen, Kept::External { overlay: overlay.clone(), proof: None }),
    })
}

/// Plans a new overlay on the untouched base.
pub(super) fn revert(found: &DiskFound, proof: Option<&FrozenFile>) -> Result<DiskRevert> {
    let record = &found.record;
    let base = &record.path;
    let refuse = |why: String| refuse_revert(record, why);
    let proof = proof.ok_or_else(|| refuse("the record has no proof of its base".into()))?;
    let format = record.format.ok_or_else(|| refuse("its format is not known".into()))?;
    let facts = found.file.as_ref().map_err(|why| refuse(why.clone()))?;
    check_frozen(facts, proof).map_err(refuse)?;
    if let Some(user) = &found.used_by {
        return Err(refuse(format!("it is also used by {user}")));
    }
    let image = found.image.as_ref().map_err(|why| refuse(why.clone()))?;
    if image.virtual_size != proof.virtual_size {
        return Err(refuse(format!(
            "its size was changed: {} bytes, at the snapshot {}",
            image.virtual_size, proof.virtual_size
        )));
    }
    if let Some(trouble) = &found.place.trouble {
        return Err(refuse(format!("its overlay cannot be made: {trouble}")));
    }
    let overlay = &found.place.path;
    Ok(DiskRevert {
        prepare: vec![Step::NewFile {
            path: overlay.clone(),
            fill: qemu_img::create_overlay(overlay, base, format, proof.virtual_size),
        }],
        switch: Some((overlay.clone(), Format::Qcow2)),
        kept: found.top().map(|top| top.display().to_string()),
        discard: found.discard_top(),
        ..DiskRevert::default()
    })
}
