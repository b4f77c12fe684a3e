//! The program itself, as far as it comes without Xen: exit statuses, standard output and error, and
//! what it does on a terminal.

#![expect(clippy::unwrap_used, reason = "a test's helpers may end the test")]
#![expect(clippy::disallowed_methods, reason = "the program that is tested is no tool of it")]

use std::fs::OpenOptions;
use std::process::{Command, Output, Stdio};

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

#[test]
fn colours_are_for_terminals() {
    let errors = on_a_terminal("show /no/such.xlsave", &[]);
    assert!(errors.contains("\x1b[") && errors.contains("xl-snapshot:"), "{errors:?}");
    for environment in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let errors = on_a_terminal("show /no/such.xlsave", &[environment]);
        assert!(!errors.contains('\x1b') && errors.contains("xl-snapshot:"), "{errors:?}");
    }
}
