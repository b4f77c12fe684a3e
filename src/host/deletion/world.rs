//! The images around a snapshot that is deleted: what rests on what, and who uses them.

use std::collections::{BTreeMap, BTreeSet};
use std::iter;
use std::path::{Path, PathBuf};

use crate::delete::Involved;
use crate::disk::FileFacts;
use crate::disk::chain::{FileId, Link, MAX_LENGTH};
use crate::disk::image_tree::{
    DependentSnapshot, DiskUser, ImageTree, Running, TreeImage, is_our_name,
};
use crate::disk::kind::Content;
use crate::disk::proof::FrozenFile;
use crate::domain::{DomainConfig, DomainId, Format};
use crate::error::Result;
use crate::host::dependents::Configured;
use crate::host::image::rewrite;
use crate::host::look::{monitor, trouble};
use crate::host::openers;
use crate::host::qmp::Qmp;
use crate::host::toolstack::Toolstack;
use crate::host::{files, process, savers};
use crate::list::{FileEntry, FileKind, Files, ImageEntry, ImageFormat, Running as Listed};
use crate::plan::deletion::Image;
use crate::record::{DiskRecord, Parent, ParentSource, Record};
use crate::tool::quote;
use crate::tool::volumes::Volume;

/// Everything that is looked at.
pub(super) struct World<'a> {
    pub(super) record: &'a Record,
    pub(super) files: Files,
    /// The images by what they are, each with one of its paths.
    pub(super) by_id: BTreeMap<FileId, (PathBuf, FileKind)>,
    pub(super) others: Vec<(&'a ImageEntry, &'a Record)>,
    pub(super) configured: Vec<Configured>,
    pub(super) running: Vec<Run>,
    pub(super) openers: Vec<(FileId, openers::Opener)>,
    pub(super) named_as_overlay: BTreeSet<PathBuf>,
    pub(super) marked: bool,
}

/// A running domain, with what its QEMU says if it has to do with the snapshot.
pub(super) struct Run {
    pub(super) running: Running,
    pub(super) same: bool,
    /// The image of each disk.
    pub(super) tops: Vec<(String, FileId)>,
    pub(super) involved: Option<Involved>,
}

pub(super) fn id_of(seen: &FileEntry) -> Option<FileId> {
    seen.facts.as_ref().ok().map(FileFacts::id).or(seen.link.as_ref().ok().map(|link| link.id))
}

/// One path of each file: the one that a record, a domain or a configuration file names, before one that was only
/// found in a directory; and that of the file itself before a link to it.
pub(super) fn by_id(
    files: &Files,
    named: &BTreeSet<&Path>,
) -> BTreeMap<FileId, (PathBuf, FileKind)> {
    let rank = |(path, kind): &(PathBuf, FileKind)| {
        // What is named as qcow2 by anybody has the header of one.
        let qcow2 = *kind == FileKind::Image(ImageFormat::Qcow2);
        (qcow2, named.contains(path.as_path()), !path.is_symlink())
    };
    let mut by_id: BTreeMap<FileId, (PathBuf, FileKind)> = BTreeMap::new();
    for (key, seen) in files {
        let Some(id) = id_of(seen) else { continue };
        if by_id.get(&id).is_none_or(|other| rank(other) < rank(key)) {
            by_id.insert(id, key.clone());
        }
    }
    by_id
}

impl World<'_> {
    pub(super) fn id(&self, path: &Path) -> Option<FileId> {
        let kinds = [
            FileKind::Image(ImageFormat::Qcow2),
            FileKind::Image(ImageFormat::Other),
            FileKind::TapVhd,
        ];
        let seen = kinds.iter().find_map(|kind| self.files.get(&(path.to_owned(), *kind)));
        seen.and_then(id_of).or_else(|| files::identities(&[path])[0])
    }

    pub(super) fn seen(&self, id: FileId) -> Option<&FileEntry> {
        self.files.get(self.by_id.get(&id)?)
    }

    pub(super) fn below(&self, id: FileId) -> Option<FileId> {
        let link = self.seen(id)?.link.as_ref().ok()?;
        let (path, _) = link.below().ok()??;
        self.id(&path)
    }

    pub(super) fn on(&self, id: FileId) -> Vec<FileId> {
        self.by_id.keys().copied().filter(|other| self.below(*other) == Some(id)).collect()
    }

    pub(super) fn base(&self, disk: &DiskRecord) -> Option<FileId> {
        match disk.snapshot.kind().content() {
            Content::Nowhere | Content::Volume(_) => None,
            Content::Inside(_) => self.id(&disk.path),
            Content::Frozen(frozen) => self.id(frozen.copy.unwrap_or(&disk.path)),
        }
    }

    /// The images that a deletion may write to or remove, and those on them.
    pub(super) fn relevant(&self) -> Vec<FileId> {
        let mut relevant = BTreeSet::new();
        for base in self.record.disks.iter().filter_map(|disk| self.base(disk)) {
            relevant.insert(base);
            for overlay in self.on(base) {
                relevant.insert(overlay);
                relevant.extend(self.on(overlay));
            }
        }
        relevant.into_iter().collect()
    }

    /// Images that may rest on one of those that matter: they name it in a way that is not followed.
    pub(super) fn unclear(&self, relevant: &[FileId]) -> Vec<String> {
        let names = relevant.iter().filter_map(|id| self.by_id.get(id)?.0.file_name());
        let names: Vec<_> = names.map(|name| name.as_encoded_bytes()).collect();
        let may_rest = |link: &Link| {
            let Some(named) = link.named_below() else { return false };
            let text = named.as_os_str().as_encoded_bytes();
            let contains = |name: &&&[u8]| text.windows(name.len()).any(|part| part == **name);
            match files::identities(&[&named])[0] {
                Some(id) => relevant.contains(&id),
                None => names.iter().any(|name| contains(&name)),
            }
        };
        let unclear = self.files.values().filter_map(|seen| {
            let link = seen.link.as_ref().ok()?;
            link.below().err().filter(|_| may_rest(link))
        });
        unclear.collect()
    }

    /// A running domain; its QEMU is asked if it has one of the images open.
    pub(super) fn run(&self, toolstack: &Toolstack, domain: &Listed) -> Result<Run> {
        let domid = domain.domid.unwrap_or_default();
        let id = DomainId { domid, uuid: domain.uuid, name: domain.name.clone() };
        let same = (!domain.uuid.is_nil() && domain.uuid == self.record.domain.uuid)
            || domain.name == self.record.domain.name;
        let configured = domain.disks.iter();
        let tops: Vec<(String, FileId)> =
            configured.filter_map(|disk| Some((disk.vdev.clone(), self.id(&disk.path)?))).collect();
        let mut run = Run { running: Running { id, trouble: None }, same, tops, involved: None };
        if !self.openers.iter().any(|(_, opener)| opener.domid == Some(domid)) {
            return Ok(run);
        }
        let id = run.running.id.clone();
        let of = |error| trouble(&id.name, error);
        run.running.trouble = self.look_at_qemu(&id, &mut run.tops)?;
        let stored = toolstack.stored_config(domid).map_err(of)?;
        let config = DomainConfig::parse(&stored).map_err(|error| trouble(&id.name, error))?;
        if config.dm_restrict() {
            run.running.trouble = Some("its QEMU is confined (dm_restrict)".into());
        }
        if let Some(why) = not_now(toolstack, &id)? {
            run.running.trouble = Some(why);
        }
        let vbds = toolstack.vbds(domid).map_err(|error| trouble(&id.name, error))?;
        run.involved = Some(Involved {
            stored,
            monitor: monitor(toolstack, &id)?.found,
            params: vbds.into_iter().map(|vbd| (vbd.vdev, vbd.params)).collect(),
            id,
        });
        Ok(run)
    }

    /// The images that the guest writes to, by its QEMU; why nothing is to be merged there now.
    pub(super) fn look_at_qemu(
        &self,
        domain: &DomainId,
        tops: &mut Vec<(String, FileId)>,
    ) -> Result<Option<String>> {
        let of = |error| trouble(&domain.name, error);
        let mut qmp = Qmp::connect(domain.domid).map_err(of)?;
        for (vdev, node) in qmp.disks().map_err(of)? {
            let Some(file) = self.id(&node.file) else { continue };
            tops.retain(|(other, _)| *other != vdev);
            tops.push((vdev.clone(), file));
        }
        // An HVM guest that has not unplugged its emulated disks has each image twice.
        let nodes = qmp.named_nodes().map_err(of)?;
        let mut known = BTreeSet::new();
        for node in nodes.iter().filter(|node| node.is_image()) {
            let id = self.id(&node.file).filter(|id| self.openers.iter().any(|(o, _)| o == id));
            if id.is_some_and(|id| !known.insert(id)) {
                let file = quote(&node.file);
                return Ok(Some(format!(
                    "its QEMU has {file} open twice, as an emulated disk too"
                )));
            }
        }
        let ours = format!("xl-snapshot-{}-", &self.record.id.simple().to_string()[..8]);
        let jobs = qmp.jobs().map_err(of)?;
        let other = jobs.into_iter().find(|job| !job.id.starts_with(&ours));
        Ok(other.map(|job| format!("the block job {} is at work in its QEMU", job.id)))
    }

    pub(super) fn family(
        &self,
        disk: &DiskRecord,
        volumes: &Result<Vec<Volume>, String>,
    ) -> ImageTree {
        let base = self.base(disk);
        let is_copy = disk.snapshot.kind().content().frozen_file(&disk.path) != Some(&disk.path);
        let own = matches!(disk.snapshot.kind().content(), Content::Inside(_)) || !is_copy;
        let format = disk.format.filter(|_| own);
        let overlays: Vec<FileId> = base.map(|base| self.on(base)).unwrap_or_default();
        let above = overlays.iter().flat_map(|overlay| {
            let on = self.on(*overlay).into_iter();
            on.filter_map(|id| Some((*overlay, self.member(id, None)?)))
        });
        let vdevs = self.running.iter().filter(|run| run.involved.is_some()).filter_map(|run| {
            let has = |top: FileId| self.chain(top).any(|id| Some(id) == base);
            let (vdev, _) = run.tops.iter().find(|(_, top)| has(*top))?;
            Some((run.running.id.clone(), vdev.clone()))
        });
        let content = disk.snapshot.kind().content().frozen_file(&disk.path).unwrap_or(&disk.path);
        ImageTree {
            record: disk.clone(),
            id: self.record.id,
            marked: self.marked,
            away: files::away(content),
            above: above.collect(),
            vdevs: vdevs.collect(),
            children: self.vhd_children(disk),
            base: base.and_then(|base| self.member(base, format)),
            overlays: overlays.into_iter().filter_map(|id| self.member(id, None)).collect(),
            volumes: volumes.clone(),
        }
    }

    pub(super) fn chain(&self, top: FileId) -> impl Iterator<Item = FileId> {
        iter::successors(Some(top), |id| self.below(*id)).take(MAX_LENGTH)
    }

    pub(super) fn vhd_children(&self, disk: &DiskRecord) -> Vec<PathBuf> {
        let own = self.files.get(&(disk.path.clone(), FileKind::TapVhd)).and_then(|seen| seen.vhd);
        let (true, Some(own)) = (disk.snapshot.kind().content().is_tap_vhd(), own) else {
            return Vec::new();
        };
        let is_child = |seen: &FileEntry| {
            seen.vhd.is_some_and(|vhd| vhd.facts.differencing && vhd.parent == Some(own.facts.uuid))
        };
        let all = self.files.iter().filter(|(_, seen)| is_child(seen));
        all.map(|((path, _), _)| path.clone()).collect()
    }

    pub(super) fn member(&self, id: FileId, format: Option<Format>) -> Option<TreeImage> {
        let (path, kind) = self.by_id.get(&id)?;
        let seen = self.seen(id)?;
        let link = seen.link.as_ref().ok();
        let header = link.and_then(|link| link.header.as_ref());
        let qcow2 = *kind == FileKind::Image(ImageFormat::Qcow2);
        let below = link.map(|link| link.below()).transpose();
        let inside = match &below {
            Err(why) => Err(why.clone()),
            Ok(_) => seen.inside.clone(),
        };
        let below = below.ok().flatten().flatten();
        let virtual_size = match header {
            Some(header) => header.size,
            None => seen.facts.as_ref().map_or(0, |facts| facts.size),
        };
        let opened: Vec<_> =
            self.openers.iter().filter(|(other, _)| *other == id).map(|(_, who)| who).collect();
        let open_in = self
            .running
            .iter()
            .filter(|run| opened.iter().any(|opener| opener.domid == Some(run.running.id.domid)));
        let open_in: Vec<Running> = open_in.map(|run| run.running.clone()).collect();
        let listed = |domid: u32| open_in.iter().any(|running| running.id.domid == domid);
        let others = opened.iter().filter(|opener| !opener.domid.is_some_and(listed));
        let mut opened_by: Vec<String> = others.map(|opener| opener.who.clone()).collect();
        if seen.facts.is_ok() && openers::is_locked_elsewhere(path) {
            opened_by.push("a program on another host".into());
        }
        let room = files::room(path).map_or((0, 0), |room| (room.device, room.free));
        Some(TreeImage {
            path: path.clone(),
            id,
            format: if qcow2 { Format::Qcow2 } else { format.unwrap_or(Format::Raw) },
            facts: seen.facts.clone(),
            allocated: seen.allocated,
            virtual_size,
            below: below.map(|(path, format)| Image { path, format }),
            inside,
            users: self.users(id),
            keepers: self.keepers(id, seen),
            open_in,
            opened_by,
            created_by_us: is_our_name(path) || self.named_as_overlay.contains(path),
            room,
            unmarkable: files::merge_mark::trouble(path).or_else(|| files::unwritable(path)),
        })
    }

    pub(super) fn users(&self, id: FileId) -> Vec<DiskUser> {
        let mut users = Vec::new();
        for run in &self.running {
            let own = run.tops.iter().filter(|(_, top)| *top == id);
            users.extend(own.map(|(vdev, _)| DiskUser {
                domain: run.running.id.name.clone(),
                same: run.same,
                vdev: vdev.clone(),
                cfg: None,
            }));
        }
        for cfg in &self.configured {
            let own = cfg.disks.iter().filter(|disk| self.id(&disk.path) == Some(id));
            users.extend(own.map(|disk| DiskUser {
                domain: cfg.name.clone(),
                same: cfg.name == self.record.domain.name,
                vdev: disk.vdev.clone(),
                cfg: Some(cfg.path.clone()),
            }));
        }
        users
    }

    pub(super) fn keepers(&self, id: FileId, seen: &FileEntry) -> Vec<DependentSnapshot> {
        let Ok(facts) = &seen.facts else { return Vec::new() };
        let proof_of = |disk: &DiskRecord| -> Option<FrozenFile> {
            let Content::Frozen(frozen) = disk.snapshot.kind().content() else { return None };
            let path = frozen.copy.unwrap_or(&disk.path);
            frozen.proof.cloned().filter(|_| self.id(path) == Some(id))
        };
        let mut keepers = Vec::new();
        for (image, record) in &self.others {
            for disk in &record.disks {
                let Some(proof) = proof_of(disk) else { continue };
                if facts.has_inode_of(&proof) {
                    keepers.push(DependentSnapshot {
                        vdev: disk.vdev.clone(),
                        proven: facts.is_as(proof.file_size, proof.mtime),
                        ..self.keeper(image, record)
                    });
                }
            }
        }
        keepers
    }

    pub(super) fn keeper(&self, image: &ImageEntry, record: &Record) -> DependentSnapshot {
        // As long as it may become.
        let mut longest = record.clone();
        longest.parent = Some(Parent::Snapshot(record.id));
        longest.parent_by = Some(ParentSource::Disks);
        for disk in &mut longest.disks {
            let bases = self.record.disks.iter().map(|base| &base.path);
            let own = disk.path.as_os_str().len();
            let longer = bases.filter(|path| path.as_os_str().len() > own);
            if let Some(path) = longer.max_by_key(|path| path.as_os_str().len()) {
                disk.path.clone_from(path);
            }
        }
        let Record { domain, .. } = record;
        DependentSnapshot {
            image: image.path.clone(),
            name: record.name.to_string(),
            id: record.id,
            vdev: String::new(),
            same: domain.name == self.record.domain.name
                || (!domain.uuid.is_nil() && domain.uuid == self.record.domain.uuid),
            proven: true,
            fixed: rewrite::trouble(&image.path, &longest),
        }
    }

    /// Snapshots that name this one as their parent.
    pub(super) fn children(&self) -> Vec<DependentSnapshot> {
        let parent = Some(Parent::Snapshot(self.record.id));
        let children = self.others.iter().filter(|(_, record)| record.parent == parent);
        let keepers = children.map(|(image, record)| self.keeper(image, record));
        // Of one that cannot be told, list says that its parent is gone.
        keepers.filter(|keeper| keeper.fixed.is_none()).collect()
    }
}

/// Why nothing is to be merged under a domain now, if so.
pub(super) fn not_now(toolstack: &Toolstack, domain: &DomainId) -> Result<Option<String>> {
    let info = toolstack.domain_info(domain.domid).map_err(|error| trouble(&domain.name, error))?;
    if info.is_none_or(|info| info.shutdown || info.dying) {
        return Ok(Some("it is being saved, migrated, shut down or destroyed".into()));
    }
    let saver = savers::other(domain).map_err(|error| trouble("the programs that save", error))?;
    if let Some(pid) = saver {
        return Ok(Some(format!("process {pid} saves its memory")));
    }
    let pid = toolstack.qemu_pid(domain.domid).map_err(|error| trouble(&domain.name, error))?;
    process::qemu_trouble(domain.domid, pid).map_err(|error| trouble("the domain's QEMU", error))
}
