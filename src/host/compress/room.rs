//! Room in a file for what is on its way to it.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

/// More than can be on its way: two chunks, and of zstd's jobs eight and the one that fills up.
const AHEAD: u64 = 16 << 20;

/// Where the compressed bytes go.
#[derive(Debug)]
pub(super) struct Output {
    file: File,
    room: Arc<Room>,
}

/// What is reserved of the file behind what is written to it, and whether that is enough.
#[derive(Debug)]
pub(super) struct Room(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Where the next byte goes, and up to where there is room; not for a pipe, or where the file system
    /// cannot reserve any.
    room: Option<(u64, u64)>,
    /// No more data follows what is being compressed now.
    sealed: bool,
    /// Why the output has failed.
    trouble: Option<String>,
}

impl Output {
    /// The file from byte `at` on, or a pipe.
    pub fn new(file: File, at: Option<u64>) -> io::Result<Output> {
        let state = State { room: at.map(|at| (at, at)), sealed: false, trouble: None };
        let output = Output { file, room: Arc::new(Room(Mutex::new(state))) };
        output.room.state().reserve(&output.file, 0)?;
        Ok(output)
    }

    pub fn room(&self) -> Arc<Room> {
        Arc::clone(&self.room)
    }
}

impl Room {
    /// From now on nothing more comes than what is on its way. Returns why that cannot be kept, if it is so;
    /// later, only an error of the storage can prevent it.
    pub fn seal(&self) -> Option<String> {
        let mut state = self.state();
        state.sealed = true;
        state.trouble.clone()
    }

    /// Fails the output for this reason, unless it has failed before.
    pub fn fail(&self, why: &dyn ToString) {
        self.state().fail(why);
    }

    /// An error if the output has failed.
    pub fn check(&self) -> io::Result<()> {
        let trouble = self.state().trouble.clone();
        trouble.map_or(Ok(()), |trouble| Err(io::Error::other(trouble)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Reserves room for this many bytes, and for the data that follows them.
    fn reserve(&mut self, file: &File, count: u64) -> io::Result<()> {
        let Some((at, end)) = self.room else { return Ok(()) };
        let needed = at.saturating_add(count).saturating_add(AHEAD);
        if needed <= end {
            return Ok(());
        }
        let up_to = |to: u64| {
            let offset = |at: u64| i64::try_from(at).map_err(|_| Errno::EFBIG);
            let keep_size = FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(file, keep_size, offset(end)?, offset(to - end)?).map(|()| to)
        };
        let done = match up_to(needed.saturating_add(AHEAD)) {
            // Nearly full: what is needed may be there, though not more.
            Err(Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG) => up_to(needed),
            done => done,
        };
        match done {
            Ok(to) => self.room = Some((at, to)),
            Err(error @ (Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG)) => return Err(error.into()),
            // Not every file system can do it.
            Err(_) => self.room = None,
        }
        Ok(())
    }

    fn fail(&mut self, why: &dyn ToString) {
        self.trouble.get_or_insert_with(|| why.to_string());
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.room.state();
        match state.reserve(&self.file, bytes.len() as u64) {
            // Before the last time it was reserved, more was on its way.
            Err(error) if !state.sealed => {
                // Under the same lock: nobody seals it in between.
                state.fail(&error);
                return Err(error);
            }
            _ => {}
        }
        drop(state);
        let count = self.file.write(bytes)?;
        if let Some((at, _)) = &mut self.room.state().room {
            *at += count as u64;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn there_is_room_for_what_is_on_its_way() {
        let file = tempfile::tempfile_in(".").unwrap();
        let mut output = Output::new(file, Some(0)).unwrap();
        // Where the file system cannot do it there is nothing to see.
        if output.room.state().room.is_none() {
            return;
        }
        for _ in 0..40 {
            output.write_all(&[1; 1 << 20]).unwrap();
            let (at, end) = output.room.state().room.unwrap();
            assert!(at + AHEAD <= end + (1 << 20));
        }
        let meta = output.file.metadata().unwrap();
        assert_eq!(meta.len(), 40 << 20);
        assert!(meta.blocks() * 512 >= (39 << 20) + AHEAD);
        output.file.set_len(meta.len()).unwrap();
        assert!(output.file.metadata().unwrap().blocks() * 512 < (42 << 20));
    }

    #[test]
    fn what_has_its_room_is_written_though_there_is_no_more() {
        // So near to the end of the longest file that there is room for one chunk only.
        let at = i64::MAX.unsigned_abs() - (AHEAD + 3 * (1 << 20) / 2);
        for sealed in [false, true] {
            let mut file = tempfile::tempfile_in("/dev/shm").unwrap();
            io::Seek::seek(&mut file, io::SeekFrom::Start(at)).unwrap();
            let mut output = Output::new(file, Some(at)).unwrap();
            let room = output.room();
            output.write_all(&[1; 1 << 20]).unwrap();
            if sealed {
                assert_eq!(room.seal(), None);
            }
            let result = output.write_all(&[1; 1 << 20]);
            assert_eq!(result.is_ok(), sealed, "{result:?}");
            assert_eq!(room.seal().is_none(), sealed);
        }
    }

    #[test]
    fn a_pipe_takes_what_it_takes() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut output = Output::new(full, None).unwrap();
        assert_eq!(output.write(b"x").unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(output.room().seal(), None, "whoever writes tells of it");
    }
}
