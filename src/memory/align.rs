//! A stream as it is written to a file: every page of guest memory begins at a multiple of 4096 bytes of the
//! file, and pages of zeros are not written at all.
//!
//! A page could be moved by a record that readers skip, but verify-stream-v2 refuses those. So the list of
//! entries before the pages is made longer, by entries that say of a page that it is not there (XTAB): such
//! an entry has no data. The page is the first of the same list, whose own entry follows, so that a reader
//! ends with what it would have had without them: the last entry of a page counts (xg_sr_restore_x86_pv.c,
//! `x86_pv_set_page_type`), and nothing is populated for an absent one (xg_sr_restore.c, `populate_pfns`).

use std::hash::Hasher;
use std::io;

use twox_hash::XxHash64;

use super::batches::{Parser, Sink};
use super::entries::{BATCH_HEAD, PAGE, PAGE_DATA, absent, has_data};

/// A file that is written from its beginning to its end.
pub trait Place {
    /// Writes bytes at this offset.
    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// The file becomes at least this long. Where nothing is written, it reads as zeros.
    fn reach(&mut self, length: u64) -> io::Result<()>;
}

/// What takes the checksums of pages, in the order of the file.
pub trait Tally {
    /// That of the next page.
    fn page(&mut self, sum: u64) -> io::Result<()>;
}

/// The checksum of a page: XXH64 with seed 0.
pub fn page_sum(page: &[u8]) -> u64 {
    XxHash64::oneshot(0, page)
}

/// Writes a stream as it comes.
#[derive(Debug)]
pub struct Aligner<P, T> {
    parser: Parser,
    writer: Writer<P, T>,
}

#[derive(Debug)]
struct Writer<P, T> {
    place: P,
    tally: T,
    /// The offset of the next byte.
    at: u64,
    /// What comes before there, and is not written yet.
    pending: Vec<u8>,
    others: XxHash64,
    zeros: u64,
}

/// What became of a stream.
#[derive(Debug)]
pub struct Written<P, T> {
    pub place: P,
    pub tally: T,
    /// The offset of the first byte behind it.
    pub end: u64,
    /// The checksum of all that is no page.
    pub others: u64,
    /// Whether all of it was there, as far as this program knows it.
    pub whole: bool,
    /// Whether this program knows what it was; else there are no checksums of it.
    pub known: bool,
}

/// More than this is not kept back.
const PENDING: usize = 64 << 10;

impl<P: Place, T: Tally> Aligner<P, T> {
    /// Writes from this offset on, a multiple of eight.
    pub fn new(place: P, tally: T, at: u64) -> Self {
        let writer = Writer {
            place,
            tally,
            at,
            pending: Vec::new(),
            others: XxHash64::with_seed(0),
            zeros: page_sum(&[0; PAGE]),
        };
        Aligner { parser: Parser::default(), writer }
    }

    /// The next bytes of the stream.
    pub fn feed(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.parser.feed(bytes, &mut self.writer)
    }

    /// The stream ends here. The file may be longer, and reads as zeros there.
    pub fn end(mut self) -> io::Result<Written<P, T>> {
        self.parser.end(&mut self.writer)?;
        self.writer.flush()?;
        let Writer { place, tally, at: end, others, .. } = self.writer;
        let known = self.parser.is_whole();
        let whole = known || self.parser.is_foreign();
        Ok(Written { place, tally, end, others: others.finish(), whole, known })
    }
}

impl<P: Place, T: Tally> Writer<P, T> {
    fn flush(&mut self) -> io::Result<()> {
        self.others.write(&self.pending);
        self.place.write_at(&self.pending, self.at)?;
        self.at += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }
}

impl<P: Place, T: Tally> Sink for Writer<P, T> {
    fn other(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.pending.extend_from_slice(bytes);
        if self.pending.len() > PENDING { self.flush() } else { Ok(()) }
    }

    fn batch(&mut self, entries: &[u64]) -> io::Result<()> {
        let pages = entries.iter().filter(|entry| has_data(**entry)).count();
        let before =
            self.at + self.pending.len() as u64 + 8 + (BATCH_HEAD + 8 * entries.len()) as u64;
        let gap = before.next_multiple_of(PAGE as u64) - before;
        let more = usize::try_from(gap).expect("less than a page") / 8;
        let count = more + entries.len();
        let length =
            u32::try_from(BATCH_HEAD + 8 * count + PAGE * pages).map_err(io::Error::other)?;
        let count = u32::try_from(count).map_err(io::Error::other)?;
        for word in [PAGE_DATA, length, count, 0] {
            self.pending.extend(word.to_ne_bytes());
        }
        let filler = absent(entries.first().copied().unwrap_or_default()).to_ne_bytes();
        (0..more).for_each(|_| self.pending.extend(filler));
        entries.iter().for_each(|entry| self.pending.extend(entry.to_ne_bytes()));
        self.flush()?;
        self.place.reach(self.at + (PAGE * pages) as u64)
    }

    fn pages(&mut self, pages: &[u8]) -> io::Result<()> {
        // Where the pages begin that are not written yet.
        let mut from = 0;
        for (number, page) in pages.chunks_exact(PAGE).enumerate() {
            let here = number * PAGE;
            if is_zero(page) {
                if from < here {
                    self.place.write_at(&pages[from..here], self.at + from as u64)?;
                }
                from = here + PAGE;
                self.tally.page(self.zeros)?;
            } else {
                self.tally.page(page_sum(page))?;
            }
        }
        if from < pages.len() {
            self.place.write_at(&pages[from..], self.at + from as u64)?;
        }
        self.at += pages.len() as u64;
        Ok(())
    }
}

/// Whether a page has nothing but zeros.
pub fn is_zero(page: &[u8]) -> bool {
    const PIECE: usize = 128;
    let zero = |piece: &[u8]| piece.iter().fold(0, |any, byte| any | byte) == 0;
    // The first bytes tell it of most others. The length of a piece is fixed, so that the compiler makes each
    // comparison wide: five times as fast as comparing slices.
    let mut pieces = page.chunks_exact(PIECE);
    pieces.all(zero) && zero(pieces.remainder())
}
