//! `create`, from the command line to the report.

use std::env;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

use jiff::Timestamp;
use uuid::Uuid;

use super::argument::read_spec;
use super::output::{print_done, print_plan, text, write};
use super::session::{Execute, open, take_lock, tell_planned};
use crate::cli::{Common, CreateArgs};
use crate::create::{self, ImagePlace, Job};
use crate::error::{Error, Result};
use crate::host::dom0::Dom0;
use crate::host::image::{Source, rewrite};
use crate::host::lock::LockMode;
use crate::host::look::{self, Domain};
use crate::host::surroundings::stdout_is_nowhere;
use crate::host::{configured, files, leftovers, list, marks, quiesce, rewrites, sharing};
use crate::leftover::{self, Leftover};
use crate::memory::Form;
use crate::plan::{Plan, Target, execute};
use crate::report::{CfgReplaced, Created, Planned, Reporter, json_text};
use crate::spec::{self, MemoryTarget, Request, Spec};
use crate::state::State;
use crate::tool::quote;

/// What has become of it.
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
pub(super) enum Outcome {
    /// It is taken.
    Created {
        /// What there is to say.
        report: Box<Created>,
        /// Who says it if standard output has the image.
        instead: Option<Reporter>,
    },
    /// It was a dry run: what would be done, what interrupted ones have left first.
    Planned { clean: Option<Plan>, plan: Plan },
}

/// Does what the command line asks for.
pub fn create(args: CreateArgs, carry_out: Execute) -> Result<()> {
    let json = args.common.json;
    match one(args, carry_out)? {
        Outcome::Planned { clean, plan } => print_plans(clean.as_ref(), &plan, json),
        Outcome::Created { report, instead: None } => print_done(&*report, json),
        Outcome::Created { report, instead: Some(reporter) } => {
            reporter.note(&text(&*report, json));
            Ok(())
        }
    }
}

/// Takes a snapshot. Prints nothing on standard output.
pub(super) fn one(args: CreateArgs, carry_out: Execute) -> Result<Outcome> {
    adapted(args, &|args, _, _| Ok(args), carry_out)
}

/// What a command line becomes once the domain is held, and what is seen of it stays so.
pub(super) type Adapt<'a> = &'a dyn Fn(CreateArgs, &Dom0, &Domain) -> Result<CreateArgs>;

/// The same, of a command line that depends on the domain.
pub(super) fn adapted(args: CreateArgs, adapt: Adapt<'_>, carry_out: Execute) -> Result<Outcome> {
    let started = Instant::now();
    let request = request(&args)?;
    let directory = spec::directory(env::var_os(spec::DIRECTORY_VARIABLE))?;
    let to_stdout = request.memory == MemoryTarget::Stdout;

    if to_stdout && !args.common.dry_run && io::stdout().is_terminal() {
        return Err(Error::usage("A memory image cannot be written to a terminal")
            .hint("redirect standard output, or name a file with --memory"));
    }
    if to_stdout && !args.common.dry_run && stdout_is_nowhere() {
        return Err(Error::usage("The memory image would be lost: standard output is closed")
            .hint("redirect standard output to a file or a pipe, or name a file with --memory"));
    }
    let mut dom0 = open(&args.common)?;
    let domain =
        look::domain(&dom0.toolstack, &args.domain)?.with_cfg(request.config.as_deref())?;
    let name = request.name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
    let operation = format!("create{name}");
    let lock = take_lock(
        &dom0,
        &args.common,
        (domain.id.uuid, &domain.id.name),
        &operation,
        LockMode::Exclusive,
    )?;
    // Whoever was waited for may have given the domain another number, or changed what it does.
    let domain = look::again(&dom0.toolstack, domain)?;
    let args = adapt(args, &dom0, &domain)?;
    let job =
        Job::new(self::request(&args)?, Timestamp::now(), Uuid::new_v4()).in_directory(directory);
    if let Some(like) = &args.like {
        check_like(like, &job.image(&domain.id.name)?)?;
    }
    let find =
        |path: &Path| leftovers::find(&dom0.toolstack, &domain.id, domain.cfg.as_deref(), path);
    let leftovers = match job.image(&domain.id.name) {
        _ if job.request.without_memory() => match &job.request.record {
            Some(path) => find(path)?,
            None => Vec::new(),
        },
        Ok(Target::File(path)) => {
            if let Some(left) = rewrite::leftover(&path) {
                return Err(Error::refused(format!("The image {}", path.display()))
                    .because(format!(
                        "{} is there: an interrupted delete has left it",
                        left.display()
                    ))
                    .hint("choose another name, or remove that file if no delete runs"));
            }
            find(&path)?
        }
        Ok(Target::Stdout) => Vec::new(),
        Err(why) => return Err(why),
    };
    let mut clean = None;
    if args.clean && !leftovers.is_empty() {
        clean = Some(clean_up(&mut dom0, &domain, &leftovers, &args.common)?);
    } else {
        let reporter = &dom0.reporter;
        leftovers.iter().for_each(|left| reporter.note(&format!("note: {left} (see --clean)")));
    }
    let (mut seen, qmp) = match (domain.state, &domain.cfg) {
        (State::Off, Some(cfg)) => {
            create::check_memory(&job, &domain.id.name)?;
            (configured::for_create(&dom0.toolstack, &domain, cfg, &job)?, None)
        }
        _ => look::for_create(&dom0.toolstack, &domain, &job)?,
    };
    dom0.qmp = qmp;
    if let Some(wanted) = job.request.quiesce.as_ref().filter(|_| seen.state != State::Off) {
        seen.way = Some(quiesce::way(&dom0.toolstack, &domain.id, &seen.config, wanted)?);
    }
    let job = {
        let parent = list::parent(&job, &seen.config, &domain.id.name);
        job.descending_from(parent)
    };
    let disks = create::disks(&job, &seen)?;
    let rewrites = rewrites::for_create(
        &dom0.toolstack,
        &domain,
        &job,
        if seen.state == State::Off { &[] } else { &seen.disks },
        &create::changes(&disks),
    )?;
    let plan = create::plan(&job, &seen, &disks, &rewrites)?;
    let Some(lock) = lock else { return Ok(Outcome::Planned { clean, plan }) };
    let reporter = dom0.reporter.clone();
    dom0.be_guarded(&plan, &lock)?;
    tell_planned(&reporter, &plan, started);
    carry_out(&plan, &mut dom0)?;

    let restored = !plan.onward.is_empty();
    let domid = if restored { dom0.domid_of(domain.id.uuid)? } else { Some(domain.id.domid) };
    let off = domain.state == State::Off;
    let stop = dom0.stop_flag();
    let done = dom0.done();
    let record = done.record.expect("an executed plan has completed the record");
    // A guest that had to be restored runs by now.
    marks::set_all(&record);
    let plain = job.request.compress.is_none();
    let sizes = match &seen.image {
        ImagePlace::File { path, .. } => {
            let like = args.like.as_deref();
            let stop = || stop.load(Ordering::Acquire);
            let share = || sharing::share_with_older(path, &record, like, &stop);
            let told = plain.then(share).flatten();
            told.iter().for_each(|told| reporter.note(&format!("note: {told}")));
            files::open(path).and_then(|file| sharing::sizes(&file)).ok()
        }
        ImagePlace::Stdout | ImagePlace::Record { .. } => None,
    };
    let report = Created {
        name: job.name.to_string(),
        id: job.id,
        domain: domain.id.name,
        domid: domid.filter(|_| !off),
        live: record.live,
        restored,
        record: job.request.record.clone(),
        disks_only: record.disks_only,
        quiesced: record.quiesced.clone(),
        image: match seen.image {
            ImagePlace::File { path, .. } => Some(path),
            ImagePlace::Stdout | ImagePlace::Record { .. } => None,
        },
        image_size: done.image_size,
        size_on_disk: sizes.map(|sizes| sizes.on_disk),
        shared: sizes.and_then(|sizes| sizes.shared),
        pause_ms: done.pause.map(|pause| pause.as_secs_f64() * 1000.0),
        total_ms: started.elapsed().as_secs_f64() * 1000.0,
        disks: Created::disks(&record),
        cfg_disks: if domain.cfg.is_some() { Vec::new() } else { create::cfg_lines(&record) },
        cfg: rewrites.cfg.map(|cfg| CfgReplaced { path: cfg.path, backup: cfg.backup }),
    };
    Ok(Outcome::Created { report: Box::new(report), instead: to_stdout.then_some(reporter) })
}

/// What the options and the SPEC.toml ask for.
fn request(args: &CreateArgs) -> Result<Request> {
    let options = Spec {
        name: args.name.clone(),
        description: args.description.clone(),
        live: if args.no_live { Some(false) } else { args.live.then_some(true) },
        memory: args.memory.clone(),
        compress: args.compress.clone(),
        config: None,
        record: args.record.clone(),
        disk_only: args.disk_only,
        crash_consistent: args.crash_consistent,
        quiesce: args.quiesce.clone(),
        freeze_timeout: args.freeze_timeout,
        disks: args.disks.iter().map(|disk| disk.parse()).collect::<Result<_>>()?,
        max_pause: args.max_pause,
        paused: args.paused,
    };
    let file = args.spec.as_deref().map(read_spec).transpose()?.unwrap_or_default();
    options.over(file).request()
}

/// Refuses an image that nothing can be shared with.
fn check_like(like: &Path, target: &Target) -> Result<()> {
    let Target::File(image) = target else {
        return Err(Error::usage("An image on standard output shares no storage")
            .hint("give it a file, or leave out --like"));
    };
    let refused = |why: String| {
        Err(Error::refused(format!("Image {}", quote(like))).because(why).hint(
            "nothing was changed; leave out --like, or name a plain image on the same file system",
        ))
    };
    if Source::open(like)?.image.form != Form::Plain {
        return refused("it is compressed: no storage can be shared with it".into());
    }
    let directory = image.ancestors().skip(1).find(|directory| directory.is_dir());
    match directory.and_then(|directory| sharing::trouble(like, directory)) {
        Some(why) => refused(why),
        None => Ok(()),
    }
}

/// Removes what is left of earlier snapshots, but in a dry run. Returns how. Not of a domain that does not run: an unfinished image
/// may be all there is of its memory.
fn clean_up(
    dom0: &mut Dom0,
    domain: &Domain,
    leftovers: &[Leftover],
    common: &Common,
) -> Result<Plan> {
    let memory = leftovers.iter().any(|left| left.record.disks_only.is_none());
    if domain.state != State::Running && memory {
        return Err(Error::refused(format!("Domain {} does not run", domain.id.name))
            .hint("start the domain first: the leftovers may hold its only saved memory"));
    }
    let plan = leftover::clean_up(&domain.id.name, leftovers);
    if !common.dry_run {
        let reporter = dom0.reporter.clone();
        for left in leftovers {
            let removed = if left.is_kept() { "" } else { "removed: " };
            reporter.note(&format!("note: {removed}{left}"));
        }
        execute(&plan, dom0)?;
    }
    Ok(plan)
}

/// Prints what would be done, as one object if that is to be JSON.
pub(super) fn print_plans(clean: Option<&Plan>, plan: &Plan, json: bool) -> Result<()> {
    match clean {
        None => print_plan(plan, json),
        Some(clean) if json => write(&json_text(&Planned::from(plan).after(clean))),
        Some(clean) => write(&format!("{clean}{plan}")),
    }
}
