//! Doing the same with several things at the same time: what costs is programs that are waited for.

use std::panic::resume_unwind;
use std::thread;

/// Does the work with each item in a thread of its own. The results are in the order of the items.
pub fn in_parallel<I, T>(items: I, work: impl Fn(I::Item) -> T + Sync) -> Vec<T>
where
    I: IntoIterator,
    I::Item: Send,
    T: Send,
{
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> =
            items.into_iter().map(|item| scope.spawn(move || work(item))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

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
}
