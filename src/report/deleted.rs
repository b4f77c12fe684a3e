//! What `delete` has done.

use std::fmt;
use std::path::PathBuf;

use indicatif::BinaryBytes;
use serde::Serialize;
use uuid::Uuid;

use super::{CfgReplaced, Rows};
use crate::disk::image_tree::Merged;
use crate::plan::ReplaceCfg;
use crate::tool::quote;

/// What `delete` has done. Its JSON form is a contract.
#[derive(Debug, Clone, Serialize)]
pub struct Deletions {
    /// The snapshots that are deleted, or have lost their memory.
    pub snapshots: Vec<Deleted>,
    /// Those that are not.
    pub failed: Vec<Failed>,
}

/// A snapshot that was deleted.
#[derive(Debug, Clone, Serialize)]
pub struct Deleted {
    pub name: String,
    /// Its identity.
    pub id: Uuid,
    /// The domain's name when it was taken.
    pub domain: String,
    /// Its memory image, or its record, which is deleted.
    pub image: PathBuf,
    /// What that took on its file system, in bytes; 0 of a snapshot without memory.
    pub freed: u64,
    /// The record without memory that is left, with `--memory-only`.
    pub record: Option<PathBuf>,
    /// How long everything took, in milliseconds.
    pub total_ms: f64,
    /// Each disk that was in the snapshot; none with `--memory-only`.
    pub disks: Vec<DeletedDisk>,
    /// xl configuration files that name other images now.
    pub cfgs: Vec<CfgReplaced>,
}

/// What was done to one disk.
#[derive(Debug, Clone, Serialize)]
pub struct DeletedDisk {
    /// The guest's name of it.
    pub vdev: String,
    /// `internal`, `external`, `lvm`, `reflink` or `vhd`.
    pub snapshot: &'static str,
    /// The merges that were needed.
    pub merged: Vec<Merge>,
    /// The image that the domain has now, if that changed.
    pub runs_on: Option<PathBuf>,
    /// The deleted files, volumes and internal snapshots.
    pub removed: Vec<String>,
    /// Why something was left.
    pub kept: Option<String>,
}

/// A merge.
#[derive(Debug, Clone, Serialize)]
pub struct Merge {
    /// `commit` or `stream`.
    pub how: &'static str,
    /// What was copied.
    pub from: PathBuf,
    /// Where to.
    pub into: PathBuf,
    /// How much at most, in bytes.
    pub bytes: u64,
}

/// A snapshot that was not deleted, or not as a whole.
#[derive(Debug, Clone, Serialize)]
pub struct Failed {
    /// As it was named.
    pub snapshot: PathBuf,
    /// The exit status that it alone would have had.
    pub exit_status: u8,
    /// Why.
    pub why: String,
}

impl From<Merged> for Merge {
    fn from(merged: Merged) -> Merge {
        let Merged { how, from, into, bytes, .. } = merged;
        Merge { how, from, into, bytes }
    }
}

impl From<&ReplaceCfg> for CfgReplaced {
    fn from(cfg: &ReplaceCfg) -> CfgReplaced {
        CfgReplaced { path: cfg.path.clone(), backup: cfg.backup.clone() }
    }
}

impl fmt::Display for Deletions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.snapshots.iter().try_for_each(|snapshot| snapshot.fmt(f))
    }
}

impl fmt::Display for Deleted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Deleted { name, domain, .. } = self;
        let mut rows = Rows::default();
        match &self.record {
            None => writeln!(f, "Snapshot {name} of {domain} is deleted")?,
            Some(record) => {
                writeln!(f, "Snapshot {name} of {domain} has no memory any more")?;
                rows.add("record", quote(record));
            }
        }
        if self.freed > 0 {
            rows.add(
                "memory",
                format!("{}  {} freed", quote(&self.image), BinaryBytes(self.freed)),
            );
        }
        for disk in &self.disks {
            let mut lines: Vec<String> = disk
                .merged
                .iter()
                .map(|merge| {
                    let (from, into) = (quote(&merge.from), quote(&merge.into));
                    let bytes = BinaryBytes(merge.bytes);
                    format!("{} of {from} to {into}, {bytes} at most", merge.how)
                })
                .collect();
            lines.extend(disk.removed.iter().map(|removed| format!("{removed} is deleted")));
            lines.extend(
                disk.runs_on.iter().map(|path| format!("the guest now runs on {}", quote(path))),
            );
            lines.extend(disk.kept.clone());
            rows.add(&disk.vdev, lines.join("\n"));
        }
        self.cfgs.iter().for_each(|cfg| rows.add("config", cfg.to_string()));
        rows.fmt(f)
    }
}
