//! The list of the kinds of disk snapshots. Pure.
//!
//! Each kind has a directory here: `record.rs` defines its part of the record, `mod.rs` its plans. They are two
//! files because the steps of a plan contain records, so a record must not import from a planner.

use serde::{Deserialize, Serialize};

use crate::disk::kind::{Kind, OptionKeys, Selectable};

/// Calls a macro with the list: the name for users, scripts and records, the name here, and the type in the
/// record. The first kind that is the default for a disk is chosen.
macro_rules! kinds {
    ($then:ident) => {
        $then! {
            "internal" => Internal(crate::disk::internal::record::Internal),
            "external" => External(crate::disk::external::record::External),
            "lvm" => Lvm(crate::disk::lvm::record::Lvm),
            "reflink" => Reflink(crate::disk::reflink::record::Reflink),
            "vhd" => Vhd(crate::disk::vhd::record::Vhd),
            "exported" => Exported(crate::disk::exported::record::Exported),
            "none" => None(crate::disk::none::record::LeftOut),
        }
    };
}
pub(super) use kinds;

macro_rules! make {
    ($($name:literal => $kind:ident($kept:path),)*) => {
        /// How the content of a disk is kept, and its proof.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        pub enum DiskSnapshot {
            $(#[serde(rename = $name)] $kind($kept),)*
        }

        $(pub use $kept;)*

        $(impl From<$kept> for DiskSnapshot {
            fn from(kept: $kept) -> DiskSnapshot {
                DiskSnapshot::$kind(kept)
            }
        })*

        impl DiskSnapshot {
            pub fn kind(&self) -> &dyn Kind {
                match self {
                    $(DiskSnapshot::$kind(kept) => kept,)*
                }
            }

            pub fn kind_mut(&mut self) -> &mut dyn Kind {
                match self {
                    $(DiskSnapshot::$kind(kept) => kept,)*
                }
            }

            /// How the disk was snapshotted.
            pub fn how(&self) -> DiskMethod {
                match self {
                    $(DiskSnapshot::$kind(_) => DiskMethod::$kind,)*
                }
            }
        }

        /// How a disk is snapshotted.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum DiskMethod {
            $($kind,)*
        }

        impl DiskMethod {
            pub const ALL: &[DiskMethod] = &[$(DiskMethod::$kind,)*];

            /// The name for users and scripts.
            pub fn name(self) -> &'static str {
                match self {
                    $(DiskMethod::$kind => $name,)*
                }
            }

            /// The keys that it accepts; `None` if the user cannot choose it.
            pub fn keys(self) -> Option<OptionKeys> {
                match self {
                    $(DiskMethod::$kind => <$kept as Selectable>::KEYS,)*
                }
            }

            /// Whether the file system must support reflinks.
            pub fn clones(self) -> bool {
                match self {
                    $(DiskMethod::$kind => <$kept as Selectable>::CLONES,)*
                }
            }

            /// The default name of the file that the snapshot creates.
            pub fn new_file_name(self, stem: &str, snapshot: &str) -> String {
                match self {
                    $(DiskMethod::$kind => <$kept as Selectable>::new_file_name(stem, snapshot),)*
                }
            }
        }
    };
}
kinds!(make);

impl DiskSnapshot {
    /// The name for users and scripts.
    pub fn name(&self) -> &'static str {
        self.how().name()
    }

    /// Whether the disk is not in the snapshot.
    pub fn is_left_out(&self) -> bool {
        self.how().leaves_out()
    }
}

impl DiskMethod {
    /// The kind with this name, if the user can choose it.
    pub fn from_option(name: &str) -> Option<DiskMethod> {
        DiskMethod::ALL.iter().copied().find(|how| how.name() == name && how.keys().is_some())
    }

    /// Whether the disk is left out.
    pub fn leaves_out(self) -> bool {
        self == DiskMethod::None
    }
}
