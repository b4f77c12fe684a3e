//! Messages and errors on standard error.

use std::fmt::{Display, Write as _};
use std::io::{self, IsTerminal, Write as _};
use std::sync::Arc;
use std::time::Duration;

use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use indicatif::MultiProgress;

use super::output::Output;
use super::printable;
use super::progress::Meter;
use crate::error::Error;

/// The words that lines begin with, and their looks.
const LABELS: [(&str, Style); 5] = [
    ("xl-snapshot:", AnsiColor::Red.on_default().bold()),
    ("also:", AnsiColor::Red.on_default()),
    ("left:", AnsiColor::Yellow.on_default().bold()),
    ("hint:", AnsiColor::Green.on_default().bold()),
    ("note:", AnsiColor::Cyan.on_default().bold()),
];

/// Where messages go. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reporter {
    verbosity: i8,
    bars: MultiProgress,
    output: Arc<Output>,
}

impl Reporter {
    /// Messages as talkative as `-q` and `-v` ask for.
    pub fn new(quiet: bool, verbose: u8) -> Self {
        let verbosity = if quiet { -1 } else { i8::try_from(verbose).unwrap_or(3).min(3) };
        Reporter { verbosity, bars: MultiProgress::new(), output: Arc::default() }
    }

    /// How much is said: -1 quiet, 0 the usual, 1 each step, 2 libxl's words too, 3 all of them.
    pub fn verbosity(&self) -> i8 {
        self.verbosity
    }

    /// A line on standard error, above a progress bar if one is shown.
    pub fn message(&self, text: &str) {
        match self.output.takes(text) {
            true => {}
            false => self.bars.suspend(|| print(text)),
        }
    }

    /// From now on messages are printed by a thread of its own, in their order: a terminal that was stopped (Ctrl-S)
    /// or a pipe that nobody reads holds up nobody who speaks.
    pub fn defer(&self) {
        let bars = self.bars.clone();
        self.output.start(move |text| bars.suspend(|| print(text)));
    }

    /// Waits until all is said.
    pub fn catch_up(&self) {
        self.output.end(None);
    }

    /// Waits until all is said, but not for longer than that. What is not said then never is.
    pub fn give_up_after(&self, limit: Duration) {
        self.output.end(Some(limit));
    }

    /// A message that `-q` suppresses.
    pub fn note(&self, text: &str) {
        if self.verbosity >= 0 {
            self.message(text);
        }
    }

    /// What `-v` says when something is over, such as a step.
    pub fn timed(&self, what: &impl Display, took: Duration, well: bool) -> Option<String> {
        let how = if well { "" } else { " FAILED" };
        let ms = took.as_secs_f64() * 1000.0;
        (self.verbosity > 0).then(|| format!("{ms:>9.1} ms{how}  {what}"))
    }

    /// Shows how far memory has come: a bar on a terminal, else a line now and then; nothing with `-q`.
    pub fn meter(&self, what: &'static str) -> Meter {
        match self.verbosity {
            ..0 => Meter::hidden(),
            _ if draws() => Meter::bar(what, self.bars.clone()),
            _ => Meter::lines(what, self.sayer()),
        }
    }

    /// What says messages from another thread.
    fn sayer(&self) -> impl Fn(&str) + Send + use<> {
        let reporter = self.clone();
        move |text| reporter.message(text)
    }

    /// Says now and then for how long something has been waited for; nothing with `-q`.
    pub fn waiting(&self, what: &'static str) -> Meter {
        match self.verbosity {
            ..0 => Meter::hidden(),
            _ => Meter::waiting(what, self.sayer()),
        }
    }
}

/// Whether standard error is a terminal that may be drawn on. `NO_COLOR` forbids more than it says,
/// but who sets it has no use for escape sequences, and no other variable says so.
fn draws() -> bool {
    let stderr = io::stderr();
    stderr.is_terminal() && AutoStream::choice(&stderr) != ColorChoice::Never
}

/// Prints an error on standard error.
pub fn print_error(error: &Error) {
    print(&error_text(error));
}

fn print(text: &str) {
    // It removes the colours where they do not belong. Nobody is left to be told that standard error
    // is closed.
    let _ = writeln!(anstream::stderr(), "{}", coloured(&printable(text)));
}

/// Colours the words that lines begin with.
fn coloured(text: &str) -> String {
    let line = |line: &str| {
        let label = LABELS
            .iter()
            .find_map(|(label, style)| Some((line.strip_prefix(label)?, label, style)));
        label.map_or(line.to_owned(), |(rest, label, style)| {
            format!("{style}{label}{style:#}{rest}")
        })
    };
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

/// An error as the user reads it: the chain once, what is left, what to do.
pub fn error_text(error: &Error) -> String {
    // A line of what a name or a tool says is never one of ours, which say what to type.
    let one = |text: &str| text.replace('\n', "\n       ");
    let mut text = format!("xl-snapshot: {}", one(&error.chain().join(": ")));
    for remaining in &error.remaining {
        // Writing to a String cannot fail.
        let _ = write!(text, "\nleft:  {}", one(&remaining.what));
        if let Some(command) = &remaining.command {
            let _ = write!(text, "\n       {}", one(command));
        }
    }
    if let Some(hint) = &error.hint {
        let _ = write!(text, "\nhint:  {}", one(hint));
    }
    for other in &error.also {
        let _ = write!(text, "\nalso:  {}", other.chain().join(": "));
        if let Some(hint) = &other.hint {
            let _ = write!(text, "\nhint:  {hint}");
        }
    }
    printable(&text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Remaining;

    fn error() -> Error {
        let remaining = Remaining { what: "A file".into(), command: Some("rm /a".into()) };
        Error::failed("No").because("Too late: note: it").hint("Begin").unfinished(vec![remaining])
    }

    #[test]
    fn an_error_has_its_parts_in_their_places() {
        let text = error_text(&error());
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "xl-snapshot: No: Too late: note: it",
                "left:  A file",
                "       rm /a",
                "hint:  Begin"
            ]
        );
    }

    #[test]
    fn an_error_does_not_control_the_terminal() {
        let error = Error::refused("a\x1b[2Jb").because("c\x07").hint("d\n\x08");
        assert_eq!(error_text(&error), "xl-snapshot: a [2Jb: c \nhint:  d\n        ");
        // Nor does it change the order of what is read.
        let error = Error::refused("a\u{202e}b\u{2066}c\u{2028}d");
        assert_eq!(error_text(&error), "xl-snapshot: a b c d");
    }

    #[test]
    fn a_name_cannot_say_what_to_type() {
        let error = Error::refused("No domain web1\nleft:  all\nhint:  rm -rf /").because("x");
        let text = error_text(&error);
        let begin = |word: &str| text.lines().any(|line| line.starts_with(word));
        assert!(!begin("left:") && !begin("hint:"), "{text}");
    }

    #[test]
    fn only_the_words_that_lines_begin_with_are_coloured() {
        let text = error_text(&error());
        let colours = coloured(&text);
        assert_eq!(colours.matches("\x1b[0m").count(), 3, "{colours:?}");
        assert!(colours.contains("\x1b[0m No: Too late: note: it\n"), "{colours:?}");
        // What a stream that is no terminal lets through.
        let mut plain = AutoStream::never(Vec::new());
        write!(plain, "{colours}").unwrap();
        assert_eq!(String::from_utf8(plain.into_inner()).unwrap(), text);
    }

    #[test]
    fn quiet_is_quiet() {
        assert!(Reporter::new(true, 0).meter("x").is_hidden());
        assert!(!Reporter::new(false, 0).meter("x").is_hidden());
    }
}
