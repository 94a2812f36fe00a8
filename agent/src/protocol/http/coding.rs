//! Content codings (RFC 9110 section 8.4.1): bodies that come encoded are decoded in bounded steps, so that they can be
//! looked into, and encoded again.
//!
//! Failure mode: a coding that is not known, several at once, or a body that is not what it is said to be does not come
//! through. However much a body swells, memory does not: a step is [`STEP`] bytes.

use bytes::{Buf, Bytes};
use compression_codecs::{
    BrotliDecoder, BrotliEncoder, DecodeV2, EncodeV2, GzipDecoder, GzipEncoder, ZlibDecoder, ZlibEncoder, ZstdDecoder,
    ZstdEncoder,
    brotli::params::EncoderParams,
    core::{
        Level,
        util::{PartialBuffer, WriteBuffer},
    },
    zstd::params::DParameter,
};
use http::{HeaderMap, HeaderValue, header};

/// Most bytes that one step of decoding makes.
pub const STEP: usize = 16 << 10;
/// Largest window of zstd, as a power of two: what RFC 9659 lets HTTP use.
const ZSTD_WINDOW: u32 = 23;
/// Effort of encoding anew, for one client that waits.
const EFFORT: i32 = 2;

/// How a body is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// RFC 1952.
    Gzip,
    /// RFC 1950: what HTTP calls `deflate`.
    Deflate,
    /// RFC 7932.
    Brotli,
    /// RFC 8878.
    Zstd,
}

/// A body cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodingError {
    /// Not one of ours, or several.
    #[error("it is encoded in a way that cannot be looked into")]
    Unknown,
    /// It is something else.
    #[error("it is not encoded as it says")]
    Invalid,
    /// Its end is missing.
    #[error("it is encoded, and its end is missing")]
    Truncated,
}

impl Coding {
    fn named(name: &[u8]) -> Option<Self> {
        match name.to_ascii_lowercase().as_slice() {
            b"gzip" | b"x-gzip" => Some(Self::Gzip),
            b"deflate" => Some(Self::Deflate),
            b"br" => Some(Self::Brotli),
            b"zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    /// How a body with these fields is encoded; `None`: not at all.
    ///
    /// # Errors
    /// In a way that is not known, or twice.
    pub fn of(fields: &HeaderMap) -> Result<Option<Self>, CodingError> {
        let all =
            fields.get_all(header::CONTENT_ENCODING).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
        let mut named =
            all.map(<[u8]>::trim_ascii).filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case(b"identity"));
        match (named.next(), named.next()) {
            (None, _) => Ok(None),
            (Some(name), None) => Self::named(name).map(Some).ok_or(CodingError::Unknown),
            (Some(_), Some(_)) => Err(CodingError::Unknown),
        }
    }
}

/// What a client accepts of what can be decoded here (RFC 9110 section 12.5.3), in its order.
pub fn accepted(fields: &HeaderMap) -> HeaderValue {
    let all = fields.get_all(header::ACCEPT_ENCODING).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
    let mut names: Vec<&str> = Vec::new();
    for item in all {
        let mut words = item.split(|b| *b == b';').map(<[u8]>::trim_ascii);
        let name = match words.next().and_then(Coding::named) {
            Some(Coding::Gzip) => "gzip",
            Some(Coding::Deflate) => "deflate",
            Some(Coding::Brotli) => "br",
            Some(Coding::Zstd) => "zstd",
            None => continue,
        };
        let refused = words.any(|word| {
            let weight = word.strip_prefix(b"q=").or_else(|| word.strip_prefix(b"Q="));
            weight.is_some_and(|weight| weight.iter().all(|b| matches!(b, b'0' | b'.')))
        });
        if !refused && !names.contains(&name) {
            names.push(name);
        }
    }
    HeaderValue::from_str(&names.join(", ")).ok().filter(|value| !value.is_empty()).unwrap_or_else(identity)
}

fn identity() -> HeaderValue {
    HeaderValue::from_static("identity")
}

/// Decodes one body.
pub struct Decoder {
    inner: Box<dyn DecodeV2 + Send>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing came yet.
    Empty,
    Within,
    /// A stream ended. Another may follow (RFC 1952 section 2.2, RFC 8878 section 3).
    Ended,
}

impl Decoder {
    /// For a coding.
    pub fn new(coding: Coding) -> Self {
        let inner: Box<dyn DecodeV2 + Send> = match coding {
            Coding::Gzip => Box::new(GzipDecoder::new()),
            Coding::Deflate => Box::new(ZlibDecoder::new()),
            Coding::Brotli => Box::new(BrotliDecoder::new()),
            Coding::Zstd => Box::new(ZstdDecoder::new_with_params(&[DParameter::window_log_max(ZSTD_WINDOW)])),
        };
        Self { inner, state: State::Empty }
    }

    /// Takes from `input` and appends at most [`STEP`] bytes to `out`. Says whether there may be more without more input.
    ///
    /// # Errors
    /// It is not encoded so.
    pub fn step(&mut self, input: &mut Bytes, out: &mut Vec<u8>) -> Result<bool, CodingError> {
        if input.is_empty() && self.state != State::Within {
            return Ok(false);
        }
        if self.state == State::Ended {
            self.inner.reinit().map_err(|_| CodingError::Invalid)?;
        }
        let mut piece = [0; STEP];
        let mut output = WriteBuffer::new_initialized(&mut piece);
        let mut partial = PartialBuffer::new(&input[..]);
        let ended = self.inner.decode(&mut partial, &mut output).map_err(|_| CodingError::Invalid)?;
        let (taken, made) = (partial.written_len(), output.written_len());
        out.extend_from_slice(output.written());
        input.advance(taken);
        self.state = if ended { State::Ended } else { State::Within };
        if taken == 0 && made == 0 && !ended && !input.is_empty() {
            return Err(CodingError::Invalid);
        }
        Ok(!input.is_empty() || made == STEP)
    }

    /// Whether it ended where it may.
    ///
    /// # Errors
    /// It did not.
    pub fn finish(&self) -> Result<(), CodingError> {
        if self.state == State::Within { Err(CodingError::Truncated) } else { Ok(()) }
    }
}

/// Encodes one body.
pub struct Encoder(Box<dyn EncodeV2 + Send>);

impl Encoder {
    /// For a coding.
    pub fn new(coding: Coding) -> Self {
        let level = Level::Precise(EFFORT);
        Self(match coding {
            Coding::Gzip => Box::new(GzipEncoder::new(level.into())),
            Coding::Deflate => Box::new(ZlibEncoder::new(level.into())),
            Coding::Brotli => Box::new(BrotliEncoder::new(EncoderParams::default().quality(level).window_size(18))),
            Coding::Zstd => Box::new(ZstdEncoder::new(EFFORT)),
        })
    }

    /// Encodes what comes next.
    ///
    /// # Errors
    /// The library failed.
    pub fn push(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), CodingError> {
        let mut input = PartialBuffer::new(plain);
        while !input.unwritten().is_empty() {
            let (before, mut made) = (input.written_len(), 0);
            self.step(out, |encoder, output| {
                encoder.encode(&mut input, output)?;
                made = output.written_len();
                Ok(false)
            })?;
            if made == 0 && input.written_len() == before {
                return Err(CodingError::Invalid);
            }
        }
        Ok(())
    }

    /// Makes what was pushed readable on the other side.
    ///
    /// # Errors
    /// The library failed.
    pub fn flush(&mut self, out: &mut Vec<u8>) -> Result<(), CodingError> {
        while !self.step(out, |encoder, output| encoder.flush(output))? {}
        Ok(())
    }

    /// Ends the body.
    ///
    /// # Errors
    /// The library failed.
    pub fn finish(mut self, out: &mut Vec<u8>) -> Result<(), CodingError> {
        while !self.step(out, |encoder, output| encoder.finish(output))? {}
        Ok(())
    }

    fn step(
        &mut self,
        out: &mut Vec<u8>,
        run: impl FnOnce(&mut (dyn EncodeV2 + Send), &mut WriteBuffer<'_>) -> std::io::Result<bool>,
    ) -> Result<bool, CodingError> {
        let mut piece = [0; STEP];
        let mut output = WriteBuffer::new_initialized(&mut piece);
        let done = run(&mut *self.0, &mut output).map_err(|_| CodingError::Invalid)?;
        out.extend_from_slice(output.written());
        Ok(done)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    const ALL: [Coding; 4] = [Coding::Gzip, Coding::Deflate, Coding::Brotli, Coding::Zstd];

    fn encoded(coding: Coding, pieces: &[&[u8]]) -> Vec<u8> {
        let (mut encoder, mut out) = (Encoder::new(coding), Vec::new());
        for piece in pieces {
            encoder.push(piece, &mut out).unwrap();
            encoder.flush(&mut out).unwrap();
        }
        encoder.finish(&mut out).unwrap();
        out
    }

    fn decoded(coding: Coding, pieces: &[&[u8]]) -> Result<Vec<u8>, CodingError> {
        let (mut decoder, mut out) = (Decoder::new(coding), Vec::new());
        for piece in pieces {
            let mut input = Bytes::copy_from_slice(piece);
            while decoder.step(&mut input, &mut out)? {}
        }
        decoder.finish().map(|()| out)
    }

    #[test]
    fn what_is_encoded_is_decoded_wherever_it_is_split() {
        let text = b"one two three, one two three, ".repeat(40);
        for coding in ALL {
            let whole = encoded(coding, &[&text[..100], &text[100..]]);
            for at in 0..=whole.len() {
                assert_eq!(decoded(coding, &[&whole[..at], &whole[at..]]), Ok(text.clone()), "{coding:?} {at}");
                if at < whole.len() {
                    let cut = decoded(coding, &[&whole[..at]]);
                    assert!(cut.is_err() || at == 0, "{coding:?} cut at {at}");
                }
            }
            assert!(decoded(coding, &[b"this is no such thing, whatever it says"]).is_err(), "{coding:?}");
        }
    }

    #[test]
    fn what_is_pushed_can_be_read_at_once() {
        for coding in ALL {
            let (mut encoder, mut decoder) = (Encoder::new(coding), Decoder::new(coding));
            for word in ["data: a\n\n", "data: b\n\n"] {
                let (mut sent, mut read) = (Vec::new(), Vec::new());
                encoder.push(word.as_bytes(), &mut sent).unwrap();
                encoder.flush(&mut sent).unwrap();
                let mut input = sent.into();
                while decoder.step(&mut input, &mut read).unwrap() {}
                assert_eq!(read, word.as_bytes(), "{coding:?}");
            }
        }
    }

    /// A few KiB that stand for 64 MiB.
    #[test]
    fn a_step_is_bounded_whatever_swells() {
        for coding in ALL {
            let (mut encoder, mut small) = (Encoder::new(coding), Vec::new());
            let zeros = vec![0; 1 << 20];
            for _ in 0..64 {
                encoder.push(&zeros, &mut small).unwrap();
            }
            encoder.finish(&mut small).unwrap();
            assert!(small.len() < 1 << 20, "{coding:?} {}", small.len());
            let (mut decoder, mut input, mut total) = (Decoder::new(coding), Bytes::from(small), 0);
            loop {
                let mut out = Vec::new();
                let more = decoder.step(&mut input, &mut out).unwrap();
                assert!(out.len() <= STEP);
                total += out.len();
                if !more {
                    break;
                }
            }
            assert_eq!(total, 64 << 20, "{coding:?}");
        }
    }

    #[test]
    fn streams_that_follow_one_another_are_one_body() {
        for coding in [Coding::Gzip, Coding::Zstd] {
            let both = [encoded(coding, &[b"one "]), encoded(coding, &[b"two"])].concat();
            assert_eq!(decoded(coding, &[&both]), Ok(b"one two".to_vec()));
            let with_more = [encoded(coding, &[b"one "]), b"and more".to_vec()].concat();
            assert_eq!(decoded(coding, &[&with_more]), Err(CodingError::Invalid));
        }
    }

    #[test]
    fn a_window_of_zstd_has_a_largest_size() {
        use std::io::Write as _;
        for (log, expected) in [(ZSTD_WINDOW, Ok(b"one two".to_vec())), (ZSTD_WINDOW + 1, Err(CodingError::Invalid))] {
            let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
            encoder.window_log(log).unwrap();
            encoder.write_all(b"one two").unwrap();
            assert_eq!(decoded(Coding::Zstd, &[&encoder.finish().unwrap()]), expected, "a window of 2^{log}");
        }
    }

    #[test]
    fn a_client_is_asked_for_what_can_be_decoded() {
        for (asked, sent) in [
            ("gzip, deflate, br, zstd", "gzip, deflate, br, zstd"),
            ("br;q=1.0, gzip;q=0.8, *;q=0.1", "br, gzip"),
            ("gzip;q=0, BR", "br"),
            ("gzip;q=0.000", "identity"),
            ("compress, dcb, x-gzip", "gzip"),
            ("*", "identity"),
            ("", "identity"),
        ] {
            let fields = HeaderMap::from_iter([(header::ACCEPT_ENCODING, HeaderValue::from_static(asked))]);
            assert_eq!(accepted(&fields), sent, "{asked}");
        }
    }
}
