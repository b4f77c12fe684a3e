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

pub mod jobs;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::iter;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use qapi::Command;
use qapi::qmp::{
    BlockdevSnapshotInternal, BlockdevSnapshotInternalWrapper, BlockdevSnapshotSync,
    BlockdevSnapshotSyncWrapper, NewImageMode, TransactionAction,
    blockdev_snapshot_delete_internal_sync, qmp_capabilities, qom_get, query_block, transaction,
};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::json;

use crate::disk::Node;
use crate::names::vdev_number;
use crate::plan::Action;
use crate::tool::qemu_img::SnapshotInfo;

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

/// One device of `query-block`.
#[derive(Debug, Deserialize)]
struct Block {
    /// The drive's name; empty for Xen's PV disks.
    #[serde(default)]
    device: String,
    /// A device's path in QEMU's object tree.
    qdev: Option<String>,
    inserted: Option<Inserted>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Inserted {
    #[serde(default)]
    node_name: String,
    ro: bool,
    drv: String,
    image: Image,
    #[serde(default)]
    dirty_bitmaps: Vec<DirtyBitmap>,
}

#[derive(Debug, Deserialize)]
struct DirtyBitmap {
    /// Whether QEMU writes it into the image when it ends.
    #[serde(default)]
    persistent: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Image {
    filename: PathBuf,
    virtual_size: u64,
    #[serde(default)]
    snapshots: Vec<SnapshotInfo>,
    #[serde(default)]
    encrypted: bool,
    format_specific: Option<Specific>,
    backing_image: Option<Box<Below>>,
}

/// What is of interest of an image below another one.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Below {
    #[serde(default)]
    encrypted: bool,
    format_specific: Option<Specific>,
    backing_image: Option<Box<Below>>,
}

/// What QEMU says of images of one format.
#[derive(Debug, Default, Deserialize)]
struct Specific {
    #[serde(default)]
    data: SpecificData,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct SpecificData {
    data_file: Option<String>,
}

impl Image {
    /// Why its file alone is not its content, if that is so.
    fn elsewhere(&self) -> Option<String> {
        let own = elsewhere(self.encrypted, self.format_specific.as_ref());
        let mut below = self.backing_image.as_deref();
        let mut next = || {
            let image = below?;
            below = image.backing_image.as_deref();
            Some(elsewhere(image.encrypted, image.format_specific.as_ref()))
        };
        own.or_else(|| iter::from_fn(&mut next).flatten().next())
    }
}

fn elsewhere(encrypted: bool, specific: Option<&Specific>) -> Option<String> {
    if let Some(file) = specific.and_then(|specific| specific.data.data_file.as_ref()) {
        return Some(format!("its data is in another file, {file} (qcow2 data_file)"));
    }
    encrypted.then(|| "it, or an image below it, is encrypted".to_owned())
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

    /// The disks QEMU serves, with the guest's name of each.
    pub fn disks(&mut self) -> Result<Vec<(String, Node)>, QmpError> {
        Ok(self.drives()?.0)
    }

    /// The disks QEMU serves, with the guest's name of each, and what else it has open for writing, with its
    /// own name of each.
    #[expect(clippy::type_complexity, reason = "two lists of pairs")]
    pub fn drives(&mut self) -> Result<(Vec<(String, Node)>, Vec<(String, PathBuf)>), QmpError> {
        let blocks: Vec<Block> = self.execute(&query_block {})?;
        let emulated: Vec<(String, PathBuf)> = blocks
            .iter()
            .filter(|block| !block.device.is_empty())
            .filter_map(|block| {
                Some((block.device.clone(), block.inserted.as_ref()?.image.filename.clone()))
            })
            .collect();
        let (mut disks, mut others) = (Vec::new(), Vec::new());
        for block in blocks {
            let Some(inserted) = block.inserted else { continue };
            // Xen's PV disks have the property; emulated ones do not.
            let property = block.qdev.map(|path| qom_get { path, property: "vdev".into() });
            let vdev: Option<String> = match property.map(|property| self.execute(&property)) {
                Some(Ok(vdev)) => Some(vdev),
                Some(Err(QmpError::Refused { .. })) | None => None,
                Some(Err(error)) => return Err(error),
            };
            let Some(vdev) = vdev else {
                if !inserted.ro {
                    let name = Some(block.device).filter(|name| !name.is_empty());
                    let name = name.unwrap_or(inserted.node_name);
                    others.push((name, inserted.image.filename));
                }
                continue;
            };
            let mut node = inserted.into_node();
            let drive = emulated.iter().find(|(_, file)| *file == node.file);
            node.emulated = drive.map(|(drive, _)| drive.clone());
            disks.push((whole_disk(&vdev).to_owned(), node));
        }
        Ok((disks, others))
    }

    /// Hands QEMU a transaction but for its last byte: it begins when [`Self::transaction`] sends that. If
    /// the connection ends before, QEMU forgets it.
    ///
    /// QEMU reads a command byte by byte, with a wake-up of its main loop for each (monitor/monitor.c,
    /// `monitor_can_read` is 1; seen with strace of QEMU 7.2): that costs more than most of what it then
    /// does, and grows with the number of disks.
    pub fn arm(&mut self, actions: &[Action]) -> Result<(), QmpError> {
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

impl Inserted {
    fn into_node(self) -> Node {
        Node {
            elsewhere: self.image.elsewhere(),
            name: self.node_name,
            file: self.image.filename,
            driver: self.drv,
            read_only: self.ro,
            virtual_size: self.image.virtual_size,
            snapshots: self.image.snapshots.into_iter().map(SnapshotInfo::into_record).collect(),
            emulated: None,
            bitmaps: u32::try_from(
                self.dirty_bitmaps.iter().filter(|bitmap| bitmap.persistent).count(),
            )
            .unwrap_or(u32::MAX),
        }
    }
}

/// QEMU says `xvda0` for the whole disk `xvda`, and `xvda10` for its tenth partition
/// (hw/block/xen-block.c, `xen_block_get_vdev`; seen with QEMU 7.2). `d0p0` is a name as it stands.
fn whole_disk(vdev: &str) -> &str {
    match vdev.strip_suffix('0') {
        Some(disk)
            if vdev_number(vdev).is_none() && disk.ends_with(|c: char| c.is_ascii_alphabetic()) =>
        {
            disk
        }
        _ => vdev,
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::thread;

    use super::*;

    /// A QEMU that says `lines` one after the other, each after a command.
    fn qemu(lines: &'static [&'static str]) -> io::Result<Qmp> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        thread::spawn(move || {
            let mut reader = BufReader::new(theirs.try_clone().unwrap());
            for (number, line) in lines.iter().enumerate() {
                if number > 0 {
                    let mut command = String::new();
                    reader.read_line(&mut command).unwrap();
                }
                writeln!(&theirs, "{line}").unwrap();
            }
            // One more is read, and never answered.
            let _ = reader.read_line(&mut String::new());
        });
        Qmp::greet(ours)
    }

    #[test]
    fn names_of_disks() {
        assert_eq!(whole_disk("xvda0"), "xvda");
        assert_eq!(whole_disk("hdc"), "hdc");
        assert_eq!(whole_disk("xvda1"), "xvda1");
        assert_eq!(whole_disk("xvda10"), "xvda10");
        for (told, disk) in
            [("d0p0", "d0p0"), ("d26p0", "d26p0"), ("xvdaa0", "xvdaa"), ("sda0", "sda")]
        {
            assert_eq!(whole_disk(told), disk);
        }
    }

    const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": []}}"#;
    const OK: &str = r#"{"return": {}}"#;

    #[test]
    fn events_are_skipped_even_unknown_ones() {
        let event = r#"{"event": "NEVER_HEARD_OF", "timestamp": {}}
            {"return": {}}"#;
        // One write of two lines: the event first, then the answer.
        let event: &'static str = event.replace("\n            ", "\n").leak();
        let lines: &'static [&'static str] = Box::leak(Box::new([GREETING, OK, event]));
        qemu(lines).unwrap().transaction(&[], &mut || ()).unwrap();
    }

    #[test]
    fn a_refusal_is_told_from_silence() {
        let refused = r#"{"error": {"class": "GenericError", "desc": "Snapshot exists"}}"#;
        let lines: &'static [&'static str] = Box::leak(Box::new([GREETING, OK, refused]));
        let error = qemu(lines).unwrap().transaction(&[], &mut || ()).unwrap_err();
        assert_eq!(error.to_string(), "QEMU refused transaction: Snapshot exists");
        let error = qemu(&[GREETING, OK]).unwrap().transaction(&[], &mut || ()).unwrap_err();
        assert!(matches!(error, QmpError::Broken { command: "transaction", .. }), "{error}");
    }

    /// A QEMU that reads one command, and then does what it likes.
    fn busy(then: impl FnOnce(UnixStream) + Send + 'static) -> Qmp {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        thread::spawn(move || {
            BufReader::new(theirs.try_clone().unwrap()).read_line(&mut String::new()).unwrap();
            then(theirs);
        });
        Qmp { stream: BufReader::new(ours), armed: None }
    }

    #[test]
    fn the_transaction_is_waited_for_as_long_as_qemu_lives() {
        // Many times longer than a read waits, and in two parts.
        let mut qmp = busy(|mut theirs| {
            theirs.write_all(b"{\"event\": \"X\"}\n{\"ret").unwrap();
            thread::sleep(Duration::from_millis(300));
            theirs.write_all(b"urn\": {}}\n").unwrap();
        });
        qmp.transaction(&[], &mut || ()).unwrap();
        // Its end ends the wait.
        let error = busy(drop).transaction(&[], &mut || ()).unwrap_err();
        assert!(matches!(error, QmpError::Broken { .. }), "{error}");
    }

    #[test]
    fn content_that_is_elsewhere_is_noticed() {
        // As QEMU 7.2 says it, shortened.
        let image = |more: &str| {
            let text = format!(r#"{{"filename": "/a", "virtual-size": 512, {more}}}"#);
            serde_json::from_str::<Image>(&text).unwrap().elsewhere()
        };
        let data = r#""format-specific": {"type": "qcow2", "data": {"data-file": "/srv/d", "compat": "1.1"}}"#;
        let wanted = "its data is in another file, /srv/d (qcow2 data_file)";
        assert_eq!(image(data).as_deref(), Some(wanted));
        let below = format!(r#""backing-image": {{"format": "qcow2", {data}}}"#);
        assert_eq!(image(&below).as_deref(), Some(wanted));
        assert!(image(r#""encrypted": true"#).unwrap().contains("encrypted"));
        let plain = r#""encrypted": false, "format-specific": {"type": "file", "data": {}},
                       "backing-image": {"filename": "/b", "backing-image": {}}"#;
        assert_eq!(image(plain), None);
    }

    #[test]
    fn who_waits_for_long_is_told_once() {
        let mut told = 0;
        let mut tell = || told += 1;
        let mut patience = Patience::WhileItLives(Some((Instant::now(), &mut tell)));
        patience.check().unwrap();
        patience.check().unwrap();
        assert_eq!(told, 1);
    }

    #[test]
    fn neither_events_nor_single_bytes_extend_a_limit() {
        let end = Instant::now() + Duration::from_secs(10);
        for drop_by_drop in [&b"{\"event\": \"X\"}\n"[..], b" "] {
            let mut qmp = busy(move |mut theirs| {
                while Instant::now() < end && theirs.write_all(drop_by_drop).is_ok() {
                    thread::sleep(Duration::from_millis(1));
                }
            });
            qmp.send::<query_block>("\n").unwrap();
            let mut patience = Patience::short(Duration::from_millis(100));
            let error = qmp.answer::<query_block, IgnoredAny>(&mut patience).unwrap_err();
            assert!(matches!(error, QmpError::Broken { .. }), "{error}");
        }
        assert!(Instant::now() < end, "the limit did not hold");
    }

    #[test]
    fn a_flood_of_events_is_cut_off() {
        let mut qmp = busy(|mut theirs| {
            let event = b"{\"event\": \"X\"}\n".repeat(1000);
            while theirs.write_all(&event).is_ok() {}
        });
        let error = qmp.transaction(&[], &mut || ()).unwrap_err();
        let QmpError::Broken { source, .. } = error else { panic!("{error}") };
        assert!(source.to_string().contains("events"), "{source}");
    }

    #[test]
    fn a_queue_that_is_full_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("qmp");
        let _listener = UnixListener::bind(&path).unwrap();
        let held: Vec<_> = iter::from_fn(|| {
            let socket =
                socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_NONBLOCK, None)
                    .unwrap();
            let full = connect(socket.as_raw_fd(), &UnixAddr::new(&path).unwrap()).is_err();
            (!full).then_some(socket)
        })
        .collect();
        let error = connected(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{} wait", held.len());
        assert!(connected(&directory.path().join("none")).is_err());
    }

    #[test]
    fn what_is_not_qemu_is_noticed() {
        assert!(qemu(&["SSH-2.0-OpenSSH"]).is_err());
        assert!(qemu(&["{}"]).is_err());
        assert!(qemu(&[]).is_err());
    }

    #[test]
    fn an_armed_transaction_waits_for_its_last_byte() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let mut qmp = Qmp { stream: BufReader::new(ours), armed: None };
        let action = Action::Internal {
            vdev: "a".into(),
            node: "a-qcow2".into(),
            name: "s1".into(),
            file: "/a".into(),
        };
        let actions = [action.clone()];
        let mut text = [0; 1024];
        let mut sent = || {
            let count = (&theirs).read(&mut text).unwrap();
            String::from_utf8(text[..count].to_vec()).unwrap()
        };
        qmp.arm(&actions).unwrap();
        let begin = sent();
        serde_json::from_str::<serde_json::Value>(&begin).unwrap_err();
        writeln!(&theirs, "{OK}").unwrap();
        qmp.transaction(&actions, &mut || ()).unwrap();
        assert_eq!(begin + &sent(), request(&to_transaction(&actions)).unwrap());
        // Another one is not mixed with it.
        qmp.arm(&actions).unwrap();
        let error = qmp.transaction(&[action.clone(), action], &mut || ()).unwrap_err();
        assert!(matches!(error, QmpError::Unsent { .. }), "{error}");
    }

    #[test]
    fn the_transaction_is_what_qemu_wants() {
        let actions = [
            Action::Internal {
                vdev: "xvda".into(),
                node: "xvda-qcow2".into(),
                name: "s1".into(),
                file: "/a".into(),
            },
            Action::Overlay {
                vdev: "xvdb".into(),
                node: "xvdb-raw".into(),
                file: "/srv/b.after-s1.qcow2".into(),
                new_node: "xvdb-0b41a0a5".into(),
            },
        ];
        assert_eq!(
            serde_json::to_value(to_transaction(&actions)).unwrap(),
            json!({"actions": [
                {"type": "blockdev-snapshot-internal-sync",
                 "data": {"device": "xvda-qcow2", "name": "s1"}},
                {"type": "blockdev-snapshot-sync",
                 "data": {"node-name": "xvdb-raw", "snapshot-file": "/srv/b.after-s1.qcow2",
                          "snapshot-node-name": "xvdb-0b41a0a5", "format": "qcow2",
                          "mode": "existing"}}]})
        );
    }
}
