//! Plans executed on a host where every step fails once.

use super::kinds::{seen_with, volume, volumes};
use super::*;
use crate::model::{Guest, Model};
use crate::plan::faults::try_every_fault;
use crate::plan::{Perform, execute};
use crate::support::disks as disk;

/// xvda in a qcow2 image, a reflink copy, a loop file that gets an overlay, and a VHD.
fn plan_of_all() -> Plan {
    let job = job("s1", &["xvdd,reflink"]);
    let copied = disk::seen(&disk::LOOP.replace("xvdb", "xvdd").replace("b.img", "d.img"));
    let disks = vec![disk::seen(disk::LOOP), disk::seen(disk::TAP), copied];
    let seen = seen_with(&job, disks);
    let planned = super::super::disks(&job, &seen).unwrap();
    super::super::plan(&job, &seen, &planned, &rewrites()).unwrap()
}

fn rewrites() -> Rewrites {
    let cfg = ReplaceCfg {
        path: "/etc/xen/web1.cfg".into(),
        old: Text::default(),
        new: Text::default(),
        backup: "/etc/xen/web1.cfg.bak-s1".into(),
        entries: vec!["vdev=xvdb,target=/srv/new".into()],
    };
    Rewrites { cfg: Some(cfg), stored: Some(("old".into(), "new".into())) }
}

/// qcow2 images with internal and external snapshots, and thick and thin volumes: no domain must be
/// restored.
fn plan_without_restore(paused: bool) -> Plan {
    let mut job = job("s2", &["xvdd,external"]);
    job.request.paused = paused;
    let qcow = disk::seen(&disk::QCOW2.replace("xvda", "xvdd").replace("a.qcow2", "d.qcow2"));
    let mut seen = seen_with(&job, vec![volume("xvdb", 0), volume("xvdc", 5), qcow]);
    seen.volumes = Ok(volumes());
    let planned = super::super::disks(&job, &seen).unwrap();
    super::super::plan(&job, &seen, &planned, &rewrites()).unwrap()
}

#[test]
fn every_fault_of_a_plan_with_a_restore() {
    let plan = plan_of_all();
    assert!(plan.commit.is_some() && !plan.onward.is_empty());
    assert!(try_every_fault(&plan, Guest::Runs) > 100);
}

#[test]
fn every_fault_of_a_plan_without_one() {
    for paused in [false, true] {
        let plan = plan_without_restore(paused);
        assert!(plan.commit.is_some() && plan.onward.is_empty());
        assert!(try_every_fault(&plan, Guest::Runs) > 100);
    }
}

#[test]
fn every_fault_of_small_plans() {
    // Without a disk that QEMU serves there is no transaction.
    let volumes_only = job("s2", &["xvda,none"]);
    let mut seen_volumes = seen_with(&volumes_only, vec![volume("xvdb", 0)]);
    seen_volumes.volumes = Ok(volumes());
    let internal = job("s2", &["xvdb,none"]);
    let mut unwatched = seen(&internal);
    unwatched.monitor = None;
    let mut piped = seen(&internal);
    piped.image = ImagePlace::Stdout;
    let cases = [(volumes_only, seen_volumes), (internal.clone(), unwatched), (internal, piped)];
    for (job, seen) in cases {
        assert!(try_every_fault(&plan(&job, &seen).unwrap(), Guest::Runs) > 20);
    }
}

#[test]
fn a_signal_is_heeded_only_while_all_can_be_taken_back() {
    struct Signalled {
        model: Model,
        calls: usize,
        after: usize,
    }
    impl Perform for Signalled {
        fn perform(&mut self, step: &Step) -> Result<()> {
            self.calls += 1;
            self.model.perform(step)
        }
        fn settle(&mut self, step: &Step) -> Result<bool> {
            self.model.settle(step)
        }
        fn interrupted(&self) -> bool {
            self.calls >= self.after
        }
    }
    for plan in [plan_of_all(), plan_without_restore(false)] {
        let steps = plan.prepare.len() + plan.onward.len() + plan.finish.len();
        for after in 0..steps {
            let model = Model::new(&plan, Guest::Runs);
            let before = model.state.clone();
            let mut host = Signalled { model, calls: 0, after };
            let result = execute(&plan, &mut host);
            if after < plan.prepare.len() {
                assert_eq!(result.unwrap_err().exit_code(), 1, "{after}");
                assert_eq!(host.model.state, before);
            } else {
                result.unwrap();
            }
        }
    }
}
