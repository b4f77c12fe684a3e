//! Commands as data: tool and arguments. Pure; `host/command.rs` runs them.

pub mod allocation;
pub mod guest_agent;
pub mod qemu_img;
pub mod qemu_nbd;
pub mod vhd_util;
pub mod volumes;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::iter;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A program we may start. Nothing else is ever started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tool {
    /// Disk images, from qemu-utils.
    QemuImg,
    /// The server of disk images, from qemu-utils.
    QemuNbd,
    /// Xen's own tool, for `xl restore` and `xl create`.
    Xl,
    /// Logical volumes, from lvm2; its first argument is the command.
    Lvm,
    /// VHD files, from blktap.
    VhdUtil,
    /// The QEMU that serves the disks of domains. We only query its formats.
    Qemu,
}

impl Tool {
    /// The file name of the program.
    pub fn name(self) -> &'static str {
        match self {
            Tool::QemuImg => "qemu-img",
            Tool::QemuNbd => "qemu-nbd",
            Tool::Xl => "xl",
            Tool::Lvm => "lvm",
            Tool::VhdUtil => "vhd-util",
            Tool::Qemu => "qemu-system-i386",
        }
    }

    /// What to do if it is not installed.
    pub fn remedy(self) -> &'static str {
        match self {
            Tool::QemuImg | Tool::QemuNbd => "install it (Debian: apt install qemu-utils)",
            Tool::Xl => "install Xen's tools (Debian: apt install xen-utils)",
            Tool::Lvm => "install it (Debian: apt install lvm2)",
            Tool::VhdUtil => "it is a part of blktap, which Debian does not have",
            Tool::Qemu => "install it (Debian: apt install qemu-system-xen)",
        }
    }

    /// How long it may do nothing at all before we consider it hung. It has no other limit: while it uses the
    /// processor, reads or writes, it may run for days.
    fn patience(self) -> Duration {
        Duration::from_secs(match self {
            Tool::QemuImg | Tool::QemuNbd | Tool::VhdUtil | Tool::Qemu => 120,
            // xl waits for hotplug scripts, for a bootloader, and for Xen to free memory.
            Tool::Xl | Tool::Lvm => 300,
        })
    }

    /// The hint after it has hung.
    pub fn after_hang(self) -> &'static str {
        match self {
            Tool::QemuImg | Tool::QemuNbd | Tool::VhdUtil | Tool::Qemu => {
                "check that its storage answers (dmesg), then try again"
            }
            Tool::Xl => {
                "find out what it waited for (its log in /var/log/xen, the hotplug scripts, dmesg), then try again"
            }
            Tool::Lvm => {
                "it may have left a device suspended, whose guest then hangs: look for SUSPENDED in \
                 `dmsetup info`, and resume such a device with `dmsetup resume NAME`"
            }
        }
    }
}

/// One call of a tool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invocation {
    /// The program.
    pub tool: Tool,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// How long it may do nothing before we consider it hung.
    pub patience: Duration,
}

impl Invocation {
    /// A call with the default patience of the tool.
    pub fn new<S: AsRef<OsStr>>(tool: Tool, args: impl IntoIterator<Item = S>) -> Self {
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        Invocation { tool, args, patience: tool.patience() }
    }

    /// Whether it only reads the headers of disk images.
    pub fn describes_images(&self) -> bool {
        self.is_qemu_img(&["info"])
    }

    /// Whether it only reads the tables of disk images, which may be anybody's, and may say anything.
    pub fn reads_tables(&self) -> bool {
        self.is_qemu_img(&["measure", "map"])
    }

    /// Whether it copies the content of a disk, which may take hours.
    pub fn copies_images(&self) -> bool {
        self.is_qemu_img(&["convert"])
    }

    fn is_qemu_img(&self, commands: &[&str]) -> bool {
        let command = self.args.first().filter(|_| self.tool == Tool::QemuImg);
        command.is_some_and(|command| commands.iter().any(|other| command == other))
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(self, args: impl IntoIterator<Item = S>) -> Self {
        args.into_iter().fold(self, Invocation::arg)
    }

    /// The same call with another patience.
    #[must_use]
    pub fn patient(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }
}

/// The command for a shell.
impl fmt::Display for Invocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.tool.name())?;
        for arg in &self.args {
            write!(f, " {}", quote(arg))?;
        }
        Ok(())
    }
}

/// Lets QEMU list the formats of `-drive format=NAME` and exit.
pub fn formats_served() -> Invocation {
    Invocation::new(Tool::Qemu, ["-machine", "none", "-nodefaults", "-display", "none"])
        .args(["-drive", "format=help"])
}

/// The formats in QEMU's answer, without those that it only reads (blockdev.c, `drive_new`): `None` if it is no
/// such answer.
pub fn parse_served(answer: &str) -> Option<Vec<&str>> {
    let mut lines = answer.lines();
    let first = lines.find_map(|line| {
        // QEMU 10.1 has the second form, with the formats in the lines that follow.
        line.strip_prefix("Supported formats:").or(line.strip_prefix("Supported image formats:"))
    })?;
    let more = lines.take_while(|line| line.starts_with(' '));
    Some(iter::once(first).chain(more).flat_map(str::split_whitespace).collect())
}

/// Starts a domain from its xl configuration file. With `-f`, because xl takes an argument that contains
/// `=` for a setting (xl_vmcontrol.c, `main_create`).
pub fn create_domain(cfg: &Path, paused: bool) -> Invocation {
    let paused = paused.then_some("-p");
    Invocation::new(Tool::Xl, ["create", "-q"]).args(paused).arg("-f").arg(cfg)
}

/// Lets xl parse a configuration file and print libxl's JSON, without starting the domain.
pub fn dry_run(cfg: &Path) -> Invocation {
    Invocation::new(Tool::Xl, ["create", "-q", "-n", "-f"]).arg(cfg)
}

/// `text` as one word of a shell command.
pub fn quote(text: impl AsRef<OsStr>) -> String {
    let text = text.as_ref().to_string_lossy();
    match shlex::try_quote(&text) {
        Ok(quoted) => quoted.into_owned(),
        // A NUL: no argument or path can contain one, so this is only for messages.
        Err(_) => format!("{text:?}"),
    }
}

/// Whether a path can be handed to every tool and written into every file we write: absolute
/// (so that no tool takes it for an option or a protocol), UTF-8, no control characters.
pub fn check_path(path: &Path) -> Result<&str, BadPath> {
    let text = path.to_str().ok_or(BadPath::Encoding)?;
    if !path.is_absolute() {
        return Err(BadPath::Relative);
    }
    if text.chars().any(char::is_control) {
        return Err(BadPath::Control);
    }
    Ok(text)
}

/// Why a path is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// Not UTF-8.
    #[error("The path is not UTF-8, which libxl's JSON cannot hold")]
    Encoding,
    /// Relative.
    #[error("The path is not absolute")]
    Relative,
    /// A newline or the like.
    #[error("The path holds control characters")]
    Control,
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn a_command_can_be_pasted() {
        let call = Invocation::new(Tool::QemuImg, ["info", "-f", "qcow2"]).arg("/srv/a b'c.qcow2");
        assert_eq!(call.to_string(), r#"qemu-img info -f qcow2 "/srv/a b'c.qcow2""#);
    }

    #[test]
    fn odd_paths_are_refused() {
        assert_eq!(check_path(Path::new("/srv/a, b:c -d.img")), Ok("/srv/a, b:c -d.img"));
        assert_eq!(check_path(Path::new("json:{}")), Err(BadPath::Relative));
        assert_eq!(check_path(Path::new("-x")), Err(BadPath::Relative));
        assert_eq!(check_path(Path::new("/srv/a\nb")), Err(BadPath::Control));
        let latin1 = OsStr::from_bytes(b"/srv/\xe4");
        assert_eq!(check_path(Path::new(latin1)), Err(BadPath::Encoding));
    }

    #[test]
    fn what_qemu_serves_is_read_from_its_help() {
        let answer = "Supported formats: blkdebug luks qcow2 raw\n\
                      Supported formats (read-only): bochs vpc\n";
        assert_eq!(parse_served(answer).unwrap(), ["blkdebug", "luks", "qcow2", "raw"]);
        let answer = "Command list:\n  amend\n\nSupported image formats:\n  blkdebug luks\n  qcow2 vpc\n\nSee more\n";
        assert_eq!(parse_served(answer).unwrap(), ["blkdebug", "luks", "qcow2", "vpc"]);
        assert_eq!(parse_served("qemu-system-i386: -drive: no\n"), None);
    }
}
