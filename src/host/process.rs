//! Other processes: the domain's xl monitor and its QEMU.
//!
//! Every domain that `xl create` or `xl restore` started has an xl process that handles its reboot
//! and its end. Before Xen 4.20 that process takes a suspend for the end of the domain and exits
//! (tools/xl/xl_vmcontrol.c, `handle_domain_death`). Held by SIGSTOP while the domain is suspended
//! it sees nothing of it: its watch looks at the state at the time it runs.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::image::FileId;

const LOG_DIRECTORY: &str = "/var/log/xen/";
const POLL: Duration = Duration::from_millis(10);

/// The xl process that watches a domain, if it has one (`xl create -e` gives none).
///
/// Its standard output is `/var/log/xen/xl-<name>.log`, in which it has said "Waiting for domain
/// NAME (domid N) to die [pid P]". The name in the path is the one at creation, so the domid in the
/// last such line decides.
pub fn xl_monitor(domid: u32) -> io::Result<Option<i32>> {
    for pid in all_running("xl")? {
        // A process may end while we look: then it is not the one.
        let Ok(log) = fs::read_link(format!("/proc/{pid}/fd/1")) else { continue };
        if is_monitor_log(&log)
            && watches(&fs::read_to_string(&log).unwrap_or_default(), pid, domid)
        {
            return Ok(Some(pid));
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

/// The processes that run a program of this name.
fn all_running(name: &str) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let pid = entry?.file_name().to_string_lossy().parse::<i32>();
        found.extend(pid.ok().filter(|pid| is_program(*pid, name)));
    }
    Ok(found)
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
pub fn hold(pid: i32) -> io::Result<()> {
    Ok(kill(Pid::from_raw(pid), Signal::SIGSTOP)?)
}

/// Lets a stopped process go on; one that is gone needs nothing.
pub fn wake(pid: i32) -> io::Result<()> {
    match kill(Pid::from_raw(pid), Signal::SIGCONT) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether the process `pid` runs the program `name`.
pub fn is_program(pid: i32, name: &str) -> bool {
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

/// Waits until a process is gone, and with it its hold on the disks. A zombie has closed all its
/// files. Returns whether it is gone in time.
pub fn wait_gone(pid: i32, timeout: Duration) -> bool {
    let deadline = Instant::now() + timeout;
    gone_before(pid, &|| Instant::now() >= deadline)
}

/// The same, but waits until something else is over.
pub fn gone_before(pid: i32, over: &dyn Fn() -> bool) -> bool {
    while is_alive(pid) {
        if over() {
            return false;
        }
        thread::sleep(POLL);
    }
    true
}

fn is_alive(pid: i32) -> bool {
    // proc_pid_stat(5): "pid (comm) state ..."; comm may hold anything, also parentheses.
    let Ok(stat) = fs::read(format!("/proc/{pid}/stat")) else { return false };
    let stat = String::from_utf8_lossy(&stat);
    !matches!(stat.rsplit(") ").next().and_then(|rest| rest.chars().next()), Some('Z' | 'X'))
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

    #[test]
    fn a_process_is_waited_for() {
        assert!(is_alive(i32::try_from(std::process::id()).unwrap()));
        assert!(wait_gone(i32::MAX, Duration::ZERO));
    }
}
