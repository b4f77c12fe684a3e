//! The steps that freeze and thaw a guest's file systems.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::DomainId;
use crate::quiesce::FreezeMethod;
use crate::tool::quote;

/// A step of a freeze.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Freeze {
    /// Checks that the agent or program works, and that nothing is frozen yet.
    Reach { domain: DomainId, way: FreezeMethod },
    /// Freezes the file systems, and thaws them after the time limit.
    Begin {
        domain: DomainId,
        way: FreezeMethod,
        /// How long they may be frozen.
        limit: Duration,
        /// The images of the disks. Dom0's cached data of them is written to storage before.
        disks: Vec<PathBuf>,
    },
    /// Checks that the time limit has not passed.
    Check { domain: DomainId },
    /// Thaws them, if we have frozen them.
    Thaw { domain: DomainId, way: FreezeMethod },
    /// Records that they were frozen, if they stayed frozen until this program thawed them.
    Confirm { domain: DomainId, way: FreezeMethod },
}

impl Freeze {
    pub fn undo(&self) -> Option<Freeze> {
        match self {
            Freeze::Begin { domain, way, .. } => {
                Some(Freeze::Thaw { domain: domain.clone(), way: way.clone() })
            }
            _ => None,
        }
    }

    /// The command that does it by hand.
    pub fn by_hand(&self) -> Option<String> {
        match self {
            Freeze::Thaw { domain, way } => Some(way.thaw_by_hand(&domain.name)),
            _ => None,
        }
    }

    /// What the user must know to do it.
    pub fn in_words(&self) -> Option<String> {
        match self {
            Freeze::Thaw { domain, .. } => Some(format!(
                "whatever writes in {} waits until its file systems are thawed: by the command below, or in the \
                 guest by `fsfreeze -u MOUNTPOINT` for each",
                domain.name
            )),
            _ => None,
        }
    }
}

impl fmt::Display for Freeze {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Freeze::Reach { domain, way: FreezeMethod::Agent(line) } => write!(
                f,
                "check that the guest agent of {domain} answers at {}, and nothing is frozen",
                quote(line.path())
            ),
            Freeze::Reach { way: FreezeMethod::Program(path), .. } => {
                write!(f, "check that only root can have written {}", quote(path))
            }
            Freeze::Begin { domain, way, limit, .. } => write!(
                f,
                "freeze the file systems of {domain}, for {} s at most, by {way}",
                limit.as_secs_f64()
            ),
            Freeze::Check { domain } => {
                write!(f, "check that the file systems of {domain} are still frozen")
            }
            Freeze::Thaw { domain, way } => {
                write!(f, "thaw the file systems of {domain}, by {way}")
            }
            Freeze::Confirm { domain, .. } => {
                write!(f, "note in the record that the file systems of {domain} were frozen")
            }
        }
    }
}
