//! `revert`, from the command line to the report.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use jiff::Timestamp;
use uuid::Uuid;

use super::argument::SnapshotArgument;
use super::output::{print_done, print_plan};
use super::session::{Execute, open, take_lock, tell_planned};
use crate::cli::RevertArgs;
use crate::clone;
use crate::domain::SECOND_CONSOLE;
use crate::error::{Error, Kind, Result};
use crate::host::lock::LockMode;
use crate::host::look::{self, RevertMode};
use crate::host::snapshot::Snapshot;
use crate::host::{marks, rewrites};
use crate::list::mark::Mark;
use crate::record::Record;
use crate::report::{CfgReplaced, CfgTrouble, Rehearsed, Reverted, RevertedDisk};
use crate::restore_first;
use crate::revert::{self, CfgAfter, Options};
use crate::spec::absolute;
use crate::tool::quote;
use crate::trust;

/// The marks on the files of disks whose content changes in place, and does not tell from which snapshot it descends.
struct Marks(Vec<(PathBuf, Mark)>);

impl Marks {
    /// Takes them away, so that none tells what is true no more, whatever happens.
    fn take(record: &Record, images: &[Option<PathBuf>]) -> Marks {
        let disks = record.disks.iter().zip(images);
        let in_place = disks.filter(|(disk, image)| marks::needs_one(disk) && image.is_none());
        let marks = in_place.filter_map(|(disk, _)| {
            let mark = marks::of(&disk.path)?;
            marks::clear(&disk.path);
            Some((disk.path.clone(), mark))
        });
        Marks(marks.collect())
    }

    /// Puts them back if nothing has changed.
    fn put_back(&self, error: &Error) {
        if error.kind != Kind::Unfinished {
            self.0.iter().for_each(|(path, mark)| marks::put(path, *mark));
        }
    }
}

/// The new domain that is asked for, if one is.
fn beside(args: &RevertArgs) -> Result<Option<clone::Options>> {
    let (Some(name), Some(directory)) = (&args.clone_name, &args.overlay_dir) else {
        return Ok(None);
    };
    let name = name.parse().map_err(|why| {
        Error::usage(format!("The name {name:?} of the new domain"))
            .because(why)
            .hint("choose another one: it becomes a part of file names")
    })?;
    Ok(Some(clone::Options {
        name,
        uuid: Uuid::new_v4(),
        directory: absolute(directory)?,
        keep_macs: args.keep_macs,
        paused: args.paused,
    }))
}

/// What is asked for of a domain that is restored before it is replaced.
fn first(args: &RevertArgs) -> Result<Option<restore_first::Options>> {
    let options = || {
        Ok(restore_first::Options {
            paused: args.paused,
            discard_current: args.discard_current,
            copy: args.copy,
            directory: args.overlay_dir.as_deref().map(absolute).transpose()?,
            rehearse: args.rehearse,
            uuid: Uuid::new_v4(),
        })
    };
    args.restore_first.then(options).transpose()
}

/// A domain's own disks cannot be reverted from an export, which has copies of them.
fn refuse_in_place(snapshot: &Snapshot, image: &Path) -> Error {
    let Record { name, domain, .. } = &snapshot.record;
    let refused =
        Error::refused(format!("{} cannot be reverted to the export of {name}", domain.name))
            .because("an export has copies of the disks, not the disks themselves");
    match snapshot.source {
        Some(_) => refused.hint(format!(
            "create a new domain from it: xl-snapshot revert --as NAME --overlay-dir DIR {}. On a host without {}, \
             --as {} --keep-macs makes it the same one for others",
            quote(image),
            domain.name,
            quote(&domain.name)
        )),
        None => refused.hint(
            "it has no memory: give its disks, or qcow2 overlays on them (qemu-img create), to a domain by its xl \
             configuration file",
        ),
    }
}

/// What can be read once only.
fn is_stream(path: &Path) -> bool {
    path.as_os_str() == "-" || fs::metadata(path).is_ok_and(|meta| !meta.is_file())
}

/// Does what the command line asks for.
pub fn revert(args: &RevertArgs, carry_out: Execute) -> Result<()> {
    let started = Instant::now();
    let SnapshotArgument { snapshot, cfg } = SnapshotArgument::open(&args.snapshot)?;
    if snapshot.record.is_export() && args.clone_name.is_none() {
        return Err(refuse_in_place(&snapshot, &args.snapshot));
    }
    let mut dom0 = open(&args.common)?;
    let record = snapshot.record.clone();
    let domain = &record.domain;
    let operation = format!("revert {}", record.name);
    let beside = beside(args)?;
    let mut first = first(args)?;
    // Who only reads the snapshot shares it with others who do.
    let (operation, hold) = match &beside {
        None => (operation, LockMode::Exclusive),
        Some(new) => (format!("{operation} --as {}", new.name), LockMode::Shared),
    };
    let lock = take_lock(&dom0, &args.common, (domain.uuid, &domain.name), &operation, hold)?;
    // Whoever was waited for may have changed it.
    let again = lock.is_some() && args.common.wait.is_some() && !is_stream(&args.snapshot);
    let (mut snapshot, cfg) = match again {
        false => (snapshot, cfg),
        true => {
            let now = SnapshotArgument::open(&args.snapshot)?;
            let is = |one: &Record| (one.id, one.domain.uuid, one.domain.name.clone());
            if is(&now.snapshot.record) != is(&record) {
                return Err(Error::refused(format!(
                    "{} is another snapshot now",
                    quote(&args.snapshot)
                ))
                .hint("see xl-snapshot list, and run the command again"));
            }
            (now.snapshot, now.cfg)
        }
    };
    let record = snapshot.record.clone();
    let domain = &record.domain;
    let name = quote(&args.snapshot);
    let now = Timestamp::now();
    let look =
        |way: RevertMode<'_>| look::for_revert(&dom0.toolstack, &snapshot, &cfg, &name, way, now);
    let mut found = match (&beside, &first) {
        (Some(options), _) => look(RevertMode::Clone(options))?,
        (None, Some(options)) => look(RevertMode::First(options))?,
        (None, None) => look(RevertMode::Plain)?,
    };
    if found.same.is_none() && first.as_ref().is_some_and(|first| !first.rehearse) {
        // Nothing runs that could go on meanwhile.
        first = None;
        found = look(RevertMode::Plain)?;
    }
    found.config.renew_generation(Uuid::new_v4());
    let nothing_first = args.restore_first && first.is_none();
    let mut revert = match (&beside, &first) {
        (None, Some(options)) => {
            let revert = restore_first::plan(&found, options)?;
            let keep = revert::keep_name(found.now);
            match options.rehearse {
                true => revert,
                false => {
                    let cfg = rewrites::for_revert(&cfg, &domain.name, &revert.changes, &keep)?;
                    revert.with_cfg(cfg)
                }
            }
        }
        (None, None) => {
            let options = Options { paused: args.paused, discard_current: args.discard_current };
            let revert = revert::plan(&found, options)?;
            let keep = revert::keep_name(found.now);
            let cfg = rewrites::for_revert(&cfg, &domain.name, &revert.changes, &keep)?;
            revert.with_cfg(cfg)
        }
        (Some(options), _) => clone::plan(&found, options)?,
    };
    if !first.as_ref().is_some_and(|first| first.rehearse) {
        revert = revert.with_marks(&found.record);
    }
    // Of one that cannot be looked at, more is told.
    let running = found.same.as_ref().and_then(|same| look::config(&dom0.toolstack, &same.id).ok());
    revert.plan.notes.extend(trust::note(&found.config, running.as_ref()));
    if snapshot.source.is_some() && found.config.has_second_console() {
        revert.plan.notes.push(SECOND_CONSOLE.into());
    }
    if nothing_first {
        let note =
            format!("{} does not run: it is reverted as without --restore-first", domain.name);
        revert.plan.notes.push(note);
    }
    // Found only when the domain is destroyed, it would end the revert there.
    if let Some(source) = &mut snapshot.source {
        revert.plan.notes.extend(source.leave_damaged_sums()?);
    }
    let Some(lock) = lock else { return print_plan(&revert.plan, args.common.json) };
    let memory = snapshot.source.is_some();
    dom0.source = snapshot.source;
    dom0.be_guarded(&revert.plan, &lock)?;
    tell_planned(&dom0.reporter, &revert.plan, started);
    if first.as_ref().is_some_and(|first| first.rehearse) {
        carry_out(&revert.plan, &mut dom0)?;
        let report = Rehearsed {
            name: record.name.to_string(),
            id: record.id,
            domain: domain.name.clone(),
            uuid: domain.uuid,
            rehearsed: true,
            total_ms: started.elapsed().as_secs_f64() * 1000.0,
        };
        return print_done(&report, args.common.json);
    }
    let marks = Marks::take(&found.record, &revert.images);
    if let Err(error) = carry_out(&revert.plan, &mut dom0) {
        marks.put_back(&error);
        return Err(error);
    }

    let (cfg, cfg_trouble) = match revert.cfg {
        CfgAfter::Unknown | CfgAfter::Right => (None, None),
        CfgAfter::Replace(cfg) => (Some(CfgReplaced { path: cfg.path, backup: cfg.backup }), None),
        CfgAfter::Trouble { path, why } => (None, Some(CfgTrouble { path, why })),
    };
    let disks = found.record.disks.iter().zip(&revert.images).zip(revert.kept);
    let (name, uuid) = match &beside {
        None => (domain.name.clone(), domain.uuid),
        Some(new) => (new.name.to_string(), new.uuid),
    };
    let report = Reverted {
        name: record.name.to_string(),
        id: record.id,
        domain: name,
        uuid,
        domid: match memory {
            true => dom0.domid_of(uuid)?,
            false => dom0.domid_of_name(&domain.name)?,
        },
        clone_of: beside.map(|_| domain.name.clone()),
        memory,
        quiesced: record.quiesced.clone(),
        paused: args.paused,
        outage_ms: dom0.outage().map(|outage| outage.as_secs_f64() * 1000.0),
        restored_first: first.is_some(),
        total_ms: started.elapsed().as_secs_f64() * 1000.0,
        disks: disks
            .map(|((disk, image), kept)| RevertedDisk {
                vdev: disk.vdev.clone(),
                runs_on: image.clone().unwrap_or_else(|| disk.path.clone()),
                kept: kept.filter(|_| first.is_some() || !args.discard_current),
                why: disk.snapshot.kind().why_left_out().map(str::to_owned),
            })
            .collect(),
        cfg,
        cfg_trouble,
        cfg_disks: revert.cfg_lines,
    };
    print_done(&report, args.common.json)
}
