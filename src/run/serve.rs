//! `serve`, from the command line to the end of the last client.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::argument::SnapshotArgument;
use super::output::print;
use super::session::{catch_signals, lock};
use crate::cli::ServeArgs;
use crate::disk::kind::Content;
use crate::disk::{self, SnapshotDisk};
use crate::domain::Format;
use crate::error::{Error, Result};
use crate::export;
use crate::host::command::{CommandError, Server};
use crate::host::lock::LockMode;
use crate::host::socket::{Socket, is_served};
use crate::host::toolstack::Toolstack;
use crate::host::{look, tools};
use crate::names::{is_plain, same_vdev};
use crate::need;
use crate::record::{Record, SECTOR};
use crate::report::{Reporter, Serving};
use crate::spec::absolute;
use crate::tool::qemu_img::Whole;
use crate::tool::qemu_nbd::{self, Export};
use crate::tool::{Tool, check_path, quote};

/// How often it is looked whether the user wants it to end.
const POLL: Duration = Duration::from_millis(100);
/// The longest name of an export (the NBD protocol, NBD_MAX_STRING_SIZE, is longer; QEMU's was once this).
const MAX_EXPORT: usize = 255;

/// Does what the command line asks for.
pub(super) fn serve(args: &ServeArgs) -> Result<()> {
    let (socket, stop) = (socket_path(&args.socket)?, catch_signals()?);
    let export = args.export_name.as_str();
    if export.len() > MAX_EXPORT || !export.chars().all(is_plain) {
        return Err(Error::usage(format!("The name {export:?} of the export"))
            .because(format!("it takes {MAX_EXPORT} bytes of printable text at most")));
    }
    let reporter = Reporter::new(args.quiet, args.verbose);
    let record = SnapshotArgument::open(&args.snapshot)?.snapshot.record;
    let vdev = vdev_of(&record, &args.vdev)?;
    for tool in [Tool::QemuNbd, Tool::QemuImg] {
        tools::need(tool)?;
    }
    // Until qemu-nbd has the files open, which whoever deletes or reverts looks at.
    let operation = format!("serve {} {vdev}", record.name);
    let owner = (record.domain.uuid, record.domain.name.as_str());
    let lock = lock(
        (&reporter, &|| stop.load(Ordering::Relaxed)),
        args.wait,
        owner,
        &operation,
        LockMode::Shared,
    )?;
    // Whoever was waited for may have deleted it, or moved its disks.
    let record = SnapshotArgument::open(&args.snapshot)?.snapshot.record;
    let vdev = vdev_of(&record, &args.vdev)?;
    let (found, from) = look_at(&record, &vdev)?;
    let size = size(&found, &from)?;
    let description = format!("{}/{} {vdev}", record.domain.name, record.name);
    let call =
        qemu_nbd::serve(&from, Export { name: export, description: &description, once: args.once });
    let (held, listener) = Socket::listen(&socket, &reporter)?;
    if reporter.verbosity() > 0 {
        reporter.message(&format!("run {call}"));
    }
    let failed = |why: CommandError| {
        Error::failed(format!(
            "Serving {vdev} of snapshot {} of {}",
            record.name, record.domain.name
        ))
        .because(why)
        .hint("nothing was changed; the snapshot is as it was")
    };
    let server = Server::start(&call, listener).map_err(failed)?;
    let server = match until_it_answers(server, &socket, &stop).map_err(failed)? {
        Some(server) => server,
        // It was stopped, or its only client has gone already.
        None => return Ok(()),
    };
    drop(lock);
    print(
        &Serving {
            name: record.name.to_string(),
            id: record.id,
            domain: record.domain.name.clone(),
            vdev: vdev.clone(),
            snapshot: found.record.snapshot.name(),
            image: from.path().to_owned(),
            size,
            uri: Serving::uri(&socket.to_string_lossy(), export),
            socket,
            export: export.to_owned(),
        },
        args.json,
    )?;
    let ended = until_the_end(server, &stop).map_err(failed);
    drop(held);
    ended
}

fn socket_path(path: &Path) -> Result<PathBuf> {
    let path = absolute(path)?;
    match check_path(&path) {
        Ok(_) => Ok(path),
        Err(why) => Err(Error::usage(format!("The socket {path:?}"))
            .because(why)
            .hint("choose another one, such as /run/NAME.sock")),
    }
}

/// The record's name of a disk, which may have others.
fn vdev_of(record: &Record, wanted: &str) -> Result<String> {
    let disk = record.disks.iter().find(|disk| same_vdev(&disk.vdev, wanted));
    disk.map(|disk| disk.vdev.clone()).ok_or_else(|| {
        let taken = record.disks.iter().filter(|disk| !disk.snapshot.is_left_out());
        let all: Vec<_> = taken.map(|disk| disk.vdev.as_str()).collect();
        let Record { name, domain, .. } = record;
        let hint = match all.as_slice() {
            [] => "it has none at all".into(),
            all => format!("it has {}", all.join(", ")),
        };
        Error::usage(format!("Snapshot {name} of {} has no disk {wanted}", domain.name)).hint(hint)
    })
}

/// The disk, once it is sure that its content is that of the snapshot, and that nobody changes it.
fn look_at(record: &Record, vdev: &str) -> Result<(SnapshotDisk, Whole)> {
    // Without Xen, as on another host, no domain runs.
    let toolstack = Toolstack::open(&Reporter::new(true, 0)).ok();
    let mut alone = record.clone();
    alone.disks.retain(|disk| disk.vdev == vdev);
    // Nothing is copied, to any directory.
    let seen = look::for_export(toolstack.as_ref(), &alone, Path::new("/"))?;
    let copy = export::copies(&alone, &seen.disks, &seen.volumes).pop();
    let found = seen.disks.into_iter().next().expect("the disk is in the record");
    let cannot = format!("Disk {vdev} ({}) cannot be read", found.record.path.display());
    let refused = || Error::refused(cannot.as_str());
    let copy = copy.unwrap_or(Ok(None)).map_err(|mut error| {
        error.message.clone_from(&cannot);
        error
    })?;
    let Some(copy) = copy else {
        let why = found.record.snapshot.kind().why_left_out().unwrap_or_default();
        return Err(refused().because(format!("it is not in the snapshot: {why}")));
    };
    let mut troubles = seen.troubles;
    troubles.iter_mut().for_each(|trouble| trouble.about.clone_from(&cannot));
    if let Some(error) = need::refusal(troubles) {
        return Err(error);
    }
    // QEMU shows it with the size that the image has now.
    if let (Whole::Inside { .. }, Some(then)) = (&copy.from, copy.fit) {
        return Err(refused()
            .because(format!("the image was resized since, and had {}", disk::mib(then)))
            .hint("xl-snapshot export copies it, with the size it had"));
    }
    check_formats(&found, &copy.from)?;
    Ok((found, copy.from))
}

/// Not every QEMU was built with all of its formats.
fn check_formats(found: &SnapshotDisk, from: &Whole) -> Result<()> {
    let mut formats = disk::formats(found);
    formats.push(from.format());
    let rare = |format: &Format| !matches!(format, Format::Raw | Format::Qcow2);
    if !formats.iter().any(rare) {
        return Ok(());
    }
    let known = tools::formats().map_err(|why| {
        Error::refused("The formats that QEMU's tools know cannot be told").because(why)
    })?;
    let missing = |format: &&Format| !known.iter().any(|known| known == format.qemu());
    match formats.iter().find(missing) {
        None => Ok(()),
        Some(format) => Err(Error::refused(format!(
            "Disk {} ({}) cannot be read",
            found.record.vdev,
            quote(from.path())
        ))
        .because(format!(
            "the qemu-nbd of this host knows no {} images ({})",
            format.name(),
            format.qemu()
        ))
        .hint("install the QEMU tools of Debian (qemu-utils), or serve it on another host")),
    }
}

/// The size of the disk in bytes, in whole sectors, as NBD clients see it.
fn size(found: &SnapshotDisk, from: &Whole) -> Result<u64> {
    let size = match (found.record.snapshot.kind().content(), from) {
        (Content::Volume(_), _) => {
            let path = from.path();
            let end = File::open(path).and_then(|mut device| device.seek(SeekFrom::End(0)));
            return end.map_err(|why| {
                Error::refused(format!("The device {}", quote(path)))
                    .because(why)
                    .hint("check that the volume is active: lvs")
            });
        }
        (_, Whole::Inside { .. }) => found.image.as_ref().map(|image| image.virtual_size),
        _ => found.virtual_size.as_ref().map(|size| *size),
    };
    size.map(|size| size.next_multiple_of(SECTOR))
        .map_err(|why| Error::refused(format!("Disk {}", found.record.vdev)).because(why.clone()))
}

/// Waits until a server has opened what it serves; `None` if it has ended before, as it should.
fn until_it_answers(
    mut server: Server,
    socket: &Path,
    stop: &AtomicBool,
) -> Result<Option<Server>, CommandError> {
    loop {
        if is_served(socket, POLL) {
            return Ok(Some(server));
        }
        if server.ended_within(Duration::ZERO)? {
            return server.outcome().map(|()| None);
        }
        if stop.load(Ordering::Relaxed) {
            return server.end().map(|_| None);
        }
        if server.hangs() {
            return Err(server.give_up());
        }
    }
}

/// Waits until the last client has gone, if that is the end, or the user wants it to end.
fn until_the_end(mut server: Server, stop: &AtomicBool) -> Result<(), CommandError> {
    while !server.ended_within(POLL)? {
        if stop.load(Ordering::Relaxed) {
            return server.end().map(drop);
        }
    }
    server.outcome()
}
