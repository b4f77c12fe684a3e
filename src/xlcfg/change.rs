//! A change in a configuration file, and why it is refused.

use std::path::Path;

use thiserror::Error;

use crate::domain::{Disk, Format};

/// Another image for a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The disk.
    pub vdev: String,
    /// libxl's `pdev_path`: `/srv/a.qcow2`, `vhd:/srv/a.vhd`.
    pub target: String,
    /// libxl's name for the format: `raw`, `qcow2`...
    pub format: String,
}

impl Change {
    /// The image at `target` for the disk `vdev`.
    pub fn new(vdev: &str, target: &Path, format: Format) -> Self {
        Change {
            vdev: vdev.to_owned(),
            target: target.display().to_string(),
            format: format.name().to_owned(),
        }
    }

    /// The entry for the disk list, xl-disk-configuration(5). `target=` takes the rest of the entry, so
    /// a path may contain commas.
    pub fn entry(&self) -> String {
        let Change { vdev, target, format } = self;
        let script = if target.starts_with(Disk::TAP_VHD) { ",script=block-tap" } else { "" };
        format!("format={format},vdev={vdev},access=rw{script},target={target}")
    }
}

/// Why a configuration file is not rewritten.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadCfg {
    /// The file's syntax is not understood.
    #[error("Line {line}: {reason}")]
    Syntax {
        /// The line, from 1.
        line: usize,
        reason: &'static str,
    },
    /// A disk specification is not understood.
    #[error("The disk '{spec}': {reason}")]
    Spec {
        /// The specification.
        spec: String,
        reason: &'static str,
    },
    /// The change cannot be expressed in a disk specification.
    #[error("Disk {vdev} cannot get the {format} image '{target}'")]
    Change {
        /// The disk.
        vdev: String,
        /// The image it should have.
        target: String,
        /// The format of that.
        format: String,
    },
    /// Our reading of the file differs from libxlutil's.
    #[error("Its list of disks is not understood")]
    List,
    /// No disk of that name.
    #[error("It has no disk {0}")]
    NoDisk(String),
    /// Two disks of that name, or two changes to it.
    #[error("Disk {0} is there twice")]
    Twice(String),
}
