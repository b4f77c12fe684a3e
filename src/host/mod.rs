//! The only effects: everything that touches Xen, QEMU, other programs or files.
//!
//! [`look`] reads, [`dom0`] changes. Above them everything is pure. Only [`libxl`] and [`extents`] have `unsafe`;
//! only [`command`] starts programs, our own [`guard`] too.

pub mod agent;
pub mod backups;
pub mod block_jobs;
pub mod cfg;
pub mod chain;
pub mod command;
pub mod compact;
pub mod compress;
pub mod configured;
pub mod deletion;
pub mod dependents;
pub mod dom0;
pub mod export;
pub mod extents;
pub mod files;
pub mod freezer;
pub mod guard;
pub mod image;
pub mod leftovers;
pub mod libxl;
pub mod list;
pub mod lock;
pub mod look;
pub mod marks;
pub mod merge_mark;
pub mod needs;
pub mod openers;
pub mod parallel;
pub mod process;
pub mod pump;
pub mod qmp;
pub mod quiesce;
pub mod record_file;
pub mod rewrites;
pub mod savers;
pub mod sharing;
pub mod snapshot;
pub mod socket;
pub mod start;
pub mod surroundings;
pub mod tools;
pub mod toolstack;
pub mod xenstore;
