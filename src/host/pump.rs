//! Writing a plain memory image while libxl produces it: pages where they can be shared, zeros as holes,
//! checksums at the end.
//!
//! libxl writes into a pipe. When it is done, [`Pump::seal`] waits for the rest of the pipe, at most a megabyte:
//! from then on all of the memory is in the file, whoever of us is killed. All else comes later, when the guest
//! runs again: the file gets its length and its checksums.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::mem;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

use crate::memory::align::{Aligner, Place, Tally, Written};
use crate::memory::sums::{HEAD, Table, TableSum};

/// How much is taken out of the pipe at once: it stays in the processor's cache.
const CHUNK: usize = 256 << 10;
/// How far a file is made longer at once. What a file system reserves behind the end of a file that grows
/// would fill the holes.
const STEP: u64 = 64 << 20;
/// So many bytes of checksums are kept in memory.
const KEPT: usize = 1 << 20;

/// A thread that writes what comes out of its pipe.
#[derive(Debug)]
pub struct Pump(State);

#[derive(Debug)]
enum State {
    Works {
        pipe: File,
        thread: JoinHandle<io::Result<Done>>,
    },
    Sealed(Done),
    /// The checksums are written, or there are none.
    Over,
    Failed(String),
}

type Done = Written<Output, Spool>;

impl Pump {
    /// Writes into a file of this directory, from this offset on.
    pub fn start(file: File, at: u64, directory: &Path) -> io::Result<Pump> {
        let length = file.metadata()?.len();
        let spool = Spool::new(directory);
        let aligner = Aligner::new(Output { file, length }, spool, at);
        let (reader, pipe) = pipe2(OFlag::O_CLOEXEC)?;
        let (reader, pipe) = (File::from(reader), File::from(pipe));
        // A pipe of the usual size works as well.
        let _ = fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(1 << 20));
        let thread =
            thread::Builder::new().name("pump".into()).spawn(move || pump(reader, aligner))?;
        Ok(Pump(State::Works { pipe, thread }))
    }

    /// Where the stream goes, until it is sealed.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.0 {
            State::Works { pipe, .. } => Some(pipe.as_fd()),
            _ => None,
        }
    }

    /// Nobody writes any more. Waits until all of it is in the file; returns why it is not, if so. Of a
    /// stream that was not saved it is no news that its end is missing.
    pub fn seal(&mut self, saved: bool) -> Option<String> {
        let panicked = |_| Err(io::Error::other("the thread that writes it has panicked"));
        self.0 = match mem::replace(&mut self.0, State::Over) {
            State::Works { pipe, thread } => {
                drop(pipe);
                match thread.join().unwrap_or_else(panicked) {
                    Ok(done) if done.whole || !saved => State::Sealed(done),
                    Ok(_) => State::Failed("libxl has left off in the middle of its stream".into()),
                    Err(error) => State::Failed(error.to_string()),
                }
            }
            other => other,
        };
        match &self.0 {
            State::Failed(why) => Some(why.clone()),
            _ => None,
        }
    }

    /// Cuts off what was reserved behind the stream.
    pub fn trim(&mut self) -> io::Result<()> {
        if let Some(why) = self.seal(true) {
            return Err(io::Error::other(why));
        }
        match &self.0 {
            State::Sealed(done) => trim(done),
            _ => Ok(()),
        }
    }

    /// Keeps room for the checksums behind the stream, which are written later. None if there are none.
    pub fn reserve_sums(&mut self) -> io::Result<Option<LaterSums>> {
        self.trim()?;
        let State::Sealed(done) = mem::replace(&mut self.0, State::Over) else { return Ok(None) };
        if !done.known {
            return Ok(None);
        }
        let table = table_of(&done, false);
        let file = &done.place.file;
        let reserved = file
            .write_all_at(&table.head(), table.at)
            .and_then(|()| file.set_len(table.at.saturating_add(table.length())));
        match reserved {
            Ok(()) => Ok(Some(LaterSums(done))),
            Err(error) => trim(&done).and(Err(error)),
        }
    }

    /// Writes the checksums behind the stream. Returns why there are none, if they could not be written:
    /// the image is good without them.
    pub fn add_sums(&mut self) -> Result<(), io::Error> {
        if let Some(why) = self.seal(true) {
            return Err(io::Error::other(why));
        }
        let State::Sealed(done) = mem::replace(&mut self.0, State::Over) else { return Ok(()) };
        add_sums(done)
    }

    /// Ends it; what it has written is of no use.
    pub fn abandon(mut self) {
        self.seal(false);
    }
}

fn pump(mut pipe: File, mut aligner: Aligner<Output, Spool>) -> io::Result<Done> {
    let mut chunk = vec![0; CHUNK];
    loop {
        match pipe.read(&mut chunk) {
            Ok(0) => return aligner.end(),
            Ok(count) => aligner.feed(&chunk[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Checksums for which an image that is complete has room.
#[derive(Debug)]
pub struct LaterSums(Done);

impl LaterSums {
    /// Writes them. On an error, or if we are killed, the image has none.
    pub fn write(self) -> io::Result<()> {
        let head = table_of(&self.0, true).head();
        let Written { place, tally, end, .. } = self.0;
        let mut sum = TableSum::default();
        sum.add(&head);
        write_sums(&place.file, end.saturating_add(HEAD), sum, tally)?;
        place.file.sync_data()?;
        // From here on they count.
        place.file.write_all_at(&head, end)?;
        place.file.sync_data()
    }
}

fn table_of(done: &Done, is_written: bool) -> Table {
    Table { at: done.end, count: done.tally.count, others: done.others, is_written }
}

/// Cuts off what was reserved behind the stream.
pub fn trim(written: &Done) -> io::Result<()> {
    written.place.file.set_len(written.end)
}

/// Writes the table of checksums behind the stream, if there is one, and nothing behind that.
pub fn add_sums(written: Done) -> io::Result<()> {
    trim(&written)?;
    if !written.known {
        return Ok(());
    }
    let head = table_of(&written, true).head();
    let Written { place, tally, end, .. } = written;
    let write = || -> io::Result<()> {
        let mut out = Summed { file: &place.file, at: end, sum: TableSum::default() };
        out.write_all(&head)?;
        write_sums(&place.file, out.at, out.sum, tally)
    };
    write().or_else(|error| {
        place.file.set_len(end)?;
        Err(error)
    })
}

/// Writes what follows the head of a table, whose `sum` has that head.
fn write_sums(file: &File, at: u64, sum: TableSum, tally: Spool) -> io::Result<()> {
    let mut out = Summed { file, at, sum };
    tally.copy(&mut out)?;
    let last = out.sum.end();
    file.write_all_at(&last, out.at)
}

/// A table of checksums being written.
struct Summed<'f> {
    file: &'f File,
    at: u64,
    sum: TableSum,
}

impl Write for Summed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write_at(bytes, self.at)?;
        self.sum.add(&bytes[..count]);
        self.at += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The file of an image.
#[derive(Debug)]
pub struct Output {
    file: File,
    length: u64,
}

impl Output {
    /// A file that is as long as this.
    pub fn new(file: File, length: u64) -> Output {
        Output { file, length }
    }
}

impl Place for Output {
    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, at)?;
        self.length = self.length.max(at + bytes.len() as u64);
        Ok(())
    }

    fn reach(&mut self, length: u64) -> io::Result<()> {
        if length > self.length {
            self.length = length.saturating_add(STEP);
            self.file.set_len(self.length)?;
        }
        Ok(())
    }
}

/// The checksums that were computed so far: of a large guest, more than should be kept in memory.
#[derive(Debug)]
pub struct Spool {
    directory: PathBuf,
    file: Option<File>,
    last: Vec<u8>,
    count: u64,
}

impl Spool {
    /// Spills into a nameless file of this directory.
    pub fn new(directory: &Path) -> Spool {
        Spool { directory: directory.to_owned(), file: None, last: Vec::new(), count: 0 }
    }

    fn spill(&mut self) -> io::Result<()> {
        if self.file.is_none() {
            self.file = Some(tempfile::tempfile_in(&self.directory)?);
        }
        self.file.as_mut().expect("it was just made").write_all(&self.last)?;
        self.last.clear();
        Ok(())
    }

    fn copy(mut self, to: &mut impl Write) -> io::Result<()> {
        if let Some(file) = &mut self.file {
            file.rewind()?;
            io::copy(file, to)?;
        }
        to.write_all(&self.last)
    }
}

impl Tally for Spool {
    fn page(&mut self, sum: u64) -> io::Result<()> {
        self.last.extend(sum.to_le_bytes());
        self.count += 1;
        if self.last.len() >= KEPT { self.spill() } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
