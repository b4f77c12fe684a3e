//! Where the records of snapshots are that `backup` takes and deletes: in a directory for each domain, in which
//! nothing else is. So it is known what a backup has left that was killed.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::host::{files, list};
use crate::list::ImageSeen;
use crate::memory::DELETING;
use crate::memory::peek::Peek;
use crate::tool::quote;

/// A configuration file is small; this is not one.
const MAX_CFG: u64 = 1 << 20;

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
    let ours = |image: ImageSeen| match image.peek {
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

/// Removes the copies of a file that was replaced and replaced again: that of `before` if the file is as it was then, and
/// those of in between.
pub fn forget_copies<'a>(file: &Path, before: &'a Path, between: impl Iterator<Item = &'a Path>) {
    let same = || Some(read(file)? == read(before)?);
    let before = (same() == Some(true)).then_some(before);
    // One that stays does no harm.
    between.chain(before).for_each(|copy| drop(files::remove(copy)));
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
    use std::fs;

    use super::*;
    use crate::memory::header::MARK;
    use crate::record::{DisksOnly, Record};
    use crate::support::record::sample;

    #[test]
    fn copies_of_a_file_go_once_it_is_as_it_was() {
        let place = tempfile::tempdir().unwrap();
        let [file, before, between] =
            ["f", "f.bak-1", "f.bak-2"].map(|name| place.path().join(name));
        for (now, kept) in [("old", false), ("other", true)] {
            fs::write(&file, now).unwrap();
            fs::write(&before, "old").unwrap();
            fs::write(&between, "overlay").unwrap();
            forget_copies(&file, &before, [between.as_path()].into_iter());
            assert_eq!((before.exists(), between.exists()), (kept, false));
            assert_eq!(fs::read_to_string(&file).unwrap(), now);
        }
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
