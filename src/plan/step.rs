//! One step of a plan: what it does, how it is undone, how a person would do it.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::disk::qemu_img::snapshot_create;
use crate::error::Left;
use crate::memory::frames::Level;
use crate::names::SnapshotName;
use crate::record::Record;
use crate::tool::{Invocation, Tool, create_domain, quote};
use crate::xlcfg::literal;

/// Where a memory image is written to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// A file, under a `.partial` name until it is complete.
    File(PathBuf),
    /// Standard output.
    Stdout,
}

/// The beginning of a memory image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageStart {
    /// Where it goes.
    pub target: Target,
    /// Whether the directory of the file is made if there is none.
    pub make_directory: bool,
    /// libxl's JSON of the domain, disks as they are before the snapshot.
    pub config: String,
    /// The record, not complete yet.
    pub record: Record,
    /// How hard it is compressed; not at all if nothing is said.
    pub compress: Option<Level>,
}

/// Whose configuration of a domain it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Whose {
    /// libxl's, JSON: save, migrate and reboot follow it.
    Libxl,
    /// xl's, the text of a configuration file: if `xl config-update` stored one, a reboot follows
    /// it and not libxl's.
    Xl,
}

/// A configuration of a domain that is stored with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreConfig {
    /// The domain.
    pub domid: u32,
    /// Whose it is.
    pub whose: Whose,
    /// What is stored.
    pub new: String,
    /// What was stored before.
    pub old: String,
    /// What changes, for people: `xvda -> /srv/a.after-s1.qcow2`.
    pub what: String,
}

/// An xl configuration file that gets another text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplaceCfg {
    /// The file.
    pub path: PathBuf,
    /// What it must hold still.
    pub old: String,
    /// What it is to hold.
    pub new: String,
    /// Where the old one stays.
    pub backup: PathBuf,
    /// The disk entries it needs, for a person.
    pub entries: Vec<String>,
}

/// A value in xenstore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct XenstoreWrite {
    /// The key.
    pub path: String,
    /// What is written.
    pub new: String,
    /// What stood there.
    pub old: String,
}

/// One action of a QMP transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

impl Action {
    /// The overlay it switches to, if it is one to an overlay.
    pub fn overlay(&self) -> Option<&Path> {
        match self {
            Action::Internal { .. } => None,
            Action::Overlay { file, .. } => Some(file),
        }
    }
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Makes a new file with a tool; never touches an existing one.
    NewFile {
        /// The file.
        path: PathBuf,
        /// What fills it.
        fill: Invocation,
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
    /// Makes sure that nobody has let the suspended guest run or changed its configuration: then memory
    /// and disks would not be of one moment, or a disk would be missing.
    CheckStill {
        /// The domain.
        domid: u32,
        /// The text libxl had stored of it.
        stored: String,
    },
    /// Makes the domain stand still, or stay paused once it is resumed.
    Pause {
        /// The domain.
        domid: u32,
    },
    /// Lets a domain go on that was paused; one that is not needs nothing.
    LetRun {
        /// The domain.
        domid: u32,
    },
    /// Makes sure that a domain is configured as before.
    CheckSame {
        /// The domain.
        domid: u32,
        /// The text libxl had stored of it.
        stored: String,
    },
    /// Makes sure that no domain of this name runs.
    CheckDown {
        /// The name.
        domain: String,
    },
    /// Takes a snapshot inside of a qcow2 file that nobody has open.
    TakeInternal {
        /// The file.
        path: PathBuf,
        /// The snapshot's name, which no other one there has.
        name: SnapshotName,
    },
    /// Deletes that snapshot, if it is there.
    UntakeInternal {
        /// The file.
        path: PathBuf,
        /// The snapshot's name.
        name: SnapshotName,
    },
    /// Makes the file for the record of a snapshot without memory, under a `.partial` name.
    OpenRecord {
        /// The file.
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
        /// The domain.
        domid: u32,
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
    /// Rewrites the disks' keys in xenstore.
    Xenstore(Vec<XenstoreWrite>),
    /// Snapshots every disk QEMU serves, all or none.
    Transaction {
        /// The domain.
        domid: u32,
        /// A snapshot each.
        actions: Vec<Action>,
    },
    /// Waits until all of the guest's memory is compressed and written.
    DrainImage,
    /// Fills in the proofs, makes the image durable and gives it its name.
    CompleteImage,
    /// Destroys the domain and waits until its QEMU is gone.
    Destroy {
        /// The domain.
        domid: u32,
        /// What to tell if the domain is gone then, but its disks are still in use.
        way_out: Left,
    },
    /// Waits until nobody has a logical volume open any more, `VG/LV`.
    AwaitClosed {
        /// The volume.
        volume: String,
    },
    /// Waits until no snapshot is being merged into a logical volume any more, `VG/LV`.
    AwaitMerged {
        /// The volume.
        volume: String,
    },
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
        /// The domain's UUID.
        uuid: Uuid,
        /// Its name.
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
    DiscardDomain {
        /// The domain's UUID.
        uuid: Uuid,
        /// Its name.
        domain: String,
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
        /// Its name.
        domain: String,
    },
    /// Deletes an internal snapshot of a disk of the running domain, through its QEMU.
    DropInternal {
        /// The domain's UUID; nil if each start gives it another one, and only its name is known.
        uuid: Uuid,
        /// Its name.
        domain: String,
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
    /// One step that does several at the same time, if there is anything to do.
    pub fn together(mut steps: Vec<Step>) -> Option<Step> {
        match steps.len() {
            0 | 1 => steps.pop(),
            _ => Some(Step::Together(steps)),
        }
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
            Step::TakeInternal { path, name } => {
                Some(Step::UntakeInternal { path: path.clone(), name: name.clone() })
            }
            Step::Pause { domid } => Some(Step::LetRun { domid: *domid }),
            Step::ReplaceCfg(cfg) => Some(Step::PutCfgBack(cfg.clone())),
            Step::HoldMonitor { pid } => Some(Step::WakeMonitor { pid: *pid }),
            Step::Suspend { domid, .. } => Some(Step::Resume { domid: *domid, otherwise: None }),
            Step::StoreConfig(store) => Some(Step::StoreConfig(StoreConfig {
                new: store.old.clone(),
                old: store.new.clone(),
                what: format!("back, not {}", store.what),
                domid: store.domid,
                whose: store.whose,
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
            Step::Restore { uuid, domain, .. } => {
                Some(Step::DiscardDomain { uuid: *uuid, domain: domain.clone() })
            }
            Step::Together(steps) => {
                Step::together(steps.iter().rev().filter_map(Step::undo).collect())
            }
            _ => None,
        }
    }

    /// What it does, as it stands before `words`: without a command that is told there.
    pub fn before(&self, words: &str) -> String {
        let told = |call: &Invocation| words.contains(&format!("`{call}`"));
        match self {
            Step::NewFile { path, fill } if told(fill) => format!("make {}", quote(path)),
            Step::Run(call) | Step::Undoable { call, .. } if told(call) => {
                let lvm = call.args.first().filter(|_| call.tool == Tool::Lvm);
                format!("run {}", lvm.map_or(call.tool.name().into(), quote))
            }
            Step::Together(steps) => {
                let list: Vec<String> = steps.iter().map(|step| step.before(words)).collect();
                list.join("; at the same time ")
            }
            other => other.to_string(),
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
            Step::Run(call) | Step::Undoable { call, .. } => Some(call.to_string()),
            Step::Clone { from, to, .. } => {
                Some(format!("cp --reflink=always -p {} {}", quote(from), quote(to)))
            }
            Step::Rename { from, to } => Some(format!("mv -n {} {}", quote(from), quote(to))),
            Step::Xenstore(writes) => Some(
                writes
                    .iter()
                    .map(|w| format!("xenstore-write {} {}", quote(&w.path), quote(&w.new)))
                    .collect::<Vec<_>>()
                    .join(" && "),
            ),
            Step::Unpause { domain, .. } => Some(format!("xl unpause {}", quote(domain))),
            Step::DiscardDomain { domain, .. } => Some(format!("xl destroy {}", quote(domain))),
            Step::Pause { domid } => Some(format!("xl pause {domid}")),
            Step::LetRun { domid } => Some(format!("xl unpause {domid}")),
            Step::PutCfgBack(cfg) => {
                Some(format!("mv {} {}", quote(&cfg.backup), quote(&cfg.path)))
            }
            Step::TakeInternal { path, name } => Some(snapshot_create(path, name).to_string()),
            Step::UntakeInternal { path, name } => {
                Some(format!("qemu-img snapshot -d {name} {}", quote(path)))
            }
            Step::CreateDomain { cfg, paused, .. } => Some(create_domain(cfg, *paused).to_string()),
            Step::Resume { otherwise, .. } => otherwise.clone(),
            _ => None,
        }
    }

    /// What a person has to know to do this step, where no command does it.
    pub fn in_words(&self) -> Option<String> {
        let Step::ReplaceCfg(cfg) = self else { return None };
        let entries: Vec<_> = cfg.entries.iter().map(|entry| literal(entry, "'")).collect();
        Some(format!(
            "before the next xl create, give {} these disk entries, or it will write into the frozen \
             images: {}",
            quote(&cfg.path),
            entries.join(", ")
        ))
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
                | Step::UntakeInternal { .. }
        )
    }

    /// Whether the guest stands still after this step.
    pub fn stops_guest(&self) -> bool {
        matches!(self, Step::Suspend { .. } | Step::Pause { .. })
    }

    /// Whether the guest goes on with this step.
    pub fn lets_guest_run(&self) -> bool {
        matches!(self, Step::Resume { .. } | Step::Unpause { .. } | Step::LetRun { .. })
    }
}

/// As in "could not ...": every step reads as something one does.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::NewFile { path, fill } => {
                write!(f, "make {}: {fill}", quote(path))
            }
            Step::Clone { from, to, .. } => {
                write!(f, "clone {} to {}", quote(from), quote(to))
            }
            Step::Rename { from, to } => write!(f, "rename {} to {}", quote(from), quote(to)),
            Step::RemoveNew { path } | Step::RemoveFile { path } => {
                write!(f, "remove {}", quote(path))
            }
            Step::Protect { path } => {
                write!(f, "make {} read-only: it becomes a base", quote(path))
            }
            Step::Unprotect { path } => write!(f, "make {} writable again", quote(path)),
            Step::OpenImage(start) => {
                match &start.target {
                    Target::File(path) => {
                        write!(f, "open the memory image {}.partial", quote(path))?;
                    }
                    Target::Stdout => write!(f, "write the memory image to standard output")?,
                }
                start.compress.map_or(Ok(()), |level| write!(f, ", compressed by {level}"))
            }
            Step::DiscardImage => write!(f, "remove the unfinished memory image"),
            Step::HoldMonitor { pid } => write!(f, "hold the domain's xl process {pid}"),
            Step::WakeMonitor { pid } => write!(f, "wake the domain's xl process {pid}"),
            Step::Suspend { domid, live: true } => {
                write!(f, "save the memory of domain {domid} while it runs, then suspend it")
            }
            Step::Suspend { domid, live: false } => {
                write!(f, "suspend domain {domid} and save its memory")
            }
            Step::CheckStill { domid, .. } => {
                write!(f, "make sure that domain {domid} stands still, configured as before")
            }
            Step::Pause { domid } => write!(f, "pause domain {domid}"),
            Step::Resume { domid, .. } => write!(f, "resume domain {domid}"),
            Step::LetRun { domid } => write!(f, "let domain {domid} go on"),
            Step::CheckSame { domid, .. } => {
                write!(f, "make sure that domain {domid} is configured as before")
            }
            Step::CheckDown { domain } => write!(f, "make sure that {domain} does not run"),
            Step::TakeInternal { path, name } => {
                write!(f, "take the internal snapshot {name} in {}", quote(path))
            }
            Step::UntakeInternal { path, name } => {
                write!(f, "delete the internal snapshot {name} in {}", quote(path))
            }
            Step::OpenRecord { path, .. } => write!(f, "open the record {}.partial", quote(path)),
            Step::DiscardRecord => write!(f, "remove the unfinished record"),
            Step::CompleteRecord => {
                write!(f, "complete the record, sync it and give it its name")
            }
            Step::PutCfgBack(cfg) => write!(
                f,
                "give {} its old text again, from {}",
                quote(&cfg.path),
                quote(&cfg.backup)
            ),
            Step::CreateDomain { domain, cfg, paused } => write!(
                f,
                "start {domain} from {} with xl{}",
                quote(cfg),
                if *paused { ", paused" } else { "" }
            ),
            Step::StoreConfig(store) => {
                let whose = match store.whose {
                    Whose::Libxl => "libxl's",
                    Whose::Xl => "xl's",
                };
                write!(f, "store {whose} configuration: {}", store.what)
            }
            Step::ReplaceCfg(cfg) => write!(
                f,
                "make {} name the new images, and keep the old one as {}",
                quote(&cfg.path),
                quote(&cfg.backup)
            ),
            Step::Xenstore(writes) => {
                let list: Vec<String> =
                    writes.iter().map(|w| format!("{} = {}", w.path, w.new)).collect();
                write!(f, "write to xenstore: {}", list.join(", "))
            }
            Step::Transaction { actions, .. } => {
                let list: Vec<String> = actions.iter().map(ToString::to_string).collect();
                write!(f, "snapshot the disks in one QMP transaction: {}", list.join("; "))
            }
            Step::DrainImage => write!(f, "wait until the memory image is compressed"),
            Step::CompleteImage => {
                write!(f, "complete the record, sync the image and give it its name")
            }
            Step::Destroy { domid, .. } => {
                write!(f, "destroy domain {domid} and wait until its QEMU is gone")
            }
            Step::AwaitClosed { volume } => write!(f, "wait until nobody has {volume} open"),
            Step::AwaitMerged { volume } => {
                write!(f, "wait for the end of the merge into {volume}")
            }
            Step::Run(call) | Step::Undoable { call, .. } => write!(f, "run {call}"),
            Step::Together(steps) => {
                let list: Vec<String> = steps.iter().map(ToString::to_string).collect();
                write!(f, "{}", list.join("; at the same time "))
            }
            Step::Restore { domain, .. } => write!(f, "restore {domain} with xl, paused"),
            Step::AwaitTurn => {
                write!(f, "wait while others are restored: one for each processor at a time")
            }
            Step::DiscardDomain { domain, .. } => {
                write!(f, "destroy {domain} if it is there, paused")
            }
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
