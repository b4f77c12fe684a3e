//! For `make bench`: looks at a domain from outside while a command runs, and what libxl costs alone.
//!
//! ```text
//! xl-snapshot-bench watch DOMID COMMAND...   when the domain did not run, what the command cost
//! xl-snapshot-bench bare DOMID live|still    suspends into a file and resumes, by libxl alone: the floor
//! ```
//!
//! `watch` asks Xen for the state of the domain as often as the sleep of a millisecond allows, and
//! prints one line of `name=value`, times in microseconds. It knows nothing of the program it watches.
//! The domain counts as not running while it is paused, shut down (suspended is a reason to be shut
//! down), dying or not there.

#![allow(clippy::disallowed_methods, reason = "it starts what it watches")]

use std::error::Error;
use std::ffi::OsStr;
use std::fs;
use std::os::fd::AsFd;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, SysconfVar, sysconf};
use xl_snapshot::host::libxl::{Level, Libxl};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How long it sleeps between two looks.
const INTERVAL: Duration = Duration::from_millis(1);
/// Memory is looked at once in so many looks at the domain.
const MEMORY_EVERY: u32 = 64;

fn main() -> ExitCode {
    let args: Vec<_> = env::args_os().skip(1).collect();
    let args: Vec<&OsStr> = args.iter().map(AsRef::as_ref).collect();
    let text = |arg: &OsStr| arg.to_str().map(str::to_owned).unwrap_or_default();
    let result = match args.as_slice() {
        [mode, domid, command @ ..] if text(mode) == "watch" && !command.is_empty() => {
            watch(&text(domid), command)
        }
        [mode, domid, how] if text(mode) == "bare" => bare(&text(domid), text(how) == "live"),
        _ => Err("usage: xl-snapshot-bench watch DOMID COMMAND... | bare DOMID live|still".into()),
    };
    result.unwrap_or_else(|error| {
        eprintln!("xl-snapshot-bench: {error}");
        ExitCode::FAILURE
    })
}

/// The times in which the domain did not run.
#[derive(Default)]
struct Seen {
    stopped: Duration,
    longest: Duration,
    times: u32,
    /// The longest time between two looks.
    gap: Duration,
    polls: u32,
}

fn watch(domid: &str, command: &[&OsStr]) -> Result<ExitCode> {
    let domid: u32 = domid.parse()?;
    let libxl = Libxl::open(Level::Error, |_, message| eprintln!("{message}"))?;
    let runs_now = || match libxl.domain_info(domid) {
        Ok(Some(info)) => !info.paused && info.shutdown_reason.is_none() && !info.dying,
        Ok(None) | Err(_) => false,
    };
    let mut child = Command::new(command[0]).args(&command[1..]).stdin(Stdio::null()).spawn()?;
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    let begin = Instant::now();
    let mut seen = Seen::default();
    let mut stopped_at = None;
    let mut memory = 0;
    let mut last = begin;
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    loop {
        let runs = runs_now();
        let now = Instant::now();
        seen.gap = seen.gap.max(now - last);
        seen.polls += 1;
        // It happened between two looks: most likely in the middle.
        let between = last + (now - last) / 2;
        match (runs, stopped_at) {
            (false, None) => stopped_at = Some(between),
            (true, Some(since)) => {
                let pause = between - since;
                seen.stopped += pause;
                seen.longest = seen.longest.max(pause);
                seen.times += 1;
                stopped_at = None;
            }
            _ => {}
        }
        last = now;
        if seen.polls % MEMORY_EVERY == 1 {
            memory = memory.max(peak_memory(pid).unwrap_or(0));
        }
        if waitid(Id::Pid(pid), flags)? != WaitStatus::StillAlive {
            break;
        }
        thread::sleep(INTERVAL);
    }
    let wall = begin.elapsed();
    if stopped_at.is_some() {
        eprintln!("xl-snapshot-bench: domain {domid} does not run at the end");
    }
    // Before it is waited for: then this is gone.
    let own = own_cpu(pid)?;
    let status = child.wait()?;
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let micros = |time: TimeVal| time.num_microseconds();
    println!(
        "wall={} pause={} longest={} times={} gap={} polls={} own_cpu={} all_cpu={} peak_kib={memory}",
        wall.as_micros(),
        seen.stopped.as_micros(),
        seen.longest.as_micros(),
        seen.times,
        seen.gap.as_micros(),
        seen.polls,
        own.as_micros(),
        micros(usage.user_time()) + micros(usage.system_time()),
    );
    Ok(u8::try_from(status.code().unwrap_or(255)).unwrap_or(255).into())
}

/// The most memory a process ever had, in KiB (proc_pid_status(5), `VmHWM`).
fn peak_memory(pid: Pid) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// The processor time of a process that has ended and was not waited for, without that of its children
/// (proc_pid_stat(5), fields 14 and 15).
fn own_cpu(pid: Pid) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let behind = stat.rsplit_once(')').ok_or("no name in stat")?.1;
    let ticks: Vec<u64> = behind
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(str::parse)
        .collect::<std::result::Result<_, _>>()?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.ok_or("no clock tick")?;
    let micros = ticks.iter().sum::<u64>() * 1_000_000 / u64::try_from(per_second)?;
    Ok(Duration::from_micros(micros))
}

/// The least that a save of a running domain can be: libxl's suspend into a file, and its resume.
fn bare(domid: &str, live: bool) -> Result<ExitCode> {
    let domid: u32 = domid.parse()?;
    let libxl = Libxl::open(Level::Error, |_, message| eprintln!("{message}"))?;
    let file = tempfile::tempfile_in(".")?;
    let saved = libxl.suspend(domid, file.as_fd(), live, &mut |_| ());
    // Whatever became of the suspend.
    let resumed = libxl.resume(domid);
    saved.and(resumed)?;
    Ok(ExitCode::SUCCESS)
}
