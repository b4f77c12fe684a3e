//! The one door to other programs.
//!
//! Programs are found in a fixed list of directories, started without a shell, with an empty
//! environment (`LC_ALL=C`, a fixed `PATH`), nothing on standard input, and in a process group of
//! their own, so that a Ctrl-C in the terminal does not hit qemu-img in the middle of a disk. A program whose
//! children must outlive us has a session and a control group of its own. What a program prints goes to an
//! anonymous memory file, so that a child it leaves behind cannot hold us up.
//!
//! A program may run for as long as it makes progress. One that makes none is ended: by SIGKILL, except lvm, which
//! must not die between the suspend and the resume of a device.

mod running;
mod server;

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

pub use self::running::{Started, end_program, feed, run, run_all, run_on, run_program};
pub use self::server::{Server, become_server};
use crate::host::process::{self, Hang};
use crate::host::surroundings::{ENVIRONMENT, undisturbed};
use crate::release::QEMUS;
use crate::tool::Tool;

/// Where programs may lie. Not `PATH`: this runs as root, whatever the caller's environment.
const DIRECTORIES: [&str; 6] =
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"];

/// What this program is called when it starts another one that is to outlive us, by its first argument.
pub const STARTER: &str = "xl-snapshot-start";
/// What it is called when it starts one that ends with us, and that serves clients on its standard input.
pub const SERVER: &str = "xl-snapshot-server";
/// Give back the defaults of scheduling, for themselves and for the program that takes their place: no safe call
/// does that. Whether the second one is needed cannot be seen.
const SCHEDULED: &[&str] = &["chrt", "--other", "0"];
const STORED: &[&str] = &["ionice", "-t", "-c", "0"];

/// Why a program failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It is in none of the directories.
    #[error("The program {} is not in {}: {}", .0.name(), DIRECTORIES.join(", "), .0.remedy())]
    NotFound(Tool),
    /// It could not be started, fed or waited for.
    #[error("`{command}` could not be run")]
    Io {
        /// As it can be pasted into a shell.
        command: String,
        source: io::Error,
    },
    /// Its input cannot be read to the end.
    #[error("`{command}` could not be given all of its input")]
    Input {
        /// As it can be pasted into a shell.
        command: String,
        source: io::Error,
    },
    /// It ended with an error.
    #[error("`{command}` ended with {status}: {stderr}")]
    Failed {
        /// As it can be pasted into a shell.
        command: String,
        /// Its exit status, or the signal.
        status: ExitStatus,
        /// The end of what it wrote to standard error.
        stderr: String,
    },
    /// It took longer than it may.
    #[error("`{command}` did not end in {} s and was killed; it said: {stderr}", .limit.as_secs_f64())]
    TooSlow {
        /// As it can be pasted into a shell.
        command: String,
        limit: Duration,
        /// The end of what it said.
        stderr: String,
    },
    /// It made no progress.
    #[error(
        "`{command}` did nothing for {} s and was {end}; until then it had {}; it said: {stderr}; {}",
        .hang.idle.as_secs(), .hang.done.words(), .tool.after_hang()
    )]
    Hung {
        tool: Tool,
        /// As it can be pasted into a shell.
        command: String,
        /// For how long it did nothing, and what it had done before.
        hang: Hang,
        /// What became of it.
        end: End,
        /// The end of what it wrote to standard error.
        stderr: String,
    },
}

/// How a program that hung was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Killed,
    /// It was killed, and has not gone: the kernel still works for it.
    Stuck,
    /// It was asked to end (SIGTERM), and did.
    Asked,
    /// It was asked to end, and still runs.
    Left,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            End::Killed => "killed",
            End::Stuck => "killed, but the kernel still keeps it",
            End::Asked => "asked to end, which it did",
            End::Left => "asked to end, but runs on",
        })
    }
}

/// Lets no program that is started inherit a descriptor that our caller has left open, but for the
/// standard ones: QEMU would keep it for as long as its domain runs.
pub fn pass_nothing_on() {
    const FIRST_AFTER_STDERR: i32 = 3;
    close_fds::set_fds_cloexec(FIRST_AFTER_STDERR, &[]);
}

/// The absolute path of a tool.
pub fn find(tool: Tool) -> Result<PathBuf, CommandError> {
    let found = match tool {
        Tool::Qemu => QEMUS.iter().map(PathBuf::from).find(|path| path.is_file()),
        _ => find_program(tool.name()),
    };
    found.ok_or(CommandError::NotFound(tool))
}

pub fn find_program(name: &str) -> Option<PathBuf> {
    let paths = DIRECTORIES.iter().map(|directory| Path::new(directory).join(name));
    paths.into_iter().find(|path| path.is_file())
}

/// This very program. Not by its path: there may be another program there since.
fn ourselves(name: impl AsRef<OsStr>) -> Command {
    let mut command = program_at(Path::new("/proc/self/exe"));
    command.arg0(name).env_clear();
    command
}

/// Begins this program anew, with the same arguments. Returns only if that fails.
pub fn begin_anew(
    name: &OsStr,
    environment: impl Iterator<Item = (String, OsString)>,
) -> io::Error {
    ourselves(name).args(env::args_os().skip(1)).envs(environment).exec()
}

/// Becomes a program, with the environment that we have. Returns only if that fails.
pub fn become_program(program: &[OsString]) -> io::Error {
    if program.is_empty() {
        return io::ErrorKind::InvalidInput.into();
    }
    let scheduled = process::is_scheduled_oddly().then_some(SCHEDULED);
    let mut words: Vec<OsString> = Vec::new();
    for before in scheduled.into_iter().chain([STORED]) {
        // BusyBox has programs of these names that know less.
        let whole = |path: &PathBuf| !is_multi_call(path);
        let Some(path) = find_program(before[0]).filter(whole) else { continue };
        words.push(path.into());
        words.extend(before[1..].iter().map(OsString::from));
    }
    words.extend_from_slice(program);
    let [program, arguments @ ..] = words.as_slice() else {
        return io::ErrorKind::InvalidInput.into();
    };
    program_at(Path::new(program)).args(arguments).exec()
}

/// Whether a program is one of many names of another one (BusyBox, Toybox).
fn is_multi_call(path: &Path) -> bool {
    let real = path.canonicalize().ok();
    let name = real.as_deref().and_then(Path::file_name);
    name.is_some_and(|name| name == "busybox" || name == "toybox")
}

#[expect(clippy::disallowed_methods, reason = "this is the one door")]
fn program_at(path: &Path) -> Command {
    Command::new(path)
}

/// Starts this program once more, under another name and with an empty environment. The new process
/// also inherits `held`.
pub fn start_again(
    name: &str,
    stdin: OwnedFd,
    stdout: Stdio,
    held: &[BorrowedFd<'_>],
) -> io::Result<Child> {
    let inherit = |flags: FdFlag| {
        held.iter().try_for_each(|fd| fcntl(fd, FcntlArg::F_SETFD(flags)).map(drop))
    };
    inherit(FdFlag::empty())?;
    let mut command = ourselves(name);
    command.envs(ENVIRONMENT).stdin(Stdio::from(stdin)).stdout(stdout);
    // Until it has a session of its own.
    let child = undisturbed(|| command.spawn());
    inherit(FdFlag::FD_CLOEXEC)?;
    child
}

#[cfg(test)]
mod tests;
