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
use crate::tool::guest_agent::is_of_hook;

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

/// How a thaw went.
#[derive(Debug, PartialEq, Eq)]
pub enum Thaw {
    /// So many file systems were thawed.
    Counted(u64),
    /// All were thawed, and how many is not told.
    Uncounted,
    /// They are thawed, but may have been before.
    Doubtful(String),
}

impl Thaw {
    /// Why the file systems, so many where that is told, may have been thawed before, if they may.
    pub fn doubt(self, frozen: Option<u64>) -> Option<String> {
        match (self, frozen) {
            (Thaw::Counted(0), _) => Some("another program has thawed them".into()),
            (Thaw::Counted(thawed), Some(frozen)) if thawed != frozen => Some(format!(
                "{frozen} were frozen and {thawed} thawed: another program has frozen or thawed some"
            )),
            (Thaw::Counted(_) | Thaw::Uncounted, _) => None,
            (Thaw::Doubtful(why), _) => Some(why),
        }
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

    /// Whether the agent says that the file systems are frozen now.
    pub fn is_frozen(&mut self) -> bool {
        self.agent.as_mut().is_some_and(|agent| agent.is_frozen().unwrap_or(false))
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
    ) -> Result<Option<u64>, NotFrozen> {
        match (&self.way, &mut self.agent) {
            (FreezeMethod::Program(path), _) => {
                let arguments = ["freeze", self.domain.name.as_str()];
                command::run_program(path, &arguments, limit, started)
                    .map(|()| None)
                    .map_err(NotFrozen::Program)
            }
            (FreezeMethod::Agent(_), Some(agent)) => {
                agent.freeze(limit).map(Some).map_err(NotFrozen::Agent)
            }
            (FreezeMethod::Agent(_), None) => Err(NotFrozen::Unreached),
        }
    }

    /// Tries once.
    pub fn thaw(&mut self) -> Result<Thaw> {
        let line = match &self.way {
            FreezeMethod::Agent(line) => line,
            FreezeMethod::Program(path) => {
                let arguments = ["thaw", self.domain.name.as_str()];
                return command::run_program(path, &arguments, PROGRAM_THAWS, &|_| ())
                    .map(|()| Thaw::Uncounted)
                    .map_err(program);
            }
        };
        let mut agent = match self.agent.take() {
            Some(agent) => agent,
            None => Agent::reconnect(line, self.qemu).map_err(|why| self.trouble(why))?,
        };
        let thaw = match agent.thaw() {
            Ok(count) => Thaw::Counted(count),
            Err(why @ AgentError::Refused { .. })
                if agent.is_frozen().is_ok_and(|frozen| !frozen) =>
            {
                let why = why.to_string();
                // It thaws first, and then tells that its hook has failed.
                if is_of_hook(&why) {
                    self.complaint = Some(why);
                    Thaw::Uncounted
                } else {
                    // Windows lets the guest write after ten seconds, and says so only now
                    // (qga/vss-win32/requester.cpp, VSS_E_HOLD_WRITES_TIMEOUT).
                    Thaw::Doubtful(why)
                }
            }
            Err(why) => return Err(self.trouble(why)),
        };
        self.agent = Some(agent);
        Ok(thaw)
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

/// Why nothing was frozen, or not all of it.
#[derive(Debug)]
pub enum NotFrozen {
    Agent(AgentError),
    Program(CommandError),
    Unreached,
}

pub fn program(why: CommandError) -> Error {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::agent::tests::{guest, in_step};
    use crate::quiesce::AgentChannel;
    use crate::tool::guest_agent::{STATUS, THAW};

    /// How it goes if an agent answers a thaw so, and then says that all is thawed.
    fn thawed(answer: &'static str) -> (Thaw, Option<String>) {
        let agent = guest(move |text| match text {
            _ if text.contains(THAW) => format!("{answer}\n").into_bytes(),
            _ if text.contains(STATUS) => b"{\"return\": \"thawed\"}\n".to_vec(),
            _ => in_step(text).unwrap(),
        });
        let domain = DomainId { domid: 7, uuid: uuid::Uuid::nil(), name: "web1".into() };
        let line = AgentChannel::Socket("/none".into());
        let mut freezer = Freezer::new(domain, FreezeMethod::Agent(line), None);
        freezer.agent = Some(agent);
        (freezer.thaw().unwrap(), freezer.complaint)
    }

    #[test]
    fn what_was_thawed_by_others_is_noticed() {
        let (thaw, complaint) = thawed(r#"{"return": 2}"#);
        assert_eq!((&thaw, complaint), (&Thaw::Counted(2), None));
        assert_eq!(thaw.doubt(Some(2)), None);
        assert_eq!(Thaw::Counted(2).doubt(None), None);
        for (thawed, frozen) in [(0, 2), (1, 2), (2, 1)] {
            let doubt = Thaw::Counted(thawed).doubt(Some(frozen)).unwrap();
            assert!(doubt.contains("another program"), "{doubt}");
        }
    }

    #[test]
    fn a_hook_that_fails_is_a_complaint_and_a_lost_freeze_is_not() {
        let (thaw, complaint) =
            thawed(r#"{"error": {"desc": "fsfreeze hook has failed with status 1"}}"#);
        assert_eq!(thaw, Thaw::Uncounted);
        assert!(complaint.unwrap().contains("hook has failed"));
        let words = "couldn't hold writes: fsfreeze is limited up to 10 seconds: ";
        let (thaw, complaint) = thawed(
            r#"{"error": {"desc": "couldn't hold writes: fsfreeze is limited up to 10 seconds: "}}"#,
        );
        assert_eq!(complaint, None);
        assert!(thaw.doubt(Some(2)).unwrap().contains(words));
    }
}
