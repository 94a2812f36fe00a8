//! Placeholders for secrets in requests: filled in for their own upstream, and no other.

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt as _, path::Path};

use portcullis::wire::Limits;
use portcullis_tests::{Server, TestHouse, Web};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::http::{Answer, answers, ask};

/// Characters that mean something in JSON, in a query, in a form.
const KEY: &str = "pl\"ace\\holder&v=1 +%41/x;#y";
const PLAIN: &str = "simple-placeholder-5521";
const OTHERS: &str = "secret-of-the-other-7731";

const POLICY: &str = r#"
[workload]
name = "bot"
cgroup = "portcullis.slice/bot/*"
autonomy = "autonomous"

[[upstream]]
name = "api"
protocol = "http"
address = ["localhost:{port}"]
tls = {tls}

[[upstream.placeholder]]
name = "key"
source = "file"
path = "{folder}/key"
in = ["header", "query", "body"]

[[upstream.placeholder]]
name = "key_2"
source = "exec"
argv = ["/bin/cat", "{folder}/plain"]
in = ["header:X-Key", "query:key"]

[[upstream]]
name = "other"
protocol = "http"
address = ["localhost:{other}"]
tls = { mode = "disable" }

[[upstream.placeholder]]
name = "others"
source = "file"
path = "{folder}/others"
in = ["header", "query", "body"]

[[rule]]
name = "everything"
targets = ["**"]
effect = "allow"

[[rule]]
name = "bodies are looked at"
upstream = "api"
targets = ["* /held"]
effect = "hold"
reviewers = ["group:dba"]
expires = "60s"
"#;

fn secret(folder: &Path, name: &str, value: &str) {
    let path = folder.join(name);
    fs::write(&path, value).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

struct Setting {
    web: Web,
    other: Web,
    house: TestHouse,
}

fn setting(web: Web, limits: Limits) -> Setting {
    let other = Web::start_clear().unwrap();
    let folder = web.folder();
    for (name, value) in [("key", KEY), ("plain", PLAIN), ("others", OTHERS)] {
        secret(folder, name, value);
    }
    let tls = if web.ca() == Path::new("/dev/null") { "{ mode = \"disable\" }" } else { "{ ca = \"{ca}\" }" };
    let policy = POLICY.replace("{tls}", tls).replace("{folder}", &folder.display().to_string());
    let policy = policy.replace("{other}", &other.port().to_string());
    let house = TestHouse::with_limits(&web, &policy, limits).unwrap();
    Setting { web, other, house }
}

impl Setting {
    fn record(&self) -> String {
        serde_json::to_string(&self.house.events().unwrap()).unwrap()
    }

    /// One request to the other upstream.
    async fn ask_other(&self, request: &str) -> Answer {
        let mut client = self.house.connect_to(SocketAddr::from(([127, 0, 0, 1], self.other.port())));
        client.write_all(request.as_bytes()).await.unwrap();
        let mut out = Vec::new();
        let _ = client.read_to_end(&mut out).await;
        answers(&out).remove(0)
    }
}

#[tokio::test]
async fn a_secret_takes_its_placeholders_place_where_the_policy_says() {
    let setting = setting(Web::start().unwrap(), Limits::default());
    let (house, web) = (&setting.house, &setting.web);
    let basic = |text: &str| data_encoding::BASE64.encode(text.as_bytes());
    let fields = format!(
        "Authorization: Basic {}\r\nX-Any: a PORTCULLIS_SECRET_key, b\r\nX-Key: PORTCULLIS_SECRET_key_2\r\n\
         Content-Type: application/json\r\n",
        basic("me:PORTCULLIS_SECRET_key")
    );
    let body = br#"{"a": ["x PORTCULLIS_SECRET_key y", "\\PORTCULLIS_SECRET_key"], "b": 1.50}"#;
    let target = "/body?one=%50ORTCULLIS%5FSECRET%5Fkey&key=PORTCULLIS_SECRET_key_2&two=%2B+x";
    let answer = ask(house, "POST", target, &fields, body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let seen = web.seen().unwrap().remove(0);
    assert_eq!(seen.header("authorization"), Some(&*format!("Basic {}", basic(&format!("me:{KEY}")))));
    assert_eq!(seen.header("x-any"), Some(&*format!("a {KEY}, b")));
    assert_eq!(seen.header("x-key"), Some(PLAIN));
    let encoded = "pl%22ace%5Cholder%26v%3D1%20%2B%2541%2Fx%3B%23y";
    assert_eq!(seen.path, format!("/body?one={encoded}&key={PLAIN}&two=%2B+x"));
    let sent: Value = serde_json::from_str(&seen.body).unwrap();
    assert_eq!(sent, serde_json::json!({"a": [format!("x {KEY} y"), format!("\\{KEY}")], "b": 1.5}));
    assert!(seen.body.contains("1.50"), "what is no placeholder stays as it was: {}", seen.body);
    assert_eq!(seen.header("content-length"), Some(&*seen.body.len().to_string()));
    // What the server gives back of it does not come through.
    let echoed = ask(house, "GET", &target.replace("body", "echo"), &fields, b"").await;
    assert!(answer.body.contains("[redacted]") && echoed.body.contains("[redacted]"), "{answer:?} {echoed:?}");
    for text in [KEY, PLAIN, encoded, &basic(&format!("me:{KEY}")), "holder&v"] {
        assert!(!answer.body.contains(text) && !echoed.body.contains(text), "{text}: {answer:?} {echoed:?}");
    }
    // A form, a text, and one that is sent in chunks.
    let form = "Content-Type: application/x-www-form-urlencoded; charset=utf-8\r\n";
    ask(house, "POST", "/x", form, b"a=PORTCULLIS_SECRET_key&b=1+1&c=PORTCULLIS%5FSECRET_key!").await;
    ask(house, "POST", "/x", "Content-Type: text/plain\r\n", b"so: PORTCULLIS_SECRET_key.").await;
    let chunked = "POST /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: text/plain\r\n\
                   Transfer-Encoding: chunked\r\n\r\nb\r\nPORTCULLIS_\r\na\r\nSECRET_key\r\n0\r\n\r\n";
    let mut client = house.connect();
    client.write_all(chunked.as_bytes()).await.unwrap();
    client.read_to_end(&mut Vec::new()).await.unwrap();
    let bodies: Vec<String> = web.seen().unwrap().into_iter().skip(2).map(|seen| seen.body).collect();
    assert_eq!(bodies, [format!("a={encoded}&b=1+1&c={encoded}%21"), format!("so: {KEY}."), KEY.to_owned()]);
    let record = setting.record();
    assert!(
        record.contains("a PORTCULLIS_SECRET_key, b") && record.contains("key=PORTCULLIS_SECRET_key_2"),
        "{record}"
    );
    assert!(!record.contains(PLAIN) && !record.contains(encoded) && !record.contains("holder&v"), "{record}");
}

#[tokio::test]
async fn what_a_person_approves_has_the_placeholder_and_not_the_secret() {
    let setting = setting(Web::start().unwrap(), Limits::default());
    let fields = "Content-Type: text/plain\r\n";
    let asked = ask(&setting.house, "POST", "/held", fields, b"PORTCULLIS_SECRET_key");
    let decided = async {
        let held = setting.house.held().await;
        assert!(held.command.contains("PORTCULLIS_SECRET_key") && !held.command.contains("holder"), "{}", held.command);
        setting.house.house.holds.approve(&held.id, &portcullis_tests::reviewer("dora"), None, None).unwrap();
    };
    let (answer, ()) = tokio::join!(asked, decided);
    assert_eq!((answer.status, &*setting.web.seen().unwrap()[0].body), (200, KEY));
}

#[tokio::test]
async fn a_placeholder_of_another_upstream_goes_nowhere() {
    let setting = setting(Web::start().unwrap(), Limits::default());
    let json = "Content-Type: application/json\r\n";
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    let basic = data_encoding::BASE64.encode(b"PORTCULLIS_SECRET_others:");
    let cases: &[(&str, &str, &[u8])] = &[
        ("/x", "X-Any: PORTCULLIS_SECRET_others\r\n", b""),
        ("/x", "Cookie: a=PORTCULLIS_SECRET_key\r\nCookie: b=PORTCULLIS_SECRET_others\r\n", b""),
        ("/x", &format!("Authorization: bASIC {basic}\r\n"), b""),
        ("/x?a=PORTCULLIS_SECRET_others", "", b""),
        ("/x?a=%50ORTCULLIS_SECRE%54_others", "", b""),
        ("/x", json, br#"{"a": "PORTCULLIS_SECRET_others"}"#),
        ("/x", json, br#"{"a": "\u0050ORTCULLIS_SECRET_others"}"#),
        ("/x", json, b"no JSON: PORTCULLIS_SECRET_others"),
        ("/x", form, b"a=PORTCULLIS_SECRET_others"),
        ("/x", form, b"a=%50ORTCULLIS_SECRET_others"),
        ("/x", "Content-Type: text/plain\r\n", b"PORTCULLIS_SECRET_key PORTCULLIS_SECRET_others"),
    ];
    for (target, fields, body) in cases {
        let answer = ask(&setting.house, "POST", target, fields, body).await;
        assert_eq!(answer.status, 403, "{target} {fields}: {answer:?}");
        let problem = answer.problem();
        assert_eq!(problem["rule"], "http placeholder");
        assert!(problem["detail"].as_str().unwrap().contains("belongs to another upstream"), "{problem}");
    }
    assert!(setting.web.seen().unwrap().is_empty() && setting.other.seen().unwrap().is_empty());
    let record = setting.record();
    assert_eq!(record.matches("\"rule\":\"http placeholder\"").count(), cases.len(), "{record}");
    assert!(record.contains("POST /x?a=PORTCULLIS_SECRET_others"), "all of it is on record: {record}");
    // There it belongs, and ours does not.
    let at = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert_eq!(setting.ask_other(&at("/x?a=PORTCULLIS_SECRET_others")).await.status, 200);
    assert_eq!(setting.ask_other(&at("/x?a=PORTCULLIS_SECRET_key")).await.status, 403);
    let seen = setting.other.seen().unwrap();
    assert_eq!(seen.iter().map(|seen| &*seen.path).collect::<Vec<_>>(), [format!("/x?a={OTHERS}")]);
    // A secret that one upstream stored is masked when another gives it back.
    let answer = ask(&setting.house, "POST", "/body", "Content-Type: text/html\r\n", OTHERS.as_bytes()).await;
    assert!(answer.status == 200 && !answer.body.contains(OTHERS), "{answer:?}");
}

#[tokio::test]
async fn a_placeholder_stands_where_the_policy_says_or_nowhere() {
    let setting = setting(Web::start().unwrap(), Limits::default());
    let json = "Content-Type: application/json\r\n";
    let cases: &[(&str, &str, &[u8])] = &[
        ("/PORTCULLIS_SECRET_key", "", b""),
        ("/%50ORTCULLIS_SECRET_key/x", "", b""),
        ("/x?PORTCULLIS_SECRET_key=1", "", b""),
        ("/x?PORTCULLIS_SECRET_key", "", b""),
        ("/x?other=PORTCULLIS_SECRET_key_2", "", b""),
        ("/x", "X-Other: PORTCULLIS_SECRET_key_2\r\n", b""),
        ("/x", "X-Any: PORTCULLIS_SECRET_key_3\r\n", b""),
        ("/x", "X-Any: PORTCULLIS_SECRET_\r\n", b""),
        ("/x", "X-Any: PORTCULLIS_SECRET_PORTCULLIS_SECRET_key\r\n", b""),
        ("/x", json, br#"{"a": "PORTCULLIS_SECRET_key_2"}"#),
        ("/x", json, br#"{"PORTCULLIS_SECRET_key": 1}"#),
        ("/x", json, br#"{"a": "PORTCULLIS_SECRET_key", "b": "PORTCULLIS\u005fSECRET_key"}"#),
        ("/x", json, br#"{"a": "PORTCULLIS_SECRET_key", "a": 1}"#),
        ("/x", "Content-Type: application/x-www-form-urlencoded\r\n", b"PORTCULLIS_SECRET_key=1"),
    ];
    for (target, fields, body) in cases {
        let answer = ask(&setting.house, "POST", target, fields, body).await;
        assert_eq!(answer.status, 403, "{target} {fields} {}: {answer:?}", String::from_utf8_lossy(body));
    }
    let host = "GET / HTTP/1.1\r\nHost: PORTCULLIS_SECRET_key\r\nConnection: close\r\n\r\n";
    let mut client = setting.house.connect();
    client.write_all(host.as_bytes()).await.unwrap();
    let mut out = Vec::new();
    client.read_to_end(&mut out).await.unwrap();
    assert_eq!(answers(&out)[0].status, 421);
    assert!(setting.web.seen().unwrap().is_empty());
    // What is no placeholder goes as it is, and no secret with it.
    let fields = "X-One: PORTCULLIS_\r\nX-Two: SECRET_key\r\nX-Any: portcullis_secret_key\r\n\
                  Content-Type: application/json\r\n";
    let body = br#"{"a": "PORTCULLIS_", "b": "SECRET_key", "c": "UE9SVENVTExJU19TRUNSRVRfa2V5"}"#;
    let answer = ask(&setting.house, "POST", "/echo?a=%2550ORTCULLIS_SECRET_key", fields, body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let seen = setting.web.seen().unwrap().remove(0);
    assert_eq!((&*seen.path, seen.body.as_bytes()), ("/echo?a=%2550ORTCULLIS_SECRET_key", &body[..]));
    assert!(!format!("{seen:?}").contains("holder"), "{seen:?}");
}

#[tokio::test]
async fn a_body_that_is_not_read_whole_is_cut_off_at_a_placeholder() {
    let setting = setting(Web::start_clear().unwrap(), Limits { command: 1 << 20, ..Limits::default() });
    let mut body = vec![b'x'; 2 << 20];
    let kind = "Content-Type: text/plain\r\n";
    assert_eq!(ask(&setting.house, "POST", "/body", kind, &body).await.status, 200);
    body.extend_from_slice(b"PORTCULLIS_SECRET_");
    for (kind, name) in [(kind, "key"), ("Content-Type: image/png\r\n", "others"), ("", "key")] {
        let body = [&body[..], name.as_bytes()].concat();
        let answer = ask(&setting.house, "POST", "/body", kind, &body).await;
        assert!(answer.status == 403, "{kind}: {}", answer.head);
    }
    // Nearly one is none.
    let body = [&body[..body.len() - 1], b"-PORTCULLIS_SECRE"].concat();
    let answer = ask(&setting.house, "POST", "/body", "Content-Type: image/png\r\n", &body).await;
    assert!(answer.status == 200 && answer.body.ends_with("PORTCULLIS_SECRET-PORTCULLIS_SECRE"), "{}", answer.head);
    let seen = setting.web.seen().unwrap();
    assert!(seen.iter().all(|seen| !seen.body.contains("holder") && !seen.body.contains("PORTCULLIS_SECRET_")));
    assert_eq!(setting.record().matches("that is not read whole: cut off").count(), 3);
}

#[tokio::test]
async fn a_secret_that_changed_is_read_anew() {
    let setting = setting(Web::start().unwrap(), Limits::default());
    let one = "GET /x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer PORTCULLIS_SECRET_key\r\n\r\n";
    let mut client = setting.house.connect();
    client.write_all(one.as_bytes()).await.unwrap();
    let mut out = Vec::new();
    while answers(&out).is_empty() {
        assert!(client.read_buf(&mut out).await.unwrap() > 0);
    }
    secret(setting.web.folder(), "key", "rotated-4242");
    let two = one.replace("/x", "/rotated?to=rotated-4242").replace("Host", "Connection: close\r\nHost");
    client.write_all(two.as_bytes()).await.unwrap();
    client.read_to_end(&mut out).await.unwrap();
    let answers = answers(&out);
    assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [200, 200], "{answers:?}");
    assert_eq!(setting.web.seen().unwrap().len(), 3);
    // A secret that cannot stand in a field, and one that is not there.
    secret(setting.web.folder(), "key", "two\nlines");
    let field = "Authorization: Bearer PORTCULLIS_SECRET_key\r\n";
    assert_eq!(ask(&setting.house, "GET", "/x", field, b"").await.status, 502);
    fs::remove_file(setting.web.folder().join("key")).unwrap();
    let answer = ask(&setting.house, "GET", "/x", field, b"").await;
    assert_eq!(answer.status, 502);
    assert!(!answer.body.contains(&setting.web.folder().display().to_string()), "{answer:?}");
    assert_eq!(setting.web.seen().unwrap().len(), 3);
}

#[tokio::test]
async fn placeholders_are_filled_over_http2() {
    use crate::http2::{ask, client, request};
    let setting = setting(Web::start_http2().unwrap(), Limits::default());
    // In the clear, both sides must speak it from the start.
    let client = client(&setting.house).await;
    let fields = [("x-any", "PORTCULLIS_SECRET_key"), ("content-type", "application/json")];
    let body = r#"{"a": "PORTCULLIS_SECRET_key"}"#;
    let (head, text) = ask(&client, request("POST", "/echo?a=PORTCULLIS_SECRET_key", &fields, body)).await;
    assert!(head.status == 200 && !text.contains("holder"), "{head:?} {text}");
    let seen = setting.web.seen().unwrap().remove(0);
    assert_eq!((seen.header("x-spoken"), seen.header("x-any")), (Some("HTTP/2.0"), Some(KEY)));
    assert_eq!(serde_json::from_str::<Value>(&seen.body).unwrap(), serde_json::json!({ "a": KEY }));
    assert_eq!(seen.header("content-length"), Some(&*seen.body.len().to_string()));
    assert!(seen.path.contains("a=pl%22ace%5Cholder"), "{seen:?}");
    let (head, _) = ask(&client, request("GET", "/x", &[("x-any", "PORTCULLIS_SECRET_others")], "")).await;
    assert_eq!((head.status.as_u16(), setting.web.seen().unwrap().len()), (403, 1));
}
