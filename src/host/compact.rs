//! Writing a plain image anew, in less room: beside it, and then in its place.

use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;

use crate::create::room;
use crate::host::image::{Source, rewrite};
use crate::host::pump::{Output, Spool, add_sums};
use crate::host::{files, sharing};
use crate::memory::align::{Aligner, is_zero};
use crate::memory::{Form, Sizes, header, partial_path};
use crate::record::Record;

/// What of an image a chunk has, in bytes: whole pages.
const CHUNK: usize = 256 << 10;
const PAGE_BYTES: usize = 4096;
const PAGE: u64 = PAGE_BYTES as u64;

/// Why an image is not written anew.
#[derive(Debug, thiserror::Error)]
pub enum NotCompact {
    #[error("It is compressed already")]
    Compressed,
    #[error("Its migration stream is one that this program does not know")]
    Foreign,
    #[error("Its file system has {} MiB free, and needs up to {} MiB for the new file", .free >> 20, .needed >> 20)]
    Room {
        /// In bytes.
        free: u64,
        /// In bytes.
        needed: u64,
    },
    #[error("It was replaced or changed meanwhile")]
    Changed,
    #[error("It is a symbolic link, which would be replaced by a file")]
    Link,
    #[error(
        "It has {0} names (hard links), and only one of them would name the new file: keep one name, or copy it first"
    )]
    Names(u64),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What has become of an image.
#[derive(Debug)]
pub struct Compacted {
    pub before: Sizes,
    pub after: Sizes,
    /// What is to be told.
    pub notes: Vec<String>,
}

/// Whether an image has the form already that it would get.
pub fn is_compact(source: &Source) -> bool {
    source.image.sums.is_some()
}

/// The file that a path leads to, which is the one to be replaced; nothing of it is read.
pub fn place(path: &Path) -> Result<PathBuf, NotCompact> {
    let place = fs::canonicalize(path)?;
    check_names(&place)?;
    Ok(place)
}

fn check_names(path: &Path) -> Result<(), NotCompact> {
    let meta = fs::symlink_metadata(path)?;
    match meta.nlink() {
        _ if meta.is_symlink() => Err(NotCompact::Link),
        names if meta.is_file() && names > 1 => Err(NotCompact::Names(names)),
        _ => Ok(()),
    }
}

/// The name of the new file until it takes the place of the old one.
pub fn new_path(image: &Path) -> PathBuf {
    let mut path = image.as_os_str().to_owned();
    path.push(".compact");
    partial_path(Path::new(&path))
}

/// Why it cannot be done, if that is known before.
pub fn check(path: &Path, source: &Source) -> Result<(), NotCompact> {
    if source.image.form != Form::Plain {
        return Err(NotCompact::Compressed);
    }
    if is_compact(source) {
        return Ok(());
    }
    let files::Room { free, total, .. } = files::room(path)?;
    let meta = source.file.metadata()?;
    // Entries are added, and zeros left out.
    let needed = meta.blocks().saturating_mul(512).saturating_add(meta.len() / 16);
    let kept = room::reserve(free, total, 0);
    match free.saturating_sub(kept) >= needed {
        true => Ok(()),
        false => Err(NotCompact::Room { free, needed: needed.saturating_add(kept) }),
    }
}

/// Writes an image anew if it has not that form, or gives it its holes back, and has it share its storage with `like`, or with the older image
/// beside it that it has most in common with. On an error it is as it was.
pub fn compact(
    path: &Path,
    source: &mut Source,
    like: Option<&Path>,
) -> Result<Compacted, NotCompact> {
    check_names(path)?;
    check(path, source)?;
    let before = sharing::sizes(&source.file)?;
    let mut record = source.image.record.clone();
    let mut notes = Vec::new();
    if is_compact(source) {
        punch_holes(path, &source.file, source.image.stream_offset)?;
        // A signal ends this program at once: nothing is in its middle.
        notes.extend(sharing::share_with_older(path, &record, like, &|| false));
        let after = sharing::sizes(&source.file)?;
        return Ok(Compacted { before, after, notes });
    }
    let new = new_path(path);
    // Of a run that was killed.
    files::remove(&new)?;
    let file = files::create_new(&new)?;
    let mut attempt = || -> Result<Sizes, NotCompact> {
        write(&file, &new, source, &mut record)?;
        keep_owner(&source.file, &file)?;
        file.sync_all()?;
        let again = File::open(&new)?;
        let mut written =
            Source::of(again, new.display().to_string()).map_err(|error| told(&error.chain()))?;
        written.verify().map_err(|error| told(&error.chain()))?;
        notes.extend(sharing::share_with_older(&new, &record, like, &|| false));
        // Until the new file has the name, the record of the old one stays as it is.
        let held = rewrite::held(path)?;
        let is_same = files::has_name(&source.file, path)
            && source.file.metadata()?.len() == before.apparent
            && rewrite::read_held(&held, path)? == source.image.record;
        check_names(path)?;
        if !is_same || !files::has_name(&file, &new) {
            return Err(NotCompact::Changed);
        }
        fs::rename(&new, path)?;
        Ok(sharing::sizes(&file)?)
    };
    match attempt() {
        Ok(after) => {
            files::sync_directory(path)?;
            Ok(Compacted { before, after, notes })
        }
        Err(error) => {
            if files::has_name(&file, &new) {
                files::remove(&new)?;
            }
            Err(error)
        }
    }
}

/// Turns zeros of the stream into holes again that a copy has filled: what the file says stays the same.
fn punch_holes(path: &Path, image: &File, stream: u64) -> Result<(), NotCompact> {
    let file = OpenOptions::new().write(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    let meta = image.metadata()?;
    if files::id(&file)? != files::id(image)? {
        return Err(NotCompact::Changed);
    }
    let punch = |from: u64, to: u64| -> io::Result<()> {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&file, hole, from, to - from) {
            // Nothing is lost but space.
            Err(Errno::OPNOTSUPP) => Ok(()),
            done => Ok(done?),
        }
    };
    let mut chunk = vec![0; CHUNK];
    // What stands before may be replaced meanwhile.
    let mut at = stream.next_multiple_of(PAGE);
    // Where zeros begin that reach up to `at`.
    let mut zeros = None;
    let end = meta.len() / PAGE * PAGE;
    while at < end {
        let data = match seek(image, SeekFrom::Data(at)) {
            Ok(data) => data / PAGE * PAGE,
            Err(Errno::NXIO) => end,
            Err(error) => return Err(io::Error::from(error).into()),
        };
        if let (true, Some(from)) = (data > at, zeros) {
            punch(from, at)?;
            zeros = None;
        }
        at = at.max(data);
        let length = usize::try_from(end - at.min(end)).unwrap_or(CHUNK).min(CHUNK);
        image.read_exact_at(&mut chunk[..length], at)?;
        for page in chunk[..length].chunks_exact(PAGE_BYTES) {
            if is_zero(page) {
                zeros.get_or_insert(at);
            } else if let Some(from) = zeros.take() {
                punch(from, at)?;
            }
            at += PAGE;
        }
    }
    if let Some(from) = zeros {
        punch(from, at)?;
    }
    Ok(file.set_times(FileTimes::new().set_modified(meta.modified()?))?)
}

fn told(chain: &[String]) -> NotCompact {
    NotCompact::Io(io::Error::other(chain.join(": ")))
}

/// Writes the image, verified on the way if it has checksums, with this record.
fn write(
    file: &File,
    new: &Path,
    source: &mut Source,
    record: &mut Record,
) -> Result<(), NotCompact> {
    let config = source.image.config.clone();
    let space = header::aligned_space(&config, record);
    // Not complete before its end: a power cut may leave it.
    let begun = Record { complete: false, ..record.clone() };
    let head = header::encode(&config, &begun, space).map_err(io::Error::other)?;
    let start = head.len() as u64;
    file.write_all_at(&head, 0)?;
    let directory = new.parent().unwrap_or(Path::new("/"));
    let output = Output::new(file.try_clone()?, start);
    let mut aligner = Aligner::new(output, Spool::new(directory), start);
    let length = source.image.stream_len;
    let mut stream = source.stream()?.take(length);
    let mut chunk = vec![0; CHUNK];
    loop {
        match stream.read(&mut chunk)? {
            0 => break,
            count => aligner.feed(&chunk[..count])?,
        }
    }
    drop(stream);
    let written = aligner.end()?;
    if !written.known {
        return Err(NotCompact::Foreign);
    }
    add_sums(written)?;
    record.image_size = file.metadata()?.len();
    let head = header::encode(&config, record, space).map_err(io::Error::other)?;
    file.write_all_at(&head, 0)?;
    Ok(())
}

/// The new file is for whom the old one was, and as old.
fn keep_owner(old: &File, new: &File) -> io::Result<()> {
    let meta = old.metadata()?;
    fchown(new, Some(meta.uid()), Some(meta.gid()))?;
    new.set_permissions(meta.permissions())?;
    new.set_times(FileTimes::new().set_modified(meta.modified()?))
}

#[cfg(test)]
mod tests;
