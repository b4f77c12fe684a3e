//! Finds libxl with pkg-config and generates the bindings from its headers.
//!
//! They are generated at every build and not kept: the structures differ between Xen releases
//! while the names do not, so a binary fits exactly the release whose headers it was built with.

use std::{env, path::PathBuf};

/// Every function used. What they need in types follows by itself.
const FUNCTIONS: &[&str] = &[
    // libxl.h: the context, Xen itself, error names
    "libxl_ctx_alloc",
    "libxl_ctx_free",
    "libxl_error_to_string",
    "libxl_get_physinfo",
    "libxl_get_version_info",
    "libxl_physinfo_dispose",
    "libxl_physinfo_init",
    // libxl.h and libxl_utils.h: domains
    "libxl_dominfo_dispose",
    "libxl_dominfo_init",
    "libxl_dominfo_list_free",
    "libxl_domain_info",
    "libxl_domid_to_name",
    "libxl_list_domain",
    "libxl_cpupool_info",
    "libxl_cpupoolinfo_dispose",
    "libxl_cpupoolinfo_init",
    "libxl_domain_destroy",
    "libxl_domain_create_info_dispose",
    "libxl_domain_create_info_init",
    "libxl_domain_pause",
    "libxl_domain_preserve",
    "libxl_domain_rename",
    "libxl_domain_resume",
    "libxl_domain_suspend",
    "libxl_domain_unpause",
    // libxl.h: configuration
    "libxl_domain_config_dispose",
    "libxl_domain_config_init",
    "libxl_domain_config_to_json",
    "libxl_retrieve_domain_configuration",
    "libxl_userdata_retrieve",
    "libxl_userdata_store",
    // libxl_event.h
    "libxl_ao_abort",
    "libxl_childproc_setmode",
    "libxl_event_register_callbacks",
    // libxlutil.h: xl configuration files
    "libxl_device_disk_dispose",
    "libxl_device_disk_init",
    "libxl_disk_backend_to_string",
    "libxl_disk_format_to_string",
    "xlu_cfg_destroy",
    "xlu_cfg_get_list",
    "xlu_cfg_get_listitem",
    "xlu_cfg_get_string",
    "xlu_cfg_init",
    "xlu_cfg_readdata",
    "xlu_disk_parse",
    // xentoollog.h
    "xtl_log",
    "xtl_logger_destroy",
    "xtl_progress",
    // stdio.h
    "vsnprintf",
];

/// Types whose constants or fields are used, and which no function above brings along.
const TYPES: &[&str] =
    &["libxl_error", "libxl_shutdown_reason", "libxl_sigchld_owner", "xentoollog_level"];

/// Preprocessor constants.
const CONSTANTS: &[&str] = &["LIBXL_SUSPEND_LIVE", "LIBXL_VERSION"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=header.h");

    // xenlight's own .pc file names xentoollog and xlutil only for static linking.
    let mut includes = Vec::new();
    for library in ["xenlight", "xentoollog", "xlutil"] {
        match pkg_config::Config::new().probe(library) {
            Ok(found) => includes.extend(found.include_paths),
            Err(error) => panic!(
                "\n\nxl-snapshot is built against libxl, and pkg-config cannot find {library}.\n\
                 Install Xen's development files (Debian, Ubuntu: apt install libxen-dev; \
                 Fedora: dnf install xen-devel).\n\n{error}\n"
            ),
        }
    }

    let mut builder = bindgen::Builder::default()
        .header("header.h")
        .clang_args(includes.iter().map(|path| format!("-I{}", path.display())))
        .rust_target(
            bindgen::RustTarget::stable(89, 0)
                .unwrap_or_else(|error| panic!("the rust-version of Cargo.toml: {error}")),
        )
        .rust_edition(bindgen::RustEdition::Edition2024)
        // A value from C may be none we know: enums stay integers, and their constants keep the C name.
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        // Flags and versions are `int` parameters.
        .default_macro_constant_type(bindgen::MacroTypeVariation::Signed)
        // Only ever passed on as a pointer.
        .opaque_type("_IO_FILE")
        .generate_comments(false)
        .merge_extern_blocks(true)
        // Sizes and offsets are asserted at compile time.
        .layout_tests(true)
        // Also tells cargo to run this again when a header changes.
        .parse_callbacks(Box::new(bindgen::CargoCallbacks::new()));
    for name in FUNCTIONS {
        builder = builder.allowlist_function(name);
    }
    for name in TYPES {
        builder = builder.allowlist_type(name);
    }
    for name in CONSTANTS {
        builder = builder.allowlist_var(name);
    }
    let bindings = builder.generate().unwrap_or_else(|error| {
        panic!(
            "\n\nThe libxl headers cannot be read. Install libxen-dev (headers) and libclang-dev \
             (bindgen's C parser).\n\n{error}\n"
        )
    });

    let directory = env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for build scripts");
    let file = PathBuf::from(directory).join("bindings.rs");
    if let Err(error) = bindings.write_to_file(&file) {
        panic!("Writing {}: {error}", file.display());
    }
}
