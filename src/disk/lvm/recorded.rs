//! The logical volume in a record, and the names of new volumes.

use std::path::Path;

use crate::disk::parts::{after, refuse_revert};
use crate::disk::{RevertContext, SnapshotDisk};
use crate::error::Result;
use crate::record::DiskRecord;
use crate::tool::quote;
use crate::tool::volumes::Volume;

/// The longest device name (Linux, include/uapi/linux/dm-ioctl.h, `DM_NAME_LEN` with its NUL).
const MAX_DEVICE_NAME: usize = 127;
/// The longest suffix that LVM appends for the hidden devices below a snapshot and its origin:
/// `-cow` or `-real`.
const LONGEST_LAYER: usize = "-real".len();

/// The parts of a record that name a volume.
pub(super) struct Recorded<'a> {
    pub(super) found: &'a SnapshotDisk,
    pub(super) disk: &'a DiskRecord,
    pub(super) group: &'a str,
    pub(super) volume: &'a str,
    pub(super) snapshot: &'a str,
    pub(super) size: Option<u64>,
}

impl<'a> Recorded<'a> {
    /// The disk that the domain uses now, if that is not this volume.
    pub(super) fn elsewhere(&self, origin: Option<&Volume>) -> Option<&'a Path> {
        let (device, inode) = self.found.top_id?;
        let is_origin = inode == 0 && origin.is_some_and(|origin| origin.is_device(device));
        self.found.top.as_deref().filter(|top| !is_origin && *top != self.disk.path)
    }

    /// Where the current contents are kept: in a volume, and in what the domain uses now.
    pub(super) fn kept(&self, keep: &str, elsewhere: Option<&Path>) -> String {
        match elsewhere {
            Some(top) => format!("{} and the volume {keep}", top.display()),
            None => format!("the volume {keep}"),
        }
    }

    /// What to do if the volume has another name now.
    pub(super) fn renamed(&self, other: &str) -> String {
        format!(
            "if the volume was renamed: lvrename {} {} {}",
            quote(self.group),
            quote(other),
            quote(self.volume)
        )
    }

    pub(super) fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.group)
    }
}

/// The name of the volume that keeps the current contents.
pub(super) fn keep_name(
    recorded: &Recorded<'_>,
    volumes: &[Volume],
    context: RevertContext<'_>,
) -> Result<String> {
    free_name(recorded, volumes, context.keep.as_str())
}

/// The name of the volume with the contents of the snapshot, until it takes the name of the guest's volume.
pub(super) fn new_name(
    recorded: &Recorded<'_>,
    volumes: &[Volume],
    context: RevertContext<'_>,
) -> Result<String> {
    free_name(recorded, volumes, &after(context.keep.as_str()))
}

fn free_name(recorded: &Recorded<'_>, volumes: &[Volume], suffix: &str) -> Result<String> {
    let refuse = |why: String| refuse_revert(recorded.disk, why);
    let name = format!("{}.{suffix}", recorded.volume);
    check_name(recorded.group, &name).map_err(refuse)?;
    if volumes.iter().any(|v| v.group == recorded.group && v.name == name) {
        return Err(refuse(format!("the volume {} exists", recorded.path(&name))));
    }
    Ok(name)
}

/// A volume's device name has both names, with every hyphen doubled and one between them (lvm2,
/// libdm/libdm-string.c, `dm_build_dm_name`). LVM checks the length only when it creates the
/// device.
pub(super) fn check_name(group: &str, name: &str) -> std::result::Result<(), String> {
    let doubled = |name: &str| name.len() + name.matches('-').count();
    let length = doubled(group) + 1 + doubled(name) + LONGEST_LAYER;
    if length <= MAX_DEVICE_NAME {
        return Ok(());
    }
    Err(format!(
        "the name {group}/{name} would be too long: {length} bytes as a device, with every hyphen \
         doubled, and {MAX_DEVICE_NAME} are allowed"
    ))
}
