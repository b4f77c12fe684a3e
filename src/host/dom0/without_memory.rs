//! Snapshots without memory: of files that nobody has open, their record, and the start from a
//! configuration file.

use std::path::Path;
use std::time::Instant;

use uuid::Uuid;

use super::memory::not_complete;
use super::state::{Dom0, caused, failed};
use crate::domain::{DomainId, Format};
use crate::error::{Error, Remaining, Result};
use crate::host::cfg;
use crate::host::guard::Note;
use crate::host::record_file::RecordFile;
use crate::host::tools;
use crate::names::SnapshotName;
use crate::plan::ReplaceCfg;
use crate::record::{DisksOnly, QcowSnapshot, Record};
use crate::tool::qemu_img::{snapshot_apply, snapshot_delete};
use crate::tool::{create_domain, quote};

impl Dom0 {
    pub(super) fn open_record(&mut self, path: &Path, record: &Record) -> Result<()> {
        let file =
            RecordFile::start(path, record).map_err(failed(format!("Write {}", path.display())))?;
        self.tell(&Note::Image(file.id().map_err(failed("Look at the record"))?));
        self.record = Some((file, record.clone()));
        Ok(())
    }

    pub(super) fn discard_record(&mut self) -> Result<()> {
        match self.record.take() {
            Some((file, _)) => file.discard().map_err(caused),
            None => Ok(()),
        }
    }

    pub(super) fn complete_record(&mut self) -> Result<()> {
        let (file, mut record) =
            self.record.take().ok_or_else(|| Error::failed("The record is not open"))?;
        let incomplete = record.clone();
        record.complete = true;
        let result = self.prove(&mut record).and_then(|()| {
            file.complete(&record).map_err(|why| match record.disks_only {
                // It will be undone.
                Some(DisksOnly::Offline) => failed("Complete the record")(why),
                _ => not_complete("record", file.path(), why),
            })
        });
        if result.is_ok() {
            self.done.record = Some(record);
        } else {
            // It can still be undone.
            self.record = Some((file, incomplete));
        }
        result
    }

    /// Whether the record is complete, under its final name.
    pub(super) fn is_recorded(&mut self) -> bool {
        self.record.as_ref().is_some_and(|(file, _)| file.is_complete())
    }

    /// An error if a domain with this name or UUID runs; no domain has a nil UUID.
    pub(super) fn check_not_running(&self, uuid: Uuid, domain: &str) -> Result<()> {
        let same = if uuid.is_nil() { None } else { self.domid_of(uuid)? };
        match same.map_or_else(|| self.domid_of_name(domain), |domid| Ok(Some(domid)))? {
            None => Ok(()),
            Some(domid) => {
                Err(Error::failed(format!("It was started meanwhile, as domain {domid}"))
                    .hint("make sure that no program starts the domain, and try again"))
            }
        }
    }

    pub(super) fn check_unchanged(&self, domain: &DomainId, stored: &str) -> Result<()> {
        self.the_same(domain)?;
        self.check_config(domain.domid, stored)
    }

    /// From here on the guest is paused.
    pub(super) fn pause(&mut self, domain: &DomainId) -> Result<()> {
        self.the_same(domain)?;
        self.toolstack.libxl().pause(domain.domid).map_err(caused)?;
        self.suspended_at.get_or_insert_with(Instant::now);
        Ok(())
    }

    pub(super) fn unpause_existing(&mut self, domain: &DomainId) -> Result<()> {
        if self.info(domain)?.is_some_and(|info| info.paused) {
            self.toolstack.libxl().unpause(domain.domid).map_err(caused)?;
        }
        self.runs_again();
        Ok(())
    }

    pub(super) fn undo_take_internal(&mut self, path: &Path, name: &SnapshotName) -> Result<()> {
        match snapshot_named(path, name)? {
            None => Ok(()),
            Some(snapshot) => self.run(&snapshot_delete(path, &snapshot.name)),
        }
    }

    /// The snapshot is deleted only after it has been applied to the file.
    pub(super) fn apply_kept(&mut self, path: &Path, name: &SnapshotName) -> Result<()> {
        match snapshot_named(path, name)? {
            None => Ok(()),
            Some(snapshot) => {
                self.run(&snapshot_apply(path, &snapshot.id))?;
                self.run(&snapshot_delete(path, &snapshot.name))
            }
        }
    }

    pub(super) fn replace_cfg(&mut self, cfg: &ReplaceCfg) -> Result<()> {
        // Tell the guard first: it undoes only what we have begun.
        self.tell(&Note::Made(cfg.backup.clone()));
        self.made.insert(cfg.backup.clone());
        cfg::replace(cfg).map_err(caused)
    }

    pub(super) fn restore_cfg(&mut self, cfg: &ReplaceCfg) -> Result<()> {
        if self.made.contains(&cfg.backup) {
            cfg::put_back(cfg).map_err(caused)?;
            self.made.remove(&cfg.backup);
        }
        Ok(())
    }

    pub(super) fn create_domain(&mut self, domain: &str, path: &Path, paused: bool) -> Result<()> {
        let created = self.run(&create_domain(path, paused));
        self.turn = None;
        let Err(error) = created else {
            if !paused {
                self.runs_again();
            }
            return Ok(());
        };
        // The domain may have the new files open: remove them only after it is gone.
        match self.domid_of_name(domain)? {
            None => Err(error),
            Some(domid) => {
                self.made.clear();
                let remaining = Remaining {
                    what: format!("xl create failed, but domain {domid} is there"),
                    command: Some(format!("xl destroy {}", quote(domain))),
                };
                Err(error.unfinished(vec![remaining]))
            }
        }
    }
}

/// Finds the internal snapshot with this name, for its ID: a name may be the ID of another
/// snapshot.
fn snapshot_named(path: &Path, name: &SnapshotName) -> Result<Option<QcowSnapshot>> {
    let snapshots = tools::image(path, Format::Qcow2).map_err(Error::failed)?.snapshots();
    Ok(snapshots.into_iter().find(|snapshot| snapshot.name == name.as_str()))
}
