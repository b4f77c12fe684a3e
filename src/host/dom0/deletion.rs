//! The steps that delete a snapshot.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use super::guarded::started;
use super::state::{Dom0, caused, failed, meddled};
use crate::disk::proof::QcowSnapshot;
use crate::error::{Error, Result};
use crate::host::block_jobs::{self, PATIENCE, Pair, Waiting};
use crate::host::deletion::steps;
use crate::host::guard::Note;
use crate::host::qmp::Qmp;
use crate::host::{command, files, merge_mark, savers};
use crate::names::same_vdev;
use crate::plan::deletion::{Deletion, Online};
use crate::tool::Invocation;

/// The text of the progress bar.
const MERGING: &str = "merging disks";

impl Dom0 {
    pub(super) fn delete(&mut self, step: &Deletion) -> Result<()> {
        if let Deletion::WriteRecord { path, .. } = step {
            // A file that existed before is not ours to remove.
            if !path.exists() {
                self.tell(&Note::Made(path.clone()));
                self.made.insert(path.clone());
            }
        }
        let mut run = |call: &Invocation, grows: Option<(&Path, u64)>| self.run_tool(call, grows);
        if let Some(result) = steps::perform(step, &mut run) {
            return result;
        }
        match step {
            Deletion::Commit { online: Some(online), top, base, .. } => {
                self.online(online, top, &base.path, &mut block_jobs::commit)
            }
            Deletion::Stream { online: Some(online), top, base, below, .. } => {
                let below = below.as_ref().map(|image| image.path.as_path());
                self.online(online, top, base, &mut |qmp, pair, waiting| {
                    block_jobs::stream(qmp, pair, below, waiting)
                })
            }
            Deletion::Pivot { online, top, base } => self.pivot(online, top, base),
            Deletion::DeleteInside { online: Some(online), file, snapshot } => {
                self.delete_inside(online, file, snapshot)
            }
            other => Err(Error::failed(format!("Cannot {other}"))),
        }
    }

    /// Whether a step that another process began is complete.
    pub(super) fn settle_deletion(step: &Deletion) -> bool {
        match step {
            Deletion::Mark { image, marked } => marked.exists() && !image.exists(),
            _ => false,
        }
    }

    fn run_tool(&self, call: &Invocation, grows: Option<(&Path, u64)>) -> Result<()> {
        let started = started(self.guard.as_ref());
        let Some((path, bytes)) = grows else {
            return command::run_all(&[call], &started).map_err(caused);
        };
        let before = steps::allocated(path);
        let meter = self.reporter.meter(MERGING);
        let nothing = fs::File::open("/dev/null").map_err(failed("Open /dev/null"))?;
        let mut show = |_| {
            let grown = steps::allocated(path).saturating_sub(before);
            meter.show(None, grown.min(bytes), bytes);
        };
        command::run_on(call, nothing, &mut show, &started).map_err(caused)
    }

    /// Merges images in QEMU, and shows the progress.
    fn online(
        &mut self,
        online: &Online,
        top: &Path,
        base: &Path,
        merge: &mut dyn FnMut(&mut Qmp, Pair<'_>, &mut Waiting<'_>) -> Result<()>,
    ) -> Result<()> {
        self.the_same(&online.domain)?;
        let mut qmp = connect(online)?;
        let (root, _) = root(&mut qmp, online)?;
        let meter = self.reporter.meter(MERGING);
        let mut waiting = Waiting {
            show: &mut |done, total| meter.show(None, done, total),
            stopped: &|| self.stop.load(Ordering::Acquire),
            patience: PATIENCE,
        };
        merge(&mut qmp, Pair { job: &online.job, root: &root, top, base }, &mut waiting)
    }

    fn pivot(&mut self, online: &Online, top: &Path, base: &Path) -> Result<()> {
        // It has read the configuration that names the overlay, which goes.
        if let Some(pid) =
            savers::other(&online.domain).map_err(failed("Look for programs that save it"))?
        {
            return Err(meddled(&format!(
                "began to save or migrate {} (process {pid})",
                online.domain
            )));
        }
        // Do not stop between the disks of a domain: a pivot takes only a moment.
        let switched = self.online(online, top, base, &mut |qmp, pair, waiting| {
            let Waiting { show, patience, .. } = waiting;
            block_jobs::pivot(
                qmp,
                pair,
                &mut Waiting { show, stopped: &|| false, patience: *patience },
            )
        });
        // Whatever was answered: it may have switched before the connection failed.
        let (_, file) = root(&mut connect(online)?, online)?;
        if files::same(&file, base) {
            return Ok(());
        }
        if files::same(&file, top) {
            // Or else a later deletion would take the overlay for the older one, once the guest is down.
            merge_mark::take_back(base, top)
                .map_err(failed(format!("Mark {} as it is", base.display())))?;
        }
        switched.and_then(|()| {
            Err(Error::failed(format!(
                "The guest still writes to {}, not to {}",
                file.display(),
                base.display()
            ))
            .hint("run the command again: the merge starts from the beginning"))
        })
    }

    fn delete_inside(&self, online: &Online, file: &Path, snapshot: &QcowSnapshot) -> Result<()> {
        self.the_same(&online.domain)?;
        let mut qmp = connect(online)?;
        let disks = qmp.disks().map_err(block_jobs::qemu("tell its disks"))?;
        let node = disks.into_iter().find(|(vdev, _)| same_vdev(vdev, &online.vdev));
        let node = node.map(|(_, node)| node).filter(|node| files::same(&node.file, file));
        let Some(node) = node else {
            return Err(Error::failed(format!(
                "The guest does not write to {} any more",
                file.display()
            )));
        };
        match node.snapshots.contains(snapshot) {
            true => qmp
                .delete_internal_by_id(&node.name, (&snapshot.id, &snapshot.name))
                .map_err(block_jobs::qemu("delete the snapshot")),
            false => Ok(()),
        }
    }
}

fn connect(online: &Online) -> Result<Qmp> {
    Qmp::connect(online.domain.domid).map_err(failed("Talk to the guest's QEMU"))
}

/// The node of a guest's disk and its file.
fn root(qmp: &mut Qmp, online: &Online) -> Result<(String, PathBuf)> {
    let disks = qmp.disks().map_err(block_jobs::qemu("tell its disks"))?;
    let root = disks.into_iter().find(|(vdev, _)| same_vdev(vdev, &online.vdev));
    root.map(|(_, node)| (node.name, node.file))
        .ok_or_else(|| Error::failed(format!("QEMU does not know disk {}", online.vdev)))
}
