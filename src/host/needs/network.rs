//! Network devices and addresses.

use std::fs;
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use nix::ifaddrs::{InterfaceAddressIterator, getifaddrs};

use super::answer::CheckContext;
use crate::host::command::find_program;

/// An old configuration names `xenbr0` where the bridge is called eth0 (scripts/vif-bridge).
pub(super) fn bridge(name: &str) -> Option<String> {
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

pub(super) fn device(name: &str) -> Option<String> {
    (!is_device(name)).then(|| no_bridge(name))
}

fn is_device(name: &str) -> bool {
    Path::new(&format!("/sys/class/net/{name}")).exists()
}

fn no_bridge(name: &str) -> String {
    format!("the bridge {name} of its network does not exist")
}

/// The domain that will be destroyed takes its devices with it.
pub(super) fn named(name: &str, around: CheckContext<'_>) -> Option<String> {
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
pub(super) fn address(purpose: &str, ip: IpAddr) -> Option<String> {
    match UdpSocket::bind((ip, 0)) {
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
            Some(format!("its {purpose} server listens on {ip}, which is no address of this host"))
        }
        // Of other troubles QEMU has its own idea.
        _ => None,
    }
}

/// The device through which dom0 routes has an IPv4 address, which the guest's card gets too (scripts/vif-common.sh,
/// `dom0_ip`).
pub(super) fn gateway(name: &str) -> Option<String> {
    let has = |name: &str, mut addresses: InterfaceAddressIterator| {
        addresses.any(|of| {
            let address = of.address.as_ref();
            of.interface_name == name && address.is_some_and(|at| at.as_sockaddr_in().is_some())
        })
    };
    if !is_device(name) {
        return Some(format!(
            "the network device {name}, to which its network is routed, does not exist"
        ));
    }
    // What the kernel does not tell is not missed.
    if getifaddrs().is_ok_and(|addresses| !has(name, addresses)) {
        return Some(format!("{name}, to which its network is routed, has no IPv4 address"));
    }
    program("ifconfig", "vif-route")
}

/// Where the database of Open vSwitch listens: in most builds, and by its own default.
const OVS: [&str; 3] = [
    "/run/openvswitch/db.sock",
    "/var/run/openvswitch/db.sock",
    "/usr/local/var/run/openvswitch/db.sock",
];

/// The script waits half a minute for the database, and fails then.
pub(super) fn open_vswitch() -> Option<String> {
    program("ovs-vsctl", "vif-openvswitch").or_else(|| {
        // Not connected to: a server that hangs would hang us.
        let is_socket =
            |path: &&str| fs::metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
        let runs = OVS.iter().any(is_socket);
        (!runs).then(|| format!("Open vSwitch does not run: there is no socket {}", OVS[0]))
    })
}

/// Why a script lacks a program, if it does.
fn program(name: &str, script: &str) -> Option<String> {
    let missing = find_program(name).is_none();
    missing.then(|| format!("the program {name}, which {script} calls, does not exist"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_networks_need_that_are_no_bridges() {
        let why = gateway("no-such-device").unwrap();
        assert!(why.contains("the network device no-such-device, to which"), "{why}");
        // It has an address everywhere.
        assert_ne!(
            gateway("lo"),
            Some("lo, to which its network is routed, has no IPv4 address".into())
        );
        let why = program("no-such-program", "vif-route").unwrap();
        assert_eq!(why, "the program no-such-program, which vif-route calls, does not exist");
        assert_eq!(program("ls", "vif-route"), None);
    }
}
