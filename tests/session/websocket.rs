//! WebSocket through the house, toward Python's `websockets`, and toward a server that sends what no library would.

use std::{fs, path::PathBuf};

use portcullis::record::EventBody;
use portcullis_tests::{PASSWORD, TestHouse, Web, reviewer};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

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
credential = { source = "file", path = "{password}", inject = "bearer" }

[[rule]]
name = "reads"
verbs = ["read"]
targets = ["**"]
effect = "allow"
"#;

const OPEN: &str = r#"
[[rule]]
name = "channels"
verbs = ["execute"]
targets = ["WEBSOCKET /**"]
except = ["WEBSOCKET /admin"]
effect = "allow"
"#;

const MASKS: &str = r#"
[[mask]]
detect = ["email"]
with = "redact"
"#;

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// The answer to that key (RFC 6455 section 1.3).
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
const SCRIPT: &str = include_str!("websocket_server.py");

fn site() -> PathBuf {
    let tools = std::env::var_os("PORTCULLIS_TOOLS").expect("PORTCULLIS_TOOLS is not set: run `cargo xtask test`");
    let lib = PathBuf::from(tools).join("python/lib");
    fs::read_dir(lib).unwrap().next().unwrap().unwrap().path().join("site-packages")
}

fn server() -> Web {
    Web::start_script(SCRIPT, &site()).unwrap()
}

/// One that sends the bytes that a path has in hexadecimal.
fn raw_server() -> Web {
    Web::start_script(&SCRIPT.replace("RAW = False", "RAW = True"), &site()).unwrap()
}

fn house(server: &Web, more: &str) -> TestHouse {
    TestHouse::new(server, &format!("{POLICY}{OPEN}{more}")).unwrap()
}

/// What the server noted; waits until `enough` lines are there.
async fn seen(server: &Web, enough: usize) -> Vec<Value> {
    loop {
        let text = fs::read_to_string(server.folder().join("seen")).unwrap_or_default();
        let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        if lines.len() >= enough {
            return lines;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

async fn record(house: &TestHouse) -> String {
    serde_json::to_string(&house.events().unwrap()).unwrap()
}

/// Waits until something is on record.
async fn recorded(house: &TestHouse, what: &str) -> String {
    loop {
        let record = record(house).await;
        if record.contains(what) {
            return record;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

fn head(target: &str, more: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{more}\r\n"
    )
}

/// A client that was upgraded; what it was answered.
struct Client {
    io: DuplexStream,
    heard: Vec<u8>,
    answer: String,
}

impl Client {
    async fn open(house: &TestHouse, target: &str, more: &str) -> Self {
        let mut io = house.connect();
        io.write_all(head(target, more).as_bytes()).await.unwrap();
        let mut heard = Vec::new();
        let end = loop {
            assert!(io.read_buf(&mut heard).await.unwrap() > 0, "no answer: {}", String::from_utf8_lossy(&heard));
            if let Some(at) = heard.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
        };
        let answer = String::from_utf8_lossy(&heard[..end]).into_owned();
        heard.drain(..end);
        Self { io, heard, answer }
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.io.write_all(bytes).await.unwrap();
    }

    /// The next frame: its first byte and its content. None is masked. `None` at the end.
    async fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if let Some((head, content, used)) = parse(&self.heard) {
                self.heard.drain(..used);
                return Some((head, content));
            }
            if self.io.read_buf(&mut self.heard).await.unwrap_or(0) == 0 {
                assert!(self.heard.is_empty(), "half a frame: {:?}", self.heard);
                return None;
            }
        }
    }

    async fn text(&mut self) -> String {
        let (head, content) = self.next().await.unwrap();
        assert_eq!(head, 0x81, "{content:?}");
        String::from_utf8(content).unwrap()
    }

    /// Code and reason of the close that comes next, behind which nothing comes.
    async fn closed(&mut self) -> (u16, String) {
        let (head, content) = self.next().await.unwrap();
        assert_eq!(head, 0x88, "{content:?}");
        assert_eq!(self.next().await, None);
        let code = u16::from_be_bytes([content[0], content[1]]);
        (code, String::from_utf8(content[2..].to_vec()).unwrap())
    }
}

fn parse(bytes: &[u8]) -> Option<(u8, Vec<u8>, usize)> {
    let short = usize::from(*bytes.get(1)?);
    assert!(short < 128, "a server masks nothing");
    let (length, from) = match short {
        126 => (usize::from(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?])), 4),
        127 => (usize::try_from(u64::from_be_bytes(*bytes.get(2..10)?.first_chunk()?)).unwrap(), 10),
        short => (short, 2),
    };
    Some((bytes[0], bytes.get(from..from + length)?.to_vec(), from + length))
}

/// A frame of a client, with the first byte as given.
fn frame(first: u8, content: &[u8]) -> Vec<u8> {
    let mask = [7, 1, 200, 9];
    let mut out = vec![first];
    match content.len() {
        short @ ..126 => out.push(0x80 | u8::try_from(short).unwrap()),
        medium @ ..65_536 => {
            out.push(0xfe);
            out.extend_from_slice(&u16::try_from(medium).unwrap().to_be_bytes());
        }
        long => {
            out.push(0xff);
            out.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&mask);
    out.extend(content.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    out
}

fn text(text: &str) -> Vec<u8> {
    frame(0x81, text.as_bytes())
}

fn close(code: u16) -> Vec<u8> {
    frame(0x88, &code.to_be_bytes())
}

#[tokio::test]
async fn messages_go_both_ways_masked_and_on_record() {
    let server = server();
    let house = house(&server, MASKS);
    let more = "Sec-WebSocket-Extensions: permessage-deflate\r\nSec-WebSocket-Protocol: other, chat\r\n\
                Authorization: Bearer mine\r\n";
    let mut client = Client::open(&house, "/echo", more).await;
    let answer = client.answer.to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 101 ") && answer.contains("\r\nsec-websocket-protocol: chat\r\n"), "{answer}");
    assert!(client.answer.contains(ACCEPT) && !answer.contains("extensions"), "{answer}");
    let long = "x".repeat(70_000);
    for (sent, heard) in [
        ("hello", "hello"),
        ("to someone@example.com", "to [redacted]"),
        (&*format!("it is {PASSWORD}."), "it is [redacted]."),
        (r#"{"to": "someone\u0040example.com", "n": 1}"#, r#"{"to": "[redacted]", "n": 1}"#),
        (r#"42["message","someone@example.com"]"#, r#"42["message","[redacted]"]"#),
        ("", ""),
        (&*long, &*long),
    ] {
        client.send(&text(sent)).await;
        assert_eq!(client.text().await, heard);
    }
    // In parts, with a ping between them; and of no known kind.
    client.send(&[frame(0x01, b"to someone@exa"), frame(0x89, b"ping"), frame(0x80, b"mple.com")].concat()).await;
    assert_eq!(client.next().await, Some((0x8a, b"ping".to_vec())));
    assert_eq!(client.text().await, "to [redacted]");
    client.send(&frame(0x82, format!("\0 someone@example.com {PASSWORD}").as_bytes())).await;
    assert_eq!(client.next().await, Some((0x82, b"\0 someone@example.com [redacted]".to_vec())));
    client.send(&frame(0x88, b"\x03\xe8bye")).await;
    assert_eq!(client.closed().await, (1000, "bye".into()));
    let seen = seen(&server, 11).await;
    assert_eq!(seen[0]["path"], "/echo");
    let field = |name: &str| {
        let fields = seen[0]["fields"].as_array().unwrap();
        let mut found = fields.iter().filter(|field| field[0] == name).map(|field| field[1].as_str().unwrap());
        found.next().filter(|_| found.next().is_none())
    };
    assert_eq!(field("authorization"), Some(&*format!("Bearer {PASSWORD}")));
    assert_eq!((field("sec-websocket-extensions"), field("upgrade")), (None, Some("websocket")));
    assert_eq!((field("sec-websocket-protocol"), field("sec-websocket-key")), (Some("other, chat"), Some(KEY)));
    // A ping is answered on the way, and not a message.
    let messages: Vec<&Value> = seen.iter().filter(|line| line.get("message").is_some()).collect();
    assert_eq!((messages.len(), messages[7]["message"].as_str()), (9, Some("to someone@example.com")));
    assert_eq!((&seen[10]["code"], &seen[10]["reason"]), (&1000.into(), &"bye".into()));
    let record = recorded(&house, "9 messages from the workload, 9 to it, 1 pings").await;
    assert!(!record.contains(PASSWORD) && record.contains("execute"), "{record:.3000}");
    let messages = house.events().unwrap();
    let messages = messages.iter().filter_map(|event| match &event.body {
        EventBody::Result { result, sample, bytes, masked, .. } if result.starts_with("WebSocket") => {
            Some((result.to_string(), sample.first().and_then(|row| row[0].clone()), *bytes, masked.count))
        }
        _ => None,
    });
    let messages: Vec<_> = messages.collect();
    assert_eq!(messages.len(), 18, "{messages:?}");
    let mail = Some("to someone@example.com".to_owned());
    assert!(messages.contains(&("WebSocket text from the workload".into(), mail, 22, 0)), "{messages:?}");
    let masked = Some("to [redacted]".to_owned());
    assert!(messages.contains(&("WebSocket text to the workload".into(), masked, 13, 1)), "{messages:?}");
    assert!(messages.contains(&("WebSocket text to the workload".into(), Some("x".repeat(4096)), 70_000, 0)));
}

#[tokio::test]
async fn what_the_upstream_sends_in_parts_is_masked_as_a_whole() {
    let server = server();
    let house = house(&server, MASKS);
    let whole = format!("to someone@example.com with {PASSWORD}, both");
    for at in 1..whole.len() {
        let (first, second) = whole.split_at(at);
        let escape = |text: &str| text.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
        let target = format!("/echo?ping=1&parts={}&parts={}", escape(first), escape(second));
        // In the query there is a secret, which is not ours to hide from the upstream.
        let mut client = Client::open(&house, &target, "").await;
        assert_eq!(client.text().await, "to [redacted] with [redacted], both", "cut at {at}");
        client.send(&close(1000)).await;
        assert_eq!(client.closed().await.0, 1000);
    }
}

#[tokio::test]
async fn it_does_not_matter_where_a_stream_is_cut() {
    let server = server();
    let house = house(&server, MASKS);
    let stream =
        [frame(0x01, b"one "), frame(0x89, b"?"), frame(0x00, b""), frame(0x80, b"two"), text(&"y".repeat(200))]
            .concat();
    for at in 0..=stream.len() {
        let mut client = Client::open(&house, "/echo", "").await;
        client.send(&stream[..at]).await;
        tokio::task::yield_now().await;
        client.send(&stream[at..]).await;
        assert_eq!(client.next().await, Some((0x8a, b"?".to_vec())), "cut at {at}");
        assert_eq!((client.text().await, client.text().await), ("one two".into(), "y".repeat(200)), "cut at {at}");
        client.send(&close(1000)).await;
        assert_eq!(client.closed().await.0, 1000, "cut at {at}");
    }
}

async fn status(house: &TestHouse, request: &str) -> (u16, String) {
    let mut client = house.connect();
    client.write_all(request.as_bytes()).await.unwrap();
    let mut out = Vec::new();
    while !out.windows(4).any(|window| window == b"\r\n\r\n") {
        assert!(client.read_buf(&mut out).await.unwrap() > 0, "no answer to {request}");
    }
    drop(client);
    let text = String::from_utf8_lossy(&out).into_owned();
    (text.split(' ').nth(1).unwrap().parse().unwrap(), text)
}

#[tokio::test]
async fn a_channel_needs_a_rule_of_its_own() {
    let server = server();
    let reads = TestHouse::new(&server, POLICY).unwrap();
    let (code, answer) = status(&reads, &head("/echo", "")).await;
    assert_eq!(code, 403, "to read is not to open a channel: {answer}");
    let routed =
        POLICY.replace("[[rule]]", "[[upstream.route]]\ntargets = [\"WEBSOCKET /e*\"]\nverb = \"read\"\n\n[[rule]]");
    let routed = TestHouse::new(&server, &routed).unwrap();
    assert_eq!(status(&routed, &head("/echo", "")).await.0, 101);
    assert_eq!(status(&routed, &head("/other", "")).await.0, 403);
    let rules = r#"
[[rule]]
name = "no channel for others"
when = "http.upgrade == 'websocket' && http.path != '/echo' && http.path != '/held'"
effect = "deny"
[[rule]]
name = "asked"
targets = ["WEBSOCKET /held"]
effect = "hold"
reviewers = ["group:dba"]
"#;
    let house = house(&server, rules);
    for (target, code) in [("/echo", 101), ("/other", 403), ("/admin", 403), ("/x/..%2fadmin", 403)] {
        assert_eq!(status(&house, &head(target, "")).await.0, code, "{target}");
    }
    let (mut client, ()) = tokio::join!(Client::open(&house, "/held", ""), async {
        let held = house.held().await;
        assert!(held.command.contains("GET /held"), "{held:?}");
        house.house.holds.approve(&held.id, &reviewer("dora"), None, None).unwrap();
    });
    client.send(&text("hello")).await;
    assert_eq!(client.text().await, "hello");
    // Nobody else's method.
    let (code, answer) = status(&house, "WEBSOCKET /echo HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert_eq!(code, 400, "{answer}");
    let mut opened = 0;
    while opened < 3 {
        opened = seen(&server, 3).await.iter().filter(|line| line.get("path").is_some()).count();
    }
    assert_eq!(opened, 3);
}

#[tokio::test]
async fn a_handshake_that_is_wrong_reaches_nobody() {
    let server = server();
    let house = house(&server, "");
    let fine = head("/echo", "");
    let version = "Sec-WebSocket-Version: 13\r\n";
    let key = format!("Sec-WebSocket-Key: {KEY}\r\n");
    for (what, request, code) in [
        ("another protocol", fine.replace("WebSocket\r\n", "tls/1.0\r\n"), 501),
        ("several protocols", fine.replace("WebSocket\r\n", "websocket, h2c\r\n"), 501),
        ("two fields", fine.replace("Upgrade: WebSocket\r\n", "Upgrade: websocket\r\nUpgrade: websocket\r\n"), 501),
        ("no Connection", fine.replace("keep-alive, Upgrade", "keep-alive"), 400),
        ("POST", fine.replacen("GET", "POST", 1), 400),
        ("HTTP/1.0", fine.replacen("HTTP/1.1", "HTTP/1.0", 1), 400),
        ("a body", fine.replacen("\r\n\r\n", "\r\nContent-Length: 1\r\n\r\nx", 1), 400),
        ("chunks", fine.replacen("\r\n\r\n", "\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 1), 400),
        ("no key", fine.replacen(&key, "", 1), 400),
        ("two keys", fine.replacen(&key, &format!("{key}{key}"), 1), 400),
        ("a short key", fine.replacen(KEY, "c2hvcnQ=", 1), 400),
        ("a key that is none", fine.replacen(KEY, "!!!!", 1), 400),
        ("no version", fine.replacen(version, "", 1), 426),
        ("an old version", fine.replacen(version, "Sec-WebSocket-Version: 8\r\n", 1), 426),
        ("two versions", fine.replacen(version, "Sec-WebSocket-Version: 13, 8\r\n", 1), 426),
        ("a subprotocol twice", fine.replacen(version, &format!("{version}Sec-WebSocket-Protocol: a, a\r\n"), 1), 400),
    ] {
        let (got, answer) = status(&house, &request).await;
        assert_eq!(got, code, "{what}: {answer}");
        assert_eq!(code == 426, answer.to_ascii_lowercase().contains("\r\nsec-websocket-version: 13\r\n"), "{answer}");
    }
    assert!(!server.folder().join("seen").exists(), "somebody was asked");
    assert_eq!(record(&house).await.matches("\"kind\":\"command\"").count(), 16);
}

#[tokio::test]
async fn an_answer_that_is_none_does_not_come_through() {
    let server = raw_server();
    let house = house(&server, "");
    for (query, why) in [
        ("Sec-WebSocket-Accept=AAAA", "not the answer to the key"),
        ("Sec-WebSocket-Accept=none", "not the answer to the key"),
        ("Upgrade=h2c", "another one than was asked for"),
        ("Upgrade=none", ""),
        ("Connection=close", ""),
        ("Sec-WebSocket-Extensions=permessage-deflate", "that nobody offered"),
        ("Sec-WebSocket-Protocol=chat", "that nobody offered"),
    ] {
        let (code, answer) = status(&house, &head(&format!("/raw?{query}"), "")).await;
        assert_eq!(code, 502, "{query}: {answer}");
        let record = recorded(&house, why).await;
        assert!(record.contains("broken off"), "{record}");
    }
    // What is no upgrade is a response as any other; and nobody is upgraded who did not ask.
    let (code, _) = status(&house, &head("/raw?status=403+Forbidden&Upgrade=none&Content-Length=0", "")).await;
    assert_eq!(code, 403);
}

#[tokio::test]
async fn a_client_that_breaks_the_protocol_is_told_so_and_the_upstream_hears_nothing_of_it() {
    let server = server();
    let house = TestHouse::with_limits(
        &server,
        &format!("{POLICY}{OPEN}"),
        portcullis::wire::Limits { command: 100_000, ..portcullis::wire::Limits::default() },
    )
    .unwrap();
    let mut unmasked = text("hello");
    unmasked[1] &= 0x7f;
    unmasked.drain(2..6);
    let cases: Vec<(&str, Vec<u8>, u16)> = vec![
        ("not masked", unmasked, 1002),
        ("a request in its place", b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(), 1002),
        ("a reserved bit", frame(0xc1, b"x"), 1002),
        ("an opcode that is none", frame(0x83, b"x"), 1002),
        ("a ping in parts", frame(0x09, b"x"), 1002),
        ("a long ping", frame(0x89, &[0; 126]), 1002),
        ("going on with nothing", frame(0x80, b"x"), 1002),
        ("a message in a message", [frame(0x01, b"x"), text("y")].concat(), 1002),
        ("a code that nobody sends", close(1005), 1002),
        ("text that is none", frame(0x81, b"\xff\xfe"), 1007),
        ("half a character", [frame(0x01, b"\xc3"), frame(0x80, b"")].concat(), 1007),
        ("too long", frame(0x82, &vec![0; 100_001]), 1009),
        ("too long in parts", [frame(0x02, &vec![0; 60_000]), frame(0x80, &vec![0; 60_000])].concat(), 1009),
    ];
    let before = seen(&server, 0).await.len();
    for (what, bytes, code) in &cases {
        let mut client = Client::open(&house, "/echo", "").await;
        // It may be closed before all of it is written.
        let _ = client.io.write_all(bytes).await;
        let (got, reason) = client.closed().await;
        assert_eq!(got, *code, "{what}: {reason}");
        assert!(!reason.is_empty(), "{what}");
        recorded(&house, &format!("{reason} ({code})")).await;
    }
    let seen = seen(&server, before + 2 * cases.len()).await;
    assert!(seen.iter().all(|line| line.get("message").is_none()), "{seen:?}");
    let codes = seen.iter().filter(|line| line["code"] == 1001).count();
    assert_eq!(codes, cases.len(), "the upstream is told that the client is gone: {seen:?}");
}

#[tokio::test]
async fn an_upstream_that_breaks_the_protocol_is_told_so_and_the_client_hears_nothing_of_it() {
    let server = raw_server();
    let house = house(&server, MASKS);
    for (n, (what, bytes, code)) in [
        ("masked", text("hello"), 1002),
        ("a reserved bit", vec![0xc1, 1, b'x'], 1002),
        ("an opcode that is none", vec![0x83, 1, b'x'], 1002),
        ("a ping in parts", vec![0x09, 1, b'x'], 1002),
        ("a length of two bytes that fits in one", vec![0x81, 126, 0, 1, b'x'], 1002),
        ("text that is none", vec![0x81, 1, 0xff], 1007),
        ("no end to it", [&[0x82, 127][..], &(1u64 << 40).to_be_bytes()].concat(), 1009),
    ]
    .into_iter()
    .enumerate()
    {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut client = Client::open(&house, &format!("/raw?hex={hex}"), "").await;
        assert_eq!(client.closed().await, (1001, String::new()), "{what}");
        let seen = seen(&server, n + 1).await;
        let received = data_encoding::HEXLOWER.decode(seen[n]["received"].as_str().unwrap().as_bytes()).unwrap();
        assert_eq!((received[0], received[1] & 0x80), (0x88, 0x80), "{what}: a close, masked");
        let told = u16::from_be_bytes([received[6] ^ received[2], received[7] ^ received[3]]);
        assert_eq!(told, code, "{what}");
    }
    let record = record(&house).await;
    assert_eq!(record.matches("broken off: the upstream sent: ").count(), 7, "{record}");
    // One that just goes leaves nobody waiting.
    let mut client = Client::open(&house, "/raw?hex=8100", "").await;
    assert_eq!(client.text().await, "");
    drop(server);
    assert_eq!(client.closed().await.0, 1001);
    recorded(&house, "the upstream left without a close").await;
}

#[tokio::test]
async fn what_must_not_leave_is_masked_in_messages_too() {
    let server = server();
    let house = house(
        &server,
        "[[mask]]\nupstream = \"api\"\ndirection = \"request\"\ndetect = [\"email\"]\nwith = \"redact\"\n",
    );
    let mut client = Client::open(&house, "/echo", "").await;
    for (sent, heard) in [
        ("to someone@example.com", "to [redacted]"),
        (r#"{"to": "someone\u0040example.com"}"#, r#"{"to": "[redacted]"}"#),
    ] {
        client.send(&text(sent)).await;
        assert_eq!(client.text().await, heard);
    }
    client.send(&[frame(0x02, b"to someone"), frame(0x80, b"@example.com")].concat()).await;
    assert_eq!(client.next().await, Some((0x82, b"to [redacted]".to_vec())));
    let record = record(&house).await;
    assert!(record.contains("request:email") && !record.contains("someone"), "{record}");
}

#[tokio::test]
async fn places_in_messages_are_masked_and_what_is_no_json_does_not_come_through() {
    let server = server();
    let places = "[[mask]]\njson = [\"name\", \"*/name\"]\nwith = \"redact\"\n";
    let house = house(&server, places);
    let mut client = Client::open(&house, "/echo", "").await;
    for (sent, heard) in [
        (r#"{"name": "Ann", "n": 1}"#, r#"{"name": "[redacted]", "n": 1}"#),
        (r#"[{"name": "Ann"}]"#, r#"[{"name": "[redacted]"}]"#),
        ("hello", "hello"),
    ] {
        client.send(&text(sent)).await;
        assert_eq!(client.text().await, heard);
    }
    client.send(&text(r#"x{"name": "Ann"}"#)).await;
    let (code, reason) = client.closed().await;
    assert_eq!(code, 1008);
    assert!(reason.contains("places in JSON"), "{reason}");
    let hides = self::house(&server, &places.replace("with =", "unresolved = \"mask\"\nwith ="));
    let mut client = Client::open(&hides, "/echo", "").await;
    client.send(&text(r#"x{"name": "Ann"}"#)).await;
    assert_eq!(client.text().await, "[redacted]");
}

#[tokio::test]
async fn a_channel_ends_with_the_right_to_it() {
    let server = server();
    let house = house(&server, "");
    let mut client = Client::open(&house, "/echo", "").await;
    client.send(&text("hello")).await;
    assert_eq!(client.text().await, "hello");
    let closed = format!("{POLICY}{OPEN}[[rule]]\nname = \"closed\"\nverbs = [\"connect\"]\neffect = \"deny\"\n");
    house.reload(&server, &closed).unwrap();
    let (code, reason) = client.closed().await;
    assert_eq!((code, &*reason), (1008, "the policy no longer allows this connection"));
    recorded(&house, "broken off: the policy no longer allows this connection").await;
    let seen = seen(&server, 3).await;
    assert_eq!(seen[2]["code"], 1001);
}
