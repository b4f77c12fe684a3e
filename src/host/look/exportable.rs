//! Inspects the disks of a snapshot, for `export` and `serve`. Changes nothing.

use std::path::Path;

use super::disks_of_others;
use super::domains::{listed, with_name, with_uuid};
use super::revert::{disk_found, disks_of, volumes_for};
use crate::disk::{self, Place, SnapshotDisk};
use crate::error::Result;
use crate::export;
use crate::host::needs::{self, CheckContext};
use crate::host::parallel::in_parallel;
use crate::host::toolstack::Toolstack;
use crate::need::{Need, Trouble};
use crate::record::Record;
use crate::tool::volumes;

/// What an export reads.
#[derive(Debug)]
pub struct Exportable {
    /// In the order of the record.
    pub disks: Vec<SnapshotDisk>,
    /// The host's logical volumes; read only if the snapshot has one.
    pub volumes: std::result::Result<Vec<volumes::Volume>, String>,
    /// Programs that write to the images that would be read.
    pub troubles: Vec<Trouble>,
}

/// Inspects the disks of a snapshot for `export`, which copies them into a new directory. Without a toolstack, running
/// domains are unknown.
pub fn for_export(
    toolstack: Option<&Toolstack>,
    record: &Record,
    directory: &Path,
) -> Result<Exportable> {
    let domains = toolstack.map(listed).transpose()?.unwrap_or_default();
    let domain = &record.domain;
    // A domain of a snapshot without memory may have another UUID now.
    let same = with_uuid(&domains, domain.uuid)?.or_else(|| with_name(&domains, &domain.name));
    let same = same.map(|same| same.id.domid);
    let (current, others) = match toolstack {
        Some(toolstack) => (
            same.map_or(Ok(Vec::new()), |domid| disks_of(toolstack, domid))?,
            disks_of_others(toolstack, same)?,
        ),
        None => Default::default(),
    };
    let disks = in_parallel(&record.disks, |disk| {
        let path = directory.join(export::disk_name(disk));
        disk_found(disk, Place { path, trouble: None }, &current, &others)
    });
    let mut needs = Vec::new();
    for found in disks.iter().filter(|found| !found.record.snapshot.is_left_out()) {
        let about = disk::exporting::refused(&found.record);
        let whats = disk::needs(found, true);
        needs.extend(whats.into_iter().map(|what| Need { about: about.clone(), what }));
    }
    let (troubles, _) = needs::troubles(&needs, CheckContext { toolstack, gone: None, same });
    Ok(Exportable { disks, volumes: volumes_for(record), troubles })
}
