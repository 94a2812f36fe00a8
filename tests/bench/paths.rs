//! What callgrind counts: the five paths that a transaction takes most often, each in a function of its own, and as a
//! whole (`transactions`) to be looked at by who wants to know where instructions go.

use anyhow::{Context, Result, bail, ensure};
use bytes::{Buf, BufMut, BytesMut};
use portcullis::{
    action::{Action, ProcessFacts, ProtocolId, Resource, Subject, Target, Verb},
    policy::{Policy, PolicySet},
    protocol::postgres::paths::{Reading, Rows},
    record::{DecisionNote, Event, EventBody, MaskedNote, RecordSettings, Recorder, Told},
};
use portcullis_tests::{Postgres, TestHouse};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const POLICY: &str = include_str!("policy.toml");
const SELECT: &str = "SELECT abalance FROM pgbench_accounts WHERE aid = $1";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, count] = &arguments[..] else { bail!("usage: paths NAME COUNT") };
    let count = count.parse()?;
    match name.as_str() {
        "forward" | "mask" => rows(name == "mask", count),
        "decide" => decide(count),
        "classify" => classify(count),
        "append" => append(count),
        "transactions" => transactions(count),
        other => bail!("there is no path `{other}`"),
    }
}

/// What is counted, once for each item. Never inlined, so that callgrind knows them by their names.
mod path {
    use super::*;

    #[inline(never)]
    pub fn take(rows: &mut Rows, input: &mut BytesMut) -> u64 {
        rows.take(input)
    }

    #[inline(never)]
    pub fn decide(policy: &Policy, who: &Subject, to: &Resource, what: &Action) -> bool {
        matches!(policy.decide(who, to, what), portcullis::policy::Decision::Allow(_))
    }

    #[inline(never)]
    pub fn classify(reading: &mut Reading, text: &str) -> Action {
        reading.read(text)
    }

    #[inline(never)]
    pub fn append(recorder: &Recorder, told: &Told, event: Event) -> Result<()> {
        let Event { timestamp, tenant, workload, session_id, connection_id, trace_id, upstream, body } = event;
        let whole = |body| Event { timestamp, tenant, workload, session_id, connection_id, trace_id, upstream, body };
        recorder.append_of(told, connection_id, body, whole)?;
        Ok(())
    }
}

/// Rows come as a read of the socket brings them, a hundred at a time.
fn rows(masked: bool, count: u64) -> Result<()> {
    const TOGETHER: usize = 100;
    let mut rows = Rows::new(if masked { 2 } else { 0 });
    let come = Rows::input(TOGETHER).freeze();
    let mut done = 0;
    while done < count {
        let mut input = BytesMut::from(&come[..]);
        done += path::take(&mut rows, &mut input);
        let written = rows.output.len();
        rows.output.slices(&mut [std::io::IoSlice::new(&[]); 64]);
        rows.output.advance(written);
    }
    Ok(())
}

fn decide(count: u64) -> Result<()> {
    let set = PolicySet::from_texts([("bot.toml", policy(9))]).map_err(|error| anyhow::anyhow!("{error}"))?;
    let policy = set.by_workload("bot").context("no policy")?;
    let who = Subject {
        workload: "bot".into(),
        tenant: None,
        session: "s".into(),
        cgroup: 1,
        intent: None,
        trace_id: "t".into(),
        ends_at: None,
        process: ProcessFacts::default(),
    };
    let to = Resource {
        upstream: "shop".into(),
        protocol: ProtocolId::Postgres,
        address: "127.0.0.1:9".into(),
        database: Some("shop".into()),
    };
    let target = Target::relation(Some("public"), "pgbench_accounts");
    let what = Action::single(ProtocolId::Postgres, Verb::Read, target);
    for _ in 0..count {
        ensure!(path::decide(policy, &who, &to, &what), "it is allowed");
    }
    Ok(())
}

fn policy(port: u16) -> String {
    POLICY.replace("{slice}", "portcullis.slice").replace("{port}", &port.to_string())
}

fn classify(count: u64) -> Result<()> {
    let mut reading = Reading::default();
    reading.read(SELECT);
    reading.read(SELECT);
    for _ in 0..count {
        ensure!(path::classify(&mut reading, SELECT).parts.len() == 1, "one table is read");
    }
    Ok(())
}

/// Commands and results by turns.
fn append(count: u64) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let recorder = Recorder::open(&RecordSettings::new(dir.path()))?;
    let told = Told::default();
    let decision = DecisionNote { effect: "allow".into(), rule: "tables".into(), reviewers: Vec::new(), reason: None };
    let target = Target::relation(Some("public"), "pgbench_accounts");
    for seq in 0..count {
        let body = match seq % 2 {
            0 => EventBody::Command {
                seq,
                command: SELECT.into(),
                hash: "00".repeat(32),
                action: vec![(Verb::Read, target.clone())],
                decision: decision.clone(),
                hold: None,
                waited_ms: None,
                prompt_ref: None,
            },
            _ => EventBody::Result {
                seq,
                result: "SELECT 1".into(),
                failed: false,
                columns: ["abalance".into()].into(),
                sample: vec![vec![Some("0".into())]],
                rows: 1,
                bytes: 12,
                masked: MaskedNote::default(),
                duration_us: 50,
            },
        };
        let event = Event { workload: "bot".into(), connection_id: 1, body, ..Event::daemon("") };
        path::append(&recorder, &told, event)?;
    }
    Ok(())
}

/// Runs transactions of pgbench's select, prepared, against a real server, through a house in this process.
fn transactions(count: u64) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let server = Postgres::start_with(&["log_statement=none"])?;
        server.sql(
            "shop",
            "CREATE TABLE pgbench_accounts AS SELECT i AS aid, 0 AS abalance FROM generate_series(1, 10) AS i",
        )?;
        server.sql("shop", "GRANT ALL ON ALL TABLES IN SCHEMA public TO shop_agent; ")?;
        let house = TestHouse::new(&server, &policy(server.port))?;
        let mut io = house.connect();
        let mut start = BytesMut::new();
        start.put_slice(b"\0\x03\0\0user\0whoever\0database\0shop\0\0");
        io.write_u32(start.len() as u32 + 4).await?;
        io.write_all(&start).await?;
        let mut input = BytesMut::new();
        ready(&mut io, &mut input).await?;
        let mut out = BytesMut::new();
        frame(&mut out, b'P', format!("P0\0{SELECT}\0\0\0").as_bytes());
        frame(&mut out, b'S', b"");
        io.write_all(&out).await?;
        ready(&mut io, &mut input).await?;
        out.clear();
        frame(&mut out, b'B', b"\0P0\0\0\0\0\x01\0\0\0\x01\x37\0\x01\0\0");
        frame(&mut out, b'D', b"P\0");
        frame(&mut out, b'E', b"\0\0\0\0\0");
        frame(&mut out, b'S', b"");
        for _ in 0..count {
            io.write_all(&out).await?;
            ready(&mut io, &mut input).await?;
        }
        Ok(())
    })
}

fn frame(out: &mut BytesMut, tag: u8, body: &[u8]) {
    out.put_u8(tag);
    out.put_u32(body.len() as u32 + 4);
    out.put_slice(body);
}

async fn ready(io: &mut tokio::io::DuplexStream, input: &mut BytesMut) -> Result<()> {
    loop {
        while input.len() >= 5 {
            let length = (&input[1..5]).get_u32() as usize + 1;
            if input.len() < length {
                break;
            }
            let frame = input.split_to(length);
            ensure!(frame[0] != b'E', "{}", String::from_utf8_lossy(&frame));
            if frame[0] == b'Z' {
                return Ok(());
            }
        }
        ensure!(io.read_buf(input).await.context("no answer")? > 0, "closed");
    }
}
