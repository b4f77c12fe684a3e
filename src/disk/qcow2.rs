//! The header of a qcow2 file, parsed here: its backing file and what QEMU would refuse, before a
//! tool opens any file that it names. Pure.
//!
//! The format: QEMU, docs/interop/qcow2.txt.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::tool::quote;

/// The number of bytes read for the header, its extensions and the name of the backing file. They
/// are in the first cluster, by default 64 KiB.
pub const READ: u64 = 64 << 10;

/// The number of bytes read of the list of snapshots. QEMU allows 64 MiB (block/qcow2.h, `QCOW_MAX_SNAPSHOTS`);
/// this is enough for tens of thousands with names as long as ours.
pub const READ_LIST: u64 = 4 << 20;

const MAGIC: [u8; 4] = *b"QFI\xfb";
/// The longest name of a backing file, in bytes.
const MAX_BACKING_NAME: usize = 1023;
/// The length of the header of version 2.
const LENGTH_V2: usize = 72;
/// The reference counts of version 2 have 16 bits.
const ORDER_V2: u32 = 4;
/// The shortest header of version 3.
const LENGTH_V3: usize = 104;

/// The number of snapshots that QEMU allows (block/qcow2.h, `QCOW_MAX_SNAPSHOTS`).
const MAX_SNAPSHOTS: u32 = 65536;
/// The length of an entry in the list of snapshots, before its extra data, ID and name.
const SNAPSHOT_ENTRY: usize = 40;

/// Incompatible feature bits: a program that does not know one must not open the image.
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
/// Dirty reference counts, corrupt, external data, kind of compression, extended L2 entries.
const KNOWN_FEATURES: u64 = 0b1_1111;
/// Autoclear bit: the list of bitmaps is consistent. QEMU ignores the list if it is unset.
const BITMAPS: u64 = 1 << 0;

/// Header extensions.
const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const BITMAP_LIST: u32 = 0x2385_2875;

/// Why qemu-img cannot apply a snapshot of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defect {
    /// QEMU has found it damaged, and opens it only for reading until `qemu-img check` repairs it.
    Corrupt,
    /// It has persistent dirty bitmaps, as backup programs leave them: `snapshot -a` fails with "Device has
    /// active dirty bitmaps" (seen with qemu-img 7.2; block/snapshot.c, `bdrv_snapshot_goto`).
    Bitmaps(u32),
    /// Its reference counts have `bits` bits, too few for `snapshots` snapshots.
    Counts { bits: u32, snapshots: u32 },
    /// It has as many snapshots as QEMU allows.
    Snapshots(u32),
}

impl Defect {
    /// `None` for 0 bitmaps.
    pub fn of_bitmaps(count: u32) -> Option<Defect> {
        (count > 0).then_some(Defect::Bitmaps(count))
    }

    pub fn why(self) -> String {
        match self {
            Defect::Corrupt => {
                "the image is marked as corrupt, and QEMU does not write to it".into()
            }
            Defect::Bitmaps(count) => format!(
                "the image has {count} dirty bitmap{} of a backup program, with which no internal snapshot \
                 can be reverted to",
                if count == 1 { "" } else { "s" }
            ),
            Defect::Counts { bits, snapshots } => format!(
                "the image counts references to its clusters in {bits} bit{}, and {snapshots} snapshot{} and what \
                 a revert keeps are more than fit",
                if bits == 1 { "" } else { "s" },
                if snapshots == 1 { "" } else { "s" }
            ),
            Defect::Snapshots(count) => format!(
                "the image has room for {MAX_SNAPSHOTS} snapshots, and {count} and the one that a revert keeps are \
                 too many"
            ),
        }
    }

    /// The command that repairs it while nobody has the image open.
    pub fn remedy(self, path: &Path) -> String {
        let path = quote(path);
        match self {
            Defect::Corrupt => {
                format!("shut the domain down and repair it: qemu-img check -r all -f qcow2 {path}")
            }
            Defect::Bitmaps(_) => format!(
                "shut the domain down and remove them: qemu-img info -f qcow2 {path} lists them, \
                 qemu-img bitmap --remove -f qcow2 {path} NAME removes one"
            ),
            Defect::Snapshots(_) => format!(
                "shut the domain down and remove some: qemu-img snapshot -l {path} lists them, qemu-img snapshot -d \
                 NAME {path} removes one"
            ),
            Defect::Counts { .. } => format!(
                "shut the domain down and give it longer ones: qemu-img amend -f qcow2 -o refcount_bits=16 {path}"
            ),
        }
    }
}

/// The fields of a header that we use.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Header {
    /// The backing file, as the image names it: relative to the image's directory, or a protocol.
    pub backing: Option<PathBuf>,
    /// QEMU's name of that file's format, if it is stated.
    pub backing_format: Option<String>,
    pub snapshots: u32,
    /// The offset of their list.
    pub snapshot_list: u64,
    pub bitmaps: u32,
    /// The size the guest sees, in bytes.
    pub size: u64,
    /// The length of a cluster, in bytes.
    pub cluster: u64,
    pub encrypted: bool,
    /// The incompatible feature bits.
    pub incompatible: u64,
    /// The length of a reference count, in bits, as a power of 2.
    pub refcount_order: u32,
}

impl Header {
    /// Reads the first bytes of a file.
    ///
    /// # Errors
    ///
    /// If it is no qcow2 file, or one that QEMU would not open either.
    pub fn parse(bytes: &[u8]) -> Result<Header, String> {
        let at = Reader(bytes);
        if !bytes.starts_with(&MAGIC) {
            return Err("it is not a qcow2 file".into());
        }
        let version = at.u32(4)?;
        let (length, incompatible, autoclear) = match version {
            2 => (LENGTH_V2, 0, 0),
            3 => (usize::try_from(at.u32(100)?).unwrap_or(0), at.u64(72)?, at.u64(88)?),
            other => return Err(format!("it has version {other} of the qcow2 format")),
        };
        let bits = at.u32(20)?;
        // QEMU, block/qcow2.h: MIN_CLUSTER_BITS and MAX_CLUSTER_BITS.
        if (version == 3 && length < LENGTH_V3) || !(9..=21).contains(&bits) {
            return Err("its qcow2 header is damaged".into());
        }
        let mut header = Header {
            snapshots: at.u32(60)?,
            snapshot_list: at.u64(64)?,
            size: at.u64(24)?,
            cluster: 1 << bits,
            encrypted: at.u32(32)? != 0,
            incompatible,
            refcount_order: if version == 2 { ORDER_V2 } else { at.u32(96)? },
            ..Header::default()
        };
        let (name, size) = (at.u64(8)?, usize::try_from(at.u32(16)?).unwrap_or(usize::MAX));
        if name != 0 && size != 0 {
            if size > MAX_BACKING_NAME {
                return Err("the name of its backing file is too long".into());
            }
            let name = at.bytes(usize::try_from(name).unwrap_or(usize::MAX), size)?;
            header.backing = Some(OsString::from_vec(name.to_vec()).into());
        }
        header.read_extensions(at, length, autoclear)?;
        Ok(header)
    }

    fn read_extensions(
        &mut self,
        at: Reader<'_>,
        mut offset: usize,
        autoclear: u64,
    ) -> Result<(), String> {
        loop {
            let kind = at.u32(offset)?;
            if kind == END {
                return Ok(());
            }
            let length = usize::try_from(at.u32(offset + 4)?).unwrap_or(usize::MAX);
            let content = at.bytes(offset + 8, length)?;
            match kind {
                BACKING_FORMAT => {
                    self.backing_format = Some(String::from_utf8_lossy(content).into_owned());
                }
                BITMAP_LIST if autoclear & BITMAPS != 0 => self.bitmaps = Reader(content).u32(0)?,
                _ => {}
            }
            offset += 8 + length.next_multiple_of(8);
        }
    }

    /// Why the image's name alone is not enough to open it, if it is not.
    pub fn unreadable(&self) -> Option<String> {
        let unknown = self.incompatible & !KNOWN_FEATURES;
        if self.encrypted {
            return Some("it is encrypted, and xl has no way to give QEMU its key".into());
        }
        if self.incompatible & DATA_FILE != 0 {
            return Some(
                "its content is in another file (data_file), which snapshots do not cover".into(),
            );
        }
        (unknown != 0).then(|| format!("it has features that are not known here: {unknown:#x}"))
    }

    /// Whether QEMU opens the image only for reading until `qemu-img check` repairs it.
    pub fn is_corrupt(&self) -> bool {
        self.incompatible & CORRUPT != 0
    }

    /// Why qemu-img cannot apply a snapshot in the image, if it cannot. It can still copy one out of it.
    pub fn unwritable(&self) -> Option<Defect> {
        if self.is_corrupt() {
            return Some(Defect::Corrupt);
        }
        Defect::of_bitmaps(self.bitmaps).or_else(|| self.miscounted(0))
    }

    /// Whether its list of snapshots is too long, or its reference counts are too short, for a revert after `more`
    /// further snapshots. A cluster that all of
    /// them share is counted for each snapshot, for the current contents, for the snapshot with which a revert keeps
    /// those, and once more while a snapshot is applied (block/qcow2-snapshot.c, `qcow2_snapshot_goto`).
    pub fn miscounted(&self, more: u32) -> Option<Defect> {
        let bits = 1u32.checked_shl(self.refcount_order).unwrap_or(u32::MAX);
        let most = 1u64.checked_shl(bits).map_or(u64::MAX, |over| over - 1);
        let snapshots = self.snapshots.saturating_add(more);
        if snapshots >= MAX_SNAPSHOTS {
            return Some(Defect::Snapshots(snapshots));
        }
        (u64::from(snapshots) + 3 > most).then_some(Defect::Counts { bits, snapshots })
    }

    /// The size of the disk at the snapshot with this ID, in bytes, from the first bytes of the list of
    /// snapshots. A snapshot by a QEMU before 1.1 does not record it: then the size of the image, as in
    /// QEMU.
    ///
    /// # Errors
    ///
    /// If the list is damaged or too long, or has no such snapshot.
    pub fn snapshot_virtual_size(&self, list: &[u8], id: &str) -> Result<u64, String> {
        let at = Reader(list);
        let mut entry: usize = 0;
        for _ in 0..self.snapshots {
            let read = |offset: usize| at.u32(entry + offset).map(|number| number as usize);
            let lengths = read(12).and_then(|lengths| Ok((lengths, read(36)?)));
            let (lengths, extra) = lengths.map_err(|_| "its list of snapshots is damaged")?;
            let (id_length, name_length) = (lengths >> 16, lengths & 0xffff);
            let text = entry + SNAPSHOT_ENTRY + extra;
            if at.bytes(text, id_length).map_err(|_| "its list of snapshots is damaged")?
                == id.as_bytes()
            {
                return match extra >= 16 {
                    true => at.u64(entry + SNAPSHOT_ENTRY + 8),
                    false => Ok(self.size),
                };
            }
            entry = (text + id_length + name_length).next_multiple_of(8);
        }
        Err(format!("it lists no snapshot with the ID {id}"))
    }

    /// The initial size of a snapshot in the image, in bytes: a copy of the table that has an entry
    /// of 8 bytes for each table of clusters, the list of snapshots, and reference counts of both.
    pub fn snapshot_size(&self) -> u64 {
        let entries = self.size.div_ceil((self.cluster * self.cluster / 8).max(1));
        (entries * 8).next_multiple_of(self.cluster.max(1)) + 8 * self.cluster
    }
}

/// Numbers, big-endian, at offsets of the file.
#[derive(Clone, Copy)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(self, offset: usize, length: usize) -> Result<&'a [u8], String> {
        let end = offset.checked_add(length);
        end.and_then(|end| self.0.get(offset..end))
            .ok_or_else(|| "its qcow2 header is damaged".to_owned())
    }

    fn u32(self, offset: usize) -> Result<u32, String> {
        let bytes = self.bytes(offset, 4)?;
        Ok(bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte)))
    }

    fn u64(self, offset: usize) -> Result<u64, String> {
        Ok(u64::from(self.u32(offset)?) << 32 | u64::from(self.u32(offset + 4)?))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A header as qemu-img 7.2 writes it, with a backing file and a list of two bitmaps.
    fn bytes() -> Vec<u8> {
        let mut bytes = vec![0; 1024];
        let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
        put(0, &MAGIC);
        put(4, &3_u32.to_be_bytes());
        put(8, &600_u64.to_be_bytes());
        put(16, &7_u32.to_be_bytes());
        put(20, &16_u32.to_be_bytes());
        put(24, &(64_u64 << 20).to_be_bytes());
        put(60, &2_u32.to_be_bytes());
        put(88, &BITMAPS.to_be_bytes());
        put(96, &4_u32.to_be_bytes());
        put(100, &112_u32.to_be_bytes());
        put(112, &BACKING_FORMAT.to_be_bytes());
        put(116, &3_u32.to_be_bytes());
        put(120, b"raw");
        put(128, &BITMAP_LIST.to_be_bytes());
        put(132, &24_u32.to_be_bytes());
        put(136, &2_u32.to_be_bytes());
        put(600, b"../b.im");
        bytes
    }

    pub(crate) fn header() -> Header {
        Header::parse(&bytes()).unwrap()
    }

    #[test]
    fn a_header_is_read() {
        let header = header();
        assert_eq!(header.backing, Some("../b.im".into()));
        assert_eq!(header.backing_format.as_deref(), Some("raw"));
        assert_eq!((header.snapshots, header.bitmaps, header.size), (2, 2, 64 << 20));
        assert_eq!((header.unreadable(), header.is_corrupt()), (None, false));
        assert_eq!(header.snapshot_size(), 9 << 16);
    }

    #[test]
    fn features_are_told() {
        let with = |at: usize, value: u8| {
            let mut bytes = bytes();
            bytes[at] = value;
            Header::parse(&bytes).unwrap()
        };
        assert!(with(79, 0b10).is_corrupt() && with(79, 0b10).unreadable().is_none());
        assert!(with(79, 0b100).unreadable().unwrap().contains("data_file"));
        assert!(with(78, 1).unreadable().unwrap().contains("not known here: 0x100"));
        assert_eq!(with(79, 0b10).unwritable(), Some(Defect::Corrupt));
        assert_eq!(header().unwritable(), Some(Defect::Bitmaps(2)));
        assert_eq!(with(95, 0).unwritable(), None);
        assert!(with(35, 1).unreadable().unwrap().contains("encrypted"));
        // QEMU ignores the list if the autoclear bit is unset.
        assert_eq!(with(95, 0).bitmaps, 0);
    }

    #[test]
    fn reference_counts_have_to_be_long_enough_for_a_revert() {
        let with = |order: u32, snapshots: u32| {
            let mut bytes = bytes();
            bytes[96..100].copy_from_slice(&order.to_be_bytes());
            bytes[60..64].copy_from_slice(&snapshots.to_be_bytes());
            bytes[95] = 0;
            Header::parse(&bytes).unwrap()
        };
        let too_short = |bits, snapshots| Some(Defect::Counts { bits, snapshots });
        assert_eq!(with(0, 0).miscounted(1), too_short(1, 1));
        // Seen with qemu-img 7.2: the snapshot succeeds, and after another one `snapshot -a` fails with "Invalid
        // argument".
        assert_eq!(with(1, 0).miscounted(1), too_short(2, 1));
        assert_eq!(with(1, 1).unwritable(), too_short(2, 1));
        assert_eq!(with(2, 12).unwritable(), None);
        assert_eq!(with(2, 12).miscounted(1), too_short(4, 13));
        assert_eq!(with(4, 1000).miscounted(1), None);
        for order in [6, 7, u32::MAX] {
            assert_eq!(with(order, 65534).miscounted(1), None);
        }
        assert_eq!(with(6, 65535).miscounted(0), None);
        for (snapshots, more, told) in
            [(65535, 1, 65536), (65536, 0, 65536), (u32::MAX, 1, u32::MAX)]
        {
            let many = with(6, snapshots).miscounted(more).unwrap();
            assert_eq!(many, Defect::Snapshots(told));
            assert!(many.why().contains("room for 65536 snapshots"));
            assert!(many.remedy(Path::new("/a")).contains("qemu-img snapshot -d"));
        }
        let why = too_short(2, 1).unwrap().why();
        assert!(why.contains("in 2 bits, and 1 snapshot and what a revert keeps"), "{why}");
    }

    #[test]
    fn the_size_at_a_snapshot_is_read() {
        let entry = |id: &str, extra: &[u8]| {
            let mut entry = vec![0; SNAPSHOT_ENTRY];
            entry[12..14].copy_from_slice(&u16::try_from(id.len()).unwrap().to_be_bytes());
            entry[15] = 2;
            entry[36..40].copy_from_slice(&u32::try_from(extra.len()).unwrap().to_be_bytes());
            entry.extend(extra);
            entry.extend(id.bytes());
            entry.extend(b"s1");
            entry.resize(entry.len().next_multiple_of(8), 0);
            entry
        };
        let size = [[0; 8], (32_u64 << 20).to_be_bytes(), [255; 8]].concat();
        let list = [entry("1", &[]), entry("12", &size)].concat();
        let header = header();
        assert_eq!(header.snapshot_virtual_size(&list, "1"), Ok(64 << 20));
        assert_eq!(header.snapshot_virtual_size(&list, "12"), Ok(32 << 20));
        assert!(header.snapshot_virtual_size(&list, "2").unwrap_err().contains("the ID 2"));
        for cut in [0, 39, list.len() - 10] {
            let why = header.snapshot_virtual_size(&list[..cut], "12").unwrap_err();
            assert!(why.contains("damaged"), "{why}");
        }
        let mut endless = list.clone();
        endless[36..40].copy_from_slice(&[255; 4]);
        assert!(header.snapshot_virtual_size(&endless, "12").is_err());
    }

    #[test]
    fn what_is_damaged_is_an_error() {
        for cut in [0, 3, 8, 71, 103, 112, 130, 605] {
            assert!(Header::parse(&bytes()[..cut]).is_err(), "{cut}");
        }
        for (at, value) in [(7, 4), (7, 0), (23, 8), (23, 22), (101, 255), (117, 255), (16, 1)] {
            let mut bytes = bytes();
            bytes[at] = value;
            assert!(Header::parse(&bytes).is_err(), "{at} {value}");
        }
    }
}
