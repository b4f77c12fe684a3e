//! How an operation ends when it does not succeed.
//!
//! One error type for everything above `host/`: a small [`Kind`] to branch on (it is the exit
//! code), a sentence that names the object, the cause as a chain, and what to do next. Causes are
//! never repeated in the sentence: [`Error::chain`] prints each link once.

use std::error::Error as StdError;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What a caller may conclude from an error. The numbers are the exit codes, a contract with
/// scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It failed on the way and everything is as it was before.
    Failed = 1,
    /// The command line or an input file is wrong.
    Usage = 2,
    /// Refused before any change.
    Refused = 3,
    /// It failed and something is left to do: [`Error::remaining`] says what.
    Unfinished = 4,
}

/// Something a failed operation could not put in order, and the command that does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remaining {
    /// What is left, as a sentence.
    pub what: String,
    /// The command that the user has to type, if there is one.
    pub command: Option<String>,
}

/// A failed operation. See the module documentation.
#[derive(Debug)]
pub struct Error {
    /// What a caller may conclude.
    pub kind: Kind,
    /// The sentence: what was attempted on which object.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
    /// Other, less severe troubles.
    pub also: Vec<Error>,
    /// What is left to do; not empty only for [`Kind::Unfinished`].
    pub remaining: Vec<Remaining>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// Shorthand for what nearly every function above `host/` returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error {
            kind,
            message: message.into(),
            hint: None,
            also: Vec::new(),
            remaining: Vec::new(),
            source: None,
        }
    }

    /// It failed on the way and everything is as it was before.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }

    /// The command line or an input file is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// Refused before any change.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(Kind::Refused, message)
    }

    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds a trouble that was found at the same time.
    #[must_use]
    pub fn and_also(mut self, other: Error) -> Self {
        self.also.push(other);
        self
    }

    /// The same error, but one that leaves something to do.
    #[must_use]
    pub fn unfinished(mut self, remaining: Vec<Remaining>) -> Self {
        self.kind = Kind::Unfinished;
        self.remaining.extend(remaining);
        self
    }

    /// The sentence and its causes, each once, outermost first.
    pub fn chain(&self) -> Vec<String> {
        let mut links = vec![self.message.clone()];
        let mut next = self.source();
        while let Some(error) = next {
            let words = error.to_string();
            // Some errors end with the words of their cause.
            if !links.last().is_some_and(|link| link.ends_with(&words)) {
                links.push(words);
            }
            next = error.source();
        }
        links
    }

    pub fn exit_code(&self) -> u8 {
        self.kind as u8
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_is_told_once_and_in_order() {
        let inner = Error::failed("Reading /a").because("disk on fire");
        let outer = Error::refused("Snapshot s1 was refused").because(inner).hint("buy a disk");
        assert_eq!(outer.chain(), ["Snapshot s1 was refused", "Reading /a", "disk on fire"]);
        assert_eq!(outer.exit_code(), 3);
    }

    #[test]
    fn what_an_error_says_of_its_cause_is_not_told_again() {
        let inner = Error::failed("disk on fire").because("smoke");
        let error = Error::failed("Reading /a failed: disk on fire").because(inner);
        assert_eq!(error.chain(), ["Reading /a failed: disk on fire", "smoke"]);
    }

    #[test]
    fn exit_codes_are_the_contract() {
        assert_eq!(Error::failed("x").exit_code(), 1);
        assert_eq!(Error::usage("x").exit_code(), 2);
        assert_eq!(Error::refused("x").exit_code(), 3);
        assert_eq!(Error::failed("x").unfinished(vec![]).exit_code(), 4);
    }
}
