//! Looking at a snapshot that is to be exported, and at the place for it. Changes nothing.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::place;
use crate::domain::DomainConfig;
use crate::error::{Error, Result};
use crate::export::{self, Copy, ExportInput, Options, To, image_name, working_directory};
use crate::host::deletion::steps::allocated;
use crate::host::look::{self, Exportable};
use crate::host::parallel::in_parallel;
use crate::host::snapshot::Snapshot;
use crate::host::toolstack::Toolstack;
use crate::host::{files, tools};
use crate::memory::Form;
use crate::need::{Severity, Trouble};
use crate::plan::Text;
use crate::record::Record;
use crate::revert::Cfg;
use crate::tool::qemu_img::measure_whole;
use crate::tool::{Tool, check_path, quote};

/// A configuration file is small; this is not one.
const MAX_CFG: u64 = 1 << 20;
/// How much smaller the memory of a guest may get, at best. A full disk is found out on the way, and the export taken
/// back.
const BEST_COMPRESSION: u64 = 4;

/// Looks at a snapshot and the place for its export. Without a toolstack, running domains are not known.
pub fn look(
    toolstack: Option<&Toolstack>,
    snapshot: &Snapshot,
    cfg: &Cfg,
    options: &Options,
) -> Result<ExportInput> {
    tools::need(Tool::QemuImg)?;
    let record = &snapshot.record;
    let config = match &snapshot.source {
        Some(source) => Some(DomainConfig::parse(&source.image.config).map_err(|why| {
            Error::refused(format!("Image {}", snapshot.name))
                .because(why)
                .hint("use the image as create wrote it")
        })?),
        None => None,
    };
    let work = working_directory(&options.to, record);
    let Exportable { disks, volumes, mut troubles } = look::for_export(toolstack, record, &work)?;
    let (exports, refused) = export::troubles(export::copies(record, &disks, &volumes));
    troubles.extend(refused);
    let measured = in_parallel(exports, |disk| {
        let from = Path::new(&snapshot.name);
        let most = tools::measure(from, &measure_whole(&disk.from));
        most.map(|most| Copy { most: disk.most.map_or(most, |better| better.min(most)), disk })
    });
    let mut copies = Vec::new();
    for copy in measured {
        match copy {
            Ok(copy) => copies.push(copy),
            Err(why) => troubles.push(Trouble {
                rank: Severity::Lost,
                about: format!("The disks of snapshot {} cannot be measured", record.name),
                why,
                hint: "check it: xl-snapshot show".into(),
            }),
        }
    }
    let free = files::free_space(&work).map_err(|error| {
        Error::refused(format!("The place for the export, {}", quote(&work))).because(error)
    })?;
    Ok(ExportInput {
        snapshot: snapshot.name.clone(),
        memory: memory(snapshot),
        record: record.clone(),
        config,
        disks,
        copies,
        troubles,
        trouble: trouble(&options.to, &work, record, options.memory),
        leftover: place::leftover(&work),
        free,
        cfg: cfg_text(cfg),
    })
}

/// Why the directory, or one of its files, cannot be made.
fn trouble(to: &To, work: &Path, record: &Record, memory: bool) -> Option<String> {
    let longest = work.join(image_name(record, memory));
    if let Err(why) = check_path(&longest) {
        return Some(format!("{}: {why}", work.display()));
    }
    let other_name = |path: &PathBuf| match fs::symlink_metadata(path) {
        Ok(_) => Some(format!("{} exists", path.display())),
        Err(_) => None,
    };
    let taken = match to {
        To::Directory(directory) => other_name(directory),
        To::Stdout(_) => None,
    };
    // That it exists itself may be what an earlier export has left.
    taken.or_else(|| files::trouble(&work.with_file_name(".xl-snapshot-export-trial")))
}

/// What the memory image takes, as far as can be told.
fn memory(snapshot: &Snapshot) -> u64 {
    let Some(source) = &snapshot.source else { return 0 };
    let length = source.file.metadata().map_or(0, |meta| meta.len());
    match source.image.form {
        Form::Zstd { .. } => length,
        Form::Plain => {
            let path = Path::new(&source.name);
            let stored = if path.is_file() { allocated(path).min(length) } else { length };
            stored / BEST_COMPRESSION
        }
    }
}

/// The text of the domain's xl configuration file, if that is known and can be read.
fn cfg_text(cfg: &Cfg) -> Option<Text> {
    let (Cfg::Named(path) | Cfg::Remembered(path)) = cfg else { return None };
    let mut bytes = Vec::new();
    files::open(path).ok()?.take(MAX_CFG + 1).read_to_end(&mut bytes).ok()?;
    (bytes.len() as u64 <= MAX_CFG).then(|| bytes.into())
}
