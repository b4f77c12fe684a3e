//! The list as people and programs get it.

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;
use std::path::PathBuf;

use indicatif::BinaryBytes;
use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use crate::record::DisksOnly;
use crate::report::printable;
use crate::tool::quote;

/// How wide a line should be.
const WIDTH: usize = 80;

/// What `list` has found. Its JSON form is a contract.
#[derive(Debug, Clone, Serialize)]
pub struct Listing {
    /// The snapshots, by domain and time.
    pub snapshots: Vec<Snapshot>,
    /// The domains that run.
    pub domains: Vec<Current>,
    /// What is no snapshot: with `--all` everything, without it what should not be missed.
    pub others: Vec<Other>,
    /// How many of those are not shown.
    pub hidden: usize,
    /// What could not be looked at.
    pub unseen: Vec<String>,
}

/// A snapshot.
#[derive(Debug, Clone, Serialize)]
pub struct Snapshot {
    /// The domain's name now, as far as it is known.
    #[serde(skip)]
    pub group: String,
    /// The domain's name when it was taken.
    pub domain: String,
    /// The domain's UUID.
    pub uuid: Uuid,
    /// Its name.
    pub name: String,
    /// Its identity.
    pub id: Uuid,
    /// When it was asked for.
    pub created: Timestamp,
    /// The user's words.
    pub description: String,
    /// The memory image, or the record of one without memory.
    pub image: PathBuf,
    /// Whether it has its memory.
    pub memory: bool,
    /// If it has none, what its disks are worth.
    pub disks_only: Option<DisksOnly>,
    /// The length of the image in bytes.
    pub size: u64,
    /// What the image takes on its file system, in bytes.
    pub size_on_disk: u64,
    /// How much of that it shares with other files, in bytes; not known on all file systems.
    pub shared: Option<u64>,
    /// Whether it can be reverted to, as far as a look at headers tells.
    pub state: State,
    /// Why not.
    pub why: Vec<String>,
    /// Whether the running domain goes on from it.
    pub current: bool,
    /// The snapshot it descends from.
    pub parent: Option<Uuid>,
    /// What tells that.
    pub parent_by: Told,
    /// Each disk.
    pub disks: Vec<DiskState>,
}

/// Whether a snapshot, or a disk of it, can be reverted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It can.
    Good,
    /// It cannot.
    Broken,
    /// It was never completed.
    Unfinished,
    /// More would have to be read to know.
    Unread,
    /// The disk is not in the snapshot.
    None,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            State::Good => "good",
            State::Broken => "broken",
            State::Unfinished => "unfinished",
            State::Unread => "unread",
            State::None => "none",
        }
    }
}

/// What tells from which snapshot something descends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Told {
    /// The disks, by what they rest on.
    Disks,
    /// Its record: the disks showed it when it was taken.
    Record,
    /// The mark on a disk's file.
    Mark,
    /// Nothing but the order of dates.
    Dates,
    /// It descends from none.
    None,
    /// It descends from one that is not here.
    Gone,
    /// Its disks descend from different ones.
    Differ,
    /// Nothing that could be believed.
    Unknown,
}

/// A disk of a snapshot.
#[derive(Debug, Clone, Serialize)]
pub struct DiskState {
    /// The guest's name of it.
    pub vdev: String,
    /// `internal`, `external`, `lvm`, `reflink`, `vhd` or `none`.
    pub snapshot: &'static str,
    /// The file or device that holds its content.
    pub image: PathBuf,
    /// What that takes, in bytes, where it holds nothing else.
    pub size_on_disk: Option<u64>,
    /// Whether it can be put back.
    pub state: State,
    /// Why not, or why it was left out.
    pub why: Option<String>,
}

/// A domain that runs, and the snapshot from which it goes on.
#[derive(Debug, Clone, Serialize)]
pub struct Current {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: Uuid,
    /// Its number.
    pub domid: Option<u32>,
    /// That snapshot.
    pub id: Option<Uuid>,
    /// What tells that.
    pub told: Told,
    /// The snapshot of another domain whose clone it is.
    pub clone_of: Option<Uuid>,
    /// If its disks go on from different snapshots, each that tells.
    pub mixed: Vec<Apart>,
}

/// A disk of a domain whose disks go on from different snapshots.
#[derive(Debug, Clone, Serialize)]
pub struct Apart {
    /// The guest's name of it.
    pub vdev: String,
    /// The snapshot; none of those that are here if it is null.
    pub id: Option<Uuid>,
}

/// What something is that is no snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OtherKind {
    /// An image that cannot be read.
    Damaged,
    /// A snapshot whose deletion was cut short.
    Deleting,
    /// A second snapshot of one name.
    Collision,
    /// An unfinished image.
    Leftover,
    /// A second image of one snapshot.
    Copy,
    /// A snapshot of a disk without an image.
    Disk,
    /// What a disk held before a revert.
    Kept,
    /// A file of a snapshot that nobody names.
    Stray,
    /// A save file of xl.
    SaveFile,
    /// A file of another kind.
    Foreign,
}

impl OtherKind {
    /// Whether it is shown without `--all`.
    pub(super) fn is_urgent(self) -> bool {
        matches!(self, OtherKind::Damaged | OtherKind::Deleting | OtherKind::Collision)
    }

    fn word(self) -> &'static str {
        match self {
            OtherKind::Damaged => "damaged",
            OtherKind::Deleting => "deleting",
            OtherKind::Collision => "collision",
            OtherKind::Leftover => "leftover",
            OtherKind::Copy => "copy",
            OtherKind::Disk => "disk",
            OtherKind::Kept => "kept",
            OtherKind::Stray => "stray",
            OtherKind::SaveFile => "savefile",
            OtherKind::Foreign => "foreign",
        }
    }
}

/// Something that is no snapshot.
#[derive(Debug, Clone, Serialize)]
pub struct Other {
    /// What it is.
    pub kind: OtherKind,
    /// The domain, where that is known.
    pub domain: Option<String>,
    /// Its UUID; nil where that is not known.
    #[serde(skip)]
    pub uuid: Uuid,
    /// The file or device.
    pub path: PathBuf,
    /// The name of the snapshot, where it is one.
    pub name: Option<String>,
    /// Its identity.
    pub id: Option<Uuid>,
    /// When it was taken.
    pub created: Option<Timestamp>,
    /// What is to be said of it.
    pub why: String,
}

impl Snapshot {
    /// The kinds of its disks: `2 internal, lvm`.
    fn kinds(&self) -> String {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        let kept = self.disks.iter().filter(|disk| disk.snapshot != "none");
        kept.for_each(|disk| *counts.entry(disk.snapshot).or_default() += 1);
        let words = counts.iter().map(|(kind, count)| match count {
            1 => (*kind).to_owned(),
            count => format!("{count} {kind}"),
        });
        let text = words.collect::<Vec<_>>().join(", ");
        if text.is_empty() { "none".into() } else { text }
    }

    fn size(&self) -> String {
        match self.memory {
            true => {
                let size = BinaryBytes(self.size_on_disk);
                match self.shared.filter(|shared| *shared > 0) {
                    Some(shared) => format!("{size} ({} shared)", BinaryBytes(shared)),
                    None => size.to_string(),
                }
            }
            false => "no memory".into(),
        }
    }
}

fn taken(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M").to_string()
}

impl Listing {
    fn name_of(&self, id: Uuid) -> Option<&Snapshot> {
        self.snapshots.iter().find(|snapshot| snapshot.id == id)
    }

    /// `*` for the one from which the domain goes on, `?` if only dates tell.
    fn sign(&self, snapshot: &Snapshot) -> &'static str {
        let domain = self.domains.iter().find(|domain| domain.id == Some(snapshot.id));
        match domain.map(|domain| domain.told) {
            Some(Told::Dates) => "?",
            Some(_) if snapshot.current => "*",
            _ => " ",
        }
    }

    fn words_of(&self, id: Option<Uuid>) -> String {
        match id {
            None => "none".into(),
            Some(id) => self.name_of(id).map_or_else(|| id.to_string(), |s| s.name.clone()),
        }
    }

    /// What is to be said of a domain as it is now.
    fn note(&self, domain: &Current) -> Option<String> {
        let name = printable(&domain.name);
        if !domain.mixed.is_empty() {
            let disks = domain
                .mixed
                .iter()
                .map(|disk| format!("{} from {}", disk.vdev, self.words_of(disk.id)));
            let disks = disks.collect::<Vec<_>>().join(", ");
            return Some(format!("{name} is mixed: it goes on with {disks}"));
        }
        if let Some(id) = domain.clone_of {
            let of = match self.name_of(id) {
                Some(snapshot) => format!("{}/{}", printable(&snapshot.group), snapshot.name),
                None => id.to_string(),
            };
            return Some(format!("{name} is a clone of {of}"));
        }
        (domain.told == Told::Dates).then(|| {
            let snapshot = self.words_of(domain.id);
            format!("{name}: nothing on its disks tells where it goes on from; {snapshot} is the youngest")
        })
    }

    fn write_rest(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let notes: Vec<_> = self.domains.iter().filter_map(|domain| self.note(domain)).collect();
        for note in &notes {
            write_wrapped(f, note, 0, 2)?;
        }
        for other in &self.others {
            let path = quote(&other.path);
            let name = other.name.as_ref().map(|name| format!(" {name:?}")).unwrap_or_default();
            let time = other.created.map(|time| format!(" of {}", taken(time)));
            let time = time.unwrap_or_default();
            let line = format!("{}:{name}{time} {path}", other.kind.word());
            writeln!(f, "{}", printable(&line))?;
            write_wrapped(f, &other.why, 4, 4)?;
        }
        for unseen in &self.unseen {
            write_wrapped(f, &format!("unknown: {unseen}"), 0, 2)?;
        }
        Ok(())
    }
}

/// Writes words in lines that are not too long, if the words are not.
fn write_wrapped(f: &mut fmt::Formatter<'_>, text: &str, first: usize, next: usize) -> fmt::Result {
    let text = printable(text).replace('\n', " ");
    let mut line = " ".repeat(first);
    let mut is_empty = true;
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        if !is_empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
            writeln!(f, "{line}")?;
            line = " ".repeat(next);
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    writeln!(f, "{line}")
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = ["", "DOMAIN", "NAME", "TAKEN (UTC)", "SIZE", "DISKS", "STATE"];
        let rows: Vec<[String; 7]> = self
            .snapshots
            .iter()
            .map(|snapshot| {
                [
                    self.sign(snapshot).into(),
                    printable(&snapshot.group),
                    snapshot.name.clone(),
                    taken(snapshot.created),
                    snapshot.size(),
                    snapshot.kinds(),
                    snapshot.state.word().into(),
                ]
            })
            .collect();
        let mut widths = header.map(|word| word.chars().count());
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        if !rows.is_empty() {
            write_row(f, &header.map(str::to_owned), widths)?;
        }
        for (row, snapshot) in rows.iter().zip(&self.snapshots) {
            write_row(f, row, widths)?;
            for why in &snapshot.why {
                write_wrapped(f, why, 4, 6)?;
            }
        }
        self.write_rest(f)
    }
}

fn write_row(f: &mut fmt::Formatter<'_>, cells: &[String; 7], widths: [usize; 7]) -> fmt::Result {
    let mut line = format!("{:1}", cells[0]);
    for (at, (cell, width)) in cells.iter().zip(widths).enumerate().skip(1) {
        let gap = if at == 1 { " " } else { "  " };
        // Sizes are compared by their digits.
        let _ = match at {
            4 => write!(line, "{gap}{cell:>width$}"),
            _ => write!(line, "{gap}{cell:<width$}"),
        };
    }
    writeln!(f, "{}", line.trim_end())
}

/// The same as a tree.
#[derive(Debug, Clone, Copy)]
pub struct Tree<'a>(pub &'a Listing);

impl fmt::Display for Tree<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tree(listing) = self;
        let mut groups: Vec<&str> =
            listing.snapshots.iter().map(|snapshot| snapshot.group.as_str()).collect();
        groups.dedup();
        for group in groups {
            writeln!(f, "{}", printable(group))?;
            let here: Vec<&Snapshot> =
                listing.snapshots.iter().filter(|snapshot| snapshot.group == group).collect();
            let has = |id: Uuid| here.iter().any(|snapshot| snapshot.id == id);
            let is_root = |s: &&&Snapshot| s.parent.is_none_or(|parent| !has(parent));
            let roots: Vec<&Snapshot> = here.iter().filter(is_root).copied().collect();
            // Not by calls: a chain may be as long as there are snapshots.
            let mut children: BTreeMap<Uuid, Vec<&Snapshot>> = BTreeMap::new();
            for snapshot in &here {
                let parent = snapshot.parent.filter(|parent| has(*parent));
                parent.into_iter().for_each(|id| children.entry(id).or_default().push(snapshot));
            }
            let last = roots.len();
            let mut todo: Vec<(String, &Snapshot, bool)> = Vec::new();
            for (at, root) in roots.iter().enumerate().rev() {
                todo.push((String::new(), root, at + 1 == last));
            }
            while let Some((before, snapshot, is_last)) = todo.pop() {
                let branch = if is_last { "`-" } else { "|-" };
                writeln!(
                    f,
                    "{before}{branch}{} {}",
                    listing.sign(snapshot),
                    self.words(snapshot, &has)
                )?;
                let below = if is_last { "   " } else { "|  " };
                let all = children.get(&snapshot.id).map_or(&[][..], Vec::as_slice);
                for (at, child) in all.iter().enumerate().rev() {
                    todo.push((format!("{before}{below}"), child, at + 1 == all.len()));
                }
            }
        }
        listing.write_rest(f)
    }
}

impl Tree<'_> {
    fn words(&self, snapshot: &Snapshot, has: &dyn Fn(Uuid) -> bool) -> String {
        let mut words = format!(
            "{}  {}  {}  {}",
            snapshot.name,
            taken(snapshot.created),
            snapshot.size(),
            snapshot.state.word()
        );
        let parent = snapshot.parent.filter(|parent| !has(*parent));
        let elsewhere = parent.and_then(|id| self.0.name_of(id));
        let told = match (snapshot.parent_by, elsewhere) {
            (_, Some(parent)) => {
                format!(", from {}/{}", printable(&parent.group), parent.name)
            }
            (Told::Dates, _) => ", parent by date".into(),
            (Told::Gone, _) => ", parent is not here".into(),
            (Told::Differ, _) => ", its disks have different parents".into(),
            (Told::Unknown, _) => ", parent is not known".into(),
            (Told::Disks | Told::Record | Told::Mark | Told::None, None) => match parent {
                Some(_) => ", parent is not shown".into(),
                None => String::new(),
            },
        };
        words.push_str(&told);
        words
    }
}

/// The list for Prometheus, as node_exporter's textfile collector reads it.
pub fn metrics(listing: &Listing) -> String {
    struct Sums {
        count: u64,
        broken: u64,
        size: u64,
        newest: Option<i64>,
    }
    let mut sums: BTreeMap<&str, Sums> = BTreeMap::new();
    let none = || Sums { count: 0, broken: 0, size: 0, newest: None };
    for domain in &listing.domains {
        sums.insert(&domain.name, none());
    }
    for snapshot in &listing.snapshots {
        let sum = sums.entry(&snapshot.group).or_insert_with(none);
        sum.count += 1;
        sum.broken += u64::from(matches!(snapshot.state, State::Broken | State::Unfinished));
        sum.size = sum.size.saturating_add(snapshot.size_on_disk);
        // Else nobody would notice that each new one is broken.
        if !matches!(snapshot.state, State::Broken | State::Unfinished) {
            sum.newest = sum.newest.max(Some(snapshot.created.as_second()));
        }
    }
    let mut text = String::new();
    let mut family = |name: &str, help: &str, value: &dyn Fn(&Sums) -> Option<String>| {
        let _ = writeln!(text, "# HELP xl_snapshot_{name} {help}\n# TYPE xl_snapshot_{name} gauge");
        for (domain, sum) in &sums {
            if let Some(value) = value(sum) {
                let domain = label(domain);
                let _ = writeln!(text, "xl_snapshot_{name}{{domain=\"{domain}\"}} {value}");
            }
        }
    };
    family("count", "Snapshots of the domain.", &|sum| Some(sum.count.to_string()));
    family("broken", "Snapshots that cannot be reverted to.", &|sum| Some(sum.broken.to_string()));
    family("image_bytes", "What the images of its snapshots take on their file systems.", &|sum| {
        Some(sum.size.to_string())
    });
    family("newest_timestamp_seconds", "When its youngest good snapshot was taken.", &|sum| {
        sum.newest.map(|time| time.to_string())
    });
    let damaged = listing.others.iter().filter(|other| other.kind == OtherKind::Damaged).count();
    let _ = writeln!(
        text,
        "# HELP xl_snapshot_damaged_images Images that cannot be read.\n\
         # TYPE xl_snapshot_damaged_images gauge\nxl_snapshot_damaged_images {damaged}"
    );
    text
}

/// A value of a label (Prometheus, "Text format details").
fn label(text: &str) -> String {
    printable(text).replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
