//! Disks that are not those of the snapshot, made with the real qemu-img: each is noticed before
//! anything changes.

#![expect(clippy::unwrap_used, reason = "a test's helpers may end the test")]

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use tempfile::TempDir;
use uuid::Uuid;
use xl_snapshot::disk::HostView;
use xl_snapshot::disk::kinds::{External, Internal, Reflink};
use xl_snapshot::disk::{DiskRevert, FileFacts, RevertContext, revert};
use xl_snapshot::domain::{DomainConfig, Format, GuestType};
use xl_snapshot::error::Result;
use xl_snapshot::host::command::run;
use xl_snapshot::host::{files, look, tools};
use xl_snapshot::plan::Step;
use xl_snapshot::record::{DiskRecord, DiskSnapshot, DomainRecord, FrozenFile, Record, VERSION};
use xl_snapshot::revert::by_hand;
use xl_snapshot::show::ShowInput;
use xl_snapshot::spec::Spec;
use xl_snapshot::tool::qemu_img::{ImageInfo, create_overlay, snapshot_create};
use xl_snapshot::tool::{Invocation, Tool};

const SIZE: u64 = 1 << 20;

/// A directory with images in it.
struct Images(TempDir);

impl Images {
    fn new() -> Self {
        Images(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A qcow2 image full of `byte` that has the snapshot `s1`.
    fn snapshotted(&self, name: &str, byte: u8) -> PathBuf {
        let path = self.path(name);
        let call = Invocation::new(Tool::QemuImg, ["create", "-q", "-f", "qcow2"]);
        run(&call.arg(&path).arg(SIZE.to_string())).unwrap();
        self.snapshot(&path, byte);
        path
    }

    /// Fills a qcow2 image with `byte` and takes a snapshot `s1` of it.
    fn snapshot(&self, path: &Path, byte: u8) {
        let raw = self.raw("fill.raw", byte);
        let call = Invocation::new(Tool::QemuImg, ["convert", "-n", "-f", "raw", "-O", "qcow2"]);
        run(&call.arg(raw).arg(path)).unwrap();
        run(&snapshot_create(path, &"s1".parse().unwrap())).unwrap();
    }

    fn raw(&self, name: &str, byte: u8) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, vec![byte; SIZE.try_into().unwrap()]).unwrap();
        path
    }

    fn overlay(&self, name: &str, base: &Path, format: Format) -> PathBuf {
        let path = self.path(name);
        run(&create_overlay(&path, base, format, SIZE)).unwrap();
        path
    }

    fn first_byte(&self, path: &Path) -> u8 {
        let raw = self.path("read.raw");
        let call = Invocation::new(Tool::QemuImg, ["convert", "-f", "qcow2", "-O", "raw"]);
        run(&call.arg(path).arg(&raw)).unwrap();
        fs::read(raw).unwrap()[0]
    }
}

/// The record of a disk with its `number`th internal snapshot.
fn internal(path: &Path, number: usize) -> DiskRecord {
    let proof = tools::image(path, Format::Qcow2).unwrap().snapshots()[number].clone();
    disk(path, Format::Qcow2, DiskSnapshot::Internal(Internal { proof: Some(proof), bases: None }))
}

/// The record of a disk whose file was frozen as it is now.
fn external(path: &Path, format: Format) -> DiskRecord {
    disk(
        path,
        format,
        DiskSnapshot::External(External { overlay: "/o".into(), proof: Some(frozen(path)) }),
    )
}

fn frozen(path: &Path) -> FrozenFile {
    let meta = fs::metadata(path).unwrap();
    FrozenFile {
        virtual_size: SIZE,
        file_size: meta.len(),
        mtime: Timestamp::try_from(meta.modified().unwrap()).unwrap(),
        inode: meta.ino(),
    }
}

fn disk(path: &Path, format: Format, snapshot: DiskSnapshot) -> DiskRecord {
    DiskRecord { vdev: "xvda".into(), path: path.to_owned(), format: Some(format), snapshot }
}

/// Looks at the disks of a snapshot of now and plans to put each of them back.
fn plan(disks: &[DiskRecord], keep: &str) -> Vec<Result<DiskRevert>> {
    plan_since(Timestamp::now(), disks, keep)
}

fn plan_since(created: Timestamp, disks: &[DiskRecord], keep: &str) -> Vec<Result<DiskRevert>> {
    let record = Record {
        version: VERSION,
        complete: true,
        name: "s1".parse().unwrap(),
        id: Uuid::nil(),
        created,
        description: String::new(),
        live: false,
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
        disks: disks.to_vec(),
    };
    let ShowInput { disks: found, volumes, .. } =
        look::for_show(None, &record, None, Timestamp::now()).unwrap();
    let context = RevertContext {
        uuid: Uuid::nil(),
        domain: "web1",
        id: record.id,
        created: record.created,
        keep: &keep.parse().unwrap(),
        running: false,
        discard: false,
        new_domain: None,
        tight: false,
        volumes: &volumes,
    };
    found.iter().map(|disk| revert(disk, context)).collect()
}

/// Why one disk is not put back.
#[track_caller]
fn refusal(disk: &DiskRecord) -> String {
    why(plan(std::slice::from_ref(disk), "keep").remove(0))
}

#[track_caller]
fn why(planned: Result<DiskRevert>) -> String {
    let error = planned.unwrap_err();
    assert_eq!(error.exit_code(), 3);
    error.chain().join(": ")
}

#[track_caller]
fn accepted(disk: &DiskRecord) {
    plan(std::slice::from_ref(disk), "keep").remove(0).unwrap();
}

/// Writes to a file without a trace in its length and its time.
fn rewrite(path: &Path, byte: u8) {
    let before = fs::metadata(path).unwrap();
    fs::write(path, vec![byte; before.len().try_into().unwrap()]).unwrap();
    restore_time(path, &before);
}

fn restore_time(path: &Path, before: &fs::Metadata) {
    File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_modified(before.modified().unwrap())
        .unwrap();
}

#[test]
fn exchanged_disks_with_snapshots_of_the_same_name_and_number() {
    let images = Images::new();
    let (a, b) = (images.snapshotted("a", 1), images.snapshotted("b", 2));
    let disks = [internal(&a, 0), internal(&b, 0)];
    assert!(plan(&disks, "keep").iter().all(Result::is_ok));
    fs::rename(&a, images.path("c")).unwrap();
    fs::rename(&b, &a).unwrap();
    fs::rename(images.path("c"), &b).unwrap();
    for planned in plan(&disks, "keep") {
        let why = why(planned);
        assert!(why.contains("its snapshot \"s1\" is another one: ID 1 of"), "{why}");
    }
}

#[test]
fn a_byte_for_byte_copy_of_an_image_is_that_image() {
    let images = Images::new();
    let a = images.snapshotted("a", 1);
    let record = internal(&a, 0);
    fs::copy(&a, images.path("b")).unwrap();
    fs::rename(images.path("b"), &a).unwrap();
    accepted(&record);
}

#[test]
fn a_snapshot_that_is_missing_on_one_of_three_disks() {
    let images = Images::new();
    let disks = ["a", "b", "c"].map(|name| internal(&images.snapshotted(name, 1), 0));
    let call = Invocation::new(Tool::QemuImg, ["snapshot", "-q", "-d", "s1"]);
    run(&call.arg(&disks[1].path)).unwrap();
    let planned = plan(&disks, "keep");
    assert!(planned[0].is_ok() && planned[2].is_ok());
    let planned = planned.into_iter().nth(1).unwrap();
    assert!(why(planned).contains("its snapshot \"s1\" no longer exists"));
}

#[test]
fn two_snapshots_of_one_name_are_told_apart() {
    let images = Images::new();
    let path = images.snapshotted("a", 1);
    images.snapshot(&path, 2);
    let records = [internal(&path, 0), internal(&path, 1)];
    for (number, byte) in [(0, 1), (1, 2), (0, 1)] {
        let keep = format!("keep-{}", Uuid::new_v4());
        let planned = plan(&records[number..=number], &keep).remove(0).unwrap();
        for step in &planned.put_back {
            let Step::Run(call) = step else { panic!("{step}") };
            run(call).unwrap();
        }
        assert_eq!(images.first_byte(&path), byte);
    }
    // The first one goes.
    run(&Invocation::new(Tool::QemuImg, ["snapshot", "-q", "-d", "s1"]).arg(&path)).unwrap();
    assert!(refusal(&records[0]).contains("is another one: ID 2"));
    accepted(&records[1]);
}

#[test]
fn the_name_that_keeps_what_is_there_now_must_be_free() {
    let images = Images::new();
    let record = internal(&images.snapshotted("a", 1), 0);
    let planned = plan(std::slice::from_ref(&record), "s1").remove(0);
    assert!(why(planned).contains("it already has a snapshot s1"));
}

#[test]
fn a_base_that_was_written_to() {
    let images = Images::new();
    let base = images.raw("base", 1);
    let record = external(&base, Format::Raw);
    let before = fs::metadata(&base).unwrap();
    accepted(&record);

    fs::write(&base, [2; 512]).unwrap();
    restore_time(&base, &before);
    assert!(refusal(&record).contains("it was written to since: 512 bytes long"));
    images.raw("base", 2);
    assert!(refusal(&record).contains("it was written to since: last at"));
    // What nobody can see: the same file, as long as before, with its time put back.
    restore_time(&base, &before);
    accepted(&record);

    // A copy, even with the time of the original.
    fs::copy(&base, images.path("copy")).unwrap();
    restore_time(&images.path("copy"), &before);
    fs::rename(images.path("copy"), &base).unwrap();
    assert!(refusal(&record).contains("it is another file now"));
}

#[test]
fn exchanged_bases() {
    let images = Images::new();
    let (a, b) = (images.raw("a", 1), images.raw("b", 2));
    let disks = [external(&a, Format::Raw), external(&b, Format::Raw)];
    fs::rename(&a, images.path("c")).unwrap();
    fs::rename(&b, &a).unwrap();
    fs::rename(images.path("c"), &b).unwrap();
    for planned in plan(&disks, "keep") {
        assert!(why(planned).contains("it is another file now"));
    }
}

#[test]
fn a_base_of_the_base_that_was_written_to() {
    let images = Images::new();
    let lowest = images.raw("lowest", 1);
    let base = images.overlay("base", &lowest, Format::Raw);
    let overlay = images.overlay("overlay", &base, Format::Qcow2);
    run(&snapshot_create(&overlay, &"s1".parse().unwrap())).unwrap();
    let disks = [external(&base, Format::Qcow2), internal(&overlay, 0)];
    let created = Timestamp::now();
    let planned = |disks: &[DiskRecord]| plan_since(created, disks, "keep");
    assert!(planned(&disks).iter().all(Result::is_ok));
    rewrite(&lowest, 2);
    assert!(planned(&disks).iter().all(Result::is_ok), "nothing shows it");
    images.raw("lowest", 3);
    for planned in planned(&disks) {
        let why = why(planned);
        assert!(why.contains("its base") && why.contains("lowest was written to since"), "{why}");
    }
    fs::remove_file(&lowest).unwrap();
    for planned in planned(&disks) {
        assert!(why(planned).contains("No such file"));
    }
}

#[test]
fn a_copy_of_a_raw_file_that_was_replaced() {
    let images = Images::new();
    let (path, copy) = (images.raw("a", 1), images.raw("a.at-s1", 1));
    let kept = DiskSnapshot::Reflink(Reflink { copy: copy.clone(), proof: Some(frozen(&copy)) });
    let record = disk(&path, Format::Raw, kept);
    accepted(&record);
    let before = fs::metadata(&copy).unwrap();
    let other = images.raw("other", 2);
    restore_time(&other, &before);
    fs::rename(&other, &copy).unwrap();
    assert!(refusal(&record).contains("a.at-s1: it is another file now"));
}

/// What is there, for snapshots that were made by hand.
struct Host;

impl HostView for Host {
    fn chain(&self, path: &Path, format: Format) -> Result<Vec<ImageInfo>, String> {
        tools::chain(path, format)
    }

    fn facts(&self, path: &Path) -> Result<FileFacts, String> {
        files::facts(path).map_err(|error| error.to_string())
    }
}

/// The record of one disk with a snapshot `s1` inside of it or, with `external`, on a frozen image.
fn made_by_hand(path: &Path, how: &str) -> Result<DiskRecord> {
    let config = serde_json::json!({
        "c_info": {"type": "pv", "name": "web1", "uuid": Uuid::nil()},
        "disks": [{"pdev_path": path, "vdev": "xvda", "format": "qcow2", "readwrite": 1}],
    });
    let config = DomainConfig::parse(&config.to_string()).unwrap();
    let spec = format!("name = \"s1\"\n[[disk]]\nvdev = \"xvda\"\nsnapshot = \"{how}\"\n");
    let spec = Spec::parse(&spec, Path::new("/spec.toml")).unwrap();
    let request = spec.request().unwrap();
    let who = (&config, Uuid::nil());
    let record = by_hand::record(&request, who, Path::new("/web1.cfg"), &Host, Timestamp::now())?;
    Ok(record.disks[0].clone())
}

#[test]
fn a_snapshot_that_was_made_by_hand_is_found_by_its_name_and_applied_by_its_number() {
    let images = Images::new();
    let path = images.snapshotted("a", 1);
    images.snapshot(&path, 2);
    // qemu-img gives a name as often as it is asked to.
    let why = made_by_hand(&path, "internal").unwrap_err().chain().join(": ");
    assert!(why.contains("several snapshots s1"), "{why}");
    run(&Invocation::new(Tool::QemuImg, ["snapshot", "-q", "-d", "s1"]).arg(&path)).unwrap();
    let record = made_by_hand(&path, "internal").unwrap();
    let planned = plan(std::slice::from_ref(&record), "keep").remove(0).unwrap();
    for step in &planned.put_back {
        let Step::Run(call) = step else { panic!("{step}") };
        run(call).unwrap();
    }
    assert_eq!(images.first_byte(&path), 2);
}

#[test]
fn an_overlay_that_was_made_by_hand_tells_the_frozen_image() {
    let images = Images::new();
    let base = images.raw("base", 7);
    let overlay = images.overlay("overlay", &base, Format::Raw);
    let record = made_by_hand(&overlay, "external").unwrap();
    assert_eq!((record.path.as_path(), record.format), (base.as_path(), Some(Format::Raw)));
    accepted(&record);
    // Nothing says what the image below is: never looked for.
    let bare = images.path("bare");
    run(&create_overlay(&bare, &base, Format::Raw, SIZE)).unwrap();
    let call = Invocation::new(Tool::QemuImg, ["rebase", "-q", "-u", "-f", "qcow2", "-b", ""]);
    run(&call.arg(&bare)).unwrap();
    let why = made_by_hand(&bare, "external").unwrap_err().chain().join(": ");
    assert!(why.contains("it is no overlay"), "{why}");
}
