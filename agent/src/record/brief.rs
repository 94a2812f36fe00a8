//! The short form of the events that come most often.
//!
//! A command and its result repeat who and where their connection is, in every event. Once a segment has an event of a
//! connection in full, as JSON, further commands and results of it are kept in this form, which is less than half as
//! long: a byte that tells the kind, the time as in JSON, the connection's number, then the fields in the order of
//! [`EventBody`]. Numbers are LEB128; texts have their length before them; what is absent is a zero byte.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{DecisionNote, Event, EventBody, MaskedNote};
use crate::action::{PromptRef, Target, Verb};

/// What JSON begins with, and where the time follows in either form.
const JSON_STAMP: &[u8] = b"{\"timestamp\":\"";
const STAMP: usize = STAMP_BLANK.len();
/// What stands in the place of the time until the recorder knows it.
pub(super) const STAMP_BLANK: &str = "0000-00-00T00:00:00.000000Z";

const COMMAND: u8 = 1;
const RESULT: u8 = 2;
/// A command that belongs to a turn, which stands at its end.
const PROMPTED: u8 = 3;

/// The segment that has an event of a connection in full.
#[derive(Debug, Default)]
pub struct Told(AtomicU64);

impl Told {
    pub(super) fn is(&self, segment: u64) -> bool {
        self.0.load(Ordering::Acquire) == segment
    }

    /// Called while nothing else can be appended.
    pub(super) fn set(&self, segment: u64) {
        self.0.store(segment, Ordering::Release);
    }
}

/// Whether an event in full tells what short ones of its connection leave out.
pub(super) fn tells(body: &EventBody) -> bool {
    matches!(body, EventBody::Connect { .. } | EventBody::Command { .. } | EventBody::Result { .. })
}

/// Where the time of an event is, in either form.
pub(super) fn stamp(bytes: &[u8]) -> std::ops::Range<usize> {
    let start = if bytes.first() == Some(&b'{') { JSON_STAMP.len() } else { 1 };
    start..start + STAMP
}

/// Writes an event of a connection in short, its time left blank. `None` where it has no short form; what was written is then
/// to be forgotten.
pub(super) fn write(connection: u64, body: &EventBody, out: &mut Vec<u8>) -> Option<()> {
    let out = Out(out);
    match body {
        EventBody::Command { seq, command, hash, action, decision, hold, waited_ms, prompt_ref } => {
            let mut bytes = [0; 32];
            data_encoding::HEXLOWER.decode_mut(hash.as_bytes(), &mut bytes).ok().filter(|n| *n == bytes.len())?;
            let (hold, prompt_ref) = (hold.as_deref(), prompt_ref.as_ref());
            let waited_ms = *waited_ms;
            let command = Decided { seq: *seq, command, hash: &bytes, action, decision, hold, waited_ms, prompt_ref };
            command.write(connection, out.0);
        }
        EventBody::Result { seq, result, failed, columns, sample, rows, bytes, masked, duration_us } => {
            let (sample, rows, bytes) = (Sample::Rows(sample), *rows, *bytes);
            let (seq, failed, duration_us) = (*seq, *failed, *duration_us);
            Resulted { seq, result, failed, columns, sample, rows, bytes, masked, duration_us }
                .write(connection, out.0);
        }
        _ => return None,
    }
    Some(())
}

/// An [`EventBody::Command`] in parts that somebody else has.
#[derive(Clone, Copy, Debug)]
pub struct Decided<'a> {
    /// Number within the connection.
    pub seq: u64,
    /// Its text.
    pub command: &'a str,
    /// BLAKE3 of the bytes that are forwarded.
    pub hash: &'a [u8; 32],
    /// Verb and target of each part.
    pub action: &'a [(Verb, Target)],
    /// The decision.
    pub decision: &'a DecisionNote,
    /// Id of the hold, if it waited.
    pub hold: Option<&'a str>,
    /// How long it waited, in milliseconds.
    pub waited_ms: Option<u64>,
    /// The turn that it belongs to.
    pub prompt_ref: Option<&'a PromptRef>,
}

impl Decided<'_> {
    /// As [`write`].
    fn write(&self, connection: u64, out: &mut Vec<u8>) {
        let mut out = Out(out);
        out.head(if self.prompt_ref.is_some() { PROMPTED } else { COMMAND }, connection);
        out.number(self.seq);
        out.text(self.command);
        out.0.extend_from_slice(self.hash);
        out.each(self.action, |out, (verb, target)| {
            out.text(verb.as_str());
            out.text(target.as_str());
        });
        out.text(&self.decision.effect);
        out.text(&self.decision.rule);
        out.each(&self.decision.reviewers, |out, reviewer| out.text(reviewer));
        out.maybe(self.decision.reason.as_deref(), Out::text);
        out.maybe(self.hold, Out::text);
        out.maybe(self.waited_ms, |out, waited| out.number(waited));
        if let Some(prompt) = self.prompt_ref {
            out.each(&prompt.turns, |out, turn| out.text(turn));
            out.number(u64::from(prompt.by_trace));
        }
    }

    /// The same on its own.
    fn to_body(self) -> EventBody {
        EventBody::Command {
            seq: self.seq,
            command: self.command.into(),
            hash: data_encoding::HEXLOWER.encode(self.hash),
            action: self.action.to_vec(),
            decision: self.decision.clone(),
            hold: self.hold.map(Into::into),
            waited_ms: self.waited_ms,
            prompt_ref: self.prompt_ref.cloned(),
        }
    }
}

/// An [`EventBody::Result`] in parts that somebody else has.
#[derive(Clone, Copy, Debug)]
pub struct Resulted<'a> {
    /// As in its command.
    pub seq: u64,
    /// What came of it.
    pub result: &'a str,
    /// Whether it failed.
    pub failed: bool,
    /// Names of the columns.
    pub columns: &'a [Arc<str>],
    /// The first rows.
    pub sample: Sample<'a>,
    /// Rows that came.
    pub rows: u64,
    /// Bytes that came.
    pub bytes: u64,
    /// What was masked.
    pub masked: &'a MaskedNote,
    /// How long it took, in microseconds.
    pub duration_us: u64,
}

/// The first rows of a result.
#[derive(Clone, Copy, Debug)]
pub enum Sample<'a> {
    /// Of any number of columns.
    Rows(&'a [Vec<Option<String>>]),
    /// One row of one column, or none.
    One(Option<&'a str>),
}

impl Resulted<'_> {
    /// As [`write`].
    fn write(&self, connection: u64, out: &mut Vec<u8>) {
        let mut out = Out(out);
        out.head(RESULT, connection);
        out.number(self.seq);
        out.text(self.result);
        out.number(u64::from(self.failed));
        out.each(self.columns, |out, column| out.text(column));
        match self.sample {
            Sample::Rows(rows) => {
                out.each(rows, |out, row| out.each(row, |out, value| out.maybe(value.as_deref(), Out::text)));
            }
            Sample::One(value) => {
                out.each(value.as_slice(), |out, value| {
                    out.each(&[Some(*value)], |out, value| out.maybe(*value, Out::text))
                });
            }
        }
        out.number(self.rows);
        out.number(self.bytes);
        out.number(self.masked.count);
        out.each(&self.masked.detectors, |out, detector| out.text(detector));
        out.number(self.duration_us);
    }

    /// The same on its own.
    fn to_body(self) -> EventBody {
        let sample = match self.sample {
            Sample::Rows(rows) => rows.to_vec(),
            Sample::One(value) => value.iter().map(|value| vec![Some((*value).to_owned())]).collect(),
        };
        EventBody::Result {
            seq: self.seq,
            result: self.result.into(),
            failed: self.failed,
            columns: self.columns.into(),
            sample,
            rows: self.rows,
            bytes: self.bytes,
            masked: self.masked.clone(),
            duration_us: self.duration_us,
        }
    }
}

/// An event of which a body of its own is made only where it must be.
#[derive(Clone, Copy, Debug)]
pub enum Parts<'a> {
    /// A command.
    Command(Decided<'a>),
    /// What came of it.
    Result(Resulted<'a>),
}

impl Parts<'_> {
    /// As [`write`].
    pub(super) fn write(&self, connection: u64, out: &mut Vec<u8>) {
        match self {
            Self::Command(command) => command.write(connection, out),
            Self::Result(result) => result.write(connection, out),
        }
    }

    /// The same on its own.
    pub(super) fn to_body(self) -> EventBody {
        match self {
            Self::Command(command) => command.to_body(),
            Self::Result(result) => result.to_body(),
        }
    }
}

struct Out<'a>(&'a mut Vec<u8>);

impl Out<'_> {
    fn head(&mut self, kind: u8, connection: u64) {
        self.0.push(kind);
        self.0.extend_from_slice(STAMP_BLANK.as_bytes());
        self.number(connection);
    }

    fn number(&mut self, mut number: u64) {
        while number > 0x7f {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.extend_from_slice(text.as_bytes());
    }

    fn each<T>(&mut self, items: &[T], write: impl Fn(&mut Self, &T)) {
        self.number(items.len() as u64);
        items.iter().for_each(|item| write(self, item));
    }

    fn maybe<T>(&mut self, item: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.0.push(u8::from(item.is_some()));
        if let Some(item) = item {
            write(self, item);
        }
    }
}

/// What the events in full have told so far of the connections of a segment.
#[derive(Debug, Default)]
pub(super) struct Connections(HashMap<u64, Event>);

impl Connections {
    /// Reads an event in either form. `None` where it is none.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Option<Event> {
        if bytes.first() != Some(&b'{') {
            return self.read_short(bytes);
        }
        let event: Event = serde_json::from_slice(bytes).ok()?;
        if tells(&event.body) {
            let head = Event { body: EventBody::Daemon { what: String::new() }, ..event.clone() };
            self.0.insert(event.connection_id, head);
        }
        Some(event)
    }

    /// Looks at an event only for what it tells of its connection.
    pub(super) fn learn(&mut self, bytes: &[u8]) {
        if bytes.first() == Some(&b'{') {
            self.read(bytes);
        }
    }

    fn read_short(&self, bytes: &[u8]) -> Option<Event> {
        let mut from = In(bytes);
        let [kind] = *from.take(1)? else { return None };
        let timestamp = str::from_utf8(from.take(STAMP)?).ok()?.to_owned();
        let head = self.0.get(&from.number()?)?;
        let body = match kind {
            COMMAND | PROMPTED => EventBody::Command {
                seq: from.number()?,
                command: from.text()?.into(),
                hash: data_encoding::HEXLOWER.encode(from.take(32)?),
                action: from.each(|from| Some((verb(from.text()?)?, Target::new(from.text()?))))?,
                decision: DecisionNote {
                    effect: from.text()?.into(),
                    rule: from.text()?.into(),
                    reviewers: from.each(|from| from.text().map(str::to_owned))?,
                    reason: from.maybe(|from| from.text().map(Arc::from))?,
                },
                hold: from.maybe(|from| from.text().map(Arc::from))?,
                waited_ms: from.maybe(In::number)?,
                prompt_ref: if kind == PROMPTED { Some(from.prompt()?) } else { None },
            },
            RESULT => EventBody::Result {
                seq: from.number()?,
                result: from.text()?.into(),
                failed: from.flag()?,
                columns: from.each(|from| from.text().map(Arc::from))?.into(),
                sample: from.each(|from| from.each(|from| from.maybe(|from| from.text().map(str::to_owned))))?,
                rows: from.number()?,
                bytes: from.number()?,
                masked: MaskedNote {
                    count: from.number()?,
                    detectors: from.each(|from| from.text().map(str::to_owned))?,
                },
                duration_us: from.number()?,
            },
            _ => return None,
        };
        from.0.is_empty().then(|| Event { timestamp, body, ..head.clone() })
    }
}

fn verb(name: &str) -> Option<Verb> {
    Verb::ALL.iter().copied().find(|verb| verb.as_str() == name)
}

struct In<'a>(&'a [u8]);

impl<'a> In<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let [byte] = *self.take(1)? else { return None };
            let bits = u64::from(byte & 0x7f);
            number |= bits.checked_shl(shift).filter(|shifted| shifted >> shift == bits)?;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn flag(&mut self) -> Option<bool> {
        match *self.take(1)? {
            [0] => Some(false),
            [1] => Some(true),
            _ => None,
        }
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = usize::try_from(self.number()?).ok()?;
        str::from_utf8(self.take(length)?).ok()
    }

    fn prompt(&mut self) -> Option<PromptRef> {
        Some(PromptRef { turns: self.each(|from| from.text().map(Arc::from))?, by_trace: self.flag()? })
    }

    fn each<T>(&mut self, read: impl Fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = self.number()?;
        // An item takes a byte at least, so that a wrong count ends with the bytes.
        (0..count).map(|_| read(self)).collect()
    }

    fn maybe<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        if self.flag()? { read(self).map(Some) } else { Some(None) }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
