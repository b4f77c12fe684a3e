//! The rules for all kinds of snapshots.

use super::*;
use crate::disk::chain::Link;
use crate::disk::kinds::{DiskSnapshot, External, Internal, LeftOut, Lvm, Reflink, Vhd};
use crate::domain::Format;
use crate::record::{FrozenFile, QcowSnapshot};
use crate::support::disks::{
    ID, LOOP, QCOW2, RAW, TAP, VHD, facts, found, link, plan_one, proof, refused,
    refused_once_changed, revert_one, seen, words,
};
use crate::tool::qemu_img;

#[test]
fn every_kind_of_disk_has_a_default() {
    let device = |entry| RunningDisk { device: Some((253, 0)), ..seen(entry) };
    for (seen, choice) in [
        (seen(QCOW2), DiskMethod::Internal),
        (seen(RAW), DiskMethod::External),
        (seen(VHD), DiskMethod::External),
        (seen(LOOP), DiskMethod::External),
        (seen(TAP), DiskMethod::Vhd),
        (device(RAW), DiskMethod::Lvm),
        (device(LOOP), DiskMethod::Lvm),
        (device(QCOW2), DiskMethod::Internal),
    ] {
        assert_eq!(choose(&seen, None).unwrap(), choice, "{:?}", seen.disk);
    }
}

#[test]
fn a_vhd_of_tapdisk_has_external_snapshots_only() {
    let none = Ok(Vec::new());
    for how in [None, Some("external"), Some("external,file=/srv/x.vhd")] {
        let planned = plan_one(&seen(TAP), how, &none).unwrap();
        assert_eq!(planned.record.snapshot.name(), "vhd", "{how:?}");
    }
    assert_eq!(plan_one(&seen(TAP), Some("none"), &none).unwrap().record.snapshot.name(), "none");
    for how in ["internal", "lvm", "lvm,size=1G", "reflink"] {
        refused(plan_one(&seen(TAP), Some(how), &none), &["has external snapshots only"]);
    }
}

#[test]
fn a_confined_qemu_opens_no_overlay() {
    let name = "s1".parse().unwrap();
    let volumes = Ok(Vec::new());
    let context = Context { name: &name, id: ID, volumes: &volumes, confined: true };
    for entry in [RAW, VHD] {
        refused(create(&seen(entry), None, context), &["confined (dm_restrict)"]);
        create(&seen(entry), None, Context { confined: false, ..context }).unwrap();
    }
    refused(
        create(&seen(QCOW2), Some(&DiskMethod::External.into()), context),
        &["confined (dm_restrict)"],
    );
    // Images that it need not open.
    for entry in [QCOW2, LOOP, TAP] {
        create(&seen(entry), None, context).unwrap();
    }
    create(&seen(RAW), Some(&DiskMethod::Reflink.into()), context).unwrap();
}

#[test]
fn a_script_we_do_not_know_is_out_of_reach_whatever_it_serves() {
    let none = Ok(Vec::new());
    for entry in [
        TAP.replace("block-tap", "block-nbd"),
        // block-tap itself, but not a VHD.
        TAP.replace("vhd:", "aio:"),
    ] {
        refused(plan_one(&seen(&entry), None, &none), &["it is set up by the script"]);
    }
}

#[test]
fn content_that_is_elsewhere_is_refused_for_every_kind() {
    let mut disk = seen(QCOW2);
    let why = "its data is in another file, /srv/d";
    disk.node.as_mut().unwrap().elsewhere = Some(why.into());
    let none = Ok(Vec::new());
    for how in [None, Some("internal"), Some("external"), Some("reflink")] {
        refused(plan_one(&disk, how, &none), &[why, "--disk xvda,none"]);
    }
    plan_one(&disk, Some("none"), &none).unwrap();
}

#[test]
fn what_lies_below_must_be_older_than_the_snapshot() {
    let taken = facts().mtime;
    let later = taken + std::time::Duration::from_nanos(1);
    for snapshot in frozen(Some(&proof())) {
        let mut found = found("/srv/b", snapshot);
        found.below = Ok(vec![("/srv/base".into(), taken), ("/srv/lowest".into(), taken)]);
        revert_one(&found).unwrap();
        found.below.as_mut().unwrap()[1].1 = later;
        refused(
            revert_one(&found),
            &["its base /srv/lowest was written to since: last at 2026-03-01T02:03:04.000000001Z"],
        );
        found.below = Err("no parent".into());
        refused(revert_one(&found), &["no parent"]);
    }
}

/// Every kind with a frozen file.
fn frozen(proof: Option<&FrozenFile>) -> [DiskSnapshot; 3] {
    let proof = proof.cloned();
    [
        DiskSnapshot::External(External { overlay: "/srv/o".into(), proof: proof.clone() }),
        DiskSnapshot::Reflink(Reflink { copy: "/srv/copy".into(), proof: proof.clone() }),
        DiskSnapshot::Vhd(Vhd { child: "/srv/child".into(), proof }),
    ]
}

#[test]
fn a_snapshot_without_its_proof_is_not_put_back() {
    for snapshot in frozen(None)
        .into_iter()
        .chain([DiskSnapshot::Internal(Internal { proof: None, bases: None })])
    {
        refused(revert_one(&found("/srv/b", snapshot)), &["the record has no proof"]);
    }
}

#[test]
fn a_frozen_file_that_is_not_the_one_of_then_is_not_put_back() {
    for snapshot in frozen(Some(&proof())) {
        let as_it_was = found("/srv/b", snapshot);
        revert_one(&as_it_was).unwrap();
        refused_once_changed(
            &as_it_was,
            &[
                ("No such file", &|found| found.frozen = Err("No such file".into())),
                ("another file now: inode 6, at the snapshot 5", &|found| {
                    found.frozen.as_mut().unwrap().inode += 1;
                }),
                ("written to since: 1048577 bytes long, at the snapshot 1048576", &|found| {
                    found.frozen.as_mut().unwrap().size += 1;
                }),
                ("written to since: last at 2026-03-01T02:03:04.000000001Z", &|found| {
                    let mtime = "2026-03-01T02:03:04.000000001Z".parse().unwrap();
                    found.frozen.as_mut().unwrap().mtime = mtime;
                }),
                ("its size was changed: 67108352 bytes, at the snapshot 67108864", &|found| {
                    *found.virtual_size.as_mut().unwrap() -= 512;
                }),
                ("no footer", &|found| {
                    found.virtual_size = Err("it has no footer of a VHD".into());
                }),
                ("also used by xvda of web2", &|found| {
                    found.used_by = Some("xvda of web2".into());
                }),
                ("the running domain may write to it", &|found| {
                    // The same file by another path.
                    found.top_id = Some(facts().id());
                }),
                ("a new file is needed: full", &|found| found.place.trouble = Some("full".into())),
            ],
        );
        // The missing write permission of a base is no change.
        let mut marked = as_it_was;
        marked.frozen.as_mut().unwrap().writable = false;
        revert_one(&marked).unwrap();
    }
}

#[test]
fn what_is_no_path_of_a_file_is_refused() {
    let none = Ok(Vec::new());
    for path in ["", "-x", "a.img", "nbd:localhost:10809", "json:{}", "vhd:/a", "/srv/a\\nb"] {
        for entry in [QCOW2.replace("/srv/a.qcow2", path), RAW.replace("/srv/b.img", path)] {
            for how in [None, Some("internal"), Some("external"), Some("reflink"), Some("lvm")] {
                refused(plan_one(&seen(&entry), how, &none), &["The path"]);
            }
            // A disk need not be an image to be left out.
            plan_one(&seen(&entry), Some("none"), &none).unwrap();
        }
    }
    for path in ["vhd:a.vhd", "vhd:-x", "vhd:"] {
        let entry = TAP.replace("vhd:/srv/c.vhd", path);
        refused(plan_one(&seen(&entry), None, &none), &["The path is not absolute"]);
    }
    for path in ["/srv/a b", "/srv/it's \\\"a\\\"", "/srv/a,b:c=d", "/srv/-x", "/json:{}"] {
        let entry = RAW.replace("/srv/b.img", path);
        plan_one(&seen(&entry), Some("external"), &none).unwrap();
    }
}

/// An image of 1 MiB with an internal snapshot, which is a base or not.
fn internal(backing: &str, is_base: bool) -> SnapshotDisk {
    let date = "2026-03-01T02:03:04Z".parse().unwrap();
    let proof = QcowSnapshot { id: "1".into(), name: "s1".into(), date };
    let json = serde_json::json!({
        "filename": "/srv/a.qcow2", "format": "qcow2", "virtual-size": 1 << 20,
        "full-backing-filename": backing, "backing-filename-format": "raw",
        "snapshots": [{"id": "1", "name": "s1", "date-sec": 1772330584, "date-nsec": 0}],
    });
    let image = qemu_img::ImageInfo::parse(json.to_string().as_bytes()).unwrap();
    let kept = DiskSnapshot::Internal(Internal { proof: Some(proof), bases: None });
    let file = Ok(FileFacts { writable: !is_base, ..facts() });
    SnapshotDisk { image: Ok(image), size_then: Ok(1 << 20), file, ..found("/srv/a.qcow2", kept) }
}

#[test]
fn an_image_that_was_resized_since_gets_the_size_of_the_snapshot() {
    let of = |is_base: bool, size_then: Result<u64, String>| {
        revert_one(&SnapshotDisk { size_then, ..internal("/srv/base.img", is_base) })
    };
    let steps = |planned: &DiskRevert| words(&planned.prepare);
    let (same, grown) = (of(true, Ok(1 << 20)).unwrap(), of(true, Ok(512 << 10)).unwrap());
    assert_eq!((steps(&same).len(), &same.note), (1, &None));
    assert_eq!(steps(&grown)[1], "resize it: qemu-img resize -q --shrink -f qcow2 /srv/new 524288");
    assert!(grown.note.unwrap().contains("it has 1 MiB now"));
    refused(
        of(true, Ok(3 << 20)),
        &[
            "was 3 MiB at the snapshot and is 1 MiB now",
            "qemu-img resize -f qcow2 /srv/a.qcow2 3145728",
        ],
    );
    refused(of(true, Err("its list of snapshots is damaged".into())), &["is damaged"]);
    // qemu-img reverts the size as well.
    let in_place = of(false, Ok(3 << 20)).unwrap();
    assert_eq!(
        in_place.note.as_deref(),
        Some("it has 1 MiB now, and 3 MiB again after the revert")
    );
    assert_eq!(in_place.put_back.len(), 2);
    of(false, Err("its list of snapshots is damaged".into())).unwrap();
}

#[test]
fn a_snapshot_rests_on_the_bases_that_its_image_had() {
    let link = |path: &str, inode| Link {
        path: path.into(),
        id: (1, inode),
        format: Format::Raw,
        header: None,
    };
    let (own, gold, other) = (link("/srv/a.qcow2", 1), link("/gold", 2), link("/other", 3));
    let planned = |then: &[&Link], now: &[&Link]| {
        let chain = |links: &[&Link]| -> Vec<Link> {
            [&own].into_iter().chain(links.iter().copied()).cloned().collect()
        };
        let then = chain(then);
        let mut found = internal("/srv/base.img", false);
        let DiskSnapshot::Internal(internal) = &mut found.record.snapshot else { panic!() };
        internal.bases = Internal::of(&then).bases;
        found.own = Ok(chain(now));
        revert_one(&found)
    };
    planned(&[], &[]).unwrap();
    planned(&[&gold], &[&gold]).unwrap();
    // All of them were moved to another disk.
    planned(&[&gold], &[&link("/data/gold", 9)]).unwrap();
    // A merge has taken one of them away.
    planned(&[&other, &gold], &[&gold]).unwrap();
    let lost = [
        "the image does not rest on /gold any more",
        "qemu-img rebase -u -f qcow2 -b /gold -F raw",
    ];
    refused(planned(&[&gold], &[]), &lost);
    refused(planned(&[&gold], &[&other]), &lost);
    refused(planned(&[], &[&other]), &["rests on /other now, and rested on nothing"]);
}

#[test]
fn an_image_on_which_somebody_has_made_an_overlay_is_not_rewritten() {
    let base =
        |kept: SnapshotDisk| SnapshotDisk { base_of: Some("/srv/clone.qcow2".into()), ..kept };
    let inside = revert_one(&base(internal("/srv/base.img", false))).unwrap();
    assert!(words(&inside.prepare)[0].contains("qemu-img convert"), "{:?}", inside.prepare);
    let copy = DiskSnapshot::Reflink(Reflink { copy: "/srv/copy".into(), proof: Some(proof()) });
    let copied = revert_one(&base(found("/srv/a", copy))).unwrap();
    for planned in [inside, copied] {
        assert_eq!(planned.put_back, []);
        assert!(planned.note.unwrap().contains("/srv/clone.qcow2 rests on it"));
    }
}

#[test]
fn a_file_that_was_moved_is_expected_at_its_path() {
    for snapshot in frozen(Some(&proof())).into_iter().chain([internal("/", false).record.snapshot])
    {
        let copy = matches!(snapshot, DiskSnapshot::Reflink(_));
        let path = if copy { "/srv/copy" } else { "/srv/a b" };
        let mut found = found("/srv/a b", snapshot);
        let gone = Err("No such file or directory (os error 2)".to_owned());
        (found.file, found.frozen) = (gone.clone(), gone);
        let hint = revert_one(&found).unwrap_err().hint.unwrap();
        assert!(hint.contains(&format!("expects it at {}", crate::tool::quote(path))), "{hint}");
        assert!(hint.contains("ln -s NEW"), "{hint}");
        // Unreadable for another reason.
        let denied = Err("Permission denied (os error 13)".to_owned());
        (found.file, found.frozen) = (denied.clone(), denied);
        assert!(!revert_one(&found).unwrap_err().hint.unwrap().contains("ln -s"));
    }
    for snapshot in frozen(Some(&proof())) {
        let mut found = found("/srv/a", snapshot);
        found.frozen.as_mut().unwrap().inode += 1;
        refused(
            revert_one(&found),
            &["it is another file now", "revert by hand", "xl restore FILE.cfg"],
        );
        found.frozen.as_mut().unwrap().size += 1;
        assert!(!revert_one(&found).unwrap_err().hint.unwrap().contains("by hand"));
    }
}

#[test]
fn an_inode_that_does_not_last_proves_nothing() {
    for snapshot in frozen(Some(&proof())) {
        let mut found = found("/srv/a", snapshot);
        let file = found.frozen.as_mut().unwrap();
        (file.inode, file.lasting) = (file.inode + 1, false);
        revert_one(&found).unwrap();
        found.frozen.as_mut().unwrap().mtime += std::time::Duration::from_nanos(1);
        refused(revert_one(&found), &["it was written to since"]);
    }
}

#[test]
fn a_read_only_disk_that_was_written_to_since_is_told() {
    let note = |why: &str, later: u64| {
        let mut found = found("/srv/ro.img", DiskSnapshot::None(LeftOut { why: why.into() }));
        found.file.as_mut().unwrap().mtime += std::time::Duration::from_nanos(later);
        revert_one(&found).unwrap().note
    };
    for why in ["read-only", "CD-ROM"] {
        assert_eq!(note(why, 0), None);
        let told = note(why, 1).unwrap();
        assert!(told.contains("/srv/ro.img was written to since the snapshot, last at 2026-03-01T02:03:04.000000001Z"), "{told}");
    }
    // The guest writes to this one.
    assert_eq!(note("left out as asked", 1), None);
}

#[test]
fn a_snapshot_is_not_copied_onto_a_backing_file_that_is_no_path() {
    let plan = |backing: &str| revert_one(&internal(backing, true));
    plan("/srv/base.img").unwrap();
    for backing in ["nbd:localhost:10809", "json:{}", "base.img", "-x", "/a\nb"] {
        refused(plan(backing), &["its backing file is no path"]);
    }
}

/// An image in which qemu-img could take a snapshot, but not apply one.
#[test]
fn an_image_that_cannot_be_rewritten_has_no_internal_snapshots() {
    let none = Ok(Vec::new());
    let sick = |change: fn(&mut qcow2::Header)| {
        let mut link = link("/srv/a.qcow2", Format::Qcow2, None);
        change(link.header.as_mut().unwrap());
        Ok(vec![link])
    };
    let bitmaps = sick(|header| header.bitmaps = 2);
    let corrupt = sick(|header| header.incompatible = 0b10);
    let unreadable = Err("/srv/a.qcow2: it is encrypted".to_owned());
    for (own, words) in [
        (bitmaps, &["2 dirty bitmaps of a backup program", "qemu-img bitmap --remove"][..]),
        (corrupt, &["marked as corrupt", "qemu-img check -r all"]),
        (unreadable, &["it is encrypted"]),
    ] {
        let seen = RunningDisk { own: own.clone(), ..seen(QCOW2) };
        refused(plan_one(&seen, None, &none), words);
        // A frozen file is only read.
        assert_eq!(plan_one(&seen, Some("external"), &none).is_ok(), own.is_ok());
        let proof = QcowSnapshot {
            id: "1".into(),
            name: "s1".into(),
            date: "2026-03-01T02:03:04Z".parse().unwrap(),
        };
        let json = serde_json::json!({
            "filename": "/srv/a.qcow2", "format": "qcow2", "virtual-size": 1 << 20,
            "snapshots": [{"id": "1", "name": "s1", "date-sec": 1772330584, "date-nsec": 0}],
        });
        let image = qemu_img::ImageInfo::parse(json.to_string().as_bytes()).unwrap();
        let kept = DiskSnapshot::Internal(Internal { proof: Some(proof), bases: None });
        let in_place = SnapshotDisk { own, image: Ok(image), ..found("/srv/a.qcow2", kept) };
        if in_place.own.is_ok() {
            refused(revert_one(&in_place), words);
        }
        if in_place.header().is_some_and(|header| header.bitmaps > 0) {
            // Not in the file yet: QEMU writes them when it ends.
            let mut live = in_place.clone();
            let clean = qcow2::Header { refcount_order: 4, ..qcow2::Header::default() };
            live.own.as_mut().unwrap()[0].header = Some(clean);
            live.top_id = Some(facts().id());
            live.live_bitmaps = 1;
            refused(revert_one(&live), &["1 dirty bitmap of"]);
        }
        // A base is only read: the snapshot is copied out of it.
        let mut marked = in_place;
        marked.file.as_mut().unwrap().writable = false;
        revert_one(&marked).unwrap();
    }
}

#[test]
fn each_kind_tells_what_it_needs() {
    let alone = |path: &str| Requirement::ExclusiveFile(path.into());
    let still = |path: &str| Requirement::UnwrittenFile(path.into());
    let internal = DiskSnapshot::Internal(Internal { proof: None, bases: None });
    let external = DiskSnapshot::External(External { overlay: "/srv/o".into(), proof: None });
    let copy = DiskSnapshot::Reflink(Reflink { copy: "/srv/copy".into(), proof: None });
    let lvm = |size| {
        DiskSnapshot::Lvm(Lvm {
            group: "vg0".into(),
            volume: "a".into(),
            snapshot: "a.s1".into(),
            size,
        })
    };
    let of =
        |kept: &DiskSnapshot, for_new_domain| needs(&found("/srv/a", kept.clone()), for_new_domain);
    assert_eq!(of(&internal, false), [alone("/srv/a")]);
    assert_eq!(of(&internal, true), [Requirement::Inside("/srv/a".into())]);
    assert_eq!(of(&external, false), [still("/srv/a")]);
    let renames = Requirement::WritableDirectory("/srv".into());
    assert_eq!(of(&copy, false), [still("/srv/copy"), still("/srv/a"), renames]);
    assert_eq!(of(&copy, true), [still("/srv/copy")]);
    assert_eq!(of(&lvm(Some(1)), false), [alone("/dev/vg0/a"), Requirement::VolumeArchive]);
    // A thick volume is copied into an image.
    assert_eq!(of(&lvm(Some(1)), true), []);
    for for_new_domain in [false, true] {
        assert_eq!(of(&lvm(None), for_new_domain), [Requirement::VolumeArchive]);
    }
    assert_eq!(of(&DiskSnapshot::None(LeftOut { why: "CD-ROM".into() }), false), []);
    let mut on_base = found("/srv/a", external);
    on_base.below = Ok(vec![("/srv/base".into(), facts().mtime)]);
    assert_eq!(needs(&on_base, false), [still("/srv/a"), still("/srv/base")]);
    // A base is copied from, not rewritten.
    let mut marked = found("/srv/a", internal);
    marked.file.as_mut().unwrap().writable = false;
    assert_eq!(needs(&marked, false), [still("/srv/a")]);
}

#[test]
fn one_file_that_is_two_disks_is_refused() {
    let qcow2 = |vdev: &str| {
        let mut disk = seen(QCOW2);
        disk.disk.vdev = vdev.into();
        disk
    };
    let planned = |disks: &[RunningDisk], choice| -> Vec<DiskCreate> {
        disks.iter().map(|disk| plan_one(disk, choice, &Ok(Vec::new())).unwrap()).collect()
    };
    let mut disks = [qcow2("xvda"), qcow2("xvdb")];
    disks[1].file.as_mut().unwrap().inode = disks[0].file.as_ref().unwrap().inode;
    refused(
        check_twice(&disks, &planned(&disks, None)).map(|()| "taken"),
        &["Disk xvdb", "xvda of the same domain is that file too"],
    );
    check_twice(&disks, &planned(&disks, Some("none"))).unwrap();
    disks[1].file.as_mut().unwrap().inode += 1;
    check_twice(&disks, &planned(&disks, None)).unwrap();
}

#[test]
fn what_a_disk_rests_on_must_be_older_than_now() {
    let now = facts().mtime;
    let at = |seconds| now + jiff::SignedDuration::from_secs(seconds);
    let on =
        |seconds| RunningDisk { below: Some(("/srv/base".into(), at(seconds))), ..seen(QCOW2) };
    let check = |disk: RunningDisk, choice| {
        let planned = plan_one(&disk, choice, &Ok(Vec::new())).unwrap();
        check_clock(&[disk], &[planned], now)
    };
    check(on(0), None).unwrap();
    check(on(9), Some("none")).unwrap();
    refused(
        check(on(1), None).map(|()| "taken"),
        &["its base /srv/base was written to at", "a revert could not"],
    );
}
