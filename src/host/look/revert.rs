//! Inspects a snapshot and its disks, for `revert` and `show`. Changes nothing.

use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::domains::{Listed, listed, with_name, with_uuid};
use super::overlays::Overlays;
use super::room::room_needed;
use super::{OtherDisk, check_qemu, disks_of_others, monitor, opened, other_user, trouble};
use crate::clone;
use crate::disk::kind::{Content, Frozen, Reader};
use crate::disk::{self, Node, Place, SnapshotDisk, beside_file_name};
use crate::domain::{Disk, DomainConfig, Format};
use crate::error::{Error, Result};
use crate::host::chain;
use crate::host::configured::{self, Configured};
use crate::host::files;
use crate::host::needs::{self, CheckContext};
use crate::host::parallel::in_parallel;
use crate::host::qmp::Qmp;
use crate::host::snapshot::Snapshot;
use crate::host::tools::{self, info, need, vhd_footer, vhd_parents};
use crate::host::toolstack::Toolstack;
use crate::names::{is_file_part, same_vdev};
use crate::need::{self, Requirement, Severity, Trouble};
use crate::record::{DiskRecord, Record};
use crate::restore_first;
use crate::revert::{Cfg, RevertInput, Running, StartFrom, refuse_domain};
use crate::show::ShowInput;
use crate::state::{State, stamp};
use crate::tool::volumes;
use crate::tool::{Tool, quote};

/// How a snapshot is reverted to.
#[derive(Debug, Clone, Copy)]
pub enum RevertMode<'a> {
    /// The domain is destroyed and then restored.
    Plain,
    /// A new domain is created.
    Clone(&'a clone::Options),
    /// The domain is restored next to the running one, and then replaces it.
    First(&'a restore_first::Options),
}

/// Inspects a snapshot and the host for `revert`. `cfg` is the domain's xl configuration file, if known.
pub fn for_revert(
    toolstack: &Toolstack,
    snapshot: &Snapshot,
    cfg: &Cfg,
    name: &str,
    way: RevertMode<'_>,
    now: Timestamp,
) -> Result<RevertInput> {
    let beside = match way {
        RevertMode::Clone(options) => Some(options),
        RevertMode::Plain | RevertMode::First(_) => None,
    };
    let first = match way {
        RevertMode::First(options) => Some(options),
        RevertMode::Plain | RevertMode::Clone(_) => None,
    };
    // Then the disks of the domain are only read, and it keeps its resources.
    let two = !matches!(way, RevertMode::Plain);
    for tool in [Tool::QemuImg, Tool::Xl] {
        need(tool)?;
    }
    let directory = beside.map(|options| &options.directory);
    let directory = directory.or_else(|| first.and_then(|options| options.directory.as_ref()));
    if let Some(directory) = directory.filter(|directory| !directory.is_dir()) {
        let directory = quote(directory);
        return Err(Error::refused(format!("There is no directory {directory}"))
            .hint(format!("make it: mkdir -p {directory}")));
    }
    let record = snapshot.record.clone();
    let domains = listed(toolstack)?;
    let wanted = beside.map_or(record.domain.name.as_str(), |options| options.name.as_str());
    let named = with_name(&domains, wanted).map(|domain| running(toolstack, domain)).transpose()?;
    let (config, onward, same) = match &snapshot.source {
        Some(source) => {
            let config = DomainConfig::parse(&source.image.config)
                .map_err(|error| trouble(&format!("the image {}", source.name), error))?;
            let same = with_uuid(&domains, record.domain.uuid)?
                .map(|domain| running(toolstack, domain))
                .transpose()?;
            let same = same.filter(|same| !is_empty_shell(toolstack, same.id.domid, same.state));
            (config, StartFrom::Memory, same)
        }
        None if beside.is_some() => {
            return Err(Error::refused(format!("The snapshot {name} has no memory"))
                .because("a new domain needs the memory")
                .hint("create overlays with qemu-img create, and start a domain on them with xl create"));
        }
        None => {
            let (Cfg::Named(path) | Cfg::Remembered(path)) = cfg else {
                return Err(Error::refused(format!("The snapshot {name} has no memory"))
                    .because("it does not say from which xl configuration file the domain starts")
                    .hint("add config = \"FILE\" to a SPEC.toml"));
            };
            let Configured { config, uuid } = configured::read(path)?;
            // Only its name identifies it, unless the file has a UUID.
            let same = named.clone().filter(|named| uuid.is_nil() || uuid == named.id.uuid);
            (config, StartFrom::Start(path.clone()), same)
        }
    };
    if let Some(same) = same.as_ref().filter(|_| beside.is_none()) {
        check_qemu(toolstack, &same.id)?;
    }
    let others = disks_of_others(toolstack, same.as_ref().map(|same| same.id.domid))?;
    let mut current = match (&same, &onward) {
        (Some(running), _) => disks_of(toolstack, running.id.domid)?,
        // A start would use those disks: their bases are in use, even if nothing runs.
        (None, StartFrom::Memory) => disks_in(cfg, &record.domain.name),
        // The start uses those disks.
        (None, StartFrom::Start(_)) => {
            config.disks().map_err(|error| trouble(&record.domain.name, error))?
        }
    };
    if same.is_none() {
        // A domain that does not run writes to no frozen file.
        let frozen = |disk: &&DiskRecord| {
            let content = disk.snapshot.kind().content();
            content.frozen_file(&disk.path) == Some(&disk.path)
        };
        current.retain(|disk| {
            !record.disks.iter().filter(frozen).any(|frozen| files::same(&frozen.path, disk.file()))
        });
    }
    let served = same.as_ref().filter(|_| beside.is_none());
    let nodes = served.map(|same| nodes(same.id.domid)).unwrap_or_default();
    opened::follow(&nodes, &mut current);
    let replaced =
        served.map(|same| opened::troubles(toolstack, &same.id, &taken(&current, &record)));
    let overlays =
        if beside.is_none() { Overlays::of(&record, &current) } else { Overlays::default() };
    let place = |disk: &DiskRecord| match beside {
        None => match first.and_then(|options| options.directory.as_deref()) {
            Some(directory) if disk::needs_copy_for_new_domain(disk).is_some() => {
                place_in(directory, &record, disk, now)
            }
            _ => revert_place(&record, disk, now),
        },
        Some(options) => {
            let path = options.directory.join(beside_file_name(options.name.as_str(), disk));
            Place { trouble: files::trouble(&path), path }
        }
    };
    let mut disks = in_parallel(&record.disks, |disk| {
        let mut found = disk_found(disk, place(disk), &current, &others);
        overlays.fill(&mut found);
        found.room = room_needed(&found, two);
        found
    });
    count_live_bitmaps(&nodes, &mut disks);
    let attached = match beside {
        None => attached(&current, &record),
        Some(_) => Vec::new(),
    };
    let volumes = volumes_for(&record);
    let snapshot = name.to_owned();
    let mut needs = need::of_revert(&disks, Some(&config), wanted, two)
        .map_err(|error| trouble(&record.domain.name, error))?;
    needs.extend(need::of_memory(&record, wanted));
    if first.is_some() {
        needs.iter_mut().for_each(|need| need.what = need.what.clone().without_ballooning());
    }
    if let StartFrom::Start(_) = &onward {
        needs.extend(need::of_start(&config, &record.domain.name));
    }
    let domid = same.as_ref().map(|same| same.id.domid);
    let gone = domid.filter(|_| !two);
    let (mut troubles, _) =
        needs::troubles(&needs, CheckContext { toolstack: Some(toolstack), gone, same: domid });
    troubles.extend(replaced.unwrap_or_default());
    let mut vm = Vec::new();
    if first.is_some() {
        troubles.extend(taken_names(&domains, &record.domain.name));
        let path = format!("/vm/{}", record.domain.uuid);
        vm = toolstack.below(&path).map_err(|error| trouble(&path, error))?;
    }
    Ok(RevertInput {
        snapshot,
        record,
        start_from: onward,
        config,
        named,
        same,
        disks,
        attached,
        volumes,
        vm,
        needs,
        troubles,
        now,
    })
}

/// Domains with the temporary names that `--restore-first` needs.
fn taken_names(domains: &[Listed], name: &str) -> Vec<Trouble> {
    let taken = restore_first::names(name).into_iter().filter_map(|name| with_name(domains, &name));
    taken
        .map(|other| Trouble {
            rank: Severity::Busy,
            about: format!("{name} cannot be restored while it runs"),
            why: format!("there is a domain {} already ({})", other.id.name, other.id.domid),
            hint: format!(
                "if an earlier revert has left it, destroy it: xl destroy {}; else rename it",
                other.id.domid
            ),
        })
        .collect()
}

/// A running domain, with its xl process.
fn running(toolstack: &Toolstack, domain: Listed) -> Result<Running> {
    let Listed { id, state } = domain;
    let monitor = monitor(toolstack, &id)?.found;
    Ok(Running { id, state, monitor })
}

/// Whether only the number of a destroyed domain is left: somebody still maps a page of its memory. Its
/// devices are gone from xenstore, and its QEMU has ended.
fn is_empty_shell(toolstack: &Toolstack, domid: u32, state: State) -> bool {
    state == State::Dying
        && toolstack.vbds(domid).is_ok_and(|disks| disks.is_empty())
        && toolstack.qemu_pid(domid).is_ok_and(|qemu| qemu.is_none())
}

/// The host's logical volumes, if the snapshot has one.
pub(super) fn volumes_for(record: &Record) -> Result<Vec<volumes::Volume>, String> {
    let contents = record.disks.iter().map(|disk| disk.snapshot.kind().content());
    let snapshots: Vec<_> = contents
        .filter_map(|content| match content {
            Content::Volume(snapshot) => Some(snapshot),
            _ => None,
        })
        .collect();
    let is = |volume: &volumes::Volume| {
        let names = (volume.group.as_str(), volume.name.as_str());
        snapshots.iter().any(|snapshot| (snapshot.group, snapshot.name) == names)
    };
    if snapshots.is_empty() { Ok(Vec::new()) } else { tools::volumes_for(&is) }
}

/// The disks of the domain to be reverted; none if it has just ended.
pub(super) fn disks_of(toolstack: &Toolstack, domid: u32) -> Result<Vec<Disk>> {
    let json = match toolstack.config_json(domid) {
        Ok(json) => json,
        Err(error) if error.is_not_found() => return Ok(Vec::new()),
        Err(error) => {
            return Err(trouble(&format!("domain {domid}"), error).hint(format!(
                "nothing was changed. The disks of the domain are unknown: end it by hand, and \
                 revert again: xl shutdown -w {domid}, or xl destroy {domid}"
            )));
        }
    };
    DomainConfig::parse(&json)
        .and_then(|config| config.disks())
        .map_err(|error| trouble(&format!("domain {domid}"), error))
}

/// The current writable disks that are not in the snapshot.
fn attached(current: &[Disk], record: &Record) -> Vec<String> {
    let is_new =
        |disk: &&Disk| !record.disks.iter().any(|known| same_vdev(&known.vdev, &disk.vdev));
    let writable = current.iter().filter(|disk| disk.writable).filter(is_new);
    writable.map(|disk| format!("disk {} ({})", disk.vdev, disk.file().display())).collect()
}

/// The disks in the xl configuration file of a domain that does not run; none if the file is unknown, or is that of
/// another domain.
fn disks_in(cfg: &Cfg, domain: &str) -> Vec<Disk> {
    let (Cfg::Named(path) | Cfg::Remembered(path)) = cfg else { return Vec::new() };
    let config = configured::read(path).ok().map(|configured| configured.config);
    let its = config.filter(|config| config.name().is_ok_and(|name| name == domain));
    its.and_then(|config| config.disks().ok()).unwrap_or_default()
}

/// Inspects a snapshot for `show`; without a toolstack, as far as possible.
pub fn for_show(
    toolstack: Option<&Toolstack>,
    record: &Record,
    config: Option<&DomainConfig>,
    now: Timestamp,
) -> Result<ShowInput> {
    // A domain of a snapshot without memory may have another UUID now. An export can only become
    // another domain.
    let export = record.is_export();
    let around = toolstack.filter(|_| record.disks_only.is_none() && !export).map(|toolstack| {
        let domains = listed(toolstack)?;
        let named = with_name(&domains, &record.domain.name).map(|named| (named.id, named.state));
        let same = with_uuid(&domains, record.domain.uuid)?
            .filter(|same| !is_empty_shell(toolstack, same.id.domid, same.state))
            .map(|same| (same.id, same.state));
        let refusal = refuse_domain(&record.domain, named.as_ref(), same.as_ref()).err();
        let domid = same.as_ref().map(|(same, _)| same.domid);
        let mut current = domid.map_or(Ok(Vec::new()), |domid| disks_of(toolstack, domid))?;
        let nodes = domid.map(nodes).unwrap_or_default();
        opened::follow(&nodes, &mut current);
        let replaced = same.as_ref();
        let replaced = replaced
            .map(|(same, _)| opened::troubles(toolstack, same, &taken(&current, record)))
            .unwrap_or_default();
        let others = disks_of_others(toolstack, domid)?;
        Ok::<_, Error>((domid, current, nodes, replaced, others, refusal))
    });
    // Show what is known of the disks nevertheless.
    let (untold, around) = match around.transpose() {
        Ok(around) => (None, around.unwrap_or_default()),
        Err(error) => (Some(error.chain().join(": ")), Default::default()),
    };
    let (same, current, nodes, replaced, others, refusal) = around;
    let overlays = if export { Overlays::default() } else { Overlays::of(record, &current) };
    let mut disks = in_parallel(&record.disks, |disk| {
        let mut place = revert_place(record, disk, now);
        // Overlays are created elsewhere: the export may be on read-only storage.
        place.trouble = place.trouble.filter(|_| !export);
        let mut found = disk_found(disk, place, &current, &others);
        overlays.fill(&mut found);
        found.room = room_needed(&found, false);
        found
    });
    count_live_bitmaps(&nodes, &mut disks);
    let mut needs = need::of_revert(&disks, config, &record.domain.name, export)
        .map_err(|error| trouble(&record.domain.name, error))?;
    needs.extend(need::of_memory(record, &record.domain.name));
    // Another one has it now and then: that says nothing of a later revert.
    needs.retain(|need| need.what != Requirement::Lock);
    let (needed, mut unseen) =
        needs::troubles(&needs, CheckContext { toolstack, gone: same, same });
    let by_name = refusal.map(|refusal| Trouble::of_error(&refusal, Severity::Busy));
    let troubles = by_name.into_iter().chain(replaced).chain(needed).collect();
    unseen.extend(untold);
    Ok(ShowInput { disks, volumes: volumes_for(record), troubles, unseen, runs: same.is_some() })
}

/// The current disks that the snapshot has, too.
fn taken(current: &[Disk], record: &Record) -> Vec<Disk> {
    let taken = |disk: &&Disk| {
        let mut known = record.disks.iter().filter(|known| !known.snapshot.is_left_out());
        known.any(|known| same_vdev(&known.vdev, &disk.vdev))
    };
    current.iter().filter(taken).cloned().collect()
}

/// What the domain's QEMU serves. One that hangs is a reason to revert, and writes nothing any more: it is not waited
/// for.
fn nodes(domid: u32) -> Vec<(String, Node)> {
    Qmp::connect(domid).and_then(|mut qmp| qmp.disks()).unwrap_or_default()
}

/// Counts the bitmaps that QEMU has not written into the images yet.
fn count_live_bitmaps(nodes: &[(String, Node)], disks: &mut [SnapshotDisk]) {
    for (vdev, node) in nodes {
        let disk = disks.iter_mut().find(|disk| same_vdev(&disk.record.vdev, vdev));
        if let Some(disk) = disk {
            disk.live_bitmaps = node.bitmaps;
        }
    }
}

pub(super) fn disk_found(
    disk: &DiskRecord,
    place: Place,
    current: &[Disk],
    others: &[OtherDisk],
) -> SnapshotDisk {
    let content = disk.snapshot.kind().content();
    let (in_qemu, is_vhd) = (content.is_in_chain(), content.is_tap_vhd());
    let left_out = disk.snapshot.is_left_out();
    let top = current.iter().find(|other| same_vdev(&other.vdev, &disk.vdev) && !left_out);
    let walked = |path: &Path, format: Option<Format>| {
        let format = format.ok_or_else(|| "its format is not known".to_owned())?;
        chain::walk(path, format)
    };
    let now = top.filter(|top| in_qemu && top.format.is_some());
    let chain_now = now.map_or(Ok(Vec::new()), |top| walked(top.file(), top.format));
    let own = if in_qemu { walked(&disk.path, disk.format) } else { Ok(Vec::new()) };
    // One process for each disk, whatever the length of its chain.
    let image = match own.as_deref() {
        Ok([link, ..]) => info(&link.path, link.format),
        Ok([]) => Err("its format is not known".to_owned()),
        Err(why) => Err(why.clone()),
    };
    let below = match is_vhd {
        true => vhd_parents(&disk.path),
        false => own
            .as_ref()
            .map(|own| own.iter().skip(1).map(|link| link.path.clone()).collect::<Vec<_>>())
            .map_err(Clone::clone),
    };
    let facts = |path: &Path| files::facts(path).map_err(|error| error.to_string());
    let file = facts(&disk.path);
    let copy = match content {
        Content::Frozen(frozen) => frozen.copy,
        Content::Nowhere | Content::Inside(_) | Content::Volume(_) => None,
    };
    let (frozen, virtual_size) = match content {
        Content::Frozen(Frozen { reader, .. }) => {
            let path = copy.unwrap_or(&disk.path);
            let frozen = copy.map_or_else(|| file.clone(), facts);
            let size = match reader {
                Reader::Qemu => {
                    image.as_ref().map(|image| image.virtual_size).map_err(Clone::clone)
                }
                Reader::TapVhd => vhd_footer(path).map(|vhd| vhd.virtual_size),
                Reader::Raw => frozen.as_ref().map(|file| file.size).map_err(Clone::clone),
            };
            (frozen, size)
        }
        Content::Nowhere | Content::Inside(_) | Content::Volume(_) => {
            let none = || "its snapshot is no file of its own".to_owned();
            (Err(none()), Err(none()))
        }
    };
    let size_then = match (disk.snapshot.kind().content(), own.as_deref()) {
        (Content::Inside(Some(proof)), Ok([image, ..])) => {
            chain::snapshot_virtual_size(image, &proof.id)
        }
        _ => Err("it has no snapshot inside".to_owned()),
    };
    let top_parent = top.filter(|_| is_vhd).and_then(|top| tools::vhd_parent(top.file()));
    let top_parent = top_parent.and_then(|parent| files::identity(&parent));
    let files = [disk.path.as_path()]
        .into_iter()
        .chain(copy)
        .chain(below.iter().flatten().map(PathBuf::as_path));
    let used_by = files.filter_map(|file| other_user(file, others)).next();
    SnapshotDisk {
        file,
        frozen,
        virtual_size,
        // Without the chain we cannot know whether the file is a base.
        image: chain_now.as_ref().map_err(Clone::clone).and(image),
        chain: chain_now.unwrap_or_default(),
        own,
        size_then,
        live_bitmaps: 0,
        top: top.map(|top| top.file().to_owned()),
        top_id: top.and_then(|top| files::identity(top.file())),
        top_parent,
        top_protected: top
            .is_some_and(|top| files::facts(top.file()).is_ok_and(|facts| !facts.writable)),
        below: below.map(|below| {
            let written =
                |path: PathBuf| files::facts(&path).ok().map(|facts| (path, facts.written()));
            below.into_iter().filter_map(written).collect()
        }),
        used_by,
        base_of: None,
        top_base_of: None,
        place,
        room: None,
        record: disk.clone(),
    }
}

/// The place of a new file for the reverted guest: in the directory of the snapshot's file.
fn revert_place(record: &Record, disk: &DiskRecord, now: Timestamp) -> Place {
    place_in(disk.path.parent().unwrap_or(Path::new("/")), record, disk, now)
}

fn place_in(directory: &Path, record: &Record, disk: &DiskRecord, now: Timestamp) -> Place {
    let domain = &record.domain.name;
    let domain = if is_file_part(domain) { domain.as_str() } else { "domain" };
    let name = disk::revert_file_name(domain, disk, &record.name, &stamp(now));
    let path = directory.join(name);
    Place { trouble: files::trouble(&path), path }
}
