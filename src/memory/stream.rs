//! Walking a libxl migration stream, version 2, from its header to its END record.
//!
//! Only lengths and types are looked at: the format has no checksum. Sources: Xen 4.17
//! docs/specs/libxl-migration-stream.pandoc and libxc-migration-stream.pandoc.

use std::io::{self, Read, Seek, SeekFrom};

use super::entries::{BATCH_HEAD, PAGE, PAGE_DATA, PAGE_SHIFT, entries, has_data, pfn};
use crate::release::{LIBXC_STREAMS, LIBXL_STREAM};

/// "LibxlFmt".
pub(crate) const LIBXL_IDENT: u64 = 0x4c69_6278_6c46_6d74;
/// libxl record types: the end, and the one that is followed by a libxc stream.
pub(crate) const LIBXL_END: u32 = 0;
pub(crate) const LIBXL_LIBXC_CONTEXT: u32 = 1;

/// The libxc image header: all ones, "XENF", and a version.
pub(crate) const LIBXC_MARKER: u64 = u64::MAX;
pub(crate) const LIBXC_IDENT: u32 = 0x5845_4e46;
pub(crate) const LIBXC_END: u32 = 0;

/// `REC_LENGTH_MAX`, xg_sr_stream_format.h: no record is longer.
pub(crate) const MAX_RECORD: u32 = 128 << 20;

/// Why a stream is not whole.
#[derive(Debug, thiserror::Error)]
pub enum BadStream {
    /// Something else stands where a stream should begin.
    #[error("No {what} at byte {offset}: the image is damaged")]
    Ident {
        /// Which header.
        what: &'static str,
        /// Where, from the start of the file.
        offset: u64,
    },
    /// A length no record has.
    #[error("The record at byte {offset} claims {length} bytes: the image is damaged")]
    Record {
        /// Where, from the start of the file.
        offset: u64,
        /// What it claims.
        length: u32,
    },
    /// A list of pages that no reader takes, or that a reader takes for another one.
    #[error("The list of pages in the record at byte {offset} is wrong: the image is damaged")]
    Pages {
        /// Where, from the start of the file.
        offset: u64,
    },
    /// The file ends before the stream does.
    #[error("It ends at byte {length}, in the middle of the guest's memory: it is truncated")]
    Truncated {
        /// The length of the file.
        length: u64,
    },
    /// It cannot be read.
    #[error("Reading it failed")]
    Io(#[from] io::Error),
}

/// Walks the stream that begins at `start` in a file of `length` bytes (`u64::MAX` if that is not
/// known) and returns the offset of the first byte behind it. It only ever seeks forward.
pub fn walk<F: Read + Seek>(file: &mut F, start: u64, length: u64) -> Result<u64, BadStream> {
    walk_counting(file, start, length).map(|(end, _)| end)
}

/// The same; also returns how many pages with data there are, which is 0 if its records of pages are not as this
/// program knows them.
pub fn walk_counting<F: Read + Seek>(
    file: &mut F,
    start: u64,
    length: u64,
) -> Result<(u64, u64), BadStream> {
    let mut walker = Walker { file, at: start, length, knows_pages: false, pages: 0, take: None };
    let end = walker.walk()?;
    Ok((end, walker.pages))
}

/// The same; tells of each page with data its number and where it stands, in the order of the file. An error of
/// `page` ends it.
pub fn pages<F: Read + Seek>(
    file: &mut F,
    start: u64,
    length: u64,
    page: Page<'_>,
) -> Result<u64, BadStream> {
    let mut walker =
        Walker { file, at: start, length, knows_pages: false, pages: 0, take: Some(page) };
    walker.walk()
}

type Page<'a> = &'a mut dyn FnMut(u64, u64) -> io::Result<()>;

struct Walker<'f, F> {
    file: &'f mut F,
    at: u64,
    length: u64,
    /// Whether the domain header says that its pages have the size that this program knows.
    knows_pages: bool,
    /// How many pages with data were passed.
    pages: u64,
    take: Option<Page<'f>>,
}

impl<F: Read + Seek> Walker<'_, F> {
    fn walk(&mut self) -> Result<u64, BadStream> {
        let walker = self;
        let offset = walker.at;
        if walker.be_u64()? != LIBXL_IDENT || walker.be_u32()? != LIBXL_STREAM {
            return Err(BadStream::Ident { what: "libxl stream header", offset });
        }
        walker.skip(4)?; // options
        loop {
            let (kind, _) = walker.record()?;
            match kind {
                LIBXL_END => return Ok(walker.at),
                LIBXL_LIBXC_CONTEXT => walker.libxc()?,
                _ => {}
            }
        }
    }

    fn libxc(&mut self) -> Result<(), BadStream> {
        let offset = self.at;
        let marker = self.be_u64()?;
        let ident = self.be_u32()?;
        let version = self.be_u32()?;
        if marker != LIBXC_MARKER || ident != LIBXC_IDENT || !LIBXC_STREAMS.contains(&version) {
            return Err(BadStream::Ident { what: "libxc image header", offset });
        }
        self.skip(8)?; // options, reserved
        self.skip(4)?; // domain header: the type of the guest
        self.knows_pages = u16::from_ne_bytes(self.bytes()?) == PAGE_SHIFT;
        self.skip(10)?; // reserved, the version of Xen
        loop {
            let offset = self.at;
            let (kind, length) = self.record()?;
            match kind {
                LIBXC_END => return Ok(()),
                PAGE_DATA if self.knows_pages => self.batch(offset, length)?,
                _ => {}
            }
        }
    }

    /// Looks at the pages in the record at this offset, whose body has this length. The walker stands behind it, but
    /// nothing of the body was read.
    fn batch(&mut self, offset: u64, length: u32) -> Result<(), BadStream> {
        const HEAD: u64 = 8 + BATCH_HEAD as u64;
        let wrong = || BadStream::Pages { offset };
        let end = self.at;
        self.at = offset + 8;
        let count = u64::from(u32::from_ne_bytes(self.bytes()?));
        self.at = end;
        let list = offset + HEAD;
        let before = HEAD + 8 * count;
        let Some(room) = (8 + u64::from(length)).checked_sub(before) else { return Err(wrong()) };
        let (mut pages, mut last, mut twice) = (0, None, false);
        let counted = self.with_data(list, count, &mut |entry| {
            // Zeros instead of a list name the first page again and again.
            twice |= last.replace(pfn(entry)) == Some(pfn(entry));
            pages += 1;
            Ok(())
        });
        match counted {
            // Where the length was not known before.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(BadStream::Truncated { length: self.file.stream_position()? });
            }
            counted => counted?,
        }
        if twice || pages * PAGE as u64 != room {
            return Err(wrong());
        }
        self.pages += pages;
        let Some(take) = self.take.take() else { return Ok(()) };
        let mut at = offset + before;
        self.with_data(list, count, &mut |entry| {
            take(pfn(entry), at)?;
            at += PAGE as u64;
            Ok(())
        })?;
        self.take = Some(take);
        Ok(())
    }

    /// Tells of the entries of pages with data in a list of so many. A list may be as long as a record: it is never
    /// in memory as a whole.
    fn with_data(
        &mut self,
        mut at: u64,
        mut count: u64,
        take: &mut dyn FnMut(u64) -> io::Result<()>,
    ) -> io::Result<()> {
        const PART: u64 = 4096;
        let mut list = Vec::new();
        while count > 0 {
            let part = count.min(PART);
            list.clear();
            self.file.seek(SeekFrom::Start(at))?;
            self.file.by_ref().take(8 * part).read_to_end(&mut list)?;
            if list.len() as u64 != 8 * part {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            entries(&list).filter(|entry| has_data(*entry)).try_for_each(&mut *take)?;
            (at, count) = (at + 8 * part, count - part);
        }
        Ok(())
    }

    /// Steps over one record and returns its type and the length of its body. Both streams have the same record header, in
    /// the byte order of the machine, and pad bodies to eight bytes.
    fn record(&mut self) -> Result<(u32, u32), BadStream> {
        let offset = self.at;
        let kind = u32::from_ne_bytes(self.bytes()?);
        let length = u32::from_ne_bytes(self.bytes()?);
        if length > MAX_RECORD {
            return Err(BadStream::Record { offset, length });
        }
        self.skip(u64::from(length).next_multiple_of(8))?;
        Ok((kind, length))
    }

    fn be_u64(&mut self) -> Result<u64, BadStream> {
        Ok(u64::from_be_bytes(self.bytes()?))
    }

    fn be_u32(&mut self) -> Result<u32, BadStream> {
        Ok(u32::from_be_bytes(self.bytes()?))
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], BadStream> {
        let start = self.at;
        self.skip(N as u64)?;
        let mut bytes = [0; N];
        let read =
            self.file.seek(SeekFrom::Start(start)).and_then(|_| self.file.read_exact(&mut bytes));
        match read {
            Ok(()) => Ok(bytes),
            // Where the length was not known before.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(BadStream::Truncated { length: self.file.stream_position()? })
            }
            Err(error) => Err(error.into()),
        }
    }

    fn skip(&mut self, count: u64) -> Result<(), BadStream> {
        let to = self.at.checked_add(count).filter(|to| *to <= self.length);
        self.at = to.ok_or(BadStream::Truncated { length: self.length })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::support::streams::pv_stream;

    fn walk_all(bytes: &[u8]) -> Result<u64, BadStream> {
        walk(&mut Cursor::new(bytes), 0, bytes.len() as u64)
    }

    #[test]
    fn a_stream_is_walked_to_its_end() {
        let mut bytes = pv_stream();
        let length = bytes.len() as u64;
        assert_eq!(walk_all(&bytes).unwrap(), length);
        bytes.extend(b"behind");
        assert_eq!(walk_all(&bytes).unwrap(), length);
    }

    #[test]
    fn every_cut_is_noticed() {
        let bytes = pv_stream();
        for cut in 0..bytes.len() {
            let error = walk_all(&bytes[..cut]).unwrap_err();
            assert!(matches!(error, BadStream::Truncated { .. }), "cut at {cut}: {error}");
        }
    }

    #[test]
    fn damage_is_named() {
        let mut bytes = pv_stream();
        bytes[0] = 0;
        assert!(matches!(walk_all(&bytes), Err(BadStream::Ident { offset: 0, .. })));
        let mut bytes = pv_stream();
        bytes[24] = 0;
        assert!(matches!(walk_all(&bytes), Err(BadStream::Ident { offset: 24, .. })));
        let mut bytes = pv_stream();
        bytes[68..72].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert!(matches!(walk_all(&bytes), Err(BadStream::Record { offset: 64, .. })));
    }
}
