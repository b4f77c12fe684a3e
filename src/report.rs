//! What the user gets to see: messages and progress on standard error, the result on standard
//! output, for people or as JSON.

mod backup;
mod cfg;
mod compacted;
mod created;
mod deleted;
mod exported;
mod messages;
mod output;
mod planned;
mod progress;
mod pruned;
mod rehearsed;
mod reverted;
mod serving;
mod shown;

use std::fmt;

use indicatif::BinaryBytes;
use serde::Serialize;

pub use self::backup::Backup;
pub use self::cfg::{CfgReplaced, CfgTrouble};
pub use self::compacted::{Compaction, Compactions};
pub use self::created::{Created, CreatedDisk};
pub use self::deleted::{Deleted, DeletedDisk, Deletions, Failed, Merge};
pub use self::exported::{Exported, ExportedDisk};
pub use self::messages::{Reporter, error_text, print_error};
pub use self::planned::Planned;
pub use self::progress::Meter;
pub use self::pruned::{Pruned, PrunedSnapshot};
pub use self::rehearsed::Rehearsed;
pub use self::reverted::{Reverted, RevertedDisk};
pub use self::serving::Serving;
pub use self::shown::{Shown, ShownDisk};
use crate::names::is_plain;

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

/// `text` as it may stand on a terminal: names and words in it come from images, tools and guests. Lines stay.
pub(crate) fn printable(text: &str) -> String {
    text.replace(|c: char| c != '\n' && !is_plain(c), " ")
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
