//! `revert --restore-first`: restores the domain on disks of its own while the old one runs, and then
//! switches. Pure.
//!
//! Until the new domain runs, only the name of the old one has changed, and every step can be undone. After
//! that, the remaining steps can be repeated until they are done.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::clone;
use crate::create::drives;
use crate::disk::{self, DiskRevert, NewDomain, RevertContext};
use crate::domain::{BadConfig, DomainConfig};
use crate::error::{Error, Result};
use crate::plan::{Image, Plan, Replacement, Step, Switch, undo};
use crate::record::DiskRecord;
use crate::revert::{
    CfgAfter, DiskChange, Revert, RevertInput, Running, StartFrom, cfg, check_domain, check_image,
    keep_name, no_trouble,
};
use crate::state::State;

/// The suffix of the old domain's name after the switch.
pub const REPLACED: &str = ".replaced";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Leave the domain paused.
    pub paused: bool,
    /// Delete what the domain wrote since the snapshot.
    pub discard_current: bool,
    /// Copy a disk that cannot get a second image in another way.
    pub copy: bool,
    /// The directory of those copies, absolute; by default that of the disk's own image.
    pub directory: Option<PathBuf>,
    /// Restore the domain, check it, and remove it again.
    pub rehearse: bool,
    /// A new UUID: in a rehearsal that of the domain, otherwise for the old domain's `/vm` in
    /// xenstore.
    pub uuid: Uuid,
}

/// The name of the new domain until the switch.
pub fn temporary(domain: &str) -> String {
    format!("{domain}.restoring")
}

/// The temporary names of both domains.
pub fn names(domain: &str) -> [String; 2] {
    [temporary(domain), format!("{domain}{REPLACED}")]
}

/// Plans the revert, or refuses it.
///
/// # Errors
///
/// The obstacles: nothing was changed.
pub fn plan(found: &RevertInput, options: &Options) -> Result<Revert> {
    let record = &found.record;
    let name = &record.domain.name;
    if let StartFrom::Start(_) = found.start_from {
        return Err(Error::refused(format!("The snapshot {} has no memory", record.name))
            .because("the domain is started again, which is not possible while the old one runs")
            .hint("revert without --restore-first"));
    }
    check_image(found)?;
    check_domain(found)?;
    if found.same.is_some() {
        check_once(found)?;
    }
    let disks = disks(found, options)?;

    let mut config = found.config.clone();
    let broken = |why: BadConfig| {
        Error::refused(format!("The configuration in snapshot {}", record.name)).because(why)
    };
    for (disk, seen) in disks.iter().zip(&found.disks) {
        if let Some((path, format)) = &disk.switch {
            config.set_image(&seen.record.vdev, path, *format).map_err(broken)?;
        }
    }
    let steps: Vec<_> = disks.iter().map(|disk| disk.prepare.as_slice()).collect();
    let files = Step::in_rounds(&steps);
    if options.rehearse {
        config.rename(&temporary(name), options.uuid, true).map_err(broken)?;
        let plan = rehearsal(found, options, files, &config);
        return Ok(reverted(plan, found, disks, options));
    }
    config.set_name(&temporary(name)).map_err(broken)?;
    let Some(old) = &found.same else {
        return Err(Error::refused(format!("Domain {name} does not run"))
            .hint("revert without --restore-first"));
    };
    let plan = switch(found, options, old, (files, &config, &disks));
    Ok(reverted(plan, found, disks, options))
}

/// The plan: everything that takes time happens while the old domain runs.
fn switch(
    found: &RevertInput,
    options: &Options,
    old: &Running,
    (files, config, disks): (Vec<Step>, &DomainConfig, &[DiskRevert]),
) -> Plan {
    let record = &found.record;
    let replacement = Replacement {
        temporary: temporary(&record.domain.name),
        old: old.id.clone(),
        old_suffix: REPLACED.into(),
        vm: options.uuid,
        keys: found.vm.clone(),
    };
    let mut prepare = vec![Step::CheckExists { domain: old.id.clone() }];
    prepare.extend(files);
    prepare.push(Step::AwaitTurn);
    prepare.push(Step::Switch(Switch::Restore {
        replacement: replacement.clone(),
        config: config.to_json(),
    }));
    let domain = replacement.temporary.clone();
    prepare.push(Step::Switch(Switch::Check { uuid: old.id.uuid, domain }));
    // If the old domain asks for a reboot now, its xl process must not restart it: it is replaced.
    prepare.extend(old.monitor.map(|process| Step::StopXl { process }));
    // A paused domain may stay paused: nobody would know whose pause to undo. A suspended one may be resumed
    // by the program that suspended it.
    if old.state != State::Paused {
        prepare.push(Step::Pause { domain: old.id.clone() });
    }
    prepare.push(Step::Switch(Switch::RenameOld { replacement: replacement.clone() }));
    prepare.push(Step::Switch(Switch::RenameNew { replacement: replacement.clone() }));
    let run = Step::Switch(Switch::Run { replacement: replacement.clone() });
    let mut finish = vec![
        Step::Switch(Switch::Destroy { replacement: replacement.clone() }),
        Step::AwaitDestroyed { domain: replacement.old_after_switch() },
    ];
    finish.extend(old.monitor.map(|process| Step::ContinueXl { process }));
    finish.extend(disks.iter().flat_map(|disk| disk.settle.clone()));
    let images = disks.iter().zip(&found.disks).filter_map(|(disk, seen)| {
        let (path, format) = disk.settled.clone()?;
        Some(Image { vdev: seen.record.vdev.clone(), path, format })
    });
    finish.push(Step::Switch(Switch::UpdateConfig { replacement, images: images.collect() }));
    let mut discards = Vec::new();
    if options.discard_current {
        discards.extend(disks.iter().flat_map(|disk| disk.discard.clone()));
    }
    let deletions = discards.len();
    finish.extend(discards);
    Plan {
        title: format!("Revert of {} to {}, restored first", record.domain.name, record.name),
        notes: notes(found, disks, options),
        prepare,
        commit: (!options.paused).then_some(run),
        onward_again: true,
        finish,
        deletions,
        ..Plan::default()
    }
}

fn rehearsal(
    found: &RevertInput,
    options: &Options,
    files: Vec<Step>,
    config: &DomainConfig,
) -> Plan {
    let record = &found.record;
    let domain = temporary(&record.domain.name);
    let uuid = options.uuid;
    let mut prepare = files;
    prepare.push(Step::AwaitTurn);
    prepare.push(Step::Restore {
        uuid,
        domain: domain.clone(),
        config: config.to_json(),
        image: None,
    });
    prepare.push(Step::Switch(Switch::Check { uuid, domain }));
    Plan {
        title: format!("Rehearsal of the revert of {} to {}", record.domain.name, record.name),
        finish: undo(&prepare),
        prepare,
        onward_again: true,
        ..Plan::default()
    }
}

/// The plans of the disks. None touches the old domain's files before that domain is gone.
fn disks(found: &RevertInput, options: &Options) -> Result<Vec<DiskRevert>> {
    let record = &found.record;
    let refuse = |disk: &DiskRecord, why: &str| {
        Error::refused(format!(
            "Disk {} ({}) has no second image while the domain runs",
            disk.vdev,
            disk.path.display()
        ))
        .because(why.to_owned())
    };
    for seen in &found.disks {
        let disk = &seen.record;
        let Some(why) = disk::needs_copy_for_new_domain(disk) else { continue };
        if !options.copy {
            return Err(
                refuse(disk, why).hint("copy it (--copy), or revert without --restore-first")
            );
        }
        if seen.place.path.starts_with("/dev") {
            return Err(
                refuse(disk, "its copy needs a directory").hint("choose one: --overlay-dir DIR")
            );
        }
    }
    check_left_out(found)?;
    let keep = keep_name(found.now);
    let name = disk::after(keep.as_str());
    let context = RevertContext {
        uuid: record.domain.uuid,
        domain: &record.domain.name,
        id: record.id,
        created: record.created,
        keep: &keep,
        running: found.same.is_some(),
        discard: options.discard_current,
        new_domain: Some(NewDomain { name: &name, uuid: options.uuid, replacement: true }),
        tight: false,
        volumes: &found.volumes,
    };
    let disks = found.disks.iter().map(|disk| disk::revert(disk, context)).collect();
    let disks = no_trouble(found, disks)?;
    let rooms: Vec<_> = disks.iter().filter_map(|disk| disk.room.as_ref()).collect();
    if let Some(why) = disk::short_of_room(&rooms) {
        return Err(Error::refused(format!(
            "There is not enough space for copies of the disks of {}",
            record.domain.name
        ))
        .because(why)
        .hint(
            "free some space, choose another place with --overlay-dir, or revert without --restore-first",
        ));
    }
    Ok(disks)
}

/// The old domain may write to a shared disk after the new one has read it.
fn check_left_out(found: &RevertInput) -> Result<()> {
    match clone::writable_left_out(found)? {
        None => Ok(()),
        Some(error) => Err(error
            .because("two domains would have it open for writing")
            .hint("revert without --restore-first, or take a snapshot with that disk in it")),
    }
}

/// Refuses what two domains cannot have at the same time, running or not.
fn check_once(found: &RevertInput) -> Result<()> {
    let config = &found.config;
    let mut once = config.unshareable();
    let displays = config.clone().share_vnc();
    once.extend(displays.iter().map(|display| format!("VNC on the fixed display {display}")));
    once.extend(config.named_nics().map(|name| format!("a network device called {name} in dom0")));
    once.extend(config.routed());
    let drives = drives::configured(config);
    once.extend(drives.into_iter().map(|drive| format!("the drive {}", drive.image)));
    if once.is_empty() {
        return Ok(());
    }
    Err(Error::refused(format!("{} cannot be restored while it runs", found.record.domain.name))
        .because(format!("its configuration has what two domains cannot have: {}", once.join(", ")))
        .hint("revert without --restore-first"))
}

fn notes(found: &RevertInput, disks: &[DiskRevert], options: &Options) -> Vec<String> {
    let mut notes = Vec::new();
    for (disk, seen) in disks.iter().zip(&found.disks) {
        let vdev = &seen.record.vdev;
        if let Some(why) = seen.record.snapshot.kind().why_left_out() {
            notes.push(format!("disk {vdev} is not reverted: {why}"));
        }
        notes.extend(disk.note.iter().map(|note| format!("disk {vdev}: {note}")));
        notes.extend(disk.kept.as_ref().map(|kept| {
            match options.discard_current && !disk.discard.is_empty() {
                true => format!("the current contents of {vdev} are deleted: {kept}"),
                false => format!("the current contents of {vdev} are kept in {kept}"),
            }
        }));
    }
    notes.extend(found.attached.iter().map(|disk| {
        format!("{disk} is not in the snapshot: the guest continues without it; its content does not change")
    }));
    notes
}

fn reverted(
    plan: Plan,
    found: &RevertInput,
    mut disks: Vec<DiskRevert>,
    options: &Options,
) -> Revert {
    for disk in &mut disks {
        // Use its final name.
        disk.switch = disk.settled.clone().or(disk.switch.take());
        if options.discard_current && !disk.discard.is_empty() {
            disk.kept = None;
        }
    }
    let pairs = disks.iter().zip(&found.disks);
    let changes: Vec<DiskChange> = pairs
        .filter_map(|(disk, seen)| {
            let mut change = cfg::change(disk, seen)?;
            // Another volume has the name now, so the file need not change.
            let same = disk.settled.as_ref().is_some_and(|(path, _)| *path == seen.record.path);
            let here = seen.top.as_deref().is_none_or(|top: &Path| top == seen.record.path);
            change.needed &= !(same && here);
            Some(change)
        })
        .collect();
    let needed = changes.iter().filter(|change| change.needed);
    let cfg_lines = needed.map(|DiskChange { change, .. }| change.entry()).collect();
    Revert {
        plan,
        images: disks.iter().map(|d| d.switch.as_ref().map(|(path, _)| path.clone())).collect(),
        kept: disks.into_iter().map(|disk| disk.kept).collect(),
        changes,
        cfg_lines,
        cfg: CfgAfter::Unknown,
    }
}

#[cfg(test)]
mod tests;
