//! Disks that are not in the snapshot.

pub(super) mod record;

use self::record::LeftOut;
use crate::disk::exporting::DiskExport;
use crate::disk::parts::record;
use crate::disk::planner::Planner;
use crate::disk::{Context, DiskCreate, DiskRevert, RevertContext, RunningDisk, SnapshotDisk};
use crate::domain::Disk;
use crate::error::Result;
use crate::need::Requirement;
use crate::record::DiskRecord;
use crate::spec::Choice;

const CDROM: &str = "CD-ROM";
const READ_ONLY: &str = "read-only";

/// The reason why a disk has nothing to snapshot, if it has nothing.
pub(super) fn unchanging(disk: &Disk) -> Option<&'static str> {
    match disk {
        Disk { cdrom: true, .. } => Some(CDROM),
        Disk { writable: false, .. } => Some(READ_ONLY),
        _ => None,
    }
}

fn left_out(disk: &Disk, asked: bool) -> LeftOut {
    let why = unchanging(disk).filter(|_| !asked).unwrap_or("left out as asked");
    LeftOut { why: why.into() }
}

/// The record of a disk that is left out of a snapshot made by hand.
pub(super) fn by_hand(disk: &Disk, choice: Option<&Choice>) -> DiskRecord {
    DiskRecord {
        vdev: disk.vdev.clone(),
        path: disk.file().to_owned(),
        format: disk.format,
        snapshot: left_out(disk, choice.is_some()).into(),
    }
}

impl Planner for LeftOut {
    fn create(seen: &RunningDisk, choice: Option<&Choice>, _: Context<'_>) -> Result<DiskCreate> {
        Ok(DiskCreate::of(record(seen, left_out(&seen.disk, choice.is_some()))))
    }

    fn revert(&self, found: &SnapshotDisk, context: RevertContext<'_>) -> Result<DiskRevert> {
        // The guest may write to a disk that the user left out.
        let only_read = [CDROM, READ_ONLY].contains(&self.why.as_str());
        let note = only_read.then(|| found.rewritten(context.created)).flatten();
        Ok(DiskRevert { note, ..DiskRevert::default() })
    }

    fn export(&self, _: &SnapshotDisk, _: RevertContext<'_>) -> Result<Option<DiskExport>> {
        Ok(None)
    }

    fn needs(&self, _: &SnapshotDisk, _: bool) -> Vec<Requirement> {
        Vec::new()
    }
}
