//! `backup`: a snapshot of the disks alone, its export, and its deletion, in one. All of it or nothing.

use std::path::Path;
use std::time::Instant;

use jiff::Timestamp;

use super::create::{self, Outcome as Create, print_plans};
use super::delete::{self, Options, Outcome as Deletion};
use super::export::{self, Outcome as Export};
use super::output::print_done;
use super::session::{Execute, open, patiently};
use crate::cli::{BackupArgs, Common, CreateArgs, ExportArgs};
use crate::domain::{Disk, Format};
use crate::error::{Error, Kind, Remaining, Result};
use crate::host::dom0::Dom0;
use crate::host::export::clear_leftovers;
use crate::host::lock::Lock;
use crate::host::look::{self, Domain};
use crate::host::{backups, configured, deletion};
use crate::memory::partial_path;
use crate::names::{is_file_part, same_vdev};
use crate::plan::Perform;
use crate::report::{Backup, Created, Exported, Reporter};
use crate::spec::absolute;
use crate::state::State;
use crate::tool::quote;

/// What the names of its snapshots begin with.
const PREFIX: &str = "backup-";
/// For how long it waits for others between its parts, if the user says nothing: a snapshot is not left for that.
const WAIT: u32 = 600;

/// Does what the command line asks for.
pub(super) fn backup(args: &BackupArgs, carry_out: Execute) -> Result<()> {
    let started = Instant::now();
    let to = absolute(&args.directory)?;
    if !to.is_dir() {
        let shown = quote(&to);
        return Err(Error::refused(format!("There is no directory {shown}"))
            .because("each backup becomes a directory in it")
            .hint(format!("make it, or mount what has it: mkdir -p {shown}; findmnt -T {shown}")));
    }
    let dom0 = open(&args.common)?;
    let domain = look::domain(&dom0.toolstack, &args.domain)?;
    let name = domain.id.name.clone();
    if !is_file_part(&name) {
        return Err(Error::refused(format!(
            "The domain's name {name:?} cannot be a part of a path"
        ))
        .hint("export a snapshot of it to a directory whose name you choose"));
    }
    if domain.cfg.is_none() && domain.state != State::Off {
        return Err(Error::refused(format!("{name} must be named by its xl configuration file"))
            .because(
                "its disks get new images until the backup is made, and that file has to follow",
            )
            .hint(format!("for example: xl-snapshot backup /etc/xen/{name}.cfg DIRECTORY")));
    }
    let records = backups::directory(&name)?;
    let lock = |wait| {
        patiently((&dom0.reporter, &|| dom0.interrupted()), wait, &name, &|it| {
            Lock::of_backups(&name, it)
        })
    };
    // Whoever is waited for may change everything that is looked at from here on.
    let _lock = (!args.common.dry_run).then(|| lock(args.common.wait)).transpose()?;
    let snapshot = format!("{PREFIX}{}", Timestamp::now().strftime("%Y%m%d-%H%M%S"));
    // The directory is made when it is needed; until then, a plan has the record where it can be.
    let place = match args.common.dry_run {
        true => records.ancestors().find(|directory| directory.is_dir()).unwrap_or(&records),
        false => &records,
    };
    let record = place.join(format!("{snapshot}.record"));
    let create = || create::adapted(create_args(args, &snapshot, &record), &adapt, carry_out);
    if args.common.dry_run {
        return match create()? {
            Create::Planned { clean, plan } => print_plans(clean.as_ref(), &plan, args.common.json),
            Create::Created { .. } => unreachable!("a dry run creates nothing"),
        };
    }
    let common = later(&args.common);
    let options = Options { memory_only: false, flatten: false, common: &common };
    let delete = |record: &Path| delete::one(record, options, carry_out);
    let remove = |record: &Path| remove(&dom0.reporter, record, &delete);

    let cleaned = clean(&dom0, (&name, &records, &to), &remove)?;
    backups::make(&records)?;
    let created = match create() {
        Ok(Create::Created { report, .. }) => report,
        Ok(Create::Planned { .. }) => unreachable!("it is no dry run"),
        Err(error) => return Err(without_snapshot(error, &record, &remove)),
    };
    let directory = to.join(format!("{name}-{snapshot}"));
    let export = ExportArgs {
        snapshot: record.clone(),
        directory: directory.clone(),
        no_memory: true,
        work_dir: None,
        common: later(&args.common),
    };
    // What comes in between is for the parts that follow.
    let exported = match dom0.interrupted() {
        true => Err(Error::failed("Stopped by a signal").hint("run the command again")),
        false => export::one(&export, carry_out),
    };
    let exported = match exported {
        Ok(Export::Exported { report, .. }) => report,
        Ok(Export::Planned(_)) => unreachable!("it is no dry run"),
        Err(error) => return Err(without_export(error, remove(&record), &record)),
    };
    remove(&record).map_err(|error| not_merged(error, &directory, &record))?;
    print_done(&report(*created, exported, cleaned, started), args.common.json)
}

/// Deletes a snapshot of a backup, and the copies of the xl configuration file, which named its overlays for a
/// while. One that somebody has deleted already needs nothing.
fn remove(
    reporter: &Reporter,
    record: &Path,
    delete: &dyn Fn(&Path) -> Result<Deletion>,
) -> Result<()> {
    let gone = || backups::is_gone(record);
    let deleted = deletion::named(record).and_then(|named| Ok((named.record, delete(record)?)));
    match deleted {
        Ok((record, Deletion::Deleted(deleted))) => {
            let copies = deleted.cfgs.iter().map(|cfg| (cfg.path.as_path(), cfg.backup.as_path()));
            backups::forget_copies(&record, copies);
            Ok(())
        }
        Ok((_, Deletion::Planned(_))) => unreachable!("it is no dry run"),
        Err(_) if gone() => {
            reporter.note(&format!("note: {} was deleted meanwhile", quote(record)));
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// The snapshot of a backup: of the disks alone, none of them inside its image, because a deletion from
/// there holds the guest up, and an overlay that is minutes old is merged at once.
fn create_args(args: &BackupArgs, name: &str, record: &Path) -> CreateArgs {
    CreateArgs {
        domain: args.domain.clone(),
        spec: None,
        name: Some(name.to_owned()),
        memory: None,
        compress: None,
        like: None,
        disks: args.disks.clone(),
        live: false,
        no_live: false,
        max_pause: None,
        paused: false,
        record: Some(record.to_owned()),
        disk_only: true,
        crash_consistent: args.crash_consistent,
        quiesce: args.quiesce.clone(),
        freeze_timeout: args.freeze_timeout,
        // Nothing but backups has its records there.
        clean: true,
        description: Some("taken by xl-snapshot backup, which deletes it".into()),
        common: Common { dry_run: args.common.dry_run, ..later(&args.common) },
    }
}

/// What depends on the domain.
fn adapt(args: CreateArgs, dom0: &Dom0, domain: &Domain) -> Result<CreateArgs> {
    let off = domain.state == State::Off;
    let disks = match (off, &domain.cfg) {
        (true, Some(cfg)) => configured::read(cfg)?.config.disks(),
        _ => look::config(&dom0.toolstack, &domain.id)?.disks(),
    };
    let disks = disks.map_err(|why| {
        Error::refused(format!("The configuration of {}", domain.id.name)).because(why)
    })?;
    Ok(fitting(args, &disks, off))
}

fn fitting(args: CreateArgs, disks: &[Disk], off: bool) -> CreateArgs {
    let said = |disk: &Disk| {
        let mut vdevs = args.disks.iter().filter_map(|option| option.split(',').next());
        vdevs.any(|vdev| same_vdev(vdev, &disk.vdev))
    };
    let inside = disks.iter().filter(|disk| {
        disk.writable && !disk.cdrom && disk.format == Some(Format::Qcow2) && !said(disk)
    });
    let external = inside.map(|disk| format!("{},external", disk.vdev));
    CreateArgs {
        disks: args.disks.iter().cloned().chain(external).collect(),
        // The disks of one that does not run are as it left them.
        disk_only: !off,
        crash_consistent: args.crash_consistent && !off,
        quiesce: args.quiesce.filter(|_| !off),
        freeze_timeout: args.freeze_timeout.filter(|_| !off),
        ..args
    }
}

/// The common options of the parts: each waits for whoever came in between.
fn later(common: &Common) -> Common {
    let Common { json, quiet, verbose, wait, .. } = *common;
    Common { dry_run: false, wait: Some(wait.unwrap_or(WAIT)), json, quiet, verbose }
}

/// Removes what backups have left that were killed together with their guards, as by a power cut. Returns the names of the
/// snapshots.
fn clean(
    dom0: &Dom0,
    (domain, records, to): (&str, &Path, &Path),
    remove: &dyn Fn(&Path) -> Result<()>,
) -> Result<Vec<String>> {
    let mut cleaned = Vec::new();
    for (name, record) in backups::left(records, domain, PREFIX)? {
        remove(&record).map_err(|error| {
            Error::refused(format!("Snapshot {name}, which an earlier backup of {domain} has left"))
                .because(error.chain().join(": "))
                .hint(format!("nothing new was done; delete it first: {}", by_hand(&record)))
        })?;
        dom0.reporter.note(&format!("note: deleted snapshot {name} of an earlier backup"));
        cleaned.push(name);
    }
    let partial = clear_leftovers(to, &format!("{domain}-{PREFIX}")).map_err(|why| {
        Error::refused(format!("What an earlier backup has left in {}", quote(to))).because(why)
    })?;
    for path in partial {
        dom0.reporter.note(&format!("note: removed {}, of an earlier backup", quote(path)));
    }
    Ok(cleaned)
}

fn by_hand(record: &Path) -> String {
    format!("xl-snapshot delete {}", quote(record))
}

/// The snapshot was not taken as it should be: what there is of it goes as well.
fn without_snapshot(
    mut error: Error,
    record: &Path,
    remove: &dyn Fn(&Path) -> Result<()>,
) -> Error {
    if error.kind != Kind::Unfinished {
        return error;
    }
    let names = [record.to_owned(), partial_path(record)];
    let Some(there) = backups::first_there(&names) else { return error };
    match remove(there) {
        Ok(()) => {
            // What no command ends was about the snapshot, and so is what is about its record.
            let about_it = |command: &str| names.iter().any(|name| command.contains(&quote(name)));
            error
                .remaining
                .retain(|remaining| remaining.command.as_deref().is_some_and(|it| !about_it(it)));
            if error.remaining.is_empty() {
                error.kind = Kind::Failed;
                error.hint.get_or_insert_with(|| {
                    "its snapshot was deleted again; try again when the cause is removed".into()
                });
            }
            error
        }
        Err(other) => still_there(error, other, there),
    }
}

/// There is no export: the snapshot goes as well.
fn without_export(mut error: Error, deleted: Result<()>, record: &Path) -> Error {
    match deleted {
        Ok(()) => {
            // A snapshot was taken, and is merged.
            if error.kind != Kind::Unfinished {
                error.kind = Kind::Failed;
            }
            error
        }
        Err(other) => still_there(error, other, record),
    }
}

/// The snapshot cannot be deleted either.
fn still_there(error: Error, mut other: Error, record: &Path) -> Error {
    let mut remaining = vec![Remaining {
        what: "The snapshot that was taken is left; the domain runs on an overlay on it".into(),
        command: Some(by_hand(record)),
    }];
    remaining.append(&mut other.remaining);
    error.and_also(other).unfinished(remaining)
}

/// The backup is whole, but its snapshot is there still.
fn not_merged(mut error: Error, directory: &Path, record: &Path) -> Error {
    let mut remaining = vec![Remaining {
        what: format!(
            "The backup {} is complete; its snapshot is left, and the domain runs on an overlay on it",
            quote(directory)
        ),
        command: Some(by_hand(record)),
    }];
    remaining.append(&mut error.remaining);
    error.unfinished(remaining)
}

fn report(created: Created, exported: Exported, cleaned: Vec<String>, started: Instant) -> Backup {
    Backup {
        domain: created.domain,
        name: created.name,
        directory: exported.directory.unwrap_or_default(),
        disks_only: created.disks_only,
        quiesced: created.quiesced,
        cleaned,
        total_ms: started.elapsed().as_secs_f64() * 1000.0,
        disks: exported.disks,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &str = "/var/lib/xen/snapshots/web1.backup/backup-1.record";

    fn refused() -> Error {
        Error::refused("Disk full")
    }

    #[test]
    fn an_export_that_fails_leaves_nothing_to_do() {
        let error = without_export(refused(), Ok(()), Path::new(RECORD));
        assert_eq!((error.exit_code(), error.remaining.len()), (1, 0));
        let error = without_export(refused().unfinished(Vec::new()), Ok(()), Path::new(RECORD));
        assert_eq!(error.exit_code(), 4);
    }

    #[test]
    fn a_snapshot_that_was_not_taken_as_it_should_be_is_deleted_at_once() {
        let place = tempfile::tempdir().unwrap();
        let record = place.path().join("backup-1.record");
        let remaining = |what: &str, command: Option<&str>| Remaining {
            what: what.into(),
            command: command.map(Into::into),
        };
        let sync = format!("sync {}", record.display());
        let failed = |thaw: bool| {
            let mut all = vec![remaining("no cfg", None), remaining("no sync", Some(&sync))];
            all.extend(thaw.then(|| remaining("frozen", Some("thaw web1"))));
            Error::failed("No").unfinished(all)
        };
        let removed = std::cell::RefCell::new(Vec::new());
        let remove = |path: &Path| {
            removed.borrow_mut().push(path.to_owned());
            Ok(())
        };
        // Before the commit, there is nothing to delete.
        let error = without_snapshot(refused(), &record, &remove);
        assert_eq!((error.exit_code(), removed.borrow().len()), (3, 0));
        std::fs::write(partial_path(&record), "").unwrap();
        let error = without_snapshot(failed(false), &record, &remove);
        assert_eq!((error.exit_code(), error.remaining.len()), (1, 0));
        assert!(error.hint.unwrap().contains("deleted again"));
        std::fs::write(&record, "").unwrap();
        // What is not about the snapshot is there still.
        let error = without_snapshot(failed(true), &record, &remove);
        assert_eq!(
            (error.exit_code(), error.remaining),
            (4, vec![remaining("frozen", Some("thaw web1"))])
        );
        assert_eq!(*removed.borrow(), [partial_path(&record), record.clone()]);
        let error = without_snapshot(failed(false), &record, &|_| Err(refused()));
        let command = format!("xl-snapshot delete {}", record.display());
        assert_eq!(error.exit_code(), 4);
        assert!(
            error.remaining.iter().any(|remaining| remaining.command.as_ref() == Some(&command))
        );
    }

    #[test]
    fn a_snapshot_that_somebody_has_deleted_is_not_left() {
        let place = tempfile::tempdir().unwrap();
        let record = place.path().join("backup-1.record");
        let reporter = Reporter::new(true, 0);
        remove(&reporter, &record, &|_| Err(refused())).unwrap();
        std::fs::write(&record, "no record").unwrap();
        remove(&reporter, &record, &|_| Err(refused())).unwrap_err();
    }

    #[test]
    fn a_snapshot_that_is_left_is_told_with_what_ends_it() {
        let command = Some(format!("xl-snapshot delete {RECORD}"));
        let remaining = Remaining { what: "half deleted".into(), command: None };
        let busy = || Error::failed("Busy").unfinished(vec![remaining.clone()]);
        let error = without_export(refused(), Err(busy()), Path::new(RECORD));
        assert_eq!((error.exit_code(), error.message.as_str()), (4, "Disk full"));
        assert_eq!(error.also[0].message, "Busy");
        assert_eq!((&error.remaining[0].command, &error.remaining[1]), (&command, &remaining));
        let error = not_merged(busy(), Path::new("/backup/web1-backup-1"), Path::new(RECORD));
        assert_eq!(error.exit_code(), 4);
        assert!(error.remaining.iter().any(|remaining| remaining.command == command));
        assert!(
            error
                .remaining
                .iter()
                .any(|remaining| remaining.what.contains("web1-backup-1 is complete"))
        );
    }
}
