//! Names that a user may choose, checked once at the border and then carried as types.

mod vdev;

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use vdev::{same_vdev, vdev_number};

/// The longest snapshot name in bytes: fits qcow2 (255), LVM (127 together with the origin's
/// name) and a file name (255 together with a domain name).
const MAX_NAME: usize = 64;

/// Substrings that LVM keeps for itself, lvm(8), "VALID NAMES".
const LVM_RESERVED: [&str; 14] = [
    "_cdata", "_cmeta", "_corig", "_cvol", "_iorig", "_mimage", "_mlog", "_pmspare", "_rimage",
    "_rmeta", "_tdata", "_tmeta", "_vdata", "_vorigin",
];

/// The name of a snapshot: legal for qcow2, LVM and file names at once.
///
/// Not all digits, because `qemu-img snapshot -a` takes its argument as an ID first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotName(String);

impl SnapshotName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a name is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    #[error("A name must not be empty")]
    Empty,
    /// Longer than the tools allow.
    #[error("The name is {0} bytes long, {MAX_NAME} are allowed")]
    TooLong(usize),
    /// A character outside the allowed set.
    #[error("{0:?} is not allowed in a name; letters, digits and + _ . - are")]
    Character(char),
    /// A leading `-` or `.`.
    #[error("A name must not begin with {0:?}")]
    Begin(char),
    #[error("A name must not be all digits: qemu-img would take it for the number of a snapshot")]
    AllDigits,
    /// A part LVM keeps for itself.
    #[error("{0:?} in a name is reserved by LVM")]
    Reserved(&'static str),
}

/// What may be the name of a domain or a snapshot where a file is expected: such files have an extension.
pub fn is_word(path: &Path) -> bool {
    path.components().count() == 1 && path.extension().is_none()
}

impl FromStr for SnapshotName {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '_' | '.' | '-');
        let first = text.chars().next().ok_or(BadName::Empty)?;
        if text.len() > MAX_NAME {
            return Err(BadName::TooLong(text.len()));
        }
        if let Some(c) = text.chars().find(|c| !allowed(*c)) {
            return Err(BadName::Character(c));
        }
        if matches!(first, '-' | '.') {
            return Err(BadName::Begin(first));
        }
        if text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(BadName::AllDigits);
        }
        if let Some(part) = LVM_RESERVED.iter().find(|part| text.contains(**part)) {
            return Err(BadName::Reserved(part));
        }
        Ok(SnapshotName(text.to_owned()))
    }
}

impl TryFrom<String> for SnapshotName {
    type Error = BadName;

    fn try_from(text: String) -> Result<Self, BadName> {
        text.parse()
    }
}

impl From<SnapshotName> for String {
    fn from(name: SnapshotName) -> String {
        name.0
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a character is printable: it does not control a terminal, does not reorder the text
/// around it, does not begin another line, and is visible (Unicode's Bidi_Control, line and
/// paragraph separators, zero width).
pub fn is_plain(c: char) -> bool {
    !c.is_control()
        && !matches!(
            c,
            '\u{61c}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
        )
}

/// Whether `text` (a domain's name) can be one part of a path without leading elsewhere.
pub fn is_file_part(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 128
        && !text.starts_with(['.', '-'])
        && !text.contains('/')
        && !text.chars().any(char::is_control)
}

/// Whether xl gave a domain this name when it ended and another one was started in its place (`on_reboot`,
/// `on_crash` = "rename-restart"; xl_vmcontrol.c, `preserve_domain`): `web1-20260302T0304Z`.
pub fn is_kept_by_xl(name: &str) -> bool {
    let Some((of, time)) = name.rsplit_once('-') else { return false };
    let form = time.bytes().map(|b| if b.is_ascii_digit() { b'0' } else { b });
    !of.is_empty() && form.eq(*b"00000000T0000Z")
}

/// The longest name of a disk: QEMU's names of nodes have 31 bytes, of which `-0b41a0a5` takes
/// nine. libxl's own are shorter.
const MAX_VDEV: usize = 22;
/// QEMU sets no limit to the names of its drives; this one is for messages.
const MAX_DRIVE: usize = 127;

/// Whether `text` can be the name of a logical volume or its group (lvm(8), "VALID NAMES").
pub fn is_volume_part(text: &str) -> bool {
    (1..=127).contains(&text.len())
        && !text.starts_with('-')
        && !matches!(text, "." | "..")
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+_.-".contains(&b))
}

/// Whether `text` can be the guest's name for a disk, `xvda` or `d536p37` (xen-vbd-interface(7)),
/// which can be used in file names, tags and QEMU's node names.
pub fn is_vdev(text: &str) -> bool {
    (1..=MAX_VDEV).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// Whether `text` can be QEMU's name for a drive: an ID (util/id.c, `id_wellformed`), or a generated one
/// (`#block123`, `ide0-hd0`).
pub fn is_drive(text: &str) -> bool {
    (1..=MAX_DRIVE).contains(&text.len())
        && !text.starts_with('-')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._#".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_xl_calls_a_domain_that_it_keeps() {
        for name in ["web1-20260302T0304Z", "a-b-20260302T0304Z"] {
            assert!(is_kept_by_xl(name), "{name}");
        }
        for name in
            ["web1", "web1-20260302", "-20260302T0304Z", "web1-20260302T030405Z", "20260302T0304Z"]
        {
            assert!(!is_kept_by_xl(name), "{name}");
        }
    }

    #[test]
    fn good_names() {
        for name in ["s1", "before-upgrade", "snap-20260101-120000", "a", "1a", "v1.2+b_3"] {
            assert_eq!(name.parse::<SnapshotName>().unwrap().as_str(), name);
        }
        assert!("x".repeat(64).parse::<SnapshotName>().is_ok());
    }

    #[test]
    fn bad_names_say_why() {
        for (name, why) in [
            ("", BadName::Empty),
            ("123", BadName::AllDigits),
            ("a/b", BadName::Character('/')),
            ("a b", BadName::Character(' ')),
            ("a\nb", BadName::Character('\n')),
            ("ä", BadName::Character('ä')),
            ("-a", BadName::Begin('-')),
            (".a", BadName::Begin('.')),
            ("..", BadName::Begin('.')),
            ("a_tmeta", BadName::Reserved("_tmeta")),
        ] {
            assert_eq!(name.parse::<SnapshotName>(), Err(why), "{name:?}");
        }
        assert_eq!("x".repeat(65).parse::<SnapshotName>(), Err(BadName::TooLong(65)));
    }

    #[test]
    fn names_of_disks_and_volumes() {
        for vdev in ["xvda", "hdc", "sda15", "d536p37", "0x10c300ff", &"x".repeat(22)] {
            assert!(is_vdev(vdev), "{vdev}");
        }
        for vdev in ["", "xvda,", "-x", "a/b", ".", "xvd\u{e4}", "a b", &"x".repeat(23)] {
            assert!(!is_vdev(vdev), "{vdev:?}");
        }
        for volume in ["vg0", "root.before-1", "+a_b", &"x".repeat(127)] {
            assert!(is_volume_part(volume), "{volume}");
        }
        for volume in ["", "-x", ".", "..", "a/b", "a\"b", "[pool_tdata]", &"x".repeat(128)] {
            assert!(!is_volume_part(volume), "{volume:?}");
        }
    }

    #[test]
    fn names_of_drives() {
        for drive in ["floppy0", "ide0-hd1", "#block123", "my.drive_1"] {
            assert!(is_drive(drive), "{drive}");
        }
        for drive in ["", "-x", "a,b", "a b", "a/b", &"x".repeat(128)] {
            assert!(!is_drive(drive), "{drive:?}");
        }
    }

    #[test]
    fn a_domain_name_leads_nowhere_else() {
        assert!(is_file_part("web 1"));
        for name in ["", "..", ".", "a/b", "-x", "a\nb"] {
            assert!(!is_file_part(name), "{name:?}");
        }
    }
}
