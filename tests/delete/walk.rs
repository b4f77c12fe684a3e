//! Snapshots are taken, gone back to and deleted at random, hundreds of times: every snapshot that is left is good and
//! has its content, and so have the disk and the clones. `WALK_SECONDS=600` walks longer than two seconds.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::Index;
use proptest::test_runner::{Config, TestError, TestRunner};
use uuid::Uuid;
use xl_snapshot::domain::Format;
use xl_snapshot::error::Error;
use xl_snapshot::host::{chain, files, image, marks};
use xl_snapshot::memory::deleting_path;
use xl_snapshot::tool::Tool;

use crate::place::{Place, SIZE, UNIT, carry_out, content, run};

#[derive(Clone, Debug)]
enum Move {
    Write {
        at: u64,
        units: u64,
    },
    External {
        record_only: bool,
    },
    Internal,
    Revert(Index),
    Clone(Index),
    EndClone(Index),
    /// Cut short after so many steps, and then done again.
    Delete {
        which: Index,
        flatten: bool,
        cut: usize,
    },
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        3 => (0..SIZE / UNIT - 4, 1..4_u64).prop_map(|(at, units)| Move::Write { at, units }),
        3 => any::<bool>().prop_map(|record_only| Move::External { record_only }),
        2 => Just(Move::Internal),
        2 => any::<Index>().prop_map(Move::Revert),
        1 => any::<Index>().prop_map(Move::Clone),
        1 => any::<Index>().prop_map(Move::EndClone),
        4 => (any::<Index>(), any::<bool>(), 0..12_usize)
            .prop_map(|(which, flatten, cut)| Move::Delete { which, flatten, cut }),
    ];
    vec(one, 20..40)
}

/// What there is besides the snapshots.
struct Walk {
    place: Place,
    current: Option<Uuid>,
    clones: BTreeMap<PathBuf, Vec<u8>>,
    /// Images that a revert has left: nobody's any more.
    left: BTreeSet<PathBuf>,
    taken: usize,
    refused: usize,
    deleted: usize,
}

impl Walk {
    fn new() -> Walk {
        let place = Place::new(3);
        Walk {
            place,
            current: None,
            clones: BTreeMap::new(),
            left: BTreeSet::new(),
            taken: 0,
            refused: 0,
            deleted: 0,
        }
    }

    fn disk(&self) -> Vec<u8> {
        content(&self.place.top, self.place.format, None)
    }

    fn pick(&self, which: &Index) -> Option<String> {
        let names: Vec<_> = self.place.content.keys().cloned().collect();
        (!names.is_empty()).then(|| which.get(&names).clone())
    }

    fn go(&mut self, step: &Move) {
        match step {
            Move::Write { at, units } => self.place.write(*at, *units),
            Move::External { record_only } => {
                self.taken += 1;
                let name = format!("s{}{}", self.taken, if *record_only { "r" } else { "m" });
                self.current = Some(self.place.external(&name, self.current));
            }
            Move::Internal if self.place.format == Format::Qcow2 => {
                self.taken += 1;
                let id = self.place.internal(&format!("i{}", self.taken));
                marks::set(&self.place.top, id);
                self.current = Some(id);
            }
            Move::Internal => {}
            Move::Revert(which) => self.revert(which),
            Move::Clone(which) => self.clone(which),
            Move::EndClone(which) => {
                let clones: Vec<_> = self.clones.keys().cloned().collect();
                if !clones.is_empty() {
                    let ended = which.get(&clones);
                    files::remove(ended).unwrap();
                    self.clones.remove(ended);
                }
            }
            Move::Delete { which, flatten, cut } => self.delete(which, *flatten, *cut),
        }
    }

    /// As a revert does it: a new overlay on a frozen file, or the content put back in its own file.
    fn revert(&mut self, which: &Index) {
        let Some(name) = self.pick(which) else { return };
        let record = image::rewrite::read(&self.place.image(&name)).unwrap();
        let disk = &record.disks[0];
        let old = self.place.top.clone();
        if name.starts_with('i') {
            // Frozen by a younger snapshot, it is not written to.
            if !files::facts(&disk.path).unwrap().writable {
                return;
            }
            let path = disk.path.display().to_string();
            run(Tool::QemuImg, &["snapshot", "-q", "-a", &name, &path]);
            marks::set(&disk.path, record.id);
            (self.place.top, self.place.format) = (disk.path.clone(), Format::Qcow2);
        } else {
            self.taken += 1;
            let overlay = self
                .place
                .path("disks")
                .join(format!("web1-xvda.after-{name}.{}.qcow2", self.taken));
            self.overlay(&overlay, &disk.path, disk.format.unwrap());
            (self.place.top, self.place.format) = (overlay, Format::Qcow2);
        }
        self.current = Some(record.id);
        if old != self.place.top {
            self.left.insert(old);
        }
        self.left.remove(&self.place.top);
        self.place.write_cfg();
    }

    fn overlay(&self, overlay: &Path, base: &Path, format: Format) {
        let (base, new) = (base.display().to_string(), overlay.display().to_string());
        run(
            Tool::QemuImg,
            &["create", "-q", "-f", "qcow2", "-F", format.qemu(), "-b", &base, &new],
        );
    }

    fn clone(&mut self, which: &Index) {
        let Some(name) = self.pick(which).filter(|name| name.starts_with('s')) else { return };
        self.taken += 1;
        let record = image::rewrite::read(&self.place.image(&name)).unwrap();
        let disk = &record.disks[0];
        let overlay = self.place.path("disks").join(format!("clone-{}.qcow2", self.taken));
        self.overlay(&overlay, &disk.path, disk.format.unwrap());
        self.clones.insert(overlay, self.place.content[&name].clone());
    }

    fn delete(&mut self, which: &Index, flatten: bool, cut: usize) {
        let Some(name) = self.pick(which) else { return };
        let current = self.disk();
        let plan = match self.place.plan(&name, flatten) {
            Ok(plan) => plan,
            Err(error) => return self.was_refused(&error, &current),
        };
        carry_out(&plan, cut);
        self.place.check(&name, &current, &format!("{name}, cut after {cut} steps"));
        let left = [self.place.image(&name), deleting_path(&self.place.image(&name))];
        if left.iter().any(|path| path.exists()) {
            let plan = self.place.plan(&name, flatten);
            let plan = plan.unwrap_or_else(|error| panic!("{name}, again: {:?}", error.chain()));
            carry_out(&plan, usize::MAX);
        }
        let there: Vec<_> = left.iter().filter(|path| path.exists()).collect();
        assert!(there.is_empty(), "{name}: {there:?}");
        self.place.content.remove(&name);
        let ids: Vec<_> = self.place.content.keys().map(|name| self.id(name)).collect();
        self.current = self.current.filter(|id| ids.contains(id));
        (self.place.top, self.place.format) = self.place.now();
        self.left.retain(|path| path.exists());
        self.deleted += 1;
    }

    fn was_refused(&mut self, error: &Error, current: &[u8]) {
        assert_eq!(error.exit_code(), 3, "{:?}", error.chain());
        assert!(error.hint.is_some(), "no way out: {:?}", error.chain());
        self.place.check("", current, "refused");
        self.refused += 1;
    }

    fn id(&self, name: &str) -> Uuid {
        image::rewrite::read(&self.place.image(name)).unwrap().id
    }

    /// All of it.
    fn check(&self, context: &str) {
        self.place.check("", &self.disk(), context);
        for (path, bytes) in &self.clones {
            assert!(
                content(path, Format::Qcow2, None) == *bytes,
                "{context}: {} has another content",
                path.display()
            );
        }
        let mut explained = BTreeSet::new();
        let tops = self.clones.keys().chain(&self.left).chain([&self.place.top]);
        let frozen: Vec<_> = self
            .place
            .content
            .keys()
            .map(|name| image::rewrite::read(&self.place.image(name)).unwrap())
            .collect();
        for top in tops.chain(frozen.iter().map(|record| &record.disks[0].path)) {
            explained.extend(chain(top));
        }
        for name in self.place.images() {
            let path = self.place.path("disks").join(&name);
            // The user's own first image is never removed.
            assert!(explained.contains(&path) || name == "a.img", "{context}: {name} is nobody's");
            assert_eq!(files::merge_mark::of(&path), None, "{context}: {name} has a mark");
            if !name.ends_with(".img") {
                run(Tool::QemuImg, &["check", "-q", "-f", "qcow2", &path.display().to_string()]);
            }
        }
    }
}

/// An image and all below it.
fn chain(top: &Path) -> Vec<PathBuf> {
    let raw = top.extension().is_some_and(|end| end == "img");
    let format = if raw { Format::Raw } else { Format::Qcow2 };
    chain::walk(top, format).unwrap().into_iter().map(|link| link.path).collect()
}

#[test]
fn whatever_is_done_the_others_stay_good() {
    let seconds = env::var("WALK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut runner = TestRunner::new(Config {
        failure_persistence: None,
        max_shrink_time: 120_000,
        ..Config::default()
    });
    let (steps, walks) = (Cell::new(0), Cell::new(0));
    while Instant::now() < end {
        let tree = moves().new_tree(&mut runner).unwrap();
        let result = runner.run_one(tree, |moves| {
            let mut walk = Walk::new();
            for (i, step) in moves.iter().enumerate() {
                walk.go(step);
                walk.check(&format!("after {i}, {step:?}"));
            }
            steps.set(steps.get() + moves.len());
            walks.set(walks.get() + 1);
            Ok(())
        });
        if let Err(TestError::Fail(why, moves)) = result {
            panic!("{why}\nThe moves: {moves:#?}");
        }
    }
    println!("{} walks, {} steps", walks.get(), steps.get());
}
