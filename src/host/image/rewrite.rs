//! Another record in an image that is complete, or in the file of a record.
//!
//! The room for a record is in the image's header, which is written over in place: the rest may be as
//! large as the guest's memory. A power cut could tear that write, so the new bytes are made durable in a
//! file beside the image first, and that file stays until they are in the image too. Whoever opens the
//! image to use it finishes such a write ([`finish`]).

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc::ENAMETOOLONG;

use crate::domain::DomainConfig;
use crate::host::{files, lock, record_file};
use crate::memory::frames::{self, Level};
use crate::memory::header::{self, Header, MARK, MAX_RECORD, Tail};
use crate::memory::stream::LIBXL_IDENT;
use crate::memory::{Form, partial_path, read_front};
use crate::record::{DiskRecord, Record};

/// The end of the name of the file beside an image.
const NEW: &str = ".new-record";
/// How long another program may take to replace a record.
const HELD: Duration = Duration::from_secs(10);
/// No header with its record is longer.
const MOST: u64 = 20 << 20;

fn beside(image: &Path) -> PathBuf {
    let mut path = image.as_os_str().to_owned();
    path.push(NEW);
    path.into()
}

/// The record of an image, or in a file of its own.
pub fn read(path: &Path) -> io::Result<Record> {
    if record_file::is_record(path) {
        let mut text = String::new();
        files::open(path)?.take(MAX_RECORD as u64 + 1).read_to_string(&mut text)?;
        return Record::parse(&text).map_err(io::Error::other);
    }
    read_front(&mut files::open(path)?).map(|(_, record)| record).map_err(io::Error::other)
}

/// Why the record of an image cannot be replaced by that one, if so.
pub fn trouble(path: &Path, record: &Record) -> Option<String> {
    if record_file::is_record(path) {
        return None;
    }
    let bytes = files::open(path).and_then(|mut file| bytes(&mut file, record));
    bytes.err().map(|error| error.to_string())
}

/// Gives an image, or the file of a record, another record of the same snapshot.
pub fn replace(path: &Path, record: &Record) -> io::Result<()> {
    if record_file::is_record(path) {
        return replace_file(path, record);
    }
    let mut file = held(path)?;
    finish_in(&file, path)?;
    let bytes = bytes(&mut file, record)?;
    let new = beside(path);
    let partial = partial_path(&new);
    // Of a run that was killed.
    files::remove(&partial)?;
    let mut log = files::create_new(&partial)?;
    log.write_all(&bytes)?;
    log.sync_all()?;
    fs::rename(&partial, &new)?;
    files::sync_directory(&new)?;
    apply(&file, &bytes, &new)
}

/// An image that nobody else gives another record until it is closed.
pub fn held(path: &Path) -> io::Result<File> {
    let file = files::open_no_link(path)?;
    lock::hold_within(&file, HELD)?;
    match files::has_name(&file, path) {
        true => Ok(file),
        false => Err(io::Error::other("another file has its name by now")),
    }
}

/// The record of an image that is held.
pub fn read_held(mut file: &File, path: &Path) -> io::Result<Record> {
    finish_in(file, path)?;
    file.rewind()?;
    read_front(&mut file).map(|(_, record)| record).map_err(io::Error::other)
}

/// Ends the replacement of a record that was cut short; where there was none, does nothing.
pub fn finish(path: &Path) -> io::Result<()> {
    match begun(path)? {
        None => Ok(()),
        // One that is still at work ends it itself.
        Some(_) => finish_in(&held(path)?, path),
    }
}

fn finish_in(file: &File, path: &Path) -> io::Result<()> {
    let Some(log) = begun(path)? else { return Ok(()) };
    let new = beside(path);
    let mut bytes = Vec::new();
    let ours = files::is_ours(&log.metadata()?);
    log.take(MOST + 1).read_to_end(&mut bytes)?;
    let whole = read_front(&mut io::Cursor::new(&bytes));
    let foreign = |why: &str| {
        io::Error::other(format!("{} {why}: if no delete runs, remove it", new.display()))
    };
    let Some((_, record)) = whole.ok().filter(|_| ours && bytes.len() as u64 <= MOST) else {
        return Err(foreign("is no header of an image"));
    };
    if !is_header_of(file, &bytes, &record)? {
        return Err(foreign("is the header of another image"));
    }
    apply(file, &bytes, &new)
}

/// Whether these bytes stand at the beginning of an image, or are to: it has the same snapshot, unless its header is torn,
/// and what follows the header begins right behind them.
fn is_header_of(mut file: &File, bytes: &[u8], record: &Record) -> io::Result<bool> {
    let mut next = [0; 8];
    let at = bytes.len() as u64;
    if file.read_exact_at(&mut next, at).is_err() {
        return Ok(false);
    }
    let [first, second, third, fourth, ..] = next;
    let follows = match frames::is_compressed([bytes[0], bytes[1], bytes[2], bytes[3]]) {
        true => frames::is_compressed([first, second, third, fourth]),
        false => next == LIBXL_IDENT.to_be_bytes(),
    };
    file.rewind()?;
    Ok(follows && read_front(&mut file).map_or(true, |(_, there)| there.id == record.id))
}

/// What a replacement in an earlier image of that name has left, if anything.
pub fn leftover(image: &Path) -> Option<PathBuf> {
    Some(beside(image)).filter(|path| fs::symlink_metadata(path).is_ok())
}

/// The bytes of a replacement that has begun and not ended.
fn begun(path: &Path) -> io::Result<Option<File>> {
    match files::open(&beside(path)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // The name of the image may just be short enough: then there is no such file either.
        Err(error) if error.raw_os_error() == Some(ENAMETOOLONG) => Ok(None),
        log => log.map(Some),
    }
}

fn apply(file: &File, bytes: &[u8], new: &Path) -> io::Result<()> {
    file.write_all_at(bytes, 0)?;
    file.sync_all()?;
    files::remove(new)?;
    files::sync_directory(new)
}

/// Writes a record into a new file.
pub fn write_new(path: &Path, record: &Record) -> io::Result<()> {
    files::rename_new(&written(path, record)?, path)?;
    files::sync_directory(path)
}

fn replace_file(path: &Path, record: &Record) -> io::Result<()> {
    fs::rename(written(path, record)?, path)?;
    files::sync_directory(path)
}

/// The record in a file of another name.
fn written(path: &Path, record: &Record) -> io::Result<PathBuf> {
    let text = MARK.to_owned() + &record.to_toml();
    let partial = partial_path(path);
    // Of a run that was killed.
    files::remove(&partial)?;
    let mut file = files::create_new(&partial)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    Ok(partial)
}

/// The first bytes of an image with another record. They are as many as those that stand there.
fn bytes(file: &mut File, record: &Record) -> io::Result<Vec<u8>> {
    let odd = |why: &str| io::Error::other(why.to_owned());
    let length = file.metadata()?.len();
    file.rewind()?;
    let mut magic = [0; 4];
    file.read_exact(&mut magic)?;
    file.rewind()?;
    let form = match frames::is_compressed(magic) {
        true => Form::Zstd { checksums: true },
        false => Form::Plain,
    };
    let Header { config, tail } = match form {
        Form::Plain => Header::read(file),
        Form::Zstd { .. } => Header::read(&mut frames::Unpacked::new(&mut *file)?),
    }
    .map_err(io::Error::other)?;
    let Tail::Record(text) = tail else { return Err(odd("it has no record")) };
    let old = Record::parse(&text).map_err(io::Error::other)?;
    if old.id != record.id {
        return Err(odd("it is of another snapshot"));
    }
    if !old.complete || old.image_size == 0 {
        return Err(odd("its record is at its end, because it went through a pipe"));
    }
    // The domain is restored with the disks of the configuration: they move with those of the record.
    let moved = with_disks(&config, &old, record)?;
    let room = MARK.len() + text.len() + config.len();
    let space = room.checked_sub(moved.len()).ok_or_else(|| odd("its header has no room"))?;
    let plain = header::encode(&moved, record, space).map_err(io::Error::other)?;
    if form == Form::Plain {
        return Ok(plain);
    }
    let layout = frames::layout(file, length).map_err(io::Error::other)?;
    let Some((_, Some(marker))) = layout.ours else {
        return Err(odd("another program has compressed it, and left no room for its record"));
    };
    // Which level it was is not known any more; the room does not depend on it.
    let bytes = frames::head(&plain, Level::DEFAULT, Some(marker))?;
    match bytes.len() as u64 == layout.head {
        true => Ok(bytes),
        false => {
            Err(odd("another version of zstd has compressed it, and its record has another room"))
        }
    }
}

/// libxl's configuration with the images that have other paths in the new record.
fn with_disks(config: &str, old: &Record, new: &Record) -> io::Result<String> {
    let moved = |disk: &&DiskRecord| {
        old.disks.iter().any(|before| before.vdev == disk.vdev && before.path != disk.path)
    };
    let mut moved = new.disks.iter().filter(moved).peekable();
    if moved.peek().is_none() {
        return Ok(config.to_owned());
    }
    let mut config = DomainConfig::parse(config).map_err(io::Error::other)?;
    for DiskRecord { vdev, path, format, .. } in moved {
        // Nothing but a merge moves an image, and that knows the format.
        let Some(format) = *format else { continue };
        config.set_image(vdev, path, format).map_err(io::Error::other)?;
    }
    Ok(config.to_json())
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::disk::kind::ProofSlot;
    use crate::memory::Image;
    use crate::memory::frames::{Marker, head};
    use crate::memory::header::record_space;
    use crate::support::record::sample;
    use crate::support::streams::pv_stream;

    /// As libxl writes it, with white space.
    fn config(record: &Record) -> String {
        let disk = |disk: &DiskRecord| {
            let path = disk.path.display();
            format!(r#"{{ "vdev": "{}", "pdev_path": "{path}", "format": "qcow2" }}"#, disk.vdev)
        };
        let disks: Vec<_> = record.disks.iter().map(disk).collect();
        format!(
            r#"{{ "c_info": {{ "type": "pv", "name": "web1" }}, "disks": [ {} ] }}"#,
            disks.join(", ")
        )
    }

    fn paths(config: &str) -> Vec<PathBuf> {
        let disks = DomainConfig::parse(config).unwrap().disks().unwrap();
        disks.iter().map(|disk| disk.file().to_owned()).collect()
    }

    /// A whole image, and the other record that it is to get.
    fn image(path: &Path, compressed: bool) -> (Record, Record) {
        let mut old = sample();
        let space = record_space(&old);
        let stream = pv_stream();
        let length = header::encode(&config(&old), &old, space).unwrap().len() + stream.len();
        old.image_size = length as u64;
        let plain = header::encode(&config(&old), &old, space).unwrap();
        let bytes = match compressed {
            false => [plain, stream].concat(),
            true => {
                let body = frames::frame(&stream, Level::DEFAULT).unwrap();
                let length =
                    (head(&plain, Level::DEFAULT, None).unwrap().len() + body.len()) as u64;
                let marker = Marker { file_len: length, image_len: old.image_size };
                [head(&plain, Level::DEFAULT, Some(marker)).unwrap(), body].concat()
            }
        };
        fs::write(path, bytes).unwrap();
        let mut new = old.clone();
        let ProofSlot::Frozen { proof: Some(proof), .. } = new.disks[1].snapshot.kind_mut().proof()
        else {
            panic!()
        };
        proof.file_size += 1;
        new.disks[1].path = "/srv/somewhere/else/with a longer name.qcow2".into();
        new.disks[1].format = Some(crate::domain::Format::Qcow2);
        (old, new)
    }

    #[test]
    fn the_record_changes_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        for compressed in [false, true] {
            let path = directory.path().join("a.xlsave");
            let (old, new) = image(&path, compressed);
            assert_eq!(read(&path).unwrap(), old);
            let before = fs::read(&path).unwrap();
            assert_eq!(trouble(&path, &new), None);
            replace(&path, &new).unwrap();
            let after = Image::read(&mut File::open(&path).unwrap()).unwrap();
            assert_eq!(after.record, new);
            // What xl restore reads names the image that moved, and the others as before.
            let expected: Vec<_> = new.disks.iter().map(|disk| disk.path.clone()).collect();
            assert_eq!(paths(&after.config), expected);
            assert_eq!(fs::metadata(&path).unwrap().len(), before.len() as u64);
            replace(&path, &old).unwrap();
            assert_eq!(read(&path).unwrap(), old);
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn a_write_that_was_torn_is_finished() {
        let directory = tempfile::tempdir().unwrap();
        for compressed in [false, true] {
            let path = directory.path().join("a.xlsave");
            let (old, new) = image(&path, compressed);
            let bytes = bytes(&mut File::open(&path).unwrap(), &new).unwrap();
            for torn in [0, 1, bytes.len() / 2, bytes.len() - 1] {
                image(&path, compressed);
                fs::write(beside(&path), &bytes).unwrap();
                let file = files::open_no_link(&path).unwrap();
                file.write_all_at(&bytes[..torn], 0).unwrap();
                finish(&path).unwrap();
                assert_eq!(read(&path).unwrap(), new);
                Image::read(&mut File::open(&path).unwrap()).unwrap();
            }
            finish(&path).unwrap();
            assert_eq!(read(&path).unwrap().name, old.name);
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
            // What is no header is not written over one.
            fs::write(beside(&path), "no header").unwrap();
            assert!(finish(&path).is_err());
            fs::remove_file(beside(&path)).unwrap();
        }
    }

    #[test]
    fn a_reader_waits_only_where_a_write_has_begun() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.xlsave");
        let (old, new) = image(&path, false);
        let busy = held(&path).unwrap();
        finish(&path).unwrap();
        assert_eq!(read(&path).unwrap(), old);
        let bytes = bytes(&mut File::open(&path).unwrap(), &new).unwrap();
        fs::write(beside(&path), &bytes).unwrap();
        let reader = thread::spawn({
            let path = path.clone();
            move || finish(&path).map(|()| read(&path).unwrap())
        });
        thread::sleep(Duration::from_millis(100));
        assert!(!reader.is_finished());
        assert_eq!(read_held(&busy, &path).unwrap(), new);
        drop(busy);
        assert_eq!(reader.join().unwrap().unwrap(), new);
    }

    #[test]
    fn what_cannot_be_rewritten_is_known_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.xlsave");
        let (_, new) = image(&path, false);
        let why = |record: &Record| trouble(&path, record).unwrap();
        let long = Record { description: "x".repeat(8192), ..new.clone() };
        assert!(why(&long).contains("were kept for it"), "{}", why(&long));
        let other = Record { id: uuid::Uuid::nil(), ..new.clone() };
        assert!(why(&other).contains("another snapshot"));
        let whole = fs::read(&path).unwrap();
        fs::write(&path, frames::frame(&whole, Level::DEFAULT).unwrap()).unwrap();
        assert!(why(&new).contains("another program"), "{}", why(&new));
    }

    #[test]
    fn a_record_in_a_file_is_replaced_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web1.record");
        let record = sample();
        fs::write(&path, MARK.to_owned() + &record.to_toml()).unwrap();
        let new = Record { description: "x".repeat(8192), ..record };
        assert_eq!(trouble(&path, &new), None);
        replace(&path, &new).unwrap();
        assert_eq!(read(&path).unwrap(), new);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
