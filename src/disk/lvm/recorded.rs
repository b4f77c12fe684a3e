//! What a record says of a logical volume.

use crate::record::DiskRecord;

/// What of a record speaks of a volume.
pub(super) struct Recorded<'a> {
    pub(super) disk: &'a DiskRecord,
    pub(super) group: &'a str,
    pub(super) volume: &'a str,
    pub(super) snapshot: &'a str,
    pub(super) size: Option<u64>,
}

impl Recorded<'_> {
    pub(super) fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.group)
    }
}
