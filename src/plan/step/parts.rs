//! What steps are about: images, stored configurations, transactions.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::domain::DomainId;
use crate::memory::frames::Level;
use crate::plan::Text;
use crate::record::Record;

/// Where a memory image is written to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// A file, under a `.partial` name until it is complete.
    File(PathBuf),
    /// Standard output.
    Stdout,
}

/// The beginning of a memory image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageStart {
    /// Where it goes.
    pub target: Target,
    /// Whether the directory of the file is made if there is none.
    pub make_directory: bool,
    /// libxl's JSON of the domain, disks as they are before the snapshot.
    pub config: String,
    /// The record, not complete yet.
    pub record: Record,
    /// How hard it is compressed; not at all if nothing is said.
    pub compress: Option<Level>,
}

/// Whose configuration of a domain it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Whose {
    /// libxl's, JSON: save, migrate and reboot follow it.
    Libxl,
    /// xl's, the text of a configuration file: if `xl config-update` stored one, a reboot follows
    /// it and not libxl's.
    Xl,
}

/// A configuration of a domain that is stored with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreConfig {
    pub domain: DomainId,
    /// Whose it is.
    pub whose: Whose,
    /// What is stored.
    pub new: Text,
    /// What was stored before.
    pub old: Text,
    /// What changes, for people: `xvda -> /srv/a.after-s1.qcow2`.
    pub what: String,
}

/// An xl configuration file that gets another text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplaceCfg {
    pub path: PathBuf,
    /// What it must hold still.
    pub old: Text,
    /// What it is to hold.
    pub new: Text,
    /// Where the old one stays.
    pub backup: PathBuf,
    /// The disk entries it needs, for a person.
    pub entries: Vec<String>,
}

/// A value in xenstore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct XenstoreWrite {
    /// The key.
    pub path: String,
    /// What is written.
    pub new: String,
    /// What stood there.
    pub old: String,
}

/// One action of a QMP transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// `blockdev-snapshot-internal-sync`
    Internal {
        /// The guest's name of the disk.
        vdev: String,
        /// QEMU's node.
        node: String,
        /// The snapshot's name.
        name: String,
        /// The file it is taken in.
        file: PathBuf,
    },
    /// `blockdev-snapshot-sync` to an overlay that exists.
    Overlay {
        /// The guest's name of the disk.
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
    /// The overlay it switches to, if it is one to an overlay.
    pub fn overlay(&self) -> Option<&Path> {
        match self {
            Action::Internal { .. } => None,
            Action::Overlay { file, .. } => Some(file),
        }
    }
}
