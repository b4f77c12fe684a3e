//! The steps of an export. All but the last write into a new directory, which is removed as a whole if one of them
//! fails.

use std::fmt;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::memory::frames::Level;
use crate::plan::Text;
use crate::record::{FrozenFile, Record};
use crate::tool::{Invocation, quote};

/// The name of the file that marks the directory of an export until it is complete.
pub const MARK: &str = ".xl-snapshot-export";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskCopy {
    pub vdev: String,
    pub to: PathBuf,
    /// The tool that fills it.
    pub fill: Invocation,
    /// The final size, in bytes, if it differs.
    pub fit: Option<u64>,
    /// The maximum size of the copy, in bytes.
    pub most: u64,
    /// The file with the content, and the proof that nobody has written to it.
    pub source: Option<(PathBuf, FrozenFile)>,
    /// The time stamp of the copy, which proves it: in whole seconds, as every archive keeps it.
    pub time: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageCopy {
    pub path: PathBuf,
    /// libxl's JSON of the domain, with the names of the copies.
    pub config: String,
    /// The record, without proofs.
    pub record: Record,
    pub level: Level,
}

/// One step of an export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Export {
    /// Removes the directory that an interrupted export left.
    Clear { directory: PathBuf },
    /// Creates the directory, and marks it as ours.
    Begin {
        directory: PathBuf,
        /// Identifies the directory of this export.
        token: Uuid,
    },
    /// Removes that directory, if it exists.
    Discard {
        directory: PathBuf,
        /// Identifies the directory of this export.
        token: Uuid,
    },
    /// Copies the whole content of a disk.
    Disk(Box<DiskCopy>),
    /// Writes the xl configuration file of the domain.
    Cfg {
        path: PathBuf,
        /// Its text.
        text: Text,
    },
    /// Writes the memory image: that of the snapshot, compressed, with the record of the export.
    Memory(Box<ImageCopy>),
    /// Writes the record into a file of its own.
    Record {
        path: PathBuf,
        /// The record, without proofs.
        record: Box<Record>,
    },
    /// Writes a file to standard output, as a part of a tar archive, and removes it.
    Send {
        file: PathBuf,
        /// Its directory in the archive.
        directory: String,
    },
    /// Renames the directory to its final name.
    Name {
        from: PathBuf,
        to: PathBuf,
        /// Identifies the directory of this export.
        token: Uuid,
    },
    /// Ends the archive.
    EndArchive,
    /// Removes the mark from the directory.
    End {
        directory: PathBuf,
        /// Identifies the directory of this export.
        token: Uuid,
    },
}

impl Export {
    /// The step that undoes this one.
    pub(super) fn undo(&self) -> Option<Export> {
        match self {
            Export::Begin { directory, token } => {
                Some(Export::Discard { directory: directory.clone(), token: *token })
            }
            _ => None,
        }
    }

    /// The command that does this step by hand, if there is one.
    pub(super) fn by_hand(&self) -> Option<String> {
        match self {
            Export::Clear { directory } | Export::Discard { directory, .. } => {
                Some(format!("rm -r {}", quote(directory)))
            }
            Export::Name { from, to, .. } => Some(format!("mv -nT {} {}", quote(from), quote(to))),
            Export::End { directory, .. } => Some(format!("rm {}", quote(directory.join(MARK)))),
            _ => None,
        }
    }
}

/// The text after "could not ...".
impl fmt::Display for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Export::Clear { directory } => {
                write!(f, "remove {}, which an earlier export has left", quote(directory))
            }
            Export::Begin { directory, .. } => write!(f, "make the directory {}", quote(directory)),
            Export::Discard { directory, .. } => write!(f, "remove {}", quote(directory)),
            Export::Disk(copy) => {
                let mib = copy.most.div_ceil(1 << 20);
                write!(f, "copy {}, {mib} MiB at most: {}", copy.vdev, copy.fill)
            }
            Export::Cfg { path, .. } => {
                write!(f, "write the xl configuration file {}", quote(path))
            }
            Export::Memory(copy) => write!(
                f,
                "write the memory image {}, compressed by {}",
                quote(&copy.path),
                copy.level
            ),
            Export::Record { path, .. } => write!(f, "write the record {}", quote(path)),
            Export::Send { file, .. } => {
                write!(f, "send {} to standard output and remove it", quote(file))
            }
            Export::Name { from, to, .. } => {
                write!(f, "sync {} and rename it to {}", quote(from), quote(to))
            }
            Export::EndArchive => write!(f, "end the archive"),
            Export::End { directory, .. } => write!(f, "take the mark out of {}", quote(directory)),
        }
    }
}
