//! Whether Xen's QEMU can serve images of a format.

use super::Answer;
use crate::domain::Format;
use crate::host::command;
use crate::need::Rank;
use crate::tool::{Tool, formats_served, parse_served};

/// Asks QEMU, which takes a tenth of a second: only for formats that not every QEMU has.
pub(super) fn answer(format: Format) -> Answer {
    let Ok(qemu) = command::find(Tool::Qemu) else {
        return Answer::Unseen(format!(
            "whether a QEMU serves {}: none is where Xen's QEMU usually is",
            format.qemu()
        ));
    };
    let shown = qemu.display();
    let output = match command::run(&formats_served()) {
        Ok(output) => output,
        Err(error) => return Answer::Trouble(Rank::Missing, format!("{shown}: {error}")),
    };
    match parse_served(&String::from_utf8_lossy(&output)) {
        Some(formats) if formats.contains(&format.qemu()) => Answer::There,
        Some(_) => Answer::Trouble(
            Rank::Missing,
            format!(
                "{shown} serves no {} ({}) images: the guest would hang without the disk",
                format.name(),
                format.qemu()
            ),
        ),
        None => Answer::Unseen(format!(
            "whether {shown} serves {}: it does not say which formats it has",
            format.qemu()
        )),
    }
}
