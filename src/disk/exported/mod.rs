//! Disks of an export: full copies in the directory of the image, on any host.
//!
//! They are not the disks of a domain, so they are not reverted: a new domain gets overlays on
//! them.

pub(super) mod record;

use self::record::Exported;
use crate::disk::exporting::DiskExport;
use crate::disk::image_tree::{DeleteOptions, DiskDelete, ImageTree};
use crate::disk::parts::{refuse, refuse_revert};
use crate::disk::planner::Planner;
use crate::disk::{
    Context, DiskCreate, DiskRevert, RevertContext, RunningDisk, SnapshotDisk, merge,
};
use crate::domain::Format;
use crate::error::Result;
use crate::need::Requirement;
use crate::plan::Step;
use crate::record::FrozenFile;
use crate::spec::Choice;
use crate::tool::qemu_img::{Whole, create_overlay};

impl Exported {
    /// The proof, after checking that the copy is complete. An untrusted export may name any file as its base.
    fn checked<'a>(&'a self, found: &SnapshotDisk) -> Result<&'a FrozenFile> {
        let record = &found.record;
        let proof = found.check_frozen(&record.path, self.proof.as_ref())?;
        let own = found.own.as_ref().map_err(|why| refuse_revert(record, why.clone()))?;
        if record.format != Some(Format::Qcow2) || own.len() != 1 {
            let why = "it is not a qcow2 image without a backing file, so export did not create it";
            return Err(refuse_revert(record, why));
        }
        Ok(proof)
    }
}

impl Planner for Exported {
    fn create(seen: &RunningDisk, _: Option<&Choice>, _: Context<'_>) -> Result<DiskCreate> {
        Err(refuse(&seen.disk, "export makes such copies, of a snapshot".into()))
    }

    /// Plans an overlay for a new domain.
    fn revert(&self, found: &SnapshotDisk, context: RevertContext<'_>) -> Result<DiskRevert> {
        let record = &found.record;
        if context.new_domain.is_none_or(|domain| domain.replacement) {
            return Err(refuse_revert(record, "it is a copy in an export, not the disk itself")
                .hint(
                    "create a new domain from the export: xl-snapshot revert --as NAME --overlay-dir DIR IMAGE",
                ));
        }
        let proof = self.checked(found)?;
        let overlay = &found.place.path;
        let fill = create_overlay(overlay, &record.path, Format::Qcow2, proof.whole_sectors());
        Ok(DiskRevert {
            prepare: vec![Step::NewFile { path: overlay.clone(), fill }],
            switch: Some((overlay.clone(), Format::Qcow2)),
            ..DiskRevert::default()
        })
    }

    fn needs(&self, found: &SnapshotDisk, _: bool) -> Vec<Requirement> {
        vec![Requirement::UnwrittenFile(found.record.path.clone())]
    }

    fn export(&self, found: &SnapshotDisk, _: RevertContext<'_>) -> Result<Option<DiskExport>> {
        self.checked(found)?;
        let from = Whole::Image { path: found.record.path.clone(), format: Format::Qcow2 };
        Ok(Some(DiskExport::of(from)))
    }

    /// The record alone does not justify removing a file that may be the only copy.
    fn delete(&self, family: &ImageTree, _: DeleteOptions) -> Result<DiskDelete> {
        Err(merge::refuse(family, "it is a copy in an export")
            .hint("remove the directory of the export, once no domain has an overlay on its disks"))
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::disk::{NewDomain, revert};
    use crate::record::DiskSnapshot;
    use crate::support::disks::{found, link, proof, refused, revert_context, revert_one, words};

    fn exported() -> SnapshotDisk {
        let mut found =
            found("/srv/x/xvdb.qcow2", DiskSnapshot::Exported(Exported { proof: Some(proof()) }));
        found.record.format = Some(Format::Qcow2);
        found.own = Ok(vec![link("/srv/x/xvdb.qcow2", Format::Qcow2, None)]);
        found
    }

    fn beside(found: &SnapshotDisk) -> Result<DiskRevert> {
        let (keep, volumes) = ("before-revert-x".parse().unwrap(), Ok(Vec::new()));
        let domain = NewDomain { name: "web2", uuid: Uuid::nil(), replacement: false };
        revert(found, RevertContext { new_domain: Some(domain), ..revert_context(&keep, &volumes) })
    }

    #[test]
    fn a_new_domain_gets_an_overlay() {
        let planned = beside(&exported()).unwrap();
        assert_eq!(
            words(&planned.prepare),
            [
                "make /srv/new: qemu-img create -q -u -f qcow2 -F qcow2 -b /srv/x/xvdb.qcow2 /srv/new 67108864"
            ]
        );
        assert_eq!(planned.switch, Some(("/srv/new".into(), Format::Qcow2)));
        assert_eq!((planned.put_back, planned.kept, planned.discard), (vec![], None, vec![]));
    }

    #[test]
    fn nothing_is_put_back() {
        refused(revert_one(&exported()), &["it is a copy in an export", "revert --as NAME"]);
    }

    #[test]
    fn a_copy_that_rests_on_something_is_refused() {
        let mut on_secret = exported();
        let below = Some(("/etc/shadow", "raw"));
        on_secret.own = Ok(vec![
            link("/srv/x/xvdb.qcow2", Format::Qcow2, below),
            link("/etc/shadow", Format::Raw, None),
        ]);
        refused(beside(&on_secret), &["without a backing file"]);
        let mut raw = exported();
        raw.record.format = Some(Format::Raw);
        refused(beside(&raw), &["without a backing file"]);
    }

    #[test]
    fn a_copy_has_any_inode_and_the_time_of_the_export() {
        let mut found = exported();
        let DiskSnapshot::Exported(Exported { proof: Some(proof) }) = &mut found.record.snapshot
        else {
            unreachable!()
        };
        proof.inode = crate::record::ANY_INODE;
        found.frozen.as_mut().unwrap().inode = 4711;
        beside(&found).unwrap();
        found.frozen.as_mut().unwrap().size += 1;
        refused(beside(&found), &["it was written to since"]);
    }
}
