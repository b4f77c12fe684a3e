//! Exports: looking at what one needs, and the steps that make one. The steps need no domain.

pub mod look;
mod place;
mod stdout;
pub mod steps;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::export::Leftover;
use crate::memory::partial_path;

/// Removes what exports have left in a directory that were cut short, of those whose names begin so.
pub fn clear_leftovers(parent: &Path, prefix: &str) -> io::Result<Vec<PathBuf>> {
    let ending = partial_path(Path::new("x"));
    let ending = ending.to_string_lossy();
    let ending = ending.trim_start_matches('x');
    let mut cleared = Vec::new();
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let name = entry.file_name();
        let named =
            name.to_str().is_some_and(|name| name.starts_with(prefix) && name.ends_with(ending));
        if named && place::leftover(&entry.path()) == Leftover::Ours {
            place::clear(&entry.path())?;
            cleared.push(entry.path());
        }
    }
    Ok(cleared)
}
