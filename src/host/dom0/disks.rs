//! The files and volumes of the disks.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::state::{Dom0, POLL, caused, failed};
use crate::error::{Error, Result};
use crate::host::guard::Note;
use crate::host::{files, tools};
use crate::plan::Step;
use crate::tool::quote;
use crate::tool::volumes::{Volume, rename as rename_volume};

/// How long a logical volume may stay open although nobody should use it, a merge may make no progress, and
/// lvs may fail.
const VOLUME_WAIT: Duration = Duration::from_secs(600);
/// How often to check: each check starts a process.
const VOLUME_POLL: Duration = Duration::from_secs(1);

impl Dom0 {
    pub(super) fn new_file(&mut self, path: &Path) -> Result<()> {
        files::create_new(path).map_err(caused)?;
        self.made(path);
        Ok(())
    }

    fn made(&mut self, path: &Path) {
        self.tell(&Note::Made(path.to_owned()));
        self.made.insert(path.to_owned());
    }

    pub(super) fn remove_new(&mut self, path: &Path) -> Result<()> {
        if self.made.contains(path) {
            files::remove(path).map_err(caused)?;
            self.made.remove(path);
        }
        Ok(())
    }

    pub(super) fn clone_file(&mut self, from: &Path, to: &Path, writable: bool) -> Result<()> {
        files::clone_new(from, to, writable).map_err(caused)?;
        // A guest's disk, and nobody waits for it: a file system may keep a name without its content otherwise.
        if writable {
            fs::File::open(to).and_then(|file| file.sync_all()).map_err(caused)?;
        }
        self.made(to);
        Ok(())
    }

    /// Returns the disks to their contents before a failed revert. The domain must not have them open.
    pub(super) fn undo_revert(
        &mut self,
        (uuid, domain): (Uuid, &str),
        disks: &[Vec<Step>],
    ) -> Result<()> {
        if !uuid.is_nil() {
            self.discard_domain(uuid)?;
        }
        self.check_not_running(uuid, domain)?;
        let mut failed = None;
        for steps in disks {
            // Each step depends on those before it: do not remove the kept contents before they are
            // restored.
            if let Err(error) = steps.iter().try_for_each(|step| self.carry_out(step)) {
                failed.get_or_insert(error);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Renames a volume, unless it is already renamed.
    pub(super) fn rename_volume(&mut self, group: &str, from: &str, to: &str) -> Result<()> {
        let volumes = tools::volumes().map_err(Error::failed)?;
        let is_there = |name: &str| volumes.iter().any(|v| v.group == group && v.name == name);
        match is_there(from) || !is_there(to) {
            true => self.run(&rename_volume(group, from, to)),
            false => Ok(()),
        }
    }

    /// Renames a volume back, if it has the other name and its own name is free.
    pub(super) fn undo_rename_volume(
        &mut self,
        group: &str,
        from: &str,
        to: &str,
        kept: Option<&str>,
    ) -> Result<()> {
        let volumes = tools::volumes().map_err(Error::failed)?;
        let is_there = |name: &str| volumes.iter().any(|v| v.group == group && v.name == name);
        match is_there(from) && !is_there(to) && kept.is_none_or(is_there) {
            true => self.run(&rename_volume(group, from, to)),
            false => Ok(()),
        }
    }

    pub(super) fn protect(&mut self, path: &Path) -> Result<()> {
        let before = files::protect(path).map_err(caused)?;
        self.tell(&Note::Protected(path.to_owned(), before.mode()));
        self.protected.insert(path.to_owned(), before);
        Ok(())
    }

    pub(super) fn unprotect(&mut self, path: &Path) -> Result<()> {
        let Some(before) = self.protected.get(path) else { return Ok(()) };
        files::unprotect(path, before).map_err(caused)?;
        self.protected.remove(path);
        Ok(())
    }
}

/// The state of a logical volume that we wait for.
#[derive(Debug, PartialEq, Eq)]
enum Merge {
    /// The condition is met.
    Done,
    /// Not yet, with the progress, if known.
    NotYet(Option<u64>),
    /// There is no such volume.
    Gone,
    /// LVM gives no answer.
    Unknown(String),
}

/// Waits until nobody has a logical volume open.
pub(super) fn await_closed(path: &str) -> Result<()> {
    let look =
        || see(path, |_, volume| if volume.open { Merge::NotYet(None) } else { Merge::Done });
    await_volume(path, look, VOLUME_WAIT, || {
        Error::failed(format!("Another program still has volume {path} open"))
            .hint(format!("find and stop its user: dmsetup ls --tree; fuser -v {}", device(path)))
    })
}

/// Waits until no snapshot is being merged into a logical volume. The share that is still to be merged (lvs,
/// `data_percent`) shows the progress.
pub(super) fn await_merged(path: &str) -> Result<()> {
    let merging = |all: &[Volume], origin: &Volume| {
        let mut all = all.iter();
        match all.find(|v| v.merging && v.group == origin.group && v.origin == origin.name) {
            Some(snapshot) => Merge::NotYet(snapshot.used),
            None => Merge::Done,
        }
    };
    await_volume(
        path,
        || see(path, merging),
        VOLUME_WAIT,
        || {
            Error::failed(format!("A snapshot is still being merged into volume {path}")).hint(format!(
            "check the progress, and continue when the merge has finished: lvs -a -o +copy_percent {}",
            quote(path)
        ))
        },
    )
}

fn see(path: &str, what: impl Fn(&[Volume], &Volume) -> Merge) -> Merge {
    match tools::volumes() {
        Err(why) => Merge::Unknown(why),
        Ok(volumes) => volumes
            .iter()
            .find(|volume| volume.path() == path)
            .map_or(Merge::Gone, |volume| what(&volumes, volume)),
    }
}

fn device(volume: &str) -> String {
    quote(Path::new("/dev").join(volume))
}

/// Waits for a condition of a logical volume, for as long as there is progress within `patience`. LVM may fail
/// occasionally, for example when somebody else changes a group at that moment.
fn await_volume(
    path: &str,
    look: impl Fn() -> Merge,
    patience: Duration,
    not_done: impl Fn() -> Error,
) -> Result<()> {
    let mut deadline = Instant::now() + patience;
    let mut before = None;
    let mut pause = POLL;
    loop {
        let over = Instant::now() >= deadline;
        match look() {
            Merge::Done => return Ok(()),
            Merge::Gone => {
                return Err(Error::failed(format!("There is no volume {path} any more"))
                    .hint("it was changed meanwhile: check with lvs -a"));
            }
            Merge::Unknown(why) if over => {
                return Err(Error::failed(format!("Looking at volume {path}"))
                    .because(why)
                    .hint("check the output of lvs"));
            }
            Merge::NotYet(_) if over => {
                let idle = format!("nothing has changed for {} s", patience.as_secs());
                return Err(not_done().because(idle));
            }
            Merge::NotYet(now) if now != before => {
                before = now;
                deadline = Instant::now() + patience;
            }
            Merge::NotYet(_) | Merge::Unknown(_) => {}
        }
        thread::sleep(pause.min(patience / 4));
        pause = (2 * pause).min(VOLUME_POLL);
    }
}

pub(super) fn rename(from: &Path, to: &Path) -> Result<()> {
    files::rename_new(from, to)
        .and_then(|()| files::sync_directory(to))
        .map_err(failed(format!("Rename {}", from.display())))
}

/// Renames a file back, if it has the other name and its own name is free.
pub(super) fn undo_rename(from: &Path, to: &Path, kept: Option<&Path>) -> Result<()> {
    let is_there = |path: &Path| fs::symlink_metadata(path).is_ok();
    match is_there(from) && !is_there(to) && kept.is_none_or(is_there) {
        true => rename(from, to),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// Waits on these states in order; the last one repeats.
    fn waited(seen: Vec<Merge>) -> Result<()> {
        let seen = RefCell::new(seen.into_iter().rev().collect::<Vec<_>>());
        let look = || {
            let mut seen = seen.borrow_mut();
            match (seen.len(), seen.last()) {
                (1, Some(Merge::NotYet(at))) => Merge::NotYet(*at),
                (1, Some(Merge::Unknown(why))) => Merge::Unknown(why.clone()),
                _ => seen.pop().unwrap(),
            }
        };
        await_volume("vg0/a", look, Duration::from_millis(200), || Error::failed("not done"))
    }

    /// The guard undoes once more what was undone when the program was killed.
    #[test]
    fn an_undo_that_is_repeated_leaves_the_original_alone() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let (path, kept, new) = (at("disk"), at("kept"), at("new"));
        let undo = || {
            undo_rename(&path, &new, Some(&kept)).unwrap();
            undo_rename(&kept, &path, None).unwrap();
        };
        for renames in 0..=2 {
            fs::write(&path, "original").unwrap();
            fs::write(&new, "copy").unwrap();
            let done = [(&path, &kept), (&new, &path)];
            done.iter().take(renames).for_each(|(from, to)| fs::rename(from, to).unwrap());
            undo();
            assert_eq!(fs::read_to_string(&new).unwrap(), "copy", "{renames}");
            fs::remove_file(&new).unwrap();
            undo();
            assert_eq!(fs::read_to_string(&path).unwrap(), "original", "{renames}");
            assert!(!kept.exists() && !new.exists());
        }
    }

    #[test]
    fn a_merge_is_waited_for_as_long_as_it_gets_on() {
        // Twenty times 50 ms are more than the patience.
        let merge = (0..20).map(|at| Merge::NotYet(Some(at))).chain([Merge::Done]);
        waited(merge.collect()).unwrap();
        let error = waited(vec![Merge::NotYet(Some(5))]).unwrap_err();
        assert!(error.chain()[1].contains("nothing has changed"), "{error:?}");
    }

    #[test]
    fn lvs_may_fail_now_and_then() {
        let fails = || Merge::Unknown("busy".into());
        waited(vec![Merge::NotYet(None), fails(), fails(), Merge::Done]).unwrap();
        let error = waited(vec![fails()]).unwrap_err();
        assert!(error.message.contains("vg0/a") && error.hint.is_some(), "{error:?}");
        assert_eq!(error.chain()[1], "busy");
        let error = waited(vec![Merge::NotYet(None), Merge::Gone]).unwrap_err();
        assert!(error.message.contains("There is no volume vg0/a"), "{error:?}");
    }
}
