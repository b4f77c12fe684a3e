//! The space that a revert needs for copies.

use std::io;
use std::path::Path;

use crate::disk::kind::{Content, VolumeName};
use crate::disk::{Room, SnapshotDisk};
use crate::host::{files, tools};
use crate::tool::qemu_img;
use crate::tool::volumes::device;

/// The space for a copy of a snapshot, if one is needed: a new domain does not share the disks of the
/// old one. In place, an internal snapshot keeps the current contents of the image.
pub(super) fn room_needed(
    found: &SnapshotDisk,
    for_new_domain: bool,
) -> Option<Result<Room, String>> {
    let from = &found.record.path;
    let content = found.record.snapshot.kind().content();
    let in_place = matches!(content, Content::Inside(_)) && !for_new_domain;
    if let Some(header) = found.header().filter(|_| in_place && !found.needs_copy()) {
        return Some(room_at(from, header.snapshot_size()));
    }
    let measure = match content {
        Content::Inside(Some(proof)) if for_new_domain || found.needs_copy() => {
            qemu_img::measure_snapshot(from, &proof.id)
        }
        Content::Volume(VolumeName { group, name, thick: true }) if for_new_domain => {
            qemu_img::measure_device(&device(group, name))
        }
        _ => return None,
    };
    Some(tools::measure(from, &measure).and_then(|needed| room_at(&found.place.path, needed)))
}

/// The space on the file system of a file.
fn room_at(to: &Path, needed: u64) -> Result<Room, String> {
    let directory = to.parent().unwrap_or(Path::new("/"));
    let place = || Ok((files::file_system(directory)?, files::free_space(to)?));
    let (device, free) = place()
        .map_err(|error: io::Error| format!("the file system of {}: {error}", to.display()))?;
    Ok(Room { directory: directory.to_owned(), device, free, needed })
}
