//! Whether a disk that blkback serves is in use by dom0 or another domain. Xen's script refuses to attach such a
//! device (scripts/block, `check_sharing`): for writing if anybody uses it, for reading if anybody writes to it.
//!
//! Files are looked at less strictly. The script looks for the loop devices of a file by its device number in
//! hexadecimal, losetup prints it in decimal, and so it finds none: only what destroys data counts.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::makedev;

use super::answer::{Answer, CheckContext, InUse};
use crate::disk::chain::FileId;
use crate::host::files::{identities, identity};
use crate::host::openers::Opener;
use crate::host::toolstack::Toolstack;
use crate::host::xenstore::{Vbd, device_number};
use crate::need::Severity;

/// Who uses a device, besides the domain.
struct User {
    who: String,
    writes: bool,
}

pub(super) fn unshared(
    path: &Path,
    writable: bool,
    around: CheckContext<'_>,
    used: &InUse,
) -> Answer {
    let Some(id) = identity(path) else { return Answer::There };
    let is_file = id.1 != 0;
    let devices = if is_file { loops_of(path) } else { vec![id.0] };
    let shown = path.display();
    let matters = |user: &User| hinders(user.writes, writable, is_file);
    let mounts = match fs::read_to_string("/proc/self/mounts") {
        Ok(mounts) => mounts,
        Err(error) => {
            let what = format!("whether {shown} is mounted in dom0: /proc/self/mounts: {error}");
            return Answer::Unseen(what);
        }
    };
    let mut users = mounts.lines().filter_map(|line| mounted(line, &devices, &device));
    if let Some(user) = users.find(|user| matters(user)) {
        return busy(&user, path);
    }
    let Some(toolstack) = around.toolstack else {
        return Answer::unseen(&format!("whether another domain uses {shown}"));
    };
    let domains = match toolstack.domains() {
        Ok(domains) => domains,
        Err(error) => {
            return Answer::Unseen(format!("whether another domain uses {shown}: {error}"));
        }
    };
    // What the running domain shares with others, on a cluster file system, it goes on sharing.
    let own = around.gone.or(around.same);
    if own.is_some_and(|domid| has(toolstack, domid, id)) {
        return Answer::There;
    }
    // A device below another one (multipath) is no matter.
    let counts = |opener: &Opener| opener.writes && (is_file || opener.domid.is_some());
    let another =
        |opener: &Opener| opener.domid.is_none_or(|domid| !is_own(toolstack, domid, around));
    let mut writers = used.files.iter().filter(|(file, opener)| *file == id && counts(opener));
    if let Some((_, opener)) = writers.find(|(_, opener)| writable && another(opener)) {
        return busy(&User { who: opener.who.clone(), writes: true }, path);
    }
    for info in domains {
        let user = Some(info.domid)
            .filter(|domid| !is_own(toolstack, *domid, around))
            .and_then(|domid| attached(toolstack, domid, &devices));
        if let Some(user) = user.filter(|user| matters(user)) {
            return busy(&user, path);
        }
    }
    Answer::There
}

/// A device of the same domain is no obstacle (block-common.sh, `same_vm`), nor one of its stub domain, which ends
/// with it.
fn is_own(toolstack: &Toolstack, domid: u32, around: CheckContext<'_>) -> bool {
    let own = |domid: u32| [around.gone, around.same].contains(&Some(domid));
    let target = || toolstack.read(&format!("/local/domain/{domid}/target")).ok().flatten();
    own(domid) || target().and_then(|target| target.parse().ok()).is_some_and(own)
}

/// Whether a file or device is a disk of a running domain.
fn has(toolstack: &Toolstack, domid: u32, id: FileId) -> bool {
    let vbds = toolstack.vbds(domid).unwrap_or_default();
    vbds.iter().filter_map(Vbd::image).any(|image| identity(image) == Some(id))
}

fn busy(user: &User, path: &Path) -> Answer {
    let how = if user.writes { "for writing" } else { "for reading" };
    Answer::Trouble(Severity::Busy, format!("{} uses {} {how}", user.who, path.display()))
}

/// Whether a use keeps the disk from being attached.
fn hinders(writes: bool, writable: bool, is_file: bool) -> bool {
    if is_file { writes && writable } else { writes || writable }
}

/// What a line of /proc/mounts says of the devices: `/dev/loop0 /mnt ext4 rw,relatime 0 0`.
fn mounted(line: &str, devices: &[u64], device: &dyn Fn(&Path) -> Option<u64>) -> Option<User> {
    let mut words = line.split(' ');
    // The server of a network file system is not looked for.
    let source = words.next().filter(|source| source.starts_with("/dev/"))?;
    let at = words.next()?;
    let options = words.nth(1)?;
    device(Path::new(source)).filter(|number| devices.contains(number))?;
    let writes = options.split(',').next() != Some("ro");
    Some(User { who: format!("dom0, mounted at {at},"), writes })
}

fn device(path: &Path) -> Option<u64> {
    let meta = fs::metadata(path).ok().filter(|meta| meta.file_type().is_block_device())?;
    Some(meta.rdev())
}

/// The loop devices of a file.
fn loops_of(path: &Path) -> Vec<u64> {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let devices = devices.map(|entry| entry.path());
    let loops: Vec<(u64, PathBuf)> = devices.filter_map(|device| backing(&device)).collect();
    let files: Vec<&Path> = loops.iter().map(|(_, file)| file.as_path()).collect();
    let wanted = identity(path);
    let ids = identities(&files).into_iter();
    let same = loops.iter().zip(ids).filter(|(_, id)| id.is_some() && *id == wanted);
    same.map(|((number, _), _)| *number).collect()
}

/// The number of a loop device in /sys/block, and its file.
fn backing(device: &Path) -> Option<(u64, PathBuf)> {
    let file = fs::read_to_string(device.join("loop/backing_file")).ok()?;
    let number = fs::read_to_string(device.join("dev")).ok()?;
    let (major, minor) = number.trim().split_once(':')?;
    Some((makedev(major.parse().ok()?, minor.parse().ok()?), file.trim_end_matches('\n').into()))
}

/// A domain to which one of the devices is attached.
fn attached(toolstack: &Toolstack, domid: u32, devices: &[u64]) -> Option<User> {
    toolstack.read(&format!("/local/domain/{domid}/vm")).ok().flatten()?;
    let keys = toolstack.below(&format!("/local/domain/0/backend/vbd/{domid}")).ok()?;
    let writes = serves(&keys, devices)?;
    let name = toolstack.domain_name(domid).ok().flatten().unwrap_or_else(|| domid.to_string());
    Some(User { who: format!("domain {name}"), writes })
}

/// Whether a domain with these keys of blkback has one of the devices, and if so, whether it writes to it.
fn serves(keys: &[(String, String)], devices: &[u64]) -> Option<bool> {
    let of_key = |(key, value): &(String, String)| {
        let disk = key.strip_suffix("/physical-device")?;
        devices.contains(&device_number(value)?).then(|| disk.to_owned())
    };
    let disks: Vec<String> = keys.iter().filter_map(of_key).collect();
    let writes = |disk: &String| {
        let mode = keys.iter().find(|(key, _)| *key == format!("{disk}/mode"));
        mode.is_some_and(|(_, mode)| mode.contains('w'))
    };
    (!disks.is_empty()).then(|| disks.iter().any(writes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_known_by_the_number_of_its_device() {
        let number = |path: &Path| match path.to_str() {
            Some("/dev/mapper/vg0-data" | "/dev/dm-7") => Some(makedev(253, 7)),
            Some("/dev/loop0") => Some(makedev(7, 0)),
            _ => None,
        };
        let of = |line: &str| {
            let user = mounted(line, &[makedev(253, 7)], &number)?;
            Some((user.who, user.writes))
        };
        let at = |writes| Some(("dom0, mounted at /mnt,".to_owned(), writes));
        assert_eq!(of("/dev/mapper/vg0-data /mnt ext4 rw,relatime 0 0"), at(true));
        assert_eq!(of("/dev/dm-7 /mnt ext4 ro 0 0"), at(false));
        assert_eq!(of("/dev/dm-7 /mnt ext4 ro,norecovery 0 0"), at(false));
        for line in [
            "/dev/loop0 /mnt ext4 rw 0 0",
            "vg0-data /mnt tmpfs rw 0 0",
            "nas:/dev/dm-7 /mnt nfs rw 0 0",
            "/dev/dm-7",
        ] {
            assert_eq!(of(line), None, "{line}");
        }
    }

    #[test]
    fn a_domain_is_known_by_the_device_that_blkback_opened_for_it() {
        let keys = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let keys = keys(&[
            ("51712/physical-device", "fd:1f"),
            ("51712/mode", "w"),
            ("51728/mode", "r"),
            ("51728/physical-device", "7:0"),
            ("51744/physical-device", "none"),
        ]);
        assert_eq!(serves(&keys, &[makedev(253, 31)]), Some(true));
        assert_eq!(serves(&keys, &[makedev(7, 0)]), Some(false));
        assert_eq!(serves(&keys, &[makedev(253, 7)]), None);
        assert_eq!(serves(&keys[1..2], &[makedev(253, 31)]), None);
    }

    #[test]
    fn what_xen_refuses_and_what_destroys_data() {
        // What the other does, what the domain does.
        let device = |writes, writable| hinders(writes, writable, false);
        assert!(device(true, true) && device(false, true) && device(true, false));
        assert!(!device(false, false));
        let file = |writes, writable| hinders(writes, writable, true);
        assert!(file(true, true));
        assert!(!file(false, true) && !file(true, false) && !file(false, false));
    }

    #[test]
    fn nobody_uses_a_new_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let nowhere = CheckContext { toolstack: None, gone: None, same: None };
        let used = InUse { files: Vec::new(), ports: Vec::new() };
        // Without a toolstack, other domains cannot be asked.
        assert!(matches!(unshared(file.path(), true, nowhere, &used), Answer::Unseen(_)));
        assert!(matches!(unshared(Path::new("/dev/no-such"), true, nowhere, &used), Answer::There));
    }
}
