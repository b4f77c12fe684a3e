//! What a failed libxl call says: which call, on which domain, libxl's code, and what libxl logged.

use std::{ffi::c_int, fmt, io};

use thiserror::Error;
use xen_bindings as sys;

use crate::release::GUEST_TIMEOUTS;

use super::owned::lossy;

/// A code of `enum libxl_error` (`_libxl_types.h`); all are negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorCode(pub i32);

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: _libxl_types.h: a generated look-up without side effects; it takes any int.
        let name = unsafe { sys::libxl_error_to_string(self.0) };
        // SAFETY: a string constant of libxl (the result is const char *), or null for a code
        // it does not know.
        match unsafe { lossy(name) } {
            Some(name) => write!(f, "ERROR_{} ({})", name.to_uppercase(), self.0),
            None => write!(f, "unknown libxl error ({})", self.0),
        }
    }
}

/// Why libxl could not do what was asked.
#[derive(Debug, Error)]
pub enum LibxlError {
    /// libxl could not be initialised.
    #[error("Opening libxl failed: {code}{} (is this a Xen dom0, and are you root?)", colon(.log))]
    Open {
        /// What `libxl_ctx_alloc` returned.
        code: ErrorCode,
        /// libxl's own words.
        log: Vec<String>,
    },
    /// A call failed.
    #[error("{doing}{} failed: {code}{}", domain(*.domid), colon(.log))]
    Call {
        /// What was being done, such as "Suspending".
        doing: &'static str,
        /// The C function.
        function: &'static str,
        /// The domain, if the call was about one.
        domid: Option<u32>,
        /// What the function returned.
        code: ErrorCode,
        /// Warnings and errors that libxl logged during the call, oldest first.
        log: Vec<String>,
    },
    /// xenstore could not be read.
    #[error("{doing} domain {domid} failed")]
    Xenstore {
        /// What was being done.
        doing: &'static str,
        /// The domain.
        domid: u32,
        /// What xenstore answered.
        source: io::Error,
    },
    /// libxl keeps no configuration for the domain.
    #[error(
        "Domain {domid} has no stored configuration (libxl-json): libxl did not create it, or it no longer exists"
    )]
    NoStoredConfig {
        /// The domain.
        domid: u32,
    },
    /// The suspended domain could not be written anywhere: nothing was done.
    #[error("Suspending domain {domid} failed: its output cannot be written")]
    Output {
        /// The domain.
        domid: u32,
        /// Why.
        source: io::Error,
    },
    /// A text from libxl is not UTF-8.
    #[error("{doing} domain {domid} failed: the text is not UTF-8")]
    NotUtf8 {
        /// What was being done.
        doing: &'static str,
        /// The domain.
        domid: u32,
    },
    /// Data that libxl cannot store: it takes an `int` for the length, and a NUL ends the JSON.
    #[error("{doing} domain {domid} failed: {reason}")]
    Unstorable {
        /// What was being done.
        doing: &'static str,
        /// The domain.
        domid: u32,
        /// What is wrong with the data.
        reason: &'static str,
    },
}

impl LibxlError {
    /// What libxl logged during the call, oldest first.
    #[must_use]
    pub fn log(&self) -> &[String] {
        match self {
            Self::Open { log, .. } | Self::Call { log, .. } => log,
            _ => &[],
        }
    }

    /// The libxl code, if the failure has one.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Open { code, .. } | Self::Call { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// The domain does not exist (any more): `ERROR_DOMAIN_NOTFOUND`.
    ///
    /// Some libxl functions say `ERROR_FAIL` (pause, suspend) or `ERROR_LOCK_FAIL` (configuration,
    /// userdata) for that; ask [`super::Libxl::domain_info`] to be sure.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.is(sys::ERROR_DOMAIN_NOTFOUND)
    }

    /// The guest did not agree to suspend, or did not do it, in time.
    ///
    /// `ERROR_GUEST_TIMEDOUT` alone does not mean that: libxl_stream_write.c
    /// (`libxl__xc_domain_save_done`) says so for every failure before the guest has agreed, such
    /// as a full disk. So this also looks for the two messages that libxl_dom_suspend.c logs then.
    #[must_use]
    pub fn is_guest_timed_out(&self) -> bool {
        let Self::Call { log, .. } = self else { return false };
        self.is(sys::ERROR_GUEST_TIMEDOUT)
            && log.iter().any(|line| GUEST_TIMEOUTS.iter().any(|words| line.contains(words)))
    }

    /// The call was cut short by [`super::Aborter::abort`]: `ERROR_ABORTED`.
    #[must_use]
    pub fn is_aborted(&self) -> bool {
        self.is(sys::ERROR_ABORTED)
    }

    fn is(&self, code: c_int) -> bool {
        self.code() == Some(ErrorCode(code))
    }
}

fn domain(domid: Option<u32>) -> String {
    domid.map(|domid| format!(" domain {domid}")).unwrap_or_default()
}

fn colon(log: &[String]) -> String {
    if log.is_empty() { String::new() } else { format!(": {}", log.join("; ")) }
}

/// `text` as it may stand on a terminal: parts of it may come from a guest, by way of xenstore.
pub(super) fn printable(text: &str) -> String {
    text.replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(code: c_int, log: &[&str]) -> LibxlError {
        LibxlError::Call {
            doing: "Suspending",
            function: "libxl_domain_suspend",
            domid: Some(7),
            code: ErrorCode(code),
            log: log.iter().map(|line| (*line).to_owned()).collect(),
        }
    }

    #[test]
    fn says_what_failed_on_which_domain_and_why() {
        let error = call(-8, &["libxl: guest didn't acknowledge suspend", "xc: Save failed"]);
        assert_eq!(
            error.to_string(),
            "Suspending domain 7 failed: ERROR_GUEST_TIMEDOUT (-8): \
             libxl: guest didn't acknowledge suspend; xc: Save failed"
        );
        assert_eq!(call(-22, &[]).to_string(), "Suspending domain 7 failed: ERROR_ABORTED (-22)");
    }

    #[test]
    fn a_code_of_a_newer_libxl_keeps_its_number() {
        assert_eq!(ErrorCode(-9999).to_string(), "unknown libxl error (-9999)");
        assert_eq!(ErrorCode(5).to_string(), "unknown libxl error (5)");
    }

    #[test]
    fn kinds_are_told_apart() {
        let log = "libxl: libxl_dom_suspend.c:372: Domain 7:guest did not suspend, timed out";
        assert!(call(sys::ERROR_GUEST_TIMEDOUT, &["xc: Save failed", log]).is_guest_timed_out());
        let log = "xc: Save failed (28 = No space left on device): Internal error";
        assert!(!call(sys::ERROR_GUEST_TIMEDOUT, &[log]).is_guest_timed_out());
        assert!(call(sys::ERROR_DOMAIN_NOTFOUND, &[]).is_not_found());
        assert!(call(sys::ERROR_ABORTED, &[]).is_aborted());
        assert!(!call(sys::ERROR_FAIL, &[]).is_aborted());
        assert!(!LibxlError::NoStoredConfig { domid: 7 }.is_not_found());
    }
}
