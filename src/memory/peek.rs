//! What a file is, from its first bytes and its length alone: a list of a thousand images reads none of
//! them whole.
//!
//! What cannot be known so cheaply, such as a hole in the middle of an image, is found by
//! [`Image::read`](super::Image::read).

use std::io::{self, Read, Seek, SeekFrom};

use super::frames::{self, Unpacked};
use super::header::{self, BadHeader, MARK, MAX_RECORD};
use super::{BadImage, Form, check_length};
use crate::record::{NOT_YET, Record};

/// How much of a compressed file may be read to find where its first frame ends. Ours has nothing but the
/// header, which is at most as long.
const MOST: u64 = 20 << 20;

/// What a file is.
#[derive(Debug)]
pub enum Peek {
    /// A snapshot, with its memory or without.
    Snapshot {
        /// The record.
        record: Box<Record>,
        /// How its memory is stored; `None` if it has none.
        form: Option<Form>,
        /// How much of it is there.
        extent: Extent,
    },
    /// A save file of xl, without a record.
    SaveFile,
    /// It begins as one of ours, and is damaged.
    Damaged(BadImage),
    /// Something else.
    Foreign,
    /// It would take [`Effort::Full`].
    Later,
}

/// What looking may cost in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// As much as records of the usual length take.
    Little,
    /// As much as anything of ours may take: a decompressor, or the reading of a record of 1 MiB.
    Full,
}

/// A longer record is for [`Effort::Full`].
const USUAL: usize = 64 << 10;

/// How much of an image is there.
#[derive(Debug)]
pub enum Extent {
    /// All of it, by its length.
    Whole,
    /// It was never completed.
    Unfinished,
    /// More or less than there should be.
    Wrong(BadImage),
    /// Only who reads all of it can say.
    Unread,
}

/// Looks at a file of `length` bytes.
///
/// # Errors
///
/// If it cannot be read.
pub fn peek<F: Read + Seek>(file: &mut F, length: u64, effort: Effort) -> io::Result<Peek> {
    file.rewind()?;
    let mut start = Vec::new();
    file.by_ref().take(header::MAGIC.len() as u64).read_to_end(&mut start)?;
    file.rewind()?;
    let magic = start.first_chunk::<4>();
    let peeked = if start.starts_with(MARK.as_bytes()) {
        record_file(file, effort)
    } else if start == header::MAGIC {
        plain(file, length, effort)
    } else if magic.is_some_and(|magic| frames::is_compressed(*magic)) {
        match effort {
            Effort::Little => return Ok(Peek::Later),
            Effort::Full => compressed(file, length),
        }
    } else {
        return Ok(Peek::Foreign);
    };
    match peeked {
        Ok(peek) => Ok(peek),
        Err(BadImage::Header(BadHeader::RecordLength(length)))
            if effort == Effort::Little && length <= MAX_RECORD =>
        {
            Ok(Peek::Later)
        }
        Err(BadImage::Io(error)) if is_of_storage(&error) => Err(error),
        Err(error) => Ok(Peek::Damaged(error)),
    }
}

/// Whether reading failed, and not only ended.
fn is_of_storage(error: &io::Error) -> bool {
    error.raw_os_error().is_some()
}

fn record_file(file: &mut impl Read, effort: Effort) -> Result<Peek, BadImage> {
    let mut text = Vec::new();
    file.take(MAX_RECORD as u64 + 1).read_to_end(&mut text)?;
    let record = parse(&text, effort)?;
    let whole = record.complete && record.disks_only.is_some();
    let extent = if whole { Extent::Whole } else { Extent::Unfinished };
    Ok(Peek::Snapshot { record: Box::new(record), form: None, extent })
}

/// The record in `tail`, without the room that is kept behind it.
fn parse(tail: &[u8], effort: Effort) -> Result<Record, BadImage> {
    let text = tail.trim_ascii_end();
    if tail.len() > MAX_RECORD || (text.len() > USUAL && effort == Effort::Little) {
        return Err(BadHeader::RecordLength(tail.len()).into());
    }
    match header::parse_tail(text) {
        header::Tail::Record(text) => Ok(Record::parse(&text)?),
        // The mark's own end is white space.
        _ if text == MARK.trim_ascii_end().as_bytes() => Ok(Record::parse("")?),
        header::Tail::Empty | header::Tail::Foreign => Err(BadImage::NoRecord),
    }
}

/// The record in the header, whose configuration is passed over.
fn in_header(input: &mut impl Read, effort: Effort) -> Result<Record, BadImage> {
    let tail_len = header::read_to_tail(input)?;
    if tail_len > MAX_RECORD as u64 {
        return Err(BadHeader::RecordLength(usize::try_from(tail_len).unwrap_or(usize::MAX)).into());
    }
    let mut tail = Vec::new();
    input.take(tail_len).read_to_end(&mut tail)?;
    if tail.len() as u64 != tail_len {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    parse(&tail, effort)
}

fn plain<F: Read + Seek>(file: &mut F, length: u64, effort: Effort) -> Result<Peek, BadImage> {
    let record = match in_header(file, effort) {
        Err(BadImage::NoRecord) => return Ok(Peek::SaveFile),
        record => record?,
    };
    let form = Some(Form::Plain);
    if record.complete {
        let extent = match check_length(record.image_size, length) {
            Ok(()) => Extent::Whole,
            Err(wrong) => Extent::Wrong(wrong),
        };
        return Ok(Peek::Snapshot { record: Box::new(record), form, extent });
    }
    // It went through a pipe: the record with the proofs stands at the end.
    let last = match record.image_size {
        NOT_YET => None,
        _ => at_the_end(file, length, effort)?,
    };
    Ok(match last.filter(|last| last.id == record.id && last.complete && last.image_size == 0) {
        Some(last) => Peek::Snapshot { record: Box::new(last), form, extent: Extent::Whole },
        None => Peek::Snapshot { record: Box::new(record), form, extent: Extent::Unfinished },
    })
}

/// A record at the end of a file, if one stands there.
fn at_the_end<F: Read + Seek>(
    file: &mut F,
    length: u64,
    effort: Effort,
) -> Result<Option<Record>, BadImage> {
    // Most records are short.
    for most in [USUAL as u64, MAX_RECORD as u64] {
        if most > USUAL as u64 && effort == Effort::Little {
            return Err(BadHeader::RecordLength(USUAL).into());
        }
        file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
        let mut end = Vec::new();
        file.by_ref().take(most).read_to_end(&mut end)?;
        let mark = MARK.as_bytes();
        let Some(at) = end.windows(mark.len()).rposition(|bytes| bytes == mark) else { continue };
        return Ok(header::parse_trailer(&end[at..]).and_then(|text| Record::parse(text).ok()));
    }
    Ok(None)
}

fn compressed<F: Read + Seek>(file: &mut F, length: u64) -> Result<Peek, BadImage> {
    let record = match in_header(&mut Unpacked::beginning(file.by_ref())?, Effort::Full) {
        Err(BadImage::NoRecord) => return Ok(Peek::SaveFile),
        // Anybody may compress anything.
        Err(BadImage::Header(
            BadHeader::Magic | BadHeader::Compressed(_) | BadHeader::Other(_),
        )) => {
            return Ok(Peek::Foreign);
        }
        record => record?,
    };
    let layout = frames::layout(file, length.min(MOST)).ok();
    let form = Form::Zstd { checksums: layout.is_some_and(|layout| layout.checksums) };
    let extent = match layout.and_then(|layout| layout.ours) {
        Some((_, Some(marker))) => match check_length(marker.file_len, length) {
            Ok(()) if record.complete => Extent::Whole,
            Ok(()) => Extent::Unfinished,
            Err(wrong) => Extent::Wrong(wrong),
        },
        // Another program has compressed it, or it went through a pipe.
        _ if record.image_size == NOT_YET => Extent::Unfinished,
        Some((_, None)) | None => Extent::Unread,
    };
    Ok(Peek::Snapshot { record: Box::new(record), form: Some(form), extent })
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::record::DisksOnly;
    use crate::support::record::sample;
    use crate::support::streams::pv_stream;

    fn of(bytes: &[u8]) -> Peek {
        peek(&mut Cursor::new(bytes), bytes.len() as u64, Effort::Full).unwrap()
    }

    fn extent(bytes: &[u8]) -> Extent {
        match of(bytes) {
            Peek::Snapshot { record, extent, .. } => {
                assert_eq!((record.name.as_str(), record.disks.len()), ("s1", 3));
                extent
            }
            other => panic!("{other:?}"),
        }
    }

    fn image() -> Vec<u8> {
        let mut record = sample();
        let space = header::record_space(&record);
        let head = header::encode("{}", &record, space).unwrap().len();
        record.image_size = (head + pv_stream().len()) as u64;
        [header::encode("{}", &record, space).unwrap(), pv_stream()].concat()
    }

    fn through_a_pipe() -> Vec<u8> {
        let mut record = Record { complete: false, image_size: 0, ..sample() };
        let head = header::encode("{}", &record, header::record_space(&record)).unwrap();
        record.complete = true;
        [head, pv_stream(), header::trailer(&record)].concat()
    }

    #[test]
    fn an_image_is_whole_by_its_length() {
        for bytes in [image(), through_a_pipe()] {
            assert!(matches!(extent(&bytes), Extent::Whole));
        }
        let mut longer = image();
        longer.push(0);
        assert!(matches!(extent(&longer), Extent::Wrong(BadImage::Length { .. })));
        let bytes = image();
        assert!(matches!(extent(&bytes[..bytes.len() - 1]), Extent::Wrong(_)));
        let cut = through_a_pipe();
        assert!(matches!(extent(&cut[..cut.len() - 1]), Extent::Unfinished));
        let unfinished = Record { complete: false, image_size: NOT_YET, ..sample() };
        let head = header::encode("{}", &unfinished, header::record_space(&unfinished)).unwrap();
        assert!(matches!(extent(&head), Extent::Unfinished));
    }

    #[test]
    fn a_record_alone_is_a_snapshot_without_memory() {
        let text = |record: &Record| (MARK.to_owned() + &record.to_toml()).into_bytes();
        let record = Record { disks_only: Some(DisksOnly::Offline), ..sample() };
        assert!(matches!(
            of(&text(&record)),
            Peek::Snapshot { form: None, extent: Extent::Whole, .. }
        ));
        assert!(matches!(extent(&text(&sample())), Extent::Unfinished));
        assert!(matches!(of(MARK.as_bytes()), Peek::Damaged(BadImage::Record(_))));
    }

    #[test]
    fn a_compressed_image_is_whole_only_if_its_marker_says_so() {
        let plain = image();
        let level = "zstd:1".parse().unwrap();
        let head_len = plain.len() - pv_stream().len();
        let packed = |marker| {
            let mut bytes = frames::head(&plain[..head_len], level, marker).unwrap();
            bytes.extend(frames::frame(&pv_stream(), level).unwrap());
            bytes
        };
        let file_len = packed(None).len() as u64;
        let image_len = plain.len() as u64;
        let bytes = packed(Some(frames::Marker { file_len, image_len }));
        assert!(matches!(extent(&bytes), Extent::Whole));
        assert!(matches!(extent(&bytes[..bytes.len() - 1]), Extent::Wrong(_)));
        assert!(matches!(extent(&packed(None)), Extent::Unread));
        // By another program.
        assert!(matches!(extent(&zstd::encode_all(&*plain, 1).unwrap()), Extent::Unread));
        let foreign = zstd::encode_all(&b"something else, longer than a magic number of xl"[..], 1);
        assert!(matches!(of(&foreign.unwrap()), Peek::Foreign));
    }

    #[test]
    fn little_effort_leaves_what_costs_memory_for_later() {
        let little = |bytes: &[u8]| {
            peek(&mut Cursor::new(bytes), bytes.len() as u64, Effort::Little).unwrap()
        };
        assert!(matches!(little(&image()), Peek::Snapshot { extent: Extent::Whole, .. }));
        assert!(matches!(little(&through_a_pipe()), Peek::Snapshot { extent: Extent::Whole, .. }));
        assert!(matches!(little(&zstd::encode_all(&*image(), 1).unwrap()), Peek::Later));
        let long = Record { description: "x".repeat(USUAL), ..sample() };
        let head = header::encode("{}", &long, header::record_space(&long)).unwrap();
        assert!(matches!(little(&head), Peek::Later));
        assert!(matches!(of(&head), Peek::Snapshot { extent: Extent::Wrong(_), .. }));
    }

    #[test]
    fn what_is_none_of_ours_is_told_from_what_is_damaged() {
        assert!(matches!(of(b""), Peek::Foreign));
        assert!(matches!(of(&[0; 4096]), Peek::Foreign));
        assert!(matches!(of(&header::encode_plain("{}").unwrap()), Peek::SaveFile));
        let bytes = image();
        for cut in [32, 40, 50, 60, 200] {
            assert!(matches!(of(&bytes[..cut]), Peek::Damaged(_)), "{cut}");
        }
        // Lengths that cannot be cost nothing.
        let mut huge = bytes.clone();
        huge[44..48].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert!(matches!(of(&huge), Peek::Damaged(BadImage::Header(_))));
    }
}
