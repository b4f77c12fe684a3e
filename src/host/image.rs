//! The memory image on disk: writes one under a `.partial` name. `source.rs` opens one to revert to.

pub mod rewrite;
mod source;
pub mod while_restoring;

use std::fs::File;
use std::io::{self, Write};
use std::mem;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

pub use self::source::Source;
use crate::error::{Error, Remaining, Result};
use crate::host::compress::Compressor;
use crate::host::files;
use crate::host::pump::{LaterSums, Pump};
use crate::memory::frames::{self, Level, Marker};
use crate::memory::{Image, header, partial_path};
use crate::names::SnapshotName;
use crate::plan::{ImageStart, Target};
use crate::record::Record;
use crate::tool::quote;

/// An image being written.
#[derive(Debug)]
pub struct ImageWriter {
    file: File,
    target: Target,
    config: String,
    space: usize,
    compress: Option<Compress>,
    /// Of a plain image in a file that this process has begun.
    pump: Option<Pump>,
    /// Why it has no checksums, if they could not be written.
    without_sums: Option<io::Error>,
    /// All of the memory is durable, and the guest is restored from it: what is not needed for that waits.
    secured: bool,
    later_sums: Option<LaterSums>,
    /// Another process began it, which may have been killed while it wrote the checksums.
    adopted: bool,
}

/// The progress of the compression of an image.
#[derive(Debug)]
struct Compress {
    level: Level,
    state: Packing,
}

#[derive(Debug)]
enum Packing {
    /// The guest's memory is still being read or compressed.
    Works(Working),
    /// Everything is written: the lengths of the file and of the plain image.
    Done(Marker),
    /// What was not written yet has gone with the process that compressed it, or with an error.
    Lost,
}

#[derive(Debug)]
struct Working {
    compressor: Compressor,
    /// The length of the header, and of the frames with it.
    header: (u64, u64),
}

/// Which file it is: its device and inode.
pub type FileId = (u64, u64);

/// Why an image, or a record in a file of its own, is not complete under its name.
#[derive(Debug, thiserror::Error)]
pub enum NotComplete {
    /// Its record could not be written and synced.
    #[error(transparent)]
    Unwritten(io::Error),
    /// It is durable, but still has the name of an unfinished image.
    #[error("It is complete, but cannot be given its name")]
    Unnamed(#[source] io::Error),
    /// It has its name, but a power cut may undo the renaming.
    #[error("Its directory cannot be synced")]
    Unsynced(#[source] io::Error),
    /// The name of the unfinished file belongs to another file.
    #[error("{} was replaced: the file is lost", .0.display())]
    Replaced(PathBuf),
}

/// Gives the complete file its name.
pub fn give_name(file: &File, path: &Path) -> Result<(), NotComplete> {
    let partial = partial_path(path);
    // It has its name already if a process was killed here.
    if files::has_name(file, &partial) {
        let named = files::rename_new(&partial, path);
        if !files::has_name(file, path) {
            named.map_err(NotComplete::Unnamed)?;
        }
    }
    // Whoever may write to the directory could have put something else under either name.
    if !files::has_name(file, path) {
        return Err(NotComplete::Replaced(partial));
    }
    files::sync_directory(path).map_err(NotComplete::Unsynced)
}

impl ImageWriter {
    /// Makes the file (or takes standard output) and writes the header with a record that is not
    /// complete.
    pub fn start(start: &ImageStart) -> io::Result<Self> {
        let file = match &start.target {
            Target::Stdout => standard_output()?,
            Target::File(path) => files::create_new(&partial_path(path))?,
        };
        let mut writer = ImageWriter::of(file, start);
        if let Err(error) = writer.begin(start).and_then(|()| writer.make_found(start)) {
            writer.discard()?;
            return Err(error);
        }
        Ok(writer)
    }

    /// Makes the header durable, so that what a power cut leaves can be found; and tries what naming the
    /// file will take, while nothing is lost if the file system cannot do it.
    fn make_found(&self, start: &ImageStart) -> io::Result<()> {
        let Target::File(path) = &start.target else { return Ok(()) };
        self.file.sync_all()?;
        files::sync_directory(path)?;
        files::try_naming(path)
    }

    fn begin(&mut self, start: &ImageStart) -> io::Result<()> {
        let plain = self.plain_header(&start.record)?;
        let Some(compress) = &mut self.compress else {
            self.file.write_all(&plain)?;
            if let Target::File(path) = &self.target {
                let directory = path.parent().ok_or(io::ErrorKind::NotFound)?;
                let file = self.file.try_clone()?;
                self.pump = Some(Pump::start(file, plain.len() as u64, directory)?);
            }
            return Ok(());
        };
        let head = frames::head(&plain, compress.level, None)?;
        self.file.write_all(&head)?;
        let header = (plain.len() as u64, head.len() as u64);
        let at = matches!(self.target, Target::File(_)).then_some(header.1);
        let compressor = Compressor::start(self.file.try_clone()?, at, compress.level)?;
        compress.state = Packing::Works(Working { compressor, header });
        Ok(())
    }

    /// Goes on with an image that another process began: the file that it made, or standard output.
    ///
    /// A compressed one can be completed only if that process had compressed all of it.
    pub fn adopt(start: &ImageStart, made: FileId) -> io::Result<Self> {
        let file = match &start.target {
            Target::Stdout => standard_output()?,
            Target::File(path) => [partial_path(path), path.clone()]
                .iter()
                .filter_map(|path| files::open_no_link(path).ok())
                .find(|file| files::id(file).is_ok_and(|id| id == made))
                .ok_or(io::ErrorKind::NotFound)?,
        };
        let mut writer = ImageWriter::of(file, start);
        writer.adopted = true;
        if let (Some(compress), Target::File(_)) = (&mut writer.compress, &writer.target) {
            let length = writer.file.metadata()?.len();
            // A file that was never begun well is as good as lost.
            let layout = frames::layout(&mut writer.file, length).ok();
            match layout.and_then(|layout| layout.ours) {
                Some((_, Some(marker))) if marker.file_len == length => {
                    compress.state = Packing::Done(marker);
                }
                _ => {}
            }
        }
        Ok(writer)
    }

    fn of(file: File, start: &ImageStart) -> Self {
        ImageWriter {
            file,
            target: start.target.clone(),
            config: start.config.clone(),
            space: header::aligned_space(&start.config, &start.record),
            compress: start.compress.map(|level| Compress { level, state: Packing::Lost }),
            pump: None,
            without_sums: None,
            secured: false,
            later_sums: None,
            adopted: false,
        }
    }

    /// Its final name; `None` on standard output.
    pub fn path(&self) -> Option<PathBuf> {
        match &self.target {
            Target::Stdout => None,
            Target::File(path) => Some(path.clone()),
        }
    }

    /// Its name while it is unfinished.
    pub fn partial(&self) -> Option<PathBuf> {
        self.path().map(|path| partial_path(&path))
    }

    /// The identity of the file.
    pub fn id(&self) -> io::Result<FileId> {
        files::id(&self.file)
    }

    /// Where the guest's memory goes.
    pub fn fd(&self) -> BorrowedFd<'_> {
        match &self.compress {
            Some(Compress { state: Packing::Works(working), .. }) => working.compressor.fd(),
            _ => self.pump.as_ref().and_then(Pump::fd).unwrap_or_else(|| self.file.as_fd()),
        }
    }

    pub fn is_compressed(&self) -> bool {
        self.compress.is_some()
    }

    /// All of the guest's memory has come, if it was `saved`. Returns why it cannot be kept, if so. A plain
    /// image has it in its file from now on.
    pub fn seal(&mut self, saved: bool) -> Option<String> {
        match (&self.compress, &mut self.pump) {
            (Some(Compress { state: Packing::Works(working), .. }), _) => working.compressor.seal(),
            (_, Some(pump)) => pump.seal(saved),
            _ => None,
        }
    }

    /// Why it has no checksums, if they could not be written.
    pub fn without_sums(&self) -> Option<&io::Error> {
        self.without_sums.as_ref()
    }

    /// Waits until all of the guest's memory is compressed and written; a plain image gets its checksums.
    ///
    /// # Errors
    ///
    /// The guest's memory is lost.
    pub fn drain(&mut self) -> io::Result<()> {
        if let Some(mut pump) = self.pump.take() {
            pump.trim()?;
            self.without_sums = pump.add_sums().err();
        }
        let Some(compress) = &mut self.compress else { return self.cut_torn_sums() };
        let working = match mem::replace(&mut compress.state, Packing::Lost) {
            Packing::Works(working) => working,
            Packing::Lost => {
                return Err(io::Error::other(
                    "what was not yet compressed is lost, because the process that compressed it has ended",
                ));
            }
            done @ Packing::Done(_) => {
                compress.state = done;
                return Ok(());
            }
        };
        let (plain_len, head_len) = working.header;
        let image_len = plain_len + working.compressor.finish()?;
        let mut marker = Marker { file_len: 0, image_len };
        if let Target::File(_) = self.target {
            marker.file_len = self.file.metadata()?.len();
            // Gives back the room that was kept behind the end.
            self.file.set_len(marker.file_len)?;
            self.file.write_all_at(&Marker::encode(Some(marker)), head_len - Marker::SIZE)?;
        }
        compress.state = Packing::Done(marker);
        Ok(())
    }

    /// A part of the checksums is of no use, and would make the image one of a wrong length.
    fn cut_torn_sums(&mut self) -> io::Result<()> {
        if !mem::take(&mut self.adopted) || self.target == Target::Stdout {
            return Ok(());
        }
        match Image::torn_at(&mut self.file).map_err(io::Error::other)? {
            Some(end) => self.file.set_len(end),
            None => Ok(()),
        }
    }

    /// Makes all of the guest's memory durable and proves that it can be read back, before nothing else has it
    /// any more. No restore needs the checksums: a plain image gets them later.
    pub fn secure(&mut self) -> io::Result<()> {
        match &mut self.pump {
            Some(pump) => pump.trim()?,
            None => self.drain()?,
        }
        self.secured = true;
        self.file.sync_all()?;
        if let Target::File(path) = &self.target {
            files::sync_directory(path)?;
        }
        Image::check_saved(&mut self.file).map_err(io::Error::other)
    }

    /// All that the image has but for its record is written, or has its room ([`Self::later_sums`]).
    ///
    /// # Errors
    ///
    /// The guest's memory is lost.
    pub fn end(&mut self) -> io::Result<()> {
        match self.pump.take() {
            Some(mut pump) if self.secured => {
                pump.trim()?;
                match pump.reserve_sums() {
                    Ok(later) => self.later_sums = later,
                    Err(why) => self.without_sums = Some(why),
                }
                Ok(())
            }
            pump => {
                self.pump = pump;
                self.drain()
            }
        }
    }

    /// The checksums for which an image has room that was secured and has ended.
    pub fn later_sums(&mut self) -> Option<LaterSums> {
        self.later_sums.take()
    }

    /// The file itself, whatever becomes of its name.
    pub fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Writes the complete record, makes the file durable and gives it its name. Returns its
    /// length in bytes, where that is known.
    pub fn complete(mut self, record: &mut Record) -> Result<Option<u64>, NotComplete> {
        let length = self.write_complete(record).map_err(NotComplete::Unwritten)?;
        if let Target::File(path) = &self.target {
            give_name(&self.file, path)?;
        }
        Ok(length)
    }

    fn write_complete(&mut self, record: &mut Record) -> io::Result<Option<u64>> {
        self.end()?;
        record.complete = true;
        let Target::File(_) = &self.target else {
            let trailer = header::trailer(record);
            self.file.write_all(&match &self.compress {
                Some(compress) => frames::frame(&trailer, compress.level)?,
                None => trailer,
            })?;
            return Ok(None);
        };
        let length = self.file.metadata()?.len();
        let marker = match &self.compress {
            Some(Compress { state: Packing::Done(marker), .. }) => Some(*marker),
            _ => None,
        };
        // What it says of the image is true also when that is unpacked, or packed.
        record.image_size = marker.map_or(length, |marker| marker.image_len);
        let mut header = self.plain_header(record)?;
        if let Some(compress) = &self.compress {
            header = frames::head(&header, compress.level, marker)?;
        }
        self.file.write_all_at(&header, 0)?;
        self.file.sync_all()?;
        Ok(Some(length))
    }

    /// Removes the unfinished file.
    pub fn discard(mut self) -> io::Result<()> {
        if let Some(Compress { state: Packing::Works(working), .. }) = self.compress.take() {
            working.compressor.abandon();
        }
        if let Some(pump) = self.pump.take() {
            pump.abandon();
        }
        match &self.target {
            Target::Stdout => Ok(()),
            Target::File(path) => {
                let partial = partial_path(path);
                if files::has_name(&self.file, &partial) { files::remove(&partial) } else { Ok(()) }
            }
        }
    }

    /// What is to be told when the guest's memory is lost and the disks have their snapshots. The file
    /// stays: it is for people to say that nobody needs it.
    pub fn give_up(self, name: &SnapshotName, why: io::Error) -> Error {
        let what = format!(
            "The memory of snapshot {name} is not whole. Its disks have their snapshots, but there \
             is nothing to revert to: take another one, and remove these with the disks' own tools"
        );
        let command = match &self.target {
            Target::File(path) => Some(format!("rm {}", quote(partial_path(path)))),
            Target::Stdout => None,
        };
        Error::failed("Compressing the image")
            .because(why)
            .unfinished(vec![Remaining { what, command }])
    }

    fn plain_header(&self, record: &Record) -> io::Result<Vec<u8>> {
        header::encode(&self.config, record, self.space).map_err(io::Error::other)
    }
}

fn standard_output() -> io::Result<File> {
    Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?))
}

#[cfg(test)]
mod tests;
