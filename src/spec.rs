//! What the user asks for: flags and SPEC.toml, made one. Pure.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

use crate::disk::kind::Keys;
use crate::disk::kinds::How;
use crate::error::{Error, Result};
use crate::memory::frames::{BadLevel, Level};
use crate::names::{SnapshotName, is_drive, is_vdev, same_vdev};
use crate::quiesce::Wanted;
use crate::tool::{check_path, quote};

/// The default directory for memory images.
pub const DEFAULT_DIRECTORY: &str = "/var/lib/xen/snapshots";
/// The environment variable that names another directory.
pub const DIRECTORY_VARIABLE: &str = "XL_SNAPSHOT_DIR";

/// The largest value of `--max-pause`.
const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 60 * 60);

/// How one disk is to be snapshotted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    pub how: How,
    /// The path of the new file, if the user chose one.
    pub file: Option<PathBuf>,
    /// Room for changes in bytes, in the snapshot of a thick volume.
    pub size: Option<u64>,
}

impl From<How> for Wish {
    fn from(how: How) -> Wish {
        Wish { how, file: None, size: None }
    }
}

/// What a user can ask for, in short.
fn ways() -> String {
    let way = |how: &How| {
        let keys = how.keys()?;
        let file = if keys.file { "[,file=PATH]" } else { "" };
        let size = if keys.size { "[,size=SIZE]" } else { "" };
        Some(format!("VDEV,{}{file}{size}", how.name()))
    };
    How::ALL.iter().filter_map(way).collect::<Vec<_>>().join(" | ")
}

/// A wish for one disk, `VDEV,HOW[,KEY=VALUE]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskWish {
    /// The guest's name of the disk.
    pub vdev: String,
    pub wish: Wish,
}

impl FromStr for DiskWish {
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
        DiskWish::new(vdev, how, file, size).map_err(|why| bad(&why))
    }
}

impl DiskWish {
    fn new(
        vdev: &str,
        how: &str,
        file: Option<PathBuf>,
        size: Option<String>,
    ) -> Result<Self, String> {
        let known = How::of_wish(how);
        // A drive of QEMU's own can only be left out.
        if !(is_vdev(vdev) || known.is_some_and(How::leaves_out) && is_drive(vdev)) {
            return Err(format!("{vdev:?} is not the name of a disk, such as xvda"));
        }
        let (how, keys) = known
            .and_then(|how| Some((how, how.keys()?)))
            .ok_or_else(|| format!("{how:?} is not a way to snapshot a disk"))?;
        let (wrong_file, wrong_size) = (file.is_some() && !keys.file, size.is_some() && !keys.size);
        let name = how.name();
        match keys {
            Keys { file: false, size: false } if wrong_file || wrong_size => {
                return Err(format!("{name:?} takes no file or size"));
            }
            _ if wrong_size => return Err(format!("{name:?} takes no size")),
            _ if wrong_file => return Err(format!("an {name} snapshot takes no file")),
            _ => {}
        }
        let size = size.map(|size| parse_size(&size)).transpose()?;
        let wish = Wish { how, file, size };
        Ok(DiskWish { vdev: vdev.to_owned(), wish })
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

/// Where the memory image goes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum MemoryTarget {
    /// `<domain>/<name>.xlsave` in [`DEFAULT_DIRECTORY`] or what the environment names.
    #[default]
    Default,
    /// A file that the user named.
    File(PathBuf),
    Stdout,
}

/// What the user asked `create` to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The name of the snapshot; `None` to make one from the time.
    pub name: Option<SnapshotName>,
    /// The text of `--description`.
    pub description: String,
    /// Whether memory is copied while the guest runs.
    pub live: bool,
    /// The longest pause to save memory.
    pub max_pause: Option<Duration>,
    pub paused: bool,
    pub memory: MemoryTarget,
    /// The level of compression; `None` for a plain image.
    pub compress: Option<Level>,
    /// The domain's xl configuration file, if a SPEC.toml names it.
    pub config: Option<PathBuf>,
    /// The file for the record of a snapshot without memory.
    pub record: Option<PathBuf>,
    /// Take the disks of a running domain without its memory.
    pub disk_only: bool,
    /// Accept a crash-consistent snapshot.
    pub crash_consistent: bool,
    /// Who freezes the guest's file systems meanwhile, if anybody does.
    pub quiesce: Option<Wanted>,
    /// The disks that differ from the default.
    pub disks: Vec<DiskWish>,
}

impl Request {
    /// Whether the snapshot has no memory.
    pub fn without_memory(&self) -> bool {
        self.disk_only || self.record.is_some()
    }
}

/// The options of `create`, before they are merged with a SPEC.toml.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    pub name: Option<String>,
    pub description: Option<String>,
    /// `--live`, `--no-live`
    pub live: Option<bool>,
    pub memory: Option<PathBuf>,
    pub compress: Option<String>,
    pub record: Option<PathBuf>,
    pub disk_only: bool,
    pub crash_consistent: bool,
    pub quiesce: Option<String>,
    /// `--freeze-timeout`, in seconds
    pub freeze_timeout: Option<f64>,
    pub disks: Vec<String>,
    /// `--max-pause`, in seconds
    pub max_pause: Option<f64>,
    pub paused: bool,
}

/// SPEC.toml. Unknown keys are errors: a misspelt key must not be a silent default.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    pub name: Option<String>,
    /// The text of `--description`.
    pub description: Option<String>,
    /// Whether memory is copied while the guest runs.
    pub live: Option<bool>,
    /// The longest pause to save memory, in seconds.
    pub max_pause: Option<f64>,
    /// The memory image; relative to the SPEC.toml.
    pub memory: Option<PathBuf>,
    /// `zstd`, `zstd:LEVEL` or `none`.
    pub compress: Option<String>,
    /// The domain's xl configuration file; relative to the SPEC.toml.
    pub config: Option<PathBuf>,
    /// Where the record of a snapshot without memory goes; relative to the SPEC.toml.
    pub record: Option<PathBuf>,
    /// Whether to take the disks of a running domain without its memory.
    #[serde(default)]
    pub disk_only: bool,
    /// Whether to accept a crash-consistent snapshot.
    #[serde(default)]
    pub crash_consistent: bool,
    /// Who freezes the guest's file systems: `agent`, or the absolute path of a program.
    pub quiesce: Option<String>,
    /// For how long they may be frozen, in seconds.
    pub freeze_timeout: Option<f64>,
    /// The disks that differ from the default.
    #[serde(default, rename = "disk")]
    pub disks: Vec<SpecDisk>,
}

/// One `[[disk]]` of a SPEC.toml.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpecDisk {
    /// The guest's name of the disk.
    pub vdev: String,
    /// `internal`, `external`, `lvm`, `reflink` or `none`.
    pub snapshot: String,
    /// The path of the overlay or copy; relative to the SPEC.toml.
    pub file: Option<PathBuf>,
    /// Room for changes in the snapshot of a thick volume.
    pub size: Option<String>,
}

impl Spec {
    /// Reads the text of the SPEC.toml at `path`, against whose directory its paths are resolved.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let mut spec: Spec = toml::from_str(text).map_err(|error| {
            Error::usage(format!("{} is wrong", path.display()))
                .because(error)
                .hint("its keys are in xl-snapshot.toml(5)")
        })?;
        let base = path.parent().unwrap_or(Path::new(""));
        let files = spec.disks.iter_mut().filter_map(|disk| disk.file.as_mut());
        for file in files.chain(&mut spec.memory).chain(&mut spec.config).chain(&mut spec.record) {
            if file.as_os_str() != "-" {
                *file = absolute(&base.join(&*file))?;
            }
        }
        Ok(spec)
    }
}

/// Merges options and SPEC.toml into one request: an option overrides the file.
pub fn merge(flags: Flags, spec: Spec) -> Result<Request> {
    let name = flags
        .name
        .or(spec.name)
        .map(|name| {
            name.parse::<SnapshotName>().map_err(|why| {
                Error::usage(format!("The snapshot name {name:?}"))
                    .because(why)
                    .hint("choose a name such as before-upgrade")
            })
        })
        .transpose()?;
    let record = flags.record.or(spec.record).as_deref().map(absolute).transpose()?;
    let disk_only = flags.disk_only || spec.disk_only;
    let crash_consistent = flags.crash_consistent || spec.crash_consistent;
    if crash_consistent && !disk_only {
        return Err(Error::usage("--crash-consistent is for --disk-only")
            .hint("use both options or neither: a snapshot with memory is consistent"));
    }
    let of_memory = [
        ("--memory", flags.memory.is_some() || spec.memory.is_some()),
        ("--live or --no-live", flags.live.or(spec.live).is_some()),
        ("--compress", flags.compress.is_some() || spec.compress.is_some()),
        ("--max-pause", flags.max_pause.or(spec.max_pause).is_some()),
    ];
    let without_memory = disk_only || record.is_some();
    if let Some((option, _)) = of_memory.iter().find(|(_, said)| *said && without_memory) {
        return Err(Error::usage(format!("{option} is for snapshots with memory")).hint(format!(
            "leave it out, or leave out {}",
            if disk_only { "--disk-only" } else { "--record" }
        )));
    }
    let quiesce = Wanted::new(
        flags.quiesce.or(spec.quiesce).as_deref(),
        flags.freeze_timeout.or(spec.freeze_timeout),
    )?;
    if quiesce.is_some() {
        check_quiesce(disk_only, crash_consistent, flags.paused)?;
    }
    // To insist on what has no name is more than to forget it: that is refused with the reason.
    if (crash_consistent || quiesce.is_some()) && record.is_none() {
        return Err(Error::usage("A snapshot without memory is known by its record")
            .hint("name a file for it: --record FILE"));
    }
    let max_pause = flags.max_pause.or(spec.max_pause).map(pause_limit).transpose()?;
    if max_pause.is_some() && flags.paused {
        return Err(Error::usage("--paused leaves the guest standing still")
            .hint("leave out --paused, or --max-pause"));
    }
    let memory = match flags.memory.or(spec.memory) {
        None => MemoryTarget::Default,
        Some(path) if path.as_os_str() == "-" => MemoryTarget::Stdout,
        Some(path) => MemoryTarget::File(absolute(&path)?),
    };
    let compress = match flags.compress.or(spec.compress).as_deref() {
        None | Some("none") => None,
        Some(text) => Some(text.parse().map_err(|why: BadLevel| {
            Error::usage(why.to_string()).hint("use zstd, zstd:LEVEL or none")
        })?),
    };
    let mut disks: Vec<DiskWish> = Vec::new();
    for text in &flags.disks {
        add_once(&mut disks, text.parse()?)?;
    }
    let by_flag = disks.len();
    for disk in spec.disks {
        let wish =
            DiskWish::new(&disk.vdev, &disk.snapshot, disk.file, disk.size).map_err(|why| {
                Error::usage(format!("Disk {:?} in the SPEC.toml: {why}", disk.vdev))
                    .hint("the keys of a disk are in xl-snapshot.toml(5)")
            })?;
        if !disks[..by_flag].iter().any(|flag| same_vdev(&flag.vdev, &wish.vdev)) {
            add_once(&mut disks, wish)?;
        }
    }
    for disk in &mut disks {
        if let Some(file) = &mut disk.wish.file {
            *file = absolute(file)?;
        }
    }
    Ok(Request {
        name,
        description: flags.description.or(spec.description).unwrap_or_default(),
        live: flags.live.or(spec.live).unwrap_or(true),
        max_pause,
        paused: flags.paused,
        memory,
        compress,
        record,
        disk_only,
        crash_consistent,
        quiesce,
        config: spec.config.as_deref().map(absolute).transpose()?,
        disks,
    })
}

/// Refuses what does not go with a freeze.
fn check_quiesce(disk_only: bool, crash_consistent: bool, paused: bool) -> Result<()> {
    if !disk_only {
        return Err(Error::usage("--quiesce is for --disk-only")
            .hint("use both options or neither: a snapshot with memory needs no freeze"));
    }
    if crash_consistent {
        return Err(Error::usage("--quiesce and --crash-consistent contradict each other")
            .hint("leave out --crash-consistent"));
    }
    if paused {
        return Err(Error::usage("A paused guest cannot thaw its file systems")
            .hint("leave out --paused; xl pause pauses it afterwards"));
    }
    Ok(())
}

fn pause_limit(seconds: f64) -> Result<Duration> {
    let limit = Duration::try_from_secs_f64(seconds).ok();
    limit.filter(|limit| !limit.is_zero() && *limit <= LONGEST_PAUSE).ok_or_else(|| {
        Error::usage(format!("The limit of the pause, {seconds} s"))
            .because("it must be more than 0 s and at most a day")
            .hint("give --max-pause a number of seconds, such as 0.5 or 3")
    })
}

/// Where memory images go when the user does not say, by the value of [`DIRECTORY_VARIABLE`].
pub fn directory(value: Option<OsString>) -> Result<PathBuf> {
    let Some(value) = value.filter(|value| !value.is_empty()) else {
        return Ok(DEFAULT_DIRECTORY.into());
    };
    let directory = PathBuf::from(value);
    match check_path(&directory) {
        Ok(_) => Ok(directory),
        Err(why) => Err(Error::usage(format!("{DIRECTORY_VARIABLE}={}", quote(&directory)))
            .because(why)
            .hint(format!("set it to an absolute path, or unset it for {DEFAULT_DIRECTORY}"))),
    }
}

fn add_once(disks: &mut Vec<DiskWish>, wish: DiskWish) -> Result<()> {
    if disks.iter().any(|other| same_vdev(&other.vdev, &wish.vdev)) {
        return Err(Error::usage(format!("Disk {} is named twice", wish.vdev))
            .hint("name each disk only once"));
    }
    disks.push(wish);
    Ok(())
}

/// The path from the root on. The file system is not asked: the file need not exist.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| {
        Error::usage(format!("The path {path:?}")).because(error).hint("give an absolute path")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(text: &str) -> Result<DiskWish> {
        text.parse()
    }

    #[test]
    fn the_environment_names_a_directory() {
        let by = |value: &str| directory(Some(value.into()));
        assert_eq!(directory(None).unwrap(), Path::new(DEFAULT_DIRECTORY));
        assert_eq!(by("").unwrap(), Path::new(DEFAULT_DIRECTORY));
        assert_eq!(by("/srv/kept").unwrap(), Path::new("/srv/kept"));
        for wrong in ["kept", "./kept", "/srv/\x1bkept"] {
            let error = by(wrong).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{wrong:?}");
            assert!(error.message.contains("XL_SNAPSHOT_DIR") && error.hint.is_some(), "{error}");
        }
    }

    #[test]
    fn a_pause_has_a_limit_in_seconds() {
        let limit = |text: &str| {
            let spec = Spec::parse(text, Path::new("/s/s.toml"))?;
            Ok::<_, Error>(merge(Flags::default(), spec)?.max_pause)
        };
        assert_eq!(limit("").unwrap(), None);
        assert_eq!(limit("max_pause = 2").unwrap(), Some(Duration::from_secs(2)));
        assert_eq!(limit("max_pause = 0.5").unwrap(), Some(Duration::from_millis(500)));
        for wrong in ["0", "-1", "nan", "inf", "1e300", "86401"] {
            let error = limit(&format!("max_pause = {wrong}")).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{wrong}");
            assert!(error.hint.is_some(), "{wrong}");
        }
        let flags = Flags { max_pause: Some(3.0), ..Flags::default() };
        let spec = Spec { max_pause: Some(2.0), ..Spec::default() };
        assert_eq!(merge(flags.clone(), spec).unwrap().max_pause, Some(Duration::from_secs(3)));
        assert_eq!(
            merge(Flags { paused: true, ..flags }, Spec::default()).unwrap_err().exit_code(),
            2
        );
        let alone = Spec { record: Some("/r".into()), max_pause: Some(2.0), ..Spec::default() };
        assert_eq!(merge(Flags::default(), alone).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn every_way_is_told_with_what_it_takes() {
        assert_eq!(
            wish("xvda").unwrap_err().hint.unwrap(),
            "VDEV,internal | VDEV,external[,file=PATH] | VDEV,lvm[,size=SIZE] | VDEV,reflink[,file=PATH] | \
             VDEV,none"
        );
        assert!(wish("xvda,vhd").is_err());
    }

    #[test]
    fn disk_wishes() {
        assert_eq!(wish("xvda,internal").unwrap().wish, How::Internal.into());
        assert_eq!(wish("xvda,none").unwrap().wish, How::None.into());
        assert_eq!(wish("xvda,external").unwrap().wish, How::External.into());
        assert_eq!(
            wish("xvdb,external,file=/a,b=c.qcow2").unwrap(),
            DiskWish {
                vdev: "xvdb".into(),
                wish: Wish { file: Some("/a,b=c.qcow2".into()), ..How::External.into() }
            }
        );
        assert_eq!(
            wish("hda,lvm,size=1G").unwrap().wish,
            Wish { size: Some(1 << 30), ..How::Lvm.into() }
        );
        assert_eq!(wish("hda,lvm").unwrap().wish, How::Lvm.into());
        assert_eq!(wish("xvdb,reflink").unwrap().wish, How::Reflink.into());
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
    fn bad_disk_wishes_are_usage_errors() {
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
            let error = wish(text).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{text:?}");
            assert!(error.message.contains(&format!("{text:?}")), "{}", error.message);
        }
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let spec = Spec::parse(
            "name = \"a\"\nlive = false\nmemory = \"m.xlsave\"\n\
             [[disk]]\nvdev = \"xvda\"\nsnapshot = \"none\"\n\
             [[disk]]\nvdev = \"xvdb\"\nsnapshot = \"external\"\nfile = \"b.qcow2\"\n",
            Path::new("/etc/snap/web1.toml"),
        )
        .unwrap();
        let flags = Flags {
            name: Some("b".into()),
            live: Some(true),
            disks: vec!["xvda,internal".into()],
            ..Flags::default()
        };
        let request = merge(flags, spec).unwrap();
        assert_eq!(request.name.unwrap().as_str(), "b");
        assert!(request.live);
        assert_eq!(request.memory, MemoryTarget::File("/etc/snap/m.xlsave".into()));
        assert_eq!(request.disks.len(), 2);
        assert_eq!(request.disks[0].wish, How::Internal.into());
        assert_eq!(
            request.disks[1].wish,
            Wish { file: Some("/etc/snap/b.qcow2".into()), ..How::External.into() }
        );
    }

    #[test]
    fn defaults() {
        let request = merge(Flags::default(), Spec::default()).unwrap();
        assert!(request.live && !request.paused && request.name.is_none());
        assert_eq!(request.memory, MemoryTarget::Default);
        let stdout = Flags { memory: Some("-".into()), ..Flags::default() };
        assert_eq!(merge(stdout, Spec::default()).unwrap().memory, MemoryTarget::Stdout);
    }

    #[test]
    fn compression_is_asked_for_and_taken_back() {
        let compress = |flag: Option<&str>, key: Option<&str>| {
            let flags = Flags { compress: flag.map(Into::into), ..Flags::default() };
            let spec = Spec { compress: key.map(Into::into), ..Spec::default() };
            merge(flags, spec).map(|request| request.compress.map(|level| level.to_string()))
        };
        assert_eq!(compress(None, None).unwrap(), None);
        assert_eq!(compress(None, Some("zstd")).unwrap().unwrap(), "zstd:3");
        assert_eq!(compress(Some("zstd:19"), Some("zstd")).unwrap().unwrap(), "zstd:19");
        assert_eq!(compress(Some("none"), Some("zstd")).unwrap(), None);
        for text in ["", "gzip", "zstd:", "zstd:0", "zstd:20", "zstd:-1", "zstd9", "zstd:3 "] {
            let error = compress(Some(text), None).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{text:?}");
            assert!(error.message.contains(&format!("{text:?}")), "{}", error.message);
        }
    }

    #[test]
    fn mistakes_are_usage_errors() {
        for text in
            ["nmae = \"x\"", "[[disk]]\nvdev = \"xvda\"", "live = 1", "[[disk]]\nvdve = \"x\""]
        {
            let error = Spec::parse(text, Path::new("/s.toml")).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{text}");
        }
        let twice =
            Flags { disks: vec!["xvda,none".into(), "xvda,internal".into()], ..Flags::default() };
        assert_eq!(merge(twice, Spec::default()).unwrap_err().exit_code(), 2);
        let name = Flags { name: Some("1".into()), ..Flags::default() };
        assert_eq!(merge(name, Spec::default()).unwrap_err().exit_code(), 2);
    }
}
