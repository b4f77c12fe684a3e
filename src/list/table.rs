//! The list of snapshots in a qcow2 file, parsed here: a process for each file would take too long. Pure.
//!
//! The format: QEMU, docs/interop/qcow2.txt, "Snapshots".

use std::ops::Range;

use jiff::Timestamp;

use crate::record::QcowSnapshot;

/// The maximum length read of a list, in bytes. QEMU allows 64 MiB (block/qcow2.h,
/// `QCOW_MAX_SNAPSHOTS_SIZE`); an entry of ours has about a hundred bytes.
pub const MOST: u64 = 4 << 20;

/// Where the list is in the file.
///
/// # Errors
///
/// If the file has no header of qcow2.
pub fn place(header: &[u8]) -> Result<Place, String> {
    let damaged = || "its qcow2 header is damaged".to_owned();
    let bytes = |range: Range<usize>| header.get(range).ok_or_else(damaged);
    if bytes(0..4)? != b"QFI\xfb" {
        return Err("it is not a qcow2 file".into());
    }
    let count = number(bytes(60..64)?);
    Ok(Place { count: u32::try_from(count).unwrap_or(u32::MAX), offset: number(bytes(64..72)?) })
}

/// The place of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The number of its entries.
    pub count: u32,
    /// The offset of the first one.
    pub offset: u64,
}

/// Parses a list of `count` entries from the bytes at its place.
///
/// # Errors
///
/// If it does not end within them.
pub fn parse(bytes: &[u8], count: u32) -> Result<Vec<QcowSnapshot>, String> {
    let mut rest = bytes;
    let mut found = Vec::new();
    for _ in 0..count {
        let (entry, length) = entry(rest).ok_or_else(|| match bytes.len() as u64 >= MOST {
            true => format!("it has {count} snapshots, more than are looked at here"),
            false => "its list of snapshots is damaged".to_owned(),
        })?;
        found.push(entry);
        // The last one may end at the end of the file.
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(found)
}

/// The first entry, and its length with what aligns the next one.
fn entry(bytes: &[u8]) -> Option<(QcowSnapshot, usize)> {
    const FIXED: usize = 40;
    let fixed = bytes.get(..FIXED)?;
    let part = |range: Range<usize>| number(&fixed[range]);
    let length = |range| usize::try_from(part(range)).ok();
    let id = FIXED.checked_add(length(36..40)?)?;
    let name = id.checked_add(length(12..14)?)?;
    let end = name.checked_add(length(14..16)?)?;
    let text = |range: Range<usize>| Some(String::from_utf8_lossy(bytes.get(range)?).into_owned());
    let seconds = i64::try_from(part(16..20)).ok()?;
    let date = i32::try_from(part(20..24)).ok().and_then(|ns| Timestamp::new(seconds, ns).ok());
    let snapshot = QcowSnapshot {
        id: text(id..name)?,
        name: text(name..end)?,
        // As `qemu_img::SnapshotInfo`: it matches no record.
        date: date.unwrap_or(Timestamp::MIN),
    };
    Some((snapshot, end.checked_next_multiple_of(8)?))
}

/// A number, big-endian.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry as QEMU writes it, with 16 bytes of extra data.
    fn bytes(id: &str, name: &str, seconds: u32) -> Vec<u8> {
        let mut bytes = vec![0; 40 + 16];
        bytes[12..14].copy_from_slice(&u16::try_from(id.len()).unwrap().to_be_bytes());
        bytes[14..16].copy_from_slice(&u16::try_from(name.len()).unwrap().to_be_bytes());
        bytes[16..20].copy_from_slice(&seconds.to_be_bytes());
        bytes[20..24].copy_from_slice(&7_u32.to_be_bytes());
        bytes[36..40].copy_from_slice(&16_u32.to_be_bytes());
        bytes.extend(id.bytes().chain(name.bytes()));
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    #[test]
    fn a_list_is_read() {
        let list = [bytes("1", "s1", 5), bytes("12", "before the upgrade", u32::MAX)].concat();
        let found = parse(&list, 2).unwrap();
        let date = Timestamp::new(u32::MAX.into(), 7).unwrap();
        let expected = QcowSnapshot { id: "12".into(), name: "before the upgrade".into(), date };
        assert_eq!((found.len(), &found[1], found[0].name.as_str()), (2, &expected, "s1"));
        assert_eq!(parse(&list, 0).unwrap(), []);
        // The padding of the last entry may be missing at the end of a file.
        assert_eq!(parse(&list[..list.len() - 1], 2).unwrap().len(), 2);
    }

    #[test]
    fn a_damaged_list_is_an_error_and_costs_nothing() {
        let list = bytes("1", "s1", 5);
        for cut in [0, 39, 40, 58] {
            assert!(parse(&list[..cut], 1).unwrap_err().contains("damaged"), "{cut}");
        }
        assert!(parse(&list, u32::MAX).is_err());
        let mut huge = list.clone();
        huge[36..40].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(parse(&huge, 1).is_err());
        assert!(place(&[0; 72]).is_err() && place(b"QFI\xfb").is_err());
    }

    #[test]
    fn names_that_are_no_text_are_shown_all_the_same() {
        let mut list = bytes("1", "s1", 5);
        list[57] = 0xff;
        assert_eq!(parse(&list, 1).unwrap()[0].name, "\u{fffd}1");
    }
}
