//! The transaction of the disks, and its outcome, which is queried until it is known, never
//! guessed.
//!
//! QEMU may need longer for a snapshot than any limit, and may do the transaction after a connection has
//! ended: it first reads what it has received. So we query on the same socket, which serves one client
//! after the other: an answer comes after everything sent before. The guest stays suspended meanwhile.
//! Snapshots by any other means could be from another moment than its memory.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::state::{Dom0, caused};
use crate::disk::Node;
use crate::domain::Format;
use crate::error::{Error, Remaining, Result};
use crate::host::qmp::{Qmp, QmpError, SLOW};
use crate::host::{process, tools};
use crate::names::same_vdev;
use crate::plan::Action;
use crate::record::QcowSnapshot;
use crate::report::Meter;
use crate::tool::qemu_img::{ImageInfo, snapshot_delete};
use crate::tool::quote;

/// The delay between two queries.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// The outcome of a transaction.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// All disks have their snapshots.
    Done,
    /// QEMU lives, and the transaction has not been done. Some disks may have snapshots nevertheless:
    /// their node and name.
    NotDone(Vec<(String, String)>),
    /// QEMU is gone, and not all disks have their snapshots. For those that have: the command that deletes
    /// each.
    Gone(Vec<Remaining>),
}

impl Dom0 {
    pub(super) fn send_transaction(&mut self, domid: u32, actions: &[Action]) -> Result<()> {
        let qemu = self.qemu(domid)?;
        qemu.send_transaction(actions).map_err(|error| caused(error).hint(see_qemu(domid)))
    }

    /// The connection that was made when the domain was inspected.
    fn qemu(&mut self, domid: u32) -> Result<&mut Qmp> {
        self.qmp.as_mut().ok_or_else(|| {
            Error::failed(format!("There is no connection to the QEMU of domain {domid}"))
                .hint(see_qemu(domid))
        })
    }

    pub(super) fn transaction(&mut self, domid: u32, actions: &[Action]) -> Result<()> {
        let started = Instant::now();
        let (reporter, mut meter) = (self.reporter.clone(), None);
        let mut slow = || meter = Some(reporter.waiting(WAITING));
        let result = self.qemu(domid)?.transaction(actions, &mut slow);
        self.meters.extend(meter);
        let result = match result {
            Ok(()) => Ok(()),
            Err(error @ (QmpError::Refused { .. } | QmpError::Unsent { .. })) => Err(caused(error)),
            // QEMU may have done it without an answer, or may still do it.
            Err(error) => {
                self.qmp = None;
                match self.settle_transaction(domid, actions) {
                    Ok(true) => Ok(()),
                    Ok(false) => Err(caused(error)),
                    Err(outcome) => Err(outcome),
                }
            }
        };
        self.tell_slow(started);
        result
    }

    /// Finds out whether the disks have the snapshots of a transaction that QEMU was sent. Waits for as long
    /// as QEMU lives.
    ///
    /// # Errors
    ///
    /// If it has not been done and never will be; the error lists its leftovers.
    pub(super) fn settle_transaction(&mut self, domid: u32, actions: &[Action]) -> Result<bool> {
        let started = Instant::now();
        let (reporter, mut meter) = (self.reporter.clone(), None);
        let mut ask = || {
            let answer = Qmp::connect(domid).and_then(|mut qmp| qmp.disks());
            if answer.is_err() && started.elapsed() >= SLOW {
                meter.get_or_insert_with(|| reporter.waiting(WAITING));
            }
            answer
        };
        let toolstack = &self.toolstack;
        let is_gone = || match toolstack.qemu_pid(domid) {
            Ok(Some(pid)) => !process::is_qemu_of(pid, domid),
            Ok(None) => true,
            Err(_) => false,
        };
        let outcome = outcome(actions, &mut ask, &is_gone, &snapshots);
        self.meters.extend(meter);
        self.tell_slow(started);
        match outcome {
            Outcome::Done => Ok(true),
            Outcome::NotDone(some) if some.is_empty() => Ok(false),
            Outcome::NotDone(some) => {
                Err(Error::failed("QEMU has done a part of the transaction only")
                    .unfinished(some.iter().map(|some| still_there(domid, some)).collect()))
            }
            Outcome::Gone(remaining) => {
                let error = Error::failed(format!(
                    "The QEMU of domain {domid} ended before the disks had their snapshots"
                ))
                .hint(
                    "the guest has no disks without it: destroy the domain and start it again; \
                     QEMU's log in /var/log/xen may tell why it ended",
                );
                Err(if remaining.is_empty() { error } else { error.unfinished(remaining) })
            }
        }
    }

    /// Tells the user why the guest was paused for so long, after it runs again.
    fn tell_slow(&mut self, started: Instant) {
        self.meters.iter().for_each(Meter::end);
        let waited = started.elapsed();
        if waited >= SLOW {
            self.messages.push(format!(
                "note: the guest was paused for {} s until its QEMU answered",
                waited.as_secs()
            ));
        }
    }
}

/// The message while we wait for QEMU.
const WAITING: &str = "the guest is paused until its QEMU has snapshotted the disks";

fn see_qemu(domid: u32) -> String {
    format!("see whether its QEMU runs: xl qemu-monitor-command {domid} 'info block'")
}

fn still_there(domid: u32, (node, name): &(String, String)) -> Remaining {
    Remaining {
        what: format!("The snapshot {name} of QEMU's node {node} is there"),
        command: Some(format!(
            "xl qemu-monitor-command {domid} {}",
            quote(format!("snapshot_delete_blkdev_internal {node} {name}"))
        )),
    }
}

/// The internal snapshots of a file.
fn snapshots(path: &Path) -> std::result::Result<Vec<QcowSnapshot>, String> {
    let chain = tools::chain(path, Format::Qcow2)?;
    Ok(chain.first().map(ImageInfo::snapshots).unwrap_or_default())
}

/// Queries QEMU until it answers or is gone, and then inspects its files.
fn outcome(
    actions: &[Action],
    ask: &mut dyn FnMut() -> std::result::Result<Vec<(String, Node)>, QmpError>,
    is_gone: &dyn Fn() -> bool,
    files: &dyn Fn(&Path) -> std::result::Result<Vec<QcowSnapshot>, String>,
) -> Outcome {
    loop {
        match ask() {
            Ok(disks) => return of_qemu(actions, &disks),
            // A process that we do not see may still listen: QEMU has ended only if both conditions
            // hold.
            Err(QmpError::Connect { .. }) if is_gone() => return of_files(actions, files),
            Err(_) => thread::sleep(ASK_AGAIN),
        }
    }
}

fn of_qemu(actions: &[Action], disks: &[(String, Node)]) -> Outcome {
    let node =
        |vdev: &str| disks.iter().find(|(other, _)| same_vdev(other, vdev)).map(|(_, node)| node);
    let is_done = |action: &&Action| match action {
        Action::Internal { vdev, name, .. } => node(vdev)
            .is_some_and(|node| node.snapshots.iter().any(|snapshot| snapshot.name == *name)),
        Action::Overlay { vdev, file, .. } => node(vdev).is_some_and(|node| node.file == *file),
    };
    let done: Vec<&Action> = actions.iter().filter(is_done).collect();
    if done.len() == actions.len() {
        return Outcome::Done;
    }
    let internal = done.into_iter().filter_map(|action| match action {
        Action::Internal { node, name, .. } => Some((node.clone(), name.clone())),
        Action::Overlay { .. } => None,
    });
    Outcome::NotDone(internal.collect())
}

/// If QEMU is gone, nothing is switched any more. An internal snapshot counts, because QEMU has written
/// all of the disk before it; whether the base of an overlay has everything that the guest wrote is
/// unknown.
fn of_files(
    actions: &[Action],
    files: &dyn Fn(&Path) -> std::result::Result<Vec<QcowSnapshot>, String>,
) -> Outcome {
    let mut remaining = Vec::new();
    let mut complete = true;
    for action in actions {
        let Action::Internal { file, name, .. } = action else {
            complete = false;
            continue;
        };
        match files(file) {
            Ok(snapshots) => match snapshots.iter().find(|snapshot| snapshot.name == *name) {
                None => complete = false,
                Some(snapshot) => remaining.push(Remaining {
                    what: format!("The snapshot {name} in {} is there", quote(file)),
                    command: Some(snapshot_delete(file, &snapshot.name).to_string()),
                }),
            },
            Err(why) => {
                complete = false;
                remaining.push(Remaining {
                    what: format!(
                        "Whether {} has a snapshot {name}, is not known: {why}",
                        quote(file)
                    ),
                    command: None,
                });
            }
        }
    }
    if complete { Outcome::Done } else { Outcome::Gone(remaining) }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::io;

    use jiff::Timestamp;

    use super::*;

    fn internal(vdev: &str) -> Action {
        Action::Internal {
            vdev: vdev.into(),
            node: format!("{vdev}-qcow2"),
            name: "s1".into(),
            file: format!("/srv/{vdev} 1.qcow2").into(),
        }
    }

    fn overlay() -> Action {
        Action::Overlay {
            vdev: "xvdb".into(),
            node: "xvdb-raw".into(),
            file: "/srv/new".into(),
            new_node: "xvdb-1".into(),
        }
    }

    fn snapshot() -> QcowSnapshot {
        QcowSnapshot { id: "7".into(), name: "s1".into(), date: Timestamp::UNIX_EPOCH }
    }

    fn node(file: &str, snapshots: Vec<QcowSnapshot>) -> Node {
        Node {
            name: "n".into(),
            file: file.into(),
            driver: "qcow2".into(),
            read_only: false,
            virtual_size: 512,
            snapshots,
            elsewhere: None,
            bitmaps: 0,
            emulated: None,
        }
    }

    fn refused() -> QmpError {
        let source = io::ErrorKind::ConnectionRefused.into();
        QmpError::Connect { path: "/run/q".into(), source }
    }

    fn not_looked_at(path: &Path) -> std::result::Result<Vec<QcowSnapshot>, String> {
        panic!("{} is looked at", path.display())
    }

    #[test]
    fn what_does_not_answer_is_asked_again() {
        let asked = Cell::new(0);
        let mut ask = || {
            asked.set(asked.get() + 1);
            match asked.get() {
                1 => Err(QmpError::Taken { path: "/run/q".into() }),
                // It does not accept a connection at the moment, but lives.
                2 => Err(refused()),
                _ => Ok(vec![("xvda".into(), node("/srv/a", vec![snapshot()]))]),
            }
        };
        let outcome = outcome(&[internal("xvda")], &mut ask, &|| false, &not_looked_at);
        assert_eq!((outcome, asked.get()), (Outcome::Done, 3));
    }

    #[test]
    fn a_process_that_is_not_seen_may_listen_all_the_same() {
        let answers = RefCell::new(vec![Ok(vec![]), Err(QmpError::Taken { path: "/q".into() })]);
        let mut ask = || answers.borrow_mut().pop().unwrap();
        let outcome = outcome(&[overlay()], &mut ask, &|| true, &not_looked_at);
        assert_eq!(outcome, Outcome::NotDone(vec![]));
    }

    #[test]
    fn all_or_none() {
        let actions = [internal("xvda"), overlay()];
        let disks = |file: &str, snapshots| {
            [
                ("xvda".to_owned(), node("/srv/a", snapshots)),
                ("xvdb".to_owned(), node(file, Vec::new())),
            ]
        };
        assert_eq!(of_qemu(&actions, &disks("/srv/new", vec![snapshot()])), Outcome::Done);
        assert_eq!(of_qemu(&actions, &disks("/srv/b", vec![])), Outcome::NotDone(vec![]));
        let Outcome::NotDone(some) = of_qemu(&actions, &disks("/srv/b", vec![snapshot()])) else {
            panic!("one is not all")
        };
        let command = still_there(5, &some[0]).command;
        let wanted = "xl qemu-monitor-command 5 'snapshot_delete_blkdev_internal xvda-qcow2 s1'";
        assert_eq!(command.as_deref(), Some(wanted));
    }

    #[test]
    fn the_files_of_a_qemu_that_is_gone_tell() {
        let of = |actions: &[Action], files: &dyn Fn(&Path) -> _| {
            outcome(actions, &mut || Err(refused()), &|| true, files)
        };
        let has = |_: &Path| Ok(vec![snapshot()]);
        assert_eq!(of(&[internal("xvda"), internal("xvdb")], &has), Outcome::Done);
        assert_eq!(of(&[internal("xvda")], &|_| Ok(vec![])), Outcome::Gone(vec![]));
        // It was taken nevertheless; the delete command states the format.
        let Outcome::Gone(remaining) = of(&[internal("xvda"), overlay()], &has) else {
            panic!("an overlay proves nothing")
        };
        assert_eq!(
            remaining[0].command.as_deref(),
            Some(
                "qemu-img snapshot -q -d s1 --image-opts \
                 'driver=qcow2,file.driver=file,file.filename=/srv/xvda 1.qcow2'"
            )
        );
        let Outcome::Gone(remaining) = of(&[internal("xvda")], &|_| Err("no".into())) else {
            panic!("it is not known")
        };
        assert!(remaining[0].what.ends_with("is not known: no"), "{remaining:?}");
    }
}
