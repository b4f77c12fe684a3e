//! The language of xl configuration files, as much as needed to find the disks.
//!
//! Facts are from libxlutil: the tokens from libxlu_cfg_l.l, the grammar from libxlu_cfg_y.y, the
//! rest from libxlu_cfg.c; the same in every release from Xen 4.14 to 4.19.

use std::ops::Range;
use std::str;
use std::vec::IntoIter;

use super::change::BadCfg;

/// Lists in lists are rare (`vnuma`), and this reader is recursive.
const DEEPEST: usize = 16;

/// One entry of the disk list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The range of its string literal in the text, in bytes, with the quotes.
    pub span: Range<usize>,
    /// The value of the literal: a disk specification.
    pub spec: String,
}

/// The entries of the effective list `disk`, in order.
///
/// Of several assignments the last one counts, and `+=` adds to the previous one
/// (xlu__cfg_set_store). A single string is no list (xlu_cfg_get_list).
pub fn disk_entries(text: &[u8]) -> Result<Vec<Entry>, BadCfg> {
    let syntax = |at: usize, reason| BadCfg::Syntax { line: line(text, at), reason };
    let value = disk_value(text).map_err(|Bad(at, reason)| syntax(at, reason))?;
    let items = match value {
        None => return Ok(Vec::new()),
        Some(Value::List(items)) => items,
        Some(Value::Literal(span) | Value::Number(span)) => {
            return Err(syntax(span.start, "'disk' is not a list"));
        }
    };
    let entry = |item| match item {
        Value::Literal(span) => match meaning(&text[span.clone()]) {
            Ok(spec) => Ok(Entry { span, spec }),
            Err(reason) => Err(syntax(span.start, reason)),
        },
        Value::Number(span) => Err(syntax(span.start, "a number as a disk")),
        Value::List(_) => Err(BadCfg::List),
    };
    items.into_iter().map(entry).collect()
}

/// `value` as a string literal with the given quote.
///
/// Both kinds of quotes have the same escapes. Every other character stands for itself, except the
/// line break, which our specifications never contain (see [`super::respec`]).
pub fn literal(value: &str, quote: &str) -> String {
    let escaped = value.replace('\\', r"\\").replace(quote, &format!(r"\{quote}"));
    format!("{quote}{escaped}{quote}")
}

/// The value of a literal with its quotes (xlu__cfgl_dequote).
fn meaning(literal: &[u8]) -> Result<String, &'static str> {
    let literal = str::from_utf8(literal).map_err(|_| "a disk that is not UTF-8")?;
    let mut value = String::new();
    let mut rest = literal[1..literal.len() - 1].chars();
    while let Some(c) = rest.next() {
        value.push(match c {
            '\\' => match rest.next() {
                Some(c @ ('"' | '\'' | '\\')) => c,
                Some('a') => '\x07',
                Some('b') => '\x08',
                Some('f') => '\x0c',
                Some('n') => '\n',
                Some('r') => '\r',
                Some('t') => '\t',
                Some('v') => '\x0b',
                // libxlutil refuses every \x and drops the character of every \101: so refuse both.
                Some('x' | '0'..='7') => return Err("a character given by its number"),
                _ => return Err("an unknown escape in a string"),
            },
            c => c,
        });
    }
    Ok(value)
}

/// The offset and the error.
struct Bad(usize, &'static str);

fn line(text: &[u8], at: usize) -> usize {
    text[..at].iter().filter(|byte| **byte == b'\n').count() + 1
}

enum Value {
    Literal(Range<usize>),
    Number(Range<usize>),
    List(Vec<Value>),
}

/// The value of `disk` after the last statement.
fn disk_value(text: &[u8]) -> Result<Option<Value>, Bad> {
    let mut tokens = Tokens { all: tokens(text)?.into_iter(), end: text.len() };
    let mut disk = None;
    while let Some((token, span)) = tokens.all.next() {
        match token {
            Token::Newline | Token::Semicolon => continue,
            Token::Name => {}
            _ => return Err(Bad(span.start, "no setting")),
        }
        let adds = match tokens.all.next() {
            Some((Token::Assign, _)) => false,
            Some((Token::Add, _)) => true,
            _ => return Err(Bad(span.end, "no '=' after a name")),
        };
        let value = tokens.value(DEEPEST)?;
        match tokens.all.next() {
            None | Some((Token::Newline | Token::Semicolon, _)) => {}
            Some((_, span)) => return Err(Bad(span.start, "more after a value")),
        }
        if &text[span.clone()] != b"disk" {
            continue;
        }
        disk = match (disk, value) {
            (Some(Value::List(mut list)), Value::List(more)) if adds => {
                list.extend(more);
                Some(Value::List(list))
            }
            (Some(_), _) if adds => return Err(Bad(span.start, "'+=' to what is no list")),
            (_, value) => Some(value),
        };
    }
    Ok(disk)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Name,
    Number,
    Literal,
    Assign,
    Add,
    Comma,
    Open,
    Close,
    Semicolon,
    Newline,
}

struct Tokens {
    all: IntoIter<(Token, Range<usize>)>,
    end: usize,
}

impl Tokens {
    /// The next token, which must belong to a value.
    fn next(&mut self) -> Result<(Token, Range<usize>), Bad> {
        self.all.next().ok_or(Bad(self.end, "the value does not end"))
    }

    /// The next token that is no line break: they are ignored inside brackets.
    fn next_in_list(&mut self) -> Result<(Token, Range<usize>), Bad> {
        loop {
            let next = self.next()?;
            if next.0 != Token::Newline {
                return Ok(next);
            }
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value, Bad> {
        let first = self.next()?;
        self.value_from(first, depth)
    }

    fn value_from(&mut self, first: (Token, Range<usize>), depth: usize) -> Result<Value, Bad> {
        let (token, span) = first;
        match token {
            Token::Literal => Ok(Value::Literal(span)),
            Token::Number => Ok(Value::Number(span)),
            Token::Open if depth == 0 => Err(Bad(span.start, "too many lists in lists")),
            Token::Open => self.list(depth - 1).map(Value::List),
            _ => Err(Bad(span.start, "no value")),
        }
    }

    /// The rest of a list after its '['. A comma may follow its last value, but not stand alone.
    fn list(&mut self, depth: usize) -> Result<Vec<Value>, Bad> {
        let mut values = Vec::new();
        loop {
            let first = self.next_in_list()?;
            if first.0 == Token::Close {
                return Ok(values);
            }
            values.push(self.value_from(first, depth)?);
            match self.next_in_list()? {
                (Token::Comma, _) => {}
                (Token::Close, _) => return Ok(values),
                (_, span) => return Err(Bad(span.start, "no ',' between the values of a list")),
            }
        }
    }
}

fn tokens(text: &[u8]) -> Result<Vec<(Token, Range<usize>)>, Bad> {
    let mut tokens = Vec::new();
    let mut at = 0;
    // Names, quotes and so on are ASCII, so every span begins and ends between characters in any encoding that
    // an editor would use.
    while let Some(first) = text.get(at) {
        let rest = &text[at..];
        let run = |part: fn(&u8) -> bool| rest.iter().take_while(|byte| part(byte)).count();
        let (token, length) = match first {
            b' ' | b'\t' => {
                at += 1;
                continue;
            }
            b'a'..=b'z' => {
                (Token::Name, run(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_')))
            }
            b'0'..=b'9' => {
                (Token::Number, run(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'x')))
            }
            b'\'' | b'"' => (Token::Literal, quoted(rest).map_err(|reason| Bad(at, reason))?),
            b'=' => (Token::Assign, 1),
            b'+' if rest.get(1) == Some(&b'=') => (Token::Add, 2),
            b',' => (Token::Comma, 1),
            b'[' => (Token::Open, 1),
            b']' => (Token::Close, 1),
            b';' => (Token::Semicolon, 1),
            b'\n' => (Token::Newline, 1),
            // A comment ends the line. So the last line of the file must have a line break.
            b'#' => match rest.iter().position(|byte| *byte == b'\n') {
                Some(end) => (Token::Newline, end + 1),
                None => return Err(Bad(at, "a comment without the end of its line")),
            },
            // So CRLF is refused, as libxlutil does.
            b'\r' => return Err(Bad(at, "a carriage return")),
            _ => return Err(Bad(at, "a character that means nothing there")),
        };
        tokens.push((token, at..at + length));
        at += length;
    }
    Ok(tokens)
}

/// The length of the string literal at the start of `rest`.
fn quoted(rest: &[u8]) -> Result<usize, &'static str> {
    let mut length = 1;
    loop {
        match rest.get(length) {
            None | Some(b'\n') => return Err("a string that does not end"),
            Some(byte) if *byte == rest[0] => return Ok(length + 1),
            // An escaped line break is an error too: the next iteration finds it.
            Some(b'\\') if rest.get(length + 1) != Some(&b'\n') => length += 2,
            Some(_) => length += 1,
        }
    }
}
