//! Bodies of responses on their way to the client: masked as they stream by, and told to the record when they end.
//!
//! JSON is masked value by value, server-sent events one by one as they come, other text as a stream that holds some KiB
//! back. Of what is neither (images, archives) only known secrets are masked: what looks like an address there is chance.
//! Failure mode: what cannot be looked into does not come through.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::{
    action::Unresolved,
    mask::{Hits, JsonError, JsonMasker, KnownSecrets, MaskSet, REDACTED, StreamScrubber},
    record::{EventBody, MaskedNote},
    session::ConnectionCx,
};

/// Longest event of a stream of server-sent events, in bytes.
const EVENT_MAX: usize = 1 << 20;
/// How much of a body the record keeps.
const SAMPLE: usize = 4 << 10;

/// What a client's library is told when a body cannot go on.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

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
    /// A fixed text takes the place of all of it.
    Hidden { hits: Hits },
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
        let kind = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let json = matches!(&*kind, "application/json" | "text/json" | "application/x-ndjson" | "application/jsonl")
            || kind.ends_with("+json");
        if kind == "text/event-stream" {
            return Ok(Self::Events { masks, secrets, event: Vec::new(), hits: Hits::default() });
        }
        if json && (masks.has_places() || masks.has_detectors()) {
            return Ok(Self::Json(Box::new(JsonMasker::new(masks, secrets))));
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
            Self::Events { masks, secrets, event, hits } => {
                for byte in piece {
                    event.push(*byte);
                    // An event ends with an empty line, whatever ends its lines.
                    if event.ends_with(b"\n\n") || event.ends_with(b"\r\r") || event.ends_with(b"\r\n\r\n") {
                        mask_event(masks, secrets, event, hits, out)?;
                        event.clear();
                    }
                }
                if event.len() > EVENT_MAX {
                    return Err(MaskError::LongEvent);
                }
            }
        }
        Ok(())
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
            Self::Hidden { hits } => {
                out.extend_from_slice(REDACTED.as_bytes());
                Ok(hits)
            }
            Self::Events { masks, secrets, event, mut hits } => {
                mask_event(&masks, &secrets, &event, &mut hits, out)?;
                Ok(hits)
            }
        }
    }
}

/// One event, line by line: data that is JSON by its places, everything by what is found in it.
fn mask_event(
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

/// What the record is told of a response when its body has ended, or was broken off.
pub struct Report {
    pub cx: Arc<ConnectionCx>,
    pub seq: u64,
    pub status: http::StatusCode,
    pub started: Instant,
    bytes: u64,
    sample: Vec<u8>,
    hits: Hits,
}

impl Report {
    /// Of a response whose head came.
    pub fn new(cx: Arc<ConnectionCx>, seq: u64, status: http::StatusCode, started: Instant) -> Self {
        Self { cx, seq, status, started, bytes: 0, sample: Vec::new(), hits: Hits::default() }
    }

    /// Counts what was masked.
    pub fn masked(&mut self, hits: &Hits) {
        self.hits.merge(hits);
    }

    /// Counts what the client gets.
    pub fn sent(&mut self, piece: &[u8]) {
        self.bytes += piece.len() as u64;
        let room = SAMPLE.saturating_sub(self.sample.len());
        self.sample.extend_from_slice(&piece[..piece.len().min(room)]);
    }

    /// Records how it ended.
    pub fn end(self, broken: Option<&str>) {
        let reason = self.status.canonical_reason().unwrap_or_default();
        let mut result = format!("{} {reason}", self.status.as_u16()).trim_end().to_owned();
        if let Some(broken) = broken {
            result.push_str(&format!(", broken off: {broken}"));
        }
        // A cut may be within a character.
        let sample = String::from_utf8_lossy(&self.sample).trim_end_matches(char::REPLACEMENT_CHARACTER).to_owned();
        let is_text = !sample.is_empty() && !sample.contains('\0');
        let body = EventBody::Result {
            seq: self.seq,
            result: result.into(),
            failed: broken.is_some() || self.status.as_u16() >= 400,
            columns: if is_text { [Arc::from("body")].into() } else { Arc::default() },
            sample: if is_text { vec![vec![Some(sample)]] } else { Vec::new() },
            rows: u64::from(is_text),
            bytes: self.bytes,
            masked: MaskedNote {
                count: self.hits.count,
                detectors: self.hits.detectors.iter().map(ToString::to_string).collect(),
            },
            duration_us: u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX),
        };
        // A record that fails refuses all that follows.
        let _ = self.cx.record(body);
    }
}

/// A response's body while it streams.
pub struct MaskedBody {
    inner: Incoming,
    masker: Option<Masker>,
    report: Option<Report>,
}

impl MaskedBody {
    /// Masks what comes from `inner`, and tells `report` of it.
    pub fn new(inner: Incoming, masker: Masker, report: Report) -> Self {
        Self { inner, masker: Some(masker), report: Some(report) }
    }

    fn end(&mut self, broken: Option<&str>) {
        self.masker = None;
        if let Some(report) = self.report.take() {
            report.end(broken);
        }
    }

    fn broken(&mut self, error: BodyError) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.end(Some(&error.to_string()));
        Poll::Ready(Some(Err(error)))
    }

    fn sent(&mut self, piece: Bytes) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(report) = &mut self.report {
            report.sent(&piece);
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

impl Body for MaskedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            let Some(masker) = &self.masker else { return Poll::Ready(None) };
            let passes = matches!(masker, Masker::Pass);
            match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(piece) if passes => return self.sent(piece),
                    Ok(piece) => {
                        let mut out = Vec::with_capacity(piece.len() + 64);
                        let Some(masker) = &mut self.masker else { return Poll::Ready(None) };
                        if let Err(error) = masker.push(&piece, &mut out) {
                            return self.broken(error.into());
                        }
                        if !out.is_empty() {
                            return self.sent(out.into());
                        }
                    }
                    // Trailers: nothing looks into them, so they are left out.
                    Err(_) => {}
                },
                Some(Err(error)) => return self.broken(error.into()),
                None => {
                    let Some(masker) = self.masker.take() else { return Poll::Ready(None) };
                    let mut out = Vec::new();
                    match masker.finish(&mut out) {
                        Err(error) => return self.broken(error.into()),
                        Ok(hits) => {
                            if let Some(report) = &mut self.report {
                                report.masked(&hits);
                                report.sent(&out);
                            }
                            self.end(None);
                            return Poll::Ready((!out.is_empty()).then(|| Ok(Frame::data(out.into()))));
                        }
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.masker.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.masker {
            Some(Masker::Pass) => self.inner.size_hint(),
            _ => SizeHint::default(),
        }
    }
}

impl Drop for MaskedBody {
    fn drop(&mut self) {
        if self.report.is_some() {
            self.end(Some("the client went away"));
        }
    }
}
