//! The mark on a file that a deletion writes to, as it is read: see [`Merging`].

use std::io;
use std::path::Path;

use rustix::fs::getxattr;
use rustix::io::Errno;

use crate::disk::merge_mark::{LONGEST, Merging};

/// The name of the attribute; one of the class `user` is for regular files (xattr(7)).
pub const NAME: &str = "user.xl-snapshot.merging";

/// The mark on a file, if it has one.
pub fn of(path: &Path) -> Option<Merging> {
    let mut text = [0; LONGEST];
    let length = getxattr(path, NAME, &mut text).ok()?;
    Merging::parse(text.get(..length)?)
}

/// Why a file cannot be marked, if it cannot.
pub fn trouble(path: &Path) -> Option<String> {
    match getxattr(path, NAME, &mut [0; LONGEST]) {
        Ok(_) | Err(Errno::NODATA) => None,
        Err(Errno::NOTSUP) => Some(
            "its file system has no extended attributes (user.*), by which an interrupted merge is found \
             again"
                .into(),
        ),
        Err(error) => Some(io::Error::from(error).to_string()),
    }
}
