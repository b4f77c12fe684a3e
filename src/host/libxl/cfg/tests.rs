use std::fs;

use super::report::REPORT_LIMIT;
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
fn a_file_of_another_kind_is_no_flood() {
    let error = parse(&"key-word = true\n".repeat(100)).unwrap_err().to_string();
    assert!(error.contains(":1: config parsing error"), "{error}");
    assert!(error.contains("; and ") && error.ends_with(" more"), "{error}");
    assert!(error.len() < 1000, "{error}");
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
    assert_eq!(error, "/etc/xen/ffi.cfg is no xl configuration file: there is a NUL byte in it");
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
