//! How this program begins: as itself, as a guard, or to start another program.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::process::ExitCode;

use nix::unistd::setsid;

use crate::error::Error;
use crate::host::guard::NAME as GUARD;
use crate::host::{command, surroundings};
use crate::report;

/// The exit code of a shell for a program that cannot be started.
const NOT_STARTED: u8 = 127;

/// Does what comes before anything else. Returns how the process ends, if it is not the program itself or cannot
/// begin. `also` are variables of the environment that it needs, `guard` is what a guard does.
pub fn begin(also: &[&str], guard: fn() -> ExitCode) -> Option<ExitCode> {
    command::pass_nothing_on();
    let mut arguments = env::args_os();
    let name = arguments.next().unwrap_or_default();
    if name == GUARD {
        return Some(guard());
    }
    if name == command::STARTER {
        return Some(start(&arguments.collect::<Vec<_>>()));
    }
    if name == command::SERVER {
        return Some(serve(&arguments.collect::<Vec<_>>()));
    }
    let error = match settle(&name, also) {
        Ok(()) => return None,
        Err(error) => error,
    };
    report::print_error(&error);
    Some(error.exit_code().into())
}

/// Sees to it that the process depends on nothing that its caller has left it.
fn settle(name: &OsStr, also: &[&str]) -> Result<(), Error> {
    let anew = || -> io::Result<()> {
        if surroundings::are_foreign(also)? {
            surroundings::unblock_signals()?;
            surroundings::catch_sigchld()?;
            // It returns only if it fails.
            return Err(command::begin_anew(name, surroundings::environment(also)));
        }
        surroundings::call_by(name);
        Ok(())
    };
    anew().map_err(|why| {
        Error::refused("The program cannot restart itself with a clean environment")
            .because(why)
            .hint("make sure that /proc is mounted")
    })
}

/// Becomes a program that serves clients, and ends with the process that has started us.
fn serve(arguments: &[OsString]) -> ExitCode {
    let why = match arguments {
        [parent, program @ ..] => command::become_server(parent, program),
        [] => io::ErrorKind::InvalidInput.into(),
    };
    report::print_error(&Error::failed("Start qemu-nbd").because(why));
    NOT_STARTED.into()
}

/// Becomes another program, which outlives whoever has started us.
fn start(program: &[OsString]) -> ExitCode {
    let become_it = || -> io::Result<()> {
        setsid()?;
        // That it could not leave is told by the guard, which is started first.
        surroundings::leave_job()?;
        Err(command::become_program(program))
    };
    if let Err(why) = become_it() {
        let name = program.first().cloned().unwrap_or_default();
        report::print_error(&Error::failed(format!("Start {name:?}")).because(why));
    }
    NOT_STARTED.into()
}
