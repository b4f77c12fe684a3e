//! Other processes: the domain's xl monitor and its QEMU.
//!
//! The number of a process that has ended is given to another one. So a process is told by its number and the
//! time of its start, and is held by a descriptor (pidfd_open(2)) before it is proven, signalled or waited for.

mod activity;
mod monitor;
mod stat;

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::getpid;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

pub use self::activity::{Hang, Watch, Work};
pub use self::monitor::{
    Monitor, Watched, is_installed, is_qemu_of, is_saver_of, qemu_trouble, xl_monitor,
};
use self::stat::stat;
pub use self::stat::{identify, parent};
use crate::host::image::FileId;
use crate::process::Process;

/// How often something that cannot wake us is looked at.
const POLL: Duration = Duration::from_millis(10);

/// Whether this process is not scheduled in the usual way.
pub fn is_scheduled_oddly() -> bool {
    stat(getpid().as_raw()).is_some_and(|stat| stat.policy != 0)
}

/// A process that is held by a descriptor: it may end, but its number cannot become another one's.
#[derive(Debug)]
pub struct Handle {
    pid: i32,
    fd: OwnedFd,
}

impl Handle {
    /// The process that has this number now; `None` if there is none.
    pub fn of_pid(pid: i32) -> io::Result<Option<Handle>> {
        let Some(number) = (pid > 0).then_some(pid).and_then(Pid::from_raw) else {
            return Ok(None);
        };
        match pidfd_open(number, PidfdFlags::empty()) {
            Ok(fd) => Ok(Some(Handle { pid, fd })),
            Err(error) if error == rustix::io::Errno::SRCH => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// That very process; `None` if it is gone.
    pub fn open(process: Process) -> io::Result<Option<Handle>> {
        let handle = Handle::of_pid(process.pid)?;
        // Looked at behind the descriptor: so what is seen is what is held.
        Ok(handle.filter(|_| identify(process.pid) == Some(process)))
    }

    /// Sends a signal; one that is gone needs nothing.
    fn send(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.fd, signal) {
            Ok(()) => Ok(()),
            Err(error) if error == rustix::io::Errno::SRCH => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until it is gone, and with it its hold on the disks; but not for longer than `limit`. A zombie has
    /// closed all its files. Returns whether it is gone.
    pub fn gone_within(&self, limit: Duration) -> io::Result<bool> {
        ready_within(&mut [PollFd::new(self.as_fd(), PollFlags::POLLIN)], limit)
    }

    /// Waits until it is gone, for as long as it does something; `patience` is how long it may do nothing. Returns
    /// what it had done if it hangs.
    pub fn gone(&self, mut watch: Watch) -> io::Result<Option<Hang>> {
        while !self.gone_within(watch.due())? {
            if let Some(hang) = watch.look() {
                return Ok(Some(hang));
            }
        }
        Ok(None)
    }

    /// Waits until it is gone, or something else is over. Returns whether it is gone.
    pub fn gone_before(&self, over: &dyn Fn() -> bool) -> io::Result<bool> {
        while !self.gone_within(POLL)? {
            if over() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Its number.
    pub fn pid(&self) -> i32 {
        self.pid
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Waits until one of the descriptors is ready, or `limit` is over. Returns whether one is.
pub fn ready_within(fds: &mut [PollFd<'_>], limit: Duration) -> io::Result<bool> {
    // One more, not to come just before the end.
    let limit = limit.as_millis().saturating_add(1);
    let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    match poll(fds, limit) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// How far a process has read a file that it has opened itself: the largest position of any descriptor of
/// it but its standard input (proc_pid_fdinfo(5)).
pub fn position(pid: u32, file: FileId) -> Option<u64> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|fd| fd != "0")
        .filter(|fd| {
            fs::metadata(format!("/proc/{pid}/fd/{fd}"))
                .is_ok_and(|meta| (meta.dev(), meta.ino()) == file)
        })
        .filter_map(|fd| position_in(&fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).ok()?))
        .max()
}

fn position_in(fdinfo: &str) -> Option<u64> {
    fdinfo.lines().find_map(|line| line.strip_prefix("pos:"))?.trim().parse().ok()
}

/// Stops a process where it is.
pub fn hold(process: Process) -> io::Result<()> {
    match Handle::open(process)? {
        Some(handle) => handle.send(Signal::STOP),
        None => Err(io::Error::other(format!("process {process} has ended"))),
    }
}

/// Lets a stopped process go on; one that is gone needs nothing.
pub fn wake(process: Process) -> io::Result<()> {
    Handle::open(process)?.map_or(Ok(()), |handle| handle.send(Signal::CONT))
}

/// Asks a process to end (SIGTERM), if it is still there.
pub fn end(process: Process) -> io::Result<()> {
    Handle::open(process)?.map_or(Ok(()), |handle| handle.send(Signal::TERM))
}

#[cfg(test)]
mod tests {
    use super::stat::Stat;
    use super::*;
    use crate::host::files;

    #[test]
    fn how_far_a_file_is_read() {
        use std::io::Read;
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        fs::write(&path, [0; 100]).unwrap();
        let mut file = fs::File::open(&path).unwrap();
        let id = files::id(&file).unwrap();
        file.read_exact(&mut [0; 30]).unwrap();
        assert_eq!(position(std::process::id(), id), Some(30));
        drop(file);
        assert_eq!(position(std::process::id(), id), None);
        assert_eq!(position_in("flags:\t02\n"), None);
    }

    fn me() -> i32 {
        i32::try_from(std::process::id()).unwrap()
    }

    #[test]
    fn a_process_is_waited_for() {
        let handle = Handle::of_pid(me()).unwrap().unwrap();
        assert!(!handle.gone_within(Duration::ZERO).unwrap());
        assert!(!handle.gone_before(&|| true).unwrap());
        assert!(Handle::of_pid(i32::MAX).unwrap().is_none());
        assert!(Handle::of_pid(-1).unwrap().is_none() && Handle::of_pid(0).unwrap().is_none());
    }

    #[test]
    fn a_number_that_was_given_anew_is_another_process() {
        let now = identify(me()).unwrap();
        assert!(Handle::open(now).unwrap().is_some());
        let before = Process { started: now.started - 1, ..now };
        assert!(Handle::open(before).unwrap().is_none());
        // Neither is signalled: this test would stop.
        assert!(hold(before).unwrap_err().to_string().contains("has ended"));
        wake(before).unwrap();
    }

    #[test]
    fn the_name_of_a_program_may_hold_anything() {
        let line = b"7 (a) b) R 1 70 70 0 -1 4194304 1 2 3 4 50 60 7 8 20 0 1 0 900 10 11 \
                     0 0 0 0 0 0 0 0 0 0 0 0 0 0 17 1 0 3 0 0 0";
        let stat = Stat::parse(7, line).unwrap();
        assert_eq!((stat.state, stat.group, stat.cpu, stat.started), ('R', 70, 110, 900));
        assert!(Stat::parse(7, b"7 (a) R 1").is_none() && Stat::parse(7, b"").is_none());
    }
}
