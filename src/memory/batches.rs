//! A libxl migration stream, taken apart as it comes: pages of guest memory on one side, everything else on
//! the other.
//!
//! Sources: Xen 4.17 docs/specs/libxc-migration-stream.pandoc ("PAGE_DATA"), tools/libs/guest/xg_sr_restore.c
//! (`handle_page_data`).

use std::io;
use std::mem;

use super::entries::{BATCH_HEAD, PAGE, PAGE_DATA, PAGE_SHIFT, entries, has_data};
use super::stream::{
    LIBXC_END, LIBXC_IDENT, LIBXC_MARKER, LIBXL_END, LIBXL_IDENT, LIBXL_LIBXC_CONTEXT, MAX_RECORD,
};
use crate::release::{LIBXC_STREAMS, LIBXL_STREAM};

/// What takes a stream.
pub trait Sink {
    /// Bytes that are no page.
    fn other(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// The entries of a record with pages, instead of all of it that stands before the pages. At least one of
    /// them has data.
    fn batch(&mut self, entries: &[u64]) -> io::Result<()>;
    /// Some whole pages of the batch.
    fn pages(&mut self, pages: &[u8]) -> io::Result<()>;
}

/// Takes a stream apart.
#[derive(Debug)]
pub struct Parser {
    state: State,
    /// The beginning of what is not there completely.
    part: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    StreamHeader,
    LibxcHeader,
    /// Of which of the two streams.
    Record {
        libxc: bool,
    },
    /// The rest of a record.
    Body {
        left: u64,
        libxc: bool,
    },
    /// With the record's header.
    BatchHead {
        length: u32,
    },
    /// With all that stands before.
    Entries {
        length: u32,
        count: u32,
    },
    Pages {
        left: u64,
    },
    /// All of the stream was there.
    End,
    /// Not as this program knows it; nobody is to interpret it.
    Foreign,
}

const RECORD_HEADER: usize = 8;

impl State {
    /// How many bytes are needed at once.
    fn needs(self) -> usize {
        match self {
            State::StreamHeader => 16,
            // With the domain header.
            State::LibxcHeader => 24 + 16,
            State::Record { .. } => RECORD_HEADER,
            State::BatchHead { .. } => RECORD_HEADER + BATCH_HEAD,
            State::Entries { count, .. } => RECORD_HEADER + BATCH_HEAD + 8 * count as usize,
            State::Pages { .. } => PAGE,
            State::Body { .. } | State::End | State::Foreign => 0,
        }
    }
}

impl Default for Parser {
    fn default() -> Self {
        Parser { state: State::StreamHeader, part: Vec::new() }
    }
}

impl Parser {
    /// Whether the stream has ended as it should.
    pub fn is_whole(&self) -> bool {
        self.state == State::End
    }

    /// Whether it is another one than this program knows.
    pub fn is_foreign(&self) -> bool {
        self.state == State::Foreign
    }

    /// The next bytes of the stream.
    pub fn feed(&mut self, mut bytes: &[u8], sink: &mut impl Sink) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.state {
                // Behind its end there is nothing.
                State::End => self.state = State::Foreign,
                State::Foreign => return sink.other(bytes),
                State::Body { left, libxc } => {
                    let count = at_most(left, bytes.len());
                    sink.other(&bytes[..count])?;
                    bytes = &bytes[count..];
                    self.state = match left - count as u64 {
                        0 => State::Record { libxc },
                        left => State::Body { left, libxc },
                    };
                }
                State::Pages { left } if self.part.is_empty() && bytes.len() >= PAGE => {
                    let count = at_most(left, bytes.len() / PAGE);
                    sink.pages(&bytes[..count * PAGE])?;
                    bytes = &bytes[count * PAGE..];
                    self.state = behind_pages(left - count as u64);
                }
                state => {
                    let count = (state.needs() - self.part.len()).min(bytes.len());
                    self.part.extend_from_slice(&bytes[..count]);
                    bytes = &bytes[count..];
                    if self.part.len() == state.needs() {
                        self.step(sink)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The stream ends here: hands on what is not a whole of anything.
    pub fn end(&mut self, sink: &mut impl Sink) -> io::Result<()> {
        sink.other(&mem::take(&mut self.part))
    }

    /// What is needed at once is there.
    fn step(&mut self, sink: &mut impl Sink) -> io::Result<()> {
        let next = self.next();
        match (self.state, next) {
            (State::Pages { .. }, _) => sink.pages(&self.part)?,
            (State::Entries { .. }, State::Pages { .. }) => {
                let entries: Vec<_> = entries(&self.part[RECORD_HEADER + BATCH_HEAD..]).collect();
                sink.batch(&entries)?;
            }
            // More of it is needed.
            (_, State::BatchHead { .. } | State::Entries { .. }) => {
                self.state = next;
                return Ok(());
            }
            _ => sink.other(&self.part)?,
        }
        self.part.clear();
        self.state = next;
        Ok(())
    }

    /// What follows the bytes that were needed.
    fn next(&self) -> State {
        let bytes = self.part.as_slice();
        let be_u64 =
            |at: usize| bytes[at..at + 8].iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
        let be_u32 = |at: usize| u32::from_be_bytes(word(bytes, at));
        let ne_u32 = |at: usize| u32::from_ne_bytes(word(bytes, at));
        let if_so = |is_so: bool, next: State| if is_so { next } else { State::Foreign };
        match self.state {
            State::StreamHeader => {
                let known = be_u64(0) == LIBXL_IDENT && be_u32(8) == LIBXL_STREAM;
                if_so(known, State::Record { libxc: false })
            }
            State::LibxcHeader => {
                let known = be_u64(0) == LIBXC_MARKER
                    && be_u32(8) == LIBXC_IDENT
                    && LIBXC_STREAMS.contains(&be_u32(12));
                let page_shift = u16::from_ne_bytes([bytes[28], bytes[29]]);
                if_so(known && page_shift == PAGE_SHIFT, State::Record { libxc: true })
            }
            State::Record { libxc } => {
                let (kind, length) = (ne_u32(0), ne_u32(4));
                let body = match u64::from(length).next_multiple_of(8) {
                    0 => State::Record { libxc },
                    left => State::Body { left, libxc },
                };
                match (libxc, kind) {
                    _ if length > MAX_RECORD => State::Foreign,
                    (true, PAGE_DATA) if length as usize > BATCH_HEAD => {
                        State::BatchHead { length }
                    }
                    (true, LIBXC_END) if length == 0 => State::Record { libxc: false },
                    (false, LIBXL_END) if length == 0 => State::End,
                    (false, LIBXL_LIBXC_CONTEXT) if length == 0 => State::LibxcHeader,
                    (true, LIBXC_END) | (false, LIBXL_END | LIBXL_LIBXC_CONTEXT) => State::Foreign,
                    _ => body,
                }
            }
            State::BatchHead { length } => {
                let (count, reserved) = (ne_u32(8), ne_u32(12));
                let room = (length as usize - BATCH_HEAD) / 8;
                let fits = (1..=room).contains(&(count as usize)) && reserved == 0;
                if_so(fits, State::Entries { length, count })
            }
            State::Entries { length, count } => {
                let pages = entries(&bytes[RECORD_HEADER + BATCH_HEAD..]).filter(|e| has_data(*e));
                let pages = pages.count() as u64;
                let whole = BATCH_HEAD as u64 + 8 * u64::from(count) + pages * PAGE as u64;
                // Without a page it is a record as any other.
                if_so(whole == u64::from(length), behind_pages(pages))
            }
            State::Pages { left } => behind_pages(left - 1),
            state @ (State::Body { .. } | State::End | State::Foreign) => state,
        }
    }
}

fn behind_pages(left: u64) -> State {
    if left == 0 { State::Record { libxc: true } } else { State::Pages { left } }
}

fn at_most(left: u64, count: usize) -> usize {
    usize::try_from(left).map_or(count, |left| left.min(count))
}

fn word(bytes: &[u8], at: usize) -> [u8; 4] {
    bytes[at..at + 4].try_into().expect("four bytes")
}
