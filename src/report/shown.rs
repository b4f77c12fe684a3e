//! What `show` has found.

use std::fmt;

use serde::Serialize;

use super::{Rows, printable, size_words};
use crate::need::{Severity, Trouble};
use crate::record::Record;
use crate::tool::quote;

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
            self.troubles.iter().filter(|trouble| trouble.rank != Severity::Lost).collect();
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

#[cfg(test)]
mod tests {
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
}
