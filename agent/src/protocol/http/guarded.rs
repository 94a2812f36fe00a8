//! The client's stream behind the [`Guard`]: whoever reads it sees only requests that have one reading.
//!
//! What is wrong with a head cannot be answered from here, in its turn among the answers of a pipeline. So a request takes
//! its place whose target nobody could have written: it has a random name. The server answers it with what went wrong, and
//! the connection ends. What is wrong within a body is an error of the stream.

use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::guard::{Guard, Place, Violation};
use crate::session::BoxIo;

/// What a client is told whose request waits. Some that read this one take any other interim response for the final one
/// (Python's `http.client`), and RFC 9110 section 15.2 has every client of HTTP/1.1 read more than one.
const INTERIM: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// Bytes read at a time.
const PIECE: usize = 16 << 10;

/// What is wrong on a connection, and the target of the request that stands in its place.
#[derive(Debug)]
pub struct Wrong {
    /// `/` and 32 hexadecimal digits.
    pub target: String,
    /// Told once.
    pub violation: OnceLock<Violation>,
    /// What follows is no request: an upgrade was agreed to, and somebody else looks into all that comes.
    pub upgraded: AtomicBool,
    /// The client is to be told that its request waits. Set only while it does.
    pub waits: AtomicBool,
}

impl Wrong {
    /// With a new random target.
    pub fn new() -> io::Result<Arc<Self>> {
        let mut random = [0; 16];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| io::Error::other("no random numbers"))?;
        let target = format!("/{}", data_encoding::HEXLOWER.encode(&random));
        Ok(Arc::new(Self {
            target,
            violation: OnceLock::new(),
            upgraded: AtomicBool::new(false),
            waits: AtomicBool::new(false),
        }))
    }
}

/// How much a connection carried, in bytes.
#[derive(Debug, Default)]
pub struct Traffic {
    /// From the client.
    pub read: AtomicU64,
    /// To the client.
    pub written: AtomicU64,
}

/// A client's stream, of which the first bytes were read already, counted.
pub struct Counted {
    first: Bytes,
    io: BoxIo,
    traffic: Arc<Traffic>,
}

impl Counted {
    /// `first` was read from `io` already.
    pub fn new(first: Bytes, io: BoxIo, traffic: Arc<Traffic>) -> Self {
        Self { first, io, traffic }
    }
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        if self.first.is_empty() {
            ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        } else {
            let len = self.first.len().min(buf.remaining());
            buf.put_slice(&self.first.split_to(len));
        }
        self.traffic.read.fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, buf))?;
        self.traffic.written.fetch_add(written as u64, Ordering::Relaxed);
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
        self.traffic.written.fetch_add(written as u64, Ordering::Relaxed);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

/// A stream whose requests are checked as they are read.
pub struct Guarded {
    io: Counted,
    guard: Guard,
    input: BytesMut,
    output: BytesMut,
    /// What is left of an interim response.
    interim: &'static [u8],
    wrong: Arc<Wrong>,
}

impl Guarded {
    /// Over a client's stream.
    pub fn new(io: Counted, wrong: Arc<Wrong>) -> Self {
        Self { io, guard: Guard::default(), input: BytesMut::new(), output: BytesMut::new(), interim: b"", wrong }
    }

    /// Moves what is fine. What is not is replaced, once.
    fn check(&mut self) {
        let Err(violation) = self.guard.feed(&mut self.input, &mut self.output) else { return };
        // Within a body there is no place for another request.
        if self.wrong.violation.set(violation).is_ok() && self.guard.broke() == Some(Place::Head) {
            let request = format!("GET {} HTTP/1.1\r\nhost: wrong\r\nconnection: close\r\n\r\n", self.wrong.target);
            self.output.extend_from_slice(request.as_bytes());
        }
    }
}

impl Guarded {
    /// Writes what is left of an interim response.
    fn tell(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.interim.is_empty() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, self.interim))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.interim = &self.interim[written..];
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Guarded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            let upgraded = this.wrong.upgraded.load(Ordering::Acquire);
            if upgraded && !this.input.is_empty() {
                this.output.unsplit(this.input.split());
            }
            if !this.output.is_empty() {
                let len = this.output.len().min(buf.remaining());
                buf.put_slice(&this.output[..len]);
                this.output.advance(len);
                return Poll::Ready(Ok(()));
            }
            if upgraded {
                return Pin::new(&mut this.io).poll_read(cx, buf);
            }
            match (this.guard.broke(), this.wrong.violation.get()) {
                (Some(Place::Body), Some(violation)) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, *violation)));
                }
                // Requests before it are answered still, as long as the client is there; what it sends is not looked at.
                (Some(_), _) => this.input.clear(),
                (None, _) => {}
            }
            let mut piece = [MaybeUninit::uninit(); PIECE];
            let mut read = ReadBuf::uninit(&mut piece);
            ready!(Pin::new(&mut this.io).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            if this.guard.broke().is_none() {
                this.input.extend_from_slice(read.filled());
                this.check();
            }
        }
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.tell(cx))?;
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The library flushes once all that it had to write is written: nothing of its own is cut in two here.
        if self.wrong.waits.swap(false, Ordering::AcqRel) && self.interim.is_empty() {
            self.interim = INTERIM;
        }
        ready!(self.tell(cx))?;
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
        ready!(self.tell(cx))?;
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
