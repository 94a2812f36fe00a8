//! The relay: one task per connection, both directions, after both logins are done.
//!
//! Frames from the client are cut, classified and given to the gate; frames from the upstream are matched with what it
//! owes ([`pending`]), masked and passed. The loop never waits for one side only: a hold leaves responses flowing, a
//! slow client stops upstream reads, a slow upstream stops client reads. Anything out of order ends the connection.

mod answer;
mod client;
mod command;
mod origin;
mod pending;
mod rows;
mod server;
pub(super) mod texts;

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::WaitForCancellationFutureOwned;

use self::{pending::Expect, texts::Texts};
use super::{
    catalog::Catalogs,
    codec::{self, Frame},
    deny::{self, Message},
    flux::Changes,
    mask::Masker,
    names::{NameState, TransactionEnd},
    prepared::Registry,
};
use crate::{
    session::{BoxIo, ConnectionCx, Ended, Gate, Inert, Permit, Refusal, SessionError, Upstream},
    wire::pump::Side,
};

/// From so many bytes on, others are not kept waiting while they are looked into: reading a statement takes a tenth of a
/// microsecond for each.
const LONG: usize = 256 << 10;

/// A connection between two logged-in sides.
pub struct Relay {
    cx: Arc<ConnectionCx>,
    gate: Gate,
    client: Side<BoxIo>,
    upstream: Side<BoxIo>,
    catalogs: Arc<Catalogs>,
    names: NameState,
    registry: Registry,
    owed: VecDeque<Expect>,
    /// The pipeline failed: frames of the client are dropped up to its Sync, as the upstream does.
    skipping: bool,
    /// Status of the last ReadyForQuery: `I`, `T` or `E`.
    status: u8,
    /// How the last transaction ended, if a tag told.
    ending: TransactionEnd,
    wait: Option<Wait>,
    /// Upstream frames wait for a catalogue.
    upstream_wait: Option<(BoxFuture<'static, ()>, Frame)>,
    terminated: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Cancel requests of the client.
    cancelled: mpsc::Receiver<oneshot::Sender<Cancelled>>,
    /// What commands under way change of what names mean.
    changes: Changes,
    /// A reading of the catalogue was waited for; what waited is judged now, whatever came of it.
    read_for: bool,
    /// The client has said goodbye.
    leaving: bool,
    masker: Masker,
    texts: Texts,
}

/// Why the client's frames stand still.
enum Wait {
    /// The gate has not answered.
    Gate { answer: BoxFuture<'static, Result<Permit, Refusal>>, then: Box<client::Then> },
    /// Names did not resolve; the frame is looked at again with a newer catalogue.
    Catalog { refreshed: BoxFuture<'static, ()>, frame: Frame },
}

/// What a cancel request met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// A command that was held. It is withdrawn, and nothing upstream is meant.
    Held,
    /// None that waits: the upstream may run one.
    Nothing,
}

enum Step {
    Io,
    Cancelled(oneshot::Sender<Cancelled>),
    Terminate,
    Answered(Result<Permit, Refusal>, Box<client::Then>),
    Refreshed(Frame),
    UpstreamRefreshed(Frame),
}

/// How the loop goes on.
enum Next {
    Turn,
    /// A frame of the client that waited is judged.
    Again(Frame),
    Over,
}

/// Whether the tables of a description were looked for in a reading that is newer than it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    NotYet,
    All,
}

/// Why the relay stops.
type Stop = SessionError;

impl Relay {
    /// Over two sides whose logins are complete.
    pub fn new(
        cx: Arc<ConnectionCx>,
        gate: Gate,
        client: Side<BoxIo>,
        upstream: Side<BoxIo>,
        catalogs: Arc<Catalogs>,
        names: NameState,
        cancelled: mpsc::Receiver<oneshot::Sender<Cancelled>>,
    ) -> Self {
        let changes = Changes::new(Arc::clone(&catalogs.flux));
        let terminated = Box::pin(cx.terminate.clone().cancelled_owned());
        let masker = Masker { masks: cx.masks(), secrets: cx.house.secrets.known() };
        Self {
            cx,
            gate,
            client,
            upstream,
            catalogs,
            names,
            registry: Registry::default(),
            owed: VecDeque::new(),
            skipping: false,
            status: b'I',
            ending: TransactionEnd::Committed,
            wait: None,
            upstream_wait: None,
            terminated,
            cancelled,
            changes,
            read_for: false,
            leaving: false,
            masker,
            texts: Texts::default(),
        }
    }

    /// Runs to the end of the connection.
    pub async fn run(self) -> Result<Ended, SessionError> {
        let (mut relay, outcome) = Box::new(self).relay().await;
        relay.finish(&outcome);
        if let Err(error) = &outcome {
            relay.last_words(error).await;
        }
        let ended = Ended { bytes_in: relay.client.read_total(), bytes_out: relay.client.output.total() };
        outcome.map(|()| ended)
    }

    async fn relay(mut self: Box<Self>) -> (Box<Self>, Result<(), Stop>) {
        loop {
            let come = |input: &[u8]| if codec::declared(input) <= input.len() { input.len() } else { 0 };
            let length = come(&self.client.input).max(come(&self.upstream.input));
            let drained;
            (self, drained) = self.aside(length, Self::drain).await;
            let next = match drained {
                Ok(()) => self.next().await,
                Err(stop) => Err(stop),
            };
            match next {
                Ok(Next::Turn) => {}
                Ok(Next::Again(frame)) => {
                    let judged;
                    (self, judged) = self.aside(frame.bytes().len(), |relay| relay.client_frame_again(frame)).await;
                    if judged.is_err() {
                        return (self, judged);
                    }
                }
                Ok(Next::Over) => return (self, Ok(())),
                Err(stop) => return (self, Err(stop)),
            }
        }
    }

    /// Does what it is for; where so many bytes are to be looked into that it takes long, on a thread of its own: others
    /// share this one.
    async fn aside<T: Send + 'static>(
        mut self: Box<Self>,
        length: usize,
        work: impl FnOnce(&mut Self) -> T + Send + 'static,
    ) -> (Box<Self>, T) {
        if length < LONG {
            let done = work(&mut self);
            return (self, done);
        }
        let worked = tokio::task::spawn_blocking(move || {
            let done = work(&mut self);
            (self, done)
        });
        match worked.await {
            Ok(worked) => worked,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime ends, and this with it.
                Err(_) => std::future::pending().await,
            },
        }
    }

    fn drain(&mut self) -> Result<(), Stop> {
        self.drain_upstream()?;
        self.drain_client()
    }

    /// Waits for what can happen, and does it.
    async fn next(&mut self) -> Result<Next, Stop> {
        if self.upstream.ended {
            return self.upstream_gone().await.map(|()| Next::Over);
        }
        if self.client.ended && !self.leaving {
            self.leave();
        }
        match std::future::poll_fn(|cx| self.poll_step(cx)).await? {
            Step::Io => {}
            Step::Cancelled(asker) => {
                // Who asked may not wait for it any more.
                let _ = asker.send(self.cancel_wait());
            }
            Step::Terminate => {
                return Err(SessionError::Ended((*self.cx.ending.get().unwrap_or(&"terminated")).into()));
            }
            Step::Answered(answer, then) => self.answered(answer, *then)?,
            Step::Refreshed(frame) => {
                self.names.rechecked();
                self.read_for = true;
                return Ok(Next::Again(frame));
            }
            Step::UpstreamRefreshed(frame) => {
                self.observe();
                self.described(frame, Known::All)?;
            }
        }
        Ok(Next::Turn)
    }

    /// What can happen next. Termination comes first, so that the recorded cause is always the same.
    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Result<Step, Stop>> {
        if self.terminated.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(Step::Terminate));
        }
        if let Poll::Ready(Some(asker)) = self.cancelled.poll_recv(cx) {
            return Poll::Ready(Ok(Step::Cancelled(asker)));
        }
        match &mut self.wait {
            Some(Wait::Gate { answer, .. }) => {
                if let Poll::Ready(answer) = answer.as_mut().poll(cx)
                    && let Some(Wait::Gate { then, .. }) = self.wait.take()
                {
                    return Poll::Ready(Ok(Step::Answered(answer, then)));
                }
            }
            Some(Wait::Catalog { refreshed, .. }) => {
                if refreshed.as_mut().poll(cx).is_ready()
                    && let Some(Wait::Catalog { frame, .. }) = self.wait.take()
                {
                    return Poll::Ready(Ok(Step::Refreshed(frame)));
                }
            }
            None => {}
        }
        if let Some((refreshed, _)) = &mut self.upstream_wait
            && refreshed.as_mut().poll(cx).is_ready()
            && let Some((_, frame)) = self.upstream_wait.take()
        {
            return Poll::Ready(Ok(Step::UpstreamRefreshed(frame)));
        }
        let mut moved = false;
        moved |= self.client.poll_write(cx)?.is_ready();
        moved |= self.upstream.poll_write(cx)?.is_ready();
        let queue = self.cx.limits().queue;
        if self.client.output.len() < queue && self.upstream_wait.is_none() {
            moved |= self.upstream.poll_read(cx)?.is_ready();
        }
        // While the client must wait, a little is read all the same, so that its going away is seen.
        let stalled = self.client_stalled();
        if !stalled || self.client.input.len() < queue {
            match self.client.poll_read(cx) {
                Poll::Ready(Ok(())) => moved = true,
                Poll::Ready(Err(_)) => {
                    // A reset is a goodbye without words.
                    self.client.ended = true;
                    moved = true;
                }
                Poll::Pending => {}
            }
        }
        if moved { Poll::Ready(Ok(Step::Io)) } else { Poll::Pending }
    }

    fn client_stalled(&self) -> bool {
        self.wait.is_some()
            || self.upstream.output.len() >= self.cx.limits().queue
            || self.owed.len() >= self.cx.limits().pipeline
            || self.owed.back().is_some_and(|e| match e {
                Expect::Query(op) | Expect::Execute { op, .. } => op.awaits_copy_start(),
                _ => false,
            })
    }

    fn drain_client(&mut self) -> Result<(), Stop> {
        if self.wait.is_none() && self.upstream.output.is_empty() {
            self.client.give_room_back();
        }
        if !self.client.input.is_empty() {
            self.mask_by_now();
        }
        while !self.leaving && !self.client_stalled() {
            let limits = self.cx.limits();
            let (command, bulk) = (limits.command, limits.bulk);
            if let Some(&tag) = self.client.input.first()
                && !codec::FROM_CLIENT.contains(&tag)
            {
                // Before its length is waited for: that may be any.
                return Err(SessionError::Client(format!("a frame of unknown type {:?} came", char::from(tag))));
            }
            let cap = |tag| if tag == b'd' { bulk } else { command };
            match codec::cut(&mut self.client.input, cap) {
                Ok(None) => {
                    let declared = codec::declared(&self.client.input);
                    return Ok(self.client.make_room(declared, &self.cx.memory)?);
                }
                Ok(Some(frame)) => self.client_frame(frame)?,
                Err(error) => return Err(SessionError::Client(error.to_string())),
            }
        }
        Ok(())
    }

    /// For what is judged next: masks of the policy in force, and all secrets that are known.
    fn mask_by_now(&mut self) {
        self.masker.masks = self.cx.masks();
        self.masker.secrets = self.cx.house.secrets.known();
    }

    fn drain_upstream(&mut self) -> Result<(), Stop> {
        if self.client.output.is_empty() {
            self.upstream.give_room_back();
        }
        while self.upstream_wait.is_none() {
            if self.upstream.input.first() == Some(&b'D') {
                self.pass_rows()?;
            }
            if !self.upstream_one()? {
                let declared = codec::declared(&self.upstream.input);
                return Ok(self.upstream.make_room(declared, &self.cx.memory)?);
            }
        }
        Ok(())
    }

    /// The first frame of the upstream, if all of it has come.
    fn upstream_one(&mut self) -> Result<bool, Stop> {
        let cap = self.cx.limits().response;
        match codec::cut(&mut self.upstream.input, |_| cap) {
            Ok(None) => Ok(false),
            Ok(Some(frame)) => self.upstream_frame(frame).map(|()| true),
            Err(error) => Err(SessionError::Upstream(error.to_string())),
        }
    }

    /// The client will say nothing more: what waits for a reviewer is withdrawn, the rest is answered.
    fn leave(&mut self) {
        self.leaving = true;
        self.wait = None;
        let mut out = BytesMut::new();
        codec::put(&mut out, b'X', |_| {});
        self.upstream_queue().forward_inert(Inert::new(out.freeze()));
    }

    /// A cancel request while a command waits: it is withdrawn.
    fn cancel_wait(&mut self) -> Cancelled {
        if let Some(Wait::Gate { then, .. }) = self.wait.take_if(|wait| matches!(wait, Wait::Gate { .. })) {
            let refusal = Refusal {
                message: "canceling statement due to user request".into(),
                rule: "cancelled".into(),
                hint: None,
                seq: 0,
            };
            self.refuse(refusal, then.in_pipeline());
            return Cancelled::Held;
        }
        Cancelled::Nothing
    }

    async fn upstream_gone(&mut self) -> Result<(), Stop> {
        if self.leaving && self.upstream.input.is_empty() {
            // Whether the client still listens or not does not matter any more.
            let _ = self.client.flush().await;
            return Ok(());
        }
        Err(SessionError::Upstream("the upstream closed the connection".into()))
    }

    /// Records what never got its answer.
    fn finish(&mut self, outcome: &Result<(), Stop>) {
        self.wait = None;
        // With nothing under way, the upstream rolls back what is open.
        if self.owed.is_empty() && self.changes.end() {
            self.catalogs.invalidate();
        }
        for mut expect in std::mem::take(&mut self.owed) {
            if let Some(op) = expect.op_mut() {
                op.tally.failed = true;
                op.note(if outcome.is_ok() { "the client went away" } else { "the connection ended" });
            }
            self.record_end(expect);
        }
    }

    fn record_end(&self, expect: Expect) {
        if let Expect::Query(op) | Expect::Function(op) | Expect::Execute { op, .. } = expect {
            self.record_result(*op);
        }
    }

    fn record_result(&self, op: pending::Op) {
        // The command itself is on record; without this line it is one whose end is not known.
        if self.cx.record(op.result()).is_err() {
            self.cx.end("the record cannot be written");
        }
    }

    /// Tells the client why the connection ends, if it still listens.
    async fn last_words(&mut self, error: &SessionError) {
        let message = match error {
            SessionError::Client(why) => Message::fatal(deny::PROTOCOL, format!("portcullis: {why}")),
            SessionError::Limit(over) => Message::fatal(deny::MEMORY, format!("portcullis: {over}")),
            SessionError::Ended(why) => Message::fatal(deny::SHUTDOWN, format!("portcullis: {why}")),
            SessionError::Upstream(_) => Message::fatal(deny::LOST, "portcullis: the upstream connection was lost"),
            SessionError::Enforcer(_) => Message::fatal("XX000", "portcullis: the enforcer failed; nothing was passed"),
            SessionError::Io(_) => return,
        };
        self.client.output.push(message.encode());
        let _ = tokio::time::timeout(Duration::from_secs(2), self.client.shutdown()).await;
    }

    fn upstream_queue(&mut self) -> Upstream<'_> {
        Upstream::new(&mut self.upstream.output)
    }

    /// Brings names up to date. What is in flux is asked for first: what is not any more, the reading shows.
    fn observe(&mut self) {
        let flux = self.catalogs.flux.load();
        if let Some(catalog) = self.catalogs.current() {
            self.names.observe(&catalog, &flux);
        }
    }

    /// A reading of the catalogue that is at most so old.
    fn reading(&self, age: Duration) -> BoxFuture<'static, ()> {
        let (catalogs, cx) = (Arc::clone(&self.catalogs), Arc::clone(&self.cx));
        Box::pin(async move { catalogs.refresh(&cx, age).await })
    }

    fn tell(&mut self, bytes: Bytes) {
        self.client.output.push(bytes);
    }
}
