//! Messages of Protocol Buffers, without their schema: texts in them are masked where they stand, by as many asterisks, so
//! that every length in the message stays true.
//!
//! By the wire format ("Encoding", protobuf.dev): what is printable is taken for text, what parses for a message, and of
//! the rest only known secrets are masked. Failure mode: what is no message is searched for known secrets as a whole.

use smallvec::SmallVec;

use super::{Hits, KnownSecrets, MaskSet, detect::Found, merge, secret};

/// Messages within messages, beyond which nothing is taken for one.
const DEPTH: usize = 32;

impl MaskSet {
    /// Masks one message in its place.
    pub fn blot_message(&self, message: &mut [u8], secrets: &KnownSecrets, hits: &mut Hits) {
        if self.has_detectors() {
            self.blot_fields(message, secrets, hits, DEPTH);
        }
        self.blot(message, secrets, hits, false);
    }

    /// Says whether it is a message to its end.
    fn blot_fields(&self, message: &mut [u8], secrets: &KnownSecrets, hits: &mut Hits, depth: usize) -> bool {
        if !parses(message) {
            return false;
        }
        let mut at = 0;
        while let Some((field, next)) = field(message, at) {
            at = next;
            let Some(content) = field.filter(|content| !content.is_empty()) else { continue };
            let content = &mut message[content];
            if is_text(content) {
                self.blot(content, secrets, hits, true);
                continue;
            }
            if depth > 0 {
                self.blot_fields(content, secrets, hits, depth - 1);
            }
            // Here already: beyond its bounds stands a length, which a secret's encoding could go on with.
            self.blot(content, secrets, hits, false);
        }
        true
    }

    fn blot(&self, text: &mut [u8], secrets: &KnownSecrets, hits: &mut Hits, detect: bool) {
        let mut found = SmallVec::<[Found; 4]>::new();
        if detect {
            self.find(text, secrets, &mut found);
        } else {
            secrets.find(text, |range| found.push(secret(range)));
        }
        if found.is_empty() {
            return;
        }
        merge(&mut found);
        for range in &found {
            self.count(range, hits);
            text[range.start..range.end].fill(b'*');
        }
    }
}

fn is_text(bytes: &[u8]) -> bool {
    let control = |c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r');
    std::str::from_utf8(bytes).is_ok_and(|text| !text.contains(control))
}

fn parses(message: &[u8]) -> bool {
    let mut at = 0;
    while let Some((_, next)) = field(message, at) {
        at = next;
    }
    at == message.len()
}

/// The field that begins at `at`: where its content stands, if it is of a length of its own, and where the next begins.
fn field(message: &[u8], at: usize) -> Option<(Option<std::ops::Range<usize>>, usize)> {
    let (tag, at) = varint(message, at)?;
    if tag >> 3 == 0 {
        return None;
    }
    let fixed = |length: usize| at.checked_add(length).filter(|end| *end <= message.len()).map(|end| (None, end));
    match tag & 7 {
        0 => varint(message, at).map(|(_, next)| (None, next)),
        1 => fixed(8),
        5 => fixed(4),
        2 => {
            let (length, from) = varint(message, at)?;
            let end = from.checked_add(usize::try_from(length).ok()?).filter(|end| *end <= message.len())?;
            Some((Some(from..end), end))
        }
        // Groups are of long ago.
        _ => None,
    }
}

fn varint(message: &[u8], at: usize) -> Option<(u64, usize)> {
    let mut value = 0;
    for (n, byte) in message.get(at..)?.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f).checked_shl(u32::try_from(n).ok()? * 7)?;
        if byte & 0x80 == 0 {
            return Some((value, at + n + 1));
        }
    }
    None
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::action::{Detector, MaskSpec, MaskWith};

    fn masked(message: &[u8], secret: &str) -> (Vec<u8>, u64) {
        let spec = MaskSpec { detect: vec![Detector::Email], ..MaskSpec::new(MaskWith::Redact) };
        let (masks, secrets) = (MaskSet::compile(&[spec], [0; 32]).unwrap(), KnownSecrets::new([secret.as_bytes()]));
        let (mut out, mut hits) = (message.to_vec(), Hits::default());
        masks.blot_message(&mut out, &secrets, &mut hits);
        assert_eq!(out.len(), message.len());
        (out, hits.count)
    }

    fn text(number: u8, text: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, u8::try_from(text.len()).unwrap()], text].concat()
    }

    #[test]
    fn texts_are_masked_and_what_stands_around_them_stays() {
        // The next field's tag is a letter, which an address could go on with.
        let message = [text(1, b"bob@example.com"), text(8, b"x"), vec![0x18, 0x96, 0x01]].concat();
        let want = [text(1, b"***************"), text(8, b"x"), vec![0x18, 0x96, 0x01]].concat();
        assert_eq!(masked(&message, "none-of-it"), (want.clone(), 1));
        let outer = [text(2, &message), text(3, &[0, 1, 2])].concat();
        assert_eq!(masked(&outer, "none-of-it"), ([text(2, &want), text(3, &[0, 1, 2])].concat(), 1));
    }

    #[test]
    fn known_secrets_are_found_in_whatever_it_is() {
        let secret = "correct-horse-battery";
        for around in [&b"\x0a"[..], b"", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"\x12\x7f"] {
            let message = [around, secret.as_bytes(), around].concat();
            let (out, count) = masked(&message, secret);
            assert!(count == 1 && !out.windows(5).any(|window| window == b"horse"), "{out:?}");
        }
    }

    #[test]
    fn a_length_before_an_encoded_secret_stays() {
        // 43 is `+`, which belongs to the alphabet of base64.
        let encoded = data_encoding::BASE64.encode(b"correct-horse-battery");
        let content = [encoded.as_bytes(), &[0xff; 15]].concat();
        assert_eq!(content.len(), 43);
        let (out, count) = masked(&text(1, &content), "correct-horse-battery");
        assert_eq!((&out[..2], &out[2..30], &out[30..], count), (&[10, 43][..], &[b'*'; 28][..], &[0xff; 15][..], 1));
    }

    #[test]
    fn what_is_no_message_is_left_alone() {
        for message in [&b""[..], b"bob@example.com", &[0x0a, 0xff], &[0x0a, 5, b'a'], &[3, 4], &[0], &[0x80; 30]] {
            assert_eq!(masked(message, "none-of-it"), (message.to_vec(), 0), "{message:?}");
        }
    }
}
