//! The planner, from hand-made observations. `tests/export.rs` has real files.

use std::slice;

use super::*;
use crate::disk::kinds::{DiskSnapshot, External, LeftOut};
use crate::model::Guest;
use crate::plan::faults::try_every_fault;
use crate::support::disks::{found, proof, refused};
use crate::support::record::sample;
use crate::tool::qemu_img::Whole;

const CONFIG: &str = r#"{"c_info": {"name": "web1"}, "disks": [
    {"pdev_path": "/srv/a.qcow2", "vdev": "xvda", "format": "qcow2", "readwrite": 1},
    {"pdev_path": "vhd:/srv/b.vhd", "vdev": "xvdb", "format": "raw", "script": "block-tap", "readwrite": 1},
    {"pdev_path": "/srv/c.iso", "vdev": "hdc", "format": "raw", "is_cdrom": 1}]}"#;

fn copy(path: &str, most: u64) -> Copy {
    let from = Whole::Image { path: path.into(), format: Format::Raw };
    Copy { disk: DiskExport { from, fit: None, most: None }, most }
}

fn seen() -> ExportInput {
    ExportInput {
        snapshot: "web1/s1".into(),
        record: sample(),
        config: Some(DomainConfig::parse(CONFIG).unwrap()),
        disks: Vec::new(),
        copies: vec![copy("/srv/a.img", 10 << 20), copy("/srv/b.img", 20 << 20)],
        memory: 5 << 20,
        troubles: Vec::new(),
        trouble: None,
        leftover: Leftover::None,
        free: 1 << 30,
        cfg: Some("name = 'web1'\n".into()),
    }
}

fn directory() -> Options {
    Options { memory: true, to: To::Directory("/backup/x".into()), token: Uuid::from_u128(1) }
}

fn archive() -> Options {
    Options { to: To::Stdout("/var/tmp".into()), ..directory() }
}

fn words(found: &ExportInput, options: &Options) -> Vec<String> {
    let plan = plan(found, options, "test").unwrap();
    let steps = plan.prepare.iter().chain(&plan.commit).chain(&plan.finish);
    steps.map(ToString::to_string).collect()
}

#[test]
fn the_record_comes_last_and_then_the_name() {
    assert_eq!(
        words(&seen(), &directory()),
        [
            "make the directory /backup/x.partial",
            "copy xvda, 10 MiB at most: qemu-img convert -q -U -f raw -O qcow2 /srv/a.img /backup/x.partial/xvda.qcow2",
            "copy xvdb, 20 MiB at most: qemu-img convert -q -U -f raw -O qcow2 /srv/b.img /backup/x.partial/xvdb.qcow2",
            "write the xl configuration file /backup/x.partial/s1.cfg",
            "write the memory image /backup/x.partial/s1.xlsave.zst, compressed by zstd:3",
            "sync /backup/x.partial and rename it to /backup/x",
            "take the mark out of /backup/x",
        ]
    );
    let notes = plan(&seen(), &directory(), "test").unwrap().notes;
    assert_eq!(notes, ["disk hdc (/srv/c.iso) is not in the snapshot, and not in the export"]);
}

#[test]
fn an_archive_has_room_for_one_file_at_a_time() {
    let id = seen().record.id;
    let work = format!("/var/tmp/xl-snapshot-export-{id}.partial");
    let found = ExportInput { cfg: None, free: 20 << 20, ..seen() };
    let words = words(&found, &archive());
    assert_eq!(words[0], format!("make the directory {work}"));
    assert_eq!(words[2], format!("send {work}/xvda.qcow2 to standard output and remove it"));
    assert_eq!(words[words.len() - 2..], ["end the archive".to_owned(), format!("remove {work}")]);
    let image = words.iter().position(|word| word.contains("write the memory image")).unwrap();
    assert_eq!(image, words.len() - 4);
    let less = ExportInput { free: (20 << 20) - 1, ..found };
    refused(plan(&less, &archive(), "test"), &["19 MiB free, and up to 20 MiB", "--work-dir"]);
    refused(
        plan(&ExportInput { free: 34 << 20, ..seen() }, &directory(), "test"),
        &["up to 35 MiB"],
    );
    plan(&ExportInput { free: 35 << 20, ..seen() }, &directory(), "test").unwrap();
}

#[test]
fn every_step_may_fail() {
    for options in [directory(), archive(), Options { memory: false, ..directory() }] {
        let found = ExportInput { leftover: Leftover::Ours, ..seen() };
        let plan = plan(&found, &options, "test").unwrap();
        assert!(try_every_fault(&plan, Guest::Runs) > 10);
    }
}

#[test]
fn the_record_of_an_export_names_what_lies_beside_it() {
    let exported = record(&sample(), true, "test");
    assert!(exported.is_export() && !exported.complete);
    let paths: Vec<_> = exported.disks.iter().map(|disk| disk.path.to_str().unwrap()).collect();
    assert_eq!(paths, ["xvda.qcow2", "xvdb.qcow2", "/srv/c.iso"]);
    assert_eq!(exported.disks[2], sample().disks[2]);
    assert_eq!((exported.disks_only, exported.id), (None, sample().id));
    assert_eq!(Record::parse(&exported.to_toml()).unwrap(), exported);
    let without = record(&sample(), false, "test");
    assert_eq!(without.disks_only, Some(DisksOnly::CrashConsistent));
    let off = Record { disks_only: Some(DisksOnly::Offline), ..sample() };
    assert_eq!(record(&off, false, "test").disks_only, Some(DisksOnly::Offline));
}

#[test]
fn no_script_sets_the_copies_up() {
    let plan = plan(&seen(), &directory(), "test").unwrap();
    let start = plan.prepare.iter().find_map(|step| match step {
        Step::Export(Export::Memory(start)) => Some(start),
        _ => None,
    });
    let config = DomainConfig::parse(&start.unwrap().config).unwrap();
    let disks = config.disks().unwrap();
    let files: Vec<_> =
        disks.iter().map(|disk| (disk.file().to_str().unwrap(), disk.format)).collect();
    let qcow2 = Some(Format::Qcow2);
    assert_eq!(
        files,
        [("xvda.qcow2", qcow2), ("xvdb.qcow2", qcow2), ("/srv/c.iso", Some(Format::Raw))]
    );
    assert!(disks.iter().all(|disk| disk.script.is_none()));
}

#[test]
fn what_is_in_the_way_is_told() {
    let refuse = |words: &[&str], change: &dyn Fn(&mut ExportInput)| {
        let mut found = seen();
        change(&mut found);
        refused(plan(&found, &directory(), "test"), words);
    };
    refuse(&["another export writes to /backup/x.partial"], &|found| {
        found.leftover = Leftover::Busy
    });
    refuse(&["nobody", "ls -la /backup/x.partial"], &|found| {
        found.leftover = Leftover::Foreign("nobody made it".into());
    });
    refuse(&["/backup/x exists", "does not exist"], &|found| {
        found.trouble = Some("/backup/x exists".into());
    });
    refuse(&["it has no memory", "--no-memory"], &|found| found.config = None);
    let found = ExportInput { copies: Vec::new(), ..seen() };
    let options = Options { memory: false, ..directory() };
    refused(plan(&found, &options, "test"), &["nothing is in it"]);
}

#[test]
fn each_disk_is_known_to_be_that_of_the_snapshot_before_it_is_copied() {
    let external = |path: &str| {
        found(
            path,
            DiskSnapshot::External(External { overlay: "/srv/o".into(), proof: Some(proof()) }),
        )
    };
    let of = |disk: &SnapshotDisk| {
        copies(&sample(), slice::from_ref(disk), &Ok(Vec::new())).remove(0).map(Option::unwrap)
    };
    let good = of(&external("/srv/b.img")).unwrap();
    assert_eq!(good.from, Whole::Image { path: "/srv/b.img".into(), format: Format::Raw });
    let mut written = external("/srv/b.img");
    written.frozen.as_mut().unwrap().size += 1;
    refused(
        of(&written),
        &["Disk xvdb (/srv/b.img) cannot be exported", "it was written to since"],
    );
    let used = SnapshotDisk { used_by: Some("web2".into()), ..external("/srv/b.img") };
    refused(of(&used), &["cannot be exported", "it is also used by web2"]);
    let left_out = found("/srv/c.iso", DiskSnapshot::None(LeftOut { why: "CD-ROM".into() }));
    assert_eq!(copies(&sample(), &[left_out], &Ok(Vec::new())).remove(0).unwrap(), None);
}
