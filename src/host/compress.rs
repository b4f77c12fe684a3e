//! Compressing a memory image while libxl writes it.
//!
//! libxl writes into a pipe, and a thread of ours compresses what comes out of it, with zstd's own
//! threads. libxl's part is over when its last byte is in the pipe: the guest can go on, while the
//! thread is still at work.
//!
//! An error of the thread closes the pipe, so that libxl fails. After libxl's last byte nobody could
//! be told any more without losing the snapshot, so that the space for what is still on its way is
//! always reserved before.

mod room;

use std::fs::File;
use std::io::{self, Read, Write};
use std::num::NonZero;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;
use zstd::Encoder;
use zstd::zstd_safe::CParameter;

use self::room::{Output, Room};
use crate::memory::frames::Level;

/// The pipe, and how much is taken out of it at once.
const CHUNK: usize = 1 << 20;
/// What one of zstd's threads works on. Smaller than its own choice: less is on its way when the
/// guest stops, and less memory is needed.
const JOB: u32 = 1 << 20;
/// How much of the job before is looked at: an eighth of the window, at every level.
const OVERLAP: u32 = 6;
/// More would take a small dom0's memory and keep its other guests waiting.
const MAX_THREADS: usize = 4;

/// A thread that compresses what is written into its pipe.
#[derive(Debug)]
pub struct Compressor {
    pipe: File,
    thread: JoinHandle<io::Result<u64>>,
    room: Arc<Room>,
}

impl Compressor {
    /// Compresses into `output` from its present position on: byte `at` of a file, or a pipe.
    pub fn start(output: File, at: Option<u64>, level: Level) -> io::Result<Compressor> {
        let output = Output::new(output, at)?;
        let room = output.room();
        let threads = thread::available_parallelism().map_or(1, NonZero::get).min(MAX_THREADS);
        let mut encoder = Encoder::new(output, level.number())?;
        encoder.include_checksum(true)?;
        encoder.multithread(u32::try_from(threads).expect("a small number"))?;
        encoder.set_parameter(CParameter::JobSize(JOB))?;
        encoder.set_parameter(CParameter::OverlapSizeLog(OVERLAP))?;
        let (reader, pipe) = pipe2(OFlag::O_CLOEXEC)?;
        let (reader, pipe) = (File::from(reader), File::from(pipe));
        // A pipe of the usual size works as well.
        let _ = fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(1 << 20));
        let theirs = Arc::clone(&room);
        let thread = thread::Builder::new()
            .name("compressor".into())
            .spawn(move || compress(reader, encoder, &theirs))?;
        Ok(Compressor { pipe, thread, room })
    }

    /// Where the guest's memory goes.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// All has been written to it. Returns why that cannot be kept, if it is so; from here on, only an error
    /// of the storage can prevent it. The pipe stays open: the end is compressed when nobody waits.
    pub fn seal(&self) -> Option<String> {
        self.room.seal()
    }

    /// Waits until everything is compressed and written. Returns how much was put in.
    pub fn finish(self) -> io::Result<u64> {
        drop(self.pipe);
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the compressor has panicked")))
    }

    /// Ends it; what it has written is of no use.
    pub fn abandon(self) {
        self.room.fail(&"nobody wants the image any more");
        // Whatever it still has to say.
        let _ = self.finish();
    }
}

fn compress(mut pipe: File, encoder: Encoder<'static, Output>, room: &Room) -> io::Result<u64> {
    let result = pump(&mut pipe, encoder, room);
    if let Err(error) = &result {
        // Before the pipe is closed: whoever fails because of that asks at once.
        room.fail(error);
    }
    drop(pipe);
    result
}

fn pump(pipe: &mut File, mut encoder: Encoder<'static, Output>, room: &Room) -> io::Result<u64> {
    let mut total = 0;
    let mut chunk = Vec::with_capacity(CHUNK);
    loop {
        // Whole chunks: libxl's first bytes are taken whatever becomes of them, because it cannot
        // cope with an error there (`host/libxl/suspend.rs`).
        let count = Read::by_ref(pipe).take(CHUNK as u64).read_to_end(&mut chunk)?;
        room.check()?;
        if count == 0 {
            encoder.finish()?;
            return Ok(total);
        }
        encoder.write_all(&chunk)?;
        total += count as u64;
        chunk.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Seek;

    use super::*;

    fn level(text: &str) -> Level {
        text.parse().unwrap()
    }

    #[test]
    fn what_goes_in_comes_out() {
        for (text, length) in
            [("zstd:1", 0), ("zstd", 100), ("zstd", 5 << 20), ("zstd:19", 3 << 20)]
        {
            let mut file = tempfile::tempfile().unwrap();
            let compressor =
                Compressor::start(file.try_clone().unwrap(), Some(0), level(text)).unwrap();
            let bytes: Vec<u8> = (0..length).map(|i: u32| ((i / 7) ^ i).to_le_bytes()[0]).collect();
            let mut pipe = File::from(compressor.fd().try_clone_to_owned().unwrap());
            pipe.write_all(&bytes).unwrap();
            drop(pipe);
            assert_eq!(compressor.finish().unwrap(), bytes.len() as u64);
            file.rewind().unwrap();
            assert!(zstd::decode_all(file).unwrap() == bytes, "{text}, {length} bytes");
        }
    }

    #[test]
    fn an_error_closes_the_pipe_and_is_told() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let compressor = Compressor::start(full, None, level("zstd:1")).unwrap();
        let mut pipe = File::from(compressor.fd().try_clone_to_owned().unwrap());
        // Few bytes are taken in any case.
        pipe.write_all(&[7; 64]).unwrap();
        let mut random = File::open("/dev/urandom").unwrap().take(64 << 20);
        let error = io::copy(&mut random, &mut pipe).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        assert!(compressor.seal().unwrap().contains("No space left"));
        assert!(compressor.finish().unwrap_err().to_string().contains("No space left"));
    }

    #[test]
    fn an_error_at_the_end_is_told() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let compressor = Compressor::start(full, None, level("zstd:1")).unwrap();
        assert!(compressor.finish().unwrap_err().to_string().contains("No space left"));
    }

    #[test]
    fn what_is_abandoned_ends_at_once_and_unfinished() {
        let mut file = tempfile::tempfile().unwrap();
        let compressor =
            Compressor::start(file.try_clone().unwrap(), Some(0), level("zstd")).unwrap();
        File::from(compressor.fd().try_clone_to_owned().unwrap()).write_all(&[1; 4096]).unwrap();
        compressor.abandon();
        file.rewind().unwrap();
        assert!(zstd::decode_all(file).is_err());
    }
}
