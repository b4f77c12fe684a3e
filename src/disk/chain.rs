//! Chains of images: each image names its backing file and states that file's format. Pure.

use std::path::{Path, PathBuf};

use crate::disk::qcow2::Header;
use crate::domain::Format;
use crate::tool::check_path;

/// The longest chain we follow. QEMU has no limit, but opens each file.
pub const MAX_LENGTH: usize = 256;

/// Identifies a file or device, whatever its path: the number of its file system and its inode, or
/// the number of the device and 0.
pub type FileId = (u64, u64);

/// One image of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its path, as the image above names it.
    pub path: PathBuf,
    pub id: FileId,
    /// Its format, as the image above states it.
    pub format: Format,
    /// Its header, if it is a qcow2 image.
    pub header: Option<Header>,
}

impl Link {
    /// The image below, and its format.
    ///
    /// # Errors
    ///
    /// If it is no file, or its format is not stated: data that a guest wrote must not decide it.
    pub fn below(&self) -> Result<Option<(PathBuf, Format)>, String> {
        let Some(header) = &self.header else { return Ok(None) };
        let Some(backing) = &header.backing else { return Ok(None) };
        let image = self.path.display();
        let (name, shown) = (backing.to_string_lossy(), backing.display());
        // As QEMU does (util/path or block.c, `path_has_protocol`): a colon before any slash.
        let protocol = name.split('/').next().is_some_and(|first| first.contains(':'));
        let path = self.path.parent().unwrap_or(Path::new("/")).join(backing);
        if protocol || check_path(&path).is_err() {
            return Err(format!("the backing file of {image} is no path of a file: {shown}"));
        }
        let Some(format) = &header.backing_format else {
            return Err(format!(
                "{image} does not state the format of its backing file {shown}: see qemu-img \
                 rebase -u -F"
            ));
        };
        match Format::of_qemu(format) {
            Some(format) => Ok(Some((path, format))),
            None => Err(format!(
                "{image} has the backing file {shown}, whose format {format} xl-snapshot does not know"
            )),
        }
    }

    /// The path that it names as its backing file, whatever else it says of it.
    pub fn named_below(&self) -> Option<PathBuf> {
        let backing = self.header.as_ref()?.backing.as_ref()?;
        Some(self.path.parent().unwrap_or(Path::new("/")).join(backing))
    }

    /// Why it cannot be opened, if it cannot.
    pub fn unreadable(&self) -> Option<String> {
        let why = self.header.as_ref()?.unreadable()?;
        Some(format!("{}: {why}", self.path.display()))
    }
}

/// Whether an image in a format other than qcow2 has a backing file. Those formats do not state its
/// format (QEMU, block/qcow.c and docs/interop/qed_spec.txt).
pub fn names_unstated(format: Format, start: &[u8]) -> bool {
    let any = |range: std::ops::Range<usize>| {
        start.get(range).is_some_and(|bytes| bytes.iter().any(|byte| *byte != 0))
    };
    match format {
        // The offset of the name.
        Format::Qcow => start.starts_with(b"QFI\xfb") && any(8..16),
        // The feature bit of a backing file, little-endian.
        Format::Qed => start.starts_with(b"QED\0") && start.get(16).is_some_and(|b| b & 1 != 0),
        Format::Raw | Format::Qcow2 | Format::Vhd => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::disks::link;

    #[test]
    fn the_image_below_is_a_file_whose_format_is_stated() {
        let below = |path: &str, format: &str| {
            link("/srv/a.qcow2", Format::Qcow2, Some((path, format))).below()
        };
        assert_eq!(below("b.img", "raw"), Ok(Some(("/srv/b.img".into(), Format::Raw))));
        assert_eq!(below("/b:c", "vpc"), Ok(Some(("/b:c".into(), Format::Vhd))));
        for path in ["nbd:localhost:1", "json:{}", "http://x/y", "file:/a", "b\nc"] {
            assert!(below(path, "raw").unwrap_err().contains("is no path of a file"), "{path}");
        }
        assert!(
            below("b.img", "vmdk")
                .unwrap_err()
                .contains("whose format vmdk xl-snapshot does not know")
        );
        let mut bare = link("/srv/a.qcow2", Format::Qcow2, Some(("b.img", "raw")));
        bare.header.as_mut().unwrap().backing_format = None;
        assert!(
            bare.below()
                .unwrap_err()
                .contains("does not state the format of its backing file b.img")
        );
        assert_eq!(link("/srv/a", Format::Raw, None).below(), Ok(None));
    }

    #[test]
    fn older_formats_cannot_state_a_format() {
        let mut qcow = b"QFI\xfb\0\0\0\x01".to_vec();
        qcow.extend([0; 40]);
        assert!(!names_unstated(Format::Qcow, &qcow));
        qcow[15] = 200;
        assert!(names_unstated(Format::Qcow, &qcow));
        assert!(!names_unstated(Format::Raw, &qcow) && !names_unstated(Format::Qed, &qcow));
        let mut qed = b"QED\0".to_vec();
        qed.extend([0; 60]);
        assert!(!names_unstated(Format::Qed, &qed));
        qed[16] = 1;
        assert!(names_unstated(Format::Qed, &qed));
    }
}
