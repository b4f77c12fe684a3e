//! A process as a plan names it. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A process. Its number alone does not identify it: Linux gives the number of a process that has ended to
/// another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: i32,
    /// When it started, in clock ticks after the boot (proc_pid_stat(5), `starttime`).
    pub started: u64,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pid.fmt(f)
    }
}
