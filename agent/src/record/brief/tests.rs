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
