use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use uuid::Uuid;

use super::mark::Mark;
use super::*;
use crate::disk::chain::Link;
use crate::disk::kinds::{Lvm, Reflink, Vhd};
use crate::disk::qcow2::Header;
use crate::disk::{FileFacts, lvm};
use crate::domain::Format;
use crate::memory::peek::Extent;
use crate::record::{DiskRecord, DiskSnapshot, DomainRecord, FrozenFile, Parent, ParentSource};
use crate::support::record::sample;
use crate::tool::volumes::Volume;
use crate::tool::{vhd_util, volumes};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 + second).unwrap()
}

fn id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

/// A snapshot of web1 with these disks; its number is its identity and its time.
fn record(number: u8, disks: Vec<(&str, DiskSnapshot)>) -> Record {
    let disk = |(path, snapshot), letter| DiskRecord {
        vdev: format!("xvd{letter}"),
        path: PathBuf::from(path),
        format: Some(Format::Raw),
        snapshot,
    };
    Record {
        name: format!("s{number}").parse().unwrap(),
        id: id(number.into()),
        created: at(number.into()),
        domain: DomainRecord { uuid: id(42), ..sample().domain },
        disks: disks.into_iter().zip('a'..='z').map(|(d, letter)| disk(d, letter)).collect(),
        ..sample()
    }
}

fn image(path: &str, record: Record) -> ImageEntry {
    let whole = Peek::Snapshot { record: Box::new(record), form: None, extent: Extent::Whole };
    ImageEntry {
        path: path.into(),
        id: (1, 0),
        length: 1 << 20,
        allocated: 1 << 20,
        shared: None,
        peek: Ok(whole),
    }
}

/// A file without anything below it.
fn file(path: &str, inode: u64) -> FileEntry {
    let facts = FileFacts {
        size: 512,
        mtime: at(0),
        inode,
        lasting: true,
        device: 1,
        writable: true,
        merging: None,
    };
    let link = Link { path: path.into(), id: facts.id(), format: Format::Raw, header: None };
    FileEntry {
        facts: Ok(facts),
        allocated: 4096,
        device: None,
        link: Ok(link),
        inside: Ok(Vec::new()),
        mark: None,
        vhd: None,
    }
}

fn frozen(inode: u64) -> Option<FrozenFile> {
    Some(FrozenFile { virtual_size: 512, file_size: 512, mtime: at(0), inode })
}

fn seen(records: Vec<Record>, disks: Vec<CurrentDisk>) -> Inventory {
    let images = records
        .into_iter()
        .map(|record| image(&format!("/kept/web1/{}.xlsave", record.name), record));
    Inventory {
        images: images.collect(),
        files: Files::new(),
        volumes: Ok(Vec::new()),
        domains: vec![Running { name: "web1".into(), uuid: id(42), domid: Some(7), disks }],
        strays: Vec::new(),
        unseen: Vec::new(),
    }
}

fn now(path: &str, kind: FileKind) -> CurrentDisk {
    CurrentDisk { vdev: "xvda".into(), path: path.into(), kind }
}

/// `child<parent` by their numbers, and how that is known; then the current one.
fn descent(seen: &Inventory) -> Vec<String> {
    let listing = list(seen, &ListRequest::default());
    let number = |id: Option<Uuid>| id.map_or("-".into(), |id| id.as_u128().to_string());
    let mut found: Vec<_> = listing
        .snapshots
        .iter()
        .map(|s| format!("{}<{} {:?}", s.id.as_u128(), number(s.parent), s.parent_by))
        .collect();
    let current = &listing.domains[0];
    found.push(format!("*{} {:?}", number(current.id), current.told));
    found
}

// ---- logical volumes

/// Volumes as lvs prints them: name, layout, origin, tag, device.
fn lvs(all: &[(&str, &str, &str, &str, u32)]) -> Vec<Volume> {
    let lv = |(name, layout, origin, tag, minor): &(&str, &str, &str, &str, u32)| {
        let pool = if layout.starts_with("thin") { "pool" } else { "" };
        serde_json::json!({
            "vg_name": "vg0", "lv_name": name, "lv_size": "1048576", "lv_layout": layout,
            "origin": origin, "pool_lv": pool, "lv_tags": tag, "lv_permissions": "1",
            "lv_device_open": "0", "lv_merging": "0", "lv_snapshot_invalid": "0",
            "data_percent": "50.00", "metadata_percent": "", "lv_kernel_major": "253",
            "lv_kernel_minor": minor.to_string(), "vg_free": "0", "vg_extent_size": "4096",
        })
    };
    let lvs: Vec<_> = all.iter().map(lv).collect();
    let json = serde_json::json!({"report": [{"lv": lvs}]});
    volumes::parse(json.to_string().as_bytes()).unwrap()
}

fn on_lvm(number: u8, size: Option<u64>) -> Record {
    let snapshot = format!("c.s{number}");
    let kept = DiskSnapshot::Lvm(Lvm { group: "vg0".into(), volume: "c".into(), snapshot, size });
    record(number, vec![("/dev/vg0/c", kept)])
}

fn tag(number: u8) -> String {
    lvm::tag(id(number.into()), "xvda")
}

fn on_a_volume(records: Vec<Record>, volumes: Vec<Volume>) -> Inventory {
    let kind = FileKind::of_format(Some(Format::Raw));
    let device = FileEntry {
        facts: Err("it is not a regular file".into()),
        device: Some((253, 1)),
        ..file("/dev/vg0/c", 0)
    };
    let mut seen = seen(records, vec![now("/dev/vg0/c", kind)]);
    seen.files = BTreeMap::from([(("/dev/vg0/c".into(), kind), device)]);
    seen.volumes = Ok(volumes);
    seen
}

#[test]
fn thin_volumes_show_where_they_come_from() {
    // s1, s2, s3; a revert to s1, whose volume is created again; s4.
    let [t1, t2, t3, t4] = [1, 2, 3, 4].map(tag);
    let volumes = lvs(&[
        ("pool", "thin,pool", "", "", 9),
        ("c.before-revert-1", "thin,sparse", "", "", 2),
        ("c.s1", "thin,sparse", "c.before-revert-1", &t1, 3),
        ("c.s2", "thin,sparse", "c.before-revert-1", &t2, 4),
        ("c.s3", "thin,sparse", "c.before-revert-1", &t3, 5),
        ("c", "thin,sparse", "c.s1", "", 1),
        ("c.s4", "thin,sparse", "c", &t4, 6),
    ]);
    let records = || [1, 2, 3, 4].map(|number| on_lvm(number, None)).to_vec();
    let expected = ["1<- None", "2<1 Disks", "3<2 Disks", "4<1 Disks", "*4 Disks"];
    assert_eq!(descent(&on_a_volume(records(), volumes.clone())), expected);
    // Right after the revert.
    let before = on_a_volume(records(), volumes[..6].to_vec());
    assert_eq!(descent(&before).pop().unwrap(), "*1 Disks");
    let listing = list(&before, &ListRequest::default());
    assert_eq!(listing.snapshots[3].why, ["xvda: its snapshot vg0/c.s4 no longer exists"]);
    // Its record names the parent of the next one.
    let known = Some((Parent::Snapshot(id(1)), ParentSource::Disks));
    assert_eq!(parent_of_now(&before), known);
}

#[test]
fn thick_volumes_do_not() {
    let [t1, t2] = [1, 2].map(tag);
    let mut volumes = lvs(&[
        ("c", "linear", "", "", 1),
        ("c.s1", "linear", "c", &t1, 3),
        ("c.s2", "linear", "c", &t2, 4),
    ]);
    let records = || [1, 2].map(|number| on_lvm(number, Some(1 << 20))).to_vec();
    let seen = on_a_volume(records(), volumes.clone());
    assert_eq!(descent(&seen), ["1<- None", "2<1 Dates", "*2 Dates"]);
    assert_eq!(parent_of_now(&seen), None);
    let first = on_a_volume(Vec::new(), volumes[..1].to_vec());
    assert_eq!(parent_of_now(&first), Some((Parent::None, ParentSource::Disks)));
    let listing = list(&seen, &ListRequest::default());
    assert_eq!(listing.snapshots[0].disks[0].size_on_disk, Some(1 << 19));
    assert_eq!(listing.snapshots[0].disks[0].image, Path::new("/dev/vg0/c.s1"));
    volumes[1].invalid = true;
    let listing = list(&on_a_volume(records(), volumes), &ListRequest::default());
    assert_eq!(listing.snapshots[0].why, ["xvda: its snapshot has overflowed"]);
    let mut blind = on_a_volume(records(), Vec::new());
    blind.volumes = Err("lvs is not installed".into());
    let listing = list(&blind, &ListRequest::default());
    assert_eq!(listing.snapshots[0].state, Health::Unread);
}

#[test]
fn a_volume_of_a_snapshot_that_is_not_here_is_told() {
    let volumes = lvs(&[("c", "linear", "", "", 1), ("c.s1", "linear", "c", &tag(1), 3)]);
    let seen = on_a_volume(Vec::new(), volumes);
    let listing = list(&seen, &ListRequest { all: true, ..ListRequest::default() });
    assert_eq!(listing.others.len(), 1);
    assert!(listing.others[0].why.contains("a volume of a snapshot that is not here"));
}

#[test]
fn a_new_volume_of_an_interrupted_revert_is_told_until_it_is_used() {
    let tag = "xl-snapshot-revert:before-revert-x";
    let mut volumes = lvs(&[
        ("c", "thin", "", tag, 1),
        ("c.after-revert-x", "thin", "c.s1", tag, 3),
        ("d.after-revert-x", "thin", "", "", 4),
    ]);
    let told = |volumes: &[Volume]| {
        let seen = on_a_volume(Vec::new(), volumes.to_vec());
        let listing = list(&seen, &ListRequest { all: true, ..ListRequest::default() });
        listing.others.into_iter().map(|other| other.why).collect::<Vec<_>>()
    };
    let why = told(&volumes);
    assert!(why.len() == 1 && why[0].contains("a revert that was interrupted"), "{why:?}");
    volumes[1].open = true;
    assert_eq!(told(&volumes), Vec::<String>::new());
}

// ---- VHDs

/// A VHD with this UUID and this parent.
fn vhd_file(path: &str, uuid: u8, parent: Option<u8>) -> ((PathBuf, FileKind), FileEntry) {
    let facts = vhd_util::Facts {
        virtual_size: 512,
        differencing: parent.is_some(),
        uuid: [uuid; 16],
        header: 512,
        depth: None,
    };
    let vhd = VhdEntry { facts, parent: parent.map(|uuid| [uuid; 16]) };
    ((path.into(), FileKind::TapVhd), FileEntry { vhd: Some(vhd), ..file(path, uuid.into()) })
}

#[test]
fn vhds_know_their_parents_wherever_those_are() {
    let of = |number: u8, path: &str, inode: u64| {
        let child = format!("/srv/after-s{number}.vhd").into();
        record(number, vec![(path, DiskSnapshot::Vhd(Vhd { child, proof: frozen(inode) }))])
    };
    let records = vec![of(1, "/srv/a.vhd", 1), of(2, "/srv/b.vhd", 2), of(3, "/srv/c.vhd", 3)];
    // a <- b <- (not named) <- now; a <- c
    let mut seen = seen(records, vec![now("/srv/now.vhd", FileKind::TapVhd)]);
    seen.files = BTreeMap::from([
        vhd_file("/srv/a.vhd", 1, None),
        vhd_file("/srv/b.vhd", 2, Some(1)),
        vhd_file("/srv/c.vhd", 3, Some(1)),
        vhd_file("/srv/x.vhd", 9, Some(2)),
        vhd_file("/srv/now.vhd", 8, Some(9)),
    ]);
    assert_eq!(descent(&seen), ["1<- None", "2<1 Disks", "3<1 Disks", "*2 Disks"]);
    // An unknown one in between.
    seen.files.remove(&("/srv/x.vhd".into(), FileKind::TapVhd));
    assert_eq!(descent(&seen).pop().unwrap(), "*3 Dates");
    // Another file has its place.
    let (key, other) = vhd_file("/srv/a.vhd", 7, None);
    seen.files.insert(key, other);
    let listing = list(&seen, &ListRequest::default());
    assert_eq!(listing.snapshots[0].why, ["xvda: it is another file now"]);
    assert_eq!(descent(&seen)[1], "2<1 Dates");
}

// ---- reflink copies

#[test]
fn reflink_copies_have_the_mark_of_their_file() {
    let raw = FileKind::of_format(Some(Format::Raw));
    let of = |number: u8| {
        let copy = format!("/srv/at-s{number}.img").into();
        let kept = DiskSnapshot::Reflink(Reflink { copy, proof: frozen(u64::from(number) + 10) });
        Record { parent: None, ..record(number, vec![("/srv/a.img", kept)]) }
    };
    let mut records = vec![of(1), of(2), of(3)];
    let noted = |record: &mut Record, parent: u128| {
        record.parent = Some(Parent::Snapshot(id(parent)));
        record.parent_by = Some(ParentSource::Mark);
    };
    noted(&mut records[1], 1);
    noted(&mut records[2], 1);
    let mut seen = seen(records, vec![now("/srv/a.img", raw)]);
    let files = [("/srv/a.img", 1), ("/srv/at-s1.img", 11), ("/srv/at-s2.img", 12)];
    for (path, inode) in files.into_iter().chain([("/srv/at-s3.img", 13)]) {
        seen.files.insert((path.into(), raw), file(path, inode));
    }
    assert_eq!(descent(&seen), ["1<- None", "2<1 Mark", "3<1 Mark", "*3 Dates"]);
    let mut mark = |id, at| {
        let file = seen.files.get_mut(&("/srv/a.img".into(), raw)).unwrap();
        file.mark = Some(Mark { id, at });
        descent(&seen).pop().unwrap()
    };
    assert_eq!(mark(id(2), at(9)), "*2 Mark");
    assert_eq!(mark(id(2), at(2)), "*3 Dates", "3 was taken since");
    assert_eq!(mark(id(8), at(9)), "*3 Dates", "there is no such snapshot");
    // A copy is the base of a clone.
    let mut clone = file("/srv/web2.qcow2", 20);
    let header = Header {
        refcount_order: 4,
        backing: Some("/srv/at-s2.img".into()),
        backing_format: Some("raw".into()),
        ..Default::default()
    };
    clone.link.as_mut().unwrap().header = Some(header);
    let qcow2 = FileKind::of_format(Some(Format::Qcow2));
    seen.files.insert(("/srv/web2.qcow2".into(), qcow2), clone);
    seen.domains[0] = Running {
        name: "web2".into(),
        uuid: id(43),
        domid: Some(8),
        disks: vec![now("/srv/web2.qcow2", qcow2)],
    };
    let listing = list(&seen, &ListRequest::default());
    assert_eq!(listing.domains[0].clone_of, Some(id(2)));
}

// ---- odd records

#[test]
fn a_parent_that_is_not_here_or_cannot_be_is_said() {
    let mut records = vec![record(1, Vec::new()), record(2, Vec::new()), record(3, Vec::new())];
    records[1].parent = Some(Parent::Snapshot(id(9)));
    // A damaged record makes a circle.
    records[0].parent = Some(Parent::Snapshot(id(3)));
    records[2].parent = Some(Parent::None);
    let seen = seen(records, Vec::new());
    assert_eq!(descent(&seen), ["1<- Unknown", "2<9 Gone", "3<- None", "*3 Dates"]);
    let text = Tree(&list(&seen, &ListRequest::default())).to_string();
    assert!(text.contains("s1") && text.contains("s2") && text.contains("s3"), "{text}");
    assert!(text.contains("parent is not here") && text.contains("parent is not known"), "{text}");
}

#[test]
fn a_domain_that_was_renamed_or_has_another_uuid_is_the_same() {
    let mut records = vec![record(1, Vec::new()), record(2, Vec::new()), record(3, Vec::new())];
    records[0].domain.name = "before".into();
    // Restarted from a configuration without a UUID.
    records[2].domain.uuid = id(77);
    let seen = seen(records, Vec::new());
    let listing = list(&seen, &ListRequest::default());
    assert!(listing.snapshots.iter().all(|snapshot| snapshot.group == "web1"));
    assert_eq!(descent(&seen), ["1<- None", "2<1 Dates", "3<2 Dates", "*3 Dates"]);
    assert!(metrics(&listing).contains("xl_snapshot_count{domain=\"web1\"} 3\n"));
}

/// Prometheus, "Text-based format": what a label's value escapes, and one HELP and TYPE for each family.
#[test]
fn metrics_are_what_prometheus_reads() {
    let mut records = vec![record(1, Vec::new())];
    records[0].domain.name = "a\\b \"c\"\nd\x1b{}".into();
    let mut seen = seen(records, Vec::new());
    seen.domains.clear();
    let text = metrics(&list(&seen, &ListRequest::default()));
    assert!(text.contains("{domain=\"a\\\\b \\\"c\\\"\\nd {}\"} 1\n"), "{text}");
    let mut helped = Vec::new();
    for block in text.split("# HELP ").skip(1) {
        let mut lines = block.lines();
        let name = lines.next().unwrap().split_once(' ').expect("words of help").0;
        assert!(!helped.contains(&name), "{name} comes twice");
        helped.push(name);
        assert_eq!(lines.next(), Some(&*format!("# TYPE {name} gauge")));
        for line in lines {
            let (series, value) = line.rsplit_once(' ').unwrap();
            assert!(series == name || series.starts_with(&format!("{name}{{domain=\"")), "{line}");
            value.parse::<i64>().unwrap();
        }
    }
    let ends = ["count", "broken", "image_bytes", "newest_timestamp_seconds", "damaged_images"];
    assert_eq!(helped, ends.map(|end| format!("xl_snapshot_{end}")));
}

#[test]
fn a_domain_is_asked_for_by_what_it_has() {
    let mut old = record(1, Vec::new());
    old.domain.name = "before".into();
    let mut other = record(2, Vec::new());
    (other.domain.name, other.domain.uuid) = ("db1".into(), id(43));
    let seen = seen(vec![old, other], Vec::new());
    let names = |asked: &str| -> Vec<String> {
        let asked = ListRequest { domains: vec![asked.to_owned()], all: false };
        list(&seen, &asked).snapshots.into_iter().map(|s| s.name).collect()
    };
    assert_eq!(names("before"), ["s1"]);
    // Its current name is web1, and its number 7.
    assert_eq!((names("web1"), names("7")), (vec!["s1".to_owned()], vec!["s1".to_owned()]));
    assert_eq!((names("db1"), names(&id(43).to_string())), (vec!["s2".into()], vec!["s2".into()]));
    assert!(names("web").is_empty() && names("8").is_empty());
}

#[test]
fn a_long_chain_is_drawn_without_a_deep_stack() {
    let images = (1..=3000_u32).map(|number| {
        let mut record = record(1, Vec::new());
        record.name = format!("s{number}").parse().unwrap();
        record.id = id(number.into());
        record.created = at(number.into());
        record.parent = Some(if number == 1 {
            Parent::None
        } else {
            Parent::Snapshot(id((number - 1).into()))
        });
        image(&format!("/kept/{number}"), record)
    });
    let mut seen = seen(Vec::new(), Vec::new());
    seen.images = images.collect();
    let text = Tree(&list(&seen, &ListRequest::default())).to_string();
    assert!(text.lines().count() >= 3001);
}

#[test]
fn names_are_found_by_the_record() {
    let images = [
        image("/kept/x.xlsave", record(1, Vec::new())),
        image("/kept/web1/s1.xlsave", record(1, Vec::new())),
        image("/kept/web1/s2.xlsave.partial", record(2, Vec::new())),
        image("/kept/web1/y.xlsave", Record { id: id(9), ..record(3, Vec::new()) }),
        image("/kept/web1/s3.xlsave", record(3, Vec::new())),
    ];
    let find =
        |domain: &str, name: &str| by_name(&images, Path::new("/kept"), (domain, &[]), name, false);
    assert_eq!(find("web1", "s1").unwrap(), Path::new("/kept/web1/s1.xlsave"));
    let nothing = NotNamed::Nothing("/kept has no snapshot s1 of web2".to_owned());
    assert_eq!(find("web2", "s1"), Err(nothing));
    assert!(find("web1", "s2").is_err());
    let several = "/kept/web1/y.xlsave, /kept/web1/s3.xlsave".to_owned();
    assert_eq!(find("web1", "s3"), Err(NotNamed::Several(several)));
    let running = seen(Vec::new(), Vec::new()).domains;
    let renamed = Running { name: "new".into(), ..running[0].clone() };
    let found = by_name(&images, Path::new("/kept"), ("new", &[renamed]), "s1", false).unwrap();
    assert_eq!(found, Path::new("/kept/web1/s1.xlsave"));
    // A complete one comes first.
    let mut images = images;
    let Ok(Peek::Snapshot { extent, .. }) = &mut images[1].peek else { unreachable!() };
    *extent = Extent::Unread;
    let found = by_name(&images, Path::new("/kept"), ("web1", &[]), "s1", false).unwrap();
    assert_eq!(found, Path::new("/kept/x.xlsave"));
}
