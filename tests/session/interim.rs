//! What a client hears while its request waits for a reviewer.

use std::time::Duration;

use portcullis_tests::{TestHouse, Web, reviewer};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    time::{Instant, pause, resume, timeout},
};

use crate::http::answers;

const POLICY: &str = r#"
[workload]
name = "bot"
cgroup = "portcullis.slice/bot/*"
autonomy = "autonomous"

[[upstream]]
name = "api"
protocol = "http"
address = ["localhost:{port}"]
tls = { ca = "{ca}" }

[[rule]]
name = "all waits"
verbs = ["read", "write"]
targets = ["**"]
effect = "hold"
reviewers = ["group:dba"]
expires = "15m"
"#;

const INTERIM: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

async fn interim(client: &mut DuplexStream) {
    let mut bytes = [0; INTERIM.len()];
    client.read_exact(&mut bytes).await.unwrap();
    assert_eq!(bytes, INTERIM, "{}", String::from_utf8_lossy(&bytes));
}

async fn is_silent(client: &mut DuplexStream) {
    assert!(timeout(Duration::from_secs(400), client.read_u8()).await.is_err());
}

async fn approve(house: &TestHouse) {
    house.house.holds.approve(&house.held().await.id, &reviewer("ann"), None, None).unwrap();
}

#[tokio::test]
async fn who_reads_interim_responses_is_told_that_a_request_waits() {
    let web = Web::start().unwrap();
    let house = TestHouse::new(&web, POLICY).unwrap();
    let mut client = house.connect();
    let head = "POST /orders HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 5\r\n";
    client.write_all(format!("{head}\r\n").as_bytes()).await.unwrap();
    interim(&mut client).await;
    client.write_all(b"hello").await.unwrap();
    // The next one, pipelined, does not say so.
    let plain = "GET /next HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    client.write_all(plain.as_bytes()).await.unwrap();
    house.held().await;
    pause();
    let began = Instant::now();
    for after in [15, 45, 105, 225] {
        interim(&mut client).await;
        let waited = began.elapsed().as_secs();
        assert!((after - 1..=after + 1).contains(&waited), "{waited} {after}");
    }
    is_silent(&mut client).await;
    resume();
    approve(&house).await;
    let mut all = Vec::new();
    let mut byte = [0];
    // All of the first response, and the second request waits.
    while house.house.holds.list().iter().filter(|hold| hold.state.as_str() == "requested").count() == 0 {
        if let Ok(Ok(1)) = timeout(Duration::from_millis(20), client.read(&mut byte)).await {
            all.push(byte[0]);
        }
    }
    pause();
    while let Ok(Ok(1)) = timeout(Duration::from_secs(400), client.read(&mut byte)).await {
        all.push(byte[0]);
    }
    resume();
    approve(&house).await;
    client.read_to_end(&mut all).await.unwrap();
    let answers = answers(&all);
    assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [200, 200], "{answers:?}");
    assert!(!String::from_utf8_lossy(&all).contains("HTTP/1.1 100"));
    assert_eq!(web.seen().unwrap().iter().map(|seen| &*seen.body).collect::<Vec<_>>(), ["hello", ""]);
}

#[tokio::test]
async fn who_does_not_hears_nothing_before_the_end() {
    for (version, fields) in [("1.1", "Connection: close\r\n"), ("1.0", "Expect: 100-continue\r\n")] {
        let web = Web::start().unwrap();
        let house = TestHouse::new(&web, POLICY).unwrap();
        let mut client = house.connect();
        let request = format!("POST /x HTTP/{version}\r\nHost: localhost\r\n{fields}Content-Length: 2\r\n\r\nhi");
        client.write_all(request.as_bytes()).await.unwrap();
        house.held().await;
        pause();
        is_silent(&mut client).await;
        resume();
        approve(&house).await;
        let mut all = Vec::new();
        client.read_to_end(&mut all).await.unwrap();
        assert_eq!(answers(&all).iter().map(|answer| answer.status).collect::<Vec<_>>(), [200], "{version}");
    }
}
