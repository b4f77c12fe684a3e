//! Plans: what an operation will do, as data, and the one executor that does it.
//!
//! An operation looks (`host/`), computes a [`Plan`] with pure code, and hands it to [`execute`].
//! `--dry-run` prints the same value. A plan has four parts:
//!
//! * *prepare*: every step has an undo. The first failure undoes all of them, in reverse, and
//!   everything is as it was (exit code 1);
//! * *commit*: the one step that makes the change real. When it fails nothing was changed, and the
//!   preparations are undone;
//! * *onward*: what must follow, in order, each step on those before it. Nothing is undone any more:
//!   the first failure ends it, and [`Stranded`] says where we are and how to go on (exit code 4);
//! * *finish*: steps that are all tried, whatever becomes of the others; failures are collected
//!   (exit code 4).

mod step;

use std::fmt;

pub use step::{Action, ImageStart, ReplaceCfg, Step, StoreConfig, Target, Whose, XenstoreWrite};

use crate::error::{Error, Left, Result};

/// What an operation will do. See the module documentation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// What the plan is for, as a sentence begins: `Snapshot s1 of web1`.
    pub title: String,
    /// What the user should know: disks left out, what happens to data.
    pub notes: Vec<String>,
    /// Steps that can be undone.
    pub prepare: Vec<Step>,
    /// The step that makes it real.
    pub commit: Option<Step>,
    /// What must follow it, in order.
    pub onward: Vec<Step>,
    /// What to do and say when a step of `onward` fails.
    pub stranded: Stranded,
    /// What must be done at the end.
    pub finish: Vec<Step>,
}

/// The state between two good ones, when there is no way back.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stranded {
    /// Steps to try: they take away what is of no use now.
    pub steps: Vec<Step>,
    /// What the user has to know, and the way out.
    pub left: Vec<Left>,
}

/// Performs steps: the real dom0, or a fake that fails on command.
pub trait Perform {
    /// Does one step. An undo step must succeed when there is nothing to undo. An error that says
    /// what is left ([`Error::left`]) means that the step was done in part.
    fn perform(&mut self, step: &Step) -> Result<()>;

    /// Whether the user asked to stop (SIGINT, SIGTERM). Looked at between steps that can be
    /// undone.
    fn interrupted(&self) -> bool {
        false
    }
}

/// Carries out a plan.
pub fn execute(plan: &Plan, host: &mut dyn Perform) -> Result<()> {
    for (done, step) in plan.prepare.iter().enumerate() {
        let outcome = if host.interrupted() {
            Err(Error::failed("Stopped by a signal"))
        } else {
            host.perform(step)
        };
        if let Err(error) = outcome {
            // The failed step may have happened half-way: its undo runs as well.
            let left = try_all(&undo(&plan.prepare[..=done]), host);
            return Err(failure(plan, step, error, left));
        }
    }
    if let Some(step) = &plan.commit
        && let Err(error) = host.perform(step)
    {
        let left = try_all(&undo(&plan.prepare), host);
        return Err(failure(plan, step, error, left));
    }
    for step in &plan.onward {
        if let Err(error) = host.perform(step) {
            let mut left = try_all(&plan.stranded.steps, host);
            left.extend(plan.stranded.left.iter().cloned());
            return Err(failure(plan, step, error, left));
        }
    }
    let mut failed: Option<Error> = None;
    for step in &plan.finish {
        if let Err(error) = host.perform(step) {
            let left = Left {
                what: format!("Not done: {step} ({})", error.chain().join(": ")),
                command: step.by_hand(),
            };
            failed = Some(match failed {
                None => failure(plan, step, error, vec![left]),
                Some(first) => first.unfinished(vec![left]),
            });
        }
    }
    failed.map_or(Ok(()), Err)
}

/// What takes steps back, last first.
pub fn undo(steps: &[Step]) -> Vec<Step> {
    // What was done at the same time is taken back one by one: a failure must not keep the rest.
    steps.iter().rev().filter_map(Step::undo).flat_map(Step::apart).collect()
}

/// Tries every step and says which could not be done.
fn try_all(steps: &[Step], host: &mut dyn Perform) -> Vec<Left> {
    let mut left = Vec::new();
    for step in steps {
        if let Err(error) = host.perform(step) {
            left.push(Left {
                what: format!("Could not {step}: {}", error.chain().join(": ")),
                command: step.by_hand(),
            });
        }
    }
    left
}

fn failure(plan: &Plan, step: &Step, mut error: Error, left: Vec<Left>) -> Error {
    let mut outer = Error::failed(format!("{} failed: could not {step}", plan.title));
    outer.hint = error.hint.take();
    // What the step itself left has to be dealt with first.
    let left = [std::mem::take(&mut error.left), left].concat();
    let outer = outer.because(error);
    if left.is_empty() { outer } else { outer.unfinished(left) }
}

/// The plan as `--dry-run` shows it. A bar marks what happens while the guest stands still.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}:", self.title)?;
        let mut still = false;
        let steps = self.prepare.iter().chain(&self.commit).chain(&self.onward).chain(&self.finish);
        for (number, step) in steps.enumerate() {
            let bar = if still { '|' } else { ' ' };
            writeln!(f, "{:>4} {bar} {step}", number + 1)?;
            still = (still || step.stops_guest()) && !step.lets_guest_run();
        }
        if self.prepare.iter().any(Step::stops_guest) {
            writeln!(f, "     | the guest stands still")?;
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tool::{Invocation, Tool};

    /// Records what is done and fails the steps it is told to.
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

    fn plan() -> Plan {
        Plan {
            title: "Test".into(),
            prepare: vec![Step::HoldMonitor { pid: 7 }, Step::Suspend { domid: 3, live: true }],
            commit: Some(run("one")),
            onward: vec![run("two"), run("three")],
            stranded: Stranded {
                steps: vec![run("tidy")],
                left: vec![Left { what: "Half".into(), command: None }],
            },
            finish: vec![Step::Resume { domid: 3 }, Step::WakeMonitor { pid: 7 }],
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
        let hold = Step::HoldMonitor { pid: 7 }.to_string();
        let resume = Step::Resume { domid: 3 }.to_string();
        let wake = Step::WakeMonitor { pid: 7 }.to_string();
        assert_eq!(done, [hold, resume, wake]);
    }

    #[test]
    fn a_failed_undo_is_told_and_the_others_still_run() {
        let (result, done) = outcome(&[1, 2]);
        let error = result.unwrap_err();
        assert_eq!(error.exit_code(), 4);
        assert_eq!(error.left.len(), 1);
        assert!(error.left[0].what.contains("resume"), "{:?}", error.left);
        assert_eq!(done.last().unwrap(), &Step::WakeMonitor { pid: 7 }.to_string());
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
        let commands: Vec<_> = error.left.iter().map(|left| left.command.as_deref()).collect();
        assert_eq!(commands, [Some("rm /c")]);
    }

    #[test]
    fn a_failed_commit_leaves_everything_as_it_was() {
        let (result, done) = outcome(&[2]);
        assert_eq!(result.unwrap_err().exit_code(), 1);
        assert_eq!(done.last().unwrap(), &Step::WakeMonitor { pid: 7 }.to_string());
    }

    #[test]
    fn after_the_commit_nothing_is_undone() {
        for failed in [3, 4] {
            let (result, done) = outcome(&[failed]);
            let error = result.unwrap_err();
            assert_eq!(error.exit_code(), 4);
            assert_eq!(error.left[0].what, "Half");
            assert_eq!(done.last().unwrap(), &run("tidy").to_string());
            assert!(!done.contains(&Step::WakeMonitor { pid: 7 }.to_string()));
        }
        let error = outcome(&[3, 4]).0.unwrap_err();
        assert_eq!(error.left.len(), 2, "the tidying failed as well");
    }

    #[test]
    fn what_a_step_itself_left_is_told() {
        struct Unsure;
        impl Perform for Unsure {
            fn perform(&mut self, step: &Step) -> Result<()> {
                let left = Left { what: "Who knows".into(), command: None };
                match step {
                    Step::Run(_) => Err(Error::failed("No answer").unfinished(vec![left])),
                    _ => Ok(()),
                }
            }
        }
        let error = execute(&plan(), &mut Unsure).unwrap_err();
        assert_eq!(error.exit_code(), 4);
        let left: Vec<_> = error.left.iter().map(|left| left.what.as_str()).collect();
        assert_eq!(left, ["Who knows"]);
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
        assert_eq!(host.0.last().unwrap(), &Step::WakeMonitor { pid: 7 }.to_string());
    }

    #[test]
    fn finishing_goes_on_after_a_failure() {
        let (result, done) = outcome(&[5]);
        assert_eq!(result.unwrap_err().exit_code(), 4);
        assert_eq!(done.last().unwrap(), &Step::WakeMonitor { pid: 7 }.to_string());
        assert_eq!(outcome(&[5, 6]).0.unwrap_err().left.len(), 2);
    }
}
