//! Who watches a domain, what counts as one who saves it, and whether its QEMU can be seen.
//!
//! Every domain that `xl create` or `xl restore` started has an xl process that handles its reboot
//! and its end. Before Xen 4.20 that process takes a suspend for the end of the domain and exits
//! (tools/xl/xl_vmcontrol.c, `handle_domain_death`). Held by SIGSTOP while the domain is suspended
//! it sees nothing of it: its watch looks at the state at the time it runs.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::stat::{all, identify};
use crate::process::Process;
use crate::release::{LOG_DIRECTORY, WAITING};
use crate::restore_first::temporary;

/// How much of the end of a log is read. The line that is looked for is the last but a few of each boot.
const LOG_TAIL: u64 = 4 << 20;
/// How much of a command line is read.
const MAX_ARGUMENTS: u64 = 1 << 20;
/// The kernel's own PID namespace (Linux, include/linux/proc_ns.h, `PROC_PID_INIT_INO`).
const FIRST_NAMESPACE: u64 = 0xEFFF_FFFC;
/// Write permission of group and others.
const OTHERS_WRITE: u32 = 0o022;

/// The xl process of a domain, as far as it can be told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Monitor {
    /// It watches the domain, without a doubt. There is none after `xl create -e`.
    pub found: Option<Process>,
    /// These may watch it, but nothing tells.
    pub unsure: Vec<i32>,
}

/// What is to be known of a domain to find its xl process.
#[derive(Debug, Clone, Copy)]
pub struct Watched<'a> {
    /// Its number.
    pub domid: u32,
    pub name: &'a str,
    /// The numbers of all other domains but dom0.
    pub others: &'a [u32],
}

/// What is seen of one xl process.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Xl {
    process: Process,
    /// The domain it watches, by its own word.
    watches: Option<u32>,
    /// The name of the domain it was started for.
    name: Option<String>,
}

/// Looks for the xl process of a domain. `name_of` tells the name in an xl configuration file.
///
/// It has said "Waiting for domain NAME (domid N) to die [pid P]", the last time after the last reboot: on its
/// standard error, which is its log or, with `-F`, wherever its caller wanted it. A log that was renamed or deleted
/// is still open there.
pub fn xl_monitor(
    watched: Watched<'_>,
    name_of: &dyn Fn(&Path) -> Option<String>,
) -> io::Result<Monitor> {
    let running = all()?.into_iter().filter(|pid| is_roots(*pid) && runs(*pid, "xl"));
    let seen: Vec<Xl> = running.filter_map(|pid| see(pid, name_of)).collect();
    Ok(choose(watched, &seen))
}

/// A process that ends meanwhile is not the one.
fn see(pid: i32, name_of: &dyn Fn(&Path) -> Option<String>) -> Option<Xl> {
    let process = identify(pid)?;
    let watches = [2, 1].iter().find_map(|fd| {
        let path = format!("/proc/{pid}/fd/{fd}");
        // Not to take something from a pipe or a terminal.
        fs::metadata(&path).ok().filter(fs::Metadata::is_file)?;
        watches(&tail(Path::new(&path)).ok()?, pid)
    });
    let arguments = arguments(pid);
    if watches.is_none() && !starts_domains(&arguments) {
        return None;
    }
    let log = fs::read_link(format!("/proc/{pid}/fd/2")).ok();
    let by_log = log.as_deref().and_then(name_in_log);
    let by_file = || {
        let file = fs::canonicalize(format!("/proc/{pid}/cwd")).ok()?.join(cfg_of(&arguments)?);
        name_of(&file)
    };
    let name = by_log.or_else(by_file);
    (identify(pid) == Some(process)).then_some(Xl { process, watches, name })
}

/// Chooses the one that watches the domain.
///
/// Where none says so, one that was started for a domain of this name is it, if there is one such process, and no
/// other domain that it might watch: a domain can be renamed, and its name given to another one.
fn choose(watched: Watched<'_>, seen: &[Xl]) -> Monitor {
    let by_word = |domid: u32| seen.iter().find(|xl| xl.watches == Some(domid));
    if let Some(xl) = by_word(watched.domid) {
        return Monitor { found: Some(xl.process), unsure: Vec::new() };
    }
    let silent = || seen.iter().filter(|xl| xl.watches.is_none());
    // The log of one that `revert --restore-first` has made has the name of before the switch.
    let before = temporary(watched.name);
    let is_its = |name: &str| name == watched.name || name == before;
    let named: Vec<&Xl> = silent().filter(|xl| xl.name.as_deref().is_some_and(is_its)).collect();
    let others_have_theirs = watched.others.iter().all(|domid| by_word(*domid).is_some());
    match named.as_slice() {
        [xl] if others_have_theirs => Monitor { found: Some(xl.process), unsure: Vec::new() },
        _ => Monitor { found: None, unsure: silent().map(|xl| xl.process.pid).collect() },
    }
}

/// The number of the domain in the last line of this process in its log.
fn watches(log: &str, pid: i32) -> Option<u32> {
    let by = format!("to die [pid {pid}]");
    let line =
        log.lines().rfind(|line| line.starts_with(WAITING) && line.trim_end().ends_with(&by))?;
    let (_, behind) = line.rsplit_once("(domid ")?;
    behind.split_once(')')?.0.parse().ok()
}

/// `/var/log/xen/xl-NAME.log`, also when it was rotated (`.1`) or deleted.
fn name_in_log(path: &Path) -> Option<String> {
    let name = path.to_str()?.strip_prefix(LOG_DIRECTORY)?.strip_prefix("xl-")?;
    Some(name.rsplit_once(".log")?.0.to_owned())
}

/// Whether xl's arguments are those of a command that watches the domain it has started. xl takes a beginning of
/// a command's name for it (xl_cmdtable.c, `cmdtable_lookup`).
fn starts_domains(arguments: &[String]) -> bool {
    let command = arguments.iter().skip(1).find(|word| !word.starts_with('-'));
    command.is_some_and(|word| {
        ["create", "restore", "migrate-receive"]
            .iter()
            .any(|name| word.len() > 1 && name.starts_with(word.as_str()))
    })
}

/// The xl configuration file of an `xl create`: named by `-f`, or the first argument that is neither an option nor
/// a setting (xl_vmcontrol.c, `main_create`).
fn cfg_of(arguments: &[String]) -> Option<PathBuf> {
    let mut words = arguments.iter().skip(1).skip_while(|word| word.starts_with('-'));
    words.next().filter(|command| command.len() > 1 && "create".starts_with(command.as_str()))?;
    let mut file = None;
    while let Some(word) = words.next() {
        match word.split_once('=') {
            _ if word == "-f" => return words.next().map(PathBuf::from),
            Some(("--defconfig", value)) => return Some(value.into()),
            // Another name than that in the file.
            Some((setting, _)) if setting.trim() == "name" => return None,
            None if !word.starts_with('-') && file.is_none() => file = Some(PathBuf::from(word)),
            _ => {}
        }
    }
    file
}

/// The end of a log.
fn tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn arguments(pid: i32) -> Vec<String> {
    let mut bytes = Vec::new();
    let file = File::open(format!("/proc/{pid}/cmdline"));
    // One that ends meanwhile has none.
    let _ = file.and_then(|file| file.take(MAX_ARGUMENTS).read_to_end(&mut bytes));
    let text = String::from_utf8_lossy(&bytes);
    text.split_terminator('\0').map(str::to_owned).collect()
}

/// Whether these are the arguments of the process that libxl starts to write the memory of a domain:
/// `--save-domain FD PRESERVED-FDS DOMID ...` (libxl_save_callout.c, `libxl__xc_domain_save`).
pub fn is_saver_of(arguments: &[u8], domid: u32) -> bool {
    let words: Vec<&[u8]> = arguments.split(|byte| *byte == 0).collect();
    let mode = words.iter().position(|word| *word == b"--save-domain");
    mode.and_then(|mode| words.get(mode + 3))
        .is_some_and(|word| *word == domid.to_string().as_bytes())
}

/// Whether a process is root's, and its program too, and that lies where only root can put something. What anybody
/// could have started tells nothing.
pub fn is_installed(pid: i32) -> bool {
    let exe = format!("/proc/{pid}/exe");
    let roots = |meta: fs::Metadata| meta.uid() == 0 && meta.mode() & OTHERS_WRITE == 0;
    let Ok(path) = fs::read_link(&exe) else { return false };
    is_roots(pid)
        && fs::metadata(&exe).is_ok_and(roots)
        && path.ancestors().skip(1).all(|directory| fs::metadata(directory).is_ok_and(roots))
}

/// Whether a process is one of root.
fn is_roots(pid: i32) -> bool {
    fs::metadata(format!("/proc/{pid}")).is_ok_and(|meta| meta.uid() == 0)
}

/// Whether the process `pid` runs the program `name`, also if that was replaced by an upgrade since.
fn runs(pid: i32, name: &str) -> bool {
    let path = fs::read_link(format!("/proc/{pid}/exe"));
    path.is_ok_and(|path| {
        let file = path.file_name().and_then(|file| file.to_str()).unwrap_or_default();
        file.strip_suffix(" (deleted)").unwrap_or(file) == name
    })
}

/// Why the QEMU of a domain cannot be seen from here, where it should be: then nobody could tell when it has closed
/// its disks, and processes that we take for others' may be anybody's. `named` is its number in xenstore. A QEMU
/// that has crashed is no such trouble.
pub fn qemu_trouble(domid: u32, named: Option<i32>) -> io::Result<Option<String>> {
    let Some(named) = named else { return Ok(None) };
    if is_qemu_of(named, domid) {
        return Ok(None);
    }
    let here = all()?.into_iter().find(|pid| is_qemu_of(*pid, domid));
    let first = fs::metadata("/proc/self/ns/pid").is_ok_and(|meta| meta.ino() == FIRST_NAMESPACE);
    Ok(match here {
        Some(pid) => {
            Some(format!("xenstore says that its QEMU is process {named}, but here it is {pid}"))
        }
        None if first => None,
        None => {
            Some(format!("xenstore says that its QEMU is process {named}, which is not seen here"))
        }
    })
}

/// Whether a process is the QEMU of a domain, and has not ended: libxl starts it with `-xen-domid N`
/// (libxl_dm.c), and the number of a domain is not used again for long.
pub fn is_qemu_of(pid: i32, domid: u32) -> bool {
    // One that has ended has no arguments any more.
    has_domid(&arguments(pid), domid)
}

fn has_domid(arguments: &[String], domid: u32) -> bool {
    let at = arguments.iter().position(|word| *word == "-xen-domid");
    at.and_then(|at| arguments.get(at + 1)).is_some_and(|word| *word == domid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "Waiting for domain web1 (domid 4) to die [pid 77]\n\
                       Domain 4 has shut down, reason code 1 0x1\n\
                       Waiting for domain web1 (domid 5) to die [pid 77]\n";

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    fn xl(pid: i32, watches: Option<u32>, name: Option<&str>) -> Xl {
        Xl { process: Process { pid, started: 1 }, watches, name: name.map(str::to_owned) }
    }

    #[test]
    fn a_log_tells_the_domain_after_its_last_reboot() {
        assert_eq!(watches(LOG, 77), Some(5));
        assert_eq!(watches(LOG, 7), None, "another process");
        assert_eq!(watches("", 77), None);
        let odd = "Waiting for domain a (domid 1) b (domid 9) to die [pid 77]\n";
        assert_eq!(watches(odd, 77), Some(9), "a name may hold anything");
    }

    #[test]
    fn a_log_is_known_by_its_name() {
        let name = |path: &str| name_in_log(Path::new(path));
        assert_eq!(name("/var/log/xen/xl-web 1.log").as_deref(), Some("web 1"));
        for rotated in [".1", ".1 (deleted)", "-20260101", " (deleted)"] {
            assert_eq!(name(&format!("/var/log/xen/xl-a.b.log{rotated}")).as_deref(), Some("a.b"));
        }
        for other in ["/var/log/xen/qemu-dm-web1.log", "/dev/pts/1", "/tmp/xl-a.log"] {
            assert_eq!(name(other), None);
        }
    }

    #[test]
    fn only_the_end_of_a_log_is_read() {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let file = File::create(&path).unwrap();
        file.set_len(1 << 30).unwrap();
        let mut text = tail(&path).unwrap();
        assert_eq!(text.len() as u64, LOG_TAIL);
        fs::write(&path, LOG).unwrap();
        text = tail(&path).unwrap();
        assert_eq!(text, LOG);
    }

    #[test]
    fn who_says_it_is_believed() {
        let watched = Watched { domid: 5, name: "web1", others: &[6, 7] };
        let seen = [
            xl(70, Some(6), Some("web1")),
            xl(77, Some(5), Some("renamed")),
            xl(78, None, Some("web1")),
        ];
        assert_eq!(choose(watched, &seen).found.unwrap().pid, 77);
    }

    #[test]
    fn who_says_nothing_is_told_by_its_name_if_it_can_be_nobody_elses() {
        let watched = Watched { domid: 5, name: "web1", others: &[6] };
        let sure = |seen: &[Xl]| choose(watched, seen).found.map(|process| process.pid);
        let other: Xl = xl(70, Some(6), Some("web2"));
        assert_eq!(sure(&[other.clone(), xl(77, None, Some("web1"))]), Some(77));
        // It may be that of domain 6, which was renamed.
        let alone = [xl(77, None, Some("web1"))];
        assert_eq!(choose(watched, &alone), Monitor { found: None, unsure: vec![77] });
        // Two of the name, or none.
        for seen in [
            vec![other.clone(), xl(77, None, Some("web1")), xl(78, None, Some("web1"))],
            vec![other.clone(), xl(77, None, None)],
            vec![other.clone(), xl(77, None, Some("web2"))],
        ] {
            let monitor = choose(watched, &seen);
            assert!(monitor.found.is_none() && monitor.unsure.contains(&77), "{monitor:?}");
        }
        assert_eq!(choose(watched, &[other]), Monitor::default());
    }

    #[test]
    fn what_xl_was_started_for() {
        for (line, file) in [
            ("xl create web1.cfg", Some("web1.cfg")),
            ("xl -v create -F -q /etc/xen/web1.cfg memory=5", Some("/etc/xen/web1.cfg")),
            ("/usr/sbin/xl cr -f a=b.cfg", Some("a=b.cfg")),
            ("xl create --defconfig=a.cfg", Some("a.cfg")),
            ("xl create a.cfg name=\"other\"", None),
            ("xl restore -F image", None),
        ] {
            assert!(starts_domains(&words(line)), "{line}");
            assert_eq!(cfg_of(&words(line)).as_deref(), file.map(Path::new), "{line}");
        }
        for line in ["xl console web1", "xl", "xl -v", "xl c", "xl top"] {
            assert!(!starts_domains(&words(line)), "{line}");
        }
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
    fn a_program_that_anybody_could_have_put_there_saves_nothing() {
        // This test runs below a directory of somebody's, or of root's alone: then it counts as installed.
        let me = i32::try_from(std::process::id()).unwrap();
        let exe = fs::read_link("/proc/self/exe").unwrap();
        let open = |path: &Path| {
            let meta = fs::metadata(path).unwrap();
            meta.uid() != 0 || meta.mode() & OTHERS_WRITE != 0
        };
        assert_eq!(is_installed(me), is_roots(me) && !exe.ancestors().any(open));
    }

    #[test]
    fn the_qemu_of_a_domain_is_known_by_its_arguments() {
        let qemu = words("/usr/libexec/xen-qemu-system-i386 -xen-domid 7 -no-shutdown");
        assert!(has_domid(&qemu, 7) && !has_domid(&qemu, 70) && !has_domid(&[], 7));
        // Nothing here is the QEMU of that domain. Whether that is trouble depends on where the tests run.
        let me = i32::try_from(std::process::id()).unwrap();
        assert_eq!(qemu_trouble(u32::MAX, None).unwrap(), None);
        if let Some(words) = qemu_trouble(u32::MAX, Some(me)).unwrap() {
            assert!(words.contains("not seen here"), "{words}");
        }
    }
}
