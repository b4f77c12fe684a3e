//! The header of an `xl save` file: encoding and decoding. Pure.

use std::hash::Hasher;
use std::io::{self, Read};
use std::str;

use twox_hash::XxHash64;

use super::entries::PAGE;
use crate::record::Record;

/// `SAVEFILE_MAGIC`: exactly 32 bytes, without a closing NUL.
pub(super) const MAGIC: &[u8; 32] = b"Xen saved domain, xl format\n \0 \r";
/// `SAVEFILE_BYTEORDER_VALUE`, in the byte order of the machine.
const BYTE_ORDER: u32 = 0x0102_0304;
/// `XL_MANDATORY_FLAG_JSON | XL_MANDATORY_FLAG_STREAMv2`: what `xl save` always writes.
const MANDATORY_FLAGS: u32 = 3;
/// More optional data than this is not believed: a configuration has a few KiB.
const MAX_OPTIONAL: u32 = 16 << 20;

/// A longer record is neither written nor read: a TOML parser takes a hundred times the length of the
/// text.
pub const MAX_RECORD: usize = 1 << 20;

/// Marks our record; a comment, so that the tail as a whole is TOML.
pub const MARK: &str = "# xl-snapshot record\n";

/// Closes a record behind the stream: TOML cut short may still be TOML.
const END_MARK: &str = "# end of xl-snapshot record\n";

/// Begins the last line of a record in the header, a comment. The sum is XXH64 with seed 0 of the configuration, a NUL and
/// the TOML before that line. Headers of earlier versions have none.
const SUM: &str = "# checksum of this header: ";

/// Room for the proofs of one disk: an ID and a name of at most 256 bytes each, and numbers.
const PROOF_SPACE: usize = 1024;

/// A decoded header.
#[derive(Debug, PartialEq, Eq)]
pub struct Header {
    /// libxl's JSON of the domain, without the closing NUL.
    pub config: String,
    /// What stands behind the configuration.
    pub tail: Tail,
}

/// What stands in the optional data behind the configuration.
#[derive(Debug, PartialEq, Eq)]
pub enum Tail {
    /// Nothing: xl wrote this file.
    Empty,
    /// Our record, as TOML text.
    Record(String),
    /// Something else's bytes.
    Foreign,
}

/// What people compress images with, and how it begins (magic(5)).
const COMPRESSED: [(&str, &[u8]); 4] =
    [("gzip", b"\x1f\x8b"), ("xz", b"\xfd7zXZ\0"), ("bzip2", b"BZh"), ("lz4", b"\x04\x22M\x18")];

/// What people pass by mistake, and how it begins (QEMU, docs/interop/qcow2.txt; the VHD specification, "cookie").
const OTHERS: [(&str, &[u8]); 2] =
    [("a qcow2 disk image", b"QFI\xfb"), ("a VHD disk image", b"conectix")];

/// Why a header is not one.
#[derive(Debug, thiserror::Error)]
pub enum BadHeader {
    /// Another kind of file.
    #[error("It is not a save file of xl (the first 32 bytes are something else)")]
    Magic,
    /// Another kind of file, which is known.
    #[error("It is {0}, not a save file of xl")]
    Other(&'static str),
    /// A file that another program has compressed.
    #[error(
        "It is compressed by {0}, and only zstd is read: unpack it, or pass {0} -dc FILE by a pipe, as -"
    )]
    Compressed(&'static str),
    /// Written on a machine of other byte order.
    #[error("It was written on a machine of another byte order ({0:#010x})")]
    ByteOrder(u32),
    /// Flags that this program does not know.
    #[error("Its mandatory flags are {0:#x}, this program knows {MANDATORY_FLAGS:#x}")]
    Flags(u32),
    /// A length that cannot be.
    #[error("Its header claims a length of {0} bytes, which cannot be")]
    Length(u32),
    /// Its checksum is another one.
    #[error(
        "The configuration or the record in its header is not what was written: the image is damaged"
    )]
    Sum,
    /// The configuration is not text.
    #[error("The configuration in its header is not text")]
    Text,
    #[error("It is empty, or too short for a memory image")]
    Short,
    #[error("Reading its header failed")]
    Io(#[source] io::Error),
    /// A record that is not one of ours.
    #[error("The snapshot record is {0} bytes long, {MAX_RECORD} are allowed")]
    RecordLength(usize),
    /// The record has outgrown the space kept for it.
    #[error("The snapshot record needs {needed} bytes, {space} were kept for it")]
    RecordSpace {
        /// The length of the record.
        needed: usize,
        /// The length kept.
        space: usize,
    },
}

impl From<io::Error> for BadHeader {
    fn from(error: io::Error) -> BadHeader {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => BadHeader::Short,
            _ => BadHeader::Io(error),
        }
    }
}

/// The bytes to keep for a record so that its proofs can be filled in later without moving what
/// follows.
pub fn record_space(record: &Record) -> usize {
    let now = MARK.len() + record.to_toml().len();
    (now + (1 + record.disks.len()) * PROOF_SPACE).next_multiple_of(4096)
}

/// The same, and more, so that what follows the header stands at a multiple of a page.
pub fn aligned_space(config: &str, record: &Record) -> usize {
    const BEFORE: usize = 48 + 4;
    let before = BEFORE + config.len() + 1;
    (before + record_space(record)).next_multiple_of(PAGE) - before
}

/// The header with the record padded to `space` bytes.
pub fn encode(config: &str, record: &Record, space: usize) -> Result<Vec<u8>, BadHeader> {
    let toml = record.to_toml();
    let mut tail = String::from(MARK) + &toml;
    if tail.len() > space {
        return Err(BadHeader::RecordSpace { needed: tail.len(), space });
    }
    let sum = sum_line(config, &toml);
    // Without room for it, as in a header of an earlier version, there is none.
    if tail.len() + sum.len() <= space {
        tail += &sum;
    }
    // As it would stand behind the stream, so that either way it can be read again.
    if space + END_MARK.len() > MAX_RECORD {
        return Err(BadHeader::RecordLength(space));
    }
    tail.extend(std::iter::repeat_n('\n', space - tail.len()));
    encode_with_tail(config, tail.as_bytes())
}

fn sum_line(config: &str, toml: &str) -> String {
    let mut sum = XxHash64::with_seed(0);
    [config.as_bytes(), &[0], toml.as_bytes()].iter().for_each(|part| sum.write(part));
    format!("{SUM}{:016x}\n", sum.finish())
}

/// Whether a record and its configuration are those of the checksum in the record, if it has one.
fn is_as_written(config: &str, record: &str) -> bool {
    let text = record.trim_end_matches('\n');
    let (toml, last) = record.split_at(text.rfind('\n').map_or(0, |at| at + 1));
    !last.starts_with(SUM) || last.trim_end_matches('\n') == sum_line(config, toml).trim_end()
}

/// The header as `xl save` itself writes it, without a record.
pub fn encode_plain(config: &str) -> Result<Vec<u8>, BadHeader> {
    encode_with_tail(config, b"")
}

/// The record as it stands behind the stream of an image that went through a pipe.
pub fn trailer(record: &Record) -> Vec<u8> {
    (String::from(MARK) + &record.to_toml() + END_MARK).into_bytes()
}

/// The text of a record behind the stream; `None` if it is not one or was cut short.
pub fn parse_trailer(bytes: &[u8]) -> Option<&str> {
    str::from_utf8(bytes).ok()?.strip_prefix(MARK)?.strip_suffix(END_MARK)
}

fn encode_with_tail(config: &str, tail: &[u8]) -> Result<Vec<u8>, BadHeader> {
    let too_long = |_| BadHeader::Length(u32::MAX);
    // "including trailing '\0'", xl_saverestore.c
    let config_len = u32::try_from(config.len() + 1).map_err(too_long)?;
    let optional_len = u32::try_from(4 + config.len() + 1 + tail.len()).map_err(too_long)?;
    if optional_len > MAX_OPTIONAL {
        return Err(BadHeader::Length(optional_len));
    }
    let mut bytes = Vec::with_capacity(48 + 4 + config.len() + 1 + tail.len());
    bytes.extend(MAGIC);
    for word in [BYTE_ORDER, MANDATORY_FLAGS, 0, optional_len, config_len] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(config.as_bytes());
    bytes.push(0);
    bytes.extend(tail);
    Ok(bytes)
}

fn what_else(magic: &[u8; 32]) -> BadHeader {
    let named = |table: &'static [(&'static str, &'static [u8])]| {
        table.iter().find(|(_, start)| magic.starts_with(start)).map(|(name, _)| *name)
    };
    let is_text = magic.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace());
    match (named(&COMPRESSED), named(&OTHERS)) {
        (Some(program), _) => BadHeader::Compressed(program),
        (None, Some(other)) => BadHeader::Other(other),
        (None, None) if is_text => BadHeader::Other("a text file"),
        (None, None) => BadHeader::Magic,
    }
}

/// Reads what stands before the optional data, and returns their length.
fn read_fixed(input: &mut impl Read) -> Result<u32, BadHeader> {
    let mut magic = [0; 32];
    input.read_exact(&mut magic)?;
    if magic != *MAGIC {
        return Err(what_else(&magic));
    }
    let byte_order = word(input)?;
    if byte_order != BYTE_ORDER {
        return Err(BadHeader::ByteOrder(byte_order));
    }
    let mandatory_flags = word(input)?;
    if mandatory_flags != MANDATORY_FLAGS {
        return Err(BadHeader::Flags(mandatory_flags));
    }
    let _optional_flags = word(input)?;
    let optional_len = word(input)?;
    match (5..=MAX_OPTIONAL).contains(&optional_len) {
        true => Ok(optional_len),
        false => Err(BadHeader::Length(optional_len)),
    }
}

/// Passes over the configuration, which may be long. Returns the length of what follows it and is none of
/// the stream.
pub(super) fn read_to_tail(input: &mut impl Read) -> Result<u64, BadHeader> {
    let optional_len = read_fixed(input)?;
    let config_len = word(input)?;
    let rest = optional_len - 4;
    if !(1..=rest).contains(&config_len) {
        return Err(BadHeader::Length(config_len));
    }
    let passed = io::copy(&mut input.take(config_len.into()), &mut io::sink())?;
    match passed == u64::from(config_len) {
        true => Ok(u64::from(rest - config_len)),
        false => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
    }
}

impl Header {
    /// Reads a header and leaves `input` at the first byte of the stream.
    pub fn read(input: &mut impl Read) -> Result<Header, BadHeader> {
        let optional_len = read_fixed(input)?;
        // Grown as bytes arrive: a file that only claims 16 MiB costs nothing.
        let mut optional = Vec::new();
        input.take(optional_len.into()).read_to_end(&mut optional)?;
        if optional.len() as u64 != u64::from(optional_len) {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let config_len = word(&mut optional.as_slice())?;
        let rest = &optional[4..];
        let (config, tail) = usize::try_from(config_len)
            .ok()
            .filter(|len| (1..=rest.len()).contains(len))
            .map(|len| rest.split_at(len))
            .ok_or(BadHeader::Length(config_len))?;
        let config = config.strip_suffix(b"\0").ok_or(BadHeader::Text)?;
        let config = String::from_utf8(config.to_vec()).map_err(|_| BadHeader::Text)?;
        match parse_tail(tail) {
            Tail::Record(text) if text.len() > MAX_RECORD => {
                Err(BadHeader::RecordLength(text.len()))
            }
            Tail::Record(text) if !is_as_written(&config, &text) => Err(BadHeader::Sum),
            tail => Ok(Header { config, tail }),
        }
    }
}

/// Tells our record from nothing and from something else.
pub fn parse_tail(tail: &[u8]) -> Tail {
    match str::from_utf8(tail).ok().and_then(|text| text.strip_prefix(MARK)) {
        Some(record) => Tail::Record(record.to_owned()),
        None if tail.is_empty() => Tail::Empty,
        None => Tail::Foreign,
    }
}

fn word(input: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    input.read_exact(&mut bytes)?;
    Ok(u32::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::kind::ProofSlot;
    use crate::support::record::sample;

    const CONFIG: &str = r#"{"c_info":{"name":"web1"}}"#;

    #[test]
    fn a_header_comes_back_as_it_was() {
        let record = sample();
        let bytes = encode(CONFIG, &record, record_space(&record)).unwrap();
        let header = Header::read(&mut bytes.as_slice()).unwrap();
        assert_eq!(header.config, CONFIG);
        let Tail::Record(text) = header.tail else { panic!("no record") };
        assert_eq!(Record::parse(&text).unwrap(), record);
    }

    #[test]
    fn the_layout_is_that_of_xl() {
        let bytes = encode_plain("{}").unwrap();
        assert_eq!(&bytes[..32], b"Xen saved domain, xl format\n \0 \r");
        assert_eq!(bytes[32..36], [4, 3, 2, 1]);
        assert_eq!(bytes[36..40], [3, 0, 0, 0]);
        assert_eq!(bytes[40..44], [0, 0, 0, 0]);
        assert_eq!(bytes[44..48], [7, 0, 0, 0]);
        assert_eq!(bytes[48..52], [3, 0, 0, 0]);
        assert_eq!(&bytes[52..], b"{}\0");
        assert_eq!(Header::read(&mut bytes.as_slice()).unwrap().tail, Tail::Empty);
    }

    #[test]
    fn proofs_fit_into_the_space_kept() {
        let complete = sample();
        let mut bare = complete.clone();
        bare.complete = false;
        bare.image_size = 0;
        for disk in &mut bare.disks {
            match disk.snapshot.kind_mut().proof() {
                ProofSlot::Inside(proof) => *proof = None,
                ProofSlot::Frozen { proof, .. } => *proof = None,
                ProofSlot::NotNeeded => {}
            }
        }
        let space = record_space(&bare);
        let first = encode(CONFIG, &bare, space).unwrap();
        let second = encode(CONFIG, &complete, space).unwrap();
        assert_eq!(first.len(), second.len());
        assert!(matches!(encode(CONFIG, &complete, 100), Err(BadHeader::RecordSpace { .. })));
    }

    #[test]
    fn a_record_too_long_to_be_read_is_not_written() {
        let mut record = sample();
        for (length, fits) in [(MAX_RECORD - 12 * 1024, true), (MAX_RECORD, false)] {
            record.description = "x".repeat(length);
            let space = record_space(&record);
            let written = encode(CONFIG, &record, space);
            assert_eq!(written.is_ok(), fits);
            // As another program might write it.
            let tail = format!("{MARK}{}", record.to_toml());
            let bytes = encode_with_tail(CONFIG, tail.as_bytes()).unwrap();
            let read = Header::read(&mut bytes.as_slice());
            assert_eq!(read.is_ok(), fits);
            if !fits {
                assert!(matches!(written, Err(BadHeader::RecordLength(_))));
                assert!(matches!(read, Err(BadHeader::RecordLength(_))));
            }
        }
    }

    #[test]
    fn a_trailer_comes_back_whole_or_not_at_all() {
        let record = sample();
        let bytes = trailer(&record);
        let text = parse_trailer(&bytes).unwrap();
        assert_eq!(Record::parse(text).unwrap(), record);
        for cut in 0..bytes.len() {
            assert!(parse_trailer(&bytes[..cut]).is_none(), "cut at {cut}");
        }
    }

    #[test]
    fn another_kind_of_file_is_named() {
        let read = |start: &[u8]| {
            let mut bytes = start.to_vec();
            bytes.resize(64, 0);
            Header::read(&mut bytes.as_slice()).unwrap_err().to_string()
        };
        assert_eq!(read(b"QFI\xfb\0\0\0\x03"), "It is a qcow2 disk image, not a save file of xl");
        assert!(read(b"conectix").contains("a VHD disk image"));
        assert!(read(b"name = \"web1\"\nmemory = 1024\nvcpus").contains("a text file"));
        assert!(read(b"name = \"web1\"\n").contains("something else"));
    }

    #[test]
    fn hostile_headers_are_refused_without_memory() {
        let good = encode_plain(CONFIG).unwrap();
        let with = |at: usize, word: u32| {
            let mut bytes = good.clone();
            bytes[at..at + 4].copy_from_slice(&word.to_ne_bytes());
            Header::read(&mut bytes.as_slice())
        };
        assert!(matches!(with(0, 0), Err(BadHeader::Magic)));
        assert!(matches!(with(0, 0x0008_8b1f), Err(BadHeader::Compressed("gzip"))));
        assert!(matches!(with(32, 0x0403_0201), Err(BadHeader::ByteOrder(0x0403_0201))));
        assert!(matches!(with(36, 7), Err(BadHeader::Flags(7))));
        assert!(matches!(with(44, u32::MAX), Err(BadHeader::Length(u32::MAX))));
        assert!(matches!(with(44, 3), Err(BadHeader::Length(3))));
        assert!(matches!(with(48, u32::MAX), Err(BadHeader::Length(u32::MAX))));
        assert!(matches!(with(48, 0), Err(BadHeader::Length(0))));
        assert!(matches!(with(48, 2), Err(BadHeader::Text)));
    }
}
