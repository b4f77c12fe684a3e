//! Looking for what an earlier `create` of a domain has left that was cut short. The domain's lock must
//! be held: what is being made now is no leftover.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use uuid::Uuid;

use crate::disk::lvm;
use crate::disk::qemu_img;
use crate::error::{Error, Result};
use crate::host::dom0::Dom0;
use crate::host::{command, files, look};
use crate::leftover::{Leftover, NewFile};
use crate::memory::PARTIAL;
use crate::memory::header::{Header, Tail};
use crate::record::{Kept, Record};

/// What is left of a domain in the directory in which an image goes.
pub fn find(dom0: &Dom0, domain: Uuid, image: &Path) -> Result<Vec<Leftover>> {
    let Some(directory) = image.parent() else { return Ok(Vec::new()) };
    let trouble = |error: io::Error| {
        Error::refused(format!("The directory {} cannot be read", directory.display()))
            .because(error)
            .hint("choose another place with --memory FILE")
    };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        // Made when it is needed, or refused later, with more words.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(trouble(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(trouble)?.path();
        let unfinished = path.as_os_str().as_bytes().ends_with(PARTIAL.as_bytes());
        // One that cannot be read is nothing that we could say anything about.
        let record = unfinished.then(|| record(&path).ok()).flatten();
        if let Some(record) = record.filter(|record| record.domain.uuid == domain) {
            found.push(leftover(dom0, &path, record)?);
        }
    }
    found.sort_by(|one, other| one.image.cmp(&other.image));
    Ok(found)
}

fn record(path: &Path) -> io::Result<Record> {
    let mut file = files::open_no_link(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let Header { tail, .. } = Header::read(&mut file).map_err(io::Error::other)?;
    let Tail::Record(text) = tail else { return Err(io::ErrorKind::InvalidData.into()) };
    Record::parse(&text).map_err(io::Error::other)
}

fn leftover(dom0: &Dom0, image: &Path, record: Record) -> Result<Leftover> {
    let mut files = Vec::new();
    let mut tags = Vec::new();
    for disk in &record.disks {
        match &disk.snapshot {
            Kept::None { .. } | Kept::Internal { .. } => {}
            Kept::Lvm { .. } => tags.push(lvm::tag(record.id, &disk.vdev)),
            Kept::External { overlay: path, .. } => files.extend(new_file(dom0, path, overlay)?),
            Kept::Reflink { copy: path, .. } | Kept::Vhd { child: path, .. } => {
                // Nothing tells whether they were used since.
                let unsure = |_: &Path| Some("look yourself whether it is of use".to_owned());
                files.extend(new_file(dom0, path, unsure)?);
            }
        }
    }
    let mut volumes = Vec::new();
    if !tags.is_empty() {
        let all = look::volumes().map_err(|why| {
            Error::refused("The logical volumes cannot be listed")
                .because(why)
                .hint("see what lvs says")
        })?;
        for volume in all {
            let tag = tags.iter().find(|tag| volume.has_tag(tag)).cloned();
            volumes.extend(tag.map(|tag| (volume, tag)));
        }
    }
    Ok(Leftover { image: image.to_owned(), record, files, volumes })
}

fn new_file(
    dom0: &Dom0,
    path: &Path,
    still_needed: fn(&Path) -> Option<String>,
) -> Result<Option<NewFile>> {
    if fs::symlink_metadata(path).is_err() {
        return Ok(None);
    }
    let used = look::user(dom0, path)?.map(|user| format!("{user} uses it"));
    Ok(Some(NewFile { path: path.to_owned(), needed: used.or_else(|| still_needed(path)) }))
}

/// Why an overlay must stay, if it must.
fn overlay(path: &Path) -> Option<String> {
    match files::facts(path) {
        Ok(facts) if !facts.writable => return Some("other images rest on it".into()),
        Ok(_) => {}
        Err(error) => return Some(error.to_string()),
    }
    let content = command::run(&qemu_img::map(path))
        .map_err(|error| error.to_string())
        .and_then(|output| qemu_img::has_own_content(&output).map_err(|error| error.to_string()));
    match content {
        Ok(false) => None,
        Ok(true) => Some("the guest has written to it".into()),
        Err(why) => Some(why),
    }
}
