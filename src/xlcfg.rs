//! Points disks of an xl configuration file to other images, and leaves every other byte as it is.
//! Pure.
//!
//! Knows just enough of the two languages involved: the file's ([`disk_entries`]) and that of one
//! disk specification ([`respec`]). What is not understood is an error, never a guess, and
//! `host/cfg.rs` has libxlutil read the result.

mod spec;
#[cfg(test)]
mod tests;
mod text;

use std::path::Path;

use thiserror::Error;

use crate::domain::{Disk, Format};

pub use self::spec::respec;
pub use self::text::{Entry, disk_entries, literal};

/// Another image for a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The disk.
    pub vdev: String,
    /// What libxl calls `pdev_path`: `/srv/a.qcow2`, `vhd:/srv/a.vhd`.
    pub target: String,
    /// libxl's name of the format: `raw`, `qcow2`...
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

    /// An entry of the disk list that says it, xl-disk-configuration(5). `target=` takes the rest of the
    /// entry, so that a path may hold commas.
    pub fn entry(&self) -> String {
        let Change { vdev, target, format } = self;
        let script = if target.starts_with(Disk::TAP_VHD) { ",script=block-tap" } else { "" };
        format!("format={format},vdev={vdev},access=rw{script},target={target}")
    }
}

/// An entry of the disk list as libxlutil reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known<'a> {
    /// The whole entry.
    pub spec: &'a str,
    /// The disk it is about.
    pub vdev: &'a str,
}

/// Why a configuration file is not rewritten.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadCfg {
    /// The file's syntax is not understood.
    #[error("Line {line}: {reason}")]
    Syntax {
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A disk specification is not understood.
    #[error("The disk '{spec}': {reason}")]
    Spec {
        /// The specification.
        spec: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A disk specification cannot say what it should.
    #[error("Disk {vdev} cannot get the {format} image '{target}'")]
    Change {
        /// The disk.
        vdev: String,
        /// The image it should have.
        target: String,
        /// The format of that.
        format: String,
    },
    /// Our reading of the file is not libxlutil's.
    #[error("Its list of disks is not understood")]
    List,
    /// No disk of that name.
    #[error("It has no disk {0}")]
    NoDisk(String),
    /// Two disks of that name, or two changes to it.
    #[error("Disk {0} is there twice")]
    Twice(String),
}

/// `text`, in whatever encoding, with `changes` made. `disks` is what libxlutil reads in it, in the order of the list: it
/// says which entry is which disk, and must be what we read ourselves.
pub fn rewrite(text: &[u8], disks: &[Known<'_>], changes: &[Change]) -> Result<Vec<u8>, BadCfg> {
    let entries = disk_entries(text)?;
    if !entries.iter().map(|entry| entry.spec.as_str()).eq(disks.iter().map(|disk| disk.spec)) {
        return Err(BadCfg::List);
    }
    let mut edits = Vec::new();
    for (index, change) in changes.iter().enumerate() {
        let vdev = &change.vdev;
        let mut named = entries.iter().zip(disks).filter(|(_, disk)| disk.vdev == vdev);
        let (entry, _) = named.next().ok_or_else(|| BadCfg::NoDisk(vdev.clone()))?;
        if named.next().is_some() || changes[..index].iter().any(|other| other.vdev == *vdev) {
            return Err(BadCfg::Twice(vdev.clone()));
        }
        edits.push((entry, respec(&entry.spec, change)?));
    }
    // From the end to the start, so that the spans of those to come stay right.
    edits.sort_by_key(|(entry, _)| entry.span.start);
    let mut new = text.to_owned();
    for (entry, spec) in edits.into_iter().rev() {
        let quote = char::from(text[entry.span.start]).to_string();
        new.splice(entry.span.clone(), text::literal(&spec, &quote).into_bytes());
    }
    Ok(new)
}
