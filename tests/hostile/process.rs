//! The whole of `show` as a process, on damaged images, records, SPEC.toml files and disks: within limits
//! of time, memory, descriptors and file size, without a connection to anybody, and without a word that
//! controls the terminal or looks like one of ours.

#![expect(clippy::disallowed_methods, reason = "the program itself is tested")]

use std::env;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use proptest::prelude::{Strategy, prop_oneof};
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};
use xl_snapshot::memory::header::{Header, encode, record_space};
use xl_snapshot::names::is_plain;
use xl_snapshot::record::Record;

use crate::damage;
use crate::harness::reliability;

/// An answer may take so long on a busy machine, with a tool that is killed after two minutes never.
const SLOWEST: Duration = Duration::from_secs(30);

const TOKENS: &[&str] = &[
    "version = 1\n",
    "complete = true\n",
    "[[disk]]\nvdev = \"xvdz\"\npath = \"/dev/watchdog\"\n[disk.snapshot.vhd]\nchild = \"/dev/zero\"\n",
    "format = \"qcow2\"\n",
    "memory = \"a.qcow2\"\n",
    "config = \"/dev/zero\"\n",
    "\u{1b}[2J",
    "\u{202e}",
    "\\nleft:  all of it\\n       rm -rf /\\n",
];

struct Host {
    directory: tempfile::TempDir,
    listener: TcpListener,
}

impl Host {
    fn new() -> Host {
        let directory = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        // Nobody ever writes to it.
        mkfifo(&directory.path().join("fifo"), Mode::S_IRWXU).unwrap();
        symlink("/dev/zero", directory.path().join("zero")).unwrap();
        Host { directory, listener }
    }

    fn file(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    fn nbd(&self) -> String {
        format!("nbd://127.0.0.1:{}/x", self.listener.local_addr().unwrap().port())
    }

    /// Texts that name the disks of a snapshot.
    fn record(&self, memory: bool) -> Record {
        let (disk, fifo, zero) = (self.file("a.qcow2"), self.file("fifo"), self.file("zero"));
        let frozen = "proof = { virtual_size = 1048576, file_size = 196624, mtime = \
                      \"2026-03-01T02:03:04Z\", inode = 7 }";
        let kept = [
            (&disk, "qcow2", "internal = { }".to_owned()),
            (&disk, "qcow2", format!("external = {{ overlay = \"/srv/o\", {frozen} }}")),
            (&fifo, "qcow2", format!("external = {{ overlay = \"/srv/o\", {frozen} }}")),
            (&fifo, "vhd", format!("vhd = {{ child = \"/srv/o\", {frozen} }}")),
            (&zero, "raw", format!("external = {{ overlay = \"/srv/o\", {frozen} }}")),
            (&zero, "raw", format!("reflink = {{ copy = \"{fifo}\", {frozen} }}")),
        ];
        let mut text = format!(
            "version = 1\ncomplete = true\nname = \"s1\"\nid = \"0b41a0a5-4a1c-4b3c-8f1e-93d4b0b1a001\"\n\
             created = \"2026-03-01T02:03:04Z\"\nlive = true\n{}writer = \"x\"\nxen = \"4.17\"\n\
             image_size = 0\n[domain]\nname = \"web1\"\nuuid = \"6f2c3c5e-7bd8-4d0e-9f3b-4d2f6f3b7a10\"\n\
             type = \"pv\"\nmemory_kib = 131072\n",
            if memory { "" } else { "disks_only = \"offline\"\n" },
        );
        for (number, (path, format, kept)) in kept.iter().enumerate() {
            text += &format!(
                "[[disk]]\nvdev = \"xvd{number}\"\npath = \"{path}\"\nformat = \"{format}\"\n\
                 [disk.snapshot]\n{kept}\n"
            );
        }
        Record::parse(&text).unwrap()
    }

    /// Images, records and SPEC.toml files that are right.
    fn snapshots(&self) -> Vec<Vec<u8>> {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/image/file");
        let bytes = fs::read(corpus).unwrap();
        let mut stream = bytes.as_slice();
        Header::read(&mut stream).unwrap();
        let mut record = self.record(true);
        let config = r#"{"c_info":{"name":"web1","uuid":"6f2c3c5e-7bd8-4d0e-9f3b-4d2f6f3b7a10"}}"#;
        let space = record_space(&record);
        let length = encode(config, &record, space).unwrap().len() + stream.len();
        record.image_size = length as u64;
        let mut image = encode(config, &record, space).unwrap();
        image.extend(stream);
        let packed = zstd::encode_all(image.as_slice(), 1).unwrap();
        let alone = format!("# xl-snapshot record\n{}", self.record(false).to_toml());
        let spec = format!("memory = \"{}\"\n", self.file("fifo"));
        vec![image, packed, alone.into_bytes(), spec.into_bytes()]
    }

    /// Images of disks, of which some name what should not be opened.
    fn disks(&self) -> Vec<Vec<u8>> {
        let path = self.file("made.qcow2");
        let json = format!("json:{{\"driver\":\"raw\",\"file\":\"{}\"}}", self.nbd());
        let backing = [None, Some(self.nbd()), Some(json), Some(self.file("fifo"))];
        let make = |backing: Option<String>| {
            let mut call = Command::new("qemu-img");
            call.args(["create", "-q", "-f", "qcow2", "-u"]);
            if let Some(backing) = backing {
                call.args(["-F", "raw", "-b", &backing]);
            }
            assert!(call.args([&path, "1M"]).status().unwrap().success());
            fs::read(&path).unwrap()
        };
        backing.into_iter().map(make).collect()
    }

    fn show(&self, name: &str, json: bool) -> Output {
        let limits = ["--as=2147483648", "--nofile=64", "--cpu=20", "--fsize=67108864"];
        let mut child = Command::new("prlimit")
            .args(limits)
            .arg(env!("CARGO_BIN_EXE_xl-snapshot"))
            .arg("show")
            .args(json.then_some("--json"))
            .arg(self.file(name))
            .stdin(Stdio::null())
            .stdout(fs::File::create(self.file("out")).unwrap())
            .stderr(fs::File::create(self.file("err")).unwrap())
            .spawn()
            .unwrap();
        let end = Instant::now() + SLOWEST;
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > end {
                child.kill().unwrap();
                panic!("it takes longer than {SLOWEST:?}");
            }
            thread::sleep(Duration::from_millis(5));
        };
        let read = |name| fs::read(self.file(name)).unwrap();
        Output { status, stdout: read("out"), stderr: read("err") }
    }

    fn check(&self, name: &str, json: bool) -> bool {
        let Output { status, stdout, stderr } = self.show(name, json);
        let code = status.code().expect("it is not killed, and does not crash");
        let (out, err) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
        assert!(matches!(code, 0 | 2 | 3), "{code}: {err}");
        assert_eq!(code == 0, err.is_empty(), "{err}");
        assert_eq!(code == 0, !out.is_empty(), "{out}");
        assert!(!err.contains("panicked"), "{err}");
        for text in [&out, &err] {
            assert!(text.chars().all(|c| c == '\n' || json || is_plain(c)), "{text:?}");
            assert!(!text.lines().any(|line| line.starts_with("left:")), "{text}");
        }
        let nobody = self.listener.accept().unwrap_err();
        assert_eq!(nobody.kind(), ErrorKind::WouldBlock);
        code == 0
    }
}

#[test]
fn show_of_anything() {
    let host = Host::new();
    let (snapshots, disks) = (host.snapshots(), host.disks());
    let mut count = 0;
    for (number, snapshot) in snapshots.iter().enumerate() {
        for disk in &disks {
            fs::write(host.file("s.toml"), snapshot).unwrap();
            fs::write(host.file("a.qcow2"), disk).unwrap();
            let shown = host.check("s.toml", false);
            // As SPEC.toml, only what is a record is something else.
            assert_eq!(shown, number == 2);
            fs::rename(host.file("s.toml"), host.file("s")).unwrap();
            let shown = host.check("s", true);
            let said = String::from_utf8(host.show("s", false).stderr).unwrap();
            assert_eq!(shown, number < 3, "snapshot {number}: {said}");
            count += 2;
        }
    }
    for name in ["fifo", "zero", "none", ""] {
        assert!(!host.check(name, false));
    }

    let input = |seeds: &[Vec<u8>]| {
        let made = select(seeds.to_vec()).boxed();
        damage::inputs(seeds.to_vec(), TOKENS, made)
    };
    let names = prop_oneof![3 => "s", 1 => "s\\.toml"];
    let all = (input(&snapshots), input(&disks), names, proptest::bool::ANY);
    let seconds = env::var("HOSTILE_SECONDS").ok().and_then(|text| text.parse().ok());
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(1));
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::default() });
    while Instant::now() < end {
        let (snapshot, disk, name, json) = all.new_tree(&mut runner).unwrap().current();
        fs::write(host.file(&name), &snapshot).unwrap();
        fs::write(host.file("a.qcow2"), &disk).unwrap();
        // For what fails: the next run begins with nothing.
        let kept = reliability().join("current");
        fs::create_dir_all(&kept).unwrap();
        fs::write(kept.join("show-snapshot"), &snapshot).unwrap();
        fs::write(kept.join("show-disk"), &disk).unwrap();
        host.check(&name, json);
        count += 1;
    }
    println!("show: {count} processes");
    let mut inputs =
        OpenOptions::new().append(true).create(true).open(reliability().join("inputs")).unwrap();
    inputs.write_all(format!("show\t{count}\n").as_bytes()).unwrap();
}
