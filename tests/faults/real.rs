//! The program, but that steps of its plan fail, or it is killed, as the environment says:
//!
//! ```text
//! FAULTS=4:fails-late,6:fails xl-snapshot-faults create web1
//! ```
//!
//! Steps are counted from 0 in the order in which they are performed, those that undo included. The
//! same faults are tried on the model first; when the program is not killed, what was done and how it
//! ended must be the same on both.

use std::path::PathBuf;
use std::process::ExitCode;
use std::{env, thread};

use clap::Parser;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use xl_snapshot::cli::Cli;
use xl_snapshot::error::{Error, Result};
use xl_snapshot::host::start;
use xl_snapshot::plan::{Perform, Plan, Step, execute};
use xl_snapshot::{report, run};

mod model;

use model::{Fault, Faulty, Guest, Model};

/// The exit code when model and host differ.
const DIFFERENT: u8 = 99;

fn main() -> ExitCode {
    if let Some(end) = start::begin(&["FAULTS"], run::guard::watch) {
        return end;
    }
    match run::run(Cli::parse(), execute_with_faults) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.message.starts_with("MODEL") => {
            eprintln!("{}", error.message);
            DIFFERENT.into()
        }
        Err(error) => {
            report::print_error(&error);
            error.exit_code().into()
        }
    }
}

fn execute_with_faults(plan: &Plan, host: &mut dyn Perform) -> Result<()> {
    let faults = faults(&env::var("FAULTS").unwrap_or_default());
    // A create's guest runs unless its disks are taken alone, a revert's may do.
    let down = plan.prepare.iter().any(|step| matches!(step, Step::CheckNotRunning { .. }));
    let mut model = Model::new(plan, if down { Guest::Gone } else { Guest::Runs });
    let mut on_model = Faulty::new(&mut model, faults.clone(), || Error::failed("killed"));
    let expected = summary(&execute(plan, &mut on_model), on_model.trace);
    let mut on_host = Faulty::new(host, faults, die);
    let result = execute(plan, &mut on_host);
    let seen = summary(&result, on_host.trace);
    if expected != seen {
        return Err(Error::failed(format!("MODEL: {expected:#?}\nHOST: {seen:#?}")));
    }
    for path in new_files(plan) {
        if path.exists() != model.state.files.contains(&path) {
            let path = path.display();
            return Err(Error::failed(format!("MODEL and host differ: {path} exists on one only")));
        }
    }
    eprintln!("model and host agree on {} steps", seen.1.len());
    result
}

fn summary(result: &Result<()>, trace: Vec<String>) -> ((u8, usize), Vec<String>) {
    let end =
        result.as_ref().err().map_or((0, 0), |error| (error.exit_code(), error.remaining.len()));
    (end, trace)
}

fn new_files(plan: &Plan) -> Vec<PathBuf> {
    let steps = plan.prepare.iter().cloned().flat_map(Step::apart);
    steps
        .filter_map(|step| match step {
            Step::NewFile { path, .. } | Step::Clone { to: path, .. } => Some(path),
            _ => None,
        })
        .collect()
}

fn faults(text: &str) -> Vec<(usize, Fault)> {
    let one = |item: &str| {
        let (number, fault) = item.split_once(':').expect("FAULTS=NUMBER:FAULT,...");
        let fault = match fault {
            "fails" => Fault::Fails,
            "fails-late" => Fault::FailsLate,
            "killed" => Fault::Killed,
            "killed-late" => Fault::KilledLate,
            other => panic!("no fault {other:?}"),
        };
        (number.parse().expect("a number of a step"), fault)
    };
    text.split(',').filter(|item| !item.is_empty()).map(one).collect()
}

/// As the kernel's OOM killer does it.
fn die() -> Error {
    kill(Pid::this(), Signal::SIGKILL).expect("everybody may kill himself");
    loop {
        thread::park();
    }
}
