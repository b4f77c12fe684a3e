//! The files in cfg-examples are what users copy: they must be right.

#![expect(clippy::unwrap_used, reason = "a test's helpers may end the test")]

use std::fs;
use std::path::{Path, PathBuf};

use xl_snapshot::host::libxl::XlCfg;
use xl_snapshot::spec::{Flags, Spec, merge};

fn examples(extension: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("cfg-examples");
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<_> = files.filter(|path| path.extension().unwrap() == extension).collect();
    assert!(!files.is_empty());
    files
}

#[test]
fn specs_are_understood() {
    for path in examples("toml") {
        let spec = Spec::parse(&fs::read_to_string(&path).unwrap(), &path).unwrap();
        let request = merge(Flags::default(), spec).unwrap();
        assert!(request.name.is_some() && !request.disks.is_empty(), "{}", path.display());
    }
}

#[test]
fn configurations_are_understood_by_xen_itself() {
    for path in examples("cfg") {
        let cfg = XlCfg::open(&path).unwrap();
        assert_eq!(cfg.name().unwrap(), path.file_stem().unwrap().to_str().unwrap());
        assert!(!cfg.disks().unwrap().is_empty(), "{}", path.display());
    }
}
