//! What a snapshot's name on the command line leads to.

use std::path::Path;

use crate::error::Result;
use crate::host::image::Source;
use crate::host::record_file;
use crate::record::Record;

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
        if record_file::is_record(path) {
            let record = record_file::read(path)?;
            return Ok(Snapshot { name: path.display().to_string(), record, source: None });
        }
        let source = Source::open(path)?;
        let (name, record) = (source.name.clone(), source.image.record.clone());
        Ok(Snapshot { name, record, source: Some(source) })
    }
}
