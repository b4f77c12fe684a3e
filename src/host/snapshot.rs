//! What a snapshot's name on the command line leads to.

use std::path::{Path, PathBuf};

use crate::domain::{DomainConfig, Format};
use crate::error::{Error, Result};
use crate::host::image::{Source, rewrite};
use crate::host::record_file;
use crate::memory::{DELETING, deleting_path};
use crate::record::Record;
use crate::spec::absolute;
use crate::tool::{check_path, quote};

/// A snapshot that was found.
#[derive(Debug)]
pub struct Snapshot {
    /// As the user named it.
    pub name: String,
    pub record: Record,
    /// The image, if it has its memory.
    pub source: Option<Source>,
}

impl Snapshot {
    /// Opens a memory image, `-` for standard input, or the record of a snapshot without memory.
    pub fn open(path: &Path) -> Result<Snapshot> {
        let unmarked = path.to_str().and_then(|path| path.strip_suffix(DELETING)).map(Path::new);
        if let Some(image) = unmarked.or(half_deleted(path)) {
            return Err(Error::refused(format!("Snapshot {}", path.display()))
                .because("it is half deleted")
                .hint(format!("finish that: xl-snapshot delete {}", quote(image))));
        }
        rewrite::finish(path).map_err(|why| {
            Error::refused(format!("Snapshot {}", path.display()))
                .because(why)
                .hint("its record was being replaced, and that cannot be finished")
        })?;
        if record_file::is_record(path) {
            let mut record = record_file::read(path)?;
            if record.is_export() {
                record.found_in(&directory_of(path)?);
            }
            return Ok(Snapshot { name: path.display().to_string(), record, source: None });
        }
        let mut source = Source::open(path)?;
        if source.image.record.is_export() {
            find_disks(&mut source, &directory_of(path)?)?;
        }
        let (name, record) = (source.name.clone(), source.image.record.clone());
        Ok(Snapshot { name, record, source: Some(source) })
    }
}

/// The directory of an export, in which its disks lie beside the image.
fn directory_of(image: &Path) -> Result<PathBuf> {
    let refused = || Error::refused(format!("Snapshot {}", image.display()));
    if image.as_os_str() == "-" {
        return Err(refused()
            .because("it is of an export, whose disks lie beside the image")
            .hint("name the image in the directory of the export"));
    }
    let directory = absolute(image)?.parent().unwrap_or(Path::new("/")).to_owned();
    match check_path(&directory) {
        Ok(_) => Ok(directory),
        Err(why) => Err(refused().because(why).hint("move the export to another directory")),
    }
}

/// Gives the disks of an export their paths, in the record and in the configuration.
fn find_disks(source: &mut Source, directory: &Path) -> Result<()> {
    let Source { image, name, .. } = source;
    image.record.found_in(directory);
    let placed = DomainConfig::parse(&image.config).and_then(|mut config| {
        for disk in
            image.record.disks.iter().filter(|disk| disk.snapshot.kind().is_relative_to_image())
        {
            config.set_image(&disk.vdev, &disk.path, Format::Qcow2)?;
        }
        Ok(config.to_json())
    });
    image.config = placed.map_err(|why| {
        Error::refused(format!("Image {name}"))
            .because(why)
            .hint("use the export as xl-snapshot has written it")
    })?;
    Ok(())
}

/// The path of a snapshot that is not there any more because its deletion was begun.
fn half_deleted(path: &Path) -> Option<&Path> {
    (!path.exists() && deleting_path(path).exists()).then_some(path)
}
