//! Looking whether what a revert needs is there. Changes nothing.

mod served;

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc::O_NONBLOCK;
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access};

use self::served::Served;
use crate::disk::chain::FileId;
use crate::disk::qcow2::{Defect, Header};
use crate::domain::Format;
use crate::host::chain;
use crate::host::command;
use crate::host::files;
use crate::host::openers::{self, Opener, Ours};
use crate::host::toolstack::Toolstack;
use crate::need::{Need, Rank, Trouble, What};
use crate::release::{QEMUS, SAVE_HELPER, XEN_TOOLS, XEN_WRAPPER, is_newer};
use crate::tool::{Invocation, Tool};

/// What a directory must have free, in bytes, for what libxl and QEMU write there.
const STATE_ROOM: u64 = 1 << 20;
/// What dom0 never gives away, in KiB (libxl_internal.h, `LIBXL_MIN_DOM0_MEM`).
const MIN_DOM0: u64 = 128 << 10;
/// How xl is configured.
const XL_CONF: &str = "/etc/xen/xl.conf";

/// Where it is looked from.
#[derive(Debug, Clone, Copy)]
pub struct Around<'a> {
    /// The toolstack, where there is one.
    pub toolstack: Option<&'a Toolstack>,
    /// The domain that will be destroyed before anything of this is needed, if it runs: what it uses
    /// does not count.
    pub gone: Option<u32>,
    /// The domain of the snapshot, if it runs, whether it will be destroyed or not.
    pub same: Option<u32>,
}

/// What is missing of what is needed, and what could not be looked at without a toolstack.
pub fn troubles(needs: &[Need], around: Around<'_>) -> (Vec<Trouble>, Vec<String>) {
    let mut found = Vec::new();
    let mut unseen = Vec::new();
    let used = Used::of(needs, around);
    for need in needs {
        let Need { about, what } = need;
        match why(what, around, &used) {
            Answer::There => {}
            Answer::Unseen(what) if unseen.contains(&what) => {}
            Answer::Unseen(what) => unseen.push(what),
            Answer::Trouble(rank, why) => {
                let hint = what.remedy(rank);
                found.push(Trouble { rank, about: about.clone(), why, hint });
            }
        }
    }
    (found, unseen)
}

/// Whether one thing is there.
enum Answer {
    There,
    Trouble(Rank, String),
    /// It takes the toolstack to know.
    Unseen(String),
}

impl Answer {
    fn missing(why: Option<String>) -> Answer {
        why.map_or(Answer::There, |why| Answer::Trouble(Rank::Missing, why))
    }

    fn unseen(what: &str) -> Answer {
        Answer::Unseen(format!("{what}: this needs a running Xen"))
    }

    fn busy(why: Option<String>) -> Answer {
        why.map_or(Answer::There, |why| Answer::Trouble(Rank::Busy, why))
    }
}

/// Who uses the files and ports that are needed: looked for once for all of them.
struct Used {
    files: Vec<(FileId, Opener)>,
    ports: Vec<(u16, String)>,
}

impl Used {
    fn of(needs: &[Need], around: Around<'_>) -> Used {
        let ours = ours(around);
        let files: Vec<FileId> = needs
            .iter()
            .filter_map(|need| match &need.what {
                What::Alone(path) | What::Still(path) | What::Inside(path) => files::identity(path),
                _ => None,
            })
            .collect();
        let ports: Vec<u16> = needs
            .iter()
            .filter_map(|need| match need.what {
                What::Port { number, .. } => Some(number),
                _ => None,
            })
            .collect();
        Used { files: openers::of_files(&files, &ours), ports: openers::of_ports(&ports, &ours) }
    }
}

/// What ends with the domain that will be destroyed.
fn ours(around: Around<'_>) -> Ours {
    let (Some(toolstack), Some(domid)) = (around.toolstack, around.gone) else {
        return Ours::default();
    };
    // What cannot be read is taken for somebody else's, and told.
    let qemu = toolstack.qemu_pid(domid).ok().flatten();
    Ours {
        processes: qemu.into_iter().collect(),
        loops: toolstack.loops(domid).unwrap_or_default(),
    }
}

fn why(what: &What, around: Around<'_>, used: &Used) -> Answer {
    match what {
        What::Alone(path) => alone(path, around, used),
        What::Still(path) => written(path, user(path, used, around, &|opener| opener.writes)),
        What::Inside(path) => {
            let another = |opener: &Opener| opener.domid.is_none() || opener.domid != around.same;
            let writes = |opener: &Opener| opener.writes && another(opener);
            written(path, user(path, used, around, &writes))
        }
        What::Usable { path, writable } => {
            Answer::missing(usable(path, *writable).or_else(|| frozen(path, *writable)))
        }
        What::Image { path, format, writable } => Answer::missing(
            usable(path, *writable)
                .or_else(|| frozen(path, *writable))
                .or_else(|| unopenable(path, *format, *writable)),
        ),
        What::Renames(path) => Answer::missing(renames(path)),
        What::State(path) => Answer::missing(state(path)),
        What::Program(path) => Answer::missing(program(path)),
        What::Replaced(path) => {
            Answer::missing(files::pinned(path).map(|flag| format!("{} is {flag}", path.display())))
        }
        What::Bridge(name) => Answer::missing(bridge(name)),
        What::Device(name) => Answer::missing((!is_device(name)).then(|| no_bridge(name))),
        What::DeviceName(name) => Answer::busy(named(name, around)),
        What::Address { purpose, ip } => Answer::missing(address(purpose, *ip)),
        What::Processors { pool, of_each } => processors(pool.as_deref(), of_each, around),
        What::Backend(name) => backend(name, around),
        What::Pool(name) => pool(name, around),
        What::Pci(device) => pci(device, around),
        What::Port { purpose, number } => {
            let holder = used.ports.iter().find(|(port, _)| port == number);
            let why =
                |(_, who): &(u16, String)| format!("{who} has port {number} for its {purpose}");
            Answer::busy(holder.map(why))
        }
        What::Memory { guest, overhead } => memory((*guest, *overhead), around),
        What::FreeMemory(kib) => free_memory(*kib, around),
        What::Xen(version) => xen(version, around),
        // Without Xen there is no QEMU of Xen's either.
        What::Emulator => Answer::missing(around.toolstack.and_then(|_| emulator())),
        What::Tools => tools(around),
        What::Consoles => Answer::missing(around.toolstack.and_then(|_| consoles())),
        What::Usb { bus, number } => Answer::missing(usb(*bus, *number)),
        What::Served(format) => match served::ask(*format) {
            Served::Yes => Answer::There,
            Served::No(why) => Answer::Trouble(Rank::Missing, why),
            Served::Unknown(what) => Answer::Unseen(what),
        },
    }
}

/// Who has a file open, of those who matter.
fn user(
    path: &Path,
    used: &Used,
    around: Around<'_>,
    matters: &dyn Fn(&Opener) -> bool,
) -> Option<String> {
    let id = files::identity(path)?;
    let (_, opener) = used.files.iter().find(|(file, opener)| *file == id && matters(opener))?;
    let name = opener.domid.map(|domid| {
        let name =
            around.toolstack.and_then(|toolstack| toolstack.domain_name(domid).ok().flatten());
        name.unwrap_or_else(|| domid.to_string())
    });
    Some(match name {
        Some(name) => format!("the QEMU of domain {name}, {},", opener.who),
        None => opener.who.clone(),
    })
}

fn written(path: &Path, writer: Option<String>) -> Answer {
    Answer::busy(writer.map(|who| format!("{who} may write to {}", path.display())))
}

fn alone(path: &Path, around: Around<'_>, used: &Used) -> Answer {
    if let Some(why) = usable(path, true) {
        return Answer::Trouble(Rank::Missing, why);
    }
    if let Some(who) = user(path, used, around, &|_| true) {
        return Answer::Trouble(Rank::Busy, format!("{who} has it open"));
    }
    // Its own QEMU may have locked it.
    let elsewhere = around.gone.is_none() && openers::is_locked(path);
    Answer::busy(elsewhere.then(|| "it is locked by a QEMU on another host".to_owned()))
}

/// Why a file or device cannot be opened, if it cannot. Rehearsed for files; devices are not opened for
/// writing, because udev looks at each anew that is closed again.
fn usable(path: &Path, writable: bool) -> Option<String> {
    let shown = path.display();
    let told = |error: io::Error| format!("{shown}: {error}");
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) => return Some(told(error)),
    };
    let kind = meta.file_type();
    if kind.is_block_device() {
        let number = openers::device_number((meta.rdev(), 0));
        let read_only =
            fs::read(format!("/sys/dev/block/{number}/ro")).is_ok_and(|ro| ro == b"1\n");
        return (read_only && writable).then(|| format!("the device {shown} is read-only"));
    }
    if !kind.is_file() {
        // A directory that is shared, for one.
        return access(path, AccessFlags::R_OK).err().map(|error| told(error.into()));
    }
    let open = File::options().read(true).write(writable).custom_flags(O_NONBLOCK).open(path);
    open.err().map(told)
}

/// Why the restored domain must not write to a file, if so. Root may all the same, but xl-snapshot takes the permission
/// from what other images rest on, and the script of blkback refuses such a file (scripts/block).
fn frozen(path: &Path, writable: bool) -> Option<String> {
    let meta = fs::metadata(path).ok().filter(|meta| writable && meta.is_file())?;
    (meta.mode() & 0o222 == 0).then(|| {
        format!(
            "{} has no write permission, as the base of an overlay: the domain would write into a later snapshot",
            path.display()
        )
    })
}

/// Why QEMU cannot open an image, if it cannot.
fn unopenable(path: &Path, format: Format, writable: bool) -> Option<String> {
    match chain::walk(path, format) {
        Err(why) => Some(why),
        Ok(links) => {
            let header = links.first().and_then(|link| link.header.as_ref());
            let corrupt = writable && header.is_some_and(Header::is_corrupt);
            corrupt.then(|| Defect::Corrupt.why())
        }
    }
}

/// Why files of a directory cannot get other names, if they cannot.
fn renames(path: &Path) -> Option<String> {
    let shown = path.display();
    if let Err(error) = access(path, AccessFlags::W_OK) {
        return Some(format!("the directory {shown}: {}", error.desc()));
    }
    files::fixed(path).map(|flag| format!("the directory {shown} is {flag}"))
}

/// Why nothing can be written in a directory, if so. One that is not there is made by libxl.
fn state(path: &Path) -> Option<String> {
    let shown = path.display();
    let free = match statvfs(path) {
        Ok(free) => free,
        Err(_) => return None,
    };
    if let Err(error) = access(path, AccessFlags::W_OK) {
        return Some(format!("the directory {shown}, in which a revert writes: {}", error.desc()));
    }
    let bytes = free.blocks_available().saturating_mul(free.fragment_size());
    // A file system without inodes tells 0 of 0.
    let inodes = free.files() == 0 || free.files_available() > 0;
    (bytes < STATE_ROOM || !inodes).then(|| {
        let what = if inodes { "space" } else { "inodes" };
        format!("the file system of {shown}, in which a revert writes, has no {what} left")
    })
}

/// libxl has the path of its own build. A QEMU of the system's does not help Debian's.
fn emulator() -> Option<String> {
    if Path::new(XEN_WRAPPER).exists() {
        return program(Path::new(QEMUS[0]));
    }
    match command::find(Tool::Qemu) {
        Ok(path) => program(&path),
        Err(_) => Some(format!("the QEMU that Xen starts is not there: {}", QEMUS.join(", "))),
    }
}

/// Debian has a directory for each release, and removes that of the one that runs after an upgrade.
fn tools(around: Around<'_>) -> Answer {
    let here = around.toolstack.and_then(|toolstack| toolstack.version().ok());
    let Some(here) = here else { return Answer::There };
    let own = PathBuf::from(format!("/usr/lib/xen-{}.{}/bin", here.major, here.minor));
    let directory = match Path::new(XEN_WRAPPER).exists() {
        true => Some(own),
        // Where there is one only, xl has it from its own build.
        false => XEN_TOOLS.iter().map(PathBuf::from).find(|path| path.join(SAVE_HELPER).exists()),
    };
    let Some(directory) = directory else { return Answer::There };
    let needed = ["xl", SAVE_HELPER].map(|name| directory.join(name));
    // Elsewhere xl itself is among the system's programs.
    let mut needed = needed.iter().skip(usize::from(!Path::new(XEN_WRAPPER).exists()));
    Answer::missing(needed.find_map(|path| program(path)).or_else(xl))
}

/// xl may be there and do nothing: each call reads its configuration first (xl.c, `parse_global_config`).
fn xl() -> Option<String> {
    let call = Invocation::new(Tool::Xl, ["domname", "0"]);
    command::run(&call).err().map(|error| format!("xl does not work: {error}"))
}

/// Without it, libxl waits ten seconds for the console of the new domain, and gives up (libxl_create.c,
/// `console_xswait_callback`).
fn consoles() -> Option<String> {
    let runs = |path: PathBuf| {
        // Anybody may call a process so.
        let of_root = fs::metadata(&path).is_ok_and(|meta| meta.uid() == 0);
        of_root && fs::read(path.join("comm")).is_ok_and(|name| name == b"xenconsoled\n")
    };
    let mut processes = fs::read_dir("/proc").ok()?.flatten();
    let there = processes.any(|entry| runs(entry.path()));
    (!there).then(|| "no xenconsoled runs in dom0".to_owned())
}

/// The numbers of a USB device are those that `usbdev=['hostbus=..., hostaddr=...']` has.
fn usb(bus: u64, number: u64) -> Option<String> {
    let is = |path: &Path, name: &str, wanted: u64| {
        let text = fs::read_to_string(path.join(name)).unwrap_or_default();
        text.trim().parse() == Ok(wanted)
    };
    let devices = fs::read_dir("/sys/bus/usb/devices").into_iter().flatten().flatten();
    let mut devices = devices.map(|entry| entry.path());
    let there = devices.any(|path| is(&path, "busnum", bus) && is(&path, "devnum", number));
    (!there).then(|| format!("the USB device {number} of bus {bus} is not there"))
}

fn program(path: &Path) -> Option<String> {
    let shown = path.display();
    match (fs::metadata(path), access(path, AccessFlags::X_OK)) {
        (Ok(meta), Ok(())) if meta.is_file() => None,
        (Ok(_), _) => Some(format!("{shown} is no program that can be started")),
        (Err(error), _) => Some(format!("{shown}: {error}")),
    }
}

/// An old configuration names `xenbr0` where the bridge is called eth0 (scripts/vif-bridge).
fn bridge(name: &str) -> Option<String> {
    let is = |name: &str| Path::new(&format!("/sys/class/net/{name}/bridge")).exists();
    let old_style = name.strip_prefix("xenbr").map(|number| format!("eth{number}"));
    match () {
        () if is(name) => None,
        () if is_device(name) => {
            Some(format!("{name}, the bridge of its network, is a network device of another kind"))
        }
        () if old_style.is_some_and(|name| is(&name)) => None,
        () => Some(no_bridge(name)),
    }
}

fn is_device(name: &str) -> bool {
    Path::new(&format!("/sys/class/net/{name}")).exists()
}

fn no_bridge(name: &str) -> String {
    format!("the bridge {name} of its network is not there")
}

/// The domain that will be destroyed takes its devices with it.
fn named(name: &str, around: Around<'_>) -> Option<String> {
    let own = || {
        let (toolstack, domid) = (around.toolstack?, around.gone?);
        let keys = toolstack.below(&format!("/local/domain/0/backend/vif/{domid}")).ok()?;
        let card = name.strip_suffix("-emu").unwrap_or(name);
        Some(keys.iter().any(|(key, value)| key.ends_with("/vifname") && value == card))
    };
    let taken = is_device(name) && own() != Some(true);
    taken.then(|| format!("there is a network device called {name} in dom0 already"))
}

/// Tried, because that is what counts: an address can also be that of a network (`ip route add local`).
fn address(purpose: &str, ip: IpAddr) -> Option<String> {
    match UdpSocket::bind((ip, 0)) {
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
            Some(format!("its {purpose} server listens on {ip}, which is no address of this host"))
        }
        // Of other troubles QEMU has its own idea.
        _ => None,
    }
}

fn processors(pool: Option<&str>, of_each: &[Vec<u32>], around: Around<'_>) -> Answer {
    let shown = pool.unwrap_or("Pool-0");
    let Some(toolstack) = around.toolstack else {
        return Answer::unseen(&format!("which processors the pool {shown} has"));
    };
    let pools = toolstack.pools().unwrap_or_default();
    let number = pools.iter().find(|(number, name)| number == shown || name == shown);
    // One that is not there is told of by itself.
    let Some(number) = number.and_then(|(number, _)| number.parse().ok()) else {
        return Answer::There;
    };
    match toolstack.pool_processors(number) {
        Err(error) => Answer::Trouble(Rank::Missing, error.to_string()),
        Ok(has) => Answer::missing(unbound(shown, of_each, &has)),
    }
}

fn unbound(pool: &str, of_each: &[Vec<u32>], has: &[u32]) -> Option<String> {
    let list = |numbers: &[u32], last: &str| {
        let words: Vec<_> = numbers.iter().map(ToString::to_string).collect();
        words.join(last)
    };
    let bound = of_each.iter().find(|bound| !bound.iter().any(|number| has.contains(number)))?;
    let has = match has {
        [] => "none".to_owned(),
        has => format!("only {}", list(has, ", ")),
    };
    Some(format!(
        "it is bound to processor {} (cpus=), and the pool {pool} has {has}",
        list(bound, " or ")
    ))
}

fn backend(name: &str, around: Around<'_>) -> Answer {
    let Some(toolstack) = around.toolstack else {
        return Answer::unseen(&format!("whether domain {name}, which serves a device, runs"));
    };
    let runs = toolstack.domains().unwrap_or_default().iter().any(|info| {
        let its = toolstack.domain_name(info.domid).ok().flatten();
        !info.dying && (its.as_deref() == Some(name) || name == info.domid.to_string())
    });
    Answer::missing(
        (!runs).then(|| format!("domain {name}, which serves one of its devices, does not run")),
    )
}

fn pool(name: &str, around: Around<'_>) -> Answer {
    let Some(toolstack) = around.toolstack else {
        return Answer::unseen(&format!("whether the processor pool {name} is there"));
    };
    match toolstack.pools() {
        Err(error) => Answer::Trouble(Rank::Missing, format!("the processor pools: {error}")),
        Ok(pools) => {
            let there = pools.iter().any(|(number, its)| number == name || its == name);
            Answer::missing((!there).then(|| format!("the processor pool {name} is not there")))
        }
    }
}

fn pci(device: &str, around: Around<'_>) -> Answer {
    let path = format!("/sys/bus/pci/devices/{device}");
    if !Path::new(&path).exists() {
        let why = format!("the PCI device {device} is not there");
        return Answer::Trouble(Rank::Missing, why);
    }
    // While the domain runs, the device is its own.
    let driver = fs::read_link(format!("{path}/driver")).ok();
    let name = driver.as_deref().and_then(Path::file_name);
    let assignable = name.is_some_and(|name| name == "pciback" || name == "xen-pciback");
    let why = format!("the PCI device {device} is not assignable to a domain");
    Answer::missing((around.gone.is_none() && !assignable).then_some(why))
}

/// Whether this Xen reads what that one has written.
fn xen(version: &str, around: Around<'_>) -> Answer {
    let Some(toolstack) = around.toolstack else {
        return Answer::unseen(&format!("whether this host's Xen reads what Xen {version} saved"));
    };
    match toolstack.version().map(|here| here.to_string()) {
        Ok(here) => Answer::missing(is_newer(version, &here).then(|| {
            format!("its memory was saved by Xen {version}, and the older Xen {here} runs here")
        })),
        Err(error) => Answer::Trouble(Rank::Missing, format!("the version of Xen: {error}")),
    }
}

/// What is free, what the domain gives back, and what xl may take from dom0.
fn memory((guest, overhead): (u64, u64), around: Around<'_>) -> Answer {
    let Some(toolstack) = around.toolstack else {
        return Answer::unseen("whether there is enough free memory");
    };
    let Ok(host) = toolstack.host() else { return Answer::There };
    let of = |domid| toolstack.domain_info(domid).ok().flatten().map(|info| info.current_memkb);
    let back = around.gone.and_then(of);
    let needed = needed(guest, overhead, back.is_some());
    let back = back.unwrap_or(0);
    let balloons =
        autoballoons(&fs::read_to_string(XL_CONF).unwrap_or_default(), &host.commandline);
    let taken = of(0).filter(|_| balloons).map_or(0, |dom0| dom0.saturating_sub(MIN_DOM0));
    let free = host.free_kib.saturating_add(back).saturating_add(taken);
    Answer::busy((free < needed).then(|| {
        format!(
            "it takes {} MiB of memory, and {} MiB would be free",
            needed.div_ceil(1024),
            free / 1024
        )
    }))
}

/// What has to be free. What Xen has taken for the domain besides its memory comes back with it: Xen does not say how
/// much that is, but a restore takes the same again.
fn needed(guest: u64, overhead: u64, gives_back: bool) -> u64 {
    if gives_back { guest } else { guest.saturating_add(overhead) }
}

/// What is free, while the domain keeps its own.
fn free_memory(needed: u64, around: Around<'_>) -> Answer {
    let Some(toolstack) = around.toolstack else {
        return Answer::unseen("whether there is enough free memory");
    };
    match toolstack.host() {
        Ok(host) => Answer::busy(short_of_memory(needed, host.free_kib)),
        Err(why) => {
            Answer::Trouble(Rank::Busy, format!("how much memory is free is not known: {why}"))
        }
    }
}

fn short_of_memory(needed: u64, free: u64) -> Option<String> {
    let mib = |kib: u64| kib.div_ceil(1024);
    (free < needed).then(|| {
        format!(
            "beside the running domain it takes {} MiB of memory, and {} MiB are free: {} MiB are missing",
            mib(needed),
            free / 1024,
            mib(needed - free)
        )
    })
}

/// Whether xl takes memory from dom0 for a new domain (xl.conf(5), `autoballoon`: by default only where
/// Xen was not told `dom0_mem`).
fn autoballoons(xl_conf: &str, commandline: &str) -> bool {
    let said = xl_conf.lines().filter_map(|line| {
        let (key, value) = line.split_once('=')?;
        (key.trim() == "autoballoon").then(|| value.trim().trim_matches(['"', '\'']).to_owned())
    });
    match said.fold(None, |_, value| Some(value)).as_deref() {
        Some("off" | "0") => false,
        Some("on" | "1") => true,
        _ => !commandline.split_whitespace().any(|word| word.starts_with("dom0_mem=")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const NOWHERE: Around<'_> = Around { toolstack: None, gone: None, same: None };

    fn told(what: What) -> Option<String> {
        let need = Need { about: "It".into(), what };
        let (troubles, _) = troubles(&[need], NOWHERE);
        troubles.first().map(ToString::to_string)
    }

    #[track_caller]
    fn expect(what: What, words: &str) {
        let told = told(what).unwrap_or_default();
        assert!(told.contains(words), "{words:?} in {told:?}");
    }

    #[test]
    fn what_is_there_is_no_trouble_and_what_is_not_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        let usable = |writable| What::Usable { path: path.clone(), writable };
        expect(usable(false), "No such file");
        expect(What::Alone(path.clone()), "No such file");
        expect(What::Program(path.clone()), "No such file");
        fs::write(&path, "a").unwrap();
        for what in [usable(true), What::Alone(path.clone()), What::Still(path.clone())] {
            assert_eq!(told(what), None);
        }
        expect(What::Program(path.clone()), "no program that can be started");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(told(What::Program(path.clone())), None);
        expect(What::Program(directory.path().into()), "no program");
        assert_eq!(told(What::Usable { path: directory.path().into(), writable: false }), None);
        assert_eq!(told(What::Renames(directory.path().into())), None);
        assert_eq!(told(What::State(directory.path().into())), None);
        // The base of an overlay: root could write to it all the same.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
        expect(usable(true), "has no write permission, as the base of an overlay");
        for what in [usable(false), What::Alone(path.clone())] {
            assert_eq!(told(what), None);
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(usb(250, 250).unwrap().contains("device 250 of bus 250"));
        let image = What::Image { path: path.clone(), format: Format::Qcow2, writable: true };
        expect(image, "it is not a qcow2 file");
        expect(What::Bridge("no-such-bridge".into()), "bridge no-such-bridge");
        expect(What::Device("no-such-bridge".into()), "bridge no-such-bridge");
        // A script would try to add the guest's card to it.
        expect(
            What::Bridge("lo".into()),
            "lo, the bridge of its network, is a network device of another kind",
        );
        assert_eq!(told(What::Device("lo".into())), None);
        expect(What::DeviceName("lo".into()), "a network device called lo in dom0 already");
        assert_eq!(told(What::DeviceName("no-such-device".into())), None);
        let address = |ip: &str| What::Address { purpose: "VNC", ip: ip.parse().unwrap() };
        // For documentation (RFC 5737).
        expect(address("192.0.2.7"), "listens on 192.0.2.7, which is no address of this host");
        for ip in ["127.0.0.1", "0.0.0.0"] {
            assert_eq!(told(address(ip)), None);
        }
        expect(What::Pci("ffff:00:00.0".into()), "is not there");
    }

    #[test]
    fn a_guest_is_bound_to_processors_that_its_pool_has() {
        assert_eq!(unbound("fast", &[vec![1], vec![2, 3]], &[1, 3]), None);
        assert_eq!(unbound("fast", &[], &[]), None);
        let why = unbound("fast", &[vec![0, 1], vec![2, 3]], &[0, 1]).unwrap();
        assert_eq!(why, "it is bound to processor 2 or 3 (cpus=), and the pool fast has only 0, 1");
        let why = unbound("fast", &[vec![1]], &[]).unwrap();
        assert_eq!(why, "it is bound to processor 1 (cpus=), and the pool fast has none");
    }

    #[test]
    fn what_takes_the_toolstack_is_said_not_to_be_known() {
        let needs = [
            What::Memory { guest: 1, overhead: 1 },
            What::Pool("p".into()),
            What::Backend("d".into()),
            What::Xen("4.20.1".into()),
        ];
        let needs = needs.map(|what| Need { about: "It".into(), what });
        let (troubles, unseen) = troubles(&needs, NOWHERE);
        assert_eq!((troubles.len(), unseen.len()), (0, 4));
    }

    #[test]
    fn a_file_that_somebody_writes_to_is_not_still() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        fs::write(&path, "a").unwrap();
        let opener = |writes| Opener { who: "dd (process 7)".into(), domid: None, writes };
        let id = files::identity(&path).unwrap();
        let why = |what: &What, writes| {
            let used = Used { files: vec![(id, opener(writes))], ports: Vec::new() };
            match why(what, NOWHERE, &used) {
                Answer::Trouble(rank, why) => Some((rank, why)),
                _ => None,
            }
        };
        let still = What::Still(path.clone());
        assert_eq!(why(&still, false), None);
        assert!(why(&still, true).unwrap().1.contains("dd (process 7) may write to"));
        // The domain's own QEMU writes elsewhere than to what belongs to a snapshot.
        let inside = |domid, same| {
            let opener = Opener { who: "qemu (process 8)".into(), domid, writes: true };
            let used = Used { files: vec![(id, opener)], ports: Vec::new() };
            let around = Around { same, ..NOWHERE };
            matches!(super::why(&What::Inside(path.clone()), around, &used), Answer::There)
        };
        assert!(inside(Some(7), Some(7)));
        assert!(!inside(Some(7), Some(8)) && !inside(Some(7), None) && !inside(None, None));
        let alone = What::Alone(path.clone());
        let told = (Rank::Busy, "dd (process 7) has it open".to_owned());
        assert_eq!(why(&alone, false), Some(told));
    }

    #[test]
    fn a_domain_gives_back_what_xen_took_for_it() {
        assert_eq!(needed(65536, 2048, false), 67584);
        assert_eq!(needed(65536, 2048, true), 65536);
        assert_eq!(needed(u64::MAX, 1, false), u64::MAX);
    }

    #[test]
    fn memory_beside_a_running_domain_has_to_be_free() {
        assert_eq!(short_of_memory(100 << 10, 100 << 10), None);
        let why = short_of_memory((100 << 10) + 1, 99 << 10).unwrap();
        assert!(why.contains("it takes 101 MiB of memory, and 99 MiB are free: 2 MiB are missing"));
        assert_eq!(
            What::Memory { guest: 5, overhead: 2 }.without_ballooning(),
            What::FreeMemory(7)
        );
        let bridge = || What::Bridge("xenbr0".into());
        assert_eq!(bridge().without_ballooning(), bridge());
    }

    #[test]
    fn when_xl_takes_memory_from_dom0() {
        for (conf, line, expected) in [
            ("", "", true),
            ("", "console=com1 dom0_mem=2G,max:2G", false),
            ("autoballoon=\"off\"\n", "", false),
            ("#autoballoon=0\nautoballoon = 1\n", "dom0_mem=1G", true),
            ("autoballoon=\"auto\"", "", true),
        ] {
            assert_eq!(autoballoons(conf, line), expected, "{conf} {line}");
        }
    }
}
