//! Whether LVM can change a group.

use std::path::PathBuf;

use super::files;
use crate::host::command;
use crate::tool::allocation;

/// Where LVM archives, if it says nothing else (lvm.conf(5), `archive_dir`).
const ARCHIVE: &str = "/etc/lvm/archive";

/// Why LVM cannot archive the previous metadata of a group, if so: then it changes nothing
/// (lvm2, lib/format_text/archiver.c, `archive`).
pub(super) fn archive() -> Option<String> {
    // LVM says nothing where it has no lvm.conf, and archives.
    let answer = command::run(&allocation::archive()).unwrap_or_default();
    let (archives, directory) = allocation::parse_archive(&String::from_utf8_lossy(&answer));
    let directory = directory.map_or_else(|| ARCHIVE.into(), PathBuf::from);
    archives.then(|| files::state(&directory)).flatten()
}
