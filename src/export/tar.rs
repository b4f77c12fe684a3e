//! The headers of a tar archive (POSIX ustar; longer files as GNU tar stores them). Pure.

/// What headers and files are padded to, in bytes.
pub const BLOCK: usize = 512;
/// What ends an archive.
pub const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];
/// The largest size that is told in octal digits.
const OCTAL: u64 = (1 << 33) - 1;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// A file of so many bytes.
    File(u64),
    Directory,
}

/// The header of an entry, of root and for root alone. `None` if the name is longer than one can be.
pub fn header(
    directory: &str,
    name: &str,
    entry: Entry,
    mode: u32,
    seconds: u64,
) -> Option<[u8; BLOCK]> {
    const PREFIX: usize = 345;
    let mut block = [0; BLOCK];
    let mut put = |at: usize, room: usize, bytes: &[u8]| {
        let fits = bytes.len() <= room;
        if fits {
            block[at..at + bytes.len()].copy_from_slice(bytes);
        }
        fits.then_some(())
    };
    let (size, kind) = match entry {
        Entry::File(size) => {
            put(0, 100, name.as_bytes())?;
            put(PREFIX, 155, directory.as_bytes())?;
            (size, b'0')
        }
        Entry::Directory => {
            put(0, 100, format!("{directory}/").as_bytes())?;
            (0, b'5')
        }
    };
    put(100, 8, format!("{mode:07o}").as_bytes())?;
    put(108, 8, b"0000000")?;
    put(116, 8, b"0000000")?;
    if size <= OCTAL {
        put(124, 12, format!("{size:011o}").as_bytes())?;
    } else {
        // In binary, marked by the highest bit.
        put(124, 1, &[0x80])?;
        put(128, 8, &size.to_be_bytes())?;
    }
    put(136, 12, format!("{:011o}", seconds.min(OCTAL)).as_bytes())?;
    put(148, 8, b"        ")?;
    put(156, 1, &[kind])?;
    put(257, 8, b"ustar\x0000")?;
    put(265, 32, b"root")?;
    put(297, 32, b"root")?;
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Some(block)
}

/// What follows a file of so many bytes, up to the next header.
pub fn padding(size: u64) -> usize {
    let block = BLOCK as u64;
    usize::try_from(size.next_multiple_of(block) - size).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_has_every_field_in_its_place() {
        let block =
            header("web1-s1", "xvda.qcow2", Entry::File(1234), 0o400, 1_772_330_584).unwrap();
        assert_eq!(&block[..11], b"xvda.qcow2\0");
        assert_eq!(&block[100..108], b"0000400\0");
        assert_eq!(&block[124..136], b"00000002322\0");
        assert_eq!(&block[156..157], b"0");
        assert_eq!(&block[257..265], b"ustar\x0000");
        assert_eq!(&block[345..353], b"web1-s1\0");
        let directory = header("web1-s1", "", Entry::Directory, 0o700, 0).unwrap();
        assert_eq!(&directory[..9], b"web1-s1/\0");
        assert_eq!(&directory[156..157], b"5");
    }

    #[test]
    fn a_large_file_is_told_in_binary() {
        let at =
            |size: u64| header("a", "b", Entry::File(size), 0o600, 0).unwrap()[124..136].to_vec();
        assert_eq!(at(OCTAL), b"77777777777\0");
        assert_eq!(at(OCTAL + 1), [0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]);
    }

    #[test]
    fn a_name_that_does_not_fit_is_refused() {
        assert_eq!(header(&"x".repeat(156), "b", Entry::File(0), 0, 0), None);
        assert_eq!(header(&"x".repeat(100), "", Entry::Directory, 0, 0), None);
        assert!(header(&"x".repeat(99), "", Entry::Directory, 0, 0).is_some());
        assert_eq!(header("a", &"x".repeat(101), Entry::File(0), 0, 0), None);
        assert_eq!((padding(0), padding(1), padding(512)), (0, 511, 0));
    }
}
