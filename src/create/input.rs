//! Observations of a domain and the host before a snapshot. Pure.

use std::path::PathBuf;

use crate::create::drives::Drive;
use crate::disk::RunningDisk;
use crate::domain::{DomainConfig, DomainId};
use crate::need::Trouble;
use crate::process::Process;
use crate::quiesce::FreezeMethod;
use crate::release::xl_exits_at_suspend;
use crate::state::State;
use crate::tool::volumes::Volume;

/// Observations of the domain and the host, while the guest runs.
#[derive(Debug, Clone)]
pub struct CreateInput {
    /// If the domain does not run, its number is 0, and its UUID is nil if its configuration file
    /// names none.
    pub domain: DomainId,
    pub state: State,
    /// From libxl.
    pub config: DomainConfig,
    /// Its xl configuration file, if the user named the domain by it.
    pub cfg: Option<PathBuf>,
    /// The text that libxl has stored, which save, migrate and reboot use.
    pub stored: String,
    /// In the order of the configuration.
    pub disks: Vec<RunningDisk>,
    /// Drives of its QEMU in addition to the disks.
    pub drives: Vec<Drive>,
    /// The host's logical volumes; read only if a disk may be one.
    pub volumes: std::result::Result<Vec<Volume>, String>,
    /// Its xl process.
    pub monitor: Option<Process>,
    /// xl processes whose domain is unknown: one may be its.
    pub unsure_monitors: Vec<i32>,
    /// The process that is saving its memory, if there is one.
    pub saver: Option<i32>,
    pub xen: String,
    /// Whether Xen has shadow paging, without which it cannot track the writes of a PV guest.
    pub shadow_paging: bool,
    /// Whether dom0 has a QEMU of its own, without which a boot loader cannot read qcow2 images.
    pub dom0_qemu: bool,
    /// What a revert would lack right away; checked only if memory is saved.
    pub troubles: Vec<Trouble>,
    /// What it would lack besides if a disk gets an overlay.
    pub overlay_troubles: Vec<Trouble>,
    /// If the guest has more memory than its target: its memory and its target, in KiB. The configuration has its
    /// memory.
    pub above_target: Option<(u64, u64)>,
    /// How to freeze its file systems, if requested.
    pub way: Option<FreezeMethod>,
    /// The place of the image.
    pub image: ImagePlace,
    /// The file systems of the image, of the disks and of their new images, if known.
    pub spaces: Vec<Space>,
}

impl CreateInput {
    /// The xl process that would take the suspend for the end of the domain.
    pub(super) fn xl_to_stop(&self) -> Option<Process> {
        self.monitor.filter(|_| xl_exits_at_suspend(&self.xen))
    }
}

/// The file system that a file is on, or will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Space {
    pub file: PathBuf,
    pub device: u64,
    /// The free space, in bytes.
    pub free: u64,
    /// Whether it is in memory (tmpfs), so that it does not survive a reboot.
    pub volatile: bool,
}

/// The place for the memory image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImagePlace {
    File {
        path: PathBuf,
        /// Why the file cannot be created, if it cannot.
        trouble: Option<String>,
        /// The free space of its file system in bytes.
        free: u64,
    },
    Stdout,
    /// No image: a file for the record alone.
    Record {
        path: PathBuf,
        /// Why the file cannot be created, if it cannot.
        trouble: Option<String>,
    },
}
