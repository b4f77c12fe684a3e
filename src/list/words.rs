//! The list as a table or a tree.

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;

use indicatif::BinaryBytes;
use jiff::Timestamp;
use uuid::Uuid;

use super::report::{Current, DescentSource, Listing, Snapshot};
use crate::record::DisksOnly;
use crate::report::printable;
use crate::tool::quote;

/// How wide a line should be.
const WIDTH: usize = 80;

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
            false if self.disks_only == Some(DisksOnly::Quiesced) => "quiesced".into(),
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

    /// `*` for the one that the domain continues from, `?` if only dates show it.
    fn sign(&self, snapshot: &Snapshot) -> &'static str {
        let domain = self.domains.iter().find(|domain| domain.id == Some(snapshot.id));
        match domain.map(|domain| domain.told) {
            Some(DescentSource::Dates) => "?",
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

    /// A note on the current state of a domain.
    fn note(&self, domain: &Current) -> Option<String> {
        let name = printable(&domain.name);
        if !domain.mixed.is_empty() {
            let disks = domain
                .mixed
                .iter()
                .map(|disk| format!("{} from {}", disk.vdev, self.words_of(disk.id)));
            let disks = disks.collect::<Vec<_>>().join(", ");
            return Some(format!("the disks of {name} continue from different snapshots: {disks}"));
        }
        if let Some(id) = domain.clone_of {
            let of = match self.name_of(id) {
                Some(snapshot) => format!("{}/{}", printable(&snapshot.group), snapshot.name),
                None => id.to_string(),
            };
            return Some(format!("{name} is a clone of {of}"));
        }
        (domain.told == DescentSource::Dates).then(|| {
            let snapshot = self.words_of(domain.id);
            format!("{name}: its disks do not show which snapshot it continues from; the youngest is {snapshot}")
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

/// Wraps text into lines.
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
            // Not recursive: a chain may be as long as the number of snapshots.
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
            (DescentSource::Dates, _) => ", parent by date".into(),
            (DescentSource::Gone, _) => ", parent is not here".into(),
            (DescentSource::Differ, _) => ", its disks have different parents".into(),
            (DescentSource::Unknown, _) => ", parent is not known".into(),
            (
                DescentSource::Disks
                | DescentSource::Record
                | DescentSource::Mark
                | DescentSource::None,
                None,
            ) => match parent {
                Some(_) => ", parent is not shown".into(),
                None => String::new(),
            },
        };
        words.push_str(&told);
        words
    }
}
