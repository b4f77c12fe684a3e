//! What a backup has to say.

use std::fmt;
use std::path::PathBuf;

use indicatif::BinaryBytes;
use serde::Serialize;

use super::{ExportedDisk, Rows};
use crate::quiesce::Quiesced;
use crate::record::DisksOnly;
use crate::tool::quote;

/// What `backup` has made. Its JSON form is a contract.
#[derive(Debug, Clone, Serialize)]
pub struct Backup {
    /// The domain's name.
    pub domain: String,
    /// The name of the snapshot, which is gone.
    pub name: String,
    /// The new directory.
    pub directory: PathBuf,
    /// What the disks are worth.
    pub disks_only: Option<DisksOnly>,
    /// How the guest's file systems were frozen, if they were.
    pub quiesced: Option<Quiesced>,
    /// The snapshots of earlier backups that were deleted first.
    pub cleaned: Vec<String>,
    /// How long everything took, in milliseconds.
    pub total_ms: f64,
    /// Each disk.
    pub disks: Vec<ExportedDisk>,
}

impl fmt::Display for Backup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Backup of {} in {}", self.domain, quote(&self.directory))?;
        let mut rows = Rows::default();
        for disk in &self.disks {
            let size = disk.size_on_disk.map(|size| format!("  {}", BinaryBytes(size)));
            rows.add(
                &disk.vdev,
                match (&disk.why, &disk.file) {
                    (Some(why), _) => format!("not in it: {why}"),
                    (None, file) => {
                        format!(
                            "{}{}",
                            file.as_deref().unwrap_or_default(),
                            size.unwrap_or_default()
                        )
                    }
                },
            );
        }
        match (&self.quiesced, self.disks_only) {
            (Some(quiesced), _) => rows.add("frozen", quiesced.to_string()),
            (None, Some(worth)) => rows.add("worth", worth.to_string()),
            (None, None) => {}
        }
        rows.add("total", format!("{:.1} s", self.total_ms / 1000.0));
        rows.fmt(f)
    }
}
