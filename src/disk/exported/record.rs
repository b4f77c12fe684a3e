//! The record of a disk of an export.

use serde::{Deserialize, Serialize};

use crate::disk::kind::{
    Content, Frozen, Kind, OptionKeys, ProofSlot, Reader, RecordText, Selectable,
};
use crate::disk::proof::FrozenFile;

/// The disk's file is a full copy of the disk, in the directory of the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exported {
    /// Absent only while the record is incomplete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<FrozenFile>,
}

impl Selectable for Exported {
    /// Only `export` makes it.
    const KEYS: Option<OptionKeys> = None;
}

impl Kind for Exported {
    fn content(&self) -> Content<'_> {
        Content::Frozen(Frozen { copy: None, reader: Reader::Qemu, proof: self.proof.as_ref() })
    }

    fn proof(&mut self) -> ProofSlot<'_> {
        ProofSlot::Frozen { copy: None, proof: &mut self.proof }
    }

    fn said(&self) -> Vec<RecordText<'_>> {
        Vec::new()
    }

    fn is_relative_to_image(&self) -> bool {
        true
    }
}
