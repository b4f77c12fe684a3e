//! The manual and `--help` say all there is, and nothing else.

#![expect(clippy::unwrap_used, reason = "a test's helpers may end the test")]
#![expect(clippy::disallowed_methods, reason = "mandoc is no tool of the program")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::{CommandFactory, Parser};
use xl_snapshot::cli::Cli;
use xl_snapshot::error::Kind;
use xl_snapshot::spec::Spec;

fn cli() -> clap::Command {
    let mut cli = Cli::command();
    cli.build();
    cli
}

/// The program and its commands.
fn commands() -> Vec<clap::Command> {
    let cli = cli();
    let subs: Vec<_> = cli.get_subcommands().filter(|c| c.get_name() != "help").cloned().collect();
    [cli].into_iter().chain(subs).collect()
}

fn pages() -> Vec<PathBuf> {
    let directory = Path::new(env!("OUT_DIR")).join("share/man");
    let mut pages: Vec<_> = fs::read_dir(directory).unwrap().map(|e| e.unwrap().path()).collect();
    pages.sort();
    assert_eq!(
        pages.len(),
        commands().len() + 2,
        "one for each command, one for the SPEC.toml and one for the JSON"
    );
    pages
}

/// A page as its reader sees it, without what a terminal makes of bold and underlined letters.
fn read(page: &str) -> String {
    let path = Path::new(env!("OUT_DIR")).join("share/man").join(page);
    let output = Command::new("mandoc")
        .args(["-T", "ascii", "-O", "width=1000"])
        .arg(path)
        .output()
        .expect("make setup installs mandoc");
    let mut text = Vec::new();
    for c in String::from_utf8(output.stdout).unwrap().chars() {
        if c == '\u{8}' {
            text.pop();
        } else {
            text.push(c);
        }
    }
    text.into_iter().collect()
}

fn page_of(command: &clap::Command) -> String {
    let name = command.get_display_name().unwrap_or(command.get_name());
    read(&format!("{name}.1"))
}

/// The lines of `Examples:` at the end of `--help`.
fn examples(command: &clap::Command) -> Vec<String> {
    let help = command.clone().render_long_help().to_string();
    let mut lines = help.lines().skip_while(|line| *line != "Examples:").skip(1);
    let examples: Vec<_> = lines
        .by_ref()
        .take_while(|line| !line.is_empty())
        .map(|line| line.trim().to_owned())
        .collect();
    assert!(!examples.is_empty(), "{} has no examples", command.get_name());
    examples
}

#[test]
fn help_fits_80_columns() {
    for mut command in commands() {
        for help in [command.render_help(), command.render_long_help()] {
            for line in help.to_string().lines() {
                assert!(line.chars().count() <= 80, "{}: {line}", command.get_name());
            }
        }
    }
}

#[test]
fn examples_are_understood() {
    for command in commands() {
        for example in examples(&command) {
            // The part of a pipe that is ours.
            let words = shlex::split(&example).unwrap();
            let ours: Vec<_> = words
                .split(|word| word == "|" || word == ">")
                .find(|part| part[0] == "xl-snapshot")
                .unwrap()
                .to_vec();
            Cli::try_parse_from(ours).unwrap_or_else(|why| panic!("{example}: {why}"));
        }
    }
}

#[test]
fn every_page_is_well_formed() {
    for page in pages() {
        let output = Command::new("mandoc")
            .args(["-T", "lint", "-W", "warning"])
            .arg(&page)
            .output()
            .expect("make setup installs mandoc");
        let complaints = String::from_utf8(output.stdout).unwrap();
        // A date would have to be remembered at every change.
        let real: Vec<_> = complaints.lines().filter(|c| !c.contains("missing date")).collect();
        assert_eq!(real, [""; 0], "{}", page.display());
        let text = fs::read_to_string(&page).unwrap();
        let is_mark = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_uppercase());
        assert!(!text.split('@').skip(1).any(is_mark), "a mark is left in {}", page.display());
    }
}

#[test]
fn every_option_and_example_is_in_the_manual() {
    for command in commands() {
        let page = page_of(&command);
        for arg in command.get_arguments() {
            let names = arg.get_long().map(|long| format!("--{long}"));
            let short = arg.get_short().map(|short| format!("-{short}"));
            let values = arg.get_value_names().filter(|_| arg.get_action().takes_values());
            let values = values.unwrap_or_default().iter().map(ToString::to_string);
            for word in names.into_iter().chain(short).chain(values) {
                assert!(page.contains(&word), "{} says nothing of {word}", command.get_name());
            }
        }
        for example in examples(&command) {
            assert!(page.contains(&example), "{} lacks {example}", command.get_name());
        }
    }
}

#[test]
fn every_way_to_snapshot_a_disk_is_in_the_manual() {
    let why = "xvda,x,".parse::<xl_snapshot::spec::DiskOption>().unwrap_err();
    let hint = why.hint.unwrap();
    let ways = hint.split(" | ").map(|way| way.trim_start_matches("VDEV,"));
    let page = read("xl-snapshot-create.1");
    for way in ways {
        // Beside or over what it says of it.
        let explained = page.lines().any(|line| line.trim() == way)
            || page.lines().any(|line| line.trim().starts_with(&format!("{way}  ")));
        assert!(explained, "{way} is not explained");
    }
}

#[test]
fn exit_codes_are_in_the_manual() {
    let page = read("xl-snapshot.1");
    let section = page.split("EXIT STATUS").nth(1).unwrap();
    for kind in [Kind::Failed, Kind::Usage, Kind::Refused, Kind::Unfinished] {
        let code = format!("{} ", kind as u8);
        assert!(section.lines().any(|line| line.trim().starts_with(&code)), "{kind:?}");
    }
}

/// The keys that a table of a SPEC.toml may have, by serde's own words.
fn keys(table: &str) -> BTreeSet<String> {
    let error = Spec::parse(&format!("{table}\nunknown = 1"), Path::new("/s.toml")).unwrap_err();
    let words = error.chain().join(" ");
    let expected = words.split("expected").nth(1).unwrap();
    expected.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn every_key_of_a_spec_is_in_the_manual_and_no_other() {
    let page = fs::read_to_string(Path::new(env!("OUT_DIR")).join("share/man/xl-snapshot.toml.5"));
    let page = page.unwrap();
    let section = |from: &str, to: &str| -> BTreeSet<String> {
        let text = page.split(from).nth(1).unwrap().split(to).next().unwrap();
        // Each has a paragraph of its own: .TP, and then .BR KEY " = ..."
        text.split("\n.TP\n.BR ").skip(1).map(|p| p.split(' ').next().unwrap().to_owned()).collect()
    };
    let disk = section(".SH KEYS OF A DISK", ".SH SNAPSHOTS MADE BY HAND");
    let mut top = section(".SH KEYS", ".SH KEYS OF A DISK");
    top.insert("disk".into());
    assert_eq!(top, keys(""));
    assert_eq!(disk, keys("[[disk]]"));
}

#[test]
fn the_example_of_a_spec_is_understood() {
    let page = fs::read_to_string(Path::new(env!("OUT_DIR")).join("share/man/xl-snapshot.toml.5"));
    let page = page.unwrap();
    let example = page.split(".EX\n").nth(1).unwrap().split(".EE").next().unwrap();
    let spec = Spec::parse(&example.replace("\\-", "-"), Path::new("/s.toml")).unwrap();
    assert_eq!(spec.disks.len(), 2);
}
