//! The executor of plans, and the code that continues a plan whose executor was killed.

use serde::{Deserialize, Serialize};

use super::{Plan, Step};
use crate::error::{Error, Remaining, Result};

/// Performs steps: the real dom0, or a fake that fails on command.
pub trait Perform {
    /// Performs one step. An undo step must succeed when there is nothing to undo. An error with
    /// leftovers ([`Error::remaining`]) means that the step was done in part.
    fn perform(&mut self, step: &Step) -> Result<()>;

    /// Whether the user asked to stop (SIGINT, SIGTERM). Checked between steps that can be undone.
    fn interrupted(&self) -> bool {
        false
    }

    /// Called before every step with the progress of the plan.
    fn reached(&mut self, _: Reached) {}

    /// Settles a step that a killed process began, a commit or one that cannot be undone: returns
    /// whether it has taken place. Completes a step that must not stay half done. An error of a commit
    /// means that it has not taken place as a whole, and never will; the error lists its leftovers.
    fn settle(&mut self, _: &Step) -> Result<bool> {
        Ok(false)
    }
}

/// The progress of a plan: the last step that was begun, by its index in its part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reached {
    /// A preparation.
    Prepare(usize),
    /// The commit.
    Commit,
    /// A step that must follow.
    Onward(usize),
    /// A final step.
    Finish(usize),
    /// The same, after another one has failed.
    FinishFailed(usize),
    /// Everything is done, or undone as far as possible.
    End,
}

/// Carries out a plan.
pub fn execute(plan: &Plan, host: &mut dyn Perform) -> Result<()> {
    let result = prepare(plan, host)
        .and_then(|()| commit(plan, host))
        .and_then(|()| onward(plan, 0, host))
        .and_then(|()| finish(plan, 0, None, host));
    host.reached(Reached::End);
    result
}

/// The end of a plan whose executor was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakenOver {
    /// Nothing has changed.
    Undone,
    /// It was completed.
    Finished,
}

/// Continues a plan whose executor was killed: undoes it if that is possible, otherwise completes
/// it.
///
/// # Errors
///
/// What could neither be undone nor completed.
pub fn take_over(plan: &Plan, reached: Reached, host: &mut dyn Perform) -> Result<TakenOver> {
    match reached {
        Reached::Prepare(begun) => return undone(plan, begun + 1, host),
        Reached::Commit => {
            let step = plan.commit.as_ref().expect("a plan that reached its commit has one");
            // Whatever it left, resume a suspended guest and its xl process.
            let trouble = match host.settle(step) {
                Ok(true) => None,
                Ok(false) => return undone(plan, plan.prepare.len(), host),
                Err(error) => Some(error),
            };
            if let Some(mut error) = trouble {
                let remaining = std::mem::take(&mut error.remaining);
                let remaining = [remaining, try_all(&undo(&plan.prepare), host)].concat();
                return Err(killed(plan).because(error).unfinished(remaining));
            }
            go_on(plan, 0, host)?;
        }
        Reached::Onward(begun) => match host.settle(&plan.onward[begun]) {
            Ok(happened) => go_on(plan, begun + usize::from(happened), host)?,
            Err(error) => {
                let remaining = plan.on_failure.remaining.clone();
                return Err(down(plan, killed(plan)).because(error).unfinished(remaining));
            }
        },
        Reached::Finish(begun) => finish(plan, begun, None, host)?,
        Reached::FinishFailed(begun) => finish(plan, begun, Some(killed(plan)), host)?,
        Reached::End => {}
    }
    Ok(TakenOver::Finished)
}

/// The undo of steps, last first; what can wait comes after the guest runs again.
pub fn undo(steps: &[Step]) -> Vec<Step> {
    // Steps that were done at the same time are undone one by one: a failure must not prevent the
    // rest.
    let undo = steps.iter().rev().filter_map(Step::undo).flat_map(Step::apart);
    let (later, first): (Vec<_>, Vec<_>) = undo.partition(Step::can_wait);
    [first, later].concat()
}

fn prepare(plan: &Plan, host: &mut dyn Perform) -> Result<()> {
    for (number, step) in plan.prepare.iter().enumerate() {
        host.reached(Reached::Prepare(number));
        let outcome = if host.interrupted() {
            Err(Error::failed("Stopped by a signal").hint("run the command again"))
        } else {
            host.perform(step)
        };
        if let Err(error) = outcome {
            // The failed step may be half done: its undo runs as well.
            let remaining = try_all(&undo(&plan.prepare[..=number]), host);
            return Err(failure(plan, step, error, remaining));
        }
    }
    Ok(())
}

fn commit(plan: &Plan, host: &mut dyn Perform) -> Result<()> {
    let Some(step) = &plan.commit else { return Ok(()) };
    host.reached(Reached::Commit);
    host.perform(step).map_err(|error| {
        let remaining = try_all(&undo(&plan.prepare), host);
        failure(plan, step, error, remaining)
    })
}

fn onward(plan: &Plan, first: usize, host: &mut dyn Perform) -> Result<()> {
    for (number, step) in plan.onward.iter().enumerate().skip(first) {
        host.reached(Reached::Onward(number));
        if let Err(error) = host.perform(step) {
            let remaining = on_failure(plan, host);
            return Err(down(plan, failure(plan, step, error, remaining)));
        }
    }
    Ok(())
}

/// `failed` is that an earlier step has failed.
fn finish(
    plan: &Plan,
    first: usize,
    mut failed: Option<Error>,
    host: &mut dyn Perform,
) -> Result<()> {
    let deletions = plan.finish.len() - plan.deletions;
    for (number, step) in plan.finish.iter().enumerate().skip(first) {
        if let Some(error) = failed.take_if(|_| number >= deletions) {
            let what = format!("Not done, because it may still be needed: {step}");
            failed = Some(error.unfinished(vec![Remaining { what, command: step.by_hand() }]));
            continue;
        }
        host.reached(match failed {
            None => Reached::Finish(number),
            Some(_) => Reached::FinishFailed(number),
        });
        if let Err(error) = host.perform(step) {
            let words = step.in_words().map(|words| format!("; {words}")).unwrap_or_default();
            let what = told("Not done:", step, &error) + &words;
            let remaining = Remaining { what, command: step.by_hand() };
            failed = Some(match failed {
                None => failure(plan, step, error, vec![remaining]),
                Some(first) => first.unfinished(vec![remaining]),
            });
        }
    }
    failed.map_or(Ok(()), Err)
}

/// The leftovers of [`OnFailure`]: what the reader must do first.
fn on_failure(plan: &Plan, host: &mut dyn Perform) -> Vec<Remaining> {
    let mut remaining = plan.on_failure.remaining.clone();
    remaining.extend(try_all(&plan.on_failure.steps, host));
    remaining
}

/// The same error, beginning with what does not run.
fn down(plan: &Plan, mut error: Error) -> Error {
    if !plan.on_failure.down.is_empty() {
        error.message = format!("{}: {}", plan.on_failure.down, error.message);
    }
    error
}

/// Performs the rest of a plan, from a step of `onward` on.
fn go_on(plan: &Plan, first: usize, host: &mut dyn Perform) -> Result<()> {
    if first < plan.onward.len() && !plan.onward_again {
        let remaining = on_failure(plan, host);
        return Err(down(plan, killed(plan)).unfinished(remaining));
    }
    onward(plan, first, host)?;
    finish(plan, 0, None, host)
}

fn undone(plan: &Plan, steps: usize, host: &mut dyn Perform) -> Result<TakenOver> {
    let remaining = try_all(&undo(&plan.prepare[..steps]), host);
    if remaining.is_empty() {
        Ok(TakenOver::Undone)
    } else {
        Err(killed(plan).unfinished(remaining))
    }
}

/// Tries every step and says which could not be done.
fn try_all(steps: &[Step], host: &mut dyn Perform) -> Vec<Remaining> {
    let mut remaining = Vec::new();
    for step in steps {
        if let Err(error) = host.perform(step) {
            remaining
                .push(Remaining { what: told("Could not", step, &error), command: step.by_hand() });
            remaining.extend(error.remaining);
        }
    }
    remaining
}

/// Describes a failed step and the reason; names a command only once.
fn told(what: &str, step: &Step, error: &Error) -> String {
    let why = error.chain().join(": ");
    format!("{what} {}: {why}", step.before(&why))
}

fn killed(plan: &Plan) -> Error {
    Error::failed(format!("{} was killed before it finished", plan.title))
}

fn failure(plan: &Plan, step: &Step, mut error: Error, remaining: Vec<Remaining>) -> Error {
    let mut outer = Error::failed(format!(
        "{} failed: could not {}",
        plan.title,
        step.before(&error.chain().join(": "))
    ));
    outer.hint = error.hint.take();
    if outer.hint.is_none() && error.remaining.is_empty() && remaining.is_empty() {
        outer.hint = Some("all is as it was before; try again when the cause is removed".into());
    }
    // The leftovers of the step itself come first. They may equal those of the plan.
    let mut all = [std::mem::take(&mut error.remaining), remaining].concat();
    let mut remaining: Vec<Remaining> = Vec::new();
    for one in all.drain(..) {
        if !remaining.contains(&one) {
            remaining.push(one);
        }
    }
    let outer = outer.because(error);
    if remaining.is_empty() { outer } else { outer.unfinished(remaining) }
}

#[cfg(test)]
mod tests {
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
}
