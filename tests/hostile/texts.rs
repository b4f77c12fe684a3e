//! What the user writes: SPEC.toml, names, `--disk`, paths.

use std::collections::BTreeSet;
use std::path::Path;
use std::str;

use proptest::collection::vec;
use proptest::prelude::{Strategy, any, prop_oneof};
use proptest::sample::select;
use xl_snapshot::domain::Format;
use xl_snapshot::names::{SnapshotName, is_drive, is_file_part, is_vdev};
use xl_snapshot::spec::{Choice, DiskOption, MemoryTarget, Request, Spec};
use xl_snapshot::tool::qemu_img::{
    copy_snapshot, create_overlay, info, snapshot_apply, snapshot_create,
};
use xl_snapshot::tool::vhd_util;
use xl_snapshot::tool::{Invocation, Tool, check_path, quote};
use xl_snapshot::xlcfg::{Change, disk_entries, literal};

use crate::damage::odd;
use crate::harness::{Target, run};

#[test]
fn spec() {
    let text = || odd().prop_map(|text| format!("{text:?}"));
    let disk =
        (select(vec!["xvda", "hdb", "x y"]), text(), text()).prop_map(|(vdev, how, what)| {
            format!("[[disk]]\nvdev = {vdev:?}\nsnapshot = {how}\nfile = {what}\n")
        });
    let key = select(vec!["name", "description", "memory", "config", "live"]);
    let keys = vec((key, text()), 0..4).prop_map(|keys| {
        keys.iter().map(|(key, value)| format!("{key} = {value}\n")).collect::<String>()
    });
    run(&Target {
        name: "spec",
        tokens: &[
            "name = ",
            "live = true\n",
            "[[disk]]\n",
            "vdev = \"xvda\"\n",
            "snapshot = ",
            "\"internal\"",
            "\"external\"",
            "\"lvm\"",
            "size = \"1G\"\n",
            "file = ",
            "memory = ",
            "[disk]\n",
            "disk = [",
            "a.b = ",
            "{",
            "'''",
        ],
        made: (keys, vec(disk, 0..4))
            .prop_map(|(keys, disks)| (keys + &disks.concat()).into_bytes())
            .boxed(),
        check: |input| {
            let Ok(text) = str::from_utf8(input) else { return false };
            let path = Path::new("/etc/snap/web1.toml");
            Spec::parse(text, path).and_then(|spec| spec.request()).is_ok_and(|request| {
                check_request(&request);
                true
            })
        },
        factor: 256,
    });
}

fn check_request(request: &Request) {
    let vdevs: BTreeSet<_> = request.disks.iter().map(|option| &option.vdev).collect();
    assert_eq!(vdevs.len(), request.disks.len());
    request.disks.iter().for_each(check_option);
    if let MemoryTarget::File(path) = &request.memory {
        assert!(path.is_absolute());
    }
    for option in &request.disks {
        if let Some(file) = &option.choice.file {
            assert!(file.is_absolute());
        }
    }
}

/// It can be said again, and means the same.
fn check_option(disk: &DiskOption) {
    // What may be left out has QEMU's name if it is no disk of the configuration.
    let left_out = disk.choice.how.leaves_out();
    assert!(is_vdev(&disk.vdev) || left_out && is_drive(&disk.vdev));
    let Choice { how, file, size } = &disk.choice;
    let value = match (file, size) {
        (None, None) => String::new(),
        (Some(file), None) => format!(",file={}", file.display()),
        (None, Some(size)) => format!(",size={size}b"),
        (Some(_), Some(_)) => panic!("no kind takes both"),
    };
    let how = format!("{}{value}", how.name());
    assert_eq!(format!("{},{how}", disk.vdev).parse::<DiskOption>().unwrap(), *disk);
}

#[test]
fn disk_option() {
    let how = select(vec!["internal", "external", "lvm", "reflink", "none", ""]);
    let option = prop_oneof![
        odd().prop_map(|file| format!(",file={file}")),
        "[0-9]{0,21}[bkmgtBKMGTx]{0,2}".prop_map(|size| format!(",size={size}")),
        "\\PC{0,6}",
    ];
    run(&Target {
        name: "disk-option",
        tokens: &[
            "xvda", "hdb", ",", "internal", "external", "lvm", "reflink", "none", "file=", "size=",
            "g", "T", "b",
        ],
        made: ("[a-z0-9]{0,24}", how, option)
            .prop_map(|(vdev, how, option)| format!("{vdev},{how}{option}").into_bytes())
            .boxed(),
        check: |input| {
            let Ok(text) = str::from_utf8(input) else { return false };
            text.parse::<DiskOption>().is_ok_and(|option| {
                check_option(&option);
                true
            })
        },
        // An error shows the text, quoted, with everything escaped.
        factor: 64,
    });
}

#[test]
fn names() {
    run(&Target {
        name: "names",
        tokens: &["a", "1", "-", ".", "_", "+", "_tmeta", "_rimage", "..", "/", "x.y"],
        made: "[a-zA-Z0-9+_.-]{1,66}".prop_map(String::into_bytes).boxed(),
        check: |input| {
            let Ok(text) = str::from_utf8(input) else { return false };
            if is_file_part(text) {
                assert_eq!(Path::new("/a").join(text).parent(), Some(Path::new("/a")));
                assert_eq!(Path::new("/a").join(text).file_name().unwrap(), text);
            }
            if is_vdev(text) {
                assert!(is_file_part(text) && quote(text) == text);
            }
            text.parse::<SnapshotName>().is_ok_and(|name| {
                assert_eq!(name.as_str().parse(), Ok(name.clone()));
                assert!(is_file_part(text) && quote(text) == text && text.len() <= 64);
                let toml = format!("name = {text:?}");
                assert_eq!(
                    toml::from_str::<toml::Table>(&toml).unwrap()["name"].as_str(),
                    Some(text)
                );
                true
            })
        },
        factor: 16,
    });
}

#[test]
fn paths_and_commands() {
    run(&Target {
        name: "paths",
        tokens: &[
            "/", "/srv/", "a", " ", ",", ",,", ":", "-", "json:", "nbd:", "'", "\"", "\\", "\n",
        ],
        made: prop_oneof![
            odd().prop_map(String::into_bytes),
            "/[ -~]{0,30}".prop_map(String::into_bytes),
            vec(any::<u8>(), 0..12),
        ]
        .boxed(),
        check: |input| {
            let Ok(text) = str::from_utf8(input) else { return false };
            let call = Invocation::new(Tool::Lvm, ["a"]).arg(text);
            if !text.contains('\0') {
                assert_eq!(shlex::split(&quote(text)).unwrap(), [text]);
                assert_eq!(shlex::split(&call.to_string()).unwrap(), ["lvm", "a", text]);
            }
            check_path(Path::new(text)).is_ok_and(|path| {
                check_arguments(path);
                true
            })
        },
        // Nine commands are made of it, and the check itself takes them apart at each comma.
        factor: 128,
    });
}

/// No argument made of `path` can be taken for an option or a protocol (QEMU looks for one before
/// the first `/`).
fn check_arguments(path: &str) {
    assert!(path.starts_with('/') && !path.contains(char::is_control));
    let (here, other) = (Path::new(path), Path::new("/srv/b.img"));
    let name: SnapshotName = "s1".parse().unwrap();
    for call in [
        create_overlay(here, other, Format::Raw, 512),
        create_overlay(other, here, Format::Vhd, 512),
        info(here, Format::Qcow2),
        copy_snapshot(here, "1", other, Some((other, Format::Raw))),
        copy_snapshot(other, "1", here, Some((here, Format::Raw))),
        vhd_util::query_depth(here),
        vhd_util::query_parent(here),
    ] {
        assert!(call.args.iter().any(|arg| arg == path));
    }
    // QEMU's key=value lists: a doubled comma stands for one, a single one ends the value.
    for call in [snapshot_create(here, &name), snapshot_apply(here, "1")] {
        let options = call.args.last().unwrap().to_str().unwrap();
        let value = options.strip_prefix("driver=qcow2,file.driver=file,file.filename=").unwrap();
        assert_eq!(value.split(",,").collect::<Vec<_>>(), path.split(',').collect::<Vec<_>>());
    }
    let line = Change::new("xvda", here, Format::Qcow2).entry();
    assert_eq!(line.split_once("target=").unwrap().1, path);
    // As the user is told to write it into the configuration file.
    let list = format!("disk = [ {} ]", literal(&line, "'"));
    assert_eq!(disk_entries(list.as_bytes()).unwrap()[0].spec, line);
}
