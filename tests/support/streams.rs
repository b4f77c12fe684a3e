//! Migration streams.

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
    let mut bytes = LIBXL_IDENT.to_be_bytes().to_vec();
    bytes.extend(2u32.to_be_bytes());
    bytes.extend(0u32.to_be_bytes());
    bytes.extend(record(LIBXL_LIBXC_CONTEXT, b""));
    bytes.extend(LIBXC_MARKER.to_be_bytes());
    bytes.extend(LIBXC_IDENT.to_be_bytes());
    bytes.extend(3u32.to_be_bytes());
    bytes.extend([0; 8]);
    bytes.extend([0; 16]);
    bytes.extend(record(1, &pages));
    bytes.extend(record(4, &[9; 13]));
    bytes.extend(record(LIBXC_END, b""));
    bytes.extend(record(2, b"emulator"));
    bytes.extend(record(LIBXL_END, b""));
    bytes
}
