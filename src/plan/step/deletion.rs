//! The steps that delete a snapshot. Each may be begun again after it was cut short: what is done already
//! needs nothing.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::disk::merging::{How, Merging};
use crate::disk::proof::QcowSnapshot;
use crate::domain::{DomainId, Format};
use crate::record::{Parent, Record, ToldBy};
use crate::tool::quote;

/// Whose QEMU merges images while its guest runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Online {
    pub domain: DomainId,
    /// The guest's name of the disk.
    pub vdev: String,
    /// The name of the block job.
    pub job: String,
}

/// An image and its format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    pub path: PathBuf,
    pub format: Format,
}

/// What changes in the record of another snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// The content of a disk is in another file now, which is proven anew.
    Moved {
        /// The guest's name of the disk.
        vdev: String,
        /// Where it is.
        to: Image,
    },
    /// The file was written to: it is proven anew.
    Written {
        /// The guest's name of the disk.
        vdev: String,
    },
    /// It descends from another snapshot.
    Parent(Option<(Parent, Option<ToldBy>)>),
}

/// One step of a deletion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Deletion {
    /// Gives the image or the record the name that says that it is being deleted.
    Mark {
        /// Its name.
        image: PathBuf,
        /// The other one.
        marked: PathBuf,
    },
    /// Marks a file that is going to be written to.
    Begin { file: PathBuf, mark: Merging },
    /// Writes what an overlay holds into the image on which it rests.
    Commit {
        /// Whose QEMU does it; `None` if nobody has the images open.
        online: Option<Online>,
        /// The overlay.
        top: PathBuf,
        /// The image below.
        base: Image,
        /// What there is to write, in bytes.
        bytes: u64,
    },
    /// Switches the guest's disk to the image below, which holds all by now.
    Pivot {
        /// Whose QEMU does it.
        online: Online,
        /// The overlay.
        top: PathBuf,
        /// The image below.
        base: PathBuf,
    },
    /// Reads what the image below holds into the overlay on it, which then rests on the next one.
    Stream {
        /// Whose QEMU does it; `None` if nobody has the images open.
        online: Option<Online>,
        /// The overlay.
        top: PathBuf,
        /// The image below.
        base: PathBuf,
        /// What the overlay rests on then, if on anything.
        below: Option<Image>,
        /// What there is to read, in bytes.
        bytes: u64,
    },
    /// Has an overlay rest on another image of the same content.
    Relink {
        /// The overlay.
        file: PathBuf,
        /// The image.
        below: Image,
    },
    /// Deletes an internal snapshot, if it is there.
    DeleteInside {
        /// Whose QEMU does it; `None` if nobody has the file open.
        online: Option<Online>,
        file: PathBuf,
        snapshot: QcowSnapshot,
    },
    /// Gives a file that was written to its time and permissions again.
    Settle {
        file: PathBuf,
        /// Whether a guest writes to it, who sets its time.
        live: bool,
    },
    /// Writes what has changed into the record of another snapshot.
    Rewrite {
        /// Its image, or the file of its record.
        image: PathBuf,
        /// The snapshot's name.
        name: String,
        /// Its identity.
        id: Uuid,
        /// What has changed.
        changes: Vec<Change>,
    },
    /// Takes the mark off a file.
    End { file: PathBuf },
    /// Writes a record into a file of its own.
    WriteRecord { path: PathBuf, record: Box<Record> },
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

impl Deletion {
    /// The command a person types to do this step, where there is one.
    pub(super) fn by_hand(&self) -> Option<String> {
        match self {
            Deletion::Mark { image, marked } => {
                Some(format!("mv -n {} {}", quote(image), quote(marked)))
            }
            _ => None,
        }
    }
}

/// As in "could not ...".
impl fmt::Display for Deletion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = |online: &Option<Online>| match online {
            Some(online) => format!(", by the QEMU of domain {}", online.domain.domid),
            None => String::new(),
        };
        match self {
            Deletion::Mark { image, marked } => {
                write!(
                    f,
                    "mark the snapshot as being deleted: {} -> {}",
                    quote(image),
                    quote(marked)
                )
            }
            Deletion::Begin { file, mark } => match mark.how {
                How::Pivot(_) => {
                    write!(f, "mark {}: the guest may write to it from now on", quote(file))
                }
                _ => write!(f, "mark {} as being merged", quote(file)),
            },
            Deletion::Commit { online, top, base, bytes } => write!(
                f,
                "commit {} to {}, {} at most{}",
                quote(top),
                quote(&base.path),
                mib(*bytes),
                by(online)
            ),
            Deletion::Pivot { online, base, .. } => {
                write!(f, "switch {} of the guest to {}", online.vdev, quote(base))
            }
            Deletion::Stream { online, top, base, bytes, .. } => write!(
                f,
                "stream {} into {}, {} at most{}",
                quote(base),
                quote(top),
                mib(*bytes),
                by(online)
            ),
            Deletion::Relink { file, below } => {
                write!(f, "have {} rest on {}", quote(file), quote(&below.path))
            }
            Deletion::DeleteInside { online, file, snapshot } => write!(
                f,
                "delete the internal snapshot {} (ID {}) in {}{}",
                snapshot.name,
                snapshot.id,
                quote(file),
                by(online)
            ),
            Deletion::Settle { file, .. } => write!(f, "sync {}", quote(file)),
            Deletion::Rewrite { image, name, .. } => {
                write!(f, "update the record of snapshot {name} in {}", quote(image))
            }
            Deletion::End { file } => write!(f, "take the mark off {}", quote(file)),
            Deletion::WriteRecord { path, .. } => write!(f, "write the record {}", quote(path)),
        }
    }
}
