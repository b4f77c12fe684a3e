//! The program: parse, run, print the error, end with its exit code.

use std::process::ExitCode;

use clap::Parser;
use xl_snapshot::cli::Cli;
use xl_snapshot::host::start;
use xl_snapshot::{plan, report, run};

fn main() -> ExitCode {
    if let Some(end) = start::begin(&[], run::guard::watch) {
        return end;
    }
    match run::run(Cli::parse(), plan::execute) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::print_error(&error);
            error.exit_code().into()
        }
    }
}
