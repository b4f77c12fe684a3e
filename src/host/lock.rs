//! One of us per domain at a time.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::libc::O_NOFOLLOW;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::host::files;
use crate::names::is_file_part;

const DIRECTORY: &str = "/run/xl-snapshot";
/// How often a lock is tried that somebody else holds: flock(2) itself waits without an end.
const POLL: Duration = Duration::from_millis(200);
/// After how long somebody who waits for a turn is told why.
const LONG: Duration = Duration::from_secs(5);

/// Holds the domain for this process, until it is dropped or the process ends.
///
/// A process that inherits the descriptor holds it as well (flock(2)).
///
/// The file stays: removing it would let two processes lock two files of one name.
#[derive(Debug)]
pub struct Lock {
    files: Vec<File>,
}

/// With whom a lock is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockMode {
    /// With nobody.
    Exclusive,
    /// With all others who share it.
    Shared,
}

/// How to wait for a lock that somebody else holds.
#[expect(missing_debug_implementations, reason = "it is made of functions")]
pub struct LockWait<'a> {
    /// How long.
    pub limit: Duration,
    /// Told once who holds it, when the waiting begins.
    pub waits: &'a dyn Fn(&str),
    /// Whether the user wants it to end.
    pub stopped: &'a dyn Fn() -> bool,
}

impl Lock {
    /// Takes the lock of a domain, at once or within some time, or says who has it: by its UUID, unless that
    /// is nil, and by its name, by which it is the same one also after it was started anew.
    pub fn take(
        domain: (Uuid, &str),
        operation: &str,
        hold: LockMode,
        patience: Option<&LockWait<'_>>,
    ) -> Result<Lock> {
        Lock::take_in(Path::new(DIRECTORY), domain, operation, hold, patience)
    }

    /// Takes the lock of the backups of a domain, whose name can be a part of a path: one at a time, however many
    /// operations each is made of.
    pub fn of_backups(domain: &str, patience: Option<&LockWait<'_>>) -> Result<Lock> {
        let path = Path::new(DIRECTORY).join(format!("backup-{domain}.lock"));
        let file = take_one(&path, domain, "backup", LockMode::Exclusive, patience)?;
        Ok(Lock { files: vec![file] })
    }

    fn take_in(
        directory: &Path,
        (uuid, domain): (Uuid, &str),
        operation: &str,
        hold: LockMode,
        patience: Option<&LockWait<'_>>,
    ) -> Result<Lock> {
        let by_uuid = (!uuid.is_nil()).then(|| format!("{uuid}.lock"));
        // Nobody can work on a domain with another name by that alone.
        let by_name = is_file_part(domain).then(|| format!("domain-{domain}.lock"));
        let files = by_uuid
            .into_iter()
            .chain(by_name)
            .map(|name| take_one(&directory.join(name), domain, operation, hold, patience))
            .collect::<Result<Vec<_>>>()?;
        match files.is_empty() {
            true => Err(Error::refused(format!("The domain name {domain:?} cannot be locked"))
                .hint("give the domain a uuid= in its configuration file")),
            false => Ok(Lock { files }),
        }
    }

    /// The descriptors that hold it.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.files.iter().map(File::as_fd)
    }
}

fn take_one(
    path: &Path,
    domain: &str,
    operation: &str,
    hold: LockMode,
    patience: Option<&LockWait<'_>>,
) -> Result<File> {
    let trouble = |error: io::Error| {
        let hint = match error.kind() {
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::StorageFull => {
                "locks need a writable /run with free space"
            }
            _ => "run this as root, in dom0",
        };
        Error::refused(format!("The lock of {domain}, {}, cannot be used", path.display()))
            .because(error)
            .hint(hint)
    };
    make_directory(path.parent().unwrap_or(Path::new("/"))).map_err(trouble)?;
    let mut file = open(path).map_err(trouble)?;
    if !is_taken(&file, hold).map_err(trouble)? {
        wait(&mut file, hold, domain, patience, trouble)?;
    }
    sign(&mut file, operation).map_err(trouble)?;
    Ok(file)
}

/// One of as many turns as the host has processors.
///
/// libxl gives QEMU ten seconds for its first answers (libxl_internal.h, `LIBXL_QMP_CMD_TIMEOUT`), which it
/// cannot keep if many start at the same time: seen with ten on two processors.
#[derive(Debug)]
pub struct RestoreSlot {
    _file: File,
}

impl RestoreSlot {
    /// Waits for a turn; `None` if the user wants it to end. Who has them is told once, if it takes long:
    /// one that was stopped (Ctrl-Z) keeps its turn until somebody lets it go on.
    pub fn wait(
        waits: &mut dyn FnMut(&str),
        stopped: &dyn Fn() -> bool,
    ) -> io::Result<Option<RestoreSlot>> {
        let turns = thread::available_parallelism()?.get();
        RestoreSlot::wait_in((Path::new(DIRECTORY), turns), LONG, waits, stopped)
    }

    fn wait_in(
        (directory, turns): (&Path, usize),
        long: Duration,
        waits: &mut dyn FnMut(&str),
        stopped: &dyn Fn() -> bool,
    ) -> io::Result<Option<RestoreSlot>> {
        make_directory(directory)?;
        let begin = Instant::now();
        let mut told = false;
        loop {
            let mut holders = Vec::new();
            for number in 0..turns {
                let mut file = open(&directory.join(format!("turn-{number}.lock")))?;
                if is_taken(&file, LockMode::Exclusive)? {
                    sign(&mut file, "restore")?;
                    return Ok(Some(RestoreSlot { _file: file }));
                }
                holders.push(holder(&mut file));
            }
            if stopped() {
                return Ok(None);
            }
            if !told && begin.elapsed() >= long {
                waits(&holders.join(", "));
                told = true;
            }
            thread::sleep(POLL);
        }
    }
}

/// Makes the directory of the locks. Where others could write to it, they could take our locks away.
fn make_directory(path: &Path) -> io::Result<()> {
    files::make_directories(path)?;
    let meta = fs::symlink_metadata(path)?;
    match meta.is_dir() && files::is_ours(&meta) {
        true => Ok(()),
        false => Err(io::Error::other("others than root may write to its directory")),
    }
}

/// Writes into the lock file who holds the lock.
fn sign(file: &mut File, operation: &str) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{operation} (process {})", std::process::id())
}

/// Opens a file in the directory of locks, and makes both if they are not there.
pub fn own_file(path: &Path) -> io::Result<File> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    make_directory(directory)?;
    open(path)
}

/// Opens the lock file, and creates it if it does not exist.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(O_NOFOLLOW)
        .mode(0o600)
        .open(path)
}

/// Takes the lock if it is free.
fn is_taken(file: &File, hold: LockMode) -> io::Result<bool> {
    let operation = match hold {
        LockMode::Exclusive => FlockOperation::NonBlockingLockExclusive,
        LockMode::Shared => FlockOperation::NonBlockingLockShared,
    };
    match flock(file, operation) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Locks a file that others lock for a moment only.
pub fn hold_within(file: &File, limit: Duration) -> io::Result<()> {
    const AGAIN: Duration = Duration::from_millis(20);
    let begin = Instant::now();
    while !is_taken(file, LockMode::Exclusive)? {
        if begin.elapsed() >= limit {
            return Err(io::Error::other("another program has it locked"));
        }
        thread::sleep(AGAIN);
    }
    Ok(())
}

/// Waits for the lock and takes it.
fn wait(
    file: &mut File,
    hold: LockMode,
    domain: &str,
    patience: Option<&LockWait<'_>>,
    trouble: impl Fn(io::Error) -> Error,
) -> Result<()> {
    let busy = |holder: &str, hint: &str| {
        Error::refused(format!("Domain {domain} is busy"))
            .because(format!("{holder} has it"))
            .hint(hint)
    };
    let mut holder = holder(file);
    let Some(patience) = patience else {
        return Err(busy(&holder, "try again when that has ended, or use --wait SECONDS"));
    };
    (patience.waits)(&holder);
    let begin = Instant::now();
    loop {
        if is_taken(file, hold).map_err(&trouble)? {
            return Ok(());
        }
        let left = patience.limit.saturating_sub(begin.elapsed());
        if (patience.stopped)() {
            return Err(Error::failed(format!("Waiting for domain {domain}, which is busy"))
                .because("stopped by a signal")
                .hint(format!("nothing was changed; {holder} is still running")));
        }
        // Others may have come first meanwhile.
        holder = self::holder(file);
        if left.is_zero() {
            let still = format!("{holder} still has it after {} s", patience.limit.as_secs());
            return Err(Error::refused(format!("Domain {domain} is busy"))
                .because(still)
                .hint("try again when that has ended, or wait longer"));
        }
        thread::sleep(POLL.min(left));
    }
}

/// Who holds the lock. Only for messages: an empty text does no harm.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let _ = file.rewind().and_then(|()| file.take(256).read_to_string(&mut text));
    format!("xl-snapshot {}", text.trim()).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const WEB1: (Uuid, &str) = (Uuid::from_u128(7), "web1");

    /// The first of two who want the same domain, and what the second one needs.
    fn first() -> (tempfile::TempDir, Lock, String) {
        let directory = tempfile::tempdir().unwrap();
        let lock =
            Lock::take_in(directory.path(), WEB1, "create s1", LockMode::Exclusive, None).unwrap();
        let who = format!("xl-snapshot create s1 (process {})", std::process::id());
        (directory, lock, who)
    }

    fn second(directory: &Path, patience: Option<&LockWait<'_>>) -> Result<Lock> {
        Lock::take_in(directory, WEB1, "revert s1", LockMode::Exclusive, patience)
    }

    #[test]
    fn the_second_is_told_who_is_first() {
        let (directory, first, who) = first();
        let error = second(directory.path(), None).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        assert_eq!(error.chain()[1], format!("{who} has it"));
        assert!(error.hint.unwrap().contains("--wait"));
        drop(first);
        second(directory.path(), None).unwrap();
    }

    #[test]
    fn any_number_may_share_it() {
        let directory = tempfile::tempdir().unwrap();
        let share = |operation| {
            Lock::take_in(directory.path(), WEB1, operation, LockMode::Shared, None).unwrap()
        };
        let sharers = ["one", "two"].map(share);
        let error = second(directory.path(), None).unwrap_err();
        assert!(error.chain()[1].starts_with("xl-snapshot two (process"), "{error:?}");
        drop(sharers);
        let alone = second(directory.path(), None).unwrap();
        Lock::take_in(directory.path(), WEB1, "three", LockMode::Shared, None).unwrap_err();
        drop(alone);
    }

    #[test]
    fn there_are_so_many_turns_and_no_more() {
        let directory = tempfile::tempdir().unwrap();
        let turn = |stopped: &dyn Fn() -> bool| {
            let place = (directory.path(), 2);
            RestoreSlot::wait_in(place, LONG, &mut |_| panic!("not so soon"), stopped).unwrap()
        };
        let first = turn(&|| panic!("it is free")).unwrap();
        let second = Cell::new(turn(&|| panic!("it is free")));
        assert!(turn(&|| true).is_none());
        // Somebody else's ends while the third waits.
        let third = turn(&|| {
            drop(second.take());
            false
        });
        assert!(third.is_some());
        drop(first);
        turn(&|| panic!("it is free")).unwrap();
    }

    #[test]
    fn who_waits_long_for_a_turn_is_told_once_who_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let place = (directory.path(), 1);
        let _first = RestoreSlot::wait_in(place, LONG, &mut |_| (), &|| true).unwrap().unwrap();
        let mut told = Vec::new();
        let rounds = Cell::new(0);
        let stopped = || rounds.replace(rounds.get() + 1) == 2;
        let waits = &mut |who: &str| told.push(who.to_owned());
        assert!(RestoreSlot::wait_in(place, Duration::ZERO, waits, &stopped).unwrap().is_none());
        assert_eq!(told, [format!("xl-snapshot restore (process {})", std::process::id())]);
    }

    #[test]
    fn a_directory_that_others_write_to_keeps_no_locks() {
        let directory = tempfile::tempdir().unwrap();
        let open = Permissions::from_mode(0o777);
        fs::set_permissions(directory.path(), open).unwrap();
        let error = second(directory.path(), None).unwrap_err();
        assert!(error.chain()[1].contains("others than root"), "{error}");
        // As on a host whose /run is read-only.
        let error = second(Path::new("/proc/xl-snapshot"), None).unwrap_err();
        assert_eq!(error.exit_code(), 3);
    }

    #[test]
    fn the_second_gets_it_when_the_first_has_ended() {
        let (directory, first, who) = first();
        let first = Cell::new(Some(first));
        let told = RefCell::new(Vec::new());
        let patience = LockWait {
            limit: Duration::from_secs(60),
            waits: &|holder| told.borrow_mut().push(holder.to_owned()),
            // Asked after the first attempt of the waiting.
            stopped: &|| {
                drop(first.take());
                false
            },
        };
        second(directory.path(), Some(&patience)).unwrap();
        assert_eq!(*told.borrow(), [who]);
        let words = std::fs::read_to_string(directory.path().join(format!("{}.lock", WEB1.0)));
        assert!(words.unwrap().starts_with("revert s1 "), "the next one is told of the second");
    }

    #[test]
    fn the_second_gives_up_and_says_who_holds_it() {
        let (directory, _first, who) = first();
        let limit = Duration::from_millis(300);
        let patience = LockWait { limit, waits: &|_| (), stopped: &|| false };
        let begin = Instant::now();
        let error = second(directory.path(), Some(&patience)).unwrap_err();
        assert!(begin.elapsed() >= limit && begin.elapsed() < Duration::from_secs(30));
        assert_eq!(error.exit_code(), 3);
        assert_eq!(error.chain()[1], format!("{who} still has it after 0 s"));
        assert!(error.hint.is_some());
    }

    #[test]
    fn a_signal_ends_the_waiting() {
        let (directory, _first, _) = first();
        let limit = Duration::from_secs(3600);
        let patience = LockWait { limit, waits: &|_| (), stopped: &|| true };
        let error = second(directory.path(), Some(&patience)).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert_eq!(error.chain()[1], "stopped by a signal");
    }

    #[test]
    fn who_need_not_wait_is_told_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let patience = LockWait {
            limit: Duration::ZERO,
            waits: &|_| panic!("nobody holds it"),
            stopped: &|| true,
        };
        second(directory.path(), Some(&patience)).unwrap();
    }

    #[test]
    fn a_domain_that_was_started_anew_is_known_by_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let take = |uuid, name| {
            let domain = (Uuid::from_u128(uuid), name);
            Lock::take_in(directory.path(), domain, "x", LockMode::Exclusive, None)
        };
        let first = take(7, "web1").unwrap();
        assert_eq!(first.fds().count(), 2);
        for (uuid, name) in [(0, "web1"), (8, "web1"), (7, "renamed")] {
            take(uuid, name).unwrap_err();
        }
        take(8, "web2").unwrap();
        // An odd name is not a file's.
        assert_eq!(take(9, "a/b").unwrap().fds().count(), 1);
        take(0, "a/b").unwrap_err();
    }
}
