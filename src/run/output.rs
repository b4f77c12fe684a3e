//! What commands print on standard output.

use std::io::{self, Write};

use serde::Serialize;

use crate::error::{Error, Left, Result};
use crate::plan::Plan;
use crate::report::{Planned, json_text, printable};

pub(super) fn print_plan(plan: &Plan, json: bool) -> Result<()> {
    write_stdout(&if json { json_text(&Planned::from(plan)) } else { printable(&plan.to_string()) })
}

pub(super) fn print<R: Serialize + ToString>(report: &R, json: bool) -> Result<()> {
    write_stdout(&text(report, json))
}

/// Prints what was done: that it was done, nothing can change any more.
pub(super) fn print_done<R: Serialize + ToString>(report: &R, json: bool) -> Result<()> {
    print(report, json).map_err(|error| {
        let left = Left {
            what: format!(
                "All was done, but the report of it is lost:\n{}",
                report.to_string().trim_end()
            ),
            command: None,
        };
        error.unfinished(vec![left])
    })
}

pub(super) fn text<R: Serialize + ToString>(report: &R, json: bool) -> String {
    if json { json_text(report) } else { printable(&report.to_string()) }
}

pub(super) fn write_stdout(text: &str) -> Result<()> {
    io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()).map_err(|error| {
        Error::failed("Writing the result to standard output")
            .because(error)
            .hint("see where standard output goes")
    })
}
