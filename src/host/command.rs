//! The one door to other programs.
//!
//! Programs are found in a fixed list of directories, started without a shell, with an empty
//! environment (`LC_ALL=C`, a fixed `PATH`), nothing on standard input, and in a process group of
//! their own, or, if what they start is to outlive us, in a session and a control group of their own: a Ctrl-C in the terminal must not hit qemu-img in the middle of a disk. What they
//! print goes to an anonymous memory file, so that a child they leave behind cannot hold us up.
//!
//! A program may run for as long as it gets on with its work. One that does nothing any more is ended: by SIGKILL, but
//! for lvm, which must not die between the suspend and the resume of a device.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::process::{Resource, Rlimit, prlimit};

use crate::host::parallel::in_parallel;
use crate::host::process::{self, Handle, Hang, Watch};
use crate::host::surroundings::{ENVIRONMENT, undisturbed};
use crate::process::Process;
use crate::tool::{Invocation, Tool};

/// Where programs may lie. Not `PATH`: this runs as root, whatever the caller's environment.
const DIRECTORIES: [&str; 6] =
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"];

/// What this program is called when it starts another one that is to outlive us, by its first argument.
pub const STARTER: &str = "xl-snapshot-start";
/// Give back the defaults of scheduling, for themselves and for the program that takes their place: no safe call
/// does that. Whether the second one is needed cannot be seen.
const SCHEDULED: &[&str] = &["chrt", "--other", "0"];
const STORED: &[&str] = &["ionice", "-t", "-c", "0"];

/// How often the caller is informed that a program still runs.
const NOW_AND_THEN: Duration = Duration::from_millis(200);
/// How long a program that was killed may take to go.
const KILLED: Duration = Duration::from_secs(30);
/// How long lvm may go on without doing anything after it was asked to end.
const LVM_ENDS: Duration = Duration::from_secs(3600);
/// How much of what a program prints on standard output is read.
const MAX_OUTPUT: u64 = 16 << 20;
/// How much of the end of standard error is put into a message.
const STDERR_TAIL: u64 = 1024;

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
    find_program(tool.name()).ok_or(CommandError::NotFound(tool))
}

fn find_program(name: &str) -> Option<PathBuf> {
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
        let Some(path) = find_program(before[0]) else { continue };
        words.push(path.into());
        words.extend(before[1..].iter().map(OsString::from));
    }
    words.extend_from_slice(program);
    let [program, arguments @ ..] = words.as_slice() else {
        return io::ErrorKind::InvalidInput.into();
    };
    program_at(Path::new(program)).args(arguments).exec()
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

struct Running {
    tool: Tool,
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
    fn start(
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
            let mut command = if outlives { ourselves(STARTER) } else { program_at(&program) };
            command
                .args(outlives.then_some(&program))
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
            let handle = Handle::of_pid(child.id().cast_signed());
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
            bound(&child);
        }
        if let Some(process) = process::identify(handle.pid()) {
            started(call.tool, process);
        }
        let watch = Watch::of_group(handle.pid(), call.patience);
        let tool = call.tool;
        Ok(Running { tool, command, child, handle, stdout, stderr, watch, hang: None })
    }

    /// Fails with `TimedOut` if the program does not read more of its input.
    fn feed(
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

    fn finish(self) -> Result<Vec<u8>, CommandError> {
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
    fn wait(&mut self, mut meanwhile: Option<Meanwhile<'_>>) -> io::Result<bool> {
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
    fn give_up(mut self) -> CommandError {
        let end = match self.tool {
            Tool::Lvm => self.ask_to_end(),
            Tool::QemuImg | Tool::Xl | Tool::VhdUtil => self.kill(),
        };
        let end = match end {
            Ok(end) => end,
            Err(source) => return CommandError::Io { command: self.command, source },
        };
        let stderr = tail(&mut self.stderr).unwrap_or_else(|why| why.to_string());
        let hang = self.hang.expect("it is given up because it hangs");
        CommandError::Hung { tool: self.tool, command: self.command, hang, end, stderr }
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
fn bound(child: &Child) {
    const MEMORY: u64 = 1 << 30;
    const SECONDS: u64 = 60;
    let process = rustix::process::Pid::from_child(child);
    for (what, most) in [(Resource::Data, MEMORY), (Resource::Cpu, SECONDS)] {
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

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    fn qemu_img(args: &[&str]) -> Invocation {
        Invocation::new(Tool::QemuImg, args)
    }

    #[test]
    fn output_is_returned() {
        let output = run(&qemu_img(&["--version"])).unwrap();
        assert!(String::from_utf8(output).unwrap().starts_with("qemu-img version"));
    }

    #[test]
    fn a_failure_names_command_status_and_words() {
        let error = run(&qemu_img(&["info", "-f", "raw", "/does not/exist"])).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("`qemu-img info -f raw '/does not/exist'` ended with"), "{text}");
        assert!(text.contains("exit status: 1"), "{text}");
        assert!(text.contains("No such file or directory"), "{text}");
    }

    /// A call that reads from a FIFO.
    fn reads_fifo(directory: &Path, patience: Duration) -> (Invocation, PathBuf) {
        let fifo = directory.join("fifo");
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        let call = qemu_img(&["dd", "-f", "raw", "-O", "raw"])
            .arg(format!("if={}", fifo.display()))
            .arg(format!("of={}", directory.join("out").display()))
            .patient(patience);
        (call, fifo)
    }

    #[test]
    fn what_hangs_is_killed() {
        // Nobody writes into the FIFO.
        let directory = tempfile::tempdir().unwrap();
        let (call, _) = reads_fifo(directory.path(), Duration::from_millis(300));
        let begin = Instant::now();
        let error = run(&call).unwrap_err();
        assert!(begin.elapsed() < Duration::from_secs(10));
        let text = error.to_string();
        assert!(text.contains("did nothing for 0 s and was killed"), "{text}");
        assert!(text.contains(" read, ") && text.contains("dmesg"), "{text}");
    }

    #[test]
    fn a_logical_volume_manager_is_not_killed() {
        // It would end at once: what matters is which signal it got, and what is told.
        let directory = tempfile::tempdir().unwrap();
        let (call, _) = reads_fifo(directory.path(), Duration::from_millis(300));
        let mut running = Running::start(&call, Stdio::null(), &|_, _| ()).unwrap();
        assert!(!running.wait(None).unwrap());
        running.tool = Tool::Lvm;
        let error = running.give_up();
        assert!(matches!(error, CommandError::Hung { end: End::Asked, .. }), "{error:?}");
        assert!(error.to_string().contains("dmsetup info"), "{error}");
    }

    #[test]
    fn what_works_is_waited_for() {
        // 2 MiB a second, in parts of 2 MiB.
        let directory = tempfile::tempdir().unwrap();
        let path = |name| directory.path().join(name);
        std::fs::write(path("in"), vec![7; 12 << 20]).unwrap();
        let patience = Duration::from_millis(2400);
        let call = qemu_img(&["convert", "-r", "2M", "-f", "raw", "-O", "raw"])
            .args([path("in"), path("out")])
            .patient(patience);
        let begin = Instant::now();
        run(&call).unwrap();
        assert!(begin.elapsed() > patience + patience / 2, "it was too fast to show anything");
        assert_eq!(std::fs::metadata(path("out")).unwrap().len(), 12 << 20);
    }

    #[test]
    fn who_does_not_take_its_input_is_killed() {
        let directory = tempfile::tempdir().unwrap();
        let (call, _) = reads_fifo(directory.path(), Duration::from_millis(300));
        let begin = Instant::now();
        let body = io::repeat(0);
        let result = feed(&call, b"head", body, 1 << 30, &mut |_| (), &|_, _| ());
        assert!(matches!(result, Err(CommandError::Hung { end: End::Killed, .. })), "{result:?}");
        assert!(begin.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn what_reads_headers_has_its_bounds() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.qcow2");
        let create = qemu_img(&["create", "-q", "-f", "qcow2"]).arg(&path).arg("4T");
        assert!(!create.describes_images());
        run(&create).unwrap();
        let info = qemu_img(&["info", "-f", "qcow2"]).arg(&path);
        assert!(info.describes_images());
        run(&info).unwrap();
        #[expect(clippy::disallowed_methods, reason = "no tool of ours")]
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        bound(&child);
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let of = |name: &str| limits.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(of("Max data size").contains("1073741824"), "{limits}");
        assert!(of("Max cpu time").contains("60"), "{limits}");
    }

    #[test]
    fn somebody_is_told_while_a_tool_runs() {
        let directory = tempfile::tempdir().unwrap();
        let (call, _) = reads_fifo(directory.path(), NOW_AND_THEN * 3);
        let mut told = 0;
        let input = File::open("/dev/null").unwrap();
        let result = run_on(&call, input, &mut |pid| told = pid, &|_, _| ());
        assert!(matches!(result, Err(CommandError::Hung { .. })), "{result:?}");
        assert_ne!(told, 0);
    }

    #[test]
    fn a_missing_tool_says_where_it_was_looked_for() {
        let text = CommandError::NotFound(Tool::Xl).to_string();
        assert!(text.contains("/usr/sbin") && text.contains("xen-utils"), "{text}");
    }
}
