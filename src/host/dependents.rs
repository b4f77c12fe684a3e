//! What may rest on a snapshot, besides what records and running domains name: xl's configuration files, and
//! what lies in the directories of the disks.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::host::files;
use crate::host::libxl::XlCfg;
use crate::list::{CurrentDisk, FileKind, ImageFormat};
use crate::record::Record;
use crate::tool::check_path;

/// Where xl's configuration files usually are.
const CONFIGURATIONS: [&str; 2] = ["/etc/xen", "/etc/xen/auto"];

/// An xl configuration file.
#[derive(Debug)]
pub struct Configured {
    pub path: PathBuf,
    pub name: String,
    pub disks: Vec<CurrentDisk>,
}

/// What xl's configuration files say, as far as they can be read.
/// `cfg` is that of a snapshot's domain. What cannot be read, although it has to do with disks, is told in `unseen`.
pub fn configured(cfg: Option<&Path>, unseen: &mut Vec<String>) -> Vec<Configured> {
    let mut paths: BTreeSet<PathBuf> = BTreeSet::new();
    for directory in CONFIGURATIONS {
        match fs::read_dir(directory) {
            Ok(entries) => paths
                .extend(entries.flatten().filter_map(|entry| fs::canonicalize(entry.path()).ok())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => unseen.push(format!("{directory}: {error}")),
        }
    }
    paths.extend(cfg.and_then(|path| fs::canonicalize(path).ok()));
    paths.retain(|path| path.is_file() && check_path(path).is_ok() && !is_copy(path));
    let mut all = Vec::new();
    for path in paths {
        match configuration(path.clone()) {
            Ok(configured) => all.push(configured),
            Err(why) if has_disks(&path) => unseen.push(format!("{}: {why}", path.display())),
            Err(_) => {}
        }
    }
    all
}

/// Whether a file looks like the configuration of a domain: there are others in the directory.
fn has_disks(path: &Path) -> bool {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let sets = |line: &str, key: &str| {
        let rest = line.trim_start().strip_prefix(key).map(str::trim_start);
        rest.is_some_and(|rest| rest.starts_with(['=', '+']))
    };
    text.lines().any(|line| sets(line, "disk")) && text.lines().any(|line| sets(line, "name"))
}

/// Whether it is a copy that we keep of a configuration file beside it, `FILE.bak-NAME`: that names the disks of
/// before. A file of such a name that stands alone may be all that knows of a domain.
fn is_copy(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let mut marks = name.match_indices(".bak-");
    marks.any(|(at, _)| at > 0 && path.with_file_name(&name[..at]).is_file())
}

fn configuration(path: PathBuf) -> Result<Configured, Box<dyn Error>> {
    let cfg = XlCfg::open(&path)?;
    let name = cfg.name()?;
    let disks = cfg.disks()?.into_iter().filter_map(|disk| {
        let path = disk.pdev_path?;
        let (path, kind) = match path.strip_prefix("vhd:") {
            Some(path) => (path.into(), FileKind::TapVhd),
            None if disk.format == "qcow2" => (path, FileKind::Image(ImageFormat::Qcow2)),
            None => (path, FileKind::Image(ImageFormat::Other)),
        };
        Some(CurrentDisk { vdev: disk.vdev, path: path.into(), kind })
    });
    Ok(Configured { disks: disks.collect(), path, name })
}

/// The qcow2 images and VHDs in the directories of the snapshot's disks and of other disks, whatever their names. A
/// directory that does not answer, such as on NFS whose server is gone, is told in `unseen`.
pub fn around<'a>(
    record: &Record,
    others: impl IntoIterator<Item = &'a Path>,
    unseen: &mut Vec<String>,
) -> BTreeSet<(PathBuf, FileKind)> {
    let mut directories: BTreeSet<PathBuf> = BTreeSet::new();
    for disk in &record.disks {
        directories.extend(disk.path.parent().map(Path::to_owned));
        let new = disk.snapshot.kind().new_file();
        directories.extend(new.and_then(|file| file.path.parent()).map(Path::to_owned));
    }
    directories.extend(others.into_iter().filter_map(|path| path.parent().map(Path::to_owned)));
    directories.retain(|directory| !directory.starts_with("/dev") && directory.is_absolute());
    let mut found = BTreeSet::new();
    for directory in directories {
        let shown = directory.display().to_string();
        let images = files::as_it_answers(files::PATIENCE, move |tell| {
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            for path in entries.map(|entry| entry.path()) {
                let kind = kind_of(&path);
                tell(kind.map(|kind| (path, kind)));
            }
        });
        match images {
            Some(images) => found.extend(images.into_iter().flatten()),
            None => unseen.push(format!("{shown}: its file system does not answer")),
        }
    }
    found
}

/// What a file begins as. Nothing is opened but its first bytes; its own header then says what is below.
fn kind_of(path: &Path) -> Option<FileKind> {
    let mut start = [0; 8];
    let length = files::open(path).and_then(|mut file| file.read(&mut start)).ok()?;
    match &start[..length] {
        [b'Q', b'F', b'I', 0xfb, ..] => Some(FileKind::Image(ImageFormat::Qcow2)),
        b"conectix" => Some(FileKind::TapVhd),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_copy_beside_its_file_is_one() {
        let directory = tempfile::tempdir().unwrap();
        let old = directory.path().join("etc.bak-2025");
        fs::create_dir(&old).unwrap();
        for name in
            ["web1.cfg", "web1.cfg.bak-s1", "web1.cfg.bak-before-revert-x", "web2.cfg.bak-s1"]
        {
            fs::write(old.join(name), "").unwrap();
        }
        let copies = |name: &str| is_copy(&old.join(name));
        assert!(copies("web1.cfg.bak-s1") && copies("web1.cfg.bak-before-revert-x"));
        assert!(!copies("web1.cfg") && !copies("web2.cfg.bak-s1") && !copies(".bak-s1"));
    }
}
