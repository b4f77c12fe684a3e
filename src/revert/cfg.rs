//! The domain's xl configuration file, which a revert updates.

use std::path::PathBuf;

use crate::disk::{DiskRevert, SnapshotDisk};
use crate::plan::ReplaceCfg;
use crate::xlcfg::Change;

/// The file, if it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cfg {
    Unknown,
    /// The user named the domain by it when the snapshot was taken.
    Remembered(PathBuf),
    /// The user names it now.
    Named(PathBuf),
}

/// What the revert does to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CfgAfter {
    /// Unknown file.
    Unknown,
    /// It already has the right entries.
    Right,
    /// It gets a new text.
    Replace(ReplaceCfg),
    /// It cannot be updated.
    Trouble { path: PathBuf, why: String },
}

/// The image of a disk after the revert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskChange {
    pub change: Change,
    /// Whether the image changes: if not, a file that lacks the disk, or names its image in another
    /// way, is right as well.
    pub needed: bool,
}

/// The image of a disk after the revert; `None` for a disk that is not reverted.
pub(crate) fn change(disk: &DiskRevert, found: &SnapshotDisk) -> Option<DiskChange> {
    let record = &found.record;
    let (target, format) = match &disk.switch {
        Some(switch) => switch.clone(),
        None => record.snapshot.kind().target(&record.path, record.format)?,
    };
    let elsewhere = found.top.as_ref().is_some_and(|top| *top != record.path);
    let needed = disk.switch.is_some() || elsewhere;
    Some(DiskChange { change: Change::new(&record.vdev, &target, format), needed })
}
