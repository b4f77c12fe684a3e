//! Freezing a guest's file systems while its disks are snapshotted: what is asked, by which way the guest is
//! reached, what became of it. Pure.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::domain::DomainConfig;
use crate::error::{Error, Result};
use crate::process::Process;
use crate::tool::{check_path, quote};

/// The name under which QEMU's guest agent is known (qemu-ga(8)).
pub const AGENT: &str = "org.qemu.guest_agent.0";

/// For how long a guest's file systems are frozen if nothing is said. Windows thaws by itself after so long (VSS).
const LIMIT: Duration = Duration::from_secs(10);
/// The largest value of `--freeze-timeout`.
const LONGEST: Duration = Duration::from_secs(600);

/// Who freezes the file systems.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QuiesceBy {
    /// QEMU's guest agent.
    Agent,
    /// A program, called with `freeze DOMAIN` and `thaw DOMAIN`.
    Program(PathBuf),
}

/// What the user asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuiesceOptions {
    pub by: QuiesceBy,
    /// For how long the file systems may be frozen.
    pub limit: Duration,
}

impl QuiesceOptions {
    /// Reads `--quiesce` and `--freeze-timeout`, or the keys of a SPEC.toml.
    ///
    /// # Errors
    ///
    /// A usage error.
    pub fn new(by: Option<&str>, seconds: Option<f64>) -> Result<Option<QuiesceOptions>> {
        let Some(by) = by else {
            return match seconds {
                None => Ok(None),
                Some(_) => Err(Error::usage("--freeze-timeout is for --quiesce")
                    .hint("leave it out, or say who freezes: --quiesce agent")),
            };
        };
        let by = match by {
            "agent" => QuiesceBy::Agent,
            path => match check_path(Path::new(path)) {
                Ok(path) => QuiesceBy::Program(path.into()),
                Err(why) => {
                    return Err(Error::usage(format!("--quiesce {path:?}")).because(why).hint(
                        "say agent, or the absolute path of a program: /usr/local/sbin/freeze",
                    ));
                }
            },
        };
        Ok(Some(QuiesceOptions { by, limit: seconds.map_or(Ok(LIMIT), limit)? }))
    }
}

fn limit(seconds: f64) -> Result<Duration> {
    let limit = Duration::try_from_secs_f64(seconds).ok();
    limit.filter(|limit| !limit.is_zero() && *limit <= LONGEST).ok_or_else(|| {
        Error::usage(format!("The limit of the freeze, {seconds} s"))
            .because(format!("it must be more than 0 s and at most {} s", LONGEST.as_secs()))
            .hint("give --freeze-timeout a number of seconds, such as 5 or 30")
    })
}

/// How dom0 reaches the guest's agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentChannel {
    /// A socket that the domain's QEMU serves.
    Socket(PathBuf),
    /// A terminal whose other end it has.
    Terminal(PathBuf),
}

impl AgentChannel {
    pub fn path(&self) -> &Path {
        match self {
            AgentChannel::Socket(path) | AgentChannel::Terminal(path) => path,
        }
    }
}

/// Who freezes, and how that is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FreezeMethod {
    Agent(AgentChannel),
    Program(PathBuf),
}

impl FreezeMethod {
    /// As a record has it: `agent`, or the path of the program.
    pub fn name(&self) -> String {
        match self {
            FreezeMethod::Agent(_) => "agent".into(),
            FreezeMethod::Program(path) => path.display().to_string(),
        }
    }

    /// The command that thaws the file systems of a domain. What comes before the request makes the agent forget
    /// what it has read of another one (qemu-ga: 0xFF).
    pub fn thaw_by_hand(&self, domain: &str) -> String {
        let request = r#"printf '\377{"execute":"guest-fsfreeze-thaw"}\n'"#;
        match self {
            FreezeMethod::Agent(AgentChannel::Socket(path)) => {
                let socket = format!("UNIX-CONNECT:{}", path.display());
                format!("{request} | socat -t 5 - {}", quote(socket))
            }
            FreezeMethod::Agent(AgentChannel::Terminal(path)) => {
                format!("{request} > {}", quote(path))
            }
            FreezeMethod::Program(path) => format!("{} thaw {}", quote(path), quote(domain)),
        }
    }
}

/// As it stands behind "by".
impl fmt::Display for FreezeMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FreezeMethod::Agent(line) => write!(f, "the guest agent at {}", quote(line.path())),
            FreezeMethod::Program(path) => f.write_str(&quote(path)),
        }
    }
}

/// A console that a guest has in addition to its first one, as xenstore tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Console {
    /// Its number: `/dev/hvc1` in a Linux guest is number 1.
    pub number: u32,
    pub name: String,
    /// The terminal in dom0, if it has one.
    pub terminal: Option<PathBuf>,
}

/// Finds the line to the agent of a running domain: a channel of its name, or a serial port of an HVM guest that
/// leads to a socket.
///
/// # Errors
///
/// A refusal that says what to write into the domain's configuration.
pub fn line(domain: &str, config: &DomainConfig, consoles: &[Console]) -> Result<AgentChannel> {
    let json = config.json();
    let channels = json["channels"].as_array().map(Vec::as_slice).unwrap_or_default();
    let of_agent = |channel: &&Value| channel["name"] == AGENT;
    let Some(channel) = channels.iter().find(of_agent) else {
        return serial(domain, config);
    };
    let socket = channel["connection.socket"]["path"].as_str();
    let Some(console) = consoles.iter().find(|console| console.name == AGENT) else {
        return Err(dropped(domain, socket));
    };
    let line = match socket {
        Some(path) => AgentChannel::Socket(path.into()),
        None => match &console.terminal {
            Some(path) => AgentChannel::Terminal(path.clone()),
            None => {
                return Err(Error::refused(format!("The channel to the guest agent of {domain}"))
                    .because("it has neither a socket nor a terminal in dom0")
                    .hint(wanted_line(domain)));
            }
        },
    };
    check_path(line.path()).map_err(|why| {
        Error::refused(format!("The channel to the guest agent of {domain}"))
            .because(why)
            .hint(wanted_line(domain))
    })?;
    Ok(line)
}

/// The sockets that serial ports of an HVM guest lead to (QEMU's `-serial unix:PATH,server...`).
fn serial(domain: &str, config: &DomainConfig) -> Result<AgentChannel> {
    let machine = &config.json()["b_info"]["type.hvm"];
    let list = machine["serial_list"].as_array().into_iter().flatten();
    let sockets: Vec<&str> = list
        .chain([&machine["serial"]])
        .filter_map(|port| port.as_str()?.strip_prefix("unix:")?.split(',').next())
        .filter(|path| check_path(Path::new(path)).is_ok())
        .collect();
    match sockets.as_slice() {
        [one] => Ok(AgentChannel::Socket(one.into())),
        [] => Err(Error::refused(format!("Domain {domain} has no channel to a guest agent"))
            .because(format!("its configuration has no channel named {AGENT}"))
            .hint(wanted_line(domain))),
        many => Err(Error::refused(format!("Domain {domain} has several serial sockets, and the one of the guest agent is not known"))
            .because(format!(
                "its serial ports lead to {} sockets: {}",
                many.len(),
                many.join(", ")
            ))
            .hint(wanted_line(domain))),
    }
}

/// Before 4.18.5, 4.19.2 and 4.20.1, and in 4.17 for good, xl numbers the first channel 0, which libxl takes for
/// the domain's own console and does not make (xl_parse.c; repaired by e1ccced4af).
fn dropped(domain: &str, socket: Option<&str>) -> Error {
    let path = socket.map_or_else(|| default_socket(domain), str::to_owned);
    Error::refused(format!("Domain {domain} has no channel to its guest agent"))
        .because("its configuration has one, but xl drops the first channel (Xen 4.11 to 4.17, and early releases of 4.18 to 4.20)")
        .hint(format!(
            "put another channel before it, start the domain again with xl create, and run qemu-ga in the guest on \
             /dev/hvc1:\n{}",
            channel_lines(&path)
        ))
}

fn default_socket(domain: &str) -> String {
    format!("/run/xen/qga-{domain}.sock")
}

fn wanted_line(domain: &str) -> String {
    format!(
        "give the domain these lines, start it again with xl create, and run qemu-ga in the guest on /dev/hvcN (xl \
         channel-list {} shows N):\n{}",
        quote(domain),
        channel_lines(&default_socket(domain))
    )
}

/// What stands in a configuration for an agent at `path`; the first channel is for xl to drop.
fn channel_lines(path: &str) -> String {
    let agent = format!("name={AGENT},connection=socket,path={path}");
    format!("channel = [ \"name=unused,connection=pty\",\n            {agent:?} ]")
}

/// What became of a freeze so far: what a guard needs to know to thaw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreezeState {
    /// When it was asked for.
    pub begun: Timestamp,
    /// The process of the program that freezes, by its number and start, as long as it may run.
    pub process: Option<Process>,
    /// How many file systems are frozen, once they are and where that is told.
    pub file_systems: Option<u64>,
    /// Whether the program that freezes has ended with an error: then one call of it to thaw is enough.
    #[serde(default)]
    pub failed: bool,
    /// Set once they are thawed.
    pub thawed: Option<Thawed>,
}

/// How a freeze ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thawed {
    /// How long it lasted, in milliseconds.
    pub ms: u64,
    /// Why the file systems may not have been frozen until then, if so.
    pub doubt: Option<String>,
}

/// What a record says of a snapshot whose guest's file systems were frozen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quiesced {
    /// `agent`, or the path of a program.
    pub by: String,
    /// How many file systems; not known of a program.
    #[serde(default)]
    pub file_systems: Option<u64>,
    /// From the request to freeze to the answer that they are thawed, in milliseconds.
    pub frozen_ms: u64,
}

impl fmt::Display for Quiesced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = if self.by == "agent" { "the guest agent" } else { &self.by };
        let count = match self.file_systems {
            None => String::new(),
            Some(1) => ", 1 file system".into(),
            Some(count) => format!(", {count} file systems"),
        };
        write!(f, "{} ms, by {by}{count}", self.frozen_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(rest: &str) -> DomainConfig {
        let json = format!(r#"{{"c_info": {{"name": "web1", "type": "hvm"}}, {rest}}}"#);
        DomainConfig::parse(&json).unwrap()
    }

    fn console(number: u32, terminal: Option<&str>) -> Console {
        Console { number, name: AGENT.into(), terminal: terminal.map(PathBuf::from) }
    }

    const SOCKET: &str = r#""channels": [
        {"devid": 0, "name": "org.qemu.guest_agent.0", "connection.socket": {"path": "/run/q.sock"}}]"#;
    const PTY: &str = r#""channels": [{"name": "x", "connection.pty": {}},
        {"devid": 1, "name": "org.qemu.guest_agent.0", "connection.pty": {}}]"#;

    #[test]
    fn the_agent_is_reached_by_its_channel() {
        let found = line("web1", &config(SOCKET), &[console(1, None)]).unwrap();
        assert_eq!(found, AgentChannel::Socket("/run/q.sock".into()));
        let found = line("web1", &config(PTY), &[console(1, Some("/dev/pts/4"))]).unwrap();
        assert_eq!(found, AgentChannel::Terminal("/dev/pts/4".into()));
        let error = line("web1", &config(PTY), &[console(1, None)]).unwrap_err();
        assert!(error.chain().join(": ").contains("neither a socket nor a terminal"));
    }

    #[test]
    fn the_first_channel_that_xl_drops_is_told_with_what_to_write() {
        let error = line("web1", &config(SOCKET), &[]).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        assert!(error.chain().join(": ").contains("xl drops the first channel"));
        let lines = "channel = [ \"name=unused,connection=pty\",\n            \
            \"name=org.qemu.guest_agent.0,connection=socket,path=/run/q.sock\" ]";
        let hint = error.hint.unwrap();
        assert!(hint.ends_with(lines), "{hint}");
    }

    #[test]
    fn an_hvm_guest_may_have_it_on_a_serial_port() {
        let with = |ports: &str| {
            let rest = format!(r#""b_info": {{"type.hvm": {{{ports}}}}}"#);
            line("web1", &config(&rest), &[])
        };
        let one = r#""serial_list": ["pty", "unix:/run/q.sock,server=on,wait=off"]"#;
        assert_eq!(with(one).unwrap(), AgentChannel::Socket("/run/q.sock".into()));
        let alone = r#""serial": "unix:/run/q.sock,server=on,wait=off""#;
        assert_eq!(with(alone).unwrap(), AgentChannel::Socket("/run/q.sock".into()));
        for (ports, words) in [
            (r#""serial": "pty""#, "no channel named org.qemu.guest_agent.0"),
            (r#""serial_list": ["unix:/a", "unix:/b"]"#, "2 sockets: /a, /b"),
        ] {
            let error = with(ports).unwrap_err();
            let text = error.chain().join(": ");
            assert!(text.contains(words), "{text}");
            assert!(error.hint.unwrap().contains("channel = ["));
        }
    }

    #[test]
    fn what_it_says_of_a_freeze() {
        let quiesced =
            |by: &str, file_systems| Quiesced { by: by.into(), file_systems, frozen_ms: 12 };
        assert_eq!(
            quiesced("agent", Some(1)).to_string(),
            "12 ms, by the guest agent, 1 file system"
        );
        assert_eq!(quiesced("/x", None).to_string(), "12 ms, by /x");
        let way = FreezeMethod::Program("/usr/sbin/freeze it".into());
        assert_eq!(way.thaw_by_hand("web 1"), "'/usr/sbin/freeze it' thaw 'web 1'");
    }
}
