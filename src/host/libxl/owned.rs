//! Ownership of what libxl hands out: structures with init and dispose, and memory from malloc.

use std::{
    ffi::{CStr, c_char, c_int},
    fmt,
    mem::MaybeUninit,
    ops::{Deref, DerefMut},
    ptr::NonNull,
    slice,
    str::Utf8Error,
};

use xen_bindings as sys;

/// A libxl structure type with an `_init` and a `_dispose` function.
///
/// # Safety
///
/// `init` must leave a valid value behind its pointer, and `dispose` must release everything such
/// a value owns and nothing else. Values must stay valid when moved: libxl's structures are plain
/// C data without pointers into themselves, which libxl itself copies by assignment.
pub(super) unsafe trait Managed {
    /// The type's `_init`: its argument may be uninitialised.
    const INIT: unsafe extern "C" fn(*mut Self);
    /// The type's `_dispose`: its argument must have been initialised.
    const DISPOSE: unsafe extern "C" fn(*mut Self);
}

// SAFETY: _libxl_types.h generates this pair for the type; "_init" sets every member to its
// default and "_dispose" frees the members that are pointers.
unsafe impl Managed for sys::libxl_dominfo {
    const INIT: unsafe extern "C" fn(*mut Self) = sys::libxl_dominfo_init;
    const DISPOSE: unsafe extern "C" fn(*mut Self) = sys::libxl_dominfo_dispose;
}

// SAFETY: as above; libxl.h declares this pair beside libxl_retrieve_domain_configuration.
unsafe impl Managed for sys::libxl_domain_config {
    const INIT: unsafe extern "C" fn(*mut Self) = sys::libxl_domain_config_init;
    const DISPOSE: unsafe extern "C" fn(*mut Self) = sys::libxl_domain_config_dispose;
}

// SAFETY: as above, from _libxl_types.h.
unsafe impl Managed for sys::libxl_domain_create_info {
    const INIT: unsafe extern "C" fn(*mut Self) = sys::libxl_domain_create_info_init;
    const DISPOSE: unsafe extern "C" fn(*mut Self) = sys::libxl_domain_create_info_dispose;
}

// SAFETY: as above, from _libxl_types.h.
unsafe impl Managed for sys::libxl_device_disk {
    const INIT: unsafe extern "C" fn(*mut Self) = sys::libxl_device_disk_init;
    const DISPOSE: unsafe extern "C" fn(*mut Self) = sys::libxl_device_disk_dispose;
}

// SAFETY: as above, from _libxl_types.h.
unsafe impl Managed for sys::libxl_physinfo {
    const INIT: unsafe extern "C" fn(*mut Self) = sys::libxl_physinfo_init;
    const DISPOSE: unsafe extern "C" fn(*mut Self) = sys::libxl_physinfo_dispose;
}

// SAFETY: as above, from _libxl_types.h.
unsafe impl Managed for sys::libxl_cpupoolinfo {
    const INIT: unsafe extern "C" fn(*mut Self) = sys::libxl_cpupoolinfo_init;
    const DISPOSE: unsafe extern "C" fn(*mut Self) = sys::libxl_cpupoolinfo_dispose;
}

/// A libxl structure, initialised and in the end disposed of by libxl.
pub(super) struct Owned<T: Managed>(T);

impl<T: Managed> Owned<T> {
    /// The structure with libxl's default values.
    pub(super) fn new() -> Self {
        // Zeroed first, so that padding and union members `_init` leaves alone are initialised too.
        let mut value = MaybeUninit::<T>::zeroed();
        // SAFETY: `value` is writable memory of T's size and alignment, which is all that an
        // `_init` function asks for.
        unsafe { (T::INIT)(value.as_mut_ptr()) };
        // SAFETY: `init` leaves a valid value, by the contract of `Managed`.
        Self(unsafe { value.assume_init() })
    }

    /// For functions that fill the structure in.
    pub(super) fn as_mut_ptr(&mut self) -> *mut T {
        &raw mut self.0
    }
}

impl<T: Managed> Deref for Owned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Managed> DerefMut for Owned<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T: Managed> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: `new` initialised the value, only libxl functions made for T filled it in, and
        // it is disposed of here and nowhere else.
        unsafe { (T::DISPOSE)(self.as_mut_ptr()) };
    }
}

/// Memory from malloc that libxl gave to its caller.
///
/// libxl.h, "libxl memory management": "all returned allocated structures are obtained from
/// malloc(), and must be freed by the caller".
pub(super) struct Malloced<T>(NonNull<T>);

impl<T> Malloced<T> {
    /// Takes over `pointer`; `None` if it is null.
    ///
    /// # Safety
    ///
    /// `pointer` is null, or comes from malloc and is not freed by anybody else.
    pub(super) unsafe fn new(pointer: *mut T) -> Option<Self> {
        NonNull::new(pointer).map(Self)
    }
}

impl Malloced<c_char> {
    /// The bytes of the C string, without the NUL.
    ///
    /// # Safety
    ///
    /// The memory holds a C string.
    pub(super) unsafe fn c_string(&self) -> &CStr {
        // SAFETY: the memory is ours until drop (contract of `new`), and the caller vouches for
        // the NUL.
        unsafe { CStr::from_ptr(self.0.as_ptr()) }
    }
}

impl Malloced<u8> {
    /// The first `length` bytes.
    ///
    /// # Safety
    ///
    /// The memory holds at least `length` initialised bytes.
    pub(super) unsafe fn bytes(&self, length: usize) -> &[u8] {
        // SAFETY: the memory is ours until drop (contract of `new`), nobody writes to it, and the
        // caller vouches for the length.
        unsafe { slice::from_raw_parts(self.0.as_ptr(), length) }
    }
}

impl<T> Drop for Malloced<T> {
    fn drop(&mut self) {
        // SAFETY: from malloc and freed only here (contract of `new`).
        unsafe { libc::free(self.0.as_ptr().cast()) };
    }
}

/// The array that `libxl_list_domain` returns.
pub(super) struct DomainList {
    first: NonNull<sys::libxl_dominfo>,
    count: c_int,
}

impl DomainList {
    /// Takes over the list; `None` if it is null.
    ///
    /// # Safety
    ///
    /// `first` and `count` are what one call of `libxl_list_domain` returned.
    pub(super) unsafe fn new(first: *mut sys::libxl_dominfo, count: c_int) -> Option<Self> {
        NonNull::new(first).map(|first| Self { first, count })
    }

    pub(super) fn as_slice(&self) -> &[sys::libxl_dominfo] {
        let count = usize::try_from(self.count).unwrap_or(0);
        // SAFETY: libxl.h on libxl_list_domain: "return (on success) an array of elements, and
        // the length via the int* out parameter"; it lives until `drop` frees it.
        unsafe { slice::from_raw_parts(self.first.as_ptr(), count) }
    }
}

impl Drop for DomainList {
    fn drop(&mut self) {
        // SAFETY: libxl.h: lists "must be freed with the corresponding libxl_THING_list_free
        // function"; pointer and length are those of the call (contract of `new`), freed once.
        unsafe { sys::libxl_dominfo_list_free(self.first.as_ptr(), self.count) };
    }
}

/// A copy of the C string at `text`; `None` if that is null. Bytes that are not UTF-8 are replaced.
///
/// # Safety
///
/// `text` is null or points to a C string that lives during this call.
pub(super) unsafe fn lossy(text: *const c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: not null, and the caller vouches for the rest.
    let text = unsafe { CStr::from_ptr(text) };
    Some(text.to_string_lossy().into_owned())
}

/// As [`lossy`], but bytes that are not UTF-8 are an error: for names and paths that are used.
///
/// # Safety
///
/// As [`lossy`].
pub(super) unsafe fn exact(text: *const c_char) -> Result<Option<String>, Utf8Error> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: not null, and the caller vouches for the rest.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map(|text| Some(text.to_owned()))
}

impl<T: Managed> fmt::Debug for Owned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owned").finish_non_exhaustive()
    }
}
