//! `delete`, from the command line to the report.

use std::collections::BTreeSet;
use std::env;
use std::path::{Path, PathBuf};
use std::time::Instant;

use jiff::Timestamp;
use uuid::Uuid;

use super::output::{print_done, print_plan, write};
use super::session::{Execute, open, take_lock, tell_planned};
use crate::cli::{Common, DeleteArgs};
use crate::delete::{self, DeleteInput};
use crate::disk::image_tree::{DeleteOptions, DiskDelete};
use crate::error::{Error, Kind, Remaining, Result};
use crate::host::deletion::SnapshotToDelete;
use crate::host::dom0::Dom0;
use crate::host::lock::{Lock, LockMode};
use crate::host::{deletion, marks, rewrites};
use crate::list::mark::Mark;
use crate::plan::{Plan, Step};
use crate::record::Record;
use crate::report::{Deleted, DeletedDisk, Deletions, Failed, Merge, Planned, json_text};
use crate::spec;

/// What is asked for, of one snapshot or of several.
#[derive(Debug, Clone, Copy)]
pub(super) struct Options<'a> {
    /// Only the memory is removed; the record becomes one of a snapshot without memory.
    pub(super) memory_only: bool,
    /// Where several images rest on a frozen file, each gets a copy of it.
    pub(super) flatten: bool,
    /// The options that all commands share; in a dry run nothing is changed.
    pub(super) common: &'a Common,
}

/// What has become of a snapshot.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
pub(super) enum Outcome {
    /// It is gone, or its memory is.
    Deleted(Deleted),
    /// It was a dry run: what would be done.
    Planned(Plan),
}

/// Deletes one snapshot: `DOMAIN/NAME`, or the path of its memory image or record. Takes the domain's
/// lock, so the caller must not have it. Prints nothing on standard output.
///
/// # Errors
///
/// With [`crate::error::Error::exit_code`] as the whole command would end with: 3 refused before any
/// change, 1 failed and all is as it was, 4 something is left to do.
pub(super) fn one(path: &Path, options: Options<'_>, carry_out: Execute) -> Result<Outcome> {
    let started = Instant::now();
    // A name that is mistyped is told on any host.
    let named = deletion::named(path)?;
    let mut dom0 = open(options.common)?;
    let Record { domain, name, .. } = &named.record;
    let owner = (domain.uuid, domain.name.as_str());
    let lock =
        take_lock(&dom0, options.common, owner, &format!("delete {name}"), LockMode::Exclusive)?;
    // Whoever was waited for may have deleted it.
    let named = deletion::named(path)?;
    let directory = spec::directory(env::var_os(spec::DIRECTORY_VARIABLE))?;
    let look = || planned(&dom0, &named, &directory, options);
    let mut deletion = look()?;
    let Some(lock) = lock else { return Ok(Outcome::Planned(deletion.plan)) };
    // Of clones, whose disks get a copy.
    let others = others(&deletion);
    let locks = lock_others(&dom0, options.common, &others, &deletion.seen)?;
    if !locks.is_empty() {
        // Whoever was waited for may have taken a snapshot in an image that was to be merged.
        deletion = look()?;
        if !self::others(&deletion).is_subset(&others) {
            return Err(Error::refused(format!(
                "Snapshot {} cannot be deleted",
                named.record.name
            ))
            .because("another domain uses its images since")
            .hint("run the command again"));
        }
    }
    let PlannedDeletion { seen, plan, disks, record } = deletion;
    dom0.be_guarded(&plan, &lock)?;
    tell_planned(&dom0.reporter, &plan, started);
    carry_out(&plan, &mut dom0)?;
    drop(locks);
    if !options.memory_only {
        inherit_marks(&seen.record);
    }
    Ok(Outcome::Deleted(report(&seen, &plan, disks, record, started)))
}

/// A deletion, and what it was planned from.
struct PlannedDeletion {
    seen: DeleteInput,
    plan: Plan,
    disks: Vec<DiskDelete>,
    /// The record that keeps the disks, if only the memory is deleted.
    record: Option<PathBuf>,
}

fn planned(
    dom0: &Dom0,
    named: &SnapshotToDelete,
    directory: &Path,
    options: Options<'_>,
) -> Result<PlannedDeletion> {
    let seen = deletion::look(Some(&dom0.toolstack), named, directory.to_owned())?;
    if options.memory_only {
        let (plan, record) = delete::plan_memory_only(&seen)?;
        return Ok(PlannedDeletion { seen, plan, disks: Vec::new(), record: Some(record) });
    }
    let disks = delete::disks(&seen, DeleteOptions { flatten: options.flatten })?;
    let switches: Vec<_> = disks.iter().flat_map(|disk| &disk.switches).collect();
    let stamp = Timestamp::now().strftime("before-delete-%Y%m%d-%H%M%S").to_string();
    let rewrites = rewrites::for_delete(&dom0.toolstack, &switches, &stamp)?;
    let plan = delete::plan(&seen, &disks, &rewrites)?;
    Ok(PlannedDeletion { seen, plan, disks, record: None })
}

/// The other domains that use images which are merged, running or not. The UUID of one that is down is not known.
fn others(deletion: &PlannedDeletion) -> BTreeSet<(Uuid, String)> {
    let PlannedDeletion { seen, disks, .. } = deletion;
    let own = &seen.record.domain;
    let merged = seen.families.iter().zip(disks).filter(|(_, disk)| !disk.merges.is_empty());
    let users = merged.flat_map(|(tree, _)| tree.images()).flat_map(|image| &image.users);
    let down = users.filter(|user| !user.same).map(|user| {
        let running = seen.domains.iter().find(|domain| domain.id.name == user.domain);
        (running.map_or(Uuid::nil(), |domain| domain.id.uuid), user.domain.clone())
    });
    let online = disks.iter().flat_map(|disk| &disk.online);
    let online = online.filter(|domain| domain.name != own.name && domain.uuid != own.uuid);
    down.chain(online.map(|domain| (domain.uuid, domain.name.clone()))).collect()
}

fn lock_others(
    dom0: &Dom0,
    common: &Common,
    others: &BTreeSet<(Uuid, String)>,
    seen: &DeleteInput,
) -> Result<Vec<Lock>> {
    let operation = format!("delete {} of {}", seen.record.name, seen.record.domain.name);
    let lock = |(uuid, name): &(Uuid, String)| {
        take_lock(dom0, common, (*uuid, name), &operation, LockMode::Exclusive)
    };
    let locks = others.iter().map(lock).collect::<Result<Vec<_>>>()?;
    Ok(locks.into_iter().flatten().collect())
}

/// Disks that went on from the snapshot go on from the one before it.
fn inherit_marks(record: &Record) {
    for disk in record.disks.iter().filter(|disk| marks::needs_one(disk)) {
        let Some(mark) = marks::of(&disk.path).filter(|mark| mark.id == record.id) else {
            continue;
        };
        match delete::new_parent(record) {
            Some(id) => marks::put(&disk.path, Mark { id, at: mark.at }),
            None => marks::clear(&disk.path),
        }
    }
}

fn report(
    seen: &DeleteInput,
    plan: &Plan,
    disks: Vec<DiskDelete>,
    record: Option<PathBuf>,
    started: Instant,
) -> Deleted {
    let cfgs = plan.onward.iter().filter_map(|step| match step {
        Step::ReplaceCfg(cfg) => Some(cfg.into()),
        _ => None,
    });
    let kinds = seen.record.disks.iter().map(|disk| (disk.vdev.clone(), disk.snapshot.name()));
    Deleted {
        name: seen.record.name.to_string(),
        id: seen.record.id,
        domain: seen.record.domain.name.clone(),
        image: seen.image.clone(),
        freed: match seen.record.disks_only {
            None => seen.allocated,
            Some(_) => 0,
        },
        record,
        total_ms: started.elapsed().as_secs_f64() * 1000.0,
        disks: disks
            .into_iter()
            .zip(kinds)
            .zip(&seen.record.disks)
            .filter(|(_, disk)| !disk.snapshot.is_left_out())
            .map(|((disk, (vdev, snapshot)), _)| DeletedDisk {
                vdev,
                snapshot,
                merged: disk.merged.into_iter().map(Merge::from).collect(),
                runs_on: disk.switches.first().map(|switch| switch.to.path.clone()),
                removed: disk.removed,
                kept: disk.kept.or(disk.notes.into_iter().next()),
            })
            .collect(),
        cfgs: cfgs.collect(),
    }
}

/// Does what the command line asks for: one failure does not stop the others.
pub fn delete(args: &DeleteArgs, carry_out: Execute) -> Result<()> {
    let options =
        Options { memory_only: args.memory_only, flatten: args.flatten, common: &args.common };
    let (mut done, mut plans, mut errors) = (Vec::new(), Vec::new(), Vec::new());
    let mut failed = Vec::new();
    for path in &args.snapshots {
        match one(path, options, carry_out) {
            Ok(Outcome::Deleted(deleted)) => done.push(deleted),
            Ok(Outcome::Planned(plan)) => plans.push(plan),
            Err(error) => {
                failed.push(Failed {
                    snapshot: path.clone(),
                    exit_status: error.exit_code(),
                    why: error.chain().join(": "),
                });
                errors.push(error);
            }
        }
    }
    let changed = !done.is_empty();
    if args.common.dry_run {
        print_plans(&plans, args.common.json)?;
    } else if !done.is_empty() || args.common.json {
        print_done(&Deletions { snapshots: done, failed }, args.common.json)?;
    }
    // Refused, or as it was, is one of them and not all.
    all_in_one(errors).map_err(|error| match changed && error.kind != Kind::Unfinished {
        true => {
            let remaining = Remaining { what: error.chain().join(": "), command: None };
            error.unfinished(vec![remaining])
        }
        false => error,
    })
}

fn print_plans(plans: &[Plan], json: bool) -> Result<()> {
    match plans {
        [] => Ok(()),
        [plan] => print_plan(plan, json),
        plans if json => {
            let plans: Vec<Planned> = plans.iter().map(Planned::from).collect();
            write(&json_text(&plans))
        }
        plans => plans.iter().try_for_each(|plan| print_plan(plan, false)),
    }
}

/// The worst of several errors, which the others are told with.
pub(super) fn all_in_one(errors: Vec<Error>) -> Result<()> {
    let severity = |error: &Error| match error.kind {
        Kind::Unfinished => 3,
        Kind::Failed => 2,
        Kind::Refused => 1,
        Kind::Usage => 0,
    };
    let mut errors = errors;
    errors.sort_by_key(|error| std::cmp::Reverse(severity(error)));
    let mut errors = errors.into_iter();
    match errors.next() {
        None => Ok(()),
        Some(worst) => Err(errors.fold(worst, |mut worst, mut other| {
            worst.remaining.append(&mut other.remaining);
            // What stops all of them, such as a host without Xen, is told once.
            match worst.chain() == other.chain() {
                true => worst,
                false => worst.and_also(other),
            }
        })),
    }
}
