//! Another name for a domain, and another place in xenstore for what `/vm` has of it.

use std::{
    ffi::{CStr, CString},
    ptr,
};

use uuid::Uuid;
use xen_bindings as sys;

use super::{Libxl, LibxlError, owned::Owned};

impl Libxl {
    /// Gives the domain another name, if it has the old one and nobody has the new one.
    ///
    /// # Errors
    ///
    /// Else; nothing has changed then: libxl does it in one transaction.
    pub fn rename(&self, domid: u32, from: &str, to: &str) -> Result<(), LibxlError> {
        let doing = "Renaming";
        let (from, to) = (c_name(doing, domid, from)?, c_name(doing, domid, to)?);
        let ctx = self.begin_call();
        // SAFETY: a live context and two C strings, which are only read.
        let code = unsafe { sys::libxl_domain_rename(ctx, domid, from.as_ptr(), to.as_ptr()) };
        self.check(doing, "libxl_domain_rename", Some(domid), code)
    }

    /// Makes room for another domain of the same UUID, as xl does before it starts a crashed domain again
    /// (`on_crash="rename-restart"`): the domain gets `suffix` behind its name, and `/vm/UUID` of `vm` in
    /// xenstore becomes its own, which holds nothing else then. Its UUID stays. With an empty suffix it
    /// keeps its name.
    ///
    /// # Errors
    ///
    /// If it has another name, or somebody has the new one; nothing has changed then: libxl does it in one
    /// transaction.
    pub fn preserve(
        &self,
        domid: u32,
        name: &str,
        suffix: &CStr,
        vm: Uuid,
    ) -> Result<(), LibxlError> {
        let doing = "Renaming";
        let name = c_name(doing, domid, name)?;
        let mut info = Owned::<sys::libxl_domain_create_info>::new();
        let vm = sys::libxl_uuid { uuid: vm.into_bytes() };
        let ctx = self.begin_call();
        info.name = name.as_ptr().cast_mut();
        // SAFETY: a live context, an initialised structure with the name, a C string. "Does not modify info
        // so that it may be reused" (libxl_domain.c).
        let code = unsafe {
            sys::libxl_domain_preserve(ctx, domid, info.as_mut_ptr(), suffix.as_ptr(), vm)
        };
        // It is ours, and not for libxl to free.
        info.name = ptr::null_mut();
        self.check(doing, "libxl_domain_preserve", Some(domid), code)
    }
}

fn c_name(doing: &'static str, domid: u32, name: &str) -> Result<CString, LibxlError> {
    let reason = "there is a NUL in its name";
    CString::new(name).map_err(|_| LibxlError::Unstorable { doing, domid, reason })
}
