//! The request to `create` with its defaults filled in. Pure.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use uuid::Uuid;

use crate::disk;
use crate::domain::Disk;
use crate::error::{Error, Result};
use crate::names::{SnapshotName, is_file_part, same_vdev};
use crate::plan::Target;
use crate::record::{Parent, ParentSource};
use crate::spec::{Choice, DEFAULT_DIRECTORY, MemoryTarget, Request};
use crate::state::stamp;

/// A request with its defaults filled in: time and random ID are chosen once, before the host is
/// inspected.
#[derive(Debug, Clone)]
pub struct Job {
    pub name: SnapshotName,
    pub id: Uuid,
    /// The time of the request.
    pub now: Timestamp,
    pub request: Request,
    /// The default directory for memory images.
    pub directory: PathBuf,
    /// The snapshot that the domain's disks descend from, and the source of this; `None` if it is not
    /// known.
    pub parent: Option<(Parent, ParentSource)>,
}

impl Job {
    /// Fills in the defaults of a request.
    pub fn new(request: Request, now: Timestamp, id: Uuid) -> Job {
        let name = request.name.clone().unwrap_or_else(|| {
            format!("snap-{}", stamp(now)).parse().expect("a time stamp is a legal name")
        });
        Job { name, id, now, request, directory: DEFAULT_DIRECTORY.into(), parent: None }
    }

    /// Sets the snapshot that the domain's disks descend from.
    #[must_use]
    pub fn descending_from(self, parent: Option<(Parent, ParentSource)>) -> Job {
        Job { parent, ..self }
    }

    /// Sets the default directory for memory images.
    #[must_use]
    pub fn in_directory(self, directory: PathBuf) -> Job {
        Job { directory, ..self }
    }

    /// Whether `image` is below the default directory: only there we create directories.
    pub fn is_in_our_directory(&self, image: &Path) -> bool {
        image.starts_with(&self.directory)
    }

    /// The path of the memory image of `domain`.
    pub fn image(&self, domain: &str) -> Result<Target> {
        match &self.request.memory {
            MemoryTarget::Stdout => Ok(Target::Stdout),
            MemoryTarget::File(path) => Ok(Target::File(path.clone())),
            MemoryTarget::Default if is_file_part(domain) => {
                Ok(Target::File(self.default_image(domain, self.request.compress.is_some())))
            }
            MemoryTarget::Default => {
                Err(Error::refused(format!("The domain name {domain:?} cannot be a directory"))
                    .hint("pass --memory FILE"))
            }
        }
    }

    fn default_image(&self, domain: &str, compressed: bool) -> PathBuf {
        let ending = if compressed { "xlsave.zst" } else { "xlsave" };
        self.directory.join(domain).join(format!("{}.{ending}", self.name))
    }

    /// The files that must not exist: the image itself, and in our own directory also the image of a
    /// snapshot of the same name, compressed or not.
    pub fn images_of_that_name(&self, image: &Path, domain: &str) -> Vec<PathBuf> {
        let mut images = vec![image.to_owned()];
        if self.request.memory == MemoryTarget::Default {
            images.push(self.default_image(domain, self.request.compress.is_none()));
        }
        images
    }

    /// The path of the file that the snapshot of a disk may create.
    pub fn new_file(&self, domain: &str, disk: &Disk) -> Option<PathBuf> {
        let choice = self.choice(&disk.vdev);
        if let Some(file) = choice.and_then(|choice| choice.file.as_ref()) {
            return Some(file.clone());
        }
        let name = disk::new_file_name(domain, disk, choice, &self.name);
        is_file_part(domain).then(|| disk.file().parent().map(|directory| directory.join(name)))?
    }

    /// The user's `--disk` option for a disk.
    pub fn choice(&self, vdev: &str) -> Option<&Choice> {
        self.request
            .disks
            .iter()
            .find(|option| same_vdev(&option.vdev, vdev))
            .map(|option| &option.choice)
    }

    /// Whether the user leaves a disk out.
    pub fn leaves_out(&self, vdev: &str) -> bool {
        self.choice(vdev).is_some_and(|choice| choice.how.leaves_out())
    }

    /// Whether the user wants a snapshot that needs a file system with reflinks.
    pub fn clones(&self, vdev: &str) -> bool {
        self.choice(vdev).is_some_and(|choice| choice.how.clones())
    }
}
