//! What a configuration that came with a snapshot would have dom0 run as root. Pure.
//!
//! The configuration in an image is libxl's JSON, the record names an xl configuration file: whoever can
//! write one of them chooses these programs, as with `xl restore` and `xl create`.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use serde_json::Value;

use crate::domain::DomainConfig;

/// The keys of libxl's JSON (libxl_types.idl) that name programs, or arguments from which one is run.
const PROGRAMS: [&str; 7] =
    ["bootloader", "bootloader_args", "device_model", "script", "extra", "extra_pv", "extra_hvm"];
/// Where Xen's own hotplug scripts are; they may be named without it.
const SCRIPTS: &str = "/etc/xen/scripts";

/// What is to be known before a domain is made from `config`: what dom0 would run for it that it does not
/// run for the domain that runs now. Without one, what is not a script of Xen's own.
pub fn note(config: &DomainConfig, running: Option<&DomainConfig>) -> Option<String> {
    let known = running.map(programs).unwrap_or_default();
    let new: Vec<_> = programs(config).difference(&known).cloned().collect();
    (!new.is_empty()).then(|| {
        let unlike = if running.is_some() { ", unlike for the domain that runs now" } else { "" };
        format!(
            "by its configuration, dom0 runs as root for this snapshot{unlike}: {}",
            new.join("; ")
        )
    })
}

fn programs(config: &DomainConfig) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    collect(config.json(), &mut found);
    found
}

fn collect(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(entries) => {
            for (key, value) in entries {
                match words(value).filter(|_| PROGRAMS.contains(&key.as_str())) {
                    Some(words) if key == "script" && is_xens_own(&words) => {}
                    Some(words) => drop(found.insert(format!("{key} {words}"))),
                    None => collect(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
        _ => {}
    }
}

/// A text, or a list of texts; nothing if there is none in it.
fn words(value: &Value) -> Option<String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            items.iter().map(Value::as_str).collect::<Option<Vec<_>>>()?.join(" ")
        }
        _ => return None,
    };
    (!text.is_empty()).then_some(text)
}

fn is_xens_own(script: &str) -> bool {
    let path = Path::new(SCRIPTS).join(script);
    path.parent() == Some(Path::new(SCRIPTS))
        && path.components().all(|part| part != Component::ParentDir)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> DomainConfig {
        DomainConfig::parse(json).unwrap()
    }

    #[test]
    fn programs_are_named_unless_they_run_already() {
        let evil = config(
            r#"{"c_info": {"name": "extra"}, "b_info": {"bootloader": "/tmp/b", "bootloader_args": ["-x", "y"],
                "u": {"device_model": "", "extra": ["-netdev", "tap,script=/tmp/s"]}},
                "nics": [{"script": "/etc/xen/scripts/vif-bridge"}, {"script": "/etc/xen/scripts/../x"}],
                "disks": [{"script": "block-tap"}, {"script": "/srv/s"}]}"#,
        );
        let told = note(&evil, None).unwrap();
        let list = "bootloader /tmp/b; bootloader_args -x y; extra -netdev tap,script=/tmp/s; \
                    script /etc/xen/scripts/../x; script /srv/s";
        assert!(told.ends_with(list), "{told}");
        assert_eq!(note(&evil, Some(&evil)), None);
        let running =
            config(r#"{"disks": [{"script": "/srv/s"}], "b_info": {"bootloader": "/b"}}"#);
        let told = note(&evil, Some(&running)).unwrap();
        assert!(told.contains("unlike") && told.contains("/tmp/b") && !told.contains("/srv/s"));
        let plain = config(r#"{"b_info": {"kernel": "/k"}, "disks": [{"script": null}]}"#);
        assert_eq!(note(&plain, None), None);
    }
}
