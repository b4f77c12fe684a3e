//! Plans for logical volumes, from a report as lvs prints it.

mod create;
mod limits;
mod revert;

use serde_json::Value;

use super::{Volume, volumes};
use crate::support::disks::Volumes;
use crate::support::volumes::REPORT;

const TAG: &str = "xl-snapshot:0b41a0a5-4a1c-4b3c-8f1e-93d4b0b1a001:xvda";
const MERGING_TAG: &str = "xl-snapshot-merging:0b41a0a5-4a1c-4b3c-8f1e-93d4b0b1a001:xvda";

/// A changed value in the report: volume, key, value. `+new=old` adds a volume like an old one
/// except for its name and this value; the key `-` removes a volume.
type Edit<'a> = (&'a str, &'a str, &'a str);

/// The volumes of [`REPORT`], edited, in which `vg0` has 128 MiB free: `thick` with its snapshot
/// `thick.s1`, both 64 MiB, and `thin` with `thin.s1` in `pool`.
fn report(edits: &[Edit<'_>]) -> Vec<Volume> {
    let mut report: Value = serde_json::from_str(REPORT).unwrap();
    let list = report["report"][0]["lv"].as_array_mut().unwrap();
    for (volume, key, value) in edits {
        let at = |list: &[Value], name: &str| {
            list.iter().position(|lv| lv["lv_name"] == name).unwrap_or_else(|| panic!("{name}"))
        };
        if let Some((new, old)) = volume.strip_prefix('+').and_then(|names| names.split_once('=')) {
            let mut lv = list[at(list, old)].clone();
            lv["lv_name"] = new.into();
            lv[*key] = (*value).into();
            list.push(lv);
        } else if *key == "-" {
            list.remove(at(list, volume));
        } else {
            let index = at(list, volume);
            assert!(list[index].get(*key).is_some(), "{key}");
            list[index][*key] = (*value).into();
        }
    }
    volumes::parse(report.to_string().as_bytes()).unwrap()
}

fn broken_lvs() -> Volumes {
    Err("lvm lvs: exit status 5: no such luck".into())
}
