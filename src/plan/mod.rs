//! Plans: an operation as data, and the executor that performs it.
//!
//! An operation inspects the host (`host/`), computes a [`Plan`] with pure code, and hands it to [`execute`].
//! `--dry-run` prints the same value. A plan has four parts:
//!
//! * *prepare*: every step has an undo. The first failure undoes all of them, in reverse, and
//!   nothing has changed (exit code 1);
//! * *commit*: the one step that makes the change real. When it fails nothing was changed, and the
//!   preparations are undone;
//! * *onward*: what must follow, in order; each step depends on those before it. There is no undo any more:
//!   the first failure ends the plan, and [`OnFailure`] has the state and the way out (exit code 4);
//! * *finish*: steps that are all tried, even if others fail, except that data is deleted only if nothing has failed;
//!   failures are collected (exit code 4).
//!
//! A plan is plain data that another process can use: if this process is killed, its guard
//! continues the plan ([`take_over`]).

mod execute;
#[cfg(test)]
pub mod faults;
mod step;
mod switch;
mod text;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use execute::{Perform, Reached, TakenOver, execute, take_over, undo};
pub use step::freeze::Freeze;
pub use step::{
    Action, ConfigOwner, ImageStart, ReplaceCfg, Step, StoreConfig, Target, XenstoreWrite,
};
pub use step::{deletion, export};

pub use switch::{Image, Replacement, Switch};
pub use text::Text;

use crate::error::Remaining;

/// See the module documentation.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Plan {
    /// The title, as the beginning of a sentence: `Snapshot s1 of web1`.
    pub title: String,
    /// Notes for the user: disks left out, what happens to data.
    pub notes: Vec<String>,
    /// Steps that can be undone.
    pub prepare: Vec<Step>,
    /// The step that makes the change real.
    pub commit: Option<Step>,
    /// What must follow it, in order.
    pub onward: Vec<Step>,
    /// Whether an interrupted step of `onward` may be repeated.
    pub onward_again: bool,
    /// What to do and say when a step of `onward` fails.
    pub on_failure: OnFailure,
    /// What must be done at the end.
    pub finish: Vec<Step>,
    /// How many of the last steps of `finish` delete data: they are skipped and listed if another one failed, because
    /// the data may still be needed then.
    pub deletions: usize,
    /// The sizes of the domain's disks in bytes, as the guest sees them, for the proofs in the record:
    /// after the switch, QEMU reports the sizes of the overlays.
    pub virtual_sizes: BTreeMap<String, u64>,
}

/// What to do and report if a step of `onward` fails, when there is no way back.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OnFailure {
    /// What is down, as the beginning of a sentence: `Domain web1 is down`.
    pub down: String,
    /// Steps to try: they remove what is useless now.
    pub steps: Vec<Step>,
    /// What the user must know, and the way out.
    pub remaining: Vec<Remaining>,
}

/// The plan as `--dry-run` shows it. A bar marks the steps while the guest is paused.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}:", self.title)?;
        let mut paused = false;
        let steps = self.prepare.iter().chain(&self.commit).chain(&self.onward).chain(&self.finish);
        for (number, step) in steps.enumerate() {
            let bar = if paused { '|' } else { ' ' };
            writeln!(f, "{:>4} {bar} {step}", number + 1)?;
            paused = (paused || step.pauses_guest()) && !step.resumes_guest();
        }
        if self.prepare.iter().any(Step::pauses_guest) {
            writeln!(f, "     | the guest is paused")?;
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        Ok(())
    }
}
