//! A plan with a restore, carried out on a host where everything fails once.

use super::kinds::seen_with;
use super::*;
use crate::disk::tests as disk;
use crate::plan::{Perform, execute};

/// Does every step but those it is told to fail, by their number in order of the calls.
struct Host {
    fails: fn(usize, usize) -> bool,
    failed: usize,
    tried: Vec<Step>,
    done: Vec<Step>,
    stop_after: Option<usize>,
}

impl Host {
    fn new(failed: usize, fails: fn(usize, usize) -> bool) -> Host {
        Host { fails, failed, tried: Vec::new(), done: Vec::new(), stop_after: None }
    }
}

impl Perform for Host {
    fn perform(&mut self, step: &Step) -> Result<()> {
        let number = self.tried.len();
        self.tried.push(step.clone());
        if (self.fails)(number, self.failed) {
            return Err(Error::failed("No"));
        }
        self.done.push(step.clone());
        Ok(())
    }

    fn settle(&mut self, _: &Step) -> Result<bool> {
        Ok(false)
    }

    fn interrupted(&self) -> bool {
        self.stop_after.is_some_and(|calls| self.tried.len() >= calls)
    }
}

/// xvda in a qcow2 image, a reflink copy, a loop file that gets an overlay, and a VHD.
fn plan_of_all() -> Plan {
    let job = job("s1", &["xvdd,reflink"]);
    let copied = disk::seen(&disk::LOOP.replace("xvdb", "xvdd").replace("b.img", "d.img"));
    let disks = vec![disk::seen(disk::LOOP), disk::seen(disk::TAP), copied];
    let seen = seen_with(&job, disks);
    let rewrites = Rewrites {
        cfg: Some(ReplaceCfg {
            path: "/etc/xen/web1.cfg".into(),
            old: String::new(),
            new: String::new(),
            backup: "/etc/xen/web1.cfg.bak-s1".into(),
        }),
        stored: None,
    };
    let planned = super::super::disks(&job, &seen).unwrap();
    super::super::plan(&job, &seen, &planned, &rewrites).unwrap()
}

/// All steps, in order, and how many of them are before the point of no return.
fn steps(plan: &Plan) -> (Vec<Step>, usize) {
    let before = plan.prepare.len() + plan.commit.iter().len();
    let all = plan.prepare.iter().chain(&plan.commit).chain(&plan.onward).chain(&plan.finish);
    (all.cloned().collect(), before)
}

/// Whether a step takes something away that a snapshot needs.
fn loses(step: &Step) -> bool {
    matches!(
        step,
        Step::RemoveNew { .. }
            | Step::RemoveFile { .. }
            | Step::DiscardImage
            | Step::Unprotect { .. }
            | Step::Rename { .. }
    )
}

/// What undoes a step, one by one.
fn undoes(step: &Step) -> Vec<Step> {
    step.undo().map(Step::apart).unwrap_or_default()
}

#[test]
fn the_plan_has_every_kind_of_step_that_could_be_lost() {
    let (all, before) = steps(&plan_of_all());
    let flat: Vec<Step> = all[..before].iter().cloned().flat_map(Step::apart).collect();
    let has = |wanted: fn(&Step) -> bool| flat.iter().filter(|step| wanted(step)).count();
    assert_eq!(has(|step| matches!(step, Step::NewFile { .. })), 2);
    assert_eq!(has(|step| matches!(step, Step::Clone { .. })), 1);
    assert_eq!(has(|step| matches!(step, Step::Protect { .. })), 2);
    assert_eq!(has(|step| matches!(step, Step::OpenImage(_))), 1);
    assert_eq!(has(|step| matches!(step, Step::Transaction { .. })), 1);
}

#[test]
fn before_the_point_of_no_return_a_failure_leaves_everything_as_it_was() {
    let plan = plan_of_all();
    let (all, before) = steps(&plan);
    for failed in 0..before {
        let mut host = Host::new(failed, |number, failed| number == failed);
        let error = execute(&plan, &mut host).unwrap_err();
        assert_eq!(error.exit_code(), 1, "{}", all[failed]);
        assert!(error.left.is_empty());
        // The failed step may have happened half-way. The transaction is all or nothing.
        let taken_back = &all[..=failed];
        let expected: Vec<Step> = taken_back.iter().rev().flat_map(undoes).collect();
        assert_eq!(host.done[failed..], expected, "{}", all[failed]);
        assert!(!host.done.iter().any(|step| matches!(step, Step::Destroy { .. })));
    }
}

#[test]
fn after_it_nothing_is_ever_taken_away() {
    let plan = plan_of_all();
    let (all, before) = steps(&plan);
    // Once, or for ever from then on: the ways out must hold then, too.
    let ways: [fn(usize, usize) -> bool; 2] =
        [|number, failed| number == failed, |number, failed| number >= failed];
    for fails in ways {
        for failed in before..all.len() {
            let mut host = Host::new(failed, fails);
            let error = execute(&plan, &mut host).unwrap_err();
            assert_eq!(error.exit_code(), 4, "{}", all[failed]);
            assert!(
                error.left.iter().any(|left| left.command.is_some()) || failed + 1 == all.len()
            );
            assert!(!host.tried.iter().any(loses), "{}", all[failed]);
            assert!(!host.tried.contains(&Step::Resume { domid: 3 }), "{}", all[failed]);
        }
    }
}

#[test]
fn a_failure_on_the_way_names_both_ways_out_and_does_nothing_more() {
    let plan = plan_of_all();
    let (all, before) = steps(&plan);
    for failed in before..before + plan.onward.len() {
        let mut host = Host::new(failed, |number, failed| number == failed);
        let error = execute(&plan, &mut host).unwrap_err();
        assert_eq!(error.left, plan.stranded.left);
        assert_eq!(host.tried, all[..=failed]);
    }
}

#[test]
fn a_domain_that_was_restored_but_not_unpaused_is_said_to_be_so() {
    let plan = plan_of_all();
    let (all, _) = steps(&plan);
    let unpause = all.iter().position(|step| matches!(step, Step::Unpause { .. })).unwrap();
    let mut host = Host::new(unpause, |number, failed| number == failed);
    let error = execute(&plan, &mut host).unwrap_err();
    let commands: Vec<_> = error.left.iter().map(|left| left.command.as_deref()).collect();
    assert_eq!(commands, [Some("xl unpause web1")]);
    // Its disks are other ones for all that.
    assert!(matches!(host.done.last(), Some(Step::ReplaceCfg(_))));
}

#[test]
fn a_signal_is_heeded_only_while_all_can_be_taken_back() {
    let plan = plan_of_all();
    let (all, _) = steps(&plan);
    for calls in 0..all.len() {
        let mut host = Host::new(usize::MAX, |_, _| false);
        host.stop_after = Some(calls);
        let result = execute(&plan, &mut host);
        if calls < plan.prepare.len() {
            assert_eq!(result.unwrap_err().exit_code(), 1, "{calls}");
            assert!(!host.done.iter().any(|step| matches!(step, Step::Destroy { .. })));
        } else {
            result.unwrap();
            assert_eq!(host.done, all, "{calls}");
        }
    }
}
