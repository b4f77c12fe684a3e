//! Performs the steps of a plan on the real dom0.

mod deletion;
mod disks;
mod domain;
mod export;
mod freeze;
mod guarded;
mod memory;
mod round;
mod state;
mod suspend;
mod switch;
mod transaction;
mod without_memory;

use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Instant;

use self::disks::{rename, undo_rename};
use self::guarded::started;
use self::state::{caused, failed};
use self::suspend::write_back;
use crate::error::Result;
use crate::host::export::steps;
use crate::host::guard::Note;
use crate::host::{command, files, marks, process};
use crate::plan::export::Export;
use crate::plan::{Perform, Reached, Step};
use crate::tool::Invocation;
use crate::tool::qemu_img::{base_of, resize, snapshot_create};

pub use self::state::{Dom0, Done};

impl Dom0 {
    /// Performs steps that only create files and run tools at the same time, others one after the
    /// other.
    fn together(&mut self, steps: &[Step]) -> Result<()> {
        let mut calls = Vec::new();
        for step in steps {
            match step {
                Step::NewFile { path, fill } => {
                    self.new_file(path)?;
                    calls.push(fill);
                }
                Step::Run(call) | Step::Undoable { call, .. } | Step::Rehearse(call) => {
                    calls.push(call);
                }
                other => self.carry_out(other)?,
            }
        }
        command::run_all(&calls, &started(self.guard.as_ref())).map_err(caused)?;
        for step in steps {
            if let Step::NewFile { path, fill } = step {
                // QEMU opened the base with the permissions of its owner (device_model_user).
                if let Some(base) = base_of(fill) {
                    files::give_owner_of(base, path)
                        .map_err(failed(format!("Give {} its owner", path.display())))?;
                }
                files::sync(path).map_err(failed(format!("Sync {}", path.display())))?;
            }
        }
        Ok(())
    }

    fn run(&self, call: &Invocation) -> Result<()> {
        command::run_all(&[call], &started(self.guard.as_ref())).map_err(caused)
    }

    fn carry_out(&mut self, step: &Step) -> Result<()> {
        if let Step::Export(Export::Discard { .. }) = step {
            self.end_orphans();
        }
        if step.can_wait() {
            self.await_orphans();
        }
        match step {
            Step::NewFile { .. } | Step::Run(_) | Step::Undoable { .. } | Step::Rehearse(_) => {
                self.together(std::slice::from_ref(step))
            }
            Step::Together(steps) => self.together(steps),
            Step::Resize { path, size } => {
                self.run(&resize(path, *size))?;
                files::sync(path).map_err(failed(format!("Sync {}", path.display())))
            }
            Step::Clone { from, to, writable } => self.clone_file(from, to, *writable),
            Step::Rename { from, to } => rename(from, to),
            Step::RemoveNew { path } => self.remove_new(path),
            Step::RemoveFile { path } => files::remove(path).map_err(caused),
            Step::MakeReadOnly { path } => self.protect(path),
            Step::MakeWritable { path } => self.unprotect(path),
            Step::OpenImage(start) => self.open_image(start),
            Step::DiscardImage => self.discard_image(),
            Step::StopXl { process } => process::hold(*process).map_err(caused),
            Step::ContinueXl { process } => process::wake(*process).map_err(caused),
            Step::Suspend { domain, live, max_pause, disks } => {
                write_back(disks)?;
                self.suspend(domain, *live, *max_pause, disks)
            }
            Step::CheckSuspended { domain, stored } => {
                self.check_suspended(domain, stored.as_deref())
            }
            Step::Pause { domain } => self.pause(domain),
            Step::UnpauseExisting { domain } => self.unpause_existing(domain),
            Step::CheckConfig { domain, stored } => self.check_unchanged(domain, stored),
            Step::CheckNeeds { gone, needs } => self.check_needs(*gone, needs),
            Step::Mark { id, files } => {
                files.iter().for_each(|file| marks::set(file, *id));
                Ok(())
            }
            Step::CheckExists { domain } => self.the_same(domain).map(drop),
            Step::CheckNotRunning { uuid, domain } => self.check_not_running(*uuid, domain),
            Step::UndoRevert { uuid, domain, disks } => self.undo_revert((*uuid, domain), disks),
            Step::ApplyKept { path, name } => self.apply_kept(path, name),
            Step::UndoRename { from, to, kept } => undo_rename(from, to, kept.as_deref()),
            Step::UndoRenameVolume { group, from, to, kept } => {
                self.undo_rename_volume(group, from, to, kept.as_deref())
            }
            Step::TakeInternal { path, name } => self.run(&snapshot_create(path, name)),
            Step::UndoTakeInternal { path, name } => self.undo_take_internal(path, name),
            Step::OpenRecord { path, record } => self.open_record(path, record),
            Step::DiscardRecord => self.discard_record(),
            Step::CompleteRecord => self.complete_record(),
            Step::RestoreCfg(cfg) => self.restore_cfg(cfg),
            Step::CreateDomain { domain, cfg, paused } => self.create_domain(domain, cfg, *paused),
            Step::Resume { domain, .. } => self.resume(domain),
            Step::SendTransaction { domain, actions } => {
                self.send_transaction(domain.domid, actions)
            }
            Step::CancelTransaction => {
                self.qmp = None;
                Ok(())
            }
            Step::StoreConfig(store) => self.store_config(store),
            Step::ReplaceCfg(cfg) => self.replace_cfg(cfg),
            Step::Xenstore(writes) => self.toolstack.xenstore().replace(writes).map_err(caused),
            Step::Transaction { domain, actions } => self.transaction(domain.domid, actions),
            Step::FinishCompression => self.finish_compression(),
            Step::SyncAndVerifyImage => self.sync_and_verify_image(),
            Step::CompleteImage => self.complete_image(),
            Step::AddSums => {
                self.add_sums();
                Ok(())
            }
            Step::Destroy { domain, way_out } => {
                // A domain that we have suspended was checked with its disks: it must be resumed in
                // any case.
                if self.suspended_at.is_none() {
                    self.the_only(domain)?;
                    self.down_since.get_or_insert_with(Instant::now);
                }
                self.destroy(domain, Some(way_out))
            }
            Step::AwaitDestroyed { domain } => self.await_destroyed(domain),
            Step::AwaitClosed { volume } => disks::await_closed(volume),
            Step::AwaitMerged { volume } => disks::await_merged(volume),
            Step::Restore { uuid, domain, config, image } => {
                self.restore((*uuid, domain), config, image.as_deref())
            }
            Step::AwaitTurn => self.await_turn(),
            Step::DiscardDomain { uuid, .. } => self.discard_domain(*uuid),
            Step::Unpause { uuid, .. } => self.unpause(*uuid),
            Step::Delete(deletion) => self.delete(deletion),
            Step::Export(export) => self.export(export),
            Step::DeleteInternal { uuid, domain, vdev, name } => {
                self.delete_internal(*uuid, domain, vdev, name)
            }
            Step::Switch(switch) => self.switch(switch),
            Step::Freeze(freeze) => self.freeze(freeze),
        }
    }
}

impl Perform for Dom0 {
    fn perform(&mut self, step: &Step) -> Result<()> {
        let started = Instant::now();
        let result = self.carry_out(step);
        self.messages.extend(self.reporter.timed(step, started.elapsed(), result.is_ok()));
        if self.suspended_at.is_none() {
            self.say();
        }
        result
    }

    fn interrupted(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn reached(&mut self, reached: Reached) {
        if reached != Reached::End {
            return self.tell(&Note::Reached(reached));
        }
        // Wait for a destroy that has begun; its own step reports a failure.
        drop(self.destroying.take().map(JoinHandle::join));
        // The guard ends when it gets this message, so send it once.
        let lost = self.guard.take().is_some_and(|guard| !guard.dismiss());
        self.finish_speaking();
        if lost {
            self.reporter.note("note: the guard process was killed meanwhile");
        }
        self.unstoppable = None;
    }

    fn settle(&mut self, step: &Step) -> Result<bool> {
        if !matches!(step, Step::Transaction { .. }) {
            self.await_orphans();
        }
        match step {
            Step::Transaction { domain, actions } => self.settle_transaction(domain.domid, actions),
            // libxl ends its QEMU first.
            Step::Destroy { domain, way_out } => self.destroy(domain, Some(way_out)).map(|()| true),
            // xl removes a domain if the restore fails.
            Step::Restore { uuid, domain, .. } => self.settle_restore(*uuid, domain),
            Step::CreateDomain { domain, .. } => Ok(self.domid_of_name(domain)?.is_some()),
            Step::CompleteRecord => Ok(self.is_recorded()),
            Step::Delete(deletion) => Ok(Dom0::settle_deletion(deletion)),
            Step::Export(export) => Ok(steps::settle(export)),
            Step::Switch(switch) => self.settle_switch(switch),
            _ => Ok(false),
        }
    }
}
