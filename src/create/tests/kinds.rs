//! The order of steps for disks of several kinds in one plan.

use super::*;
use crate::domain::Disk;
use crate::support::disks as disk;
use crate::support::volumes::REPORT;
use crate::tool::volumes::{self, Volume};

/// A domain with xvda in a qcow2 image, and these disks.
pub(super) fn seen_with(job: &Job, disks: Vec<RunningDisk>) -> CreateInput {
    let mut seen = seen(job);
    seen.disks.truncate(1);
    seen.disks.extend(disks);
    let entries: Vec<String> = seen.disks.iter().map(|disk| entry(&disk.disk)).collect();
    let config = CONFIG.split("\"disks\"").next().unwrap().to_owned();
    seen.stored = format!("{config}\"disks\": [{}]}}", entries.join(", "));
    seen.config = DomainConfig::parse(&seen.stored).unwrap();
    for disk in &mut seen.disks {
        disk.place = job.new_file("web1", &disk.disk).map(|path| Place { path, trouble: None });
    }
    seen
}

fn entry(disk: &Disk) -> String {
    let script = disk.script.as_ref().map(|script| format!(r#""script": "{script}", "#));
    format!(
        r#"{{"pdev_path": "{}", "vdev": "{}", {}"format": "{}", "readwrite": 1}}"#,
        disk.path.display(),
        disk.vdev,
        script.unwrap_or_default(),
        disk.format.unwrap(),
    )
}

/// A volume of [`REPORT`] as a disk: 0 is `thick`, 5 is `thin`.
pub(super) fn volume(vdev: &str, minor: u64) -> RunningDisk {
    let entry = format!(
        r#"{{"pdev_path": "/dev/vg0/{minor}", "vdev": "{vdev}", "backend": "phy", "format": "raw", "readwrite": 1}}"#
    );
    RunningDisk { device: Some((253, minor)), ..disk::seen(&entry) }
}

pub(super) fn volumes() -> Vec<Volume> {
    volumes::parse(REPORT.as_bytes()).unwrap()
}

#[test]
fn volumes_are_snapshotted_between_the_suspend_and_the_transaction() {
    let job = job("s2", &[]);
    let mut seen = seen_with(&job, vec![volume("xvdb", 0), volume("xvdc", 5)]);
    seen.volumes = Ok(volumes());
    assert_eq!(
        plan(&job, &seen).unwrap().to_string(),
        "\
Snapshot s2 of web1:
   1   send QEMU the transaction, except its last byte
   2   open the memory image /var/lib/xen/snapshots/web1/s1.xlsave.partial
   3   stop the domain's xl process 77
   4   save the memory of domain 3 while it runs, then suspend it
   5 | run lvm lvcreate --quiet --yes --snapshot --permission r --addtag xl-snapshot:0b41a0a5-4a1c-4b3c-8f1e-93d4b0b1a001:xvdb --name thick.s2 --size 71303168b vg0/thick; at the same time run lvm lvcreate --quiet --yes --snapshot --setactivationskip n --permission r --addtag xl-snapshot:0b41a0a5-4a1c-4b3c-8f1e-93d4b0b1a001:xvdc --name thin.s2 vg0/thin
   6 | check that domain 3 is still suspended, configured as before
   7 | snapshot the disks in one QMP transaction: xvda internal s2
   8 | resume domain 3
   9   continue the domain's xl process 77
  10   complete the record, sync the image and rename it to its final name
     | the guest is paused
"
    );
}

#[test]
fn without_qemu_the_guest_is_resumed_as_soon_as_the_volumes_have_their_snapshots() {
    let job = job("s2", &["xvda,none"]);
    let mut seen = seen_with(&job, vec![volume("xvdb", 0)]);
    seen.volumes = Ok(volumes());
    let plan = plan(&job, &seen).unwrap();
    let [.., Step::Suspend { .. }, Step::Undoable { .. }, Step::CheckSuspended { .. }] =
        &plan.prepare[..]
    else {
        panic!("{plan}")
    };
    assert_eq!(plan.commit, None);
    assert!(plan.finish[0].resumes_guest());
}

#[test]
fn a_copy_and_a_child_are_made_while_the_guest_stands_still() {
    let job = job("s1", &["xvdb,reflink"]);
    let seen = seen_with(&job, vec![disk::seen(disk::LOOP), disk::seen(disk::TAP)]);
    let text = plan(&job, &seen).unwrap().to_string();
    for line in [
        "2   make /srv/c.vhd read-only: it becomes a base\n",
        "8 | clone /srv/b.img to /srv/web1-xvdb.at-s1.img; at the same time make \
         /srv/web1-xvdc.after-s1.vhd: vhd-util snapshot -e -l 30 -n /srv/web1-xvdc.after-s1.vhd \
         -p /srv/c.vhd\n",
        "11 | snapshot the disks in one QMP transaction: xvda internal s1\n",
        "nothing can switch xvdc under a running guest",
    ] {
        assert!(text.contains(line), "{line:?} in {text}");
    }
}

#[test]
fn a_copy_alone_needs_no_restore() {
    let job = job("s1", &["xvdb,reflink"]);
    let seen = seen_with(&job, vec![disk::seen(disk::LOOP)]);
    let plan = plan(&job, &seen).unwrap();
    assert_eq!(plan.onward, []);
    assert!(plan.finish.iter().any(Step::resumes_guest));
    assert!(!plan.prepare.iter().any(|step| matches!(step, Step::StoreConfig(_))));
}

#[test]
fn two_volumes_that_have_room_only_one_by_one_are_refused_together() {
    let job = job("s2", &[]);
    let mut seen = seen_with(&job, vec![volume("xvdb", 0), volume("xvdc", 20)]);
    // A second thick volume; 128 MiB are free, each snapshot takes 68.
    let report = REPORT.replace("thick.s1", "thick.old");
    let report = report.replace(r#""lv_name":"thin""#, r#""lv_name":"more""#);
    let report = report
        .replace(
            r#""lv_layout":"thin,sparse", "origin":"", "pool_lv":"pool""#,
            r#""lv_layout":"linear", "origin":"", "pool_lv":"""#,
        )
        .replace(r#""lv_kernel_minor":"5""#, r#""lv_kernel_minor":"20""#);
    seen.volumes = Ok(volumes::parse(report.as_bytes()).unwrap());
    let error = plan(&job, &seen).unwrap_err();
    let text = error.chain().join(": ");
    assert_eq!(error.kind, Kind::Refused, "{text}");
    assert_eq!(
        text,
        "The disks of web1 cannot be snapshotted: the volume group vg0 has 128 MiB free, and all \
         of them together take 136 MiB"
    );
    assert!(error.hint.unwrap().contains("--disk VDEV,lvm,size=SIZE"));

    let smaller = super::job("s2", &["xvdc,lvm,size=60M"]);
    plan(&smaller, &seen).unwrap();
}

#[test]
fn the_entries_for_the_users_file_name_tapdisks_script() {
    let job = job("s1", &["xvdb,reflink"]);
    let seen = seen_with(&job, vec![disk::seen(disk::LOOP), disk::seen(disk::TAP)]);
    let plan = plan(&job, &seen).unwrap();
    assert_eq!(
        cfg_lines(&image_of(&plan).record),
        ["format=raw,vdev=xvdc,access=rw,script=block-tap,target=vhd:/srv/web1-xvdc.after-s1.vhd"]
    );
}
