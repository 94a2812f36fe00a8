//! What one connection may make the enforcer hold, and for how long: large, slow, half closed, out of order.

use std::time::Duration;

use portcullis::{record::EventBody, wire::Limits};
use portcullis_tests::TestHouse;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use crate::{
    POLICY, server,
    wild::{everything, frame, logged_in, startup, until_ready},
};

const MIB: usize = 1 << 20;

/// The header of a frame that declares `length` bytes, and no more than that.
fn header(tag: u8, length: usize) -> Vec<u8> {
    let mut out = vec![tag];
    out.extend_from_slice(&i32::try_from(length).unwrap().to_be_bytes());
    out
}

/// Waits until the end of a connection is on record with this reason.
async fn ended_because(house: &TestHouse, reason: &str) {
    loop {
        let said = house.events().unwrap().iter().any(|event| match &event.body {
            EventBody::Disconnect { why, .. } => why.contains(reason),
            _ => false,
        });
        if said {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn all_given_back(house: &TestHouse) {
    while house.house.memory.used() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_statement_of_64_mib_is_refused_by_its_header() {
    let server = server();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let bystander = house.client().await.unwrap();
    for tag in *b"QPBEd" {
        let mut io = logged_in(&house).await;
        io.write_all(&header(tag, 64 * MIB)).await.unwrap();
        let answer = everything(&mut io).await;
        assert!(answer.contains("FATAL") && answer.contains("over the limit"), "{}: {answer:?}", char::from(tag));
        bystander.simple_query("SELECT 1").await.unwrap();
    }
    ended_because(&house, "a frame of 67108864 bytes is over the limit of 16777216").await;
    // But for a text of the bystander that came again.
    assert!(house.house.memory.used() < 1024, "nothing was reserved");
}

#[tokio::test]
async fn a_statement_too_long_to_be_read_is_refused_and_recorded_in_part() {
    let server = server();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let client = house.client().await.unwrap();
    let error = client.simple_query(&format!("SELECT '{}'", "ä".repeat(MIB))).await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "42501");
    client.simple_query("SELECT 1").await.unwrap();
    let longest = house.events().unwrap().iter().fold(0, |longest, event| match &event.body {
        EventBody::Command { command, .. } => command.len().max(longest),
        _ => longest,
    });
    assert!((MIB..MIB + 100).contains(&longest), "{longest}");
}

#[tokio::test]
async fn large_frames_share_the_memory_of_their_session() {
    let server = server();
    // A session has 16 MiB of these, a connection 8.
    let house = TestHouse::with_limits(&server, POLICY, Limits { memory: 64 * MIB, ..Limits::default() }).unwrap();
    let bystander = house.client().await.unwrap();
    let mut alone = logged_in(&house).await;
    alone.write_all(&header(b'Q', 5 * MIB)).await.unwrap();
    assert!(everything(&mut alone).await.contains("53200"), "more than a connection's part");
    let mut waiting: Vec<DuplexStream> = Vec::new();
    for _ in 0..2 {
        let mut io = logged_in(&house).await;
        io.write_all(&header(b'Q', 4 * MIB - 1)).await.unwrap();
        waiting.push(io);
    }
    while house.house.memory.used() < 15 * MIB {
        tokio::task::yield_now().await;
    }
    let mut third = logged_in(&house).await;
    third.write_all(&header(b'Q', 3 * MIB)).await.unwrap();
    assert!(everything(&mut third).await.contains("53200"), "more than the session's part");
    bystander.simple_query("SELECT 1").await.unwrap();
    ended_because(&house, "more memory would be used").await;
    drop(waiting);
    all_given_back(&house).await;
    let mut fourth = logged_in(&house).await;
    let text = format!("SELECT length('{}')\0", "x".repeat(MIB - 100));
    fourth.write_all(&frame(b'Q', text.as_bytes())).await.unwrap();
    assert!(until_ready(&mut fourth).await.iter().any(|(tag, _)| *tag == b'D'));
    fourth.write_all(&frame(b'Q', b"SELECT 1\0")).await.unwrap();
    until_ready(&mut fourth).await;
    assert_eq!(house.house.memory.used(), 0, "it is given back while the connection lives");
}

#[tokio::test]
async fn a_large_answer_counts_too() {
    let server = server();
    let house = TestHouse::with_limits(&server, POLICY, Limits { memory: 64 * MIB, ..Limits::default() }).unwrap();
    let client = house.client().await.unwrap();
    let fits = client.query_one("SELECT repeat('x', 3000000)", &[]).await.unwrap();
    assert_eq!(fits.get::<_, String>(0).len(), 3_000_000);
    assert!(client.query_one("SELECT repeat('x', 5000000)", &[]).await.is_err());
    ended_because(&house, "more memory would be used").await;
}

#[tokio::test]
async fn what_is_prepared_and_bound_is_bounded() {
    let server = server();
    let house = TestHouse::with_limits(&server, POLICY, Limits { memory: 64 * MIB, ..Limits::default() }).unwrap();
    let text = format!("SELECT '{}'", "x".repeat(200_000));
    // By Parse, by Bind, and by PREPARE, which the server refuses the second time and we remember twice.
    let parse = |i: usize| frame(b'P', format!("s{i}\0{text}\0\0\0").as_bytes());
    let bind = |i: usize| {
        let mut body = format!("p{i}\0s\0").into_bytes();
        body.extend_from_slice(&[0, 0, 0, 1, 0, 0x03, 0x0d, 0x40]);
        body.extend_from_slice(&[b'x'; 0x03_0d40]);
        body.extend_from_slice(&[0, 0]);
        frame(b'B', &body)
    };
    let prepare = |i: usize| frame(b'Q', format!("PREPARE q{} AS {text}\0", i % 2).as_bytes());
    let attacks: [&dyn Fn(usize) -> Vec<u8>; 3] = [&parse, &bind, &prepare];
    for attack in attacks {
        let io = logged_in(&house).await;
        let (mut from, mut to) = tokio::io::split(io);
        let reading = tokio::spawn(async move {
            let mut all = Vec::new();
            let _ = from.read_to_end(&mut all).await;
            String::from_utf8_lossy(&all).into_owned()
        });
        let _ = to.write_all(&frame(b'P', b"s\0SELECT $1::text\0\0\0")).await;
        for i in 0..100 {
            if to.write_all(&attack(i)).await.is_err() {
                break;
            }
        }
        let answer = reading.await.unwrap();
        assert!(answer.contains("53200"), "{} bytes, {:?}", answer.len(), &answer[answer.len().saturating_sub(300)..]);
        all_given_back(&house).await;
    }
    assert_eq!(house.client().await.unwrap().query_one("SELECT 1", &[]).await.unwrap().get::<_, i32>(0), 1);
}

#[tokio::test]
async fn statements_without_end_are_refused_by_number() {
    let server = server();
    let house = TestHouse::with_limits(&server, POLICY, Limits { prepared: 50, ..Limits::default() }).unwrap();
    for kind in ["PREPARE n{} AS SELECT 1", "DECLARE n{} CURSOR WITH HOLD FOR SELECT 1"] {
        let client = house.client().await.unwrap();
        let mut last = None;
        for i in 0..60 {
            if let Err(error) = client.simple_query(&kind.replace("{}", &i.to_string())).await {
                last = Some((i, error.to_string()));
                break;
            }
        }
        assert_eq!(last.as_ref().map(|(i, _)| *i), Some(50), "{kind}: {last:?}");
    }
    ended_because(&house, "too many prepared statements").await;
}

#[tokio::test]
async fn a_login_byte_by_byte_must_come_to_an_end() {
    let server = server();
    let limits = Limits { login_time: Duration::from_millis(300), ..Limits::default() };
    let house = TestHouse::with_limits(&server, POLICY, limits).unwrap();
    let mut io = house.connect();
    let packet = startup();
    io.write_all(&packet[..packet.len() - 1]).await.unwrap();
    everything(&mut io).await;
    ended_because(&house, "the login took too long").await;
    // One that says nothing at all.
    everything(&mut house.connect()).await;
}

#[tokio::test]
async fn a_session_byte_by_byte_works() {
    let server = server();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let mut io = house.connect();
    let mut stream = startup().to_vec();
    stream.extend(frame(b'Q', b"SELECT 41+1\0"));
    // What comes before the login is answered is a fault, so the two parts are sent apart.
    let login = startup().len();
    for (i, byte) in stream.iter().enumerate() {
        if i == login {
            until_ready(&mut io).await;
        }
        io.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert!(until_ready(&mut io).await.iter().any(|(tag, body)| *tag == b'D' && body.ends_with(b"42")));
}

#[tokio::test]
async fn a_client_that_only_listens_on_gets_its_answers() {
    let server = server();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let mut io = logged_in(&house).await;
    io.write_all(&frame(b'Q', b"SELECT 'a'\0")).await.unwrap();
    io.write_all(&frame(b'Q', b"SELECT id FROM orders\0")).await.unwrap();
    io.shutdown().await.unwrap();
    let first = until_ready(&mut io).await;
    assert!(first.iter().any(|(tag, _)| *tag == b'D'));
    let second = until_ready(&mut io).await;
    assert_eq!(second.iter().filter(|(tag, _)| *tag == b'D').count(), 5000);
    assert_eq!(everything(&mut io).await, "", "and then the end");
}

#[tokio::test]
async fn a_half_close_withdraws_what_is_held() {
    let server = server();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let mut io = logged_in(&house).await;
    io.write_all(&frame(b'Q', b"DELETE FROM orders\0")).await.unwrap();
    let view = house.held().await;
    io.shutdown().await.unwrap();
    everything(&mut io).await;
    let state = house.house.holds.view(&view.id).map(|view| view.state.as_str().to_owned());
    assert!(matches!(state.as_deref(), None | Some("withdrawn")), "{state:?}");
    assert_eq!(server.sql("shop", "SELECT count(*) FROM orders").unwrap(), "5000");
}

#[tokio::test]
async fn frames_out_of_order_are_answered_as_the_server_would_or_end_the_connection() {
    let server = server();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let sync = frame(b'S', b"");
    let answered: [(&str, Vec<u8>, &str); 4] = [
        ("Bind before Parse", frame(b'B', b"\0nothing\0\0\0\0\0\0\0"), "does not exist"),
        ("Execute before Bind", frame(b'E', b"nothing\0\0\0\0\0"), "does not exist"),
        ("Describe of nothing", frame(b'D', b"Snothing\0"), "does not exist"),
        ("Execute after a failed Parse", [frame(b'P', b"\0SELEC\0\0\0"), frame(b'E', b"\0\0\0\0\0")].concat(), "42501"),
    ];
    for (name, bytes, expected) in answered {
        let mut io = logged_in(&house).await;
        io.write_all(&[&bytes[..], &sync].concat()).await.unwrap();
        let frames = until_ready(&mut io).await;
        let [(b'E', error)] = &frames[..] else { panic!("{name}: {frames:?}") };
        assert!(String::from_utf8_lossy(error).contains(expected), "{name}: {}", String::from_utf8_lossy(error));
        io.write_all(&frame(b'Q', b"SELECT 1\0")).await.unwrap();
        assert!(until_ready(&mut io).await.iter().any(|(tag, _)| *tag == b'D'), "{name}: the session goes on");
    }
    // COPY data without COPY, which the server ignores.
    let mut io = logged_in(&house).await;
    io.write_all(&[frame(b'd', b"1\n"), frame(b'c', b""), frame(b'f', b"no\0"), frame(b'Q', b"SELECT 1\0")].concat())
        .await
        .unwrap();
    assert!(until_ready(&mut io).await.iter().any(|(tag, _)| *tag == b'D'));
    // A thousand Syncs have a thousand answers.
    io.write_all(&sync.repeat(1000)).await.unwrap();
    for _ in 0..1000 {
        assert!(until_ready(&mut io).await.is_empty());
    }
    let fatal: [(&str, Vec<u8>); 3] = [
        ("a second startup packet", startup().to_vec()),
        ("SSLRequest after the login", vec![0, 0, 0, 8, 4, 210, 22, 47]),
        ("a command amid COPY data", [frame(b'Q', b"COPY orders FROM STDIN\0"), frame(b'Q', b"SELECT 1\0")].concat()),
    ];
    for (name, bytes) in fatal {
        let mut io = logged_in(&house).await;
        io.write_all(&bytes).await.unwrap();
        let answer = everything(&mut io).await;
        assert!(answer.contains("FATAL") && answer.contains("08P01"), "{name}: {answer:?}");
    }
    assert_eq!(server.sql("shop", "SELECT count(*) FROM orders").unwrap(), "5000");
}

/// A change within a transaction need not wait for the disk, but what commits it must.
#[tokio::test]
async fn what_lasts_is_on_disk_first() {
    let server = server();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let client = house.client().await.unwrap();
    let recorder = &house.house.recorder;
    let commands = || {
        let events = house.events().unwrap();
        events.iter().filter(|event| matches!(event.body, EventBody::Command { .. })).count()
    };
    let change = "UPDATE orders SET quantity = quantity WHERE id = 1";
    // Each ends with something that makes changes last.
    let scripts: [&[&str]; 5] = [
        &[change],
        &["BEGIN", change, "SELECT 1", change, "COMMIT"],
        &["BEGIN", change, &format!("{change}; COMMIT")],
        &["BEGIN", change, "SAVEPOINT s", change, "END"],
        &["BEGIN", change, "PREPARE p AS SELECT 1", "EXECUTE p", "COMMIT AND CHAIN"],
    ];
    for script in scripts {
        let before = commands();
        let mut changed = 0;
        for sql in script {
            if sql.contains(change) {
                // The end of the command before is on record when its answer comes, so that this one is the next.
                changed = recorder.last().sequence() + 1;
            }
            client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{script:?}: {sql}: {error:?}"));
        }
        assert!(recorder.durable().sequence() >= changed, "{script:?}");
        assert_eq!(commands() - before, script.len(), "{script:?}");
        let _ = client.batch_execute("ROLLBACK").await;
    }
}

/// All of this runs on one thread, as the connections of a lane do.
#[tokio::test]
async fn a_long_statement_keeps_nobody_else_waiting() {
    let server = server();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let bystander = house.client().await.unwrap();
    let client = house.client().await.unwrap();
    bystander.simple_query("SELECT 1").await.unwrap();
    // It takes long to read, and no time to refuse.
    let statement = format!("SELECT 1 FROM payroll WHERE id IN (1{})", ",1".repeat(480 << 10));
    let long = async {
        let refused = client.simple_query(&statement).await.unwrap_err();
        assert_eq!(refused.code().unwrap().code(), "42501");
    };
    let mut long = std::pin::pin!(long);
    let mut meanwhile = 0;
    loop {
        tokio::select! {
            biased;
            () = &mut long => break,
            // It would be one, had it to wait.
            answer = bystander.simple_query("SELECT 1") => {
                answer.unwrap();
                meanwhile += 1;
            }
        }
    }
    assert!(meanwhile > 20, "{meanwhile} statements meanwhile");
}
