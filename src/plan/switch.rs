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
pub struct Replacement {
    /// Its name until it replaces the other one.
    pub temporary: String,
    /// The domain that it replaces, whose name it takes over.
    pub old: DomainId,
    /// The suffix of the old domain's name after the switch.
    pub old_suffix: String,
    /// The UUID in the old domain's `/vm` path in xenstore after the switch.
    pub vm: Uuid,
    /// The keys and values of the old domain in `/vm/UUID`. libxl removes and fills them whenever it creates
    /// or destroys a domain with that UUID.
    pub keys: Vec<(String, String)>,
}

impl Replacement {
    /// The old domain after the switch.
    pub fn old_after_switch(&self) -> DomainId {
        let DomainId { domid, uuid, name } = &self.old;
        DomainId { domid: *domid, uuid: *uuid, name: format!("{name}{}", self.old_suffix) }
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
        replacement: Replacement,
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
    Discard { replacement: Replacement },
    /// Removes the old domain's name and its `/vm` in xenstore.
    RenameOld { replacement: Replacement },
    /// Restores its name, if it was removed.
    UndoRenameOld { replacement: Replacement },
    /// Gives the new domain the final name.
    RenameNew { replacement: Replacement },
    /// Restores its temporary name, if it was changed.
    UndoRenameNew { replacement: Replacement },
    /// Lets the new domain run.
    Run { replacement: Replacement },
    /// Destroys the old domain.
    Destroy { replacement: Replacement },
    /// Renames a logical volume that a domain may have open, unless it is already renamed.
    RenameVolume { group: String, from: String, to: String },
    /// Writes the new domain's name and its renamed images into libxl's stored configuration, and the
    /// images into xenstore.
    UpdateConfig { replacement: Replacement, images: Vec<Image> },
}

impl Switch {
    pub(super) fn undo(&self) -> Option<Switch> {
        match self {
            Switch::Restore { replacement, .. } => {
                Some(Switch::Discard { replacement: replacement.clone() })
            }
            Switch::RenameOld { replacement } => {
                Some(Switch::UndoRenameOld { replacement: replacement.clone() })
            }
            Switch::RenameNew { replacement } => {
                Some(Switch::UndoRenameNew { replacement: replacement.clone() })
            }
            _ => None,
        }
    }

    /// The command that does it by hand, if there is one.
    pub(super) fn by_hand(&self) -> Option<String> {
        let rename = |which: &str, to: &str| format!("xl rename {which} {}", quote(to));
        Some(match self {
            Switch::Discard { replacement } => {
                format!("xl destroy {}", quote(&replacement.temporary))
            }
            Switch::RenameOld { replacement } => {
                rename(&replacement.old.domid.to_string(), &replacement.old_after_switch().name)
            }
            Switch::UndoRenameOld { replacement } => {
                rename(&replacement.old.domid.to_string(), &replacement.old.name)
            }
            Switch::RenameNew { replacement } => {
                rename(&quote(&replacement.temporary), &replacement.old.name)
            }
            Switch::UndoRenameNew { replacement } => {
                rename(&quote(&replacement.old.name), &replacement.temporary)
            }
            Switch::Run { replacement } => format!("xl unpause {}", quote(&replacement.old.name)),
            Switch::Destroy { replacement } => format!("xl destroy {}", replacement.old.domid),
            Switch::RenameVolume { group, from, to } => rename_volume(group, from, to).to_string(),
            Switch::Restore { .. } | Switch::Check { .. } | Switch::UpdateConfig { .. } => {
                return None;
            }
        })
    }

    /// What the user must know to do it, if no command does it.
    pub(super) fn in_words(&self) -> Option<String> {
        let Switch::UpdateConfig { replacement, images } = self else { return None };
        let list: Vec<_> =
            images.iter().map(|i| format!("{} is {}", i.vdev, quote(&i.path))).collect();
        let name = &replacement.old.name;
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
            Switch::Restore { replacement: Replacement { temporary, old, .. }, .. } => {
                write!(
                    f,
                    "restore {} with xl as {temporary}, paused, while domain {} still runs",
                    old.name, old.domid
                )
            }
            Switch::Check { domain, .. } => {
                write!(f, "check that {domain} is complete and paused")
            }
            Switch::Discard { replacement } => {
                write!(f, "destroy {} if it exists, paused", replacement.temporary)
            }
            Switch::RenameOld { replacement } => {
                write!(
                    f,
                    "rename domain {} to {}",
                    replacement.old.domid,
                    replacement.old_after_switch().name
                )
            }
            Switch::UndoRenameOld { replacement } => {
                write!(
                    f,
                    "rename domain {} back to {}",
                    replacement.old.domid, replacement.old.name
                )
            }
            Switch::RenameNew { replacement } => {
                write!(f, "rename {} to {}", replacement.temporary, replacement.old.name)
            }
            Switch::UndoRenameNew { replacement } => {
                write!(f, "rename {} back to {}", replacement.old.name, replacement.temporary)
            }
            Switch::Run { replacement } => write!(f, "unpause the new {}", replacement.old.name),
            Switch::Destroy { replacement } => {
                write!(f, "destroy domain {}, which was replaced", replacement.old.domid)
            }
            Switch::RenameVolume { group, from, to } => {
                write!(f, "rename the volume {group}/{from} to {to}")
            }
            Switch::UpdateConfig { replacement, images } => {
                write!(f, "store libxl's configuration: name {}", replacement.old.name)?;
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

    fn replacement() -> Replacement {
        Replacement {
            temporary: "web 1.restoring".into(),
            old: DomainId { domid: 3, uuid: Uuid::from_u128(1), name: "web 1".into() },
            old_suffix: ".replaced".into(),
            vm: Uuid::from_u128(2),
            keys: Vec::new(),
        }
    }

    #[test]
    fn commands_can_be_pasted() {
        let by_hand = |switch: fn(Replacement) -> Switch| switch(replacement()).by_hand().unwrap();
        for (command, switch) in [
            (
                "xl destroy 'web 1.restoring'",
                (|replacement| Switch::Discard { replacement }) as fn(Replacement) -> Switch,
            ),
            ("xl rename 3 'web 1.replaced'", |replacement| Switch::RenameOld { replacement }),
            ("xl rename 3 'web 1'", |replacement| Switch::UndoRenameOld { replacement }),
            ("xl rename 'web 1.restoring' 'web 1'", |replacement| Switch::RenameNew {
                replacement,
            }),
            ("xl rename 'web 1' 'web 1.restoring'", |replacement| Switch::UndoRenameNew {
                replacement,
            }),
            ("xl unpause 'web 1'", |replacement| Switch::Run { replacement }),
            ("xl destroy 3", |replacement| Switch::Destroy { replacement }),
        ] {
            assert_eq!(by_hand(switch), command);
        }
    }

    #[test]
    fn a_configuration_that_names_no_disk_wrongly_needs_no_words() {
        let settle = |images| Switch::UpdateConfig { replacement: replacement(), images };
        assert_eq!(settle(Vec::new()).in_words(), None);
        let path = "/dev/vg0/thin".into();
        let image = Image { vdev: "xvdb".into(), path, format: Format::Raw };
        let words = settle(vec![image]).in_words().unwrap();
        assert!(words.contains("in which xvdb is /dev/vg0/thin"), "{words}");
    }
}
