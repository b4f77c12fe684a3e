//! Disks of a running guest whose file systems are frozen meanwhile.

use super::without_memory::{alone, planned, record, recorded, refusal};
use super::*;
use crate::model::Guest;
use crate::plan::Freeze;
use crate::plan::faults::try_every_fault;
use crate::quiesce::{AgentChannel, FreezeMethod, QuiesceOptions};
use crate::record::DisksOnly;

fn quiesced(options: &[&str]) -> Job {
    let mut job = alone(options, true);
    job.request.crash_consistent = false;
    job.request.quiesce = QuiesceOptions::new(Some("agent"), None).unwrap();
    job
}

fn reached(job: &Job, way: FreezeMethod) -> CreateInput {
    CreateInput { way: Some(way), ..recorded(seen(job)) }
}

fn agent() -> FreezeMethod {
    FreezeMethod::Agent(AgentChannel::Socket("/run/xen/qga.sock".into()))
}

#[test]
fn nothing_is_done_in_the_freeze_that_could_be_done_before() {
    let job = quiesced(&[]);
    let plan = planned(&job, &reached(&job, agent())).unwrap();
    assert_eq!(
        plan.to_string(),
        "\
Snapshot s1 of the disks of web1:
   1   check that the guest agent of web1 (3) answers at /run/xen/qga.sock, and nothing is frozen
   2   send QEMU the transaction, except its last byte
   3   make /srv/web1-xvdb.after-s1.qcow2: qemu-img create -q -u -f qcow2 -F raw -b /srv/b.img /srv/web1-xvdb.after-s1.qcow2 67108864
   4   make /srv/b.img read-only: it becomes a base
   5   open the record /root/web1.record.partial
   6   stop the domain's xl process 77
   7   freeze the file systems of web1 (3), for 10 s at most, by the guest agent at /run/xen/qga.sock
   8   check that the configuration of domain 3 has not changed
   9   store libxl's configuration: xvdb -> /srv/web1-xvdb.after-s1.qcow2
  10   store xl's configuration: xvdb -> /srv/web1-xvdb.after-s1.qcow2
  11   check that the file systems of web1 (3) are still frozen
  12   snapshot the disks in one QMP transaction: xvda internal s1; xvdb to overlay /srv/web1-xvdb.after-s1.qcow2
  13   thaw the file systems of web1 (3), by the guest agent at /run/xen/qga.sock
  14   write to xenstore: /libxl/3/xvdb/params = qcow2:/srv/web1-xvdb.after-s1.qcow2
  15   continue the domain's xl process 77
  16   note in the record that the file systems of web1 (3) were frozen
  17   complete the record, sync it and rename it to its final name
  18   make /etc/xen/web1.cfg name the new images, and keep the old one as /etc/xen/web1.cfg.bak-s1
note: disk hdc is not in the snapshot: CD-ROM
note: while the file systems of web1 are frozen, whatever writes there waits, for 10 s at most
"
    );
    // The record states only what has been confirmed.
    assert_eq!(record(&plan).disks_only, Some(DisksOnly::CrashConsistent));
    assert_eq!(record(&plan).quiesced, None);
    let thaw = plan.finish[0].by_hand().unwrap();
    let wanted = r#"printf '\377{"execute":"guest-fsfreeze-thaw"}\n' | socat -t 5 - UNIX-CONNECT:/run/xen/qga.sock"#;
    assert_eq!(thaw, wanted);
}

#[test]
fn a_guest_that_stands_still_is_thawed_when_it_runs_again() {
    let job = quiesced(&["xvdb,reflink"]);
    let plan = planned(&job, &reached(&job, agent())).unwrap();
    let at = |step: fn(&Step) -> bool| plan.prepare.iter().position(step).unwrap();
    let begin = at(|step| matches!(step, Step::Freeze(Freeze::Begin { .. })));
    let pause = at(|step| matches!(step, Step::Pause { .. }));
    assert!(begin < pause, "{plan}");
    assert!(matches!(plan.finish[0], Step::UnpauseExisting { .. }), "{plan}");
    assert!(matches!(plan.finish[1], Step::Freeze(Freeze::Thaw { .. })), "{plan}");
}

#[test]
fn whatever_fails_the_guest_is_thawed() {
    for options in [&[][..], &["xvdb,reflink"]] {
        for way in [agent(), FreezeMethod::Program("/usr/local/sbin/freeze".into())] {
            let job = quiesced(options);
            let plan = planned(&job, &reached(&job, way)).unwrap();
            assert!(try_every_fault(&plan, Guest::Runs) > 40);
        }
    }
}

#[test]
fn a_guest_that_cannot_thaw_is_refused() {
    let job = quiesced(&[]);
    let paused = CreateInput { state: State::Paused, ..reached(&job, agent()) };
    let (kind, text) = refusal(&job, &paused);
    assert_eq!(kind, Kind::Refused);
    assert!(text.contains("xl unpause web1"), "{text}");
}

#[test]
fn a_domain_that_does_not_run_needs_no_freeze() {
    let job = quiesced(&[]);
    let mut seen = recorded(seen(&job));
    (seen.state, seen.monitor, seen.domain.domid) = (State::Off, None, 0);
    seen.disks.iter_mut().for_each(|disk| disk.served = Some(Served::Nobody));
    let plan = planned(&job, &seen).unwrap();
    assert!(!plan.to_string().contains("freeze the"), "{plan}");
    assert!(plan.notes.iter().any(|note| note.contains("--quiesce has no effect")), "{plan}");
    assert_eq!(record(&plan).disks_only, Some(DisksOnly::Offline));
}

#[test]
fn what_does_not_go_with_a_freeze_is_a_mistake() {
    let merged = |change: fn(&mut Spec)| {
        let mut flags = Spec {
            record: Some("/r".into()),
            disk_only: true,
            quiesce: Some("agent".into()),
            ..Spec::default()
        };
        change(&mut flags);
        flags.request()
    };
    let limit = |request: Request| request.quiesce.unwrap().limit;
    assert_eq!(limit(merged(|_| {}).unwrap()), Duration::from_secs(10));
    let short = merged(|flags| flags.freeze_timeout = Some(0.5)).unwrap();
    assert_eq!(limit(short), Duration::from_millis(500));
    merged(|flags| flags.quiesce = Some("/usr/local/sbin/freeze".into())).unwrap();
    type Case = (fn(&mut Spec), &'static str);
    let cases: [Case; 8] = [
        (|flags| flags.disk_only = false, "--quiesce is for --disk-only"),
        (|flags| flags.crash_consistent = true, "contradict each other"),
        (|flags| flags.paused = true, "cannot thaw"),
        (|flags| flags.record = None, "known by its record"),
        (|flags| flags.quiesce = Some("freeze".into()), "--quiesce \"freeze\""),
        (|flags| flags.freeze_timeout = Some(0.0), "The limit of the freeze"),
        (|flags| flags.freeze_timeout = Some(601.0), "The limit of the freeze"),
        (
            |flags| {
                flags.quiesce = None;
                flags.freeze_timeout = Some(5.0);
            },
            "--freeze-timeout is for --quiesce",
        ),
    ];
    for (change, words) in cases {
        let error = merged(change).unwrap_err();
        assert_eq!(error.kind, Kind::Usage, "{words}");
        assert!(error.message.contains(words), "{}", error.message);
        assert!(error.hint.is_some());
    }
    let spec = "quiesce = \"agent\"\nfreeze_timeout = 3\ndisk_only = true\nrecord = \"r\"\n";
    let spec = Spec::parse(spec, Path::new("/s/s.toml")).unwrap();
    let request = spec.clone().request().unwrap();
    assert_eq!(limit(request), Duration::from_secs(3));
    let flags = Spec { freeze_timeout: Some(4.0), ..Spec::default() };
    assert_eq!(limit(flags.over(spec).request().unwrap()), Duration::from_secs(4));
}
