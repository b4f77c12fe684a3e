//! `prune`: which snapshots of a domain the rules keep. Pure.
//!
//! The rules are those of borg and restic: the newest snapshot of each of the last N hours, days, weeks or months
//! that have any. Each rule applies on its own, as in restic: a snapshot that one rule keeps counts for the others
//! too. Times are UTC, weeks those of ISO 8601.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use uuid::Uuid;

use crate::disk::kinds::DiskMethod;
use crate::list::{Current, Health, Listing, Other, OtherKind, Snapshot};

/// In seconds.
const DAY: i64 = 86_400;

/// The number of snapshots that each rule keeps, and the prefix of their names.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// The last ones, whatever their time.
    pub last: u32,
    /// One for each hour.
    pub hourly: u32,
    /// One for each day.
    pub daily: u32,
    /// One for each week.
    pub weekly: u32,
    /// One for each month.
    pub monthly: u32,
    /// Only snapshots with this prefix are counted and deleted.
    pub prefix: String,
}

/// A rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    Last,
    Hourly,
    Daily,
    Weekly,
    Monthly,
}

impl Rule {
    /// All of them.
    pub const ALL: [Rule; 5] = [Rule::Last, Rule::Hourly, Rule::Daily, Rule::Weekly, Rule::Monthly];

    fn word(self) -> &'static str {
        match self {
            Rule::Last => "last",
            Rule::Hourly => "hourly",
            Rule::Daily => "daily",
            Rule::Weekly => "weekly",
            Rule::Monthly => "monthly",
        }
    }

    /// The number of the period that a time is in; `None` for a rule without periods.
    fn period(self, time: Timestamp) -> Option<i64> {
        let seconds = time.as_second();
        Some(match self {
            Rule::Last => return None,
            Rule::Hourly => seconds.div_euclid(3600),
            Rule::Daily => seconds.div_euclid(DAY),
            // 1970 began on a Thursday; weeks begin on Mondays.
            Rule::Weekly => (seconds.div_euclid(DAY) + 3).div_euclid(7),
            Rule::Monthly => {
                let date = time.to_zoned(TimeZone::UTC).date();
                i64::from(date.year()) * 12 + i64::from(date.month())
            }
        })
    }
}

impl Rules {
    pub fn keep_nothing(&self) -> bool {
        [self.last, self.hourly, self.daily, self.weekly, self.monthly] == [0; 5]
    }

    fn limit(&self, rule: Rule) -> u32 {
        match rule {
            Rule::Last => self.last,
            Rule::Hourly => self.hourly,
            Rule::Daily => self.daily,
            Rule::Weekly => self.weekly,
            Rule::Monthly => self.monthly,
        }
    }

    /// Which of some snapshots the rules keep.
    fn choose(&self, snapshots: &[&Snapshot]) -> BTreeSet<(Uuid, Rule)> {
        let mut newest_first = snapshots.to_vec();
        newest_first.sort_by_key(|snapshot| Reverse((snapshot.created, snapshot.id)));
        let mut chosen = BTreeSet::new();
        for rule in Rule::ALL {
            let mut left = self.limit(rule);
            let mut last = None;
            for snapshot in &newest_first {
                let period = rule.period(snapshot.created);
                if left > 0 && (period.is_none() || period != last) {
                    chosen.insert((snapshot.id, rule));
                    left -= 1;
                    last = period;
                }
            }
        }
        chosen
    }
}

/// Why a snapshot is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeepReason {
    /// A rule keeps it.
    Rule(Rule),
    /// This running domain, or a disk of it, continues from it.
    Current(String),
    /// A clone, or a snapshot of one, needs it.
    Holder(String),
    /// Its name does not have the prefix.
    Name,
}

impl fmt::Display for KeepReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeepReason::Rule(rule) => f.write_str(rule.word()),
            KeepReason::Current(domain) => write!(f, "{domain} continues from it"),
            KeepReason::Holder(who) => write!(f, "{who} needs it"),
            KeepReason::Name => f.write_str("its name does not begin with the prefix"),
        }
    }
}

/// The domains that a name, a number or a UUID can mean: current names and UUIDs.
pub fn matching_domains<'a>(listing: &'a Listing, asked: &str) -> BTreeMap<&'a str, Uuid> {
    let uuid = asked.parse().ok().filter(|uuid: &Uuid| !uuid.is_nil());
    let is = |name: &str, id: Uuid| name == asked || Some(id) == uuid;
    let mut meant = BTreeMap::new();
    // For a domain that is gone, the UUID in its youngest snapshot; snapshots are sorted by time.
    let snapshots = listing.snapshots.iter();
    meant.extend(
        snapshots
            .filter(|snapshot| is(&snapshot.group, snapshot.uuid))
            .map(|snapshot| (snapshot.group.as_str(), snapshot.uuid)),
    );
    let cut_short = listing.others.iter().filter(|other| other.kind == OtherKind::Deleting);
    meant.extend(cut_short.filter_map(|other| {
        let name = other.domain.as_deref()?;
        is(name, other.uuid).then_some((name, other.uuid))
    }));
    let running = listing.domains.iter().filter(|domain| {
        let number = domain.domid.map(|domid| domid.to_string());
        is(&domain.name, domain.uuid) || number.as_deref() == Some(asked)
    });
    meant.extend(running.map(|domain| (domain.name.as_str(), domain.uuid)));
    meant
}

/// The snapshots of a domain whose deletion was interrupted, the oldest first. They are deleted whatever the rules say.
pub fn interrupted_deletions<'a>(listing: &'a Listing, name: &str, uuid: Uuid) -> Vec<&'a Other> {
    let is_own = |other: &&Other| {
        other.kind == OtherKind::Deleting
            && (other.domain.as_deref() == Some(name) || (other.uuid == uuid && !uuid.is_nil()))
    };
    let mut own: Vec<_> = listing.others.iter().filter(is_own).collect();
    own.sort_by_key(|other| (other.created, other.id));
    own
}

/// The decision on a snapshot.
#[derive(Debug, Clone)]
pub struct Decision<'a> {
    pub snapshot: &'a Snapshot,
    /// Why it is kept; if empty, it is deleted.
    pub why: Vec<KeepReason>,
}

/// The decisions on the snapshots of the domain whose current name is `of`, the oldest first.
///
/// A broken snapshot never counts in place of a good one: the rules apply to the good ones, and again to all. So a
/// broken one is kept for as long as a good one would be, and nothing is deleted earlier because a file system is
/// not mounted today.
pub fn decide<'a>(
    listing: &'a Listing,
    holders: &BTreeMap<Uuid, BTreeSet<String>>,
    of: &str,
    rules: &Rules,
) -> Vec<Decision<'a>> {
    // An export is a copy that the user keeps.
    let is_export = |snapshot: &&Snapshot| {
        snapshot.disks.iter().any(|disk| disk.snapshot == DiskMethod::Exported.name())
    };
    // A backup deletes its own snapshot; if it counted, another one would be deleted instead.
    let is_of_backup = |snapshot: &&Snapshot| {
        let directory = snapshot.image.parent().and_then(|parent| parent.extension());
        snapshot.name.starts_with("backup-") && directory.is_some_and(|end| end == "backup")
    };
    let mut own: Vec<&Snapshot> = listing
        .snapshots
        .iter()
        .filter(|snapshot| snapshot.group == of && !is_export(snapshot) && !is_of_backup(snapshot))
        .collect();
    own.sort_by_key(|snapshot| (snapshot.created, snapshot.id));
    let counts = |snapshot: &&&Snapshot| snapshot.name.starts_with(&rules.prefix);
    let counted: Vec<&Snapshot> = own.iter().filter(counts).copied().collect();
    let good: Vec<&Snapshot> =
        counted.iter().filter(|snapshot| snapshot.state == Health::Good).copied().collect();
    let mut chosen = rules.choose(&good);
    chosen.extend(rules.choose(&counted));

    let verdict = |snapshot: &'a Snapshot| {
        let id = snapshot.id;
        let mut why = Vec::new();
        if !snapshot.name.starts_with(&rules.prefix) {
            why.push(KeepReason::Name);
        }
        let kept_by = Rule::ALL.into_iter().filter(|rule| chosen.contains(&(id, *rule)));
        why.extend(kept_by.map(KeepReason::Rule));
        let goes_on = |domain: &&Current| {
            domain.id == Some(id) || domain.mixed.iter().any(|disk| disk.id == Some(id))
        };
        let domains = listing.domains.iter().filter(goes_on);
        why.extend(domains.map(|domain| KeepReason::Current(domain.name.clone())));
        why.extend(holders.get(&id).into_iter().flatten().cloned().map(KeepReason::Holder));
        Decision { snapshot, why }
    };
    own.into_iter().map(verdict).collect()
}

#[cfg(test)]
pub(crate) mod tests;
