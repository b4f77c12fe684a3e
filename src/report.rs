//! What the user gets to see: messages and progress on standard error, the result on standard
//! output, for people or as JSON.

mod backup;
mod compacted;
mod deleted;
mod exported;
mod messages;
mod progress;
mod pruned;
mod rehearsed;
mod serving;
mod voice;

use std::fmt;
use std::path::PathBuf;

use indicatif::BinaryBytes;
use serde::Serialize;
use uuid::Uuid;

pub use self::backup::Backup;
pub use self::compacted::{Compaction, Compactions};
pub use self::deleted::{Deleted, DeletedDisk, Deletions, Failed, Merge};
pub use self::exported::{Exported, ExportedDisk};
pub use self::messages::{Reporter, error_text, print_error};
pub use self::progress::Meter;
pub use self::pruned::{Pruned, PrunedSnapshot};
pub use self::rehearsed::Rehearsed;
pub use self::serving::Serving;
use crate::disk::kind::{Content, Role};
use crate::names::is_plain;
use crate::need::{Rank, Trouble};
use crate::plan::{Plan, Step};
use crate::quiesce::Quiesced;
use crate::record::{DisksOnly, Record};
use crate::tool::quote;
use crate::tool::volumes::device;
use crate::xlcfg::literal;

/// What `create` has done. Its JSON form is a contract.
#[derive(Debug, Clone, Serialize)]
pub struct Created {
    /// The snapshot's name.
    pub name: String,
    /// Its identity.
    pub id: Uuid,
    /// The domain's name.
    pub domain: String,
    /// The domain's number, if it runs.
    pub domid: Option<u32>,
    /// Whether memory was copied while the guest ran.
    pub live: bool,
    /// Whether the domain was restored from the image, on its new disks.
    pub restored: bool,
    /// The record of a snapshot without memory.
    pub record: Option<PathBuf>,
    /// What its disks are worth: `offline`, `quiesced` or `crash-consistent`.
    pub disks_only: Option<DisksOnly>,
    /// How the guest's file systems were frozen, if they were.
    pub quiesced: Option<Quiesced>,
    /// The memory image; absent on a pipe, and if there is none.
    pub image: Option<PathBuf>,
    /// Its length in bytes; absent on a pipe.
    pub image_size: Option<u64>,
    /// What it takes on its file system, in bytes: pages of zeros take nothing.
    pub size_on_disk: Option<u64>,
    /// How much of that it shares with other images, in bytes; not known on all file systems.
    pub shared: Option<u64>,
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

impl fmt::Display for CfgReplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, backup) = (quote(&self.path), quote(&self.backup));
        write!(f, "{path} names the new images; the old file is kept as {backup}")
    }
}

/// An xl configuration file that was not given other images.
#[derive(Debug, Clone, Serialize)]
pub struct CfgTrouble {
    /// The file.
    pub path: PathBuf,
    /// Why not.
    pub why: String,
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
    /// Whether that is another one than before.
    #[serde(skip)]
    pub moved: bool,
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
                let snapshot = disk.snapshot.kind();
                let image = match snapshot.content() {
                    Content::Volume(volume) => device(volume.group, volume.name),
                    content => content.frozen_file(&disk.path).unwrap_or(&disk.path).to_owned(),
                };
                let runs_on = snapshot.new_file().filter(|file| file.role != Role::Copy);
                CreatedDisk {
                    vdev: disk.vdev.clone(),
                    snapshot: disk.snapshot.name(),
                    image,
                    runs_on: runs_on.map_or(disk.path.as_path(), |file| file.path).to_owned(),
                    why: snapshot.why_left_out().map(str::to_owned),
                    moved: runs_on.is_some(),
                }
            })
            .collect()
    }
}

/// The length of an image, what it takes, and what of that it shares.
fn size_words(size: u64, on_disk: Option<u64>, shared: Option<u64>) -> String {
    let mut words = BinaryBytes(size).to_string();
    if let Some(on_disk) = on_disk.filter(|on_disk| *on_disk < size) {
        words.push_str(&format!(", {} on disk", BinaryBytes(on_disk)));
    }
    if let Some(shared) = shared.filter(|shared| *shared > 0) {
        words.push_str(&format!(", {} of that shared", BinaryBytes(shared)));
    }
    words
}

impl fmt::Display for Created {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let live = if self.live { ", live" } else { "" };
        let domid = self.domid.map(|domid| format!("domain {domid}{live}"));
        let domid = domid.unwrap_or("which does not run".into());
        writeln!(f, "Snapshot {} of {} ({domid})", self.name, self.domain)?;
        let mut rows = Rows::default();
        rows.add(
            "memory",
            match (&self.image, self.image_size, self.disks_only) {
                (_, _, Some(kind)) => format!("none: {kind}"),
                (Some(image), Some(size), None) => {
                    format!(
                        "{}  {}",
                        quote(image),
                        size_words(size, self.size_on_disk, self.shared)
                    )
                }
                _ => "to standard output".into(),
            },
        );
        self.record.iter().for_each(|record| rows.add("record", quote(record)));
        self.quiesced.iter().for_each(|quiesced| rows.add("frozen", quiesced.to_string()));
        for disk in &self.disks {
            let (image, runs_on) = (quote(&disk.image), quote(&disk.runs_on));
            rows.add(
                &disk.vdev,
                match &disk.why {
                    Some(why) => format!("left out: {why}"),
                    None if disk.moved => {
                        format!("{image} is frozen; the guest now runs on {runs_on}")
                    }
                    None if disk.image == disk.runs_on => {
                        format!("{} snapshot {} in {image}", disk.snapshot, self.name)
                    }
                    None => format!("{image} is the snapshot of {runs_on}"),
                },
            );
        }
        if let Some(domid) = self.domid.filter(|_| self.restored) {
            rows.add("domain", format!("restored from the image, as domain {domid}"));
        }
        let unknown = if self.disks_only.is_some() { "none" } else { "unknown" };
        let pause = self.pause_ms.map(|ms| format!("{ms:.0} ms")).unwrap_or(unknown.into());
        rows.add("pause", format!("{pause} of {:.1} s in all", self.total_ms / 1000.0));
        self.cfg.iter().for_each(|cfg| rows.add("config", cfg.to_string()));
        rows.fmt(f)?;
        write_cfg_disks(f, &self.domain, None, &self.cfg_disks)
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
    /// The domain's UUID.
    pub uuid: Uuid,
    /// The domain's number now.
    pub domid: Option<u32>,
    /// The domain of the snapshot, if the one that was restored is another one beside it.
    pub clone_of: Option<String>,
    /// Whether it was left paused.
    pub paused: bool,
    /// Whether it goes on with its memory; else it was started anew.
    pub memory: bool,
    /// How the guest's file systems were frozen for the snapshot, if they were.
    pub quiesced: Option<Quiesced>,
    /// Whether it was restored while the old one ran.
    pub restored_first: bool,
    /// How long there was no running domain, in milliseconds: from the pause or the destruction of the old one
    /// until the new one ran. Not known if none ran before, or if the new one was left paused.
    pub outage_ms: Option<f64>,
    /// How long everything took, in milliseconds.
    pub total_ms: f64,
    /// Each disk of the snapshot.
    pub disks: Vec<RevertedDisk>,
    /// The domain's xl configuration file, if it names other images now.
    pub cfg: Option<CfgReplaced>,
    /// The domain's xl configuration file, if it is known and could not be made to.
    pub cfg_trouble: Option<CfgTrouble>,
    /// Disk entries that the domain's xl configuration file needs now, if it was not rewritten.
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
        write!(f, "{} ({domid}{paused}) ", self.domain)?;
        let without = match &self.clone_of {
            None => {
                writeln!(f, "is back at snapshot {}", self.name)?;
                "not put back"
            }
            Some(old) => {
                writeln!(f, "is a new domain from snapshot {} of {old}", self.name)?;
                "shared"
            }
        };
        let mut rows = Rows::default();
        if !self.memory {
            rows.add("memory", match self.quiesced {
                None => "none: it was started anew",
                Some(_) => "none: it was started anew, from file systems that were frozen for the snapshot",
            });
        }
        for disk in &self.disks {
            rows.add(
                &disk.vdev,
                match &disk.why {
                    Some(why) => format!("{without}: {why}"),
                    None => quote(&disk.runs_on),
                },
            );
            if let Some(kept) = &disk.kept {
                rows.add("", format!("the previous contents are kept in {kept}"));
            }
        }
        if let Some(ms) = self.outage_ms {
            rows.add("outage", format!("{ms:.0} ms"));
        }
        rows.add("total", format!("{:.1} s", self.total_ms / 1000.0));
        self.cfg.iter().for_each(|cfg| rows.add("config", cfg.to_string()));
        rows.fmt(f)?;
        let Some(old) = &self.clone_of else {
            let trouble = self.cfg_trouble.as_ref();
            return write_cfg_disks(f, &self.domain, trouble, &self.cfg_disks);
        };
        let (name, uuid) = (&self.domain, self.uuid);
        writeln!(f, "{name} has no xl configuration file. To start it later, copy that of {old},")?;
        writeln!(f, "give it the name {name}, uuid=\"{uuid}\" and these disk entries:")?;
        self.cfg_disks.iter().try_for_each(|entry| writeln!(f, "  {}", literal(entry, "'")))
    }
}

/// What `show` has found. Its JSON form is a contract.
#[derive(Debug, Clone, Serialize)]
pub struct Shown {
    /// The image, or the record of a snapshot without memory.
    pub image: String,
    /// Whether it is compressed.
    pub compressed: bool,
    /// The length of the image in bytes; not known of standard input, and without memory.
    pub size: Option<u64>,
    /// What it takes on its file system, in bytes.
    pub size_on_disk: Option<u64>,
    /// How much of that it shares with other files, in bytes; not known on all file systems.
    pub shared: Option<u64>,
    /// What was checked of all its bytes, if they were read: `checksums`, or `structure` if it has
    /// none.
    pub verified: Option<&'static str>,
    /// The record in it.
    pub record: Record,
    /// The domain's virtual processors; not known without an image.
    pub vcpus: Option<u64>,
    /// Whether a revert would not be refused now, as far as can be seen.
    pub revertible: bool,
    /// Each disk's state now, in the order of the record.
    pub disks: Vec<ShownDisk>,
    /// What a revert would be refused for now: what is wrong with disks, and all else, such as a bridge
    /// that is not there.
    pub troubles: Vec<Trouble>,
    /// What was not looked at, because there is no Xen here.
    pub unseen: Vec<String>,
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
    /// What has changed since without harm to the snapshot.
    pub note: Option<String>,
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let record = &self.record;
        let domain = &record.domain;
        writeln!(f, "Snapshot {} of {}", record.name, printable(&domain.name))?;
        if !record.description.is_empty() {
            writeln!(f, "  {}", printable(&record.description).replace('\n', "\n  "))?;
        }
        let mut rows = Rows::default();
        let live = if record.live { ", live" } else { "" };
        rows.add("taken", format!("{:.0}{live}", record.created));
        rows.add("id", record.id.to_string());
        let uuid = domain.uuid;
        let uuid = if uuid.is_nil() { String::new() } else { format!("{uuid}, ") };
        let mib = domain.memory_kib / 1024;
        let vcpus = self.vcpus.map(|vcpus| format!(", {vcpus} vcpus")).unwrap_or_default();
        let xen = if record.xen.is_empty() { "" } else { ", Xen " };
        let kind = domain.guest_type;
        rows.add("domain", format!("{uuid}{kind}, {mib} MiB{vcpus}{xen}{}", record.xen));
        domain.cfg.iter().for_each(|cfg| rows.add("config", quote(cfg)));
        match record.disks_only {
            Some(kind) => {
                rows.add("memory", format!("none: {kind}"));
                rows.add("record", quote(&self.image));
                record
                    .quiesced
                    .iter()
                    .for_each(|quiesced| rows.add("frozen", quiesced.to_string()));
            }
            None => {
                let compressed = if self.compressed { ", compressed" } else { "" };
                rows.add("memory", format!("{}{compressed}", quote(&self.image)));
                if let Some(size) = self.size {
                    rows.add("size", size_words(size, self.size_on_disk, self.shared));
                }
            }
        }
        match self.verified {
            Some("checksums") => rows.add("", "all of it was read, its checksums are right"),
            Some(_) => rows.add("", "read completely; it has no checksums"),
            None => {}
        }
        // What is lost of a disk stands beside it, unless a trouble with a hint has the same cause.
        let told: Vec<_> =
            self.troubles.iter().filter(|trouble| trouble.rank != Rank::Lost).collect();
        for (disk, now) in record.disks.iter().zip(&self.disks) {
            let how = match disk.snapshot.is_left_out() {
                true => "not in the snapshot",
                false => disk.snapshot.name(),
            };
            rows.add(&disk.vdev, format!("{how}, {}: {}", quote(&disk.path), now.state));
            let about = format!("Disk {} ", disk.vdev);
            let is_told = |why: &String| {
                told.iter().any(|t| t.about.starts_with(&about) && t.why.ends_with(why.as_str()))
            };
            if let Some(why) = now.why.as_ref().filter(|why| !is_told(why)) {
                rows.add("", why);
            }
            if let Some(note) = &now.note {
                rows.add("", note);
            }
        }
        for trouble in told {
            rows.add("trouble", trouble.to_string());
            rows.add("", format!("hint: {}", trouble.hint));
        }
        for unseen in &self.unseen {
            rows.add("unknown", unseen);
        }
        rows.fmt(f)?;
        let verdict = match (self.revertible, record.is_export()) {
            (true, true) if record.disks_only.is_some() => "its disks are whole",
            (true, true) => "a new domain can be created from it: revert --as",
            (false, true) => "no new domain can be created from it",
            (true, false) => "can be reverted to",
            (false, false) => "cannot be reverted to",
        };
        writeln!(f, "  {verdict}")
    }
}

/// What `--dry-run` prints as JSON. Its form is a contract; the words of the steps are not.
#[derive(Debug, Clone, Serialize)]
pub struct Planned {
    /// What the plan is for.
    pub title: String,
    /// Steps that can be undone.
    pub prepare: Vec<String>,
    /// The step that makes it real, if there is one.
    pub commit: Vec<String>,
    /// What must follow it.
    pub onward: Vec<String>,
    /// What ends it.
    pub finish: Vec<String>,
    /// What `--clean` removes before.
    pub clean: Vec<String>,
    /// What the user should know.
    pub notes: Vec<String>,
}

impl From<&Plan> for Planned {
    fn from(plan: &Plan) -> Self {
        let words = |steps: &[Step]| steps.iter().map(ToString::to_string).collect();
        Planned {
            title: plan.title.clone(),
            prepare: words(&plan.prepare),
            commit: words(plan.commit.as_slice()),
            onward: words(&plan.onward),
            finish: words(&plan.finish),
            clean: Vec::new(),
            notes: plan.notes.clone(),
        }
    }
}

impl Planned {
    /// The same plan, once that of `--clean` has been carried out.
    #[must_use]
    pub fn after(self, clean: &Plan) -> Self {
        Planned { clean: Planned::from(clean).finish, ..self }
    }
}

/// A report as `--json` prints it.
pub fn json_text(report: &impl Serialize) -> String {
    serde_json::to_string_pretty(report).expect("reports have only plain values") + "\n"
}

/// The lines of a report: on the left what each is about, and the columns line up.
#[derive(Default)]
struct Rows(Vec<(String, String)>);

impl Rows {
    fn add(&mut self, about: impl Into<String>, text: impl Into<String>) {
        self.0.push((about.into(), text.into()));
    }
}

impl fmt::Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let longest = self.0.iter().map(|(about, _)| about.chars().count()).max();
        // So that short reports look alike.
        let width = longest.unwrap_or_default().max("memory".len());
        for (about, text) in &self.0 {
            let text =
                printable(text).replace('\n', &format!("\n{:width$}", "", width = width + 4));
            writeln!(f, "  {:<width$}  {text}", printable(about))?;
        }
        Ok(())
    }
}

fn write_cfg_disks(
    f: &mut fmt::Formatter<'_>,
    domain: &str,
    trouble: Option<&CfgTrouble>,
    entries: &[String],
) -> fmt::Result {
    if entries.is_empty() {
        return Ok(());
    }
    match trouble {
        None => write!(f, "The xl configuration file of {domain} is not known here.")?,
        Some(CfgTrouble { path, why }) => {
            writeln!(f, "The xl configuration file {} was not rewritten:", quote(path))?;
            writeln!(f, "{why}.")?;
        }
    }
    let gap = if trouble.is_none() { " " } else { "" };
    writeln!(f, "{gap}Before its next xl create,")?;
    writeln!(f, "give it these disk entries, or it will write into the frozen images:")?;
    entries.iter().try_for_each(|entry| writeln!(f, "  {}", literal(entry, "'")))
}

/// `text` as it may stand on a terminal: names and words in it come from images, tools and guests. Lines stay.
pub(crate) fn printable(text: &str) -> String {
    text.replace(|c: char| c != '\n' && !is_plain(c), " ")
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;
    use crate::support::record::sample;

    #[test]
    fn an_image_does_not_control_the_terminal() {
        let mut record = sample();
        record.description = "one\n\x1b[2J\x1b]0;two\x07\u{9b}31m".into();
        record.domain.name = "web\r1".into();
        let image = "a".to_owned();
        let shown = Shown {
            image,
            record,
            vcpus: Some(1),
            revertible: false,
            disks: Vec::new(),
            troubles: Vec::new(),
            unseen: Vec::new(),
            compressed: false,
            size: None,
            size_on_disk: None,
            shared: None,
            verified: None,
        };
        let text = shown.to_string();
        assert!(text.contains("Snapshot s1 of web 1\n  one\n   [2J ]0;two  31m\n"), "{text:?}");
    }

    #[test]
    fn columns_line_up() {
        let mut rows = Rows::default();
        rows.add("xvda", "a");
        rows.add("", "more\nlines");
        rows.add("c0d127p15", "b\x1b");
        let text = rows.to_string();
        let lines: Vec<_> = text.lines().collect();
        let expected =
            ["  xvda       a", "             more", "             lines", "  c0d127p15  b "];
        assert_eq!(lines, expected);
        let mut rows = Rows::default();
        rows.add("xvda", "a");
        assert_eq!(rows.to_string(), "  xvda    a\n");
    }

    #[test]
    fn an_entry_can_be_pasted_into_a_configuration() {
        let mut text = String::new();
        struct Lines(Vec<String>);
        impl fmt::Display for Lines {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_cfg_disks(f, "web1", None, &self.0)
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
