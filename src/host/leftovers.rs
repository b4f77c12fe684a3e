//! Looking for what an earlier `create` of a domain has left that was cut short. The domain's lock must
//! be held: what is being made now is no leftover.
//!
//! What lies in the directory of an image may have been put there by anybody. Only a file of root's that
//! nobody else may write to is believed; nothing is opened but regular files; and what another image in
//! that directory needs is left alone.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::disk;
use crate::disk::kind::{self, Content, Role};
use crate::domain::{Disk, DomainId};
use crate::error::{Error, Result};
use crate::host::toolstack::Toolstack;
use crate::host::{command, configured, files, look, record_file, tools};
use crate::leftover::{Leftover, LeftoverKind, NewFile};
use crate::memory::{PARTIAL, read_front};
use crate::record::{NOT_YET, Record};
use crate::tool::Tool;
use crate::tool::qemu_img;

/// What is left of a domain in the directory in which an image or a record goes. `cfg` is its xl configuration file,
/// if that is known: what it names is needed.
pub fn find(
    toolstack: &Toolstack,
    domain: &DomainId,
    cfg: Option<&Path>,
    image: &Path,
) -> Result<Vec<Leftover>> {
    let Some(directory) = image.parent() else { return Ok(Vec::new()) };
    let live = toolstack.domains().map_err(|error| look::trouble("the domains", error))?;
    let live: Vec<Uuid> = live.iter().map(|info| info.uuid).collect();
    let candidates =
        candidates(directory, &|record| is_its(record, domain, &live)).map_err(|error| {
            Error::refused(format!("The directory {} cannot be read", directory.display()))
                .because(error)
                .hint("choose another place with --memory FILE")
        })?;
    let left = candidates.into_iter().map(|candidate| leftover(toolstack, candidate));
    let mut left = left.collect::<Result<Vec<_>>>()?;
    if let Some(cfg) = cfg.filter(|_| left.iter().any(|left| !left.files.is_empty())) {
        match configured::read(cfg).and_then(|read| {
            read.config.disks().map_err(|error| look::trouble(&domain.name, error))
        }) {
            Ok(disks) => keep_named(&mut left, &disks, cfg),
            Err(error) => {
                let why = error.chain().join(": ");
                for left in &mut left {
                    left.unsure.get_or_insert_with(|| why.clone());
                }
            }
        }
    }
    Ok(left)
}

/// What the configuration file names is needed at the domain's next start.
fn keep_named(left: &mut [Leftover], disks: &[Disk], cfg: &Path) {
    for left in left {
        for file in &mut left.files {
            if !disks.iter().any(|disk| files::same(disk.file(), &file.path)) {
                continue;
            }
            file.needed.get_or_insert(format!("{} names it", cfg.display()));
            let from = left.record.disks.iter().find(|disk| {
                let new = disk.snapshot.kind().new_file();
                new.is_some_and(|new| new.path == file.path && new.role != Role::Copy)
            });
            if let Some(disk) = from {
                file.goes_on_from.get_or_insert_with(|| disk.path.clone());
            }
        }
    }
}

/// An unfinished image or record, or one that is complete but for its name.
#[derive(Debug)]
struct Candidate {
    image: PathBuf,
    record: Record,
    what: LeftoverKind,
}

/// Whether a record is of the domain: it has its UUID, or its name and no other domain has the UUID. Without `uuid=` in
/// its configuration file, a domain gets another one at each start, as after a power cut.
fn is_its(record: &Record, domain: &DomainId, live: &[Uuid]) -> bool {
    let recorded = &record.domain;
    recorded.uuid == domain.uuid || recorded.name == domain.name && !live.contains(&recorded.uuid)
}

fn candidates(directory: &Path, is_its: &dyn Fn(&Record) -> bool) -> io::Result<Vec<Candidate>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        // Made when it is needed, or refused later, with more words.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    let is_partial = |path: &Path| path.as_os_str().as_bytes().ends_with(PARTIAL.as_bytes());
    let (partial, others): (Vec<_>, Vec<_>) = paths.into_iter().partition(|path| is_partial(path));
    // What cannot be read is nothing that we could say anything about.
    let found = partial.into_iter().filter_map(|path| candidate(path).ok());
    let mut found: Vec<_> = found.filter(|it| is_its(&it.record)).collect();
    if !found.is_empty() {
        // A snapshot that somebody has already, of which this is a copy on its way, or a second name.
        let known: BTreeSet<_> =
            others.iter().filter_map(|path| Some(front(&open(path).ok()?).ok()?.id)).collect();
        found.retain(|it| it.what == LeftoverKind::SecondName || !known.contains(&it.record.id));
    }
    found.sort_by(|one, other| one.image.cmp(&other.image));
    Ok(found)
}

fn candidate(image: PathBuf) -> io::Result<Candidate> {
    let file = open(&image)?;
    let record = front(&file)?;
    let name = image.as_os_str().as_bytes();
    let named = Path::new(std::ffi::OsStr::from_bytes(&name[..name.len() - PARTIAL.len()]));
    let what = match record.complete {
        true if files::has_name(&file, named) => LeftoverKind::SecondName,
        true => LeftoverKind::Complete,
        // One that went through a pipe: somebody copies it here. It tells only at its end whether it
        // is complete.
        false if record.disks_only.is_none() && record.image_size != NOT_YET => {
            return Err(io::ErrorKind::InvalidData.into());
        }
        false => LeftoverKind::Unfinished,
    };
    Ok(Candidate { image, record, what })
}

/// Opens a regular file that only root can have written.
fn open(path: &Path) -> io::Result<File> {
    if !fs::symlink_metadata(path)?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let file = files::open(path)?;
    let meta = file.metadata()?;
    match files::is_ours(&meta) {
        true => Ok(file),
        false => Err(io::ErrorKind::PermissionDenied.into()),
    }
}

fn front(mut file: &File) -> io::Result<Record> {
    if let Some(record) = record_file::in_file(file)? {
        return Ok(record);
    }
    read_front(&mut file).map(|(_, record)| record).map_err(io::Error::other)
}

fn leftover(toolstack: &Toolstack, candidate: Candidate) -> Result<Leftover> {
    let Candidate { image, record, what } = candidate;
    let mut left =
        Leftover { image, record, what, files: Vec::new(), volumes: Vec::new(), unsure: None };
    if what != LeftoverKind::Unfinished {
        return Ok(left);
    }
    let mut tags = Vec::new();
    for disk in &left.record.disks {
        let snapshot = disk.snapshot.kind();
        if let Content::Volume(_) = snapshot.content() {
            tags.push(disk::volume_tag(left.record.id, &disk.vdev));
        }
        if let Some(kind::NewFile { path, role }) = snapshot.new_file() {
            let needed = match role {
                Role::Overlay => overlay,
                // Nothing tells whether they were used since.
                Role::Child | Role::Copy => {
                    |_: &Path| Some("check yourself whether you need it".to_owned())
                }
            };
            left.files.extend(new_file(toolstack, &disk.path, (path, role), needed)?);
        }
    }
    // Where there is no LVM, there are no volumes.
    if !tags.is_empty() && command::find(Tool::Lvm).is_ok() {
        match tools::volumes() {
            Ok(all) => {
                for volume in all {
                    let tag = tags.iter().find(|tag| volume.has_tag(tag)).cloned();
                    left.volumes.extend(tag.map(|tag| (volume, tag)));
                }
            }
            // A snapshot of other disks is none of its business.
            Err(why) => left.unsure = Some(format!("the logical volumes cannot be listed: {why}")),
        }
    }
    Ok(left)
}

fn new_file(
    toolstack: &Toolstack,
    base: &Path,
    (path, role): (&Path, Role),
    still_needed: fn(&Path) -> Option<String>,
) -> Result<Option<NewFile>> {
    let Ok(meta) = fs::symlink_metadata(path) else { return Ok(None) };
    let not_ours = if !meta.is_file() {
        Some("it is not a regular file: create has not made it".to_owned())
    } else if !files::is_ours(&meta) {
        Some("others than root may have written to it".to_owned())
    } else {
        None
    };
    let used = look::user(toolstack, path)?.map(|user| format!("{user} uses it"));
    let (strange, in_use) = (not_ours.is_some(), used.is_some());
    let needed = not_ours.or(used).or_else(|| still_needed(path));
    // A copy is not what a guest goes on in.
    let goes_on = match role {
        Role::Copy => false,
        Role::Child => in_use,
        Role::Overlay => in_use || !strange && needed.is_some(),
    };
    let goes_on_from = goes_on.then(|| base.to_owned());
    Ok(Some(NewFile { path: path.to_owned(), needed, goes_on_from }))
}

/// Why an overlay must stay, if it must.
fn overlay(path: &Path) -> Option<String> {
    match files::facts(path) {
        Ok(facts) if !facts.writable => return Some("it is the base of other images".into()),
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

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;
    use crate::disk::kinds::External;
    use crate::host::image::ImageWriter;
    use crate::memory::partial_path;
    use crate::plan::{ImageStart, Target};
    use crate::support::record::sample;

    fn start(path: PathBuf, compress: Option<&str>) -> ImageStart {
        ImageStart {
            target: Target::File(path),
            make_directory: false,
            config: r#"{"c_info":{"name":"web1"}}"#.into(),
            record: Record { complete: false, image_size: NOT_YET, id: Uuid::new_v4(), ..sample() },
            compress: compress.map(|text| text.parse().unwrap()),
        }
    }

    fn names(directory: &Path) -> Vec<(String, LeftoverKind)> {
        let found = candidates(directory, &|record| record.domain == sample().domain).unwrap();
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        found.iter().map(|it| (name(&it.image), it.what)).collect()
    }

    #[test]
    fn a_domain_that_was_started_anew_is_known_by_its_name() {
        let record = sample();
        let id = |uuid, name: &str| DomainId { domid: 7, uuid, name: name.into() };
        let (own, new) = (record.domain.uuid, Uuid::new_v4());
        let name = record.domain.name.clone();
        assert!(is_its(&record, &id(own, "renamed"), &[own]));
        assert!(is_its(&record, &id(new, &name), &[new]));
        assert!(!is_its(&record, &id(new, &name), &[new, own]), "the one of then still runs");
        assert!(!is_its(&record, &id(new, "other"), &[new]));
    }

    #[test]
    fn what_was_begun_is_found_plain_and_compressed() {
        let directory = tempfile::tempdir().unwrap();
        for (name, compress) in [("a.xlsave", None), ("b.xlsave.zst", Some("zstd"))] {
            // As a power cut leaves it: the header alone.
            std::mem::forget(ImageWriter::start(&start(directory.path().join(name), compress)));
        }
        let expected = ["a.xlsave.partial", "b.xlsave.zst.partial"]
            .map(|name| (name.to_owned(), LeftoverKind::Unfinished));
        assert_eq!(names(directory.path()), expected);
        assert!(candidates(directory.path(), &|_| false).unwrap().is_empty());
        assert!(candidates(&directory.path().join("x"), &|_| true).unwrap().is_empty());
    }

    #[test]
    fn a_record_without_memory_that_was_begun_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web1.record");
        let record = Record {
            complete: false,
            id: Uuid::new_v4(),
            disks_only: Some(crate::record::DisksOnly::Offline),
            ..sample()
        };
        let file = record_file::RecordFile::start(&path, &record).unwrap();
        assert_eq!(
            names(directory.path()),
            [("web1.record.partial".into(), LeftoverKind::Unfinished)]
        );
        // One that is there already, of which this is a copy.
        let copy = directory.path().join("copy");
        fs::copy(partial_path(&path), &copy).unwrap();
        assert!(names(directory.path()).is_empty());
        fs::remove_file(&copy).unwrap();
        fs::write(&copy, "is no record").unwrap();
        assert_eq!(names(directory.path()).len(), 1);
        file.complete(&Record { complete: true, ..record }).unwrap();
        assert!(names(directory.path()).is_empty());
    }

    #[test]
    fn what_a_configuration_file_names_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("o.qcow2");
        fs::write(&path, "").unwrap();
        let config =
            serde_json::json!({"disks": [{"vdev": "xvda", "pdev_path": path}]}).to_string();
        let disks = crate::domain::DomainConfig::parse(&config).unwrap().disks().unwrap();
        let of = |path: PathBuf| {
            let (image, mut record) = ("/x.partial".into(), sample());
            record.disks[1].snapshot = External { overlay: path.clone(), proof: None }.into();
            let files = vec![NewFile { path, needed: None, goes_on_from: None }];
            let what = LeftoverKind::Unfinished;
            let mut left = [Leftover { image, record, what, files, volumes: vec![], unsure: None }];
            keep_named(&mut left, &disks, Path::new("/etc/xen/web1.cfg"));
            let kept = left[0].is_kept();
            (left[0].files[0].needed.clone(), kept)
        };
        let named = Some("/etc/xen/web1.cfg names it".to_owned());
        assert_eq!(of(path.clone()), (named, true));
        assert_eq!(of("/no/such".into()), (None, false));
    }

    #[test]
    fn what_others_may_have_written_is_not_believed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.xlsave");
        let partial = partial_path(&path);
        std::mem::forget(ImageWriter::start(&start(path, None)));
        let kept = fs::read(&partial).unwrap();
        for mode in [0o620, 0o602] {
            fs::set_permissions(&partial, Permissions::from_mode(mode)).unwrap();
            assert!(names(directory.path()).is_empty(), "{mode:o}");
        }
        fs::remove_file(&partial).unwrap();
        let elsewhere = tempfile::NamedTempFile::new().unwrap();
        fs::write(elsewhere.path(), &kept).unwrap();
        symlink(elsewhere.path(), &partial).unwrap();
        // Nobody ever writes into it.
        mkfifo(&directory.path().join("f.partial"), Mode::S_IRWXU).unwrap();
        symlink("/dev/zero", directory.path().join("z.partial")).unwrap();
        assert!(names(directory.path()).is_empty());
    }

    #[test]
    fn what_a_good_snapshot_needs_is_no_leftover() {
        let directory = tempfile::tempdir().unwrap();
        let make = |name: &str, complete: bool, id: Uuid| {
            let path = directory.path().join(name);
            let size = if complete { 0 } else { NOT_YET };
            let record = Record { complete, id, image_size: size, ..sample() };
            let start = ImageStart { record, ..start(path.clone(), None) };
            let writer = ImageWriter::start(&start).unwrap();
            (writer, start, path)
        };
        // A copy of an image that is there, whole or of its beginning.
        let id = Uuid::new_v4();
        for name in ["a.xlsave", "copy.xlsave"] {
            std::mem::forget(make(name, false, id));
        }
        assert_eq!(names(directory.path()).len(), 2);
        fs::rename(directory.path().join("a.xlsave.partial"), directory.path().join("a")).unwrap();
        assert!(names(directory.path()).is_empty());
        // One of a pipe, of which only its end tells that it is complete.
        let (_, start, _) = make("pipe.xlsave", false, Uuid::new_v4());
        fs::remove_file(directory.path().join("pipe.xlsave.partial")).unwrap();
        let record = Record { image_size: 0, ..start.record.clone() };
        std::mem::forget(ImageWriter::start(&ImageStart { record, ..start }));
        assert!(names(directory.path()).is_empty());
        // One that only lacks its name, and one that has two.
        let (_, _, path) = make("c.xlsave", true, Uuid::new_v4());
        assert_eq!(names(directory.path()), [("c.xlsave.partial".into(), LeftoverKind::Complete)]);
        fs::hard_link(partial_path(&path), &path).unwrap();
        assert_eq!(
            names(directory.path()),
            [("c.xlsave.partial".into(), LeftoverKind::SecondName)]
        );
    }

    #[test]
    fn an_overlay_is_looked_into_and_not_what_it_names() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("o.qcow2");
        let size = 1 << 20;
        let base = Path::new("/no/such/base");
        let make = qemu_img::create_overlay(&path, base, crate::domain::Format::Raw, size);
        command::run(&make).unwrap();
        assert_eq!(overlay(&path), None);
        let fifo = directory.path().join("fifo");
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        assert!(overlay(&fifo).unwrap().contains("not a regular file"));
        // A guest that has written zeros has written.
        let io = crate::tool::Invocation::new(
            Tool::QemuImg,
            ["convert", "-f", "raw", "-O", "qcow2", "-S", "0"],
        );
        let raw = directory.path().join("raw");
        File::create(&raw).unwrap().set_len(size).unwrap();
        command::run(&io.arg(&raw).arg(&path)).unwrap();
        assert!(overlay(&path).unwrap().contains("has written"));
    }
}
