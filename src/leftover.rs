//! What a `create` that was cut short has left: by a power cut, or if its guard was killed with it. Its
//! unfinished memory image has the record, which names everything else. Pure.

use std::fmt;
use std::path::PathBuf;

use crate::disk::lvm::volumes::{self, Volume};
use crate::plan::{Plan, Step};
use crate::record::Record;
use crate::tool::quote;

/// What one `create` has left.
#[derive(Debug, Clone, PartialEq)]
pub struct Leftover {
    /// The unfinished memory image.
    pub image: PathBuf,
    /// The record in it.
    pub record: Record,
    /// The new files that it made and that are there still.
    pub files: Vec<NewFile>,
    /// The snapshots of volumes that bear its tags, with the tag.
    pub volumes: Vec<(Volume, String)>,
}

/// A file that was made for the guest to go on with, or to keep its disk's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewFile {
    /// The file.
    pub path: PathBuf,
    /// Why it must not be removed, if it must not.
    pub needed: Option<String>,
}

impl Leftover {
    /// The steps that remove what nobody needs.
    fn steps(&self) -> Vec<Step> {
        let unused = self.files.iter().filter(|file| file.needed.is_none());
        let files = unused.map(|file| Step::RemoveFile { path: file.path.clone() });
        let volumes = self.volumes.iter().map(|(volume, tag)| {
            Step::Run(volumes::remove_tagged(&volume.group, &volume.name, tag))
        });
        // The image last: it knows of the others.
        let image = Step::RemoveFile { path: self.image.clone() };
        files.chain(volumes).chain([image]).collect()
    }
}

/// As a note to the user.
impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Record { name, created, .. } = &self.record;
        write!(f, "snapshot {name}, begun {created:.0}, was cut short and left")?;
        for file in self.files.iter().filter(|file| file.needed.is_none()) {
            write!(f, " {},", quote(&file.path))?;
        }
        for (volume, _) in &self.volumes {
            write!(f, " {},", volume.path())?;
        }
        write!(f, " {}", quote(&self.image))?;
        for NewFile { path, needed } in &self.files {
            if let Some(why) = needed {
                write!(f, "; not removed is {}: {why}", quote(path))?;
            }
        }
        Ok(())
    }
}

/// A plan that removes what nobody needs.
pub fn clean_up(domain: &str, leftovers: &[Leftover]) -> Plan {
    Plan {
        title: format!("Removal of what earlier snapshots of {domain} left"),
        finish: leftovers.iter().flat_map(Leftover::steps).collect(),
        ..Plan::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::sample;

    #[test]
    fn only_what_nobody_needs_is_removed_and_the_image_last() {
        let file = |path: &str, needed: Option<&str>| NewFile {
            path: path.into(),
            needed: needed.map(Into::into),
        };
        let leftover = Leftover {
            image: "/x/s1.xlsave.partial".into(),
            record: sample(),
            files: vec![
                file("/srv/a b.qcow2", None),
                file("/srv/c.qcow2", Some("domain h uses it")),
            ],
            volumes: Vec::new(),
        };
        let text = leftover.to_string();
        assert!(text.contains("left '/srv/a b.qcow2', /x/s1.xlsave.partial"), "{text}");
        assert!(text.ends_with("not removed is /srv/c.qcow2: domain h uses it"), "{text}");
        let plan = clean_up("web1", &[leftover]);
        let commands: Vec<_> = plan.finish.iter().filter_map(Step::by_hand).collect();
        assert_eq!(commands, ["rm '/srv/a b.qcow2'", "rm /x/s1.xlsave.partial"]);
        assert!(plan.prepare.is_empty() && plan.commit.is_none());
    }
}
