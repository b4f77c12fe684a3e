//! What `compact` has done.

use std::fmt;
use std::path::PathBuf;

use indicatif::BinaryBytes;
use serde::Serialize;

use super::Failed;
use crate::tool::quote;

/// What `compact` has done, or would do. Its JSON form is a contract.
#[derive(Debug, Clone, Serialize)]
pub struct Compactions {
    /// Whether nothing was changed, as asked for.
    pub dry_run: bool,
    /// Each image, in the order in which it was done: the oldest first.
    pub images: Vec<Compaction>,
    /// What was refused or has failed, and is as it was.
    pub failed: Vec<Failed>,
}

/// An image that was written anew.
#[derive(Debug, Clone, Serialize)]
pub struct Compaction {
    pub image: PathBuf,
    /// Whether it was, or would be, rewritten; else it has the form already, and only shares more.
    pub rewritten: bool,
    /// Its length in bytes.
    pub size: u64,
    /// What it took on its file system, in bytes.
    pub size_on_disk_before: u64,
    /// What it takes now, in bytes; not known in a dry run.
    pub size_on_disk: Option<u64>,
    /// How much of that it shares with others, in bytes; not known on all file systems.
    pub shared: Option<u64>,
}

impl fmt::Display for Compactions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for image in &self.images {
            let (path, before) = (quote(&image.image), BinaryBytes(image.size_on_disk_before));
            match image.size_on_disk {
                None if image.rewritten => writeln!(f, "{path} ({before}) would be rewritten")?,
                None => writeln!(f, "{path} ({before}) would share more, if there is more")?,
                Some(now) => {
                    let shared = match image.shared {
                        Some(shared) if shared > 0 => {
                            format!(", {} of that shared", BinaryBytes(shared))
                        }
                        _ => String::new(),
                    };
                    writeln!(
                        f,
                        "{path}: {before} on disk before, {} now{shared}",
                        BinaryBytes(now)
                    )?;
                }
            }
        }
        Ok(())
    }
}
