//! What is seen of a domain and the host, before a snapshot. Pure.

use std::path::PathBuf;

use crate::create::drives::Drive;
use crate::disk::DiskSeen;
use crate::domain::{DomainConfig, DomainId};
use crate::need::Trouble;
use crate::process::Process;
use crate::quiesce::Way;
use crate::release::xl_exits_at_suspend;
use crate::state::State;
use crate::tool::volumes::Volume;

/// What was seen of the domain and the host, while the guest runs.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The domain. If it does not run its number is 0, and its UUID nil where its configuration file
    /// names none.
    pub domain: DomainId,
    /// What it is doing.
    pub state: State,
    /// Its configuration, from libxl.
    pub config: DomainConfig,
    /// Its xl configuration file, if it was named by that.
    pub cfg: Option<PathBuf>,
    /// The text libxl has stored of it, which save, migrate and reboot follow.
    pub stored: String,
    /// Its disks, in the order of the configuration.
    pub disks: Vec<DiskSeen>,
    /// Drives of its QEMU beside those.
    pub drives: Vec<Drive>,
    /// The host's logical volumes; looked at only if a disk may be one.
    pub volumes: std::result::Result<Vec<Volume>, String>,
    /// Its xl process, if it has one.
    pub monitor: Option<Process>,
    /// xl processes of which nothing tells whether one is its.
    pub unsure_monitors: Vec<i32>,
    /// The process that writes its memory somewhere, if there is one.
    pub saver: Option<i32>,
    /// The running Xen release.
    pub xen: String,
    /// Whether Xen has shadow paging, without which it cannot track the writes of a PV guest.
    pub shadow_paging: bool,
    /// Whether dom0 has a QEMU of its own, without which a boot loader cannot read qcow2 images.
    pub dom0_qemu: bool,
    /// What a revert would lack right away; looked at only if memory is saved.
    pub troubles: Vec<Trouble>,
    /// If the guest has more memory than it should: what it has, and its target, in KiB. The configuration has what
    /// the guest has.
    pub above_target: Option<(u64, u64)>,
    /// Who freezes its file systems, if that is asked for.
    pub way: Option<Way>,
    /// Where the image is to be.
    pub image: ImagePlace,
    /// The file systems of the image, of the disks and of their new images, as far as they are known.
    pub spaces: Vec<Space>,
}

impl Seen {
    /// The xl process that would take the suspend for the domain's end.
    pub(super) fn to_hold(&self) -> Option<Process> {
        self.monitor.filter(|_| xl_exits_at_suspend(&self.xen))
    }
}

/// The file system that a file is on, or will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Space {
    pub file: PathBuf,
    /// The number of the file system.
    pub device: u64,
    /// What is free, in bytes.
    pub free: u64,
    /// Whether it is in memory, so that it ends with the host.
    pub volatile: bool,
}

/// What is known of the place for the memory image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImagePlace {
    /// A file.
    File {
        path: PathBuf,
        /// Why it cannot be made, if it cannot.
        trouble: Option<String>,
        /// The free space of its file system in bytes.
        free: u64,
    },
    /// Standard output.
    Stdout,
    /// There is none: a file for the record alone.
    Record {
        path: PathBuf,
        /// Why it cannot be made, if it cannot.
        trouble: Option<String>,
    },
}
