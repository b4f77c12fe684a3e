//! Snapshots of the disks without the memory, of a domain that does not run or, with `--disk-only`, of
//! one that does.

use std::time::Duration;

use super::parts::{Rewrites, actions, images, left_out, name_of, new_record, prepare, switch};
use super::{CreateInput, ImagePlace, Job, room};
use crate::disk::DiskCreate;
use crate::domain::DomainId;
use crate::error::{Error, Result};
use crate::plan::{Freeze, Plan, Step};
use crate::quiesce::FreezeMethod;
use crate::record::{DisksOnly, Record};
use crate::state::State;
use crate::tool::{check_path, quote};

/// Why disks without memory are no snapshot of a running domain ("domain snapshot", RFC V9 on
/// xen-devel).
const NOT_WORTH_IT: &str = "without its memory, the disks of a running guest are what a power cut \
                            leaves: it is not known whether its file systems and databases survive that";

/// Refuses domains of which disks cannot be snapshotted without memory.
pub(super) fn check(job: &Job, seen: &CreateInput) -> Result<()> {
    let domain = name_of(&seen.config)?;
    if seen.state == State::Off {
        if job.request.paused {
            return Err(Error::usage(format!("Domain {domain} does not run"))
                .because("it cannot be left paused")
                .hint("leave out --paused"));
        }
        if job.request.record.is_none() {
            return Err(Error::usage("A snapshot without memory is known by its record")
                .hint("pass --record FILE"));
        }
        return Ok(());
    }
    if !job.request.crash_consistent && job.request.quiesce.is_none() {
        return Err(Error::refused(format!("Domain {domain} ({}) runs", seen.domain.domid))
            .because(NOT_WORTH_IT)
            .hint(
                "take its memory as well (without --record and --disk-only), shut it down first, have its \
                 file systems frozen (--disk-only --quiesce agent), or say that it is good enough: \
                 --disk-only --crash-consistent",
            ));
    }
    if job.request.quiesce.is_some() && seen.state == State::Paused {
        return Err(Error::refused(format!("Domain {domain} ({}) is paused", seen.domain.domid))
            .because("it can neither freeze nor thaw its file systems")
            .hint(format!("unpause it first: xl unpause {}", quote(&domain))));
    }
    if seen.cfg.is_none() {
        return Err(Error::refused(format!(
            "Domain {domain} ({}) has no known xl configuration file",
            seen.domain.domid
        ))
        .because("a revert starts the domain from that file")
        .hint("name the domain by its configuration file, or set config in a SPEC.toml"));
    }
    Ok(())
}

pub(super) fn plan(
    job: &Job,
    seen: &CreateInput,
    disks: &[DiskCreate],
    rewrites: &Rewrites,
) -> Result<Plan> {
    let domain = name_of(&seen.config)?;
    let ImagePlace::Record { path, trouble } = &seen.image else {
        unreachable!("looked for where one was asked for")
    };
    let refused = || Error::refused(format!("The record {}", path.display()));
    check_path(path)
        .map_err(|why| refused().because(why).hint("choose another file with --record"))?;
    if let Some(trouble) = trouble {
        return Err(refused().because(trouble.clone()).hint("choose another file with --record"));
    }
    let running = seen.state != State::Off;
    let kind = if running { DisksOnly::CrashConsistent } else { DisksOnly::Offline };
    let record = Record { disks_only: Some(kind), ..new_record(job, seen, disks, false)? };
    let mut notes = left_out(disks);
    notes.extend(room::notes(job, seen, disks));
    let id = &seen.domain;
    let actions = actions(disks);
    let freeze = Freezing::of(job, seen).filter(|_| running);
    // Before anything is created: most failures of a freeze show here.
    let reach = freeze.as_ref().map(Freezing::reach);
    let mut prepare: Vec<Step> = reach.into_iter().chain(prepare(id, disks, &actions)).collect();
    prepare.push(Step::OpenRecord { path: path.clone(), record: Box::new(record) });
    let in_pause = disks.iter().flat_map(|disk| disk.in_pause.clone());
    let title = format!("Snapshot {} of the disks of {domain}", job.name);
    if !running {
        if job.request.quiesce.is_some() {
            notes.push("the domain does not run, so --quiesce has no effect".into());
        }
        prepare.push(Step::CheckNotRunning { uuid: id.uuid, domain });
        prepare.extend(Step::together(in_pause.collect()));
        prepare.extend(rewrites.cfg.clone().map(Step::ReplaceCfg));
        let commit = Some(Step::CompleteRecord);
        return Ok(Plan { title, notes, prepare, commit, ..Plan::default() });
    }

    notes.push(match &freeze {
        None => format!("{NOT_WORTH_IT}, as you have said"),
        Some(freeze) => format!(
            "while the file systems of {} are frozen, whatever writes there waits, for {} s at most",
            id.name,
            freeze.limit.as_secs_f64()
        ),
    });
    let in_pause: Vec<Step> = in_pause.collect();
    // One step is one instant; between two steps the guest must not write, so pause it. A guest that is
    // already paused stays paused.
    let steps_in_pause = in_pause.len() + usize::from(!actions.is_empty());
    let stop = steps_in_pause > 1 && seen.state == State::Running;
    // Nobody may restart the domain between the change of the stored configuration and that of the
    // disks.
    prepare.extend(seen.monitor.map(|process| Step::StopXl { process }));
    prepare.extend(freeze.as_ref().map(|freeze| freeze.begin(disks)));
    prepare.extend(stop.then_some(Step::Pause { domain: id.clone() }));
    prepare.extend(Step::together(in_pause));
    let switch = switch(seen, disks, rewrites)?;
    prepare.push(Step::CheckConfig { domain: id.clone(), stored: seen.stored.clone() });
    // After the freeze, which may take seconds: until the disks are switched, the stored configuration must
    // name the old ones.
    prepare.extend(switch.store);
    prepare.extend(freeze.as_ref().map(Freezing::check));
    let mut finish = Vec::new();
    if stop && !job.request.paused {
        finish.push(Step::UnpauseExisting { domain: id.clone() });
    } else if job.request.paused && !stop && seen.state == State::Running {
        finish.push(Step::Pause { domain: id.clone() });
    }
    finish.extend(freeze.as_ref().map(Freezing::thaw));
    finish.extend(switch.keys);
    finish.extend(seen.monitor.map(|process| Step::ContinueXl { process }));
    finish.extend(freeze.as_ref().map(Freezing::confirm));
    finish.push(Step::CompleteRecord);
    finish.extend(rewrites.cfg.clone().map(Step::ReplaceCfg));
    let commit = (!actions.is_empty()).then(|| Step::Transaction { domain: id.clone(), actions });
    Ok(Plan { title, notes, prepare, commit, finish, ..Plan::default() })
}

/// The steps of a freeze.
struct Freezing<'a> {
    domain: &'a DomainId,
    way: &'a FreezeMethod,
    limit: Duration,
}

impl<'a> Freezing<'a> {
    fn of(job: &Job, seen: &'a CreateInput) -> Option<Freezing<'a>> {
        let wanted = job.request.quiesce.as_ref()?;
        Some(Freezing { domain: &seen.domain, way: seen.way.as_ref()?, limit: wanted.limit })
    }

    fn parts(&self) -> (DomainId, FreezeMethod) {
        (self.domain.clone(), self.way.clone())
    }

    fn reach(&self) -> Step {
        let (domain, way) = self.parts();
        Step::Freeze(Freeze::Reach { domain, way })
    }

    fn begin(&self, disks: &[DiskCreate]) -> Step {
        let (domain, way) = self.parts();
        Step::Freeze(Freeze::Begin { domain, way, limit: self.limit, disks: images(disks) })
    }

    fn check(&self) -> Step {
        Step::Freeze(Freeze::Check { domain: self.domain.clone() })
    }

    fn thaw(&self) -> Step {
        let (domain, way) = self.parts();
        Step::Freeze(Freeze::Thaw { domain, way })
    }

    fn confirm(&self) -> Step {
        let (domain, way) = self.parts();
        Step::Freeze(Freeze::Confirm { domain, way })
    }
}
