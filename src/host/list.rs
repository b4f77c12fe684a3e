//! Looking at snapshots, disks and domains for `list`. Changes nothing.
//!
//! Directories may have anything in them: only regular files are opened, of which the first bytes are read,
//! and nothing that an image names is opened but what its stated formats make a disk.

mod disks;

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use self::disks::{BLOCK, file, nowhere};
use crate::create::Job;
use crate::disk::image_tree::is_our_name;
use crate::disk::kind::{Content, Frozen};
use crate::domain::DomainConfig;
use crate::error::{Error, Result};
use crate::host::libxl::LibxlError;
use crate::host::parallel::in_parallel;
use crate::host::toolstack::Toolstack;
use crate::host::{extents, files, tools};
use crate::list::{self, CurrentDisk, FileKind, Files, ImageEntry, Inventory, NotNamed, Running};
use crate::memory::deleting_path;
use crate::memory::peek::{Effort, Extent, Peek, peek};
use crate::names::SnapshotName;
use crate::plan::Target;
use crate::record::{Parent, ParentSource, Record};
use crate::report::Reporter;
use crate::spec;
use crate::tool::quote;

/// How long all files together are asked what they share: a list is to come at once.
const SHARED: Duration = Duration::from_millis(500);

// ---- images

/// Where snapshots are looked for if no directory is named.
///
/// # Errors
///
/// If the user has set one that is not there: it may not be mounted, or be misspelt, and is not to look empty. The
/// default one comes with the first snapshot.
pub fn directory() -> Result<PathBuf> {
    let variable = env::var_os(spec::DIRECTORY_VARIABLE).filter(|value| !value.is_empty());
    let is_set = variable.is_some();
    let directory = spec::directory(variable)?;
    match fs::metadata(&directory) {
        Err(error) if is_set && error.kind() == io::ErrorKind::NotFound => {
            let name = format!("{}={}", spec::DIRECTORY_VARIABLE, quote(&directory));
            Err(Error::refused(name).because("There is no such directory").hint(format!(
                "create makes it with the first snapshot; otherwise check what is mounted: findmnt -T {}",
                quote(&directory)
            )))
        }
        _ => Ok(directory),
    }
}

/// What there is in directories and one level below them; of those `alone`, not below them.
///
/// # Errors
///
/// If one of them cannot be read; one that is not there is empty.
pub fn images(
    directories: &[PathBuf],
    alone: &[PathBuf],
    unseen: &mut Vec<String>,
) -> io::Result<Vec<ImageEntry>> {
    let mut paths = BTreeSet::new();
    for directory in directories.iter().chain(alone) {
        for path in entries(directory)? {
            if !path.is_dir() {
                paths.insert(path);
                continue;
            }
            if !directories.contains(directory) {
                continue;
            }
            match entries(&path) {
                Ok(below) => paths.extend(below.into_iter().filter(|path| !path.is_dir())),
                Err(error) => unseen.push(format!("{}: {error}", path.display())),
            }
        }
    }
    let until = Instant::now() + SHARED;
    let seen = in_parallel(paths, |path| image(path, Effort::Little, until));
    // One at a time, so that a thousand of them cost no more memory than one.
    let whole = |image: ImageEntry| match image.peek {
        Ok(Peek::Later) => self::image(image.path, Effort::Full, until),
        _ => image,
    };
    Ok(seen.into_iter().map(whole).collect())
}

fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// What one file is.
pub fn one(path: PathBuf) -> ImageEntry {
    image(path, Effort::Full, Instant::now() + SHARED)
}

fn image(path: PathBuf, effort: Effort, until: Instant) -> ImageEntry {
    let look = || -> io::Result<_> {
        let meta = fs::metadata(&path)?;
        // An empty one is nothing of ours; and of /proc, reading may wait.
        if !meta.is_file() || meta.len() == 0 {
            let id = (meta.dev(), meta.ino());
            let what = if meta.is_file() {
                Ok(Peek::Foreign)
            } else {
                Err("it is not a regular file".to_owned())
            };
            return Ok((id, [0, 0], None, what));
        }
        let mut file = files::open(&path)?;
        let meta = file.metadata()?;
        let mut peeked = peek(&mut file, meta.len(), effort).map_err(|error| error.to_string());
        let mut shared = None;
        if let Ok(Peek::Snapshot { record, extent, .. }) = &mut peeked {
            if let Some(directory) = path.parent() {
                record.found_in(&std::path::absolute(directory)?);
            }
            // Of what is none of ours nobody asks, and what is not complete has shared nothing yet.
            if matches!(extent, Extent::Whole) {
                shared = extents::shared(&file, Some(until));
            }
        }
        let sizes = [meta.len(), meta.blocks().saturating_mul(BLOCK)];
        Ok(((meta.dev(), meta.ino()), sizes, shared, peeked))
    };
    match look() {
        Ok((id, [length, allocated], shared, peek)) => {
            ImageEntry { path, id, length, allocated, shared, peek }
        }
        Err(error) => ImageEntry {
            path,
            id: (0, 0),
            length: 0,
            allocated: 0,
            shared: None,
            peek: Err(error.to_string()),
        },
    }
}

// ---- disks

/// Everything that snapshots and domains name, and what that names in turn. Only of snapshots that are
/// `meant`.
fn all_files(images: &[ImageEntry], domains: &[Running], meant: impl Fn(&Record) -> bool) -> Files {
    files_with(images, domains, BTreeSet::new(), meant)
}

/// The same, and other files.
pub fn files_with(
    images: &[ImageEntry],
    domains: &[Running],
    others: BTreeSet<(PathBuf, FileKind)>,
    meant: impl Fn(&Record) -> bool,
) -> Files {
    let mut todo = others;
    for image in images {
        let Ok(Peek::Snapshot { record, .. }) = &image.peek else { continue };
        if !meant(record) {
            continue;
        }
        for disk in record.disks.iter().filter(|disk| !disk.snapshot.is_left_out()) {
            match disk.snapshot.kind().content() {
                Content::Volume(_) => continue,
                Content::Frozen(Frozen { copy: Some(copy), reader, .. }) => {
                    todo.insert((copy.to_owned(), FileKind::of_reader(reader, disk.format)));
                }
                Content::Frozen(_) | Content::Inside(_) | Content::Nowhere => {}
            }
            todo.insert((disk.path.clone(), FileKind::of_record(disk)));
        }
    }
    for disk in domains.iter().flat_map(|domain| &domain.disks) {
        todo.insert((disk.path.clone(), disk.kind));
    }
    let mut files = Files::new();
    while !todo.is_empty() {
        let round: Vec<_> = std::mem::take(&mut todo).into_iter().collect();
        let paths: Vec<&Path> = round.iter().map(|(path, _)| path.as_path()).collect();
        // One domain's server that is gone does not keep the others from being listed.
        let there: Vec<_> = files::identities(&paths).iter().map(Option::is_some).collect();
        let seen = in_parallel(round.into_iter().zip(there), |(key, there)| {
            let seen = if there { file(&key.0, key.1) } else { nowhere() };
            (key, seen)
        });
        for (_, seen) in &seen {
            let below = seen.link.as_ref().ok().and_then(|link| link.below().ok().flatten());
            if let Some((path, format)) = below {
                todo.insert((path, FileKind::of_format(Some(format))));
            }
        }
        files.extend(seen);
        todo.retain(|key| !files.contains_key(key));
    }
    files
}

/// Files beside the disks whose names are such as this program gives.
fn strays(files: &Files) -> Vec<PathBuf> {
    let regular = files.iter().filter(|(_, seen)| seen.facts.is_ok());
    let directories: BTreeSet<&Path> = regular.filter_map(|((path, _), _)| path.parent()).collect();
    let all = directories.iter().filter_map(|path| entries(path).ok()).flatten();
    all.filter(|path| is_our_name(path)).collect()
}

// ---- domains

/// The domains that run. What cannot be told of one is said.
pub fn domains(toolstack: &Toolstack, unseen: &mut Vec<String>) -> Vec<Running> {
    let listed = match toolstack.domains() {
        Ok(listed) => listed,
        Err(error) => {
            unseen.push(format!("the domains that run: {error}"));
            return Vec::new();
        }
    };
    let mut domains = Vec::new();
    for info in listed.iter().filter(|info| info.domid != 0 && !info.dying) {
        // It may have gone meanwhile.
        let Ok(Some(name)) = toolstack.domain_name(info.domid) else { continue };
        // The stub domain of another one has its disks, and no configuration.
        let target = toolstack.read(&format!("/local/domain/{}/target", info.domid)).ok().flatten();
        if target.is_some_and(|target| listed.iter().any(|other| target == other.domid.to_string()))
        {
            continue;
        }
        let disks = toolstack
            .config_json(info.domid)
            .map_err(|error| error.to_string())
            .and_then(|json| DomainConfig::parse(&json).map_err(|error| error.to_string()))
            .and_then(|config| config.disks().map_err(|error| error.to_string()));
        match disks {
            Ok(disks) => domains.push(Running {
                name,
                uuid: info.uuid,
                domid: Some(info.domid),
                disks: CurrentDisk::of(&disks),
            }),
            // libxl stores it last (libxl_create.c, `domcreate_complete`).
            Err(why) => unseen.push(match toolstack.stored_config(info.domid) {
                Err(LibxlError::NoStoredConfig { .. }) => format!(
                    "the disks of {name}, which is being created or restored: wait until it runs"
                ),
                _ => format!("the disks of {name}: {why}"),
            }),
        }
    }
    domains
}

// ---- all of it

/// Looks at everything. `strays`: also at what lies beside the disks.
pub fn look(
    images: Vec<ImageEntry>,
    domains: Vec<Running>,
    unseen: Vec<String>,
    with_strays: bool,
) -> Inventory {
    let files = all_files(&images, &domains, |_| true);
    let on_volumes = images.iter().any(|image| match &image.peek {
        Ok(Peek::Snapshot { record, .. }) => record
            .disks
            .iter()
            .any(|disk| matches!(disk.snapshot.kind().content(), Content::Volume(_))),
        _ => false,
    });
    let on_devices = files.values().any(|file| file.device.is_some());
    let volumes = if on_volumes || on_devices { tools::volumes() } else { Ok(Vec::new()) };
    let strays = if with_strays { strays(&files) } else { Vec::new() };
    Inventory { images, files, volumes, domains, strays, unseen }
}

/// The snapshot that the disks of a domain descend from, for the record of the next one.
pub fn parent(job: &Job, config: &DomainConfig, name: &str) -> Option<(Parent, ParentSource)> {
    let disks = config.disks().ok()?;
    let mut disks = CurrentDisk::of(&disks);
    disks.retain(|disk| !job.leaves_out(&disk.vdev));
    let image = match job.image(name) {
        Ok(Target::File(path)) => Some(path),
        _ => None,
    };
    let files = image.as_ref().into_iter().chain(&job.request.record);
    // What lies below a directory that the user chose may be anything.
    let alone: Vec<_> = files.filter_map(|path| path.parent()).map(Path::to_owned).collect();
    // A snapshot is not refused for a directory that cannot be read.
    let images = images(std::slice::from_ref(&job.directory), &alone, &mut Vec::new()).ok()?;
    let uuid = config.uuid().unwrap_or_default();
    let domain = Running { name: name.to_owned(), uuid, domid: None, disks };
    // The disks of other domains may be on a file system that hangs. A clone names the files that it rests on.
    let own = |record: &Record| {
        record.domain.name == domain.name
            || (record.domain.uuid == domain.uuid && !domain.uuid.is_nil())
    };
    let files = all_files(&images, std::slice::from_ref(&domain), own);
    let on_devices = files.values().any(|file| file.device.is_some());
    list::parent_of_now(&Inventory {
        images,
        files,
        volumes: if on_devices { tools::volumes() } else { Ok(Vec::new()) },
        domains: vec![domain],
        strays: Vec::new(),
        unseen: Vec::new(),
    })
}

/// The file that `DOMAIN/NAME` means; `None` if it is the path of a file, or cannot be such a name.
///
/// # Errors
///
/// If there is no such snapshot, or several.
pub fn by_name(text: &Path) -> Result<Option<PathBuf>> {
    // One whose deletion was interrupted is told as such, but never taken for another one of its name.
    by_name_of(text, false).or_else(|why| match by_name_of(text, true) {
        Ok(Some(deleting)) => Ok(Some(deleting)),
        Ok(None) | Err(_) => Err(why),
    })
}

/// The same, also of one whose deletion was interrupted if that is wanted.
///
/// # Errors
///
/// If there is no such snapshot, or several.
pub fn by_name_of(text: &Path, deleting: bool) -> Result<Option<PathBuf>> {
    let is_there = |path: &Path| fs::symlink_metadata(path).is_ok();
    if is_there(text) || is_there(&deleting_path(text)) {
        return Ok(None);
    }
    let Some((domain, name)) = text.to_str().and_then(parts) else { return Ok(None) };
    let directory = directory()?;
    let refused = |why: NotNamed| match why {
        NotNamed::Nothing(why) => Error::refused(format!(
            "There is no snapshot {}, and no file of that name",
            quote(text)
        ))
        .because(why)
        .hint(match domain.contains('/') {
            true => "list them: xl-snapshot list".to_owned(),
            false => format!("list them: xl-snapshot list {}", quote(domain)),
        }),
        NotNamed::Several(images) => {
            Error::refused(format!("{} names several snapshots", quote(text)))
                .because(images)
                .hint("name the image of the one you mean")
        }
    };
    let images = images(std::slice::from_ref(&directory), &[], &mut Vec::new())
        .map_err(|error| refused(NotNamed::Nothing(format!("{}: {error}", directory.display()))))?;
    let find = |running: &[Running]| {
        list::by_name(&images, &directory, (domain, running), name, deleting).map(Path::to_owned)
    };
    let found = find(&[]).or_else(|why| {
        // The domain may have been renamed since: only Xen knows.
        match Toolstack::open(&Reporter::new(true, 0)) {
            Ok(toolstack) => find(&domains(&toolstack, &mut Vec::new())),
            Err(_) => Err(why),
        }
    });
    found.map(Some).map_err(refused)
}

/// The domain and the snapshot in `DOMAIN/NAME`: a domain may have a slash in its name, a snapshot has none. `None` for
/// what can only be a path.
fn parts(text: &str) -> Option<(&str, &str)> {
    let (domain, name) = text.rsplit_once('/')?;
    let is_path = matches!(domain.split('/').next(), None | Some("" | "." | ".."));
    (!is_path && name.parse::<SnapshotName>().is_ok()).then_some((domain, name))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::host::image::ImageWriter;
    use crate::plan::ImageStart;
    use crate::record::NOT_YET;
    use crate::support::record::sample;
    use crate::support::streams::pv_stream;

    /// Where the file system tells: those of most disks do, tmpfs does not.
    #[test]
    fn only_complete_images_are_asked_what_they_share_and_not_for_ever() {
        let directory = tempfile::tempdir_in(".").unwrap();
        let path = directory.path().join("s1.xlsave");
        let record = Record { complete: false, image_size: NOT_YET, ..sample() };
        let start = ImageStart {
            target: Target::File(path.clone()),
            make_directory: false,
            config: r#"{"c_info":{"name":"web1"}}"#.into(),
            record: record.clone(),
            compress: None,
        };
        let writer = ImageWriter::start(&start).unwrap();
        let mut pipe = File::from(writer.fd().try_clone_to_owned().unwrap());
        io::Write::write_all(&mut pipe, &pv_stream()).unwrap();
        drop(pipe);
        let unfinished = one(crate::memory::partial_path(&path));
        assert!(matches!(unfinished.peek, Ok(Peek::Snapshot { extent: Extent::Unfinished, .. })));
        assert_eq!(unfinished.shared, None);
        writer.complete(&mut record.clone()).unwrap();
        let told = extents::shared(&files::open(&path).unwrap(), None);
        let complete = one(path.clone());
        assert!(matches!(complete.peek, Ok(Peek::Snapshot { extent: Extent::Whole, .. })));
        assert_eq!(complete.shared, told);
        assert_eq!(image(path, Effort::Full, Instant::now()).shared, None);
    }

    #[test]
    fn a_domain_may_have_a_slash_in_its_name() {
        for (text, expected) in [
            ("web1/s1", ("web1", "s1")),
            ("team/web1/s1", ("team/web1", "s1")),
            ("a b/s1", ("a b", "s1")),
            ("wéb/s1", ("wéb", "s1")),
            ("-x/s1", ("-x", "s1")),
            (".x/s1", (".x", "s1")),
        ] {
            assert_eq!(parts(text), Some(expected));
        }
        for path in ["s1", "/web1/s1", "./s1", "../web1/s1", "web1/", "web1/-s1", "//s1", "/s1"] {
            assert_eq!(parts(path), None, "{path}");
        }
    }
}
