//! What is known of the host, and what is said of each need.

use crate::disk::chain::FileId;
use crate::host::openers::{Listener, Opener};
use crate::host::toolstack::Toolstack;
use crate::need::Severity;

/// Where it is looked from.
#[derive(Debug, Clone, Copy)]
pub struct CheckContext<'a> {
    /// The toolstack, where there is one.
    pub toolstack: Option<&'a Toolstack>,
    /// The domain that will be destroyed before anything of this is needed, if it runs: what it uses
    /// does not count.
    pub gone: Option<u32>,
    /// The domain of the snapshot, if it runs, whether it will be destroyed or not.
    pub same: Option<u32>,
}

/// Whether one thing is there.
pub enum Answer {
    There,
    Trouble(Severity, String),
    /// It takes the toolstack to know.
    Unseen(String),
}

impl Answer {
    pub fn missing(why: Option<String>) -> Answer {
        why.map_or(Answer::There, |why| Answer::Trouble(Severity::Missing, why))
    }

    pub fn unseen(what: &str) -> Answer {
        Answer::Unseen(format!("{what}: this needs a running Xen"))
    }

    pub fn busy(why: Option<String>) -> Answer {
        why.map_or(Answer::There, |why| Answer::Trouble(Severity::Busy, why))
    }
}

/// Who uses the files and ports that are needed: looked for once for all of them.
pub struct InUse {
    pub files: Vec<(FileId, Opener)>,
    pub ports: Vec<Listener>,
}
