use std::cell::Cell;
use std::os::unix::fs::MetadataExt;
use std::{env, fs};

use jiff::Timestamp;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use uuid::Uuid;

use super::*;
use crate::host::image::{ImageWriter, Source};
use crate::memory::header;
use crate::plan::{ImageStart, Target};
use crate::record::{NOT_YET, Record};
use crate::support::record::sample;
use crate::support::streams::{Entry, HVM, guest_stream};

/// A complete image of a guest with these pages.
fn image(directory: &Path, number: u128, pages: &[Entry]) -> (PathBuf, Record) {
    let path = directory.join(format!("s{number}.xlsave"));
    let created = Timestamp::from_second(1_700_000_000 + i64::try_from(number).unwrap()).unwrap();
    let id = Uuid::from_u128(number);
    let record = Record { id, created, complete: false, image_size: NOT_YET, ..sample() };
    let start = ImageStart {
        target: Target::File(path.clone()),
        make_directory: false,
        config: r#"{"c_info":{"name":"web1"}}"#.into(),
        record: record.clone(),
        compress: None,
    };
    let mut writer = ImageWriter::start(&start).unwrap();
    let batches: Vec<_> = pages.chunks(256).map(<[Entry]>::to_vec).collect();
    let stream = guest_stream(HVM, &batches);
    let pipe = writer.fd().try_clone_to_owned().unwrap();
    io::Write::write_all(&mut File::from(pipe), &stream).unwrap();
    assert_eq!(writer.seal(true), None);
    let mut record = record;
    writer.complete(&mut record).unwrap();
    (path, record)
}

/// A guest that has changed every so many-th page since.
fn guest(changed: u64) -> Vec<Entry> {
    let seed = |pfn: u64| match pfn {
        _ if pfn % 5 == 0 => 0,
        _ if changed > 0 && pfn % 40 == changed => pfn + 10_000 * changed,
        _ => pfn + 1,
    };
    (0..2048).map(|pfn| (pfn, seed(pfn))).collect()
}

#[test]
fn the_one_it_descends_from_is_found_else_the_youngest_that_is_older() {
    let directory = tempfile::tempdir().unwrap();
    let all: Vec<_> = (1..=4).map(|n| image(directory.path(), n, &guest(0)[..9])).collect();
    fs::write(directory.path().join("other"), "no image").unwrap();
    let found = |record: &Record| older(directory.path(), record).unwrap();
    assert_eq!(found(&all[3].1), (Some(all[2].0.clone()), 3));
    assert_eq!(found(&all[0].1), (None, 0));
    let parent = Some(Parent::Snapshot(all[1].1.id));
    let descends = Record { parent, ..all[3].1.clone() };
    assert_eq!(found(&descends), (Some(all[1].0.clone()), 3));
    let mut other = all[3].1.clone();
    other.domain.uuid = Uuid::from_u128(77);
    assert_eq!(found(&other), (None, 0));
}

/// In a directory of a file system that shares content: `SHARING_DIRECTORY`, or what /var/tmp can do.
#[test]
fn what_did_not_change_is_stored_once_and_each_image_stays_whole() {
    let place = env::var_os("SHARING_DIRECTORY").unwrap_or_else(|| "/var/tmp".into());
    let directory = tempfile::tempdir_in(place).unwrap();
    let (first, _) = image(directory.path(), 1, &guest(0));
    let (second, record) = image(directory.path(), 2, &guest(3));
    let bytes = [&first, &second].map(|path| fs::read(path).unwrap());
    let told = share_with_older(&second, &record, None, &|| false);
    let able = trouble(&first, directory.path()).is_none();
    assert_eq!(told.is_none(), able, "{told:?}");
    if able {
        let shared = share(&second, &first, &|| false).unwrap();
        let told = sizes(&files::open(&second).unwrap()).unwrap();
        // 51 pages of 2048 are others, and a fifth is zeros.
        let expected = (2048 - 2048 / 5 - 60) * 4096;
        assert!(shared >= expected, "{shared}");
        assert!(told.shared.unwrap() >= expected, "{told:?}");
        assert!(told.on_disk < told.apparent);
    } else {
        // The third is told nothing any more.
        let (third, record) = image(directory.path(), 3, &guest(7));
        assert_eq!(share_with_older(&third, &record, None, &|| false), None);
        assert!(share_with_older(&third, &record, Some(&first), &|| false).is_some());
    }
    for (path, bytes) in [&first, &second].into_iter().zip(&bytes) {
        assert!(fs::read(path).unwrap() == *bytes);
        Source::open(path).unwrap().verify().unwrap();
    }
    fs::remove_file(&first).unwrap();
    assert!(fs::read(&second).unwrap() == bytes[1]);
    Source::open(&second).unwrap().verify().unwrap();
    assert!(fs::metadata(&second).unwrap().blocks() * 512 < bytes[1].len() as u64);
}

#[test]
fn an_image_of_before_has_nothing_to_share_and_says_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (first, _) = image(directory.path(), 1, &guest(0)[..300]);
    let mut file = files::open(&first).unwrap();
    let read = Image::read(&mut file).unwrap();
    assert!(!Places::of(&mut file, &read, &|| false).unwrap().is_empty());
    let plain = header::encode_plain("{}").unwrap();
    fs::write(directory.path().join("s0"), [&plain[..], &guest_stream(HVM, &[])].concat()).unwrap();
    let (second, record) = image(directory.path(), 2, &guest(0)[..300]);
    assert_eq!(older(directory.path(), &record).unwrap(), (Some(first), 1));
    drop(second);
}

/// A file that counts what is read of it.
#[derive(Clone, Copy)]
struct Counted<'f> {
    file: &'f File,
    count: &'f Cell<u64>,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.count.set(self.count.get() + count as u64);
        Ok(count)
    }
}

impl Seek for Counted<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

/// The places of what two images have in common, and how much of them was read.
fn in_common(first: &Path, second: &Path, with_sums: bool) -> (Vec<(u64, u64, u64)>, u64) {
    let read = |path: &Path| {
        let mut file = files::open(path).unwrap();
        let mut image = Image::read(&mut file).unwrap();
        image.sums = image.sums.filter(|_| with_sums);
        (file, image)
    };
    let ((from, old), (to, new)) = (read(first), read(second));
    let count = Cell::new(0);
    let counted = |file| Counted { file, count: &count };
    let mut found = Vec::new();
    equal((counted(&from), &old), (counted(&to), &new), &|| false, &mut |piece| {
        found.push((piece.from_at, piece.to_at, piece.length));
        Ok(())
    })
    .unwrap();
    (found, count.get())
}

#[test]
fn of_images_with_checksums_no_page_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let (first, _) = image(directory.path(), 1, &guest(0));
    let (second, _) = image(directory.path(), 2, &guest(3));
    let (by_sums, little) = in_common(&first, &second, true);
    let (by_content, much) = in_common(&first, &second, false);
    assert_eq!(by_sums, by_content);
    assert!(by_sums.iter().map(|(.., length)| length).sum::<u64>() > 4 << 20);
    let bytes = fs::metadata(&first).unwrap().len() + fs::metadata(&second).unwrap().len();
    assert!(much > bytes / 2, "{much} of {bytes}");
    assert!(little < bytes / 50, "{little} of {bytes}");
}

#[test]
fn a_signal_stops_it_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let (first, _) = image(directory.path(), 1, &guest(0));
    let (second, record) = image(directory.path(), 2, &guest(3));
    let mut file = files::open(&first).unwrap();
    let old = Image::read(&mut file).unwrap();
    // Wherever it comes: while the places are looked up, compared, or shared.
    for calls in [0, 1, 2000, 2049, 4000] {
        let asked = Cell::new(0);
        let stop = || {
            asked.set(asked.get() + 1);
            asked.get() > calls
        };
        let pair = (&file, &old);
        let error = equal(pair, pair, &stop, &mut |_| Ok(())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        assert_eq!(asked.get(), calls + 1, "it is not asked again");
    }
    let error = share(&second, &first, &|| true).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::Interrupted);
    if trouble(&first, directory.path()).is_none() {
        let told = share_with_older(&second, &record, None, &|| true).unwrap();
        assert!(told.contains("a signal stopped it") && told.contains("is complete"), "{told}");
    }
    Source::open(&second).unwrap().verify().unwrap();
}

/// Of a page that was saved twice the last content is looked for, and the list has no more than one place for each.
#[test]
fn a_list_of_places_takes_sixteen_bytes_for_each_page() {
    let directory = tempfile::tempdir().unwrap();
    let pages = [guest(0), guest(3)].concat();
    let (path, _) = image(directory.path(), 1, &pages);
    let mut file = files::open(&path).unwrap();
    let read = Image::read(&mut file).unwrap();
    let places = Places::of(&mut file, &read, &|| false).unwrap();
    assert_eq!(places.size(), 16 * read.sums.unwrap().count);
    assert_eq!(read.sums.unwrap().count, 4096);
    let (second, _) = image(directory.path(), 2, &guest(3));
    let (found, _) = in_common(&path, &second, true);
    let shared: u64 = found.iter().map(|(.., length)| length).sum();
    let zeros = guest(3).iter().filter(|(_, seed)| *seed == 0).count() as u64;
    assert_eq!(shared, (2048 - zeros) * 4096);
}

#[test]
fn what_a_file_system_can_do_is_found_without_the_older_image() {
    let directory = tempfile::tempdir().unwrap();
    let able = trouble(&image(directory.path(), 1, &guest(0)[..9]).0, directory.path());
    // Nobody could clone that.
    let fifo = directory.path().join("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    assert_eq!(trouble(&fifo, directory.path()), able);
    assert!(trouble(&directory.path().join("none"), directory.path()).is_some());
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    assert!(trouble(&fifo, elsewhere.path()).is_some());
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2, "nothing is left behind");
}
