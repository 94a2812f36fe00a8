//! The log as it grows.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::{Stream, stream};
use tokio::sync::broadcast::{self, error::RecvError};

use super::{
    RecordError,
    read::{self, Events},
    writer::Recorded,
};

/// How many events are read at once when catching up.
const BATCH: usize = 256;

/// Every event from a place on, in order and without a gap. One that falls behind reads the segments until it is back.
pub struct Follower {
    dir: PathBuf,
    /// Sequence number of the event to give next.
    next: u64,
    live: broadcast::Receiver<Recorded>,
    /// Events that were read to catch up, last first.
    backlog: Vec<Recorded>,
    reader: Option<Box<Events>>,
    /// What the channel gave last; what is missing before it is read from the segments first.
    held: Option<Recorded>,
    _following: Following,
}

/// Counted for as long as it is.
pub(super) struct Following(Arc<AtomicUsize>);

impl Following {
    pub(super) fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Follower {
    pub(super) fn new(dir: PathBuf, next: u64, live: broadcast::Receiver<Recorded>, following: Following) -> Self {
        Self { dir, next, live, backlog: Vec::new(), reader: None, held: None, _following: following }
    }

    /// The next event; `None` once the recorder is closed and everything was given. Errors: the log cannot be read, or
    /// retention removed what was still to be given ([`RecordError::Pruned`]). Cancel safe: an event that was not
    /// given is given next time.
    pub async fn next(&mut self) -> Option<Result<Recorded, RecordError>> {
        loop {
            if let Some(event) = self.backlog.pop() {
                return Some(Ok(self.give(event)));
            }
            if let Some(held) = self.held.take() {
                match held.position.0 {
                    seq if seq < self.next => {}
                    seq if seq == self.next => {
                        // Caught up: the reader would begin far back the next time.
                        self.reader = None;
                        return Some(Ok(self.give(held)));
                    }
                    _ => {
                        self.held = Some(held);
                        if let Err(error) = self.catch_up().await {
                            return Some(Err(error));
                        }
                        if !self.backlog.is_empty() {
                            continue;
                        }
                        // The channel had it, so the log has it.
                        let what = "an event that was announced is missing";
                        self.next = self.held.as_ref().map_or(self.next, |held| held.position.0);
                        return Some(Err(RecordError::Damaged { file: "log".into(), offset: 0, what }));
                    }
                }
            }
            match self.live.recv().await {
                // Kept before anything is awaited, so that cancelling loses nothing.
                Ok(event) => self.held = Some(event),
                // The channel dropped some; the next that it gives shows the gap, which is then read.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => match self.catch_up().await {
                    Ok(()) if self.backlog.is_empty() => return None,
                    Ok(()) => {}
                    Err(error) => return Some(Err(error)),
                },
            }
        }
    }

    /// The same as a stream.
    pub fn into_stream(self) -> impl Stream<Item = Result<Recorded, RecordError>> + Send {
        stream::unfold(self, async |mut follower| follower.next().await.map(|item| (item, follower)))
    }

    fn give(&mut self, event: Recorded) -> Recorded {
        self.next = event.position.0 + 1;
        event
    }

    /// Reads a batch of events from the segments, beginning with the next one.
    async fn catch_up(&mut self) -> Result<(), RecordError> {
        let (dir, next, reader) = (self.dir.clone(), self.next, self.reader.take());
        // A cancelled call loses the reader, not events: it is opened anew at `next`.
        let read = move || {
            let mut reader = match reader {
                Some(reader) => reader,
                None => Box::new(read::events_from(dir, next)?),
            };
            let mut batch = Vec::new();
            while batch.len() < BATCH {
                match reader.next() {
                    Some(event) => batch.push(event?),
                    None => break,
                }
            }
            Ok::<_, RecordError>((batch, reader))
        };
        let (mut batch, reader) = match tokio::task::spawn_blocking(read).await.map_err(|_| RecordError::Closed)? {
            Err(RecordError::Pruned { from, to }) => {
                // Told once; then it goes on with what is left.
                self.next = to + 1;
                return Err(RecordError::Pruned { from, to });
            }
            other => other?,
        };
        batch.retain(|event| event.position.0 >= self.next);
        if let Some(first) = batch.first()
            && first.position.0 > self.next
        {
            let (from, to) = (self.next, first.position.0 - 1);
            self.next = first.position.0;
            return Err(RecordError::Pruned { from, to });
        }
        batch.reverse();
        // A reader at the end may be stale by the next time.
        self.reader = (batch.len() == BATCH).then_some(reader);
        self.backlog = batch;
        Ok(())
    }
}
