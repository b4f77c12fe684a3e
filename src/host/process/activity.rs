//! Whether a process gets on with its work.
//!
//! No time limit can be right for work whose size is not known: a copy of a terabyte takes hours, and on a slow disk
//! days. What can be limited is the time in which nothing is done at all. What a process does shows in the
//! processor time it has used and in what it has read and written (proc_pid_stat(5), proc_pid_io(5)).

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use indicatif::BinaryBytes;

use super::stat::{Stat, all, stat};

/// How often a process is looked at.
const PERIOD: Duration = Duration::from_secs(5);
/// How long a process may wait in the kernel for its storage (state D), without any progress. To kill it would not
/// help: it ends only when the storage has answered.
const STORAGE: Duration = Duration::from_secs(3600);
/// Clock ticks in a second, as the kernel tells them to programs (Linux, include/asm-generic/param.h, `USER_HZ`).
const TICKS: u64 = 100;

/// What processes have done since they were started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Work {
    /// Processor time in clock ticks.
    cpu: u64,
    /// Bytes read.
    read: u64,
    /// Bytes written.
    written: u64,
    /// Bytes read from and written to storage.
    stored: u64,
}

impl Work {
    fn add(&mut self, stat: &Stat) {
        self.cpu += stat.cpu;
        // Not readable if it is just ending.
        let io = fs::read_to_string(format!("/proc/{}/io", stat.pid)).unwrap_or_default();
        for line in io.lines() {
            let Some((name, value)) = line.split_once(": ") else { continue };
            let value: u64 = value.trim().parse().unwrap_or_default();
            match name {
                "rchar" => self.read += value,
                "wchar" => self.written += value,
                "read_bytes" | "write_bytes" => self.stored += value,
                _ => {}
            }
        }
    }

    /// As it stands in a message.
    pub fn words(&self) -> String {
        let seconds = self.cpu / TICKS;
        let (read, written) = (BinaryBytes(self.read), BinaryBytes(self.written));
        format!("{seconds} s of processor time, {read} read, {written} written")
    }
}

/// What shows at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Sight {
    work: Work,
    /// What those have done whose file locks it waits for.
    others: Work,
    /// Whether it waits for its storage.
    storage: bool,
}

/// Whose work is watched.
#[derive(Debug, Clone, Copy)]
enum WatchScope {
    /// A process and the helpers that it has started.
    Group(i32),
    Process(i32),
}

/// A process that does nothing any more.
#[derive(Debug, Clone, Copy)]
pub struct Hang {
    /// For how long it has done nothing.
    pub idle: Duration,
    /// What it had done until then.
    pub done: Work,
}

/// Watches the work of a process.
#[derive(Debug)]
pub struct Watch {
    whose: WatchScope,
    patience: Duration,
    seen: Sight,
    idle: Duration,
    looked: Instant,
}

impl Watch {
    /// Watches a process and its helpers: all of its process group.
    pub fn of_group(pid: i32, patience: Duration) -> Watch {
        Watch::of(WatchScope::Group(pid), patience)
    }

    /// Watches one process alone.
    pub fn of_process(pid: i32, patience: Duration) -> Watch {
        Watch::of(WatchScope::Process(pid), patience)
    }

    fn of(whose: WatchScope, patience: Duration) -> Watch {
        let seen = Sight::default();
        Watch { whose, patience, seen, idle: Duration::ZERO, looked: Instant::now() }
    }

    /// When [`Watch::look`] has something to do next.
    pub fn due(&self) -> Duration {
        self.period().saturating_sub(self.looked.elapsed())
    }

    fn period(&self) -> Duration {
        PERIOD.min(self.patience / 4)
    }

    /// It has just done something that we know of.
    pub fn moved(&mut self) {
        self.idle = Duration::ZERO;
        self.looked = Instant::now();
    }

    /// Looks at it if that is due. Tells if it has done nothing for longer than it may.
    pub fn look(&mut self) -> Option<Hang> {
        if !self.due().is_zero() {
            return None;
        }
        // If we were stopped ourselves, it was probably stopped with us.
        let passed = self.looked.elapsed().min(2 * self.period());
        self.looked = Instant::now();
        let sight = self.sight();
        if sight != self.seen {
            self.seen = sight;
            self.idle = Duration::ZERO;
            return None;
        }
        self.idle += passed;
        let limit = if sight.storage { self.patience.max(STORAGE) } else { self.patience };
        (self.idle >= limit).then_some(Hang { idle: self.idle, done: sight.work })
    }

    fn sight(&self) -> Sight {
        let mut sight = Sight::default();
        let ours = |stat: &Stat| match self.whose {
            WatchScope::Group(group) => stat.group == group,
            WatchScope::Process(pid) => stat.pid == pid,
        };
        let processes: Vec<Stat> = match self.whose {
            WatchScope::Group(_) => {
                all().unwrap_or_default().into_iter().filter_map(stat).collect()
            }
            WatchScope::Process(pid) => stat(pid).into_iter().collect(),
        };
        let mut pids = BTreeSet::new();
        for stat in processes.iter().filter(|stat| ours(stat)) {
            sight.work.add(stat);
            sight.storage |= waits_for_storage(stat.pid);
            pids.insert(stat.pid);
        }
        // xl holds a lock for as long as it restores a domain, and others wait for it.
        for holder in holders(&fs::read_to_string("/proc/locks").unwrap_or_default(), &pids) {
            let Some(holder) = stat(holder) else { continue };
            for stat in all().unwrap_or_default().into_iter().filter_map(stat) {
                if stat.group == holder.group && !ours(&stat) {
                    sight.others.add(&stat);
                    sight.storage |= waits_for_storage(stat.pid);
                }
            }
        }
        sight
    }
}

/// Whether a thread of it is in uninterruptible sleep.
fn waits_for_storage(pid: i32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    threads.into_iter().flatten().flatten().any(|thread| {
        let line = fs::read(thread.path().join("stat")).unwrap_or_default();
        Stat::parse(pid, &line).is_some_and(|stat| stat.state == 'D')
    })
}

/// The processes that hold the file locks which others wait for (proc_locks(5): those who wait stand behind `->`,
/// under the number of the lock).
fn holders(locks: &str, waiting: &BTreeSet<i32>) -> BTreeSet<i32> {
    let mut held: Option<(&str, i32)> = None;
    let mut found = BTreeSet::new();
    for line in locks.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let waits = words.get(1) == Some(&"->");
        let pid = words.get(if waits { 5 } else { 4 }).and_then(|pid| pid.parse::<i32>().ok());
        let (Some(number), Some(pid)) = (words.first(), pid) else { continue };
        match held {
            Some((lock, holder)) if waits && lock == *number && waiting.contains(&pid) => {
                found.insert(holder);
            }
            _ if !waits => held = Some((number, pid)),
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn me() -> i32 {
        i32::try_from(std::process::id()).unwrap()
    }

    /// Looks until it is told that nothing is done, or `limit` is over.
    fn hangs(mut watch: Watch, limit: Duration) -> Option<Hang> {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            thread::sleep(watch.due());
            if let Some(hang) = watch.look() {
                return Some(hang);
            }
        }
        None
    }

    #[test]
    fn what_works_is_seen_to_work() {
        // This test reads files in /proc all the time.
        let watch = Watch::of_process(me(), Duration::from_millis(100));
        assert!(hangs(watch, Duration::from_secs(1)).is_none());
    }

    #[test]
    fn what_does_nothing_is_told() {
        // There is no such process: nothing can be seen of it.
        let watch = Watch::of_process(i32::MAX, Duration::from_millis(100));
        let hang = hangs(watch, Duration::from_secs(10)).unwrap();
        assert!(hang.idle >= Duration::from_millis(100), "{hang:?}");
        assert_eq!(hang.done.words(), "0 s of processor time, 0 B read, 0 B written");
    }

    #[test]
    fn what_moves_is_given_time_again() {
        let mut watch = Watch::of_process(i32::MAX, Duration::from_millis(400));
        for _ in 0..8 {
            thread::sleep(Duration::from_millis(100));
            assert!(watch.look().is_none());
            watch.moved();
        }
    }

    #[test]
    fn who_holds_a_lock_that_others_wait_for() {
        let locks = "1: POSIX  ADVISORY  WRITE 100 00:1b:567 0 EOF\n\
                     1: -> POSIX  ADVISORY  WRITE 200 00:1b:567 0 EOF\n\
                     1: -> POSIX  ADVISORY  WRITE 201 00:1b:567 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 300 00:1b:568 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 400 00:1b:569 0 EOF\n\
                     3: -> FLOCK  ADVISORY  WRITE 300 00:1b:569 0 EOF\n";
        let of = |pids: &[i32]| holders(locks, &pids.iter().copied().collect());
        assert_eq!(of(&[201]), [100].into());
        assert_eq!(of(&[300, 200]), [100, 400].into());
        assert_eq!(of(&[100, 400, 5]), [].into());
        assert_eq!(holders("garbage\n1: ->\n", &[1].into()), [].into());
    }
}
