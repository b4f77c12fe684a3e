//! What a kind of disk snapshot tells of itself. Pure: it answers with data, and `host` does what they say.
//!
//! [`Content`] and [`Proof`] name the few ways in which the content of a disk can be kept. The rest of the
//! program works with those ways and does not know the kinds.

use std::path::{Path, PathBuf};

use crate::disk::proof::{FrozenFile, QcowSnapshot};
use crate::domain::Format;

/// Where the content of a disk at the snapshot is, and what proves it. A proof is absent only while the record
/// is not complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content<'a> {
    /// Nowhere: the disk is not in the snapshot.
    Nowhere,
    /// In a snapshot inside the disk's own qcow2 file.
    Inside(Option<&'a QcowSnapshot>),
    /// In a file that nobody writes to any more.
    Frozen(Frozen<'a>),
    /// In a logical volume. Its tag is the proof.
    Volume(Volume<'a>),
}

/// A file that nobody writes to any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frozen<'a> {
    /// The file, if it is a copy; else it is the disk's own file.
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
    /// By anybody: it has the bytes of the disk.
    Raw,
}

/// The volume that has the content of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Volume<'a> {
    pub group: &'a str,
    pub name: &'a str,
    /// Whether it is a thick snapshot, which can overflow and which a merge consumes.
    pub thick: bool,
}

impl<'a> Content<'a> {
    /// The file that nobody writes to any more, of a disk with this file.
    pub fn frozen_file(self, own: &'a Path) -> Option<&'a Path> {
        match self {
            Content::Frozen(frozen) => Some(frozen.copy.unwrap_or(own)),
            Content::Nowhere | Content::Inside(_) | Content::Volume(_) => None,
        }
    }

    /// Whether QEMU reads the disk's own file, with the images below it, for the content.
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
pub enum Proof<'a> {
    /// The record needs none.
    NotNeeded,
    /// Of a snapshot inside the disk's own file.
    Inside(&'a mut Option<QcowSnapshot>),
    /// Of a file that nobody writes to any more: the copy, or the disk's own file.
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
    /// The guest goes on in it; it is a qcow2 overlay, which has nothing of its own until the guest writes.
    Overlay,
    /// The guest goes on in it.
    Child,
    /// It has the content at the snapshot.
    Copy,
}

/// What of a record somebody may have put there who meant harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said<'a> {
    /// For people.
    Text(&'a str),
    /// Of a volume group or a logical volume.
    VolumePart(&'a str),
    File(&'a Path),
}

/// What the user may say to a wish for a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keys {
    /// `file=PATH`.
    pub file: bool,
    /// `size=SIZE`.
    pub size: bool,
}

/// The answers that need no snapshot.
pub trait Wishable {
    /// What a wish for this kind takes; `None` if no user can ask for it.
    const KEYS: Option<Keys>;
    /// Whether the file system has to be able to clone files.
    const CLONES: bool = false;

    /// The file that the snapshot makes, when the user does not say where. `stem` names the domain and the disk.
    fn new_file_name(stem: &str, snapshot: &str) -> String {
        format!("{stem}.after-{snapshot}.qcow2")
    }
}

/// The answers of what a record keeps.
pub trait Kind {
    fn content(&self) -> Content<'_>;

    fn proof(&mut self) -> Proof<'_>;

    /// What has to be checked before it is believed.
    fn said(&self) -> Vec<Said<'_>>;

    /// Why the disk is not in the snapshot, if it is not.
    fn why_left_out(&self) -> Option<&str> {
        None
    }

    fn new_file(&self) -> Option<NewFile<'_>> {
        None
    }

    /// What libxl is told of an image of this kind; `None` if nothing is to be told.
    fn target(&self, image: &Path, format: Option<Format>) -> Option<(PathBuf, Format)> {
        Some((image.to_owned(), format?))
    }

    /// What libxl is told of the image in which the guest goes on, if that is a new one.
    fn switched(&self) -> Option<(PathBuf, Format)> {
        None
    }

    /// The file on a file system that takes what the guest writes from now on, if one grows. `own` is the disk's
    /// own, unless that is a device.
    fn grows<'a>(&'a self, own: Option<&'a Path>) -> Option<&'a Path> {
        let _ = own;
        self.new_file().map(|file| file.path)
    }

    /// Whether the disk's file lies beside the image, in whichever directory that is: the record has its name
    /// only.
    fn is_beside_image(&self) -> bool {
        false
    }

    /// Whether nothing but a mark tells from which snapshot of this kind a file descends.
    fn needs_mark(&self) -> bool {
        false
    }

    /// The ending of the file that a new domain has for the disk.
    fn clone_ending(&self) -> &'static str {
        "qcow2"
    }

    /// The file that a revert makes. `stem` names the domain and the disk.
    fn revert_file_name(&self, stem: &str, snapshot: &str, stamp: &str) -> String {
        format!("{stem}.after-{snapshot}.{stamp}.qcow2")
    }
}
