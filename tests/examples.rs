//! The files in cfg-examples are what users copy: they must be right, and what they say of disks must
//! be what becomes of them.

#![expect(clippy::unwrap_used, reason = "a test's helpers may end the test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::json;
use uuid::Uuid;
use xl_snapshot::create::{self, CreateInput, ImagePlace, Job, Rewrites};
use xl_snapshot::disk::HostView;
use xl_snapshot::disk::{DiskCreate, FileFacts, Node, Place, RunningDisk, Served};
use xl_snapshot::domain::{DomainConfig, DomainId, Format};
use xl_snapshot::error::Result;
use xl_snapshot::host::libxl::XlCfg;
use xl_snapshot::plan::{Plan, Step};
use xl_snapshot::process::Process;
use xl_snapshot::revert::by_hand;
use xl_snapshot::spec::{Request, Spec};
use xl_snapshot::state::State;
use xl_snapshot::tool::qemu_img::ImageInfo;
use xl_snapshot::tool::vhd_util;
use xl_snapshot::tool::volumes::{self, Volume};

/// The volumes of lvm.cfg, as lvs prints them: a thick one, and a thin one in its pool.
const VOLUMES: &str = r#"{"report": [{"lv": [
    {"vg_name":"vg0", "lv_name":"pool", "lv_size":"68719476736", "lv_layout":"thin,pool", "origin":"", "pool_lv":"", "lv_tags":"", "lv_permissions":"writeable", "lv_device_open":"1", "lv_merging":"0", "lv_snapshot_invalid":"-1", "data_percent":"12.00", "metadata_percent":"10.94", "lv_kernel_major":"253", "lv_kernel_minor":"9", "vg_free":"137438953472", "vg_extent_size":"4194304"},
    {"vg_name":"vg0", "lv_name":"lvm-root", "lv_size":"17179869184", "lv_layout":"linear", "origin":"", "pool_lv":"", "lv_tags":"", "lv_permissions":"writeable", "lv_device_open":"1", "lv_merging":"0", "lv_snapshot_invalid":"-1", "data_percent":"", "metadata_percent":"", "lv_kernel_major":"253", "lv_kernel_minor":"0", "vg_free":"137438953472", "vg_extent_size":"4194304"},
    {"vg_name":"vg0", "lv_name":"lvm-data", "lv_size":"17179869184", "lv_layout":"thin,sparse", "origin":"", "pool_lv":"pool", "lv_tags":"", "lv_permissions":"writeable", "lv_device_open":"1", "lv_merging":"0", "lv_snapshot_invalid":"-1", "data_percent":"0.00", "metadata_percent":"", "lv_kernel_major":"253", "lv_kernel_minor":"1", "vg_free":"137438953472", "vg_extent_size":"4194304"}
    ]}]}"#;

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cfg-examples").join(name)
}

fn examples(extension: &str) -> Vec<PathBuf> {
    let files = fs::read_dir(example("")).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files.filter(|path| path.extension().unwrap() == extension).collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

fn stem(path: &Path) -> &str {
    path.file_stem().unwrap().to_str().unwrap()
}

/// The domain of a configuration file as it would run, all well: libxl's JSON of it, from xl's own
/// parser, and a host that has its images.
fn running(cfg: &Path, job: &Job) -> CreateInput {
    let parsed = XlCfg::open(cfg).unwrap();
    let name = parsed.name().unwrap();
    let entries: Vec<_> = parsed
        .disks()
        .unwrap()
        .into_iter()
        .map(|disk| {
            json!({
                "pdev_path": disk.pdev_path, "vdev": disk.vdev, "format": disk.format,
                "script": disk.script, "backend": disk.backend,
                "readwrite": disk.readwrite, "is_cdrom": disk.is_cdrom,
            })
        })
        .collect();
    let uuid = Uuid::from_u128(7);
    let kind = parsed.string(c"type").unwrap().unwrap();
    let json = json!({
        "c_info": {"type": kind, "name": name, "uuid": uuid},
        "b_info": {"max_memkb": 1 << 20},
        "disks": entries,
    });
    let config = DomainConfig::parse(&json.to_string()).unwrap();
    let disks = config.disks().unwrap();
    let disks = disks
        .into_iter()
        .zip(&entries)
        .map(|(disk, entry)| {
            // libxl_device.c, disk_try_backend: a raw file or device is for the kernel, unless the
            // entry says otherwise; so is all that a script sets up.
            let raw = disk.format == Some(Format::Raw);
            let kernel = raw && !disk.cdrom && entry["backend"] != "qdisk";
            let number = u64::from(disk.vdev.as_bytes()[disk.vdev.len() - 1] - b'a');
            let device = disk.path.starts_with("/dev").then_some((253, number));
            let node = Node {
                name: format!("{}-node", disk.vdev),
                file: disk.path.clone(),
                driver: "whatever".into(),
                read_only: false,
                virtual_size: 1 << 30,
                snapshots: Vec::new(),
                elsewhere: None,
                emulated: None,
                bitmaps: 0,
            };
            let facts = FileFacts {
                size: 1 << 20,
                mtime: Timestamp::UNIX_EPOCH,
                inode: 5 + number,
                lasting: true,
                device: 1,
                writable: true,
                merging: None,
            };
            let facts_of_vhd = vhd_util::Facts {
                virtual_size: 1 << 30,
                differencing: false,
                uuid: [8; 16],
                header: 512,
                depth: Some(1),
            };
            let is_vhd = disk.is_tap_vhd() || disk.format == Some(Format::Vhd);
            RunningDisk {
                served: Some(if kernel { Served::Blkback } else { Served::Qemu }),
                params: Vec::new(),
                node: (!kernel).then_some(node),
                file: if device.is_none() { Ok(facts) } else { Err("it is a device".into()) },
                device,
                place: job.new_file(&name, &disk).map(|path| Place { path, trouble: None }),
                used_by: None,
                sectors: None,
                clone_trouble: None,
                own: Ok(Vec::new()),
                below: None,
                vhd: is_vhd.then_some(Ok(facts_of_vhd)),
                disk,
            }
        })
        .collect();
    CreateInput {
        troubles: Vec::new(),
        overlay_troubles: Vec::new(),
        domain: DomainId { domid: 3, uuid, name: name.clone() },
        state: State::Running,
        stored: config.to_json(),
        config,
        disks,
        drives: Vec::new(),
        volumes: Ok::<Vec<Volume>, _>(volumes::parse(VOLUMES.as_bytes()).unwrap()),
        cfg: None,
        monitor: Some(Process { pid: 77, started: 7 }),
        unsure_monitors: Vec::new(),
        saver: None,
        xen: "4.17.7".into(),
        dom0_qemu: true,
        shadow_paging: true,
        spaces: Vec::new(),
        way: None,
        above_target: None,
        image: ImagePlace::File { path: "/image".into(), trouble: None, free: 1 << 40 },
    }
}

/// As it would be seen if it did not run.
fn switch_off(seen: &mut CreateInput) {
    seen.state = State::Off;
    seen.cfg = Some("/etc/xen/web1.cfg".into());
    seen.image = ImagePlace::Record { path: "/record".into(), trouble: None };
    seen.disks.iter_mut().for_each(|disk| disk.served = Some(Served::Nobody));
}

fn plan(cfg: &Path, request: Request) -> Result<(Vec<DiskCreate>, Plan)> {
    let job = Job::new(request, Timestamp::UNIX_EPOCH, Uuid::from_u128(8));
    let mut seen = running(cfg, &job);
    if job.request.without_memory() {
        switch_off(&mut seen);
    }
    let disks = create::disks(&job, &seen)?;
    let plan = create::plan(&job, &seen, &disks, &Rewrites::default())?;
    Ok((disks, plan))
}

/// The word for what becomes of a disk, as the user would say it.
fn how(disk: &DiskCreate) -> &'static str {
    match disk.record.snapshot.name() {
        "vhd" => "external",
        kind => kind,
    }
}

/// What the comment over a disk's entry says: the default, whether by a restore, what else.
fn comments(text: &str) -> Vec<(String, bool, BTreeSet<String>)> {
    let comments = text.lines().filter_map(|line| line.trim().strip_prefix("# Default: "));
    comments
        .map(|comment| {
            let (default, also) = comment.split_once(". Also: ").unwrap_or((comment, ""));
            let default = default.trim_end_matches('.');
            let also = also.trim_end_matches('.').split(", ").filter(|way| !way.is_empty());
            let (way, restore) = match default.strip_suffix(", by a restore") {
                Some(way) => (way, true),
                None => (default, false),
            };
            (way.to_owned(), restore, also.map(str::to_owned).collect())
        })
        .collect()
}

#[test]
fn configurations_say_what_becomes_of_their_disks() {
    for path in examples("cfg") {
        let parsed = XlCfg::open(&path).unwrap();
        assert_eq!(parsed.name().unwrap(), stem(&path));
        let said = comments(&fs::read_to_string(&path).unwrap());
        let vdevs: Vec<_> = parsed.disks().unwrap().into_iter().map(|disk| disk.vdev).collect();
        assert_eq!(said.len(), vdevs.len(), "{}", path.display());

        let request = |disks| Spec { disks, ..Spec::default() }.request().unwrap();
        let (defaults, _) = plan(&path, request(Vec::new())).unwrap();
        for ((vdev, (default, restore, also)), disk) in vdevs.iter().zip(said).zip(&defaults) {
            let of = format!("{} of {}", vdev, path.display());
            assert_eq!((how(disk), disk.by_restore), (default.as_str(), restore), "{of}");
            let possible: BTreeSet<String> = ["internal", "external", "lvm", "reflink"]
                .into_iter()
                .filter(|way| *way != default)
                .filter(|way| {
                    plan(&path, request(vec![format!("{vdev},{way}").parse().unwrap()])).is_ok()
                })
                .map(str::to_owned)
                .collect();
            assert_eq!(possible, also, "{of}");
        }
    }
}

#[test]
fn every_kind_of_snapshot_has_an_example() {
    let ways: BTreeSet<String> = examples("cfg")
        .iter()
        .flat_map(|path| comments(&fs::read_to_string(path).unwrap()))
        .flat_map(|(way, _, also)| [way].into_iter().chain(also))
        .collect();
    assert_eq!(
        ways.into_iter().collect::<Vec<_>>(),
        ["external", "internal", "lvm", "none", "reflink"]
    );
}

/// Each says on its first lines what it is for: `xl-snapshot create web1 before-upgrade.toml`.
#[test]
fn specs_are_carried_out_on_the_configuration_they_are_for() {
    for path in examples("toml") {
        let text = fs::read_to_string(&path).unwrap();
        let command = text.lines().find_map(|line| line.strip_prefix("#   xl-snapshot create "));
        // Made by hand: below.
        let Some(command) = command else { continue };
        let (domain, file) = command.split_once(' ').unwrap();
        assert_eq!(example(file), path);
        let cfg = example(&format!("{}.cfg", stem(Path::new(domain))));

        let spec = Spec::parse(&text, &path).unwrap();
        let given = spec.disks.clone();
        let request = spec.request().unwrap();
        assert!(request.name.is_some() && !given.is_empty(), "{}", path.display());
        let (disks, plan) = plan(&cfg, request).unwrap();
        for option in given {
            let disk = disks.iter().find(|disk| disk.record.vdev == option.vdev).unwrap();
            assert_eq!(
                how(disk),
                option.choice.how.name(),
                "{} of {}",
                option.vdev,
                path.display()
            );
        }
        assert!(
            !plan.onward.iter().any(|step| matches!(step, Step::Restore { .. })),
            "{} pauses the guest for long",
            path.display()
        );
    }
}

/// Images that have the snapshot `before-upgrade`, each in an overlay on a raw file.
struct Images;

impl HostView for Images {
    fn chain(&self, path: &Path, _: Format) -> Result<Vec<ImageInfo>, String> {
        let top = json!({
            "filename": path, "format": "qcow2", "virtual-size": 1 << 30,
            "full-backing-filename": "/srv/below.img", "backing-filename-format": "raw",
            "snapshots": [{"id": "1", "name": "before-upgrade", "date-sec": 0, "date-nsec": 0}],
        });
        let below = json!({"filename": "/srv/below.img", "format": "raw", "virtual-size": 1 << 30});
        Ok(serde_json::from_value(json!([top, below])).unwrap())
    }

    fn facts(&self, _: &Path) -> Result<FileFacts, String> {
        Ok(FileFacts {
            size: 1 << 30,
            mtime: Timestamp::UNIX_EPOCH,
            inode: 5,
            lasting: true,
            device: 1,
            writable: false,
            merging: None,
        })
    }
}

/// Each names the configuration of its domain: `config = "/etc/xen/web1.cfg"`.
#[test]
fn specs_of_what_was_made_by_hand_find_it() {
    let mut count = 0;
    for path in examples("toml") {
        let text = fs::read_to_string(&path).unwrap();
        let spec = Spec::parse(&text, &path).unwrap();
        if spec.memory.is_some() || spec.record.is_some() || spec.config.is_none() {
            assert!(text.contains("#   xl-snapshot create "), "{}", path.display());
            continue;
        }
        let revert =
            format!("#   xl-snapshot revert {}", path.file_name().unwrap().to_string_lossy());
        assert!(text.contains(&revert), "{}", path.display());
        let cfg = spec.config.clone().unwrap();
        let domain = example(cfg.file_name().unwrap().to_str().unwrap());
        let given = spec.disks.clone();
        let request = spec.request().unwrap();
        let job = Job::new(request.clone(), Timestamp::UNIX_EPOCH, Uuid::from_u128(8));
        let config = running(&domain, &job).config;
        let who = (&config, Uuid::nil());
        let record = by_hand::record(&request, who, &cfg, &Images, Timestamp::now()).unwrap();
        for option in given {
            let disk = record.disks.iter().find(|disk| disk.vdev == option.vdev).unwrap();
            assert_eq!(
                disk.snapshot.name(),
                option.choice.how.name(),
                "{} of {}",
                option.vdev,
                path.display()
            );
        }
        count += 1;
    }
    assert!(count > 0);
}
