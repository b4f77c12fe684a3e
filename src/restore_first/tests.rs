//! Tests of the planner for `--restore-first`, with hand-made observations.

use super::*;
use crate::disk::Room;
use crate::disk::kinds::{DiskSnapshot, LeftOut, Lvm};
use crate::error::Kind;
use crate::model::Guest;
use crate::plan::ReplaceCfg;
use crate::plan::faults::try_every_fault;
use crate::revert::tests::{found as reverted_found, running, volumes::found_volumes};
use crate::support::volumes::REPORT;
use crate::tool::volumes;

const UUID: Uuid = Uuid::from_u128(0x11111111_2222_4333_8444_555555666666);

fn options() -> Options {
    Options {
        paused: false,
        discard_current: false,
        copy: true,
        directory: None,
        rehearse: false,
        uuid: UUID,
    }
}

fn room(free: u64) -> Room {
    Room { directory: "/srv".into(), device: 1, free: free << 20, needed: 60 << 20 }
}

/// xvda has an internal snapshot, xvdb an external one.
fn found() -> RevertInput {
    let mut found = reverted_found();
    found.disks[0].room = Some(Ok(room(100)));
    found.vm = vec![("start_time".into(), "1772330584.12".into())];
    found
}

/// The sample snapshot of a thin volume.
fn found_thin() -> RevertInput {
    let mut found = found_volumes(0);
    let disk = &mut found.disks[1];
    disk.record.path = "/dev/vg0/thin".into();
    disk.record.snapshot = DiskSnapshot::Lvm(Lvm {
        group: "vg0".into(),
        volume: "thin".into(),
        snapshot: "thin.s1".into(),
        size: None,
    });
    disk.top = Some(disk.record.path.clone());
    found.disks.remove(0);
    found.record.disks = vec![found.disks[0].record.clone()];
    found.config = DomainConfig::parse(
        r#"{"c_info": {"name": "web1", "uuid": "6f2c3c5e-7bd8-4d0e-9f3b-4d2f6f3b7a10"}, "disks": [
            {"pdev_path": "/dev/vg0/thin", "vdev": "xvdb", "backend": "phy", "format": "raw", "readwrite": 1}]}"#,
    )
    .unwrap();
    found.volumes = Ok(volumes::parse(REPORT.as_bytes()).unwrap());
    found
}

/// Two thick volumes, with a directory for their copies.
fn found_thick() -> RevertInput {
    let mut found = found_volumes(136 << 20);
    for disk in &mut found.disks {
        disk.room = Some(Ok(room(200)));
    }
    found
}

#[test]
fn the_plan() {
    let planned = plan(&found(), &options()).unwrap();
    assert_eq!(
        planned.plan.to_string(),
        "\
Revert of web1 to s1, restored first:
   1   check that domain 3 still exists
   2   make /srv/new0.qcow2: qemu-img convert -q -U -f qcow2 -O qcow2 -l 'snapshot.id=1' /srv/a.qcow2 /srv/new0.qcow2; at the same time make /srv/new1.qcow2: qemu-img create -q -u -f qcow2 -F raw -b /srv/b.img /srv/new1.qcow2 1048576
   3   wait while others are restored: one for each processor at a time
   4   restore web1 with xl as web1.restoring, paused, while domain 3 still runs
   5   check that web1.restoring is complete and paused
   6   stop the domain's xl process 77
   7   pause domain 3
   8 | rename domain 3 to web1.replaced
   9 | rename web1.restoring to web1
  10 | unpause the new web1
  11   destroy domain 3, which was replaced
  12   wait until domain 3 is completely destroyed
  13   continue the domain's xl process 77
  14   store libxl's configuration: name web1
     | the guest is paused
note: the current contents of xvda are kept in /srv/a.qcow2
note: the current contents of xvdb are kept in /srv/web1-xvdb.after-s1.qcow2
note: disk hdc is not reverted: CD-ROM
"
    );
    let restored = planned.plan.prepare.iter().find_map(|step| match step {
        Step::Switch(Switch::Restore { config, replacement }) => Some((config, replacement)),
        _ => None,
    });
    let (config, replacement) = restored.unwrap();
    assert_eq!(replacement.keys.len(), 1);
    let config = DomainConfig::parse(config).unwrap();
    let names = (config.name().unwrap(), config.uuid().unwrap());
    assert_eq!(names, ("web1.restoring", sample_uuid()));
    let paths: Vec<_> = config.disks().unwrap().into_iter().map(|disk| disk.path).collect();
    assert_eq!(paths, ["/srv/new0.qcow2", "/srv/new1.qcow2", "/srv/c.iso"].map(PathBuf::from));
    assert_eq!(planned.cfg_lines.len(), 2);
}

fn sample_uuid() -> Uuid {
    found().record.domain.uuid
}

#[test]
fn a_thin_volume_has_its_name_in_the_end() {
    let planned = plan(&found_thin(), &Options { discard_current: true, ..options() }).unwrap();
    assert_eq!(
        planned.plan.to_string(),
        "\
Revert of web1 to s1, restored first:
   1   check that domain 3 still exists
   2   run lvm lvcreate --quiet --yes --snapshot --setactivationskip n --permission rw --addtag xl-snapshot-revert:before-revert-20260302-000000 --name thin.after-revert-20260302-000000 vg0/thin.s1
   3   wait while others are restored: one for each processor at a time
   4   restore web1 with xl as web1.restoring, paused, while domain 3 still runs
   5   check that web1.restoring is complete and paused
   6   stop the domain's xl process 77
   7   pause domain 3
   8 | rename domain 3 to web1.replaced
   9 | rename web1.restoring to web1
  10 | unpause the new web1
  11   destroy domain 3, which was replaced
  12   wait until domain 3 is completely destroyed
  13   continue the domain's xl process 77
  14   rename the volume vg0/thin to thin.before-revert-20260302-000000
  15   rename the volume vg0/thin.after-revert-20260302-000000 to thin
  16   store libxl's configuration: name web1, xvdb -> /dev/vg0/thin
  17   run lvm lvremove --quiet --yes vg0/thin.before-revert-20260302-000000
     | the guest is paused
note: the current contents of xvdb are deleted: the volume vg0/thin.before-revert-20260302-000000
"
    );
    // The configuration file names it already.
    assert_eq!(planned.cfg_lines, [""; 0]);
    assert_eq!(planned.images, [Some("/dev/vg0/thin".into())]);
    assert_eq!(planned.kept, [None]);
}

#[test]
fn a_guest_that_is_paused_is_not_paused_again() {
    let states = [
        (State::Paused, false),
        (State::Running, true),
        (State::Suspended, true),
        (State::Shutdown, true),
    ];
    for (state, pauses) in states {
        let mut found = found();
        found.same.as_mut().unwrap().state = state;
        found.same.as_mut().unwrap().monitor = None;
        let steps = plan(&found, &options()).unwrap().plan.prepare;
        assert_eq!(steps.iter().any(Step::pauses_guest), pauses, "{steps:?}");
        assert!(!steps.iter().any(|step| matches!(step, Step::StopXl { .. })));
    }
}

#[test]
fn a_rehearsal_takes_all_away_again() {
    let planned = plan(&found(), &Options { rehearse: true, ..options() }).unwrap();
    let text = planned.plan.to_string();
    let steps: Vec<_> = text
        .lines()
        .skip(2)
        .map(|line| line.trim_start_matches([' ', '1', '2', '3', '4', '5', '6', '7']))
        .collect();
    assert_eq!(
        steps,
        [
            "wait while others are restored: one for each processor at a time",
            "restore web1.restoring with xl, paused",
            "check that web1.restoring is complete and paused",
            "destroy web1.restoring if it exists, paused",
            "remove /srv/new1.qcow2",
            "remove /srv/new0.qcow2",
        ]
    );
    assert!(!text.contains("domain 3"), "{text}");
}

#[test]
fn every_fault() {
    for found in [found(), found_thin(), found_thick()] {
        for discard_current in [false, true] {
            for paused in [false, true] {
                let options = Options { paused, discard_current, ..options() };
                let plan = plan(&found, &options).unwrap().plan;
                assert!(try_every_fault(&plan, Guest::Runs) > 20);
            }
        }
        let mut paused = found.clone();
        paused.same.as_mut().unwrap().state = State::Paused;
        let paused = plan(&paused, &options()).unwrap().plan;
        assert!(try_every_fault(&paused, Guest::Paused) > 20);
        let rehearsal = plan(&found, &Options { rehearse: true, ..options() }).unwrap().plan;
        assert!(try_every_fault(&rehearsal, Guest::Gone) > 5);
    }
}

#[test]
fn every_fault_with_a_configuration_file() {
    let replace = ReplaceCfg {
        path: "/etc/xen/web1.cfg".into(),
        old: "old".into(),
        new: "new".into(),
        backup: "/etc/xen/web1.cfg.bak".into(),
        entries: vec!["vdev=xvda".into()],
    };
    let revert = plan(&found(), &options()).unwrap().with_cfg(CfgAfter::Replace(replace.clone()));
    // Before steps that may take long.
    assert!(matches!(revert.plan.finish[0], Step::ReplaceCfg(_)));
    assert!(try_every_fault(&revert.plan, Guest::Runs) > 20);
    // But not before a volume that it names has the content of the snapshot.
    let revert = plan(&found_thin(), &options()).unwrap().with_cfg(CfgAfter::Replace(replace));
    let at = |is: fn(&Step) -> bool| revert.plan.finish.iter().rposition(is).unwrap();
    let cfg = at(|step| matches!(step, Step::ReplaceCfg(_)));
    assert!(at(|step| matches!(step, Step::Switch(Switch::RenameVolume { .. }))) < cfg);
    assert!(cfg < at(|step| matches!(step, Step::Switch(Switch::UpdateConfig { .. }))));
    assert!(try_every_fault(&revert.plan, Guest::Runs) > 20);
}

#[test]
fn what_is_refused() {
    let refused = |words: &str, change: &dyn Fn(&mut RevertInput, &mut Options)| {
        let (mut found, mut options) = (found(), options());
        change(&mut found, &mut options);
        let error = plan(&found, &options).unwrap_err();
        let text = error.chain().join(": ") + ": " + error.hint.as_deref().unwrap_or_default();
        assert_eq!(error.kind, Kind::Refused, "{text}");
        assert!(text.contains(words), "{words:?} in {text:?}");
    };
    let with = |found: &mut RevertInput, json: &str| {
        let json = found.config.to_json().replacen('{', &format!("{{{json}, "), 1);
        found.config = DomainConfig::parse(&json).unwrap();
    };
    refused("Disk xvda (/srv/a.qcow2) has no second image", &|_, w| w.copy = false);
    refused("copy it (--copy)", &|_, w| w.copy = false);
    refused(
        "not enough space for copies of the disks of web1: the file system of /srv has 1 MiB free",
        &|f, _| {
            f.disks[0].room = Some(Ok(room(1)));
        },
    );
    refused("choose one: --overlay-dir DIR", &|f, _| {
        *f = found_thick();
        f.disks[0].place.path = "/dev/vg0/web1-xvda.after-s1.qcow2".into();
    });
    refused("has no memory", &|f, _| f.start_from = StartFrom::Start("/etc/xen/web1.cfg".into()));
    refused("web1 does not run", &|f, _| f.same = None);
    refused("two domains would have it open for writing", &|f, _| {
        f.record.disks[0].snapshot =
            DiskSnapshot::None(LeftOut { why: "left out as asked".into() });
        f.disks[0].record = f.record.disks[0].clone();
    });
    refused("was written to since", &|f, _| f.disks[1].frozen.as_mut().unwrap().size += 1);
    refused("belongs to another domain", &|f, _| {
        f.named = Some(running(9, Uuid::nil()));
    });
    for (json, words) in [
        (r#""pcidevs": [{"bus": 1}]"#, "two domains cannot have: pcidevs"),
        (
            r#""vfbs": [{"vnc": {"enable": "True", "findunused": "False", "display": 7}}]"#,
            "VNC on the fixed display 7",
        ),
        (r#""nics": [{"ifname": "web1-eth0"}]"#, "a network device called web1-eth0 in dom0"),
        (
            r#""channels": [{"connection.socket": {"path": "/run/ga.sock"}}]"#,
            "a channel to the socket /run/ga.sock",
        ),
    ] {
        refused(words, &|f, _| with(f, json));
    }
}
