//! Having a memory image share its storage with an older one: pages that the guest has not changed are stored
//! once. Each image stays whole, whatever becomes of the other.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nix::libc::{self, O_TMPFILE};
use rustix::fs::ioctl_ficlone;

use crate::host::{extents, files};
use crate::memory::align::is_zero;
use crate::memory::entries::PAGE;
use crate::memory::peek::{Effort, Extent, Peek, peek};
use crate::memory::places::Places;
use crate::memory::{Form, Image, Sizes};
use crate::record::{Parent, Record};
use crate::tool::quote;

/// How much is compared at once.
const CHUNK: u64 = 1 << 20;

/// Why a file of this directory cannot share its storage with that one, if so: tried with a file that has no name
/// and is gone at once.
pub fn trouble(older: &Path, directory: &Path) -> Option<String> {
    let attempt = || -> io::Result<()> {
        let source = files::open(older)?;
        let scratch =
            OpenOptions::new().write(true).custom_flags(O_TMPFILE).mode(0o600).open(directory)?;
        Ok(ioctl_ficlone(&scratch, &source)?)
    };
    attempt().err().map(|error| match error.raw_os_error() {
        Some(libc::EXDEV) => "they are on different file systems".to_owned(),
        Some(libc::EOPNOTSUPP | libc::ENOTTY | libc::EINVAL) => {
            "its file system does not share content between files (XFS and Btrfs do)".to_owned()
        }
        _ => error.to_string(),
    })
}

/// The image of a directory that this snapshot has most in common with: the one that it descends from, else the
/// youngest that is older.
///
/// Also returns how many there are.
pub fn older(directory: &Path, record: &Record) -> io::Result<(Option<PathBuf>, usize)> {
    let mut best: Option<(bool, Timestamp, PathBuf)> = None;
    let mut count = 0;
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let Some(other) = plain(&path) else { continue };
        let is_older = other.id != record.id && other.created <= record.created;
        if !is_older || other.domain.uuid != record.domain.uuid || other.domain.uuid.is_nil() {
            continue;
        }
        let is_parent = record.parent == Some(Parent::Snapshot(other.id));
        count += 1;
        let rank = (is_parent, other.created, path);
        if best.as_ref().is_none_or(|best| *best < rank) {
            best = Some(rank);
        }
    }
    Ok((best.map(|(.., path)| path), count))
}

/// Has a complete image share with `like`, or with the older image beside it that it has most in common with.
/// Returns what is to be told: the image is as good without.
pub fn share_with_older(image: &Path, record: &Record, like: Option<&Path>) -> Option<String> {
    let directory = image.parent()?;
    let found = like
        .map_or_else(|| older(directory, record), |like| Ok((Some(like.to_owned()), usize::MAX)));
    let attempt = || -> Result<(), (PathBuf, String)> {
        let (older, count) = found.map_err(|why| (directory.to_owned(), why.to_string()))?;
        let Some(older) = older else { return Ok(()) };
        if let Some(why) = trouble(&older, directory) {
            // It stays so: once is enough, with the second image.
            return if count == 1 || like.is_some() { Err((older, why)) } else { Ok(()) };
        }
        share(image, &older).map(drop).map_err(|why| (older, why.to_string()))
    };
    let (older, why) = attempt().err()?;
    Some(format!(
        "the image shares no storage with {}: {why}; pages of zeros take none",
        quote(older)
    ))
}

/// The record of a plain image that is whole.
fn plain(path: &Path) -> Option<Record> {
    let mut file = fs::symlink_metadata(path).ok()?.is_file().then(|| files::open(path).ok())??;
    let length = file.metadata().ok()?.len();
    match peek(&mut file, length, Effort::Full) {
        Ok(Peek::Snapshot { record, form: Some(Form::Plain), extent: Extent::Whole }) => {
            Some(*record)
        }
        _ => None,
    }
}

/// Shares the storage of equal pages. Returns how many bytes that are.
pub fn share(image: &Path, older: &Path) -> io::Result<u64> {
    let mut from = files::open(older)?;
    let old = Image::read(&mut from).map_err(io::Error::other)?;
    let mut to = files::open_no_link(image)?;
    let new = Image::read(&mut to).map_err(io::Error::other)?;
    let places = Places::of(&mut from, &old).map_err(io::Error::other)?;
    let runs = places.runs(&mut to, &new).map_err(io::Error::other)?;
    let mut sharer = Sharer { from: &from, to: &to, next: None, shared: 0 };
    for run in runs {
        let mut at = 0;
        while at < run.length {
            let length = CHUNK.min(run.length - at);
            sharer.compare(run.from + at, run.to + at, length)?;
            at += length;
        }
    }
    sharer.flush()?;
    Ok(sharer.shared)
}

struct Sharer<'f> {
    from: &'f File,
    to: &'f File,
    /// Equal pages that are not shared yet.
    next: Option<(u64, u64, u64)>,
    shared: u64,
}

impl Sharer<'_> {
    fn compare(&mut self, from: u64, to: u64, length: u64) -> io::Result<()> {
        const STEP: u64 = PAGE as u64;
        let length = usize::try_from(length).expect("a chunk");
        let (mut old, mut new) = (vec![0; length], vec![0; length]);
        self.from.read_exact_at(&mut old, from)?;
        self.to.read_exact_at(&mut new, to)?;
        let offsets = (0..).step_by(PAGE);
        for ((old, new), at) in old.chunks(PAGE).zip(new.chunks(PAGE)).zip(offsets) {
            // Zeros are holes, and cost nothing.
            if old != new || is_zero(new) {
                continue;
            }
            let (from, to) = (from + at, to + at);
            match &mut self.next {
                Some((f, t, length)) if (*f + *length, *t + *length) == (from, to) => {
                    *length += STEP;
                }
                _ => {
                    self.flush()?;
                    self.next = Some((from, to, STEP));
                }
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let Some((mut from, mut to, mut left)) = self.next.take() else { return Ok(()) };
        while left > 0 {
            let done =
                extents::share(self.from, from, self.to, to, left.min(extents::MOST))?.min(left);
            // Somebody has written to one of them.
            if done == 0 {
                return Ok(());
            }
            self.shared += done;
            (from, to, left) = (from + done, to + done, left - done);
        }
        Ok(())
    }
}

/// What a file takes: its length, what of it is stored, and what of that it shares with others, if that is known.
pub fn sizes(file: &File) -> io::Result<Sizes> {
    let meta = file.metadata()?;
    Ok(Sizes {
        apparent: meta.len(),
        on_disk: meta.blocks().saturating_mul(512),
        shared: extents::shared(file),
    })
}

#[cfg(test)]
mod tests;
