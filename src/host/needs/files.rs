//! Files, devices and directories.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc::O_NONBLOCK;
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access};

use super::answer::{Answer, CheckContext, InUse};
use crate::disk::qcow2::{Defect, Header};
use crate::domain::Format;
use crate::host::chain;
use crate::host::files;
use crate::host::openers::{self, Opener};
use crate::need::Severity;

/// What a directory must have free, in bytes, for what libxl and QEMU write there.
const STATE_ROOM: u64 = 1 << 20;

/// Who has a file open, of those who matter.
pub(super) fn user(
    path: &Path,
    used: &InUse,
    around: CheckContext<'_>,
    matters: &dyn Fn(&Opener) -> bool,
) -> Option<String> {
    let id = files::identity(path)?;
    let (_, opener) = used.files.iter().find(|(file, opener)| *file == id && matters(opener))?;
    let name = opener.domid.map(|domid| {
        let name =
            around.toolstack.and_then(|toolstack| toolstack.domain_name(domid).ok().flatten());
        name.unwrap_or_else(|| domid.to_string())
    });
    Some(match name {
        Some(name) => format!("the QEMU of domain {name}, {},", opener.who),
        None => opener.who.clone(),
    })
}

pub(super) fn written(path: &Path, writer: Option<String>) -> Answer {
    Answer::busy(writer.map(|who| format!("{who} may write to {}", path.display())))
}

pub(super) fn alone(path: &Path, around: CheckContext<'_>, used: &InUse) -> Answer {
    if let Some(why) = usable(path, true) {
        return Answer::Trouble(Severity::Missing, why);
    }
    if let Some(who) = user(path, used, around, &|_| true) {
        return Answer::Trouble(Severity::Busy, format!("{who} has it open"));
    }
    Answer::busy(
        openers::is_locked_elsewhere(path)
            .then(|| "it is locked by a QEMU on another host".to_owned()),
    )
}

/// Why a file or device cannot be opened, if it cannot. Rehearsed for files; devices are not opened for
/// writing, because udev looks at each anew that is closed again.
pub(super) fn usable(path: &Path, writable: bool) -> Option<String> {
    let shown = path.display();
    let told = |error: io::Error| format!("{shown}: {error}");
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) => return Some(told(error)),
    };
    let kind = meta.file_type();
    if kind.is_block_device() {
        let number = openers::device_number((meta.rdev(), 0));
        let read_only =
            fs::read(format!("/sys/dev/block/{number}/ro")).is_ok_and(|ro| ro == b"1\n");
        return (read_only && writable).then(|| format!("the device {shown} is read-only"));
    }
    if kind.is_dir() {
        return Some(format!("{shown} is a directory"));
    }
    if !kind.is_file() {
        return access(path, AccessFlags::R_OK).err().map(|error| told(error.into()));
    }
    let open = File::options().read(true).write(writable).custom_flags(O_NONBLOCK).open(path);
    open.err().map(told)
}

/// Why a directory cannot be shared, if it cannot.
pub(super) fn directory(path: &Path) -> Option<String> {
    let shown = path.display();
    match (fs::metadata(path), access(path, AccessFlags::R_OK)) {
        (Err(error), _) => Some(format!("{shown}: {error}")),
        (Ok(meta), _) if !meta.is_dir() => Some(format!("{shown} is no directory")),
        (Ok(_), answer) => answer.err().map(|error| format!("{shown}: {}", error.desc())),
    }
}

/// Why the restored domain must not write to a file, if so. Root may all the same, but xl-snapshot takes the permission
/// from what other images rest on, and the script of blkback refuses such a file (scripts/block).
pub(super) fn frozen(path: &Path, writable: bool) -> Option<String> {
    let meta = fs::metadata(path).ok().filter(|meta| writable && meta.is_file())?;
    (meta.mode() & 0o222 == 0).then(|| {
        format!(
            "{} has no write permission, as the base of an overlay: the domain would write into a later snapshot",
            path.display()
        )
    })
}

/// Why QEMU cannot open an image, if it cannot.
pub(super) fn unopenable(path: &Path, format: Format, writable: bool) -> Option<String> {
    match chain::walk(path, format) {
        Err(why) => Some(why),
        Ok(links) => {
            let header = links.first().and_then(|link| link.header.as_ref());
            let corrupt = writable && header.is_some_and(Header::is_corrupt);
            corrupt.then(|| Defect::Corrupt.why())
        }
    }
}

/// Why files of a directory cannot get other names, if they cannot.
pub(super) fn renames(path: &Path) -> Option<String> {
    let shown = path.display();
    if let Err(error) = access(path, AccessFlags::W_OK) {
        return Some(format!("the directory {shown}: {}", error.desc()));
    }
    files::fixed(path).map(|flag| format!("the directory {shown} is {flag}"))
}

/// Why a file cannot get another name, if so.
pub(super) fn replaced(path: &Path) -> Option<String> {
    files::pinned(path).map(|flag| format!("{} is {flag}", path.display()))
}

/// Why the earlier logs cannot get other names, if so: the oldest one, which is removed first, is a directory
/// (libxl_utils.c, `libxl_create_logfile`).
pub(super) fn rotates(log: &Path) -> Option<String> {
    let numbered = |number: u32| PathBuf::from(format!("{}.{number}", log.display()));
    let kind = |path: &Path| fs::symlink_metadata(path).ok().map(|meta| meta.is_dir());
    let (last, oldest) = (numbered(9), numbered(10));
    let stuck = log.exists() && kind(&last) == Some(false) && kind(&oldest) == Some(true);
    stuck.then(|| {
        let (last, oldest) = (last.display(), oldest.display());
        format!("{oldest} is a directory, and {last} is to be renamed to it")
    })
}

/// Why nothing can be written in a directory, if so. One that is not there is made by libxl.
pub(super) fn state(path: &Path) -> Option<String> {
    let shown = path.display();
    let free = match statvfs(path) {
        Ok(free) => free,
        Err(_) => return None,
    };
    if let Err(error) = access(path, AccessFlags::W_OK) {
        return Some(format!("the directory {shown}, in which a revert writes: {}", error.desc()));
    }
    // A ramfs has no end, and tells 0 of 0.
    if free.blocks() == 0 {
        return None;
    }
    let bytes = free.blocks_available().saturating_mul(free.fragment_size());
    // A file system without inodes tells 0 of 0.
    let inodes = free.files() == 0 || free.files_available() > 0;
    (bytes < STATE_ROOM || !inodes).then(|| {
        let what = if inodes { "space" } else { "inodes" };
        format!("the file system of {shown}, in which a revert writes, has no {what} left")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_log_can_be_removed() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("xl-web1.log");
        let at = |number: u32| directory.path().join(format!("xl-web1.log.{number}"));
        fs::create_dir(at(10)).unwrap();
        assert_eq!(rotates(&log), None);
        fs::write(&log, "").unwrap();
        assert_eq!(rotates(&log), None);
        fs::write(at(9), "").unwrap();
        let why = rotates(&log).unwrap();
        assert!(why.contains("xl-web1.log.10 is a directory, and"), "{why}");
        fs::rename(at(9), at(8)).unwrap();
        assert_eq!(rotates(&log), None);
        fs::rename(at(8), at(9)).unwrap();
        fs::remove_dir(at(10)).unwrap();
        fs::write(at(10), "").unwrap();
        assert_eq!(rotates(&log), None);
    }
}
