//! The language of one disk specification, xl-disk-configuration(5).
//!
//! Facts are from libxlu_disk_l.l: a scanner without a grammar, so the meaning of a parameter
//! depends on its form and on the parameters before it.

use super::change::{BadCfg, Change};
use crate::names::same_vdev;

/// Words that are no positional parameters. A new word in a future Xen would be taken for a target,
/// a format or an access mode; the last two are checked.
const FLAGS: [&str; 8] =
    ["cdrom", "direct-io-safe", "discard", "no-discard", "colo", "no-colo", "trusted", "untrusted"];
const FORMATS: [&str; 5] = ["raw", "qcow", "qcow2", "vhd", "qed"];
const ACCESS: [&str; 5] = ["", "r", "ro", "w", "rw"];

/// Deprecated prefixes for the format, prefixes that are ignored, and prefixes for a script.
const FORMAT_PREFIXES: [&str; 4] = ["raw", "qcow", "qcow2", "vhd"];
const EMPTY_PREFIXES: [&str; 7] = ["tapdisk", "tap", "tap2", "aio", "ioemu", "file", "phy"];
const SCRIPT_PREFIXES: [&str; 4] = ["iscsi", "nbd", "enbd", "drbd"];

const BLANK: [char; 2] = [' ', '\t'];

/// The specification `old_spec` with another image; everything else is kept.
///
/// Removes a script and blkback ("phy") if the new format is not raw: both would serve the raw
/// bytes of the file.
pub fn respec(old_spec: &str, change: &Change) -> Result<String, BadCfg> {
    let Change { vdev, target, format } = change;
    if !FORMATS.contains(&format.as_str()) || target.is_empty() || target.contains(char::is_control)
    {
        let (vdev, target, format) = (vdev.clone(), target.clone(), format.clone());
        return Err(BadCfg::Change { vdev, target, format });
    }
    let bad = |reason| BadCfg::Spec { spec: old_spec.to_owned(), reason };
    let old = Old::parse(old_spec).map_err(bad)?;
    if !old.vdev.is_some_and(|old| same_vdev(old, vdev)) {
        return Err(bad("it is another disk"));
    }
    let raw = format == "raw";
    let mut spec = format!("format={format},");
    for parameter in &old.kept {
        if raw || !(parameter.starts_with("script=") || parameter == "backendtype=phy") {
            spec += parameter;
            spec.push(',');
        }
    }
    // The last parameter, which takes the rest with all commas but the last.
    spec += "target=";
    spec += target;
    if target.ends_with(',') {
        spec.push(',');
    }
    Ok(spec)
}

/// The state of the parser.
#[derive(Default)]
struct Old<'a> {
    /// All parameters except target and format, in order: of some the last one counts.
    kept: Vec<String>,
    target: Option<&'a str>,
    vdev: Option<&'a str>,
    has_format: bool,
    has_prefix: bool,
    has_access: bool,
}

impl<'a> Old<'a> {
    fn parse(spec: &'a str) -> Result<Self, &'static str> {
        // The scanner's patterns disagree about newlines.
        if spec.contains('\n') {
            return Err("there is a line break in it");
        }
        let mut old = Old::default();
        let mut rest = spec.trim_start_matches(BLANK);
        while !rest.is_empty() {
            let after = if let Some((prefix, after)) = prefixed(rest) {
                old.prefix(prefix)?;
                after
            } else if rest.starts_with("target=") {
                if old.target.is_some_and(|target| !target.is_empty()) {
                    return Err("it has two targets");
                }
                break;
            } else {
                let (parameter, after) = rest.split_once(',').unwrap_or((rest, ""));
                old.parameter(parameter)?;
                after
            };
            rest = after.trim_start_matches(BLANK);
        }
        Ok(old)
    }

    fn prefix(&mut self, prefix: &str) -> Result<(), &'static str> {
        if SCRIPT_PREFIXES.contains(&prefix) {
            self.kept.push(format!("script=block-{prefix}"));
        } else if FORMAT_PREFIXES.contains(&prefix) {
            self.has_format = true;
        } else if !EMPTY_PREFIXES.contains(&prefix) {
            return Err("it has an unknown prefix");
        }
        self.has_prefix = true;
        Ok(())
    }

    fn parameter(&mut self, parameter: &'a str) -> Result<(), &'static str> {
        match parameter.split_once('=') {
            Some(("format", _)) => self.has_format = true,
            Some((key, value)) if is_key(key) => {
                if key == "vdev" {
                    self.vdev = Some(value);
                }
                self.kept.push(parameter.to_owned());
            }
            Some(_) => return Err("it has a '=' in a value without a name"),
            None if FLAGS.contains(&parameter) => self.kept.push(parameter.to_owned()),
            None => self.positional(parameter)?,
        }
        Ok(())
    }

    /// Target, format, vdev, access: the first of them that is not set yet.
    fn positional(&mut self, value: &'a str) -> Result<(), &'static str> {
        if self.target.is_none() {
            self.target = Some(value);
        } else if !self.has_format && !self.has_prefix {
            self.has_format = true;
            if self.target == Some("") && value.contains(':') {
                // xend's empty drive: ",hdc:cdrom,r".
                self.positional_vdev(value);
            } else if !FORMATS.contains(&value) && !["", "empty"].contains(&value) {
                return Err("it has an unknown format");
            }
        } else if self.vdev.is_none() {
            self.positional_vdev(value);
        } else if !self.has_access {
            self.has_access = true;
            if !ACCESS.contains(&value) {
                return Err("it has an unknown access mode");
            }
            self.kept.push(format!("access={value}"));
        } else {
            return Err("it has too many positional parameters");
        }
        Ok(())
    }

    /// A vdev or, deprecated, "vdev:devtype".
    fn positional_vdev(&mut self, value: &'a str) {
        let (vdev, devtype) = match value.rsplit_once(':') {
            Some((vdev, devtype)) => (vdev, Some(devtype)),
            None => (value, None),
        };
        self.vdev = Some(vdev);
        self.kept.push(format!("vdev={vdev}"));
        self.kept.extend(devtype.map(|devtype| format!("devtype={devtype}")));
    }
}

/// The deprecated prefix of the rest, and what follows it.
fn prefixed(rest: &str) -> Option<(&str, &str)> {
    let (word, after) = rest.split_once(':')?;
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_word = word.starts_with(|c: char| c.is_ascii_lowercase()) && word.chars().all(plain);
    let known =
        [&FORMAT_PREFIXES[..], &EMPTY_PREFIXES, &SCRIPT_PREFIXES].iter().any(|p| p.contains(&word));
    // "hdc:cdrom" has no prefix, "foo:/x" has one.
    (is_word && (known || !after.starts_with(plain))).then_some((word, after))
}

/// Whether a parameter, of a future Xen too, may have that name (xl-disk-configuration(5), "Future
/// parameter and flag names"; libxlu_disk_l.l has lower case only).
fn is_key(key: &str) -> bool {
    key.starts_with(|c: char| c.is_ascii_lowercase())
        && key.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '-' | '_'))
}
