//! Deleting snapshots of a domain that does not run, with the real qemu-img and real files: every other
//! snapshot stays good and keeps its content, wherever the deletion is cut short, and the next one ends it.

#![expect(clippy::unwrap_used, reason = "a test's helpers may end the test")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use uuid::Uuid;
use xl_snapshot::delete::{self, Seen};
use xl_snapshot::disk::family::Wishes;
use xl_snapshot::disk::kind::Content;
use xl_snapshot::disk::kinds::{External, Internal};
use xl_snapshot::domain::{DomainConfig, Format, GuestType};
use xl_snapshot::error::Result;
use xl_snapshot::host::deletion::{self, steps};
use xl_snapshot::host::libxl::XlCfg;
use xl_snapshot::host::{cfg, command, files, image, list as host, rewrites, tools};
use xl_snapshot::list::{self, Asked, State};
use xl_snapshot::memory::deleting_path;
use xl_snapshot::memory::header::{self, Header, MARK, record_space};
use xl_snapshot::plan::{Plan, Step};
use xl_snapshot::record::{
    DiskRecord, DisksOnly, DomainRecord, FrozenFile, Kept, Parent, QcowSnapshot, Record, VERSION,
};
use xl_snapshot::tool::{Invocation, Tool};

/// So that qemu-img has little to do.
const SIZE: u64 = 16 * UNIT;
const UNIT: u64 = 64 << 10;

/// A domain with one disk, its snapshots, and what each of them holds.
struct Place {
    directory: tempfile::TempDir,
    content: BTreeMap<String, Vec<u8>>,
    top: PathBuf,
    format: Format,
    next: u8,
}

fn run(tool: Tool, args: &[&str]) {
    command::run(&Invocation::new(tool, args)).unwrap();
}

/// The raw content of an image, or of a snapshot inside of it.
fn content(path: &Path, format: Format, inside: Option<&str>) -> Vec<u8> {
    let raw = tempfile::NamedTempFile::new().unwrap();
    let mut call = Invocation::new(Tool::QemuImg, ["convert", "-f", format.qemu(), "-O", "raw"]);
    if let Some(id) = inside {
        call = call.arg("-l").arg(format!("snapshot.id={id}"));
    }
    command::run(&call.arg(path).arg(raw.path())).unwrap();
    fs::read(raw.path()).unwrap()
}

impl Place {
    /// A disk whose first image is raw, and has so many units of content.
    fn new(units: u64) -> Place {
        // The file system must have extended attributes.
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let top = directory.path().join("disks/a.img");
        fs::create_dir(directory.path().join("disks")).unwrap();
        fs::create_dir(directory.path().join("snapshots")).unwrap();
        fs::File::create(&top).unwrap().set_len(SIZE).unwrap();
        let format = Format::Raw;
        let mut place = Place { directory, content: BTreeMap::new(), top, format, next: 1 };
        place.write(0, units);
        place.write_cfg();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn cfg(&self) -> PathBuf {
        self.path("web1.cfg")
    }

    fn write_cfg(&self) {
        let top = self.top.display();
        let text = format!(
            "name = 'web1'\ndisk = ['format={},vdev=xvda,access=rw,target={top}']\n",
            self.format.name()
        );
        fs::write(self.cfg(), text).unwrap();
    }

    /// The guest writes: from a unit on, so many.
    fn write(&mut self, at: u64, units: u64) {
        let (path, pattern) = (self.top.clone(), self.next);
        self.next += 1;
        // Through a raw file of the same content, as there is no guest.
        let mut bytes = content(&path, self.format, None);
        let range =
            usize::try_from(at * UNIT).unwrap()..usize::try_from((at + units) * UNIT).unwrap();
        bytes[range].fill(pattern);
        let raw = self.path("write.raw");
        fs::write(&raw, bytes).unwrap();
        if self.format == Format::Raw {
            fs::copy(&raw, &path).unwrap();
        } else {
            let below = files::facts(&path).unwrap();
            assert!(below.writable);
            self.overwrite(&path, at, units, pattern);
        }
        fs::remove_file(raw).unwrap();
    }

    #[expect(clippy::disallowed_methods, reason = "qemu-io writes as a guest does")]
    fn overwrite(&self, path: &Path, at: u64, units: u64, pattern: u8) {
        let write = format!("write -P {pattern} {} {}", at * UNIT, units * UNIT);
        let status = std::process::Command::new("qemu-io")
            .args(["-f", "qcow2", "-c", &write])
            .arg(path)
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
    }

    fn image(&self, name: &str) -> PathBuf {
        self.path("snapshots").join(format!("{name}.xlsave"))
    }

    fn record(&self, name: &str, snapshot: Kept) -> Record {
        Record {
            version: VERSION,
            complete: true,
            name: name.parse().unwrap(),
            id: Uuid::new_v4(),
            created: Timestamp::now(),
            description: String::new(),
            live: false,
            disks_only: None,
            writer: "test".into(),
            xen: "4.17".into(),
            image_size: 0,
            parent: None,
            parent_by: None,
            domain: DomainRecord {
                name: "web1".into(),
                uuid: Uuid::from_u128(7),
                guest_type: GuestType::Pv,
                memory_kib: 1024,
                cfg: Some(self.cfg()),
            },
            disks: vec![DiskRecord {
                vdev: "xvda".into(),
                path: self.top.clone(),
                format: Some(self.format),
                snapshot,
            }],
        }
    }

    /// Some are in images, some in files of their own.
    fn save(&mut self, name: &str, mut record: Record, bytes: Vec<u8>) -> Uuid {
        let id = record.id;
        if name.ends_with('r') {
            record.disks_only = Some(DisksOnly::Offline);
            fs::write(self.image(name), MARK.to_owned() + &record.to_toml()).unwrap();
        } else {
            let memory = vec![7; 4096];
            let disk = &record.disks[0];
            let config = format!(
                r#"{{"c_info": {{"name": "web1"}}, "disks": [{{"vdev": "{}", "pdev_path": "{}", "format": "{}"}}]}}"#,
                disk.vdev,
                disk.path.display(),
                disk.format.unwrap().name()
            );
            let mut space = record.clone();
            space.image_size = 1 << 40;
            let space = record_space(&space);
            let header = header::encode(&config, &record, space).unwrap();
            record.image_size = (header.len() + memory.len()) as u64;
            let header = header::encode(&config, &record, space).unwrap();
            fs::write(self.image(name), [header, memory].concat()).unwrap();
        }
        self.content.insert(name.to_owned(), bytes);
        id
    }

    /// An external snapshot: the guest goes on in an overlay.
    fn external(&mut self, name: &str, parent: Option<Uuid>) -> Uuid {
        let overlay = self.path("disks").join(format!("web1-xvda.after-{name}.qcow2"));
        let (base, new) = (self.top.display().to_string(), overlay.display().to_string());
        let format = self.format.qemu();
        let size = SIZE.to_string();
        run(
            Tool::QemuImg,
            &["create", "-q", "-u", "-f", "qcow2", "-F", format, "-b", &base, &new, &size],
        );
        files::protect(&self.top).unwrap();
        let facts = files::facts(&self.top).unwrap();
        let proof = FrozenFile {
            virtual_size: SIZE,
            file_size: facts.size,
            mtime: facts.mtime,
            inode: facts.inode,
        };
        let kept = External { overlay: overlay.clone(), proof: Some(proof) };
        let mut record = self.record(name, kept.into());
        record.parent = parent.map(Parent::Snapshot);
        let bytes = content(&self.top, self.format, None);
        let id = self.save(name, record, bytes);
        (self.top, self.format) = (overlay, Format::Qcow2);
        self.write_cfg();
        id
    }

    fn internal(&mut self, name: &str) -> Uuid {
        run(Tool::QemuImg, &["snapshot", "-q", "-c", name, &self.top.display().to_string()]);
        let info = tools::image(&self.top, Format::Qcow2).unwrap();
        let proof: QcowSnapshot = info.snapshots().into_iter().find(|s| s.name == name).unwrap();
        let record = self.record(name, Internal { proof: Some(proof) }.into());
        let bytes = content(&self.top, self.format, None);
        self.save(name, record, bytes)
    }

    fn seen(&self, name: &str) -> Result<Seen> {
        let named = deletion::named(&self.image(name))?;
        deletion::look(None, &named, self.path("snapshots"))
    }

    fn plan(&self, name: &str, flatten: bool) -> Result<Plan> {
        let seen = self.seen(name)?;
        let disks = delete::disks(&seen, Wishes { flatten })?;
        let switches: Vec<_> = disks.iter().flat_map(|disk| &disk.switches).collect();
        let keep = format!("x{}", Uuid::new_v4().simple());
        let cfgs = rewrites::files_for_delete(&switches, &keep)?;
        let rewrites = delete::Rewrites { cfgs, stored: Vec::new() };
        delete::plan(&seen, &disks, &rewrites)
    }

    /// Every snapshot but one is good, has its content, and so has the disk of the domain.
    fn check(&self, but: &str, current: &[u8], context: &str) {
        let mut unseen = Vec::new();
        let directory = [self.path("snapshots")];
        let images = host::images(&directory, &[], &mut unseen).unwrap();
        let seen = host::look(images, Vec::new(), Vec::new(), false);
        let listing = list::list(&seen, &Asked::default());
        for (name, bytes) in self.content.iter().filter(|(name, _)| *name != but) {
            let found = listing.snapshots.iter().find(|snapshot| snapshot.name == *name);
            let snapshot = found.unwrap_or_else(|| panic!("{context}: {name} is gone"));
            assert_eq!(snapshot.state, State::Good, "{context}: {name}: {:?}", snapshot.why);
            let record = image::rewrite::read(&self.image(name)).unwrap();
            let disk = &record.disks[0];
            // The domain is restored with the disks of its configuration.
            if record.image_size > 0 {
                let header = Header::read(&mut File::open(self.image(name)).unwrap()).unwrap();
                let disks = DomainConfig::parse(&header.config).unwrap().disks().unwrap();
                assert_eq!(disks[0].file(), disk.path, "{context}: {name}");
            }
            let inside = match disk.snapshot.kind().content() {
                Content::Inside(proof) => Some(proof.unwrap().id.clone()),
                _ => None,
            };
            let now = content(&disk.path, disk.format.unwrap(), inside.as_deref());
            assert!(now == *bytes, "{context}: {name} has another content");
        }
        let (path, format) = self.now();
        assert!(content(&path, format, None) == current, "{context}: the disk has another content");
    }

    /// The disk as the configuration file names it.
    fn now(&self) -> (PathBuf, Format) {
        let cfg = XlCfg::open(&self.cfg()).unwrap();
        let disk = cfg.disks().unwrap().remove(0);
        let format = if disk.format == "raw" { Format::Raw } else { Format::Qcow2 };
        (disk.pdev_path.unwrap().into(), format)
    }

    fn images(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("disks")).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// Carries out the first steps of a plan.
fn carry_out(plan: &Plan, steps: usize) {
    plan.prepare.iter().chain(&plan.commit).chain(&plan.onward).take(steps).for_each(perform);
}

fn perform(step: &Step) {
    match step {
        Step::Delete(deletion) => {
            let mut run = |call: &Invocation, _: Option<(&Path, u64)>| {
                command::run(call).unwrap();
                Ok(())
            };
            steps::perform(deletion, &mut run).expect("nobody runs").unwrap();
        }
        Step::RemoveFile { path } => files::remove(path).unwrap(),
        Step::ReplaceCfg(replace) => cfg::replace(replace).unwrap(),
        Step::CheckDown { .. } => {}
        other => panic!("{other}"),
    }
}

/// How a chain is made: the size of the first image, and of what is written after each snapshot, in units.
type Sizes = [u64; 4];

/// `a <- one <- two <- three`: three snapshots, the second one in a file of its own.
fn chain(sizes: Sizes) -> Place {
    let mut place = Place::new(sizes[0]);
    let mut parent = None;
    for (name, units) in ["one", "twor", "three"].iter().zip(&sizes[1..]) {
        parent = Some(place.external(name, parent));
        place.write(sizes[0] / 2, *units);
    }
    place
}

#[test]
fn any_of_three_is_deleted_wherever_it_is_cut_short() {
    // Where a commit moves less, and where a stream does.
    for sizes in [[8, 1, 2, 3], [1, 3, 2, 1]] {
        for name in ["one", "twor", "three"] {
            let place = chain(sizes);
            let (path, format) = place.now();
            let current = content(&path, format, None);
            let left = [place.image(name), deleting_path(&place.image(name))];
            // Each time it is begun anew, and comes one step further.
            let mut steps = 0;
            while left.iter().any(|path| path.exists()) {
                let context = format!("{sizes:?}, {name} killed after {steps} steps");
                let plan = place.plan(name, false);
                let plan = plan.unwrap_or_else(|error| panic!("{context}: {:?}", error.chain()));
                carry_out(&plan, steps);
                place.check(name, &current, &context);
                steps += 1;
                assert!(steps < 50, "{context}: it does not end");
            }
            for path in place.images() {
                let path = place.path("disks").join(path);
                assert_eq!(files::merging::of(&path), None, "{}", path.display());
            }
            // One file less, but for the user's own first one after a stream from it.
            let kept = place.images().len() == 4;
            assert!(!kept || (name == "one" && place.images()[0] == "a.img"), "{sizes:?}, {name}");
        }
    }
}

#[test]
fn all_are_deleted_in_any_order() {
    for order in [["one", "twor", "three"], ["three", "twor", "one"], ["twor", "one", "three"]] {
        let mut place = chain([2, 2, 2, 2]);
        let (path, format) = place.now();
        let current = content(&path, format, None);
        for name in order {
            let plan = place.plan(name, false).unwrap();
            carry_out(&plan, usize::MAX);
            place.content.remove(name);
            place.check("", &current, &format!("{order:?}, {name}"));
        }
        assert!(place.images().len() <= 2, "{:?}", place.images());
    }
}

#[test]
fn internal_snapshots_in_a_base_survive_and_in_an_overlay_forbid_a_merge() {
    let mut place = chain([1, 1, 1, 1]);
    place.internal("inside");
    place.write(9, 1);
    let (path, format) = place.now();
    let current = content(&path, format, None);
    let error = place.plan("three", false).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.chain().join(": ").contains("has internal snapshots"), "{:?}", error.chain());
    // The file with the internal snapshot is frozen, and then gets what its overlay holds.
    let top = place.top.clone();
    place.external("four", None);
    place.write(10, 1);
    let (path, format) = place.now();
    let last = content(&path, format, None);
    carry_out(&place.plan("four", false).unwrap(), usize::MAX);
    place.content.remove("four");
    place.check("", &last, "four");
    (place.top, place.format) = place.now();
    assert_eq!(place.top, top);
    // In a base, it can be deleted although younger snapshots are proven by that.
    place.external("five", None);
    for steps in 1..20 {
        if let Ok(plan) = place.plan("inside", false) {
            carry_out(&plan, steps);
            place.check("inside", &last, &format!("inside, {steps}"));
        }
    }
    assert!(!place.image("inside").exists() && current != last);
}

#[test]
fn siblings_are_refused_and_flattened() {
    let place = chain([1, 1, 1, 1]);
    let (path, format) = place.now();
    let current = content(&path, format, None);
    let clone = place.path("disks").join("clone.qcow2");
    let base = place.path("disks").join("web1-xvda.after-one.qcow2");
    let (text, below) = (clone.display().to_string(), base.display().to_string());
    run(Tool::QemuImg, &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &below, &text]);
    let of_clone = content(&clone, Format::Qcow2, None);
    let error = place.plan("twor", false).unwrap_err();
    let told = error.chain().join(": ");
    assert!(error.exit_code() == 3 && told.contains("clone.qcow2"), "{told}");
    assert!(error.hint.unwrap().contains("--flatten"));
    place.check("", &current, "refused");
    carry_out(&place.plan("twor", true).unwrap(), usize::MAX);
    place.check("twor", &current, "flattened");
    assert!(content(&clone, Format::Qcow2, None) == of_clone && !base.exists());
}

#[test]
fn children_inherit_the_parent() {
    let place = chain([1, 1, 1, 1]);
    let read = |name: &str| image::rewrite::read(&place.image(name)).unwrap();
    let (one, three) = (read("one"), read("three"));
    assert_eq!(three.parent, Some(Parent::Snapshot(read("twor").id)));
    carry_out(&place.plan("twor", false).unwrap(), usize::MAX);
    assert_eq!(read("three").parent, Some(Parent::Snapshot(one.id)));
}

#[test]
fn without_memory_the_disks_stay() {
    let place = chain([1, 1, 1, 1]);
    let (path, format) = place.now();
    let current = content(&path, format, None);
    let (plan, record) = delete::plan_memory_only(&place.seen("one").unwrap()).unwrap();
    plan.prepare.iter().chain(&plan.commit).for_each(perform);
    assert!(!place.image("one").exists() && record.exists());
    let left = image::rewrite::read(&record).unwrap();
    assert_eq!(left.disks_only, Some(DisksOnly::CrashConsistent));
    assert_eq!(left.domain.cfg, Some(place.cfg()));
    // By its new name it is deleted as a whole.
    fs::rename(record, place.image("one")).unwrap();
    place.check("", &current, "without memory");
    assert!(delete::plan_memory_only(&place.seen("twor").unwrap()).is_err());
    carry_out(&place.plan("one", false).unwrap(), usize::MAX);
    place.check("one", &current, "deleted");
}

#[test]
fn what_is_not_as_it_was_is_refused() {
    let place = chain([1, 1, 1, 1]);
    let base = place.path("disks").join("web1-xvda.after-one.qcow2");
    place.overwrite(&base, 0, 1, 99);
    let why = |name: &str| {
        let error = place.plan(name, false).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        error.chain().join(": ")
    };
    assert!(why("twor").contains("was written to since"), "{}", why("twor"));
    assert!(why("one").contains("broken already"), "{}", why("one"));
    assert!(deletion::named(Path::new("/no/such")).is_err());
}
