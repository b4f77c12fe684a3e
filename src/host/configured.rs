//! Looking at a domain that does not run: what its xl configuration file says, by xl itself, and its disks.
//! Changes nothing.

use std::path::Path;

use jiff::Timestamp;
use uuid::Uuid;

use crate::create::{CreateInput, Job, drives};
use crate::disk::HostView;
use crate::disk::{FileFacts, Node, Place, RunningDisk, Served};
use crate::domain::{Disk, DomainConfig, DomainId, Format};
use crate::error::{Error, Result};
use crate::host::libxl::XlCfg;
use crate::host::look::{
    self, Domain, OtherDisk, disks_of_others, dom0_qemu, image_place, other_user, spaces, trouble,
    volumes_under,
};
use crate::host::tools::{self, chain, need, vhd_facts};
use crate::host::toolstack::Toolstack;
use crate::host::{command, files};
use crate::record::{Record, SECTOR};
use crate::revert::by_hand;
use crate::spec::Request;
use crate::state::State;
use crate::tool::qemu_img::ImageInfo;
use crate::tool::{Tool, check_path, dry_run};

/// A domain as its configuration file has it.
#[derive(Debug, Clone)]
pub struct Configured {
    /// The configuration; its UUID means something only if the file names one.
    pub config: DomainConfig,
    /// The UUID that the file names; nil if it names none.
    pub uuid: Uuid,
}

/// Reads a configuration file.
///
/// # Errors
///
/// If xl would not start a domain from it.
pub fn read(path: &Path) -> Result<Configured> {
    let refused = || {
        Error::refused(format!("No domain could be started from {}", path.display()))
            .hint("check the file: xl create -n FILE")
    };
    check_path(path).map_err(|why| refused().because(why))?;
    let uuid = XlCfg::open(path)
        .and_then(|cfg| cfg.string(c"uuid"))
        .map_err(|why| refused().because(why))?
        .and_then(|text| text.parse().ok())
        .unwrap_or(Uuid::nil());
    let output = command::run(&dry_run(path)).map_err(|why| refused().because(why))?;
    let text = String::from_utf8_lossy(&output);
    if !text.contains('{') && text.lines().any(|line| line.starts_with("(domain")) {
        return Err(refused()
            .because("xl prints no JSON: output_format=\"sxp\" in xl.conf")
            .hint("set output_format=\"json\" in xl.conf"));
    }
    // Behind what xl may have to say.
    let json = text.find('{').map_or("", |start| &text[start..]);
    let config = DomainConfig::parse(json).map_err(|why| refused().because(why))?;
    Ok(Configured { config, uuid })
}

/// Looks for the snapshots without memory that somebody made by hand, as a SPEC.toml tells.
pub fn by_hand(request: &Request, cfg: &Path, now: Timestamp) -> Result<Record> {
    look::name_in(cfg)?;
    let Configured { config, uuid } = read(cfg)?;
    by_hand::record(request, (&config, uuid), cfg, &Host, now)
}

/// What is there.
struct Host;

impl HostView for Host {
    fn chain(&self, path: &Path, format: Format) -> Result<Vec<ImageInfo>, String> {
        chain(path, format)
    }

    fn facts(&self, path: &Path) -> Result<FileFacts, String> {
        files::facts(path).map_err(|error| error.to_string())
    }
}

/// Looks at a domain that does not run, for `create`.
pub fn for_create(
    toolstack: &Toolstack,
    domain: &Domain,
    cfg: &Path,
    job: &Job,
) -> Result<CreateInput> {
    for tool in [Tool::QemuImg, Tool::Xl] {
        need(tool)?;
    }
    let Configured { config, uuid } = read(cfg)?;
    let others = disks_of_others(toolstack, None)?;
    let disks: Vec<RunningDisk> = config
        .disks()
        .map_err(|error| trouble(&domain.id.name, error))?
        .into_iter()
        .map(|disk| disk_seen(&domain.id.name, job, disk, &others))
        .collect();
    let volumes = volumes_under(&disks);
    let version = toolstack.version().map_err(|error| trouble("Xen", error))?;
    let image = image_place(job, &domain.id.name)?;
    Ok(CreateInput {
        domain: DomainId { domid: 0, uuid, name: domain.id.name.clone() },
        state: State::Off,
        stored: String::new(),
        drives: drives::configured(&config),
        volumes,
        cfg: Some(cfg.to_owned()),
        monitor: None,
        unsure_monitors: Vec::new(),
        saver: None,
        xen: version.to_string(),
        dom0_qemu: dom0_qemu(toolstack)?,
        shadow_paging: false,
        spaces: spaces(&disks, &image),
        way: None,
        above_target: None,
        disks,
        image,
        troubles: Vec::new(),
        overlay_troubles: Vec::new(),
        config,
    })
}

fn disk_seen(domain: &str, job: &Job, disk: Disk, others: &[OtherDisk]) -> RunningDisk {
    let path = disk.file();
    let mut file = files::facts(path).map_err(|error| error.to_string());
    let mut node = None;
    if file.is_ok() && !disk.cdrom && !disk.is_tap_vhd() {
        match disk.format.map(|format| image(path, format)).transpose() {
            Ok(image) => node = image,
            Err(why) => file = Err(why),
        }
    }
    // The kernel will serve it, and leave out a last sector that is not whole; qemu-img counts it.
    let in_kernel = disk.format == Some(Format::Raw) && !disk.by_qemu && disk.script.is_none();
    if let (true, Some(node), Ok(facts)) = (in_kernel, &mut node, &file) {
        node.virtual_size = facts.size - facts.size % SECTOR;
    }
    let reflink = job.clones(&disk.vdev);
    let own = look::own(&disk);
    let below = look::below(&own);
    RunningDisk {
        served: Some(Served::Nobody),
        params: Vec::new(),
        node,
        file,
        device: files::device(path),
        place: job
            .new_file(domain, &disk)
            .map(|path| Place { trouble: files::trouble(&path), path }),
        used_by: other_user(path, others),
        sectors: None,
        clone_trouble: reflink.then(|| files::clone_trouble(path)).flatten(),
        own,
        below,
        vhd: vhd_facts(&disk),
        disk,
    }
}

/// An image as its QEMU would see it.
fn image(path: &Path, format: Format) -> Result<Node, String> {
    let info = tools::image(path, format)?;
    Ok(Node {
        name: String::new(),
        file: path.to_owned(),
        read_only: false,
        virtual_size: info.virtual_size,
        snapshots: info.snapshots(),
        driver: info.format,
        elsewhere: None,
        bitmaps: 0,
        emulated: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Spec;

    #[test]
    fn a_raw_file_is_as_long_as_what_will_serve_it_says() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(67_000_000).unwrap();
        let job = Job::new(Spec::default().request().unwrap(), Timestamp::UNIX_EPOCH, Uuid::nil());
        for (backend, size) in [("", 66_999_808), (r#""backend": "qdisk","#, 67_000_320)] {
            let path = file.path().display();
            let json = format!(
                r#"{{"disks": [{{"pdev_path": "{path}", "vdev": "xvda", {backend} "format": "raw"}}]}}"#
            );
            let disk = DomainConfig::parse(&json).unwrap().disks().unwrap().remove(0);
            let seen = disk_seen("web1", &job, disk, &[]);
            assert_eq!(seen.virtual_size(), Some(size), "{backend}");
        }
    }
}
