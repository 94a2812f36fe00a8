//! What is masked in one message. It has no type of its own: what is JSON is masked as JSON, the rest as text.

use std::sync::Arc;

use super::frames::Kind;
use crate::{
    mask::{Hits, JsonError, JsonMasker, KnownSecrets, MaskSet, StreamScrubber},
    protocol::http::masker::{MaskError, Masker},
};

/// A message toward the workload.
///
/// # Errors
/// It cannot be looked into.
pub fn response(
    kind: Kind,
    content: Vec<u8>,
    masks: &Arc<MaskSet>,
    secrets: &Arc<KnownSecrets>,
) -> Result<(Vec<u8>, Hits), MaskError> {
    if masks.is_empty() && secrets.is_empty() {
        return Ok((content, Hits::default()));
    }
    match kind {
        Kind::Text => text(&content, masks, secrets),
        // As a body of a type that is not known.
        Kind::Binary => typed("application/octet-stream", &content, masks, secrets),
    }
}

/// A message of the workload: whatever it is said to be, as bodies of requests are.
///
/// # Errors
/// It cannot be looked into.
pub fn request(
    content: Vec<u8>,
    masks: &Arc<MaskSet>,
    secrets: &Arc<KnownSecrets>,
) -> Result<(Vec<u8>, Hits), MaskError> {
    if masks.is_empty() {
        return Ok((content, Hits::default()));
    }
    let (content, hits) = text(&content, masks, secrets)?;
    Ok((content, hits.of_request()))
}

fn text(content: &[u8], masks: &Arc<MaskSet>, secrets: &Arc<KnownSecrets>) -> Result<(Vec<u8>, Hits), MaskError> {
    if masks.has_places() || masks.has_detectors() {
        match json(content, masks, secrets) {
            Ok(masked) => return Ok(masked),
            // Anything long is too long for a word of JSON; an object or a list is one.
            Err(error @ JsonError::TooComplex) if matches!(content.trim_ascii_start(), [b'{' | b'[', ..]) => {
                return Err(error.into());
            }
            // What has no object or list in it has no places: some protocols send a word of their own.
            Err(_) if masks.has_places() && content.iter().any(|b| matches!(b, b'{' | b'[')) => {
                return typed("text/plain", content, masks, secrets);
            }
            Err(_) => {}
        }
    }
    let mut out = Vec::with_capacity(content.len());
    let mut scrubber = StreamScrubber::new(Arc::clone(masks), Arc::clone(secrets));
    scrubber.push(content, &mut out);
    let hits = scrubber.finish(&mut out);
    Ok((out, hits))
}

fn json(content: &[u8], masks: &Arc<MaskSet>, secrets: &Arc<KnownSecrets>) -> Result<(Vec<u8>, Hits), JsonError> {
    let mut masker = JsonMasker::new(Arc::clone(masks), Arc::clone(secrets));
    let mut out = Vec::with_capacity(content.len());
    masker.push(content, &mut out)?;
    let hits = masker.finish(&mut out)?;
    Ok((out, hits))
}

fn typed(
    kind: &str,
    content: &[u8],
    masks: &Arc<MaskSet>,
    secrets: &Arc<KnownSecrets>,
) -> Result<(Vec<u8>, Hits), MaskError> {
    let mut masker = Masker::new(masks, secrets, kind)?;
    let mut out = Vec::with_capacity(content.len());
    masker.push(content, &mut out)?;
    let hits = masker.finish(&mut out)?;
    Ok((out, hits))
}
