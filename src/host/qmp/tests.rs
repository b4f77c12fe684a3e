use std::iter;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use qapi::qmp::query_block;

use super::*;

/// A QEMU that says `lines` one after the other, each after a command.
fn qemu(lines: &'static [&'static str]) -> io::Result<Qmp> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    thread::spawn(move || {
        let mut reader = BufReader::new(theirs.try_clone().unwrap());
        for (number, line) in lines.iter().enumerate() {
            if number > 0 {
                let mut command = String::new();
                reader.read_line(&mut command).unwrap();
            }
            writeln!(&theirs, "{line}").unwrap();
        }
        // One more is read, and never answered.
        let _ = reader.read_line(&mut String::new());
    });
    Qmp::greet(ours)
}

const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": []}}"#;
const OK: &str = r#"{"return": {}}"#;

#[test]
fn events_are_skipped_even_unknown_ones() {
    // One write of two lines: the event first, then the answer.
    let event = "{\"event\": \"NEVER_HEARD_OF\", \"timestamp\": {}}\n{\"return\": {}}";
    let lines: &'static [&'static str] = Box::leak(Box::new([GREETING, OK, event]));
    qemu(lines).unwrap().transaction(&[], &mut || ()).unwrap();
}

#[test]
fn a_refusal_is_told_from_silence() {
    let refused = r#"{"error": {"class": "GenericError", "desc": "Snapshot exists"}}"#;
    let lines: &'static [&'static str] = Box::leak(Box::new([GREETING, OK, refused]));
    let error = qemu(lines).unwrap().transaction(&[], &mut || ()).unwrap_err();
    assert_eq!(error.to_string(), "QEMU refused transaction: Snapshot exists");
    let error = qemu(&[GREETING, OK]).unwrap().transaction(&[], &mut || ()).unwrap_err();
    assert!(matches!(error, QmpError::Broken { command: "transaction", .. }), "{error}");
}

/// A QEMU that reads one command, and then does what it likes.
fn busy(then: impl FnOnce(UnixStream) + Send + 'static) -> Qmp {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    thread::spawn(move || {
        BufReader::new(theirs.try_clone().unwrap()).read_line(&mut String::new()).unwrap();
        then(theirs);
    });
    Qmp { stream: BufReader::new(ours), armed: None }
}

#[test]
fn the_transaction_is_waited_for_as_long_as_qemu_lives() {
    // Many times longer than a read waits, and in two parts.
    let mut qmp = busy(|mut theirs| {
        theirs.write_all(b"{\"event\": \"X\"}\n{\"ret").unwrap();
        thread::sleep(Duration::from_millis(300));
        theirs.write_all(b"urn\": {}}\n").unwrap();
    });
    qmp.transaction(&[], &mut || ()).unwrap();
    // Its end ends the wait.
    let error = busy(drop).transaction(&[], &mut || ()).unwrap_err();
    assert!(matches!(error, QmpError::Broken { .. }), "{error}");
}

#[test]
fn who_waits_for_long_is_told_once() {
    let mut told = 0;
    let mut tell = || told += 1;
    let mut patience = Patience::WhileItLives(Some((Instant::now(), &mut tell)));
    patience.check().unwrap();
    patience.check().unwrap();
    assert_eq!(told, 1);
}

#[test]
fn neither_events_nor_single_bytes_extend_a_limit() {
    let end = Instant::now() + Duration::from_secs(10);
    for drop_by_drop in [&b"{\"event\": \"X\"}\n"[..], b" "] {
        let mut qmp = busy(move |mut theirs| {
            while Instant::now() < end && theirs.write_all(drop_by_drop).is_ok() {
                thread::sleep(Duration::from_millis(1));
            }
        });
        qmp.send::<query_block>("\n").unwrap();
        let mut patience = Patience::short(Duration::from_millis(100));
        let error = qmp.answer::<query_block, IgnoredAny>(&mut patience).unwrap_err();
        assert!(matches!(error, QmpError::Broken { .. }), "{error}");
    }
    assert!(Instant::now() < end, "the limit did not hold");
}

#[test]
fn a_flood_of_events_is_cut_off() {
    let mut qmp = busy(|mut theirs| {
        let event = b"{\"event\": \"X\"}\n".repeat(1000);
        while theirs.write_all(&event).is_ok() {}
    });
    let error = qmp.transaction(&[], &mut || ()).unwrap_err();
    let QmpError::Broken { source, .. } = error else { panic!("{error}") };
    assert!(source.to_string().contains("events"), "{source}");
}

#[test]
fn a_queue_that_is_full_is_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp");
    let _listener = UnixListener::bind(&path).unwrap();
    let held: Vec<_> = iter::from_fn(|| {
        let socket =
            socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_NONBLOCK, None).unwrap();
        let full = connect(socket.as_raw_fd(), &UnixAddr::new(&path).unwrap()).is_err();
        (!full).then_some(socket)
    })
    .collect();
    let error = connected(&path).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{} wait", held.len());
    assert!(connected(&directory.path().join("none")).is_err());
}

#[test]
fn what_is_not_qemu_is_noticed() {
    assert!(qemu(&["SSH-2.0-OpenSSH"]).is_err());
    assert!(qemu(&["{}"]).is_err());
    assert!(qemu(&[]).is_err());
}

#[test]
fn an_armed_transaction_waits_for_its_last_byte() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let mut qmp = Qmp { stream: BufReader::new(ours), armed: None };
    let action = Action::Internal {
        vdev: "a".into(),
        node: "a-qcow2".into(),
        name: "s1".into(),
        file: "/a".into(),
    };
    let actions = [action.clone()];
    let mut text = [0; 1024];
    let mut sent = || {
        let count = (&theirs).read(&mut text).unwrap();
        String::from_utf8(text[..count].to_vec()).unwrap()
    };
    qmp.send_transaction(&actions).unwrap();
    let begin = sent();
    serde_json::from_str::<serde_json::Value>(&begin).unwrap_err();
    writeln!(&theirs, "{OK}").unwrap();
    qmp.transaction(&actions, &mut || ()).unwrap();
    assert_eq!(begin + &sent(), request(&to_transaction(&actions)).unwrap());
    // Another one is not mixed with it.
    qmp.send_transaction(&actions).unwrap();
    let error = qmp.transaction(&[action.clone(), action], &mut || ()).unwrap_err();
    assert!(matches!(error, QmpError::Unsent { .. }), "{error}");
}

#[test]
fn the_transaction_is_what_qemu_wants() {
    let actions = [
        Action::Internal {
            vdev: "xvda".into(),
            node: "xvda-qcow2".into(),
            name: "s1".into(),
            file: "/a".into(),
        },
        Action::Overlay {
            vdev: "xvdb".into(),
            node: "xvdb-raw".into(),
            file: "/srv/b.after-s1.qcow2".into(),
            new_node: "xvdb-0b41a0a5".into(),
        },
    ];
    assert_eq!(
        serde_json::to_value(to_transaction(&actions)).unwrap(),
        json!({"actions": [
            {"type": "blockdev-snapshot-internal-sync",
             "data": {"device": "xvda-qcow2", "name": "s1"}},
            {"type": "blockdev-snapshot-sync",
             "data": {"node-name": "xvdb-raw", "snapshot-file": "/srv/b.after-s1.qcow2",
                      "snapshot-node-name": "xvdb-0b41a0a5", "format": "qcow2",
                      "mode": "existing"}}]})
    );
}
