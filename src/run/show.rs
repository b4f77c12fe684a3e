//! `show`, from the command line to the report.

use jiff::Timestamp;

use super::argument::SnapshotArgument;
use super::output::print;
use crate::cli::ShowArgs;
use crate::error::{Error, Result};
use crate::host::image::Source;
use crate::host::look;
use crate::host::sharing;
use crate::host::snapshot::Snapshot;
use crate::host::toolstack::Toolstack;
use crate::report::Reporter;
use crate::show;

/// Does what the command line asks for.
pub(super) fn show(args: &ShowArgs) -> Result<()> {
    let SnapshotArgument { mut snapshot, .. } = SnapshotArgument::open(&args.snapshot)?;
    match &mut snapshot.source {
        Some(source) if args.verify => source.verify()?,
        None if args.verify => {
            return Err(Error::usage(format!("{} has no memory to verify", snapshot.name))
                .hint("without --verify, its disks are looked at"));
        }
        _ => {}
    }
    let Snapshot { name, record, source } = snapshot;
    let is_named = args.snapshot.as_os_str() != "-";
    let sizes = |source: &Source| sharing::sizes(&source.file).ok().filter(|_| is_named);
    let image = source.map(|source| (sizes(&source), source.image));
    let image = image.as_ref().map(|(sizes, image)| (image, *sizes));
    let config = image.map(|(image, _)| show::config_of(&name, image)).transpose()?;
    // Without Xen, or without the right to use it, the disks are looked at all the same.
    let toolstack = Toolstack::open(&Reporter::new(true, 0)).ok();
    let now = Timestamp::now();
    let looked = look::for_show(toolstack.as_ref(), &record, config.as_ref(), now)?;
    let shown = show::show(&name, record, image, args.verify, config.as_ref(), looked, now);
    print(&shown, args.json)
}
