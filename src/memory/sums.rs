//! Checksums of the pages of a plain image. They stand behind the stream, where `xl restore` and
//! verify-stream-v2 have read all they want:
//!
//! ```text
//!   "xl-snapshot page checksums 1\n", zeros to 32 bytes
//!   count, sum of all of the stream that is no page      \ numbers of 8 bytes, little-endian;
//!   sum[count], one for each page in the file's order    / sums are XXH64 with seed 0
//!   sum of all that stands before in this table
//! ```
//!
//! In a table that is still to be written, the 1 is a 0: it has its length, and no sums that count.

use std::hash::Hasher;
use std::io::{self, Read, Seek, SeekFrom};
use std::mem;

use twox_hash::XxHash64;

use super::align::page_sum;
use super::batches::{Parser, Sink};
use super::entries::{PAGE, PAGE_DATA, has_data, pfn};

const MAGIC: &[u8; 32] = b"xl-snapshot page checksums 1\n\0\0\0";
const RESERVED: &[u8; 32] = b"xl-snapshot page checksums 0\n\0\0\0";
/// What stands before the sums of pages.
pub const HEAD: u64 = 48;
const SUM: u64 = 8;

/// The table of the checksums of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table {
    /// The offset of its first byte.
    pub at: u64,
    /// How many pages there are.
    pub count: u64,
    /// The sum of all that is no page.
    pub others: u64,
    /// Whether the sums are there, and not only the room for them.
    pub is_written: bool,
}

/// Sums the bytes of a table as they are written.
#[derive(Debug)]
pub struct TableSum(XxHash64);

impl Default for TableSum {
    fn default() -> Self {
        TableSum(XxHash64::with_seed(0))
    }
}

impl TableSum {
    pub fn add(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    /// The last bytes of the table.
    pub fn end(&self) -> [u8; 8] {
        self.0.finish().to_le_bytes()
    }
}

impl Table {
    /// The first bytes of the table.
    pub fn head(&self) -> Vec<u8> {
        let mut bytes = if self.is_written { MAGIC } else { RESERVED }.to_vec();
        bytes.extend(self.count.to_le_bytes());
        bytes.extend(self.others.to_le_bytes());
        bytes
    }

    /// The length of a table in bytes.
    pub fn length(&self) -> u64 {
        length_of(self.count)
    }

    /// Where a file ends that has a table at this offset, of so many pages.
    pub fn behind(at: u64, pages: u64) -> u64 {
        at.saturating_add(length_of(pages))
    }

    /// Reads the beginning of a table at this offset. `None`: something else stands there.
    pub fn read<F: Read + Seek>(file: &mut F, at: u64) -> io::Result<Option<Table>> {
        file.seek(SeekFrom::Start(at))?;
        let mut bytes = Vec::new();
        file.by_ref().take(HEAD).read_to_end(&mut bytes)?;
        Ok(Table::parse(&bytes, at))
    }

    /// The same of bytes that were read already.
    pub fn parse(bytes: &[u8], at: u64) -> Option<Table> {
        let is_written = bytes.starts_with(MAGIC);
        if !is_written && !bytes.starts_with(RESERVED) {
            return None;
        }
        let numbers = bytes.get(MAGIC.len()..)?;
        let number = |at: usize| Some(u64::from_le_bytes(*numbers.get(at..)?.first_chunk()?));
        Some(Table { at, count: number(0)?, others: number(8)?, is_written })
    }

    /// Whether the table is as it was written.
    pub fn is_good<F: Read + Seek>(&self, file: &mut F) -> io::Result<bool> {
        file.seek(SeekFrom::Start(self.at))?;
        let mut sum = TableSum::default();
        let mut left = self.length() - SUM;
        let mut chunk = Vec::new();
        while left > 0 {
            chunk.clear();
            file.by_ref().take(left.min(1 << 20)).read_to_end(&mut chunk)?;
            if chunk.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            sum.add(&chunk);
            left -= chunk.len() as u64;
        }
        let mut last = [0; 8];
        file.read_exact(&mut last)?;
        Ok(last == sum.end())
    }

    /// The sums of some pages, from this one on.
    pub fn sums<F: Read + Seek>(
        &self,
        file: &mut F,
        first: u64,
        count: usize,
    ) -> io::Result<Vec<u64>> {
        let before = first.checked_mul(SUM).and_then(|before| before.checked_add(HEAD));
        let at = before.and_then(|before| before.checked_add(self.at));
        // Where that is, no file has anything.
        file.seek(SeekFrom::Start(at.ok_or(io::ErrorKind::UnexpectedEof)?))?;
        let mut bytes = vec![0; 8 * count];
        file.read_exact(&mut bytes)?;
        let sums = bytes.chunks_exact(8);
        Ok(sums.map(|sum| u64::from_le_bytes(sum.try_into().expect("eight bytes"))).collect())
    }
}

/// A count that cannot be fits no file.
fn length_of(pages: u64) -> u64 {
    pages.saturating_mul(SUM).saturating_add(HEAD + SUM)
}

/// Why an image is not what was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    #[error(
        "Page {pfn:#x} of the guest's memory, at byte {at}, is not what was saved: the image is damaged"
    )]
    Page {
        /// The number of the page.
        pfn: u64,
        /// Where it stands, from the start of the file.
        at: u64,
    },
    #[error("What stands between the pages is not what was saved: the image is damaged")]
    Others,
    #[error("The table of its checksums is damaged; the memory may be good")]
    Table,
}

/// Reads the stream of an image, and fails before it hands on a page that is damaged, or the end of a stream that
/// is.
#[derive(Debug)]
pub struct Checked<F> {
    file: F,
    table: Table,
    at: u64,
    parser: Parser,
    found: Found,
    /// How many pages were compared.
    compared: u64,
    begun: bool,
}

/// What was read and is not compared yet.
#[derive(Debug)]
struct Found {
    at: u64,
    others: XxHash64,
    /// The pages with data of the batch that are still to come, the first one last.
    pfns: Vec<u64>,
    pages: Vec<(u64, u64, u64)>,
}

impl<F: Read + Seek> Checked<F> {
    /// The stream that begins at this offset and ends before the table.
    pub fn new(file: F, start: u64, table: Table) -> Self {
        let found = Found {
            at: start,
            others: XxHash64::with_seed(0),
            pfns: Vec::new(),
            pages: Vec::new(),
        };
        Checked {
            file,
            table,
            at: start,
            parser: Parser::default(),
            found,
            compared: 0,
            begun: false,
        }
    }

    fn compare(&mut self) -> io::Result<()> {
        let pages = mem::take(&mut self.found.pages);
        let damaged = |damage: Damage| io::Error::new(io::ErrorKind::InvalidData, damage);
        if self.compared + pages.len() as u64 > self.table.count {
            return Err(damaged(Damage::Others));
        }
        let sums = self.table.sums(&mut self.file, self.compared, pages.len())?;
        self.compared += pages.len() as u64;
        match pages.iter().zip(&sums).find(|((.., found), sum)| found != *sum) {
            None => Ok(()),
            Some(((pfn, at, _), _)) => Err(damaged(Damage::Page { pfn: *pfn, at: *at })),
        }
    }
}

impl<F: Read + Seek> Read for Checked<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let damaged = |damage: Damage| io::Error::new(io::ErrorKind::InvalidData, damage);
        if !self.begun {
            // With a damaged table, every page would seem to be.
            if !self.table.is_good(&mut self.file)? {
                return Err(damaged(Damage::Table));
            }
            self.begun = true;
        }
        let left = usize::try_from(self.table.at - self.at).unwrap_or(usize::MAX);
        let room = left.min(buffer.len());
        if room == 0 {
            return Ok(0);
        }
        self.file.seek(SeekFrom::Start(self.at))?;
        let count = self.file.read(&mut buffer[..room])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += count as u64;
        self.parser.feed(&buffer[..count], &mut self.found)?;
        self.compare()?;
        if self.at == self.table.at {
            let whole = self.parser.is_whole() && self.compared == self.table.count;
            if !whole || self.found.others.finish() != self.table.others {
                return Err(damaged(Damage::Others));
            }
        }
        Ok(count)
    }
}

impl Sink for Found {
    fn other(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.others.write(bytes);
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn batch(&mut self, entries: &[u64]) -> io::Result<()> {
        let pages = entries.iter().filter(|entry| has_data(**entry)).count();
        let length = 8 + 8 * entries.len() + PAGE * pages;
        let words = [PAGE_DATA, u32::try_from(length).map_err(io::Error::other)?];
        let count = [u32::try_from(entries.len()).map_err(io::Error::other)?, 0];
        let numbers = entries.iter().flat_map(|entry| entry.to_ne_bytes());
        let head = words.iter().chain(&count).flat_map(|word| word.to_ne_bytes());
        let bytes: Vec<u8> = head.chain(numbers).collect();
        self.pfns = entries.iter().rev().filter(|e| has_data(**e)).map(|e| pfn(*e)).collect();
        self.other(&bytes)
    }

    fn pages(&mut self, pages: &[u8]) -> io::Result<()> {
        for page in pages.chunks_exact(PAGE) {
            let pfn = self.pfns.pop().unwrap_or_default();
            self.pages.push((pfn, self.at, page_sum(page)));
            self.at += PAGE as u64;
        }
        Ok(())
    }
}
