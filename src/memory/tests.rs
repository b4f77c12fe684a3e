use std::io::Cursor;

use super::*;
use crate::support::record::sample;
use crate::support::streams::pv_stream;

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
fn an_image_whose_record_is_not_complete_has_all_of_the_memory_or_not() {
    let record = Record { complete: false, image_size: 0, ..sample() };
    let head = header::encode(CONFIG, &record, header::record_space(&record)).unwrap();
    let plain = [head.clone(), pv_stream()].concat();
    let level = "zstd".parse().unwrap();
    let packed =
        [frames::head(&head, level, None).unwrap(), frames::frame(&pv_stream(), level).unwrap()];
    for bytes in [plain, packed.concat()] {
        Image::check_saved(&mut Cursor::new(&bytes)).unwrap();
        assert!(Image::read(&mut Cursor::new(&bytes)).is_err());
        for cut in (0..bytes.len()).step_by(53).chain(bytes.len() - 20..bytes.len()) {
            let cut = Image::check_saved(&mut Cursor::new(&bytes[..cut]));
            assert!(cut.is_err(), "{cut:?}");
        }
        let more = [&bytes[..], b"more"].concat();
        assert!(Image::check_saved(&mut Cursor::new(more)).is_err());
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
