//! Masking of JSON (RFC 8259) as it streams by: values by their place, and whatever detectors and known secrets find in
//! any string, key or number.
//!
//! What stays is sent to the byte as it came, and what is masked stays JSON: a string takes the place of a number, and
//! one string or `null` that of a whole object. Strings are looked at without their escapes. Several values may follow
//! one another (newline-delimited JSON). Memory is bounded, whatever the text: long strings are scrubbed in pieces.
//! Failure mode: what is no JSON is an error, and nothing after it comes out.
//!
//! One file, because states, tokens and escapes of one walker say nothing apart.

use std::sync::Arc;

use super::{Hits, KnownSecrets, MaskSet, Masked, StreamScrubber, column::ColumnMask};

/// Longest string that is scrubbed as a whole, in bytes as written; longest key.
const WHOLE: usize = 64 << 10;
/// Longest number.
const NUMBER_MAX: usize = 1 << 10;
/// Deepest nesting.
const DEPTH_MAX: usize = 256;

/// Why a text is no JSON, or none that is read here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// A byte that cannot stand here.
    #[error("this is not JSON")]
    Malformed,
    /// It ends in the middle.
    #[error("the JSON ends early")]
    Ended,
    /// Nested too deep, or a key or number is too long.
    #[error("the JSON is too deep, or has a name that is too long")]
    TooComplex,
}

/// Masks one JSON text that comes in pieces. An error poisons it: whatever is pushed then is refused, too.
pub struct JsonMasker {
    masks: Arc<MaskSet>,
    secrets: Arc<KnownSecrets>,
    expect: Expect,
    token: Token,
    /// What came of the token that is being read, as written, without its quotes.
    raw: Vec<u8>,
    levels: Vec<Level>,
    /// `$/orders/0/email` of the value that is read; kept only where places are masked.
    path: String,
    /// Depth of the object or array whose replacement is out already.
    hidden: Option<usize>,
    hits: Hits,
    failed: Option<JsonError>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Expect {
    /// A value, or the end of the text.
    Top,
    Value,
    ValueOrEnd,
    Key,
    KeyOrEnd,
    Colon,
    CommaOrEnd,
}

enum Token {
    None,
    /// `escaped`: the last byte was a backslash. `cut`: what came so far was too much to keep, and is not shown.
    String {
        key: bool,
        escaped: bool,
        cut: bool,
        long: Option<Box<StreamScrubber>>,
    },
    Word,
}

enum Level {
    Object { path: usize },
    Array { path: usize, next: u64 },
}

impl Token {
    fn string(key: bool) -> Self {
        Self::String { key, escaped: false, cut: false, long: None }
    }
}

impl JsonMasker {
    /// Starts at the beginning of a text.
    pub fn new(masks: Arc<MaskSet>, secrets: Arc<KnownSecrets>) -> Self {
        let places = masks.has_places();
        Self {
            masks,
            secrets,
            expect: Expect::Top,
            token: Token::None,
            raw: Vec::new(),
            levels: Vec::new(),
            path: if places { "$".into() } else { String::new() },
            hidden: None,
            hits: Hits::default(),
            failed: None,
        }
    }

    /// Whether this is all of a text that would come out as it is, told without taking it apart; `false` says nothing.
    ///
    /// Where no string has an escape, what is found in a part of it is found in all of it as well: quotes, commas and
    /// brackets end whatever may be found as the end of the part does.
    pub fn passes(&self, whole: &[u8]) -> bool {
        !self.places()
            && memchr::memchr(b'\\', whole).is_none()
            && self.masks.is_clean(whole, &self.secrets)
            && serde_json::from_slice::<serde::de::IgnoredAny>(whole).is_ok()
    }

    /// Takes the next piece and appends to `out` what can be sent by now.
    ///
    /// # Errors
    /// It is no JSON.
    pub fn push(&mut self, piece: &[u8], out: &mut Vec<u8>) -> Result<(), JsonError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let mut rest = piece;
        while !rest.is_empty() {
            match self.step(rest, out) {
                Ok(taken) => rest = &rest[taken..],
                Err(error) => {
                    self.failed = Some(error);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Ends the text: appends the rest to `out` and says what was masked in all of it.
    ///
    /// # Errors
    /// It ended in the middle of a value.
    pub fn finish(mut self, out: &mut Vec<u8>) -> Result<Hits, JsonError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        if matches!(self.token, Token::Word) {
            self.end_word(out)?;
        }
        if self.expect == Expect::Top && matches!(self.token, Token::None) {
            Ok(self.hits)
        } else {
            Err(JsonError::Ended)
        }
    }

    /// Takes one byte, or the part of a token that is there.
    fn step(&mut self, rest: &[u8], out: &mut Vec<u8>) -> Result<usize, JsonError> {
        match &self.token {
            Token::String { .. } => return self.in_string(rest, out),
            Token::Word => {
                let len = rest.iter().take_while(|b| is_word(**b)).count();
                self.raw.extend_from_slice(&rest[..len]);
                if self.raw.len() > NUMBER_MAX {
                    return Err(JsonError::TooComplex);
                }
                if len < rest.len() {
                    self.end_word(out)?;
                }
                return Ok(len);
            }
            Token::None => {}
        }
        let byte = rest[0];
        match (byte, self.expect) {
            (b' ' | b'\t' | b'\n' | b'\r', _) => self.put(out, byte),
            (b'"', Expect::Key | Expect::KeyOrEnd) => return self.begin_string(true, rest, out),
            (b'"', Expect::Top | Expect::Value | Expect::ValueOrEnd) => {
                self.begin_value();
                return self.begin_string(false, rest, out);
            }
            (b'{' | b'[', Expect::Top | Expect::Value | Expect::ValueOrEnd) => self.open(byte, out)?,
            (b'}', Expect::KeyOrEnd) => self.close(byte, out)?,
            (b']', Expect::ValueOrEnd) => self.close(byte, out)?,
            (b'}', Expect::CommaOrEnd) if matches!(self.levels.last(), Some(Level::Object { .. })) => {
                self.close(byte, out)?
            }
            (b']', Expect::CommaOrEnd) if matches!(self.levels.last(), Some(Level::Array { .. })) => {
                self.close(byte, out)?
            }
            (b',', Expect::CommaOrEnd) => {
                let object = matches!(self.levels.last(), Some(Level::Object { .. }));
                self.expect = if object { Expect::Key } else { Expect::Value };
                self.put(out, byte);
            }
            (b':', Expect::Colon) => {
                self.expect = Expect::Value;
                self.put(out, byte);
            }
            (_, Expect::Top | Expect::Value | Expect::ValueOrEnd) if is_word(byte) => {
                self.begin_value();
                self.token = Token::Word;
                return Ok(0);
            }
            _ => return Err(JsonError::Malformed),
        }
        Ok(1)
    }

    fn put(&self, out: &mut Vec<u8>, byte: u8) {
        if self.hidden.is_none() {
            out.push(byte);
        }
    }

    fn places(&self) -> bool {
        self.masks.has_places()
    }

    /// A value begins: an item of an array has its number for a name.
    fn begin_value(&mut self) {
        let places = self.places();
        if let Some(Level::Array { path, next }) = self.levels.last_mut() {
            let number = *next;
            *next += 1;
            if places {
                self.path.truncate(*path);
                self.path.push_str(&format!("/{number}"));
            }
        }
    }

    /// The mask of the value that is read, if its place has one and nothing around it is masked.
    fn mask(&self) -> Option<ColumnMask> {
        if !self.places() || self.hidden.is_some() { None } else { self.masks.place(&self.path) }
    }

    fn open(&mut self, byte: u8, out: &mut Vec<u8>) -> Result<(), JsonError> {
        if self.levels.len() >= DEPTH_MAX {
            return Err(JsonError::TooComplex);
        }
        self.begin_value();
        if let Some(mask) = self.mask() {
            // Its parts have no one text that could be hashed or shown in part.
            match mask.apply_text(b"") {
                Masked::Null => out.extend_from_slice(b"null"),
                _ => quote(super::REDACTED.as_bytes(), out),
            }
            self.hits.add(&mask.label);
            self.hidden = Some(self.levels.len());
        }
        self.put(out, byte);
        let path = self.path.len();
        let (expect, level) = match byte {
            b'{' => (Expect::KeyOrEnd, Level::Object { path }),
            _ => (Expect::ValueOrEnd, Level::Array { path, next: 0 }),
        };
        self.expect = expect;
        self.levels.push(level);
        Ok(())
    }

    fn close(&mut self, byte: u8, out: &mut Vec<u8>) -> Result<(), JsonError> {
        let Some(Level::Object { path } | Level::Array { path, .. }) = self.levels.pop() else {
            return Err(JsonError::Malformed);
        };
        self.path.truncate(path);
        self.put(out, byte);
        if self.hidden == Some(self.levels.len()) {
            self.hidden = None;
        }
        self.end_value();
        Ok(())
    }

    fn end_value(&mut self) {
        self.expect = if self.levels.is_empty() { Expect::Top } else { Expect::CommaOrEnd };
    }

    fn end_word(&mut self, out: &mut Vec<u8>) -> Result<(), JsonError> {
        self.token = Token::None;
        let raw = std::mem::take(&mut self.raw);
        // The last three are no JSON, but Python's, and have one meaning.
        let number = matches!(&*raw, b"NaN" | b"Infinity" | b"-Infinity");
        if !number && !is_decimal(&raw) && serde_json::from_slice::<serde::de::IgnoredAny>(&raw).is_err() {
            return Err(JsonError::Malformed);
        }
        if self.hidden.is_none() {
            let masked = match self.mask() {
                Some(_) if raw == b"null" => Masked::Unchanged,
                Some(mask) => {
                    self.hits.add(&mask.label);
                    mask.apply_text(&raw)
                }
                None => self.masks.scrub(&raw, &self.secrets, &mut self.hits),
            };
            match masked {
                Masked::Unchanged => out.extend_from_slice(&raw),
                Masked::Text(text) => quote(&text, out),
                Masked::Null => out.extend_from_slice(b"null"),
            }
        }
        self.raw = raw;
        self.raw.clear();
        self.end_value();
        Ok(())
    }

    /// Takes the quote, and all of the string where it is there as it is meant.
    fn begin_string(&mut self, key: bool, rest: &[u8], out: &mut Vec<u8>) -> Result<usize, JsonError> {
        match memchr::memchr2(b'"', b'\\', &rest[1..]) {
            Some(len) if rest[1 + len] == b'"' && len <= WHOLE => {
                let text = &rest[1..=len];
                self.put_string(key, text, text, out);
                Ok(len + 2)
            }
            _ => {
                self.token = Token::string(key);
                Ok(1)
            }
        }
    }

    fn in_string(&mut self, rest: &[u8], out: &mut Vec<u8>) -> Result<usize, JsonError> {
        let Token::String { key, escaped, cut, long } = &mut self.token else { return Err(JsonError::Malformed) };
        if std::mem::take(escaped) {
            self.raw.push(rest[0]);
            return Ok(1);
        }
        let len = memchr::memchr2(b'"', b'\\', rest).unwrap_or(rest.len());
        self.raw.extend_from_slice(&rest[..len]);
        match rest.get(len) {
            Some(b'"') => {
                let (key, cut, long) = (*key, *cut, long.take());
                self.token = Token::None;
                if cut {
                    self.raw.clear();
                }
                self.end_string(key, long, out)?;
                return Ok(len + 1);
            }
            Some(_) => {
                self.raw.push(b'\\');
                *escaped = true;
            }
            None => {}
        }
        if self.raw.len() > WHOLE {
            if *key {
                return Err(JsonError::TooComplex);
            }
            self.long_string(out)?;
        }
        Ok(len + usize::from(len < rest.len()))
    }

    /// A string gets too long to be looked at as a whole.
    fn long_string(&mut self, out: &mut Vec<u8>) -> Result<(), JsonError> {
        let hidden = self.hidden.is_some() || self.mask().is_some();
        let Token::String { escaped, cut, long, .. } = &mut self.token else { return Err(JsonError::Malformed) };
        if hidden {
            // None of it is shown. An escape that is open stays.
            *cut = true;
            self.raw.drain(..self.raw.len() - usize::from(*escaped));
            return Ok(());
        }
        let stream = long.get_or_insert_with(|| {
            out.push(b'"');
            Box::new(StreamScrubber::new(self.masks.clone(), self.secrets.clone()))
        });
        let mut plain = Vec::with_capacity(self.raw.len());
        let used = unescape(&self.raw, More::Comes, &mut plain)?;
        self.raw.drain(..used);
        let mut clean = Vec::with_capacity(plain.len());
        stream.push(&plain, &mut clean);
        escape(&clean, out);
        Ok(())
    }

    fn end_string(&mut self, key: bool, long: Option<Box<StreamScrubber>>, out: &mut Vec<u8>) -> Result<(), JsonError> {
        let raw = std::mem::take(&mut self.raw);
        let mut plain = Vec::new();
        let text: &[u8] = if raw.contains(&b'\\') {
            unescape(&raw, More::Ended, &mut plain)?;
            &plain
        } else {
            &raw
        };
        match long {
            Some(mut stream) => {
                let mut clean = Vec::new();
                stream.push(text, &mut clean);
                self.hits.merge(&stream.finish(&mut clean));
                escape(&clean, out);
                out.push(b'"');
                self.end_value();
            }
            None => self.put_string(key, &raw, text, out),
        }
        self.raw = raw;
        self.raw.clear();
        Ok(())
    }

    /// A string that was read whole: `raw` is as written, without its quotes, and `text` what it means.
    fn put_string(&mut self, key: bool, raw: &[u8], text: &[u8], out: &mut Vec<u8>) {
        if let Some(Level::Object { path }) = self.levels.last().filter(|_| key && self.places()) {
            self.path.truncate(*path);
            self.path.push('/');
            // As in RFC 6901, so that no name can pose as two.
            let name = String::from_utf8_lossy(text).to_lowercase();
            self.path.push_str(&name.replace('~', "~0").replace('/', "~1"));
        }
        if self.hidden.is_none() {
            let mask = if key { None } else { self.mask() };
            let masked = match mask {
                Some(mask) => {
                    self.hits.add(&mask.label);
                    mask.apply_text(text)
                }
                None => self.masks.scrub(text, &self.secrets, &mut self.hits),
            };
            match masked {
                Masked::Null if !key => out.extend_from_slice(b"null"),
                Masked::Unchanged => {
                    out.push(b'"');
                    out.extend_from_slice(raw);
                    out.push(b'"');
                }
                masked => quote(&masked.or_text(text), out),
            }
        }
        if key {
            self.expect = Expect::Colon;
        } else {
            self.end_value();
        }
    }
}

/// Bytes of numbers, `true`, `false` and `null`.
fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.')
}

/// Whether it is a number as most are written: an integer or a fraction, without an exponent (RFC 8259 section 6).
fn is_decimal(raw: &[u8]) -> bool {
    let digits = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let unsigned = raw.strip_prefix(b"-").unwrap_or(raw);
    let (integer, fraction) = match memchr::memchr(b'.', unsigned) {
        Some(dot) => (&unsigned[..dot], &unsigned[dot + 1..]),
        None => (unsigned, &b"0"[..]),
    };
    digits(integer) && digits(fraction) && (integer.len() == 1 || integer[0] != b'0')
}

fn quote(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    escape(text, out);
    out.push(b'"');
}

/// Text between quotes. Bytes that are not UTF-8 stay as they are.
fn escape(text: &[u8], out: &mut Vec<u8>) {
    for byte in text {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0..0x20 => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => out.push(*byte),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum More {
    Comes,
    Ended,
}

/// Appends what a string means, as far as its escapes are whole; returns how much of it that was.
fn unescape(raw: &[u8], more: More, out: &mut Vec<u8>) -> Result<usize, JsonError> {
    let mut at = 0;
    while at < raw.len() {
        let plain = memchr::memchr(b'\\', &raw[at..]).unwrap_or(raw.len() - at);
        out.extend_from_slice(&raw[at..at + plain]);
        at += plain;
        let rest = &raw[at..];
        if rest.is_empty() {
            break;
        }
        // An escape takes up to twelve bytes, where it is a pair of surrogates.
        if more == More::Comes && rest.len() < 12 {
            break;
        }
        at += match rest.get(1) {
            Some(b'u') => unicode(rest, out)?,
            Some(short) => {
                out.push(match short {
                    b'"' | b'\\' | b'/' => *short,
                    b'b' => 8,
                    b'f' => 12,
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    _ => return Err(JsonError::Malformed),
                });
                2
            }
            None => return Err(JsonError::Malformed),
        };
    }
    Ok(at)
}

/// `\uXXXX`, or a pair of them. A surrogate alone means nothing, and is read as U+FFFD.
fn unicode(rest: &[u8], out: &mut Vec<u8>) -> Result<usize, JsonError> {
    let unit = |at: usize| {
        let hex = rest.get(at + 2..at + 6).filter(|hex| hex.iter().all(u8::is_ascii_hexdigit))?;
        u32::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()
    };
    let first = unit(0).ok_or(JsonError::Malformed)?;
    let second = if rest[6..].starts_with(b"\\u") { unit(6) } else { None };
    let (code, len) = match (first, second) {
        (0xd800..0xdc00, Some(low @ 0xdc00..0xe000)) => (0x10000 + ((first - 0xd800) << 10) + (low - 0xdc00), 12),
        _ => (first, 6),
    };
    let c = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
    Ok(len)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
