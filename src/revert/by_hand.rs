//! Snapshots without memory that were made by hand, described by a SPEC.toml and the domain's xl
//! configuration file. Pure.

use std::path::Path;

use jiff::Timestamp;
use uuid::Uuid;

use crate::disk::{self, HostView};
use crate::domain::DomainConfig;
use crate::error::{Error, Result};
use crate::names::same_vdev;
use crate::record::{DisksOnly, DomainRecord, Record, VERSION};
use crate::spec::{DiskOption, Request};

/// The record that `create` would have written.
///
/// # Errors
///
/// If a disk's snapshot does not exist or is ambiguous, or if a writable disk is not named.
pub fn record(
    request: &Request,
    (config, uuid): (&DomainConfig, Uuid),
    cfg: &Path,
    view: &dyn HostView,
    now: Timestamp,
) -> Result<Record> {
    let broken = |why| {
        Error::refused(format!("The configuration {}", cfg.display()))
            .because(why)
            .hint("see what xl says of it: xl create -n FILE")
    };
    let disks = config.disks().map_err(broken)?;
    if let Some(DiskOption { vdev, .. }) = request
        .disks
        .iter()
        .find(|option| !disks.iter().any(|disk| same_vdev(&disk.vdev, &option.vdev)))
    {
        return Err(Error::usage(format!("{} has no disk {vdev}", cfg.display()))
            .hint("correct the vdev in the SPEC.toml"));
    }
    let name = request.name.clone();
    let disks = disks
        .iter()
        .map(|disk| {
            let option = request.disks.iter().find(|option| same_vdev(&option.vdev, &disk.vdev));
            disk::by_hand(disk, option.map(|option| &option.choice), request.name.as_ref(), view)
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Record {
        version: VERSION,
        complete: true,
        name: name.unwrap_or_else(|| "by-hand".parse().expect("a legal name")),
        id: Uuid::nil(),
        created: now,
        description: request.description.clone(),
        live: false,
        disks_only: Some(DisksOnly::ByHand),
        writer: concat!("xl-snapshot ", env!("CARGO_PKG_VERSION")).into(),
        xen: String::new(),
        image_size: 0,
        parent: None,
        quiesced: None,
        parent_by: None,
        domain: DomainRecord {
            name: config.name().map_err(broken)?.to_owned(),
            uuid,
            guest_type: config.guest_type().map_err(broken)?,
            memory_kib: config.memory_kib(),
            cfg: Some(cfg.to_owned()),
        },
        disks,
    })
}
