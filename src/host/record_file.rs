//! The record of a snapshot without memory, in a file of its own: written under a `.partial` name, and
//! found again behind a snapshot's name.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::host::files;
use crate::host::image::{FileId, NotComplete, give_name};
use crate::memory::header::{MARK, MAX_RECORD};
use crate::memory::partial_path;
use crate::record::Record;

/// A record being written.
#[derive(Debug)]
pub struct RecordFile {
    file: File,
    path: PathBuf,
}

impl RecordFile {
    /// Makes the file, for root alone, and writes the record as it is, not complete.
    pub fn start(path: &Path, record: &Record) -> io::Result<RecordFile> {
        let file = files::create_new(&partial_path(path))?;
        let this = RecordFile { file, path: path.to_owned() };
        // Durable, so that what a power cut leaves can be found; and what naming it takes is tried.
        let begun = this
            .write(record)
            .and_then(|()| this.file.sync_all())
            .and_then(|()| files::sync_directory(path))
            .and_then(|()| files::try_naming(path));
        match begun {
            Ok(()) => Ok(this),
            Err(error) => {
                this.discard()?;
                Err(error)
            }
        }
    }

    /// Takes over the file that another process created.
    pub fn adopt(path: &Path, made: FileId) -> io::Result<RecordFile> {
        let path = path.to_owned();
        [partial_path(&path), path.clone()]
            .iter()
            .filter_map(|path| files::open_no_link(path).ok())
            .find(|file| files::id(file).is_ok_and(|id| id == made))
            .map(|file| RecordFile { file, path })
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Which file it is.
    pub fn id(&self) -> io::Result<FileId> {
        files::id(&self.file)
    }

    /// Writes the complete record, makes it durable and gives it its name.
    ///
    /// # Errors
    ///
    /// It may have its name already; [`RecordFile::discard`] takes that back.
    pub fn complete(&self, record: &Record) -> Result<(), NotComplete> {
        self.write(record).and_then(|()| self.file.sync_all()).map_err(NotComplete::Unwritten)?;
        give_name(&self.file, &self.path)
    }

    /// Its final name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it has its name.
    pub fn is_complete(&self) -> bool {
        files::has_name(&self.file, &self.path)
    }

    /// Removes it, under whichever name.
    pub fn discard(&self) -> io::Result<()> {
        [partial_path(&self.path), self.path.clone()]
            .iter()
            .filter(|name| files::has_name(&self.file, name))
            .try_for_each(|name| files::remove(name))
    }

    fn write(&self, record: &Record) -> io::Result<()> {
        let text = MARK.to_owned() + &record.to_toml();
        if text.len() > MAX_RECORD {
            return Err(io::Error::other("it is longer than 1 MiB"));
        }
        self.file.set_len(0)?;
        self.file.write_all_at(text.as_bytes(), 0)
    }
}

/// Whether a file begins as a record does: whatever its name, it is one.
pub fn is_record(path: &Path) -> bool {
    let mut start = [0; MARK.len()];
    let read = files::open(path).and_then(|mut file| file.read_exact(&mut start));
    read.is_ok() && start == MARK.as_bytes()
}

/// The record in an open file that is one, complete or not; `None` if it is none.
///
/// # Errors
///
/// If it begins as one and is damaged.
pub fn in_file(file: &File) -> io::Result<Option<Record>> {
    let mut start = [0; MARK.len()];
    if file.read_exact_at(&mut start, 0).is_err() || start != MARK.as_bytes() {
        return Ok(None);
    }
    let mut text = String::new();
    let mut file = file;
    file.seek(SeekFrom::Start(0))?;
    file.take(MAX_RECORD as u64 + 1).read_to_string(&mut text)?;
    if text.len() > MAX_RECORD {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Record::parse(&text).map(Some).map_err(io::Error::other)
}

/// Reads a record from a file.
///
/// # Errors
///
/// If it is damaged, or was never completed.
pub fn read(path: &Path) -> Result<Record> {
    let refused = || {
        Error::refused(format!("Record {}", path.display()))
            .hint("use it as create wrote it; you can still revert the disks that it names by hand")
    };
    let mut text = String::new();
    files::open(path)
        .and_then(|file| file.take(MAX_RECORD as u64 + 1).read_to_string(&mut text))
        .map_err(|why| refused().because(why))?;
    if text.len() > MAX_RECORD {
        return Err(refused().because("it is longer than 1 MiB"));
    }
    let record = Record::parse(&text).map_err(|why| refused().because(why))?;
    if !record.complete || record.disks_only.is_none() {
        return Err(refused().because("it was never completed: it lacks the proofs of the disks"));
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::record::DisksOnly;
    use crate::support::record::sample;

    fn record(complete: bool) -> Record {
        Record { complete, disks_only: Some(DisksOnly::Offline), ..sample() }
    }

    #[test]
    fn a_record_has_its_name_only_when_it_is_complete() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web1.record");
        let partial = partial_path(&path);
        let file = RecordFile::start(&path, &record(false)).unwrap();
        assert!(!path.exists() && !file.is_complete());
        assert_eq!(fs::metadata(&partial).unwrap().mode() & 0o777, 0o600);
        // Renamed by hand, it is not taken.
        assert!(is_record(&partial));
        assert!(read(&partial).unwrap_err().chain()[1].contains("never completed"));
        assert!(RecordFile::start(&path, &record(false)).is_err());
        let adopted = RecordFile::adopt(&path, file.id().unwrap()).unwrap();
        adopted.complete(&record(true)).unwrap();
        assert!(file.is_complete() && !partial.exists());
        assert_eq!(read(&path).unwrap(), record(true));
        RecordFile::adopt(&path, file.id().unwrap()).unwrap();
        file.discard().unwrap();
        assert!(!path.exists());
        assert!(RecordFile::adopt(&path, file.id().unwrap()).is_err());
    }

    #[test]
    fn nothing_is_overwritten_and_nothing_of_others_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web1.record");
        let file = RecordFile::start(&path, &record(false)).unwrap();
        fs::write(&path, "theirs").unwrap();
        assert!(file.complete(&record(true)).is_err());
        file.discard().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"theirs");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        assert!(!is_record(&path));
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        let refused = |text: &str, words: &str| {
            fs::write(&path, text).unwrap();
            let error = read(&path).unwrap_err();
            assert_eq!(error.exit_code(), 3);
            assert!(error.chain().join(": ").contains(words), "{:?}", error.chain());
        };
        let whole = MARK.to_owned() + &record(true).to_toml();
        refused(&whole[..whole.len() / 2], "not well-formed");
        refused(&"#\n".repeat(MAX_RECORD), "longer than 1 MiB");
        refused(&(MARK.to_owned() + &sample().to_toml()), "never completed");
        refused(&whole.replace("/srv/a.qcow2", "nbd:x"), "impossible path");
        assert!(!is_record(Path::new("/")) && !is_record(Path::new("/no/such")));
    }
}
