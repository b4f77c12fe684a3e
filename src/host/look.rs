//! Looking at the host: everything the planners need to know. Changes nothing.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use uuid::Uuid;

use crate::create::{ImagePlace, Job, Seen, State, stamp};
use crate::disk::{self, DiskFound, DiskSeen, Place, Served, qemu_img};
use crate::domain::{Disk, DomainConfig, Format};
use crate::error::{Error, Result};
use crate::host::command;
use crate::host::dom0::Dom0;
use crate::host::files;
use crate::host::image::{Source, partial_path};
use crate::host::libxl::{DomainInfo, cfg_name};
use crate::host::process;
use crate::host::qmp::Qmp;
use crate::host::xenstore::Vbd;
use crate::names::is_file_part;
use crate::plan::Target;
use crate::record::{DiskRecord, Kept, Record};
use crate::revert::{Found, Running};
use crate::tool::Tool;

/// A domain as the user named it.
#[derive(Debug, Clone)]
pub struct Domain {
    /// Its number.
    pub domid: u32,
    /// Its UUID.
    pub uuid: Uuid,
    /// What it is doing.
    pub state: State,
    /// Its name.
    pub name: String,
    /// The xl configuration file, if it was named by that.
    pub cfg: Option<PathBuf>,
}

/// Finds a domain by name, number, UUID or the path of its xl configuration file.
pub fn domain(dom0: &Dom0, text: &str) -> Result<Domain> {
    let domains = dom0.libxl.domains().map_err(|error| trouble("the domains", error))?;
    if let Some(found) = by_identity(dom0, &domains, text)? {
        return Ok(found);
    }
    let path = Path::new(text);
    if path.is_file() {
        let name = cfg_name(path)
            .map_err(|why| Error::usage(format!("The configuration file {text}")).because(why))?;
        return match by_identity(dom0, &domains, &name)? {
            Some(found) => Ok(Domain { cfg: Some(path.to_owned()), ..found }),
            None => Err(Error::refused(format!("Domain {name} of {text} does not run"))
                .hint("a snapshot is taken of a running domain: xl list shows them")),
        };
    }
    Err(Error::refused(format!("There is no domain {text:?}")).hint(
        "give a name, a number, a UUID or an xl configuration file; xl list shows the domains",
    ))
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
        return Err(Error::refused("Domain 0 cannot be snapshotted: we run in it"));
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
        DomainInfo { shutdown: true, .. } => State::Shutdown,
        DomainInfo { paused: true, .. } => State::Paused,
        _ => State::Running,
    }
}

/// Looks at a running domain for `create`. Leaves the connection to its QEMU open in `dom0`.
pub fn for_create(dom0: &mut Dom0, domain: &Domain, job: &Job) -> Result<Seen> {
    let domid = domain.domid;
    command::find(Tool::QemuImg).map_err(|why| Error::refused("The tools").because(why))?;
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
    dom0.remember_sizes(nodes.iter().map(|(vdev, node)| (vdev.clone(), node.virtual_size)));
    let disks = config
        .disks()
        .map_err(|error| trouble(&domain.name, error))?
        .into_iter()
        .map(|disk| {
            let node = nodes.iter().position(|(vdev, _)| *vdev == disk.vdev);
            let node = node.map(|index| nodes.swap_remove(index).1);
            let vbd = vbds.iter().find(|vbd| vbd.vdev == disk.vdev);
            disk_seen(&domain.name, job, disk, vbd, node)
        })
        .collect();
    let version = dom0.libxl.version().map_err(|error| trouble("Xen", error))?;
    Ok(Seen {
        domid,
        uuid: domain.uuid,
        state: domain.state,
        disks,
        monitor: process::xl_monitor(domid)
            .map_err(|error| trouble("the domain's xl process", error))?,
        xen: version.to_string(),
        shadow_paging: dom0.libxl.has_shadow_paging().map_err(|error| trouble("Xen", error))?,
        image: image_place(&job.image(&domain.name)?)?,
        config,
        stored,
        cfg: domain.cfg.clone(),
    })
}

fn disk_seen(
    domain: &str,
    job: &Job,
    disk: Disk,
    vbd: Option<&Vbd>,
    node: Option<disk::Node>,
) -> DiskSeen {
    DiskSeen {
        served: vbd.map(|vbd| vbd.served.clone()),
        params: vbd.map(|vbd| vbd.params.clone()).unwrap_or_default(),
        node,
        file: files::facts(&disk.path).map_err(|error| error.to_string()),
        overlay: job
            .overlay(domain, &disk)
            .map(|path| Place { trouble: files::trouble(&path), path }),
        disk,
    }
}

fn image_place(target: &Target) -> Result<ImagePlace> {
    let Target::File(path) = target else { return Ok(ImagePlace::Stdout) };
    let mut found = [path.clone(), partial_path(path)]
        .iter()
        .filter(|path| fs::symlink_metadata(path).is_ok())
        .map(|path| format!("{} exists", path.display()))
        .next();
    // Our own directory is made when it is needed.
    if found.is_none() && !path.starts_with(crate::create::DEFAULT_DIRECTORY) {
        found = files::trouble(path);
    }
    let free = files::free_space(path)
        .map_err(|error| trouble(&format!("the file system of {}", path.display()), error))?;
    Ok(ImagePlace::File { path: path.clone(), trouble: found, free })
}

/// Looks at a snapshot and the host for `revert`.
pub fn for_revert(dom0: &Dom0, source: &Source, snapshot: &str, now: Timestamp) -> Result<Found> {
    for tool in [Tool::QemuImg, Tool::Xl] {
        command::find(tool).map_err(|why| Error::refused("The tools").because(why))?;
    }
    let record = source.image.record.clone();
    let config = DomainConfig::parse(&source.image.config)
        .map_err(|error| trouble(&format!("the image {}", source.name), error))?;
    let domains = dom0.libxl.domains().map_err(|error| trouble("the domains", error))?;
    let running =
        |info: &DomainInfo| Running { domid: info.domid, uuid: info.uuid, state: state(info) };
    let mut named = None;
    let mut others = Vec::new();
    for info in domains.iter().filter(|info| info.domid != 0) {
        let name = name_of(dom0, info.domid)?;
        if name == record.domain.name {
            named = Some(running(info));
        }
        if info.uuid != record.domain.uuid {
            // From xenstore: a domain that is just being made has no configuration yet.
            let vbds = dom0.xenstore.vbds(info.domid).map_err(|error| trouble(&name, error))?;
            others.extend(vbds.into_iter().map(|vbd| (name.clone(), vbd)));
        }
    }
    let same = domains.iter().find(|info| info.uuid == record.domain.uuid).map(running);
    let current = match &same {
        Some(running) => disks_of(dom0, running.domid)?,
        None => Vec::new(),
    };
    let disks =
        record.disks.iter().map(|disk| disk_found(&record, disk, now, &current, &others)).collect();
    Ok(Found { snapshot: snapshot.to_owned(), record, config, named, same, disks, now })
}

/// The disks of the domain that would be reverted; none if it has just gone.
fn disks_of(dom0: &Dom0, domid: u32) -> Result<Vec<Disk>> {
    let json = match dom0.libxl.config_json(domid) {
        Ok(json) => json,
        Err(error) if error.is_not_found() => return Ok(Vec::new()),
        Err(error) => return Err(trouble(&format!("domain {domid}"), error)),
    };
    DomainConfig::parse(&json)
        .and_then(|config| config.disks())
        .map_err(|error| trouble(&format!("domain {domid}"), error))
}

/// Looks at the disks of a snapshot without a host, for `show`.
pub fn for_show(record: &Record, now: Timestamp) -> Vec<DiskFound> {
    record.disks.iter().map(|disk| disk_found(record, disk, now, &[], &[])).collect()
}

fn disk_found(
    record: &Record,
    disk: &DiskRecord,
    now: Timestamp,
    current: &[Disk],
    others: &[(String, Vbd)],
) -> DiskFound {
    let file = files::facts(&disk.path).map_err(|error| error.to_string());
    let left_out = matches!(disk.snapshot, Kept::None { .. });
    let top = current.iter().find(|other| other.vdev == disk.vdev && !left_out);
    let chain_now = match top.and_then(|top| Some((top, top.format?))) {
        Some((top, format)) => chain(&top.path, format),
        None => Ok(Vec::new()),
    };
    let image = match (left_out, disk.format, &chain_now) {
        (true, ..) => Err("it is not in the snapshot".to_owned()),
        (false, None, _) => Err("its format is not known".to_owned()),
        // Without it we cannot know whether other images rest on the file.
        (false, _, Err(why)) => Err(why.clone()),
        (false, Some(format), Ok(_)) => chain(&disk.path, format).and_then(|chain| {
            chain.into_iter().next().ok_or_else(|| "qemu-img says nothing of it".to_owned())
        }),
    };
    let used_by = file.as_ref().ok().and_then(|facts| {
        others
            .iter()
            .filter(|(_, vbd)| vbd.writable)
            .find(|(_, vbd)| {
                let other = vbd.image().and_then(|path| files::facts(path).ok());
                other.is_some_and(|f| (f.device, f.inode) == (facts.device, facts.inode))
            })
            .map(|(name, vbd)| format!("disk {} of domain {name}", vbd.vdev))
    });
    DiskFound {
        file,
        image,
        chain: chain_now.unwrap_or_default(),
        top_protected: top
            .is_some_and(|top| files::facts(&top.path).is_ok_and(|facts| !facts.writable)),
        used_by,
        place: revert_place(record, disk, now),
        record: disk.clone(),
    }
}

/// Where an image for the reverted guest can be made: beside the one of the snapshot.
fn revert_place(record: &Record, disk: &DiskRecord, now: Timestamp) -> Place {
    let domain = &record.domain.name;
    let domain = if is_file_part(domain) { domain.as_str() } else { "domain" };
    let name = disk::overlay_name(domain, &disk.vdev, &record.name, Some(&stamp(now)));
    let path = disk.path.parent().unwrap_or(Path::new("/")).join(name);
    Place { trouble: files::trouble(&path), path }
}

fn chain(path: &Path, format: Format) -> Result<Vec<qemu_img::ImageInfo>, String> {
    let output =
        command::run(&qemu_img::info_chain(path, format)).map_err(|error| error.to_string())?;
    qemu_img::ImageInfo::parse_chain(&output)
        .map_err(|error| format!("qemu-img's answer on {}: {error}", path.display()))
}

/// Looking failed: nothing was changed.
fn trouble(what: &str, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::refused(format!("Looking at {what} failed")).because(error)
}
