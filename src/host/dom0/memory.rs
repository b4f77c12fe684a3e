//! The memory image.

use std::path::Path;

use super::{Dom0, caused, failed};
use crate::disk::qemu_img::ImageInfo;
use crate::domain::Format;
use crate::error::{Error, Left, Result};
use crate::host::guard::Note;
use crate::host::image::ImageWriter;
use crate::host::parallel::in_parallel;
use crate::host::{files, look};
use crate::memory::restore_command;
use crate::plan::{ImageStart, Target};
use crate::record::{DiskRecord, FrozenFile, Kept, QcowSnapshot, Record};
use crate::tool::quote;

/// The planners see to it: `create` opens the image before it saves into it.
pub(super) const IMAGE_IS_OPEN: &str = "plans open the image before they use it";

impl Dom0 {
    pub(super) fn open_image(&mut self, start: &ImageStart) -> Result<()> {
        if let Target::File(path) = &start.target
            && start.make_directory
            && let Some(directory) = path.parent()
        {
            files::make_directories(directory)
                .map_err(failed(format!("Make the directory {}", directory.display())))?;
        }
        let writer = ImageWriter::start(start).map_err(failed("Write the header"))?;
        self.tell(&Note::Image(writer.id().map_err(failed("Look at the image"))?));
        self.image = Some((writer, start.record.clone()));
        Ok(())
    }

    pub(super) fn discard_image(&mut self) -> Result<()> {
        let Some((mut writer, _)) = self.image.take() else { return Ok(()) };
        let (Some(domain), Some(path)) = (self.stuck.clone(), writer.partial()) else {
            return writer.discard().map_err(caused);
        };
        writer.drain().map_err(failed("Compress what is left of the memory"))?;
        let restore = restore_command(&path, writer.is_compressed());
        let path = quote(path);
        Err(Error::failed("It is all there is of the guest's memory").unfinished(vec![Left {
            what: format!(
                "Domain {domain} is suspended, with its disks as they were; {path} was kept"
            ),
            command: Some(format!("xl destroy {}; {restore}", domain.domid)),
        }]))
    }

    pub(super) fn drain_image(&mut self) -> Result<()> {
        let (writer, _) = self.image.as_mut().ok_or_else(|| Error::failed(IMAGE_IS_OPEN))?;
        writer.drain().map_err(failed("Compressing the image"))
    }

    pub(super) fn complete_image(&mut self) -> Result<()> {
        // A guard may have come too late to know of it.
        let image = self.image.take();
        let (mut writer, mut record) = image.ok_or_else(|| {
            Error::failed("The memory image is lost")
                .because("its file is not there, or it was not begun when we were killed")
                .hint("take another snapshot; create says what this one has left of its disks")
        })?;
        if let Err(why) = writer.drain() {
            return Err(writer.give_up(&record.name, why));
        }
        let partial = writer.partial();
        let size = self
            .prove(&mut record)
            .and_then(|()| writer.complete(&mut record).map_err(failed("Complete the image")))
            .map_err(|error| match partial {
                None => error,
                Some(path) => error.unfinished(vec![Left {
                    what: format!(
                        "The disks have their snapshots, and the memory is in {} for xl restore; \
                         but without the proofs it cannot be reverted to",
                        path.display()
                    ),
                    command: Some(format!("rm {}", quote(path))),
                }]),
            })?;
        self.done.image_size = size;
        self.done.record = Some(record);
        Ok(())
    }

    /// Fills in what proves that the disks are still the same ones.
    pub(super) fn prove(&mut self, record: &mut Record) -> Result<()> {
        let name = record.name.as_str();
        let sizes = &self.virtual_sizes;
        let prove = |disk: &mut DiskRecord| -> Result<()> {
            let (vdev, path) = (&disk.vdev, &disk.path);
            match &mut disk.snapshot {
                // LVM's tag is the proof, and lvcreate has set it.
                Kept::None { .. } | Kept::Lvm { .. } => {}
                Kept::Internal { proof } => *proof = Some(internal_snapshot(path, name)?),
                Kept::External { proof, .. } | Kept::Vhd { proof, .. } => {
                    *proof = Some(frozen(path, sizes.get(vdev))?);
                }
                Kept::Reflink { copy, proof } => {
                    files::sync(copy).map_err(failed(format!("Sync {}", copy.display())))?;
                    *proof = Some(frozen(copy, None)?);
                }
            }
            Ok(())
        };
        in_parallel(&mut record.disks, prove).into_iter().collect()
    }
}

/// The one snapshot `name` of a qcow2 file.
fn internal_snapshot(path: &Path, name: &str) -> Result<QcowSnapshot> {
    let chain = look::chain(path, Format::Qcow2).map_err(Error::failed)?;
    let snapshots = chain.first().map(ImageInfo::snapshots).unwrap_or_default();
    snapshots.into_iter().find(|snapshot| snapshot.name == name).ok_or_else(|| {
        Error::failed(format!("qemu-img does not list snapshot {name} of {}", path.display()))
    })
}

/// What tells whether a file is written to from now on.
fn frozen(path: &Path, virtual_size: Option<&u64>) -> Result<FrozenFile> {
    let facts = files::facts(path).map_err(failed(format!("Look at {}", path.display())))?;
    Ok(FrozenFile {
        virtual_size: virtual_size.copied().unwrap_or(facts.size),
        file_size: facts.size,
        mtime: facts.mtime,
        inode: facts.inode,
    })
}
