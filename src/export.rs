//! `export`: from a snapshot and what is seen of it to a plan that makes a directory which needs nothing else. Pure.
//!
//! The directory has the memory image, compressed, or a record without memory, and each disk as one qcow2 image that
//! rests on nothing. The record names the disks by their names in the directory. It is written last: without it,
//! nothing passes for a snapshot.

pub mod tar;

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use uuid::Uuid;

use crate::disk::exporting::DiskExport;
use crate::disk::kind::{Content, Frozen};
use crate::disk::kinds::Exported;
use crate::disk::{self, NewDomain, RevertContext, SnapshotDisk, mib};
use crate::domain::{BadConfig, DomainConfig, Format};
use crate::error::{Error, Result};
use crate::memory::frames::Level;
use crate::memory::partial_path;
use crate::names::is_file_part;
use crate::need::{self, Severity, Trouble};
use crate::plan::export::{DiskCopy, Export, ImageCopy};
use crate::plan::{Plan, Step, Text};
use crate::record::{DiskRecord, DisksOnly, FrozenFile, NOT_YET, Record};
use crate::tool::qemu_img::flatten;
use crate::tool::quote;
use crate::tool::volumes::Volume;

/// The longest name of a directory in an archive: its own entry has a slash behind it (POSIX ustar: 100 bytes).
const MAX_DIRECTORY: usize = 99;

/// What the user asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Whether the memory goes with it.
    pub memory: bool,
    pub to: To,
    /// Tells this export from others.
    pub token: Uuid,
}

/// Where an export goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum To {
    /// To a new directory.
    Directory(PathBuf),
    /// To standard output, as an archive. Each file is made in a directory below this one first.
    Stdout(PathBuf),
}

/// What stands where the directory is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leftover {
    /// Nothing.
    None,
    /// What an export that was cut short has left.
    Ours,
    /// What another export works on.
    Busy,
    /// Something else.
    Foreign(String),
}

/// What was seen of a snapshot and of the place for its export.
#[derive(Debug, Clone)]
pub struct ExportInput {
    /// How the user named the snapshot.
    pub snapshot: String,
    pub record: Record,
    /// The configuration in the memory image, if it has one.
    pub config: Option<DomainConfig>,
    /// The disks, in the order of the record.
    pub disks: Vec<SnapshotDisk>,
    /// What is copied of each, and what that takes at most; the refusal if it cannot be.
    pub copies: Vec<Copy>,
    /// What the memory image takes, in bytes, as far as can be told.
    pub memory: u64,
    /// What is in the way.
    pub troubles: Vec<Trouble>,
    /// Why the directory cannot be made, if it cannot.
    pub trouble: Option<String>,
    /// What stands where it is made.
    pub leftover: Leftover,
    /// What is free on its file system, in bytes.
    pub free: u64,
    /// The domain's xl configuration file.
    pub cfg: Option<Text>,
}

/// What is copied of one disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    pub disk: DiskExport,
    /// What it takes at most, in bytes.
    pub most: u64,
}

/// The directory in which the files are made.
pub fn working_directory(to: &To, record: &Record) -> PathBuf {
    match to {
        To::Directory(directory) => partial_path(directory),
        To::Stdout(work) => partial_path(&work.join(format!("xl-snapshot-export-{}", record.id))),
    }
}

/// The name of the copy of a disk.
pub fn disk_name(disk: &DiskRecord) -> String {
    format!("{}.qcow2", disk.vdev)
}

/// The name of the memory image, or of the record.
pub fn image_name(record: &Record, memory: bool) -> String {
    match memory {
        true => format!("{}.xlsave.zst", record.name),
        false => format!("{}.record", record.name),
    }
}

/// The name of the directory in an archive.
pub fn archive_name(record: &Record) -> String {
    let domain = &record.domain.name;
    let name = format!("{domain}-{}", record.name);
    if is_file_part(domain) && name.len() <= MAX_DIRECTORY { name } else { record.name.to_string() }
}

/// Says from where the disks are copied, or refuses. `None` for those that are not in the snapshot.
pub fn copies(
    record: &Record,
    disks: &[SnapshotDisk],
    volumes: &std::result::Result<Vec<Volume>, String>,
) -> Vec<Result<Option<DiskExport>>> {
    let keep = "export".parse().expect("a legal name");
    let context = RevertContext {
        uuid: record.domain.uuid,
        domain: &record.domain.name,
        id: record.id,
        created: record.created,
        keep: &keep,
        running: false,
        discard: false,
        new_domain: Some(NewDomain { name: "export", uuid: Uuid::nil(), replacement: false }),
        tight: false,
        volumes,
    };
    disks.iter().map(|found| disk::export(found, context)).collect()
}

/// The record of the export, without proofs.
pub fn record(record: &Record, memory: bool, writer: &str) -> Record {
    let without = || record.disks_only.unwrap_or(DisksOnly::CrashConsistent);
    let mut exported = Record {
        complete: false,
        disks_only: (!memory).then(without),
        live: record.live && memory,
        writer: writer.to_owned(),
        image_size: if memory { NOT_YET } else { 0 },
        // Of disks that are not there.
        parent: None,
        parent_by: None,
        ..record.clone()
    };
    exported.domain.cfg = None;
    for disk in exported.disks.iter_mut().filter(|disk| !disk.snapshot.is_left_out()) {
        disk.path = disk_name(disk).into();
        disk.format = Some(Format::Qcow2);
        disk.snapshot = Exported { proof: None }.into();
    }
    exported
}

/// Plans an export, or refuses it.
pub fn plan(found: &ExportInput, options: &Options, writer: &str) -> Result<Plan> {
    let record = &found.record;
    let about = || format!("Snapshot {} of {} cannot be exported", record.name, record.domain.name);
    check_place(found, options, &about)?;
    if let Some(error) = need::refusal(found.troubles.clone()) {
        return Err(error);
    }
    if options.memory && found.config.is_none() {
        return Err(Error::refused(about()).because("it has no memory").hint("add --no-memory"));
    }
    if !options.memory && found.copies.is_empty() {
        return Err(Error::refused(about()).because("without memory, nothing is in it"));
    }
    check_room(found, options, &about)?;
    let work = working_directory(&options.to, record);
    let archive = archive_name(record);
    let mut prepare = Vec::new();
    if found.leftover == Leftover::Ours {
        prepare.push(Export::Clear { directory: work.clone() });
    }
    prepare.push(Export::Begin { directory: work.clone(), token: options.token });
    let send = |steps: &mut Vec<Export>, file: PathBuf| {
        if let To::Stdout(_) = options.to {
            steps.push(Export::Send { file, directory: archive.clone() });
        }
    };
    let copied = record.disks.iter().filter(|disk| !disk.snapshot.is_left_out());
    for (disk, copy) in copied.zip(&found.copies) {
        let to = work.join(disk_name(disk));
        prepare.push(Export::Disk(Box::new(DiskCopy {
            vdev: disk.vdev.clone(),
            fill: flatten(&copy.disk.from, &to),
            to: to.clone(),
            fit: copy.disk.fit,
            most: copy.most,
            source: source(disk),
            time: whole_second(record.created),
        })));
        send(&mut prepare, to);
    }
    if let Some(text) = &found.cfg {
        let path = work.join(format!("{}.cfg", record.name));
        prepare.push(Export::Cfg { path: path.clone(), text: text.clone() });
        send(&mut prepare, path);
    }
    let exported = self::record(record, options.memory, writer);
    let path = work.join(image_name(record, options.memory));
    prepare.push(match found.config.as_ref().filter(|_| options.memory) {
        Some(config) => Export::Memory(Box::new(ImageCopy {
            path: path.clone(),
            config: config_of(config, &exported).map_err(|why| {
                Error::refused(about()).because(why).hint("use the image as create wrote it")
            })?,
            record: exported,
            level: Level::DEFAULT,
        })),
        None => Export::Record { path: path.clone(), record: Box::new(exported) },
    });
    send(&mut prepare, path);
    let token = options.token;
    let (commit, finish) = match &options.to {
        To::Directory(directory) => (
            Export::Name { from: work, to: directory.clone(), token },
            Export::End { directory: directory.clone(), token },
        ),
        To::Stdout(_) => (Export::EndArchive, Export::Discard { directory: work, token }),
    };
    Ok(Plan {
        title: format!("Export of snapshot {} of {}", record.name, record.domain.name),
        notes: notes(found, options),
        prepare: prepare.into_iter().map(Step::Export).collect(),
        commit: Some(Step::Export(commit)),
        finish: vec![Step::Export(finish)],
        ..Plan::default()
    })
}

fn check_place(found: &ExportInput, options: &Options, about: &dyn Fn() -> String) -> Result<()> {
    let work = working_directory(&options.to, &found.record);
    let shown = quote(&work);
    if let Some(trouble) = &found.trouble {
        return Err(Error::refused(about()).because(trouble.clone()).hint(match &options.to {
            To::Directory(_) => {
                "name a directory that does not exist, in one that does, such as /backup/web1-monday"
            }
            To::Stdout(_) => "name another directory with --work-dir",
        }));
    }
    match &found.leftover {
        Leftover::None | Leftover::Ours => Ok(()),
        Leftover::Busy => Err(Error::refused(about())
            .because(format!("another export writes to {shown}"))
            .hint("wait until it has finished")),
        Leftover::Foreign(why) => Err(Error::refused(about())
            .because(format!("{shown} is there, and {why}"))
            .hint(format!("check what it is, and remove it: ls -la {shown}"))),
    }
}

fn check_room(found: &ExportInput, options: &Options, about: &dyn Fn() -> String) -> Result<()> {
    let memory = if options.memory { found.memory } else { 0 };
    let files = found.copies.iter().map(|copy| copy.most).chain([memory]);
    let needed = match &options.to {
        To::Directory(_) => files.fold(0, u64::saturating_add),
        // One after the other.
        To::Stdout(_) => files.max().unwrap_or(0),
    };
    if needed <= found.free {
        return Ok(());
    }
    let work = working_directory(&options.to, &found.record);
    let place = quote(work.parent().unwrap_or(Path::new("/")));
    Err(Error::refused(about())
        .because(format!(
            "the file system of {place} has {} free, and up to {} are needed",
            mib(found.free),
            mib(needed)
        ))
        .hint(match &options.to {
            To::Directory(_) => "free some space, or choose another place",
            To::Stdout(_) => "free some space, or choose another place with --work-dir",
        }))
}

fn notes(found: &ExportInput, options: &Options) -> Vec<String> {
    let left_out = found.record.disks.iter().filter(|disk| disk.snapshot.is_left_out());
    let mut notes: Vec<_> = left_out
        .map(|disk| {
            let path = disk.path.display();
            format!("disk {} ({path}) is not in the snapshot, and not in the export", disk.vdev)
        })
        .collect();
    if !options.memory && found.record.disks_only.is_none() {
        notes.push(
            "without memory, the disks are what a power cut would have left at the moment of the snapshot"
                .into(),
        );
    }
    notes
}

/// libxl's configuration, whose disks have the names that the record of the export has.
fn config_of(config: &DomainConfig, exported: &Record) -> std::result::Result<String, BadConfig> {
    let mut config = config.clone();
    for disk in exported.disks.iter().filter(|disk| !disk.snapshot.is_left_out()) {
        config.set_image(&disk.vdev, &disk.path, Format::Qcow2)?;
    }
    Ok(config.to_json())
}

/// The file with the content of a disk that nobody writes to any more, and its proof.
fn source(disk: &DiskRecord) -> Option<(PathBuf, FrozenFile)> {
    match disk.snapshot.kind().content() {
        Content::Frozen(Frozen { copy, proof, .. }) => {
            Some((copy.unwrap_or(&disk.path).to_owned(), proof?.clone()))
        }
        Content::Nowhere | Content::Inside(_) | Content::Volume(_) => None,
    }
}

/// As every archive keeps it.
fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// All refusals of disks at once.
pub fn troubles(copies: Vec<Result<Option<DiskExport>>>) -> (Vec<DiskExport>, Vec<Trouble>) {
    let mut good = Vec::new();
    let mut troubles = Vec::new();
    for copy in copies {
        match copy {
            Ok(copy) => good.extend(copy),
            Err(error) => troubles.push(Trouble::of_error(&error, Severity::Lost)),
        }
    }
    (good, troubles)
}

#[cfg(test)]
mod tests;
