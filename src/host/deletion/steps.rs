//! The steps of a deletion that need no domain: files, their marks, records, and qemu-img.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::disk::kind::ProofSlot;
use crate::disk::proof::FrozenFile;
use crate::domain::Format;
use crate::error::{Error, Result};
use crate::host::image::rewrite;
use crate::host::{chain, files, merge_mark, tools};
use crate::plan::deletion::{Change, Deletion, Image};
use crate::record::Record;
use crate::tool::Invocation;
use crate::tool::qemu_img;

/// Blocks as stat(2) counts them, in bytes.
const BLOCK: u64 = 512;

/// Runs a tool, which makes a file grow by so many bytes at most.
pub type Run<'a> = &'a mut dyn FnMut(&Invocation, Option<(&Path, u64)>) -> Result<()>;

/// Does a step; `None` if it is one for the QEMU of a domain.
pub fn perform(step: &Deletion, run: Run<'_>) -> Option<Result<()>> {
    Some(match step {
        Deletion::Commit { online: Some(_), .. }
        | Deletion::Stream { online: Some(_), .. }
        | Deletion::DeleteInside { online: Some(_), .. }
        | Deletion::Pivot { .. } => return None,
        Deletion::Mark { image, marked } => mark(image, marked).map_err(caused),
        Deletion::Begin { file, mark } => merge_mark::begin(file, mark).map_err(caused),
        Deletion::Commit { online: None, top, base, bytes } => commit(top, &base.path, *bytes, run),
        Deletion::Stream { online: None, top, base, below, bytes } => {
            stream(top, base, below.as_ref(), *bytes, run)
        }
        Deletion::Relink { file, below } => relink(file, below, run),
        Deletion::DeleteInside { online: None, file, snapshot } => {
            let image = tools::image(file, Format::Qcow2).map_err(Error::failed);
            image.and_then(|image| match image.snapshots().contains(snapshot) {
                true => run(&qemu_img::snapshot_delete(file, &snapshot.name), None),
                false => Ok(()),
            })
        }
        Deletion::Settle { file, live } => merge_mark::settle(file, *live).map_err(caused),
        Deletion::Rewrite { image, id, changes, .. } => replace(image, *id, changes),
        Deletion::End { file } => merge_mark::end(file).map_err(caused),
        Deletion::WriteRecord { path, record } => write_record(path, record),
    })
}

/// What a file takes on its file system, in bytes.
pub fn allocated(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.blocks().saturating_mul(BLOCK))
}

fn commit(top: &Path, base: &Path, bytes: u64, run: Run<'_>) -> Result<()> {
    match rests_on(top, base)? {
        true => {
            run(&qemu_img::commit(top), Some((base, bytes)))?;
            files::sync(base).map_err(caused)
        }
        false => Ok(()),
    }
}

fn stream(top: &Path, base: &Path, below: Option<&Image>, bytes: u64, run: Run<'_>) -> Result<()> {
    let below = below.map(|image| (image.path.as_path(), image.format));
    match rests_on(top, base)? {
        true => {
            run(&qemu_img::stream(top, below), Some((top, bytes)))?;
            files::sync(top).map_err(caused)
        }
        false => Ok(()),
    }
}

fn relink(file: &Path, below: &Image, run: Run<'_>) -> Result<()> {
    match rests_on(file, &below.path)? {
        true => Ok(()),
        false => run(&qemu_img::relink(file, (&below.path, below.format)), None),
    }
}

fn replace(image: &Path, id: uuid::Uuid, changes: &[Change]) -> Result<()> {
    rewrite::finish(image).map_err(caused)?;
    let record = rewrite::read(image).map_err(caused)?;
    if record.id != id {
        return Err(Error::failed("Another snapshot is there by now"));
    }
    let new = changed(record.clone(), changes)?;
    match new == record {
        true => Ok(()),
        false => rewrite::replace(image, &new).map_err(caused),
    }
}

fn write_record(path: &Path, record: &Record) -> Result<()> {
    match rewrite::read(path) {
        // Of a run that was cut short.
        Ok(there) if there == *record => Ok(()),
        Ok(_) => Err(Error::failed(format!("{} exists", path.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            rewrite::write_new(path, record).map_err(caused)
        }
        Err(error) => Err(caused(error)),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn caused(error: io::Error) -> Error {
    Error::failed(error.to_string())
}

/// The other name; never over a file that has it.
fn mark(image: &Path, marked: &Path) -> io::Result<()> {
    if !image.exists() && marked.exists() {
        return Ok(());
    }
    rewrite::finish(image)?;
    files::rename_new(image, marked)?;
    files::sync_directory(marked)
}

/// Whether an overlay names an image as the one below it.
fn rests_on(top: &Path, base: &Path) -> Result<bool> {
    let links = chain::walk(top, Format::Qcow2).map_err(Error::failed)?;
    Ok(links.get(1).is_some_and(|below| files::identity(base) == Some(below.id)))
}

/// The record with what has changed, proven anew.
fn changed(mut record: Record, changes: &[Change]) -> Result<Record> {
    for change in changes {
        match change {
            Change::Parent(parent) => {
                record.parent = parent.map(|(parent, _)| parent);
                record.parent_by = parent.and_then(|(_, by)| by);
            }
            Change::Moved { vdev, to: Image { path, format } } => {
                for disk in record.disks.iter_mut().filter(|disk| disk.vdev == *vdev) {
                    disk.path.clone_from(path);
                    disk.format = Some(*format);
                }
                prove(&mut record, vdev)?;
            }
            Change::Written { vdev } => prove(&mut record, vdev)?,
        }
    }
    Ok(record)
}

/// Proves the file of a disk as it is now.
fn prove(record: &mut Record, vdev: &str) -> Result<()> {
    for disk in record.disks.iter_mut().filter(|disk| disk.vdev == vdev) {
        let ProofSlot::Frozen { copy, proof: Some(proof) } = disk.snapshot.kind_mut().proof()
        else {
            continue;
        };
        let path = copy.unwrap_or(&disk.path);
        let facts = files::facts(path)
            .map_err(|error| Error::failed(format!("Look at {}", path.display())).because(error))?;
        *proof = FrozenFile {
            virtual_size: proof.virtual_size,
            file_size: facts.size,
            mtime: facts.mtime,
            inode: facts.inode,
        };
    }
    Ok(())
}
