//! The systemd units: systemd understands them, and the program understands what they call it with.

#![expect(clippy::unwrap_used, reason = "a test's helpers may end the test")]
#![expect(clippy::disallowed_methods, reason = "systemd-analyze is no tool of the program")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use clap::Parser;
use xl_snapshot::cli::{self, Cli};

fn share(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("share/systemd").join(file);
    fs::read_to_string(path).unwrap()
}

/// As `make install` fills it in.
fn unit(kind: &str, sbin: &str) -> String {
    unit_of("xl-snapshot", kind, sbin)
}

fn unit_of(name: &str, kind: &str, sbin: &str) -> String {
    let text = share(&format!("{name}@.{kind}.in"));
    text.replace("@SBINDIR@", sbin).replace("@SYSCONFDIR@", "/etc")
}

/// What systemd-analyze(1) has to say of the units.
fn complaints(units: &[(&str, String)]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let mut names = Vec::new();
    for (kind, text) in units {
        fs::write(directory.path().join(format!("xl-snapshot@.{kind}")), text).unwrap();
        names.push(format!("xl-snapshot@web1.{kind}"));
    }
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .args(names)
        .env("SYSTEMD_UNIT_PATH", format!("{}:", directory.path().display()))
        .output()
        .expect("make setup installs systemd");
    let words = String::from_utf8(output.stderr).unwrap();
    let ours: Vec<_> = words.lines().filter(|line| line.contains("xl-snapshot@")).collect();
    assert!(output.status.success() || !ours.is_empty(), "{words}");
    ours.join("\n")
}

#[test]
fn systemd_understands_the_units() {
    let program = env!("CARGO_BIN_EXE_xl-snapshot");
    let sbin = Path::new(program).parent().unwrap().to_str().unwrap();
    let units = ["service", "timer"].map(|kind| (kind, unit(kind, sbin)));
    assert_eq!(complaints(&units), "");
    let units = ["service", "timer"].map(|kind| (kind, unit_of("xl-snapshot-backup", kind, sbin)));
    assert_eq!(complaints(&units), "");
    // What the check rests on.
    for (kind, from, to) in [
        ("service", "KillMode=process", "KillMode=nobody"),
        ("timer", "OnCalendar=*-*-* 01:00:00", "OnCalendar=sometimes"),
    ] {
        let wrong = unit(kind, sbin).replace(from, to);
        assert!(complaints(&[(kind, wrong)]).contains(&format!("@.{kind}:")), "{to}");
    }
}

#[test]
fn systemd_understands_the_unit_for_guests() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("cfg-examples/qemu-ga-xen.service");
    let text = fs::read_to_string(example).unwrap();
    // A program that is there.
    let text = text.replace("/usr/sbin/qemu-ga", "/bin/true");
    assert_eq!(complaints(&[("service", text.clone())]), "");
    let wrong = text.replace("Restart=always", "Restart=perhaps");
    assert!(complaints(&[("service", wrong)]).contains("@.service:"));
}

/// The settings, as systemd.exec(5) reads them: comments, and quotes around values.
fn settings() -> BTreeMap<String, String> {
    let text = share("default");
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.split_once('=').unwrap();
            let [value] = &shlex::split(value).unwrap()[..] else { panic!("{line}") };
            (name.to_owned(), value.clone())
        })
        .collect()
}

/// The commands that a unit starts.
fn commands(name: &str) -> Vec<cli::Command> {
    let settings = settings();
    let text = unit_of(name, "service", "/usr/sbin");
    let mut commands = Vec::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("ExecStart=/usr/sbin/")) {
        let mut words = Vec::new();
        // systemd.service(5): $NAME as a word of its own becomes as many words as it has, ${NAME} stays one.
        for word in shlex::split(line).unwrap() {
            let one = word.strip_prefix("${").and_then(|name| name.strip_suffix('}'));
            match (one, word.strip_prefix('$')) {
                (Some(name), _) => words.push(settings[name].clone()),
                (None, Some(name)) => words.extend(shlex::split(&settings[name]).unwrap()),
                (None, None) => words.push(word.replace("%I", "-odd name")),
            }
        }
        let parsed = Cli::try_parse_from(words).unwrap_or_else(|why| panic!("{line}: {why}"));
        commands.push(parsed.command);
    }
    commands
}

#[test]
fn the_program_understands_the_units() {
    let [create, prune] = commands("xl-snapshot").try_into().unwrap();
    let (cli::Command::Create(create), cli::Command::Prune(prune)) = (create, prune) else {
        panic!("other commands")
    };
    assert_eq!((create.domain.as_str(), create.common.wait), ("-odd name", Some(600)));
    assert_eq!((prune.whose.as_str(), prune.prefix.as_deref()), ("-odd name", Some("snap-")));
    assert_eq!((prune.keep_last, prune.keep_daily, prune.keep_weekly), (Some(3), Some(7), Some(4)));
}

#[test]
fn the_program_understands_the_unit_of_backups() {
    let [backup] = commands("xl-snapshot-backup").try_into().unwrap();
    let cli::Command::Backup(backup) = backup else { panic!("another command") };
    assert_eq!((backup.domain.as_str(), backup.common.wait), ("-odd name", Some(600)));
    assert_eq!(backup.directory, Path::new("/var/backups/xl-snapshot"));
    assert_eq!(backup.quiesce.as_deref(), Some("agent"));
}
