//! Reverts of volumes.

use super::super::Space;
use super::{Edit, MERGING_TAG, TAG, broken_lvs, report};
use crate::disk::kinds::Lvm;
use crate::disk::{DiskRevert, RevertContext, SnapshotDisk, revert};
use crate::domain::Format;
use crate::error::Result;
use crate::plan::undo;
use crate::record::DiskSnapshot;
use crate::support::disks::{Volumes, found, refused, revert_context, words};

const MIB: u64 = 1 << 20;
/// The prefix of the tag of xvdb's thin snapshot.
const THIN_TAG: &str = "xl-snapshot:0b41a0a5-4a1c-4b3c-8f1e-93d4b0b1a001:xvdb";

#[derive(Debug, Clone, Copy)]
struct World {
    running: bool,
    discard: bool,
}

const RUNNING: World = World { running: true, discard: false };
const GONE: World = World { running: false, discard: false };
const DISCARD: World = World { running: true, discard: true };

fn thick() -> SnapshotDisk {
    let snapshot = DiskSnapshot::Lvm(Lvm {
        group: "vg0".into(),
        volume: "thick".into(),
        snapshot: "thick.s1".into(),
        size: Some(60 * MIB),
    });
    let mut found = on("/dev/vg0/thick", 0, snapshot);
    found.record.vdev = "xvda".into();
    found
}

/// A disk of a domain that runs on the volume itself.
fn on(path: &str, minor: u32, snapshot: DiskSnapshot) -> SnapshotDisk {
    let device = rustix::fs::makedev(253, minor);
    SnapshotDisk { top: Some(path.into()), top_id: Some((device, 0)), ..found(path, snapshot) }
}

fn thin() -> SnapshotDisk {
    let snapshot = DiskSnapshot::Lvm(Lvm {
        group: "vg0".into(),
        volume: "thin".into(),
        snapshot: "thin.s1".into(),
        size: None,
    });
    on("/dev/vg0/thin", 5, snapshot)
}

fn plan_with(found: &SnapshotDisk, world: World, volumes: &Volumes) -> Result<DiskRevert> {
    let keep = "before-revert-x".parse().unwrap();
    let World { running, discard } = world;
    let context = RevertContext { running, discard, ..revert_context(&keep, volumes) };
    revert(found, context)
}

fn plan(found: &SnapshotDisk, world: World, edits: &[Edit<'_>]) -> Result<DiskRevert> {
    plan_with(found, world, &Ok(report(edits)))
}

fn keep_step() -> String {
    "run lvm lvcreate --quiet --yes --snapshot --permission r --addtag xl-snapshot-before:0b41a0a5-4a1c-4b3c-8f1e-93d4b0b1a001:xvda --name thick.before-revert-x --size 71303168b vg0/thick".into()
}

/// The steps that take the snapshot again.
fn take_again(size: u64) -> [String; 2] {
    [
        format!(
            "run lvm lvcreate --quiet --yes --snapshot --permission r --addtag {TAG} --name thick.s1 --size {size}b vg0/thick"
        ),
        format!("run lvm lvchange --quiet --deltag {MERGING_TAG} vg0/thick"),
    ]
}

/// All steps of a merge; the second one keeps the current contents.
fn merge_steps() -> Vec<String> {
    let mut steps = vec![
        "wait until no program has vg0/thick open".into(),
        keep_step(),
        format!("run lvm lvchange --quiet --addtag {MERGING_TAG} vg0/thick"),
        "run lvm lvconvert --quiet --yes --merge --interval 1 vg0/thick.s1".into(),
        "wait for the end of the merge into vg0/thick".into(),
    ];
    steps.extend(take_again(64 * MIB));
    steps
}

#[test]
fn a_thick_volume_is_kept_and_merged_and_its_snapshot_taken_anew() {
    for world in [RUNNING, GONE] {
        let planned = plan(&thick(), world, &[]).unwrap();
        assert_eq!(words(&planned.put_back), merge_steps());
        assert_eq!(planned.kept.as_deref(), Some("the volume vg0/thick.before-revert-x"));
        let space = Space { group: "vg0".into(), free: 128 * MIB, size: 68 * MIB };
        assert_eq!(planned.space, Some(space));
        assert_eq!(
            words(&planned.prepare),
            [
                "run lvm lvchange --quiet --addtag xl-snapshot-rehearsal --deltag xl-snapshot-rehearsal vg0/thick"
            ]
        );
        assert_eq!(planned.switch, None);
    }
}

#[test]
fn what_a_thick_volume_holds_now_is_given_up_only_when_asked() {
    let short = [("thick", "vg_free", "67108864")];
    refused(
        plan(&thick(), RUNNING, &short),
        &[
            "keeping its current contents needs 68 MiB, and 64 MiB is free in the group vg0",
            "--discard-current",
        ],
    );
    let planned = plan(&thick(), DISCARD, &short).unwrap();
    let mut steps = merge_steps();
    steps.remove(1);
    assert_eq!(words(&planned.put_back), steps);
    assert_eq!((planned.kept, planned.space, planned.discard), (None, None, vec![]));
}

#[test]
fn where_there_is_room_it_is_kept_until_the_revert_has_succeeded() {
    let planned = plan(&thick(), DISCARD, &[]).unwrap();
    let mut steps = merge_steps();
    steps[1] = steps[1].replace("snapshot-before:", "snapshot-discard:");
    assert_eq!(words(&planned.put_back), steps);
    assert_eq!(
        words(&planned.discard),
        ["run lvm lvremove --quiet --yes vg0/thick.before-revert-x"]
    );
}

#[test]
fn a_path_that_follows_the_device_is_replaced_by_the_name() {
    for path in ["/dev/vg0/thin", "/dev/mapper/vg0-thin"] {
        let mut named = thin();
        named.record.path = path.into();
        assert_eq!(plan(&named, RUNNING, &[]).unwrap().switch, None);
    }
    for path in ["/dev/dm-3", "/dev/disk/by-id/dm-uuid-LVM-x", "/dev/block/253:3"] {
        let mut followed = thin();
        followed.record.path = path.into();
        let switch = plan(&followed, RUNNING, &[]).unwrap().switch;
        assert_eq!(switch, Some(("/dev/vg0/thin".into(), Format::Raw)), "{path}");
    }
}

#[test]
fn a_volume_that_somebody_else_has_given_the_name_is_left_alone() {
    // lvrename vg0 thin thin.old; lvcreate --name thin
    let renamed: [Edit<'_>; 2] = [("thin.s1", "origin", "thin.old"), ("thin", "lv_tags", "mine")];
    for world in [GONE, World { discard: true, ..GONE }] {
        refused(
            plan(&thin(), world, &renamed),
            &[
                "vg0/thin is another volume now: the snapshot was taken of vg0/thin.old",
                "lvrename vg0 thin.old thin",
            ],
        );
    }
    let gone = [("thin.s1", "origin", "")];
    refused(plan(&thin(), GONE, &gone), &["vg0/thin is another volume than the one"]);
    // A revert made it, another snapshot was taken of it, or the domain runs on it.
    let made = [("thin.s1", "origin", ""), ("thin", "lv_tags", "xl-snapshot-revert:x")];
    plan(&thin(), GONE, &made).unwrap();
    let tag = THIN_TAG.replace("a001", "a002");
    let taken: [Edit<'_>; 3] = [
        ("+thin.s2=thin.s1", "lv_tags", &tag),
        ("thin.s1", "origin", ""),
        ("thin.s2", "origin", "thin"),
    ];
    plan(&thin(), GONE, &taken).unwrap();
    plan(&thin(), RUNNING, &gone).unwrap();
}

#[test]
fn a_domain_that_uses_another_disk_now_keeps_both() {
    for (mut disk, edits) in [(thick(), &[][..]), (thin(), &[])] {
        (disk.top, disk.top_id) = (Some("/srv/new.qcow2".into()), Some((1, 7)));
        for world in [RUNNING, DISCARD] {
            let planned = plan(&disk, world, edits).unwrap();
            let kept = planned.kept.unwrap();
            assert!(kept.starts_with("/srv/new.qcow2 and the volume vg0/"), "{kept}");
            assert_eq!(planned.discard, []);
        }
    }
    let mut disk = thick();
    (disk.top, disk.top_id) = (Some("/dev/vg0/other".into()), Some((1, 0)));
    let short = [("thick", "vg_free", "67108864")];
    refused(
        plan(&disk, DISCARD, &short),
        &["keeping its current contents", "uses /dev/vg0/other now"],
    );
}

#[test]
fn a_snapshot_of_others_is_not_removed_with_the_volume() {
    let others: [Edit<'_>; 2] = [("+mine=thick.s1", "lv_tags", ""), ("mine", "origin", "thin")];
    plan(&thin(), RUNNING, &others).unwrap();
    refused(
        plan(&thin(), DISCARD, &others),
        &["its volume cannot be removed: vg0/mine is a snapshot of it", "--discard-current"],
    );
}

#[test]
fn a_copy_of_the_group_has_the_tags_as_well() {
    let copy: [Edit<'_>; 2] =
        [("+thin.copy=thin.s1", "vg_name", "vg1"), ("thin.copy", "lv_name", "thin.s1")];
    let planned = plan(&thin(), RUNNING, &copy).unwrap();
    assert_eq!(planned, plan(&thin(), RUNNING, &[]).unwrap());
}

#[test]
fn a_merge_must_not_overflow_another_snapshot() {
    // thick.s1 uses 8428873 of its 64 MiB.
    let other = |size: &'static str, used: &'static str| -> [Edit<'static>; 3] {
        [
            ("+thick.s2=thick.s1", "lv_tags", ""),
            ("thick.s2", "lv_size", size),
            ("thick.s2", "data_percent", used),
        ]
    };
    refused(
        plan(&thick(), RUNNING, &other("8388608", "0.00")),
        &[
            "that would overflow the snapshot vg0/thick.s2",
            "it has room for 8 MiB",
            "lvextend or lvremove vg0/thick.s2 first",
        ],
    );
    refused(plan(&thick(), RUNNING, &other("67108864", "99.00")), &["would overflow"]);
    plan(&thick(), RUNNING, &other("12582912", "0.00")).unwrap();
    // It has space for every possible change.
    plan(&thick(), RUNNING, &other("71303168", "99.00")).unwrap();
    // Already lost, or of another volume.
    let small = other("8388608", "0.00");
    for (key, value) in [("lv_snapshot_invalid", "1"), ("origin", "other"), ("vg_name", "vg1")] {
        let edits = [&small[..], &[("thick.s2", key, value)]].concat();
        plan(&thick(), RUNNING, &edits).unwrap();
    }
}

#[test]
fn a_thin_volume_gives_its_name_to_a_copy_of_its_snapshot() {
    let planned = plan(&thin(), RUNNING, &[]).unwrap();
    let copy = "run lvm lvcreate --quiet --yes --snapshot --setactivationskip n --permission rw --addtag xl-snapshot-revert:before-revert-x --name thin.after-revert-x vg0/thin.s1";
    let removed = r#"run lvm lvremove --quiet --yes --select 'lv_name="thin.after-revert-x" && lv_tags="xl-snapshot-revert:before-revert-x"' vg0"#;
    assert_eq!(words(&planned.prepare), [copy]);
    assert_eq!(words(&undo(&planned.prepare)), [removed]);
    let rename = "run lvm lvrename --quiet vg0 thin.after-revert-x thin";
    assert_eq!(
        words(&planned.put_back),
        ["run lvm lvrename --quiet vg0 thin thin.before-revert-x", rename]
    );
    assert_eq!(planned.kept.as_deref(), Some("the volume vg0/thin.before-revert-x"));
    assert_eq!(
        words(&planned.discard),
        ["run lvm lvremove --quiet --yes vg0/thin.before-revert-x"]
    );
    assert_eq!((planned.switch, planned.space), (None, None));
    let back = [
        "rename the volume vg0/thin back to thin.after-revert-x",
        "rename the volume vg0/thin.before-revert-x back to thin",
    ];
    assert_eq!(words(&planned.undo_revert), back);

    // An interrupted revert has already renamed it.
    let gone = [("thin", "-", ""), ("thin.s1", "origin", "")];
    let planned = plan(&thin(), GONE, &gone).unwrap();
    assert_eq!(words(&planned.prepare), [copy]);
    assert_eq!(words(&planned.put_back), [rename]);
    assert_eq!(words(&planned.undo_revert), back[..1]);
    assert_eq!((planned.kept, planned.discard), (None, vec![]));
}

#[test]
fn a_thin_snapshot_is_put_back_even_if_it_was_renamed() {
    let planned = plan(&thin(), RUNNING, &[("thin.s1", "lv_name", "elsewhere")]).unwrap();
    assert!(words(&planned.prepare)[0].ends_with("--name thin.after-revert-x vg0/elsewhere"));
}

#[test]
fn a_merge_that_was_cut_short_is_finished() {
    let merging = [("thick.s1", "lv_merging", "1"), ("thick", "lv_tags", MERGING_TAG)];
    let planned = plan(&thick(), GONE, &merging).unwrap();
    let mut steps = vec![
        "wait until no program has vg0/thick open".to_owned(),
        "run lvm lvchange --quiet --yes --activate n vg0/thick".into(),
        "run lvm lvchange --quiet --yes --activate y vg0/thick".into(),
        "wait for the end of the merge into vg0/thick".into(),
    ];
    steps.extend(take_again(64 * MIB));
    assert_eq!(words(&planned.put_back), steps);
    assert_eq!((planned.kept, planned.discard), (None, vec![]));
    refused(plan(&thick(), RUNNING, &merging), &["a merge of its snapshot waits"]);
}

#[test]
fn a_snapshot_that_was_merged_but_not_taken_anew_is_taken_of_the_volume() {
    let merged = [("thick.s1", "-", ""), ("thick", "lv_tags", MERGING_TAG)];
    let planned = plan(&thick(), GONE, &merged).unwrap();
    assert_eq!(words(&planned.put_back), take_again(60 * MIB));
    refused(
        plan(&thick(), RUNNING, &merged),
        &["an interrupted revert merged its snapshot", "has run since"],
    );
    // The tag of another disk or snapshot does not count.
    for tag in [MERGING_TAG.replace("xvda", "xvdb"), MERGING_TAG.replace("a001", "a002")] {
        let other = [("thick.s1", "-", ""), ("thick", "lv_tags", tag.as_str())];
        refused(plan(&thick(), GONE, &other), &["its snapshot vg0/thick.s1 no longer exists"]);
    }
}

#[test]
fn a_volume_that_becomes_another_snapshot_no_longer_claims_to_be_the_first() {
    // The revert was interrupted after the merge and before the snapshot was taken again.
    let first = MERGING_TAG.replace("a001", "a002");
    let tags = format!("a,{first},{MERGING_TAG}");
    let planned = plan(&thick(), GONE, &[("thick", "lv_tags", tags.as_str())]).unwrap();
    let mut steps = merge_steps();
    steps.insert(2, format!("run lvm lvchange --quiet --deltag {first} vg0/thick"));
    assert_eq!(words(&planned.put_back), steps);
}

#[test]
fn what_is_refused() {
    let long = "x".repeat(110);
    let table: [(SnapshotDisk, &[Edit<'_>], &str); 22] = [
        // Somebody put the tag on another volume, or on the guest's own one.
        (
            thick(),
            &[("thick.s1", "lv_tags", ""), ("thick", "lv_tags", TAG)],
            "vg0/thick bears its tag, but is not read-only",
        ),
        (
            thin(),
            &[("thin.s1", "lv_tags", ""), ("thin", "lv_tags", THIN_TAG)],
            "vg0/thin bears its tag, but is not read-only",
        ),
        (
            thick(),
            &[("thick.s1", "lv_tags", ""), ("thin.s1", "lv_tags", TAG)],
            "vg0/thin.s1 bears its tag, but is of another kind",
        ),
        (
            thin(),
            &[("thin.s1", "lv_tags", ""), ("thick.s1", "lv_tags", THIN_TAG)],
            "vg0/thick.s1 bears its tag, but is of another kind",
        ),
        (thick(), &[("thick.s1", "origin", "")], "bears its tag, but is no snapshot"),
        // Somebody may have written to it.
        (thin(), &[("thin.s1", "lv_permissions", "writeable")], "vg0/thin.s1 bears its tag, but"),
        (thick(), &[("thick.s1", "lv_snapshot_invalid", "1")], "its snapshot vg0/thick.s1 is lost"),
        (thick(), &[("thick.s1", "lv_device_open", "1")], "has its snapshot vg0/thick.s1 open"),
        (thin(), &[("thin.s1", "lv_device_open", "1")], "has its snapshot vg0/thin.s1 open"),
        (thick(), &[("thick.s1", "lv_tags", "")], "its snapshot vg0/thick.s1 no longer exists"),
        (thick(), &[("thick.s1", "-", "")], "its snapshot vg0/thick.s1 no longer exists"),
        (thin(), &[("thin.s1", "-", "")], "its snapshot vg0/thin.s1 no longer exists"),
        (
            thick(),
            &[("+again=thick.s1", "lv_size", "8388608")],
            "both vg0/thick.s1 and vg0/again bear its tag",
        ),
        (thick(), &[("thick.s1", "vg_name", "vg1")], "vg1/thick.s1 is in another group now"),
        (thick(), &[("thick.s1", "origin", "new")], "vg0/thick.s1 is a snapshot of new now"),
        (
            thick(),
            &[("thick", "lv_name", "new"), ("thick.s1", "origin", "new")],
            "is a snapshot of new now",
        ),
        (
            thick(),
            &[("+thick.before-revert-x=pool", "lv_size", "1")],
            "vg0/thick.before-revert-x exists",
        ),
        (
            thin(),
            &[("+thin.before-revert-x=pool", "lv_size", "1")],
            "vg0/thin.before-revert-x exists",
        ),
        (
            thin(),
            &[("+thin.after-revert-x=pool", "lv_size", "1")],
            "vg0/thin.after-revert-x exists",
        ),
        (
            thin(),
            &[("pool", "data_percent", "90.01")],
            "the data of its thin pool vg0/pool is 90 % full",
        ),
        (thin(), &[("pool", "metadata_percent", "99.99")], "the metadata of its thin pool"),
        (
            {
                let mut found = thin();
                let DiskSnapshot::Lvm(Lvm { volume, .. }) = &mut found.record.snapshot else {
                    unreachable!()
                };
                volume.clone_from(&long);
                found
            },
            &[],
            "would be too long",
        ),
    ];
    for (found, edits, words) in table {
        for world in [RUNNING, DISCARD, GONE] {
            refused(plan(&found, world, edits), &["cannot be reverted", words]);
        }
    }
}

#[test]
fn a_snapshot_is_known_by_its_tag_not_by_its_name() {
    let impostor = [("thick.s1", "lv_name", "renamed"), ("+thick.s1=renamed", "lv_tags", "")];
    let planned = plan(&thick(), RUNNING, &impostor);
    assert!(words(&planned.unwrap().put_back)[3].ends_with("--interval 1 vg0/renamed"));
    let tags = format!("a,{THIN_TAG},b");
    plan(&thin(), RUNNING, &[("thin.s1", "lv_tags", tags.as_str())]).unwrap();
    let longer = format!("{THIN_TAG}1");
    refused(
        plan(&thin(), RUNNING, &[("thin.s1", "lv_tags", longer.as_str())]),
        &["no longer exists"],
    );
}

#[test]
fn a_volume_that_another_domain_uses_is_not_touched() {
    for mut found in [thick(), thin()] {
        found.used_by = Some("disk xvda of domain web2".into());
        refused(plan(&found, RUNNING, &[]), &["also used by disk xvda of domain web2"]);
    }
}

/// LVM cannot create anything in it: refuse before the domain is destroyed.
#[test]
fn a_sick_pool_or_group_is_refused_before_anything_changes() {
    let groups: [(SnapshotDisk, &str, &str); 6] = [
        (thin(), "pool", "failed"),
        (thin(), "pool", "out_of_data"),
        (thin(), "pool", "metadata_read_only"),
        (thin(), "pool", "partial"),
        (thick(), "thick.s1", "partial"),
        (thin(), "thin.s1", "partial"),
    ];
    for (found, volume, health) in groups {
        let words = if health == "partial" { "a missing disk" } else { "LVM says of vg0/pool" };
        for world in [RUNNING, DISCARD, GONE] {
            let edits = [(volume, "lv_health_status", health)];
            refused(plan(&found, world, &edits), &["cannot be reverted", words]);
        }
    }
    refused(
        plan(&thin(), RUNNING, &[("pool", "lv_check_needed", "1")]),
        &["lvconvert --repair vg0/pool"],
    );
    refused(
        plan(&thick(), RUNNING, &[("thick.s1", "vg_missing_pv_count", "1")]),
        &["misses 1 of its disks"],
    );
    // A RAID in this state still works.
    plan(&thick(), RUNNING, &[("thick.s1", "lv_health_status", "mismatches exist")]).unwrap();
}

#[test]
fn what_lvs_says_when_it_fails_is_told() {
    for found in [thick(), thin()] {
        refused(plan_with(&found, GONE, &broken_lvs()), &["cannot be reverted", "no such luck"]);
    }
}
