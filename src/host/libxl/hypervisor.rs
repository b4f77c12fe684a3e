//! What Xen says about the host: its version, its free memory, its processors.

use std::slice;

use xen_bindings as sys;

use super::{
    Libxl,
    domain_info::{Host, XenVersion},
    error::LibxlError,
    owned::{Owned, lossy},
};

impl Libxl {
    /// Whether Xen has shadow paging (`cap_shadow`, libxl.h LIBXL_HAVE_PHYSINFO_CAP_HAP_SHADOW).
    ///
    /// Without it Xen cannot track the writes of a PV guest: a live save fails with "Failed to
    /// enable logdirty" (seen with Debian's Xen 4.17.7).
    ///
    /// # Errors
    ///
    /// [`LibxlError::Call`] if libxl cannot ask the hypervisor.
    pub fn has_shadow_paging(&self) -> Result<bool, LibxlError> {
        let ctx = self.begin_call();
        let mut info = Owned::<sys::libxl_physinfo>::new();
        // SAFETY: a live context and an initialised structure (libxl.h: libxl_get_physinfo).
        let code = unsafe { sys::libxl_get_physinfo(ctx, info.as_mut_ptr()) };
        if code != 0 {
            let call = "libxl_get_physinfo";
            return Err(self.error("Asking Xen what it can do", call, None, code));
        }
        Ok(info.cap_shadow)
    }

    /// What the machine has free, and how Xen was started.
    ///
    /// # Errors
    ///
    /// If the hypervisor does not answer.
    pub fn host(&self) -> Result<Host, LibxlError> {
        /// The unit of what Xen tells, in KiB.
        const PAGE: u64 = 4;
        let ctx = self.begin_call();
        let mut info = Owned::<sys::libxl_physinfo>::new();
        // SAFETY: a live context and an initialised structure (libxl.h: libxl_get_physinfo).
        let code = unsafe { sys::libxl_get_physinfo(ctx, info.as_mut_ptr()) };
        self.check("Asking Xen what is free", "libxl_get_physinfo", None, code)?;
        let ctx = self.begin_call();
        // SAFETY: a live context.
        let version = unsafe { sys::libxl_get_version_info(ctx) };
        // SAFETY: null, or a structure that belongs to the context, as in `version`.
        let version = unsafe { version.as_ref() };
        // SAFETY: null or a C string of the same structure.
        let line = version.and_then(|version| unsafe { lossy(version.commandline) });
        // As libxl_get_free_memory (libxl_mem.c): what is being cleaned is as good as free.
        let free_kib = info.free_pages.saturating_add(info.scrub_pages).saturating_mul(PAGE);
        Ok(Host { free_kib, commandline: line.unwrap_or_default() })
    }

    /// The numbers of the processors that a pool has.
    ///
    /// # Errors
    ///
    /// If there is no such pool.
    pub fn pool_processors(&self, pool: u32) -> Result<Vec<u32>, LibxlError> {
        let ctx = self.begin_call();
        let mut info = Owned::<sys::libxl_cpupoolinfo>::new();
        // SAFETY: a live context and an initialised structure (libxl.h: libxl_cpupool_info).
        let code = unsafe { sys::libxl_cpupool_info(ctx, info.as_mut_ptr(), pool) };
        self.check("Asking for a pool of processors", "libxl_cpupool_info", None, code)?;
        let map = &info.cpumap;
        let bytes = match (map.map.is_null(), usize::try_from(map.size)) {
            // SAFETY: libxl.h, libxl_bitmap: "number of bytes in map"; it lives as long as `info`.
            (false, Ok(size)) => unsafe { slice::from_raw_parts(map.map, size) },
            _ => &[],
        };
        Ok((0u32..).zip(bytes).flat_map(|(at, byte)| of_byte(at, *byte)).collect())
    }

    /// The version of the hypervisor that is running (not of the libxl we were built with).
    ///
    /// # Errors
    ///
    /// If the hypervisor does not answer.
    pub fn version(&self) -> Result<XenVersion, LibxlError> {
        let ctx = self.begin_call();
        // SAFETY: a live context.
        let info = unsafe { sys::libxl_get_version_info(ctx) };
        // SAFETY: null, or a structure that belongs to the context (the result is const): it is
        // alive as long as `self`, and only another call of the same function writes to it.
        let Some(info) = (unsafe { info.as_ref() }) else {
            let call = "libxl_get_version_info";
            return Err(self.error("Reading the version of Xen", call, None, sys::ERROR_FAIL));
        };
        // SAFETY: null or a C string of the same structure.
        let extra = unsafe { lossy(info.xen_version_extra) }.unwrap_or_default();
        Ok(XenVersion {
            major: u32::try_from(info.xen_version_major).unwrap_or(0),
            minor: u32::try_from(info.xen_version_minor).unwrap_or(0),
            extra,
        })
    }
}

/// The numbers of the bits that are set in byte `at` of a libxl_bitmap.
fn of_byte(at: u32, byte: u8) -> impl Iterator<Item = u32> {
    (0..8).filter(move |bit| byte >> bit & 1 == 1).map(move |bit| at * 8 + bit)
}
