//! The record of an external snapshot.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::disk::kind::{
    Content, Frozen, Kind, NewFile, OptionKeys, ProofSlot, Reader, RecordText, Role, Selectable,
};
use crate::disk::proof::FrozenFile;
use crate::domain::Format;

/// The frozen file itself: the guest continued in an overlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct External {
    /// The image in which the guest continued.
    pub overlay: PathBuf,
    /// Absent only while the record is incomplete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<FrozenFile>,
}

impl Selectable for External {
    const KEYS: Option<OptionKeys> = Some(OptionKeys { file: true, size: false });
}

impl Kind for External {
    fn content(&self) -> Content<'_> {
        Content::Frozen(Frozen { copy: None, reader: Reader::Qemu, proof: self.proof.as_ref() })
    }

    fn proof(&mut self) -> ProofSlot<'_> {
        ProofSlot::Frozen { copy: None, proof: &mut self.proof }
    }

    fn said(&self) -> Vec<RecordText<'_>> {
        vec![RecordText::File(&self.overlay)]
    }

    fn new_file(&self) -> Option<NewFile<'_>> {
        Some(NewFile { path: &self.overlay, role: Role::Overlay })
    }

    fn switched(&self) -> Option<(PathBuf, Format)> {
        Some((self.overlay.clone(), Format::Qcow2))
    }
}
