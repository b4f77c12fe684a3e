//! What of a file shares its storage with others, and having it do so.
//!
//! Two calls of the kernel that no library wraps. The kernel itself compares what is to be shared, while
//! nobody can write to either file: the content of a file never changes by it (ioctl_fideduperange(2)).

#![expect(unsafe_code, reason = "two ioctls that neither nix nor rustix has")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Instant;

use nix::ioctl_readwrite_bad;

/// linux/fs.h: `struct file_dedupe_range` with one `struct file_dedupe_range_info`.
#[repr(C)]
#[derive(Debug)]
pub struct DedupeRange {
    src_offset: u64,
    src_length: u64,
    dest_count: u16,
    reserved1: u16,
    reserved2: u32,
    dest_fd: i64,
    dest_offset: u64,
    bytes_deduped: u64,
    status: i32,
    reserved: u32,
}

/// `FIDEDUPERANGE`, `_IOWR(0x94, 54, struct file_dedupe_range)`: the size is that without the last array.
const FIDEDUPERANGE: u64 = nix::request_code_readwrite!(0x94, 54, 24);
ioctl_readwrite_bad!(fideduperange, FIDEDUPERANGE, DedupeRange);

/// `FILE_DEDUPE_RANGE_DIFFERS`.
const DIFFERS: i32 = 1;

/// How many extents are asked for at once.
const EXTENTS: usize = 512;

/// linux/fiemap.h: `struct fiemap_extent`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// `struct fiemap` with room for its extents.
#[repr(C)]
#[derive(Debug)]
pub struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [Extent; EXTENTS],
}

/// `FS_IOC_FIEMAP`, `_IOWR('f', 11, struct fiemap)`: the size is that without the last array.
const FS_IOC_FIEMAP: u64 = nix::request_code_readwrite!(b'f', 11, 32);
ioctl_readwrite_bad!(fs_ioc_fiemap, FS_IOC_FIEMAP, Fiemap);

const LAST: u32 = 0x1;
const SHARED: u32 = 0x2000;

/// The longest piece that is shared at once: more is cut off by file systems.
pub const MOST: u64 = 16 << 20;

/// Has a piece of `to` share the storage of an equal piece of `from`. Returns how many bytes it was, from the
/// beginning on: 0 if they differ.
///
/// # Errors
///
/// If the file system cannot do it, or a piece does not begin and end with a block.
pub fn share(from: &File, from_at: u64, to: &File, to_at: u64, length: u64) -> io::Result<u64> {
    let mut range = DedupeRange {
        src_offset: from_at,
        src_length: length,
        dest_count: 1,
        reserved1: 0,
        reserved2: 0,
        dest_fd: to.as_raw_fd().into(),
        dest_offset: to_at,
        bytes_deduped: 0,
        status: 0,
        reserved: 0,
    };
    // SAFETY: both descriptors are open during the call, and the kernel reads and writes this structure, which
    // has room for the one destination that it announces, and nothing else of ours.
    unsafe { fideduperange(from.as_raw_fd(), &mut range) }?;
    match range.status {
        0 => Ok(range.bytes_deduped),
        DIFFERS => Ok(0),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

/// How many bytes of a file share their storage with others. `None` where the file system does not tell, or would
/// still tell when it is too late: a file may have millions of extents.
pub fn shared(file: &File, until: Option<Instant>) -> Option<u64> {
    let mut total = 0;
    let mut start = 0;
    loop {
        if until.is_some_and(|until| Instant::now() >= until) {
            return None;
        }
        let mut map = Fiemap {
            start,
            length: u64::MAX - start,
            flags: 0,
            mapped_extents: 0,
            extent_count: u32::try_from(EXTENTS).ok()?,
            reserved: 0,
            extents: [Extent::default(); EXTENTS],
        };
        // SAFETY: the descriptor is open, and the kernel writes no more extents than there is room for by
        // `extent_count`.
        unsafe { fs_ioc_fiemap(file.as_raw_fd(), &mut map) }.ok()?;
        let count = usize::try_from(map.mapped_extents).ok()?.min(EXTENTS);
        let extents = &map.extents[..count];
        let shared = extents.iter().filter(|extent| extent.flags & SHARED != 0);
        total += shared.map(|extent| extent.length).sum::<u64>();
        match extents.last() {
            Some(last) if last.flags & LAST == 0 => start = last.logical + last.length,
            _ => return Some(total),
        }
    }
}
