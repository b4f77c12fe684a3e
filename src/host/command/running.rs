//! A program that runs: its input, its progress, its end.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::iter;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid};
use rustix::process::{Resource, Rlimit, prlimit};

use super::{CommandError, End, SERVER, STARTER, find, ourselves, program_at};
use crate::host::parallel::in_parallel;
use crate::host::process::{self, Handle, Hang, Watch};
use crate::host::surroundings::{ENVIRONMENT, undisturbed};
use crate::process::Process;
use crate::tool::{Invocation, Tool, quote};

/// How often the caller is informed that a program still runs.
pub(super) const NOW_AND_THEN: Duration = Duration::from_millis(200);
/// How long a program that was killed may take to go.
const KILLED: Duration = Duration::from_secs(30);
/// How long lvm may go on without doing anything after it was asked to end.
const LVM_ENDS: Duration = Duration::from_secs(3600);
/// How much of what a program prints on standard output is read.
const MAX_OUTPUT: u64 = 16 << 20;
/// How much of the end of standard error is put into a message.
const STDERR_TAIL: u64 = 1024;

/// Called while a program runs, with the number of its process.
type Meanwhile<'a> = &'a mut dyn FnMut(u32);

/// Called for every program that is started.
pub type Started<'a> = &'a (dyn Fn(Tool, Process) + Sync);

/// Runs a tool to its end and returns what it printed on standard output.
pub fn run(call: &Invocation) -> Result<Vec<u8>, CommandError> {
    Running::start(call, Stdio::null(), &|_, _| ())?.finish()
}

/// Runs tools at the same time, each to its end, and returns the first failure.
pub fn run_all(calls: &[&Invocation], started: Started<'_>) -> Result<(), CommandError> {
    let run = |call| Running::start(call, Stdio::null(), started)?.finish();
    in_parallel(calls.iter().copied(), run).into_iter().try_for_each(|result| result.map(drop))
}

/// Runs a tool with a file as its standard input. `meanwhile` is told its process now and then.
pub fn run_on(
    call: &Invocation,
    input: File,
    meanwhile: Meanwhile<'_>,
    started: Started<'_>,
) -> Result<(), CommandError> {
    Running::start(call, input.into(), started)?.finish_with(Some(meanwhile)).map(drop)
}

/// Runs a tool with `head` and then `length` bytes of `body` on its standard input. `fed` is told
/// the bytes of `body` that have been handed over.
pub fn feed(
    call: &Invocation,
    head: &[u8],
    body: impl Read,
    length: u64,
    fed: &mut dyn FnMut(u64),
    started: Started<'_>,
) -> Result<(), CommandError> {
    let mut running = Running::start(call, Stdio::piped(), started)?;
    let written = match running.feed(head, body, length, fed) {
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            return Err(running.give_up());
        }
        written => written,
    };
    match (running.finish(), written) {
        (Ok(_), Ok(())) => Ok(()),
        // A program that read all it wanted may close its end before we are done.
        (Ok(_), Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        // Its own words tell more than our broken pipe, but not why its input ended.
        (Err(error), Ok(())) => Err(error),
        (Err(error), Err(source)) if source.kind() == io::ErrorKind::BrokenPipe => Err(error),
        (_, Err(source)) => Err(CommandError::Input { command: call.to_string(), source }),
    }
}

/// Runs a program of the user's to its end, for `limit` at most: what it waits for is not ours to watch. `started` is
/// told its process.
pub fn run_program(
    program: &Path,
    arguments: &[&str],
    limit: Duration,
    started: &dyn Fn(Process),
) -> Result<(), CommandError> {
    let command = iter::once(quote(program)).chain(arguments.iter().map(quote)).collect::<Vec<_>>();
    let command = command.join(" ");
    let io = |source| CommandError::Io { command: command.clone(), source };
    let mut stderr = memory_file().map_err(io)?;
    let mut child = program_at(program)
        .args(arguments)
        .env_clear()
        .envs(ENVIRONMENT)
        .stdin(Stdio::null())
        .stdout(stderr.try_clone().map_err(io)?)
        .stderr(stderr.try_clone().map_err(io)?)
        .process_group(0)
        .spawn()
        .map_err(io)?;
    let pid = child.id() as i32;
    process::identify(pid).into_iter().for_each(started);
    if !ends_within(pid, limit).unwrap_or(false) {
        let handle = Handle::of_pid(pid);
        end_group(pid);
        let handle = handle.map_err(io)?;
        // One that hangs in the kernel is left to it: the guest must be thawed.
        if handle.is_none_or(|handle| must_end(&handle, KILLED).is_ok()) {
            child.wait().map_err(io)?;
        }
        let stderr = tail(&mut stderr).map_err(io)?;
        return Err(CommandError::TooSlow { command, limit, stderr });
    }
    let status = child.wait().map_err(io)?;
    if status.success() {
        return Ok(());
    }
    let stderr = tail(&mut stderr).map_err(io)?;
    Err(CommandError::Failed { command, status, stderr })
}

fn ends_within(pid: i32, limit: Duration) -> io::Result<bool> {
    let Some(handle) = Handle::of_pid(pid)? else { return Ok(true) };
    handle_ends_within(&handle, limit)
}

/// A signal to us ends a wait early.
fn handle_ends_within(handle: &Handle, limit: Duration) -> io::Result<bool> {
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if handle.gone_within(left)? {
            return Ok(true);
        }
        if left.is_zero() {
            return Ok(false);
        }
    }
}

/// Kills a program that [`run_program`] of a process started that is gone now, if it still runs.
pub fn end_program(process: Process) -> io::Result<()> {
    let Some(handle) = Handle::open(process)? else { return Ok(()) };
    end_group(process.pid);
    must_end(&handle, KILLED)
}

/// One that was killed and does not end hangs in the kernel, and may still do what it was about to do.
pub(super) fn must_end(handle: &Handle, limit: Duration) -> io::Result<()> {
    match handle_ends_within(handle, limit)? {
        true => Ok(()),
        false => {
            let pid = handle.pid();
            let why = format!(
                "process {pid} was killed and has not ended after {} s: it hangs in the kernel (see \
                 /proc/{pid}/stack)",
                limit.as_secs()
            );
            Err(io::Error::new(io::ErrorKind::TimedOut, why))
        }
    }
}

/// The helpers of a program too.
fn end_group(pid: i32) {
    // It is not reaped yet, or held: the number is its own.
    let _ = kill(Pid::from_raw(-pid), Signal::SIGKILL);
}

pub(super) struct Running {
    pub(super) tool: Tool,
    command: String,
    child: Child,
    handle: Handle,
    stdout: File,
    stderr: File,
    watch: Watch,
    /// That it does nothing any more.
    hang: Option<Hang>,
}

impl Running {
    pub(super) fn start(
        call: &Invocation,
        stdin: Stdio,
        started: Started<'_>,
    ) -> Result<Running, CommandError> {
        let program = find(call.tool)?;
        let command = call.to_string();
        let start = || -> io::Result<(Child, Handle, File, File)> {
            let (stdout, stderr) = (memory_file()?, memory_file()?);
            // What xl leaves running lives for as long as the domain.
            let outlives = call.tool == Tool::Xl;
            let serves = call.tool == Tool::QemuNbd;
            let mut command = match call.tool {
                Tool::Xl => ourselves(STARTER),
                Tool::QemuNbd => ourselves(SERVER),
                _ => program_at(&program),
            };
            command
                .args(serves.then(|| getpid().to_string()))
                .args((outlives || serves).then_some(&program))
                .args(&call.args)
                .env_clear()
                .envs(ENVIRONMENT)
                .stdin(stdin)
                .stdout(stdout.try_clone()?)
                .stderr(stderr.try_clone()?);
            let mut child = match outlives {
                // It makes a session of its own, and until then a Ctrl-C would hit it.
                true => undisturbed(|| command.spawn())?,
                false => command.process_group(0).spawn()?,
            };
            // It is there until it is reaped.
            let handle = Handle::of_pid(child.id() as i32);
            match handle.and_then(|handle| handle.ok_or(io::ErrorKind::NotFound.into())) {
                Ok(handle) => Ok((child, handle, stdout, stderr)),
                Err(error) => {
                    child.kill()?;
                    child.wait()?;
                    Err(error)
                }
            }
        };
        let (child, handle, stdout, stderr) =
            start().map_err(|source| CommandError::Io { command: command.clone(), source })?;
        if call.describes_images() {
            bound(&child, 60);
        } else if call.reads_tables() {
            bound(&child, 600);
        }
        if let Some(process) = process::identify(handle.pid()) {
            started(call.tool, process);
        }
        let watch = Watch::of_group(handle.pid(), call.patience);
        let tool = call.tool;
        Ok(Running { tool, command, child, handle, stdout, stderr, watch, hang: None })
    }

    /// Fails with `TimedOut` if the program does not read more of its input.
    pub(super) fn feed(
        &mut self,
        head: &[u8],
        mut body: impl Read,
        length: u64,
        fed: &mut dyn FnMut(u64),
    ) -> io::Result<()> {
        const CHUNK: u64 = 1 << 20;
        let mut chunk = Vec::new();
        let mut stdin = self.child.stdin.take().expect("standard input was asked to be a pipe");
        // Fewer wake-ups; a pipe of the usual size works as well.
        let _ = fcntl(&stdin, FcntlArg::F_SETPIPE_SZ(1 << 20));
        // The other end is opened anew by whoever reads it: this is for us alone.
        fcntl(&stdin, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        self.hand_over(&mut stdin, head)?;
        let mut total = 0;
        while total < length {
            let want = CHUNK.min(length - total);
            // Not splice(2), which hands the pages over one by one: measured, it takes twice the processor
            // time of these copies, and the restore half as long again.
            chunk.clear();
            let read = body.by_ref().take(want).read_to_end(&mut chunk)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.hand_over(&mut stdin, &chunk)?;
            total += read as u64;
            fed(total);
        }
        Ok(())
    }

    /// Writes into its pipe, and waits while that is full: but not for a program that does nothing.
    fn hand_over(&mut self, stdin: &mut ChildStdin, mut bytes: &[u8]) -> io::Result<()> {
        // What we have waited for ourselves meanwhile is not its fault.
        self.watch.moved();
        while !bytes.is_empty() {
            match stdin.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    bytes = &bytes[count..];
                    self.watch.moved();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let room = PollFd::new(stdin.as_fd(), PollFlags::POLLOUT);
                    let end = PollFd::new(self.handle.as_fd(), PollFlags::POLLIN);
                    let mut fds = [room, end];
                    process::ready_within(&mut fds, self.watch.due())?;
                    // A helper of it may hold the pipe open.
                    if fds[1].any() == Some(true) {
                        return Err(io::ErrorKind::BrokenPipe.into());
                    }
                    self.hang = self.watch.look();
                    if self.hang.is_some() {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<Vec<u8>, CommandError> {
        self.finish_with(None)
    }

    fn finish_with(mut self, meanwhile: Option<Meanwhile<'_>>) -> Result<Vec<u8>, CommandError> {
        let command = self.command.clone();
        let io = |source| CommandError::Io { command: command.clone(), source };
        if !self.wait(meanwhile).map_err(io)? {
            return Err(self.give_up());
        }
        let status = self.child.wait().map_err(io)?;
        if !status.success() {
            let stderr = tail(&mut self.stderr).map_err(io)?;
            return Err(CommandError::Failed { command: self.command, status, stderr });
        }
        let mut output = Vec::new();
        self.stdout.rewind().map_err(io)?;
        self.stdout.take(MAX_OUTPUT).read_to_end(&mut output).map_err(io)?;
        Ok(output)
    }

    /// Waits for the end without asking for it again and again: it may be in the guest's pause. Returns whether it
    /// has ended; if not, it hangs.
    pub(super) fn wait(&mut self, mut meanwhile: Option<Meanwhile<'_>>) -> io::Result<bool> {
        loop {
            let due = self.watch.due();
            let pause = if meanwhile.is_some() { due.min(NOW_AND_THEN) } else { due };
            if self.handle.gone_within(pause)? {
                return Ok(true);
            }
            if let Some(meanwhile) = &mut meanwhile {
                meanwhile(self.child.id());
            }
            self.hang = self.watch.look();
            if self.hang.is_some() {
                return Ok(false);
            }
        }
    }

    /// Ends a program that makes no progress, in the way that its tool allows.
    pub(super) fn give_up(mut self) -> CommandError {
        let end = match self.tool {
            Tool::Lvm => self.ask_to_end(),
            Tool::QemuImg | Tool::QemuNbd | Tool::Xl | Tool::VhdUtil | Tool::Qemu => self.kill(),
        };
        let end = match end {
            Ok(end) => end,
            Err(source) => return CommandError::Io { command: self.command, source },
        };
        let stderr = tail(&mut self.stderr).unwrap_or_else(|why| why.to_string());
        let hang = self.hang.expect("it is given up because it hangs");
        CommandError::Hung { tool: self.tool, command: self.command, hang, end, stderr }
    }

    pub(super) fn pid(&self) -> i32 {
        self.handle.pid()
    }

    /// Waits until it is gone, but not for longer than `limit`.
    pub(super) fn gone_within(&self, limit: Duration) -> Result<bool, CommandError> {
        let command = || self.command.clone();
        let gone = self.handle.gone_within(limit);
        gone.map_err(|source| CommandError::Io { command: command(), source })
    }

    /// Whether it does nothing any more.
    pub(super) fn hangs(&mut self) -> bool {
        self.hang = self.watch.look();
        self.hang.is_some()
    }

    pub(super) fn end(mut self) -> Result<End, CommandError> {
        self.kill().map_err(|source| CommandError::Io { command: self.command, source })
    }

    fn kill(&mut self) -> io::Result<End> {
        // The group, not only the leader: tools start helpers. It is not reaped yet, so that the number is its own.
        let _ = kill(Pid::from_raw(-self.handle.pid()), Signal::SIGKILL);
        // It has none yet if it did not even start.
        self.child.kill()?;
        if !self.handle.gone_within(KILLED)? {
            return Ok(End::Stuck);
        }
        self.child.wait()?;
        Ok(End::Killed)
    }

    /// lvm ends itself where it may; in the middle of a change of its devices it does not listen (lvm2, lib/misc/lvm-signal.c).
    fn ask_to_end(&mut self) -> io::Result<End> {
        kill(Pid::from_raw(self.handle.pid()), Signal::SIGTERM)?;
        let watch = Watch::of_group(self.handle.pid(), LVM_ENDS);
        if self.handle.gone(watch)?.is_some() {
            return Ok(End::Left);
        }
        self.child.wait()?;
        Ok(End::Asked)
    }
}

/// Bounds what a program may use that reads the headers of images, which may be anybody's (as in
/// CVE-2024-4467): 4 TiB of image take it 30 MiB and a tenth of a second. Not its address space: each thread of the C
/// library reserves 128 MiB of that (malloc(3), arenas), and QEMU starts threads as storage is slow.
pub(super) fn bound(child: &Child, seconds: u64) {
    const MEMORY: u64 = 1 << 30;
    let process = rustix::process::Pid::from_child(child);
    for (what, most) in [(Resource::Data, MEMORY), (Resource::Cpu, seconds)] {
        let limit = Rlimit { current: Some(most), maximum: Some(most) };
        // It may have ended already.
        let _ = prlimit(Some(process), what, limit);
    }
}

fn memory_file() -> io::Result<File> {
    Ok(memfd_create("xl-snapshot output", MFdFlags::MFD_CLOEXEC)?.into())
}

/// The end of a file as one line.
fn tail(file: &mut File) -> io::Result<String> {
    let length = file.seek(io::SeekFrom::End(0))?;
    file.seek(io::SeekFrom::Start(length.saturating_sub(STDERR_TAIL)))?;
    let mut bytes = Vec::new();
    file.take(STDERR_TAIL).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    Ok(if lines.is_empty() { "it said nothing".into() } else { lines.join("; ") })
}
