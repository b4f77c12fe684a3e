//! What the disks' tools answer: qemu-img, lvs, vhd-util. Changes nothing.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::domain::{Disk, Format};
use crate::error::{Error, Result};
use crate::host::parallel::in_parallel;
use crate::host::{chain, command, files};
use crate::tool::allocation;
use crate::tool::volumes::{self, Volume};
use crate::tool::{Invocation, Tool, check_path, parse_served};
use crate::tool::{qemu_img, vhd_util};

/// Refuses if a tool is not there.
pub fn need(tool: Tool) -> Result<()> {
    let missing = |why| Error::refused(format!("{} is needed", tool.name())).because(why);
    command::find(tool).map(drop).map_err(|why| missing(why).hint(tool.remedy()))
}

/// What qemu-img says of an image, once it is known that nothing else would be opened with it.
pub fn image(path: &Path, format: Format) -> Result<qemu_img::ImageInfo, String> {
    chain::walk(path, format)?;
    info(path, format)
}

/// An image and those below it, top first.
pub fn chain(path: &Path, format: Format) -> Result<Vec<qemu_img::ImageInfo>, String> {
    let links = chain::walk(path, format)?;
    in_parallel(links, |link| info(&link.path, link.format)).into_iter().collect()
}

/// What qemu-img says of an image of a chain that was walked.
pub fn info(path: &Path, format: Format) -> Result<qemu_img::ImageInfo, String> {
    let output = command::run(&qemu_img::info(path, format)).map_err(|error| error.to_string())?;
    qemu_img::ImageInfo::parse(&output)
        .map_err(|error| format!("qemu-img's answer on {}: {error}", path.display()))
}

/// The formats that QEMU's tools know.
pub fn formats() -> Result<Vec<String>, String> {
    let output = command::run(&qemu_img::help()).map_err(|error| error.to_string())?;
    let formats = parse_served(&String::from_utf8_lossy(&output))
        .map(|all| all.into_iter().map(str::to_owned).collect());
    formats.ok_or_else(|| "qemu-img does not say which formats it knows".to_owned())
}

/// The size of the copy that `measure` asks for, of something in `from`.
pub fn measure(from: &Path, measure: &Invocation) -> Result<u64, String> {
    let output = command::run(measure);
    qemu_img::parse_measure(&output.map_err(|error| error.to_string())?)
        .map_err(|error| format!("qemu-img's answer on {}: {error}", from.display()))
}

/// The host's logical volumes.
pub fn volumes() -> Result<Vec<Volume>, String> {
    let output = command::run(&volumes::report()).map_err(|error| error.to_string())?;
    volumes::parse(&output).map_err(|error| format!("lvs's answer: {error}"))
}

/// The same, with what LVM lets be allocated for snapshots of volumes, or for volumes from snapshots.
pub fn volumes_for(planned: &dyn Fn(&Volume) -> bool) -> Result<Vec<Volume>, String> {
    let mut all = volumes()?;
    let planned: Vec<Volume> = all.iter().filter(|volume| planned(volume)).cloned().collect();
    let (thin, thick): (Vec<_>, Vec<_>) = planned.iter().partition(|volume| volume.is_thin());
    if !thin.is_empty() {
        // It fails where there is no lvm.conf, and then nothing limits a pool.
        let answer = command::run(&allocation::threshold()).unwrap_or_default();
        let of_all = allocation::parse_threshold(&String::from_utf8_lossy(&answer));
        let of = |volume: &&Volume, pool: &Volume| {
            (&volume.group, &volume.pool) == (&pool.group, &pool.name)
        };
        let pools = all.iter_mut().filter(|pool| thin.iter().any(|volume| of(volume, pool)));
        for pool in pools {
            let own = (!pool.profile.is_empty()).then(|| profile(&pool.profile)).flatten();
            pool.threshold = own.or(of_all);
        }
    }
    if !thick.is_empty() {
        let output = command::run(&allocation::physical()).map_err(|error| error.to_string())?;
        let physical = allocation::parse_physical(&output);
        let physical = physical.map_err(|error| format!("pvs's answer: {error}"))?;
        allocation::hold_back(&mut all, &physical);
    }
    Ok(all)
}

/// The threshold in a profile of LVM's. Where there is none, LVM goes by its own configuration.
fn profile(name: &str) -> Option<u64> {
    let path = Path::new("/etc/lvm/profile").join(format!("{name}.profile"));
    allocation::parse_threshold(&fs::read_to_string(path).ok()?)
}

/// What is known of a disk as a VHD, if it is one.
pub fn vhd_facts(disk: &Disk) -> Option<Result<vhd_util::Facts, String>> {
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
        let output =
            command::run(&vhd_util::query_depth(file)).map_err(|error| error.to_string())?;
        Ok(vhd_util::parse_depth(&output))
    };
    Some(vhd_footer(file).and_then(|facts| Ok(vhd_util::Facts { depth: depth()?, ..facts })))
}

/// A VHD that grows has a copy of its footer at its start, and tapdisk spoils the one at the end
/// while the disk is in use (blktap, block-vhd.c, `vhd_kill_footer`).
pub fn vhd_footer(path: &Path) -> Result<vhd_util::Facts, String> {
    files::ends::<{ vhd_util::FOOTER }>(path)
        .map_err(|error| error.to_string())?
        .iter()
        .find_map(vhd_util::Facts::of_footer)
        .ok_or_else(|| "it has no footer of a VHD".to_owned())
}

/// The file that a VHD names as its parent, if it names one.
pub fn vhd_parent(path: &Path) -> Option<PathBuf> {
    check_path(path).ok()?;
    let output = command::run(&vhd_util::query_parent(path)).ok()?;
    vhd_util::parse_parent(&output)
}

/// The VHDs below one, down to that which has no parent. A child names its parent by the path, and
/// knows its UUID: another VHD there would be found out only when tapdisk opens it.
pub fn vhd_parents(path: &Path) -> Result<Vec<PathBuf>, String> {
    let of = |path: &Path, why: &dyn fmt::Display| format!("{}: {why}", path.display());
    let footer_of = |path: &Path| vhd_footer(path).map_err(|why| of(path, &why));
    let mut parents: Vec<PathBuf> = Vec::new();
    let mut child = path.to_owned();
    let mut footer = footer_of(path)?;
    while footer.differencing {
        let header = files::part(&child, footer.header).map_err(|error| of(&child, &error))?;
        let output =
            command::run(&vhd_util::query_parent(&child)).map_err(|error| error.to_string())?;
        let parent = vhd_util::parse_parent(&output)
            .filter(|parent| *parent != path && !parents.contains(parent))
            .ok_or_else(|| of(&child, &"vhd-util does not tell its parent"))?;
        footer = footer_of(&parent)?;
        if vhd_util::parent_uuid(&header) != Some(footer.uuid) {
            return Err(of(&child, &format!("its parent {} is another VHD", parent.display())));
        }
        parents.push(parent.clone());
        child = parent;
    }
    Ok(parents)
}
