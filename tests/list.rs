//! `list` with files that the real qemu-img has made: what descends from what, what is still good, and how long
//! a thousand of them take.

#![expect(clippy::unwrap_used, reason = "a test's helpers may end the test")]
#![expect(clippy::disallowed_methods, reason = "the program that is tested is no tool of it")]

use std::env;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;
use uuid::Uuid;
use xl_snapshot::create::Job;
use xl_snapshot::disk::FileFacts;
use xl_snapshot::disk::chain::Link;
use xl_snapshot::disk::kinds::{External, Internal, LeftOut};
use xl_snapshot::domain::{DomainConfig, Format, GuestType};
use xl_snapshot::host::{command, files, list as host, marks, tools};
use xl_snapshot::list::{
    self, CurrentDisk, DescentSource, FileEntry, FileKind, ImageEntry, Inventory, ListRequest,
    Listing, Running,
};
use xl_snapshot::memory::header;
use xl_snapshot::memory::peek::{Extent, Peek};
use xl_snapshot::record::{
    DiskRecord, DiskSnapshot, DisksOnly, DomainRecord, FrozenFile, Parent, ParentSource,
    QcowSnapshot, Record, VERSION,
};
use xl_snapshot::spec::Spec;
use xl_snapshot::tool::{Invocation, Tool};

const PROGRAM: &str = env!("CARGO_BIN_EXE_xl-snapshot");

fn qemu_img(args: &[&str]) {
    command::run(&Invocation::new(Tool::QemuImg, args)).unwrap();
}

fn snapshots(path: &Path) -> Vec<QcowSnapshot> {
    tools::image(path, Format::Qcow2).unwrap().snapshots()
}

/// How a disk is snapshotted here.
#[derive(Clone, Copy, PartialEq)]
enum How {
    Internal,
    External,
    Not,
}

/// A domain, its disks and a directory of snapshots, on a real file system.
struct Host {
    directory: tempfile::TempDir,
    uuid: Uuid,
    /// The files that the domain's disks are now.
    disks: Vec<PathBuf>,
}

impl Host {
    fn new(disks: usize) -> Host {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = |at| directory.path().join(format!("d{at}.qcow2"));
        let disks: Vec<_> = (0..disks).map(path).collect();
        for disk in &disks {
            qemu_img(&["create", "-q", "-f", "qcow2", disk.to_str().unwrap(), "1M"]);
        }
        fs::create_dir_all(directory.path().join("kept/web1")).unwrap();
        Host { directory, uuid: Uuid::from_u128(42), disks }
    }

    fn kept(&self) -> PathBuf {
        self.directory.path().join("kept")
    }

    fn image(&self, name: &str) -> PathBuf {
        self.kept().join(format!("web1/{name}.xlsave"))
    }

    fn running(&self) -> Running {
        running("web1", self.uuid, &self.disks)
    }

    fn seen(&self, domains: Vec<Running>) -> Inventory {
        let mut unseen = Vec::new();
        let images = host::images(&[self.kept()], &[], &mut unseen).unwrap();
        host::look(images, domains, unseen, true)
    }

    fn list(&self) -> Listing {
        list::list(
            &self.seen(vec![self.running()]),
            &ListRequest { all: true, ..ListRequest::default() },
        )
    }

    /// What create would write into the record as the parent.
    fn parent(&self) -> Option<(Parent, ParentSource)> {
        list::parent_of_now(&self.seen(vec![self.running()]))
    }

    /// Takes a snapshot as create does; without the parent in the record if that is not `noted`.
    fn create_with(&mut self, name: &str, how: &[How], noted: bool) -> Record {
        let created = Timestamp::now();
        let parent = self.parent().filter(|_| noted);
        let mut disks = Vec::new();
        for (at, how) in how.iter().enumerate() {
            let path = self.disks[at].clone();
            let text = path.to_str().unwrap();
            let snapshot = match how {
                How::Not => DiskSnapshot::None(LeftOut { why: "left out as asked".into() }),
                How::Internal => {
                    qemu_img(&["snapshot", "-q", "-c", name, text]);
                    let proof = snapshots(&path).into_iter().find(|s| s.name == name);
                    DiskSnapshot::Internal(Internal { proof, bases: None })
                }
                How::External => {
                    fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
                    let overlay =
                        self.directory.path().join(format!("web1-d{at}.after-{name}.qcow2"));
                    overlay_on(&path, &overlay);
                    let facts = files::facts(&path).unwrap();
                    self.disks[at] = overlay.clone();
                    let proof = FrozenFile {
                        virtual_size: 1 << 20,
                        file_size: facts.size,
                        mtime: facts.mtime,
                        inode: facts.inode,
                    };
                    DiskSnapshot::External(External { overlay, proof: Some(proof) })
                }
            };
            let vdev = format!("xvd{}", char::from(b'a' + u8::try_from(at).unwrap()));
            disks.push(DiskRecord { vdev, path, format: Some(Format::Qcow2), snapshot });
        }
        let record = Record {
            parent: parent.map(|(parent, _)| parent),
            quiesced: None,
            parent_by: parent.map(|(_, by)| by),
            disks,
            ..record("web1", self.uuid, name, created)
        };
        write_image(&self.image(name), &record);
        marks::set_all(&record);
        // The next one is younger.
        sleep(Duration::from_millis(2));
        record
    }

    fn create(&mut self, name: &str, how: &[How]) -> Record {
        self.create_with(name, how, true)
    }

    /// Goes back as revert does.
    fn revert(&mut self, record: &Record) {
        for (at, disk) in record.disks.iter().enumerate() {
            match &disk.snapshot {
                DiskSnapshot::Internal(Internal { proof: Some(proof), .. }) => {
                    let path = disk.path.to_str().unwrap();
                    marks::clear(&disk.path);
                    let keep = format!("before-revert-{}", Timestamp::now().as_nanosecond());
                    qemu_img(&["snapshot", "-q", "-c", &keep, path]);
                    qemu_img(&["snapshot", "-q", "-a", &proof.id, path]);
                    marks::set(&disk.path, record.id);
                    self.disks[at] = disk.path.clone();
                }
                DiskSnapshot::External(_) => {
                    let stamp = Timestamp::now().as_nanosecond();
                    let name = format!("web1-d{at}.after-{}.{stamp}.qcow2", record.name);
                    let overlay = self.directory.path().join(name);
                    overlay_on(&disk.path, &overlay);
                    self.disks[at] = overlay;
                }
                _ => {}
            }
        }
        sleep(Duration::from_millis(2));
    }
}

fn overlay_on(base: &Path, overlay: &Path) {
    let [base, overlay] = [base, overlay].map(|path| path.to_str().unwrap());
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, overlay]);
}

fn running(name: &str, uuid: Uuid, disks: &[PathBuf]) -> Running {
    let disk = |(at, path): (u8, &PathBuf)| CurrentDisk {
        vdev: format!("xvd{}", char::from(b'a' + at)),
        path: path.clone(),
        kind: FileKind::of_format(Some(Format::Qcow2)),
    };
    Running { name: name.into(), uuid, domid: Some(7), disks: (0..).zip(disks).map(disk).collect() }
}

fn record(domain: &str, uuid: Uuid, name: &str, created: Timestamp) -> Record {
    Record {
        version: VERSION,
        complete: true,
        name: name.parse().unwrap(),
        id: Uuid::new_v4(),
        created,
        description: String::new(),
        live: true,
        disks_only: None,
        writer: "xl-snapshot 0.1.0".into(),
        xen: "4.17.7".into(),
        image_size: 0,
        parent: None,
        quiesced: None,
        parent_by: None,
        domain: DomainRecord {
            name: domain.into(),
            uuid,
            guest_type: GuestType::Pvh,
            memory_kib: 131_072,
            cfg: None,
        },
        disks: Vec::new(),
    }
}

/// A libxl stream with nothing in it: its header, and a record that ends it.
const STREAM: &[u8] = b"LibxlFmt\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0";

/// An image without a guest's memory.
fn write_image(path: &Path, record: &Record) {
    let config = r#"{"c_info":{"name":"web1"}}"#;
    let mut record = record.clone();
    let space = header::record_space(&record);
    let length = header::encode(config, &record, space).unwrap().len() + STREAM.len();
    record.image_size = length as u64;
    let head = header::encode(config, &record, space).unwrap();
    fs::write(path, [&head, STREAM].concat()).unwrap();
}

/// `name<parent` and how that is known, of each snapshot.
fn descent(listing: &Listing) -> Vec<String> {
    let name = |id: Uuid| {
        let found = listing.snapshots.iter().find(|snapshot| snapshot.id == id);
        found.map_or("?".to_owned(), |snapshot| snapshot.name.clone())
    };
    let all = listing.snapshots.iter();
    all.map(|s| {
        let parent = s.parent.map_or("-".into(), name);
        format!("{}<{parent} {:?}", s.name, s.parent_by)
    })
    .collect()
}

fn current(listing: &Listing) -> (Option<&str>, DescentSource) {
    let domain = &listing.domains[0];
    let name = listing.snapshots.iter().find(|snapshot| snapshot.current);
    (name.map(|snapshot| snapshot.name.as_str()), domain.told)
}

fn all_good(listing: &Listing) {
    let bad: Vec<_> = listing.snapshots.iter().filter(|s| !s.why.is_empty()).collect();
    assert!(bad.is_empty(), "{bad:?}");
}

/// The example of the QEMU notes of 2010: a b c d, back to b, e.
#[test]
fn back_to_b_and_e_descends_from_b() {
    use How::{External, Internal};
    for (how, by) in [
        ([Internal, Internal], "Mark"),
        ([External, External], "Disks"),
        // The one that shows it tells for the other.
        ([Internal, External], "Disks"),
    ] {
        let mut host = Host::new(2);
        let mut records = Vec::new();
        for name in ["a", "b", "c", "d"] {
            records.push(host.create(name, &how));
        }
        assert_eq!(current(&host.list()).0, Some("d"));
        host.revert(&records[1]);
        let listing = host.list();
        assert_eq!(current(&listing).0, Some("b"), "{:?}", listing.domains);
        host.create("e", &how);
        let listing = host.list();
        all_good(&listing);
        let told = |child: &str, parent: &str| format!("{child}<{parent} {by}");
        let expected =
            ["a<- None".into(), told("b", "a"), told("c", "b"), told("d", "c"), told("e", "b")];
        assert_eq!(descent(&listing), expected);
        assert_eq!(current(&listing).0, Some("e"));
        // Again, to one further back.
        host.revert(&records[0]);
        assert_eq!(current(&host.list()).0, Some("a"));
    }
}

#[test]
fn the_tree_is_drawn() {
    let mut host = Host::new(1);
    let records = ["a", "b", "c", "d"].map(|name| host.create(name, &[How::Internal]));
    host.revert(&records[1]);
    host.create("e", &[How::Internal]);
    let text = list::Tree(&host.list()).to_string();
    let names: Vec<_> =
        text.lines().take(6).map(|line| line.split("  20").next().unwrap().to_owned()).collect();
    let expected = ["web1", "`-  a", "   `-  b", "      |-  c", "      |  `-  d", "      `-* e"];
    assert_eq!(names, expected, "{text}");
}

/// The same example with times, sizes and identities that do not change, and what else there may be.
fn fixed() -> Inventory {
    let at = |minute: i64| Timestamp::from_second(1_790_000_000 + 60 * minute).unwrap();
    let proof = |name: &str, minute: i64| QcowSnapshot {
        id: minute.to_string(),
        name: name.into(),
        date: at(minute),
    };
    let uuid = Uuid::from_u128(42);
    let mut images = Vec::new();
    let parents = [("a", None), ("b", Some(1)), ("c", Some(2)), ("d", Some(3)), ("e", Some(2))];
    for (minute, (name, parent)) in (1_i64..).zip(parents) {
        let disk = |vdev: &str, snapshot| DiskRecord {
            vdev: vdev.into(),
            path: "/srv/a.qcow2".into(),
            format: Some(Format::Qcow2),
            snapshot,
        };
        let internal =
            || DiskSnapshot::Internal(Internal { proof: Some(proof(name, minute)), bases: None });
        let none = || DiskSnapshot::None(LeftOut { why: "CD-ROM".into() });
        let record = Record {
            id: Uuid::from_u128(u128::from(minute.unsigned_abs())),
            parent: Some(parent.map_or(Parent::None, |id| Parent::Snapshot(Uuid::from_u128(id)))),
            quiesced: None,
            parent_by: Some(ParentSource::Mark),
            disks: vec![disk("xvda", internal()), disk("hdc", none())],
            ..record("web1", uuid, name, at(minute))
        };
        images.push(image_of(&format!("/kept/web1/{name}.xlsave"), record, 96 << 20));
    }
    let gone = DiskSnapshot::Internal(Internal {
        proof: Some(proof("before-the-upgrade", 9)),
        bases: None,
    });
    let gone = Record {
        id: Uuid::from_u128(9),
        disks_only: Some(DisksOnly::Offline),
        disks: vec![DiskRecord {
            vdev: "xvda".into(),
            path: "/srv/a.qcow2".into(),
            format: Some(Format::Qcow2),
            snapshot: gone,
        }],
        ..record("db1", Uuid::from_u128(43), "before-the-upgrade", at(9))
    };
    images.push(image_of("/kept/db1/x.record", gone, 4096));
    images.push(ImageEntry {
        path: "/kept/web1/cut.xlsave".into(),
        id: (1, 2),
        length: 4096,
        allocated: 4096,
        shared: None,
        peek: Ok(Peek::Foreign),
    });
    let mut inside: Vec<_> = (1..).zip(parents).map(|(at, (name, _))| proof(name, at)).collect();
    inside.push(proof("by-hand", 7));
    let facts = FileFacts {
        size: 1,
        mtime: at(0),
        inode: 1,
        lasting: true,
        device: 1,
        writable: true,
        merging: None,
    };
    let path = PathBuf::from("/srv/a.qcow2");
    let kind = FileKind::of_format(Some(Format::Qcow2));
    let link = Link { path: path.clone(), id: (1, 1), format: Format::Qcow2, header: None };
    let file = FileEntry {
        facts: Ok(facts),
        allocated: 1 << 20,
        device: None,
        link: Ok(link),
        inside: Ok(inside),
        mark: Some(list::mark::Mark { id: Uuid::from_u128(5), at: at(8) }),
        vhd: None,
    };
    let domains = vec![running("web1", uuid, std::slice::from_ref(&path))];
    Inventory {
        images,
        files: [((path, kind), file)].into(),
        volumes: Ok(Vec::new()),
        domains,
        strays: Vec::new(),
        unseen: Vec::new(),
    }
}

fn image_of(path: &str, record: Record, allocated: u64) -> ImageEntry {
    let record = Box::new(record);
    let peek = Ok(Peek::Snapshot { record, form: None, extent: Extent::Whole });
    ImageEntry {
        path: path.into(),
        id: (1, allocated),
        length: allocated,
        allocated,
        shared: None,
        peek,
    }
}

#[test]
fn what_people_see_has_not_changed() {
    let listing = list::list(&fixed(), &ListRequest::default());
    let all = list::list(&fixed(), &ListRequest { all: true, ..ListRequest::default() });
    let forms = [
        ("list.txt", listing.to_string()),
        ("list-all.txt", all.to_string()),
        ("list-tree.txt", list::Tree(&listing).to_string()),
        ("list-metrics.txt", list::metrics(&listing)),
    ];
    for (name, text) in forms {
        if name != "list-metrics.txt" {
            let longest = text.lines().map(|line| line.chars().count()).max().unwrap();
            assert!(longest <= 80, "{name}: {text}");
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        if env::var_os("BLESS").is_some() {
            fs::write(&path, &text).unwrap();
        }
        let golden = fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(text, golden, "{}: BLESS=1 writes it anew", path.display());
    }
}

#[test]
fn without_a_mark_or_a_record_of_it_dates_tell_and_it_is_said() {
    let mut host = Host::new(1);
    let records = ["a", "b", "c", "d"].map(|name| host.create_with(name, &[How::Internal], false));
    host.revert(&records[1]);
    // scp loses it.
    marks::clear(&host.disks[0]);
    assert_eq!(host.parent(), None);
    host.create_with("e", &[How::Internal], false);
    marks::clear(&host.disks[0]);
    let listing = host.list();
    let expected = ["a<- None", "b<a Dates", "c<b Dates", "d<c Dates", "e<d Dates"];
    assert_eq!(descent(&listing), expected);
    assert_eq!(current(&listing), (Some("e"), DescentSource::Dates));
    assert!(listing.to_string().contains("? web1"), "{listing}");
    assert!(list::Tree(&listing).to_string().contains("parent by date"));
}

#[test]
fn a_mark_is_not_believed_without_its_proof() {
    let mut host = Host::new(1);
    let a = host.create("a", &[How::Internal]);
    let b = host.create("b", &[How::Internal]);
    let mark = marks::of(&host.disks[0]).unwrap();
    assert_eq!(
        (mark.id, host.parent()),
        (b.id, Some((Parent::Snapshot(b.id), ParentSource::Mark)))
    );
    // Of before: b was taken since.
    marks::put(&host.disks[0], list::mark::Mark { id: a.id, at: a.created });
    assert_eq!(host.parent(), None);
    assert_eq!(current(&host.list()), (Some("b"), DescentSource::Dates));
    // Of a snapshot that is nowhere.
    marks::set(&host.disks[0], Uuid::new_v4());
    assert_eq!(host.parent(), None);
    // Of one that the file does not have, while it has others.
    let mut other = Host::new(1);
    let foreign = other.create("x", &[How::Internal]);
    write_image(&host.image("x"), &Record { ..foreign.clone() });
    marks::set(&host.disks[0], foreign.id);
    assert_eq!(host.parent(), None);
}

/// As create asks, with a configuration of libxl.
#[test]
fn create_finds_the_parent_among_its_own() {
    let mut host = Host::new(2);
    let a = host.create("a", &[How::Internal, How::External]);
    let disk = |vdev: &str, path: &Path| {
        serde_json::json!({
            "vdev": vdev, "pdev_path": path, "format": "qcow2", "readwrite": 1
        })
    };
    let disks = [disk("xvda", &host.disks[0]), disk("xvdb", &host.disks[1])];
    let config = serde_json::json!({
        "c_info": {"type": "pvh", "name": "web1", "uuid": host.uuid}, "disks": disks,
    });
    let config = DomainConfig::parse(&config.to_string()).unwrap();
    let parent = |disks: &[&str], directory: &Path| {
        let flags = Spec {
            memory: Some(host.kept().join("web1/new.xlsave")),
            disks: disks.iter().map(|disk| disk.parse().unwrap()).collect(),
            ..Spec::default()
        };
        let request = flags.request().unwrap();
        let job =
            Job::new(request, Timestamp::now(), Uuid::new_v4()).in_directory(directory.into());
        host::parent(&job, &config, "web1")
    };
    let of_a = |by| Some((Parent::Snapshot(a.id), by));
    assert_eq!(parent(&[], &host.kept()), of_a(ParentSource::Disks));
    assert_eq!(parent(&["xvdb,none"], &host.kept()), of_a(ParentSource::Mark));
    // The directory of the image is enough.
    assert_eq!(parent(&[], Path::new("/no/such")), of_a(ParentSource::Disks));
    fs::remove_file(host.image("a")).unwrap();
    assert_eq!(parent(&[], &host.kept()), None);
}

#[test]
fn disks_that_disagree_are_mixed() {
    let mut host = Host::new(2);
    let how = [How::External, How::External];
    let a = host.create("a", &how);
    let b = host.create("b", &how);
    host.revert(&a);
    let of_a = host.disks[0].clone();
    host.revert(&b);
    // Put back by hand.
    host.disks[0] = of_a;
    let listing = host.list();
    assert_eq!(current(&listing), (None, DescentSource::Differ));
    let mixed: Vec<_> = listing.domains[0].mixed.iter().map(|d| (d.vdev.as_str(), d.id)).collect();
    assert_eq!(mixed, [("xvda", Some(a.id)), ("xvdb", Some(b.id))]);
    assert!(
        listing.to_string().contains(
            "the disks of web1 continue from different snapshots: xvda from a, xvdb from b"
        )
    );
    assert_eq!(host.parent(), None);
}

#[test]
fn a_disk_that_was_left_out_says_nothing_against_it() {
    use How::{External, Internal, Not};
    let mut host = Host::new(2);
    host.create("a", &[External, External]);
    let b = host.create("b", &[External, Not]);
    host.create("c", &[External, External]);
    // xvdb shows a, of xvda only the record of c knows b.
    host.create("d", &[Internal, Internal]);
    host.create("e", &[Internal, Not]);
    host.create("f", &[Not, Internal]);
    let listing = host.list();
    all_good(&listing);
    let descent = descent(&listing);
    assert_eq!(descent[..3], ["a<- None", "b<a Disks", "c<b Disks"]);
    assert_eq!(descent[3..], ["d<c Disks", "e<d Mark", "f<e Mark"]);
    assert_eq!(listing.snapshots[2].parent, Some(b.id));
}

#[test]
fn external_on_internal_and_internal_on_external() {
    use How::{External, Internal};
    let mut host = Host::new(1);
    let a = host.create("a", &[Internal]);
    host.create("b", &[External]);
    host.create("c", &[Internal]);
    host.create("d", &[External]);
    let listing = host.list();
    all_good(&listing);
    assert_eq!(descent(&listing), ["a<- None", "b<a Mark", "c<b Disks", "d<c Mark"]);
    assert_eq!(current(&listing), (Some("d"), DescentSource::Disks));
    // What the file below has inside is not what lies below.
    host.disks[0] = a.disks[0].path.clone();
    assert_eq!(current(&host.list()).0, Some("b"));
}

#[test]
fn what_is_renamed_or_copied_is_found() {
    let mut host = Host::new(1);
    let a = host.create("a", &[How::Internal]);
    host.create("b", &[How::Internal]);
    host.revert(&a);
    // The disk's file, with its domain.
    let renamed = host.directory.path().join("renamed.qcow2");
    fs::rename(&host.disks[0], &renamed).unwrap();
    host.disks[0] = renamed.clone();
    let listing = host.list();
    assert_eq!(current(&listing), (Some("a"), DescentSource::Mark));
    assert!(listing.snapshots.iter().all(|s| s.why[0].contains("No such file")), "{listing}");
    fs::rename(&renamed, &a.disks[0].path).unwrap();
    host.disks[0] = a.disks[0].path.clone();

    // An image: it is known by its record.
    fs::rename(host.image("a"), host.image("z")).unwrap();
    fs::copy(host.image("b"), host.image("c")).unwrap();
    fs::copy(host.image("b"), host.kept().join("b.xlsave")).unwrap();
    fs::hard_link(host.image("z"), host.image("y")).unwrap();
    let listing = host.list();
    all_good(&listing);
    assert_eq!(descent(&listing), ["a<- None", "b<a Mark"]);
    let kinds: Vec<_> = listing.others.iter().map(|o| (format!("{:?}", o.kind), &*o.why)).collect();
    let copies = kinds.iter().filter(|(kind, _)| kind == "Copy").count();
    assert_eq!(copies, 3, "{kinds:?}");
    assert!(kinds.iter().any(|(_, why)| why.starts_with("it is another name of")), "{kinds:?}");

    // A copy of the disk, of another domain.
    let copy = host.directory.path().join("copy.qcow2");
    fs::copy(&host.disks[0], &copy).unwrap();
    let web2 = running("web2", Uuid::from_u128(43), std::slice::from_ref(&copy));
    marks::put(&copy, marks::of(&host.disks[0]).unwrap());
    let seen = host.seen(vec![host.running(), web2]);
    let listing = list::list(&seen, &ListRequest::default());
    assert_eq!(listing.domains[1].clone_of, Some(a.id));
    assert!(listing.to_string().contains("web2 is a clone of web1/a"), "{listing}");
}

#[test]
fn a_clone_and_its_own_snapshots() {
    let mut host = Host::new(1);
    let a = host.create("a", &[How::External]);
    let overlay = host.directory.path().join("web2-xvda.qcow2");
    overlay_on(&a.disks[0].path, &overlay);
    let uuid = Uuid::from_u128(43);
    let web2 = running("web2", uuid, std::slice::from_ref(&overlay));
    let seen = host.seen(vec![host.running(), web2.clone()]);
    let listing = list::list(&seen, &ListRequest::default());
    assert_eq!(listing.domains[1].clone_of, Some(a.id));
    assert!(listing.snapshots[0].current, "of web1");
    // A snapshot of the clone.
    let alone = host.seen(vec![web2.clone()]);
    assert_eq!(list::parent_of_now(&alone), Some((Parent::Snapshot(a.id), ParentSource::Disks)));
    qemu_img(&["snapshot", "-q", "-c", "s", overlay.to_str().unwrap()]);
    let proof = snapshots(&overlay).pop();
    let taken = Record {
        parent: Some(Parent::Snapshot(a.id)),
        quiesced: None,
        parent_by: Some(ParentSource::Disks),
        disks: vec![DiskRecord {
            vdev: "xvda".into(),
            path: overlay,
            format: Some(Format::Qcow2),
            snapshot: DiskSnapshot::Internal(Internal { proof, bases: None }),
        }],
        ..record("web2", uuid, "s", Timestamp::now())
    };
    fs::create_dir(host.kept().join("web2")).unwrap();
    write_image(&host.kept().join("web2/s.xlsave"), &taken);
    marks::set_all(&taken);
    let seen = host.seen(vec![host.running(), web2]);
    let listing = list::list(&seen, &ListRequest::default());
    assert_eq!(descent(&listing), ["a<- None", "s<a Disks"]);
    assert!(list::Tree(&listing).to_string().contains("good, from web1/a"));
    assert!(listing.snapshots.iter().all(|snapshot| snapshot.current));
    let only = ListRequest { domains: vec!["web2".into()], all: true };
    let listing = list::list(&seen, &only);
    assert_eq!(listing.snapshots.len(), 1);
}

#[test]
fn a_clone_and_its_snapshots_hold_all_that_lies_below_them() {
    let mut host = Host::new(2);
    let how = [How::External, How::Internal];
    let a = host.create("a", &how);
    let b = host.create("b", &how);
    let c = host.create("c", &how);
    let uuid = Uuid::from_u128(43);
    let clone = |name: &str| {
        let overlay = host.directory.path().join(name);
        overlay_on(&b.disks[0].path, &overlay);
        running("web2", uuid, &[overlay])
    };
    let web2 = clone("web2-xvda.qcow2");
    let held = |domains| list::holders(&host.seen(domains)).into_iter().collect::<Vec<_>>();
    // Its own domain rests on them as well, which is no reason.
    assert_eq!(held(vec![host.running()]), []);
    let both = |who: &[&str]| {
        let who = || who.iter().map(|who| (*who).to_owned()).collect();
        let mut both = vec![(a.id, who()), (b.id, who())];
        both.sort();
        both
    };
    assert_eq!(held(vec![host.running(), web2.clone()]), both(&["web2"]));
    // A snapshot of the clone, which does not run.
    let proof = FrozenFile {
        virtual_size: 1 << 20,
        file_size: 1,
        mtime: Timestamp::now(),
        inode: fs::metadata(&web2.disks[0].path).unwrap().ino(),
    };
    let taken = Record {
        disks: vec![DiskRecord {
            vdev: "xvda".into(),
            path: web2.disks[0].path.clone(),
            format: Some(Format::Qcow2),
            snapshot: DiskSnapshot::External(External {
                overlay: "/no/such".into(),
                proof: Some(proof),
            }),
        }],
        ..record("web2", uuid, "s", Timestamp::now())
    };
    fs::create_dir(host.kept().join("web2")).unwrap();
    write_image(&host.kept().join("web2/s.xlsave"), &taken);
    assert_eq!(held(vec![host.running()]), both(&["web2/s"]));
    assert_eq!(held(vec![web2]), both(&["web2", "web2/s"]));
    assert!(host.list().snapshots.iter().any(|snapshot| snapshot.id == c.id));
}

#[test]
fn what_is_gone_or_changed_is_told() {
    let mut host = Host::new(2);
    host.create("a", &[How::Internal, How::Internal]);
    let b = host.create("b", &[How::External, How::Internal]);
    let state = |host: &Host, name: &str| {
        let listing = host.list();
        let snapshot = listing.snapshots.iter().find(|snapshot| snapshot.name == name).unwrap();
        (format!("{:?}", snapshot.state), snapshot.why.join("; "))
    };
    assert_eq!(state(&host, "b").0, "Good");
    let d1 = b.disks[1].path.to_str().unwrap().to_owned();
    qemu_img(&["snapshot", "-q", "-d", "b", &d1]);
    assert_eq!(state(&host, "b").1, "xvdb: its snapshot b no longer exists");
    qemu_img(&["snapshot", "-q", "-c", "b", &d1]);
    assert!(state(&host, "b").1.starts_with("xvdb: its snapshot b is another one, of 20"));
    let listing = host.list();
    let alone = listing.others.iter().find(|other| other.name.as_deref() == Some("b")).unwrap();
    assert!(alone.why.starts_with("a snapshot of this disk alone"), "{alone:?}");
    let frozen = &b.disks[0].path;
    qemu_img(&["bitmap", "--add", frozen.to_str().unwrap(), "b0"]);
    assert!(state(&host, "b").1.starts_with("xvda: it was written to since, at 20"));
    assert!(state(&host, "a").1.contains("1 dirty bitmap"), "{:?}", state(&host, "a"));
    fs::remove_file(frozen).unwrap();
    assert!(state(&host, "b").1.contains("No such file"));
    let image = host.image("a");
    let length = fs::metadata(&image).unwrap().len();
    fs::File::options().write(true).open(&image).unwrap().set_len(length - 1).unwrap();
    assert!(state(&host, "a").1.contains("its image: It is"), "{:?}", state(&host, "a"));
}

#[test]
fn whatever_lies_there_is_shown_and_nothing_is_opened_that_waits() {
    let mut host = Host::new(1);
    let a = host.create("a", &[How::Internal]);
    let kept = host.kept();
    let path = |name: &str| kept.join("web1").join(name);
    mkfifo(&path("fifo.xlsave"), Mode::S_IRWXU).unwrap();
    symlink("/dev/zero", path("zero.xlsave")).unwrap();
    symlink("/proc/kmsg", path("kmsg.xlsave")).unwrap();
    symlink("/no/such", path("dangling")).unwrap();
    symlink(path("loop"), path("loop")).unwrap();
    symlink("a.xlsave", path("link.xlsave")).unwrap();
    symlink(&kept, path("up")).unwrap();
    fs::write(path("notes.txt"), "notes").unwrap();
    fs::write(path("empty.xlsave"), "").unwrap();
    fs::write(path("garbage.xlsave"), [7; 5000]).unwrap();
    let bytes = fs::read(host.image("a")).unwrap();
    fs::write(path("cut.xlsave"), &bytes[..300]).unwrap();
    let text = String::from_utf8_lossy(&bytes[..4000]).into_owned();
    assert!(text.contains("name = \"a\""));
    let mut damaged = bytes.clone();
    let at = bytes.windows(8).position(|part| part == b"name = \"").unwrap();
    damaged[at..at + 8].copy_from_slice(b"name = \x1b");
    fs::write(path("damaged.xlsave"), damaged).unwrap();
    fs::write(path("plain.xlsave"), header::encode_plain("{}").unwrap()).unwrap();
    let unfinished = Record { complete: false, image_size: 1, id: Uuid::new_v4(), ..a.clone() };
    let head = header::encode("{}", &unfinished, header::record_space(&unfinished)).unwrap();
    fs::write(path("b.xlsave.partial"), head).unwrap();
    let twin = Record { id: Uuid::new_v4(), ..a.clone() };
    write_image(&path("twin.xlsave"), &twin);

    let listing = host.list();
    let names: Vec<_> = listing.snapshots.iter().map(|s| (s.name.as_str(), s.id)).collect();
    assert!(names.contains(&("a", a.id)) && names.contains(&("a", twin.id)), "{names:?}");
    assert_eq!(names.len(), 2);
    let mut kinds: Vec<_> = listing
        .others
        .iter()
        .map(|other| {
            let file = other.path.file_name().unwrap().to_string_lossy().into_owned();
            format!("{:?} {file}", other.kind)
        })
        .collect();
    kinds.sort();
    let expected = [
        "Collision twin.xlsave",
        "Copy link.xlsave",
        "Damaged cut.xlsave",
        "Damaged damaged.xlsave",
        "Damaged empty.xlsave",
        "Damaged fifo.xlsave",
        "Damaged garbage.xlsave",
        "Damaged kmsg.xlsave",
        "Damaged zero.xlsave",
        "Foreign dangling",
        "Foreign loop",
        "Foreign notes.txt",
        "Leftover b.xlsave.partial",
        "SaveFile plain.xlsave",
    ];
    assert_eq!(kinds, expected);
    for text in [listing.to_string(), list::Tree(&listing).to_string()] {
        assert!(!text.contains('\x1b'), "{text:?}");
    }
    let less = list::list(&host.seen(Vec::new()), &ListRequest::default());
    assert_eq!((less.others.len(), less.hidden), (8, 6));
}

#[test]
fn lists_in_qcow2_files_are_those_of_qemu_img() {
    let host = Host::new(1);
    let path = &host.disks[0];
    let text = path.to_str().unwrap();
    for number in 0..20 {
        qemu_img(&["snapshot", "-q", "-c", &format!("s-{}", "x".repeat(number * 12)), text]);
    }
    qemu_img(&["snapshot", "-q", "-d", "s-xxxxxxxxxxxx", text]);
    let seen = host.seen(vec![host.running()]);
    let file = seen.files.values().next().unwrap();
    assert_eq!(file.inside.as_ref().unwrap(), &snapshots(path));
}

fn program(args: &[&str], kept: &Path) -> Output {
    let mut command = Command::new(PROGRAM);
    command.args(args).env_clear().env("XL_SNAPSHOT_DIR", kept).stdin(Stdio::null());
    command.output().unwrap()
}

fn prints(args: &[&str], kept: &Path) -> String {
    let output = program(args, kept);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{args:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn domain_and_name_are_a_snapshot_wherever_one_is() {
    let mut host = Host::new(1);
    host.create("a", &[How::Internal]);
    host.create("b", &[How::Internal]);
    let kept = host.kept();
    let show = |name: &str| -> Value {
        serde_json::from_str(&prints(&["show", "--json", name], &kept)).unwrap()
    };
    let image = |name: &str| host.image(name).to_str().unwrap().to_owned();
    assert_eq!(show("web1/a")["image"], image("a"));
    // Whatever its file is called.
    fs::rename(host.image("a"), host.image("z")).unwrap();
    assert_eq!(show("web1/a")["image"], image("z"));
    // A copy is the same one, and that of the usual name comes first.
    fs::copy(host.image("b"), host.image("a")).unwrap();
    assert_eq!(show("web1/b")["image"], image("b"));
    let refused = |name: &str, words: &str| {
        let output = program(&["show", name], &kept);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(3), "{errors}");
        assert!(errors.contains(words), "{errors}");
    };
    refused("web1/c", "has no snapshot c of web1");
    refused("web1/c", "hint:  list them: xl-snapshot list web1");
    refused("web2/a", "has no snapshot a of web2");
    let other = record("web1", host.uuid, "b", Timestamp::now());
    write_image(&host.image("other"), &other);
    refused("web1/b", "web1/b names several snapshots");
    refused("./web1/a", "No such file");
    // A file comes first.
    let mut command = Command::new(PROGRAM);
    command.args(["show", "--json", "web1/b.xlsave"]).env_clear().current_dir(&kept);
    let output = command.output().unwrap();
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["image"], "web1/b.xlsave");
}

#[test]
fn the_command_line_of_list() {
    let mut host = Host::new(1);
    host.create("a", &[How::Internal]);
    let kept = host.kept();
    let table = prints(&["list"], &kept);
    assert!(table.lines().next().unwrap().starts_with("  DOMAIN  NAME"), "{table}");
    assert!(table.contains("\n  web1    a     20") && table.contains("good"), "{table}");
    assert!(prints(&["list", "--tree", "web1"], &kept).starts_with("web1\n`-  a  20"));
    let json: Value = serde_json::from_str(&prints(&["list", "--json", "--all"], &kept)).unwrap();
    assert_eq!(json["snapshots"][0]["name"], "a");
    let text = prints(&["list", "--metrics"], &kept);
    assert!(text.contains("\nxl_snapshot_count{domain=\"web1\"} 1\n"));
    // Of a domain without snapshots, and of a directory.
    assert!(!prints(&["list", "web2"], &kept).contains("web1"));
    let directory = format!("{}/", kept.display());
    assert_eq!(prints(&["list", &directory], Path::new("/nowhere")), table);
    for args in [["list", "web1"], ["show", "web1/a"], ["list", "--metrics"]] {
        let output = program(&args, Path::new("/no/such"));
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(3), "{errors}");
        assert!(
            errors.contains("XL_SNAPSHOT_DIR=/no/such: There is no such directory"),
            "{errors}"
        );
    }
    for wrong in [["list", "./none"], ["list", "/no/such/"]] {
        assert_eq!(program(&wrong, &kept).status.code(), Some(3));
    }
    for wrong in [["list", "--tree", "--json"], ["list", "--metrics", "--all"]] {
        assert_eq!(program(&wrong, &kept).status.code(), Some(2));
    }
}

/// A thousand images of twenty domains: half of them internal snapshots, 50 in a file, half external ones, 50
/// on each other.
#[test]
fn a_thousand_images_take_less_than_a_second_and_64_mib() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let top = directory.path();
    let kept = top.join("kept");
    let many = top.join("many.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", many.to_str().unwrap(), "1M"]);
    for number in 0..50 {
        qemu_img(&["snapshot", "-q", "-c", &format!("s{number}"), many.to_str().unwrap()]);
    }
    let inside = snapshots(&many);
    for domain in 0..20_u32 {
        let name = format!("web{domain}");
        fs::create_dir_all(kept.join(&name)).unwrap();
        let uuid = Uuid::from_u128(u128::from(domain) + 1);
        let disk = top.join(format!("{name}.qcow2"));
        fs::copy(&many, &disk).unwrap();
        for number in 0..50_u32 {
            let image = format!("s{number}");
            let at = Timestamp::from_second(1_790_000_000 + i64::from(number)).unwrap();
            let file = |number| top.join(format!("{name}-xvda.{number}.qcow2"));
            let (path, snapshot) = if domain < 10 {
                let proof = inside.iter().find(|entry| entry.name == image).cloned();
                (disk.clone(), DiskSnapshot::Internal(Internal { proof, bases: None }))
            } else {
                if number == 0 {
                    write_overlay(&file(0), None, at);
                }
                write_overlay(&file(number + 1), Some(&file(number)), at);
                let facts = files::facts(&file(number)).unwrap();
                let proof = FrozenFile {
                    virtual_size: 1 << 20,
                    file_size: facts.size,
                    mtime: facts.mtime,
                    inode: facts.inode,
                };
                (
                    file(number),
                    DiskSnapshot::External(External {
                        overlay: file(number + 1),
                        proof: Some(proof),
                    }),
                )
            };
            let disk =
                DiskRecord { vdev: "xvda".into(), path, format: Some(Format::Qcow2), snapshot };
            let record = Record { disks: vec![disk], ..record(&name, uuid, &image, at) };
            write_image(&kept.join(&name).join(format!("{image}.xlsave")), &record);
        }
    }
    // Once for the disk's cache.
    let first = prints(&["list", "--json"], &kept);
    let listing: Value = serde_json::from_str(&first).unwrap();
    let snapshots = listing["snapshots"].as_array().unwrap();
    assert_eq!(snapshots.len(), 1000);
    let bad: Vec<_> = snapshots.iter().filter(|s| s["state"] != "good").take(1).collect();
    assert!(bad.is_empty(), "{bad:?}");
    let by_disks = snapshots.iter().filter(|s| s["parent_by"] == "disks").count();
    assert_eq!(by_disks, 490);
    let mut best = Duration::MAX;
    for args in [["list", "--json"], ["list", "--tree"], ["list", "--all"], ["list", "--metrics"]] {
        let started = Instant::now();
        prints(&args, &kept);
        best = best.min(started.elapsed());
    }
    // Not optimised, it is another program.
    let limit = if cfg!(debug_assertions) { 10 } else { 1 };
    assert!(best < Duration::from_secs(limit), "{best:?}");
    let most = peak(&["list", "--json"], &kept);
    println!("{best:?}, {most} KiB");
    assert!(most < 64 << 10, "{most} KiB");
}

/// The most memory that the program had at once, in KiB. Not by getrusage(2), which counts what this process has
/// as that of its children, until they are another program.
fn peak(args: &[&str], kept: &Path) -> u64 {
    let mut command = Command::new(PROGRAM);
    command.args(args).env_clear().env("XL_SNAPSHOT_DIR", kept);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        // None of one that has just ended.
        let now = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
        most = most.max(now.unwrap_or(0));
        sleep(Duration::from_millis(1));
    }
    assert!(most > 0);
    most
}

/// A qcow2 file as far as its header goes.
fn write_overlay(path: &Path, below: Option<&Path>, at: Timestamp) {
    let mut bytes = vec![0; 4096];
    let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
    put(0, b"QFI\xfb");
    put(4, &3_u32.to_be_bytes());
    put(20, &16_u32.to_be_bytes());
    put(24, &(1_u64 << 20).to_be_bytes());
    put(100, &104_u32.to_be_bytes());
    if let Some(below) = below {
        let name = below.to_str().unwrap().as_bytes();
        put(8, &600_u64.to_be_bytes());
        put(16, &u32::try_from(name.len()).unwrap().to_be_bytes());
        put(104, &0xe279_2aca_u32.to_be_bytes());
        put(108, &5_u32.to_be_bytes());
        put(112, b"qcow2");
        put(600, name);
    }
    fs::write(path, bytes).unwrap();
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(at.into()).unwrap();
}
