//! How xl is configured, and the lock that it takes for a restore.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::unistd::{AccessFlags, access, geteuid};

use super::answer::{Answer, CheckContext};
use crate::host::openers;
use crate::need::Severity;

/// How xl is configured.
const XL_CONF: &str = "/etc/xen/xl.conf";
/// The lock, if the configuration names none (xl.h, `XL_LOCK_FILE`).
const LOCK: &str = "/var/lock/xl";
/// How long another xl may have the lock: it has it while it starts or restores a domain.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(100);

/// xl's configuration, as far as it tells what a restore needs.
pub(super) struct XlConf(String);

impl XlConf {
    pub(super) fn read() -> XlConf {
        XlConf(fs::read_to_string(XL_CONF).unwrap_or_default())
    }

    /// The value of an option: xl takes the last one.
    fn value(&self, wanted: &str) -> Option<&str> {
        let pairs = self.0.lines().filter_map(|line| line.split_once('='));
        let mut values = pairs.filter(|(key, _)| key.trim() == wanted);
        values.next_back().map(|(_, value)| unquoted(value.trim()))
    }

    /// Whether xl takes memory from dom0 for a new domain (xl.conf(5), `autoballoon`: by default only where
    /// Xen was not told `dom0_mem`).
    pub(super) fn autoballoons(&self, commandline: &str) -> bool {
        match self.value("autoballoon") {
            Some("off" | "0") => false,
            Some("on" | "1") => true,
            _ => !commandline.split_whitespace().any(|word| word.starts_with("dom0_mem=")),
        }
    }

    /// Why xl cannot start a guest whose virtual processors are bound to these, if so: it takes away those that a mask
    /// does not have, also in a restore, and fails if none is left (xl.conf(5), `vm.cpumask`; xl_vmcontrol.c).
    pub(super) fn masked(&self, options: &[&str], of_each: &[Vec<u32>]) -> Option<String> {
        let masks = options.iter().filter_map(|option| Some((*option, mask(self.value(option)?)?)));
        let masks: Vec<_> = masks.collect();
        let allowed = |number: &&u32| masks.iter().all(|(_, mask)| mask.contains(number));
        let bound = of_each.iter().find(|bound| !bound.iter().any(|number| allowed(&number)))?;
        let words: Vec<_> = bound.iter().map(ToString::to_string).collect();
        let options: Vec<_> = masks
            .iter()
            .map(|(option, _)| format!("{option}={}", self.value(option).unwrap_or_default()))
            .collect();
        Some(format!(
            "it is bound to processor {}, which {} in {XL_CONF} does not allow",
            words.join(" or "),
            options.join(" and ")
        ))
    }

    fn lock_file(&self) -> PathBuf {
        self.value("lockfile").unwrap_or(LOCK).into()
    }
}

/// The processors of a mask, `0-3,^1,7`. `None`: it allows all, or names nodes.
fn mask(text: &str) -> Option<BTreeSet<u32>> {
    let mut mask = BTreeSet::new();
    for part in text.split(',').map(str::trim) {
        let (out, part) = part.strip_prefix('^').map_or((false, part), |part| (true, part));
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse().ok()?, last.trim().parse::<u32>().ok()?);
        // More than Xen can have.
        if last >= 1 << 16 {
            return None;
        }
        for number in first..=last {
            match out {
                true => mask.remove(&number),
                false => mask.insert(number),
            };
        }
    }
    Some(mask)
}

/// A value as libxlu reads it: a string between quotes, or a number, before any comment.
fn unquoted(value: &str) -> &str {
    match value.strip_prefix(['"', '\'']) {
        Some(rest) => rest.split(&value[..1]).next(),
        None => value.split(['#', ';', ' ', '\t']).next(),
    }
    .unwrap_or_default()
}

/// While xl may take memory from dom0, it has a lock, and waits for it without end (xl_vmcontrol.c, `acquire_lock`).
pub(super) fn lock(around: CheckContext<'_>) -> Answer {
    let host = around.toolstack.and_then(|toolstack| toolstack.host().ok());
    let conf = XlConf::read();
    match host {
        Some(host) if conf.autoballoons(&host.commandline) => {}
        _ => return Answer::There,
    }
    let path = conf.lock_file();
    if let Some(why) = unusable(&path) {
        return Answer::Trouble(Severity::Missing, why);
    }
    // Nobody is down while xl waits.
    let holder = around.gone.and_then(|_| held(&path, PATIENCE));
    Answer::busy(holder.map(|who| {
        format!(
            "{who} holds the lock {}, and xl would wait for it while the domain is down",
            path.display()
        )
    }))
}

/// Why xl cannot open its lock, if so: it makes the file where there is none.
fn unusable(path: &Path) -> Option<String> {
    let told = |path: &Path, why: &str| Some(format!("xl cannot lock {}: {why}", path.display()));
    // Anybody may make files in /run/lock: xl would wait on a FIFO, and may not write to what another user owns there
    // (proc(5), `protected_regular`).
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => return told(path, "it is a directory"),
        Ok(meta) if !meta.is_file() && !meta.is_symlink() => {
            return told(path, "it is not a regular file");
        }
        Ok(meta) if meta.uid() != geteuid().as_raw() => {
            return told(path, &format!("it belongs to user {}", meta.uid()));
        }
        _ => {}
    }
    let opened = if path.exists() { path } else { path.parent()? };
    access(opened, AccessFlags::W_OK).err().and_then(|error| told(path, error.desc()))
}

/// Who has the lock for longer than that. Several that have it one after the other get on.
fn held(path: &Path, patience: Duration) -> Option<String> {
    let (mut last, mut since) = (None, Instant::now());
    loop {
        let pid = holder(path)?;
        if last.replace(pid) != Some(pid) {
            since = Instant::now();
        }
        if since.elapsed() >= patience {
            return Some(match pid {
                // A lock of an open file, which has no process (fcntl_locking(2)).
                ..=0 => "another program".to_owned(),
                pid => openers::name_of(pid),
            });
        }
        thread::sleep(PAUSE);
    }
}

/// The process that has a file locked.
fn holder(path: &Path) -> Option<i32> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()?;
    let mut lock = libc::flock {
        l_type: i16::try_from(libc::F_WRLCK).unwrap_or_default(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    let asked = fcntl(&file, FcntlArg::F_GETLK(&mut lock));
    (asked.is_ok() && i32::from(lock.l_type) != libc::F_UNLCK).then_some(lock.l_pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(text: &str) -> XlConf {
        XlConf(text.into())
    }

    #[test]
    fn masks_leave_each_processor_of_the_guest_one_at_least() {
        let options = ["vm.cpumask", "vm.hvm.cpumask"];
        let masked = |text: &str, of_each: &[Vec<u32>]| conf(text).masked(&options, of_each);
        let bound = [vec![1], vec![2, 3]];
        for text in [
            "",
            "vm.cpumask=\"all\"",
            "vm.cpumask=\"nodes:0\"",
            "vm.cpumask=\"0-7\"",
            "vm.cpumask=\"0-7,^2\"",
            "vm.pv.cpumask=\"0\"",
            "vm.cpumask=\"0-9\"\nvm.hvm.cpumask=\"1,2\"",
        ] {
            assert_eq!(masked(text, &bound), None, "{text}");
        }
        assert_eq!(masked("vm.cpumask=\"0\"", &[]), None);
        let why = masked("vm.cpumask=\"0-7,^2-3\"", &bound).unwrap();
        assert!(why.contains("processor 2 or 3, which vm.cpumask=0-7,^2-3 in"), "{why}");
        let why = masked("vm.cpumask=\"1-2\"\nvm.hvm.cpumask=\"3-9\"", &bound).unwrap();
        assert!(why.contains("processor 1, which vm.cpumask=1-2 and vm.hvm.cpumask=3-9"), "{why}");
        assert_eq!(masked("vm.cpumask=\"0-4294967295\"", &bound), None);
    }

    #[test]
    fn when_xl_takes_memory_from_dom0() {
        for (text, line, expected) in [
            ("", "", true),
            ("", "console=com1 dom0_mem=2G,max:2G", false),
            ("autoballoon=\"off\"\n", "", false),
            ("#autoballoon=0\nautoballoon = 1\n", "dom0_mem=1G", true),
            ("autoballoon=\"auto\"", "", true),
            ("autoballoon = \"off\" # dom0 has a fixed size", "", false),
            ("autoballoon='off'", "", false),
            ("autoballoon=0 # \"on\"", "", false),
        ] {
            assert_eq!(conf(text).autoballoons(line), expected, "{text} {line}");
        }
    }

    #[test]
    fn the_lock_is_where_the_configuration_says() {
        assert_eq!(conf("#lockfile=\"/a\"\n").lock_file(), Path::new(LOCK));
        assert_eq!(conf("lockfile = \"/run/xl.lock\"\n").lock_file(), Path::new("/run/xl.lock"));
    }

    #[test]
    fn a_lock_that_is_held_is_seen() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(held(file.path(), Duration::ZERO), None);
        let lock = libc::flock {
            l_type: i16::try_from(libc::F_WRLCK).unwrap(),
            l_whence: 0,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        fcntl(file.as_file(), FcntlArg::F_OFD_SETLK(&lock)).unwrap();
        assert_eq!(held(file.path(), Duration::ZERO).unwrap(), "another program");
    }

    #[test]
    fn a_lock_that_cannot_be_opened_is_named() {
        let directory = tempfile::tempdir().unwrap();
        assert!(unusable(directory.path()).unwrap().contains("it is a directory"));
        assert_eq!(unusable(&directory.path().join("xl")), None);
        let nowhere = directory.path().join("gone/xl");
        assert!(unusable(&nowhere).unwrap().contains("xl cannot lock"));
    }
}
