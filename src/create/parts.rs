//! Common parts of snapshots with and without memory: the record, the steps of the disks, and the steps
//! that make the toolstack name new images.

use std::path::PathBuf;

use super::{CreateInput, Job};
use crate::disk::DiskCreate;
use crate::domain::{BadConfig, DomainConfig, DomainId};
use crate::error::{Error, Result};
use crate::plan::{Action, ConfigOwner, ReplaceCfg, Step, StoreConfig, Text, XenstoreWrite};
use crate::record::{DomainRecord, Record, VERSION};
use crate::tool::quote;

/// New texts of xl's configuration files after disks get new images. libxlutil's parser makes them,
/// so not here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rewrites {
    /// The file that the user named the domain by.
    pub cfg: Option<ReplaceCfg>,
    /// The text that `xl config-update` stored with the domain, which a reboot uses: old and new.
    pub stored: Option<(Text, Text)>,
}

/// The record of the snapshot, without the proofs.
pub(super) fn new_record(
    job: &Job,
    seen: &CreateInput,
    disks: &[DiskCreate],
    live: bool,
) -> Result<Record> {
    let name = name_of(&seen.config)?;
    let guest_type = seen.config.guest_type().map_err(|why| broken(&name, why))?;
    let record = Record {
        version: VERSION,
        complete: false,
        name: job.name.clone(),
        id: job.id,
        created: job.now,
        description: job.request.description.clone(),
        live,
        disks_only: None,
        writer: concat!("xl-snapshot ", env!("CARGO_PKG_VERSION")).into(),
        xen: seen.xen.clone(),
        image_size: 0,
        parent: job.parent.map(|(parent, _)| parent),
        parent_by: job.parent.map(|(_, by)| by),
        quiesced: None,
        domain: DomainRecord {
            name,
            uuid: seen.domain.uuid,
            guest_type,
            memory_kib: seen.config.memory_kib(),
            cfg: seen.cfg.clone(),
        },
        disks: disks.iter().map(|disk| disk.record.clone()).collect(),
    };
    check_readable(&record)?;
    Ok(record)
}

/// Refuses a record that could be written and never be read: a name of the domain, for example, may have characters that
/// nobody sees.
fn check_readable(record: &Record) -> Result<()> {
    Record::parse(&record.to_toml()).map(drop).map_err(|why| {
        Error::refused(format!("The record of snapshot {} could not be read again", record.name))
            .because(why)
            .hint(
                "look for characters that are not shown in the names of the domain, its files and its volumes (xl list \
                 | cat -v), and give it another name: xl rename",
            )
    })
}

/// Notes on disks that are not in the snapshot.
pub(super) fn left_out(disks: &[DiskCreate]) -> Vec<String> {
    let why = |disk: &DiskCreate| {
        let why = disk.record.snapshot.kind().why_left_out()?;
        Some(format!("disk {} is not in the snapshot: {why}", disk.record.vdev))
    };
    disks.iter().filter_map(why).collect()
}

pub(super) fn name_of(config: &DomainConfig) -> Result<String> {
    config.name().map(str::to_owned).map_err(|why| broken("the domain", why))
}

pub(super) fn broken(domain: &str, why: BadConfig) -> Error {
    Error::refused(format!("The configuration of {domain} is not understood"))
        .because(why)
        .hint(format!("check libxl's configuration: xl list -l {}", quote(domain)))
}

/// The images of the disks that are in the snapshot.
pub(super) fn images(disks: &[DiskCreate]) -> Vec<PathBuf> {
    let taken = disks.iter().filter(|disk| !disk.record.snapshot.is_left_out());
    taken.map(|disk| disk.record.path.clone()).collect()
}

/// The actions of QEMU's transaction on the disks that it serves.
pub(super) fn actions(disks: &[DiskCreate]) -> Vec<Action> {
    disks.iter().filter_map(|disk| disk.action.clone()).collect()
}

/// The steps for the disks while the guest runs. QEMU comes first: it reads its command while all
/// new files are created, at the same time.
pub(super) fn prepare(domain: &DomainId, disks: &[DiskCreate], actions: &[Action]) -> Vec<Step> {
    let send = || Step::SendTransaction { domain: domain.clone(), actions: actions.to_vec() };
    let send = (!actions.is_empty()).then(send);
    let steps = disks.iter().flat_map(|disk| disk.prepare.clone());
    let (files, others): (Vec<_>, Vec<_>) =
        steps.partition(|step| matches!(step, Step::NewFile { .. }));
    send.into_iter().chain(Step::together(files)).chain(others).collect()
}

/// The steps that make libxl and xenstore name the new images.
#[derive(Debug, Default)]
pub(super) struct StoredImages {
    /// The stored configurations, which save, migrate and reboot use. They change before the disks are
    /// switched, because a restarted domain must not write into the frozen images.
    pub(super) store: Vec<Step>,
    /// The keys in xenstore, which only inform: nobody waits for them.
    pub(super) keys: Option<Step>,
}

impl StoredImages {
    /// The configuration that libxl has stored, if no other step compares it.
    pub(super) fn unchecked(&self, seen: &CreateInput) -> Option<String> {
        self.store.is_empty().then(|| seen.stored.clone())
    }
}

pub(super) fn switch(
    seen: &CreateInput,
    disks: &[DiskCreate],
    rewrites: &Rewrites,
) -> Result<StoredImages> {
    let domain = name_of(&seen.config)?;
    let mut stored = DomainConfig::parse(&seen.stored).map_err(|why| broken(&domain, why))?;
    let mut what = Vec::new();
    let mut writes = Vec::new();
    for (disk, seen) in disks.iter().zip(&seen.disks) {
        let Some((path, format)) = &disk.switch else { continue };
        let vdev = &seen.disk.vdev;
        stored.set_image(vdev, path, *format).map_err(|why| broken(&domain, why))?;
        what.push(format!("{vdev} -> {}", path.display()));
        for (key, old) in &seen.params {
            writes.push(XenstoreWrite {
                path: key.clone(),
                new: format!("{}:{}", format.xenstore(), path.display()),
                old: old.clone(),
            });
        }
    }
    if what.is_empty() {
        return Ok(StoredImages::default());
    }
    let what = what.join(", ");
    let mut store = vec![Step::StoreConfig(StoreConfig {
        domain: seen.domain.clone(),
        whose: ConfigOwner::Libxl,
        new: stored.to_json().into(),
        old: seen.stored.clone().into(),
        what: what.clone(),
    })];
    store.extend(rewrites.stored.clone().map(|(old, new)| {
        Step::StoreConfig(StoreConfig {
            domain: seen.domain.clone(),
            whose: ConfigOwner::Xl,
            new,
            old,
            what,
        })
    }));
    Ok(StoredImages { store, keys: (!writes.is_empty()).then_some(Step::Xenstore(writes)) })
}
