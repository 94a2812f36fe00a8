//! Moving bytes between a socket and buffers, readiness by readiness, so that one task serves both directions and
//! neither can block the other.

use std::{
    cell::Cell,
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Budget, Charge, OutQueue, OverBudget};

/// Bytes asked of the socket at a time, and when as many have come as could.
const READ: usize = 16 << 10;
const BULK: usize = 64 << 10;
/// Pieces written at a time.
const PIECES: usize = 32;
/// A frame up to this size is not charged for.
const SMALL: usize = 64 << 10;

thread_local! {
    /// The buffer that the next peer of this thread reads into. It holds no bytes that anybody can see.
    static SPARE: Cell<BytesMut> = Cell::default();
}

/// One peer: its socket, what was read and not yet cut, what waits to be written.
#[derive(Debug)]
pub struct Side<S> {
    io: S,
    /// Bytes read and not yet used.
    pub input: BytesMut,
    /// Bytes to write.
    pub output: OutQueue,
    unflushed: bool,
    /// The peer will send nothing more.
    pub ended: bool,
    read_total: u64,
    gathering: Charge,
    /// Bytes to ask for next.
    wanted: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Side<S> {
    /// Around a socket, with bytes that were already read from it.
    pub fn new(io: S, input: BytesMut) -> Self {
        Self {
            io,
            input,
            output: OutQueue::default(),
            unflushed: false,
            ended: false,
            read_total: 0,
            gathering: Charge::default(),
            wanted: READ,
        }
    }

    /// The socket. Whatever waits in `input` and `output` is dropped.
    pub fn into_io(self) -> S {
        self.io
    }

    /// A frame of `declared` bytes has begun to come: makes room for all of it, if it is a large one. What is charged is
    /// twice its size, because it is copied where it is changed or shown.
    pub fn make_room(&mut self, declared: usize, memory: &Arc<Budget>) -> Result<(), OverBudget> {
        if declared > SMALL && self.gathering.bytes() < declared * 2 {
            // The old charge goes first: what gathered under it is used up.
            self.gathering = Charge::default();
            self.gathering = memory.charge(declared * 2)?;
            self.input.reserve(declared.saturating_sub(self.input.len()));
        }
        Ok(())
    }

    /// Nothing of a large frame is in use any more: its memory is given back.
    pub fn give_room_back(&mut self) {
        if self.gathering.bytes() > 0 && self.input.len() < SMALL {
            self.input = BytesMut::from(&self.input[..]);
            self.gathering = Charge::default();
        }
    }

    /// Bytes ever read.
    pub fn read_total(&self) -> u64 {
        self.read_total
    }

    /// Writes what waits, as far as the socket takes it. `Ready(Ok(true))` means something was written.
    pub fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut progress = false;
        while !self.output.is_empty() {
            let mut slices = [IoSlice::new(&[]); PIECES];
            let n = self.output.slices(&mut slices);
            let io = Pin::new(&mut self.io);
            // Most often it is one piece, for which the kernel has the shorter way.
            let written = if n == 1 { io.poll_write(cx, &slices[0]) } else { io.poll_write_vectored(cx, &slices[..n]) };
            match written {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => {
                    self.output.advance(written);
                    self.unflushed = true;
                    progress = true;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return if progress { Poll::Ready(Ok(true)) } else { Poll::Pending },
            }
        }
        if self.unflushed {
            match Pin::new(&mut self.io).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {}
            }
        }
        if progress { Poll::Ready(Ok(true)) } else { Poll::Pending }
    }

    /// Reads once into `input`. At end of stream sets `ended`. Ready means that something changed.
    pub fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ended {
            return Poll::Pending;
        }
        if self.input.is_empty() && self.input.capacity() < self.wanted {
            self.input = SPARE.take();
        }
        self.input.reserve(self.wanted);
        match tokio_util::io::poll_read_buf(Pin::new(&mut self.io), cx, &mut self.input) {
            Poll::Ready(Ok(read)) => {
                self.ended = read == 0;
                self.read_total += read as u64;
                self.wanted = if read >= self.wanted { BULK } else { READ };
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                // Who has nothing to say keeps no buffer. The next one who has finds it in the processor's cache.
                if self.input.is_empty() && self.input.capacity() <= 2 * BULK {
                    SPARE.set(std::mem::take(&mut self.input));
                } else if self.input.is_empty() {
                    self.input = BytesMut::new();
                }
                Poll::Pending
            }
        }
    }

    /// Writes everything that waits. Cancel safe: what was written is accounted for.
    pub async fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() || self.unflushed {
            std::future::poll_fn(|cx| {
                let before = self.output.len();
                match self.poll_write(cx) {
                    Poll::Pending if self.output.is_empty() && !self.unflushed => Poll::Ready(Ok(())),
                    Poll::Ready(outcome) => Poll::Ready(outcome.map(|_| ())),
                    Poll::Pending if self.output.len() != before => Poll::Ready(Ok(())),
                    Poll::Pending => Poll::Pending,
                }
            })
            .await?;
        }
        Ok(())
    }

    /// Reads once. `Ok(false)` at end of stream. Cancel safe: bytes that were read are in `input`.
    pub async fn fill(&mut self) -> io::Result<bool> {
        std::future::poll_fn(|cx| self.poll_read(cx)).await?;
        Ok(!self.ended)
    }

    /// Says that nothing more will be written.
    pub async fn shutdown(&mut self) -> io::Result<()> {
        self.flush().await?;
        tokio::io::AsyncWriteExt::shutdown(&mut self.io).await
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    fn side() -> (DuplexStream, Side<DuplexStream>) {
        let (near, far) = duplex(1 << 20);
        (near, Side::new(far, BytesMut::new()))
    }

    async fn waits(side: &mut Side<DuplexStream>) {
        assert!(std::future::poll_fn(|cx| Poll::Ready(side.poll_read(cx).is_pending())).await);
    }

    #[tokio::test]
    async fn who_waits_has_no_buffer_and_what_was_read_stays() {
        let (mut one, mut first) = side();
        let (mut other, mut second) = side();
        let mut kept = Vec::new();
        for round in 0..200u8 {
            waits(&mut first).await;
            assert_eq!(first.input.capacity(), 0);
            // Both by way of the same buffer, of sizes below, at and above what is read at once.
            let size = [1, 100, READ - 1, READ, READ + 1, BULK, 3 * BULK][usize::from(round) % 7];
            one.write_all(&vec![round; size]).await.unwrap();
            other.write_all(&vec![!round; size]).await.unwrap();
            for (side, byte) in [(&mut first, round), (&mut second, !round)] {
                while side.input.len() < size {
                    assert!(side.fill().await.unwrap());
                }
                assert!(side.input.iter().all(|read| *read == byte));
            }
            kept.push((round, first.input.split_to(size).freeze()));
            // A part stays behind, and waits in its own buffer.
            let part = second.input.split_off(size - 1);
            kept.push((!round, std::mem::replace(&mut second.input, part).freeze()));
            waits(&mut second).await;
            assert_eq!(second.input[..], [!round]);
            second.input.clear();
        }
        assert!(kept.iter().all(|(byte, bytes)| bytes.iter().all(|read| read == byte)));
    }
}
