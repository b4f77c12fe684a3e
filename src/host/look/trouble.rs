//! Errors of inspections.

use std::error::Error as StdError;

use crate::error::Error;

/// An inspection failed: nothing was changed.
pub(in crate::host) fn trouble(what: &str, error: impl StdError + Send + Sync + 'static) -> Error {
    Error::refused(format!("Looking at {what} failed"))
        .because(error)
        .hint("nothing was changed; check that xl list works, and read the logs in /var/log/xen")
}
