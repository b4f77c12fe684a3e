//! Images made and read as `create` and `revert` do it, with a made-up guest.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use super::source::copied;
use super::*;
use crate::domain::DomainConfig;
use crate::memory::{Form, sums};
use crate::support::record::sample;
use crate::support::streams::{HVM, guest_stream, pv_stream, pv_stream_of};

fn start(directory: &Path, compress: Option<&str>) -> ImageStart {
    ImageStart {
        target: Target::File(directory.join("s1.xlsave")),
        make_directory: false,
        config: r#"{"c_info":{"name":"web1"}}"#.into(),
        record: Record { complete: false, image_size: 0, ..sample() },
        compress: compress.map(|text| text.parse().unwrap()),
    }
}

fn path(start: &ImageStart) -> &Path {
    match &start.target {
        Target::File(path) => path,
        Target::Stdout => panic!("a pipe"),
    }
}

/// Writes what libxl would write.
fn save(writer: &ImageWriter, stream: &[u8]) {
    File::from(writer.fd().try_clone_to_owned().unwrap()).write_all(stream).unwrap();
}

/// A complete image.
fn image(start: &ImageStart, stream: &[u8]) -> u64 {
    let writer = ImageWriter::start(start).unwrap();
    save(&writer, stream);
    writer.complete(&mut start.record.clone()).unwrap().unwrap()
}

/// What `xl restore` would get behind the header, or the error on the way.
fn fed(source: &mut Source) -> io::Result<Vec<u8>> {
    let length = source.image.stream_len;
    let mut bytes = Vec::new();
    source.stream()?.take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn names(directory: &Path) -> Vec<String> {
    let entries = directory.read_dir().unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn what_somebody_puts_in_the_place_of_an_image_is_neither_written_to_nor_believed() {
    let directory = tempfile::tempdir().unwrap();
    let start = start(directory.path(), None);
    let path = path(&start);
    let other = directory.path().join("shadow");
    fs::write(&other, "secret").unwrap();
    let writer = ImageWriter::start(&start).unwrap();
    fs::remove_file(partial_path(path)).unwrap();
    symlink(&other, partial_path(path)).unwrap();
    save(&writer, &pv_stream());
    let error = writer.complete(&mut start.record.clone()).unwrap_err();
    assert!(error.to_string().contains("was replaced"), "{error}");
    assert_eq!(fs::read(&other).unwrap(), b"secret");

    // Nor is it removed.
    let start = ImageStart { target: Target::File(directory.path().join("s2.xlsave")), ..start };
    let writer = ImageWriter::start(&start).unwrap();
    fs::rename(&other, directory.path().join("s2.xlsave.partial")).unwrap();
    writer.discard().unwrap();
    assert_eq!(fs::read(directory.path().join("s2.xlsave.partial")).unwrap(), b"secret");
}

#[test]
fn what_lacks_only_its_name_is_complete_and_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let start = start(directory.path(), None);
    let path = path(&start);
    let writer = ImageWriter::start(&start).unwrap();
    // What can be found after a power cut, with nothing beside it.
    assert_eq!(names(directory.path()), ["s1.xlsave.partial"]);
    save(&writer, &pv_stream());
    fs::write(path, "theirs").unwrap();
    let error = writer.complete(&mut start.record.clone()).unwrap_err();
    assert!(matches!(error, NotComplete::Unnamed(_)), "{error}");
    assert_eq!(fs::read(path).unwrap(), b"theirs");
    // By the command that is told then.
    fs::rename(partial_path(path), path).unwrap();
    Source::open(path).unwrap();
}

#[test]
fn an_image_has_its_name_only_when_complete() {
    for compress in [None, Some("zstd")] {
        let directory = tempfile::tempdir().unwrap();
        let start = start(directory.path(), compress);
        let path = path(&start);
        let writer = ImageWriter::start(&start).unwrap();
        assert!(partial_path(path).exists() && !path.exists());
        assert!(ImageWriter::start(&start).is_err(), "a second one must not take the file");
        assert!(partial_path(path).exists());
        let completed = writer.complete(&mut start.record.clone());
        // No memory was written.
        if compress.is_none() {
            assert!(completed.unwrap_err().to_string().contains("left off in the middle"));
            assert!(partial_path(path).exists() && !path.exists());
            continue;
        }
        assert_eq!(completed.unwrap(), Some(path.metadata().unwrap().len()));
        assert!(!partial_path(path).exists());
        // Its frames are whole, and what is in them is found out when it is read.
        let error = Source::open(path).unwrap().verify().unwrap_err();
        assert!(error.chain().last().unwrap().contains("truncated"));
    }
}

#[test]
fn a_discarded_image_leaves_nothing() {
    for compress in [None, Some("zstd")] {
        let directory = tempfile::tempdir().unwrap();
        let writer = ImageWriter::start(&start(directory.path(), compress)).unwrap();
        save(&writer, &[7; 100_000]);
        writer.discard().unwrap();
        assert_eq!(names(directory.path()), [""; 0]);
    }
}

#[test]
fn a_partial_image_is_refused_by_its_name() {
    let error = Source::open(Path::new("/x/s1.xlsave.partial")).unwrap_err();
    assert_eq!(error.exit_code(), 3);
}

#[test]
fn both_forms_hold_the_same_image() {
    let stream = pv_stream_of(5 << 20);
    let mut images = Vec::new();
    for compress in [None, Some("zstd:1"), Some("zstd:12")] {
        let directory = tempfile::tempdir().unwrap();
        let start = start(directory.path(), compress);
        let length = image(&start, &stream);
        assert_eq!(length, path(&start).metadata().unwrap().len());
        assert!((length < stream.len() as u64) == compress.is_some());
        let mut source = Source::open(path(&start)).unwrap();
        assert!(source.image.record.complete);
        assert!(fed(&mut source).unwrap() == stream);
        source.verify().unwrap();
        let record = source.image.record;
        let plain = fs::read(path(&start)).unwrap();
        images
            .push((record, compress.map_or(plain.clone(), |_| zstd::decode_all(&*plain).unwrap())));
    }
    assert!(images[0] == images[1] && images[0] == images[2]);
}

#[test]
fn only_a_plain_image_with_the_same_configuration_is_restored_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let other = DomainConfig::parse(r#"{"c_info":{"name":"web2"}}"#).unwrap();
    for (compress, fits) in [(None, true), (Some("zstd"), false)] {
        let start = start(directory.path(), compress);
        image(&start, &pv_stream());
        let source = Source::open(path(&start)).unwrap();
        let own = DomainConfig::parse(&start.config).unwrap();
        assert_eq!(source.as_it_is(&own).unwrap().is_some(), fits, "{compress:?}");
        assert!(source.as_it_is(&other).unwrap().is_none());
        fs::remove_file(path(&start)).unwrap();
    }
}

/// zstd(1) with an argument, on a file's content.
fn zstd1(argument: &str, input: &[u8]) -> Vec<u8> {
    #[expect(clippy::disallowed_methods, reason = "a tool that only tests use")]
    let mut child = Command::new("zstd")
        .args(["-q", argument])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("zstd is installed: tests/lab/setup-host");
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success(), "zstd {argument}: {}", output.status);
    output.stdout
}

#[test]
fn the_stock_tool_unpacks_ours_and_we_read_what_it_packed() {
    let directory = tempfile::tempdir().unwrap();
    let stream = pv_stream_of(3 << 20);
    let ours = start(directory.path(), Some("zstd"));
    image(&ours, &stream);
    let packed = fs::read(path(&ours)).unwrap();
    let plain = zstd1("-dc", &packed);
    assert!(plain == zstd::decode_all(&*packed).unwrap());
    zstd1("-t", &packed);

    let other = directory.path().join("s2.xlsave.zst");
    for (bytes, checksums) in
        [(zstd1("-c", &plain), true), (zstd1("--no-check", &plain), false), (packed, true)]
    {
        fs::write(&other, bytes).unwrap();
        let mut source = Source::open(&other).unwrap();
        assert_eq!(source.image.form, Form::Zstd { checksums });
        assert!(fed(&mut source).unwrap() == stream);
        source.verify().unwrap();
    }
    fs::write(&other, &plain).unwrap();
    assert_eq!(Source::open(&other).unwrap().image.form, Form::Plain);
}

#[test]
fn images_that_went_through_a_pipe_are_read() {
    let stream = pv_stream();
    let record = Record { complete: false, image_size: 0, ..sample() };
    let done = Record { complete: true, ..record.clone() };
    let plain = header::encode("{}", &record, header::record_space(&record)).unwrap();
    let level: Level = "zstd".parse().unwrap();
    let frame = |bytes: &[u8]| frames::frame(bytes, level).unwrap();
    let trailer = header::trailer(&done);
    let all = [plain.as_slice(), &stream, &trailer].concat();
    // Packed by another program; by us; both are whole only with their end.
    let ours =
        [frames::head(&plain, level, None).unwrap(), frame(&stream), frame(&trailer)].concat();
    for bytes in [zstd1("-c", &all), ours] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("piped.zst");
        fs::write(&path, &bytes).unwrap();
        let mut source = Source::open(&path).unwrap();
        assert!(source.image.read_whole);
        assert_eq!(source.image.record, done);
        assert!(fed(&mut source).unwrap() == stream);
        for cut in (0..bytes.len()).step_by(7) {
            fs::write(&path, &bytes[..cut]).unwrap();
            assert_eq!(Source::open(&path).unwrap_err().exit_code(), 3, "cut at {cut}");
        }
    }
}

#[test]
fn what_is_damaged_is_never_fed_to_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let stream = pv_stream_of(2 << 20);
    let start = start(directory.path(), Some("zstd"));
    let length = usize::try_from(image(&start, &stream)).unwrap();
    let good = fs::read(path(&start)).unwrap();
    let mut noticed_early = 0;
    for at in (0..length).step_by(length / 200) {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        fs::write(path(&start), &bytes).unwrap();
        let Ok(mut source) = Source::open(path(&start)) else {
            noticed_early += 1;
            continue;
        };
        let fed = fed(&mut source);
        let verified = source.verify();
        // The room behind the header is the one place where nothing stands.
        if fed.is_ok() {
            assert!(zstd::decode_all(&*bytes).is_ok(), "byte {at}");
            verified.unwrap();
        } else {
            assert_eq!(verified.unwrap_err().exit_code(), 3, "byte {at}");
        }
    }
    assert!(noticed_early > 0);
}

#[test]
fn memory_with_damaged_checksums_is_read_without_them() {
    let directory = tempfile::tempdir().unwrap();
    let start = start(directory.path(), None);
    let pages: Vec<_> = (0..300).map(|pfn| (pfn, pfn + 1)).collect();
    image(&start, &guest_stream(HVM, &[pages]));
    let mut source = Source::open(path(&start)).unwrap();
    assert_eq!(source.leave_damaged_sums().unwrap(), None);
    let whole = fed(&mut source).unwrap();
    // A byte in the middle of the table.
    let mut bytes = fs::read(path(&start)).unwrap();
    let at = bytes.len() - 1000;
    bytes[at] ^= 1;
    fs::write(path(&start), &bytes).unwrap();
    let mut source = Source::open(path(&start)).unwrap();
    assert!(fed(&mut source).is_err());
    assert!(source.leave_damaged_sums().unwrap().is_some());
    assert!(fed(&mut source).unwrap() == whole);
    // Bytes in its head: what it is, and how many sums it has.
    let good = {
        bytes[at] ^= 1;
        bytes
    };
    let table = good.len() - (300 * 8 + 56);
    for at in [table + 3, table + 33] {
        let mut bytes = good.clone();
        bytes[at] ^= 4;
        fs::write(path(&start), bytes).unwrap();
        let mut source = Source::open(path(&start)).unwrap();
        let error = source.verify().unwrap_err().chain().join(": ");
        assert!(error.contains("The table of its checksums is damaged"), "{error}");
        assert!(source.leave_damaged_sums().unwrap().is_some(), "{at}");
        assert!(fed(&mut source).unwrap() == whole);
    }
}

/// Zeros where a record should begin are what ends a stream.
#[test]
fn a_hole_in_an_image_is_not_taken_for_the_end_of_its_stream() {
    let directory = tempfile::tempdir().unwrap();
    let start = start(directory.path(), None);
    let batches: Vec<Vec<_>> = (0..4)
        .map(|batch| (0..64).map(|page| (64 * batch + page, 64 * batch + page + 1)).collect())
        .collect();
    image(&start, &guest_stream(HVM, &batches));
    let good = fs::read(path(&start)).unwrap();
    let refused = |bytes: &[u8], what: &str| {
        fs::write(path(&start), bytes).unwrap();
        let error = Source::open(path(&start)).expect_err(what);
        assert_eq!(error.exit_code(), 3, "{what}");
    };
    let stream = Source::open(path(&start)).unwrap().image.stream_offset;
    let stream = usize::try_from(stream).unwrap();
    // From anywhere in the memory to the end, and of the length of a batch.
    for from in (stream + 100..good.len() - 10_000).step_by(40_961) {
        for length in [300_000, good.len()] {
            let mut bytes = good.clone();
            let to = good.len().min(from + length);
            bytes[from..to].fill(0);
            refused(&bytes, &format!("{from} to {to}"));
        }
    }
    // The lists of pages: zeros, and another number.
    let number = |number: u64| number.to_ne_bytes();
    for first in [0u64, 64, 128] {
        let list: Vec<u8> = (first..first + 64).flat_map(number).collect();
        let at = good.windows(list.len()).position(|bytes| bytes == list).unwrap();
        let mut bytes = good.clone();
        bytes[at + 16..at + 256].fill(0);
        refused(&bytes, "a list of zeros");
        let mut bytes = good.clone();
        bytes[at + 7] = 0xf0;
        refused(&bytes, "a page that is not there");
    }
    fs::write(path(&start), &good).unwrap();
    Source::open(path(&start)).unwrap().verify().unwrap();
}

/// The process that wrote a plain image was killed while it wrote the checksums: they are left out.
#[test]
fn a_torn_table_of_checksums_is_cut_off_by_another_process() {
    let pages: Vec<_> = (0..300).map(|pfn| (pfn, pfn + 1)).collect();
    let stream = guest_stream(HVM, &[pages]);
    // Before the file had its length; then from no byte of the table to all of it.
    const RESERVED: u64 = u64::MAX - 1;
    for cut in [RESERVED, 0, 1, 8, 9, 60, 1000, u64::MAX] {
        let directory = tempfile::tempdir().unwrap();
        let start = start(directory.path(), None);
        let mut writer = ImageWriter::start(&start).unwrap();
        let id = writer.id().unwrap();
        save(&writer, &stream);
        assert_eq!(writer.seal(true), None);
        // What is reserved behind the stream is no table.
        let end = Image::torn_at(&mut writer.file).unwrap().unwrap();
        let mut whole = end;
        if cut != RESERVED {
            writer.drain().unwrap();
            whole = writer.file.metadata().unwrap().len();
            assert!(whole > end + 1000, "{whole} and {end}");
            writer.file.set_len(whole.min(end.saturating_add(cut))).unwrap();
        }
        mem::forget(writer);
        let mut adopted = ImageWriter::adopt(&start, id).unwrap();
        adopted.drain().unwrap();
        adopted.complete(&mut start.record.clone()).unwrap();
        let length = fs::metadata(path(&start)).unwrap().len();
        assert_eq!(length, if cut == u64::MAX { whole } else { end }, "{cut}");
        let mut source = Source::open(path(&start)).unwrap();
        source.verify().unwrap();
    }
}

/// While the guest is down, nothing is done that a restore does not need.
#[test]
fn an_image_that_a_guest_is_restored_from_gets_its_checksums_later() {
    let pages: Vec<_> = (0..300).map(|pfn| (pfn, pfn + 1)).collect();
    let stream = guest_stream(HVM, &[pages]);
    // How much of the table was written when we were killed; at last, all of it.
    for torn in [0, 8, 1000, 2000, u64::MAX] {
        let directory = tempfile::tempdir().unwrap();
        let start = start(directory.path(), None);
        let mut writer = ImageWriter::start(&start).unwrap();
        save(&writer, &stream);
        assert_eq!(writer.seal(true), None);
        writer.secure().unwrap();
        let end = writer.file.metadata().unwrap().len();
        assert_eq!(Image::torn_at(&mut writer.file).unwrap(), None);
        let mut again = writer.file.try_clone().unwrap();
        assert_eq!(again.seek(SeekFrom::End(0)).unwrap(), end, "no table yet");
        writer.end().unwrap();
        let later = writer.later_sums().unwrap();
        let length = writer.complete(&mut start.record.clone()).unwrap().unwrap();
        assert!(length > end + 2400, "{length} and {end}");
        let without = Source::open(path(&start)).unwrap();
        assert_eq!(without.image.sums, None);
        if torn == u64::MAX {
            later.write().unwrap();
        } else {
            let part = vec![0xa5; usize::try_from(torn).unwrap()];
            again.write_all_at(&part, end + sums::HEAD).unwrap();
        }
        let mut source = Source::open(path(&start)).unwrap();
        assert_eq!(source.image.sums.is_some(), torn == u64::MAX);
        assert_eq!(source.leave_damaged_sums().unwrap(), None);
        source.verify().unwrap();
        assert!(fed(&mut source).unwrap().len() as u64 == source.image.stream_len);
        assert_eq!(fs::metadata(path(&start)).unwrap().len(), length);
    }
}

/// The process that compressed an image was killed: what is a guard to make of the file?
#[test]
fn only_an_image_that_was_all_compressed_can_be_completed_by_another_process() {
    let stream = pv_stream_of(1 << 20);
    for drained in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let start = start(directory.path(), Some("zstd"));
        let mut writer = ImageWriter::start(&start).unwrap();
        let id = writer.id().unwrap();
        save(&writer, &stream);
        if drained {
            writer.drain().unwrap();
        }
        // As the kernel does it with a process: nothing of ours runs any more.
        mem::forget(writer);
        let mut adopted = ImageWriter::adopt(&start, id).unwrap();
        if drained {
            adopted.drain().unwrap();
            adopted.complete(&mut start.record.clone()).unwrap();
            let mut source = Source::open(path(&start)).unwrap();
            assert!(fed(&mut source).unwrap() == stream);
            source.verify().unwrap();
            // Killed once more, when all was done.
            let again = ImageWriter::adopt(&start, id).unwrap();
            again.complete(&mut start.record.clone()).unwrap();
            Source::open(path(&start)).unwrap().verify().unwrap();
        } else {
            let error = adopted.drain().unwrap_err();
            assert!(
                error.to_string().contains("because the process that compressed it has ended"),
                "{error}"
            );
            adopted.drain().unwrap_err();
            let told = adopted.give_up(&start.record.name, error);
            assert_eq!((told.exit_code(), told.remaining.len()), (4, 1));
            assert!(told.remaining[0].what.contains("The memory of snapshot s1 is not whole"));
            assert_eq!(names(directory.path()), ["s1.xlsave.partial"], "its name is never given");
            let command = format!("rm {}", quote(partial_path(path(&start))));
            assert_eq!(told.remaining[0].command, Some(command));
        }
    }
}

#[test]
fn standard_output_cannot_be_gone_on_with_once_it_is_compressed() {
    let directory = tempfile::tempdir().unwrap();
    let start = ImageStart { target: Target::Stdout, ..start(directory.path(), Some("zstd")) };
    let adopted = ImageWriter::adopt(&start, (0, 0)).unwrap();
    adopted.complete(&mut start.record.clone()).unwrap_err();
}

#[test]
fn what_comes_through_a_pipe_is_looked_at_before_it_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    for compress in [None, Some("zstd")] {
        let start = start(directory.path(), compress);
        let stream = pv_stream_of(3 << 20);
        image(&start, &stream);
        let bytes = fs::read(path(&start)).unwrap();
        fs::remove_file(path(&start)).unwrap();
        let mut copy = copied(&mut bytes.as_slice()).unwrap();
        let mut again = Vec::new();
        copy.read_to_end(&mut again).unwrap();
        assert!(again == bytes);
        if compress.is_none() {
            // It never ends.
            let mut input = bytes.as_slice().chain(io::repeat(7));
            let error = copied(&mut input).unwrap_err();
            assert!(error.to_string().contains("longer than it says"), "{error}");
        }
    }
    for endless in [0, b'X', 0xfd] {
        let mut read = 0;
        let mut input = Counted(io::repeat(endless), &mut read);
        copied(&mut input).unwrap_err();
        assert!(read < 1 << 20, "{read} bytes were read");
    }
}

struct Counted<'a, R>(R, &'a mut usize);

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.0.read(buffer)?;
        *self.1 += count;
        Ok(count)
    }
}
