//! Changes the images of disks in an xl configuration file, and keeps every other byte. Pure.
//!
//! Knows just enough of two languages: the file's ([`disk_entries`]) and that of a disk
//! specification ([`respec`]). Unknown syntax is an error, never a guess, and `host/cfg.rs` checks
//! the result with libxlutil.

mod change;
mod spec;
#[cfg(test)]
mod tests;
mod text;

use crate::names::same_vdev;

pub use self::change::{BadCfg, Change};
pub use self::spec::respec;
pub use self::text::{Entry, disk_entries, literal};

/// An entry of the disk list as libxlutil reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known<'a> {
    /// The whole entry.
    pub spec: &'a str,
    pub vdev: &'a str,
}

/// Applies `changes` to `text`, in any encoding. `disks` are those that libxlutil reads in it, in the order of the list:
/// they identify the entries, and must match our own reading.
pub fn rewrite(text: &[u8], disks: &[Known<'_>], changes: &[Change]) -> Result<Vec<u8>, BadCfg> {
    let entries = disk_entries(text)?;
    if !entries.iter().map(|entry| entry.spec.as_str()).eq(disks.iter().map(|disk| disk.spec)) {
        return Err(BadCfg::List);
    }
    let mut edits = Vec::new();
    for (index, change) in changes.iter().enumerate() {
        let vdev = &change.vdev;
        let mut named = entries.iter().zip(disks).filter(|(_, disk)| same_vdev(disk.vdev, vdev));
        let (entry, _) = named.next().ok_or_else(|| BadCfg::NoDisk(vdev.clone()))?;
        if named.next().is_some()
            || changes[..index].iter().any(|other| same_vdev(&other.vdev, vdev))
        {
            return Err(BadCfg::Twice(vdev.clone()));
        }
        edits.push((entry, respec(&entry.spec, change)?));
    }
    // From the end to the start, so that the remaining spans stay valid.
    edits.sort_by_key(|(entry, _)| entry.span.start);
    let mut new = text.to_owned();
    for (entry, spec) in edits.into_iter().rev() {
        let quote = char::from(text[entry.span.start]).to_string();
        new.splice(entry.span.clone(), text::literal(&spec, &quote).into_bytes());
    }
    Ok(new)
}
