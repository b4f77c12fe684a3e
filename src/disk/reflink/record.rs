//! The record of a reflink copy.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::disk::kind::{
    Content, Frozen, Kind, NewFile, OptionKeys, ProofSlot, Reader, RecordText, Role, Selectable,
};
use crate::disk::proof::FrozenFile;

/// A copy that shares its content with the file, made by the file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reflink {
    pub copy: PathBuf,
    /// Absent only while the record is incomplete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<FrozenFile>,
}

impl Selectable for Reflink {
    const KEYS: Option<OptionKeys> = Some(OptionKeys { file: true, size: false });
    const CLONES: bool = true;

    fn new_file_name(stem: &str, snapshot: &str) -> String {
        format!("{stem}.at-{snapshot}.img")
    }
}

impl Kind for Reflink {
    fn content(&self) -> Content<'_> {
        let (copy, proof) = (Some(self.copy.as_path()), self.proof.as_ref());
        Content::Frozen(Frozen { copy, reader: Reader::Raw, proof })
    }

    fn proof(&mut self) -> ProofSlot<'_> {
        ProofSlot::Frozen { copy: Some(&self.copy), proof: &mut self.proof }
    }

    fn said(&self) -> Vec<RecordText<'_>> {
        vec![RecordText::File(&self.copy)]
    }

    fn new_file(&self) -> Option<NewFile<'_>> {
        Some(NewFile { path: &self.copy, role: Role::Copy })
    }

    fn grows<'a>(&'a self, own: Option<&'a Path>) -> Option<&'a Path> {
        own
    }

    fn needs_mark(&self) -> bool {
        true
    }

    fn revert_file_name(&self, stem: &str, _: &str, stamp: &str) -> String {
        format!("{stem}.before-revert-{stamp}.img")
    }
}
