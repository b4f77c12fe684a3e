//! Which snapshot descends from which, and which one a domain continues from. Pure.
//!
//! Each disk contributes. Bases show the descent: the frozen backing file of an overlay, the parent of a VHD,
//! the origin of a thin volume. Internal snapshots of a qcow2 file, reflink copies and thick volumes do not
//! show it: for those we use the mark on the disk's file, as it was when the snapshot was taken (`parent` in
//! its record), or else the order of dates, and say so.

use uuid::Uuid;

use super::claims::{Claim, PRESENT, Query};
use super::index::Index;
use super::inventory::{CurrentDisk, Inventory, Running};
use super::report::{Current, DescentSource, DivergedDisk};
use crate::names::same_vdev;
use crate::record::{Parent, ParentSource};

/// The descent according to all disks.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Parents {
    Of(usize, ParentSource),
    None,
    /// They disagree.
    Differ(Vec<(String, Option<usize>)>),
    Unknown,
}

impl Index<'_> {
    /// The parent of a snapshot, and the source.
    pub(super) fn parent(&self, number: usize) -> (Option<Uuid>, DescentSource) {
        let record = self.known[number].record;
        let query = Query { before: record.created, me: Some(number) };
        let claims: Vec<_> = record
            .disks
            .iter()
            .filter(|disk| !disk.snapshot.is_left_out())
            .map(|disk| (disk.vdev.as_str(), self.claim_of(number, disk, query)))
            .collect();
        let verdict = self.verdict(&claims);
        let noted = record.parent.map(|parent| match parent {
            Parent::None => None,
            Parent::Snapshot(id) => Some(id),
        });
        let noted_by = match record.parent_by {
            Some(ParentSource::Mark) => DescentSource::Mark,
            Some(ParentSource::Disks) | None => DescentSource::Record,
        };
        let id = |number: usize| Some(self.known[number].record.id);
        match (verdict, noted) {
            (Parents::Of(shown, by), noted) => {
                // A younger one that does not contain the disks that show the other.
                let younger = noted.flatten().and_then(|id| self.number(id)).filter(|noted| {
                    *noted != shown
                        && self.known[*noted].record.created < record.created
                        && claims.iter().all(|(vdev, claim)| {
                            matches!(claim, Claim::Silent) || self.leaves_out(*noted, vdev)
                        })
                });
                match younger {
                    Some(noted) => (id(noted), noted_by),
                    None => (id(shown), told(by)),
                }
            }
            (Parents::Differ(_), _) => (None, DescentSource::Differ),
            (Parents::None | Parents::Unknown, Some(Some(noted))) => match self.number(noted) {
                Some(at) if self.known[at].record.created >= record.created => {
                    (None, DescentSource::Unknown)
                }
                Some(_) => (Some(noted), noted_by),
                None => (Some(noted), DescentSource::Gone),
            },
            (Parents::None, _) | (Parents::Unknown, Some(None)) => (None, DescentSource::None),
            (Parents::Unknown, None) => match self.latest_of(self.domain_name(record), query) {
                Some(number) => (id(number), DescentSource::Dates),
                None => (None, DescentSource::None),
            },
        }
    }

    /// The snapshot that a domain continues from.
    pub(super) fn current(&self, domain: &Running) -> Current {
        let known = |number: usize| self.known[number].record;
        let verdict = self.verdict_now(&domain.disks);
        let mut current = Current {
            name: domain.name.clone(),
            uuid: domain.uuid,
            domid: domain.domid,
            id: None,
            told: DescentSource::None,
            clone_of: None,
            mixed: Vec::new(),
        };
        match verdict {
            Parents::Of(number, by) => {
                current.told = told(by);
                match self.domain_name(known(number)) == domain.name {
                    true => current.id = Some(known(number).id),
                    false => current.clone_of = Some(known(number).id),
                }
            }
            Parents::None => {}
            Parents::Differ(disks) => {
                current.told = DescentSource::Differ;
                current.mixed = disks
                    .into_iter()
                    .map(|(vdev, number)| DivergedDisk {
                        vdev,
                        id: number.map(|number| known(number).id),
                    })
                    .collect();
            }
            Parents::Unknown => {
                if let Some(number) = self.latest_of(&domain.name, PRESENT) {
                    current.id = Some(known(number).id);
                    current.told = DescentSource::Dates;
                }
            }
        }
        current
    }

    fn verdict_now(&self, disks: &[CurrentDisk]) -> Parents {
        let claims: Vec<_> = disks
            .iter()
            .map(|disk| (disk.vdev.as_str(), self.claim(&disk.path, disk.kind, PRESENT)))
            .collect();
        self.verdict(&claims)
    }

    /// The youngest snapshot of a domain.
    fn latest_of(&self, whose: &str, query: Query) -> Option<usize> {
        let all: Vec<_> = (0..self.known.len())
            .filter(|at| self.domain_name(self.known[*at].record) == whose)
            .collect();
        self.latest(&all, query)
    }

    /// Combines the claims of all disks. If a snapshot does not contain a disk, that disk does not
    /// contradict it.
    fn verdict(&self, claims: &[(&str, Claim)]) -> Parents {
        let mut parents: Vec<(usize, ParentSource)> = Vec::new();
        for (_, claim) in claims {
            if let Claim::Of(number, by) = claim {
                match parents.iter_mut().find(|(other, _)| other == number) {
                    // A base is stronger evidence.
                    Some(known) if *by == ParentSource::Disks => known.1 = *by,
                    Some(_) => {}
                    None => parents.push((*number, *by)),
                }
            }
        }
        let agrees = |(vdev, claim): &(&str, Claim), number: usize| match claim {
            Claim::Silent => true,
            Claim::Of(other, _) if *other == number => true,
            Claim::Of(..) | Claim::None => self.leaves_out(number, vdev),
        };
        let all_agree = |(number, _): &&(usize, ParentSource)| {
            claims.iter().all(|claim| agrees(claim, *number))
        };
        if let Some((number, by)) = parents.iter().find(all_agree) {
            return Parents::Of(*number, *by);
        }
        if !parents.is_empty() {
            let disks = claims.iter().filter_map(|(vdev, claim)| match claim {
                Claim::Of(number, _) => Some(((*vdev).to_owned(), Some(*number))),
                Claim::None => Some(((*vdev).to_owned(), None)),
                Claim::Silent => None,
            });
            return Parents::Differ(disks.collect());
        }
        match claims.iter().all(|(_, claim)| *claim == Claim::None) && !claims.is_empty() {
            true => Parents::None,
            false => Parents::Unknown,
        }
    }

    fn leaves_out(&self, number: usize, vdev: &str) -> bool {
        let disk = self.known[number].record.disks.iter().find(|disk| same_vdev(&disk.vdev, vdev));
        disk.is_none_or(|disk| disk.snapshot.is_left_out())
    }
}

fn told(by: ParentSource) -> DescentSource {
    match by {
        ParentSource::Disks => DescentSource::Disks,
        ParentSource::Mark => DescentSource::Mark,
    }
}

/// The snapshot that the disks of the only domain in `seen` descend from, for the record of the next one.
/// `None` if it is unknown: dates alone are not recorded.
pub fn parent_of_now(seen: &Inventory) -> Option<(Parent, ParentSource)> {
    let index = Index::new(seen);
    let domain = seen.domains.first()?;
    match index.verdict_now(&domain.disks) {
        Parents::Of(number, by) => Some((Parent::Snapshot(index.known[number].record.id), by)),
        // A base may belong to a snapshot that is elsewhere.
        Parents::None if domain.disks.iter().all(|disk| index.stands_alone(disk)) => {
            Some((Parent::None, ParentSource::Disks))
        }
        Parents::None | Parents::Differ(_) | Parents::Unknown => None,
    }
}
