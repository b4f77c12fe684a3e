//! The record of a snapshot, stored in its memory image.
//!
//! It has everything that a revert needs, and the proofs of the disks. TOML, so that `strings
//! IMAGE` shows it. Pure.
//!
//! The record is written twice: before the save with [`Record::complete`] false (a pipe cannot be
//! written to later), and with the proofs after the disks have their snapshots.

use std::fmt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::disk::kind::RecordText;
pub use crate::disk::kinds::DiskSnapshot;
pub use crate::disk::proof::{ANY_INODE, Base, FrozenFile, QcowSnapshot, SECTOR};
use crate::domain::{Format, GuestType};
use crate::names::{SnapshotName, is_file_part, is_plain, is_vdev, is_volume_part};
use crate::quiesce::Quiesced;
use crate::tool::{BadPath, check_path};

/// The version of the record that this program writes, and the only one that it reads.
pub const VERSION: u32 = 1;

/// The recorded length of an incomplete image: no image is so short.
pub const NOT_YET: u64 = 1;

/// The maximum number of disks: Xen's disk names end long before (xvdzz).
const MAX_DISKS: usize = 256;

/// A snapshot of a whole domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// Whether the snapshot was finished: memory saved, disks snapshotted, proofs filled in.
    pub complete: bool,
    /// The user's name for it; internal snapshots have it too.
    pub name: SnapshotName,
    /// Unique for each snapshot.
    pub id: Uuid,
    /// The time of the request.
    pub created: Timestamp,
    /// The user's words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Whether memory was copied while the guest ran.
    pub live: bool,
    /// If it has no memory, the consistency of its disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disks_only: Option<DisksOnly>,
    /// The program and version that wrote this.
    pub writer: String,
    /// The Xen release that it was taken on; `xl restore` of an older one may refuse the image.
    pub xen: String,
    /// The length of the whole image in bytes; 0 if unknown, on a pipe; [`NOT_YET`] until a file is
    /// complete.
    pub image_size: u64,
    /// The snapshot that the domain's disks descended from; absent if unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// The source of `parent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_by: Option<ParentSource>,
    /// How the guest's file systems were frozen, if they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiesced: Option<Quiesced>,
    pub domain: DomainRecord,
    /// All disks of the domain, including those left out.
    #[serde(default, rename = "disk")]
    pub disks: Vec<DiskRecord>,
}

/// The snapshot that disks descend from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Parent {
    /// The disks descend from none.
    None,
    /// The one with this ID.
    Snapshot(Uuid),
}

impl TryFrom<String> for Parent {
    type Error = uuid::Error;

    fn try_from(text: String) -> Result<Self, uuid::Error> {
        match text.as_str() {
            "none" => Ok(Parent::None),
            id => id.parse().map(Parent::Snapshot),
        }
    }
}

impl From<Parent> for String {
    fn from(parent: Parent) -> String {
        match parent {
            Parent::None => "none".into(),
            Parent::Snapshot(id) => id.to_string(),
        }
    }
}

/// The source of a snapshot's parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ParentSource {
    /// The bases of the disks, or that they have none.
    Disks,
    /// The mark that this program sets on a disk's file (`host::marks`): a hint, checked against the proof.
    Mark,
}

/// The consistency of disks without memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DisksOnly {
    /// The domain did not run.
    Offline,
    /// It ran: they are as after a power cut.
    CrashConsistent,
    /// It ran, and its file systems were frozen.
    Quiesced,
    /// Somebody made their snapshots by hand; the consistency is unknown.
    ByHand,
}

impl fmt::Display for DisksOnly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DisksOnly::Offline => "the domain did not run",
            DisksOnly::CrashConsistent => "the disks are what a power cut would have left",
            DisksOnly::Quiesced => "the guest's file systems were frozen",
            DisksOnly::ByHand => "the disks were snapshotted by hand",
        })
    }
}

/// The domain a snapshot was taken of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DomainRecord {
    pub name: String,
    /// Nil if it did not run and its configuration file has no UUID, so that each start gives it
    /// another one.
    pub uuid: Uuid,
    #[serde(rename = "type")]
    pub guest_type: GuestType,
    pub memory_kib: u64,
    /// Its xl configuration file, if the user named the domain by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cfg: Option<PathBuf>,
}

/// One disk at the snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskRecord {
    pub vdev: String,
    /// The file or device that the guest used until the snapshot.
    pub path: PathBuf,
    /// Its format, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// How its content is kept.
    pub snapshot: DiskSnapshot,
}

impl DiskRecord {
    /// The record may come from an untrusted image.
    fn check(&self) -> Result<(), BadRecord> {
        let name = |name: &str, good: fn(&str) -> bool| {
            good(name).then_some(()).ok_or_else(|| BadRecord::Name(name.to_owned()))
        };
        name(&self.vdev, is_vdev)?;
        for said in self.snapshot.kind().said() {
            match said {
                RecordText::Text(text) => plain(text)?,
                RecordText::VolumePart(part) => name(part, is_volume_part)?,
                RecordText::File(path) => checked(path)?,
            }
        }
        if self.snapshot.kind().is_relative_to_image() {
            // A name, not a path that leads elsewhere.
            let path = self.path.to_string_lossy();
            return name(&path, is_file_part);
        }
        // The path of a disk that was left out is only for messages: it need not be a file.
        if self.snapshot.is_left_out() { Ok(()) } else { checked(&self.path) }
    }
}

fn plain(text: &str) -> Result<(), BadRecord> {
    match text.chars().all(is_plain) {
        true => Ok(()),
        false => Err(BadRecord::Text(text.to_owned())),
    }
}

fn checked(path: &Path) -> Result<(), BadRecord> {
    match check_path(path) {
        Ok(_) => Ok(()),
        Err(source) => Err(BadRecord::Path { path: path.to_owned(), source }),
    }
}

impl From<toml::de::Error> for BadRecord {
    // Without the excerpt, and on one line: `list` prints one line for each image.
    fn from(error: toml::de::Error) -> BadRecord {
        BadRecord::Toml(error.message().lines().collect::<Vec<_>>().join(", "))
    }
}

/// Why a text is not a record.
#[derive(Debug, thiserror::Error)]
pub enum BadRecord {
    /// Not TOML, or not ours.
    #[error("The snapshot record is not well-formed: {0}")]
    Toml(String),
    /// Written by a newer program.
    #[error("The snapshot record has version {0}, this program reads version {VERSION}")]
    Version(i64),
    /// A name that this program never writes, and that would be dangerous in a file name or an
    /// argument.
    #[error("The snapshot record has an impossible name, {0:?}")]
    Name(String),
    /// More disks than a domain can have.
    #[error("The snapshot record has {0} disks, {MAX_DISKS} are allowed")]
    Disks(usize),
    /// A text with line breaks or control characters, which would forge our messages.
    #[error("The snapshot record has an impossible text, {0:?}")]
    Text(String),
    /// A path that this program never writes, and that a tool could mistake for something else.
    #[error("The snapshot record has an impossible path, {path:?}")]
    Path { path: PathBuf, source: BadPath },
}

impl Record {
    /// The text that goes into the image.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a record has only values that TOML can say")
    }

    /// Whether it is the record of an export: its disks are copies in the directory of the image.
    pub fn is_export(&self) -> bool {
        self.disks.iter().any(|disk| disk.snapshot.kind().is_relative_to_image())
    }

    /// Sets the paths of the disks in the directory of the image.
    pub fn found_in(&mut self, directory: &Path) {
        for disk in &mut self.disks {
            if disk.snapshot.kind().is_relative_to_image() {
                disk.path = directory.join(&disk.path);
            }
        }
    }

    /// Parses a record. Checks the version first, to distinguish a newer record from a broken one.
    pub fn parse(text: &str) -> Result<Self, BadRecord> {
        // Not a `toml::Table`, whose numbers end at 2^63: there are larger inode numbers.
        #[derive(Deserialize)]
        struct Any {
            version: i64,
        }
        let Any { version } = toml::from_str(text)?;
        if version != i64::from(VERSION) {
            return Err(BadRecord::Version(version));
        }
        let record: Record = toml::from_str(text)?;
        if record.disks.len() > MAX_DISKS {
            return Err(BadRecord::Disks(record.disks.len()));
        }
        record.disks.iter().try_for_each(DiskRecord::check)?;
        // The description is the user's text and may have any number of lines.
        [&record.domain.name, &record.writer, &record.xen]
            .into_iter()
            .try_for_each(|text| plain(text))?;
        record.quiesced.iter().try_for_each(|quiesced| plain(&quiesced.by))?;
        record.domain.cfg.iter().try_for_each(|cfg| checked(cfg))?;
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::kinds::{Exported, External, LeftOut, Lvm, Reflink, Vhd};
    use crate::support::record::sample;

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
            DiskSnapshot::Lvm(Lvm {
                group: "vg0".into(),
                volume: "c".into(),
                snapshot: "c.s1".into(),
                size: Some(1 << 30),
            }),
            DiskSnapshot::Reflink(Reflink { copy: "/srv/web1-xvda.at-s1.img".into(), proof: None }),
            DiskSnapshot::Vhd(Vhd { child: "/srv/web1-xvda.after-s1.vhd".into(), proof: None }),
        ];
        for kind in kinds {
            let mut record = sample();
            record.disks[0].snapshot = kind;
            assert_eq!(Record::parse(&record.to_toml()).unwrap(), record);
        }
    }

    #[test]
    fn a_parent_is_known_or_known_to_be_none_or_not_known() {
        let mut record = sample();
        assert!(!record.to_toml().contains("parent"));
        for (parent, text) in [
            (Parent::None, "parent = \"none\"\nparent_by = \"disks\"\n"),
            (
                Parent::Snapshot(Uuid::from_u128(7)),
                "parent = \"00000000-0000-0000-0000-000000000007\"\nparent_by = \"disks\"\n",
            ),
        ] {
            record.parent = Some(parent);
            record.parent_by = Some(ParentSource::Disks);
            assert!(record.to_toml().contains(text), "{}", record.to_toml());
            assert_eq!(Record::parse(&record.to_toml()).unwrap(), record);
        }
        let wrong = record.to_toml().replace("00000000-", "0000000-");
        assert!(matches!(Record::parse(&wrong), Err(BadRecord::Toml(_))));
    }

    #[test]
    fn what_has_no_memory_says_so() {
        for (kind, words) in [
            (DisksOnly::Offline, "disks_only = \"offline\"\n"),
            (DisksOnly::CrashConsistent, "disks_only = \"crash-consistent\"\n"),
        ] {
            let record = Record { disks_only: Some(kind), ..sample() };
            assert!(record.to_toml().contains(words), "{}", record.to_toml());
            assert_eq!(Record::parse(&record.to_toml()).unwrap(), record);
        }
    }

    #[test]
    fn the_configuration_file_comes_back_if_it_can_be_one() {
        let with = |cfg: &str| {
            let mut record = sample();
            record.domain.cfg = Some(cfg.into());
            (Record::parse(&record.to_toml()), record)
        };
        let (parsed, record) = with("/etc/xen/web 1.cfg");
        assert_eq!(parsed.unwrap(), record);
        for path in ["", "web1.cfg", "-f", "/etc/xen/a\nb"] {
            let error = with(path).0.unwrap_err().to_string();
            assert_eq!(error, format!("The snapshot record has an impossible path, {path:?}"));
        }
        // A record from a version without that key.
        assert!(!sample().to_toml().contains("cfg"));
    }

    #[test]
    fn texts_that_are_more_than_one_line_of_text_are_refused() {
        let refused = |change: &dyn Fn(&mut Record)| {
            let mut record = sample();
            change(&mut record);
            Record::parse(&record.to_toml()).unwrap_err().to_string()
        };
        for text in ["a\nleft:  b", "\u{1b}[2J", "\u{202e}gnp.exe", "a\u{2028}b"] {
            let changes: [&dyn Fn(&mut Record); 3] = [
                &|record| record.domain.name = text.into(),
                &|record| record.xen = text.into(),
                &|record| {
                    record.disks[2].snapshot = DiskSnapshot::None(LeftOut { why: text.into() })
                },
            ];
            for change in changes {
                let error = refused(change);
                assert_eq!(error, format!("The snapshot record has an impossible text, {text:?}"));
            }
        }
        let error = refused(&|record| record.disks = vec![record.disks[2].clone(); 257]);
        assert!(error.contains("has 257 disks"), "{error}");
    }

    #[test]
    fn the_largest_numbers_come_back() {
        let mut record = sample();
        let DiskSnapshot::External(External { proof: Some(proof), .. }) =
            &mut record.disks[1].snapshot
        else {
            unreachable!()
        };
        proof.inode = u64::MAX;
        assert_eq!(Record::parse(&record.to_toml()).unwrap(), record);
    }

    #[test]
    fn what_would_lead_elsewhere_is_refused() {
        let with = |change: &dyn Fn(&mut DiskRecord)| {
            let mut record = sample();
            change(&mut record.disks[0]);
            Record::parse(&record.to_toml()).unwrap_err().to_string()
        };
        for vdev in ["", "../../etc/x", "a b", "-x", "xvd\u{e4}", &"x".repeat(23)] {
            let error = with(&|disk| disk.vdev = vdev.into());
            assert_eq!(error, format!("The snapshot record has an impossible name, {vdev:?}"));
        }
        for path in ["", "-x", "a.img", "json:{}", "nbd:localhost:10809", "/a\nb"] {
            let impossible = format!("The snapshot record has an impossible path, {path:?}");
            assert_eq!(with(&|disk| disk.path = path.into()), impossible);
            let files = [
                DiskSnapshot::External(External { overlay: path.into(), proof: None }),
                DiskSnapshot::Reflink(Reflink { copy: path.into(), proof: None }),
                DiskSnapshot::Vhd(Vhd { child: path.into(), proof: None }),
            ];
            for file in files {
                assert_eq!(with(&|disk| disk.snapshot = file.clone()), impossible);
            }
        }
        for (group, volume, snapshot) in [("-x", "a", "b"), ("g", "a/b", "b"), ("g", "a", "..")] {
            with(&|disk| {
                disk.snapshot = DiskSnapshot::Lvm(Lvm {
                    group: group.into(),
                    volume: volume.into(),
                    snapshot: snapshot.into(),
                    size: None,
                });
            });
        }
        // A disk that is left out need not be a file.
        let mut record = sample();
        record.disks[2].path = "nbd:localhost:10809".into();
        assert_eq!(Record::parse(&record.to_toml()).unwrap(), record);
    }

    #[test]
    fn disks_of_an_export_are_beside_the_image_wherever_that_is() {
        let mut record = sample();
        assert!(!record.is_export());
        record.disks[0].snapshot = DiskSnapshot::Exported(Exported { proof: None });
        record.disks[0].path = "xvda.qcow2".into();
        assert!(record.is_export());
        let mut read = Record::parse(&record.to_toml()).unwrap();
        assert_eq!(read, record);
        read.found_in(Path::new("/srv/backup"));
        assert_eq!(read.disks[0].path, Path::new("/srv/backup/xvda.qcow2"));
        assert_eq!(read.disks[1], record.disks[1]);
        for path in ["", "/srv/a", "../a", "a/b", ".a", "-a", "a\nb"] {
            record.disks[0].path = path.into();
            let error = Record::parse(&record.to_toml()).unwrap_err();
            assert!(matches!(error, BadRecord::Name(_)), "{error}");
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
