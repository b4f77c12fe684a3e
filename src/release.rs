//! Differences between releases of Xen and QEMU, and internals that xl-snapshot relies on. To support another
//! release, compare each row with its source.
//!
//! Tried in the lab: 4.17 with QEMU 7.2 (Debian 12), 4.20 with QEMU 10.0 (Debian 13). The rest is from the sources
//! of the stable branches up to 4.22.
//!
//! | what | releases | source | where it matters |
//! |---|---|---|---|
//! | libxl, its structures, its library | each has its own | `libxl.h`, Debian's `libxenmisc` | `xen-bindings` is made from the headers at hand: a program fits one release |
//! | libxl's calls that are used, by their C prototypes | the same from 4.14 to 4.22 | `libxl.h` | `host/libxl` |
//! | a stream restores on the release that wrote it and on newer ones | all | 4.17 to 4.20 seen in the lab (tests/lab/mixed); a newer release may write records and JSON that an older one does not know | [`is_newer`] |
//! | xl's process takes a suspend for the domain's end, and exits | before 4.20 | xl_vmcontrol.c, `handle_domain_death`; changed by 6b8c85872ed8 | [`xl_exits_at_suspend`]: `create` holds it |
//! | xl cannot resume a domain | before 4.20, which has `xl resume` | xl_cmdtable.c | what `create` says if it cannot either |
//! | an abort of a suspend whose helper does not run yet calls a null pointer | 4.14 to 4.23 | `libxl__save_helper_abort` | `host/libxl/suspend.rs` waits for the first report |
//! | a domain that is gone is logged as an error | after 4.17 | `libxl_domain_info` | `host/libxl.rs` mutes that |
//! | the words of reports and errors | the same from 4.14 to 4.23 | see below | below |
//! | the versions of streams | libxc's is 3 from 4.14 on, before 2 | libxc-migration-stream.pandoc | below |
//! | where the JSON has the boot loader | another place before 4.10 | libxl_types.idl | below |
//! | the text of libxl's JSON: spaces, order of keys, form of numbers | may change with 4.21, which can be built with json-c | libxl_json.c | JSON is compared as values; as text only with itself (`CheckSuspended`) |
//! | a disk can have `backendtype=tap`, served by tapback (`vbd3`) | from 4.19 on | 6d7d8d2b3e, d7c4d59b51 | [`TAPBACK`]; Debian has no tapback, so nothing of it was tried: such a disk is refused by name |
//! | a CD-ROM can have `backendtype=phy`; an empty one a placeholder | from 4.19 on | d9d4c5a142, 4e41947bad | none: a CD-ROM is never part of a snapshot, and an empty one has no path |
//! | `dm_restrict` starts a QEMU of 9.0 or newer | from 4.20 on (`-run-with` for `-chroot` and `-runas`) | 1436593d5f, 82335a8cc5 | none: releases and QEMUs that do not fit are not packaged together |
//! | which formats QEMU serves | those it is built with: Debian 13's has no vpc, qcow, qed, vmdk, vdi | seen: "Unknown driver 'vpc'", and the guest hangs without its disk | [`QEMUS`]: it is asked (`host/needs/served.rs`) |
//! | the names of QEMU's nodes are `VDEV-FORMAT`, opened with locking=off | 7.2 to 10.2 | hw/block/xen-block.c | `host/qmp.rs` |
//! | `block-job-*` is deprecated, `job-*` is not | from QEMU 10.1 on; `job-*` since 3.0 | docs/about/deprecated.rst | jobs are steered by `job-*` |
//! | images are inactive after an HVM guest was saved live | all; `blockdev-set-active` from QEMU 10.0 on (8cd37207f8) | migration/savevm.c, `qmp_xen_save_devices_state` | `create.rs`: not live with internal snapshots. `blockdev-set-active` was not proven in the lab, and 7.2 does without it |

use std::ops::RangeInclusive;

/// The version of libxl's migration streams (docs/specs/libxl-migration-stream.pandoc).
pub const LIBXL_STREAM: u32 = 2;

/// The versions of libxc's (docs/specs/libxc-migration-stream.pandoc): 2 before Xen 4.14. All releases read both.
pub const LIBXC_STREAMS: RangeInclusive<u32> = 2..=3;

/// The report that the guest has just stopped (xg_sr_save.c).
pub const SUSPENDED: &str = "Domain now suspended";

/// What the report of a round of a live save begins with; its number follows, from 0 (xg_sr_save.c,
/// `update_progress_string`).
pub const ROUND: &str = "Frames iteration ";

/// What libxl logs when a guest does not agree to suspend, or agrees and does not (libxl_dom_suspend.c).
pub const GUEST_TIMEOUTS: [&str; 2] =
    ["guest didn't acknowledge suspend", "guest did not suspend, timed out"];

/// What xl says of the domain that it watches: `Waiting for domain NAME (domid N) to die [pid P]`
/// (xl_vmcontrol.c, `create_domain`).
pub const WAITING: &str = "Waiting for domain ";

/// Where xl's processes write to in the background: `xl-NAME.log` (xl_utils.c, `do_daemonize`).
pub const LOG_DIRECTORY: &str = "/var/log/xen/";

/// The program that libxl starts to save and restore memory (libxl_save_callout.c).
pub const SAVE_HELPER: &str = "libxl-save-helper";

/// Where libxl's JSON has a domain's boot loader: since Xen 4.10, and before (libxl_types.idl).
pub const BOOT_LOADER: [&str; 2] = ["/b_info/bootloader", "/b_info/type.pv/bootloader"];

/// How a disk that tapback serves is called in libxl's JSON and in xenstore (libxl_types.idl, `disk_backend`).
pub const TAPBACK: &str = "tap";

/// What Debian's /usr/sbin/xl leads to: it starts the xl of the Xen that runs.
pub const XEN_WRAPPER: &str = "/usr/lib/xen-common/bin/xen-utils-wrapper";
/// Where the programs are that libxl starts, in other builds (configure.ac).
pub const XEN_TOOLS: [&str; 4] = [
    "/usr/lib/xen/bin",
    "/usr/libexec/xen/bin",
    "/usr/local/lib/xen/bin",
    "/usr/local/libexec/xen/bin",
];

/// Where the QEMU is that libxl starts: Debian's build, Xen's own, and builds that use the system's
/// (`--with-system-qemu`; configure.ac). The first that exists is taken for it.
pub const QEMUS: [&str; 6] = [
    "/usr/libexec/xen-qemu-system-i386",
    "/usr/lib/xen/bin/qemu-system-i386",
    "/usr/libexec/xen/bin/qemu-system-i386",
    "/usr/local/lib/xen/bin/qemu-system-i386",
    "/usr/bin/qemu-system-i386",
    "/usr/bin/qemu-system-x86_64",
];

/// The two numbers of a release: 4 and 20 of "4.20.1".
fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.').map(|part| {
        let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        part[..end].parse().ok()
    });
    Some((parts.next()??, parts.next()??))
}

/// Whether Xen `version` is of a newer release than `than`, which then may not be able to read its images. False if
/// either text is not a version.
pub fn is_newer(version: &str, than: &str) -> bool {
    matches!((numbers(version), numbers(than)), (Some(version), Some(than)) if version > than)
}

/// Whether xl's process exits when its domain is suspended. If it does not, stopping it is unnecessary but harmless.
pub fn xl_exits_at_suspend(version: &str) -> bool {
    numbers(version).is_none_or(|numbers| numbers < (4, 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_its_first_two_numbers() {
        assert!(is_newer("4.20.0", "4.17.7"));
        assert!(is_newer("4.18-rc2", "4.17.7") && is_newer("5.0.0", "4.20.0"));
        assert!(!is_newer("4.17.7", "4.20.0") && !is_newer("4.20.4", "4.20.0"));
        assert!(!is_newer("4.9.4", "4.17.0"), "numbers are not compared as text");
        assert!(!is_newer("", "4.17.7") && !is_newer("4", "4.17.7") && !is_newer("4.20.1", "x"));
    }

    #[test]
    fn the_xl_process_is_stopped_where_it_would_exit() {
        assert!(xl_exits_at_suspend("4.17.7") && xl_exits_at_suspend("4.19.5"));
        assert!(!xl_exits_at_suspend("4.20.1") && !xl_exits_at_suspend("4.21-unstable"));
        assert!(xl_exits_at_suspend(""), "of an unknown release it is stopped");
    }
}
