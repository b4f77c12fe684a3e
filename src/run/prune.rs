//! `prune`, from the command line to the report.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use uuid::Uuid;

use super::delete::{self, Options};
use super::list::{Place, place};
use super::output::{print, print_done};
use super::session::{Execute, open, take_lock};
use crate::cli::PruneArgs;
use crate::disk::chain::FileId;
use crate::error::{Error, Kind, Remaining, Result};
use crate::host::dependents;
use crate::host::dom0::Dom0;
use crate::host::files;
use crate::host::list as host;
use crate::host::lock::LockMode;
use crate::list::{self, CurrentDisk, ListRequest, Listing, Other, Running};
use crate::memory::DELETING;
use crate::plan::Perform;
use crate::prune::{Decision, Rules, decide, interrupted_deletions, matching_domains};
use crate::report::{Pruned, PrunedSnapshot};
use crate::spec;
use crate::tool::quote;

/// What was seen, of all domains.
#[derive(Clone)]
struct DomainSnapshots {
    listing: Listing,
    holders: BTreeMap<Uuid, BTreeSet<String>>,
}

/// Does what the command line asks for.
pub fn prune(args: &PruneArgs, carry_out: Execute) -> Result<()> {
    let rules = Rules {
        last: args.keep_last.unwrap_or_default(),
        hourly: args.keep_hourly.unwrap_or_default(),
        daily: args.keep_daily.unwrap_or_default(),
        weekly: args.keep_weekly.unwrap_or_default(),
        monthly: args.keep_monthly.unwrap_or_default(),
        prefix: args.prefix.clone().unwrap_or_default(),
    };
    // Without a rule, everything would go.
    if rules.keep_nothing() {
        return Err(Error::usage("prune needs at least one rule of what to keep").hint(
            "for example: xl-snapshot prune --keep-last 3 --keep-daily 7 DOMAIN; see --help",
        ));
    }
    let asked = match place(&args.whose)? {
        Place::Domain(name) => name,
        Place::Directory(path) => {
            return Err(Error::usage(format!("{} is a directory", quote(path))).hint(format!(
                "name a domain; {} names another directory of snapshots",
                spec::DIRECTORY_VARIABLE
            )));
        }
    };
    let directory = host::directory()?;
    let dom0 = open(&args.common)?;
    let looked = look(&dom0, &directory)?;
    let (domain, uuid) = one_domain(&looked.listing, &asked, &directory)?;
    if args.common.dry_run {
        return print(&would_be(&looked, (&domain, uuid), &rules), args.common.json);
    }
    // Each deletion takes it again; who has it now is told once, and waited for once.
    drop(take_lock(&dom0, &args.common, (uuid, &domain), "prune", LockMode::Exclusive)?);
    let options = Options { memory_only: false, flatten: false, common: &args.common };
    let (pruned, error) = delete_all(
        (&domain, uuid),
        &rules,
        Host {
            look: &mut || look(&dom0, &directory),
            delete: &mut |image| {
                delete::one(image, options, carry_out)?;
                dom0.reporter.note(&format!("note: deleted {}", quote(image)));
                Ok(())
            },
            stopped: &|| dom0.interrupted(),
        },
    )?;
    print_done(&pruned, args.common.json)?;
    error.map_or(Ok(()), Err)
}

fn look(dom0: &Dom0, directory: &Path) -> Result<DomainSnapshots> {
    let mut unseen = Vec::new();
    let images = host::images(&[directory.to_owned()], &[], &mut unseen).map_err(|error| {
        Error::refused(format!("Reading {}", quote(directory)))
            .because(error)
            .hint("run this as root")
    })?;
    let domains = host::domains(&dom0.toolstack, &mut unseen);
    // A clone that is down needs its bases too: its configuration file says so.
    let known: BTreeSet<String> = domains.iter().map(|domain| domain.name.clone()).collect();
    // One that was renamed has its disks still.
    let ids = |disks: &mut dyn Iterator<Item = &CurrentDisk>| -> Vec<FileId> {
        let paths: Vec<_> = disks.map(|disk| disk.path.as_path()).collect();
        files::identities(&paths).into_iter().flatten().collect()
    };
    let used = ids(&mut domains.iter().flat_map(|domain| &domain.disks));
    let runs = |file: &dependents::Configured| {
        known.contains(&file.name) || ids(&mut file.disks.iter()).iter().any(|id| used.contains(id))
    };
    let configured = dependents::configured(None, &mut unseen).into_iter();
    let down = configured.filter(|file| !runs(file)).map(|file| Running {
        name: file.name,
        uuid: Uuid::nil(),
        domid: None,
        disks: file.disks,
    });
    let all = domains.into_iter().chain(down).collect();
    let mut seen = host::look(images, all, unseen, false);
    let holders = list::holders(&seen);
    seen.domains.retain(|domain| domain.domid.is_some());
    if let Some(unseen) = seen.unseen.first() {
        return Err(Error::refused("It is not known which snapshots are in use")
            .because(format!("not seen: {unseen}"))
            .hint("correct what the cause names, or wait for it (a file of /etc/xen that is no configuration: move it elsewhere)"));
    }
    let listing = list::list(&seen, &ListRequest::default());
    Ok(DomainSnapshots { listing, holders })
}

/// The domain that is meant, with its UUID.
fn one_domain(listing: &Listing, asked: &str, directory: &Path) -> Result<(String, Uuid)> {
    let mut meant = matching_domains(listing, asked).into_iter();
    match (meant.next(), meant.next()) {
        (Some((name, uuid)), None) => Ok((name.to_owned(), uuid)),
        (None, _) => {
            let directory = quote(directory);
            Err(Error::refused(format!("There is no domain {asked}"))
                .because(format!(
                    "no domain of that name runs, and {directory} has no snapshot of one"
                ))
                .hint("xl-snapshot list shows the snapshots there are"))
        }
        (Some((one, _)), Some((other, _))) => {
            Err(Error::refused(format!("{asked} can be the domain {one} and the domain {other}"))
                .hint("give its UUID"))
        }
    }
}

/// What of the host is used to delete, or a test's stand-in.
struct Host<'a> {
    look: &'a mut dyn FnMut() -> Result<DomainSnapshots>,
    delete: &'a mut dyn FnMut(&Path) -> Result<()>,
    /// Whether a signal has come.
    stopped: &'a dyn Fn() -> bool,
}

/// What is to be deleted, and what is kept.
fn split(looked: &DomainSnapshots, of: (&str, Uuid), rules: &Rules) -> [Vec<PrunedSnapshot>; 2] {
    let (name, uuid) = of;
    let mut doomed: Vec<_> = interrupted_deletions(&looked.listing, name, uuid)
        .into_iter()
        .filter_map(half_gone)
        .collect();
    let decisions = decide(&looked.listing, &looked.holders, name, rules);
    let (kept, others): (Vec<_>, Vec<_>) = decisions.iter().partition(|v| !v.why.is_empty());
    doomed.extend(others.into_iter().map(|verdict| {
        let why = vec!["no rule keeps it".to_owned()];
        PrunedSnapshot { why, ..described(verdict) }
    }));
    [doomed, kept.into_iter().map(described).collect()]
}

fn described(verdict: &Decision<'_>) -> PrunedSnapshot {
    let snapshot = verdict.snapshot;
    PrunedSnapshot {
        name: snapshot.name.clone(),
        id: snapshot.id,
        created: snapshot.created,
        image: snapshot.image.clone(),
        size_on_disk: snapshot.size_on_disk,
        why: verdict.why.iter().map(ToString::to_string).collect(),
    }
}

/// One whose deletion was interrupted, as it was called before.
fn half_gone(other: &Other) -> Option<PrunedSnapshot> {
    let path = other.path.to_str().and_then(|path| path.strip_suffix(DELETING))?;
    Some(PrunedSnapshot {
        name: other.name.clone()?,
        id: other.id?,
        created: other.created?,
        image: path.into(),
        size_on_disk: 0,
        why: vec!["its deletion was interrupted".into()],
    })
}

fn would_be(looked: &DomainSnapshots, of: (&str, Uuid), rules: &Rules) -> Pruned {
    let [deleted, kept] = split(looked, of, rules);
    Pruned { domain: of.0.to_owned(), dry_run: true, deleted, kept, failed: Vec::new() }
}

/// Deletes the oldest snapshot that no rule keeps, and looks again: what has changed meanwhile, by others too, counts.
///
/// # Errors
///
/// If nothing was tried. Else the error is returned with what was done.
fn delete_all(of: (&str, Uuid), rules: &Rules, host: Host<'_>) -> Result<(Pruned, Option<Error>)> {
    let Host { look, delete, stopped } = host;
    let domain = of.0;
    let mut pruned = Pruned {
        domain: domain.to_owned(),
        dry_run: false,
        deleted: Vec::new(),
        kept: Vec::new(),
        failed: Vec::new(),
    };
    let mut tried = BTreeSet::new();
    let mut remaining = Vec::new();
    loop {
        let doomed = match look() {
            Ok(looked) => {
                let [doomed, kept] = split(&looked, of, rules);
                pruned.kept = kept;
                doomed
            }
            Err(error) if tried.is_empty() => return Err(error),
            Err(error) => {
                remaining.push(Remaining { what: error.chain().join(": "), command: None });
                break;
            }
        };
        let mut untried = doomed.into_iter().filter(|snapshot| !tried.contains(&snapshot.id));
        let Some(mut snapshot) = untried.next() else { break };
        if stopped() {
            if tried.is_empty() {
                return Err(Error::failed(format!("Pruning {domain} was stopped by a signal"))
                    .hint("nothing was deleted; run it again"));
            }
            let what = format!("Stopped by a signal: {} more were not tried", untried.count() + 1);
            remaining.push(Remaining { what, command: None });
            break;
        }
        tried.insert(snapshot.id);
        match delete(&snapshot.image) {
            Ok(()) => pruned.deleted.push(snapshot),
            Err(error) => {
                snapshot.why = vec![error.chain().join(": ")];
                remaining.extend(still_there(domain, &snapshot, error));
                pruned.failed.push(snapshot);
            }
        }
    }
    if remaining.is_empty() {
        return Ok((pruned, None));
    }
    let words = match pruned.failed.len() {
        0 => format!("Not all of {domain} was pruned"),
        failed => {
            format!("{failed} of {} snapshots of {domain} could not be deleted", tried.len())
        }
    };
    let error = Error::failed(words)
        .unfinished(remaining)
        .hint("remove the cause and run the command again: snapshots that are already deleted stay deleted");
    Ok((pruned, Some(error)))
}

/// What is left of a snapshot that could not be deleted.
fn still_there(domain: &str, snapshot: &PrunedSnapshot, error: Error) -> Vec<Remaining> {
    let how = match error.kind {
        Kind::Unfinished => "is deleted only in part",
        Kind::Failed | Kind::Usage | Kind::Refused => "is still there",
    };
    let hint = error.hint.as_ref().map(|hint| format!(" (hint: {hint})")).unwrap_or_default();
    let also = error.also.iter().map(|other| format!("; {}", other.chain().join(": ")));
    let also: String = also.collect();
    let why = snapshot.why.join(", ");
    let mut remaining = vec![Remaining {
        what: format!("{domain}/{} {how}: {why}{also}{hint}", snapshot.name),
        command: Some(format!("xl-snapshot delete {}", quote(&snapshot.image))),
    }];
    remaining.extend(error.remaining);
    remaining
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;
    use crate::list::OtherKind;
    use crate::prune::tests::{listing, of_times, running};
    use crate::report::error_text;

    const WEB1: (&str, Uuid) = ("web1", Uuid::from_u128(42));

    /// Snapshots s1 to s5 of web1; `delete` has a snapshot go unless it is told otherwise.
    struct Fake {
        there: RefCell<Listing>,
        tried: RefCell<Vec<String>>,
    }

    impl Fake {
        fn new() -> Fake {
            let there = of_times(&["2026-01-01T01:00:00Z"; 5]);
            Fake { there: RefCell::new(there), tried: RefCell::new(Vec::new()) }
        }

        fn looked(&self) -> DomainSnapshots {
            DomainSnapshots { listing: self.there.borrow().clone(), holders: BTreeMap::new() }
        }

        fn prune(
            &self,
            stopped: &dyn Fn() -> bool,
            delete: &mut dyn FnMut(&str) -> Result<()>,
        ) -> Result<(Pruned, Option<Error>)> {
            let rules = Rules { last: 2, ..Rules::default() };
            let host = Host {
                look: &mut || Ok(self.looked()),
                delete: &mut |image| {
                    let name = image.file_stem().unwrap().to_str().unwrap();
                    self.tried.borrow_mut().push(name.to_owned());
                    delete(name)?;
                    let mut there = self.there.borrow_mut();
                    there.snapshots.retain(|other| other.image != image);
                    there
                        .others
                        .retain(|other| other.path != image.with_extension("xlsave.deleting"));
                    Ok(())
                },
                stopped,
            };
            delete_all(WEB1, &rules, host)
        }

        fn there(&self) -> Vec<String> {
            self.there.borrow().snapshots.iter().map(|snapshot| snapshot.name.clone()).collect()
        }
    }

    fn names(snapshots: &[PrunedSnapshot]) -> Vec<&str> {
        snapshots.iter().map(|snapshot| snapshot.name.as_str()).collect()
    }

    #[test]
    fn the_oldest_go_first_and_the_kept_ones_stay() {
        let host = Fake::new();
        let would = would_be(&host.looked(), WEB1, &Rules { last: 2, ..Rules::default() });
        let (pruned, error) = host.prune(&|| false, &mut |_| Ok(())).unwrap();
        assert!(error.is_none());
        assert_eq!(*host.tried.borrow(), ["s1", "s2", "s3"]);
        assert_eq!(
            (names(&pruned.deleted), names(&pruned.kept)),
            (vec!["s1", "s2", "s3"], vec!["s4", "s5"])
        );
        // The dry run has said so.
        assert_eq!(
            (names(&would.deleted), names(&would.kept)),
            (names(&pruned.deleted), names(&pruned.kept))
        );
        assert!(would.dry_run && !pruned.dry_run);
        // And nothing is left to do.
        assert_eq!(host.prune(&|| false, &mut |_| Ok(())).unwrap().0.deleted.len(), 0);
    }

    #[test]
    fn one_failure_does_not_stop_the_others() {
        let host = Fake::new();
        let (pruned, error) = host
            .prune(&|| false, &mut |name| match name {
                "s1" => Err(Error::refused("It is the base of two images").hint("delete those")),
                "s2" => {
                    let remaining =
                        Remaining { what: "A file".into(), command: Some("rm /a".into()) };
                    Err(Error::failed("Merging").because("no space").unfinished(vec![remaining]))
                }
                _ => Ok(()),
            })
            .unwrap();
        let error = error.unwrap();
        assert_eq!((names(&pruned.deleted), names(&pruned.failed)), (vec!["s3"], vec!["s1", "s2"]));
        assert_eq!(pruned.failed[1].why, ["Merging: no space"]);
        assert_eq!(*host.tried.borrow(), ["s1", "s2", "s3"]);
        assert_eq!(host.there(), ["s1", "s2", "s4", "s5"]);
        assert_eq!(error.exit_code(), 4);
        let text = error_text(&error);
        let lines: Vec<_> = text.lines().collect();
        let expected = [
            "xl-snapshot: 2 of 3 snapshots of web1 could not be deleted",
            "left:  web1/s1 is still there: It is the base of two images (hint: delete those)",
            "       xl-snapshot delete /kept/web1/s1.xlsave",
            "left:  web1/s2 is deleted only in part: Merging: no space",
            "       xl-snapshot delete /kept/web1/s2.xlsave",
            "left:  A file",
            "       rm /a",
        ];
        assert_eq!(lines[..7], expected);
    }

    #[test]
    fn a_signal_begins_no_other_deletion() {
        let host = Fake::new();
        let error = host.prune(&|| true, &mut |_| Ok(())).unwrap_err();
        assert_eq!((error.exit_code(), host.there().len()), (1, 5));
        let came = Cell::new(false);
        let mut delete = |_: &str| {
            came.set(true);
            Ok(())
        };
        let error = host.prune(&|| came.get(), &mut delete).unwrap().1.unwrap();
        assert_eq!((error.exit_code(), host.there().len()), (4, 4));
        assert!(error_text(&error).contains("left:  Stopped by a signal: 2 more were not tried"));
    }

    #[test]
    fn a_deletion_that_was_cut_short_is_finished() {
        let host = Fake::new();
        let half = |name: &str, domain: &str, uuid| Other {
            kind: OtherKind::Deleting,
            domain: Some(domain.into()),
            uuid: Uuid::from_u128(uuid),
            path: format!("/kept/{domain}/{name}.xlsave.deleting").into(),
            name: Some(name.into()),
            id: Some(Uuid::from_u128(100 + uuid)),
            created: Some("2025-01-01T01:00:00Z".parse().unwrap()),
            why: String::new(),
        };
        // The newest, of the domain when it had another name, and of another domain.
        host.there.borrow_mut().others =
            vec![half("s9", "web1", 1), half("s8", "old", 42), half("s7", "web2", 2)];
        let (pruned, error) = host.prune(&|| false, &mut |_| Ok(())).unwrap();
        assert!(error.is_none());
        assert_eq!(names(&pruned.deleted), ["s9", "s8", "s1", "s2", "s3"]);
        assert_eq!(pruned.deleted[0].why, ["its deletion was interrupted"]);
        assert_eq!(pruned.deleted[0].image, Path::new("/kept/web1/s9.xlsave"));
        // All that is left of a domain.
        let mut only = listing(Vec::new());
        only.others = vec![half("s7", "web2", 2)];
        assert_eq!(one_domain(&only, "web2", Path::new("/kept")).unwrap().0, "web2");
    }

    /// Somebody has reverted to s2, and taken s6.
    #[test]
    fn what_others_do_meanwhile_counts() {
        let host = Fake::new();
        let mut delete = |name: &str| {
            if name == "s1" {
                let mut there = host.there.borrow_mut();
                let mut six = of_times(&["2026-01-01T02:00:00Z"; 6]).snapshots;
                there.snapshots.extend(six.pop());
                let s2 = there.snapshots[1].id;
                there.domains.push(running(Some(s2.as_u128())));
            }
            Ok(())
        };
        let (pruned, _) = host.prune(&|| false, &mut delete).unwrap();
        assert_eq!(names(&pruned.deleted), ["s1", "s3", "s4"]);
        assert_eq!(names(&pruned.kept), ["s2", "s5", "s6"]);
    }

    #[test]
    fn a_look_that_fails_changes_nothing_or_is_told() {
        let mut looks = 0;
        let host = Fake::new();
        let mut prune = |most: usize| {
            looks = 0;
            let rules = Rules { last: 2, ..Rules::default() };
            let host = Host {
                look: &mut || {
                    looks += 1;
                    if looks > most { Err(Error::refused("No Xen")) } else { Ok(host.looked()) }
                },
                delete: &mut |_| Ok(()),
                stopped: &|| false,
            };
            delete_all(WEB1, &rules, host)
        };
        assert_eq!(prune(0).unwrap_err().exit_code(), 3);
        let error = prune(1).unwrap().1.unwrap();
        assert_eq!(error.exit_code(), 4);
        assert!(error_text(&error).contains("left:  No Xen"), "{}", error_text(&error));
    }

    #[test]
    fn a_domain_that_is_not_known_or_not_clear_is_refused() {
        let mut two = of_times(&["2026-01-01T01:00:00Z"; 2]);
        let kept = Path::new("/kept");
        assert_eq!(one_domain(&two, "web1", kept).unwrap().0, "web1");
        let error = one_domain(&two, "web2", kept).unwrap_err();
        assert!(error_text(&error).contains("/kept has no snapshot"), "{}", error_text(&error));
        two.snapshots[1].group = "web2".into();
        let uuid = Uuid::from_u128(42).to_string();
        let error = one_domain(&two, &uuid, kept).unwrap_err();
        assert!(error.message.contains("the domain web1 and the domain web2"), "{error}");
        assert_eq!(one_domain(&listing(Vec::new()), "web1", kept).unwrap_err().exit_code(), 3);
    }
}
