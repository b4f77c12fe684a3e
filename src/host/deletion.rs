//! Inspects a snapshot that is to be deleted: which images rest on its disks, and which processes have them open. Changes
//! nothing.
//!
//! Searches for the users of a file, because no lock shows them: in the records of other snapshots, the disks
//! of running domains, xl configuration files, and the directories of the disks.

mod argument;
pub mod steps;
mod world;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use uuid::Uuid;

pub use self::argument::{SnapshotToDelete, named};

use crate::delete::DeleteInput;
use crate::disk::kind::Content;
use crate::error::{Error, Result};
use crate::host::dependents::{around, configured};
use crate::host::openers::{self, Ours};
use crate::host::toolstack::Toolstack;
use crate::host::{files, list, tools};
use crate::list::{FileKind, ImageEntry, ImageFormat, Running as Listed};
use crate::memory::is_deleting;
use crate::memory::peek::Peek;
use crate::record::{DiskRecord, Record};

use self::world::{World, by_id};

/// Looks at a snapshot. Without a toolstack, as where no domain runs. `directory`: that of the memory images.
pub fn look(
    toolstack: Option<&Toolstack>,
    named: &SnapshotToDelete,
    directory: PathBuf,
) -> Result<DeleteInput> {
    let record = &named.record;
    let own = named.image.parent().unwrap_or(Path::new("/")).to_owned();
    let mut unseen = Vec::new();
    let images = list::images(&[directory, own], &[], &mut unseen).map_err(|error| {
        Error::refused("The other snapshots cannot be looked at").because(error)
    })?;
    let listed =
        toolstack.map(|toolstack| list::domains(toolstack, &mut unseen)).unwrap_or_default();
    let configured = configured(record.domain.cfg.as_deref(), &mut unseen);
    let mut stopped: Vec<Listed> = configured
        .iter()
        .map(|cfg| Listed {
            name: cfg.name.clone(),
            uuid: Uuid::nil(),
            domid: None,
            disks: cfg.disks.clone(),
        })
        .collect();
    stopped.extend(listed.iter().cloned());
    let disks = stopped.iter().flat_map(|domain| &domain.disks);
    let around = around(record, disks.map(|disk| disk.path.as_path()), &mut unseen);
    let files = list::files_with(&images, &stopped, around, |_| true);
    let others: Vec<_> = images.iter().filter_map(|image| other(image, record.id)).collect();
    let recorded = others.iter().map(|(_, record)| *record).chain([record]);
    let recorded = recorded.flat_map(|record| &record.disks).map(|disk| disk.path.as_path());
    let new = named_as_overlay(&images);
    let used = stopped.iter().flat_map(|domain| &domain.disks).map(|disk| disk.path.as_path());
    let told = recorded.chain(new.iter().map(PathBuf::as_path)).chain(used).collect();
    let mut world = World {
        record,
        by_id: by_id(&files, &told),
        files,
        others,
        configured,
        running: Vec::new(),
        openers: Vec::new(),
        named_as_overlay: new,
        marked: named.marked,
    };
    let relevant = world.relevant();
    unseen.extend(world.unclear(&relevant));
    // An overlay may be on storage that is not mounted now.
    let is_overlay = |kind: FileKind| kind != FileKind::Image(ImageFormat::Other);
    let overlays =
        stopped.iter().flat_map(|domain| domain.disks.iter().map(move |disk| (domain, disk)));
    for (domain, disk) in overlays.filter(|(_, disk)| is_overlay(disk.kind)) {
        let told =
            world.files.get(&(disk.path.clone(), disk.kind)).is_some_and(|seen| seen.facts.is_ok());
        let away = (!told).then(|| files::away(&disk.path)).flatten();
        unseen.extend(away.map(|why| format!("{} of {}: {why}", disk.vdev, domain.name)));
    }
    world.openers = openers::of_files(&relevant, &Ours::default());
    for (toolstack, domain) in toolstack.iter().flat_map(|it| listed.iter().map(move |d| (it, d))) {
        let run = world.run(toolstack, domain)?;
        world.running.push(run);
    }
    let on_volume =
        |disk: &DiskRecord| matches!(disk.snapshot.kind().content(), Content::Volume(_));
    let volumes = match record.disks.iter().any(on_volume) {
        true => tools::volumes(),
        false => Ok(Vec::new()),
    };
    let families = record.disks.iter().map(|disk| world.family(disk, &volumes)).collect::<Vec<_>>();
    let begun = world
        .by_id
        .keys()
        .filter_map(|id| world.member(*id, None))
        .filter(|member| member.merging().is_some_and(|mark| mark.id == record.id));
    let begun = begun.collect();
    let runs = world.running.iter().any(|run| run.same);
    let cfg = record.domain.cfg.clone().filter(|cfg| cfg.is_file()).or_else(|| {
        let own = world.configured.iter().find(|cfg| cfg.name == record.domain.name);
        own.map(|cfg| cfg.path.clone())
    });
    let children = world.children();
    Ok(DeleteInput {
        image: named.image.clone(),
        marked: named.marked,
        record: record.clone(),
        allocated: named.allocated,
        families,
        begun,
        children,
        domains: world.running.into_iter().filter_map(|run| run.involved).collect(),
        runs,
        cfg,
        unseen,
    })
}

fn other(image: &ImageEntry, id: Uuid) -> Option<(&ImageEntry, &Record)> {
    match &image.peek {
        Ok(Peek::Snapshot { record, .. })
            if record.id != id
                && record.complete
                && !is_deleting(&image.path)
                && image.path.extension().is_none_or(|extension| extension != "partial") =>
        {
            Some((image, record))
        }
        _ => None,
    }
}

fn named_as_overlay(images: &[ImageEntry]) -> BTreeSet<PathBuf> {
    let records = images.iter().filter_map(|image| match &image.peek {
        Ok(Peek::Snapshot { record, .. }) => Some(record),
        _ => None,
    });
    records
        .flat_map(|record| &record.disks)
        .filter_map(|disk| disk.snapshot.kind().new_file().map(|file| file.path.to_owned()))
        .collect()
}
