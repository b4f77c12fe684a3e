//! Tests of the planner, with hand-made observations.

mod by_restore;
mod descent;
mod executed;
mod freeze;
mod kinds;
mod notes;
mod rewrites;
mod without_memory;

use std::path::{Path, PathBuf};
use std::str;
use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use super::*;
use crate::disk::{Node, Place, RunningDisk, Served};
use crate::domain::{DomainConfig, DomainId};
use crate::error::Kind;
use crate::plan::{ConfigOwner, ReplaceCfg, StoreConfig, Text};
use crate::process::Process;
use crate::record::QcowSnapshot;
use crate::spec::{MemoryTarget, Request, Spec};
use crate::support::disks::{facts_of, words};

pub(super) const CONFIG: &str = r#"{
    "c_info": {"type": "pv", "name": "web1", "uuid": "6f2c3c5e-7bd8-4d0e-9f3b-4d2f6f3b7a10"},
    "b_info": {"max_memkb": 131072},
    "disks": [
        {"pdev_path": "/srv/a.qcow2", "vdev": "xvda", "format": "qcow2", "readwrite": 1},
        {"pdev_path": "/srv/b.img", "vdev": "xvdb", "backend": "qdisk", "format": "raw", "readwrite": 1},
        {"pdev_path": "/srv/c.iso", "vdev": "hdc", "format": "raw", "is_cdrom": 1}
    ]
}"#;

fn now() -> Timestamp {
    "2026-03-01T02:03:04Z".parse().unwrap()
}

pub(super) fn job(name: &str, disks: &[&str]) -> Job {
    let flags = Spec {
        name: Some(name.into()),
        disks: disks.iter().map(|disk| disk.parse().unwrap()).collect(),
        ..Spec::default()
    };
    let id = "0b41a0a5-4a1c-4b3c-8f1e-93d4b0b1a001".parse().unwrap();
    Job::new(flags.request().unwrap(), now(), id)
}

pub(super) fn seen(job: &Job) -> CreateInput {
    let config = DomainConfig::parse(CONFIG).unwrap();
    let disks = config
        .disks()
        .unwrap()
        .into_iter()
        .map(|disk| RunningDisk {
            served: Some(Served::Qemu),
            params: vec![(
                format!("/libxl/3/{}/params", disk.vdev),
                format!("aio:{}", disk.path.display()),
            )],
            node: Some(Node {
                name: format!("{}-node", disk.vdev),
                file: disk.path.clone(),
                driver: "qcow2".into(),
                read_only: false,
                virtual_size: 64 << 20,
                elsewhere: None,
                emulated: None,
                bitmaps: 0,
                snapshots: vec![QcowSnapshot { id: "1".into(), name: "old".into(), date: now() }],
            }),
            file: Ok(facts_of(&disk)),
            device: None,
            place: job.new_file("web1", &disk).map(|path| Place { path, trouble: None }),
            used_by: None,
            sectors: None,
            clone_trouble: None,
            own: Ok(Vec::new()),
            below: None,
            vhd: None,
            disk,
        })
        .collect();
    CreateInput {
        troubles: Vec::new(),
        overlay_troubles: Vec::new(),
        domain: DomainId { domid: 3, uuid: config.uuid().unwrap(), name: "web1".into() },
        state: State::Running,
        stored: CONFIG.into(),
        config,
        disks,
        drives: Vec::new(),
        volumes: Ok(Vec::new()),
        cfg: None,
        monitor: Some(Process { pid: 77, started: 7 }),
        unsure_monitors: Vec::new(),
        saver: None,
        xen: "4.17.7".into(),
        dom0_qemu: true,
        shadow_paging: true,
        image: ImagePlace::File {
            path: "/var/lib/xen/snapshots/web1/s1.xlsave".into(),
            trouble: None,
            free: 1 << 40,
        },
        spaces: Vec::new(),
        way: None,
        above_target: None,
    }
}

fn plan(job: &Job, seen: &CreateInput) -> Result<Plan> {
    super::plan(job, seen, &disks(job, seen)?, &Rewrites::default())
}

/// The beginning of the image that a plan creates.
fn image_of(plan: &Plan) -> &ImageStart {
    let start = plan.prepare.iter().find_map(|step| match step {
        Step::OpenImage(start) => Some(start),
        _ => None,
    });
    start.expect("every plan makes an image")
}

#[test]
fn the_plan_of_a_mixed_snapshot() {
    let job = job("s1", &[]);
    let plan = plan(&job, &seen(&job)).unwrap();
    assert_eq!(
        plan.to_string(),
        "\
Snapshot s1 of web1:
   1   send QEMU the transaction, except its last byte
   2   make /srv/web1-xvdb.after-s1.qcow2: qemu-img create -q -u -f qcow2 -F raw -b /srv/b.img /srv/web1-xvdb.after-s1.qcow2 67108864
   3   make /srv/b.img read-only: it becomes a base
   4   open the memory image /var/lib/xen/snapshots/web1/s1.xlsave.partial
   5   stop the domain's xl process 77
   6   save the memory of domain 3 while it runs, then suspend it
   7 | check that domain 3 is still suspended
   8 | store libxl's configuration: xvdb -> /srv/web1-xvdb.after-s1.qcow2
   9 | snapshot the disks in one QMP transaction: xvda internal s1; xvdb to overlay /srv/web1-xvdb.after-s1.qcow2
  10 | resume domain 3
  11   write to xenstore: /libxl/3/xvdb/params = qcow2:/srv/web1-xvdb.after-s1.qcow2
  12   continue the domain's xl process 77
  13   complete the record, sync the image and rename it to its final name
     | the guest is paused
note: disk hdc is not in the snapshot: CD-ROM
"
    );
}

#[test]
fn a_compressed_image_is_waited_for_only_where_the_guest_does_not_wait() {
    let mut job = job("s1", &[]);
    job.request.compress = Some("zstd:7".parse().unwrap());
    let running = plan(&job, &seen(&job)).unwrap();
    assert!(running.to_string().contains("s1.xlsave.partial, compressed by zstd:7\n"));
    assert!(!running.prepare.contains(&Step::FinishCompression));
    job.request.paused = true;
    let paused = plan(&job, &seen(&job)).unwrap();
    assert!(paused.prepare.contains(&Step::FinishCompression));
}

#[test]
fn a_name_is_taken_by_an_image_of_either_form() {
    let mut job = job("s1", &[]);
    let plain = Path::new("/var/lib/xen/snapshots/web1/s1.xlsave");
    let packed = Path::new("/var/lib/xen/snapshots/web1/s1.xlsave.zst");
    assert_eq!(job.image("web1").unwrap(), Target::File(plain.into()));
    assert_eq!(job.images_of_that_name(plain, "web1"), [plain, packed]);
    job.request.compress = Some("zstd".parse().unwrap());
    assert_eq!(job.image("web1").unwrap(), Target::File(packed.into()));
    assert_eq!(job.images_of_that_name(packed, "web1"), [packed, plain]);
    // If the user names a file, no other file is used.
    job.request.memory = MemoryTarget::File("/x/y".into());
    assert_eq!(job.image("web1").unwrap(), Target::File("/x/y".into()));
    assert_eq!(job.images_of_that_name(Path::new("/x/y"), "web1"), [Path::new("/x/y")]);
}

#[test]
fn images_go_where_the_user_keeps_them() {
    let job = job("s1", &[]).in_directory("/srv/kept".into());
    let image = PathBuf::from("/srv/kept/web1/s1.xlsave");
    assert_eq!(job.image("web1").unwrap(), Target::File(image.clone()));
    let mut seen = seen(&job);
    // Directories are created there, and nowhere else.
    for (path, makes) in [(image, true), ("/var/lib/xen/snapshots/web1/s1.xlsave".into(), false)] {
        seen.image = ImagePlace::File { path, trouble: None, free: 1 << 40 };
        assert_eq!(image_of(&plan(&job, &seen).unwrap()).make_directory, makes);
    }
}

#[test]
fn little_space_is_enough_for_a_compressed_image() {
    let mut job = job("s1", &[]);
    let mut seen = seen(&job);
    let place = |free| ImagePlace::File { path: "/x/s1.xlsave".into(), trouble: None, free };
    seen.image = place(40 << 20);
    let text = |result: Result<Plan>| result.unwrap_err().chain().join(": ");
    assert!(text(plan(&job, &seen)).contains("has 40 MiB free, the memory of web1 needs"));
    job.request.compress = Some("zstd".parse().unwrap());
    plan(&job, &seen).unwrap();
    seen.image = place(30 << 20);
    assert!(text(plan(&job, &seen)).contains("needs at least 36"));
}

#[test]
fn an_image_and_what_the_disks_get_are_counted_together() {
    let job = job("s1", &["xvdb,external"]);
    let mut seen = seen(&job);
    let image = PathBuf::from("/srv/s1.xlsave");
    let place = |free| ImagePlace::File { path: image.clone(), trouble: None, free };
    let (memory, mib) = (seen.config.memory_kib() >> 10, 1 << 20);
    let mut spaces = |device, free: u64| {
        seen.image = place(free * mib);
        let overlay = "/srv/web1-xvdb.after-s1.qcow2";
        seen.spaces = [("/srv/s1.xlsave", 7), ("/srv/a.qcow2", 7), (overlay, device)]
            .map(|(file, device)| Space {
                file: file.into(),
                device,
                free: free * mib,
                volatile: false,
            })
            .into();
        plan(&job, &seen)
    };
    let text = spaces(7, memory + 33).unwrap_err().chain().join(": ");
    assert!(text.ends_with("needs at least 160, and the new images of its disks 2 MiB"), "{text}");
    spaces(8, memory + 33).unwrap();
    // There is space for both, but not for the writes of a guest with two disks of 64 MiB.
    let told = |plan: Plan| plan.notes.into_iter().find(|note| note.contains("I/O errors"));
    let note = told(spaces(7, memory + 134).unwrap()).unwrap();
    assert!(note.starts_with("the file system of /srv has 100 MiB left"), "{note}");
    assert!(note.contains("takes what the guest writes") && note.contains("xvda, xvdb"), "{note}");
    assert_eq!(told(spaces(7, memory + 162).unwrap()), None);
}

#[test]
fn the_stored_configuration_changes_only_where_it_must() {
    let job = job("s1", &[]);
    let plan = plan(&job, &seen(&job)).unwrap();
    let store = plan
        .prepare
        .iter()
        .find_map(|step| match step {
            Step::StoreConfig(store) => Some(store),
            _ => None,
        })
        .unwrap();
    assert_eq!(store.old, CONFIG.into());
    let mut expected = DomainConfig::parse(CONFIG).unwrap();
    let overlay = Path::new("/srv/web1-xvdb.after-s1.qcow2");
    expected.set_image("xvdb", overlay, crate::domain::Format::Qcow2).unwrap();
    assert_eq!(
        DomainConfig::parse(str::from_utf8(store.new.as_bytes()).unwrap()).unwrap(),
        expected
    );
}

#[test]
fn the_image_keeps_the_configuration_as_it_was() {
    let job = job("s1", &[]);
    let plan = plan(&job, &seen(&job)).unwrap();
    let start = image_of(&plan);
    let config = DomainConfig::parse(&start.config).unwrap();
    assert_eq!(config, DomainConfig::parse(CONFIG).unwrap());
    assert!(!start.record.complete);
    assert_eq!(start.record.disks.len(), 3);
}

#[test]
fn a_domain_without_disks_is_snapshotted() {
    let job = job("s1", &[]);
    let mut seen = seen(&job);
    seen.disks.clear();
    let plan = plan(&job, &seen).unwrap();
    assert_eq!(plan.commit, None);
    assert!(plan.finish.iter().any(Step::resumes_guest));
}

/// Whether a plan saves the memory while the guest runs.
fn is_live(plan: &Plan) -> Option<bool> {
    plan.prepare.iter().find_map(|step| match step {
        Step::Suspend { live, .. } => Some(*live),
        _ => None,
    })
}

#[test]
fn what_is_cached_of_the_disks_is_written_before_the_guest_stands_still() {
    let job = job("s1", &[]);
    let plan = plan(&job, &seen(&job)).unwrap();
    let disks = plan.prepare.iter().find_map(|step| match step {
        Step::Suspend { disks, .. } => Some(disks.clone()),
        _ => None,
    });
    // Not the CD-ROM.
    assert_eq!(disks.unwrap(), [PathBuf::from("/srv/a.qcow2"), "/srv/b.img".into()]);
}

#[test]
fn a_pv_guest_is_saved_live_only_where_xen_can() {
    let job = job("s1", &[]);
    let mut seen = seen(&job);
    seen.shadow_paging = false;
    let pv = plan(&job, &seen).unwrap();
    assert_eq!(is_live(&pv), Some(false));
    assert!(pv.notes.iter().any(|note| note.contains("the guest is paused")));
    seen.config = DomainConfig::parse(&CONFIG.replace("\"pv\"", "\"pvh\"")).unwrap();
    assert_eq!(is_live(&plan(&job, &seen).unwrap()), Some(true));
}

#[test]
fn an_hvm_guest_is_saved_live_only_without_internal_snapshots() {
    for (disks, live) in [(&[][..], false), (&["xvda,external"][..], true)] {
        let job = job("s1", disks);
        let mut seen = seen(&job);
        seen.config = DomainConfig::parse(&CONFIG.replace("\"pv\"", "\"hvm\"")).unwrap();
        assert_eq!(is_live(&plan(&job, &seen).unwrap()), Some(live), "{disks:?}");
    }
}

#[test]
fn paused_is_asked_for_before_the_guest_could_run() {
    let mut job = job("s1", &[]);
    job.request.paused = true;
    let plan = plan(&job, &seen(&job)).unwrap();
    assert_eq!(plan.finish[0].to_string(), "pause domain 3");
    assert!(plan.finish[1].resumes_guest());
}

#[test]
fn a_limit_of_the_pause_goes_with_the_suspend() {
    let mut job = job("s1", &[]);
    job.request.max_pause = Some(Duration::from_secs(2));
    let plan = plan(&job, &seen(&job)).unwrap();
    let words = "save the memory of domain 3 while it runs, then suspend it, for 2 s at most";
    assert!(plan.prepare.iter().any(|step| step.to_string() == words), "{:?}", plan.prepare);
}

#[test]
fn a_name_is_made_from_the_time() {
    let request = Spec::default().request().unwrap();
    let job = Job::new(request, now(), Uuid::nil());
    assert_eq!(job.name.as_str(), "snap-20260301-020304");
}

/// Plans `s1` on a host that `change` has changed, expects a refusal, and returns its text.
fn refusal(disks: &[&str], change: impl FnOnce(&mut CreateInput)) -> (Kind, String) {
    let job = job("s1", disks);
    let mut seen = seen(&job);
    change(&mut seen);
    let error = plan(&job, &seen).unwrap_err();
    (error.kind, error.chain().join(": "))
}

#[test]
fn what_is_refused() {
    let refused = |disks: &[&str], words: &str, change: fn(&mut CreateInput)| {
        let (kind, text) = refusal(disks, change);
        assert_eq!(kind, Kind::Refused, "{text}");
        assert!(text.contains(words), "{words:?} in {text:?}");
    };
    refused(&[], "is paused", |seen| seen.state = State::Paused);
    refused(&[], "is shut down", |seen| seen.state = State::Shutdown);
    refused(&[], "is being destroyed", |seen| seen.state = State::Dying);
    refused(&[], "already has a snapshot \"s1\"", |seen| {
        seen.disks[0].node.as_mut().unwrap().snapshots[0].name = "s1".into();
    });
    refused(&[], "already has a snapshot", |seen| {
        seen.disks[0].node.as_mut().unwrap().snapshots[0].id = "s1".into();
    });
    // Made by hand: qemu-img accepts a name that is already taken.
    refused(&[], "already has a snapshot \"s1\" (ID 1", |seen| {
        let snapshots = &mut seen.disks[0].node.as_mut().unwrap().snapshots;
        snapshots[0].name = "s1".into();
        snapshots.push(QcowSnapshot { id: "2".into(), ..snapshots[0].clone() });
    });
    refused(&[], "QEMU writes to /srv/x.qcow2", |seen| {
        seen.disks[0].node.as_mut().unwrap().file = "/srv/x.qcow2".into();
    });
    refused(&[], "the emulated drive ide0-hd0", |seen| {
        seen.disks[0].node.as_mut().unwrap().emulated = Some("ide0-hd0".into());
    });
    refused(&[], "QEMU does not know it", |seen| seen.disks[0].node = None);
    refused(&[], "for reading only", |seen| {
        seen.disks[0].node.as_mut().unwrap().read_only = true;
    });
    refused(&[], "No such file", |seen| seen.disks[0].file = Err("No such file".into()));
    refused(&[], "x exists", |seen| {
        seen.disks[1].place.as_mut().unwrap().trouble = Some("x exists".into());
    });
    refused(&[], "xvdb of domain web2 may write to it as well", |seen| {
        seen.disks[0].used_by = Some("disk xvdb of domain web2".into());
    });
    refused(&[], "served by tap", |seen| seen.disks[1].served = Some(Served::Other("tap".into())));
    refused(&[], "the script block-nbd", |seen| {
        seen.disks[0].disk.script = Some("block-nbd".into());
    });
    refused(&[], "driver domain store", |seen| {
        seen.disks[0].disk.backend_domain = Some("store".into());
    });
    refused(&["xvdb,internal"], "only a qcow2 image", |_| {});
    refused(&["xvda,lvm"], "not a logical volume", |_| {});
    refused(&["hdc,internal"], "CD-ROM", |_| {});
    refused(&[], "s1.xlsave exists", |seen| {
        seen.image = ImagePlace::File {
            path: "/x/s1.xlsave".into(),
            trouble: Some("/x/s1.xlsave exists".into()),
            free: 1 << 40,
        };
    });
    refused(&[], "has 100 MiB free", |seen| {
        seen.image =
            ImagePlace::File { path: "/x/s1.xlsave".into(), trouble: None, free: 100 << 20 };
    });
}

#[test]
fn names_that_are_not_ours_may_stand_twice_in_an_image() {
    let job = job("s1", &[]);
    let mut seen = seen(&job);
    let snapshots = &mut seen.disks[0].node.as_mut().unwrap().snapshots;
    snapshots.push(QcowSnapshot { id: "2".into(), ..snapshots[0].clone() });
    plan(&job, &seen).unwrap();
}

#[test]
fn what_is_wrong_with_the_request() {
    let (kind, text) = refusal(&["xvdz,internal"], |_| {});
    assert_eq!((kind, text.as_str()), (Kind::Usage, "Domain web1 has no disk xvdz"));
    // Another name of xvda.
    let (kind, text) = refusal(&["d0p1,internal"], |_| {});
    assert_eq!((kind, text.as_str()), (Kind::Usage, "Domain web1 has no disk d0p1"));
    plan(&job("s1", &["d0p0,external"]), &seen(&job("s1", &[]))).unwrap();
    let both = ["xvda,external,file=/srv/o.qcow2", "xvdb,external,file=/srv/o.qcow2"];
    let (kind, text) = refusal(&both, |_| {});
    assert_eq!(kind, Kind::Usage, "{text}");
}

#[test]
fn a_writable_disk_may_be_left_out_only_by_the_users_word() {
    let job = job("s1", &["xvdb,none"]);
    let mut seen = seen(&job);
    seen.disks[1].served = None;
    let plan = plan(&job, &seen).unwrap();
    assert!(plan.notes.contains(&"disk xvdb is not in the snapshot: left out as asked".into()));
    assert!(!plan.to_string().contains("xvdb internal"));
}

#[test]
fn a_base_that_is_protected_already_is_left_so() {
    let job = job("s1", &[]);
    let mut seen = seen(&job);
    seen.disks[1].file.as_mut().unwrap().writable = false;
    let plan = plan(&job, &seen).unwrap();
    assert!(!plan.prepare.iter().any(|step| matches!(step, Step::MakeReadOnly { .. })));
}

#[test]
fn the_entries_for_the_users_file() {
    let job = job("s1", &["xvda,external"]);
    let plan = plan(&job, &seen(&job)).unwrap();
    assert_eq!(
        cfg_lines(&image_of(&plan).record),
        [
            "format=qcow2,vdev=xvda,access=rw,target=/srv/web1-xvda.after-s1.qcow2",
            "format=qcow2,vdev=xvdb,access=rw,target=/srv/web1-xvdb.after-s1.qcow2",
        ]
    );
}
