//! xl-snapshot: whole-domain snapshots for Xen.
//!
//! The way of the data: `cli` and `spec` say what is asked, `host::look` sees what is there, `create`
//! and `revert` make a `plan` of both (pure code), and `plan::execute` has `host::dom0` perform it.
//! `memory`, `record`, `domain` and `disk` know the formats. `list` derives from records and disks which
//! snapshots there are.

pub mod cli;
pub mod clone;
pub mod create;
pub mod delete;
pub mod disk;
pub mod domain;
pub mod error;
pub mod export;
pub mod host;
pub mod json;
pub mod leftover;
pub mod list;
pub mod memory;
pub mod names;
pub mod need;
pub mod plan;
pub mod process;
pub mod prune;
pub mod quiesce;
pub mod record;
pub mod release;
pub mod report;
pub mod restore_first;
pub mod revert;
pub mod run;
pub mod show;
pub mod spec;
pub mod state;
pub mod tool;
pub mod trust;
pub mod xlcfg;

#[cfg(test)]
extern crate self as xl_snapshot;
#[cfg(test)]
#[path = "../tests/faults/model.rs"]
mod model;
#[cfg(test)]
#[path = "../tests/support/mod.rs"]
mod support;
