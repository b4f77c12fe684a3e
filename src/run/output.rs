//! What commands print on standard output.

use std::io::{self, Write};

use serde::Serialize;

use crate::error::{Error, Remaining, Result};
use crate::plan::Plan;
use crate::report::{Planned, json_text, printable};

pub(super) fn print_plan(plan: &Plan, json: bool) -> Result<()> {
    write(&if json { json_text(&Planned::from(plan)) } else { printable(&plan.to_string()) })
}

/// Prints what was found, or would be done.
pub(super) fn print<R: Serialize + ToString>(report: &R, json: bool) -> Result<()> {
    write(&text(report, json))
}

/// Prints what was done: that it was done, nothing can change any more.
pub(super) fn print_done<R: Serialize + ToString>(report: &R, json: bool) -> Result<()> {
    write_stdout(&text(report, json)).map_err(|error| {
        let error = lost(error);
        let remaining = Remaining {
            what: format!(
                "All was done, but the report of it is lost:\n{}",
                report.to_string().trim_end()
            ),
            command: None,
        };
        error.unfinished(vec![remaining])
    })
}

pub(super) fn text<R: Serialize + ToString>(report: &R, json: bool) -> String {
    if json { json_text(report) } else { printable(&report.to_string()) }
}

/// Writes what nobody needs to the end: who reads only its beginning (`head`) has closed the pipe, and knows it.
pub(super) fn write(text: &str) -> Result<()> {
    match write_stdout(text) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(lost),
    }
}

fn lost(error: io::Error) -> Error {
    Error::failed("Writing the result to standard output")
        .because(error)
        .hint("see where standard output goes")
}

fn write_stdout(text: &str) -> io::Result<()> {
    io::stdout().write_all(text.as_bytes())?;
    io::stdout().flush()
}
