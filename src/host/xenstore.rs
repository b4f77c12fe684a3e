//! What we read and write in xenstore.
//!
//! Layout: docs/misc/xenstore-paths.pandoc; `/libxl` is libxl's own copy of the backend keys.

use std::fmt;
use std::io;
use std::path::Path;

use rustix::fs::makedev;
use xenstore_rs::Xs;
use xenstore_rs::unix::XsUnix;

use crate::disk::{Sectors, Served};
use crate::domain::Disk;
use crate::plan::XenstoreWrite;
use crate::record::SECTOR;

/// A failed access.
#[derive(Debug, thiserror::Error)]
#[error("Xenstore key {path}")]
pub struct XenstoreError {
    path: String,
    source: io::Error,
}

impl XenstoreError {
    /// Whether a value is not UTF-8, as a name or path of another domain may be.
    pub fn is_unreadable(&self) -> bool {
        self.source.kind() == io::ErrorKind::InvalidData
    }
}

/// How many keys are read of a directory that has less than ten.
const MAX_KEYS: usize = 1000;

/// A connection to xenstored.
pub struct Xenstore(XsUnix);

impl fmt::Debug for Xenstore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Xenstore")
    }
}

/// What xenstore knows of one disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vbd {
    /// The guest's name of it.
    pub vdev: String,
    /// What serves it.
    pub served: Served,
    pub writable: bool,
    /// The keys that name its image, with their values.
    pub params: Vec<(String, String)>,
    /// The number of the device that blkback serves, if it does.
    pub device: Option<u64>,
    /// What the guest is told of its size, once it is connected.
    pub sectors: Option<Sectors>,
}

impl Vbd {
    /// Makes sense of the keys below `own`, libxl's directory of a disk; `None` if it is going.
    /// `read` tells a key's value, if it has one.
    pub fn of_keys<E>(
        own: &str,
        read: impl Fn(&str) -> Result<Option<String>, E>,
    ) -> Result<Option<Vbd>, E> {
        let Some(vdev) = read(&format!("{own}/dev"))? else { return Ok(None) };
        let served = match read(&format!("{own}/type"))?.as_deref() {
            Some("qdisk") => Served::Qemu,
            Some("phy") => Served::Blkback,
            other => Served::Other(other.unwrap_or("nothing").to_owned()),
        };
        let writable = read(&format!("{own}/mode"))?.as_deref() != Some("r");
        let backend = read(&format!("{own}/backend"))?;
        let mut params = Vec::new();
        for directory in [Some(own), backend.as_deref()].into_iter().flatten() {
            let key = format!("{directory}/params");
            if let Some(value) = read(&key)? {
                params.push((key, value));
            }
        }
        let number = |key: &str| -> Result<Option<u64>, E> {
            let Some(backend) = &backend else { return Ok(None) };
            Ok(read(&format!("{backend}/{key}"))?.and_then(|value| value.parse().ok()))
        };
        let device = match &backend {
            Some(backend) => read(&format!("{backend}/physical-device"))?,
            None => None,
        };
        let device = device.as_deref().and_then(device_number);
        let (count, size) = (number("sectors")?, number("sector-size")?);
        let sectors = count.map(|count| Sectors { count, size: size.unwrap_or(SECTOR) });
        Ok(Some(Vbd { vdev, served, writable, params, device, sectors }))
    }

    /// The image, as far as xenstore tells: behind the format for a qdisk, the whole value else.
    pub fn image(&self) -> Option<&Path> {
        let (_, value) = self.params.first()?;
        let path = match self.served {
            Served::Qemu => value.split_once(':')?.1,
            Served::Blkback | Served::Nobody | Served::Other(_) => {
                value.strip_prefix(Disk::TAP_VHD).unwrap_or(value)
            }
        };
        Some(Path::new(path))
    }
}

/// A device number as blkback's script writes it: `fd:7`.
pub fn device_number(text: &str) -> Option<u64> {
    let (major, minor) = text.split_once(':')?;
    let number = |text: &str| u32::from_str_radix(text, 16).ok();
    Some(makedev(number(major)?, number(minor)?))
}

impl Xenstore {
    pub fn open() -> Result<Self, XenstoreError> {
        XsUnix::new().map(Xenstore).map_err(|source| XenstoreError { path: "/".into(), source })
    }

    /// A key's value; `None` if there is no such key.
    pub fn read(&self, path: &str) -> Result<Option<String>, XenstoreError> {
        optional(path, self.0.read(path).map(String::from))
    }

    /// The process of the domain's QEMU.
    pub fn qemu_pid(&self, domid: u32) -> Result<Option<i32>, XenstoreError> {
        let path = format!("/local/domain/{domid}/image/device-model-pid");
        Ok(self.read(&path)?.as_deref().and_then(process_number))
    }

    /// The disks of a domain.
    pub fn vbds(&self, domid: u32) -> Result<Vec<Vbd>, XenstoreError> {
        let root = format!("/libxl/{domid}/device/vbd");
        let devids = optional(&root, self.0.directory(&root))?.unwrap_or_default();
        let mut vbds = Vec::new();
        for devid in devids.iter().filter(|devid| !devid.is_empty()) {
            let own = format!("{root}/{devid}");
            vbds.extend(Vbd::of_keys(&own, |path| self.read(path))?);
        }
        Ok(vbds)
    }

    /// The loop devices that the block script has set up for a domain's disks, as `loop0`.
    pub fn loops(&self, domid: u32) -> Result<Vec<String>, XenstoreError> {
        let root = format!("/libxl/{domid}/device/vbd");
        let devids = optional(&root, self.0.directory(&root))?.unwrap_or_default();
        let mut loops = Vec::new();
        for devid in devids.iter().filter(|devid| !devid.is_empty()) {
            let Some(backend) = self.read(&format!("{root}/{devid}/backend"))? else { continue };
            let node = self.read(&format!("{backend}/node"))?;
            loops.extend(node.and_then(|node| Some(node.strip_prefix("/dev/")?.to_owned())));
        }
        Ok(loops)
    }

    /// The pools of processors: number and name (libxl_cpupool.c, `libxl_cpupool_create`; the first one is
    /// made by Xen itself).
    pub fn pools(&self) -> Result<Vec<(String, String)>, XenstoreError> {
        let root = "/local/pool";
        let numbers = optional(root, self.0.directory(root))?.unwrap_or_default();
        let mut pools = vec![("0".to_owned(), "Pool-0".to_owned())];
        for number in numbers.iter().filter(|number| !number.is_empty()) {
            let name = self.read(&format!("{root}/{number}/name"))?;
            pools.push((number.to_string(), name.unwrap_or_default()));
        }
        Ok(pools)
    }

    /// Takes back a request to suspend that the guest has not taken up (libxl does the same when
    /// its own time-out passes: libxl_domain.c, `libxl__domain_pvcontrol_write` of "").
    pub fn cancel_suspend(&self, domid: u32) -> Result<(), XenstoreError> {
        let path = format!("/local/domain/{domid}/control/shutdown");
        if is_suspend(self.read(&path))? {
            self.write(&path, "")?;
        }
        Ok(())
    }

    /// Replaces the values of keys, one after the other: the crate has no transactions on this interface.
    /// Keys of a disk that is gone, and those that somebody has given another value, are left alone.
    pub fn replace(&self, writes: &[XenstoreWrite]) -> Result<(), XenstoreError> {
        for write in writes {
            if self.read(&write.path)?.as_ref() == Some(&write.old) {
                self.write(&write.path, &write.new)?;
            }
        }
        Ok(())
    }

    /// All keys below a directory with their values, by their paths in it. What is no text is left out.
    pub fn below(&self, directory: &str) -> Result<Vec<(String, String)>, XenstoreError> {
        let mut found = Vec::new();
        let mut todo = vec![String::new()];
        while let Some(at) = todo.pop().filter(|_| found.len() < MAX_KEYS) {
            let path = format!("{directory}{at}");
            let names = optional(&path, self.0.directory(&path))?.unwrap_or_default();
            for name in names.iter().filter(|name| !name.is_empty()) {
                let key = format!("{at}/{name}");
                match self.read(&format!("{directory}{key}")) {
                    Ok(value) => {
                        let value = value.filter(|value| !value.is_empty());
                        found.extend(value.map(|value| (key[1..].to_owned(), value)));
                    }
                    Err(error) if error.is_unreadable() => {}
                    Err(error) => return Err(error),
                }
                todo.push(key);
            }
        }
        Ok(found)
    }

    /// Removes a key and all below it, if it is there.
    pub fn remove(&self, path: &str) -> Result<(), XenstoreError> {
        optional(path, self.0.rm(path)).map(drop)
    }

    /// Writes a value.
    pub fn write(&self, path: &str, value: &str) -> Result<(), XenstoreError> {
        self.0.write(path, value).map_err(|source| XenstoreError { path: path.to_owned(), source })
    }
}

/// Whether that is the request to suspend. The guest may write anything there, also what is no text.
fn is_suspend(value: Result<Option<String>, XenstoreError>) -> Result<bool, XenstoreError> {
    match value {
        Ok(value) => Ok(value.as_deref() == Some("suspend")),
        Err(error) if error.source.kind() == io::ErrorKind::InvalidData => Ok(false),
        Err(error) => Err(error),
    }
}

/// The number of a process, which is never 0 or less: kill(2) takes those for groups.
pub fn process_number(value: &str) -> Option<i32> {
    value.parse().ok().filter(|pid| *pid > 0)
}

fn optional<T>(path: &str, result: io::Result<T>) -> Result<Option<T>, XenstoreError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(XenstoreError { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn vbd(keys: &[(&str, &str)]) -> Option<Vbd> {
        let read = |path: &str| -> Result<Option<String>, Infallible> {
            let value = keys.iter().find(|(key, _)| *key == path).map(|(_, value)| *value);
            Ok(value.map(str::to_owned))
        };
        let Ok(vbd) = Vbd::of_keys("/libxl/7/device/vbd/51712", read);
        vbd
    }

    #[test]
    fn the_keys_of_a_disk() {
        const OWN: [(&str, &str); 4] = [
            ("/libxl/7/device/vbd/51712/dev", "xvda"),
            ("/libxl/7/device/vbd/51712/type", "qdisk"),
            ("/libxl/7/device/vbd/51712/backend", "/b"),
            ("/libxl/7/device/vbd/51712/params", "qcow2:/srv/a:b.qcow2"),
        ];
        const BACKEND: [(&str, &str); 3] = [
            ("/b/params", "qcow2:/srv/a:b.qcow2"),
            ("/b/sectors", "4096"),
            ("/b/sector-size", "512"),
        ];
        let disk = vbd(&[&OWN[..], &BACKEND].concat()).unwrap();
        assert_eq!(disk.sectors, Some(Sectors { count: 4096, size: 512 }));
        assert_eq!(
            (disk.vdev.as_str(), &disk.served, disk.writable),
            ("xvda", &Served::Qemu, true)
        );
        assert_eq!(disk.params.len(), 2);
        assert_eq!(disk.image(), Some(Path::new("/srv/a:b.qcow2")));
        assert_eq!(vbd(&OWN[..2]).unwrap().image(), None);
        assert_eq!(vbd(&OWN[1..]), None, "without a name it is going");
        let bare = vbd(&OWN[..1]).unwrap();
        assert_eq!(bare.served, Served::Other("nothing".into()));
    }

    #[test]
    fn what_is_no_text_is_no_request() {
        let failed = |kind: io::ErrorKind| {
            Err(XenstoreError { path: "/control/shutdown".into(), source: kind.into() })
        };
        assert!(is_suspend(Ok(Some("suspend".into()))).unwrap());
        assert!(!is_suspend(Ok(Some(String::new()))).unwrap());
        assert!(!is_suspend(Ok(None)).unwrap());
        assert!(!is_suspend(failed(io::ErrorKind::InvalidData)).unwrap());
        assert!(is_suspend(failed(io::ErrorKind::PermissionDenied)).is_err());
    }

    #[test]
    fn only_one_process_is_meant() {
        assert_eq!(process_number("2042"), Some(2042));
        for value in ["", "0", "-1", "2042 ", "99999999999", "x"] {
            assert_eq!(process_number(value), None, "{value:?}");
        }
    }
}
