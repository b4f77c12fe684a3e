//! What LVM itself would refuse, in the middle of a revert.

use super::super::{Lvm, Volume};
use super::report;
use crate::disk::{DiskRevert, RevertContext, SnapshotDisk, revert};
use crate::error::Result;
use crate::record::DiskSnapshot;
use crate::support::disks::{found, refused, revert_context};

fn disk(volume: &str, size: Option<u64>) -> SnapshotDisk {
    let snapshot = DiskSnapshot::Lvm(Lvm {
        group: "vg0".into(),
        volume: volume.into(),
        snapshot: format!("{volume}.s1"),
        size,
    });
    found(&format!("/dev/vg0/{volume}"), snapshot)
}

fn thin() -> SnapshotDisk {
    disk("thin", None)
}

fn thick() -> SnapshotDisk {
    let mut disk = disk("thick", Some(64 << 20));
    disk.record.vdev = "xvda".into();
    disk
}

fn plan(disk: &SnapshotDisk, volumes: Vec<Volume>, discard: bool) -> Result<DiskRevert> {
    let keep = "before-revert-x".parse().unwrap();
    let volumes = Ok(volumes);
    let disk = &SnapshotDisk { top: Some(disk.record.path.clone()), ..disk.clone() };
    revert(disk, RevertContext { discard, ..revert_context(&keep, &volumes) })
}

#[test]
fn a_pool_is_too_full_where_lvm_says_so() {
    let with = |threshold, edits: &[super::Edit<'_>]| {
        let mut volumes = report(edits);
        let pool = volumes.iter_mut().find(|volume| volume.name == "pool").unwrap();
        pool.threshold = threshold;
        plan(&thin(), volumes, false)
    };
    for what in ["data", "metadata"] {
        let key = format!("{what}_percent");
        let full = |percent| [("pool", key.as_str(), percent)];
        with(None, &full("89.99")).unwrap();
        with(Some(100), &full("89.99")).unwrap();
        with(Some(70), &full("70.00")).unwrap();
        let words = format!("the {what} of its thin pool vg0/pool is 70 % full, more than 70 %");
        refused(with(Some(70), &full("70.01")), &[&words, "(thin_pool_autoextend_threshold)"]);
        // That of a new snapshot does not count.
        with(None, &full("90.01")).unwrap();
    }
    // Of small metadata, a quarter has to be free.
    let small = |percent, size| {
        with(None, &[("pool", "metadata_percent", percent), ("pool", "lv_metadata_size", size)])
    };
    small("74.99", "4194304").unwrap();
    for size in ["4194304", "16777216"] {
        refused(small("75.00", size), &["the metadata of its thin pool vg0/pool is 75 % full"]);
    }
    small("79.99", "20971520").unwrap();
    refused(small("80.00", "20971520"), &["--poolmetadatasize +4M vg0/pool"]);
}

#[test]
fn what_pvmove_moves_is_left_alone() {
    for (disk, moved, other) in [(thick(), "thick", "thin"), (thin(), "thin", "thick")] {
        let with = |volume| plan(&disk, report(&[(volume, "lv_allocation_locked", "1")]), false);
        with(other).unwrap();
        refused(with(moved), &[&format!("pvmove moves vg0/{moved}"), "pvmove --abort"]);
    }
}

#[test]
fn a_group_may_be_full_or_read_only() {
    for disk in [thick(), thin()] {
        let name = if disk.record.vdev == "xvda" { "thick" } else { "thin" };
        let snapshot = format!("{name}.s1");
        let with = |most, discard| {
            let edits = [name, &snapshot].map(|volume| (volume, "max_lv", most));
            plan(&disk, report(&edits), discard)
        };
        with("0", false).unwrap();
        with("6", false).unwrap();
        let words = "the group vg0 has 5 volumes and may have no more";
        refused(with("5", false), &[words, "vgchange --maxlogicalvolumes 0 vg0"]);
        // A merge without anything to keep needs no volume more.
        match name {
            "thick" => assert!(with("5", true).unwrap().lost),
            _ => refused(with("5", true), &[words]),
        }
        let read_only = report(&[(snapshot.as_str(), "vg_permissions", "read-only")]);
        refused(plan(&disk, read_only, false), &["the group vg0 is read-only"]);
    }
}

#[test]
fn space_that_may_not_be_allocated_is_named() {
    let mut volumes = report(&[("thick", "vg_free", "4194304")]);
    let thick_volume = volumes.iter_mut().find(|volume| volume.name == "thick").unwrap();
    thick_volume.held_back = 128 << 20;
    refused(
        plan(&thick(), volumes, false),
        &["4 MiB is free in the group vg0, besides 128 MiB on physical volumes", "--allocatable y"],
    );
}
