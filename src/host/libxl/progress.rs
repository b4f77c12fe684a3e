//! Receives libxl's progress reports (`xentoollog.h`) and hands them to the suspend that is running.

use std::{
    any::Any,
    cell::Cell,
    ffi::{c_char, c_int, c_ulong, c_void},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    ptr,
};

use xen_bindings as sys;

use super::{callback::InCallback, owned::lossy};
use crate::release::{ROUND, SUSPENDED};

thread_local! {
    /// The `Watcher` of the suspend this thread is in, or null.
    static WATCHER: Cell<*mut c_void> = const { Cell::new(ptr::null_mut()) };
}

/// How far a suspend has come; one report is made per 4 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// libxl's words: "Frames iteration 0" for the first round of a live suspend, "Frames" for a
    /// non-live one; events such as "Domain now suspended" have a `total` of 0.
    pub what: &'a str,
    /// 0 to 100.
    pub percent: u8,
    /// Guest pages (4 KiB) done in this round.
    pub done: u64,
    /// Guest pages (4 KiB) to do in this round.
    pub total: u64,
}

impl Progress<'_> {
    /// The guest has just stopped.
    #[must_use]
    pub fn is_suspended(&self) -> bool {
        self.what == SUSPENDED
    }

    /// The round of a live suspend, from 0.
    #[must_use]
    pub fn iteration(&self) -> Option<u32> {
        self.what.strip_prefix(ROUND)?.parse().ok()
    }
}

/// The closure of a suspend, and its panic if it panicked.
struct Watcher<'a> {
    progress: &'a mut dyn FnMut(Progress<'_>),
    panic: Option<Box<dyn Any + Send>>,
}

/// Runs `call`, during which progress that libxl reports on this thread goes to `progress`.
///
/// A panic of `progress` goes on when `call` has returned; until then it is not called again.
pub(super) fn watching<R>(progress: &mut dyn FnMut(Progress<'_>), call: impl FnOnce() -> R) -> R {
    struct Forget;
    impl Drop for Forget {
        fn drop(&mut self) {
            WATCHER.set(ptr::null_mut());
        }
    }

    let mut watcher = Watcher { progress, panic: None };
    WATCHER.set((&raw mut watcher).cast());
    let forget = Forget;
    let result = call();
    drop(forget);
    if let Some(panic) = watcher.panic {
        resume_unwind(panic);
    }
    result
}

/// `progress` of `struct xentoollog_logger`.
pub(super) unsafe extern "C" fn on_progress(
    _logger: *mut sys::xentoollog_logger,
    _context: *const c_char,
    what: *const c_char,
    percent: c_int,
    done: c_ulong,
    total: c_ulong,
) {
    // Taken out while it runs: a report from inside the closure finds nobody.
    let pointer = WATCHER.replace(ptr::null_mut());
    if pointer.is_null() {
        return;
    }
    // SAFETY: `watching` further up on this very thread (the variable is thread-local) put it
    // there, has not returned (it would have set null) and does not touch it until it does. Taking
    // the pointer out above makes this the only reference.
    let watcher = unsafe { &mut *pointer.cast::<Watcher<'_>>() };
    if watcher.panic.is_none() {
        // SAFETY: xentoollog.h: `const char *doing_what /* no \r,\n */`, a C string.
        let what = unsafe { lossy(what) }.unwrap_or_default();
        let progress = &mut watcher.progress;
        let inside = InCallback::enter();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            progress(Progress {
                what: &what,
                percent: u8::try_from(percent.clamp(0, 100)).unwrap_or(100),
                done,
                total,
            });
        }));
        drop(inside);
        watcher.panic = outcome.err();
    }
    WATCHER.set(pointer);
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::super::callback::assert_outside_callback;
    use super::super::logger::{Level, LoggerHandle};
    use super::*;

    fn logger() -> LoggerHandle {
        LoggerHandle::new(Level::Critical, Box::new(|_, _| {}))
    }

    fn report(logger: &LoggerHandle, what: &CStr, done: c_ulong, total: c_ulong) {
        // SAFETY: a live logger and C strings.
        unsafe {
            sys::xtl_progress(logger.as_ptr(), c"xc".as_ptr(), what.as_ptr(), done, total);
        };
    }

    #[test]
    fn progress_reaches_the_closure_of_the_running_call_only() {
        let logger = logger();
        let mut seen = Vec::new();
        report(&logger, c"early", 1, 2);
        watching(
            &mut |progress| {
                seen.push((progress.iteration(), progress.percent, progress.is_suspended()));
            },
            || {
                report(&logger, c"Frames iteration 0", 1024, 4096);
                report(&logger, c"Frames iteration 12", 1, 2);
                report(&logger, c"Frames", 2, 2);
                report(&logger, c"Domain now suspended", 0, 0);
            },
        );
        report(&logger, c"late", 1, 2);
        assert_eq!(
            seen,
            [(Some(0), 25, false), (Some(12), 50, false), (None, 100, false), (None, 0, true)]
        );
    }

    #[test]
    fn a_panic_of_the_closure_waits_for_the_end_of_the_call() {
        let logger = logger();
        let (mut calls, mut ended) = (0, false);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            watching(
                &mut |_| {
                    calls += 1;
                    panic!("on purpose");
                },
                || {
                    report(&logger, c"Frames", 1, 2);
                    report(&logger, c"Frames", 2, 2);
                    ended = true;
                },
            );
        }));
        assert!(outcome.is_err());
        assert_eq!((calls, ended), (1, true));
        assert!(WATCHER.get().is_null());
    }

    #[test]
    fn libxl_may_not_be_called_from_its_own_callbacks() {
        let logger = logger();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            watching(&mut |_| assert_outside_callback(), || report(&logger, c"Frames", 1, 2));
        }));
        assert!(outcome.is_err());
        assert_outside_callback();
    }
}
