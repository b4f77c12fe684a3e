//! Programs, daemons and the release of Xen.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, User, access};

use super::answer::{Answer, CheckContext};
use crate::host::command;
use crate::need::Severity;
use crate::release::{QEMUS, SAVE_HELPER, XEN_TOOLS, XEN_WRAPPER, is_newer};
use crate::tool::{Invocation, Tool};

/// libxl has the path of its own build. A QEMU of the system's does not help Debian's.
pub(super) fn emulator() -> Option<String> {
    if Path::new(XEN_WRAPPER).exists() {
        return program(Path::new(QEMUS[0]));
    }
    match command::find(Tool::Qemu) {
        Ok(path) => program(&path),
        Err(_) => Some(format!("the QEMU that Xen starts does not exist: {}", QEMUS.join(", "))),
    }
}

/// Debian has a directory for each release, and removes that of the one that runs after an upgrade.
pub(super) fn tools(around: CheckContext<'_>) -> Answer {
    let here = around.toolstack.and_then(|toolstack| toolstack.version().ok());
    let Some(here) = here else { return Answer::There };
    let own = PathBuf::from(format!("/usr/lib/xen-{}.{}/bin", here.major, here.minor));
    let directory = match Path::new(XEN_WRAPPER).exists() {
        true => Some(own),
        // Where there is one only, xl has it from its own build.
        false => XEN_TOOLS.iter().map(PathBuf::from).find(|path| path.join(SAVE_HELPER).exists()),
    };
    let Some(directory) = directory else { return Answer::There };
    let needed = ["xl", SAVE_HELPER].map(|name| directory.join(name));
    // Elsewhere xl itself is among the system's programs.
    let mut needed = needed.iter().skip(usize::from(!Path::new(XEN_WRAPPER).exists()));
    Answer::missing(needed.find_map(|path| program(path)).or_else(xl))
}

/// xl may be there and do nothing: each call reads its configuration first (xl.c, `parse_global_config`).
fn xl() -> Option<String> {
    let call = Invocation::new(Tool::Xl, ["domname", "0"]);
    command::run(&call).err().map(|error| format!("xl does not work: {error}"))
}

/// Without it, libxl waits ten seconds for the console of the new domain, and gives up (libxl_create.c,
/// `console_xswait_callback`).
pub(super) fn consoles() -> Option<String> {
    let runs = |path: PathBuf| {
        // Anybody may call a process so.
        let of_root = fs::metadata(&path).is_ok_and(|meta| meta.uid() == 0);
        of_root && fs::read(path.join("comm")).is_ok_and(|name| name == b"xenconsoled\n")
    };
    let mut processes = fs::read_dir("/proc").ok()?.flatten();
    let there = processes.any(|entry| runs(entry.path()));
    (!there).then(|| "no xenconsoled runs in dom0".to_owned())
}

pub(super) fn program(path: &Path) -> Option<String> {
    let shown = path.display();
    match (fs::metadata(path), access(path, AccessFlags::X_OK)) {
        (Ok(meta), Ok(())) if meta.is_file() => None,
        (Ok(_), _) => Some(format!("{shown} is no program that can be started")),
        (Err(error), _) => Some(format!("{shown}: {error}")),
    }
}

/// What every script of Xen's writes its messages to.
const LOG: &str = "/var/log/xen/xen-hotplug.log";
/// The script that opens the log.
const COMMON: &str = "xen-hotplug-common.sh";

/// A script fails without those that it reads, and if it cannot open its log.
pub(super) fn script(path: &Path) -> Option<String> {
    program(path).or_else(|| {
        let mut all = vec![path.to_owned()];
        let mut at = 0;
        while let Some(script) = all.get(at).cloned() {
            let text = match fs::read(&script) {
                // What is no text reads no others.
                Ok(text) => String::from_utf8(text).unwrap_or_default(),
                Err(error) => {
                    let (script, reader) = (script.display(), path.display());
                    return Some(format!("{script}, which {reader} reads: {error}"));
                }
            };
            // A directory of the script's own, and nothing that only some cases read: those are indented.
            let own = text.lines().any(|line| line.replace('"', "") == "dir=$(dirname $0)");
            let own = own || script != path;
            let read = text
                .lines()
                .filter(|_| own)
                .filter_map(sourced)
                .map(|name| path.with_file_name(name));
            let new: Vec<PathBuf> = read.filter(|path| !all.contains(path)).collect();
            all.extend(new);
            at += 1;
        }
        let logs = all.iter().any(|path| path.file_name().is_some_and(|name| name == COMMON));
        if logs { log(Path::new(LOG)) } else { None }
    })
}

/// The script that a line of another one reads from its own directory. It goes on without the paths of this build,
/// because it finds the programs by PATH, too.
fn sourced(line: &str) -> Option<&str> {
    let path = line.strip_prefix(". ")?.trim().trim_matches('"');
    let name = path.strip_prefix("$dir/").or_else(|| path.strip_prefix("${dir}/"))?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (name.chars().all(plain) && name != "hotplugpath.sh").then_some(name)
}

fn log(path: &Path) -> Option<String> {
    let shown = path.display();
    let meta = fs::metadata(path).ok()?;
    if meta.is_dir() {
        return Some(format!("{shown}, to which the hotplug scripts write, is a directory"));
    }
    let error = access(path, AccessFlags::W_OK).err()?;
    Some(format!("{shown}, to which the hotplug scripts write: {}", error.desc()))
}

/// libxl looks the user up before it starts QEMU (libxl_dm.c, `device_model_user`).
pub(super) fn user(name: &str) -> Option<String> {
    // What cannot be looked up now may be found later.
    let missing = User::from_name(name).is_ok_and(|user| user.is_none());
    missing.then(|| format!("there is no user {name}, as whom its QEMU runs (device_model_user)"))
}

/// Whether this Xen reads what that one has written.
pub(super) fn xen(version: &str, around: CheckContext<'_>) -> Answer {
    let Some(toolstack) = around.toolstack else {
        return Answer::unseen(&format!("whether this host's Xen reads what Xen {version} saved"));
    };
    match toolstack.version().map(|here| here.to_string()) {
        Ok(here) => Answer::missing(is_newer(version, &here).then(|| {
            format!("its memory was saved by Xen {version}, and the older Xen {here} runs here")
        })),
        Err(error) => Answer::Trouble(Severity::Missing, format!("the version of Xen: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_script_needs_those_that_it_reads() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let main = at("vif-bridge");
        fs::write(&main, "#!/bin/bash\ndir=$(dirname \"$0\")\n. \"$dir/vif-common.sh\"\n").unwrap();
        fs::set_permissions(&main, fs::Permissions::from_mode(0o755)).unwrap();
        let lacks = |name: &str| {
            let why = script(&main).unwrap();
            assert!(why.contains(&format!("/{name}, which")), "{why}");
            assert!(why.contains("vif-bridge reads: No such file"), "{why}");
        };
        lacks("vif-common.sh");
        fs::write(at("vif-common.sh"), ". \"${dir}/logging.sh\"\n. \"$dir/hotplugpath.sh\"\n")
            .unwrap();
        lacks("logging.sh");
        // One that reads itself.
        fs::write(at("logging.sh"), "  . $dir/logging.sh\n. /etc/os-release\n. \"$f\"\n").unwrap();
        assert_eq!(script(&main), None);
        fs::set_permissions(&main, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(script(&main).unwrap().contains("no program that can be started"));
    }

    #[test]
    fn the_log_of_the_scripts_is_a_file() {
        let directory = tempfile::tempdir().unwrap();
        assert!(log(directory.path()).unwrap().contains("write, is a directory"));
        let path = directory.path().join("xen-hotplug.log");
        assert_eq!(log(&path), None);
        fs::write(&path, "").unwrap();
        assert_eq!(log(&path), None);
    }
}
