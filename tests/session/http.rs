//! HTTP through the house, toward a real web server.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use portcullis::{
    policy::{TlsMode, TlsSpec},
    record::EventBody,
    session::Network as _,
    wire::Limits,
};
use portcullis_tests::{PASSWORD, Seen, Server as _, TestHouse, Web, reviewer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};

const POLICY: &str = r#"
[workload]
name = "bot"
cgroup = "portcullis.slice/bot/*"
autonomy = "autonomous"

[[upstream]]
name = "api"
protocol = "http"
address = ["localhost:{port}", "127.0.0.1:{port}"]
tls = { ca = "{ca}" }
credential = { source = "file", path = "{password}", inject = "bearer" }

[[rule]]
name = "reads"
verbs = ["read"]
targets = ["**"]
effect = "allow"

[[rule]]
name = "writes"
verbs = ["write"]
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

[[rule]]
name = "orders wait"
targets = ["POST /orders"]
effect = "hold"
reviewers = ["group:dba"]
expires = "60s"
"#;

const MASKS: &str = r#"
[[mask]]
detect = ["email", "credit_card"]
with = "redact"
"#;

const PLACES: &str = r#"
[[mask]]
json = ["customers/*/name", "**/phone"]
with = "redact"
"#;

/// A response, its body without chunks.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
    bytes: Vec<u8>,
}

impl Answer {
    fn has(&self, field: &str) -> bool {
        self.head.to_ascii_lowercase().contains(&format!("\r\n{field}"))
    }

    pub fn problem(&self) -> serde_json::Value {
        assert!(self.head.contains("application/problem+json"), "{self:?}");
        serde_json::from_str(&self.body).unwrap()
    }
}

/// Every answer to these bytes, up to the end of the connection.
async fn exchange(house: &TestHouse, bytes: &[u8]) -> Vec<Answer> {
    let mut client = house.connect();
    client.write_all(bytes).await.unwrap();
    let mut out = Vec::new();
    // A connection that is cut off says all that it says.
    let _ = client.read_to_end(&mut out).await;
    answers(&out)
}

pub fn answers(mut rest: &[u8]) -> Vec<Answer> {
    let mut all = Vec::new();
    while let Some(end) = rest.windows(4).position(|window| window == b"\r\n\r\n") {
        let head = String::from_utf8_lossy(&rest[..end + 2]).into_owned();
        rest = &rest[end + 4..];
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let lower = head.to_ascii_lowercase();
        let length =
            lower.split("\r\ncontent-length: ").nth(1).and_then(|l| l.lines().next()).map(|n| n.parse::<usize>());
        let mut body = Vec::new();
        if let Some(length) = length {
            let length = length.unwrap().min(rest.len());
            body.extend_from_slice(&rest[..length]);
            rest = &rest[length..];
        } else if lower.contains("transfer-encoding: chunked") {
            while let Some(line) = rest.windows(2).position(|window| window == b"\r\n") {
                let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
                let from = line + 2;
                let Some(piece) = rest.get(from..from + size) else { break };
                body.extend_from_slice(piece);
                rest = rest.get(from + size + 2..).unwrap_or_default();
                if size == 0 {
                    break;
                }
            }
        }
        // Interim responses say nothing here.
        if status < 200 {
            continue;
        }
        all.push(Answer { status, head, body: String::from_utf8_lossy(&body).into_owned(), bytes: body });
    }
    all
}

/// One request on a connection of its own.
pub async fn ask(house: &TestHouse, method: &str, target: &str, fields: &str, body: &[u8]) -> Answer {
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let head = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{fields}{length}\r\n");
    let mut answers = exchange(house, &[head.as_bytes(), body].concat()).await;
    assert_eq!(answers.len(), 1, "{method} {target}: {answers:?}");
    answers.remove(0)
}

fn house(web: &Web, more: &str) -> TestHouse {
    TestHouse::new(web, &format!("{POLICY}{more}")).unwrap()
}

fn paths(seen: &[Seen]) -> Vec<&str> {
    seen.iter().map(|seen| seen.path.as_str()).collect()
}

#[tokio::test]
async fn a_request_goes_through_with_the_credential_and_without_the_clients_own() {
    let web = Web::start().unwrap();
    let house = house(&web, "");
    let fields = "Authorization: Bearer mine\r\nAccept-Encoding: gzip\r\nRange: bytes=0-1\r\nX-Other: stays\r\n";
    let answer = ask(&house, "POST", "/echo?a=%62", fields, b"hello").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let seen = web.seen().unwrap().remove(0);
    assert_eq!((&*seen.method, &*seen.path, &*seen.body), ("POST", "/echo?a=%62", "hello"));
    assert_eq!(seen.header("authorization"), Some(&*format!("Bearer {PASSWORD}")));
    assert_eq!(seen.header("accept-encoding"), Some("gzip"));
    assert_eq!((seen.header("x-other"), seen.header("range")), (Some("stays"), None));
    // What the server gives back of it does not reach the client, nor the record.
    assert!(answer.body.contains("Bearer [redacted]") && !answer.has("etag"), "{answer:?}");
    let record = serde_json::to_string(&house.events().unwrap()).unwrap();
    assert!(!record.contains(PASSWORD) && !record.contains("Bearer mine"), "{record}");
    assert!(record.contains("POST /echo?a=%62") && record.contains("200 OK"), "{record}");
}

#[tokio::test]
async fn a_refusal_names_its_rule_and_the_connection_goes_on() {
    let web = Web::start().unwrap();
    let house = house(&web, "");
    let requests = "GET /one HTTP/1.1\r\nHost: localhost\r\n\r\n\
         GET /admin/users HTTP/1.1\r\nHost: localhost\r\n\r\n\
         GET /two HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let answers = exchange(&house, requests.as_bytes()).await;
    assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [200, 403, 200], "{answers:?}");
    let problem = answers[1].problem();
    assert_eq!(problem["rule"], "nobody administers");
    assert!(problem["detail"].as_str().unwrap().contains("administration is not for bots"));
    assert_eq!(paths(&web.seen().unwrap()), ["/one", "/two"]);
    assert!(!answers[0].has("alt-svc"), "it would lead past us: {answers:?}");
    let events = house.events().unwrap();
    let decisions = events.iter().filter_map(|event| match &event.body {
        EventBody::Command { decision, .. } => Some(decision.effect.to_string()),
        _ => None,
    });
    assert_eq!(decisions.collect::<Vec<_>>(), ["allow", "deny", "allow"]);
}

#[tokio::test]
async fn no_way_to_write_a_path_leads_past_a_rule() {
    let web = Web::start().unwrap();
    let house = house(&web, "");
    let tricks = [
        "/admin",
        "/admin/",
        "/admin?x",
        "/%61dmin",
        "/%61%64%6d%69%6e",
        "//admin",
        "///admin//",
        "/x/../admin",
        "/x/%2e%2e/admin",
        "/./admin",
        "/admin/.",
        "/x/..%2fadmin",
        "/x/..%2Fadmin",
        "/x%2f..%2fadmin",
        "/admin;x",
        "/admin;x=1/users",
        "/admin%3bx",
        "/x/..;/admin",
        "/..;/admin",
        "/\\admin",
        "/%5cadmin",
        "/x\\..\\admin",
        "/admin%2f",
        "/admin%2Fusers",
        "/x/y/../../admin",
        "/admin/../admin",
        "/admin%20/../admin",
        "/;x/admin",
        "/admin\\users",
        "/public/..%5c/admin",
        "/%2e/admin",
        "/admin/users/..",
        "/x//../../admin",
    ];
    for target in tricks {
        let answer = ask(&house, "GET", target, "", b"").await;
        assert!(matches!(answer.status, 400 | 403), "{target}: {answer:?}");
    }
    assert!(web.seen().unwrap().is_empty(), "{:?}", paths(&web.seen().unwrap()));
    // Methods that hide behind others.
    for fields in ["X-HTTP-Method-Override: TRACE\r\n", "X-Method-Override: PROPFIND\r\n", "X-Original-URL: /admin\r\n"]
    {
        let answer = ask(&house, "POST", "/x", fields, b"x").await;
        assert!(matches!(answer.status, 400 | 403), "{fields}: {answer:?}");
    }
    assert_eq!(ask(&house, "POST", "/x?_method=TRACE", "", b"x").await.status, 403);
    assert_eq!(ask(&house, "TRACE", "/x", "", b"").await.status, 403);
    assert!(web.seen().unwrap().is_empty(), "{:?}", paths(&web.seen().unwrap()));
    // And what is none of these is sent in its normal form.
    assert_eq!(ask(&house, "GET", "/a/./b/../%63", "", b"").await.status, 200);
    // Of two slashes one may be a folder without a name: what is judged is what is sent.
    assert_eq!(ask(&house, "GET", "/x/.//../admin", "", b"").await.status, 200);
    assert_eq!(paths(&web.seen().unwrap()), ["/a/c", "/x/admin"]);
}

#[tokio::test]
async fn what_has_two_readings_is_answered_in_its_turn_and_not_sent() {
    let web = Web::start().unwrap();
    let house = house(&web, "");
    let fine = "GET /fine HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for head in [
        "POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: localhost\r\nHost: other\r\n\r\n",
        "GET /x HTTP/1.1\nHost: localhost\n\n",
        "GET http://localhost/admin HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /x HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n",
        "CONNECT localhost:22 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let answers =
            exchange(&house, format!("{fine}{head}0\r\n\r\nGET /admin HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())
                .await;
        assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [200, 400], "{head:?}: {answers:?}");
        assert!(!answers[1].problem()["detail"].as_str().unwrap().is_empty());
    }
    let seen = web.seen().unwrap();
    assert!(seen.iter().all(|seen| seen.path == "/fine"), "{:?}", paths(&seen));
    // In a body: what came before is sent, and no more.
    let head = "POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    for body in ["5;ext\r\nhello\r\n0\r\n\r\n", "5\r\nhelloX\r\n0\r\n\r\n", "0\r\n X: y\r\n\r\n"] {
        let answers =
            exchange(&house, format!("{head}{body}GET /admin HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).await;
        assert!(answers.iter().all(|answer| answer.status >= 400), "{body:?}: {answers:?}");
    }
    assert!(web.seen().unwrap().iter().all(|seen| seen.path == "/fine"));
}

#[tokio::test]
async fn only_the_upstreams_own_names_are_served() {
    let web = Web::start().unwrap();
    let house = house(&web, "");
    let one = |host: &str| format!("GET /x HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    for (host, status) in [
        ("localhost", 200),
        ("LOCALHOST.", 200),
        ("127.0.0.1", 200),
        ("other", 421),
        ("localhost.evil", 421),
        ("", 421),
    ] {
        let answers = exchange(&house, one(host).as_bytes()).await;
        assert_eq!(answers[0].status, status, "{host}: {answers:?}");
    }
    // The first request of a connection says whom all of it is for.
    let both = format!("GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n{}", one("127.0.0.1"));
    let answers = exchange(&house, both.as_bytes()).await;
    assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [200, 421]);
    let upgrade = "GET /x HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n";
    assert_eq!(exchange(&house, upgrade.as_bytes()).await[0].status, 426);
    let upgrade = upgrade.replace("websocket", "tls/1.0");
    assert_eq!(exchange(&house, upgrade.as_bytes()).await[0].status, 501);
    // Offered by itself, HTTP/2 in the clear is declined, and the connection goes on as it is.
    let offer = "GET /x HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
                 HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n\r\n";
    let answers = exchange(&house, format!("{offer}{}", one("localhost")).as_bytes()).await;
    assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [200, 200]);
    let seen = web.seen().unwrap();
    let gone = ["upgrade", "http2-settings"];
    assert!(
        seen.iter().all(|seen| gone.iter().all(|name| !seen.headers.iter().any(|(known, _)| known == name))),
        "{seen:?}"
    );
}

/// A client whose first bytes come in two parts.
struct Cut {
    io: tokio::io::DuplexStream,
    /// How many are left of the first part; then it pauses once.
    left: usize,
}

impl AsyncRead for Cut {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Cut {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.left {
            usize::MAX => return Pin::new(&mut self.io).poll_write(cx, buf),
            // The other side runs meanwhile.
            0 => {
                self.left = usize::MAX;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            _ => {}
        }
        let left = self.left.min(buf.len());
        let written = Pin::new(&mut self.io).poll_write(cx, &buf[..left]);
        if let Poll::Ready(Ok(written)) = written {
            self.left -= written;
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Two services behind one address: each request goes where its name says, with the credential of that one, and is judged by
/// its rules.
#[tokio::test]
async fn upstreams_at_one_address_are_told_apart_by_name() {
    let web = Web::start().unwrap();
    let second = r#"
[[upstream]]
name = "second"
protocol = "http"
address = ["127.0.0.1:{port}"]
tls = { ca = "{ca}" }
credential = { source = "file", path = "{password}", inject = "header:x-second" }
"#;
    let policy = POLICY.replace("\"localhost:{port}\", \"127.0.0.1:{port}\"", "\"localhost:{port}\"");
    let house = TestHouse::new(&web, &format!("{policy}{second}")).unwrap();
    let one = |host: &str| format!("GET /echo HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    for (host, field) in [("localhost", "authorization"), ("127.0.0.1", "x-second")] {
        // However slowly it says it.
        let mut client = house.connect();
        for byte in one(host).as_bytes() {
            client.write_all(&[*byte]).await.unwrap();
        }
        let mut out = Vec::new();
        let _ = client.read_to_end(&mut out).await;
        let answers = answers(&out);
        assert_eq!(answers[0].status, 200, "{host} {answers:?}");
        let seen = web.seen().unwrap().pop().unwrap();
        assert!(seen.header(field).is_some_and(|value| value.ends_with(PASSWORD)), "{host} {seen:?}");
        let other = if field == "x-second" { "authorization" } else { "x-second" };
        assert!(seen.header(other).is_none(), "{host} {seen:?}");
    }
    // The same over TLS, cut anywhere.
    let net = portcullis::net::RuntimeCa::new(Duration::from_secs(60), &Default::default()).unwrap();
    let net = portcullis::net::Net::new(std::sync::Arc::new(net));
    let tls = TlsSpec { mode: TlsMode::Require, ca: None, client: None };
    for at in (0..400).step_by(23) {
        for (host, field) in [("localhost", "authorization"), ("127.0.0.1", "x-second")] {
            let io = Cut { io: house.connect(), left: at };
            let asked = async {
                let mut client = net.secure(Box::new(io), host, &tls, &[], None).await.unwrap().io;
                client.write_all(one(host).as_bytes()).await.unwrap();
                client.flush().await.unwrap();
                let mut out = Vec::new();
                let _ = client.read_to_end(&mut out).await;
                out
            };
            let out = tokio::time::timeout(Duration::from_secs(20), asked).await;
            let out = out.unwrap_or_else(|_| panic!("{host} cut at {at}: no answer"));
            assert_eq!(answers(&out)[0].status, 200, "{host} cut at {at}");
            let seen = web.seen().unwrap().pop().unwrap();
            assert!(seen.header(field).is_some_and(|value| value.ends_with(PASSWORD)), "{host} cut at {at}");
        }
    }
    let before = web.seen().unwrap().len();
    // A name of neither, and another than the first request's.
    for text in [one("other"), format!("{}{}", one("localhost").replace("Connection: close\r\n", ""), one("127.0.0.1"))]
    {
        assert_eq!(exchange(&house, text.as_bytes()).await.last().unwrap().status, 421, "{text}");
    }
    assert_eq!(web.seen().unwrap().len(), before + 1);
    let upstreams: Vec<_> = house.events().unwrap().iter().filter_map(|event| event.upstream.clone()).collect();
    assert!(upstreams.iter().any(|name| **name == *"second"), "{upstreams:?}");
}

#[tokio::test]
async fn what_was_approved_is_what_is_sent() {
    let web = Web::start().unwrap();
    let house = house(&web, "");
    let body = br#"{"item": 7, "amount": 3}"#;
    let asked = ask(&house, "POST", "/orders", "Content-Type: application/json\r\n", body);
    let decided = async {
        let held = house.held().await;
        assert!(held.command.contains("POST /orders") && held.command.contains("\"amount\": 3"), "{}", held.command);
        assert!(web.seen().unwrap().is_empty());
        house.house.holds.approve(&held.id, &reviewer("dora"), None, None).unwrap();
    };
    let (answer, ()) = tokio::join!(asked, decided);
    assert_eq!(answer.status, 200, "{answer:?}");
    let seen = web.seen().unwrap();
    assert_eq!((seen.len(), seen[0].body.as_bytes()), (1, &body[..]));

    let asked = ask(&house, "DELETE", "/orders/7", "", b"");
    let decided = async {
        let held = house.held().await;
        house.house.holds.deny(&held.id, &reviewer("dora"), Some("not that one".into())).unwrap();
    };
    let (answer, ()) = tokio::join!(asked, decided);
    let problem = answer.problem();
    assert_eq!((answer.status, &problem["rule"]), (403, &"deletes wait".into()));
    assert!(problem["detail"].as_str().unwrap().contains("not that one") && problem["hold"].is_string());

    // A client that goes away takes its request with it.
    let mut client = house.connect();
    client.write_all(b"DELETE /orders/8 HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let held = house.held().await;
    drop(client);
    while house.house.holds.list().iter().any(|view| view.id == held.id && view.state.as_str() == "requested") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(web.seen().unwrap().len(), 1);
}

#[tokio::test]
async fn rules_see_the_body_and_the_rest_of_a_request() {
    let web = Web::start().unwrap();
    let rules = r#"
[[rule]]
name = "large orders"
when = "http.method == 'POST' && http.path == '/pay' && http.body_json.amount > 100"
effect = "deny"
[[rule]]
name = "no debugging"
when = "http.query.debug == '1'"
verbs = ["read"]
targets = ["GET /debug"]
effect = "deny"
[[rule]]
name = "only from here"
when = "http.headers['x-from'] != 'here'"
targets = ["GET /from"]
effect = "deny"
"#;
    let house = house(&web, rules);
    for (body, status) in [
        (r#"{"amount": 100}"#, 200),
        (r#"{"amount": 100.5}"#, 403),
        (r#"{"amount": 101}"#, 403),
        (r#"{"amount": 1, "amount": 1000}"#, 403),
        (r#"{"amount": "1000"}"#, 403),
        (r#"{"other": 1}"#, 403),
        ("amount=1", 403),
    ] {
        let answer = ask(&house, "POST", "/pay", "Content-Type: application/json\r\n", body.as_bytes()).await;
        assert_eq!(answer.status, status, "{body}: {answer:?}");
    }
    assert_eq!(ask(&house, "POST", "/pay", "", b"").await.status, 403, "no body has no amount");
    for (target, fields, status) in [
        ("/debug?debug=0", "", 200),
        ("/debug?debug=1", "", 403),
        ("/debug?debug=0&debug=1", "", 403),
        ("/debug?%64ebug=1", "", 403),
        ("/from", "X-From: here\r\n", 200),
        ("/from", "X-From: there\r\n", 403),
        ("/from", "X-From: here\r\nX-From: there\r\n", 403),
        ("/from", "", 403),
    ] {
        assert_eq!(ask(&house, "GET", target, fields, b"").await.status, status, "{target} {fields}");
    }
}

const OUTGOING: &str = r#"
[[mask]]
upstream = "api"
direction = "request"
detect = ["email", "credit_card"]
with = "redact"
"#;

#[tokio::test]
async fn what_must_not_leave_is_masked_before_it_is_judged() {
    let web = Web::start().unwrap();
    let rules = r#"
[[rule]]
name = "no letters to people"
when = "http.body_json.to != '[redacted]'"
targets = ["POST /mail"]
effect = "deny"
"#;
    let house = house(&web, &format!("{OUTGOING}{rules}"));
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    let json = "Content-Type: application/json\r\n";
    let places = format!("/echo?{}", "x=1");
    for (target, fields, body, sent) in [
        ("/echo", "", "to someone@example.com", "to [redacted]"),
        (
            "/echo",
            json,
            r#"{"to": "someone@example.com", "n": 4111111111111111}"#,
            r#"{"to": "[redacted]", "n": "[redacted]"}"#,
        ),
        // Whatever it is said to be; in whatever way it is written.
        ("/echo", "", r#"{"to": "someone\u0040example.com"}"#, r#"{"to": "[redacted]"}"#),
        ("/echo", "Content-Type: image/png\r\n", "someone@example.com", "[redacted]"),
        ("/echo", form, "a=1&to=some%6Fne%40example.com&b=%20", "a=1&to=%5Bredacted%5D&b=%20"),
        ("/echo", form, "someone%40example.com", "%5Bredacted%5D"),
        ("/mail", json, r#"{"to": "someone@example.com"}"#, r#"{"to": "[redacted]"}"#),
        (&places, "", "nothing", "nothing"),
    ] {
        let before = web.seen().unwrap().len();
        let answer = ask(&house, "POST", target, fields, body.as_bytes()).await;
        assert_eq!(answer.status, 200, "{body}: {answer:?}");
        let seen = web.seen().unwrap();
        assert_eq!((seen.len(), &*seen[before].body), (before + 1, sent), "{body}");
        assert_eq!(seen[before].header("content-length"), Some(&*sent.len().to_string()));
    }
    let sent = web.seen().unwrap().len();
    for (target, fields, body, status) in [
        // Where nothing can be masked.
        ("/echo?to=someone@example.com", "", "", 403),
        ("/echo?to=someone%40example.com", "", "", 403),
        ("/someone@example.com", "", "", 403),
        ("/echo", "X-To: someone@example.com\r\n", "", 403),
        // What cannot be looked into.
        ("/echo", "Content-Encoding: gzip\r\n", "x", 415),
        ("/echo", json, "{", 415),
        ("/mail", json, r#"{"to": "nobody"}"#, 403),
    ] {
        let answer = ask(&house, "POST", target, fields, body.as_bytes()).await;
        assert_eq!(answer.status, status, "{target} {fields} {body}: {answer:?}");
        assert!(!answer.body.contains("someone"), "{answer:?}");
    }
    assert_eq!(web.seen().unwrap().len(), sent);
    // A reviewer sees, and the upstream gets, the masked form.
    let waiting = ask(&house, "POST", "/orders", json, br#"{"to": "someone@example.com"}"#);
    let review = async {
        let held = house.held().await;
        assert!(held.command.contains("[redacted]") && !held.command.contains("someone"), "{held:?}");
        house.house.holds.approve(&held.id, &reviewer("alice"), None, None).unwrap();
    };
    let (answer, ()) = tokio::join!(waiting, review);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(web.seen().unwrap().last().unwrap().body, r#"{"to": "[redacted]"}"#);
    let record = serde_json::to_string(&house.events().unwrap()).unwrap();
    assert!(record.contains("request:email") && !record.contains("someone"), "{record}");
}

#[tokio::test]
async fn a_route_says_what_a_request_does() {
    let web = Web::start().unwrap();
    let routes = r#"
[[upstream.route]]
targets = ["POST /search", "POST /shop.Orders/Get*"]
verb = "read"
[[upstream.route]]
targets = ["GET /jobs/*/cancel"]
verb = "delete"
[[rule]]
name = "nothing is written"
verbs = ["write", "delete"]
effect = "deny"
"#;
    let policy = POLICY.replacen("[[rule]]", &format!("{routes}\n[[rule]]"), 1);
    let house = TestHouse::new(&web, &policy).unwrap();
    for (method, target, status) in [
        ("POST", "/search", 200),
        ("POST", "/search/", 403),
        ("POST", "/search2", 403),
        ("POST", "/shop.Orders/GetAll", 200),
        ("POST", "/shop.Orders/Set", 403),
        ("GET", "/jobs/7/cancel", 403),
        ("GET", "/jobs/7", 200),
        // Another method in its place is judged, too.
        ("POST", "/search?_method=DELETE", 403),
        ("POST", "/x/..;/search", 403),
    ] {
        let answer = ask(&house, method, target, "", b"").await;
        assert_eq!(answer.status, status, "{method} {target}: {answer:?}");
    }
}

fn encoded(coding: &str, text: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let level = flate2::Compression::default();
    match coding {
        "gzip" => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
            encoder.write_all(text).unwrap();
            encoder.finish().unwrap()
        }
        "deflate" => {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), level);
            encoder.write_all(text).unwrap();
            encoder.finish().unwrap()
        }
        "br" => {
            let mut out = Vec::new();
            brotli::BrotliCompress(&mut &text[..], &mut out, &brotli::enc::BrotliEncoderParams::default()).unwrap();
            out
        }
        _ => zstd::encode_all(text, 3).unwrap(),
    }
}

fn decoded(coding: &str, body: &[u8]) -> String {
    use std::io::Read as _;
    let mut text = String::new();
    match coding {
        "gzip" => flate2::read::GzDecoder::new(body).read_to_string(&mut text).unwrap(),
        "deflate" => flate2::read::ZlibDecoder::new(body).read_to_string(&mut text).unwrap(),
        "br" => brotli::Decompressor::new(body, 4096).read_to_string(&mut text).unwrap(),
        _ => zstd::Decoder::new(body).unwrap().read_to_string(&mut text).unwrap(),
    };
    text
}

#[tokio::test]
async fn what_is_masked_is_masked_in_each_encoding_wherever_it_is_cut() {
    let web = Web::start().unwrap();
    let house = house(&web, MASKS);
    let base64 = |bytes: &[u8]| data_encoding::BASE64.encode(bytes);
    let text = format!("before someone@example.com and {PASSWORD} after");
    let json = format!(r#"{{"to": "someone@example.com", "token": "{PASSWORD}"}}"#);
    for coding in ["gzip", "deflate", "br", "zstd"] {
        for (kind, text, masked) in [
            ("text/plain", &text, "before [redacted] and [redacted] after"),
            ("application/json", &json, r#"{"to": "[redacted]", "token": "[redacted]"}"#),
        ] {
            let body = encoded(coding, text.as_bytes());
            for at in 0..=body.len() {
                let parts = format!("{}.{}", base64(&body[..at]), base64(&body[at..])).trim_matches('.').to_owned();
                let target = format!("/parts?type={kind}&coding={coding}");
                let answer = ask(&house, "POST", &target, "", parts.as_bytes()).await;
                assert!(answer.has(&format!("content-encoding: {coding}")), "{answer:?}");
                assert_eq!(decoded(coding, &answer.bytes), masked, "{coding} cut at {at}");
            }
            // The end is missing: the client sees that it is, and never what was to be masked.
            let parts = base64(&body[..body.len() - 3]);
            let target = format!("/parts?type={kind}&coding={coding}");
            let head =
                format!("POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{parts}", parts.len());
            let mut client = house.connect();
            client.write_all(head.as_bytes()).await.unwrap();
            let mut out = Vec::new();
            let _ = client.read_to_end(&mut out).await;
            assert!(!out.ends_with(b"0\r\n\r\n"), "{coding} {kind}");
        }
    }
    // What the record shows of it is what the client reads.
    let record = serde_json::to_string(&house.events().unwrap()).unwrap();
    assert!(record.contains("before [redacted] and [redacted] after") && !record.contains(PASSWORD), "{record:.300}");
}

/// What RFC 9659 lets HTTP use, and twice that: whoever sends more would have every reader keep as much.
#[tokio::test]
async fn a_window_of_zstd_that_is_too_large_does_not_come_through() {
    use std::io::Write as _;
    let web = Web::start().unwrap();
    let house = house(&web, MASKS);
    for (log, comes) in [(23, true), (24, false)] {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(log).unwrap();
        encoder.write_all(b"to someone@example.com").unwrap();
        let body = data_encoding::BASE64.encode(&encoder.finish().unwrap());
        let target = "/parts?type=text/plain&coding=zstd";
        let head = format!("POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let mut client = house.connect();
        client.write_all(head.as_bytes()).await.unwrap();
        let mut out = Vec::new();
        if comes {
            while !out.ends_with(b"0\r\n\r\n") {
                assert!(client.read_buf(&mut out).await.unwrap() > 0, "it ended");
            }
            assert_eq!(decoded("zstd", &answers(&out)[0].bytes), "to [redacted]");
        } else {
            let _ = client.read_to_end(&mut out).await;
            assert!(!out.ends_with(b"0\r\n\r\n"), "it came through: {}", String::from_utf8_lossy(&out));
        }
    }
    let record = serde_json::to_string(&house.events().unwrap()).unwrap();
    assert_eq!(record.matches("broken off: it is not encoded as it says").count(), 1, "{record}");
}

#[tokio::test]
async fn what_is_masked_is_masked_wherever_it_is_cut() {
    let web = Web::start().unwrap();
    let house = house(&web, MASKS);
    let text = format!("before someone@example.com and {PASSWORD} after");
    let base64 = |bytes: &[u8]| data_encoding::BASE64.encode(bytes);
    for at in 0..=text.len() {
        let parts = format!("{}.{}", base64(&text.as_bytes()[..at]), base64(&text.as_bytes()[at..]));
        // An empty chunk would end the body.
        let parts = parts.trim_matches('.').to_owned();
        let answer = ask(&house, "POST", "/parts", "", parts.as_bytes()).await;
        assert_eq!(answer.body, "before [redacted] and [redacted] after", "cut at {at}");
    }
    let json = format!(
        r#"{{"to": "someone@example.com", "token": "{}", "card": 4111111111111111}}"#,
        base64(PASSWORD.as_bytes())
    );
    for at in 1..json.len() {
        let parts = format!("{}.{}", base64(&json.as_bytes()[..at]), base64(&json.as_bytes()[at..]));
        let answer = ask(&house, "POST", "/parts?type=application/json", "", parts.as_bytes()).await;
        let value: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!((&value["to"], &value["card"]), (&"[redacted]".into(), &"[redacted]".into()), "cut at {at}");
        assert!(!answer.body.contains(&base64(PASSWORD.as_bytes())[..20]), "cut at {at}: {}", answer.body);
    }
    // In header fields, too; and what is whole keeps its length, and its tag where nothing changed.
    let answer =
        ask(&house, "GET", &format!("/redirect?to=/x%3Fmail=someone@example.com%26t={PASSWORD}"), "", b"").await;
    assert!(answer.status == 302 && !answer.head.contains("someone@") && !answer.head.contains(PASSWORD), "{answer:?}");
    let answer = ask(&house, "POST", "/body", "", b"nothing to hide").await;
    assert!(answer.has("content-length: 15") && answer.has("etag: \"one\""), "{answer:?}");
    let answer = ask(&house, "POST", "/body", "", b"to someone@example.com").await;
    assert!(answer.body == "to [redacted]" && answer.has("content-length: 13") && !answer.has("etag"), "{answer:?}");
}

#[tokio::test]
async fn places_in_json_are_masked_and_what_is_no_json_does_not_come_through() {
    let web = Web::start().unwrap();
    let house = house(&web, PLACES);
    let json = br#"{"customers": [{"name": "Ann", "Phone": "1", "id": 1}], "name": "stays"}"#;
    let answer = ask(&house, "POST", "/body?type=application/json", "", json).await;
    assert_eq!(
        answer.body,
        r#"{"customers": [{"name": "[redacted]", "Phone": "[redacted]", "id": 1}], "name": "stays"}"#
    );
    for (target, body) in
        [("/body?type=text/plain", &json[..]), ("/body?type=application/json", b"{'name': 1}"), ("/body?type=", json)]
    {
        let answer = ask(&house, "POST", target, "", body).await;
        assert_eq!(answer.status, 502, "{target}: {answer:?}");
        assert!(!answer.body.contains("Ann"));
    }
    // Or it is hidden, where the policy says so.
    let hides = self::house(&web, &PLACES.replace("with =", "unresolved = \"mask\"\nwith ="));
    let answer = ask(&hides, "POST", "/body?type=text/plain", "", json).await;
    assert_eq!((answer.status, &*answer.body), (200, "[redacted]"));
    let results = house
        .events()
        .unwrap()
        .iter()
        .filter(|e| matches!(&e.body, EventBody::Result { masked, .. } if masked.count > 0))
        .count();
    assert_eq!(results, 1);
}

#[tokio::test]
async fn events_come_one_by_one() {
    let web = Web::start().unwrap();
    let house = house(&web, MASKS);
    let mut client = house.connect();
    client.write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut out = Vec::new();
    let has = |out: &[u8], text: &str| String::from_utf8_lossy(out).contains(text);
    while !has(&out, "\"n\": 0") {
        assert!(client.read_buf(&mut out).await.unwrap() > 0, "it ended");
    }
    // The server pauses between events, and this one did not wait for the last.
    assert!(!has(&out, "\"n\": 2"), "{}", String::from_utf8_lossy(&out));
    client.read_to_end(&mut out).await.unwrap();
    let body = &answers(&out)[0].body;
    assert!(body.matches("\"email\": \"[redacted]\"").count() == 3 && !body.contains("someone"), "{body}");
}

#[tokio::test]
async fn events_are_masked_by_place() {
    let web = Web::start().unwrap();
    let house = house(&web, "[[mask]]\njson = [\"b\"]\nwith = \"redact\"\n");
    let answer = ask(&house, "GET", "/stream", "", b"").await;
    let expected = "data: {\"a\": 1, \"b\": \"[redacted]\"}\n\ndata: [{\"b\": \"[redacted]\"}]\n\ndata: [DONE]\n\n";
    assert_eq!(answer.body, expected);
    // What no one can look into ends the stream there.
    let parts = [&b"data: {\"a\": 1}\n\n"[..], b"data: {\ndata: \"b\": \"x\"}\n\n"]
        .map(|part| data_encoding::BASE64.encode(part));
    let answer = ask(&house, "POST", "/parts?type=text/event-stream", "", parts.join(".").as_bytes()).await;
    assert_eq!(answer.body, "data: {\"a\": 1}\n\n");
}

/// Models send images so. What waits for its end is charged for.
#[tokio::test]
async fn a_long_event_is_masked_as_long_as_there_is_memory() {
    let web = Web::start().unwrap();
    let house = house(&web, MASKS);
    let event = |mib: usize| {
        let image = "aGVsbG8h".repeat(mib << 17);
        format!(
            "data: {{\"n\": 1}}\n\ndata: {{\"image\": \"{image}\", \"email\": \"someone@example.com\"}}\n\ndata: [DONE]\n\n"
        )
    };
    let broken = |house: &TestHouse, why: &str| {
        let events = house.events().unwrap();
        events.iter().any(|event| matches!(&event.body, EventBody::Result { result, .. } if result.contains(why)))
    };
    let answer = ask(&house, "POST", "/body?type=text/event-stream", "", event(3).as_bytes()).await;
    assert!(answer.body == event(3).replace("someone@example.com", "[redacted]"), "{}", answer.body.len());
    assert!(!broken(&house, "broken off"));
    // Nobody waits for one that does not end.
    let answer = ask(&house, "POST", "/body?type=text/event-stream", "", event(17).as_bytes()).await;
    assert_eq!(answer.body, "data: {\"n\": 1}\n\n");
    assert!(broken(&house, "a server-sent event is too long"));
    // A connection has an eighth of this.
    let limits = Limits { memory: 32 << 20, ..Limits::default() };
    let house = TestHouse::with_limits(&web, &format!("{POLICY}{MASKS}"), limits).unwrap();
    let answer = ask(&house, "POST", "/body?type=text/event-stream", "", event(3).as_bytes()).await;
    assert_eq!(answer.body, "data: {\"n\": 1}\n\n");
    assert!(broken(&house, "more memory would be used than may be"));
    while house.house.memory.used() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_reason_phrase_carries_nothing() {
    let web = Web::start().unwrap();
    let house = house(&web, "");
    let answer = ask(&house, "GET", "/reason", "", b"").await;
    assert!(answer.head.starts_with("HTTP/1.1 200 OK\r\n"), "{answer:?}");
}

#[tokio::test]
async fn responses_that_cannot_be_looked_into_do_not_come_through() {
    let web = Web::start().unwrap();
    let house = house(&web, "");
    for (target, why) in [
        ("/encoded?as=compress", "encoded in a way that cannot be looked into"),
        ("/encoded?as=gzip,gzip", "encoded in a way that cannot be looked into"),
        ("/partial", "a part, which nobody asked for"),
    ] {
        let answer = ask(&house, "GET", target, "", b"").await;
        assert_eq!(answer.status, 502, "{target}: {answer:?}");
        assert!(answer.problem()["detail"].as_str().unwrap().contains(why), "{answer:?}");
    }
    assert_eq!(ask(&house, "HEAD", "/encoded?as=compress", "", b"").await.status, 200);
    // It says that it is encoded, and is not: what was sent by then is cut off.
    for coding in ["gzip", "deflate", "br", "zstd"] {
        let answers =
            exchange(&house, format!("GET /encoded?as={coding} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).await;
        assert!(answers.iter().all(|answer| !answer.body.contains("text")), "{answers:?}");
    }
    let record = serde_json::to_string(&house.events().unwrap()).unwrap();
    assert_eq!(record.matches("broken off: it is ").count(), 7, "{record}");
}

#[tokio::test]
async fn a_rotated_credential_is_not_noticed() {
    let web = Web::start().unwrap();
    let house = house(&web, "");
    let both = "GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut client = house.connect();
    client.write_all(both.as_bytes()).await.unwrap();
    let mut out = Vec::new();
    while answers(&out).is_empty() {
        assert!(client.read_buf(&mut out).await.unwrap() > 0);
    }
    std::fs::write(house.password_file(), "another-secret-9931\n").unwrap();
    out.clear();
    let request = "GET /rotated?to=another-secret-9931 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    client.write_all(request.as_bytes()).await.unwrap();
    client.read_to_end(&mut out).await.unwrap();
    assert_eq!((answers(&out)[0].status, &*answers(&out)[0].body), (200, "fresh"));
    // An upstream that closes between two requests is not noticed either.
    let two =
        "GET /close HTTP/1.1\r\nHost: localhost\r\n\r\nGET /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let statuses: Vec<u16> = exchange(&house, two.as_bytes()).await.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [200, 200]);
}

#[tokio::test]
async fn a_credential_goes_where_the_policy_says() {
    let web = Web::start_clear().unwrap();
    let clear = POLICY.replace("tls = { ca = \"{ca}\" }", "tls = { mode = \"disable\" }");
    for (inject, user, name, value) in [
        (
            "basic",
            "user = \"bot\", ",
            "authorization",
            format!("Basic {}", data_encoding::BASE64.encode(format!("bot:{PASSWORD}").as_bytes())),
        ),
        ("header:X-Api-Key", "", "x-api-key", PASSWORD.to_owned()),
        ("cookie:sid", "", "cookie", format!("a=1; sid={PASSWORD}")),
        ("query:key", "", "", String::new()),
    ] {
        let policy = clear.replace("inject = \"bearer\"", &format!("{user}inject = \"{inject}\""));
        let house = TestHouse::new(&web, &policy).unwrap();
        let before = web.seen().unwrap().len();
        let fields = "Authorization: own\r\nX-Api-Key: own\r\nCookie: a=1; sid=own\r\n";
        let answer = ask(&house, "GET", "/echo?key=own&b=1", fields, b"").await;
        assert!(answer.status == 200 && !answer.body.contains(PASSWORD), "{inject}: {answer:?}");
        let seen = web.seen().unwrap().remove(before);
        if name.is_empty() {
            assert_eq!(seen.path, format!("/echo?b=1&key={PASSWORD}"));
        } else {
            assert_eq!(seen.header(name), Some(&*value), "{inject}");
        }
    }
}

#[tokio::test]
async fn an_upstream_that_is_not_there_or_not_trusted_is_told_of() {
    let web = Web::start().unwrap();
    let house = TestHouse::new(&web, &POLICY.replace("tls = { ca = \"{ca}\" }", "")).unwrap();
    let answer = ask(&house, "GET", "/x", "", b"").await;
    assert_eq!(answer.status, 502);
    assert!(answer.problem()["detail"].as_str().unwrap().contains("TLS"), "{answer:?}");
    let house = self::house(&web, "");
    let _ = web.port();
    drop(web);
    let answer = ask(&house, "GET", "/x", "", b"").await;
    assert!(
        answer.status == 502 && answer.problem()["detail"].as_str().unwrap().contains("could not be reached"),
        "{answer:?}"
    );
}

#[tokio::test]
async fn a_large_body_streams_both_ways() {
    let web = Web::start_clear().unwrap();
    let policy = POLICY.replace("tls = { ca = \"{ca}\" }", "tls = { mode = \"disable\" }");
    let house = TestHouse::new(&web, &policy).unwrap();
    let body = vec![b'y'; 40 << 20];
    let answer = ask(&house, "POST", "/body", "Expect: 100-continue\r\n", &body).await;
    assert!(answer.status == 200 && answer.body.len() == body.len());
    let mut client = house.connect();
    client.write_all(b"GET /large?mib=40 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let (mut count, mut piece) = (0, vec![0; 64 << 10]);
    loop {
        match client.read(&mut piece).await.unwrap() {
            0 => break,
            read => count += read,
        }
    }
    // Heads of chunks besides.
    assert!((40 << 20..41 << 20).contains(&count), "{count}");
}

#[tokio::test]
async fn what_must_be_encrypted_is_refused_in_the_clear_and_recorded() {
    let web = Web::start().unwrap();
    let policy = POLICY.replace("tls = { ca", "client_tls = \"require\"\ntls = { ca");
    let house = TestHouse::new(&web, &policy).unwrap();
    let answer = ask(&house, "GET", "/x", "", b"").await;
    assert!(answer.status == 403 && answer.problem()["detail"].as_str().unwrap().contains("https"), "{answer:?}");
    assert!(web.seen().unwrap().is_empty());
    let record = serde_json::to_string(&house.events().unwrap()).unwrap();
    assert!(record.contains("the policy requires TLS"), "{record}");
}
