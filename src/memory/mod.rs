//! The memory image: a plain `xl save` file with our record in its header.
//!
//! ```text
//!   0  magic[32]  byteorder  mandatory_flags  optional_flags  optional_data_len
//!  48  config_len, config (libxl JSON, NUL)          \ optional data; xl reads the first
//!      "# xl-snapshot record\n", TOML, newlines      / part and skips the tail
//!      libxl migration stream v2 ... END
//!      ["# xl-snapshot record\n", TOML]              only if written to a pipe
//! ```
//!
//! Source: Xen 4.17 tools/xl/xl.h (`struct save_file_header`), tools/xl/xl_saverestore.c
//! (`save_domain_core_writeconfig`), docs/specs/libxl-migration-stream.pandoc.
//!
//! Works on anything that reads and seeks; opening files is `host/`'s.

pub mod header;
pub mod stream;

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::record::Record;
use header::{Header, Tail};

/// What marks the name of an image that is not complete.
pub const PARTIAL: &str = ".partial";

/// The name of an image until it is complete.
pub fn partial_path(path: &Path) -> PathBuf {
    let mut partial = path.as_os_str().to_owned();
    partial.push(PARTIAL);
    partial.into()
}

/// An image whose header was read and whose stream was walked to its end.
#[derive(Debug)]
pub struct Image {
    /// libxl's JSON of the domain.
    pub config: String,
    /// What the snapshot is.
    pub record: Record,
    /// Where the libxl stream begins, in bytes from the start.
    pub stream_offset: u64,
    /// The length of the libxl stream in bytes.
    pub stream_len: u64,
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
    /// The record is damaged or from a newer program.
    #[error(transparent)]
    Record(#[from] crate::record::BadRecord),
    /// The stream is damaged or ends too soon.
    #[error(transparent)]
    Stream(#[from] stream::BadStream),
    /// The save was never finished.
    #[error("The snapshot was never completed: its record lacks the proofs of the disks")]
    Incomplete,
    /// More or fewer bytes than the record says.
    #[error("It is {found} bytes long, its record says {expected}")]
    Length {
        /// What the record says.
        expected: u64,
        /// What the file has.
        found: u64,
    },
    /// It cannot be read.
    #[error("Reading it failed")]
    Io(#[from] std::io::Error),
}

impl Image {
    /// Reads the header and the record and walks the stream: a handful of bytes from every 4 MiB.
    /// What is not noticed: changed bytes inside of a page, for which the format has no checksum.
    pub fn read<F: Read + Seek>(file: &mut F) -> Result<Image, BadImage> {
        let length = file.seek(SeekFrom::End(0))?;
        file.rewind()?;
        let Header { config, tail } = Header::read(file)?;
        let Tail::Record(text) = tail else { return Err(BadImage::NoRecord) };
        let mut record = Record::parse(&text)?;
        let stream_offset = file.stream_position()?;
        let end = stream::walk(file, stream_offset, length)?;
        if record.complete {
            let (expected, found) = (record.image_size, length);
            if expected != found {
                return Err(BadImage::Length { expected, found });
            }
        } else {
            let front = record;
            record = trailer(file, end, length)?.ok_or(BadImage::Incomplete)?;
            if record.id != front.id || !record.complete {
                return Err(BadImage::Incomplete);
            }
            // On a pipe it is not known.
            if record.image_size != 0 {
                let (expected, found) = (record.image_size, length);
                return Err(BadImage::Length { expected, found });
            }
        }
        Ok(Image { config, record, stream_offset, stream_len: end - stream_offset })
    }
}

/// The record behind the stream of an image that went through a pipe.
fn trailer<F: Read + Seek>(
    file: &mut F,
    end: u64,
    length: u64,
) -> Result<Option<Record>, BadImage> {
    if length - end > header::MAX_RECORD as u64 {
        return Ok(None);
    }
    file.seek(SeekFrom::Start(end))?;
    let mut bytes = Vec::new();
    file.take(length - end).read_to_end(&mut bytes)?;
    Ok(header::parse_trailer(&bytes).map(Record::parse).transpose()?)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::stream::tests::pv_stream;
    use super::*;
    use crate::record::tests::sample;

    const CONFIG: &str = r#"{"c_info":{"name":"web1"}}"#;

    /// An image as written to a file: one record, in the header.
    fn file_image() -> Vec<u8> {
        let mut record = sample();
        let space = header::record_space(&record);
        let stream = pv_stream();
        let header_len = header::encode(CONFIG, &record, space).unwrap().len();
        record.image_size = (header_len + stream.len()) as u64;
        let mut bytes = header::encode(CONFIG, &record, space).unwrap();
        bytes.extend(stream);
        bytes
    }

    /// An image as written to a pipe: an incomplete record first, the complete one last.
    fn pipe_image() -> Vec<u8> {
        let mut record = Record { complete: false, image_size: 0, ..sample() };
        let mut bytes = header::encode(CONFIG, &record, header::record_space(&record)).unwrap();
        bytes.extend(pv_stream());
        record.complete = true;
        bytes.extend(header::trailer(&record));
        bytes
    }

    #[test]
    fn both_layouts_are_read() {
        for bytes in [file_image(), pipe_image()] {
            let image = Image::read(&mut Cursor::new(&bytes)).unwrap();
            assert_eq!(image.config, CONFIG);
            assert_eq!(image.record.disks, sample().disks);
            assert_eq!(image.stream_len, pv_stream().len() as u64);
        }
    }

    #[test]
    fn no_truncated_image_is_accepted() {
        for bytes in [file_image(), pipe_image()] {
            // Every cut costs a parse of the record: some of the middle, all of the end.
            for cut in (0..bytes.len()).step_by(53).chain(bytes.len() - 80..bytes.len()) {
                assert!(Image::read(&mut Cursor::new(&bytes[..cut])).is_err(), "cut at {cut}");
            }
        }
    }

    #[test]
    fn trailing_bytes_are_noticed() {
        for mut bytes in [file_image(), pipe_image()] {
            bytes.extend(b"more");
            assert!(Image::read(&mut Cursor::new(&bytes)).is_err());
        }
    }

    #[test]
    fn the_record_of_another_snapshot_behind_the_stream_is_noticed() {
        let mut bytes = pipe_image();
        let other = Record { id: uuid::Uuid::nil(), ..sample() };
        let own = Record { image_size: 0, ..sample() };
        bytes.truncate(bytes.len() - header::trailer(&own).len());
        bytes.extend(header::trailer(&Record { image_size: 0, ..other }));
        assert!(matches!(Image::read(&mut Cursor::new(&bytes)), Err(BadImage::Incomplete)));
    }

    #[test]
    fn a_plain_save_file_is_told_apart() {
        let mut bytes = header::encode_plain(CONFIG).unwrap();
        bytes.extend(pv_stream());
        let error = Image::read(&mut Cursor::new(&bytes)).unwrap_err();
        assert!(matches!(error, BadImage::NoRecord), "{error}");
    }
}
