//! What `revert` has done.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;
use uuid::Uuid;

use super::cfg::write_cfg_disks;
use super::{CfgReplaced, CfgTrouble, Rows};
use crate::quiesce::Quiesced;
use crate::tool::quote;
use crate::xlcfg::literal;

/// What `revert` has done. Its JSON form is a contract.
#[derive(Debug, Clone, Serialize)]
pub struct Reverted {
    /// The snapshot's name.
    pub name: String,
    /// Its identity.
    pub id: Uuid,
    /// The domain's name.
    pub domain: String,
    /// The domain's UUID.
    pub uuid: Uuid,
    /// The domain's number now.
    pub domid: Option<u32>,
    /// The domain of the snapshot, if the one that was restored is another one beside it.
    pub clone_of: Option<String>,
    /// Whether it was left paused.
    pub paused: bool,
    /// Whether it goes on with its memory; else it was started anew.
    pub memory: bool,
    /// How the guest's file systems were frozen for the snapshot, if they were.
    pub quiesced: Option<Quiesced>,
    /// Whether it was restored while the old one ran.
    pub restored_first: bool,
    /// How long there was no running domain, in milliseconds: from the pause or the destruction of the old one
    /// until the new one ran. Not known if none ran before, or if the new one was left paused.
    pub outage_ms: Option<f64>,
    /// How long everything took, in milliseconds.
    pub total_ms: f64,
    /// Each disk of the snapshot.
    pub disks: Vec<RevertedDisk>,
    /// The domain's xl configuration file, if it names other images now.
    pub cfg: Option<CfgReplaced>,
    /// The domain's xl configuration file, if it is known and could not be made to.
    pub cfg_trouble: Option<CfgTrouble>,
    /// Disk entries that the domain's xl configuration file needs now, if it was not rewritten.
    pub cfg_disks: Vec<String>,
}

/// What `revert` has done to one disk.
#[derive(Debug, Clone, Serialize)]
pub struct RevertedDisk {
    /// The guest's name of it.
    pub vdev: String,
    /// The image the guest goes on with.
    pub runs_on: PathBuf,
    /// Where that stays which the guest wrote since the snapshot.
    pub kept: Option<String>,
    /// Why it was not reverted.
    pub why: Option<String>,
}

impl fmt::Display for Reverted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let domid = self.domid.map(|domid| format!("domain {domid}")).unwrap_or("gone".into());
        let paused = if self.paused { ", paused" } else { "" };
        write!(f, "{} ({domid}{paused}) ", self.domain)?;
        let without = match &self.clone_of {
            None => {
                writeln!(f, "is back at snapshot {}", self.name)?;
                "not reverted"
            }
            Some(old) => {
                writeln!(f, "is a new domain from snapshot {} of {old}", self.name)?;
                "shared"
            }
        };
        let mut rows = Rows::default();
        if !self.memory {
            rows.add("memory", match self.quiesced {
                None => "none: it was started anew",
                Some(_) => "none: it was started anew, from file systems that were frozen for the snapshot",
            });
        }
        for disk in &self.disks {
            rows.add(
                &disk.vdev,
                match &disk.why {
                    Some(why) => format!("{without}: {why}"),
                    None => quote(&disk.runs_on),
                },
            );
            if let Some(kept) = &disk.kept {
                rows.add("", format!("the previous contents are kept in {kept}"));
            }
        }
        if let Some(ms) = self.outage_ms {
            rows.add("outage", format!("{ms:.0} ms"));
        }
        rows.add("total", format!("{:.1} s", self.total_ms / 1000.0));
        self.cfg.iter().for_each(|cfg| rows.add("config", cfg.to_string()));
        rows.fmt(f)?;
        let Some(old) = &self.clone_of else {
            let trouble = self.cfg_trouble.as_ref();
            return write_cfg_disks(f, &self.domain, trouble, &self.cfg_disks);
        };
        let (name, uuid) = (&self.domain, self.uuid);
        writeln!(f, "{name} has no xl configuration file. To start it later, copy that of {old},")?;
        writeln!(f, "give it the name {name}, uuid=\"{uuid}\" and these disk entries:")?;
        self.cfg_disks.iter().try_for_each(|entry| writeln!(f, "  {}", literal(entry, "'")))
    }
}
