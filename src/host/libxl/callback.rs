//! Whether a thread is inside of one of libxl's callbacks.

use std::cell::Cell;

thread_local! {
    /// Whether this thread runs one of our caller's closures inside a callback of libxl.
    static IN_CALLBACK: Cell<bool> = const { Cell::new(false) };
}

/// Panics when called, through one of our caller's closures, from inside libxl: libxl.h promises
/// nothing about calls from a logger, which runs with libxl's lock held and its lists half changed.
pub(super) fn assert_outside_callback() {
    assert!(
        !IN_CALLBACK.get(),
        "libxl is called from its own message or progress callback: do it after the call has returned"
    );
}

/// Marks this thread as inside a callback until it is dropped.
pub(super) struct InCallback {
    before: bool,
}

impl InCallback {
    /// Begins the inside.
    pub(super) fn enter() -> Self {
        Self { before: IN_CALLBACK.replace(true) }
    }
}

impl Drop for InCallback {
    fn drop(&mut self) {
        IN_CALLBACK.set(self.before);
    }
}
