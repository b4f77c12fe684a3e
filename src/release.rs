//! What differs between releases of Xen, and what of them is no interface but is relied on: when another
//! release is to be supported, this is what has to be compared with its source.
//!
//! | what | releases | source | where it matters |
//! |---|---|---|---|
//! | libxl, its structures, its library | each has its own | `libxl.h`, Debian's `libxenmisc` | `xen-bindings` is made from the headers at hand: a program fits one release |
//! | libxl's calls that are used, by their C prototypes | the same from 4.14 to 4.22 | `libxl.h` | `host/libxl` |
//! | xl's process takes a suspend for the domain's end, and exits | before 4.20 | xl_vmcontrol.c, `handle_domain_death`; changed by 6b8c85872ed8 | `host/process/monitor.rs` holds it |
//! | xl cannot resume a domain | before 4.20, which has `xl resume` | xl_cmdtable.c | what `create` says if it cannot either |
//! | an abort of a suspend whose helper does not run yet calls a null pointer | 4.14 to 4.23 | `libxl__save_helper_abort` | `host/libxl/suspend.rs` waits for the first report |
//! | a domain that is gone is logged as an error | after 4.17 | `libxl_domain_info` | `host/libxl.rs` mutes that |
//! | the words of reports and errors | the same from 4.14 to 4.23 | see below | below |
//! | the versions of streams | libxc's is 3 from 4.14 on, before 2 | libxc-migration-stream.pandoc | below |
//! | where the JSON has the boot loader | another place before 4.10 | libxl_types.idl | below |

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
