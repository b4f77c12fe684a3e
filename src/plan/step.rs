//! One step of a plan: what it does, how it is undone, how a person would do it.

use std::fmt;
use std::path::PathBuf;

use uuid::Uuid;

use crate::record::Record;
use crate::tool::{Invocation, quote};

/// Where a memory image is written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A file, under a `.partial` name until it is complete.
    File(PathBuf),
    /// Standard output.
    Stdout,
}

/// The beginning of a memory image.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageStart {
    /// Where it goes.
    pub target: Target,
    /// libxl's JSON of the domain, disks as they are before the snapshot.
    pub config: String,
    /// The record, not complete yet.
    pub record: Record,
}

// `Record` is compared in tests only, and holds no floating-point numbers.
impl Eq for ImageStart {}

/// libxl's stored configuration of a domain, which save, migrate and reboot follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// The domain.
    pub domid: u32,
    /// What is stored.
    pub new: String,
    /// What was stored before.
    pub old: String,
    /// What changes, for people: `xvda -> /srv/a.after-s1.qcow2`.
    pub what: String,
}

/// A value in xenstore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XenstoreWrite {
    /// The key.
    pub path: String,
    /// What is written.
    pub new: String,
    /// What stood there.
    pub old: String,
}

/// One action of a QMP transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// `blockdev-snapshot-internal-sync`
    Internal {
        /// The guest's name of the disk.
        vdev: String,
        /// QEMU's node.
        node: String,
        /// The snapshot's name.
        name: String,
    },
    /// `blockdev-snapshot-sync` to an overlay that exists.
    Overlay {
        /// The guest's name of the disk.
        vdev: String,
        /// QEMU's node.
        node: String,
        /// The overlay.
        file: PathBuf,
        /// QEMU's name for the overlay's node.
        new_node: String,
    },
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Makes a new file with a tool; never touches an existing one.
    NewFile {
        /// The file.
        path: PathBuf,
        /// What fills it.
        fill: Invocation,
    },
    /// Removes a file this run made.
    RemoveNew {
        /// The file.
        path: PathBuf,
    },
    /// Takes the write permission from the base of an overlay: the mark that others rest on it.
    Protect {
        /// The file.
        path: PathBuf,
    },
    /// Gives it back.
    Unprotect {
        /// The file.
        path: PathBuf,
    },
    /// Opens the memory image and writes its header.
    OpenImage(Box<ImageStart>),
    /// Removes the unfinished image.
    DiscardImage,
    /// Stops the domain's xl process, which would take the suspend for the domain's end.
    HoldMonitor {
        /// The process.
        pid: i32,
    },
    /// Lets it go on.
    WakeMonitor {
        /// The process.
        pid: i32,
    },
    /// Saves the guest's memory; the guest stands still when it is done.
    Suspend {
        /// The domain.
        domid: u32,
        /// Whether the guest runs while most of its memory is copied.
        live: bool,
    },
    /// Makes the domain stay paused once it is resumed.
    Pause {
        /// The domain.
        domid: u32,
    },
    /// Lets the guest go on.
    Resume {
        /// The domain.
        domid: u32,
    },
    /// Rewrites libxl's stored configuration.
    StoreConfig(StoreConfig),
    /// Rewrites the disks' keys in xenstore.
    Xenstore(Vec<XenstoreWrite>),
    /// Snapshots every disk QEMU serves, all or none.
    Transaction(Vec<Action>),
    /// Fills in the proofs, makes the image durable and gives it its name.
    CompleteImage,
    /// Destroys the domain and waits until its QEMU is gone.
    Destroy {
        /// The domain.
        domid: u32,
    },
    /// Runs a tool.
    Run(Invocation),
    /// Does several things at a time.
    Together(Vec<Step>),
    /// Restores the domain from the memory image, paused.
    Restore {
        /// The domain's name.
        domain: String,
        /// libxl's JSON, disks as they are now.
        config: String,
    },
    /// Lets the restored domain run.
    Unpause {
        /// The domain's UUID: its number is not known before it is restored.
        uuid: Uuid,
        /// Its name.
        domain: String,
    },
    /// Deletes an internal snapshot of a disk of the restored domain, through its QEMU.
    DropInternal {
        /// The domain's UUID.
        uuid: Uuid,
        /// The guest's name of the disk.
        vdev: String,
        /// The snapshot's name.
        name: String,
    },
    /// Removes a file that is not needed any more.
    RemoveFile {
        /// The file.
        path: PathBuf,
    },
}

impl Step {
    /// The step that takes this one back. Every undo accepts that there is nothing to undo.
    pub fn undo(&self) -> Option<Step> {
        match self {
            Step::NewFile { path, .. } => Some(Step::RemoveNew { path: path.clone() }),
            Step::Protect { path } => Some(Step::Unprotect { path: path.clone() }),
            Step::OpenImage(_) => Some(Step::DiscardImage),
            Step::HoldMonitor { pid } => Some(Step::WakeMonitor { pid: *pid }),
            Step::Suspend { domid, .. } => Some(Step::Resume { domid: *domid }),
            Step::StoreConfig(store) => Some(Step::StoreConfig(StoreConfig {
                new: store.old.clone(),
                old: store.new.clone(),
                what: format!("back, not {}", store.what),
                domid: store.domid,
            })),
            Step::Xenstore(writes) => Some(Step::Xenstore(
                writes
                    .iter()
                    .map(|write| XenstoreWrite {
                        path: write.path.clone(),
                        new: write.old.clone(),
                        old: write.new.clone(),
                    })
                    .collect(),
            )),
            Step::Together(steps) => {
                let undo: Vec<Step> = steps.iter().rev().filter_map(Step::undo).collect();
                (!undo.is_empty()).then_some(Step::Together(undo))
            }
            _ => None,
        }
    }

    /// The command a person types to do this step, where there is one.
    pub fn by_hand(&self) -> Option<String> {
        match self {
            Step::RemoveNew { path } | Step::RemoveFile { path } => {
                Some(format!("rm {}", quote(path)))
            }
            Step::Unprotect { path } => Some(format!("chmod u+w {}", quote(path))),
            Step::WakeMonitor { pid } => Some(format!("kill -CONT {pid}")),
            Step::Run(call) => Some(call.to_string()),
            Step::Xenstore(writes) => Some(
                writes
                    .iter()
                    .map(|w| format!("xenstore-write {} {}", quote(&w.path), quote(&w.new)))
                    .collect::<Vec<_>>()
                    .join(" && "),
            ),
            Step::Unpause { domain, .. } => Some(format!("xl unpause {}", quote(domain))),
            _ => None,
        }
    }

    /// Whether the guest stands still after this step.
    pub fn stops_guest(&self) -> bool {
        matches!(self, Step::Suspend { .. })
    }

    /// Whether the guest goes on with this step.
    pub fn lets_guest_run(&self) -> bool {
        matches!(self, Step::Resume { .. })
    }
}

/// As in "could not ...": every step reads as something one does.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::NewFile { path, fill } => {
                write!(f, "make {}: {fill}", quote(path))
            }
            Step::RemoveNew { path } | Step::RemoveFile { path } => {
                write!(f, "remove {}", quote(path))
            }
            Step::Protect { path } => {
                write!(f, "make {} read-only: it becomes a base", quote(path))
            }
            Step::Unprotect { path } => write!(f, "make {} writable again", quote(path)),
            Step::OpenImage(start) => match &start.target {
                Target::File(path) => write!(f, "open the memory image {}.partial", quote(path)),
                Target::Stdout => write!(f, "write the memory image to standard output"),
            },
            Step::DiscardImage => write!(f, "remove the unfinished memory image"),
            Step::HoldMonitor { pid } => write!(f, "hold the domain's xl process {pid}"),
            Step::WakeMonitor { pid } => write!(f, "wake the domain's xl process {pid}"),
            Step::Suspend { domid, live: true } => {
                write!(f, "save the memory of domain {domid} while it runs, then suspend it")
            }
            Step::Suspend { domid, live: false } => {
                write!(f, "suspend domain {domid} and save its memory")
            }
            Step::Pause { domid } => write!(f, "pause domain {domid}"),
            Step::Resume { domid } => write!(f, "resume domain {domid}"),
            Step::StoreConfig(store) => {
                write!(f, "store libxl's configuration: {}", store.what)
            }
            Step::Xenstore(writes) => {
                let list: Vec<String> =
                    writes.iter().map(|w| format!("{} = {}", w.path, w.new)).collect();
                write!(f, "write to xenstore: {}", list.join(", "))
            }
            Step::Transaction(actions) => {
                let list: Vec<String> = actions.iter().map(ToString::to_string).collect();
                write!(f, "snapshot the disks in one QMP transaction: {}", list.join("; "))
            }
            Step::CompleteImage => {
                write!(f, "complete the record, sync the image and give it its name")
            }
            Step::Destroy { domid } => {
                write!(f, "destroy domain {domid} and wait until its QEMU is gone")
            }
            Step::Run(call) => write!(f, "run {call}"),
            Step::Together(steps) => {
                let list: Vec<String> = steps.iter().map(ToString::to_string).collect();
                write!(f, "{}", list.join("; at the same time "))
            }
            Step::Restore { domain, .. } => write!(f, "restore {domain} with xl, paused"),
            Step::Unpause { domain, .. } => write!(f, "unpause {domain}"),
            Step::DropInternal { vdev, name, .. } => {
                write!(f, "delete the internal snapshot {name} of {vdev}")
            }
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Internal { vdev, name, .. } => write!(f, "{vdev} internal {name}"),
            Action::Overlay { vdev, file, .. } => {
                write!(f, "{vdev} to overlay {}", quote(file))
            }
        }
    }
}
