//! Detectors: sensitive values found by their looks.
//!
//! Each detector has a cheap anchor that clean text rarely has (an `@`, four digits in a row, a known prefix) and a
//! check by hand around it, so that clean text costs a few table look-ups per byte and no detector can backtrack. Every
//! check looks at a bounded stretch ([`DECIDES`]), which is what lets a text be scrubbed piece by piece.

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
    anchors: Option<token::Anchors>,
}

impl Detectors {
    pub(super) fn new(wanted: &[(Detector, MaskWith)]) -> Self {
        let mut with = [None; 5];
        for (detector, mask) in wanted {
            with[index(*detector)] = Some(*mask);
        }
        let on = |detector| with[index(detector)].is_some();
        let anchors = token::Anchors::new(on(Detector::ApiToken), on(Detector::PrivateKey));
        Self { with, anchors }
    }

    pub(super) fn any(&self) -> bool {
        self.with.iter().any(Option::is_some)
    }

    /// Finds everything, detector by detector: ranges are neither sorted nor apart.
    pub(super) fn find(&self, text: &[u8], found: &mut SmallVec<[Found; 4]>) {
        let mut run = |detector: Detector, find: fn(&[u8], &mut dyn FnMut(usize, usize))| {
            if let Some(with) = self.with[index(detector)] {
                let kind = Kind::Detected(detector);
                find(text, &mut |start, end| found.push(Found { start, end, kind, with }));
            }
        };
        run(Detector::CreditCard, cards);
        run(Detector::Iban, ibans);
        run(Detector::Email, emails);
        if let Some(anchors) = &self.anchors {
            anchors.find(text, |detector, start, end| {
                if let Some(with) = self.with[index(detector)] {
                    found.push(Found { start, end, kind: Kind::Detected(detector), with });
                }
            });
        }
    }
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

/// Any card starts with four digits in a row, so looking at each fourth byte misses none.
fn cards(text: &[u8], found: &mut dyn FnMut(usize, usize)) {
    if text.len() < CARD_MIN {
        return;
    }
    let mut probe = 3;
    while probe < text.len() {
        if !text[probe].is_ascii_digit() {
            probe += 4;
            continue;
        }
        let start = text[..probe].iter().rposition(|b| !b.is_ascii_digit()).map_or(0, |at| at + 1);
        let run = text[start..].iter().take_while(|b| b.is_ascii_digit()).count();
        let decimals = start >= 2 && text[start - 1] == b'.' && text[start - 2].is_ascii_digit();
        let mut next = start + run;
        if !alphanumeric_at(text, start.checked_sub(1))
            && !decimals
            && let Some(end) = card_at(text, start)
        {
            found(start, end);
            next = end;
        }
        // The byte at `next` is no digit. A run that begins after it has its fourth digit at next + 4 at the earliest.
        probe = next + 4;
    }
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

/// An IBAN has two digits in a row at its third place, so looking at each second byte misses none.
fn ibans(text: &[u8], found: &mut dyn FnMut(usize, usize)) {
    if text.len() < IBAN_MIN {
        return;
    }
    let mut probe = 2;
    while probe + 1 < text.len() {
        if !text[probe].is_ascii_digit() {
            probe += 2;
            continue;
        }
        let mut next = probe + 2;
        for check in [probe - 1, probe] {
            let Some(start) = check.checked_sub(2) else { continue };
            let country = text[start].is_ascii_alphabetic() && text[start + 1].is_ascii_alphabetic();
            let digits = text[check].is_ascii_digit() && text[check + 1].is_ascii_digit();
            if country
                && digits
                && !alphanumeric_at(text, start.checked_sub(1))
                && let Some(end) = iban_at(text, start)
            {
                found(start, end);
                next = end + 2;
                break;
            }
        }
        probe = next;
    }
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

fn emails(text: &[u8], found: &mut dyn FnMut(usize, usize)) {
    for at in memchr_iter(b'@', text) {
        if let Some((start, end)) = email_around(text, at) {
            found(start, end);
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
