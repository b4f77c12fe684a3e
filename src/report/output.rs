//! A thread that prints the messages of all others.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Messages that wait to be printed, in order.
#[derive(Debug, Default)]
pub(super) struct Output {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    lines: VecDeque<String>,
    /// Whether a thread prints them.
    speaks: bool,
    /// Whether the thread ends once it has printed all of them.
    over: bool,
}

impl Output {
    /// It is held for a few instructions only, and nothing in them panics.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a thread that prints every message with `say`.
    pub(super) fn start(self: &Arc<Self>, say: impl Fn(&str) + Send + 'static) {
        let mut queue = self.queue();
        if queue.speaks {
            return;
        }
        let output = Arc::clone(self);
        let thread = thread::Builder::new().name("output".into()).spawn(move || output.speak(say));
        // Without a thread, whoever has something to say does it.
        queue.speaks = thread.is_ok();
        queue.over = false;
    }

    /// Queues a message, if there is a thread that prints it.
    pub(super) fn takes(&self, text: &str) -> bool {
        let mut queue = self.queue();
        if queue.speaks {
            queue.lines.push_back(text.to_owned());
            self.changed.notify_all();
        }
        queue.speaks
    }

    /// Lets the thread print the rest and end, and waits for that.
    pub(super) fn end(&self, limit: Option<Duration>) {
        let mut queue = self.queue();
        queue.over = true;
        self.changed.notify_all();
        let speaks = |queue: &mut Queue| queue.speaks;
        match limit {
            None => drop(self.changed.wait_while(queue, speaks)),
            Some(limit) => drop(self.changed.wait_timeout_while(queue, limit, speaks)),
        }
    }

    fn speak(&self, say: impl Fn(&str)) {
        loop {
            let waits = |queue: &mut Queue| queue.lines.is_empty() && !queue.over;
            let waited = self.changed.wait_while(self.queue(), waits);
            let mut queue = waited.unwrap_or_else(PoisonError::into_inner);
            let Some(line) = queue.lines.pop_front() else {
                queue.speaks = false;
                self.changed.notify_all();
                return;
            };
            drop(queue);
            say(&line);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Instant;

    use super::*;

    #[test]
    fn all_is_said_in_order() {
        let output: Arc<Output> = Arc::default();
        assert!(!output.takes("nobody"));
        for _ in 0..2 {
            let (said, heard) = mpsc::channel();
            output.start(move |text| said.send(text.to_owned()).unwrap());
            for text in ["one", "two", "three"] {
                assert!(output.takes(text));
            }
            output.end(None);
            assert_eq!(heard.iter().collect::<Vec<_>>(), ["one", "two", "three"]);
            assert!(!output.takes("four"), "it is for who says it");
        }
        output.end(None);
    }

    #[test]
    fn nobody_waits_for_who_cannot_speak() {
        let (go, stopped) = mpsc::channel::<()>();
        let output: Arc<Output> = Arc::default();
        output.start(move |_| {
            let _ = stopped.recv();
        });
        let begin = Instant::now();
        for _ in 0..100 {
            assert!(output.takes("something"));
        }
        output.end(Some(Duration::from_millis(100)));
        assert!(begin.elapsed() < Duration::from_secs(10));
        drop(go);
        output.end(None);
    }
}
