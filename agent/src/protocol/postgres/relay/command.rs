//! What the gate is asked to judge, made of the client's frames.

use std::{fmt::Write as _, sync::Arc};

use bytes::Bytes;

use super::{Relay, Stop};
use crate::{
    action::{Action, ProtocolId, Target, Verb},
    mask::MaskSet,
    policy::Remembered,
    protocol::postgres::{
        codec::{Bind, Format, Frame, Malformed},
        prepared::{Described, Memo, Portal, Prepared},
    },
    session::{Command, Lasting, Refusal, SessionError, Standing},
    sql::{StatementInfo, StatementKind},
    wire::Charge,
};

impl Relay {
    /// Within a transaction whose state is known, what a plain statement changes lasts only once another command has
    /// committed it. Any statement that calls code, changes the schema, or may end the transaction is not plain.
    pub(super) fn lasting(&self, action: &Action, statements: &[StatementInfo]) -> Lasting {
        let is_plain = |statement: &StatementInfo| {
            matches!(statement.kind, StatementKind::Query | StatementKind::Change | StatementKind::Empty)
        };
        let is_data = |verb: &Verb| matches!(verb, Verb::Read | Verb::Write | Verb::Delete);
        let waits = self.status == b'T'
            && self.owed.is_empty()
            && statements.iter().all(is_plain)
            && action.parts.iter().all(|(verb, _)| is_data(verb));
        if waits { Lasting::FromCommit } else { Lasting::AtOnce }
    }
}

/// A portal as it would run, or be bound where `execute` is empty.
pub(super) fn portal_command(portal: &Portal, execute: &[u8], bytes: Bytes) -> Command {
    let statement = &portal.statement;
    let mut hash = blake3::Hasher::new();
    for part in [&statement.essence[..], &portal.essence[..], execute] {
        hash.update(&(part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    Command {
        action: portal.judged().0.clone(),
        bytes,
        text: Arc::clone(&portal.text),
        shape: Arc::clone(&statement.shape).into(),
        hash: *hash.finalize().as_bytes(),
        standing: Standing::New,
        lasting: Lasting::AtOnce,
    }
}

/// A part of a frame, to be kept for long. A small one is copied: it would hold on to all that was read with it, which
/// could then not be used for the next read.
pub(super) fn keep(frame: &Frame, part: &[u8]) -> Bytes {
    const SMALL: usize = 4096;
    if part.len() <= SMALL { Bytes::copy_from_slice(part) } else { frame.bytes().slice_ref(part) }
}

pub(super) fn malformed<T>(read: Result<T, Malformed>) -> Result<T, Stop> {
    read.map_err(|error| SessionError::Client(error.to_string()))
}

pub(super) fn unresolved(action: &Action) -> bool {
    action.parts.iter().any(|(_, target)| target.as_str().starts_with("?.") || target.as_str().starts_with("fn:?."))
}

pub(super) fn missing(message: String) -> Refusal {
    Refusal { message, rule: "protocol".into(), hint: None, seq: 0 }
}

pub(super) fn empty_prepared() -> Prepared {
    Prepared {
        sql: "".into(),
        shape: "".into(),
        action: Action::opaque(ProtocolId::Postgres, Target::new("sql:not-utf8")),
        statements: Arc::from([]),
        types: Box::default(),
        essence: Bytes::new(),
        epoch: 0,
        described: Described::default(),
        computed: Memo::default(),
        decided: Remembered::default(),
        barred: None,
        masks: Arc::new(MaskSet::none()),
        last: Memo::default(),
        charge: Charge::default(),
    }
}

/// Parameters for people: texts quoted, binary ones as hex, long ones cut.
pub(super) fn describe_parameters(bind: &Bind<'_>) -> String {
    const LONGEST: usize = 128;
    let mut out = String::new();
    for (i, (format, value)) in bind.parameters.iter().enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        let _ = write!(out, "${} = ", i + 1);
        match (format, value) {
            (_, None) => out.push_str("NULL"),
            (Format::Text, Some(value)) => {
                let shown = &value[..value.len().min(LONGEST)];
                let cut = if shown.len() < value.len() { "…" } else { "" };
                let _ = write!(out, "{:?}{cut}", String::from_utf8_lossy(shown));
            }
            (Format::Binary, Some(value)) => {
                let shown = &value[..value.len().min(LONGEST)];
                let cut = if shown.len() < value.len() { "…" } else { "" };
                let _ = write!(out, "\\x{}{cut}", data_encoding::HEXLOWER.encode(shown));
            }
        }
    }
    out
}
