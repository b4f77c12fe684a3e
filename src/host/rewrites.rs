//! Makes new texts of xl's own configurations of a domain, once its disks have other images. Changes
//! nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::create::{Job, Rewrites};
use crate::delete;
use crate::disk::RunningDisk;
use crate::disk::image_tree::ImageSwitch;
use crate::domain::DomainId;
use crate::error::{Error, Result};
use crate::host::cfg;
use crate::host::files;
use crate::host::libxl::{CfgDisk, XlCfg};
use crate::host::look::{Domain, trouble};
use crate::host::toolstack::{Toolstack, XL_CONFIG};
use crate::names::{SnapshotName, same_vdev};
use crate::plan::ReplaceCfg;
use crate::revert::{Cfg, CfgAfter, DiskChange};
use crate::state::State;
use crate::tool::{check_path, quote};
use crate::xlcfg::Change;

/// A longer file is no configuration: as in `XlCfg`.
const MAX_CFG: u64 = 1 << 20;

/// What `create` has to change: in the file that the domain was named by, and in what
/// `xl config-update` stored.
pub fn for_create(
    toolstack: &Toolstack,
    domain: &Domain,
    job: &Job,
    disks: &[RunningDisk],
    changes: &[Change],
) -> Result<Rewrites> {
    if changes.is_empty() {
        return Ok(Rewrites::default());
    }
    let mut rewrites = Rewrites::default();
    if let Some(path) = &domain.cfg {
        let refused = || {
            Error::refused(format!(
                "The xl configuration file {} must name other images once {} is snapshotted",
                path.display(),
                domain.id.name
            ))
        };
        let (path, text) = read(path).map_err(|why| refused().because(why))?;
        let hint = "correct the file, or name the domain by its name and change the file yourself";
        check_same_disks(&path, &text, disks, changes)
            .map_err(|why| refused().because(why).hint(hint))?;
        rewrites.cfg = replacement(&path, &text, changes, job.name.as_str()).map_err(|why| {
            let hint = why.hint.clone().unwrap_or(hint.to_owned());
            refused().because(why).hint(hint)
        })?;
    }
    if domain.state == State::Off {
        return Ok(rewrites);
    }
    let stored = toolstack
        .userdata(domain.id.domid, XL_CONFIG)
        .map_err(|error| trouble(&domain.id.name, error))?;
    if let Some(text) = stored {
        let refused = || {
            Error::refused(format!(
                "What xl config-update stored for {}, which a reboot uses, must name other images \
                 once it is snapshotted",
                domain.id.name
            ))
        };
        let name = Path::new("the stored configuration");
        rewrites.stored = cfg::rewritten(name, &text, changes)
            .map_err(|why| refused().because(why).hint("correct it with xl config-update"))?;
    }
    Ok(rewrites)
}

/// Refuses a file that names another disk than the running domain has: the next start would find the overlay of this
/// one in its place. A file that still names an image below the current one is mended.
fn check_same_disks(
    path: &Path,
    text: &[u8],
    disks: &[RunningDisk],
    changes: &[Change],
) -> std::result::Result<(), String> {
    // What is not understood is told by the rewriting.
    let Ok(named) = cfg::images(path, text) else { return Ok(()) };
    for (vdev, image) in named {
        let changed = changes.iter().any(|change| same_vdev(&change.vdev, &vdev));
        let running = disks.iter().find(|disk| same_vdev(&disk.disk.vdev, &vdev));
        let Some(running) = running.filter(|_| changed && image.exists()) else { continue };
        let below = running.own.iter().flatten().map(|link| link.path.as_path());
        let mut known = below.chain([running.disk.file(), running.disk.path.as_path()]);
        if !known.any(|known| known == image || files::same(known, &image)) {
            return Err(format!(
                "it names {} as {vdev}, and the running domain has {}",
                quote(&image),
                quote(running.disk.file())
            ));
        }
    }
    Ok(())
}

/// What becomes of the configuration file of `domain` once a revert has given it other images.
///
/// # Errors
///
/// If the user named the file and it cannot be made to name them. One that is only remembered may be
/// gone or be another one by now.
pub fn for_revert(
    cfg: &Cfg,
    domain: &str,
    changes: &[DiskChange],
    keep: &SnapshotName,
) -> Result<CfgAfter> {
    let (path, asked) = match cfg {
        Cfg::Unknown => return Ok(CfgAfter::Unknown),
        Cfg::Remembered(path) => (path, false),
        Cfg::Named(path) => (path, true),
    };
    match reverted(path, domain, changes, keep) {
        Ok(None) => Ok(CfgAfter::Right),
        Ok(Some(replace)) => Ok(CfgAfter::Replace(replace)),
        Err(why) if asked => Err(Error::refused(format!(
            "The xl configuration file {} cannot be made to name the images of {domain} after the \
             revert",
            path.display()
        ))
        .because(why)
        .hint("correct the file, or its path in the SPEC.toml")),
        Err(why) => Ok(CfgAfter::Trouble { path: path.clone(), why: why.chain().join(": ") }),
    }
}

/// Configuration files that name an image whose content is in another one once a snapshot is deleted.
pub fn files_for_delete(switches: &[&ImageSwitch], keep: &str) -> Result<Vec<ReplaceCfg>> {
    let mut replaced = Vec::new();
    let files: BTreeSet<&PathBuf> =
        switches.iter().filter_map(|switch| switch.user.cfg.as_ref()).collect();
    for file in files {
        let own = switches.iter().filter(|switch| switch.user.cfg.as_ref() == Some(file));
        let changes: Vec<Change> = own.map(|switch| change_of(switch)).collect();
        let refused = |why| {
            Error::refused(format!(
                "The xl configuration file {} must name other images once the disks are merged",
                file.display()
            ))
            .because(why)
            .hint("correct the file")
        };
        let (path, text) = read(file).map_err(refused)?;
        replaced.extend(replacement(&path, &text, &changes, keep).map_err(refused)?);
    }
    Ok(replaced)
}

fn change_of(switch: &ImageSwitch) -> Change {
    Change::new(&switch.user.vdev, &switch.to.path, switch.to.format)
}

/// The same, and what `xl config-update` stored of domains.
pub fn for_delete(
    toolstack: &Toolstack,
    switches: &[&ImageSwitch],
    keep: &str,
) -> Result<delete::Rewrites> {
    let cfgs = files_for_delete(switches, keep)?;
    let mut rewrites = delete::Rewrites { cfgs, stored: Vec::new() };
    let domains: Vec<&DomainId> = switches.iter().filter_map(|s| s.domain.as_ref()).collect();
    for (number, domain) in domains.iter().enumerate() {
        if domains[..number].contains(domain) {
            continue;
        }
        let stored = toolstack
            .userdata(domain.domid, XL_CONFIG)
            .map_err(|error| trouble(&domain.name, error))?;
        let Some(text) = stored else { continue };
        let own = switches.iter().filter(|switch| switch.domain.as_ref() == Some(domain));
        let changes: Vec<Change> = own.map(|switch| change_of(switch)).collect();
        let name = Path::new("the stored configuration");
        let rewritten = cfg::rewritten(name, &text, &changes).map_err(|why| {
            Error::refused(format!(
                "What xl config-update stored for {}, which a reboot uses, must name other images",
                domain.name
            ))
            .because(why)
            .hint("correct it with xl config-update")
        })?;
        rewrites.stored.extend(rewritten.map(|(old, new)| ((*domain).clone(), old, new)));
    }
    Ok(rewrites)
}

fn reverted(
    path: &Path,
    domain: &str,
    changes: &[DiskChange],
    keep: &SnapshotName,
) -> Result<Option<ReplaceCfg>> {
    let (path, text) = read(path)?;
    let unfit = |why| Error::failed("It is not understood").because(why);
    let parsed = XlCfg::parse(&path, &text).map_err(unfit)?;
    let name = parsed.name().map_err(unfit)?;
    if name != domain {
        return Err(Error::failed(format!("It is the configuration of {name}, not of {domain}")));
    }
    let disks = parsed.disks().map_err(unfit)?;
    let named = |vdev: &str| disks.iter().find(|disk| same_vdev(&disk.vdev, vdev));
    let changes: Vec<Change> = changes
        .iter()
        .filter(|DiskChange { change, needed }| {
            *needed || named(&change.vdev).is_some_and(|disk| !is_on(disk, change))
        })
        .map(|DiskChange { change, .. }| change.clone())
        .collect();
    replacement(&path, &text, &changes, keep.as_str())
}

/// Whether a disk is on that image already, however its path is written.
fn is_on(disk: &CfgDisk, change: &Change) -> bool {
    let target = Path::new(&change.target);
    disk.format == change.format
        && disk
            .pdev_path
            .as_deref()
            .map(Path::new)
            .is_some_and(|path| path == target || files::same(path, target))
}

/// The file behind a path, because a link would be replaced by a file, and its text.
fn read(path: &Path) -> Result<(PathBuf, Vec<u8>)> {
    let failed = |why| Error::failed("It cannot be read").because(why);
    let path = fs::canonicalize(path).map_err(failed)?;
    check_path(&path).map_err(|why| Error::failed("Its path is not usable").because(why))?;
    let facts = files::facts(&path).map_err(failed)?;
    if facts.size > MAX_CFG {
        return Err(Error::failed("It is longer than 1 MiB"));
    }
    let text = fs::read(&path).map_err(failed)?;
    Ok((path, text))
}

/// The step that makes the changes in a file, if there are any: the old one stays as `FILE.bak-NAME`.
fn replacement(
    path: &Path,
    text: &[u8],
    changes: &[Change],
    name: &str,
) -> Result<Option<ReplaceCfg>> {
    let unfit = |why| Error::failed("It cannot be made to name other images").because(why);
    let Some((old, new)) = cfg::rewritten(path, text, changes).map_err(unfit)? else {
        return Ok(None);
    };
    let mut backup = path.as_os_str().to_owned();
    backup.push(format!(".bak-{name}"));
    let backup = PathBuf::from(backup);
    if let Some(trouble) = files::trouble(&backup) {
        return Err(Error::failed(format!("The old one cannot be kept: {trouble}"))
            .hint("choose another name with --name"));
    }
    if let Some(flag) = files::fixed(path) {
        return Err(Error::failed(format!("It is {flag}"))
            .hint(format!("take that away: chattr -ia {}", quote(path))));
    }
    let entries = changes.iter().map(Change::entry).collect();
    Ok(Some(ReplaceCfg { path: path.to_owned(), old, new, backup, entries }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::domain::Format;

    const CFG: &str = "# of web1\nname = 'web1'\ndisk = ['/srv/a.qcow2,qcow2,xvda,w', \
                       'phy:/dev/vg0/l,xvdb,w']\n";

    struct Place {
        directory: tempfile::TempDir,
        cfg: PathBuf,
    }

    fn place() -> Place {
        let directory = tempfile::tempdir().unwrap();
        let cfg = directory.path().join("web1.cfg");
        fs::write(&cfg, CFG).unwrap();
        Place { directory, cfg }
    }

    fn change(vdev: &str, target: &str, format: Format, needed: bool) -> DiskChange {
        DiskChange { change: Change::new(vdev, Path::new(target), format), needed }
    }

    fn overlay() -> DiskChange {
        change("xvda", "/srv/a.after.qcow2", Format::Qcow2, true)
    }

    fn after(cfg: &Cfg, changes: &[DiskChange]) -> Result<CfgAfter> {
        for_revert(cfg, "web1", changes, &"before-revert-1".parse().unwrap())
    }

    #[test]
    fn only_what_is_wrong_is_rewritten() {
        let Place { cfg, directory: _kept } = place();
        let known = Cfg::Remembered(cfg.clone());
        let volume = change("xvdb", "/dev/vg0/l", Format::Raw, false);
        let attached = change("xvdc", "/srv/c.qcow2", Format::Qcow2, false);
        let changes = [overlay(), volume.clone(), attached.clone()];
        let CfgAfter::Replace(replace) = after(&known, &changes).unwrap() else { panic!() };
        let path = fs::canonicalize(&cfg).unwrap();
        assert_eq!(replace.path, path);
        assert_eq!(replace.backup, Path::new(&format!("{}.bak-before-revert-1", path.display())));
        assert_eq!(replace.old, CFG.into());
        let entry = "format=qcow2,vdev=xvda,access=w,target=/srv/a.after.qcow2";
        assert_eq!(replace.new, CFG.replace("/srv/a.qcow2,qcow2,xvda,w", entry).into());
        assert_eq!(replace.entries, [overlay().change.entry()]);
        assert_eq!(after(&known, &[volume.clone(), attached]).unwrap(), CfgAfter::Right);
        // The guest is put back to an image that the file does not name any more.
        let base = change("xvda", "/srv/base.qcow2", Format::Qcow2, false);
        assert!(matches!(after(&known, &[base, volume]).unwrap(), CfgAfter::Replace(_)));
    }

    #[test]
    fn a_file_that_is_not_to_be_rewritten_is_refused_only_if_the_user_names_it() {
        let trouble = |words: &str, change: &dyn Fn(&Place)| {
            let place = place();
            change(&place);
            match after(&Cfg::Remembered(place.cfg.clone()), &[overlay()]).unwrap() {
                CfgAfter::Trouble { path, why } if path == place.cfg && why.contains(words) => {}
                other => panic!("{words}: {other:?}"),
            }
            let error = after(&Cfg::Named(place.cfg), &[overlay()]).unwrap_err();
            assert_eq!(error.exit_code(), 3);
            assert!(error.chain().join(": ").contains(words), "{:?}", error.chain());
        };
        let write = |text: &str| {
            let text = text.to_owned();
            move |place: &Place| fs::write(&place.cfg, &text).unwrap()
        };
        trouble("No such file", &|place| fs::remove_file(&place.cfg).unwrap());
        trouble("not a regular file", &|place| {
            fs::remove_file(&place.cfg).unwrap();
            fs::create_dir(&place.cfg).unwrap();
        });
        trouble("of web2, not of web1", &write(&CFG.replace("web1", "web2")));
        trouble("has no disk xvda", &write(&CFG.replace("xvda", "xvdz")));
        trouble("not understood", &write("name = ["));
        trouble("longer than 1 MiB", &write(&"#\n".repeat(1 << 20)));
        trouble("before-revert-1 exists", &|place| {
            fs::write(place.directory.path().join("web1.cfg.bak-before-revert-1"), "").unwrap();
        });
    }

    #[test]
    fn the_file_behind_a_link_is_rewritten() {
        let Place { directory, cfg } = place();
        let link = directory.path().join("link");
        symlink(&cfg, &link).unwrap();
        let CfgAfter::Replace(replace) = after(&Cfg::Remembered(link), &[overlay()]).unwrap()
        else {
            panic!()
        };
        assert_eq!(replace.path, fs::canonicalize(cfg).unwrap());
    }

    #[test]
    fn a_file_that_is_not_known_is_left_alone() {
        assert_eq!(after(&Cfg::Unknown, &[overlay()]).unwrap(), CfgAfter::Unknown);
    }
}
