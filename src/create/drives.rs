//! Drives that QEMU has in addition to the disks of the configuration (`device_model_args`): a snapshot would
//! not contain them, and the user would notice only at the revert. Pure.

use crate::domain::DomainConfig;
use crate::error::{Error, Result};
use crate::spec::DiskOption;

/// A drive that the guest may write to and that belongs to no disk of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drive {
    /// QEMU's name for it.
    pub name: String,
    /// Its image, as QEMU names it.
    pub image: String,
}

/// Refuses a drive that the user has not left out. Returns notes on the others.
pub fn check(domain: &str, drives: &[Drive], options: &[DiskOption]) -> Result<Vec<String>> {
    drives
        .iter()
        .map(|Drive { name, image }| {
            let option = options.iter().find(|option| option.vdev == *name);
            if option.is_some_and(|option| option.choice.how.leaves_out()) {
                return Ok(format!(
                    "drive {name} ({image}) is not in the snapshot: left out as asked"
                ));
            }
            Err(Error::refused(format!("Drive {name} ({image}) of {domain} cannot be snapshotted"))
                .because(
                    "the guest may write to it, but it is no disk of the domain's configuration: QEMU has \
                     it from device_model_args or from its monitor",
                )
                .hint(format!(
                    "make it an entry of disk = [...], or leave it out with --disk {name},none if its \
                     content does not matter"
                )))
        })
        .collect()
}

/// The drives that the domain's QEMU will have, from the arguments in its configuration. A drive without
/// an `id` gets the name of its option or, for `-drive`, its number.
pub fn configured(config: &DomainConfig) -> Vec<Drive> {
    let arguments = config.device_model_args();
    let mut drives = Vec::new();
    let mut arguments = arguments.iter();
    while let Some(option) = arguments.next() {
        let option = option.strip_prefix("--").or(option.strip_prefix('-')).unwrap_or_default();
        let name = match option {
            "fda" | "fdb" | "hda" | "hdb" | "hdc" | "hdd" | "mtdblock" | "pflash" | "sd" => option,
            "drive" | "blockdev" => "",
            _ => continue,
        };
        let Some(value) = arguments.next() else { break };
        let drive = match name {
            "" => drive(value, drives.len()),
            _ => Some(Drive { name: name.to_owned(), image: value.clone() }),
        };
        drives.extend(drive);
    }
    drives
}

/// Parses `-drive` or `-blockdev`: options separated by commas, or JSON.
fn drive(text: &str, number: usize) -> Option<Drive> {
    let json: Option<serde_json::Value> = serde_json::from_str(text).ok();
    let value = |key: &str| match &json {
        Some(json) => {
            let value = json.get(key)?;
            Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
        }
        None => options(text).into_iter().find(|(name, _)| name == key).map(|(_, value)| value),
    };
    let first = |keys: &[&str]| keys.iter().find_map(|key| value(key));
    let is_on = |value: &str| matches!(value, "on" | "true" | "yes" | "");
    let read_only = first(&["readonly", "read-only"]).is_some_and(|value| is_on(&value));
    let thrown_away = value("snapshot").is_some_and(|value| is_on(&value));
    if read_only || thrown_away || value("media").as_deref() == Some("cdrom") {
        return None;
    }
    let image = first(&["file", "filename", "file.filename"]).unwrap_or_else(|| text.to_owned());
    let name = first(&["id", "node-name"]).unwrap_or_else(|| format!("drive{number}"));
    Some(Drive { name, image })
}

/// Splits QEMU's list of options, in which a comma in a value is doubled.
fn options(text: &str) -> Vec<(String, String)> {
    const COMMA: &str = "\0";
    text.replace(",,", COMMA)
        .split(',')
        .map(|option| {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            (name.to_owned(), value.replace(COMMA, ","))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(arguments: &[&str]) -> Vec<(String, String)> {
        let json = serde_json::json!({"b_info": {"extra_hvm": arguments}}).to_string();
        let drives = configured(&DomainConfig::parse(&json).unwrap());
        drives.into_iter().map(|drive| (drive.name, drive.image)).collect()
    }

    #[test]
    fn what_the_arguments_say() {
        let one = |name: &str, image: &str| vec![(name.to_owned(), image.to_owned())];
        assert_eq!(
            names(&["-drive", "file=/srv/a,,b.img,id=extra,if=none"]),
            one("extra", "/srv/a,b.img")
        );
        assert_eq!(
            names(&["-nodefaults", "--drive", "if=pflash,file=/v.fd"]),
            one("drive0", "/v.fd")
        );
        assert_eq!(names(&["-fda", "/srv/f.img"]), one("fda", "/srv/f.img"));
        assert_eq!(
            names(&["-blockdev", r#"{"driver": "file", "filename": "/b", "node-name": "n"}"#]),
            one("n", "/b")
        );
        for harmless in [
            &["-drive", "file=/cd.iso,media=cdrom"][..],
            &["-drive", "file=/a,readonly=on"],
            &["-drive", "file=/a,readonly"],
            &["-drive", "file=/a,snapshot=on"],
            &["-blockdev", r#"{"driver": "file", "filename": "/b", "read-only": true}"#],
            &["-cdrom", "/cd.iso", "-device", "e1000"],
            &["-drive"],
            &[],
        ] {
            assert_eq!(names(harmless), [], "{harmless:?}");
        }
    }

    #[test]
    fn a_drive_is_refused_until_it_is_left_out() {
        let drives = [Drive { name: "floppy0".into(), image: "/srv/f.img".into() }];
        let error = check("web1", &drives, &[]).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        assert!(error.to_string().contains("Drive floppy0 (/srv/f.img) of web1"), "{error}");
        assert!(error.hint.unwrap().contains("--disk floppy0,none"));
        let option = "floppy0,none".parse().unwrap();
        assert!(check("web1", &drives, &[option]).unwrap()[0].contains("left out as asked"));
        let odd: DiskOption = "my-drive.0_b,none".parse().unwrap();
        assert_eq!(odd.vdev, "my-drive.0_b");
        assert!("my-drive,external".parse::<DiskOption>().is_err());
    }
}
