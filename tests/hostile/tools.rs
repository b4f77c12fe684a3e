//! What tools and QEMU answer.

use std::io::{self, Cursor, Read, Write};
use std::path::Path;

use jiff::Timestamp;
use proptest::collection::vec;
use proptest::prelude::{BoxedStrategy, Just, Strategy, any, prop_oneof};
use proptest::sample::select;
use serde_json::{Value, json};
use uuid::Uuid;
use xl_snapshot::disk::kinds::{External, Internal, Lvm};
use xl_snapshot::disk::{Node, lvm};
use xl_snapshot::disk::{Space, vhd};
use xl_snapshot::domain::GuestType;
use xl_snapshot::host::qmp::Qmp;
use xl_snapshot::names::is_plain;
use xl_snapshot::plan::Action;
use xl_snapshot::record::{
    DiskRecord, DiskSnapshot, DomainRecord, FrozenFile, QcowSnapshot, Record, VERSION,
};
use xl_snapshot::tool::check_path;
use xl_snapshot::tool::guest_agent::{self, NoAnswer};
use xl_snapshot::tool::qemu_img::{self, ImageInfo};
use xl_snapshot::tool::vhd_util;
use xl_snapshot::tool::volumes;

use crate::damage::odd;
use crate::harness::{Target, run};

/// What was learnt can stand in a record, and is read there again.
fn fits_a_record(kept: DiskSnapshot) {
    let record = Record {
        version: VERSION,
        complete: true,
        name: "s1".parse().unwrap(),
        id: Uuid::nil(),
        created: Timestamp::UNIX_EPOCH,
        description: String::new(),
        live: true,
        disks_only: None,
        writer: String::new(),
        xen: String::new(),
        image_size: 0,
        parent: None,
        quiesced: None,
        parent_by: None,
        domain: DomainRecord {
            name: "web1".into(),
            uuid: Uuid::nil(),
            guest_type: GuestType::Pv,
            memory_kib: 0,
            cfg: None,
        },
        disks: vec![DiskRecord {
            vdev: "xvda".into(),
            path: "/a".into(),
            format: None,
            snapshot: kept,
        }],
    };
    assert_eq!(Record::parse(&record.to_toml()).unwrap(), record);
}

fn frozen(virtual_size: u64) -> DiskSnapshot {
    let mtime = Timestamp::UNIX_EPOCH;
    let proof = FrozenFile { virtual_size, file_size: 0, mtime, inode: 1 };
    DiskSnapshot::External(External { overlay: "/b".into(), proof: Some(proof) })
}

fn internal(snapshots: Vec<QcowSnapshot>) {
    // They are all alike.
    for proof in snapshots.into_iter().filter(QcowSnapshot::is_plain).take(4) {
        fits_a_record(DiskSnapshot::Internal(Internal { proof: Some(proof), bases: None }));
    }
}

/// JSON with the keys of an answer, and values that are nearly right.
pub fn answer(keys: &'static [&'static str]) -> BoxedStrategy<Value> {
    let numbers: Vec<Value> =
        vec![json!(0), json!(-1), json!(u64::MAX), json!(i64::MIN), json!(1e300), json!("1")];
    let leaf = prop_oneof![
        2 => Just(Value::Null),
        2 => any::<bool>().prop_map(Value::from),
        4 => select(numbers),
        4 => odd().prop_map(Value::from),
        2 => any::<u32>().prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 60, 8, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..5).prop_map(Value::from),
            vec((select(keys), inner), 0..8).prop_map(|pairs| {
                Value::Object(pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
            }),
        ]
    })
    .boxed()
}

#[test]
fn qemu_img() {
    const KEYS: &[&str] = &[
        "filename",
        "format",
        "virtual-size",
        "full-backing-filename",
        "backing-filename-format",
        "snapshots",
        "id",
        "name",
        "date-sec",
        "date-nsec",
        "format-specific",
        "children",
        "depth",
        "required",
    ];
    run(&Target {
        name: "qemu-img",
        tokens: &[
            "[",
            "]",
            "{",
            "}",
            ",",
            "\"filename\": ",
            "\"format\": ",
            "\"virtual-size\": ",
            "\"snapshots\": [",
            "\"date-sec\": ",
            "\"id\": ",
            "null",
            "true",
            "\\u0000",
            "\\ud800",
        ],
        made: vec(answer(KEYS), 0..3)
            .prop_map(|mut images| images.pop().unwrap_or_default().to_string().into_bytes())
            .boxed(),
        check: |input| {
            let measured = qemu_img::parse_measure(input).is_ok();
            let mapped = qemu_img::has_own_content(input).is_ok();
            let Ok(image) = ImageInfo::parse(input) else { return measured || mapped };
            fits_a_record(frozen(image.virtual_size));
            internal(image.snapshots());
            true
        },
        factor: 256,
    });
}

#[test]
fn lvs() {
    const KEYS: &[&str] = &[
        "report",
        "lv",
        "vg_name",
        "lv_name",
        "lv_size",
        "lv_layout",
        "origin",
        "pool_lv",
        "lv_tags",
        "lv_device_open",
        "lv_merging",
        "lv_snapshot_invalid",
        "data_percent",
        "metadata_percent",
        "lv_kernel_major",
        "lv_kernel_minor",
        "vg_free",
        "vg_extent_size",
    ];
    // Volumes with one value that is not right.
    let volume = (vec("[0-9]{1,15}", 4), odd(), "[0-9]{1,3}(\\.[0-9]{0,3})?", select(KEYS), odd())
        .prop_map(|(sizes, name, percent, wrong, value)| {
            let mut volume = json!({
                "vg_name": "vg0", "lv_name": name, "lv_size": sizes[0], "lv_layout": "linear",
                "origin": "", "pool_lv": "", "lv_tags": "a,b", "lv_device_open": "1",
                "lv_merging": "0", "lv_snapshot_invalid": "-1", "data_percent": percent,
                "metadata_percent": "", "lv_kernel_major": "253", "lv_kernel_minor": "-1",
                "vg_free": sizes[1], "vg_extent_size": sizes[2],
            });
            volume[wrong] = value.into();
            volume
        });
    let volumes = vec(prop_oneof![9 => volume, 1 => answer(KEYS)], 0..4);
    run(&Target {
        name: "lvs",
        tokens: &[
            "{\"report\": [{\"lv\": [",
            "]}]}",
            "{",
            "}",
            ",",
            "\"lv_size\":\"",
            "\"lv_name\":\"",
            "\"data_percent\":\"",
            "100.00",
            "100.01",
            "12.3",
            "1.2.3",
            ".5",
            "5.",
            "\"",
            "null",
        ],
        made: volumes
            .prop_map(|volumes| json!({"report": [{"lv": volumes}]}).to_string().into_bytes())
            .boxed(),
        check: |input| {
            let Ok(volumes) = volumes::parse(input) else { return false };
            let group = volumes.iter().take(8).map(|volume| {
                assert!(volume.used_bytes() <= volume.size && volume.used <= Some(10_000));
                let size = volume.full_snapshot_size();
                assert!(size >= volume.size);
                let _ = (volume.is_thin(), volume.is_thick_snapshot(), volume.has_device((0, 0)));
                assert!(volume.tags_with("a").all(|tag| volume.has_tag(tag)));
                fits_a_record(DiskSnapshot::Lvm(Lvm {
                    group: "vg0".into(),
                    volume: "a".into(),
                    snapshot: "a.s1".into(),
                    size: Some(size),
                }));
                Space { group: volume.group.clone(), free: volume.group_free, size }
            });
            let spaces: Vec<_> = group.collect();
            let _ = lvm::short_of_space(&spaces.iter().collect::<Vec<_>>());
            true
        },
        factor: 256,
    });
}

#[test]
fn vhd_util_and_footers() {
    let footer = (any::<u64>(), 0..6_u32, vec(any::<u8>(), 24), any::<bool>()).prop_map(
        |(size, kind, cookie, right)| {
            let mut footer = [0_u8; vhd_util::FOOTER];
            footer[..8].copy_from_slice(b"conectix");
            footer[8..32].copy_from_slice(&cookie);
            footer[48..56].copy_from_slice(&(size >> (size % 64)).to_be_bytes());
            footer[60..64].copy_from_slice(&kind.to_be_bytes());
            let sum: u32 = footer.iter().map(|byte| u32::from(*byte)).sum();
            let sum = if right { !sum } else { sum };
            footer[64..68].copy_from_slice(&sum.to_be_bytes());
            footer.to_vec()
        },
    );
    let words = (odd(), any::<u32>()).prop_map(|(path, depth)| {
        format!("{path}\nchain depth: {depth}\n{path} has no parent\n").into_bytes()
    });
    run(&Target {
        name: "vhd",
        tokens: &["chain depth:", " has no parent", "/srv/a.vhd", "conectix", "query failed", "\n"],
        made: prop_oneof![footer, words].boxed(),
        check: |input| {
            let parent = vhd_util::parse_parent(input);
            if let Some(parent) = &parent {
                check_path(parent).unwrap();
                assert!(vhd::target(parent).to_str().unwrap().starts_with("vhd:/"));
            }
            let facts = input.first_chunk().and_then(vhd_util::Facts::of_footer);
            if let Some(facts) = facts {
                fits_a_record(frozen(facts.virtual_size));
            }
            parent.is_some() || facts.is_some() || vhd_util::parse_depth(input).is_some()
        },
        factor: 8,
    });
}

/// A QEMU that says what stands written, and listens to nothing.
struct Script<'a> {
    says: Cursor<&'a [u8]>,
    heard: Vec<u8>,
}

impl Read for &mut Script<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.says.read(buffer)
    }
}

impl Write for &mut Script<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.heard.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn qmp() {
    const KEYS: &[&str] = &[
        "return",
        "error",
        "event",
        "desc",
        "device",
        "qdev",
        "inserted",
        "node-name",
        "ro",
        "drv",
        "image",
        "filename",
        "virtual-size",
        "snapshots",
        "id",
        "name",
        "date-sec",
        "date-nsec",
    ];
    let good = Just(json!({"return": {}}));
    let block = json!({"device": "", "qdev": "/machine/peripheral/xvda", "inserted": {
        "node-name": "xvda", "ro": false, "drv": "qcow2",
        "image": {"filename": "/srv/a.qcow2", "virtual-size": 1, "snapshots": []}}});
    let blocks = vec(prop_oneof![Just(block), answer(KEYS)], 0..4)
        .prop_map(|blocks| json!({"return": blocks}));
    let any_line = prop_oneof![
        2 => good,
        2 => odd().prop_map(|vdev| json!({"return": vdev})),
        1 => odd().prop_map(|desc| json!({"error": {"class": "GenericError", "desc": desc}})),
        1 => answer(KEYS),
    ];
    let made = (blocks, vec(any_line, 0..6)).prop_map(|(blocks, rest)| {
        let mut text = "{\"QMP\": {}}\n{\"return\": {}}\n".to_owned() + &blocks.to_string();
        rest.iter().for_each(|line| text += &format!("\n{line}"));
        text.into_bytes()
    });
    run(&Target {
        name: "qmp",
        tokens: &[
            "{\"QMP\": {}}\n",
            "{\"return\": {}}\n",
            "{\"return\": [",
            "{\"event\": \"X\"}\n",
            "{\"error\": {}}\n",
            "\n",
            "]}",
            "\"inserted\": {",
            "\"qdev\": \"/m\"",
            "null",
            ",",
        ],
        made: made.boxed(),
        check: |input| {
            let mut qemu = Script { says: Cursor::new(input), heard: Vec::new() };
            let accepted = talk(&mut qemu);
            // Each command is one line of JSON, whatever the answers were.
            for line in qemu.heard.split_inclusive(|byte| *byte == b'\n').take(8) {
                let command: Value = serde_json::from_slice(line).unwrap();
                assert!(line.ends_with(b"\n") && command["execute"].is_string());
            }
            accepted
        },
        factor: 512,
    });
}

fn talk(qemu: &mut Script<'_>) -> bool {
    let Ok(mut qmp) = Qmp::greet(qemu) else { return false };
    let Ok(disks) = qmp.disks() else { return false };
    for (_, Node { virtual_size, snapshots, .. }) in disks.into_iter().take(8) {
        fits_a_record(frozen(virtual_size));
        internal(snapshots);
    }
    let overlay = Action::Overlay {
        vdev: "xvda".into(),
        node: "node".into(),
        file: Path::new("/srv/a\"b").into(),
        new_node: "xvda-0b41a0a5".into(),
    };
    let _ = qmp.transaction(&[overlay], &mut || ());
    let _ = qmp.delete_internal("node", "s1");
    true
}

#[test]
fn guest_agent() {
    let keys = &["return", "error", "desc", "supported_commands", "name", "enabled"];
    run(&Target {
        name: "guest-agent",
        tokens: &[
            "\"return\":",
            "\"error\":",
            "\"thawed\"",
            "guest-fsfreeze-thaw",
            "\\u001b",
            "\u{202e}",
        ],
        made: answer(keys).prop_map(|value| value.to_string().into_bytes()).boxed(),
        check: |input| {
            let answers = [
                guest_agent::count(input).map(drop),
                guest_agent::is_frozen(input).map(drop),
                guest_agent::missing(input).map(drop),
            ];
            for answer in &answers {
                if let Err(NoAnswer::Refused(words) | NoAnswer::Unreadable(words)) = answer {
                    assert!(
                        words.chars().all(is_plain) && words.chars().count() < 300,
                        "{words:?}"
                    );
                }
            }
            guest_agent::is_answer(input)
        },
        factor: 64,
    });
}
