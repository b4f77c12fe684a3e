//! Tests of the planner, with hand-made observations of a running guest. `tests/delete/main.rs` uses
//! real files.

use std::slice;

use uuid::Uuid;

use super::*;
use crate::disk::FileFacts;
use crate::disk::image_tree::{DependentSnapshot, DiskUser, Running};
use crate::disk::kinds::External;
use crate::disk::merge_mark::Merging;
use crate::domain::Format;
use crate::plan::Step;
use crate::plan::deletion::Image;
use crate::support::disks::{facts, proof};
use crate::support::record::sample;

const STORED: &str = r#"{"c_info": {"name": "web1"}, "disks": [
    {"pdev_path": "/srv/o.qcow2", "vdev": "xvdb", "format": "qcow2", "readwrite": 1}]}"#;

fn web1() -> DomainId {
    DomainId { domid: 3, uuid: Uuid::from_u128(3), name: "web1".into() }
}

fn running() -> Running {
    Running { id: web1(), trouble: None }
}

fn member(path: &str, inode: u64, allocated: u64) -> TreeImage {
    let facts = FileFacts { inode, ..facts() };
    TreeImage {
        path: path.into(),
        id: facts.id(),
        format: Format::Qcow2,
        facts: Ok(facts),
        allocated,
        virtual_size: 64 << 20,
        below: None,
        inside: Ok(Vec::new()),
        users: Vec::new(),
        keepers: Vec::new(),
        open_in: vec![running()],
        opened_by: Vec::new(),
        created_by_us: true,
        room: (1, 1 << 40),
        unmarkable: None,
    }
}

fn keeper(name: &str) -> DependentSnapshot {
    DependentSnapshot {
        image: format!("/kept/web1/{name}.xlsave").into(),
        name: name.into(),
        id: Uuid::from_u128(9),
        vdev: "xvdb".into(),
        same: true,
        proven: true,
        fixed: None,
    }
}

fn user() -> DiskUser {
    DiskUser { domain: "web1".into(), same: true, vdev: "xvdb".into(), cfg: None }
}

/// `/srv/f.qcow2 <- /srv/o.qcow2`; the guest writes to the second one.
fn seen(frozen: u64, overlay: u64) -> DeleteInput {
    let mut record = sample();
    record.disks.remove(0);
    record.disks.truncate(1);
    record.disks[0].path = "/srv/f.qcow2".into();
    record.disks[0].format = Some(Format::Qcow2);
    let proof = proof();
    let kept = External { overlay: "/srv/o.qcow2".into(), proof: Some(proof) };
    record.disks[0].snapshot = kept.into();
    let below = Image { path: "/srv/f.qcow2".into(), format: Format::Qcow2 };
    let top =
        TreeImage { users: vec![user()], below: Some(below), ..member("/srv/o.qcow2", 6, overlay) };
    let family = ImageTree {
        record: record.disks[0].clone(),
        id: record.id,
        marked: false,
        away: None,
        base: Some(member("/srv/f.qcow2", facts().inode, frozen)),
        overlays: vec![top],
        above: Vec::new(),
        children: Vec::new(),
        vdevs: vec![(web1(), "xvdb".into())],
        volumes: Ok(Vec::new()),
    };
    DeleteInput {
        image: "/kept/web1/s1.xlsave".into(),
        marked: false,
        record,
        allocated: 1 << 20,
        families: vec![family],
        begun: Vec::new(),
        children: Vec::new(),
        domains: vec![Involved {
            id: web1(),
            stored: STORED.into(),
            monitor: Some(Process { pid: 7, started: 700 }),
            params: vec![(
                "xvdb".into(),
                vec![("/libxl/3/params".into(), "qcow2:/srv/o.qcow2".into())],
            )],
        }],
        runs: true,
        cfg: None,
        unseen: Vec::new(),
    }
}

fn planned(seen: &DeleteInput, flatten: bool) -> Result<Plan> {
    let disks = disks(seen, DeleteOptions { flatten })?;
    plan(seen, &disks, &Rewrites::default())
}

fn words(steps: &[Step]) -> Vec<String> {
    steps.iter().map(ToString::to_string).collect()
}

fn refused(seen: &DeleteInput, told: &[&str]) {
    let error = planned(seen, false).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    let text = error.chain().join(": ") + error.hint.as_deref().unwrap_or_default();
    told.iter().for_each(|word| assert!(text.contains(word), "no {word:?} in {text}"));
}

fn overlay(seen: &mut DeleteInput) -> &mut TreeImage {
    &mut seen.families[0].overlays[0]
}

fn base(seen: &mut DeleteInput) -> &mut TreeImage {
    seen.families[0].base.as_mut().unwrap()
}

#[test]
fn a_stream_changes_no_path_and_wins_a_tie() {
    let plan = planned(&seen(5 << 20, 5 << 20), false).unwrap();
    assert_eq!(words(&plan.prepare), ["check that the configuration of domain 3 has not changed"]);
    assert_eq!(
        words(&plan.onward),
        [
            "stream /srv/f.qcow2 into /srv/o.qcow2, 5 MiB at most, by the QEMU of domain 3",
            "remove /srv/f.qcow2",
            "remove /kept/web1/s1.xlsave.deleting",
        ]
    );
    assert_eq!(
        plan.notes,
        ["stream of 5 MiB from /srv/f.qcow2 to /srv/o.qcow2; a commit would be of 5 MiB"]
    );
    assert!(plan.onward_again);
    assert_eq!(
        plan.on_failure.remaining[0].command.as_deref(),
        Some("xl-snapshot delete /kept/web1/s1.xlsave")
    );
}

#[test]
fn an_active_commit_stores_the_path_while_the_xl_process_is_held() {
    let plan = planned(&seen(5 << 20, 4 << 20), false).unwrap();
    assert_eq!(
        words(&plan.onward),
        [
            "mark /srv/f.qcow2 as being merged",
            "commit /srv/o.qcow2 to /srv/f.qcow2, 4 MiB at most, by the QEMU of domain 3",
            "stop the domain's xl process 7",
            "check that the configuration of domain 3 has not changed",
            "mark /srv/f.qcow2: the guest may write to it from now on",
            "switch xvdb of the guest to /srv/f.qcow2",
            "store libxl's configuration: xvdb -> /srv/f.qcow2",
            "write to xenstore: /libxl/3/params = qcow2:/srv/f.qcow2",
            "continue the domain's xl process 7",
            "sync /srv/f.qcow2",
            "remove /srv/o.qcow2",
            "take the mark off /srv/f.qcow2",
            "remove /kept/web1/s1.xlsave.deleting",
        ]
    );
    // Whatever fails, the xl process continues.
    assert_eq!(words(&plan.on_failure.steps), ["continue the domain's xl process 7"]);
}

#[test]
fn what_a_guest_writes_to_is_never_overwritten_by_what_is_older() {
    let mut seen = seen(5 << 20, 4 << 20);
    let facts = base(&mut seen).facts.clone().unwrap();
    base(&mut seen).users = vec![user()];
    base(&mut seen).facts.as_mut().unwrap().merging = Some(Merging {
        id: seen.record.id,
        how: disk::merge_mark::MergeStep::Commit("/srv/o.qcow2".into()),
        size: facts.size,
        mtime: facts.mtime,
        writable: false,
    });
    overlay(&mut seen).users.clear();
    overlay(&mut seen).open_in.clear();
    seen.marked = true;
    let plan = planned(&seen, false).unwrap();
    let words = words(&plan.onward);
    assert!(!words.iter().any(|word| word.starts_with("commit ")), "{words:?}");
    assert!(words.contains(&"store libxl's configuration: xvdb -> /srv/f.qcow2".to_owned()));
    assert!(words.contains(&"remove /srv/o.qcow2".to_owned()));
    assert_eq!(plan.commit, None);
}

#[test]
fn a_younger_snapshot_is_proven_anew() {
    let mut commits = seen(5 << 20, 4 << 20);
    overlay(&mut commits).users.clear();
    overlay(&mut commits).keepers = vec![keeper("s2")];
    let top = TreeImage { users: vec![user()], ..member("/srv/t.qcow2", 7, 0) };
    let id = overlay(&mut commits).id;
    commits.families[0].above = vec![(id, top)];
    let plan = planned(&commits, false).unwrap();
    let rewrites: Vec<&Deletion> = plan
        .onward
        .iter()
        .filter_map(|step| match step {
            Step::Delete(rewrite @ Deletion::Rewrite { .. }) => Some(rewrite),
            _ => None,
        })
        .collect();
    let [Deletion::Rewrite { changes, name, .. }] = rewrites.as_slice() else { panic!() };
    let moved = Change::Moved {
        vdev: "xvdb".into(),
        to: Image { path: "/srv/f.qcow2".into(), format: Format::Qcow2 },
    };
    assert_eq!((changes.as_slice(), name.as_str()), (slice::from_ref(&moved), "s2"));
    // No guest's disk changes, and QEMU makes the other image the base of the image above.
    let text = words(&plan.onward).join("\n");
    assert!(!text.contains("store") && !text.contains("have /srv/t.qcow2"), "{text}");
    // If its record cannot be replaced, nothing is done.
    overlay(&mut commits).keepers[0].fixed = Some("no room".into());
    refused(&commits, &["the record of snapshot s2", "no room"]);
}

#[test]
fn what_would_do_harm_is_refused() {
    let with = |change: &dyn Fn(&mut DeleteInput)| {
        let mut seen = seen(5 << 20, 4 << 20);
        change(&mut seen);
        seen
    };
    let inside =
        crate::record::QcowSnapshot { id: "1".into(), name: "i".into(), date: facts().mtime };
    refused(
        &with(&|seen| overlay(seen).inside = Ok(vec![inside.clone()])),
        &["internal snapshots"],
    );
    refused(
        &with(&|seen| overlay(seen).open_in[0].trouble = Some("the block job b is at work".into())),
        &["the block job b is at work"],
    );
    refused(
        &with(&|seen| overlay(seen).opened_by = vec!["qemu-nbd".into()]),
        &["open in qemu-nbd"],
    );
    refused(&with(&|seen| seen.unseen = vec!["a directory".into()]), &["need it: a directory"]);
    refused(
        &with(&|seen| {
            overlay(seen).room.1 = 0;
            base(seen).room.1 = 0;
        }),
        &["5 MiB may be needed on the file system of /srv/o.qcow2", "4 MiB may be needed"],
    );
    refused(
        &with(&|seen| {
            let clone = DiskUser { domain: "web2".into(), same: false, ..user() };
            overlay(seen).users = vec![clone];
        }),
        &["it is the base of a clone: /srv/o.qcow2 (xvdb of web2)", "--flatten"],
    );
    let siblings = with(&|seen| {
        let other = TreeImage { open_in: Vec::new(), ..member("/srv/k.qcow2", 8, 0) };
        seen.families[0].overlays.push(other);
    });
    refused(
        &siblings,
        &["is the base of /srv/o.qcow2 (xvdb of web1) and /srv/k.qcow2", "--flatten"],
    );
    let flat = words(&planned(&siblings, true).unwrap().onward);
    assert_eq!(flat.iter().filter(|word| word.starts_with("stream ")).count(), 2, "{flat:?}");
}

#[test]
fn an_old_configuration_file_does_not_hide_that_a_file_is_frozen() {
    // The frozen file of s2, which g.cfg still names.
    let mut stale = seen(4 << 20, 5 << 20);
    overlay(&mut stale).users = vec![DiskUser { cfg: Some("/etc/xen/web1.cfg".into()), ..user() }];
    overlay(&mut stale).keepers = vec![keeper("s2")];
    let onward = words(&planned(&stale, false).unwrap().onward);
    let expected = [
        "mark /srv/o.qcow2 as being merged",
        "update the record of snapshot s2 in /kept/web1/s2.xlsave",
    ];
    expected.iter().for_each(|step| assert!(onward.contains(&(*step).to_owned()), "{onward:?}"));
    // A broken snapshot gets no new proof: the merge is refused.
    overlay(&mut stale).keepers[0].proven = false;
    refused(&stale, &["snapshot s2 is broken already"]);
}

#[test]
fn a_frozen_file_that_nobody_names_is_not_written_to() {
    let mut unknown = seen(4 << 20, 5 << 20);
    overlay(&mut unknown).users.clear();
    overlay(&mut unknown).facts.as_mut().unwrap().writable = false;
    refused(&unknown, &["is frozen, but no known snapshot names it", "chmod u+w /srv/o.qcow2"]);
}

#[test]
fn an_overlay_is_not_merged_again_once_a_guest_may_have_written_to_the_base() {
    let mut down = seen(5 << 20, 4 << 20);
    let FileFacts { size, mtime, writable, .. } = base(&mut down).facts.clone().unwrap();
    base(&mut down).facts.as_mut().unwrap().merging = Some(Merging {
        id: down.record.id,
        how: disk::merge_mark::MergeStep::Pivot("/srv/o.qcow2".into()),
        size,
        mtime,
        writable,
    });
    // The guest still runs on the overlay: it was not switched.
    let onward = words(&planned(&down, false).unwrap().onward).join("\n");
    assert!(onward.contains("commit /srv/o.qcow2 to /srv/f.qcow2"), "{onward}");
    overlay(&mut down).users.clear();
    overlay(&mut down).open_in.clear();
    refused(&down, &["may have written to /srv/f.qcow2", "/etc/xen"]);
}

#[test]
fn whoever_started_the_domain_during_a_merge_keeps_its_image() {
    let mut off = seen(5 << 20, 4 << 20);
    (off.runs, off.domains) = (false, Vec::new());
    base(&mut off).open_in.clear();
    overlay(&mut off).open_in.clear();
    overlay(&mut off).users = vec![DiskUser { cfg: Some("/etc/xen/web1.cfg".into()), ..user() }];
    let onward = words(&planned(&off, false).unwrap().onward);
    let at = |start: &str| onward.iter().position(|step| step.starts_with(start)).unwrap();
    assert!(at("commit ") < at("check that web1 "), "{onward:?}");
    assert!(at("check that web1 ") < at("remove /srv/o.qcow2"), "{onward:?}");
}

#[test]
fn where_one_way_is_closed_the_other_is_taken() {
    let how = |change: &dyn Fn(&mut DeleteInput)| {
        let mut seen = seen(5 << 20, 4 << 20);
        change(&mut seen);
        disks(&seen, DeleteOptions::default()).unwrap()[0].merged[0].how
    };
    assert_eq!(how(&|_| ()), "commit");
    assert_eq!(how(&|seen| base(seen).room.1 = 0), "stream");
    assert_eq!(how(&|seen| base(seen).unmarkable = Some("no".into())), "stream");
    assert_eq!(how(&|seen| base(seen).format = Format::Vhd), "stream");
    assert_eq!(how(&|seen| base(seen).virtual_size = 65 << 20), "stream");
    assert_eq!(how(&|seen| overlay(seen).users.clear()), "stream");
}

#[test]
fn a_file_of_the_users_own_is_kept() {
    let mut alone = seen(5 << 20, 4 << 20);
    alone.families[0].overlays.clear();
    base(&mut alone).open_in.clear();
    let removed =
        |seen: &DeleteInput| disks(seen, DeleteOptions::default()).unwrap().remove(0).removed;
    assert_eq!(removed(&alone), ["/srv/f.qcow2"]);
    base(&mut alone).created_by_us = false;
    assert!(removed(&alone).is_empty());
    let kept = disks(&alone, DeleteOptions::default()).unwrap().remove(0).kept.unwrap();
    assert!(kept.contains("rm /srv/f.qcow2"), "{kept}");
}
