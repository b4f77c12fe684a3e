//! The steps that delete a snapshot. Each can be repeated after an interruption: it skips what is already
//! done.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::disk::merge_mark::{MergeStep, Merging};
use crate::disk::proof::QcowSnapshot;
use crate::domain::{DomainId, Format};
use crate::record::{Parent, ParentSource, Record};
use crate::tool::quote;

/// The QEMU that merges images while its guest runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Online {
    pub domain: DomainId,
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

/// A change in the record of another snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// The content of a disk is now in another file, which gets a new proof.
    Moved {
        vdev: String,
        /// Where it is.
        to: Image,
    },
    /// The file was written to, and gets a new proof.
    Written { vdev: String },
    /// It descends from another snapshot.
    Parent(Option<(Parent, Option<ParentSource>)>),
}

/// One step of a deletion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Deletion {
    /// Renames the image or the record to `FILE.deleting`.
    Mark { image: PathBuf, marked: PathBuf },
    /// Marks a file before it is written to.
    Begin { file: PathBuf, mark: Merging },
    /// Writes the data of an overlay into its backing file.
    Commit {
        /// The QEMU that does it; `None` if nobody has the images open.
        online: Option<Online>,
        /// The overlay.
        top: PathBuf,
        /// The backing file.
        base: Image,
        /// The bytes to write.
        bytes: u64,
    },
    /// Switches the guest's disk to the backing file, which has all data by now.
    Pivot {
        /// The QEMU that does it.
        online: Online,
        /// The overlay.
        top: PathBuf,
        /// The backing file.
        base: PathBuf,
    },
    /// Copies the data of the backing file into its overlay, which then gets the next image as its
    /// backing file.
    Stream {
        /// The QEMU that does it; `None` if nobody has the images open.
        online: Option<Online>,
        /// The overlay.
        top: PathBuf,
        /// The backing file.
        base: PathBuf,
        /// The new backing file of the overlay, if any.
        below: Option<Image>,
        /// The bytes to read.
        bytes: u64,
    },
    /// Gives an overlay another backing file with the same content.
    Relink {
        /// The overlay.
        file: PathBuf,
        below: Image,
    },
    /// Deletes an internal snapshot, if it exists.
    DeleteInside {
        /// The QEMU that does it; `None` if nobody has the file open.
        online: Option<Online>,
        file: PathBuf,
        snapshot: QcowSnapshot,
    },
    /// Restores the time and permissions of a file that was written to.
    Settle {
        file: PathBuf,
        /// Whether a guest writes to it, which also sets its time.
        live: bool,
    },
    /// Writes the changes into the record of another snapshot.
    Rewrite {
        /// Its memory image, or the file of its record.
        image: PathBuf,
        name: String,
        id: Uuid,
        changes: Vec<Change>,
    },
    /// Removes the mark from a file.
    End { file: PathBuf },
    /// Writes a record into a file of its own.
    WriteRecord { path: PathBuf, record: Box<Record> },
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

impl Deletion {
    /// The command that does this step by hand, if there is one.
    pub(super) fn by_hand(&self) -> Option<String> {
        match self {
            Deletion::Mark { image, marked } => {
                Some(format!("mv -n {} {}", quote(image), quote(marked)))
            }
            _ => None,
        }
    }
}

/// The text after "could not ...".
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
                MergeStep::Pivot(_) => {
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
                write!(f, "set the backing file of {} to {}", quote(file), quote(&below.path))
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
