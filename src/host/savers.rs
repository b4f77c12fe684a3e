//! Others who save or migrate a domain while we work on it.
//!
//! `xl save` and `xl migrate` read the domain's configuration at their very beginning (xl_vmcontrol.c,
//! `save_domain_core_begin`), and then wait until the domain can be suspended. If a disk is switched to
//! an overlay in between, their image names the frozen file: a restore of it would write there. And of two
//! live saves each takes pages from the other's list of what was written to (xg_sr_save.c,
//! `enable_logdirty`).

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::process;

use crate::domain::DomainId;
use crate::host::process::{is_installed, is_saver_of};
use crate::release::SAVE_HELPER;

/// The commands of xl that save a domain (xl_cmdtable.c).
const SAVING: [&[u8]; 3] = [b"save", b"migrate", b"suspend"];

/// A process that saves or migrates the domain, and is no child of ours.
pub fn other(domain: &DomainId) -> io::Result<Option<i32>> {
    for entry in fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<i32>() else { continue };
        // A process may end while we look: then it saves nothing.
        let Ok(program) = fs::read_link(format!("/proc/{pid}/exe")) else { continue };
        let program = program.file_name().unwrap_or_default().as_bytes();
        // What a package upgrade has replaced.
        let program = program.strip_suffix(b" (deleted)").unwrap_or(program);
        if program != b"xl" && program != SAVE_HELPER.as_bytes() {
            continue;
        }
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let saves = match program {
            b"xl" => is_saving_xl(&arguments, domain),
            _ => is_saver_of(&arguments, domain.domid) && !is_child(pid),
        };
        // Anybody may call a program so, and give it such arguments.
        if saves && is_installed(pid) {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

/// Whether this is an xl that saves the domain: `xl [OPTION]... save [OPTION]... DOMAIN FILE`. It takes the
/// domain's name or number.
fn is_saving_xl(arguments: &[u8], domain: &DomainId) -> bool {
    let mut words = arguments.split(|byte| *byte == 0).skip(1);
    let command = words.by_ref().find(|word| !word.starts_with(b"-"));
    let number = domain.domid.to_string();
    // xl takes the beginning of a command's name for it (xl_cmdtable.c, `cmdtable_lookup`).
    let saving = |command: &[u8]| SAVING.iter().any(|name| name.starts_with(command));
    command.is_some_and(|command| command.len() > 1 && saving(command))
        && words.any(|word| word == domain.name.as_bytes() || word == number.as_bytes())
}

fn is_child(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    parent.is_some_and(|parent| parent.trim() == process::id().to_string())
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn an_xl_that_saves() {
        let domain = DomainId { domid: 7, uuid: Uuid::nil(), name: "web 1".into() };
        let saves = |words: &[&str]| is_saving_xl(words.join("\0").as_bytes(), &domain);
        assert!(saves(&["xl", "save", "7", "/srv/a"]));
        assert!(saves(&["/usr/sbin/xl", "-vvv", "save", "-c", "web 1", "/srv/a"]));
        assert!(saves(&["xl", "migrate", "--live", "web 1", "host2"]));
        assert!(saves(&["xl", "mig", "web 1", "host2"]));
        for words in [
            &["xl", "save", "8", "/srv/7"][..],
            &["xl", "console", "7"],
            &["xl", "migrate-receive", "7"],
            &["xl", "create", "save", "7"],
            &["xl", "restore", "-p", "/proc/self/fd/0"],
            &["xl"],
        ] {
            assert!(!saves(words), "{words:?}");
        }
    }

    #[test]
    fn nobody_saves_a_domain_that_is_not_there() {
        let domain = DomainId { domid: u32::MAX, uuid: Uuid::nil(), name: "no such".into() };
        assert_eq!(other(&domain).unwrap(), None);
    }
}
