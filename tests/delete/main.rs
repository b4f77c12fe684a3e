//! Deleting snapshots of a domain that does not run, with the real qemu-img and real files: every other
//! snapshot stays good and keeps its content, wherever the deletion is cut short, and the next one ends it.

#![expect(clippy::unwrap_used, reason = "a test's helpers may end the test")]

mod place;
mod walk;

use std::fs;
use std::path::Path;

use xl_snapshot::delete;
use xl_snapshot::domain::Format;
use xl_snapshot::host::{deletion, files, image};
use xl_snapshot::memory::deleting_path;
use xl_snapshot::record::{DisksOnly, Parent};
use xl_snapshot::tool::Tool;

use self::place::{Place, carry_out, content, perform, run};

/// How a chain is made: the size of the first image, and of what is written after each snapshot, in units.
type Sizes = [u64; 4];

/// `a <- one <- two <- three`: three snapshots, the second one in a file of its own.
fn chain(sizes: Sizes) -> Place {
    let mut place = Place::new(sizes[0]);
    let mut parent = None;
    for (name, units) in ["one", "twor", "three"].iter().zip(&sizes[1..]) {
        parent = Some(place.external(name, parent));
        place.write(sizes[0] / 2, *units);
    }
    place
}

#[test]
fn any_of_three_is_deleted_wherever_it_is_cut_short() {
    // Where a commit moves less, and where a stream does.
    for sizes in [[8, 1, 2, 3], [1, 3, 2, 1]] {
        for name in ["one", "twor", "three"] {
            let place = chain(sizes);
            let (path, format) = place.now();
            let current = content(&path, format, None);
            let left = [place.image(name), deleting_path(&place.image(name))];
            // Each time it is begun anew, and comes one step further.
            let mut steps = 0;
            while left.iter().any(|path| path.exists()) {
                let context = format!("{sizes:?}, {name} killed after {steps} steps");
                let plan = place.plan(name, false);
                let plan = plan.unwrap_or_else(|error| panic!("{context}: {:?}", error.chain()));
                carry_out(&plan, steps);
                place.check(name, &current, &context);
                steps += 1;
                assert!(steps < 50, "{context}: it does not end");
            }
            for path in place.images() {
                let path = place.path("disks").join(path);
                assert_eq!(files::merge_mark::of(&path), None, "{}", path.display());
            }
            // One file less, but for the user's own first one after a stream from it.
            let kept = place.images().len() == 4;
            assert!(!kept || (name == "one" && place.images()[0] == "a.img"), "{sizes:?}, {name}");
        }
    }
}

#[test]
fn all_are_deleted_in_any_order() {
    for order in [["one", "twor", "three"], ["three", "twor", "one"], ["twor", "one", "three"]] {
        let mut place = chain([2, 2, 2, 2]);
        let (path, format) = place.now();
        let current = content(&path, format, None);
        for name in order {
            let plan = place.plan(name, false).unwrap();
            carry_out(&plan, usize::MAX);
            place.content.remove(name);
            place.check("", &current, &format!("{order:?}, {name}"));
        }
        assert!(place.images().len() <= 2, "{:?}", place.images());
    }
}

#[test]
fn internal_snapshots_in_a_base_survive_and_in_an_overlay_forbid_a_merge() {
    let mut place = chain([1, 1, 1, 1]);
    place.internal("inside");
    place.write(9, 1);
    let (path, format) = place.now();
    let current = content(&path, format, None);
    let error = place.plan("three", false).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.chain().join(": ").contains("has internal snapshots"), "{:?}", error.chain());
    // The file with the internal snapshot is frozen, and then gets what its overlay holds.
    let top = place.top.clone();
    place.external("four", None);
    place.write(10, 1);
    let (path, format) = place.now();
    let last = content(&path, format, None);
    carry_out(&place.plan("four", false).unwrap(), usize::MAX);
    place.content.remove("four");
    place.check("", &last, "four");
    (place.top, place.format) = place.now();
    assert_eq!(place.top, top);
    // In a base, it can be deleted although younger snapshots are proven by that.
    place.external("five", None);
    for steps in 1..20 {
        if let Ok(plan) = place.plan("inside", false) {
            carry_out(&plan, steps);
            place.check("inside", &last, &format!("inside, {steps}"));
        }
    }
    assert!(!place.image("inside").exists() && current != last);
}

#[test]
fn siblings_are_refused_and_flattened() {
    let place = chain([1, 1, 1, 1]);
    let (path, format) = place.now();
    let current = content(&path, format, None);
    let clone = place.path("disks").join("clone.qcow2");
    let base = place.path("disks").join("web1-xvda.after-one.qcow2");
    let (text, below) = (clone.display().to_string(), base.display().to_string());
    run(Tool::QemuImg, &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &below, &text]);
    let of_clone = content(&clone, Format::Qcow2, None);
    let error = place.plan("twor", false).unwrap_err();
    let told = error.chain().join(": ");
    assert!(error.exit_code() == 3 && told.contains("clone.qcow2"), "{told}");
    assert!(error.hint.unwrap().contains("--flatten"));
    place.check("", &current, "refused");
    carry_out(&place.plan("twor", true).unwrap(), usize::MAX);
    place.check("twor", &current, "flattened");
    assert!(content(&clone, Format::Qcow2, None) == of_clone && !base.exists());
}

#[test]
fn children_inherit_the_parent() {
    let place = chain([1, 1, 1, 1]);
    let read = |name: &str| image::rewrite::read(&place.image(name)).unwrap();
    let (one, three) = (read("one"), read("three"));
    assert_eq!(three.parent, Some(Parent::Snapshot(read("twor").id)));
    carry_out(&place.plan("twor", false).unwrap(), usize::MAX);
    assert_eq!(read("three").parent, Some(Parent::Snapshot(one.id)));
}

#[test]
fn without_memory_the_disks_stay() {
    let place = chain([1, 1, 1, 1]);
    let (path, format) = place.now();
    let current = content(&path, format, None);
    let (plan, record) = delete::plan_memory_only(&place.seen("one").unwrap()).unwrap();
    plan.prepare.iter().chain(&plan.commit).for_each(perform);
    assert!(!place.image("one").exists() && record.exists());
    let left = image::rewrite::read(&record).unwrap();
    assert_eq!(left.disks_only, Some(DisksOnly::CrashConsistent));
    assert_eq!(left.domain.cfg, Some(place.cfg()));
    // By its new name it is deleted as a whole.
    fs::rename(record, place.image("one")).unwrap();
    place.check("", &current, "without memory");
    assert!(delete::plan_memory_only(&place.seen("twor").unwrap()).is_err());
    carry_out(&place.plan("one", false).unwrap(), usize::MAX);
    place.check("one", &current, "deleted");
}

#[test]
fn what_is_not_as_it_was_is_refused() {
    let place = chain([1, 1, 1, 1]);
    let base = place.path("disks").join("web1-xvda.after-one.qcow2");
    place.overwrite(&base, 0, 1, 99);
    let why = |name: &str| {
        let error = place.plan(name, false).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        error.chain().join(": ")
    };
    assert!(why("twor").contains("was written to since"), "{}", why("twor"));
    assert!(why("one").contains("broken already"), "{}", why("one"));
    assert!(deletion::named(Path::new("/no/such")).is_err());
}
