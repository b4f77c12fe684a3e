//! What `export` copies of one disk. Pure.

use crate::disk::DiskFound;
use crate::record::DiskRecord;
use crate::tool::qemu_img::Whole;

/// What of one disk is copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskExport {
    /// From where.
    pub from: Whole,
    /// The size that the copy gets in the end, in bytes, if qemu-img gives it another one.
    pub fit: Option<u64>,
    /// What the copy takes at most, in bytes, where that is known better than qemu-img can tell.
    pub most: Option<u64>,
}

impl DiskExport {
    /// A copy that is as qemu-img makes it.
    pub(super) fn of(from: Whole) -> DiskExport {
        DiskExport { from, fit: None, most: None }
    }

    /// A copy of so many bytes, of a disk that QEMU may see longer.
    pub(super) fn fitting(self, found: &DiskFound, size: u64) -> DiskExport {
        let other = found.virtual_size.as_ref().is_ok_and(|seen| *seen != size);
        DiskExport { fit: other.then_some(size), ..self }
    }
}

/// The sentence of a refusal.
pub(crate) fn refused(record: &DiskRecord) -> String {
    format!("Disk {} ({}) cannot be exported", record.vdev, record.path.display())
}
