//! What the user asks for of one disk.

use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;

use crate::disk::kind::OptionKeys;
use crate::disk::kinds::DiskMethod;
use crate::error::{Error, Result};
use crate::names::{is_drive, is_vdev};

/// How one disk is to be snapshotted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub how: DiskMethod,
    /// The path of the new file, if the user chose one.
    pub file: Option<PathBuf>,
    /// Room for changes in bytes, in the snapshot of a thick volume.
    pub size: Option<u64>,
}

impl From<DiskMethod> for Choice {
    fn from(how: DiskMethod) -> Choice {
        Choice { how, file: None, size: None }
    }
}

/// What a user can ask for, in short.
fn ways() -> String {
    let way = |how: &DiskMethod| {
        let keys = how.keys()?;
        let file = if keys.file { "[,file=PATH]" } else { "" };
        let size = if keys.size { "[,size=SIZE]" } else { "" };
        Some(format!("VDEV,{}{file}{size}", how.name()))
    };
    DiskMethod::ALL.iter().filter_map(way).collect::<Vec<_>>().join(" | ")
}

/// The option for one disk: `VDEV,HOW[,KEY=VALUE]`, or a `[[disk]]` of a SPEC.toml.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Table")]
pub struct DiskOption {
    /// The guest's name of the disk.
    pub vdev: String,
    pub choice: Choice,
}

impl FromStr for DiskOption {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: &str| Error::usage(format!("Disk {text:?}: {why}")).hint(ways());
        // `file=` takes the rest of the text: a path may hold commas.
        let mut parts = text.splitn(3, ',');
        let vdev = parts.next().unwrap_or_default();
        let how = parts.next().ok_or_else(|| bad("it does not say how"))?;
        let (file, size) = match parts.next() {
            None => (None, None),
            Some(option) => match option.split_once('=') {
                Some(("file", value)) if !value.is_empty() => (Some(PathBuf::from(value)), None),
                Some(("size", value)) if !value.is_empty() => (None, Some(value.to_owned())),
                _ => return Err(bad(&format!("{option:?} is neither file=PATH nor size=SIZE"))),
            },
        };
        DiskOption::new(vdev, how, file, size).map_err(|why| bad(&why))
    }
}

impl DiskOption {
    fn new(
        vdev: &str,
        how: &str,
        file: Option<PathBuf>,
        size: Option<String>,
    ) -> Result<Self, String> {
        let known = DiskMethod::from_option(how);
        // A drive of QEMU's own can only be left out.
        if !(is_vdev(vdev) || known.is_some_and(DiskMethod::leaves_out) && is_drive(vdev)) {
            return Err(format!("{vdev:?} is not the name of a disk, such as xvda"));
        }
        let (how, keys) = known
            .and_then(|how| Some((how, how.keys()?)))
            .ok_or_else(|| format!("{how:?} is not a way to snapshot a disk"))?;
        let (wrong_file, wrong_size) = (file.is_some() && !keys.file, size.is_some() && !keys.size);
        let name = how.name();
        match keys {
            OptionKeys { file: false, size: false } if wrong_file || wrong_size => {
                return Err(format!("{name:?} takes no file or size"));
            }
            _ if wrong_size => return Err(format!("{name:?} takes no size")),
            _ if wrong_file => return Err(format!("an {name} snapshot takes no file")),
            _ => {}
        }
        let size = size.map(|size| parse_size(&size)).transpose()?;
        let choice = Choice { how, file, size };
        Ok(DiskOption { vdev: vdev.to_owned(), choice })
    }
}

/// A `[[disk]]` as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    vdev: String,
    snapshot: String,
    file: Option<PathBuf>,
    size: Option<String>,
}

impl TryFrom<Table> for DiskOption {
    type Error = String;

    fn try_from(disk: Table) -> Result<DiskOption, String> {
        DiskOption::new(&disk.vdev, &disk.snapshot, disk.file, disk.size)
            .map_err(|why| format!("Disk {:?}: {why}", disk.vdev))
    }
}

/// A size as lvcreate(8) takes it: a number and a unit, of 1024 each; megabytes without one.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "b" => 0,
        "k" => 10,
        "" | "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(format!("{text:?} is not a size, such as 500M or 4G")),
    };
    // Rust would take "+4" as well.
    (!digits.starts_with('+'))
        .then(|| digits.parse::<u64>().ok())
        .flatten()
        .and_then(|number| number.checked_mul(1 << shift))
        .filter(|size| *size > 0)
        .ok_or_else(|| format!("{text:?} is not a size, such as 500M or 4G"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn option(text: &str) -> Result<DiskOption> {
        text.parse()
    }

    #[test]
    fn every_way_is_told_with_what_it_takes() {
        assert_eq!(
            option("xvda").unwrap_err().hint.unwrap(),
            "VDEV,internal | VDEV,external[,file=PATH] | VDEV,lvm[,size=SIZE] | VDEV,reflink[,file=PATH] | \
             VDEV,none"
        );
        assert!(option("xvda,vhd").is_err());
    }

    #[test]
    fn disk_options() {
        assert_eq!(option("xvda,internal").unwrap().choice, DiskMethod::Internal.into());
        assert_eq!(option("xvda,none").unwrap().choice, DiskMethod::None.into());
        assert_eq!(option("xvda,external").unwrap().choice, DiskMethod::External.into());
        assert_eq!(
            option("xvdb,external,file=/a,b=c.qcow2").unwrap(),
            DiskOption {
                vdev: "xvdb".into(),
                choice: Choice { file: Some("/a,b=c.qcow2".into()), ..DiskMethod::External.into() }
            }
        );
        assert_eq!(
            option("hda,lvm,size=1G").unwrap().choice,
            Choice { size: Some(1 << 30), ..DiskMethod::Lvm.into() }
        );
        assert_eq!(option("hda,lvm").unwrap().choice, DiskMethod::Lvm.into());
        assert_eq!(option("xvdb,reflink").unwrap().choice, DiskMethod::Reflink.into());
    }

    #[test]
    fn sizes_are_those_of_lvcreate() {
        for (text, size) in [("512b", 512), ("4", 4 << 20), ("3k", 3 << 10), ("2T", 2 << 40)] {
            assert_eq!(parse_size(text), Ok(size), "{text}");
        }
        for text in ["", "0", "g", "-1g", "+1g", "1.5g", "1gb", "99999999999t"] {
            parse_size(text).unwrap_err();
        }
    }

    #[test]
    fn bad_disk_options_are_usage_errors() {
        for text in [
            "",
            "xvda",
            "xvda,",
            ",internal",
            "../x,internal",
            "xvda,extern",
            "xvda,internal,file=/x",
            "xvda,external,size=1G",
            "xvda,external,file=",
            "xvda,lvm,file=/x",
            "xvda,lvm,size=1x",
            "xvda,reflink,size=1G",
            "xvda,none,x",
        ] {
            let error = option(text).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{text:?}");
            assert!(error.message.contains(&format!("{text:?}")), "{}", error.message);
        }
    }
}
