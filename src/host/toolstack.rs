//! Xen's toolstack, read only: what [`look`](super::look) is given. Whoever changes something says so, by
//! [`Toolstack::libxl`] or [`Toolstack::xenstore`]: that is [`dom0`](super::dom0) alone.

use std::ffi::CStr;

use crate::error::{Error, Result};
use crate::host::libxl::{DomainInfo, Host, Level, Libxl, LibxlError, XenVersion};
use crate::host::xenstore::{Vbd, Xenstore, XenstoreError};
use crate::report::Reporter;

/// Under which name libxl keeps the text that `xl config-update` stores (xl_vmcontrol.c).
pub const XL_CONFIG: &CStr = c"xl";

type LibxlResult<T> = std::result::Result<T, LibxlError>;
type XenstoreResult<T> = std::result::Result<T, XenstoreError>;

/// Connections to libxl and xenstore.
#[derive(Debug)]
pub struct Toolstack {
    libxl: Libxl,
    xenstore: Xenstore,
}

impl Toolstack {
    /// Connects. The reporter tells libxl's messages.
    pub fn open(reporter: &Reporter) -> Result<Toolstack> {
        let libxl = open_libxl(reporter).map_err(|error| {
            Error::refused("Xen's toolstack cannot be used")
                .because(error)
                .hint("run this as root, in the dom0 of a running Xen: xl info")
        })?;
        let xenstore = Xenstore::open().map_err(|error| {
            Error::refused("Xenstore cannot be reached")
                .because(error)
                .hint("check that xenstored runs: xenstore-ls")
        })?;
        Ok(Toolstack { libxl, xenstore })
    }

    /// libxl, for calls that change something.
    pub fn libxl(&self) -> &Libxl {
        &self.libxl
    }

    /// Xenstore, to change something in it.
    pub fn xenstore(&self) -> &Xenstore {
        &self.xenstore
    }

    /// See [`Libxl::domains`].
    pub fn domains(&self) -> LibxlResult<Vec<DomainInfo>> {
        self.libxl.domains()
    }

    /// See [`Libxl::domain_info`].
    pub fn domain_info(&self, domid: u32) -> LibxlResult<Option<DomainInfo>> {
        self.libxl.domain_info(domid)
    }

    /// See [`Libxl::domain_name`].
    pub fn domain_name(&self, domid: u32) -> LibxlResult<Option<String>> {
        self.libxl.domain_name(domid)
    }

    /// See [`Libxl::config_json`].
    pub fn config_json(&self, domid: u32) -> LibxlResult<String> {
        self.libxl.config_json(domid)
    }

    /// See [`Libxl::stored_config`].
    pub fn stored_config(&self, domid: u32) -> LibxlResult<String> {
        self.libxl.stored_config(domid)
    }

    /// See [`Libxl::userdata`].
    pub fn userdata(&self, domid: u32, userid: &CStr) -> LibxlResult<Option<Vec<u8>>> {
        self.libxl.userdata(domid, userid)
    }

    /// See [`Libxl::has_shadow_paging`].
    pub fn has_shadow_paging(&self) -> LibxlResult<bool> {
        self.libxl.has_shadow_paging()
    }

    /// See [`Libxl::host`].
    pub fn host(&self) -> LibxlResult<Host> {
        self.libxl.host()
    }

    /// See [`Libxl::pool_processors`].
    pub fn pool_processors(&self, pool: u32) -> LibxlResult<Vec<u32>> {
        self.libxl.pool_processors(pool)
    }

    /// See [`Libxl::version`].
    pub fn version(&self) -> LibxlResult<XenVersion> {
        self.libxl.version()
    }

    /// See [`Xenstore::read`].
    pub fn read(&self, path: &str) -> XenstoreResult<Option<String>> {
        self.xenstore.read(path)
    }

    /// See [`Xenstore::qemu_pid`].
    pub fn qemu_pid(&self, domid: u32) -> XenstoreResult<Option<i32>> {
        self.xenstore.qemu_pid(domid)
    }

    /// See [`Xenstore::vbds`].
    pub fn vbds(&self, domid: u32) -> XenstoreResult<Vec<Vbd>> {
        self.xenstore.vbds(domid)
    }

    /// See [`Xenstore::loops`].
    pub fn loops(&self, domid: u32) -> XenstoreResult<Vec<String>> {
        self.xenstore.loops(domid)
    }

    /// See [`Xenstore::below`].
    pub fn below(&self, directory: &str) -> XenstoreResult<Vec<(String, String)>> {
        self.xenstore.below(directory)
    }

    /// See [`Xenstore::pools`].
    pub fn pools(&self) -> XenstoreResult<Vec<(String, String)>> {
        self.xenstore.pools()
    }
}

/// A connection to libxl whose messages the reporter tells.
pub fn open_libxl(reporter: &Reporter) -> LibxlResult<Libxl> {
    // Its errors stand in our own.
    let minimum = match reporter.verbosity() {
        ..=1 => Level::Critical,
        2 => Level::Info,
        _ => Level::Debug,
    };
    let messages = reporter.clone();
    Libxl::open(minimum, move |level, text| {
        messages.message(&format!("libxl: {level}: {text}"));
    })
}
