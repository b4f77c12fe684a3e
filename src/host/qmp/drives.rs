//! What QEMU serves and what else it has open: `query-block`, read by our own small types.

use std::io::{Read, Write};
use std::iter;
use std::path::PathBuf;

use qapi::qmp::{qom_get, query_block};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::{Qmp, QmpError};
use crate::disk::Node;
use crate::names::vdev_number;
use crate::tool::qemu_img::SnapshotInfo;

/// The name of the file of an image. QEMU tells options in JSON in its place if an image below is not named as its
/// header has it (block.c, `bdrv_refresh_filename`), which a merge with another spelling of a path leads to.
pub(super) fn file_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let text = String::deserialize(deserializer)?;
    let options = text.strip_prefix("json:").map(serde_json::from_str::<Value>);
    let mut options = options.and_then(Result::ok);
    while let Some(Value::Object(mut object)) = options {
        match object.remove("filename") {
            Some(Value::String(name)) => return Ok(name.into()),
            _ => options = object.remove("file"),
        }
    }
    Ok(text.into())
}

/// One device of `query-block`.
#[derive(Debug, Deserialize)]
struct Block {
    /// The drive's name; empty for Xen's PV disks.
    #[serde(default)]
    device: String,
    /// A device's path in QEMU's object tree.
    qdev: Option<String>,
    inserted: Option<Inserted>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Inserted {
    #[serde(default)]
    node_name: String,
    ro: bool,
    drv: String,
    image: Image,
    #[serde(default)]
    dirty_bitmaps: Vec<DirtyBitmap>,
}

#[derive(Debug, Deserialize)]
struct DirtyBitmap {
    /// Whether QEMU writes it into the image when it ends.
    #[serde(default)]
    persistent: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Image {
    #[serde(deserialize_with = "file_name")]
    filename: PathBuf,
    virtual_size: u64,
    #[serde(default)]
    snapshots: Vec<SnapshotInfo>,
    #[serde(default)]
    encrypted: bool,
    format_specific: Option<Specific>,
    backing_image: Option<Box<Below>>,
}

/// What is of interest of an image below another one.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Below {
    #[serde(default)]
    encrypted: bool,
    format_specific: Option<Specific>,
    backing_image: Option<Box<Below>>,
}

/// What QEMU says of images of one format.
#[derive(Debug, Default, Deserialize)]
struct Specific {
    #[serde(default)]
    data: SpecificData,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct SpecificData {
    data_file: Option<String>,
}

impl Image {
    /// Why its file alone is not its content, if that is so.
    fn elsewhere(&self) -> Option<String> {
        let own = elsewhere(self.encrypted, self.format_specific.as_ref());
        let mut below = self.backing_image.as_deref();
        let mut next = || {
            let image = below?;
            below = image.backing_image.as_deref();
            Some(elsewhere(image.encrypted, image.format_specific.as_ref()))
        };
        own.or_else(|| iter::from_fn(&mut next).flatten().next())
    }
}

fn elsewhere(encrypted: bool, specific: Option<&Specific>) -> Option<String> {
    if let Some(file) = specific.and_then(|specific| specific.data.data_file.as_ref()) {
        return Some(format!("its data is in another file, {file} (qcow2 data_file)"));
    }
    encrypted.then(|| "it, or an image below it, is encrypted".to_owned())
}

impl<S: Read + Write> Qmp<S> {
    /// The disks QEMU serves, with the guest's name of each.
    pub fn disks(&mut self) -> Result<Vec<(String, Node)>, QmpError> {
        Ok(self.drives()?.0)
    }

    /// The disks QEMU serves, with the guest's name of each, and what else it has open for writing, with its
    /// own name of each.
    #[expect(clippy::type_complexity, reason = "two lists of pairs")]
    pub fn drives(&mut self) -> Result<(Vec<(String, Node)>, Vec<(String, PathBuf)>), QmpError> {
        let blocks: Vec<Block> = self.execute(&query_block {})?;
        let emulated: Vec<(String, PathBuf)> = blocks
            .iter()
            .filter(|block| !block.device.is_empty())
            .filter_map(|block| {
                Some((block.device.clone(), block.inserted.as_ref()?.image.filename.clone()))
            })
            .collect();
        let (mut disks, mut others) = (Vec::new(), Vec::new());
        for block in blocks {
            let Some(inserted) = block.inserted else { continue };
            // Xen's PV disks have the property; emulated ones do not.
            let property = block.qdev.map(|path| qom_get { path, property: "vdev".into() });
            let vdev: Option<String> = match property.map(|property| self.execute(&property)) {
                Some(Ok(vdev)) => Some(vdev),
                Some(Err(QmpError::Refused { .. })) | None => None,
                Some(Err(error)) => return Err(error),
            };
            let Some(vdev) = vdev else {
                if !inserted.ro {
                    let name = Some(block.device).filter(|name| !name.is_empty());
                    let name = name.unwrap_or(inserted.node_name);
                    others.push((name, inserted.image.filename));
                }
                continue;
            };
            let mut node = inserted.into_node();
            let drive = emulated.iter().find(|(_, file)| *file == node.file);
            node.emulated = drive.map(|(drive, _)| drive.clone());
            disks.push((whole_disk(&vdev).to_owned(), node));
        }
        Ok((disks, others))
    }
}

impl Inserted {
    fn into_node(self) -> Node {
        Node {
            elsewhere: self.image.elsewhere(),
            name: self.node_name,
            file: self.image.filename,
            driver: self.drv,
            read_only: self.ro,
            virtual_size: self.image.virtual_size,
            snapshots: self.image.snapshots.into_iter().map(SnapshotInfo::into_record).collect(),
            emulated: None,
            bitmaps: u32::try_from(
                self.dirty_bitmaps.iter().filter(|bitmap| bitmap.persistent).count(),
            )
            .unwrap_or(u32::MAX),
        }
    }
}

/// QEMU says `xvda0` for the whole disk `xvda`, and `xvda10` for its tenth partition
/// (hw/block/xen-block.c, `xen_block_get_vdev`; seen with QEMU 7.2). `d0p0` is a name as it stands.
fn whole_disk(vdev: &str) -> &str {
    match vdev.strip_suffix('0') {
        Some(disk)
            if vdev_number(vdev).is_none() && disk.ends_with(|c: char| c.is_ascii_alphabetic()) =>
        {
            disk
        }
        _ => vdev,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_disks() {
        assert_eq!(whole_disk("xvda0"), "xvda");
        assert_eq!(whole_disk("hdc"), "hdc");
        assert_eq!(whole_disk("xvda1"), "xvda1");
        assert_eq!(whole_disk("xvda10"), "xvda10");
        for (told, disk) in
            [("d0p0", "d0p0"), ("d26p0", "d26p0"), ("xvdaa0", "xvdaa"), ("sda0", "sda")]
        {
            assert_eq!(whole_disk(told), disk);
        }
    }

    #[test]
    fn content_that_is_elsewhere_is_noticed() {
        // As QEMU 7.2 says it, shortened.
        let image = |more: &str| {
            let text = format!(r#"{{"filename": "/a", "virtual-size": 512, {more}}}"#);
            serde_json::from_str::<Image>(&text).unwrap().elsewhere()
        };
        let data = r#""format-specific": {"type": "qcow2", "data": {"data-file": "/srv/d", "compat": "1.1"}}"#;
        let wanted = "its data is in another file, /srv/d (qcow2 data_file)";
        assert_eq!(image(data).as_deref(), Some(wanted));
        let below = format!(r#""backing-image": {{"format": "qcow2", {data}}}"#);
        assert_eq!(image(&below).as_deref(), Some(wanted));
        assert!(image(r#""encrypted": true"#).unwrap().contains("encrypted"));
        let plain = r#""encrypted": false, "format-specific": {"type": "file", "data": {}},
                       "backing-image": {"filename": "/b", "backing-image": {}}"#;
        assert_eq!(image(plain), None);
    }
}
