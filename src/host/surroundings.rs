//! What a process inherits from whoever started it, and must not depend on.
//!
//! We are started from shells, timers, agents and containers' init scripts: with signals blocked or ignored, with
//! low limits, in a control group that is killed when the job ends. libxl waits for a SIGCHLD that never comes if
//! the caller has blocked it, with the guest suspended. And what xl starts for us, the domain's QEMU and xl process,
//! has to live for as long as the domain: it must inherit nothing of a job.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::prctl;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, makedev, umask};
use nix::unistd::Pid;
use rustix::process::setpriority_process;

/// Variables of ours, and of the libraries that draw on the terminal. Nothing else of the environment is kept: libxl
/// hands it to the scripts that it runs as root.
const KEPT: [&str; 9] = [
    "XL_SNAPSHOT_DIR",
    "TERM",
    "COLORTERM",
    "NO_COLOR",
    "CLICOLOR",
    "CLICOLOR_FORCE",
    "COLUMNS",
    "LINES",
    "RUST_BACKTRACE",
];

/// The environment of everything we start, and our own.
pub const ENVIRONMENT: [(&str, &str); 2] =
    [("LC_ALL", "C"), ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")];

/// The control group of what is to outlive its caller.
const GROUP: &str = "xl-snapshot";

/// Resources that can be limited, as /proc/PID/limits calls them (proc_pid_limits(5)).
const RESOURCES: [(&str, Resource); 16] = [
    ("Max cpu time", Resource::RLIMIT_CPU),
    ("Max file size", Resource::RLIMIT_FSIZE),
    ("Max data size", Resource::RLIMIT_DATA),
    ("Max stack size", Resource::RLIMIT_STACK),
    ("Max core file size", Resource::RLIMIT_CORE),
    ("Max resident set", Resource::RLIMIT_RSS),
    ("Max processes", Resource::RLIMIT_NPROC),
    ("Max open files", Resource::RLIMIT_NOFILE),
    ("Max locked memory", Resource::RLIMIT_MEMLOCK),
    ("Max address space", Resource::RLIMIT_AS),
    ("Max file locks", Resource::RLIMIT_LOCKS),
    ("Max pending signals", Resource::RLIMIT_SIGPENDING),
    ("Max msgqueue size", Resource::RLIMIT_MSGQUEUE),
    ("Max nice priority", Resource::RLIMIT_NICE),
    ("Max realtime priority", Resource::RLIMIT_RTPRIO),
    ("Max realtime timeout", Resource::RLIMIT_RTTIME),
];

/// What the terminal or a person stops a program with.
const STOPS: [Signal; 3] = [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU];

/// What ends a program that does not expect it.
const ENDS: [Signal; 7] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
];

/// The environment that a program of ours begins with: of that of the caller, what we know, and `also`.
pub fn environment(also: &[&str]) -> impl Iterator<Item = (String, OsString)> {
    let kept = move |name: &&str| KEPT.contains(name) || also.contains(name);
    let names: Vec<String> = env::vars_os()
        .filter_map(|(name, _)| name.into_string().ok())
        .filter(|name| kept(&name.as_str()))
        .collect();
    let fixed = ENVIRONMENT.map(|(name, value)| (name.to_owned(), value.into()));
    fixed.into_iter().chain(names.into_iter().filter_map(|name| {
        let value = env::var_os(&name)?;
        Some((name, value))
    }))
}

/// Whether this process was begun in a way that only a new beginning can mend: with an environment that is not ours,
/// or with signals blocked, or without SIGCHLD.
pub fn are_foreign(also: &[&str]) -> io::Result<bool> {
    let wanted: BTreeMap<_, _> = environment(also).collect();
    let own = env::vars_os().all(|(name, value)| {
        name.to_str().and_then(|name| wanted.get(name)).is_some_and(|wanted| *wanted == value)
    });
    let complete = wanted.keys().all(|name| env::var_os(name).is_some());
    let blocked = SigSet::thread_get_mask()? != SigSet::empty();
    Ok(!own || !complete || blocked || is_ignored(Signal::SIGCHLD))
}

/// Whether the caller wants this process to ignore a signal: nohup(1), or a shell in the background.
pub fn is_ignored(signal: Signal) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignored(&status) & 1 << (signal as u32 - 1) != 0
}

/// The signals that are ignored, as in proc_pid_status(5): signal 1 is the lowest bit.
fn ignored(status: &str) -> u64 {
    let bits = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    bits.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or_default()
}

/// Lets no signal be blocked.
pub fn unblock_signals() -> io::Result<()> {
    Ok(SigSet::empty().thread_set_mask()?)
}

/// Has this process do nothing at a signal, and the program that takes its place by exec(2) the usual thing: a
/// signal that is caught gets its default then, one that is ignored does not (signal(7)).
pub fn catch(signal: Signal) -> io::Result<()> {
    signal_hook::flag::register(signal as i32, Arc::default()).map(drop)
}

/// The same for all signals that the caller has ignored.
fn catch_ignored() -> io::Result<()> {
    let ignored: Vec<Signal> = Signal::iterator().filter(|signal| is_ignored(*signal)).collect();
    ignored
        .into_iter()
        .filter(|signal| !signal_hook::consts::FORBIDDEN.contains(&(*signal as i32)))
        // Rust's runtime ignores it, and gives it back itself.
        .filter(|signal| *signal != Signal::SIGPIPE)
        .try_for_each(catch)
}

/// Has SIGCHLD its default again after exec(2).
pub fn catch_sigchld() -> io::Result<()> {
    catch(Signal::SIGCHLD)
}

/// Keeps Ctrl-Z, and a terminal that lets nobody in the background write (`stty tostop`), from stopping this
/// thread's process, and libxl's helper, while it lives. Threads that are started meanwhile inherit it.
///
/// Blocked and not caught: only then the kernel lets us write to such a terminal (drivers/tty/tty_jobctrl.c,
/// `__tty_check_change`).
#[derive(Debug)]
pub struct Unstoppable {
    before: SigSet,
}

impl Unstoppable {
    /// From now on.
    pub fn new() -> io::Result<Unstoppable> {
        let before = SigSet::thread_get_mask()?;
        STOPS.into_iter().collect::<SigSet>().thread_block()?;
        Ok(Unstoppable { before })
    }
}

impl Drop for Unstoppable {
    /// What was asked for meanwhile happens now.
    fn drop(&mut self) {
        // It was valid before.
        let _ = self.before.thread_set_mask();
    }
}

/// Does something with all signals blocked, such as starting a process, which inherits that.
pub fn undisturbed<T>(work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let before = SigSet::thread_get_mask()?;
    SigSet::all().thread_block()?;
    let result = work();
    before.thread_set_mask()?;
    result
}

/// Raises our own limits to those of the first process. A file must not end where a shell's `ulimit -f` says.
pub fn raise_limits() -> Result<(), String> {
    for (resource, (soft, hard)) in first_limits() {
        let Ok((now, at_most)) = getrlimit(resource) else { continue };
        limit(resource, now.max(soft), at_most.max(hard));
    }
    match getrlimit(Resource::RLIMIT_FSIZE) {
        Ok((limit, _)) if limit != RLIM_INFINITY => {
            Err(format!("no file may get longer than {limit} bytes (ulimit -f)"))
        }
        _ => Ok(()),
    }
}

/// Makes this process one that outlives its caller: with the limits of the first process, no niceness, a usual
/// chance of being killed for memory, and in a control group of its own. Signals that end a program do nothing until
/// exec(2).
///
/// Returns why it may yet end with its caller's job, if that is so.
pub fn leave_job() -> io::Result<Option<String>> {
    catch_ignored()?;
    ENDS.into_iter().try_for_each(catch)?;
    unblock_signals()?;
    for (resource, (soft, hard)) in first_limits() {
        limit(resource, soft, hard);
    }
    let _ = setpriority_process(None, 0);
    use_all_processors();
    if let Ok(usual) = fs::read("/proc/1/oom_score_adj") {
        let _ = fs::write("/proc/self/oom_score_adj", usual);
    }
    umask(Mode::S_IWGRP | Mode::S_IWOTH);
    Ok(leave_control_groups())
}

/// As many as the first process may use: what xl starts inherits them for the life of the domain (taskset(1),
/// `CPUAffinity=`).
fn use_all_processors() {
    let mut set = CpuSet::new();
    let status = fs::read_to_string("/proc/1/status").unwrap_or_default();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let allowed = list.map(processors).unwrap_or_default();
    let known = allowed.iter().filter(|number| set.set(**number).is_ok()).count();
    if known > 0 {
        // Inside of a cpuset, fewer.
        let _ = sched_setaffinity(Pid::from_raw(0), &set);
    }
}

/// `0-3,7`.
fn processors(list: &str) -> Vec<usize> {
    let range = |part: &str| -> Option<Vec<usize>> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        (last < CpuSet::count()).then(|| (first..=last).collect())
    };
    list.trim().split(',').filter_map(range).flatten().collect()
}

/// Sets a limit; without the right to raise the hard one, as far as that allows.
fn limit(resource: Resource, soft: u64, hard: u64) {
    let set = setrlimit(resource, soft, hard);
    if let (Err(_), Ok((_, at_most))) = (set, getrlimit(resource)) {
        // What is left are lower limits than the first process has.
        let _ = setrlimit(resource, soft.min(at_most), at_most);
    }
}

/// The limits of the first process: soft and hard.
fn first_limits() -> Vec<(Resource, (u64, u64))> {
    parse_limits(&fs::read_to_string("/proc/1/limits").unwrap_or_default())
}

fn parse_limits(text: &str) -> Vec<(Resource, (u64, u64))> {
    let number = |word: &str| match word {
        "unlimited" => Some(RLIM_INFINITY),
        word => word.parse().ok(),
    };
    let find = |(name, resource): (&str, Resource)| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let mut words = line.split_whitespace();
        let soft = number(words.next()?)?;
        Some((resource, (soft, number(words.next()?)?)))
    };
    RESOURCES.into_iter().filter_map(find).collect()
}

/// A mounted hierarchy of control groups.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    at: PathBuf,
    /// Version 2; a hierarchy of version 1 has some controllers only, or systemd's names.
    unified: bool,
}

/// Moves this process out of its caller's control groups: into one of its own, or, in version 1, whose groups may
/// need settings first, into the root of each hierarchy. Returns why not, if it could not.
pub fn leave_control_groups() -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let trouble: Vec<String> = hierarchies(&mounts)
        .iter()
        .filter_map(|hierarchy| {
            let why = leave(hierarchy).err()?;
            Some(format!("{}: {why}", hierarchy.at.display()))
        })
        .collect();
    (!trouble.is_empty()).then(|| trouble.join(", "))
}

fn leave(hierarchy: &Hierarchy) -> io::Result<()> {
    if hierarchy.unified {
        let own = hierarchy.at.join(GROUP);
        // It may be there.
        let _ = fs::create_dir(&own);
        if enter(&own).is_ok() {
            return Ok(());
        }
    }
    enter(&hierarchy.at)
}

fn enter(group: &Path) -> io::Result<()> {
    // Never a new file: that would be no control group.
    let file = group.join("cgroup.procs");
    let mut file = fs::OpenOptions::new().write(true).open(file)?;
    file.write_all(process::id().to_string().as_bytes())
}

/// From proc_pid_mountinfo(5): the mount point is the fifth word, the type of the file system the first one behind
/// ` - `.
fn hierarchies(mounts: &str) -> Vec<Hierarchy> {
    let parse = |line: &str| {
        let (mount, kind) = line.split_once(" - ")?;
        let unified = match kind.split(' ').next()? {
            "cgroup2" => true,
            "cgroup" => false,
            _ => return None,
        };
        let at = mount.split(' ').nth(4)?.replace("\\040", " ").into();
        Some(Hierarchy { at, unified })
    };
    mounts.lines().filter_map(parse).collect()
}

/// Whether standard output is /dev/null. Rust's runtime puts that where a caller has closed it.
pub fn stdout_is_nowhere() -> bool {
    let null = makedev(1, 3);
    fs::metadata("/proc/self/fd/1").is_ok_and(|meta| meta.rdev() == null)
}

/// What a process that took another one's place is called in ps(1), by the first word of its command line.
pub fn call_by(name: &OsStr) {
    let name = Path::new(name).file_name().unwrap_or(name).as_encoded_bytes();
    if let Ok(name) = CString::new(name) {
        // Only a name.
        let _ = prctl::set_name(&name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_processors_is_read() {
        assert_eq!(processors("\t0-3,7\n"), [0, 1, 2, 3, 7]);
        assert_eq!(processors("5"), [5]);
        assert_eq!(processors("x,3-,0-99999999"), Vec::<usize>::new());
    }

    #[test]
    fn ignored_signals_are_read() {
        let status = "Name:\tx\nSigBlk:\t0000000000000001\nSigIgn:\t0000000000011003\nSigCgt:\t0\n";
        assert_eq!(ignored(status), 0x11003);
        assert_eq!(ignored(""), 0);
        assert!(is_ignored(Signal::SIGPIPE), "Rust's runtime ignores it");
        assert!(!is_ignored(Signal::SIGSEGV));
    }

    #[test]
    fn limits_are_read() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max file size             unlimited            unlimited            bytes     \n\
                    Max open files            1024                 524288               files     \n\
                    Max processes             broken               1                    processes \n";
        let limits = parse_limits(text);
        assert_eq!(limits.len(), 2, "{limits:?}");
        assert!(limits.contains(&(Resource::RLIMIT_FSIZE, (RLIM_INFINITY, RLIM_INFINITY))));
        assert!(limits.contains(&(Resource::RLIMIT_NOFILE, (1024, 524_288))));
    }

    #[test]
    fn hierarchies_of_both_versions_are_found() {
        let mounts = "24 30 0:22 / /proc rw - proc proc rw\n\
                      30 24 0:26 / /sys/fs/cgroup rw shared:4 - tmpfs tmpfs rw\n\
                      31 30 0:27 / /sys/fs/cgroup/unified rw shared:5 - cgroup2 cgroup2 rw\n\
                      32 30 0:28 / /sys/fs/cgroup/a\\040b rw - cgroup cgroup rw,name=systemd\n";
        let found = hierarchies(mounts);
        let at = |path: &str| PathBuf::from(path);
        assert_eq!(
            found,
            [
                Hierarchy { at: at("/sys/fs/cgroup/unified"), unified: true },
                Hierarchy { at: at("/sys/fs/cgroup/a b"), unified: false },
            ]
        );
    }

    #[test]
    fn what_is_no_control_group_is_not_written_to() {
        let directory = tempfile::tempdir().unwrap();
        assert!(enter(directory.path()).is_err());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn stops_wait_until_the_end() {
        let before = SigSet::thread_get_mask().unwrap();
        let unstoppable = Unstoppable::new().unwrap();
        assert!(SigSet::thread_get_mask().unwrap().contains(Signal::SIGTSTP));
        drop(unstoppable);
        assert_eq!(SigSet::thread_get_mask().unwrap(), before);
    }

    #[test]
    fn nothing_disturbs_the_start_of_a_process() {
        let before = SigSet::thread_get_mask().unwrap();
        let inside = undisturbed(|| Ok(SigSet::thread_get_mask()?)).unwrap();
        assert!(inside.contains(Signal::SIGINT));
        assert_eq!(SigSet::thread_get_mask().unwrap(), before);
    }
}
