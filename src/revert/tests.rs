//! Tests of the planner of reverts, with hand-made observations.

mod cfg;
mod executed;
mod repeats;
pub(crate) mod volumes;
mod without_memory;

use super::*;
use crate::disk::chain::Link;
use crate::disk::kinds::Internal;
use crate::disk::{FileFacts, Place, Room};
use crate::domain::Format;
use crate::error::Kind;
use crate::model::Guest;
use crate::plan::faults::try_every_fault;
use crate::process::Process;
use crate::record::DiskSnapshot;
use crate::support::disks as disk_tests;
use crate::support::disks::link;
use crate::support::record::sample;
use crate::tool::qemu_img::ImageInfo;

const CONFIG: &str = r#"{
    "c_info": {"type": "pv", "name": "web1", "uuid": "6f2c3c5e-7bd8-4d0e-9f3b-4d2f6f3b7a10"},
    "disks": [
        {"pdev_path": "/srv/a.qcow2", "vdev": "xvda", "format": "qcow2", "readwrite": 1},
        {"pdev_path": "/srv/b.img", "vdev": "xvdb", "backend": "qdisk", "format": "raw", "readwrite": 1},
        {"pdev_path": "/srv/c.iso", "vdev": "hdc", "format": "raw", "is_cdrom": 1}
    ]
}"#;

const OPTIONS: Options = Options { paused: false, discard_current: false };

fn image(
    path: &str,
    format: &str,
    below: Option<(&str, &str)>,
    snapshots: &[(&str, &str)],
) -> ImageInfo {
    let snapshots: Vec<_> = snapshots
        .iter()
        .map(|(id, name)| {
            serde_json::json!({"id": id, "name": name, "date-sec": 1_772_330_584, "date-nsec": 123_456_789})
        })
        .collect();
    let mut info = serde_json::json!({
        "filename": path, "format": format, "virtual-size": 1 << 20, "snapshots": snapshots,
    });
    if let Some((path, format)) = below {
        info["full-backing-filename"] = path.into();
        info["backing-filename-format"] = format.into();
    }
    serde_json::from_value(info).unwrap()
}

/// The same as a part of a chain.
fn link_of(image: &ImageInfo) -> Link {
    let below =
        image.full_backing_filename.as_deref().zip(image.backing_filename_format.as_deref());
    let below = below.map(|(path, format)| (path.to_str().unwrap(), format));
    let format = Format::of_qemu(&image.format).unwrap();
    let mut link = link(image.filename.to_str().unwrap(), format, below);
    if let Some(header) = &mut link.header {
        header.snapshots = image.snapshots().len().try_into().unwrap();
    }
    link
}

/// The sample snapshot of a domain that still runs: xvda in place, xvdb in its overlay.
pub(crate) fn found() -> RevertInput {
    let record = sample();
    let now: Timestamp = "2026-03-02T00:00:00Z".parse().unwrap();
    let frozen: Timestamp = "2026-03-01T02:03:04.123456789Z".parse().unwrap();
    let facts = FileFacts {
        size: 1 << 20,
        mtime: frozen,
        inode: 77,
        lasting: true,
        device: 1,
        writable: true,
        merging: None,
    };
    let a = image("/srv/a.qcow2", "qcow2", None, &[("1", "s1")]);
    let b = image("/srv/b.img", "raw", None, &[]);
    let overlay = image("/srv/web1-xvdb.after-s1.qcow2", "qcow2", Some(("/srv/b.img", "raw")), &[]);
    let own = |image: &ImageInfo| Link { id: facts.id(), ..link_of(image) };
    let disk = |index: usize, facts: FileFacts, image, chain: Vec<Link>| SnapshotDisk {
        record: record.disks[index].clone(),
        file: Ok(facts.clone()),
        frozen: Ok(facts),
        virtual_size: Ok(1 << 20),
        image: Ok(image),
        top: chain.first().map(|top| top.path.clone()),
        top_id: chain.first().map(|top| top.id),
        chain,
        place: Place { path: format!("/srv/new{index}.qcow2").into(), trouble: None },
        ..disk_tests::found("", record.disks[index].snapshot.clone())
    };
    RevertInput {
        snapshot: "/x/s1.xlsave".into(),
        disks: vec![
            disk(0, facts.clone(), a.clone(), vec![own(&a)]),
            disk(
                1,
                FileFacts { writable: false, ..facts.clone() },
                b.clone(),
                vec![link_of(&overlay), own(&b)],
            ),
            disk(2, facts, b, vec![]),
        ],
        start_from: StartFrom::Memory,
        config: DomainConfig::parse(CONFIG).unwrap(),
        attached: Vec::new(),
        volumes: Ok(Vec::new()),
        vm: Vec::new(),
        needs: Vec::new(),
        troubles: Vec::new(),
        named: None,
        same: Some(running(3, record.domain.uuid)),
        record,
        now,
    }
}

/// A domain web1 that runs.
pub(crate) fn running(domid: u32, uuid: Uuid) -> Running {
    let id = DomainId { domid, uuid, name: "web1".into() };
    Running { id, state: State::Running, monitor: Some(Process { pid: 77, started: 7 }) }
}

#[test]
fn the_plan_of_a_mixed_revert() {
    let revert = plan(&found(), OPTIONS).unwrap();
    assert_eq!(
        revert.plan.to_string(),
        "\
Revert of web1 to s1:
   1   stop the domain's xl process 77
   2   check that domain 3 still exists
   3   make /srv/new1.qcow2: qemu-img create -q -u -f qcow2 -F raw -b /srv/b.img /srv/new1.qcow2 1048576
   4   wait while others are restored: one for each processor at a time
   5   destroy domain 3 and wait until its QEMU has ended
   6   run qemu-img snapshot -q -c before-revert-20260302-000000 --image-opts 'driver=qcow2,file.driver=file,file.filename=/srv/a.qcow2'
   7   run qemu-img snapshot -q -a 1 --image-opts 'driver=qcow2,file.driver=file,file.filename=/srv/a.qcow2'
   8   wait until domain 3 is completely destroyed
   9   continue the domain's xl process 77
  10   restore web1 with xl, paused
  11   unpause web1
note: the current contents of xvda are kept in snapshot before-revert-20260302-000000 in /srv/a.qcow2
note: the current contents of xvdb are kept in /srv/web1-xvdb.after-s1.qcow2
note: disk hdc is not reverted: CD-ROM
"
    );
    assert_eq!(revert.cfg_lines, ["format=qcow2,vdev=xvdb,access=rw,target=/srv/new1.qcow2"]);
}

#[test]
fn a_domain_that_is_gone_needs_no_destroying() {
    let mut found = found();
    found.same = None;
    for disk in &mut found.disks {
        disk.chain.clear();
    }
    let revert = plan(&found, Options { paused: true, ..OPTIONS }).unwrap();
    assert!(!revert.plan.commit.iter().any(|step| matches!(step, Step::Destroy { .. })));
    assert!(revert.plan.finish.is_empty());
}

#[test]
fn a_base_is_never_rewritten() {
    // Either by its permissions, or because it is a base of the running domain's image.
    let marked = |found: &mut RevertInput| found.disks[0].file.as_mut().unwrap().writable = false;
    let below = |found: &mut RevertInput| {
        let top = image("/srv/top.qcow2", "qcow2", Some(("/srv/a.qcow2", "qcow2")), &[]);
        found.disks[0].chain.insert(0, link_of(&top));
    };
    let changes: [&dyn Fn(&mut RevertInput); 2] = [&marked, &below];
    for change in changes {
        let mut found = found();
        change(&mut found);
        let text = plan(&found, OPTIONS).unwrap().plan.to_string();
        assert!(text.contains("qemu-img convert"), "{text}");
        assert!(!text.contains("snapshot -q -a"), "{text}");
    }
}

#[test]
fn copies_have_to_fit_all_at_once() {
    // xvda and xvdb are copied, and take 60 MiB each.
    let planned = |rooms: [(u64, u64); 2]| {
        let mut found = found();
        let mut second = found.disks[0].clone();
        second.record.vdev = "xvdb".into();
        found.disks[1] = second;
        for (disk, (device, free)) in found.disks.iter_mut().zip(rooms) {
            disk.file.as_mut().unwrap().writable = false;
            let directory = format!("/srv{device}").into();
            disk.room = Some(Ok(Room { directory, device, free: free << 20, needed: 60 << 20 }));
        }
        plan(&found, Options { discard_current: true, ..OPTIONS })
    };
    planned([(1, 120), (1, 120)]).unwrap();
    planned([(1, 60), (2, 60)]).unwrap();
    for (rooms, why) in [
        ([(1, 119), (1, 119)], "the file system of /srv1 has 119 MiB free, and 120 MiB are needed"),
        ([(1, 60), (2, 59)], "the file system of /srv2 has 59 MiB free, and 60 MiB are needed"),
    ] {
        let error = planned(rooms).unwrap_err();
        assert_eq!(error.kind, Kind::Refused);
        assert_eq!(error.chain(), ["There is not enough space for the disks of web1", why]);
    }
}

#[test]
fn a_snapshot_that_is_not_copied_needs_no_room() {
    let mut found = found();
    found.disks[0].room = None;
    plan(&found, OPTIONS).unwrap();
    found.disks[0].room = Some(Err("it is not known".into()));
    found.disks[0].file.as_mut().unwrap().writable = false;
    let error = plan(&found, OPTIONS).unwrap_err();
    assert!(error.chain()[1].contains("a copy is needed, and it is not known"));
}

#[test]
fn everything_that_is_in_the_way_is_told_at_once() {
    let mut found = found();
    found.troubles.push(Trouble {
        rank: Severity::Missing,
        about: "web1 cannot be restored".into(),
        why: "no bridge".into(),
        hint: "make it".into(),
    });
    found.disks[0].file = Err("a is gone".into());
    found.disks[1].frozen = Err("b is gone".into());
    let error = plan(&found, OPTIONS).unwrap_err();
    assert_eq!(error.kind, Kind::Refused);
    assert_eq!(error.chain(), ["Disk xvda (/srv/a.qcow2) cannot be reverted", "a is gone"]);
    let also: Vec<_> = error.also.iter().map(|error| error.chain().join(": ")).collect();
    assert_eq!(
        also,
        [
            "Disk xvdb (/srv/b.img) cannot be reverted: b is gone",
            "web1 cannot be restored: no bridge"
        ]
    );
}

#[test]
fn what_is_kept_in_place_needs_room() {
    let mut found = found();
    let directory = "/srv".into();
    found.disks[0].room = Some(Ok(Room { directory, device: 1, free: 1 << 20, needed: 2 << 20 }));
    let error = plan(&found, OPTIONS).unwrap_err();
    assert!(error.chain()[1].contains("/srv has 1 MiB free, and 2 MiB are needed"));
}

#[test]
fn a_copy_of_an_overlay_rests_on_the_same_base() {
    let mut found = found();
    found.disks[0].file.as_mut().unwrap().writable = false;
    let a = image("/srv/a.qcow2", "qcow2", Some(("/srv/base.img", "raw")), &[("1", "s1")]);
    found.disks[0].image = Ok(a);
    let text = plan(&found, OPTIONS).unwrap().plan.to_string();
    assert!(text.contains("-B /srv/base.img -F raw /srv/a.qcow2 /srv/new0.qcow2"), "{text}");
}

#[test]
fn what_was_needed_is_looked_at_again_after_a_copy() {
    let looks = |found: &RevertInput| {
        let prepare = plan(found, OPTIONS).unwrap().plan.prepare;
        prepare.iter().any(|step| matches!(step, Step::CheckNeeds { gone: Some(3), .. }))
    };
    let mut found = found();
    assert!(!looks(&found));
    found.disks[0].file.as_mut().unwrap().writable = false;
    assert!(looks(&found));
}

#[test]
fn the_marks_are_set_as_soon_as_the_guest_runs_whoever_finishes_the_revert() {
    let record = found().record;
    let revert = plan(&found(), OPTIONS).unwrap().with_marks(&record);
    let mark = Step::Mark { id: record.id, files: vec!["/srv/a.qcow2".into()] };
    assert_eq!(revert.plan.finish[1], mark);
    assert!(revert.plan.finish[0].resumes_guest());
    try_every_fault(&revert.plan, Guest::Runs);
}

#[test]
fn what_the_domain_wrote_is_deleted_only_when_asked_and_only_if_nothing_needs_it() {
    let discard = Options { discard_current: true, ..OPTIONS };
    let remove = Step::RemoveFile { path: "/srv/web1-xvdb.after-s1.qcow2".into() };
    let finish = |found: &RevertInput, options| plan(found, options).unwrap().plan.finish;
    assert!(finish(&found(), discard).contains(&remove));
    assert!(!finish(&found(), OPTIONS).contains(&remove));
    let mut protected = found();
    protected.disks[1].top_protected = true;
    assert!(!finish(&protected, discard).contains(&remove));
    let mut snapshotted = found();
    let base = Some(("/srv/b.img", "raw"));
    let top = image("/srv/web1-xvdb.after-s1.qcow2", "qcow2", base, &[("1", "s2")]);
    snapshotted.disks[1].chain[0] = link_of(&top);
    assert!(!finish(&snapshotted, discard).contains(&remove));
    let mut based = found();
    based.disks[1].top_base_of = Some("/srv/mine.qcow2".into());
    let planned = plan(&based, discard).unwrap().plan;
    assert!(!planned.finish.contains(&remove));
    assert!(planned.notes.iter().any(|note| note.contains("stays: /srv/mine.qcow2 rests on it")));
    let mut on_base = found();
    on_base.disks[1].chain.remove(0);
    assert!(!finish(&on_base, discard).iter().any(|step| matches!(step, Step::RemoveFile { .. })));
}

#[test]
fn what_is_refused() {
    let refused = |words: &str, change: fn(&mut RevertInput)| {
        let mut found = found();
        change(&mut found);
        let error = plan(&found, OPTIONS).unwrap_err();
        let text = error.chain().join(": ");
        assert_eq!(error.kind, Kind::Refused, "{text}");
        assert!(text.contains(words), "{words:?} in {text:?}");
    };
    refused("\"s1\" no longer exists", |f| {
        f.disks[0].image = Ok(image("/srv/a.qcow2", "qcow2", None, &[]))
    });
    refused("is another one", |f| {
        f.disks[0].image = Ok(image("/srv/a.qcow2", "qcow2", None, &[("2", "s1")]));
    });
    refused("several of its snapshots have the ID 1", |f| {
        f.disks[0].image = Ok(image("/srv/a.qcow2", "qcow2", None, &[("1", "s1"), ("1", "x")]));
    });
    refused("04.123456789Z, not ID 1 of 2026-03-01T02:03:04.123457789Z", |f| {
        // The same name and ID, but from another disk: QEMU took it a moment later.
        let DiskSnapshot::Internal(Internal { proof: Some(proof), .. }) =
            &mut f.disks[0].record.snapshot
        else {
            unreachable!()
        };
        proof.date += std::time::Duration::from_micros(1);
    });
    for name in [("2", "before-revert-20260302-000000"), ("before-revert-20260302-000000", "x")] {
        let mut found = found();
        let list = [("1", "s1"), name];
        found.disks[0].image = Ok(image("/srv/a.qcow2", "qcow2", None, &list));
        let error = plan(&found, OPTIONS).unwrap_err();
        assert!(error.chain()[1].contains("it already has a snapshot before-revert-2026"));
    }
    refused("No such file", |f| f.disks[0].file = Err("No such file".into()));
    refused("qemu-img said no", |f| f.disks[0].image = Err("qemu-img said no".into()));
    refused("also used by disk xvda of domain web2", |f| {
        f.disks[0].used_by = Some("disk xvda of domain web2".into());
    });
    refused("also used by", |f| f.disks[1].used_by = Some("disk xvda of domain web2".into()));
    refused("was written to since", |f| f.disks[1].frozen.as_mut().unwrap().size += 1);
    refused("no proof", |f| {
        f.disks[0].record.snapshot = DiskSnapshot::Internal(Internal { proof: None, bases: None })
    });
    refused("of the domain 00000000-0000-0000-0000-000000000000, its record of 6f2c3c5e", |f| {
        let uuid = f.record.domain.uuid.to_string();
        let other = CONFIG.replace(&uuid, &Uuid::nil().to_string());
        f.config = DomainConfig::parse(&other).unwrap();
    });
    refused("names other disks than its record", |f| {
        f.config = DomainConfig::parse(&CONFIG.replace("/srv/b.img", "/srv/x.img")).unwrap();
    });
    refused("names other disks than its record", |f| {
        let swapped = CONFIG.replace("xvda", "xvdz").replace("xvdb", "xvda");
        f.config = DomainConfig::parse(&swapped.replace("xvdz", "xvdb")).unwrap();
    });
    refused("names other disks than its record", |f| {
        f.record.disks.pop();
    });
    refused("belongs to another domain", |f| {
        f.named = Some(running(9, Uuid::nil()));
    });
    refused("being destroyed", |f| f.same.as_mut().unwrap().state = State::Dying);
}

#[test]
fn one_of_three_disks_without_its_snapshot_refuses_all() {
    let three = |missing: Option<usize>| {
        let mut found = found();
        found.disks = ["xvda", "xvdb", "hdc"]
            .map(|vdev| {
                let mut disk = found.disks[0].clone();
                disk.record.vdev = vdev.into();
                disk
            })
            .into();
        if let Some(index) = missing {
            found.disks[index].image = Ok(image("/srv/a.qcow2", "qcow2", None, &[("1", "s2")]));
        }
        plan(&found, OPTIONS)
    };
    three(None).unwrap();
    for (index, vdev) in ["xvda", "xvdb", "hdc"].into_iter().enumerate() {
        let error = three(Some(index)).unwrap_err();
        assert_eq!(error.kind, Kind::Refused);
        assert_eq!(
            error.chain(),
            [
                format!("Disk {vdev} (/srv/a.qcow2) cannot be reverted"),
                "its snapshot \"s1\" no longer exists".into()
            ]
        );
    }
}

#[test]
fn the_snapshot_of_then_is_applied_whatever_others_are_called() {
    // The sample's has the ID 1. One of the same name, one named like its ID, and the reverse.
    let others = [("2", "s1"), ("3", "1"), ("s1", "4")];
    let mut found = found();
    for at in 0..=others.len() {
        let mut all = others.to_vec();
        all.insert(at, ("1", "s1"));
        found.disks[0].image = Ok(image("/srv/a.qcow2", "qcow2", None, &all));
        let text = plan(&found, OPTIONS).unwrap().plan.to_string();
        assert!(text.contains("snapshot -q -a 1 "), "{text}");
        found.disks[0].file.as_mut().unwrap().writable = false;
        let text = plan(&found, OPTIONS).unwrap().plan.to_string();
        assert!(text.contains("-l 'snapshot.id=1' "), "{text}");
        found.disks[0].file.as_mut().unwrap().writable = true;
    }
    found.disks[0].image = Ok(image("/srv/a.qcow2", "qcow2", None, &others));
    let error = plan(&found, OPTIONS).unwrap_err();
    assert!(error.chain()[1].contains("is another one: ID 2"), "{:?}", error.chain());
}

#[test]
fn a_failure_after_the_domain_is_gone_says_how_to_bring_it_back() {
    let plan = plan(&found(), OPTIONS).unwrap().plan;
    let remaining = &plan.on_failure.remaining[0];
    assert_eq!(remaining.command.as_deref(), Some("xl-snapshot revert /x/s1.xlsave"));
}
