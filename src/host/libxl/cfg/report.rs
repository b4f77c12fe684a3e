//! What libxlutil says of a configuration file, as text.

use std::{
    cell::Cell,
    ffi::c_char,
    ptr::{self, NonNull},
    slice,
};

use xen_bindings as sys;

use crate::host::libxl::error::printable;
use crate::host::libxl::owned::Malloced;

/// How much of its complaints is shown, in bytes.
pub(super) const REPORT_LIMIT: usize = 4 << 10;
/// How many lines of it are told.
const REPORT_LINES: usize = 4;

/// A `FILE` in memory, into which libxlutil writes its complaints.
pub(super) struct Report {
    stream: NonNull<libc::FILE>,
    /// Where open_memstream(3) keeps its result. It writes there whenever it likes, so it is only
    /// reached through this pointer.
    buffer: NonNull<Buffer>,
    /// How much has been taken.
    taken: Cell<usize>,
}

#[derive(Clone, Copy)]
struct Buffer {
    text: *mut c_char,
    length: usize,
}

impl Report {
    /// An empty report; `None` if there is no memory.
    pub(super) fn new() -> Option<Self> {
        let buffer = Box::leak(Box::new(Buffer { text: ptr::null_mut(), length: 0 }));
        let buffer = NonNull::from(buffer);
        let place = buffer.as_ptr();
        // SAFETY: `place` points to a live Buffer.
        let text = unsafe { &raw mut (*place).text };
        // SAFETY: as above.
        let length = unsafe { &raw mut (*place).length };
        // SAFETY: places for the results, which live until `drop` has closed the stream.
        let stream = unsafe { libc::open_memstream(text, length) };
        let Some(stream) = NonNull::new(stream) else {
            // SAFETY: from the Box above, and nobody else has it.
            drop(unsafe { Box::from_raw(place) });
            return None;
        };
        Some(Self { stream, buffer, taken: Cell::new(0) })
    }

    /// For libxlutil. bindgen and the libc crate each have their own name for C's FILE.
    pub(super) fn stream(&self) -> *mut sys::FILE {
        self.stream.as_ptr().cast()
    }

    /// What was written since the last time, lines joined by "; ".
    pub(super) fn take(&self) -> String {
        // SAFETY: the stream is open until `drop`.
        if unsafe { libc::fflush(self.stream.as_ptr()) } != 0 {
            return String::new();
        }
        // SAFETY: alive until `drop`, and only written to by calls on the stream.
        let Buffer { text, length } = unsafe { self.buffer.as_ptr().read() };
        if text.is_null() {
            return String::new();
        }
        // SAFETY: open_memstream(3): after fflush the two "contain" the buffer and its size, and
        // "remain valid only as long as the caller performs no further output on the stream":
        // there is none before this function returns, and the text is copied.
        let bytes = unsafe { slice::from_raw_parts(text.cast::<u8>(), length) };
        let new = bytes.get(self.taken.replace(length)..).unwrap_or_default();
        let new = new.get(..REPORT_LIMIT).unwrap_or(new);
        let new = String::from_utf8_lossy(new);
        let mut lines: Vec<_> = new.lines().map(str::trim).map(printable).collect();
        // Of a file of another kind, it says one for each line.
        let more = lines.split_off(lines.len().min(REPORT_LINES)).len();
        if more > 0 {
            lines.push(format!("and {more} more"));
        }
        lines.join("; ")
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        // SAFETY: opened in `new` and closed once.
        unsafe { libc::fclose(self.stream.as_ptr()) };
        // SAFETY: from the Box in `new`, and with the stream closed nobody else has it.
        let buffer = unsafe { Box::from_raw(self.buffer.as_ptr()) };
        // SAFETY: open_memstream(3): "After closing the stream, the caller should free(3) this
        // buffer."
        drop(unsafe { Malloced::new(buffer.text) });
    }
}
