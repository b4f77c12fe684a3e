//! The record of the snapshot of a VHD that tapdisk serves.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::disk::kind::{
    Content, Frozen, Kind, NewFile, OptionKeys, ProofSlot, Reader, RecordText, Role, Selectable,
};
use crate::disk::proof::FrozenFile;
use crate::domain::{Disk, Format};

/// The frozen VHD itself: the guest continued in a child of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vhd {
    /// The image in which the guest continued.
    pub child: PathBuf,
    /// Absent only while the record is incomplete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<FrozenFile>,
}

/// The target of a VHD in libxl's configuration.
pub fn target(path: &Path) -> PathBuf {
    let mut target = Path::new(Disk::TAP_VHD).as_os_str().to_owned();
    target.push(path);
    target.into()
}

impl Selectable for Vhd {
    /// `external` selects it for such a disk.
    const KEYS: Option<OptionKeys> = None;

    fn new_file_name(stem: &str, snapshot: &str) -> String {
        format!("{stem}.after-{snapshot}.vhd")
    }
}

impl Kind for Vhd {
    fn content(&self) -> Content<'_> {
        Content::Frozen(Frozen { copy: None, reader: Reader::TapVhd, proof: self.proof.as_ref() })
    }

    fn proof(&mut self) -> ProofSlot<'_> {
        ProofSlot::Frozen { copy: None, proof: &mut self.proof }
    }

    fn said(&self) -> Vec<RecordText<'_>> {
        vec![RecordText::File(&self.child)]
    }

    fn new_file(&self) -> Option<NewFile<'_>> {
        Some(NewFile { path: &self.child, role: Role::Child })
    }

    fn target(&self, image: &Path, _: Option<Format>) -> Option<(PathBuf, Format)> {
        Some((target(image), Format::Raw))
    }

    fn switched(&self) -> Option<(PathBuf, Format)> {
        self.target(&self.child, None)
    }

    fn clone_ending(&self) -> &'static str {
        "vhd"
    }

    fn revert_file_name(&self, stem: &str, snapshot: &str, stamp: &str) -> String {
        format!("{stem}.after-{snapshot}.{stamp}.vhd")
    }
}
