//! Finds the domain that the user has named, or that a snapshot names.

use std::error::Error as StdError;
use std::fs;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::trouble::trouble;
use crate::domain::DomainId;
use crate::error::{Error, Result};
use crate::host::libxl::{DomainInfo, LibxlError, ShutdownReason, cfg_name};
use crate::host::toolstack::Toolstack;
use crate::restore_first::{REPLACED, names, temporary};
use crate::spec::absolute;
use crate::state::State;
use crate::tool::quote;

/// A domain as the user named it.
#[derive(Debug, Clone)]
pub struct Domain {
    /// Its number is 0 and its UUID nil if it does not run.
    pub id: DomainId,
    pub state: State,
    /// The xl configuration file, if the user named the domain by it.
    pub cfg: Option<PathBuf>,
}

impl Domain {
    /// The same domain, with the xl configuration file in a SPEC.toml, if the user did not name it by
    /// one.
    pub fn with_cfg(mut self, config: Option<&Path>) -> Result<Self> {
        let Some(path) = config.filter(|_| self.cfg.is_none()) else { return Ok(self) };
        let wrong = |why: Box<dyn StdError + Send + Sync>| {
            Error::usage(format!("The xl configuration file {}", path.display()))
                .because(why)
                .hint("correct config in the SPEC.toml, or the file: xl create -n FILE")
        };
        let name = cfg_name(path).map_err(|why| wrong(why.into()))?;
        if name != self.id.name {
            return Err(wrong(format!("it is that of {name}, not of {}", self.id.name).into()));
        }
        self.cfg = Some(path.to_owned());
        Ok(self)
    }
}

/// A domain that Xen lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) id: DomainId,
    pub(super) state: State,
}

/// The name of a domain; empty if it has just gone.
pub(super) fn name_of(toolstack: &Toolstack, domid: u32) -> Result<String> {
    match toolstack.domain_name(domid) {
        Ok(name) => Ok(name.unwrap_or_default()),
        // Nobody can name such a domain here, and work on other domains continues.
        Err(LibxlError::NotUtf8 { .. }) => Ok(format!("\u{fffd} (domain {domid})")),
        Err(error) => Err(trouble("the domains", error)),
    }
}

/// All domains that Xen lists, except dom0.
pub(super) fn listed(toolstack: &Toolstack) -> Result<Vec<Listed>> {
    let domains = toolstack.domains().map_err(|error| trouble("the domains", error))?;
    domains
        .iter()
        .map(|info| {
            let name = name_of(toolstack, info.domid)?;
            let id = DomainId { domid: info.domid, uuid: info.uuid, name };
            Ok(Listed { id, state: state(info) })
        })
        .collect()
}

/// Finds a domain by name, number, UUID or the path of its xl configuration file.
pub fn domain(toolstack: &Toolstack, text: &str) -> Result<Domain> {
    let domains = listed(toolstack)?;
    if let Some(Listed { id, state }) = named(&domains, text)? {
        return Ok(Domain { id, state, cfg: None });
    }
    let path = Path::new(text);
    if !path.is_file() {
        return Err(Error::refused(format!("There is no domain {text:?}")).hint(
            "give a name, a number, a UUID or an xl configuration file; xl list shows the domains",
        ));
    }
    let name = name_in(path)?;
    let cfg = Some(absolute(path)?);
    // The name in a file is a name, even if it looks like a number or UUID of a domain.
    Ok(match only(&domains, &name, |id| id.name == name)? {
        Some(Listed { id, state }) => Domain { id, state, cfg },
        None => {
            Domain { id: DomainId { domid: 0, uuid: Uuid::nil(), name }, state: State::Off, cfg }
        }
    })
}

/// The name of the domain in an xl configuration file that the user has named.
pub fn name_in(cfg: &Path) -> Result<String> {
    let quoted = quote(cfg);
    if let Err(error) = fs::metadata(cfg) {
        return Err(Error::usage(format!("The configuration file {quoted}"))
            .because(error)
            .hint("check the path, or name the domain as xl list does"));
    }
    cfg_name(cfg).map_err(|why| {
        Error::usage(format!("The configuration file {quoted} is not understood"))
            .because(why)
            .hint(format!("check it: xl create -n {quoted}"))
    })
}

/// The current state of the same domain, perhaps with another number: the process that we waited for
/// may have reverted it.
pub fn again(toolstack: &Toolstack, domain: Domain) -> Result<Domain> {
    let Domain { id, state, cfg } = domain;
    let off = state == State::Off;
    let mut domains = listed(toolstack)?;
    // A dying domain may already be replaced.
    domains.retain(|domain| domain.state != State::Dying);
    let meant = |other: &DomainId| other.name == id.name && (off || other.uuid == id.uuid);
    match only(&domains, &id.name, meant)? {
        Some(Listed { id, state }) => Ok(Domain { id, state, cfg }),
        None if off => Ok(Domain { id, state, cfg }),
        None => Err(Error::refused(format!("Domain {} does not run any more", id.name))
            .hint("a snapshot is taken of a running domain: xl list shows them")),
    }
}

/// The domain with a UUID. A dying domain counts only if no other has it.
pub(super) fn with_uuid(domains: &[Listed], uuid: Uuid) -> Result<Option<Listed>> {
    only(domains, &uuid.to_string(), |id| id.uuid == uuid)
}

/// The domain with a name; of two, the one that is not dying.
pub(super) fn with_name(domains: &[Listed], name: &str) -> Option<Listed> {
    let mut found: Vec<_> = domains.iter().filter(|domain| domain.id.name == name).collect();
    found.sort_by_key(|domain| domain.state == State::Dying);
    found.first().map(|domain| (*domain).clone())
}

/// Finds a domain by number, UUID or name.
fn named(domains: &[Listed], text: &str) -> Result<Option<Listed>> {
    let domid = text.parse::<u32>().ok();
    let uuid = text.parse::<Uuid>().ok();
    only(domains, text, |id| domid == Some(id.domid) || uuid == Some(id.uuid) || id.name == text)
}

/// The one domain that matches. A dying domain counts only if no other matches: it may stay in Xen's
/// list for as long as somebody maps a page of its memory.
///
/// # Errors
///
/// If several match, or another domain has the same UUID: a revert finds its domain by UUID.
fn only(
    domains: &[Listed],
    text: &str,
    meant: impl Fn(&DomainId) -> bool,
) -> Result<Option<Listed>> {
    let meant = |domain: &&Listed| meant(&domain.id);
    let (dying, live): (Vec<&Listed>, Vec<&Listed>) =
        domains.iter().partition(|domain| domain.state == State::Dying);
    let found: Vec<&Listed> = live.iter().copied().filter(meant).collect();
    let one = match found.as_slice() {
        [] => return Ok(dying.into_iter().find(meant).cloned()),
        [one, other, ..] if one.id.uuid != other.id.uuid => {
            return Err(Error::refused(format!("{text:?} means more than one domain"))
                .because(both(one, other))
                .hint("use a unique number, name or UUID: see xl list -v"));
        }
        [one, ..] => *one,
    };
    if one.id.domid == 0 {
        return Err(Error::refused("Domain 0 cannot be snapshotted: xl-snapshot runs in it")
            .hint("name another domain; xl list shows them"));
    }
    let twin = live.iter().find(|other| other.id.uuid == one.id.uuid && **other != one);
    match twin {
        None => Ok(Some(one.clone())),
        Some(other) => Err(Error::refused(format!("Two domains have the UUID {}", one.id.uuid))
            .because(both(one, other))
            .hint(hint_of_twins(one, other))),
    }
}

/// The xl process of the domain was held meanwhile: without it, nobody restarts the guest.
const AWAKE: &str =
    ". If its xl process is stopped (ps -C xl -o pid,stat,args: T), wake it: kill -CONT PID";

fn hint_of_twins(one: &Listed, other: &Listed) -> String {
    let of = |new: &Listed, old: &Listed| new.id.name == temporary(&old.id.name);
    let pairs = [(one, other), (other, one)];
    // It had replaced the other one, or was about to.
    let replaced = |(new, old): &(&Listed, &Listed)| old.id.name == names(&new.id.name)[1];
    if let Some((new, old)) = pairs.into_iter().find(replaced) {
        let run = if new.state == State::Paused {
            format!("let the new one run, then destroy the old one: xl unpause {}; ", new.id.domid)
        } else {
            "destroy the old one: ".into()
        };
        return format!(
            "a revert --restore-first is in progress or was interrupted: {} was replaced by {}. If it does not go on, \
             {run}xl destroy {}{AWAKE}",
            old.id.domid, new.id.domid, old.id.domid
        );
    }
    let between = |(new, old): (&Listed, &Listed)| {
        let name = old.id.name.strip_suffix(REPLACED)?;
        (new.id.name == temporary(name)).then(|| (new.id.domid, old.id.domid, name.to_owned()))
    };
    if let Some((new, old, name)) = pairs.into_iter().find_map(between) {
        return format!(
            "a revert --restore-first is in progress or was interrupted; then undo it: xl destroy {new}; xl rename \
             {old} {}; xl unpause {old}{AWAKE}",
            quote(&name)
        );
    }
    let restoring = pairs.into_iter().any(|(new, old)| of(new, old));
    let ended = pairs.into_iter().find(|(one, _)| one.state == State::Shutdown && !restoring);
    if let Some((ended, _)) = ended {
        return format!(
            "{} has ended and is kept (on_crash, on_poweroff): if it is not needed any more, xl destroy {}",
            ended.id, ended.id.domid
        );
    }
    match pairs.into_iter().find(|(new, old)| of(new, old)) {
        Some((new, old)) => format!(
            "a revert --restore-first is in progress or was interrupted; then destroy its leftover: \
             xl destroy {}{}{AWAKE}",
            new.id.domid,
            if old.state == State::Paused {
                format!("; xl unpause {}", old.id.domid)
            } else {
                String::new()
            }
        ),
        None => "a snapshot belongs to a UUID: give one of them another uuid= in its configuration file, \
                 and start it again"
            .into(),
    }
}

fn both(one: &Listed, other: &Listed) -> String {
    format!("{} and {}", words(&one.id), words(&other.id))
}

fn words(id: &DomainId) -> String {
    format!("{} has number {} and UUID {}", id.name, id.domid, id.uuid)
}

pub(super) fn state(info: &DomainInfo) -> State {
    match info {
        DomainInfo { dying: true, .. } => State::Dying,
        DomainInfo { shutdown_reason: Some(ShutdownReason::Suspend), .. } => State::Suspended,
        DomainInfo { shutdown: true, .. } => State::Shutdown,
        DomainInfo { paused: true, .. } => State::Paused,
        _ => State::Running,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(domid: u32, uuid: u128, name: &str) -> Listed {
        let id = DomainId { domid, uuid: Uuid::from_u128(uuid), name: name.into() };
        Listed { id, state: State::Running }
    }

    fn dying(domid: u32, uuid: u128, name: &str) -> Listed {
        Listed { state: State::Dying, ..listed(domid, uuid, name) }
    }

    fn number(found: Result<Option<Listed>>) -> u32 {
        found.unwrap().expect("one is meant").id.domid
    }

    fn refused(found: Result<Option<Listed>>, words: &[&str]) {
        let error = found.unwrap_err();
        assert_eq!(error.exit_code(), 3);
        let text = error.chain().join(": ");
        for word in words {
            assert!(text.contains(word), "no {word:?} in {text}");
        }
    }

    #[test]
    fn a_domain_is_named_by_what_only_it_has() {
        let domains = [listed(0, 0, "Domain-0"), listed(3, 7, "web1"), listed(4, 8, "web2")];
        let uuid = Uuid::from_u128(8).to_string();
        assert_eq!(number(named(&domains, "3")), 3);
        assert_eq!(number(named(&domains, "web2")), 4);
        assert_eq!(number(named(&domains, &uuid)), 4);
        assert_eq!(number(named(&domains, &uuid.to_uppercase())), 4);
        assert_eq!(named(&domains, "5").unwrap(), None);
        refused(named(&domains, "0"), &["Domain 0"]);
        refused(named(&domains, "Domain-0"), &["Domain 0"]);
    }

    #[test]
    fn a_name_that_is_a_number_is_never_another_domain() {
        let domains = [listed(3, 7, "web1"), listed(4, 8, "3")];
        refused(named(&domains, "3"), &["web1 has number 3", "3 has number 4"]);
        assert_eq!(number(named(&domains, "4")), 4);
        // A name from a configuration file.
        assert_eq!(number(only(&domains, "3", |id| id.name == "3")), 4);
        assert_eq!(only(&domains[..1], "3", |id| id.name == "3").unwrap(), None);
    }

    #[test]
    fn two_domains_of_one_uuid_are_both_refused() {
        let domains = [listed(3, 7, "app-a"), listed(4, 7, "app-b"), listed(5, 8, "web")];
        for text in ["app-a", "app-b", "3", "4"] {
            refused(named(&domains, text), &["app-a has number 3", "app-b has number 4"]);
        }
        refused(with_uuid(&domains, Uuid::from_u128(7)), &["app-a", "app-b"]);
        assert_eq!(number(named(&domains, "web")), 5);
        let domains = [listed(3, 7, "web1"), listed(4, 7, "web1.restoring")];
        let hint = named(&domains, "web1").unwrap_err().hint.unwrap();
        assert!(hint.contains("xl destroy 4. If its xl process is stopped"), "{hint}");
        let held = Listed { state: State::Paused, ..listed(3, 7, "web1") };
        let hint = hint_of_twins(&held, &domains[1]);
        assert!(hint.contains("xl destroy 4; xl unpause 3"), "{hint}");
        let new = Listed { state: State::Paused, ..listed(4, 7, "web1") };
        let hint = hint_of_twins(&new, &listed(3, 7, "web1.replaced"));
        assert!(hint.contains("xl unpause 4; xl destroy 3"), "{hint}");
    }

    #[test]
    fn one_that_is_being_destroyed_counts_only_alone() {
        let domains = [dying(3, 7, "web1"), dying(4, 7, ""), listed(5, 7, "web1")];
        assert_eq!(number(named(&domains, "web1")), 5);
        assert_eq!(number(with_uuid(&domains, Uuid::from_u128(7))), 5);
        assert_eq!(with_name(&domains, "web1").unwrap().id.domid, 5);
        assert_eq!(number(named(&domains[..1], "web1")), 3);
        assert_eq!(number(with_uuid(&domains[..1], Uuid::from_u128(7))), 3);
    }
}
