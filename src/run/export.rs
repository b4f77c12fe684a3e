//! `export`, from the command line to the report.

use std::io::{self, IsTerminal};
use std::time::Instant;

use uuid::Uuid;

use super::argument::SnapshotArgument;
use super::output::{print_done, print_plan, text};
use super::session::{Execute, open, take_lock, tell_planned};
use crate::cli::ExportArgs;
use crate::error::{Error, Result};
use crate::export::{self, Options, To, archive_name, disk_name, image_name};
use crate::host::export::look;
use crate::host::lock::LockMode;
use crate::host::surroundings::stdout_is_nowhere;
use crate::plan::Plan;
use crate::report::{Exported, ExportedDisk, Reporter};
use crate::spec::absolute;

/// Where files are made for an archive: they are large, and /tmp may be memory.
const WORK: &str = "/var/tmp";

/// Where it goes.
fn to(args: &ExportArgs) -> Result<To> {
    if args.directory.as_os_str() != "-" {
        if args.work_dir.is_some() {
            return Err(Error::usage("--work-dir is for an archive, DIRECTORY -")
                .hint("leave it out: the files are made where they stay"));
        }
        return Ok(To::Directory(absolute(&args.directory)?));
    }
    if io::stdout().is_terminal() && !args.common.dry_run {
        return Err(Error::usage("Standard output is a terminal, and would get a tar archive")
            .hint("send it somewhere: xl-snapshot export SNAPSHOT - | ssh HOST tar -x -C DIR"));
    }
    if stdout_is_nowhere() && !args.common.dry_run {
        return Err(Error::usage("The archive would be lost: standard output is closed")
            .hint("redirect standard output to a file or a pipe, or name a directory"));
    }
    let work = args.work_dir.as_deref().unwrap_or(WORK.as_ref());
    Ok(To::Stdout(absolute(work)?))
}

/// What has become of it.
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
pub(super) enum Outcome {
    /// It is made.
    Exported {
        /// What there is to say.
        report: Exported,
        /// Who says it if standard output has the archive.
        instead: Option<Reporter>,
    },
    /// It was a dry run: what would be done.
    Planned(Plan),
}

/// Does what the command line asks for.
pub(super) fn export(args: &ExportArgs, carry_out: Execute) -> Result<()> {
    let json = args.common.json;
    match one(args, carry_out)? {
        Outcome::Planned(plan) => print_plan(&plan, json),
        Outcome::Exported { report, instead: None } => print_done(&report, json),
        Outcome::Exported { report, instead: Some(reporter) } => {
            reporter.note(&text(&report, json));
            Ok(())
        }
    }
}

/// Makes an export. Prints nothing but an archive on standard output.
pub(super) fn one(args: &ExportArgs, carry_out: Execute) -> Result<Outcome> {
    let started = Instant::now();
    if args.snapshot.as_os_str() == "-" {
        return Err(Error::usage("An image on standard input cannot be exported")
            .hint("name the snapshot as DOMAIN/NAME, or by its image or record"));
    }
    let options = Options { memory: !args.no_memory, to: to(args)?, token: Uuid::new_v4() };
    let domain = SnapshotArgument::open(&args.snapshot)?.snapshot.record.domain;
    let mut dom0 = open(&args.common)?;
    let operation = format!("export {}", args.snapshot.display());
    // Others may read it as well. Nobody may delete it, or revert to it, until it is copied.
    let owner = (domain.uuid, domain.name.as_str());
    let lock = take_lock(&dom0, &args.common, owner, &operation, LockMode::Shared)?;
    // Whoever was waited for may have deleted it.
    let SnapshotArgument { mut snapshot, cfg } = SnapshotArgument::open(&args.snapshot)?;
    // A snapshot without memory is exported without.
    let options = Options { memory: options.memory && snapshot.source.is_some(), ..options };
    let found = look::look(Some(&dom0.toolstack), &snapshot, &cfg, &options)?;
    let writer = format!("xl-snapshot {}", env!("CARGO_PKG_VERSION"));
    let mut plan = export::plan(&found, &options, &writer)?;
    if let Some(source) = snapshot.source.as_mut().filter(|_| options.memory) {
        plan.notes.extend(source.leave_damaged_sums()?);
    }
    let Some(lock) = lock else { return Ok(Outcome::Planned(plan)) };
    dom0.source = snapshot.source.take().filter(|_| options.memory);
    dom0.be_guarded(&plan, &lock)?;
    let reporter = dom0.reporter.clone();
    tell_planned(&reporter, &plan, started);
    carry_out(&plan, &mut dom0)?;

    let made = dom0.exported();
    let record = &found.record;
    let directory = match &options.to {
        To::Directory(directory) => Some(directory.clone()),
        To::Stdout(_) => None,
    };
    let report = Exported {
        name: record.name.to_string(),
        id: record.id,
        domain: record.domain.name.clone(),
        archive: directory.is_none().then(|| archive_name(record)),
        directory,
        image: image_name(record, options.memory),
        memory: options.memory,
        image_size: made.image,
        total_ms: started.elapsed().as_secs_f64() * 1000.0,
        disks: record
            .disks
            .iter()
            .map(|disk| {
                let why = disk.snapshot.kind().why_left_out().map(str::to_owned);
                ExportedDisk {
                    vdev: disk.vdev.clone(),
                    file: why.is_none().then(|| disk_name(disk)),
                    size_on_disk: made.disks.get(&disk.vdev).copied(),
                    why,
                }
            })
            .collect(),
    };
    let instead = report.directory.is_none().then_some(reporter);
    Ok(Outcome::Exported { report, instead })
}
