//! `show`, from the command line to the report.

use jiff::Timestamp;

use super::named::Named;
use super::output::print;
use crate::cli::ShowArgs;
use crate::error::{Error, Result};
use crate::host::look;
use crate::host::snapshot::Snapshot;
use crate::host::toolstack::Toolstack;
use crate::report::Reporter;
use crate::show;

/// Does what the command line asks for.
pub(super) fn show(args: &ShowArgs) -> Result<()> {
    let Named { mut snapshot, .. } = Named::open(&args.snapshot)?;
    match &mut snapshot.source {
        Some(source) if args.verify => source.verify()?,
        None if args.verify => {
            return Err(Error::usage(format!("{} has no memory to verify", snapshot.name))
                .hint("without --verify, its disks are looked at"));
        }
        _ => {}
    }
    let Snapshot { name, record, source } = snapshot;
    let image = source.map(|source| source.image);
    let config = image.as_ref().map(|image| show::config_of(&name, image)).transpose()?;
    // Without Xen, or without the right to use it, the disks are looked at all the same.
    let toolstack = Toolstack::open(&Reporter::new(true, 0)).ok();
    let looked = look::for_show(toolstack.as_ref(), &record, config.as_ref(), Timestamp::now())?;
    let shown = show::show(&name, record, image.as_ref(), args.verify, config.as_ref(), looked);
    print(&shown, args.json)
}
