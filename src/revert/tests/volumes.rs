//! Several logical volumes in one revert.

use super::*;
use crate::disk::kinds::Lvm;
use crate::record::DiskRecord;
use crate::show::{ShowInput, show};
use crate::support::disks::words;
use crate::tool::volumes;

/// `vg0` with the volumes `a` and `b` of 64 MiB each, their snapshots, and `free` bytes.
fn report(free: u64) -> Vec<Volume> {
    let volume = |name: &str, origin: &str, tags: &str, size: u64| {
        serde_json::json!({
            "vg_name": "vg0", "lv_name": name, "lv_size": size.to_string(), "lv_layout": "linear",
            "origin": origin, "pool_lv": "", "lv_tags": tags, "lv_device_open": "0",
            "lv_permissions": if origin.is_empty() { "writeable" } else { "read-only" },
            "lv_merging": "0", "lv_snapshot_invalid": "0", "data_percent": "1.00",
            "metadata_percent": "", "lv_kernel_major": "253", "lv_kernel_minor": "0",
            "vg_free": free.to_string(), "vg_extent_size": "4194304",
        })
    };
    let tag = |vdev: &str| format!("xl-snapshot:{}:{vdev}", sample().id);
    let list = [
        volume("a", "", "", 64 << 20),
        volume("a.s1", "a", &tag("xvda"), 4 << 20),
        volume("b", "", "", 64 << 20),
        volume("b.s1", "b", &tag("xvdb"), 8 << 20),
    ];
    let report = serde_json::json!({"report": [{"lv": list}]});
    volumes::parse(report.to_string().as_bytes()).unwrap()
}

/// The sample snapshot, but of two thick volumes.
pub(crate) fn found_volumes(free: u64) -> RevertInput {
    let mut found = found();
    found.disks.truncate(2);
    for (disk, volume) in found.disks.iter_mut().zip(["a", "b"]) {
        disk.record = DiskRecord {
            path: format!("/dev/vg0/{volume}").into(),
            format: Some(crate::domain::Format::Raw),
            snapshot: DiskSnapshot::Lvm(Lvm {
                group: "vg0".into(),
                volume: volume.into(),
                snapshot: format!("{volume}.s1"),
                size: Some(4 << 20),
            }),
            ..disk.record.clone()
        };
        disk.top = Some(disk.record.path.clone());
        disk.file = Err("it is not a regular file".into());
        disk.chain.clear();
    }
    let config = CONFIG.split("\"disks\"").next().unwrap();
    found.config = DomainConfig::parse(&format!(
        r#"{config}"disks": [
            {{"pdev_path": "/dev/vg0/a", "vdev": "xvda", "format": "raw", "readwrite": 1}},
            {{"pdev_path": "/dev/vg0/b", "vdev": "xvdb", "format": "raw", "readwrite": 1}}
        ]}}"#
    ))
    .unwrap();
    found.record.disks = found.disks.iter().map(|disk| disk.record.clone()).collect();
    found.volumes = Ok(report(free));
    found
}

pub(super) const DISCARD: Options = Options { discard_current: true, ..OPTIONS };

#[test]
fn disks_are_put_back_at_the_same_time_each_in_its_order() {
    let plan = plan(&found_volumes(136 << 20), OPTIONS).unwrap().plan;
    assert_eq!(
        plan.to_string(),
        "\
Revert of web1 to s1:
   1   stop the domain's xl process 77
   2   check that domain 3 still exists
   3   run lvm lvchange --quiet --addtag xl-snapshot-rehearsal --deltag xl-snapshot-rehearsal vg0/a; at the same time run lvm lvchange --quiet --addtag xl-snapshot-rehearsal --deltag xl-snapshot-rehearsal vg0/b
   4   wait while others are restored: one for each processor at a time
   5   destroy domain 3 and wait until its QEMU has ended
   6   wait until domain 3 is completely destroyed
   7   continue the domain's xl process 77
   8   wait until no program has vg0/a open; at the same time wait until no program has vg0/b open
   9   run lvm lvcreate --quiet --yes --snapshot --permission r --addtag xl-snapshot-before:0b41a0a5-4a1c-4b3c-8f1e-93d4b0b1a001:xvda --name a.before-revert-20260302-000000 --size 71303168b vg0/a; at the same time run lvm lvcreate --quiet --yes --snapshot --permission r --addtag xl-snapshot-before:0b41a0a5-4a1c-4b3c-8f1e-93d4b0b1a001:xvdb --name b.before-revert-20260302-000000 --size 71303168b vg0/b
  10   run lvm lvchange --quiet --addtag xl-snapshot-merging:0b41a0a5-4a1c-4b3c-8f1e-93d4b0b1a001:xvda vg0/a; at the same time run lvm lvchange --quiet --addtag xl-snapshot-merging:0b41a0a5-4a1c-4b3c-8f1e-93d4b0b1a001:xvdb vg0/b
  11   run lvm lvconvert --quiet --yes --merge --interval 1 vg0/a.s1; at the same time run lvm lvconvert --quiet --yes --merge --interval 1 vg0/b.s1
  12   wait for the end of the merge into vg0/a; at the same time wait for the end of the merge into vg0/b
  13   run lvm lvcreate --quiet --yes --snapshot --permission r --addtag xl-snapshot:0b41a0a5-4a1c-4b3c-8f1e-93d4b0b1a001:xvda --name a.s1 --size 4194304b vg0/a; at the same time run lvm lvcreate --quiet --yes --snapshot --permission r --addtag xl-snapshot:0b41a0a5-4a1c-4b3c-8f1e-93d4b0b1a001:xvdb --name b.s1 --size 8388608b vg0/b
  14   run lvm lvchange --quiet --deltag xl-snapshot-merging:0b41a0a5-4a1c-4b3c-8f1e-93d4b0b1a001:xvda vg0/a; at the same time run lvm lvchange --quiet --deltag xl-snapshot-merging:0b41a0a5-4a1c-4b3c-8f1e-93d4b0b1a001:xvdb vg0/b
  15   restore web1 with xl, paused
  16   unpause web1
note: the current contents of xvda are kept in the volume vg0/a.before-revert-20260302-000000
note: the current contents of xvdb are kept in the volume vg0/b.before-revert-20260302-000000
"
    );
}

#[test]
fn a_failure_before_the_guest_runs_says_how_to_go_on_and_leaves_nothing_half_done() {
    let plan = plan(&found_volumes(136 << 20), OPTIONS).unwrap().plan;
    let words = |steps: &[Step]| steps.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(words(&plan.prepare)[1], "check that domain 3 still exists");
    assert_eq!(
        words(&plan.on_failure.steps),
        ["wait until domain 3 is completely destroyed", "continue the domain's xl process 77"]
    );
    let command = plan.on_failure.remaining[0].command.as_deref();
    assert_eq!(command, Some("xl-snapshot revert /x/s1.xlsave"));
    assert_eq!(
        plan.on_failure.remaining[2].what,
        "If xvdb is already reverted, its previous contents are in the volume vg0/b.before-revert-20260302-000000"
    );
}

#[test]
fn the_image_is_not_switched_and_the_users_file_stays_right() {
    let revert = plan(&found_volumes(136 << 20), OPTIONS).unwrap();
    assert_eq!(revert.images, [None, None]);
    assert!(revert.cfg_lines.is_empty());
}

#[test]
fn what_is_kept_until_the_end_is_deleted_after_the_guest_runs() {
    let finish = plan(&found_volumes(136 << 20), DISCARD).unwrap().plan.finish;
    assert_eq!(
        words(&finish),
        [
            "unpause web1",
            "run lvm lvremove --quiet --yes vg0/a.before-revert-20260302-000000",
            "run lvm lvremove --quiet --yes vg0/b.before-revert-20260302-000000",
        ]
    );
}

#[test]
fn volumes_that_can_be_kept_only_one_by_one_are_refused_together() {
    let error = plan(&found_volumes(128 << 20), OPTIONS).unwrap_err();
    assert_eq!(
        error.chain(),
        [
            "The current contents of the disks of web1 cannot be kept",
            "the volume group vg0 has 128 MiB free, and all of them together take 136 MiB"
        ]
    );
    assert_eq!(error.kind, Kind::Refused);
    assert!(error.hint.unwrap().contains("--discard-current"));
}

#[test]
fn show_tells_of_a_lack_of_space_what_revert_does() {
    let shown = |free| {
        let RevertInput { record, disks, volumes, now, .. } = found_volumes(free);
        let looked = ShowInput { disks, volumes, troubles: vec![], unseen: vec![], runs: true };
        show("s1", record, None, false, None, looked, now)
    };
    // Too little for one of them, and for both.
    for free in [0, 128 << 20] {
        let error = plan(&found_volumes(free), OPTIONS).unwrap_err();
        let shown = shown(free);
        assert!(!shown.revertible);
        let first = &shown.troubles[0];
        let chain = error.chain().join(": ");
        assert!(chain.contains(&first.why), "{chain}, {first}");
        assert!(first.hint.contains("--discard-current"));
        // The snapshot itself is good.
        assert!(shown.disks.iter().all(|disk| disk.state == "present"));
    }
    assert!(shown(136 << 20).revertible);
}

#[test]
fn what_has_no_room_is_given_up_when_asked() {
    for free in [128_u64 << 20, 0] {
        let revert = plan(&found_volumes(free), DISCARD).unwrap();
        let text = revert.plan.to_string();
        assert!(!text.contains("before-revert"), "{text}");
        assert!(text.contains("--merge --interval 1 vg0/a.s1"), "{text}");
        assert!(text.contains("note: the current contents of xvda are lost"), "{text}");
        assert_eq!(revert.kept, [None, None]);
        assert_eq!(words(&revert.plan.finish), ["unpause web1"]);
    }
}

#[test]
fn a_running_domain_is_told_from_one_that_is_gone() {
    // A merge of xvda's snapshot waits.
    let waiting = |same: Option<Running>| {
        let mut found = found_volumes(136 << 20);
        found.same = same;
        let Ok(volumes) = &mut found.volumes else { unreachable!() };
        volumes[1].merging = true;
        plan(&found, OPTIONS)
    };
    let running = found_volumes(0).same;
    let error = waiting(running).unwrap_err();
    assert!(error.chain()[1].contains("a merge of its snapshot waits"), "{:?}", error.chain());
    let text = waiting(None).unwrap().plan.to_string();
    assert!(text.contains("lvchange --quiet --yes --activate y vg0/a"), "{text}");
}

#[test]
fn what_the_kernel_has_open_is_put_back_when_all_of_the_domain_is_gone() {
    let awaited = |found: &RevertInput| {
        let onward = plan(found, OPTIONS).unwrap().plan.onward;
        onward.iter().position(|step| matches!(step, Step::AwaitDestroyed { .. })).unwrap()
    };
    // Images that only QEMU has open are reverted before that.
    assert_eq!(awaited(&found()), 2);
    assert_eq!(awaited(&found_volumes(136 << 20)), 0);
}
