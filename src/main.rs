//! The program: parse, run, print the error, end with its exit code.

use std::process::ExitCode;

use clap::Parser;
use xl_snapshot::cli::Cli;
use xl_snapshot::host::{command, guard};
use xl_snapshot::{plan, report, run};

fn main() -> ExitCode {
    command::pass_nothing_on();
    let result =
        if guard::is_guard() { guard::watch() } else { run::run(Cli::parse(), plan::execute) };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::print_error(&error);
            error.exit_code().into()
        }
    }
}
