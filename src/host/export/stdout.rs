//! An archive on standard output, or what stands for that.

use std::fs::File;
use std::io::{self, Read, Write};
use std::mem;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::export::tar::{self, Entry};
use crate::host::files;

/// So much goes into a pipe at once that has any room (pipe(7), PIPE_BUF): whoever waits for more could not be stopped.
const PIECE: usize = 4096;
/// So many bytes of the archive are kept until more of it follows, less than a block: tar takes an archive that ends
/// between two files for a whole one, and a reader must notice if this program does not come to its end.
const HELD: usize = tar::BLOCK / 2;
/// How often it is seen whether the user wants it to end.
const POLL: u16 = 200;
/// How long nobody may read anything.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Standard output itself, past the buffer of the standard library: nothing else is written there.
pub(super) fn open() -> io::Result<File> {
    Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?))
}

/// Where it goes, and what is told on the way.
pub(super) struct TarProgress<'a> {
    pub(super) output: &'a File,
    /// What is not written yet.
    pub(super) held: &'a mut Vec<u8>,
    pub(super) show: &'a mut dyn FnMut(u64, u64),
    pub(super) stopped: &'a dyn Fn() -> bool,
}

/// Writes a directory's header.
pub(super) fn directory(name: &str, told: &mut TarProgress<'_>) -> io::Result<()> {
    let header = tar::header(name, "", Entry::Directory, 0o700, 0);
    put(&header.ok_or(io::ErrorKind::InvalidInput)?, told)
}

/// Writes a file.
pub(super) fn file(directory: &str, path: &Path, told: &mut TarProgress<'_>) -> io::Result<()> {
    let name =
        path.file_name().and_then(|name| name.to_str()).ok_or(io::ErrorKind::InvalidInput)?;
    let mut file = files::open(path)?;
    let meta = file.metadata()?;
    let (size, mode) = (meta.len(), meta.mode() & 0o777);
    let seconds = u64::try_from(meta.mtime()).unwrap_or(0);
    let header = tar::header(directory, name, Entry::File(size), mode, seconds);
    put(&header.ok_or(io::ErrorKind::InvalidInput)?, told)?;
    let mut chunk = vec![0; 1 << 20];
    let mut left = size;
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
        file.read_exact(&mut chunk[..want])?;
        put(&chunk[..want], told)?;
        left -= want as u64;
        (told.show)(size - left, size);
    }
    put(&vec![0; tar::padding(size)], told)
}

/// Ends the archive.
pub(super) fn end(told: &mut TarProgress<'_>) -> io::Result<()> {
    put(&tar::END, told)?;
    let last = mem::take(told.held);
    write(&last, told)
}

/// Writes bytes and what was kept before them, but for the last [`HELD`].
fn put(bytes: &[u8], told: &mut TarProgress<'_>) -> io::Result<()> {
    told.held.extend_from_slice(bytes);
    let later = told.held.split_off(told.held.len().saturating_sub(HELD));
    let now = mem::replace(told.held, later);
    write(&now, told)
}

fn write(bytes: &[u8], told: &TarProgress<'_>) -> io::Result<()> {
    let mut output = told.output;
    let mut since = Instant::now();
    for piece in bytes.chunks(PIECE) {
        let mut piece = piece;
        while !piece.is_empty() {
            if (told.stopped)() {
                return Err(io::Error::new(io::ErrorKind::Interrupted, "stopped by a signal"));
            }
            let mut fds = [PollFd::new(output.as_fd(), PollFlags::POLLOUT)];
            if poll(&mut fds, PollTimeout::from(POLL))? == 0 {
                if since.elapsed() >= PATIENCE {
                    let why = format!("its reader has read nothing for {} s", PATIENCE.as_secs());
                    return Err(io::Error::new(io::ErrorKind::TimedOut, why));
                }
                continue;
            }
            match output.write(piece) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    piece = &piece[count..];
                    since = Instant::now();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Seek;

    use super::*;

    #[test]
    fn an_archive_never_ends_between_two_files_but_at_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let (mut written, mut held) = (tempfile::tempfile().unwrap(), Vec::new());
        let output = written.try_clone().unwrap();
        let mut progress = TarProgress {
            output: &output,
            held: &mut held,
            show: &mut |_, _| {},
            stopped: &|| false,
        };
        let length = || output.metadata().unwrap().len();
        super::directory("web1-s1", &mut progress).unwrap();
        assert_eq!(length(), 256);
        let mut whole = 512;
        for size in [0, 1, 512, 70_000] {
            let path = directory.path().join(format!("{size}"));
            fs::write(&path, vec![7; size]).unwrap();
            file("web1-s1", &path, &mut progress).unwrap();
            whole += 512 + (size as u64).next_multiple_of(512);
            assert_eq!(length(), whole - 256);
        }
        end(&mut progress).unwrap();
        assert_eq!(length(), whole + 1024);
        let mut bytes = Vec::new();
        written.rewind().unwrap();
        written.read_to_end(&mut bytes).unwrap();
        assert_eq!(&bytes[..9], b"web1-s1/\0");
        assert_eq!(bytes[bytes.len() - 1024..], tar::END);
    }
}
