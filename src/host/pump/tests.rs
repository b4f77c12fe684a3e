use std::collections::BTreeMap;
use std::hint::black_box;
use std::os::unix::fs::MetadataExt;
use std::time::Instant;
use std::{env, fs};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use super::*;
use crate::memory::align::page_sum;
use crate::memory::batches::{Parser, Sink};
use crate::memory::entries::{PAGE, has_data, pfn};
use crate::memory::stream::walk;
use crate::memory::sums::{Checked, Damage, Table as Sums};
use crate::support::streams::{Entry, HVM, PV, guest_stream, page, pv_stream, rounds};

const START: u64 = 8192;

/// A file with this stream, as the pump writes it.
fn pumped(stream: &[u8]) -> File {
    let file = tempfile::tempfile_in(".").unwrap();
    file.set_len(START).unwrap();
    let mut pump = Pump::start(file.try_clone().unwrap(), START, Path::new(".")).unwrap();
    let mut pipe = File::from(pump.fd().unwrap().try_clone_to_owned().unwrap());
    // As it may come.
    stream.chunks(70_001).for_each(|piece| pipe.write_all(piece).unwrap());
    drop(pipe);
    assert_eq!(pump.seal(true), None);
    pump.add_sums().unwrap();
    file
}

fn end_of(file: &mut File) -> u64 {
    let length = file.metadata().unwrap().len();
    walk(file, START, length).unwrap()
}

/// What a reader of the stream ends with: the last entry and the last content of each page, and all else in its
/// order.
#[derive(Default, PartialEq, Debug)]
struct Restored {
    types: BTreeMap<u64, u64>,
    pages: BTreeMap<u64, Vec<u8>>,
    others: Vec<u8>,
    next: Vec<u64>,
}

impl Sink for Restored {
    fn other(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.others.extend(bytes);
        Ok(())
    }

    fn batch(&mut self, entries: &[u64]) -> io::Result<()> {
        self.types.extend(entries.iter().map(|entry| (pfn(*entry), entry >> 60)));
        self.next = entries.iter().rev().filter(|e| has_data(**e)).map(|e| pfn(*e)).collect();
        Ok(())
    }

    fn pages(&mut self, pages: &[u8]) -> io::Result<()> {
        for page in pages.chunks(PAGE) {
            self.pages.insert(self.next.pop().unwrap(), page.to_vec());
        }
        Ok(())
    }
}

fn restored(stream: &[u8]) -> Restored {
    let (mut parser, mut restored) = (Parser::default(), Restored::default());
    parser.feed(stream, &mut restored).unwrap();
    assert!(parser.is_whole());
    restored
}

fn read(file: &File, from: u64, to: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(to - from).unwrap()];
    file.read_exact_at(&mut bytes, from).unwrap();
    bytes
}

#[test]
fn readers_end_with_the_same_guest_and_every_page_is_aligned() {
    for guest in [PV, HVM] {
        let stream = guest_stream(guest, &rounds(guest));
        let mut file = pumped(&stream);
        let end = end_of(&mut file);
        let written = read(&file, START, end);
        assert!(restored(&written) == restored(&stream));
        // Where the content of each page stands.
        for seed in [21, 5003, 6000] {
            let content = page(seed);
            let at = written.windows(8).position(|bytes| bytes == &content[..8]).unwrap();
            assert_eq!((usize::try_from(START).unwrap() + at) % PAGE, 0);
            assert_eq!(&written[at..at + PAGE], content);
        }
        let table = Sums::read(&mut file, end).unwrap().unwrap();
        assert_eq!(end + table.length(), file.metadata().unwrap().len());
    }
}

#[test]
fn zeros_take_no_space() {
    const MIB: u64 = 1 << 20;
    let zeros: Vec<Entry> = (0..4096).map(|pfn| (pfn, u64::from(pfn % 512 == 0))).collect();
    let batches: Vec<_> = zeros.chunks(1024).map(<[Entry]>::to_vec).collect();
    let file = pumped(&guest_stream(HVM, &batches));
    assert!(file.metadata().unwrap().len() > 16 * MIB);
    assert!(file.metadata().unwrap().blocks() * 512 < MIB);
}

#[test]
fn what_is_not_known_is_written_as_it_comes() {
    // Its record of pages is none.
    let stream = pv_stream();
    let mut file = pumped(&stream);
    assert_eq!(file.metadata().unwrap().len(), START + stream.len() as u64);
    assert_eq!(read(&file, START, START + stream.len() as u64), stream);
    assert_eq!(end_of(&mut file), START + stream.len() as u64);
    let good = guest_stream(PV, &rounds(PV));
    for at in [0, 12, 24, 40, 64, 80, 100, 108] {
        let mut other = good.clone();
        other[at] ^= 0x40;
        let file = pumped(&other);
        // Either nothing is changed, or only where pages stand.
        let length = file.metadata().unwrap().len();
        let written = read(&file, START, length.min(START + other.len() as u64));
        assert!(length >= START + other.len() as u64, "{at}");
        assert_eq!(written[..64], other[..64]);
    }
    // More behind the end.
    let more = [&good[..], b"more"].concat();
    let file = pumped(&more);
    let length = file.metadata().unwrap().len();
    assert_eq!(read(&file, length - 4, length), b"more");
}

#[test]
fn a_stream_that_is_cut_short_is_noticed_if_it_should_be_whole() {
    let stream = guest_stream(PV, &rounds(PV));
    for cut in [0, 10, 30, 100, 5000, stream.len() - 1] {
        for saved in [false, true] {
            let file = tempfile::tempfile_in(".").unwrap();
            let mut pump = Pump::start(file, 0, Path::new(".")).unwrap();
            let mut pipe = File::from(pump.fd().unwrap().try_clone_to_owned().unwrap());
            pipe.write_all(&stream[..cut]).unwrap();
            drop(pipe);
            assert_eq!(pump.seal(saved).is_some(), saved, "{cut}");
            assert!(pump.fd().is_none());
        }
    }
}

/// The guest stands still until then: the length of the file is set later.
#[test]
fn the_end_of_the_pipe_is_all_that_is_waited_for() {
    let stream = guest_stream(HVM, &rounds(HVM));
    let mut file = tempfile::tempfile_in(".").unwrap();
    file.set_len(START).unwrap();
    let mut pump = Pump::start(file.try_clone().unwrap(), START, Path::new(".")).unwrap();
    let mut pipe = File::from(pump.fd().unwrap().try_clone_to_owned().unwrap());
    pipe.write_all(&stream).unwrap();
    drop(pipe);
    assert_eq!(pump.seal(true), None);
    let end = end_of(&mut file);
    assert!(file.metadata().unwrap().len() > end);
    pump.trim().unwrap();
    assert_eq!(file.metadata().unwrap().len(), end);
}

#[test]
fn an_error_closes_the_pipe_and_is_told() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut pump = Pump::start(full, 0, Path::new(".")).unwrap();
    let mut pipe = File::from(pump.fd().unwrap().try_clone_to_owned().unwrap());
    // Few bytes are taken in any case.
    let stream = guest_stream(PV, &rounds(PV));
    pipe.write_all(&stream[..64]).unwrap();
    let error = (0..8).find_map(|_| pipe.write_all(&stream[64..]).err()).unwrap();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    drop(pipe);
    assert!(pump.seal(false).unwrap().contains("No space left"));
    assert!(pump.add_sums().is_err());
}

#[test]
fn every_flipped_bit_is_found_and_its_page_named() {
    let stream = guest_stream(PV, &rounds(PV));
    let mut file = pumped(&stream);
    let end = end_of(&mut file);
    let table = Sums::read(&mut file, end).unwrap().unwrap();
    let length = file.metadata().unwrap().len();
    let check = |file: &File| {
        let copy = file.try_clone().unwrap();
        let error = io::copy(&mut Checked::new(copy, START, table), &mut io::sink()).err()?;
        Some(error.downcast::<Damage>().unwrap())
    };
    assert_eq!(check(&file), None);
    // Where pages stand, and which.
    let mut pages = BTreeMap::new();
    let mut at = START;
    let written = read(&file, START, end);
    let mut parser = Parser::default();
    struct Places<'a>(&'a mut u64, Vec<u64>, &'a mut BTreeMap<u64, u64>);
    impl Sink for Places<'_> {
        fn other(&mut self, bytes: &[u8]) -> io::Result<()> {
            *self.0 += bytes.len() as u64;
            Ok(())
        }
        fn batch(&mut self, entries: &[u64]) -> io::Result<()> {
            *self.0 += 16 + 8 * entries.len() as u64;
            self.1 = entries.iter().rev().filter(|e| has_data(**e)).map(|e| pfn(*e)).collect();
            Ok(())
        }
        fn pages(&mut self, pages: &[u8]) -> io::Result<()> {
            for _ in pages.chunks(PAGE) {
                self.2.insert(*self.0, self.1.pop().unwrap());
                *self.0 += PAGE as u64;
            }
            Ok(())
        }
    }
    parser.feed(&written, &mut Places(&mut at, Vec::new(), &mut pages)).unwrap();
    assert_eq!(at, end);
    // Each page once, and of everything else many.
    let elsewhere = (START..length).step_by(1009).filter(|at| {
        pages.range(..=*at).next_back().is_none_or(|(page, _)| *at >= page + PAGE as u64)
    });
    let spots = pages.keys().map(|page| page + (page / 7) % PAGE as u64).step_by(41);
    for at in spots.chain(elsewhere).collect::<Vec<_>>() {
        let [byte] = read(&file, at, at + 1)[..] else { panic!() };
        let bit = 1 << (at % 8);
        file.write_all_at(&[byte ^ bit], at).unwrap();
        let damage = check(&file).unwrap_or_else(|| panic!("a flipped bit at {at} is not seen"));
        if at < end {
            let page = pages.range(..=at).next_back().filter(|(p, _)| at < **p + PAGE as u64);
            if let Some((page, pfn)) = page {
                assert_eq!(damage, Damage::Page { pfn: *pfn, at: *page });
            }
        } else {
            assert_eq!(damage, Damage::Table, "{at}");
        }
        file.write_all_at(&[byte], at).unwrap();
    }
    assert_eq!(check(&file), None);
}

#[test]
fn many_checksums_are_kept_in_a_file() {
    let mut spool = Spool::new(Path::new("."));
    for sum in 0..300_000 {
        spool.page(sum).unwrap();
    }
    assert!(spool.file.is_some() && spool.last.len() < KEPT);
    let mut bytes = Vec::new();
    spool.copy(&mut bytes).unwrap();
    let sums: Vec<_> =
        bytes.chunks(8).map(|sum| u64::from_le_bytes(sum.try_into().unwrap())).collect();
    assert!(sums.iter().copied().eq(0..300_000));
}

/// The pump alone, beside a plain copy of the same stream through a pipe:
/// `cargo test --release --lib pump_speed -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn pump_speed() {
    const PAGES: u64 = 256 << 10;
    let directory = env::var_os("PUMP_DIRECTORY").unwrap_or_else(|| "/dev/shm".into());
    let gigabytes = (PAGES * PAGE as u64) as f64 / 1e9;
    let processor = || {
        let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
        (usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e6
    };
    for (what, part) in [("no zeros", 0), ("half zeros", 2), ("all zeros", 1)] {
        let stream_of = |first: u64| -> Vec<Entry> {
            let seed = |pfn: u64| if part != 0 && pfn / 64 % part == 0 { 0 } else { pfn % 16 + 1 };
            (first..first + 1024).map(|pfn| (pfn, seed(pfn))).collect()
        };
        let batches: Vec<_> = (0..PAGES / 1024).map(|batch| stream_of(batch * 1024)).collect();
        let stream = guest_stream(PV, &batches);
        for (how, run) in [("copy", copied as fn(&[u8], File, &Path)), ("pump", pump_all)] {
            let file = tempfile::tempfile_in(&directory).unwrap();
            let (started, before) = (Instant::now(), processor());
            run(&stream, file, Path::new(&directory));
            let (wall, busy) = (started.elapsed().as_secs_f64(), processor() - before);
            println!(
                "{what}, {how}: {:.2} GB/s, {:.2} GB/s for each processor",
                gigabytes / wall,
                gigabytes / busy,
            );
        }
    }
    let page = page(1);
    let times = 1 << 18;
    let started = Instant::now();
    let sum = (0..times).fold(0, |sum: u64, _| sum ^ page_sum(black_box(&page)));
    let rate = times as f64 * PAGE as f64 / 1e9 / started.elapsed().as_secs_f64();
    println!("checksums alone: {rate:.2} GB/s ({sum})");
    fs::metadata(&directory).unwrap();
}

fn pump_all(stream: &[u8], file: File, directory: &Path) {
    let mut pump = Pump::start(file, 0, directory).unwrap();
    let mut pipe = File::from(pump.fd().unwrap().try_clone_to_owned().unwrap());
    stream.chunks(4 << 20).for_each(|piece| pipe.write_all(piece).unwrap());
    drop(pipe);
    assert_eq!(pump.seal(true), None);
    pump.add_sums().unwrap();
}

/// As a program would that writes what it reads.
fn copied(stream: &[u8], mut file: File, _: &Path) {
    let (reader, pipe) = pipe2(OFlag::O_CLOEXEC).unwrap();
    let (mut reader, mut pipe) = (File::from(reader), File::from(pipe));
    let _ = fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(1 << 20));
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut chunk = vec![0; CHUNK];
            loop {
                match reader.read(&mut chunk).unwrap() {
                    0 => break,
                    count => file.write_all(&chunk[..count]).unwrap(),
                }
            }
        });
        stream.chunks(4 << 20).for_each(|piece| pipe.write_all(piece).unwrap());
        drop(pipe);
    });
}
