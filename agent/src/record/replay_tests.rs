use std::{sync::Arc, time::Duration};

use super::{replay::*, *};
use crate::action::{CallNote, ProcessFacts, PromptRef, Target, TurnNote, Verb};

fn session() -> Vec<Event> {
    let process = ProcessFacts { pid: 7, uid: 1000, comm: "psql".into(), exe: None };
    let note = |effect: &str, rule: &str| DecisionNote {
        effect: effect.into(),
        rule: rule.into(),
        reviewers: vec![],
        reason: None,
    };
    let command = |seq, command: &str, decision| EventBody::Command {
        seq,
        command: command.into(),
        hash: "00".into(),
        action: vec![(Verb::Read, Target::new("public.customers"))],
        decision,
        hold: None,
        waited_ms: None,
        prompt_ref: None,
    };
    let bodies = vec![
        (
            0,
            EventBody::SessionStart {
                intent: Some(
                    "Answer ticket 7: the customer says that the order never arrived, so look it up and fix it".into(),
                ),
                command: vec!["psql".into(), "-h".into(), "orders".into()],
                operator: "alice".into(),
                cgroup: 1,
                ttl_seconds: Some(28_800),
            },
        ),
        (
            120,
            EventBody::Connect {
                address: "10.0.0.5:5432".into(),
                protocol: Some("postgres".into()),
                database: Some("shop".into()),
                process: process.clone(),
                decision: note("allow", "implicit"),
            },
        ),
        (250, command(1, "SELECT id, name,\n\temail FROM customers \u{1b}[2J\u{202e}", note("allow", "reads"))),
        (
            252,
            EventBody::Result {
                seq: 1,
                result: "SELECT 12".into(),
                failed: false,
                columns: ["id", "name", "email"].map(Into::into).into(),
                sample: vec![
                    vec![Some("1".into()), Some("Ada \u{1b}]0;x\u{7}".into()), Some("a***@example.com".into())],
                    vec![Some("2".into()), None, Some("x".repeat(300))],
                ],
                rows: 12,
                bytes: 2048,
                masked: MaskedNote { count: 12, detectors: vec!["column:public.customers.email".into()] },
                duration_us: 2100,
            },
        ),
        (
            900,
            EventBody::Hold {
                id: "k7q2".into(),
                seq: 2,
                state: "requested".into(),
                command: "UPDATE orders SET status = 'sent' WHERE id = 7".into(),
                hash: "00".into(),
                rule: "writes wait".into(),
                reviewer: None,
                reason: None,
                estimated_rows: None,
            },
        ),
        (
            950,
            EventBody::Hold {
                id: "k7q2".into(),
                seq: 2,
                state: "estimated".into(),
                command: "UPDATE orders SET status = 'sent' WHERE id = 7".into(),
                hash: "00".into(),
                rule: "writes wait".into(),
                reviewer: None,
                reason: Some("as the planner expects".into()),
                estimated_rows: Some(1),
            },
        ),
        (
            62_900,
            EventBody::Hold {
                id: "k7q2".into(),
                seq: 2,
                state: "granted".into(),
                command: "UPDATE orders SET status = 'sent' WHERE id = 7".into(),
                hash: "00".into(),
                rule: "writes wait".into(),
                reviewer: Some("bob".into()),
                reason: Some("seen the ticket".into()),
                estimated_rows: Some(1),
            },
        ),
        (
            62_901,
            EventBody::Command {
                seq: 2,
                command: "UPDATE orders SET status = 'sent' WHERE id = 7".into(),
                hash: "00".into(),
                action: vec![(Verb::Write, Target::new("public.orders"))],
                decision: DecisionNote { reviewers: vec!["bob".into()], ..note("hold", "writes wait") },
                hold: Some("k7q2".into()),
                waited_ms: Some(62_000),
                prompt_ref: None,
            },
        ),
        (
            62_950,
            command(
                3,
                "DROP TABLE orders",
                DecisionNote { reason: Some("Nobody drops tables here".into()), ..note("deny", "no drops") },
            ),
        ),
        (63_000, EventBody::Refused { what: "direct connection to 10.0.0.5:5432".into(), process }),
        (63_100, EventBody::Disconnect { why: "client closed".into(), bytes_in: 300, bytes_out: 5_000_000 }),
        (63_200, EventBody::SessionEnd { why: "exited".into() }),
    ];
    let start: jiff::Timestamp = "2026-08-03T10:00:00.000000Z".parse().unwrap();
    let event = |(millis, body)| Event {
        timestamp: format!("{:.6}", start + Duration::from_millis(millis)),
        tenant: Some("acme".into()),
        workload: "support-bot".into(),
        session_id: "01k0000000000000000000000a".into(),
        connection_id: 4,
        trace_id: Some("0af7651916cd43dd8448eb211c80319c".into()),
        upstream: Some("orders".into()),
        body,
    };
    bodies.into_iter().map(event).collect()
}

fn recorded(events: Vec<Event>) -> Vec<Result<Recorded, RecordError>> {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::open(&RecordSettings::new(dir.path())).unwrap();
    events
        .into_iter()
        .map(|event| Ok(Recorded { position: recorder.append(event.clone())?, event: Arc::new(event) }))
        .collect()
}

fn rendered(options: &ReplayOptions) -> String {
    let mut out = Vec::new();
    render(recorded(session()), options, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn a_session_as_it_happened() {
    let text = rendered(&ReplayOptions::default());
    insta::assert_snapshot!(text);
}

#[test]
fn nothing_of_the_agent_reaches_the_terminal_raw_and_lines_fit() {
    for width in [40, 80, 120] {
        let text = rendered(&ReplayOptions { width, ..ReplayOptions::default() });
        assert!(!text.chars().any(|c| c != '\n' && (c.is_control() || c == '\u{202e}')), "{text:?}");
        for line in text.lines() {
            assert!(line.chars().count() <= width, "{width}: {line}");
        }
    }
    let coloured = rendered(&ReplayOptions { colour: Colour::Always, ..ReplayOptions::default() });
    let plain: String = coloured
        .split("\u{1b}[")
        .enumerate()
        .map(|(n, part)| if n == 0 { part } else { part.split_once('m').unwrap().1 })
        .collect();
    assert_eq!(plain, rendered(&ReplayOptions::default()), "only our own colours");
}

#[test]
fn frames_carry_the_time_between() {
    let delays: Vec<_> = frames(recorded(session()), ReplayOptions::default()).map(|f| f.unwrap().delay).collect();
    assert_eq!(delays[..4].iter().map(Duration::as_millis).collect::<Vec<_>>(), [0, 120, 130, 2]);
    assert_eq!(delays[6], Duration::from_millis(61_950));
    // A clock that was set back waits for nothing.
    let mut events = session();
    events.swap(1, 9);
    assert_eq!(frames(recorded(events), ReplayOptions::default()).count(), 12);
}

#[test]
fn many_columns_are_shown_value_by_value() {
    let mut events = session();
    events.truncate(4);
    if let EventBody::Result { columns, sample, .. } = &mut events[3].body {
        *columns = (0..30).map(|n| format!("column_{n}").into()).collect();
        *sample = vec![(0..30).map(|n| Some(format!("value {n}"))).collect()];
    }
    let mut out = Vec::new();
    render(recorded(events), &ReplayOptions::default(), &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    assert!(text.contains("column_29: value 29"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
}

#[test]
fn sessions_are_summed_up() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Recorder::open(&RecordSettings { segment_bytes: 4096, ..RecordSettings::new(dir.path()) }).unwrap();
    for event in session() {
        recorder.append(event).unwrap();
        recorder.append(Event::daemon("of no session")).unwrap();
    }
    let other = Event { session_id: "01k0000000000000000000000b".into(), ..session()[1].clone() };
    recorder.append(other).unwrap();
    drop(recorder);
    let mut told = Vec::new();
    let all = sessions(dir.path(), &mut |p| told.push(p)).unwrap();
    assert_eq!(all.len(), 2);
    let one = &all[0];
    assert_eq!((one.connections, one.commands, one.forwarded, one.held, one.refused), (1, 3, 2, 1, 2));
    assert_eq!((one.rows, one.masked, one.ended.as_deref(), &*one.operator), (12, 12, Some("exited"), "alice"));
    assert_eq!((all[1].ended.as_deref(), all[1].connections), (None, 1));
    assert!(told.len() >= 2 && told.iter().all(|p| p.segment < p.of), "{told:?}");
    let events: Vec<_> = session_events(dir.path(), &one.id).unwrap().map(|e| e.unwrap()).collect();
    assert_eq!(events.len(), session().len());
}

#[test]
fn text_is_wrapped_and_escaped() {
    use super::printable::wrap;
    assert!(matches!(printable("plain\ntext"), std::borrow::Cow::Borrowed(_)));
    assert_eq!(printable("a\tb\u{1b}[0m\u{200b}\r"), "a b\\u{1b}[0m\\u{200b}\\u{d}");
    assert_eq!(printable_line("a\nb"), "a\\nb");
    assert_eq!(wrap("one two three", 9), ["one two", "three"]);
    assert_eq!(
        wrap("\u{6f22}\u{5b57}\u{6f22}\u{5b57}\u{6f22}\u{5b57}", 8),
        ["\u{6f22}\u{5b57}\u{6f22}\u{5b57}", "\u{6f22}\u{5b57}"]
    );
    assert_eq!(wrap("", 10), [""]);
    for width in 8..40 {
        let text = "x".repeat(100) + " yy " + &"\u{6f22}".repeat(50);
        assert!(
            wrap(&text, width)
                .iter()
                .all(|l| l.chars().map(|c| if c.is_ascii() { 1 } else { 2 }).sum::<usize>() <= width)
        );
    }
}

/// A turn, what the model asked for, and what the agent did: the prompt stands beside the statement.
#[test]
fn why_stands_beside_what() {
    let event = |connection_id: u64, body: EventBody| Event {
        timestamp: "2026-01-02T03:04:05.678901Z".into(),
        tenant: None,
        workload: "bot".into(),
        session_id: "s".into(),
        connection_id,
        trace_id: None,
        upstream: Some("models".into()),
        body,
    };
    let turn = |id: &str, prompt: &str| EventBody::Turn {
        seq: 1,
        turn: TurnNote { id: id.into(), model: "m-1".into(), prompt: Some(prompt.into()), calls: Vec::new() },
        system: None,
        tools: vec!["query".into()],
        trace: None,
        injection: vec!["other orders".into()],
    };
    let call = CallNote { id: "c".into(), name: "query".into(), arguments: "{\"sql\": \"SELECT 1\"}".into() };
    let answer = EventBody::Answer {
        seq: 1,
        turn: "4.1".into(),
        model: None,
        stop: Some("tool_calls".into()),
        failed: false,
        calls: vec![call],
        usage: Usage { input: 120, output: 30, cost: Some(600), estimated: false },
        first_us: 10,
        duration_us: 2000,
    };
    let command = |turns: &[&str]| EventBody::Command {
        seq: 1,
        command: "SELECT 1".into(),
        hash: "00".into(),
        action: Vec::new(),
        decision: DecisionNote { effect: "allow".into(), rule: "r".into(), reviewers: Vec::new(), reason: None },
        hold: None,
        waited_ms: None,
        prompt_ref: Some(PromptRef { turns: turns.iter().map(|turn| (*turn).into()).collect(), by_trace: false }),
    };
    let mut renderer = Renderer::new(ReplayOptions { width: 200, ..ReplayOptions::default() });
    let mut show = |event: &Event| renderer.frame(event).text;
    let shown = show(&event(4, turn("4.1", "how many\u{1b}[2J?")));
    assert!(shown.contains("[4.1] asks m-1: \"how many") && !shown.contains('\u{1b}'), "{shown}");
    assert!(shown.contains("other orders") && shown.contains("offers query"), "{shown}");
    let shown = show(&event(4, answer));
    assert!(shown.contains("calls query(") && shown.contains("120 tokens in, 30 out, cost 0.000600"), "{shown}");
    let shown = show(&event(5, command(&["4.1"])));
    assert!(shown.contains("why: [4.1] \"how many") && shown.contains("-> query({\"sql\": \"SELECT 1\"})"), "{shown}");
    show(&event(6, turn("6.1", "another")));
    let shown = show(&event(5, command(&["4.1", "6.1", "9.9"])));
    assert!(
        shown.contains("why, one of: [4.1]") && shown.contains("[6.1] \"another\"") && shown.contains("[9.9]"),
        "{shown}"
    );
}
