//! Bodies of responses on their way to the client: decoded, masked and encoded again as they stream by, and told to the
//! record when they end.

use std::{
    borrow::Cow,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::{
    coding::{Coding, Decoder, Encoder},
    lens::Watch,
    masker::{MaskError, Masker},
    upstream::Keep,
};
use crate::{
    mask::Hits,
    record::{MaskedNote, Parts, Resulted, Sample},
    session::ConnectionCx,
    wire::{Charge, OverBudget},
};

/// How much may be held back of a body without being charged for, in bytes.
const HELD: usize = 64 << 10;
/// How much of a body the record keeps.
pub const SAMPLE: usize = 4 << 10;

thread_local! {
    /// The one column of a response on record.
    static BODY: Arc<[Arc<str>]> = [Arc::from("body")].into();
}

/// What a client's library is told when a body cannot go on.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// What the record is told of a response when its body has ended, or was broken off.
pub struct Report {
    pub cx: Arc<ConnectionCx>,
    pub seq: u64,
    pub status: http::StatusCode,
    pub started: Instant,
    bytes: u64,
    sample: Vec<u8>,
    hits: Hits,
    grpc_status: Option<String>,
    watch: Option<Box<dyn Watch>>,
}

impl Report {
    /// Of a response whose head came.
    pub fn new(cx: Arc<ConnectionCx>, seq: u64, status: http::StatusCode, started: Instant) -> Self {
        let (sample, hits) = (Vec::new(), Hits::default());
        Self { cx, seq, status, started, bytes: 0, sample, hits, grpc_status: None, watch: None }
    }

    /// Tells somebody else, too.
    pub fn watched(mut self, watch: Option<Box<dyn Watch>>) -> Self {
        self.watch = watch;
        self
    }

    /// Who is told, too.
    pub fn watch(&mut self) -> Option<&mut Box<dyn Watch>> {
        self.watch.as_mut()
    }

    /// Counts what was masked.
    pub fn masked(&mut self, hits: &Hits) {
        self.hits.merge(hits);
    }

    /// Counts what the client gets.
    pub fn sent(&mut self, piece: &[u8]) {
        self.bytes += piece.len() as u64;
        show(&mut self.sample, piece);
        if let Some(watch) = &mut self.watch {
            watch.sees(piece);
        }
    }

    /// Shows this in place of an encoded body.
    fn decoded(&mut self, shown: Vec<u8>) {
        self.sample = shown;
    }

    fn is_grpc_error(&self) -> bool {
        self.grpc_status.as_ref().is_some_and(|status| !status.starts_with("grpc-status 0 "))
    }

    /// Notes what a call of gRPC says of itself, in its head or at its end.
    pub fn trailers(&mut self, fields: &HeaderMap) {
        let text = |name| fields.get(name).map(|value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()));
        if let Some(status) = text("grpc-status") {
            self.grpc_status = Some(format!("grpc-status {status} {}", text("grpc-message").unwrap_or_default()));
        }
    }

    /// Records how it ended.
    pub fn end(mut self, broken: Option<&str>) {
        let sample = std::mem::take(&mut self.sample);
        self.record(&sample, broken);
    }

    /// Records that all of a body was sent at once.
    pub fn end_with(mut self, whole: &[u8]) {
        self.bytes += whole.len() as u64;
        if let Some(watch) = &mut self.watch {
            watch.sees(whole);
        }
        self.record(&whole[..whole.len().min(SAMPLE)], None);
    }

    fn record(mut self, sample: &[u8], broken: Option<&str>) {
        let reason = self.status.canonical_reason().unwrap_or_default();
        let mut result = [self.status.as_str(), " ", reason].concat();
        result.truncate(result.trim_end().len());
        if let Some(status) = &self.grpc_status {
            result.push_str(&format!(", {}", status.trim_end()));
        }
        if let Some(broken) = broken {
            result.push_str(&format!(", broken off: {broken}"));
        }
        let sample = text(sample);
        let shown = Some(&*sample).filter(|text| !text.is_empty() && memchr::memchr(0, text.as_bytes()).is_none());
        let parts = Resulted {
            seq: self.seq,
            result: &result,
            failed: broken.is_some() || self.status.as_u16() >= 400 || self.is_grpc_error(),
            columns: &BODY.with(Arc::clone)[..usize::from(shown.is_some())],
            sample: Sample::One(shown),
            rows: u64::from(shown.is_some()),
            bytes: self.bytes,
            masked: &MaskedNote {
                count: self.hits.count,
                detectors: self.hits.detectors.iter().map(ToString::to_string).collect(),
            },
            duration_us: u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX),
        };
        // A record that fails refuses all that follows.
        let _ = self.cx.record_parts(Parts::Result(parts));
        if let Some(watch) = self.watch.take() {
            watch.ends(broken);
        }
    }
}

/// Decodes a body, masks it, and encodes it again.
pub struct Pipe {
    masker: Masker,
    coded: Option<Box<(Decoder, Encoder)>>,
    /// The beginning of an encoded body as the client reads it.
    shown: Vec<u8>,
}

impl Pipe {
    /// For a body that comes in a coding, or in none.
    pub fn new(masker: Masker, coding: Option<Coding>) -> Self {
        // What passes as it is needs no decoding.
        let coding = coding.filter(|_| !matches!(masker, Masker::Pass));
        Self {
            masker,
            coded: coding.map(|coding| Box::new((Decoder::new(coding), Encoder::new(coding)))),
            shown: Vec::new(),
        }
    }

    fn passes(&self) -> bool {
        matches!(self.masker, Masker::Pass)
    }

    /// Takes from `input` and appends to `out` what can be sent by now. Says whether there is more to do without more input.
    ///
    /// # Errors
    /// It cannot be looked into.
    pub fn push(&mut self, input: &mut Bytes, out: &mut Vec<u8>) -> Result<bool, MaskError> {
        let Some(coded) = &mut self.coded else {
            self.masker.push(input, out)?;
            input.clear();
            return Ok(false);
        };
        let (decoder, encoder) = &mut **coded;
        let (mut plain, mut masked) = (Vec::new(), Vec::new());
        let mut more = true;
        // Not more at once than others can wait for.
        for _ in 0..16 {
            plain.clear();
            masked.clear();
            more = decoder.step(input, &mut plain)?;
            self.masker.push(&plain, &mut masked)?;
            show(&mut self.shown, &masked);
            encoder.push(&masked, out)?;
            if !more || out.len() >= 64 << 10 {
                break;
            }
        }
        if !more {
            encoder.flush(out)?;
        }
        Ok(more)
    }

    /// Bytes that wait for what is still to come.
    fn held(&self) -> usize {
        self.masker.held()
    }

    /// Ends the body. Returns what was masked and, of an encoded body, the beginning as the client reads it.
    ///
    /// # Errors
    /// It ends where it must not.
    pub fn finish(self, out: &mut Vec<u8>) -> Result<(Hits, Vec<u8>), MaskError> {
        let (Some(coded), mut shown) = (self.coded, self.shown) else {
            return Ok((self.masker.finish(out)?, Vec::new()));
        };
        let (decoder, mut encoder) = *coded;
        decoder.finish()?;
        let mut masked = Vec::new();
        let hits = self.masker.finish(&mut masked)?;
        show(&mut shown, &masked);
        encoder.push(&masked, out)?;
        encoder.finish(out)?;
        Ok((hits, shown))
    }
}

/// What a sample says. A cut may be within a character.
fn text(sample: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = str::from_utf8(sample) {
        return text.trim_end_matches(char::REPLACEMENT_CHARACTER).into();
    }
    let mut text = String::from_utf8_lossy(sample).into_owned();
    text.truncate(text.trim_end_matches(char::REPLACEMENT_CHARACTER).len());
    text.into()
}

/// Keeps the beginning.
pub fn show(sample: &mut Vec<u8>, piece: &[u8]) {
    let room = SAMPLE.saturating_sub(sample.len());
    sample.extend_from_slice(&piece[..piece.len().min(room)]);
}

/// A response's body while it streams.
pub struct MaskedBody {
    inner: Incoming,
    /// The connection that it comes on.
    keep: Keep,
    /// Until the body ends.
    pipe: Option<Pipe>,
    input: Bytes,
    /// The pipe has more to do without more input.
    more: bool,
    /// For what is held back, beyond what every connection may.
    memory: Charge,
    trailers: Option<HeaderMap>,
    report: Option<Report>,
    mask_fields: Box<dyn FnMut(&mut HeaderMap) -> Hits + Send>,
}

impl MaskedBody {
    /// Masks what comes from `inner`, its trailers by `mask_fields`, and tells `report` of it.
    pub fn new(
        inner: Incoming,
        keep: Keep,
        pipe: Pipe,
        report: Report,
        mask_fields: impl FnMut(&mut HeaderMap) -> Hits + Send + 'static,
    ) -> Self {
        Self {
            inner,
            keep,
            pipe: Some(pipe),
            input: Bytes::new(),
            more: false,
            memory: Charge::default(),
            trailers: None,
            report: Some(report),
            mask_fields: Box::new(mask_fields),
        }
    }

    fn end(&mut self, broken: Option<&str>) {
        let pipe = self.pipe.take();
        if let Some(mut report) = self.report.take() {
            if let Some(pipe) = pipe.filter(|pipe| pipe.coded.is_some()) {
                report.decoded(pipe.shown);
            }
            report.end(broken);
        }
    }

    /// Charges for what is held back: thrice, for it is copied where it is read and masked.
    fn charge(&mut self, held: usize) -> Result<(), OverBudget> {
        let needed = if held > HELD { held * 3 } else { 0 };
        let has = self.memory.bytes();
        if needed > has || (needed == 0 && has > 0) {
            // The old charge goes first: the new one is for the same bytes.
            self.memory = Charge::default();
            if let Some(report) = self.report.as_ref().filter(|_| needed > 0) {
                self.memory = report.cx.memory.charge(needed.next_power_of_two())?;
            }
        }
        Ok(())
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

    /// The upstream has sent all of it.
    fn finish(&mut self) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(pipe) = self.pipe.take() else { return Poll::Ready(None) };
        let (mut out, coded) = (Vec::new(), pipe.coded.is_some());
        match pipe.finish(&mut out) {
            Err(error) => self.broken(error.into()),
            Ok((hits, shown)) => {
                if let Some(report) = &mut self.report {
                    report.masked(&hits);
                    report.sent(&out);
                    if coded {
                        report.decoded(shown);
                    }
                    if let Some(trailers) = &mut self.trailers {
                        report.masked(&(self.mask_fields)(trailers));
                        report.trailers(trailers);
                    }
                }
                self.end(None);
                if out.is_empty() { self.last() } else { Poll::Ready(Some(Ok(Frame::data(out.into())))) }
            }
        }
    }

    fn last(&mut self) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
    }
}

impl Body for MaskedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        loop {
            let Some(pipe) = &mut this.pipe else { return this.last() };
            if this.more || !this.input.is_empty() {
                let mut out = Vec::with_capacity(this.input.len() + 64);
                match pipe.push(&mut this.input, &mut out) {
                    Ok(more) => this.more = more,
                    Err(error) => return this.broken(error.into()),
                }
                let held = pipe.held();
                if let Err(error) = this.charge(held) {
                    return this.broken(MaskError::from(error).into());
                }
                if !out.is_empty() {
                    return this.sent(out.into());
                }
                if this.more {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                continue;
            }
            let passes = pipe.passes();
            let mut frame = Pin::new(&mut this.inner).poll_frame(cx);
            if frame.is_pending() {
                this.keep.poll(cx);
                frame = Pin::new(&mut this.inner).poll_frame(cx);
            }
            match ready!(frame) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(piece) if passes => return this.sent(piece),
                    Ok(piece) => this.input = piece,
                    Err(frame) => this.trailers = frame.into_trailers().ok(),
                },
                Some(Err(error)) => return this.broken(error.into()),
                None => return this.finish(),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.pipe.is_none() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.pipe {
            Some(pipe) if pipe.passes() => self.inner.size_hint(),
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
