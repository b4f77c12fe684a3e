//! The connection to the QEMU guest agent in a guest, over a channel or a serial port.
//!
//! The guest decides what comes: every wait has an end, every line a longest length. After each time-out the two are
//! brought in step again (`guest-sync-delimited`), so that no answer is taken for that to another question.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, setsockopt, socket, sockopt,
};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::sys::time::{TimeVal, TimeValLike};
use uuid::Uuid;

use crate::host::files;
use crate::host::openers::{self, Ours};
use crate::host::process::ready_within;
use crate::quiesce::AgentChannel;
use crate::tool::guest_agent::{self as ga, NoAnswer, SENTINEL};

/// How long a connection may take: QEMU accepts at once.
const CONNECT: i64 = 5;
/// How long an agent may take to answer a question that it need not think about.
pub const ANSWER: Duration = Duration::from_secs(5);
/// The same after a thaw: it thaws at once, and answers when its hook has run (qga/commands-posix.c).
const THAWED: Duration = Duration::from_secs(30);
/// How often the first synchronisation is tried: QEMU looks once a second whether a terminal was opened, and what it
/// gets from the guest before that is lost (chardev/char-pty.c).
const TRIES: u32 = 2;
/// The longest line of an answer: `guest-info` names some hundred commands.
const MAX_LINE: usize = 256 << 10;
/// How much may come before the answer to a synchronisation.
const MAX_NOISE: usize = 1 << 20;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("{} cannot be opened", .path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error("{} is in use by {who}", .path.display())]
    Busy { path: PathBuf, who: String },
    /// Whoever listens could freeze another guest.
    #[error("{} is served by process {pid}, which is not the QEMU of this domain", .path.display())]
    Foreign { path: PathBuf, pid: i32 },
    #[error("{} is not a terminal that the QEMU of this domain serves", .path.display())]
    NotOfQemu { path: PathBuf },
    #[error("it did not answer {command} for {} s", .waited.as_secs_f64())]
    Silent { command: &'static str, waited: Duration },
    #[error("it refused {command}: {reason}")]
    Refused { command: &'static str, reason: String },
    #[error("its answer to {command} is not understood: {why}")]
    Unreadable { command: &'static str, why: String },
    #[error("the connection to it broke at {command}")]
    Broken { command: &'static str, source: io::Error },
}

type Result<T> = std::result::Result<T, AgentError>;

/// A connection to the agent of one guest.
#[derive(Debug)]
pub struct Agent {
    stream: File,
    /// What was read and not looked at yet.
    rest: Vec<u8>,
}

impl Agent {
    /// Connects, if nobody else is connected. `qemu` is the process of the domain's QEMU.
    pub fn connect(line: &AgentChannel, qemu: Option<i32>) -> Result<Agent> {
        if let Some(who) = user(line, qemu) {
            return Err(AgentError::Busy { path: line.path().into(), who });
        }
        Agent::reconnect(line, qemu)
    }

    /// Connects again: what is left of the last connection may still be seen.
    pub fn reconnect(line: &AgentChannel, qemu: Option<i32>) -> Result<Agent> {
        let path = line.path();
        let io = |source| AgentError::Connect { path: path.into(), source };
        let stream = match line {
            AgentChannel::Socket(path) => {
                let (stream, pid) = open_socket(path).map_err(io)?;
                if qemu.is_none_or(|qemu| qemu != pid) {
                    return Err(AgentError::Foreign { path: path.into(), pid });
                }
                stream
            }
            AgentChannel::Terminal(path) => {
                // A guest with xend_suspend_evtchn_compat can write this path into xenstore itself.
                if !qemu.is_some_and(|qemu| openers::holds_terminal(qemu, path)) {
                    return Err(AgentError::NotOfQemu { path: path.into() });
                }
                open_terminal(path).map_err(io)?
            }
        };
        Ok(Agent::on(stream))
    }

    /// Speaks over a descriptor that does not block.
    fn on(stream: File) -> Agent {
        Agent { stream, rest: Vec::new() }
    }

    /// Brings both sides in step: the answer to what is asked next is the next one.
    pub fn synchronise(&mut self) -> Result<()> {
        let mut tries = 1;
        loop {
            let id = new_id();
            match self
                .send("guest-sync-delimited", &ga::sync(id))
                .and_then(|end| self.in_step(id, end))
            {
                Err(AgentError::Silent { command, waited }) if tries == TRIES => {
                    return Err(AgentError::Silent { command, waited: waited * TRIES });
                }
                Err(AgentError::Silent { .. }) => tries += 1,
                other => return other,
            }
        }
    }

    /// The commands that a freeze takes and that this agent lacks or was forbidden.
    pub fn missing(&mut self) -> Result<Vec<&'static str>> {
        self.ask(ga::INFO, ANSWER, ga::missing)
    }

    /// Whether the file systems are frozen.
    pub fn is_frozen(&mut self) -> Result<bool> {
        self.ask(ga::STATUS, ANSWER, ga::is_frozen)
    }

    /// Freezes the file systems, and returns how many.
    pub fn freeze(&mut self, limit: Duration) -> Result<u64> {
        self.ask(ga::FREEZE, limit, ga::count)
    }

    /// Thaws the file systems, and returns how many. All is sent at once: an agent that is still at work, or does not
    /// answer any more, thaws when it gets to it, whether we wait or not.
    pub fn thaw(&mut self) -> Result<u64> {
        let id = new_id();
        let both = [ga::sync(id), ga::request(ga::THAW)].concat();
        let end = self.send(ga::THAW, &both)?;
        self.in_step(id, end)?;
        self.answer(ga::THAW, THAWED, Instant::now() + THAWED, ga::count)
    }

    fn ask<T>(
        &mut self,
        command: &'static str,
        limit: Duration,
        read: fn(&[u8]) -> std::result::Result<T, NoAnswer>,
    ) -> Result<T> {
        self.send(command, &ga::request(command))?;
        self.answer(command, limit, Instant::now() + limit, read)
    }

    fn answer<T>(
        &mut self,
        command: &'static str,
        limit: Duration,
        end: Instant,
        read: fn(&[u8]) -> std::result::Result<T, NoAnswer>,
    ) -> Result<T> {
        loop {
            let line = self.line(command, limit, end)?;
            // What the terminal or the kernel says in between is nobody's answer.
            if !ga::is_answer(&line) {
                continue;
            }
            return read(&line).map_err(|error| match error {
                NoAnswer::Refused(reason) => AgentError::Refused { command, reason },
                NoAnswer::Unreadable(why) => AgentError::Unreadable { command, why },
            });
        }
    }

    /// Waits for the answer to a synchronisation.
    fn in_step(&mut self, id: u64, end: Instant) -> Result<()> {
        const COMMAND: &str = "guest-sync-delimited";
        let mut noise = 0;
        loop {
            while let Some(at) = self.rest.iter().position(|byte| *byte == SENTINEL) {
                self.rest.drain(..=at);
                let line = self.line(COMMAND, ANSWER, end)?;
                if ga::is_sync(&line, id) {
                    return Ok(());
                }
                noise += line.len();
            }
            noise += self.rest.len();
            self.rest.clear();
            if noise > MAX_NOISE {
                let why = format!("{} KiB came before it", noise >> 10);
                return Err(AgentError::Unreadable { command: COMMAND, why });
            }
            self.read(COMMAND, ANSWER, end)?;
        }
    }

    /// The next line, without its end.
    fn line(&mut self, command: &'static str, limit: Duration, end: Instant) -> Result<Vec<u8>> {
        let mut looked = 0;
        loop {
            if let Some(at) = self.rest[looked..].iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.rest.drain(..=looked + at).collect();
                line.pop();
                return Ok(line);
            }
            looked = self.rest.len();
            if looked > MAX_LINE {
                let why = format!("it is longer than {} KiB", MAX_LINE >> 10);
                return Err(AgentError::Unreadable { command, why });
            }
            self.read(command, limit, end)?;
        }
    }

    fn read(&mut self, command: &'static str, limit: Duration, end: Instant) -> Result<()> {
        let broken = |source| AgentError::Broken { command, source };
        let mut buffer = [0; 4096];
        loop {
            // Looked at each time: a guest that never stops talking must not hold us up.
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(AgentError::Silent { command, waited: limit });
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(broken(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => {
                    self.rest.extend_from_slice(&buffer[..count]);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut fds = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
                    ready_within(&mut fds, left).map_err(broken)?;
                }
                Err(error) => return Err(broken(error)),
            }
        }
    }

    /// Sends all of it, and returns until when an answer is waited for.
    fn send(&mut self, command: &'static str, mut bytes: &[u8]) -> Result<Instant> {
        let broken = |source| AgentError::Broken { command, source };
        let end = Instant::now() + ANSWER;
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(0) => return Err(broken(io::ErrorKind::WriteZero.into())),
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let left = end.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(AgentError::Silent { command, waited: ANSWER });
                    }
                    let mut fds = [PollFd::new(self.stream.as_fd(), PollFlags::POLLOUT)];
                    ready_within(&mut fds, left).map_err(broken)?;
                }
                Err(error) => return Err(broken(error)),
            }
        }
        Ok(end)
    }
}

/// A number that no earlier question had. JSON's integers end at 2^63, where the agent reads them.
fn new_id() -> u64 {
    let (high, _) = Uuid::new_v4().as_u64_pair();
    high >> 1
}

/// Who else is connected, if anybody: QEMU serves one at a time, and others wait unnoticed.
fn user(line: &AgentChannel, qemu: Option<i32>) -> Option<String> {
    match line {
        AgentChannel::Socket(path) => {
            let taken = openers::is_connected(path);
            taken.then(|| format!("another program (see ss -xp | grep {})", path.display()))
        }
        AgentChannel::Terminal(path) => {
            let id = files::identity(path)?;
            let ours = Ours { processes: qemu.into_iter().collect(), loops: Vec::new() };
            let (_, opener) = openers::of_files(&[id], &ours).into_iter().next()?;
            Some(opener.who)
        }
    }
}

/// Connects, and returns who listens.
fn open_socket(path: &Path) -> io::Result<(File, i32)> {
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // connect(2) keeps to it as well.
    setsockopt(&socket, sockopt::SendTimeout, &TimeVal::seconds(CONNECT))?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    let pid = getsockopt(&socket, sockopt::PeerCredentials)?.pid();
    Ok((unblocking(socket)?, pid))
}

fn open_terminal(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(path)?;
    if !file.metadata()?.file_type().is_char_device() {
        return Err(io::Error::other("it is not a terminal"));
    }
    let mut modes = tcgetattr(&file)?;
    cfmakeraw(&mut modes);
    tcsetattr(&file, SetArg::TCSANOW, &modes)?;
    Ok(file)
}

fn unblocking(fd: OwnedFd) -> io::Result<File> {
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(File::from(fd))
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::thread;

    use super::*;

    /// A guest that answers each line it gets with what `answer` makes of it.
    pub fn guest(mut answer: impl FnMut(&str) -> Vec<u8> + Send + 'static) -> Agent {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let mut line = Vec::new();
            let mut byte = [0];
            while theirs.read(&mut byte).is_ok_and(|count| count == 1) {
                if byte[0] != b'\n' {
                    line.push(byte[0]);
                    continue;
                }
                let text = String::from_utf8_lossy(&line).into_owned();
                line.clear();
                let _ = theirs.write_all(&answer(&text));
            }
        });
        Agent::on(unblocking(ours.into()).unwrap())
    }

    fn id_of(text: &str) -> Option<String> {
        let at = text.find("\"id\":")? + 5;
        Some(text[at..].chars().take_while(char::is_ascii_digit).collect())
    }

    pub fn in_step(text: &str) -> Option<Vec<u8>> {
        let id = id_of(text)?;
        Some(
            [&b"login: {\"return\": 9}\n\xff"[..], format!("{{\"return\": {id}}}\n").as_bytes()]
                .concat(),
        )
    }

    #[test]
    fn an_agent_freezes_and_thaws() {
        let mut agent = guest(|text| {
            in_step(text).unwrap_or_else(|| match () {
                () if text.contains(ga::STATUS) => b"{\"return\": \"thawed\"}\n".to_vec(),
                () if text.contains(ga::FREEZE) => b"noise\n{\"return\": 2}\n".to_vec(),
                () => b"{\"return\": 2}\n".to_vec(),
            })
        });
        agent.synchronise().unwrap();
        assert!(!agent.is_frozen().unwrap());
        assert_eq!(agent.freeze(ANSWER).unwrap(), 2);
        assert_eq!(agent.thaw().unwrap(), 2);
    }

    #[test]
    fn a_late_answer_is_none_to_the_next_question() {
        let mut frozen = false;
        let mut agent = guest(move |text| {
            if text.contains(ga::FREEZE) {
                frozen = true;
                return Vec::new();
            }
            // What it still owed comes first.
            let owed = if frozen { &b"{\"return\": 5}\n"[..] } else { &[] };
            [owed, &in_step(text).unwrap_or(b"{\"return\": 1}\n".to_vec())].concat()
        });
        agent.synchronise().unwrap();
        let error = agent.freeze(Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, AgentError::Silent { .. }), "{error}");
        agent.synchronise().unwrap();
        assert!(agent.rest.is_empty());
    }

    #[test]
    fn nothing_a_guest_says_takes_for_ever_or_all_memory() {
        let started = Instant::now();
        let mut agent = guest(|text| match text.contains(ga::STATUS) {
            true => vec![b'x'; MAX_LINE * 2],
            false => vec![0; MAX_NOISE * 2],
        });
        let error = agent.is_frozen().unwrap_err();
        assert!(error.to_string().contains("longer than 256 KiB"), "{error}");
        let mut agent = guest(|_| vec![0; MAX_NOISE * 2]);
        let error = agent.synchronise().unwrap_err();
        assert!(error.to_string().contains("came before it"), "{error}");
        let mut agent = guest(|_| b"{}\n".repeat(2));
        let error = agent.freeze(Duration::from_millis(100)).unwrap_err();
        assert!(matches!(error, AgentError::Silent { .. }), "{error}");
        let mut agent = guest(|_| b"{\"error\": {\"desc\": \"no\\u001b\"}}\n".to_vec());
        let error = agent.freeze(ANSWER).unwrap_err();
        assert_eq!(error.to_string(), "it refused guest-fsfreeze-freeze: no ");
        assert!(started.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn only_the_socket_of_that_qemu_that_nobody_uses() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("qga.sock");
        let line = AgentChannel::Socket(path.clone());
        assert!(matches!(Agent::connect(&line, Some(1)), Err(AgentError::Connect { .. })));
        let listener = UnixListener::bind(&path).unwrap();
        let me = i32::try_from(std::process::id()).unwrap();
        for qemu in [None, Some(me + 1)] {
            let error = Agent::reconnect(&line, qemu).unwrap_err();
            assert!(matches!(error, AgentError::Foreign { pid, .. } if pid == me), "{error}");
            drop(listener.accept());
        }
        let first = Agent::connect(&line, Some(me)).unwrap();
        let error = Agent::connect(&line, Some(me)).unwrap_err();
        assert!(matches!(error, AgentError::Busy { .. }), "{error}");
        drop(first);
    }
}
