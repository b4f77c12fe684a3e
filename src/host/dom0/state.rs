//! What one operation has changed in dom0 so far, and helpers for all steps.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::fs::{File, Permissions};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::round::Round;
use crate::domain::{DomainConfig, DomainId};
use crate::error::{Error, Remaining, Result};
use crate::host::export::steps::Exporter;
use crate::host::freezer::ActiveFreeze;
use crate::host::guard::Guard;
use crate::host::image::while_restoring::Unverified;
use crate::host::image::{ImageWriter, Source};
use crate::host::libxl::{DomainInfo, Libxl};
use crate::host::lock::RestoreSlot;
use crate::host::pump::LaterSums;
use crate::host::qmp::Qmp;
use crate::host::record_file::RecordFile;
use crate::host::surroundings::Unstoppable;
use crate::host::toolstack::Toolstack;
use crate::names::is_kept_by_xl;
use crate::process::Process;
use crate::record::Record;
use crate::report::{Meter, Reporter};
use crate::tool::{Tool, quote};

/// How often to poll.
pub(super) const POLL: Duration = Duration::from_millis(100);

/// The planners guarantee this: `create` opens the image before it saves into it.
pub(super) const IMAGE_IS_OPEN: &str = "plans open the image before they use it";

/// The hint if somebody else works on the domain.
const ALONE: &str = "make sure that nothing else works on the domain (xl, libvirt), and try again";

/// The dom0 this runs on, and what one operation has changed in it so far.
#[derive(Debug)]
pub struct Dom0 {
    pub toolstack: Toolstack,
    /// The QEMU of the domain: connected while the guest runs, to keep the pause short.
    pub qmp: Option<Qmp>,
    /// The image to restore from.
    pub source: Option<Source>,
    /// That image, if a killed process had not verified all of it.
    pub(super) unverified: Option<Unverified>,
    pub reporter: Reporter,
    /// Continues the plan if we are killed.
    pub(super) guard: Option<Guard>,
    /// Keeps signals from stopping us in the middle of the plan.
    pub(super) unstoppable: Option<Unstoppable>,
    /// Whether we are that guard.
    pub(super) adopted: bool,
    /// Tools that a killed process left running.
    pub(super) orphans: Vec<(Tool, Process)>,
    pub(super) stop: Arc<AtomicBool>,
    pub(super) image: Option<(ImageWriter, Record)>,
    /// The file of the image once it is complete.
    pub(super) written: Option<File>,
    /// Its checksums, if they are written after the guest runs again.
    pub(super) later_sums: Option<LaterSums>,
    /// How to bring the guest back while it is down and its image is incomplete.
    pub(super) way_back: Option<Remaining>,
    pub(super) record: Option<(RecordFile, Record)>,
    pub(super) made: BTreeSet<PathBuf>,
    pub(super) protected: BTreeMap<PathBuf, Permissions>,
    pub(super) virtual_sizes: BTreeMap<String, u64>,
    pub(super) suspended_at: Option<Instant>,
    /// When the destroy of a running domain began.
    pub(super) down_since: Option<Instant>,
    /// The deadline of the pause, and its length.
    pub(super) pause_limit: Option<(Instant, Duration)>,
    /// The CPU time of the guest when it was suspended, in nanoseconds.
    pub(super) cpu_time: Option<u64>,
    /// Another process that saved the domain at the same time.
    pub(super) other_saver: Option<i32>,
    /// The last round of a busy guest and its duration, to report when it runs again.
    pub(super) busy: Option<(Round, Duration)>,
    pub(super) suspend_failed: bool,
    /// The configuration in the image.
    pub(super) saved: Option<DomainConfig>,
    /// The free space of the image's file system at which a save was aborted, in bytes.
    pub(super) short_of_room: Option<u64>,
    /// A domain that could not be resumed: only the image has its memory.
    pub(super) stuck: Option<DomainId>,
    /// The thread that destroys a domain whose QEMU has ended.
    pub(super) destroying: Option<JoinHandle<Result<()>>>,
    /// Our turn to restore, if we waited for one.
    pub(super) turn: Option<RestoreSlot>,
    /// Messages to print only when the guest runs again: Ctrl-S may have stopped the terminal.
    pub(super) messages: Vec<String>,
    pub(super) meters: Vec<Meter>,
    /// The connection that watches a save; also closed only then.
    pub(super) lookout: Option<Libxl>,
    /// The freeze of the guest's file systems.
    pub(super) freeze: ActiveFreeze,
    /// What an export has made so far.
    pub(super) exporter: Exporter,
    pub(super) done: Done,
}

/// The result of an operation.
#[derive(Debug, Clone, Default)]
pub struct Done {
    /// The complete record.
    pub record: Option<Record>,
    /// The length of the image in bytes, where known.
    pub image_size: Option<u64>,
    /// How long the guest was paused.
    pub pause: Option<Duration>,
}

impl Dom0 {
    pub fn new(toolstack: Toolstack, reporter: Reporter, stop: Arc<AtomicBool>) -> Dom0 {
        Dom0 {
            toolstack,
            qmp: None,
            source: None,
            unverified: None,
            reporter,
            guard: None,
            unstoppable: None,
            adopted: false,
            orphans: Vec::new(),
            stop,
            image: None,
            written: None,
            later_sums: None,
            way_back: None,
            record: None,
            made: BTreeSet::new(),
            protected: BTreeMap::new(),
            virtual_sizes: BTreeMap::new(),
            suspended_at: None,
            down_since: None,
            pause_limit: None,
            cpu_time: None,
            other_saver: None,
            busy: None,
            suspend_failed: false,
            saved: None,
            short_of_room: None,
            stuck: None,
            destroying: None,
            turn: None,
            messages: Vec::new(),
            meters: Vec::new(),
            lookout: None,
            freeze: ActiveFreeze::default(),
            exporter: Exporter::default(),
            done: Done::default(),
        }
    }

    /// Whether the user asked to stop (SIGINT, SIGTERM).
    pub fn stop_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stop)
    }

    pub fn done(self) -> Done {
        self.done
    }

    /// How long the guest was down or paused, if it runs again.
    pub fn outage(&self) -> Option<Duration> {
        self.done.pause
    }

    /// The number of the domain with this UUID.
    pub fn domid_of(&self, uuid: Uuid) -> Result<Option<u32>> {
        let domains = self.toolstack.domains().map_err(failed("List the domains"))?;
        let is_it =
            |domain: &&DomainInfo| domain.uuid == uuid && !domain.dying && domain.domid != 0;
        Ok(domains.iter().find(is_it).map(|domain| domain.domid))
    }

    /// The domain with this UUID and name: two domains may have the UUID.
    pub(super) fn named(&self, uuid: Uuid, name: &str) -> Result<Option<DomainInfo>> {
        let domains = self.toolstack.domains().map_err(failed("List the domains"))?;
        for info in domains {
            if info.uuid != uuid || info.dying || info.domid == 0 {
                continue;
            }
            let its = self.toolstack.domain_name(info.domid).map_err(failed("List the domains"))?;
            if its.as_deref() == Some(name) {
                return Ok(Some(info));
            }
        }
        Ok(None)
    }

    /// The number of the domain with this name.
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

    pub(super) fn domid(&self, uuid: Uuid) -> Result<u32> {
        self.domid_of(uuid)?.ok_or_else(|| {
            Error::failed(format!("There is no domain {uuid} any more"))
                .hint("check it with xl list and its log in /var/log/xen")
        })
    }

    /// Prints the messages that had to wait until the guest runs. Does not block: an xl process may still be
    /// stopped, a restored guest still paused.
    pub(super) fn say(&mut self) {
        self.lookout = None;
        self.messages.drain(..).for_each(|text| self.reporter.message(&text));
    }

    /// Waits until all messages and progress are printed, which a terminal may delay.
    pub(super) fn finish_speaking(&mut self) {
        self.say();
        self.meters.clear();
        self.reporter.catch_up();
    }

    /// Xen's information on a domain, unless it is gone or dying. Another domain that now has its number
    /// does not count.
    pub(super) fn info(&self, domain: &DomainId) -> Result<Option<DomainInfo>> {
        let info = self.toolstack.domain_info(domain.domid).map_err(caused)?;
        Ok(info.filter(|info| info.uuid == domain.uuid && !info.dying))
    }

    /// Whether the domain is gone or dying.
    pub(super) fn is_gone(&self, domain: &DomainId) -> Result<bool> {
        Ok(self.info(domain)?.is_none())
    }

    /// Xen's information on a domain that is about to be stopped, destroyed or changed.
    ///
    /// # Errors
    ///
    /// If it no longer exists, has another name, or another domain has its UUID.
    pub(super) fn the_same(&self, domain: &DomainId) -> Result<DomainInfo> {
        let Some(info) = self.info(domain)? else {
            let now = self.toolstack.domain_name(domain.domid).map_err(caused)?.unwrap_or_default();
            return Err(match self.named(domain.uuid, &domain.name)?.map(|info| info.domid) {
                // A domain with its number exists, with another UUID.
                _ if is_kept_by_xl(&now) && now.starts_with(&format!("{}-", domain.name)) => {
                    Error::failed(format!(
                        "Domain {domain} has ended meanwhile, and xl keeps it as {now} (rename-restart)"
                    ))
                    .hint(format!(
                        "it was not changed; if you no longer need it, run xl destroy {} and try again",
                        quote(&now)
                    ))
                }
                None => meddled(&format!("destroyed domain {domain}")),
                Some(now) => Error::failed(format!(
                    "Domain {domain} was rebooted or started again meanwhile: it is number {now} now"
                ))
                .hint("it was not changed; try again"),
            });
        };
        let name = self.toolstack.domain_name(domain.domid).map_err(caused)?.unwrap_or_default();
        if name != domain.name {
            return Err(meddled(&format!("renamed domain {domain} to {name:?}")));
        }
        Ok(info)
    }

    /// The same, and checks that no other domain has its UUID: snapshots are found by UUID.
    pub(super) fn the_only(&self, domain: &DomainId) -> Result<()> {
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
}

/// An error if somebody else has changed the domain during our work.
pub(super) fn meddled(what: &str) -> Error {
    Error::failed(format!("Another program or person has {what} meanwhile")).hint(ALONE)
}

/// An error with the text of its cause.
pub(super) fn caused(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    let message = error.to_string();
    match error.source() {
        Some(source) => Error::failed(message).because(source.to_string()),
        None => Error::failed(message),
    }
}

pub(super) fn failed<E>(what: impl Into<String> + Debug) -> impl FnOnce(E) -> Error
where
    E: std::error::Error + Send + Sync + 'static,
{
    move |error| Error::failed(what).because(error)
}
