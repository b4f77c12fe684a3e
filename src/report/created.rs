//! What `create` has done.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;
use uuid::Uuid;

use super::cfg::write_cfg_disks;
use super::{CfgReplaced, Rows, size_words};
use crate::disk::kind::{Content, Role};
use crate::quiesce::Quiesced;
use crate::record::{DisksOnly, Record};
use crate::tool::quote;
use crate::tool::volumes::device;

/// What `create` has done. Its JSON form is a contract.
#[derive(Debug, Clone, Serialize)]
pub struct Created {
    /// The snapshot's name.
    pub name: String,
    /// Its identity.
    pub id: Uuid,
    /// The domain's name.
    pub domain: String,
    /// The domain's number, if it runs.
    pub domid: Option<u32>,
    /// Whether memory was copied while the guest ran.
    pub live: bool,
    /// Whether the domain was restored from the image, on its new disks.
    pub restored: bool,
    /// The record of a snapshot without memory.
    pub record: Option<PathBuf>,
    /// What its disks are worth: `offline`, `quiesced` or `crash-consistent`.
    pub disks_only: Option<DisksOnly>,
    /// How the guest's file systems were frozen, if they were.
    pub quiesced: Option<Quiesced>,
    /// The memory image; absent on a pipe, and if there is none.
    pub image: Option<PathBuf>,
    /// Its length in bytes; absent on a pipe.
    pub image_size: Option<u64>,
    /// What it takes on its file system, in bytes: pages of zeros take nothing.
    pub size_on_disk: Option<u64>,
    /// How much of that it shares with other images, in bytes; not known on all file systems.
    pub shared: Option<u64>,
    /// How long the guest stood still, in milliseconds.
    pub pause_ms: Option<f64>,
    /// How long everything took, in milliseconds.
    pub total_ms: f64,
    /// Each disk.
    pub disks: Vec<CreatedDisk>,
    /// The domain's xl configuration file, if it names other images now.
    pub cfg: Option<CfgReplaced>,
    /// Disk entries that the domain's xl configuration file needs now, where that is not known.
    pub cfg_disks: Vec<String>,
}

/// What `create` has done to one disk.
#[derive(Debug, Clone, Serialize)]
pub struct CreatedDisk {
    /// The guest's name of it.
    pub vdev: String,
    /// `internal`, `external`, `lvm`, `reflink`, `vhd` or `none`.
    pub snapshot: &'static str,
    /// The image that holds the content at the snapshot.
    pub image: PathBuf,
    /// The image the guest goes on with.
    pub runs_on: PathBuf,
    /// Whether that is another one than before.
    #[serde(skip)]
    pub moved: bool,
    /// Why it was left out.
    pub why: Option<String>,
}

impl Created {
    /// From a record, complete or not.
    pub fn disks(record: &Record) -> Vec<CreatedDisk> {
        record
            .disks
            .iter()
            .map(|disk| {
                let snapshot = disk.snapshot.kind();
                let image = match snapshot.content() {
                    Content::Volume(volume) => device(volume.group, volume.name),
                    content => content.frozen_file(&disk.path).unwrap_or(&disk.path).to_owned(),
                };
                let runs_on = snapshot.new_file().filter(|file| file.role != Role::Copy);
                CreatedDisk {
                    vdev: disk.vdev.clone(),
                    snapshot: disk.snapshot.name(),
                    image,
                    runs_on: runs_on.map_or(disk.path.as_path(), |file| file.path).to_owned(),
                    why: snapshot.why_left_out().map(str::to_owned),
                    moved: runs_on.is_some(),
                }
            })
            .collect()
    }
}

impl fmt::Display for Created {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let live = if self.live { ", live" } else { "" };
        let domid = self.domid.map(|domid| format!("domain {domid}{live}"));
        let domid = domid.unwrap_or("which does not run".into());
        writeln!(f, "Snapshot {} of {} ({domid})", self.name, self.domain)?;
        let mut rows = Rows::default();
        rows.add(
            "memory",
            match (&self.image, self.image_size, self.disks_only) {
                (_, _, Some(kind)) => format!("none: {kind}"),
                (Some(image), Some(size), None) => {
                    format!(
                        "{}  {}",
                        quote(image),
                        size_words(size, self.size_on_disk, self.shared)
                    )
                }
                _ => "to standard output".into(),
            },
        );
        self.record.iter().for_each(|record| rows.add("record", quote(record)));
        self.quiesced.iter().for_each(|quiesced| rows.add("frozen", quiesced.to_string()));
        for disk in &self.disks {
            let (image, runs_on) = (quote(&disk.image), quote(&disk.runs_on));
            rows.add(
                &disk.vdev,
                match &disk.why {
                    Some(why) => format!("left out: {why}"),
                    None if disk.moved => {
                        format!("{image} is frozen; the guest now runs on {runs_on}")
                    }
                    None if disk.image == disk.runs_on => {
                        format!("{} snapshot {} in {image}", disk.snapshot, self.name)
                    }
                    None => format!("{image} is the snapshot of {runs_on}"),
                },
            );
        }
        if let Some(domid) = self.domid.filter(|_| self.restored) {
            rows.add("domain", format!("restored from the image, as domain {domid}"));
        }
        let unknown = if self.disks_only.is_some() { "none" } else { "unknown" };
        let pause = self.pause_ms.map(|ms| format!("{ms:.0} ms")).unwrap_or(unknown.into());
        rows.add("pause", format!("{pause} of {:.1} s in all", self.total_ms / 1000.0));
        self.cfg.iter().for_each(|cfg| rows.add("config", cfg.to_string()));
        rows.fmt(f)?;
        write_cfg_disks(f, &self.domain, None, &self.cfg_disks)
    }
}
