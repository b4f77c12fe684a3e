//! Freezing the guest's file systems, and thawing them whatever happens.
//!
//! [`Dom0`] and its guard know of the freeze before the request is sent: whichever is alive thaws. A thread thaws
//! after the timeout, also while another step hangs.

use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::state::{Dom0, failed};
use super::suspend::write_back;
use crate::domain::DomainId;
use crate::error::{Error, Result};
use crate::host::agent::AgentError;
use crate::host::command::{self, CommandError};
use crate::host::freezer::{self, AGAIN, Freezer, NotFrozen, Watched};
use crate::host::guard::Note;
use crate::plan::Freeze;
use crate::quiesce::{FreezeMethod, FreezeState, Quiesced, Thawed};
use crate::record::DisksOnly;
use crate::tool::guest_agent::is_disabled;

/// How long to try to thaw.
const THAW: Duration = Duration::from_secs(30);

impl Dom0 {
    pub(super) fn freeze(&mut self, step: &Freeze) -> Result<()> {
        match step {
            Freeze::Reach { domain, way } => {
                let mut freezer = self.freezer(domain, way)?;
                freezer.reach()?;
                self.freeze.freezer = Some(freezer);
                Ok(())
            }
            Freeze::Begin { domain, limit, disks, .. } => {
                write_back(disks)?;
                self.begin_freeze(domain, *limit)
            }
            Freeze::Check { domain } => self.check_frozen(domain),
            Freeze::Thaw { domain, way } => self.thaw(domain, way),
            Freeze::Confirm { domain, way } => self.confirm(domain, way),
        }
    }

    fn freezer(&self, domain: &DomainId, way: &FreezeMethod) -> Result<Freezer> {
        let qemu = self.toolstack.qemu_pid(domain.domid);
        let qemu = qemu.map_err(failed("Look for the domain's QEMU"))?;
        Ok(Freezer::new(domain.clone(), way.clone(), qemu))
    }

    fn begin_freeze(&mut self, domain: &DomainId, limit: Duration) -> Result<()> {
        let missing = || Error::failed("No guest agent and no freeze program was reached");
        let mut freezer = self.freeze.freezer.take().ok_or_else(missing)?;
        self.the_same(domain)?;
        freezer.ready()?;
        let begun = Instant::now();
        self.freeze.begun = Some(begun);
        let state = FreezeState {
            begun: Timestamp::now(),
            process: None,
            file_systems: None,
            failed: false,
            thawed: None,
        };
        self.set_freeze_state(Some(state.clone()));
        let guard = self.guard.as_ref();
        let started = |process| {
            if let Some(guard) = guard {
                guard.tell(&Note::Freeze(Some(FreezeState {
                    process: Some(process),
                    ..state.clone()
                })));
            }
        };
        let count = match freezer.freeze(limit, &started) {
            Ok(count) => count,
            Err(why) => {
                let why = match why {
                    NotFrozen::Agent(AgentError::Refused { reason, .. })
                        if is_disabled(&reason) && freezer.is_frozen() =>
                    {
                        // Somebody else froze them first, and thaws.
                        self.set_freeze_state(None);
                        freezer.already()
                    }
                    NotFrozen::Agent(why) => freezer.trouble(why),
                    NotFrozen::Program(why) => {
                        let failed = matches!(why, CommandError::Failed { .. });
                        self.set_freeze_state(Some(FreezeState { failed, ..state }));
                        freezer::program(why)
                    }
                    NotFrozen::Unreached => {
                        Error::failed("There is no connection to the guest agent")
                    }
                };
                self.freeze.freezer = Some(freezer);
                return Err(self.ended_instead(domain).unwrap_or(why));
            }
        };
        self.set_freeze_state(Some(FreezeState { file_systems: count, ..state }));
        if count == Some(0) {
            self.freeze.freezer = Some(freezer);
            return Err(Error::failed(format!("Nothing was frozen in {domain}"))
                .because("its agent has found no file system on a disk that it can freeze")
                .hint("mount the file systems in the guest, or take a snapshot with --crash-consistent"));
        }
        self.freeze.watchdog = Some(freezer.watch(limit.saturating_sub(begun.elapsed()))?);
        Ok(())
    }

    /// An error if the guest has ended.
    fn ended_instead(&self, domain: &DomainId) -> Option<Error> {
        let how = match self.info(domain).ok()? {
            None => "was destroyed".to_owned(),
            Some(info) => info.ended()?.to_string(),
        };
        Some(
            Error::failed(format!("Domain {domain} {how} meanwhile"))
                .hint("take a snapshot of its disks while it does not run: leave out --disk-only and --quiesce"),
        )
    }

    fn check_frozen(&self, domain: &DomainId) -> Result<()> {
        if let Some(error) = self.ended_instead(domain) {
            return Err(error);
        }
        match &self.freeze.watchdog {
            Some(watchdog) if !watchdog.is_over() => Ok(()),
            _ => {
                Err(Error::failed(format!("The file systems of {domain} were frozen for too long"))
                    .because("they were thawed before the disks were snapshotted")
                    .hint("raise --freeze-timeout SECONDS"))
            }
        }
    }

    fn thaw(&mut self, domain: &DomainId, way: &FreezeMethod) -> Result<()> {
        let Some(state) = self.freeze.state.clone().filter(|state| state.thawed.is_none()) else {
            return Ok(());
        };
        // Whether that works or not, thaw the guest.
        let ended = match state.process.filter(|_| self.adopted) {
            Some(process) => {
                command::end_program(process).map_err(failed("End the program that freezes"))
            }
            None => Ok(()),
        };
        let unwatched = |freezer| Watched { freezer, over: false, thawed: false };
        let watched = match (self.freeze.watchdog.take(), self.freeze.freezer.take()) {
            (Some(watchdog), _) => watchdog.end()?,
            (None, Some(freezer)) => unwatched(freezer),
            (None, None) => unwatched(self.freezer(domain, way)?),
        };
        let Watched { mut freezer, over, thawed } = watched;
        let mut doubt =
            over.then(|| "they were thawed when their time was over (--freeze-timeout)".to_owned());
        if state.failed {
            // Most likely nothing is frozen, and a program such as fsfreeze calls that an error.
            if let Err(error) = freezer.thaw() {
                let words = error.chain().join(": ");
                self.messages.push(format!(
                    "note: the call to thaw {domain} after the freeze that failed has failed as well: {words}"
                ));
            }
        } else if !thawed {
            match self.thaw_now(&mut freezer, state.file_systems) {
                Ok(why) => doubt = doubt.or(why),
                Err(error) => {
                    // It may be tried again.
                    self.freeze.freezer = Some(freezer);
                    return Err(error);
                }
            }
        }
        self.messages.extend(freezer.complaint.take().map(|why| {
            format!("note: the file systems of {domain} are thawed, but its guest agent complains: {why}")
        }));
        let ms = match self.freeze.begun {
            Some(begun) => begun.elapsed().as_millis(),
            None => Timestamp::now().duration_since(state.begun).as_millis().max(0).unsigned_abs(),
        };
        let ms = u64::try_from(ms).unwrap_or(u64::MAX);
        self.set_freeze_state(Some(FreezeState { thawed: Some(Thawed { ms, doubt }), ..state }));
        ended
    }

    /// Tries until they are thawed. Returns why they may have been thawed before, if they may.
    fn thaw_now(&self, freezer: &mut Freezer, frozen: Option<u64>) -> Result<Option<String>> {
        let end = Instant::now() + THAW;
        // What an attempt without an answer has thawed is not counted by the next one.
        let mut expected = frozen;
        loop {
            let error = match freezer.thaw() {
                Ok(thaw) => return Ok(thaw.doubt(expected)),
                Err(error) => error,
            };
            expected = None;
            // The freeze has ended with the guest.
            if let Some(ended) = self.ended_instead(&freezer.domain) {
                return Ok(Some(ended.message));
            }
            if Instant::now() >= end {
                return Err(Error::failed(format!(
                    "The file systems of {} are still frozen: whatever writes there waits",
                    freezer.domain
                ))
                .because(error));
            }
            thread::sleep(AGAIN);
        }
    }

    fn confirm(&mut self, domain: &DomainId, way: &FreezeMethod) -> Result<()> {
        let why = match self.freeze.state.clone() {
            Some(FreezeState {
                file_systems, thawed: Some(Thawed { ms, doubt: None }), ..
            }) => {
                let quiesced = Quiesced { by: way.name(), file_systems, frozen_ms: ms };
                if let Some((_, record)) = &mut self.record {
                    record.disks_only = Some(DisksOnly::Quiesced);
                    record.quiesced = Some(quiesced);
                }
                return Ok(());
            }
            Some(FreezeState { thawed: Some(Thawed { doubt: Some(why), .. }), .. }) => why,
            _ => "they could not be thawed".into(),
        };
        Err(Error::failed(format!(
            "Whether the file systems of {domain} were frozen when its disks were snapshotted is not known"
        ))
        .because(why)
        .hint("the snapshot is a crash-consistent one, and its record says so: delete it, and try again"))
    }

    fn set_freeze_state(&mut self, state: Option<FreezeState>) {
        self.tell(&Note::Freeze(state.clone()));
        self.freeze.state = state;
    }
}
