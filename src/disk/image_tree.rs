//! The images around one disk of a snapshot to be deleted: bases, overlays and users. Pure.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::disk::FileFacts;
use crate::disk::chain::FileId;
use crate::disk::merge_mark::Merging;
use crate::disk::proof::QcowSnapshot;
use crate::domain::{DomainId, Format};
use crate::names::vdev_number;
use crate::plan::Step;
use crate::plan::deletion::{Change, Image, Online};
use crate::record::DiskRecord;
use crate::tool::volumes::Volume;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    pub id: DomainId,
    /// Why its images must not be merged now, if they must not.
    pub trouble: Option<String>,
}

/// The domain disk that uses an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskUser {
    pub domain: String,
    pub same: bool,
    pub vdev: String,
    /// The configuration file that names the image; `None` if the domain runs.
    pub cfg: Option<PathBuf>,
}

/// Another snapshot whose content is in an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DependentSnapshot {
    /// Its memory image, or the file of its record.
    pub image: PathBuf,
    pub name: String,
    pub id: Uuid,
    pub vdev: String,
    pub same: bool,
    /// Whether the image matches the proof in that snapshot's record.
    pub proven: bool,
    /// Why its record cannot be replaced, if it cannot.
    pub fixed: Option<String>,
}

/// An image of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeImage {
    pub path: PathBuf,
    pub id: FileId,
    pub format: Format,
    /// Facts about it; the error if it is no file.
    pub facts: Result<FileFacts, String>,
    /// Its allocated size, in bytes.
    pub allocated: u64,
    /// The size a guest sees, in bytes.
    pub virtual_size: u64,
    /// Its backing file.
    pub below: Option<Image>,
    /// Its internal snapshots; the error if they cannot be read.
    pub inside: Result<Vec<QcowSnapshot>, String>,
    /// The domain disks that use it.
    pub users: Vec<DiskUser>,
    /// Other snapshots whose content it has.
    pub keepers: Vec<DependentSnapshot>,
    /// The running domains whose QEMU has it open.
    pub open_in: Vec<Running>,
    /// Other processes that have it open.
    pub opened_by: Vec<String>,
    pub created_by_us: bool,
    /// The number of its file system, and the free space there, in bytes.
    pub room: (u64, u64),
    /// Why it cannot be marked, if it cannot.
    pub unmarkable: Option<String>,
}

impl TreeImage {
    pub(super) fn image(&self) -> Image {
        Image { path: self.path.clone(), format: self.format }
    }

    /// Its mark of a deletion in progress.
    pub fn merging(&self) -> Option<&Merging> {
        self.facts.as_ref().ok()?.merging.as_ref()
    }

    /// Whether another domain, or a snapshot of one, uses it.
    pub(super) fn is_foreign(&self) -> bool {
        self.users.iter().any(|user| !user.same) || self.keepers.iter().any(|keeper| !keeper.same)
    }

    pub(super) fn is_open_elsewhere(&self, online: Option<&Running>) -> Option<String> {
        let other = self.open_in.iter().find(|running| Some(*running) != online);
        other
            .map(|running| format!("the QEMU of domain {}", running.id))
            .or_else(|| self.opened_by.first().cloned())
    }
}

/// Observations of one disk of the snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageTree {
    pub record: DiskRecord,
    pub id: Uuid,
    /// Whether an earlier deletion of the snapshot has begun: what is not there was deleted by that.
    pub marked: bool,
    /// Why the file with the content may be there and only not be seen, if so.
    pub away: Option<String>,
    /// The image that has the content, if it exists.
    pub base: Option<TreeImage>,
    /// The images whose backing file it is.
    pub overlays: Vec<TreeImage>,
    /// The images on top of the overlays.
    pub above: Vec<(FileId, TreeImage)>,
    /// Children of a VHD.
    pub children: Vec<PathBuf>,
    /// The disks that have the image in their chain, for each domain.
    pub vdevs: Vec<(DomainId, String)>,
    /// The host's logical volumes.
    pub volumes: Result<Vec<Volume>, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeleteOptions {
    /// Whether to stream the snapshot into each of several overlays.
    pub flatten: bool,
}

/// A merge, for the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// `commit` or `stream`.
    pub how: &'static str,
    pub from: PathBuf,
    pub into: PathBuf,
    /// At most.
    pub bytes: u64,
    /// The bytes of the other way, if it is possible.
    pub instead: Option<u64>,
}

/// A domain's disk that gets another image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSwitch {
    pub user: DiskUser,
    /// `None` if the domain does not run.
    pub domain: Option<DomainId>,
    pub to: Image,
}

/// A change in the record of another snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewrite {
    pub keeper: DependentSnapshot,
    pub change: Change,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DiskDelete {
    /// Done first: marks and merges.
    pub merges: Vec<Step>,
    /// Steps that switch the guest's disk.
    pub pivot: Vec<Step>,
    pub switches: Vec<ImageSwitch>,
    /// Files that the merge writes to, and whether a guest keeps writing to them.
    pub written: Vec<(PathBuf, bool)>,
    pub rewrites: Vec<Rewrite>,
    /// Done last.
    pub removals: Vec<Step>,
    /// The files and volumes that are removed, for the report.
    pub removed: Vec<String>,
    /// Why the file with the content is not removed.
    pub kept: Option<String>,
    pub merged: Vec<Merged>,
    /// The space needed on each file system: its number, the free bytes, the needed bytes, a file
    /// on it.
    pub room: Vec<(u64, u64, u64, PathBuf)>,
    pub online: Vec<DomainId>,
    /// Other domains whose images are merged without a QEMU: none of them may be started meanwhile.
    pub down: Vec<String>,
    pub notes: Vec<String>,
}

impl ImageTree {
    /// All images that are known.
    pub fn images(&self) -> impl Iterator<Item = &TreeImage> {
        self.base.iter().chain(&self.overlays).chain(self.above.iter().map(|(_, image)| image))
    }

    /// The merge of a disk's images in a running QEMU.
    pub(super) fn online(&self, running: &Running) -> Option<Online> {
        let (_, vdev) = self.vdevs.iter().find(|(domain, _)| *domain == running.id)?;
        let id = self.id.simple().to_string();
        Some(Online {
            domain: running.id.clone(),
            vdev: vdev.clone(),
            job: format!("xl-snapshot-{}-{vdev}", &id[..8]),
        })
    }

    /// The images on top of an overlay.
    pub(super) fn on(&self, overlay: &TreeImage) -> impl Iterator<Item = &TreeImage> {
        let id = overlay.id;
        self.above.iter().filter(move |(below, _)| *below == id).map(|(_, member)| member)
    }
}

/// Whether a file name has the form that this program uses: `DOMAIN-VDEV.after-NAME.qcow2`.
pub fn is_our_name(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    [".after-", ".at-", ".before-revert-"].iter().any(|part| {
        name.match_indices(part).any(|(at, _)| {
            let disk = name[..at].rsplit('-').next().filter(|disk| disk.len() < at);
            // A number alone may be anything, such as a year.
            let named = |disk: &str| !disk.starts_with(|c: char| c.is_ascii_digit());
            disk.is_some_and(|disk| named(disk) && vdev_number(disk).is_some())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_the_whole_form_are_ours() {
        for ours in [
            "web1-xvda.after-s1.qcow2",
            "web1-xvda.after-s1.20260302-000000.qcow2",
            "a.at-b-xvdb.at-s1.img",
            "web-1-hdc.before-revert-20260302-000000.img",
            "x-d0p1.after-s1.qcow2",
        ] {
            assert!(is_our_name(Path::new(ours)), "{ours}");
        }
        for other in [
            "debian.after-install.qcow2",
            "win.at-home.img",
            "web1-data.after-2024.qcow2",
            "xvda.after-s1.qcow2",
            "backup-2024.after-install.qcow2",
            "-.after-s1.qcow2",
            "vm-disk.before-revert-x.img",
        ] {
            assert!(!is_our_name(Path::new(other)), "{other}");
        }
    }
}
