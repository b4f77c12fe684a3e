//! What a running domain really has open. Its configuration names files, and a name may lead elsewhere since:
//! somebody renamed a file or volume and gave its name to another one, or had QEMU continue in a new overlay.

use std::fs;
use std::path::Path;

use crate::disk::chain::FileId;
use crate::disk::{Node, Served};
use crate::domain::{Disk, DomainId, Format};
use crate::host::files::{self, identity};
use crate::host::openers;
use crate::host::process;
use crate::host::toolstack::Toolstack;
use crate::host::xenstore::Vbd;
use crate::names::same_vdev;
use crate::need::{Severity, Trouble};

/// Has the disks that QEMU serves name the files that it writes to.
pub(super) fn follow(nodes: &[(String, Node)], current: &mut [Disk]) {
    for (vdev, node) in nodes.iter().filter(|(_, node)| node.elsewhere.is_none()) {
        let disk = current.iter_mut().find(|disk| same_vdev(&disk.vdev, vdev));
        let moved = disk.filter(|disk| {
            let named = disk.file();
            node.file != named && identity(&node.file).is_some() && !files::same(&node.file, named)
        });
        if let (Some(disk), Some(format)) = (moved, Format::of_qemu(&node.driver)) {
            disk.path.clone_from(&node.file);
            disk.format = Some(format);
        }
    }
}

/// The writable disks whose paths lead to a file or device that the running domain does not write to.
pub(super) fn troubles(toolstack: &Toolstack, domain: &DomainId, disks: &[Disk]) -> Vec<Trouble> {
    let Ok(vbds) = toolstack.vbds(domain.domid) else { return Vec::new() };
    let qemu = toolstack.qemu_pid(domain.domid).ok().flatten();
    let qemu = qemu.filter(|pid| process::is_qemu_of(*pid, domain.domid));
    let by_qemu = qemu.map(openers::written_by).unwrap_or_default();
    // A script or a driver domain serves something else under that number: tapdisk's device, for one.
    let ours = |disk: &&Disk| disk.script.is_none() && disk.backend_domain.is_none();
    let written = disks.iter().filter(|disk| disk.writable && !disk.cdrom).filter(ours);
    let displaced = written.filter(|disk| {
        let vbd = vbds.iter().find(|vbd| same_vdev(&vbd.vdev, &disk.vdev));
        vbd.is_some_and(|vbd| is_displaced(disk.file(), vbd, &by_qemu))
    });
    let told = displaced.map(|disk| Trouble {
        rank: Severity::Lost,
        about: format!("Disk {} of {domain} is another one", disk.vdev),
        why: format!(
            "the domain writes to something else than {}: that was renamed or replaced",
            disk.file().display()
        ),
        hint: format!(
            "give the domain's own file or volume its name back, but never over another file. What it has open: \
             xenstore-ls /local/domain/0/backend/vbd/{}{}",
            domain.domid,
            qemu.map(|pid| format!("; ls -l /proc/{pid}/fd")).unwrap_or_default()
        ),
    });
    told.collect()
}

/// Whether a path leads elsewhere than the disk. What cannot be seen is not told.
fn is_displaced(path: &Path, vbd: &Vbd, by_qemu: &[FileId]) -> bool {
    // On FUSE, an open file and its path may have different numbers.
    let passing = files::facts(path).is_ok_and(|facts| !facts.lasting);
    let Some(named) = identity(path).filter(|_| path.is_absolute() && !passing) else {
        return false;
    };
    match vbd.served {
        Served::Qemu => !by_qemu.is_empty() && !by_qemu.contains(&named),
        Served::Blkback => match vbd.device {
            Some(device) => ![Some((device, 0)), behind_loop(device)].contains(&Some(named)),
            None => false,
        },
        Served::Nobody | Served::Other(_) => false,
    }
}

/// The file of a loop device, if it is one.
fn behind_loop(device: u64) -> Option<FileId> {
    let number = openers::device_number((device, 0));
    let file = fs::read_to_string(format!("/sys/dev/block/{number}/loop/backing_file")).ok()?;
    identity(Path::new(file.trim_end_matches('\n')))
}
