//! What LVM itself lets be allocated: the limits of thin pools, and the physical volumes. Pure.

use serde::Deserialize;

use crate::tool::Invocation;
use crate::tool::volumes::{Volume, flag, lvm, number};

/// The option in lvm.conf or a profile: a fuller pool gets no new volume (lvm2, thin_manip.c, `pool_below_threshold`).
const THRESHOLD: &str = "thin_pool_autoextend_threshold";

/// Asks for the threshold of all pools that have no profile.
pub fn threshold() -> Invocation {
    lvm(["lvmconfig", "--type", "full", "activation/thin_pool_autoextend_threshold"])
}

/// The threshold, in percent, in the output of [`threshold`] or in a profile.
pub fn parse_threshold(text: &str) -> Option<u64> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    let mut values = lines.filter_map(|line| {
        let (key, value) = line.split_once('=')?;
        let key = key.trim().trim_start_matches("activation").trim_start_matches([' ', '{', '/']);
        let value = value.trim().trim_end_matches('}').trim_end();
        if key == THRESHOLD { value.parse().ok() } else { None }
    });
    values.next_back()
}

/// Asks whether LVM archives the previous metadata of a group, and where.
pub fn archive() -> Invocation {
    lvm(["lvmconfig", "--type", "full", "backup/archive", "backup/archive_dir"])
}

/// Whether LVM archives, and the directory if it is told, in the output of [`archive`].
pub fn parse_archive(text: &str) -> (bool, Option<String>) {
    let value = |wanted: &str| {
        let mut pairs = text.lines().filter_map(|line| line.trim().split_once('='));
        pairs.find(|(key, _)| *key == wanted).map(|(_, value)| value.trim_matches('"'))
    };
    (value("archive") != Some("0"), value("archive_dir").map(str::to_owned))
}

/// A physical volume.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Physical {
    /// The name of its group, if it is in one.
    #[serde(rename = "vg_name")]
    group: String,
    /// Whether anything may be allocated from it (pvchange(8), `--allocatable`).
    #[serde(rename = "pv_allocatable", deserialize_with = "flag")]
    allocatable: bool,
    /// Its free space, in bytes.
    #[serde(rename = "pv_free", deserialize_with = "number")]
    free: u64,
}

/// Lists every physical volume of the host, as JSON.
pub fn physical() -> Invocation {
    lvm(["pvs", "--reportformat", "json", "--units", "b", "--nosuffix", "--binary"])
        .args(["--options", "vg_name,pv_allocatable,pv_free"])
}

/// Parses the output of [`physical`].
pub fn parse_physical(json: &[u8]) -> Result<Vec<Physical>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Answer {
        report: Vec<Report>,
    }
    #[derive(Deserialize)]
    struct Report {
        #[serde(default)]
        pv: Vec<Physical>,
    }
    let answer: Answer = serde_json::from_slice(json)?;
    Ok(answer.report.into_iter().flat_map(|report| report.pv).collect())
}

/// Counts only what may be allocated as free.
pub fn hold_back(volumes: &mut [Volume], physical: &[Physical]) {
    for volume in volumes {
        let of_group = physical.iter().filter(|pv| pv.group == volume.group && !pv.allocatable);
        volume.held_back = of_group.fold(0, |sum: u64, pv| sum.saturating_add(pv.free));
        volume.group_free = volume.group_free.saturating_sub(volume.held_back);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::volumes::REPORT;
    use crate::tool::volumes;

    #[test]
    fn a_threshold_is_read_as_lvm_prints_it_and_as_a_profile_has_it() {
        assert_eq!(parse_threshold("thin_pool_autoextend_threshold=70\n"), Some(70));
        let profile = "# a profile\nactivation {\n\tthin_pool_autoextend_threshold = 75 # full\n\
            \tthin_pool_autoextend_percent = 20\n}\n";
        assert_eq!(parse_threshold(profile), Some(75));
        assert_eq!(parse_threshold("activation { thin_pool_autoextend_threshold = 80 }"), Some(80));
        assert_eq!(parse_threshold("activation/thin_pool_autoextend_threshold = 60"), Some(60));
        for text in
            ["", "#thin_pool_autoextend_threshold=70", "thin_pool_autoextend_percent=20", "a"]
        {
            assert_eq!(parse_threshold(text), None, "{text}");
        }
    }

    #[test]
    fn whether_and_where_lvm_archives() {
        let there = "archive=1\narchive_dir=\"/var/lvm/archive\"\n";
        assert_eq!(parse_archive(there), (true, Some("/var/lvm/archive".into())));
        assert_eq!(parse_archive("archive=0\narchive_dir=\"/a\"\n"), (false, Some("/a".into())));
        assert_eq!(parse_archive(""), (true, None));
    }

    /// As pvs of LVM 2.03.16 prints it after `pvchange -xn` of the second one.
    const PHYSICAL: &str = r#"{"report": [{"pv": [
        {"vg_name":"vg0", "pv_allocatable":"1", "pv_free":"54525952"},
        {"vg_name":"vg0", "pv_allocatable":"0", "pv_free":"62914560"},
        {"vg_name":"", "pv_allocatable":"0", "pv_free":"62914560"}]}]}"#;

    #[test]
    fn what_may_not_be_allocated_is_not_free() {
        let mut volumes = volumes::parse(REPORT.as_bytes()).unwrap();
        hold_back(&mut volumes, &parse_physical(PHYSICAL.as_bytes()).unwrap());
        assert_eq!(volumes[0].held_back, 62_914_560);
        assert_eq!(volumes[0].group_free, 134_217_728 - 62_914_560);
        assert!(parse_physical(PHYSICAL.replace("54525952", "some").as_bytes()).is_err());
    }

    #[test]
    fn every_argument_list() {
        assert_eq!(
            threshold().to_string(),
            "lvm lvmconfig --type full activation/thin_pool_autoextend_threshold"
        );
        assert_eq!(
            archive().to_string(),
            "lvm lvmconfig --type full backup/archive backup/archive_dir"
        );
        assert_eq!(
            physical().to_string(),
            "lvm pvs --reportformat json --units b --nosuffix --binary --options 'vg_name,pv_allocatable,pv_free'"
        );
    }
}
