//! Looking whether what a revert needs is there. Changes nothing.

mod answer;
mod devices;
mod files;
mod memory;
mod network;
mod processors;
mod programs;
mod served;
mod shared;
mod volumes;
mod xl;

pub use self::answer::CheckContext;
use self::answer::{Answer, InUse};
use self::served::Served;
use self::xl::XlConf;
use crate::disk::chain::FileId;
use crate::host::files::identity;
use crate::host::openers::{self, Listener, Opener, Ours};
use crate::host::process::is_qemu_of;
use crate::need::{Need, Requirement, Severity, Trouble};

/// What is missing of what is needed, and what could not be looked at without a toolstack.
pub fn troubles(needs: &[Need], around: CheckContext<'_>) -> (Vec<Trouble>, Vec<String>) {
    let mut found = Vec::new();
    let mut unseen = Vec::new();
    let used = used(needs, around);
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

fn used(needs: &[Need], around: CheckContext<'_>) -> InUse {
    let ours = ours(around);
    let files: Vec<FileId> = needs
        .iter()
        .filter_map(|need| match &need.what {
            Requirement::ExclusiveFile(path)
            | Requirement::UnwrittenFile(path)
            | Requirement::Inside(path) => identity(path),
            Requirement::DiskNotMounted { path, writable: true } => identity(path),
            _ => None,
        })
        .collect();
    let ports: Vec<u16> = needs
        .iter()
        .filter_map(|need| match need.what {
            Requirement::Port { number, .. } => Some(number),
            _ => None,
        })
        .collect();
    InUse { files: openers::of_files(&files, &ours), ports: openers::of_ports(&ports, &ours) }
}

/// What ends with the domain that will be destroyed.
fn ours(around: CheckContext<'_>) -> Ours {
    let (Some(toolstack), Some(domid)) = (around.toolstack, around.gone) else {
        return Ours::default();
    };
    // What cannot be read is taken for somebody else's, and told.
    let qemu = toolstack.qemu_pid(domid).ok().flatten();
    let qemu = qemu.filter(|pid| is_qemu_of(*pid, domid));
    Ours {
        processes: qemu.into_iter().collect(),
        loops: toolstack.loops(domid).unwrap_or_default(),
    }
}

fn why(what: &Requirement, around: CheckContext<'_>, used: &InUse) -> Answer {
    match what {
        Requirement::ExclusiveFile(path) => files::alone(path, around, used),
        Requirement::UnwrittenFile(path) => {
            files::written(path, files::user(path, used, around, &|opener| opener.writes))
        }
        Requirement::Inside(path) => {
            let another = |opener: &Opener| opener.domid.is_none() || opener.domid != around.same;
            let writes = |opener: &Opener| opener.writes && another(opener);
            files::written(path, files::user(path, used, around, &writes))
        }
        Requirement::Usable { path, writable } => Answer::missing(
            files::usable(path, *writable).or_else(|| files::frozen(path, *writable)),
        ),
        Requirement::Image { path, format, writable } => Answer::missing(
            files::usable(path, *writable)
                .or_else(|| files::frozen(path, *writable))
                .or_else(|| files::unopenable(path, *format, *writable)),
        ),
        Requirement::DiskNotMounted { path, writable } => {
            shared::unshared(path, *writable, around, used)
        }
        Requirement::Loops(path) => Answer::missing(devices::loops(path)),
        Requirement::Driver(kind) => Answer::missing(devices::driver(kind, around)),
        Requirement::Directory(path) => Answer::missing(files::directory(path)),
        Requirement::WritableDirectory(path) => Answer::missing(files::renames(path)),
        Requirement::State(path) => Answer::missing(files::state(path)),
        Requirement::VolumeArchive => Answer::missing(volumes::archive()),
        Requirement::Program(path) => Answer::missing(programs::program(path)),
        Requirement::Script(path) => Answer::missing(programs::script(path)),
        Requirement::User(name) => Answer::missing(programs::user(name)),
        Requirement::Log(path) => {
            Answer::missing(files::replaced(path).or_else(|| files::rotates(path)))
        }
        Requirement::RenamableFile(path) => Answer::missing(files::replaced(path)),
        Requirement::Bridge(name) => Answer::missing(network::bridge(name)),
        Requirement::Device(name) => Answer::missing(network::device(name)),
        Requirement::Gateway(name) => Answer::missing(network::gateway(name)),
        Requirement::OpenVswitch => Answer::missing(network::open_vswitch()),
        Requirement::DeviceName(name) => Answer::busy(network::named(name, around)),
        Requirement::Address { purpose, ip } => Answer::missing(network::address(purpose, *ip)),
        Requirement::CpuMask { options, of_each } => {
            Answer::missing(XlConf::read().masked(options, of_each))
        }
        Requirement::Processors { pool, of_each } => {
            processors::processors(pool.as_deref(), of_each, around)
        }
        Requirement::Backend(name) => devices::backend(name, around),
        Requirement::Pool(name) => processors::pool(name, around),
        Requirement::Pci { device, seize } => devices::pci(device, *seize, around),
        Requirement::Domid(domid) => devices::domid(*domid, around),
        Requirement::Port { purpose, number, ip } => {
            let takes = |held: &&Listener| held.port == *number && held.overlaps(*ip);
            let holder = used.ports.iter().find(takes);
            let why = |held: &Listener| format!("{} has port {number} for its {purpose}", held.who);
            Answer::busy(holder.map(why))
        }
        Requirement::Memory { guest, overhead } => memory::memory((*guest, *overhead), around),
        Requirement::AllMemory(feature) => Answer::Trouble(
            Severity::Missing,
            format!(
                "it has less memory than maxmem, which Xen does not allow together with {feature}"
            ),
        ),
        Requirement::FreeMemory(kib) => memory::free_memory(*kib, around),
        Requirement::Xen(version) => programs::xen(version, around),
        // Without Xen there is no QEMU of Xen's either.
        Requirement::Emulator => {
            Answer::missing(around.toolstack.and_then(|_| programs::emulator()))
        }
        Requirement::Lock => xl::lock(around),
        Requirement::Tools => programs::tools(around),
        Requirement::Consoles => {
            Answer::missing(around.toolstack.and_then(|_| programs::consoles()))
        }
        Requirement::Usb { bus, number } => Answer::missing(devices::usb(*bus, *number)),
        Requirement::Served(format) => match served::ask(*format) {
            Served::Yes => Answer::There,
            Served::No(why) => Answer::Trouble(Severity::Missing, why),
            Served::Unknown(what) => Answer::Unseen(what),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::domain::Format;

    const NOWHERE: CheckContext<'_> = CheckContext { toolstack: None, gone: None, same: None };

    fn told(what: Requirement) -> Option<String> {
        let need = Need { about: "It".into(), what };
        let (troubles, _) = troubles(&[need], NOWHERE);
        troubles.first().map(ToString::to_string)
    }

    #[track_caller]
    fn expect(what: Requirement, words: &str) {
        let told = told(what).unwrap_or_default();
        assert!(told.contains(words), "{words:?} in {told:?}");
    }

    #[test]
    fn what_is_there_is_no_trouble_and_what_is_not_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        let usable = |writable| Requirement::Usable { path: path.clone(), writable };
        expect(usable(false), "No such file");
        expect(Requirement::ExclusiveFile(path.clone()), "No such file");
        expect(Requirement::Program(path.clone()), "No such file");
        fs::write(&path, "a").unwrap();
        for what in [
            usable(true),
            Requirement::ExclusiveFile(path.clone()),
            Requirement::UnwrittenFile(path.clone()),
        ] {
            assert_eq!(told(what), None);
        }
        expect(Requirement::Program(path.clone()), "no program that can be started");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(told(Requirement::Program(path.clone())), None);
        expect(Requirement::Program(directory.path().into()), "no program");
        let writable = false;
        expect(Requirement::Usable { path: directory.path().into(), writable }, "is a directory");
        assert_eq!(told(Requirement::Directory(directory.path().into())), None);
        expect(Requirement::Directory(path.clone()), "is no directory");
        assert_eq!(told(Requirement::WritableDirectory(directory.path().into())), None);
        assert_eq!(told(Requirement::State(directory.path().into())), None);
        // The base of an overlay: root could write to it all the same.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
        expect(usable(true), "has no write permission, as the base of an overlay");
        for what in [usable(false), Requirement::ExclusiveFile(path.clone())] {
            assert_eq!(told(what), None);
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(devices::usb(250, 250).unwrap().contains("device 250 of bus 250"));
        let image =
            Requirement::Image { path: path.clone(), format: Format::Qcow2, writable: true };
        expect(image, "it is not a qcow2 file");
        expect(Requirement::Bridge("no-such-bridge".into()), "bridge no-such-bridge");
        expect(Requirement::Device("no-such-bridge".into()), "bridge no-such-bridge");
        // A script would try to add the guest's card to it.
        expect(
            Requirement::Bridge("lo".into()),
            "lo, the bridge of its network, is a network device of another kind",
        );
        assert_eq!(told(Requirement::Device("lo".into())), None);
        expect(Requirement::DeviceName("lo".into()), "a network device called lo in dom0 already");
        assert_eq!(told(Requirement::DeviceName("no-such-device".into())), None);
        let address = |ip: &str| Requirement::Address { purpose: "VNC", ip: ip.parse().unwrap() };
        // For documentation (RFC 5737).
        expect(address("192.0.2.7"), "listens on 192.0.2.7, which is no address of this host");
        for ip in ["127.0.0.1", "0.0.0.0"] {
            assert_eq!(told(address(ip)), None);
        }
        expect(Requirement::Pci { device: "ffff:00:00.0".into(), seize: true }, "does not exist");
        expect(Requirement::User("no-such-user".into()), "there is no user no-such-user");
        assert_eq!(told(Requirement::User("root".into())), None);
    }

    #[test]
    fn what_takes_the_toolstack_is_said_not_to_be_known() {
        let needs = [
            Requirement::Memory { guest: 1, overhead: 1 },
            Requirement::Pool("p".into()),
            Requirement::Backend("d".into()),
            Requirement::Xen("4.20.1".into()),
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
        let id = identity(&path).unwrap();
        let why = |what: &Requirement, writes| {
            let used = InUse { files: vec![(id, opener(writes))], ports: Vec::new() };
            match why(what, NOWHERE, &used) {
                Answer::Trouble(rank, why) => Some((rank, why)),
                _ => None,
            }
        };
        let still = Requirement::UnwrittenFile(path.clone());
        assert_eq!(why(&still, false), None);
        assert!(why(&still, true).unwrap().1.contains("dd (process 7) may write to"));
        // The domain's own QEMU writes elsewhere than to what belongs to a snapshot.
        let inside = |domid, same| {
            let opener = Opener { who: "qemu (process 8)".into(), domid, writes: true };
            let used = InUse { files: vec![(id, opener)], ports: Vec::new() };
            let around = CheckContext { same, ..NOWHERE };
            matches!(super::why(&Requirement::Inside(path.clone()), around, &used), Answer::There)
        };
        assert!(inside(Some(7), Some(7)));
        assert!(!inside(Some(7), Some(8)) && !inside(Some(7), None) && !inside(None, None));
        let alone = Requirement::ExclusiveFile(path.clone());
        let told = (Severity::Busy, "dd (process 7) has it open".to_owned());
        assert_eq!(why(&alone, false), Some(told));
    }
}
