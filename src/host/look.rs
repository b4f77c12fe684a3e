//! Inspects the host: everything the planners need to know. Changes nothing.

mod domains;
mod exportable;
mod opened;
mod overlays;
mod revert;
mod room;
mod trouble;

use std::fs;
use std::path::{Path, PathBuf};

use domains::name_of;
pub use domains::{Domain, again, domain, name_in};
pub use exportable::{Exportable, for_export};
use jiff::Timestamp;
pub use revert::{RevertMode, for_revert, for_show};
pub(super) use trouble::trouble;

use crate::create::drives::Drive;
use crate::create::{CreateInput, ImagePlace, Job, Space};
use crate::disk::chain::{FileId, Link};
use crate::disk::{self, Place, RunningDisk, Served};
use crate::domain::{Disk, DomainConfig, DomainId, Format};
use crate::error::{Error, Result};
use crate::host::chain;
use crate::host::files;
use crate::host::libxl::cfg_name;
use crate::host::needs::{self, CheckContext};
use crate::host::process::{self, Monitor, Watched};
use crate::host::qmp::Qmp;
use crate::host::savers;
use crate::host::tools::{self, need, vhd_facts};
use crate::host::toolstack::Toolstack;
use crate::host::xenstore::Vbd;
use crate::memory::partial_path;
use crate::names::{is_kept_by_xl, same_vdev};
use crate::need::{self, Trouble};
use crate::plan::Target;
use crate::tool::volumes::Volume;
use crate::tool::{Tool, check_path, quote};

/// What a revert would lack right away, and what it would lack besides with a new overlay.
fn troubles(
    toolstack: &Toolstack,
    domain: &DomainId,
    job: &Job,
    config: &DomainConfig,
) -> Result<(Vec<Trouble>, Vec<Trouble>)> {
    let left_out = |disk: &Disk| disk.cdrom || !disk.writable || job.leaves_out(&disk.vdev);
    let needs = need::of_domain(config, &domain.name, &left_out, false)
        .map_err(|error| trouble(&domain.name, error))?;
    let around = CheckContext {
        toolstack: Some(toolstack),
        gone: Some(domain.domid),
        same: Some(domain.domid),
    };
    let overlay: Vec<_> = need::of_overlay(config, &domain.name, &needs).into_iter().collect();
    Ok((needs::troubles(&needs, around).0, needs::troubles(&overlay, around).0))
}

/// Inspects a running domain for `create`. Keeps the connection to its QEMU, which is needed again while the guest
/// is suspended.
pub fn for_create(
    toolstack: &Toolstack,
    domain: &Domain,
    job: &Job,
) -> Result<(CreateInput, Option<Qmp>)> {
    let DomainId { domid, name, .. } = &domain.id;
    let domid = *domid;
    need(Tool::QemuImg)?;
    check_qemu(toolstack, &domain.id)?;
    let json = toolstack.config_json(domid).map_err(|error| trouble(name, error))?;
    let mut config = DomainConfig::parse(&json).map_err(|error| trouble(name, error))?;
    let info = toolstack.domain_info(domid).map_err(|error| trouble(name, error))?;
    let above_target = info.and_then(|info| {
        let target = config.hold(info.current_memkb)?;
        Some((info.current_memkb, target))
    });
    let stored = toolstack.stored_config(domid).map_err(|error| trouble(name, error))?;
    let vbds = toolstack.vbds(domid).map_err(|error| trouble(name, error))?;
    let (mut nodes, mut drives, mut connection) = (Vec::new(), Vec::new(), None);
    let serves = vbds.iter().any(|vbd| vbd.served == Served::Qemu);
    let qemu = toolstack.qemu_pid(domid).map_err(|error| trouble(name, error))?;
    // A QEMU that serves no disk of the configuration may have other drives.
    if serves || qemu.is_some() {
        let mut qmp = Qmp::connect(domid).map_err(|error| trouble(name, error))?;
        (nodes, drives) = qmp.drives().map_err(|error| trouble(name, error))?;
        check_jobs(&mut qmp, name)?;
        connection = serves.then_some(qmp);
    }
    let others = disks_of_others(toolstack, Some(domid))?;
    let configured = config.disks().map_err(|error| trouble(name, error))?;
    let mut taken: Vec<Disk> =
        configured.iter().filter(|disk| !job.leaves_out(&disk.vdev)).cloned().collect();
    // That QEMU writes to another file is told later, with what to do.
    opened::follow(&nodes, &mut taken);
    if let Some(error) = need::refusal(opened::troubles(toolstack, &domain.id, &taken)) {
        return Err(error);
    }
    let disks: Vec<RunningDisk> = configured
        .into_iter()
        .map(|disk| {
            let node = nodes.iter().position(|(vdev, _)| same_vdev(vdev, &disk.vdev));
            let node = node.map(|index| nodes.swap_remove(index).1);
            let vbd = vbds.iter().find(|vbd| same_vdev(&vbd.vdev, &disk.vdev));
            disk_seen(name, job, disk, vbd, node, &others)
        })
        .collect();
    let unknown = nodes.into_iter().filter(|(_, node)| !node.read_only);
    drives.extend(unknown.map(|(vdev, node)| (vdev, node.file)));
    let volumes = volumes_under(&disks);
    let monitor = monitor(toolstack, &domain.id)?;
    let version = toolstack.version().map_err(|error| trouble("Xen", error))?;
    let image = image_place(job, name)?;
    let (troubles, overlay_troubles) = troubles(toolstack, &domain.id, job, &config)?;
    let seen = CreateInput {
        domain: domain.id.clone(),
        state: domain.state,
        drives: drives_beside(drives, &disks),
        volumes,
        // We would refuse to read a record with another path.
        cfg: domain.cfg.clone().filter(|path| check_path(path).is_ok()),
        monitor: monitor.found,
        unsure_monitors: monitor.unsure,
        saver: savers::other(&domain.id)
            .map_err(|error| trouble("the programs that save domains", error))?,
        xen: version.to_string(),
        dom0_qemu: dom0_qemu(toolstack)?,
        shadow_paging: toolstack.has_shadow_paging().map_err(|error| trouble("Xen", error))?,
        spaces: spaces(&disks, &image),
        above_target,
        disks,
        way: None,
        image,
        troubles,
        overlay_troubles,
        config,
        stored,
    };
    Ok((seen, connection))
}

/// Whether dom0 has a QEMU of its own, which serves disks to dom0 itself (libxl_internal.h,
/// `DEVICE_MODEL_XS_PATH`; xencommons starts it).
pub(super) fn dom0_qemu(toolstack: &Toolstack) -> Result<bool> {
    let state = toolstack.read("/local/domain/0/device-model/0/state");
    Ok(state.map_err(|error| trouble("dom0's QEMU", error))?.as_deref() == Some("running"))
}

/// The drives whose images are not those of disks: an emulated drive may have the same file open as a disk.
fn drives_beside(drives: Vec<(String, PathBuf)>, disks: &[RunningDisk]) -> Vec<Drive> {
    let known = |image: &Path| {
        disks.iter().any(|disk| {
            let node = disk.node.as_ref().is_some_and(|node| node.file == image);
            node || files::same(image, disk.disk.file())
        })
    };
    drives
        .into_iter()
        .filter(|(_, image)| !known(image))
        .map(|(name, image)| Drive { name, image: image.display().to_string() })
        .collect()
}

/// Refuses while QEMU works on the images: it takes no snapshot of a disk then, and says so only in the pause.
fn check_jobs(qmp: &mut Qmp, domain: &str) -> Result<()> {
    let jobs = qmp.jobs().map_err(|error| trouble(domain, error))?;
    let Some(job) = jobs.first() else { return Ok(()) };
    let ours = job.id.starts_with("xl-snapshot-");
    Err(Error::refused(format!("The disks of {domain} cannot be snapshotted now"))
        .because(format!("the block job {} is at work in its QEMU", job.id))
        .hint(match ours {
            true => "finish the deletion that was interrupted: xl-snapshot list names it, with the command".into(),
            false => format!("wait for its end, or cancel it: xl qemu-monitor-command {} 'info block-jobs'", quote(domain)),
        }))
}

/// The domain's xl process.
pub(super) fn monitor(toolstack: &Toolstack, domain: &DomainId) -> Result<Monitor> {
    let domains = toolstack.domains().map_err(|error| trouble("the domains", error))?;
    // The xl process of a dying domain has exited or is about to.
    let all = domains.iter().filter(|info| !info.dying).map(|info| info.domid);
    let others: Vec<u32> = all.filter(|domid| ![0, domain.domid].contains(domid)).collect();
    let watched = Watched { domid: domain.domid, name: &domain.name, others: &others };
    process::xl_monitor(watched, &|path| cfg_name(path).ok())
        .map_err(|error| trouble("the domain's xl process", error))
}

/// Refuses if the domain's QEMU is not visible from here.
pub(super) fn check_qemu(toolstack: &Toolstack, domain: &DomainId) -> Result<()> {
    let DomainId { domid, name, .. } = domain;
    let pid = toolstack.qemu_pid(*domid).map_err(|error| trouble(name, error))?;
    match process::qemu_trouble(*domid, pid).map_err(|error| trouble("the domain's QEMU", error))? {
        None => Ok(()),
        Some(why) => {
            Err(Error::refused(format!("Cannot find the QEMU process of {name} ({domid})"))
                .because(why)
                .hint("run xl-snapshot in dom0 itself, not in a container"))
        }
    }
}

fn disk_seen(
    domain: &str,
    job: &Job,
    disk: Disk,
    vbd: Option<&Vbd>,
    node: Option<disk::Node>,
    others: &[OtherDisk],
) -> RunningDisk {
    let file = disk.file();
    let served = vbd.map(|vbd| vbd.served.clone());
    // Offered if an overlay would require a restore.
    let by_restore = disk.format == Some(Format::Raw) && served == Some(Served::Blkback);
    let clones = job.clones(&disk.vdev) || by_restore;
    let own = own(&disk);
    let below = below(&own);
    RunningDisk {
        served,
        params: vbd.map(|vbd| vbd.params.clone()).unwrap_or_default(),
        node,
        file: files::facts(file).map_err(|error| error.to_string()),
        device: files::device(file),
        place: job
            .new_file(domain, &disk)
            .map(|path| Place { trouble: files::trouble(&path), path }),
        used_by: other_user(file, others),
        sectors: vbd.and_then(|vbd| vbd.sectors),
        clone_trouble: clones.then(|| files::clone_trouble(file)).flatten(),
        own,
        below,
        vhd: vhd_facts(&disk),
        disk,
    }
}

/// A disk of another domain.
#[derive(Debug, Clone)]
pub(super) struct OtherDisk {
    domain: String,
    vdev: String,
    writable: bool,
    /// `None` if unknown, for example on a file system that hangs.
    id: Option<FileId>,
}

/// The disks of all domains except the one with this number.
pub(super) fn disks_of_others(toolstack: &Toolstack, domid: Option<u32>) -> Result<Vec<OtherDisk>> {
    let domains = toolstack.domains().map_err(|error| trouble("the domains", error))?;
    let mut disks = Vec::new();
    for info in domains.iter().filter(|info| info.domid != 0 && Some(info.domid) != domid) {
        // The stub domain of one has its disks.
        let target = toolstack.read(&format!("/local/domain/{}/target", info.domid)).ok().flatten();
        if target.is_some_and(|target| target.parse().ok() == domid && domid.is_some()) {
            continue;
        }
        let name = name_of(toolstack, info.domid)?;
        // From xenstore: a domain that is being created has no configuration yet.
        let vbds = match toolstack.vbds(info.domid) {
            // Paths that are not UTF-8 are not ours: one damaged domain must not stop work on others.
            Err(error) if error.is_unreadable() => Vec::new(),
            vbds => vbds.map_err(|error| trouble(&name, error))?,
        };
        disks.extend(vbds.into_iter().map(|vbd| (name.clone(), vbd)));
    }
    let nowhere = Path::new("");
    let paths: Vec<&Path> = disks.iter().map(|(_, vbd)| vbd.image().unwrap_or(nowhere)).collect();
    let ids = files::identities(&paths);
    let disks = disks.iter().zip(ids).map(|((domain, vbd), id)| OtherDisk {
        domain: domain.clone(),
        vdev: vbd.vdev.clone(),
        writable: vbd.writable,
        id,
    });
    Ok(disks.collect())
}

/// The disk of a domain that uses a file.
pub fn user(toolstack: &Toolstack, path: &Path) -> Result<Option<String>> {
    Ok(other_user(path, &disks_of_others(toolstack, None)?))
}

/// The disk of another domain that may also write to `path`.
pub(super) fn other_user(path: &Path, others: &[OtherDisk]) -> Option<String> {
    let mut writable = others.iter().filter(|other| other.writable).peekable();
    writable.peek()?;
    let id = files::identity(path)?;
    writable
        .find(|other| other.id == Some(id))
        .map(|OtherDisk { vdev, domain, .. }| match is_kept_by_xl(domain) {
            true => format!(
                "disk {vdev} of domain {domain}, which xl keeps of a domain that ended (rename-restart): when it \
                 is not needed any more, xl destroy {}",
                quote(domain)
            ),
            false => format!("disk {vdev} of domain {domain}"),
        })
}

/// The host's logical volumes, if a disk may be one of them.
pub(super) fn volumes_under(disks: &[RunningDisk]) -> Result<Vec<Volume>, String> {
    match disks.iter().any(|disk| disk.device.is_some()) {
        true => tools::volumes_for(&|volume| {
            disks.iter().filter_map(|disk| disk.device).any(|device| volume.has_device(device))
        }),
        false => Ok(Vec::new()),
    }
}

/// The backing file that was written to last.
pub(super) fn below(own: &Result<Vec<Link>, String>) -> Option<(PathBuf, Timestamp)> {
    let written = |link: &Link| Some((link.path.clone(), files::facts(&link.path).ok()?.written()));
    own.iter().flatten().skip(1).filter_map(written).max_by_key(|(_, at)| *at)
}

/// The chain of a disk's image, if QEMU could snapshot it.
pub(super) fn own(disk: &Disk) -> Result<Vec<Link>, String> {
    match disk.format {
        Some(format) if disk.writable && !disk.cdrom && !disk.is_tap_vhd() => {
            chain::walk(disk.file(), format)
        }
        _ => Ok(Vec::new()),
    }
}

pub(super) fn image_place(job: &Job, domain: &str) -> Result<ImagePlace> {
    if job.request.without_memory() {
        // If the user names no record, a later check explains which option is missing.
        let path = job.request.record.clone().unwrap_or_default();
        let partial = partial_path(&path);
        let trouble = [&path, &partial].iter().find_map(|path| files::trouble(path));
        return Ok(ImagePlace::Record { path, trouble });
    }
    let target = job.image(domain)?;
    let Target::File(path) = &target else { return Ok(ImagePlace::Stdout) };
    let mut found = job
        .images_of_that_name(path, domain)
        .into_iter()
        .flat_map(|path| [path.clone(), partial_path(&path)])
        .filter(|path| fs::symlink_metadata(path).is_ok())
        .map(|path| format!("{} exists", path.display()))
        .next();
    // Our own directory is created when it is needed.
    if found.is_none() && !job.is_in_our_directory(path) {
        found = files::trouble(path);
    }
    let free = files::free_space(path)
        .map_err(|error| trouble(&format!("the file system of {}", path.display()), error))?;
    Ok(ImagePlace::File { path: path.clone(), trouble: found, free })
}

/// The file systems of the image, of the disks and of their new images.
pub(super) fn spaces(disks: &[RunningDisk], image: &ImagePlace) -> Vec<Space> {
    let image = match image {
        ImagePlace::File { path, .. } | ImagePlace::Record { path, .. } => Some(path.as_path()),
        ImagePlace::Stdout => None,
    };
    let new = disks.iter().filter_map(|disk| disk.place.as_ref()).map(|place| place.path.as_path());
    let own = disks.iter().map(|disk| disk.disk.file());
    let space = |file: &Path| {
        let files::Room { device, free, volatile, .. } = files::room(file).ok()?;
        Some(Space { file: file.to_owned(), device, free, volatile })
    };
    image.into_iter().chain(new).chain(own).filter_map(space).collect()
}

/// The configuration of a running domain.
pub fn config(toolstack: &Toolstack, domain: &DomainId) -> Result<DomainConfig> {
    let json = toolstack.config_json(domain.domid).map_err(|error| trouble(&domain.name, error))?;
    DomainConfig::parse(&json).map_err(|error| trouble(&domain.name, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_that_xl_keeps_is_told_from_others() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let user = |domain: &str| {
            let id = files::identity(file.path());
            let (domain, vdev) = (domain.to_owned(), "xvda".to_owned());
            other_user(file.path(), &[OtherDisk { domain, vdev, writable: true, id }]).unwrap()
        };
        assert_eq!(user("web2"), "disk xvda of domain web2");
        let told = user("web1-20260302T0304Z");
        assert!(told.ends_with("xl destroy web1-20260302T0304Z"), "{told}");
    }
}
