//! VHDs as files, and the arguments and answers of vhd-util. The format: Microsoft, "Virtual Hard Disk
//! Image Format Specification", 1.0.

use std::array::from_fn;
use std::path::{Path, PathBuf};

use crate::tool::{Invocation, Tool, check_path};

/// The length of the footer, which ends every VHD, in bytes.
pub const FOOTER: usize = 512;
/// The longest chain, including the base: a read may need each of its files.
pub(crate) const MAX_DEPTH: u32 = 30;
/// The length of what we read of the dynamic disk header, which has the parent's UUID, in bytes.
pub const HEADER: usize = 56;
/// "Disk Type" of a VHD with a parent.
const DIFFERENCING: u32 = 4;

/// Facts about a VHD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// The size the guest sees, in bytes.
    pub virtual_size: u64,
    /// Whether it has a parent.
    pub differencing: bool,
    /// Unique; its children name it by this.
    pub uuid: [u8; 16],
    /// The offset of its dynamic disk header in bytes, if it has one.
    pub header: u64,
    /// The length of its chain, including itself; `None` if not queried.
    pub depth: Option<u32>,
}

impl Facts {
    /// Parses a footer ("Hard Disk Footer Format"; numbers are big-endian).
    pub fn of_footer(footer: &[u8; FOOTER]) -> Option<Facts> {
        let number = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|i| footer[at + i]));
        // "one's complement of the sum of all the bytes in the footer without the checksum field"
        let sum = footer
            .iter()
            .enumerate()
            .filter(|(at, _)| !(64..68).contains(at))
            .fold(0_u32, |sum, (_, byte)| sum.wrapping_add(u32::from(*byte)));
        (footer.starts_with(b"conectix") && number(64) == !sum).then(|| Facts {
            virtual_size: u64::from(number(48)) << 32 | u64::from(number(52)),
            differencing: number(60) == DIFFERENCING,
            uuid: from_fn(|i| footer[68 + i]),
            header: u64::from(number(16)) << 32 | u64::from(number(20)),
            depth: None,
        })
    }
}

/// The UUID of the parent, from the child's dynamic disk header ("Dynamic Disk Header Format").
pub fn parent_uuid(header: &[u8; HEADER]) -> Option<[u8; 16]> {
    header.starts_with(b"cxsparse").then(|| from_fn(|i| header[40 + i]))
}

/// Prints the length of a chain.
pub fn query_depth(path: &Path) -> Invocation {
    Invocation::new(Tool::VhdUtil, ["query", "-d", "-n"]).arg(path)
}

/// Prints the parent.
pub fn query_parent(path: &Path) -> Invocation {
    Invocation::new(Tool::VhdUtil, ["query", "-p", "-n"]).arg(path)
}

/// Parses the answer, the parent's path or `FILE has no parent`.
pub fn parse_parent(output: &[u8]) -> Option<PathBuf> {
    let line = std::str::from_utf8(output).ok()?.trim();
    let path = check_path(Path::new(line)).is_ok() && !line.ends_with(" has no parent");
    path.then(|| line.into())
}

/// Parses the answer: `chain depth: N`.
pub fn parse_depth(output: &[u8]) -> Option<u32> {
    std::str::from_utf8(output)
        .ok()?
        .lines()
        .find_map(|line| line.trim().strip_prefix("chain depth:")?.trim().parse().ok())
}

/// Creates an empty child. `-e`: without it, vhd-util leaves a parent without data of its own out
/// of the chain.
pub(crate) fn snapshot(child: &Path, parent: &Path) -> Invocation {
    Invocation::new(Tool::VhdUtil, ["snapshot", "-e", "-l", &MAX_DEPTH.to_string(), "-n"])
        .arg(child)
        .arg("-p")
        .arg(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn footer(disk_type: u8) -> [u8; FOOTER] {
        let mut footer = [0; FOOTER];
        footer[..8].copy_from_slice(b"conectix");
        footer[48..56].copy_from_slice(&(64_u64 << 20).to_be_bytes());
        footer[23] = 200;
        footer[63] = disk_type;
        footer[68..84].copy_from_slice(b"0123456789abcdef");
        let sum: u32 = footer.iter().map(|byte| u32::from(*byte)).sum();
        footer[64..68].copy_from_slice(&(!sum).to_be_bytes());
        footer
    }

    #[test]
    fn a_footer_is_read() {
        let facts = Facts::of_footer(&footer(3)).unwrap();
        assert_eq!((facts.virtual_size, facts.differencing), (64 << 20, false));
        assert_eq!((facts.uuid, facts.header), (*b"0123456789abcdef", 200));
        assert!(Facts::of_footer(&footer(4)).unwrap().differencing);
        let mut damaged = footer(3);
        damaged[200] = 1;
        assert_eq!(Facts::of_footer(&damaged), None);
        assert_eq!(Facts::of_footer(&[0; FOOTER]), None);
    }

    #[test]
    fn a_child_knows_the_uuid_of_its_parent() {
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(b"cxsparse");
        header[40..].copy_from_slice(b"0123456789abcdef");
        assert_eq!(parent_uuid(&header), Some(*b"0123456789abcdef"));
        header[0] = 0;
        assert_eq!(parent_uuid(&header), None);
    }

    #[test]
    fn the_answers_of_vhd_util() {
        assert_eq!(parse_parent(b"/srv/a b.vhd\n"), Some("/srv/a b.vhd".into()));
        for wrong in [&b""[..], b"/srv/a.vhd has no parent\n", b"query failed", b"/a\n/b", b"\xff"]
        {
            assert_eq!(parse_parent(wrong), None);
        }
        assert_eq!(parse_depth(b"chain depth: 3\n"), Some(3));
        for wrong in [&b""[..], b"chain depth: x\n", b"/a has no parent\n", b"\xff\xfe"] {
            assert_eq!(parse_depth(wrong), None);
        }
    }
}
