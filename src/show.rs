//! `show`: what a snapshot is, and whether its disks are still there. Pure.

use jiff::Timestamp;
use uuid::Uuid;

use crate::disk::kind::{Content, Frozen};
use crate::disk::{self, DiskRevert, NewDomain, RevertContext, SnapshotDisk};
use crate::domain::DomainConfig;
use crate::error::{Error, Result};
use crate::memory::{Form, Image, Sizes};
use crate::need::{Severity, Trouble};
use crate::record::Record;
use crate::report::{Shown, ShownDisk};
use crate::revert;
use crate::tool::volumes::Volume;

/// What was seen of a snapshot for `show`.
#[derive(Debug, Clone)]
pub struct ShowInput {
    /// The disks, in the order of the record.
    pub disks: Vec<SnapshotDisk>,
    /// The host's logical volumes; looked at only if the snapshot has one.
    pub volumes: Result<Vec<Volume>, String>,
    /// What is missing of what put-back and restore need.
    pub troubles: Vec<Trouble>,
    /// What could not be looked at without a toolstack.
    pub unseen: Vec<String>,
    /// Whether the domain runs.
    pub runs: bool,
}

/// Reads the configuration in an image.
pub fn config_of(name: &str, image: &Image) -> Result<DomainConfig> {
    DomainConfig::parse(&image.config).map_err(|why| {
        Error::refused(format!("Image {name}"))
            .because(why)
            .hint("use the image as create wrote it")
    })
}

/// Describes a snapshot. A disk is `present` if `revert` would take it.
pub fn show(
    name: &str,
    record: Record,
    image: Option<(&Image, Option<Sizes>)>,
    verified: bool,
    config: Option<&DomainConfig>,
    looked: ShowInput,
    now: Timestamp,
) -> Shown {
    let keep = revert::keep_name(now);
    let clone = NewDomain { name: "show", uuid: Uuid::nil(), replacement: false };
    let context = RevertContext {
        uuid: Uuid::nil(),
        domain: "",
        id: record.id,
        created: record.created,
        keep: &keep,
        running: looked.runs,
        discard: false,
        // Nothing else can be done with an export.
        new_domain: record.is_export().then_some(clone),
        tight: false,
        volumes: &looked.volumes,
    };
    let lost = looked.disks.iter().filter_map(|found| planned(found, context).err());
    let lost = lost.map(|error| Trouble::of_error(&error, Severity::Lost));
    let short = short_of_space(&looked.disks, &record, context);
    let troubles: Vec<_> = lost.chain(looked.troubles).chain(short).collect();
    let disks: Vec<ShownDisk> = looked.disks.iter().map(|disk| state(disk, context)).collect();
    let (image, sizes) = image.unzip();
    let sizes = sizes.flatten();
    Shown {
        image: name.to_owned(),
        size: sizes.map(|sizes| sizes.apparent),
        size_on_disk: sizes.map(|sizes| sizes.on_disk),
        shared: sizes.and_then(|sizes| sizes.shared),
        compressed: image.is_some_and(|image| image.form != Form::Plain),
        verified: image.filter(|_| verified).map(|image| match image.form {
            Form::Zstd { checksums: true } => "checksums",
            Form::Plain if image.sums.is_some() => "checksums",
            Form::Zstd { checksums: false } | Form::Plain => "structure",
        }),
        vcpus: config.map(|config| config.vcpus()),
        revertible: troubles.is_empty(),
        record,
        disks,
        troubles,
        unseen: looked.unseen,
    }
}

/// The plan of a plain revert, or of one that discards the current contents, if keeping them is all that does not
/// work: that does not harm the snapshot.
fn planned(found: &SnapshotDisk, context: RevertContext<'_>) -> Result<DiskRevert> {
    disk::revert(found, context)
        .or_else(|_| disk::revert(found, RevertContext { discard: true, ..context }))
}

/// What keeps `revert` from keeping the current contents, or from copying a disk. A snapshot whose revert only lacks
/// this is good.
fn short_of_space(
    found: &[SnapshotDisk],
    record: &Record,
    context: RevertContext<'_>,
) -> Vec<Trouble> {
    let good = found.iter().filter(|found| planned(found, context).is_ok());
    let (planned, refused): (Vec<_>, Vec<_>) =
        good.map(|found| disk::revert(found, context)).partition(Result::is_ok);
    let planned: Vec<_> = planned.into_iter().flatten().collect();
    let rooms: Vec<_> = planned.iter().filter_map(|disk| disk.room.as_ref()).collect();
    let spaces: Vec<_> = planned.iter().filter_map(|disk| disk.space.as_ref()).collect();
    let domain = &record.domain.name;
    let room = disk::short_of_room(&rooms).map(|why| revert::no_room(domain, why));
    let space = disk::short_of_space(&spaces).map(|why| revert::no_space(domain, why));
    let refused = refused.into_iter().filter_map(Result::err);
    let all = refused.chain(room).chain(space);
    all.map(|error| Trouble::of_error(&error, Severity::Missing)).collect()
}

fn state(found: &SnapshotDisk, context: RevertContext<'_>) -> ShownDisk {
    let snapshot = found.record.snapshot.kind();
    let planned = planned(found, context);
    let note = planned.as_ref().ok().and_then(|planned| planned.note.clone());
    let (state, why) = match (snapshot.why_left_out(), planned) {
        (Some(why), _) => ("none", Some(why.to_owned())),
        (_, Ok(_)) => ("present", None),
        (_, Err(error)) => {
            let gone = match snapshot.content() {
                Content::Volume(_) => false,
                Content::Frozen(Frozen { copy: Some(_), .. }) => found.frozen.is_err(),
                _ => found.file.is_err(),
            };
            let state = if gone { "missing" } else { "changed" };
            (state, Some(error.chain()[1..].join(": ")))
        }
    };
    ShownDisk { vdev: found.record.vdev.clone(), state, why, note }
}
