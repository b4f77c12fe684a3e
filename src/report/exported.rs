//! What an export has to say.

use std::fmt;
use std::path::PathBuf;

use indicatif::BinaryBytes;
use serde::Serialize;
use uuid::Uuid;

use super::Rows;
use crate::tool::quote;

/// What `export` has made. Its JSON form is a contract.
#[derive(Debug, Clone, Serialize)]
pub struct Exported {
    /// The snapshot's name.
    pub name: String,
    /// Its identity.
    pub id: Uuid,
    /// The name of its domain.
    pub domain: String,
    /// The new directory; absent if it went to standard output.
    pub directory: Option<PathBuf>,
    /// The directory in the archive, if it went to standard output.
    pub archive: Option<String>,
    /// The file of the memory image, or of the record, in that directory.
    pub image: String,
    /// Whether the memory went with it.
    pub memory: bool,
    /// The length of the memory image in bytes; absent without memory.
    pub image_size: Option<u64>,
    /// How long everything took, in milliseconds.
    pub total_ms: f64,
    /// Each disk of the snapshot.
    pub disks: Vec<ExportedDisk>,
}

/// What `export` has made of one disk.
#[derive(Debug, Clone, Serialize)]
pub struct ExportedDisk {
    /// The guest's name of it.
    pub vdev: String,
    /// The file in the directory.
    pub file: Option<String>,
    /// What it takes on its file system, in bytes.
    pub size_on_disk: Option<u64>,
    /// Why it is not in the export.
    pub why: Option<String>,
}

impl fmt::Display for Exported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Exported { name, domain, image, .. } = self;
        let place = match &self.directory {
            Some(directory) => quote(directory),
            None => "standard output".into(),
        };
        writeln!(f, "Snapshot {name} of {domain} is exported to {place}")?;
        let mut rows = Rows::default();
        let size = |bytes: Option<u64>| bytes.map(|bytes| format!("  {}", BinaryBytes(bytes)));
        let what = if self.memory { "memory" } else { "record" };
        rows.add(what, format!("{image}{}", size(self.image_size).unwrap_or_default()));
        for disk in &self.disks {
            rows.add(
                &disk.vdev,
                match (&disk.why, &disk.file) {
                    (Some(why), _) => format!("not in it: {why}"),
                    (None, file) => format!(
                        "{}{}",
                        file.as_deref().unwrap_or_default(),
                        size(disk.size_on_disk).unwrap_or_default()
                    ),
                },
            );
        }
        rows.add("total", format!("{:.1} s", self.total_ms / 1000.0));
        rows.fmt(f)?;
        if let (true, Some(directory)) = (self.memory, &self.directory) {
            let image = quote(directory.join(image));
            writeln!(
                f,
                "A new domain is created from it, on any host with this Xen or a newer one, by"
            )?;
            writeln!(f, "  xl-snapshot revert --as NAME --overlay-dir DIR {image}")?;
        }
        Ok(())
    }
}
