use std::fs::File;
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::running::{NOW_AND_THEN, Running, bound, must_end};
use super::*;
use crate::host::process::Handle;
use crate::tool::Invocation;

fn qemu_img(args: &[&str]) -> Invocation {
    Invocation::new(Tool::QemuImg, args)
}

#[test]
fn output_is_returned() {
    let output = run(&qemu_img(&["--version"])).unwrap();
    assert!(String::from_utf8(output).unwrap().starts_with("qemu-img version"));
}

#[test]
fn a_failure_names_command_status_and_words() {
    let error = run(&qemu_img(&["info", "-f", "raw", "/does not/exist"])).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("`qemu-img info -f raw '/does not/exist'` ended with"), "{text}");
    assert!(text.contains("exit status: 1"), "{text}");
    assert!(text.contains("No such file or directory"), "{text}");
}

/// A call that reads from a FIFO.
fn reads_fifo(directory: &Path, patience: Duration) -> (Invocation, PathBuf) {
    let fifo = directory.join("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let call = qemu_img(&["dd", "-f", "raw", "-O", "raw"])
        .arg(format!("if={}", fifo.display()))
        .arg(format!("of={}", directory.join("out").display()))
        .patient(patience);
    (call, fifo)
}

#[test]
fn what_hangs_is_killed() {
    // Nobody writes into the FIFO.
    let directory = tempfile::tempdir().unwrap();
    let (call, _) = reads_fifo(directory.path(), Duration::from_millis(300));
    let begin = Instant::now();
    let error = run(&call).unwrap_err();
    assert!(begin.elapsed() < Duration::from_secs(10));
    let text = error.to_string();
    assert!(text.contains("did nothing for 0 s and was killed"), "{text}");
    assert!(text.contains(" read, ") && text.contains("dmesg"), "{text}");
}

#[test]
fn a_logical_volume_manager_is_not_killed() {
    // It would end at once: what matters is which signal it got, and what is told.
    let directory = tempfile::tempdir().unwrap();
    let (call, _) = reads_fifo(directory.path(), Duration::from_millis(300));
    let mut running = Running::start(&call, Stdio::null(), &|_, _| ()).unwrap();
    assert!(!running.wait(None).unwrap());
    running.tool = Tool::Lvm;
    let error = running.give_up();
    assert!(matches!(error, CommandError::Hung { end: End::Asked, .. }), "{error:?}");
    assert!(error.to_string().contains("dmsetup info"), "{error}");
}

#[test]
fn what_works_is_waited_for() {
    // 2 MiB a second, in parts of 2 MiB.
    let directory = tempfile::tempdir().unwrap();
    let path = |name| directory.path().join(name);
    std::fs::write(path("in"), vec![7; 12 << 20]).unwrap();
    let patience = Duration::from_millis(2400);
    let call = qemu_img(&["convert", "-r", "2M", "-f", "raw", "-O", "raw"])
        .args([path("in"), path("out")])
        .patient(patience);
    let begin = Instant::now();
    run(&call).unwrap();
    assert!(begin.elapsed() > patience + patience / 2, "it was too fast to show anything");
    assert_eq!(std::fs::metadata(path("out")).unwrap().len(), 12 << 20);
}

#[test]
fn who_does_not_take_its_input_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let (call, _) = reads_fifo(directory.path(), Duration::from_millis(300));
    let begin = Instant::now();
    let body = io::repeat(0);
    let result = feed(&call, b"head", body, 1 << 30, &mut |_| (), &|_, _| ());
    assert!(matches!(result, Err(CommandError::Hung { end: End::Killed, .. })), "{result:?}");
    assert!(begin.elapsed() < Duration::from_secs(10));
}

#[test]
fn what_reads_headers_has_its_bounds() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.qcow2");
    let create = qemu_img(&["create", "-q", "-f", "qcow2"]).arg(&path).arg("4T");
    assert!(!create.describes_images());
    run(&create).unwrap();
    let info = qemu_img(&["info", "-f", "qcow2"]).arg(&path);
    assert!(info.describes_images());
    run(&info).unwrap();
    let mut child = program_at(Path::new("/bin/sleep")).arg("60").spawn().unwrap();
    bound(&child, 60);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let of = |name: &str| limits.lines().find(|line| line.starts_with(name)).unwrap();
    assert!(of("Max data size").contains("1073741824"), "{limits}");
    assert!(of("Max cpu time").contains("60"), "{limits}");
}

#[test]
fn somebody_is_told_while_a_tool_runs() {
    let directory = tempfile::tempdir().unwrap();
    let (call, _) = reads_fifo(directory.path(), NOW_AND_THEN * 3);
    let mut told = 0;
    let input = File::open("/dev/null").unwrap();
    let result = run_on(&call, input, &mut |pid| told = pid, &|_, _| ());
    assert!(matches!(result, Err(CommandError::Hung { .. })), "{result:?}");
    assert_ne!(told, 0);
}

#[test]
fn a_missing_tool_says_where_it_was_looked_for() {
    let text = CommandError::NotFound(Tool::Xl).to_string();
    assert!(text.contains("/usr/sbin") && text.contains("xen-utils"), "{text}");
}

#[test]
fn a_program_that_does_not_end_is_told() {
    let mut child = program_at(std::path::Path::new("/bin/sleep")).arg("60").spawn().unwrap();
    let handle = Handle::of_pid(child.id() as i32).unwrap().unwrap();
    let error = must_end(&handle, Duration::from_millis(10)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    assert!(error.to_string().contains("was killed and has not ended"), "{error}");
    child.kill().unwrap();
    must_end(&handle, Duration::from_secs(30)).unwrap();
    child.wait().unwrap();
}
