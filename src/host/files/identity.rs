//! Which file or device a path leads to.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use nix::sys::stat::{major, minor};

use crate::disk::chain::FileId;

/// The number of a device, major and minor; `None` for anything else.
pub fn device(path: &Path) -> Option<(u64, u64)> {
    let meta = fs::metadata(path).ok()?;
    meta.file_type().is_block_device().then(|| (major(meta.rdev()), minor(meta.rdev())))
}

/// Which file or device a path leads to.
pub fn identity(path: &Path) -> Option<FileId> {
    let meta = fs::metadata(path).ok()?;
    let device = meta.file_type().is_block_device();
    Some(if device { (meta.rdev(), 0) } else { (meta.dev(), meta.ino()) })
}

/// How long a file system may take to say what a path leads to.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// The same where a missing answer ends the work: a disk may have to start to turn.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What `work` tells, piece by piece, while it looks at files that may be on a file system that never answers. `None`
/// if nothing more comes within `limit`: then its thread stays where it hangs.
pub fn as_it_answers<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce(&mut dyn FnMut(T)) + Send + 'static,
) -> Option<Vec<T>> {
    let (sender, answers) = mpsc::channel();
    thread::spawn(move || {
        // Whoever has given up takes nothing more.
        work(&mut |piece| drop(sender.send(Some(piece))));
        drop(sender.send(None));
    });
    let mut pieces = Vec::new();
    loop {
        match answers.recv_timeout(limit) {
            Ok(Some(piece)) => pieces.push(piece),
            Ok(None) => return Some(pieces),
            Err(_) => return None,
        }
    }
}

/// The directories whose file systems did not answer this process.
static SILENT: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn silent() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    SILENT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether [`identities`] had no answer about the directory of a path.
pub fn is_silent(path: &Path) -> bool {
    path.parent().is_some_and(|parent| silent().contains(parent))
}

/// The same of paths that are none of our business, such as those of other domains. A file system that does
/// not answer, such as NFS whose server is gone, has no file of ours, which were looked at before.
pub fn identities(paths: &[&Path]) -> Vec<Option<FileId>> {
    let mut found = vec![None; paths.len()];
    let mut at = 0;
    while at < paths.len() {
        let (sender, answers) = mpsc::channel();
        let rest: Vec<_> = paths[at..].iter().map(|path| path.to_path_buf()).collect();
        let hangs = silent().clone();
        // Remaining alone where it hangs.
        thread::spawn(move || {
            for path in rest {
                let skipped = path.parent().is_some_and(|parent| hangs.contains(parent));
                if sender.send(if skipped { None } else { identity(&path) }).is_err() {
                    return;
                }
            }
        });
        while let Ok(answer) = answers.recv_timeout(ANSWER_LIMIT) {
            found[at] = answer;
            at += 1;
            if at == paths.len() {
                return found;
            }
        }
        silent().extend(paths[at].parent().map(Path::to_owned));
        at += 1;
    }
    found
}

/// Whether two paths lead to the same file or device.
pub fn same(one: &Path, other: &Path) -> bool {
    identity(one).is_some_and(|one| identity(other) == Some(one))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_is_given_up_and_what_is_slow_is_not() {
        const NAP: Duration = Duration::from_millis(80);
        let (limit, nap) = (2 * NAP, || thread::sleep(NAP));
        let slow = as_it_answers(limit, move |tell| {
            (0..4).for_each(|piece| {
                nap();
                tell(piece);
            });
        });
        assert_eq!(slow, Some(vec![0, 1, 2, 3]));
        let (hangs, held) = mpsc::channel::<()>();
        let hung = as_it_answers(limit, move |tell| {
            tell(0);
            let _ = held.recv();
        });
        assert_eq!(hung, None);
        drop(hangs);
        assert_eq!(as_it_answers(limit, |_: &mut dyn FnMut(u8)| {}), Some(Vec::new()));
    }
}
