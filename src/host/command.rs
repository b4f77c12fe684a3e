//! The one door to other programs.
//!
//! Programs are found in a fixed list of directories, started without a shell, with an empty
//! environment (`LC_ALL=C`, a fixed `PATH`), nothing on standard input, and in a process group of
//! their own: a Ctrl-C in the terminal must not hit qemu-img in the middle of a disk. What they
//! print goes to an anonymous memory file, so that a child they leave behind cannot hold us up.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use rustix::process::{Resource, Rlimit, prlimit};

use crate::host::parallel::in_parallel;
use crate::tool::{Invocation, Tool};

/// Where programs may lie. Not `PATH`: this runs as root, whatever the caller's environment.
const DIRECTORIES: [&str; 6] =
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"];
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// How often somebody is told that a program still runs.
const NOW_AND_THEN: Duration = Duration::from_millis(200);
/// How much of what a program prints on standard output is read.
const MAX_OUTPUT: u64 = 16 << 20;
/// How much of the end of standard error stands in a message.
const STDERR_TAIL: u64 = 1024;

/// Why a program did not do its work.
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
        /// Why.
        source: io::Error,
    },
    /// What it is fed with cannot be read to its end.
    #[error("`{command}` could not be given all of its input")]
    Input {
        /// As it can be pasted into a shell.
        command: String,
        /// Why.
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
    /// It took too long and was killed.
    #[error("`{command}` did not end within {} s and was killed: {stderr}", .timeout.as_secs())]
    TimedOut {
        /// As it can be pasted into a shell.
        command: String,
        /// The time it had.
        timeout: Duration,
        /// The end of what it wrote to standard error.
        stderr: String,
    },
}

/// Lets no program that is started inherit a descriptor that our caller has left open, but for the
/// standard ones: QEMU would keep it for as long as its domain runs.
pub fn pass_nothing_on() {
    const FIRST_AFTER_STDERR: i32 = 3;
    close_fds::set_fds_cloexec(FIRST_AFTER_STDERR, &[]);
}

/// The absolute path of a tool.
pub fn find(tool: Tool) -> Result<PathBuf, CommandError> {
    DIRECTORIES
        .iter()
        .map(|directory| Path::new(directory).join(tool.name()))
        .find(|path| path.is_file())
        .ok_or(CommandError::NotFound(tool))
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
    // Not by its path: there may be another program there since.
    #[expect(clippy::disallowed_methods, reason = "this is the one door")]
    let child = Command::new("/proc/self/exe")
        .arg0(name)
        .env_clear()
        .stdin(Stdio::from(stdin))
        .stdout(stdout)
        .spawn();
    inherit(FdFlag::FD_CLOEXEC)?;
    child
}

/// Who is told that a program still runs, with the number of its process.
type Meanwhile<'a> = &'a mut dyn FnMut(u32);

/// Who is told of every program that is started, with the number of its process.
pub type Started<'a> = &'a (dyn Fn(Tool, u32) + Sync);

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
    let written = running.feed(head, body, length, fed);
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
    command: String,
    child: Child,
    stdout: File,
    stderr: File,
    timeout: Duration,
}

impl Running {
    fn start(
        call: &Invocation,
        stdin: Stdio,
        started: Started<'_>,
    ) -> Result<Running, CommandError> {
        let program = find(call.tool)?;
        let command = call.to_string();
        let start = || -> io::Result<(Child, File, File)> {
            let (stdout, stderr) = (memory_file()?, memory_file()?);
            #[expect(clippy::disallowed_methods, reason = "this is the one door")]
            let child = Command::new(&program)
                .args(&call.args)
                .env_clear()
                .env("LC_ALL", "C")
                .env("PATH", PATH)
                .stdin(stdin)
                .stdout(stdout.try_clone()?)
                .stderr(stderr.try_clone()?)
                .process_group(0)
                .spawn()?;
            Ok((child, stdout, stderr))
        };
        let (child, stdout, stderr) =
            start().map_err(|source| CommandError::Io { command: command.clone(), source })?;
        if call.describes_images() {
            bound(&child);
        }
        started(call.tool, child.id());
        Ok(Running { command, child, stdout, stderr, timeout: call.timeout })
    }

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
        stdin.write_all(head)?;
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
            stdin.write_all(&chunk)?;
            total += read as u64;
            fed(total);
        }
        Ok(())
    }

    fn finish(self) -> Result<Vec<u8>, CommandError> {
        self.finish_with(None)
    }

    fn finish_with(mut self, meanwhile: Option<Meanwhile<'_>>) -> Result<Vec<u8>, CommandError> {
        let command = self.command.clone();
        let io = |source| CommandError::Io { command: command.clone(), source };
        let Some(status) = self.wait(meanwhile).map_err(io)? else {
            // The group, not only the leader: tools start helpers.
            let group = Pid::from_raw(-self.child.id().cast_signed());
            let _ = kill(group, Signal::SIGKILL);
            self.child.wait().map_err(io)?;
            let stderr = tail(&mut self.stderr).map_err(io)?;
            let timeout = self.timeout;
            return Err(CommandError::TimedOut { command: self.command, timeout, stderr });
        };
        if !status.success() {
            let stderr = tail(&mut self.stderr).map_err(io)?;
            return Err(CommandError::Failed { command: self.command, status, stderr });
        }
        let mut output = Vec::new();
        self.stdout.rewind().map_err(io)?;
        self.stdout.take(MAX_OUTPUT).read_to_end(&mut output).map_err(io)?;
        Ok(output)
    }

    /// Waits for the end without asking for it again and again: it may be in the guest's pause.
    fn wait(&mut self, mut meanwhile: Option<Meanwhile<'_>>) -> io::Result<Option<ExitStatus>> {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        // It is left for `Child` to reap: until then its number is its own, and can be killed.
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        let (told, ended) = mpsc::channel();
        let waiter = thread::Builder::new().name("waiter".into()).spawn(move || {
            let result = loop {
                match waitid(Id::Pid(pid), flags) {
                    Err(Errno::EINTR) => {}
                    result => break result,
                }
            };
            // After a time-out nobody listens.
            let _ = told.send(result);
        });
        if waiter.is_err() {
            // It runs: better without a time limit than not waited for.
            return self.child.wait().map(Some);
        }
        let deadline = Instant::now() + self.timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let pause = if meanwhile.is_some() { left.min(NOW_AND_THEN) } else { left };
            match (ended.recv_timeout(pause), &mut meanwhile) {
                (Ok(result), _) => {
                    result?;
                    return self.child.wait().map(Some);
                }
                (Err(_), Some(meanwhile)) if !left.is_zero() => meanwhile(self.child.id()),
                (Err(_), _) => return Ok(None),
            }
        }
    }
}

/// Bounds what a program may use that reads the headers of images, which may be anybody's (as in
/// CVE-2024-4467): 4 TiB of image take it 30 MiB and a tenth of a second.
fn bound(child: &Child) {
    const MEMORY: u64 = 1 << 30;
    const SECONDS: u64 = 60;
    let process = rustix::process::Pid::from_child(child);
    for (what, most) in [(Resource::As, MEMORY), (Resource::Cpu, SECONDS)] {
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

    #[test]
    fn what_hangs_is_killed() {
        // Reading from a FIFO nobody writes to.
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        let target = directory.path().join("out");
        let call = qemu_img(&["dd", "-f", "raw", "-O", "raw"])
            .arg(format!("if={}", fifo.display()))
            .arg(format!("of={}", target.display()))
            .within(Duration::from_millis(300));
        let started = Instant::now();
        let result = run(&call);
        assert!(started.elapsed() < Duration::from_secs(10));
        assert!(result.is_err());
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
        assert!(of("Max address space").contains("1073741824"), "{limits}");
        assert!(of("Max cpu time").contains("60"), "{limits}");
    }

    #[test]
    fn somebody_is_told_while_a_tool_runs() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        let call = qemu_img(&["dd", "-f", "raw", "-O", "raw", "of=/dev/null"])
            .arg(format!("if={}", fifo.display()))
            .within(NOW_AND_THEN * 3);
        let mut told = 0;
        let input = File::open("/dev/null").unwrap();
        let result = run_on(&call, input, &mut |pid| told = pid, &|_, _| ());
        assert!(matches!(result, Err(CommandError::TimedOut { .. })), "{result:?}");
        assert_ne!(told, 0);
    }

    #[test]
    fn a_missing_tool_says_where_it_was_looked_for() {
        let text = CommandError::NotFound(Tool::Xl).to_string();
        assert!(text.contains("/usr/sbin") && text.contains("xen-utils"), "{text}");
    }
}
