//! What the user asks for, by options and a SPEC.toml, made one request. Pure.

mod disk_option;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::memory::frames::{BadLevel, Level};
use crate::names::{SnapshotName, same_vdev};
use crate::quiesce::QuiesceOptions;
use crate::tool::{check_path, quote};

pub use self::disk_option::{Choice, DiskOption};

/// The default directory for memory images.
pub const DEFAULT_DIRECTORY: &str = "/var/lib/xen/snapshots";
/// The environment variable that names another directory.
pub const DIRECTORY_VARIABLE: &str = "XL_SNAPSHOT_DIR";

/// The largest value of `--max-pause`.
const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 60 * 60);

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
    pub quiesce: Option<QuiesceOptions>,
    /// The disks that differ from the default.
    pub disks: Vec<DiskOption>,
}

impl Request {
    /// Whether the snapshot has no memory.
    pub fn without_memory(&self) -> bool {
        self.disk_only || self.record.is_some()
    }
}

/// What a user says of a snapshot, by options or in a SPEC.toml. Unknown keys are errors: a misspelt key must not
/// be a silent default.
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
    pub disks: Vec<DiskOption>,
    /// Whether the domain stays paused: only an option.
    #[serde(skip)]
    pub paused: bool,
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
        let files = spec.disks.iter_mut().filter_map(|disk| disk.choice.file.as_mut());
        for file in files.chain(&mut spec.memory).chain(&mut spec.config).chain(&mut spec.record) {
            if file.as_os_str() != "-" {
                *file = absolute(&base.join(&*file))?;
            }
        }
        Ok(spec)
    }

    /// These settings, and for what they do not say those of `below`.
    pub fn over(self, below: Spec) -> Spec {
        let others = |disk: &DiskOption| {
            let same = |own: &DiskOption| same_vdev(&own.vdev, &disk.vdev);
            !self.disks.iter().any(same)
        };
        let others: Vec<_> = below.disks.into_iter().filter(others).collect();
        Spec {
            name: self.name.or(below.name),
            description: self.description.or(below.description),
            live: self.live.or(below.live),
            max_pause: self.max_pause.or(below.max_pause),
            memory: self.memory.or(below.memory),
            compress: self.compress.or(below.compress),
            config: self.config.or(below.config),
            record: self.record.or(below.record),
            disk_only: self.disk_only || below.disk_only,
            crash_consistent: self.crash_consistent || below.crash_consistent,
            quiesce: self.quiesce.or(below.quiesce),
            freeze_timeout: self.freeze_timeout.or(below.freeze_timeout),
            disks: self.disks.into_iter().chain(others).collect(),
            paused: self.paused || below.paused,
        }
    }

    /// What is asked for, if it makes sense.
    ///
    /// # Errors
    /// [`Kind::Usage`](crate::error::Kind::Usage).
    pub fn request(self) -> Result<Request> {
        let name = self
            .name
            .map(|name| {
                name.parse::<SnapshotName>().map_err(|why| {
                    Error::usage(format!("The snapshot name {name:?}"))
                        .because(why)
                        .hint("choose a name such as before-upgrade")
                })
            })
            .transpose()?;
        let record = self.record.as_deref().map(absolute).transpose()?;
        let disk_only = self.disk_only;
        let crash_consistent = self.crash_consistent;
        if crash_consistent && !disk_only {
            return Err(Error::usage("--crash-consistent is for --disk-only")
                .hint("use both options or neither: a snapshot with memory is consistent"));
        }
        let of_memory = [
            ("--memory", self.memory.is_some()),
            ("--live or --no-live", self.live.is_some()),
            ("--compress", self.compress.is_some()),
            ("--max-pause", self.max_pause.is_some()),
        ];
        let without_memory = disk_only || record.is_some();
        if let Some((option, _)) = of_memory.iter().find(|(_, said)| *said && without_memory) {
            return Err(Error::usage(format!("{option} is for snapshots with memory")).hint(
                format!(
                    "leave it out, or leave out {}",
                    if disk_only { "--disk-only" } else { "--record" }
                ),
            ));
        }
        let quiesce = QuiesceOptions::new(self.quiesce.as_deref(), self.freeze_timeout)?;
        if quiesce.is_some() {
            check_quiesce(disk_only, crash_consistent, self.paused)?;
        }
        // To insist on what has no name is more than to forget it: that is refused with the reason.
        if (crash_consistent || quiesce.is_some()) && record.is_none() {
            return Err(Error::usage("A snapshot without memory is known by its record")
                .hint("name a file for it: --record FILE"));
        }
        let max_pause = self.max_pause.map(pause_limit).transpose()?;
        if max_pause.is_some() && self.paused {
            return Err(Error::usage("--paused leaves the guest paused")
                .hint("leave out --paused, or --max-pause"));
        }
        let memory = match self.memory {
            None => MemoryTarget::Default,
            Some(path) if path.as_os_str() == "-" => MemoryTarget::Stdout,
            Some(path) => MemoryTarget::File(absolute(&path)?),
        };
        let compress = match self.compress.as_deref() {
            None | Some("none") => None,
            Some(text) => Some(text.parse().map_err(|why: BadLevel| {
                Error::usage(why.to_string()).hint("use zstd, zstd:LEVEL or none")
            })?),
        };
        let mut disks: Vec<DiskOption> = Vec::new();
        for disk in self.disks {
            if disks.iter().any(|other| same_vdev(&other.vdev, &disk.vdev)) {
                return Err(Error::usage(format!("Disk {} is named twice", disk.vdev))
                    .hint("name each disk only once"));
            }
            disks.push(disk);
        }
        for disk in &mut disks {
            if let Some(file) = &mut disk.choice.file {
                *file = absolute(file)?;
            }
        }
        Ok(Request {
            name,
            description: self.description.unwrap_or_default(),
            live: self.live.unwrap_or(true),
            max_pause,
            paused: self.paused,
            memory,
            compress,
            record,
            disk_only,
            crash_consistent,
            quiesce,
            config: self.config.as_deref().map(absolute).transpose()?,
            disks,
        })
    }
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

/// The path from the root on. The file system is not asked: the file need not exist.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| {
        Error::usage(format!("The path {path:?}")).because(error).hint("give an absolute path")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::kinds::DiskMethod;

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
            Ok::<_, Error>(spec.request()?.max_pause)
        };
        assert_eq!(limit("").unwrap(), None);
        assert_eq!(limit("max_pause = 2").unwrap(), Some(Duration::from_secs(2)));
        assert_eq!(limit("max_pause = 0.5").unwrap(), Some(Duration::from_millis(500)));
        for wrong in ["0", "-1", "nan", "inf", "1e300", "86401"] {
            let error = limit(&format!("max_pause = {wrong}")).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{wrong}");
            assert!(error.hint.is_some(), "{wrong}");
        }
        let flags = Spec { max_pause: Some(3.0), ..Spec::default() };
        let spec = Spec { max_pause: Some(2.0), ..Spec::default() };
        assert_eq!(
            flags.clone().over(spec).request().unwrap().max_pause,
            Some(Duration::from_secs(3))
        );
        assert_eq!(Spec { paused: true, ..flags }.request().unwrap_err().exit_code(), 2);
        let alone = Spec { record: Some("/r".into()), max_pause: Some(2.0), ..Spec::default() };
        assert_eq!(alone.request().unwrap_err().exit_code(), 2);
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
        let flags = Spec {
            name: Some("b".into()),
            live: Some(true),
            disks: vec!["xvda,internal".parse().unwrap()],
            ..Spec::default()
        };
        let request = flags.over(spec).request().unwrap();
        assert_eq!(request.name.unwrap().as_str(), "b");
        assert!(request.live);
        assert_eq!(request.memory, MemoryTarget::File("/etc/snap/m.xlsave".into()));
        assert_eq!(request.disks.len(), 2);
        assert_eq!(request.disks[0].choice, DiskMethod::Internal.into());
        assert_eq!(
            request.disks[1].choice,
            Choice { file: Some("/etc/snap/b.qcow2".into()), ..DiskMethod::External.into() }
        );
    }

    #[test]
    fn defaults() {
        let request = Spec::default().request().unwrap();
        assert!(request.live && !request.paused && request.name.is_none());
        assert_eq!(request.memory, MemoryTarget::Default);
        let stdout = Spec { memory: Some("-".into()), ..Spec::default() };
        assert_eq!(stdout.request().unwrap().memory, MemoryTarget::Stdout);
    }

    #[test]
    fn compression_is_asked_for_and_taken_back() {
        let compress = |flag: Option<&str>, key: Option<&str>| {
            let flags = Spec { compress: flag.map(Into::into), ..Spec::default() };
            let spec = Spec { compress: key.map(Into::into), ..Spec::default() };
            flags
                .over(spec)
                .request()
                .map(|request| request.compress.map(|level| level.to_string()))
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
        let twice = Spec {
            disks: ["xvda,none", "xvda,internal"].map(|disk| disk.parse().unwrap()).to_vec(),
            ..Spec::default()
        };
        assert_eq!(twice.request().unwrap_err().exit_code(), 2);
        let name = Spec { name: Some("1".into()), ..Spec::default() };
        assert_eq!(name.request().unwrap_err().exit_code(), 2);
    }
}
