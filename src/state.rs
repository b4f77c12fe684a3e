//! What all planners share: what a domain is doing, and how a time stands in names. Pure.

use jiff::Timestamp;

/// What a domain is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Running or waiting for something to do.
    Running,
    /// Paused by an administrator: it cannot answer a suspend request.
    Paused,
    /// Suspended: somebody saves or migrates it, or has left it so.
    Suspended,
    /// Shut down or crashed, and not yet destroyed.
    Shutdown,
    /// Being destroyed.
    Dying,
    /// There is no such domain, but a configuration file of it.
    Off,
}

/// A time as it stands in names: `20260301-020304`, UTC.
pub fn stamp(time: Timestamp) -> String {
    time.strftime("%Y%m%d-%H%M%S").to_string()
}
