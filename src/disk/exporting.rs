//! What `export` copies of one disk. Pure.

use crate::disk::SnapshotDisk;
use crate::record::DiskRecord;
use crate::tool::qemu_img::Whole;

/// The copy of one disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskExport {
    pub from: Whole,
    /// The final size of the copy, in bytes, if qemu-img gives it another one.
    pub fit: Option<u64>,
    /// The maximum size of the copy, in bytes, if we know it better than qemu-img.
    pub most: Option<u64>,
}

impl DiskExport {
    /// A copy with the size that qemu-img gives it.
    pub(super) fn of(from: Whole) -> DiskExport {
        DiskExport { from, fit: None, most: None }
    }

    /// A copy of `size` bytes, of a disk that QEMU may see longer.
    pub(super) fn fitting(self, found: &SnapshotDisk, size: u64) -> DiskExport {
        let other = found.virtual_size.as_ref().is_ok_and(|seen| *seen != size);
        DiskExport { fit: other.then_some(size), ..self }
    }
}

/// The first sentence of a refusal.
pub(crate) fn refused(record: &DiskRecord) -> String {
    format!("Disk {} ({}) cannot be exported", record.vdev, record.path.display())
}
