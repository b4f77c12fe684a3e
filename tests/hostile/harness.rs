//! Runs a target: its corpus first, then inputs made at random until its time is over.

use std::cell::Cell;
use std::env;
use std::fs::{self, File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, Instant};

use proptest::prelude::{BoxedStrategy, Strategy};
use proptest::test_runner::{Config, TestError, TestRunner};

use crate::damage;

/// What any input may cost, whatever its length: buffers, error messages, one header.
const BASE: u64 = 128 << 10;
/// No input may take longer; generous, because the machine may have other work.
const SLOWEST: Duration = Duration::from_secs(30);

/// One kind of input.
pub struct Target {
    /// The name of its directory in the corpus.
    pub name: &'static str,
    /// What a random input may have in it: words, and values that break things.
    pub tokens: &'static [&'static str],
    /// Makes inputs that are nearly right.
    pub made: BoxedStrategy<Vec<u8>>,
    /// Reads an input as the program does, and asserts what must hold if it is accepted. Returns
    /// whether it is.
    pub check: fn(&[u8]) -> bool,
    /// How many bytes of memory a byte of input may cost at most, [`BASE`] aside.
    pub factor: u64,
}

/// Runs a target for `HOSTILE_SECONDS`, or about a second.
pub fn run(target: &Target) {
    let trial = Trial::new(target);
    let seeds = seeds(target.name);
    assert!(!seeds.is_empty(), "{} has no corpus", target.name);
    for (path, seed) in &seeds {
        let result = catch_unwind(AssertUnwindSafe(|| trial.one(seed)));
        if let Err(panic) = result {
            println!("The input is {}", path.display());
            resume_unwind(panic);
        }
    }

    let seconds = env::var("HOSTILE_SECONDS").ok().and_then(|text| text.parse().ok());
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(1));
    let seeds: Vec<_> = seeds.into_iter().map(|(_, seed)| seed).collect();
    let inputs = damage::inputs(seeds, target.tokens, target.made.clone());
    let mut runner = TestRunner::new(Config {
        failure_persistence: None,
        max_shrink_time: 60_000,
        ..Config::default()
    });
    while Instant::now() < end {
        let tree = inputs.new_tree(&mut runner).expect("no strategy of ours rejects");
        let result = runner.run_one(tree, |input| {
            trial.one(&input);
            Ok(())
        });
        if let Err(TestError::Fail(why, input)) = result {
            let path = keep(target.name, &input);
            panic!("{}: {why}\nThe input is kept as {}", target.name, path.display());
        }
    }
    trial.report();
}

/// What one run of a target has seen so far.
struct Trial<'a> {
    target: &'a Target,
    current: File,
    inputs: Cell<u64>,
    accepted: Cell<u64>,
    peak: Cell<u64>,
    slowest: Cell<Duration>,
}

impl<'a> Trial<'a> {
    fn new(target: &'a Target) -> Self {
        let directory = reliability().join("current");
        fs::create_dir_all(&directory).unwrap();
        Trial {
            target,
            current: File::create(directory.join(target.name)).unwrap(),
            inputs: Cell::new(0),
            accepted: Cell::new(0),
            peak: Cell::new(0),
            slowest: Cell::new(Duration::ZERO),
        }
    }

    fn one(&self, input: &[u8]) {
        // For what cannot be caught: an overflow of the stack, no memory at all, no end.
        self.current.set_len(0).unwrap();
        self.current.write_all_at(input, 0).unwrap();
        let started = Instant::now();
        let mut result = Ok(false);
        let memory = allocation_counter::measure(|| {
            result = catch_unwind(AssertUnwindSafe(|| (self.target.check)(input)));
        });
        let accepted = result.unwrap_or_else(|panic| resume_unwind(panic));
        let took = started.elapsed();
        assert!(took < SLOWEST, "{} bytes took {took:?}", input.len());
        let bound = BASE + self.target.factor * input.len() as u64;
        let peak = memory.bytes_max;
        assert!(peak <= bound, "{} bytes cost {peak} bytes of memory", input.len());
        self.inputs.set(self.inputs.get() + 1);
        self.accepted.set(self.accepted.get() + u64::from(accepted));
        self.peak.set(self.peak.get().max(peak));
        self.slowest.set(self.slowest.get().max(took));
    }

    fn report(&self) {
        let name = self.target.name;
        let inputs = self.inputs.get();
        println!(
            "{name}: {inputs} inputs, {} of them accepted, at most {} KiB of memory and {:?} each",
            self.accepted.get(),
            self.peak.get() >> 10,
            self.slowest.get(),
        );
        static FIRST: Once = Once::new();
        let path = reliability().join("inputs");
        FIRST.call_once(|| fs::write(&path, "").unwrap());
        let mut file = OpenOptions::new().append(true).open(path).unwrap();
        file.write_all(format!("{name}\t{inputs}\n").as_bytes()).unwrap();
    }
}

/// `target/reliability`, where `make test` looks for what was tested how often.
pub fn reliability() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("reliability")
}

fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name)
}

fn seeds(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let mut paths: Vec<_> =
        fs::read_dir(corpus(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// Puts an input that failed into the corpus, where the next run finds it.
fn keep(name: &str, input: &[u8]) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    input.hash(&mut hasher);
    let path = corpus(name).join(format!("found-{:08x}", hasher.finish() >> 32));
    fs::write(&path, input).unwrap();
    path
}
