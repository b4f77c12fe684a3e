//! The guarded process and its guard.

use std::fs::Permissions;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use super::state::{Dom0, failed};
use crate::error::Result;
use crate::host::freezer::ActiveFreeze;
use crate::host::guard::{DoneBefore, Guard, Note};
use crate::host::image::ImageWriter;
use crate::host::lock::Lock;
use crate::host::process::{self, Handle, Watch};
use crate::host::record_file::RecordFile;
use crate::host::surroundings::Unstoppable;
use crate::plan::{Plan, Step};
use crate::process::Process;
use crate::tool::Tool;

/// How long a tool whose parent was killed may do nothing before we stop waiting for it.
const ORPHAN: Duration = Duration::from_secs(60);

impl Dom0 {
    /// Starts a guard, which continues the plan if we are killed.
    pub fn be_guarded(&mut self, plan: &Plan, lock: &Lock) -> Result<()> {
        let image = self.source.as_ref().map(|source| source.file.as_fd());
        let guard = Guard::start(plan, lock, image)?;
        if let Some(why) = guard.bound() {
            self.reporter.note(&format!(
                "note: if this job is ended (systemd, a session), what xl starts ends with it: {why}"
            ));
        }
        self.virtual_sizes.clone_from(&plan.virtual_sizes);
        self.guard = Some(guard);
        self.unstoppable = Some(Unstoppable::new().map_err(failed("Block SIGTSTP"))?);
        self.reporter.defer();
        Ok(())
    }

    /// Takes over the state of a process that was killed.
    pub fn adopt(&mut self, plan: &Plan, done: DoneBefore) {
        self.adopted = true;
        self.virtual_sizes.clone_from(&plan.virtual_sizes);
        self.made = done.made;
        self.orphans = done.started;
        self.unverified = done.unverified;
        self.freeze = ActiveFreeze::adopted(done.freeze);
        self.protected = done
            .protected
            .into_iter()
            .map(|(path, mode)| (path, Permissions::from_mode(mode)))
            .collect();
        let start = plan.prepare.iter().find_map(|step| match step {
            Step::OpenImage(start) => Some(start),
            _ => None,
        });
        let record = plan.prepare.iter().find_map(|step| match step {
            Step::OpenRecord { path, record } => Some((path, record)),
            _ => None,
        });
        self.record = record.zip(done.image).and_then(|((path, record), id)| {
            Some((RecordFile::adopt(path, id).ok()?, record.as_ref().clone()))
        });
        // If somebody has removed the file, still clean up the rest.
        self.image = start.zip(done.image).and_then(|(start, id)| {
            Some((ImageWriter::adopt(start, id).ok()?, start.record.clone()))
        });
    }

    /// Ends the tools that were left running and whose files nobody needs.
    pub(super) fn end_orphans(&self) {
        for (_, process) in &self.orphans {
            // We wait for it in any case.
            let _ = process::end(*process);
        }
    }

    /// Waits for the tools that were left running, so that nothing is undone while a tool is still
    /// doing it.
    pub(super) fn await_orphans(&mut self) {
        for (tool, process) in self.orphans.drain(..) {
            let name = tool.name();
            let watch = Watch::of_group(process.pid, ORPHAN);
            let waited = Handle::open(process)
                .and_then(|handle| handle.map_or(Ok(None), |it| it.gone(watch)));
            self.messages.extend(match waited {
                Ok(None) => None,
                Ok(Some(hang)) => Some(format!(
                    "note: {name} (process {process}) is still there, and has done nothing for {} s",
                    hang.idle.as_secs()
                )),
                Err(why) => Some(format!("note: {name} (process {process}) may run on: {why}")),
            });
        }
    }

    pub(super) fn tell(&self, note: &Note) {
        if let Some(guard) = &self.guard {
            guard.tell(note);
        }
    }
}

/// Tells the guard which tools are started.
pub(super) fn started(guard: Option<&Guard>) -> impl Fn(Tool, Process) + Sync {
    move |tool, process| {
        if let Some(guard) = guard {
            guard.tell(&Note::Started(tool, process));
        }
    }
}
