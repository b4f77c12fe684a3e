//! Suspending a domain into a file, and cutting that short from another thread.

use std::{
    fmt,
    fs::File,
    io::{self, Seek},
    marker::PhantomData,
    os::{
        fd::{AsRawFd, BorrowedFd},
        unix::fs::{FileExt, FileTypeExt, MetadataExt},
    },
    ptr::{self, NonNull},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::stat::makedev,
};
use xen_bindings as sys;

use super::{
    ErrorCode, Libxl, LibxlError, Progress, callback::assert_outside_callback, gate::Gate,
    progress::watching,
};

/// At least the stream header (16 bytes) and the header of its first record (8 bytes), which
/// libxl writes itself; everything else comes from its helper process.
const OUTPUT_START: usize = 64;

/// What became of a request to abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    /// The suspend is being cut short. It may still complete.
    Requested,
    /// It was asked before, and the suspend has not ended yet.
    AlreadyRequested,
    /// There is nothing to abort, or not yet: ask again as long as the suspend has not returned.
    NothingRunning,
}

impl Libxl {
    /// Suspends the domain and writes its memory and device state to `fd`, at its present
    /// position (a file, block device, pipe, socket, or /dev/null).
    ///
    /// `live`: memory is copied while the guest runs, and it stops only for the rest. Afterwards
    /// the domain is shut down with [`ShutdownReason::Suspend`] until [`Self::resume`] or
    /// [`Self::destroy`]. Nothing is fsynced. The guest has 60 s to agree and 60 s to stop.
    ///
    /// `progress` is called during the call and on this thread; if it panics, the panic goes on
    /// when the suspend has ended, whatever its result.
    ///
    /// # Errors
    ///
    /// The domain may be running or suspended then, or (after an abort or a time-out) about to
    /// suspend: call [`Self::resume`] in any case, and look at it again for some seconds.
    /// [`LibxlError::is_guest_timed_out`]: the guest did not react.
    /// [`LibxlError::is_aborted`]: see [`Aborter::abort`].
    ///
    /// [`ShutdownReason::Suspend`]: super::ShutdownReason::Suspend
    pub fn suspend(
        &self,
        domid: u32,
        fd: BorrowedFd<'_>,
        live: bool,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), LibxlError> {
        let ctx = self.begin_call();
        check_output(fd).map_err(|source| LibxlError::Output { domid, source })?;
        let flags = if live { sys::LIBXL_SUSPEND_LIVE } else { 0 };
        let mut gate = self.gate.keep();
        let mut report = |report: Progress<'_>| {
            // Reports come from the process that libxl starts to save the memory. Until that
            // runs, libxl (4.14 to 4.23) must not be aborted: its libxl__save_helper_abort calls
            // a function pointer that libxl__xc_domain_save has not set yet.
            gate.open();
            progress(report);
        };
        let code = watching(&mut report, || {
            // SAFETY: a live context, and a descriptor that is open during the call; no ao_how:
            // synchronous, nothing is used after it returns. An error in writing the first
            // bytes crashes libxl (as an early abort does, see above): `check_output` has written
            // there.
            unsafe { sys::libxl_domain_suspend(ctx, domid, fd.as_raw_fd(), flags, ptr::null()) }
        });
        // An abort that comes later finds nothing, and cannot hit the resume.
        drop(gate);
        self.check("Suspending", "libxl_domain_suspend", Some(domid), code)
    }

    /// A handle with which another thread can cut a [`Self::suspend`] short.
    #[must_use]
    pub fn aborter(&self) -> Aborter<'_> {
        Aborter { ctx: self.ctx, gate: &self.gate, libxl: PhantomData }
    }
}

/// The device number of /dev/null (Linux, Documentation/admin-guide/devices.txt).
const DEV_NULL: u64 = makedev(1, 3);

/// Tries whether `fd` takes the 24 bytes that libxl writes before it can cope with an error.
///
/// A file is written to (libxl overwrites it), which also reserves the space. A pipe or socket can
/// only be asked whether somebody is at the other end.
fn check_output(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut file = File::from(fd.try_clone_to_owned()?);
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    let metadata = file.metadata()?;
    let kind = metadata.file_type();
    if kind.is_file() || kind.is_block_device() {
        // With O_APPEND nothing can be written in advance.
        if !flags.contains(OFlag::O_APPEND) {
            let position = file.stream_position()?;
            file.write_all_at(&[0; OUTPUT_START], position)?;
        }
        return Ok(());
    }
    if kind.is_char_device() && metadata.rdev() != DEV_NULL {
        // A terminal or /dev/full: no place for an image, and nothing can be tried there.
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is a character device"));
    }
    let mut other_end = [PollFd::new(fd, PollFlags::POLLOUT)];
    poll(&mut other_end, PollTimeout::ZERO)?;
    let gone = PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL;
    if other_end[0].revents().is_some_and(|events| events.intersects(gone)) {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    Ok(())
}

/// Cuts a [`Libxl::suspend`] short, from another thread (see [`std::thread::scope`]).
///
/// It borrows the [`Libxl`] it came from, and cannot outlive it.
pub struct Aborter<'a> {
    ctx: NonNull<sys::libxl_ctx>,
    gate: &'a Gate,
    libxl: PhantomData<&'a Libxl>,
}

// SAFETY: `abort` uses two things: the gate, which is a Mutex, and the context, which "From the
// point of view of the application ... is threadsafe" (libxl.h, "libxl memory management") and
// which the borrow of `Libxl` keeps alive. The logger behind the context is locked by a mutex of
// its own, and takes a sink that is Send.
unsafe impl Send for Aborter<'_> {}

impl Aborter<'_> {
    /// Asks libxl to cut the running suspend short; does not wait for its end.
    ///
    /// The suspend then fails with [`LibxlError::is_aborted`], with another error, or still
    /// succeeds. The domain may be suspended by then, and must be resumed. If the guest had
    /// already been asked to suspend, it does so after all, when this suspend has returned (seen
    /// in the lab 3 ms and 150 ms later): look at it again for some seconds, and resume it then.
    ///
    /// # Errors
    ///
    /// A libxl code that libxl.h does not list.
    pub fn abort(&self) -> Result<Abort, LibxlError> {
        // The thread of the suspend would wait here for itself.
        assert_outside_callback();
        let Some(open) = self.gate.pass() else { return Ok(Abort::NothingRunning) };
        // SAFETY: the context lives as long as the borrow in `self`. libxl.h: "It is possible to
        // abort even an operation which is being performed synchronously" with how==NULL, if only
        // one is running and the request comes from another thread: the open gate says that it is
        // the suspend, and callbacks on the suspend's own thread were refused above.
        let code = unsafe { sys::libxl_ao_abort(self.ctx.as_ptr(), ptr::null()) };
        drop(open);
        match code {
            0 => Ok(Abort::Requested),
            sys::ERROR_ABORTED => Ok(Abort::AlreadyRequested),
            sys::ERROR_NOTFOUND => Ok(Abort::NothingRunning),
            code => Err(LibxlError::Call {
                doing: "Aborting the suspend",
                function: "libxl_ao_abort",
                domid: None,
                code: ErrorCode(code),
                log: Vec::new(),
            }),
        }
    }
}

impl fmt::Debug for Aborter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Aborter").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::fd::AsFd,
        sync::atomic::{AtomicBool, Ordering},
        thread,
        time::Duration,
    };

    use nix::unistd::pipe;

    use super::*;

    #[test]
    fn the_end_of_a_suspend_waits_for_an_abort_under_way() {
        let gate = Gate::default();
        let aborting = AtomicBool::new(true);
        let mut keeper = gate.keep();
        keeper.open();
        let passing = gate.pass().expect("the gate is open");
        thread::scope(|scope| {
            scope.spawn(|| {
                drop(keeper);
                assert!(!aborting.load(Ordering::SeqCst));
            });
            thread::sleep(Duration::from_millis(50));
            aborting.store(false, Ordering::SeqCst);
            drop(passing);
        });
        assert!(gate.pass().is_none());
    }

    #[test]
    fn an_open_gate_can_be_opened_while_somebody_passes() {
        let gate = Gate::default();
        let mut keeper = gate.keep();
        keeper.open();
        let passing = gate.pass().expect("the gate is open");
        keeper.open();
        drop(passing);
    }

    #[test]
    fn an_output_is_tried_without_moving_in_it() {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(b"header").expect("room for a header");
        check_output(file.as_fd()).expect("room for more");
        assert_eq!(file.stream_position().expect("a position"), 6);
        file.write_all(b"stream").expect("room");
        file.rewind().expect("a file");
        let mut text = Vec::new();
        file.read_to_end(&mut text).expect("readable");
        assert!(text.starts_with(b"headerstream\0\0"));
        assert_eq!(text.len(), 6 + OUTPUT_START);
    }

    #[test]
    fn a_file_that_only_appends_stays_as_it_is() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("image");
        let file = File::options().append(true).create(true).open(path).expect("a new file");
        check_output(file.as_fd()).expect("nothing to object to");
        assert_eq!(file.metadata().expect("an open file").len(), 0);
    }

    #[test]
    fn outputs_that_would_crash_libxl_are_refused() {
        let file = File::open("/etc/passwd").expect("readable for all");
        assert!(check_output(file.as_fd()).is_err());

        let full = File::options().write(true).open("/dev/full").expect("it is there");
        let error = check_output(full.as_fd()).expect_err("it is full");
        assert_eq!(error.to_string(), "it is a character device");
        let null = File::options().write(true).open("/dev/null").expect("it is there");
        check_output(null.as_fd()).expect("it takes anything");

        let (reader, writer) = pipe().expect("a pipe");
        check_output(writer.as_fd()).expect("somebody may read");
        drop(reader);
        let error = check_output(writer.as_fd()).expect_err("nobody can read");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
