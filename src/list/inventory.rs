//! Observations of the host, from which the list is derived.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use uuid::Uuid;

use super::mark::Mark;
use crate::disk::FileFacts;
use crate::disk::chain::{FileId, Link};
use crate::disk::kind::{Content, Frozen, Reader};
use crate::domain::{Disk, Format};
use crate::memory::peek::{Extent, Peek};
use crate::record::{DiskRecord, QcowSnapshot, Record};
use crate::tool::vhd_util;
use crate::tool::volumes::Volume;

/// Observations of the host.
#[derive(Debug)]
pub struct Inventory {
    /// The files in the directories of snapshots.
    pub images: Vec<ImageEntry>,
    /// The files that records and domains name as disks, and their bases.
    pub files: Files,
    /// The host's logical volumes; read only if a disk may be one.
    pub volumes: Result<Vec<Volume>, String>,
    /// The running domains, with their disks.
    pub domains: Vec<Running>,
    /// Files in the directories of the disks with names of this program's form.
    pub strays: Vec<PathBuf>,
    /// What could not be inspected.
    pub unseen: Vec<String>,
}

/// A file in a directory of snapshots.
#[derive(Debug)]
pub struct ImageEntry {
    pub path: PathBuf,
    pub id: FileId,
    pub length: u64,
    /// Its allocated size, in bytes.
    pub allocated: u64,
    /// How much of that it shares with other files, in bytes, if known.
    pub shared: Option<u64>,
    /// Its contents; the error if it cannot be read, or is no file.
    pub peek: Result<Peek, String>,
}

/// How a file is read as a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileKind {
    /// As an image with a stated format. A raw one is never read.
    Image(ImageFormat),
    /// As a VHD that tapdisk serves.
    TapVhd,
}

/// The formats that differ here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ImageFormat {
    /// It can have a backing file and internal snapshots.
    Qcow2,
    /// Any other, or an unknown one.
    Other,
}

impl FileKind {
    /// That of a disk in a record.
    pub fn of_record(disk: &DiskRecord) -> FileKind {
        match disk.snapshot.kind().content() {
            Content::Frozen(Frozen { copy: None, reader, .. }) => {
                FileKind::of_reader(reader, disk.format)
            }
            _ => FileKind::of_format(disk.format),
        }
    }

    /// That of a frozen file of a disk.
    pub fn of_reader(reader: Reader, format: Option<Format>) -> FileKind {
        match reader {
            Reader::TapVhd => FileKind::TapVhd,
            Reader::Qemu => FileKind::of_format(format),
            Reader::Raw => FileKind::Image(ImageFormat::Other),
        }
    }

    /// That of a disk of a domain.
    pub fn of_disk(disk: &Disk) -> FileKind {
        if disk.is_tap_vhd() { FileKind::TapVhd } else { FileKind::of_format(disk.format) }
    }

    /// That of a stated format.
    pub fn of_format(format: Option<Format>) -> FileKind {
        FileKind::Image(match format {
            Some(Format::Qcow2) => ImageFormat::Qcow2,
            _ => ImageFormat::Other,
        })
    }
}

/// Files by their paths, and how they are read.
pub type Files = BTreeMap<(PathBuf, FileKind), FileEntry>;

/// A file, or a device, that is a disk.
#[derive(Debug, Clone)]
pub struct FileEntry {
    /// Facts about it; the error if it cannot be read, or is no file.
    pub facts: Result<FileFacts, String>,
    /// Its allocated size, in bytes.
    pub allocated: u64,
    /// The device number, major and minor, if it is a device.
    pub device: Option<(u64, u64)>,
    /// The file and its backing file; the error if its header cannot be read.
    pub link: Result<Link, String>,
    /// Its internal snapshots; the error if they cannot be read.
    pub inside: Result<Vec<QcowSnapshot>, String>,
    pub mark: Option<Mark>,
    /// Facts about it as a VHD, if it is one.
    pub vhd: Option<VhdEntry>,
}

/// Identifies a VHD and its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VhdEntry {
    /// From its footer.
    pub facts: vhd_util::Facts,
    /// The UUID of its parent, if it has one.
    pub parent: Option<[u8; 16]>,
}

/// A domain that runs, or is inspected for a snapshot.
#[derive(Debug, Clone)]
pub struct Running {
    pub name: String,
    /// Its UUID; nil if it has none of its own.
    pub uuid: Uuid,
    /// Its number; `None` if it does not run.
    pub domid: Option<u32>,
    /// Its disks that can be in a snapshot.
    pub disks: Vec<CurrentDisk>,
}

/// The current disk of a domain.
#[derive(Debug, Clone)]
pub struct CurrentDisk {
    pub vdev: String,
    /// Its file or device.
    pub path: PathBuf,
    /// How that is read.
    pub kind: FileKind,
}

impl CurrentDisk {
    /// The disks of a configuration that can be in a snapshot.
    pub fn of(disks: &[Disk]) -> Vec<CurrentDisk> {
        let in_snapshots = disks.iter().filter(|disk| disk.writable && !disk.cdrom);
        in_snapshots
            .map(|disk| CurrentDisk {
                vdev: disk.vdev.clone(),
                path: disk.file().to_owned(),
                kind: FileKind::of_disk(disk),
            })
            .collect()
    }
}

/// The request.
#[derive(Debug, Clone, Default)]
pub struct ListRequest {
    /// By name or UUID; all if empty.
    pub domains: Vec<String>,
    /// Whether to show everything else, too.
    pub all: bool,
}

impl ListRequest {
    /// Whether the request includes a domain.
    pub(super) fn wants(&self, name: &str, uuid: Uuid, running: &[Running]) -> bool {
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

#[derive(Debug, Clone, Copy)]
pub(super) struct Known<'a> {
    pub(super) record: &'a Record,
    pub(super) image: &'a ImageEntry,
    pub(super) extent: &'a Extent,
}

impl ImageEntry {
    /// Orders several images of one snapshot: first a complete one, then one where `create` puts it.
    pub(super) fn rank(&self) -> (bool, bool, &Path) {
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

pub(super) fn is_partial(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "partial")
}

/// Until now; nothing is younger.
pub(super) const NOW: Timestamp = Timestamp::MAX;
