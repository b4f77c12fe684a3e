//! The marks on disks' files that tell from which snapshot their content descends: see
//! [`Mark`](crate::list::mark::Mark). Writing one may fail, as on a file system without extended attributes: it
//! is a hint, and nothing depends on it.

use std::fs::File;
use std::io;
use std::path::Path;

use jiff::Timestamp;
use rustix::fs::{XattrFlags, fgetxattr, fremovexattr, fsetxattr};
use uuid::Uuid;

use crate::host::files;
use crate::list::mark::{LONGEST, Mark};
use crate::record::{DiskRecord, Record};

/// The name of the attribute. Those of the class `user` are for regular files, and follow the file's own
/// permissions (xattr(7)).
const NAME: &str = "user.xl-snapshot.current";

/// The mark on a file, if it has one.
pub fn get(file: &File) -> Option<Mark> {
    let mut text = [0; LONGEST];
    let length = fgetxattr(file, NAME, &mut text).ok()?;
    Mark::parse(text.get(..length)?)
}

/// The same by its path.
pub fn of(path: &Path) -> Option<Mark> {
    get(&files::open(path).ok()?)
}

/// Marks a file; the time is now.
pub fn set(path: &Path, id: Uuid) {
    put(path, Mark { id, at: Timestamp::now() });
}

/// Puts a mark that was taken away on the file again.
pub fn put(path: &Path, mark: Mark) {
    let text = mark.to_string();
    // Where it fails, list goes by dates and says so.
    let _ = write(path, |file| fsetxattr(file, NAME, text.as_bytes(), XattrFlags::empty()));
}

/// Takes a mark away: what the file holds is about to change.
pub fn clear(path: &Path) {
    let _ = write(path, |file| fremovexattr(file, NAME));
}

fn write(path: &Path, how: impl FnOnce(&File) -> rustix::io::Result<()>) -> io::Result<()> {
    Ok(how(&files::open(path)?)?)
}

/// Whether nothing but a mark tells from which snapshot of this kind a file descends.
pub fn needs_one(disk: &DiskRecord) -> bool {
    disk.snapshot.kind().needs_mark()
}

/// Marks the disks of a snapshot that was completed: they go on from it.
pub fn set_all(record: &Record) {
    record.disks.iter().filter(|disk| needs_one(disk)).for_each(|disk| set(&disk.path, record.id));
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn a_mark_changes_nothing_that_proves_a_file() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = directory.path().join("a.qcow2");
        fs::write(&path, "content").unwrap();
        let before = fs::metadata(&path).unwrap();
        assert_eq!(of(&path), None);
        set(&path, Uuid::from_u128(7));
        let mark = of(&path).expect("ext4, XFS and Btrfs have extended attributes");
        assert_eq!(mark.id, Uuid::from_u128(7));
        let after = fs::metadata(&path).unwrap();
        assert_eq!(before.modified().unwrap(), after.modified().unwrap());
        assert_eq!((before.ino(), before.len()), (after.ino(), after.len()));
        clear(&path);
        assert_eq!(of(&path), None);
        put(&path, mark);
        assert_eq!(of(&path), Some(mark));
        let file = File::open(&path).unwrap();
        for odd in ["x".repeat(LONGEST), "x".repeat(LONGEST + 1), String::new()] {
            fsetxattr(&file, NAME, odd.as_bytes(), XattrFlags::empty()).unwrap();
            assert_eq!(get(&file), None);
        }
    }

    #[test]
    fn what_is_no_file_is_not_touched() {
        let directory = tempfile::tempdir().unwrap();
        let [fifo, dangling] = ["fifo", "dangling"].map(|name| directory.path().join(name));
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        symlink("/no/such", &dangling).unwrap();
        for path in [fifo.as_path(), &dangling, Path::new("/dev/null"), directory.path()] {
            set(path, Uuid::nil());
            clear(path);
            assert_eq!(of(path), None);
        }
    }
}
