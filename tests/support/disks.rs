//! What is seen of a disk and found of its snapshot, all well, and what the tests of every kind do with it.

use std::fmt::Debug;

use uuid::Uuid;

use crate::disk::chain::{FileId, Link};
use crate::disk::qcow2::Header;
use crate::disk::{
    Context, DiskCreate, DiskRevert, FileFacts, Node, Place, RevertContext, Room, RunningDisk,
    Sectors, Served, SnapshotDisk, create, revert,
};
use crate::domain::{Disk, DomainConfig, Format};
use crate::error::Result;
use crate::names::SnapshotName;
use crate::plan::Step;
use crate::record::{DiskRecord, DiskSnapshot, FrozenFile, SECTOR};
use crate::spec::DiskOption;
use crate::tool::vhd_util;
use crate::tool::volumes::Volume;

/// What is known of the host's logical volumes.
pub(crate) type Volumes = std::result::Result<Vec<Volume>, String>;

pub(crate) const ID: Uuid = Uuid::from_u128(0x0b41a0a5_4a1c_4b3c_8f1e_93d4b0b1a001);

/// The entry of a raw file that the kernel serves from a loop device.
pub(crate) const LOOP: &str = r#"{"pdev_path": "/srv/b.img", "vdev": "xvdb", "backend": "phy", "format": "raw", "readwrite": 1}"#;
/// The entry of a VHD that tapdisk serves.
pub(crate) const TAP: &str = r#"{"pdev_path": "vhd:/srv/c.vhd", "vdev": "xvdc", "format": "raw", "script": "block-tap", "readwrite": 1}"#;

pub(crate) fn facts() -> FileFacts {
    let mtime = "2026-03-01T02:03:04Z".parse().unwrap();
    FileFacts {
        size: 1 << 20,
        mtime,
        inode: 5,
        lasting: true,
        device: 1,
        writable: true,
        merging: None,
    }
}

/// Those of another file for each disk.
pub(crate) fn facts_of(disk: &Disk) -> FileFacts {
    let number = disk.vdev.bytes().next_back().unwrap() - b'a';
    FileFacts { inode: facts().inode + u64::from(number), ..facts() }
}

/// The proof of a file that is as [`facts`] says.
pub(crate) fn proof() -> FrozenFile {
    let FileFacts { size, mtime, inode, .. } = facts();
    FrozenFile { virtual_size: 64 << 20, file_size: size, mtime, inode }
}

/// A disk with libxl's `entry`. What serves it is told by the entry, all else is well.
pub(crate) fn seen(entry: &str) -> RunningDisk {
    let config = DomainConfig::parse(&format!(r#"{{"disks": [{entry}]}}"#)).unwrap();
    let disk = config.disks().unwrap().remove(0);
    let in_kernel = entry.contains("phy") || disk.is_tap_vhd();
    let facts_of_vhd = vhd_util::Facts {
        virtual_size: 64 << 20,
        differencing: false,
        uuid: [0; 16],
        header: 512,
        depth: Some(1),
    };
    let is_vhd = disk.is_tap_vhd() || disk.format == Some(Format::Vhd);
    RunningDisk {
        served: Some(if in_kernel { Served::Blkback } else { Served::Qemu }),
        params: Vec::new(),
        node: (!in_kernel).then(|| Node {
            name: "node".into(),
            file: disk.path.clone(),
            driver: "whatever".into(),
            read_only: false,
            virtual_size: 64 << 20,
            elsewhere: None,
            emulated: None,
            bitmaps: 0,
            snapshots: Vec::new(),
        }),
        file: Ok(facts_of(&disk)),
        device: None,
        place: Some(Place { path: "/srv/new".into(), trouble: None }),
        used_by: None,
        sectors: in_kernel.then_some(Sectors { count: 2048, size: SECTOR }),
        clone_trouble: None,
        own: Ok(Vec::new()),
        below: None,
        vhd: is_vhd.then_some(Ok(facts_of_vhd)),
        disk,
    }
}

/// Plans the snapshot `s1` of one disk.
pub(crate) fn plan_one(
    seen: &RunningDisk,
    how: Option<&str>,
    volumes: &Volumes,
) -> Result<DiskCreate> {
    let name = "s1".parse().unwrap();
    let choice =
        how.map(|how| format!("{},{how}", seen.disk.vdev).parse::<DiskOption>().unwrap().choice);
    create(seen, choice.as_ref(), Context { name: &name, id: ID, volumes, confined: false })
}

/// A disk of a snapshot whose domain runs on `/srv/now`, all well.
pub(crate) fn found(path: &str, snapshot: DiskSnapshot) -> SnapshotDisk {
    SnapshotDisk {
        record: DiskRecord {
            vdev: "xvdb".into(),
            path: path.into(),
            format: Some(Format::Raw),
            snapshot,
        },
        file: Ok(facts()),
        frozen: Ok(facts()),
        virtual_size: Ok(proof().virtual_size),
        image: Err("qemu-img was not asked".into()),
        chain: Vec::new(),
        own: Ok(Vec::new()),
        size_then: Ok(1 << 20),
        live_bitmaps: 0,
        top: Some("/srv/now".into()),
        top_id: Some(id("/srv/now")),
        top_parent: None,
        top_protected: false,
        below: Ok(Vec::new()),
        used_by: None,
        base_of: None,
        top_base_of: None,
        place: Place { path: "/srv/new".into(), trouble: None },
        room: Some(Ok(Room {
            directory: "/srv".into(),
            device: 1,
            free: 1 << 30,
            needed: 1 << 20,
        })),
    }
}

/// What stands over the disks of a revert of a running domain, which keeps what they hold.
pub(crate) fn revert_context<'a>(
    keep: &'a SnapshotName,
    volumes: &'a Volumes,
) -> RevertContext<'a> {
    RevertContext {
        uuid: Uuid::nil(),
        domain: "web1",
        id: ID,
        created: facts().mtime,
        keep,
        running: true,
        discard: false,
        new_domain: None,
        tight: false,
        volumes,
    }
}

/// Plans to put one disk back, in a running domain, and keeps what it holds.
pub(crate) fn revert_one(found: &SnapshotDisk) -> Result<DiskRevert> {
    let keep = "before-revert-20260302-000000".parse().unwrap();
    let volumes = Ok(Vec::new());
    revert(found, revert_context(&keep, &volumes))
}

/// The words of a refusal, and the change to what is found that leads to it.
pub(crate) type Changed<'a> = (&'a str, &'a dyn Fn(&mut SnapshotDisk));

/// Expects that each of the changes to what is found makes a refusal with its words.
#[track_caller]
pub(crate) fn refused_once_changed(found: &SnapshotDisk, changes: &[Changed<'_>]) {
    for (expected, change) in changes {
        let mut found = found.clone();
        change(&mut found);
        refused(revert_one(&found), &["cannot be reverted", expected]);
    }
}

/// The words of steps.
pub(crate) fn words(steps: &[Step]) -> Vec<String> {
    steps.iter().map(ToString::to_string).collect()
}

/// Expects a refusal that says all of `expected`, in its sentence, its causes or its hint.
#[track_caller]
pub(crate) fn refused<T: Debug>(result: Result<T>, expected: &[&str]) {
    let error = result.unwrap_err();
    let text = format!("{}; {}", error.chain().join(": "), error.hint.as_deref().unwrap_or(""));
    assert_eq!(error.exit_code(), 3, "{text}");
    for words in expected {
        assert!(text.contains(words), "{words:?} in {text:?}");
    }
}

pub(crate) const QCOW2: &str =
    r#"{"pdev_path": "/srv/a.qcow2", "vdev": "xvda", "format": "qcow2", "readwrite": 1}"#;
pub(crate) const RAW: &str =
    r#"{"pdev_path": "/srv/b.img", "vdev": "xvdb", "format": "raw", "readwrite": 1}"#;
pub(crate) const VHD: &str =
    r#"{"pdev_path": "/srv/c.vhd", "vdev": "xvdc", "format": "vhd", "readwrite": 1}"#;

/// A link of a chain, with an identity made of its path.
pub(crate) fn link(path: &str, format: Format, below: Option<(&str, &str)>) -> Link {
    let header = Header {
        refcount_order: 4,
        backing: below.map(|(path, _)| path.into()),
        backing_format: below.map(|(_, format)| format.to_owned()),
        ..Header::default()
    };
    Link {
        path: path.into(),
        id: id(path),
        format,
        header: (format == Format::Qcow2).then_some(header),
    }
}

/// An identity made of a path.
pub(crate) fn id(path: &str) -> FileId {
    (1, path.bytes().fold(0, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add(byte.into())))
}
