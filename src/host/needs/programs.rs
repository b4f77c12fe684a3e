//! Programs, daemons and the release of Xen.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use super::answer::{Answer, Around};
use crate::host::command;
use crate::need::Rank;
use crate::release::{QEMUS, SAVE_HELPER, XEN_TOOLS, XEN_WRAPPER, is_newer};
use crate::tool::{Invocation, Tool};

/// libxl has the path of its own build. A QEMU of the system's does not help Debian's.
pub(super) fn emulator() -> Option<String> {
    if Path::new(XEN_WRAPPER).exists() {
        return program(Path::new(QEMUS[0]));
    }
    match command::find(Tool::Qemu) {
        Ok(path) => program(&path),
        Err(_) => Some(format!("the QEMU that Xen starts is not there: {}", QEMUS.join(", "))),
    }
}

/// Debian has a directory for each release, and removes that of the one that runs after an upgrade.
pub(super) fn tools(around: Around<'_>) -> Answer {
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

/// Whether this Xen reads what that one has written.
pub(super) fn xen(version: &str, around: Around<'_>) -> Answer {
    let Some(toolstack) = around.toolstack else {
        return Answer::unseen(&format!("whether this host's Xen reads what Xen {version} saved"));
    };
    match toolstack.version().map(|here| here.to_string()) {
        Ok(here) => Answer::missing(is_newer(version, &here).then(|| {
            format!("its memory was saved by Xen {version}, and the older Xen {here} runs here")
        })),
        Err(error) => Answer::Trouble(Rank::Missing, format!("the version of Xen: {error}")),
    }
}
