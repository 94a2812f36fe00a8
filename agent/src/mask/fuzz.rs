//! What a fuzzer runs: what the doc of masks promises for any text.

use std::sync::Arc;

use super::{
    Hits, JsonError, JsonMasker, KnownSecrets, MaskSet, Masked, REDACTED, StreamScrubber, token::PEM_LINE_MAX,
};
use crate::action::{Detector, MaskSpec, MaskWith};

const ALL: [Detector; 5] =
    [Detector::CreditCard, Detector::Iban, Detector::Email, Detector::PrivateKey, Detector::ApiToken];
const SECRETS: [&[u8]; 3] = [b"correct-horse-battery", b"p\xc3\xa4ss \"w\\rd\"/'1'\n", b"xyzzy"];
/// What is found by its looks, where blanks stand around it.
const PLANTED: [&str; 8] = [
    "4111111111111111",
    "5500-0000-0000-0004",
    "3782 822463 10005",
    "DE89370400440532013000",
    "GB82 WEST 1234 5698 7654 32",
    "someone.else@example.com",
    "ghp_012345678901234567890123456789abcdef",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\n-----END RSA PRIVATE KEY-----",
];

/// Scrubs text that has these bytes and a secret in it. The first two bytes choose how the rest is masked and cut.
///
/// No secret comes through, wherever it stands; what was scrubbed is clean; and text that comes in pieces is scrubbed as
/// the whole is.
pub fn scrub(data: &[u8]) {
    let (choice, text) = data
        .split_at_checked(2)
        .map_or((0, data), |(head, text)| (usize::from(u16::from_be_bytes([head[0], head[1]])), text));
    let with = [MaskWith::Redact, MaskWith::Null, MaskWith::Hash, MaskWith::Partial][choice % 4];
    let masks = Arc::new(masks(&ALL, with));
    let secrets = Arc::new(KnownSecrets::new(SECRETS));
    let at = choice / 4 % (text.len() + 1);

    scrubbed(&masks, &secrets, with, text);
    in_pieces(&masks, &secrets, text, choice % 61 + 1);
    for secret in SECRETS {
        for form in forms(secret) {
            let joined = [&text[..at], &form, &text[at..]].concat();
            let out = scrubbed(&masks, &secrets, with, &joined);
            assert!(!contains(&out, &form), "a known secret came through as {:?}", show(&form));
        }
    }
    for (i, planted) in PLANTED.iter().enumerate() {
        // By chance it stands there already, in the middle of something longer that is none.
        if contains(text, planted.as_bytes()) {
            continue;
        }
        let joined = [&text[..at], b" ", planted.as_bytes(), b" ", &text[at..]].concat();
        let out = scrubbed(&masks, &secrets, with, &joined);
        assert!(!contains(&out, planted.as_bytes()), "{planted} came through in {:?}", show(&out));
        if choice % PLANTED.len() == i {
            in_pieces(&masks, &secrets, &joined, choice % 61 + 1);
        }
    }
}

/// Masks a JSON text. The first byte chooses how it is cut, and whether places are masked.
///
/// However it is cut, the same comes of it. What another reader takes for JSON is taken for it here, and stays JSON; where
/// nothing is masked it stays the same to the byte; and no secret comes through a string, however it is escaped.
pub fn json(data: &[u8]) {
    let (choice, text) = data.split_first().map_or((0, data), |(first, text)| (usize::from(*first), text));
    let places = if choice % 2 == 0 { Vec::new() } else { vec!["a".to_owned(), "b/*/c".to_owned()] };
    let spec = MaskSpec { json: places, detect: ALL.to_vec(), ..MaskSpec::new(MaskWith::Redact) };
    let masks = Arc::new(MaskSet::compile(&[spec], [7; 32]).unwrap_or_else(|_| MaskSet::none()));
    let secrets = Arc::new(KnownSecrets::new(SECRETS));
    let run = |text: &[u8], piece: usize| {
        let (mut masker, mut out) = (JsonMasker::new(Arc::clone(&masks), Arc::clone(&secrets)), Vec::new());
        for piece in text.chunks(piece) {
            masker.push(piece, &mut out)?;
        }
        let hits = masker.finish(&mut out)?;
        Ok::<_, JsonError>((out, hits))
    };
    let whole = run(text, text.len().max(1));
    assert_eq!(run(text, choice / 2 % 23 + 1), whole, "a cut changes nothing");
    if JsonMasker::new(Arc::clone(&masks), Arc::clone(&secrets)).passes(text) {
        // A number that is too long for the memory it may have is no such thing where it stays where it is.
        let same = whole == Ok((text.to_vec(), Hits::default())) || whole == Err(JsonError::TooComplex);
        assert!(same, "at a glance it was clean: {:?}", show(text));
    }
    let read = |text: &[u8]| {
        let values = serde_json::Deserializer::from_slice(text).into_iter::<serde_json::Value>();
        values.collect::<Result<Vec<_>, _>>().is_ok()
    };
    match &whole {
        Ok((out, hits)) => {
            assert!(hits.count > 0 || out == text, "what is not masked stays: {:?}", show(out));
            assert!(!read(text) || read(out), "{:?} is no JSON any more", show(out));
        }
        Err(error) => {
            let known = *error == JsonError::TooComplex;
            // Values that follow one another without anything between them are read by some.
            let glued = serde_json::from_slice::<serde_json::Value>(text).is_err();
            assert!(known || glued, "another reader takes it: {:?}", show(text));
        }
    }
    if std::str::from_utf8(text).is_err() || text.len() > 4096 {
        return;
    }
    for secret in SECRETS {
        let secret = String::from_utf8_lossy(secret);
        let escaped: String = secret.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
        let before = serde_json::to_string(&String::from_utf8_lossy(text)).unwrap_or_default();
        let joined = format!("{{\"x\":\"{escaped} {}", &before[1..]);
        if let Ok((out, _)) = run(format!("{joined}}}").as_bytes(), choice / 2 % 23 + 1) {
            let value: serde_json::Value = serde_json::from_slice(&out).unwrap_or_default();
            let text = value["x"].as_str().unwrap_or_default();
            assert!(!text.contains(&*secret), "a known secret came through: {text:?}");
        }
    }
}

fn masks(detect: &[Detector], with: MaskWith) -> MaskSet {
    let spec = MaskSpec { detect: detect.to_vec(), ..MaskSpec::new(with) };
    // Without columns there is nothing that could be wrong.
    MaskSet::compile(&[spec], [7; 32]).unwrap_or_else(|_| MaskSet::none())
}

/// What takes the place of a text.
fn scrubbed(masks: &MaskSet, secrets: &KnownSecrets, with: MaskWith, text: &[u8]) -> Vec<u8> {
    let mut hits = Hits::default();
    let masked = masks.scrub(text, secrets, &mut hits);
    assert_eq!(hits.count == 0, masked == Masked::Unchanged, "what changed is counted");
    let out = masked.or_text(text).into_owned();
    let again = masks.scrub(&out, secrets, &mut Hits::default());
    // A hash may by chance look like a card.
    assert!(
        with == MaskWith::Hash
            || again == Masked::Unchanged
            || masked_in_header(&out)
            || made_by_masks(masks, secrets, &out),
        "{:?} still has what is masked: {:?}",
        show(&out),
        show(&again.or_text(&out))
    );

    out
}

/// Whether all that is found in what was scrubbed touches what took a value's place: what was too long for an address, say,
/// is none too long once its end is masked.
fn made_by_masks(masks: &MaskSet, secrets: &KnownSecrets, out: &[u8]) -> bool {
    let mut found = smallvec::SmallVec::new();
    masks.find(out, secrets, &mut found);
    found.iter().all(|found| {
        // A value ends before the punctuation that stands between it and what was masked: five dashes, before a key.
        let near = REDACTED.len() + 5;
        let around = &out[found.start.saturating_sub(near)..out.len().min(found.end + near)];
        contains(around, b"**") || contains(around, REDACTED.as_bytes())
    })
}

/// Whether something was masked in what may be the first line of a key. Such a line is short: with the value it was too
/// long for one, and without it is none too long. What is left is no key, and no value came through.
fn masked_in_header(out: &[u8]) -> bool {
    let lines = memchr::memmem::find_iter(out, b"-----BEGIN").map(|at| &out[at..out.len().min(at + PEM_LINE_MAX)]);
    lines.into_iter().any(|line| contains(line, REDACTED.as_bytes()) || contains(line, b"**"))
}

/// Text that comes in pieces is masked as the whole is. With letters before it, so that some is decided on early.
fn in_pieces(masks: &Arc<MaskSet>, secrets: &Arc<KnownSecrets>, text: &[u8], piece: usize) {
    let mut stream = StreamScrubber::new(masks.clone(), secrets.clone());
    let lead = (stream.held_back() * 3).saturating_sub(piece * 7);
    let long = [&b"filler. ".repeat(lead / 8), text, &b" filler.".repeat(stream.held_back() / 8)].concat();
    let mut hits = Hits::default();
    let masked = masks.scrub(&long, secrets, &mut hits);
    let null = masked == Masked::Null;
    let whole = masked.or_text(&long).into_owned();
    let mut out = Vec::new();
    for piece in long.chunks(piece) {
        stream.push(piece, &mut out);
    }
    assert_eq!(stream.finish(&mut out), hits, "in pieces, as much is masked");
    if null {
        let again = masks.scrub(&out, secrets, &mut Hits::default());
        let clean = again == Masked::Unchanged || masked_in_header(&out) || made_by_masks(masks, secrets, &out);
        assert!(clean, "NULL cannot be said in pieces: {:?}", show(&out));
    } else {
        assert_eq!(show(&out), show(&whole), "in pieces, it is masked as the whole is");
    }
}

/// A secret in the encodings in which a backend may give it back.
fn forms(secret: &[u8]) -> Vec<Vec<u8>> {
    use data_encoding::{BASE64, BASE64URL_NOPAD, HEXLOWER, HEXUPPER};
    vec![
        secret.to_vec(),
        BASE64.encode(secret).into_bytes(),
        BASE64.encode(&[b"x", secret].concat()).into_bytes(),
        BASE64URL_NOPAD.encode(&[b"xy", secret, b"z"].concat()).into_bytes(),
        HEXLOWER.encode(secret).into_bytes(),
        HEXUPPER.encode(secret).into_bytes(),
        serde_json::to_vec(&String::from_utf8_lossy(secret)).unwrap_or_default(),
    ]
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    memchr::memmem::find(text, part).is_some()
}

fn show(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}
