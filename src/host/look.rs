//! Looking at the host: everything the planners need to know. Changes nothing.

mod found;

use std::fs;
use std::path::{Path, PathBuf};

use uuid::Uuid;

pub use found::{for_revert, for_show};

use crate::create::{ImagePlace, Job, Seen, State};
use crate::disk::lvm::volumes::{self, Volume};
use crate::disk::{self, DiskSeen, Place, Served, qemu_img, vhd};
use crate::domain::{Disk, DomainConfig, Format};
use crate::error::{Error, Result};
use crate::host::command;
use crate::host::dom0::Dom0;
use crate::host::files;
use crate::host::libxl::{DomainInfo, ShutdownReason, cfg_name};
use crate::host::process;
use crate::host::qmp::Qmp;
use crate::host::xenstore::Vbd;
use crate::memory::partial_path;
use crate::plan::Target;
use crate::spec::{Wish, absolute};
use crate::tool::{Tool, check_path};

/// A domain as the user named it.
#[derive(Debug, Clone)]
pub struct Domain {
    /// Its number; 0 if it does not run.
    pub domid: u32,
    /// Its UUID; nil if it does not run.
    pub uuid: Uuid,
    /// What it is doing.
    pub state: State,
    /// Its name.
    pub name: String,
    /// The xl configuration file, if it was named by that.
    pub cfg: Option<PathBuf>,
}

impl Domain {
    /// The same domain, with the xl configuration file that a SPEC.toml says, if it was not named by one.
    pub fn with_cfg(mut self, config: Option<&Path>) -> Result<Self> {
        let Some(path) = config.filter(|_| self.cfg.is_none()) else { return Ok(self) };
        let refused = || Error::refused(format!("The xl configuration file {}", path.display()));
        let name = cfg_name(path).map_err(|why| refused().because(why))?;
        if name != self.name {
            let why = format!("it is that of {name}, not of {}", self.name);
            return Err(refused().because(why).hint("correct config in the SPEC.toml"));
        }
        self.cfg = Some(path.to_owned());
        Ok(self)
    }
}

/// Finds a domain by name, number, UUID or the path of its xl configuration file.
pub fn domain(dom0: &Dom0, text: &str) -> Result<Domain> {
    let domains = dom0.libxl.domains().map_err(|error| trouble("the domains", error))?;
    if let Some(found) = by_identity(dom0, &domains, text)? {
        return Ok(found);
    }
    let path = Path::new(text);
    if path.is_file() {
        let name = cfg_name(path).map_err(|why| {
            Error::usage(format!("The configuration file {text} is not understood"))
                .because(why)
                .hint("see what xl says of it: xl create -n FILE")
        })?;
        return match by_identity(dom0, &domains, &name)? {
            Some(found) => Ok(Domain { cfg: Some(absolute(path)?), ..found }),
            None => Ok(Domain {
                domid: 0,
                uuid: Uuid::nil(),
                state: State::Off,
                name,
                cfg: Some(absolute(path)?),
            }),
        };
    }
    Err(Error::refused(format!("There is no domain {text:?}")).hint(
        "give a name, a number, a UUID or an xl configuration file; xl list shows the domains",
    ))
}

/// The same domain as it is now.
pub fn again(dom0: &Dom0, domain: Domain) -> Result<Domain> {
    let mut domains = dom0.libxl.domains().map_err(|error| trouble("the domains", error))?;
    // It may have an heir of the same UUID already.
    domains.retain(|info| !info.dying);
    let off = domain.state == State::Off;
    let identity = if off { domain.name.clone() } else { domain.uuid.to_string() };
    match by_identity(dom0, &domains, &identity)? {
        Some(found) => Ok(Domain { cfg: domain.cfg, ..found }),
        None if off => Ok(domain),
        None => Err(Error::refused(format!("Domain {} does not run any more", domain.name))
            .hint("a snapshot is taken of a running domain: xl list shows them")),
    }
}

/// As xl does it: a number is a domid first.
fn by_identity(dom0: &Dom0, domains: &[DomainInfo], text: &str) -> Result<Option<Domain>> {
    let domid = text.parse::<u32>().ok();
    let uuid = text.parse::<Uuid>().ok();
    let mut named = domains
        .iter()
        .map(|info| Ok((info, name_of(dom0, info.domid)?)))
        .collect::<Result<Vec<_>>>()?
        .into_iter();
    let found =
        named.clone().find(|(info, _)| domid == Some(info.domid) || uuid == Some(info.uuid));
    let Some((info, name)) = found.or_else(|| named.find(|(_, name)| name == text)) else {
        return Ok(None);
    };
    if info.domid == 0 {
        return Err(Error::refused("Domain 0 cannot be snapshotted: we run in it")
            .hint("name another domain; xl list shows them"));
    }
    let state = state(info);
    Ok(Some(Domain { domid: info.domid, uuid: info.uuid, state, name, cfg: None }))
}

/// The name of a domain; empty if it has just gone.
fn name_of(dom0: &Dom0, domid: u32) -> Result<String> {
    let name = dom0.libxl.domain_name(domid).map_err(|error| trouble("the domains", error))?;
    Ok(name.unwrap_or_default())
}

fn state(info: &DomainInfo) -> State {
    match info {
        DomainInfo { dying: true, .. } => State::Dying,
        DomainInfo { shutdown_reason: Some(ShutdownReason::Suspend), .. } => State::Suspended,
        DomainInfo { shutdown: true, .. } => State::Shutdown,
        DomainInfo { paused: true, .. } => State::Paused,
        _ => State::Running,
    }
}

/// Looks at a running domain for `create`. Leaves the connection to its QEMU open in `dom0`.
pub fn for_create(dom0: &mut Dom0, domain: &Domain, job: &Job) -> Result<Seen> {
    let domid = domain.domid;
    need(Tool::QemuImg)?;
    let json = dom0.libxl.config_json(domid).map_err(|error| trouble(&domain.name, error))?;
    let config = DomainConfig::parse(&json).map_err(|error| trouble(&domain.name, error))?;
    let stored = dom0.libxl.stored_config(domid).map_err(|error| trouble(&domain.name, error))?;
    let vbds = dom0.xenstore.vbds(domid).map_err(|error| trouble(&domain.name, error))?;
    let mut nodes = Vec::new();
    if vbds.iter().any(|vbd| vbd.served == Served::Qemu) {
        let mut qmp = Qmp::connect(domid).map_err(|error| trouble(&domain.name, error))?;
        nodes = qmp.disks().map_err(|error| trouble(&domain.name, error))?;
        dom0.qmp = Some(qmp);
    }
    let others = disks_of_others(dom0, domain.uuid)?;
    let disks: Vec<DiskSeen> = config
        .disks()
        .map_err(|error| trouble(&domain.name, error))?
        .into_iter()
        .map(|disk| {
            let node = nodes.iter().position(|(vdev, _)| *vdev == disk.vdev);
            let node = node.map(|index| nodes.swap_remove(index).1);
            let vbd = vbds.iter().find(|vbd| vbd.vdev == disk.vdev);
            disk_seen(&domain.name, job, disk, vbd, node, &others)
        })
        .collect();
    let volumes = volumes_under(&disks);
    // Once overlays stand on them, QEMU tells the overlays' sizes.
    dom0.remember_sizes(&disks);
    let version = dom0.libxl.version().map_err(|error| trouble("Xen", error))?;
    Ok(Seen {
        domid,
        uuid: domain.uuid,
        state: domain.state,
        disks,
        volumes,
        // A record with another path would not be read again.
        cfg: domain.cfg.clone().filter(|path| check_path(path).is_ok()),
        monitor: process::xl_monitor(domid)
            .map_err(|error| trouble("the domain's xl process", error))?,
        saver: process::saver(domid)
            .map_err(|error| trouble("the programs that save domains", error))?,
        xen: version.to_string(),
        shadow_paging: dom0.libxl.has_shadow_paging().map_err(|error| trouble("Xen", error))?,
        image: image_place(job, &domain.name)?,
        config,
        stored,
    })
}

fn disk_seen(
    domain: &str,
    job: &Job,
    disk: Disk,
    vbd: Option<&Vbd>,
    node: Option<disk::Node>,
    others: &[(String, Vbd)],
) -> DiskSeen {
    let file = disk.file();
    let served = vbd.map(|vbd| vbd.served.clone());
    // Offered where an overlay would take a restore.
    let clones = match job.wish(&disk.vdev) {
        Some(Wish::Reflink { .. }) => true,
        Some(_) | None => disk.format == Some(Format::Raw) && served == Some(Served::Blkback),
    };
    DiskSeen {
        served,
        params: vbd.map(|vbd| vbd.params.clone()).unwrap_or_default(),
        node,
        file: files::facts(file).map_err(|error| error.to_string()),
        device: files::device(file),
        place: job
            .new_file(domain, &disk)
            .map(|path| Place { trouble: files::trouble(&path), path }),
        used_by: other_user(file, others),
        clone_trouble: clones.then(|| files::clone_trouble(file)).flatten(),
        vhd: vhd_facts(&disk),
        disk,
    }
}

/// The disks of all domains but one.
pub(super) fn disks_of_others(dom0: &Dom0, uuid: Uuid) -> Result<Vec<(String, Vbd)>> {
    let domains = dom0.libxl.domains().map_err(|error| trouble("the domains", error))?;
    let mut disks = Vec::new();
    for info in domains.iter().filter(|info| info.domid != 0 && info.uuid != uuid) {
        let name = name_of(dom0, info.domid)?;
        // From xenstore: a domain that is just being made has no configuration yet.
        let vbds = dom0.xenstore.vbds(info.domid).map_err(|error| trouble(&name, error))?;
        disks.extend(vbds.into_iter().map(|vbd| (name.clone(), vbd)));
    }
    Ok(disks)
}

/// The disk of a domain that uses a file.
pub fn user(dom0: &Dom0, path: &Path) -> Result<Option<String>> {
    Ok(other_user(path, &disks_of_others(dom0, Uuid::nil())?))
}

/// The disk of another domain that may write to `path` as well.
pub(super) fn other_user(path: &Path, others: &[(String, Vbd)]) -> Option<String> {
    others
        .iter()
        .filter(|(_, vbd)| vbd.writable)
        .find(|(_, vbd)| vbd.image().is_some_and(|other| files::same(path, other)))
        .map(|(name, vbd)| format!("disk {} of domain {name}", vbd.vdev))
}

/// The host's logical volumes.
pub fn volumes() -> Result<Vec<Volume>, String> {
    let output = command::run(&volumes::report()).map_err(|error| error.to_string())?;
    volumes::parse(&output).map_err(|error| format!("lvs's answer: {error}"))
}

/// The same, if a disk may be one of them.
pub(super) fn volumes_under(disks: &[DiskSeen]) -> Result<Vec<Volume>, String> {
    match disks.iter().any(|disk| disk.device.is_some()) {
        true => volumes(),
        false => Ok(Vec::new()),
    }
}

/// What is known of a disk as a VHD, if it is one.
pub(super) fn vhd_facts(disk: &Disk) -> Option<Result<vhd::Facts, String>> {
    let tap = disk.is_tap_vhd();
    if !tap && disk.format != Some(Format::Vhd) {
        return None;
    }
    let file = disk.file();
    let depth = || -> Result<Option<u32>, String> {
        if !tap {
            return Ok(None);
        }
        check_path(file).map_err(|why| why.to_string())?;
        let output = command::run(&vhd::query_depth(file)).map_err(|error| error.to_string())?;
        Ok(vhd::parse_depth(&output))
    };
    Some(vhd_footer(file).and_then(|facts| Ok(vhd::Facts { depth: depth()?, ..facts })))
}

/// A VHD that grows has a copy of its footer at its start, and tapdisk spoils the one at the end
/// while the disk is in use (blktap, block-vhd.c, `vhd_kill_footer`).
fn vhd_footer(path: &Path) -> Result<vhd::Facts, String> {
    files::ends::<{ vhd::FOOTER }>(path)
        .map_err(|error| error.to_string())?
        .iter()
        .find_map(vhd::Facts::of_footer)
        .ok_or_else(|| "it has no footer of a VHD".to_owned())
}

pub(super) fn image_place(job: &Job, domain: &str) -> Result<ImagePlace> {
    if job.request.without_memory() {
        // Whoever asks for the disks alone and names no record is told why, or which option it takes.
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
    // Our own directory is made when it is needed.
    if found.is_none() && !job.is_in_our_directory(path) {
        found = files::trouble(path);
    }
    let free = files::free_space(path)
        .map_err(|error| trouble(&format!("the file system of {}", path.display()), error))?;
    Ok(ImagePlace::File { path: path.clone(), trouble: found, free })
}

/// An image and those below it, top first.
pub fn chain(path: &Path, format: Format) -> Result<Vec<qemu_img::ImageInfo>, String> {
    // What xl was told may be no file at all, and qemu-img would connect to an `nbd:` host.
    check_path(path).map_err(|why| why.to_string())?;
    let output =
        command::run(&qemu_img::info_chain(path, format)).map_err(|error| error.to_string())?;
    qemu_img::ImageInfo::parse_chain(&output)
        .map_err(|error| format!("qemu-img's answer on {}: {error}", path.display()))
}

/// Looking failed: nothing was changed.
pub(super) fn trouble(what: &str, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::refused(format!("Looking at {what} failed"))
        .because(error)
        .hint("nothing was changed; see that xl list works, and the logs in /var/log/xen")
}

/// Refuses if a tool is not there.
pub(super) fn need(tool: Tool) -> Result<()> {
    let missing = |why| Error::refused(format!("{} is needed", tool.name())).because(why);
    command::find(tool).map(drop).map_err(|why| missing(why).hint(tool.remedy()))
}
