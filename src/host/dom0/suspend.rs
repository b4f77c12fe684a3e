//! Suspend and resume, and the checks between them.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::round::{PAGE, Round};
use super::state::{Dom0, IMAGE_IS_OPEN, POLL, caused, meddled};
use crate::create::room;
use crate::domain::DomainId;
use crate::error::{Error, Result};
use crate::host::files;
use crate::host::libxl::{Abort, Aborter, Level, Libxl, LibxlError, ShutdownReason};
use crate::host::parallel::in_parallel;
use crate::host::savers;
use crate::record::Record;
use crate::tool::quote;

/// How much the CPU time of a suspended guest may grow, in nanoseconds: its last processor may still be
/// stopping when Xen reports it as suspended. To resume and suspend again takes far more.
const STILL: u64 = 1_000_000;
/// Less free space than this, in bytes, counts as full.
const ROOM: u64 = 1 << 20;
/// How often to check whether a running save is still wanted and can still succeed.
const LOOK: Duration = Duration::from_millis(200);
/// How long after a failed save the guest is watched.
const LATE_SUSPEND: Duration = Duration::from_secs(3);
/// The note limit: tell the user if the last round of a live save paused the guest for longer.
const LONG: Duration = Duration::from_secs(1);

/// A save in progress, shared by two threads: the one in libxl and the one that watches it.
#[derive(Debug)]
struct Saving<'a> {
    domain: &'a DomainId,
    max_pause: Option<Duration>,
    suspended_at: OnceLock<Instant>,
    finished: AtomicBool,
    reserve: Option<Reserve>,
    /// The free space at which it was aborted, in bytes.
    short: OnceLock<u64>,
}

/// The space that must stay free on the image's file system.
#[derive(Debug)]
struct Reserve {
    image: PathBuf,
    /// In bytes.
    free: u64,
}

impl Reserve {
    fn of(image: PathBuf, record: &Record) -> Option<Reserve> {
        let files::Room { free, total, .. } = files::room(&image).ok()?;
        // The compressed size is known only at the end.
        let needed = room::needed(record.domain.memory_kib, false);
        Some(Reserve { image, free: room::reserve(free, total, needed) })
    }

    /// The free space in bytes, if it is too little.
    fn broken(&self) -> Option<u64> {
        files::free_space(&self.image).ok().filter(|free| *free < self.free)
    }
}

impl Saving<'_> {
    /// Aborts the save if it is no longer wanted, takes too long, cannot succeed, or somebody else saves
    /// the domain as well. Returns the guest's CPU time at the suspend, in nanoseconds, and the other
    /// saver.
    fn watch(
        &self,
        libxl: Option<&mut Libxl>,
        aborter: &Aborter<'_>,
        stop: &AtomicBool,
    ) -> (Option<u64>, Option<i32>) {
        // A connection that only this thread has: it is not Sync.
        let libxl = libxl.map(|libxl| &*libxl);
        let mut aborted = false;
        let mut cpu_time = None;
        let mut other = None;
        while !self.finished.load(Ordering::Acquire) {
            // Read this before the domain's state, which may be from just before the suspend.
            let suspended = self.suspended_at.get().is_some();
            let info = libxl.and_then(|libxl| libxl.domain_info(self.domain.domid).ok()?);
            // The last check is while the last pages are copied: not in the pause.
            other = other.or_else(|| savers::other(self.domain).ok()?);
            if cpu_time.is_none() && suspended {
                cpu_time = info.as_ref().map(|info| info.cpu_time);
            }
            let in_vain = stop.load(Ordering::Acquire)
                || other.is_some()
                || self.remaining().is_some_and(|remaining| remaining.is_zero())
                || self.is_short()
                // libxl would wait a minute for an answer that such a guest cannot give.
                || info.is_some_and(|info| info.ended().is_some() || info.paused && !suspended);
            // Repeat the abort until it has an effect: the save may be between two of its parts.
            aborted = aborted
                || in_vain
                    && matches!(aborter.abort(), Ok(Abort::Requested | Abort::AlreadyRequested));
            let nap = self.remaining().filter(|remaining| !remaining.is_zero());
            thread::park_timeout(nap.map_or(LOOK, |nap| nap.min(LOOK)));
        }
        (cpu_time, other)
    }

    /// Whether the image has grown so much that other writers on its file system would soon run out
    /// of space.
    fn is_short(&self) -> bool {
        if let Some(free) = self.reserve.as_ref().and_then(Reserve::broken) {
            let _ = self.short.set(free);
        }
        self.short.get().is_some()
    }

    /// How much longer the guest may be paused, if there is a limit.
    fn remaining(&self) -> Option<Duration> {
        Some(self.max_pause?.saturating_sub(self.suspended_at.get()?.elapsed()))
    }
}

/// Writes dom0's cached data of the disks to storage.
pub(super) fn write_back(disks: &[PathBuf]) -> Result<()> {
    let written = in_parallel(disks, |path| {
        files::write_back(path).map_err(|error| {
            Error::failed(format!("Write what is cached of {} to its storage", quote(path)))
                .because(error)
                .hint("the guest keeps running; check dmesg for errors of the storage")
        })
    });
    written.into_iter().collect()
}

/// The same while the memory is saved, without waiting for it.
fn write_back_again(disks: &[PathBuf]) {
    let disks = disks.to_vec();
    // If it fails, only the pause is longer. The next writer reports errors.
    let _ = thread::Builder::new().name("write-back".into()).spawn(move || write_back(&disks));
}

impl Dom0 {
    pub(super) fn suspend(
        &mut self,
        domain: &DomainId,
        live: bool,
        max_pause: Option<Duration>,
        disks: &[PathBuf],
    ) -> Result<()> {
        self.the_only(domain)?;
        let result = self.save(domain, live, max_pause, disks);
        self.suspend_failed = result.is_err();
        // libxl may not have noticed; if it has, it only saw a closed pipe.
        let saved = result.is_ok();
        let trouble = self.image.as_mut().and_then(|(writer, _)| writer.seal(saved));
        self.suspend_failed |= trouble.is_some();
        let compressed = self.image.as_ref().is_some_and(|(writer, _)| writer.is_compressed());
        let error = match (trouble, result) {
            (Some(why), _) if compressed => Error::failed("Compressing the memory").because(why),
            (Some(why), _) => Error::failed(why),
            (None, Ok(())) => return Ok(()),
            (None, Err(error)) => {
                if error.is_aborted() {
                    self.check_pause()?;
                    self.check_room()?;
                    self.check_savers()?;
                }
                if self.info(domain)?.is_some_and(|info| info.paused) {
                    return Err(meddled("paused the domain, which cannot be suspended then"));
                }
                if let Some(reason) = self.ended(domain) {
                    let ended =
                        Error::failed(format!("The guest {reason} while its memory was saved"))
                            .hint("check it with xl list, and try again");
                    // libxl's messages after an abort are only consequences.
                    return Err(if error.is_aborted() { ended } else { ended.because(error) });
                }
                if error.is_guest_timed_out() {
                    caused(error).hint(
                        "the guest did not answer the suspend request: \
                         has it booted, and does it have Xen drivers?",
                    )
                } else {
                    caused(error)
                }
            }
        };
        let hint = error.hint.clone().unwrap_or_else(|| self.after_failed_save(domain));
        let partial = self.image.as_ref().and_then(|(writer, _)| writer.partial());
        let place = partial.map_or("standard output".into(), quote);
        Err(Error::failed(format!("Writing the memory to {place}")).because(error).hint(hint))
    }

    /// What to do after a failed save.
    fn after_failed_save(&self, domain: &DomainId) -> String {
        let partial = self.image.as_ref().and_then(|(writer, _)| writer.partial());
        if self.is_gone(domain).unwrap_or(false) {
            "another program destroyed the domain"
        } else if partial.is_some_and(|path| files::free_space(&path).is_ok_and(|free| free < ROOM))
        {
            "its file system is full: free some space, or choose another place with --memory FILE"
        } else {
            "the guest keeps running; try again"
        }
        .to_owned()
    }

    fn save(
        &mut self,
        domain: &DomainId,
        live: bool,
        max_pause: Option<Duration>,
        disks: &[PathBuf],
    ) -> std::result::Result<(), LibxlError> {
        let (writer, record) = self.image.as_ref().expect(IMAGE_IS_OPEN);
        let (libxl, stop) = (self.toolstack.libxl(), &self.stop);
        let meter = self.reporter.meter("saving memory");
        // For the watching thread: our own connection is busy with the save. Without it,
        // check_suspended detects less.
        self.lookout = Libxl::open(Level::Critical, |_, _| ()).ok();
        let lookout = self.lookout.as_mut();
        let domid = domain.domid;
        let reserve = writer.partial().and_then(|image| Reserve::of(image, record));
        let saving = Saving {
            domain,
            max_pause,
            suspended_at: OnceLock::new(),
            finished: AtomicBool::new(false),
            reserve,
            short: OnceLock::new(),
        };
        let (mut cpu_time, mut other) = (None, None);
        let mut last = Round::default();
        let result = thread::scope(|scope| {
            let (saving, aborter) = (&saving, libxl.aborter());
            let watch = scope.spawn(move || saving.watch(lookout, &aborter, stop));
            let result = libxl.suspend(domid, writer.fd(), live, &mut |progress| {
                if progress.is_suspended() && saving.suspended_at.set(Instant::now()).is_ok() {
                    watch.thread().unpark();
                    // The rest of a live save takes only a moment, and is the whole pause.
                    if live {
                        meter.silence();
                    }
                }
                // During the previous round, the guest has written to its disks. Skip this for the
                // last round: the guest is suspended, and QEMU flushes the rest itself.
                let runs = saving.suspended_at.get().is_none();
                if runs && progress.iteration() > Some(last.before) {
                    write_back_again(disks);
                }
                last.note(&progress);
                meter.show(
                    progress.iteration(),
                    progress.done.saturating_mul(PAGE),
                    progress.total.saturating_mul(PAGE),
                );
            });
            saving.finished.store(true, Ordering::Release);
            // The guest is suspended: end the watcher's sleep at once.
            watch.thread().unpark();
            (cpu_time, other) = watch.join().expect("looking does not panic");
            result
        });
        meter.end();
        self.meters.push(meter);
        let suspended_at = saving.suspended_at.into_inner().unwrap_or_else(Instant::now);
        self.suspended_at = Some(suspended_at);
        self.pause_limit = max_pause.map(|max| (suspended_at + max, max));
        self.short_of_room = saving.short.into_inner();
        self.cpu_time = cpu_time;
        self.other_saver = other;
        let pause = suspended_at.elapsed();
        if live && result.is_ok() && pause >= LONG {
            self.busy = Some((last, pause));
        }
        result
    }

    /// An error if the guest is paused for too long.
    fn check_pause(&self) -> Result<()> {
        match self.pause_limit {
            Some((end, max)) if Instant::now() >= end => Err(Error::failed(format!(
                "The guest was paused for longer than {} s",
                max.as_secs_f64()
            ))
            .hint("the guest keeps running; raise --max-pause, or try again when it is less busy")),
            _ => Ok(()),
        }
    }

    /// An error if the save was aborted to keep its file system from filling up.
    fn check_room(&self) -> Result<()> {
        let Some(free) = self.short_of_room else { return Ok(()) };
        let partial = self.image.as_ref().and_then(|(writer, _)| writer.partial());
        let place = partial.map_or_else(|| "The image".into(), quote);
        Err(Error::failed(format!("{place} was given up"))
            .because(format!(
                "its file system has only {} MiB left, which others who write to it need: another \
                 program fills it, or the guest writes to its memory while that is saved",
                free >> 20
            ))
            .hint(
                "the guest keeps running; free some space, choose another place with --memory FILE, or save it \
                 while it is paused: --no-live",
            ))
    }

    /// An error if somebody else saved the domain at the same time.
    fn check_savers(&self) -> Result<()> {
        self.other_saver.map_or(Ok(()), |pid| {
            Err(meddled(&format!("begun to save or migrate the domain (process {pid})")))
        })
    }

    /// Checks again when the guest runs: somebody may have begun to save the domain between the last
    /// check and the switch of its disks.
    fn warn_of_savers(&mut self, domain: &DomainId) {
        if let Ok(Some(pid)) = savers::other(domain) {
            self.messages.push(format!(
                "note: process {pid} (xl save or migrate) has begun meanwhile: if disks were switched, its \
                 image may name the frozen ones; do not restore it, let it be made again"
            ));
        }
    }

    /// An error if the guest has run since it was suspended, or its configuration has changed.
    pub(super) fn check_suspended(&self, domain: &DomainId, stored: Option<&str>) -> Result<()> {
        self.check_pause()?;
        self.check_savers()?;
        let info = self.the_same(domain)?;
        if info.shutdown_reason != Some(ShutdownReason::Suspend) {
            return Err(meddled("resumed the domain"));
        }
        if self.cpu_time.is_some_and(|before| info.cpu_time > before + STILL) {
            return Err(meddled("let the domain run"));
        }
        // A restore would not give it what it has now.
        let target = self.saved.as_ref().and_then(|saved| saved.target_below(info.current_memkb));
        if let Some(target) = target {
            return Err(Error::failed(format!(
                "The memory of {domain} was raised while it was saved: it has {} MiB, and the image says {} MiB",
                info.current_memkb >> 10,
                target >> 10
            ))
            .hint("the guest keeps running; run the command again when nothing changes its memory (xl mem-set)"));
        }
        stored.map_or(Ok(()), |stored| self.check_config(domain.domid, stored))
    }

    /// Resumes a suspended domain; does nothing if it is not suspended.
    pub(super) fn resume(&mut self, domain: &DomainId) -> Result<()> {
        // A guard does not know how far the save came, so it keeps the image.
        let saved = !self.suspend_failed;
        let result = self.try_resume(domain);
        self.stuck = (saved && result.is_err()).then(|| domain.clone());
        result
    }

    fn try_resume(&mut self, domain: &DomainId) -> Result<()> {
        let gone = self.is_gone(domain).unwrap_or(false);
        let result = if gone { Ok(()) } else { self.toolstack.libxl().resume(domain.domid) };
        // The killed process may have asked the guest to suspend.
        self.suspend_failed |= self.adopted;
        if let Some(suspended) = self.suspended_at.take() {
            self.done.pause = Some(suspended.elapsed());
        }
        if !gone && result.is_ok() && !self.suspend_failed {
            self.warn_of_savers(domain);
        }
        self.messages.extend(self.busy.take().map(|(round, pause)| round.of_a_busy_guest(pause)));
        if self.suspend_failed {
            return self.resume_latecomer(domain);
        }
        if gone || result.is_err() && self.is_gone(domain)? {
            self.messages.push(format!("note: another program destroyed domain {domain}"));
            return Ok(());
        }
        let Err(error) = result else { return Ok(()) };
        if self.is_suspended(domain)? { Err(caused(error)) } else { Ok(()) }
    }

    /// After a failed save the guest may still obey the request to suspend: seen 150 ms after libxl
    /// had given up. Withdraws the request and watches for a while.
    fn resume_latecomer(&mut self, domain: &DomainId) -> Result<()> {
        self.suspend_failed = false;
        let deadline = Instant::now() + LATE_SUSPEND;
        loop {
            if self.is_gone(domain)? || self.ended(domain).is_some() {
                return Ok(());
            }
            // The other process suspends and resumes it.
            if savers::other(domain).is_ok_and(|other| other.is_some()) {
                return Ok(());
            }
            self.toolstack.xenstore().cancel_suspend(domain.domid).map_err(caused)?;
            if self.is_suspended(domain)? {
                self.toolstack.libxl().resume(domain.domid).map_err(caused)?;
            }
            if Instant::now() >= deadline {
                return Ok(());
            }
            thread::sleep(POLL);
        }
    }

    /// How the guest has ended, if it has.
    fn ended(&self, domain: &DomainId) -> Option<ShutdownReason> {
        self.info(domain).ok()??.ended()
    }

    /// Whether the domain is suspended.
    fn is_suspended(&self, domain: &DomainId) -> Result<bool> {
        Ok(self
            .info(domain)?
            .is_some_and(|info| info.shutdown_reason == Some(ShutdownReason::Suspend)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::libxl::Progress;

    #[test]
    fn the_last_round_is_told() {
        let mut round = Round::default();
        for (what, total) in [
            ("Frames iteration 0", 65536),
            ("Frames iteration 4", 9000),
            ("Domain now suspended", 0),
            ("Frames iteration 5", 8192),
            ("End of stream", 0),
        ] {
            round.note(&Progress { what, percent: 50, done: 100, total });
        }
        let words = round.of_a_busy_guest(Duration::from_millis(1540));
        assert!(words.contains("after 5 rounds, 32 MiB"), "{words}");
        assert!(words.contains("in the pause of 1.5 s"), "{words}");
    }
}
