//! Other processes: the domain's xl monitor and its QEMU.
//!
//! The number of a process that has ended is given to another one. So a process is told by its number and the
//! time of its start, and is held by a descriptor (pidfd_open(2)) before it is proven, signalled or waited for.
//!
//! Every domain that `xl create` or `xl restore` started has an xl process that handles its reboot
//! and its end. Before Xen 4.20 that process takes a suspend for the end of the domain and exits
//! (tools/xl/xl_vmcontrol.c, `handle_domain_death`). Held by SIGSTOP while the domain is suspended
//! it sees nothing of it: its watch looks at the state at the time it runs.

mod activity;

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

pub use self::activity::{Hang, Watch, Work};
use crate::host::image::FileId;
use crate::process::Process;

const LOG_DIRECTORY: &str = "/var/log/xen/";
/// How often something that cannot wake us is looked at.
const POLL: Duration = Duration::from_millis(10);

/// What proc_pid_stat(5) tells of a process.
#[derive(Debug, Clone, Copy)]
struct Stat {
    pid: i32,
    state: char,
    /// Its process group.
    group: i32,
    /// Processor time that it has used, in clock ticks.
    cpu: u64,
    /// In clock ticks after the boot.
    started: u64,
}

impl Stat {
    fn parse(pid: i32, line: &[u8]) -> Option<Stat> {
        // "pid (comm) state ppid pgrp ..."; comm may hold anything, also parentheses.
        let line = String::from_utf8_lossy(line);
        let words: Vec<&str> = line.rsplit(") ").next()?.split(' ').collect();
        let number = |at: usize| words.get(at)?.parse::<u64>().ok();
        Some(Stat {
            pid,
            state: words.first()?.chars().next()?,
            group: words.get(2)?.parse().ok()?,
            cpu: number(11)? + number(12)?,
            started: number(19)?,
        })
    }
}

fn stat(pid: i32) -> Option<Stat> {
    Stat::parse(pid, &fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// The process that has this number now.
pub fn identify(pid: i32) -> Option<Process> {
    Some(Process { pid, started: stat(pid)?.started })
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
        let Some(number) = Pid::from_raw(pid).filter(|_| pid > 0) else { return Ok(None) };
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

/// The xl process that watches a domain, if it has one (`xl create -e` gives none).
///
/// Its standard output is `/var/log/xen/xl-<name>.log`, in which it has said "Waiting for domain
/// NAME (domid N) to die [pid P]". The name in the path is the one at creation, so the domid in the
/// last such line decides.
pub fn xl_monitor(domid: u32) -> io::Result<Option<Process>> {
    for pid in all_running("xl")? {
        // A process may end while we look: then it is not the one.
        let Ok(log) = fs::read_link(format!("/proc/{pid}/fd/1")) else { continue };
        if is_monitor_log(&log)
            && watches(&fs::read_to_string(&log).unwrap_or_default(), pid, domid)
        {
            return Ok(identify(pid));
        }
    }
    Ok(None)
}

/// The process that libxl has started to write the memory of a domain: for us, `xl save` or
/// `xl migrate`. Its arguments are `--save-domain FD PRESERVED-FDS DOMID ...` (libxl_save_callout.c,
/// `libxl__xc_domain_save`).
pub fn saver(domid: u32) -> io::Result<Option<i32>> {
    let saves = |pid: &i32| {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        is_saver_of(&arguments, domid)
    };
    Ok(all_running("libxl-save-helper")?.into_iter().find(saves))
}

pub(super) fn is_saver_of(arguments: &[u8], domid: u32) -> bool {
    let words: Vec<&[u8]> = arguments.split(|byte| *byte == 0).collect();
    let mode = words.iter().position(|word| *word == b"--save-domain");
    mode.and_then(|mode| words.get(mode + 3))
        .is_some_and(|word| *word == domid.to_string().as_bytes())
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

/// The numbers of all processes.
fn all() -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        found.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    Ok(found)
}

/// The processes that run a program of this name.
fn all_running(name: &str) -> io::Result<Vec<i32>> {
    Ok(all()?.into_iter().filter(|pid| is_program(*pid, name)).collect())
}

fn is_monitor_log(path: &Path) -> bool {
    path.to_str()
        .and_then(|path| path.strip_prefix(LOG_DIRECTORY))
        .is_some_and(|name| name.starts_with("xl-") && name.ends_with(".log"))
}

/// Whether the last line of this process in its log names the domain.
fn watches(log: &str, pid: i32, domid: u32) -> bool {
    let by = format!("to die [pid {pid}]");
    log.lines()
        .rfind(|line| line.starts_with("Waiting for domain ") && line.trim_end().ends_with(&by))
        .is_some_and(|line| line.contains(&format!("(domid {domid}) ")))
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

/// Whether the process `pid` runs the program `name`.
fn is_program(pid: i32, name: &str) -> bool {
    fs::read_link(format!("/proc/{pid}/exe"))
        .is_ok_and(|path| path.file_name().is_some_and(|file| file == name))
}

/// Whether a process is the QEMU of a domain, and has not ended: libxl starts it with `-xen-domid N`
/// (libxl_dm.c), and the number of a domain is not used again for long.
pub fn is_qemu_of(pid: i32, domid: u32) -> bool {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    is_alive(pid) && has_domid(&arguments, domid)
}

fn has_domid(arguments: &[u8], domid: u32) -> bool {
    let mut words = arguments.split(|byte| *byte == 0);
    words.any(|word| word == b"-xen-domid")
        && words.next().is_some_and(|word| word == domid.to_string().as_bytes())
}

fn is_alive(pid: i32) -> bool {
    stat(pid).is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::files;

    #[test]
    fn the_monitor_of_a_domain() {
        let log = "Waiting for domain web1 (domid 4) to die [pid 77]\n\
                   Domain 4 has shut down, reason code 1 0x1\n\
                   Waiting for domain web1 (domid 5) to die [pid 77]\n";
        assert!(watches(log, 77, 5));
        assert!(!watches(log, 77, 4), "the domain before its reboot");
        assert!(!watches(log, 7, 5), "another process");
        assert!(!watches("", 77, 5));
        assert!(is_monitor_log(Path::new("/var/log/xen/xl-web 1.log")));
        assert!(!is_monitor_log(Path::new("/var/log/xen/qemu-dm-web1.log")));
        assert!(!is_monitor_log(Path::new("/dev/pts/1")));
    }

    #[test]
    fn the_process_that_saves_a_domain() {
        let helper =
            b"/usr/lib/xen-4.17/bin/libxl-save-helper\0--save-domain\x0027\0\x007\x001\x000\0";
        assert!(is_saver_of(helper, 7));
        assert!(!is_saver_of(helper, 27) && !is_saver_of(helper, 1));
        let restores = b"libxl-save-helper\0--restore-domain\x0027\0\x007\x001\0";
        assert!(!is_saver_of(restores, 7) && !is_saver_of(b"", 7));
    }

    #[test]
    fn the_qemu_of_a_domain() {
        let qemu = b"/usr/lib/xen-4.17/bin/qemu-system-i386\0-xen-domid\x0012\0-no-shutdown\0";
        assert!(has_domid(qemu, 12) && !has_domid(qemu, 1));
        assert!(!has_domid(b"qemu-img\x0012\0", 12) && !has_domid(b"", 0));
        assert!(!is_qemu_of(i32::try_from(std::process::id()).unwrap(), 12));
    }

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
        let line = b"7 (a) b) R 1 70 70 0 -1 4194304 1 2 3 4 50 60 7 8 20 0 1 0 900 10 11";
        let stat = Stat::parse(7, line).unwrap();
        assert_eq!((stat.state, stat.group, stat.cpu, stat.started), ('R', 70, 110, 900));
        assert!(Stat::parse(7, b"7 (a) R 1").is_none() && Stat::parse(7, b"").is_none());
    }
}
