//! What a snapshot is: the record that stands in its memory image.
//!
//! Everything revert needs and everything that proves that a disk is still the same one. TOML, so
//! that `strings IMAGE` shows it to a person. Pure.
//!
//! The record is written twice: before the save with [`Record::complete`] false (a pipe cannot be
//! written to later), and with the proofs once the disks have their snapshots.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::domain::{Format, GuestType};
use crate::names::SnapshotName;

/// The version of the record this program writes, and the only one it reads.
pub const VERSION: u32 = 1;

/// A snapshot of a whole domain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// Whether the snapshot was finished: memory saved, disks snapshotted, proofs filled in.
    pub complete: bool,
    /// The name the user gave; internal snapshots bear it too.
    pub name: SnapshotName,
    /// Tells this snapshot from every other one.
    pub id: Uuid,
    /// When it was asked for.
    pub created: Timestamp,
    /// The user's words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Whether memory was copied while the guest ran.
    pub live: bool,
    /// The program and version that wrote this.
    pub writer: String,
    /// The Xen release it was taken on; `xl restore` of an older one may refuse the image.
    pub xen: String,
    /// The length of the whole image in bytes; 0 if it is not known, on a pipe.
    pub image_size: u64,
    /// The domain it was taken of.
    pub domain: DomainRecord,
    /// Every disk of the domain, also those left out.
    #[serde(default, rename = "disk")]
    pub disks: Vec<DiskRecord>,
}

/// The domain a snapshot was taken of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DomainRecord {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: Uuid,
    /// Its kind.
    #[serde(rename = "type")]
    pub guest_type: GuestType,
    /// Its memory in KiB.
    pub memory_kib: u64,
}

/// One disk at the moment of the snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskRecord {
    /// The guest's name of it.
    pub vdev: String,
    /// The file or device the guest used until the snapshot.
    pub path: PathBuf,
    /// Its format, if it has a known one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// What keeps its content.
    pub snapshot: Kept,
}

/// What keeps the content of a disk, and the proof that it is still there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Kept {
    /// Nothing: it was left out.
    None {
        /// Why: it cannot change, or the user said so.
        why: String,
    },
    /// A snapshot inside of the qcow2 file.
    Internal {
        /// The proof; absent only while the record is not complete.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        proof: Option<QcowSnapshot>,
    },
    /// The file itself, which nobody writes to any more: the guest went on in an overlay.
    External {
        /// Where the guest went on.
        overlay: PathBuf,
        /// The proof; absent only while the record is not complete.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        proof: Option<FrozenFile>,
    },
    /// A snapshot of the logical volume. Its tag, `xl-snapshot:ID:VDEV`, tells it from others.
    Lvm {
        /// The volume group.
        group: String,
        /// The volume the guest writes to.
        volume: String,
        /// The name its snapshot was given.
        snapshot: String,
        /// What the snapshot can hold of changes, in bytes; absent for a thin one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size: Option<u64>,
    },
    /// A copy that shares its content with the file, by the file system's own means.
    Reflink {
        /// The copy.
        copy: PathBuf,
        /// The proof; absent only while the record is not complete.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        proof: Option<FrozenFile>,
    },
    /// The VHD itself, which nobody writes to any more: the guest went on in a child of it.
    Vhd {
        /// Where the guest went on.
        child: PathBuf,
        /// The proof; absent only while the record is not complete.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        proof: Option<FrozenFile>,
    },
}

impl Kept {
    /// Its name for users and scripts.
    pub fn kind(&self) -> &'static str {
        match self {
            Kept::None { .. } => "none",
            Kept::Internal { .. } => "internal",
            Kept::External { .. } => "external",
            Kept::Lvm { .. } => "lvm",
            Kept::Reflink { .. } => "reflink",
            Kept::Vhd { .. } => "vhd",
        }
    }
}

/// What tells an internal snapshot from another one of the same name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QcowSnapshot {
    /// QEMU's number for it.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When QEMU made it, to the nanosecond.
    pub date: Timestamp,
}

/// What tells whether a file was written to since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FrozenFile {
    /// The size the guest sees, in bytes.
    pub virtual_size: u64,
    /// The length of the file in bytes.
    pub file_size: u64,
    /// When it was last written to.
    pub mtime: Timestamp,
    /// Its inode number: a copy is another file.
    pub inode: u64,
}

/// Why a text is not a record.
#[derive(Debug, thiserror::Error)]
pub enum BadRecord {
    /// Not TOML, or not ours.
    #[error("The snapshot record is not well-formed")]
    Toml(#[from] toml::de::Error),
    /// Written by a newer program.
    #[error("The snapshot record has version {0}, this program reads version {VERSION}")]
    Version(i64),
}

impl Record {
    /// The text that goes into the image.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a record has only values that TOML can say")
    }

    /// Reads a record. The version is looked at first, so that a newer record is told from a
    /// broken one.
    pub fn parse(text: &str) -> Result<Self, BadRecord> {
        let table: toml::Table = toml::from_str(text)?;
        match table.get("version").and_then(toml::Value::as_integer) {
            Some(version) if version != i64::from(VERSION) => Err(BadRecord::Version(version)),
            _ => Ok(toml::from_str(text)?),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

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
            writer: "xl-snapshot 0.1.0".into(),
            xen: "4.17.7".into(),
            image_size: 1 << 33,
            domain: DomainRecord {
                name: "web1".into(),
                uuid: "6f2c3c5e-7bd8-4d0e-9f3b-4d2f6f3b7a10".parse().unwrap(),
                guest_type: GuestType::Pv,
                memory_kib: 131072,
            },
            disks: vec![
                disk(
                    "xvda",
                    "/srv/a.qcow2",
                    Format::Qcow2,
                    Kept::Internal {
                        proof: Some(QcowSnapshot { id: "1".into(), name: "s1".into(), date: time }),
                    },
                ),
                disk(
                    "xvdb",
                    "/srv/b.img",
                    Format::Raw,
                    Kept::External {
                        overlay: "/srv/web1-xvdb.after-s1.qcow2".into(),
                        proof: Some(FrozenFile {
                            virtual_size: 1 << 20,
                            file_size: 1 << 20,
                            mtime: time,
                            inode: 77,
                        }),
                    },
                ),
                disk("hdc", "/srv/c.iso", Format::Raw, Kept::None { why: "CD-ROM".into() }),
            ],
        }
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let record = sample();
        assert_eq!(Record::parse(&record.to_toml()).unwrap(), record);
        // The padding in an image is newlines.
        assert_eq!(Record::parse(&(record.to_toml() + "\n\n\n")).unwrap(), record);
    }

    #[test]
    fn every_kind_of_snapshot_comes_back() {
        let kinds = [
            Kept::Lvm {
                group: "vg0".into(),
                volume: "c".into(),
                snapshot: "c.s1".into(),
                size: Some(1 << 30),
            },
            Kept::Reflink { copy: "/srv/web1-xvda.at-s1.img".into(), proof: None },
            Kept::Vhd { child: "/srv/web1-xvda.after-s1.vhd".into(), proof: None },
        ];
        for kind in kinds {
            let mut record = sample();
            record.disks[0].snapshot = kind;
            assert_eq!(Record::parse(&record.to_toml()).unwrap(), record);
        }
    }

    #[test]
    fn a_newer_record_is_told_from_a_broken_one() {
        let text = sample().to_toml();
        let newer = text.replace("version = 1", "version = 2");
        assert!(matches!(Record::parse(&newer), Err(BadRecord::Version(2))));
        for broken in ["", "version = 1", "[[", &text.replace("live", "life")] {
            assert!(matches!(Record::parse(broken), Err(BadRecord::Toml(_))), "{broken}");
        }
    }
}
