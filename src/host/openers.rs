//! Who has files, devices and ports open: processes, the kernel's loop devices, swap, mounts and what
//! stands on a device. One pass over /proc for all that is asked.

use std::fs;
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::unistd::getpid;
use rustix::fs::{AtFlags, CWD, StatxFlags, makedev, statx};

use crate::disk::chain::FileId;
use crate::host::files::{self, identities};
use crate::host::process;
use crate::tool::Tool;

/// A program or device that has something open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opener {
    /// For people: `qemu-nbd (process 123)`.
    pub who: String,
    /// If it is a domain's QEMU, the number of the domain.
    pub domid: Option<u32>,
    /// Whether it may write.
    pub writes: bool,
}

/// Those whose files do not count, because they end before anything is rewritten.
#[derive(Debug, Clone, Default)]
pub struct Ours {
    /// Processes: the QEMU of the domain that will be destroyed.
    pub processes: Vec<i32>,
    /// Loop devices that serve its disks, as `loop0`.
    pub loops: Vec<String>,
}

/// Who has each of the files or devices open, but for `ours`.
pub fn of_files(wanted: &[FileId], ours: &Ours) -> Vec<(FileId, Opener)> {
    if wanted.is_empty() {
        return Vec::new();
    }
    let mut found = Vec::new();
    each_descriptor(ours, &mut |pid, descriptor, target| {
        let Some(id) = wanted_file(wanted, descriptor, target) else { return };
        let flags = flags_in(&fs::read_to_string(descriptor.replace("/fd/", "/fdinfo/")).ok());
        // Opened for its path alone, it hinders nobody.
        if flags & libc::O_PATH == 0 {
            let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
            let (who, domid) = name(pid);
            found.push((id, Opener { who, domid, writes }));
        }
    });
    // A process may have it open several times.
    found.sort_by(|one, other| {
        (one.0, &one.1.who, other.1.writes).cmp(&(other.0, &other.1.who, one.1.writes))
    });
    found.dedup_by(|one, other| one.0 == other.0 && one.1.who == other.1.who);
    found.extend(in_kernel(wanted, ours));
    found
}

/// The files and devices that a process has open for writing.
pub fn written_by(pid: i32) -> Vec<FileId> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let written = descriptors.filter_map(|descriptor| {
        let path = format!("/proc/{pid}/fd/{}", descriptor.file_name().to_string_lossy());
        let target = fs::read_link(&path).ok()?;
        let flags = flags_in(&fs::read_to_string(path.replace("/fd/", "/fdinfo/")).ok());
        let writes = flags & libc::O_PATH == 0 && flags & libc::O_ACCMODE != libc::O_RDONLY;
        let is_file = target.as_os_str().as_bytes().starts_with(b"/");
        if writes && is_file { opened(&path) } else { None }
    });
    written.collect()
}

/// Whether a process has the other side of the terminal `/dev/pts/N`. The kernel says which one that is
/// (`pty_show_fdinfo`, drivers/tty/pty.c).
pub fn holds_terminal(pid: i32, terminal: &Path) -> bool {
    let number = terminal.strip_prefix("/dev/pts").ok().and_then(Path::to_str);
    let Some(number) = number.and_then(|number| number.parse::<u32>().ok()) else { return false };
    let descriptors = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
    descriptors
        .filter_map(|descriptor| fs::read_to_string(descriptor.path()).ok())
        .any(|info| terminal_in(&info) == Some(number))
}

fn terminal_in(fdinfo: &str) -> Option<u32> {
    fdinfo.lines().find_map(|line| line.strip_prefix("tty-index:")?.trim().parse().ok())
}

/// A program that listens on a TCP port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    pub port: u16,
    /// The address of this host's on which it listens.
    pub ip: IpAddr,
    /// For people, as [`Opener::who`].
    pub who: String,
}

impl Listener {
    /// Whether nobody else can listen on the port at that address; `None` if it is not known which one.
    pub fn overlaps(&self, ip: Option<IpAddr>) -> bool {
        let own = self.ip.to_canonical();
        let same = |ip: IpAddr| {
            let ip = ip.to_canonical();
            match (own.is_unspecified(), ip.is_unspecified()) {
                // `::` includes IPv4, unless told otherwise.
                (true, _) if own.is_ipv6() => true,
                (_, true) if ip.is_ipv6() => true,
                (false, false) => ip == own,
                _ => own.is_ipv4() == ip.is_ipv4(),
            }
        };
        ip.is_none_or(same)
    }
}

/// Who listens on each of the TCP ports, but for `ours`.
pub fn of_ports(wanted: &[u16], ours: &Ours) -> Vec<Listener> {
    if wanted.is_empty() {
        return Vec::new();
    }
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let tables = tables.map(|table| fs::read_to_string(table).unwrap_or_default());
    let listening: Vec<(IpAddr, u16, u64)> = tables
        .iter()
        .flat_map(|table| table.lines().filter_map(listener))
        .filter(|(_, port, _)| wanted.contains(port))
        .collect();
    if listening.is_empty() {
        return Vec::new();
    }
    let mut holders: Vec<(u64, String)> = Vec::new();
    let mut of_ours = Vec::new();
    let mut note = |pid, target: &[u8]| {
        let Some(socket) = socket(target) else { return };
        if listening.iter().any(|(.., inode)| *inode == socket) {
            match ours.processes.contains(&pid) {
                true => of_ours.push(socket),
                false => holders.push((socket, name(pid).0)),
            }
        }
    };
    each_descriptor(&Ours::default(), &mut |pid, _, target| note(pid, target));
    let holder = |inode: u64| holders.iter().find(|(socket, _)| *socket == inode);
    listening
        .iter()
        .filter(|(.., inode)| !of_ours.contains(inode))
        .map(|(ip, port, inode)| {
            let who = holder(*inode).map_or("another program", |(_, who)| who.as_str());
            Listener { port: *port, ip: *ip, who: who.to_owned() }
        })
        .collect()
}

/// Whether somebody is connected to the listening socket at `path` or waits to be
/// accepted (/proc/net/unix: state 3 and 2).
pub fn is_connected(path: &Path) -> bool {
    let table = fs::read(UNIX_SOCKETS).unwrap_or_default();
    table.split(|byte| *byte == b'\n').any(|line| connection(line, path))
}

/// The table of all sockets of the name space (proc_net(5)).
const UNIX_SOCKETS: &str = "/proc/net/unix";

/// A line of it: `Num RefCount Protocol Flags Type St Inode Path`.
fn connection(line: &[u8], path: &Path) -> bool {
    let mut words = line.splitn(8, |byte| *byte == b' ').filter(|word| !word.is_empty());
    let Some(state) = words.nth(5) else { return false };
    matches!(state, b"02" | b"03") && line.ends_with(&[b" ", path.as_os_str().as_bytes()].concat())
}

/// Calls `each` with every descriptor of every other process: its path in /proc, and what it leads to.
fn each_descriptor(ours: &Ours, each: &mut dyn FnMut(i32, &str, &[u8])) {
    let own = getpid().as_raw();
    let Ok(processes) = fs::read_dir("/proc") else { return };
    for process in processes.flatten() {
        let Ok(pid) = process.file_name().to_string_lossy().parse::<i32>() else { continue };
        if pid == own || ours.processes.contains(&pid) {
            continue;
        }
        // A process may end while it is looked at.
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for descriptor in descriptors.flatten() {
            let path = format!("/proc/{pid}/fd/{}", descriptor.file_name().to_string_lossy());
            // The path is not followed: a file system that hangs does not hold us up.
            if let Ok(target) = fs::read_link(&path) {
                each(pid, &path, target.as_os_str().as_bytes());
            }
        }
    }
}

/// Which of the files a descriptor has open, if it is one of them.
fn wanted_file(wanted: &[FileId], descriptor: &str, target: &[u8]) -> Option<FileId> {
    if !target.starts_with(b"/") || target == b"/dev/null" {
        return None;
    }
    // Compared before the file itself is asked, which might be on a file system that hangs. Devices
    // are opened by nodes of which there may be several.
    if !target.starts_with(b"/dev/") {
        let info = fs::read_to_string(descriptor.replace("/fd/", "/fdinfo/")).ok()?;
        // Since Linux 5.14.
        let inode = info.lines().find_map(|line| line.strip_prefix("ino:"));
        let inode = inode.and_then(|inode| inode.trim().parse::<u64>().ok());
        if inode.is_some_and(|inode| !wanted.iter().any(|(_, other)| *other == inode)) {
            return None;
        }
    }
    opened(descriptor).filter(|id| wanted.contains(id))
}

/// Which file or device a descriptor has open.
fn opened(descriptor: &str) -> Option<FileId> {
    let meta = statx(CWD, descriptor, AtFlags::STATX_DONT_SYNC, StatxFlags::BASIC_STATS).ok()?;
    let is_device = u32::from(meta.stx_mode) & libc::S_IFMT == libc::S_IFBLK;
    Some(match is_device {
        true => (makedev(meta.stx_rdev_major, meta.stx_rdev_minor), 0),
        false => (makedev(meta.stx_dev_major, meta.stx_dev_minor), meta.stx_ino),
    })
}

/// The flags with which a file was opened, in octal (proc_pid_fdinfo(5)).
fn flags_in(info: &Option<String>) -> i32 {
    let flags = info.iter().flat_map(|info| info.lines()).find_map(|l| l.strip_prefix("flags:"));
    flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok()).unwrap_or(libc::O_RDWR)
}

/// A line of /proc/net/tcp of a socket that is listened on (state 0A): its address, port and inode.
fn listener(line: &str) -> Option<(IpAddr, u16, u64)> {
    let mut words = line.split_whitespace().skip(1);
    let (ip, port) = words.next()?.rsplit_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let listens = words.nth(1)? == "0A";
    let inode = words.nth(5)?.parse().ok()?;
    Some((address(ip)?, port, inode)).filter(|_| listens)
}

/// An address in /proc/net/tcp or tcp6: each four bytes of it as a number of this machine's.
fn address(text: &str) -> Option<IpAddr> {
    let word = |at: usize| {
        let word = u32::from_str_radix(text.get(at..at + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    match text.len() {
        8 => Some(IpAddr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            Some(IpAddr::from(<[u8; 16]>::try_from(words.concat()).ok()?))
        }
        _ => None,
    }
}

/// The inode of a descriptor that is a socket: `socket:[123]`.
fn socket(target: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(target).ok()?;
    text.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// What serves a disk of a snapshot is named by us, who have started it: it ends with us.
fn name_of_server(pid: i32) -> Option<String> {
    let parent = process::parent(pid)?;
    let (program, _) = program(parent);
    let arguments = fs::read(format!("/proc/{parent}/cmdline")).ok()?;
    let serves = arguments.split(|byte| *byte == 0).nth(1)? == b"serve";
    (serves && program == "xl-snapshot").then(|| format!("xl-snapshot serve (process {parent})"))
}

/// The name of a process, for people.
pub fn name_of(pid: i32) -> String {
    name(pid).0
}

/// The name of a process, and the number of the domain whose QEMU it is.
fn name(pid: i32) -> (String, Option<u32>) {
    let (program, domid) = program(pid);
    let server = (program == Tool::QemuNbd.name()).then(|| name_of_server(pid)).flatten();
    (server.unwrap_or_else(|| format!("{program} (process {pid})")), domid)
}

fn program(pid: i32) -> (String, Option<u32>) {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let domid = domid_of_qemu(&arguments);
    let program = fs::read_link(format!("/proc/{pid}/exe")).ok();
    let program = program
        .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
        .or_else(|| Some(fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim().to_owned()))
        .unwrap_or_else(|| "a program".into());
    (program.trim_end_matches(" (deleted)").to_owned(), domid)
}

/// What libxl starts QEMU with (libxl_dm.c): `-xen-domid N`.
fn domid_of_qemu(arguments: &[u8]) -> Option<u32> {
    let mut words = arguments.split(|byte| *byte == 0);
    words.find(|word| *word == b"-xen-domid")?;
    std::str::from_utf8(words.next()?).ok()?.parse().ok()
}

/// Users that are no processes.
fn in_kernel(wanted: &[FileId], ours: &Ours) -> Vec<(FileId, Opener)> {
    let mut named = Vec::new();
    let loops = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    for device in loops {
        let device = device.file_name().to_string_lossy().into_owned();
        if device.starts_with("loop") && !ours.loops.contains(&device) {
            let of = |what: &str| fs::read(format!("/sys/block/{device}/{what}")).ok();
            let Some(file) = of("loop/backing_file") else { continue };
            let writes = of("ro").is_none_or(|ro| ro.starts_with(b"0"));
            let file = String::from_utf8_lossy(&file).trim_end().to_owned();
            named.push((file, format!("the loop device /dev/{device}"), writes));
        }
    }
    let swap = fs::read_to_string("/proc/swaps").unwrap_or_default();
    for line in swap.lines().skip(1) {
        let file = line.split_whitespace().next().unwrap_or_default().to_owned();
        named.push((file, "dom0, as swap".into(), true));
    }
    let paths: Vec<_> = named.iter().map(|(path, ..)| path.as_ref()).collect::<Vec<&Path>>();
    let ids = identities(&paths);
    let mut found: Vec<_> = named
        .iter()
        .zip(ids)
        .filter_map(|((_, who, writes), id)| {
            let id = id.filter(|id| wanted.contains(id))?;
            Some((id, Opener { who: who.clone(), domid: None, writes: *writes }))
        })
        .collect();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for id in wanted.iter().filter(|(_, inode)| *inode == 0) {
        let number = device_number(*id);
        let mounted = mounts.lines().filter_map(|line| {
            let mut words = line.split(' ').skip(2);
            (words.next()? == number).then(|| words.nth(1))?
        });
        let mounted = mounted.map(|at| format!("a mount at {at}"));
        let holders = fs::read_dir(format!("/sys/dev/block/{number}/holders")).into_iter();
        let holders = holders.flatten().flatten().map(|holder| {
            let holder = holder.file_name().to_string_lossy().into_owned();
            let name = fs::read_to_string(format!("/sys/block/{holder}/dm/name"));
            format!("the device {}", name.map_or(holder, |name| name.trim().to_owned()))
        });
        found.extend(
            mounted.chain(holders).map(|who| (*id, Opener { who, domid: None, writes: true })),
        );
    }
    found
}

/// `253:7`.
pub fn device_number((device, _): FileId) -> String {
    format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device))
}

/// Whether a QEMU on another host has an image open, over NFS or a cluster file system. The QEMU of a Xen guest is not
/// seen so: libxl starts it with `file.locking=off`.
pub fn is_locked_elsewhere(path: &Path) -> bool {
    if !is_locked(path) {
        return false;
    }
    let Some(id) = files::identity(path) else { return false };
    let mut here = false;
    each_descriptor(&Ours::default(), &mut |_, descriptor, target| {
        here |= wanted_file(&[id], descriptor, target).is_some() && holds_lock(descriptor);
    });
    !here
}

/// Whether a lock is held through this descriptor (proc_pid_fdinfo(5)).
fn holds_lock(descriptor: &str) -> bool {
    let info = fs::read_to_string(descriptor.replace("/fd/", "/fdinfo/")).unwrap_or_default();
    info.lines().any(|line| line.starts_with("lock:"))
}

/// Whether a QEMU, on any host, has locked an image. It locks a byte for each thing it may do and one for each it lets
/// no other do (block/file-posix.c, `RAW_LOCK_PERM_BASE` and `RAW_LOCK_SHARED_BASE`).
fn is_locked(path: &Path) -> bool {
    const FIRST: libc::off_t = 100;
    const BYTES: libc::off_t = 200;
    let Ok(file) = files::open(path) else { return false };
    let mut lock = libc::flock {
        // Whoever has any of them would hinder a writer.
        l_type: i16::try_from(libc::F_WRLCK).unwrap_or_default(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: FIRST,
        l_len: BYTES,
        l_pid: 0,
    };
    let asked = fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock));
    asked.is_ok() && i32::from(lock.l_type) != libc::F_UNLCK
}

#[cfg(test)]
mod tests;
