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
use crate::error::Left;
use crate::names::SnapshotName;
use crate::plan::Switch;
use crate::process::Process;
use crate::record::Record;
use crate::tool::Invocation;
use deletion::Deletion;
use export::Export;
use freeze::Freeze;

pub use self::parts::{Action, ImageStart, ReplaceCfg, StoreConfig, Target, Whose, XenstoreWrite};

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Makes a new file with a tool; never touches an existing one.
    NewFile {
        path: PathBuf,
        /// What fills it.
        fill: Invocation,
    },
    /// Gives a qcow2 image that a step before has made another size.
    Resize {
        path: PathBuf,
        /// The size the guest will see, in bytes.
        size: u64,
    },
    /// Makes a new file that shares its content with another one, by the file system's own means
    /// (FICLONE, ioctl_ficlonerange(2)); owner and permissions are the same.
    Clone {
        /// The file.
        from: PathBuf,
        /// The new one.
        to: PathBuf,
        /// Whether anybody may write to it.
        writable: bool,
    },
    /// Gives a file another name, which must be free.
    Rename {
        /// The file.
        from: PathBuf,
        /// Its new name.
        to: PathBuf,
    },
    /// Removes a file this run made.
    RemoveNew { path: PathBuf },
    /// Takes the write permission from the base of an overlay: the mark that others rest on it.
    Protect { path: PathBuf },
    /// Gives it back.
    Unprotect { path: PathBuf },
    /// Opens the memory image and writes its header.
    OpenImage(Box<ImageStart>),
    /// Removes the unfinished image.
    DiscardImage,
    /// Stops the domain's xl process, which would take the suspend for the domain's end.
    HoldMonitor { process: Process },
    /// Lets it go on.
    WakeMonitor { process: Process },
    /// Saves the guest's memory; the guest stands still when it is done.
    Suspend {
        domain: DomainId,
        /// Whether the guest runs while most of its memory is copied.
        live: bool,
        /// How long it may have stood still when its memory is saved, and when that is checked.
        max_pause: Option<Duration>,
        /// The images of its disks. What dom0 has cached of them is written to their storage first: else
        /// QEMU and LVM would do that while the guest stands still.
        disks: Vec<PathBuf>,
    },
    /// Makes sure that nobody has let the suspended guest run or changed its configuration: then memory
    /// and disks would not be of one moment, or a disk would be missing. And that the guest has not stood
    /// still for too long.
    CheckStill {
        domain: DomainId,
        /// The text libxl had stored of it, if no other step compares it.
        stored: Option<String>,
    },
    /// Makes the domain stand still, or stay paused once it is resumed.
    Pause { domain: DomainId },
    /// Lets a domain go on that was paused; one that is not needs nothing.
    LetRun { domain: DomainId },
    /// Makes sure that a domain is configured as before.
    CheckSame {
        domain: DomainId,
        /// The text libxl had stored of it.
        stored: String,
    },
    /// Makes sure that a domain is still there.
    CheckThere { domain: DomainId },
    /// Makes sure that no domain of this UUID or name runs.
    CheckDown {
        /// The UUID; nil if it is not known.
        uuid: Uuid,
        /// The name.
        domain: String,
    },
    /// Takes a snapshot inside of a qcow2 file that nobody has open.
    TakeInternal {
        path: PathBuf,
        /// The snapshot's name, which no other one there has.
        name: SnapshotName,
    },
    /// Deletes that snapshot, if it is there.
    UntakeInternal { path: PathBuf, name: SnapshotName },
    /// Makes the file for the record of a snapshot without memory, under a `.partial` name.
    OpenRecord {
        path: PathBuf,
        /// The record, not complete yet.
        record: Box<Record>,
    },
    /// Removes the unfinished record.
    DiscardRecord,
    /// Fills in the proofs, makes the record durable and gives it its name: all that, or nothing.
    CompleteRecord,
    /// Lets the guest go on.
    Resume {
        domain: DomainId,
        /// The command that brings the guest back if it cannot be resumed, where there is one. Before
        /// Xen 4.20 xl has none that resumes.
        otherwise: Option<String>,
    },
    /// Rewrites a stored configuration.
    StoreConfig(StoreConfig),
    /// Rewrites the user's xl configuration file.
    ReplaceCfg(ReplaceCfg),
    /// Gives it its old text again.
    PutCfgBack(ReplaceCfg),
    /// Rewrites the disks' keys in xenstore, as far as they are still there.
    Xenstore(Vec<XenstoreWrite>),
    /// Hands QEMU the transaction but for its last byte: it has read and understood it when the guest
    /// stands still.
    Arm {
        domain: DomainId,
        /// A snapshot each.
        actions: Vec<Action>,
    },
    /// Takes it back, if it has not been done.
    Disarm,
    /// Snapshots every disk QEMU serves, all or none.
    Transaction {
        domain: DomainId,
        /// A snapshot each.
        actions: Vec<Action>,
    },
    /// Waits until all of the guest's memory is compressed and written.
    DrainImage,
    /// Makes the memory image durable and reads it back: nothing else will have the guest's memory.
    SecureImage,
    /// Fills in the proofs, makes the image durable and gives it its name.
    CompleteImage,
    /// Writes the checksums of an image that was completed while the guest was down.
    AddSums,
    /// Destroys the domain and waits until its QEMU is gone: what QEMU had open is free then. libxl may
    /// still be at work on the rest.
    Destroy {
        domain: DomainId,
        /// What to tell if the domain is gone then, but its disks are still in use.
        way_out: Left,
    },
    /// Waits until libxl has destroyed all of the domain: its name and what dom0's kernel had open are free
    /// then.
    AwaitDestroyed { domain: DomainId },
    /// Waits until nobody has a logical volume open any more, `VG/LV`.
    AwaitClosed { volume: String },
    /// Waits until no snapshot is being merged into a logical volume any more, `VG/LV`.
    AwaitMerged { volume: String },
    /// Runs a tool.
    Run(Invocation),
    /// Runs a tool whose effect another call takes back, also when there was none.
    Undoable {
        /// What is run.
        call: Invocation,
        /// What takes it back.
        undo: Invocation,
    },
    /// Does several things at a time.
    Together(Vec<Step>),
    /// Restores the domain from the memory image, paused.
    Restore {
        uuid: Uuid,
        domain: String,
        /// libxl's JSON, disks as they are now.
        config: String,
        /// The image, if it is not the one the operation began with.
        image: Option<PathBuf>,
    },
    /// Waits for a turn, where any number of domains may be restored at the same time; it ends with the
    /// restore.
    AwaitTurn,
    /// Destroys a domain that was being restored, if it is there, and waits until its QEMU is gone. One
    /// that runs is somebody else's by now.
    DiscardDomain { uuid: Uuid, domain: String },
    /// Puts disks that were put back to a snapshot to what they held before: the revert failed after that.
    /// A domain that was being restored is destroyed first.
    TakeBack {
        /// The domain's UUID; nil if each start gives it another one.
        uuid: Uuid,
        domain: String,
        /// What is done, disk by disk; each step on those before it.
        disks: Vec<Vec<Step>>,
    },
    /// Makes an internal snapshot the content of its file again, and deletes it; nothing if it is not there.
    PutKeptBack { path: PathBuf, name: SnapshotName },
    /// Takes a renaming back, if it took place and the old name is free.
    RenameBack {
        /// The file.
        from: PathBuf,
        /// The name it had.
        to: PathBuf,
    },
    /// The same for a logical volume.
    RenameVolumeBack {
        group: String,
        /// The volume.
        from: String,
        /// The name it had.
        to: String,
    },
    /// Starts a domain from its xl configuration file.
    CreateDomain {
        /// Its name, which the file tells.
        domain: String,
        /// The file.
        cfg: PathBuf,
        /// Whether it is left paused.
        paused: bool,
    },
    /// Lets the restored domain run.
    Unpause {
        /// The domain's UUID: its number is not known before it is restored.
        uuid: Uuid,
        domain: String,
    },
    /// Deletes an internal snapshot of a disk of the running domain, through its QEMU.
    DropInternal {
        /// The domain's UUID; nil if each start gives it another one, and only its name is known.
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
    /// Removes a file that is not needed any more.
    RemoveFile { path: PathBuf },
    /// Has a domain take the place of another one.
    Switch(Switch),
}

impl Step {
    /// One step that does several at the same time, if there is anything to do.
    pub fn together(mut steps: Vec<Step>) -> Option<Step> {
        match steps.len() {
            0 | 1 => steps.pop(),
            _ => Some(Step::Together(steps)),
        }
    }

    /// The steps of several disks: disks at the same time, the steps of one disk one after the other.
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

    /// The step that takes this one back. Every undo accepts that there is nothing to undo.
    pub fn undo(&self) -> Option<Step> {
        match self {
            Step::NewFile { path, .. } => Some(Step::RemoveNew { path: path.clone() }),
            Step::Clone { to, .. } => Some(Step::RemoveNew { path: to.clone() }),
            Step::Undoable { undo, .. } => Some(Step::Run(undo.clone())),
            Step::Protect { path } => Some(Step::Unprotect { path: path.clone() }),
            Step::OpenImage(_) => Some(Step::DiscardImage),
            Step::OpenRecord { .. } => Some(Step::DiscardRecord),
            Step::Delete(Deletion::WriteRecord { path, .. }) => {
                Some(Step::RemoveNew { path: path.clone() })
            }
            Step::Arm { .. } => Some(Step::Disarm),
            Step::TakeInternal { path, name } => {
                Some(Step::UntakeInternal { path: path.clone(), name: name.clone() })
            }
            Step::Pause { domain } => Some(Step::LetRun { domain: domain.clone() }),
            Step::ReplaceCfg(cfg) => Some(Step::PutCfgBack(cfg.clone())),
            Step::HoldMonitor { process } => Some(Step::WakeMonitor { process: *process }),
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

    /// Whether an undoing step only removes what nobody uses: it need not be done while the guest
    /// stands still.
    pub fn can_wait(&self) -> bool {
        matches!(
            self,
            Step::Run(_)
                | Step::RemoveNew { .. }
                | Step::Unprotect { .. }
                | Step::DiscardImage
                | Step::DiscardRecord
                | Step::Disarm
                | Step::UntakeInternal { .. }
                | Step::Export(Export::Discard { .. })
        )
    }

    /// Whether the guest stands still after this step.
    pub fn stops_guest(&self) -> bool {
        matches!(self, Step::Suspend { .. } | Step::Pause { .. })
    }

    /// Whether the guest goes on with this step.
    pub fn lets_guest_run(&self) -> bool {
        matches!(
            self,
            Step::Resume { .. }
                | Step::Unpause { .. }
                | Step::LetRun { .. }
                | Step::Switch(Switch::Run { .. })
        )
    }
}
