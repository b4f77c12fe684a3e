//! Network devices and addresses.

use std::io;
use std::net::{IpAddr, UdpSocket};
use std::path::Path;

use super::answer::Around;

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
    format!("the bridge {name} of its network is not there")
}

/// The domain that will be destroyed takes its devices with it.
pub(super) fn named(name: &str, around: Around<'_>) -> Option<String> {
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
