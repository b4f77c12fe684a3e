//! The memory image on disk: writing one under a `.partial` name, opening one to revert to.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::host::files;
use crate::memory::{Image, PARTIAL, header, partial_path};
use crate::plan::{ImageStart, Target};
use crate::record::Record;

/// An image being written.
#[derive(Debug)]
pub struct ImageWriter {
    file: File,
    target: Target,
    config: String,
    space: usize,
}

/// Which file it is: its device and inode.
pub type FileId = (u64, u64);

impl ImageWriter {
    /// Makes the file (or takes standard output) and writes the header with a record that is not
    /// complete.
    pub fn start(start: &ImageStart) -> io::Result<Self> {
        let file = match &start.target {
            Target::Stdout => File::from(io::stdout().as_fd().try_clone_to_owned()?),
            Target::File(path) => files::create_new(&partial_path(path))?,
        };
        let mut writer = ImageWriter {
            file,
            target: start.target.clone(),
            config: start.config.clone(),
            space: header::record_space(&start.record),
        };
        if let Err(error) = writer.header(&start.record).and_then(|h| writer.file.write_all(&h)) {
            writer.discard()?;
            return Err(error);
        }
        Ok(writer)
    }

    /// Goes on with an image that another process began: the file that it made, or standard output.
    pub fn adopt(start: &ImageStart, made: FileId) -> io::Result<Self> {
        let file = match &start.target {
            Target::Stdout => File::from(io::stdout().as_fd().try_clone_to_owned()?),
            Target::File(path) => [partial_path(path), path.clone()]
                .iter()
                .filter_map(|path| files::open_no_link(path).ok())
                .find(|file| files::id(file).is_ok_and(|id| id == made))
                .ok_or(io::ErrorKind::NotFound)?,
        };
        Ok(ImageWriter {
            file,
            target: start.target.clone(),
            config: start.config.clone(),
            space: header::record_space(&start.record),
        })
    }

    /// Its name until it is complete; it has none on standard output.
    pub fn partial(&self) -> Option<PathBuf> {
        match &self.target {
            Target::Stdout => None,
            Target::File(path) => Some(partial_path(path)),
        }
    }

    /// Which file it is.
    pub fn id(&self) -> io::Result<FileId> {
        files::id(&self.file)
    }

    /// Where the guest's memory goes.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Writes the complete record, makes the file durable and gives it its name. Returns its
    /// length in bytes, where that is known.
    pub fn complete(mut self, record: &mut Record) -> io::Result<Option<u64>> {
        record.complete = true;
        let Target::File(path) = &self.target else {
            self.file.write_all(&header::trailer(record))?;
            return Ok(None);
        };
        record.image_size = self.file.metadata()?.len();
        let header = self.header(record)?;
        self.file.write_all_at(&header, 0)?;
        self.file.sync_all()?;
        // It has its name already if a process was killed here.
        if !self.has_name(path) {
            files::rename_new(&partial_path(path), path)?;
        }
        // Whoever may write to the directory could have put something else under the name.
        if !self.has_name(path) {
            return Err(io::Error::other(format!(
                "somebody replaced {}: the image is lost",
                partial_path(path).display()
            )));
        }
        files::sync_directory(path)?;
        Ok(Some(record.image_size))
    }

    /// Removes the unfinished file.
    pub fn discard(self) -> io::Result<()> {
        match &self.target {
            Target::Stdout => Ok(()),
            Target::File(path) => {
                let partial = partial_path(path);
                if self.has_name(&partial) { files::remove(&partial) } else { Ok(()) }
            }
        }
    }

    /// Whether the file has this name.
    fn has_name(&self, path: &Path) -> bool {
        let named = fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
        named.is_some() && named == self.id().ok()
    }

    fn header(&self, record: &Record) -> io::Result<Vec<u8>> {
        header::encode(&self.config, record, self.space).map_err(io::Error::other)
    }
}

/// An image to revert to, read and found whole.
#[derive(Debug)]
pub struct Source {
    /// The file.
    pub file: File,
    /// What stands in it.
    pub image: Image,
    /// As the user named it.
    pub name: String,
}

impl Source {
    /// Opens the image at `path`, or takes standard input for `-`.
    ///
    /// What cannot be read twice is copied to an unlinked temporary file first: nothing is
    /// destroyed before the whole image is known to be there.
    pub fn open(path: &Path) -> Result<Source> {
        let name = path.display().to_string();
        let trouble = |error: io::Error| Error::refused(format!("Image {name}")).because(error);
        if path.extension().is_some_and(|extension| extension == &PARTIAL[1..]) {
            return Err(Error::refused(format!("Image {name}"))
                .because("it was never completed: its snapshot failed or still runs")
                .hint("if no create runs, it is useless: remove it"));
        }
        let mut file = if path.as_os_str() == "-" {
            standard_input().map_err(trouble)?
        } else {
            files::open(path).map_err(trouble)?
        };
        let image = Image::read(&mut file)
            .map_err(|why| Error::refused(format!("Image {name}")).because(why))?;
        Ok(Source { file, image, name })
    }

    /// The file, at the first byte of the stream.
    pub fn stream(&mut self) -> io::Result<&mut File> {
        self.file.seek(SeekFrom::Start(self.image.stream_offset))?;
        Ok(&mut self.file)
    }
}

fn standard_input() -> io::Result<File> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return Err(io::Error::other("standard input is a terminal, not an image"));
    }
    let mut input = File::from(stdin.as_fd().try_clone_to_owned()?);
    if input.metadata()?.is_file() {
        return Ok(input);
    }
    // Memory images are large: /var/tmp is on a disk where /tmp may be memory.
    let mut copy = tempfile::tempfile_in("/var/tmp")?;
    io::copy(&mut input, &mut copy)?;
    copy.rewind()?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::sample;

    #[test]
    fn an_image_has_its_name_only_when_complete() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s1.xlsave");
        let mut record = sample();
        record.complete = false;
        let start = ImageStart {
            target: Target::File(path.clone()),
            config: "{}".into(),
            record: record.clone(),
        };
        let writer = ImageWriter::start(&start).unwrap();
        assert!(partial_path(&path).exists() && !path.exists());
        assert!(ImageWriter::start(&start).is_err(), "a second one must not take the file");
        assert!(partial_path(&path).exists());
        let length = writer.complete(&mut record).unwrap();
        assert_eq!(length, Some(path.metadata().unwrap().len()));
        assert!(!partial_path(&path).exists());
        let error = Source::open(&path).unwrap_err();
        assert!(error.chain().last().unwrap().contains("truncated"), "no memory was written");
    }

    #[test]
    fn a_discarded_image_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s1.xlsave");
        let start =
            ImageStart { target: Target::File(path), config: "{}".into(), record: sample() };
        ImageWriter::start(&start).unwrap().discard().unwrap();
        assert_eq!(directory.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn a_partial_image_is_refused_by_its_name() {
        let error = Source::open(Path::new("/x/s1.xlsave.partial")).unwrap_err();
        assert_eq!(error.exit_code(), 3);
    }
}
