//! The domain: its configuration, its QEMU, its end and its restore.

use std::path::Path;
use std::str;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use uuid::Uuid;

use super::guarded::started;
use super::state::{Dom0, caused, failed, meddled};
use crate::domain::{DomainConfig, DomainId};
use crate::error::{Error, Remaining, Result};
use crate::host::guard::Note;
use crate::host::image::Source;
use crate::host::image::while_restoring::restore_under_other_name;
use crate::host::libxl::DomainInfo;
use crate::host::lock::RestoreSlot;
use crate::host::needs::{self, CheckContext};
use crate::host::process::{self, Handle, Watch};
use crate::host::qmp::Qmp;
use crate::host::toolstack::{XL_CONFIG, open_libxl};
use crate::host::{command, files, surroundings};
use crate::memory::header;
use crate::names::same_vdev;
use crate::need::{self, Need};
use crate::plan::{ConfigOwner, StoreConfig};
use crate::tool::qemu_img::snapshot_delete;
use crate::tool::{Invocation, Tool, quote};

/// How long a destroyed domain's QEMU may do nothing before it has closed its disks. While it writes, or waits for
/// its storage, there is no limit.
const QEMU_EXIT: Duration = Duration::from_secs(60);

impl Dom0 {
    /// Replaces a stored configuration if it is still the old one. Skips a domain that is gone: libxl
    /// would keep its configuration for ever.
    pub(super) fn store_config(&mut self, store: &StoreConfig) -> Result<()> {
        let domid = store.domain.domid;
        if self.is_gone(&store.domain)? {
            return Ok(());
        }
        let now = match store.whose {
            ConfigOwner::Libxl => self.toolstack.stored_config(domid).map_err(caused)?.into_bytes(),
            ConfigOwner::Xl => {
                self.toolstack.userdata(domid, XL_CONFIG).map_err(caused)?.unwrap_or_default()
            }
        };
        if now == store.new.as_bytes() {
            return Ok(());
        }
        if now != store.old.as_bytes() {
            return Err(meddled("changed the configuration of the domain"));
        }
        let stored = match store.whose {
            ConfigOwner::Libxl => {
                let json = str::from_utf8(store.new.as_bytes());
                self.toolstack
                    .libxl()
                    .store_config(domid, json.map_err(failed("Read the configuration"))?)
            }
            ConfigOwner::Xl => {
                self.toolstack.libxl().store_userdata(domid, XL_CONFIG, store.new.as_bytes())
            }
        };
        stored.map_err(caused)
    }

    /// An error if libxl's configuration of the domain has changed.
    pub(super) fn check_config(&self, domid: u32, stored: &str) -> Result<()> {
        match self.toolstack.stored_config(domid).map_err(caused)? == stored {
            true => Ok(()),
            false => Err(meddled("changed the configuration of the domain")),
        }
    }

    /// libxl first pauses the domain and ends its QEMU. Then it waits for 2 s
    /// (`LIBXL_QEMU_BODGE_TIMEOUT`, libxl_internal.h), in which the disks can be reverted: so a thread
    /// waits for libxl.
    pub(super) fn destroy(&mut self, domain: &DomainId, way_out: Option<&Remaining>) -> Result<()> {
        let domid = domain.domid;
        self.way_back = way_out.filter(|_| self.image.is_some()).cloned();
        let qemu = self.held_qemu(domid)?;
        // However far it came, the domain no longer runs.
        let begun = |error: Error| match way_out {
            Some(remaining) => error.unfinished(vec![remaining.clone()]),
            None => error,
        };
        if self.is_listed(domain)? {
            let libxl = open_libxl(&self.reporter).map_err(caused)?;
            let destroy = move || libxl.destroy(domid).map_err(caused);
            let thread = thread::Builder::new().name("destroy".into()).spawn(destroy);
            let thread = thread.map_err(failed("Start a thread"))?;
            // From now on the domain is down until all is done: no tool may end with the caller's job. The guard has
            // told if it could not leave it.
            let _ = surroundings::leave_control_groups();
            let gone = match &qemu {
                Some(qemu) => qemu.gone_before(&|| thread.is_finished()).map_err(caused)?,
                None => false,
            };
            if gone {
                self.destroying = Some(thread);
                return Ok(());
            }
            joined(thread).map_err(begun)?;
        }
        await_qemu(qemu).map_err(begun)
    }

    /// A handle of the domain's QEMU, opened before the domain is destroyed: afterwards its process
    /// ID is unknown.
    fn held_qemu(&self, domid: u32) -> Result<Option<Handle>> {
        let pid = self.toolstack.qemu_pid(domid).map_err(failed("Look for the domain's QEMU"))?;
        let handle = pid.map_or(Ok(None), Handle::of_pid);
        let handle = handle.map_err(failed("Look for the domain's QEMU"))?;
        // The number of one that has crashed may be that of another program by now.
        Ok(handle.filter(|_| pid.is_some_and(|pid| process::is_qemu_of(pid, domid))))
    }

    /// Whether Xen lists the domain, even if it is dying.
    fn is_listed(&self, domain: &DomainId) -> Result<bool> {
        let info = self.toolstack.domain_info(domain.domid).map_err(caused)?;
        Ok(info.is_some_and(|info| info.uuid == domain.uuid))
    }

    /// Waits until the domain is destroyed. Destroys it if nobody else is doing so any more.
    pub(super) fn await_destroyed(&mut self, domain: &DomainId) -> Result<()> {
        let result = match self.destroying.take() {
            Some(thread) => joined(thread),
            None if self.is_gone(domain)? => Ok(()),
            None => {
                // Somebody who renamed it wants to keep it.
                let name = self.toolstack.domain_name(domain.domid).map_err(caused)?;
                if name.is_some_and(|name| name != domain.name) {
                    return Err(meddled(&format!("renamed domain {domain}")));
                }
                self.toolstack.libxl().destroy(domain.domid).map_err(caused)
            }
        };
        result.map_err(|error| self.with_way_back(error))
    }

    /// Adds the way out to an error after which the guest is down and its snapshot is incomplete.
    pub(super) fn with_way_back(&self, error: Error) -> Error {
        match &self.way_back {
            Some(remaining) => error.unfinished(vec![remaining.clone()]),
            None => error,
        }
    }

    /// Destroys a restored domain that nobody has unpaused yet.
    pub(super) fn discard_domain(&mut self, uuid: Uuid) -> Result<()> {
        self.await_orphans();
        let domains = self.toolstack.domains().map_err(failed("List the domains"))?;
        let Some(info) =
            domains.iter().find(|domain| domain.uuid == uuid && !domain.dying && domain.domid != 0)
        else {
            return Ok(());
        };
        self.destroy_paused(info)
    }

    /// Destroys a domain that nobody has unpaused yet.
    pub(super) fn destroy_paused(&self, info: &DomainInfo) -> Result<()> {
        if !info.paused {
            return Err(Error::failed(format!(
                "Another program has unpaused domain {}",
                info.domid
            ))
            .hint("check it with xl list before you destroy it"));
        }
        let domid = info.domid;
        let qemu = self.held_qemu(domid)?;
        self.toolstack.libxl().destroy(domid).map_err(caused)?;
        await_qemu(qemu)
    }

    /// Checks again what was there when the revert was planned.
    pub(super) fn check_needs(&self, gone: Option<u32>, needs: &[Need]) -> Result<()> {
        let around = CheckContext { toolstack: Some(&self.toolstack), gone, same: gone };
        need::refusal(needs::troubles(needs, around).0).map_or(Ok(()), Err)
    }

    /// Waits until fewer processes restore domains than there are processors.
    pub(super) fn await_turn(&mut self) -> Result<()> {
        let waits = &mut |holders: &str| {
            self.reporter.note(&format!(
                "note: waiting for a turn to restore: {holders} have them; one that is stopped (ps, state T) \
                 keeps its turn until it continues or is killed"
            ));
        };
        let turn = RestoreSlot::wait(waits, &|| self.stop.load(Ordering::Acquire));
        self.turn = turn.map_err(failed("Wait for a turn"))?;
        match self.turn {
            Some(_) => Ok(()),
            None => Err(Error::failed("Stopped by a signal")),
        }
    }

    pub(super) fn restore(
        &mut self,
        (uuid, domain): (Uuid, &str),
        config: &str,
        image: Option<&Path>,
    ) -> Result<()> {
        let Err(error) = self.run_restore(config, image) else { return Ok(()) };
        let discarded = self.discard_domain(uuid);
        self.not_restored(error, discarded, domain)
    }

    /// Lets xl restore a domain, paused.
    pub(super) fn run_restore(&mut self, config: &str, image: Option<&Path>) -> Result<()> {
        if let Some(image) = image {
            self.source = Some(self.written_image(image)?);
        }
        let source = self.source.as_mut().expect("a restore has its image");
        // xl opens its argument by name; the process has image or pipe as its standard input.
        let call = Invocation::new(Tool::Xl, ["restore", "-p", "/proc/self/fd/0"]);
        let meter = self.reporter.meter("restoring memory");
        let started = started(self.guard.as_ref());
        let length = source.image.stream_len;
        let mut show = |done| meter.show(None, done, length);
        let parsed = DomainConfig::parse(config).map_err(failed("Read the configuration"))?;
        // A restore straight from the file is twice as fast.
        let result = match source.as_it_is(&parsed).map_err(failed("Open the image"))? {
            Some(file) => {
                let id = files::id(&file).map_err(failed("Look at the image"))?;
                let offset = source.image.stream_offset;
                let mut look = |pid| {
                    let at = process::position(pid, id);
                    at.map(|at| at.saturating_sub(offset).min(length))
                        .into_iter()
                        .for_each(&mut show);
                };
                let stop = AtomicBool::new(false);
                // An image that we have just written needs no second check.
                let check = match image {
                    None => source.beside(&stop).map_err(failed("Open the image"))?,
                    Some(_) => None,
                };
                let tell = |unverified| {
                    if let Some(guard) = &self.guard {
                        guard.tell(&Note::Unverified(unverified));
                    }
                };
                // If we are killed, xl continues. Its domain must not run before the image is
                // verified.
                tell(check.is_some().then(|| source.unverified()));
                let (restored, checked) = restore_under_other_name(check, &stop, || {
                    command::run_on(&call, file, &mut look, &started)
                });
                let name = &source.name;
                let result = restored
                    .map_err(caused)
                    .and_then(|()| checked.map_err(failed(format!("Verify image {name}"))));
                if result.is_ok() {
                    tell(None);
                }
                result
            }
            None => {
                let head = header::encode_plain(config).map_err(failed("Write the header"))?;
                let stream = source.stream().map_err(failed("Read the image"))?;
                command::feed(&call, &head, stream, length, &mut show, &started).map_err(caused)
            }
        };
        drop(started);
        self.turn = None;
        meter.end();
        self.meters.push(meter);
        result
    }

    /// Whether a killed process had restored the domain. First verifies the rest of the image: the domain is destroyed
    /// if its memory is not what was saved.
    pub(super) fn settle_restore(&mut self, uuid: Uuid, domain: &str) -> Result<bool> {
        if self.domid_of(uuid)?.is_none() {
            return Ok(false);
        }
        let Some(unverified) = self.unverified.take() else { return Ok(true) };
        let Err(error) = unverified.verify() else { return Ok(true) };
        let discarded = self.discard_domain(uuid);
        let message = error.chain().join(": ");
        self.messages.push(format!("{domain} was restored, and must not run: {message}"));
        // No step may follow that would.
        self.say();
        match self.not_restored(error, discarded, domain) {
            Err(error) if !error.remaining.is_empty() => Err(error),
            _ => Ok(false),
        }
    }

    /// The error of a restore, after destroying what xl left of the domain: xl removes a domain that it could
    /// not restore, unless it had to be killed.
    pub(super) fn not_restored(
        &mut self,
        error: Error,
        discarded: Result<()>,
        domain: &str,
    ) -> Result<()> {
        let Err(why) = discarded else { return Err(error) };
        // The domain may have the new files open.
        self.made.clear();
        let remaining = Remaining {
            what: format!("What xl has restored is still there: {}", why.chain().join(": ")),
            command: Some(format!("xl destroy {}", quote(domain))),
        };
        Err(error.unfinished(vec![remaining]))
    }

    /// The image that this operation has written: the same open file, if it is open.
    fn written_image(&mut self, path: &Path) -> Result<Source> {
        let adopted = || self.image.as_ref().and_then(|(writer, _)| writer.file().ok());
        match self.written.take().or_else(adopted) {
            Some(file) => Source::of(file, path.display().to_string()),
            None => Source::open(path),
        }
    }

    pub(super) fn unpause(&mut self, uuid: Uuid) -> Result<()> {
        self.let_restored_run(self.domid(uuid)?)
    }

    pub(super) fn let_restored_run(&mut self, domid: u32) -> Result<()> {
        self.toolstack.libxl().unpause(domid).map_err(caused)?;
        self.runs_again();
        Ok(())
    }

    /// From here on the guest runs.
    pub(super) fn runs_again(&mut self) {
        if let Some(since) = self.suspended_at.take().or(self.down_since.take()) {
            self.done.pause = Some(since.elapsed());
        }
    }

    pub(super) fn delete_internal(
        &mut self,
        uuid: Uuid,
        domain: &str,
        vdev: &str,
        name: &str,
    ) -> Result<()> {
        let domid = match uuid.is_nil() {
            false => self.domid(uuid)?,
            true => self
                .domid_of_name(domain)?
                .ok_or_else(|| Error::failed(format!("There is no domain {domain}")))?,
        };
        let mut qmp = Qmp::connect(domid).map_err(failed("Talk to QEMU"))?;
        let disks = qmp.disks().map_err(failed("Ask QEMU for the disks"))?;
        let (_, node) =
            disks.iter().find(|(other, _)| same_vdev(other, vdev)).ok_or_else(|| {
                Error::failed(format!("QEMU does not know disk {vdev}")).hint(format!(
                    "delete it when the domain is down: {}",
                    snapshot_delete(Path::new("FILE"), name)
                ))
            })?;
        qmp.delete_internal(&node.name, name).map_err(failed("Delete the snapshot"))
    }
}

fn joined(thread: JoinHandle<Result<()>>) -> Result<()> {
    thread.join().unwrap_or_else(|_| Err(Error::failed("The thread that destroys it has panicked")))
}

/// Waits until the QEMU of a destroyed domain has closed its disks.
fn await_qemu(qemu: Option<Handle>) -> Result<()> {
    let Some(qemu) = qemu else { return Ok(()) };
    let pid = qemu.pid();
    match qemu.gone(Watch::of_process(pid, QEMU_EXIT)).map_err(failed("Wait for the domain's QEMU"))? {
        None => Ok(()),
        Some(hang) => Err(Error::failed(format!(
            "QEMU (process {pid}) still has the disks open after its domain was destroyed, and has done nothing for {} s",
            hang.idle.as_secs()
        ))
        .because(format!("until then it had {}", hang.done.words()))
        .hint(format!("wait until process {pid} has ended, and then complete the remaining steps"))),
    }
}
