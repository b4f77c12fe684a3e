//! `show`: what a snapshot is, and whether its disks are still there. Pure.

use uuid::Uuid;

use crate::disk::lvm::volumes::Volume;
use crate::disk::{self, DiskFound, RevertContext};
use crate::domain::DomainConfig;
use crate::error::{Error, Result};
use crate::memory::{Form, Image};
use crate::names::SnapshotName;
use crate::record::{Kept, Record};
use crate::report::{Shown, ShownDisk};

/// Describes a snapshot. A disk is `present` if `revert` would take it.
pub fn show(
    name: &str,
    record: Record,
    image: Option<&Image>,
    verified: bool,
    disks: &[DiskFound],
    volumes: &std::result::Result<Vec<Volume>, String>,
) -> Result<Shown> {
    let config =
        image.map(|image| DomainConfig::parse(&image.config)).transpose().map_err(|why| {
            Error::refused(format!("Image {name}"))
                .because(why)
                .hint("take the image as create has written it")
        })?;
    let keep: SnapshotName = "show".parse().expect("a legal name");
    let context = RevertContext {
        uuid: Uuid::nil(),
        domain: "",
        id: record.id,
        created: record.created,
        keep: &keep,
        running: false,
        // Too little room to keep what a disk holds now does not harm the snapshot.
        discard: true,
        beside: None,
        tight: false,
        volumes,
    };
    let disks: Vec<ShownDisk> = disks.iter().map(|disk| state(disk, context)).collect();
    Ok(Shown {
        image: name.to_owned(),
        compressed: image.is_some_and(|image| image.form != Form::Plain),
        verified: image.filter(|_| verified).map(|image| match image.form {
            Form::Zstd { checksums: true } => "checksums",
            Form::Zstd { checksums: false } | Form::Plain => "structure",
        }),
        vcpus: config.map(|config| config.vcpus()),
        revertible: disks.iter().all(|disk| matches!(disk.state, "present" | "none")),
        record,
        disks,
    })
}

fn state(found: &DiskFound, context: RevertContext<'_>) -> ShownDisk {
    let (state, why) = match (&found.record.snapshot, disk::revert(found, context)) {
        (Kept::None { why }, _) => ("none", Some(why.clone())),
        (_, Ok(_)) => ("present", None),
        (_, Err(error)) => {
            let gone = match &found.record.snapshot {
                Kept::Lvm { .. } => false,
                Kept::Reflink { .. } => found.frozen.is_err(),
                _ => found.file.is_err(),
            };
            let state = if gone { "missing" } else { "changed" };
            (state, Some(error.chain()[1..].join(": ")))
        }
    };
    ShownDisk { vdev: found.record.vdev.clone(), state, why }
}
