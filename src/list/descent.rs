//! Which snapshot descends from which, and which one a domain continues from. Pure.
//!
//! Each disk contributes. Bases show the descent: the frozen backing file of an overlay, the parent of a VHD,
//! the origin of a thin volume. Internal snapshots of a qcow2 file, reflink copies and thick volumes do not
//! show it: for those we use the mark on the disk's file, as it was when the snapshot was taken (`parent` in
//! its record), or else the order of dates, and say so.

use std::collections::HashMap;

use jiff::Timestamp;
use uuid::Uuid;

use super::report::{Apart, Current, Told};
use super::seen::{DiskNow, FileSeen, Kind, Known, NOW, Running, Seen, is_partial};
use crate::disk::chain::{FileId, MAX_LENGTH};
use crate::disk::kind::{Content, Frozen, Reader};
use crate::disk::lvm;
use crate::memory::is_deleting;
use crate::memory::peek::Peek;
use crate::names::same_vdev;
use crate::record::{DiskRecord, Parent, QcowSnapshot, Record, ToldBy};
use crate::tool::volumes::Volume;

/// Indexes of the observations.
pub(super) struct World<'a> {
    pub(super) seen: &'a Seen,
    /// The snapshots, one for each ID.
    pub(super) known: Vec<Known<'a>>,
    by_id: HashMap<Uuid, usize>,
    /// Snapshots whose content is in a frozen file, by that file.
    frozen: HashMap<FileId, Vec<usize>>,
    /// The same for VHDs that tapdisk serves.
    vhds: HashMap<[u8; 16], Vec<usize>>,
    /// Internal snapshots, by their proof.
    internal: HashMap<(&'a str, &'a str, Timestamp), Vec<usize>>,
    /// Reflink copies, by the file that was copied.
    copied: HashMap<FileId, Vec<usize>>,
    /// Snapshots of volumes: the index of the volume, by snapshot and disk.
    tagged: HashMap<(usize, &'a str), usize>,
    /// The names of domains, by their UUIDs.
    names: HashMap<Uuid, &'a str>,
}

/// The descent according to one disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
    /// It descends from this snapshot.
    Of(usize, ToldBy),
    /// It descends from none that exists here.
    None,
    /// It does not show it.
    Silent,
}

/// The descent according to all disks.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Of(usize, ToldBy),
    None,
    /// They disagree.
    Differ(Vec<(String, Option<usize>)>),
    Unknown,
}

/// The query of a disk.
#[derive(Debug, Clone, Copy)]
struct Asked {
    /// Only earlier snapshots count.
    before: Timestamp,
    /// The snapshot whose disk it is; `None` for the current contents of the disk.
    me: Option<usize>,
}

const PRESENT: Asked = Asked { before: NOW, me: None };

impl<'a> World<'a> {
    pub(super) fn new(seen: &'a Seen) -> World<'a> {
        let mut world = World {
            seen,
            known: Vec::new(),
            by_id: HashMap::new(),
            frozen: HashMap::new(),
            vhds: HashMap::new(),
            internal: HashMap::new(),
            copied: HashMap::new(),
            tagged: HashMap::new(),
            names: HashMap::new(),
        };
        let tags = world.tags();
        let mut images: Vec<_> = seen.images.iter().collect();
        images.sort_by_key(|image| image.rank());
        for image in images {
            let Ok(Peek::Snapshot { record, extent, .. }) = &image.peek else { continue };
            if !is_partial(&image.path)
                && !is_deleting(&image.path)
                && !world.by_id.contains_key(&record.id)
            {
                world.by_id.insert(record.id, world.known.len());
                world.known.push(Known { record, image, extent });
            }
        }
        world.known.sort_by_key(|known| known.record.created);
        for number in 0..world.known.len() {
            let record = world.known[number].record;
            world.by_id.insert(record.id, number);
            world.names.insert(record.domain.uuid, &record.domain.name);
            for disk in &record.disks {
                world.index(number, disk, tags.get(lvm::tag(record.id, &disk.vdev).as_str()));
            }
        }
        for domain in &seen.domains {
            world.names.insert(domain.uuid, &domain.name);
        }
        world
    }

    /// The domain of a snapshot, by its current name, or its name when its youngest snapshot was taken. The
    /// UUID identifies a renamed domain; the name, one that was restarted from a configuration without a
    /// UUID.
    pub(super) fn whose(&self, record: &'a Record) -> &'a str {
        let name = self.names.get(&record.domain.uuid).filter(|_| !record.domain.uuid.is_nil());
        name.copied().unwrap_or(&record.domain.name)
    }

    /// The volumes that have one of our tags.
    fn tags(&self) -> HashMap<&'a str, usize> {
        let volumes = self.seen.volumes.iter().flatten().enumerate();
        let tags = volumes
            .flat_map(|(at, volume)| volume.tags_with("xl-snapshot:").map(move |tag| (tag, at)));
        tags.collect()
    }

    fn index(&mut self, number: usize, disk: &'a DiskRecord, volume: Option<&usize>) {
        let seen = self.seen;
        let file = |path, kind| seen.files.get(&(path, kind));
        let facts = |path, kind| file(path, kind).and_then(|seen| seen.facts.as_ref().ok());
        let own = || facts(disk.path.clone(), Kind::of_record(disk));
        match disk.snapshot.kind().content() {
            Content::Inside(Some(QcowSnapshot { id, name, date })) => {
                self.internal.entry((id, name, *date)).or_default().push(number);
            }
            Content::Frozen(Frozen { copy, reader, proof: Some(proof) }) => {
                let path = copy.unwrap_or(&disk.path);
                let frozen = file(path.to_owned(), Kind::of_reader(reader, disk.format));
                let facts = frozen.and_then(|seen| seen.facts.as_ref().ok());
                if let Some(facts) = facts.filter(|facts| facts.has_inode_of(proof)) {
                    match (reader, frozen.and_then(|seen| seen.vhd)) {
                        (Reader::TapVhd, Some(vhd)) => {
                            self.vhds.entry(vhd.facts.uuid).or_default().push(number);
                        }
                        (Reader::TapVhd, None) => {}
                        (Reader::Qemu | Reader::Raw, _) => {
                            self.frozen.entry(facts.id()).or_default().push(number);
                        }
                    }
                }
                if let Some(facts) = own().filter(|_| copy.is_some()) {
                    self.copied.entry(facts.id()).or_default().push(number);
                }
            }
            Content::Volume(_) => {
                if let Some(volume) = volume {
                    self.tagged.insert((number, &disk.vdev), *volume);
                }
            }
            // A record that was never completed.
            Content::Inside(None) | Content::Frozen(Frozen { proof: None, .. }) => {}
            Content::Nowhere => {}
        }
    }

    pub(super) fn file(&self, path: &std::path::Path, kind: Kind) -> Option<&'a FileSeen> {
        self.seen.files.get(&(path.to_owned(), kind))
    }

    /// The volume that keeps a disk of a snapshot.
    pub(super) fn volume(&self, number: usize, vdev: &str) -> Option<&'a Volume> {
        let at = self.tagged.get(&(number, vdev))?;
        self.seen.volumes.as_ref().ok()?.get(*at)
    }

    /// The snapshots with this frozen file.
    pub(super) fn frozen_in(&self, file: &FileSeen) -> Vec<usize> {
        let by_id = file.link.as_ref().ok().and_then(|link| self.frozen.get(&link.id));
        let by_uuid = file.vhd.and_then(|vhd| self.vhds.get(&vhd.facts.uuid));
        by_id.into_iter().chain(by_uuid).flatten().copied().collect()
    }

    /// The snapshot that an entry in a qcow2 file's list belongs to.
    pub(super) fn of_entry(&self, entry: &QcowSnapshot) -> Vec<usize> {
        let key = (entry.id.as_str(), entry.name.as_str(), entry.date);
        self.internal.get(&key).cloned().unwrap_or_default()
    }

    /// The snapshot with an ID.
    pub(super) fn number(&self, id: Uuid) -> Option<usize> {
        self.by_id.get(&id).copied()
    }

    /// The parent of a snapshot, and the source.
    pub(super) fn parent(&self, number: usize) -> (Option<Uuid>, Told) {
        let record = self.known[number].record;
        let asked = Asked { before: record.created, me: Some(number) };
        let claims: Vec<_> = record
            .disks
            .iter()
            .filter(|disk| !disk.snapshot.is_left_out())
            .map(|disk| (disk.vdev.as_str(), self.claim_of(number, disk, asked)))
            .collect();
        let verdict = self.verdict(&claims);
        let noted = record.parent.map(|parent| match parent {
            Parent::None => None,
            Parent::Snapshot(id) => Some(id),
        });
        let noted_by = match record.parent_by {
            Some(ToldBy::Mark) => Told::Mark,
            Some(ToldBy::Disks) | None => Told::Record,
        };
        let id = |number: usize| Some(self.known[number].record.id);
        match (verdict, noted) {
            (Verdict::Of(shown, by), noted) => {
                // A younger one that does not contain the disks that show the other.
                let younger = noted.flatten().and_then(|id| self.number(id)).filter(|noted| {
                    *noted != shown
                        && self.known[*noted].record.created < record.created
                        && claims.iter().all(|(vdev, claim)| {
                            matches!(claim, Claim::Silent) || self.leaves_out(*noted, vdev)
                        })
                });
                match younger {
                    Some(noted) => (id(noted), noted_by),
                    None => (id(shown), told(by)),
                }
            }
            (Verdict::Differ(_), _) => (None, Told::Differ),
            (Verdict::None | Verdict::Unknown, Some(Some(noted))) => match self.number(noted) {
                Some(at) if self.known[at].record.created >= record.created => {
                    (None, Told::Unknown)
                }
                Some(_) => (Some(noted), noted_by),
                None => (Some(noted), Told::Gone),
            },
            (Verdict::None, _) | (Verdict::Unknown, Some(None)) => (None, Told::None),
            (Verdict::Unknown, None) => match self.latest_of(self.whose(record), asked) {
                Some(number) => (id(number), Told::Dates),
                None => (None, Told::None),
            },
        }
    }

    /// The snapshot that a domain continues from.
    pub(super) fn current(&self, domain: &Running) -> Current {
        let known = |number: usize| self.known[number].record;
        let verdict = self.verdict_now(&domain.disks);
        let mut current = Current {
            name: domain.name.clone(),
            uuid: domain.uuid,
            domid: domain.domid,
            id: None,
            told: Told::None,
            clone_of: None,
            mixed: Vec::new(),
        };
        match verdict {
            Verdict::Of(number, by) => {
                current.told = told(by);
                match self.whose(known(number)) == domain.name {
                    true => current.id = Some(known(number).id),
                    false => current.clone_of = Some(known(number).id),
                }
            }
            Verdict::None => {}
            Verdict::Differ(disks) => {
                current.told = Told::Differ;
                current.mixed = disks
                    .into_iter()
                    .map(|(vdev, number)| Apart { vdev, id: number.map(|number| known(number).id) })
                    .collect();
            }
            Verdict::Unknown => {
                if let Some(number) = self.latest_of(&domain.name, PRESENT) {
                    current.id = Some(known(number).id);
                    current.told = Told::Dates;
                }
            }
        }
        current
    }

    fn verdict_now(&self, disks: &[DiskNow]) -> Verdict {
        let claims: Vec<_> = disks
            .iter()
            .map(|disk| (disk.vdev.as_str(), self.claim(&disk.path, disk.kind, PRESENT)))
            .collect();
        self.verdict(&claims)
    }

    /// The youngest snapshot of a domain.
    fn latest_of(&self, whose: &str, asked: Asked) -> Option<usize> {
        let all: Vec<_> = (0..self.known.len())
            .filter(|at| self.whose(self.known[*at].record) == whose)
            .collect();
        self.latest(&all, asked)
    }

    fn latest(&self, of: &[usize], asked: Asked) -> Option<usize> {
        let created = |number: &usize| self.known[*number].record.created;
        let counts = |number: &&usize| Some(**number) != asked.me && created(number) < asked.before;
        of.iter().filter(counts).max_by_key(|number| created(number)).copied()
    }

    /// Combines the claims of all disks. If a snapshot does not contain a disk, that disk does not
    /// contradict it.
    fn verdict(&self, claims: &[(&str, Claim)]) -> Verdict {
        let mut parents: Vec<(usize, ToldBy)> = Vec::new();
        for (_, claim) in claims {
            if let Claim::Of(number, by) = claim {
                match parents.iter_mut().find(|(other, _)| other == number) {
                    // A base is stronger evidence.
                    Some(known) if *by == ToldBy::Disks => known.1 = *by,
                    Some(_) => {}
                    None => parents.push((*number, *by)),
                }
            }
        }
        let agrees = |(vdev, claim): &(&str, Claim), number: usize| match claim {
            Claim::Silent => true,
            Claim::Of(other, _) if *other == number => true,
            Claim::Of(..) | Claim::None => self.leaves_out(number, vdev),
        };
        let all_agree =
            |(number, _): &&(usize, ToldBy)| claims.iter().all(|claim| agrees(claim, *number));
        if let Some((number, by)) = parents.iter().find(all_agree) {
            return Verdict::Of(*number, *by);
        }
        if !parents.is_empty() {
            let disks = claims.iter().filter_map(|(vdev, claim)| match claim {
                Claim::Of(number, _) => Some(((*vdev).to_owned(), Some(*number))),
                Claim::None => Some(((*vdev).to_owned(), None)),
                Claim::Silent => None,
            });
            return Verdict::Differ(disks.collect());
        }
        match claims.iter().all(|(_, claim)| *claim == Claim::None) && !claims.is_empty() {
            true => Verdict::None,
            false => Verdict::Unknown,
        }
    }

    fn leaves_out(&self, number: usize, vdev: &str) -> bool {
        let disk = self.known[number].record.disks.iter().find(|disk| same_vdev(&disk.vdev, vdev));
        disk.is_none_or(|disk| disk.snapshot.is_left_out())
    }

    /// The claim of a disk of a snapshot.
    fn claim_of(&self, number: usize, disk: &DiskRecord, asked: Asked) -> Claim {
        if let Content::Volume(_) = disk.snapshot.kind().content() {
            let origin = self.volume(number, &disk.vdev).and_then(|v| self.origin(v));
            return origin.map_or(Claim::Silent, |origin| self.claim_of_volume(origin, asked));
        }
        self.claim(&disk.path, Kind::of_record(disk), asked)
    }

    fn origin(&self, volume: &Volume) -> Option<&'a Volume> {
        let mut volumes = self.seen.volumes.as_ref().ok()?.iter();
        volumes.find(|v| v.group == volume.group && v.name == volume.origin)
    }

    /// The claim of a volume. Each revert creates a thin volume again: until then, its snapshots follow each
    /// other.
    fn claim_of_volume(&self, volume: &Volume, asked: Asked) -> Claim {
        let Ok(volumes) = &self.seen.volumes else { return Claim::Silent };
        let of_volume = |(_, at): &(&(usize, &str), &usize)| {
            let snapshot = &volumes[**at];
            snapshot.group == volume.group && snapshot.origin == volume.name
        };
        let siblings: Vec<usize> =
            self.tagged.iter().filter(of_volume).map(|((number, _), _)| *number).collect();
        match self.latest(&siblings, asked) {
            Some(number) if volume.is_thin() => return Claim::Of(number, ToldBy::Disks),
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
            Some(((number, _), _)) => Claim::Of(*number, ToldBy::Disks),
            None => Claim::Silent,
        }
    }

    /// The claim of a file or device.
    fn claim(&self, path: &std::path::Path, kind: Kind, asked: Asked) -> Claim {
        let Some(file) = self.file(path, kind) else { return Claim::Silent };
        if let Some(device) = file.device {
            let mut volumes = self.seen.volumes.iter().flatten();
            return match volumes.find(|volume| volume.has_device(device)) {
                Some(volume) => self.claim_of_volume(volume, asked),
                None => Claim::Silent,
            };
        }
        if kind == Kind::TapVhd {
            return self.claim_of_vhd(file, asked);
        }
        let Ok(facts) = &file.facts else { return Claim::Silent };
        let Ok(own) = self.own(file) else { return Claim::Silent };
        if asked.me.is_none() {
            // The domain was started from it: it writes to a frozen file.
            if let Some(number) =
                self.frozen.get(&facts.id()).and_then(|all| self.latest(all, asked))
            {
                return Claim::Of(number, ToldBy::Disks);
            }
            if let Some(number) = self.by_mark(file, &own) {
                return Claim::Of(number, ToldBy::Mark);
            }
        }
        if self.latest(&own, asked).is_some() {
            return Claim::Silent;
        }
        self.claim_of_below(file, asked)
    }

    /// The internal snapshots of a file, or its reflink copies.
    fn own(&self, file: &FileSeen) -> Result<Vec<usize>, ()> {
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
    fn by_mark(&self, file: &FileSeen, own: &[usize]) -> Option<usize> {
        let mark = file.mark?;
        let number = self.number(mark.id)?;
        let since =
            |other: &&usize| **other != number && self.known[**other].record.created > mark.at;
        let has = own.contains(&number) || own.is_empty();
        (has && own.iter().find(since).is_none()).then_some(number)
    }

    /// The claim of a file's chain: the nearest frozen file.
    fn claim_of_below(&self, file: &FileSeen, asked: Asked) -> Claim {
        let mut link = &file.link;
        for _ in 0..MAX_LENGTH {
            let Ok(this) = link else { return Claim::Silent };
            let (path, format) = match this.below() {
                Ok(Some(below)) => below,
                Ok(None) => return Claim::None,
                Err(_) => return Claim::Silent,
            };
            let Some(below) = self.file(&path, Kind::of_format(Some(format))) else {
                return Claim::Silent;
            };
            let Ok(id) = below.link.as_ref().map(|link| link.id) else { return Claim::Silent };
            if let Some(number) = self.frozen.get(&id).and_then(|all| self.latest(all, asked)) {
                return Claim::Of(number, ToldBy::Disks);
            }
            // One of its internal snapshots may come first.
            match self.own(below) {
                Ok(own) if self.latest(&own, asked).is_none() => {}
                _ => return Claim::Silent,
            }
            link = &below.link;
        }
        Claim::Silent
    }

    /// A VHD identifies its parent by a UUID, whatever its path.
    fn claim_of_vhd(&self, file: &FileSeen, asked: Asked) -> Claim {
        let Some(mut vhd) = file.vhd else { return Claim::Silent };
        let itself = || self.vhds.get(&vhd.facts.uuid).and_then(|all| self.latest(all, asked));
        if let (None, Some(number)) = (&asked.me, itself()) {
            return Claim::Of(number, ToldBy::Disks);
        }
        for _ in 0..MAX_LENGTH {
            if !vhd.facts.differencing {
                return Claim::None;
            }
            let Some(parent) = vhd.parent else { return Claim::Silent };
            if let Some(number) = self.vhds.get(&parent).and_then(|all| self.latest(all, asked)) {
                return Claim::Of(number, ToldBy::Disks);
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

fn told(by: ToldBy) -> Told {
    match by {
        ToldBy::Disks => Told::Disks,
        ToldBy::Mark => Told::Mark,
    }
}

/// The snapshot that the disks of the only domain in `seen` descend from, for the record of the next one.
/// `None` if it is unknown: dates alone are not recorded.
pub fn parent_of_now(seen: &Seen) -> Option<(Parent, ToldBy)> {
    let world = World::new(seen);
    let domain = seen.domains.first()?;
    match world.verdict_now(&domain.disks) {
        Verdict::Of(number, by) => Some((Parent::Snapshot(world.known[number].record.id), by)),
        // A base may belong to a snapshot that is elsewhere.
        Verdict::None if domain.disks.iter().all(|disk| world.stands_alone(disk)) => {
            Some((Parent::None, ToldBy::Disks))
        }
        Verdict::None | Verdict::Differ(_) | Verdict::Unknown => None,
    }
}

impl World<'_> {
    /// Whether no part of a disk belongs, or could belong, to an earlier snapshot.
    fn stands_alone(&self, disk: &DiskNow) -> bool {
        self.file(&disk.path, disk.kind).is_some_and(|file| {
            let nothing_inside = file.inside.as_ref().is_ok_and(Vec::is_empty);
            let nothing_below = match disk.kind {
                Kind::TapVhd => file.vhd.is_some_and(|vhd| !vhd.facts.differencing),
                Kind::Image(_) => {
                    file.device.is_some() || file.link.as_ref().is_ok_and(|l| l.below() == Ok(None))
                }
            };
            nothing_inside && nothing_below && file.mark.is_none()
        })
    }
}
