//! What a guard does: it waits, and goes on with the plan if its ward was killed.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::host::dom0::Dom0;
use crate::host::toolstack::Toolstack;
use crate::host::{guard, marks};
use crate::plan::{TakenOver, take_over};
use crate::report::{Reporter, error_text};

/// How long it waits at its end for somebody to take its words.
const WORDS: Duration = Duration::from_secs(2);

/// What a guard does from its start to its end.
pub fn watch() -> ExitCode {
    let reporter = Reporter::new(false, 0);
    reporter.defer();
    let code = match guard(&reporter) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            reporter.message(&error_text(&error));
            error.exit_code().into()
        }
    };
    reporter.give_up_after(WORDS);
    code
}

/// # Errors
///
/// What could not be put in order.
fn guard(reporter: &Reporter) -> Result<()> {
    let trouble = |error: io::Error| {
        Error::failed("The guard process has lost contact with the process that it guards")
            .because(error)
            .hint("check whether the domain runs: xl list")
    };
    let Some((plan, done)) = guard::wait().map_err(trouble)? else { return Ok(()) };
    let Some(reached) = done.reached else { return Ok(()) };
    let title = &plan.title;
    reporter.message(&format!("xl-snapshot: {title} was killed; its guard is cleaning up"));
    let mut dom0 = Dom0::new(Toolstack::open(reporter)?, reporter.clone(), Arc::default());
    dom0.adopt(&plan, done);
    let how = match take_over(&plan, reached, &mut dom0)? {
        TakenOver::Undone => "everything is as it was before",
        TakenOver::Finished => {
            dom0.done().record.iter().for_each(marks::set_all);
            "it was carried out to its end"
        }
    };
    reporter.message(&format!("xl-snapshot: {title} was killed, but {how}"));
    Ok(())
}
