//! Known secrets: exact values, searched for in every encoding in which a backend is likely to give them back.
//!
//! The search is Wu and Manber's: the last three bytes of a window as long as the shortest pattern are looked up in a
//! table that says how far the window may move. All tables and patterns are wiped when dropped, which no published
//! automaton offers, and text that holds no secret is skipped through several bytes at a time.

use std::{ops::Range, sync::Arc};

use data_encoding::{BASE64, BASE64URL, HEXLOWER, HEXUPPER};
use zeroize::{ZeroizeOnDrop, Zeroizing};

/// Below this length, a secret is searched for as it is, but not encoded: an encoding's fixed part would be a letter
/// or two. Such a secret masks a lot, and that is the safe side.
const ENCODED_FROM: usize = 4;
/// Below this length, finding a secret inside of something longer is chance.
const HELD_FROM: usize = 8;
const BLOCK: usize = 3;
const TABLE: usize = 1 << 15;

/// Secret values to be masked wherever they show up: plain; base64 (standard and URL-safe, at each of the three
/// alignments, so also inside a longer encoded text); hexadecimal in either case; percent-encoded; as a JSON string,
/// also in another; with quotes or backslashes doubled. Not found: line-wrapped base64, other encodings of encodings, values
/// cut or joined by the server. Values and everything made of them are wiped on drop.
///
/// Share it in an `Arc`, each thread in one of its own (a clone is the same secrets): to count references in one place,
/// processors wait for each other.
#[derive(Clone, Default)]
pub struct KnownSecrets(Arc<Tables>);

#[derive(Default)]
struct Tables {
    patterns: Vec<Pattern>,
    /// Patterns shorter than [`BLOCK`] but not empty, searched one by one.
    short: Vec<Zeroizing<Vec<u8>>>,
    search: Option<Search>,
    longest: usize,
}

struct Pattern {
    text: Zeroizing<Vec<u8>>,
    /// Characters beside a match that hold some bits of the secret.
    edges: Edges,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Edges {
    Sharp,
    Base64,
}

/// Wu and Manber's tables.
#[derive(ZeroizeOnDrop)]
struct Search {
    /// Length of the window: that of the shortest pattern.
    window: usize,
    /// By hash of the window's last block: how far to move; 0 to look closer.
    shift: Vec<u8>,
    /// (hash of the block that ends the pattern's first `window` bytes, pattern), sorted.
    ends: Vec<(u16, u32)>,
}

impl std::fmt::Debug for KnownSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KnownSecrets").finish_non_exhaustive()
    }
}

impl KnownSecrets {
    /// No secrets.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Prepares the search for these values. Empty ones are left out.
    pub fn new<'v>(values: impl IntoIterator<Item = &'v [u8]>) -> Self {
        let mut made = Tables::default();
        for value in values {
            made.add_encodings(value);
        }
        made.patterns.sort_by(|a, b| a.text.cmp(&b.text));
        made.patterns.dedup_by(|a, b| {
            // The wider edge stays, in `b`.
            let same = a.text == b.text;
            if same && a.edges == Edges::Base64 {
                b.edges = Edges::Base64;
            }
            same
        });
        made.longest =
            made.patterns.iter().map(|p| p.text.len() + 2).chain(made.short.iter().map(|p| p.len())).max().unwrap_or(0);
        made.search = Search::new(&made.patterns);
        Self(Arc::new(made))
    }

    /// Whether there is nothing to search for.
    pub fn is_empty(&self) -> bool {
        self.0.patterns.is_empty() && self.0.short.is_empty()
    }

    /// Length of the longest match.
    pub(super) fn longest(&self) -> usize {
        self.0.longest
    }

    /// Whether a text is or holds a secret in one of its forms. A short one counts only where it is the whole text:
    /// a few letters are found anywhere, and say nothing there.
    pub fn are_in(&self, text: &[u8]) -> bool {
        let mut held = false;
        self.find(text, |range| held |= range.len() >= HELD_FROM || range.len() == text.len());
        held
    }

    /// Whether any part of these bytes looks like a secret, however short.
    pub fn may_be_in(&self, bytes: &[u8]) -> bool {
        let mut any = false;
        self.find(bytes, |_| any = true);
        any
    }

    /// Every occurrence of every pattern, overlapping ones included, in no order.
    pub(super) fn find(&self, text: &[u8], mut found: impl FnMut(Range<usize>)) {
        for short in &self.0.short {
            for start in memchr::memchr_iter(short[0], text) {
                if text[start..].starts_with(short) {
                    found(start..start + short.len());
                }
            }
        }
        if let Some(search) = &self.0.search {
            search.run(text, &self.0.patterns, found);
        }
    }
}

impl Tables {
    fn add(&mut self, text: Zeroizing<Vec<u8>>, edges: Edges) {
        match text.len() {
            0 => {}
            1..BLOCK => {
                if !self.short.contains(&text) {
                    self.short.push(text);
                }
            }
            _ => self.patterns.push(Pattern { text, edges }),
        }
    }

    fn add_encodings(&mut self, value: &[u8]) {
        self.add(Zeroizing::new(value.to_vec()), Edges::Sharp);
        if value.len() < ENCODED_FROM {
            return;
        }
        for encoding in [&BASE64, &BASE64URL] {
            for lead in 0..3 {
                self.add(base64_core(encoding, value, lead), Edges::Base64);
            }
        }
        for encoding in [&HEXLOWER, &HEXUPPER] {
            self.add(Zeroizing::new(encoding.encode(value).into_bytes()), Edges::Sharp);
        }
        for variant in escaped(value) {
            if variant.as_slice() != value {
                self.add(variant, Edges::Sharp);
            }
        }
    }
}

/// The characters of a base64 text that depend on nothing but `value`, which stands `lead` bytes behind a multiple of
/// three.
fn base64_core(encoding: &data_encoding::Encoding, value: &[u8], lead: usize) -> Zeroizing<Vec<u8>> {
    let mut bytes = Zeroizing::new(vec![0; lead]);
    bytes.extend_from_slice(value);
    let mut text = Zeroizing::new(encoding.encode(&bytes).into_bytes());
    text.truncate(bytes.len() * 8 / 6);
    text.drain(..(lead * 8).div_ceil(6));
    text
}

fn escaped(value: &[u8]) -> Vec<Zeroizing<Vec<u8>>> {
    let unreserved = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
    let percent = |digits: &'static [u8; 16], space: Option<u8>| {
        build(value, |b, out| match (b, space) {
            (b' ', Some(plus)) => out.push(plus),
            (b, _) if unreserved(b) => out.push(b),
            (b, _) => out.extend([b'%', digits[usize::from(b >> 4)], digits[usize::from(b & 15)]]),
        })
    };
    let doubled = |which: u8| {
        build(value, |b, out| {
            out.push(b);
            if b == which {
                out.push(b);
            }
        })
    };
    let mut all = vec![
        percent(b"0123456789ABCDEF", None),
        percent(b"0123456789ABCDEF", Some(b'+')),
        percent(b"0123456789abcdef", None),
        percent(b"0123456789abcdef", Some(b'+')),
        doubled(b'\''),
        doubled(b'"'),
        doubled(b'\\'),
    ];
    let mut strings =
        vec![json(value, b"0123456789abcdef", Slash::Plain), json(value, b"0123456789abcdef", Slash::Escaped)];
    if let Ok(text) = std::str::from_utf8(value)
        && !text.is_ascii()
    {
        strings.push(json_ascii(text, b"0123456789abcdef"));
        strings.push(json_ascii(text, b"0123456789ABCDEF"));
    }
    // JSON often lies in a string of JSON: arguments of a model's call, a message in a log.
    let twice: Vec<_> = strings.iter().map(|string| json(string, b"0123456789abcdef", Slash::Plain)).collect();
    all.extend(strings);
    all.extend(twice);
    all
}

/// Room for the longest escape of each byte, so that nothing is moved and left behind.
fn build(value: &[u8], mut push: impl FnMut(u8, &mut Zeroizing<Vec<u8>>)) -> Zeroizing<Vec<u8>> {
    let mut out = Zeroizing::new(Vec::with_capacity(value.len() * 6));
    for b in value {
        push(*b, &mut out);
    }
    out
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Slash {
    Plain,
    Escaped,
}

fn json(value: &[u8], digits: &[u8; 16], slash: Slash) -> Zeroizing<Vec<u8>> {
    build(value, |b, out| json_byte(b, digits, slash, out))
}

fn json_byte(b: u8, digits: &[u8; 16], slash: Slash, out: &mut Vec<u8>) {
    match b {
        b'"' | b'\\' => out.extend([b'\\', b]),
        b'/' if slash == Slash::Escaped => out.extend(*b"\\/"),
        b'\n' => out.extend(*b"\\n"),
        b'\r' => out.extend(*b"\\r"),
        b'\t' => out.extend(*b"\\t"),
        0x08 => out.extend(*b"\\b"),
        0x0c => out.extend(*b"\\f"),
        0..0x20 => out.extend([b'\\', b'u', b'0', b'0', digits[usize::from(b >> 4)], digits[usize::from(b & 15)]]),
        b => out.push(b),
    }
}

/// JSON with everything beyond ASCII as `\uXXXX`.
fn json_ascii(text: &str, digits: &[u8; 16]) -> Zeroizing<Vec<u8>> {
    let mut out = Zeroizing::new(Vec::with_capacity(text.len() * 6));
    for c in text.chars() {
        if let Ok(b @ 0..0x80) = u8::try_from(c) {
            json_byte(b, digits, Slash::Plain, &mut out);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            out.extend(*b"\\u");
            out.extend([12, 8, 4, 0].map(|shift| digits[usize::from(*unit >> shift & 15)]));
        }
    }
    out
}

impl Search {
    fn new(patterns: &[Pattern]) -> Option<Self> {
        let window = patterns.iter().map(|p| p.text.len()).min()?.min(usize::from(u8::MAX));
        let furthest = window - BLOCK + 1;
        let mut shift = vec![u8::try_from(furthest).unwrap_or(u8::MAX); TABLE];
        let mut ends = Vec::with_capacity(patterns.len());
        for (number, pattern) in patterns.iter().enumerate() {
            for (at, block) in pattern.text[..window].windows(BLOCK).enumerate() {
                let left = u8::try_from(window - BLOCK - at).unwrap_or(u8::MAX);
                let hash = hash(block);
                let entry = &mut shift[usize::from(hash)];
                *entry = (*entry).min(left);
                if left == 0 {
                    ends.push((hash, u32::try_from(number).unwrap_or(u32::MAX)));
                }
            }
        }
        ends.sort_unstable();
        Some(Self { window, shift, ends })
    }

    fn run(&self, text: &[u8], patterns: &[Pattern], mut found: impl FnMut(Range<usize>)) {
        // `end` is one behind the window.
        let mut end = self.window;
        while end <= text.len() {
            let hash = hash(&text[end - BLOCK..end]);
            let shift = self.shift[usize::from(hash)];
            if shift > 0 {
                end += usize::from(shift);
                continue;
            }
            let start = end - self.window;
            let first = self.ends.partition_point(|(h, _)| *h < hash);
            for (_, number) in self.ends[first..].iter().take_while(|(h, _)| *h == hash) {
                let pattern = &patterns[*number as usize];
                if text[start..].starts_with(&pattern.text) {
                    found(pattern.edges.widen(text, start..start + pattern.text.len()));
                }
            }
            end += 1;
        }
    }
}

/// 15 bits of a block of three bytes.
fn hash(block: &[u8]) -> u16 {
    let n = u32::from(block[0]) | u32::from(block[1]) << 8 | u32::from(block[2]) << 16;
    (n.wrapping_mul(0x9E37_79B1) >> 17) as u16
}

impl Edges {
    fn widen(self, text: &[u8], range: Range<usize>) -> Range<usize> {
        let base64 = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'-' | b'_');
        match self {
            Self::Sharp => range,
            Self::Base64 => {
                let before = range.start > 0 && base64(&text[range.start - 1]);
                let after = text.get(range.end).is_some_and(base64);
                range.start - usize::from(before)..range.end + usize::from(after)
            }
        }
    }
}
