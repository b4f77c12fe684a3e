//! Reading the memory of an image while another process restores it.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::Source;
use crate::error::{Error, Result};
use crate::memory::sums::Checked;
use crate::memory::{CHUNK, Image};

/// A file that can be read until somebody stops it.
#[derive(Debug)]
pub struct Stoppable<'s, F> {
    file: F,
    stop: &'s AtomicBool,
}

impl<F: Read> Read for Stoppable<'_, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.stop.load(Ordering::Acquire) {
            // Not as an interrupted call: that would be repeated.
            true => Err(io::Error::other("nobody needs it any more")),
            false => self.file.read(buffer),
        }
    }
}

impl<F: Seek> Seek for Stoppable<'_, F> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

/// Restores while the memory is verified, if there is something to verify it by. A restore that fails stops the
/// verification.
pub fn restore_under_other_name<T, E>(
    check: Option<impl Read + Send>,
    stop: &AtomicBool,
    restore: impl FnOnce() -> std::result::Result<T, E>,
) -> (std::result::Result<T, E>, io::Result<()>) {
    thread::scope(|scope| {
        let check = check.map(|stream| {
            let mut stream = BufReader::with_capacity(CHUNK, stream);
            scope.spawn(move || io::copy(&mut stream, &mut io::sink()).map(drop))
        });
        let restored = restore();
        if restored.is_err() {
            stop.store(true, Ordering::Release);
        }
        let join = |check: thread::ScopedJoinHandle<'_, io::Result<()>>| {
            check.join().expect("reading a file does not panic")
        };
        (restored, check.map_or(Ok(()), join))
    })
}

/// An image that a guard has inherited from its ward, whose memory was not verified yet when that was killed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Unverified {
    fd: RawFd,
    name: String,
}

impl Unverified {
    /// Verifies the memory.
    pub fn verify(&self) -> Result<()> {
        let verify = || -> std::result::Result<(), crate::memory::BadImage> {
            let mut file = File::open(format!("/proc/self/fd/{}", self.fd))?;
            Image::read(&mut file)?.read_all(&mut file)
        };
        verify().map_err(|why| Error::failed(format!("Verify image {}", self.name)).because(why))
    }
}

impl Source {
    /// What checks the memory while another process reads the file itself: the stream in a file of its own, if
    /// there are checksums that were not checked yet.
    pub fn beside<'s>(
        &self,
        stop: &'s AtomicBool,
    ) -> io::Result<Option<Checked<Stoppable<'s, File>>>> {
        let Image { stream_offset, sums, read_whole, .. } = self.image;
        let Some(table) = sums.filter(|_| !read_whole) else { return Ok(None) };
        let file = File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))?;
        Ok(Some(Checked::new(Stoppable { file, stop }, stream_offset, table)))
    }

    /// The same, for a guard that has inherited the file.
    pub fn unverified(&self) -> Unverified {
        Unverified { fd: self.file.as_raw_fd(), name: self.name.clone() }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    use super::*;
    use crate::host::compact::compact;
    use crate::memory::header::{encode, record_space};
    use crate::support::record::sample;
    use crate::support::streams::{PV, guest_stream, rounds};

    const CONFIG: &str = r#"{"c_info":{"name":"web1"}}"#;

    /// An image with checksums.
    fn image(path: &Path) -> Source {
        let mut record = sample();
        let (space, stream) = (record_space(&record), guest_stream(PV, &rounds(PV)));
        let head = encode(CONFIG, &record, space).unwrap().len();
        record.image_size = (head + stream.len()) as u64;
        let head = encode(CONFIG, &record, space).unwrap();
        fs::write(path, [head, stream].concat()).unwrap();
        compact(path, &mut Source::open(path).unwrap(), None).unwrap();
        Source::open(path).unwrap()
    }

    /// One that never ends: with anything else this test would not end either.
    #[test]
    fn a_restore_that_fails_does_not_wait_for_the_verification() {
        let stop = AtomicBool::new(false);
        let endless = Stoppable { file: io::repeat(0), stop: &stop };
        let (restored, checked) =
            restore_under_other_name(Some(endless), &stop, || Err::<(), _>("xl failed"));
        assert_eq!(restored, Err("xl failed"));
        checked.unwrap_err();
    }

    #[test]
    fn a_restore_waits_for_the_verification_and_takes_what_it_finds() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s1.xlsave");
        let source = image(&path);
        for damaged in [false, true] {
            if damaged {
                damage(&source);
            }
            let stop = AtomicBool::new(false);
            let check = source.beside(&stop).unwrap();
            assert!(check.is_some());
            let (restored, checked) = restore_under_other_name(check, &stop, || Ok::<_, ()>(7));
            assert_eq!(restored, Ok(7));
            assert_eq!(checked.is_err(), damaged);
        }
        // The table of checksums, which is read first, is not read to its end either.
        let stop = AtomicBool::new(true);
        let mut check = source.beside(&stop).unwrap().unwrap();
        assert!(check.read(&mut [0; 9]).unwrap_err().to_string().contains("nobody needs it"));
    }

    fn damage(source: &Source) {
        let at = source.image.sums.unwrap().at - (40 << 10);
        let path = format!("/proc/self/fd/{}", source.file.as_raw_fd());
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(b"damage", at).unwrap();
    }

    #[test]
    fn what_a_guard_has_inherited_it_verifies_whatever_became_of_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s1.xlsave");
        let mut source = image(&path);
        // Where the ward has read to is of no account.
        source.file.seek(SeekFrom::Start(12345)).unwrap();
        fs::rename(&path, directory.path().join("s2.xlsave")).unwrap();
        source.unverified().verify().unwrap();
        damage(&source);
        fs::remove_file(directory.path().join("s2.xlsave")).unwrap();
        let chain = source.unverified().verify().unwrap_err().chain().join(": ");
        assert!(chain.contains("of the guest's memory"), "{chain}");
        assert!(chain.contains("s1.xlsave"), "{chain}");
    }
}
