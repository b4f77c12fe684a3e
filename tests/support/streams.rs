//! Migration streams.

use crate::memory::entries::has_data;
use crate::memory::stream::{
    LIBXC_END, LIBXC_IDENT, LIBXC_MARKER, LIBXL_END, LIBXL_IDENT, LIBXL_LIBXC_CONTEXT,
};

fn record(kind: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = kind.to_ne_bytes().to_vec();
    bytes.extend(u32::try_from(body.len()).unwrap().to_ne_bytes());
    bytes.extend(body);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

/// A stream with the records of a small PV guest.
pub(crate) fn pv_stream() -> Vec<u8> {
    pv_stream_of(8208)
}

/// The same with that much memory, some of it easy to compress and some not.
pub(crate) fn pv_stream_of(memory: u32) -> Vec<u8> {
    let mut state = 1u32;
    let pages: Vec<u8> = (0..memory)
        .map(|at| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if at / 4096 % 3 == 0 { state.to_be_bytes()[0] } else { 7 }
        })
        .collect();
    let mut bytes = heads();
    bytes.extend([0; 16]);
    bytes.extend(record(1, &pages));
    bytes.extend(record(4, &[9; 13]));
    bytes.extend(record(LIBXC_END, b""));
    bytes.extend(record(2, b"emulator"));
    bytes.extend(record(LIBXL_END, b""));
    bytes
}

/// What stands before the records of libxc, up to the type of the guest.
fn heads() -> Vec<u8> {
    let mut bytes = LIBXL_IDENT.to_be_bytes().to_vec();
    bytes.extend(2u32.to_be_bytes());
    bytes.extend(0u32.to_be_bytes());
    bytes.extend(record(LIBXL_LIBXC_CONTEXT, b""));
    bytes.extend(LIBXC_MARKER.to_be_bytes());
    bytes.extend(LIBXC_IDENT.to_be_bytes());
    bytes.extend(3u32.to_be_bytes());
    bytes.extend([0; 8]);
    bytes
}

/// The content of a page of a guest: zeros for 0.
pub(crate) fn page(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if seed == 0 { 0 } else { state >> 3 }
    };
    (0..512).flat_map(|_| next().to_ne_bytes()).collect()
}

/// A page's entry in a record, and what is in it.
pub(crate) type Entry = (u64, u64);

/// The types of guests in a domain header.
pub(crate) const PV: u32 = 1;
pub(crate) const HVM: u32 = 2;

/// A stream with these records of pages, as libxl writes it for a guest of this type.
pub(crate) fn guest_stream(guest: u32, batches: &[Vec<Entry>]) -> Vec<u8> {
    let mut bytes = heads();
    bytes.extend(guest.to_ne_bytes());
    bytes.extend(12u16.to_ne_bytes());
    bytes.extend([0; 2]);
    bytes.extend(4u32.to_ne_bytes());
    bytes.extend(17u32.to_ne_bytes());
    // STATIC_DATA_END
    bytes.extend(record(0x10, b""));
    for batch in batches {
        let mut body = u32::try_from(batch.len()).unwrap().to_ne_bytes().to_vec();
        body.extend([0; 4]);
        batch.iter().for_each(|(entry, _)| body.extend(entry.to_ne_bytes()));
        let with_data = batch.iter().filter(|(entry, _)| has_data(*entry));
        with_data.for_each(|(_, seed)| body.extend(page(*seed)));
        bytes.extend(record(1, &body));
    }
    // TSC_INFO, and a record whose length is odd.
    bytes.extend(record(8, &[7; 24]));
    bytes.extend(record(9, &[9; 13]));
    bytes.extend(record(LIBXC_END, b""));
    if guest == HVM {
        bytes.extend(record(2, b"emulator"));
        bytes.extend(record(3, &[5; 5001]));
    }
    bytes.extend(record(LIBXL_END, b""));
    bytes
}

/// Two rounds of a live save of a small guest: full and odd batches, zeros, pages that are not there.
pub(crate) fn rounds(guest: u32) -> Vec<Vec<Entry>> {
    let kind = |pfn: u64| match (guest, pfn % 97) {
        // Page tables, and what is not there.
        (PV, 5) => 0x1 << 60,
        (PV, 6) => 0x9 << 60,
        (_, 7) => 0xf << 60,
        (_, 8) => 0xe << 60,
        _ => 0,
    };
    let first = |pfn: u64| (pfn | kind(pfn), if pfn / 16 % 3 == 0 { 0 } else { pfn + 1 });
    let mut batches: Vec<Vec<Entry>> =
        (0..3).map(|batch| (batch * 300..(batch + 1) * 300).map(first).collect()).collect();
    // Nothing but pages that are not there.
    batches.push(vec![(900 | 0xf << 60, 0), (901 | 0xd << 60, 0)]);
    batches.push((0..40).map(|pfn| ((7 * pfn) | kind(7 * pfn), pfn + 5000)).collect());
    batches.push(vec![(17, 6000)]);
    batches
}
