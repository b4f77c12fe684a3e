//! Whether Xen's QEMU can serve images of a format.

use crate::domain::Format;
use crate::host::command;
use crate::tool::{Tool, formats_served, parse_served};

/// What QEMU says.
#[derive(Debug)]
pub(super) enum Served {
    Yes,
    /// Why not.
    No(String),
    /// What could not be found out.
    Unknown(String),
}

/// Asks QEMU, which takes a tenth of a second: only for formats that not every QEMU has.
pub(super) fn ask(format: Format) -> Served {
    let driver = format.qemu();
    let Ok(qemu) = command::find(Tool::Qemu) else {
        return Served::Unknown(format!(
            "whether a QEMU serves {driver}: none is where Xen's QEMU usually is"
        ));
    };
    let shown = qemu.display();
    let output = match command::run(&formats_served()) {
        Ok(output) => output,
        Err(error) => return Served::No(format!("{shown}: {error}")),
    };
    match parse_served(&String::from_utf8_lossy(&output)) {
        Some(formats) if formats.contains(&driver) => Served::Yes,
        Some(_) => Served::No(format!(
            "{shown} serves no {} ({driver}) images: the guest would hang without the disk",
            format.name()
        )),
        None => Served::Unknown(format!(
            "whether {shown} serves {driver}: it does not say which formats it has"
        )),
    }
}
