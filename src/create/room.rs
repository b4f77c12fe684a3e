//! Space on file systems: the size of an image, the reserve for others, and where a guest will soon
//! run out of space. Pure.

use std::collections::BTreeMap;
use std::path::Path;

use super::{CreateInput, ImagePlace, Job};
use crate::disk::{DiskCreate, mib};
use crate::error::{Error, Result};

/// A save file is larger than the guest's memory by its page tables, device state and header.
const IMAGE_OVERHEAD: u64 = 32 << 20;

/// The best compression ratio, of an idle guest. The size of the image is not known in advance: if
/// the disk fills up, the save is undone.
const BEST_COMPRESSION: u64 = 32;

/// The size of a new, empty image: the tables of a qcow2 file, or those that an internal snapshot
/// copies.
const EMPTY: u64 = 1 << 20;

/// What a save leaves free for other writers on the file system, in bytes: more than is written at 1 GB/s
/// between two checks; on a large file system, one part in [`RESERVED_PART`].
const RESERVE: u64 = 256 << 20;
const RESERVED_PART: u64 = 50;

/// What a guest may soon write. Less free space than this gets a note.
const SOON: u64 = 1 << 30;

/// The minimum size of an image, in bytes. A live save of a guest that writes to its memory takes up to
/// seven times the memory (libxenguest copies it in up to six rounds, and then the rest).
pub fn needed(memory_kib: u64, compressed: bool) -> u64 {
    let memory = memory_kib.saturating_mul(1024);
    let memory = if compressed { memory / BEST_COMPRESSION } else { memory };
    memory.saturating_add(IMAGE_OVERHEAD)
}

/// The free space at which a save is aborted, in bytes, before other guests' sparse images get errors.
/// `free` and `total` are those of the file system before the save. If the image itself hardly fits, the
/// user has chosen that: it may take the space that it needs.
pub fn reserve(free: u64, total: u64, needed: u64) -> u64 {
    RESERVE.max(total / RESERVED_PART).min(free.saturating_sub(needed))
}

/// Refuses an image that does not fit, together with the new images of the disks.
pub(super) fn check(
    job: &Job,
    seen: &CreateInput,
    domain: &str,
    disks: &[DiskCreate],
) -> Result<()> {
    let ImagePlace::File { path, free, .. } = &seen.image else { return Ok(()) };
    let compressed = job.request.compress.is_some();
    let image = needed(seen.config.memory_kib(), compressed);
    let beside = grow(seen, disks).get(&device_of(seen, path)).map_or(0, |growth| growth.at_once);
    if *free >= image.saturating_add(beside) {
        return Ok(());
    }
    let at_least = if job.request.live || compressed { "at least " } else { "" };
    let beside = match beside {
        0 => String::new(),
        _ => format!(", and the new images of its disks {}", mib(beside)),
    };
    Err(Error::refused(format!("The memory image {}", path.display()))
        .because(format!(
            "its file system has {} MiB free, the memory of {domain} needs {at_least}{}{beside}",
            free >> 20,
            image >> 20,
        ))
        .hint("free some space, or choose another place with --memory FILE"))
}

/// Notes where a guest that writes will soon run out of space: images grow after the snapshot, also
/// those that were fully allocated before.
pub(super) fn notes(job: &Job, seen: &CreateInput, disks: &[DiskCreate]) -> Vec<String> {
    let image = match &seen.image {
        ImagePlace::File { path, .. } => {
            let memory = seen.config.memory_kib();
            Some((device_of(seen, path), needed(memory, job.request.compress.is_some())))
        }
        ImagePlace::Stdout | ImagePlace::Record { .. } => None,
    };
    let note = |(device, growth): (Option<u64>, Growth)| {
        let space = seen.spaces.iter().find(|space| Some(space.device) == device)?;
        let image = image.filter(|(own, _)| *own == device).map_or(0, |(_, needed)| needed);
        let free = space.free.saturating_sub(image).saturating_sub(growth.at_once);
        (free < growth.soon).then(|| {
            format!(
                "the file system of {} has {} left, from which {} takes what the guest writes from now \
                 on: when that is used up, the guest gets I/O errors",
                space.file.parent().unwrap_or(&space.file).display(),
                mib(free),
                growth.vdevs.join(", "),
            )
        })
    };
    grow(seen, disks).into_iter().filter_map(note).chain(volatile(seen, disks)).collect()
}

/// Notes which parts of the snapshot do not survive a reboot of the host.
fn volatile(seen: &CreateInput, disks: &[DiskCreate]) -> Option<String> {
    let left_out = |file: &Path| {
        disks.iter().any(|disk| disk.record.path == file && disk.record.snapshot.is_left_out())
    };
    let files = seen.spaces.iter().filter(|space| space.volatile && !left_out(&space.file));
    let files: Vec<_> = files.map(|space| space.file.display().to_string()).collect();
    let verb = if files.len() == 1 { "is" } else { "are" };
    (!files.is_empty()).then(|| {
        format!(
            "{} {verb} in the host's memory (tmpfs): the snapshot is lost with a power cut or a reboot of \
             the host",
            files.join(", ")
        )
    })
}

/// The space that the images of disks need on a file system.
#[derive(Debug, Default)]
struct Growth {
    /// At their creation.
    at_once: u64,
    /// After the guest has written for a while.
    soon: u64,
    vdevs: Vec<String>,
}

/// Keyed by the number of the file system, if it is known.
fn grow(seen: &CreateInput, disks: &[DiskCreate]) -> BTreeMap<Option<u64>, Growth> {
    let mut all: BTreeMap<_, Growth> = BTreeMap::new();
    for (disk, seen_disk) in disks.iter().zip(&seen.disks) {
        let own = seen_disk.device.is_none().then_some(disk.record.path.as_path());
        let Some(grows) = disk.record.snapshot.kind().grows(own) else { continue };
        let growth = all.entry(device_of(seen, grows)).or_default();
        growth.at_once += EMPTY;
        growth.soon += seen_disk.virtual_size().unwrap_or(SOON).min(SOON);
        growth.vdevs.push(disk.record.vdev.clone());
    }
    all
}

fn device_of(seen: &CreateInput, file: &Path) -> Option<u64> {
    seen.spaces.iter().find(|space| space.file == file).map(|space| space.device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_save_leaves_room_for_others_but_takes_what_it_must() {
        const GIB: u64 = 1 << 30;
        assert_eq!(reserve(100 * GIB, 100 * GIB, GIB), 2 * GIB);
        assert_eq!(reserve(5 * GIB, 8 * GIB, GIB), 256 << 20);
        // An image that just fits is not refused.
        assert_eq!(reserve(GIB, 8 * GIB, GIB - (10 << 20)), 10 << 20);
        assert_eq!(reserve(GIB, 8 * GIB, GIB), 0);
        assert_eq!(reserve(0, u64::MAX, u64::MAX), 0);
        assert_eq!(reserve(u64::MAX, u64::MAX, 0), u64::MAX / 50);
    }

    #[test]
    fn a_compressed_image_may_be_small() {
        assert_eq!(needed(1 << 20, false), (1 << 30) + (32 << 20));
        assert_eq!(needed(1 << 20, true), 64 << 20);
        assert_eq!(needed(u64::MAX, false), u64::MAX);
    }
}
