//! The entries of pages in a record of a migration stream.
//!
//! Source: Xen 4.17 docs/specs/libxc-migration-stream.pandoc, "PAGE_DATA".

/// The size of a page of guest memory.
pub const PAGE: usize = 4096;
pub(super) const PAGE_SHIFT: u16 = 12;

/// The type of the libxc record with pages.
pub(super) const PAGE_DATA: u32 = 1;
/// Its fixed part: the count and a reserved word.
pub(super) const BATCH_HEAD: usize = 8;

/// Where the type of a page stands in its entry.
const TYPE_SHIFT: u32 = 60;
/// `XEN_DOMCTL_PFINFO_BROKEN`, `_XALLOC` and `_XTAB` (public/domctl.h): pages without data.
const WITHOUT_DATA: [u64; 3] = [0xd, 0xe, XTAB];
const XTAB: u64 = 0xf;
/// An entry's page number.
const PFN: u64 = (1 << 52) - 1;

/// The number of the page that an entry is about.
pub fn pfn(entry: u64) -> u64 {
    entry & PFN
}

/// Whether the data of a page follow its entry.
pub fn has_data(entry: u64) -> bool {
    !WITHOUT_DATA.contains(&(entry >> TYPE_SHIFT))
}

/// The entry that says of the same page that it is not there.
pub(super) fn absent(entry: u64) -> u64 {
    pfn(entry) | XTAB << TYPE_SHIFT
}

/// The entries of a record, as they stand there.
pub(super) fn entries(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.chunks_exact(8).map(|entry| u64::from_ne_bytes(entry.try_into().expect("eight bytes")))
}
