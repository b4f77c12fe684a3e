//! The files and volumes of the disks.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::{Dom0, POLL, caused, failed};
use crate::disk::lvm::volumes::{Volume, rename as rename_volume};
use crate::error::{Error, Result};
use crate::host::guard::Note;
use crate::host::{files, look};
use crate::plan::Step;
use crate::tool::quote;

/// How long a logical volume may stay open, or a merge go on, once nobody should use it.
const VOLUME_WAIT: Duration = Duration::from_secs(600);

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
        self.made(to);
        Ok(())
    }

    /// Puts the disks of a revert that failed back to what they held. The domain must not have them open.
    pub(super) fn take_back(
        &mut self,
        (uuid, domain): (Uuid, &str),
        disks: &[Vec<Step>],
    ) -> Result<()> {
        if !uuid.is_nil() {
            self.discard_domain(uuid)?;
        }
        self.check_down(uuid, domain)?;
        let mut failed = None;
        for steps in disks {
            // Each on those before it: what holds the content must not go before that is back.
            if let Err(error) = steps.iter().try_for_each(|step| self.carry_out(step)) {
                failed.get_or_insert(error);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Gives a volume its name again, if it has the other one and none has its own.
    pub(super) fn rename_volume_back(&mut self, group: &str, from: &str, to: &str) -> Result<()> {
        let volumes = look::volumes().map_err(Error::failed)?;
        let is_there = |name: &str| volumes.iter().any(|v| v.group == group && v.name == name);
        match is_there(from) && !is_there(to) {
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

/// Waits until nobody has a logical volume open.
pub(super) fn await_closed(path: &str) -> Result<()> {
    await_volume(
        path,
        |_, volume| !volume.open,
        VOLUME_WAIT,
        || {
            Error::failed(format!("Somebody still has volume {path} open")).hint(format!(
                "see who, and end that: dmsetup ls --tree; fuser -v {}",
                device(path)
            ))
        },
    )
}

/// Waits until no snapshot is being merged into a logical volume.
pub(super) fn await_merged(path: &str) -> Result<()> {
    let merged = |all: &[Volume], origin: &Volume| {
        !all.iter().any(|v| v.merging && v.group == origin.group && v.origin == origin.name)
    };
    await_volume(path, merged, VOLUME_WAIT, || {
        Error::failed(format!("A snapshot is still being merged into volume {path}")).hint(format!(
            "see how far it has come, and go on when that is over: lvs -a -o +copy_percent {}",
            quote(path)
        ))
    })
}

fn device(volume: &str) -> String {
    quote(Path::new("/dev").join(volume))
}

/// Waits until `done` says so of a logical volume.
fn await_volume(
    path: &str,
    done: impl Fn(&[Volume], &Volume) -> bool,
    limit: Duration,
    not_done: impl Fn() -> Error,
) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let volumes = look::volumes().map_err(|why| {
            Error::failed(format!("Looking at volume {path}"))
                .because(why)
                .hint("see what lvs says")
        })?;
        match volumes.iter().find(|volume| volume.path() == path) {
            None => {
                return Err(Error::failed(format!("There is no volume {path} any more"))
                    .hint("see what somebody has done to it: lvs -a"));
            }
            Some(volume) if done(&volumes, volume) => return Ok(()),
            Some(_) if Instant::now() >= deadline => {
                return Err(not_done().because(format!("it was waited for {} s", limit.as_secs())));
            }
            Some(_) => thread::sleep(POLL),
        }
    }
}

pub(super) fn rename(from: &Path, to: &Path) -> Result<()> {
    files::rename_new(from, to)
        .and_then(|()| files::sync_directory(to))
        .map_err(failed(format!("Rename {}", from.display())))
}

/// Gives a file its name again, if it has the other one and nothing has its own.
pub(super) fn rename_back(from: &Path, to: &Path) -> Result<()> {
    let is_there = |path: &Path| fs::symlink_metadata(path).is_ok();
    if is_there(from) && !is_there(to) { rename(from, to) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_that_is_waited_for_is_named() {
        for wait in [await_closed, await_merged] {
            // Where there is no LVM, that is the trouble.
            let error = wait("vg-none/lv-none").unwrap_err();
            assert!(error.message.contains("vg-none/lv-none"), "{error}");
            assert!(error.hint.is_some());
        }
    }
}
