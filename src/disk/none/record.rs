//! The record of a disk that is not in the snapshot.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::disk::kind::{Content, Kind, OptionKeys, ProofSlot, RecordText, Selectable};
use crate::domain::Format;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeftOut {
    /// The reason: it cannot change, or the user left it out.
    pub why: String,
}

impl Selectable for LeftOut {
    const KEYS: Option<OptionKeys> = Some(OptionKeys { file: false, size: false });
}

impl Kind for LeftOut {
    fn content(&self) -> Content<'_> {
        Content::Nowhere
    }

    fn proof(&mut self) -> ProofSlot<'_> {
        ProofSlot::NotNeeded
    }

    fn said(&self) -> Vec<RecordText<'_>> {
        vec![RecordText::Text(&self.why)]
    }

    fn why_left_out(&self) -> Option<&str> {
        Some(&self.why)
    }

    fn target(&self, _: &Path, _: Option<Format>) -> Option<(PathBuf, Format)> {
        None
    }
}
