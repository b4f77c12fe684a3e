//! The memory image: header, stream, record.

use std::io::Cursor;
use std::path::PathBuf;
use std::str;

use jiff::Timestamp;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{BoxedStrategy, Just, ProptestConfig, Strategy, any, prop_oneof};
use proptest::sample::select;
use proptest::{prop_assert_eq, proptest};
use uuid::Uuid;
use xl_snapshot::disk::kinds::{External, Internal, LeftOut, Lvm, Reflink, Vhd};
use xl_snapshot::disk::revert_file_name;
use xl_snapshot::domain::{DomainConfig, Format, GuestType};
use xl_snapshot::list::table;
use xl_snapshot::memory::header::{Header, Tail, encode, parse_trailer, record_space, trailer};
use xl_snapshot::memory::peek::{Effort, Extent, Peek, peek};
use xl_snapshot::memory::{Image, stream};
use xl_snapshot::names::{is_plain, is_vdev};
use xl_snapshot::record::{
    Base, DiskRecord, DiskSnapshot, DomainRecord, FrozenFile, Parent, ParentSource, QcowSnapshot,
    Record, VERSION,
};
use xl_snapshot::tool::check_path;

use crate::damage::odd;
use crate::harness::{Target, run};

const MAGIC: &[u8] = b"Xen saved domain, xl format\n \0 \r";
pub const CONFIG: &str = r#"{"c_info":{"name":"web1"},"disks":[{"vdev":"xvda"}]}"#;

#[test]
fn image() {
    run(&Target {
        name: "image",
        tokens: &["# xl-snapshot record\n", "# end of xl-snapshot record\n", "LibxlFmt", "XENF"],
        made: image_bytes(),
        check: |input| match Image::read(&mut Cursor::new(input)) {
            Err(_) => false,
            Ok(image) => {
                assert!(image.record.complete);
                let length = input.len() as u64;
                assert!(image.stream_offset + image.stream_len <= length);
                assert!(image.record.image_size == 0 || image.record.image_size == length);
                check_record(&image.record);
                let _ = DomainConfig::parse(&image.config);
                // It could be written again.
                let space = record_space(&image.record);
                let bytes = encode(&image.config, &image.record, space).unwrap();
                let header = Header::read(&mut bytes.as_slice()).unwrap();
                assert_eq!(header.config, image.config);
                let Tail::Record(text) = header.tail else { panic!("no record") };
                assert_eq!(Record::parse(&text).unwrap(), image.record);
                true
            }
        },
        // A TOML parser's.
        factor: 256,
    });
}

/// What a list reads of a file, which is less than all of it.
#[test]
fn peek_at_a_file() {
    run(&Target {
        name: "peek",
        tokens: &["# xl-snapshot record\n", "# end of xl-snapshot record\n", "LibxlFmt", "XENF"],
        made: image_bytes(),
        check: |input| {
            let length = input.len() as u64;
            let peeked = peek(&mut Cursor::new(input), length, Effort::Full).unwrap();
            if let Ok(image) = Image::read(&mut Cursor::new(input)) {
                let Peek::Snapshot { record, extent, form: Some(_) } = &peeked else {
                    panic!("{peeked:?}")
                };
                assert_eq!(**record, image.record);
                assert!(matches!(extent, Extent::Whole));
            }
            // Who makes little effort says the same, or nothing.
            let little = peek(&mut Cursor::new(input), length, Effort::Little).unwrap();
            assert!(
                matches!(little, Peek::Later) || format!("{little:?}") == format!("{peeked:?}")
            );
            match &peeked {
                Peek::Snapshot { record, .. } => {
                    check_record(record);
                    true
                }
                _ => false,
            }
        },
        // As for an image, and once more for what is compared.
        factor: 512,
    });
}

#[test]
fn list_of_snapshots_in_a_qcow2_file() {
    run(&Target {
        name: "snapshot-list",
        tokens: &["\0\0\0\0", "s1", "\0\u{1}"],
        made: vec(any::<u8>(), 0..200).boxed(),
        check: |input| {
            let _ = table::place(input);
            // As many as there may be, and none more than there are.
            assert!(table::parse(input, u32::MAX).is_err());
            (1..5).filter(|count| table::parse(input, *count).is_ok()).count() > 0
        },
        factor: 16,
    });
}

#[test]
fn migration_stream() {
    run(&Target {
        name: "stream",
        tokens: &["LibxlFmt", "\0\0\0\u{2}", "XENF", "\0\0\0\0\0\0\0\0", "\u{1}\0\0\0\0\0\0\0"],
        made: stream_bytes(),
        check: |input| {
            let length = input.len() as u64;
            let end = stream::walk(&mut Cursor::new(input), 0, length);
            end.is_ok_and(|end| {
                assert!(end <= length);
                // What stands behind makes no difference, what is missing does.
                let used = usize::try_from(end).unwrap();
                let walk = |bytes: &[u8]| {
                    stream::walk(&mut Cursor::new(bytes), 0, bytes.len() as u64).ok()
                };
                assert_eq!(walk(&input[..used]), Some(end));
                assert_eq!(walk(&input[..used - 1]), None);
                true
            })
        },
        factor: 0,
    });
}

#[test]
fn record() {
    run(&Target {
        name: "record",
        tokens: &[
            "version = 1\n",
            "complete = true\n",
            "[domain]\n",
            "[[disk]]\n",
            "[disk.snapshot.internal.proof]\n",
            "[disk.snapshot.external]\n",
            "vdev = ",
            "path = ",
            "\"\"\"",
            "1979-05-27T07:32:00Z",
            "a.b.c = ",
            "= [",
            "= {",
            "inf",
            "nan",
        ],
        made: records().prop_map(|record| record.to_toml().into_bytes()).boxed(),
        check: |input| {
            let Ok(text) = str::from_utf8(input) else { return false };
            let Ok(record) = Record::parse(text) else { return false };
            check_record(&record);
            let bytes = trailer(&record);
            assert_eq!(Record::parse(parse_trailer(&bytes).unwrap()).unwrap(), record);
            true
        },
        factor: 256,
    });
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read(record in records()) {
        prop_assert_eq!(Record::parse(&record.to_toml()).unwrap(), record);
    }
}

/// What must hold for a record that was accepted.
fn check_record(record: &Record) {
    assert_eq!(record.version, VERSION);
    assert_eq!(Record::parse(&record.to_toml()).unwrap(), *record);
    for disk in &record.disks {
        assert!(is_vdev(&disk.vdev));
        let name = revert_file_name(&"d".repeat(128), disk, &record.name, "20260301-020304");
        assert!(name.len() <= 255 && !name.contains('/'));
        let mut paths = vec![&disk.path];
        match &disk.snapshot {
            DiskSnapshot::None(_) => continue,
            // In whichever directory the image is: a name that leads nowhere else.
            DiskSnapshot::Exported(_) => {
                let name = disk.path.to_str().unwrap();
                assert!(!name.is_empty() && !name.starts_with(['-', '.']) && !name.contains('/'));
                continue;
            }
            DiskSnapshot::Internal(_) => {}
            DiskSnapshot::External(External { overlay: file, .. })
            | DiskSnapshot::Reflink(Reflink { copy: file, .. })
            | DiskSnapshot::Vhd(Vhd { child: file, .. }) => paths.push(file),
            DiskSnapshot::Lvm(Lvm { group, volume, snapshot, .. }) => {
                for name in [group, volume, snapshot] {
                    assert!(!name.is_empty() && !name.starts_with('-') && !name.contains('/'));
                }
            }
        }
        for path in paths {
            check_path(path).unwrap();
        }
    }
}

/// Records as the program writes them.
pub fn records() -> BoxedStrategy<Record> {
    let name =
        "[a-zA-Z0-9+_][a-zA-Z0-9+.-]{0,63}".prop_filter_map("a name", |name| name.parse().ok());
    let who = (any::<u128>(), plain(), any::<u128>(), 0..1_u64 << 40).prop_map(
        |(id, name, uuid, memory_kib)| {
            let guest_type = [GuestType::Pv, GuestType::Pvh, GuestType::Hvm][(uuid % 3) as usize];
            let cfg = (uuid % 2 == 0).then(|| "/etc/xen/a, b.cfg".into());
            let domain =
                DomainRecord { name, uuid: Uuid::from_u128(uuid), guest_type, memory_kib, cfg };
            (Uuid::from_u128(id), domain)
        },
    );
    (name, who, time(), odd(), any::<(bool, bool)>(), size(), vec(disk(), 0..5))
        .prop_map(|(name, (id, domain), created, description, (live, complete), size, disks)| {
            Record {
                version: VERSION,
                complete,
                name,
                id,
                created,
                description,
                live,
                disks_only: None,
                writer: "xl-snapshot 0.1.0".into(),
                xen: "4.17.7".into(),
                image_size: size,
                parent: (size % 3 > 0).then(|| Parent::Snapshot(Uuid::from_u128(size.into()))),
                quiesced: None,
                parent_by: (size % 3 > 0).then_some(ParentSource::Mark),
                domain,
                disks,
            }
        })
        .boxed()
}

/// An odd text of one line.
fn plain() -> impl Strategy<Value = String> {
    odd().prop_map(|text| text.chars().filter(|c| is_plain(*c)).collect())
}

fn time() -> impl Strategy<Value = Timestamp> {
    let seconds = prop_oneof![
        1_700_000_000..1_900_000_000_i64,
        Just(Timestamp::MIN.as_second()),
        Just(Timestamp::MAX.as_second()),
    ];
    (seconds, 0..1_000_000_000).prop_map(|(s, ns)| Timestamp::new(s, ns).unwrap_or(Timestamp::MIN))
}

fn size() -> impl Strategy<Value = u64> {
    prop_oneof![0..1_u64 << 44, Just(0), Just(i64::MAX as u64)]
}

fn path() -> impl Strategy<Value = PathBuf> {
    "/[ -~\u{e4}]{0,40}".prop_map(PathBuf::from)
}

fn disk() -> impl Strategy<Value = DiskRecord> {
    let frozen = (size(), size(), time(), any::<u64>()).prop_map(
        |(virtual_size, file_size, mtime, inode)| FrozenFile {
            virtual_size,
            file_size,
            mtime,
            inode,
        },
    );
    let internal = option::of(("[ -~]{1,20}", "[a-z0-9+.-]{1,64}", time()))
        .prop_map(|proof| proof.map(|(id, name, date)| QcowSnapshot { id, name, date }));
    let lv = || "[a-zA-Z0-9+_][a-zA-Z0-9+_.-]{0,60}";
    let kept = prop_oneof![
        plain().prop_map(|why| DiskSnapshot::None(LeftOut { why })),
        (internal, option::of(vec((path(), any::<u64>()), 0..3))).prop_map(|(proof, bases)| {
            let base = |(path, inode)| Base { path, format: Format::Raw, inode };
            let bases = bases.map(|bases| bases.into_iter().map(base).collect());
            DiskSnapshot::Internal(Internal { proof, bases })
        }),
        (0..3, path(), option::of(frozen)).prop_map(|(kind, file, proof)| match kind {
            0 => DiskSnapshot::External(External { overlay: file, proof }),
            1 => DiskSnapshot::Reflink(Reflink { copy: file, proof }),
            _ => DiskSnapshot::Vhd(Vhd { child: file, proof }),
        }),
        (lv(), lv(), lv(), option::of(size())).prop_map(|(group, volume, snapshot, size)| {
            DiskSnapshot::Lvm(Lvm { group, volume, snapshot, size })
        }),
    ];
    let format = select(vec![
        None,
        Some(Format::Raw),
        Some(Format::Qcow),
        Some(Format::Qcow2),
        Some(Format::Qed),
        Some(Format::Vhd),
    ]);
    ("[a-z]{2,4}[0-9]{0,3}", path(), format, kept)
        .prop_map(|(vdev, path, format, snapshot)| DiskRecord { vdev, path, format, snapshot })
}

/// A number that is right most of the time.
fn word(right: u32) -> impl Strategy<Value = u32> {
    prop_oneof![
        60 => Just(right),
        1 => any::<u32>(),
        1 => select(vec![0, 4, 5, 16 << 20, (16 << 20) + 1, 1 << 31, u32::MAX]),
    ]
}

/// Images with a record in the header or behind the stream, or none.
fn image_bytes() -> BoxedStrategy<Vec<u8>> {
    let config = prop_oneof![4 => Just(CONFIG.to_owned()), 1 => odd()];
    let layout = (0..8_u8, -1_i64..2);
    (config, records(), stream_bytes(), layout)
        .prop_flat_map(|(config, mut record, stream, (layout, off))| {
            let space = record_space(&record);
            let length = 52 + config.len() + 1 + space + stream.len();
            let behind = layout < 3;
            record.complete = !behind;
            // Off by one now and then.
            let size = if layout == 7 { length as i64 + off } else { length as i64 };
            record.image_size = if behind { 0 } else { size as u64 };
            let mut tail = format!("# xl-snapshot record\n{}", record.to_toml());
            if layout == 6 {
                tail.clear();
            }
            tail.extend(std::iter::repeat_n('\n', space - tail.len().min(space)));
            let end =
                if behind { trailer(&Record { complete: true, ..record }) } else { Vec::new() };
            let optional = u32::try_from(4 + config.len() + 1 + tail.len()).unwrap();
            let config_len = u32::try_from(config.len() + 1).unwrap();
            let words = [word(0x0102_0304), word(3), word(0), word(optional), word(config_len)];
            words.prop_map(move |words| {
                let mut bytes = MAGIC.to_vec();
                bytes.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
                bytes.extend(config.as_bytes());
                bytes.push(0);
                bytes.extend(tail.as_bytes());
                bytes.extend(&stream);
                bytes.extend(&end);
                bytes
            })
        })
        .boxed()
}

/// Streams of a few records, mostly right.
fn stream_bytes() -> BoxedStrategy<Vec<u8>> {
    let record = || {
        (any::<u32>(), vec(any::<u8>(), 0..40)).prop_flat_map(|(kind, body)| {
            let length = u32::try_from(body.len()).unwrap();
            word(length).prop_map(move |length| {
                let mut bytes = (1 + kind % 0x20).to_ne_bytes().to_vec();
                bytes.extend(length.to_ne_bytes());
                bytes.extend(&body);
                bytes.resize(bytes.len().next_multiple_of(8), 0);
                bytes
            })
        })
    };
    let libxc =
        (word(0x5845_4e46), word(3), vec(record(), 0..6)).prop_map(|(mark, version, all)| {
            let mut bytes = 1_u32.to_ne_bytes().to_vec();
            bytes.extend([0; 4]);
            bytes.extend([0xff; 8]);
            bytes.extend(mark.to_be_bytes());
            bytes.extend(version.to_be_bytes());
            bytes.extend([0; 24]);
            bytes.extend(all.concat());
            bytes.extend([0; 8]);
            bytes
        });
    let after = record().prop_map(|mut bytes| {
        bytes[0] |= 2; // not a context
        bytes
    });
    (word(2), vec(libxc, 0..3), vec(after, 0..3))
        .prop_map(|(version, libxc, after)| {
            let mut bytes = b"LibxlFmt".to_vec();
            bytes.extend(version.to_be_bytes());
            bytes.extend([0; 4]);
            bytes.extend(libxc.concat());
            bytes.extend(after.concat());
            bytes.extend([0; 8]);
            bytes
        })
        .boxed()
}
