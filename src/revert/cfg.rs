//! The domain's xl configuration file, which a revert keeps true.

use std::path::PathBuf;

use crate::disk::{DiskFound, DiskRevert};
use crate::plan::ReplaceCfg;
use crate::xlcfg::Change;

/// Which file that is, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cfg {
    /// It is not.
    Unknown,
    /// The domain was named by it when the snapshot was taken.
    Remembered(PathBuf),
    /// The user says so now.
    Named(PathBuf),
}

/// What becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CfgAfter {
    /// It is not known.
    Unknown,
    /// It says already what it should.
    Right,
    /// It gets another text.
    Replace(ReplaceCfg),
    /// It cannot be made to say what it should.
    Trouble {
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// The image of a disk after the revert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskChange {
    /// The image.
    pub change: Change,
    /// Whether it is another one than before: if not, a file that does not know of the disk, or tells
    /// its image in other words, is right as well.
    pub needed: bool,
}

/// The image of a disk after the revert; none for one that is not put back.
pub(crate) fn change(disk: &DiskRevert, found: &DiskFound) -> Option<DiskChange> {
    let record = &found.record;
    let (target, format) = match &disk.switch {
        Some(switch) => switch.clone(),
        None => record.snapshot.kind().target(&record.path, record.format)?,
    };
    let elsewhere = found.top.as_ref().is_some_and(|top| *top != record.path);
    let needed = disk.switch.is_some() || elsewhere;
    Some(DiskChange { change: Change::new(&record.vdev, &target, format), needed })
}
