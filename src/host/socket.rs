//! A socket on which another program serves: made by us, so that it is never in the place of another file, and that
//! nobody but us may connect to it.

use std::fs::{self, File, Permissions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket,
};
use nix::unistd::geteuid;

use crate::error::{Error, Result};
use crate::host::image::FileId;
use crate::host::lock;
use crate::report::Reporter;
use crate::tool::quote;

/// The longest path of a socket (Linux, include/uapi/linux/un.h, `sun_path` with its NUL).
const LONGEST: usize = 107;
/// How many clients may wait until they are accepted.
const WAITING: i32 = 64;
/// For how long somebody else may hold a directory.
const HELD: Duration = Duration::from_secs(10);
/// What an NBD server says first (the NBD protocol, "fixed newstyle negotiation").
const GREETING: &[u8; 8] = b"NBDMAGIC";

/// A socket that is there until this is dropped.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    id: FileId,
}

impl Socket {
    /// Makes the socket of an absolute path, which listens then.
    pub fn listen(path: &Path, reporter: &Reporter) -> Result<(Socket, OwnedFd)> {
        let refused =
            |why: String| Error::refused(format!("The socket {}", quote(path))).because(why);
        let length = path.as_os_str().len();
        if length > LONGEST {
            let why = format!("its path has {length} bytes, and {LONGEST} are the limit");
            return Err(refused(why).hint("choose a shorter one, such as /run/NAME.sock"));
        }
        let directory = path.parent().unwrap_or(Path::new("/"));
        if let Some(why) = others_may_write(directory) {
            return Err(refused(why)
                .hint("choose a place that only root can write to, such as /run/NAME.sock"));
        }
        // Until it listens: of two at once, the second must see the first.
        let _lock = hold(directory).map_err(|why| {
            refused(format!("{LOCK} cannot be locked: {why}"))
                .hint(format!("try again; if that does not help: fuser -v {LOCK}"))
        })?;
        match what_is_there(path) {
            There::Nothing => {}
            There::Dead => {
                reporter
                    .note(&format!("note: {} was left by a server that was killed", quote(path)));
                fs::remove_file(path).map_err(|why| refused(why.to_string()))?;
            }
            There::Served => {
                return Err(refused("a program serves on it already".into())
                    .hint("choose another one, or end that program first"));
            }
            There::Other => {
                return Err(refused("it exists".into()).hint("choose another one, or remove it"));
            }
        }
        open(path).map_err(|why| refused(why.to_string()).hint("check that directory: ls -ld"))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Another one may be in its place, or come while this is looked at.
        let _lock = self.path.parent().map(hold);
        if id(&self.path) == Some(self.id) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn open(path: &Path) -> io::Result<(Socket, OwnedFd)> {
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    let ready = || -> io::Result<FileId> {
        // Nobody can connect before it listens.
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        listen(&fd, Backlog::new(WAITING)?)?;
        id(path).ok_or_else(|| io::ErrorKind::NotFound.into())
    };
    let id = ready().inspect_err(|_| drop(fs::remove_file(path)))?;
    Ok((Socket { path: path.to_owned(), id }, fd))
}

/// Held while a socket is made.
const LOCK: &str = "/run/xl-snapshot/serve.lock";

/// Waits for others that make a socket, which takes a moment only. Anybody can lock a directory that he can read, so
/// root has a file for it.
fn hold(directory: &Path) -> io::Result<File> {
    let file = match geteuid().is_root() {
        true => lock::own_file(Path::new(LOCK))?,
        false => File::open(directory)?,
    };
    lock::hold_within(&file, HELD)?;
    Ok(file)
}

fn id(path: &Path) -> Option<FileId> {
    fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// What is at a path.
enum There {
    Nothing,
    /// A socket of ours on which nobody listens.
    Dead,
    /// A socket on which somebody listens.
    Served,
    /// Something else.
    Other,
}

fn what_is_there(path: &Path) -> There {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => There::Nothing,
        Ok(meta) if meta.file_type().is_socket() => match connected(path) {
            Err(error)
                if error.kind() == io::ErrorKind::ConnectionRefused
                    && meta.uid() == geteuid().as_raw() =>
            {
                There::Dead
            }
            _ => There::Served,
        },
        _ => There::Other,
    }
}

/// Why others than root and us can put something in the place of what is in a directory, if they can.
fn others_may_write(directory: &Path) -> Option<String> {
    let shown = directory.display();
    let whole = match fs::canonicalize(directory) {
        Ok(whole) => whole,
        Err(why) => return Some(format!("the directory {shown}: {why}")),
    };
    let bad = whole.ancestors().find(|path| {
        let Ok(meta) = fs::metadata(path) else { return true };
        let trusted = [0, geteuid().as_raw()].contains(&meta.uid());
        let writable = meta.mode() & (libc::S_IWGRP | libc::S_IWOTH) != 0;
        // What is ours in a directory as /tmp stays where it is, but others make files there.
        let sticky = meta.mode() & libc::S_ISVTX != 0 && *path != whole;
        !trusted || (writable && !sticky)
    })?;
    Some(format!("others may write to the directory {}", bad.display()))
}

/// Connects without waiting for a server that has stopped accepting.
fn connected(path: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(socket))
}

/// Whether an NBD server says something at a socket within some time.
pub fn is_served(path: &Path, limit: Duration) -> bool {
    let greeting = || -> io::Result<[u8; 8]> {
        let mut stream = connected(path)?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(limit))?;
        let mut greeting = [0; 8];
        stream.read_exact(&mut greeting)?;
        Ok(greeting)
    };
    greeting().is_ok_and(|greeting| greeting == *GREETING)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;
    use crate::support::disks::refused;

    fn listen(path: &Path) -> Result<(Socket, OwnedFd)> {
        Socket::listen(path, &Reporter::new(true, 0))
    }

    #[test]
    fn it_is_ours_alone_and_goes_with_us() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a b.sock");
        let (socket, fd) = listen(&path).unwrap();
        let meta = fs::symlink_metadata(&path).unwrap();
        assert!(meta.file_type().is_socket());
        assert_eq!(meta.mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        refused(listen(&path), &["a program serves on it already"]);
        drop((socket, fd));
        assert!(!path.exists());
    }

    #[test]
    fn a_server_that_accepts_no_more_holds_nobody_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let (_socket, _fd) = listen(&path).unwrap();
        let clients: Vec<_> = (0..200).map_while(|_| connected(&path).ok()).collect();
        assert!(clients.len() < 200);
        refused(listen(&path), &["a program serves on it already"]);
        assert!(!is_served(&path, Duration::from_millis(10)));
    }

    #[test]
    fn one_that_a_killed_server_has_left_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let (socket, _fd) = listen(&path).unwrap();
        // One that somebody has put in its place is not ours to remove.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "another").unwrap();
        drop(socket);
        assert!(path.exists());
    }

    #[test]
    fn of_two_on_a_dead_socket_the_second_leaves_the_first_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        // The first is on its way: it has seen that nobody listens.
        let lock = hold(directory.path()).unwrap();
        let second = thread::spawn({
            let path = path.clone();
            move || listen(&path)
        });
        thread::sleep(Duration::from_millis(300));
        fs::remove_file(&path).unwrap();
        let first = UnixListener::bind(&path).unwrap();
        drop(lock);
        refused(second.join().unwrap(), &["a program serves on it already"]);
        UnixStream::connect(&path).unwrap();
        first.accept().unwrap();
    }

    #[test]
    fn nothing_is_in_its_place_that_was_there() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("file"), directory.path().join("link"));
        fs::write(&file, "content").unwrap();
        symlink(directory.path().join("nowhere"), &link).unwrap();
        for path in [&file, &link] {
            refused(listen(path), &["it exists"]);
        }
        assert_eq!(fs::read(&file).unwrap(), b"content");
        let long = directory.path().join("x".repeat(120));
        refused(listen(&long), &["107 are the limit"]);
        refused(listen(&directory.path().join("no/s")), &["No such file"]);
    }

    #[test]
    fn a_directory_of_others_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let open = directory.path().join("open");
        fs::create_dir(&open).unwrap();
        for mode in [0o777, 0o1777, 0o775] {
            fs::set_permissions(&open, Permissions::from_mode(mode)).unwrap();
            refused(listen(&open.join("s")), &["others may write to the directory"]);
        }
        let below = open.join("below");
        fs::create_dir(&below).unwrap();
        refused(listen(&below.join("s")), &["others may write", "/open"]);
        fs::set_permissions(&open, Permissions::from_mode(0o1777)).unwrap();
        listen(&below.join("s")).unwrap();
    }

    #[test]
    fn who_says_something_else_is_no_server() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        assert!(!is_served(&path, Duration::from_millis(10)));
        let _listener = UnixListener::bind(&path).unwrap();
        assert!(!is_served(&path, Duration::from_millis(10)));
    }
}
