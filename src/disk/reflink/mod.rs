//! Copies that share their content with the file, on a file system with reflinks (XFS, Btrfs).
//!
//! Instant, and the guest stays on its file, which blkback may serve. Only for raw files: QEMU
//! caches metadata of other formats in memory.

pub(super) mod record;

use std::path::{Path, PathBuf};

use self::record::Reflink;
use crate::disk::exporting::DiskExport;
use crate::disk::image_tree::{DeleteOptions, DiskDelete, ImageTree};
use crate::disk::merge;
use crate::disk::parts::{after, place, record, refuse};
use crate::disk::planner::Planner;
use crate::disk::{Context, DiskCreate, DiskRevert, RevertContext, RunningDisk, SnapshotDisk};
use crate::domain::Format;
use crate::error::Result;
use crate::need::Requirement;
use crate::plan::Step;
use crate::spec::Choice;
use crate::tool::qemu_img::{self, Whole};

impl Planner for Reflink {
    fn create(seen: &RunningDisk, _: Option<&Choice>, _: Context<'_>) -> Result<DiskCreate> {
        let disk = &seen.disk;
        if disk.format != Some(Format::Raw) {
            return Err(refuse(
                disk,
                "only a raw file can be copied while QEMU has it open".into(),
            ));
        }
        seen.file.as_ref().map_err(|why| refuse(disk, why.clone()))?;
        if let Some(trouble) = &seen.clone_trouble {
            return Err(refuse(disk, format!("its file cannot be cloned: {trouble}")));
        }
        let copy = place(seen)?.to_owned();
        Ok(DiskCreate {
            in_pause: vec![Step::Clone {
                from: disk.file().to_owned(),
                to: copy.clone(),
                writable: false,
            }],
            ..DiskCreate::of(record(seen, Reflink { copy, proof: None }))
        })
    }

    /// Plans to copy the copy, to rename the file, which keeps its contents, and to put the new copy in its place.
    fn revert(&self, found: &SnapshotDisk, context: RevertContext<'_>) -> Result<DiskRevert> {
        let copy = self.copy.as_path();
        let proof = found.check_frozen(copy, self.proof.as_ref())?;
        let path = &found.record.path;
        let keep = &found.place.path;
        if context.new_domain.is_some_and(|domain| domain.replacement) {
            let new = old_after_switch(keep);
            // If the domain runs on the file itself, and the file is no base, nothing needs it
            // afterwards.
            let own = found.file.is_ok()
                && !found.is_base()
                && found.top_id.is_some()
                && !found.runs_elsewhere();
            let discard = own.then(|| Step::RemoveFile { path: path.clone() });
            return Ok(DiskRevert {
                prepare: vec![Step::Clone {
                    from: copy.to_owned(),
                    to: new.clone(),
                    writable: true,
                }],
                switch: Some((new, Format::Raw)),
                kept: found.kept_in_top(),
                discard: discard.into_iter().collect(),
                ..DiskRevert::default()
            });
        }
        if context.new_domain.is_some() {
            // Its directory need not be on the file system of the copy.
            let overlay = keep;
            let fill = qemu_img::create_overlay(overlay, copy, Format::Raw, proof.virtual_size);
            return Ok(DiskRevert {
                prepare: vec![Step::NewFile { path: overlay.clone(), fill }],
                switch: Some((overlay.clone(), Format::Qcow2)),
                ..DiskRevert::default()
            });
        }
        // It is a base, or the domain no longer uses it: like any base, it is not rewritten.
        if found.runs_elsewhere() || found.is_base() {
            let new = old_after_switch(keep);
            return Ok(DiskRevert {
                prepare: vec![Step::Clone {
                    from: copy.to_owned(),
                    to: new.clone(),
                    writable: true,
                }],
                switch: Some((new, Format::Raw)),
                kept: found.kept_in_top(),
                note: found.rested_on(),
                ..DiskRevert::default()
            });
        }
        // The copy is made while the domain still runs: after its end only names change.
        let new = old_after_switch(keep);
        let rename = |from: &Path, to: &Path| Step::Rename { from: from.into(), to: to.into() };
        let back = |from: &Path, to: &Path, kept: Option<&Path>| Step::UndoRename {
            from: from.into(),
            to: to.into(),
            kept: kept.map(Path::to_owned),
        };
        let had = found.file.is_ok();
        let mut put_back = vec![rename(&new, path)];
        let mut undo_revert = vec![back(path, &new, had.then_some(keep))];
        // An interrupted revert may already have renamed it.
        if had {
            put_back.insert(0, rename(path, keep));
            undo_revert.push(back(keep, path, None));
        }
        Ok(DiskRevert {
            prepare: vec![Step::Clone { from: copy.to_owned(), to: new, writable: true }],
            put_back,
            undo_revert,
            kept: found.file.is_ok().then(|| keep.display().to_string()),
            discard: found.file.iter().map(|_| Step::RemoveFile { path: keep.clone() }).collect(),
            ..DiskRevert::default()
        })
    }

    fn needs(&self, found: &SnapshotDisk, for_new_domain: bool) -> Vec<Requirement> {
        let copy = Requirement::UnwrittenFile(self.copy.clone());
        if for_new_domain {
            return vec![copy];
        }
        // The file is renamed, and a process that has it open would keep writing to it.
        let path = &found.record.path;
        let directory = path.parent().unwrap_or(Path::new("/")).to_owned();
        let mut needs = vec![
            copy,
            Requirement::UnwrittenFile(path.clone()),
            Requirement::WritableDirectory(directory),
        ];
        // Otherwise it stays where it is: see `revert`.
        if !found.runs_elsewhere() && found.file.is_ok() && !found.is_base() {
            needs.push(Requirement::RenamableFile(path.clone()));
        }
        needs
    }

    fn export(&self, found: &SnapshotDisk, _: RevertContext<'_>) -> Result<Option<DiskExport>> {
        let proof = found.check_frozen(&self.copy, self.proof.as_ref())?;
        let from = Whole::Image { path: self.copy.clone(), format: Format::Raw };
        Ok(Some(DiskExport::of(from).fitting(found, proof.whole_sectors())))
    }

    /// The copy may be the base of a clone.
    fn delete(&self, family: &ImageTree, options: DeleteOptions) -> Result<DiskDelete> {
        merge::delete(family, self.proof.as_ref(), options, true)
    }
}

/// The name of a new file with the content of the snapshot, derived from the name for the current
/// contents.
fn old_after_switch(keep: &Path) -> PathBuf {
    keep.with_file_name(after(&keep.file_name().unwrap_or_default().to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::disk::kinds::DiskSnapshot;
    use crate::disk::{FileFacts, NewDomain, Place, Served, revert};
    use crate::plan::undo;
    use crate::support::disks::{
        LOOP, facts, found, plan_one, proof, refused, refused_once_changed, revert_context,
        revert_one, seen, words,
    };

    const COPY: &str = "/srv/web1-xvdb.at-s1.img";
    const KEEP: &str = "/srv/web1-xvdb.before-revert-x.img";
    const NEW: &str = "/srv/web1-xvdb.after-revert-x.img";

    fn disk() -> RunningDisk {
        let place = Some(Place { path: COPY.into(), trouble: None });
        RunningDisk { place, ..seen(LOOP) }
    }

    fn plan(seen: &RunningDisk) -> Result<DiskCreate> {
        plan_one(seen, Some("reflink"), &Ok(Vec::new()))
    }

    /// The snapshot's copy and the guest's file, both unchanged.
    fn snapshot() -> SnapshotDisk {
        let kept = DiskSnapshot::Reflink(Reflink { copy: COPY.into(), proof: Some(proof()) });
        let own = FileFacts { inode: facts().inode + 100, ..facts() };
        let (top, top_id) = (Some("/srv/b.img".into()), Some(own.id()));
        let place = Place { path: KEEP.into(), trouble: None };
        SnapshotDisk { file: Ok(own), top, top_id, place, ..found("/srv/b.img", kept) }
    }

    #[test]
    fn the_copy_is_made_while_the_guest_stands_still_and_nobody_may_write_to_it() {
        for served in [Served::Blkback, Served::Qemu] {
            let planned = plan(&RunningDisk { served: Some(served), ..disk() }).unwrap();
            let clone = Step::Clone { from: "/srv/b.img".into(), to: COPY.into(), writable: false };
            assert_eq!(planned.in_pause, [clone]);
            assert_eq!(words(&undo(&planned.in_pause)), [format!("remove {COPY}")]);
            // The guest stays on its file.
            assert_eq!((planned.prepare, planned.action, planned.switch), (vec![], None, None));
            assert!(!planned.by_restore);
            assert_eq!(
                planned.record.snapshot,
                DiskSnapshot::Reflink(Reflink { copy: COPY.into(), proof: None })
            );
        }
    }

    #[test]
    fn what_cannot_be_copied_is_refused() {
        let refuse = |words: &str, change: &dyn Fn(&mut RunningDisk)| {
            let mut seen = disk();
            change(&mut seen);
            refused(plan(&seen), &["Disk xvdb (/srv/b.img) cannot be snapshotted", words]);
        };
        for format in [None, Some(Format::Qcow2), Some(Format::Vhd), Some(Format::Qed)] {
            refuse("only a raw file", &|seen| seen.disk.format = format);
        }
        refuse("it is not a regular file", &|seen| {
            seen.file = Err("it is not a regular file".into());
        });
        refuse("cannot be cloned: its path is a symbolic link; name the file itself", &|seen| {
            seen.clone_trouble = Some("its path is a symbolic link; name the file itself".into());
        });
        refuse("a new file is needed: x exists", &|seen| {
            seen.place.as_mut().unwrap().trouble = Some("x exists".into());
        });
        refuse("cannot be a part of a path", &|seen| seen.place = None);
    }

    #[test]
    fn the_file_keeps_its_content_under_another_name() {
        let planned = revert_one(&snapshot()).unwrap();
        assert_eq!(
            words(&planned.put_back),
            [format!("rename /srv/b.img to {KEEP}"), format!("rename {NEW} to /srv/b.img")]
        );
        assert_eq!(planned.kept.as_deref(), Some(KEEP));
        assert_eq!(planned.discard, [Step::RemoveFile { path: KEEP.into() }]);
        assert_eq!(words(&planned.prepare), [format!("clone {COPY} to {NEW}")]);
        assert_eq!(words(&undo(&planned.prepare)), [format!("remove {NEW}")]);
        assert_eq!(planned.switch, None);
        let back = [
            format!("rename /srv/b.img back to {NEW}"),
            format!("rename {KEEP} back to /srv/b.img"),
        ];
        assert_eq!(words(&planned.undo_revert), back);
    }

    #[test]
    fn a_base_of_other_images_is_left_where_it_is() {
        let mut base = snapshot();
        base.file.as_mut().unwrap().writable = false;
        let place = Place { path: KEEP.into(), trouble: None };
        let left = SnapshotDisk { place, ..found("/srv/b.img", snapshot().record.snapshot) };
        for found in [base, left] {
            let planned = revert_one(&found).unwrap();
            assert_eq!(words(&planned.prepare), [format!("clone {COPY} to {NEW}")]);
            assert_eq!(planned.switch, Some((NEW.into(), Format::Raw)));
            assert_eq!((planned.put_back, planned.discard), (vec![], vec![]));
            assert_eq!(planned.kept, found.kept_in_top());
        }
    }

    #[test]
    fn a_domain_that_is_restored_first_gets_a_raw_file_of_its_own() {
        let planned = |found: &SnapshotDisk| {
            let (keep, volumes) = ("before-revert-x".parse().unwrap(), Ok(Vec::new()));
            let replacement =
                NewDomain { name: "after-revert-x", uuid: Uuid::nil(), replacement: true };
            let context = revert_context(&keep, &volumes);
            revert(found, RevertContext { new_domain: Some(replacement), ..context }).unwrap()
        };
        let found = snapshot();
        let first = planned(&found);
        assert_eq!(words(&first.prepare), [format!("clone {COPY} to {NEW}")]);
        assert_eq!(words(&undo(&first.prepare)), [format!("remove {NEW}")]);
        assert_eq!(first.switch, Some((NEW.into(), Format::Raw)));
        assert_eq!((first.put_back, first.settle), (vec![], vec![]));
        assert_eq!(first.discard, [Step::RemoveFile { path: "/srv/b.img".into() }]);
        // Do not delete a base, or a file that the domain no longer uses.
        let mut base = found.clone();
        base.file.as_mut().unwrap().writable = false;
        let left = SnapshotDisk { top_id: Some((9, 9)), ..found };
        for found in [base, left] {
            assert_eq!(planned(&found).discard, []);
        }
    }

    #[test]
    fn a_revert_that_was_cut_short_has_renamed_the_file_already() {
        let gone = SnapshotDisk { file: Err("No such file".into()), ..snapshot() };
        let planned = revert_one(&gone).unwrap();
        assert_eq!(words(&planned.put_back), [format!("rename {NEW} to /srv/b.img")]);
        assert_eq!(words(&planned.undo_revert), [format!("rename /srv/b.img back to {NEW}")]);
        assert_eq!((planned.kept, planned.discard), (None, vec![]));
    }

    #[test]
    fn what_is_wrong_with_the_copy_is_told_of_the_copy() {
        let told = format!("(/srv/b.img) cannot be reverted: its copy {COPY}: No such file");
        refused_once_changed(
            &snapshot(),
            &[(&told, &|found| found.frozen = Err("No such file".into()))],
        );
        // The guest's own file is a new one each time.
        let mut found = snapshot();
        found.file.as_mut().unwrap().inode += 1;
        revert_one(&found).unwrap();
    }
}
