//! Replaces the running domain by the one that was restored next to it.
//!
//! Both have the same UUID; only the names differ. Xen accepts two domains with one UUID, and libxl names its
//! files by number and UUID. Only `/vm/UUID` in xenstore must be unique: libxl removes and fills it whenever it
//! creates such a domain, and removes the node that `/local/domain/N/vm` names when it destroys one
//! (libxl_create.c, `libxl__domain_make`; libxl_domain.c, `devices_destroy_cb`). So the old domain gets another
//! node before it is destroyed, and its own back if the new domain is destroyed.

use std::ffi::CString;

use uuid::Uuid;

use super::state::{Dom0, caused, failed, meddled};
use crate::disk::Served;
use crate::domain::{DomainConfig, DomainId};
use crate::error::{Error, Result};
use crate::host::libxl::DomainInfo;
use crate::host::process;
use crate::plan::{Image, Replacement, Switch, XenstoreWrite};
use crate::tool::quote;

impl Dom0 {
    pub(super) fn switch(&mut self, switch: &Switch) -> Result<()> {
        match switch {
            Switch::Restore { replacement, config } => {
                self.restore_under_other_name(replacement, config)
            }
            Switch::Check { uuid, domain } => self.check_restored(*uuid, domain),
            Switch::Discard { replacement } => self.discard_replacement(replacement),
            Switch::RenameOld { replacement } => self.rename_old(replacement),
            Switch::UndoRenameOld { replacement } => {
                self.undo_rename(&replacement.old_after_switch(), &replacement.old.name)
            }
            Switch::RenameNew { replacement } => {
                let domid = self.replacement(replacement, &replacement.temporary)?.domid;
                let libxl = self.toolstack.libxl();
                libxl.rename(domid, &replacement.temporary, &replacement.old.name).map_err(caused)
            }
            Switch::UndoRenameNew { replacement } => {
                match self.find_replacement(replacement, &replacement.old.name)? {
                    Some(new) => {
                        let libxl = self.toolstack.libxl();
                        libxl
                            .rename(new.domid, &replacement.old.name, &replacement.temporary)
                            .map_err(caused)
                    }
                    None => Ok(()),
                }
            }
            Switch::Run { replacement } => {
                let domid = self.replacement(replacement, &replacement.old.name)?.domid;
                self.let_restored_run(domid)
            }
            Switch::Destroy { replacement } => {
                let old = replacement.old_after_switch();
                if self.is_gone(&old)? {
                    return Ok(());
                }
                // A process that was killed during this step may have removed the name.
                let name = self.toolstack.domain_name(old.domid).map_err(caused)?;
                if name.is_some_and(|name| name != old.name) {
                    return Err(meddled(&format!("renamed domain {old}")));
                }
                self.destroy(&old, None)
            }
            Switch::RenameVolume { group, from, to } => self.rename_volume(group, from, to),
            Switch::UpdateConfig { replacement, images } => {
                self.update_stored_config(replacement, images)
            }
        }
    }

    /// Whether the new domain runs: the process that began to unpause it was killed.
    pub(super) fn settle_switch(&self, switch: &Switch) -> Result<bool> {
        let Switch::Run { replacement } = switch else { return Ok(false) };
        Ok(self
            .find_replacement(replacement, &replacement.old.name)?
            .is_some_and(|new| !new.paused))
    }

    fn restore_under_other_name(&mut self, replacement: &Replacement, config: &str) -> Result<()> {
        self.the_same(&replacement.old)?;
        let Err(error) = self.run_restore(config, None) else { return Ok(()) };
        // The undo of this step restores the xenstore keys, and reports it if it cannot.
        self.await_orphans();
        let discarded = match self.find_replacement(replacement, &replacement.temporary) {
            Ok(Some(new)) => self.destroy_paused(&new),
            other => other.map(drop),
        };
        self.not_restored(error, discarded, &replacement.temporary)
    }

    fn check_restored(&self, uuid: Uuid, name: &str) -> Result<()> {
        let trouble = |why: String| {
            Error::failed(format!("The restored domain {name} is not whole"))
                .because(why)
                .hint("see its logs in /var/log/xen (xl-NAME.log, qemu-dm-NAME.log)")
        };
        let Some(info) = self.named(uuid, name)? else {
            return Err(trouble("it no longer exists".into()));
        };
        if !info.paused {
            return Err(meddled(&format!("let the restored domain {name} run")));
        }
        if let Some(why) = info.shutdown_reason {
            return Err(trouble(format!("it {why}")));
        }
        let domid = info.domid;
        match self.toolstack.qemu_pid(domid).map_err(caused)? {
            Some(pid) if !process::is_qemu_of(pid, domid) => {
                Err(trouble(format!("its QEMU (process {pid}) has ended")))
            }
            _ => Ok(()),
        }
    }

    /// Destroys the new domain, if it exists.
    fn discard_replacement(&mut self, replacement: &Replacement) -> Result<()> {
        self.await_orphans();
        if let Some(new) = self.find_replacement(replacement, &replacement.temporary)? {
            self.destroy_paused(&new)?;
            return self.put_vm_back(replacement);
        }
        // Without the old one, this is the old one after a reboot, which xl has not let go yet.
        let renamed = self.find_replacement(replacement, &replacement.old.name)?;
        if renamed.is_some_and(|new| new.paused) && self.info(&replacement.old)?.is_some() {
            return Err(Error::failed(format!("It is still called {}", replacement.old.name)));
        }
        self.put_vm_back(replacement)
    }

    /// The old domain may have rebooted meanwhile, and have another number.
    fn put_vm_back(&self, replacement: &Replacement) -> Result<()> {
        let DomainId { uuid, name, .. } = &replacement.old;
        let Some(old) = self.named(*uuid, name)? else { return Ok(()) };
        let (domid, vm) = (old.domid, format!("/vm/{uuid}"));
        let key = format!("/local/domain/{domid}/vm");
        let own = self.toolstack.read(&key).map_err(caused)?;
        let called = self.toolstack.read(&format!("{vm}/name")).map_err(caused)?;
        if own.as_ref() == Some(&vm) && called.as_ref() == Some(name) {
            return Ok(());
        }
        self.toolstack.libxl().preserve(domid, name, c"", *uuid).map_err(caused)?;
        self.check_vm(domid, name, *uuid)?;
        let xenstore = self.toolstack.xenstore();
        // After a reboot, the start time is that of the previous boot: better than none.
        for (key, value) in &replacement.keys {
            xenstore.write(&format!("{vm}/{key}"), value).map_err(caused)?;
        }
        xenstore.remove(&format!("/vm/{}", replacement.vm)).map_err(caused)
    }

    /// libxl does not report if its transaction failed at the end.
    fn check_vm(&self, domid: u32, name: &str, vm: Uuid) -> Result<()> {
        let now = self.toolstack.read(&format!("/local/domain/{domid}/vm")).map_err(caused)?;
        let called = self.toolstack.domain_name(domid).map_err(caused)?;
        if now == Some(format!("/vm/{vm}")) && called.as_deref() == Some(name) {
            return Ok(());
        }
        Err(Error::failed(format!("Xenstore did not take the change of domain {domid}"))
            .hint("check that xenstored works: xenstore-ls /vm"))
    }

    fn rename_old(&mut self, replacement: &Replacement) -> Result<()> {
        let old = &replacement.old;
        if !self.the_same(old)?.paused {
            return Err(meddled(&format!("unpaused domain {old}")));
        }
        let old_suffix =
            CString::new(replacement.old_suffix.as_str()).map_err(failed("Rename it"))?;
        let libxl = self.toolstack.libxl();
        libxl.preserve(old.domid, &old.name, &old_suffix, replacement.vm).map_err(caused)?;
        self.check_vm(old.domid, &replacement.old_after_switch().name, replacement.vm)
    }

    fn undo_rename(&self, domain: &DomainId, name: &str) -> Result<()> {
        let is_it = self.info(domain)?.is_some()
            && self.toolstack.domain_name(domain.domid).map_err(caused)?.as_ref()
                == Some(&domain.name);
        match is_it {
            true => self.toolstack.libxl().rename(domain.domid, &domain.name, name).map_err(caused),
            false => Ok(()),
        }
    }

    /// The new domain, if it exists under that name. Never returns the old one.
    fn find_replacement(
        &self,
        replacement: &Replacement,
        name: &str,
    ) -> Result<Option<DomainInfo>> {
        let found = self.named(replacement.old.uuid, name)?;
        Ok(found.filter(|info| info.domid != replacement.old.domid))
    }

    fn replacement(&self, replacement: &Replacement, name: &str) -> Result<DomainInfo> {
        self.find_replacement(replacement, name)?.ok_or_else(|| {
            Error::failed(format!("There is no domain {name} any more"))
                .hint("check it with xl list and its log in /var/log/xen")
        })
    }

    fn update_stored_config(&self, replacement: &Replacement, images: &[Image]) -> Result<()> {
        let name = &replacement.old.name;
        let domid = self.replacement(replacement, name)?.domid;
        let stored = self.toolstack.stored_config(domid).map_err(caused)?;
        let mut config = DomainConfig::parse(&stored).map_err(caused)?;
        config.set_name(name).map_err(caused)?;
        let disks = config.disks().map_err(caused)?;
        // A volume that could not be renamed still has its old name: the new name belongs to
        // another volume.
        let has_old_name = |image: &&Image| {
            let mut disks = disks.iter().filter(|disk| disk.vdev == image.vdev);
            disks.any(|disk| disk.path != image.path && disk.path.exists())
        };
        let (not_yet, images): (Vec<&Image>, Vec<&Image>) = images.iter().partition(has_old_name);
        let mut writes = Vec::new();
        let vbds = self.toolstack.vbds(domid).map_err(caused)?;
        for Image { vdev, path, format } in images {
            config.set_image(vdev, path, *format).map_err(caused)?;
            for vbd in vbds.iter().filter(|vbd| vbd.vdev == *vdev) {
                let path = path.display();
                let new = match vbd.served {
                    Served::Qemu => format!("{}:{path}", format.xenstore()),
                    _ => path.to_string(),
                };
                writes.extend(vbd.params.iter().map(|(key, old)| XenstoreWrite {
                    path: key.clone(),
                    new: new.clone(),
                    old: old.clone(),
                }));
            }
        }
        self.toolstack.libxl().store_config(domid, &config.to_json()).map_err(caused)?;
        self.toolstack.xenstore().replace(&writes).map_err(caused)?;
        match not_yet.as_slice() {
            [] => Ok(()),
            [image, ..] => Err(Error::failed(format!(
                "Disk {} was not renamed to {}",
                image.vdev,
                quote(&image.path)
            ))),
        }
    }
}
