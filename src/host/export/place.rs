//! The directory of an export until it is complete: made, found again, and removed as a whole.
//!
//! A file in it marks it as ours and says which export it is of; whoever works on it holds a lock on that file. So the
//! next export knows whether it may remove what an earlier one has left.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use uuid::Uuid;

use crate::export::Leftover;
use crate::host::files;
use crate::plan::export::MARK;

fn mark(directory: &Path) -> PathBuf {
    directory.join(MARK)
}

/// Makes the directory and marks it. The mark is held for as long as the file is open.
pub(super) fn begin(directory: &Path, token: Uuid) -> io::Result<File> {
    DirBuilder::new().mode(0o700).create(directory)?;
    let marked = || {
        let mut file = files::create_new(&mark(directory))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        writeln!(file, "{token}")?;
        file.sync_all()?;
        files::sync_directory(&mark(directory))?;
        files::sync_directory(directory)?;
        Ok(file)
    };
    marked().inspect_err(|_| {
        // Whatever of it is there.
        let _ = (files::remove(&mark(directory)), fs::remove_dir(directory));
    })
}

/// The export that a directory is of, if it is one that is not complete.
fn token(directory: &Path) -> Option<Uuid> {
    let mut text = String::new();
    files::open(&mark(directory)).ok()?.take(64).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Whether a directory is of that export.
pub(super) fn is_of(directory: &Path, token: Uuid) -> bool {
    self::token(directory) == Some(token)
}

/// What stands where the directory is to be made.
pub(super) fn leftover(directory: &Path) -> Leftover {
    match fs::symlink_metadata(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Leftover::None,
        Err(error) => return Leftover::Foreign(error.to_string()),
        Ok(meta) if !meta.is_dir() => return Leftover::Foreign("it is no directory".into()),
        // In a directory for everybody, such as /var/tmp, anybody can make one of that name, and a mark in it.
        Ok(meta) if !files::is_ours(&meta) => {
            return Leftover::Foreign("others than root may have put it there".into());
        }
        Ok(_) => {}
    }
    if token(directory).is_none() {
        return Leftover::Foreign("nothing says that an export has made it".into());
    }
    match held(directory) {
        Ok(Some(_)) => Leftover::Ours,
        Ok(None) => Leftover::Busy,
        Err(error) => Leftover::Foreign(error.to_string()),
    }
}

/// The mark, held; `None` if somebody else holds it.
fn held(directory: &Path) -> io::Result<Option<File>> {
    let file = files::open_no_link(&mark(directory))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Removes a directory that an export has left, unless one still works on it.
pub(super) fn clear(directory: &Path) -> io::Result<()> {
    match leftover(directory) {
        Leftover::Ours => {}
        Leftover::None => return Ok(()),
        Leftover::Busy => return Err(io::Error::other("another export writes to it")),
        Leftover::Foreign(why) => return Err(io::Error::other(why)),
    }
    let held = held(directory)?.ok_or_else(|| io::Error::other("another export writes to it"))?;
    remove(directory)?;
    drop(held);
    Ok(())
}

/// Removes the directory of an export; nothing if it is not there, or is of another one.
pub(super) fn discard(directory: &Path, token: Uuid) -> io::Result<()> {
    if self::token(directory).is_some_and(|its| its == token) { remove(directory) } else { Ok(()) }
}

/// An export makes files only. The mark goes last, so that what is left is still known as ours.
fn remove(directory: &Path) -> io::Result<()> {
    let mark = mark(directory);
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path != mark {
            files::remove(&path)?;
        }
    }
    files::remove(&mark)?;
    fs::remove_dir(directory)?;
    files::sync_directory(directory)
}

/// Gives the directory its name: never over something.
pub(super) fn name(from: &Path, to: &Path) -> io::Result<()> {
    File::open(from)?.sync_all()?;
    files::rename_directory(from, to)?;
    files::sync_directory(to).inspect_err(|_| {
        // Then it is as if it had not been done.
        let _ = files::rename_directory(to, from);
    })
}

/// Takes the mark away.
pub(super) fn end(directory: &Path, token: Uuid) -> io::Result<()> {
    if is_of(directory, token) {
        files::remove(&mark(directory))?;
        files::sync_directory(&mark(directory))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    #[test]
    fn what_an_export_left_is_removed_and_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("x.partial");
        assert_eq!(leftover(&directory), Leftover::None);
        let token = Uuid::new_v4();
        let held = begin(&directory, token).unwrap();
        assert!(begin(&directory, token).is_err());
        fs::write(directory.join("xvda.qcow2"), "x").unwrap();
        // By another process, and here by another descriptor.
        assert_eq!(leftover(&directory), Leftover::Busy);
        assert!(clear(&directory).is_err());
        drop(held);
        assert_eq!(leftover(&directory), Leftover::Ours);
        discard(&directory, Uuid::new_v4()).unwrap();
        assert!(directory.join("xvda.qcow2").exists());
        clear(&directory).unwrap();
        assert!(!directory.exists());
        discard(&directory, token).unwrap();
        // Of somebody else.
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("theirs"), "x").unwrap();
        assert!(matches!(leftover(&directory), Leftover::Foreign(_)));
        assert!(clear(&directory).is_err());
        discard(&directory, token).unwrap();
        assert!(directory.join("theirs").exists());
    }

    #[test]
    fn what_others_may_have_put_there_is_not_ours() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("x.partial");
        drop(begin(&directory, Uuid::new_v4()).unwrap());
        fs::write(directory.join("file"), "x").unwrap();
        let foreign = |path: &Path| {
            let why = Leftover::Foreign("others than root may have put it there".into());
            assert_eq!(leftover(path), why);
            assert!(clear(path).unwrap_err().to_string().contains("others than root"));
            assert!(directory.join("file").exists());
        };
        for mode in [0o777, 0o720, 0o1777] {
            fs::set_permissions(&directory, Permissions::from_mode(mode)).unwrap();
            foreign(&directory);
        }
        fs::set_permissions(&directory, Permissions::from_mode(0o700)).unwrap();
        let link = parent.path().join("link.partial");
        symlink(&directory, &link).unwrap();
        assert_eq!(leftover(&link), Leftover::Foreign("it is no directory".into()));
        assert!(clear(&link).is_err() && directory.join("file").exists());
        // Only root can give it to somebody.
        if chown(&directory, Some(7), None).is_ok() {
            foreign(&directory);
            chown(&directory, Some(0), None).unwrap();
        }
        clear(&directory).unwrap();
        assert!(!directory.exists());
    }

    #[test]
    fn a_directory_in_it_is_not_removed() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("x.partial");
        let token = Uuid::new_v4();
        drop(begin(&directory, token).unwrap());
        fs::create_dir(directory.join("theirs")).unwrap();
        assert!(discard(&directory, token).is_err());
        assert_eq!(leftover(&directory), Leftover::Ours);
    }

    #[test]
    fn a_name_that_is_taken_stays_so() {
        let parent = tempfile::tempdir().unwrap();
        let [from, to] = ["x.partial", "x"].map(|name| parent.path().join(name));
        let token = Uuid::new_v4();
        drop(begin(&from, token).unwrap());
        fs::create_dir(&to).unwrap();
        assert!(name(&from, &to).is_err());
        fs::remove_dir(&to).unwrap();
        name(&from, &to).unwrap();
        assert!(is_of(&to, token) && !from.exists());
        end(&to, token).unwrap();
        assert_eq!(fs::read_dir(&to).unwrap().count(), 0);
    }
}
