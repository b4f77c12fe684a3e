//! Giving a file a name that is not taken, on file systems that differ in how that can be done.
//!
//! * `RENAME_NOREPLACE` (renameat2(2)): ext4, XFS, Btrfs, tmpfs. Not NFS, and few FUSE file systems.
//! * A hard link, link(2): NFS. Not exFAT, and few FUSE file systems (`sshfs -o disable_hardlink`, rclone
//!   and s3fs have none).
//! * An empty file of our own that takes the name and is then replaced, rename(2): all others.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::libc;
use uuid::Uuid;

use super::{create_new, id, sync_directory};

/// Renames `from` to `to`, unless `to` exists.
type RenameCall = fn(from: &Path, to: &Path) -> io::Result<()>;

const WAYS: [RenameCall; 3] = [without_replacing, by_a_link, over_a_placeholder];

/// Gives a file its final name; fails if the name is taken.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    rename_by(&WAYS, from, to)
}

/// Gives a directory another name; fails if that is taken. There are no links to directories: where the file system
/// cannot do both at once, what takes the name in between keeps it if there is anything in it.
pub fn rename_directory(from: &Path, to: &Path) -> io::Result<()> {
    match without_replacing(from, to) {
        Err(error) if is_not_offered(&error) => match fs::symlink_metadata(to) {
            Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
            Err(_) => fs::rename(from, to),
        },
        renamed => renamed,
    }
}

/// Whether this open file has this name; a link does not count.
pub fn has_name(file: &File, path: &Path) -> bool {
    let named = name_of(path).ok();
    named.is_some() && named == id(file).ok()
}

/// Tries in the directory of `path` what [`rename_new`] and [`sync_directory`] will have to do there.
///
/// # Errors
///
/// If no file could get a name there, or its name would not be durable.
pub fn try_naming(path: &Path) -> io::Result<()> {
    let directory = path.parent().ok_or(io::ErrorKind::NotFound)?;
    let trial = |end: &str| directory.join(format!(".xl-snapshot-{}{end}", Uuid::new_v4()));
    let (one, other) = (trial("-a"), trial("-b"));
    let attempt = || {
        let file = create_new(&one)?;
        rename_new(&one, &other)?;
        if !has_name(&file, &other) {
            return Err(io::Error::other("a renamed file is another file there"));
        }
        sync_directory(&other)
    };
    let result = attempt();
    // Whichever is there. Where they cannot be removed, they could not be made.
    let _ = (fs::remove_file(&one), fs::remove_file(&other));
    result.map_err(|why| {
        io::Error::new(why.kind(), format!("no file can get its name in that directory: {why}"))
    })
}

fn rename_by(ways: &[RenameCall], from: &Path, to: &Path) -> io::Result<()> {
    let mut result = Err(io::ErrorKind::Unsupported.into());
    for way in ways {
        result = way(from, to);
        if !result.as_ref().is_err_and(is_not_offered) {
            break;
        }
    }
    result
}

/// Whether a file system answers so to what it does not know: renameat2(2) and link(2) say EINVAL and
/// EPERM; a FUSE program says what it likes, mostly ENOSYS or EOPNOTSUPP.
fn is_not_offered(error: &io::Error) -> bool {
    let errno = error.raw_os_error();
    matches!(errno, Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP | libc::EPERM))
}

fn without_replacing(from: &Path, to: &Path) -> io::Result<()> {
    Ok(renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE)?)
}

fn by_a_link(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        // An NFS server whose answer was lost is asked again, and then says so of its own link.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_one(from, to) => {}
        linked => linked?,
    }
    fs::remove_file(from)
}

fn over_a_placeholder(from: &Path, to: &Path) -> io::Result<()> {
    let wanted = name_of(from)?;
    let placeholder = create_new(to)?;
    let own = id(&placeholder)?;
    // FUSE would rename an open file rather than replace it.
    drop(placeholder);
    let is_ours = || name_of(to).is_ok_and(|id| id == own);
    let renamed = match is_ours() {
        true => fs::rename(from, to),
        false => Err(io::ErrorKind::AlreadyExists.into()),
    };
    match renamed {
        // Again, the answer may have been lost.
        Err(_) if name_of(to).is_ok_and(|id| id == wanted) => Ok(()),
        Err(error) => {
            if is_ours() {
                fs::remove_file(to)?;
            }
            Err(error)
        }
        Ok(()) => Ok(()),
    }
}

fn is_one(one: &Path, other: &Path) -> bool {
    name_of(one).is_ok_and(|one| name_of(other).is_ok_and(|other| other == one))
}

/// The device and the inode of what has this name.
fn name_of(path: &Path) -> io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn unknown(_: &Path, _: &Path) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::ENOSYS))
    }

    #[test]
    fn each_way_names_a_file_and_none_replaces_one() {
        for way in WAYS {
            let directory = tempfile::tempdir().unwrap();
            let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| directory.path().join(name));
            fs::write(&a, "a").unwrap();
            fs::write(&c, "c").unwrap();
            symlink(directory.path().join("none"), &d).unwrap();
            for taken in [&c, &d] {
                let error = way(&a, taken).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
            }
            let file = File::open(&a).unwrap();
            way(&a, &b).unwrap();
            assert!(has_name(&file, &b) && !a.exists());
            assert_eq!(fs::read(&c).unwrap(), b"c");
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3);
            // What is not there leaves nothing.
            way(&a, &directory.path().join("e")).unwrap_err();
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3);
        }
    }

    #[test]
    fn what_a_file_system_does_not_offer_is_done_otherwise() {
        let directory = tempfile::tempdir().unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| directory.path().join(name));
        fs::write(&a, "a").unwrap();
        rename_by(&[unknown, unknown, over_a_placeholder], &a, &b).unwrap();
        rename_by(&[unknown, by_a_link, unknown], &b, &c).unwrap();
        assert_eq!(fs::read(&c).unwrap(), b"a");
        let error = rename_by(&[unknown, unknown], &c, &a).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSYS));
        // What is no matter of the way is not tried otherwise.
        let full: RenameCall = |_, _| Err(io::Error::from_raw_os_error(libc::ENOSPC));
        let error = rename_by(&[full, by_a_link], &c, &a).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        assert!(c.exists() && !a.exists());
    }

    #[test]
    fn an_answer_that_was_lost_is_no_failure() {
        let directory = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| directory.path().join(name));
        fs::write(&a, "a").unwrap();
        fs::hard_link(&a, &b).unwrap();
        by_a_link(&a, &b).unwrap();
        assert!(b.exists() && !a.exists());
    }

    #[test]
    fn a_trial_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        try_naming(&directory.path().join("x")).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        let error = try_naming(&directory.path().join("none/x")).unwrap_err();
        assert!(error.to_string().contains("no file can get its name"), "{error}");
    }
}
