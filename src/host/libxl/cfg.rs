//! Reads a user's xl configuration file as xl itself does: with libxlutil.
//!
//! Read only; rewriting the file is `xlcfg.rs`'s business. What is parsed here is what
//! `xl create FILE` would see.

use std::{
    cell::Cell,
    ffi::{CStr, CString, c_char, c_int},
    fmt,
    io::{self, Read},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    ptr::{self, NonNull},
    slice,
};

use thiserror::Error;
use xen_bindings as sys;

use super::error::printable;
use super::owned::{Malloced, Owned, exact, lossy};
use crate::host::files;

/// The longest configuration file, in bytes; real ones have a few thousand.
const SIZE_LIMIT: usize = 1 << 20;

/// The longest entry of the disk list, in bytes: a path has 4096 at most. libxlutil repeats the whole
/// entry in each of its complaints.
const SPEC_LIMIT: usize = 16 << 10;
/// How much of its complaints is shown, in bytes.
const REPORT_LIMIT: usize = 4 << 10;

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

/// A `FILE` in memory, into which libxlutil writes its complaints.
struct Report {
    stream: NonNull<libc::FILE>,
    /// Where open_memstream(3) keeps its result. It writes there whenever it likes, so it is only
    /// reached through this pointer.
    buffer: NonNull<Buffer>,
    /// How much has been taken.
    taken: Cell<usize>,
}

#[derive(Clone, Copy)]
struct Buffer {
    text: *mut c_char,
    length: usize,
}

impl Report {
    /// An empty report; `None` if there is no memory.
    fn new() -> Option<Self> {
        let buffer = Box::leak(Box::new(Buffer { text: ptr::null_mut(), length: 0 }));
        let buffer = NonNull::from(buffer);
        let place = buffer.as_ptr();
        // SAFETY: `place` points to a live Buffer.
        let text = unsafe { &raw mut (*place).text };
        // SAFETY: as above.
        let length = unsafe { &raw mut (*place).length };
        // SAFETY: places for the results, which live until `drop` has closed the stream.
        let stream = unsafe { libc::open_memstream(text, length) };
        let Some(stream) = NonNull::new(stream) else {
            // SAFETY: from the Box above, and nobody else has it.
            drop(unsafe { Box::from_raw(place) });
            return None;
        };
        Some(Self { stream, buffer, taken: Cell::new(0) })
    }

    /// For libxlutil. bindgen and the libc crate each have their own name for C's FILE.
    fn stream(&self) -> *mut sys::FILE {
        self.stream.as_ptr().cast()
    }

    /// What was written since the last time, lines joined by "; ".
    fn take(&self) -> String {
        // SAFETY: the stream is open until `drop`.
        if unsafe { libc::fflush(self.stream.as_ptr()) } != 0 {
            return String::new();
        }
        // SAFETY: alive until `drop`, and only written to by calls on the stream.
        let Buffer { text, length } = unsafe { self.buffer.as_ptr().read() };
        if text.is_null() {
            return String::new();
        }
        // SAFETY: open_memstream(3): after fflush the two "contain" the buffer and its size, and
        // "remain valid only as long as the caller performs no further output on the stream":
        // there is none before this function returns, and the text is copied.
        let bytes = unsafe { slice::from_raw_parts(text.cast::<u8>(), length) };
        let new = bytes.get(self.taken.replace(length)..).unwrap_or_default();
        let new = new.get(..REPORT_LIMIT).unwrap_or(new);
        let lines: Vec<_> =
            String::from_utf8_lossy(new).lines().map(str::trim).map(printable).collect();
        lines.join("; ")
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        // SAFETY: opened in `new` and closed once.
        unsafe { libc::fclose(self.stream.as_ptr()) };
        // SAFETY: from the Box in `new`, and with the stream closed nobody else has it.
        let buffer = unsafe { Box::from_raw(self.buffer.as_ptr()) };
        // SAFETY: open_memstream(3): "After closing the stream, the caller should free(3) this
        // buffer."
        drop(unsafe { Malloced::new(buffer.text) });
    }
}

fn not_utf8() -> String {
    "it is not UTF-8".to_owned()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn parse(text: &str) -> Result<XlCfg, CfgError> {
        XlCfg::parse(Path::new("/etc/xen/ffi.cfg"), text.as_bytes())
    }

    #[test]
    fn reads_a_name() {
        let cfg = parse("# comment\nname = \"web1\"\nmemory = 128").expect("valid");
        assert_eq!(cfg.name().unwrap(), "web1");
        assert_eq!(cfg.string(c"memory").unwrap().as_deref(), Some("128"));
        assert_eq!(cfg.string(c"nothing").unwrap(), None);
    }

    #[test]
    fn reads_a_file() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("web1.cfg");
        fs::write(&path, "name='web1'\n").expect("a new file");
        assert_eq!(cfg_name(&path).unwrap(), "web1");

        fs::write(&path, "#".repeat(SIZE_LIMIT + 1)).expect("the same file");
        let error = cfg_name(&path).unwrap_err().to_string();
        assert!(error.ends_with("is no xl configuration file: it is longer than 1 MiB"), "{error}");

        let error = cfg_name(Path::new("/nowhere/x.cfg")).unwrap_err();
        assert_eq!(error.to_string(), "Reading /nowhere/x.cfg failed");
    }

    #[test]
    fn a_missing_name_is_an_error() {
        let error = parse("memory = 128\n").unwrap().name().unwrap_err();
        assert_eq!(error.to_string(), "/etc/xen/ffi.cfg does not set 'name'");
        assert_eq!(
            parse("").unwrap().name().unwrap_err().to_string(),
            "/etc/xen/ffi.cfg does not set 'name'"
        );
    }

    #[test]
    fn a_name_that_is_a_list_is_an_error_in_the_words_of_libxlutil() {
        let cfg = parse("memory = 1\nname = [ 'a', 'b' ]\n").unwrap();
        for _ in 0..2 {
            assert_eq!(
                cfg.name().unwrap_err().to_string(),
                "/etc/xen/ffi.cfg has an unusable 'name': /etc/xen/ffi.cfg:2: warning: parameter \
                 `name' is a list but should be a single value"
            );
        }
    }

    #[test]
    fn a_syntax_error_names_the_line() {
        let error = parse("name = 'a'\nmemory 128\n").unwrap_err().to_string();
        assert!(
            error.starts_with(
                "/etc/xen/ffi.cfg is no valid xl configuration file: /etc/xen/ffi.cfg:2: config \
                 parsing error"
            ),
            "{error}"
        );
        assert!(!error.contains('\n'), "{error}");
    }

    #[test]
    fn a_nul_is_refused() {
        let error = parse("name = 'a\0b'\n").unwrap_err().to_string();
        assert_eq!(
            error,
            "/etc/xen/ffi.cfg is no xl configuration file: there is a NUL byte in it"
        );
    }

    #[test]
    fn reads_disks_in_every_syntax_xl_knows() {
        let cfg = parse(
            "name = 'a'\n\
             disk = [ 'format=qcow2, vdev=xvda, access=rw, target=/srv/a b.qcow2',\n\
             '/srv/d.vhd,vhd,xvdb,r', 'phy:/dev/vg0/lv,xvdc,w',\n\
             '/srv/x.iso,,hdc,cdrom', 'vdev=hdd,cdrom',\n\
             'vdev=xvde,backendtype=qdisk,script=block-x,target=/srv/e' ]",
        )
        .unwrap();
        let disks = cfg.disks().unwrap();
        let brief: Vec<_> = disks
            .iter()
            .map(|disk| {
                (
                    disk.vdev.as_str(),
                    disk.pdev_path.as_deref(),
                    disk.format.as_str(),
                    disk.backend.as_deref(),
                    disk.readwrite,
                    disk.is_cdrom,
                )
            })
            .collect();
        assert_eq!(
            brief,
            [
                ("xvda", Some("/srv/a b.qcow2"), "qcow2", None, true, false),
                ("xvdb", Some("/srv/d.vhd"), "vhd", None, false, false),
                // libxl drops the old prefix, and chooses phy by itself.
                ("xvdc", Some("/dev/vg0/lv"), "raw", None, true, false),
                ("hdc", Some("/srv/x.iso"), "raw", None, false, true),
                ("hdd", None, "empty", None, false, true),
                ("xvde", Some("/srv/e"), "raw", Some("qdisk"), true, false),
            ]
        );
        assert_eq!(disks[5].script.as_deref(), Some("block-x"));
        assert_eq!(disks[1].spec, "/srv/d.vhd,vhd,xvdb,r");
        assert!(disks[3].removable && !disks[0].removable);
    }

    #[test]
    fn no_disks_is_an_empty_list_and_a_bad_one_an_error() {
        assert!(parse("name = 'a'").unwrap().disks().unwrap().is_empty());
        assert!(parse("disk = []").unwrap().disks().unwrap().is_empty());
        let error = parse("disk = 'x'").unwrap().disks().unwrap_err().to_string();
        assert!(error.starts_with("/etc/xen/ffi.cfg has an unusable 'disk': "), "{error}");
        let error = parse("disk = [ [ 'x' ] ]").unwrap().disks().unwrap_err().to_string();
        assert!(error.ends_with("has an unusable 'disk': entry 1 is no string"), "{error}");
        let error = parse("disk = [ 'format=qcow3,vdev=a,target=b' ]").unwrap().disks();
        let error = error.unwrap_err().to_string();
        assert!(error.contains("unusable disk 'format=qcow3,vdev=a,target=b'"), "{error}");
        assert!(error.contains("config parsing error in disk specification"), "{error}");
    }

    #[test]
    fn complaints_do_not_grow_with_the_square_of_an_entry() {
        for (times, words) in [(2000, "config parsing error"), (20_000, "longer than 16 KiB")] {
            let text = format!("disk = [ '{}' ]", "vdev=x,".repeat(times));
            let error = parse(&text).unwrap().disks().unwrap_err();
            let CfgError::Disk { report, .. } = error else { panic!("{error}") };
            assert!(report.contains(words) && report.len() <= REPORT_LIMIT, "{report}");
        }
    }
}
