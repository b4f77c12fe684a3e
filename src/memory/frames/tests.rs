//! Frames made by zstd itself, whole, cut and damaged.

use std::io::Cursor;

use proptest::prelude::*;

use super::*;
use crate::memory::{BadImage, Form, Image, header};
use crate::record::Record;
use crate::support::record::sample;
use crate::support::streams::pv_stream;

fn level(text: &str) -> Level {
    text.parse().unwrap()
}

/// A complete image as this program compresses it.
fn image(stream: &[u8], level: Level) -> Vec<u8> {
    let mut record = sample();
    let space = header::record_space(&record);
    let plain = header::encode("{}", &record, space).unwrap().len() + stream.len();
    record.image_size = plain as u64;
    let header = header::encode("{}", &record, space).unwrap();
    let packed = frame(stream, level).unwrap();
    let begun = head(&header, level, None).unwrap();
    let file_len = (begun.len() + packed.len()) as u64;
    let marker = Marker { file_len, image_len: record.image_size };
    let done = head(&header, level, Some(marker)).unwrap();
    assert_eq!(begun.len(), done.len());
    [done, packed].concat()
}

fn read(bytes: &[u8]) -> Result<Image, BadImage> {
    Image::read(&mut Cursor::new(bytes))
}

fn walked(bytes: &[u8]) -> Result<(), BadFrames> {
    walk(&mut Cursor::new(bytes), bytes.len() as u64)
}

/// What cannot be compressed.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Some(state.to_be_bytes()[0])
    };
    std::iter::from_fn(next).take(length).collect()
}

/// Where each frame ends.
fn boundaries(bytes: &[u8]) -> Vec<usize> {
    let mut cursor = Cursor::new(bytes);
    let mut frames = Frames::new(&mut cursor, 0, bytes.len() as u64).unwrap();
    let ends = std::iter::from_fn(|| frames.next().unwrap());
    ends.map(|frame| usize::try_from(frame.end).unwrap()).collect()
}

/// Where each block of one frame begins, and where the last one ends.
fn blocks(bytes: &[u8]) -> Vec<usize> {
    let mut cursor = Cursor::new(bytes);
    let mut frames = Frames::new(&mut cursor, 4, bytes.len() as u64).unwrap();
    frames.frame_header().unwrap();
    let mut at = usize::try_from(frames.at).unwrap();
    let mut starts = vec![at];
    loop {
        let header = u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], 0]);
        let rle = header >> 1 & 3 == 1;
        at += 3 + if rle { 1 } else { usize::try_from(header >> 3).unwrap() };
        starts.push(at);
        if header & 1 == 1 {
            return starts;
        }
    }
}

#[test]
fn the_head_keeps_its_length_whatever_is_in_it() {
    let sizes = [0, 1, 100, 8192, 70_000, 1 << 20];
    for size in sizes {
        let zeros = vec![0; size];
        let mixed: Vec<u8> = (0..size).map(|i| (i * i / 3).to_le_bytes()[0]).collect();
        for text in ["zstd:1", "zstd", "zstd:19"] {
            let marker = Marker { file_len: u64::MAX, image_len: 1 };
            let one = head(&zeros, level(text), None).unwrap();
            let other = head(&mixed, level(text), Some(marker)).unwrap();
            assert_eq!(one.len(), other.len());
            walked(&one).unwrap();
            let mut unpacked = Vec::new();
            Unpacked::new(other.as_slice()).unwrap().read_to_end(&mut unpacked).unwrap();
            assert!(unpacked == mixed);
            let layout = layout(&mut Cursor::new(&other), other.len() as u64).unwrap();
            assert_eq!(layout.ours.unwrap().1, Some(marker));
            assert!(layout.checksums);
        }
    }
}

#[test]
fn a_compressed_image_is_read_without_unpacking_it() {
    let stream = pv_stream();
    let bytes = image(&stream, level("zstd"));
    let mut image = read(&bytes).unwrap();
    assert_eq!(image.form, Form::Zstd { checksums: true });
    assert!(!image.read_whole);
    assert_eq!(image.stream_len, stream.len() as u64);
    assert_eq!(image.record.disks, sample().disks);
    image.read_all(&mut Cursor::new(&bytes)).unwrap();
    assert!(image.read_whole);
}

#[test]
fn every_cut_and_every_addition_is_noticed_before_anything_is_unpacked() {
    let bytes = image(&pv_stream(), level("zstd"));
    let cuts =
        (0..bytes.len()).step_by(11).chain(boundaries(&bytes)).chain(bytes.len() - 9..bytes.len());
    for cut in cuts.filter(|cut| *cut < bytes.len()) {
        read(&bytes[..cut]).expect_err(&format!("cut at {cut}"));
    }
    for more in [&b"x"[..], &frame(b"more", level("zstd")).unwrap()] {
        let error = read(&[&bytes, more].concat()).unwrap_err();
        assert!(matches!(error, BadImage::Length { .. }), "{error}");
    }
}

#[test]
fn a_cut_frame_is_noticed_by_walking_alone() {
    // Several blocks, of every kind: what repeats, what cannot be compressed, and text.
    let mut content = vec![7; 300_000];
    content.extend(noise(140_000));
    content.extend(b"some text ".iter().cycle().take(100_000));
    let bytes = frame(&content, level("zstd:1")).unwrap();
    walked(&bytes).unwrap();
    let blocks = blocks(&bytes);
    assert!(blocks.len() > 4, "{blocks:?}");
    let around = blocks.iter().flat_map(|at| at - 5..at + 5);
    for cut in (1..bytes.len()).step_by(997).chain(around).filter(|cut| *cut < bytes.len()) {
        let error = walked(&bytes[..cut]).unwrap_err();
        assert!(matches!(error, BadFrames::Truncated { .. }), "cut at {cut}: {error}");
    }
}

#[test]
fn a_hole_in_the_file_is_noticed() {
    let mut bytes = image(&noise(600_000), level("zstd:1"));
    read(&bytes).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 200_000].fill(0);
    let error = read(&bytes).unwrap_err();
    assert!(matches!(error, BadImage::Frames(BadFrames::Damaged { .. })), "{error}");
}

#[test]
fn an_image_that_was_begun_only_is_not_taken_for_one() {
    let record = Record { complete: false, image_size: 0, ..sample() };
    let header = header::encode("{}", &record, header::record_space(&record)).unwrap();
    let head = head(&header, level("zstd"), None).unwrap();
    let packed = frame(&pv_stream(), level("zstd")).unwrap();
    for bytes in [head.clone(), [head, packed].concat()] {
        read(&bytes).unwrap_err();
    }
}

#[test]
fn what_only_claims_to_be_long_costs_nothing() {
    // 300 MB of zeros in some kilobytes.
    let mut bomb = Vec::new();
    let mut encoder = zstd::Encoder::new(&mut bomb, 1).unwrap();
    for _ in 0..300 {
        io::Write::write_all(&mut encoder, &[0; 1 << 20]).unwrap();
    }
    encoder.finish().unwrap();
    assert!(matches!(read(&bomb).unwrap_err(), BadImage::Header(header::BadHeader::Magic)));
    // A window of two gigabytes.
    let window = [0x28, 0xB5, 0x2F, 0xFD, 0, 21 << 3, 1, 0, 0];
    let error = read(&window).unwrap_err().to_string();
    assert!(error.contains("Reading"), "{error}");
}

#[test]
fn other_magic_numbers_are_not_ours() {
    assert!(is_compressed([0x28, 0xB5, 0x2F, 0xFD]));
    assert!(is_compressed([0x5A, 0x2A, 0x4D, 0x18]));
    for magic in [*b"Xen ", [0x1F, 0x8B, 8, 0], [0; 4]] {
        assert!(!is_compressed(magic));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_content_comes_back(
        parts in prop::collection::vec((any::<u8>(), 1..60_000usize, any::<bool>()), 0..6),
        number in 1..=12u8,
    ) {
        let mut content = Vec::new();
        for (byte, count, same) in parts {
            let value = |i: usize| if same { byte } else { (i * usize::from(byte)).to_le_bytes()[1] };
            content.extend((0..count).map(value));
        }
        let bytes = frame(&content, Level(number)).unwrap();
        walked(&bytes).unwrap();
        let mut unpacked = Vec::new();
        Unpacked::new(bytes.as_slice()).unwrap().read_to_end(&mut unpacked).unwrap();
        prop_assert!(unpacked == content);
    }

    #[test]
    fn a_changed_byte_is_noticed_by_the_time_all_is_read(at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let good = image(&pv_stream(), level("zstd"));
        let mut bytes = good.clone();
        bytes[at.index(good.len())] ^= 1 << bit;
        let taken = read(&bytes).and_then(|mut image| image.read_all(&mut Cursor::new(&bytes)));
        // Some bits stand for nothing: the room behind the header.
        if taken.is_ok() {
            prop_assert_eq!(zstd::decode_all(&*bytes).unwrap(), zstd::decode_all(&*good).unwrap());
        }
    }

    #[test]
    fn nothing_whatever_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut framed = FRAME.to_le_bytes().to_vec();
        framed.extend(&bytes);
        let _ = walked(&framed);
        let _ = read(&framed);
        let _ = walked(&bytes);
    }
}
