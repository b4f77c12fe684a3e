//! Tests of the rules, with hand-made and random lists, and against a plain restatement.

use proptest::collection::vec;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof};
use proptest::{prop_assert, prop_assert_eq, proptest};

use super::*;
use crate::list::{DescentSource, DiskState, DivergedDisk};

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn snapshot(number: u128, created: Timestamp) -> Snapshot {
    Snapshot {
        group: "web1".into(),
        domain: "web1".into(),
        uuid: Uuid::from_u128(42),
        name: format!("s{number}"),
        id: Uuid::from_u128(number),
        created,
        description: String::new(),
        image: format!("/kept/web1/s{number}.xlsave").into(),
        memory: true,
        disks_only: None,
        size: 96 << 20,
        size_on_disk: 96 << 20,
        shared: None,
        state: Health::Good,
        why: Vec::new(),
        current: false,
        parent: None,
        parent_by: DescentSource::None,
        disks: Vec::new(),
    }
}

pub(crate) fn listing(snapshots: Vec<Snapshot>) -> Listing {
    Listing { snapshots, domains: Vec::new(), others: Vec::new(), hidden: 0, unseen: Vec::new() }
}

pub(crate) fn of_times(times: &[&str]) -> Listing {
    listing((1..).zip(times).map(|(number, time)| snapshot(number, at(time))).collect())
}

pub(crate) fn running(id: Option<u128>) -> Current {
    Current {
        name: "web1".into(),
        uuid: Uuid::from_u128(42),
        domid: Some(7),
        id: id.map(Uuid::from_u128),
        told: DescentSource::Disks,
        clone_of: None,
        mixed: Vec::new(),
    }
}

/// One line for each snapshot: its name, and why it is kept.
fn words(listing: &Listing, rules: &Rules) -> Vec<String> {
    all_words(listing, &BTreeMap::new(), rules)
}

fn all_words(
    listing: &Listing,
    holders: &BTreeMap<Uuid, BTreeSet<String>>,
    rules: &Rules,
) -> Vec<String> {
    let decisions = decide(listing, holders, "web1", rules);
    let line = |verdict: &Decision<'_>| {
        let why: Vec<_> = verdict.why.iter().map(ToString::to_string).collect();
        format!("{}: {}", verdict.snapshot.name, why.join(", ")).trim_end().to_owned()
    };
    decisions.iter().map(line).collect()
}

#[test]
fn an_export_is_neither_counted_nor_deleted() {
    let mut listing = of_times(&["2026-03-01T01:00:00Z", "2026-03-02T01:00:00Z"]);
    listing.snapshots[1].disks.push(DiskState {
        vdev: "xvda".into(),
        snapshot: "exported",
        image: "/backup/x/xvda.qcow2".into(),
        size_on_disk: None,
        state: Health::Good,
        why: None,
    });
    let rules = Rules { last: 1, ..Rules::default() };
    assert_eq!(words(&listing, &rules).len(), 1);
    assert!(words(&listing, &rules)[0].starts_with("s1: "));
}

#[test]
fn each_rule_keeps_the_newest_of_its_periods() {
    let listing = of_times(&[
        "2025-12-28T23:59:59Z",
        "2025-12-29T00:00:00Z",
        "2025-12-31T23:59:59.9Z",
        "2026-01-01T00:00:00Z",
        "2026-01-01T00:59:59Z",
        "2026-01-04T23:00:00Z",
        "2026-01-05T01:00:00Z",
    ]);
    let rules = |rule| {
        let mut rules = Rules::default();
        match rule {
            Rule::Last => rules.last = 2,
            Rule::Hourly => rules.hourly = 3,
            Rule::Daily => rules.daily = 4,
            Rule::Weekly => rules.weekly = 2,
            Rule::Monthly => rules.monthly = 2,
        }
        rules
    };
    let kept = |rule| {
        let words = words(&listing, &rules(rule));
        let names = words.iter().filter(|line| !line.ends_with(':'));
        names.map(|line| line.split(':').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(kept(Rule::Last), ["s6", "s7"]);
    assert_eq!(kept(Rule::Hourly), ["s5", "s6", "s7"]);
    assert_eq!(kept(Rule::Daily), ["s3", "s5", "s6", "s7"]);
    // The week of 29 December ends on 4 January.
    assert_eq!(kept(Rule::Weekly), ["s6", "s7"]);
    assert_eq!(kept(Rule::Monthly), ["s3", "s7"]);
}

#[test]
fn rules_are_applied_on_their_own_and_all_are_told() {
    let listing = of_times(&[
        "2026-01-01T01:00:00Z",
        "2026-01-02T01:00:00Z",
        "2026-01-02T02:00:00Z",
        "2026-01-03T01:00:00Z",
    ]);
    let rules = Rules { last: 1, daily: 2, monthly: 5, ..Rules::default() };
    assert_eq!(words(&listing, &rules), ["s1:", "s2:", "s3: daily", "s4: last, daily, monthly"]);
}

#[test]
fn what_somebody_rests_on_and_the_current_one_are_kept() {
    let mut listing = of_times(&["2026-01-01T01:00:00Z"; 4]);
    let rules = Rules { last: 1, ..Rules::default() };
    listing.domains = vec![running(Some(1))];
    let holders = BTreeMap::from([(Uuid::from_u128(2), ["web2".to_owned()].into())]);
    let expected = ["s1: web1 continues from it", "s2: web2 needs it", "s3:", "s4: last"];
    assert_eq!(all_words(&listing, &holders, &rules), expected);
    // Its disks disagree.
    let apart =
        |id: Option<u128>| DivergedDisk { vdev: "xvda".into(), id: id.map(Uuid::from_u128) };
    listing.domains =
        vec![Current { mixed: vec![apart(Some(3)), apart(None), apart(Some(1))], ..running(None) }];
    let expected = ["s1: web1 continues from it", "s2:", "s3: web1 continues from it", "s4: last"];
    assert_eq!(words(&listing, &rules), expected);
}

#[test]
fn other_names_and_other_domains_do_not_count() {
    let mut listing = of_times(&["2026-01-01T01:00:00Z"; 5]);
    listing.snapshots[3].name = "before-upgrade".into();
    listing.snapshots[4].group = "web2".into();
    let rules = Rules { last: 1, prefix: "s".into(), ..Rules::default() };
    assert_eq!(
        words(&listing, &rules),
        ["s1:", "s2:", "s3: last", "before-upgrade: its name does not begin with the prefix"]
    );
}

#[test]
fn a_broken_snapshot_does_not_take_the_place_of_a_good_one() {
    let mut listing = of_times(&[
        "2026-01-01T01:00:00Z",
        "2026-01-02T01:00:00Z",
        "2026-01-03T01:00:00Z",
        "2026-01-04T01:00:00Z",
    ]);
    for (at, state) in [(0, Health::Broken), (2, Health::Unfinished), (3, Health::Unread)] {
        listing.snapshots[at].state = state;
    }
    let rules = Rules { last: 1, ..Rules::default() };
    assert_eq!(words(&listing, &rules), ["s1:", "s2: last", "s3:", "s4: last"]);
}

#[test]
fn a_domain_is_found_by_its_name_its_number_and_its_uuid() {
    let mut listing = of_times(&["2026-01-01T01:00:00Z"; 3]);
    listing.snapshots[2].uuid = Uuid::from_u128(43);
    let only = |uuid| BTreeMap::from([("web1", Uuid::from_u128(uuid))]);
    // No domain runs: the youngest snapshot decides.
    assert_eq!(matching_domains(&listing, "web1"), only(43));
    listing.domains = vec![running(None)];
    for asked in ["web1", "7", &Uuid::from_u128(42).to_string()] {
        assert_eq!(matching_domains(&listing, asked), only(42), "{asked}");
    }
    for asked in ["web2", "8", "", "s1", &Uuid::nil().to_string()] {
        assert_eq!(matching_domains(&listing, asked).len(), 0, "{asked}");
    }
    // A name may look like a number.
    listing.snapshots[0].group = "7".into();
    assert_eq!(matching_domains(&listing, "7").len(), 2);
}

// ---- at random

/// Snapshots within some months, many of them in the same hour; a third of them broken.
fn some() -> impl Strategy<Value = Vec<Snapshot>> {
    let seconds = prop_oneof![0..20_000_000_i64, 0..7200_i64, -90_000..90_000_i64];
    let state = prop_oneof![
        2 => Just(Health::Good),
        1 => Just(Health::Broken),
    ];
    vec((seconds, state), 0..40).prop_map(|all| {
        let new = |(number, (seconds, state))| Snapshot {
            state,
            // 2026-01-01, a Thursday.
            ..snapshot(number, Timestamp::from_second(1_767_225_600 + seconds).unwrap())
        };
        (1..).zip(all).map(new).collect()
    })
}

fn some_rules() -> impl Strategy<Value = Rules> {
    let limit = || prop_oneof![2 => 0..4_u32, 1 => 0..20_u32];
    (limit(), limit(), limit(), limit(), limit()).prop_map(
        |(last, hourly, daily, weekly, monthly)| Rules {
            last,
            hourly,
            daily,
            weekly,
            monthly,
            prefix: String::new(),
        },
    )
}

/// A second implementation of the rule: its periods by calendar names, the newest N of them, the newest
/// snapshot of each.
fn in_plain_words(rule: Rule, limit: u32, all: &[&Snapshot]) -> BTreeSet<Uuid> {
    let name = |snapshot: &Snapshot| {
        let time = snapshot.created;
        match rule {
            Rule::Last => format!("{time} {}", snapshot.id),
            Rule::Hourly => time.strftime("%F %H").to_string(),
            Rule::Daily => time.strftime("%F").to_string(),
            Rule::Weekly => time.strftime("%G-W%V").to_string(),
            Rule::Monthly => time.strftime("%Y-%m").to_string(),
        }
    };
    let mut newest: BTreeMap<String, &Snapshot> = BTreeMap::new();
    for snapshot in all {
        let known = newest.entry(name(snapshot)).or_insert(snapshot);
        if (snapshot.created, snapshot.id) > (known.created, known.id) {
            *known = snapshot;
        }
    }
    let mut newest: Vec<_> = newest.into_values().collect();
    newest.sort_by_key(|snapshot| Reverse((snapshot.created, snapshot.id)));
    newest.iter().take(limit as usize).map(|snapshot| snapshot.id).collect()
}

fn kept_ids(listing: &Listing, rules: &Rules) -> BTreeSet<Uuid> {
    let decisions = decide(listing, &BTreeMap::new(), "web1", rules);
    let kept = decisions.iter().filter(|verdict| !verdict.why.is_empty());
    kept.map(|verdict| verdict.snapshot.id).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_rules_are_what_they_say(snapshots in some(), rules in some_rules()) {
        let all: Vec<_> = snapshots.iter().collect();
        let chosen = rules.choose(&all);
        for rule in Rule::ALL {
            let of_rule = chosen.iter().filter(|(_, by)| *by == rule).map(|(id, _)| *id);
            let expected = in_plain_words(rule, rules.limit(rule), &all);
            prop_assert_eq!(of_rule.collect::<BTreeSet<_>>(), expected, "{:?}", rule);
        }
    }

    /// After each deletion the rules keep the same snapshots, in any order, also if it is interrupted or some
    /// deletions fail.
    #[test]
    fn what_was_not_kept_changes_nothing(
        snapshots in some(),
        rules in some_rules(),
        failed in vec(any::<bool>(), 40),
    ) {
        let before = listing(snapshots);
        let kept = kept_ids(&before, &rules);
        let mut failed = failed.iter();
        let mut after = before.clone();
        after.snapshots.retain(|s| kept.contains(&s.id) || *failed.next().unwrap());
        prop_assert_eq!(kept_ids(&after, &rules), kept);
    }

    #[test]
    fn the_newest_good_one_is_kept(snapshots in some(), rules in some_rules()) {
        let any = Rule::ALL.iter().any(|rule| rules.limit(*rule) > 0);
        let good = snapshots.iter().filter(|s| s.state == Health::Good);
        let newest = good.max_by_key(|s| (s.created, s.id)).map(|s| s.id);
        let kept = kept_ids(&listing(snapshots), &rules);
        prop_assert!(!any || newest.is_none_or(|id| kept.contains(&id)));
    }

    #[test]
    fn good_ones_are_kept_as_if_there_were_no_others(snapshots in some(), rules in some_rules()) {
        let good: Vec<_> = snapshots.iter().filter(|s| s.state == Health::Good).cloned().collect();
        let ids: BTreeSet<_> = good.iter().map(|s| s.id).collect();
        let kept = kept_ids(&listing(snapshots), &rules);
        let among: BTreeSet<_> = kept.intersection(&ids).copied().collect();
        prop_assert_eq!(among, kept_ids(&listing(good), &rules));
    }

    /// Keeping more never deletes a snapshot.
    #[test]
    fn a_higher_number_keeps_no_less(snapshots in some(), rules in some_rules(), which in 0..5_usize) {
        let mut more = rules.clone();
        let limits =
            [&mut more.last, &mut more.hourly, &mut more.daily, &mut more.weekly, &mut more.monthly];
        for (at, limit) in limits.into_iter().enumerate() {
            *limit += u32::from(at == which);
        }
        let all = listing(snapshots);
        prop_assert!(kept_ids(&all, &more).is_superset(&kept_ids(&all, &rules)));
    }
}
