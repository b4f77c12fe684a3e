//! Whether a snapshot is still good, by the proofs in its record. Pure.
//!
//! Checks only headers: `show` checks more, such as bridges and locks.

use std::path::Path;

use super::index::Index;
use super::inventory::{CurrentDisk, FileEntry, FileKind};
use super::report::{DiskState, Health};
use crate::disk::FileFacts;
use crate::disk::chain::MAX_LENGTH;
use crate::disk::kind::{Content, Frozen, Reader, VolumeName};
use crate::memory::peek::Extent;
use crate::record::{DiskRecord, FrozenFile, QcowSnapshot, Record};
use crate::tool::volumes::device;

/// The state of a snapshot, the reasons, and the state of each of its disks.
pub(super) fn of(index: &Index<'_>, number: usize) -> (Health, Vec<String>, Vec<DiskState>) {
    let known = index.known[number];
    let disks: Vec<_> = known
        .record
        .disks
        .iter()
        .map(|disk| disk_state(index, number, known.record, disk))
        .collect();
    let mut why = Vec::new();
    let mut state = Health::Good;
    match known.extent {
        Extent::Whole => {}
        Extent::Wrong(wrong) => {
            state = Health::Broken;
            why.push(format!("its image: {wrong}"));
        }
        Extent::Unfinished => {
            state = Health::Unfinished;
            why.push("it was never completed".into());
        }
        Extent::Unread => {
            state = Health::Unread;
            why.push(
                "its image was compressed by another program, or on a pipe: show reads all of it"
                    .into(),
            );
        }
    }
    for disk in &disks {
        match disk.state {
            Health::Good | Health::None => continue,
            Health::Unread if state == Health::Good => state = Health::Unread,
            Health::Broken if state != Health::Unfinished => state = Health::Broken,
            _ => {}
        }
        let text = disk.why.as_deref().unwrap_or("it cannot be reverted");
        why.push(format!("{}: {text}", disk.vdev));
    }
    (state, why, disks)
}

fn disk_state(index: &Index<'_>, number: usize, record: &Record, disk: &DiskRecord) -> DiskState {
    let shown = |path: &Path| path.to_owned();
    let (image, allocated) = match disk.snapshot.kind().content() {
        Content::Nowhere | Content::Inside(_) => (shown(&disk.path), None),
        Content::Frozen(frozen) => {
            let path = frozen.copy.unwrap_or(&disk.path);
            let file = index.file(path, FileKind::of_reader(frozen.reader, disk.format));
            (shown(path), file.map(|file| file.allocated))
        }
        Content::Volume(kept) => {
            let volume = index.volume(number, &disk.vdev);
            let used = volume.filter(|volume| volume.is_thick_snapshot()).map(|v| v.used_bytes());
            (device(kept.group, kept.name), used)
        }
    };
    let (state, why) = match check(index, number, record, disk) {
        Ok(state) => (state, None),
        Err((state, why)) => (state, Some(why)),
    };
    let why = disk.snapshot.kind().why_left_out().map(str::to_owned).or(why);
    DiskState {
        vdev: disk.vdev.clone(),
        snapshot: disk.snapshot.name(),
        image,
        size_on_disk: allocated.filter(|_| state != Health::Broken),
        state,
        why,
    }
}

type Checked = Result<Health, (Health, String)>;

fn broken(why: impl Into<String>) -> (Health, String) {
    (Health::Broken, why.into())
}

fn check(index: &Index<'_>, number: usize, record: &Record, disk: &DiskRecord) -> Checked {
    let unproven = || broken("the record has no proof of its snapshot");
    let file = |path: &Path, kind| {
        let seen = index.file(path, kind).ok_or_else(|| broken("it was not looked at"))?;
        let facts = seen.facts.as_ref().map_err(|why| broken(why.clone()))?;
        Ok::<_, (Health, String)>((seen, facts))
    };
    match disk.snapshot.kind().content() {
        Content::Nowhere => return Ok(Health::None),
        Content::Inside(proof) => {
            let (seen, _) = file(&disk.path, FileKind::of_record(disk))?;
            check_internal(seen, proof.ok_or_else(unproven)?)?;
        }
        Content::Frozen(Frozen { copy, reader, proof }) => {
            let path = copy.unwrap_or(&disk.path);
            let (seen, facts) = file(path, FileKind::of_reader(reader, disk.format))?;
            untouched(facts, proof.ok_or_else(unproven)?)?;
            match reader {
                Reader::Qemu => check_unused(index, facts)?,
                Reader::TapVhd if seen.vhd.is_none() => {
                    return Err(broken("it has no footer of a VHD"));
                }
                Reader::TapVhd | Reader::Raw => {}
            }
        }
        Content::Volume(VolumeName { group, name, .. }) => {
            if let Err(why) = &index.seen.volumes {
                return Err((Health::Unread, format!("the volumes cannot be listed: {why}")));
            }
            let volume = index
                .volume(number, &disk.vdev)
                .filter(|volume| volume.group == *group)
                .ok_or_else(|| {
                broken(format!("its snapshot {group}/{name} no longer exists"))
            })?;
            if volume.invalid {
                return Err(broken("its snapshot has overflowed"));
            }
        }
    }
    check_below(index, record, disk)?;
    Ok(Health::Good)
}

/// No domain may write to a frozen file.
fn check_unused(index: &Index<'_>, frozen: &FileFacts) -> Result<(), (Health, String)> {
    let is_it = |disk: &CurrentDisk| {
        let file = index.file(&disk.path, disk.kind).and_then(|file| file.facts.as_ref().ok());
        file.is_some_and(|file| file.id() == frozen.id())
    };
    match index.seen.domains.iter().find(|domain| domain.disks.iter().any(is_it)) {
        Some(domain) => Err(broken(format!("{} runs on it and may write to it", domain.name))),
        None => Ok(()),
    }
}

fn check_internal(file: &FileEntry, proof: &QcowSnapshot) -> Result<(), (Health, String)> {
    let link = file.link.as_ref().map_err(|why| broken(why.clone()))?;
    if let Some(why) = link.unreadable() {
        return Err(broken(why));
    }
    let unread = |why: &String| match why.contains("more than") {
        true => (Health::Unread, why.clone()),
        false => broken(why.clone()),
    };
    let inside = file.inside.as_ref().map_err(unread)?;
    let same_name: Vec<_> = inside.iter().filter(|entry| entry.name == proof.name).collect();
    if !same_name.contains(&proof) {
        return Err(broken(match same_name.first() {
            None => format!("its snapshot {} no longer exists", proof.name),
            Some(other) => {
                format!("its snapshot {} is another one, of {:.0}", proof.name, other.date)
            }
        }));
    }
    if inside.iter().filter(|entry| entry.id == proof.id).count() != 1 {
        return Err(broken(format!("two of its snapshots have the ID {}", proof.id)));
    }
    match link.header.as_ref().and_then(|header| header.unwritable()) {
        Some(defect) => Err(broken(defect.why())),
        None => Ok(()),
    }
}

fn untouched(file: &FileFacts, proof: &FrozenFile) -> Result<(), (Health, String)> {
    if !file.has_inode_of(proof) {
        return Err(broken("it is another file now"));
    }
    match file.is_as(proof.file_size, proof.mtime) {
        true => Ok(()),
        false => Err(broken(format!("it was written to since, at {:.0}", file.mtime))),
    }
}

/// Nobody may have written to its bases since.
fn check_below(
    index: &Index<'_>,
    record: &Record,
    disk: &DiskRecord,
) -> Result<(), (Health, String)> {
    if !disk.snapshot.kind().content().is_in_chain() {
        return Ok(());
    }
    let mut file = index.file(&disk.path, FileKind::of_record(disk));
    for _ in 0..MAX_LENGTH {
        let Some(this) = file else { return Ok(()) };
        let link = this.link.as_ref().map_err(|why| broken(why.clone()))?;
        let Some((path, format)) = link.below().map_err(broken)? else { return Ok(()) };
        let below = index.file(&path, FileKind::of_format(Some(format)));
        let shown = path.display();
        match below {
            None => return Err(broken(format!("its base {shown} was not inspected"))),
            Some(FileEntry { device: Some(_), .. }) => {}
            Some(below) => match &below.facts {
                Err(why) => return Err(broken(format!("its base {shown}: {why}"))),
                Ok(facts) if facts.written() > record.created => {
                    return Err(broken(format!("its base {shown} was written to since")));
                }
                Ok(_) => {}
            },
        }
        file = below;
    }
    Err(broken("it is its own base"))
}
