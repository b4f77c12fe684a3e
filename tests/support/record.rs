//! A record.

use jiff::Timestamp;

use crate::disk::kinds::{External, Internal, LeftOut};
use crate::domain::{Format, GuestType};
use crate::record::{
    DiskRecord, DiskSnapshot, DomainRecord, FrozenFile, QcowSnapshot, Record, VERSION,
};

/// With a disk of each of QEMU's ways, and a CD-ROM.
pub(crate) fn sample() -> Record {
    let time: Timestamp = "2026-03-01T02:03:04.123456789Z".parse().unwrap();
    let disk = |vdev: &str, path: &str, format, snapshot| DiskRecord {
        vdev: vdev.into(),
        path: path.into(),
        format: Some(format),
        snapshot,
    };
    Record {
        version: VERSION,
        complete: true,
        name: "s1".parse().unwrap(),
        id: "0b41a0a5-4a1c-4b3c-8f1e-93d4b0b1a001".parse().unwrap(),
        created: time,
        description: "before \"the\" upgrade\nof spring".into(),
        live: true,
        disks_only: None,
        writer: "xl-snapshot 0.1.0".into(),
        xen: "4.17.7".into(),
        image_size: 1 << 33,
        parent: None,
        quiesced: None,
        parent_by: None,
        domain: DomainRecord {
            name: "web1".into(),
            uuid: "6f2c3c5e-7bd8-4d0e-9f3b-4d2f6f3b7a10".parse().unwrap(),
            guest_type: GuestType::Pv,
            memory_kib: 131072,
            cfg: None,
        },
        disks: vec![
            disk(
                "xvda",
                "/srv/a.qcow2",
                Format::Qcow2,
                DiskSnapshot::Internal(Internal {
                    proof: Some(QcowSnapshot { id: "1".into(), name: "s1".into(), date: time }),
                    bases: Some(Vec::new()),
                }),
            ),
            disk(
                "xvdb",
                "/srv/b.img",
                Format::Raw,
                DiskSnapshot::External(External {
                    overlay: "/srv/web1-xvdb.after-s1.qcow2".into(),
                    proof: Some(FrozenFile {
                        virtual_size: 1 << 20,
                        file_size: 1 << 20,
                        mtime: time,
                        inode: 77,
                    }),
                }),
            ),
            disk(
                "hdc",
                "/srv/c.iso",
                Format::Raw,
                DiskSnapshot::None(LeftOut { why: "CD-ROM".into() }),
            ),
        ],
    }
}
