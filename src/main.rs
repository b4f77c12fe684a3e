//! The program: parse, run, print the error, end with its exit code.

use std::process::ExitCode;

use clap::Parser;
use xl_snapshot::cli::Cli;
use xl_snapshot::{report, run};

fn main() -> ExitCode {
    match run::run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", report::error_text(&error));
            error.exit_code().into()
        }
    }
}
