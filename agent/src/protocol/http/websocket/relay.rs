//! Messages between both sides, after the upgrade: one task for both directions, as in other protocols.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::{
    frames::{self, Event, Kind, Sender, Violation, Walker},
    mask,
};
use crate::{
    mask::{Hits, MaskSet},
    protocol::http::{
        body::{SAMPLE, show},
        masker::MaskError,
        upstream::Keep,
    },
    record::{EventBody, MaskedNote},
    session::{ConnectionCx, DataRight, SessionError, Upstream},
    wire::{Charge, pump::Side},
};

/// How long both sides may take to let go of their connections after the upgrade, and to answer a goodbye.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long they may take to read the last words.
const LAST: Duration = Duration::from_secs(2);
/// A message up to this size is not charged for, in bytes.
const SMALL: usize = 64 << 10;
/// The other side did something that ends it.
const GOING_AWAY: u16 = 1001;
/// It cannot be looked into.
const POLICY: u16 = 1008;
/// It is too large.
const TOO_LARGE: u16 = 1009;
/// We failed.
const FAILED: u16 = 1011;

/// An upgrade that both sides agreed to.
pub struct Channel {
    /// Whose it is.
    pub cx: Arc<ConnectionCx>,
    /// The client's side, once it is there.
    pub client: OnUpgrade,
    /// The upstream's.
    pub upstream: OnUpgrade,
    /// Keeps the upstream's connection.
    pub keep: Keep,
    /// The right to send what the client sends.
    pub right: DataRight,
    /// When the request was sent.
    pub started: Instant,
}

/// What runs until either side ends it.
pub struct Tunnel {
    cx: Arc<ConnectionCx>,
    client: Peer,
    upstream: Peer,
    right: DataRight,
    started: Instant,
    terminated: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Once one side has said goodbye.
    leaving: Option<Pin<Box<tokio::time::Sleep>>>,
    pings: u64,
    no_masks: MaskSet,
    _keep: Keep,
}

struct Peer {
    side: Side<TokioIo<Upgraded>>,
    walker: Walker,
    charge: Charge,
    /// A close was sent to it.
    told: bool,
    messages: u64,
    bytes: u64,
}

/// Who sent something.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Client,
    Upstream,
}

impl Who {
    fn name(self) -> &'static str {
        match self {
            Self::Client => "the workload",
            Self::Upstream => "the upstream",
        }
    }
}

/// Why it ends.
enum Stop {
    /// Both said goodbye, or one did and the other left.
    Done,
    /// A side broke the protocol.
    Broke(Who, Violation),
    /// A side went without a goodbye.
    Left(Who),
    /// What a side sent cannot be looked into.
    Unreadable(Who, MaskError),
    /// There is no memory for what a side sends.
    TooLarge(Who, String),
    /// It cannot be recorded.
    Unrecorded,
    /// Policy, a reviewer or an operator ends it.
    Terminated,
}

impl Channel {
    /// Waits for both sides.
    ///
    /// # Errors
    /// One of them does not come.
    pub async fn open(self) -> Result<Tunnel, SessionError> {
        let both = async { tokio::try_join!(self.client, self.keep.run(self.upstream)) };
        let both = tokio::time::timeout(PATIENCE, both).await;
        let (client, upstream) = both
            .map_err(|_| SessionError::Client("the upgrade was not taken up in time".into()))?
            .map_err(|error| SessionError::Client(format!("the upgrade failed: {error}")))?;
        let limit = self.cx.limits().command;
        let peer = |io, sender| Peer {
            side: Side::new(TokioIo::new(io), BytesMut::new()),
            walker: Walker::new(sender, limit),
            charge: Charge::default(),
            told: false,
            messages: 0,
            bytes: 0,
        };
        Ok(Tunnel {
            terminated: Box::pin(self.cx.terminate.clone().cancelled_owned()),
            cx: self.cx,
            client: peer(client, Sender::Client),
            upstream: peer(upstream, Sender::Server),
            right: self.right,
            started: self.started,
            leaving: None,
            pings: 0,
            no_masks: MaskSet::none(),
            _keep: self.keep,
        })
    }
}

impl Tunnel {
    /// Runs to the end.
    ///
    /// # Errors
    /// It ended badly; who was to be told has been.
    pub async fn run(mut self) -> Result<(), SessionError> {
        let stop = std::future::poll_fn(|task| self.poll(task)).await;
        let (code, to_client, to_upstream) = match &stop {
            Stop::Done => (GOING_AWAY, String::new(), String::new()),
            Stop::Broke(Who::Client, violation) => (violation.code, violation.text.into(), String::new()),
            Stop::Broke(Who::Upstream, violation) => (violation.code, String::new(), violation.text.into()),
            Stop::Left(_) => (GOING_AWAY, String::new(), String::new()),
            Stop::Unreadable(_, error) => (POLICY, error.to_string(), error.to_string()),
            Stop::TooLarge(_, error) => (TOO_LARGE, error.clone(), error.clone()),
            Stop::Unrecorded => (FAILED, "it could not be recorded".into(), String::new()),
            Stop::Terminated => (POLICY, self.cx.ending.get().copied().unwrap_or("terminated").into(), String::new()),
        };
        // Who did nothing wrong is told that the other side is gone.
        let code_for = |side| match &stop {
            Stop::Broke(from, _) | Stop::TooLarge(from, _) if *from != side => GOING_AWAY,
            Stop::Terminated if side == Who::Upstream => GOING_AWAY,
            _ => code,
        };
        let (for_client, for_upstream) = (code_for(Who::Client), code_for(Who::Upstream));
        self.client.say_goodbye(Some(for_client), &to_client, None);
        self.upstream.say_goodbye(Some(for_upstream), &to_upstream, mask_key());
        self.end(&stop, for_client);
        let (client, upstream) = (&mut self.client.side, &mut self.upstream.side);
        let last_words = async { tokio::join!(last_words(client), last_words(upstream)) };
        // Who does not read is not waited for.
        let _ = tokio::time::timeout(LAST, last_words).await;
        match stop {
            Stop::Done => Ok(()),
            Stop::Broke(Who::Client, violation) => Err(SessionError::Client(format!("WebSocket: {violation}"))),
            Stop::Broke(Who::Upstream, violation) => Err(SessionError::Upstream(format!("WebSocket: {violation}"))),
            Stop::Left(Who::Client) => Err(SessionError::Client("WebSocket: it left without a close".into())),
            Stop::Left(Who::Upstream) => Err(SessionError::Upstream("WebSocket: it left without a close".into())),
            Stop::Unreadable(from, error) => {
                Err(SessionError::Ended(format!("WebSocket: {} sent what cannot be looked into: {error}", from.name())))
            }
            Stop::TooLarge(from, error) => Err(SessionError::Ended(format!("WebSocket: {}: {error}", from.name()))),
            Stop::Unrecorded => Err(SessionError::Enforcer("a message could not be recorded".into())),
            Stop::Terminated => Err(SessionError::Ended((*self.cx.ending.get().unwrap_or(&"terminated")).into())),
        }
    }

    fn poll(&mut self, task: &mut Context<'_>) -> Poll<Stop> {
        if self.terminated.as_mut().poll(task).is_ready() {
            return Poll::Ready(Stop::Terminated);
        }
        if let Some(leaving) = &mut self.leaving
            && leaving.as_mut().poll(task).is_ready()
        {
            return Poll::Ready(Stop::Done);
        }
        loop {
            let mut progress = false;
            for from in [Who::Client, Who::Upstream] {
                match self.peer(from).side.poll_write(task) {
                    Poll::Ready(Ok(wrote)) => progress |= wrote,
                    Poll::Ready(Err(_)) => return Poll::Ready(self.left(from)),
                    Poll::Pending => {}
                }
            }
            for from in [Who::Client, Who::Upstream] {
                match self.step(from, task) {
                    Ok(stepped) => progress |= stepped,
                    Err(stop) => return Poll::Ready(stop),
                }
            }
            let over = [&self.client, &self.upstream].iter().all(|peer| peer.walker.is_closed() || peer.side.ended);
            if over && self.client.side.output.is_empty() && self.upstream.side.output.is_empty() {
                return Poll::Ready(Stop::Done);
            }
            if !progress {
                return Poll::Pending;
            }
        }
    }

    /// Takes what one side sent, and reads more of it. Says whether anything changed.
    fn step(&mut self, from: Who, task: &mut Context<'_>) -> Result<bool, Stop> {
        let mut progress = false;
        loop {
            // Who does not read what is for it stops the other side, and itself.
            let queue = self.cx.limits().queue;
            if self.client.side.output.len() > queue || self.upstream.side.output.len() > queue {
                return Ok(progress);
            }
            let peer = self.peer(from);
            let Some(event) = peer.next().map_err(|violation| Stop::Broke(from, violation))? else { break };
            self.take(from, event)?;
            progress = true;
        }
        self.account(from)?;
        let peer = self.peer(from);
        if peer.side.ended {
            return Ok(progress);
        }
        match peer.side.poll_read(task) {
            Poll::Pending => return Ok(progress),
            Poll::Ready(Ok(())) if !peer.side.ended => {}
            Poll::Ready(_) => {
                peer.side.ended = true;
                let stop = self.left(from);
                // Its goodbye may be on its way to the other side.
                if !matches!(stop, Stop::Done) {
                    return Err(stop);
                }
            }
        }
        Ok(true)
    }

    fn peer(&mut self, from: Who) -> &mut Peer {
        match from {
            Who::Client => &mut self.client,
            Who::Upstream => &mut self.upstream,
        }
    }

    /// A side's socket has ended.
    fn left(&self, from: Who) -> Stop {
        let peer = if from == Who::Client { &self.client } else { &self.upstream };
        if peer.walker.is_closed() || peer.told { Stop::Done } else { Stop::Left(from) }
    }

    /// Counts what is kept of a message that is not whole yet; twice, as it is copied where it is changed.
    fn account(&mut self, from: Who) -> Result<(), Stop> {
        let memory = Arc::clone(&self.cx.memory);
        let peer = self.peer(from);
        let held = peer.walker.held() * 2;
        if held <= SMALL {
            peer.charge = Charge::default();
        } else if held > peer.charge.bytes() {
            peer.charge = Charge::default();
            peer.charge = memory.charge(held).map_err(|over| Stop::TooLarge(from, over.to_string()))?;
        }
        Ok(())
    }

    fn take(&mut self, from: Who, event: Event) -> Result<(), Stop> {
        match event {
            Event::Message(kind, content) => self.message(from, kind, content),
            Event::Ping(content) => {
                self.pings += 1;
                let mask = if from == Who::Upstream { mask_key() } else { None };
                self.send(from, frames::pong(&content, mask));
                Ok(())
            }
            Event::Pong => Ok(()),
            Event::Close(code, reason) => {
                let secrets = self.cx.house.secrets.known();
                let masks = if from == Who::Client { self.cx.request_masks() } else { self.cx.masks() };
                let masked = masks.scrub(reason.as_bytes(), &secrets, &mut Hits::default()).or_text(reason.as_bytes());
                let reason = String::from_utf8_lossy(&masked).into_owned();
                match from {
                    Who::Client => self.upstream.say_goodbye(code, &reason, mask_key()),
                    Who::Upstream => self.client.say_goodbye(code, &reason, None),
                }
                self.leaving.get_or_insert_with(|| Box::pin(tokio::time::sleep(PATIENCE)));
                Ok(())
            }
        }
    }

    /// Masks a message, records it, and sends it on, in this order.
    fn message(&mut self, from: Who, kind: Kind, content: Vec<u8>) -> Result<(), Stop> {
        let secrets = self.cx.house.secrets.known();
        let masked = match from {
            Who::Client => mask::request(content, &self.cx.request_masks(), &secrets),
            Who::Upstream => mask::response(kind, content, &self.cx.masks(), &secrets),
        };
        let (mut content, hits) = masked.map_err(|error| Stop::Unreadable(from, error))?;
        if kind == Kind::Text && std::str::from_utf8(&content).is_err() {
            content = String::from_utf8_lossy(&content).into_owned().into_bytes();
        }
        let peer = self.peer(from);
        peer.messages += 1;
        peer.bytes += content.len() as u64;
        let what = if kind == Kind::Text { "text" } else { "binary" };
        let which = if from == Who::Client { "from" } else { "to" };
        self.record(format!("WebSocket {what} {which} the workload"), &content, content.len() as u64, &hits)
            .map_err(|()| Stop::Unrecorded)?;
        match from {
            Who::Client => self.send(Who::Upstream, frames::message(kind, &content, mask_key())),
            Who::Upstream => self.send(Who::Client, frames::message(kind, &content, None)),
        }
        Ok(())
    }

    fn send(&mut self, to: Who, frame: Vec<u8>) {
        match to {
            Who::Client => self.client.side.output.push(frame.into()),
            Who::Upstream => Upstream::new(&mut self.upstream.side.output).forward_data(self.right, frame.into()),
        }
    }

    fn record(&self, result: String, content: &[u8], bytes: u64, hits: &Hits) -> Result<(), ()> {
        // The workload may have come by a secret; the record never has one.
        let secrets = self.cx.house.secrets.known();
        let content = self.no_masks.scrub(content, &secrets, &mut Hits::default()).or_text(content);
        let mut sample = Vec::new();
        show(&mut sample, &content);
        // A cut may be within a character.
        let text = std::str::from_utf8(&sample).map_or_else(
            |error| if sample.len() == SAMPLE { sample.get(..error.valid_up_to()).unwrap_or_default() } else { &[] },
            str::as_bytes,
        );
        let text = String::from_utf8_lossy(text).into_owned();
        let is_text = !text.is_empty() && !text.contains('\0');
        let body = EventBody::Result {
            seq: self.right.seq(),
            result: result.into(),
            failed: false,
            columns: if is_text { [Arc::from("message")].into() } else { Arc::default() },
            sample: if is_text { vec![vec![Some(text)]] } else { Vec::new() },
            rows: u64::from(is_text),
            bytes,
            masked: MaskedNote {
                count: hits.count,
                detectors: hits.detectors.iter().map(ToString::to_string).collect(),
            },
            duration_us: self.microseconds(),
        };
        self.cx.record(body).map(drop).map_err(drop)
    }

    /// Records how it ended.
    fn end(&self, stop: &Stop, code: u16) {
        let why = match stop {
            Stop::Done => String::new(),
            Stop::Broke(from, violation) => format!(", broken off: {} sent: {violation}", from.name()),
            Stop::Left(from) => format!(", broken off: {} left without a close", from.name()),
            Stop::Unreadable(from, error) => format!(", broken off: {} sent: {error}", from.name()),
            Stop::TooLarge(from, error) => format!(", broken off: {}: {error}", from.name()),
            Stop::Unrecorded => ", broken off: a message could not be recorded".into(),
            Stop::Terminated => format!(", broken off: {}", self.cx.ending.get().unwrap_or(&"terminated")),
        };
        let failed = !why.is_empty();
        let code = if failed { format!(" ({code})") } else { String::new() };
        let result = format!(
            "101 Switching Protocols, WebSocket: {} messages from the workload, {} to it, {} pings{why}{code}",
            self.client.messages, self.upstream.messages, self.pings
        );
        let body = EventBody::Result {
            seq: self.right.seq(),
            result: result.into(),
            failed,
            columns: Arc::default(),
            sample: Vec::new(),
            rows: 0,
            bytes: self.upstream.bytes,
            masked: MaskedNote::default(),
            duration_us: self.microseconds(),
        };
        // A record that fails refuses all that follows.
        let _ = self.cx.record(body);
    }

    fn microseconds(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

impl Peer {
    fn next(&mut self) -> Result<Option<Event>, Violation> {
        self.walker.feed(&mut self.side.input)
    }

    /// The last frame that is sent to it.
    fn say_goodbye(&mut self, code: Option<u16>, reason: &str, mask: Option<[u8; 4]>) {
        if !std::mem::replace(&mut self.told, true) {
            self.side.output.push(Bytes::from(frames::closing(code, reason, mask)));
        }
    }
}

/// Writes what waits and says that nothing more comes; then lets the other side finish, so that it reads all of it.
async fn last_words(side: &mut Side<TokioIo<Upgraded>>) {
    if side.shutdown().await.is_err() {
        return;
    }
    while !side.ended && side.fill().await.is_ok() {
        side.input.clear();
    }
}

/// Not to be guessed (RFC 6455 section 10.3).
fn mask_key() -> Option<[u8; 4]> {
    let mut key = [0; 4];
    // Without random numbers no connection would have come this far; a mask hides nothing from us.
    let _ = aws_lc_rs::rand::fill(&mut key);
    Some(key)
}
