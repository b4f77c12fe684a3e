//! Where the records of snapshots are that `backup` takes and deletes: in a directory for each domain, in which
//! nothing else is. So it is known what a backup has left that was killed.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::host::{files, list};
use crate::list::ImageEntry;
use crate::memory::peek::Peek;
use crate::memory::{DELETING, deleting_path};
use crate::record::Record;
use crate::tool::quote;

/// A configuration file is small; this is not one.
const MAX_CFG: u64 = 1 << 20;
/// What follows the name of a configuration file in that of a copy which `delete` makes.
const BEFORE_DELETE: &str = ".bak-before-delete-";

/// The directory of a domain, in that of the snapshots, so that `list` finds them.
pub fn directory(domain: &str) -> Result<PathBuf> {
    Ok(list::directory()?.join(format!("{domain}.backup")))
}

/// Makes it.
pub fn make(directory: &Path) -> Result<()> {
    files::make_directories(directory).map_err(|why| trouble(directory, why))
}

/// The snapshots of the domain that backups have left, by their own names.
pub fn left(directory: &Path, domain: &str, prefix: &str) -> Result<Vec<(String, PathBuf)>> {
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let images = list::images(&[], &[directory.to_owned()], &mut Vec::new());
    let images = images.map_err(|why| trouble(directory, why))?;
    let ours = |image: ImageEntry| match image.peek {
        Ok(Peek::Snapshot { record, .. })
            if record.complete
                && record.disks_only.is_some()
                && record.domain.name == domain
                && record.name.as_str().starts_with(prefix) =>
        {
            let path = image.path.to_str()?;
            let path = path.strip_suffix(DELETING).unwrap_or(path);
            Some((record.name.to_string(), path.into()))
        }
        _ => None,
    };
    Ok(images.into_iter().filter_map(ours).collect())
}

/// The first of several names that something has.
pub fn first_there(names: &[PathBuf]) -> Option<&PathBuf> {
    names.iter().find(|name| fs::symlink_metadata(name).is_ok())
}

/// Whether a snapshot is not there any more, nor half deleted. What is not mounted is not gone.
pub fn is_gone(record: &Path) -> bool {
    let missing = |path: &Path| {
        fs::symlink_metadata(path).is_err_and(|why| why.kind() == io::ErrorKind::NotFound)
    };
    record.parent().is_some_and(Path::is_dir) && missing(record) && missing(&deleting_path(record))
}

/// Removes the copies of xl configuration files that named the overlays of a snapshot until it was deleted: the copy
/// that its `create` made, if the file is as it was then, and those of its deletion, also of one that was killed. `known`
/// are files and such copies of them.
pub fn forget_copies<'a>(record: &Record, known: impl Iterator<Item = (&'a Path, &'a Path)>) {
    let mut files: BTreeSet<PathBuf> = record.domain.cfg.iter().cloned().collect();
    for (file, copy) in known {
        files.insert(file.to_owned());
        forget(copy);
    }
    let overlays: Vec<_> = record
        .disks
        .iter()
        .filter_map(|disk| Some(disk.snapshot.kind().new_file()?.path.as_os_str().as_bytes()))
        .collect();
    for file in files {
        let (Some(directory), Some(name)) = (file.parent(), file.file_name()) else { continue };
        let of = |what: &str| [name.as_bytes(), what.as_bytes()].concat();
        let (before, between) = (of(&format!(".bak-{}", record.name)), of(BEFORE_DELETE));
        let now = read(&file);
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let (copy, name) = (entry.path(), entry.file_name());
            let is_its = if name.as_bytes() == before {
                now.is_some() && read(&copy) == now
            } else {
                name.as_bytes().starts_with(&between)
                    && read(&copy).is_some_and(|text| names_one_of(&text, &overlays))
            };
            if is_its {
                forget(&copy);
            }
        }
    }
}

fn names_one_of(text: &[u8], paths: &[&[u8]]) -> bool {
    paths
        .iter()
        .filter(|path| !path.is_empty())
        .any(|path| text.windows(path.len()).any(|part| part == *path))
}

/// One that stays does no harm.
fn forget(copy: &Path) {
    drop(files::remove(copy));
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    files::open(path).ok()?.take(MAX_CFG).read_to_end(&mut text).ok()?;
    Some(text)
}

fn trouble(directory: &Path, why: io::Error) -> Error {
    Error::refused(format!("The directory {}", quote(directory)))
        .because(why)
        .hint("run this as root; XL_SNAPSHOT_DIR names another directory of snapshots")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::header::MARK;
    use crate::record::DisksOnly;
    use crate::support::record::sample;

    #[test]
    fn copies_of_a_file_go_once_it_is_as_it_was() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name);
        let mut record = Record { name: "backup-1".parse().unwrap(), ..sample() };
        record.domain.cfg = Some(path("web1.cfg"));
        let overlays = record.disks.iter().filter_map(|disk| disk.snapshot.kind().new_file());
        let overlay = overlays.map(|file| file.path.display().to_string()).next().unwrap();
        let known = path("web1.cfg.bak-before-delete-2");
        for (now, kept) in [("old", false), ("other", true)] {
            fs::write(path("web1.cfg"), now).unwrap();
            for (name, text) in [
                ("web1.cfg.bak-backup-1", "old"),
                // Of a deletion that was killed, and of another snapshot.
                ("web1.cfg.bak-before-delete-1", &format!("disk = ['{overlay}']")),
                ("web1.cfg.bak-before-delete-3", "disk = ['/srv/other']"),
                ("web1.cfg.bak-mine", &overlay),
                ("web1.cfg.bak-before-delete-2", "whatever"),
            ] {
                fs::write(path(name), text).unwrap();
            }
            forget_copies(&record, [(path("web1.cfg").as_path(), known.as_path())].into_iter());
            assert_eq!(path("web1.cfg.bak-backup-1").exists(), kept);
            assert!(!path("web1.cfg.bak-before-delete-1").exists() && !known.exists());
            assert!(path("web1.cfg.bak-before-delete-3").exists());
            assert!(path("web1.cfg.bak-mine").exists());
            assert_eq!(fs::read_to_string(path("web1.cfg")).unwrap(), now);
        }
    }

    #[test]
    fn one_that_is_half_deleted_or_not_mounted_is_not_gone() {
        let place = tempfile::tempdir().unwrap();
        let record = place.path().join("backup-1.record");
        assert!(is_gone(&record));
        assert!(!is_gone(&place.path().join("not-mounted/backup-1.record")));
        fs::write(deleting_path(&record), "").unwrap();
        assert!(!is_gone(&record));
        fs::rename(deleting_path(&record), &record).unwrap();
        assert!(!is_gone(&record));
    }

    #[test]
    fn what_backups_have_left_is_known_by_its_record() {
        let place = tempfile::tempdir().unwrap();
        let save = |file: &str, name: &str, change: &dyn Fn(&mut Record)| {
            let name = name.parse().unwrap();
            let only = Some(DisksOnly::CrashConsistent);
            let mut record = Record { name, disks_only: only, image_size: 0, ..sample() };
            record.complete = true;
            change(&mut record);
            fs::write(place.path().join(file), MARK.to_owned() + &record.to_toml()).unwrap();
        };
        save("backup-1.record", "backup-1", &|_| {});
        save("backup-2.record.deleting", "backup-2", &|_| {});
        save("snap.record", "snap", &|_| {});
        save("backup-3.record", "backup-3", &|record| record.domain.name = "other".into());
        save("backup-4.record", "backup-4", &|record| record.complete = false);
        fs::write(place.path().join("backup-5.record"), "no record").unwrap();
        let mut left = left(place.path(), &sample().domain.name, "backup-").unwrap();
        left.sort();
        let path = |name: &str| (name.to_owned(), place.path().join(format!("{name}.record")));
        assert_eq!(left, [path("backup-1"), path("backup-2")]);
        let nowhere = place.path().join("nowhere");
        assert_eq!(super::left(&nowhere, "web1", "backup-").unwrap(), []);
    }
}
