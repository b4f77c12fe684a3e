//! Having a memory image share its storage with an older one: pages that the guest has not changed are stored
//! once. Each image stays whole, whatever becomes of the other.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::RangeInclusive;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nix::libc::{self, O_TMPFILE};
use rustix::fs::fstatvfs;

use crate::host::{extents, files};
use crate::memory::align::{is_zero, page_sum};
use crate::memory::entries::PAGE;
use crate::memory::peek::{Effort, Extent, Peek, peek};
use crate::memory::places::{Places, go_on};
use crate::memory::stream::BadStream;
use crate::memory::sums::Table;
use crate::memory::{Form, Image, Sizes};
use crate::record::{Parent, Record};
use crate::tool::quote;

/// How much is compared at once.
const CHUNK: usize = 1 << 20;

/// Why a file of this directory cannot share its storage with that one, if so: tried with one block of two files that
/// have no names and are gone at once, one beside each of them. However large an image is, that takes no time.
pub fn trouble(older: &Path, directory: &Path) -> Option<String> {
    const BLOCKS: RangeInclusive<u64> = 4096..=1 << 20;
    let scratch = |directory: &Path| -> io::Result<(File, u64)> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(O_TMPFILE)
            .mode(0o600)
            .open(directory)?;
        let block = file.metadata()?.blksize().clamp(*BLOCKS.start(), *BLOCKS.end());
        Ok((file, block))
    };
    let attempt = || -> io::Result<()> {
        let beside = fs::canonicalize(older)?;
        let beside = beside.parent().ok_or(io::ErrorKind::NotFound)?;
        let ((from, block), (to, _)) = (scratch(beside)?, scratch(directory)?);
        let content = vec![0x5a; usize::try_from(block).map_err(io::Error::other)?];
        from.write_all_at(&content, 0)?;
        to.write_all_at(&content, 0)?;
        match extents::share(&from, 0, &to, 0, block)? {
            0 => Err(io::ErrorKind::Unsupported.into()),
            _ => Ok(()),
        }
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

/// Has a complete image share with `like`, or with the older image beside it that it has most in common with, until
/// somebody wants it to stop. Returns what is to be told: the image is as good without.
pub fn share_with_older(
    image: &Path,
    record: &Record,
    like: Option<&Path>,
    stop: &dyn Fn() -> bool,
) -> Option<String> {
    let directory = image.parent()?;
    let found = like
        .map_or_else(|| older(directory, record), |like| Ok((Some(like.to_owned()), usize::MAX)));
    let none = |with: &Path, why: &str| {
        format!("the image shares no storage with {}: {why}; pages of zeros take none", quote(with))
    };
    let attempt = || -> Result<(), String> {
        let (older, count) = found.map_err(|why| none(directory, &why.to_string()))?;
        let Some(older) = older else { return Ok(()) };
        if let Some(why) = trouble(&older, directory) {
            // It stays so: once is enough, with the second image.
            return if count == 1 || like.is_some() { Err(none(&older, &why)) } else { Ok(()) };
        }
        share(image, &older, stop).map(drop).map_err(|why| {
            format!(
                "the image may share less than it could with {}: {why}; it is complete",
                quote(&older)
            )
        })
    };
    attempt().err()
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
pub fn share(image: &Path, older: &Path, stop: &dyn Fn() -> bool) -> io::Result<u64> {
    let mut from = files::open(older)?;
    let old = Image::read(&mut from).map_err(io::Error::other)?;
    let mut to = files::open_no_link(image)?;
    let new = Image::read(&mut to).map_err(io::Error::other)?;
    // Larger than a page on some: XFS with -b size=16k.
    let block = fstatvfs(&to)?.f_frsize.max(PAGE as u64);
    let mut shared = 0;
    equal((&from, &old), (&to, &new), stop, &mut |piece| {
        let Piece { mut from_at, mut to_at, mut length } = piece.in_blocks(block);
        while length > 0 {
            go_on(stop)?;
            let most = length.min(extents::MOST / block * block);
            let done = extents::share(&from, from_at, &to, to_at, most)?.min(most);
            // Somebody has written to one of them, or only their checksums are the same.
            if done == 0 {
                return Ok(());
            }
            shared += done;
            (from_at, to_at, length) = (from_at + done, to_at + done, length - done);
        }
        Ok(())
    })?;
    Ok(shared)
}

/// Bytes of two images that are equal, or that have the same checksums.
#[derive(Debug, Clone, Copy)]
struct Piece {
    from_at: u64,
    to_at: u64,
    length: u64,
}

impl Piece {
    /// What of it are whole blocks of both files; nothing if their blocks do not begin at the same bytes.
    fn in_blocks(self, block: u64) -> Piece {
        let Piece { from_at, to_at, length } = self;
        let skipped = to_at.next_multiple_of(block) - to_at;
        let fits = from_at % block == to_at % block;
        let length = if fits { length.saturating_sub(skipped) / block * block } else { 0 };
        Piece { from_at: from_at + skipped, to_at: to_at + skipped, length }
    }
}

/// Why the index of an image would take too much of dom0's memory, if so. Nothing needs it.
fn too_much(image: &Image) -> Option<String> {
    const ENTRY: u64 = 16;
    const SHARE: u64 = 4;
    let index = image.stream_len / PAGE as u64 * ENTRY;
    let information = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = information.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let available = line.trim().trim_end_matches(" kB").parse::<u64>().ok()?.saturating_mul(1024);
    (index > available / SHARE).then(|| {
        format!(
            "its index would take {} MiB of dom0's memory, of which {} MiB are available",
            index >> 20,
            available >> 20
        )
    })
}

/// Tells of the pages that two images have in common, but for those of zeros, which are holes and cost nothing. If both
/// have checksums, nothing but these is read of the pages: the kernel compares what it shares.
fn equal<F: Read + Seek + Clone>(
    (mut from, old): (F, &Image),
    (mut to, new): (F, &Image),
    stop: &dyn Fn() -> bool,
    take: &mut dyn FnMut(Piece) -> io::Result<()>,
) -> io::Result<()> {
    const STEP: u64 = PAGE as u64;
    if let Some(why) = too_much(old) {
        return Err(io::Error::other(why));
    }
    let places = Places::of(&mut from.clone(), old, stop).map_err(of_storage)?;
    if places.is_empty() {
        return Ok(());
    }
    let zeros = page_sum(&[0; PAGE]);
    let mut next: Option<Piece> = None;
    let mut add = |from_at: u64, to_at: u64| match &mut next {
        Some(piece)
            if (piece.from_at + piece.length, piece.to_at + piece.length) == (from_at, to_at) =>
        {
            piece.length += STEP;
            Ok(())
        }
        _ => next.replace(Piece { from_at, to_at, length: STEP }).map_or(Ok(()), &mut *take),
    };
    let mut buffers = (Vec::new(), Vec::new());
    places
        .runs(&mut to.clone(), new, stop, &mut |run| {
            let offsets = (0..run.length).step_by(PAGE);
            if let (Some(old), Some(new)) = (old.sums, new.sums) {
                let count = usize::try_from(run.length / STEP).map_err(io::Error::other)?;
                let sums = |table: &Table, file: &mut F, first: u64| {
                    let there = first.saturating_add(count as u64) <= table.count;
                    there.then(|| table.sums(file, first, count)).transpose()
                };
                let old = sums(&old, &mut from, run.before.0)?.unwrap_or_default();
                let new = sums(&new, &mut to, run.before.1)?.unwrap_or_default();
                let pairs = old.iter().zip(&new).zip(offsets);
                return pairs
                    .filter(|((old, new), _)| old == new && **new != zeros)
                    .try_for_each(|(_, at)| add(run.from + at, run.to + at));
            }
            for chunk in offsets.step_by(CHUNK / PAGE) {
                go_on(stop)?;
                let length = run.length.saturating_sub(chunk).min(CHUNK as u64);
                read_at(&mut from, run.from + chunk, length, &mut buffers.0)?;
                read_at(&mut to, run.to + chunk, length, &mut buffers.1)?;
                let pages = buffers.0.chunks(PAGE).zip(buffers.1.chunks(PAGE));
                for ((old, new), at) in pages.zip((chunk..).step_by(PAGE)) {
                    if old == new && !is_zero(new) {
                        add(run.from + at, run.to + at)?;
                    }
                }
            }
            Ok(())
        })
        .map_err(of_storage)?;
    next.map_or(Ok(()), take)
}

fn read_at<F: Read + Seek>(
    file: &mut F,
    at: u64,
    length: u64,
    buffer: &mut Vec<u8>,
) -> io::Result<()> {
    buffer.resize(usize::try_from(length).map_err(io::Error::other)?, 0);
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(buffer)
}

/// The error itself, where reading failed or was stopped.
fn of_storage(error: BadStream) -> io::Error {
    match error {
        BadStream::Io(error) => error,
        other => io::Error::other(other),
    }
}

/// What a file takes: its length, what of it is stored, and what of that it shares with others, if that is known.
pub fn sizes(file: &File) -> io::Result<Sizes> {
    let meta = file.metadata()?;
    Ok(Sizes {
        apparent: meta.len(),
        on_disk: meta.blocks().saturating_mul(512),
        shared: extents::shared(file, None),
    })
}

#[cfg(test)]
mod tests;
