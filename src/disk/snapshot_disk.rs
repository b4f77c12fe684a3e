//! Observations of the disks of a snapshot, and the checks that they are still those of the
//! snapshot. Pure.

use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::disk::chain::{FileId, Link};
use crate::disk::kind::{Content, Frozen};
use crate::disk::parts::{refuse_revert, shortage};
use crate::disk::qcow2::{Defect, Header};
use crate::disk::{FileFacts, Place, Room, mib};
use crate::domain::Format;
use crate::error::{Error, Result};
use crate::plan::Step;
use crate::record::{DiskRecord, FrozenFile, SECTOR};
use crate::tool::{qemu_img, quote};

/// The error text for ENOENT.
const GONE: &str = "No such file";

/// One disk of a snapshot, and the current state of the host around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotDisk {
    pub record: DiskRecord,
    /// Facts about the file in the record; the error if it cannot be read.
    pub file: std::result::Result<FileFacts, String>,
    /// If the content is in a frozen file, facts about that file: the one in the record, or its
    /// copy. Otherwise, or if it cannot be read, an error.
    pub frozen: std::result::Result<FileFacts, String>,
    /// The size a guest sees of the frozen file, in bytes; the error if it is unknown.
    pub virtual_size: std::result::Result<u64, String>,
    /// If the snapshot is internal, the answer of qemu-img about the file. Otherwise, or if there
    /// is no answer, an error.
    pub image: std::result::Result<qemu_img::ImageInfo, String>,
    /// The size of the disk at an internal snapshot, in bytes: the image may have been resized since. The error
    /// if it is unknown.
    pub size_then: std::result::Result<u64, String>,
    /// The current chain of the running domain's disk, top first; empty if the domain does not run,
    /// or if qemu-img does not support chains of its format.
    pub chain: Vec<Link>,
    /// The chain of the file in the record, if qemu-img knows its format; the error if the chain cannot be
    /// followed.
    pub own: std::result::Result<Vec<Link>, String>,
    /// The number of dirty bitmaps that the domain's QEMU will write into that file when it ends.
    pub live_bitmaps: u32,
    /// The file that the running domain writes to.
    pub top: Option<PathBuf>,
    pub top_id: Option<FileId>,
    /// The parent of that file, if it is a VHD that has one.
    pub top_parent: Option<FileId>,
    /// Whether that file has lost its write permission: it is a base.
    pub top_protected: bool,
    /// The bases of the file with the content, and when each was last written to; the error if they
    /// are unknown. Bases that are no file here, such as volumes, are left out.
    pub below: std::result::Result<Vec<(PathBuf, Timestamp)>, String>,
    /// Who else uses the files, apart from the domain that will be destroyed.
    pub used_by: Option<String>,
    /// An image that rests on the file in the record, whoever made it.
    pub base_of: Option<PathBuf>,
    /// An image that rests on the current image of the disk.
    pub top_base_of: Option<PathBuf>,
    /// The place for a new image, if one is needed.
    pub place: Place,
    /// The space for a copy of the snapshot, if [`SnapshotDisk::needs_copy`] or a new domain needs one;
    /// the error if it is unknown.
    pub room: Option<std::result::Result<Room, String>>,
}

/// Which file system has too little space for all copies together, if any.
pub fn short_of_room(rooms: &[&Room]) -> Option<String> {
    let takes: Vec<_> = rooms.iter().map(|room| (room.device, room.free, room.needed)).collect();
    let (device, free, needed) = shortage(&takes)?;
    let place = rooms.iter().find(|room| room.device == device)?;
    Some(format!(
        "the file system of {} has {} free, and {} are needed",
        place.directory.display(),
        mib(free),
        mib(needed)
    ))
}

/// Checks that nothing was written to a frozen file since.
///
/// Detected: every write that changes the file's time, another length, and (where inode numbers are stable)
/// another file under its path, a copy of it or the base of another disk. Not detected: a write of the same length
/// after which somebody restored the time (`touch -r`). The time of the last change of the inode (ctime) would
/// show that, but also changes with a new owner, name or permission, which do not matter. The number of the file
/// system is not in the record, because it may change when the host boots.
pub fn check_untouched(file: &FileFacts, proof: &FrozenFile) -> std::result::Result<(), String> {
    if !file.has_inode_of(proof) {
        return Err(format!(
            "it is another file now: inode {}, at the snapshot {}",
            file.inode, proof.inode
        ));
    }
    if file.is_as(proof.file_size, proof.mtime) {
        return Ok(());
    }
    if file.size != proof.file_size {
        return Err(format!(
            "it was written to since: {} bytes long, at the snapshot {}",
            file.size, proof.file_size
        ));
    }
    Err(format!("it was written to since: last at {}, at the snapshot {}", file.mtime, proof.mtime))
}

impl SnapshotDisk {
    /// Adds a hint to a refusal if the file with the content may have been moved. A link works like the file: proofs
    /// are of its target. A copy cannot be proven, and a move to another file system is a copy.
    pub(super) fn if_moved(&self, error: Error) -> Error {
        let own = self.record.path.as_path();
        let (path, file, proof) = match self.record.snapshot.kind().content() {
            Content::Nowhere | Content::Volume(_) => return error,
            Content::Inside(_) => (own, &self.file, None),
            Content::Frozen(Frozen { copy, proof, .. }) => {
                (copy.unwrap_or(own), &self.frozen, proof)
            }
        };
        let path = quote(path);
        match (file, proof) {
            (Err(why), _) if why.contains(GONE) => error.hint(format!(
                "the snapshot expects it at {path}: if you moved it, move it back, or create a link there: \
                 ln -s NEW {path}"
            )),
            (Ok(file), Some(proof)) if !file.has_inode_of(proof) && (file.size, file.mtime) == (proof.file_size, proof.mtime) => error.hint(format!(
                "its length and time match. If it is a copy (mv to another file system makes one), \
                 nothing proves that it is a good one: restore the original, or revert by hand: create an image on \
                 it (qemu-img create -f qcow2 -F FORMAT -b {path} NEW), name that in a configuration file, and \
                 xl restore FILE.cfg IMAGE"
            )),
            _ => error,
        }
    }

    /// The checks of every kind with a frozen file: the file exists, is the same one and is
    /// unchanged, and there is a place for the new file. Returns the proof.
    pub(super) fn check_frozen<'a>(
        &self,
        path: &Path,
        proof: Option<&'a FrozenFile>,
    ) -> Result<&'a FrozenFile> {
        let refuse = |why: String| match path == self.record.path {
            true => refuse_revert(&self.record, why),
            false => refuse_revert(&self.record, format!("its copy {}: {why}", path.display())),
        };
        let proof = proof.ok_or_else(|| refuse("the record has no proof of it".into()))?;
        let file = self.frozen.as_ref().map_err(|why| refuse(why.clone()))?;
        check_untouched(file, proof).map_err(refuse)?;
        let virtual_size = self.virtual_size.as_ref().map_err(|why| refuse(why.clone()))?;
        // For a raw file the length has been compared. QEMU counts a partial last sector, and the backend
        // may have the size from before it grew.
        let changed = match self.record.format {
            Some(Format::Raw) => proof.whole_sectors() > virtual_size.next_multiple_of(SECTOR),
            _ => *virtual_size != proof.virtual_size,
        };
        if changed {
            return Err(refuse(format!(
                "its size was changed: {virtual_size} bytes, at the snapshot {}",
                proof.virtual_size
            )));
        }
        // The domain may write until it is destroyed, after this check.
        if self.top_id.is_some_and(|top| top == file.id()) {
            return Err(refuse("the running domain may write to it".into()).hint(
                "shut the domain down: the snapshot stays good unless the domain has written to it",
            ));
        }
        if let Some(trouble) = &self.place.trouble {
            return Err(refuse_revert(&self.record, format!("a new file is needed: {trouble}")));
        }
        Ok(proof)
    }

    /// Checks the bases of the file with the content. They were frozen before the snapshot, so nobody
    /// may have written to them since. Not detected: another, older file in the place of a base.
    pub(super) fn check_below(&self, created: Timestamp) -> Result<()> {
        let below = self.below.as_ref().map_err(|why| refuse_revert(&self.record, why.clone()))?;
        match below.iter().find(|(_, written)| *written > created) {
            None => Ok(()),
            Some((path, written)) => Err(refuse_revert(
                &self.record,
                format!(
                    "its base {} was written to since: last at {written}, the snapshot is \
                     of {created}",
                    path.display()
                ),
            )
            .hint("if only its time is wrong (the clock was set back), correct it with touch -d")),
        }
    }

    /// The file that keeps what the domain wrote since, if the domain continues in another file.
    pub(super) fn kept_in_top(&self) -> Option<String> {
        self.top.as_ref().map(|top| top.display().to_string())
    }

    /// The space for a copy of the snapshot, after checking it and its place.
    pub(super) fn room_for_copy(&self) -> Result<&Room> {
        let refuse = |why: String| refuse_revert(&self.record, why);
        if let Some(trouble) = &self.place.trouble {
            return Err(refuse(format!("a copy is needed, and {trouble}")));
        }
        match &self.room {
            Some(Ok(room)) => Ok(room),
            Some(Err(why)) => Err(refuse(format!("a copy is needed, and {why}"))),
            None => Err(refuse("a copy is needed, and its room is not known".into())),
        }
    }

    /// Whether an internal snapshot must be copied out of its file because that file is a base.
    pub fn needs_copy(&self) -> bool {
        let below = self.chain.iter().skip(1).any(|image| self.is_of_record(image));
        let inside = matches!(self.record.snapshot.kind().content(), Content::Inside(_));
        inside && (below || self.is_base())
    }

    /// Whether the file in the record has lost its write permission, or another image rests on it.
    pub(super) fn is_base(&self) -> bool {
        self.base_of.is_some() || self.file.as_ref().is_ok_and(|file| !file.writable)
    }

    /// A note on an image that keeps the file in the record from being rewritten.
    pub(super) fn rested_on(&self) -> Option<String> {
        let overlay = self.base_of.as_deref()?;
        Some(format!("{} stays as it is: {} rests on it", quote(&self.record.path), quote(overlay)))
    }

    /// A note on an image that keeps the current image of the disk from being removed.
    pub(super) fn top_rested_on(&self) -> Option<String> {
        let (top, overlay) = (self.top.as_deref()?, self.top_base_of.as_deref()?);
        Some(format!("{} stays: {} rests on it", quote(top), quote(overlay)))
    }

    /// Why qemu-img cannot apply an internal snapshot, if it cannot.
    pub fn defect(&self) -> Option<Defect> {
        let bitmaps = if self.runs_elsewhere() { 0 } else { self.live_bitmaps };
        self.header().and_then(Header::unwritable).or_else(|| Defect::of_bitmaps(bitmaps))
    }

    /// The header of the file in the record, if it is a qcow2 image.
    pub fn header(&self) -> Option<&Header> {
        self.own.as_ref().ok()?.first()?.header.as_ref()
    }

    /// A note on a read-only disk that somebody has written to since.
    pub(super) fn rewritten(&self, created: Timestamp) -> Option<String> {
        let file = self.file.as_ref().ok().filter(|file| file.mtime > created)?;
        Some(format!(
            "{} was written to since the snapshot, last at {}: the guest continues with its current contents",
            quote(&self.record.path),
            file.mtime
        ))
    }

    /// A note on an image that was resized since an internal snapshot.
    pub(super) fn resized(&self) -> Option<String> {
        let (then, now) = (*self.size_then.as_ref().ok()?, self.image.as_ref().ok()?.virtual_size);
        (then != now)
            .then(|| format!("it has {} now, and {} again after the revert", mib(now), mib(then)))
    }

    /// Whether the running domain writes to another file than the one in the record.
    pub(super) fn runs_elsewhere(&self) -> bool {
        self.file.as_ref().is_ok_and(|file| self.top_id.is_some_and(|top| top != file.id()))
    }

    /// Whether an image is the file in the record, by any path.
    fn is_of_record(&self, image: &Link) -> bool {
        self.file.as_ref().is_ok_and(|file| image.id == file.id())
    }

    /// The step that removes what the domain wrote since: its current overlay, if the snapshot's
    /// file is its backing file and nothing else can need it.
    pub(super) fn discard_top(&self) -> Vec<Step> {
        match self.chain.as_slice() {
            [top, below, ..]
                if self.is_of_record(below)
                    && !self.is_of_record(top)
                    && top.header.as_ref().is_none_or(|header| header.snapshots == 0)
                    && !self.top_protected
                    && self.top_base_of.is_none() =>
            {
                vec![Step::RemoveFile { path: top.path.clone() }]
            }
            _ => Vec::new(),
        }
    }
}
