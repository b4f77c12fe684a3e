//! `revert`: plans a revert from a snapshot and the observations. Pure.

pub mod by_hand;
pub(crate) mod cfg;

use std::path::PathBuf;

use jiff::Timestamp;
use uuid::Uuid;

pub use self::cfg::{Cfg, CfgAfter, DiskChange};
use crate::disk::{self, DiskRevert, RevertContext, SnapshotDisk};
use crate::domain::{DomainConfig, DomainId};
use crate::error::{Error, Remaining, Result};
use crate::names::{SnapshotName, same_vdev};
use crate::need::{self, Need, Severity, Trouble};
use crate::plan::{OnFailure, Plan, Step, Switch, undo};
use crate::process::Process;
use crate::record::{DomainRecord, Record};
use crate::state::{State, stamp};
use crate::tool::quote;
use crate::tool::volumes::Volume;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Leave the domain paused.
    pub paused: bool,
    /// Delete what the domain wrote since the snapshot.
    pub discard_current: bool,
}

/// The current domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    pub id: DomainId,
    pub state: State,
    /// Its xl process.
    pub monitor: Option<Process>,
}

/// How the domain starts after its disks are reverted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartFrom {
    /// From its memory, in the image.
    Memory,
    /// Without memory, from this xl configuration file.
    Start(PathBuf),
}

/// Observations of a snapshot and the host.
#[derive(Debug, Clone)]
pub struct RevertInput {
    /// The user's name for the snapshot, for commands in messages.
    pub snapshot: String,
    /// The record in the image.
    pub record: Record,
    /// How the domain starts.
    pub start_from: StartFrom,
    /// The configuration in the image; without one, that of the xl configuration file.
    pub config: DomainConfig,
    /// The domain that currently has the name of the snapshot's domain.
    pub named: Option<Running>,
    /// The domain that has its UUID.
    pub same: Option<Running>,
    /// In the order of the record.
    pub disks: Vec<SnapshotDisk>,
    /// The current writable disks that are not in the snapshot, for messages.
    pub attached: Vec<String>,
    /// The host's logical volumes; read only if the snapshot has one.
    pub volumes: std::result::Result<Vec<Volume>, String>,
    /// The domain's keys in `/vm/UUID` in xenstore; read only for `--restore-first`.
    pub vm: Vec<(String, String)>,
    /// What the revert and the restore need.
    pub needs: Vec<Need>,
    /// What of that is missing.
    pub troubles: Vec<Trouble>,
    /// The time of the revert.
    pub now: Timestamp,
}

/// A plan, and the state of the disks after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revert {
    pub plan: Plan,
    /// Per disk of the record: the image in which the guest continues, if it changes.
    pub images: Vec<Option<std::path::PathBuf>>,
    /// Per disk of the record: where the data that the guest wrote since is kept.
    pub kept: Vec<Option<String>>,
    /// The images of the reverted disks.
    pub changes: Vec<DiskChange>,
    /// Entries for the user's xl configuration file, unless we update it.
    pub cfg_lines: Vec<String>,
    /// The result for that file.
    pub cfg: CfgAfter,
}

impl Revert {
    /// Adds the update of the configuration file.
    #[must_use]
    pub fn with_cfg(mut self, cfg: CfgAfter) -> Self {
        match &cfg {
            CfgAfter::Unknown => {}
            CfgAfter::Right => self.cfg_lines.clear(),
            CfgAfter::Replace(replace) => {
                self.cfg_lines.clear();
                let step = Step::ReplaceCfg(replace.clone());
                let plan = &mut self.plan;
                if plan.onward.iter().any(|step| matches!(step, Step::CreateDomain { .. })) {
                    // xl reads it at the start.
                    plan.on_failure.steps.splice(0..0, step.undo());
                    plan.prepare.push(step);
                } else {
                    let at = cfg_step(&plan.finish);
                    plan.finish.insert(at, step);
                }
            }
            CfgAfter::Trouble { path, why } => {
                self.plan.notes.push(format!("{} will not be rewritten: {why}", path.display()));
            }
        }
        self.cfg = cfg;
        self
    }
}

impl Revert {
    /// Adds the marks on the files of those disks of which nothing else tells from which snapshot they continue.
    #[must_use]
    pub fn with_marks(mut self, record: &Record) -> Self {
        let marked = record.disks.iter().zip(&self.images);
        let files: Vec<PathBuf> = marked
            .filter(|(disk, _)| disk.snapshot.kind().needs_mark())
            .map(|(disk, image)| image.as_ref().unwrap_or(&disk.path).clone())
            .collect();
        if !files.is_empty() {
            let finish = &mut self.plan.finish;
            let at = finish.iter().take_while(|step| step.resumes_guest()).count();
            finish.insert(at, Step::Mark { id: record.id, files });
        }
        self
    }
}

/// Where a step that rewrites the configuration file belongs: before files that it may still name are deleted, and
/// not between those that give volumes their final names, so that it never names disks of two moments.
fn cfg_step(finish: &[Step]) -> usize {
    let renames = |step: &Step| matches!(step, Step::Switch(Switch::RenameVolume { .. }));
    match finish.iter().rposition(renames) {
        Some(last) => last + 1,
        None => finish.iter().take_while(|step| step.resumes_guest()).count(),
    }
}

/// The name under which internal snapshots keep what the guest wrote since.
pub fn keep_name(now: Timestamp) -> SnapshotName {
    format!("before-revert-{}", stamp(now)).parse().expect("a time stamp is a legal name")
}

/// Plans a revert, or refuses it.
pub fn plan(found: &RevertInput, options: Options) -> Result<Revert> {
    let record = &found.record;
    let domain = &record.domain;
    let title = format!("Revert of {} to {}", domain.name, record.name);
    match found.start_from {
        StartFrom::Memory => check_image(found)?,
        StartFrom::Start(_) => check_start(found)?,
    }
    check_domain(found)?;
    // Each start may give it another UUID.
    let uuid = match found.start_from {
        StartFrom::Memory => domain.uuid,
        StartFrom::Start(_) => Uuid::nil(),
    };
    let keep = keep_name(found.now);
    let context = RevertContext {
        uuid,
        domain: &domain.name,
        id: record.id,
        created: record.created,
        keep: &keep,
        running: found.same.is_some(),
        discard: options.discard_current,
        new_domain: None,
        tight: false,
        volumes: &found.volumes,
    };
    let of_disks = |context: RevertContext<'_>| {
        found.disks.iter().map(|disk| disk::revert(disk, context)).collect::<Vec<_>>()
    };
    let mut disks = no_trouble(found, of_disks(context))?;
    let rooms: Vec<_> = disks.iter().filter_map(|disk| disk.room.as_ref()).collect();
    if let Some(why) = disk::short_of_room(&rooms) {
        return Err(no_room(&domain.name, why));
    }
    let spaces: Vec<_> = disks.iter().filter_map(|disk| disk.space.as_ref()).collect();
    if let Some(why) = disk::short_of_space(&spaces) {
        if !options.discard_current {
            return Err(no_space(&domain.name, why));
        }
        let tight = of_disks(RevertContext { tight: true, ..context });
        disks = tight.into_iter().collect::<Result<Vec<_>>>()?;
    }

    let mut config = found.config.clone();
    for (disk, seen) in disks.iter().zip(&found.disks) {
        if let (Some((path, format)), StartFrom::Memory) = (&disk.switch, &found.start_from) {
            config.set_image(&seen.record.vdev, path, *format).map_err(|why| {
                Error::refused(format!("The configuration in snapshot {}", record.name))
                    .because(why)
                    .hint("inspect it: xl-snapshot show --json IMAGE")
            })?;
        }
    }

    let mut notes = Vec::new();
    for (disk, seen) in disks.iter().zip(&found.disks) {
        let vdev = &seen.record.vdev;
        let snapshot = seen.record.snapshot.kind();
        if let Some(why) = snapshot.why_left_out() {
            notes.push(format!("disk {vdev} is not reverted: {why}"));
        }
        notes.extend(disk.note.iter().map(|note| format!("disk {vdev}: {note}")));
        match &disk.kept {
            Some(kept) if options.discard_current && !disk.discard.is_empty() => {
                notes.push(format!("the current contents of {vdev} are deleted: {kept}"));
            }
            Some(kept) => notes.push(format!("the current contents of {vdev} are kept in {kept}")),
            None if disk.lost => {
                notes.push(format!(
                    "the current contents of {vdev} are lost: there is no space to keep them"
                ));
            }
            None => {}
        }
    }

    for disk in &found.attached {
        notes.push(match &found.start_from {
            StartFrom::Memory => format!(
                "{disk} is not in the snapshot: the guest continues without it; its content does not change"
            ),
            StartFrom::Start(_) => format!("{disk} is not in the snapshot and is not reverted"),
        });
    }

    let undo_revert: Vec<Vec<Step>> = disks.iter().map(|disk| disk.undo_revert.clone()).collect();
    let undo_revert = undo_revert.iter().any(|steps| !steps.is_empty()).then(|| Step::UndoRevert {
        uuid,
        domain: domain.name.clone(),
        disks: undo_revert.into_iter().filter(|steps| !steps.is_empty()).collect(),
    });
    let way_out = Remaining {
        what: format!(
            "Domain {} is down; the snapshot is untouched and can be reverted to again",
            domain.name
        ),
        command: Some(format!("xl-snapshot revert {}", found.snapshot)),
    };
    // If a disk has no undo, the user must know where its data is.
    let no_way_back = |disk: &DiskRevert| !disk.put_back.is_empty() && disk.undo_revert.is_empty();
    let kept = disks.iter().zip(&found.disks).filter(|(disk, _)| no_way_back(disk));
    let kept = kept.filter_map(|(disk, seen)| {
        let (vdev, kept) = (&seen.record.vdev, disk.kept.as_ref()?);
        let what = format!("If {vdev} is already reverted, its previous contents are in {kept}");
        Some(Remaining { what, command: None })
    });
    let remaining = [way_out.clone()].into_iter().chain(kept).collect();
    let steps = |of: fn(&DiskRevert) -> &[Step]| disks.iter().map(of).collect::<Vec<_>>();
    let mut prepare = Step::in_rounds(&steps(|disk| &disk.prepare));
    match &found.same {
        // Its xl process must not reboot it meanwhile.
        Some(same) => {
            let hold = same.monitor.map(|process| Step::StopXl { process });
            let there = Step::CheckExists { domain: same.id.clone() };
            prepare.splice(0..0, hold.into_iter().chain([there]));
        }
        None => prepare.push(Step::CheckNotRunning { uuid, domain: domain.name.clone() }),
    }
    // Not when the domain is down.
    prepare.push(Step::AwaitTurn);
    if prepare.iter().any(Step::copies_disk) {
        let gone = found.same.as_ref().map(|same| same.id.domid);
        prepare.push(Step::CheckNeeds { gone, needs: found.needs.clone() });
    }
    let mut onward = Step::in_rounds(&steps(|disk| &disk.put_back));
    // Disks that dom0's kernel may have open are reverted after the domain is gone completely.
    let destroyed =
        found.same.as_ref().map(|same| Step::AwaitDestroyed { domain: same.id.clone() });
    // Not earlier: it would restart a guest that asked for a reboot.
    let wake =
        found.same.as_ref().and_then(|same| Some(Step::ContinueXl { process: same.monitor? }));
    let only_qemu = disks.iter().all(|disk| disk.only_qemu || disk.put_back.is_empty());
    let at = if only_qemu { onward.len() } else { 0 };
    onward.splice(at..at, destroyed.clone().into_iter().chain(wake));
    let mut finish = Vec::new();
    match &found.start_from {
        StartFrom::Memory => {
            onward.push(Step::Restore {
                uuid: domain.uuid,
                domain: domain.name.clone(),
                config: config.to_json(),
                image: None,
            });
            if !options.paused {
                finish.push(Step::Unpause { uuid: domain.uuid, domain: domain.name.clone() });
            }
        }
        StartFrom::Start(cfg) => onward.push(Step::CreateDomain {
            domain: domain.name.clone(),
            cfg: cfg.clone(),
            paused: options.paused,
        }),
    }
    let mut discards = Vec::new();
    if options.discard_current {
        discards.extend(disks.iter().flat_map(|disk| disk.discard.clone()));
    }
    let deletions = discards.len();
    finish.extend(discards);

    let pairs = disks.iter().zip(&found.disks);
    let changes: Vec<_> = pairs.filter_map(|(disk, seen)| cfg::change(disk, seen)).collect();
    let needed = changes.iter().filter(|change| change.needed);
    let cfg_lines = needed.map(|DiskChange { change, .. }| change.entry()).collect();
    let plan = Plan {
        title,
        notes,
        commit: found
            .same
            .as_ref()
            .map(|running| Step::Destroy { domain: running.id.clone(), way_out: way_out.clone() }),
        onward,
        on_failure: OnFailure {
            down: format!("Domain {} is down", domain.name),
            steps: destroyed.into_iter().chain(undo_revert).chain(undo(&prepare)).collect(),
            remaining,
        },
        prepare,
        finish,
        deletions,
        ..Plan::default()
    };
    Ok(Revert {
        plan,
        images: disks.iter().map(|d| d.switch.as_ref().map(|(path, _)| path.clone())).collect(),
        kept: disks.into_iter().map(|disk| disk.kept).collect(),
        changes,
        cfg_lines,
        cfg: CfgAfter::Unknown,
    })
}

/// The file system of the images is too full.
pub(crate) fn no_room(domain: &str, why: String) -> Error {
    Error::refused(format!("There is not enough space for the disks of {domain}"))
        .because(why)
        .hint("free some space on the file system of those images")
}

/// The volume group is too full to keep the current contents.
pub(crate) fn no_space(domain: &str, why: String) -> Error {
    Error::refused(format!("The current contents of the disks of {domain} cannot be kept"))
        .because(why)
        .hint("free some space, or discard the contents with --discard-current")
}

/// Refuses with all obstacles to a revert, the worst first: errors of the disks, and then what is
/// missing. Otherwise returns the plans of the disks.
pub(crate) fn no_trouble(
    found: &RevertInput,
    disks: Vec<Result<DiskRevert>>,
) -> Result<Vec<DiskRevert>> {
    let lost = disks.iter().filter_map(|disk| disk.as_ref().err());
    let lost = lost.map(|error| Trouble::of_error(error, Severity::Lost));
    match need::refusal(lost.chain(found.troubles.iter().cloned()).collect()) {
        Some(error) => Err(error),
        None => disks.into_iter().collect(),
    }
}

/// Checks that record and configuration have the same disks: we check those of the record, and the
/// domain is restored with those of the configuration.
pub(crate) fn check_image(found: &RevertInput) -> Result<()> {
    let record = &found.record;
    let refused = || {
        Error::refused(format!("The image of {} is not consistent", found.record.name))
            .hint("the image was changed: use the original")
    };
    let disks = found.config.disks().map_err(|why| refused().because(why))?;
    let name = found.config.name().map_err(|why| refused().because(why))?;
    if name != record.domain.name {
        return Err(refused().because(format!(
            "its configuration is of the domain {name}, its record of {}",
            record.domain.name
        )));
    }
    let uuid = found.config.uuid().map_err(|why| refused().because(why))?;
    if uuid != record.domain.uuid {
        return Err(refused().because(format!(
            "its configuration is of the domain {uuid}, its record of {}",
            record.domain.uuid
        )));
    }
    let configured = disks.iter().map(|disk| (disk.vdev.as_str(), disk.file()));
    let recorded = record.disks.iter().map(|disk| (disk.vdev.as_str(), disk.path.as_path()));
    if !configured.eq(recorded) {
        return Err(refused().because("its configuration names other disks than its record"));
    }
    Ok(())
}

/// The same for a domain that is started from its configuration file.
fn check_start(found: &RevertInput) -> Result<()> {
    let Record { domain, disks, .. } = &found.record;
    let refused = || {
        Error::refused(format!("{} cannot be started from its configuration file", domain.name))
            .hint("correct the file, or name the right one as config in a SPEC.toml")
    };
    let name = found.config.name().map_err(|why| refused().because(why))?;
    if name != domain.name {
        return Err(refused().because(format!("the file is that of {name}")));
    }
    let configured = found.config.disks().map_err(|why| refused().because(why))?;
    let missing = disks
        .iter()
        .filter(|disk| !disk.snapshot.is_left_out())
        .find(|disk| !configured.iter().any(|other| same_vdev(&other.vdev, &disk.vdev)));
    match missing {
        None => Ok(()),
        Some(disk) => Err(refused().because(format!("the file has no disk {}", disk.vdev))),
    }
}

pub(crate) fn check_domain(found: &RevertInput) -> Result<()> {
    let of = |running: &Running| (running.id.clone(), running.state);
    refuse_domain(
        &found.record.domain,
        found.named.as_ref().map(of).as_ref(),
        found.same.as_ref().map(of).as_ref(),
    )
}

/// Refuses a revert if the name or the UUID of the snapshot's domain now belongs to another domain.
///
/// # Errors
///
/// If another domain has its name, or it has another name, or it is being destroyed.
pub fn refuse_domain(
    domain: &DomainRecord,
    named: Option<&(DomainId, State)>,
    same: Option<&(DomainId, State)>,
) -> Result<()> {
    // Without memory, the name identifies the domain: see `look::for_revert`.
    let another = named.filter(|(named, _)| same.is_none_or(|(same, _)| same != named));
    if let Some((named, _)) = another {
        return Err(Error::refused(format!(
            "The name {} belongs to another domain now: {} has the UUID {}, the snapshot {}",
            domain.name, named.domid, named.uuid, domain.uuid
        ))
        .hint("rename or destroy that domain first: xl rename, xl destroy"));
    }
    match same {
        Some((same, _)) if same.name != domain.name => Err(Error::refused(match &*same.name {
            // Somebody has removed it from xenstore.
            "" => format!(
                "The domain of the snapshot, {}, has no name any more: it is number {}",
                domain.name, same.domid
            ),
            _ => format!("The domain of the snapshot, {}, is called {same} now", domain.name),
        })
        .because(format!("it has the snapshot's UUID {}", domain.uuid))
        .hint(format!(
            "if it is the same domain, rename it back: xl rename {} {}; if not, it needs \
             another UUID",
            same.domid,
            quote(&domain.name)
        ))),
        Some((same, State::Dying)) => Err(Error::refused(format!(
            "Domain {} ({}) is being destroyed",
            domain.name, same.domid
        ))
        .hint("try again after it has ended")),
        _ => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests;
