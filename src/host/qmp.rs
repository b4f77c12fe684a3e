//! QMP: talking to a domain's QEMU in dom0.
//!
//! QEMU has two sockets per domain: libxl's own, which must stay free for libxl, and
//! `qmp-libxenstat-N`, which we use. Each serves one client at a time: a second one connects but is
//! not greeted until the first is gone.
//!
//! The commands are the types that the `qapi` crate generates from QEMU's schema. Answers are read
//! by our own small types and events are skipped unread: a strict reader would take an event or a
//! field of a newer QEMU for a failed command, after the disks have been switched.
//!
//! All answers but one are waited for until a time limit, whatever QEMU sends meanwhile. The one is that to
//! the transaction: how long that takes depends on the images, so it is waited for as long as QEMU lives.

mod drives;
pub mod jobs;
#[cfg(test)]
mod tests;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use qapi::Command;
use qapi::qmp::{
    BlockdevSnapshotInternal, BlockdevSnapshotInternalWrapper, BlockdevSnapshotSync,
    BlockdevSnapshotSyncWrapper, NewImageMode, TransactionAction,
    blockdev_snapshot_delete_internal_sync, qmp_capabilities, transaction,
};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::json;

use crate::plan::Action;

/// QEMU answers in milliseconds, unless its main loop waits for a slow disk.
const TIMEOUT: Duration = Duration::from_secs(60);
/// A socket that is taken is not greeted: no need to wait long for that.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a read looks whether the limit has passed.
const TICK: Duration = Duration::from_millis(500);
/// Who waits for the transaction for longer is told.
pub const SLOW: Duration = Duration::from_secs(5);
/// Before one answer come fewer events.
const MAX_EVENTS: usize = 100_000;
/// The brace that completes a command, and the end of the line.
const LAST: usize = 2;
/// No answer of QEMU is longer.
const MAX_LINE: usize = 16 << 20;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// There is no such socket, or QEMU is gone.
    #[error("QEMU's socket {path} cannot be used")]
    Connect {
        /// The socket.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Another program is connected.
    #[error("QEMU's socket {path} is taken by another program, such as xentop")]
    Taken {
        /// The socket.
        path: String,
    },
    /// It could not be asked: it has changed nothing.
    #[error("QEMU could not be asked for {command}")]
    Unsent {
        /// The command's name.
        command: &'static str,
        /// Why.
        source: io::Error,
    },
    /// QEMU said no: it has changed nothing.
    #[error("QEMU refused {command}: {reason}")]
    Refused {
        /// The command's name.
        command: &'static str,
        /// QEMU's words.
        reason: String,
    },
    /// No answer, or one that is not understood: whether QEMU did it is not known.
    #[error("QEMU's answer to {command} did not come")]
    Broken {
        /// The command's name.
        command: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// How long an answer is waited for.
enum Patience<'a> {
    /// Until then, whatever else comes meanwhile.
    Until(Instant),
    /// As long as the connection stands; at the time of the first field, the second one is called, once.
    WhileItLives(Option<(Instant, &'a mut dyn FnMut())>),
}

impl Patience<'_> {
    fn short(limit: Duration) -> Self {
        Patience::Until(Instant::now() + limit)
    }

    /// An error if the time has passed.
    fn check(&mut self) -> io::Result<()> {
        let now = Instant::now();
        match self {
            Patience::Until(end) if now >= *end => Err(io::ErrorKind::TimedOut.into()),
            Patience::WhileItLives(slow) => {
                if let Some((_, tell)) = slow.take_if(|(at, _)| now >= *at) {
                    tell();
                }
                Ok(())
            }
            Patience::Until(_) => Ok(()),
        }
    }
}

/// A connection to a domain's QEMU.
#[derive(Debug)]
pub struct Qmp<S = UnixStream> {
    stream: BufReader<S>,
    /// The transaction that QEMU has but for its last bytes, and those.
    armed: Option<(Vec<Action>, String)>,
}

/// What QEMU says first.
#[derive(Debug, Deserialize)]
struct Greeting {
    #[serde(rename = "QMP")]
    _qmp: IgnoredAny,
}

/// An answer, or, with neither, an event. What we do not use is not kept: 16 MiB of nested lists
/// would be some GiB as a tree of values.
#[derive(Debug, Deserialize)]
struct Answer<T> {
    #[serde(rename = "return")]
    value: Option<T>,
    error: Option<Failure>,
}

#[derive(Debug, Deserialize)]
struct Failure {
    #[serde(default)]
    desc: String,
}

impl Qmp {
    /// Connects to the QEMU of a domain.
    pub fn connect(domid: u32) -> Result<Qmp, QmpError> {
        let path = format!("/var/run/xen/qmp-libxenstat-{domid}");
        connected(Path::new(&path)).and_then(Qmp::greet).map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => QmpError::Taken { path },
            _ => QmpError::Connect { path, source },
        })
    }
}

/// A connection whose every read and write ends in time. So does this call: where QEMU's queue of connections
/// is full, connect(2) would wait without end.
fn connected(path: &Path) -> io::Result<UnixStream> {
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let limit = TimeVal::seconds(i64::try_from(GREETING_TIMEOUT.as_secs()).unwrap_or(i64::MAX));
    setsockopt(&socket, sockopt::SendTimeout, &limit)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.set_read_timeout(Some(TICK))?;
    Ok(stream)
}

impl<S: Read + Write> Qmp<S> {
    /// Waits for QEMU's greeting, and returns it. Reads of the stream end now and then, with
    /// [`io::ErrorKind::WouldBlock`] or [`io::ErrorKind::TimedOut`], so that time limits hold.
    pub fn greet(stream: S) -> io::Result<Qmp<S>> {
        let mut qmp = Qmp { stream: BufReader::new(stream), armed: None };
        let _: Greeting = qmp.line(&mut Patience::short(GREETING_TIMEOUT))?;
        let _: IgnoredAny =
            qmp.execute(&qmp_capabilities { enable: None }).map_err(io::Error::other)?;
        Ok(qmp)
    }

    /// Hands QEMU a transaction but for its last byte: it begins when [`Self::transaction`] sends that. If
    /// the connection ends before, QEMU forgets it.
    ///
    /// QEMU reads a command byte by byte, with a wake-up of its main loop for each (monitor/monitor.c,
    /// `monitor_can_read` is 1; seen with strace of QEMU 7.2): that costs more than most of what it then
    /// does, and grows with the number of disks.
    pub fn send_transaction(&mut self, actions: &[Action]) -> Result<(), QmpError> {
        let request = request(&to_transaction(actions))?;
        let (text, last) = request.split_at(request.len() - LAST);
        self.send::<transaction>(text)?;
        self.armed = Some((actions.to_vec(), last.to_owned()));
        Ok(())
    }

    /// Does all actions or none. Waits for as long as QEMU lives; `slow` is called if that takes longer than
    /// [`SLOW`].
    pub fn transaction(
        &mut self,
        actions: &[Action],
        slow: &mut dyn FnMut(),
    ) -> Result<(), QmpError> {
        let text = match self.armed.take() {
            None => request(&to_transaction(actions))?,
            Some((armed, last)) if armed == actions => last,
            Some(_) => {
                let source = io::Error::other("QEMU has already been sent another one");
                return Err(QmpError::Unsent { command: transaction::NAME, source });
            }
        };
        self.send::<transaction>(&text)?;
        let slow = Some((Instant::now() + SLOW, slow));
        let _: IgnoredAny = self.answer::<transaction, _>(&mut Patience::WhileItLives(slow))?;
        Ok(())
    }

    /// Deletes an internal snapshot.
    pub fn delete_internal(&mut self, node: &str, name: &str) -> Result<(), QmpError> {
        let _: IgnoredAny = self.execute(&blockdev_snapshot_delete_internal_sync {
            device: node.into(),
            id: None,
            name: Some(name.into()),
        })?;
        Ok(())
    }

    fn execute<C: Command, T: DeserializeOwned>(&mut self, command: &C) -> Result<T, QmpError> {
        self.send::<C>(&request(command)?)?;
        self.answer::<C, T>(&mut Patience::short(TIMEOUT))
    }

    /// All in one: where QEMU is gone, it has seen nothing of it.
    fn send<C: Command>(&mut self, text: &str) -> Result<(), QmpError> {
        self.stream.get_mut().write_all(text.as_bytes()).map_err(|source| match source.kind() {
            io::ErrorKind::BrokenPipe => QmpError::Unsent { command: C::NAME, source },
            _ => QmpError::Broken { command: C::NAME, source },
        })
    }

    fn answer<C: Command, T: DeserializeOwned>(
        &mut self,
        patience: &mut Patience<'_>,
    ) -> Result<T, QmpError> {
        let broken = |source| QmpError::Broken { command: C::NAME, source };
        for _ in 0..MAX_EVENTS {
            let answer: Answer<T> = self.line(patience).map_err(broken)?;
            if let Some(value) = answer.value {
                return Ok(value);
            }
            if let Some(error) = answer.error {
                return Err(QmpError::Refused { command: C::NAME, reason: error.desc });
            }
            // An event: not for us.
        }
        Err(broken(io::Error::other(format!("{MAX_EVENTS} events arrived instead"))))
    }

    fn line<T: DeserializeOwned>(&mut self, patience: &mut Patience<'_>) -> io::Result<T> {
        let mut line = Vec::new();
        loop {
            patience.check()?;
            let (taken, ends) = match self.stream.fill_buf() {
                Ok([]) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(bytes) => {
                    let end = bytes.iter().position(|byte| *byte == b'\n');
                    let taken = end.map_or(bytes.len(), |end| end + 1);
                    line.extend_from_slice(&bytes[..taken]);
                    (taken, end.is_some())
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock
                    | io::ErrorKind::TimedOut
                    | io::ErrorKind::Interrupted => continue,
                    _ => return Err(error),
                },
            };
            self.stream.consume(taken);
            if ends {
                return Ok(serde_json::from_slice(&line)?);
            }
            if line.len() >= MAX_LINE {
                return Err(io::Error::other("a line of it is too long"));
            }
        }
    }
}

/// A command as QEMU reads it, ended by [`LAST`] bytes without which it is not complete.
fn request<C: Command>(command: &C) -> Result<String, QmpError> {
    let arguments = serde_json::to_value(command)
        .map_err(|error| QmpError::Unsent { command: C::NAME, source: error.into() })?;
    let mut request = json!({ "execute": C::NAME, "arguments": arguments }).to_string();
    request.push('\n');
    Ok(request)
}

fn to_transaction(actions: &[Action]) -> transaction {
    transaction { properties: None, actions: actions.iter().map(to_qmp).collect() }
}

fn to_qmp(action: &Action) -> TransactionAction {
    match action {
        Action::Internal { node, name, .. } => {
            TransactionAction::blockdev_snapshot_internal_sync(BlockdevSnapshotInternalWrapper {
                data: BlockdevSnapshotInternal { device: node.clone(), name: name.clone() },
            })
        }
        Action::Overlay { node, file, new_node, .. } => {
            TransactionAction::blockdev_snapshot_sync(BlockdevSnapshotSyncWrapper {
                data: BlockdevSnapshotSync {
                    device: None,
                    format: Some("qcow2".into()),
                    // The overlay was made before the guest was stopped.
                    mode: Some(NewImageMode::existing),
                    node_name: Some(node.clone()),
                    snapshot_node_name: Some(new_node.clone()),
                    snapshot_file: file.to_string_lossy().into_owned(),
                },
            })
        }
    }
}
