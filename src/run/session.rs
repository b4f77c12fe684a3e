//! What all commands do before a plan is carried out.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use uuid::Uuid;

use crate::cli::Common;
use crate::error::{Error, Result};
use crate::host::dom0::Dom0;
use crate::host::lock::{Lock, LockMode, LockWait};
use crate::host::surroundings::{is_ignored, raise_limits};
use crate::host::toolstack::Toolstack;
use crate::plan::{Perform, Plan};
use crate::report::Reporter;

/// Who carries out a plan: [`crate::plan::execute`], or a test that has steps fail.
pub type Execute = fn(&Plan, &mut dyn Perform) -> Result<()>;

/// Opens the toolstack, with signals caught: from here on a step that has begun is ended or undone.
pub(super) fn open(common: &Common) -> Result<Dom0> {
    // To look at a snapshot takes no more than the caller allows.
    raise_limits().map_err(|why| {
        Error::refused("A memory image would be cut off")
            .because(why)
            .hint("raise the limit, or run this as root, who may")
    })?;
    let stop = catch_signals()?;
    let reporter = Reporter::new(common.quiet, common.verbose);
    Ok(Dom0::new(Toolstack::open(&reporter)?, reporter, stop))
}

/// Has the signals that end a program say no more than that it is to end.
pub(super) fn catch_signals() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    // Not SIGCHLD: that is libxl's.
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        if is_ignored(signal) {
            continue;
        }
        signal_hook::flag::register(signal as i32, Arc::clone(&stop)).map_err(|error| {
            Error::failed("Catching SIGINT, SIGTERM and SIGHUP")
                .because(error)
                .hint("nothing was changed; try again")
        })?;
    }
    Ok(stop)
}

/// One of us per domain; a dry run changes nothing and needs no lock. Waits for it if that was asked for.
pub(super) fn take_lock(
    dom0: &Dom0,
    common: &Common,
    owner: (Uuid, &str),
    operation: &str,
    hold: LockMode,
) -> Result<Option<Lock>> {
    if common.dry_run {
        return Ok(None);
    }
    lock((&dom0.reporter, &|| dom0.interrupted()), common.wait, owner, operation, hold).map(Some)
}

/// The same of what is no plan. `stopped` is whether the user wants it to end.
pub(super) fn lock(
    (reporter, stopped): (&Reporter, &dyn Fn() -> bool),
    wait: Option<u32>,
    (uuid, domain): (Uuid, &str),
    operation: &str,
    hold: LockMode,
) -> Result<Lock> {
    patiently((reporter, stopped), wait, domain, &|patience| {
        Lock::take((uuid, domain), operation, hold, patience)
    })
}

/// Takes what may have to be waited for.
pub(super) fn patiently(
    (reporter, stopped): (&Reporter, &dyn Fn() -> bool),
    wait: Option<u32>,
    domain: &str,
    take: &dyn Fn(Option<&LockWait<'_>>) -> Result<Lock>,
) -> Result<Lock> {
    let seconds = wait.unwrap_or_default();
    let patience = LockWait {
        limit: Duration::from_secs(seconds.into()),
        waits: &|holder| {
            reporter
                .note(&format!("note: waiting for {domain}, {seconds} s at most: {holder} has it"));
        },
        stopped,
    };
    take(wait.is_some().then_some(&patience))
}

/// Says what is to be known of a plan before it is carried out. Called when messages wait for nobody any more: who cannot
/// write is not to hold the domain.
pub(super) fn tell_planned(reporter: &Reporter, plan: &Plan, started: Instant) {
    let looked =
        reporter.timed(&"look at the domain and its disks, and plan", started.elapsed(), true);
    looked.iter().for_each(|text| reporter.message(text));
    plan.notes.iter().for_each(|note| reporter.note(&format!("note: {note}")));
}
