//! One of us per domain at a time.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc::O_NOFOLLOW;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::host::files;

const DIRECTORY: &str = "/run/xl-snapshot";

/// Holds the domain for this process, until it is dropped or the process ends.
///
/// A process that inherits the descriptor holds it as well (flock(2)).
///
/// The file stays: removing it would let two processes lock two files of one name.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// Takes the lock of a domain, or says who has it.
    pub fn take(uuid: Uuid, domain: &str, operation: &str) -> Result<Lock> {
        Lock::take_in(Path::new(DIRECTORY), uuid, domain, operation)
    }

    fn take_in(directory: &Path, uuid: Uuid, domain: &str, operation: &str) -> Result<Lock> {
        let path = directory.join(format!("{uuid}.lock"));
        let trouble = |error: std::io::Error| {
            Error::refused(format!("The lock {} of {domain}", path.display())).because(error)
        };
        files::make_directories(directory).map_err(trouble)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(O_NOFOLLOW)
            .mode(0o600)
            .open(&path)
            .map_err(trouble)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Only for the message: an empty text does no harm.
                let _ = file.take(256).read_to_string(&mut holder);
                return Err(Error::refused(format!("Domain {domain} is busy"))
                    .because(format!("xl-snapshot {} has it", holder.trim()))
                    .hint("try again when that has ended"));
            }
            Err(TryLockError::Error(error)) => return Err(trouble(error)),
        }
        file.set_len(0).map_err(trouble)?;
        file.rewind().map_err(trouble)?;
        writeln!(file, "{operation} (process {})", std::process::id()).map_err(trouble)?;
        Ok(Lock { file })
    }

    /// The descriptor that holds it.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_is_first() {
        let directory = tempfile::tempdir().unwrap();
        let take = |op| Lock::take_in(directory.path(), Uuid::nil(), "web1", op);
        let first = take("create s1").unwrap();
        let error = take("revert s1").unwrap_err();
        assert_eq!(error.exit_code(), 3);
        let who = format!("xl-snapshot create s1 (process {}) has it", std::process::id());
        assert_eq!(error.chain()[1], who);
        drop(first);
        take("revert s1").unwrap();
    }
}
