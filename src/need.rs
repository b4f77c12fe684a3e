//! What has to be there for a revert to succeed, as data: collected before anything changes, looked at by
//! `host/needs.rs`. Each kind of disk tells its own needs ([`crate::disk::needs`]), the saved
//! configuration the rest ([`DomainConfig::needs`](crate::domain::DomainConfig::needs)). Pure.

mod collect;

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Serialize;

pub use self::collect::{of_domain, of_memory, of_overlay, of_revert, of_start};
use crate::domain::Format;
use crate::error::Error;
use crate::tool::quote;

/// Something that a put-back or `xl restore` needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// What fails without it, as a sentence: `Disk xvda (/srv/a.qcow2) cannot be reverted`.
    pub about: String,
    /// What is needed.
    pub what: Requirement,
}

/// What can be needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requirement {
    /// A file or device that is rewritten in place: writable, and nobody but the domain that will be
    /// destroyed has it open. Who only reads it would read a mixture, and tools refuse to write.
    ExclusiveFile(PathBuf),
    /// A file or device that is read: nobody but that domain may write to it meanwhile.
    UnwrittenFile(PathBuf),
    /// An image of which a snapshot inside is read: nobody but the domain's own QEMU, which does not touch what
    /// belongs to a snapshot, may write to it meanwhile.
    Inside(PathBuf),
    /// A file or device that the restored domain uses.
    Usable {
        path: PathBuf,
        /// Whether it is opened for writing.
        writable: bool,
    },
    /// An image that the restored domain's QEMU opens, with all it rests on.
    Image {
        path: PathBuf,
        format: Format,
        /// Whether it is opened for writing.
        writable: bool,
    },
    /// A file or device that is served to the guest: not mounted in dom0, nor a disk of another domain.
    DiskNotMounted {
        path: PathBuf,
        /// Whether the domain may write to it. If not, others may read.
        writable: bool,
    },
    /// A loop device for a file that blkback serves.
    Loops(PathBuf),
    /// A driver for devices that dom0's kernel serves: `vbd`, `vif`.
    Driver(&'static str),
    /// A directory that the restored domain shares.
    Directory(PathBuf),
    /// A directory in which files get other names.
    WritableDirectory(PathBuf),
    /// A file that gets another name, and another file its own.
    RenamableFile(PathBuf),
    /// A log of which the earlier ones are kept, by number.
    Log(PathBuf),
    /// The directory in which LVM archives the metadata of groups.
    VolumeArchive,
    /// A directory that libxl, xl and QEMU write small files to.
    State(PathBuf),
    /// A program that is started.
    Program(PathBuf),
    /// A hotplug script, with those that it reads.
    Script(PathBuf),
    /// A user as whom QEMU runs.
    User(String),
    /// A network bridge of the kernel's.
    Bridge(String),
    /// A network device of dom0's, of whatever kind.
    Device(String),
    /// A network device of dom0's with an address, to which a guest's card is routed.
    Gateway(String),
    /// The daemons of Open vSwitch, and its program.
    OpenVswitch,
    /// A name for a network device in dom0, which no other one has.
    DeviceName(String),
    /// A domain that serves a device, by its name or number.
    Backend(String),
    /// A pool of processors, by its name or number.
    Pool(String),
    /// A PCI device that is passed through.
    Pci {
        /// Its address, as `0000:03:00.0`.
        device: String,
        /// Whether libxl takes it from its driver.
        seize: bool,
    },
    /// The number of a domain, which no other one has or had lately.
    Domid(u32),
    /// A TCP port that QEMU listens on.
    Port {
        /// What it is for.
        purpose: &'static str,
        number: u16,
        /// The address, if it is known which one.
        ip: Option<IpAddr>,
    },
    /// An address of this host's that QEMU listens on.
    Address {
        /// What it is for.
        purpose: &'static str,
        /// The address.
        ip: IpAddr,
    },
    /// Processors that xl lets the guest use, of those that it may use: one of each list at least.
    CpuMask {
        /// The options of xl.conf(5) that apply.
        options: [&'static str; 2],
        /// Their numbers, for each virtual processor.
        of_each: Vec<Vec<u32>>,
    },
    /// Processors of a pool, of which the guest may use no other: one of each list at least.
    Processors {
        /// The pool's name or number; the first one if none is named.
        pool: Option<String>,
        /// Their numbers, for each virtual processor.
        of_each: Vec<Vec<u32>>,
    },
    /// Free memory, in KiB.
    Memory {
        /// The guest's own.
        guest: u64,
        /// What Xen takes for it besides.
        overhead: u64,
    },
    /// The same without any that dom0 would have to give away first.
    FreeMemory(u64),
    /// That the domain had all of its maximum of memory, which this feature needs: what a snapshot lacks for ever.
    AllMemory(&'static str),
    /// A Xen that is not older than the one that saved the memory, as `4.20.1`.
    Xen(String),
    /// A QEMU of Xen's that can serve images of a format.
    Served(Format),
    /// A QEMU of Xen's.
    Emulator,
    /// The programs of the Xen that runs, with which xl restores a domain.
    Tools,
    /// The lock that xl has while it may take memory from dom0.
    Lock,
    /// The daemon that has the consoles of all domains.
    Consoles,
    /// A USB device of this host's that is passed through.
    Usb {
        /// The number of its bus.
        bus: u64,
        /// Its number there, another one each time that it is plugged in.
        number: u64,
    },
}

/// How bad a trouble is: the worst one is told first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
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
    pub rank: Severity,
    /// What fails, as a sentence.
    pub about: String,
    /// Why.
    pub why: String,
    /// What to do about it.
    pub hint: String,
}

impl Trouble {
    /// A refusal of one thing as one of several.
    pub fn of_error(error: &Error, rank: Severity) -> Trouble {
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

/// Where scripts lie that are named without a directory (Debian's and the default build's
/// XEN_SCRIPT_DIR).
const SCRIPTS: &str = "/etc/xen/scripts";

/// A script as libxl finds it.
pub(crate) fn script(name: &str) -> PathBuf {
    Path::new(SCRIPTS).join(name)
}

impl Requirement {
    /// The same, but memory must be free already.
    #[must_use]
    pub fn without_ballooning(self) -> Requirement {
        match self {
            Requirement::Memory { guest, overhead } => {
                Requirement::FreeMemory(guest.saturating_add(overhead))
            }
            other => other,
        }
    }

    /// What an administrator does if it is not there, or in use.
    pub fn remedy(&self, rank: Severity) -> String {
        match self {
            Requirement::ExclusiveFile(path) | Requirement::UnwrittenFile(path) | Requirement::Inside(path) if rank == Severity::Missing => {
                format!(
                    "check whether it was moved, or is not mounted or not writable: ls -l {0}; findmnt -T {0}",
                    quote(path)
                )
            }
            Requirement::ExclusiveFile(path) | Requirement::UnwrittenFile(path) | Requirement::Inside(path) => {
                format!("find and stop its user first: fuser -v {}", quote(path))
            }
            Requirement::Usable { path, .. } | Requirement::Image { path, .. } => format!(
                "restore it, or put another one in its place: ls -l {0}. If only its write permission is missing \
                 and no snapshot needs it (xl-snapshot list --all; qemu-img info of its overlays): chmod u+w {0}",
                quote(path)
            ),
            Requirement::DiskNotMounted { path, .. } => format!(
                "unmount it (findmnt -S {0}; losetup -j {0}), or detach it from that domain: xl block-list, xl \
                 block-detach",
                quote(path)
            ),
            Requirement::Loops(_) => "load the driver: modprobe loop".into(),
            Requirement::Driver(kind) => format!(
                "load the driver of {kind}, or boot a kernel that has its modules: modprobe {}",
                if *kind == "vbd" { "xen-blkback" } else { "xen-netback" }
            ),
            Requirement::Directory(path) => {
                format!("bring it back, or mount it: ls -ld {0}; findmnt -T {0}", quote(path))
            }
            Requirement::WritableDirectory(path) | Requirement::State(path) => {
                format!("make it writable: df {0}; lsattr -d {0}", quote(path))
            }
            Requirement::VolumeArchive => {
                "make it writable (df; lsattr -d), or have LVM keep no archive: archive=0 in lvm.conf".into()
            }
            Requirement::Program(_) => "install it again, or make it executable: chmod +x".into(),
            Requirement::Script(_) => "install the scripts again (Debian: apt install --reinstall xen-utils-common), or \
                                make what is named usable: chmod +x; ls -ld"
                .into(),
            Requirement::User(name) => format!("make the user again: adduser --system {}", quote(name)),
            Requirement::RenamableFile(path) | Requirement::Log(path) => format!(
                "let it be renamed: chattr -i -a {0}, or umount {0}; move a directory that is in the way",
                quote(path)
            ),
            Requirement::Bridge(name) => {
                format!("bring the bridge up: ip link add {} type bridge", quote(name))
            }
            Requirement::Device(name) => format!("bring it up again: ip link show {}", quote(name)),
            Requirement::Gateway(name) => format!(
                "give it its address again (ip -4 addr show {0}), install what is missing (Debian: apt install \
                 net-tools), or name another device with gatewaydev=",
                quote(name)
            ),
            Requirement::OpenVswitch => {
                "start it (Debian: systemctl start openvswitch-switch), or install openvswitch-switch".into()
            }
            Requirement::DeviceName(name) => format!(
                "check what it is, and give it another name: ip -d link show {0}; ip link set {0} name NAME",
                quote(name)
            ),
            Requirement::Backend(_) => "start that domain first".into(),
            Requirement::Pool(name) => {
                format!("make the pool again: xl cpupool-create name={}", quote(name))
            }
            Requirement::Pci { device, .. } => match rank {
                Severity::Busy => format!("detach it from that domain: xl pci-detach DOMAIN {device}"),
                _ => format!("make it assignable: xl pci-assignable-add {device}"),
            },
            Requirement::Domid(_) => "the image has the number of its domain in it (xl save -D): end that domain, wait a \
                               minute, and repeat this"
                .into(),
            Requirement::Port { .. } => "end that program, or let it use another port".into(),
            Requirement::Address { ip, .. } => {
                format!("give the host that address for the time being: ip addr add {ip} dev lo")
            }
            Requirement::CpuMask { .. } => "let xl use one of them: change the mask in /etc/xen/xl.conf".into(),
            Requirement::Processors { pool, .. } => format!(
                "give one of them to the pool: xl cpupool-cpu-add {} CPU; xl cpupool-list -c shows who has it",
                quote(pool.as_deref().unwrap_or("Pool-0"))
            ),
            Requirement::Memory { .. } | Requirement::FreeMemory(_) => {
                "shut another domain down, or take memory from one: xl mem-set".into()
            }
            Requirement::Emulator => "install it again (Debian: apt install qemu-system-xen)".into(),
            Requirement::Tools => {
                "install them again, in the release of the Xen that runs (Debian: apt install \
                            xen-utils-RELEASE), or boot the new Xen"
                    .into()
            }
            Requirement::AllMemory(_) => "give the domain its maximum of memory before a snapshot: xl list -l DOMAIN; xl mem-set"
                .into(),
            Requirement::Lock => {
                "wait until it has ended, or see what it waits for, and end it: ps -ef; ls -l /var/log/xen".into()
            }
            Requirement::Consoles => {
                "start it: xenconsoled (Debian: /etc/init.d/xen start); running domains do not notice".into()
            }
            Requirement::Usb { .. } => {
                "check its number, and plug it in again until it has the old one: lsusb".into()
            }
            Requirement::Xen(version) => format!(
                "revert to it on a host with Xen {version} or newer; this host's is told by: xl info"
            ),
            Requirement::Served(format) => format!(
                "install a QEMU for Xen that serves {0}, or move the disk to qcow2: qemu-img convert -f {0} \
                 -O qcow2",
                format.qemu()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trouble(rank: Severity, about: &str) -> Trouble {
        Trouble { rank, about: about.into(), why: "why".into(), hint: "do".into() }
    }

    #[test]
    fn all_troubles_are_told_at_once_the_worst_first_each_once() {
        assert!(refusal(Vec::new()).is_none());
        let busy = trouble(Severity::Busy, "a is busy");
        let lost = trouble(Severity::Lost, "b is lost");
        let error = refusal(vec![busy.clone(), lost, busy]).unwrap();
        assert_eq!(error.chain(), ["b is lost", "why"]);
        assert_eq!(error.also.len(), 1);
        assert_eq!(error.also[0].message, "a is busy");
        assert_eq!(error.exit_code(), 3);
    }
}
