//! Names at their limits, and paths that tools could take for something else.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::json;
use uuid::Uuid;
use xl_snapshot::create::Job;
use xl_snapshot::disk::kinds::{Internal, Reflink, Vhd};
use xl_snapshot::disk::{revert_file_name, vhd};
use xl_snapshot::domain::{Disk, DomainConfig, Format};
use xl_snapshot::host::tools;
use xl_snapshot::memory::partial_path;
use xl_snapshot::names::{is_file_part, is_vdev};
use xl_snapshot::plan::Target;
use xl_snapshot::record::{DiskRecord, DiskSnapshot};
use xl_snapshot::revert::keep_name;
use xl_snapshot::spec::{DEFAULT_DIRECTORY, Spec};
use xl_snapshot::state::stamp;

fn disk(vdev: &str, path: &str, script: Option<&str>) -> Disk {
    let entry = json!({"vdev": vdev, "pdev_path": path, "format": "raw", "script": script});
    let config = DomainConfig::parse(&json!({"disks": [entry]}).to_string()).unwrap();
    config.disks().unwrap().remove(0)
}

/// The longest that are allowed.
fn longest() -> (String, String, String) {
    let longest = |good: &dyn Fn(&str) -> bool| {
        (1..1000).map(|length| "x".repeat(length)).take_while(|text| good(text)).last().unwrap()
    };
    let name = |text: &str| text.parse::<xl_snapshot::names::SnapshotName>().is_ok();
    let found = (longest(&is_file_part), longest(&is_vdev), longest(&name));
    assert_eq!((found.0.len(), found.1.len(), found.2.len()), (128, 22, 64));
    found
}

#[test]
fn the_longest_names_make_files_that_can_be_made() {
    let (domain, vdev, name) = longest();
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().to_str().unwrap();
    let mut files: Vec<PathBuf> = Vec::new();
    for option in ["external", "reflink"] {
        let flags = Spec {
            name: Some(name.clone()),
            disks: vec![format!("{vdev},{option}").parse().unwrap()],
            ..Spec::default()
        };
        let request = flags.request().unwrap();
        let job = Job::new(request, Timestamp::UNIX_EPOCH, Uuid::nil());
        files.extend(job.new_file(&domain, &disk(&vdev, &format!("{root}/a"), None)));
        let tap = disk(&vdev, &format!("vhd:{root}/a"), Some("block-tap"));
        files.extend(job.new_file(&domain, &tap));
        let Target::File(image) = job.image(&domain).unwrap() else { panic!("no file") };
        let image = Path::new(root).join(image.strip_prefix(DEFAULT_DIRECTORY).unwrap());
        fs::create_dir_all(image.parent().unwrap()).unwrap();
        files.extend([partial_path(&image), image]);
    }
    let name = name.parse().unwrap();
    for snapshot in [
        DiskSnapshot::Internal(Internal { proof: None, bases: None }),
        DiskSnapshot::Reflink(Reflink { copy: "/a".into(), proof: None }),
        DiskSnapshot::Vhd(Vhd { child: "/a".into(), proof: None }),
    ] {
        let record = DiskRecord { vdev: vdev.clone(), path: "/a".into(), format: None, snapshot };
        let stamp = stamp(Timestamp::UNIX_EPOCH);
        files.push(Path::new(root).join(revert_file_name(&domain, &record, &name, &stamp)));
    }
    files.dedup();
    assert!(files.len() >= 9);
    for file in &files {
        assert!(file.file_name().unwrap().len() <= 255, "{file:?}");
        fs::write(file, "").unwrap();
    }
}

#[test]
fn a_name_made_by_us_is_a_name_a_user_could_give() {
    for time in [Timestamp::UNIX_EPOCH, Timestamp::MIN, Timestamp::MAX] {
        let name = keep_name(time);
        assert_eq!(name.as_str().parse(), Ok(name));
    }
}

#[test]
fn qemu_img_is_asked_of_files_only() {
    for path in ["", "-x", "a.img", "nbd:localhost:10809", "json:{\"driver\":\"null-co\"}", "/a\nb"]
    {
        let error = tools::chain(Path::new(path), Format::Raw).unwrap_err();
        assert!(error.starts_with("The path"), "{error}");
    }
}

#[test]
fn what_tapdisk_serves_is_told_from_a_file_of_that_name() {
    assert_eq!(disk("xvda", "vhd:/a", None).file(), Path::new("vhd:/a"));
    assert_eq!(disk("xvda", "vhd:/a", Some("block-tap")).file(), Path::new("/a"));
    assert_eq!(vhd::target(Path::new("/a")), Path::new("vhd:/a"));
}
