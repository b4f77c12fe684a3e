//! Runs a command line: looks, plans, executes, reports.

use std::fs;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use uuid::Uuid;

use crate::cli::{Cli, Command, Common, CreateArgs, RevertArgs, ShowArgs};
use crate::create::{self, ImagePlace, Job, State};
use crate::error::{Error, Result};
use crate::host::dom0::Dom0;
use crate::host::image::Source;
use crate::host::leftovers;
use crate::host::lock::Lock;
use crate::host::look::{self, Domain};
use crate::leftover::{self, Leftover};
use crate::plan::{Perform, Plan, Target, execute};
use crate::record::Kept;
use crate::report::{CfgReplaced, Created, Reporter, Reverted, RevertedDisk};
use crate::revert::{self, Wishes};
use crate::show;
use crate::spec::{self, Flags, MemoryTarget, Spec};

/// A SPEC.toml is small; this is not one.
const MAX_SPEC: u64 = 1 << 20;

/// Who carries out a plan: [`crate::plan::execute`], or a test that has steps fail.
pub type Execute = fn(&Plan, &mut dyn Perform) -> Result<()>;

/// Does what the command line asks for.
pub fn run(cli: Cli, carry_out: Execute) -> Result<()> {
    match cli.command {
        Command::Create(args) => create(args, carry_out),
        Command::Revert(args) => revert(&args, carry_out),
        Command::Show(args) => show(&args),
    }
}

fn create(args: CreateArgs, carry_out: Execute) -> Result<()> {
    let started = Instant::now();
    let spec = match &args.spec {
        Some(path) => read_spec(path)?,
        None => Spec::default(),
    };
    let flags = Flags {
        name: args.name,
        description: args.description,
        live: if args.no_live { Some(false) } else { args.live.then_some(true) },
        memory: args.memory,
        compress: args.compress,
        disks: args.disks,
        paused: args.paused,
    };
    let request = spec::merge(flags, spec)?;
    let to_stdout = request.memory == MemoryTarget::Stdout;
    let job = Job::new(request, Timestamp::now(), Uuid::new_v4());

    if to_stdout && !args.common.dry_run && io::stdout().is_terminal() {
        return Err(Error::usage("The memory image does not go to a terminal")
            .hint("redirect standard output, or give --memory a file"));
    }
    let mut dom0 = open(&args.common)?;
    let domain = look::domain(&dom0, &args.domain)?;
    let operation = format!("create {}", job.name);
    let lock = take_lock(&args.common, domain.uuid, &domain.name, &operation)?;
    let leftovers = match job.image(&domain.name)? {
        Target::File(path) => leftovers::find(&dom0, domain.uuid, &path)?,
        Target::Stdout => Vec::new(),
    };
    if args.clean && !leftovers.is_empty() {
        clean_up(&mut dom0, &domain, &leftovers, &args.common)?;
    } else {
        let reporter = &dom0.reporter;
        leftovers.iter().for_each(|left| reporter.note(&format!("note: {left} (see --clean)")));
    }
    let seen = look::for_create(&mut dom0, &domain, &job)?;
    let disks = create::disks(&job, &seen)?;
    let rewrites = look::rewrites(&dom0, &domain, &job, &create::changes(&disks))?;
    let plan = create::plan(&job, &seen, &disks, &rewrites)?;
    let Some(lock) = lock else { return print_plan(&plan, args.common.json) };
    let reporter = dom0.reporter.clone();
    plan.notes.iter().for_each(|note| reporter.note(&format!("note: {note}")));
    dom0.be_guarded(&plan, &lock)?;
    carry_out(&plan, &mut dom0)?;

    let restored = !plan.onward.is_empty();
    let domid = if restored { dom0.domid_of(domain.uuid)? } else { Some(domain.domid) };
    let done = dom0.done();
    let record = done.record.expect("an executed plan has completed the record");
    let report = Created {
        name: job.name.to_string(),
        id: job.id,
        domain: domain.name,
        domid: domid.unwrap_or(domain.domid),
        live: record.live,
        restored,
        image: match seen.image {
            ImagePlace::File { path, .. } => Some(path),
            ImagePlace::Stdout => None,
        },
        image_size: done.image_size,
        pause_ms: done.pause.map(|pause| pause.as_secs_f64() * 1000.0),
        total_ms: started.elapsed().as_secs_f64() * 1000.0,
        disks: Created::disks(&record),
        cfg_disks: if domain.cfg.is_some() { Vec::new() } else { create::cfg_lines(&record) },
        cfg: rewrites.cfg.map(|cfg| CfgReplaced { path: cfg.path, backup: cfg.backup }),
    };
    // Standard output carries the image then.
    if to_stdout {
        reporter.note(&text(&report, args.common.json))
    } else {
        print(&report, args.common.json)?
    }
    Ok(())
}

/// Removes what is left of earlier snapshots. Not of a domain that does not run: an unfinished image
/// may be all there is of its memory.
fn clean_up(
    dom0: &mut Dom0,
    domain: &Domain,
    leftovers: &[Leftover],
    common: &Common,
) -> Result<()> {
    if domain.state != State::Running {
        return Err(Error::refused(format!("Domain {} does not run", domain.name))
            .hint("only if it runs, nothing of what was left can be of use"));
    }
    let plan = leftover::clean_up(&domain.name, leftovers);
    if common.dry_run {
        return print_plan(&plan, common.json);
    }
    let reporter = dom0.reporter.clone();
    leftovers.iter().for_each(|left| reporter.note(&format!("note: removed: {left}")));
    execute(&plan, dom0)
}

fn revert(args: &RevertArgs, carry_out: Execute) -> Result<()> {
    let started = Instant::now();
    let source = Source::open(&image_path(&args.snapshot)?)?;
    let mut dom0 = open(&args.common)?;
    let record = source.image.record.clone();
    let domain = &record.domain;
    let operation = format!("revert {}", record.name);
    let lock = take_lock(&args.common, domain.uuid, &domain.name, &operation)?;
    let snapshot = crate::tool::quote(&args.snapshot);
    let found = look::for_revert(&dom0, &source, &snapshot, Timestamp::now())?;
    let wishes = Wishes { paused: args.paused, discard_current: args.discard_current };
    let revert = revert::plan(&found, wishes)?;
    let Some(lock) = lock else { return print_plan(&revert.plan, args.common.json) };
    dom0.source = Some(source);
    let reporter = dom0.reporter.clone();
    revert.plan.notes.iter().for_each(|note| reporter.note(&format!("note: {note}")));
    dom0.be_guarded(&revert.plan, &lock)?;
    carry_out(&revert.plan, &mut dom0)?;

    let disks = found.record.disks.iter().zip(&revert.images).zip(revert.kept);
    let report = Reverted {
        name: record.name.to_string(),
        id: record.id,
        domain: domain.name.clone(),
        domid: dom0.domid_of(domain.uuid)?,
        paused: args.paused,
        total_ms: started.elapsed().as_secs_f64() * 1000.0,
        disks: disks
            .map(|((disk, image), kept)| RevertedDisk {
                vdev: disk.vdev.clone(),
                runs_on: image.clone().unwrap_or_else(|| disk.path.clone()),
                kept: kept.filter(|_| !args.discard_current),
                why: match &disk.snapshot {
                    Kept::None { why } => Some(why.clone()),
                    _ => None,
                },
            })
            .collect(),
        cfg_disks: revert.cfg_lines,
    };
    print(&report, args.common.json)
}

fn show(args: &ShowArgs) -> Result<()> {
    let mut source = Source::open(&image_path(&args.snapshot)?)?;
    if args.verify {
        source.verify()?;
    }
    let (disks, volumes) = look::for_show(&source.image.record, Timestamp::now());
    let shown = show::show(&source.name, source.image, args.verify, &disks, &volumes)?;
    print(&shown, args.json)
}

/// Opens the toolstack, with signals caught: from here on a step that has begun is ended or undone.
fn open(common: &Common) -> Result<Dom0> {
    let stop = Arc::new(AtomicBool::new(false));
    // Not SIGCHLD: that is libxl's.
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .map_err(|error| Error::failed("Catching signals").because(error))?;
    }
    Dom0::open(Reporter::new(common.quiet, common.verbose), stop)
}

/// One of us per domain; a dry run changes nothing and needs no lock.
fn take_lock(common: &Common, uuid: Uuid, domain: &str, operation: &str) -> Result<Option<Lock>> {
    if common.dry_run { Ok(None) } else { Lock::take(uuid, domain, operation).map(Some) }
}

fn read_spec(path: &Path) -> Result<Spec> {
    let trouble =
        |error: io::Error| Error::usage(format!("Reading {}", path.display())).because(error);
    let mut text = String::new();
    fs::File::open(path)
        .map_err(trouble)?
        .take(MAX_SPEC)
        .read_to_string(&mut text)
        .map_err(trouble)?;
    Spec::parse(&text, path)
}

/// The image that a snapshot's name on the command line means: itself, or what a SPEC.toml says.
fn image_path(snapshot: &Path) -> Result<PathBuf> {
    if snapshot.extension().is_none_or(|extension| extension != "toml") {
        return Ok(snapshot.to_owned());
    }
    let spec = read_spec(snapshot)?;
    match spec.memory {
        Some(memory) if memory.as_os_str() != "-" => Ok(memory),
        _ => Err(Error::usage(format!("{} names no memory image", snapshot.display()))
            .hint("add memory = \"FILE\", or give the image itself")),
    }
}

fn print_plan(plan: &Plan, json: bool) -> Result<()> {
    if json {
        let steps = |steps: &[crate::plan::Step]| -> Vec<String> {
            steps.iter().map(ToString::to_string).collect()
        };
        let value = json!({
            "title": plan.title,
            "prepare": steps(&plan.prepare),
            "commit": steps(plan.commit.as_slice()),
            "onward": steps(&plan.onward),
            "finish": steps(&plan.finish),
            "notes": plan.notes,
        });
        write_stdout(&format!("{value:#}\n"))
    } else {
        write_stdout(&plan.to_string())
    }
}

fn print<R: Serialize + ToString>(report: &R, json: bool) -> Result<()> {
    write_stdout(&text(report, json))
}

fn text<R: Serialize + ToString>(report: &R, json: bool) -> String {
    if json {
        let json = serde_json::to_string_pretty(report).expect("reports have only plain values");
        json + "\n"
    } else {
        report.to_string()
    }
}

fn write_stdout(text: &str) -> Result<()> {
    io::stdout()
        .write_all(text.as_bytes())
        .map_err(|error| Error::failed("Writing the result to standard output").because(error))
}
