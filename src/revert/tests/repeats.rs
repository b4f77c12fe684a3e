//! Reverts of logical volumes that fail and are repeated, on a model of LVM's volumes.

use std::collections::BTreeSet;

use super::volumes::{DISCARD, found_volumes};
use super::*;
use crate::plan::Step;
use crate::tool::volumes::parse;

const ORIGINS: [&str; 2] = ["a", "b"];

/// A volume and its contents.
#[derive(Debug, Clone)]
struct Lv {
    name: String,
    origin: String,
    tags: BTreeSet<String>,
    content: &'static str,
    /// Whether its origin was written to since it was taken.
    used: bool,
}

#[derive(Debug, Clone)]
struct Lvm(Vec<Lv>);

impl Lvm {
    /// The guest has written to both volumes since the snapshot.
    fn new() -> Lvm {
        let lv = |name: &str, origin: &str, content, tags: &[String]| Lv {
            name: name.to_owned(),
            origin: origin.to_owned(),
            tags: tags.iter().cloned().collect(),
            content,
            used: !origin.is_empty(),
        };
        let tag = |vdev: &str| format!("xl-snapshot:{}:{vdev}", sample().id);
        Lvm(vec![
            lv("a", "", "now", &[]),
            lv("a.s1", "a", "then", &[tag("xvda")]),
            lv("b", "", "now", &[]),
            lv("b.s1", "b", "then", &[tag("xvdb")]),
        ])
    }

    fn at(&mut self, path: &str) -> &mut Lv {
        let name = path.strip_prefix("vg0/").unwrap();
        self.0.iter_mut().find(|lv| lv.name == name).unwrap_or_else(|| panic!("no {path}"))
    }

    fn perform(&mut self, step: &Step) {
        let Step::Run(call) = step else {
            return if let Step::Together(steps) = step {
                steps.iter().for_each(|step| self.perform(step));
            };
        };
        let line = call.to_string();
        let words: Vec<&str> = line.split(' ').collect();
        let after = |flag: &str| {
            words.iter().position(|word| *word == flag).map(|at| words[at + 1].to_owned())
        };
        let last = (*words.last().unwrap()).to_owned();
        match words[1] {
            "lvcreate" => {
                let origin = self.at(&last).clone();
                let name = after("--name").unwrap();
                assert!(self.0.iter().all(|lv| lv.name != name), "{name} exists");
                let tags = after("--addtag").into_iter().collect();
                self.0.push(Lv { name, origin: origin.name.clone(), tags, used: false, ..origin });
            }
            "lvchange" => {
                let lv = self.at(&last);
                lv.tags.extend(after("--addtag"));
                lv.tags.retain(|tag| Some(tag) != after("--deltag").as_ref());
            }
            "lvconvert" => {
                let merged = self.at(&last).clone();
                self.0.retain(|lv| lv.name != merged.name);
                self.at(&format!("vg0/{}", merged.origin)).content = merged.content;
                if merged.used {
                    let others = self.0.iter_mut().filter(|lv| lv.origin == merged.origin);
                    others.for_each(|lv| lv.used = true);
                }
            }
            "lvremove" => {
                let name = self.at(&last).name.clone();
                self.0.retain(|lv| lv.name != name);
            }
            other => panic!("{other}"),
        }
    }

    fn found(&self, now: &str, running: bool) -> RevertInput {
        let list = self.0.iter().map(|lv| {
            serde_json::json!({
                "vg_name": "vg0", "lv_name": lv.name, "lv_size": (64_u64 << 20).to_string(),
                "lv_layout": "linear", "origin": lv.origin, "pool_lv": "",
                "lv_tags": lv.tags.iter().cloned().collect::<Vec<_>>().join(","),
                "lv_device_open": "0", "lv_merging": "0", "lv_snapshot_invalid": "0",
                "lv_permissions": if lv.origin.is_empty() { "writeable" } else { "read-only" },
                "data_percent": if lv.used { "0.01" } else { "0.00" }, "metadata_percent": "",
                "lv_kernel_major": "253", "lv_kernel_minor": "0",
                "vg_free": (1_u64 << 30).to_string(), "vg_extent_size": "4194304",
            })
        });
        let list: Vec<_> = list.collect();
        let report = serde_json::json!({"report": [{"lv": list}]});
        let mut found = found_volumes(0);
        found.volumes = Ok(parse(report.to_string().as_bytes()).unwrap());
        found.now = now.parse().unwrap();
        if !running {
            (found.same, found.named) = (None, None);
        }
        found
    }

    fn kept(&self, origin: &str) -> Vec<&'static str> {
        let kept = self.0.iter().filter(|lv| lv.name.contains("before-revert"));
        kept.filter(|lv| lv.origin == origin).map(|lv| lv.content).collect()
    }
}

/// Fails a revert before and after each of its steps, and its repeats at the restore; the last repeat succeeds.
#[test]
fn repeats_leave_nothing_more_behind() {
    for (first, again) in
        [(OPTIONS, OPTIONS), (DISCARD, DISCARD), (DISCARD, OPTIONS), (OPTIONS, DISCARD)]
    {
        let steps =
            plan(&Lvm::new().found("2026-03-02T00:00:00Z", true), first).unwrap().plan.onward;
        for done in 0..=steps.len() {
            let mut lvm = Lvm::new();
            let mut ended = None;
            for (minute, options) in [first, again, again, again].into_iter().enumerate() {
                let now = format!("2026-03-02T00:0{minute}:00Z");
                let revert = plan(&lvm.found(&now, minute == 0), options).unwrap();
                let done = if minute == 0 { done } else { revert.plan.onward.len() };
                revert.plan.onward[..done].iter().for_each(|step| lvm.perform(step));
                for origin in ORIGINS {
                    assert!(lvm.kept(origin).len() <= 1, "{done}: {:?}", lvm.kept(origin));
                }
                ended = Some(revert);
            }
            let ended = ended.unwrap();
            assert!(!ended.plan.to_string().contains("is lost"), "{}", ended.plan);
            ended.plan.finish.iter().for_each(|step| lvm.perform(step));
            for (origin, kept) in ORIGINS.iter().zip(&ended.kept) {
                let at = |name: &str| lvm.0.iter().find(|lv| lv.name == name).unwrap();
                assert_eq!(at(origin).content, "then");
                assert_eq!(at(&format!("{origin}.s1")).content, "then");
                assert!(at(origin).tags.is_empty(), "{:?}", at(origin));
                // The volume that the first attempt kept remains.
                let name = kept.as_ref().unwrap().strip_prefix("the volume vg0/").unwrap();
                match lvm.kept(origin).as_slice() {
                    ["now"] => assert_eq!(at(name).content, "now"),
                    [] => assert!(first.discard_current || again.discard_current),
                    other => panic!("{done}: {other:?}"),
                }
                if first == again {
                    assert_eq!(lvm.kept(origin).is_empty(), again.discard_current, "{done}");
                }
            }
        }
    }
}

/// The guest has run since the revert: what it wrote is kept again.
#[test]
fn a_volume_that_was_written_to_is_put_back_again() {
    let mut lvm = Lvm::new();
    for (minute, running) in [(0, true), (1, true), (2, false)] {
        let now = format!("2026-03-02T00:0{minute}:00Z");
        let onward = plan(&lvm.found(&now, running), OPTIONS).unwrap().plan.onward;
        onward.iter().for_each(|step| lvm.perform(step));
        assert_eq!(lvm.kept("a").len(), minute + 1);
        lvm.0.iter_mut().filter(|lv| !lv.origin.is_empty()).for_each(|lv| lv.used = true);
        ["vg0/a", "vg0/b"].iter().for_each(|path| lvm.at(path).content = "later");
    }
    assert_eq!(lvm.kept("a"), ["now", "later", "later"]);
}
