//! Everything that is not a snapshot: damaged and unfinished images, copies, disk snapshots without an
//! image, files that nothing names. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::index::Index;
use super::inventory::{FileKind, ImageEntry, ListRequest, is_partial};
use super::report::{Other, OtherKind};
use crate::disk;
use crate::disk::kind::{NewFile, Role};
use crate::memory::peek::{Extent, Peek};
use crate::memory::{DELETING, PARTIAL, is_deleting};
use crate::record::Record;
use crate::tool::{quote, volumes};

/// Marks the names of snapshots and files in which a revert keeps the previous contents.
const KEPT: &str = "before-revert-";

/// Everything that is not a snapshot, sorted by kind.
pub(super) fn others(index: &Index<'_>, asked: &ListRequest) -> Vec<Other> {
    let mut found = Vec::new();
    found.extend(index.seen.images.iter().filter_map(|image| of_image(index, image)));
    found.extend(collisions(index));
    found.extend(disk_snapshots(index));
    found.extend(volumes(index));
    found.extend(files(index));
    let wanted = |other: &Other| {
        let running = &index.seen.domains;
        match &other.domain {
            Some(domain) => asked.wants(domain, other.uuid, running),
            None => asked.domains.is_empty(),
        }
    };
    found.retain(wanted);
    found.sort_by(|one, other| {
        (one.kind, &one.path, &one.name).cmp(&(other.kind, &other.path, &other.name))
    });
    found
}

fn other(kind: OtherKind, path: &Path, why: impl Into<String>) -> Other {
    Other {
        kind,
        domain: None,
        uuid: uuid::Uuid::nil(),
        path: path.to_owned(),
        name: None,
        id: None,
        created: None,
        why: why.into(),
    }
}

fn of_record(kind: OtherKind, path: &Path, record: &Record, why: impl Into<String>) -> Other {
    Other {
        domain: Some(record.domain.name.clone()),
        uuid: record.domain.uuid,
        name: Some(record.name.to_string()),
        id: Some(record.id),
        created: Some(record.created),
        ..other(kind, path, why)
    }
}

/// The kind of a file in a directory of snapshots that is not a snapshot.
fn of_image(index: &Index<'_>, image: &ImageEntry) -> Option<Other> {
    let path = &image.path;
    // It is in the directory of its domain, if it is where `create` puts it.
    let of_directory = |mut other: Other| {
        let directory = path.parent().and_then(Path::file_name);
        other.domain = directory.map(|name| name.to_string_lossy().into_owned());
        other
    };
    let text = path.to_string_lossy();
    let named = text.strip_suffix(PARTIAL).unwrap_or(&text);
    let ours = [".xlsave", ".xlsave.zst"].iter().any(|ending| named.ends_with(ending));
    match &image.peek {
        Ok(Peek::Snapshot { record, extent, .. }) if is_partial(path) => {
            let why = match extent {
                Extent::Whole if record.complete => "it is complete, and only lacks its name",
                _ => {
                    "it was interrupted, or is in progress: create --clean removes interrupted ones"
                }
            };
            Some(of_record(OtherKind::Leftover, path, record, why))
        }
        Ok(Peek::Snapshot { record, .. }) if is_deleting(path) => {
            let image = text.strip_suffix(DELETING).unwrap_or(&text);
            let why = format!("its deletion was interrupted: xl-snapshot delete {}", quote(image));
            Some(of_record(OtherKind::Deleting, path, record, why))
        }
        Ok(Peek::Snapshot { record, extent, .. }) => {
            let first = index.known[index.number(record.id)?].image;
            let mut why = match first.id == image.id {
                true => format!("it is another name of {}", first.path.display()),
                false => format!("it is of the same snapshot as {}", first.path.display()),
            };
            if let Extent::Wrong(wrong) = extent {
                why.push_str(&format!("; {wrong}"));
            }
            (first.path != *path).then(|| of_record(OtherKind::Copy, path, record, why))
        }
        Ok(Peek::Damaged(why)) => {
            let kind = match is_partial(path) {
                true => OtherKind::Leftover,
                false => OtherKind::Damaged,
            };
            let mut words = vec![why.to_string()];
            let mut source = std::error::Error::source(why);
            while let Some(cause) = source {
                words.push(cause.to_string());
                source = cause.source();
            }
            Some(of_directory(other(kind, path, words.join(": "))))
        }
        Ok(Peek::SaveFile) => {
            let why = "xl save wrote it, or another program: it says nothing of the disks";
            Some(of_directory(other(OtherKind::SaveFile, path, why)))
        }
        Ok(Peek::Foreign | Peek::Later) if ours => {
            Some(of_directory(other(OtherKind::Damaged, path, "it does not begin as an image")))
        }
        Ok(Peek::Foreign | Peek::Later) => {
            Some(of_directory(other(OtherKind::Foreign, path, "it is no snapshot")))
        }
        Err(why) => {
            let kind = if ours { OtherKind::Damaged } else { OtherKind::Foreign };
            Some(of_directory(other(kind, path, why.clone())))
        }
    }
}

/// Snapshots of one domain that have the same name.
fn collisions(index: &Index<'_>) -> Vec<Other> {
    let mut names: BTreeMap<(&str, &str), Vec<usize>> = BTreeMap::new();
    for (number, known) in index.known.iter().enumerate() {
        let key = (index.domain_name(known.record), known.record.name.as_str());
        names.entry(key).or_default().push(number);
    }
    let several = names.into_values().filter(|all| all.len() > 1);
    several
        .flat_map(|all| {
            let first = &index.known[all[0]].image.path;
            all[1..]
                .iter()
                .map(|number| {
                    let known = index.known[*number];
                    let why = format!(
                        "another snapshot has the same name, {}: name them by their paths",
                        first.display()
                    );
                    of_record(OtherKind::Collision, &known.image.path, known.record, why)
                })
                .collect::<Vec<_>>()
        })
        .collect()
}

/// The domain that has a file as its disk.
fn domain_of(index: &Index<'_>, path: &Path, kind: FileKind) -> Option<(String, uuid::Uuid)> {
    let running = index
        .seen
        .domains
        .iter()
        .find(|domain| domain.disks.iter().any(|disk| disk.path == path && disk.kind == kind));
    let recorded = || {
        let mut all = index.known.iter();
        all.find(|known| known.record.disks.iter().any(|disk| disk.path == path))
    };
    running.map(|domain| (domain.name.clone(), domain.uuid)).or_else(|| {
        let domain = &recorded()?.record.domain;
        Some((domain.name.clone(), domain.uuid))
    })
}

/// Internal snapshots that no image names.
fn disk_snapshots(index: &Index<'_>) -> Vec<Other> {
    let mut found = Vec::new();
    for ((path, kind), file) in &index.seen.files {
        for entry in file.inside.iter().flatten().filter(|entry| index.of_entry(entry).is_empty()) {
            let (kind_of, why) = match entry.name.starts_with(KEPT) {
                true => (OtherKind::Kept, "what the disk held before a revert"),
                false => (OtherKind::Disk, "a snapshot of this disk alone: no image names it"),
            };
            let (domain, uuid) = domain_of(index, path, *kind).unzip();
            found.push(Other {
                domain,
                uuid: uuid.unwrap_or_default(),
                name: Some(entry.name.clone()),
                created: Some(entry.date),
                ..other(kind_of, path, format!("{why} (ID {})", entry.id))
            });
        }
    }
    found
}

/// Volumes that have one of our tags, and that no image names.
fn volumes(index: &Index<'_>) -> Vec<Other> {
    let named: BTreeSet<String> = index
        .known
        .iter()
        .flat_map(|known| {
            known.record.disks.iter().map(|disk| disk::volume_tag(known.record.id, &disk.vdev))
        })
        .collect();
    let volumes = index.seen.volumes.iter().flatten();
    let tagged = volumes
        .flat_map(|volume| volume.tags_with("xl-snapshot:").map(move |tag| (volume, tag)))
        .filter(|(_, tag)| !named.contains(*tag));
    // Interrupted reverts leave it, before it gets the name of the guest's volume.
    let new = volumes_of_reverts(index);
    tagged
        .map(|(volume, tag)| {
            let path = volumes::device(&volume.group, &volume.name);
            other(
                OtherKind::Disk,
                &path,
                format!("a volume of a snapshot that is not here ({tag})"),
            )
        })
        .chain(new)
        .collect()
}

/// New thin volumes of reverts that were interrupted before the volume got the name of the guest's own.
fn volumes_of_reverts<'a>(index: &'a Index<'_>) -> impl Iterator<Item = Other> + 'a {
    let left = index.seen.volumes.iter().flatten().filter(|volume| {
        volume.name.contains(".after-revert-")
            && !volume.open
            && volume.tags_with("xl-snapshot-revert:").next().is_some()
    });
    left.map(|volume| {
        let path = volumes::device(&volume.group, &volume.name);
        let why = "a revert that was interrupted, or still runs, created it; nothing uses it yet";
        other(OtherKind::Disk, &path, why.to_owned())
    })
}

/// Files that snapshots or reverts created, without a known use.
fn files(index: &Index<'_>) -> Vec<Other> {
    let files = index.seen.files.keys();
    let looked_at: BTreeSet<&Path> = files.map(|(path, _)| path.as_path()).collect();
    let strays: BTreeSet<&Path> = index.seen.strays.iter().map(PathBuf::as_path).collect();
    let mut found = Vec::new();
    let mut told = BTreeSet::new();
    for known in &index.known {
        let runs = index
            .seen
            .domains
            .iter()
            .any(|domain| domain.domid.is_some() && domain.uuid == known.record.domain.uuid);
        for disk in &known.record.disks {
            let Some(NewFile { path: new, role }) = disk.snapshot.kind().new_file() else {
                continue;
            };
            told.insert(new);
            if role == Role::Copy {
                continue;
            }
            if strays.contains(new) && !looked_at.contains(new) {
                let name = &known.record.name;
                let why = match runs {
                    true => format!("what {} wrote after {name}, before a revert", disk.vdev),
                    false => {
                        format!(
                            "{} continued in it after {name}; the domain does not run",
                            disk.vdev
                        )
                    }
                };
                let mut other = of_record(OtherKind::Kept, new, known.record, why);
                (other.name, other.id, other.created) = (None, None, None);
                found.push(other);
            }
        }
    }
    for path in strays {
        if looked_at.contains(path) || told.contains(path) {
            continue;
        }
        let kept = path.to_string_lossy().contains(KEPT);
        found.push(match kept {
            true => other(OtherKind::Kept, path, "what a disk held before a revert"),
            false => other(
                OtherKind::Stray,
                path,
                "its name is one of a snapshot's file, and no snapshot and no domain that runs names it",
            ),
        });
    }
    found
}
