//! Copies that share their content with the file, on a file system that can do that (XFS, Btrfs).
//!
//! Instant, and the guest stays on its file, which may be served by blkback. Only for raw files:
//! of other formats QEMU keeps a part in memory.

use crate::disk::{
    DiskCreate, DiskFound, DiskRevert, DiskSeen, check_frozen, place, record, refuse, refuse_revert,
};
use crate::domain::Format;
use crate::error::Result;
use crate::plan::Step;
use crate::record::{FrozenFile, Kept};
use std::path::Path;

/// Plans a copy.
pub(super) fn create(seen: &DiskSeen) -> Result<DiskCreate> {
    let disk = &seen.disk;
    if disk.format != Some(Format::Raw) {
        return Err(refuse(disk, "only a raw file can be copied while QEMU has it open".into()));
    }
    seen.file.as_ref().map_err(|why| refuse(disk, why.clone()))?;
    if let Some(trouble) = &seen.clone_trouble {
        return Err(refuse(disk, format!("its file cannot be cloned: {trouble}")));
    }
    let copy = place(seen)?.to_owned();
    Ok(DiskCreate {
        still: vec![Step::Clone {
            from: disk.file().to_owned(),
            to: copy.clone(),
            writable: false,
        }],
        ..DiskCreate::of(record(seen, Kept::Reflink { copy, proof: None }))
    })
}

/// Plans to put a copy of the copy in the place of the file, which keeps its content under another
/// name.
pub(super) fn revert(
    found: &DiskFound,
    copy: &Path,
    proof: Option<&FrozenFile>,
) -> Result<DiskRevert> {
    let record = &found.record;
    let refuse = |why: String| refuse_revert(record, why);
    let proof = proof.ok_or_else(|| refuse("the record has no proof of its copy".into()))?;
    let of_copy = |why: String| refuse(format!("its copy {}: {why}", copy.display()));
    let facts = found.copy.as_ref().map_err(|why| of_copy(why.clone()))?;
    check_frozen(facts, proof).map_err(of_copy)?;
    if let Some(user) = &found.used_by {
        return Err(refuse(format!("it is also used by {user}")));
    }
    if let Some(trouble) = &found.place.trouble {
        return Err(refuse(format!("what it holds now cannot be kept: {trouble}")));
    }
    let path = &record.path;
    let keep = &found.place.path;
    let mut put_back = Vec::new();
    // A revert that was cut short may have given it the other name already.
    if found.file.is_ok() {
        put_back.push(Step::Rename { from: path.clone(), to: keep.clone() });
    }
    put_back.push(Step::Clone { from: copy.to_owned(), to: path.clone(), writable: true });
    Ok(DiskRevert {
        put_back,
        kept: found.file.is_ok().then(|| keep.display().to_string()),
        discard: found.file.iter().map(|_| Step::RemoveFile { path: keep.clone() }).collect(),
        ..DiskRevert::default()
    })
}
