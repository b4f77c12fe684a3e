//! Which file or device a path leads to.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::mpsc;
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

/// The same of paths that are none of our business, such as those of other domains. A file system that does
/// not answer, such as NFS whose server is gone, has no file of ours, which were looked at before.
pub fn identities(paths: &[&Path]) -> Vec<Option<FileId>> {
    let mut found = vec![None; paths.len()];
    let mut hangs: Vec<&Path> = Vec::new();
    let mut at = 0;
    while at < paths.len() {
        let (sender, answers) = mpsc::channel();
        let rest: Vec<_> = paths[at..].iter().map(|path| path.to_path_buf()).collect();
        let silent = hangs.iter().map(|path| path.to_path_buf()).collect::<Vec<_>>();
        // Remaining alone where it hangs.
        thread::spawn(move || {
            for path in rest {
                let hangs = path.parent().is_some_and(|parent| silent.iter().any(|s| s == parent));
                if sender.send(if hangs { None } else { identity(&path) }).is_err() {
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
        hangs.extend(paths[at].parent());
        at += 1;
    }
    found
}

/// Whether two paths lead to the same file or device.
pub fn same(one: &Path, other: &Path) -> bool {
    identity(one).is_some_and(|one| identity(other) == Some(one))
}
