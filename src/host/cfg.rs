//! Rewrites a user's xl configuration file, with libxlutil as the judge.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr};
use rustix::io::Errno;
use tempfile::NamedTempFile;
use thiserror::Error;

use crate::host::files;
use crate::host::libxl::{CfgDisk, CfgError, XlCfg};
use crate::names::same_vdev;
use crate::plan::{ReplaceCfg, Text};
use crate::xlcfg::{BadCfg, Change, Known, rewrite};

/// The kernel's limit for the names of all attributes of a file, and for the value of one, in bytes
/// (limits.h, `XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const MAX_ATTRIBUTES: usize = 65536;
/// The kernel makes them from the content: those of the old one would be wrong.
const OF_CONTENT: [&[u8]; 2] = [b"security.ima", b"security.evm"];

#[cfg(test)]
mod tests;

/// Why there is no new text for an xl configuration file.
#[derive(Debug, Error)]
pub enum RewriteError {
    /// libxlutil refuses the file, or what we made of it.
    #[error(transparent)]
    Cfg(#[from] CfgError),
    /// We cannot rewrite it.
    #[error("{} cannot be rewritten", path.display())]
    Text { path: PathBuf, source: BadCfg },
    /// The file cannot be read or written.
    #[error("{}", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// The file is not the one that was looked at.
    #[error("{} was changed meanwhile", path.display())]
    Changed { path: PathBuf },
    /// libxlutil reads something else in the new text than it should.
    #[error("{} cannot be rewritten: libxlutil would misread the result", path.display())]
    Misread { path: PathBuf },
}

/// The xl configuration `text`, read from `path`, as it is and with `changes` made and all else
/// kept; `None` if it already says what it should.
///
/// # Errors
///
/// If a change names no disk of the file, the text is not understood, or libxlutil would not read
/// in the new text exactly the old domain with the new images.
pub fn rewritten(
    path: &Path,
    text: &[u8],
    changes: &[Change],
) -> Result<Option<(Text, Text)>, RewriteError> {
    let bad = |source| RewriteError::Text { path: path.to_owned(), source };
    let (name, disks) = read(path, text)?;
    let changes: Vec<_> = changes.iter().filter(|change| !holds(&disks, change)).cloned().collect();
    if changes.is_empty() {
        return Ok(None);
    }
    let known: Vec<_> =
        disks.iter().map(|disk| Known { spec: &disk.spec, vdev: &disk.vdev }).collect();
    let new = rewrite(text, &known, &changes).map_err(bad)?;

    let (new_name, new_disks) = read(path, &new)?;
    let as_expected = |(old, new): (&CfgDisk, &CfgDisk)| match changes
        .iter()
        .find(|change| same_vdev(&change.vdev, &old.vdev))
    {
        // How it is said is rewrite's choice.
        Some(change) => *new == CfgDisk { spec: new.spec.clone(), ..changed(old, change) },
        None => new == old,
    };
    let same_domain = new_name == name
        && new_disks.len() == disks.len()
        && disks.iter().zip(&new_disks).all(as_expected);
    if same_domain {
        Ok(Some((text.into(), new.into())))
    } else {
        Err(RewriteError::Misread { path: path.to_owned() })
    }
}

/// Gives a file its new text, all at once, and keeps the old file under another name. What is done
/// already needs nothing.
///
/// # Errors
///
/// If the file is not as it was, or cannot be written; it is then untouched.
pub fn replace(cfg: &ReplaceCfg) -> Result<(), RewriteError> {
    let io = |source| RewriteError::Io { path: cfg.path.clone(), source };
    let text = fs::read(&cfg.path).map_err(io)?;
    if text == cfg.new.as_bytes() {
        return Ok(());
    }
    if text != cfg.old.as_bytes() {
        return Err(RewriteError::Changed { path: cfg.path.clone() });
    }
    write_beside(cfg).map_err(io)
}

/// Gives a file its old text again, which [`replace`] has kept. What was not done needs nothing.
///
/// # Errors
///
/// If somebody has changed the file meanwhile, or it cannot be written.
pub fn put_back(cfg: &ReplaceCfg) -> Result<(), RewriteError> {
    let io = |source| RewriteError::Io { path: cfg.path.clone(), source };
    let text = fs::read(&cfg.path).map_err(io)?;
    if files::same(&cfg.path, &cfg.backup) {
        // Killed between the two: one file with two names.
        return files::remove(&cfg.backup).map_err(io);
    }
    if text == cfg.old.as_bytes() {
        return Ok(());
    }
    if text != cfg.new.as_bytes() {
        return Err(RewriteError::Changed { path: cfg.path.clone() });
    }
    fs::rename(&cfg.backup, &cfg.path).map_err(io)?;
    files::sync_directory(&cfg.path).map_err(io)
}

fn write_beside(cfg: &ReplaceCfg) -> io::Result<()> {
    let directory = cfg.path.parent().ok_or(io::ErrorKind::NotFound)?;
    let meta = fs::metadata(&cfg.path)?;
    let mut new = NamedTempFile::new_in(directory)?;
    new.write_all(cfg.new.as_bytes())?;
    fchown(new.as_file(), Some(meta.uid()), Some(meta.gid()))?;
    new.as_file().set_permissions(Permissions::from_mode(meta.mode() & 0o7777))?;
    copy_attributes(&File::open(&cfg.path)?, new.as_file())?;
    new.as_file().sync_all()?;
    // Never over an existing backup, but for one that was made by a process that was killed here.
    fs::hard_link(&cfg.path, &cfg.backup)
        .or_else(|why| if files::same(&cfg.path, &cfg.backup) { Ok(()) } else { Err(why) })?;
    new.persist(&cfg.path)?;
    files::sync_directory(&cfg.path)
}

/// Gives a file what is attached to another one (xattr(7)): access control lists, the label of SELinux.
fn copy_attributes(from: &File, to: &File) -> io::Result<()> {
    let mut names = vec![0; MAX_ATTRIBUTES];
    let length = match flistxattr(from, &mut names[..]) {
        Err(Errno::NOTSUP) => return Ok(()),
        result => result?,
    };
    let value_of = |file: &File, name: &[u8]| -> io::Result<Vec<u8>> {
        let mut value = vec![0; MAX_ATTRIBUTES];
        let length = fgetxattr(file, name, &mut value[..])?;
        value.truncate(length);
        Ok(value)
    };
    let names = names[..length].split(|byte| *byte == 0);
    for name in names.filter(|name| !name.is_empty() && !OF_CONTENT.contains(name)) {
        let value = value_of(from, name)?;
        if value_of(to, name).ok().as_ref() != Some(&value) {
            fsetxattr(to, name, &value, XattrFlags::empty())?;
        }
    }
    Ok(())
}

fn read(path: &Path, text: &[u8]) -> Result<(Option<String>, Vec<CfgDisk>), CfgError> {
    let cfg = XlCfg::parse(path, text)?;
    Ok((cfg.string(c"name")?, cfg.disks()?))
}

/// The vdev and image of each disk of a configuration. One of tapdisk is named without its `vhd:`.
pub fn images(path: &Path, text: &[u8]) -> Result<Vec<(String, PathBuf)>, CfgError> {
    let (_, disks) = read(path, text)?;
    let image = |disk: CfgDisk| {
        let path = disk.pdev_path?;
        let path = path.strip_prefix("vhd:").unwrap_or(&path).into();
        Some((disk.vdev, path))
    };
    Ok(disks.into_iter().filter_map(image).collect())
}

/// Whether there is nothing to do.
fn holds(disks: &[CfgDisk], change: &Change) -> bool {
    let mut named = disks.iter().filter(|disk| same_vdev(&disk.vdev, &change.vdev)).peekable();
    named.peek().is_some()
        && named.all(|disk| {
            disk.pdev_path.as_ref() == Some(&change.target) && disk.format == change.format
        })
}

/// `disk` with the new image, and without what only a raw one can have.
fn changed(disk: &CfgDisk, change: &Change) -> CfgDisk {
    let raw = change.format == "raw";
    CfgDisk {
        pdev_path: Some(change.target.clone()),
        format: change.format.clone(),
        backend: disk.backend.clone().filter(|backend| raw || backend != "phy"),
        script: disk.script.clone().filter(|_| raw),
        ..disk.clone()
    }
}
