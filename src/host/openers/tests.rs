use std::fs::File;
use std::net::TcpListener;
use std::time::Instant;

use nix::unistd::getppid;

use super::*;
use crate::host::command;

#[test]
fn connections_are_told_from_listeners() {
    let line = |state: &str, path: &str| {
        let text =
            format!("000000006e1f2a3b: 00000003 00000000 00000000 0001 {state} 53079 {path}");
        connection(text.as_bytes(), Path::new("/run/a b.sock"))
    };
    assert!(line("03", "/run/a b.sock") && line("02", "/run/a b.sock"));
    assert!(!line("01", "/run/a b.sock") && !line("03", "/run/b.sock"));
    assert!(!connection(b"", Path::new("/run/a")) && !connection(b"Num RefCount", Path::new("/r")));
}

/// A program that has a file open until it is dropped.
struct Reader(std::process::Child);

impl Reader {
    fn of(path: &Path) -> Reader {
        Reader::holding(File::open(path).unwrap())
    }

    fn holding(file: File) -> Reader {
        #[expect(clippy::disallowed_methods, reason = "a test needs another process")]
        let child = std::process::Command::new("sleep").arg("60").stdin(file).spawn().unwrap();
        Reader(child)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn who_has_a_file_open_is_named_by_any_path_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = (directory.path().join("a"), directory.path().join("b"));
    fs::write(&a, "a").unwrap();
    fs::hard_link(&a, &b).unwrap();
    let id = files::identity(&a).unwrap();
    assert_eq!(of_files(&[id], &Ours::default()), []);
    let reader = Reader::of(&b);
    let pid = reader.0.id();
    let found = of_files(&[id, (0, 0)], &Ours::default());
    let who = format!("sleep (process {pid})");
    assert_eq!(found, [(id, Opener { who, domid: None, writes: false })]);
    let ours = Ours { processes: vec![pid as i32], loops: Vec::new() };
    assert_eq!(of_files(&[id], &ours), []);
    drop(reader);
    assert_eq!(of_files(&[id], &Ours::default()), []);
    let _ = command::find(crate::tool::Tool::QemuImg).unwrap();
}

#[test]
fn it_takes_milliseconds() {
    let started = Instant::now();
    of_files(&[(1, 1), (2, 2), (3, 3)], &Ours::default());
    assert!(started.elapsed().as_secs() < 2);
}

#[test]
fn who_listens_on_a_port() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // We ourselves are left out of the names.
    let ip = "127.0.0.1".parse().unwrap();
    let expected = Listener { port, ip, who: "another program".into() };
    assert_eq!(of_ports(&[port], &Ours::default()), [expected]);
    drop(listener);
    assert_eq!(of_ports(&[port], &Ours::default()), []);
}

#[test]
fn a_port_is_taken_at_the_addresses_that_overlap() {
    let overlaps = |held: &str, wanted: Option<&str>| {
        let held = Listener { port: 5900, ip: held.parse().unwrap(), who: "x".into() };
        held.overlaps(wanted.map(|ip| ip.parse().unwrap()))
    };
    for (held, wanted) in [
        ("127.0.0.1", Some("127.0.0.1")),
        ("::ffff:127.0.0.1", Some("127.0.0.1")),
        ("127.0.0.1", Some("0.0.0.0")),
        ("0.0.0.0", Some("192.0.2.7")),
        ("::", Some("192.0.2.7")),
        ("192.0.2.7", None),
    ] {
        assert!(overlaps(held, wanted), "{held} {wanted:?}");
    }
    assert!(!overlaps("127.0.0.1", Some("192.0.2.7")) && !overlaps("::1", Some("127.0.0.1")));
    assert!(!overlaps("0.0.0.0", Some("::1")) && !overlaps("::1", Some("0.0.0.0")));
}

#[test]
fn lines_of_proc() {
    let line = "   0: 0100007F:170C 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0";
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    assert_eq!(super::listener(line), Some((ip("127.0.0.1"), 5900, 4711)));
    assert_eq!(super::listener(&line.replace(" 0A ", " 01 ")), None);
    // ::1, as this machine, whose numbers begin with their lowest byte, prints it.
    let six = line.replace("0100007F", "00000000000000000000000001000000");
    assert_eq!(super::listener(&six), Some((ip("::1"), 5900, 4711)));
    assert_eq!(super::listener(&line.replace("0100007F", "0100")), None);
    assert_eq!(socket(b"socket:[4711]"), Some(4711));
    assert_eq!(domid_of_qemu(b"/usr/bin/qemu\0-xen-domid\x007\0-x\0"), Some(7));
    assert_eq!(domid_of_qemu(b"/bin/sh\0"), None);
    assert_eq!(flags_in(&Some("pos:\t0\nflags:\t0100002\n".into())) & 3, libc::O_RDWR);
    assert_eq!(device_number((rustix::fs::makedev(253, 7), 0)), "253:7");
}

#[test]
fn the_other_side_of_a_terminal_is_found() {
    assert_eq!(terminal_in("pos:\t0\nino:\t91\ntty-index:\t12\n"), Some(12));
    assert_eq!(terminal_in("pos:\t0\n"), None);
    let own = getpid().as_raw();
    let pty = nix::pty::openpty(None, None).unwrap();
    let path = nix::unistd::ttyname(&pty.slave).unwrap();
    assert!(holds_terminal(own, &path));
    assert!(!holds_terminal(own, Path::new("/dev/pts/4000000")));
    assert!(!holds_terminal(own, Path::new("/dev/tty")));
    assert!(!holds_terminal(getppid().as_raw(), &path));
}

#[test]
fn the_locks_of_qemu_are_seen() {
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(!is_locked(file.path()));
    let lock = libc::flock {
        l_type: i16::try_from(libc::F_RDLCK).unwrap(),
        l_whence: 0,
        l_start: 201,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(file.as_file(), FcntlArg::F_OFD_SETLK(&lock)).unwrap();
    // This process does not look at its own descriptors: its lock could be another host's.
    assert!(is_locked_elsewhere(file.path()));
    let holder = Reader::holding(file.as_file().try_clone().unwrap());
    assert!(!is_locked_elsewhere(file.path()));
    drop(holder);
    assert!(is_locked_elsewhere(file.path()));
    assert!(is_locked(file.path()));
}
