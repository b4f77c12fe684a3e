//! A program that serves clients until it is ended, or we are.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, dup2_stdin, getpid, getppid};

use super::running::Running;
use super::{CommandError, End, program_at};
use crate::host::surroundings::ENVIRONMENT;
use crate::tool::Invocation;

/// The first descriptor that is handed over (sd_listen_fds(3), `SD_LISTEN_FDS_START`).
const FIRST: i32 = 3;
/// How long it may take to end once it was asked to.
const ENDS: Duration = Duration::from_secs(10);

/// A program that serves clients. It is killed by the kernel when the thread that has started it ends.
#[expect(missing_debug_implementations, reason = "nobody prints it")]
pub struct Server(Running);

impl Server {
    /// Starts a program that accepts clients at a socket that listens already.
    pub fn start(call: &Invocation, listener: OwnedFd) -> Result<Server, CommandError> {
        Running::start(call, listener.into(), &|_, _| ()).map(Server)
    }

    /// Its number.
    pub fn pid(&self) -> i32 {
        self.0.pid()
    }

    /// Waits until it ends by itself, which is the end of it; but not for longer than `limit`.
    pub fn ended_within(&mut self, limit: Duration) -> Result<bool, CommandError> {
        self.0.gone_within(limit)
    }

    /// Whether it has done nothing for so long that it is taken to hang.
    pub fn hangs(&mut self) -> bool {
        self.0.hangs()
    }

    /// Says why one that hangs is given up, and kills it.
    pub fn give_up(self) -> CommandError {
        self.0.give_up()
    }

    /// How it ended by itself.
    pub fn outcome(self) -> Result<(), CommandError> {
        self.0.finish().map(drop)
    }

    /// Asks it to end, which it does once it has answered what its clients have asked; kills it if it does not.
    pub fn end(mut self) -> Result<End, CommandError> {
        // It is not reaped yet, so that the number is its own.
        let _ = kill(Pid::from_raw(self.pid()), Signal::SIGTERM);
        match self.ended_within(ENDS)? {
            true => self.outcome().map(|()| End::Asked),
            false => self.0.end(),
        }
    }
}

/// Becomes a program that accepts clients at the socket that is our standard input (systemd's protocol of socket
/// activation, sd_listen_fds(3)), and that the kernel kills when the process `parent`, which has started us, ends.
/// Returns only if that fails.
pub fn become_server(parent: &OsString, program: &[OsString]) -> io::Error {
    let [program, arguments @ ..] = program else { return io::ErrorKind::InvalidInput.into() };
    let prepare = || -> io::Result<()> {
        set_pdeathsig(Signal::SIGKILL)?;
        // It may have ended before that.
        if getppid().to_string().as_str() != parent {
            return Err(io::Error::other("the program that has started this one has ended"));
        }
        // Nothing else is open: it is the first that is free.
        match fcntl(io::stdin(), FcntlArg::F_DUPFD(FIRST))? {
            FIRST => Ok(dup2_stdin(File::open("/dev/null")?)?),
            other => Err(io::Error::other(format!("the socket has become descriptor {other}"))),
        }
    };
    if let Err(why) = prepare() {
        return why;
    }
    let listen = [("LISTEN_PID", getpid().to_string()), ("LISTEN_FDS", "1".to_owned())];
    let mut command = program_at(Path::new(program));
    command.args(arguments).env_clear().envs(ENVIRONMENT).envs(listen).exec()
}
