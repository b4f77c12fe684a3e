//! Hostile input: whatever a file, a tool, QEMU or xenstore says, the program neither panics nor
//! takes more memory than the length of the input allows, and what it accepts it can use.
//!
//! Each target tries its corpus (`tests/corpus`), then random inputs for a second, or for
//! `HOSTILE_SECONDS`. An input that fails is kept in the corpus; should the whole program be ended by
//! it, it stands in `target/reliability/current`.

#![expect(clippy::unwrap_used, reason = "a test's helpers may end the test")]

mod damage;
mod domains;
mod harness;
mod images;
mod limits;
mod pages;
mod process;
mod texts;
mod tools;
