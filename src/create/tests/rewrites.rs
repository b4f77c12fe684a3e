//! xl's own configurations of the domain after disks get new images.

use super::by_restore::seen_on_loop;
use super::*;
use crate::plan::undo;
use crate::support::disks as disk;

fn rewrites() -> Rewrites {
    Rewrites {
        cfg: Some(ReplaceCfg {
            path: "/etc/xen/web1.cfg".into(),
            old: "old".into(),
            new: "new".into(),
            backup: "/etc/xen/web1.cfg.bak-s1".into(),
            entries: vec!["vdev=xvdb,target=/srv/new".into()],
        }),
        stored: Some(("stored".into(), "stored, but new".into())),
    }
}

fn rewritten(seen: impl FnOnce(&Job) -> CreateInput, options: &[&str]) -> Plan {
    let job = job("s1", options);
    let seen = seen(&job);
    super::super::plan(&job, &seen, &disks(&job, &seen).unwrap(), &rewrites()).unwrap()
}

fn stores(steps: &[Step]) -> Vec<&StoreConfig> {
    steps
        .iter()
        .filter_map(|step| match step {
            Step::StoreConfig(store) => Some(store),
            _ => None,
        })
        .collect()
}

#[test]
fn what_config_update_stored_changes_together_with_libxls() {
    let plan = rewritten(seen, &[]);
    let [libxl, xl] = stores(&plan.prepare)[..] else { panic!("{plan}") };
    assert_eq!((libxl.whose, xl.whose), (ConfigOwner::Libxl, ConfigOwner::Xl));
    assert_eq!((xl.old.as_bytes(), xl.new.as_bytes()), (&b"stored"[..], &b"stored, but new"[..]));
    assert_eq!(xl.domain.domid, 3);
    let suspend = plan.prepare.iter().position(|step| matches!(step, Step::Suspend { .. }));
    let store = plan.prepare.iter().position(|step| matches!(step, Step::StoreConfig(_)));
    assert!(suspend < store);
    let what = "store xl's configuration: xvdb -> /srv/web1-xvdb.after-s1.qcow2";
    assert!(plan.to_string().contains(what), "{plan}");
}

#[test]
fn both_are_taken_back() {
    let plan = rewritten(seen, &[]);
    let back = undo(&plan.prepare);
    let [xl, libxl] = stores(&back)[..] else { panic!("{back:?}") };
    assert_eq!((xl.whose, libxl.whose), (ConfigOwner::Xl, ConfigOwner::Libxl));
    assert_eq!((xl.old.as_bytes(), xl.new.as_bytes()), (&b"stored, but new"[..], &b"stored"[..]));
    assert_eq!(libxl.new, CONFIG.into());
}

#[test]
fn the_users_file_is_changed_last_and_whatever_came_before() {
    let cases: [fn(&Job) -> CreateInput; 2] = [seen, seen_on_loop];
    for seen in cases {
        let plan = rewritten(seen, &[]);
        let last = Step::ReplaceCfg(rewrites().cfg.unwrap());
        // An image is good without its checksums.
        let finish: Vec<_> = plan.finish.iter().filter(|step| **step != Step::AddSums).collect();
        assert_eq!(finish.last(), Some(&&last));
        let others = [&plan.prepare[..], &plan.onward].concat();
        assert!(!others.iter().any(|step| matches!(step, Step::ReplaceCfg(_))));
    }
}

#[test]
fn a_restored_domain_has_nothing_stored_to_rewrite() {
    assert!(stores(&rewritten(seen_on_loop, &[]).prepare).is_empty());
}

#[test]
fn only_disks_that_get_another_image_change() {
    let changes_of = |seen: &dyn Fn(&Job) -> CreateInput, options: &[&str]| -> Vec<String> {
        let job = job("s1", options);
        let planned = disks(&job, &seen(&job)).unwrap();
        let text = |c: Change| format!("{} {} {}", c.vdev, c.format, c.target);
        changes(&planned).into_iter().map(text).collect()
    };
    let a = "xvda qcow2 /srv/web1-xvda.after-s1.qcow2";
    let b = "xvdb qcow2 /srv/web1-xvdb.after-s1.qcow2";
    assert_eq!(changes_of(&seen, &[]), [b]);
    assert_eq!(changes_of(&seen, &["xvda,external"]), [a, b]);
    assert_eq!(changes_of(&seen_on_loop, &[]), [b]);
    assert_eq!(changes_of(&seen, &["xvdb,reflink"]), [""; 0]);
    assert_eq!(changes_of(&seen, &["xvdb,none"]), [""; 0]);
    let with_tap = |job: &Job| super::kinds::seen_with(job, vec![disk::seen(disk::TAP)]);
    assert_eq!(changes_of(&with_tap, &[]), ["xvdc raw vhd:/srv/web1-xvdc.after-s1.vhd"]);
}
