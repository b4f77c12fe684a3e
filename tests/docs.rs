//! The documentation leads somewhere: links and anchors exist, pictures are those of the data, and the
//! README stays short.

#![expect(clippy::unwrap_used, reason = "a test's helpers may end the test")]
#![expect(clippy::disallowed_methods, reason = "the script that draws is no tool of the program")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(directory: &str, extension: &str) -> Vec<PathBuf> {
    let files = fs::read_dir(top().join(directory)).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|ending| ending == extension)).collect();
    files.sort();
    assert!(!files.is_empty(), "no .{extension} in {directory}");
    files
}

fn pages() -> Vec<PathBuf> {
    let mut pages = files("", "md");
    pages.extend(files("docs", "md"));
    pages.push(top().join("tests/lab/README.md"));
    pages
}

/// The lines that are neither in a fenced nor in an indented block of code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fence && !fenced && !line.starts_with("    ")
    })
}

/// The line without its `code`.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join(" ")
}

/// The targets of `[text](target)`, pictures among them. A link stands on one line.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in prose(text) {
        let line = without_code(line);
        let targets = line.split("](").skip(1);
        found.extend(targets.map(|rest| rest.split(')').next().unwrap().to_owned()));
    }
    found
}

/// The anchors that GitHub gives to the headings of a page.
fn anchors(text: &str) -> Vec<String> {
    let headings = prose(text).filter(|line| line.starts_with('#'));
    let mut anchors: Vec<String> = Vec::new();
    for heading in headings {
        let title = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        let anchor: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        assert!(!anchors.contains(&anchor), "two headings have the anchor {anchor}");
        anchors.push(anchor);
    }
    anchors
}

#[test]
fn links_lead_somewhere() {
    let mut count = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for link in links(&text).iter().filter(|link| !link.starts_with("https://")) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => page.clone(),
                path => page.parent().unwrap().join(path),
            };
            assert!(target.exists(), "{} links to {link}", page.display());
            if !anchor.is_empty() {
                let known = anchors(&fs::read_to_string(&target).unwrap());
                assert!(known.iter().any(|a| a == anchor), "{} links to {link}", page.display());
            }
            count += 1;
        }
    }
    assert!(count > 50, "only {count} links were found");
}

/// What the check of links rests on.
#[test]
fn links_and_anchors_are_found() {
    let text = "# One `create`, two!\n\n    [no](code)\n```\n[no](fence)\n```\n`[no](x)` [a](b.md#c), ![d](e.svg)\n";
    assert_eq!(links(text), ["b.md#c", "e.svg"]);
    assert_eq!(anchors(text), ["one-create-two"]);
}

#[test]
fn every_page_and_picture_is_linked() {
    let linked: BTreeSet<PathBuf> = pages()
        .iter()
        .flat_map(|page| {
            let here = page.parent().unwrap().to_owned();
            let links = links(&fs::read_to_string(page).unwrap());
            let paths =
                links.into_iter().map(move |link| here.join(link.split('#').next().unwrap()));
            paths.filter_map(|path| path.canonicalize().ok())
        })
        .collect();
    for path in files("docs", "md").into_iter().chain(files("docs/pictures", "svg")) {
        let path = path.canonicalize().unwrap();
        assert!(linked.contains(&path), "nothing links to {}", path.display());
    }
}

#[test]
fn the_readme_is_short() {
    let lines = fs::read_to_string(top().join("README.md")).unwrap().lines().count();
    assert!(lines <= 150, "{lines} lines: what is long belongs into docs/");
}

#[test]
fn pictures_are_those_of_the_data() {
    let drawn = tempfile::tempdir().unwrap();
    let draw = top().join("docs/pictures/draw");
    let output = Command::new(draw).arg(drawn.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let names = |paths: Vec<PathBuf>| -> BTreeSet<_> {
        paths.into_iter().map(|path| path.file_name().unwrap().to_owned()).collect()
    };
    let committed = names(files("docs/pictures", "svg"));
    assert_eq!(committed, names(files(drawn.path().to_str().unwrap(), "svg")));
    for name in committed {
        let here = fs::read_to_string(top().join("docs/pictures").join(&name)).unwrap();
        let there = fs::read_to_string(drawn.path().join(&name)).unwrap();
        assert!(
            here == there,
            "run docs/pictures/draw: {} is not up to date",
            name.to_string_lossy()
        );
    }
}
