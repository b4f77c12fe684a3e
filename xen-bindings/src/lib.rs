//! Raw bindings to libxl, libxlutil and xentoollog: all generated, see `build.rs` and `header.h`.
//!
//! The safe side is `src/host/libxl.rs` of xl-snapshot, and nothing else uses this crate.

#![allow(
    missing_debug_implementations,
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unsafe_code,
    clippy::all,
    clippy::restriction,
    clippy::pedantic,
    reason = "generated from C headers"
)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
