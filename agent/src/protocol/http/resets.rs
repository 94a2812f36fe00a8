//! What the library of HTTP/2 refuses by itself, before anybody here sees a request: told by the frames that it writes.
//!
//! It answers what is malformed with RST_STREAM or GOAWAY (RFC 9113 sections 6.4, 6.8 and 8.1.1) and says nothing of it. So
//! its own frames are walked through on their way out, headers only. A stream on which an answer is under way is not told:
//! that has an end of its own in the record. Failure mode: what is not told is refused all the same.

use std::{
    collections::BTreeSet,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc::UnboundedSender,
};

const HEAD: usize = 9;
/// The length of what is read of a frame beyond its head: a last stream, and a code.
const DETAIL_MAX: usize = 8;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;

/// Something that the library refused. Shown to nobody but readers of the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reset {
    /// Which stream; `None`: the whole connection.
    pub stream: Option<u32>,
    /// As RFC 9113 section 7 has it.
    pub code: u32,
}

impl std::fmt::Display for Reset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (name, what) = match self.code {
            1 => ("PROTOCOL_ERROR", "what was sent is malformed"),
            3 => ("FLOW_CONTROL_ERROR", "more was sent than may be"),
            5 => ("STREAM_CLOSED", "something came after the end"),
            6 => ("FRAME_SIZE_ERROR", "a frame has a length that it cannot have"),
            7 => ("REFUSED_STREAM", "the header fields are too long, or there are too many requests at once"),
            9 => ("COMPRESSION_ERROR", "the header fields cannot be read"),
            11 => ("ENHANCE_YOUR_CALM", "it costs more than it is worth"),
            _ => ("an error", "what was sent is not HTTP/2"),
        };
        match self.stream {
            Some(stream) => write!(f, "stream {stream} of HTTP/2: {what} ({name})"),
            None => write!(f, "the connection of HTTP/2: {what} ({name})"),
        }
    }
}

/// Walks through frames.
#[derive(Debug, Default)]
pub struct Walk {
    /// What has come of a frame's head and detail.
    seen: Vec<u8>,
    /// Bytes of a frame that are not looked at.
    skip: usize,
    /// Streams on which a response is under way.
    answered: BTreeSet<u32>,
}

impl Walk {
    /// Goes on with what was written. Says of each refusal.
    pub fn feed(&mut self, mut bytes: &[u8], mut refused: impl FnMut(Reset)) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let now = self.skip.min(bytes.len());
                bytes = &bytes[now..];
                self.skip -= now;
                continue;
            }
            let wanted = self.wanted();
            let now = (wanted - self.seen.len()).min(bytes.len());
            self.seen.extend_from_slice(&bytes[..now]);
            bytes = &bytes[now..];
            if self.seen.len() == self.wanted() {
                self.skip = self.length().saturating_sub(self.seen.len() - HEAD);
                if let Some(reset) = self.frame() {
                    refused(reset);
                }
                self.seen.clear();
            }
        }
    }

    fn length(&self) -> usize {
        self.seen[..3].iter().fold(0, |length, byte| length << 8 | usize::from(*byte))
    }

    /// How much is to be read before the frame is understood.
    fn wanted(&self) -> usize {
        match self.seen.get(3) {
            Some(&(RST_STREAM | GOAWAY)) if self.seen.len() >= HEAD => HEAD + self.length().min(DETAIL_MAX),
            _ => HEAD,
        }
    }

    fn frame(&mut self) -> Option<Reset> {
        let (kind, flags) = (self.seen[3], self.seen[4]);
        let number = |at: usize| {
            let bytes: Option<[u8; 4]> = self.seen.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map(u32::from_be_bytes)
        };
        let stream = number(5)? & 0x7fff_ffff;
        match kind {
            HEADERS | DATA if flags & END_STREAM != 0 => {
                self.answered.remove(&stream);
            }
            HEADERS => {
                self.answered.insert(stream);
            }
            RST_STREAM => {
                let code = number(HEAD)?;
                let answered = self.answered.remove(&stream);
                return (!answered && is_refusal(code)).then_some(Reset { stream: Some(stream), code });
            }
            GOAWAY => {
                let code = number(HEAD + 4)?;
                return is_refusal(code).then_some(Reset { stream: None, code });
            }
            _ => {}
        }
        None
    }
}

/// Whether it is the client's fault: not the end of something (NO_ERROR, CANCEL), and not ours (INTERNAL_ERROR).
fn is_refusal(code: u32) -> bool {
    !matches!(code, 0 | 2 | 8)
}

/// A client's stream whose outgoing frames are walked through.
pub struct Overheard<S> {
    io: S,
    walk: Walk,
    refused: UnboundedSender<Reset>,
}

impl<S> Overheard<S> {
    /// Over a client's stream. The library bounds how many refusals there are.
    pub fn new(io: S, refused: UnboundedSender<Reset>) -> Self {
        Self { io, walk: Walk::default(), refused }
    }

    fn hear(&mut self, bytes: &[u8]) {
        // Nobody hears of it any more once the connection is over.
        self.walk.feed(bytes, |reset| {
            let _ = self.refused.send(reset);
        });
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Overheard<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Overheard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, buf))?;
        self.hear(&buf[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, bufs))?;
        let mut left = written;
        for buf in bufs {
            let now = left.min(buf.len());
            self.hear(&buf[..now]);
            left -= now;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    #[test]
    fn refusals_are_told_however_the_frames_are_cut() {
        let reset = |stream, code: u32| frame(RST_STREAM, 0, stream, &code.to_be_bytes());
        let away = |code: u32| frame(GOAWAY, 0, 0, &[&3_u32.to_be_bytes()[..], &code.to_be_bytes(), b"why"].concat());
        let bytes = [
            frame(4, 0, 0, &[0; 18]),
            reset(1, 1),
            // One that is answered, and then not read to its end; and one that breaks its rules meanwhile.
            frame(HEADERS, 4, 3, b"fields"),
            frame(DATA, END_STREAM, 3, &[7; 300]),
            reset(3, 0),
            frame(HEADERS, 4, 5, b"fields"),
            frame(DATA, 0, 5, &[]),
            reset(5, 1),
            // Too long: answered by the library.
            frame(HEADERS, 4 | END_STREAM, 7, b"431"),
            reset(7, 7),
            reset(9, 8),
            reset(11, 2),
            away(0),
            away(11),
        ]
        .concat();
        let wanted = [(Some(1), 1), (Some(7), 7), (None, 11)].map(|(stream, code)| Reset { stream, code });
        for piece in 1..40 {
            let (mut walk, mut told) = (Walk::default(), Vec::new());
            bytes.chunks(piece).for_each(|bytes| walk.feed(bytes, |reset| told.push(reset)));
            assert_eq!(told, wanted, "{piece}");
            assert!(walk.answered.is_empty() && walk.seen.is_empty() && walk.skip == 0);
        }
    }
}
