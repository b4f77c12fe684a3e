//! Performs the steps of a plan on the real dom0.

mod alone;
mod disks;
mod domain;
mod guarded;
mod memory;
mod suspend;
mod transaction;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::fs::{File, Permissions};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use uuid::Uuid;

use self::disks::{rename, rename_back};
use self::guarded::started;
use self::suspend::{Round, write_back};
use crate::disk::qemu_img::{base_of, snapshot_create};
use crate::domain::DomainId;
use crate::error::{Error, Left, Result};
use crate::host::guard::{Guard, Note};
use crate::host::image::{ImageWriter, Source};
use crate::host::libxl::{DomainInfo, Libxl};
use crate::host::lock::Turn;
use crate::host::qmp::Qmp;
use crate::host::record_file::RecordFile;
use crate::host::surroundings::Unstoppable;
use crate::host::toolstack::Toolstack;
use crate::host::{command, files, process};
use crate::plan::{Perform, Reached, Step};
use crate::process::Process;
use crate::record::Record;
use crate::report::{Meter, Reporter};
use crate::tool::{Invocation, Tool};

/// How often something that cannot tell us is looked at again.
const POLL: Duration = Duration::from_millis(100);

/// What to do if somebody else works on the domain.
const ALONE: &str = "see that nothing else works on the domain (xl, libvirt), and try again";

/// The dom0 this runs on, and what one operation has done to it so far.
#[derive(Debug)]
pub struct Dom0 {
    /// Xen's toolstack.
    pub toolstack: Toolstack,
    /// The QEMU of the domain: connected while the guest runs, so that nothing need be done for it
    /// while the guest stands still.
    pub qmp: Option<Qmp>,
    /// The image to restore from.
    pub source: Option<Source>,
    /// Where progress is told.
    pub reporter: Reporter,
    /// Goes on with the plan if we are killed.
    guard: Option<Guard>,
    /// Nobody stops us in the middle of the plan.
    unstoppable: Option<Unstoppable>,
    /// Whether we are that guard.
    adopted: bool,
    /// Tools that were left running by a process that was killed.
    orphans: Vec<(Tool, Process)>,
    stop: Arc<AtomicBool>,
    image: Option<(ImageWriter, Record)>,
    /// The file of the image once it is complete.
    written: Option<File>,
    /// What brings the guest back while it is down and its image is not complete.
    way_back: Option<Left>,
    record: Option<(RecordFile, Record)>,
    made: BTreeSet<PathBuf>,
    protected: BTreeMap<PathBuf, Permissions>,
    virtual_sizes: BTreeMap<String, u64>,
    suspended_at: Option<Instant>,
    /// When it will have stood still for too long, and how long that is.
    pause_limit: Option<(Instant, Duration)>,
    /// How long the guest's processors had run when it was suspended, in nanoseconds.
    cpu_time: Option<u64>,
    /// The process of somebody else that saved the domain while we did.
    other_saver: Option<i32>,
    /// What a busy guest stood still for, to be told when it runs again.
    busy: Option<(Round, Duration)>,
    suspend_failed: bool,
    /// The free room of the image's file system for which a save was given up, in bytes.
    short_of_room: Option<u64>,
    /// A domain that could not be resumed: its memory is in the image alone.
    stuck: Option<DomainId>,
    /// Destroys a domain whose QEMU is gone already.
    destroying: Option<JoinHandle<Result<()>>>,
    /// Our turn to restore, if one was waited for.
    turn: Option<Turn>,
    /// What is said, and taken from the terminal, only once the guest runs again: the terminal may be
    /// stopped by Ctrl-S.
    messages: Vec<String>,
    meters: Vec<Meter>,
    /// With which a save is watched; closed only then, too.
    lookout: Option<Libxl>,
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
    /// One that has done nothing yet.
    pub fn new(toolstack: Toolstack, reporter: Reporter, stop: Arc<AtomicBool>) -> Dom0 {
        Dom0 {
            toolstack,
            qmp: None,
            source: None,
            reporter,
            guard: None,
            unstoppable: None,
            adopted: false,
            orphans: Vec::new(),
            stop,
            image: None,
            written: None,
            way_back: None,
            record: None,
            made: BTreeSet::new(),
            protected: BTreeMap::new(),
            virtual_sizes: BTreeMap::new(),
            suspended_at: None,
            pause_limit: None,
            cpu_time: None,
            other_saver: None,
            busy: None,
            suspend_failed: false,
            short_of_room: None,
            stuck: None,
            destroying: None,
            turn: None,
            messages: Vec::new(),
            meters: Vec::new(),
            lookout: None,
            done: Done::default(),
        }
    }

    /// What the operation can tell.
    pub fn done(self) -> Done {
        self.done
    }

    /// The number of the domain with this UUID, if there is one.
    pub fn domid_of(&self, uuid: Uuid) -> Result<Option<u32>> {
        let domains = self.toolstack.domains().map_err(failed("List the domains"))?;
        let is_it =
            |domain: &&DomainInfo| domain.uuid == uuid && !domain.dying && domain.domid != 0;
        Ok(domains.iter().find(is_it).map(|domain| domain.domid))
    }

    /// The number of the domain of this name, if there is one.
    pub fn domid_of_name(&self, name: &str) -> Result<Option<u32>> {
        let domains = self.toolstack.domains().map_err(failed("List the domains"))?;
        for domain in domains.iter().filter(|domain| !domain.dying) {
            let its =
                self.toolstack.domain_name(domain.domid).map_err(failed("List the domains"))?;
            if its.as_deref() == Some(name) {
                return Ok(Some(domain.domid));
            }
        }
        Ok(None)
    }

    fn domid(&self, uuid: Uuid) -> Result<u32> {
        self.domid_of(uuid)?.ok_or_else(|| {
            Error::failed(format!("There is no domain {uuid} any more"))
                .hint("see what has become of it: xl list, and its log in /var/log/xen")
        })
    }

    /// Does what has waited for a moment when the guest does not stand still. Waits for nobody: an xl process may
    /// still be held, a restored guest not yet run.
    fn say(&mut self) {
        self.lookout = None;
        self.messages.drain(..).for_each(|text| self.reporter.message(&text));
    }

    /// Waits until all is said and nothing is painted any more, which a terminal may hold up.
    fn finish_speaking(&mut self) {
        self.say();
        self.meters.clear();
        self.reporter.catch_up();
    }

    /// What Xen knows of a domain, unless it is gone or going. Another one that has its number by now is
    /// not it.
    fn info(&self, domain: &DomainId) -> Result<Option<DomainInfo>> {
        let info = self.toolstack.domain_info(domain.domid).map_err(caused)?;
        Ok(info.filter(|info| info.uuid == domain.uuid && !info.dying))
    }

    /// Whether the domain is gone, or going.
    fn is_gone(&self, domain: &DomainId) -> Result<bool> {
        Ok(self.info(domain)?.is_none())
    }

    /// What Xen knows of a domain that is about to be stopped, destroyed or changed.
    ///
    /// # Errors
    ///
    /// If it is not there any more, has another name, or another domain has its UUID.
    fn the_same(&self, domain: &DomainId) -> Result<DomainInfo> {
        let Some(info) = self.info(domain)? else {
            return Err(match self.domid_of(domain.uuid)? {
                None => meddled(&format!("destroyed domain {domain}: it is gone")),
                Some(now) => Error::failed(format!(
                    "Domain {domain} was rebooted or started again meanwhile: it is number {now} now"
                ))
                .hint("nothing was done to it; try again"),
            });
        };
        let name = self.toolstack.domain_name(domain.domid).map_err(caused)?.unwrap_or_default();
        if name != domain.name {
            return Err(meddled(&format!("renamed domain {domain} to {name:?}")));
        }
        Ok(info)
    }

    /// The same, and that no other domain has its UUID: by that its snapshot is found again.
    fn the_only(&self, domain: &DomainId) -> Result<()> {
        self.the_same(domain)?;
        let domains = self.toolstack.domains().map_err(caused)?;
        let twin = domains
            .iter()
            .find(|other| other.uuid == domain.uuid && other.domid != domain.domid && !other.dying);
        twin.map_or(Ok(()), |other| {
            let with = format!("domain {} with the UUID of domain {domain}", other.domid);
            Err(meddled(&format!("started {with}")))
        })
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
            if let Step::NewFile { path, fill } = step {
                // By whose permissions a QEMU opened the base (device_model_user).
                if let Some(base) = base_of(fill) {
                    files::give_owner_of(base, path)
                        .map_err(failed(format!("Give {} its owner", path.display())))?;
                }
                files::sync(path).map_err(failed(format!("Sync {}", path.display())))?;
            }
        }
        Ok(())
    }

    fn run(&self, call: &Invocation) -> Result<()> {
        command::run_all(&[call], &started(self.guard.as_ref())).map_err(caused)
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
            Step::HoldMonitor { process } => process::hold(*process).map_err(caused),
            Step::WakeMonitor { process } => process::wake(*process).map_err(caused),
            Step::Suspend { domain, live, max_pause, disks } => {
                write_back(disks)?;
                self.suspend(domain, *live, *max_pause, disks)
            }
            Step::CheckStill { domain, stored } => self.check_still(domain, stored.as_deref()),
            Step::Pause { domain } => self.pause(domain),
            Step::LetRun { domain } => self.let_run(domain),
            Step::CheckSame { domain, stored } => self.check_same(domain, stored),
            Step::CheckThere { domain } => self.the_same(domain).map(drop),
            Step::CheckDown { uuid, domain } => self.check_down(*uuid, domain),
            Step::TakeBack { uuid, domain, disks } => self.take_back((*uuid, domain), disks),
            Step::PutKeptBack { path, name } => self.put_kept_back(path, name),
            Step::RenameBack { from, to } => rename_back(from, to),
            Step::RenameVolumeBack { group, from, to } => self.rename_volume_back(group, from, to),
            Step::TakeInternal { path, name } => self.run(&snapshot_create(path, name)),
            Step::UntakeInternal { path, name } => self.untake_internal(path, name),
            Step::OpenRecord { path, record } => self.open_record(path, record),
            Step::DiscardRecord => self.discard_record(),
            Step::CompleteRecord => self.complete_record(),
            Step::PutCfgBack(cfg) => self.put_cfg_back(cfg),
            Step::CreateDomain { domain, cfg, paused } => self.create_domain(domain, cfg, *paused),
            Step::Resume { domain, .. } => self.resume(domain),
            Step::Arm { domain, actions } => self.arm(domain.domid, actions),
            Step::Disarm => {
                self.qmp = None;
                Ok(())
            }
            Step::StoreConfig(store) => self.store_config(store),
            Step::ReplaceCfg(cfg) => self.replace_cfg(cfg),
            Step::Xenstore(writes) => self.toolstack.xenstore().replace(writes).map_err(caused),
            Step::Transaction { domain, actions } => self.transaction(domain.domid, actions),
            Step::DrainImage => self.drain_image(),
            Step::SecureImage => self.secure_image(),
            Step::CompleteImage => self.complete_image(),
            Step::Destroy { domain, way_out } => {
                // One that we have suspended was proven when its disks were: it must not stay so.
                if self.suspended_at.is_none() {
                    self.the_only(domain)?;
                }
                self.destroy(domain, way_out)
            }
            Step::AwaitDestroyed { domain } => self.await_destroyed(domain),
            Step::AwaitClosed { volume } => disks::await_closed(volume),
            Step::AwaitMerged { volume } => disks::await_merged(volume),
            Step::Restore { uuid, domain, config, image } => {
                self.restore((*uuid, domain), config, image.as_deref())
            }
            Step::AwaitTurn => self.await_turn(),
            Step::DiscardDomain { uuid, .. } => self.discard_domain(*uuid),
            Step::Unpause { uuid, .. } => self.unpause(*uuid),
            Step::DropInternal { uuid, domain, vdev, name } => {
                self.drop_internal(*uuid, domain, vdev, name)
            }
        }
    }
}

impl Perform for Dom0 {
    fn perform(&mut self, step: &Step) -> Result<()> {
        let started = Instant::now();
        let result = self.carry_out(step);
        self.messages.extend(self.reporter.timed(step, started.elapsed(), result.is_ok()));
        if self.suspended_at.is_none() {
            self.say();
        }
        result
    }

    fn interrupted(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn reached(&mut self, reached: Reached) {
        if reached != Reached::End {
            return self.tell(&Note::Reached(reached));
        }
        // It ends as soon as it hears of it, so that it is told once.
        let lost = self.guard.take().is_some_and(|guard| !guard.dismiss());
        self.finish_speaking();
        if lost {
            self.reporter.note("note: somebody killed the guard process on the way");
        }
        self.unstoppable = None;
    }

    fn settle(&mut self, step: &Step) -> Result<bool> {
        if !matches!(step, Step::Transaction { .. }) {
            self.await_orphans();
        }
        match step {
            Step::Transaction { domain, actions } => self.settle_transaction(domain.domid, actions),
            // libxl begins with its QEMU.
            Step::Destroy { domain, way_out } => self.destroy(domain, way_out).map(|()| true),
            // xl removes a domain that it could not restore.
            Step::Restore { uuid, .. } => Ok(self.domid_of(*uuid)?.is_some()),
            Step::CreateDomain { domain, .. } => Ok(self.domid_of_name(domain)?.is_some()),
            Step::CompleteRecord => Ok(self.is_recorded()),
            _ => Ok(false),
        }
    }
}

/// An error of what somebody else has done to the domain in the middle of our work.
fn meddled(what: &str) -> Error {
    Error::failed(format!("Somebody else has {what} meanwhile")).hint(ALONE)
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
