//! The record of an internal snapshot.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::disk::chain::Link;
use crate::disk::kind::{Content, Kind, OptionKeys, ProofSlot, RecordText, Selectable};
use crate::disk::proof::{Base, QcowSnapshot};

/// A snapshot inside of the qcow2 file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Internal {
    /// Absent only while the record is incomplete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<QcowSnapshot>,
    /// What the image rested on, top first; absent in records of earlier versions. The clusters that the image did not
    /// have itself are there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bases: Option<Vec<Base>>,
}

impl Internal {
    /// A snapshot of an image with those below it, not taken yet.
    pub fn of(chain: &[Link]) -> Internal {
        let base =
            |link: &Link| Base { path: link.path.clone(), format: link.format, inode: link.id.1 };
        Internal { proof: None, bases: Some(chain.iter().skip(1).map(base).collect()) }
    }
}

impl Selectable for Internal {
    const KEYS: Option<OptionKeys> = Some(OptionKeys { file: false, size: false });
}

impl Kind for Internal {
    fn content(&self) -> Content<'_> {
        Content::Inside(self.proof.as_ref())
    }

    fn proof(&mut self) -> ProofSlot<'_> {
        ProofSlot::Inside(&mut self.proof)
    }

    fn said(&self) -> Vec<RecordText<'_>> {
        let texts = self.proof.iter().flat_map(|proof| [&proof.id, &proof.name]);
        let bases = self.bases.iter().flatten().map(|base| RecordText::File(&base.path));
        texts.map(|text| RecordText::Text(text)).chain(bases).collect()
    }

    fn grows<'a>(&'a self, own: Option<&'a Path>) -> Option<&'a Path> {
        // Inside a volume it uses no space of a file system.
        own
    }

    fn needs_mark(&self) -> bool {
        true
    }
}
