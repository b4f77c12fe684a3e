//! The program among callers that leave it signals, limits and descriptors of theirs.

#![expect(clippy::disallowed_methods, reason = "the program that is tested is no tool of it")]

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

/// What the program is called when it starts another one (host/command.rs, `STARTER`).
const STARTER: &str = "xl-snapshot-start";

fn program() -> &'static str {
    env!("CARGO_BIN_EXE_xl-snapshot")
}

/// Runs a line of the shell, whose `$P` is the program.
fn shell(line: &str) -> Output {
    let output = Command::new("/bin/bash").arg("-c").arg(line).env("P", program()).output();
    output.expect("bash runs")
}

fn text(output: &Output) -> String {
    let words = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&words).into_owned()
}

/// What a program sees that the starter has become, with `before` in the shell that starts it.
fn started(before: &str, line: &str) -> String {
    let output = shell(&format!("{before} (exec -a {STARTER} \"$P\" /bin/bash -c '{line}')"));
    assert!(output.status.success(), "{}", text(&output));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn what_is_to_outlive_us_inherits_no_signals() {
    for before in [
        "trap '' HUP INT TERM CHLD USR1; ",
        "exec env --block-signal=INT,CHLD,TERM /bin/bash -c '(exec -a xl-snapshot-start \"$P\" /bin/grep ^Sig /proc/self/status)'; ",
    ] {
        let seen = started(before, "grep ^Sig /proc/self/status");
        let bits = |name: &str| {
            let line = seen.lines().find_map(|line| line.strip_prefix(name)).expect("it is told");
            // The C library has two of the real-time signals for itself, and the tests' caller may ignore them.
            u64::from_str_radix(line.trim(), 16).unwrap() & 0x7fff_ffff
        };
        assert_eq!((bits("SigBlk:"), bits("SigIgn:")), (0, 0), "{seen}");
    }
}

#[test]
fn what_is_to_outlive_us_has_a_session_of_its_own() {
    let mine =
        started("", "echo $$; ps -o sid= -p $$ 2>/dev/null || cut -d\" \" -f6 /proc/$$/stat");
    let mut numbers = mine.split_whitespace();
    assert_eq!(numbers.next(), numbers.next(), "{mine}");
    assert_eq!(started("umask 777; ", "umask"), "0022");
}

#[test]
fn what_is_to_outlive_us_has_the_limits_of_the_first_process() {
    let first = fs::read_to_string("/proc/1/limits").expect("it can be read");
    let seen = started("ulimit -S -n 64; ", "cat /proc/self/limits");
    // Only root may raise them, and only where nobody keeps that from root.
    let files = |text: &str| {
        let line =
            text.lines().find(|line| line.starts_with("Max open files")).expect("it is told");
        let soft = line.split_whitespace().nth(3).expect("a limit");
        soft.parse::<u64>().unwrap_or(u64::MAX)
    };
    assert!(files(&seen) > 64 || files(&first) <= 64, "{seen}");
    if started("", "id -u") == "0" {
        assert_eq!(started("renice -n 7 $BASHPID >/dev/null; ", "nice"), "0");
        let killed =
            started("echo 500 >/proc/self/oom_score_adj; ", "cat /proc/self/oom_score_adj");
        assert_eq!(killed, fs::read_to_string("/proc/1/oom_score_adj").unwrap().trim());
    }
}

#[test]
fn a_program_that_cannot_be_started_is_named() {
    let output = Command::new(program()).arg0(STARTER).arg("/no/such/program").output().unwrap();
    assert_eq!(output.status.code(), Some(127));
    assert!(text(&output).contains("/no/such/program"), "{}", text(&output));
    let output = Command::new(program()).arg0(STARTER).output().unwrap();
    assert_eq!(output.status.code(), Some(127));
}

/// `show` of a file that is no image: it needs no Xen, and ends with 3.
fn shows(before: &str, after: &str) -> String {
    let output = shell(&format!("{before} \"$P\" show /etc/passwd {after}; echo end $?"));
    text(&output)
}

#[test]
fn the_program_begins_whatever_its_caller_has_done() {
    for before in [
        "",
        "trap '' CHLD; ",
        "env --block-signal=CHLD,INT ",
        "env -i ",
        "BASH_ENV=/etc/passwd PATH=/nowhere LD_X=1 ",
        "ulimit -S -n 16; ",
        "exec -a odd ",
        "unset P2; ",
    ] {
        let line =
            if before.starts_with("exec") { format!("( {before}") } else { before.to_owned() };
        let after = if before.starts_with("exec") { ")" } else { "" };
        let seen = shows(&line, after);
        assert!(seen.contains("end 3"), "{before}: {seen}");
        assert!(seen.contains("/etc/passwd"), "{before}: {seen}");
    }
    assert!(shows("", "<&- >&- 2>&-").contains("end 3"));
}

#[test]
fn an_image_is_not_written_to_nowhere() {
    for nowhere in [">&-", ">/dev/null"] {
        let output = shell(&format!("\"$P\" create web1 --memory - {nowhere}"));
        assert_eq!(output.status.code(), Some(2), "{nowhere}: {}", text(&output));
        assert!(text(&output).contains("would be lost"), "{nowhere}: {}", text(&output));
    }
}

#[test]
fn a_new_beginning_costs_little() {
    let run = |clean: bool| {
        let mut command = Command::new(program());
        command.arg("--version").stdout(Stdio::null());
        if clean {
            command.env_clear().envs([("LC_ALL", "C"), ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")]);
        }
        let begin = std::time::Instant::now();
        assert!(command.status().unwrap().success());
        begin.elapsed()
    };
    let median = |clean| {
        let mut times: Vec<_> = (0..15).map(|_| run(clean)).collect();
        times.sort();
        times[7]
    };
    let (clean, anew) = (median(true), median(false));
    println!("{clean:?} and {anew:?}");
    // A few milliseconds; generous, for a busy machine.
    assert!(anew < clean + std::time::Duration::from_millis(100), "{clean:?} and {anew:?}");
}
