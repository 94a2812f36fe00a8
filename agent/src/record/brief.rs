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
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::{RecordSettings, Recorder, read, verify};

    fn connect() -> Event {
        let decision = DecisionNote { effect: "allow".into(), rule: "r".into(), reviewers: Vec::new(), reason: None };
        Event {
            timestamp: "2026-01-02T03:04:05.678901Z".into(),
            tenant: Some("t".into()),
            workload: "bot".into(),
            session_id: "s".into(),
            connection_id: 300,
            trace_id: Some("0af7".into()),
            upstream: Some("shop".into()),
            body: EventBody::Connect {
                address: "a".into(),
                protocol: None,
                database: None,
                process: crate::action::ProcessFacts::default(),
                decision,
            },
        }
    }

    prop_compose! {
        fn command()(
            seq in any::<u64>(), command in any::<String>(), hash in any::<[u8; 32]>(),
            action in prop::collection::vec((0..Verb::ALL.len(), any::<String>()), 0..4),
            (effect, rule) in any::<(String, String)>(), reviewers in any::<Vec<String>>(),
            reason in any::<Option<String>>(), hold in any::<Option<String>>(), waited_ms in any::<Option<u64>>(),
            prompt in any::<Option<(Vec<String>, bool)>>(),
        ) -> EventBody {
            EventBody::Command {
                seq, command: command.into(), hash: data_encoding::HEXLOWER.encode(&hash),
                action: action.into_iter().map(|(at, target)| (Verb::ALL[at], Target::new(target))).collect(),
                decision: DecisionNote {
                    effect: effect.into(), rule: rule.into(), reviewers, reason: reason.map(Into::into),
                },
                hold: hold.map(Into::into), waited_ms,
                prompt_ref: prompt.map(|(turns, by_trace)| PromptRef {
                    turns: turns.into_iter().map(Into::into).collect(), by_trace,
                }),
            }
        }
    }

    prop_compose! {
        fn result()(
            seq in any::<u64>(), result in any::<String>(), failed in any::<bool>(),
            columns in any::<Vec<String>>(), sample in any::<Vec<Vec<Option<String>>>>(),
            (rows, bytes, count, duration_us) in any::<(u64, u64, u64, u64)>(), detectors in any::<Vec<String>>(),
        ) -> EventBody {
            EventBody::Result {
                seq, result: result.into(), failed,
                columns: columns.into_iter().map(Arc::from).collect::<Vec<_>>().into(),
                sample, rows, bytes, masked: MaskedNote { count, detectors }, duration_us,
            }
        }
    }

    proptest! {
        #[test]
        fn parts_are_the_same_event_in_short_and_whole(
            seq in any::<u64>(), text in any::<String>(), hash in any::<[u8; 32]>(), target in any::<String>(),
            reason in any::<Option<String>>(), hold in any::<Option<String>>(), value in any::<Option<String>>(),
        ) {
            let reason = reason.map(Arc::from);
            let decision = DecisionNote { effect: "hold".into(), rule: "r".into(), reviewers: vec![text.clone()], reason };
            let prompt = PromptRef { turns: vec![text.as_str().into()], by_trace: true };
            let (columns, masked) = ([Arc::from("body")], MaskedNote { count: seq, detectors: vec![text.clone()] });
            let command = Decided {
                seq, command: &text, hash: &hash, action: &[(Verb::Read, Target::new(target))], decision: &decision,
                hold: hold.as_deref(), waited_ms: hold.as_ref().map(|_| seq), prompt_ref: hold.as_ref().map(|_| &prompt),
            };
            let result = Resulted {
                seq, result: &text, failed: true, columns: &columns, sample: Sample::One(value.as_deref()), rows: 1,
                bytes: seq, masked: &masked, duration_us: 7,
            };
            for parts in [Parts::Command(command), Parts::Result(result)] {
                let (mut short, mut of_body) = (Vec::new(), Vec::new());
                parts.write(300, &mut short);
                let body = parts.to_body();
                write(300, &body, &mut of_body).unwrap();
                prop_assert_eq!(&short, &of_body);
                if let EventBody::Result { sample, .. } = body {
                    prop_assert_eq!(sample, value.iter().map(|value| vec![Some(value.clone())]).collect::<Vec<_>>());
                }
            }
        }

        #[test]
        fn a_short_event_is_the_same_event(body in prop_oneof![command(), result()], cut in any::<prop::sample::Index>()) {
            let event = Event { body, ..connect() };
            let mut bytes = Vec::new();
            write(event.connection_id, &event.body, &mut bytes).unwrap();
            let time = stamp(&bytes);
            bytes[time].copy_from_slice(event.timestamp.as_bytes());
            let mut connections = Connections::default();
            prop_assert_eq!(connections.read(&bytes), None, "what connection this is, nothing has told");
            connections.learn(&serde_json::to_vec(&connect()).unwrap());
            prop_assert_eq!(connections.read(&bytes), Some(event));
            let time = connect().timestamp;
            prop_assert_eq!(&bytes[stamp(&bytes)], time.as_bytes());
            // No part of it is an event, nor is more than it.
            prop_assert_eq!(connections.read(&bytes[..cut.index(bytes.len())]), None);
            bytes.push(0);
            prop_assert_eq!(connections.read(&bytes), None);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in any::<Vec<u8>>(), kind in 0..4u8) {
            let mut connections = Connections::default();
            connections.learn(&serde_json::to_vec(&Event { connection_id: 0, ..connect() }).unwrap());
            let _ = connections.read(&bytes);
            let start = [&[kind][..], connect().timestamp.as_bytes(), &[0], &bytes].concat();
            let _ = connections.read(&start);
        }
    }

    /// Connections that many threads write for, over many segments and a restart which gives their numbers again.
    #[test]
    fn each_event_comes_back_with_its_own_connection() {
        let dir = tempfile::tempdir().unwrap();
        let settings = RecordSettings { segment_bytes: 4096, ..RecordSettings::new(dir.path()) };
        let event = |life: u64, connection_id: u64, seq: u64| {
            let masked = MaskedNote::default();
            let body = EventBody::Result {
                seq,
                result: "SELECT 1".into(),
                failed: false,
                columns: Arc::from([]),
                sample: Vec::new(),
                rows: 1,
                bytes: 20,
                masked,
                duration_us: 7,
            };
            Event { connection_id, session_id: format!("{life} {connection_id}").into(), body, ..connect() }
        };
        for life in 1..3 {
            let recorder = Recorder::open(&settings).unwrap();
            let follower = recorder.follow();
            let told: [Told; 3] = Default::default();
            std::thread::scope(|scope| {
                // Two threads for each connection.
                for thread in 0..6u64 {
                    let (recorder, told) = (&recorder, &told[thread as usize % 3]);
                    scope.spawn(move || {
                        for seq in 0..200 {
                            let event = event(life, thread % 3 + 1, seq);
                            let (head, body) = (event.clone(), event.body);
                            let whole = |body| Event { body, ..head };
                            recorder.append_of(told, event.connection_id, body, whole).unwrap();
                        }
                    });
                }
            });
            drop(follower);
            recorder.close().unwrap();
        }
        let mut found = HashMap::new();
        let mut segments = std::collections::BTreeSet::new();
        let mut events = read::events(dir.path()).unwrap();
        while let Some(read) = events.next() {
            let read = read.unwrap().event;
            segments.insert(events.segment());
            let EventBody::Result { seq, .. } = &read.body else { continue };
            let (life, connection) = read.session_id.split_once(' ').unwrap();
            let (life, connection) = (life.parse().unwrap(), connection.parse().unwrap());
            assert_eq!(*read, Event { timestamp: read.timestamp.clone(), ..event(life, connection, *seq) });
            *found.entry((life, connection, *seq)).or_insert(0) += 1;
        }
        assert_eq!(found.len(), 2 * 3 * 200);
        assert!(found.values().all(|times| *times == 2));
        let full = serde_json::to_vec(&event(1, 1, 1)).unwrap().len();
        assert!(segments.len() > 10 && segments.len() * 4096 < 2400 * full / 2, "{} segments", segments.len());
        let from = read::events_from(dir.path(), 1000).unwrap().next().unwrap().unwrap();
        assert!(from.position.sequence() == 1000 && from.event.session_id.len() == 3, "{from:?}");
        assert!(verify(dir.path()).unwrap().problem.is_none());
    }

    #[test]
    fn what_is_neither_command_nor_result_has_no_short_form() {
        assert!(write(1, &connect().body, &mut Vec::new()).is_none());
        let json = serde_json::to_vec(&connect()).unwrap();
        assert_eq!(&json[stamp(&json)], connect().timestamp.as_bytes());
    }
}
