//! What the hypervisor says about a domain and about itself, as Rust types.

use std::fmt;

use uuid::Uuid;
use xen_bindings as sys;

/// A domain as the hypervisor sees it (`libxl_dominfo`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainInfo {
    /// Its number; 0 is dom0.
    pub domid: u32,
    /// Its UUID; nil for dom0.
    pub uuid: Uuid,
    /// On a processor at this moment.
    pub running: bool,
    /// Waiting for something: what an idle guest does.
    pub blocked: bool,
    /// Paused by the toolstack.
    pub paused: bool,
    /// Stopped for good or for now: see `shutdown_reason`.
    pub shutdown: bool,
    /// Being destroyed.
    pub dying: bool,
    /// Why it is shut down; only then.
    pub shutdown_reason: Option<ShutdownReason>,
    /// How long its virtual processors have run, in nanoseconds.
    pub cpu_time: u64,
    /// Memory it has now, in KiB.
    pub current_memkb: u64,
    /// Memory it may have, in KiB.
    pub max_memkb: u64,
    /// Memory claimed for it and not yet given, in KiB.
    pub outstanding_memkb: u64,
}

/// Why a domain is shut down (`enum libxl_shutdown_reason`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownReason {
    /// It switched itself off.
    Poweroff,
    /// It asked to be started again.
    Reboot,
    /// It is suspended, and can be resumed.
    Suspend,
    Crash,
    Watchdog,
    /// It asked for a soft reset (kexec).
    SoftReset,
    /// A reason this program does not know.
    Other(i32),
}

impl fmt::Display for ShutdownReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Poweroff => "switched itself off",
            Self::Reboot => "asked for a reboot",
            Self::Suspend => "suspended itself",
            Self::Crash => "crashed",
            Self::Watchdog => "was ended by its watchdog",
            Self::SoftReset => "asked for a soft reset",
            Self::Other(number) => return write!(f, "shut down, for reason {number}"),
        })
    }
}

impl DomainInfo {
    /// How the guest has ended, if it has: it cannot go on. One that is suspended can.
    #[must_use]
    pub fn ended(&self) -> Option<ShutdownReason> {
        self.shutdown_reason.filter(|reason| *reason != ShutdownReason::Suspend)
    }
}

/// What Xen says of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Free memory, in KiB.
    pub free_kib: u64,
    /// Xen's own command line.
    pub commandline: String,
}

/// The version of the running hypervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XenVersion {
    /// 4 in "4.17.7".
    pub major: u32,
    /// 17 in "4.17.7".
    pub minor: u32,
    /// ".7" in "4.17.7"; distributions add to it.
    pub extra: String,
}

impl fmt::Display for XenVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}{}", self.major, self.minor, self.extra)
    }
}

impl DomainInfo {
    pub(super) fn from_c(info: &sys::libxl_dominfo) -> Self {
        Self {
            domid: info.domid,
            uuid: Uuid::from_bytes(info.uuid.uuid),
            running: info.running,
            blocked: info.blocked,
            paused: info.paused,
            shutdown: info.shutdown,
            dying: info.dying,
            shutdown_reason: info.shutdown.then(|| ShutdownReason::from_c(info.shutdown_reason)),
            cpu_time: info.cpu_time,
            current_memkb: info.current_memkb,
            max_memkb: info.max_memkb,
            outstanding_memkb: info.outstanding_memkb,
        }
    }
}

impl ShutdownReason {
    fn from_c(reason: sys::libxl_shutdown_reason) -> Self {
        match reason {
            sys::LIBXL_SHUTDOWN_REASON_POWEROFF => Self::Poweroff,
            sys::LIBXL_SHUTDOWN_REASON_REBOOT => Self::Reboot,
            sys::LIBXL_SHUTDOWN_REASON_SUSPEND => Self::Suspend,
            sys::LIBXL_SHUTDOWN_REASON_CRASH => Self::Crash,
            sys::LIBXL_SHUTDOWN_REASON_WATCHDOG => Self::Watchdog,
            sys::LIBXL_SHUTDOWN_REASON_SOFT_RESET => Self::SoftReset,
            other => Self::Other(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_shutdown_reasons_keep_their_number() {
        assert_eq!(ShutdownReason::from_c(2), ShutdownReason::Suspend);
        assert_eq!(ShutdownReason::from_c(99), ShutdownReason::Other(99));
    }

    #[test]
    fn a_suspended_guest_has_not_ended() {
        let info = |shutdown_reason| DomainInfo {
            domid: 3,
            uuid: Uuid::nil(),
            running: false,
            blocked: true,
            paused: false,
            shutdown: true,
            dying: false,
            shutdown_reason,
            cpu_time: 0,
            current_memkb: 0,
            max_memkb: 0,
            outstanding_memkb: 0,
        };
        assert_eq!(info(None).ended(), None);
        assert_eq!(info(Some(ShutdownReason::Suspend)).ended(), None);
        let crashed = info(Some(ShutdownReason::Crash)).ended();
        assert_eq!(crashed.unwrap().to_string(), "crashed");
    }

    #[test]
    fn versions_read_as_xl_info_prints_them() {
        let version = XenVersion { major: 4, minor: 17, extra: ".7".to_owned() };
        assert_eq!(version.to_string(), "4.17.7");
    }
}
