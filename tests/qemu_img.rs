//! The calls of qemu-img, against the real one.

#![expect(clippy::unwrap_used, reason = "a test's helpers may end the test")]

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use xl_snapshot::domain::Format;
use xl_snapshot::host::command::run;
use xl_snapshot::host::tools;
use xl_snapshot::names::SnapshotName;
use xl_snapshot::tool::qemu_img::{
    ImageInfo, copy_snapshot, create_overlay, measure_snapshot, parse_measure, snapshot_apply,
    snapshot_create,
};
use xl_snapshot::tool::{Invocation, Tool};

const SIZE: u64 = 4 << 20;

struct Images(TempDir);

impl Images {
    fn new() -> Self {
        Images(tempfile::tempdir().unwrap())
    }

    /// A path of the kind that breaks scripts.
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(format!("o'dd, n:me {name}"))
    }

    fn qcow2(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        let call = Invocation::new(Tool::QemuImg, ["create", "-q", "-f", "qcow2"]);
        run(&call.arg(&path).arg(SIZE.to_string())).unwrap();
        path
    }

    /// Makes `byte` the whole content of an image, through a raw file and `convert -n`.
    fn fill(&self, path: &Path, format: &str, byte: u8) {
        let raw = self.path("fill.raw");
        fs::write(&raw, vec![byte; SIZE.try_into().unwrap()]).unwrap();
        let call = Invocation::new(Tool::QemuImg, ["convert", "-n", "-f", "raw", "-O", format]);
        run(&call.arg(raw).arg(path)).unwrap();
    }

    /// The first byte of an image as a guest sees it.
    fn first_byte(&self, path: &Path, format: &str) -> u8 {
        let raw = self.path("read.raw");
        let call = Invocation::new(Tool::QemuImg, ["convert", "-f", format, "-O", "raw"]);
        run(&call.arg(path).arg(&raw)).unwrap();
        fs::read(raw).unwrap()[0]
    }
}

fn chain(path: &Path, format: Format) -> Vec<ImageInfo> {
    tools::chain(path, format).unwrap()
}

/// What a copy of a snapshot takes.
fn measured(path: &Path, id: &str) -> u64 {
    parse_measure(&run(&measure_snapshot(path, id)).unwrap()).unwrap()
}

fn name(text: &str) -> SnapshotName {
    text.parse().unwrap()
}

#[test]
fn a_file_name_is_never_an_option_or_a_protocol() {
    let images = Images::new();
    for name in [
        "-o.qcow2",
        "--help",
        "json:{\"driver\":\"null-co\"}",
        "nbd:localhost:10809",
        "a=b,file.filename=c,,d",
        "a b \"c\" 'd' \\e $(f) `g`",
        " ",
        &"x".repeat(255),
    ] {
        let base = images.0.path().join(name);
        fs::write(&base, vec![7; SIZE.try_into().unwrap()]).unwrap();
        let overlay = images.0.path().join("overlay.qcow2");
        run(&create_overlay(&overlay, &base, Format::Raw, SIZE)).unwrap();
        assert_eq!(chain(&overlay, Format::Qcow2)[1].filename, base);
        assert_eq!(images.first_byte(&overlay, "qcow2"), 7, "{name}");
        fs::rename(&overlay, &base).unwrap();
        run(&create_overlay(&base, &images.path("below.img"), Format::Raw, SIZE)).unwrap();
        fs::write(images.path("below.img"), vec![8; SIZE.try_into().unwrap()]).unwrap();
        run(&snapshot_create(&base, &self::name("s1"))).unwrap();
        run(&snapshot_apply(&base, "1")).unwrap();
        let copy = images.0.path().join("copy.qcow2");
        let below = images.path("below.img");
        run(&copy_snapshot(&base, "1", &copy, Some((&below, Format::Raw)))).unwrap();
        assert_eq!(images.first_byte(&copy, "qcow2"), 8, "{name}");
        fs::remove_file(&base).unwrap();
    }
}

#[test]
fn an_overlay_shows_its_base_and_leaves_it_alone() {
    let images = Images::new();
    let base = images.path("base.img");
    fs::write(&base, vec![7; SIZE.try_into().unwrap()]).unwrap();
    let overlay = images.path("overlay.qcow2");
    run(&create_overlay(&overlay, &base, Format::Raw, SIZE)).unwrap();
    let found = chain(&overlay, Format::Qcow2);
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].virtual_size, SIZE);
    assert_eq!(found[0].full_backing_filename.as_deref(), Some(base.as_path()));
    assert_eq!(found[0].backing_filename_format.as_deref(), Some("raw"));
    assert_eq!(images.first_byte(&overlay, "qcow2"), 7);
    images.fill(&overlay, "qcow2", 9);
    assert_eq!(images.first_byte(&overlay, "qcow2"), 9);
    assert!(fs::read(&base).unwrap().iter().all(|byte| *byte == 7));
}

#[test]
fn a_raw_disk_that_looks_like_qcow2_stays_raw() {
    // What a hostile guest can write: the header of a qcow2 image that rests on a host file.
    let images = Images::new();
    let secret = images.path("secret");
    fs::write(&secret, [b's'; 512]).unwrap();
    let disk = images.path("disk.img");
    run(&create_overlay(&disk, &secret, Format::Raw, SIZE)).unwrap();
    let found = chain(&disk, Format::Raw);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].format, "raw");
    let overlay = images.path("overlay.qcow2");
    run(&create_overlay(&overlay, &disk, Format::Raw, SIZE)).unwrap();
    assert_eq!(chain(&overlay, Format::Qcow2).len(), 2);
    assert_eq!(images.first_byte(&overlay, "qcow2"), b'Q', "the header itself, not the secret");
}

#[test]
fn snapshots_are_taken_listed_and_applied() {
    let images = Images::new();
    let disk = images.qcow2("disk.qcow2");
    images.fill(&disk, "qcow2", 1);
    run(&snapshot_create(&disk, &name("s1"))).unwrap();
    images.fill(&disk, "qcow2", 2);
    run(&snapshot_create(&disk, &name("s2"))).unwrap();
    images.fill(&disk, "qcow2", 3);
    let snapshots = chain(&disk, Format::Qcow2)[0].snapshots();
    assert_eq!(snapshots.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["s1", "s2"]);
    assert!(snapshots[0].date < snapshots[1].date);
    for (snapshot, byte) in [(&snapshots[0], 1), (&snapshots[1], 2), (&snapshots[0], 1)] {
        run(&snapshot_apply(&disk, &snapshot.id)).unwrap();
        assert_eq!(images.first_byte(&disk, "qcow2"), byte);
    }
    assert_eq!(chain(&disk, Format::Qcow2)[0].snapshots(), snapshots, "they survive");
}

#[test]
fn a_name_that_is_another_ones_id_is_no_trap() {
    let images = Images::new();
    let disk = images.qcow2("disk.qcow2");
    images.fill(&disk, "qcow2", 1);
    // By hand, as nobody can through us: ID 1 is named "2", ID 2 is named "1".
    for (snapshot, byte) in [("2", 1), ("1", 2)] {
        images.fill(&disk, "qcow2", byte);
        let call = Invocation::new(Tool::QemuImg, ["snapshot", "-c", snapshot]);
        run(&call.arg(&disk)).unwrap();
    }
    let snapshots = chain(&disk, Format::Qcow2)[0].snapshots();
    let first = snapshots.iter().find(|s| s.name == "2").unwrap();
    assert_eq!(first.id, "1");
    let copy = images.path("copy.qcow2");
    run(&copy_snapshot(&disk, &first.id, &copy, None)).unwrap();
    assert_eq!(images.first_byte(&copy, "qcow2"), 1);
    run(&snapshot_apply(&disk, &first.id)).unwrap();
    assert_eq!(images.first_byte(&disk, "qcow2"), 1);
}

#[test]
fn a_snapshot_is_copied_out_of_a_base() {
    let images = Images::new();
    let disk = images.qcow2("disk.qcow2");
    images.fill(&disk, "qcow2", 1);
    run(&snapshot_create(&disk, &name("s1"))).unwrap();
    images.fill(&disk, "qcow2", 2);
    let before = fs::read(&disk).unwrap();
    let id = chain(&disk, Format::Qcow2)[0].snapshots()[0].id.clone();
    let copy = images.path("copy.qcow2");
    run(&copy_snapshot(&disk, &id, &copy, None)).unwrap();
    assert_eq!(images.first_byte(&copy, "qcow2"), 1);
    assert_eq!(fs::read(&disk).unwrap(), before, "the base is untouched");
    assert_eq!(measured(&disk, &id), fs::metadata(&copy).unwrap().len());
}

#[test]
fn a_snapshot_of_an_overlay_is_copied_onto_the_same_base() {
    let images = Images::new();
    let base = images.path("base.img");
    fs::write(&base, vec![7; SIZE.try_into().unwrap()]).unwrap();
    let overlay = images.path("overlay.qcow2");
    run(&create_overlay(&overlay, &base, Format::Raw, SIZE)).unwrap();
    run(&snapshot_create(&overlay, &name("s1"))).unwrap();
    images.fill(&overlay, "qcow2", 9);
    let copy = images.path("copy.qcow2");
    run(&copy_snapshot(&overlay, "1", &copy, Some((&base, Format::Raw)))).unwrap();
    assert_eq!(images.first_byte(&copy, "qcow2"), 7);
    assert_eq!(chain(&copy, Format::Qcow2).len(), 2);
    let length = fs::metadata(&copy).unwrap().len();
    assert!(length < SIZE / 2, "only what differs");
    let needed = measured(&overlay, "1");
    assert!((length..SIZE / 2).contains(&needed), "{needed} for {length}");
}
