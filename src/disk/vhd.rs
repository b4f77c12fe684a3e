//! VHDs that tapdisk serves: the guest goes on in a child, the VHD it used stays as it is.
//!
//! Nothing switches a disk of a running tapdisk that is not blktap's own, so the domain is restored
//! on the child. The format: Microsoft, "Virtual Hard Disk Image Format Specification", 1.0.

use std::array::from_fn;
use std::path::{Path, PathBuf};

use crate::disk::{DiskCreate, DiskFound, DiskRevert, DiskSeen, Served, place, record, refuse};
use crate::domain::{Disk, Format};
use crate::error::Result;
use crate::plan::Step;
use crate::record::{FrozenFile, Kept};
use crate::tool::{Invocation, Tool, check_path};

/// The length of the footer, which ends every VHD, in bytes.
pub const FOOTER: usize = 512;
/// The longest chain, the base included: every read may have to ask each of its files.
const MAX_DEPTH: u32 = 30;
/// The length of what we read of the dynamic disk header, which has the parent's UUID, in bytes.
pub const HEADER: usize = 56;
/// "Disk Type" of a VHD with a parent.
const DIFFERENCING: u32 = 4;

/// What is known of a VHD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// The size the guest sees, in bytes.
    pub virtual_size: u64,
    /// Whether it has a parent.
    pub differencing: bool,
    /// What tells it from others, also to its children.
    pub uuid: [u8; 16],
    /// Where its dynamic disk header is, in bytes from the start, if it has one.
    pub header: u64,
    /// The length of its chain, itself included; `None` if vhd-util was not asked.
    pub depth: Option<u32>,
}

impl Facts {
    /// Reads a footer ("Hard Disk Footer Format"; numbers are big-endian).
    pub fn of_footer(footer: &[u8; FOOTER]) -> Option<Facts> {
        let number = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|i| footer[at + i]));
        // "one's complement of the sum of all the bytes in the footer without the checksum field"
        let sum = footer
            .iter()
            .enumerate()
            .filter(|(at, _)| !(64..68).contains(at))
            .fold(0_u32, |sum, (_, byte)| sum.wrapping_add(u32::from(*byte)));
        (footer.starts_with(b"conectix") && number(64) == !sum).then(|| Facts {
            virtual_size: u64::from(number(48)) << 32 | u64::from(number(52)),
            differencing: number(60) == DIFFERENCING,
            uuid: from_fn(|i| footer[68 + i]),
            header: u64::from(number(16)) << 32 | u64::from(number(20)),
            depth: None,
        })
    }
}

/// The UUID of the parent, from the child's dynamic disk header ("Dynamic Disk Header Format").
pub fn parent_uuid(header: &[u8; HEADER]) -> Option<[u8; 16]> {
    header.starts_with(b"cxsparse").then(|| from_fn(|i| header[40 + i]))
}

/// Asks for the length of a chain.
pub fn query_depth(path: &Path) -> Invocation {
    Invocation::new(Tool::VhdUtil, ["query", "-d", "-n"]).arg(path)
}

/// Asks for the parent.
pub fn query_parent(path: &Path) -> Invocation {
    Invocation::new(Tool::VhdUtil, ["query", "-p", "-n"]).arg(path)
}

/// Reads the answer, the parent's path or `FILE has no parent`.
pub fn parse_parent(output: &[u8]) -> Option<PathBuf> {
    let line = std::str::from_utf8(output).ok()?.trim();
    let path = check_path(Path::new(line)).is_ok() && !line.ends_with(" has no parent");
    path.then(|| line.into())
}

/// Reads the answer: `chain depth: N`.
pub fn parse_depth(output: &[u8]) -> Option<u32> {
    std::str::from_utf8(output)
        .ok()?
        .lines()
        .find_map(|line| line.trim().strip_prefix("chain depth:")?.trim().parse().ok())
}

/// Makes an empty child. `-e`: without it, a parent that holds no data of its own is left out of
/// the chain.
fn snapshot(child: &Path, parent: &Path) -> Invocation {
    Invocation::new(Tool::VhdUtil, ["snapshot", "-e", "-l", &MAX_DEPTH.to_string(), "-n"])
        .arg(child)
        .arg("-p")
        .arg(parent)
}

/// What libxl is told of a VHD.
pub fn target(path: &Path) -> PathBuf {
    let mut target = Path::new(Disk::TAP_VHD).as_os_str().to_owned();
    target.push(path);
    target.into()
}

/// Plans a child.
pub(super) fn create(seen: &DiskSeen) -> Result<DiskCreate> {
    let disk = &seen.disk;
    let refuse = |why: String| refuse(disk, why);
    let file = seen.file.as_ref().map_err(|why| refuse(why.clone()))?;
    let facts =
        seen.vhd.clone().unwrap_or_else(|| Err("it is not a VHD".into())).map_err(refuse)?;
    let depth = facts.depth.ok_or_else(|| refuse("the length of its chain is not known".into()))?;
    if depth >= MAX_DEPTH {
        return Err(refuse(format!("its chain has {depth} files, {MAX_DEPTH} are the limit"))
            .hint(format!("make it shorter with vhd-util coalesce while {} is down", disk.vdev)));
    }
    let child = place(seen)?.to_owned();
    let parent = disk.file();
    let protect = file.writable.then(|| Step::Protect { path: parent.to_owned() });
    Ok(DiskCreate {
        prepare: protect.into_iter().collect(),
        // Now, because a child notes when its parent was last written to.
        still: vec![Step::NewFile { path: child.clone(), fill: snapshot(&child, parent) }],
        switch: Some((target(&child), Format::Raw)),
        by_restore: seen.served != Some(Served::Nobody),
        ..DiskCreate::of(record(seen, Kept::Vhd { child, proof: None }))
    })
}

/// Plans a new child of the untouched VHD.
pub(super) fn revert(found: &DiskFound, proof: Option<&FrozenFile>) -> Result<DiskRevert> {
    let record = &found.record;
    found.check_frozen(&record.path, proof)?;
    let child = &found.place.path;
    let discard = match (&found.top, &found.top_parent) {
        (Some(top), Some(parent))
            if found.file.as_ref().is_ok_and(|file| file.id() == *parent)
                && !found.top_protected =>
        {
            vec![Step::RemoveFile { path: top.clone() }]
        }
        _ => Vec::new(),
    };
    Ok(DiskRevert {
        prepare: vec![Step::NewFile { path: child.clone(), fill: snapshot(child, &record.path) }],
        switch: Some((target(child), Format::Raw)),
        kept: found.kept_in_top(),
        discard,
        ..DiskRevert::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Place;
    use crate::disk::tests::{
        TAP, facts, found, plan_one, proof, refused, revert_one, seen, words,
    };
    use crate::plan::undo;

    const CHILD: &str = "/srv/web1-xvdc.after-s1.vhd";

    fn disk() -> DiskSeen {
        DiskSeen { place: Some(Place { path: CHILD.into(), trouble: None }), ..seen(TAP) }
    }

    fn plan(seen: &DiskSeen) -> Result<DiskCreate> {
        plan_one(seen, None, &Ok(Vec::new()))
    }

    /// A VHD whose domain runs on the child made for the snapshot.
    fn frozen() -> DiskFound {
        let kept = Kept::Vhd { child: CHILD.into(), proof: Some(proof()) };
        DiskFound {
            top: Some(CHILD.into()),
            top_parent: Some(facts().id()),
            ..found("/srv/c.vhd", kept)
        }
    }

    fn footer(disk_type: u8) -> [u8; FOOTER] {
        let mut footer = [0; FOOTER];
        footer[..8].copy_from_slice(b"conectix");
        footer[48..56].copy_from_slice(&(64_u64 << 20).to_be_bytes());
        footer[23] = 200;
        footer[63] = disk_type;
        footer[68..84].copy_from_slice(b"0123456789abcdef");
        let sum: u32 = footer.iter().map(|byte| u32::from(*byte)).sum();
        footer[64..68].copy_from_slice(&(!sum).to_be_bytes());
        footer
    }

    #[test]
    fn a_footer_is_read() {
        let facts = Facts::of_footer(&footer(3)).unwrap();
        assert_eq!((facts.virtual_size, facts.differencing), (64 << 20, false));
        assert_eq!((facts.uuid, facts.header), (*b"0123456789abcdef", 200));
        assert!(Facts::of_footer(&footer(4)).unwrap().differencing);
        let mut damaged = footer(3);
        damaged[200] = 1;
        assert_eq!(Facts::of_footer(&damaged), None);
        assert_eq!(Facts::of_footer(&[0; FOOTER]), None);
    }

    #[test]
    fn a_child_knows_the_uuid_of_its_parent() {
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(b"cxsparse");
        header[40..].copy_from_slice(b"0123456789abcdef");
        assert_eq!(parent_uuid(&header), Some(*b"0123456789abcdef"));
        header[0] = 0;
        assert_eq!(parent_uuid(&header), None);
    }

    #[test]
    fn every_argument_list() {
        let (a, b) = (Path::new("/srv/a b.vhd"), Path::new("/srv/b.vhd"));
        assert_eq!(query_depth(a).to_string(), "vhd-util query -d -n '/srv/a b.vhd'");
        assert_eq!(
            snapshot(b, a).to_string(),
            "vhd-util snapshot -e -l 30 -n /srv/b.vhd -p '/srv/a b.vhd'"
        );
        assert_eq!(target(a), Path::new("vhd:/srv/a b.vhd"));
    }

    #[test]
    fn the_answers_of_vhd_util() {
        assert_eq!(parse_parent(b"/srv/a b.vhd\n"), Some("/srv/a b.vhd".into()));
        for wrong in [&b""[..], b"/srv/a.vhd has no parent\n", b"query failed", b"/a\n/b", b"\xff"]
        {
            assert_eq!(parse_parent(wrong), None);
        }
        assert_eq!(parse_depth(b"chain depth: 3\n"), Some(3));
        for wrong in [&b""[..], b"chain depth: x\n", b"/a has no parent\n", b"\xff\xfe"] {
            assert_eq!(parse_depth(wrong), None);
        }
    }

    #[test]
    fn the_guest_goes_on_in_a_child() {
        let planned = plan(&disk()).unwrap();
        assert_eq!(words(&planned.prepare), ["make /srv/c.vhd read-only: it becomes a base"]);
        assert_eq!(
            words(&planned.still),
            [format!("make {CHILD}: vhd-util snapshot -e -l 30 -n {CHILD} -p /srv/c.vhd")]
        );
        assert_eq!(planned.switch, Some((format!("vhd:{CHILD}").into(), Format::Raw)));
        assert!(planned.by_restore, "nothing switches a running tapdisk");
        assert_eq!(planned.action, None);
        assert_eq!(planned.record.path, Path::new("/srv/c.vhd"));
        assert_eq!(planned.record.snapshot, Kept::Vhd { child: CHILD.into(), proof: None });
        assert_eq!(words(&undo(&planned.still)), [format!("remove {CHILD}")]);
    }

    #[test]
    fn a_vhd_that_is_a_base_already_is_left_so() {
        let mut seen = disk();
        seen.file.as_mut().unwrap().writable = false;
        assert_eq!(plan(&seen).unwrap().prepare, []);
    }

    #[test]
    fn a_chain_grows_to_thirty_files_and_no_further() {
        for (depth, words) in [
            (Some(1), None),
            (Some(29), None),
            (Some(30), Some("its chain has 30 files, 30 are the limit")),
            (Some(31), Some("its chain has 31 files, 30 are the limit")),
            (None, Some("the length of its chain is not known")),
        ] {
            let mut seen = disk();
            let Some(Ok(vhd)) = &mut seen.vhd else { unreachable!() };
            vhd.depth = depth;
            match words {
                Some(words) => refused(plan(&seen), &[words]),
                None => drop(plan(&seen).unwrap()),
            }
        }
        let mut full = disk();
        let Some(Ok(vhd)) = &mut full.vhd else { unreachable!() };
        vhd.depth = Some(30);
        refused(plan(&full), &["vhd-util coalesce"]);
    }

    #[test]
    fn what_is_no_vhd_or_has_no_room_is_refused() {
        let refuse = |words: &str, change: &dyn Fn(&mut DiskSeen)| {
            let mut seen = disk();
            change(&mut seen);
            refused(plan(&seen), &["Disk xvdc (/srv/c.vhd) cannot be snapshotted", words]);
        };
        refuse("it has no footer of a VHD", &|seen| {
            seen.vhd = Some(Err("it has no footer of a VHD".into()));
        });
        refuse("it is not a VHD", &|seen| seen.vhd = None);
        refuse("No such file", &|seen| seen.file = Err("No such file".into()));
        refuse("a new file is needed: x exists", &|seen| {
            seen.place.as_mut().unwrap().trouble = Some("x exists".into());
        });
    }

    #[test]
    fn a_revert_makes_another_child() {
        let planned = revert_one(&frozen()).unwrap();
        assert_eq!(
            words(&planned.prepare),
            ["make /srv/new: vhd-util snapshot -e -l 30 -n /srv/new -p /srv/c.vhd"]
        );
        assert_eq!(planned.put_back, []);
        assert_eq!(planned.switch, Some(("vhd:/srv/new".into(), Format::Raw)));
        assert_eq!(planned.kept.as_deref(), Some(CHILD));
        assert_eq!(planned.discard, [Step::RemoveFile { path: CHILD.into() }]);
    }

    #[test]
    fn only_a_child_that_nothing_needs_is_deleted() {
        let kept = |change: &dyn Fn(&mut DiskFound)| {
            let mut found = frozen();
            change(&mut found);
            assert_eq!(revert_one(&found).unwrap().discard, []);
        };
        kept(&|found| found.top_protected = true);
        kept(&|found| found.top_parent = None);
        kept(&|found| found.top_parent = Some((1, 99)));
        kept(&|found| found.top = None);
    }
}
