//! Merges of images by a real QEMU, as the guest's QEMU does them.

#![expect(clippy::unwrap_used, reason = "a test's helpers may end the test")]

use std::io::{self, Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use xl_snapshot::host::block_jobs::{self, Pair, Waiting};
use xl_snapshot::host::qmp::Qmp;
use xl_snapshot::host::qmp::jobs::Nodes;

const QEMU: &str = "/usr/bin/qemu-system-x86_64";

/// A QEMU whose only disk is an image.
struct Qemu {
    process: Child,
    qmp: Qmp<UnixStream>,
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[expect(clippy::disallowed_methods, reason = "a test needs another program")]
fn command(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    command
}

fn run(args: &[&str]) -> String {
    let output = command(args[0], &args[1..]).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

impl Qemu {
    /// As libxl's QEMU has it: the image by its file, those below it by what the header says.
    fn start(directory: &Path, top: &Path) -> Qemu {
        Qemu::start_with(directory, top, None)
    }

    /// With another disk beside xvda.
    fn start_with(directory: &Path, top: &Path, other: Option<&Path>) -> Qemu {
        let socket = directory.join("qmp");
        let _ = fs::remove_file(&socket);
        let top = top.display();
        let args = [
            "-M",
            "pc",
            "-accel",
            "tcg",
            "-S",
            "-nodefaults",
            "-display",
            "none",
            "-blockdev",
            &format!("driver=file,node-name=xvda-file,filename={top},locking=off"),
            "-blockdev",
            "driver=qcow2,node-name=xvda-qcow2,file=xvda-file",
            "-device",
            "virtio-blk,drive=xvda-qcow2",
            "-qmp",
            &format!("unix:{},server=on,wait=off", socket.display()),
        ];
        let mut args = args.map(str::to_owned).to_vec();
        if let Some(other) = other {
            let other = other.display();
            args.extend([
                "-blockdev".to_owned(),
                format!("driver=file,node-name=xvdb-file,filename={other},locking=off"),
                "-blockdev".to_owned(),
                "driver=qcow2,node-name=xvdb-qcow2,file=xvdb-file".to_owned(),
                "-device".to_owned(),
                "virtio-blk,drive=xvdb-qcow2".to_owned(),
            ]);
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let process = command(QEMU, &args).stdin(Stdio::null()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            thread::sleep(Duration::from_millis(50));
        };
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        Qemu { process, qmp: Qmp::greet(stream).unwrap() }
    }

    /// It writes what it has cached.
    fn end(mut self) {
        let pid = Pid::from_raw(i32::try_from(self.process.id()).unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        self.process.wait().unwrap();
    }

    fn files(&mut self) -> Vec<PathBuf> {
        let nodes = self.qmp.named_nodes().unwrap();
        let mut files: Vec<_> =
            nodes.into_iter().filter(|node| node.is_image()).map(|node| node.file).collect();
        files.sort();
        files
    }
}

/// A chain `a <- b <- c <- d`, each with one MiB of its own letter in its own place, and one in all.
struct Chain {
    directory: tempfile::TempDir,
}

impl Chain {
    fn new() -> Chain {
        let chain = Chain { directory: tempfile::tempdir().unwrap() };
        run(&["qemu-img", "create", "-q", "-f", "raw", &chain.text("a"), "16M"]);
        for (below, format, image) in [("a", "raw", "b"), ("b", "qcow2", "c"), ("c", "qcow2", "d")]
        {
            let (below, image) = (chain.text(below), chain.text(image));
            let args = ["create", "-q", "-f", "qcow2", "-F", format, "-b", &below, &image];
            run(&[&["qemu-img"], &args[..]].concat());
        }
        for (number, image) in ["a", "b", "c", "d"].iter().enumerate() {
            let format = if *image == "a" { "raw" } else { "qcow2" };
            let own = format!("write -P {} {number}M 1M", 10 + number);
            let all = format!("write -P {} 8M 1M", 10 + number);
            run(&["qemu-io", "-f", format, "-c", &own, "-c", &all, &chain.text(image)]);
        }
        chain
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// What a guest reads of an image.
    fn content(&self, name: &str) -> Vec<u8> {
        let format = if name == "a" { "raw" } else { "qcow2" };
        let raw = self.text("content");
        run(&["qemu-img", "convert", "-U", "-f", format, "-O", "raw", &self.text(name), &raw]);
        fs::read(raw).unwrap()
    }

    fn below(&self, name: &str) -> Option<(String, String)> {
        let json = run(&["qemu-img", "info", "-U", "--output=json", &self.text(name)]);
        let info: serde_json::Value = serde_json::from_str(&json).unwrap();
        let text = |key: &str| Some(info.get(key)?.as_str()?.to_owned());
        Some((text("full-backing-filename")?, text("backing-filename-format")?))
    }
}

fn pair<'a>(root: &'a str, top: &'a Path, base: &'a Path) -> Pair<'a> {
    Pair { job: "xl-snapshot-test", root, top, base }
}

fn patiently<T>(what: impl FnOnce(&mut Waiting<'_>) -> T) -> T {
    let mut waiting =
        Waiting { show: &mut |_, _| (), stopped: &|| false, patience: Duration::from_secs(60) };
    what(&mut waiting)
}

#[test]
fn a_stream_leaves_the_paths_and_an_intermediate_commit_too() {
    let chain = Chain::new();
    let before = ["c", "d"].map(|name| chain.content(name));
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| chain.path(name));
    let mut qemu = Qemu::start(chain.directory.path(), &d);
    patiently(|waiting| {
        block_jobs::stream(&mut qemu.qmp, pair("xvda-qcow2", &c, &b), Some(&a), waiting).unwrap();
        // Once more: it is done.
        block_jobs::stream(&mut qemu.qmp, pair("xvda-qcow2", &c, &b), Some(&a), waiting).unwrap();
    });
    assert_eq!(chain.below("c"), Some((chain.text("a"), "raw".into())));
    assert_eq!(qemu.files(), [a.clone(), c.clone(), d.clone()]);
    assert!(["c", "d"].map(|name| chain.content(name)) == before);
    patiently(|waiting| {
        block_jobs::commit(&mut qemu.qmp, pair("xvda-qcow2", &c, &a), waiting).unwrap();
        block_jobs::commit(&mut qemu.qmp, pair("xvda-qcow2", &c, &a), waiting).unwrap();
    });
    assert_eq!(chain.below("d"), Some((chain.text("a"), "raw".into())));
    assert_eq!(qemu.files(), [a.clone(), d.clone()]);
    assert!([chain.content("a"), chain.content("d")] == before);
    // All of it, so that it rests on nothing.
    patiently(|waiting| {
        block_jobs::stream(&mut qemu.qmp, pair("xvda-qcow2", &d, &a), None, waiting).unwrap();
    });
    assert_eq!((chain.below("d"), qemu.files()), (None, vec![d]));
    assert!(qemu.qmp.jobs().unwrap().is_empty());
    qemu.end();
    assert!(chain.content("d") == before[1]);
}

#[test]
fn another_disk_on_the_same_base_is_not_in_the_way() {
    let chain = Chain::new();
    run(&[
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        &chain.text("a"),
        "-F",
        "raw",
        &chain.text("e"),
    ]);
    let before = ["c", "d", "e"].map(|name| chain.content(name));
    let [a, b, c, d, e] = ["a", "b", "c", "d", "e"].map(|name| chain.path(name));
    let mut qemu = Qemu::start_with(chain.directory.path(), &d, Some(&e));
    patiently(|waiting| {
        block_jobs::stream(&mut qemu.qmp, pair("xvda-qcow2", &c, &b), Some(&a), waiting).unwrap();
    });
    assert_eq!(chain.below("c"), Some((chain.text("a"), "raw".into())));
    qemu.end();
    assert!(["c", "d", "e"].map(|name| chain.content(name)) == before);
}

#[test]
fn another_spelling_of_a_path_does_not_hide_an_image() {
    let chain = Chain::new();
    let before = chain.content("d");
    let link = chain.path("link");
    symlink(chain.directory.path(), &link).unwrap();
    let [a, c, d] = ["a", "c", "d"].map(|name| chain.path(name));
    let by_link = |name: &str| link.join(name);
    let mut qemu = Qemu::start(chain.directory.path(), &d);
    patiently(|waiting| {
        let (top, base) = (by_link("b"), by_link("a"));
        block_jobs::commit(&mut qemu.qmp, pair("xvda-qcow2", &top, &base), waiting).unwrap();
        assert_eq!(qemu.files(), [a.clone(), c.clone(), d.clone()]);
        // As QEMU has it after somebody else's merge with another spelling, it names the images above by options.
        let nodes = qemu.qmp.named_nodes().unwrap();
        let name = |path: &Path| {
            let node = nodes.iter().find(|node| node.is_image() && node.file == path);
            node.unwrap().node_name.clone()
        };
        let (top, base) = (name(&c), name(&a));
        let other = by_link("a");
        let nodes = Nodes {
            root: "xvda-qcow2",
            top: &top,
            base: Some(&base),
            base_file: None,
            backing_file: Some(&other),
        };
        qemu.qmp.stream("other", nodes).unwrap();
        while qemu.qmp.jobs().unwrap().iter().any(|job| job.status != "concluded") {
            thread::sleep(Duration::from_millis(50));
        }
        qemu.qmp.dismiss_job("other").unwrap();
        assert_eq!(qemu.files(), [a.clone(), c.clone(), d.clone()]);
        block_jobs::commit(&mut qemu.qmp, pair("xvda-qcow2", &c, &a), waiting).unwrap();
        assert_eq!(qemu.files(), [a.clone(), d.clone()]);
        // What QEMU does not have is not taken for merged.
        let b = chain.path("b");
        let error =
            block_jobs::commit(&mut qemu.qmp, pair("xvda-qcow2", &d, &b), waiting).unwrap_err();
        assert!(error.to_string().contains("does not tell"), "{error}");
    });
    qemu.end();
    assert!(chain.content("d") == before);
}

#[test]
fn an_active_commit_switches_and_leaves_no_node() {
    let chain = Chain::new();
    let before = chain.content("d");
    let [c, d] = ["c", "d"].map(|name| chain.path(name));
    let mut qemu = Qemu::start(chain.directory.path(), &d);
    patiently(|waiting| {
        block_jobs::commit(&mut qemu.qmp, pair("xvda-qcow2", &d, &c), waiting).unwrap();
        // It waits, ready, and is found by who comes later.
        let jobs = qemu.qmp.jobs().unwrap();
        assert_eq!((jobs.len(), jobs[0].status.as_str()), (1, "ready"));
        block_jobs::commit(&mut qemu.qmp, pair("xvda-qcow2", &d, &c), waiting).unwrap();
        block_jobs::pivot(&mut qemu.qmp, pair("xvda-qcow2", &d, &c), waiting).unwrap();
        block_jobs::pivot(&mut qemu.qmp, pair("xvda-qcow2", &d, &c), waiting).unwrap();
    });
    assert_eq!(qemu.files(), ["a", "b", "c"].map(|name| chain.path(name)));
    assert!(qemu.qmp.jobs().unwrap().is_empty());
    qemu.end();
    assert!(chain.content("c") == before);
}

#[test]
fn a_job_that_gets_nowhere_is_taken_back() {
    let chain = Chain::new();
    let before = chain.content("d");
    let [a, b, d] = ["a", "b", "d"].map(|name| chain.path(name));
    let mut qemu = Qemu::start(chain.directory.path(), &d);
    let mut waiting =
        Waiting { show: &mut |_, _| (), stopped: &|| true, patience: Duration::from_secs(60) };
    let stopped = block_jobs::commit(&mut qemu.qmp, pair("xvda-qcow2", &b, &a), &mut waiting);
    // It may have been faster.
    if let Err(error) = stopped {
        assert!(error.to_string().contains("Stopped"), "{error}");
        assert!(qemu.files().contains(&b));
    }
    assert!(qemu.qmp.jobs().unwrap().is_empty());
    assert!(chain.content("d") == before);
}

/// A QEMU that answers as one whose guest writes faster than the job.
struct Busy {
    answers: io::Cursor<Vec<u8>>,
    asked: Vec<u8>,
}

impl Read for Busy {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.answers.read(buffer)
    }
}

impl Write for Busy {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.asked.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_commit_that_does_not_converge_is_cancelled() {
    let job = |status: &str, done: u64| {
        format!(
            r#"{{"return": [{{"id": "xl-snapshot-test", "type": "commit", "status": "{status}",
                "current-progress": {done}, "total-progress": {}}}]}}"#,
            done + 4096
        )
        .replace('\n', " ")
    };
    let mut lines = vec![r#"{"QMP": {}}"#.to_owned(), r#"{"return": {}}"#.to_owned()];
    lines.push(job("running", 0));
    lines.extend([1, 2].map(|done| job("running", done)));
    // cancelled, then concluded, then dismissed
    lines.push(r#"{"return": {}}"#.to_owned());
    lines.push(job("concluded", 3));
    lines.push(r#"{"return": {}}"#.to_owned());
    let answers = io::Cursor::new((lines.join("\n") + "\n").into_bytes());
    let mut qmp = Qmp::greet(Busy { answers, asked: Vec::new() }).unwrap();
    let mut waiting =
        Waiting { show: &mut |_, _| (), stopped: &|| false, patience: Duration::from_millis(150) };
    let (top, base) = (Path::new("/top"), Path::new("/base"));
    let error = block_jobs::commit(&mut qmp, pair("n", top, base), &mut waiting).unwrap_err();
    assert!(error.to_string().contains("made no progress"), "{error}");
}
