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
mod tests;
