//! Images that rest on the files of a snapshot without its knowing: overlays that somebody made by hand.

use std::path::{Path, PathBuf};

use crate::disk::SnapshotDisk;
use crate::disk::chain::FileId;
use crate::disk::kind::Content;
use crate::domain::Disk;
use crate::host::files::identity;
use crate::host::list::files_with;
use crate::host::{chain, dependents};
use crate::record::{DiskRecord, Record};

/// What rests on what in the directories of a snapshot's disks, and below the disks in xl's configuration files.
#[derive(Default)]
pub(super) struct Overlays(Vec<(FileId, PathBuf)>);

impl Overlays {
    /// Reads headers only if a revert would rewrite, replace or remove a file. `current` are the disks that the domain has.
    pub(super) fn of(record: &Record, current: &[Disk]) -> Overlays {
        let elsewhere = |disk: &Disk| !record.disks.iter().any(|known| known.path == disk.path);
        if !record.disks.iter().any(changes_in_place) && !current.iter().any(elsewhere) {
            return Overlays::default();
        }
        // What is not seen is told by a deletion, which must know all of it.
        let mut unseen = Vec::new();
        let current_files = current.iter().map(Disk::file);
        let mut files = dependents::around(record, current_files, &mut unseen);
        let configured = dependents::configured(record.domain.cfg.as_deref(), &mut unseen);
        let configured = configured.into_iter().flat_map(|file| file.disks);
        files.extend(configured.map(|disk| (disk.path, disk.kind)));
        let seen = files_with(&[], &[], files, |_| false);
        let below = seen.into_iter().filter_map(|((path, _), seen)| {
            Some((identity(&seen.link.ok()?.named_below()?)?, path))
        });
        let chains = current.iter().filter_map(|disk| chain::walk(disk.file(), disk.format?).ok());
        let own = chains.flat_map(|chain| {
            let pairs = chain.windows(2).map(|pair| (pair[1].id, pair[0].path.clone()));
            pairs.collect::<Vec<_>>()
        });
        Overlays(below.chain(own).collect())
    }

    /// What rests on the files of a disk that a revert would change or remove.
    pub(super) fn fill(&self, found: &mut SnapshotDisk) {
        if changes_in_place(&found.record) {
            found.base_of = self.on(&found.record.path);
        }
        found.top_base_of = found.top.as_deref().and_then(|top| self.on(top));
    }

    /// An image that rests on a file.
    fn on(&self, path: &Path) -> Option<PathBuf> {
        let base = identity(path)?;
        self.0.iter().find(|(below, _)| *below == base).map(|(_, path)| path.clone())
    }
}

/// Whether a revert gives the file in the record other contents.
fn changes_in_place(disk: &DiskRecord) -> bool {
    match disk.snapshot.kind().content() {
        Content::Inside(_) | Content::Volume(_) => true,
        content => content.frozen_file(&disk.path).is_some_and(|frozen| frozen != disk.path),
    }
}
