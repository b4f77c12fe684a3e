//! Runs a command line: looks, plans, executes, reports. A file per command.

mod compact;
mod create;
mod delete;
pub mod guard;
mod list;
mod named;
mod output;
mod prune;
mod revert;
mod session;
mod show;

pub use self::session::Execute;
use crate::cli::{Cli, Command};
use crate::error::Result;

/// Does what the command line asks for.
pub fn run(cli: Cli, carry_out: Execute) -> Result<()> {
    match cli.command {
        Command::Create(args) => create::create(args, carry_out),
        Command::Revert(args) => revert::revert(&args, carry_out),
        Command::Delete(args) => delete::delete(&args, carry_out),
        Command::List(args) => list::list(&args),
        Command::Show(args) => show::show(&args),
        Command::Compact(args) => compact::compact(&args),
        Command::Prune(args) => prune::prune(&args, carry_out),
    }
}
