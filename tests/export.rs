//! Exports with the real qemu-img and real files: every kind of disk, consistent with the snapshot, whole, or
//! nothing at all.

#![expect(clippy::unwrap_used, reason = "a test's helpers may end the test")]

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use uuid::Uuid;
use xl_snapshot::disk::kinds::{External, Internal, LeftOut, Reflink, Vhd};
use xl_snapshot::domain::{DomainConfig, Format, GuestType};
use xl_snapshot::error::{Error, Result};
use xl_snapshot::export::{self, Options, To, archive_name};
use xl_snapshot::host::export::look::look;
use xl_snapshot::host::export::steps::{Exporter, Hands};
use xl_snapshot::host::snapshot::Snapshot;
use xl_snapshot::host::{command, deletion, files, list as host, tools};
use xl_snapshot::list::{self, Health, ListRequest};
use xl_snapshot::memory::Image;
use xl_snapshot::memory::header::{self, record_space};
use xl_snapshot::plan::{Perform, Plan, Step, execute};
use xl_snapshot::record::{DiskRecord, DiskSnapshot, DomainRecord, FrozenFile, Record, VERSION};
use xl_snapshot::revert::Cfg;
use xl_snapshot::tool::{Invocation, Tool};

const SIZE: usize = 1 << 20;

fn run(tool: Tool, args: &[&str]) {
    command::run(&Invocation::new(tool, args)).unwrap();
}

/// The raw content of an image, of what is no image of its own too.
fn content(path: &Path) -> Vec<u8> {
    let raw = tempfile::NamedTempFile::new().unwrap();
    let call = Invocation::new(Tool::QemuImg, ["convert", "-f", "qcow2", "-O", "raw"]);
    command::run(&call.arg(path).arg(raw.path())).unwrap();
    fs::read(raw.path()).unwrap()
}

#[expect(clippy::disallowed_methods, reason = "qemu-io writes as a guest does")]
fn write(path: &Path, pattern: u8, at: usize, length: usize) {
    let write = format!("write -P {pattern} {at} {length}");
    let status = std::process::Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", &write])
        .arg(path)
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
}

fn proof(path: &Path, virtual_size: u64) -> FrozenFile {
    let facts = files::facts(path).unwrap();
    FrozenFile { virtual_size, file_size: facts.size, mtime: facts.mtime, inode: facts.inode }
}

/// A snapshot `s1` with a disk of each kind that needs no volume group, and what each held.
struct Place {
    directory: tempfile::TempDir,
    content: Vec<(String, Vec<u8>)>,
}

impl Place {
    fn new() -> Place {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let mut place = Place { directory, content: Vec::new() };
        let [base, inside, frozen, copy, vhd] =
            ["base.img", "a.qcow2", "b.img", "c.img", "e.vhd"].map(|name| place.path(name));
        // Inside of an overlay, with content below it, and written to since.
        fs::write(&base, vec![1; SIZE]).unwrap();
        let (below, top) = (base.display().to_string(), inside.display().to_string());
        run(Tool::QemuImg, &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &below, &top]);
        write(&inside, 2, SIZE / 4, SIZE / 4);
        run(Tool::QemuImg, &["snapshot", "-c", "s1", &top]);
        let mut bytes = vec![1; SIZE];
        bytes[SIZE / 4..SIZE / 2].fill(2);
        place.content.push(("xvda".into(), bytes));
        let snapshots = tools::image(&inside, Format::Qcow2).unwrap().snapshots();
        write(&inside, 3, 0, SIZE);
        // Frozen, of a length that is no multiple of a sector.
        let mut bytes = vec![4; SIZE];
        bytes[SIZE / 2..].fill(0);
        fs::write(&frozen, [&bytes[..], &[9; 100]].concat()).unwrap();
        place.content.push(("xvdb".into(), bytes));
        fs::write(&copy, vec![5; SIZE]).unwrap();
        place.content.push(("xvdc".into(), vec![5; SIZE]));
        // As tapdisk serves it.
        let raw = copy.display().to_string();
        run(
            Tool::QemuImg,
            &[
                "convert",
                "-f",
                "raw",
                "-O",
                "vpc",
                "-o",
                "force_size=on",
                &raw,
                vhd.to_str().unwrap(),
            ],
        );
        place.content.push(("xvde".into(), vec![5; SIZE]));
        let size = SIZE as u64;
        let disk = |vdev: &str, path: &Path, format, snapshot| DiskRecord {
            vdev: vdev.into(),
            path: path.to_owned(),
            format: Some(format),
            snapshot,
        };
        let internal = Internal { proof: snapshots.into_iter().next(), bases: None };
        let external =
            External { overlay: place.path("o.qcow2"), proof: Some(proof(&frozen, size + 100)) };
        let reflink = Reflink { copy: copy.clone(), proof: Some(proof(&copy, size)) };
        let child = Vhd { child: place.path("f.vhd"), proof: Some(proof(&vhd, size)) };
        let left_out = LeftOut { why: "CD-ROM".into() };
        let disks = vec![
            disk("xvda", &inside, Format::Qcow2, internal.into()),
            disk("xvdb", &frozen, Format::Raw, external.into()),
            disk("xvdc", &place.path("now.img"), Format::Raw, reflink.into()),
            disk("xvde", &vhd, Format::Raw, child.into()),
            disk("hdc", &place.path("cd.iso"), Format::Raw, left_out.into()),
        ];
        place.save(disks);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn image(&self) -> PathBuf {
        self.path("s1.xlsave")
    }

    /// The image has the memory of one that is known to be good.
    fn save(&self, disks: Vec<DiskRecord>) {
        let known = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/image/file");
        let Image { stream_offset, .. } = Image::read(&mut File::open(&known).unwrap()).unwrap();
        let stream = fs::read(&known).unwrap()[usize::try_from(stream_offset).unwrap()..].to_vec();
        let entry = |disk: &DiskRecord| {
            let (path, script) = match disk.snapshot {
                DiskSnapshot::Vhd(_) => ("vhd:", r#", "script": "block-tap""#),
                _ => ("", ""),
            };
            format!(
                r#"{{"vdev": "{}", "pdev_path": "{path}{}", "format": "{}"{script}}}"#,
                disk.vdev,
                disk.path.display(),
                disk.format.unwrap().name()
            )
        };
        let entries: Vec<_> = disks.iter().map(entry).collect();
        let uuid = Uuid::from_u128(7);
        let config = format!(
            r#"{{"c_info": {{"name": "web1", "uuid": "{uuid}"}}, "disks": [{}]}}"#,
            entries.join(", ")
        );
        let mut record = Record {
            version: VERSION,
            complete: true,
            name: "s1".parse().unwrap(),
            id: Uuid::from_u128(1),
            created: Timestamp::now(),
            description: "as it was".into(),
            live: true,
            disks_only: None,
            writer: "test".into(),
            xen: "4.17".into(),
            image_size: 1 << 40,
            parent: None,
            parent_by: None,
            quiesced: None,
            domain: DomainRecord {
                name: "web1".into(),
                uuid,
                guest_type: GuestType::Pv,
                memory_kib: 1024,
                cfg: Some(self.path("web1.cfg")),
            },
            disks,
        };
        let space = record_space(&record);
        let length = header::encode(&config, &record, space).unwrap().len() + stream.len();
        record.image_size = length as u64;
        let header = header::encode(&config, &record, space).unwrap();
        fs::write(self.image(), [header, stream].concat()).unwrap();
        fs::write(self.path("web1.cfg"), "name = 'web1'\n").unwrap();
    }

    fn plan(&self, image: &Path, to: To, memory: bool) -> Result<(Plan, Snapshot)> {
        let snapshot = Snapshot::open(image)?;
        let options = Options { memory, to, token: Uuid::new_v4() };
        let cfg = Cfg::Remembered(self.path("web1.cfg"));
        let found = look(None, &snapshot, &cfg, &options)?;
        Ok((export::plan(&found, &options, "test")?, snapshot))
    }

    fn export(&self, to: &str, memory: bool) -> PathBuf {
        let to = self.path(to);
        let (plan, mut snapshot) =
            self.plan(&self.image(), To::Directory(to.clone()), memory).unwrap();
        execute(&plan, &mut Host::of(&mut snapshot)).unwrap();
        to
    }

    /// The copies have what the disks held, and rest on nothing.
    fn check(&self, export: &Path) {
        for (vdev, bytes) in &self.content {
            let path = export.join(format!("{vdev}.qcow2"));
            let info = tools::info(&path, Format::Qcow2).unwrap();
            assert_eq!(info.full_backing_filename, None);
            assert!(info.snapshots().is_empty());
            assert!(content(&path) == *bytes, "{vdev} has another content");
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o400);
        }
    }

    fn names(&self, directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// Does the steps, and has one fail.
struct Host<'a> {
    exporter: Exporter,
    snapshot: &'a mut Snapshot,
    fails: Option<usize>,
    /// Somebody writes to it while the disks are copied.
    written: Option<PathBuf>,
    steps: usize,
    stopped: bool,
}

impl Host<'_> {
    fn of(snapshot: &mut Snapshot) -> Host<'_> {
        Host {
            exporter: Exporter::default(),
            snapshot,
            fails: None,
            written: None,
            steps: 0,
            stopped: false,
        }
    }
}

impl Perform for Host<'_> {
    fn perform(&mut self, step: &Step) -> Result<()> {
        let Step::Export(export) = step else { panic!("{step}") };
        self.steps += 1;
        let stopped = self.stopped;
        let written = self.written.as_deref();
        let mut hands = Hands {
            run: &mut |call, _| {
                if let Some(path) = written {
                    let file = File::options().write(true).open(path).unwrap();
                    file.set_modified(std::time::SystemTime::now()).unwrap();
                }
                command::run(call).map(drop).map_err(|why| Error::failed(why.to_string()))
            },
            show: &mut |done, total| assert!(done <= total),
            stopped: &|| stopped,
            source: self.snapshot.source.as_mut(),
        };
        let done = self.exporter.perform(export, &mut hands);
        match self.fails {
            Some(number) if number + 1 == self.steps => Err(Error::failed("told to fail")),
            _ => done,
        }
    }
}

/// How `list` takes an image.
fn state(image: &Path) -> (Health, Vec<String>) {
    let images = vec![host::one(image.to_owned())];
    let seen = host::look(images, Vec::new(), Vec::new(), false);
    let mut listing = list::list(&seen, &ListRequest::default());
    let snapshot = listing.snapshots.remove(0);
    (snapshot.state, snapshot.why)
}

#[test]
fn an_export_has_what_the_snapshot_had_and_needs_nothing_else() {
    let place = Place::new();
    let to = place.export("web1-s1", true);
    let names = ["s1.cfg", "s1.xlsave.zst", "xvda.qcow2", "xvdb.qcow2", "xvdc.qcow2", "xvde.qcow2"];
    assert_eq!(place.names(&to), names);
    assert_eq!(fs::metadata(&to).unwrap().mode() & 0o777, 0o700);
    // Moved, and what it was made of is gone.
    let moved = place.path("elsewhere");
    fs::rename(&to, &moved).unwrap();
    let original = Image::read(&mut File::open(place.image()).unwrap()).unwrap();
    for name in ["a.qcow2", "b.img", "c.img", "e.vhd", "base.img", "s1.xlsave"] {
        fs::remove_file(place.path(name)).unwrap();
    }
    place.check(&moved);
    let image = moved.join("s1.xlsave.zst");
    let mut snapshot = Snapshot::open(&image).unwrap();
    let source = snapshot.source.as_mut().unwrap();
    source.verify().unwrap();
    assert_eq!(source.image.stream_len, original.stream_len);
    let config = DomainConfig::parse(&source.image.config).unwrap();
    let record = snapshot.record;
    assert_eq!(record.description, "as it was");
    for (disk, entry) in record.disks.iter().zip(config.disks().unwrap()) {
        assert_eq!(disk.path, entry.file());
        if disk.vdev != "hdc" {
            assert_eq!(disk.path, moved.join(format!("{}.qcow2", disk.vdev)));
            assert_eq!((entry.format, entry.script), (Some(Format::Qcow2), None));
        }
    }
    assert_eq!(state(&image), (Health::Good, vec![]));
}

#[test]
fn a_copy_that_was_written_to_or_cut_short_is_refused() {
    let place = Place::new();
    let to = place.export("x", true);
    let image = to.join("s1.xlsave.zst");
    let again = |name: &str| place.plan(&image, To::Directory(place.path(name)), true);
    let (plan, mut snapshot) = again("y").unwrap();
    execute(&plan, &mut Host::of(&mut snapshot)).unwrap();
    place.check(&place.path("y"));
    let file = File::options().append(true).open(to.join("xvdb.qcow2")).unwrap();
    let length = file.metadata().unwrap().len();
    file.set_len(length - 1).unwrap();
    let refused = |words: &str| {
        let error = again("z").unwrap_err();
        let text = error.chain().join(": ");
        assert!(error.exit_code() == 3 && text.contains(words), "{text}");
        assert!(text.contains("Disk xvdb"), "{text}");
    };
    refused("bytes long");
    assert_eq!(state(&image).0, Health::Broken);
    file.set_len(length).unwrap();
    refused("last at");
}

#[test]
fn without_memory_there_is_the_record() {
    let place = Place::new();
    let to = place.export("x", false);
    assert!(place.names(&to).contains(&"s1.record".to_owned()));
    let snapshot = Snapshot::open(&to.join("s1.record")).unwrap();
    assert!(snapshot.source.is_none() && snapshot.record.is_export());
    assert_eq!(snapshot.record.disks[0].path, to.join("xvda.qcow2"));
    place.check(&to);
    assert_eq!(state(&to.join("s1.record")), (Health::Good, vec![]));
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the program itself")]
fn what_cannot_be_done_with_an_export_is_refused() {
    let place = Place::new();
    let to = place.export("x", true);
    let image = to.join("s1.xlsave.zst");
    let program = |args: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_xl-snapshot"))
            .args(args)
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let shown = image.to_str().unwrap();
    for args in [&["revert", shown][..], &["revert", "--restore-first", shown]] {
        let (code, _, errors) = program(args);
        assert_eq!(code, Some(3), "{errors}");
        assert!(errors.contains("copies of the disks, not the disks themselves"), "{errors}");
        assert!(errors.contains("revert --as NAME --overlay-dir DIR"), "{errors}");
    }
    let error = deletion::named(&image).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.chain().join(": ").contains("it is an export"), "{error:?}");
    assert!(error.hint.unwrap().contains("rm -r "));
    let (code, shown_text, errors) = program(&["show", shown]);
    assert_eq!(code, Some(0), "{errors}");
    assert!(shown_text.contains(" exported, "), "{shown_text}");
    assert!(shown_text.contains("xvda.qcow2: present"), "{shown_text}");
    // It is not known where it lies.
    let (code, _, errors) = program(&["export", "-", "y"]);
    assert_eq!(code, Some(2), "{errors}");
    let (code, _, errors) = program(&["export", shown, "y", "--work-dir", "/tmp"]);
    assert!(code == Some(2) && errors.contains("--work-dir"), "{errors}");
}

#[test]
fn an_export_that_fails_leaves_nothing() {
    let place = Place::new();
    let to = place.path("x");
    let mut number = 0;
    loop {
        let (plan, mut snapshot) =
            place.plan(&place.image(), To::Directory(to.clone()), true).unwrap();
        let mut host = Host { fails: Some(number), ..Host::of(&mut snapshot) };
        // That it is complete cannot be taken back by the step that only takes away the mark.
        if number + 1 > plan.prepare.len() {
            break;
        }
        let error = execute(&plan, &mut host).unwrap_err();
        assert_eq!(error.exit_code(), 1, "step {number}: {:?}", error.chain());
        assert!(!to.exists() && !place.path("x.partial").exists(), "step {number}");
        number += 1;
    }
    assert_eq!(number, 7);
    // Stopped in the middle of the memory.
    let (plan, mut snapshot) = place.plan(&place.image(), To::Directory(to.clone()), true).unwrap();
    let mut host = Host { stopped: true, ..Host::of(&mut snapshot) };
    let error = execute(&plan, &mut host).unwrap_err();
    assert!(error.chain().join(": ").contains("Stopped by a signal"), "{error:?}");
    assert!(!place.path("x.partial").exists());
}

#[test]
fn a_file_that_is_written_to_while_it_is_copied_is_told() {
    let place = Place::new();
    let to = place.path("x");
    for (vdev, name) in [("xvdb", "b.img"), ("xvdc", "c.img"), ("xvde", "e.vhd")] {
        let before = File::open(place.path(name)).unwrap();
        let modified = before.metadata().unwrap().modified().unwrap();
        let (plan, mut snapshot) =
            place.plan(&place.image(), To::Directory(to.clone()), false).unwrap();
        let mut host = Host { written: Some(place.path(name)), ..Host::of(&mut snapshot) };
        let error = execute(&plan, &mut host).unwrap_err();
        let text = error.chain().join(": ");
        assert!(error.exit_code() == 1 && text.contains("changed while it was copied"), "{text}");
        assert!(text.contains(vdev) && text.contains("last at"), "{text}");
        assert!(!to.exists() && !place.path("x.partial").exists());
        File::options().write(true).open(place.path(name)).unwrap().set_modified(modified).unwrap();
    }
}

#[test]
fn what_a_power_cut_left_is_removed_first() {
    let place = Place::new();
    let to = To::Directory(place.path("x"));
    for steps in 1..=7 {
        let (plan, mut snapshot) = place.plan(&place.image(), to.clone(), true).unwrap();
        let cleared = plan.to_string().contains("which an earlier export has left");
        assert_eq!(cleared, steps > 1, "{plan}");
        let mut host = Host::of(&mut snapshot);
        plan.prepare.iter().take(steps).for_each(|step| host.perform(step).unwrap());
        // Nobody takes it for a snapshot.
        assert!(!place.path("x").exists());
    }
    let (plan, mut snapshot) = place.plan(&place.image(), to.clone(), true).unwrap();
    execute(&plan, &mut Host::of(&mut snapshot)).unwrap();
    place.check(&place.path("x"));
    let error = place.plan(&place.image(), to, true).unwrap_err();
    assert!(error.chain().join(": ").contains("exists"), "{error:?}");
    // Somebody else's.
    fs::create_dir(place.path("y.partial")).unwrap();
    let error = place.plan(&place.image(), To::Directory(place.path("y")), true).unwrap_err();
    assert!(error.chain().join(": ").contains("y.partial is there"), "{error:?}");
    let error = place.plan(&place.image(), To::Directory(place.path("no/y")), true).unwrap_err();
    assert_eq!(error.exit_code(), 3);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "tar reads what export writes")]
fn an_archive_is_one_that_tar_reads() {
    let place = Place::new();
    let (plan, mut snapshot) =
        place.plan(&place.image(), To::Stdout(place.directory.path().to_owned()), true).unwrap();
    let archive = place.path("archive.tar");
    let mut host = Host::of(&mut snapshot);
    host.exporter = Exporter::default().sending_to(File::create(&archive).unwrap());
    execute(&plan, &mut host).unwrap();
    let left: Vec<_> = place.names(place.directory.path());
    assert!(!left.iter().any(|name| name.starts_with("xl-snapshot-export")), "{left:?}");
    let status = std::process::Command::new("tar")
        .arg("-xf")
        .arg(&archive)
        .arg("-C")
        .arg(place.directory.path())
        .status()
        .unwrap();
    assert!(status.success());
    let to = place.path(&archive_name(&snapshot.record));
    assert_eq!(to, place.path("web1-s1"));
    place.check(&to);
    assert_eq!(state(&to.join("s1.xlsave.zst")), (Health::Good, vec![]));
    // The image is the last entry.
    let cut = fs::read(&archive).unwrap();
    assert!(cut.len() % 512 == 0);
    let length = fs::metadata(to.join("s1.xlsave.zst")).unwrap().len();
    let end = usize::try_from(length.next_multiple_of(512)).unwrap() + 1024;
    assert_eq!(&cut[cut.len() - end - 512..][..13], b"s1.xlsave.zst");
}
