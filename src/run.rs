//! Runs a command line: looks, plans, executes, reports.

mod create;
mod list;
mod revert;

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::sys::signal::Signal;
use serde::Serialize;
use uuid::Uuid;

use crate::cli::{Cli, Command, Common, ShowArgs};
use crate::error::{Error, Left, Result};
use crate::host::dom0::Dom0;
use crate::host::lock::{Hold, Lock, Patience};
use crate::host::snapshot::Snapshot;
use crate::host::surroundings::{is_ignored, raise_limits};
use crate::host::{configured, files, list as host_list, look, record_file};
use crate::plan::{Perform, Plan};
use crate::report::{Planned, Reporter, json_text, printable};
use crate::revert::Cfg;
use crate::show;
use crate::spec::{Flags, Spec, merge};

/// A SPEC.toml is small; this is not one.
const MAX_SPEC: u64 = 1 << 20;

/// Who carries out a plan: [`crate::plan::execute`], or a test that has steps fail.
pub type Execute = fn(&Plan, &mut dyn Perform) -> Result<()>;

/// Does what the command line asks for.
pub fn run(cli: Cli, carry_out: Execute) -> Result<()> {
    match cli.command {
        Command::Create(args) => create::create(args, carry_out),
        Command::Revert(args) => revert::revert(&args, carry_out),
        Command::List(args) => list::list(&args),
        Command::Show(args) => show(&args),
    }
}

fn show(args: &ShowArgs) -> Result<()> {
    let Named { mut snapshot, .. } = Named::open(&args.snapshot)?;
    match &mut snapshot.source {
        Some(source) if args.verify => source.verify()?,
        None if args.verify => {
            return Err(Error::usage(format!("{} has no memory to verify", snapshot.name))
                .hint("without --verify, its disks are looked at"));
        }
        _ => {}
    }
    let Snapshot { name, record, source } = snapshot;
    let image = source.map(|source| source.image);
    let config = image.as_ref().map(|image| show::config_of(&name, image)).transpose()?;
    // Without Xen, or without the right to use it, the disks are looked at all the same.
    let dom0 = Dom0::open(Reporter::new(true, 0), Arc::default()).ok();
    let looked = look::for_show(dom0.as_ref(), &record, config.as_ref(), Timestamp::now())?;
    let shown = show::show(&name, record, image.as_ref(), args.verify, config.as_ref(), looked);
    print(&shown, args.json)
}

/// Opens the toolstack, with signals caught: from here on a step that has begun is ended or undone.
fn open(common: &Common) -> Result<Dom0> {
    // To look at a snapshot takes no more than the caller allows.
    raise_limits().map_err(|why| {
        Error::refused("A memory image would be cut off")
            .because(why)
            .hint("raise the limit, or run this as root, who may")
    })?;
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
    Dom0::open(Reporter::new(common.quiet, common.verbose), stop)
}

/// One of us per domain; a dry run changes nothing and needs no lock. Waits for it if that was asked for.
fn take_lock(
    dom0: &Dom0,
    common: &Common,
    (uuid, domain): (Uuid, &str),
    operation: &str,
    hold: Hold,
) -> Result<Option<Lock>> {
    if common.dry_run {
        return Ok(None);
    }
    let seconds = common.wait.unwrap_or_default();
    let patience = Patience {
        limit: Duration::from_secs(seconds.into()),
        waits: &|holder| {
            let reporter = &dom0.reporter;
            reporter
                .note(&format!("note: waiting for {domain}, {seconds} s at most: {holder} has it"));
        },
        stopped: &|| dom0.interrupted(),
    };
    let patience = common.wait.is_some().then_some(&patience);
    Lock::take((uuid, domain), operation, hold, patience).map(Some)
}

fn read_spec(path: &Path) -> Result<Spec> {
    let trouble = |error: io::Error| {
        Error::usage(format!("Reading {}", path.display()))
            .because(error)
            .hint("give a SPEC.toml, see xl-snapshot.toml(5)")
    };
    let mut text = String::new();
    files::open(path)
        .map_err(trouble)?
        .take(MAX_SPEC + 1)
        .read_to_string(&mut text)
        .map_err(trouble)?;
    if text.len() as u64 > MAX_SPEC {
        return Err(trouble(io::Error::other("it is longer than 1 MiB")));
    }
    Spec::parse(&text, path)
}

/// What a snapshot's name on the command line means.
struct Named {
    /// The snapshot.
    snapshot: Snapshot,
    /// The domain's xl configuration file.
    cfg: Cfg,
}

impl Named {
    /// Opens an image, a record, what a SPEC.toml says, or DOMAIN/NAME. Whatever begins as a record is one.
    fn open(path: &Path) -> Result<Named> {
        let named = host_list::by_name(path)?;
        let path = named.as_deref().unwrap_or(path);
        let is_spec = path.extension().is_some_and(|extension| extension == "toml")
            && !record_file::is_record(path);
        if !is_spec {
            return Ok(Named::of(Snapshot::open(path)?, None));
        }
        let spec = read_spec(path)?;
        let file = spec.memory.clone().filter(|file| file.as_os_str() != "-");
        match (file.or(spec.record.clone()), spec.config.clone()) {
            (Some(file), config) => Ok(Named::of(Snapshot::open(&file)?, config)),
            (None, Some(cfg)) => {
                let request = merge(Flags::default(), spec)?;
                let record = configured::by_hand(&request, &cfg, Timestamp::now())?;
                let name = path.display().to_string();
                Ok(Named::of(Snapshot { name, record, source: None }, Some(cfg)))
            }
            (None, None) => Err(Error::usage(format!(
                "{} names no memory image",
                path.display()
            ))
            .hint(
                "add memory = \"FILE\" or record = \"FILE\", or give that file itself; for a snapshot \
                 made by hand, config = \"FILE\"",
            )),
        }
    }

    fn of(snapshot: Snapshot, config: Option<PathBuf>) -> Named {
        let cfg = match (config, &snapshot.record.domain.cfg) {
            (Some(cfg), _) => Cfg::Named(cfg),
            // Without memory it is what the domain starts from: no less than if it was named.
            (None, Some(cfg)) if snapshot.source.is_none() => Cfg::Named(cfg.clone()),
            (None, Some(cfg)) => Cfg::Remembered(cfg.clone()),
            (None, None) => Cfg::Unknown,
        };
        Named { snapshot, cfg }
    }
}

/// Says what is to be known of a plan before it is carried out. Called when messages wait for nobody any more: who cannot
/// write is not to hold the domain.
fn tell_planned(reporter: &Reporter, plan: &Plan, started: Instant) {
    let looked =
        reporter.timed(&"look at the domain and its disks, and plan", started.elapsed(), true);
    looked.iter().for_each(|text| reporter.message(text));
    plan.notes.iter().for_each(|note| reporter.note(&format!("note: {note}")));
}

fn print_plan(plan: &Plan, json: bool) -> Result<()> {
    write_stdout(&if json { json_text(&Planned::from(plan)) } else { printable(&plan.to_string()) })
}

fn print<R: Serialize + ToString>(report: &R, json: bool) -> Result<()> {
    write_stdout(&text(report, json))
}

/// Prints what was done: that it was done, nothing can change any more.
fn print_done<R: Serialize + ToString>(report: &R, json: bool) -> Result<()> {
    print(report, json).map_err(|error| {
        let left = Left {
            what: format!(
                "All was done, but the report of it is lost:\n{}",
                report.to_string().trim_end()
            ),
            command: None,
        };
        error.unfinished(vec![left])
    })
}

fn text<R: Serialize + ToString>(report: &R, json: bool) -> String {
    if json { json_text(report) } else { printable(&report.to_string()) }
}

fn write_stdout(text: &str) -> Result<()> {
    io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()).map_err(|error| {
        Error::failed("Writing the result to standard output")
            .because(error)
            .hint("see where standard output goes")
    })
}
