//! What the connections of a lane write in one turn is sent at its end, all of it together.
//!
//! Whoever is written to is woken by the kernel and sleeps again after one message. Sent together, messages find their
//! readers awake: on two busy processors, that spares the kernel a wake-up and a switch for most of them. What is large, and
//! what is written where nobody gathers, is written at once. Failure mode: an error is told by the next write, flush or shutdown, and by reading.

use std::{
    cell::RefCell,
    future::poll_fn,
    io::{self, IoSlice},
    os::fd::AsRawFd,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
};

use nix::{errno::Errno, sys::socket};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::AbortHandle,
};

/// From this length on, bytes are written at once: a copy would cost more than it saves.
const DIRECT: usize = 8 << 10;
/// Most that waits for the end of a turn, or for a peer that does not read, in bytes.
const HELD: usize = 32 << 10;
/// Buffers that a lane keeps for its next turns, each of [`DIRECT`] bytes at most.
const SPARES: usize = 64;

thread_local! {
    static TURN: RefCell<Option<Turn>> = const { RefCell::new(None) };
}

/// What this thread gathers.
#[derive(Default)]
struct Turn {
    writers: Vec<Arc<Writer>>,
    sender: Option<Waker>,
    spares: Vec<Vec<u8>>,
}

/// Sends what is gathered on the thread that polls this, for as long as it is polled. One for each lane; woken by the first
/// that writes, it runs after all that is ready by then.
pub async fn send_gathered() {
    /// Nobody gathers any more.
    struct Installed;
    impl Drop for Installed {
        fn drop(&mut self) {
            let left = TURN.take();
            for writer in left.into_iter().flat_map(|turn| turn.writers) {
                writer.send(&mut writer.lock());
            }
        }
    }
    let mut installed = None;
    let mut writers = Vec::new();
    poll_fn(|task| {
        TURN.with_borrow_mut(|turn| {
            let turn = turn.get_or_insert_default();
            installed.get_or_insert_with(|| Installed);
            turn.sender = Some(task.waker().clone());
            std::mem::swap(&mut turn.writers, &mut writers);
        });
        for writer in writers.drain(..) {
            writer.turn_ends();
        }
        Poll::<()>::Pending
    })
    .await;
}

/// A connection whose writes are gathered.
#[derive(Debug)]
pub struct Gathered {
    read: OwnedReadHalf,
    writer: Arc<Writer>,
}

#[derive(Debug)]
struct Writer {
    io: OwnedWriteHalf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What was written and is not sent.
    out: Vec<u8>,
    /// Sent when the turn ends.
    gathered: bool,
    /// The peer does not read: sent by a task as it does.
    slow: Option<AbortHandle>,
    /// Who waits for all of it to be sent.
    waiting: Option<Waker>,
    failed: Option<io::Error>,
}

impl Gathered {
    /// Gathers what is written to a stream.
    pub fn new(stream: TcpStream) -> Self {
        let (read, io) = stream.into_split();
        Self { read, writer: Arc::new(Writer { io, state: Mutex::default() }) }
    }

    fn put(&self, task: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let length = pieces.iter().map(|piece| piece.len()).sum::<usize>();
        let mut state = self.writer.lock();
        let gathers = length < DIRECT && TURN.with_borrow(Option::is_some);
        if !gathers || state.failed.is_some() || state.out.len() + length > HELD {
            ready!(self.writer.poll_sent(&mut state, task))?;
        }
        if !gathers {
            drop(state);
            return self.writer.poll_write(task, pieces);
        }
        if !state.gathered && state.slow.is_none() {
            state.gathered = true;
            TURN.with_borrow_mut(|turn| {
                let Some(turn) = turn else { return };
                if state.out.capacity() == 0 {
                    state.out = turn.spares.pop().unwrap_or_default();
                }
                turn.writers.push(Arc::clone(&self.writer));
                if let Some(sender) = turn.sender.take() {
                    sender.wake();
                }
            });
        }
        for piece in pieces {
            state.out.extend_from_slice(piece);
        }
        Poll::Ready(Ok(length))
    }
}

impl Writer {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn_ends(self: &Arc<Self>) {
        let mut state = self.lock();
        state.gathered = false;
        if state.slow.is_none() && !self.send(&mut state) {
            self.send_slowly(&mut state);
        }
    }

    /// Sends what the peer takes; whether that is all. What fails has nothing left to send.
    fn send(&self, state: &mut State) -> bool {
        let mut sent = 0;
        let outcome = loop {
            match state.out.get(sent..) {
                None | Some([]) => break Ok(true),
                Some(rest) => match self.io.try_write(rest) {
                    Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                    Ok(count) => sent += count,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(false),
                    Err(error) => break Err(error),
                },
            }
        };
        if let Ok(false) = outcome {
            state.out.drain(..sent);
            return false;
        }
        if let Err(error) = outcome {
            state.failed = Some(error);
        }
        let mut spare = std::mem::take(&mut state.out);
        spare.clear();
        TURN.with_borrow_mut(|turn| {
            if let Some(turn) =
                turn.as_mut().filter(|turn| turn.spares.len() < SPARES && (1..=DIRECT).contains(&spare.capacity()))
            {
                turn.spares.push(spare);
            }
        });
        if let Some(waiting) = state.waiting.take() {
            waiting.wake();
        }
        true
    }

    /// Has the rest sent as the peer reads.
    fn send_slowly(self: &Arc<Self>, state: &mut State) {
        let writer = Arc::clone(self);
        let task = tokio::spawn(async move {
            loop {
                let writable = writer.io.writable().await;
                let mut state = writer.lock();
                if writable.is_err() || writer.send(&mut state) {
                    state.slow = None;
                    return;
                }
            }
        });
        state.slow = Some(task.abort_handle());
    }

    /// Waits until everything is sent.
    fn poll_sent(self: &Arc<Self>, state: &mut State, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        if state.slow.is_none() && !self.send(state) {
            self.send_slowly(state);
        }
        if let Some(error) = state.failed.take() {
            return Poll::Ready(Err(error));
        }
        if state.slow.is_none() {
            return Poll::Ready(Ok(()));
        }
        state.waiting = Some(task.waker().clone());
        Poll::Pending
    }

    fn poll_write(&self, task: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.io.as_ref().poll_write_ready(task))?;
            match self.io.try_write_vectored(pieces) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => return Poll::Ready(outcome),
            }
        }
    }
}

impl AsyncRead for Gathered {
    fn poll_read(mut self: Pin<&mut Self>, task: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.read).poll_read(task, into)
    }
}

impl AsyncWrite for Gathered {
    fn poll_write(self: Pin<&mut Self>, task: &mut Context<'_>, piece: &[u8]) -> Poll<io::Result<usize>> {
        self.put(task, &[IoSlice::new(piece)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.put(task, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Waits for a peer that does not read. What the turn's end will send counts as sent.
    fn poll_flush(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.writer.lock();
        if state.failed.is_some() || state.slow.is_some() {
            return self.writer.poll_sent(&mut state, task);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.writer.poll_sent(&mut self.writer.lock(), task))?;
        let stream: &TcpStream = self.writer.io.as_ref();
        match socket::shutdown(stream.as_raw_fd(), socket::Shutdown::Write) {
            // It is over already.
            Ok(()) | Err(Errno::ENOTCONN) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}

impl Drop for Gathered {
    fn drop(&mut self) {
        let mut state = self.writer.lock();
        match state.slow.take() {
            Some(slow) => slow.abort(),
            // What was flushed is to be sent.
            None => drop(self.writer.send(&mut state)),
        }
        state.out = Vec::new();
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::time::Duration;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        task::yield_now,
        time::timeout,
    };

    use super::*;

    async fn pair() -> (Gathered, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (Gathered::new(near.unwrap()), far.unwrap().0)
    }

    async fn gathering() -> AbortHandle {
        let sender = tokio::spawn(send_gathered()).abort_handle();
        while TURN.with_borrow(Option::is_none) {
            yield_now().await;
        }
        sender
    }

    fn waits(far: &TcpStream) -> bool {
        far.try_read(&mut [0; 64]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    #[tokio::test]
    async fn what_a_turn_writes_is_sent_at_its_end() {
        let _sender = gathering().await;
        let (mut one, mut to_one) = pair().await;
        let (mut other, mut to_other) = pair().await;
        for turn in 0..5u8 {
            one.write_all(&[turn; 10]).await.unwrap();
            other.write_all(&[turn; 20]).await.unwrap();
            one.write_all(&[turn; 10]).await.unwrap();
            one.flush().await.unwrap();
            assert!(waits(&to_one) && waits(&to_other), "sent within turn {turn}");
            let mut read = [9; 20];
            for far in [&mut to_one, &mut to_other] {
                far.read_exact(&mut read).await.unwrap();
                assert_eq!(read, [turn; 20]);
            }
        }
        let spares = TURN.with_borrow(|turn| turn.as_ref().unwrap().spares.len());
        assert_eq!(spares, 2, "buffers are used again");
    }

    #[tokio::test]
    async fn where_nobody_gathers_it_is_sent_at_once() {
        let (mut near, mut far) = pair().await;
        near.write_all(b"at once").await.unwrap();
        assert!(near.writer.lock().out.is_empty());
        let sender = gathering().await;
        near.write_all(b", gathered").await.unwrap();
        assert_eq!(near.writer.lock().out, b", gathered");
        // Whoever gathers is gone before the turn ends.
        sender.abort();
        yield_now().await;
        assert!(TURN.with_borrow(Option::is_none));
        near.write_all(b", at once").await.unwrap();
        assert!(near.writer.lock().out.is_empty());
        let mut read = [0; 26];
        far.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"at once, gathered, at once");
    }

    /// Pieces of every size, to a peer that reads now and then: all come, in order, and what waits is bounded.
    #[tokio::test]
    async fn a_slow_peer_gets_everything_in_order() {
        let _sender = gathering().await;
        let (mut near, mut far) = pair().await;
        let sizes = [1, 100, DIRECT - 1, 5000, 5, DIRECT - 1, 7, DIRECT, 3000, 6000, 3 * HELD, 2];
        let all: Vec<u8> = (0..24 << 20).map(|at: u32| (at / 251 + at) as u8).collect();
        let expected = all.clone();
        let writes = tokio::spawn(async move {
            let (mut rest, mut slow) = (&all[..], false);
            for n in 0.. {
                let piece = rest.len().min(sizes[n % sizes.len()]);
                {
                    let mut write = std::pin::pin!(near.write_all(&rest[..piece]));
                    let waited = futures_util::poll!(write.as_mut());
                    slow |= waited.is_pending();
                    match waited {
                        Poll::Ready(written) => written.unwrap(),
                        Poll::Pending => write.await.unwrap(),
                    }
                }
                if n % 5 == 0 {
                    yield_now().await;
                }
                if n % 17 == 0 {
                    near.flush().await.unwrap();
                    assert!(near.writer.lock().slow.is_none(), "flushed, and the peer has not read");
                }
                assert!(near.writer.lock().out.len() <= HELD);
                rest = &rest[piece..];
                if rest.is_empty() {
                    break;
                }
            }
            assert!(slow, "it was never slow");
            near.shutdown().await.unwrap();
            near
        });
        let mut read = Vec::new();
        let mut buffer = vec![0; 300_000];
        while let Ok(count @ 1..) = far.read(&mut buffer).await {
            read.extend_from_slice(&buffer[..count]);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(read == expected, "{} of {}", read.len(), expected.len());
        writes.await.unwrap();
    }

    #[tokio::test]
    async fn what_was_flushed_is_sent_though_the_connection_is_dropped() {
        let _sender = gathering().await;
        let (mut near, mut far) = pair().await;
        near.write_all(b"last words").await.unwrap();
        near.flush().await.unwrap();
        drop(near);
        let mut read = Vec::new();
        far.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"last words");
    }

    #[tokio::test]
    async fn a_peer_that_never_reads_keeps_nothing_alive() {
        let _sender = gathering().await;
        let (mut near, far) = pair().await;
        let piece = [7; 1000];
        while let Ok(written) = timeout(Duration::from_millis(100), near.write_all(&piece)).await {
            written.unwrap();
        }
        let writer = Arc::downgrade(&near.writer);
        assert!(near.writer.lock().slow.is_some());
        assert!(timeout(Duration::from_millis(50), near.flush()).await.is_err(), "nobody has read it");
        drop(near);
        yield_now().await;
        yield_now().await;
        assert!(writer.upgrade().is_none());
        drop(far);
    }

    #[tokio::test]
    async fn what_fails_is_told_by_the_next() {
        let _sender = gathering().await;
        let (mut near, far) = pair().await;
        socket::setsockopt(&far, socket::sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
        drop(far);
        // The reset has come.
        assert!(near.read(&mut [0; 8]).await.is_err());
        near.write_all(b"to nobody").await.unwrap();
        while near.writer.lock().gathered {
            yield_now().await;
        }
        assert!(near.flush().await.is_err());
        near.write_all(b"to nobody").await.unwrap();
        assert!(near.shutdown().await.is_err());
    }
}
