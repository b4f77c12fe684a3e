//! The properties of a kind of disk snapshot. Pure: it returns data, and `host` acts on them.
//!
//! [`Content`] and [`Proof`] list the ways to keep the content of a disk. The rest of the program works
//! with those and does not know the kinds.

use std::path::{Path, PathBuf};

use crate::disk::proof::{FrozenFile, QcowSnapshot};
use crate::domain::Format;

/// The place of the content of a disk at the snapshot, and its proof. A proof is absent only while the record
/// is incomplete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content<'a> {
    /// Nowhere: the disk is not in the snapshot.
    Nowhere,
    /// In a snapshot inside the disk's own qcow2 file.
    Inside(Option<&'a QcowSnapshot>),
    /// In a frozen file: nobody writes to it any more.
    Frozen(Frozen<'a>),
    /// In a logical volume. Its tag is the proof.
    Volume(VolumeName<'a>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frozen<'a> {
    /// The copy; `None` if it is the disk's own file.
    pub copy: Option<&'a Path>,
    pub reader: Reader,
    pub proof: Option<&'a FrozenFile>,
}

/// How a frozen file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// By QEMU, in the disk's format, with the images below it.
    Qemu,
    /// By tapdisk, as a VHD, with its parents.
    TapVhd,
    /// As it is: it has the bytes of the disk.
    Raw,
}

/// The volume that has the content of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumeName<'a> {
    pub group: &'a str,
    pub name: &'a str,
    /// Whether it is a thick snapshot, which can overflow and which a merge consumes.
    pub thick: bool,
}

impl<'a> Content<'a> {
    /// The frozen file; `own` is the disk's own file.
    pub fn frozen_file(self, own: &'a Path) -> Option<&'a Path> {
        match self {
            Content::Frozen(frozen) => Some(frozen.copy.unwrap_or(own)),
            Content::Nowhere | Content::Inside(_) | Content::Volume(_) => None,
        }
    }

    /// Whether QEMU reads the content from the chain of the disk's own file.
    pub fn is_in_chain(self) -> bool {
        matches!(
            self,
            Content::Inside(_) | Content::Frozen(Frozen { copy: None, reader: Reader::Qemu, .. })
        )
    }

    pub fn is_tap_vhd(self) -> bool {
        matches!(self, Content::Frozen(Frozen { reader: Reader::TapVhd, .. }))
    }
}

/// The place for a proof in a record.
#[derive(Debug)]
pub enum ProofSlot<'a> {
    /// The record needs none.
    NotNeeded,
    /// For an internal snapshot.
    Inside(&'a mut Option<QcowSnapshot>),
    /// For a frozen file: the copy, or the disk's own file.
    Frozen { copy: Option<&'a Path>, proof: &'a mut Option<FrozenFile> },
}

/// A file that the snapshot made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewFile<'a> {
    pub path: &'a Path,
    pub role: Role,
}

/// What a new file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A qcow2 overlay in which the guest continues; empty until the guest writes.
    Overlay,
    /// A VHD in which the guest continues.
    Child,
    /// It has the content at the snapshot.
    Copy,
}

/// Untrusted text of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordText<'a> {
    /// For messages.
    Text(&'a str),
    /// A name of a volume group or a logical volume.
    VolumePart(&'a str),
    File(&'a Path),
}

/// The keys that `--disk VDEV,KIND` accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionKeys {
    pub file: bool,
    pub size: bool,
}

/// The properties that need no snapshot.
pub trait Selectable {
    /// The keys of this kind; `None` if the user cannot choose it.
    const KEYS: Option<OptionKeys>;
    /// Whether the file system must support reflinks.
    const CLONES: bool = false;

    /// The default name of the file that the snapshot creates. `stem` names the domain and the disk.
    fn new_file_name(stem: &str, snapshot: &str) -> String {
        format!("{stem}.after-{snapshot}.qcow2")
    }
}

/// The properties of a recorded snapshot.
pub trait Kind {
    fn content(&self) -> Content<'_>;

    fn proof(&mut self) -> ProofSlot<'_>;

    /// The texts to check before they are trusted.
    fn said(&self) -> Vec<RecordText<'_>>;

    /// Why the disk is not in the snapshot, if it is not.
    fn why_left_out(&self) -> Option<&str> {
        None
    }

    fn new_file(&self) -> Option<NewFile<'_>> {
        None
    }

    /// The path and format to write into libxl's configuration for an image of this kind; `None` to
    /// write nothing.
    fn target(&self, image: &Path, format: Option<Format>) -> Option<(PathBuf, Format)> {
        Some((image.to_owned(), format?))
    }

    /// The path and format for libxl of the new image in which the guest continues, if there is
    /// one.
    fn switched(&self) -> Option<(PathBuf, Format)> {
        None
    }

    /// The file that grows when the guest writes, if one does. `own` is the disk's own file, unless that is a
    /// device.
    fn grows<'a>(&'a self, own: Option<&'a Path>) -> Option<&'a Path> {
        let _ = own;
        self.new_file().map(|file| file.path)
    }

    /// Whether the disk's file is in the directory of the image, and the record has only its name.
    fn is_relative_to_image(&self) -> bool {
        false
    }

    /// Whether only a mark shows which snapshot of this kind a file descends from.
    fn needs_mark(&self) -> bool {
        false
    }

    /// The suffix of the file that a new domain gets for the disk.
    fn clone_ending(&self) -> &'static str {
        "qcow2"
    }

    /// The name of the file that a revert creates. `stem` names the domain and the disk.
    fn revert_file_name(&self, stem: &str, snapshot: &str, stamp: &str) -> String {
        format!("{stem}.after-{snapshot}.{stamp}.qcow2")
    }
}
