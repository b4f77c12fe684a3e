//! Every fault of every step of a plan. The planners' tests call this on each kind of plan.

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

use super::{Perform, Plan, Reached, Step, TakenOver, execute, take_over};
use crate::error::Error;
use crate::model::{Fault, Faulty, Guest, Model, State};

/// One execution with faults.
struct Run {
    result: Result<(), Error>,
    model: Model,
    /// The steps that were tried.
    tried: Vec<Step>,
    /// How far it had come when it ended or was killed.
    reached: Option<Reached>,
}

/// All steps of the plan in order, with the progress at each.
fn points(plan: &Plan) -> Vec<(Reached, &Step)> {
    let numbered = |steps: &'_ [Step], reached: fn(usize) -> Reached| {
        (0..steps.len()).map(reached).collect::<Vec<_>>()
    };
    let at = numbered(&plan.prepare, Reached::Prepare)
        .into_iter()
        .chain(plan.commit.iter().map(|_| Reached::Commit))
        .chain(numbered(&plan.onward, Reached::Onward))
        .chain(numbered(&plan.finish, Reached::Finish));
    let steps = plan.prepare.iter().chain(&plan.commit).chain(&plan.onward).chain(&plan.finish);
    at.zip(steps).collect()
}

/// A host that records its steps.
struct Recorder<'a> {
    model: &'a mut Model,
    faults: &'a [(usize, Fault)],
    tried: Vec<Step>,
    reached: Option<Reached>,
    dead: bool,
}

impl Perform for Recorder<'_> {
    fn perform(&mut self, step: &Step) -> crate::error::Result<()> {
        if self.dead {
            return Err(Error::failed("killed"));
        }
        let number = self.tried.len();
        self.tried.push(step.clone());
        let fault = self.faults.iter().find(|(at, _)| *at == number).map(|(_, fault)| *fault);
        self.dead = matches!(fault, Some(Fault::Killed | Fault::KilledLate));
        let fault = fault.map(|fault| (0, fault));
        Faulty::new(self.model, fault, || Error::failed("killed")).perform(step)
    }

    fn reached(&mut self, reached: Reached) {
        if !self.dead {
            self.reached = Some(reached);
        }
    }

    fn settle(&mut self, step: &Step) -> crate::error::Result<bool> {
        self.model.settle(step)
    }
}

fn run(plan: &Plan, guest: Guest, faults: &[(usize, Fault)]) -> Run {
    let mut model = Model::new(plan, guest);
    let mut host =
        Recorder { model: &mut model, faults, tried: Vec::new(), reached: None, dead: false };
    let result = execute(plan, &mut host);
    let Recorder { tried, reached, .. } = host;
    Run { result, model, tried, reached }
}

/// Fails every step, early and late, fails its undo too, and kills the program before and after
/// every step, including undo steps. Returns the number of faults.
pub fn try_every_fault(plan: &Plan, guest: Guest) -> usize {
    let good = run(plan, guest, &[]);
    good.result.expect("without a fault it succeeds");
    let before = Model::new(plan, guest).state;
    let case = Case { plan, guest, before: &before, after: &good.model.state };
    let mut tried = 0;
    for (number, (reached, step)) in points(plan).into_iter().enumerate() {
        for fault in [Fault::Fails, Fault::FailsLate] {
            // A failed commit has changed nothing, by the contract of `Perform`.
            if reached != Reached::Commit || fault == Fault::Fails {
                tried += case.failure(number, reached, step, fault);
            }
        }
        for fault in [Fault::Killed, Fault::KilledLate] {
            case.kill(&[(number, fault)]);
            tried += 1;
        }
    }
    count(tried);
    tried
}

struct Case<'a> {
    plan: &'a Plan,
    guest: Guest,
    before: &'a State,
    after: &'a State,
}

impl Case<'_> {
    fn failure(&self, number: usize, reached: Reached, step: &Step, fault: Fault) -> usize {
        let mut run = run(self.plan, self.guest, &[(number, fault)]);
        let error = run.result.as_ref().expect_err("a failed step fails the plan");
        let told = error.to_string() + &error.chain().join(": ");
        assert!(told.contains(&step.to_string()), "{told} does not name {step}");
        match reached {
            Reached::Prepare(_) | Reached::Commit => {
                assert_eq!(error.exit_code(), 1, "{step}");
                assert!(error.remaining.is_empty(), "{step}: {:?}", error.remaining);
                assert_eq!(run.model.state, *self.before, "{step}");
                (number + 1..run.tried.len()).map(|undo| self.undo_fails(number, fault, undo)).sum()
            }
            Reached::Onward(_) => {
                assert_eq!(error.exit_code(), 4, "{step}");
                assert!(
                    error.remaining.iter().any(|remaining| remaining.command.is_some()),
                    "{step}"
                );
                assert!(run.model.state.deleted.is_empty(), "{step}");
                self.check_destroyed(&run.model.state, step);
                self.check_taken_back(&run.model.state, step);
                1
            }
            Reached::Finish(at) => {
                assert_eq!(error.exit_code(), 4, "{step}");
                let by_hand =
                    error.remaining.iter().any(|remaining| remaining.command == step.by_hand());
                assert!(by_hand, "{step}: {:?}", error.remaining);
                run.model.perform(step).expect("a model can do all");
                // Steps that depend on it failed as well, and were reported.
                for later in &self.plan.finish[at + 1..] {
                    let text = later.to_string();
                    if error.remaining.iter().any(|remaining| remaining.what.contains(&text)) {
                        run.model.perform(later).expect("it can be done now");
                    }
                }
                assert_eq!(run.model.state, *self.after, "{step} is all that is missing");
                1
            }
            Reached::FinishFailed(_) | Reached::End => unreachable!("no step is begun at the end"),
        }
    }

    /// If the user must run the program again, nothing of the domain may be in its way.
    fn check_destroyed(&self, state: &State, step: &Step) {
        assert!(
            self.plan.onward_again || !state.destroying,
            "half of the domain is left after {step}"
        );
    }

    /// Nothing must remain that a repeated revert would find a second time; but a merge of LVM cannot
    /// be undone.
    fn check_taken_back(&self, state: &State, step: &Step) {
        let merges = |step: &Step| matches!(step, Step::AwaitMerged { .. });
        let steps = self.plan.onward.iter().cloned().flat_map(Step::apart);
        let merged = steps.into_iter().any(|step| merges(&step));
        // A domain that was started nevertheless has the disks.
        if !self.plan.onward_again && !merged && state.guest == Guest::Gone {
            assert_eq!(state.ran, self.before.ran, "left after {step}");
            assert_eq!(state.files, self.before.files, "left after {step}");
            assert_eq!(state.undoable, self.before.undoable, "left after {step}");
        }
    }

    /// A step fails, and so does a step of its undo; and the program is killed there.
    fn undo_fails(&self, number: usize, fault: Fault, undo: usize) -> usize {
        let mut run = run(self.plan, self.guest, &[(number, fault), (undo, Fault::Fails)]);
        let error = run.result.expect_err("a failed step fails the plan");
        let step = &run.tried[undo];
        assert_eq!(error.exit_code(), 4, "{step}");
        let remaining = &error.remaining[0];
        assert!(
            remaining.what.contains(&step.to_string()),
            "{} does not name {step}",
            remaining.what
        );
        assert_eq!(remaining.command, step.by_hand());
        // The leftovers are exactly those reported. After they are done by hand, nothing has
        // changed.
        run.model.perform(step).expect("a model can do all");
        if error.remaining.len() > 1 {
            let runs = matches!(step, Step::Resume { .. } | Step::UnpauseExisting { .. });
            assert!(runs, "{:?}", error.remaining);
            // Steps that need a running guest failed as well, and were reported.
            for later in &run.tried[undo + 1..] {
                let text = later.to_string();
                if error.remaining.iter().any(|remaining| remaining.what.contains(&text)) {
                    run.model.perform(later).expect("the guest runs");
                }
            }
        }
        assert_eq!(run.model.state, *self.before, "{step}");
        for kill in [Fault::Killed, Fault::KilledLate] {
            self.kill(&[(number, fault), (undo, kill)]);
        }
        3
    }

    /// The program is killed: its guard must reach a good end.
    fn kill(&self, faults: &[(usize, Fault)]) {
        let mut run = run(self.plan, self.guest, faults);
        let (at, how) = faults[faults.len() - 1];
        let step = &run.tried[at];
        let reached = run.reached.expect("a step was begun");
        let failed = faults.len() > 1;
        match take_over(self.plan, reached, &mut run.model) {
            Ok(TakenOver::Undone) => {
                assert!(matches!(reached, Reached::Prepare(_) | Reached::Commit), "{step}");
                assert_eq!(run.model.state, *self.before, "killed at {step}");
            }
            Ok(TakenOver::Finished) => {
                assert!(!failed, "a plan that failed was gone on with at {step}");
                assert!(!matches!(reached, Reached::Prepare(_)), "{step}");
                assert!(reached != Reached::Commit || how == Fault::KilledLate, "{step}");
                assert_eq!(run.model.state, *self.after, "killed at {step}");
            }
            // Only if the user must run the program again.
            Err(error) => {
                assert!(!self.plan.onward_again, "{step}: {error}");
                assert!(matches!(reached, Reached::Commit | Reached::Onward(_)), "{step}");
                assert_eq!(error.exit_code(), 4);
                let commands: Vec<_> = error
                    .remaining
                    .iter()
                    .filter_map(|remaining| remaining.command.as_deref())
                    .collect();
                assert!(
                    commands.iter().any(|c| c.starts_with("xl-snapshot revert ")),
                    "{commands:?}"
                );
                assert!(run.model.state.deleted.is_empty(), "{step}");
                self.check_destroyed(&run.model.state, step);
            }
        }
        assert!(!run.model.state.monitor_held, "the xl process is held after {step}");
        assert!(!run.model.state.frozen, "the file systems are frozen after {step}");
        assert_ne!(run.model.state.guest, Guest::Suspended, "after {step}");
    }
}

/// Adds to the numbers that `make test` reports.
fn count(tried: usize) {
    let target = env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let directory = Path::new(&target).join("reliability");
    let mut line = String::new();
    writeln!(line, "{tried}").expect("a text takes all");
    fs::create_dir_all(&directory).expect("the target directory is ours");
    let name = format!("faults-{}", uuid::Uuid::new_v4());
    fs::write(directory.join(name), line).expect("the target directory is ours");
}
