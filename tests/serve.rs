//! `serve` with the real qemu-nbd, and qemu-img as its client.

#![expect(clippy::unwrap_used, reason = "a test's helpers may end the test")]
#![expect(clippy::disallowed_methods, reason = "the program that is tested is no tool of it")]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use uuid::Uuid;
use xl_snapshot::delete;
use xl_snapshot::disk::image_tree::DeleteOptions;
use xl_snapshot::disk::kinds::{External, Internal, LeftOut, Reflink, Vhd};
use xl_snapshot::domain::{Format, GuestType};
use xl_snapshot::host::{command, deletion, files, tools};
use xl_snapshot::memory::header::MARK;
use xl_snapshot::record::{
    DiskRecord, DiskSnapshot, DisksOnly, DomainRecord, FrozenFile, Record, VERSION,
};
use xl_snapshot::tool::{Invocation, Tool};

const PROGRAM: &str = env!("CARGO_BIN_EXE_xl-snapshot");
const SIZE: u64 = 1 << 20;
/// Longer than anything takes that is waited for.
const LONG: Duration = Duration::from_secs(30);

fn run(tool: Tool, args: &[&str]) {
    command::run(&Invocation::new(tool, args)).unwrap();
}

/// A directory with the disks of a domain that does not run, and its snapshots.
struct Place {
    directory: tempfile::TempDir,
    domain: String,
}

impl Place {
    fn new() -> Place {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        // Locks are by the name, and tests run at the same time.
        let domain = format!("serve-{}", Uuid::new_v4().simple());
        fs::create_dir(directory.path().join(&domain)).unwrap();
        Place { directory, domain }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// An image whose every byte is that.
    fn image(&self, name: &str, format: Format, byte: u8) -> PathBuf {
        let raw = self.path("fill");
        fs::write(&raw, vec![byte; SIZE.try_into().unwrap()]).unwrap();
        let to = self.text(name);
        run(
            Tool::QemuImg,
            &["convert", "-f", "raw", "-O", format.qemu(), raw.to_str().unwrap(), &to],
        );
        self.path(name)
    }

    fn proof(path: &Path, virtual_size: u64) -> Option<FrozenFile> {
        let facts = files::facts(path).unwrap();
        let (file_size, mtime, inode) = (facts.size, facts.mtime, facts.inode);
        Some(FrozenFile { virtual_size, file_size, mtime, inode })
    }

    fn external(&self, vdev: &str, path: &Path, format: Format) -> DiskRecord {
        let kept = External { overlay: self.path("overlay.qcow2"), proof: Self::proof(path, SIZE) };
        disk(vdev, path, Some(format), kept.into())
    }

    fn internal(&self, vdev: &str, path: &Path, name: &str) -> DiskRecord {
        run(Tool::QemuImg, &["snapshot", "-q", "-c", name, path.to_str().unwrap()]);
        let info = tools::image(path, Format::Qcow2).unwrap();
        let proof = info.snapshots().into_iter().find(|s| s.name == name);
        disk(vdev, path, Some(Format::Qcow2), Internal { proof, bases: None }.into())
    }

    /// Writes the record of a snapshot s1 with those disks.
    fn save(&self, disks: Vec<DiskRecord>) -> PathBuf {
        let record = Record {
            version: VERSION,
            complete: true,
            name: "s1".parse().unwrap(),
            id: Uuid::new_v4(),
            created: Timestamp::now(),
            description: String::new(),
            live: false,
            disks_only: Some(DisksOnly::Offline),
            writer: "test".into(),
            xen: "4.17".into(),
            image_size: 0,
            parent: None,
            parent_by: None,
            quiesced: None,
            domain: DomainRecord {
                name: self.domain.clone(),
                uuid: Uuid::new_v4(),
                guest_type: GuestType::Pv,
                memory_kib: 1024,
                cfg: None,
            },
            disks,
        };
        let path = self.path(&format!("{}/s1.record", self.domain));
        fs::write(&path, MARK.to_owned() + &record.to_toml()).unwrap();
        path
    }

    fn program(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.env_clear().env("XL_SNAPSHOT_DIR", self.directory.path()).args(args);
        command
    }

    fn serve(&self, snapshot: &Path, vdev: &str, more: &[&str]) -> Served {
        let socket = self.path("socket");
        let mut command = self.program(&["serve", "--json", snapshot.to_str().unwrap(), vdev]);
        command.args(["--socket", socket.to_str().unwrap()]).args(more);
        Served::start(command, socket)
    }

    /// What it says when it refuses.
    fn refused(&self, snapshot: &Path, vdev: &str, more: &[&str], status: i32) -> String {
        let mut command = self.program(&["serve", snapshot.to_str().unwrap(), vdev]);
        if !more.contains(&"--socket") {
            command.args(["--socket", &self.text("socket")]);
        }
        let output = command.args(more).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{errors}");
        assert!(!self.path("socket").exists() || more.contains(&"--socket"), "{errors}");
        errors
    }
}

fn disk(vdev: &str, path: &Path, format: Option<Format>, snapshot: DiskSnapshot) -> DiskRecord {
    DiskRecord { vdev: vdev.into(), path: path.to_owned(), format, snapshot }
}

/// A server that runs.
struct Served {
    child: Child,
    socket: PathBuf,
    said: Value,
}

impl Served {
    fn start(mut command: Command, socket: PathBuf) -> Served {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        while lines.read_line(&mut said).unwrap() > 0 && !said.ends_with("\n}\n") {}
        let mut errors = String::new();
        if said.is_empty() {
            child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        }
        assert!(!said.is_empty(), "{errors}");
        Served { child, socket, said: serde_json::from_str(&said).unwrap() }
    }

    fn uri(&self) -> &str {
        self.said["uri"].as_str().unwrap()
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    /// The processes of qemu-nbd that serve this socket's disk.
    fn qemu_nbd(&self) -> Vec<i32> {
        let parent = self.pid().to_string();
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let numbers = processes.filter_map(|p| p.file_name().to_str()?.parse::<i32>().ok());
        let is_its = |pid: &i32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status.lines().any(|line| line == format!("PPid:\t{parent}"))
        };
        numbers.filter(is_its).collect()
    }

    fn content(&self) -> Vec<u8> {
        let raw = tempfile::NamedTempFile::new().unwrap();
        let to = raw.path().to_str().unwrap();
        run(Tool::QemuImg, &["convert", "-f", "raw", "-O", "raw", self.uri(), to]);
        fs::read(raw.path()).unwrap()
    }

    fn holds(&self, byte: u8) {
        let content = self.content();
        assert_eq!(content.len() as u64, SIZE);
        assert!(content.iter().all(|other| *other == byte), "{} is not {byte}", content[0]);
    }

    /// Waits for its end.
    fn output(self) -> Output {
        let socket = self.socket.clone();
        let started = Instant::now();
        let mut child = self.child;
        while child.try_wait().unwrap().is_none() {
            assert!(started.elapsed() < LONG, "it does not end");
            sleep(Duration::from_millis(20));
        }
        assert!(!socket.exists(), "its socket is left");
        child.wait_with_output().unwrap()
    }

    fn end(self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
        let output = self.output();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), errors.as_str()), (Some(0), ""));
    }
}

/// Whether a process has ended.
fn gone(pid: i32) -> bool {
    let started = Instant::now();
    let there = || match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => !stat.contains(") Z "),
        Err(_) => false,
    };
    while there() {
        if started.elapsed() > LONG {
            return false;
        }
        sleep(Duration::from_millis(20));
    }
    true
}

#[test]
fn a_frozen_file_is_read_with_what_is_below_it() {
    let place = Place::new();
    let base = place.image("base, a.img", Format::Raw, 1);
    let (base, top) = (base.to_str().unwrap(), place.text("top b.qcow2"));
    run(Tool::QemuImg, &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, &top]);
    let disk = place.external("xvda", Path::new(&top), Format::Qcow2);
    place.save(vec![disk]);
    // By DOMAIN/NAME, and by another name of the disk.
    let served = place.serve(Path::new(&format!("{}/s1", place.domain)), "51712", &[]);
    let meta = fs::symlink_metadata(&served.socket).unwrap();
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.mode() & 0o777, 0o600);
    let said = &served.said;
    assert_eq!(said["vdev"], "xvda");
    assert_eq!(said["size"], SIZE);
    assert_eq!(said["image"], top);
    served.holds(1);
    // As often as anybody likes.
    served.holds(1);
    let write = Command::new("qemu-io")
        .args(["-f", "raw", "-c", "write 0 512", served.uri()])
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&write.stderr).to_lowercase();
    assert!(words.contains("read-only") || words.contains("permission"), "{words}");
    served.end(Signal::SIGTERM);
}

#[test]
fn a_snapshot_inside_is_read_while_its_image_is_written_to() {
    let place = Place::new();
    let image = place.image("a.qcow2", Format::Qcow2, 1);
    let disk = place.internal("xvda", &image, "s1");
    let path = image.to_str().unwrap();
    let write = |byte: u8| {
        let write = format!("write -P {byte} 0 {SIZE}");
        let io = Command::new("qemu-io").args(["-f", "qcow2", "-c", &write, path]).output();
        assert!(io.unwrap().status.success());
    };
    write(2);
    let record = place.save(vec![disk]);
    let served = place.serve(&record, "xvda", &[]);
    served.holds(1);
    // As a guest's QEMU, which libxl starts without locks.
    let options = format!("driver=qcow2,file.driver=file,file.locking=off,file.filename={path}");
    let write = format!("write -P 3 0 {SIZE}");
    let io = Command::new("qemu-io").args(["--image-opts", "-c", &write, &options]).output();
    assert!(io.unwrap().status.success());
    served.holds(1);
    served.end(Signal::SIGTERM);
}

#[test]
fn copies_and_vhds_are_read() {
    let place = Place::new();
    let own = place.image("own.img", Format::Raw, 9);
    let copy = place.image("copy.img", Format::Raw, 2);
    let proof = Place::proof(&copy, SIZE);
    let reflink = disk("xvda", &own, Some(Format::Raw), Reflink { copy, proof }.into());
    // Of a size that is no disk geometry's.
    let path = place.text("c.vhd");
    let raw = place.image("c.img", Format::Raw, 3);
    let options = ["-o", "subformat=dynamic,force_size=on"];
    let convert = ["convert", "-f", "raw", "-O", "vpc", options[0], options[1]];
    run(Tool::QemuImg, &[&convert[..], &[raw.to_str().unwrap(), &path]].concat());
    let path = Path::new(&path);
    let proof = Place::proof(path, tools::vhd_footer(path).unwrap().virtual_size);
    let vhd =
        disk("xvdb", path, Some(Format::Raw), Vhd { child: place.path("d.vhd"), proof }.into());
    let record = place.save(vec![reflink, vhd]);
    let served = place.serve(&record, "xvda", &[]);
    served.holds(2);
    served.end(Signal::SIGTERM);
    let served = place.serve(&record, "xvdb", &[]);
    assert_eq!(served.said["snapshot"], "vhd");
    served.holds(3);
    served.end(Signal::SIGTERM);
}

#[test]
fn once_it_ends_with_its_client() {
    let place = Place::new();
    let image = place.image("a.img", Format::Raw, 1);
    let record = place.save(vec![place.external("xvda", &image, Format::Raw)]);
    let served = place.serve(&record, "xvda", &["--once", "--export-name", "web 1/a"]);
    assert!(served.uri().starts_with("nbd+unix:///web%201/a?socket=/"), "{}", served.uri());
    served.holds(1);
    let output = served.output();
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn qemu_nbd_ends_with_us_and_we_with_it() {
    let place = Place::new();
    let image = place.image("a.img", Format::Raw, 1);
    let record = place.save(vec![place.external("xvda", &image, Format::Raw)]);
    let mut served = place.serve(&record, "xvda", &[]);
    let children = served.qemu_nbd();
    assert_eq!(children.len(), 1);
    kill(served.pid(), Signal::SIGKILL).unwrap();
    served.child.wait().unwrap();
    assert!(gone(children[0]));
    // Its last thread closes the socket, which may end after the one that the process is known by.
    let end = Instant::now() + Duration::from_secs(10);
    while UnixStream::connect(&served.socket).is_ok() {
        assert!(Instant::now() < end, "somebody still listens");
        sleep(Duration::from_millis(20));
    }

    // What that one has left is no obstacle.
    let again = place.serve(&record, "xvda", &[]);
    again.holds(1);
    kill(Pid::from_raw(again.qemu_nbd()[0]), Signal::SIGKILL).unwrap();
    let output = again.output();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(
        errors.contains("Serving xvda of snapshot s1") && errors.contains("signal"),
        "{errors}"
    );
}

#[test]
fn what_is_served_is_not_deleted() {
    let place = Place::new();
    let image = place.image("a.qcow2", Format::Qcow2, 1);
    let inside = place.internal("xvda", &image, "s1");
    let frozen = place.image("b.img", Format::Raw, 2);
    let record = place.save(vec![inside, place.external("xvdb", &frozen, Format::Raw)]);
    let delete = || {
        let seen = deletion::look(None, &deletion::named(&record)?, place.path(""))?;
        delete::disks(&seen, DeleteOptions { flatten: false }).map(drop)
    };
    delete().unwrap();
    for vdev in ["xvda", "xvdb"] {
        let served = place.serve(&record, vdev, &[]);
        let error = delete().unwrap_err();
        let who = format!("is open in xl-snapshot serve (process {})", served.pid());
        assert!(error.chain().join(": ").ends_with(&who), "{error:?}");
        assert_eq!(error.exit_code(), 3);
        served.end(Signal::SIGTERM);
    }
    delete().unwrap();
}

#[test]
fn what_cannot_be_served_is_refused() {
    let place = Place::new();
    let image = place.image("a.img", Format::Raw, 1);
    let left = LeftOut { why: "it is read-only".into() };
    let record = place.save(vec![
        place.external("xvda", &image, Format::Raw),
        disk("xvdb", &image, Some(Format::Raw), left.into()),
        disk(
            "xvdc",
            Path::new("/dev/no/such"),
            Some(Format::Raw),
            External { overlay: "/srv/x".into(), proof: None }.into(),
        ),
    ]);
    let errors = place.refused(&record, "xvdz", &[], 2);
    assert!(errors.contains("has no disk xvdz") && errors.contains("xvda, xvdc"), "{errors}");
    let errors = place.refused(&record, "xvdb", &[], 3);
    assert!(errors.contains("it is not in the snapshot: it is read-only"), "{errors}");
    let errors = place.refused(&record, "xvdc", &[], 3);
    assert!(errors.contains("the record has no proof of it"), "{errors}");

    // Sockets.
    let (file, link, open) = (place.text("file"), place.text("link"), place.path("open"));
    fs::write(&file, "content").unwrap();
    symlink("/nowhere", &link).unwrap();
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    let in_open = place.text("open/socket");
    let long = place.text(&"x".repeat(110));
    for (socket, words) in [
        (&file, "it exists"),
        (&link, "it exists"),
        (&in_open, "others may write to the directory"),
        (&long, "107 are the limit"),
    ] {
        let errors = place.refused(&record, "xvda", &["--socket", socket], 3);
        assert!(errors.contains(words), "{errors}");
    }
    assert_eq!(fs::read(&file).unwrap(), b"content");
    assert!(!Path::new(&in_open).exists());
    place.refused(&record, "xvda", &["--export-name", "a\nb"], 2);

    // The proof.
    let writer = fs::File::options().append(true).open(&image).unwrap();
    let errors = place.refused(&record, "xvda", &[], 3);
    assert!(errors.contains("may write to"), "{errors}");
    drop(writer);
    fs::write(&image, vec![7; SIZE.try_into().unwrap()]).unwrap();
    let errors = place.refused(&record, "xvda", &[], 3);
    assert!(errors.contains("cannot be read") && errors.contains("written to since"), "{errors}");
}

#[test]
fn a_resized_image_is_refused() {
    let place = Place::new();
    let image = place.image("a.qcow2", Format::Qcow2, 1);
    let record = place.save(vec![place.internal("xvda", &image, "s1")]);
    run(Tool::QemuImg, &["resize", "-q", "-f", "qcow2", image.to_str().unwrap(), "2M"]);
    let errors = place.refused(&record, "xvda", &[], 3);
    assert!(errors.contains("the image was resized since"), "{errors}");
}
