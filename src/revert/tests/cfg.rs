//! The domain's xl configuration file after a revert.

use super::*;
use crate::model::Guest;
use crate::plan::ReplaceCfg;
use crate::plan::faults::try_every_fault;
use crate::xlcfg::Change;

fn replace() -> ReplaceCfg {
    ReplaceCfg {
        path: "/etc/xen/web1.cfg".into(),
        old: "old".into(),
        new: "new".into(),
        backup: "/etc/xen/web1.cfg.bak-before-revert-20260302-000000".into(),
        entries: vec!["vdev=xvdb,target=/it's".into()],
    }
}

fn with(cfg: CfgAfter, options: Options) -> Revert {
    plan(&found(), options).unwrap().with_cfg(cfg)
}

#[test]
fn the_file_has_to_name_what_the_guest_runs_on() {
    let change = |vdev: &str, target: &str, format: &str, needed| DiskChange {
        change: Change { vdev: vdev.into(), target: target.into(), format: format.into() },
        needed,
    };
    // hdc is not in the snapshot.
    let at_once = plan(&found(), OPTIONS).unwrap().changes;
    let b = change("xvdb", "/srv/new1.qcow2", "qcow2", true);
    assert_eq!(at_once, [change("xvda", "/srv/a.qcow2", "qcow2", false), b.clone()]);
    // The guest has continued in an overlay since.
    let mut later = found();
    later.disks[0].top = Some("/srv/later.qcow2".into());
    let revert = plan(&later, OPTIONS).unwrap();
    assert_eq!(revert.changes, [change("xvda", "/srv/a.qcow2", "qcow2", true), b]);
    assert_eq!(revert.cfg_lines[0], "format=qcow2,vdev=xvda,access=rw,target=/srv/a.qcow2");
}

#[test]
fn it_is_rewritten_when_the_guest_runs_and_before_anything_is_deleted() {
    let step = Step::ReplaceCfg(replace());
    for (paused, at) in [(false, 1), (true, 0)] {
        let options = Options { paused, discard_current: true };
        let revert = with(CfgAfter::Replace(replace()), options);
        assert_eq!(revert.plan.finish.iter().position(|s| *s == step), Some(at));
        assert!(revert.plan.finish.len() > at + 1);
        assert!(revert.cfg_lines.is_empty());
    }
}

#[test]
fn one_that_cannot_be_rewritten_is_told_of_and_hinders_nothing() {
    let trouble = CfgAfter::Trouble { path: "/etc/xen/web1.cfg".into(), why: "It is gone".into() };
    let before = plan(&found(), OPTIONS).unwrap();
    let revert = with(trouble, OPTIONS);
    assert_eq!(
        revert.plan.notes.last().unwrap(),
        "/etc/xen/web1.cfg will not be rewritten: It is gone"
    );
    assert_eq!((revert.plan.finish, revert.cfg_lines), (before.plan.finish, before.cfg_lines));
    assert_eq!(with(CfgAfter::Unknown, OPTIONS), plan(&found(), OPTIONS).unwrap());
    assert!(with(CfgAfter::Right, OPTIONS).cfg_lines.is_empty());
}

#[test]
fn if_it_is_not_rewritten_the_entries_are_told() {
    let words = Step::ReplaceCfg(replace()).in_words().unwrap();
    assert!(words.contains("give /etc/xen/web1.cfg these disk entries"), "{words}");
    assert!(words.ends_with(r"'vdev=xvdb,target=/it\'s'"), "{words}");
}

#[test]
fn every_fault_with_a_file() {
    for discard_current in [false, true] {
        let options = Options { paused: false, discard_current };
        let plan = with(CfgAfter::Replace(replace()), options).plan;
        assert!(try_every_fault(&plan, Guest::Runs) > 10);
    }
}
