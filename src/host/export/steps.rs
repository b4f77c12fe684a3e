//! Performs the steps of an export.

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{Timespec, Timestamps, UTIME_OMIT, futimens};

use super::{place, stdout};
use crate::disk::{self, kind::ProofSlot};
use crate::domain::Format;
use crate::error::{Error, Result};
use crate::host::deletion::steps::{Run, allocated};
use crate::host::image::{ImageWriter, NotComplete, Source};
use crate::host::record_file::RecordFile;
use crate::host::{files, tools};
use crate::plan::export::{DiskCopy, Export, ImageCopy};
use crate::plan::{ImageStart, Target};
use crate::record::{ANY_INODE, FrozenFile, Record};
use crate::tool::{qemu_img, quote};

/// How much of the memory is handed over between two looks at whether the user wants it to end.
const PIECE: u64 = 1 << 20;

/// What an export has made so far.
#[derive(Debug, Default)]
pub struct Exporter {
    /// Marks its directory, and is held until the end.
    mark: Option<File>,
    /// What proves the copies, by disk.
    proofs: BTreeMap<String, FrozenFile>,
    /// Where the archive goes.
    output: Option<File>,
    /// What of the archive is not written yet.
    held: Vec<u8>,
    /// Whether it has begun.
    archive: bool,
    /// What was made.
    pub made: Made,
}

/// The files of an export and their sizes.
#[derive(Debug, Clone, Default)]
pub struct Made {
    /// What the copies take, in bytes, by disk.
    pub disks: BTreeMap<String, u64>,
    /// What the memory image takes, in bytes.
    pub image: Option<u64>,
}

/// What the steps use of the operation that they are a part of.
pub struct Hands<'a> {
    /// Runs a tool, which makes a file grow by so many bytes at most.
    pub run: Run<'a>,
    /// Shows how many bytes of how many are through.
    pub show: &'a mut dyn FnMut(u64, u64),
    /// Whether the user wants it to end.
    pub stopped: &'a dyn Fn() -> bool,
    /// The memory image of the snapshot.
    pub source: Option<&'a mut Source>,
}

impl std::fmt::Debug for Hands<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hands").field("source", &self.source).finish_non_exhaustive()
    }
}

/// Whether a step that another process began has been done.
pub fn settle(step: &Export) -> bool {
    match step {
        Export::Name { to, token, .. } => place::is_of(to, *token),
        _ => false,
    }
}

impl Exporter {
    /// Does a step.
    pub fn perform(&mut self, step: &Export, hands: &mut Hands<'_>) -> Result<()> {
        match step {
            Export::Clear { directory } => place::clear(directory).map_err(caused),
            Export::Begin { directory, token } => {
                self.mark = Some(place::begin(directory, *token).map_err(caused)?);
                Ok(())
            }
            Export::Discard { directory, token } => {
                place::discard(directory, *token).map_err(caused)?;
                self.mark = None;
                Ok(())
            }
            Export::Disk(copy) => self.disk(copy, hands),
            Export::Cfg { path, text } => write_new(path, text.as_bytes()).map_err(caused),
            Export::Memory(copy) => self.memory(copy, hands),
            Export::Record { path, record } => self.record(path, record),
            Export::Send { file, directory } => self.send(file, directory, hands),
            Export::Name { from, to, .. } => place::name(from, to).map_err(caused),
            Export::EndArchive => self.archived(hands, stdout::end),
            Export::End { directory, token } => {
                place::end(directory, *token).map_err(caused)?;
                self.mark = None;
                Ok(())
            }
        }
    }

    fn disk(&mut self, copy: &DiskCopy, hands: &mut Hands<'_>) -> Result<()> {
        let DiskCopy { vdev, to, fill, fit, most, source, time } = copy;
        drop(files::create_new(to).map_err(caused)?);
        (hands.run)(fill, Some((to, *most)))?;
        // What somebody has written meanwhile may be in the copy.
        if let Some((path, proof)) = source {
            let untouched = files::facts(path).map_err(|why| why.to_string());
            untouched.and_then(|file| disk::check_untouched(&file, proof)).map_err(|why| {
                Error::failed(format!("Disk {vdev} ({}) changed while it was copied", quote(path)))
                    .because(why)
                    .hint(
                        "nothing is left of the export; find out who writes to that file: the snapshot \
                         may be of no use any more (xl-snapshot show)",
                    )
            })?;
        }
        if let Some(size) = fit {
            (hands.run)(&qemu_img::resize(to, *size), None)?;
        }
        let virtual_size = tools::info(to, Format::Qcow2).map_err(Error::failed)?.virtual_size;
        let finished = || -> io::Result<FrozenFile> {
            let file = File::open(to)?;
            // It is read only: a clone has an overlay on it.
            file.set_permissions(Permissions::from_mode(0o400))?;
            futimens(&file, &modified(time.as_second()))?;
            file.sync_all()?;
            let facts = files::facts(to)?;
            Ok(FrozenFile {
                virtual_size,
                file_size: facts.size,
                mtime: facts.mtime,
                inode: ANY_INODE,
            })
        };
        let proof = finished().map_err(caused)?;
        self.made.disks.insert(vdev.clone(), allocated(to));
        self.proofs.insert(vdev.clone(), proof);
        Ok(())
    }

    fn prove(&self, record: &mut Record) -> Result<()> {
        for disk in &mut record.disks {
            if !disk.snapshot.kind().is_relative_to_image() {
                continue;
            }
            if let ProofSlot::Frozen { proof, .. } = disk.snapshot.kind_mut().proof() {
                let known = self.proofs.get(&disk.vdev).cloned();
                let known =
                    known.ok_or_else(|| Error::failed(format!("{} was not copied", disk.vdev)))?;
                *proof = Some(known);
            }
        }
        Ok(())
    }

    fn memory(&mut self, copy: &ImageCopy, hands: &mut Hands<'_>) -> Result<()> {
        let start = ImageStart {
            target: Target::File(copy.path.clone()),
            make_directory: false,
            config: copy.config.clone(),
            record: copy.record.clone(),
            compress: Some(copy.level),
        };
        let Hands { show, stopped, source, .. } = hands;
        let source =
            source.as_mut().ok_or_else(|| Error::failed("The memory image is not open"))?;
        let mut record = start.record.clone();
        self.prove(&mut record)?;
        let mut writer = ImageWriter::start(&start).map_err(caused)?;
        let total = source.image.stream_len;
        let pumped = writer.fd().try_clone_to_owned().map_err(caused).and_then(|pipe| {
            let mut pipe = File::from(pipe);
            let stream = source.stream().map_err(caused)?;
            pump(stream, &mut pipe, total, show, stopped)
        });
        let whole = pumped.and_then(|()| match writer.seal(true) {
            Some(why) => Err(Error::failed("Compressing the image").because(why)),
            None => writer.drain().map_err(caused),
        });
        if let Err(error) = whole {
            // The compressor's reason, where our pipe just broke.
            let error = match writer.seal(true) {
                Some(why) if !(hands.stopped)() => {
                    Error::failed("Compressing the image").because(why)
                }
                _ => error,
            };
            return writer.discard().map_err(caused).and(Err(error));
        }
        let size = writer.complete(&mut record).map_err(|why| not_complete(&why))?;
        self.made.image = size;
        Ok(())
    }

    fn record(&self, path: &Path, record: &Record) -> Result<()> {
        let mut whole = record.clone();
        self.prove(&mut whole)?;
        whole.complete = true;
        let file = RecordFile::start(path, record).map_err(caused)?;
        file.complete(&whole).map_err(|why| not_complete(&why))
    }

    /// Has the archive go to a file that is open, and not to standard output.
    #[must_use]
    pub fn sending_to(self, output: File) -> Exporter {
        Exporter { output: Some(output), ..self }
    }

    fn send(&mut self, path: &Path, directory: &str, hands: &mut Hands<'_>) -> Result<()> {
        if !self.archive {
            self.archived(hands, |told| stdout::directory(directory, told))?;
            self.archive = true;
        }
        self.archived(hands, |told| stdout::file(directory, path, told))?;
        files::remove(path).map_err(caused)
    }

    fn archived(
        &mut self,
        hands: &mut Hands<'_>,
        write: impl FnOnce(&mut stdout::TarProgress<'_>) -> io::Result<()>,
    ) -> Result<()> {
        let written = || -> io::Result<()> {
            let output = match self.output.take() {
                Some(output) => output,
                None => stdout::open()?,
            };
            let output = self.output.insert(output);
            write(&mut stdout::TarProgress {
                output,
                held: &mut self.held,
                show: hands.show,
                stopped: hands.stopped,
            })
        };
        written().map_err(|why| {
            Error::failed("The archive could not be written to standard output").because(why).hint(
                "what its reader has of it lacks the image or the record, and is of no use: remove it, and \
                 repeat the command",
            )
        })
    }
}

/// Hands all of a stream over.
fn pump(
    mut stream: impl Read,
    pipe: &mut File,
    total: u64,
    show: &mut dyn FnMut(u64, u64),
    stopped: &dyn Fn() -> bool,
) -> Result<()> {
    let mut done = 0;
    while done < total {
        if stopped() {
            return Err(Error::failed("Stopped by a signal").hint("run the command again"));
        }
        let piece = PIECE.min(total - done);
        let count = io::copy(&mut stream.by_ref().take(piece), pipe).map_err(caused)?;
        if count == 0 {
            return Err(Error::failed("The memory image of the snapshot ends too soon"));
        }
        done += count;
        show(done, total);
    }
    Ok(())
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = files::create_new(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn modified(second: i64) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: second, tv_nsec: 0 },
    }
}

fn not_complete(why: &NotComplete) -> Error {
    let mut chain = vec![why.to_string()];
    let mut source = std::error::Error::source(why);
    while let Some(next) = source {
        chain.push(next.to_string());
        source = next.source();
    }
    Error::failed(chain.join(": "))
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn caused(error: io::Error) -> Error {
    Error::failed(error.to_string())
}
