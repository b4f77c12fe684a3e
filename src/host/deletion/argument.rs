//! Finding a snapshot that is to be deleted, also if its deletion was interrupted.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::host::list;
use crate::list::ImageEntry;
use crate::memory::peek::{Extent, Peek};
use crate::memory::{DELETING, deleting_path};
use crate::record::Record;
use crate::spec;
use crate::tool::quote;

/// A snapshot that is named.
#[derive(Debug)]
pub struct SnapshotToDelete {
    /// Its image, or the file of its record, by its own name.
    pub image: PathBuf,
    /// Whether that has the name that says that the snapshot is being deleted.
    pub marked: bool,
    pub record: Record,
    /// What the file takes, in bytes.
    pub allocated: u64,
}

/// Finds a snapshot by the path of its image, or by DOMAIN/NAME, also if its deletion was interrupted.
pub fn named(text: &Path) -> Result<SnapshotToDelete> {
    let image = match fs::symlink_metadata(text) {
        Ok(_) => spec::absolute(text)?,
        Err(_) if fs::symlink_metadata(deleting_path(text)).is_ok() => spec::absolute(text)?,
        Err(_) => list::by_name_of(text, true)?.unwrap_or(spec::absolute(text)?),
    };
    let own = image.to_str().and_then(|path| path.strip_suffix(DELETING)).map(PathBuf::from);
    let image = own.unwrap_or(image);
    let marked = fs::symlink_metadata(&image).is_err();
    let there = if marked { deleting_path(&image) } else { image.clone() };
    let refused = || {
        Error::refused(format!("Snapshot {}", quote(text)))
            .hint("name the snapshot as DOMAIN/NAME, or by its image or record; xl-snapshot list shows all")
    };
    let ImageEntry { peek, allocated, .. } = list::one(there);
    match peek.map_err(|why| refused().because(why))? {
        Peek::Snapshot { record, extent: Extent::Unfinished, .. } if !record.complete => {
            Err(refused().because("it was never completed, or is being made").hint(
                "if no create is running, its leftovers are removed by the next create with --clean",
            ))
        }
        Peek::Snapshot { record, .. } if record.is_export() => {
            let directory = image.parent().unwrap_or(Path::new("/"));
            Err(refused().because("it is an export, whose directory is all there is of it").hint(
                format!(
                    "once no domain has an overlay on its disks, remove it: rm -r {}",
                    quote(directory)
                ),
            ))
        }
        Peek::Snapshot { record, .. } => Ok(SnapshotToDelete { image, marked, record: *record, allocated }),
        Peek::Damaged(why) => Err(refused().because(why)),
        Peek::SaveFile => Err(refused().because("it is a save file of xl, which names no disks")),
        Peek::Foreign | Peek::Later => Err(refused().because("it is no snapshot")),
    }
}
