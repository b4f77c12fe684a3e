//! What has to be there for a revert to succeed, as data: collected before anything changes, looked at by
//! `host/needs.rs`. Each kind of disk tells its own needs ([`crate::disk::needs`]), the saved
//! configuration the rest ([`DomainConfig::needs`](crate::domain::DomainConfig::needs)). Pure.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::disk::{self, DiskFound};
use crate::domain::{BadConfig, Disk, DomainConfig, Format};
use crate::error::Error;
use crate::tool::quote;

/// Something that a put-back or `xl restore` needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// What fails without it, as a sentence: `Disk xvda (/srv/a.qcow2) cannot be put back`.
    pub about: String,
    /// What is needed.
    pub what: What,
}

/// What can be needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A file or device that is rewritten in place: writable, and nobody but the domain that will be
    /// destroyed has it open. Who only reads it would read a mixture, and tools refuse to write.
    Alone(PathBuf),
    /// A file or device that is read: nobody but that domain may write to it meanwhile.
    Still(PathBuf),
    /// An image of which a snapshot inside is read: nobody but the domain's own QEMU, which does not touch what
    /// belongs to a snapshot, may write to it meanwhile.
    Inside(PathBuf),
    /// A file or device that the restored domain uses.
    Usable {
        /// Its path.
        path: PathBuf,
        /// Whether it is opened for writing.
        writable: bool,
    },
    /// An image that the restored domain's QEMU opens, with all it rests on.
    Image {
        /// Its path.
        path: PathBuf,
        /// Its format.
        format: Format,
        /// Whether it is opened for writing.
        writable: bool,
    },
    /// A directory in which files get other names.
    Renames(PathBuf),
    /// A directory that libxl, xl and QEMU write small files to.
    State(PathBuf),
    /// A program or script that is started.
    Program(PathBuf),
    /// A network bridge.
    Bridge(String),
    /// A domain that serves a device, by its name or number.
    Backend(String),
    /// A pool of processors, by its name or number.
    Pool(String),
    /// A PCI device that is passed through, as `0000:03:00.0`.
    Pci(String),
    /// A TCP port that QEMU listens on.
    Port {
        /// What it is for.
        purpose: &'static str,
        /// Its number.
        number: u16,
    },
    /// Free memory, in KiB.
    Memory(u64),
}

/// How bad a trouble is: the worst one is told first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rank {
    /// What the snapshot consists of is gone or changed.
    Lost,
    /// Something else is missing, and has to be brought back or put in order.
    Missing,
    /// Somebody uses something now, or too little is free: it may pass by itself.
    Busy,
}

/// Why a revert would fail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Trouble {
    /// How bad it is.
    pub rank: Rank,
    /// What fails, as a sentence.
    pub about: String,
    /// Why.
    pub why: String,
    /// What to do about it.
    pub hint: String,
}

impl Trouble {
    /// A refusal of one thing as one of several.
    pub fn of_error(error: &Error, rank: Rank) -> Trouble {
        let mut chain = error.chain().into_iter();
        Trouble {
            rank,
            about: chain.next().unwrap_or_default(),
            why: chain.collect::<Vec<_>>().join(": "),
            hint: error.hint.clone().unwrap_or_default(),
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.about, self.why)
    }
}

/// All troubles as one refusal, the worst first; `None` if there are none.
pub fn refusal(mut troubles: Vec<Trouble>) -> Option<Error> {
    troubles.sort_by_key(|trouble| trouble.rank);
    troubles.dedup();
    let mut troubles = troubles.into_iter();
    let first = troubles.next()?;
    let error = Error::refused(first.about).because(first.why).hint(first.hint);
    Some(troubles.fold(error, |error, next| {
        error.and_also(Error::refused(next.about).because(next.why).hint(next.hint))
    }))
}

/// What a revert needs: the disks of the snapshot, and what the configuration in it names. For a new
/// domain `beside` that of the snapshot, the disks of the old one are only read.
///
/// # Errors
///
/// If the configuration is not one that libxl writes.
pub fn of_revert(
    disks: &[DiskFound],
    config: Option<&DomainConfig>,
    domain: &str,
    beside: bool,
) -> Result<Vec<Need>, BadConfig> {
    let mut needs = Vec::new();
    for found in disks {
        let record = &found.record;
        let about = format!("Disk {} ({}) cannot be put back", record.vdev, record.path.display());
        let whats = disk::needs(found, beside);
        needs.extend(whats.into_iter().map(|what| Need { about: about.clone(), what }));
    }
    let Some(config) = config else { return Ok(needs) };
    let left_out = |disk: &Disk| {
        let record = disks.iter().find(|found| found.record.vdev == disk.vdev);
        record.is_none_or(|found| found.record.snapshot.is_left_out())
    };
    needs.extend(of_domain(config, domain, &left_out, beside)?);
    Ok(needs)
}

/// What `xl restore` needs of the configuration that is in the image. `as_it_is` tells whether a disk is
/// used as the configuration names it.
///
/// # Errors
///
/// If the configuration is not one that libxl writes.
pub fn of_domain(
    config: &DomainConfig,
    domain: &str,
    as_it_is: &dyn Fn(&Disk) -> bool,
    beside: bool,
) -> Result<Vec<Need>, BadConfig> {
    let mut needs = Vec::new();
    for disk in config.disks()? {
        let about = format!("Disk {} ({}) cannot be used", disk.vdev, disk.file().display());
        let whats = of_disk(&disk, as_it_is(&disk));
        needs.extend(whats.into_iter().map(|what| Need { about: about.clone(), what }));
    }
    let about = format!("{domain} cannot be restored");
    let whats = config.needs().into_iter().chain(STATE.map(|path| What::State(path.into())));
    // A new domain beside another one gets ports of its own.
    let whats = whats.filter(|what| !beside || !matches!(what, What::Port { .. }));
    needs.extend(whats.map(|what| Need { about: about.clone(), what }));
    Ok(needs)
}

/// What a start needs besides, of the configuration file of a domain whose snapshot has no memory.
pub fn of_start(config: &DomainConfig, domain: &str) -> Vec<Need> {
    let about = format!("{domain} cannot be started");
    let whats = config.start_needs().into_iter();
    whats.map(|what| Need { about: about.clone(), what }).collect()
}

/// Where libxl keeps the domain's configuration and QEMU's state, xl its log, and QEMU its sockets
/// (libxl_dom.c, `libxl__userdata_path`; xl_utils.c, `do_daemonize`; libxl_internal.c,
/// `libxl__device_model_savefile`).
const STATE: [&str; 3] = ["/var/lib/xen", "/var/log/xen", "/run/xen"];
/// Where scripts lie that are named without a directory (Debian's and the default build's
/// XEN_SCRIPT_DIR).
const SCRIPTS: &str = "/etc/xen/scripts";

/// A script as libxl finds it.
pub(crate) fn script(name: &str) -> PathBuf {
    Path::new(SCRIPTS).join(name)
}

fn of_disk(disk: &Disk, as_it_is: bool) -> Vec<What> {
    if let Some(domain) = &disk.backend_domain {
        return vec![What::Backend(domain.clone())];
    }
    let mut needs: Vec<_> = disk.script.iter().map(|name| What::Program(script(name))).collect();
    // What a script is told may be no path at all; an empty drive has none.
    let is_file = disk.script.is_none() || disk.is_tap_vhd();
    if as_it_is && is_file && !disk.path.as_os_str().is_empty() {
        let (path, writable) = (disk.file().to_owned(), disk.writable && !disk.cdrom);
        needs.push(match disk.format {
            Some(format @ (Format::Qcow2 | Format::Qcow | Format::Qed)) => {
                What::Image { path, format, writable }
            }
            _ => What::Usable { path, writable },
        });
    }
    needs
}

impl What {
    /// What an administrator does if it is not there.
    pub fn remedy(&self) -> String {
        match self {
            What::Alone(path) | What::Still(path) | What::Inside(path) => {
                format!("see who uses it, and end that first: fuser -v {}", quote(path))
            }
            What::Usable { path, .. } | What::Image { path, .. } => {
                format!("put it back, or another one in its place: ls -l {}", quote(path))
            }
            What::Renames(path) | What::State(path) => {
                format!("make it writable: df {0}; lsattr -d {0}", quote(path))
            }
            What::Program(_) => "install it again, or make it executable: chmod +x".into(),
            What::Bridge(name) => {
                format!("bring the bridge up: ip link add {} type bridge", quote(name))
            }
            What::Backend(_) => "start that domain first".into(),
            What::Pool(name) => {
                format!("make the pool again: xl cpupool-create name={}", quote(name))
            }
            What::Pci(device) => format!("make it assignable: xl pci-assignable-add {device}"),
            What::Port { .. } => "end that program, or let it use another port".into(),
            What::Memory(_) => {
                "shut another domain down, or take memory from one: xl mem-set".into()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trouble(rank: Rank, about: &str) -> Trouble {
        Trouble { rank, about: about.into(), why: "why".into(), hint: "do".into() }
    }

    #[test]
    fn all_troubles_are_told_at_once_the_worst_first_each_once() {
        assert!(refusal(Vec::new()).is_none());
        let busy = trouble(Rank::Busy, "a is busy");
        let lost = trouble(Rank::Lost, "b is lost");
        let error = refusal(vec![busy.clone(), lost, busy]).unwrap();
        assert_eq!(error.chain(), ["b is lost", "why"]);
        assert_eq!(error.also.len(), 1);
        assert_eq!(error.also[0].message, "a is busy");
        assert_eq!(error.exit_code(), 3);
    }

    #[test]
    fn a_disk_is_needed_as_its_entry_says() {
        let whats = |entry: &str, as_it_is| {
            let config = DomainConfig::parse(&format!(r#"{{"disks": [{entry}]}}"#)).unwrap();
            of_disk(&config.disks().unwrap()[0], as_it_is)
        };
        let iso = r#"{"pdev_path": "/a.iso", "vdev": "hdc", "format": "raw", "is_cdrom": 1}"#;
        let usable = |path: &str, writable| What::Usable { path: path.into(), writable };
        assert_eq!(whats(iso, true), [usable("/a.iso", false)]);
        assert_eq!(whats(iso, false), []);
        let empty = r#"{"vdev": "hdc", "format": "empty", "is_cdrom": 1}"#;
        assert_eq!(whats(empty, true), []);
        let raw = r#"{"pdev_path": "/a", "vdev": "xvda", "format": "raw", "readwrite": 1}"#;
        assert_eq!(whats(raw, true), [usable("/a", true)]);
        let qcow2 = r#"{"pdev_path": "/q", "vdev": "xvda", "format": "qcow2", "readwrite": 1}"#;
        let image = What::Image { path: "/q".into(), format: Format::Qcow2, writable: true };
        assert_eq!(whats(qcow2, true), [image]);
        let tap = r#"{"pdev_path": "vhd:/v", "vdev": "xvda", "script": "block-tap"}"#;
        let script = What::Program("/etc/xen/scripts/block-tap".into());
        assert_eq!(whats(tap, true), [script, usable("/v", false)]);
        let drbd = r#"{"pdev_path": "r0", "vdev": "xvda", "script": "block-drbd", "readwrite": 1}"#;
        assert_eq!(whats(drbd, true), [What::Program("/etc/xen/scripts/block-drbd".into())]);
        let driver = r#"{"pdev_path": "/a", "vdev": "xvda", "backend_domname": "storage"}"#;
        assert_eq!(whats(driver, true), [What::Backend("storage".into())]);
    }
}
