//! qemu-img(1): arguments and answers. Pure.
//!
//! The format is always stated: a guest that writes a qcow2 header into its raw disk must not make
//! us open the file it names. Paths are absolute (`tool::check_path`), so none is taken for an
//! option or a protocol.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;

use crate::domain::Format;
use crate::names::SnapshotName;
use crate::record::QcowSnapshot;
use crate::tool::{Invocation, Tool};

/// An empty qcow2 overlay of `size` bytes. The base is not opened (`-u`): QEMU may have it open.
pub fn create_overlay(path: &Path, base: &Path, format: Format, size: u64) -> Invocation {
    Invocation::new(Tool::QemuImg, ["create", "-q", "-u", "-f", "qcow2", "-F", format.qemu(), "-b"])
        .arg(base)
        .arg(path)
        .arg(size.to_string())
}

/// The base of the overlay that a call creates, if it creates one.
pub fn base_of(call: &Invocation) -> Option<&Path> {
    let makes = call.tool == Tool::QemuImg && call.args.first().is_some_and(|arg| arg == "create");
    let at = call.args.iter().position(|arg| arg == "-b").filter(|_| makes)?;
    call.args.get(at + 1).map(Path::new)
}

/// Describes an image, as JSON. `-U`: QEMU may have it open. Backing files are not opened:
/// `--backing-chain` would follow any name, and probe formats that are not stated.
pub fn info(path: &Path, format: Format) -> Invocation {
    Invocation::new(Tool::QemuImg, ["info", "-U", "--output=json", "-f", format.qemu()]).arg(path)
}

/// Lists the allocated parts of an overlay, as JSON, without opening its backing file. Without `-U`: it
/// fails while somebody has the overlay open for writing.
pub fn map(path: &Path) -> Invocation {
    Invocation::new(Tool::QemuImg, ["map", "--output=json"]).arg(without_backing(path))
}

/// Whether an overlay has any content of its own, from the answer to [`map`].
pub fn has_own_content(output: &[u8]) -> serde_json::Result<bool> {
    /// Since QEMU 6.1.
    #[derive(Deserialize)]
    struct Extent {
        present: bool,
    }
    let extents: Vec<Extent> = serde_json::from_slice(output)?;
    Ok(extents.iter().any(|extent| extent.present))
}

/// A qcow2 file without its backing file.
fn without_backing(path: &Path) -> String {
    let file = json!({"driver": "file", "filename": path.to_string_lossy()});
    format!("json:{}", json!({"driver": "qcow2", "backing": null, "file": file}))
}

/// Takes an internal snapshot of a file nobody has open.
pub fn snapshot_create(path: &Path, name: &SnapshotName) -> Invocation {
    Invocation::new(Tool::QemuImg, ["snapshot", "-q", "-c", name.as_str(), "--image-opts"])
        .arg(image_opts(path))
}

/// Applies an internal snapshot of a file that nobody has open. By ID: `-a` tries its argument as
/// an ID first, and only then as a name.
pub fn snapshot_apply(path: &Path, id: &str) -> Invocation {
    Invocation::new(Tool::QemuImg, ["snapshot", "-q", "-a", id, "--image-opts"])
        .arg(image_opts(path))
}

/// Deletes an internal snapshot of a file nobody has open. By name, and not by ID as [`snapshot_apply`]: `-d`
/// looks for a name only (qemu-img.c, `bdrv_snapshot_find`; seen with QEMU 7.2).
pub fn snapshot_delete(path: &Path, name: &str) -> Invocation {
    Invocation::new(Tool::QemuImg, ["snapshot", "-q", "-d", name, "--image-opts"])
        .arg(image_opts(path))
}

/// Writes the data of an overlay into its backing file, whose format its header states. `-d`: the overlay
/// keeps its data, for its own overlays.
pub fn commit(path: &Path) -> Invocation {
    Invocation::new(Tool::QemuImg, ["commit", "-q", "-d", "-f", "qcow2"]).arg(path)
}

/// Copies the data of the backing file into the overlay, except data that `below` also has: `below`, or
/// nothing, is the new backing file.
pub fn stream(path: &Path, below: Option<(&Path, Format)>) -> Invocation {
    rebase(&["-f"], path, below)
}

/// Sets another backing file, without comparing contents.
pub fn relink(path: &Path, below: (&Path, Format)) -> Invocation {
    rebase(&["-u", "-f"], path, Some(below))
}

fn rebase(options: &[&str], path: &Path, below: Option<(&Path, Format)>) -> Invocation {
    let call = Invocation::new(Tool::QemuImg, ["rebase", "-q"]).args(options).arg("qcow2");
    let call = match below {
        Some((below, format)) => call.arg("-b").arg(below).arg("-F").arg(format.qemu()),
        None => call.arg("-b").arg(""),
    };
    call.arg(path)
}

/// Copies an internal snapshot into a new image. With a backing file, only what differs from it.
pub fn copy_snapshot(
    from: &Path,
    id: &str,
    to: &Path,
    backing: Option<(&Path, Format)>,
) -> Invocation {
    // A list of options: commas are doubled.
    let snapshot = snapshot_option(id);
    let mut call =
        Invocation::new(Tool::QemuImg, ["convert", "-q", "-U", "-f", "qcow2", "-O", "qcow2", "-l"])
            .arg(snapshot);
    if let Some((backing, format)) = backing {
        call = call.arg("-B").arg(backing).arg("-F").arg(format.qemu());
    }
    call.arg(from).arg(to)
}

/// The whole content of a disk, including the bases of its image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whole {
    /// Of an image or a device.
    Image { path: PathBuf, format: Format },
    /// Of an internal snapshot of a qcow2 image, by its ID.
    Inside { path: PathBuf, id: String },
    /// Of a VHD without a parent, as tapdisk reads it.
    TapVhd { path: PathBuf },
}

impl Whole {
    /// The file or device.
    pub fn path(&self) -> &Path {
        match self {
            Whole::Image { path, .. } | Whole::Inside { path, .. } | Whole::TapVhd { path } => path,
        }
    }

    /// Its format.
    pub fn format(&self) -> Format {
        match self {
            Whole::Image { format, .. } => *format,
            Whole::Inside { .. } => Format::Qcow2,
            Whole::TapVhd { .. } => Format::Vhd,
        }
    }

    /// The options for the source, and the file.
    fn words(&self) -> (Vec<OsString>, OsString) {
        let words = |words: &[&str]| words.iter().map(OsString::from).collect();
        match self {
            Whole::Image { path, format } => (words(&["-f", format.qemu()]), path.into()),
            Whole::Inside { path, id } => {
                (words(&["-f", "qcow2", "-l", &snapshot_option(id)]), path.into())
            }
            Whole::TapVhd { path } => (words(&["--image-opts"]), vhd_opts(path)),
        }
    }
}

/// Copies the whole content of a disk into a new image without a backing file, without the parts that are zero.
/// `-U`: the QEMU of a guest may have the image open, but does not write to the content that we read.
pub fn flatten(from: &Whole, to: &Path) -> Invocation {
    let (options, from) = from.words();
    Invocation::new(Tool::QemuImg, ["convert", "-q", "-U"])
        .args(options)
        .args(["-O", "qcow2"])
        .arg(from)
        .arg(to)
}

/// Prints the maximum length of [`flatten`]'s copy, as JSON.
pub fn measure_whole(from: &Whole) -> Invocation {
    let (options, from) = from.words();
    Invocation::new(Tool::QemuImg, ["measure", "-U", "--output=json"])
        .args(options)
        .args(["-O", "qcow2"])
        .arg(from)
}

/// A VHD with the size in its footer: for some writers, QEMU would use the smaller size of the disk geometry
/// (block/vpc.c).
pub(super) fn vhd_opts(path: &Path) -> OsString {
    let path = path.to_string_lossy().replace(',', ",,");
    format!("driver=vpc,force_size_calc=current_size,file.driver=file,file.filename={path}").into()
}

/// Resizes an image that nobody has open, also to a smaller size.
pub fn resize(path: &Path, size: u64) -> Invocation {
    Invocation::new(Tool::QemuImg, ["resize", "-q", "--shrink", "-f", "qcow2"])
        .arg(path)
        .arg(size.to_string())
}

/// Copies a volume into a new image, without the parts that are zero.
pub fn copy_device(from: &Path, to: &Path) -> Invocation {
    Invocation::new(Tool::QemuImg, ["convert", "-q", "-f", "raw", "-O", "qcow2"]).arg(from).arg(to)
}

/// Prints the maximum length of a volume's copy, as JSON: [`copy_device`] writes no more.
pub fn measure_device(path: &Path) -> Invocation {
    Invocation::new(Tool::QemuImg, ["measure", "--output=json", "-f", "raw", "-O", "qcow2"])
        .arg(path)
}

/// Prints the maximum length of an internal snapshot's copy, as JSON: [`copy_snapshot`] writes no
/// more. Without the backing file, which the copy has too.
pub fn measure_snapshot(path: &Path, id: &str) -> Invocation {
    let args = ["measure", "-U", "--output=json", "-O", "qcow2", "-l", &snapshot_option(id)];
    Invocation::new(Tool::QemuImg, args).arg(without_backing(path))
}

/// Parses the output of [`measure_snapshot`] and [`measure_device`]: a length in bytes.
pub fn parse_measure(json: &[u8]) -> Result<u64, serde_json::Error> {
    #[derive(Deserialize)]
    struct Measured {
        required: u64,
    }
    Ok(serde_json::from_slice::<Measured>(json)?.required)
}

/// Prints the help, which lists the supported formats: those of qemu-nbd are the same.
pub fn help() -> Invocation {
    Invocation::new(Tool::QemuImg, ["--help"])
}

/// The argument of `-l`. Commas are doubled.
pub(super) fn snapshot_option(id: &str) -> String {
    format!("snapshot.id={}", id.replace(',', ",,"))
}

/// `qemu-img snapshot` has no `-f`: the options string states the driver. Commas are doubled.
fn image_opts(path: &Path) -> OsString {
    let path = path.to_string_lossy().replace(',', ",,");
    format!("driver=qcow2,file.driver=file,file.filename={path}").into()
}

/// One image as `qemu-img info` describes it, only the keys that we use.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageInfo {
    /// The path as given.
    pub filename: PathBuf,
    /// QEMU's name of the format.
    pub format: String,
    /// The size the guest sees, in bytes.
    pub virtual_size: u64,
    /// The backing file, as an absolute path.
    pub full_backing_filename: Option<PathBuf>,
    /// QEMU's name of that file's format.
    pub backing_filename_format: Option<String>,
    #[serde(default)]
    snapshots: Vec<SnapshotInfo>,
}

/// QEMU's `SnapshotInfo`, in `qemu-img info` and in QMP.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SnapshotInfo {
    id: String,
    name: String,
    date_sec: i64,
    date_nsec: i32,
}

impl SnapshotInfo {
    /// Converts it for our record. A date outside the calendar (a damaged file) becomes its start,
    /// so that it matches no record.
    pub fn into_record(self) -> QcowSnapshot {
        let date = Timestamp::new(self.date_sec, self.date_nsec).unwrap_or(Timestamp::MIN);
        QcowSnapshot { id: self.id, name: self.name, date }
    }
}

impl ImageInfo {
    /// Parses the output of [`info`].
    pub fn parse(json: &[u8]) -> Result<ImageInfo, serde_json::Error> {
        serde_json::from_slice(json)
    }

    pub fn snapshots(&self) -> Vec<QcowSnapshot> {
        self.snapshots.iter().cloned().map(SnapshotInfo::into_record).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(call: &Invocation) -> String {
        call.to_string()
    }

    #[test]
    fn every_argument_list() {
        let (a, b) = (Path::new("/srv/a,1.qcow2"), Path::new("/srv/b.img"));
        let keep: SnapshotName = "k1".parse().unwrap();
        assert_eq!(
            line(&create_overlay(a, b, Format::Vhd, 512)),
            "qemu-img create -q -u -f qcow2 -F vpc -b /srv/b.img '/srv/a,1.qcow2' 512"
        );
        assert_eq!(
            line(&info(b, Format::Raw)),
            "qemu-img info -U '--output=json' -f raw /srv/b.img"
        );
        assert_eq!(base_of(&create_overlay(a, b, Format::Vhd, 512)), Some(b));
        assert_eq!(base_of(&snapshot_create(a, &keep)), None);
        assert_eq!(
            line(&snapshot_create(a, &keep)),
            "qemu-img snapshot -q -c k1 --image-opts 'driver=qcow2,file.driver=file,file.filename=/srv/a,,1.qcow2'"
        );
        assert_eq!(
            line(&snapshot_apply(b, "12")),
            "qemu-img snapshot -q -a 12 --image-opts 'driver=qcow2,file.driver=file,file.filename=/srv/b.img'"
        );
        assert_eq!(line(&resize(b, 512)), "qemu-img resize -q --shrink -f qcow2 /srv/b.img 512");
        assert_eq!(
            line(&snapshot_delete(b, "s1")),
            "qemu-img snapshot -q -d s1 --image-opts 'driver=qcow2,file.driver=file,file.filename=/srv/b.img'"
        );
        assert_eq!(
            line(&copy_snapshot(a, "3", b, None)),
            "qemu-img convert -q -U -f qcow2 -O qcow2 -l 'snapshot.id=3' '/srv/a,1.qcow2' /srv/b.img"
        );
        // A list of options, too.
        assert!(line(&copy_snapshot(a, "3,b", b, None)).contains("-l 'snapshot.id=3,,b' "));
        assert_eq!(
            line(&copy_snapshot(a, "3", b, Some((Path::new("/srv/c"), Format::Raw)))),
            "qemu-img convert -q -U -f qcow2 -O qcow2 -l 'snapshot.id=3' -B /srv/c -F raw '/srv/a,1.qcow2' /srv/b.img"
        );
    }

    #[test]
    fn merges_state_every_format() {
        let (a, b) = (Path::new("/srv/a.qcow2"), Path::new("/srv/b.img"));
        assert_eq!(line(&commit(a)), "qemu-img commit -q -d -f qcow2 /srv/a.qcow2");
        assert_eq!(line(&stream(a, None)), "qemu-img rebase -q -f qcow2 -b '' /srv/a.qcow2");
        assert_eq!(
            line(&stream(a, Some((b, Format::Raw)))),
            "qemu-img rebase -q -f qcow2 -b /srv/b.img -F raw /srv/a.qcow2"
        );
        assert_eq!(
            line(&relink(a, (b, Format::Vhd))),
            "qemu-img rebase -q -u -f qcow2 -b /srv/b.img -F vpc /srv/a.qcow2"
        );
    }

    #[test]
    fn a_snapshot_is_measured_without_what_lies_below() {
        let call = measure_snapshot(Path::new(r#"/srv/a"1,.qcow2"#), "3");
        let args = ["measure", "-U", "--output=json", "-O", "qcow2", "-l", "snapshot.id=3"];
        let image = r#"json:{"driver":"qcow2","backing":null,"file":{"driver":"file","filename":"/srv/a\"1,.qcow2"}}"#;
        assert_eq!(call.args, [&args[..], &[image]].concat());
        // As qemu-img 7.2 prints it.
        let answer = br#"{"bitmaps": 0, "required": 1376256, "fully-allocated": 17104896}"#;
        assert_eq!(parse_measure(answer).unwrap(), 1_376_256);
        assert!(parse_measure(b"{}").is_err());
    }

    /// As qemu-img 7.2 prints it.
    const INFO: &str = r#"{"snapshots": [{"vm-clock-nsec": 0, "name": "s1", "date-sec": 1772330584,
            "date-nsec": 123456789, "vm-clock-sec": 0, "id": "1", "vm-state-size": 0}],
         "virtual-size": 67108864, "filename": "/srv/top.qcow2", "cluster-size": 65536,
         "format": "qcow2", "actual-size": 200704, "full-backing-filename": "/srv/base.img",
         "backing-filename": "/srv/base.img", "backing-filename-format": "raw",
         "format-specific": {"type": "qcow2", "data": {"compat": "1.1"}}, "dirty-flag": false}"#;

    #[test]
    fn an_image_is_read() {
        let image = ImageInfo::parse(INFO.as_bytes()).unwrap();
        assert_eq!(image.full_backing_filename.as_deref(), Some(Path::new("/srv/base.img")));
        let snapshots = image.snapshots();
        assert_eq!(snapshots[0].id, "1");
        assert_eq!(snapshots[0].date.to_string(), "2026-03-01T02:03:04.123456789Z");
    }

    #[test]
    fn what_is_not_an_image_is_an_error() {
        for json in ["", "{}", "[]", r#"{"filename": "/a", "format": 1, "virtual-size": 1}"#] {
            assert!(ImageInfo::parse(json.as_bytes()).is_err(), "{json}");
        }
    }

    #[test]
    fn an_impossible_date_matches_nothing() {
        let info =
            SnapshotInfo { id: "1".into(), name: "s".into(), date_sec: i64::MAX, date_nsec: 0 };
        assert_eq!(info.into_record().date, Timestamp::MIN);
    }
}
