//! Doing the same with several things at the same time: what costs is programs that are waited for.

use std::panic::resume_unwind;
use std::sync::{Mutex, PoisonError};
use std::thread;

/// So many at a time: each may be a program, and a record may name hundreds of disks.
const MOST: usize = 16;

/// Does the work with each item, a few at a time. The results are in the order of the items.
pub fn in_parallel<I, T>(items: I, work: impl Fn(I::Item) -> T + Sync) -> Vec<T>
where
    I: IntoIterator,
    I::Item: Send,
    T: Send,
{
    let items: Vec<_> = items.into_iter().enumerate().collect();
    let others = items.len().min(MOST).saturating_sub(1);
    let left = Mutex::new(items.into_iter());
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
    let worker = || {
        let mut done = Vec::new();
        while let Some((number, item)) = next() {
            done.push((number, work(item)));
        }
        done
    };
    let mut done = thread::scope(|scope| {
        // With fewer threads than it could have, it takes longer, that is all.
        let threads: Vec<_> = (0..others)
            .filter_map(|_| thread::Builder::new().spawn_scoped(scope, worker).ok())
            .collect();
        let mut done = worker();
        for thread in threads {
            done.extend(thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        done
    });
    done.sort_unstable_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn all_at_once_and_in_order() {
        let all_here = Barrier::new(3);
        let double = |item: &mut u32| {
            all_here.wait();
            *item *= 2;
            *item
        };
        let mut items = [1, 2, 3];
        assert_eq!(in_parallel(&mut items, double), [2, 4, 6]);
        assert_eq!(items, [2, 4, 6]);
    }

    #[test]
    fn however_many_a_few_at_a_time() {
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let results = in_parallel(0..500, |number| {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            thread::yield_now();
            now.fetch_sub(1, Ordering::SeqCst);
            number
        });
        assert!(results.into_iter().eq(0..500));
        assert!(most.into_inner() <= MOST);
        assert!(in_parallel(0..0, |number: u32| number).is_empty());
    }
}
