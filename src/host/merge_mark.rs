//! The mark on a file that a deletion writes to: see [`Merging`].

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use jiff::Timestamp;
use rustix::fs::{Timespec, Timestamps, UTIME_OMIT, XattrFlags, fremovexattr, fsetxattr, futimens};
use rustix::io::Errno;

use crate::disk::merge_mark::{MergeStep, Merging};
use crate::host::files::merge_mark::{NAME, of};
use crate::host::files::open;

/// The bits of a mode that let anybody write.
const WRITE_BITS: u32 = 0o222;
/// Reading, writing and execution.
const PERMISSIONS: u32 = 0o777;

/// Marks a file, durably, and lets its owner write to it. One that has a mark keeps what that says of how the
/// file was before anything was done.
pub fn begin(path: &Path, mark: &Merging) -> io::Result<()> {
    let file = open(path)?;
    let before = of(path);
    let goes_on = matches!(mark.how, MergeStep::Pivot(_));
    if before.is_none() || goes_on {
        let mark = Merging { how: mark.how.clone(), ..before.unwrap_or_else(|| mark.clone()) };
        fsetxattr(&file, NAME, mark.to_string().as_bytes(), XattrFlags::empty())?;
        file.sync_all()?;
    }
    let mode = file.metadata()?.mode() & PERMISSIONS;
    file.set_permissions(Permissions::from_mode(mode | 0o200))
}

/// Marks a file that a guest was to be switched to, and was not, as one that gets the data of the overlay.
pub fn take_back(path: &Path, overlay: &Path) -> io::Result<()> {
    let Some(mark) = of(path).filter(|mark| matches!(mark.how, MergeStep::Pivot(_))) else {
        return Ok(());
    };
    let file = open(path)?;
    let mark = Merging { how: MergeStep::Commit(overlay.to_owned()), ..mark };
    fsetxattr(&file, NAME, mark.to_string().as_bytes(), XattrFlags::empty())?;
    file.sync_all()
}

/// Gives a marked file its time again, durably, and takes the write permission if it had none. A file
/// that a guest writes to keeps both as they are.
pub fn settle(path: &Path, live: bool) -> io::Result<()> {
    let Some(mark) = of(path).filter(|_| !live) else { return Ok(()) };
    let file = open(path)?;
    file.sync_all()?;
    if !mark.writable {
        let mode = file.metadata()?.mode() & PERMISSIONS;
        file.set_permissions(Permissions::from_mode(mode & !WRITE_BITS))?;
    }
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: timespec(mark.mtime)?,
    };
    futimens(&file, &times)?;
    file.sync_all()
}

/// Takes the mark away, durably.
pub fn end(path: &Path) -> io::Result<()> {
    let file = match open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    match fremovexattr(&file, NAME) {
        Ok(()) => file.sync_all(),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// As the kernel counts: nanoseconds forward from a whole second, also before 1970.
fn timespec(time: Timestamp) -> io::Result<Timespec> {
    let nanoseconds = time.as_nanosecond();
    let second = i64::try_from(nanoseconds.div_euclid(1_000_000_000)).map_err(io::Error::other)?;
    let rest = i64::try_from(nanoseconds.rem_euclid(1_000_000_000)).map_err(io::Error::other)?;
    Ok(Timespec { tv_sec: second, tv_nsec: rest })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use uuid::Uuid;

    use super::*;
    use crate::host::files;
    use crate::host::files::merge_mark::trouble;

    #[test]
    fn a_file_is_as_it_was_to_who_asks() {
        // On a file system with extended attributes.
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = directory.path().join("a.qcow2");
        fs::write(&path, "before").unwrap();
        files::protect(&path).unwrap();
        let before = files::facts(&path).unwrap();
        assert_eq!((trouble(&path), of(&path)), (None, None));
        let mark = Merging {
            id: Uuid::from_u128(1),
            how: MergeStep::Inside,
            size: before.size,
            mtime: before.mtime,
            writable: before.writable,
        };
        begin(&path, &mark).unwrap();
        fs::write(&path, "after that").unwrap();
        // The second try of a merge does not forget what was before the first.
        begin(&path, &Merging { size: 10, ..mark.clone() }).unwrap();
        let during = files::facts(&path).unwrap();
        assert_eq!(during.merging, Some(mark.clone()));
        let pivot = MergeStep::Pivot("/srv/o.qcow2".into());
        begin(&path, &Merging { how: pivot.clone(), size: 10, ..mark.clone() }).unwrap();
        assert_eq!(of(&path), Some(Merging { how: pivot, ..mark }));
        take_back(&path, Path::new("/srv/o.qcow2")).unwrap();
        assert_eq!(of(&path).unwrap().how, MergeStep::Commit("/srv/o.qcow2".into()));
        take_back(&path, Path::new("/srv/other")).unwrap();
        assert_eq!(of(&path).unwrap().how, MergeStep::Commit("/srv/o.qcow2".into()));
        assert!(during.writable && during.mtime > before.mtime);
        assert!(during.is_as(before.size, before.mtime) && during.written() == before.mtime);
        assert!(!during.is_as(before.size + 1, before.mtime));
        settle(&path, false).unwrap();
        let settled = files::facts(&path).unwrap();
        assert_eq!((settled.mtime, settled.writable, settled.size), (before.mtime, false, 10));
        assert!(settled.is_as(6, before.mtime) && settled.is_as(10, before.mtime));
        end(&path).unwrap();
        end(&path).unwrap();
        let after = files::facts(&path).unwrap();
        assert!(after.is_as(10, before.mtime) && !after.is_as(6, before.mtime));
        settle(&path, false).unwrap();
        end(&directory.path().join("none")).unwrap();
    }
}
