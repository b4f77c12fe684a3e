//! `list`: which snapshots exist, which descends from which, and whether they are still good. Pure.
//!
//! There is no database. Each list is derived from the records of the images and from the disks: the
//! snapshots in qcow2 files, backing files, LVM's tags and origins, the parents of VHDs.

mod claims;
mod descent;
mod holders;
mod index;
mod inventory;
pub mod mark;
mod metrics;
mod others;
mod report;
mod state;
pub mod table;
mod words;

use std::path::Path;

pub use self::descent::parent_of_now;
pub use self::holders::holders;
pub use self::inventory::{
    CurrentDisk, FileEntry, FileKind, Files, ImageEntry, ImageFormat, Inventory, ListRequest,
    Running, VhdEntry,
};
pub use self::metrics::metrics;
pub use self::report::{
    Current, DescentSource, DiskState, DivergedDisk, Health, Listing, Other, OtherKind, Snapshot,
};
pub use self::words::Tree;
use crate::memory::is_deleting;
use crate::memory::peek::Peek;
use crate::record::Record;
use index::Index;
use inventory::{Known, is_partial};

/// Derives the list.
pub fn list(seen: &Inventory, asked: &ListRequest) -> Listing {
    let index = Index::new(seen);
    let mut snapshots = Vec::new();
    for (number, known) in index.known.iter().enumerate() {
        let Record { domain, .. } = known.record;
        if asked.wants(&domain.name, domain.uuid, &seen.domains) {
            snapshots.push(snapshot(&index, number));
        }
    }
    let mut domains: Vec<_> = seen
        .domains
        .iter()
        .filter(|domain| asked.wants(&domain.name, domain.uuid, &seen.domains))
        .map(|domain| index.current(domain))
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
    let others = others::others(&index, asked);
    let hidden = others.iter().filter(|other| !asked.all && !other.kind.is_urgent()).count();
    let others = others.into_iter().filter(|other| asked.all || other.kind.is_urgent()).collect();
    Listing { snapshots, domains, others, hidden, unseen: seen.unseen.clone() }
}

fn snapshot(index: &Index<'_>, number: usize) -> Snapshot {
    let Known { record, image, .. } = index.known[number];
    let (state, why, disks) = state::of(index, number);
    let (parent, parent_by) = index.parent(number);
    Snapshot {
        group: index.domain_name(record).to_owned(),
        domain: record.domain.name.clone(),
        uuid: record.domain.uuid,
        name: record.name.to_string(),
        id: record.id,
        created: record.created,
        description: record.description.clone(),
        image: image.path.clone(),
        memory: record.disks_only.is_none(),
        disks_only: record.disks_only,
        size: image.length,
        size_on_disk: image.allocated,
        shared: image.shared,
        state,
        why,
        current: false,
        parent,
        parent_by,
        disks,
    }
}

/// The file of a snapshot by `DOMAIN/NAME`, among those of a directory. A renamed domain is found by the
/// UUID of one of `running`.
///
/// # Errors
/// If there is none, or there are several.
pub fn by_name<'a>(
    images: &'a [ImageEntry],
    directory: &Path,
    (domain, running): (&str, &[Running]),
    name: &str,
    deleting: bool,
) -> Result<&'a Path, NotNamed> {
    let asked = ListRequest { domains: vec![domain.to_owned()], all: false };
    let mut found: Vec<(&Record, &ImageEntry)> = Vec::new();
    for image in images {
        let Ok(Peek::Snapshot { record, .. }) = &image.peek else { continue };
        let wanted = asked.wants(&record.domain.name, record.domain.uuid, running);
        let whole = !is_partial(&image.path) && (deleting || !is_deleting(&image.path));
        if wanted && record.name.as_str() == name && whole {
            found.push((record, image));
        }
    }
    let Some((first, _)) = found.first() else {
        let shown = directory.display();
        return Err(NotNamed::Nothing(format!("{shown} has no snapshot {name} of {domain}")));
    };
    if found.iter().any(|(record, _)| record.id != first.id) {
        let paths = found.iter().map(|(_, image)| image.path.display().to_string());
        return Err(NotNamed::Several(paths.collect::<Vec<_>>().join(", ")));
    }
    found.sort_by_key(|(_, image)| image.rank());
    Ok(&found[0].1.path)
}

/// Why `DOMAIN/NAME` names no snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotNamed {
    /// There is none, and the reason.
    Nothing(String),
    /// There are several; their images.
    Several(String),
}

#[cfg(test)]
mod tests;
