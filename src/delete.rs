//! `delete`: plans a deletion from the request and the observations. Pure.
//!
//! An interrupted deletion can be repeated: the plan only goes forward, and the next deletion of the same
//! snapshot reads from the marks on its files how far the last one came. Every other snapshot stays good
//! meanwhile.

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::disk::image_tree::{DeleteOptions, DiskDelete, ImageTree, Rewrite, TreeImage};
use crate::disk::{self, mib};
use crate::domain::{DomainConfig, DomainId};
use crate::error::{Error, Remaining, Result};
use crate::memory::deleting_path;
use crate::names::same_vdev;
use crate::plan::deletion::{Change, Deletion};
use crate::plan::{
    ConfigOwner, OnFailure, Plan, ReplaceCfg, Step, StoreConfig, Text, XenstoreWrite,
};
use crate::process::Process;
use crate::record::{DisksOnly, Parent, Record};
use crate::tool::check_path;
use crate::tool::quote;

/// Observations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteInput {
    /// Its image, or the file of its record, under its original name.
    pub image: PathBuf,
    /// Whether it is already renamed to `FILE.deleting`.
    pub marked: bool,
    pub record: Record,
    /// The allocated size of the image, in bytes.
    pub allocated: u64,
    /// In the order of the record.
    pub families: Vec<ImageTree>,
    /// Images that an earlier deletion of this snapshot marked.
    pub begun: Vec<TreeImage>,
    /// Other snapshots that descend from this one, and whose record can be replaced.
    pub children: Vec<disk::image_tree::DependentSnapshot>,
    /// The running domains that may take part.
    pub domains: Vec<Involved>,
    /// Whether the snapshot's domain runs.
    pub runs: bool,
    /// The xl configuration file of the domain, if it is known and exists.
    pub cfg: Option<PathBuf>,
    /// What could not be inspected.
    pub unseen: Vec<String>,
}

/// A running domain whose QEMU may have to merge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Involved {
    pub id: DomainId,
    /// The text that libxl has stored.
    pub stored: String,
    /// Its xl process.
    pub monitor: Option<Process>,
    /// The keys in xenstore that name its images, for each disk.
    pub params: Vec<(String, Vec<(String, String)>)>,
}

/// New texts of xl's own configurations.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rewrites {
    /// Files that name the images to be removed.
    pub cfgs: Vec<ReplaceCfg>,
    /// What `xl config-update` stored, old and new, for each domain.
    pub stored: Vec<(DomainId, Text, Text)>,
}

/// Decides what to do with each disk, or refuses.
pub fn disks(seen: &DeleteInput, options: DeleteOptions) -> Result<Vec<DiskDelete>> {
    if let Some(what) = seen.unseen.first() {
        return Err(refused(seen)
            .because(format!("it is not known which images need it: {what}"))
            .hint("correct what the cause names, and run the command again"));
    }
    let disks = seen
        .families
        .iter()
        .map(|family| disk::delete(family, options))
        .collect::<Result<Vec<_>>>()?;
    let mut sums: Vec<(u64, u64, u64, &Path)> = Vec::new();
    for (device, free, needed, path) in disks.iter().flat_map(|disk| &disk.room) {
        match sums.iter_mut().find(|(other, ..)| other == device) {
            Some(sum) => sum.2 = sum.2.saturating_add(*needed),
            None => sums.push((*device, *free, *needed, path)),
        }
    }
    if let Some((_, free, needed, path)) = sums.iter().find(|(_, free, needed, _)| needed > free) {
        let why = format!(
            "merging may need {} on the file system of {}, where {} are free",
            mib(*needed),
            quote(path),
            mib(*free)
        );
        return Err(refused(seen).because(why).hint("free some space"));
    }
    Ok(disks)
}

fn refused(seen: &DeleteInput) -> Error {
    let Record { name, domain, .. } = &seen.record;
    Error::refused(format!("Snapshot {name} of {} cannot be deleted", domain.name))
}

pub fn plan(seen: &DeleteInput, disks: &[DiskDelete], rewrites: &Rewrites) -> Result<Plan> {
    let Record { name, domain, .. } = &seen.record;
    let marked = deleting_path(&seen.image);
    let mut plan = Plan {
        title: format!("Deletion of snapshot {name} of {}", domain.name),
        notes: notes(disks),
        onward_again: true,
        ..Plan::default()
    };
    for involved in online(seen, disks) {
        let (domain, stored) = (involved.id.clone(), involved.stored.clone());
        plan.prepare.push(Step::CheckConfig { domain, stored });
    }
    let down = down(seen, disks);
    plan.prepare.extend(down.clone());
    let mark = Deletion::Mark { image: seen.image.clone(), marked: marked.clone() };
    plan.commit = (!seen.marked).then_some(Step::Delete(mark));
    for disk in disks {
        plan.onward.extend(disk.merges.clone());
    }
    // A merge may take hours. A domain that was started meanwhile uses the images that are removed
    // below.
    plan.onward.extend(down);
    let stopped = switch(seen, disks, rewrites, &mut plan)?;
    plan.onward.extend(rewrites.cfgs.iter().cloned().map(Step::ReplaceCfg));

    let mut written: Vec<(PathBuf, bool)> =
        disks.iter().flat_map(|disk| disk.written.clone()).collect();
    let mut changes: Vec<Rewrite> = disks.iter().flat_map(|disk| disk.rewrites.clone()).collect();
    for member in &seen.begun {
        if written.iter().any(|(path, _)| *path == member.path) {
            continue;
        }
        written.push((member.path.clone(), !member.users.is_empty()));
        let proven = member.keepers.iter().filter(|keeper| keeper.proven);
        changes.extend(proven.map(|keeper| Rewrite {
            keeper: keeper.clone(),
            change: Change::Written { vdev: keeper.vdev.clone() },
        }));
    }
    for (file, live) in &written {
        plan.onward.push(Step::Delete(Deletion::Settle { file: file.clone(), live: *live }));
    }
    plan.onward.extend(records(seen, &changes));
    plan.onward.extend(disks.iter().flat_map(|disk| disk.removals.clone()));
    plan.onward.extend(written.into_iter().map(|(file, _)| Step::Delete(Deletion::End { file })));
    plan.onward.push(Step::RemoveFile { path: marked });
    plan.on_failure = OnFailure {
        down: String::new(),
        steps: stopped.into_iter().map(|process| Step::ContinueXl { process }).collect(),
        remaining: vec![half_deleted(&seen.image, name.as_str())],
    };
    Ok(plan)
}

/// Checks that the domains whose images are merged without a QEMU do not run.
fn down(seen: &DeleteInput, disks: &[DiskDelete]) -> Vec<Step> {
    let Record { domain, .. } = &seen.record;
    let merges = disks.iter().any(|disk| !disk.merges.is_empty());
    let own = (merges && !seen.runs).then(|| (domain.uuid, domain.name.clone()));
    // Of a clone that is down, only the configuration file is known.
    let mut clones: Vec<String> = disks.iter().flat_map(|disk| disk.down.clone()).collect();
    clones.sort();
    clones.dedup();
    let clones = clones.into_iter().map(|name| (Uuid::nil(), name));
    own.into_iter()
        .chain(clones)
        .map(|(uuid, domain)| Step::CheckNotRunning { uuid, domain })
        .collect()
}

/// What remains after an interrupted deletion.
pub fn half_deleted(image: &Path, name: &str) -> Remaining {
    Remaining {
        what: format!(
            "Snapshot {name} is half deleted, and cannot be reverted to; every other snapshot is as good \
             as before"
        ),
        command: Some(format!("xl-snapshot delete {}", quote(image))),
    }
}

fn online<'a>(seen: &'a DeleteInput, disks: &[DiskDelete]) -> Vec<&'a Involved> {
    let takes_part = |involved: &&Involved| disks.iter().any(|d| d.online.contains(&involved.id));
    seen.domains.iter().filter(takes_part).collect()
}

/// Switches disks of running domains to another image. Nobody may restart such a domain until its
/// stored configuration names that image too.
fn switch(
    seen: &DeleteInput,
    disks: &[DiskDelete],
    rewrites: &Rewrites,
    plan: &mut Plan,
) -> Result<Vec<Process>> {
    let mut stopped = Vec::new();
    for involved in &seen.domains {
        let id = &involved.id;
        let switches: Vec<_> = disks
            .iter()
            .flat_map(|disk| &disk.switches)
            .filter(|switch| switch.domain.as_ref() == Some(id))
            .collect();
        if switches.is_empty() {
            continue;
        }
        let broken = |why| {
            Error::refused(format!("The configuration of {} is not understood", id.name))
                .because(why)
                .hint(format!("check libxl's configuration: xl list -l {}", quote(&id.name)))
        };
        let mut config = DomainConfig::parse(&involved.stored).map_err(broken)?;
        let mut writes = Vec::new();
        let store = |whose, old: Text, new: Text, what: String| {
            Step::StoreConfig(StoreConfig { domain: id.clone(), whose, new, old, what })
        };
        stopped.extend(involved.monitor);
        plan.onward.extend(involved.monitor.map(|process| Step::StopXl { process }));
        // The observations are hours old.
        let (domain, stored) = (id.clone(), involved.stored.clone());
        plan.onward.push(Step::CheckConfig { domain, stored });
        // The configuration is stored for each disk as it is switched: if the next one fails, a reboot finds
        // the new image of this one.
        let mut old: Text = involved.stored.clone().into();
        for switch in &switches {
            let (vdev, to) = (&switch.user.vdev, &switch.to);
            plan.onward.extend(
                disks
                    .iter()
                    .filter(|disk| pivots(disk, id, vdev))
                    .flat_map(|disk| disk.pivot.clone()),
            );
            config.set_image(vdev, &to.path, to.format).map_err(broken)?;
            let new: Text = config.to_json().into();
            plan.onward.push(store(
                ConfigOwner::Libxl,
                old,
                new.clone(),
                format!("{vdev} -> {}", to.path.display()),
            ));
            old = new;
            let params = involved.params.iter().filter(|(other, _)| other == vdev);
            writes.extend(params.flat_map(|(_, keys)| keys).map(|(path, old)| XenstoreWrite {
                path: path.clone(),
                new: format!("{}:{}", to.format.xenstore(), to.path.display()),
                old: old.clone(),
            }));
        }
        let what: Vec<_> = switches
            .iter()
            .map(|switch| format!("{} -> {}", switch.user.vdev, switch.to.path.display()))
            .collect();
        let stored = rewrites.stored.iter().filter(|(domain, ..)| domain == id);
        plan.onward.extend(stored.map(|(_, old, new)| {
            store(ConfigOwner::Xl, old.clone(), new.clone(), what.join(", "))
        }));
        plan.onward.extend((!writes.is_empty()).then_some(Step::Xenstore(writes)));
        plan.onward.extend(involved.monitor.map(|process| Step::ContinueXl { process }));
    }
    Ok(stopped)
}

/// Whether a disk's merge ends by switching this disk of that domain.
fn pivots(disk: &DiskDelete, domain: &DomainId, vdev: &str) -> bool {
    disk.pivot.iter().any(|step| {
        matches!(step, Step::Delete(Deletion::Pivot { online, .. })
            if online.domain == *domain && same_vdev(&online.vdev, vdev))
    })
}

/// One step for each record that changes.
fn records(seen: &DeleteInput, changes: &[Rewrite]) -> Vec<Step> {
    let mut steps: Vec<(PathBuf, Step)> = Vec::new();
    let parent = seen.record.parent.map(|parent| (parent, seen.record.parent_by));
    // A record from a version without parents: its descendants are known by dates.
    let inherited = seen.children.iter().map(|child| (child, Change::Parent(parent)));
    let rewritten = changes.iter().map(|rewrite| (&rewrite.keeper, rewrite.change.clone()));
    for (keeper, change) in rewritten.chain(inherited) {
        match steps.iter_mut().find(|(image, _)| *image == keeper.image) {
            Some((_, Step::Delete(Deletion::Rewrite { changes, .. }))) => changes.push(change),
            _ => steps.push((
                keeper.image.clone(),
                Step::Delete(Deletion::Rewrite {
                    image: keeper.image.clone(),
                    name: keeper.name.clone(),
                    id: keeper.id,
                    changes: vec![change],
                }),
            )),
        }
    }
    steps.into_iter().map(|(_, step)| step).collect()
}

fn notes(disks: &[DiskDelete]) -> Vec<String> {
    let mut notes = Vec::new();
    for disk in disks {
        notes.extend(disk.merged.iter().map(|merged| {
            let instead = merged.instead.map(|bytes| {
                let other = if merged.how == "commit" { "stream" } else { "commit" };
                format!("; a {other} would be of {}", mib(bytes))
            });
            format!(
                "{} of {} from {} to {}{}",
                merged.how,
                mib(merged.bytes),
                quote(&merged.from),
                quote(&merged.into),
                instead.unwrap_or_default()
            )
        }));
        notes.extend(disk.kept.clone());
        notes.extend(disk.notes.clone());
    }
    notes
}

/// Plans to remove the memory of a snapshot and keep its disks, in a record of the same name.
pub fn plan_memory_only(seen: &DeleteInput) -> Result<(Plan, PathBuf)> {
    let Record { name, domain, .. } = &seen.record;
    let refused = |why: String| {
        Error::refused(format!(
            "The memory alone of snapshot {name} of {} cannot be deleted",
            domain.name
        ))
        .because(why)
    };
    if seen.marked {
        return Err(refused("it is being deleted".into())
            .hint("finish the deletion: leave out --memory-only"));
    }
    if seen.record.disks_only.is_some() {
        return Err(refused("it has none".into()));
    }
    if seen.record.disks.iter().all(|disk| disk.snapshot.is_left_out()) {
        return Err(refused("nothing else is in it".into()).hint("delete it as a whole"));
    }
    let path = record_path(&seen.image);
    check_path(&path).map_err(|why| refused(why.to_string()))?;
    let cfg = domain.cfg.clone().filter(|cfg| seen.cfg.as_ref() == Some(cfg)).or(seen.cfg.clone());
    let mut record = Record {
        // They were taken while it ran.
        disks_only: Some(DisksOnly::CrashConsistent),
        live: false,
        image_size: 0,
        ..seen.record.clone()
    };
    record.domain.cfg = cfg.clone();
    let mut notes = vec![
        "what is left is what a power cut would have left: it is not known whether the guest's file \
         systems and databases survive that"
            .to_owned(),
    ];
    if cfg.is_none() {
        notes.push(
            "no xl configuration file of the domain is known: to revert, name it as config, with record, \
             in a SPEC.toml"
                .into(),
        );
    }
    let plan = Plan {
        title: format!("Removal of the memory of snapshot {name} of {}", domain.name),
        notes,
        prepare: vec![Step::Delete(Deletion::WriteRecord {
            path: path.clone(),
            record: Box::new(record),
        })],
        commit: Some(Step::RemoveFile { path: seen.image.clone() }),
        ..Plan::default()
    };
    Ok((plan, path))
}

/// The path of the record: that of the image with another suffix.
fn record_path(image: &Path) -> PathBuf {
    let text = image.to_string_lossy();
    let stem = [".xlsave.zst", ".xlsave"].iter().find_map(|ending| text.strip_suffix(ending));
    PathBuf::from(format!("{}.record", stem.unwrap_or(&text)))
}

/// The new parent of files whose mark names this snapshot.
pub fn new_parent(record: &Record) -> Option<uuid::Uuid> {
    match record.parent {
        Some(Parent::Snapshot(id)) => Some(id),
        Some(Parent::None) | None => None,
    }
}
