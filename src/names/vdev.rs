//! The guest's names for disks. Each disk has several: `xvda`, `d0p0` and `51712` are the same
//! disk.

/// Whether two names mean the same disk.
pub fn same_vdev(one: &str, other: &str) -> bool {
    one == other || vdev_number(one).is_some_and(|number| vdev_number(other) == Some(number))
}

/// The number that libxl gives a disk (libxl_device.c, `libxl__device_disk_dev_number`; xen-vbd-interface(7));
/// `None` for a name that it does not take.
pub fn vdev_number(vdev: &str) -> Option<u32> {
    let by_number = || {
        let (disk, partition) = vdev.strip_prefix('d')?.split_once('p')?;
        let (disk, partition) = (number(disk)?, number(partition)?);
        (disk < 1 << 20 && partition < 256).then_some((disk, partition))
    };
    if let Some((disk, partition)) =
        by_number().or_else(|| by_letters(vdev, "xvd", (1 << 20) - 1, 255))
    {
        return Some(match disk <= 15 && partition <= 15 {
            true => 202 << 8 | disk << 4 | partition,
            false => 1 << 28 | disk << 8 | partition,
        });
    }
    if let Some(number) = number(vdev) {
        return (number <= i32::MAX as u32).then_some(number);
    }
    if let Some((disk, partition)) = by_letters(vdev, "hd", 3, 63) {
        let major = if disk < 2 { 3 } else { 22 };
        return Some(major << 8 | (disk & 1) << 6 | partition);
    }
    let (disk, partition) = by_letters(vdev, "sd", 15, 15)?;
    Some(8 << 8 | disk << 4 | partition)
}

/// The disk and the partition in `xvdaa3`; 0 is the whole disk.
fn by_letters(vdev: &str, begin: &str, last: u32, last_partition: u32) -> Option<(u32, u32)> {
    let rest = vdev.strip_prefix(begin)?;
    let letters = rest.trim_start_matches(|c: char| c.is_ascii_lowercase());
    let (letters, partition) = rest.split_at(rest.len() - letters.len());
    let mut disk = None;
    for letter in letters.bytes() {
        let above = disk.map_or(0, |disk: u32| disk + 1);
        disk = Some(above * 26 + u32::from(letter - b'a'));
        disk.filter(|disk| *disk <= last)?;
    }
    let partition = match partition {
        "" => 0,
        digits if digits.starts_with('0') => return None,
        digits => digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())??,
    };
    (partition <= last_partition).then_some((disk?, partition))
}

/// As strtoul(3) reads it with base 0.
fn number(text: &str) -> Option<u32> {
    let (digits, base) = match text.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&text[2..], 16),
        [b'0', _, ..] => (&text[1..], 8),
        _ => (text, 10),
    };
    // Rust would accept "+4" as well.
    let plain = digits.bytes().all(|b| b.is_ascii_hexdigit());
    plain.then(|| u32::from_str_radix(digits, base).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_the_number_of_libxl() {
        for (names, number) in [
            (&["xvda", "d0p0", "51712", "0xca00", "0145000", "d0x0p00"][..], 51712),
            (&["xvda1", "d0p1", "51713"], 51713),
            (&["xvdp15", "d15p15"], 51967),
            (&["xvdq", "d16p0", "268439552"], 1 << 28 | 16 << 8),
            (&["xvdz"], 1 << 28 | 25 << 8),
            (&["xvdaa", "d26p0"], 1 << 28 | 26 << 8),
            (&["xvdba3", "d52p3"], 1 << 28 | 52 << 8 | 3),
            (&["xvda16", "d0p16"], 1 << 28 | 16),
            (&["hda", "768"], 3 << 8),
            (&["hdb63"], 3 << 8 | 64 | 63),
            (&["hdc"], 22 << 8),
            (&["hdd1"], 22 << 8 | 64 | 1),
            (&["sda", "2048"], 8 << 8),
            (&["sdp15"], 8 << 8 | 15 << 4 | 15),
        ] {
            for name in names {
                assert_eq!(vdev_number(name), Some(number), "{name}");
                assert!(same_vdev(name, names[0]));
            }
        }
        for name in [
            "",
            "xvd",
            "xvda0",
            "xvda01",
            "xvda256",
            "xvda1x",
            "hde",
            "hda64",
            "sdq",
            "sda16",
            "vda",
            "d0",
            "d0p",
            "dp0",
            "d0p256",
            "d1048576p0",
            "4294967295",
            "+5",
            "xvdA",
            "xvdzzzzzzz",
            "x",
        ] {
            assert_eq!(vdev_number(name), None, "{name}");
            assert!(same_vdev(name, name));
        }
        assert!(
            !same_vdev("xvda", "hda") && !same_vdev("xvda", "xvda1") && !same_vdev("vda", "vdb")
        );
    }
}
