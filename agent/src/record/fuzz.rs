//! What a fuzzer runs: the properties that hold for any bytes of a segment.

use super::{
    DecisionNote, Event, EventBody,
    brief::{self, Connections},
};

/// Reads bytes as an event after one that tells of connection 1: what is read can be written and is read again as the
/// same.
pub fn event(data: &[u8]) {
    let mut known = Connections::default();
    let decision = DecisionNote { effect: "allow".into(), rule: "r".into(), reviewers: Vec::new(), reason: None };
    let first = Event {
        timestamp: "2026-01-02T03:04:05.678901Z".into(),
        tenant: None,
        workload: "bot".into(),
        session_id: "s".into(),
        connection_id: 1,
        trace_id: None,
        upstream: None,
        body: EventBody::Command {
            seq: 1,
            command: "select 1".into(),
            hash: "00".repeat(32),
            action: Vec::new(),
            decision,
            hold: None,
            waited_ms: None,
            prompt_ref: None,
        },
    };
    let json = serde_json::to_vec(&first).unwrap_or_default();
    assert_eq!(known.read(&json).as_ref(), Some(&first), "an event in full is read as it was written");
    let Some(read) = known.read(data) else { return };
    let mut again = Vec::new();
    if brief::write(read.connection_id, &read.body, &mut again).is_some() && data.first() != Some(&b'{') {
        let time = brief::stamp(&again);
        again[time].copy_from_slice(read.timestamp.as_bytes());
        assert_eq!(known.read(&again).as_ref(), Some(&read), "an event in short is read as it was written");
    }
}
