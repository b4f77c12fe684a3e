//! Which snapshot a frozen file, an internal snapshot or a volume belongs to. Pure.

use std::collections::HashMap;
use std::path::Path;

use jiff::Timestamp;
use uuid::Uuid;

use super::inventory::{FileEntry, FileKind, Inventory, Known, is_partial};
use crate::disk;
use crate::disk::chain::FileId;
use crate::disk::kind::{Content, Frozen, Reader};
use crate::memory::is_deleting;
use crate::memory::peek::Peek;
use crate::record::{DiskRecord, QcowSnapshot, Record};
use crate::tool::volumes::Volume;

/// Indexes of the observations.
pub(super) struct Index<'a> {
    pub(super) seen: &'a Inventory,
    /// The snapshots, one for each ID.
    pub(super) known: Vec<Known<'a>>,
    by_id: HashMap<Uuid, usize>,
    /// Snapshots whose content is in a frozen file, by that file.
    pub(super) frozen: HashMap<FileId, Vec<usize>>,
    /// The same for VHDs that tapdisk serves.
    pub(super) vhds: HashMap<[u8; 16], Vec<usize>>,
    /// Internal snapshots, by their proof.
    internal: HashMap<(&'a str, &'a str, Timestamp), Vec<usize>>,
    /// Reflink copies, by the file that was copied.
    pub(super) copied: HashMap<FileId, Vec<usize>>,
    /// Snapshots of volumes: the index of the volume, by snapshot and disk.
    pub(super) tagged: HashMap<(usize, &'a str), usize>,
    /// The names of domains, by their UUIDs.
    names: HashMap<Uuid, &'a str>,
}

impl<'a> Index<'a> {
    pub(super) fn new(seen: &'a Inventory) -> Index<'a> {
        let mut index = Index {
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
        let tags = index.tags();
        let mut images: Vec<_> = seen.images.iter().collect();
        images.sort_by_key(|image| image.rank());
        for image in images {
            let Ok(Peek::Snapshot { record, extent, .. }) = &image.peek else { continue };
            if !is_partial(&image.path)
                && !is_deleting(&image.path)
                && !index.by_id.contains_key(&record.id)
            {
                index.by_id.insert(record.id, index.known.len());
                index.known.push(Known { record, image, extent });
            }
        }
        index.known.sort_by_key(|known| known.record.created);
        for number in 0..index.known.len() {
            let record = index.known[number].record;
            index.by_id.insert(record.id, number);
            index.names.insert(record.domain.uuid, &record.domain.name);
            for disk in &record.disks {
                index.add(number, disk, tags.get(disk::volume_tag(record.id, &disk.vdev).as_str()));
            }
        }
        for domain in &seen.domains {
            index.names.insert(domain.uuid, &domain.name);
        }
        index
    }

    /// The domain of a snapshot, by its current name, or its name when its youngest snapshot was taken. The
    /// UUID identifies a renamed domain; the name, one that was restarted from a configuration without a
    /// UUID.
    pub(super) fn domain_name(&self, record: &'a Record) -> &'a str {
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

    fn add(&mut self, number: usize, disk: &'a DiskRecord, volume: Option<&usize>) {
        let seen = self.seen;
        let file = |path, kind| seen.files.get(&(path, kind));
        let facts = |path, kind| file(path, kind).and_then(|seen| seen.facts.as_ref().ok());
        let own = || facts(disk.path.clone(), FileKind::of_record(disk));
        match disk.snapshot.kind().content() {
            Content::Inside(Some(QcowSnapshot { id, name, date })) => {
                self.internal.entry((id, name, *date)).or_default().push(number);
            }
            Content::Frozen(Frozen { copy, reader, proof: Some(proof) }) => {
                let path = copy.unwrap_or(&disk.path);
                let frozen = file(path.to_owned(), FileKind::of_reader(reader, disk.format));
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

    pub(super) fn file(&self, path: &Path, kind: FileKind) -> Option<&'a FileEntry> {
        self.seen.files.get(&(path.to_owned(), kind))
    }

    /// The volume that keeps a disk of a snapshot.
    pub(super) fn volume(&self, number: usize, vdev: &str) -> Option<&'a Volume> {
        let at = self.tagged.get(&(number, vdev))?;
        self.seen.volumes.as_ref().ok()?.get(*at)
    }

    /// The snapshots with this frozen file.
    pub(super) fn frozen_in(&self, file: &FileEntry) -> Vec<usize> {
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
}
