//! Internal snapshots: inside a qcow2 file, taken by the domain's QEMU, applied by qemu-img.

mod delete;
pub(super) mod record;

use self::record::Internal;
use crate::disk::chain::Link;
use crate::disk::exporting::DiskExport;
use crate::disk::image_tree::{DeleteOptions, DiskDelete, ImageTree};
use crate::disk::parts::{node, record, refuse, refuse_by_hand, refuse_revert};
use crate::disk::planner::{ByHand, Planner};
use crate::disk::{
    Context, DiskCreate, DiskRevert, RevertContext, RunningDisk, Served, SnapshotDisk, mib,
};
use crate::domain::{Disk, Format};
use crate::error::{Error, Result};
use crate::need::Requirement;
use crate::plan::{Action, Step};
use crate::record::{Base, DiskRecord, QcowSnapshot};
use crate::spec::Choice;
use crate::tool::qemu_img::{ImageInfo, Whole};
use crate::tool::{check_path, qemu_img, quote};

impl Internal {
    /// The proof of the snapshot, after checking that it exists, and the answer of qemu-img about
    /// the image.
    fn checked<'a>(&'a self, found: &'a SnapshotDisk) -> Result<(&'a QcowSnapshot, &'a ImageInfo)> {
        let refuse = |why: String| refuse_revert(&found.record, why);
        let proof = self
            .proof
            .as_ref()
            .ok_or_else(|| refuse("the record has no proof of its snapshot".into()))?;
        found.file.as_ref().map_err(|why| refuse(why.clone()))?;
        let image = found.image.as_ref().map_err(|why| refuse(why.clone()))?;
        let snapshots = image.snapshots();
        let same_name: Vec<_> = snapshots.iter().filter(|s| s.name == proof.name).collect();
        if !same_name.contains(&proof) {
            return Err(refuse(match same_name.first() {
                None => format!("its snapshot {:?} no longer exists", proof.name),
                Some(other) => format!(
                    "its snapshot {:?} is another one: ID {} of {}, not ID {} of {}",
                    proof.name, other.id, other.date, proof.id, proof.date
                ),
            }));
        }
        if snapshots.iter().filter(|s| s.id == proof.id).count() != 1 {
            return Err(refuse(format!("several of its snapshots have the ID {}", proof.id)));
        }
        self.check_bases(found)?;
        Ok((proof, image))
    }

    /// Whether what the snapshot has in the images below is still there. `qemu-img rebase` and block-stream copy what
    /// the image itself lacks now, but not what only its snapshots lack: their clusters then read as zeros, or as
    /// those of the new base. A merge of our own leaves one of the images where it is.
    fn check_bases(&self, found: &SnapshotDisk) -> Result<()> {
        let (Some(then), Ok(own)) = (&self.bases, &found.own) else { return Ok(()) };
        let now = own.get(1..).unwrap_or_default();
        let lasting = found.file.as_ref().is_ok_and(|file| file.lasting);
        // Images that were moved to another disk have other numbers, and their names.
        let same = |base: &Base| {
            let is = |link: &Link| {
                link.id.1 == base.inode || link.path.file_name() == base.path.file_name()
            };
            now.iter().any(is)
        };
        let refuse = |why: String| refuse_revert(&found.record, why);
        let path = quote(&found.record.path);
        match (then.first(), now.first()) {
            (None, None) => Ok(()),
            (None, Some(new)) => Err(refuse(format!(
                "the image rests on {} now, and rested on nothing at the snapshot: what is missing in the snapshot \
                 would be taken from there",
                new.path.display()
            ))
            .hint("in a copy of the image (cp), the snapshot is whole after qemu-img rebase -u -f qcow2 -b '' COPY")),
            (Some(_), Some(_)) if !lasting || then.iter().any(same) => Ok(()),
            (Some(old), _) => Err(refuse(format!(
                "the image does not rest on {} any more (qemu-img rebase, block-stream): a part of the snapshot is there",
                old.path.display()
            ))
            .hint(format!(
                "with no domain running on it, give it that base back, if it has not changed since: qemu-img rebase \
                 -u -f qcow2 -b {} -F {} {path}",
                quote(&old.path),
                old.format.qemu()
            ))),
        }
    }
}

/// The size at the snapshot and the current size of the image, in bytes: a copy of a snapshot by qemu-img has
/// the latter.
fn sizes(found: &SnapshotDisk, image: &ImageInfo) -> Result<(u64, u64)> {
    let refuse = |why: String| refuse_revert(&found.record, why);
    let (then, now) = (found.size_then.clone().map_err(refuse)?, image.virtual_size);
    if then <= now {
        return Ok((then, now));
    }
    Err(refuse(format!(
        "the image was {} at the snapshot and is {} now: a copy would lack the end of the disk",
        mib(then),
        mib(now)
    ))
    .hint(format!(
        "give the image that size again, with no domain running on it: qemu-img resize -f qcow2 {} {then}",
        quote(&found.record.path)
    )))
}

impl Planner for Internal {
    fn is_default(seen: &RunningDisk) -> bool {
        seen.disk.format == Some(Format::Qcow2)
    }

    fn create(seen: &RunningDisk, _: Option<&Choice>, context: Context<'_>) -> Result<DiskCreate> {
        let disk = &seen.disk;
        if disk.format != Some(Format::Qcow2) {
            return Err(refuse(disk, "only a qcow2 image can hold internal snapshots".into())
                .hint(format!("take an external one: --disk {},external", disk.vdev)));
        }
        seen.file.as_ref().map_err(|why| refuse(disk, why.clone()))?;
        seen.own.as_ref().map_err(|why| refuse(disk, why.clone()))?;
        let miscounted = || seen.header()?.miscounted(1);
        if let Some(defect) = seen.defect().or_else(miscounted) {
            return Err(refuse(disk, defect.why()).hint(format!(
                "{}; or take an external snapshot: --disk {},external",
                defect.remedy(disk.file()),
                disk.vdev
            )));
        }
        let node = node(seen)?;
        let name = context.name.as_str();
        // `qemu-img snapshot -a NAME` would first find a snapshot whose *ID* is our name.
        if let Some(taken) = node.snapshots.iter().find(|s| s.name == name || s.id == name) {
            return Err(refuse(
                disk,
                format!(
                    "it already has a snapshot {:?} (ID {}, of {})",
                    taken.name, taken.id, taken.date
                ),
            )
            .hint("choose another name with --name"));
        }
        if seen.served == Some(Served::Nobody) {
            let path = disk.file().to_owned();
            return Ok(DiskCreate {
                in_pause: vec![Step::TakeInternal { path, name: context.name.clone() }],
                ..DiskCreate::of(record(
                    seen,
                    Internal::of(seen.own.as_deref().unwrap_or_default()),
                ))
            });
        }
        Ok(DiskCreate {
            action: Some(Action::Internal {
                vdev: disk.vdev.clone(),
                node: node.name.clone(),
                name: name.to_owned(),
                file: disk.file().to_owned(),
            }),
            ..DiskCreate::of(record(seen, Internal::of(seen.own.as_deref().unwrap_or_default())))
        })
    }

    /// Plans to apply an internal snapshot: in place, or, if the file is a base, as a copy, because
    /// rewriting a base damages its overlays.
    ///
    /// ID, name and time together identify it. If disks were exchanged, the times differ, also within one
    /// snapshot, because QEMU snapshots the disks one after the other. A byte-for-byte copy of the file
    /// does not differ, and has the same content. Not detected: a snapshot in which somebody changed
    /// bytes.
    fn revert(&self, found: &SnapshotDisk, context: RevertContext<'_>) -> Result<DiskRevert> {
        let keep = context.keep;
        let record = &found.record;
        let path = &record.path;
        let refuse = |why: String| refuse_revert(record, why);
        let (proof, image) = self.checked(found)?;
        let snapshots = image.snapshots();
        // It is deleted by its name, which must be unique.
        if snapshots.iter().any(|s| s.name == keep.as_str() || s.id == keep.as_str()) {
            return Err(refuse(format!("it already has a snapshot {keep}"))
                .hint("try again: the name is made from the time"));
        }

        if !found.needs_copy() && context.new_domain.is_none() {
            if let Some(defect) = found.defect() {
                return Err(refuse(defect.why()).hint(defect.remedy(path)));
            }
            let elsewhere = found.top.as_deref().filter(|_| found.runs_elsewhere());
            return Ok(DiskRevert {
                put_back: vec![
                    Step::Run(qemu_img::snapshot_create(path, keep)),
                    Step::Run(qemu_img::snapshot_apply(path, &proof.id)),
                ],
                undo_revert: vec![Step::ApplyKept { path: path.clone(), name: keep.clone() }],
                only_qemu: true,
                room: found.room.clone().transpose().map_err(refuse)?,
                kept: Some(match elsewhere {
                    Some(top) => {
                        format!("{} and snapshot {keep} in {}", top.display(), path.display())
                    }
                    None => format!("snapshot {keep} in {}", path.display()),
                }),
                // What the guest wrote since is in the other file.
                discard: match elsewhere {
                    Some(_) => Vec::new(),
                    None => vec![Step::DeleteInternal {
                        uuid: context.uuid,
                        domain: context.domain.to_owned(),
                        vdev: record.vdev.clone(),
                        name: keep.to_string(),
                    }],
                },
                note: found.resized(),
                ..DiskRevert::default()
            });
        }

        let (then, now) = sizes(found, image)?;
        let room = found.room_for_copy()?.clone();
        let backing = match (&image.full_backing_filename, &image.backing_filename_format) {
            (None, _) => None,
            // It comes from the image's own header, and may be `nbd:` or `json:`.
            (Some(below), _) if check_path(below).is_err() => {
                return Err(refuse(format!("its backing file is no path: {}", below.display())));
            }
            (Some(below), Some(format)) => {
                let format = Format::of_qemu(format)
                    .ok_or_else(|| refuse(format!("its backing file has the format {format}")))?;
                Some((below.as_path(), format))
            }
            (Some(below), None) => {
                return Err(refuse(format!("it does not state the format of {}", below.display())));
            }
        };
        let copy = &found.place.path;
        let made = Step::NewFile {
            path: copy.clone(),
            fill: qemu_img::copy_snapshot(path, &proof.id, copy, backing),
        };
        let fit = (then < now).then(|| Step::Resize { path: copy.clone(), size: then });
        Ok(DiskRevert {
            prepare: [made].into_iter().chain(fit).collect(),
            note: Some(
                [found.rested_on(), found.resized()]
                    .into_iter()
                    .flatten()
                    .collect::<Vec<_>>()
                    .join("; "),
            )
            .filter(|note| !note.is_empty()),
            switch: Some((copy.clone(), Format::Qcow2)),
            kept: found.kept_in_top(),
            discard: found.discard_top(),
            room: Some(room),
            ..DiskRevert::default()
        })
    }

    fn needs(&self, found: &SnapshotDisk, for_new_domain: bool) -> Vec<Requirement> {
        let path = found.record.path.clone();
        vec![match for_new_domain {
            true => Requirement::Inside(path),
            false if found.needs_copy() => Requirement::UnwrittenFile(path),
            false => Requirement::ExclusiveFile(path),
        }]
    }

    fn export(&self, found: &SnapshotDisk, _: RevertContext<'_>) -> Result<Option<DiskExport>> {
        let (proof, image) = self.checked(found)?;
        let (then, now) = sizes(found, image)?;
        let from = Whole::Inside { path: found.record.path.clone(), id: proof.id.clone() };
        Ok(Some(DiskExport { fit: (then < now).then_some(then), ..DiskExport::of(from) }))
    }

    fn by_hand(disk: &Disk, by_hand: &ByHand<'_>) -> Result<DiskRecord> {
        let refuse = |why: String| refuse_by_hand(disk, why);
        let name = by_hand.name.ok_or_else(|| {
            Error::usage("The name of the internal snapshots is not known")
                .hint("add name = \"NAME\" to the SPEC.toml")
        })?;
        let mut named =
            by_hand.top.snapshots().into_iter().filter(|snapshot| snapshot.name == name.as_str());
        let proof = named.next().ok_or_else(|| refuse(format!("it has no snapshot {name}")))?;
        if named.next().is_some() {
            return Err(refuse(format!("it has several snapshots {name}"))
                .hint("delete all but one by their numbers: qemu-img snapshot -l, -d"));
        }
        Ok(DiskRecord {
            vdev: disk.vdev.clone(),
            path: disk.file().to_owned(),
            format: Some(by_hand.format),
            snapshot: Internal { proof: Some(proof), bases: None }.into(),
        })
    }

    fn delete(&self, family: &ImageTree, _: DeleteOptions) -> Result<DiskDelete> {
        delete::plan(family, self.proof.as_ref())
    }
}
