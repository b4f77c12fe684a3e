//! Merges of images under a running guest: block jobs of its QEMU, from their start to their end.
//!
//! A job that a process began that is gone now is found by its name, and waited for like one's own.

use std::io::{Read, Write};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::domain::Format;
use crate::error::{Error, Result};
use crate::host::qmp::jobs::{Job, NamedNode, Nodes};
use crate::host::qmp::{Qmp, QmpError};
use crate::host::{chain, files};
use crate::tool::quote;

/// How often a job is looked at.
const POLL: Duration = Duration::from_millis(200);
/// How long a job may not come nearer to its end: a guest may write as fast as a commit follows.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// Who waits for a job.
#[expect(missing_debug_implementations, reason = "it is made of functions")]
pub struct Waiting<'a> {
    /// Told how many bytes are done, of how many.
    pub show: &'a mut dyn FnMut(u64, u64),
    /// Whether the user wants it to end.
    pub stopped: &'a dyn Fn() -> bool,
    /// After how long without progress the job is taken back.
    pub patience: Duration,
}

/// Two images of a disk of a guest.
#[derive(Debug, Clone, Copy)]
pub struct Pair<'a> {
    /// The name of the job.
    pub job: &'a str,
    /// The node of the guest's disk.
    pub root: &'a str,
    /// The overlay.
    pub top: &'a Path,
    /// The image on which it rests.
    pub base: &'a Path,
}

/// Commits the overlay to the image below it. If it is the guest's disk itself, the job stays, ready for
/// [`pivot`].
pub fn commit<S: Read + Write>(
    qmp: &mut Qmp<S>,
    pair: Pair<'_>,
    waiting: &mut Waiting<'_>,
) -> Result<()> {
    if job(qmp, pair.job)?.is_none() {
        let base = needed(qmp, pair.base)?;
        let Some(top) = node(qmp, pair.top)? else {
            // It was done, and the overlay closed.
            return Ok(());
        };
        let active = top.node_name == pair.root;
        let nodes = Nodes {
            root: pair.root,
            top: &top.node_name,
            base: Some(&base.node_name),
            base_file: None,
            // In QEMU's own spelling: see `file_name` in qmp/drives.rs.
            backing_file: (!active).then_some(&base.file),
        };
        qmp.commit(pair.job, nodes).map_err(qemu("begin to commit"))?;
    }
    wait(qmp, pair.job, waiting, true)?;
    match node(qmp, pair.top)? {
        Some(top) if top.node_name != pair.root => close(qmp, &top.node_name),
        _ => Ok(()),
    }
}

/// Streams the image below an overlay into it; then it rests on `below`, or on nothing.
pub fn stream<S: Read + Write>(
    qmp: &mut Qmp<S>,
    pair: Pair<'_>,
    below: Option<&Path>,
    waiting: &mut Waiting<'_>,
) -> Result<()> {
    if job(qmp, pair.job)?.is_none() {
        let top = needed(qmp, pair.top)?;
        let mut found = Vec::new();
        if let Some(path) = below {
            found = open_as(qmp, path)?;
            if found.is_empty() {
                return Err(not_open(path));
            }
        }
        if node(qmp, pair.base)?.is_none() {
            return check_apart(pair);
        }
        let file = found.first().map(|node| node.file.as_path());
        // If another disk has it open too, QEMU looks for its file below this top.
        let (base, base_file) = match found.as_slice() {
            [only] => (Some(only.node_name.as_str()), None),
            _ => (None, file),
        };
        let nodes =
            Nodes { root: pair.root, top: &top.node_name, base, base_file, backing_file: file };
        qmp.stream(pair.job, nodes).map_err(qemu("begin to stream"))?;
    }
    wait(qmp, pair.job, waiting, false)?;
    match node(qmp, pair.base)? {
        Some(base) => close(qmp, &base.node_name),
        None => Ok(()),
    }
}

/// An image that QEMU must have open.
fn needed<S: Read + Write>(qmp: &mut Qmp<S>, path: &Path) -> Result<NamedNode> {
    node(qmp, path)?.ok_or_else(|| not_open(path))
}

/// What QEMU does not have open may have been merged, or may only be named in a way that is not understood. The header
/// of the overlay tells.
fn check_apart(pair: Pair<'_>) -> Result<()> {
    let chain = chain::walk(pair.top, Format::Qcow2).map_err(Error::failed)?;
    let base = files::identity(pair.base);
    match chain.get(1).is_some_and(|below| base == Some(below.id)) {
        false => Ok(()),
        true => Err(not_open(pair.base)),
    }
}

fn not_open(path: &Path) -> Error {
    Error::failed(format!("The guest's QEMU does not tell {} among its images", quote(path)))
        .hint("shut the guest down, and repeat the command: it then merges without QEMU")
}

/// Closes an image that no disk rests on any more: as long as it is open as a node of its own, its file keeps
/// its space, and no other snapshot can be taken (seen with QEMU 7.2: "node is used as backing hd of
/// 'xvda-qcow2'"). QEMU refuses it for one that is in use, and for one that it made for itself, which goes by
/// itself.
fn close<S: Read + Write>(qmp: &mut Qmp<S>, node: &str) -> Result<()> {
    match qmp.delete_node(node) {
        Ok(()) | Err(QmpError::Refused { .. }) => Ok(()),
        Err(error) => Err(qemu("close an image")(error)),
    }
}

/// Switches the guest's disk to the image below, once a commit is ready, and closes the overlay.
pub fn pivot<S: Read + Write>(
    qmp: &mut Qmp<S>,
    pair: Pair<'_>,
    waiting: &mut Waiting<'_>,
) -> Result<()> {
    // While the guest writes, a job that was ready is not for a moment.
    wait(qmp, pair.job, waiting, true)?;
    if job(qmp, pair.job)?.is_some_and(|job| job.status == "ready") {
        qmp.complete_job(pair.job).map_err(qemu("complete the commit"))?;
        wait(qmp, pair.job, waiting, false)?;
    }
    match node(qmp, pair.top)? {
        Some(orphan) => close(qmp, &orphan.node_name),
        None => Ok(()),
    }
}

/// The image in a file; `None` if QEMU does not have it open.
pub fn node<S: Read + Write>(qmp: &mut Qmp<S>, path: &Path) -> Result<Option<NamedNode>> {
    let mut found = open_as(qmp, path)?.into_iter();
    match (found.next(), found.next()) {
        (first, None) => Ok(first),
        (_, Some(_)) => Err(Error::failed(format!("QEMU has {} open twice", quote(path)))
            .hint("an HVM guest that has not unplugged its emulated disks has them open twice: shut it down first")),
    }
}

fn open_as<S: Read + Write>(qmp: &mut Qmp<S>, path: &Path) -> Result<Vec<NamedNode>> {
    let nodes = qmp.named_nodes().map_err(qemu("tell its images"))?;
    let is_it =
        |node: &NamedNode| node.is_image() && (node.file == path || files::same(&node.file, path));
    Ok(nodes.into_iter().filter(is_it).collect())
}

fn job<S: Read + Write>(qmp: &mut Qmp<S>, id: &str) -> Result<Option<Job>> {
    let jobs = qmp.jobs().map_err(qemu("tell its jobs"))?;
    Ok(jobs.into_iter().find(|job| job.id == id))
}

/// Waits for the end of a job, or until it is ready if that is enough.
///
/// # Errors
///
/// If it fails, makes no progress, or the user wants it to end: then it is taken back, and the guest goes on
/// with the images as they were.
fn wait<S: Read + Write>(
    qmp: &mut Qmp<S>,
    id: &str,
    waiting: &mut Waiting<'_>,
    ready_is_enough: bool,
) -> Result<()> {
    let (mut least, mut since) = (u64::MAX, Instant::now());
    let mut ending = None;
    loop {
        // It ended and is not there any more: whoever dismissed it has seen its end.
        let Some(job) = job(qmp, id)? else { return ending.map_or(Ok(()), Err) };
        match job.status.as_str() {
            "concluded" => {
                qmp.dismiss_job(id).map_err(qemu("dismiss the job"))?;
                let why = job.error.map(|why| {
                    Error::failed("The block job of the guest's QEMU failed").because(why).hint(
                        "the guest keeps running; free some space if there was none, and run the command again",
                    )
                });
                return match (ending, why) {
                    (Some(ending), _) => Err(ending),
                    (None, Some(why)) => Err(why),
                    (None, None) => Ok(()),
                };
            }
            "ready" if ready_is_enough && ending.is_none() => return Ok(()),
            _ => {}
        }
        (waiting.show)(job.current_progress, job.total_progress);
        let left = job.total_progress.saturating_sub(job.current_progress);
        if job.total_progress == 0 {
            // QEMU still finds out how much there is.
            since = Instant::now();
        } else if left < least {
            (least, since) = (left, Instant::now());
        }
        if ending.is_none() {
            ending = if (waiting.stopped)() {
                Some(Error::failed("Stopped by a signal"))
            } else if since.elapsed() > waiting.patience {
                Some(
                    Error::failed(format!(
                        "The block job made no progress for {} s: {} MiB were still left",
                        waiting.patience.as_secs(),
                        left >> 20
                    ))
                    .hint("the guest writes as fast as its disk is merged; repeat the command when it is less busy"),
                )
            } else {
                None
            };
            if ending.is_some() {
                match qmp.cancel_job(id) {
                    Ok(()) => {}
                    // It has ended meanwhile: the next look tells how.
                    Err(QmpError::Refused { .. }) => ending = None,
                    Err(error) => return Err(qemu("cancel the job")(error)),
                }
            }
        }
        thread::sleep(POLL);
    }
}

pub fn qemu(what: &'static str) -> impl Fn(QmpError) -> Error {
    move |error| Error::failed(format!("The guest's QEMU could not {what}")).because(error)
}
