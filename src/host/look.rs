//! Looking at the host: everything the planners need to know. Changes nothing.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use uuid::Uuid;

use crate::clone;
use crate::create::{ImagePlace, Job, Seen, State, stamp};
use crate::disk::lvm::volumes::{self, Volume, device};
use crate::disk::{
    self, DiskFound, DiskSeen, Place, Room, Served, beside_file_name, qemu_img, vhd,
};
use crate::domain::{Disk, DomainConfig, Format};
use crate::error::{Error, Result};
use crate::host::command;
use crate::host::configured::{self, Configured};
use crate::host::dom0::Dom0;
use crate::host::files;
use crate::host::libxl::{DomainInfo, ShutdownReason, cfg_name};
use crate::host::process;
use crate::host::qmp::Qmp;
use crate::host::snapshot::Snapshot;
use crate::host::xenstore::Vbd;
use crate::memory::partial_path;
use crate::names::is_file_part;
use crate::plan::Target;
use crate::record::{DiskRecord, Kept, Record};
use crate::revert::{Cfg, Found, Onward, Running};
use crate::spec::{Wish, absolute};
use crate::tool::{Invocation, Tool, check_path, quote};

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

/// The VHDs below one, down to that which has no parent. A child names its parent by the path, and
/// knows its UUID: another VHD there would be found out only when tapdisk opens it.
fn vhd_parents(path: &Path) -> Result<Vec<PathBuf>, String> {
    let of = |path: &Path, why: &dyn fmt::Display| format!("{}: {why}", path.display());
    let footer_of = |path: &Path| vhd_footer(path).map_err(|why| of(path, &why));
    let mut parents: Vec<PathBuf> = Vec::new();
    let mut child = path.to_owned();
    let mut footer = footer_of(path)?;
    while footer.differencing {
        let header = files::part(&child, footer.header).map_err(|error| of(&child, &error))?;
        let output = command::run(&vhd::query_parent(&child)).map_err(|error| error.to_string())?;
        let parent = vhd::parse_parent(&output)
            .filter(|parent| *parent != path && !parents.contains(parent))
            .ok_or_else(|| of(&child, &"vhd-util does not tell its parent"))?;
        footer = footer_of(&parent)?;
        if vhd::parent_uuid(&header) != Some(footer.uuid) {
            return Err(of(&child, &format!("its parent {} is another VHD", parent.display())));
        }
        parents.push(parent.clone());
        child = parent;
    }
    Ok(parents)
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

/// Looks at a snapshot and the host for `revert`; for a new domain `beside` that of the snapshot, if
/// one is wished for. `cfg` is the domain's xl configuration file, as far as it is known.
pub fn for_revert(
    dom0: &Dom0,
    snapshot: &Snapshot,
    cfg: &Cfg,
    name: &str,
    beside: Option<&clone::Wishes>,
    now: Timestamp,
) -> Result<Found> {
    for tool in [Tool::QemuImg, Tool::Xl] {
        need(tool)?;
    }
    if let Some(wishes) = beside.filter(|wishes| !wishes.directory.is_dir()) {
        let directory = quote(&wishes.directory);
        return Err(Error::refused(format!("There is no directory {directory}"))
            .hint(format!("make it: mkdir -p {directory}")));
    }
    let record = snapshot.record.clone();
    let domains = dom0.libxl.domains().map_err(|error| trouble("the domains", error))?;
    let running =
        |info: &DomainInfo| Running { domid: info.domid, uuid: info.uuid, state: state(info) };
    let mut named = None;
    let wanted = beside.map_or(record.domain.name.as_str(), |wishes| wishes.name.as_str());
    for info in &domains {
        if name_of(dom0, info.domid)? == wanted {
            named = Some(running(info));
        }
    }
    let (config, onward, same) = match &snapshot.source {
        Some(source) => {
            let config = DomainConfig::parse(&source.image.config)
                .map_err(|error| trouble(&format!("the image {}", source.name), error))?;
            let same = domains.iter().find(|info| info.uuid == record.domain.uuid).map(running);
            (config, Onward::Memory, same)
        }
        None if beside.is_some() => {
            return Err(Error::refused(format!("The snapshot {name} has no memory"))
                .because("a new domain goes on from that")
                .hint("start one by xl create, on overlays of your own (qemu-img create)"));
        }
        None => {
            let (Cfg::Named(path) | Cfg::Remembered(path)) = cfg else {
                return Err(Error::refused(format!("The snapshot {name} has no memory"))
                    .because("it does not say from which xl configuration file the domain starts")
                    .hint("add config = \"FILE\" to a SPEC.toml"));
            };
            let Configured { config, uuid } = configured::read(path)?;
            // Its name is all there is, unless the file says more.
            let same = named.clone().filter(|named| uuid.is_nil() || uuid == named.uuid);
            (config, Onward::Start(path.clone()), same)
        }
    };
    let uuid = same.as_ref().map_or(record.domain.uuid, |same| same.uuid);
    let others = disks_of_others(dom0, uuid)?;
    let mut current = match (&same, &onward) {
        (Some(running), _) => disks_of(dom0, running.domid)?,
        (None, Onward::Memory) => Vec::new(),
        // It would go on with those.
        (None, Onward::Start(_)) => {
            config.disks().map_err(|error| trouble(&record.domain.name, error))?
        }
    };
    if same.is_none() {
        // Nobody writes to a frozen file through a domain that does not run.
        let frozen =
            |disk: &&DiskRecord| matches!(disk.snapshot, Kept::External { .. } | Kept::Vhd { .. });
        current.retain(|disk| {
            !record.disks.iter().filter(frozen).any(|frozen| frozen.path == disk.file())
        });
    }
    let place = |disk: &DiskRecord| match beside {
        None => revert_place(&record, disk, now),
        Some(wishes) => {
            let path = wishes.directory.join(beside_file_name(wishes.name.as_str(), disk));
            Place { trouble: files::trouble(&path), path }
        }
    };
    let disks = record
        .disks
        .iter()
        .map(|disk| {
            let mut found = disk_found(disk, place(disk), &current, &others);
            found.room = room_for_copy(&found, beside.is_some());
            found
        })
        .collect();
    let volumes = volumes_for(&record);
    let snapshot = name.to_owned();
    Ok(Found { snapshot, record, onward, config, named, same, disks, volumes, now })
}

/// The host's logical volumes, if the snapshot has one.
fn volumes_for(record: &Record) -> Result<Vec<Volume>, String> {
    match record.disks.iter().any(|disk| matches!(disk.snapshot, Kept::Lvm { .. })) {
        true => volumes(),
        false => Ok(Vec::new()),
    }
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

/// Looks at the disks of a snapshot without a domain, for `show`.
pub fn for_show(record: &Record, now: Timestamp) -> (Vec<DiskFound>, Result<Vec<Volume>, String>) {
    let disks = record
        .disks
        .iter()
        .map(|disk| {
            let mut found = disk_found(disk, revert_place(record, disk, now), &[], &[]);
            found.room = room_for_copy(&found, false);
            found
        })
        .collect();
    (disks, volumes_for(record))
}

fn disk_found(
    disk: &DiskRecord,
    place: Place,
    current: &[Disk],
    others: &[(String, Vbd)],
) -> DiskFound {
    let in_qemu = matches!(disk.snapshot, Kept::Internal { .. } | Kept::External { .. });
    let left_out = matches!(disk.snapshot, Kept::None { .. });
    let is_vhd = matches!(disk.snapshot, Kept::Vhd { .. });
    let top = current.iter().find(|other| other.vdev == disk.vdev && !left_out);
    let chain_now = match top.filter(|_| in_qemu).and_then(|top| Some((top, top.format?))) {
        Some((top, format)) => chain(top.file(), format),
        None => Ok(Vec::new()),
    };
    let mut below = Ok(Vec::new());
    let mut image = Err("its format is not known".to_owned());
    if let Some(format) = disk.format.filter(|_| in_qemu) {
        let images = chain(&disk.path, format);
        below = images
            .as_ref()
            .map_err(Clone::clone)
            .map(|images| images.iter().skip(1).map(|image| image.filename.clone()).collect());
        image = images.and_then(|images| {
            images.into_iter().next().ok_or_else(|| "qemu-img says nothing of it".to_owned())
        });
    } else if is_vhd {
        below = vhd_parents(&disk.path);
    }
    let facts = |path: &Path| files::facts(path).map_err(|error| error.to_string());
    let file = facts(&disk.path);
    let (frozen, virtual_size) = match &disk.snapshot {
        Kept::External { .. } => {
            (file.clone(), image.as_ref().map(|image| image.virtual_size).map_err(Clone::clone))
        }
        Kept::Vhd { .. } => (file.clone(), vhd_footer(&disk.path).map(|vhd| vhd.virtual_size)),
        Kept::Reflink { copy, .. } => {
            let copy = facts(copy);
            (copy.clone(), copy.map(|copy| copy.size))
        }
        Kept::None { .. } | Kept::Internal { .. } | Kept::Lvm { .. } => {
            let none = || "its snapshot is no file of its own".to_owned();
            (Err(none()), Err(none()))
        }
    };
    let top_parent = top.filter(|_| is_vhd).and_then(|top| {
        check_path(top.file()).ok()?;
        let output = command::run(&vhd::query_parent(top.file())).ok()?;
        vhd::parse_parent(&output)
    });
    let copy = match &disk.snapshot {
        Kept::Reflink { copy, .. } => Some(copy),
        _ => None,
    };
    let files = [&disk.path].into_iter().chain(copy).chain(below.iter().flatten());
    let used_by = files.filter_map(|file| other_user(file, others)).next();
    DiskFound {
        file,
        frozen,
        virtual_size,
        // Without the chain we cannot know whether other images rest on the file.
        image: chain_now.as_ref().map_err(Clone::clone).and(image),
        chain: chain_now.unwrap_or_default(),
        top: top.map(|top| top.file().to_owned()),
        top_parent,
        top_protected: top
            .is_some_and(|top| files::facts(top.file()).is_ok_and(|facts| !facts.writable)),
        below: below.map(|below| {
            let written = |path: PathBuf| files::facts(&path).ok().map(|facts| (path, facts.mtime));
            below.into_iter().filter_map(written).collect()
        }),
        used_by,
        place,
        room: None,
        record: disk.clone(),
    }
}

/// The room for a copy of a snapshot, where one is needed: a new domain takes no part in the disks of
/// the old one.
fn room_for_copy(found: &DiskFound, beside: bool) -> Option<Result<Room, String>> {
    let from = &found.record.path;
    let measure = match &found.record.snapshot {
        Kept::Internal { proof: Some(proof) } if beside || found.needs_copy() => {
            qemu_img::measure_snapshot(from, &proof.id)
        }
        Kept::Lvm { group, snapshot, size: Some(_), .. } if beside => {
            qemu_img::measure_device(&device(group, snapshot))
        }
        _ => return None,
    };
    Some(room(from, &measure, &found.place.path))
}

/// The room that a copy takes which `measure` asks for.
fn room(from: &Path, measure: &Invocation, to: &Path) -> Result<Room, String> {
    let output = command::run(measure);
    let needed = qemu_img::parse_measure(&output.map_err(|error| error.to_string())?)
        .map_err(|error| format!("qemu-img's answer on {}: {error}", from.display()))?;
    let directory = to.parent().unwrap_or(Path::new("/"));
    let place = || Ok((files::file_system(directory)?, files::free_space(to)?));
    let (device, free) = place()
        .map_err(|error: io::Error| format!("the file system of {}: {error}", to.display()))?;
    Ok(Room { directory: directory.to_owned(), device, free, needed })
}

/// Where a file for the reverted guest can be made: beside the one of the snapshot.
fn revert_place(record: &Record, disk: &DiskRecord, now: Timestamp) -> Place {
    let domain = &record.domain.name;
    let domain = if is_file_part(domain) { domain.as_str() } else { "domain" };
    let name = disk::revert_file_name(domain, disk, &record.name, &stamp(now));
    let path = disk.path.parent().unwrap_or(Path::new("/")).join(name);
    Place { trouble: files::trouble(&path), path }
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
