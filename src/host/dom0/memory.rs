//! The memory: the image, the suspend and the resume.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::{Dom0, SIGNAL_POLL, caused, failed, meddled};
use crate::disk::qemu_img::ImageInfo;
use crate::domain::Format;
use crate::error::{Error, Left, Result};
use crate::host::guard::Note;
use crate::host::image::ImageWriter;
use crate::host::libxl::{Abort, Level, Libxl, LibxlError, ShutdownReason};
use crate::host::parallel::in_parallel;
use crate::host::{files, look};
use crate::memory::restore_command;
use crate::plan::{ImageStart, Target};
use crate::record::{DiskRecord, FrozenFile, Kept, QcowSnapshot, Record};
use crate::tool::quote;

/// How much longer the processors of a suspended guest may have run, in nanoseconds: the last of them may
/// be on its way out when Xen calls it suspended. To resume and suspend again takes far more.
const STILL: u64 = 1_000_000;
/// The size of a page in bytes, in which libxl counts.
const PAGE: u64 = 4096;
/// A file system with less free space, in bytes, is full.
const ROOM: u64 = 1 << 20;
/// How long after a failed save the guest is watched.
const LATE_SUSPEND: Duration = Duration::from_secs(3);
/// The planners see to it: `create` opens the image before it saves into it.
const IMAGE_IS_OPEN: &str = "plans open the image before they use it";

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
        let (Some(domid), Some(path)) = (self.stuck, writer.partial()) else {
            return writer.discard().map_err(caused);
        };
        writer.drain().map_err(failed("Compress what is left of the memory"))?;
        let restore = restore_command(&path, writer.is_compressed());
        let path = quote(path);
        Err(Error::failed("It is all there is of the guest's memory").unfinished(vec![Left {
            what: format!(
                "Domain {domid} is suspended, with its disks as they were; {path} was kept"
            ),
            command: Some(format!("xl destroy {domid}; {restore}")),
        }]))
    }

    pub(super) fn suspend(&mut self, domid: u32, live: bool) -> Result<()> {
        let result = self.save(domid, live);
        self.suspend_failed = result.is_err();
        // libxl may not have noticed; if it has, it saw only that nobody read any more.
        let trouble = self.image.as_ref().and_then(|(writer, _)| writer.trouble());
        let error = match (trouble, result) {
            (Some(why), _) => Error::failed("Compressing the memory").because(why),
            (None, Ok(())) => return Ok(()),
            (None, Err(error)) if error.is_guest_timed_out() => caused(error).hint(
                "the guest did not answer the suspend request: \
                 has it booted, and does it have Xen drivers?",
            ),
            (None, Err(error)) => caused(error),
        };
        let hint = error.hint.clone().unwrap_or_else(|| self.after_failed_save(domid));
        let partial = self.image.as_ref().and_then(|(writer, _)| writer.partial());
        let place = partial.map_or("standard output".into(), quote);
        Err(Error::failed(format!("Writing the memory to {place}")).because(error).hint(hint))
    }

    /// What to do after a failed save.
    fn after_failed_save(&self, domid: u32) -> String {
        let partial = self.image.as_ref().and_then(|(writer, _)| writer.partial());
        if self.is_gone(domid).unwrap_or(false) {
            "the domain is gone: somebody destroyed it"
        } else if partial.is_some_and(|path| files::free_space(&path).is_ok_and(|free| free < ROOM))
        {
            "its file system is full: make room, or choose another place with --memory FILE"
        } else {
            "the guest goes on; try again"
        }
        .to_owned()
    }

    fn save(&mut self, domid: u32, live: bool) -> std::result::Result<(), LibxlError> {
        let (writer, _) = self.image.as_ref().expect(IMAGE_IS_OPEN);
        let (libxl, stop) = (&self.libxl, &self.stop);
        let mut suspended_at = None;
        let mut cpu_time = None;
        let meter = self.reporter.meter("saving memory");
        let (finished, suspended) = (AtomicBool::new(false), AtomicBool::new(false));
        let result = thread::scope(|scope| {
            let aborter = libxl.aborter();
            let (finished, suspended) = (&finished, &suspended);
            let watch = scope.spawn(move || {
                // One of its own: the other is busy with the save. Without it, check_still sees less.
                let libxl = Libxl::open(Level::Critical, |_, _| ()).ok();
                let cpu_time_now = || Some(libxl.as_ref()?.domain_info(domid).ok()??.cpu_time);
                let mut aborted = false;
                let mut cpu_time = None;
                while !finished.load(Ordering::Acquire) {
                    // Asked again until it is heard: the save may be between two of its parts.
                    aborted = aborted
                        || stop.load(Ordering::Acquire)
                            && matches!(
                                aborter.abort(),
                                Ok(Abort::Requested | Abort::AlreadyRequested)
                            );
                    if cpu_time.is_none() && suspended.load(Ordering::Acquire) {
                        cpu_time = cpu_time_now();
                    }
                    thread::park_timeout(SIGNAL_POLL);
                }
                cpu_time
            });
            let result = libxl.suspend(domid, writer.fd(), live, &mut |progress| {
                if progress.is_suspended() && suspended_at.is_none() {
                    suspended_at = Some(Instant::now());
                    suspended.store(true, Ordering::Release);
                    watch.thread().unpark();
                    // What is left of a live save takes a moment, and is all there is of a pause.
                    if live {
                        meter.hush();
                    }
                }
                meter.show(
                    progress.iteration(),
                    progress.done.saturating_mul(PAGE),
                    progress.total.saturating_mul(PAGE),
                );
            });
            finished.store(true, Ordering::Release);
            // The guest stands still: nobody waits for the end of a sleep now.
            watch.thread().unpark();
            cpu_time = watch.join().expect("looking does not panic");
            result
        });
        meter.end();
        self.meters.push(meter);
        self.suspended_at = Some(suspended_at.unwrap_or_else(Instant::now));
        self.cpu_time = cpu_time;
        result
    }

    /// An error if the guest has run since it was suspended, or is configured otherwise.
    pub(super) fn check_still(&self, domid: u32, stored: Option<&str>) -> Result<()> {
        let info = self.libxl.domain_info(domid).map_err(caused)?;
        match info.filter(|info| !info.dying) {
            None => return Err(meddled("destroyed the domain: it is gone")),
            Some(info) if info.shutdown_reason != Some(ShutdownReason::Suspend) => {
                return Err(meddled("resumed the domain"));
            }
            Some(info) if self.cpu_time.is_some_and(|before| info.cpu_time > before + STILL) => {
                return Err(meddled("let the domain run"));
            }
            Some(_) => {}
        }
        stored.map_or(Ok(()), |stored| self.check_config(domid, stored))
    }

    /// Lets a suspended domain go on; one that is not suspended needs nothing.
    pub(super) fn resume(&mut self, domid: u32) -> Result<()> {
        // A guard does not know how far the save came: it keeps the image.
        let saved = !self.suspend_failed;
        let result = self.try_resume(domid);
        self.stuck = (saved && result.is_err()).then_some(domid);
        result
    }

    fn try_resume(&mut self, domid: u32) -> Result<()> {
        let result = self.libxl.resume(domid);
        // Whoever was killed may have asked the guest to suspend.
        self.suspend_failed |= self.adopted;
        if let Some(suspended) = self.suspended_at.take() {
            self.done.pause = Some(suspended.elapsed());
        }
        if self.suspend_failed {
            return self.resume_latecomer(domid);
        }
        let Err(error) = result else { return Ok(()) };
        if self.is_gone(domid)? {
            self.messages.push(format!("note: domain {domid} is gone: somebody destroyed it"));
            return Ok(());
        }
        if self.is_suspended(domid)? { Err(caused(error)) } else { Ok(()) }
    }

    /// After a failed save the guest may still be about to obey the request to suspend: it was seen
    /// to do so 150 ms after libxl had given up. Takes the request back and watches for a while.
    fn resume_latecomer(&mut self, domid: u32) -> Result<()> {
        self.suspend_failed = false;
        let deadline = Instant::now() + LATE_SUSPEND;
        loop {
            if self.is_gone(domid)? {
                return Ok(());
            }
            self.xenstore.cancel_suspend(domid).map_err(caused)?;
            if self.is_suspended(domid)? {
                self.libxl.resume(domid).map_err(caused)?;
            }
            if Instant::now() >= deadline {
                return Ok(());
            }
            thread::sleep(SIGNAL_POLL);
        }
    }

    /// Whether the domain is suspended.
    fn is_suspended(&self, domid: u32) -> Result<bool> {
        let info = self.libxl.domain_info(domid).map_err(caused)?;
        Ok(info.is_some_and(|info| info.shutdown_reason == Some(ShutdownReason::Suspend)))
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
