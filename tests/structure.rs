//! The files of the program: none imports from a file that imports from it, by however many others.
//! Then each can be read, and changed, with only what is below it in mind.

#![expect(clippy::unwrap_used, reason = "a test's helpers may end the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A file's place in the tree of modules: `["host", "look"]`.
type Module = Vec<String>;

/// The source of a file, without comments, tests and declarations of modules.
struct Source {
    /// The paths of its `use`, each to one name.
    uses: Vec<String>,
    /// The same of its `pub use`, which only hands on.
    hands_on: Vec<String>,
    /// Everything else.
    code: String,
}

fn sources() -> BTreeMap<Module, Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    list(&root, &mut files);
    files.iter().map(|file| (module(&root, file), source(file))).collect()
}

fn list(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        // Tests may import from whom they test.
        if matches!(name, "tests" | "tests.rs" | "lib.rs" | "main.rs") {
        } else if path.is_dir() {
            list(&path, files);
        } else {
            files.push(path);
        }
    }
}

fn module(root: &Path, file: &Path) -> Module {
    let path = file.strip_prefix(root).unwrap().with_extension("");
    let parts = path.iter().map(|part| part.to_str().unwrap().to_owned());
    parts.filter(|part| part != "mod").collect()
}

fn source(file: &Path) -> Source {
    let text = fs::read_to_string(file).unwrap();
    let mut source = Source { uses: Vec::new(), hands_on: Vec::new(), code: String::new() };
    let mut lines = text.lines().map(|line| line.split("//").next().unwrap().trim_end());
    while let Some(line) = lines.next() {
        if line.trim() == "#[cfg(test)]" {
            let item = lines.by_ref().find(|line| !line.trim_start().starts_with("#[")).unwrap();
            // rustfmt ends it with a brace below its first letter.
            let end = format!("{}}}", &item[..item.len() - item.trim_start().len()]);
            if item.ends_with('{') {
                lines.by_ref().find(|line| *line == end);
            }
            continue;
        }
        let (public, item) = match line.trim_start().strip_prefix("pub") {
            Some(rest) => (true, rest.split_once(' ').map_or("", |(_, item)| item)),
            None => (false, line.trim_start()),
        };
        if let Some(path) = item.strip_prefix("use ") {
            let mut path = path.to_owned();
            while !path.ends_with(';') {
                path += lines.next().unwrap();
            }
            let list = if public { &mut source.hands_on } else { &mut source.uses };
            expand("", path.trim_end_matches(';'), list);
        } else if !item.starts_with("mod ") {
            source.code += &without_texts(line);
            source.code.push('\n');
        }
    }
    source
}

/// A line of code without the texts in it, whose words name nothing.
fn without_texts(line: &str) -> String {
    let parts: Vec<&str> = line.split('"').collect();
    // Else a text goes on in the next line, or there is a quote in it.
    match parts.len() % 2 {
        1 => parts.iter().step_by(2).copied().collect::<Vec<_>>().join("\"\""),
        _ => line.to_owned(),
    }
}

/// Takes `a::{b, c::{d}}` apart, into `a::b` and `a::c::d`.
fn expand(before: &str, path: &str, into: &mut Vec<String>) {
    let path = path.trim();
    let Some((first, list)) = path.split_once('{') else {
        let path = path.split(" as ").next().unwrap();
        into.push(format!("{before}{path}"));
        return;
    };
    let before = format!("{before}{}", first.trim());
    let (mut depth, mut start) = (0, 0);
    let list = list.trim_end().strip_suffix('}').unwrap();
    for (at, letter) in list.char_indices().chain([(list.len(), ',')]) {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let part = &list[start..at];
                if !part.trim().is_empty() {
                    expand(&before, part, into);
                }
                start = at + 1;
            }
            _ => {}
        }
    }
}

/// The file that a path leads to, and what of the path is behind it.
fn resolve(
    sources: &BTreeMap<Module, Source>,
    from: &Module,
    path: &str,
) -> Option<(Module, Vec<String>)> {
    let mut names: Vec<String> = path.split("::").map(str::to_owned).collect();
    let mut at = from.clone();
    match names[0].as_str() {
        "crate" => {
            at.clear();
            names.remove(0);
        }
        "self" => drop(names.remove(0)),
        "super" => {
            while names.first().is_some_and(|name| name == "super") {
                at.pop();
                names.remove(0);
            }
        }
        name => {
            let child = [from.as_slice(), &[name.to_owned()]].concat();
            sources.get(&child)?;
        }
    }
    while let Some(name) = names.first() {
        let below = [at.as_slice(), std::slice::from_ref(name)].concat();
        if !sources.contains_key(&below) && !sources.keys().any(|key| key.starts_with(&below)) {
            break;
        }
        at = below;
        names.remove(0);
    }
    sources.contains_key(&at).then_some((at, names))
}

/// The file that has what a path names, behind all `pub use`.
fn owner(sources: &BTreeMap<Module, Source>, from: &Module, path: &str) -> Option<Module> {
    let (mut module, mut names) = resolve(sources, from, path)?;
    while let Some(name) = names.first().cloned() {
        let handed = sources[&module].hands_on.iter().find(|path| ends_in(path, &name));
        let Some(found) = handed.and_then(|path| resolve(sources, &module, path)) else { break };
        if found.0 == module {
            break;
        }
        names = [found.1, names[1..].to_vec()].concat();
        module = found.0;
    }
    Some(module)
}

fn ends_in(path: &str, name: &str) -> bool {
    path.rsplit("::").next() == Some(name)
}

/// Whether a text has a word.
fn has_word(code: &str, word: &str) -> bool {
    let part = |letter: char| letter.is_alphanumeric() || letter == '_';
    code.match_indices(word)
        .any(|(at, _)| !code[..at].ends_with(part) && !code[at + word.len()..].starts_with(part))
}

fn imports(sources: &BTreeMap<Module, Source>, module: &Module) -> BTreeSet<Module> {
    let source = &sources[module];
    let used_here =
        |path: &&String| path.rsplit("::").next().is_some_and(|name| has_word(&source.code, name));
    let mut paths: Vec<String> = source.uses.clone();
    paths.extend(source.hands_on.iter().filter(used_here).cloned());
    // Paths in the code: `crate::a::b`, `child::f`; not `collect::<Vec<_>>`.
    let end = |letter: char| !(letter.is_alphanumeric() || letter == '_' || letter == ':');
    let words = source.code.split(end).map(|word| word.trim_matches(':'));
    paths.extend(words.filter(|word| word.contains("::")).map(str::to_owned));
    let mut found: BTreeSet<_> =
        paths.iter().filter_map(|path| owner(sources, module, path)).collect();
    found.remove(module);
    found
}

#[test]
fn no_file_imports_from_one_that_imports_from_it() {
    let sources = sources();
    assert!(sources.len() > 100, "{} files", sources.len());
    let mut left: BTreeMap<Module, BTreeSet<Module>> =
        sources.keys().map(|module| (module.clone(), imports(&sources, module))).collect();
    assert!(left.values().map(BTreeSet::len).sum::<usize>() > 300);
    // Whoever imports from nobody that is left is in no circle.
    while let Some(module) =
        left.iter().find(|(_, below)| below.is_empty()).map(|(module, _)| module.clone())
    {
        left.remove(&module);
        for below in left.values_mut() {
            below.remove(&module);
        }
    }
    // Nor is one from whom nobody does.
    loop {
        let wanted: BTreeSet<_> = left.values().flatten().cloned().collect();
        let before = left.len();
        left.retain(|module, _| wanted.contains(module));
        if left.len() == before {
            break;
        }
    }
    let name = |module: &Module| module.join("/");
    let told: Vec<_> = left
        .iter()
        .map(|(module, below)| {
            let below: Vec<_> = below.iter().map(name).collect();
            format!("{} imports from {}", name(module), below.join(", "))
        })
        .collect();
    assert!(told.is_empty(), "files in circles:\n{}", told.join("\n"));
}

/// A longer file has more than one subject.
const LONGEST: usize = 500;

#[test]
fn no_file_is_long() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    list(&root, &mut files);
    let long: Vec<_> = files
        .iter()
        .map(|file| (file, fs::read_to_string(file).unwrap().lines().count()))
        .filter(|(_, lines)| *lines > LONGEST)
        .map(|(file, lines)| format!("{}: {lines} lines", file.display()))
        .collect();
    assert!(long.is_empty(), "split these:\n{}", long.join("\n"));
}
