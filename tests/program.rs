//! The program itself, as far as it comes without Xen: exit statuses, standard output and error, and
//! what it does on a terminal.

#![expect(clippy::unwrap_used, reason = "a test's helpers may end the test")]
#![expect(clippy::disallowed_methods, reason = "the program that is tested is no tool of it")]

use std::fs::{self, OpenOptions};
use std::process::{Command, Output, Stdio};

use nix::fcntl::OFlag;
use nix::unistd::pipe2;

const PROGRAM: &str = env!("CARGO_BIN_EXE_xl-snapshot");
/// A path that a domain's name cannot have, so that this is refused on a Xen host as well.
const NOBODY: &str = "/no/such/domain";
/// An image whose disks are not there.
const IMAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/image/file");

fn program(args: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(PROGRAM);
    command.args(args).env_clear().envs(environment.iter().copied()).stdin(Stdio::null());
    command.output().unwrap()
}

/// Its standard error, once its exit status and the rest have been looked at.
fn fails(args: &[&str], environment: &[(&str, &str)], status: i32) -> String {
    let output = program(args, environment);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{args:?}: {errors}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "", "{args:?}");
    assert!(!errors.is_empty() && !errors.contains('\x1b'), "{args:?}: {errors:?}");
    errors
}

/// What it prints on a terminal, by script(1).
fn on_a_terminal(args: &str, environment: &[(&str, &str)]) -> String {
    let output = Command::new("script")
        .args(["-q", "-e", "-c", &format!("{PROGRAM} {args}"), "/dev/null"])
        .env_clear()
        .env("TERM", "xterm")
        .env("SHELL", "/bin/sh")
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .output()
        .expect("every Debian has script(1)");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn help_and_version_are_results() {
    for args in [["--help"].as_slice(), &["-h"], &["--version"], &["create", "--help"], &["help"]] {
        let output = program(args, &[]);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn a_wrong_command_line_is_2() {
    for args in [
        [].as_slice(),
        &["frobnicate"],
        &["create"],
        &["create", "web1", "--frobnicate", "--json"],
        &["create", "web1", "--wait", "soon"],
        &["create", "web1", "--wait", "-1"],
        &["create", "web1", "--name", "a/b", "--json"],
        &["create", "web1", "--disk", "xvda,sideways"],
        &["create", "web1", "/no/such.toml"],
        &["revert", "x", "-q", "-v"],
        &["show", "x", "--wait", "1"],
        &["list", "--tree", "--json"],
        &["list", "--metrics", "--json"],
        &["prune", "web1"],
        &["prune", "web1", "--prefix", "snap-"],
        &["prune", "web1", "--keep-last", "0"],
        &["prune", "web1", "--keep-daily", "-1"],
        &["prune", "--keep-last", "1"],
        &["prune", "--keep-last", "1", "/"],
    ] {
        fails(args, &[], 2);
    }
}

#[test]
fn a_wrong_directory_for_images_is_2() {
    let errors = fails(&["create", NOBODY, "--json"], &[("XL_SNAPSHOT_DIR", "kept")], 2);
    let lines: Vec<_> = errors.lines().collect();
    assert_eq!(lines[0], "xl-snapshot: XL_SNAPSHOT_DIR=kept: The path is not absolute");
    assert!(lines[1].starts_with("hint:  set it to an absolute path"), "{errors}");
    for args in [["list"].as_slice(), &["show", "web1/s1"], &["revert", "web1/s1"]] {
        fails(args, &[("XL_SNAPSHOT_DIR", "kept")], 2);
    }
}

#[test]
fn a_refusal_is_3_and_says_what_to_do() {
    for args in [
        ["create", NOBODY, "--json"].as_slice(),
        &["create", NOBODY, "--json", "--dry-run"],
        &["revert", "/no/such.xlsave", "--json"],
        &["show", "/no/such.xlsave", "--json"],
        &["show", PROGRAM, "--json"],
        &["show", "web1/none", "--json"],
        &["revert", "web1/none", "--json"],
        &["list", "/no/such/", "--json"],
    ] {
        let errors = fails(args, &[("XL_SNAPSHOT_DIR", "/srv/kept")], 3);
        assert!(errors.starts_with("xl-snapshot: "), "{errors}");
        assert!(errors.contains("\nhint:  "), "{args:?} is no help: {errors}");
    }
}

#[test]
fn a_result_goes_to_standard_output_alone() {
    for args in [["show", IMAGE].as_slice(), &["show", IMAGE, "--json"]] {
        let output = program(args, &[]);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(output.stderr.is_empty(), "{args:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.starts_with("{\n"), args.len() == 3, "{text}");
        assert!(text.ends_with('\n') && !text.contains('\x1b'), "{text:?}");
    }
}

#[test]
fn a_result_that_nobody_gets_is_a_failure() {
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = Command::new(PROGRAM);
    let output = command.args(["show", IMAGE]).env_clear().stdout(full).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("Writing the result to standard output: No space left"), "{errors}");
}

/// As `xl-snapshot list | head -n 1` may do it.
#[test]
fn a_reader_that_has_read_enough_is_no_failure() {
    let kept = tempfile::tempdir().unwrap();
    for args in [["show", IMAGE].as_slice(), &["list"], &["list", "--json"], &["list", "--metrics"]]
    {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
        drop(reader);
        let mut command = Command::new(PROGRAM);
        command.args(args).env_clear().env("XL_SNAPSHOT_DIR", kept.path()).stdout(writer);
        let output = command.output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}: {errors}");
        assert!(!errors.contains("xl-snapshot:"), "{args:?}: {errors}");
    }
}

#[test]
fn a_misspelt_command_or_option_gets_a_tip() {
    for (args, tip) in [
        (["lst", "web1"].as_slice(), "'list'"),
        (&["pruen", "web1"], "'prune'"),
        (&["create", "web1", "--nmae", "x"], "'--name'"),
        (&["prune", "web1", "--keep-dayly", "7"], "'--keep-daily'"),
    ] {
        let errors = fails(args, &[], 2);
        assert!(
            errors.lines().any(|l| l.contains("tip:") && l.contains(tip)),
            "{args:?}: {errors}"
        );
    }
}

#[test]
fn the_cause_of_a_missing_disk_is_told_once() {
    let output = program(&["show", IMAGE], &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("xvda     internal, /srv/a.qcow2: missing\n"), "{text}");
    assert_eq!(text.matches("/srv/a.qcow2: No such file").count(), 1, "{text}");
    // Of xvda, xvdb and the CD-ROM.
    assert_eq!(text.matches("No such file").count(), 3, "{text}");
}

#[test]
fn an_image_that_is_compressed_otherwise_is_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    for (program_of, ending) in [("gzip", "gz"), ("xz", "xz")] {
        let path = directory.path().join(format!("s1.xlsave.{ending}"));
        let to = fs::File::create(&path).unwrap();
        let packed = Command::new(program_of).args(["-c", IMAGE]).stdout(to).status().unwrap();
        assert!(packed.success());
        let errors = fails(&["show", path.to_str().unwrap()], &[], 3);
        assert!(
            errors.contains(&format!("It is compressed by {program_of}, and only zstd")),
            "{errors}"
        );
    }
}

/// What the user has written is an input file; what the host has is not.
#[test]
fn an_input_file_that_cannot_be_read_is_2_in_every_command() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("binary.toml"), [0xff; 40]).unwrap();
    fs::write(path("wrong.toml"), "memry = 1\n").unwrap();
    fs::write(path("no-cfg.toml"), "name = \"s1\"\nconfig = \"none.cfg\"\n").unwrap();
    fs::write(path("wrong.cfg"), "name = [").unwrap();
    fs::create_dir(path("directory.toml")).unwrap();
    for spec in ["none.toml", "binary.toml", "wrong.toml", "directory.toml", "no-cfg.toml"] {
        for command in ["show", "revert"] {
            fails(&[command, &path(spec)], &[], 2);
        }
        if spec != "no-cfg.toml" {
            fails(&["create", "web1", &path(spec)], &[], 2);
        }
    }
    for args in [
        ["list", &path("wrong.cfg")].as_slice(),
        &["prune", "--keep-last", "1", &path("wrong.cfg")],
    ] {
        fails(args, &[], 2);
    }
}

#[test]
fn colours_are_for_terminals() {
    let errors = on_a_terminal("show /no/such.xlsave", &[]);
    assert!(errors.contains("\x1b[") && errors.contains("xl-snapshot:"), "{errors:?}");
    for environment in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let errors = on_a_terminal("show /no/such.xlsave", &[environment]);
        assert!(!errors.contains('\x1b') && errors.contains("xl-snapshot:"), "{errors:?}");
    }
}
