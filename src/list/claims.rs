//! Which snapshot the content of one disk descends from. Pure.
//!
//! Bases show it: the frozen backing file of an overlay, the parent of a VHD, the origin of a thin volume.
//! Internal snapshots of a qcow2 file, reflink copies and thick volumes do not.

use std::path::Path;

use jiff::Timestamp;

use super::index::Index;
use super::inventory::{CurrentDisk, FileEntry, FileKind, NOW};
use crate::disk::chain::MAX_LENGTH;
use crate::disk::kind::Content;
use crate::record::{DiskRecord, ParentSource};
use crate::tool::volumes::Volume;

/// The descent according to one disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    /// It descends from this snapshot.
    Of(usize, ParentSource),
    /// It descends from none that exists here.
    None,
    /// It does not show it.
    Silent,
}

/// The query of a disk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Query {
    /// Only earlier snapshots count.
    pub(super) before: Timestamp,
    /// The snapshot whose disk it is; `None` for the current contents of the disk.
    pub(super) me: Option<usize>,
}

pub(super) const PRESENT: Query = Query { before: NOW, me: None };

impl<'a> Index<'a> {
    pub(super) fn latest(&self, of: &[usize], query: Query) -> Option<usize> {
        let created = |number: &usize| self.known[*number].record.created;
        let counts = |number: &&usize| Some(**number) != query.me && created(number) < query.before;
        of.iter().filter(counts).max_by_key(|number| created(number)).copied()
    }

    /// The claim of a disk of a snapshot.
    pub(super) fn claim_of(&self, number: usize, disk: &DiskRecord, query: Query) -> Claim {
        if let Content::Volume(_) = disk.snapshot.kind().content() {
            let origin = self.volume(number, &disk.vdev).and_then(|v| self.origin(v));
            return origin.map_or(Claim::Silent, |origin| self.claim_of_volume(origin, query));
        }
        self.claim(&disk.path, FileKind::of_record(disk), query)
    }

    fn origin(&self, volume: &Volume) -> Option<&'a Volume> {
        let mut volumes = self.seen.volumes.as_ref().ok()?.iter();
        volumes.find(|v| v.group == volume.group && v.name == volume.origin)
    }

    /// The claim of a volume. Each revert creates a thin volume again: until then, its snapshots follow each
    /// other.
    fn claim_of_volume(&self, volume: &Volume, query: Query) -> Claim {
        let Ok(volumes) = &self.seen.volumes else { return Claim::Silent };
        let of_volume = |(_, at): &(&(usize, &str), &usize)| {
            let snapshot = &volumes[**at];
            snapshot.group == volume.group && snapshot.origin == volume.name
        };
        let siblings: Vec<usize> =
            self.tagged.iter().filter(of_volume).map(|((number, _), _)| *number).collect();
        match self.latest(&siblings, query) {
            Some(number) if volume.is_thin() => return Claim::Of(number, ParentSource::Disks),
            Some(_) => return Claim::Silent,
            None => {}
        }
        if volume.origin.is_empty() {
            // Its snapshots may be gone.
            return if volume.is_thin() || siblings.is_empty() {
                Claim::None
            } else {
                Claim::Silent
            };
        }
        let origin = self.origin(volume);
        let made_of = |at: usize| origin.is_some_and(|origin| volumes[at] == *origin);
        let mut all = self.tagged.iter();
        match all.find(|(_, at)| made_of(**at)) {
            Some(((number, _), _)) => Claim::Of(*number, ParentSource::Disks),
            None => Claim::Silent,
        }
    }

    /// The claim of a file or device.
    pub(super) fn claim(&self, path: &Path, kind: FileKind, query: Query) -> Claim {
        let Some(file) = self.file(path, kind) else { return Claim::Silent };
        if let Some(device) = file.device {
            let mut volumes = self.seen.volumes.iter().flatten();
            return match volumes.find(|volume| volume.has_device(device)) {
                Some(volume) => self.claim_of_volume(volume, query),
                None => Claim::Silent,
            };
        }
        if kind == FileKind::TapVhd {
            return self.claim_of_vhd(file, query);
        }
        let Ok(facts) = &file.facts else { return Claim::Silent };
        let Ok(own) = self.own(file) else { return Claim::Silent };
        if query.me.is_none() {
            // The domain was started from it: it writes to a frozen file.
            if let Some(number) =
                self.frozen.get(&facts.id()).and_then(|all| self.latest(all, query))
            {
                return Claim::Of(number, ParentSource::Disks);
            }
            if let Some(number) = self.by_mark(file, &own) {
                return Claim::Of(number, ParentSource::Mark);
            }
        }
        if self.latest(&own, query).is_some() {
            return Claim::Silent;
        }
        self.claim_of_below(file, query)
    }

    /// The internal snapshots of a file, or its reflink copies.
    fn own(&self, file: &FileEntry) -> Result<Vec<usize>, ()> {
        let mut own = Vec::new();
        for entry in file.inside.as_ref().map_err(drop)? {
            own.extend(self.of_entry(entry));
        }
        let copied = file.facts.as_ref().ok().and_then(|facts| self.copied.get(&facts.id()));
        own.extend(copied.into_iter().flatten());
        Ok(own)
    }

    /// The snapshot that the mark on a file names, if it is plausible: the file has the snapshot, or is a copy
    /// without snapshots; and no snapshot of the file was taken since.
    fn by_mark(&self, file: &FileEntry, own: &[usize]) -> Option<usize> {
        let mark = file.mark?;
        let number = self.number(mark.id)?;
        let since =
            |other: &&usize| **other != number && self.known[**other].record.created > mark.at;
        let has = own.contains(&number) || own.is_empty();
        (has && own.iter().find(since).is_none()).then_some(number)
    }

    /// The claim of a file's chain: the nearest frozen file.
    fn claim_of_below(&self, file: &FileEntry, query: Query) -> Claim {
        let mut link = &file.link;
        for _ in 0..MAX_LENGTH {
            let Ok(this) = link else { return Claim::Silent };
            let (path, format) = match this.below() {
                Ok(Some(below)) => below,
                Ok(None) => return Claim::None,
                Err(_) => return Claim::Silent,
            };
            let Some(below) = self.file(&path, FileKind::of_format(Some(format))) else {
                return Claim::Silent;
            };
            let Ok(id) = below.link.as_ref().map(|link| link.id) else { return Claim::Silent };
            if let Some(number) = self.frozen.get(&id).and_then(|all| self.latest(all, query)) {
                return Claim::Of(number, ParentSource::Disks);
            }
            // One of its internal snapshots may come first.
            match self.own(below) {
                Ok(own) if self.latest(&own, query).is_none() => {}
                _ => return Claim::Silent,
            }
            link = &below.link;
        }
        Claim::Silent
    }

    /// A VHD identifies its parent by a UUID, whatever its path.
    fn claim_of_vhd(&self, file: &FileEntry, query: Query) -> Claim {
        let Some(mut vhd) = file.vhd else { return Claim::Silent };
        let itself = || self.vhds.get(&vhd.facts.uuid).and_then(|all| self.latest(all, query));
        if let (None, Some(number)) = (&query.me, itself()) {
            return Claim::Of(number, ParentSource::Disks);
        }
        for _ in 0..MAX_LENGTH {
            if !vhd.facts.differencing {
                return Claim::None;
            }
            let Some(parent) = vhd.parent else { return Claim::Silent };
            if let Some(number) = self.vhds.get(&parent).and_then(|all| self.latest(all, query)) {
                return Claim::Of(number, ParentSource::Disks);
            }
            let mut all = self.seen.files.values().filter_map(|file| file.vhd);
            match all.find(|other| other.facts.uuid == parent) {
                Some(below) => vhd = below,
                None => return Claim::Silent,
            }
        }
        Claim::Silent
    }
}

impl Index<'_> {
    /// Whether no part of a disk belongs, or could belong, to an earlier snapshot.
    pub(super) fn stands_alone(&self, disk: &CurrentDisk) -> bool {
        self.file(&disk.path, disk.kind).is_some_and(|file| {
            let nothing_inside = file.inside.as_ref().is_ok_and(Vec::is_empty);
            let nothing_below = match disk.kind {
                FileKind::TapVhd => file.vhd.is_some_and(|vhd| !vhd.facts.differencing),
                FileKind::Image(_) => {
                    file.device.is_some() || file.link.as_ref().is_ok_and(|l| l.below() == Ok(None))
                }
            };
            nothing_inside && nothing_below && file.mark.is_none()
        })
    }
}
