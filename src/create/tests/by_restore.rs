//! Disks that cannot be switched under a running guest: the domain is restored on the new images.

use super::*;
use crate::domain::Format;
use crate::need::{Severity, Trouble};
use crate::plan::{Action, undo};

/// [`seen`], with xvdb on a loop device that blkback serves.
pub(super) fn seen_on_loop(job: &Job) -> CreateInput {
    let mut seen = seen(job);
    seen.stored = CONFIG.replace("\"qdisk\"", "\"phy\"");
    seen.config = DomainConfig::parse(&seen.stored).unwrap();
    seen.disks[1].served = Some(Served::Blkback);
    seen.disks[1].node = None;
    seen
}

pub(super) fn planned(disks: &[&str], change: impl FnOnce(&mut Job)) -> Plan {
    let mut job = job("s1", disks);
    change(&mut job);
    plan(&job, &seen_on_loop(&job)).unwrap()
}

#[test]
fn the_plan_of_a_qcow2_image_and_a_loop_file() {
    assert_eq!(
        planned(&[], |_| {}).to_string(),
        "\
Snapshot s1 of web1:
   1   send QEMU the transaction, except its last byte
   2   make /srv/web1-xvdb.after-s1.qcow2: qemu-img create -q -u -f qcow2 -F raw -b /srv/b.img /srv/web1-xvdb.after-s1.qcow2 1048576
   3   make /srv/b.img read-only: it becomes a base
   4   open the memory image /var/lib/xen/snapshots/web1/s1.xlsave.partial
   5   stop the domain's xl process 77
   6   check once more that all that the restore needs is there
   7   save the memory of domain 3 while it runs, then suspend it
   8 | sync the memory image and read it back
   9 | check once more that all that the restore needs is there
  10 | check that domain 3 is still suspended, configured as before
  11 | snapshot the disks in one QMP transaction: xvda internal s1
  12 | continue the domain's xl process 77
  13 | destroy domain 3 and wait until its QEMU has ended
  14 | wait until domain 3 is completely destroyed
  15 | complete the record, sync the image and rename it to its final name
  16 | restore web1 with xl, paused
  17 | unpause web1
  18   write the checksums of the memory into the image
     | the guest is paused
note: disk hdc is not in the snapshot: CD-ROM
note: nothing can switch xvdb under a running guest: the domain is restored from its image, with a new number, and is paused for as long as that takes
note: xvdb could be copied in an instant instead: --disk xvdb,reflink
"
    );
}

#[test]
fn a_copy_is_offered_only_where_the_file_system_can_make_one() {
    let job = job("s1", &[]);
    let mut seen = seen_on_loop(&job);
    seen.disks[1].clone_trouble = Some("ext4".into());
    assert!(!plan(&job, &seen).unwrap().to_string().contains("reflink"));
}

#[test]
fn a_new_overlay_needs_xens_qemu_and_a_copy_does_not() {
    let lacks = |wish: &[&str]| {
        let job = job("s1", wish);
        let mut seen = seen_on_loop(&job);
        seen.overlay_troubles = vec![Trouble {
            rank: Severity::Missing,
            about: "web1 cannot be restored".into(),
            why: "xen-qemu: No such file".into(),
            hint: "install it".into(),
        }];
        plan(&job, &seen)
    };
    let error = lacks(&["xvda,none"]).unwrap_err();
    assert_eq!(error.kind, Kind::Refused);
    assert!(error.chain().join(": ").contains("xen-qemu: No such file"), "{error}");
    lacks(&["xvda,none", "xvdb,reflink"]).unwrap();
}

#[test]
fn without_qemu_there_is_no_transaction() {
    let plan = planned(&["xvda,none"], |_| {});
    assert_eq!(plan.commit, None);
    assert!(matches!(
        plan.prepare[..],
        [
            ..,
            Step::Suspend { .. },
            Step::SyncAndVerifyImage,
            Step::CheckNeeds { .. },
            Step::CheckSuspended { .. }
        ]
    ));
}

#[test]
fn what_qemu_serves_is_switched_by_it_all_the_same() {
    let plan = planned(&["xvda,external"], |_| {});
    let Some(Step::Transaction { actions, .. }) = &plan.commit else { panic!("no transaction") };
    assert!(matches!(&actions[..], [Action::Overlay { vdev, .. }] if vdev == "xvda"));
    let config = restored_config(&plan);
    let paths: Vec<_> = config.disks().unwrap().into_iter().map(|disk| disk.path).collect();
    assert_eq!(
        paths,
        ["/srv/web1-xvda.after-s1.qcow2", "/srv/web1-xvdb.after-s1.qcow2", "/srv/c.iso"]
            .map(PathBuf::from)
    );
}

/// The configuration that the domain is restored with.
fn restored_config(plan: &Plan) -> DomainConfig {
    let config = plan.onward.iter().find_map(|step| match step {
        Step::Restore { config, .. } => Some(config),
        _ => None,
    });
    DomainConfig::parse(config.unwrap()).unwrap()
}

#[test]
fn the_domain_is_restored_on_the_overlay_which_only_qemu_can_serve() {
    let plan = planned(&[], |_| {});
    let config = restored_config(&plan);
    let disk = &config.disks().unwrap()[1];
    assert_eq!(disk.path, Path::new("/srv/web1-xvdb.after-s1.qcow2"));
    assert_eq!(disk.format, Some(Format::Qcow2));
    assert!(!config.to_json().contains("phy"), "{}", config.to_json());
    // Everything else is unchanged.
    let mut back = config.clone();
    back.set_image("xvdb", Path::new("/srv/b.img"), Format::Raw).unwrap();
    let was = CONFIG.replace("\"backend\": \"qdisk\", ", "");
    assert_eq!(back, DomainConfig::parse(&was).unwrap());
}

#[test]
fn it_is_restored_from_the_image_it_was_saved_to() {
    let plan = planned(&[], |_| {});
    let image = PathBuf::from("/var/lib/xen/snapshots/web1/s1.xlsave");
    assert!(
        plan.onward
            .iter()
            .any(|step| matches!(step, Step::Restore { image: Some(path), .. } if *path == image))
    );
    let Some(Step::OpenImage(start)) =
        plan.prepare.iter().find(|step| matches!(step, Step::OpenImage(_)))
    else {
        panic!("no image")
    };
    assert_eq!(start.target, Target::File(image));
    // The image has the previous configuration, for revert and for a plain xl restore.
    assert!(start.config.contains("phy") && !start.config.contains("after-s1"));
}

#[test]
fn an_image_on_standard_output_cannot_be_restored_from() {
    let (kind, text) = refusal(&[], |seen| {
        *seen = seen_on_loop(&job("s1", &[]));
        seen.image = ImagePlace::Stdout;
    });
    assert_eq!(kind, Kind::Refused);
    assert!(
        text.contains(
            "Domain web1 must be restored from the image, but the image goes to standard output"
        ),
        "{text}"
    );
    let job = job("s1", &[]);
    let seen = CreateInput { image: ImagePlace::Stdout, ..seen_on_loop(&job) };
    let hint = plan(&job, &seen).unwrap_err().hint.unwrap();
    assert!(hint.contains("--memory FILE"), "{hint}");
}

#[test]
fn a_domain_that_is_to_be_paused_stays_as_it_was_restored() {
    let unpause = |plan: &Plan| {
        let steps = [&plan.onward[..], &plan.finish].concat();
        steps.iter().filter(|step| matches!(step, Step::Unpause { .. })).count()
    };
    assert_eq!(unpause(&planned(&[], |_| {})), 1);
    let paused = planned(&[], |job| job.request.paused = true);
    assert_eq!(unpause(&paused), 0);
    assert!(matches!(paused.onward.last(), Some(Step::Restore { .. })));
}

#[test]
fn the_xl_process_continues_before_its_domain_is_destroyed() {
    let order = words(&planned(&[], |_| {}).onward);
    assert_eq!(
        order[..2],
        [
            "continue the domain's xl process 77",
            "destroy domain 3 and wait until its QEMU has ended"
        ]
    );
    let job = job("s1", &[]);
    let seen = CreateInput { monitor: None, ..seen_on_loop(&job) };
    let plan = plan(&job, &seen).unwrap();
    assert!(matches!(&plan.onward[0], Step::Destroy { domain, .. } if domain.domid == 3));
}

#[test]
fn an_xl_process_that_survives_a_suspend_is_not_stopped() {
    let job = job("s1", &[]);
    for (xen, held) in [("4.17.7", true), ("4.20.1", false)] {
        let by_restore = CreateInput { xen: xen.into(), ..seen_on_loop(&job) };
        let by_qemu = CreateInput { xen: xen.into(), ..seen(&job) };
        for seen in [by_restore, by_qemu] {
            let plan = plan(&job, &seen).unwrap();
            let steps = [&plan.prepare[..], &plan.onward, &plan.finish].concat();
            let holds =
                |step: &&Step| matches!(step, Step::StopXl { .. } | Step::ContinueXl { .. });
            assert_eq!(steps.iter().filter(holds).count(), if held { 2 } else { 0 }, "{xen}");
        }
    }
}

#[test]
fn the_image_is_complete_before_anything_is_restored_from_it() {
    let onward = planned(&[], |_| {}).onward;
    let at = |wanted: fn(&Step) -> bool| onward.iter().position(wanted).unwrap();
    let complete = at(|step| *step == Step::CompleteImage);
    assert!(at(|step| matches!(step, Step::Destroy { .. })) < complete);
    assert!(complete < at(|step| matches!(step, Step::Restore { .. })));
}

#[test]
fn the_checksums_are_written_when_the_guest_runs_again() {
    for (compress, expected) in [(None, true), (Some("zstd"), false)] {
        let plan = planned(&[], |job| {
            job.request.compress = compress.map(|text| text.parse().unwrap());
        });
        let at = plan.finish.iter().position(|step| *step == Step::AddSums);
        let runs = plan.finish.iter().position(|step| matches!(step, Step::Unpause { .. }));
        assert_eq!(at.is_some(), expected);
        assert!(at.is_none_or(|at| runs.unwrap() < at));
    }
}

#[test]
fn nothing_is_written_to_what_is_destroyed_anyway() {
    for disks in [&[][..], &["xvda,external"]] {
        let plan = planned(disks, |_| {});
        let steps = [&plan.prepare[..], &plan.onward, &plan.finish].concat();
        assert!(!steps.iter().any(|step| {
            matches!(
                step,
                Step::StoreConfig(_) | Step::Xenstore(_) | Step::Resume { .. } | Step::Pause { .. }
            )
        }));
    }
}

#[test]
fn everything_before_the_transaction_can_be_taken_back() {
    assert_eq!(
        words(&undo(&planned(&[], |_| {}).prepare)),
        [
            "resume domain 3",
            "continue the domain's xl process 77",
            "remove the unfinished memory image",
            "make /srv/b.img writable again",
            "remove /srv/web1-xvdb.after-s1.qcow2",
            "cancel the transaction",
        ]
    );
}

#[test]
fn a_domain_that_is_down_can_be_brought_back_whether_the_image_is_complete_or_not() {
    let plan = planned(&[], |_| {});
    assert_eq!(plan.on_failure.steps, [], "nothing may be removed: the snapshot needs it");
    let remaining = &plan.on_failure.remaining;
    let commands: Vec<_> =
        remaining.iter().filter_map(|remaining| remaining.command.as_deref()).collect();
    assert_eq!(
        commands,
        [
            "xl-snapshot revert /var/lib/xen/snapshots/web1/s1.xlsave",
            "xl destroy web1; xl restore /var/lib/xen/snapshots/web1/s1.xlsave.partial",
        ]
    );
    assert!(
        remaining.iter().all(|remaining| remaining.what.starts_with("Domain web1 does not run"))
    );
    let way_out = plan.onward.iter().find_map(|step| match step {
        Step::Destroy { way_out, .. } => Some(way_out),
        _ => None,
    });
    // While the domain is being destroyed the image is not complete.
    assert_eq!(way_out, Some(&remaining[1]));
}

#[test]
fn before_the_domain_is_destroyed_all_of_its_memory_is_in_the_image() {
    let plan = planned(&[], |job| job.request.compress = Some("zstd".parse().unwrap()));
    let at = |wanted: &Step| plan.prepare.iter().position(|step| step == wanted);
    let suspend = plan.prepare.iter().position(|step| matches!(step, Step::Suspend { .. }));
    assert_eq!(at(&Step::FinishCompression), suspend.map(|suspend| suspend + 1));
    assert_eq!(at(&Step::SyncAndVerifyImage), suspend.map(|suspend| suspend + 2));
    assert_eq!(
        plan.on_failure.remaining[1].command.as_deref(),
        Some(
            "xl destroy web1; zstd -dc </var/lib/xen/snapshots/web1/s1.xlsave.partial \
             | xl restore /dev/stdin"
        )
    );
}

#[test]
fn the_pause_of_a_restore_has_no_limit() {
    let mut job = job("s1", &[]);
    job.request.max_pause = Some(Duration::from_secs(5));
    let error = plan(&job, &seen_on_loop(&job)).unwrap_err();
    assert_eq!(error.kind, Kind::Refused);
    assert!(format!("{error:?}").contains("switching xvdb requires a restore"), "{error:?}");
}

#[test]
fn what_is_typed_is_quoted() {
    let job = job("s1", &[]);
    let path = PathBuf::from("/srv/my images/s1.xlsave");
    let image = ImagePlace::File { path, trouble: None, free: 1 << 40 };
    let plan = plan(&job, &CreateInput { image, ..seen_on_loop(&job) }).unwrap();
    let command = plan.on_failure.remaining[0].command.as_deref();
    assert_eq!(command, Some("xl-snapshot revert '/srv/my images/s1.xlsave'"));
}

#[test]
fn a_guest_that_would_not_come_back_is_not_restored() {
    let trouble = Trouble {
        rank: Severity::Missing,
        about: "Disk hdc (/srv/c.iso) cannot be used".into(),
        why: "/srv/c.iso: No such file".into(),
        hint: "put it back".into(),
    };
    let job = job("s1", &[]);
    let seen = CreateInput { troubles: vec![trouble.clone()], ..seen_on_loop(&job) };
    let error = plan(&job, &seen).unwrap_err();
    assert_eq!((error.kind, error.message), (Kind::Refused, trouble.about.clone()));
}

#[test]
fn what_a_revert_would_lack_is_told() {
    let trouble = Trouble {
        rank: Severity::Missing,
        about: "web1 cannot be restored".into(),
        why: "no bridge".into(),
        hint: "make it".into(),
    };
    let job = job("s1", &[]);
    let seen = CreateInput { troubles: vec![trouble], ..super::seen(&job) };
    let notes = plan(&job, &seen).unwrap().notes;
    let told = "as it is now, a revert would fail: web1 cannot be restored: no bridge";
    assert!(notes.iter().any(|note| note == told), "{notes:?}");
}
