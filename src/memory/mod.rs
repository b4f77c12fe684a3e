//! The memory image: a plain `xl save` file with our record in its header.
//!
//! ```text
//!   0  magic[32]  byteorder  mandatory_flags  optional_flags  optional_data_len
//!  48  config_len, config (libxl JSON, NUL)          \ optional data; xl reads the first
//!      "# xl-snapshot record\n", TOML, newlines      / part and skips the tail
//!      libxl migration stream v2 ... END             pages at multiples of 4096, zeros as holes
//!      [checksums of the pages]                       only in a plain file
//!      ["# xl-snapshot record\n", TOML]              only if written to a pipe
//! ```
//!
//! The whole may be compressed: [`frames`]. How pages are placed: [`align`]; checksums: [`sums`].
//!
//! Source: Xen 4.17 tools/xl/xl.h (`struct save_file_header`), tools/xl/xl_saverestore.c
//! (`save_domain_core_writeconfig`), docs/specs/libxl-migration-stream.pandoc.
//!
//! Works on anything that reads and seeks; opening files is `host/`'s.

pub mod align;
pub mod batches;
pub mod entries;
pub mod forward;
pub mod frames;
pub mod header;
pub mod peek;
pub mod places;
pub mod stream;
pub mod sums;

use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::json::check_keys;
use crate::record::Record;
use crate::tool::quote;
use forward::Forward;
use frames::{Marker, Unpacked};
use header::{Header, Tail};
use sums::{Checked, Damage, Table};

/// How much of an image is read at a time: checksums of few pages would be read in many small pieces.
pub const CHUNK: usize = 256 << 10;

/// What marks the name of an image that is not complete.
pub const PARTIAL: &str = ".partial";

/// The name of an image until it is complete.
pub fn partial_path(path: &Path) -> PathBuf {
    let mut partial = path.as_os_str().to_owned();
    partial.push(PARTIAL);
    partial.into()
}

/// What marks the name of an image, or a record, whose snapshot is being deleted.
pub const DELETING: &str = ".deleting";

/// The name of an image while its snapshot is being deleted.
pub fn deleting_path(path: &Path) -> PathBuf {
    let mut deleting = path.as_os_str().to_owned();
    deleting.push(DELETING);
    deleting.into()
}

/// Whether a name says that the snapshot is being deleted.
pub fn is_deleting(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == &DELETING[1..])
}

/// How xl itself reads an image.
pub fn restore_command(image: &Path, compressed: bool) -> String {
    let image = quote(image);
    if compressed {
        format!("zstd -dc <{image} | xl restore /dev/stdin")
    } else {
        format!("xl restore {image}")
    }
}

/// Reads the configuration and the record at the beginning of an image, plain or compressed, whether it
/// is complete or not, and nothing else.
pub fn read_front<F: Read + Seek>(file: &mut F) -> Result<(String, Record), BadImage> {
    match is_compressed(file)? {
        true => front(&mut Unpacked::beginning(file)?),
        false => front(file),
    }
}

/// The same of a stream, of which more may be read than that.
pub fn read_front_of_stream(mut input: impl Read) -> Result<(String, Record), BadImage> {
    let mut magic = [0; 4];
    input.read_exact(&mut magic)?;
    let compressed = frames::is_compressed(magic);
    let mut input = magic.as_slice().chain(input);
    if compressed { front(&mut Unpacked::beginning(input)?) } else { front(&mut input) }
}

/// Whether a file begins as a compressed one; leaves it at its beginning.
fn is_compressed<F: Read + Seek>(file: &mut F) -> std::io::Result<bool> {
    file.rewind()?;
    let mut magic = Vec::new();
    file.by_ref().take(4).read_to_end(&mut magic)?;
    file.rewind()?;
    Ok(magic.try_into().is_ok_and(frames::is_compressed))
}

/// An image whose header was read and whose structure was found whole.
#[derive(Debug)]
pub struct Image {
    /// libxl's JSON of the domain.
    pub config: String,
    /// What the snapshot is.
    pub record: Record,
    /// Where the libxl stream begins, in bytes from the start of the plain image.
    pub stream_offset: u64,
    /// The length of the libxl stream in bytes.
    pub stream_len: u64,
    /// How it is stored.
    pub form: Form,
    /// The checksums of the pages of a plain image, if it has any.
    pub sums: Option<Table>,
    /// Whether something else stands where the checksums were: the memory may be good.
    pub sums_lost: bool,
    /// Whether every byte of it was read, and not only what tells its structure.
    pub read_whole: bool,
}

/// How an image is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As `xl restore` reads it.
    Plain,
    /// Compressed by zstd.
    Zstd {
        /// Whether a changed byte can be noticed.
        checksums: bool,
    },
}

/// What an image takes on its file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Its length.
    pub apparent: u64,
    /// What of it is stored: no holes.
    pub on_disk: u64,
    /// What of that is stored once for it and others; not known on all file systems.
    pub shared: Option<u64>,
}

/// Why a file is not an image that can be reverted to.
#[derive(Debug, thiserror::Error)]
pub enum BadImage {
    /// Not a save file, or its header is damaged.
    #[error(transparent)]
    Header(#[from] header::BadHeader),
    /// A save file of xl or another tool: there is no record of the disks.
    #[error("It is a save file of xl without a snapshot record: it says nothing of the disks")]
    NoRecord,
    /// The configuration does not mean the same to everybody who reads it.
    #[error("The configuration in its header is not the JSON that libxl writes")]
    Config(#[source] serde_json::Error),
    /// The record is damaged or from a newer program.
    #[error(transparent)]
    Record(#[from] crate::record::BadRecord),
    /// The stream is damaged or ends too soon.
    #[error(transparent)]
    Stream(#[from] stream::BadStream),
    /// The compressed data are damaged or end too soon.
    #[error(transparent)]
    Frames(#[from] frames::BadFrames),
    /// The save was never finished.
    #[error("The snapshot was never completed: its record lacks the proofs of the disks")]
    Incomplete,
    /// More or fewer bytes than the record says.
    #[error("It is {found} bytes long and should have {expected}: it is damaged or truncated")]
    Length {
        /// What the image itself says.
        expected: u64,
        /// What there is.
        found: u64,
    },
    /// Its checksums do not fit.
    #[error(transparent)]
    Damage(#[from] Damage),
    /// It cannot be read.
    #[error("Reading it failed")]
    Io(#[from] std::io::Error),
}

impl Image {
    /// Reads the header and the record, and what tells whether the rest is whole:
    ///
    /// * of a plain image some kilobytes from every 4 MiB: a changed byte inside of a page is noticed only
    ///   by [`Self::read_all`], and only if the image has checksums;
    /// * of an image that this program compressed the length and the frames, block by block: a
    ///   changed byte is noticed only when it is unpacked ([`Self::read_all`]);
    /// * any other compressed image is unpacked, because only its end tells that it is whole.
    pub fn read<F: Read + Seek>(file: &mut F) -> Result<Image, BadImage> {
        let length = file.seek(SeekFrom::End(0))?;
        match is_compressed(file)? {
            true => Image::read_compressed(file, length),
            false => Image::read_plain(file, length),
        }
    }

    fn read_plain<F: Read + Seek>(file: &mut F, length: u64) -> Result<Image, BadImage> {
        let (config, mut record) = front(file)?;
        let stream_offset = file.stream_position()?;
        let (end, pages) = stream::walk_counting(file, stream_offset, length)?;
        let table = if length > end { Table::read(file, end)? } else { None };
        let mut sums_lost = false;
        if record.complete {
            check_length(record.image_size, length)?;
            if behind_table(end, table) != length {
                // What ends a stream is zeros, as in a hole. Behind its true end is room for just its checksums.
                check_length(Table::behind(end, pages), length)?;
                sums_lost = true;
            }
        } else {
            let behind = if length - end > header::MAX_RECORD as u64 {
                Vec::new()
            } else {
                rest(file, end)?
            };
            record = with_proofs(&record, &behind)?;
        }
        let stream_len = end - stream_offset;
        let form = Form::Plain;
        // Whoever was to write it was killed when the image was complete.
        let sums = table.filter(|table| table.is_written && !sums_lost);
        Ok(Image {
            config,
            record,
            stream_offset,
            stream_len,
            form,
            sums,
            sums_lost,
            read_whole: false,
        })
    }

    /// Where the stream of a plain image ends, if what stands behind it is no whole table of checksums.
    pub fn torn_at<F: Read + Seek>(file: &mut F) -> Result<Option<u64>, BadImage> {
        let length = file.seek(SeekFrom::End(0))?;
        file.rewind()?;
        front(file)?;
        let start = file.stream_position()?;
        let end = stream::walk(file, start, length)?;
        let sums = if length > end { Table::read(file, end)? } else { None };
        Ok((length != behind_table(end, sums)).then_some(end))
    }

    fn read_compressed<F: Read + Seek>(file: &mut F, length: u64) -> Result<Image, BadImage> {
        let layout = frames::layout(file, length)?;
        let form = Form::Zstd { checksums: layout.checksums };
        let Some((header_end, Some(marker))) = layout.ours else {
            file.rewind()?;
            return Image::read_through(Unpacked::new(file)?, form);
        };
        let Marker { file_len, image_len } = marker;
        check_length(file_len, length)?;
        file.rewind()?;
        let mut header = Forward::new(Unpacked::new(file.by_ref().take(header_end))?);
        let (config, record) = front(&mut header)?;
        let stream_offset = header.at();
        // To the end of the frame, which has the checksum.
        let behind = header.read(&mut [0])? as u64;
        check_length(stream_offset, stream_offset + behind)?;
        if !record.complete {
            return Err(BadImage::Incomplete);
        }
        check_length(record.image_size, image_len)?;
        let stream_len = image_len
            .checked_sub(stream_offset)
            .ok_or(BadImage::Length { expected: stream_offset, found: image_len })?;
        frames::walk(file, length)?;
        Ok(Image {
            config,
            record,
            stream_offset,
            stream_len,
            form,
            sums: None,
            sums_lost: false,
            read_whole: false,
        })
    }

    /// Checks that all of a domain can be read from an image whose record is not complete yet. Of a compressed one
    /// every byte is read.
    pub fn check_saved<F: Read + Seek>(file: &mut F) -> Result<(), BadImage> {
        let length = file.seek(SeekFrom::End(0))?;
        file.rewind()?;
        let mut magic = [0; 4];
        file.read_exact(&mut magic)?;
        file.rewind()?;
        if frames::is_compressed(magic) {
            let mut input = Forward::new(Unpacked::new(file)?);
            front(&mut input)?;
            let start = input.at();
            let end = stream::walk(&mut input, start, u64::MAX)?;
            let behind = rest(&mut input, end)?.len() as u64;
            return check_length(end, end + behind);
        }
        front(file)?;
        let start = file.stream_position()?;
        let end = stream::walk(file, start, length)?;
        let sums = if length > end { Table::read(file, end)? } else { None };
        check_length(length, behind_table(end, sums))
    }

    /// Reads every byte of an image that [`Self::read`] has taken, and checks its checksums, where it
    /// has any.
    pub fn read_all<F: Read + Seek>(&mut self, file: &mut F) -> Result<(), BadImage> {
        if self.read_whole {
            return Ok(());
        }
        if self.sums_lost {
            return Err(Damage::Table.into());
        }
        if let Some(table) = self.sums {
            let stream = Checked::new(file, self.stream_offset, table);
            let mut stream = BufReader::with_capacity(CHUNK, stream);
            io::copy(&mut stream, &mut io::sink()).map_err(damage)?;
            self.read_whole = true;
            return Ok(());
        }
        file.rewind()?;
        let whole = match self.form {
            Form::Plain => Image::read_through(BufReader::new(file), self.form)?,
            Form::Zstd { .. } => Image::read_through(Unpacked::new(file)?, self.form)?,
        };
        check_length(self.stream_len, whole.stream_len)?;
        self.read_whole = true;
        Ok(())
    }

    /// Reads a plain image from its first byte to its last one, and keeps nothing of it.
    fn read_through(input: impl Read, form: Form) -> Result<Image, BadImage> {
        let mut input = Forward::new(input);
        let (config, mut record) = front(&mut input)?;
        let stream_offset = input.at();
        let end = stream::walk(&mut input, stream_offset, u64::MAX)?;
        let behind = rest(&mut input, end)?;
        if record.complete {
            // What compresses an image has checksums of its own.
            let expected = behind_table(end, Table::parse(&behind, end));
            let more = io::copy(&mut input, &mut io::sink())?;
            check_length(record.image_size, end + behind.len() as u64 + more)?;
            check_length(record.image_size, expected)?;
        } else {
            record = with_proofs(&record, &behind)?;
        }
        let stream_len = end - stream_offset;
        Ok(Image {
            config,
            record,
            stream_offset,
            stream_len,
            form,
            sums: None,
            sums_lost: false,
            read_whole: true,
        })
    }
}

/// The configuration and the record in the header.
fn front(input: &mut impl Read) -> Result<(String, Record), BadImage> {
    let Header { config, tail } = Header::read(input)?;
    let Tail::Record(text) = tail else { return Err(BadImage::NoRecord) };
    check_keys(&config).map_err(BadImage::Config)?;
    Ok((config, Record::parse(&text)?))
}

/// What stands behind the stream, if that can be a record; more than fits if not.
fn rest<F: Read + Seek>(input: &mut F, end: u64) -> Result<Vec<u8>, BadImage> {
    input.seek(SeekFrom::Start(end))?;
    let mut bytes = Vec::new();
    input.take(header::MAX_RECORD as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The record with the proofs, behind the stream of an image that went through a pipe.
fn with_proofs(front: &Record, behind: &[u8]) -> Result<Record, BadImage> {
    let text = header::parse_trailer(behind).ok_or(BadImage::Incomplete)?;
    let record = Record::parse(text)?;
    if record.id != front.id || !record.complete {
        return Err(BadImage::Incomplete);
    }
    // On a pipe it is not known.
    match record.image_size {
        0 => Ok(record),
        expected => Err(BadImage::Length { expected, found: 0 }),
    }
}

/// Where an image ends whose stream ends there.
fn behind_table(end: u64, table: Option<Table>) -> u64 {
    end.saturating_add(table.map_or(0, |table| table.length()))
}

/// The damage that an error of [`Checked`] tells of.
fn damage(error: io::Error) -> BadImage {
    match error.downcast::<Damage>() {
        Ok(damage) => damage.into(),
        Err(error) => error.into(),
    }
}

fn check_length(expected: u64, found: u64) -> Result<(), BadImage> {
    if expected == found { Ok(()) } else { Err(BadImage::Length { expected, found }) }
}

#[cfg(test)]
mod tests;
