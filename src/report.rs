//! What the user gets to see: messages and progress on standard error, the result on standard
//! output, for people or as JSON.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{DecimalBytes, MultiProgress, ProgressBar, ProgressStyle};
use serde::Serialize;
use uuid::Uuid;

use crate::error::Error;
use crate::host::libxl::Level;
use crate::plan::Step;
use crate::record::{Kept, Record};
use crate::tool::quote;
use crate::xlcfg::literal;

/// The size of a page, in which libxl counts.
const PAGE: u64 = 4096;

/// Where messages go. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reporter {
    /// -1: quiet, 0: usual, 1: each step, 2: libxl's words too, 3: all of them.
    verbosity: i8,
    bars: MultiProgress,
}

impl Reporter {
    /// Messages as talkative as `-q` and `-v` ask for.
    pub fn new(quiet: bool, verbose: u8) -> Self {
        let verbosity = if quiet { -1 } else { i8::try_from(verbose).unwrap_or(3).min(3) };
        Reporter { verbosity, bars: MultiProgress::new() }
    }

    /// The least important message of libxl to show. Its errors stand in our own.
    pub fn libxl_level(&self) -> Level {
        match self.verbosity {
            ..=1 => Level::Critical,
            2 => Level::Info,
            _ => Level::Debug,
        }
    }

    /// A line on standard error, above a progress bar if one is shown.
    pub fn message(&self, text: &str) {
        // Nobody is left to be told that standard error is closed.
        self.bars.suspend(|| drop(writeln!(io::stderr(), "{}", printable(text))));
    }

    /// A message that `-q` suppresses.
    pub fn note(&self, text: &str) {
        if self.verbosity >= 0 {
            self.message(text);
        }
    }

    /// What `-v` says when a step is over.
    pub fn step(&self, step: &Step, took: Duration, well: bool) -> Option<String> {
        let how = if well { "" } else { " FAILED" };
        let ms = took.as_secs_f64() * 1000.0;
        (self.verbosity > 0).then(|| format!("{ms:>9.1} ms{how}  {step}"))
    }

    /// A progress bar for memory, shown on a terminal only.
    pub fn memory_bar(&self, what: &'static str) -> MemoryBar {
        if self.verbosity < 0 {
            return MemoryBar(ProgressBar::hidden());
        }
        let style = ProgressStyle::with_template(
            "{msg:24} [{bar:30}] {bytes:>10} of {total_bytes} {bytes_per_sec}",
        )
        .expect("the template is well-formed");
        let bar = self.bars.add(ProgressBar::new(0).with_style(style).with_message(what));
        MemoryBar(bar)
    }
}

/// A progress bar for memory.
#[derive(Debug)]
pub struct MemoryBar(ProgressBar);

impl MemoryBar {
    /// Shows `done` of `total` pages.
    pub fn show(&self, what: &str, done: u64, total: u64) {
        if total > 0 {
            self.0.set_message(what.to_owned());
            self.0.set_length(total * PAGE);
            self.0.set_position(done * PAGE);
        }
    }

    /// Takes it away.
    pub fn finish(&self) {
        self.0.finish_and_clear();
    }
}

/// What `create` has done. Its JSON form is a contract.
#[derive(Debug, Clone, Serialize)]
pub struct Created {
    /// The snapshot's name.
    pub name: String,
    /// Its identity.
    pub id: Uuid,
    /// The domain's name.
    pub domain: String,
    /// The domain's number.
    pub domid: u32,
    /// Whether memory was copied while the guest ran.
    pub live: bool,
    /// Whether the domain was restored from the image, on its new disks.
    pub restored: bool,
    /// The memory image; absent on a pipe.
    pub image: Option<PathBuf>,
    /// Its length in bytes; absent on a pipe.
    pub image_size: Option<u64>,
    /// How long the guest stood still, in milliseconds.
    pub pause_ms: Option<f64>,
    /// How long everything took, in milliseconds.
    pub total_ms: f64,
    /// Each disk.
    pub disks: Vec<CreatedDisk>,
    /// The domain's xl configuration file, if it names other images now.
    pub cfg: Option<CfgReplaced>,
    /// Disk entries that the domain's xl configuration file needs now, where that is not known.
    pub cfg_disks: Vec<String>,
}

/// An xl configuration file that was given other images.
#[derive(Debug, Clone, Serialize)]
pub struct CfgReplaced {
    /// The file.
    pub path: PathBuf,
    /// The file as it was.
    pub backup: PathBuf,
}

/// What `create` has done to one disk.
#[derive(Debug, Clone, Serialize)]
pub struct CreatedDisk {
    /// The guest's name of it.
    pub vdev: String,
    /// `internal`, `external`, `lvm`, `reflink`, `vhd` or `none`.
    pub snapshot: &'static str,
    /// The image that holds the content at the snapshot.
    pub image: PathBuf,
    /// The image the guest goes on with.
    pub runs_on: PathBuf,
    /// Why it was left out.
    pub why: Option<String>,
}

impl Created {
    /// From a record, complete or not.
    pub fn disks(record: &Record) -> Vec<CreatedDisk> {
        record
            .disks
            .iter()
            .map(|disk| {
                let (image, runs_on, why) = match &disk.snapshot {
                    Kept::None { why } => (None, None, Some(why.clone())),
                    Kept::Internal { .. } => (None, None, None),
                    Kept::External { overlay: new, .. } | Kept::Vhd { child: new, .. } => {
                        (None, Some(new.clone()), None)
                    }
                    Kept::Reflink { copy, .. } => (Some(copy.clone()), None, None),
                    Kept::Lvm { group, snapshot, .. } => {
                        (Some(Path::new("/dev").join(group).join(snapshot)), None, None)
                    }
                };
                CreatedDisk {
                    vdev: disk.vdev.clone(),
                    snapshot: disk.snapshot.kind(),
                    image: image.unwrap_or_else(|| disk.path.clone()),
                    runs_on: runs_on.unwrap_or_else(|| disk.path.clone()),
                    why,
                }
            })
            .collect()
    }
}

impl fmt::Display for Created {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let live = if self.live { ", live" } else { "" };
        writeln!(f, "Snapshot {} of {} (domain {}{live})", self.name, self.domain, self.domid)?;
        if let (Some(image), Some(size)) = (&self.image, self.image_size) {
            writeln!(f, "  memory  {}  {}", quote(image), DecimalBytes(size))?;
        } else {
            writeln!(f, "  memory  to standard output")?;
        }
        for disk in &self.disks {
            let vdev = &disk.vdev;
            match disk.snapshot {
                "internal" => {
                    writeln!(
                        f,
                        "  {vdev:<7} internal snapshot {} in {}",
                        self.name,
                        quote(&disk.image)
                    )?;
                }
                "lvm" | "reflink" => writeln!(
                    f,
                    "  {vdev:<7} {} holds what was in {}",
                    quote(&disk.image),
                    quote(&disk.runs_on)
                )?,
                "external" | "vhd" => writeln!(
                    f,
                    "  {vdev:<7} {} is frozen, the guest goes on in {}",
                    quote(&disk.image),
                    quote(&disk.runs_on)
                )?,
                _ => writeln!(f, "  {vdev:<7} left out: {}", disk.why.as_deref().unwrap_or("-"))?,
            }
        }
        let pause = self.pause_ms.map(|ms| format!("{ms:.0} ms")).unwrap_or("unknown".into());
        if self.restored {
            writeln!(f, "  domain  restored from the image, as domain {}", self.domid)?;
        }
        writeln!(f, "  pause   {pause} of {:.1} s in all", self.total_ms / 1000.0)?;
        if let Some(cfg) = &self.cfg {
            writeln!(
                f,
                "  config  {} names the new images; as it was: {}",
                quote(&cfg.path),
                quote(&cfg.backup)
            )?;
        }
        write_cfg_disks(f, &self.domain, &self.cfg_disks)
    }
}

/// What `revert` has done. Its JSON form is a contract.
#[derive(Debug, Clone, Serialize)]
pub struct Reverted {
    /// The snapshot's name.
    pub name: String,
    /// Its identity.
    pub id: Uuid,
    /// The domain's name.
    pub domain: String,
    /// The domain's number now.
    pub domid: Option<u32>,
    /// Whether it was left paused.
    pub paused: bool,
    /// How long everything took, in milliseconds.
    pub total_ms: f64,
    /// Each disk of the snapshot.
    pub disks: Vec<RevertedDisk>,
    /// Disk entries that the domain's xl configuration file needs now.
    pub cfg_disks: Vec<String>,
}

/// What `revert` has done to one disk.
#[derive(Debug, Clone, Serialize)]
pub struct RevertedDisk {
    /// The guest's name of it.
    pub vdev: String,
    /// The image the guest goes on with.
    pub runs_on: PathBuf,
    /// Where that stays which the guest wrote since the snapshot.
    pub kept: Option<String>,
    /// Why it was not put back.
    pub why: Option<String>,
}

impl fmt::Display for Reverted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let domid = self.domid.map(|domid| format!("domain {domid}")).unwrap_or("gone".into());
        let paused = if self.paused { ", paused" } else { "" };
        writeln!(f, "{} ({domid}{paused}) is back at snapshot {}", self.domain, self.name)?;
        for disk in &self.disks {
            match &disk.why {
                Some(why) => writeln!(f, "  {:<7} not put back: {why}", disk.vdev)?,
                None => writeln!(f, "  {:<7} {}", disk.vdev, quote(&disk.runs_on))?,
            }
            if let Some(kept) = &disk.kept {
                writeln!(f, "          what was there before stays in {kept}")?;
            }
        }
        writeln!(f, "  total   {:.1} s", self.total_ms / 1000.0)?;
        write_cfg_disks(f, &self.domain, &self.cfg_disks)
    }
}

/// What `show` has found. Its JSON form is a contract.
#[derive(Debug, Clone, Serialize)]
pub struct Shown {
    /// The image.
    pub image: String,
    /// Whether it is compressed.
    pub compressed: bool,
    /// What was checked of all its bytes, if they were read: `checksums`, or `structure` if it has
    /// none.
    pub verified: Option<&'static str>,
    /// The record in it.
    pub record: Record,
    /// The domain's virtual processors.
    pub vcpus: u64,
    /// Whether every disk can be put back.
    pub revertible: bool,
    /// Each disk's state now, in the order of the record.
    pub disks: Vec<ShownDisk>,
}

/// One disk of a snapshot as it is now.
#[derive(Debug, Clone, Serialize)]
pub struct ShownDisk {
    /// The guest's name of it.
    pub vdev: String,
    /// `present`, `changed`, `missing` or `none` (not in the snapshot).
    pub state: &'static str,
    /// Why it is not `present`.
    pub why: Option<String>,
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        self.write(&mut text)?;
        f.write_str(&printable(&text))
    }
}

impl Shown {
    fn write(&self, f: &mut String) -> fmt::Result {
        let record = &self.record;
        let domain = &record.domain;
        writeln!(f, "Snapshot {} of {}", record.name, domain.name)?;
        if !record.description.is_empty() {
            writeln!(f, "  {}", record.description.replace('\n', "\n  "))?;
        }
        writeln!(f, "  taken   {:.0}{}", record.created, if record.live { ", live" } else { "" })?;
        writeln!(f, "  id      {}", record.id)?;
        writeln!(
            f,
            "  domain  {}, {}, {} MiB, {} vcpus, Xen {}",
            domain.uuid,
            domain.guest_type,
            domain.memory_kib / 1024,
            self.vcpus,
            record.xen
        )?;
        let how = if self.compressed { ", compressed" } else { "" };
        writeln!(f, "  memory  {}{how}", quote(&self.image))?;
        match self.verified {
            Some("checksums") => {
                writeln!(f, "          all of it was read, its checksums are right")?
            }
            Some(_) => writeln!(f, "          all of it was read; it has no checksums")?,
            None => {}
        }
        for (disk, now) in record.disks.iter().zip(&self.disks) {
            let how = match &disk.snapshot {
                Kept::None { .. } => "not in the snapshot",
                kept => kept.kind(),
            };
            let path = quote(&disk.path);
            writeln!(f, "  {:<7} {how}, {path}: {}", disk.vdev, now.state)?;
            if let Some(why) = &now.why {
                writeln!(f, "          {why}")?;
            }
        }
        let verdict = if self.revertible { "can be reverted to" } else { "cannot be reverted to" };
        writeln!(f, "  {verdict}")
    }
}

fn write_cfg_disks(f: &mut fmt::Formatter<'_>, domain: &str, entries: &[String]) -> fmt::Result {
    if entries.is_empty() {
        return Ok(());
    }
    writeln!(
        f,
        "The xl configuration file of {domain} is not known here. Before its next xl create,"
    )?;
    writeln!(f, "give it these disk entries, or it will write into the frozen images:")?;
    entries.iter().try_for_each(|entry| writeln!(f, "  {}", literal(entry, "'")))
}

/// `text` as it may stand on a terminal: names and words in it come from images, tools and guests.
fn printable(text: &str) -> String {
    text.replace(|c: char| c.is_control() && c != '\n', " ")
}

/// An error as the user reads it: the chain once, what to do, what is left.
pub fn error_text(error: &Error) -> String {
    let mut text = format!("xl-snapshot: {}", error.chain().join(": "));
    for left in &error.left {
        // Writing to a String cannot fail.
        let _ = write!(text, "\nleft:  {}", left.what);
        if let Some(command) = &left.command {
            let _ = write!(text, "\n       {command}");
        }
    }
    if let Some(hint) = &error.hint {
        let _ = write!(text, "\nhint:  {hint}");
    }
    printable(&text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::sample;

    #[test]
    fn an_image_does_not_control_the_terminal() {
        let mut record = sample();
        record.description = "one\n\x1b[2J\x1b]0;two\x07\u{9b}31m".into();
        record.domain.name = "web\r1".into();
        let image = "a".to_owned();
        let shown = Shown {
            image,
            record,
            vcpus: 1,
            revertible: false,
            disks: Vec::new(),
            compressed: false,
            verified: None,
        };
        let text = shown.to_string();
        assert!(text.contains("Snapshot s1 of web 1\n  one\n   [2J ]0;two  31m\n"), "{text:?}");
        let error = Error::refused("a\x1b[2Jb").because("c\x07").hint("d\n\x08");
        assert_eq!(error_text(&error), "xl-snapshot: a [2Jb: c \nhint:  d\n ");
    }

    #[test]
    fn an_entry_can_be_pasted_into_a_configuration() {
        let mut text = String::new();
        struct Lines(Vec<String>);
        impl fmt::Display for Lines {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_cfg_disks(f, "web1", &self.0)
            }
        }
        let entries = ["vdev=xvda,target=/a".to_owned(), r"vdev=xvdb,target=/it's \".to_owned()];
        let _ = write!(text, "{}", Lines(entries.to_vec()));
        assert!(
            text.ends_with("  'vdev=xvda,target=/a'\n  'vdev=xvdb,target=/it\\'s \\\\'\n"),
            "{text}"
        );
    }
}
