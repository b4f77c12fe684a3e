//! What the kernel tells of processes.

use std::{fs, io};

use crate::process::Process;

/// What proc_pid_stat(5) tells of a process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stat {
    pub(super) pid: i32,
    pub(super) state: char,
    /// The process that has started it, or has taken it over.
    pub(super) parent: i32,
    /// Its process group.
    pub(super) group: i32,
    /// Processor time that it has used, in clock ticks.
    pub(super) cpu: u64,
    /// In clock ticks after the boot.
    pub(super) started: u64,
    /// How it is scheduled; 0 is the usual way (sched(7), `SCHED_OTHER`).
    pub(super) policy: u64,
}

impl Stat {
    pub(super) fn parse(pid: i32, line: &[u8]) -> Option<Stat> {
        // "pid (comm) state ppid pgrp ..."; comm may hold anything, also parentheses.
        let line = String::from_utf8_lossy(line);
        let words: Vec<&str> = line.rsplit(") ").next()?.split(' ').collect();
        let number = |at: usize| words.get(at)?.parse::<u64>().ok();
        Some(Stat {
            pid,
            state: words.first()?.chars().next()?,
            parent: words.get(1)?.parse().ok()?,
            group: words.get(2)?.parse().ok()?,
            cpu: number(11)? + number(12)?,
            started: number(19)?,
            policy: number(38)?,
        })
    }
}

pub(super) fn stat(pid: i32) -> Option<Stat> {
    Stat::parse(pid, &fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// The process that has this number now.
pub fn identify(pid: i32) -> Option<Process> {
    Some(Process { pid, started: stat(pid)?.started })
}

/// The process that has started another one, or has taken it over.
pub fn parent(pid: i32) -> Option<i32> {
    Some(stat(pid)?.parent)
}

/// The numbers of all processes.
pub(super) fn all() -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        found.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    Ok(found)
}
