//! What is masked in one body, by the type that it is said to have.
//!
//! JSON is masked value by value, server-sent events one by one as they come, other text as a stream that holds some KiB
//! back. Of what is neither (images, archives) only known secrets are masked: what looks like an address there is chance.
//! Failure mode: what cannot be looked into does not come through.

use std::{borrow::Cow, sync::Arc};

use super::{coding::CodingError, lens::MaskPieces};
use crate::{
    action::Unresolved,
    mask::{Hits, JsonError, JsonMasker, KnownSecrets, MaskSet, REDACTED, StreamScrubber},
    wire::OverBudget,
};

/// Longest message of gRPC, in bytes: what its libraries take by default.
const MESSAGE_MAX: usize = 4 << 20;
/// Longest event of a stream of server-sent events, in bytes. Models send images in one.
pub const EVENT_MAX: usize = 16 << 20;

/// Masks one body.
pub enum Masker {
    /// Nothing is to be masked: pieces pass by reference count.
    Pass,
    /// By place, and by what is found in each value.
    Json(Box<JsonMasker>),
    /// By what is found.
    Text(Box<StreamScrubber>),
    /// Event by event.
    Events { masks: Arc<MaskSet>, secrets: Arc<KnownSecrets>, event: Vec<u8>, hits: Hits },
    /// Message by message of gRPC, each as soon as it is whole ("PROTOCOL-HTTP2", Length-Prefixed-Message).
    Messages { masks: Arc<MaskSet>, secrets: Arc<KnownSecrets>, message: Vec<u8>, hits: Hits },
    /// A fixed text takes the place of all of it.
    Hidden { hits: Hits },
    /// As a protocol within HTTP says.
    Other(Box<dyn MaskPieces>),
}

/// Why a body does not come through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MaskError {
    /// Places in it are masked, and it is not JSON.
    #[error("the policy masks places in JSON, and this body is said not to be JSON")]
    NotJson,
    /// It is not what it is said to be.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// An event has no end.
    #[error("a server-sent event is too long to be looked into")]
    LongEvent,
    /// A message of gRPC that is too long, encoded, or cut off.
    #[error("a message of gRPC cannot be looked into")]
    Message,
    /// It cannot be decoded.
    #[error(transparent)]
    Coding(#[from] CodingError),
    /// An event or a message is longer than there is memory for.
    #[error(transparent)]
    Memory(#[from] OverBudget),
}

impl Masker {
    /// For a body of a type.
    ///
    /// # Errors
    /// It must not come through.
    pub fn new(masks: &Arc<MaskSet>, secrets: &Arc<KnownSecrets>, content_type: &str) -> Result<Self, MaskError> {
        if masks.is_empty() && secrets.is_empty() {
            return Ok(Self::Pass);
        }
        let (masks, secrets) = (Arc::clone(masks), Arc::clone(secrets));
        let kind = content_type.split(';').next().unwrap_or_default().trim();
        let upper = kind.bytes().any(|byte| byte.is_ascii_uppercase());
        let kind = if upper { Cow::Owned(kind.to_ascii_lowercase()) } else { Cow::Borrowed(kind) };
        let json = matches!(&*kind, "application/json" | "text/json" | "application/x-ndjson" | "application/jsonl")
            || kind.ends_with("+json");
        if kind == "text/event-stream" {
            return Ok(Self::Events { masks, secrets, event: Vec::new(), hits: Hits::default() });
        }
        if json && (masks.has_places() || masks.has_detectors()) {
            return Ok(Self::Json(Box::new(JsonMasker::new(masks, secrets))));
        }
        if kind == "application/grpc" || kind.starts_with("application/grpc+") {
            return Ok(Self::Messages { masks, secrets, message: Vec::new(), hits: Hits::default() });
        }
        if masks.has_places() {
            return match masks.unresolved() {
                Unresolved::Deny => Err(MaskError::NotJson),
                Unresolved::Mask => {
                    let mut hits = Hits::default();
                    hits.add(&Arc::from("json:unresolved"));
                    Ok(Self::Hidden { hits })
                }
            };
        }
        let masks = if json || is_text(&kind) { masks } else { Arc::new(MaskSet::none()) };
        Ok(Self::Text(Box::new(StreamScrubber::new(masks, secrets))))
    }

    /// Whether this is all of a body that would come out as it is; `false` says nothing. Only before the first piece.
    pub fn passes(&self, whole: &[u8]) -> bool {
        match self {
            Self::Pass => true,
            Self::Json(masker) => masker.passes(whole),
            Self::Text(scrubber) => scrubber.passes(whole),
            Self::Events { .. } | Self::Messages { .. } | Self::Hidden { .. } | Self::Other(_) => false,
        }
    }

    /// Takes the next piece and appends to `out` what can be sent by now. Not for [`Masker::Pass`].
    ///
    /// # Errors
    /// It cannot be looked into.
    pub fn push(&mut self, piece: &[u8], out: &mut Vec<u8>) -> Result<(), MaskError> {
        match self {
            Self::Pass => out.extend_from_slice(piece),
            Self::Json(masker) => masker.push(piece, out)?,
            Self::Text(scrubber) => scrubber.push(piece, out),
            Self::Hidden { .. } => {}
            Self::Other(masker) => masker.push(piece, out)?,
            Self::Events { masks, secrets, event, hits } => {
                for byte in piece {
                    event.push(*byte);
                    if is_whole_event(event) {
                        mask_event(masks, secrets, event, hits, out)?;
                        event.clear();
                    }
                }
                if event.len() > EVENT_MAX {
                    return Err(MaskError::LongEvent);
                }
            }
            Self::Messages { masks, secrets, message, hits } => {
                message.extend_from_slice(piece);
                while let Some(length) = message_length(message)? {
                    masks.blot_message(&mut message[PREFIX..length], secrets, hits);
                    out.extend(message.drain(..length));
                }
            }
        }
        Ok(())
    }

    /// Bytes that wait for the end of an event or a message.
    pub fn held(&self) -> usize {
        match self {
            Self::Events { event, .. } => event.len(),
            Self::Messages { message, .. } => message.len(),
            Self::Other(masker) => masker.held(),
            // Bounded by some KiB.
            Self::Pass | Self::Json(_) | Self::Text(_) | Self::Hidden { .. } => 0,
        }
    }

    /// Ends the body.
    ///
    /// # Errors
    /// It ends where it must not.
    pub fn finish(self, out: &mut Vec<u8>) -> Result<Hits, MaskError> {
        match self {
            Self::Pass => Ok(Hits::default()),
            Self::Json(masker) => Ok(masker.finish(out)?),
            Self::Text(scrubber) => Ok(scrubber.finish(out)),
            Self::Other(masker) => masker.finish(out),
            Self::Hidden { hits } => {
                out.extend_from_slice(REDACTED.as_bytes());
                Ok(hits)
            }
            Self::Messages { message, hits, .. } => {
                if message.is_empty() {
                    Ok(hits)
                } else {
                    Err(MaskError::Message)
                }
            }
            Self::Events { masks, secrets, event, mut hits } => {
                mask_event(&masks, &secrets, &event, &mut hits, out)?;
                Ok(hits)
            }
        }
    }
}

/// A flag and a length.
const PREFIX: usize = 5;

/// Length of the first message with its prefix, once all of it is there.
fn message_length(bytes: &[u8]) -> Result<Option<usize>, MaskError> {
    let Some(prefix) = bytes.first_chunk::<PREFIX>() else { return Ok(None) };
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
    if prefix[0] != 0 || length > MESSAGE_MAX {
        return Err(MaskError::Message);
    }
    Ok(Some(PREFIX + length).filter(|whole| bytes.len() >= *whole))
}

/// Whether these are all of an event of a stream of server-sent events: it ends with an empty line, whatever ends its lines.
pub fn is_whole_event(event: &[u8]) -> bool {
    event.ends_with(b"\n\n") || event.ends_with(b"\r\r") || event.ends_with(b"\r\n\r\n")
}

/// One event, line by line: data that is JSON by its places, everything by what is found in it.
pub fn mask_event(
    masks: &Arc<MaskSet>,
    secrets: &Arc<KnownSecrets>,
    event: &[u8],
    hits: &mut Hits,
    out: &mut Vec<u8>,
) -> Result<(), MaskError> {
    for line in event.split_inclusive(|b| *b == b'\n') {
        let data = line.strip_prefix(b"data:");
        let json = data.filter(|_| masks.has_places() || masks.has_detectors());
        match json.map(|data| mask_data(masks, secrets, data)) {
            Some(Ok((data, found))) => {
                out.extend_from_slice(b"data:");
                out.extend_from_slice(&data);
                hits.merge(&found);
            }
            // What has no object in it has no places: some streams end with a word of their own.
            Some(Err(error)) if masks.has_places() && line.contains(&b'{') => return Err(error.into()),
            Some(Err(_)) | None => {
                let masked = masks.scrub(line, secrets, hits);
                out.extend_from_slice(&masked.or_text(line));
            }
        }
    }
    Ok(())
}

fn mask_data(masks: &Arc<MaskSet>, secrets: &Arc<KnownSecrets>, data: &[u8]) -> Result<(Vec<u8>, Hits), JsonError> {
    let mut masker = JsonMasker::new(Arc::clone(masks), Arc::clone(secrets));
    let mut out = Vec::with_capacity(data.len());
    masker.push(data, &mut out)?;
    let hits = masker.finish(&mut out)?;
    Ok((out, hits))
}

/// Whether people or programs read it as text. What does not say what it is may be.
fn is_text(kind: &str) -> bool {
    const TEXTS: &[&str] = &[
        "",
        "application/javascript",
        "application/graphql",
        "application/graphql-response",
        "application/sql",
        "application/toml",
        "application/x-www-form-urlencoded",
        "application/x-yaml",
        "application/xml",
        "application/yaml",
    ];
    let family = ["text/", "multipart/", "message/"].iter().any(|family| kind.starts_with(family));
    family || kind.ends_with("+xml") || kind.ends_with("+yaml") || TEXTS.contains(&kind)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn masker() -> Masker {
        let secrets = Arc::new(KnownSecrets::new([&b"correct-horse-battery"[..]]));
        Masker::new(&Arc::new(MaskSet::none()), &secrets, "application/grpc+proto").unwrap()
    }

    #[test]
    fn messages_of_grpc_come_one_by_one_and_masked() {
        let message = |text: &[u8]| [&[0][..], &u32::try_from(text.len()).unwrap().to_be_bytes(), text].concat();
        let all = [message(b""), message(b"one correct-horse-battery"), message(b"two")].concat();
        let want = [message(b""), message(b"one *********************"), message(b"two")].concat();
        for at in 0..=all.len() {
            let (mut masker, mut out) = (masker(), Vec::new());
            masker.push(&all[..at], &mut out).unwrap();
            assert!(at < 5 || out.starts_with(&want[..5]), "what is whole does not wait");
            masker.push(&all[at..], &mut out).unwrap();
            assert_eq!(masker.finish(&mut out).map(|hits| hits.count), Ok(1));
            assert_eq!(out, want, "cut at {at}");
        }
        let mut masker = masker();
        masker.push(&all[..7], &mut Vec::new()).unwrap();
        assert_eq!(masker.finish(&mut Vec::new()).map(drop), Err(MaskError::Message), "cut off");
        for wrong in [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0x80, 0, 0, 0, 1]] {
            assert_eq!(self::masker().push(&wrong, &mut Vec::new()), Err(MaskError::Message));
        }
    }

    /// What waits is told, whatever it waits for: it is charged for by that.
    #[test]
    fn what_waits_for_its_end_is_counted() {
        let masks = Arc::new(MaskSet::none());
        let secrets = Arc::new(KnownSecrets::new([&b"correct-horse-battery"[..]]));
        let of = |kind| Masker::new(&masks, &secrets, kind).unwrap();
        let mut out = Vec::new();
        for (kind, cut, rest) in [
            ("text/event-stream", &b"data: 1\n\ndata: {\"a"[..], &b"\": 1}\n\n"[..]),
            ("application/grpc", b"\0\0\0\0\x01a\0\0\0\0\x05bcd", b"ef"),
        ] {
            let mut masker = of(kind);
            masker.push(cut, &mut out).unwrap();
            assert_eq!(masker.held(), cut.len() - if kind == "application/grpc" { 6 } else { 9 }, "{kind}");
            masker.push(rest, &mut out).unwrap();
            assert_eq!(masker.held(), 0, "{kind}");
        }
        let mut text = of("text/plain");
        text.push(&[b'x'; 1 << 20], &mut out).unwrap();
        assert_eq!(text.held(), 0);
    }
}
