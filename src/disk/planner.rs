//! The plans of each kind of disk snapshot. Pure.

use std::path::Path;

use crate::disk::exporting::DiskExport;
use crate::disk::image_tree::{DeleteOptions, DiskDelete, ImageTree};
use crate::disk::kinds::{DiskMethod, kinds};
use crate::disk::{
    Context, DiskCreate, DiskRevert, FileFacts, RevertContext, RunningDisk, SnapshotDisk,
};
use crate::domain::{Disk, Format};
use crate::error::{Error, Result};
use crate::names::SnapshotName;
use crate::need::Requirement;
use crate::record::{DiskRecord, DiskSnapshot};
use crate::spec::Choice;
use crate::tool::qemu_img::ImageInfo;

/// A kind of disk snapshot; `self` is its part of a record.
pub(super) trait Planner {
    /// Whether this kind is the default for a disk.
    fn is_default(seen: &RunningDisk) -> bool
    where
        Self: Sized,
    {
        let _ = seen;
        false
    }

    /// Why a disk supports no other kind, if it does not.
    fn only_method(seen: &RunningDisk) -> Option<&'static str>
    where
        Self: Sized,
    {
        let _ = seen;
        None
    }

    /// Plans the snapshot of one disk. `choice` is for this kind, or absent.
    fn create(
        seen: &RunningDisk,
        choice: Option<&Choice>,
        context: Context<'_>,
    ) -> Result<DiskCreate>
    where
        Self: Sized;

    /// Plans to revert the disk.
    fn revert(&self, found: &SnapshotDisk, context: RevertContext<'_>) -> Result<DiskRevert>;

    /// What a revert needs on the host, in addition to the checks in [`Planner::revert`].
    fn needs(&self, found: &SnapshotDisk, for_new_domain: bool) -> Vec<Requirement>;

    /// Checks the content, and says where to copy it from. `None` if the disk is not in the snapshot.
    fn export(
        &self,
        found: &SnapshotDisk,
        context: RevertContext<'_>,
    ) -> Result<Option<DiskExport>>;

    fn delete(&self, family: &ImageTree, options: DeleteOptions) -> Result<DiskDelete> {
        let _ = (family, options);
        Ok(DiskDelete::default())
    }

    /// The record of a snapshot that somebody made by hand.
    fn by_hand(disk: &Disk, by_hand: &ByHand<'_>) -> Result<DiskRecord>
    where
        Self: Sized,
    {
        let _ = by_hand;
        Err(Error::usage(format!("Disk {}: by hand", disk.vdev))
            .because("only internal and external snapshots are found without a record")
            .hint("xl-snapshot create --record FILE writes one"))
    }
}

/// Read access to the host.
pub trait HostView {
    /// The answer of qemu-img about an image and its backing files, top first.
    fn chain(&self, path: &Path, format: Format) -> std::result::Result<Vec<ImageInfo>, String>;
    fn facts(&self, path: &Path) -> std::result::Result<FileFacts, String>;
}

/// A disk's snapshot that somebody made by hand.
pub(super) struct ByHand<'a> {
    pub(super) choice: &'a Choice,
    /// The name of the snapshot, if the user gave it.
    pub(super) name: Option<&'a SnapshotName>,
    /// The format of the disk's file.
    pub(super) format: Format,
    /// That file and its backing files.
    pub(super) chain: &'a [ImageInfo],
    /// The first of them.
    pub(super) top: &'a ImageInfo,
    pub(super) view: &'a dyn HostView,
}

macro_rules! dispatch {
    ($($name:literal => $kind:ident($kept:path),)*) => {
        impl DiskMethod {
            pub(super) fn is_default(self, seen: &RunningDisk) -> bool {
                match self {
                    $(DiskMethod::$kind => <$kept as Planner>::is_default(seen),)*
                }
            }

            pub(super) fn only_method(self, seen: &RunningDisk) -> Option<&'static str> {
                match self {
                    $(DiskMethod::$kind => <$kept as Planner>::only_method(seen),)*
                }
            }

            pub(super) fn create(
                self,
                seen: &RunningDisk,
                choice: Option<&Choice>,
                context: Context<'_>,
            ) -> Result<DiskCreate> {
                match self {
                    $(DiskMethod::$kind => <$kept as Planner>::create(seen, choice, context),)*
                }
            }

            pub(super) fn by_hand(self, disk: &Disk, by_hand: &ByHand<'_>) -> Result<DiskRecord> {
                match self {
                    $(DiskMethod::$kind => <$kept as Planner>::by_hand(disk, by_hand),)*
                }
            }
        }

        impl DiskSnapshot {
            pub(super) fn planner(&self) -> &dyn Planner {
                match self {
                    $(DiskSnapshot::$kind(kept) => kept,)*
                }
            }
        }
    };
}
kinds!(dispatch);
