//! What a snapshot's name on the command line leads to.

use std::path::Path;

use crate::error::{Error, Result};
use crate::host::image::{Source, rewrite};
use crate::host::record_file;
use crate::memory::{DELETING, deleting_path};
use crate::record::Record;
use crate::tool::quote;

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
            let record = record_file::read(path)?;
            return Ok(Snapshot { name: path.display().to_string(), record, source: None });
        }
        let source = Source::open(path)?;
        let (name, record) = (source.name.clone(), source.image.record.clone());
        Ok(Snapshot { name, record, source: Some(source) })
    }
}

/// The path of a snapshot that is not there any more because its deletion was begun.
fn half_deleted(path: &Path) -> Option<&Path> {
    (!path.exists() && deleting_path(path).exists()).then_some(path)
}
