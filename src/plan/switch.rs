//! The steps that replace the running domain by one that was restored next to it.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::domain::{DomainId, Format};
use crate::tool::quote;
use crate::tool::volumes::rename as rename_volume;

/// A domain that is restored while the one that it will replace still runs. It has the same UUID from the
/// beginning: libxl can rename a domain, but nothing can change its UUID.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heir {
    /// Its name until it replaces the other one.
    pub temporary: String,
    /// The domain that it replaces, whose name it takes over.
    pub old: DomainId,
    /// The suffix of the old domain's name after the switch.
    pub suffix: String,
    /// The UUID in the old domain's `/vm` path in xenstore after the switch.
    pub vm: Uuid,
    /// The keys and values of the old domain in `/vm/UUID`. libxl removes and fills them whenever it creates
    /// or destroys a domain with that UUID.
    pub keys: Vec<(String, String)>,
}

impl Heir {
    /// The old domain after the switch.
    pub fn aside(&self) -> DomainId {
        let DomainId { domid, uuid, name } = &self.old;
        DomainId { domid: *domid, uuid: *uuid, name: format!("{name}{}", self.suffix) }
    }
}

/// The image of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    pub vdev: String,
    pub path: PathBuf,
    pub format: Format,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Switch {
    /// Restores the new domain, paused, under its temporary name.
    Restore {
        heir: Heir,
        /// libxl's JSON, with the temporary name and the new disks.
        config: String,
    },
    /// Checks that a restored domain exists, complete and paused.
    Check {
        /// Its UUID, which another domain may also have.
        uuid: Uuid,
        domain: String,
    },
    /// Destroys it, if it exists and has never run, and restores the old domain's keys in xenstore.
    Discard { heir: Heir },
    /// Removes the old domain's name and its `/vm` in xenstore.
    Leave { heir: Heir },
    /// Restores its name, if it was removed.
    Return { heir: Heir },
    /// Gives the new domain the final name.
    TakeName { heir: Heir },
    /// Restores its temporary name, if it was changed.
    DropName { heir: Heir },
    /// Lets the new domain run.
    Run { heir: Heir },
    /// Destroys the old domain.
    Destroy { heir: Heir },
    /// Renames a logical volume that a domain may have open, unless it is already renamed.
    RenameVolume { group: String, from: String, to: String },
    /// Writes the new domain's name and its renamed images into libxl's stored configuration, and the
    /// images into xenstore.
    Settle { heir: Heir, images: Vec<Image> },
}

impl Switch {
    pub(super) fn undo(&self) -> Option<Switch> {
        match self {
            Switch::Restore { heir, .. } => Some(Switch::Discard { heir: heir.clone() }),
            Switch::Leave { heir } => Some(Switch::Return { heir: heir.clone() }),
            Switch::TakeName { heir } => Some(Switch::DropName { heir: heir.clone() }),
            _ => None,
        }
    }

    /// The command that does it by hand, if there is one.
    pub(super) fn by_hand(&self) -> Option<String> {
        let rename = |which: &str, to: &str| format!("xl rename {which} {}", quote(to));
        Some(match self {
            Switch::Discard { heir } => format!("xl destroy {}", quote(&heir.temporary)),
            Switch::Leave { heir } => rename(&heir.old.domid.to_string(), &heir.aside().name),
            Switch::Return { heir } => rename(&heir.old.domid.to_string(), &heir.old.name),
            Switch::TakeName { heir } => rename(&quote(&heir.temporary), &heir.old.name),
            Switch::DropName { heir } => rename(&quote(&heir.old.name), &heir.temporary),
            Switch::Run { heir } => format!("xl unpause {}", quote(&heir.old.name)),
            Switch::Destroy { heir } => format!("xl destroy {}", heir.old.domid),
            Switch::RenameVolume { group, from, to } => rename_volume(group, from, to).to_string(),
            Switch::Restore { .. } | Switch::Check { .. } | Switch::Settle { .. } => return None,
        })
    }

    /// What the user must know to do it, if no command does it.
    pub(super) fn in_words(&self) -> Option<String> {
        let Switch::Settle { heir, images } = self else { return None };
        let list: Vec<_> =
            images.iter().map(|i| format!("{} is {}", i.vdev, quote(&i.path))).collect();
        let name = &heir.old.name;
        (!list.is_empty()).then(|| {
            format!(
                "a reboot of {name} would not find its disks: before one, shut it down and start it by xl \
                 create from a configuration file in which {}",
                list.join(", ")
            )
        })
    }
}

impl fmt::Display for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Switch::Restore { heir: Heir { temporary, old, .. }, .. } => {
                write!(
                    f,
                    "restore {} with xl as {temporary}, paused, beside domain {}",
                    old.name, old.domid
                )
            }
            Switch::Check { domain, .. } => {
                write!(f, "make sure that {domain} is there, whole and paused")
            }
            Switch::Discard { heir } => {
                write!(f, "destroy {} if it is there, paused", heir.temporary)
            }
            Switch::Leave { heir } => {
                write!(f, "rename domain {} to {}", heir.old.domid, heir.aside().name)
            }
            Switch::Return { heir } => {
                write!(f, "rename domain {} back to {}", heir.old.domid, heir.old.name)
            }
            Switch::TakeName { heir } => {
                write!(f, "rename {} to {}", heir.temporary, heir.old.name)
            }
            Switch::DropName { heir } => {
                write!(f, "rename {} back to {}", heir.old.name, heir.temporary)
            }
            Switch::Run { heir } => write!(f, "unpause the new {}", heir.old.name),
            Switch::Destroy { heir } => {
                write!(f, "destroy domain {}, which was replaced", heir.old.domid)
            }
            Switch::RenameVolume { group, from, to } => {
                write!(f, "rename the volume {group}/{from} to {to}")
            }
            Switch::Settle { heir, images } => {
                write!(f, "store libxl's configuration: name {}", heir.old.name)?;
                images
                    .iter()
                    .try_for_each(|image| write!(f, ", {} -> {}", image.vdev, quote(&image.path)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heir() -> Heir {
        Heir {
            temporary: "web 1.restoring".into(),
            old: DomainId { domid: 3, uuid: Uuid::from_u128(1), name: "web 1".into() },
            suffix: ".replaced".into(),
            vm: Uuid::from_u128(2),
            keys: Vec::new(),
        }
    }

    #[test]
    fn commands_can_be_pasted() {
        let by_hand = |switch: fn(Heir) -> Switch| switch(heir()).by_hand().unwrap();
        for (command, switch) in [
            (
                "xl destroy 'web 1.restoring'",
                (|heir| Switch::Discard { heir }) as fn(Heir) -> Switch,
            ),
            ("xl rename 3 'web 1.replaced'", |heir| Switch::Leave { heir }),
            ("xl rename 3 'web 1'", |heir| Switch::Return { heir }),
            ("xl rename 'web 1.restoring' 'web 1'", |heir| Switch::TakeName { heir }),
            ("xl rename 'web 1' 'web 1.restoring'", |heir| Switch::DropName { heir }),
            ("xl unpause 'web 1'", |heir| Switch::Run { heir }),
            ("xl destroy 3", |heir| Switch::Destroy { heir }),
        ] {
            assert_eq!(by_hand(switch), command);
        }
    }

    #[test]
    fn a_configuration_that_names_no_disk_wrongly_needs_no_words() {
        let settle = |images| Switch::Settle { heir: heir(), images };
        assert_eq!(settle(Vec::new()).in_words(), None);
        let path = "/dev/vg0/thin".into();
        let image = Image { vdev: "xvdb".into(), path, format: Format::Raw };
        let words = settle(vec![image]).in_words().unwrap();
        assert!(words.contains("in which xvdb is /dev/vg0/thin"), "{words}");
    }
}
