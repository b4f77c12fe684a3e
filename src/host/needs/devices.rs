//! Devices that are passed through, and the domains that serve devices.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use super::answer::{Answer, CheckContext};
use crate::need::Severity;

/// The numbers of a USB device are those that `usbdev=['hostbus=..., hostaddr=...']` has.
pub(super) fn usb(bus: u64, number: u64) -> Option<String> {
    let is = |path: &Path, name: &str, wanted: u64| {
        let text = fs::read_to_string(path.join(name)).unwrap_or_default();
        text.trim().parse() == Ok(wanted)
    };
    let devices = fs::read_dir("/sys/bus/usb/devices").into_iter().flatten().flatten();
    let mut devices = devices.map(|entry| entry.path());
    let there = devices.any(|path| is(&path, "busnum", bus) && is(&path, "devnum", number));
    (!there).then(|| format!("the USB device {number} of bus {bus} does not exist"))
}

pub(super) fn backend(name: &str, around: CheckContext<'_>) -> Answer {
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

pub(super) fn pci(device: &str, seize: bool, around: CheckContext<'_>) -> Answer {
    let path = format!("/sys/bus/pci/devices/{device}");
    if !Path::new(&path).exists() {
        let why = format!("the PCI device {device} does not exist");
        return Answer::Trouble(Severity::Missing, why);
    }
    let driver = fs::read_link(format!("{path}/driver")).ok();
    let driver = driver.as_deref().and_then(Path::file_name).and_then(OsStr::to_str);
    if let Some(why) = unassignable(device, driver, seize) {
        return Answer::Trouble(Severity::Missing, why);
    }
    let Some(toolstack) = around.toolstack else { return Answer::There };
    let others = toolstack.domains().unwrap_or_default().into_iter().map(|info| info.domid);
    let others = others.filter(|domid| ![around.gone, around.same].contains(&Some(*domid)));
    let mut others = others.filter(|domid| {
        let keys = toolstack.below(&format!("/local/domain/0/backend/pci/{domid}"));
        keys.is_ok_and(|keys| passes_through(&keys, device))
    });
    Answer::busy(others.next().map(|domid| {
        let name = toolstack.domain_name(domid).ok().flatten();
        let name = name.unwrap_or_else(|| domid.to_string());
        format!("domain {name} has the PCI device {device}")
    }))
}

/// Why libxl does not pass a device through, if it does not: it belongs to pciback before, while and after a domain
/// has it (libxl_pci.c, `libxl_pci_assignable`).
fn unassignable(device: &str, driver: Option<&str>, seize: bool) -> Option<String> {
    let assignable = seize || matches!(driver, Some("pciback" | "xen-pciback"));
    (!assignable).then(|| {
        let driver = driver
            .map_or_else(|| "it has no driver".into(), |name| format!("its driver is {name}"));
        format!("the PCI device {device} is not assignable to a domain: {driver}, not pciback")
    })
}

/// Whether a domain with these keys of pciback has the device: `0/dev-1 = 0000:03:00.0`.
fn passes_through(keys: &[(String, String)], device: &str) -> bool {
    let is = |(key, value): &(String, String)| {
        let number = key.rsplit('/').next().and_then(|name| name.strip_prefix("dev-"));
        number.is_some_and(|number| number.parse::<u32>().is_ok()) && value == device
    };
    keys.iter().any(is)
}

/// libxl makes a domain with a fixed number only if that is free, and nobody had it in the last minute
/// (libxl_create.c, `libxl__domain_make`).
pub(super) fn domid(domid: u32, around: CheckContext<'_>) -> Answer {
    let Some(toolstack) = around.toolstack else { return Answer::There };
    let taken = toolstack.domains().unwrap_or_default().iter().any(|info| info.domid == domid);
    Answer::busy(taken.then(|| match around.gone == Some(domid) {
        true => format!(
            "it has to have the number {domid}, which the running domain has, and which Xen's tools give to no \
             other one for a minute after that"
        ),
        false => format!("it has to have the number {domid}, and another domain has it"),
    }))
}

/// Why a file has no loop device, if so: without the one that hands them out, losetup looks for free ones itself.
pub(super) fn loops(file: &Path) -> Option<String> {
    let is_file = fs::metadata(file).is_ok_and(|meta| meta.is_file());
    let any =
        || fs::read_dir("/dev").into_iter().flatten().flatten().any(|e| is_loop(&e.file_name()));
    let missing = is_file && !any();
    missing
        .then(|| format!("dom0 has no loop devices, by which the kernel serves {}", file.display()))
}

/// `loop0` or `loop-control`, not the directory `loop`.
fn is_loop(name: &OsStr) -> bool {
    let rest = name.to_str().and_then(|name| name.strip_prefix("loop"));
    rest.is_some_and(|rest| rest == "-control" || rest.parse::<u32>().is_ok())
}

/// Why dom0's kernel has no driver for such devices, if so. While the domain runs, it has. Else it is loaded with the
/// first device, if the running kernel still has its modules.
pub(super) fn driver(kind: &str, around: CheckContext<'_>) -> Option<String> {
    const BUS: &str = "/sys/bus/xen-backend";
    let there = Path::new(BUS).join("drivers").join(kind).exists();
    if around.gone.is_some() || there || !Path::new(BUS).exists() {
        return None;
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let release = release.trim();
    // NixOS has them elsewhere.
    let mut roots = ["/lib/modules", "/run/booted-system/kernel-modules/lib/modules"].iter();
    let loadable = roots.any(|root| {
        let aliases = fs::read_to_string(format!("{root}/{release}/modules.alias"));
        aliases.is_ok_and(|aliases| has_alias(&aliases, kind))
    });
    (!loadable).then(|| {
        format!(
            "dom0's kernel has no driver for {kind}, and no module for it in /lib/modules/{release}"
        )
    })
}

/// A line of modules.alias: `alias xen-backend:vbd xen_blkback`.
fn has_alias(aliases: &str, kind: &str) -> bool {
    aliases.lines().any(|line| {
        let alias = line.strip_prefix("alias xen-backend:").and_then(|rest| rest.split(' ').next());
        alias == Some(kind)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pci_device_belongs_to_pciback() {
        let why = |driver, seize| unassignable("0000:03:00.0", driver, seize);
        for driver in ["pciback", "xen-pciback"] {
            assert_eq!(why(Some(driver), false), None);
        }
        assert!(why(Some("e1000e"), false).unwrap().ends_with("its driver is e1000e, not pciback"));
        assert!(why(None, false).unwrap().contains("it has no driver"));
        assert_eq!(why(Some("e1000e"), true), None);
    }

    #[test]
    fn another_domain_has_a_pci_device() {
        let key = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let keys = [
            key("0/num_devs", "1"),
            key("0/dev-0", "0000:03:00.0"),
            key("0/vdev-0", "0000:04:00.0"),
        ];
        assert!(passes_through(&keys, "0000:03:00.0"));
        assert!(!passes_through(&keys, "0000:04:00.0") && !passes_through(&keys, "0000:03:00.1"));
    }

    #[test]
    fn loop_devices_and_drivers() {
        for (name, expected) in [
            ("loop0", true),
            ("loop-control", true),
            ("loop", false),
            ("loopy", false),
            ("sda", false),
        ] {
            assert_eq!(is_loop(OsStr::new(name)), expected, "{name}");
        }
        assert_eq!(loops(Path::new("/no/such/file")), None);
        let aliases = "# Aliases\nalias xen-backend:vif xen_netback\nalias xen:vbd xen_blkfront\n";
        assert!(has_alias(aliases, "vif") && !has_alias(aliases, "vbd"));
    }
}
