use super::super::OnFailure;
use uuid::Uuid;

use super::*;
use crate::domain::DomainId;
use crate::process::Process;
use crate::tool::{Invocation, Tool};

const XL: Process = Process { pid: 7, started: 700 };

#[test]
fn what_step_and_plan_both_leave_is_told_once() {
    let remaining = |what: &str| Remaining { what: what.into(), command: None };
    let error = Error::failed("no").unfinished(vec![remaining("it is down")]);
    let plan_leaves = vec![remaining("it is down"), remaining("a file")];
    let told = failure(&Plan::default(), &Step::FinishCompression, error, plan_leaves);
    assert_eq!(told.remaining, [remaining("it is down"), remaining("a file")]);
}

/// Records the steps, and fails those it is told to.
#[derive(Default)]
struct Fake {
    done: Vec<String>,
    fail: Vec<usize>,
    calls: usize,
}

impl Perform for Fake {
    fn perform(&mut self, step: &Step) -> Result<()> {
        self.calls += 1;
        if self.fail.contains(&(self.calls - 1)) {
            return Err(Error::failed("No").hint("Try again"));
        }
        self.done.push(step.to_string());
        Ok(())
    }
}

fn run(what: &str) -> Step {
    Step::Run(Invocation::new(Tool::QemuImg, [what]))
}

fn web1() -> DomainId {
    DomainId { domid: 3, uuid: Uuid::nil(), name: "web1".into() }
}

fn plan() -> Plan {
    Plan {
        title: "Test".into(),
        prepare: vec![
            Step::StopXl { process: XL },
            Step::Suspend { domain: web1(), live: true, max_pause: None, disks: vec![] },
        ],
        commit: Some(run("one")),
        onward: vec![run("two"), run("three")],
        on_failure: OnFailure {
            down: "It is down".into(),
            steps: vec![run("tidy")],
            remaining: vec![Remaining { what: "Half".into(), command: None }],
        },
        finish: vec![
            Step::Resume { domain: web1(), otherwise: None },
            Step::ContinueXl { process: XL },
        ],
        ..Plan::default()
    }
}

fn outcome(fail: &[usize]) -> (Result<()>, Vec<String>) {
    let mut fake = Fake { fail: fail.to_vec(), ..Fake::default() };
    let result = execute(&plan(), &mut fake);
    (result, fake.done)
}

#[test]
fn all_goes_well() {
    let (result, done) = outcome(&[]);
    result.unwrap();
    assert_eq!(done.len(), 7);
}

#[test]
fn a_failed_preparation_is_undone_itself_included() {
    let (result, done) = outcome(&[1]);
    let error = result.unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert_eq!(error.hint.as_deref(), Some("Try again"));
    let hold = Step::StopXl { process: XL }.to_string();
    let resume = Step::Resume { domain: web1(), otherwise: None }.to_string();
    let wake = Step::ContinueXl { process: XL }.to_string();
    assert_eq!(done, [hold, resume, wake]);
}

#[test]
fn the_command_that_failed_is_told_once() {
    struct Real;
    impl Perform for Real {
        fn perform(&mut self, step: &Step) -> Result<()> {
            let (Step::Run(call) | Step::NewFile { fill: call, .. }) = step else {
                return Ok(());
            };
            Err(Error::failed(format!("`{call}` ended with exit status: 1: full")))
        }
    }
    let fill = Invocation::new(Tool::QemuImg, ["create", "/srv/a b"]);
    let prepare = vec![Step::NewFile { path: "/srv/a b".into(), fill }];
    let plan = Plan { prepare, finish: vec![], commit: None, onward: vec![], ..plan() };
    assert_eq!(
        execute(&plan, &mut Real).unwrap_err().chain().join(": "),
        "Test failed: could not make '/srv/a b': \
         `qemu-img create '/srv/a b'` ended with exit status: 1: full"
    );
    let scan = Invocation::new(Tool::Lvm, ["lvremove", "vg/x"]);
    let plan = Plan { prepare: vec![], finish: vec![Step::Run(scan)], ..plan };
    let error = execute(&plan, &mut Real).unwrap_err();
    let text = "Not done: run lvremove: `lvm lvremove vg/x` ended with exit status: 1: full";
    assert_eq!(error.remaining[0].what, text);
    assert_eq!(error.remaining[0].command.as_deref(), Some("lvm lvremove vg/x"));
}

#[test]
fn a_failed_undo_is_told_and_the_others_still_run() {
    let (result, done) = outcome(&[1, 2]);
    let error = result.unwrap_err();
    assert_eq!(error.exit_code(), 4);
    assert_eq!(error.remaining.len(), 1);
    assert!(error.remaining[0].what.contains("resume"), "{:?}", error.remaining);
    assert_eq!(done.last().unwrap(), &Step::ContinueXl { process: XL }.to_string());
}

#[test]
fn what_was_done_at_the_same_time_is_taken_back_one_by_one() {
    let clone = |to: &str| Step::Clone { from: "/a".into(), to: to.into(), writable: false };
    let steps = Step::together(vec![clone("/b"), run("none"), clone("/c")]);
    let plan = Plan { prepare: steps.into_iter().collect(), ..plan() };
    // The steps fail, and so does the first one of their undo.
    let mut host = Fake { fail: vec![0, 1], ..Fake::default() };
    let error = execute(&plan, &mut host).unwrap_err();
    assert_eq!(host.done, ["remove /b"]);
    let commands: Vec<_> =
        error.remaining.iter().map(|remaining| remaining.command.as_deref()).collect();
    assert_eq!(commands, [Some("rm /c")]);
}

#[test]
fn a_failed_commit_leaves_everything_as_it_was() {
    let (result, done) = outcome(&[2]);
    assert_eq!(result.unwrap_err().exit_code(), 1);
    assert_eq!(done.last().unwrap(), &Step::ContinueXl { process: XL }.to_string());
}

#[test]
fn after_the_commit_nothing_is_undone() {
    for failed in [3, 4] {
        let (result, done) = outcome(&[failed]);
        let error = result.unwrap_err();
        assert_eq!(error.exit_code(), 4);
        assert_eq!(error.remaining[0].what, "Half");
        assert_eq!(done.last().unwrap(), &run("tidy").to_string());
        assert!(!done.contains(&Step::ContinueXl { process: XL }.to_string()));
    }
    let error = outcome(&[3, 4]).0.unwrap_err();
    assert_eq!(error.remaining.len(), 2, "the tidying failed as well");
}

#[test]
fn what_a_step_itself_left_is_told() {
    struct Unsure;
    impl Perform for Unsure {
        fn perform(&mut self, step: &Step) -> Result<()> {
            let remaining = Remaining { what: "Who knows".into(), command: None };
            match step {
                Step::Run(_) => Err(Error::failed("No answer").unfinished(vec![remaining])),
                _ => Ok(()),
            }
        }
    }
    let error = execute(&plan(), &mut Unsure).unwrap_err();
    assert_eq!(error.exit_code(), 4);
    let remaining: Vec<_> =
        error.remaining.iter().map(|remaining| remaining.what.as_str()).collect();
    assert_eq!(remaining, ["Who knows"]);
}

#[test]
fn a_guest_is_let_go_on_whatever_became_of_the_commit() {
    struct Guard(Vec<String>);
    impl Perform for Guard {
        fn perform(&mut self, step: &Step) -> Result<()> {
            self.0.push(step.to_string());
            Ok(())
        }
        fn settle(&mut self, _: &Step) -> Result<bool> {
            let remaining =
                Remaining { what: "A snapshot is there".into(), command: Some("rm".into()) };
            Err(Error::failed("Its QEMU ended").unfinished(vec![remaining]))
        }
    }
    let mut guard = Guard(Vec::new());
    let error = take_over(&plan(), Reached::Commit, &mut guard).unwrap_err();
    assert_eq!((error.exit_code(), error.remaining.len()), (4, 1));
    let resume = Step::Resume { domain: web1(), otherwise: None }.to_string();
    let wake = Step::ContinueXl { process: XL }.to_string();
    assert_eq!(guard.0, [resume, wake]);
}

#[test]
fn a_signal_undoes_what_was_prepared() {
    struct Stopped(Vec<String>);
    impl Perform for Stopped {
        fn perform(&mut self, step: &Step) -> Result<()> {
            self.0.push(step.to_string());
            Ok(())
        }
        fn interrupted(&self) -> bool {
            !self.0.is_empty()
        }
    }
    let mut host = Stopped(Vec::new());
    assert_eq!(execute(&plan(), &mut host).unwrap_err().exit_code(), 1);
    assert_eq!(host.0.last().unwrap(), &Step::ContinueXl { process: XL }.to_string());
}

#[test]
fn finishing_goes_on_after_a_failure() {
    let (result, done) = outcome(&[5]);
    assert_eq!(result.unwrap_err().exit_code(), 4);
    assert_eq!(done.last().unwrap(), &Step::ContinueXl { process: XL }.to_string());
    assert_eq!(outcome(&[5, 6]).0.unwrap_err().remaining.len(), 2);
}

#[test]
fn what_may_still_be_needed_is_not_deleted_after_a_failure() {
    let mut plan = plan();
    plan.finish.push(Step::RemoveFile { path: "/old".into() });
    plan.deletions = 1;
    let deletes = |done: &[String]| done.iter().any(|step| step.contains("/old"));
    let mut fake = Fake::default();
    execute(&plan, &mut fake).unwrap();
    assert!(deletes(&fake.done));
    for failed in [5, 6] {
        let mut fake = Fake { fail: vec![failed], ..Fake::default() };
        let error = execute(&plan, &mut fake).unwrap_err();
        assert!(!deletes(&fake.done));
        let left = error.remaining.last().unwrap();
        assert_eq!(left.command.as_deref(), Some("rm /old"));
        assert!(left.what.starts_with("Not done, because it may still be needed"), "{left:?}");
    }
    // A guard that goes on after a failure does not know of it otherwise.
    for (reached, whole) in [(Reached::Finish(1), true), (Reached::FinishFailed(1), false)] {
        let mut fake = Fake::default();
        assert_eq!(take_over(&plan, reached, &mut fake).is_ok(), whole);
        assert_eq!(deletes(&fake.done), whole);
    }
}
