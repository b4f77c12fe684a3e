//! Images that rest on the files of a snapshot without its knowing: overlays that somebody made by hand.

use std::path::{Path, PathBuf};

use crate::disk::chain::FileId;
use crate::disk::kind::Content;
use crate::host::dependents;
use crate::host::files::identity;
use crate::host::list::files_with;
use crate::record::{DiskRecord, Record};

/// What rests on what in the directories of a snapshot's disks, and below the disks in xl's configuration files.
#[derive(Default)]
pub(super) struct Overlays(Vec<(FileId, PathBuf)>);

impl Overlays {
    /// Reads headers only if a revert would rewrite or replace a file.
    pub(super) fn of(record: &Record) -> Overlays {
        if !record.disks.iter().any(changes_in_place) {
            return Overlays::default();
        }
        let mut files = dependents::around(record, &[]);
        // Files that are not understood are told by a deletion, which must know all of them.
        let configured = dependents::configured(record.domain.cfg.as_deref(), &mut Vec::new());
        let configured = configured.into_iter().flat_map(|file| file.disks);
        files.extend(configured.map(|disk| (disk.path, disk.kind)));
        let seen = files_with(&[], &[], files, |_| false);
        let below = seen.into_iter().filter_map(|((path, _), seen)| {
            Some((identity(&seen.link.ok()?.named_below()?)?, path))
        });
        Overlays(below.collect())
    }

    /// An image that rests on a file.
    pub(super) fn on(&self, path: &Path) -> Option<PathBuf> {
        let base = identity(path)?;
        self.0.iter().find(|(below, _)| *below == base).map(|(_, path)| path.clone())
    }
}

/// Whether a revert gives the file in the record other contents.
fn changes_in_place(disk: &DiskRecord) -> bool {
    match disk.snapshot.kind().content() {
        Content::Inside(_) => true,
        content => content.frozen_file(&disk.path).is_some_and(|frozen| frozen != disk.path),
    }
}
