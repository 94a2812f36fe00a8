//! What others read in the same bytes: nginx, and Python's own server.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use portcullis_tests::{Seen, TestHouse, Web};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const READINGS: &str = include_str!("readings.txt");
const AFTER: &[u8] = b"GET /after HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
/// How long nobody says anything before it is over.
const SILENCE: Duration = Duration::from_millis(500);

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
name = "everything"
targets = ["**"]
effect = "allow"
"#;

/// Bytes as the file has them: `\\r`, `\\n`, `\\t`, `\\xHH`.
fn bytes(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text.chars();
    while let Some(char) = rest.next() {
        match (char, if char == '\\' { rest.next() } else { None }) {
            (_, Some('r')) => out.push(b'\r'),
            (_, Some('n')) => out.push(b'\n'),
            (_, Some('t')) => out.push(b'\t'),
            (_, Some('x')) => {
                let digits: String = rest.by_ref().take(2).collect();
                out.push(u8::from_str_radix(&digits, 16).unwrap());
            }
            (char, _) => out.extend(char.to_string().bytes()),
        }
    }
    out
}

/// Each request as it was read: method, path, body.
type Read = Vec<(String, String, String)>;

fn read_of(seen: &[Seen]) -> Read {
    seen.iter().map(|seen| (seen.method.clone(), seen.path.clone(), seen.body.clone())).collect()
}

fn statuses(answers: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(answers);
    text.split("HTTP/1.")
        .skip(1)
        .filter_map(|rest| rest.get(2..5)?.parse().ok())
        .filter(|status| *status != 100)
        .collect()
}

fn ask_directly(port: u16, request: &[u8]) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(SILENCE)).unwrap();
    // It may be closed before all of it is written.
    let _ = stream.write_all(request);
    let mut piece = [0; 4096];
    while stream.read(&mut piece).is_ok_and(|count| count > 0) {}
}

async fn ask_house(house: &TestHouse, request: &[u8]) -> Vec<u16> {
    let mut client = house.connect();
    let _ = client.write_all(request).await;
    let (mut heard, mut piece) = (Vec::new(), [0; 4096]);
    while let Ok(Ok(count @ 1..)) = tokio::time::timeout(SILENCE, client.read(&mut piece)).await {
        heard.extend_from_slice(&piece[..count]);
    }
    statuses(&heard)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_forwarded_is_what_nginx_and_python_read() {
    let (web, others) = (Web::start().unwrap(), Web::start_http2().unwrap());
    let house = TestHouse::new(&web, POLICY).unwrap();
    let (mut cases, mut refused, mut told_apart) = (0, 0, 0);
    for line in READINGS.lines().filter(|line| line.contains(" | ")) {
        let (name, text) = line.split_once(" | ").unwrap();
        let request = [&bytes(text)[..], AFTER].concat();
        let before = web.seen().unwrap().len();
        let answers = ask_house(&house, &request).await;
        let ours = read_of(&web.seen().unwrap()[before..]);
        let is_refused = answers.iter().any(|status| *status >= 400);
        let mut all = Vec::new();
        for (reader, port) in others.clear_ports() {
            let before = others.seen().unwrap().len();
            let (port, request) = (*port, request.clone());
            tokio::task::spawn_blocking(move || ask_directly(port, &request)).await.unwrap();
            let theirs = read_of(&others.seen().unwrap()[before..]);
            for (ours, theirs) in ours.iter().zip(&theirs) {
                assert_eq!(ours, theirs, "{name}: {reader} reads {theirs:?}");
            }
            // What it would read beyond what went there was refused.
            assert!(
                theirs.len() <= ours.len() || is_refused,
                "{name}: {reader} reads {theirs:?}, we {ours:?}, {answers:?}"
            );
            all.push(theirs);
        }
        assert!(is_refused || ours.last().is_some_and(|last| last.1 == "/after"), "{name}: {ours:?} {answers:?}");
        assert!(!ours.iter().any(|ours| ours.1 == "/smuggled"), "{name}: {ours:?}");
        cases += 1;
        refused += u32::from(is_refused);
        told_apart += u32::from(all[0] != all[1]);
    }
    println!("{cases} cases, {refused} refused, {told_apart} read in two ways by nginx and Python");
    assert!(cases >= 120 && refused >= 90 && told_apart >= 10, "{cases} {refused} {told_apart}");
}
