//! Runs a command line: looks, plans, executes, reports. A file per command.

mod argument;
mod backup;
mod compact;
mod create;
mod delete;
mod export;
pub mod guard;
mod list;
mod output;
mod prune;
mod revert;
mod serve;
mod session;
mod show;

pub use self::session::Execute;
use crate::cli::{Cli, Command};
use crate::error::Result;

/// Does what the command line asks for.
pub fn run(cli: Cli, carry_out: Execute) -> Result<()> {
    match cli.command {
        Command::Backup(args) => backup::backup(&args, carry_out),
        Command::Create(args) => create::create(args, carry_out),
        Command::Revert(args) => revert::revert(&args, carry_out),
        Command::Delete(args) => delete::delete(&args, carry_out),
        Command::Export(args) => export::export(&args, carry_out),
        Command::List(args) => list::list(&args),
        Command::Show(args) => show::show(&args),
        Command::Serve(args) => serve::serve(&args),
        Command::Compact(args) => compact::compact(&args),
        Command::Prune(args) => prune::prune(&args, carry_out),
    }
}
