//! How far memory has come, on standard error: a bar on a terminal, else a line now and then.
//!
//! Whoever moves the memory only leaves numbers behind, and a thread of its own shows them: the guest may
//! stand still meanwhile, and a terminal that was stopped (Ctrl-S) or a pipe that nobody reads must not
//! hold it up.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use indicatif::{BinaryBytes, MultiProgress, ProgressBar, ProgressStyle};

/// How often the numbers are looked at.
const PERIOD: Duration = Duration::from_millis(100);
/// What is over before that is not worth a line.
const FIRST_LINE: Duration = Duration::from_secs(5);
/// The longest time between two lines.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// The time between two lines of what is only waited for.
const WAITING_EVERY: Duration = Duration::from_secs(30);
/// The shortest: the last rounds of a live save are small.
const LINE_AT_MOST: Duration = Duration::from_secs(2);

/// Shows how far memory has come, until it is dropped.
#[derive(Debug)]
pub struct Meter {
    board: Arc<Board>,
    painter: Option<JoinHandle<()>>,
}

/// What the two threads share.
#[derive(Debug, Default)]
struct Board {
    state: Mutex<State>,
    over: Condvar,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct State {
    /// Of a live save, from 0.
    iteration: Option<u32>,
    /// Bytes.
    done: u64,
    /// Bytes; 0 until something is known.
    total: u64,
    /// Whether nothing is to be shown any more.
    hushed: bool,
    over: bool,
}

impl Board {
    /// It is held for a few instructions only, and nothing in them panics.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state after a while, or as soon as it is over.
    fn next(&self) -> State {
        let waited = self.over.wait_timeout_while(self.state(), PERIOD, |state| !state.over);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Meter {
    /// Shows nothing.
    pub(super) fn hidden() -> Meter {
        Meter { board: Arc::default(), painter: None }
    }

    pub(super) fn bar(what: &'static str, bars: MultiProgress) -> Meter {
        // The bar is added by the thread: another one may be held up while it draws.
        Meter::painted(move |board| {
            let bar = bars.add(ProgressBar::new(0).with_style(style()));
            let mut iteration = None;
            paint(board, |state, _| {
                if state.iteration != iteration {
                    iteration = state.iteration;
                    bar.reset();
                }
                bar.set_message(name(what, state.iteration));
                bar.set_length(state.total);
                bar.set_position(state.done);
            });
            bar.finish_and_clear();
        })
    }

    pub(super) fn lines(what: &'static str, say: impl Fn(&str) + Send + 'static) -> Meter {
        let mut throttle = Throttle::default();
        Meter::painted(move |board| {
            paint(board, |state, elapsed| {
                if throttle.is_due(state, elapsed) {
                    say(&line(what, state, elapsed));
                }
            });
        })
    }

    pub(super) fn waiting(what: &'static str, say: impl Fn(&str) + Send + 'static) -> Meter {
        Meter::painted(move |board| {
            let started = Instant::now();
            let mut due = Duration::ZERO;
            while !board.next().over {
                let elapsed = started.elapsed();
                if elapsed >= due {
                    due = elapsed + WAITING_EVERY;
                    say(&waited(what, elapsed));
                }
            }
        })
    }

    fn painted(paint: impl FnOnce(&Board) + Send + 'static) -> Meter {
        let board: Arc<Board> = Arc::default();
        let shared = Arc::clone(&board);
        // Without it, nothing is shown.
        let painter = thread::Builder::new().name("progress".into()).spawn(move || paint(&shared));
        Meter { board, painter: painter.ok() }
    }

    /// `done` of `total` bytes are through; in a live save, in which iteration.
    pub fn show(&self, iteration: Option<u32>, done: u64, total: u64) {
        if total > 0 {
            let mut state = self.board.state();
            (state.iteration, state.done, state.total) = (iteration, done, total);
        }
    }

    /// Shows nothing new any more: the guest stands still, only for a moment.
    pub fn silence(&self) {
        self.board.state().hushed = true;
    }

    /// Has it go away, without waiting for that.
    pub fn end(&self) {
        self.board.state().over = true;
        self.board.over.notify_one();
    }

    #[cfg(test)]
    pub(super) fn is_hidden(&self) -> bool {
        self.painter.is_none()
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.end();
        if let Some(painter) = self.painter.take() {
            // What it could not show is not worth more than that.
            let _ = painter.join();
        }
    }
}

/// Hands over the state now and then, until it is over.
fn paint(board: &Board, mut show: impl FnMut(&State, Duration)) {
    let started = Instant::now();
    loop {
        match board.next() {
            State { over: true, .. } => return,
            State { hushed: true, .. } | State { total: 0, .. } => {}
            state => show(&state, started.elapsed()),
        }
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template(
        "{msg:27} [{wide_bar}] {binary_bytes:>10} of {binary_total_bytes}, {binary_bytes_per_sec:>12}",
    )
    .expect("the template is well-formed")
    .progress_chars("=> ")
}

/// What is going on; people count from 1.
fn name(what: &str, iteration: Option<u32>) -> String {
    match iteration {
        Some(iteration) => format!("{what}, iteration {}", u64::from(iteration) + 1),
        None => what.to_owned(),
    }
}

fn line(what: &str, state: &State, elapsed: Duration) -> String {
    format!(
        "{}: {} % of {} after {} s",
        name(what, state.iteration),
        u128::from(state.done) * 100 / u128::from(state.total),
        BinaryBytes(state.total),
        elapsed.as_secs()
    )
}

fn waited(what: &str, elapsed: Duration) -> String {
    match elapsed.as_secs() {
        0 => format!("{what} ..."),
        seconds => format!("{what} ... {seconds} s"),
    }
}

/// Decides when a line is due: at each quarter, and after [`LINE_EVERY`] at the latest.
#[derive(Debug, Default)]
struct Throttle {
    iteration: Option<u32>,
    /// How many quarters of it were shown.
    quarters: u128,
    /// When the last line was printed.
    last: Option<Duration>,
}

impl Throttle {
    fn is_due(&mut self, state: &State, elapsed: Duration) -> bool {
        if state.iteration != self.iteration {
            self.iteration = state.iteration;
            self.quarters = 0;
        }
        // The last quarter is over when the report comes.
        let quarters = (u128::from(state.done) * 4 / u128::from(state.total)).min(3);
        let since = elapsed.saturating_sub(self.last.unwrap_or_default());
        let due = elapsed >= FIRST_LINE
            && (since >= LINE_EVERY || quarters > self.quarters && since >= LINE_AT_MOST);
        if due {
            (self.quarters, self.last) = (quarters, Some(elapsed));
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use indicatif::{InMemoryTerm, ProgressDrawTarget};

    use super::*;

    fn state(iteration: Option<u32>, done: u64) -> State {
        State { iteration, done, total: 100, ..State::default() }
    }

    /// The seconds at which lines are printed, with the percents they show.
    fn lines(states: impl Iterator<Item = (u64, State)>) -> Vec<(u64, u64)> {
        let mut throttle = Throttle::default();
        states
            .filter(|(seconds, state)| throttle.is_due(state, Duration::from_secs(*seconds)))
            .map(|(seconds, state)| (seconds, state.done))
            .collect()
    }

    #[test]
    fn what_is_short_says_nothing() {
        assert_eq!(lines((0..5).map(|s| (s, state(None, s * 25)))), []);
    }

    #[test]
    fn there_is_a_line_at_each_quarter() {
        let seen = lines((0..=20).map(|s| (s, state(None, s * 5))));
        assert_eq!(seen, [(5, 25), (10, 50), (15, 75)]);
    }

    #[test]
    fn what_is_slow_has_a_line_every_ten_seconds() {
        let seen = lines((0..=35).map(|s| (s, state(None, 1))));
        assert_eq!(seen, [(10, 1), (20, 1), (30, 1)]);
    }

    #[test]
    fn small_iterations_do_not_flood() {
        // One a second, each to its end.
        let seen = lines((0..=20).map(|s| (s, state(u32::try_from(s).ok(), 100))));
        assert!(seen.len() <= 8, "{seen:?}");
        assert!(seen.len() >= 2, "{seen:?}");
    }

    #[test]
    fn a_line_says_what_how_far_and_how_long() {
        let state = State { total: 400 << 20, ..state(Some(1), 100 << 20) };
        let text = line("saving memory", &state, Duration::from_millis(7900));
        assert_eq!(text, "saving memory, iteration 2: 25 % of 400.00 MiB after 7 s");
        let state = State { done: u64::MAX, total: u64::MAX, ..state };
        assert!(line("x", &state, Duration::ZERO).contains("100 %"));
    }

    #[test]
    fn a_bar_is_drawn_and_taken_away() {
        let screen = InMemoryTerm::new(5, 80);
        let target = ProgressDrawTarget::term_like(Box::new(screen.clone()));
        let meter = Meter::bar("saving memory", MultiProgress::with_draw_target(target));
        meter.show(Some(2), 50 << 20, 200 << 20);
        let end = Instant::now() + Duration::from_secs(10);
        while !screen.contents().contains(" of 200") && Instant::now() < end {
            thread::sleep(PERIOD);
        }
        let seen = screen.contents();
        assert!(seen.starts_with("saving memory, iteration 3  [=="), "{seen}");
        assert!(seen.contains("]  50.00 MiB of 200.00 MiB, "), "{seen}");
        // All of it, the rate as well, on one line of a small terminal.
        assert!(seen.ends_with("/s") && !seen.contains('\n'), "{seen}");
        drop(meter);
        assert_eq!(screen.contents(), "");
    }

    #[test]
    fn nobody_waits_for_a_terminal_that_is_stopped() {
        let (go, stopped) = mpsc::channel::<()>();
        let (drawing, draws) = mpsc::channel();
        let meter = Meter::painted(move |board| {
            paint(board, |_, _| {
                let _ = drawing.send(());
                let _ = stopped.recv();
            });
        });
        meter.show(None, 1, 2);
        draws.recv().unwrap();
        // The thread stands in the middle of a line.
        meter.show(None, 2, 2);
        meter.silence();
        meter.end();
        drop(go);
        drop(meter);
    }

    #[test]
    fn nothing_is_shown_of_a_moment() {
        let (drawing, draws) = mpsc::channel();
        let meter = Meter::painted(move |board| {
            paint(board, |state, _| assert!(drawing.send(*state).is_ok()))
        });
        meter.silence();
        meter.show(Some(1), 1, 2);
        thread::sleep(3 * PERIOD);
        drop(meter);
        assert_eq!(draws.try_iter().count(), 0);
    }
}
