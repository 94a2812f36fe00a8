//! What takes a value's place, kind by kind.

use super::{HashKey, REDACTED, detect};
use crate::action::MaskWith;

/// A longer text is not worth a star per character: its shape says nothing, its length would.
const SHAPED_CHARS: usize = 64;

/// Appends what takes the place of `value`. For [`MaskWith::Null`], the fixed text: the caller that can say NULL does.
pub(super) fn write(with: MaskWith, value: &[u8], key: &HashKey, out: &mut Vec<u8>) {
    match with {
        MaskWith::Null | MaskWith::Redact => out.extend_from_slice(REDACTED.as_bytes()),
        MaskWith::Hash => hash(value, key, out),
        MaskWith::Partial => partial(value, out),
    }
}

/// The first 64 bits of a keyed BLAKE3, as 16 hexadecimal digits.
fn hash(value: &[u8], key: &HashKey, out: &mut Vec<u8>) {
    let hex = blake3::keyed_hash(&key.0, value).to_hex();
    out.extend_from_slice(&hex.as_bytes()[..16]);
}

fn partial(value: &[u8], out: &mut Vec<u8>) {
    if let Some(at) = detect::whole_email(value) {
        email(value, at, out);
    } else if detect::is_card(value) {
        card(value, out);
    } else {
        shape(value, out);
    }
}

/// `alice@example.com` becomes `a***@e***.com`. The number of stars is fixed, and a part of three characters or
/// fewer is hidden whole.
fn email(value: &[u8], at: usize, out: &mut Vec<u8>) {
    let (local, domain) = (&value[..at], &value[at + 1..]);
    let dot = domain.iter().rposition(|b| *b == b'.').unwrap_or(domain.len());
    initial(local, out);
    out.push(b'@');
    initial(&domain[..dot], out);
    out.extend_from_slice(&domain[dot..]);
}

fn initial(part: &[u8], out: &mut Vec<u8>) {
    if part.len() > 3
        && let Some(first) = part.first().filter(|b| b.is_ascii())
    {
        out.push(*first);
    }
    out.extend_from_slice(b"***");
}

/// The last four digits and the separators stay.
fn card(value: &[u8], out: &mut Vec<u8>) {
    let digits = value.iter().filter(|b| b.is_ascii_digit()).count();
    let mut seen = 0;
    for byte in value {
        if byte.is_ascii_digit() {
            seen += 1;
            out.push(if seen + 4 > digits { *byte } else { b'*' });
        } else {
            out.push(*byte);
        }
    }
}

/// Every character becomes a star, except that separators and up to two characters at each end stay, as long as no
/// more than a quarter of all characters do. Bytes that are not UTF-8 count as characters and never stay.
fn shape(value: &[u8], out: &mut Vec<u8>) {
    // One chunk is at most one valid stretch and one invalid one, so this walk sees each byte once.
    let mut chars: Vec<Option<char>> = Vec::with_capacity(value.len().min(SHAPED_CHARS + 1));
    'chunks: for chunk in value.utf8_chunks() {
        let invalid = chunk.invalid().iter().map(|_| None);
        for c in chunk.valid().chars().map(Some).chain(invalid) {
            if chars.len() > SHAPED_CHARS {
                break 'chunks;
            }
            chars.push(c);
        }
    }
    if chars.len() > SHAPED_CHARS {
        out.extend_from_slice(b"********");
        return;
    }
    let stays = |c: &Option<char>| matches!(c, Some(' ' | '-' | '.' | '/' | '+' | '(' | ')' | ':'));
    let separators = chars.iter().filter(|c| stays(c)).count();
    let budget = chars.len() / 4;
    let keep_separators = separators <= budget;
    let ends = budget.saturating_sub(separators);
    let (first, last) = (ends.div_ceil(2).min(2), (ends / 2).min(2));
    let mut text = String::with_capacity(chars.len());
    for (i, c) in chars.iter().enumerate() {
        let edge = i < first || i >= chars.len() - last;
        match c {
            Some(c) if edge || (keep_separators && stays(&Some(*c))) => text.push(*c),
            _ => text.push('*'),
        }
    }
    out.extend_from_slice(text.as_bytes());
}
