//! `create`: plans a snapshot from the request and the observations. Pure.

mod boot;
pub mod drives;
mod input;
mod job;
mod parts;
pub mod room;
mod without_memory;

use std::collections::BTreeSet;
use std::path::Path;

pub use input::{CreateInput, ImagePlace, Space};
pub use job::Job;
pub use parts::Rewrites;

use self::parts::{
    StoredImages, actions, broken, images, left_out, name_of, new_record, prepare, switch,
};
use crate::disk::kind::{Content, Role};
use crate::disk::{self, DiskCreate, RunningDisk, mib};
use crate::domain::{Format, GuestType, SECOND_CONSOLE};
use crate::error::{Error, Remaining, Result};
use crate::memory::{header, partial_path, restore_command};
use crate::names::same_vdev;
use crate::need::{self, Need, Requirement};
use crate::plan::{ImageStart, OnFailure, Plan, Step, Target};
use crate::record::{NOT_YET, Record};
use crate::release::xl_exits_at_suspend;
use crate::spec::DiskOption;
use crate::state::State;
use crate::tool::{check_path, quote};
use crate::xlcfg::Change;

/// Decides how each disk is snapshotted, or refuses it.
pub fn disks(job: &Job, seen: &CreateInput) -> Result<Vec<DiskCreate>> {
    let domain = name_of(&seen.config)?;
    let alone = job.request.without_memory();
    check_state(&domain, seen, alone)?;
    if alone {
        without_memory::check(job, seen)?;
    }
    if let Some(pid) = seen.saver {
        return Err(Error::refused(format!(
            "Domain {domain} ({}) is being saved",
            seen.domain.domid
        ))
        .because(format!("process {pid} writes its memory, for xl save, migrate or the like"))
        .hint("wait until it has finished"));
    }
    check_options(&domain, &job.request.disks, seen)?;
    drives::check(&domain, &seen.drives, &job.request.disks)?;
    let confined = seen.config.dm_restrict();
    let context = disk::Context { name: &job.name, id: job.id, volumes: &seen.volumes, confined };
    let disks = seen
        .disks
        .iter()
        .map(|disk| disk::create(disk, job.choice(&disk.disk.vdev), context))
        .collect::<Result<Vec<_>>>()?;
    // Xen does not support it (docs/features/qemu-deprivilege.pandoc): refuse before the domain is
    // destroyed.
    if let Some(disk) = disks.iter().find(|disk| confined && disk.by_restore) {
        let vdev = &disk.record.vdev;
        return Err(Error::refused(format!(
            "Switching disk {vdev} requires restoring domain {domain}"
        ))
        .because("its QEMU is confined (dm_restrict)")
        .hint(format!("leave the disk out with --disk {vdev},none")));
    }
    if let Some(disk) = disks.iter().find(|disk| alone && disk.by_restore) {
        let vdev = &disk.record.vdev;
        return Err(Error::refused(format!(
            "Disk {vdev} of {domain} cannot be switched while it runs"
        ))
        .because("the domain would have to be restored, and there is no memory to restore it from")
        .hint(format!(
            "shut the domain down first, or leave the disk out with --disk {vdev},none"
        )));
    }
    disk::check_twice(&seen.disks, &disks)?;
    disk::check_clock(&seen.disks, &disks, job.now)?;
    check_new_files(&disks)?;
    boot::check(&domain, seen, &disks)?;
    let spaces: Vec<_> = disks.iter().filter_map(|disk| disk.space.as_ref()).collect();
    if let Some(why) = disk::short_of_space(&spaces) {
        return Err(Error::refused(format!("The disks of {domain} cannot be snapshotted"))
            .because(why)
            .hint(
                "free some space in the group, or pass a smaller size: --disk VDEV,lvm,size=SIZE",
            ));
    }
    Ok(disks)
}

/// Refuses to save the memory of a domain that does not run, before the host is inspected.
pub fn check_memory(job: &Job, domain: &str) -> Result<()> {
    match job.request.without_memory() {
        true => Ok(()),
        false => Err(Error::refused(format!("Domain {domain} does not run")).hint(
            "start the domain, or pass --record FILE to snapshot \
             only its disks",
        )),
    }
}

/// The disk entries that change in xl's configuration of the domain.
pub fn changes(disks: &[DiskCreate]) -> Vec<Change> {
    disks
        .iter()
        .filter_map(|disk| {
            let (path, format) = disk.switch.as_ref()?;
            Some(Change::new(&disk.record.vdev, path, *format))
        })
        .collect()
}

/// Plans a snapshot, or refuses it.
pub fn plan(
    job: &Job,
    seen: &CreateInput,
    disks: &[DiskCreate],
    rewrites: &Rewrites,
) -> Result<Plan> {
    let plan = if job.request.without_memory() {
        without_memory::plan(job, seen, disks, rewrites)?
    } else {
        with_memory(job, seen, disks, rewrites)?
    };
    let size = |disk: &RunningDisk| Some((disk.disk.vdev.clone(), disk.virtual_size()?));
    Ok(Plan { virtual_sizes: seen.disks.iter().filter_map(size).collect(), ..plan })
}

fn with_memory(
    job: &Job,
    seen: &CreateInput,
    disks: &[DiskCreate],
    rewrites: &Rewrites,
) -> Result<Plan> {
    let domain = name_of(&seen.config)?;
    let guest_type = seen.config.guest_type().map_err(|why| broken(&domain, why))?;
    let internal =
        disks.iter().any(|d| matches!(d.record.snapshot.kind().content(), Content::Inside(_)));
    let not_live = why_not_live(guest_type, seen, internal).filter(|_| job.request.live);
    let live = job.request.live && not_live.is_none();
    let record = new_record(job, seen, disks, live)?;
    let start = image_start(job, seen, &domain, disks, record)?;

    let mut notes = left_out(disks);
    notes.extend(room::notes(job, seen, disks));
    notes.extend(boot::check(&domain, seen, disks)?);
    notes.extend(drives::check(&domain, &seen.drives, &job.request.disks)?);
    notes.extend(not_live.map(|why| format!("{why}: memory is saved while the guest is paused")));
    notes.extend(no_monitor(seen));
    notes.extend(seen.above_target.map(|(now, target)| {
        format!(
            "the guest has {} of memory and should have {}: a revert restores all of it; reduce it afterwards \
             with xl mem-set {} {}m",
            mib(now << 10),
            mib(target << 10),
            quote(&domain),
            target >> 10
        )
    }));
    notes.extend(seen.config.not_saved().map(|what| {
        format!(
            "the snapshot does not contain the domain's {what}, and a revert does not change it"
        )
    }));

    notes.extend(seen.config.has_second_console().then(|| SECOND_CONSOLE.to_owned()));

    let overlays = disks.iter().any(|disk| matches!(disk.switch, Some((_, Format::Qcow2))));
    let with_overlays = seen.overlay_troubles.iter().filter(|_| overlays);
    let troubles: Vec<_> = seen.troubles.iter().chain(with_overlays).cloned().collect();
    notes.extend(
        troubles.iter().map(|trouble| format!("as it is now, a revert would fail: {trouble}")),
    );
    let by_restore: Vec<&str> =
        disks.iter().filter(|d| d.by_restore).map(|d| d.record.vdev.as_str()).collect();
    if !by_restore.is_empty() {
        // The restore would fail after the domain is destroyed.
        if let Some(error) = need::refusal(troubles) {
            return Err(error);
        }
        if job.request.max_pause.is_some() {
            return Err(Error::refused(format!("--max-pause cannot limit the pause of {domain}"))
                .because(format!("switching {} requires a restore", by_restore.join(", ")))
                .hint("leave out --max-pause, or those disks with --disk VDEV,none"));
        }
        notes.push(format!(
            "nothing can switch {} under a running guest: the domain is restored from its image, \
             with a new number, and is paused for as long as that takes",
            by_restore.join(", ")
        ));
        let clonable = disks.iter().zip(&seen.disks).filter(|(disk, seen)| {
            let new = disk.record.snapshot.kind().new_file();
            let overlay = new.is_some_and(|file| file.role == Role::Overlay);
            disk.by_restore && overlay && seen.clone_trouble.is_none()
        });
        notes.extend(clonable.map(|(disk, _)| {
            let vdev = &disk.record.vdev;
            format!("{vdev} could be copied in an instant instead: --disk {vdev},reflink")
        }));
    }

    let id = &seen.domain;
    let actions = actions(disks);
    let mut prepare = prepare(id, disks, &actions);
    prepare.push(Step::OpenImage(Box::new(start)));
    prepare.extend(seen.xl_to_stop().map(|process| Step::StopXl { process }));
    // Another xl may hold its lock while it frees memory or waits in a boot loader: the restore would wait for that.
    let lock_is_free = (!by_restore.is_empty()).then(|| Step::CheckNeeds {
        gone: Some(id.domid),
        needs: vec![Need {
            about: format!("{domain} cannot be restored"),
            what: Requirement::Lock,
        }],
    });
    prepare.extend(lock_is_free.clone());
    prepare.push(Step::Suspend {
        domain: id.clone(),
        live,
        max_pause: job.request.max_pause,
        disks: images(disks),
    });
    // The compressor still holds the last megabytes when the guest could be resumed. If the guest
    // stays paused, or is restored from the image, wait until they are written.
    if job.request.compress.is_some() && (job.request.paused || disks.iter().any(|d| d.by_restore))
    {
        prepare.push(Step::FinishCompression);
    }
    // The guest is restored from this image alone.
    if !by_restore.is_empty() {
        prepare.push(Step::SyncAndVerifyImage);
    }
    prepare.extend(Step::together(disks.iter().flat_map(|disk| disk.in_pause.clone()).collect()));
    let switch = if by_restore.is_empty() {
        switch(seen, disks, rewrites)?
    } else {
        StoredImages::default()
    };
    // The save may have taken long; nothing else tells of the lock now.
    prepare.extend(lock_is_free);
    // As late as possible, but before we change the stored configuration.
    prepare.push(Step::CheckSuspended { domain: id.clone(), stored: switch.unchecked(seen) });
    let mut plan = Plan {
        title: format!("Snapshot {} of {domain}", job.name),
        notes,
        commit: (!actions.is_empty()).then(|| Step::Transaction { domain: id.clone(), actions }),
        ..Plan::default()
    };
    if by_restore.is_empty() {
        prepare.extend(switch.store);
        if job.request.paused {
            plan.finish.push(Step::Pause { domain: id.clone() });
        }
        let otherwise = match &seen.image {
            ImagePlace::File { path, .. } => Some(revert_command(path)),
            ImagePlace::Stdout | ImagePlace::Record { .. } => None,
        };
        plan.finish.push(Step::Resume { domain: id.clone(), otherwise });
        plan.finish.extend(switch.keys);
        plan.finish.extend(seen.xl_to_stop().map(|process| Step::ContinueXl { process }));
        plan.finish.push(Step::CompleteImage);
    } else {
        let (onward, on_failure) = restore_steps(job, seen, disks)?;
        plan.onward = onward;
        plan.onward_again = true;
        plan.on_failure = on_failure;
        if !job.request.paused {
            plan.finish.push(Step::Unpause { uuid: id.uuid, domain: domain.clone() });
        }
    }
    plan.prepare = prepare;
    plan.finish.extend(rewrites.cfg.clone().map(Step::ReplaceCfg));
    // The image has space reserved for them. Compressed images have checksums of their own.
    if !by_restore.is_empty() && job.request.compress.is_none() {
        plan.finish.push(Step::AddSums);
    }
    Ok(plan)
}

/// Steps that destroy the domain and restore it from the image on the new disks.
fn restore_steps(
    job: &Job,
    seen: &CreateInput,
    disks: &[DiskCreate],
) -> Result<(Vec<Step>, OnFailure)> {
    let domain = name_of(&seen.config)?;
    let ImagePlace::File { path, .. } = &seen.image else {
        return Err(Error::refused(format!(
            "Domain {domain} must be restored from the image, but the image goes to standard output"
        ))
        .hint("write the image to a file: --memory FILE"));
    };
    let mut config = seen.config.clone();
    for (vdev, (path, format)) in
        disks.iter().filter_map(|disk| Some((&disk.record.vdev, disk.switch.as_ref()?)))
    {
        config.set_image(vdev, path, *format).map_err(|why| broken(&domain, why))?;
    }
    let restore = restore_command(&partial_path(path), job.request.compress.is_some());
    let remaining = |what: &str, command: String| Remaining {
        what: format!("Domain {domain} does not run: {what}"),
        command: Some(command),
    };
    let on_failure = OnFailure {
        down: format!("Domain {domain} is down"),
        steps: Vec::new(),
        remaining: vec![
            remaining(
                "the snapshot has its memory and disks; restore it from there",
                revert_command(path),
            ),
            remaining(
                "should the image still be unfinished, the disks are as they were when it was saved",
                format!("xl destroy {}; {restore}", quote(&domain)),
            ),
        ],
    };
    let mut onward = Vec::new();
    // It has not seen the suspend yet, and ends with the domain.
    onward.extend(seen.xl_to_stop().map(|process| Step::ContinueXl { process }));
    let way_out = on_failure.remaining[1].clone();
    onward.push(Step::Destroy { domain: seen.domain.clone(), way_out });
    // Proofs are taken only when nobody has the images open.
    onward.push(Step::AwaitDestroyed { domain: seen.domain.clone() });
    onward.push(Step::CompleteImage);
    onward.push(Step::Restore {
        uuid: seen.domain.uuid,
        domain,
        config: config.to_json(),
        image: Some(path.clone()),
    });
    Ok((onward, on_failure))
}

/// The command that reverts a domain to the snapshot in an image.
fn revert_command(image: &Path) -> String {
    format!("xl-snapshot revert {}", quote(image))
}

/// Refuses two disks with the same new file.
fn check_new_files(disks: &[DiskCreate]) -> Result<()> {
    let mut files = BTreeSet::new();
    for disk in disks {
        let Some(new_file) = disk.record.snapshot.kind().new_file() else { continue };
        let new_file = new_file.path;
        check_path(new_file).map_err(|why| {
            Error::refused(format!("The new file {new_file:?}"))
                .because(why)
                .hint("name another one: --disk VDEV,HOW,file=PATH")
        })?;
        if !files.insert(new_file) {
            return Err(Error::usage(format!("Two disks would share {}", new_file.display()))
                .hint("give each a file of its own: --disk VDEV,HOW,file=PATH"));
        }
    }
    Ok(())
}

/// The disk entries to write into the user's xl configuration file, if disks were switched.
pub fn cfg_lines(record: &Record) -> Vec<String> {
    record
        .disks
        .iter()
        .filter_map(|disk| {
            let (image, format) = disk.snapshot.kind().switched()?;
            Some(Change::new(&disk.vdev, &image, format).entry())
        })
        .collect()
}

fn check_state(domain: &str, seen: &CreateInput, alone: bool) -> Result<()> {
    let id = seen.domain.domid;
    match seen.state {
        State::Running => Ok(()),
        State::Off | State::Paused if alone => Ok(()),
        State::Off => Err(Error::refused(format!("Domain {domain} does not run"))
            .hint("start it with xl create, or take its disks alone: --record FILE")),
        State::Paused => Err(Error::refused(format!(
            "Domain {domain} ({id}) is paused and cannot answer a suspend request"
        ))
        .hint(format!("unpause it first: xl unpause {}", quote(domain)))),
        State::Suspended => Err(Error::refused(format!("Domain {domain} ({id}) is suspended"))
            .because("something is saving or migrating it, or was killed while it did")
            .hint("wait until it has finished")),
        State::Shutdown => Err(Error::refused(format!("Domain {domain} ({id}) is shut down"))
            .hint(format!(
                "wait until it runs again. If it is kept as it ended (on_crash or on_poweroff = \"preserve\"), \
                 end it, and start it again: xl destroy {}; xl create FILE",
                quote(domain)
            ))),
        State::Dying => Err(Error::refused(format!("Domain {domain} ({id}) is being destroyed"))
            .hint("start it again after it has ended: xl create")),
    }
}

fn check_options(domain: &str, options: &[DiskOption], seen: &CreateInput) -> Result<()> {
    let disks = seen.disks.iter().map(|disk| disk.disk.vdev.as_str());
    let known: Vec<&str> =
        disks.chain(seen.drives.iter().map(|drive| drive.name.as_str())).collect();
    let unknown = |option: &&DiskOption| !known.iter().any(|known| same_vdev(known, &option.vdev));
    match options.iter().find(unknown) {
        None => Ok(()),
        Some(option) => Err(Error::usage(format!("Domain {domain} has no disk {}", option.vdev))
            .hint(format!("it has: {}", known.join(" ")))),
    }
}

/// Why the memory cannot be saved live, if it cannot.
fn why_not_live(guest_type: GuestType, seen: &CreateInput, internal: bool) -> Option<&'static str> {
    match guest_type {
        GuestType::Pv if !seen.shadow_paging => {
            Some("this Xen has no shadow paging and cannot track the writes of a PV guest")
        }
        // During a live save, libxl makes QEMU inactivate all images, and internal snapshots fail
        // until the guest is resumed (QEMU 7.2, migration/savevm.c, qmp_xen_save_devices_state).
        GuestType::Hvm if internal => {
            Some("QEMU takes no internal snapshots of an HVM guest that was saved live")
        }
        _ => None,
    }
}

/// A note about a domain whose xl process is not stopped meanwhile.
fn no_monitor(seen: &CreateInput) -> Option<String> {
    let list = |pids: &[i32]| pids.iter().map(i32::to_string).collect::<Vec<_>>().join(", ");
    match (seen.monitor, seen.unsure_monitors.as_slice()) {
        (Some(_), _) => None,
        (None, []) => Some("the domain has no xl process that would handle its reboot".into()),
        (None, _) if !xl_exits_at_suspend(&seen.xen) => None,
        (None, pids) => Some(format!(
            "no xl process says that it watches this domain, so none is stopped; one that does may end \
             when the domain is suspended, and not handle its next reboot (possible: {})",
            list(pids)
        )),
    }
}

fn image_start(
    job: &Job,
    seen: &CreateInput,
    domain: &str,
    disks: &[DiskCreate],
    record: Record,
) -> Result<ImageStart> {
    let target = match &seen.image {
        ImagePlace::Stdout => Target::Stdout,
        ImagePlace::Record { .. } => unreachable!("that is for disks without memory"),
        ImagePlace::File { path, trouble, .. } => {
            let refused = || Error::refused(format!("The memory image {}", path.display()));
            check_path(path).map_err(|why| {
                refused().because(why).hint("choose another file with --memory FILE")
            })?;
            if let Some(trouble) = trouble {
                return Err(refused()
                    .because(trouble.clone())
                    .hint("choose another name with --name, or a file with --memory"));
            }
            room::check(job, seen, domain, disks)?;
            Target::File(path.clone())
        }
    };
    // Refuse here rather than after the suspend.
    header::encode(&seen.config.to_json(), &record, header::record_space(&record)).map_err(
        |why| {
            Error::refused("The header of the memory image cannot be made")
                .because(why)
                .hint("shorten the --description, or the paths of the disks")
        },
    )?;
    let make_directory = match &target {
        Target::File(path) => job.is_in_our_directory(path),
        Target::Stdout => false,
    };
    let image_size = match &target {
        Target::File(_) => NOT_YET,
        Target::Stdout => 0,
    };
    let record = Record { image_size, ..record };
    let config = seen.config.to_json();
    Ok(ImageStart { target, make_directory, config, record, compress: job.request.compress })
}

#[cfg(test)]
mod tests;
