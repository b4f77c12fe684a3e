//! Looking for who freezes a guest's file systems: the line to its agent, or the program. Changes nothing.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::domain::{DomainConfig, DomainId};
use crate::error::{Error, Result};
use crate::host::look::trouble;
use crate::host::toolstack::Toolstack;
use crate::quiesce::{Console, FreezeMethod, QuiesceBy, QuiesceOptions, line};
use crate::tool::quote;

/// Who may write to a file beside its owner.
const OTHERS: u32 = 0o022;
const ANYBODY_RUNS: u32 = 0o111;

/// Finds who freezes the file systems of a running domain.
pub fn way(
    toolstack: &Toolstack,
    domain: &DomainId,
    config: &DomainConfig,
    wanted: &QuiesceOptions,
) -> Result<FreezeMethod> {
    match &wanted.by {
        QuiesceBy::Agent => {
            line(&domain.name, config, &consoles(toolstack, domain)?).map(FreezeMethod::Agent)
        }
        QuiesceBy::Program(path) => {
            check_program(path)?;
            Ok(FreezeMethod::Program(path.clone()))
        }
    }
}

/// The consoles that libxl has made for a domain in addition to the first one. libxl keeps its own copy of their
/// names, which no guest can change; the guest can only read the key of the terminal (libxl_console.c,
/// `libxl__device_console_add`).
fn consoles(toolstack: &Toolstack, domain: &DomainId) -> Result<Vec<Console>> {
    let DomainId { domid, name, .. } = domain;
    let keys = toolstack.below(&format!("/libxl/{domid}/device/console"));
    let keys = keys.map_err(|error| trouble(name, error))?;
    let named = keys.iter().filter_map(|(path, value)| {
        let number = path.strip_suffix("/name")?.parse().ok()?;
        Some((number, value))
    });
    named
        .map(|(number, its): (u32, &String)| {
            let key = format!("/local/domain/{domid}/device/console/{number}/tty");
            let terminal = toolstack.read(&key).map_err(|error| trouble(name, error))?;
            let terminal = terminal.filter(|path| !path.is_empty()).map(PathBuf::from);
            Ok(Console { number, name: its.clone(), terminal })
        })
        .collect()
}

/// Refuses a program that anybody but root could have put there: it is run as root.
pub fn check_program(path: &Path) -> Result<()> {
    program_trouble(path).map_or(Ok(()), |why| {
        Err(Error::refused(format!("The program {} is not run", quote(path))).because(why).hint(
            "it and all directories above it must belong to root, and only root may write to them",
        ))
    })
}

fn program_trouble(path: &Path) -> Option<String> {
    let real = match fs::canonicalize(path) {
        Ok(real) => real,
        Err(error) => return Some(error.to_string()),
    };
    // Also those that lead to a link.
    for part in path.ancestors().chain(real.ancestors()) {
        let meta = match fs::symlink_metadata(part) {
            Ok(meta) => meta,
            Err(error) => return Some(format!("{}: {error}", quote(part))),
        };
        if meta.uid() != 0 {
            return Some(format!("{} belongs to user {}", quote(part), meta.uid()));
        }
        // The permissions of a link mean nothing.
        if !meta.is_symlink() && meta.mode() & OTHERS != 0 {
            return Some(format!("others than root may write to {}", quote(part)));
        }
    }
    let meta = match fs::metadata(&real) {
        Ok(meta) => meta,
        Err(error) => return Some(error.to_string()),
    };
    match meta.is_file() && meta.mode() & ANYBODY_RUNS != 0 {
        true => None,
        false => Some("it is not an executable file".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_program_that_others_could_change_is_not_run() {
        assert_eq!(program_trouble(Path::new("/usr/bin/env")), None);
        let missing = program_trouble(Path::new("/usr/bin/no such")).unwrap();
        assert!(missing.contains("No such file"), "{missing}");
        let directory = program_trouble(Path::new("/usr/bin")).unwrap();
        assert_eq!(directory, "it is not an executable file");
        // Anybody may write to /tmp.
        let tmp = tempfile::Builder::new().tempdir_in("/tmp").unwrap();
        let link = tmp.path().join("env");
        symlink("/usr/bin/env", &link).unwrap();
        assert!(program_trouble(&link).unwrap().ends_with("may write to /tmp"));
        // /root, or wherever root's home is.
        let Ok(own) = tempfile::Builder::new().tempdir_in("/var/lib") else { return };
        let program = own.path().join("freeze");
        fs::write(&program, "#!/bin/sh\n").unwrap();
        assert!(program_trouble(&program).unwrap().contains("not an executable"));
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        assert_eq!(program_trouble(&program), None);
        fs::set_permissions(own.path(), Permissions::from_mode(0o777)).unwrap();
        assert!(program_trouble(&program).unwrap().contains("others than root may write to"));
        fs::set_permissions(own.path(), Permissions::from_mode(0o700)).unwrap();
        fs::set_permissions(&program, Permissions::from_mode(0o775)).unwrap();
        assert!(program_trouble(&program).unwrap().contains("others than root may write to"));
    }
}
