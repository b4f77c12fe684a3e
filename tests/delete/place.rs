//! A domain that does not run, with real images and the real qemu-img, for the tests of what becomes of them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use uuid::Uuid;
use xl_snapshot::delete::{self, DeleteInput};
use xl_snapshot::disk::image_tree::DeleteOptions;
use xl_snapshot::disk::kind::Content;
use xl_snapshot::disk::kinds::{External, Internal};
use xl_snapshot::domain::{DomainConfig, Format, GuestType};
use xl_snapshot::error::Result;
use xl_snapshot::host::deletion::{self, steps};
use xl_snapshot::host::libxl::XlCfg;
use xl_snapshot::host::{cfg, command, files, image, list as host, rewrites, tools};
use xl_snapshot::list::{self, Health, ListRequest};
use xl_snapshot::memory::header::{self, Header, MARK, record_space};
use xl_snapshot::plan::{Plan, Step};
use xl_snapshot::record::{
    DiskRecord, DiskSnapshot, DisksOnly, DomainRecord, FrozenFile, Parent, QcowSnapshot, Record,
    VERSION,
};
use xl_snapshot::tool::{Invocation, Tool};

/// So that qemu-img has little to do.
pub const SIZE: u64 = 16 * UNIT;
pub const UNIT: u64 = 64 << 10;

/// A domain with one disk, its snapshots, and what each of them holds.
pub struct Place {
    pub directory: tempfile::TempDir,
    pub content: BTreeMap<String, Vec<u8>>,
    pub top: PathBuf,
    pub format: Format,
    pub next: u8,
}

pub fn run(tool: Tool, args: &[&str]) {
    command::run(&Invocation::new(tool, args)).unwrap();
}

/// The raw content of an image, or of a snapshot inside of it.
pub fn content(path: &Path, format: Format, inside: Option<&str>) -> Vec<u8> {
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
    pub fn new(units: u64) -> Place {
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

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn cfg(&self) -> PathBuf {
        self.path("web1.cfg")
    }

    pub fn write_cfg(&self) {
        let top = self.top.display();
        let text = format!(
            "name = 'web1'\ndisk = ['format={},vdev=xvda,access=rw,target={top}']\n",
            self.format.name()
        );
        fs::write(self.cfg(), text).unwrap();
    }

    /// The guest writes: from a unit on, so many.
    pub fn write(&mut self, at: u64, units: u64) {
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
    pub fn overwrite(&self, path: &Path, at: u64, units: u64, pattern: u8) {
        let write = format!("write -P {pattern} {} {}", at * UNIT, units * UNIT);
        let status = std::process::Command::new("qemu-io")
            .args(["-f", "qcow2", "-c", &write])
            .arg(path)
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
    }

    pub fn image(&self, name: &str) -> PathBuf {
        self.path("snapshots").join(format!("{name}.xlsave"))
    }

    pub fn record(&self, name: &str, snapshot: DiskSnapshot) -> Record {
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
            quiesced: None,
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
    pub fn save(&mut self, name: &str, mut record: Record, bytes: Vec<u8>) -> Uuid {
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
    pub fn external(&mut self, name: &str, parent: Option<Uuid>) -> Uuid {
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

    pub fn internal(&mut self, name: &str) -> Uuid {
        run(Tool::QemuImg, &["snapshot", "-q", "-c", name, &self.top.display().to_string()]);
        let info = tools::image(&self.top, Format::Qcow2).unwrap();
        let proof: QcowSnapshot = info.snapshots().into_iter().find(|s| s.name == name).unwrap();
        let record = self.record(name, Internal { proof: Some(proof), bases: None }.into());
        let bytes = content(&self.top, self.format, None);
        self.save(name, record, bytes)
    }

    pub fn seen(&self, name: &str) -> Result<DeleteInput> {
        let named = deletion::named(&self.image(name))?;
        deletion::look(None, &named, self.path("snapshots"))
    }

    pub fn plan(&self, name: &str, flatten: bool) -> Result<Plan> {
        let seen = self.seen(name)?;
        let disks = delete::disks(&seen, DeleteOptions { flatten })?;
        let switches: Vec<_> = disks.iter().flat_map(|disk| &disk.switches).collect();
        let keep = format!("x{}", Uuid::new_v4().simple());
        let cfgs = rewrites::files_for_delete(&switches, &keep)?;
        let rewrites = delete::Rewrites { cfgs, stored: Vec::new() };
        delete::plan(&seen, &disks, &rewrites)
    }

    /// Every snapshot but one is good, has its content, and so has the disk of the domain.
    pub fn check(&self, but: &str, current: &[u8], context: &str) {
        let mut unseen = Vec::new();
        let directory = [self.path("snapshots")];
        let images = host::images(&directory, &[], &mut unseen).unwrap();
        let seen = host::look(images, Vec::new(), Vec::new(), false);
        let listing = list::list(&seen, &ListRequest::default());
        for (name, bytes) in self.content.iter().filter(|(name, _)| *name != but) {
            let found = listing.snapshots.iter().find(|snapshot| snapshot.name == *name);
            let snapshot = found.unwrap_or_else(|| panic!("{context}: {name} is gone"));
            assert_eq!(snapshot.state, Health::Good, "{context}: {name}: {:?}", snapshot.why);
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
    pub fn now(&self) -> (PathBuf, Format) {
        let cfg = XlCfg::open(&self.cfg()).unwrap();
        let disk = cfg.disks().unwrap().remove(0);
        let format = if disk.format == "raw" { Format::Raw } else { Format::Qcow2 };
        (disk.pdev_path.unwrap().into(), format)
    }

    pub fn images(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("disks")).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// Carries out the first steps of a plan.
pub fn carry_out(plan: &Plan, steps: usize) {
    plan.prepare.iter().chain(&plan.commit).chain(&plan.onward).take(steps).for_each(perform);
}

pub fn perform(step: &Step) {
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
        Step::CheckNotRunning { .. } => {}
        other => panic!("{other}"),
    }
}
