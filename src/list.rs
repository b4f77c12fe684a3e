//! `list`: which snapshots there are, which descends from which, and whether they are still good. Pure.
//!
//! There is no store. All of it is derived anew from the records of the images and from what the disks say:
//! the lists of snapshots in qcow2 files, what images rest on, LVM's tags and origins, the parents of VHDs.

mod descent;
pub mod mark;
mod others;
mod report;
mod state;
pub mod table;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use uuid::Uuid;

pub use self::descent::parent_of_now;
pub use self::report::{
    Apart, Current, DiskState, Listing, Other, OtherKind, Snapshot, State, Told, Tree, metrics,
};
use crate::disk::FileFacts;
use crate::disk::chain::{FileId, Link};
use crate::domain::{Disk, Format};
use crate::memory::peek::{Extent, Peek};
use crate::record::{DiskRecord, Kept, QcowSnapshot, Record};
use crate::tool::vhd_util;
use crate::tool::volumes::Volume;
use descent::World;
use mark::Mark;

/// What was seen of the host.
#[derive(Debug)]
pub struct Seen {
    /// The files in the directories of snapshots.
    pub images: Vec<ImageSeen>,
    /// The files that records and domains name as disks, and those they rest on.
    pub files: Files,
    /// The host's logical volumes; looked at only if a disk may be one.
    pub volumes: Result<Vec<Volume>, String>,
    /// The domains that run, with their disks.
    pub domains: Vec<Running>,
    /// Files beside the disks that have a name such as this program gives.
    pub strays: Vec<PathBuf>,
    /// What could not be looked at.
    pub unseen: Vec<String>,
}

/// A file in a directory of snapshots.
#[derive(Debug)]
pub struct ImageSeen {
    /// Its path.
    pub path: PathBuf,
    /// Which file it is.
    pub id: FileId,
    /// What it takes on its file system, in bytes.
    pub allocated: u64,
    /// What it is; the error if it cannot be read, or is no file.
    pub peek: Result<Peek, String>,
}

/// How a file is read as a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// As an image of a stated format. The format is QEMU's affair: no byte of a raw one is looked at.
    Image(ImageFormat),
    /// As a VHD that tapdisk serves.
    TapVhd,
}

/// The formats that differ here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ImageFormat {
    /// It can name a file below it, and has snapshots inside.
    Qcow2,
    /// Any other, or one that is not known.
    Other,
}

impl Kind {
    /// That of a disk in a record.
    pub fn of_record(disk: &DiskRecord) -> Kind {
        match disk.snapshot {
            Kept::Vhd { .. } => Kind::TapVhd,
            _ => Kind::of_format(disk.format),
        }
    }

    /// That of a disk of a domain.
    pub fn of_disk(disk: &Disk) -> Kind {
        if disk.is_tap_vhd() { Kind::TapVhd } else { Kind::of_format(disk.format) }
    }

    /// That of a stated format.
    pub fn of_format(format: Option<Format>) -> Kind {
        Kind::Image(match format {
            Some(Format::Qcow2) => ImageFormat::Qcow2,
            _ => ImageFormat::Other,
        })
    }
}

/// Files by their paths, and how they are read.
pub type Files = BTreeMap<(PathBuf, Kind), FileSeen>;

/// A file, or a device, that is a disk.
#[derive(Debug, Clone)]
pub struct FileSeen {
    /// What is known of it; the error if it cannot be looked at, or is no file.
    pub facts: Result<FileFacts, String>,
    /// What it takes on its file system, in bytes.
    pub allocated: u64,
    /// The number of the device, major and minor, if it is one.
    pub device: Option<(u64, u64)>,
    /// The file and what it names below; the error if that cannot be read.
    pub link: Result<Link, String>,
    /// The snapshots inside of it; the error if they cannot be read.
    pub inside: Result<Vec<QcowSnapshot>, String>,
    /// The mark on it.
    pub mark: Option<Mark>,
    /// What is known of it as a VHD, if it is one.
    pub vhd: Option<VhdSeen>,
}

/// What tells a VHD and its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VhdSeen {
    /// From its footer.
    pub facts: vhd_util::Facts,
    /// The UUID of its parent, if it has one.
    pub parent: Option<[u8; 16]>,
}

/// A domain that runs, or is looked at for a snapshot.
#[derive(Debug, Clone)]
pub struct Running {
    /// Its name.
    pub name: String,
    /// Its UUID; nil if it has none of its own.
    pub uuid: Uuid,
    /// Its number; `None` if it does not run.
    pub domid: Option<u32>,
    /// Its disks that can be in a snapshot.
    pub disks: Vec<DiskNow>,
}

/// A disk of a domain as it is now.
#[derive(Debug, Clone)]
pub struct DiskNow {
    /// The guest's name of it.
    pub vdev: String,
    /// Its file or device.
    pub path: PathBuf,
    /// How that is read.
    pub kind: Kind,
}

impl DiskNow {
    /// The disks of a configuration that can be in a snapshot.
    pub fn of(disks: &[Disk]) -> Vec<DiskNow> {
        let in_snapshots = disks.iter().filter(|disk| disk.writable && !disk.cdrom);
        in_snapshots
            .map(|disk| DiskNow {
                vdev: disk.vdev.clone(),
                path: disk.file().to_owned(),
                kind: Kind::of_disk(disk),
            })
            .collect()
    }
}

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// The domains, by name or UUID; all if empty.
    pub domains: Vec<String>,
    /// Whether that is shown, too, which is no snapshot.
    pub all: bool,
}

impl Asked {
    /// Whether a domain is asked for.
    fn wants(&self, name: &str, uuid: Uuid, running: &[Running]) -> bool {
        let meant = |asked: &String| {
            *asked == name
                || asked.parse() == Ok(uuid)
                // It may have had another name when the snapshot was taken.
                || running.iter().any(|domain| {
                    !uuid.is_nil()
                        && domain.uuid == uuid
                        && (domain.name == *asked
                            || domain.domid.is_some_and(|domid| domid.to_string() == *asked))
                })
        };
        self.domains.is_empty() || self.domains.iter().any(meant)
    }
}

/// One snapshot, and the file it is in.
#[derive(Debug, Clone, Copy)]
struct Known<'a> {
    record: &'a Record,
    image: &'a ImageSeen,
    extent: &'a Extent,
}

/// Derives the list.
pub fn list(seen: &Seen, asked: &Asked) -> Listing {
    let world = World::new(seen);
    let mut snapshots = Vec::new();
    for (number, known) in world.known.iter().enumerate() {
        let Record { domain, .. } = known.record;
        if asked.wants(&domain.name, domain.uuid, &seen.domains) {
            snapshots.push(snapshot(&world, number));
        }
    }
    let mut domains: Vec<_> = seen
        .domains
        .iter()
        .filter(|domain| asked.wants(&domain.name, domain.uuid, &seen.domains))
        .map(|domain| world.current(domain))
        .collect();
    domains.sort_by(|one, other| one.name.cmp(&other.name));
    for current in &domains {
        if let Some(id) = current.id {
            let mut all = snapshots.iter_mut();
            if let Some(snapshot) = all.find(|snapshot| snapshot.id == id) {
                snapshot.current = true;
            }
        }
    }
    snapshots.sort_by(|one, other| {
        let key = |snapshot: &Snapshot| (snapshot.group.clone(), snapshot.created, snapshot.id);
        key(one).cmp(&key(other))
    });
    let others = others::others(&world, asked);
    let hidden = others.iter().filter(|other| !asked.all && !other.kind.is_urgent()).count();
    let others = others.into_iter().filter(|other| asked.all || other.kind.is_urgent()).collect();
    Listing { snapshots, domains, others, hidden, unseen: seen.unseen.clone() }
}

fn snapshot(world: &World<'_>, number: usize) -> Snapshot {
    let Known { record, image, .. } = world.known[number];
    let (state, why, disks) = state::of(world, number);
    let (parent, parent_by) = world.parent(number);
    Snapshot {
        group: world.whose(record).to_owned(),
        domain: record.domain.name.clone(),
        uuid: record.domain.uuid,
        name: record.name.to_string(),
        id: record.id,
        created: record.created,
        description: record.description.clone(),
        image: image.path.clone(),
        memory: record.disks_only.is_none(),
        disks_only: record.disks_only,
        size_on_disk: image.allocated,
        state,
        why,
        current: false,
        parent,
        parent_by,
        disks,
    }
}

/// The file of a snapshot by `DOMAIN/NAME`, among those of a directory. A domain that was renamed has the
/// UUID of one of `running`.
///
/// # Errors
///
/// A sentence, if there is none or there are several.
pub fn by_name<'a>(
    images: &'a [ImageSeen],
    directory: &Path,
    (domain, running): (&str, &[Running]),
    name: &str,
) -> Result<&'a Path, String> {
    let asked = Asked { domains: vec![domain.to_owned()], all: false };
    let mut found: Vec<(&Record, &ImageSeen)> = Vec::new();
    for image in images {
        if let Ok(Peek::Snapshot { record, .. }) = &image.peek
            && asked.wants(&record.domain.name, record.domain.uuid, running)
            && record.name.as_str() == name
            && !is_partial(&image.path)
        {
            found.push((record, image));
        }
    }
    let Some((first, _)) = found.first() else {
        return Err(format!("{} has no snapshot {name} of {domain}", directory.display()));
    };
    if found.iter().any(|(record, _)| record.id != first.id) {
        let paths = found.iter().map(|(_, image)| image.path.display().to_string());
        return Err(format!(
            "there are several snapshots {name} of {domain}: {}",
            paths.collect::<Vec<_>>().join(", ")
        ));
    }
    found.sort_by_key(|(_, image)| image.rank());
    Ok(&found[0].1.path)
}

impl ImageSeen {
    /// Which of several images of one snapshot comes first: one that is whole, and where create puts it.
    fn rank(&self) -> (bool, bool, &Path) {
        let Ok(Peek::Snapshot { record, extent, .. }) = &self.peek else {
            return (true, true, &self.path);
        };
        let usual = Path::new(&record.domain.name).join(record.name.as_str());
        let mut named = self.path.clone();
        for _ in 0..2 {
            let ending = named.extension().is_some_and(|e| e == "zst" || e == "xlsave");
            named = if ending { named.with_extension("") } else { named };
        }
        (!matches!(extent, Extent::Whole), !named.ends_with(usual), &self.path)
    }
}

fn is_partial(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "partial")
}

/// Until now; nothing is younger.
const NOW: Timestamp = Timestamp::MAX;

#[cfg(test)]
mod tests;
