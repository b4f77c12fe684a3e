//! Devices that are passed through, and the domains that serve devices.

use std::fs;
use std::path::Path;

use super::answer::{Answer, Around};
use crate::need::Rank;

/// The numbers of a USB device are those that `usbdev=['hostbus=..., hostaddr=...']` has.
pub(super) fn usb(bus: u64, number: u64) -> Option<String> {
    let is = |path: &Path, name: &str, wanted: u64| {
        let text = fs::read_to_string(path.join(name)).unwrap_or_default();
        text.trim().parse() == Ok(wanted)
    };
    let devices = fs::read_dir("/sys/bus/usb/devices").into_iter().flatten().flatten();
    let mut devices = devices.map(|entry| entry.path());
    let there = devices.any(|path| is(&path, "busnum", bus) && is(&path, "devnum", number));
    (!there).then(|| format!("the USB device {number} of bus {bus} is not there"))
}

pub(super) fn backend(name: &str, around: Around<'_>) -> Answer {
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

pub(super) fn pci(device: &str, around: Around<'_>) -> Answer {
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
