//! When a suspend may be cut short.

use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

/// Whether a suspend is running that can be aborted.
///
/// The lock is held while libxl is asked to abort, so that a request cannot arrive after the
/// suspend and hit what comes next: libxl_ao_abort without an ao_how aborts whichever synchronous
/// operation it finds.
#[derive(Debug, Default)]
pub(super) struct Gate(Mutex<bool>);

impl Gate {
    /// The gate, still closed, and in any case closed when the result is dropped.
    pub(super) fn keep(&self) -> GateKeeper<'_> {
        GateKeeper { gate: self, open: false }
    }

    fn set(&self, open: bool) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = open;
    }

    /// The lock on an open gate; `None` if it is closed, or another thread is passing it.
    pub(super) fn pass(&self) -> Option<MutexGuard<'_, bool>> {
        let open = match self.0.try_lock() {
            Ok(open) => open,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        open.then_some(open)
    }
}

/// The side of the thread that suspends.
pub(super) struct GateKeeper<'a> {
    gate: &'a Gate,
    open: bool,
}

impl GateKeeper<'_> {
    /// Opens the gate, the first time it is called.
    ///
    /// It is called with libxl's lock held, which a thread that passes the gate waits for; but it
    /// waits for the gate's lock only as long as the gate is closed, and then nobody passes.
    pub(super) fn open(&mut self) {
        if !self.open {
            self.open = true;
            self.gate.set(true);
        }
    }
}

impl Drop for GateKeeper<'_> {
    /// Waits for an abort that is just being asked for.
    fn drop(&mut self) {
        self.gate.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate_is_open_only_while_a_suspend_can_be_aborted() {
        let gate = Gate::default();
        let mut keeper = gate.keep();
        assert!(gate.pass().is_none());
        keeper.open();
        assert!(gate.pass().is_some());
        keeper.open();
        assert!(gate.pass().is_some());
        drop(keeper);
        assert!(gate.pass().is_none());
    }
}
