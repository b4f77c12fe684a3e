//! Snapshots without memory that were made by hand: a SPEC.toml and the domain's xl configuration file
//! tell which they are. Pure.

use std::path::Path;

use jiff::Timestamp;
use uuid::Uuid;

use crate::disk::FileFacts;
use crate::domain::{Disk, DomainConfig, Format};
use crate::error::{Error, Result};
use crate::record::{DiskRecord, DisksOnly, DomainRecord, FrozenFile, Kept, Record, VERSION};
use crate::spec::{DiskWish, Request, Wish};
use crate::tool::check_path;
use crate::tool::qemu_img::ImageInfo;

/// What is seen of the host, by those who may look.
pub trait Eyes {
    /// What qemu-img says of an image and those below it, top first.
    fn chain(&self, path: &Path, format: Format) -> Result<Vec<ImageInfo>, String>;
    /// What is known of a file.
    fn facts(&self, path: &Path) -> Result<FileFacts, String>;
}

/// The record that `create` would have written.
///
/// # Errors
///
/// If a disk's snapshot is not there, or is not the only one that can be meant; or if a disk that the guest
/// writes to is not named.
pub fn record(
    request: &Request,
    (config, uuid): (&DomainConfig, Uuid),
    cfg: &Path,
    eyes: &dyn Eyes,
    now: Timestamp,
) -> Result<Record> {
    let broken = |why| {
        Error::refused(format!("The configuration {}", cfg.display()))
            .because(why)
            .hint("see what xl says of it: xl create -n FILE")
    };
    let disks = config.disks().map_err(broken)?;
    if let Some(DiskWish { vdev, .. }) =
        request.disks.iter().find(|wish| !disks.iter().any(|disk| disk.vdev == wish.vdev))
    {
        return Err(Error::usage(format!("{} has no disk {vdev}", cfg.display()))
            .hint("correct the vdev in the SPEC.toml"));
    }
    let name = request.name.clone();
    let disks = disks
        .iter()
        .map(|disk| {
            let wish = request.disks.iter().find(|wish| wish.vdev == disk.vdev);
            let (path, format, snapshot) = found(disk, wish.map(|wish| &wish.wish), request, eyes)?;
            Ok(DiskRecord { vdev: disk.vdev.clone(), path, format, snapshot })
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Record {
        version: VERSION,
        complete: true,
        name: name.unwrap_or_else(|| "by-hand".parse().expect("a legal name")),
        id: Uuid::nil(),
        created: now,
        description: request.description.clone(),
        live: false,
        disks_only: Some(DisksOnly::ByHand),
        writer: concat!("xl-snapshot ", env!("CARGO_PKG_VERSION")).into(),
        xen: String::new(),
        image_size: 0,
        parent: None,
        parent_by: None,
        domain: DomainRecord {
            name: config.name().map_err(broken)?.to_owned(),
            uuid,
            guest_type: config.guest_type().map_err(broken)?,
            memory_kib: config.memory_kib(),
            cfg: Some(cfg.to_owned()),
        },
        disks,
    })
}

/// The file with the content, its format and what keeps it.
type Found = (std::path::PathBuf, Option<Format>, Kept);

fn found(disk: &Disk, wish: Option<&Wish>, request: &Request, eyes: &dyn Eyes) -> Result<Found> {
    let refuse = |why: String| {
        let (vdev, path) = (&disk.vdev, disk.file().display());
        Error::refused(format!("Disk {vdev} ({path}) cannot be put back"))
            .because(why)
            .hint("see what there is: qemu-img info --backing-chain -f FORMAT FILE")
    };
    let left_out =
        |why: &str| Ok((disk.file().to_owned(), disk.format, Kept::None { why: why.to_owned() }));
    match wish {
        Some(Wish::None) => return left_out("left out as asked"),
        None if disk.cdrom => return left_out("CD-ROM"),
        None if !disk.writable => return left_out("read-only"),
        None => {
            return Err(refuse("the SPEC.toml does not say which snapshot it has".into()).hint(
                format!(
                    "give it a [[disk]] with vdev = \"{}\" and snapshot = \"internal\", \"external\" or \
                     \"none\"",
                    disk.vdev
                ),
            ));
        }
        Some(_) => {}
    }
    let format = disk.format.ok_or_else(|| refuse("its format is not known".into()))?;
    let chain = eyes.chain(disk.file(), format).map_err(refuse)?;
    // Whatever path leads to it.
    let is = |one: &Path, other: &Path| {
        let id = |path: &Path| eyes.facts(path).map(|facts| facts.id());
        one == other || id(one).is_ok_and(|one| id(other) == Ok(one))
    };
    let top = chain.first().ok_or_else(|| refuse("qemu-img says nothing of it".into()))?;
    match wish {
        Some(Wish::Internal) => {
            let name = request.name.as_ref().ok_or_else(|| {
                Error::usage("The name of the internal snapshots is not known")
                    .hint("add name = \"NAME\" to the SPEC.toml")
            })?;
            let mut named =
                top.snapshots().into_iter().filter(|snapshot| snapshot.name == name.as_str());
            let proof = named.next().ok_or_else(|| refuse(format!("it has no snapshot {name}")))?;
            if named.next().is_some() {
                return Err(refuse(format!("it has several snapshots {name}"))
                    .hint("delete all but one by their numbers: qemu-img snapshot -l, -d"));
            }
            let kept = Kept::Internal { proof: Some(proof) };
            Ok((disk.file().to_owned(), Some(format), kept))
        }
        Some(Wish::External { file }) => {
            let at = match file {
                None => 1,
                Some(file) => chain
                    .iter()
                    .position(|image| is(&image.filename, file))
                    .filter(|at| *at > 0)
                    .ok_or_else(|| refuse(format!("it does not rest on {}", file.display())))?,
            };
            let base = chain.get(at).ok_or_else(|| {
                refuse("it is no overlay: nothing was frozen below it".into()).hint(
                    "the configuration has to name the overlay that was made on the frozen image",
                )
            })?;
            check_path(&base.filename).map_err(|why| refuse(why.to_string()))?;
            // What qemu-img found out by itself, a guest may have written.
            let stated = chain[at - 1].backing_filename_format.as_deref();
            let format = stated.and_then(Format::of_qemu).ok_or_else(|| {
                refuse(format!("the format of {} is not stated above it", base.filename.display()))
                    .hint("qemu-img rebase -u -b BASE -F FORMAT OVERLAY states it")
            })?;
            let facts = eyes.facts(&base.filename).map_err(refuse)?;
            let proof = FrozenFile {
                virtual_size: base.virtual_size,
                file_size: facts.size,
                mtime: facts.mtime,
                inode: facts.inode,
            };
            let overlay = disk.file().to_owned();
            let kept = Kept::External { overlay, proof: Some(proof) };
            Ok((base.filename.clone(), Some(format), kept))
        }
        _ => Err(Error::usage(format!("Disk {}: by hand", disk.vdev))
            .because("only internal and external snapshots are found without a record")
            .hint("xl-snapshot create --record FILE writes one")),
    }
}
