//! `revert --as`: plans a new domain from a snapshot; the original domain is not affected. Pure.
//!
//! It only reads the disks of the original domain: each disk gets a new image or volume with the
//! snapshot as its base, or a copy of it. So one snapshot can be the gold image of any number of
//! domains.

use std::path::PathBuf;

use uuid::Uuid;

use crate::create::drives;
use crate::disk::{self, NewDomain, RevertContext};
use crate::error::{Error, Result};
use crate::names::SnapshotName;
use crate::plan::{Plan, Step};
use crate::revert::{
    CfgAfter, DiskChange, Revert, RevertInput, cfg, check_image, keep_name, no_trouble,
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The name of the new domain. Its files and volumes contain it, so the rules for snapshot
    /// names apply.
    pub name: SnapshotName,
    pub uuid: Uuid,
    pub directory: PathBuf,
    /// Whether its network devices keep the MAC addresses of the original domain.
    pub keep_macs: bool,
    pub paused: bool,
}

/// Plans a new domain, or refuses it.
pub fn plan(found: &RevertInput, options: &Options) -> Result<Revert> {
    let record = &found.record;
    let name = &options.name;
    check_image(found)?;
    check_domain(found, options)?;
    check_left_out(found)?;
    let keep = keep_name(found.now);
    let context = RevertContext {
        uuid: record.domain.uuid,
        domain: &record.domain.name,
        id: record.id,
        created: record.created,
        keep: &keep,
        running: found.same.is_some(),
        discard: false,
        new_domain: Some(NewDomain { name: name.as_str(), uuid: options.uuid, replacement: false }),
        tight: false,
        volumes: &found.volumes,
    };
    let disks = found.disks.iter().map(|disk| disk::revert(disk, context)).collect();
    let disks = no_trouble(found, disks)?;
    let rooms: Vec<_> = disks.iter().filter_map(|disk| disk.room.as_ref()).collect();
    if let Some(why) = disk::short_of_room(&rooms) {
        return Err(Error::refused(format!("There is not enough space for the disks of {name}"))
            .because(why)
            .hint("free some space, or choose another place with --overlay-dir"));
    }

    let mut config = found.config.clone();
    let broken = |why: crate::domain::BadConfig| {
        Error::refused(format!("The configuration in snapshot {}", record.name)).because(why)
    };
    config.rename(name.as_str(), options.uuid, options.keep_macs).map_err(broken)?;
    let displays = config.share_vnc();
    for (disk, seen) in disks.iter().zip(&found.disks) {
        if let Some((path, format)) = &disk.switch {
            config.set_image(&seen.record.vdev, path, *format).map_err(broken)?;
        }
    }

    let steps: Vec<_> = disks.iter().map(|disk| disk.prepare.as_slice()).collect();
    let mut prepare = Step::in_rounds(&steps);
    prepare.push(Step::AwaitTurn);
    // The old domain is not touched: until the new one runs, everything can be undone.
    prepare.push(Step::Restore {
        uuid: options.uuid,
        domain: name.to_string(),
        config: config.to_json(),
        image: None,
    });
    let unpause = Step::Unpause { uuid: options.uuid, domain: name.to_string() };
    let plan = Plan {
        title: format!(
            "{name}, a new domain from snapshot {} of {}",
            record.name, record.domain.name
        ),
        notes: displays
            .iter()
            .map(|display| {
                format!(
                    "its VNC server takes the first free display from {display} on (vncunused=0 of {} is \
                     not kept): xl vncviewer {name}",
                    record.domain.name
                )
            })
            .chain(found.disks.iter()
            .filter(|disk| disk.record.snapshot.is_left_out())
            .map(|disk| {
                let vdev = &disk.record.vdev;
                format!("disk {vdev} is shared with {}, read-only", record.domain.name)
            }))
            .collect(),
        prepare,
        finish: (!options.paused).then_some(unpause).into_iter().collect(),
        ..Plan::default()
    };
    let pairs = disks.iter().zip(&found.disks);
    let changes: Vec<_> = pairs.filter_map(|(disk, seen)| cfg::change(disk, seen)).collect();
    let needed = changes.iter().filter(|change| change.needed);
    let cfg_lines = needed.map(|DiskChange { change, .. }| change.entry()).collect();
    Ok(Revert {
        plan,
        images: disks.iter().map(|d| d.switch.as_ref().map(|(path, _)| path.clone())).collect(),
        kept: vec![None; disks.len()],
        changes,
        cfg_lines,
        // The new domain has no configuration file.
        cfg: CfgAfter::Unknown,
    })
}

fn check_domain(found: &RevertInput, options: &Options) -> Result<()> {
    let name = &options.name;
    if let Some(other) = &found.named {
        return Err(Error::refused(format!(
            "There is a domain {name} already ({})",
            other.id.domid
        ))
        .hint("choose another name with --as"));
    }
    let mut unshared = found.config.unshareable();
    if found.same.is_some() {
        unshared.extend(found.config.routed());
    }
    let drives = drives::configured(&found.config);
    unshared.extend(drives.into_iter().map(|drive| format!("the drive {}", drive.image)));
    if !unshared.is_empty() {
        return Err(Error::refused(format!(
            "{} has resources that a second domain cannot have",
            found.record.domain.name
        ))
        .because(format!("its configuration has {}", unshared.join(", ")))
        .hint(
            "take these out of its xl configuration file, start it again, and take a snapshot \
             without them",
        ));
    }
    Ok(())
}

/// Refuses a writable disk without a snapshot: two domains cannot share it.
fn check_left_out(found: &RevertInput) -> Result<()> {
    match writable_left_out(found)? {
        None => Ok(()),
        Some(error) => Err(error
            .because("two domains would write to it")
            .hint("take a snapshot with that disk in it")),
    }
}

/// The refusal of a writable disk that is not in the snapshot and that two domains would share.
pub(crate) fn writable_left_out(found: &RevertInput) -> Result<Option<Error>> {
    let disks = found.config.disks().map_err(|why| {
        Error::refused(format!("The configuration in snapshot {}", found.record.name)).because(why)
    })?;
    let shared = disks
        .iter()
        .zip(&found.disks)
        .find(|(disk, found)| found.record.snapshot.is_left_out() && disk.writable && !disk.cdrom);
    Ok(shared.map(|(disk, _)| {
        let path = disk.file().display();
        Error::refused(format!("Disk {} ({path}) is not in the snapshot", disk.vdev))
    }))
}

#[cfg(test)]
mod tests;
