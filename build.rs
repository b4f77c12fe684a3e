//! Makes the manual pages and the shell completions, into `OUT_DIR/share`, from where `make install`
//! takes them: what is written by hand in `share/`, and what the command line's own definition says,
//! at the lines and places marked `@SO@` there.

use std::path::Path;
use std::{env, fs, io};

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

#[path = "src/cli.rs"]
mod cli;

/// What every piece that clap_mangen renders begins with.
const PREAMBLE: &str = ".ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n";

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/cli.rs");
    println!("cargo::rerun-if-changed=src/cli");
    for sources in ["man", "completions"] {
        println!("cargo::rerun-if-changed=share/{sources}");
    }
    let out = env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for build scripts");
    let share = Path::new(&out).join("share");
    // What an earlier version has made may have no source any more.
    if share.exists() {
        fs::remove_dir_all(&share)?;
    }
    let mut cli = cli::Cli::command().disable_help_subcommand(true);
    cli.build();
    manual(&cli, &share.join("man"))?;
    completions(&cli, &share.join("completions"))
}

// ---- the manual

/// Fills in every page. Each command has one, of its name.
fn manual(cli: &Command, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir("share/man")? {
        let path = entry?.path();
        let file = path.file_name().and_then(|name| name.to_str()).expect("named by us");
        let file = file.strip_suffix(".in").expect("a page with marks");
        let page = fs::read_to_string(&path)?;
        let filled = match file.strip_suffix(".1") {
            Some(name) => fill(&page, command(cli, name))?,
            None => page,
        };
        fs::write(to.join(file), filled.replace("@VERSION@", env!("CARGO_PKG_VERSION")))?;
    }
    cli.get_subcommands().try_for_each(|sub| {
        let page = format!("{}.1", sub.get_display_name().unwrap_or_default());
        let source = format!("{page}.in");
        fs::metadata(Path::new("share/man").join(&source)).map_err(missing(&source)).map(drop)
    })
}

fn missing(what: &str) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("share/man/{what}: {error}"))
}

/// The command that the page `name` is of.
fn command<'a>(cli: &'a Command, name: &str) -> &'a Command {
    cli.get_subcommands()
        .find(|sub| sub.get_display_name() == Some(name))
        .unwrap_or_else(|| (name == cli.get_name()).then_some(cli).expect("a page of a command"))
}

/// Puts what the definition says in the place of the marks, which are lines of their own.
fn fill(page: &str, command: &Command) -> io::Result<String> {
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ").replace(['<', '>'], "");
    let man = Man::new(command.clone().override_usage(usage));
    let mut filled = PREAMBLE.to_owned();
    for line in page.lines() {
        let mut piece = Vec::new();
        match line {
            "@NAME@" => man.render_name_section(&mut piece)?,
            "@SYNOPSIS@" => man.render_synopsis_section(&mut piece)?,
            "@OPTIONS@" => man.render_options_section(&mut piece)?,
            "@COMMANDS@" => man.render_subcommands_section(&mut piece)?,
            "@EXAMPLES@" => piece.extend(examples(command).bytes()),
            _ => piece.extend(line.bytes()),
        }
        let piece = String::from_utf8(piece).expect("clap has only UTF-8");
        // The heading stands in the page.
        let piece = piece.strip_prefix(PREAMBLE).map_or(piece.as_str(), |rest| {
            rest.split_once('\n').map_or(rest, |(_heading, body)| body)
        });
        filled.push_str(piece.trim_end());
        filled.push('\n');
    }
    Ok(filled)
}

/// The examples of `--help`, as they are.
fn examples(command: &Command) -> String {
    let help = command.get_after_help().expect("every command has examples").to_string();
    let examples = help.strip_prefix("Examples:\n").expect("the examples come first");
    let mut text = ".nf\n".to_owned();
    for line in examples.lines().take_while(|line| !line.is_empty()) {
        text.push_str(&line.trim_start().replace('\\', "\\e").replace('-', "\\-"));
        text.push('\n');
    }
    text + ".fi"
}

// ---- completions

/// What the definition says, and by hand: names of domains, configurations and snapshots.
fn completions(cli: &Command, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for (shell, file) in [
        (Shell::Bash, "xl-snapshot.bash"),
        (Shell::Zsh, "_xl-snapshot"),
        (Shell::Fish, "xl-snapshot.fish"),
    ] {
        let mut generated = Vec::new();
        clap_complete::generate(shell, &mut cli::Cli::command(), "xl-snapshot", &mut generated);
        let mut generated = String::from_utf8(generated).expect("clap has only UTF-8");
        let own = fs::read_to_string(Path::new("share/completions").join(file))?;
        let own = own.replace("@VALUE_OPTIONS@", &value_options(cli));
        if shell == Shell::Zsh {
            // Its arguments say themselves who completes them, and its last line begins the work.
            let (first, rest) = generated.split_once('\n').expect("#compdef");
            generated = format!("{first}\n\n{own}{}\n", zsh_arguments(rest));
        } else {
            // clap_complete 4.6.11 gives a command two names in bash if its name has a hyphen.
            generated = generated.replace("xl__subcmd__snapshot", "xl__snapshot");
            generated = format!("{generated}\n{own}");
        }
        fs::write(to.join(file), generated)?;
    }
    Ok(())
}

/// The options that take a value, as a pattern of `case`.
fn value_options(cli: &Command) -> String {
    let mut options: Vec<String> = Vec::new();
    for option in cli.get_subcommands().flat_map(Command::get_opts) {
        options.extend(option.get_short().map(|short| format!("-{short}")));
        options.extend(option.get_long().map(|long| format!("--{long}")));
    }
    options.sort();
    options.dedup();
    options.join("|")
}

/// Names our functions in the place of zsh's own.
fn zsh_arguments(text: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        let ours = [
            ("':domain -- ", "_xl-snapshot_domains"),
            ("'::spec -- ", "_xl-snapshot_specs"),
            ("':snapshot -- ", "_xl-snapshot_snapshots"),
            ("'*::places -- ", "_xl-snapshot_places"),
            ("'*::snapshots -- ", "_xl-snapshot_snapshots"),
            ("':whose -- ", "_xl-snapshot_whose"),
            ("'*-d+[", "_xl-snapshot_disks"),
            ("'*--disk=[", "_xl-snapshot_disks"),
        ];
        let ours = ours.iter().find(|(start, _)| line.starts_with(start));
        lines.push(match (ours, line.rsplit_once(':')) {
            (Some((_, function)), Some((start, _))) => format!("{start}:{function}' \\"),
            _ => line.to_owned(),
        });
    }
    lines.join("\n")
}
