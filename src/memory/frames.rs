//! The zstd frames of a compressed image (RFC 8878): `zstd -dc FILE` yields the plain image.
//!
//! ```text
//!   frame      header: magic ... config, record     \ always of the same length together:
//!   skippable  zeros, marker                        / rewritten when the snapshot is complete
//!   frame      libxl migration stream v2 ... END
//!   [frame     record]                                only if written to a pipe
//! ```
//!
//! Every frame ends with a checksum of its content. The first one grows when proofs are filled into
//! the record, and the skippable one, which every reader of zstd passes over, gives up as much room.
//! At its end stands the [`Marker`]: how long the file is, and how long the plain image. It is written
//! when the compressor has written everything; on a pipe it stays empty. Whoever unpacks the image and
//! packs it again loses the marker with the frame, so that it never speaks of another file.

use std::fmt;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use zstd::Decoder;
use zstd::bulk::Compressor;
use zstd::zstd_safe::{CParameter, compress_bound};

/// The first bytes of a frame, RFC 8878, 3.1.1.
const FRAME: u32 = 0xFD2F_B528;
/// The first bytes of a skippable frame, 3.1.2: the last digit is free.
const SKIPPABLE: u32 = 0x184D_2A50;
/// Magic number and length of a skippable frame.
const SKIPPABLE_HEADER: usize = 8;
/// `Block_Maximum_Size`, 3.1.1.2.4.
const MAX_BLOCK: u32 = 128 << 10;
/// Blocks without content are legal, but many of them are a hole in the file: zeros.
const MAX_EMPTY_BLOCKS: u32 = 8;

/// Begins a marker.
const TAG: &[u8; 16] = b"xl-snapshot file";
const MARKER: usize = 32;

/// The longest file that an image of this length is compressed to, in bytes: no compressor makes it longer
/// than zstd's own bound for one piece (zstd.h, `ZSTD_COMPRESSBOUND`), and some for frames and the marker.
pub fn longest(image_len: u64) -> u64 {
    const FRAMES: u64 = 16 << 20;
    image_len.saturating_add(image_len >> 6).saturating_add(FRAMES)
}

/// How hard zstd tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Level(u8);

impl Level {
    /// That of zstd(1).
    pub const DEFAULT: Level = Level(3);
    /// Above, zstd wants hundreds of megabytes per thread and to be asked for `--ultra`.
    const MAX: u8 = 19;

    /// As zstd takes it.
    pub fn number(self) -> i32 {
        self.0.into()
    }
}

/// Why a text does not say how to compress.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("The compression {0:?} is not zstd or zstd:LEVEL, from 1 to {max}", max = Level::MAX)]
pub struct BadLevel(String);

/// `zstd` or `zstd:LEVEL`.
impl FromStr for Level {
    type Err = BadLevel;

    fn from_str(text: &str) -> Result<Self, BadLevel> {
        let bad = || BadLevel(text.to_owned());
        match text.strip_prefix("zstd").ok_or_else(bad)? {
            "" => Ok(Level::DEFAULT),
            rest => rest
                .strip_prefix(':')
                .and_then(|number| number.parse().ok())
                .filter(|number| (1..=Level::MAX).contains(number))
                .map(Level)
                .ok_or_else(bad),
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "zstd:{}", self.0)
    }
}

/// What a compressed file says of its lengths, once it is all there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marker {
    /// The length of the file in bytes.
    pub file_len: u64,
    /// The length of the plain image that it unpacks to.
    pub image_len: u64,
}

impl Marker {
    /// How much of the end of [`head`] it takes.
    pub const SIZE: u64 = MARKER as u64;

    /// As it is written.
    pub fn encode(marker: Option<Marker>) -> [u8; MARKER] {
        let mut bytes = [0; MARKER];
        bytes[..16].copy_from_slice(TAG);
        if let Some(marker) = marker {
            bytes[16..24].copy_from_slice(&marker.file_len.to_le_bytes());
            bytes[24..].copy_from_slice(&marker.image_len.to_le_bytes());
        }
        bytes
    }

    /// Reads the marker that ends at byte `end`. `None`: there is none; `Some(None)`: the file was
    /// begun by us, but not ended.
    fn read<F: Read + Seek>(file: &mut F, end: u64) -> io::Result<Option<Option<Marker>>> {
        let Some(start) = end.checked_sub(Marker::SIZE) else { return Ok(None) };
        let mut bytes = [0; MARKER];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut bytes)?;
        let (tag, lengths) = bytes.split_at(TAG.len());
        let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        let marker = Marker { file_len: number(&lengths[..8]), image_len: number(&lengths[8..]) };
        Ok((tag == TAG).then(|| (marker.file_len > 0).then_some(marker)))
    }
}

/// The frames with the header, in which they can be rewritten for another header of this length.
pub fn head(header: &[u8], level: Level, marker: Option<Marker>) -> io::Result<Vec<u8>> {
    let mut bytes = frame(header, level)?;
    let rest = compress_bound(header.len()) + SKIPPABLE_HEADER + MARKER - bytes.len();
    let padding = rest - SKIPPABLE_HEADER;
    bytes.extend(SKIPPABLE.to_le_bytes());
    bytes.extend(u32::try_from(padding).map_err(io::Error::other)?.to_le_bytes());
    bytes.resize(bytes.len() + padding - MARKER, 0);
    bytes.extend(Marker::encode(marker));
    Ok(bytes)
}

/// One frame with this content.
pub fn frame(content: &[u8], level: Level) -> io::Result<Vec<u8>> {
    let mut compressor = Compressor::new(level.number())?;
    compressor.set_parameter(CParameter::ChecksumFlag(true))?;
    compressor.compress(content)
}

/// Whether these are the first bytes of a compressed file.
pub fn is_compressed(magic: [u8; 4]) -> bool {
    let magic = u32::from_le_bytes(magic);
    magic == FRAME || is_skippable(magic)
}

fn is_skippable(magic: u32) -> bool {
    magic & !0xF == SKIPPABLE
}

/// Reads what a compressed file unpacks to, checksums checked.
pub struct Unpacked<R: Read>(Decoder<'static, BufReader<R>>);

impl<R: Read> Unpacked<R> {
    /// From the first byte on. zstd itself refuses what would need more than 128 MiB to unpack.
    pub fn new(file: R) -> io::Result<Self> {
        Ok(Unpacked(Decoder::new(file)?))
    }
}

impl<R: Read> Unpacked<R> {
    /// The same, of which only the beginning is read: however large the window, no more memory is used than that takes.
    pub fn beginning(file: R) -> io::Result<Self> {
        const LARGEST: u32 = 31;
        let mut decoder = Decoder::new(file)?;
        decoder.window_log_max(LARGEST)?;
        Ok(Unpacked(decoder))
    }
}

impl<R: Read> fmt::Debug for Unpacked<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unpacked").finish_non_exhaustive()
    }
}

impl<R: Read> Read for Unpacked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|error| match error.kind() {
            _ if error.raw_os_error().is_some() => error,
            kind @ io::ErrorKind::UnexpectedEof => {
                io::Error::new(kind, "its compressed data are truncated")
            }
            // zstd's own words, of ZSTD_error_frameParameter_windowTooLarge.
            _ if error.to_string().contains("requires too much memory") => io::Error::other(
                "it was compressed with a longer window than is unpacked here (zstd --long, --ultra): unpack it, or \
                 pass zstd -dc --long=31 FILE by a pipe, as -",
            ),
            _ => io::Error::other(format!("its compressed data are damaged: {error}")),
        })
    }
}

/// Why frames are not whole.
#[derive(Debug, thiserror::Error)]
pub enum BadFrames {
    /// Something else stands there.
    #[error("No {what} of zstd at byte {offset}: the image is damaged")]
    Damaged {
        /// What should stand there.
        what: &'static str,
        /// Where, from the start of the file.
        offset: u64,
    },
    /// The file ends within a frame.
    #[error("It ends at byte {length}, in the middle of its compressed data: it is truncated")]
    Truncated {
        /// The length of the file.
        length: u64,
    },
    /// It cannot be read.
    #[error("Reading it failed")]
    Io(#[from] io::Error),
}

/// A frame, from the first byte to the one behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Whether readers of zstd pass over it.
    pub skippable: bool,
    /// Whether it has a checksum.
    pub checksum: bool,
    /// The offset of the first byte behind it.
    pub end: u64,
}

/// What is known of a compressed file without unpacking it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Where the header's frame ends, and what the marker says; only if this program wrote the file.
    pub ours: Option<(u64, Option<Marker>)>,
    /// Where the room behind it ends that is kept for it; 0 if there is none.
    pub head: u64,
    /// Whether the first frame has a checksum; a program gives one to all or to none.
    pub checksums: bool,
}

/// Looks at the first frames of a file of `length` bytes.
pub fn layout<F: Read + Seek>(file: &mut F, length: u64) -> Result<Layout, BadFrames> {
    let mut frames = Frames::new(file, 0, length)?;
    let mut first = frames.next()?;
    while let Some(frame) = first.filter(|frame| frame.skippable) {
        first = Frames::new(file, frame.end, length)?.next()?;
    }
    let Some(first) = first else { return Err(BadFrames::Truncated { length }) };
    let mut layout = Layout { ours: None, head: 0, checksums: first.checksum };
    // Whatever follows the frame of another program is not looked at here.
    if let Ok(Some(second)) = Frames::new(file, first.end, length)?.next() {
        let marker = if second.skippable { Marker::read(file, second.end)? } else { None };
        if let Some(marker) = marker {
            layout.ours = Some((first.end, marker));
            layout.head = second.end;
        }
    }
    Ok(layout)
}

/// Walks the frames of a file to its end, block by block. Nothing is unpacked.
pub fn walk<F: Read + Seek>(file: &mut F, length: u64) -> Result<(), BadFrames> {
    let mut frames = Frames::new(file, 0, length)?;
    while frames.next()?.is_some() {}
    Ok(())
}

/// Goes from frame to frame.
struct Frames<'f, F> {
    file: BufReader<&'f mut F>,
    at: u64,
    length: u64,
}

impl<'f, F: Read + Seek> Frames<'f, F> {
    fn new(file: &'f mut F, at: u64, length: u64) -> io::Result<Self> {
        file.seek(SeekFrom::Start(at))?;
        // Blocks are smaller than this: the disk sees one long read, not many small ones.
        let file = BufReader::with_capacity(2 * MAX_BLOCK as usize, file);
        Ok(Frames { file, at, length })
    }

    fn next(&mut self) -> Result<Option<Frame>, BadFrames> {
        if self.at == self.length {
            return Ok(None);
        }
        let offset = self.at;
        match u32::from_le_bytes(self.bytes()?) {
            FRAME => {
                let checksum = self.frame_header()?;
                self.blocks()?;
                self.skip(if checksum { 4 } else { 0 })?;
                Ok(Some(Frame { skippable: false, checksum, end: self.at }))
            }
            magic if is_skippable(magic) => {
                let length = u32::from_le_bytes(self.bytes()?);
                self.skip(length.into())?;
                Ok(Some(Frame { skippable: true, checksum: false, end: self.at }))
            }
            _ => Err(BadFrames::Damaged { what: "frame", offset }),
        }
    }

    /// Passes the frame header, 3.1.1.1, and returns whether there is a checksum at the end.
    fn frame_header(&mut self) -> Result<bool, BadFrames> {
        let offset = self.at;
        let [descriptor] = self.bytes()?;
        if descriptor & 0b1000 != 0 {
            return Err(BadFrames::Damaged { what: "frame header", offset });
        }
        let single_segment = descriptor & 0b10_0000 != 0;
        let window = u64::from(!single_segment);
        let dictionary = [0, 1, 2, 4][usize::from(descriptor & 0b11)];
        let content_size = match descriptor >> 6 {
            0 => u64::from(single_segment),
            power => 1 << power,
        };
        self.skip(window + dictionary + content_size)?;
        Ok(descriptor & 0b100 != 0)
    }

    /// Passes the blocks of a frame, 3.1.1.2.
    fn blocks(&mut self) -> Result<(), BadFrames> {
        const RLE: u32 = 1;
        const RESERVED: u32 = 3;
        let mut empty = 0;
        loop {
            let offset = self.at;
            let [low, middle, high] = self.bytes()?;
            let header = u32::from_le_bytes([low, middle, high, 0]);
            let (last, kind, size) = (header & 1 == 1, header >> 1 & 0b11, header >> 3);
            empty = if size == 0 { empty + 1 } else { 0 };
            if kind == RESERVED || size > MAX_BLOCK || empty > MAX_EMPTY_BLOCKS {
                return Err(BadFrames::Damaged { what: "block", offset });
            }
            self.skip(if kind == RLE { 1 } else { size.into() })?;
            if last {
                return Ok(());
            }
        }
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], BadFrames> {
        let mut bytes = [0; N];
        self.advance(N as u64)?;
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn skip(&mut self, count: u64) -> Result<(), BadFrames> {
        self.advance(count)?;
        // At most four gigabytes, the length of a skippable frame.
        self.file.seek_relative(i64::try_from(count).expect("32 bits"))?;
        Ok(())
    }

    fn advance(&mut self, count: u64) -> Result<(), BadFrames> {
        // No overflow: the offset is within the file, and the count has 32 bits at most.
        self.at += count;
        if self.at > self.length {
            return Err(BadFrames::Truncated { length: self.length });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
