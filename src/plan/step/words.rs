//! The text of a step: what it does, and how to do it by hand.

use std::fmt;

use super::export::Export;
use super::{Action, ConfigOwner, Step, Target};
use crate::domain::DomainId;
use crate::tool::qemu_img::{resize, snapshot_create, snapshot_delete};
use crate::tool::volumes::rename;
use crate::tool::{Invocation, Tool, create_domain, quote};
use crate::xlcfg::literal;

impl Step {
    /// The text of the step in front of `words`: without a command that `words` contain.
    pub fn before(&self, words: &str) -> String {
        let told = |call: &Invocation| words.contains(&format!("`{call}`"));
        match self {
            Step::NewFile { path, fill } if told(fill) => format!("make {}", quote(path)),
            Step::Export(Export::Disk(copy)) if told(&copy.fill) => format!("copy {}", copy.vdev),
            Step::Run(call) | Step::Undoable { call, .. } | Step::Rehearse(call) if told(call) => {
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

    /// The command that does this step by hand, if there is one.
    pub fn by_hand(&self) -> Option<String> {
        match self {
            Step::RemoveNew { path } | Step::RemoveFile { path } => {
                Some(format!("rm {}", quote(path)))
            }
            Step::MakeWritable { path } => Some(format!("chmod u+w {}", quote(path))),
            Step::ContinueXl { process } => Some(format!("kill -CONT {process}")),
            Step::Run(call) | Step::Undoable { call, .. } | Step::Rehearse(call) => {
                Some(call.to_string())
            }
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
            Step::AwaitDestroyed { domain } => Some(format!("xl destroy {}", domain.domid)),
            Step::Pause { domain } => Some(format!("xl pause {}", domain.domid)),
            Step::UnpauseExisting { domain } => Some(format!("xl unpause {}", domain.domid)),
            Step::UndoRename { from, to, .. } => {
                Some(format!("mv -n {} {}", quote(from), quote(to)))
            }
            Step::UndoRenameVolume { group, from, to, .. } => {
                Some(rename(group, from, to).to_string())
            }
            Step::RestoreCfg(cfg) => {
                Some(format!("mv {} {}", quote(&cfg.backup), quote(&cfg.path)))
            }
            Step::TakeInternal { path, name } => Some(snapshot_create(path, name).to_string()),
            Step::UndoTakeInternal { path, name } => {
                Some(snapshot_delete(path, name.as_str()).to_string())
            }
            Step::CreateDomain { cfg, paused, .. } => Some(create_domain(cfg, *paused).to_string()),
            Step::Resume { otherwise, .. } => otherwise.clone(),
            Step::Delete(deletion) => deletion.by_hand(),
            Step::Export(export) => export.by_hand(),
            Step::Switch(switch) => switch.by_hand(),
            Step::Freeze(freeze) => freeze.by_hand(),
            _ => None,
        }
    }

    /// What the user must know to do this step, if no command does it.
    pub fn in_words(&self) -> Option<String> {
        let cfg = match self {
            Step::Switch(switch) => return switch.in_words(),
            Step::Freeze(freeze) => return freeze.in_words(),
            Step::ReplaceCfg(cfg) => cfg,
            _ => return None,
        };
        let entries: Vec<_> = cfg.entries.iter().map(|entry| literal(entry, "'")).collect();
        Some(format!(
            "before the next xl create, give {} these disk entries, or it will write into the frozen \
             images: {}",
            quote(&cfg.path),
            entries.join(", ")
        ))
    }
}

/// The text after "could not ...": every step reads as an action.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::NewFile { path, fill } => {
                write!(f, "make {}: {fill}", quote(path))
            }
            Step::Resize { path, size } => write!(f, "resize it: {}", resize(path, *size)),
            Step::Clone { from, to, .. } => {
                write!(f, "clone {} to {}", quote(from), quote(to))
            }
            Step::Rename { from, to } => write!(f, "rename {} to {}", quote(from), quote(to)),
            Step::RemoveNew { path } | Step::RemoveFile { path } => {
                write!(f, "remove {}", quote(path))
            }
            Step::MakeReadOnly { path } => {
                write!(f, "make {} read-only: it becomes a base", quote(path))
            }
            Step::MakeWritable { path } => write!(f, "make {} writable again", quote(path)),
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
            Step::StopXl { process } => {
                write!(f, "stop the domain's xl process {process}")
            }
            Step::ContinueXl { process } => {
                write!(f, "continue the domain's xl process {process}")
            }
            Step::Suspend { domain: DomainId { domid, .. }, live, max_pause, .. } => {
                if *live {
                    write!(f, "save the memory of domain {domid} while it runs, then suspend it")?;
                } else {
                    write!(f, "suspend domain {domid} and save its memory")?;
                }
                max_pause.map_or(Ok(()), |max| write!(f, ", for {} s at most", max.as_secs_f64()))
            }
            Step::CheckSuspended { domain: DomainId { domid, .. }, stored } => {
                let configured = stored.as_ref().map_or("", |_| ", configured as before");
                write!(f, "check that domain {domid} is still suspended{configured}")
            }
            Step::Pause { domain: DomainId { domid, .. } } => write!(f, "pause domain {domid}"),
            Step::Resume { domain: DomainId { domid, .. }, .. } => {
                write!(f, "resume domain {domid}")
            }
            Step::UnpauseExisting { domain: DomainId { domid, .. } } => {
                write!(f, "unpause domain {domid}")
            }
            Step::CheckConfig { domain: DomainId { domid, .. }, .. } => {
                write!(f, "check that the configuration of domain {domid} has not changed")
            }
            Step::CheckExists { domain: DomainId { domid, .. } } => {
                write!(f, "check that domain {domid} still exists")
            }
            Step::UndoRevert { domain, .. } => {
                write!(f, "return the disks of {domain} to their previous contents")
            }
            Step::ApplyKept { path, name } => {
                write!(f, "apply snapshot {name} in {} and delete it", quote(path))
            }
            Step::UndoRename { from, to, .. } => {
                write!(f, "rename {} back to {}", quote(from), quote(to))
            }
            Step::UndoRenameVolume { group, from, to, .. } => {
                write!(f, "rename the volume {group}/{from} back to {to}")
            }
            Step::CheckNotRunning { domain, .. } => {
                write!(f, "check that {domain} does not run")
            }
            Step::TakeInternal { path, name } => {
                write!(f, "take the internal snapshot {name} in {}", quote(path))
            }
            Step::UndoTakeInternal { path, name } => {
                write!(f, "delete the internal snapshot {name} in {}", quote(path))
            }
            Step::OpenRecord { path, .. } => write!(f, "open the record {}.partial", quote(path)),
            Step::DiscardRecord => write!(f, "remove the unfinished record"),
            Step::CompleteRecord => {
                write!(f, "complete the record, sync it and rename it to its final name")
            }
            Step::RestoreCfg(cfg) => write!(
                f,
                "restore the old text of {} from {}",
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
                    ConfigOwner::Libxl => "libxl's",
                    ConfigOwner::Xl => "xl's",
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
            Step::SendTransaction { .. } => {
                write!(f, "send QEMU the transaction, except its last byte")
            }
            Step::CancelTransaction => write!(f, "cancel the transaction"),
            Step::Transaction { actions, .. } => {
                let list: Vec<String> = actions.iter().map(ToString::to_string).collect();
                write!(f, "snapshot the disks in one QMP transaction: {}", list.join("; "))
            }
            Step::FinishCompression => write!(f, "wait until the memory image is compressed"),
            Step::SyncAndVerifyImage => write!(f, "sync the memory image and read it back"),
            Step::CompleteImage => {
                write!(f, "complete the record, sync the image and rename it to its final name")
            }
            Step::AddSums => write!(f, "write the checksums of the memory into the image"),
            Step::Destroy { domain: DomainId { domid, .. }, .. } => {
                write!(f, "destroy domain {domid} and wait until its QEMU has ended")
            }
            Step::AwaitDestroyed { domain: DomainId { domid, .. } } => {
                write!(f, "wait until domain {domid} is completely destroyed")
            }
            Step::AwaitClosed { volume } => write!(f, "wait until no program has {volume} open"),
            Step::AwaitMerged { volume } => {
                write!(f, "wait for the end of the merge into {volume}")
            }
            Step::Run(call) | Step::Undoable { call, .. } | Step::Rehearse(call) => {
                write!(f, "run {call}")
            }
            Step::Together(steps) => {
                let list: Vec<String> = steps.iter().map(ToString::to_string).collect();
                write!(f, "{}", list.join("; at the same time "))
            }
            Step::Restore { domain, .. } => write!(f, "restore {domain} with xl, paused"),
            Step::CheckNeeds { .. } => {
                write!(f, "check once more that all that the restore needs is there")
            }
            Step::Mark { files, .. } => {
                let files: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
                write!(f, "mark {} as continued from the snapshot", files.join(", "))
            }
            Step::AwaitTurn => {
                write!(f, "wait while others are restored: one for each processor at a time")
            }
            Step::DiscardDomain { domain, .. } => {
                write!(f, "destroy {domain} if it exists, paused")
            }
            Step::Unpause { domain, .. } => write!(f, "unpause {domain}"),
            Step::Delete(deletion) => deletion.fmt(f),
            Step::Export(export) => export.fmt(f),
            Step::DeleteInternal { vdev, name, .. } => {
                write!(f, "delete the internal snapshot {name} of {vdev}")
            }
            Step::Switch(switch) => write!(f, "{switch}"),
            Step::Freeze(freeze) => freeze.fmt(f),
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
