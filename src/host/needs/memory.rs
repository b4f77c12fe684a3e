//! Free memory.

use std::fs;

use super::answer::{Answer, Around};
use crate::need::Rank;

/// What dom0 never gives away, in KiB (libxl_internal.h, `LIBXL_MIN_DOM0_MEM`).
const MIN_DOM0: u64 = 128 << 10;
/// How xl is configured.
const XL_CONF: &str = "/etc/xen/xl.conf";

/// What is free, what the domain gives back, and what xl may take from dom0.
pub(super) fn memory((guest, overhead): (u64, u64), around: Around<'_>) -> Answer {
    let Some(toolstack) = around.toolstack else {
        return Answer::unseen("whether there is enough free memory");
    };
    let Ok(host) = toolstack.host() else { return Answer::There };
    let of = |domid| toolstack.domain_info(domid).ok().flatten().map(|info| info.current_memkb);
    let back = around.gone.and_then(of);
    let needed = needed(guest, overhead, back.is_some());
    let back = back.unwrap_or(0);
    let balloons =
        autoballoons(&fs::read_to_string(XL_CONF).unwrap_or_default(), &host.commandline);
    let taken = of(0).filter(|_| balloons).map_or(0, |dom0| dom0.saturating_sub(MIN_DOM0));
    let free = host.free_kib.saturating_add(back).saturating_add(taken);
    Answer::busy((free < needed).then(|| {
        format!(
            "it takes {} MiB of memory, and {} MiB would be free",
            needed.div_ceil(1024),
            free / 1024
        )
    }))
}

/// What has to be free. What Xen has taken for the domain besides its memory comes back with it: Xen does not say how
/// much that is, but a restore takes the same again.
fn needed(guest: u64, overhead: u64, gives_back: bool) -> u64 {
    if gives_back { guest } else { guest.saturating_add(overhead) }
}

/// What is free, while the domain keeps its own.
pub(super) fn free_memory(needed: u64, around: Around<'_>) -> Answer {
    let Some(toolstack) = around.toolstack else {
        return Answer::unseen("whether there is enough free memory");
    };
    match toolstack.host() {
        Ok(host) => Answer::busy(short_of_memory(needed, host.free_kib)),
        Err(why) => {
            Answer::Trouble(Rank::Busy, format!("how much memory is free is not known: {why}"))
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

/// Whether xl takes memory from dom0 for a new domain (xl.conf(5), `autoballoon`: by default only where
/// Xen was not told `dom0_mem`).
fn autoballoons(xl_conf: &str, commandline: &str) -> bool {
    let said = xl_conf.lines().filter_map(|line| {
        let (key, value) = line.split_once('=')?;
        (key.trim() == "autoballoon").then(|| value.trim().trim_matches(['"', '\'']).to_owned())
    });
    match said.fold(None, |_, value| Some(value)).as_deref() {
        Some("off" | "0") => false,
        Some("on" | "1") => true,
        _ => !commandline.split_whitespace().any(|word| word.starts_with("dom0_mem=")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::need::What;

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
            What::Memory { guest: 5, overhead: 2 }.without_ballooning(),
            What::FreeMemory(7)
        );
        let bridge = || What::Bridge("xenbr0".into());
        assert_eq!(bridge().without_ballooning(), bridge());
    }

    #[test]
    fn when_xl_takes_memory_from_dom0() {
        for (conf, line, expected) in [
            ("", "", true),
            ("", "console=com1 dom0_mem=2G,max:2G", false),
            ("autoballoon=\"off\"\n", "", false),
            ("#autoballoon=0\nautoballoon = 1\n", "dom0_mem=1G", true),
            ("autoballoon=\"auto\"", "", true),
        ] {
            assert_eq!(autoballoons(conf, line), expected, "{conf} {line}");
        }
    }
}
