//! Requests to QEMU's guest agent and its answers (qga/qapi-schema.json). Pure.
//!
//! The answers come from the guest and are untrusted: the reader limits their length, and only printable
//! characters of them are passed on.

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::json;

use crate::names::is_plain;

/// Resets the agent's parser in a request, and precedes the answer to a synchronisation.
pub const SENTINEL: u8 = 0xff;
/// The maximum length of guest text in messages, in characters.
const WORDS: usize = 200;

pub const INFO: &str = "guest-info";
pub const STATUS: &str = "guest-fsfreeze-status";
pub const FREEZE: &str = "guest-fsfreeze-freeze";
pub const THAW: &str = "guest-fsfreeze-thaw";

/// The request after which the agent drops earlier input, and answers after a [`SENTINEL`].
pub fn sync(id: u64) -> Vec<u8> {
    let request = json!({"execute": "guest-sync-delimited", "arguments": {"id": id}});
    let mut bytes = vec![SENTINEL];
    bytes.extend(request.to_string().bytes());
    bytes.push(b'\n');
    bytes
}

/// A command without arguments.
pub fn request(command: &str) -> Vec<u8> {
    let mut bytes = json!({"execute": command}).to_string().into_bytes();
    bytes.push(b'\n');
    bytes
}

/// Why an answer is no success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoAnswer {
    /// The agent refused, with this text.
    Refused(String),
    /// It is no answer of the agent.
    Unreadable(String),
}

#[derive(Deserialize)]
struct Answer<T> {
    #[serde(rename = "return")]
    value: Option<T>,
    error: Option<Failure>,
}

#[derive(Deserialize)]
struct Failure {
    #[serde(default)]
    desc: String,
}

#[derive(Deserialize)]
struct Info {
    #[serde(default)]
    supported_commands: Vec<Command>,
}

#[derive(Deserialize)]
struct Command {
    name: String,
    #[serde(default)]
    enabled: bool,
}

fn value<T: DeserializeOwned>(line: &[u8]) -> Result<T, NoAnswer> {
    let unreadable = |why: String| NoAnswer::Unreadable(plain(&why));
    let answer: Answer<T> =
        serde_json::from_slice(line).map_err(|error| unreadable(error.to_string()))?;
    match (answer.value, answer.error) {
        (_, Some(error)) => Err(NoAnswer::Refused(plain(&error.desc))),
        (Some(value), None) => Ok(value),
        (None, None) => Err(unreadable("it holds neither a result nor an error".into())),
    }
}

/// Whether it answers the synchronisation with this number.
pub fn is_sync(line: &[u8], id: u64) -> bool {
    value::<u64>(line) == Ok(id)
}

/// Whether the file systems are frozen.
pub fn is_frozen(line: &[u8]) -> Result<bool, NoAnswer> {
    match value::<String>(line)?.as_str() {
        "frozen" => Ok(true),
        "thawed" => Ok(false),
        other => Err(NoAnswer::Unreadable(format!("it is {:?}", plain(other)))),
    }
}

/// How many file systems were frozen or thawed.
pub fn count(line: &[u8]) -> Result<u64, NoAnswer> {
    value(line)
}

/// The commands of [`FREEZE`], [`THAW`] and [`STATUS`] that the agent lacks or does not allow.
pub fn missing(line: &[u8]) -> Result<Vec<&'static str>, NoAnswer> {
    let info: Info = value(line)?;
    let has = |name: &str| info.supported_commands.iter().any(|c| c.name == name && c.enabled);
    Ok([FREEZE, THAW, STATUS].into_iter().filter(|name| !has(name)).collect())
}

/// Whether a line is an answer.
pub fn is_answer(line: &[u8]) -> bool {
    !matches!(value::<IgnoredAny>(line), Err(NoAnswer::Unreadable(_)))
}

/// Whether the agent refused because it does not allow the command now: while the file systems are frozen it allows
/// no other freeze (qga/main.c, `ga_disable_not_allowed_freeze`).
pub fn is_disabled(words: &str) -> bool {
    words.contains("disabled")
}

/// Whether the agent complains of its hook and nothing else (qga/commands-posix.c, `execute_fsfreeze_hook`).
pub fn is_of_hook(words: &str) -> bool {
    words.contains("fsfreeze hook")
}

/// Guest text, made safe for a message.
fn plain(words: &str) -> String {
    words.chars().take(WORDS).map(|c| if is_plain(c) { c } else { ' ' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_what_qemu_ga_reads() {
        let sync = sync(7);
        assert_eq!(sync[0], 0xff);
        let text = r#"{"execute":"guest-sync-delimited","arguments":{"id":7}}"#;
        assert_eq!(sync[1..], [text, "\n"].concat().into_bytes());
        assert_eq!(request(THAW), b"{\"execute\":\"guest-fsfreeze-thaw\"}\n");
    }

    #[test]
    fn answers_are_read() {
        assert!(is_sync(br#"{"return": 7}"#, 7) && !is_sync(br#"{"return": 8}"#, 7));
        assert_eq!(is_frozen(br#"{"return": "frozen"}"#), Ok(true));
        assert_eq!(is_frozen(br#"{"return": "thawed"}"#), Ok(false));
        assert_eq!(count(br#"{"return": 3}"#), Ok(3));
        let info = br#"{"return": {"version": "7.2.22", "supported_commands": [
            {"enabled": true, "name": "guest-fsfreeze-thaw", "success-response": true},
            {"enabled": false, "name": "guest-fsfreeze-freeze", "success-response": true},
            {"enabled": true, "name": "guest-fsfreeze-status", "success-response": true}]}}"#;
        assert_eq!(missing(info), Ok(vec![FREEZE]));
        assert!(is_answer(br#"{"error": {}}"#) && is_answer(br#"{"return": {}}"#));
        assert!(!is_answer(b"login: ") && !is_answer(b"{}"));
    }

    #[test]
    fn a_guest_does_not_control_the_terminal() {
        let answer = "{\"error\": {\"class\": \"x\", \"desc\": \"no\\u001b[2J\\u202e\"}}";
        assert_eq!(count(answer.as_bytes()), Err(NoAnswer::Refused("no [2J ".into())));
        let long = format!("{{\"error\": {{\"desc\": {:?}}}}}", "x".repeat(9999));
        let Err(NoAnswer::Refused(words)) = count(long.as_bytes()) else { panic!("refused") };
        assert_eq!(words.len(), WORDS);
        for wrong in [&b""[..], b"\x1b[2J", b"[]", b"{\"return\": -1}", b"{\"return\": \"x\"}"] {
            assert!(matches!(count(wrong), Err(NoAnswer::Unreadable(_))), "{wrong:?}");
        }
        assert!(matches!(is_frozen(b"{\"return\": \"\\u0007\"}"), Err(NoAnswer::Unreadable(_))));
        let nested = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
        assert!(matches!(count(&nested), Err(NoAnswer::Unreadable(_))));
    }
}
