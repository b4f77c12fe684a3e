//! The memory image.

use std::path::Path;

use super::state::{Dom0, IMAGE_IS_OPEN, caused, failed};
use crate::disk::kind::ProofSlot;
use crate::domain::{DomainConfig, Format};
use crate::error::{Error, Remaining, Result};
use crate::host::guard::Note;
use crate::host::image::{ImageWriter, NotComplete};
use crate::host::parallel::in_parallel;
use crate::host::{files, tools};
use crate::memory::{Image, partial_path, restore_command};
use crate::plan::{ImageStart, Target};
use crate::record::{DiskRecord, FrozenFile, QcowSnapshot, Record};
use crate::tool::quote;

const WITHOUT_SUMS: &str = "note: the image has no checksums of its memory";

impl Dom0 {
    pub(super) fn open_image(&mut self, start: &ImageStart) -> Result<()> {
        let directory = match &start.target {
            Target::File(path) if start.make_directory => path.parent(),
            _ => None,
        };
        if let Some(directory) = directory {
            files::make_directories(directory)
                .map_err(failed(format!("Make the directory {}", directory.display())))?;
        }
        let writer = ImageWriter::start(start).map_err(failed("Write the header"))?;
        self.tell(&Note::Image(writer.id().map_err(failed("Look at the image"))?));
        self.image = Some((writer, start.record.clone()));
        self.saved = DomainConfig::parse(&start.config).ok();
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
        Err(Error::failed("It is all there is of the guest's memory").unfinished(vec![Remaining {
            what: format!(
                "Domain {domain} is suspended, with its disks as they were; {path} was kept"
            ),
            command: Some(format!("xl destroy {}; {restore}", domain.domid)),
        }]))
    }

    pub(super) fn finish_compression(&mut self) -> Result<()> {
        let (writer, _) = self.image.as_mut().ok_or_else(|| Error::failed(IMAGE_IS_OPEN))?;
        writer.drain().map_err(failed("Compressing the image"))
    }

    pub(super) fn sync_and_verify_image(&mut self) -> Result<()> {
        let (writer, _) = self.image.as_mut().ok_or_else(|| Error::failed(IMAGE_IS_OPEN))?;
        writer.secure().map_err(|why| {
            Error::failed("The memory image could not be synced and verified").because(why).hint(
                "the guest keeps running; check that file system (dmesg, df), or choose \
                 another place with --memory FILE",
            )
        })
    }

    pub(super) fn complete_image(&mut self) -> Result<()> {
        // A guard may not know of it.
        let image = self.image.take();
        let (mut writer, mut record) = image.ok_or_else(|| {
            Error::failed("The memory image is lost")
                .because("its file does not exist, or it was not begun when xl-snapshot was killed")
                .hint("take another snapshot; create lists the leftovers of this one")
        })?;
        if let Err(why) = writer.end() {
            return Err(writer.give_up(&record.name, why));
        }
        if let Some(why) = writer.without_sums() {
            self.messages.push(format!("{WITHOUT_SUMS}: {why}"));
        }
        self.later_sums = writer.later_sums();
        let path = writer.path();
        self.written = writer.file().ok();
        let way_back = self.way_back.clone();
        let whole = |why: NotComplete| match &path {
            // If the guest is down, the only copy of its memory comes first.
            Some(_) if matches!(why, NotComplete::Unwritten(_)) && way_back.is_some() => {
                failed("Complete the image")(why).unfinished(way_back.into_iter().collect())
            }
            Some(path) => not_complete("image", path, why),
            None => failed("Complete the image")(why),
        };
        let size = match self.prove(&mut record) {
            Ok(()) => writer.complete(&mut record).map_err(whole)?,
            Err(error) => {
                return Err(match &path {
                    Some(_) if self.way_back.is_some() => self.with_way_back(error),
                    Some(path) => error.unfinished(vec![unproven("image", path)]),
                    None => error,
                });
            }
        };
        self.done.image_size = size;
        self.done.record = Some(record);
        Ok(())
    }

    /// The image is good without them: this never fails.
    pub(super) fn add_sums(&mut self) {
        let trouble = match self.later_sums.take() {
            Some(sums) => sums.write().err().map(|why| why.to_string()),
            None if self.adopted && !self.has_sums() => {
                Some("the process that computed them was killed".to_owned())
            }
            None => None,
        };
        self.messages.extend(trouble.map(|why| format!("{WITHOUT_SUMS}: {why}")));
    }

    /// Whether the killed process had written all of them.
    fn has_sums(&self) -> bool {
        let file = self.image.as_ref().and_then(|(writer, _)| writer.file().ok());
        file.is_some_and(|mut file| Image::read(&mut file).is_ok_and(|image| image.sums.is_some()))
    }

    /// Fills in the proofs of the disks.
    pub(super) fn prove(&mut self, record: &mut Record) -> Result<()> {
        let name = record.name.as_str();
        let sizes = &self.virtual_sizes;
        let prove = |disk: &mut DiskRecord| -> Result<()> {
            let (vdev, path) = (&disk.vdev, &disk.path);
            match disk.snapshot.kind_mut().proof() {
                ProofSlot::NotNeeded => {}
                ProofSlot::Inside(proof) => *proof = Some(internal_snapshot(path, name)?),
                ProofSlot::Frozen { copy, proof } => {
                    let path = copy.unwrap_or(path);
                    // Sync its data, its time and its write permission.
                    files::sync(path).map_err(failed(format!("Sync {}", path.display())))?;
                    *proof = Some(frozen(path, sizes.get(vdev))?);
                }
            }
            Ok(())
        };
        in_parallel(&mut record.disks, prove).into_iter().collect()
    }
}

/// The leftover if an image or a record is incomplete or has no final name.
pub(super) fn not_complete(what: &str, path: &Path, why: NotComplete) -> Error {
    let (partial, named) = (quote(partial_path(path)), quote(path));
    let remaining = match &why {
        NotComplete::Unwritten(_) => unproven(what, path),
        NotComplete::Unnamed(_) => Remaining {
            what: format!("The snapshot is complete; its {what} is {partial} and needs its name"),
            command: Some(format!("mv -n {partial} {named}")),
        },
        NotComplete::Unsynced(_) => Remaining {
            what: format!(
                "The snapshot is complete, but a power cut may take its name from {named}"
            ),
            command: Some(format!("sync {named}")),
        },
        NotComplete::Replaced(_) => Remaining {
            what: format!("The disks have their snapshots, but the {what} no longer exists"),
            command: None,
        },
    };
    failed(format!("Complete the {what}"))(why).unfinished(vec![remaining])
}

/// The leftover if the proofs of the disks are missing.
fn unproven(what: &str, path: &Path) -> Remaining {
    let partial = quote(partial_path(path));
    let memory = match what {
        "image" => "; the memory in it is whole for xl restore: keep it until the domain runs",
        _ => "",
    };
    Remaining {
        what: format!(
            "The disks have their snapshots, but {partial} lacks the proofs of them, so that it cannot \
             be reverted to{memory}"
        ),
        command: None,
    }
}

/// The one snapshot `name` of a qcow2 file.
fn internal_snapshot(path: &Path, name: &str) -> Result<QcowSnapshot> {
    let image = tools::image(path, Format::Qcow2).map_err(Error::failed)?;
    let mut named = image.snapshots().into_iter().filter(|snapshot| snapshot.name == name);
    named.find(QcowSnapshot::is_plain).ok_or_else(|| {
        Error::failed(format!("qemu-img does not list snapshot {name} of {}", path.display()))
    })
}

/// The proof that nobody writes to a file from now on.
fn frozen(path: &Path, virtual_size: Option<&u64>) -> Result<FrozenFile> {
    let facts = files::facts(path).map_err(failed(format!("Look at {}", path.display())))?;
    Ok(FrozenFile {
        virtual_size: virtual_size.copied().unwrap_or(facts.size),
        file_size: facts.size,
        mtime: facts.mtime,
        inode: facts.inode,
    })
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn what_only_lacks_its_name_is_never_thrown_away() {
        let told = |why: NotComplete| {
            let error = not_complete("image", Path::new("/x/s 1.xlsave"), why);
            assert_eq!(error.exit_code(), 4);
            (error.remaining[0].what.clone(), error.remaining[0].command.clone())
        };
        let why = || io::Error::from(io::ErrorKind::PermissionDenied);
        let (what, command) = told(NotComplete::Unnamed(why()));
        assert!(what.starts_with("The snapshot is complete"), "{what}");
        let mv = "mv -n '/x/s 1.xlsave.partial' '/x/s 1.xlsave'";
        assert_eq!(command.as_deref(), Some(mv));
        let (what, command) = told(NotComplete::Unsynced(why()));
        assert!(what.contains("is complete") && !what.contains(".partial"), "{what}");
        assert_eq!(command.as_deref(), Some("sync '/x/s 1.xlsave'"));
        for why in [NotComplete::Unwritten(why()), NotComplete::Replaced("/x".into())] {
            assert_eq!(told(why).1, None);
        }
    }
}
