//! Collects the needs of a revert from the disks and the configuration.

use super::{Need, Requirement, script};
use crate::disk::kind::Content;
use crate::disk::{self, SnapshotDisk};
use crate::domain::{BadConfig, Disk, DomainConfig, Format};
use crate::names::same_vdev;
use crate::record::Record;

/// What a revert needs: the disks of the snapshot, and what the configuration in it names. For a new
/// domain beside that of the snapshot, the disks of the old one are only read.
///
/// # Errors
///
/// If the configuration is not one that libxl writes.
pub fn of_revert(
    disks: &[SnapshotDisk],
    config: Option<&DomainConfig>,
    domain: &str,
    for_new_domain: bool,
) -> Result<Vec<Need>, BadConfig> {
    let mut needs = Vec::new();
    for found in disks {
        let record = &found.record;
        let about = format!("Disk {} ({}) cannot be reverted", record.vdev, record.path.display());
        let mut whats = disk::needs(found, for_new_domain);
        whats.extend(disk::formats(found).into_iter().filter_map(served));
        needs.extend(whats.into_iter().map(|what| Need { about: about.clone(), what }));
    }
    let Some(config) = config else { return Ok(needs) };
    let left_out = |disk: &Disk| {
        let record = disks.iter().find(|found| same_vdev(&found.record.vdev, &disk.vdev));
        record.is_none_or(|found| found.record.snapshot.is_left_out())
    };
    needs.extend(of_domain(config, domain, &left_out, for_new_domain)?);
    needs.push(Need { about: format!("{domain} cannot be restored"), what: Requirement::Lock });
    let gets_overlay = |found: &SnapshotDisk| match found.record.snapshot.kind().content() {
        Content::Volume(volume) => volume.thick && for_new_domain,
        content => content.is_in_chain(),
    };
    if disks.iter().any(gets_overlay) {
        needs.extend(of_overlay(config, domain, &needs));
    }
    Ok(needs)
}

/// What a new overlay needs besides: QEMU serves it, also if the kernel served the disk before.
pub fn of_overlay(config: &DomainConfig, domain: &str, needs: &[Need]) -> Option<Need> {
    let known = needs.iter().any(|need| need.what == Requirement::Emulator);
    (!known && config.own_emulator().is_none()).then(|| Need {
        about: format!("{domain} cannot be restored"),
        what: Requirement::Emulator,
    })
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
    for_new_domain: bool,
) -> Result<Vec<Need>, BadConfig> {
    let mut needs = Vec::new();
    let disks = config.disks()?;
    for disk in &disks {
        let about = format!("Disk {} ({}) cannot be used", disk.vdev, disk.file().display());
        let whats = of_disk(disk, as_it_is(disk));
        needs.extend(whats.into_iter().map(|what| Need { about: about.clone(), what }));
    }
    let about = format!("{domain} cannot be restored");
    let by_qemu = disks.iter().any(|disk| disk.backend_domain.is_none() && is_by_qemu(disk));
    let emulator = (by_qemu || config.has_emulator()) && config.own_emulator().is_none();
    let user = (by_qemu || config.has_emulator()).then(|| config.emulator_user()).flatten();
    let whats = [Requirement::Tools, Requirement::Consoles]
        .into_iter()
        .chain(config.needs())
        .chain(emulator.then_some(Requirement::Emulator))
        .chain(user.map(|name| Requirement::User(name.to_owned())));
    // They are renamed for a new one; xl ends where it cannot do that (libxl_utils.c, `libxl_create_logfile`).
    let logs = ["xl", "qemu-dm"].map(|of| format!("{LOGS}/{of}-{domain}.log"));
    let whats = whats.chain(logs.map(|log| Requirement::Log(log.into())));
    let whats = whats.chain(STATE.map(|path| Requirement::State(path.into())));
    // A new domain beside another one gets ports of its own, and names of network devices.
    let own =
        |what: &Requirement| matches!(what, Requirement::Port { .. } | Requirement::DeviceName(_));
    let whats = whats.filter(|what| !for_new_domain || !own(what));
    needs.extend(whats.map(|what| Need { about: about.clone(), what }));
    Ok(needs)
}

/// What the memory of a snapshot needs of the host, if it has one.
pub fn of_memory(record: &Record, domain: &str) -> Option<Need> {
    let known = record.disks_only.is_none() && !record.xen.is_empty();
    known.then(|| Need {
        about: format!("{domain} cannot be restored"),
        what: Requirement::Xen(record.xen.clone()),
    })
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
const STATE: [&str; 3] = ["/var/lib/xen", LOGS, "/run/xen"];
const LOGS: &str = "/var/log/xen";

/// What QEMU needs to serve a format. It always has raw and qcow2: libxl itself starts it with those.
fn served(format: Format) -> Option<Requirement> {
    (!matches!(format, Format::Raw | Format::Qcow2)).then_some(Requirement::Served(format))
}

/// Whether QEMU serves it: libxl gives the kernel raw images only.
fn is_by_qemu(disk: &Disk) -> bool {
    let other = disk.format.is_some_and(|format| format != Format::Raw);
    disk.script.is_none() && !disk.by_tapback && (disk.by_qemu || other)
}

fn of_disk(disk: &Disk, as_it_is: bool) -> Vec<Requirement> {
    if let Some(domain) = &disk.backend_domain {
        return vec![Requirement::Backend(domain.clone())];
    }
    let by_kernel = disk.format == Some(Format::Raw) && !disk.by_qemu && !disk.by_tapback;
    // Without one of its own, libxl has blkback's disks set up by this one (libxl_linux.c, `libxl__hotplug_disk`).
    let scripts = disk.script.as_deref().or((by_kernel && !disk.cdrom).then_some("block"));
    let mut needs: Vec<_> = scripts.iter().map(|name| Requirement::Script(script(name))).collect();
    needs.extend((by_kernel && !disk.cdrom).then_some(Requirement::Driver("vbd")));
    let by_qemu = as_it_is && disk.script.is_none() && !disk.by_tapback;
    needs.extend(disk.format.filter(|_| by_qemu).and_then(served));
    // What a script is told may be no path at all; an empty drive has none.
    let is_file = disk.script.is_none() || disk.is_tap_vhd();
    if as_it_is && is_file && !disk.path.as_os_str().is_empty() {
        let (path, writable) = (disk.file().to_owned(), disk.writable && !disk.cdrom);
        if by_kernel && !disk.cdrom && scripts == Some("block") {
            needs.push(Requirement::DiskNotMounted { path: path.clone(), writable });
            needs.push(Requirement::Loops(path.clone()));
        } else if by_qemu && writable {
            needs.push(Requirement::DiskNotMounted { path: path.clone(), writable });
        }
        needs.push(match disk.format {
            Some(format @ (Format::Qcow2 | Format::Qcow | Format::Qed)) => {
                Requirement::Image { path, format, writable }
            }
            _ => Requirement::Usable { path, writable },
        });
    }
    needs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::kinds::{DiskSnapshot, External, Lvm, Reflink};
    use crate::support::disks::{found, proof};
    use crate::support::record::sample;

    #[test]
    fn a_disk_is_needed_as_its_entry_says() {
        let whats = |entry: &str, as_it_is| {
            let config = DomainConfig::parse(&format!(r#"{{"disks": [{entry}]}}"#)).unwrap();
            of_disk(&config.disks().unwrap()[0], as_it_is)
        };
        let iso = r#"{"pdev_path": "/a.iso", "vdev": "hdc", "format": "raw", "is_cdrom": 1}"#;
        let usable = |path: &str, writable| Requirement::Usable { path: path.into(), writable };
        assert_eq!(whats(iso, true), [usable("/a.iso", false)]);
        assert_eq!(whats(iso, false), []);
        let empty = r#"{"vdev": "hdc", "format": "empty", "is_cdrom": 1}"#;
        assert_eq!(whats(empty, true), []);
        let block = Requirement::Script("/etc/xen/scripts/block".into());
        let (vbd, loops) = (Requirement::Driver("vbd"), Requirement::Loops("/a".into()));
        let raw = r#"{"pdev_path": "/a", "vdev": "xvda", "format": "raw", "readwrite": 1}"#;
        let unshared = |writable| Requirement::DiskNotMounted { path: "/a".into(), writable };
        let expected = |writable| {
            let own = [unshared(writable), loops.clone(), usable("/a", writable)];
            [block.clone(), vbd.clone()].into_iter().chain(own).collect::<Vec<_>>()
        };
        assert_eq!(whats(raw, true), expected(true));
        let read = raw.replace(r#""readwrite": 1"#, r#""readwrite": 0"#);
        assert_eq!(whats(&read, true), expected(false));
        assert_eq!(whats(raw, false), [block, vbd]);
        let qdisk = r#"{"pdev_path": "/a", "vdev": "xvda", "format": "raw", "backend": "qdisk"}"#;
        assert_eq!(whats(qdisk, true), [usable("/a", false)]);
        let qdisk = qdisk.replace('}', r#", "readwrite": 1}"#);
        assert_eq!(whats(&qdisk, true), [unshared(true), usable("/a", true)]);
        let qcow2 = r#"{"pdev_path": "/q", "vdev": "xvda", "format": "qcow2", "readwrite": 1}"#;
        let image = Requirement::Image { path: "/q".into(), format: Format::Qcow2, writable: true };
        let unshared = Requirement::DiskNotMounted { path: "/q".into(), writable: true };
        assert_eq!(whats(qcow2, true), [unshared, image]);
        let tap = r#"{"pdev_path": "vhd:/v", "vdev": "xvda", "script": "block-tap"}"#;
        let script = Requirement::Script("/etc/xen/scripts/block-tap".into());
        assert_eq!(whats(tap, true), [script, usable("/v", false)]);
        let drbd = r#"{"pdev_path": "r0", "vdev": "xvda", "script": "block-drbd", "readwrite": 1}"#;
        assert_eq!(whats(drbd, true), [Requirement::Script("/etc/xen/scripts/block-drbd".into())]);
        let vhd = r#"{"pdev_path": "/v", "vdev": "xvda", "format": "vhd", "readwrite": 1}"#;
        let served = Requirement::Served(Format::Vhd);
        let unshared = Requirement::DiskNotMounted { path: "/v".into(), writable: true };
        assert_eq!(whats(vhd, true), [served, unshared, usable("/v", true)]);
        let tapback = r#"{"pdev_path": "/v", "vdev": "xvda", "format": "vhd", "backend": "tap"}"#;
        assert_eq!(whats(tapback, true), [usable("/v", false)]);
        let driver = r#"{"pdev_path": "/a", "vdev": "xvda", "backend_domname": "storage"}"#;
        assert_eq!(whats(driver, true), [Requirement::Backend("storage".into())]);
    }

    #[test]
    fn a_qemu_is_needed_where_libxl_starts_its_own() {
        let needed = |json: &str| {
            let config = DomainConfig::parse(json).unwrap();
            let needs = of_domain(&config, "web1", &|_| false, false).unwrap();
            needs.iter().any(|need| need.what == Requirement::Emulator)
        };
        let disk = |format: &str| {
            format!(r#"{{"disks": [{{"pdev_path": "/a", "vdev": "xvda", "format": "{format}"}}]}}"#)
        };
        assert!(needed(&disk("qcow2")) && !needed(&disk("raw")));
        assert!(
            needed(r#"{"c_info": {"type": "hvm"}}"#) && !needed(r#"{"c_info": {"type": "pvh"}}"#)
        );
        for devices in ["vfbs", "p9s", "channels"] {
            assert!(needed(&format!(r#"{{"{devices}": [{{}}]}}"#)), "{devices}");
        }
        assert!(!needed(r#"{"c_info": {"type": "hvm"}, "b_info": {"device_model": "/opt/qemu"}}"#));
    }

    #[test]
    fn qemu_serves_an_overlay_on_what_the_kernel_served() {
        let raw = r#"{"disks": [{"pdev_path": "/a", "vdev": "xvdb", "format": "raw"}]}"#;
        let config = DomainConfig::parse(raw).unwrap();
        let needed = |snapshot: DiskSnapshot, for_new_domain| {
            let needs =
                of_revert(&[found("/a", snapshot)], Some(&config), "web1", for_new_domain).unwrap();
            needs.iter().filter(|need| need.what == Requirement::Emulator).count()
        };
        let overlay =
            DiskSnapshot::External(External { overlay: "/o".into(), proof: Some(proof()) });
        assert_eq!((needed(overlay.clone(), false), needed(overlay, true)), (1, 1));
        let copy = DiskSnapshot::Reflink(Reflink { copy: "/c".into(), proof: Some(proof()) });
        assert_eq!(needed(copy, false), 0);
        let volume = |size| {
            let names = ["g", "v", "s"].map(str::to_owned);
            let [group, volume, snapshot] = names;
            DiskSnapshot::Lvm(Lvm { group, volume, snapshot, size })
        };
        // The snapshot of a thick volume is copied for another domain.
        assert_eq!((needed(volume(Some(1)), false), needed(volume(Some(1)), true)), (0, 1));
        assert_eq!(needed(volume(None), true), 0);
    }

    #[test]
    fn qemu_runs_as_a_user_that_exists() {
        let user = |kind: &str| {
            let json = format!(
                r#"{{"c_info": {{"type": "{kind}"}}, "b_info": {{"device_model_user": "qemu"}}}}"#
            );
            let needs = of_domain(&DomainConfig::parse(&json).unwrap(), "web1", &|_| false, false);
            needs.unwrap().iter().any(|need| need.what == Requirement::User("qemu".into()))
        };
        assert!(user("hvm") && !user("pvh"));
    }

    #[test]
    fn memory_needs_the_release_that_saved_it() {
        let record = sample();
        let need = of_memory(&record, "web1").unwrap();
        assert_eq!(need.what, Requirement::Xen("4.17.7".into()));
        let unknown = Record { xen: String::new(), ..record };
        assert_eq!(of_memory(&unknown, "web1"), None);
    }
}
