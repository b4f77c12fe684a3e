//! Logical volumes from lvs(8), and our calls of lvm(8). Pure.
//!
//! Every call names `GROUP/VOLUME` from lvs's own answer, or selects by tag, never by a path.

use std::path::{Path, PathBuf};

use rustix::fs::{major, minor};
use serde::{Deserialize, Deserializer, de};

use crate::tool::{Invocation, Tool};

/// The chunk of a thick snapshot, lvcreate(8) `--chunksize`; LVM's default.
const CHUNK: u64 = 4096;
/// Exceptions in one area of a thick snapshot's store, 16 bytes each (Linux
/// drivers/md/dm-snap-persistent.c, `struct disk_exception`).
const EXCEPTIONS: u64 = CHUNK / 16;

/// A logical volume.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Volume {
    /// The name of its group.
    #[serde(rename = "vg_name")]
    pub group: String,
    /// The UUID of its group; empty if not queried.
    #[serde(rename = "vg_uuid", default)]
    pub group_id: String,
    /// Its name; in brackets if LVM hides it.
    #[serde(rename = "lv_name")]
    pub name: String,
    /// Its length in bytes; for a thick snapshot, what it can hold of changes.
    #[serde(rename = "lv_size", deserialize_with = "number")]
    pub size: u64,
    /// How it is laid out: `linear`, `thin,sparse`...
    #[serde(rename = "lv_layout")]
    layout: String,
    /// What it was made of, if it is a snapshot.
    #[serde(rename = "origin")]
    pub origin: String,
    /// Its pool, if it is thin.
    #[serde(rename = "pool_lv")]
    pub pool: String,
    /// Its tags, separated by commas.
    #[serde(rename = "lv_tags")]
    tags: String,
    /// Whether LVM lets anybody write to it.
    #[serde(rename = "lv_permissions", deserialize_with = "writable")]
    pub writable: bool,
    /// Whether anybody has it open.
    #[serde(rename = "lv_device_open", deserialize_with = "flag")]
    pub open: bool,
    /// Whether it is a snapshot that is being merged, or will be.
    #[serde(rename = "lv_merging", deserialize_with = "flag")]
    pub merging: bool,
    /// Whether it is a thick snapshot that overflowed.
    #[serde(rename = "lv_snapshot_invalid", deserialize_with = "flag")]
    pub invalid: bool,
    /// How full it is, in hundredths of a percent: a thick snapshot, or a pool.
    #[serde(rename = "data_percent", deserialize_with = "percent")]
    pub used: Option<u64>,
    /// How full a pool's metadata is, in hundredths of a percent.
    #[serde(rename = "metadata_percent", deserialize_with = "percent")]
    pub metadata_used: Option<u64>,
    /// The size of a pool's metadata, in bytes.
    #[serde(rename = "lv_metadata_size", deserialize_with = "optional", default)]
    pub metadata_size: Option<u64>,
    /// The name of the profile of LVM's that it has; empty if it has none.
    #[serde(rename = "lv_profile", default)]
    pub profile: String,
    /// The percentage of a pool above which LVM creates no more volumes in it; `None` if not queried.
    #[serde(skip)]
    pub threshold: Option<u64>,
    /// Whether pvmove moves it at the moment.
    #[serde(rename = "lv_allocation_locked", deserialize_with = "flag", default)]
    moved: bool,
    /// The number of its device; -1 if it is not active.
    #[serde(rename = "lv_kernel_major", deserialize_with = "number")]
    major: i64,
    #[serde(rename = "lv_kernel_minor", deserialize_with = "number")]
    minor: i64,
    /// What is wrong with it, in LVM's words: `partial`, or of a pool `failed`, `out_of_data`,
    /// `metadata_read_only`; empty if nothing is.
    #[serde(rename = "lv_health_status", default)]
    health: String,
    /// Whether it is a pool whose metadata must be checked before LVM creates anything in it.
    #[serde(rename = "lv_check_needed", deserialize_with = "flag", default)]
    check_needed: bool,
    /// The number of physical volumes that its group lacks: LVM then changes nothing in it.
    #[serde(rename = "vg_missing_pv_count", deserialize_with = "number", default)]
    missing: u64,
    /// What LVM may do with its group: `writeable` or `read-only`.
    #[serde(rename = "vg_permissions", default)]
    group_permissions: String,
    /// The number of volumes that its group may have; 0 if there is no limit.
    #[serde(rename = "max_lv", deserialize_with = "number", default)]
    most: u64,
    /// The number of volumes that its group has.
    #[serde(rename = "lv_count", deserialize_with = "number", default)]
    count: u64,
    /// The free space in its group, in bytes; without [`held_back`](Self::held_back), if that was queried.
    #[serde(rename = "vg_free", deserialize_with = "number")]
    pub group_free: u64,
    /// The free space in its group on physical volumes from which nothing may be allocated.
    #[serde(skip)]
    pub held_back: u64,
    /// The unit of allocation in its group, in bytes.
    #[serde(rename = "vg_extent_size", deserialize_with = "number")]
    pub extent: u64,
}

impl Volume {
    /// The name as an argument for lvm.
    pub fn path(&self) -> String {
        format!("{}/{}", self.group, self.name)
    }

    /// Whether space is allocated as it is written to.
    pub fn is_thin(&self) -> bool {
        !self.pool.is_empty() && self.layout.split(',').any(|word| word == "thin")
    }

    /// Whether it is a thick snapshot of another volume.
    pub fn is_thick_snapshot(&self) -> bool {
        !self.origin.is_empty() && !self.is_thin()
    }

    pub fn has_tag(&self, tag: &str) -> bool {
        self.tags.split(',').any(|other| other == tag)
    }

    /// Its tags that begin with `prefix`.
    pub fn tags_with<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        self.tags.split(',').filter(move |tag| tag.starts_with(prefix))
    }

    /// Why LVM cannot create anything from it, because of its own state or that of its group.
    pub fn sick(&self) -> Option<String> {
        let path = self.path();
        match self.health.as_str() {
            _ if self.missing > 0 => {
                let group = &self.group;
                Some(format!(
                    "the group {group} misses {} of its disks: see vgs {group}",
                    self.missing
                ))
            }
            _ if self.group_permissions == "read-only" => {
                Some(format!("the group {} is read-only: LVM changes nothing in it", self.group))
            }
            "partial" => Some(format!("a part of {path} is on a missing disk")),
            "failed" | "out_of_data" | "metadata_read_only" => {
                let words = self.health.replace('_', " ");
                Some(format!("LVM says of {path}: {words}; see lvmthin(7)"))
            }
            _ if self.check_needed => Some(format!(
                "the metadata of {path} has to be checked first: lvconvert --repair {path}"
            )),
            _ => None,
        }
    }

    /// Why LVM neither renames it nor takes a snapshot of it now, if so (lvm2, lv_manip.c, `lv_is_locked`).
    pub fn moving(&self) -> Option<String> {
        self.moved.then(|| {
            format!(
                "pvmove moves {}: wait until it has ended (lvs -a -o +move_pv,copy_percent {}), or pvmove --abort",
                self.path(),
                self.group
            )
        })
    }

    /// Why its group takes no more volumes, if so.
    pub fn crowded(&self) -> Option<String> {
        let full = self.most > 0 && self.count >= self.most;
        full.then(|| {
            format!(
                "the group {0} has {1} volumes and may have no more: vgchange --maxlogicalvolumes 0 {0}",
                self.group, self.count
            )
        })
    }

    /// Whether it has a device.
    pub fn is_active(&self) -> bool {
        self.major >= 0
    }

    /// Whether it has the device number `(major, minor)`.
    pub fn is_device(&self, number: u64) -> bool {
        self.has_device((u64::from(major(number)), u64::from(minor(number))))
    }

    pub fn has_device(&self, (major, minor): (u64, u64)) -> bool {
        u64::try_from(self.major) == Ok(major) && u64::try_from(self.minor) == Ok(minor)
    }

    /// The size of a thick snapshot with space for every change, in bytes, as LVM allocates it: a
    /// header, and in each area one chunk that lists the others; when the last area is full, one
    /// more that ends the list (lvm2, snapshot_manip.c, `_cow_max_size`).
    pub fn full_snapshot_size(&self) -> u64 {
        let chunks = self.size.div_ceil(CHUNK);
        self.allocated((1 + chunks + chunks / EXCEPTIONS + 1).saturating_mul(CHUNK))
    }

    /// `size` in whole extents.
    pub fn allocated(&self, size: u64) -> u64 {
        size.checked_next_multiple_of(self.extent.max(1)).unwrap_or(u64::MAX)
    }

    /// The used space of a thick snapshot, in bytes.
    pub fn used_bytes(&self) -> u64 {
        let used = u128::from(self.size) * u128::from(self.used.unwrap_or(0)) / 10_000;
        u64::try_from(used).expect("at most its size")
    }
}

/// Why a group's name is ambiguous, if it is: another group has the same name, for example of a guest
/// whose volumes dom0 sees on its disks. LVM would take either.
pub fn ambiguous(volumes: &[Volume], group: &str) -> Option<String> {
    let mut ids: Vec<&str> =
        volumes.iter().filter(|v| v.group == group).map(|v| v.group_id.as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    (ids.len() > 1).then(|| {
        format!(
            "there are {} volume groups called {group}: see vgs -o +vg_uuid, and rename one by vgrename \
             UUID NAME, or keep LVM from looking at guests' disks (global_filter in lvm.conf)",
            ids.len()
        )
    })
}

/// The device of a volume.
pub fn device(group: &str, name: &str) -> PathBuf {
    Path::new("/dev").join(group).join(name)
}

/// The other name of its device: device-mapper doubles the hyphens in a group's and a volume's name (lvm(8), VALID
/// NAMES).
pub fn mapped(group: &str, name: &str) -> PathBuf {
    let doubled = |part: &str| part.replace('-', "--");
    Path::new("/dev/mapper").join(format!("{}-{}", doubled(group), doubled(name)))
}

/// Lists every volume of the host, as JSON.
pub fn report() -> Invocation {
    lvm([
        "lvs",
        "--all",
        "--reportformat",
        "json",
        "--units",
        "b",
        "--nosuffix",
        "--binary",
        "--options",
        "vg_name,lv_name,lv_size,lv_layout,origin,pool_lv,lv_tags,lv_permissions,lv_device_open,\
         lv_merging,lv_snapshot_invalid,data_percent,metadata_percent,lv_kernel_major,\
         lv_kernel_minor,vg_free,vg_extent_size,vg_uuid,lv_health_status,lv_check_needed,vg_missing_pv_count,\
         lv_metadata_size,lv_profile,lv_allocation_locked,vg_permissions,max_lv,lv_count",
    ])
}

/// Parses the output of [`report`].
pub fn parse(json: &[u8]) -> Result<Vec<Volume>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Answer {
        report: Vec<Report>,
    }
    #[derive(Deserialize)]
    struct Report {
        #[serde(default)]
        lv: Vec<Volume>,
    }
    let answer: Answer = serde_json::from_slice(json)?;
    Ok(answer.report.into_iter().flat_map(|report| report.lv).collect())
}

/// Takes a thick snapshot with space for `size` bytes of changes. LVM allocates less if that is
/// more than can ever be needed.
pub fn snapshot_thick(origin: &str, name: &str, tag: &str, size: u64) -> Invocation {
    lvm(["lvcreate", "--quiet", "--yes", "--snapshot", "--permission", "r"]).args([
        "--addtag",
        tag,
        "--name",
        name,
        "--size",
        &format!("{size}b"),
        origin,
    ])
}

/// Takes a thin snapshot, active and read-only.
pub fn snapshot_thin(origin: &str, name: &str, tag: &str) -> Invocation {
    lvm(["lvcreate", "--quiet", "--yes", "--snapshot", "--setactivationskip", "n"]).args([
        "--permission",
        "r",
        "--addtag",
        tag,
        "--name",
        name,
        origin,
    ])
}

/// Creates a thin volume with the content of a thin snapshot.
pub fn volume_of_thin(snapshot: &str, name: &str, tag: &str) -> Invocation {
    lvm(["lvcreate", "--quiet", "--yes", "--snapshot", "--setactivationskip", "n"])
        .args(["--permission", "rw", "--addtag", tag])
        .args(["--name", name, snapshot])
}

/// Removes the volume `group/name` if it has the tag; succeeds if there is none.
pub fn remove_tagged(group: &str, name: &str, tag: &str) -> Invocation {
    let select = format!("lv_name=\"{name}\" && lv_tags=\"{tag}\"");
    lvm(["lvremove", "--quiet", "--yes", "--select", &select, group])
}

/// Removes a volume.
pub fn remove(volume: &str) -> Invocation {
    lvm(["lvremove", "--quiet", "--yes", volume])
}

pub fn rename(group: &str, from: &str, to: &str) -> Invocation {
    lvm(["lvrename", "--quiet", group, from, to])
}

/// Merges a thick snapshot into its origin, which consumes the snapshot, and waits for the end.
pub fn merge(snapshot: &str) -> Invocation {
    lvm(["lvconvert", "--quiet", "--yes", "--merge", "--interval", "1", snapshot])
}

pub fn add_tag(volume: &str, tag: &str) -> Invocation {
    lvm(["lvchange", "--quiet", "--addtag", tag, volume])
}

pub fn delete_tag(volume: &str, tag: &str) -> Invocation {
    lvm(["lvchange", "--quiet", "--deltag", tag, volume])
}

/// Writes the metadata of a volume's group, and leaves it as it was: a tag comes and goes in one change.
pub fn rehearse(volume: &str) -> Invocation {
    const TAG: &str = "xl-snapshot-rehearsal";
    lvm(["lvchange", "--quiet", "--addtag", TAG, "--deltag", TAG, volume])
}

/// Deactivates or activates a volume. Activation starts a pending merge.
pub fn activate(volume: &str, active: bool) -> Invocation {
    let how = if active { "y" } else { "n" };
    lvm(["lvchange", "--quiet", "--yes", "--activate", how, volume])
}

pub(super) fn lvm<const N: usize>(args: [&str; N]) -> Invocation {
    Invocation::new(Tool::Lvm, args)
}

/// LVM quotes numbers, and prints an empty string for none.
pub(super) fn number<'de, D: Deserializer<'de>, T: std::str::FromStr>(
    from: D,
) -> Result<T, D::Error> {
    let text = String::deserialize(from)?;
    text.parse().map_err(|_| de::Error::custom(format!("{text:?} is not a number")))
}

/// An empty string if there is none.
fn optional<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(from)?;
    let bad = |_| de::Error::custom(format!("{text:?} is not a number"));
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(bad) }
}

/// 1, 0, or -1 if unknown (an inactive volume).
pub(super) fn flag<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    Ok(String::deserialize(from)? == "1")
}

/// `writeable`, `read-only`, `read-only-override`, or `unknown` for a writable volume that is not
/// active (lvm2, lib/report/report.c, `_lvpermissions_disp`).
fn writable<'de, D: Deserializer<'de>>(from: D) -> Result<bool, D::Error> {
    Ok(String::deserialize(from)? != "read-only")
}

/// `12.34`, or an empty string.
fn percent<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(from)?;
    if text.is_empty() {
        return Ok(None);
    }
    let (whole, part) = text.split_once('.').unwrap_or((&text, "00"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let bad = || de::Error::custom(format!("{text:?} is not a percentage"));
    match format!("{whole}{part:0<2.2}").parse::<u64>() {
        Ok(hundredths @ 0..=10_000) if digits(whole) && digits(part) => Ok(Some(hundredths)),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::volumes::REPORT;

    #[test]
    fn the_report_is_read() {
        let volumes = parse(REPORT.as_bytes()).unwrap();
        assert_eq!(volumes.len(), 6);
        let [spare, pool, thick, snapshot, thin, _] = volumes.as_slice() else { unreachable!() };
        assert!(!spare.has_device((0, 0)) && !spare.open);
        assert_eq!((pool.used, pool.metadata_used), (Some(0), Some(1094)));
        assert!(!pool.is_thin() && thin.is_thin() && thin.open);
        assert!(thick.has_device((253, 0)) && !thick.is_thin() && !thick.is_thick_snapshot());
        assert!(thick.writable && !snapshot.writable);
        assert!(snapshot.is_thick_snapshot() && snapshot.has_tag("a") && !snapshot.has_tag("x"));
        assert_eq!(snapshot.used_bytes(), 8_428_873);
        assert_eq!(parse(br#"{"report": [{"lv": []}]}"#).unwrap(), []);
    }

    #[test]
    fn two_groups_of_one_name_are_told() {
        let mut volumes = parse(REPORT.as_bytes()).unwrap();
        assert_eq!(ambiguous(&volumes, "vg0"), None);
        volumes[2].group_id = "another".into();
        assert!(ambiguous(&volumes, "vg0").unwrap().contains("2 volume groups called vg0"));
        assert_eq!(ambiguous(&volumes, "vg1"), None);
    }

    #[test]
    fn what_lvs_would_not_print_is_an_error() {
        for (good, bad) in [
            ("67108864", "huge"),
            ("12.56", "12,56"),
            ("12.56", "12.56x"),
            ("12.56", "+1.5"),
            ("12.56", "101.00"),
            ("253", ""),
        ] {
            assert!(parse(REPORT.replace(good, bad).as_bytes()).is_err(), "{bad}");
        }
        assert!(parse(b"{}").is_err());
    }

    /// LVM 2.03.16 says of a 64 MiB origin: "Reducing COW size 100.00 MiB down to maximum usable
    /// size 68.00 MiB."
    #[test]
    fn a_full_snapshot_is_what_lvm_calls_the_maximum() {
        let thick = &parse(REPORT.as_bytes()).unwrap()[2];
        assert_eq!(thick.full_snapshot_size(), 68 << 20);
        // Every area full: 1 + 65280 + 255 chunks are 256 MiB, and one chunk ends the list.
        let even = Volume { size: 255 << 20, extent: 1 << 20, ..thick.clone() };
        assert_eq!(even.full_snapshot_size(), 257 << 20);
        let huge = Volume { size: u64::MAX, ..thick.clone() };
        assert_eq!(huge.full_snapshot_size(), u64::MAX);
    }

    #[test]
    fn every_argument_list() {
        let table = [
            (
                snapshot_thick("vg0/a", "a.s1", "t:1", 1 << 22),
                "lvm lvcreate --quiet --yes --snapshot --permission r --addtag t:1 --name a.s1 --size 4194304b vg0/a",
            ),
            (
                snapshot_thin("vg0/a", "a.s1", "t:1"),
                "lvm lvcreate --quiet --yes --snapshot --setactivationskip n --permission r --addtag t:1 --name a.s1 vg0/a",
            ),
            (
                volume_of_thin("vg0/a.s1", "a.b", "t:2"),
                "lvm lvcreate --quiet --yes --snapshot --setactivationskip n --permission rw --addtag t:2 --name a.b vg0/a.s1",
            ),
            (
                remove_tagged("vg0", "a.s1", "t:1"),
                r#"lvm lvremove --quiet --yes --select 'lv_name="a.s1" && lv_tags="t:1"' vg0"#,
            ),
            (remove("vg0/a"), "lvm lvremove --quiet --yes vg0/a"),
            (rename("vg0", "a", "b"), "lvm lvrename --quiet vg0 a b"),
            (merge("vg0/a.s1"), "lvm lvconvert --quiet --yes --merge --interval 1 vg0/a.s1"),
            (add_tag("vg0/a", "t:1"), "lvm lvchange --quiet --addtag t:1 vg0/a"),
            (delete_tag("vg0/a", "t:1"), "lvm lvchange --quiet --deltag t:1 vg0/a"),
            (
                rehearse("vg0/a"),
                "lvm lvchange --quiet --addtag xl-snapshot-rehearsal --deltag xl-snapshot-rehearsal vg0/a",
            ),
            (activate("vg0/a", false), "lvm lvchange --quiet --yes --activate n vg0/a"),
        ];
        for (call, line) in table {
            assert_eq!(call.to_string(), line);
        }
    }
}
