//! A process that outlives ours.
//!
//! Between the first step and the last, a guest may be suspended, its xl process held, its stored
//! configuration ahead of its disks. If this program is killed there (SIGKILL, the OOM killer, a
//! panic), nobody would put that in order. So every plan is carried out under the eyes of a guard: this
//! same program, started again, in a session of its own. It is handed the plan, is told of every step
//! before it is begun, and does nothing but wait. If the connection ends without a goodbye, it goes on
//! with the plan as the executor would have after a failure.
//!
//! This is the protocol between the two; the guard's work is in `run/guard.rs`.
//!
//! It holds the domain's lock by inheritance, so that nobody comes in between. It has left the session and the
//! control group of its ward, and signals that end a program do nothing to it: who ends a systemd unit kills all
//! that is in it. Its words it says last, and waits for no terminal.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CStr;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::prctl;
use nix::unistd::setsid;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::host::command;
use crate::host::image::FileId;
use crate::host::image::while_restoring::Unverified;
use crate::host::lock::Lock;
use crate::host::process::Handle;
use crate::host::surroundings;
use crate::plan::{Plan, Reached, Step, Target};
use crate::process::Process;
use crate::quiesce::FreezeState;
use crate::tool::Tool;

/// What the guard is called, by its first argument and in ps(1).
pub const NAME: &str = "xl-snapshot-guard";
/// The same for the kernel, which keeps 15 bytes; another name than ours, so that `killall` does not
/// hit both.
const SHORT_NAME: &CStr = c"xl-snap-guard";

/// How long a guard may take to start.
const START: Duration = Duration::from_secs(30);

/// How long it may take to end.
const GOODBYE: Duration = Duration::from_secs(5);

/// Its answer when it is there.
#[derive(Debug, Serialize, Deserialize)]
struct Ready {
    /// Why it could not leave its ward's control group, if that is so.
    bound: Option<String>,
}

/// What it is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Note {
    /// How far the plan has come.
    Reached(Reached),
    /// A file was made.
    Made(PathBuf),
    /// The write permission was taken from a file, which had this mode.
    Protected(PathBuf, u32),
    /// The file of the memory image was made.
    Image(FileId),
    /// A tool was started, as this process.
    Started(Tool, Process),
    /// What has become of the freeze of the guest's file systems; none if there was none.
    Freeze(Option<FreezeState>),
    /// The image that is being restored, whose memory is verified at the same time; none once it is.
    Unverified(Option<Unverified>),
}

/// What had been done when the program was killed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DoneBefore {
    /// How far it came; nothing was begun if there is none.
    pub reached: Option<Reached>,
    /// The files it made.
    pub made: BTreeSet<PathBuf>,
    /// The files it took the write permission from, and their modes before.
    pub protected: BTreeMap<PathBuf, u32>,
    /// The file of the memory image.
    pub image: Option<FileId>,
    /// The tools it started.
    pub started: Vec<(Tool, Process)>,
    /// The freeze of the guest's file systems.
    pub freeze: Option<FreezeState>,
    /// The image that was being restored, if all of it was not verified.
    pub unverified: Option<Unverified>,
}

impl DoneBefore {
    fn add(&mut self, note: Note) {
        match note {
            Note::Reached(reached) => self.reached = Some(reached),
            Note::Made(path) => drop(self.made.insert(path)),
            Note::Protected(path, mode) => drop(self.protected.insert(path, mode)),
            Note::Image(id) => self.image = Some(id),
            Note::Started(tool, process) => self.started.push((tool, process)),
            Note::Freeze(freeze) => self.freeze = freeze,
            Note::Unverified(image) => self.unverified = image,
        }
    }
}

/// The guard, as its ward sees it.
#[derive(Debug)]
pub struct Guard {
    child: Child,
    stream: UnixStream,
    lost: AtomicBool,
    bound: Option<String>,
}

impl Guard {
    /// Starts a guard for the execution of a plan. It also inherits the image that is restored.
    ///
    /// # Errors
    ///
    /// Nothing was changed: without a guard nothing is begun.
    pub fn start(plan: &Plan, lock: &Lock, image: Option<BorrowedFd<'_>>) -> Result<Guard> {
        Self::try_start(plan, lock, image).map_err(|error| {
            Error::failed(
                "The guard process, which resumes the guest if xl-snapshot is killed, does not start",
            )
            .because(error)
            .hint("nothing was changed; make sure that there is memory for it (free), then try again")
        })
    }

    fn try_start(plan: &Plan, lock: &Lock, image: Option<BorrowedFd<'_>>) -> io::Result<Guard> {
        let (ours, theirs) = UnixStream::pair()?;
        // Standard output only where it has to be written to: else its reader would wait for us.
        let stdout = if writes_stdout(plan) { Stdio::inherit() } else { Stdio::null() };
        let held: Vec<_> = lock.fds().chain(image).collect();
        let child = command::start_again(NAME, OwnedFd::from(theirs), stdout, &held)?;
        let lost = AtomicBool::new(false);
        let mut guard = Guard { child, stream: ours, lost, bound: None };
        match guard.greet(plan) {
            Ok(()) => Ok(guard),
            Err(error) => {
                guard.child.kill()?;
                guard.child.wait()?;
                Err(error)
            }
        }
    }

    fn greet(&mut self, plan: &Plan) -> io::Result<()> {
        self.send(plan)?;
        // From its answer on it is in a session of its own, and no Ctrl-C reaches it.
        self.stream.set_read_timeout(Some(START))?;
        let mut answer = String::new();
        BufReader::new(&self.stream).read_line(&mut answer)?;
        let ready: Ready = serde_json::from_str(&answer)?;
        self.bound = ready.bound;
        Ok(())
    }

    /// Why the guard, and what xl starts, may end with the job that we are a part of, if that is so.
    pub fn bound(&self) -> Option<&str> {
        self.bound.as_deref()
    }

    /// Tells it something. That it is gone shows at the end: there is nothing better to do now.
    pub fn tell(&self, note: &Note) {
        if self.send(note).is_err() {
            self.lost.store(true, Ordering::Relaxed);
        }
    }

    fn send(&self, value: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(value)?;
        line.push(b'\n');
        (&self.stream).write_all(&line)
    }

    /// Lets it end. Returns whether it was there all the time.
    pub fn dismiss(mut self) -> bool {
        self.tell(&Note::Reached(Reached::End));
        drop(self.stream);
        // It has nothing to say any more, and may be stopped.
        let gone = Handle::of_pid(self.child.id() as i32)
            .and_then(|handle| handle.map_or(Ok(true), |handle| handle.gone_within(GOODBYE)));
        if !gone.unwrap_or(false) {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
        !self.lost.into_inner()
    }
}

fn writes_stdout(plan: &Plan) -> bool {
    plan.prepare
        .iter()
        .any(|step| matches!(step, Step::OpenImage(start) if start.target == Target::Stdout))
}

/// Listens until the ward is gone. `None` if it has said goodbye.
pub fn wait() -> io::Result<Option<(Plan, DoneBefore)>> {
    // A group leader cannot, and needs not.
    let _ = setsid();
    let bound = surroundings::leave_job()?;
    prctl::set_name(SHORT_NAME)?;
    let mut stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let Some(first) = lines.next() else { return Ok(None) };
    let plan: Plan = serde_json::from_str(&first?)?;
    let mut ready = serde_json::to_vec(&Ready { bound })?;
    ready.push(b'\n');
    stream.write_all(&ready)?;
    let mut done = DoneBefore::default();
    for line in lines {
        // A broken line is the last one, of a step that was not begun.
        let Ok(note) = line.and_then(|line| Ok(serde_json::from_str(&line)?)) else { break };
        if note == Note::Reached(Reached::End) {
            return Ok(None);
        }
        done.add(note);
    }
    Ok(Some((plan, done)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LVM: Process = Process { pid: 77, started: 1234 };

    #[test]
    fn notes_come_over_as_they_were() {
        let notes = [
            Note::Reached(Reached::Prepare(3)),
            Note::Reached(Reached::Commit),
            Note::Made("/srv/a b.qcow2".into()),
            Note::Protected("/srv/a".into(), 0o644),
            Note::Image((1, 2)),
            Note::Started(Tool::Lvm, LVM),
        ];
        let mut done = DoneBefore::default();
        for note in notes {
            let line = serde_json::to_string(&note).unwrap();
            assert_eq!(serde_json::from_str::<Note>(&line).unwrap(), note);
            assert!(!line.contains('\n'));
            done.add(note);
        }
        assert_eq!(done.reached, Some(Reached::Commit));
        assert_eq!(done.protected[&PathBuf::from("/srv/a")], 0o644);
        assert_eq!(done.started, [(Tool::Lvm, LVM)]);
    }
}
