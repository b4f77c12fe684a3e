//! Tests of the planner of new domains, with hand-made observations.

use super::*;
use crate::disk::Room;
use crate::disk::kinds::{DiskSnapshot, LeftOut, Lvm};
use crate::domain::DomainConfig;
use crate::error::Kind;
use crate::model::Guest;
use crate::plan::faults::try_every_fault;
use crate::revert::tests::{found as reverted, running, volumes::found_volumes};
use crate::state::State;
use crate::support::volumes::REPORT;
use crate::tool::volumes;

const UUID: Uuid = Uuid::from_u128(0x11111111_2222_4333_8444_555555666666);

fn options() -> Options {
    Options {
        name: "web2".parse().unwrap(),
        uuid: UUID,
        directory: "/srv/clones".into(),
        keep_macs: false,
        paused: false,
    }
}

/// xvda has an internal snapshot, xvdb an external one; no domain has the name web2.
fn found() -> RevertInput {
    let mut found = reverted();
    found.named = None;
    found.disks[0].room = Some(Ok(room(100)));
    found
}

fn room(free: u64) -> Room {
    Room { directory: "/srv/clones".into(), device: 1, free: free << 20, needed: 60 << 20 }
}

#[test]
fn the_plan_of_a_new_domain() {
    let planned = plan(&found(), &options()).unwrap();
    assert_eq!(
        planned.plan.to_string(),
        "\
web2, a new domain from snapshot s1 of web1:
   1   make /srv/new0.qcow2: qemu-img convert -q -U -f qcow2 -O qcow2 -l 'snapshot.id=1' /srv/a.qcow2 /srv/new0.qcow2; at the same time make /srv/new1.qcow2: qemu-img create -q -u -f qcow2 -F raw -b /srv/b.img /srv/new1.qcow2 1048576
   2   wait while others are restored: one for each processor at a time
   3   restore web2 with xl, paused
   4   unpause web2
note: disk hdc is shared with web1, read-only
"
    );
    let Some(Step::Restore { uuid, config, .. }) = planned.plan.prepare.last() else {
        panic!("{:?}", planned.plan)
    };
    assert_eq!(*uuid, UUID);
    let config = DomainConfig::parse(config).unwrap();
    assert_eq!((config.name().unwrap(), config.uuid().unwrap()), ("web2", UUID));
    let paths: Vec<_> = config.disks().unwrap().into_iter().map(|disk| disk.path).collect();
    assert_eq!(paths, ["/srv/new0.qcow2", "/srv/new1.qcow2", "/srv/c.iso"].map(PathBuf::from));
    assert_eq!(planned.cfg_lines.len(), 2);
}

/// One thin volume and its snapshot.
fn found_thin() -> RevertInput {
    let mut found = found_volumes(0);
    let disk = &mut found.disks[1];
    disk.record.path = "/dev/vg0/thin".into();
    disk.record.snapshot = DiskSnapshot::Lvm(Lvm {
        group: "vg0".into(),
        volume: "thin".into(),
        snapshot: "thin.s1".into(),
        size: None,
    });
    found.disks.remove(0);
    found.record.disks = vec![found.disks[0].record.clone()];
    found.config = DomainConfig::parse(
        r#"{"c_info": {"name": "web1", "uuid": "6f2c3c5e-7bd8-4d0e-9f3b-4d2f6f3b7a10"}, "disks": [
            {"pdev_path": "/dev/vg0/thin", "vdev": "xvdb", "backend": "phy", "format": "raw", "readwrite": 1}]}"#,
    )
    .unwrap();
    found.volumes = Ok(volumes::parse(REPORT.as_bytes()).unwrap());
    found
}

#[test]
fn a_thick_volume_is_copied_and_a_thin_one_has_another_beside_it() {
    let thick = plan(&with_room(found_volumes(136 << 20)), &options()).unwrap().plan;
    assert!(
        thick.to_string().contains("qemu-img convert -q -f raw -O qcow2 /dev/vg0/a.s1 /srv/new")
    );
    let thin = plan(&found_thin(), &options()).unwrap();
    assert_eq!(
        thin.plan.prepare[0].to_string(),
        "run lvm lvcreate --quiet --yes --snapshot --setactivationskip n --permission rw --addtag \
         xl-snapshot-of:11111111-2222-4333-8444-555555666666 --name thin.web2 vg0/thin.s1"
    );
    assert_eq!(thin.images, [Some("/dev/vg0/thin.web2".into())]);
    for plan in [thick, thin.plan] {
        let text = plan.to_string();
        assert!(!text.contains("lvconvert") && !text.contains("lvrename"), "{text}");
    }
}

fn with_room(mut found: RevertInput) -> RevertInput {
    for disk in &mut found.disks {
        disk.room = Some(Ok(room(200)));
    }
    found
}

#[test]
fn every_fault_of_a_new_domain() {
    for found in [found(), found_thin(), with_room(found_volumes(136 << 20))] {
        for paused in [false, true] {
            let plan = plan(&found, &Options { paused, ..options() }).unwrap().plan;
            assert!(try_every_fault(&plan, Guest::Gone) > 5);
        }
    }
}

#[test]
fn what_is_refused() {
    let refused = |words: &str, change: fn(&mut RevertInput)| {
        let mut found = found();
        change(&mut found);
        let error = plan(&found, &options()).unwrap_err();
        let text = error.chain().join(": ");
        assert_eq!(error.kind, Kind::Refused, "{text}");
        assert!(text.contains(words), "{words:?} in {text:?}");
    };
    refused("There is a domain web2 already (9)", |f| {
        f.named = Some(running(9, Uuid::nil()));
    });
    refused(
        "not enough space for the disks of web2: the file system of /srv/clones has 1 MiB free",
        |f| {
            f.disks[0].room = Some(Ok(room(1)));
        },
    );
    refused("a copy is needed, and its room is not known", |f| f.disks[0].room = None);
    refused("exists", |f| f.disks[1].place.trouble = Some("/srv/new1.qcow2 exists".into()));
    refused("two domains would write to it", |f| {
        let why = "left out as asked".to_owned();
        f.record.disks[0].snapshot = DiskSnapshot::None(LeftOut { why });
        f.disks[0].record = f.record.disks[0].clone();
    });
    refused("was written to since", |f| f.disks[1].frozen.as_mut().unwrap().size += 1);
    refused("its configuration has pcidevs", |f| {
        let json = f.config.to_json().replacen('{', r#"{"pcidevs": [{"bus": 1}], "#, 1);
        f.config = DomainConfig::parse(&json).unwrap();
    });
}

#[test]
fn the_domain_of_the_snapshot_may_be_in_any_state() {
    let mut gone = found();
    gone.same = None;
    plan(&gone, &options()).unwrap();
    let mut dying = found();
    dying.same.as_mut().unwrap().state = State::Dying;
    plan(&dying, &options()).unwrap();
}
