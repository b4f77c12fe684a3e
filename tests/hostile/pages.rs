//! The pages of a memory image: their entries, their places, and the table of their checksums.

use std::hash::Hasher;
use std::io::{self, Cursor};

use proptest::collection::vec;
use proptest::prelude::{BoxedStrategy, Just, Strategy, any, prop_oneof};
use proptest::sample::select;
use twox_hash::XxHash64;
use xl_snapshot::memory::align::{Aligner, Place, Tally};
use xl_snapshot::memory::header::{encode, record_space};
use xl_snapshot::memory::places::Places;
use xl_snapshot::memory::sums::{Checked, HEAD, Table, TableSum};
use xl_snapshot::memory::{Image, stream};
use xl_snapshot::record::Record;

use crate::harness::{Target, run};
use crate::images::{CONFIG, records};

const PAGE: u64 = 4096;

#[test]
fn checksums() {
    run(&Target {
        name: "checksums",
        tokens: &[
            "xl-snapshot page checksums 1\n\0\0\0",
            "xl-snapshot page checksums 0\n\0\0\0",
            "LibxlFmt",
            "\u{1}\0\0\0\u{8}\0\0\0",
        ],
        made: images(),
        check: |input| {
            let length = input.len() as u64;
            anywhere(input);
            let mut file = Cursor::new(input);
            let Ok(mut image) = Image::read(&mut file) else { return false };
            let (start, end) = (image.stream_offset, image.stream_offset + image.stream_len);
            assert!(end <= length);
            // Each page is in the file.
            let mut pages = 0;
            let walked = stream::pages(&mut file, start, end, &mut |_, at| {
                pages += 1;
                assert!(start < at && at + PAGE <= end, "{at}");
                Ok(())
            });
            assert_eq!(walked.unwrap(), end);
            assert!(pages <= image.stream_len / PAGE);
            let places = Places::of(&mut file, &image, &|| false).unwrap();
            let own = places.runs(&mut file, &image, &|| false, &mut |run| {
                assert!(run.from + run.length <= end && run.to + run.length <= end);
                assert!(run.length % PAGE == 0);
                Ok(())
            });
            own.unwrap();
            let has_sums = image.sums.is_some();
            has_sums && image.read_all(&mut file).is_ok()
        },
        // A TOML parser's.
        factor: 256,
    });
}

/// Whatever stands somewhere in a file, taken for a table there, or for a stream.
fn anywhere(input: &[u8]) {
    let half = input.len() / 2;
    for at in [0, half, input.len().saturating_sub(48)] {
        let at = at as u64;
        let mut file = Cursor::new(input);
        let Some(table) = Table::read(&mut file, at).unwrap() else { continue };
        assert!(table.length() > HEAD);
        let good = table.is_good(&mut file);
        if table.length() > input.len() as u64 - at {
            // A count that lies is an end that is missing, however large it is.
            assert!(good.is_err());
        }
        let _ = table.sums(&mut file, table.count.saturating_sub(1), 1);
        let _ = io::copy(&mut Checked::new(&mut file, 0, table), &mut io::sink());
    }
    let mut aligner = Aligner::new(Nowhere(0), Count(0), 0);
    for piece in input.chunks(1 + half % 5000) {
        aligner.feed(piece).unwrap();
    }
    let written = aligner.end().unwrap();
    // Longer by less than a page for each record with pages; the last of them may be cut off.
    assert!(written.end <= input.len() as u64 + (written.tally.0 + 1) * PAGE);
    assert!(written.place.0 <= written.end + (128 << 20));
    assert!(written.tally.0 <= input.len() as u64 / PAGE);
}

/// How long what is written would be.
struct Nowhere(u64);

impl Place for Nowhere {
    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.0 = self.0.max(at + bytes.len() as u64);
        Ok(())
    }

    fn reach(&mut self, length: u64) -> io::Result<()> {
        self.0 = self.0.max(length);
        Ok(())
    }
}

struct Count(u64);

impl Tally for Count {
    fn page(&mut self, _: u64) -> io::Result<()> {
        self.0 += 1;
        Ok(())
    }
}

/// A file in memory, and the checksums of its pages.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Place for Bytes {
    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        let at = usize::try_from(at).unwrap();
        let length = self.0.len().max(at + bytes.len());
        self.0.resize(length, 0);
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn reach(&mut self, length: u64) -> io::Result<()> {
        let length = usize::try_from(length).unwrap().max(self.0.len());
        self.0.resize(length, 0);
        Ok(())
    }
}

impl Tally for Bytes {
    fn page(&mut self, sum: u64) -> io::Result<()> {
        self.0.extend(sum.to_le_bytes());
        Ok(())
    }
}

/// A number that is right most of the time.
fn word(right: u32) -> BoxedStrategy<u32> {
    prop_oneof![
        30 => Just(right),
        1 => any::<u32>(),
        1 => select(vec![0, 1, 7, 8, 16 << 20, 128 << 20, (128 << 20) + 8, u32::MAX - 7, u32::MAX]),
    ]
    .boxed()
}

/// Records of pages: of pages that are there, that are not, and that come again.
fn batch() -> impl Strategy<Value = Vec<u8>> {
    let kind = select(vec![0_u64, 0, 0, 1, 9, 0xd, 0xe, 0xf]);
    vec((kind, 0..40_u64, any::<u8>()), 1..6).prop_flat_map(|pages| {
        let with_data: Vec<_> = pages.iter().filter(|(kind, ..)| *kind < 0xd).collect();
        let mut body = Vec::new();
        pages.iter().for_each(|(kind, pfn, _)| body.extend((kind << 60 | pfn).to_ne_bytes()));
        with_data.iter().for_each(|(.., byte)| body.extend([*byte; 4096]));
        let length = u32::try_from(body.len() + 8).unwrap();
        let count = u32::try_from(pages.len()).unwrap();
        (word(length), word(count), word(0)).prop_map(move |(length, count, reserved)| {
            let words = [1, length, count, reserved].into_iter().flat_map(u32::to_ne_bytes);
            words.chain(body.iter().copied()).collect()
        })
    })
}

/// Images as they are written, whose table may lie.
fn images() -> BoxedStrategy<Vec<u8>> {
    let lie = prop_oneof![
        8 => Just(None),
        4 => select(vec![0_u64, 1, 2, 1 << 29, 1 << 60, (1 << 61) - 7, u64::MAX / 8, u64::MAX])
            .prop_map(Some),
    ];
    // Off by one now and then.
    let off = prop_oneof![8 => Just(0_i64), 1 => Just(1), 1 => Just(-1)];
    (records(), vec(batch(), 0..4), lie, any::<bool>(), off)
        .prop_map(|(record, batches, lie, is_written, off)| {
            image(record, &batches.concat(), lie, is_written, off)
        })
        .boxed()
}

fn image(record: Record, batches: &[u8], lie: Option<u64>, is_written: bool, off: i64) -> Vec<u8> {
    let mut stream = b"LibxlFmt\0\0\0\x02\0\0\0\0".to_vec();
    stream.extend([1, 0, 0, 0, 0, 0, 0, 0]);
    stream.extend([0xff; 8]);
    stream.extend(b"XENF\0\0\0\x03\0\0\0\0\0\0\0\0");
    // A PV guest with pages of 4 KiB.
    stream.extend([1, 0, 0, 0, 12, 0, 0, 0, 4, 0, 0, 0, 17, 0, 0, 0]);
    stream.extend(batches);
    stream.extend([0; 16]);
    let mut record = Record { complete: true, ..record };
    let space = record_space(&record);
    let head = encode(CONFIG, &record, space).unwrap();
    let start = head.len() as u64;
    let mut aligner = Aligner::new(Bytes(head), Bytes::default(), start);
    aligner.feed(&stream).unwrap();
    let written = aligner.end().unwrap();
    let mut bytes = written.place.0;
    let end = usize::try_from(written.end).unwrap();
    bytes.resize(end, 0);
    let count = lie.unwrap_or(written.tally.0.len() as u64 / 8);
    let table = Table { at: written.end, count, others: written.others, is_written };
    let mut sum = TableSum::default();
    for part in [table.head(), written.tally.0] {
        sum.add(&part);
        bytes.extend(part);
    }
    bytes.extend(sum.end());
    record.image_size = (bytes.len() as u64).saturating_add_signed(off);
    let head = encode(CONFIG, &record, space).unwrap();
    bytes[..head.len()].copy_from_slice(&head);
    bytes
}

/// The inputs of the corpus, made anew: `cargo test --test hostile corpus_of -- --ignored`.
#[test]
#[ignore = "writes the corpus"]
fn corpus_of_checksums() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let record = records().new_tree(&mut TestRunner::deterministic()).unwrap().current();
    let record = Record { disks: Vec::new(), ..record };
    let mut batch = Vec::new();
    batch.extend([1, 8 + 3 * 8 + 2 * 4096, 3, 0].into_iter().flat_map(u32::to_ne_bytes));
    batch.extend([5_u64, 0xf << 60 | 6, 7].into_iter().flat_map(u64::to_ne_bytes));
    batch.extend([0xa5; 4096]);
    batch.extend([0; 4096]);
    let made = |lie, is_written| image(record.clone(), &batch, lie, is_written, 0);
    let good = made(None, true);
    // A list of entries that is longer than the file, with pages that are not there.
    let list = |length: u32, count: u32| {
        let mut batch = batch.clone();
        batch[4..8].copy_from_slice(&length.to_ne_bytes());
        batch[8..12].copy_from_slice(&count.to_ne_bytes());
        image(record.clone(), &batch, None, true, 0)
    };
    let cut = |by: usize| good[..good.len() - by].to_vec();
    let flipped = |from_end: usize| {
        let mut bytes = good.clone();
        let at = bytes.len() - from_end;
        bytes[at] ^= 1;
        bytes
    };
    for (name, bytes) in [
        ("good", good.clone()),
        ("not-written-yet", made(None, false)),
        ("count-beyond-the-file", made(Some(1 << 29), true)),
        ("count-that-overflows", made(Some((1 << 61) - 7), true)),
        ("count-of-all-ones", made(Some(u64::MAX), true)),
        ("count-too-small", made(Some(1), true)),
        ("no-pages-counted", made(Some(0), true)),
        ("list-longer-than-its-record", list(8 + 24 + 8192, u32::MAX)),
        ("list-of-128-mib", list(128 << 20, (16 << 20) - 1)),
        ("list-without-entries", list(8 + 24 + 8192, 0)),
        ("cut-in-the-closing-sum", cut(3)),
        ("cut-in-the-sums", cut(17)),
        ("cut-in-the-head", cut(8 + 16 + 20)),
        ("cut-before-the-table", cut(8 + 16 + 48)),
        ("damaged-sum", flipped(12)),
        ("damaged-closing-sum", flipped(2)),
        ("damaged-page", flipped(8 + 16 + 48 + 16 + 5000)),
    ] {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/checksums");
        std::fs::create_dir_all(directory).unwrap();
        std::fs::write(format!("{directory}/{name}"), bytes).unwrap();
    }
    // Of the sums of pages as of all else.
    let mut hash = XxHash64::with_seed(0);
    hash.write(&[0xa5; 4096]);
    assert!(good.windows(8).any(|bytes| bytes == hash.finish().to_le_bytes()));
}
