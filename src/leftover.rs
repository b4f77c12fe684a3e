//! What a `create` that was cut short has left: by a power cut, or if its guard was killed with it. Its
//! unfinished memory image has the record, which names everything else. Pure.

use std::fmt;
use std::path::PathBuf;

use crate::plan::{Plan, Step};
use crate::record::Record;
use crate::tool::quote;
use crate::tool::volumes::{self, Volume};

/// What a file is that has the name of an unfinished image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftoverKind {
    /// An unfinished image.
    Unfinished,
    /// A complete image that did not get its name.
    Complete,
    /// A complete image that has its name as well.
    SecondName,
}

/// What one `create` has left.
#[derive(Debug, Clone, PartialEq)]
pub struct Leftover {
    /// The memory image, under the name of an unfinished one.
    pub image: PathBuf,
    /// The record in it.
    pub record: Record,
    /// What it is.
    pub what: LeftoverKind,
    /// The new files that it made and that are there still.
    pub files: Vec<NewFile>,
    /// The snapshots of volumes that bear its tags, with the tag.
    pub volumes: Vec<(Volume, String)>,
    /// Why not all of it is known, if so.
    pub unsure: Option<String>,
}

/// A file that was made for the guest to go on with, or to keep its disk's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewFile {
    /// The file.
    pub path: PathBuf,
    /// Why it must not be removed, if it must not.
    pub needed: Option<String>,
    /// The image that the guest goes on from in it: the snapshot was taken, and only its record is not complete.
    pub goes_on_from: Option<PathBuf>,
}

impl Leftover {
    /// Whether a guest goes on in a file of it. Its record is all that tells of that, and stays until somebody has
    /// decided.
    pub fn is_kept(&self) -> bool {
        self.files.iter().any(|file| file.goes_on_from.is_some())
    }

    /// The steps that remove what nobody needs.
    fn steps(&self) -> Vec<Step> {
        // The image alone tells of the rest.
        if self.what == LeftoverKind::Complete || self.unsure.is_some() {
            return Vec::new();
        }
        let unused = self.files.iter().filter(|file| file.needed.is_none());
        let files = unused.map(|file| Step::RemoveFile { path: file.path.clone() });
        let volumes =
            self.volumes.iter().filter(|(volume, _)| !volume.open).map(|(volume, tag)| {
                Step::Run(volumes::remove_tagged(&volume.group, &volume.name, tag))
            });
        // The image last: it knows of the others.
        let image = (!self.is_kept()).then(|| Step::RemoveFile { path: self.image.clone() });
        files.chain(volumes).chain(image).collect()
    }
}

/// As a note to the user.
impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Record { name, created, .. } = &self.record;
        let image = quote(&self.image);
        match self.what {
            LeftoverKind::Unfinished => {}
            LeftoverKind::SecondName => {
                return write!(f, "snapshot {name} of {created:.0} has the name {image} as well");
            }
            LeftoverKind::Complete => {
                let named = self.image.with_extension("");
                return write!(
                    f,
                    "snapshot {name} of {created:.0} is complete and only lacks its name: mv -n \
                     {image} {}",
                    quote(named)
                );
            }
        }
        write!(f, "snapshot {name}, begun {created:.0}, was interrupted and left")?;
        for file in self.files.iter().filter(|file| file.needed.is_none()) {
            write!(f, " {},", quote(&file.path))?;
        }
        for (volume, _) in self.volumes.iter().filter(|(volume, _)| !volume.open) {
            write!(f, " {},", volume.path())?;
        }
        write!(f, " {image}")?;
        for NewFile { path, needed, goes_on_from } in &self.files {
            if let (Some(why), Some(base)) = (needed, goes_on_from) {
                let (path, base) = (quote(path), quote(base));
                write!(
                    f,
                    "; not removed is {path}: {why}: the guest continues in it, on {base}, and {image}, which records \
                     that, is kept. To leave the disk so, remove that file: rm {image}. To merge it, shut \
                     the domain down: chmod u+w {base}; qemu-img commit {path}; name {base} in its \
                     configuration; rm {path} {image}"
                )?;
            } else if let Some(why) = needed {
                write!(f, "; not removed is {}: {why}", quote(path))?;
            }
        }
        for (volume, _) in self.volumes.iter().filter(|(volume, _)| volume.open) {
            write!(f, "; not removed is {}: a program has it open", volume.path())?;
        }
        if let Some(why) = &self.unsure {
            write!(f, "; nothing of it is removed: {why}")?;
        }
        Ok(())
    }
}

/// A plan that removes what nobody needs.
pub fn clean_up(domain: &str, leftovers: &[Leftover]) -> Plan {
    Plan {
        title: format!("Removal of the leftovers of earlier snapshots of {domain}"),
        finish: leftovers.iter().flat_map(Leftover::steps).collect(),
        ..Plan::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::record::sample;

    #[test]
    fn only_what_nobody_needs_is_removed_and_the_image_last() {
        let file = |path: &str, needed: Option<&str>| NewFile {
            path: path.into(),
            needed: needed.map(Into::into),
            goes_on_from: None,
        };
        let leftover = Leftover {
            image: "/x/s1.xlsave.partial".into(),
            record: sample(),
            what: LeftoverKind::Unfinished,
            unsure: None,
            files: vec![
                file("/srv/a b.qcow2", None),
                file("/srv/c.qcow2", Some("domain h uses it")),
            ],
            volumes: Vec::new(),
        };
        let text = leftover.to_string();
        assert!(text.contains("left '/srv/a b.qcow2', /x/s1.xlsave.partial"), "{text}");
        assert!(text.ends_with("not removed is /srv/c.qcow2: domain h uses it"), "{text}");
        let plan = clean_up("web1", std::slice::from_ref(&leftover));
        let commands: Vec<_> = plan.finish.iter().filter_map(Step::by_hand).collect();
        assert_eq!(commands, ["rm '/srv/a b.qcow2'", "rm /x/s1.xlsave.partial"]);
        assert!(plan.prepare.is_empty() && plan.commit.is_none());
        // What tells of the rest stays while the rest is not known.
        let unsure = Leftover { unsure: Some("lvs fails".into()), ..leftover };
        assert!(unsure.to_string().ends_with("nothing of it is removed: lvs fails"));
        assert!(clean_up("web1", &[unsure]).finish.is_empty());
    }

    #[test]
    fn a_record_stays_while_a_guest_goes_on_in_an_overlay() {
        let file = NewFile {
            path: "/srv/o.qcow2".into(),
            needed: Some("disk xvda of domain web1 uses it".into()),
            goes_on_from: Some("/srv/a.qcow2".into()),
        };
        let leftover = Leftover {
            image: "/x/s1.record.partial".into(),
            record: sample(),
            what: LeftoverKind::Unfinished,
            unsure: None,
            files: vec![file],
            volumes: Vec::new(),
        };
        assert!(leftover.is_kept());
        assert!(clean_up("web1", std::slice::from_ref(&leftover)).finish.is_empty());
        let text = leftover.to_string();
        assert!(text.contains("not removed is /srv/o.qcow2: disk xvda of domain web1"), "{text}");
        for command in ["rm /x/s1.record.partial.", "qemu-img commit /srv/o.qcow2;"] {
            assert!(text.contains(command), "{text}");
        }
    }

    #[test]
    fn a_complete_image_is_named_and_not_removed() {
        let of = |what| Leftover {
            image: "/x/s1.xlsave.partial".into(),
            record: sample(),
            what,
            files: Vec::new(),
            volumes: Vec::new(),
            unsure: None,
        };
        let complete = of(LeftoverKind::Complete);
        let text = complete.to_string();
        assert!(text.ends_with("mv -n /x/s1.xlsave.partial /x/s1.xlsave"), "{text}");
        assert!(complete.steps().is_empty());
        // Of one with two names, the file stays.
        let second = of(LeftoverKind::SecondName).steps();
        assert_eq!(second, [Step::RemoveFile { path: "/x/s1.xlsave.partial".into() }]);
    }
}
