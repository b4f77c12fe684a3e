//! What commands share.

use clap::{ArgAction, Args, ValueHint};

/// The options of the commands that change something.
#[derive(Debug, Args)]
pub struct Common {
    /// Print the plan and change nothing.
    #[arg(short = 'N', long)]
    pub dry_run: bool,
    /// Wait up to SECONDS for another xl-snapshot that is working on the domain [default: refuse at
    /// once].
    #[arg(long, value_name = "SECONDS", value_hint = ValueHint::Other)]
    pub wait: Option<u32>,
    /// Print the result as JSON (see xl-snapshot-json(5)).
    #[arg(long)]
    pub json: bool,
    /// Print only errors and the result.
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Print each step and its time; give it twice to print libxl's messages too.
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,
}
