//! Reads the files and devices of disks, and what lies below them: only headers.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::libc::O_NONBLOCK;

use crate::disk::chain::Link;
use crate::disk::qcow2::{Header, READ};
use crate::domain::Format;
use crate::host::{files, marks, tools};
use crate::list::mark::Mark;
use crate::list::{FileEntry, FileKind, ImageFormat, VhdEntry, table};
use crate::record::QcowSnapshot;
use crate::tool::{check_path, vhd_util};

/// Blocks as stat(2) counts them, in bytes.
pub(super) const BLOCK: u64 = 512;

/// A file that cannot be looked at.
pub(super) fn nowhere() -> FileEntry {
    let why = || "No such file, or its file system does not answer".to_owned();
    FileEntry {
        facts: Err(why()),
        allocated: 0,
        device: None,
        link: Err(why()),
        inside: Err(why()),
        mark: None,
        vhd: None,
    }
}

/// What is known of a file or device that is a disk, or lies below one.
pub(super) fn file(path: &Path, kind: FileKind) -> FileEntry {
    let meta = fs::metadata(path);
    let device = files::device(path);
    let mut seen = FileEntry {
        facts: files::facts(path).map_err(|error| error.to_string()),
        allocated: meta.map_or(0, |meta| meta.blocks().saturating_mul(BLOCK)),
        device,
        link: Err("it was not read".into()),
        inside: Ok(Vec::new()),
        mark: None,
        vhd: None,
    };
    if let Err(why) = check_path(path) {
        seen.link = Err(why.to_string());
        return seen;
    }
    match kind {
        FileKind::TapVhd => seen.vhd = tap_vhd(path),
        FileKind::Image(ImageFormat::Other) => {
            let id = files::identity(path).ok_or_else(|| "it does not exist".to_owned());
            seen.link =
                id.map(|id| Link { path: path.to_owned(), id, format: Format::Raw, header: None });
            seen.mark = seen.facts.is_ok().then(|| marks::of(path)).flatten();
        }
        FileKind::Image(ImageFormat::Qcow2) => match qcow2(path) {
            Ok((link, inside, mark)) => {
                (seen.link, seen.inside, seen.mark) = (Ok(link), inside, mark);
            }
            Err(why) => (seen.link, seen.inside) = (Err(why.clone()), Err(why)),
        },
    }
    seen
}

type Qcow2 = (Link, Result<Vec<QcowSnapshot>, String>, Option<Mark>);

/// The header of a qcow2 file or device, and its list of snapshots.
fn qcow2(path: &Path) -> Result<Qcow2, String> {
    let words = |error: io::Error| error.to_string();
    let id = files::identity(path).ok_or_else(|| "it does not exist".to_owned())?;
    let kind = fs::metadata(path).map_err(words)?.file_type();
    let file = match kind.is_block_device() {
        true => File::options().read(true).custom_flags(O_NONBLOCK).open(path),
        false => files::open(path),
    };
    let file = file.map_err(words)?;
    let start = |length: u64| -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        let mut read = 0;
        while read < bytes.len() {
            match file.read_at(&mut bytes[read..], read as u64)? {
                0 => break,
                more => read += more,
            }
        }
        bytes.truncate(read);
        Ok(bytes)
    };
    // Most headers end long before.
    let mut bytes = start(4096).map_err(words)?;
    let mut header = Header::parse(&bytes);
    if header.is_err() {
        bytes = start(READ).map_err(words)?;
        header = Header::parse(&bytes);
    }
    let link = Link { path: path.to_owned(), id, format: Format::Qcow2, header: Some(header?) };
    Ok((link, inside(&file, &bytes), marks::get(&file)))
}

/// The list of snapshots. QEMU may write a new one meanwhile, elsewhere in the file.
fn inside(file: &File, header: &[u8]) -> Result<Vec<QcowSnapshot>, String> {
    const TRIES: usize = 3;
    let mut place = table::place(header)?;
    for _ in 0..TRIES {
        let listed = list_at(file, place);
        let mut again = [0; 72];
        file.read_exact_at(&mut again, 0).map_err(|error| error.to_string())?;
        let now = table::place(&again)?;
        if now == place {
            return listed;
        }
        place = now;
    }
    Err("its list of snapshots changes all the time".into())
}

fn list_at(file: &File, place: table::Place) -> Result<Vec<QcowSnapshot>, String> {
    if place.count == 0 {
        return Ok(Vec::new());
    }
    let words = |error: io::Error| error.to_string();
    // An entry of ours has a hundred bytes; grown where that is not enough.
    let mut most = u64::from(place.count).saturating_mul(512).clamp(4096, table::MOST);
    loop {
        let mut bytes = Vec::new();
        let mut at = At { file, offset: place.offset }.take(most);
        at.read_to_end(&mut bytes).map_err(words)?;
        match table::parse(&bytes, place.count) {
            Err(_) if bytes.len() as u64 == most && most < table::MOST => most = table::MOST,
            parsed => return parsed,
        }
    }
}

/// A file from an offset on.
struct At<'a> {
    file: &'a File,
    offset: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // Beyond what a file can have, there is nothing.
        if i64::try_from(self.offset).is_err() {
            return Ok(0);
        }
        let read = self.file.read_at(buffer, self.offset)?;
        self.offset = self.offset.saturating_add(read as u64);
        Ok(read)
    }
}

fn tap_vhd(path: &Path) -> Option<VhdEntry> {
    let facts = tools::vhd_footer(path).ok()?;
    let parent = || vhd_util::parent_uuid(&files::part(path, facts.header).ok()?);
    Some(VhdEntry { facts, parent: if facts.differencing { parent() } else { None } })
}
