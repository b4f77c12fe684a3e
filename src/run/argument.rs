//! What is named on the command line: a snapshot, or a SPEC.toml.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::error::{Error, Result};
use crate::host::snapshot::Snapshot;
use crate::host::{configured, files, list, record_file};
use crate::names::is_word;
use crate::revert::Cfg;
use crate::spec::Spec;
use crate::tool::quote;

/// A SPEC.toml is small; this is not one.
const MAX_SPEC: u64 = 1 << 20;

pub(super) fn read_spec(path: &Path) -> Result<Spec> {
    let trouble = |error: io::Error| {
        let is_name = is_word(path) && error.kind() == io::ErrorKind::NotFound;
        Error::usage(format!("Reading {}", path.display())).because(error).hint(match is_name {
            true => format!(
                "pass a SPEC.toml, see xl-snapshot.toml(5); to name the snapshot: --name {}",
                quote(path)
            ),
            false => "pass a SPEC.toml, see xl-snapshot.toml(5)".to_owned(),
        })
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
pub(super) struct SnapshotArgument {
    pub(super) snapshot: Snapshot,
    /// The domain's xl configuration file.
    pub(super) cfg: Cfg,
}

impl SnapshotArgument {
    /// Opens an image, a record, what a SPEC.toml says, or DOMAIN/NAME. Whatever begins as a record is one.
    pub(super) fn open(path: &Path) -> Result<SnapshotArgument> {
        let named = list::by_name(path)?;
        let path = named.as_deref().unwrap_or(path);
        let is_spec = path.extension().is_some_and(|extension| extension == "toml")
            && !record_file::is_record(path);
        if !is_spec {
            return Ok(SnapshotArgument::of(Snapshot::open(path)?, None));
        }
        let spec = read_spec(path)?;
        let file = spec.memory.clone().filter(|file| file.as_os_str() != "-");
        match (file.or(spec.record.clone()), spec.config.clone()) {
            (Some(file), config) => Ok(SnapshotArgument::of(Snapshot::open(&file)?, config)),
            (None, Some(cfg)) => {
                let request = spec.request()?;
                let record = configured::by_hand(&request, &cfg, Timestamp::now())?;
                let name = path.display().to_string();
                Ok(SnapshotArgument::of(Snapshot { name, record, source: None }, Some(cfg)))
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

    fn of(snapshot: Snapshot, config: Option<PathBuf>) -> SnapshotArgument {
        let cfg = match (config, &snapshot.record.domain.cfg) {
            (Some(cfg), _) => Cfg::Named(cfg),
            // Without memory it is what the domain starts from: no less than if it was named.
            (None, Some(cfg)) if snapshot.source.is_none() => Cfg::Named(cfg.clone()),
            (None, Some(cfg)) => Cfg::Remembered(cfg.clone()),
            (None, None) => Cfg::Unknown,
        };
        SnapshotArgument { snapshot, cfg }
    }
}
