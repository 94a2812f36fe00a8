//! HTTP/2 through the house, toward a real server that speaks it.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, client::conn::http2::SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use portcullis::record::{Event, EventBody};
use portcullis_tests::{PASSWORD, TestHouse, Web, reviewer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

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
name = "reads and writes"
verbs = ["read", "write"]
targets = ["**"]
effect = "allow"

[[rule]]
name = "nobody administers"
targets = ["* /admin", "* /admin/**"]
effect = "deny"
reason = "administration is not for bots"

[[rule]]
name = "deletes wait"
verbs = ["delete"]
effect = "hold"
reviewers = ["group:dba"]
expires = "60s"

[[mask]]
detect = ["email"]
with = "redact"
"#;

pub type Client = SendRequest<Full<Bytes>>;

pub async fn client(house: &TestHouse) -> Client {
    let (client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(house.connect())).await.unwrap();
    tokio::spawn(connection);
    client
}

pub fn request(method: &str, target: &str, fields: &[(&str, &str)], body: &str) -> Request<Full<Bytes>> {
    let mut request = Request::builder().method(method).uri(format!("http://localhost{target}"));
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(Full::new(body.to_owned().into())).unwrap()
}

pub async fn ask(client: &Client, request: Request<Full<Bytes>>) -> (hyper::http::response::Parts, String) {
    let response: Response<Incoming> = client.clone().send_request(request).await.unwrap();
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (head, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test]
async fn requests_go_through_at_once_each_judged_and_none_in_the_way_of_another() {
    let web = Web::start_http2().unwrap();
    let house = TestHouse::new(&web, POLICY).unwrap();
    let client = client(&house).await;
    // One waits for a reviewer; a hundred others do not.
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { ask(&client, request("DELETE", "/orders/7", &[], "")).await }
    });
    let held = house.held().await;
    let asked = (0..50).map(|n| {
        let client = client.clone();
        async move {
            let fields = [("authorization", "Bearer mine"), ("x-n", "1")];
            let (head, body) = ask(&client, request("POST", &format!("/echo?n={n}"), &fields, "hello")).await;
            assert_eq!(head.status, 200, "{body}");
            let seen: serde_json::Value = serde_json::from_str(&body).unwrap();
            assert_eq!((seen["path"].as_str(), seen["body"].as_str()), (Some(&*format!("/echo?n={n}")), Some("hello")));
            assert!(!body.contains(PASSWORD), "{body}");
            let (head, body) = ask(&client, request("GET", "/x/../admin/users", &[], "")).await;
            let problem: serde_json::Value = serde_json::from_str(&body).unwrap();
            assert_eq!((head.status.as_u16(), problem["rule"].as_str()), (403, Some("nobody administers")));
        }
    });
    futures_util::future::join_all(asked).await;
    let (_, body) = ask(&client, request("POST", "/body", &[], "to someone@example.com")).await;
    assert_eq!(body, "to [redacted]");
    assert!(!waiting.is_finished());
    house.house.holds.approve(&held.id, &reviewer("alice"), None, None).unwrap();
    let (head, body) = waiting.await.unwrap();
    assert_eq!((head.status.as_u16(), &*body), (200, "fine"));
    assert!(!head.headers.contains_key("alt-svc"), "{head:?}");
    let seen = web.seen().unwrap();
    assert_eq!(seen.len(), 52, "nothing that was refused went there");
    for seen in &seen {
        assert_eq!(seen.header("x-spoken"), Some("HTTP/2.0"), "{seen:?}");
        assert_eq!(seen.header("authorization"), Some(&*format!("Bearer {PASSWORD}")), "{seen:?}");
        assert_eq!(seen.header("host"), Some("localhost"), "{seen:?}");
    }
}

#[tokio::test]
async fn a_request_that_is_reset_withdraws_its_hold_and_the_others_go_on() {
    let web = Web::start_http2().unwrap();
    let house = TestHouse::new(&web, POLICY).unwrap();
    let client = client(&house).await;
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { ask(&client, request("DELETE", "/orders/7", &[], "")).await }
    });
    let held = house.held().await;
    waiting.abort();
    while house.house.holds.list().iter().any(|view| view.id == held.id && view.state.as_str() == "requested") {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(ask(&client, request("GET", "/x", &[], "")).await.1, "fine");
    assert_eq!(web.seen().unwrap().len(), 1);
}

#[tokio::test]
async fn what_has_two_readings_is_refused_and_recorded() {
    let web = Web::start_http2().unwrap();
    let house = TestHouse::new(&web, POLICY).unwrap();
    let client = client(&house).await;
    for (method, target, fields, status) in [
        ("GET", "/", &[("host", "other")][..], 400),
        ("POST", "/", &[("content_length", "3")], 400),
        ("POST", "/", &[("transfer_encoding", "chunked")], 400),
        ("get", "/", &[], 400),
        ("GET", "/%2e%2e%2fadmin", &[], 400),
        ("GET", "//admin", &[], 403),
        ("GET", "/admin;x=1", &[], 403),
        ("GET", "/x", &[("x-original-url", "/admin")], 400),
        ("POST", "/admin", &[("x-http-method-override", "GET")], 403),
        ("TRACE", "/", &[], 403),
    ] {
        let (head, body) = ask(&client, request(method, target, fields, "")).await;
        assert_eq!(head.status, status, "{method} {target} {fields:?}: {body}");
    }
    let (head, _) = ask(&client, Request::get("http://elsewhere/x").body(Full::default()).unwrap()).await;
    assert_eq!(head.status, 421);
    assert!(web.seen().unwrap().is_empty());
    let record = serde_json::to_string(&house.events().unwrap()).unwrap();
    assert_eq!(record.matches("\"kind\":\"command\"").count(), 11, "{record}");
}

#[tokio::test]
async fn a_refused_call_of_grpc_is_told_in_its_own_way() {
    let web = Web::start_http2().unwrap();
    let house = TestHouse::new(&web, POLICY).unwrap();
    let client = client(&house).await;
    let fields = [("content-type", "application/grpc+proto"), ("te", "trailers")];
    let (head, body) = ask(&client, request("POST", "/admin/Remove", &fields, "\0\0\0\0\0")).await;
    assert_eq!((head.status.as_u16(), &*body), (200, ""));
    assert_eq!(head.headers["grpc-status"], "7");
    assert!(head.headers["grpc-message"].to_str().unwrap().contains("administration is not for bots"), "{head:?}");
}

/// A frame (RFC 9113 section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A field that no table knows (RFC 7541 section 6.2.2).
fn field(name: &str, value: &str) -> Vec<u8> {
    let length = |text: &str| u8::try_from(text.len()).unwrap();
    [&[0, length(name)], name.as_bytes(), &[length(value)], value.as_bytes()].concat()
}

fn head(more: &[(&str, &str)]) -> Vec<u8> {
    let usual = [(":method", "POST"), (":scheme", "http"), (":authority", "localhost"), (":path", "/body")];
    usual.iter().chain(more).flat_map(|(name, value)| field(name, value)).collect()
}

/// What no library sends: frames by hand, each on a connection of its own. Nothing of it reaches the upstream, whoever
/// refuses it, and the house goes on.
#[tokio::test]
async fn frames_that_are_wrong_reach_nobody() {
    let web = Web::start_http2().unwrap();
    let house = TestHouse::new(&web, POLICY).unwrap();
    let all = |stream, more: &[(&str, &str)]| frame(1, 5, stream, &head(more));
    let long = "x".repeat(120);
    let many: Vec<(&str, &str)> = (0..700).map(|_| ("x-long", long.as_str())).collect();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("upper case", all(1, &[("X-Upper", "1")])),
        ("connection", all(1, &[("connection", "close")])),
        ("transfer-encoding", all(1, &[("transfer-encoding", "chunked")])),
        ("upgrade", all(1, &[("upgrade", "websocket")])),
        ("te", all(1, &[("te", "gzip")])),
        ("pseudo field twice", all(1, &[(":path", "/admin")])),
        ("pseudo field late", frame(1, 5, 1, &[&head(&[("x", "1")])[..], &field(":path", "/admin")].concat())),
        ("unknown pseudo field", all(1, &[(":protocol", "websocket")])),
        ("response field", all(1, &[(":status", "200")])),
        ("no path", frame(1, 5, 1, &[field(":method", "GET"), field(":scheme", "http")].concat())),
        ("no method", frame(1, 5, 1, &[field(":path", "/"), field(":scheme", "http")].concat())),
        (
            "empty path",
            frame(1, 5, 1, &[field(":method", "GET"), field(":scheme", "http"), field(":path", "")].concat()),
        ),
        (
            "relative path",
            frame(1, 5, 1, &[field(":method", "GET"), field(":scheme", "http"), field(":path", "x")].concat()),
        ),
        ("newline in a value", all(1, &[("x", "a\r\nb: c")])),
        ("nul in a value", all(1, &[("x", "a\0b")])),
        ("newline in a name", all(1, &[("a\r\nb", "c")])),
        (
            "space in a path",
            frame(
                1,
                5,
                1,
                &[
                    field(":method", "GET"),
                    field(":scheme", "http"),
                    field(":authority", "localhost"),
                    field(":path", "/ HTTP/1.1"),
                ]
                .concat(),
            ),
        ),
        ("CONNECT", frame(1, 5, 1, &[field(":method", "CONNECT"), field(":authority", "localhost:1")].concat())),
        (
            "other scheme",
            frame(
                1,
                5,
                1,
                &[
                    field(":method", "GET"),
                    field(":scheme", "https"),
                    field(":authority", "localhost"),
                    field(":path", "/"),
                ]
                .concat(),
            ),
        ),
        (
            "user name",
            frame(
                1,
                5,
                1,
                &[
                    field(":method", "GET"),
                    field(":scheme", "http"),
                    field(":authority", "a@localhost"),
                    field(":path", "/"),
                ]
                .concat(),
            ),
        ),
        ("two lengths", all(1, &[("content-length", "0"), ("content-length", "0")])),
        ("length that is none", all(1, &[("content-length", "-1")])),
        ("more body than said", [frame(1, 4, 1, &head(&[("content-length", "1")])), frame(0, 1, 1, b"two")].concat()),
        ("less body than said", [frame(1, 4, 1, &head(&[("content-length", "9")])), frame(0, 1, 1, b"two")].concat()),
        ("even stream", all(2, &[])),
        ("stream 0", all(0, &[])),
        ("data on stream 0", frame(0, 1, 0, b"x")),
        ("data before a head", frame(0, 1, 1, b"x")),
        ("continuation of nothing", frame(9, 4, 1, &head(&[]))),
        ("another frame within a head", [frame(1, 1, 1, &head(&[])), frame(6, 0, 0, &[0; 8])].concat()),
        ("bad table index", frame(1, 5, 1, &[0xff, 0xff, 0xff, 0xff, 0x7f])),
        ("too long a frame", frame(1, 5, 1, &vec![0; 20_000])),
        ("padding longer than the frame", frame(1, 0x0d, 1, &[255, 0])),
        ("settings of a wrong length", frame(4, 0, 0, &[0; 5])),
        ("window of nothing", frame(8, 0, 0, &[0; 4])),
        ("push", frame(5, 4, 1, &[0, 0, 0, 2, 0x82])),
        ("reset of an idle stream", frame(3, 0, 1, &[0; 4])),
        ("priority of itself", [frame(2, 0, 1, &[0, 0, 0, 1, 0]), vec![]].concat()),
        (
            "a head without end",
            (0..40).map(|n| frame(if n == 0 { 1 } else { 9 }, 0, 1, &vec![0; 16_000])).collect::<Vec<_>>().concat(),
        ),
        (
            "too many fields",
            [
                frame(1, 1, 1, &head(&many[..100])),
                frame(9, 0, 1, &many[100..200].iter().flat_map(|(n, v)| field(n, v)).collect::<Vec<_>>()),
                frame(9, 4, 1, &many[200..300].iter().flat_map(|(n, v)| field(n, v)).collect::<Vec<_>>()),
            ]
            .concat(),
        ),
    ];
    let refused = || {
        let events = house.events().unwrap();
        let deny = |event: &&Arc<Event>| matches!(&event.body, EventBody::Command { decision, .. } if &*decision.effect == "deny");
        events.iter().filter(deny).count()
    };
    let (mut reached, mut untold) = (Vec::new(), Vec::new());
    for (what, bytes) in &cases {
        let before = refused();
        let mut client = house.connect();
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let ping = frame(6, 0, 0, b"the end.");
        let sent = [preface, frame(4, 0, 0, &[]), bytes.clone(), ping].concat();
        // It may be closed before it was read to its end.
        let _ = client.write_all(&sent).await;
        // Until it is answered, or the connection is closed.
        let (mut heard, mut piece) = (Vec::new(), [0; 4096]);
        let read = async {
            while !heard.windows(8).any(|window| window == b"the end.") {
                match client.read(&mut piece).await {
                    Ok(0) | Err(_) => break,
                    Ok(count) => heard.extend_from_slice(&piece[..count]),
                }
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), read)
            .await
            .unwrap_or_else(|_| panic!("{what}: no end"));
        // Whoever refuses it, it is on record, once.
        let told = async {
            while refused() == before {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(std::time::Duration::from_secs(2), told).await.is_err() || refused() != before + 1 {
            untold.push((what, refused() - before));
        }
        if !web.seen().unwrap().is_empty() {
            reached.push(what);
        }
    }
    assert!(reached.is_empty() && untold.is_empty(), "reached {reached:?}, not told once {untold:?}");
    assert_eq!(ask(&client(&house).await, request("GET", "/x", &[], "")).await.1, "fine");
    assert_eq!(web.seen().unwrap().len(), 1);
}

#[tokio::test]
async fn what_the_library_refuses_is_on_record() {
    const HEADERS: u8 = 1;
    const END: u8 = 5;
    let web = Web::start_http2().unwrap();
    let get = |more: &[(&str, &str)]| {
        let usual = [(":method", "GET"), (":scheme", "http"), (":authority", "localhost"), (":path", "/")];
        usual.iter().chain(more).flat_map(|(name, value)| field(name, value)).collect::<Vec<u8>>()
    };
    let good = frame(HEADERS, END, 5, &get(&[]));
    for (frames, refusals) in [
        // Fields of one connection, and one of its kind twice: each is refused, and the connection goes on.
        (
            [frame(HEADERS, END, 1, &get(&[("connection", "close")])), good.clone()],
            vec!["stream 1 of HTTP/2: what was sent is malformed (PROTOCOL_ERROR)"],
        ),
        (
            [
                frame(HEADERS, END, 1, &get(&[("connection", "close")])),
                frame(HEADERS, END, 3, &get(&[(":path", "/x")])),
            ],
            vec![
                "stream 1 of HTTP/2: what was sent is malformed (PROTOCOL_ERROR)",
                "stream 3 of HTTP/2: what was sent is malformed (PROTOCOL_ERROR)",
            ],
        ),
        // More than its head says: the upstream hears nothing of what is wrong.
        (
            [frame(HEADERS, 4, 1, &get(&[("content-length", "1")])), frame(0, 1, 1, b"two")],
            vec!["stream 1 of HTTP/2: what was sent is malformed (PROTOCOL_ERROR)"],
        ),
        // Of the whole connection: a name in upper case, data on no stream, fields that cannot be read, a frame of an impossible length.
        (
            [frame(HEADERS, END, 1, &get(&[("X-Upper", "1")])), Vec::new()],
            vec!["the connection of HTTP/2: what was sent is malformed (PROTOCOL_ERROR)"],
        ),
        (
            [frame(0, 0, 0, b"x"), Vec::new()],
            vec!["the connection of HTTP/2: what was sent is malformed (PROTOCOL_ERROR)"],
        ),
        (
            [frame(HEADERS, END, 1, &[0xff, 0xff, 0xff, 0xff, 0x7f]), Vec::new()],
            vec!["the connection of HTTP/2: what was sent is malformed (PROTOCOL_ERROR)"],
        ),
        (
            [frame(6, 0, 0, b"short"), Vec::new()],
            vec!["the connection of HTTP/2: what was sent is malformed (PROTOCOL_ERROR)"],
        ),
    ] {
        let house = TestHouse::new(&web, POLICY).unwrap();
        let mut client = house.connect();
        let hello = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, &[])].concat();
        client.write_all(&[hello, frames.concat()].concat()).await.unwrap();
        let wait = async {
            loop {
                let record = serde_json::to_string(&house.events().unwrap()).unwrap();
                let found = refusals.iter().filter(|refusal| record.contains(&format!("refused: {refusal}\""))).count();
                if found == refusals.len() && (frames[1] != good || record.contains("200 OK")) {
                    return record;
                }
                let mut bytes = [0; 4096];
                let _ = tokio::time::timeout(std::time::Duration::from_millis(20), client.read(&mut bytes)).await;
            }
        };
        let record = tokio::time::timeout(std::time::Duration::from_secs(10), wait).await;
        let record = record
            .unwrap_or_else(|_| panic!("{refusals:?}: {}", serde_json::to_string(&house.events().unwrap()).unwrap()));
        assert_eq!(record.matches("\"http framing\"").count(), refusals.len(), "{record}");
        assert!(record.contains("\"refused: "), "{record}");
    }
    assert!(web.seen().unwrap().iter().all(|seen| seen.path == "/" && seen.method == "GET"));
}
