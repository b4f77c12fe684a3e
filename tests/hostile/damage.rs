//! Inputs: those of the corpus damaged, words put together, and what a target makes itself.

use std::ops::Range;

use proptest::collection::vec;
use proptest::prelude::{BoxedStrategy, Just, Strategy, any, prop_oneof};
use proptest::sample::{Index, select};

/// No input is longer: time is better spent on many.
const LONGEST: usize = 256 << 10;

/// Numbers at which things break, as text.
const NUMBERS: [&str; 17] = [
    "0",
    "1",
    "-1",
    "+1",
    "00",
    "0x7fffffff",
    "1e9",
    "1e999",
    "0.5",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "99999999999999999999999999999999",
];

/// The same in four bytes.
const WORDS: [u32; 10] =
    [0, 1, 2, 0xff, 0x1000, 0x7fff_ffff, 0x8000_0000, 0xffff_fff8, 0xffff_fffc, u32::MAX];

/// Texts at which paths, names, commands and messages break.
pub const ODD: [&str; 28] = [
    "",
    "-",
    "--",
    "-x",
    "--help",
    "/srv/a b.qcow2",
    "/srv/a'b\"c.img",
    "/srv/a,b:c=d.img",
    "/srv/-rf",
    "/srv/a\nb",
    "/srv/a\\nb",
    "/",
    "//",
    "/srv/../../etc/shadow",
    "../x",
    "a/b",
    "json:{\"driver\":\"nbd\",\"host\":\"x\"}",
    "nbd:localhost:10809",
    "vhd:-x",
    "vhd:/srv/c.vhd",
    "file:/srv/a",
    "fat:rw:/etc",
    "\u{0}",
    "\u{1b}[2J",
    "\u{202e}gnp.exe",
    "äöü€𝄞",
    "$(reboot)`id`",
    "; rm -rf / #",
];

#[derive(Debug, Clone)]
enum Damage {
    Flip(Index, u8),
    Insert(Index, Vec<u8>),
    Delete(Index, u16),
    Duplicate(Index, u16),
    /// The rest is replaced by the end of a seed.
    Splice(Index, Index, Index),
    Truncate(Index),
    /// The n-th number becomes another one.
    Number(Index, &'static str),
    /// The n-th quoted text becomes another one.
    Text(Index, String),
    Word(Index, u32, bool),
    /// A short run is repeated thousands of times.
    Repeat(Index, u8, u16),
    /// Something is opened many times, and may be closed as often.
    Nest(Index, (&'static str, &'static str), u16, bool),
}

/// Everything a target is tried with.
pub fn inputs(
    seeds: Vec<Vec<u8>>,
    tokens: &'static [&'static str],
    made: BoxedStrategy<Vec<u8>>,
) -> BoxedStrategy<Vec<u8>> {
    let damages = vec(damage(tokens), 1..6);
    let seed = prop_oneof![2 => select(seeds.clone()), 1 => made.clone()];
    let damaged = (seed, damages).prop_map(move |(mut bytes, damages)| {
        for damage in &damages {
            damage.apply(&mut bytes, &seeds);
            bytes.truncate(LONGEST);
        }
        bytes
    });
    let words = vec(token(tokens), 0..40).prop_map(|words| words.concat().into_bytes());
    prop_oneof![6 => damaged, 1 => words, 2 => made].boxed()
}

fn token(tokens: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop_oneof![
        4 => select(tokens).prop_map(str::to_owned),
        1 => select(&NUMBERS[..]).prop_map(str::to_owned),
        1 => odd(),
        1 => select(&["\"", "'", "\\", "\n", " ", "\t", "\r\n", ",", "=", "\u{feff}"][..])
            .prop_map(str::to_owned),
    ]
}

/// A text that something may break at.
pub fn odd() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => select(&ODD[..]).prop_map(str::to_owned),
        1 => ("[a-z.\u{e9}/]", 1..400_usize).prop_map(|(text, times)| text.repeat(times)),
        1 => "/[ -~]{0,20}",
        1 => "\\PC{0,12}",
    ]
}

fn damage(tokens: &'static [&'static str]) -> impl Strategy<Value = Damage> {
    let at = any::<Index>;
    let nests = &[("[", "]"), ("{", "}"), ("{\"a\":", "}"), ("a.", ""), ("[a.", "]"), ("\"", "\"")];
    prop_oneof![
        (at(), 0..8_u8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        (at(), token(tokens)).prop_map(|(at, new)| Damage::Insert(at, new.into_bytes())),
        (at(), vec(any::<u8>(), 1..8)).prop_map(|(at, new)| Damage::Insert(at, new)),
        (at(), 1..64_u16).prop_map(|(at, length)| Damage::Delete(at, length)),
        (at(), 1..512_u16).prop_map(|(at, length)| Damage::Duplicate(at, length)),
        (at(), at(), at()).prop_map(|(at, seed, from)| Damage::Splice(at, seed, from)),
        at().prop_map(Damage::Truncate),
        (at(), select(&NUMBERS[..])).prop_map(|(which, new)| Damage::Number(which, new)),
        (at(), odd()).prop_map(|(which, new)| Damage::Text(which, new)),
        (at(), select(&WORDS[..]), any::<bool>()).prop_map(|(at, w, big)| Damage::Word(at, w, big)),
        (at(), 1..24_u8, 1..5000_u16).prop_map(|(at, run, times)| Damage::Repeat(at, run, times)),
        (at(), select(&nests[..]), prop_oneof![Just(200_u16), 1..20_000_u16], any::<bool>())
            .prop_map(|(at, what, depth, closed)| Damage::Nest(at, what, depth, closed)),
    ]
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        let end = bytes.len();
        let position = |at: &Index| at.index(end + 1);
        let run = |at: &Index, length: usize| {
            let start = position(at);
            start..(start + length).min(end)
        };
        match self {
            Damage::Flip(at, bit) => {
                if let Some(byte) = bytes.get_mut(position(at)) {
                    *byte ^= 1 << bit;
                }
            }
            Damage::Insert(at, new) => replace(bytes, position(at)..position(at), new),
            Damage::Delete(at, length) => replace(bytes, run(at, (*length).into()), b""),
            Damage::Duplicate(at, length) => {
                let run = run(at, (*length).into());
                let copy = bytes[run.clone()].to_vec();
                replace(bytes, run.end..run.end, &copy);
            }
            Damage::Splice(at, seed, from) => {
                let seed = seed.get(seeds);
                bytes.truncate(position(at));
                bytes.extend(&seed[from.index(seed.len() + 1)..]);
            }
            Damage::Truncate(at) => bytes.truncate(position(at)),
            Damage::Number(which, new) => {
                if let Some(span) = pick(&numbers(bytes), which) {
                    replace(bytes, span, new.as_bytes());
                }
            }
            Damage::Text(which, new) => {
                if let Some(span) = pick(&texts(bytes), which) {
                    let new = new.replace('\\', "\\\\").replace('"', "\\\"");
                    replace(bytes, span, new.replace('\n', "\\n").as_bytes());
                }
            }
            Damage::Word(at, word, big) => {
                let word = if *big { word.to_be_bytes() } else { word.to_le_bytes() };
                let start = position(at) & !3;
                replace(bytes, start..(start + 4).min(end), &word);
            }
            Damage::Repeat(at, length, times) => {
                let run = run(at, (*length).into());
                let copies = bytes[run.clone()].repeat((*times).into());
                replace(bytes, run.end..run.end, &copies);
            }
            Damage::Nest(at, (open, close), depth, closed) => {
                let mut new = open.repeat((*depth).into());
                if *closed {
                    new += "1";
                    new += &close.repeat((*depth).into());
                }
                replace(bytes, position(at)..position(at), new.as_bytes());
            }
        }
    }
}

fn replace(bytes: &mut Vec<u8>, span: Range<usize>, new: &[u8]) {
    bytes.splice(span, new.iter().copied());
}

fn pick(spans: &[Range<usize>], which: &Index) -> Option<Range<usize>> {
    (!spans.is_empty()).then(|| which.get(spans).clone())
}

/// Where the numbers are.
fn numbers(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut spans: Vec<Range<usize>> = Vec::new();
    for (at, byte) in bytes.iter().enumerate() {
        match spans.last_mut() {
            _ if !byte.is_ascii_digit() => {}
            Some(last) if last.end == at => last.end = at + 1,
            _ => spans.push(at..at + 1),
        }
    }
    spans
}

/// Where the texts between quotes are, without the quotes.
fn texts(bytes: &[u8]) -> Vec<Range<usize>> {
    let quotes: Vec<_> = (0..bytes.len()).filter(|at| bytes[*at] == b'"').collect();
    quotes.chunks_exact(2).map(|pair| pair[0] + 1..pair[1]).collect()
}
