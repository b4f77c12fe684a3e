//! The space of file systems.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::statvfs::statvfs;
use rustix::fs::statfs;

/// The free space in bytes of the file system of the nearest existing directory above `path`.
pub fn free_space(path: &Path) -> io::Result<u64> {
    Ok(room(path)?.free)
}

/// The room on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// The number of the file system.
    pub device: u64,
    /// What is free, in bytes.
    pub free: u64,
    /// Its size in bytes.
    pub total: u64,
    /// Whether it is in memory, so that it ends with the host.
    pub volatile: bool,
}

/// File systems in memory (Linux, include/uapi/linux/magic.h): TMPFS_MAGIC, RAMFS_MAGIC.
const VOLATILE: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// The room on the file system of the nearest existing directory above `path`.
pub fn room(path: &Path) -> io::Result<Room> {
    let directory = path
        .ancestors()
        .skip(1)
        .find(|directory| directory.is_dir())
        .ok_or(io::ErrorKind::NotFound)?;
    let stat = statvfs(directory)?;
    // What a FUSE file system without an end says is more than there is.
    let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
    let kind = statfs(directory)?.f_type as u64;
    Ok(Room {
        device: file_system(directory)?,
        // A ramfs has no end, and says 0 of 0.
        free: if stat.blocks() == 0 { u64::MAX } else { bytes(stat.blocks_available()) },
        total: bytes(stat.blocks()),
        volatile: VOLATILE.contains(&kind),
    })
}

/// The number of the file system of a directory.
pub fn file_system(directory: &Path) -> io::Result<u64> {
    Ok(fs::metadata(directory)?.dev())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_in_memory_is_known() {
        // As on every Linux.
        assert!(room(Path::new("/dev/shm/x")).unwrap().volatile);
        assert!(!room(Path::new("/proc/self/x")).unwrap().volatile);
        // One that says 0 of 0 has no end that is known.
        assert_eq!(room(Path::new("/proc/self/x")).unwrap().free, u64::MAX);
    }
}
