//! Reads a user's xl configuration file as xl itself does: with libxlutil.
//!
//! Read only; rewriting the file is `xlcfg.rs`'s business. What is parsed here is what
//! `xl create FILE` would see.

mod report;

use std::{
    ffi::{CStr, CString, c_int},
    fmt,
    io::{self, Read},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    ptr::{self, NonNull},
};

use thiserror::Error;
use xen_bindings as sys;

use self::report::Report;
use super::owned::{Owned, exact, lossy};
use crate::host::files;

/// The longest configuration file, in bytes; real ones have a few thousand.
const SIZE_LIMIT: usize = 1 << 20;

/// The longest entry of the disk list, in bytes: a path has 4096 at most. libxlutil repeats the whole
/// entry in each of its complaints.
const SPEC_LIMIT: usize = 16 << 10;

/// Why an xl configuration file cannot be used.
#[derive(Debug, Error)]
pub enum CfgError {
    #[error("Reading {} failed", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// It is no configuration file.
    #[error("{} is no xl configuration file: {reason}", path.display())]
    Unlikely { path: PathBuf, reason: &'static str },
    /// libxlutil's parser refuses it.
    #[error("{} is no valid xl configuration file: {report}", path.display())]
    Syntax {
        path: PathBuf,
        /// libxlutil's own words, with line numbers.
        report: String,
    },
    /// A setting that must be there is not.
    #[error("{} does not set '{key}'", path.display())]
    Missing { path: PathBuf, key: String },
    /// A setting has a value of the wrong kind.
    #[error("{} has an unusable '{key}': {report}", path.display())]
    Value {
        path: PathBuf,
        key: String,
        /// libxlutil's own words, or ours.
        report: String,
    },
    /// An entry of the disk list cannot be parsed.
    #[error("{} has an unusable disk '{spec}': {report}", path.display())]
    Disk {
        path: PathBuf,
        spec: String,
        /// libxlutil's own words.
        report: String,
    },
    #[error("Parsing {} failed: out of memory", path.display())]
    Memory { path: PathBuf },
}

/// A disk of a configuration file (`libxl_device_disk`, after xlu_disk_parse).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CfgDisk {
    /// The entry as it stands in the file.
    pub spec: String,
    /// The guest's name for it, such as "xvda".
    pub vdev: String,
    /// The file or device; may be missing for an empty CD-ROM drive.
    pub pdev_path: Option<String>,
    /// "raw", "qcow2", "vhd"...: libxl's names, as in its JSON. "raw" if the entry says nothing.
    pub format: String,
    /// "phy", "qdisk"..., if the entry says it; otherwise libxl chooses.
    pub backend: Option<String>,
    /// The domain that serves it, if it is not dom0.
    pub backend_domname: Option<String>,
    /// The block script, if the entry names one.
    pub script: Option<String>,
    /// The guest may write to it.
    pub readwrite: bool,
    /// Its medium can be changed.
    pub removable: bool,
    pub is_cdrom: bool,
}

/// A parsed xl configuration file.
pub struct XlCfg {
    cfg: NonNull<sys::XLU_Config>,
    path: PathBuf,
    /// Last, so that it is dropped after `Drop for XlCfg` has freed the parser that writes to it.
    report: Report,
}

/// The `name` in the xl configuration file at `path`.
///
/// # Errors
///
/// As [`XlCfg::open`] and [`XlCfg::name`].
pub fn cfg_name(path: &Path) -> Result<String, CfgError> {
    XlCfg::open(path)?.name()
}

impl XlCfg {
    /// Reads and parses the file at `path`.
    ///
    /// # Errors
    ///
    /// If it cannot be read, is longer than 1 MiB, or has the wrong syntax.
    pub fn open(path: &Path) -> Result<Self, CfgError> {
        let failed = |source| CfgError::Read { path: path.to_owned(), source };
        let mut text = Vec::new();
        // One byte more than allowed, to tell "full" from "too long".
        let limit = SIZE_LIMIT as u64 + 1;
        files::open(path)
            .and_then(|file| file.take(limit).read_to_end(&mut text))
            .map_err(failed)?;
        Self::parse(path, &text)
    }

    /// Parses `text`; `path` is what errors call it.
    ///
    /// # Errors
    ///
    /// If it is longer than 1 MiB or has the wrong syntax.
    pub fn parse(path: &Path, text: &[u8]) -> Result<Self, CfgError> {
        let unlikely = |reason| CfgError::Unlikely { path: path.to_owned(), reason };
        let memory = || CfgError::Memory { path: path.to_owned() };
        if text.len() > SIZE_LIMIT {
            return Err(unlikely("it is longer than 1 MiB"));
        }
        let length = c_int::try_from(text.len()).expect("at most SIZE_LIMIT, which fits an int");
        // libxlutil would cut a string off there.
        if text.contains(&0) {
            return Err(unlikely("there is a NUL byte in it"));
        }
        let name = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| unlikely("there is a NUL byte in its name"))?;

        let report = Report::new().ok_or_else(memory)?;
        // SAFETY: libxlutil.h: "report_filename is copied; report is saved and must remain valid
        // until the Config is destroyed": `Drop for XlCfg` sees to that.
        let cfg = unsafe { sys::xlu_cfg_init(report.stream(), name.as_ptr()) };
        let cfg = NonNull::new(cfg).ok_or_else(memory)?;
        let cfg = Self { cfg, path: path.to_owned(), report };

        // SAFETY: a live config, and text with its length; it is copied (flex's scan_bytes).
        let errno =
            unsafe { sys::xlu_cfg_readdata(cfg.cfg.as_ptr(), text.as_ptr().cast(), length) };
        if errno == 0 {
            // Warnings about the syntax do not belong to the first question asked.
            drop(cfg.report.take());
            return Ok(cfg);
        }
        // "If these fail, ... You have to just xlu_cfg_destroy": `cfg` is dropped here.
        Err(CfgError::Syntax { path: path.to_owned(), report: cfg.explain(errno) })
    }

    /// The domain's name.
    ///
    /// # Errors
    ///
    /// If it is missing, not a single value, or not UTF-8.
    pub fn name(&self) -> Result<String, CfgError> {
        self.string(c"name")?
            .ok_or_else(|| CfgError::Missing { path: self.path.clone(), key: "name".to_owned() })
    }

    /// The single value of `key`, or `None` if the file does not set it.
    ///
    /// # Errors
    ///
    /// If it is a list, or not UTF-8.
    pub fn string(&self, key: &CStr) -> Result<Option<String>, CfgError> {
        let mut value = ptr::null();
        // SAFETY: a config that was read successfully, a C string, and a place for the result.
        let errno =
            unsafe { sys::xlu_cfg_get_string(self.cfg.as_ptr(), key.as_ptr(), &raw mut value, 0) };
        match errno {
            // SAFETY: on success a C string that belongs to the config, which lives during the call.
            0 => unsafe { exact(value) }.map_err(|_| self.value(key, not_utf8())),
            libc::ESRCH => Ok(None),
            errno => Err(self.value(key, self.explain(errno))),
        }
    }

    /// The list `disk`, in its order; empty if the file has none.
    ///
    /// # Errors
    ///
    /// If it is no list, or xl could not parse an entry.
    pub fn disks(&self) -> Result<Vec<CfgDisk>, CfgError> {
        let key = c"disk";
        let mut list = ptr::null_mut();
        let mut count = 0;
        // SAFETY: a config that was read successfully, a C string, and places for the results.
        let errno = unsafe {
            sys::xlu_cfg_get_list(self.cfg.as_ptr(), key.as_ptr(), &raw mut list, &raw mut count, 0)
        };
        match errno {
            0 => {}
            libc::ESRCH => return Ok(Vec::new()),
            errno => return Err(self.value(key, self.explain(errno))),
        }
        (0..count)
            .map(|entry| {
                // SAFETY: "lifetime is that of the XLU_Config", and an entry below the count.
                let item = unsafe { sys::xlu_cfg_get_listitem(list, entry) };
                if item.is_null() {
                    return Err(self.value(key, format!("entry {} is no string", entry + 1)));
                }
                // SAFETY: not null: a C string that belongs to the config.
                self.disk(unsafe { CStr::from_ptr(item) })
            })
            .collect()
    }

    fn disk(&self, spec: &CStr) -> Result<CfgDisk, CfgError> {
        if spec.count_bytes() > SPEC_LIMIT {
            let start = String::from_utf8_lossy(&spec.to_bytes()[..64]);
            return Err(CfgError::Disk {
                path: self.path.clone(),
                spec: format!("{start}..."),
                report: "it is longer than 16 KiB".to_owned(),
            });
        }
        let mut disk = Owned::<sys::libxl_device_disk>::new();
        let specs = [spec.as_ptr()];
        // SAFETY: a live config (for its report), one C string, and a disk that "must have been
        // initialised".
        let errno =
            unsafe { sys::xlu_disk_parse(self.cfg.as_ptr(), 1, specs.as_ptr(), disk.as_mut_ptr()) };
        let bad = |report| CfgError::Disk {
            path: self.path.clone(),
            spec: spec.to_string_lossy().into_owned(),
            report,
        };
        if errno != 0 {
            return Err(bad(self.explain(errno)));
        }
        let members = [disk.vdev, disk.pdev_path, disk.backend_domname, disk.script];
        let [vdev, pdev_path, backend_domname, script] = members.map(|member| {
            // SAFETY: string members of a disk: null or a C string, alive until `disk` drops.
            unsafe { exact(member) }.map_err(|_| bad(not_utf8()))
        });
        // SAFETY: a generated look-up (_libxl_types.h); it takes any value.
        let format = unsafe { sys::libxl_disk_format_to_string(disk.format) };
        // SAFETY: as above.
        let backend = unsafe { sys::libxl_disk_backend_to_string(disk.backend) };
        let unset = disk.backend == sys::LIBXL_DISK_BACKEND_UNKNOWN;
        Ok(CfgDisk {
            spec: spec.to_str().map_err(|_| bad(not_utf8()))?.to_owned(),
            vdev: vdev?.unwrap_or_default(),
            pdev_path: pdev_path?,
            // SAFETY: a string constant of libxl, or null for a value it does not know.
            format: unsafe { lossy(format) }.unwrap_or_default(),
            // SAFETY: as above.
            backend: if unset { None } else { unsafe { lossy(backend) } },
            backend_domname: backend_domname?,
            script: script?,
            readwrite: disk.readwrite != 0,
            removable: disk.removable != 0,
            is_cdrom: disk.is_cdrom != 0,
        })
    }

    fn value(&self, key: &CStr, report: String) -> CfgError {
        CfgError::Value { path: self.path.clone(), key: key.to_string_lossy().into_owned(), report }
    }

    /// What libxlutil reported, or else the errno value it returned.
    fn explain(&self, errno: c_int) -> String {
        let report = self.report.take();
        if report.is_empty() { io::Error::from_raw_os_error(errno).to_string() } else { report }
    }
}

impl Drop for XlCfg {
    fn drop(&mut self) {
        // SAFETY: from xlu_cfg_init and destroyed once; the report it writes to is still open.
        unsafe { sys::xlu_cfg_destroy(self.cfg.as_ptr()) };
    }
}

impl fmt::Debug for XlCfg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("XlCfg").field("path", &self.path).finish_non_exhaustive()
    }
}

fn not_utf8() -> String {
    "it is not UTF-8".to_owned()
}

#[cfg(test)]
mod tests;
