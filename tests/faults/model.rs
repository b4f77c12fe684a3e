//! A host that exists only as a model, and a wrapper that has steps of any host fail, or the program
//! killed, on command.
//!
//! Used by the unit tests on every plan the planners can make, and by `real.rs`, which in the lab
//! does the same to the model and to a real dom0 and compares.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use xl_snapshot::error::{Error, Result};
use xl_snapshot::plan::export::Export;
use xl_snapshot::plan::{
    Action, ConfigOwner, Freeze, Perform, Plan, Reached, Step, StoreConfig, Switch, Target, Text,
    undo,
};
use xl_snapshot::tool::volumes::rename;

/// What the guest is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guest {
    /// It runs.
    Runs,
    /// It is suspended.
    Suspended,
    /// It was restored or started and not unpaused yet, or was paused.
    Paused,
    /// There is no such domain.
    Gone,
}

/// The memory image, or the file of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Image {
    /// There is none.
    Absent,
    /// Its name says that it is not complete.
    Partial,
    /// It has its name.
    Complete,
}

/// What of a host a plan can change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub guest: Guest,
    /// Whether libxl is still destroying the domain.
    pub destroying: bool,
    /// Whether we have asked that it stand still.
    pub paused: bool,
    /// Whether the domain's xl process is stopped.
    pub monitor_held: bool,
    /// The memory image.
    pub image: Image,
    /// New files.
    pub files: BTreeSet<PathBuf>,
    /// Files that lost their write permission.
    pub protected: BTreeSet<PathBuf>,
    /// What the stored configurations changed to, where it is not what they were: libxl's and xl's.
    pub stored: [Option<Text>; 2],
    /// The same for keys in xenstore.
    pub xenstore: BTreeMap<String, String>,
    /// Internal snapshots, by disk, and the overlays QEMU writes to.
    pub disks: BTreeSet<String>,
    /// Commands that were run and can be taken back, by what takes them back.
    pub undoable: BTreeSet<String>,
    /// Commands that were run and cannot.
    pub ran: BTreeSet<String>,
    /// What was deleted that was there before.
    pub deleted: BTreeSet<String>,
    /// Whether the user's configuration file was rewritten.
    pub cfg_replaced: bool,
    /// The record of a snapshot without memory.
    pub record: Image,
    /// A domain of the same UUID that was restored beside the guest.
    pub beside: Guest,
    /// Whether the guest has given up its name.
    pub nameless: bool,
    /// Whether the one beside it has that name.
    pub named: bool,
    /// The names of volumes that get other ones.
    pub volumes: BTreeSet<String>,
    /// Whether the guest's file systems are frozen.
    pub frozen: bool,
}

/// A host as a model.
#[derive(Debug, Clone)]
pub struct Model {
    /// How it stands.
    pub state: State,
    made: BTreeSet<PathBuf>,
    old: BTreeMap<String, Text>,
    undoing: BTreeSet<String>,
    /// Volumes that get other names, and those.
    renames: Vec<(String, String)>,
}

impl Model {
    /// A host before a plan, on which the guest runs or not.
    pub fn new(plan: &Plan, guest: Guest) -> Model {
        let undo_revert = plan.on_failure.steps.iter().flat_map(|step| match step {
            Step::UndoRevert { disks, .. } => disks.concat(),
            _ => Vec::new(),
        });
        let calls =
            undo(&plan.prepare).into_iter().chain(undo_revert).filter_map(|step| match step {
                Step::Run(call) => Some(call.to_string()),
                _ => None,
            });
        Model {
            state: State {
                guest,
                destroying: false,
                paused: false,
                monitor_held: false,
                image: Image::Absent,
                files: BTreeSet::new(),
                protected: BTreeSet::new(),
                stored: [None, None],
                xenstore: BTreeMap::new(),
                disks: BTreeSet::new(),
                undoable: BTreeSet::new(),
                ran: BTreeSet::new(),
                deleted: BTreeSet::new(),
                cfg_replaced: false,
                record: Image::Absent,
                beside: Guest::Gone,
                nameless: false,
                named: false,
                frozen: false,
                volumes: plan.finish.iter().filter_map(renamed).map(|(from, _)| from).collect(),
            },
            made: BTreeSet::new(),
            old: originals(&plan.prepare),
            undoing: calls.collect(),
            renames: plan.finish.iter().filter_map(renamed).collect(),
        }
    }

    fn make(&mut self, path: &Path) {
        self.state.files.insert(path.to_owned());
        self.made.insert(path.to_owned());
    }

    /// Two domains of one UUID and one MAC address: never do both run, or have the same name.
    fn switch(&mut self, switch: &Switch) -> Result<()> {
        let state = &mut self.state;
        match switch {
            Switch::Restore { .. } => state.beside = Guest::Paused,
            // In a rehearsal it is the only one.
            Switch::Check { .. } if ![state.beside, state.guest].contains(&Guest::Paused) => {
                return Err(Error::failed("it is not there, paused"));
            }
            Switch::Check { .. } => {}
            Switch::Discard { .. } => {
                if state.beside == Guest::Runs {
                    return Err(Error::failed("it runs"));
                }
                state.beside = Guest::Gone;
            }
            Switch::RenameOld { .. } => state.nameless = true,
            Switch::UndoRenameOld { .. } => state.nameless = false,
            Switch::RenameNew { .. } if !state.nameless => {
                return Err(Error::failed("the other one has the name"));
            }
            Switch::RenameNew { .. } => state.named = true,
            Switch::UndoRenameNew { .. } => state.named = false,
            Switch::Run { .. } if state.guest == Guest::Runs => {
                return Err(Error::failed("both would run"));
            }
            Switch::Run { .. } => state.beside = Guest::Runs,
            Switch::Destroy { .. } => state.guest = Guest::Gone,
            Switch::RenameVolume { from, to, .. } => {
                let there = (state.volumes.contains(from), state.volumes.contains(to));
                // The volume that has the name now is another one, which got it after this was done.
                if there == (true, true) && self.renames.iter().any(|(_, other)| other == from) {
                    return Ok(());
                }
                if there == (true, true) {
                    return Err(Error::failed("there is a volume of that name"));
                }
                state.volumes.remove(from);
                state.volumes.insert(to.clone());
            }
            Switch::UpdateConfig { .. } => {
                let not_yet = self.renames.iter().any(|(from, to)| {
                    let image = self.renames.iter().any(|(other, _)| other == to);
                    image && state.volumes.contains(from)
                });
                if not_yet {
                    return Err(Error::failed("a volume was not renamed"));
                }
                state.ran.insert(switch.to_string());
            }
        }
        Ok(())
    }

    fn freeze(&mut self, freeze: &Freeze) -> Result<()> {
        let state = &mut self.state;
        let done = match freeze {
            Freeze::Reach { .. } => !state.frozen,
            Freeze::Begin { .. } => state.guest == Guest::Runs && !state.frozen,
            Freeze::Check { .. } => state.frozen,
            // A guest that stands still does nothing.
            Freeze::Thaw { .. } => state.guest == Guest::Runs || !state.frozen,
            Freeze::Confirm { .. } => !state.frozen,
        };
        match freeze {
            _ if !done => return Err(Error::failed("the guest does not do that now")),
            Freeze::Begin { .. } => state.frozen = true,
            Freeze::Thaw { .. } => state.frozen = false,
            _ => {}
        }
        Ok(())
    }

    fn export(&mut self, export: &Export, step: &Step) {
        let state = &mut self.state;
        match export {
            Export::Begin { directory, .. } => drop(state.files.insert(directory.clone())),
            Export::Discard { directory, .. } => drop(state.files.remove(directory)),
            Export::Name { from, to, .. } => {
                state.files.remove(from);
                state.files.insert(to.clone());
            }
            Export::End { .. } => drop(state.ran.insert(step.to_string())),
            // In the directory, of no use to anybody, or nothing that stays here.
            Export::Clear { .. }
            | Export::Disk(_)
            | Export::Cfg { .. }
            | Export::Memory(_)
            | Export::Record { .. }
            | Export::EndArchive
            | Export::Send { .. } => {}
        }
    }

    fn store(&mut self, store: &StoreConfig) {
        let (slot, key) = slot(store.whose);
        let changed = self.old.get(key) != Some(&store.new);
        self.state.stored[slot] = changed.then(|| store.new.clone());
    }
}

fn slot(whose: ConfigOwner) -> (usize, &'static str) {
    match whose {
        ConfigOwner::Libxl => (0, "libxl"),
        ConfigOwner::Xl => (1, "xl"),
    }
}

fn renamed(step: &Step) -> Option<(String, String)> {
    let Step::Switch(Switch::RenameVolume { from, to, .. }) = step else { return None };
    Some((from.clone(), to.clone()))
}

/// What the configurations hold that the steps change.
fn originals(steps: &[Step]) -> BTreeMap<String, Text> {
    let mut originals = BTreeMap::new();
    for step in steps {
        if let Step::StoreConfig(store) = step {
            originals.insert(slot(store.whose).1.to_owned(), store.old.clone());
        }
    }
    originals
}

impl Perform for Model {
    fn perform(&mut self, step: &Step) -> Result<()> {
        let state = &mut self.state;
        match step {
            Step::NewFile { path, .. } => self.make(path),
            Step::Clone { to, .. } => self.make(to),
            Step::Rename { from, to } => {
                state.files.remove(from);
                state.files.insert(to.clone());
            }
            Step::RemoveNew { path } => {
                if self.made.remove(path) {
                    state.files.remove(path);
                }
            }
            Step::RemoveFile { .. } | Step::DeleteInternal { .. } => {
                state.deleted.insert(step.to_string());
            }
            Step::MakeReadOnly { path } => drop(state.protected.insert(path.clone())),
            Step::MakeWritable { path } => drop(state.protected.remove(path)),
            Step::OpenImage(start) => {
                if start.target != Target::Stdout {
                    state.image = Image::Partial;
                }
            }
            // All that is left of a guest that could not be resumed.
            Step::DiscardImage if state.guest == Guest::Suspended => {
                return Err(Error::failed("the guest is suspended"));
            }
            Step::DiscardImage => {
                if state.image == Image::Partial {
                    state.image = Image::Absent;
                }
            }
            Step::CompleteImage => state.image = Image::Complete,
            Step::StopXl { .. } => state.monitor_held = true,
            Step::ContinueXl { .. } => state.monitor_held = false,
            Step::Suspend { .. } => state.guest = Guest::Suspended,
            Step::Resume { .. } => {
                if state.guest == Guest::Suspended {
                    state.guest = if state.paused { Guest::Paused } else { Guest::Runs };
                }
            }
            Step::Destroy { .. } => (state.guest, state.destroying) = (Guest::Gone, true),
            Step::AwaitDestroyed { .. } => state.destroying = false,
            Step::Restore { .. } | Step::CreateDomain { .. } if state.destroying => {
                return Err(Error::failed("another domain has its name"));
            }
            Step::Restore { .. } => state.guest = Guest::Paused,
            Step::DiscardDomain { .. } => {
                if state.guest == Guest::Paused {
                    state.guest = Guest::Gone;
                }
            }
            Step::Unpause { .. } => state.guest = Guest::Runs,
            Step::StoreConfig(store) => self.store(store),
            Step::ReplaceCfg(_) => state.cfg_replaced = true,
            Step::RestoreCfg(_) => state.cfg_replaced = false,
            Step::OpenRecord { .. } => state.record = Image::Partial,
            Step::CompleteRecord => state.record = Image::Complete,
            Step::DiscardRecord => state.record = Image::Absent,
            Step::TakeInternal { path, name } => {
                state.disks.insert(format!("{name} in {}", path.display()));
            }
            Step::UndoTakeInternal { path, name } => {
                state.disks.remove(&format!("{name} in {}", path.display()));
            }
            Step::CheckNotRunning { .. } if state.guest != Guest::Gone => {
                return Err(Error::failed("it runs"));
            }
            Step::CheckExists { .. } if state.guest == Guest::Gone => {
                return Err(Error::failed("it is gone"));
            }
            Step::UndoRevert { .. } if state.guest == Guest::Runs => {
                return Err(Error::failed("it runs"));
            }
            Step::UndoRevert { disks, .. } => {
                state.guest = Guest::Gone;
                disks.iter().flatten().try_for_each(|step| self.perform(step))?;
            }
            Step::ApplyKept { path, .. } => {
                let path = path.display().to_string();
                let of_it =
                    |call: &String| call.starts_with("qemu-img snapshot ") && call.contains(&path);
                state.ran.retain(|call| !of_it(call));
            }
            Step::UndoRename { from, .. } => drop(state.files.remove(from)),
            Step::UndoRenameVolume { group, from, to, .. } => {
                state.ran.remove(&rename(group, to, from).to_string());
            }
            Step::CreateDomain { paused, .. } => {
                state.guest = if *paused { Guest::Paused } else { Guest::Runs };
            }
            Step::Pause { .. } => {
                state.paused = true;
                if state.guest == Guest::Runs {
                    state.guest = Guest::Paused;
                }
            }
            Step::UnpauseExisting { .. } if state.beside == Guest::Runs => {
                return Err(Error::failed("both would run"));
            }
            Step::UnpauseExisting { .. } => {
                state.paused = false;
                if state.guest == Guest::Paused {
                    state.guest = Guest::Runs;
                }
            }
            Step::Xenstore(writes) => {
                state
                    .xenstore
                    .extend(writes.iter().map(|write| (write.path.clone(), write.new.clone())));
            }
            Step::Transaction { actions, .. } => {
                state.disks.extend(actions.iter().map(Action::to_string));
            }
            Step::Undoable { undo, .. } => drop(state.undoable.insert(undo.to_string())),
            Step::Run(call) => {
                // Taking back what was not done does nothing.
                let call = call.to_string();
                if !state.undoable.remove(&call) && !self.undoing.contains(&call) {
                    state.ran.insert(call);
                }
            }
            Step::Together(steps) => steps.iter().try_for_each(|step| self.perform(step))?,
            Step::Export(export) => self.export(export, step),
            Step::Delete(_) => drop(state.ran.insert(step.to_string())),
            Step::Switch(switch) => self.switch(switch)?,
            Step::Freeze(freeze) => self.freeze(freeze)?,
            Step::Resize { .. }
            | Step::Rehearse(_)
            | Step::SendTransaction { .. }
            | Step::CancelTransaction
            | Step::CheckSuspended { .. }
            | Step::CheckConfig { .. }
            | Step::CheckNotRunning { .. }
            | Step::CheckExists { .. }
            | Step::CheckNeeds { .. }
            | Step::Mark { .. }
            | Step::FinishCompression
            | Step::SyncAndVerifyImage
            | Step::AddSums
            | Step::AwaitTurn
            | Step::AwaitClosed { .. }
            | Step::AwaitMerged { .. } => {}
        }
        Ok(())
    }

    fn settle(&mut self, step: &Step) -> Result<bool> {
        match step {
            Step::Transaction { actions, .. } => {
                Ok(actions.iter().all(|action| self.state.disks.contains(&action.to_string())))
            }
            Step::Destroy { domain, .. } => {
                self.perform(step)?;
                self.perform(&Step::AwaitDestroyed { domain: domain.clone() })?;
                Ok(true)
            }
            Step::Restore { .. } | Step::CreateDomain { .. } => Ok(self.state.guest != Guest::Gone),
            Step::CompleteRecord => Ok(self.state.record == Image::Complete),
            Step::Export(Export::Name { to, .. }) => Ok(self.state.files.contains(to)),
            Step::Switch(Switch::Run { .. }) => Ok(self.state.beside == Guest::Runs),
            _ => Ok(false),
        }
    }
}

/// What becomes of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// It fails and has done nothing.
    Fails,
    /// It fails and has done its work for all that.
    FailsLate,
    /// The program is killed before it.
    Killed,
    /// The program is killed after it.
    KilledLate,
}

/// A host on which some steps go wrong, by their number in the order in which they are performed, the
/// undoing ones included.
pub struct Faulty<'a> {
    host: &'a mut dyn Perform,
    faults: BTreeMap<usize, Fault>,
    kill: fn() -> Error,
    dead: bool,
    /// What was performed, and how it ended.
    pub trace: Vec<String>,
}

impl<'a> Faulty<'a> {
    /// `kill` kills the program, or ends it as far as its host can tell.
    pub fn new(
        host: &'a mut dyn Perform,
        faults: impl IntoIterator<Item = (usize, Fault)>,
        kill: fn() -> Error,
    ) -> Self {
        let faults = faults.into_iter().collect();
        Faulty { host, faults, kill, dead: false, trace: Vec::new() }
    }

    fn kill(&mut self) -> Result<()> {
        self.dead = true;
        Err((self.kill)())
    }
}

impl Perform for Faulty<'_> {
    fn perform(&mut self, step: &Step) -> Result<()> {
        if self.dead {
            return Err((self.kill)());
        }
        let fault = self.faults.get(&self.trace.len()).copied();
        let outcome = match fault {
            None => self.host.perform(step),
            Some(Fault::Fails) => Err(Error::failed("told to fail")),
            // All or nothing: a commit that failed has done nothing.
            Some(Fault::FailsLate)
                if matches!(
                    step,
                    Step::Transaction { .. }
                        | Step::Switch(Switch::Run { .. })
                        | Step::Export(Export::Name { .. })
                ) =>
            {
                Err(Error::failed("told to fail afterwards"))
            }
            Some(Fault::FailsLate) => {
                self.host.perform(step).and(Err(Error::failed("told to fail afterwards")))
            }
            Some(Fault::Killed) => self.kill(),
            Some(Fault::KilledLate) => self.host.perform(step).and(self.kill()),
        };
        let how = if outcome.is_ok() { "done" } else { "FAILED" };
        self.trace.push(format!("{how}: {step}"));
        outcome
    }

    fn interrupted(&self) -> bool {
        self.host.interrupted()
    }

    fn reached(&mut self, reached: Reached) {
        // The dead tell nothing.
        if !self.dead {
            self.host.reached(reached);
        }
    }

    fn settle(&mut self, step: &Step) -> Result<bool> {
        self.host.settle(step)
    }
}
