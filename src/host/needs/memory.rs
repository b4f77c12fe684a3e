//! Free memory.

use std::fs;

use super::answer::{Answer, CheckContext};
use super::xl::XlConf;
use crate::need::Severity;

/// What dom0 never gives away, in KiB (libxl_internal.h, `LIBXL_MIN_DOM0_MEM`).
const MIN_DOM0: u64 = 128 << 10;

/// What is free, what the domain gives back, and what xl may take from dom0.
pub(super) fn memory((guest, overhead): (u64, u64), around: CheckContext<'_>) -> Answer {
    let Some(toolstack) = around.toolstack else {
        return Answer::unseen("whether there is enough free memory");
    };
    let Ok(host) = toolstack.host() else { return Answer::There };
    let of = |domid| toolstack.domain_info(domid).ok().flatten().map(|info| info.current_memkb);
    let back = around.gone.and_then(of);
    let needed = needed(guest, overhead, back.is_some());
    let back = back.unwrap_or(0);
    let balloons = XlConf::read().autoballoons(&host.commandline);
    let spare = spare(&fs::read_to_string("/proc/meminfo").unwrap_or_default());
    let taken = of(0).filter(|_| balloons).map_or(0, |dom0| given(dom0, spare));
    let free = host.free_kib.saturating_add(back).saturating_add(taken);
    Answer::busy((free < needed).then(|| {
        format!(
            "it takes {} MiB of memory, and {} MiB would be free",
            needed.div_ceil(1024),
            free / 1024
        )
    }))
}

/// What xl gets from dom0, which has that much.
fn given(dom0: u64, spare: Option<u64>) -> u64 {
    dom0.saturating_sub(MIN_DOM0).min(spare.unwrap_or(u64::MAX))
}

/// What has to be free. What Xen has taken for the domain besides its memory comes back with it: Xen does not say how
/// much that is, but a restore takes the same again.
fn needed(guest: u64, overhead: u64, gives_back: bool) -> u64 {
    if gives_back { guest } else { guest.saturating_add(overhead) }
}

/// What is free, while the domain keeps its own.
pub(super) fn free_memory(needed: u64, around: CheckContext<'_>) -> Answer {
    let Some(toolstack) = around.toolstack else {
        return Answer::unseen("whether there is enough free memory");
    };
    match toolstack.host() {
        Ok(host) => Answer::busy(short_of_memory(needed, host.free_kib)),
        Err(why) => {
            Answer::Trouble(Severity::Busy, format!("how much memory is free is not known: {why}"))
        }
    }
}

fn short_of_memory(needed: u64, free: u64) -> Option<String> {
    let mib = |kib: u64| kib.div_ceil(1024);
    (free < needed).then(|| {
        format!(
            "beside the running domain it takes {} MiB of memory, and {} MiB are free: {} MiB are missing",
            mib(needed),
            free / 1024,
            mib(needed - free)
        )
    })
}

/// What dom0 can give away at once, in KiB: xl waits half a minute for it (xl_vmcontrol.c, `freemem`). What it has in
/// memory without need it gives up or swaps out.
fn spare(meminfo: &str) -> Option<u64> {
    let of = |wanted: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(wanted)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    Some(of("MemAvailable")?.saturating_add(of("SwapFree").unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::need::Requirement;

    #[test]
    fn a_domain_gives_back_what_xen_took_for_it() {
        assert_eq!(needed(65536, 2048, false), 67584);
        assert_eq!(needed(65536, 2048, true), 65536);
        assert_eq!(needed(u64::MAX, 1, false), u64::MAX);
    }

    #[test]
    fn memory_beside_a_running_domain_has_to_be_free() {
        assert_eq!(short_of_memory(100 << 10, 100 << 10), None);
        let why = short_of_memory((100 << 10) + 1, 99 << 10).unwrap();
        assert!(why.contains("it takes 101 MiB of memory, and 99 MiB are free: 2 MiB are missing"));
        assert_eq!(
            Requirement::Memory { guest: 5, overhead: 2 }.without_ballooning(),
            Requirement::FreeMemory(7)
        );
        let bridge = || Requirement::Bridge("xenbr0".into());
        assert_eq!(bridge().without_ballooning(), bridge());
    }

    /// The beginning of /proc/meminfo, and what follows later.
    const MEMINFO: &str = "MemTotal:        4005012 kB\nMemFree:          271652 kB\n\
        MemAvailable:    1048576 kB\nSwapTotal:       2097152 kB\nSwapFree:           4096 kB\n";

    #[test]
    fn dom0_gives_what_it_does_not_need() {
        assert_eq!(spare(MEMINFO), Some(1_052_672));
        assert_eq!(spare(&MEMINFO.replace("SwapFree", "Other")), Some(1_048_576));
        assert_eq!(spare(&MEMINFO.replace("MemAvailable", "MemAvail")), None);
        assert_eq!(given(4 << 20, Some(1 << 20)), 1 << 20);
        assert_eq!(given(1 << 20, Some(4 << 20)), (1 << 20) - MIN_DOM0);
        assert_eq!(given(1 << 20, None), (1 << 20) - MIN_DOM0);
        assert_eq!(given(1 << 10, None), 0);
    }
}
