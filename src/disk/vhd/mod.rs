//! VHDs that tapdisk serves: the guest continues in a child, and its previous VHD is frozen.
//!
//! A running tapdisk cannot switch a disk that is not blktap's own, so the domain is restored on
//! the child.

mod delete;
pub(super) mod record;

use self::record::Vhd;
pub use self::record::target;
use crate::disk::exporting::DiskExport;
use crate::disk::image_tree::{DeleteOptions, DiskDelete, ImageTree};
use crate::disk::parts::{place, record, refuse, refuse_revert};
use crate::disk::planner::Planner;
use crate::disk::{
    Context, DiskCreate, DiskRevert, RevertContext, RunningDisk, Served, SnapshotDisk,
};
use crate::domain::Format;
use crate::error::Result;
use crate::need::Requirement;
use crate::plan::Step;
use crate::spec::Choice;
use crate::tool::qemu_img::Whole;
use crate::tool::vhd_util::{MAX_DEPTH, snapshot};

impl Planner for Vhd {
    fn only_method(seen: &RunningDisk) -> Option<&'static str> {
        seen.disk.is_tap_vhd().then_some("a VHD that tapdisk serves has external snapshots only")
    }

    /// Plans a child.
    fn create(seen: &RunningDisk, _: Option<&Choice>, _: Context<'_>) -> Result<DiskCreate> {
        let disk = &seen.disk;
        let refuse = |why: String| refuse(disk, why);
        let file = seen.file.as_ref().map_err(|why| refuse(why.clone()))?;
        let facts =
            seen.vhd.clone().unwrap_or_else(|| Err("it is not a VHD".into())).map_err(refuse)?;
        let depth =
            facts.depth.ok_or_else(|| refuse("the length of its chain is not known".into()))?;
        if depth >= MAX_DEPTH {
            return Err(refuse(format!("its chain has {depth} files, {MAX_DEPTH} are the limit"))
                .hint(format!(
                    "make it shorter with vhd-util coalesce while {} is down",
                    disk.vdev
                )));
        }
        let child = place(seen)?.to_owned();
        let parent = disk.file();
        let protect = file.writable.then(|| Step::MakeReadOnly { path: parent.to_owned() });
        Ok(DiskCreate {
            prepare: protect.into_iter().collect(),
            // While the guest is suspended, because a child records when its parent was last
            // written to.
            in_pause: vec![Step::NewFile { path: child.clone(), fill: snapshot(&child, parent) }],
            switch: Some((target(&child), Format::Raw)),
            by_restore: seen.served != Some(Served::Nobody),
            ..DiskCreate::of(record(seen, Vhd { child, proof: None }))
        })
    }

    /// Plans a new child of the frozen VHD.
    fn revert(&self, found: &SnapshotDisk, _: RevertContext<'_>) -> Result<DiskRevert> {
        let record = &found.record;
        found.check_frozen(&record.path, self.proof.as_ref())?;
        let child = &found.place.path;
        let discard = match (&found.top, &found.top_parent) {
            (Some(top), Some(parent))
                if found.file.as_ref().is_ok_and(|file| file.id() == *parent)
                    && !found.top_protected
                    && found.top_base_of.is_none() =>
            {
                vec![Step::RemoveFile { path: top.clone() }]
            }
            _ => Vec::new(),
        };
        Ok(DiskRevert {
            prepare: vec![Step::NewFile {
                path: child.clone(),
                fill: snapshot(child, &record.path),
            }],
            switch: Some((target(child), Format::Raw)),
            kept: found.kept_in_top(),
            discard,
            note: found.top_rested_on(),
            ..DiskRevert::default()
        })
    }

    fn needs(&self, found: &SnapshotDisk, _: bool) -> Vec<Requirement> {
        vec![Requirement::UnwrittenFile(found.record.path.clone())]
    }

    /// QEMU reads a VHD, but not its parents.
    fn export(&self, found: &SnapshotDisk, _: RevertContext<'_>) -> Result<Option<DiskExport>> {
        let record = &found.record;
        let proof = found.check_frozen(&record.path, self.proof.as_ref())?;
        if let Some((parent, _)) = found.below.iter().flatten().next() {
            let why = format!("it is a VHD with a parent, {}", parent.display());
            return Err(refuse_revert(record, why).hint(
                "QEMU does not read parents: merge the chain with vhd-util coalesce, while the domain is \
                 down, or export the first snapshot of it",
            ));
        }
        let from = Whole::TapVhd { path: record.path.clone() };
        Ok(Some(DiskExport::of(from).fitting(found, proof.whole_sectors())))
    }

    fn delete(&self, family: &ImageTree, _: DeleteOptions) -> Result<DiskDelete> {
        delete::plan(family, self.proof.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::disk::Place;
    use crate::disk::kinds::DiskSnapshot;
    use crate::plan::undo;
    use crate::support::disks::{
        TAP, facts, found, plan_one, proof, refused, revert_one, seen, words,
    };
    use crate::tool::vhd_util::query_depth;

    const CHILD: &str = "/srv/web1-xvdc.after-s1.vhd";

    fn disk() -> RunningDisk {
        RunningDisk { place: Some(Place { path: CHILD.into(), trouble: None }), ..seen(TAP) }
    }

    fn plan(seen: &RunningDisk) -> Result<DiskCreate> {
        plan_one(seen, None, &Ok(Vec::new()))
    }

    /// A VHD whose domain runs on the child made for the snapshot.
    fn frozen() -> SnapshotDisk {
        let kept = DiskSnapshot::Vhd(Vhd { child: CHILD.into(), proof: Some(proof()) });
        SnapshotDisk {
            top: Some(CHILD.into()),
            top_parent: Some(facts().id()),
            ..found("/srv/c.vhd", kept)
        }
    }

    #[test]
    fn every_argument_list() {
        let (a, b) = (Path::new("/srv/a b.vhd"), Path::new("/srv/b.vhd"));
        assert_eq!(query_depth(a).to_string(), "vhd-util query -d -n '/srv/a b.vhd'");
        assert_eq!(
            snapshot(b, a).to_string(),
            "vhd-util snapshot -e -l 30 -n /srv/b.vhd -p '/srv/a b.vhd'"
        );
        assert_eq!(target(a), Path::new("vhd:/srv/a b.vhd"));
    }

    #[test]
    fn the_guest_goes_on_in_a_child() {
        let planned = plan(&disk()).unwrap();
        assert_eq!(words(&planned.prepare), ["make /srv/c.vhd read-only: it becomes a base"]);
        assert_eq!(
            words(&planned.in_pause),
            [format!("make {CHILD}: vhd-util snapshot -e -l 30 -n {CHILD} -p /srv/c.vhd")]
        );
        assert_eq!(planned.switch, Some((format!("vhd:{CHILD}").into(), Format::Raw)));
        assert!(planned.by_restore, "nothing switches a running tapdisk");
        assert_eq!(planned.action, None);
        assert_eq!(planned.record.path, Path::new("/srv/c.vhd"));
        assert_eq!(
            planned.record.snapshot,
            DiskSnapshot::Vhd(Vhd { child: CHILD.into(), proof: None })
        );
        assert_eq!(words(&undo(&planned.in_pause)), [format!("remove {CHILD}")]);
    }

    #[test]
    fn a_vhd_that_is_a_base_already_is_left_so() {
        let mut seen = disk();
        seen.file.as_mut().unwrap().writable = false;
        assert_eq!(plan(&seen).unwrap().prepare, []);
    }

    #[test]
    fn a_chain_grows_to_thirty_files_and_no_further() {
        for (depth, words) in [
            (Some(1), None),
            (Some(29), None),
            (Some(30), Some("its chain has 30 files, 30 are the limit")),
            (Some(31), Some("its chain has 31 files, 30 are the limit")),
            (None, Some("the length of its chain is not known")),
        ] {
            let mut seen = disk();
            let Some(Ok(vhd)) = &mut seen.vhd else { unreachable!() };
            vhd.depth = depth;
            match words {
                Some(words) => refused(plan(&seen), &[words]),
                None => drop(plan(&seen).unwrap()),
            }
        }
        let mut full = disk();
        let Some(Ok(vhd)) = &mut full.vhd else { unreachable!() };
        vhd.depth = Some(30);
        refused(plan(&full), &["vhd-util coalesce"]);
    }

    #[test]
    fn what_is_no_vhd_or_has_no_room_is_refused() {
        let refuse = |words: &str, change: &dyn Fn(&mut RunningDisk)| {
            let mut seen = disk();
            change(&mut seen);
            refused(plan(&seen), &["Disk xvdc (/srv/c.vhd) cannot be snapshotted", words]);
        };
        refuse("it has no footer of a VHD", &|seen| {
            seen.vhd = Some(Err("it has no footer of a VHD".into()));
        });
        refuse("it is not a VHD", &|seen| seen.vhd = None);
        refuse("No such file", &|seen| seen.file = Err("No such file".into()));
        refuse("a new file is needed: x exists", &|seen| {
            seen.place.as_mut().unwrap().trouble = Some("x exists".into());
        });
    }

    #[test]
    fn a_revert_makes_another_child() {
        let planned = revert_one(&frozen()).unwrap();
        assert_eq!(
            words(&planned.prepare),
            ["make /srv/new: vhd-util snapshot -e -l 30 -n /srv/new -p /srv/c.vhd"]
        );
        assert_eq!(planned.put_back, []);
        assert_eq!(planned.switch, Some(("vhd:/srv/new".into(), Format::Raw)));
        assert_eq!(planned.kept.as_deref(), Some(CHILD));
        assert_eq!(planned.discard, [Step::RemoveFile { path: CHILD.into() }]);
    }

    #[test]
    fn only_a_child_that_nothing_needs_is_deleted() {
        let kept = |change: &dyn Fn(&mut SnapshotDisk)| {
            let mut found = frozen();
            change(&mut found);
            assert_eq!(revert_one(&found).unwrap().discard, []);
        };
        kept(&|found| found.top_protected = true);
        kept(&|found| found.top_parent = None);
        kept(&|found| found.top_parent = Some((1, 99)));
        kept(&|found| found.top = None);
    }
}
