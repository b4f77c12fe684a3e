//! Which snapshots of a domain other domains need: clones, and the snapshots of clones. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use uuid::Uuid;

use super::index::Index;
use super::inventory::{FileEntry, FileKind, Inventory};
use crate::disk::chain::MAX_LENGTH;

/// For each snapshot, the domains, and their snapshots as `DOMAIN/NAME`, that have a frozen file of it in the
/// chain of a disk.
pub fn holders(seen: &Inventory) -> BTreeMap<Uuid, BTreeSet<String>> {
    let index = Index::new(seen);
    let mut holders: BTreeMap<Uuid, BTreeSet<String>> = BTreeMap::new();
    let mut add = |path: &Path, kind, domain: &str, who: &str| {
        for number in index.frozen_below(path, kind) {
            let record = index.known[number].record;
            if index.domain_name(record) != domain {
                holders.entry(record.id).or_default().insert(who.to_owned());
            }
        }
    };
    for domain in &seen.domains {
        let disks = domain.disks.iter();
        disks.for_each(|disk| add(&disk.path, disk.kind, &domain.name, &domain.name));
    }
    for known in &index.known {
        let domain = index.domain_name(known.record);
        let who = format!("{domain}/{}", known.record.name);
        let disks = known.record.disks.iter().filter(|disk| !disk.snapshot.is_left_out());
        disks.for_each(|disk| add(&disk.path, FileKind::of_record(disk), domain, &who));
    }
    holders
}

impl Index<'_> {
    /// The snapshots whose frozen file is this file or one of its bases.
    fn frozen_below(&self, path: &Path, kind: FileKind) -> BTreeSet<usize> {
        let mut found = BTreeSet::new();
        let mut file = self.file(path, kind);
        for _ in 0..MAX_LENGTH {
            let Some(this) = file else { break };
            found.extend(self.frozen_in(this));
            file = self.below(this);
        }
        found
    }

    fn below(&self, file: &FileEntry) -> Option<&FileEntry> {
        if let Some(vhd) = file.vhd {
            let parent = vhd.parent.filter(|_| vhd.facts.differencing)?;
            let mut all = self.seen.files.values();
            return all.find(|other| other.vhd.is_some_and(|vhd| vhd.facts.uuid == parent));
        }
        let (path, format) = file.link.as_ref().ok()?.below().ok()??;
        self.file(&path, FileKind::of_format(Some(format)))
    }
}
