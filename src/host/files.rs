//! Files: looking at them, making them without touching what is there, making them durable.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{
    DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown,
};
use std::path::Path;

use jiff::Timestamp;
use nix::libc::{self, O_NOFOLLOW, O_PATH, O_TMPFILE};
use nix::unistd::{AccessFlags, access, geteuid};
use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, ioctl_ficlone, statfs, statx};

pub use self::identity::{PATIENCE, as_it_answers, device, identities, identity, is_silent, same};
pub use self::naming::{has_name, rename_directory, rename_new, try_naming};
pub use self::space::{Room, file_system, free_space, room};
use crate::disk::FileFacts;

mod identity;
pub mod merge_mark;
mod naming;
mod space;

const WRITE_BITS: u32 = 0o222;
/// Reading, writing and execution: not what makes a program run as its owner.
const PERMISSIONS: u32 = 0o777;
/// What a file's mode lets its group and others do.
const OTHERS: u32 = 0o077;
/// The same of writing.
const OTHERS_WRITE: u32 = 0o022;

/// File systems that may give a file another inode number when they are mounted again: FUSE without `use_ino`
/// (libfuse, `lib/fuse.c`), CIFS without `serverino` (mount.cifs(8)), and FAT, which has none (fs/fat/inode.c and
/// fs/exfat/inode.c, `iunique`). Their numbers are those of linux/magic.h.
const PASSING_INODES: [u64; 6] = [
    0x6573_5546, // FUSE
    0xff53_4d42, // CIFS
    0xfe53_4d42, // SMB2
    0x517b,      // SMB
    0x4d44,      // vfat
    0x2011_bab0, // exFAT
];

/// What is known of a file.
pub fn facts(path: &Path) -> io::Result<FileFacts> {
    let meta = fs::metadata(path)?;
    if !meta.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let nanoseconds = i32::try_from(meta.mtime_nsec()).unwrap_or(0);
    Ok(FileFacts {
        size: meta.len(),
        mtime: Timestamp::new(meta.mtime(), nanoseconds).map_err(io::Error::other)?,
        inode: meta.ino(),
        lasting: !statfs(path)
            .is_ok_and(|stat| PASSING_INODES.contains(&(stat.f_type as u64 & 0xffff_ffff))),
        device: meta.dev(),
        writable: meta.mode() & WRITE_BITS != 0,
        merging: merge_mark::of(path),
    })
}

/// Why a file cannot be replaced though its directory can be written to, if so: an attribute (chattr(1)).
pub fn fixed(path: &Path) -> Option<&'static str> {
    let meta = statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::empty()).ok()?;
    let has = |attribute| meta.stx_attributes.contains(attribute);
    match () {
        () if has(StatxAttributes::IMMUTABLE) => Some("immutable (chattr +i)"),
        () if has(StatxAttributes::APPEND) => Some("append-only (chattr +a)"),
        () => None,
    }
}

/// Why a file cannot be written to, not even by root, if so.
pub fn unwritable(path: &Path) -> Option<String> {
    let fixed = fixed(path).map(|how| format!("it is {how}"));
    fixed.or_else(|| access(path, AccessFlags::W_OK).err().map(|error| error.desc().to_owned()))
}

/// Why a file cannot get another name though its directory can be written to, if so. A link is looked at itself,
/// not what it leads to.
pub fn pinned(path: &Path) -> Option<&'static str> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::SYMLINK_NOFOLLOW;
    let meta = statx(CWD, path, flags, StatxFlags::empty()).ok()?;
    let has = |attribute| meta.stx_attributes.contains(attribute);
    match () {
        () if has(StatxAttributes::IMMUTABLE) => Some("immutable (chattr +i)"),
        () if has(StatxAttributes::APPEND) => Some("append-only (chattr +a)"),
        () if has(StatxAttributes::MOUNT_ROOT) => Some("a mount point (mount --bind)"),
        () => None,
    }
}

/// Why a new file cannot be made at `path`, if it cannot.
pub fn trouble(path: &Path) -> Option<String> {
    // Not followed: a dangling link is in the way as well.
    match fs::symlink_metadata(path) {
        Ok(_) => return Some(format!("{} exists", path.display())),
        // The directory may be the trouble: below.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // A name that is too long, for one.
        Err(error) => return Some(format!("{}: {error}", path.display())),
    }
    let directory = path.parent()?;
    match fs::metadata(directory) {
        Err(error) => Some(format!("the directory {}: {error}", directory.display())),
        Ok(meta) if !meta.is_dir() => Some(format!("{} is not a directory", directory.display())),
        Ok(_) => match access(directory, AccessFlags::W_OK) {
            Ok(()) => None,
            Err(error) => Some(format!("the directory {}: {}", directory.display(), error.desc())),
        },
    }
}

/// Why a file that is not found may be there all the same: its file system does not answer, or is not mounted. An empty
/// directory may be where it would be mounted.
pub fn away(path: &Path) -> Option<String> {
    let shown = path.display();
    // A relative path is relative to where xl is called.
    let known = path.is_absolute() && !path.starts_with("/dev");
    if !known || identities(&[path])[0].is_some() {
        return None;
    }
    let parent = path.parent()?;
    if is_silent(path) || identities(&[parent])[0].is_none() {
        return Some(format!(
            "{shown} cannot be seen: {} is not there, or does not answer",
            parent.display()
        ));
    }
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let empty = fs::read_dir(parent).is_ok_and(|mut entries| entries.next().is_none());
            empty.then(|| format!("{shown} cannot be seen: {} is empty", parent.display()))
        }
        Err(error) => Some(format!("{shown} cannot be seen: {error}")),
        Ok(_) => None,
    }
}

/// Whether nobody but us may have written to a file or directory, of which this is known without following links.
pub fn is_ours(meta: &Metadata) -> bool {
    meta.uid() == geteuid().as_raw() && !meta.is_symlink() && meta.mode() & OTHERS_WRITE == 0
}

/// Makes directories for root alone, and their names durable.
pub fn make_directories(path: &Path) -> io::Result<()> {
    let missing: Vec<_> = path.ancestors().take_while(|directory| !directory.exists()).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    missing.into_iter().rev().try_for_each(sync_directory)
}

/// Makes a new file for root alone; never opens one that exists, never follows a link.
///
/// # Errors
///
/// Also where the file system has no permissions that would keep others out (vfat without `umask`).
pub fn create_new(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .custom_flags(O_NOFOLLOW)
        .mode(0o600)
        .open(path)?;
    let for_root_alone = || -> io::Result<()> {
        // Whatever the umask took away.
        let changed = file.set_permissions(Permissions::from_mode(0o600));
        match file.metadata()?.mode() & OTHERS {
            0 => Ok(()),
            _ => Err(changed.err().unwrap_or_else(|| {
                io::Error::other("its file system does not store permissions: others could read it")
            })),
        }
    };
    match for_root_alone() {
        Ok(()) => Ok(file),
        Err(error) => {
            fs::remove_file(path)?;
            Err(error)
        }
    }
}

/// Makes a new file that shares its content with `from`, for the same owner and with the same
/// permissions, but for writing.
pub fn clone_new(from: &Path, to: &Path, writable: bool) -> io::Result<()> {
    let source = open(from)?;
    let meta = source.metadata()?;
    let file = create_new(to)?;
    let cloned = ioctl_ficlone(&file, &source).map_err(io::Error::from).and_then(|()| {
        fchown(&file, Some(meta.uid()), Some(meta.gid()))?;
        let mode = if writable { meta.mode() | 0o200 } else { meta.mode() & !WRITE_BITS };
        file.set_permissions(Permissions::from_mode(mode))
    });
    cloned.inspect_err(|_| drop(fs::remove_file(to)))
}

/// Gives a new file the owner of another one, who may be the only user that a QEMU can open it as.
pub fn give_owner_of(like: &Path, path: &Path) -> io::Result<()> {
    let file = open_no_link(path)?;
    let (meta, own) = (fs::metadata(like)?, file.metadata()?);
    if (meta.uid(), meta.gid()) != (own.uid(), own.gid()) {
        fchown(&file, Some(meta.uid()), Some(meta.gid()))?;
    }
    Ok(())
}

/// Why a file cannot be cloned, if it cannot: tried with a file that has no name and is gone at once.
pub fn clone_trouble(path: &Path) -> Option<String> {
    if fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink()) {
        return Some("its path is a symbolic link; name the file itself".into());
    }
    let attempt = || -> io::Result<()> {
        let source = open(path)?;
        let directory = path.parent().ok_or(io::ErrorKind::NotFound)?;
        let scratch =
            OpenOptions::new().write(true).custom_flags(O_TMPFILE).mode(0o600).open(directory)?;
        Ok(ioctl_ficlone(&scratch, &source)?)
    };
    attempt().err().map(|error| match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::EXDEV | libc::ENOTTY | libc::EINVAL) => {
            "its file system does not share content between files (XFS and Btrfs do)".to_owned()
        }
        _ => error.to_string(),
    })
}

/// Opens a file for reading and writing, not through a link.
pub fn open_no_link(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(O_NOFOLLOW).open(path)
}

/// The device and the inode of an open file.
pub fn id(file: &File) -> io::Result<(u64, u64)> {
    let meta = file.metadata()?;
    Ok((meta.dev(), meta.ino()))
}

/// Opens a file for reading, and nothing else: opening a FIFO would wait for a writer, and opening some
/// devices does something, such as starting a watchdog.
pub fn open(path: &Path) -> io::Result<File> {
    // It is only named; no driver hears of it (open(2), O_PATH).
    let place = OpenOptions::new().read(true).custom_flags(O_PATH).open(path)?;
    if !place.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    File::open(format!("/proc/self/fd/{}", place.as_raw_fd()))
}

/// The first and the last bytes of a file.
pub fn ends<const N: usize>(path: &Path) -> io::Result<[[u8; N]; 2]> {
    let file = open(path)?;
    let length = file.metadata()?.len();
    let last = length.checked_sub(N as u64).ok_or(io::ErrorKind::UnexpectedEof)?;
    let mut ends = [[0; N]; 2];
    file.read_exact_at(&mut ends[0], 0)?;
    file.read_exact_at(&mut ends[1], last)?;
    Ok(ends)
}

/// Some bytes of a file.
pub fn part<const N: usize>(path: &Path, offset: u64) -> io::Result<[u8; N]> {
    let mut part = [0; N];
    open(path)?.read_exact_at(&mut part, offset)?;
    Ok(part)
}

/// Takes everybody's write permission and returns the permissions as they were.
///
/// # Errors
///
/// Also where the file system keeps no permissions: nothing would show that others rest on the file.
pub fn protect(path: &Path) -> io::Result<Permissions> {
    let file = open(path)?;
    let before = file.metadata()?.mode() & PERMISSIONS;
    file.set_permissions(Permissions::from_mode(before & !WRITE_BITS))?;
    match file.metadata()?.mode() & WRITE_BITS {
        0 => Ok(Permissions::from_mode(before)),
        _ => Err(io::Error::other(
            "its file system does not store permissions: nothing would mark it as a base of other images",
        )),
    }
}

/// Gives a file the write permissions again that [`protect`] took.
pub fn unprotect(path: &Path, before: &Permissions) -> io::Result<()> {
    // Through one descriptor: there may be another file by now where others may write to the directory.
    let file = open(path)?;
    let now = file.metadata()?.mode() & PERMISSIONS;
    file.set_permissions(Permissions::from_mode(now | before.mode() & WRITE_BITS))
}

/// Removes a file; one that is gone needs nothing.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes a file and its name durable.
pub fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()?;
    sync_directory(path)
}

/// Makes what is cached of a file or block device durable, whoever has written it (fdatasync(2)).
pub fn write_back(path: &Path) -> io::Result<()> {
    // Without waiting: what xl was told is an image may be anything.
    File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?.sync_data()
}

/// Makes the name of a file durable.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    match File::open(path.parent().ok_or(io::ErrorKind::NotFound)?)?.sync_all() {
        // The answer of a file system that has nothing to do for it (fsync(2)).
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        synced => synced,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn what_is_not_found_is_told_from_what_is_not_mounted() {
        let directory = tempfile::tempdir().unwrap();
        let mounted = directory.path().join("mounted");
        fs::create_dir(&mounted).unwrap();
        let file = mounted.join("a.qcow2");
        assert!(away(&file).unwrap().contains("is empty"));
        fs::write(mounted.join("another"), "").unwrap();
        assert_eq!(away(&file), None);
        fs::write(&file, "").unwrap();
        assert_eq!(away(&file), None);
        assert!(away(&directory.path().join("no/such/a.qcow2")).unwrap().contains("is not there"));
        assert!(away(&file.join("below")).is_some());
        assert_eq!(away(Path::new("/dev/vg0/gone")), None);
        assert_eq!(away(Path::new("a.qcow2")), None);
    }

    #[test]
    fn what_another_has_written_is_written_back() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), [7; 4096]).unwrap();
        write_back(file.path()).unwrap();
        let path = file.into_temp_path();
        fs::remove_file(&path).unwrap();
        assert_eq!(write_back(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn nothing_that_exists_is_opened_or_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let (a, b) = (directory.path().join("a"), directory.path().join("b"));
        symlink(&b, &a).unwrap();
        assert!(create_new(&a).is_err());
        assert!(!b.exists());
        assert!(trouble(&a).unwrap().contains("exists"));
        assert_eq!(trouble(&b), None);
        create_new(&b).unwrap();
        let c = directory.path().join("c");
        fs::write(&c, "c").unwrap();
        assert!(rename_new(&b, &c).is_err());
        assert_eq!(fs::read(&c).unwrap(), b"c");
        let d = directory.path().join("d");
        rename_new(&b, &d).unwrap();
        assert!(d.exists() && !b.exists());
    }

    #[test]
    fn files_are_for_root_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        let file = create_new(&path).unwrap();
        assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn the_write_permission_goes_and_comes_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        fs::write(&path, "a").unwrap();
        let before = facts(&path).unwrap();
        assert!(before.writable);
        let permissions = protect(&path).unwrap();
        let after = facts(&path).unwrap();
        assert!(!after.writable);
        assert_eq!(after.mtime, before.mtime);
        unprotect(&path, &permissions).unwrap();
        assert_eq!(facts(&path).unwrap(), before);
        // Of a file that is another one by now, nothing else changes.
        fs::set_permissions(&path, Permissions::from_mode(0o4640)).unwrap();
        unprotect(&path, &Permissions::from_mode(0o666)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o662 | 0o640);
    }

    #[test]
    fn only_files_are_opened() {
        let directory = tempfile::tempdir().unwrap();
        let [fifo, link, file] = ["f", "l", "a"].map(|name| directory.path().join(name));
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        symlink(&fifo, &link).unwrap();
        fs::write(&file, "a").unwrap();
        for path in [&fifo, &link, Path::new("/dev/zero"), directory.path()] {
            // Without waiting.
            assert!(open(path).unwrap_err().to_string().contains("not a regular file"));
        }
        assert_eq!(io::read_to_string(open(&file).unwrap()).unwrap(), "a");
    }

    #[test]
    fn a_link_is_not_cloned() {
        let directory = tempfile::tempdir().unwrap();
        let (a, b) = (directory.path().join("a"), directory.path().join("b"));
        fs::write(&a, "a").unwrap();
        symlink(&a, &b).unwrap();
        assert!(clone_trouble(&b).unwrap().contains("its path is a symbolic link"));
        assert!(clone_trouble(&a).is_none_or(|why| !why.contains("link")));
        assert!(clone_trouble(&directory.path().join("c")).is_some());
        // Whatever the file system can do: looking leaves nothing behind.
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }

    #[test]
    fn trouble_is_named() {
        assert!(trouble(Path::new("/no/such/directory/a")).unwrap().contains("/no/such/directory"));
        let long = Path::new("/tmp").join("x".repeat(256));
        assert!(trouble(&long).unwrap().contains("File name too long"));
        assert!(facts(Path::new("/")).is_err());
        assert!(open(Path::new("/")).is_err());
    }

    #[test]
    fn a_new_file_gets_the_owner_of_its_base() {
        let [base, new] = [(); 2].map(|()| tempfile::NamedTempFile::new().unwrap());
        // Only root can give a file away; for anybody else both are his own.
        let given = fchown(base.as_file(), Some(7), Some(8)).is_ok();
        give_owner_of(base.path(), new.path()).unwrap();
        let meta = new.as_file().metadata().unwrap();
        let wanted = base.as_file().metadata().unwrap();
        assert_eq!((meta.uid(), meta.gid()), (wanted.uid(), wanted.gid()));
        assert_eq!(meta.mode() & 0o777, 0o600);
        assert!(!given || meta.uid() == 7);
    }
}
