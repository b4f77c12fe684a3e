//! Performs the steps of a plan on the real dom0.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CStr;
use std::fmt::Debug;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::disk::lvm::volumes::Volume;
use crate::disk::qemu_img::ImageInfo;
use crate::domain::Format;
use crate::error::{Error, Left, Result};
use crate::host::guard::{Guard, Legacy, Note, Task};
use crate::host::image::{ImageWriter, Source};
use crate::host::libxl::{Abort, Level, Libxl, LibxlError, ShutdownReason};
use crate::host::lock::Lock;
use crate::host::qmp::{Qmp, QmpError};
use crate::host::xenstore::Xenstore;
use crate::host::{cfg, command, files, look, process};
use crate::memory::{header, restore_command};
use crate::plan::{Action, ImageStart, Perform, Plan, Reached, Step, StoreConfig, Target, Whose};
use crate::record::{FrozenFile, Kept, QcowSnapshot, Record};
use crate::report::{MemoryBar, Reporter};
use crate::tool::{Invocation, Tool, quote};

/// How long a destroyed domain's QEMU may take to close its disks.
const QEMU_EXIT: Duration = Duration::from_secs(60);
/// How much longer the processors of a suspended guest may have run, in nanoseconds: the last of them may
/// be on its way out when Xen calls it suspended. To resume and suspend again takes far more.
const STILL: u64 = 1_000_000;
/// How often a running save looks whether the user wants it to stop.
const SIGNAL_POLL: Duration = Duration::from_millis(100);
/// A file system with less free space, in bytes, is full.
const ROOM: u64 = 1 << 20;
/// How long after a failed save the guest is watched.
const LATE_SUSPEND: Duration = Duration::from_secs(3);
/// How long a tool may go on whose starter was killed.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(60);
/// What `xl restore` may still do once it has the whole image.
const RESTORE_TIMEOUT: Duration = Duration::from_secs(300);

/// How long a logical volume may stay open, or a merge go on, once nobody should use it.
const VOLUME_WAIT: Duration = Duration::from_secs(600);

/// Under which name libxl keeps the text that `xl config-update` stores (xl_vmcontrol.c).
pub const XL_CONFIG: &CStr = c"xl";

/// The planners see to it: `create` opens the image before it saves into it.
const IMAGE_IS_OPEN: &str = "plans open the image before they use it";

/// The dom0 this runs on, and what one operation has done to it so far.
#[derive(Debug)]
pub struct Dom0 {
    /// Xen's toolstack library.
    pub libxl: Libxl,
    /// Xenstore.
    pub xenstore: Xenstore,
    /// The QEMU of the domain: connected while the guest runs, so that nothing need be done for it
    /// while the guest stands still.
    pub qmp: Option<Qmp>,
    /// The image to restore from.
    pub source: Option<Source>,
    /// Where progress is told.
    pub reporter: Reporter,
    /// Goes on with the plan if we are killed.
    guard: Option<Guard>,
    /// Whether we are that guard.
    adopted: bool,
    /// Tools that were left running by a process that was killed.
    orphans: Vec<(Tool, u32)>,
    stop: Arc<AtomicBool>,
    image: Option<(ImageWriter, Record)>,
    made: BTreeSet<PathBuf>,
    protected: BTreeMap<PathBuf, Permissions>,
    virtual_sizes: BTreeMap<String, u64>,
    suspended_at: Option<Instant>,
    /// How long the guest's processors had run when it was suspended, in nanoseconds.
    cpu_time: Option<u64>,
    suspend_failed: bool,
    /// A domain that could not be resumed: its memory is in the image alone.
    stuck: Option<u32>,
    /// What is said only once the guest runs again: a terminal may be stopped by Ctrl-S.
    bar: Option<MemoryBar>,
    messages: Vec<String>,
    done: Done,
}

/// What an operation can tell when it is over.
#[derive(Debug, Clone, Default)]
pub struct Done {
    /// The complete record.
    pub record: Option<Record>,
    /// The length of the image in bytes, where known.
    pub image_size: Option<u64>,
    /// How long the guest stood still.
    pub pause: Option<Duration>,
}

impl Dom0 {
    /// Connects to the toolstack.
    pub fn open(reporter: Reporter, stop: Arc<AtomicBool>) -> Result<Dom0> {
        let messages = reporter.clone();
        let libxl = Libxl::open(reporter.libxl_level(), move |level, text| {
            messages.message(&format!("libxl: {level}: {text}"));
        })
        .map_err(|error| Error::refused("Xen's toolstack").because(error))?;
        let xenstore = Xenstore::open().map_err(|error| {
            Error::refused("Xenstore").because(error).hint("is xenstored running?")
        })?;
        Ok(Dom0 {
            libxl,
            xenstore,
            qmp: None,
            source: None,
            reporter,
            guard: None,
            adopted: false,
            orphans: Vec::new(),
            stop,
            image: None,
            made: BTreeSet::new(),
            protected: BTreeMap::new(),
            virtual_sizes: BTreeMap::new(),
            suspended_at: None,
            cpu_time: None,
            suspend_failed: false,
            stuck: None,
            bar: None,
            messages: Vec::new(),
            done: Done::default(),
        })
    }

    /// Has a guard go on with the plan if we are killed.
    pub fn be_guarded(&mut self, plan: &Plan, lock: &Lock) -> Result<()> {
        let virtual_sizes = self.virtual_sizes.clone();
        self.guard = Some(Guard::start(&Task { plan: plan.clone(), virtual_sizes }, lock)?);
        Ok(())
    }

    /// Takes over what a process has done that was killed.
    pub fn adopt(&mut self, task: &Task, legacy: Legacy) {
        self.adopted = true;
        self.virtual_sizes.clone_from(&task.virtual_sizes);
        self.made = legacy.made;
        self.orphans = legacy.started;
        self.protected = legacy
            .protected
            .into_iter()
            .map(|(path, mode)| (path, Permissions::from_mode(mode)))
            .collect();
        let start = task.plan.prepare.iter().find_map(|step| match step {
            Step::OpenImage(start) => Some(start),
            _ => None,
        });
        // If somebody has removed the file, the rest is in need of order all the same.
        self.image = start.zip(legacy.image).and_then(|(start, id)| {
            Some((ImageWriter::adopt(start, id).ok()?, start.record.clone()))
        });
    }

    /// Waits for the tools that were left behind, so that nothing is taken back while it is being made.
    fn await_orphans(&mut self) {
        for (tool, pid) in self.orphans.drain(..) {
            let Ok(pid) = i32::try_from(pid) else { continue };
            // An xl has the whole image, or fails at once.
            let limit = if tool == Tool::Xl { RESTORE_TIMEOUT } else { ORPHAN_TIMEOUT };
            if process::is_program(pid, tool.name()) && !process::wait_gone(pid, limit) {
                let (name, limit) = (tool.name(), limit.as_secs());
                self.messages.push(format!("note: {name} (process {pid}) runs on after {limit} s"));
            }
        }
    }

    fn tell(&self, note: &Note) {
        if let Some(guard) = &self.guard {
            guard.tell(note);
        }
    }

    /// What the operation can tell.
    pub fn done(self) -> Done {
        self.done
    }

    /// Remembers the sizes of disks for the proofs: once overlays stand on them, QEMU tells the
    /// overlays' sizes.
    pub fn remember_sizes(&mut self, sizes: impl Iterator<Item = (String, u64)>) {
        self.virtual_sizes.extend(sizes);
    }

    /// The number of the domain with this UUID, if there is one.
    pub fn domid_of(&self, uuid: Uuid) -> Result<Option<u32>> {
        let domains = self.libxl.domains().map_err(failed("List the domains"))?;
        Ok(domains.iter().find(|domain| domain.uuid == uuid && !domain.dying).map(|d| d.domid))
    }

    fn domid(&self, uuid: Uuid) -> Result<u32> {
        self.domid_of(uuid)?.ok_or_else(|| Error::failed(format!("There is no domain {uuid}")))
    }

    fn new_file(&mut self, path: &Path) -> Result<()> {
        files::create_new(path).map_err(caused)?;
        self.made(path);
        Ok(())
    }

    fn made(&mut self, path: &Path) {
        self.tell(&Note::Made(path.to_owned()));
        self.made.insert(path.to_owned());
    }

    fn remove_new(&mut self, path: &Path) -> Result<()> {
        if self.made.contains(path) {
            files::remove(path).map_err(caused)?;
            self.made.remove(path);
        }
        Ok(())
    }

    fn clone_file(&mut self, from: &Path, to: &Path, writable: bool) -> Result<()> {
        files::clone_new(from, to, writable).map_err(caused)?;
        self.made(to);
        Ok(())
    }

    fn protect(&mut self, path: &Path) -> Result<()> {
        let before = files::protect(path).map_err(caused)?;
        self.tell(&Note::Protected(path.to_owned(), before.mode()));
        self.protected.insert(path.to_owned(), before);
        Ok(())
    }

    fn unprotect(&mut self, path: &Path) -> Result<()> {
        let Some(before) = self.protected.get(path) else { return Ok(()) };
        fs::set_permissions(path, before.clone()).map_err(caused)?;
        self.protected.remove(path);
        Ok(())
    }

    fn open_image(&mut self, start: &ImageStart) -> Result<()> {
        if let Target::File(path) = &start.target
            && path.starts_with(crate::create::DEFAULT_DIRECTORY)
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

    fn discard_image(&mut self) -> Result<()> {
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

    fn suspend(&mut self, domid: u32, live: bool) -> Result<()> {
        let result = self.save(domid, live);
        self.suspend_failed = result.is_err();
        // libxl may not have noticed; if it has, it saw only that nobody read any more.
        let trouble = self.image.as_ref().and_then(|(writer, _)| writer.trouble());
        let error = match (trouble, result) {
            (Some(why), _) => Error::failed("Compressing it").because(why),
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
        let bar = self.reporter.memory_bar("saving memory");
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
                }
                bar.show(progress.what, progress.done, progress.total);
            });
            finished.store(true, Ordering::Release);
            // The guest stands still: nobody waits for the end of a sleep now.
            watch.thread().unpark();
            cpu_time = watch.join().expect("looking does not panic");
            result
        });
        self.bar = Some(bar);
        self.suspended_at = Some(suspended_at.unwrap_or_else(Instant::now));
        self.cpu_time = cpu_time;
        result
    }

    /// An error if the guest has run since it was suspended, or is configured otherwise.
    fn check_still(&self, domid: u32, stored: &str) -> Result<()> {
        let other = |what: &str| {
            Error::failed(format!("Somebody else has {what} meanwhile"))
                .hint("see that nothing else works on the domain (xl, libvirt), and try again")
        };
        let info = self.libxl.domain_info(domid).map_err(caused)?;
        match info.filter(|info| !info.dying) {
            None => return Err(other("destroyed the domain: it is gone")),
            Some(info) if info.shutdown_reason != Some(ShutdownReason::Suspend) => {
                return Err(other("resumed the domain"));
            }
            Some(info) if self.cpu_time.is_some_and(|before| info.cpu_time > before + STILL) => {
                return Err(other("let the domain run"));
            }
            Some(_) => {}
        }
        match self.libxl.stored_config(domid).map_err(caused)? == stored {
            true => Ok(()),
            false => Err(other("changed the configuration of the domain")),
        }
    }

    /// Lets a suspended domain go on; one that is not suspended needs nothing.
    fn resume(&mut self, domid: u32) -> Result<()> {
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
        if let Some(bar) = self.bar.take() {
            bar.finish();
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

    /// Whether the domain is gone, or going.
    fn is_gone(&self, domid: u32) -> Result<bool> {
        Ok(self.libxl.domain_info(domid).map_err(caused)?.is_none_or(|info| info.dying))
    }

    /// Replaces a configuration if it is the one that is to be replaced. That of a domain that is gone
    /// needs nothing: libxl would keep it for ever.
    fn store_config(&mut self, store: &StoreConfig) -> Result<()> {
        let domid = store.domid;
        if self.is_gone(domid)? {
            return Ok(());
        }
        let now = match store.whose {
            Whose::Libxl => self.libxl.stored_config(domid).map_err(caused)?.into_bytes(),
            Whose::Xl => self.libxl.userdata(domid, XL_CONFIG).map_err(caused)?.unwrap_or_default(),
        };
        if now == store.new.as_bytes() {
            return Ok(());
        }
        if now != store.old.as_bytes() {
            return Err(Error::failed(format!(
                "Somebody else has changed the configuration of domain {domid} meanwhile"
            )));
        }
        let stored = match store.whose {
            Whose::Libxl => self.libxl.store_config(store.domid, &store.new),
            Whose::Xl => self.libxl.store_userdata(store.domid, XL_CONFIG, store.new.as_bytes()),
        };
        stored.map_err(caused)
    }

    fn transaction(&mut self, domid: u32, actions: &[Action]) -> Result<()> {
        let qmp = self.qmp.as_mut().ok_or_else(|| Error::failed("No connection to QEMU"))?;
        let error = match qmp.transaction(actions) {
            Ok(()) => return Ok(()),
            Err(error @ (QmpError::Refused { .. } | QmpError::Unsent { .. })) => {
                return Err(caused(error));
            }
            Err(error) => error,
        };
        // QEMU may have done it and failed to tell.
        self.qmp = None;
        match is_snapshotted(domid, actions) {
            Ok(true) => Ok(()),
            Ok(false) => Err(caused(error)),
            Err(_) => {
                // Its overlays must not be removed.
                let left = actions.iter().filter_map(Action::overlay).map(|path| {
                    self.made.remove(path);
                    Left {
                        what: format!(
                            "It is not known whether QEMU writes to {} now, so it was kept",
                            path.display()
                        ),
                        command: None,
                    }
                });
                let left = left.collect();
                Err(caused(error).unfinished(left))
            }
        }
    }

    fn drain_image(&mut self) -> Result<()> {
        let (writer, _) = self.image.as_mut().ok_or_else(|| Error::failed(IMAGE_IS_OPEN))?;
        writer.drain().map_err(failed("Compressing the image"))
    }

    fn complete_image(&mut self) -> Result<()> {
        // A guard may have come too late to know of it.
        let image = self.image.take();
        let (mut writer, mut record) =
            image.ok_or_else(|| Error::failed("The image is not open"))?;
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
    fn prove(&mut self, record: &mut Record) -> Result<()> {
        let name = record.name.as_str();
        for disk in &mut record.disks {
            let (vdev, path) = (&disk.vdev, &disk.path);
            match &mut disk.snapshot {
                // LVM's tag is the proof, and lvcreate has set it.
                Kept::None { .. } | Kept::Lvm { .. } => {}
                Kept::Internal { proof } => *proof = Some(internal_snapshot(path, name)?),
                Kept::External { proof, .. } | Kept::Vhd { proof, .. } => {
                    *proof = Some(frozen(path, self.virtual_sizes.get(vdev))?);
                }
                Kept::Reflink { copy, proof } => {
                    files::sync(copy).map_err(failed(format!("Sync {}", copy.display())))?;
                    *proof = Some(frozen(copy, None)?);
                }
            }
        }
        Ok(())
    }

    fn destroy(&mut self, domid: u32, way_out: &Left) -> Result<()> {
        // Its number is gone with the domain.
        let qemu = self.xenstore.qemu_pid(domid).map_err(failed("Look for the domain's QEMU"))?;
        if self.libxl.domain_info(domid).map_err(caused)?.is_some() {
            self.libxl.destroy(domid).map_err(caused)?;
        }
        match qemu {
            Some(pid) if !process::wait_gone(pid, QEMU_EXIT) => Err(Error::failed(format!(
                "QEMU (process {pid}) still has the disks open {} s after its domain was destroyed",
                QEMU_EXIT.as_secs()
            ))
            .unfinished(vec![way_out.clone()])),
            _ => Ok(()),
        }
    }

    fn restore(&mut self, config: &str, image: Option<&Path>) -> Result<()> {
        if let Some(image) = image {
            self.source = Some(Source::open(image)?);
        }
        let source = self.source.as_mut().expect("a restore has its image");
        let uuid = source.image.record.domain.uuid;
        let head = header::encode_plain(config).map_err(failed("Write the header"))?;
        let length = source.image.stream_len;
        let stream = source.stream().map_err(failed("Read the image"))?;
        // xl opens its argument by name; the process has the pipe as its standard input.
        let call =
            Invocation::new(Tool::Xl, ["restore", "-p", "/proc/self/fd/0"]).within(RESTORE_TIMEOUT);
        let bar = self.reporter.memory_bar("restoring memory");
        let started = started(self.guard.as_ref());
        let result = command::feed(
            &call,
            &head,
            stream,
            length,
            &mut |fed| {
                bar.show("restoring memory", fed / 4096, length / 4096);
            },
            &started,
        );
        bar.finish();
        let Err(error) = result else { return Ok(()) };
        // It may hold the new files open; they are of no use to anybody only if it is gone.
        match self.domid_of(uuid)? {
            None => Err(caused(error)),
            Some(domid) => {
                self.made.clear();
                let left = Left {
                    what: format!("xl restore failed, but domain {domid} is there, paused"),
                    command: Some(format!("xl destroy {domid}")),
                };
                Err(caused(error).unfinished(vec![left]))
            }
        }
    }

    fn unpause(&mut self, uuid: Uuid) -> Result<()> {
        let domid = self.domid(uuid)?;
        self.libxl.unpause(domid).map_err(caused)?;
        if let Some(suspended) = self.suspended_at.take() {
            self.done.pause = Some(suspended.elapsed());
        }
        Ok(())
    }

    /// Waits until `done` says so of a logical volume.
    fn await_volume(&self, path: &str, done: fn(&[Volume], &Volume) -> bool) -> Result<()> {
        let deadline = Instant::now() + VOLUME_WAIT;
        loop {
            let volumes = look::volumes().map_err(Error::failed)?;
            match volumes.iter().find(|volume| volume.path() == path) {
                None => return Err(Error::failed(format!("There is no volume {path}"))),
                Some(volume) if done(&volumes, volume) => return Ok(()),
                Some(_) if Instant::now() >= deadline => {
                    return Err(Error::failed(format!(
                        "That is not so after {} s",
                        VOLUME_WAIT.as_secs()
                    )));
                }
                Some(_) => thread::sleep(SIGNAL_POLL),
            }
        }
    }

    fn drop_internal(&mut self, uuid: Uuid, vdev: &str, name: &str) -> Result<()> {
        let mut qmp = Qmp::connect(self.domid(uuid)?).map_err(failed("Talk to QEMU"))?;
        let disks = qmp.disks().map_err(failed("Ask QEMU for the disks"))?;
        let (_, node) = disks
            .iter()
            .find(|(other, _)| other == vdev)
            .ok_or_else(|| Error::failed(format!("QEMU does not know {vdev}")))?;
        qmp.delete_internal(&node.name, name).map_err(failed("Delete the snapshot"))
    }

    /// Steps that only make files and run tools, at the same time; others one after the other.
    fn together(&mut self, steps: &[Step]) -> Result<()> {
        let mut calls = Vec::new();
        for step in steps {
            match step {
                Step::NewFile { path, fill } => {
                    self.new_file(path)?;
                    calls.push(fill);
                }
                Step::Run(call) | Step::Undoable { call, .. } => calls.push(call),
                other => self.carry_out(other)?,
            }
        }
        command::run_all(&calls, &started(self.guard.as_ref())).map_err(caused)?;
        for step in steps {
            if let Step::NewFile { path, .. } = step {
                files::sync(path).map_err(failed(format!("Sync {}", path.display())))?;
            }
        }
        Ok(())
    }

    fn carry_out(&mut self, step: &Step) -> Result<()> {
        if step.can_wait() {
            self.await_orphans();
        }
        match step {
            Step::NewFile { .. } | Step::Run(_) | Step::Undoable { .. } => {
                self.together(std::slice::from_ref(step))
            }
            Step::Together(steps) => self.together(steps),
            Step::Clone { from, to, writable } => self.clone_file(from, to, *writable),
            Step::Rename { from, to } => rename(from, to),
            Step::RemoveNew { path } => self.remove_new(path),
            Step::RemoveFile { path } => files::remove(path).map_err(caused),
            Step::Protect { path } => self.protect(path),
            Step::Unprotect { path } => self.unprotect(path),
            Step::OpenImage(start) => self.open_image(start),
            Step::DiscardImage => self.discard_image(),
            Step::HoldMonitor { pid } => process::hold(*pid).map_err(caused),
            Step::WakeMonitor { pid } => process::wake(*pid).map_err(caused),
            Step::Suspend { domid, live } => self.suspend(*domid, *live),
            Step::CheckStill { domid, stored } => self.check_still(*domid, stored),
            Step::Pause { domid } => self.libxl.pause(*domid).map_err(caused),
            Step::Resume { domid, .. } => self.resume(*domid),
            Step::StoreConfig(store) => self.store_config(store),
            Step::ReplaceCfg(cfg) => cfg::replace(cfg).map_err(caused),
            Step::Xenstore(writes) => self.xenstore.write(writes).map_err(caused),
            Step::Transaction { domid, actions } => self.transaction(*domid, actions),
            Step::DrainImage => self.drain_image(),
            Step::CompleteImage => self.complete_image(),
            Step::Destroy { domid, way_out } => self.destroy(*domid, way_out),
            Step::AwaitClosed { volume } => self.await_volume(volume, |_, volume| !volume.open),
            Step::AwaitMerged { volume } => self.await_volume(volume, |all, origin| {
                !all.iter().any(|v| v.merging && v.group == origin.group && v.origin == origin.name)
            }),
            Step::Restore { config, image, .. } => self.restore(config, image.as_deref()),
            Step::Unpause { uuid, .. } => self.unpause(*uuid),
            Step::DropInternal { uuid, vdev, name } => self.drop_internal(*uuid, vdev, name),
        }
    }
}

impl Perform for Dom0 {
    fn perform(&mut self, step: &Step) -> Result<()> {
        let started = Instant::now();
        let result = self.carry_out(step);
        self.messages.extend(self.reporter.step(step, started.elapsed(), result.is_ok()));
        if self.suspended_at.is_none() {
            self.messages.drain(..).for_each(|text| self.reporter.message(&text));
        }
        result
    }

    fn interrupted(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn reached(&mut self, reached: Reached) {
        self.tell(&Note::Reached(reached));
        if reached == Reached::End
            && let Some(guard) = self.guard.take()
            && !guard.dismiss()
        {
            self.reporter.note("note: somebody killed the guard process on the way");
        }
    }

    fn settle(&mut self, step: &Step) -> Result<bool> {
        if !matches!(step, Step::Transaction { .. }) {
            self.await_orphans();
        }
        match step {
            Step::Transaction { domid, actions } => is_snapshotted(*domid, actions).map_err(caused),
            // libxl begins with its QEMU.
            Step::Destroy { domid, way_out } => self.destroy(*domid, way_out).map(|()| true),
            // xl removes a domain that it could not restore.
            Step::Restore { uuid, .. } => Ok(self.domid_of(*uuid)?.is_some()),
            _ => Ok(false),
        }
    }
}

/// Whether the disks have the snapshots of a transaction: all have, or none.
fn is_snapshotted(domid: u32, actions: &[Action]) -> std::result::Result<bool, QmpError> {
    let disks = Qmp::connect(domid)?.disks()?;
    Ok(actions.iter().all(|action| {
        let node = |vdev| disks.iter().find(|(other, _)| other == vdev).map(|(_, node)| node);
        match action {
            Action::Internal { vdev, name, .. } => node(vdev)
                .is_some_and(|node| node.snapshots.iter().any(|snapshot| snapshot.name == *name)),
            Action::Overlay { vdev, file, .. } => node(vdev).is_some_and(|node| node.file == *file),
        }
    }))
}

/// Tells the guard of tools that are started.
fn started(guard: Option<&Guard>) -> impl Fn(Tool, u32) + Sync {
    move |tool, pid| {
        if let Some(guard) = guard {
            guard.tell(&Note::Started(tool, pid));
        }
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

fn rename(from: &Path, to: &Path) -> Result<()> {
    files::rename_new(from, to)
        .and_then(|()| files::sync_directory(to))
        .map_err(failed(format!("Rename {}", from.display())))
}

/// An error that needs no more words than its own.
fn caused(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    let message = error.to_string();
    match error.source() {
        Some(source) => Error::failed(message).because(source.to_string()),
        None => Error::failed(message),
    }
}

fn failed<E>(what: impl Into<String> + Debug) -> impl FnOnce(E) -> Error
where
    E: std::error::Error + Send + Sync + 'static,
{
    move |error| Error::failed(what).because(error)
}
