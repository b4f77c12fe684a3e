//! What libxl, xenstore and the user's configuration file say of a domain.

use std::convert::Infallible;
use std::path::Path;
use std::str;

use jiff::Timestamp;
use proptest::prelude::{Strategy, prop_oneof};
use serde_json::json;
use uuid::Uuid;
use xl_snapshot::create::Job;
use xl_snapshot::domain::{DomainConfig, Format};
use xl_snapshot::host::cfg::rewritten;
use xl_snapshot::host::xenstore::{Vbd, process_number};
use xl_snapshot::memory::header::{Header, encode_plain};
use xl_snapshot::names::is_vdev;
use xl_snapshot::spec::Spec;
use xl_snapshot::xlcfg::{BadCfg, Change, Known, disk_entries, respec, rewrite};

use crate::damage::odd;
use crate::harness::{Target, run};
use crate::tools::answer;

#[test]
fn libxl_json() {
    const KEYS: &[&str] = &[
        "vdev",
        "pdev_path",
        "format",
        "readwrite",
        "is_cdrom",
        "script",
        "backend",
        "backend_domname",
        "removable",
    ];
    let made = (answer(KEYS), odd(), odd()).prop_map(|(disks, name, path)| {
        let disk = json!({"vdev": "xvda", "pdev_path": path, "format": "qcow2", "readwrite": 1});
        json!({
            "c_info": {"type": "pv", "name": name, "uuid": Uuid::nil()},
            "b_info": {"max_memkb": disks[0], "max_vcpus": disks[1], "dm_restrict": disks[2]},
            "disks": [disk, disks],
        })
        .to_string()
        .into_bytes()
    });
    run(&Target {
        name: "libxl-json",
        tokens: &[
            "{",
            "}",
            "[",
            "]",
            ",",
            "\"c_info\": {",
            "\"name\": ",
            "\"b_info\": {",
            "\"disks\": [",
            "\"vdev\": ",
            "\"pdev_path\": ",
            "\"format\": \"raw\"",
            "\"max_memkb\": ",
            "null",
            "\0",
        ],
        made: made.boxed(),
        check: |input| {
            let Ok(text) = str::from_utf8(input) else { return false };
            let Ok(config) = DomainConfig::parse(text) else { return false };
            assert_eq!(DomainConfig::parse(&config.to_json()).unwrap(), config);
            let _ = (config.uuid(), config.guest_type(), config.vcpus(), config.dm_restrict());
            assert!(config.memory_kib() < 1 << 50, "it is multiplied");
            if let Ok(bytes) = encode_plain(&config.to_json()) {
                let header = Header::read(&mut bytes.as_slice()).unwrap();
                assert_eq!(header.config, config.to_json());
            }
            check_disks(config)
        },
        factor: 256,
    });
}

fn check_disks(mut config: DomainConfig) -> bool {
    let Ok(disks) = config.disks() else { return false };
    let request = Spec::default().request().unwrap();
    let job = Job::new(request, Timestamp::UNIX_EPOCH, Uuid::nil());
    let domain = config.name().unwrap_or("d").to_owned();
    for disk in disks.iter().take(8) {
        assert!(is_vdev(&disk.vdev));
        if let Some(file) = job.new_file(&domain, disk) {
            assert_eq!(file.parent(), disk.file().parent());
            assert!(file.file_name().unwrap().len() <= 255);
        }
        let new = Path::new("/srv/new, \"x\".qcow2");
        config.set_image(&disk.vdev, new, Format::Qcow2).unwrap();
        let again = DomainConfig::parse(&config.to_json()).unwrap().disks().unwrap();
        assert_eq!(again.len(), disks.len());
        assert_eq!(again.iter().find(|d| d.vdev == disk.vdev).unwrap().path, new);
    }
    true
}

#[test]
fn xenstore() {
    let line = |key: &'static str| odd().prop_map(move |value| format!("{key}={value}\n"));
    let made = (line("type"), line("params"), line("mode"), line("device-model-pid")).prop_map(
        |(kind, params, mode, pid)| {
            format!("dev=xvda\nbackend=/b\n{kind}{params}{mode}{pid}/b/params=aio:/x\n")
                .into_bytes()
        },
    );
    run(&Target {
        name: "xenstore",
        tokens: &[
            "dev=",
            "type=",
            "mode=",
            "backend=",
            "params=",
            "/b/params=",
            "qdisk",
            "phy",
            "vhd:",
            "qcow2:",
            "aio:",
            ":",
            "\n",
            "/srv/a",
            "device-model-pid=",
        ],
        made: made.boxed(),
        // One value a line; the text as a whole is the disk's image as well.
        check: |input| {
            let Ok(text) = str::from_utf8(input) else { return false };
            let read = |whole: bool| {
                move |path: &str| -> Result<Option<String>, Infallible> {
                    if whole && path.ends_with("/params") {
                        return Ok(Some(text.to_owned()));
                    }
                    let key = path.strip_prefix("/own/").unwrap_or(path);
                    let mut lines = text.lines().filter_map(|line| line.split_once('='));
                    Ok(lines.find(|(other, _)| *other == key).map(|(_, value)| value.to_owned()))
                }
            };
            assert!(process_number(text).is_none_or(|pid| pid > 0));
            for whole in [true, false] {
                let Ok(vbd) = Vbd::of_keys("/own", read(whole));
                let Some(vbd) = vbd else { return false };
                if let Some(image) = vbd.image() {
                    assert!(vbd.params[0].1.ends_with(image.to_str().unwrap()));
                }
            }
            true
        },
        factor: 32,
    });
}

#[test]
fn xl_cfg() {
    let entry = prop_oneof![
        odd().prop_map(|path| format!("{path},raw,xvda,w")),
        odd().prop_map(|path| format!("format=qcow2, vdev=xvda, access=rw, target={path}")),
        odd().prop_map(|path| format!("tap:qcow2:{path},xvda:disk,w")),
        "[a-z=,:/ ]{0,30}",
    ];
    let made = (entry, odd()).prop_map(|(entry, other)| {
        let quoted = entry.replace('\\', "\\\\").replace('"', "\\\"");
        format!("name='web1'\ndisk = [ \"{quoted}\", '{other},,xvdb' ]\n").into_bytes()
    });
    run(&Target {
        name: "xl-cfg",
        tokens: &[
            "disk",
            " = ",
            "+=",
            "[",
            "]",
            "'",
            "\"",
            "\\",
            ",",
            ";",
            "\n",
            "# ",
            "vdev=xvda",
            "format=raw",
            "target=",
            "phy:",
            "vif = [ 'x' ]\n",
            "cdrom",
            "script=block-x",
        ],
        made: made.boxed(),
        check: |input| {
            // Through libxlutil, as a user's file goes. Longer ones cost it much time.
            let changes = [change("xvda", "/srv/n'e\"w\\, x.qcow2", "qcow2")];
            let file = input.get(..8192).unwrap_or(input);
            let _ = rewritten(Path::new("/etc/xen/web1.cfg"), file, &changes);
            let Ok(entries) = disk_entries(input) else { return false };
            for entry in &entries {
                let literal = &input[entry.span.clone()];
                assert!(matches!(literal[0], b'\'' | b'"') && literal.ends_with(&literal[..1]));
            }
            // Without libxlutil, what it would say is guessed.
            let changed = entries.iter().position(|entry| respec(&entry.spec, &changes[0]).is_ok());
            let known: Vec<_> = entries
                .iter()
                .enumerate()
                .map(|(at, entry)| Known {
                    spec: &entry.spec,
                    vdev: if Some(at) == changed { "xvda" } else { "other" },
                })
                .collect();
            match (rewrite(input, &known, &changes), changed) {
                (Err(error), None) => assert_eq!(error, BadCfg::NoDisk("xvda".into())),
                (Err(error), Some(_)) => panic!("{error}"),
                (Ok(_), None) => panic!("nothing to change"),
                (Ok(new), Some(at)) => {
                    let again = disk_entries(&new).unwrap();
                    assert_eq!(again.len(), entries.len());
                    assert!(again[at].spec.ends_with(&format!("target={}", changes[0].target)));
                    let others = |entries: &[xl_snapshot::xlcfg::Entry]| {
                        let all = entries.iter().map(|entry| entry.spec.clone()).enumerate();
                        all.filter(|(other, _)| *other != at).collect::<Vec<_>>()
                    };
                    assert_eq!(others(&again), others(&entries));
                }
            }
            true
        },
        factor: 256,
    });
}

fn change(vdev: &str, target: &str, format: &str) -> Change {
    Change { vdev: vdev.into(), target: target.into(), format: format.into() }
}
