//! The one door to libxl, and the only unsafe code of the program (here and in `libxl/`).
//!
//! Owns the libxl context, its logger, and the translation of C results into Rust ones. A domain's
//! configuration crosses as libxl's JSON text; what it means is `domain.rs`'s business. Every call
//! is synchronous and belongs to one thread; only [`Aborter`] may go to another.
//! Facts are from libxl.h unless said otherwise.

#![expect(unsafe_code, reason = "libxl is a C library, and this module is its safe side")]

mod callback;
mod cfg;
mod domain_info;
mod error;
mod gate;
mod hypervisor;
mod logger;
mod names;
mod owned;
mod progress;
mod suspend;

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    fmt, io,
    ptr::{self, NonNull},
};

use xen_bindings as sys;

use self::{
    callback::assert_outside_callback,
    gate::Gate,
    logger::LoggerHandle,
    owned::{DomainList, Malloced, Owned},
};
pub use self::{
    cfg::{CfgDisk, CfgError, XlCfg, cfg_name},
    domain_info::{DomainInfo, Host, ShutdownReason, XenVersion},
    error::{ErrorCode, LibxlError},
    logger::{Level, Sink},
    progress::Progress,
    suspend::{Abort, Aborter},
};

/// The userdata that holds libxl's own JSON configuration of a domain (libxl.h, "registry of
/// userdata userids").
const STORED_CONFIG: &CStr = c"libxl-json";

/// How libxl is told about child processes: see [`Libxl::open`].
static CHILD_HOOKS: sys::libxl_childproc_hooks = sys::libxl_childproc_hooks {
    chldowner: sys::libxl_sigchld_owner_libxl_always_selective_reap,
    fork_replacement: None,
    reaped_callback: None,
};

/// What libxl does when its event machinery breaks: see [`Libxl::open`].
static EVENT_HOOKS: sys::libxl_event_hooks = sys::libxl_event_hooks {
    event_occurs_mask: 0,
    event_occurs: None,
    disaster: Some(on_disaster),
};

/// A connection to libxl: the context and its logger.
///
/// Not `Sync`. Its methods panic when called from one of its own callbacks.
pub struct Libxl {
    ctx: NonNull<sys::libxl_ctx>,
    /// Open during a suspend, for its `Aborter`.
    gate: Gate,
    /// Last, so that it is dropped after `Drop for Libxl` has freed the context that uses it.
    logger: LoggerHandle,
}

// SAFETY: the context "From the point of view of the application ... is threadsafe" (libxl.h,
// "libxl memory management"), and belongs to no thread; the gate and the logger are behind mutexes,
// and the logger takes a sink that is Send.
unsafe impl Send for Libxl {}

impl Libxl {
    /// Connects to libxl. `sink` gets every message of `minimum` and above.
    ///
    /// The process may run and wait for children of its own (`std::process`), but must not handle
    /// SIGCHLD, nor block it in all threads (libxl_event.h, "Subprocess handling").
    ///
    /// # Errors
    ///
    /// Without a running Xen and xenstore, and without the right to use them.
    pub fn open(
        minimum: Level,
        sink: impl FnMut(Level, &str) + Send + 'static,
    ) -> Result<Self, LibxlError> {
        assert_outside_callback();
        let logger = LoggerHandle::new(minimum, Box::new(sink));
        let mut ctx = ptr::null_mut();
        // SAFETY: `ctx` receives the result; LIBXL_VERSION and no flags are the values libxl.h
        // asks for; the logger lives on behind the handle, which is freed after the context.
        let code =
            unsafe { sys::libxl_ctx_alloc(&raw mut ctx, sys::LIBXL_VERSION, 0, logger.as_ptr()) };
        let ctx = match NonNull::new(ctx) {
            Some(ctx) if code == 0 => ctx,
            _ => return Err(LibxlError::Open { code: ErrorCode(code), log: logger.recent() }),
        };
        let libxl = Self { ctx, gate: Gate::default(), logger };

        // By default libxl reaps every child of the process, qemu-img too. In this mode "the
        // application will reap its own children synchronously with waitpid" (libxl_event.h).
        // SAFETY: libxl_event.h: "The value *hooks is not copied and must outlast the libxl_ctx":
        // it is static. The context is new, so that there are no children yet.
        unsafe {
            sys::libxl_childproc_setmode(ctx.as_ptr(), &raw const CHILD_HOOKS, ptr::null_mut())
        };

        // Without a disaster callback libxl would "call exit(-1)" (libxl_event.h): with a guest
        // suspended, and nothing undone.
        // SAFETY: the hooks are static; event_occurs "may be NULL if mask is 0"; nothing runs on
        // the new context, which is when this may be called.
        unsafe {
            sys::libxl_event_register_callbacks(
                ctx.as_ptr(),
                &raw const EVENT_HOOKS,
                ptr::null_mut(),
            );
        };
        Ok(libxl)
    }

    /// Every domain, dom0 included, in the order of their numbers.
    ///
    /// # Errors
    ///
    /// If the hypervisor does not answer.
    pub fn domains(&self) -> Result<Vec<DomainInfo>, LibxlError> {
        let mut count = 0;
        let ctx = self.begin_call();
        // SAFETY: a live context, and a place for the length.
        let first = unsafe { sys::libxl_list_domain(ctx, &raw mut count) };
        // SAFETY: both are of this call.
        match unsafe { DomainList::new(first, count) } {
            Some(list) => Ok(list.as_slice().iter().map(DomainInfo::from_c).collect()),
            None => {
                let call = "libxl_list_domain";
                Err(self.error("Listing domains", call, None, sys::ERROR_FAIL))
            }
        }
    }

    /// One domain, or `None` if there is none of that number.
    ///
    /// # Errors
    ///
    /// If the hypervisor does not answer.
    pub fn domain_info(&self, domid: u32) -> Result<Option<DomainInfo>, LibxlError> {
        let mut info = Owned::<sys::libxl_dominfo>::new();
        let ctx = self.begin_call();
        // Muted: releases after 4.17 log a domain that is gone as an error.
        let code = self.logger.muted(|| {
            // SAFETY: a live context, and an initialised structure to fill in.
            unsafe { sys::libxl_domain_info(ctx, info.as_mut_ptr(), domid) }
        });
        match self.check("Looking at", "libxl_domain_info", Some(domid), code) {
            Ok(()) => Ok(Some(DomainInfo::from_c(&info))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The name of a domain, or `None` if there is none of that number.
    ///
    /// # Errors
    ///
    /// If xenstore does not answer, or the name is not UTF-8.
    pub fn domain_name(&self, domid: u32) -> Result<Option<String>, LibxlError> {
        let doing = "Reading the name of";
        let ctx = self.begin_call();
        // SAFETY: a live context. libxl_utils.h: returns a C string or null.
        let name = unsafe { sys::libxl_domid_to_name(ctx, domid) };
        // Before anything else can change it: libxl_domid_to_name is one xs_read, which sets errno.
        let errno = io::Error::last_os_error();
        // SAFETY: xs_read's result comes from malloc and is the caller's ("libxl memory
        // management" in libxl.h).
        match unsafe { Malloced::new(name) } {
            // SAFETY: xs_read puts a NUL behind what it reads (xenstore.h).
            Some(name) => match unsafe { name.c_string() }.to_str() {
                Ok(name) => Ok(Some(name.to_owned())),
                Err(_) => Err(LibxlError::NotUtf8 { doing, domid }),
            },
            None if errno.kind() == io::ErrorKind::NotFound => Ok(None),
            None => Err(LibxlError::Xenstore { doing, domid, source: errno }),
        }
    }

    /// The domain's configuration as `xl save` writes it into an image: libxl's JSON, brought up
    /// to date with the running domain, and with a domid of 0.
    ///
    /// # Errors
    ///
    /// For a domain that libxl did not create, and for one that is gone.
    pub fn config_json(&self, domid: u32) -> Result<String, LibxlError> {
        let doing = "Reading the configuration of";
        let mut config = Owned::<sys::libxl_domain_config>::new();
        let ctx = self.begin_call();
        // SAFETY: a live context and an initialised structure; no ao_how: synchronous, so that
        // the structure need not outlive the call.
        let code = unsafe {
            sys::libxl_retrieve_domain_configuration(ctx, domid, config.as_mut_ptr(), ptr::null())
        };
        self.check(doing, "libxl_retrieve_domain_configuration", Some(domid), code)?;
        // As xl_saverestore.c does without -D: the number is not kept.
        config.c_info.domid = 0;

        let ctx = self.begin_call();
        // SAFETY: a live context and a structure that libxl filled in.
        let json = unsafe { sys::libxl_domain_config_to_json(ctx, config.as_mut_ptr()) };
        // SAFETY: "must be freed by the caller" ("libxl memory management" in libxl.h).
        let Some(json) = (unsafe { Malloced::new(json) }) else {
            let call = "libxl_domain_config_to_json";
            return Err(self.error(doing, call, Some(domid), sys::ERROR_FAIL));
        };
        // SAFETY: a C string: callers such as xl take its strlen.
        let json = unsafe { json.c_string() };
        json.to_str().map(str::to_owned).map_err(|_| LibxlError::NotUtf8 { doing, domid })
    }

    /// libxl's stored configuration (JSON, without the NUL at its end): what save, migrate and
    /// reboot start from. It names the disks as they are configured.
    ///
    /// # Errors
    ///
    /// [`LibxlError::NoStoredConfig`] if there is none.
    pub fn stored_config(&self, domid: u32) -> Result<String, LibxlError> {
        let doing = "Reading the stored configuration of";
        let mut data =
            self.userdata(domid, STORED_CONFIG)?.ok_or(LibxlError::NoStoredConfig { domid })?;
        // libxl's reader is a C string parser: what is behind a NUL does not count.
        if let Some(end) = data.iter().position(|byte| *byte == 0) {
            data.truncate(end);
        }
        String::from_utf8(data).map_err(|_| LibxlError::NotUtf8 { doing, domid })
    }

    /// Replaces libxl's stored configuration.
    ///
    /// libxl replaces its file whole, but between reading and storing another program may have
    /// changed it: nothing public locks out the two together.
    ///
    /// # Errors
    ///
    /// If the domain is gone, the file cannot be written, or `json` holds a NUL.
    pub fn store_config(&self, domid: u32, json: &str) -> Result<(), LibxlError> {
        if json.contains('\0') {
            let doing = "Storing the configuration of";
            return Err(LibxlError::Unstorable { doing, domid, reason: "there is a NUL in it" });
        }
        // libxl stores the NUL, and gives what it reads to a parser that needs it.
        let mut data = Vec::with_capacity(json.len() + 1);
        data.extend_from_slice(json.as_bytes());
        data.push(0);
        self.store_userdata(domid, STORED_CONFIG, &data)
    }

    /// Data that a toolstack keeps with the domain, or `None`. `c"xl"` is the configuration that
    /// `xl config-update` stored.
    ///
    /// # Errors
    ///
    /// If the domain is gone or the data cannot be read.
    pub fn userdata(&self, domid: u32, userid: &CStr) -> Result<Option<Vec<u8>>, LibxlError> {
        let mut data = ptr::null_mut();
        let mut length = 0;
        let ctx = self.begin_call();
        // SAFETY: a live context, a C string, and places for the two results.
        let code = unsafe {
            sys::libxl_userdata_retrieve(
                ctx,
                domid,
                userid.as_ptr(),
                &raw mut data,
                &raw mut length,
            )
        };
        self.check("Reading the userdata of", "libxl_userdata_retrieve", Some(domid), code)?;
        // SAFETY: "On successful return, *data_r is from malloc", or 0 if there is no data.
        let Some(data) = (unsafe { Malloced::new(data) }) else { return Ok(None) };
        let length = usize::try_from(length).unwrap_or(0);
        // SAFETY: *datalen_r is the length of *data_r.
        Ok(Some(unsafe { data.bytes(length) }.to_vec()))
    }

    /// Keeps `data` with the domain. No data deletes what is there.
    ///
    /// # Errors
    ///
    /// If the domain is gone, the file cannot be written, or `data` is longer than 2 GiB.
    pub fn store_userdata(&self, domid: u32, userid: &CStr, data: &[u8]) -> Result<(), LibxlError> {
        let doing = "Storing the userdata of";
        let Ok(length) = c_int::try_from(data.len()) else {
            return Err(LibxlError::Unstorable { doing, domid, reason: "it is too long" });
        };
        let ctx = self.begin_call();
        // SAFETY: a live context, a C string, and data with its length; it is only read.
        let code = unsafe {
            sys::libxl_userdata_store(ctx, domid, userid.as_ptr(), data.as_ptr(), length)
        };
        self.check(doing, "libxl_userdata_store", Some(domid), code)
    }

    /// Lets a suspended domain run on where it stopped; it finds its devices as it left them
    /// (`suspend_cancel`: "use co-operative resume. The guest must support this.").
    ///
    /// # Errors
    ///
    /// `ERROR_FAIL` for a domain that is not suspended: harmless.
    pub fn resume(&self, domid: u32) -> Result<(), LibxlError> {
        let ctx = self.begin_call();
        // SAFETY: a live context; no ao_how: synchronous.
        let code = unsafe { sys::libxl_domain_resume(ctx, domid, 1, ptr::null()) };
        self.check("Resuming", "libxl_domain_resume", Some(domid), code)
    }

    /// Pauses the domain. Pauses count: as many [`Self::unpause`] are needed.
    ///
    /// # Errors
    ///
    /// If the domain is gone.
    pub fn pause(&self, domid: u32) -> Result<(), LibxlError> {
        let ctx = self.begin_call();
        // SAFETY: a live context; no ao_how: synchronous.
        let code = unsafe { sys::libxl_domain_pause(ctx, domid, ptr::null()) };
        self.check("Pausing", "libxl_domain_pause", Some(domid), code)
    }

    /// Unpauses the domain, and for an HVM guest tells its QEMU to go on.
    ///
    /// # Errors
    ///
    /// If the domain is gone or its QEMU does not answer.
    pub fn unpause(&self, domid: u32) -> Result<(), LibxlError> {
        let ctx = self.begin_call();
        // SAFETY: a live context; no ao_how: synchronous.
        let code = unsafe { sys::libxl_domain_unpause(ctx, domid, ptr::null()) };
        self.check("Unpausing", "libxl_domain_unpause", Some(domid), code)
    }

    /// Destroys the domain. Its QEMU is only told to end, and may still have images open when
    /// this returns.
    ///
    /// # Errors
    ///
    /// If the domain is gone, or something of it could not be removed.
    pub fn destroy(&self, domid: u32) -> Result<(), LibxlError> {
        let ctx = self.begin_call();
        // SAFETY: a live context; no ao_how: synchronous.
        let code = unsafe { sys::libxl_domain_destroy(ctx, domid, ptr::null()) };
        self.check("Destroying", "libxl_domain_destroy", Some(domid), code)
    }

    /// The context for one call; what earlier calls logged is forgotten.
    fn begin_call(&self) -> *mut sys::libxl_ctx {
        assert_outside_callback();
        self.logger.begin_call();
        self.ctx.as_ptr()
    }

    fn check(
        &self,
        doing: &'static str,
        function: &'static str,
        domid: Option<u32>,
        code: c_int,
    ) -> Result<(), LibxlError> {
        if code == 0 { Ok(()) } else { Err(self.error(doing, function, domid, code)) }
    }

    fn error(
        &self,
        doing: &'static str,
        function: &'static str,
        domid: Option<u32>,
        code: c_int,
    ) -> LibxlError {
        let log = self.logger.recent();
        LibxlError::Call { doing, function, domid, code: ErrorCode(code), log }
    }
}

impl Drop for Libxl {
    fn drop(&mut self) {
        // SAFETY: allocated by libxl_ctx_alloc and freed once. No operation is under way (all are
        // synchronous and borrow `self`), no `Aborter` is left (they borrow `self` too), and the
        // logger is still there: fields are dropped after this.
        unsafe { sys::libxl_ctx_free(self.ctx.as_ptr()) };
    }
}

impl fmt::Debug for Libxl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Libxl").finish_non_exhaustive()
    }
}

/// Called when libxl's event machinery breaks. libxl has "logged a message with level
/// XTL_CRITICAL" before (libxl_event.h), which the logger has taken; later calls fail. Returning
/// is all there is to do: it lets them return, and their callers undo.
unsafe extern "C" fn on_disaster(
    _user: *mut c_void,
    _type: sys::libxl_event_type,
    _message: *const c_char,
    _errnoval: c_int,
) {
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_xen_is_told_what_is_missing() {
        // On a real dom0 this works instead; there the lab's tests go further.
        let Err(error) = Libxl::open(Level::Critical, |_, _| {}) else { return };
        let text = error.to_string();
        assert!(text.starts_with("Opening libxl failed: ERROR_FAIL (-3): "), "{text}");
        assert!(text.ends_with(" (is this a Xen dom0, and are you root?)"), "{text}");
        assert!(text.contains("libxl: "), "{text}");
        assert_eq!(error.code(), Some(ErrorCode(sys::ERROR_FAIL)));
    }
}
