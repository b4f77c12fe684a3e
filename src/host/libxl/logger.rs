//! Receives libxl's messages (`xentoollog.h`).
//!
//! libxl logs from inside any call, with its lock held, and on whichever thread made the call. So
//! everything here is behind a mutex or belongs to one thread, no Rust code of the caller runs
//! with our mutex held, and nothing unwinds into C.

use std::{
    collections::VecDeque,
    ffi::{CStr, c_char, c_int, c_ulong},
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    process,
    ptr::NonNull,
    sync::{Mutex, MutexGuard, PoisonError},
};

use nix::unistd;
use xen_bindings as sys;

use super::{callback::InCallback, error::printable, owned::lossy, progress::on_progress};

/// How many messages an error carries at most: the last ones say most.
const KEPT_MESSAGES: usize = 20;

/// The longest message, in bytes; the rest is cut off.
const MESSAGE_SIZE: usize = 2048;

/// The weight of a message (`enum xentoollog_level`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For libxl's developers.
    Debug,
    /// Less of the same.
    Verbose,
    /// Less still.
    Detail,
    /// Progress, as text.
    Progress,
    /// Not a problem.
    Info,
    /// Not a problem, but worth knowing.
    Notice,
    /// Perhaps a problem.
    Warn,
    /// A problem.
    Error,
    /// libxl itself is broken.
    Critical,
}

impl Level {
    fn from_c(level: sys::xentoollog_level) -> Self {
        match level {
            sys::XTL_NONE | sys::XTL_DEBUG => Self::Debug,
            sys::XTL_VERBOSE => Self::Verbose,
            sys::XTL_DETAIL => Self::Detail,
            sys::XTL_PROGRESS => Self::Progress,
            sys::XTL_INFO => Self::Info,
            sys::XTL_NOTICE => Self::Notice,
            sys::XTL_WARN => Self::Warn,
            sys::XTL_ERROR => Self::Error,
            _ => Self::Critical,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Debug => "debug",
            Self::Verbose => "verbose",
            Self::Detail => "detail",
            Self::Progress => "progress",
            Self::Info => "info",
            Self::Notice => "notice",
            Self::Warn => "warning",
            Self::Error => "error",
            Self::Critical => "critical",
        })
    }
}

/// Takes libxl's messages, one line each and without a line end, such as
/// `libxl: libxl_dom_suspend.c:339:suspend_common_wait_guest_timeout: Domain 7:guest did not suspend, timed out`.
///
/// It is called from inside libxl and must not call libxl again.
pub type Sink = Box<dyn FnMut(Level, &str) + Send>;

/// libxl's logger and what we keep of what it said.
///
/// The vtable comes first: C sees a `struct xentoollog_logger` "each logger can put its necessary
/// data here" behind it.
#[repr(C)]
struct Logger {
    vtable: sys::xentoollog_logger,
    minimum: Level,
    process: u32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Warnings and worse of the current call.
    recent: VecDeque<String>,
    /// Messages the sink has not seen yet.
    pending: VecDeque<(Level, String)>,
    /// None while it runs.
    sink: Option<Sink>,
    muted: bool,
}

/// The logger, owned: it must outlive every context it was given to.
pub(super) struct LoggerHandle(NonNull<Logger>);

impl LoggerHandle {
    /// A logger whose `sink` gets every message of `minimum` and above.
    pub(super) fn new(minimum: Level, sink: Sink) -> Self {
        let logger = Box::new(Logger {
            vtable: sys::xentoollog_logger {
                vmessage: Some(on_message),
                progress: Some(on_progress),
                destroy: Some(on_destroy),
            },
            minimum,
            process: process::id(),
            state: Mutex::new(State { sink: Some(sink), ..State::default() }),
        });
        Self(NonNull::from(Box::leak(logger)))
    }

    /// What C is given. The pointer may reach the whole `Logger`, not only its first field.
    pub(super) fn as_ptr(&self) -> *mut sys::xentoollog_logger {
        self.0.as_ptr().cast()
    }

    fn logger(&self) -> &Logger {
        // SAFETY: allocated in `new` and freed in `drop`. Nobody ever makes a `&mut` to it: C only
        // reads the function pointers (xtl_core.c), and the callbacks make shared references.
        unsafe { self.0.as_ref() }
    }

    /// Forgets the messages of the call before.
    pub(super) fn begin_call(&self) {
        self.logger().lock().recent.clear();
    }

    /// Warnings and errors since [`Self::begin_call`], oldest first.
    pub(super) fn recent(&self) -> Vec<String> {
        self.logger().lock().recent.iter().cloned().collect()
    }

    /// Runs `call` without handing its messages to the sink: for questions whose "no" is no error.
    pub(super) fn muted<R>(&self, call: impl FnOnce() -> R) -> R {
        self.logger().lock().muted = true;
        let result = call();
        self.logger().lock().muted = false;
        result
    }
}

impl Drop for LoggerHandle {
    fn drop(&mut self) {
        // SAFETY: xentoollog.h: calls the logger's own `destroy`, here `on_destroy`, once. The
        // owner of this handle has freed the context before (`Drop for Libxl`), so that no C code
        // keeps the pointer.
        unsafe { sys::xtl_logger_destroy(self.as_ptr()) };
    }
}

impl Logger {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole between any two statements that hold the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anybody wants messages of this level.
    fn wants(&self, level: Level) -> bool {
        level >= Level::Warn || level >= self.minimum
    }

    fn take(&self, level: Level, text: String) {
        let mut state = self.lock();
        if level >= Level::Warn {
            if state.recent.len() == KEPT_MESSAGES {
                state.recent.pop_front();
            }
            state.recent.push_back(text.clone());
        }
        if level < self.minimum || state.muted {
            return;
        }
        state.pending.push_back((level, text));
        // Without a sink somebody is delivering: this thread further up, if the sink made libxl
        // log, or another thread. They take this message too.
        let Some(mut sink) = state.sink.take() else { return };
        while let Some((level, text)) = state.pending.pop_front() {
            drop(state);
            let inside = InCallback::enter();
            // The panic hook has reported a panic; a message is not worth more than that.
            drop(catch_unwind(AssertUnwindSafe(|| sink(level, &text))));
            drop(inside);
            state = self.lock();
        }
        state.sink = Some(sink);
    }
}

/// `vmessage` of `struct xentoollog_logger`.
unsafe extern "C" fn on_message(
    logger: *mut sys::xentoollog_logger,
    level: sys::xentoollog_level,
    errnoval: c_int,
    context: *const c_char,
    format: *const c_char,
    arguments: *mut sys::__va_list_tag,
) {
    let receive = || {
        // SAFETY: xtl_logv passes on the pointer that `LoggerHandle::as_ptr` gave to C, which
        // points to a live `Logger` (it outlives the context) and was made from the whole of it.
        // Only shared references to it exist.
        let logger = unsafe { &*logger.cast::<Logger>() };
        let level = Level::from_c(level);
        if !logger.wants(level) {
            return;
        }
        let mut buffer = [0u8; MESSAGE_SIZE];
        // SAFETY: the buffer has the length given. `format` and `arguments` belong together and
        // are used once: xentoollog.h declares the callback with `format(printf,5,0)`.
        let wanted = unsafe {
            sys::vsnprintf(buffer.as_mut_ptr().cast(), MESSAGE_SIZE as c_ulong, format, arguments)
        };
        // SAFETY: xentoollog.h: `context /* eg "xc", "xl", may be 0 */`, otherwise a C string.
        let context = unsafe { lossy(context) };
        let text = message(context.as_deref(), &buffer, wanted, errnoval);
        if process::id() == logger.process {
            logger.take(level, text);
        } else if level >= Level::Warn {
            // A child that libxl forked. Another thread of ours may have held any lock at that
            // moment, and is not here to release it: write without one.
            let line = format!("{text}\n");
            let _ = unistd::write(io::stderr(), line.as_bytes());
        }
    };
    // Nothing may unwind into C.
    drop(catch_unwind(AssertUnwindSafe(receive)));
}

/// One line of text: context, what vsnprintf made, and the meaning of errno.
fn message(context: Option<&str>, buffer: &[u8], wanted: c_int, errnoval: c_int) -> String {
    let mut text = context.map(|context| format!("{context}: ")).unwrap_or_default();
    match (usize::try_from(wanted), CStr::from_bytes_until_nul(buffer)) {
        (Ok(wanted), Ok(formatted)) => {
            text.push_str(formatted.to_string_lossy().trim_end());
            if wanted >= buffer.len() {
                text.push_str(" [...]");
            }
        }
        _ => text.push_str("(a message that cannot be formatted)"),
    }
    // -1 and 0 mean that errno says nothing.
    if errnoval > 0 {
        text.push_str(": ");
        text.push_str(&io::Error::from_raw_os_error(errnoval).to_string());
    }
    printable(&text)
}

/// `destroy` of `struct xentoollog_logger`.
unsafe extern "C" fn on_destroy(logger: *mut sys::xentoollog_logger) {
    // SAFETY: the pointer that `LoggerHandle::new` took out of a Box. Only xtl_logger_destroy
    // calls `destroy`, and only `Drop for LoggerHandle` calls that: once.
    let logger = unsafe { Box::from_raw(logger.cast::<Logger>()) };
    // The sink may be anything, and its drop may panic.
    drop(catch_unwind(AssertUnwindSafe(|| drop(logger))));
}

#[cfg(test)]
mod tests {
    use std::{
        ffi::CString,
        ptr,
        sync::{Arc, Mutex},
        thread,
    };

    use super::*;
    use crate::host::libxl::callback::assert_outside_callback;

    type Lines = Arc<Mutex<Vec<(Level, String)>>>;

    fn logger(minimum: Level) -> (LoggerHandle, Lines) {
        let lines = Lines::default();
        let sink = Arc::clone(&lines);
        let sink = move |level, text: &str| sink.lock().unwrap().push((level, text.to_owned()));
        (LoggerHandle::new(minimum, Box::new(sink)), lines)
    }

    fn log(logger: &LoggerHandle, level: sys::xentoollog_level, errnoval: c_int, text: &str) {
        let text = CString::new(text).expect("no NUL in test texts");
        // SAFETY: a live logger and C strings; the format asks for one string and gets one.
        unsafe {
            sys::xtl_log(
                logger.as_ptr(),
                level,
                errnoval,
                c"libxl".as_ptr(),
                c"<%s>".as_ptr(),
                text.as_ptr(),
            );
        };
    }

    #[test]
    fn the_sink_gets_what_it_asked_for_and_errors_keep_warnings() {
        let (logger, lines) = logger(Level::Error);
        log(&logger, sys::XTL_DEBUG, -1, "debug");
        log(&logger, sys::XTL_WARN, -1, "warn");
        log(&logger, sys::XTL_ERROR, libc::ENOENT, "error");
        let error = "libxl: <error>: No such file or directory (os error 2)".to_owned();
        assert_eq!(logger.recent(), ["libxl: <warn>", &error]);
        assert_eq!(*lines.lock().unwrap(), [(Level::Error, error)]);
        logger.begin_call();
        assert!(logger.recent().is_empty());
    }

    #[test]
    fn only_the_last_messages_are_kept() {
        let (logger, _) = logger(Level::Critical);
        for number in 0..KEPT_MESSAGES + 5 {
            log(&logger, sys::XTL_ERROR, -1, &number.to_string());
        }
        let recent = logger.recent();
        assert_eq!(recent.len(), KEPT_MESSAGES);
        assert_eq!(recent.first().map(String::as_str), Some("libxl: <5>"));
        assert_eq!(recent.last().map(String::as_str), Some("libxl: <24>"));
    }

    #[test]
    fn long_and_hostile_messages_are_cut_and_cleaned() {
        let (logger, _) = logger(Level::Critical);
        log(&logger, sys::XTL_ERROR, -1, &"x".repeat(3 * MESSAGE_SIZE));
        log(&logger, sys::XTL_ERROR, -1, "a\x1b[2Jb\nc");
        let recent = logger.recent();
        assert_eq!(recent[0].len(), "libxl: ".len() + MESSAGE_SIZE - 1 + " [...]".len());
        assert!(recent[0].ends_with("x [...]"));
        assert_eq!(recent[1], "libxl: <a [2Jb c>");
    }

    #[test]
    fn a_muted_call_is_recorded_but_not_shown() {
        let (logger, lines) = logger(Level::Debug);
        logger.muted(|| log(&logger, sys::XTL_ERROR, -1, "gone"));
        log(&logger, sys::XTL_INFO, -1, "shown");
        assert_eq!(logger.recent(), ["libxl: <gone>"]);
        assert_eq!(*lines.lock().unwrap(), [(Level::Info, "libxl: <shown>".to_owned())]);
    }

    #[test]
    fn a_panic_of_the_sink_does_not_reach_c() {
        let sink: Sink = Box::new(|_, _| panic!("on purpose"));
        let logger = LoggerHandle::new(Level::Debug, sink);
        log(&logger, sys::XTL_ERROR, -1, "one");
        log(&logger, sys::XTL_ERROR, -1, "two");
        assert_eq!(logger.recent(), ["libxl: <one>", "libxl: <two>"]);
        assert_outside_callback();
    }

    #[test]
    fn messages_from_several_threads_all_arrive() {
        let (logger, lines) = logger(Level::Debug);
        let address = logger.as_ptr() as usize;
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(move || {
                    for _ in 0..100 {
                        // SAFETY: the logger lives until the scope has ended; the format takes
                        // no argument.
                        unsafe {
                            sys::xtl_log(
                                address as *mut sys::xentoollog_logger,
                                sys::XTL_INFO,
                                -1,
                                ptr::null(),
                                c"hello".as_ptr(),
                            );
                        };
                    }
                });
            }
        });
        assert_eq!(lines.lock().unwrap().len(), 400);
    }
}
