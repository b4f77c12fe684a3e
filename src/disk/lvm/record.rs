//! The record of a snapshot of a logical volume.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::disk::kind::{Content, Kind, OptionKeys, ProofSlot, RecordText, Selectable, VolumeName};

/// A snapshot of the logical volume, identified by its tag, `xl-snapshot:ID:VDEV`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lvm {
    pub group: String,
    /// The volume the guest writes to.
    pub volume: String,
    /// The name of its snapshot.
    pub snapshot: String,
    /// The space for changes, in bytes; absent for a thin one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

impl Selectable for Lvm {
    const KEYS: Option<OptionKeys> = Some(OptionKeys { file: false, size: true });
}

impl Kind for Lvm {
    fn content(&self) -> Content<'_> {
        let Lvm { group, snapshot, size, .. } = self;
        Content::Volume(VolumeName { group, name: snapshot, thick: size.is_some() })
    }

    fn proof(&mut self) -> ProofSlot<'_> {
        // The proof is LVM's tag, which lvcreate has set.
        ProofSlot::NotNeeded
    }

    fn said(&self) -> Vec<RecordText<'_>> {
        let parts = [&self.group, &self.volume, &self.snapshot];
        parts.map(|part| RecordText::VolumePart(part)).to_vec()
    }

    fn grows<'a>(&'a self, _: Option<&'a Path>) -> Option<&'a Path> {
        None
    }
}
