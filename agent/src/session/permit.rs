//! The only ways to an upstream: a [`Permit`], which owns the bytes that were judged, an [`Inert`] frame from an
//! allowlist, and the data that a permitted command asks for ([`DataRight`]).

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    action::{Action, Facts},
    hold::HoldRequest,
    wire::OutQueue,
};

/// The right to send exactly these bytes, once. Only the gate makes one.
#[must_use = "a permit that is not forwarded was decided and recorded for nothing"]
#[derive(Debug)]
pub struct Permit {
    pub(super) bytes: Bytes,
    pub(super) seq: u64,
}

impl Permit {
    /// Number of the command within the connection; 0 for a preparation, which is not counted as a command.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Gives the permit up, for a protocol whose library writes the bytes: whether these are the ones that were judged.
    #[must_use = "only what was judged may be sent"]
    pub fn covers(self, bytes: &[u8]) -> bool {
        self.bytes == bytes
    }

    /// The right to send the data that this command reads from the client (COPY FROM STDIN).
    pub fn data_right(&self) -> DataRight {
        DataRight { seq: self.seq }
    }
}

/// The right to send the data of one permitted command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataRight {
    seq: u64,
}

impl DataRight {
    /// The command that it belongs to.
    pub fn seq(self) -> u64 {
        self.seq
    }
}

/// A frame that does nothing by itself: constants and session bookkeeping of a protocol. Each protocol makes its own from
/// constants or from fields it has validated, and says in its docs which.
#[derive(Clone, Debug)]
pub struct Inert(Bytes);

impl Inert {
    /// Declares bytes inert. Never with bytes of which a backend would run any part.
    pub fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

/// What goes to the upstream.
#[derive(Debug)]
pub struct Upstream<'a> {
    out: &'a mut OutQueue,
}

impl<'a> Upstream<'a> {
    /// Over the queue of the upstream's socket.
    pub fn new(out: &'a mut OutQueue) -> Self {
        Self { out }
    }

    /// Sends what was judged, to the byte.
    pub fn forward(&mut self, permit: Permit) {
        self.out.push(permit.bytes);
    }

    /// Sends an inert frame.
    pub fn forward_inert(&mut self, frame: Inert) {
        self.out.push(frame.0);
    }

    /// Sends data of a permitted command.
    pub fn forward_data(&mut self, _right: DataRight, bytes: Bytes) {
        self.out.push(bytes);
    }
}

/// A command was not permitted. The text may be shown to the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What was refused and why, in one sentence.
    pub message: String,
    /// The rule that decided.
    pub rule: Arc<str>,
    /// What the agent or its operator can do.
    pub hint: Option<String>,
    /// Number of the command, if it was recorded as one.
    pub seq: u64,
}

/// A command before the gate.
#[derive(Debug)]
pub struct Command {
    /// What it would do.
    pub action: Action,
    /// The bytes that would go upstream.
    pub bytes: Bytes,
    /// Its text for people: what the record, a reviewer and a refusal show.
    pub text: Arc<str>,
    /// The command with its literals removed, for grants.
    pub shape: Shape,
    /// BLAKE3 over everything that decides what will run: for one frame its bytes, for a command of several frames all
    /// their essential parts.
    pub hash: [u8; 32],
    /// A reviewer has approved this very command before and it only goes on (further rows of one portal).
    pub standing: Standing,
    /// Since when what it changes lasts.
    pub lasting: Lasting,
}

/// A command without what differs from one of its kind to the next.
#[derive(Clone, Debug)]
pub enum Shape {
    /// As it was found.
    Text(Arc<str>),
    /// A request of HTTP, whose facts tell it to the few who ask.
    OfRequest,
}

impl Shape {
    /// In words, for a command that does this.
    pub(super) fn of(&self, action: &Action) -> Arc<str> {
        match (self, &action.facts) {
            (Self::Text(text), _) => Arc::clone(text),
            (Self::OfRequest, Facts::Http(facts)) => facts.shape().into(),
            // No grant is for it.
            (Self::OfRequest, _) => "".into(),
        }
    }
}

impl From<Arc<str>> for Shape {
    fn from(text: Arc<str>) -> Self {
        Self::Text(text)
    }
}

/// Since when what a command changes lasts, whatever becomes of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasting {
    /// As soon as it runs, for all we know. What lasts only then is made to last by it, too.
    AtOnce,
    /// Only once a later command of the same connection has committed it; that one is [`Lasting::AtOnce`].
    FromCommit,
}

/// Whether a command was approved before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is new.
    New,
    /// It continues one that was permitted.
    Continues,
}

/// A command that waits, and what the client should be told.
#[derive(Clone, Debug)]
pub struct HoldNotice {
    /// Id of the hold.
    pub id: Arc<str>,
    /// Who may decide.
    pub reviewers: Vec<String>,
    /// How long it waits.
    pub expires: std::time::Duration,
    /// Why it waits.
    pub reason: Arc<str>,
    /// The request, for estimates.
    pub request: Arc<HoldRequest>,
}
