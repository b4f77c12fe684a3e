//! External snapshots: the guest continues in a qcow2 overlay, and its previous file is frozen.
//!
//! QEMU switches a disk it serves while the guest is suspended. blkback cannot switch: then the
//! domain is restored, from the image just written, on the overlay.
//!
//! The base loses its write permission. That keeps our own revert from rewriting it (root ignores
//! permissions, so nothing else changes for Xen), and shows an administrator in `ls -l` that the
//! file is a base.

pub(super) mod record;

use std::path::Path;

use self::record::External;
use crate::disk::exporting::DiskExport;
use crate::disk::image_tree::{DeleteOptions, DiskDelete, ImageTree};
use crate::disk::merge;
use crate::disk::parts::{node, place, record, refuse, refuse_by_hand, refuse_revert};
use crate::disk::planner::{ByHand, Planner};
use crate::disk::{
    Context, DiskCreate, DiskRevert, RevertContext, RunningDisk, Served, SnapshotDisk,
};
use crate::domain::{Disk, Format};
use crate::error::Result;
use crate::need::Requirement;
use crate::plan::{Action, Step};
use crate::record::{DiskRecord, FrozenFile, SECTOR};
use crate::spec::Choice;
use crate::tool::qemu_img::Whole;
use crate::tool::{check_path, qemu_img};

/// QEMU's limit for a node name (block.c, `node_name[32]`).
const MAX_NODE_NAME: usize = 31;

impl Planner for External {
    fn create(seen: &RunningDisk, _: Option<&Choice>, context: Context<'_>) -> Result<DiskCreate> {
        let disk = &seen.disk;
        let refuse = |why: String| refuse(disk, why);
        let format = disk.format.ok_or_else(|| refuse("its format is not known".into()))?;
        if seen.device.is_some() {
            return Err(refuse(
                "an overlay on a device proves nothing of what the device holds".into(),
            )
            .hint(format!("is it a logical volume? then take --disk {},lvm", disk.vdev)));
        }
        let facts = seen.file.as_ref().map_err(|why| refuse(why.clone()))?;
        seen.own.as_ref().map_err(|why| refuse(why.clone()))?;
        // QEMU's driver does not support parents, and would read zeroes instead of their data.
        if let (Format::Vhd, Some(vhd)) = (format, &seen.vhd) {
            let vhd = vhd.as_ref().map_err(|why| refuse(why.clone()))?;
            if vhd.differencing {
                return Err(refuse(
                    "it is a VHD with a parent, which QEMU does not look at".into(),
                ));
            }
        }
        let by_restore = seen.served == Some(Served::Blkback);
        let node = if by_restore { None } else { Some(node(seen)?) };
        let by_qemu = seen.served == Some(Served::Qemu);
        if by_qemu && context.confined {
            return Err(refuse(
                "its QEMU is confined (dm_restrict) and cannot open an overlay".into(),
            ));
        }
        if let Some(sectors) = seen.sectors.filter(|sectors| by_restore && sectors.size != SECTOR) {
            return Err(refuse(format!(
                "the guest sees sectors of {} bytes, and those of an overlay have {SECTOR}",
                sectors.size
            )));
        }
        let size = seen.virtual_size().unwrap_or(facts.size);
        if size == 0 {
            return Err(refuse(format!("it is smaller than a sector, {SECTOR} bytes")));
        }
        let overlay = place(seen)?.to_owned();
        let mut prepare = vec![Step::NewFile {
            path: overlay.clone(),
            fill: qemu_img::create_overlay(&overlay, disk.file(), format, size),
        }];
        if facts.writable {
            prepare.push(Step::MakeReadOnly { path: disk.file().to_owned() });
        }
        let tag = context.id.simple().to_string();
        let mut new_node = format!("{}-{}", disk.vdev, &tag[..8]);
        new_node.truncate(MAX_NODE_NAME);
        Ok(DiskCreate {
            prepare,
            action: node.filter(|_| by_qemu).map(|node| Action::Overlay {
                vdev: disk.vdev.clone(),
                node: node.name.clone(),
                file: overlay.clone(),
                new_node,
            }),
            switch: Some((overlay.clone(), Format::Qcow2)),
            by_restore,
            ..DiskCreate::of(record(seen, External { overlay, proof: None }))
        })
    }

    /// Plans a new overlay on the base.
    fn revert(&self, found: &SnapshotDisk, _: RevertContext<'_>) -> Result<DiskRevert> {
        let record = &found.record;
        let base = &record.path;
        let proof = found.check_frozen(base, self.proof.as_ref())?;
        let format =
            record.format.ok_or_else(|| refuse_revert(record, "its format is not known"))?;
        let overlay = &found.place.path;
        Ok(DiskRevert {
            prepare: vec![Step::NewFile {
                path: overlay.clone(),
                fill: qemu_img::create_overlay(overlay, base, format, proof.whole_sectors()),
            }],
            switch: Some((overlay.clone(), Format::Qcow2)),
            kept: found.kept_in_top(),
            discard: found.discard_top(),
            note: found.top_rested_on(),
            ..DiskRevert::default()
        })
    }

    fn needs(&self, found: &SnapshotDisk, _: bool) -> Vec<Requirement> {
        vec![Requirement::UnwrittenFile(found.record.path.clone())]
    }

    fn export(&self, found: &SnapshotDisk, _: RevertContext<'_>) -> Result<Option<DiskExport>> {
        let record = &found.record;
        let proof = found.check_frozen(&record.path, self.proof.as_ref())?;
        let format =
            record.format.ok_or_else(|| refuse_revert(record, "its format is not known"))?;
        let from = Whole::Image { path: record.path.clone(), format };
        Ok(Some(DiskExport::of(from).fitting(found, proof.whole_sectors())))
    }

    fn by_hand(disk: &Disk, by_hand: &ByHand<'_>) -> Result<DiskRecord> {
        let refuse = |why: String| refuse_by_hand(disk, why);
        let ByHand { chain, view, .. } = by_hand;
        // By any path.
        let is = |one: &Path, other: &Path| {
            let id = |path: &Path| view.facts(path).map(|facts| facts.id());
            one == other || id(one).is_ok_and(|one| id(other) == Ok(one))
        };
        let at = match &by_hand.choice.file {
            None => 1,
            Some(file) => chain
                .iter()
                .position(|image| is(&image.filename, file))
                .filter(|at| *at > 0)
                .ok_or_else(|| refuse(format!("{} is not in its backing chain", file.display())))?,
        };
        let base = chain.get(at).ok_or_else(|| {
            refuse("it is no overlay: nothing was frozen below it".into())
                .hint("put the overlay on the frozen image into the configuration")
        })?;
        check_path(&base.filename).map_err(|why| refuse(why.to_string()))?;
        // A format that qemu-img probed may come from data that the guest wrote.
        let stated = chain[at - 1].backing_filename_format.as_deref();
        let format = stated.and_then(Format::of_qemu).ok_or_else(|| {
            refuse(format!("the format of {} is not stated above it", base.filename.display()))
                .hint("qemu-img rebase -u -b BASE -F FORMAT OVERLAY states it")
        })?;
        let facts = view.facts(&base.filename).map_err(refuse)?;
        let proof = FrozenFile {
            virtual_size: base.virtual_size,
            file_size: facts.size,
            mtime: facts.mtime,
            inode: facts.inode,
        };
        let overlay = disk.file().to_owned();
        Ok(DiskRecord {
            vdev: disk.vdev.clone(),
            path: base.filename.clone(),
            format: Some(format),
            snapshot: External { overlay, proof: Some(proof) }.into(),
        })
    }

    /// Merges the base with its overlays.
    fn delete(&self, family: &ImageTree, options: DeleteOptions) -> Result<DiskDelete> {
        merge::delete(family, self.proof.as_ref(), options, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Sectors;
    use crate::disk::kinds::DiskSnapshot;
    use crate::plan::undo;
    use crate::support::disks::{LOOP, found, plan_one, proof, refused, revert_one, seen, words};

    const VHD: &str =
        r#"{"pdev_path": "/srv/c.vhd", "vdev": "xvdc", "format": "vhd", "readwrite": 1}"#;

    fn plan(seen: &RunningDisk) -> Result<DiskCreate> {
        plan_one(seen, Some("external"), &Ok(Vec::new()))
    }

    #[test]
    fn what_blkback_serves_is_switched_by_a_restore() {
        let planned = plan(&seen(LOOP)).unwrap();
        assert!(planned.by_restore);
        assert_eq!(planned.action, None);
        assert_eq!(planned.in_pause, []);
        assert_eq!(planned.switch, Some(("/srv/new".into(), Format::Qcow2)));
        // Its size is that of the file: QEMU does not have it.
        assert_eq!(
            words(&planned.prepare),
            [
                "make /srv/new: qemu-img create -q -u -f qcow2 -F raw -b /srv/b.img /srv/new 1048576",
                "make /srv/b.img read-only: it becomes a base",
            ]
        );
        assert_eq!(
            words(&undo(&planned.prepare)),
            ["make /srv/b.img writable again", "remove /srv/new"]
        );
    }

    #[test]
    fn an_overlay_is_as_long_as_the_guest_sees_it() {
        let overlay = |disk: &RunningDisk| words(&plan(disk).unwrap().prepare)[0].clone();
        let mut disk = seen(LOOP);
        disk.file.as_mut().unwrap().size = 67_000_000;
        // Only if nothing else states the size, use the length of the file, in whole sectors.
        disk.sectors = None;
        assert!(overlay(&disk).ends_with(" 66999808"), "{}", overlay(&disk));
        // It grew, and the loop device has the old size.
        disk.sectors = Some(Sectors { count: 2000, size: SECTOR });
        assert!(overlay(&disk).ends_with(" 1024000"), "{}", overlay(&disk));
        disk.sectors = Some(Sectors { count: 2000, size: 4096 });
        refused(plan(&disk), &["the guest sees sectors of 4096 bytes"]);
        disk.sectors = Some(Sectors { count: 0, size: SECTOR });
        refused(plan(&disk), &["it is smaller than a sector"]);
    }

    #[test]
    fn a_record_of_any_length_is_put_back() {
        // An earlier version recorded the length of the file, this one the size that the guest
        // sees.
        for recorded in [67_000_000, 66_999_808] {
            let kept = FrozenFile { virtual_size: recorded, file_size: 67_000_000, ..proof() };
            let kept =
                DiskSnapshot::External(External { overlay: "/srv/o".into(), proof: Some(kept) });
            let mut disk = found("/srv/b.img", kept);
            disk.frozen.as_mut().unwrap().size = 67_000_000;
            // The size according to qemu-img.
            disk.virtual_size = Ok(67_000_320);
            let planned = revert_one(&disk).unwrap();
            assert!(words(&planned.prepare)[0].ends_with(" 66999808"), "{planned:?}");
        }
    }

    #[test]
    fn what_qemu_serves_is_switched_by_qemu() {
        let planned = plan(&seen(&LOOP.replace("phy", "qdisk"))).unwrap();
        assert!(!planned.by_restore);
        assert!(matches!(planned.action, Some(Action::Overlay { .. })));
    }

    #[test]
    fn a_vhd_of_qemu_can_be_a_base_if_it_has_no_parent() {
        let planned = plan(&seen(VHD)).unwrap();
        assert_eq!(
            words(&planned.prepare)[0],
            "make /srv/new: qemu-img create -q -u -f qcow2 -F vpc -b /srv/c.vhd /srv/new 67108864"
        );
        let mut child = seen(VHD);
        let Some(Ok(vhd)) = &mut child.vhd else { unreachable!() };
        vhd.differencing = true;
        refused(plan(&child), &["it is a VHD with a parent, which QEMU does not look at"]);
        let damaged =
            RunningDisk { vhd: Some(Err("it has no footer of a VHD".into())), ..seen(VHD) };
        refused(plan(&damaged), &["it has no footer of a VHD"]);
    }

    #[test]
    fn a_disk_of_an_unknown_format_or_on_a_device_has_no_overlay() {
        let mut unknown = seen(LOOP);
        unknown.disk.format = None;
        refused(plan(&unknown), &["its format is not known"]);
        let device = RunningDisk { device: Some((253, 0)), ..seen(LOOP) };
        refused(plan(&device), &["an overlay on a device", "--disk xvdb,lvm"]);
    }
}
