//! The objects of steps: images, stored configurations, transactions.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::domain::DomainId;
use crate::memory::frames::Level;
use crate::plan::Text;
use crate::record::Record;

/// The destination of a memory image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// A file, under a `.partial` name until it is complete.
    File(PathBuf),
    Stdout,
}

/// The beginning of a memory image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageStart {
    pub target: Target,
    /// Whether to create the directory of the file.
    pub make_directory: bool,
    /// libxl's JSON of the domain, with the disks before the snapshot.
    pub config: String,
    /// Without proofs.
    pub record: Record,
    /// The compression level; `None` for a plain image.
    pub compress: Option<Level>,
}

/// The owner of a stored configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConfigOwner {
    /// libxl's, JSON: save, migrate and reboot use it.
    Libxl,
    /// xl's, the text of a configuration file: if `xl config-update` stored one, a reboot uses it
    /// instead of libxl's.
    Xl,
}

/// A configuration of a domain that is stored with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreConfig {
    pub domain: DomainId,
    pub whose: ConfigOwner,
    pub new: Text,
    pub old: Text,
    /// The change, for messages: `xvda -> /srv/a.after-s1.qcow2`.
    pub what: String,
}

/// An xl configuration file that gets another text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplaceCfg {
    pub path: PathBuf,
    /// The text that it must still have.
    pub old: Text,
    pub new: Text,
    /// Where the old text is kept.
    pub backup: PathBuf,
    /// The disk entries that it needs, for messages.
    pub entries: Vec<String>,
}

/// A value in xenstore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct XenstoreWrite {
    pub path: String,
    pub new: String,
    pub old: String,
}

/// One action of a QMP transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// `blockdev-snapshot-internal-sync`
    Internal {
        vdev: String,
        /// QEMU's node.
        node: String,
        name: String,
        file: PathBuf,
    },
    /// `blockdev-snapshot-sync` to an overlay that exists.
    Overlay {
        vdev: String,
        /// QEMU's node.
        node: String,
        /// The overlay.
        file: PathBuf,
        /// QEMU's name for the overlay's node.
        new_node: String,
    },
}

impl Action {
    /// The overlay, if the action is one to an overlay.
    pub fn overlay(&self) -> Option<&Path> {
        match self {
            Action::Internal { .. } => None,
            Action::Overlay { file, .. } => Some(file),
        }
    }
}
