//! Snapshots of volumes.

use super::super::{Space, short_of_space};
use super::{Edit, TAG, broken_lvs, report};
use crate::disk::kinds::Lvm;
use crate::disk::{DiskCreate, RunningDisk};
use crate::error::Result;
use crate::plan::{Step, undo};
use crate::record::DiskSnapshot;
use crate::support::disks::{plan_one, refused, seen, words};

const MIB: u64 = 1 << 20;

/// The disk xvda on the volume with the minor number `minor`.
fn disk(minor: u64) -> RunningDisk {
    let entry = r#"{"pdev_path": "/dev/vg0/x", "vdev": "xvda", "backend": "phy", "format": "raw", "readwrite": 1}"#;
    RunningDisk {
        file: Err("it is not a regular file".into()),
        device: Some((253, minor)),
        ..seen(entry)
    }
}

fn thick() -> RunningDisk {
    disk(0)
}

fn thin() -> RunningDisk {
    disk(5)
}

/// Plans on a host where the volumes have no snapshots yet.
fn plan(seen: &RunningDisk, how: Option<&str>, edits: &[Edit<'_>]) -> Result<DiskCreate> {
    let mut volumes = report(edits);
    volumes.retain(|volume| !["thick.s1", "thin.s1"].contains(&volume.name.as_str()));
    plan_one(seen, how, &Ok(volumes))
}

#[test]
fn a_thick_snapshot_holds_every_change_unless_told_otherwise() {
    for (how, size) in [
        (None, 68 * MIB),
        (Some("lvm"), 68 * MIB),
        (Some("lvm,size=1b"), 4 * MIB),
        (Some("lvm,size=4M"), 4 * MIB),
        (Some("lvm,size=4097k"), 8 * MIB),
        (Some("lvm,size=68M"), 68 * MIB),
        (Some("lvm,size=1T"), 68 * MIB),
    ] {
        let planned = plan(&thick(), how, &[]).unwrap();
        assert_eq!(
            words(&planned.in_pause),
            [format!(
                "run lvm lvcreate --quiet --yes --snapshot --permission r --addtag {TAG} --name thick.s1 --size {size}b vg0/thick"
            )],
            "{how:?}"
        );
        let space = Space { group: "vg0".into(), free: 128 * MIB, size };
        assert_eq!(planned.space, Some(space), "{how:?}");
        assert_eq!(
            planned.record.snapshot,
            DiskSnapshot::Lvm(Lvm {
                group: "vg0".into(),
                volume: "thick".into(),
                snapshot: "thick.s1".into(),
                size: Some(size)
            })
        );
    }
}

#[test]
fn a_thin_snapshot_has_no_size_and_takes_no_space() {
    for how in [None, Some("lvm")] {
        let planned = plan(&thin(), how, &[("thick", "vg_free", "0")]).unwrap();
        assert_eq!(
            words(&planned.in_pause),
            [format!(
                "run lvm lvcreate --quiet --yes --snapshot --setactivationskip n --permission r --addtag {TAG} --name thin.s1 vg0/thin"
            )]
        );
        assert_eq!(planned.space, None);
        assert!(matches!(planned.record.snapshot, DiskSnapshot::Lvm(Lvm { size: None, .. })));
    }
}

#[test]
fn the_guest_stays_on_its_volume() {
    for seen in [thick(), thin()] {
        let planned = plan(&seen, None, &[]).unwrap();
        assert_eq!((planned.prepare, planned.action, planned.switch), (vec![], None, None));
        assert!(!planned.by_restore);
    }
}

#[test]
fn the_undo_removes_only_what_bears_the_tag() {
    for (seen, name) in [(thick(), "thick.s1"), (thin(), "thin.s1")] {
        let planned = plan(&seen, None, &[]).unwrap();
        assert_eq!(
            words(&undo(&planned.in_pause)),
            [format!(
                r#"run lvm lvremove --quiet --yes --select 'lv_name="{name}" && lv_tags="{TAG}"' vg0"#
            )]
        );
    }
}

#[test]
fn a_snapshot_that_does_not_fit_is_refused_with_the_numbers() {
    let free = |bytes: u64| bytes.to_string();
    let just = free(68 * MIB);
    plan(&thick(), None, &[("thick", "vg_free", just.as_str())]).unwrap();
    let short = free(64 * MIB);
    refused(
        plan(&thick(), None, &[("thick", "vg_free", short.as_str())]),
        &[
            "its snapshot takes 68 MiB, and 64 MiB is free in the group vg0",
            "--disk xvda,lvm,size=SIZE",
        ],
    );
    plan(&thick(), Some("lvm,size=64M"), &[("thick", "vg_free", short.as_str())]).unwrap();
    refused(
        plan(&thick(), Some("lvm,size=65M"), &[("thick", "vg_free", short.as_str())]),
        &["takes 68 MiB", "64 MiB is free"],
    );
}

#[test]
fn snapshots_that_fit_only_one_by_one_are_too_many() {
    let space = |group: &str, size| Space { group: group.into(), free: 100, size };
    for (spaces, short) in [
        (vec![], false),
        (vec![space("vg0", 100)], false),
        (vec![space("vg0", 60), space("vg0", 40)], false),
        (vec![space("vg0", 60), space("vg0", 41)], true),
        (vec![space("vg0", 60), space("vg1", 60)], false),
        (vec![space("vg1", 60), space("vg0", 60), space("vg1", 60)], true),
        (vec![space("vg0", u64::MAX), space("vg0", u64::MAX)], true),
    ] {
        let list: Vec<_> = spaces.iter().collect();
        assert_eq!(short_of_space(&list).is_some(), short, "{spaces:?}");
    }
}

#[test]
fn a_full_or_sleeping_pool_gets_no_snapshot() {
    for (key, value, words) in [
        ("data_percent", "90.00", None),
        ("data_percent", "90.01", Some("the data of its thin pool vg0/pool is 90 % full")),
        ("data_percent", "100.00", Some("is 100 % full, more than 90 %")),
        ("metadata_percent", "90.00", None),
        ("metadata_percent", "90.01", Some("the metadata of its thin pool vg0/pool is 90 % full")),
        ("data_percent", "", Some("its pool vg0/pool is not active")),
        ("metadata_percent", "", Some("its pool vg0/pool is not active")),
        ("vg_name", "vg1", Some("its pool pool is not known")),
    ] {
        let result = plan(&thin(), None, &[("pool", key, value)]);
        match words {
            Some(words) => refused(result, &[words]),
            None => drop(result.unwrap()),
        }
    }
    // This does not matter for a thick volume.
    plan(&thick(), None, &[("pool", "data_percent", "100.00")]).unwrap();
}

#[test]
fn what_is_refused() {
    // The device's name is `vg0-VOLUME.s1-real`.
    let long = "x".repeat(116);
    let just = "x".repeat(115);
    let hyphens = "x-".repeat(39);
    let table: [(RunningDisk, &str, &[Edit<'_>], &str); 9] = [
        (RunningDisk { device: None, ..thick() }, "lvm", &[], "it is not a logical volume"),
        (disk(77), "lvm", &[], "it is not a logical volume"),
        (thin(), "lvm,size=1G", &[], "a snapshot of a thin volume has no size"),
        (
            thick(),
            "lvm",
            &[("+thick.s1b=thick.s1", "lv_kernel_minor", "0"), ("thick", "-", "")],
            "it is a snapshot itself",
        ),
        (
            thick(),
            "lvm",
            &[("+thick.s2=thick.s1", "lv_merging", "1")],
            "a snapshot is being merged into it",
        ),
        (thick(), "lvm", &[("thick", "lv_name", long.as_str())], "would be too long"),
        (thick(), "external", &[], "an overlay on a device proves nothing"),
        (thick(), "reflink", &[], "it is not a regular file"),
        (thick(), "internal", &[], "only a qcow2 image"),
    ];
    for (seen, how, edits, words) in table {
        refused(plan(&seen, Some(how), edits), &[words]);
    }
    plan(&thick(), None, &[("thick", "lv_name", just.as_str())]).unwrap();
    // Each is two bytes there.
    refused(
        plan(&thick(), None, &[("thick", "lv_name", hyphens.as_str())]),
        &["would be too long: 129 bytes as a device", "127 are allowed"],
    );
    plan(&thick(), None, &[("thick", "lv_name", &hyphens[2..])]).unwrap();
}

#[test]
fn what_qemu_keeps_of_a_qcow2_image_would_be_missed() {
    for minor in [0, 5] {
        let mut seen = disk(minor);
        seen.disk.format = Some(crate::domain::Format::Qcow2);
        refused(plan(&seen, Some("lvm"), &[]), &["LVM would miss what QEMU keeps"]);
    }
}

#[test]
fn a_name_that_is_taken_is_refused_in_its_own_group_only() {
    let taken = Ok(report(&[]));
    refused(plan_one(&thick(), None, &taken), &["the volume vg0/thick.s1 exists", "--name"]);
    let elsewhere = Ok(report(&[("thick.s1", "vg_name", "vg1")]));
    plan_one(&thick(), None, &elsewhere).unwrap();
}

#[test]
fn what_lvs_says_when_it_fails_is_told() {
    refused(plan_one(&thick(), None, &broken_lvs()), &["no such luck", "--disk xvda,none"]);
}

#[test]
fn a_snapshot_is_a_single_step_of_the_pause() {
    assert!(matches!(plan(&thick(), None, &[]).unwrap().in_pause[..], [Step::Undoable { .. }]));
}
