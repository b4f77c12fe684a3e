/*
 * What xl-snapshot uses of Xen's dom0 libraries. build.rs turns this into Rust; its allow-list says which names.
 *
 * 0x041300 is accepted by every release from 4.14 to 4.21 (libxl.h, "#error Unknown LIBXL_API_VERSION"), and it is the
 * lowest with which pause, unpause, resume and retrieve_domain_configuration take an ao_how and are real functions;
 * below it they are static inline wrappers, which cannot be linked to.
 */
#define LIBXL_API_VERSION 0x041300

#include <stdio.h> /* vsnprintf: messages reach a logger as a va_list */

#include <libxl.h>
#include <libxl_event.h>
#include <libxl_utils.h>
#include <libxlutil.h>
#include <xentoollog.h>

#ifdef LIBXL_HAVE_NO_SUSPEND_RESUME
#error "libxl cannot save or restore a domain on this architecture (LIBXL_HAVE_NO_SUSPEND_RESUME)"
#endif
#ifndef LIBXL_HAVE_AO_ABORT
#error "This libxl has no libxl_ao_abort: Xen 4.14 or newer is needed"
#endif
