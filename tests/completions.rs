//! What bash, zsh and fish complete, asked of the shells themselves, with an `xl` that knows of three
//! guests.

#![expect(clippy::unwrap_used, reason = "a test's helpers may end the test")]
#![expect(clippy::disallowed_methods, reason = "shells are no tools of the program")]

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

const XL: &str = "#!/bin/sh
if [ \"$2\" = -l ]; then
    echo '                \"vdev\": \"xvda\",'
    exit
fi
echo 'Name                ID   Mem VCPUs      State   Time(s)'
echo 'Domain-0             0  2048     2     r-----      16.1'
echo 'web1                 3   128     1     -b----       0.4'
echo 'web2                 4   128     1     -b----       0.4'
echo 'db1                  5   128     1     r-----      16.4'
";

/// The only disk there is.
const XVDA: [&str; 5] = ["xvda,internal", "xvda,external", "xvda,lvm", "xvda,reflink", "xvda,none"];

/// The words typed, and what must be offered; directories apart, whose form is each shell's own.
const CASES: [(&[&str], &[&str]); 22] = [
    (&["re"], &["revert"]),
    (&["create", ""], &["db1", "web1", "web2", "web9.cfg"]),
    (&["create", "db"], &["db1"]),
    (&["create", "-n", "x", "--memory", "y", "--live", "w"], &["web1", "web2", "web9.cfg"]),
    (&["create", "web1", ""], &["spec.toml"]),
    (&["create", "web1", "--desc"], &["--description"]),
    (&["create", "web1", "--memory", "oth"], &["other.txt"]),
    (
        &["revert", "-p", ""],
        &[
            "KEPT/web1/old.xlsave",
            "KEPT/web1/packed.xlsave.zst",
            "KEPT/web1/still.record",
            "s.xlsave",
            "s.xlsave.zst",
            "spec.toml",
            "web1.record",
            "web1/old",
            "web1/packed",
            "web1/still",
        ],
    ),
    (&["revert", "--disc"], &["--discard-current"]),
    (&["show", "s"], &["s.xlsave", "s.xlsave.zst", "spec.toml"]),
    // This one with XL_SNAPSHOT_DIR.
    (
        &["show", ""],
        &[
            "ELSEWHERE/web1/new.xlsave",
            "s.xlsave",
            "s.xlsave.zst",
            "spec.toml",
            "web1.record",
            "web1/new",
        ],
    ),
    (&["show", "web1/p"], &["web1/packed"]),
    (&["list", ""], &["db1", "web1", "web2"]),
    (&["list", "--tree", "web1", "d"], &["db1"]),
    (&["list", "--me"], &["--metrics"]),
    (&["prune", ""], &["db1", "web1", "web2"]),
    (&["prune", "--keep-daily", "7", "--prefix", "snap-", "d"], &["db1"]),
    (&["prune", "--keep-w"], &["--keep-weekly"]),
    (&["create", "web1", "-d", ""], &XVDA),
    (&["create", "web1", "--disk", "xvdb,n"], &["xvdb,none"]),
    (&["create", "-d", "xvdb,internal", "w"], &["web1", "web2", "web9.cfg"]),
    (&["create", "web1", "-d", "xvda,e"], &["xvda,external"]),
];

fn all_cases(shell: &[&str], harness: &str, completions: &str) {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let directory = tempfile::tempdir().unwrap();
    let [work, kept, elsewhere, bin] =
        ["work", "kept", "elsewhere", "bin"].map(|name| directory.path().join(name));
    let [images, others] = [kept.join("web1"), elsewhere.join("web1")];
    for path in [&work.join("sub"), &work.join("web1"), &images, &others, &bin] {
        fs::create_dir_all(path).unwrap();
    }
    let names = ["web9.cfg", "spec.toml", "s.xlsave", "s.xlsave.zst", "web1.record", "other.txt"];
    for name in names {
        fs::write(work.join(name), "").unwrap();
    }
    fs::write(images.join("old.xlsave"), "").unwrap();
    fs::write(images.join("packed.xlsave.zst"), "").unwrap();
    fs::write(images.join("still.record"), "").unwrap();
    fs::write(others.join("new.xlsave"), "").unwrap();
    fs::write(bin.join("xl"), XL).unwrap();
    fs::set_permissions(bin.join("xl"), Permissions::from_mode(0o755)).unwrap();

    let kept = kept.to_str().unwrap();
    let text =
        fs::read_to_string(Path::new(env!("OUT_DIR")).join("share/completions").join(completions));
    let text = text.unwrap();
    assert!(text.contains("/var/lib/xen/snapshots"));
    let file = directory.path().join(completions);
    fs::write(&file, text.replace("/var/lib/xen/snapshots", kept)).unwrap();

    let elsewhere = elsewhere.to_str().unwrap();
    for (typed, offered) in CASES {
        let variable = if typed == ["show", ""] { elsewhere } else { "" };
        let output = Command::new(shell[0])
            .args(&shell[1..])
            .arg(top.join("tests/completions").join(harness))
            .arg(&file)
            .args(typed)
            .env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", bin.display()))
            .env("HOME", directory.path())
            .env("TERM", "dumb")
            .env("XL_SNAPSHOT_DIR", variable)
            .current_dir(&work)
            .stdin(Stdio::null())
            .output()
            .expect("make setup installs the shells");
        let stdout = String::from_utf8(output.stdout).unwrap();
        let words: BTreeSet<String> = stdout
            .lines()
            .map(|line| line.trim().replace(kept, "KEPT").replace(elsewhere, "ELSEWHERE"))
            // "web1" is a domain here, and "sub" is nothing else than a directory.
            .filter(|word| !word.is_empty() && !word.ends_with('/') && word != "sub")
            .filter(|word| word != "web1" || offered.contains(&"web1"))
            .collect();
        let expected: BTreeSet<String> = offered.iter().map(|&word| word.to_owned()).collect();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(words, expected, "{shell:?} {typed:?}: {stdout}{errors}");
    }
}

#[test]
fn bash() {
    all_cases(&["bash", "--norc"], "bash.sh", "xl-snapshot.bash");
}

/// What bash adds to the line is not quoted by readline, unless it is a file name.
#[test]
fn bash_types_no_command_that_is_a_name() {
    let directory = tempfile::tempdir().unwrap();
    let xl = directory.path().join("xl");
    fs::write(&xl, "#!/bin/sh\necho Name\necho 'x;reboot 1'\necho '$(id) 2'\n").unwrap();
    fs::set_permissions(&xl, Permissions::from_mode(0o755)).unwrap();
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (typed, offered) in [("", &["\\$\\(id\\)", "x\\;reboot"][..]), ("x\\;re", &["x\\;reboot"])]
    {
        let output = Command::new("bash")
            .arg("--norc")
            .arg(top.join("tests/completions/bash.sh"))
            .arg(Path::new(env!("OUT_DIR")).join("share/completions/xl-snapshot.bash"))
            .args(["create", typed])
            .env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", directory.path().display()))
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        let words: BTreeSet<_> = stdout.lines().filter(|word| !word.is_empty()).collect();
        assert_eq!(words, offered.iter().copied().collect());
    }
}

#[test]
fn zsh() {
    all_cases(&["zsh", "-f"], "zsh.zsh", "_xl-snapshot");
}

#[test]
fn fish() {
    all_cases(&["fish", "--no-config"], "fish.fish", "xl-snapshot.fish");
}
