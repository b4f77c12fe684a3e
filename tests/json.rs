//! What `--json` prints: held against golden files, so that no key is renamed by accident, and against
//! xl-snapshot-json(5), which has every key and no other.
//!
//! `BLESS=1 cargo test --release --test json` writes the golden files anew: their changes are changes of
//! the contract.

#![expect(clippy::unwrap_used, reason = "a test's helpers may end the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{env, fs};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;
use xl_snapshot::disk::kinds::{
    Exported as ExportedCopy, External, Internal, LeftOut, Lvm, Reflink, Vhd,
};
use xl_snapshot::domain::{DomainId, Format, GuestType};
use xl_snapshot::list::{
    Current, DescentSource, DiskState, DivergedDisk, Health, Listing, Other, OtherKind, Snapshot,
};
use xl_snapshot::need::{Severity, Trouble};
use xl_snapshot::plan::{Plan, Step};
use xl_snapshot::quiesce::Quiesced;
use xl_snapshot::record::{
    DiskRecord, DiskSnapshot, DisksOnly, DomainRecord, FrozenFile, Parent, ParentSource,
    QcowSnapshot, Record, VERSION,
};
use xl_snapshot::report::{
    Backup, CfgReplaced, CfgTrouble, Compaction, Compactions, Created, CreatedDisk, Deleted,
    DeletedDisk, Deletions, Exported, ExportedDisk, Failed, Merge, Planned, Pruned, PrunedSnapshot,
    Rehearsed, Reverted, RevertedDisk, Serving, Shown, ShownDisk, json_text,
};

/// One report as it is printed.
struct Sample {
    /// Of the golden file.
    name: &'static str,
    /// Of the manual page.
    section: &'static str,
    text: String,
}

fn sample(name: &'static str, section: &'static str, report: &impl Serialize) -> Sample {
    Sample { name, section, text: json_text(report) }
}

/// Every report, with all that may be in it and with as little as may be.
fn samples() -> Vec<Sample> {
    vec![
        sample("create", "CREATE", &created()),
        sample("create-program", "CREATE", &created_by_program()),
        sample("create-least", "CREATE", &created_least()),
        sample("revert", "REVERT", &reverted()),
        sample("revert-program", "REVERT", &reverted_by_program()),
        sample("revert-least", "REVERT", &reverted_least()),
        sample("rehearse", "REHEARSAL", &rehearsed()),
        sample("show", "SHOW", &shown(Some("checksums"), every_record(true))),
        sample("show-program", "SHOW", &shown(None, record_by_program())),
        sample("show-least", "SHOW", &shown(None, every_record(false))),
        sample("list", "LIST", &listing()),
        sample("list-least", "LIST", &listing_least()),
        sample("delete", "DELETE", &deletions()),
        sample("delete-least", "DELETE", &Deletions { snapshots: Vec::new(), failed: Vec::new() }),
        sample("export", "EXPORT", &exported()),
        sample("export-least", "EXPORT", &exported_least()),
        sample("backup", "BACKUP", &backup()),
        sample("backup-least", "BACKUP", &backup_least()),
        sample("backup-program", "BACKUP", &backup_by_program()),
        sample("serve", "SERVE", &serving()),
        sample("prune", "PRUNE", &pruned()),
        sample("compact", "COMPACT", &compacted()),
        sample("dry-run", "DRY RUN", &planned()),
    ]
}

fn time() -> Timestamp {
    "2026-03-01T02:03:04.123456789Z".parse().unwrap()
}

// Every field is named, so that a new one does not compile before it stands here.

fn created() -> Created {
    let disk = |vdev: &str, snapshot, why: Option<&str>| CreatedDisk {
        vdev: vdev.into(),
        snapshot,
        image: "/srv/a.qcow2".into(),
        runs_on: "/srv/web1-xvda.after-s1.qcow2".into(),
        moved: why.is_none(),
        why: why.map(Into::into),
    };
    Created {
        name: "s1".into(),
        id: Uuid::from_u128(1),
        domain: "web1".into(),
        domid: Some(7),
        live: true,
        restored: false,
        record: Some("/root/web1.record".into()),
        disks_only: Some(DisksOnly::Quiesced),
        quiesced: Some(quiesced(Some(3))),
        image: Some("/var/lib/xen/snapshots/web1/s1.xlsave".into()),
        image_size: Some(144_610_000),
        size_on_disk: Some(70_254_592),
        shared: Some(68_681_728),
        pause_ms: Some(366.25),
        total_ms: 5800.5,
        disks: vec![disk("xvda", "external", None), disk("xvdb", "none", Some("it is read-only"))],
        cfg: Some(CfgReplaced {
            path: "/etc/xen/web1.cfg".into(),
            backup: "/etc/xen/web1.cfg.bak-s1".into(),
        }),
        cfg_disks: vec!["format=qcow2,vdev=xvda,access=rw,target=/srv/a.qcow2".into()],
    }
}

fn exported() -> Exported {
    let disk = |vdev: &str, file: Option<&str>, why: Option<&str>| ExportedDisk {
        vdev: vdev.into(),
        file: file.map(Into::into),
        size_on_disk: file.map(|_| 1_376_256),
        why: why.map(Into::into),
    };
    Exported {
        name: "s1".into(),
        id: Uuid::from_u128(1),
        domain: "web1".into(),
        directory: Some("/backup/web1-s1".into()),
        archive: None,
        image: "s1.xlsave.zst".into(),
        memory: true,
        image_size: Some(38_610_000),
        total_ms: 5800.5,
        disks: vec![
            disk("xvda", Some("xvda.qcow2"), None),
            disk("xvdb", None, Some("it is read-only")),
        ],
    }
}

fn exported_least() -> Exported {
    Exported {
        directory: None,
        archive: Some("web1-s1".into()),
        image: "s1.record".into(),
        memory: false,
        image_size: None,
        disks: Vec::new(),
        ..exported()
    }
}

fn backup() -> Backup {
    Backup {
        domain: "web1".into(),
        name: "backup-20260301-020304".into(),
        directory: "/backup/web1-backup-20260301-020304".into(),
        disks_only: created().disks_only,
        quiesced: created().quiesced,
        cleaned: vec!["backup-20260228-020304".into()],
        total_ms: 5800.5,
        disks: exported().disks,
    }
}

fn backup_least() -> Backup {
    Backup { quiesced: None, cleaned: Vec::new(), disks: Vec::new(), ..backup() }
}

fn backup_by_program() -> Backup {
    Backup { quiesced: created_by_program().quiesced, ..backup() }
}

fn serving() -> Serving {
    Serving {
        name: "s1".into(),
        id: Uuid::from_u128(1),
        domain: "web1".into(),
        vdev: "xvda".into(),
        snapshot: "external",
        image: "/srv/a.qcow2".into(),
        size: 64 << 20,
        socket: "/run/web1.sock".into(),
        export: "disk".into(),
        uri: Serving::uri("/run/web1.sock", "disk"),
    }
}

fn created_by_program() -> Created {
    Created { quiesced: Some(quiesced(None)), ..created() }
}

fn reverted_by_program() -> Reverted {
    Reverted { quiesced: Some(quiesced(None)), ..reverted() }
}

fn record_by_program() -> Record {
    Record { quiesced: Some(quiesced(None)), ..every_record(true) }
}

fn quiesced(file_systems: Option<u64>) -> Quiesced {
    Quiesced { by: "agent".into(), file_systems, frozen_ms: 42 }
}

fn deletions() -> Deletions {
    let deleted = Deleted {
        name: "s1".into(),
        id: Uuid::from_u128(1),
        domain: "web1".into(),
        image: "/var/lib/xen/snapshots/web1/s1.xlsave".into(),
        freed: 144_610_000,
        record: None,
        total_ms: 5800.5,
        disks: vec![DeletedDisk {
            vdev: "xvda".into(),
            snapshot: "external",
            merged: vec![Merge {
                how: "commit",
                from: "/srv/web1-xvda.after-s1.qcow2".into(),
                into: "/srv/a.qcow2".into(),
                bytes: 65_536,
            }],
            runs_on: Some("/srv/a.qcow2".into()),
            removed: vec!["/srv/web1-xvda.after-s1.qcow2".into()],
            kept: None,
        }],
        cfgs: vec![CfgReplaced {
            path: "/etc/xen/web1.cfg".into(),
            backup: "/etc/xen/web1.cfg.bak-before-delete-20260301-020304".into(),
        }],
    };
    let without_memory = Deleted {
        record: Some("/var/lib/xen/snapshots/web1/s2.record".into()),
        disks: Vec::new(),
        cfgs: Vec::new(),
        ..deleted.clone()
    };
    let kept = DeletedDisk {
        merged: Vec::new(),
        runs_on: None,
        removed: Vec::new(),
        kept: Some("/srv/a.qcow2 stays: it was not made by this program".into()),
        ..deleted.disks[0].clone()
    };
    let not_removed = Deleted { disks: vec![kept], ..without_memory.clone() };
    Deletions {
        snapshots: vec![deleted, without_memory, not_removed],
        failed: vec![Failed {
            snapshot: "web1/s3".into(),
            exit_status: 3,
            why: "The snapshot of xvda cannot be deleted".into(),
        }],
    }
}

fn created_least() -> Created {
    Created {
        domid: None,
        record: None,
        disks_only: None,
        quiesced: None,
        image: None,
        image_size: None,
        size_on_disk: None,
        shared: None,
        pause_ms: None,
        disks: Vec::new(),
        cfg: None,
        cfg_disks: Vec::new(),
        ..created()
    }
}

fn reverted() -> Reverted {
    Reverted {
        name: "s1".into(),
        id: Uuid::from_u128(1),
        domain: "web2".into(),
        uuid: Uuid::from_u128(2),
        domid: Some(8),
        clone_of: Some("web1".into()),
        paused: false,
        memory: true,
        quiesced: Some(quiesced(Some(3))),
        restored_first: true,
        outage_ms: Some(12.5),
        total_ms: 12_300.0,
        disks: vec![
            RevertedDisk {
                vdev: "xvda".into(),
                runs_on: "/srv/a.qcow2".into(),
                kept: Some("snapshot before-revert-20260301-020304 in /srv/a.qcow2".into()),
                why: None,
            },
            RevertedDisk {
                vdev: "xvdb".into(),
                runs_on: "/srv/b.img".into(),
                kept: None,
                why: Some("it is read-only".into()),
            },
        ],
        cfg: Some(CfgReplaced {
            path: "/etc/xen/web1.cfg".into(),
            backup: "/etc/xen/web1.cfg.bak-before-revert-20260301-020304".into(),
        }),
        cfg_trouble: Some(CfgTrouble {
            path: "/etc/xen/web1.cfg".into(),
            why: "No such file or directory".into(),
        }),
        cfg_disks: vec!["format=qcow2,vdev=xvda,access=rw,target=/srv/a.qcow2".into()],
    }
}

fn reverted_least() -> Reverted {
    Reverted {
        domid: None,
        clone_of: None,
        quiesced: None,
        restored_first: false,
        outage_ms: None,
        disks: Vec::new(),
        cfg: None,
        cfg_trouble: None,
        cfg_disks: Vec::new(),
        ..reverted()
    }
}

fn rehearsed() -> Rehearsed {
    Rehearsed {
        name: "s1".into(),
        id: Uuid::from_u128(1),
        domain: "web1".into(),
        uuid: Uuid::from_u128(2),
        rehearsed: true,
        total_ms: 12_300.0,
    }
}

fn shown(verified: Option<&'static str>, record: Record) -> Shown {
    let disks = record.disks.iter().map(|disk| ShownDisk {
        vdev: disk.vdev.clone(),
        state: if record.complete { "present" } else { "missing" },
        why: (!record.complete).then(|| "it is gone".into()),
        note: record.complete.then(|| "it has 2 MiB now, and 1 MiB again after the revert".into()),
    });
    Shown {
        image: "/var/lib/xen/snapshots/web1/s1.xlsave".into(),
        compressed: verified.is_some(),
        size: record.complete.then_some(144_610_000),
        size_on_disk: record.complete.then_some(70_254_592),
        shared: record.complete.then_some(68_681_728),
        verified,
        vcpus: record.complete.then_some(1),
        revertible: record.complete,
        disks: disks.collect(),
        troubles: (!record.complete)
            .then(|| Trouble {
                rank: Severity::Missing,
                about: "web1 cannot be restored".into(),
                why: "the bridge xenbr0 of its network does not exist".into(),
                hint: "bring the bridge up".into(),
            })
            .into_iter()
            .collect(),
        unseen: (!record.complete)
            .then(|| "whether there is enough free memory".into())
            .into_iter()
            .collect(),
        record,
    }
}

/// A record with a disk of every kind; one that is not complete has no proofs.
fn every_record(complete: bool) -> Record {
    let frozen = || {
        complete.then(|| FrozenFile {
            virtual_size: 1 << 20,
            file_size: 1 << 19,
            mtime: time(),
            inode: 77,
        })
    };
    let file = |name: &str| PathBuf::from(format!("/srv/{name}"));
    let inside = QcowSnapshot { id: "1".into(), name: "s1".into(), date: time() };
    let kinds = [
        DiskSnapshot::None(LeftOut { why: "it is read-only".into() }),
        DiskSnapshot::Internal(Internal { proof: complete.then_some(inside), bases: None }),
        DiskSnapshot::External(External { overlay: file("o.qcow2"), proof: frozen() }),
        DiskSnapshot::Lvm(Lvm {
            group: "vg0".into(),
            volume: "c".into(),
            snapshot: "c.s1".into(),
            size: complete.then_some(1 << 30),
        }),
        DiskSnapshot::Reflink(Reflink { copy: file("c.img"), proof: frozen() }),
        DiskSnapshot::Vhd(Vhd { child: file("c.vhd"), proof: frozen() }),
        DiskSnapshot::Exported(ExportedCopy { proof: frozen() }),
    ];
    let disks = kinds.into_iter().zip('a'..).map(|(snapshot, letter)| DiskRecord {
        vdev: format!("xvd{letter}"),
        path: file("a.img"),
        format: complete.then_some(Format::Raw),
        snapshot,
    });
    Record {
        version: VERSION,
        complete,
        name: "s1".parse().unwrap(),
        id: Uuid::from_u128(1),
        created: time(),
        description: if complete { "before the upgrade".into() } else { String::new() },
        live: true,
        disks_only: (!complete).then_some(DisksOnly::Offline),
        writer: "xl-snapshot 0.1.0".into(),
        xen: "4.17.7".into(),
        image_size: 144_610_000,
        parent: complete.then(|| Parent::Snapshot(Uuid::from_u128(9))),
        quiesced: complete.then(|| quiesced(Some(3))),
        parent_by: complete.then_some(ParentSource::Disks),
        domain: DomainRecord {
            name: "web1".into(),
            uuid: Uuid::from_u128(2),
            guest_type: GuestType::Pvh,
            memory_kib: 131_072,
            cfg: complete.then(|| "/etc/xen/web1.cfg".into()),
        },
        disks: disks.collect(),
    }
}

/// A snapshot with everything, and what is no snapshot.
fn listing() -> Listing {
    let disk = |snapshot, state, why: Option<&str>| DiskState {
        vdev: "xvda".into(),
        snapshot,
        image: "/srv/a.qcow2".into(),
        size_on_disk: (snapshot == "external").then_some(1 << 20),
        state,
        why: why.map(Into::into),
    };
    let snapshot = listed();
    let domain = Current {
        name: "web1".into(),
        uuid: Uuid::from_u128(2),
        domid: Some(7),
        id: Some(snapshot.id),
        told: DescentSource::Mark,
        clone_of: None,
        mixed: Vec::new(),
    };
    let clone = Current {
        id: None,
        told: DescentSource::Disks,
        clone_of: Some(Uuid::from_u128(1)),
        ..domain.clone()
    };
    let apart = |id| DivergedDisk { vdev: "xvda".into(), id };
    let mixed = Current {
        domid: None,
        id: None,
        told: DescentSource::Differ,
        mixed: vec![apart(Some(Uuid::from_u128(1))), apart(None)],
        ..domain.clone()
    };
    let other = Other {
        kind: OtherKind::Leftover,
        domain: Some("web1".into()),
        uuid: Uuid::from_u128(2),
        path: "/var/lib/xen/snapshots/web1/s2.xlsave.partial".into(),
        name: Some("s2".into()),
        id: Some(Uuid::from_u128(3)),
        created: Some(time()),
        why: "it was interrupted".into(),
    };
    let foreign = Other {
        kind: OtherKind::Foreign,
        domain: None,
        name: None,
        id: None,
        created: None,
        ..other.clone()
    };
    let broken = Snapshot {
        memory: false,
        disks_only: Some(DisksOnly::Offline),
        shared: None,
        state: Health::Broken,
        why: vec!["xvda: it was written to since".into()],
        current: false,
        parent: None,
        parent_by: DescentSource::None,
        disks: vec![
            disk("external", Health::Broken, Some("it was written to since")),
            disk("internal", Health::Good, None),
        ],
        ..listed()
    };
    Listing {
        snapshots: vec![broken, snapshot],
        domains: vec![domain, clone, mixed],
        others: vec![other, foreign],
        hidden: 0,
        unseen: vec!["the disks of web2".into()],
    }
}

fn listed() -> Snapshot {
    Snapshot {
        group: "web1".into(),
        domain: "web1".into(),
        uuid: Uuid::from_u128(2),
        name: "s1".into(),
        id: Uuid::from_u128(1),
        created: time(),
        description: "before the upgrade".into(),
        image: "/var/lib/xen/snapshots/web1/s1.xlsave".into(),
        memory: true,
        disks_only: None,
        size: 144_610_000,
        size_on_disk: 70_254_592,
        shared: Some(68_681_728),
        state: Health::Good,
        why: Vec::new(),
        current: true,
        parent: Some(Uuid::from_u128(9)),
        parent_by: DescentSource::Record,
        disks: Vec::new(),
    }
}

fn listing_least() -> Listing {
    Listing {
        snapshots: Vec::new(),
        domains: Vec::new(),
        others: Vec::new(),
        hidden: 3,
        unseen: Vec::new(),
    }
}

fn compacted() -> Compactions {
    let image = |name: &str, rewritten, now: Option<u64>| Compaction {
        image: format!("/var/lib/xen/snapshots/web1/{name}.xlsave").into(),
        rewritten,
        size: 144_610_000,
        size_on_disk_before: 144_613_376,
        size_on_disk: now,
        shared: now.map(|_| 68_681_728),
    };
    Compactions {
        dry_run: false,
        images: vec![image("s1", true, Some(70_254_592)), image("s2", false, None)],
        failed: vec![Failed {
            snapshot: "web1/s3".into(),
            exit_status: 3,
            why: "Image web1/s3: It is compressed already".into(),
        }],
    }
}

fn pruned() -> Pruned {
    let snapshot = |day: &str, name: &str, why: &[&str]| PrunedSnapshot {
        name: name.into(),
        id: Uuid::from_u128(1),
        created: format!("{day}T02:03:04Z").parse().unwrap(),
        image: format!("/var/lib/xen/snapshots/web1/{name}.xlsave").into(),
        size_on_disk: 144_613_376,
        why: why.iter().map(ToString::to_string).collect(),
    };
    Pruned {
        domain: "web1".into(),
        dry_run: true,
        deleted: vec![snapshot("2026-01-01", "snap-20260101-020304", &["no rule keeps it"])],
        kept: vec![
            snapshot("2025-12-31", "before-upgrade", &["web1 continues from it", "web2 needs it"]),
            snapshot("2026-03-01", "snap-20260301-020304", &["last", "daily"]),
        ],
        failed: vec![snapshot(
            "2026-01-02",
            "snap-20260102-020304",
            &["It is the base of two images"],
        )],
    }
}

/// What people read of the same.
#[test]
fn pruned_snapshots_are_told_with_the_reasons() {
    assert_eq!(
        pruned().to_string(),
        "\
web1: 1 of 4 snapshots would be deleted, images of 137.91 MiB
  keep    before-upgrade        2025-12-31 02:03  web1 continues from it, web2 needs it
  delete  snap-20260101-020304  2026-01-01 02:03  no rule keeps it
  failed  snap-20260102-020304  2026-01-02 02:03  It is the base of two images
  keep    snap-20260301-020304  2026-03-01 02:03  last, daily
"
    );
}

fn planned() -> Planned {
    let domain = DomainId { domid: 7, uuid: Uuid::nil(), name: "web1".into() };
    Planned::from(&Plan {
        title: "Snapshot s1 of web1".into(),
        notes: vec!["disk xvdb is not in the snapshot: it is read-only".into()],
        prepare: vec![Step::Suspend {
            domain: domain.clone(),
            live: true,
            max_pause: None,
            disks: vec![],
        }],
        commit: Some(Step::Transaction { domain: domain.clone(), actions: Vec::new() }),
        onward: vec![Step::CompleteImage],
        finish: vec![Step::Resume { domain, otherwise: None }],
        ..Plan::default()
    })
}

#[test]
fn a_dry_run_with_clean_is_one_object() {
    let finish = vec![Step::RemoveFile { path: "/srv/a b.partial".into() }];
    let planned = planned().after(&Plan { finish, ..Plan::default() });
    assert_eq!(planned.clean, ["remove '/srv/a b.partial'"]);
    let json: serde_json::Value = serde_json::from_str(&json_text(&planned)).unwrap();
    assert_eq!(json["clean"][0], "remove '/srv/a b.partial'");
    assert_eq!(json["title"], "Snapshot s1 of web1");
}

#[test]
fn no_key_and_no_form_has_changed() {
    for Sample { name, text, .. } in samples() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.json"));
        if env::var_os("BLESS").is_some() {
            fs::write(&path, &text).unwrap();
        }
        let golden = fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(text, golden, "{}: see the beginning of this file", path.display());
    }
}

/// The types of each key, `null` and `absent` among them, by its path: `disks[].vdev`.
type Keys = BTreeMap<String, BTreeSet<String>>;

fn collect(path: &str, value: &Value, keys: &mut Keys, seen: &mut Vec<(String, BTreeSet<String>)>) {
    let mut of_type = |name: &str| {
        if !path.is_empty() && !path.ends_with("[]") {
            keys.entry(path.into()).or_default().insert(name.into());
        }
    };
    match value {
        Value::Null => of_type("null"),
        Value::Bool(_) => of_type("boolean"),
        Value::Number(_) => of_type("number"),
        Value::String(_) => of_type("string"),
        Value::Array(items) => {
            of_type("array");
            items.iter().for_each(|item| collect(&format!("{path}[]"), item, keys, seen));
        }
        Value::Object(members) => {
            of_type("object");
            seen.push((path.into(), members.keys().cloned().collect()));
            for (key, value) in members {
                let dot = if path.is_empty() { "" } else { "." };
                collect(&format!("{path}{dot}{key}"), value, keys, seen);
            }
        }
    }
}

/// The keys of all samples of a section.
fn printed(section: &str) -> Keys {
    let (mut keys, mut objects) = (Keys::new(), Vec::new());
    for sample in samples().iter().filter(|sample| sample.section == section) {
        collect("", &serde_json::from_str(&sample.text).unwrap(), &mut keys, &mut objects);
    }
    // A key that one object at its place has, and another one has not.
    for (path, types) in &mut keys {
        let (parent, key) = path.rsplit_once('.').unwrap_or(("", path));
        let mut here = objects.iter().filter(|(place, _)| place == parent);
        if here.any(|(_, members)| !members.contains(key)) {
            types.insert("absent".into());
        }
    }
    keys
}

/// The keys that a section of the manual page explains: `.BR key " type or type, unit"` after `.TP`, or
/// after `.TQ` if they share what is said of them.
fn explained(page: &str, section: &str) -> Keys {
    let start = format!("\n.SH {section}\n");
    let text = page.split(&start).nth(1).unwrap_or_else(|| panic!("no section {section}"));
    let text = text.split("\n.SH ").next().unwrap();
    let mut keys = Keys::new();
    let mut tagged = false;
    for line in text.lines() {
        if tagged {
            let entry = line.strip_prefix(".BR ").and_then(|rest| rest.split_once(" \" "));
            let (key, types) = entry.unwrap_or_else(|| panic!("not a key and its type: {line}"));
            let types = types.trim_end_matches('"').split(',').next().unwrap();
            let first = |text: &str| text.split(' ').next().unwrap().to_owned();
            let twice = keys.insert(key.into(), types.split(" or ").map(first).collect());
            assert!(twice.is_none(), "{key} is explained twice");
        }
        tagged = matches!(line, ".TP" | ".TQ");
    }
    keys
}

#[test]
fn every_key_is_in_the_manual_with_its_types_and_no_other() {
    let page = Path::new(env!("OUT_DIR")).join("share/man/xl-snapshot-json.5");
    let page = fs::read_to_string(page).unwrap();
    let sections: BTreeSet<_> = samples().iter().map(|sample| sample.section).collect();
    for section in sections {
        let (printed, explained) = (printed(section), explained(&page, section));
        for (key, types) in &printed {
            let found = explained.get(key).unwrap_or_else(|| panic!("{section}: no word of {key}"));
            assert_eq!(found, types, "{section}: the types of {key}");
        }
        for key in explained.keys() {
            assert!(printed.contains_key(key), "{section}: nothing prints {key}");
        }
    }
}

#[test]
fn every_value_of_a_word_is_in_the_manual() {
    let page = Path::new(env!("OUT_DIR")).join("share/man/xl-snapshot-json.5");
    let page = fs::read_to_string(page).unwrap();
    let kinds: Vec<_> = every_record(true).disks.iter().map(|disk| disk.snapshot.name()).collect();
    let worth = ["offline", "crash-consistent", "quiesced", "by-hand"];
    let states = ["present", "changed", "missing", "none", "checksums", "structure"];
    for word in kinds.into_iter().chain(states).chain(worth) {
        assert!(has_word(&page, word), "no word of {word}");
    }
    let states = [Health::Good, Health::Broken, Health::Unfinished, Health::Unread, Health::None]
        .map(word_of);
    let told = [
        DescentSource::Disks,
        DescentSource::Record,
        DescentSource::Mark,
        DescentSource::Dates,
        DescentSource::None,
        DescentSource::Gone,
        DescentSource::Differ,
        DescentSource::Unknown,
    ];
    let kinds = [
        OtherKind::Damaged,
        OtherKind::Collision,
        OtherKind::Leftover,
        OtherKind::Copy,
        OtherKind::Disk,
        OtherKind::Kept,
        OtherKind::Stray,
        OtherKind::SaveFile,
        OtherKind::Foreign,
    ];
    let section = page.split("\n.SH LIST\n").nth(1).unwrap().split("\n.SH ").next().unwrap();
    for word in states.into_iter().chain(told.map(word_of)).chain(kinds.map(word_of)) {
        assert!(has_word(section, &word), "no word of {word}");
    }
}

/// How JSON has a word.
fn word_of(word: impl Serialize) -> String {
    serde_json::to_value(word).unwrap().as_str().unwrap().to_owned()
}

fn has_word(page: &str, word: &str) -> bool {
    [format!(".B {word}\n"), format!(".BR {word} ")].iter().any(|text| page.contains(text))
}
