//! Disks without memory.

use super::kinds::{seen_with, volume, volumes};
use super::*;
use crate::disk::vhd;
use crate::domain::Format;
use crate::model::Guest;
use crate::plan::faults::try_every_fault;
use crate::record::DisksOnly;
use crate::support::disks as disk;

pub(super) fn alone(disks: &[&str], crash_consistent: bool) -> Job {
    let mut job = job("s1", disks);
    job.request.record = Some("/root/web1.record".into());
    job.request.disk_only = crash_consistent;
    job.request.crash_consistent = crash_consistent;
    job
}

/// As a domain that does not run, with a configuration file.
fn off(mut seen: CreateInput) -> CreateInput {
    seen.domain.domid = 0;
    seen.state = State::Off;
    seen.cfg = Some("/etc/xen/web1.cfg".into());
    seen.monitor = None;
    for disk in &mut seen.disks {
        disk.served = Some(Served::Nobody);
    }
    recorded(seen)
}

pub(super) fn recorded(mut seen: CreateInput) -> CreateInput {
    seen.cfg = Some("/etc/xen/web1.cfg".into());
    seen.image = ImagePlace::Record { path: "/root/web1.record".into(), trouble: None };
    seen
}

fn rewrites() -> Rewrites {
    let cfg = ReplaceCfg {
        path: "/etc/xen/web1.cfg".into(),
        old: "old".into(),
        new: "new".into(),
        backup: "/etc/xen/web1.cfg.bak-s1".into(),
        entries: Vec::new(),
    };
    Rewrites { cfg: Some(cfg), stored: Some(("old".into(), "new".into())) }
}

pub(super) fn planned(job: &Job, seen: &CreateInput) -> Result<Plan> {
    super::super::plan(job, seen, &disks(job, seen)?, &rewrites())
}

pub(super) fn record(plan: &Plan) -> &Record {
    let record = plan.prepare.iter().find_map(|step| match step {
        Step::OpenRecord { record, .. } => Some(record),
        _ => None,
    });
    record.expect("every such plan makes a record")
}

#[test]
fn of_a_domain_that_does_not_run() {
    let job = alone(&[], false);
    let plan = planned(&job, &off(seen(&job))).unwrap();
    assert_eq!(
        plan.to_string(),
        "\
Snapshot s1 of the disks of web1:
   1   make /srv/web1-xvdb.after-s1.qcow2: qemu-img create -q -u -f qcow2 -F raw -b /srv/b.img /srv/web1-xvdb.after-s1.qcow2 67108864
   2   make /srv/b.img read-only: it becomes a base
   3   open the record /root/web1.record.partial
   4   check that web1 does not run
   5   take the internal snapshot s1 in /srv/a.qcow2
   6   make /etc/xen/web1.cfg name the new images, and keep the old one as /etc/xen/web1.cfg.bak-s1
   7   complete the record, sync it and rename it to its final name
note: disk hdc is not in the snapshot: CD-ROM
"
    );
    let record = record(&plan);
    assert_eq!((record.disks_only, record.live), (Some(DisksOnly::Offline), false));
    assert_eq!(record.domain.cfg.as_deref(), Some(Path::new("/etc/xen/web1.cfg")));
    assert!(!record.complete);
}

#[test]
fn of_one_that_runs_all_at_one_instant() {
    let mut job = alone(&["xvdc,external"], true);
    job.name = "s2".parse().unwrap();
    let qcow = disk::seen(&disk::QCOW2.replace("xvda", "xvdc").replace("a.qcow2", "c.qcow2"));
    let mut seen = recorded(seen_with(&job, vec![volume("xvdb", 0), qcow]));
    seen.volumes = Ok(volumes());
    let plan = planned(&job, &seen).unwrap();
    let at = |step: fn(&Step) -> bool| plan.prepare.iter().position(step).unwrap();
    let hold = at(|step| matches!(step, Step::StopXl { .. }));
    let pause = at(|step| matches!(step, Step::Pause { .. }));
    let lvm = at(|step| matches!(step, Step::Undoable { .. }));
    let same = at(|step| matches!(step, Step::CheckConfig { .. }));
    let store = at(|step| matches!(step, Step::StoreConfig(_)));
    assert!(hold < pause && pause < lvm && lvm < same && same < store, "{plan}");
    assert!(matches!(plan.commit, Some(Step::Transaction { .. })));
    assert_eq!(plan.finish[0].to_string(), "unpause domain 3");
    assert!(plan.finish.contains(&Step::CompleteRecord));
    assert_eq!(record(&plan).disks_only, Some(DisksOnly::CrashConsistent));
    assert!(plan.to_string().contains("| the guest is paused"));
}

#[test]
fn one_step_is_one_instant() {
    let stops = |plan: &Plan| plan.prepare.iter().any(Step::pauses_guest);
    // One transaction for all disks.
    let job = alone(&[], true);
    let running = recorded(seen(&job));
    assert!(!stops(&planned(&job, &running).unwrap()));
    // A guest that an administrator has paused stays paused.
    let mut copied = alone(&["xvdb,reflink"], true);
    assert!(stops(&planned(&copied, &running).unwrap()));
    let paused = CreateInput { state: State::Paused, ..running.clone() };
    let plan = planned(&copied, &paused).unwrap();
    assert!(!stops(&plan) && !plan.finish.iter().any(Step::resumes_guest));
    // `--paused` leaves it paused.
    copied.request.paused = true;
    let plan = planned(&copied, &running).unwrap();
    assert!(stops(&plan) && !plan.finish.iter().any(Step::resumes_guest));
    let mut at_once = alone(&[], true);
    at_once.request.paused = true;
    let plan = planned(&at_once, &running).unwrap();
    assert_eq!(plan.finish[0].to_string(), "pause domain 3");
}

#[test]
fn every_fault_of_disks_alone() {
    let offline = alone(&[], false);
    let plan = planned(&offline, &off(seen(&offline))).unwrap();
    assert!(try_every_fault(&plan, Guest::Gone) > 20);
    for (options, paused) in
        [(&[][..], false), (&["xvdb,reflink"], false), (&["xvdb,reflink"], true)]
    {
        let mut job = alone(options, true);
        job.request.paused = paused;
        let plan = planned(&job, &recorded(seen(&job))).unwrap();
        assert!(try_every_fault(&plan, Guest::Runs) > 20);
    }
}

#[test]
fn every_kind_of_disk_can_be_taken_of_a_domain_that_does_not_run() {
    let job = alone(&["xvdd,reflink"], false);
    let copied = disk::seen(&disk::LOOP.replace("xvdb", "xvdd").replace("b.img", "d.img"));
    let mut seen = seen_with(&job, vec![disk::seen(disk::LOOP), disk::seen(disk::TAP), copied]);
    let node = seen.disks[0].node.clone().unwrap();
    for disk in &mut seen.disks {
        disk.node = Some(Node { file: disk.disk.path.clone(), ..node.clone() });
    }
    let seen = off(seen);
    let disks = disks(&job, &seen).unwrap();
    assert!(disks.iter().all(|disk| !disk.by_restore && disk.action.is_none()));
    let child = vhd::target(Path::new("/srv/web1-xvdc.after-s1.vhd"));
    assert_eq!(disks[2].switch, Some((child, Format::Raw)));
    let plan = super::super::plan(&job, &seen, &disks, &rewrites()).unwrap();
    assert!(try_every_fault(&plan, Guest::Gone) > 20);
}

pub(super) fn refusal(job: &Job, seen: &CreateInput) -> (Kind, String) {
    let error = planned(job, seen).unwrap_err();
    (error.kind, error.chain().join(": ") + ": " + error.hint.as_deref().unwrap_or_default())
}

#[test]
fn disks_of_a_running_guest_are_refused_with_the_reason() {
    let why = "without its memory, the disks of a running guest are what a power cut leaves";
    for disk_only in [false, true] {
        let mut job = alone(&[], false);
        job.request.disk_only = disk_only;
        let (kind, text) = refusal(&job, &recorded(seen(&job)));
        assert_eq!(kind, Kind::Refused);
        assert!(text.contains(why) && text.contains("--disk-only --crash-consistent"), "{text}");
    }
    let job = alone(&[], true);
    let unknown = CreateInput { cfg: None, ..recorded(seen(&job)) };
    let (kind, text) = refusal(&job, &unknown);
    assert_eq!(kind, Kind::Refused);
    assert!(text.contains("has no known xl configuration file"), "{text}");
    let mut on_loop = recorded(seen(&job));
    on_loop.disks[1] = disk::seen(disk::LOOP);
    let (kind, text) = refusal(&job, &on_loop);
    assert_eq!(kind, Kind::Refused);
    assert!(text.contains("cannot be switched while it runs"), "{text}");
}

#[test]
fn what_else_is_refused() {
    let refused = |kind, words: &str, change: &dyn Fn(&mut Job, &mut CreateInput)| {
        let mut job = alone(&[], false);
        let mut seen = off(seen(&job));
        change(&mut job, &mut seen);
        let (seen, text) = refusal(&job, &seen);
        assert!(seen == kind && text.contains(words), "{text}");
    };
    refused(Kind::Usage, "cannot be left paused", &|job, _| job.request.paused = true);
    refused(Kind::Usage, "--record FILE", &|job, _| {
        job.request.record = None;
        job.request.disk_only = true;
    });
    refused(Kind::Refused, "does not run", &|job, _| job.request.record = None);
    refused(Kind::Refused, "x exists", &|_, seen| {
        seen.image = ImagePlace::Record { path: "/x".into(), trouble: Some("x exists".into()) };
    });
    refused(Kind::Refused, "disk xvda of domain web2 may write", &|_, seen| {
        seen.disks[0].used_by = Some("disk xvda of domain web2".into());
    });
    refused(Kind::Refused, "already has a snapshot \"s1\"", &|_, seen| {
        seen.disks[0].node.as_mut().unwrap().snapshots[0].name = "s1".into();
    });
    refused(Kind::Refused, "qemu-img said no", &|_, seen| {
        seen.disks[0].file = Err("qemu-img said no".into());
    });
    let mut open = off(seen(&alone(&[], false)));
    open.disks = vec![volume("xvdb", 0)];
    open.disks[0].served = Some(Served::Nobody);
    let mut all = volumes();
    all.iter_mut().for_each(|volume| volume.open = true);
    open.volumes = Ok(all);
    let (_, text) = refusal(&alone(&[], false), &open);
    assert!(text.contains("another program has it open"), "{text}");
}

#[test]
fn what_is_said_of_memory_is_a_mistake_then() {
    let merged = |change: fn(&mut Spec)| {
        let mut flags = Spec { record: Some("/r".into()), ..Spec::default() };
        change(&mut flags);
        flags.request()
    };
    merged(|_| {}).unwrap();
    type Case = (fn(&mut Spec), &'static str);
    let cases: [Case; 6] = [
        (|flags| flags.memory = Some("/m".into()), "--memory is for"),
        (|flags| flags.live = Some(true), "--live or --no-live"),
        (|flags| flags.live = Some(false), "--live or --no-live"),
        (|flags| flags.compress = Some("zstd".into()), "--compress"),
        (|flags| flags.crash_consistent = true, "is for --disk-only"),
        (
            |flags| {
                flags.record = None;
                flags.disk_only = true;
                flags.crash_consistent = true;
            },
            "known by its record",
        ),
    ];
    for (change, words) in cases {
        let error = merged(change).unwrap_err();
        assert_eq!(error.kind, Kind::Usage);
        assert!(error.message.contains(words), "{}", error.message);
        assert!(error.hint.is_some());
    }
}
