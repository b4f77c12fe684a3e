//! Snapshots without memory.

use super::*;
use crate::model::Guest;
use crate::plan::ReplaceCfg;
use crate::plan::faults::try_every_fault;

/// The sample without memory.
fn found_alone(running: bool) -> RevertInput {
    let mut found = found();
    found.start_from = StartFrom::Start("/etc/xen/web 1.cfg".into());
    found.snapshot = "/x/web1.record".into();
    if !running {
        found.same = None;
        found.named = None;
    }
    found
}

fn replace() -> CfgAfter {
    CfgAfter::Replace(ReplaceCfg {
        path: "/etc/xen/web 1.cfg".into(),
        old: "old".into(),
        new: "new".into(),
        backup: "/etc/xen/web 1.cfg.bak-x".into(),
        entries: Vec::new(),
    })
}

#[test]
fn the_domain_is_started_from_a_file_that_is_right_by_then() {
    let revert = plan(&found_alone(true), OPTIONS).unwrap().with_cfg(replace());
    assert_eq!(
        revert.plan.to_string(),
        "\
Revert of web1 to s1:
   1   stop the domain's xl process 77
   2   check that domain 3 still exists
   3   make /srv/new1.qcow2: qemu-img create -q -u -f qcow2 -F raw -b /srv/b.img /srv/new1.qcow2 1048576
   4   wait while others are restored: one for each processor at a time
   5   make '/etc/xen/web 1.cfg' name the new images, and keep the old one as '/etc/xen/web 1.cfg.bak-x'
   6   destroy domain 3 and wait until its QEMU has ended
   7   run qemu-img snapshot -q -c before-revert-20260302-000000 --image-opts 'driver=qcow2,file.driver=file,file.filename=/srv/a.qcow2'
   8   run qemu-img snapshot -q -a 1 --image-opts 'driver=qcow2,file.driver=file,file.filename=/srv/a.qcow2'
   9   wait until domain 3 is completely destroyed
  10   continue the domain's xl process 77
  11   start web1 from '/etc/xen/web 1.cfg' with xl
note: the current contents of xvda are kept in snapshot before-revert-20260302-000000 in /srv/a.qcow2
note: the current contents of xvdb are kept in /srv/web1-xvdb.after-s1.qcow2
note: disk hdc is not reverted: CD-ROM
"
    );
    // The file must not name a removed image.
    let on_failure: Vec<_> = revert.plan.on_failure.steps.iter().map(ToString::to_string).collect();
    assert!(on_failure[0].contains("restore the old text of"), "{on_failure:?}");
    assert_eq!(on_failure[1], "wait until domain 3 is completely destroyed");
    assert_eq!(on_failure[2], "return the disks of web1 to their previous contents");
    assert_eq!(on_failure[3], "continue the domain's xl process 77");
    assert_eq!(on_failure[4], "remove /srv/new1.qcow2");
    let remaining = &revert.plan.on_failure.remaining[0];
    assert_eq!(remaining.command.as_deref(), Some("xl-snapshot revert /x/web1.record"));
}

#[test]
fn xl_starts_it_by_an_option_and_paused_if_that_is_asked_for() {
    let start = |paused| {
        let plan = plan(&found_alone(false), Options { paused, ..OPTIONS }).unwrap().plan;
        plan.onward.last().unwrap().by_hand().unwrap()
    };
    assert_eq!(start(false), "xl create -q -f '/etc/xen/web 1.cfg'");
    assert_eq!(start(true), "xl create -q -p -f '/etc/xen/web 1.cfg'");
}

#[test]
fn every_fault_without_memory() {
    for (running, guest) in [(true, Guest::Runs), (false, Guest::Gone)] {
        for discard_current in [false, true] {
            for paused in [false, true] {
                let options = Options { paused, discard_current };
                let revert = plan(&found_alone(running), options).unwrap();
                assert!(try_every_fault(&revert.plan, guest) > 10);
                assert!(try_every_fault(&revert.with_cfg(replace()).plan, guest) > 10);
            }
        }
    }
}

#[test]
fn what_is_refused_without_memory() {
    let refused = |words: &str, change: fn(&mut RevertInput)| {
        let mut found = found_alone(true);
        change(&mut found);
        let error = plan(&found, OPTIONS).unwrap_err();
        let text = error.chain().join(": ");
        assert!(error.kind == Kind::Refused && text.contains(words), "{words:?} in {text:?}");
    };
    refused("the file is that of web2", |f| {
        f.config = DomainConfig::parse(&CONFIG.replace("web1", "web2")).unwrap();
    });
    refused("the file has no disk xvdb", |f| {
        f.config = DomainConfig::parse(&CONFIG.replace("xvdb", "xvdz")).unwrap();
    });
    // The file names a UUID, and the domain of that name has another one.
    refused("belongs to another domain", |f| f.named = f.same.take());
    refused("was written to since", |f| f.disks[1].frozen.as_mut().unwrap().size += 1);
}

mod by_hand {
    use std::path::Path;

    use super::super::*;
    use crate::disk::HostView;
    use crate::disk::kinds::{External, Internal};
    use crate::record::DisksOnly;
    use crate::revert::by_hand::record;
    use crate::spec::Spec;
    use crate::support::disks::id;

    /// xvda in an image with snapshots, xvdb in an overlay on an overlay on a raw file.
    struct Host;

    impl HostView for Host {
        fn chain(
            &self,
            path: &Path,
            _: crate::domain::Format,
        ) -> std::result::Result<Vec<ImageInfo>, String> {
            let middle = image("/srv/m.qcow2", "qcow2", Some(("/srv/b.img", "raw")), &[]);
            let top = image("/srv/o.qcow2", "qcow2", Some(("/srv/m.qcow2", "qcow2")), &[]);
            let b = image("/srv/b.img", "raw", None, &[]);
            match path.to_str().unwrap() {
                "/srv/a.qcow2" => Ok(vec![image(
                    "/srv/a.qcow2",
                    "qcow2",
                    None,
                    &[("1", "good"), ("2", "twice"), ("3", "twice"), ("good", "x")],
                )]),
                "/srv/o.qcow2" => Ok(vec![top, middle, b]),
                other => Err(format!("{other}: No such file")),
            }
        }

        fn facts(&self, path: &Path) -> std::result::Result<FileFacts, String> {
            let (device, inode) = id(path.to_str().unwrap());
            Ok(FileFacts { device, inode, ..disk_tests::facts() })
        }
    }

    fn found(spec: &str) -> Result<Record> {
        let config =
            CONFIG.replace("/srv/b.img", "/srv/o.qcow2").replace(r#""raw", "r"#, r#""qcow2", "r"#);
        let config = DomainConfig::parse(&config).unwrap();
        let spec = Spec::parse(spec, Path::new("/etc/snap/by-hand.toml"))?;
        let request = spec.request()?;
        let now = "2026-03-02T00:00:00Z".parse().unwrap();
        record(&request, (&config, Uuid::nil()), Path::new("/etc/xen/web1.cfg"), &Host, now)
    }

    const A: &str = "[[disk]]\nvdev = \"xvda\"\nsnapshot = \"internal\"\n";
    const B: &str = "[[disk]]\nvdev = \"xvdb\"\nsnapshot = \"external\"\n";
    const NO_A: &str = "[[disk]]\nvdev = \"xvda\"\nsnapshot = \"none\"\n";
    const NO_B: &str = "[[disk]]\nvdev = \"xvdb\"\nsnapshot = \"none\"\n";

    #[test]
    fn the_snapshot_is_found_by_its_name_and_the_base_below_the_overlay() {
        let record = found(&format!("name = \"good\"\n{A}{B}")).unwrap();
        assert_eq!(record.disks_only, Some(DisksOnly::ByHand));
        let DiskSnapshot::Internal(Internal { proof: Some(proof), .. }) = &record.disks[0].snapshot
        else {
            panic!()
        };
        assert_eq!((proof.id.as_str(), proof.name.as_str()), ("1", "good"));
        assert_eq!(record.disks[1].path, Path::new("/srv/m.qcow2"));
        assert_eq!(record.disks[1].format, Some(crate::domain::Format::Qcow2));
        assert!(matches!(&record.disks[1].snapshot,
            DiskSnapshot::External(External { overlay, proof: Some(_) }) if overlay == Path::new("/srv/o.qcow2")));
        assert!(matches!(record.disks[2].snapshot, DiskSnapshot::None(_)));
        // Deeper in the chain, as the user says.
        let record = found(&format!("{NO_A}{B}file = \"/srv/b.img\"\n")).unwrap();
        assert_eq!(record.disks[1].path, Path::new("/srv/b.img"));
        assert_eq!(record.disks[1].format, Some(crate::domain::Format::Raw));
        assert_eq!(Record::parse(&record.to_toml()).unwrap(), record);
    }

    #[test]
    fn what_is_not_found_or_not_sure_is_refused() {
        for (spec, code, words) in [
            (format!("name = \"gone\"\n{A}{B}"), 3, "it has no snapshot gone"),
            (format!("name = \"twice\"\n{A}{B}"), 3, "it has several snapshots twice"),
            (format!("{A}{B}"), 2, "name of the internal snapshots is not known"),
            (format!("name = \"good\"\n{A}"), 3, "does not say which snapshot it has"),
            (
                format!("{NO_A}{B}file = \"/srv/x.img\"\n"),
                3,
                "/srv/x.img is not in its backing chain",
            ),
            (
                format!("{NO_A}{B}file = \"/srv/o.qcow2\"\n"),
                3,
                "/srv/o.qcow2 is not in its backing chain",
            ),
            (
                "[[disk]]\nvdev = \"xvda\"\nsnapshot = \"external\"\n".to_owned() + NO_B,
                3,
                "it is no overlay",
            ),
            (NO_A.replace("none", "lvm") + NO_B, 2, "only internal and external"),
            (NO_A.replace("xvda", "xvdz"), 2, "has no disk xvdz"),
            (
                "[[disk]]\nvdev = \"hdc\"\nsnapshot = \"internal\"\n".to_owned() + NO_A + NO_B,
                3,
                "No such file",
            ),
        ] {
            let error = found(&spec).unwrap_err();
            let text = error.chain().join(": ");
            assert_eq!(error.exit_code(), code, "{text}");
            assert!(text.contains(words), "{words:?} in {text:?}");
        }
    }
}
