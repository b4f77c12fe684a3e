//! `list`, from the command line to the list.

use std::path::{Path, PathBuf};

use super::output::{print, write};
use crate::cli::ListArgs;
use crate::error::{Error, Result};
use crate::host::list as host;
use crate::host::look;
use crate::host::toolstack::Toolstack;
use crate::list::{self, ListRequest, Tree, metrics};
use crate::report::{Reporter, printable};
use crate::spec;
use crate::tool::quote;

/// What an argument means.
pub(super) enum Place {
    Directory(PathBuf),
    Domain(String),
}

/// A path has a slash in it; what has none is a domain.
pub(super) fn place(text: &str) -> Result<Place> {
    let path = Path::new(text);
    if !text.contains('/') && !matches!(text, "." | "..") {
        return Ok(Place::Domain(text.to_owned()));
    }
    if path.is_file() {
        return Ok(Place::Domain(look::name_in(path)?));
    }
    match path.is_dir() {
        true => Ok(Place::Directory(spec::absolute(path)?)),
        false => Err(Error::refused(match path.exists() {
            true => format!("{} is neither a directory nor a file", quote(path)),
            false => format!("There is no directory or file {}", quote(path)),
        })
        .hint(
            "name a domain, a directory of snapshots, or an xl configuration file; if the domain's name has a \
             slash, name its configuration file. To describe one snapshot: xl-snapshot show DOMAIN/NAME",
        )),
    }
}

/// Does what the command line asks for.
pub fn list(args: &ListArgs) -> Result<()> {
    let mut asked = ListRequest { domains: Vec::new(), all: args.all };
    let mut directories = Vec::new();
    for text in &args.places {
        match place(text)? {
            Place::Directory(path) => directories.push(path),
            Place::Domain(name) => asked.domains.push(name),
        }
    }
    if directories.is_empty() {
        directories.push(host::directory()?);
    }
    let mut unseen = Vec::new();
    let images = host::images(&directories, &[], &mut unseen).map_err(|error| {
        let all = directories.iter().map(quote).collect::<Vec<_>>().join(" ");
        Error::refused(format!("Reading {all}"))
            .because(error)
            .hint("run this as root, or name a directory that you may read")
    })?;
    // Without Xen, or without the right to use it, everything else is looked at all the same.
    let domains = match Toolstack::open(&Reporter::new(true, 0)) {
        Ok(toolstack) => host::domains(&toolstack, &mut unseen),
        Err(_) => {
            unseen.push("which domains run: Xen does not run here, or you are not root".into());
            Vec::new()
        }
    };
    let seen = host::look(images, domains, unseen, args.all);
    let listing = list::list(&seen, &asked);
    if args.metrics {
        return write(&metrics(&listing));
    }
    if args.tree {
        write(&printable(&Tree(&listing).to_string()))?;
    } else {
        print(&listing, args.json)?;
    }
    if !args.json {
        let reporter = Reporter::new(false, 0);
        if listing.snapshots.is_empty() {
            let all = directories.iter().map(quote).collect::<Vec<_>>().join(", ");
            let of = match asked.domains.as_slice() {
                [] => String::new(),
                domains => format!(" of {}", domains.join(", ")),
            };
            reporter.note(&format!("note: there are no snapshots{of} in {all}"));
        }
        if listing.hidden > 0 {
            let hidden = listing.hidden;
            reporter.note(&format!("note: {hidden} more that are not snapshots: --all lists them"));
        }
    }
    Ok(())
}
