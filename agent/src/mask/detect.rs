//! Detectors: sensitive values found by their looks.
//!
//! Each detector has a cheap anchor that clean text rarely has (an `@`, three digits in a row, the first three bytes of a
//! token) and a check by hand around it. All anchors but the `@` are looked for in one pass: of three bytes that are an
//! anchor two stand at an even place and the next, so clean text costs one look-up for two bytes, and no detector can
//! backtrack.
//! Every check looks at a bounded stretch ([`DECIDES`]), which is what lets a text be scrubbed piece by piece.

use std::ops::Range;

use memchr::memchr_iter;
use smallvec::SmallVec;

use super::{Kind, token};
use crate::action::{Detector, MaskWith};

/// Whether something that starts at a byte is to be masked is known from this many bytes after it. Beyond that it can
/// only become longer.
pub(super) const DECIDES: usize = 2048;
/// How many bytes before a byte can matter to what starts there.
pub(super) const LOOKS_BACK: usize = 128;

/// Every detector, by [`index`].
pub(super) const ALL: [Detector; 5] =
    [Detector::CreditCard, Detector::Iban, Detector::Email, Detector::PrivateKey, Detector::ApiToken];

pub(super) fn index(detector: Detector) -> usize {
    match detector {
        Detector::CreditCard => 0,
        Detector::Iban => 1,
        Detector::Email => 2,
        Detector::PrivateKey => 3,
        Detector::ApiToken => 4,
    }
}

/// A range of a text to mask. Never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) kind: Kind,
    pub(super) with: MaskWith,
}

/// The detectors that are on, and what each asks for.
pub(super) struct Detectors {
    with: [Option<MaskWith>; 5],
    anchors: Option<Anchors>,
}

impl Detectors {
    pub(super) fn new(wanted: &[(Detector, MaskWith)]) -> Self {
        let mut with = [None; 5];
        for (detector, mask) in wanted {
            with[index(*detector)] = Some(*mask);
        }
        let anchored = wanted.iter().any(|(detector, _)| *detector != Detector::Email);
        Self { with, anchors: anchored.then(|| Anchors::new(|detector| with[index(detector)].is_some())) }
    }

    pub(super) fn any(&self) -> bool {
        self.with.iter().any(Option::is_some)
    }

    /// Finds everything, detector by detector: ranges are neither sorted nor apart.
    pub(super) fn find(&self, text: &[u8], found: &mut SmallVec<[Found; 4]>) {
        let mut add = |detector: Detector, range: Range<usize>| {
            if let Some(with) = self.with[index(detector)] {
                found.push(Found { start: range.start, end: range.end, kind: Kind::Detected(detector), with });
            }
        };
        if self.with[index(Detector::Email)].is_some() {
            emails(text, |range| add(Detector::Email, range));
        }
        if let Some(anchors) = self.anchors.as_ref().filter(|_| text.len() >= SHORTEST) {
            anchors.find(text, add);
        }
    }
}

/// No anchored detector finds anything in less.
const SHORTEST: usize = CARD_MIN;
const TABLE: usize = 1 << 15;
const PAIRS: usize = 1 << 16;

/// The first pass: which three bytes are worth a closer look, and by whom.
struct Anchors {
    /// A byte as it is hashed: all digits are one.
    folded: [u8; 256],
    /// By hash of three bytes: one bit per detector of [`ALL`].
    table: Box<[u8; TABLE]>,
    /// One bit for every two bytes: whether any anchor begins or ends with them. Small enough to stay in the processor's
    /// nearest cache.
    pairs: Box<[u64; PAIRS / 64]>,
}

impl Anchors {
    fn new(on: impl Fn(Detector) -> bool) -> Self {
        let mut folded = [0; 256];
        for (byte, folded) in (0..=u8::MAX).zip(&mut folded) {
            *folded = if byte.is_ascii_digit() { b'0' } else { byte };
        }
        let mut made = Self { folded, table: Box::new([0; TABLE]), pairs: Box::new([0; PAIRS / 64]) };
        if on(Detector::CreditCard) {
            made.set(*b"000", Detector::CreditCard);
        }
        if on(Detector::Iban) {
            // Of two letters and two check digits, the last three.
            for letter in (b'A'..=b'Z').chain(b'a'..=b'z') {
                made.set([letter, b'0', b'0'], Detector::Iban);
            }
        }
        if on(Detector::PrivateKey) {
            made.set(token::KEY_ANCHOR, Detector::PrivateKey);
        }
        if on(Detector::ApiToken) {
            for anchor in token::anchors() {
                made.set(anchor, Detector::ApiToken);
            }
        }
        made
    }

    fn set(&mut self, three: [u8; 3], detector: Detector) {
        let rolling = three.iter().fold(0, |rolling, b| self.roll(rolling, *b));
        let slot = slot(rolling);
        self.table[slot] |= 1 << index(detector);
        let [a, b, c] = three.map(|byte| self.unfolded(byte));
        for (first, second) in [(&a, &b), (&b, &c)] {
            for (first, second) in first.iter().flat_map(|first| second.iter().map(move |second| (*first, *second))) {
                let pair = usize::from(u16::from_le_bytes([first, second]));
                self.pairs[pair / 64] |= 1 << (pair % 64);
            }
        }
    }

    /// The bytes that are hashed alike.
    fn unfolded(&self, byte: u8) -> SmallVec<[u8; 10]> {
        (0..=u8::MAX).filter(|other| self.folded[usize::from(*other)] == self.folded[usize::from(byte)]).collect()
    }

    fn may_be_part(&self, pair: [u8; 2]) -> bool {
        let pair = usize::from(u16::from_le_bytes(pair));
        self.pairs[pair / 64] >> (pair % 64) & 1 != 0
    }

    fn roll(&self, rolling: u32, byte: u8) -> u32 {
        rolling << 8 | u32::from(self.folded[usize::from(byte)])
    }

    fn find(&self, text: &[u8], mut found: impl FnMut(Detector, Range<usize>)) {
        // Where each detector goes on.
        let mut next = [0; 5];
        for (pair, start) in text.as_chunks::<2>().0.iter().zip((0..).step_by(2)) {
            if self.may_be_part(*pair) {
                // The anchor's first two bytes, or its last two.
                for last in [start + 1, start + 2] {
                    self.look(text, last, &mut next, &mut found);
                }
            }
        }
    }

    /// Looks closer at the three bytes that end at `at`.
    fn look(&self, text: &[u8], at: usize, next: &mut [usize; 5], found: &mut impl FnMut(Detector, Range<usize>)) {
        let Some(three) = at.checked_sub(2).and_then(|start| text.get(start..=at)) else { return };
        let rolling = three.iter().fold(0, |rolling, b| self.roll(rolling, *b));
        let mut left = self.table[slot(rolling)];
        while left != 0 {
            let detector = ALL[left.trailing_zeros() as usize];
            left &= left - 1;
            // Hashes collide, so every check starts over from the text.
            let range = match detector {
                Detector::CreditCard => card(text, at - 2),
                Detector::Iban => at.checked_sub(3).and_then(|start| iban(text, start)),
                Detector::PrivateKey => token::key(text, at),
                Detector::ApiToken => token::token(text, at - 2),
                Detector::Email => None,
            };
            // Of two cards that overlap, either may be the real one, and the last digits of the first stay in part of it.
            let from = if detector == Detector::CreditCard { 0 } else { next[index(detector)] };
            if let Some(range) = range.filter(|range| range.start >= from) {
                next[index(detector)] = range.end;
                found(detector, range);
            }
        }
    }
}

/// 15 bits of the last three bytes.
fn slot(rolling: u32) -> usize {
    ((rolling << 8).wrapping_mul(0x9E37_79B1) >> 17) as usize
}

fn alphanumeric_at(text: &[u8], at: Option<usize>) -> bool {
    at.and_then(|at| text.get(at)).is_some_and(u8::is_ascii_alphanumeric)
}

// --- Payment cards ---

const CARD_MIN: usize = 13;
const CARD_MAX: usize = 19;
/// How cards are printed, besides without separators.
const GROUPINGS: [&[usize]; 5] = [&[4, 4, 4, 4], &[4, 4, 4, 4, 3], &[4, 6, 5], &[4, 6, 4], &[4, 4, 4, 1]];

/// Whether all of it is one card number, with or without separators.
pub(super) fn is_card(value: &[u8]) -> bool {
    value.first().is_some_and(u8::is_ascii_digit) && card_at(value, 0) == Some(value.len())
}

/// A card whose first run of digits begins at `start`.
#[inline]
fn card(text: &[u8], start: usize) -> Option<Range<usize>> {
    let before = start.checked_sub(1).map(|at| text[at]);
    // Most are short numbers, or in the middle of one.
    if before.is_some_and(|b| b.is_ascii_digit()) || !text.get(start + 3).is_some_and(u8::is_ascii_digit) {
        return None;
    }
    let decimals = before == Some(b'.') && start >= 2 && text[start - 2].is_ascii_digit();
    if decimals || before.is_some_and(|b| b.is_ascii_alphanumeric()) {
        return None;
    }
    card_at(text, start).map(|end| start..end)
}

/// The end of a card number that starts at `start`, where a run of digits begins.
fn card_at(text: &[u8], start: usize) -> Option<usize> {
    let run = |from: usize| text[from..].iter().take(CARD_MAX + 1).take_while(|b| b.is_ascii_digit()).count();
    let first = run(start);
    if (CARD_MIN..=CARD_MAX).contains(&first) {
        let end = start + first;
        return (!alphanumeric_at(text, Some(end)) && is_card_number(&text[start..end])).then_some(end);
    }
    if first != 4 {
        return None;
    }
    let separator = *text.get(start + 4).filter(|b| matches!(b, b' ' | b'-'))?;
    let mut groups: SmallVec<[usize; 5]> = smallvec::smallvec![4];
    let mut end = start + 4;
    let mut best = None;
    while groups.len() < 5 && text.get(end) == Some(&separator) {
        let group = run(end + 1);
        end += 1 + group;
        groups.push(group);
        if GROUPINGS.contains(&&groups[..]) && !alphanumeric_at(text, Some(end)) && is_card_number(&text[start..end]) {
            best = Some(end);
        }
    }
    best
}

/// Length and leading digits of an issuer, and the Luhn digit. Bytes that are no digits are skipped.
fn is_card_number(text: &[u8]) -> bool {
    let mut digits: SmallVec<[u8; 20]> = SmallVec::new();
    digits.extend(text.iter().filter(|b| b.is_ascii_digit()).take(CARD_MAX + 1).map(|b| b - b'0'));
    let count = digits.len();
    if count < CARD_MIN {
        return false;
    }
    let head = digits[..4].iter().fold(0_u16, |n, d| n * 10 + u16::from(*d));
    let issued = match head {
        4000..=4999 => matches!(count, 13 | 16 | 19),
        3400..=3499 | 3700..=3799 => count == 15,
        5100..=5599 | 2221..=2720 | 8100..=8299 => count == 16,
        3000..=3059 | 3095 | 3600..=3699 | 3800..=3999 => (14..=19).contains(&count),
        2200..=2204 | 3528..=3589 | 6000..=6099 | 6200..=6299 | 6400..=6599 => (16..=19).contains(&count),
        5000..=5099 | 5600..=5899 | 6300..=6399 | 6700..=6799 => true,
        _ => false,
    };
    issued && luhn(&digits)
}

fn luhn(digits: &[u8]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(i, d)| {
            let doubled = u32::from(*d) << (i % 2);
            doubled / 10 + doubled % 10
        })
        .sum();
    sum.is_multiple_of(10)
}

// --- IBANs (ISO 13616) ---

const IBAN_MIN: usize = 15;
const IBAN_MAX: usize = 34;

fn iban(text: &[u8], start: usize) -> Option<Range<usize>> {
    let [a, b, c, d] = *text[start..].first_chunk()?;
    let head = a.is_ascii_alphabetic() && b.is_ascii_alphabetic() && c.is_ascii_digit() && d.is_ascii_digit();
    if !head || alphanumeric_at(text, start.checked_sub(1)) {
        return None;
    }
    iban_at(text, start).map(|end| start..end)
}

/// The end of the longest IBAN that starts at `start`: plain, or with single spaces or dashes between groups.
fn iban_at(text: &[u8], start: usize) -> Option<usize> {
    let mut plain: SmallVec<[u8; 36]> = SmallVec::new();
    let mut best = None;
    let mut at = start;
    let mut separator = None;
    while plain.len() < IBAN_MAX {
        match text.get(at) {
            Some(b) if b.is_ascii_alphanumeric() => {
                plain.push(b.to_ascii_uppercase());
                at += 1;
                if plain.len() >= IBAN_MIN && !alphanumeric_at(text, Some(at)) && is_iban(&plain) {
                    best = Some(at);
                }
            }
            Some(b @ (b' ' | b'-')) if alphanumeric_at(text, Some(at + 1)) && *separator.get_or_insert(*b) == *b => {
                at += 1;
            }
            _ => break,
        }
    }
    best
}

fn is_iban(plain: &[u8]) -> bool {
    std::str::from_utf8(plain).is_ok_and(|text| text.parse::<iban::Iban>().is_ok())
}

// --- E-mail addresses ---

const LOCAL_MAX: usize = 64;
const DOMAIN_MAX: usize = 255;

/// Where the `@` is, if all of it is one address.
pub(super) fn whole_email(value: &[u8]) -> Option<usize> {
    let at = memchr::memchr(b'@', value)?;
    let (start, end) = email_around(value, at)?;
    (start == 0 && end == value.len()).then_some(at)
}

fn emails(text: &[u8], mut found: impl FnMut(Range<usize>)) {
    for at in memchr_iter(b'@', text) {
        if let Some((start, end)) = email_around(text, at) {
            found(start..end);
        }
    }
}

/// Bytes of UTF-8 sequences count as letters (RFC 6531).
fn email_around(text: &[u8], at: usize) -> Option<(usize, usize)> {
    let local = |b: &u8| b.is_ascii_alphanumeric() || *b >= 0x80 || b"._%+-'!#$&*/=?^`{|}~".contains(b);
    let window = &text[at.saturating_sub(LOCAL_MAX)..at];
    let mut start = at - window.iter().rev().take_while(|b| local(b)).count();
    // What quotes or lists addresses is not part of them.
    while start < at && !(text[start].is_ascii_alphanumeric() || text[start] >= 0x80 || text[start] == b'_') {
        start += 1;
    }
    if start == at {
        return None;
    }
    let rest = &text[at + 1..];
    let domain = |b: &u8| b.is_ascii_alphanumeric() || *b >= 0x80 || matches!(b, b'.' | b'-');
    let run = rest.iter().take(DOMAIN_MAX).take_while(|b| domain(b)).count();
    // What follows a name after a dot (a sentence, a file's ending) may look like a label: the longest name that ends
    // in a top-level domain counts.
    let mut end = 0;
    let mut best = None;
    for (i, label) in rest[..run].split(|b| *b == b'.').enumerate() {
        let label_end = label.iter().rposition(|b| *b != b'-').map_or(0, |last| last + 1);
        if label_end == 0 || label.len() > 63 || label[0] == b'-' {
            break;
        }
        if i > 0 && is_top_level(&label[..label_end]) {
            best = Some(end + label_end);
        }
        if label_end < label.len() {
            break;
        }
        end += label.len() + 1;
    }
    Some((start, at + 1 + best?))
}

fn is_top_level(label: &[u8]) -> bool {
    label.len() >= 2 && (label.starts_with(b"xn--") || label.iter().all(|b| b.is_ascii_alphabetic() || *b >= 0x80))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Pairs pass over nothing at which a look at every three bytes finds something.
        #[test]
        fn pairs_find_what_every_place_does(
            pieces in prop::collection::vec(
                prop_oneof![
                    "[ -~]{0,5}", "[0-9]{1,5}", Just("4111 1111 1111 1111".to_owned()), Just("4012888888881881".to_owned()),
                    Just("DE89370400440532013000".to_owned()), Just("-----BEGIN RSA PRIVATE KEY-----".to_owned()),
                    Just("AKIAIOSFODNN7EXAMPLE".to_owned()), Just(format!("ghp_{}", "a1B2".repeat(9))),
                    Just("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln".to_owned()), Just(" ".to_owned()),
                ],
                0..8,
            ),
        ) {
            let text = pieces.concat();
            let anchors = Anchors::new(|_| true);
            let (mut by_pairs, mut everywhere) = (Vec::new(), Vec::new());
            anchors.find(text.as_bytes(), |detector, range| by_pairs.push((detector, range)));
            let mut next = [0; 5];
            for at in 0..text.len() {
                anchors.look(text.as_bytes(), at, &mut next, &mut |detector, range| everywhere.push((detector, range)));
            }
            prop_assert_eq!(by_pairs, everywhere);
        }
    }
}
