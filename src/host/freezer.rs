//! Who freezes and thaws the file systems of a guest: its agent or a program, and the thread that thaws when the time
//! is over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::domain::DomainId;
use crate::error::{Error, Result};
use crate::host::agent::{Agent, AgentError};
use crate::host::command::{self, CommandError};
use crate::host::quiesce::check_program;
use crate::process::Process;
use crate::quiesce::{FreezeMethod, FreezeState};

/// How long the program may take to thaw.
const PROGRAM_THAWS: Duration = Duration::from_secs(60);
/// How long until thawing is tried again.
pub const AGAIN: Duration = Duration::from_secs(1);

/// What a step knows of the freeze.
#[derive(Debug, Default)]
pub struct ActiveFreeze {
    /// What has become of it; also known to the guard.
    pub state: Option<FreezeState>,
    /// When it began, if that was in this process.
    pub begun: Option<Instant>,
    pub freezer: Option<Freezer>,
    pub watchdog: Option<Watchdog>,
}

impl ActiveFreeze {
    /// That of a process that was killed.
    pub fn adopted(state: Option<FreezeState>) -> ActiveFreeze {
        ActiveFreeze { state, ..ActiveFreeze::default() }
    }
}

/// Who freezes and thaws.
#[derive(Debug)]
pub struct Freezer {
    pub domain: DomainId,
    way: FreezeMethod,
    /// The process of the domain's QEMU.
    qemu: Option<i32>,
    agent: Option<Agent>,
    /// What the agent complained of when it had thawed.
    pub complaint: Option<String>,
}

/// Thaws when the time is over.
#[derive(Debug)]
pub struct Watchdog {
    /// Ends with the freezer, and whether it has thawed.
    thread: JoinHandle<(Freezer, bool)>,
    stop: Sender<()>,
    over: Arc<AtomicBool>,
}

/// How a [`Watchdog`] ended.
#[derive(Debug)]
pub struct Watched {
    pub freezer: Freezer,
    /// Whether the time was over: some file systems may have been thawed since, whatever was told of it.
    pub over: bool,
    /// Whether all are thawed.
    pub thawed: bool,
}

impl Freezer {
    pub fn new(domain: DomainId, way: FreezeMethod, qemu: Option<i32>) -> Freezer {
        Freezer { domain, way, qemu, agent: None, complaint: None }
    }

    /// Makes sure that it can freeze.
    pub fn reach(&mut self) -> Result<()> {
        let line = match &self.way {
            FreezeMethod::Program(path) => return check_program(path),
            FreezeMethod::Agent(line) => line,
        };
        let mut agent = Agent::connect(line, self.qemu).map_err(|why| self.trouble(why))?;
        agent.synchronise().map_err(|why| self.trouble(why))?;
        // First: while file systems are frozen, the agent calls freezing forbidden.
        if agent.is_frozen().map_err(|why| self.trouble(why))? {
            return Err(self.already());
        }
        let missing = agent.missing().map_err(|why| self.trouble(why))?;
        if !missing.is_empty() {
            return Err(Error::failed(format!("The guest agent of {} cannot freeze", self.domain))
                .because(format!("it does not allow {}", missing.join(", ")))
                .hint("allow it in the guest's configuration of qemu-ga (block-rpcs, allow-rpcs), and restart it there"));
        }
        self.agent = Some(agent);
        Ok(())
    }

    /// An error if the file systems are frozen already.
    pub fn ready(&mut self) -> Result<()> {
        let Some(agent) = &mut self.agent else { return Ok(()) };
        match agent.is_frozen() {
            Ok(false) => Ok(()),
            Ok(true) => Err(self.already()),
            Err(why) => Err(self.trouble(why)),
        }
    }

    pub fn already(&self) -> Error {
        Error::failed(format!("The file systems of {} are frozen already", self.domain))
            .because("another program has frozen them, or one that did has died")
            .hint(format!(
                "wait until the other one has ended; if there is none, thaw them: {}",
                self.way.thaw_by_hand(&self.domain.name)
            ))
    }

    pub fn trouble(&self, why: AgentError) -> Error {
        let hint = match &why {
            AgentError::Connect { .. } => {
                "check that its QEMU runs and that the socket or terminal exists: xl channel-list"
                    .to_owned()
            }
            AgentError::NotOfQemu { .. } => format!(
                "compare the terminal with what its QEMU has: xl channel-list {}; xl qemu-monitor-command {0} 'info chardev'",
                self.domain.name
            ),
            AgentError::Busy { .. } => "end the other program, or wait for it".into(),
            AgentError::Foreign { .. } => {
                "two domains may have the same path in their channel: give each its own".into()
            }
            AgentError::Refused { .. } | AgentError::Unreadable { .. } => {
                "check the agent's log in the guest: journalctl -u qemu-guest-agent".into()
            }
            AgentError::Silent { .. } | AgentError::Broken { .. } => format!(
                "see in the guest that qemu-ga runs (qemu-ga -m isa-serial -p /dev/hvcN, N from xl channel-list {}), and \
                 restart it there; after a restore or migration it must be restarted",
                self.domain.name
            ),
        };
        Error::failed(format!("The guest agent of {}", self.domain)).because(why).hint(hint)
    }

    pub fn freeze(
        &mut self,
        limit: Duration,
        started: &dyn Fn(Process),
    ) -> Result<Option<u64>, Result<AgentError, Error>> {
        match (&self.way, &mut self.agent) {
            (FreezeMethod::Program(path), _) => {
                let arguments = ["freeze", self.domain.name.as_str()];
                command::run_program(path, &arguments, limit, started)
                    .map(|()| None)
                    .map_err(|why| Err(program(why)))
            }
            (FreezeMethod::Agent(_), Some(agent)) => agent.freeze(limit).map(Some).map_err(Ok),
            (FreezeMethod::Agent(_), None) => {
                Err(Err(Error::failed("There is no connection to the guest agent")))
            }
        }
    }

    /// Tries once. Returns how many file systems were thawed, where that is told.
    pub fn thaw(&mut self) -> Result<Option<u64>> {
        let line = match &self.way {
            FreezeMethod::Agent(line) => line,
            FreezeMethod::Program(path) => {
                let arguments = ["thaw", self.domain.name.as_str()];
                return command::run_program(path, &arguments, PROGRAM_THAWS, &|_| ())
                    .map(|()| None)
                    .map_err(program);
            }
        };
        let mut agent = match self.agent.take() {
            Some(agent) => agent,
            None => Agent::reconnect(line, self.qemu).map_err(|why| self.trouble(why))?,
        };
        let count = match agent.thaw() {
            Ok(count) => Some(count),
            // It thaws first, and then tells that its hook has failed (qga/commands-posix.c).
            Err(why @ AgentError::Refused { .. })
                if agent.is_frozen().is_ok_and(|frozen| !frozen) =>
            {
                self.complaint = Some(why.to_string());
                None
            }
            Err(why) => return Err(self.trouble(why)),
        };
        self.agent = Some(agent);
        Ok(count)
    }

    /// Thaws after `limit`, unless it is told that somebody else does.
    pub fn watch(mut self, limit: Duration) -> Result<Watchdog> {
        let (stop, told) = mpsc::channel();
        let over = Arc::new(AtomicBool::new(false));
        let late = Arc::clone(&over);
        let watch = move || {
            let mut wait = limit;
            while told.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                // Before it is tried: what fails may have thawed some of them.
                late.store(true, Ordering::SeqCst);
                if self.thaw().is_ok() {
                    return (self, true);
                }
                wait = AGAIN;
            }
            (self, false)
        };
        let thread = thread::Builder::new().name("thaw".into()).spawn(watch);
        let thread = thread.map_err(|why| Error::failed("Start a thread").because(why))?;
        Ok(Watchdog { thread, stop, over })
    }
}

fn program(why: CommandError) -> Error {
    Error::failed("The program").because(why)
}

impl Watchdog {
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Ends it, or waits until it has thawed.
    pub fn end(self) -> Result<Watched> {
        // It may have ended by itself.
        let _ = self.stop.send(());
        let (freezer, thawed) =
            self.thread.join().map_err(|_| Error::failed("The thread that thaws has panicked"))?;
        Ok(Watched { freezer, over: self.over.load(Ordering::SeqCst), thawed })
    }
}
