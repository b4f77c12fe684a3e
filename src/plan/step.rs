//! One step of a plan: what it does and how it is undone.

pub mod deletion;
pub mod export;
pub mod freeze;
mod parts;
mod words;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::domain::DomainId;
use crate::error::Remaining;
use crate::names::SnapshotName;
use crate::need::Need;
use crate::plan::Switch;
use crate::process::Process;
use crate::record::Record;
use crate::tool::Invocation;
use deletion::Deletion;
use export::Export;
use freeze::Freeze;

pub use self::parts::{
    Action, ConfigOwner, ImageStart, ReplaceCfg, StoreConfig, Target, XenstoreWrite,
};

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Creates a new file with a tool; never touches an existing one.
    NewFile {
        path: PathBuf,
        /// The tool that fills it.
        fill: Invocation,
    },
    /// Resizes a qcow2 image that an earlier step has created.
    Resize {
        path: PathBuf,
        /// The size the guest will see, in bytes.
        size: u64,
    },
    /// Creates a reflink copy of a file (FICLONE, ioctl_ficlonerange(2)), with the same owner and
    /// permissions.
    Clone {
        from: PathBuf,
        to: PathBuf,
        /// Whether it has write permission.
        writable: bool,
    },
    /// Renames a file; the new name must be free.
    Rename { from: PathBuf, to: PathBuf },
    /// Removes a file this run made.
    RemoveNew { path: PathBuf },
    /// Removes the write permission from the base of an overlay, which marks it as a base.
    MakeReadOnly { path: PathBuf },
    /// Restores the write permission.
    MakeWritable { path: PathBuf },
    /// Opens the memory image and writes its header.
    OpenImage(Box<ImageStart>),
    /// Removes the unfinished image.
    DiscardImage,
    /// Stops the domain's xl process, which would take the suspend for the end of the domain.
    StopXl { process: Process },
    /// Continues it.
    ContinueXl { process: Process },
    /// Saves the guest's memory; afterwards the guest is suspended.
    Suspend {
        domain: DomainId,
        /// Whether the guest runs while most of its memory is copied.
        live: bool,
        /// The maximum length of the pause; checked after the memory is saved, and by
        /// [`Step::CheckSuspended`].
        max_pause: Option<Duration>,
        /// The images of its disks. Dom0's cached data of them is written to storage first: otherwise
        /// QEMU and LVM would do that in the pause.
        disks: Vec<PathBuf>,
    },
    /// Checks that nobody has resumed the suspended guest or changed its configuration: otherwise memory
    /// and disks would be from different moments, or a disk would be missing. Also checks that the pause
    /// is not too long.
    CheckSuspended {
        domain: DomainId,
        /// The text that libxl had stored, if no other step compares it.
        stored: Option<String>,
    },
    /// Pauses the domain, or keeps it paused after it is resumed.
    Pause { domain: DomainId },
    /// Unpauses a domain; does nothing if it is not paused.
    UnpauseExisting { domain: DomainId },
    /// Checks that the configuration of a domain has not changed.
    CheckConfig {
        domain: DomainId,
        /// The text that libxl had stored.
        stored: String,
    },
    /// Checks that a domain still exists.
    CheckExists { domain: DomainId },
    /// Checks once more that what a revert needs is there, after steps that may have taken hours.
    CheckNeeds {
        /// The domain that will be destroyed, if it runs.
        gone: Option<u32>,
        /// A guard never performs this step.
        #[serde(skip)]
        needs: Vec<Need>,
    },
    /// Checks that no domain with this UUID or name runs.
    CheckNotRunning {
        /// Nil if unknown.
        uuid: Uuid,
        domain: String,
    },
    /// Takes an internal snapshot of a qcow2 file that nobody has open.
    TakeInternal {
        path: PathBuf,
        /// Unique in the file.
        name: SnapshotName,
    },
    /// Deletes that snapshot, if it exists.
    UndoTakeInternal { path: PathBuf, name: SnapshotName },
    /// Creates the file for the record of a snapshot without memory, under a `.partial` name.
    OpenRecord {
        path: PathBuf,
        /// Without proofs.
        record: Box<Record>,
    },
    /// Removes the unfinished record.
    DiscardRecord,
    /// Fills in the proofs, syncs the record and renames it to its final name: all of it or
    /// nothing.
    CompleteRecord,
    /// Resumes the guest.
    Resume {
        domain: DomainId,
        /// The command that brings the guest back if it cannot be resumed, if there is one. Before
        /// Xen 4.20 xl cannot resume.
        otherwise: Option<String>,
    },
    /// Rewrites a stored configuration.
    StoreConfig(StoreConfig),
    /// Rewrites the user's xl configuration file.
    ReplaceCfg(ReplaceCfg),
    /// Restores its old text.
    RestoreCfg(ReplaceCfg),
    /// Rewrites the disks' keys in xenstore, if they still exist.
    Xenstore(Vec<XenstoreWrite>),
    /// Sends QEMU the transaction except its last byte, so that QEMU has read and parsed it before
    /// the pause.
    SendTransaction {
        domain: DomainId,
        /// One snapshot each.
        actions: Vec<Action>,
    },
    /// Cancels it, if it has not been done.
    CancelTransaction,
    /// Snapshots every disk QEMU serves, all or none.
    Transaction {
        domain: DomainId,
        /// One snapshot each.
        actions: Vec<Action>,
    },
    /// Waits until all of the guest's memory is compressed and written.
    FinishCompression,
    /// Syncs the memory image and reads it back: it will be the only copy of the guest's memory.
    SyncAndVerifyImage,
    /// Fills in the proofs, syncs the image and renames it to its final name.
    CompleteImage,
    /// Writes the checksums of an image that was completed while the guest was down.
    AddSums,
    /// Destroys the domain and waits until its QEMU has ended and has closed its files. libxl may still
    /// be working on the rest.
    Destroy {
        domain: DomainId,
        /// What to report if the domain is gone, but its disks are still in use.
        way_out: Remaining,
    },
    /// Waits until libxl has destroyed the domain completely: then its name is free, and dom0's kernel has
    /// closed its disks.
    AwaitDestroyed { domain: DomainId },
    /// Waits until nobody has a logical volume open any more, `VG/LV`.
    AwaitClosed { volume: String },
    /// Waits until no snapshot is being merged into a logical volume any more, `VG/LV`.
    AwaitMerged { volume: String },
    /// Runs a tool.
    Run(Invocation),
    /// Runs a tool that changes something and leaves it as it was, to hear now what it would refuse later.
    Rehearse(Invocation),
    /// Runs a tool whose effect another call undoes. The undo also works without an effect.
    Undoable { call: Invocation, undo: Invocation },
    /// Performs several steps at the same time.
    Together(Vec<Step>),
    /// Restores the domain from the memory image, paused.
    Restore {
        uuid: Uuid,
        domain: String,
        /// libxl's JSON, with the current disks.
        config: String,
        /// The image, if it is not the one that the operation began with.
        image: Option<PathBuf>,
    },
    /// Waits for a turn, to limit how many domains are restored at the same time; the turn ends with
    /// the restore.
    AwaitTurn,
    /// Destroys a half-restored domain, if it exists, and waits until its QEMU has ended. Leaves one
    /// that runs: it belongs to somebody else.
    DiscardDomain { uuid: Uuid, domain: String },
    /// Returns reverted disks to their previous contents after the revert has failed. First destroys a
    /// half-restored domain.
    UndoRevert {
        /// Nil if each start gives the domain another UUID.
        uuid: Uuid,
        domain: String,
        /// The steps of each disk; each step depends on those before it.
        disks: Vec<Vec<Step>>,
    },
    /// Applies an internal snapshot to its file and deletes it; does nothing if it does not exist.
    ApplyKept { path: PathBuf, name: SnapshotName },
    /// Undoes a rename, if it took place and the old name is free.
    UndoRename {
        from: PathBuf,
        /// Its previous name.
        to: PathBuf,
        /// The original under its other name, if a copy has taken its place. Without it the copy is gone already,
        /// and `from` is the original.
        kept: Option<PathBuf>,
    },
    /// The same for a logical volume.
    UndoRenameVolume {
        group: String,
        from: String,
        /// Its previous name.
        to: String,
        kept: Option<String>,
    },
    /// Starts a domain from its xl configuration file.
    CreateDomain {
        /// Its name in the file.
        domain: String,
        cfg: PathBuf,
        paused: bool,
    },
    /// Lets the restored domain run.
    Unpause {
        /// Its number is unknown before it is restored.
        uuid: Uuid,
        domain: String,
    },
    /// Marks the files of disks, whose content does not tell it, with the snapshot that they continue from. A hint: it
    /// never fails.
    Mark { id: Uuid, files: Vec<PathBuf> },
    /// Deletes an internal snapshot of a disk of the running domain, through its QEMU.
    DeleteInternal {
        /// Nil if each start gives the domain another UUID, and only its name is known.
        uuid: Uuid,
        domain: String,
        vdev: String,
        name: String,
    },
    /// One step of a deletion.
    Delete(Deletion),
    /// Freezes or thaws a guest's file systems.
    Freeze(Freeze),
    /// One step of an export.
    Export(Export),
    /// Removes a file that is no longer needed.
    RemoveFile { path: PathBuf },
    /// Replaces a domain by another one.
    Switch(Switch),
}

impl Step {
    /// One step that performs several at the same time, if there are any.
    pub fn together(mut steps: Vec<Step>) -> Option<Step> {
        match steps.len() {
            0 | 1 => steps.pop(),
            _ => Some(Step::Together(steps)),
        }
    }

    /// The steps of several disks: different disks at the same time, the steps of one disk one after
    /// the other.
    pub fn in_rounds(disks: &[&[Step]]) -> Vec<Step> {
        let rounds = disks.iter().map(|steps| steps.len()).max().unwrap_or(0);
        let round =
            |number: usize| disks.iter().filter_map(move |steps| steps.get(number).cloned());
        (0..rounds).filter_map(|number| Step::together(round(number).collect())).collect()
    }

    /// The steps it consists of.
    pub fn apart(self) -> Vec<Step> {
        match self {
            Step::Together(steps) => steps,
            one => vec![one],
        }
    }

    /// The step that undoes this one. Every undo accepts that there is nothing to undo.
    pub fn undo(&self) -> Option<Step> {
        match self {
            Step::NewFile { path, .. } => Some(Step::RemoveNew { path: path.clone() }),
            Step::Clone { to, .. } => Some(Step::RemoveNew { path: to.clone() }),
            Step::Undoable { undo, .. } => Some(Step::Run(undo.clone())),
            Step::MakeReadOnly { path } => Some(Step::MakeWritable { path: path.clone() }),
            Step::OpenImage(_) => Some(Step::DiscardImage),
            Step::OpenRecord { .. } => Some(Step::DiscardRecord),
            Step::Delete(Deletion::WriteRecord { path, .. }) => {
                Some(Step::RemoveNew { path: path.clone() })
            }
            Step::SendTransaction { .. } => Some(Step::CancelTransaction),
            Step::TakeInternal { path, name } => {
                Some(Step::UndoTakeInternal { path: path.clone(), name: name.clone() })
            }
            Step::Pause { domain } => Some(Step::UnpauseExisting { domain: domain.clone() }),
            Step::ReplaceCfg(cfg) => Some(Step::RestoreCfg(cfg.clone())),
            Step::StopXl { process } => Some(Step::ContinueXl { process: *process }),
            Step::Suspend { domain, .. } => {
                Some(Step::Resume { domain: domain.clone(), otherwise: None })
            }
            Step::StoreConfig(store) => Some(Step::StoreConfig(StoreConfig {
                new: store.old.clone(),
                old: store.new.clone(),
                what: format!("back, not {}", store.what),
                domain: store.domain.clone(),
                whose: store.whose,
            })),
            Step::Restore { uuid, domain, .. } => {
                Some(Step::DiscardDomain { uuid: *uuid, domain: domain.clone() })
            }
            Step::Export(export) => export.undo().map(Step::Export),
            Step::Switch(switch) => switch.undo().map(Step::Switch),
            Step::Freeze(freeze) => freeze.undo().map(Step::Freeze),
            Step::Together(steps) => {
                Step::together(steps.iter().rev().filter_map(Step::undo).collect())
            }
            _ => None,
        }
    }

    /// Whether it may take hours, because it copies the content of a disk.
    pub fn copies_disk(&self) -> bool {
        match self {
            Step::NewFile { fill, .. } => fill.copies_images(),
            Step::Together(steps) => steps.iter().any(Step::copies_disk),
            _ => false,
        }
    }

    /// Whether an undo step only removes unused things: it can wait until the guest runs.
    pub fn can_wait(&self) -> bool {
        matches!(
            self,
            Step::Run(_)
                | Step::RemoveNew { .. }
                | Step::MakeWritable { .. }
                | Step::DiscardImage
                | Step::DiscardRecord
                | Step::CancelTransaction
                | Step::UndoTakeInternal { .. }
                | Step::Export(Export::Discard { .. })
        )
    }

    /// Whether the guest is paused after this step.
    pub fn pauses_guest(&self) -> bool {
        matches!(self, Step::Suspend { .. } | Step::Pause { .. })
    }

    /// Whether this step lets the guest run.
    pub fn resumes_guest(&self) -> bool {
        matches!(
            self,
            Step::Resume { .. }
                | Step::Unpause { .. }
                | Step::UnpauseExisting { .. }
                | Step::Switch(Switch::Run { .. })
        )
    }
}
