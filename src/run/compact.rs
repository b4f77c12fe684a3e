//! `compact`, from the command line to the report.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::delete::all_in_one;
use super::output::{print, print_done};
use crate::cli::CompactArgs;
use crate::error::{Error, Result};
use crate::host::image::{Source, rewrite};
use crate::host::lock::{Lock, LockMode, LockWait};
use crate::host::snapshot::Snapshot;
use crate::host::surroundings::raise_limits;
use crate::host::{compact, list, sharing};
use crate::record::Record;
use crate::report::{Compaction, Compactions, Failed, Reporter};

/// Does what the command line asks for: one failure does not stop the others.
pub(super) fn compact(args: &CompactArgs) -> Result<()> {
    raise_limits().map_err(|why| {
        Error::refused("A memory image would be cut off")
            .because(why)
            .hint("raise the limit, or run this as root, who may")
    })?;
    let reporter = Reporter::new(args.common.quiet, args.common.verbose);
    let (mut images, mut failed, mut errors) = (Vec::new(), Vec::new(), Vec::new());
    let mut fail = |path: &Path, error: Error| {
        failed.push(Failed {
            snapshot: path.to_owned(),
            exit_status: error.exit_code(),
            why: error.chain().join(": "),
        });
        errors.push(error);
    };
    let mut found = Vec::new();
    for path in &args.images {
        match find(path) {
            Ok(image) => found.push(image),
            Err(error) => fail(path, error),
        }
    }
    // So that each shares with what was made compact before it.
    found.sort_by_key(|(_, record)| record.created);
    for (path, record) in found {
        match one(&path, &record, args, &reporter) {
            Ok(done) => images.push(done),
            Err(error) => fail(&path, error),
        }
    }
    let report = Compactions { dry_run: args.common.dry_run, images, failed };
    match (report.images.is_empty(), args.common.dry_run) {
        (true, _) if !args.common.json => {}
        (_, true) => print(&report, args.common.json)?,
        (_, false) => print_done(&report, args.common.json)?,
    }
    all_in_one(errors)
}

fn find(path: &Path) -> Result<(PathBuf, Record)> {
    let named = list::by_name(path)?;
    let named = named.as_deref().unwrap_or(path);
    // Others follow a link; here, the file would take its place.
    let place = match fs::symlink_metadata(named) {
        Ok(_) => compact::place(named).map_err(|why| refused(named, why))?,
        Err(_) => named.to_owned(),
    };
    let path = place.as_path();
    match Snapshot::open(path)? {
        Snapshot { source: None, .. } => {
            Err(Error::refused(format!("Snapshot {}", path.display()))
                .because("it has no memory")
                .hint("name one with a memory image; xl-snapshot list shows them"))
        }
        Snapshot { record, .. } => Ok((path.to_owned(), record)),
    }
}

fn refused(path: &Path, why: compact::NotCompact) -> Error {
    Error::refused(format!("Image {}", path.display()))
        .because(why)
        .hint("the image is as it was; xl-snapshot show says what it is")
}

fn one(
    path: &Path,
    record: &Record,
    args: &CompactArgs,
    reporter: &Reporter,
) -> Result<Compaction> {
    let domain = record.domain.name.as_str();
    let refused = |why| refused(path, why);
    let lock = match args.common.dry_run {
        true => None,
        false => {
            let seconds = args.common.wait.unwrap_or_default();
            let patience = LockWait {
                limit: Duration::from_secs(seconds.into()),
                waits: &|holder| {
                    reporter.note(&format!(
                        "note: waiting for {domain}, {seconds} s at most: {holder} has it"
                    ));
                },
                stopped: &|| false,
            };
            let patience = args.common.wait.is_some().then_some(&patience);
            let operation = format!("compact {}", record.name);
            Some(Lock::take(
                (record.domain.uuid, domain),
                &operation,
                LockMode::Exclusive,
                patience,
            )?)
        }
    };
    // Whoever was waited for may have changed it.
    rewrite::finish(path).map_err(|why| refused(why.into()))?;
    let mut source = Source::open(path)?;
    // With new ones, nothing would tell any more that the memory is not proven.
    if let Some(why) = source.leave_damaged_sums()? {
        reporter.note(&format!(
            "note: {}: {why}; the new checksums are of what is there now",
            path.display()
        ));
    }
    let rewritten = !compact::is_compact(&source);
    let mut done = Compaction {
        image: path.to_owned(),
        rewritten,
        size: source.file.metadata().map_err(|why| refused(why.into()))?.len(),
        size_on_disk_before: 0,
        size_on_disk: None,
        shared: None,
    };
    if lock.is_none() {
        compact::check(path, &source).map_err(refused)?;
        let sizes = sharing::sizes(&source.file).map_err(|why| refused(why.into()))?;
        done.size_on_disk_before = sizes.on_disk;
        return Ok(done);
    }
    let like = args.like.as_deref();
    let compact::Compacted { before, after, notes } = compact::compact(path, &mut source, like)
        .map_err(|why| match why {
            compact::NotCompact::Io(why) => Error::failed(format!("Compacting {}", path.display()))
                .because(why)
                .hint("the image is as it was"),
            why => refused(why),
        })?;
    notes.iter().for_each(|note| reporter.note(&format!("note: {note}")));
    done.size = after.apparent;
    done.size_on_disk_before = before.on_disk;
    (done.size_on_disk, done.shared) = (Some(after.on_disk), after.shared);
    Ok(done)
}
