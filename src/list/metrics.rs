//! The list for Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::report::{Health, Listing, OtherKind};
use crate::report::printable;

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
        sum.broken += u64::from(matches!(snapshot.state, Health::Broken | Health::Unfinished));
        sum.size = sum.size.saturating_add(snapshot.size_on_disk);
        // Otherwise nobody would notice that each new one is broken.
        if !matches!(snapshot.state, Health::Broken | Health::Unfinished) {
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
