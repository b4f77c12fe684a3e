//! The images around one disk of a snapshot that is to be deleted: who rests on what, and who uses it. Pure.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::disk::FileFacts;
use crate::disk::chain::FileId;
use crate::disk::merging::Merging;
use crate::disk::proof::QcowSnapshot;
use crate::domain::{DomainId, Format};
use crate::plan::Step;
use crate::plan::deletion::{Change, Image, Online};
use crate::record::DiskRecord;
use crate::tool::volumes::Volume;

/// A domain that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// What it is.
    pub id: DomainId,
    /// Why its images must not be merged now, if so.
    pub trouble: Option<String>,
}

/// Whose disk an image is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The domain's name.
    pub domain: String,
    /// Whether it is the domain of the snapshot.
    pub same: bool,
    /// The guest's name of the disk.
    pub vdev: String,
    /// The configuration file that says so; `None` if the domain runs.
    pub cfg: Option<PathBuf>,
}

/// Another snapshot whose content an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keeper {
    /// Its image, or the file of its record.
    pub image: PathBuf,
    pub name: String,
    /// Its identity.
    pub id: Uuid,
    /// The guest's name of the disk.
    pub vdev: String,
    /// Whether it is of the same domain.
    pub same: bool,
    /// Whether the image is as that snapshot's record says.
    pub proven: bool,
    /// Why its record cannot be replaced, if so.
    pub fixed: Option<String>,
}

/// An image of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub path: PathBuf,
    /// Which file that is.
    pub id: FileId,
    pub format: Format,
    /// What is known of it; the error if it is no file.
    pub facts: Result<FileFacts, String>,
    /// What it takes on its file system, in bytes.
    pub allocated: u64,
    /// The size a guest sees, in bytes.
    pub virtual_size: u64,
    /// The image on which it rests.
    pub below: Option<Image>,
    /// The snapshots inside of it; the error if they cannot be read.
    pub inside: Result<Vec<QcowSnapshot>, String>,
    /// The disks that it is now.
    pub users: Vec<User>,
    /// Other snapshots that it is the content of.
    pub keepers: Vec<Keeper>,
    /// The running domains whose QEMU has it open.
    pub open_in: Vec<Running>,
    /// Who else has it open.
    pub opened_by: Vec<String>,
    /// Whether this program made it.
    pub ours: bool,
    /// The number of its file system, and what is free there, in bytes.
    pub room: (u64, u64),
    /// Why it cannot be marked, if so.
    pub unmarkable: Option<String>,
}

impl Member {
    pub(super) fn image(&self) -> Image {
        Image { path: self.path.clone(), format: self.format }
    }

    /// The mark that it has of a deletion.
    pub fn merging(&self) -> Option<&Merging> {
        self.facts.as_ref().ok()?.merging.as_ref()
    }

    /// What is known of it and keeps it from being another domain's.
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

/// What is seen of one disk of the snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Family {
    /// What the record says.
    pub record: DiskRecord,
    /// The snapshot.
    pub id: Uuid,
    /// The image that has the content, if it is there.
    pub base: Option<Member>,
    /// The images that rest on it.
    pub overlays: Vec<Member>,
    /// The images that rest on those.
    pub above: Vec<(FileId, Member)>,
    /// Children of a VHD.
    pub children: Vec<PathBuf>,
    /// The guest's disk that has the image in its chain, by the domain.
    pub vdevs: Vec<(DomainId, String)>,
    /// The host's logical volumes.
    pub volumes: Result<Vec<Volume>, String>,
}

/// What the user wishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wishes {
    /// Whether images that rest on the snapshot get a copy of it each, where they are several.
    pub flatten: bool,
}

/// A merge, as it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// `commit` or `stream`.
    pub how: &'static str,
    /// What is copied.
    pub from: PathBuf,
    /// Where to.
    pub into: PathBuf,
    /// How much at most, in bytes.
    pub bytes: u64,
    /// How much the other way would take, if there is one.
    pub instead: Option<u64>,
}

/// A disk of a domain that gets another image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Switch {
    /// Whose disk it is.
    pub user: User,
    /// The domain, if it runs.
    pub domain: Option<DomainId>,
    /// The image that it gets.
    pub to: Image,
}

/// What the record of another snapshot says then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewrite {
    /// That snapshot.
    pub keeper: Keeper,
    /// What changes.
    pub change: Change,
}

/// What a deletion does to one disk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DiskDelete {
    /// What is done first: marks and merges.
    pub merges: Vec<Step>,
    /// What switches the guest's disk.
    pub pivot: Vec<Step>,
    /// Disks that get another image.
    pub switches: Vec<Switch>,
    /// Files that were written to, and whether a guest goes on writing to them.
    pub written: Vec<(PathBuf, bool)>,
    /// Records that change.
    pub rewrites: Vec<Rewrite>,
    /// What is removed in the end.
    pub removals: Vec<Step>,
    /// The files and volumes that are removed, for people.
    pub removed: Vec<String>,
    /// Why the file with the content is not.
    pub kept: Option<String>,
    /// The merges.
    pub merged: Vec<Merged>,
    /// What is needed on which file system: its number, what is free, what is needed, a file on it.
    pub room: Vec<(u64, u64, u64, PathBuf)>,
    /// The domains whose QEMU takes part.
    pub online: Vec<DomainId>,
    /// What the user should know.
    pub notes: Vec<String>,
}

impl Family {
    /// How QEMU is asked to merge the images of a disk.
    pub(super) fn online(&self, running: &Running) -> Option<Online> {
        let (_, vdev) = self.vdevs.iter().find(|(domain, _)| *domain == running.id)?;
        let id = self.id.simple().to_string();
        Some(Online {
            domain: running.id.clone(),
            vdev: vdev.clone(),
            job: format!("xl-snapshot-{}-{vdev}", &id[..8]),
        })
    }

    /// The images on an overlay.
    pub(super) fn on(&self, overlay: &Member) -> impl Iterator<Item = &Member> {
        let id = overlay.id;
        self.above.iter().filter(move |(below, _)| *below == id).map(|(_, member)| member)
    }
}

/// Whether a file has such a name as this program gives.
pub fn is_our_name(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    [".after-", ".at-", ".before-revert-"].iter().any(|part| name.contains(part))
}
