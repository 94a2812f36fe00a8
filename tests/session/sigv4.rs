//! Requests that are signed for AWS on their way, toward a service that checks each signature by itself.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use portcullis::wire::Limits;
use portcullis_tests::{TestHouse, Web};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::http::{Answer, answers, ask};

const POLICY: &str = r#"
[workload]
name = "bot"
cgroup = "portcullis.slice/bot/*"
autonomy = "autonomous"

[[upstream]]
name = "aws"
protocol = "http"
address = ["localhost:{port}"]
tls = { ca = "{ca}" }
credential = { source = "file", path = "{folder}/credential", inject = "sigv4:eu-central-1/{service}" }

[[rule]]
name = "everything"
targets = ["**"]
effect = "allow"
"#;

fn keys(web: &Web, id: &str, secret: &str, token: &str) {
    fs::write(web.folder().join("keys"), serde_json::json!({ id: [secret, token] }).to_string()).unwrap();
}

fn credential(web: &Web, id: &str, secret: &str, token: &str) {
    let path = web.folder().join("credential");
    let json = serde_json::json!({ "Version": 1, "AccessKeyId": id, "SecretAccessKey": secret, "SessionToken": token });
    fs::write(&path, json.to_string()).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn service(name: &str, limits: Limits) -> (Web, TestHouse) {
    let web = Web::start_script(include_str!("sigv4.py"), Path::new("/nowhere")).unwrap();
    keys(&web, "ASIAGOOD", "the/secret+key", "the//session==token");
    credential(&web, "ASIAGOOD", "the/secret+key", "the//session==token");
    let policy = POLICY.replace("{folder}", &web.folder().display().to_string()).replace("{service}", name);
    let house = TestHouse::with_limits(&web, &policy, limits).unwrap();
    (web, house)
}

fn seen(web: &Web) -> Vec<Value> {
    let text = fs::read_to_string(web.folder().join("seen")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn accepted(answer: &Answer) {
    assert_eq!(answer.status, 200, "{}", answer.body);
    for secret in ["the/secret+key", "the//session==token"] {
        assert!(!answer.body.contains(secret) && !answer.head.contains(secret), "{answer:?}");
    }
}

const OWN: &str = "Authorization: AWS4-HMAC-SHA256 Credential=AKIAOWN/20200101/x/y/aws4_request, SignedHeaders=host, \
                   Signature=00\r\nauthorization: own\r\nx-amz-DATE: 20200101T000000Z\r\nX-Amz-Date: 20200101T000001Z\r\n\
                   X-Amz-Content-Sha256: 00\r\nX-Amz-Security-Token: own\r\nX-AMZ-Signature: 00\r\n";

#[tokio::test]
async fn requests_are_signed_anew_and_the_clients_own_signature_is_taken_out() {
    for name in ["s3", "execute-api"] {
        let (web, house) = service(name, Limits::default());
        for (method, target, fields, body) in [
            ("GET", "/", "", ""),
            ("HEAD", "/bucket/key", "", ""),
            ("GET", "/a%20b/c%2Bd?z=1&a=%20x&A=&list-type=2&a=%2F", "", ""),
            ("GET", "/x?prefix=a/b:c*(d)~&empty", "", ""),
            ("PUT", "/bucket/key", "Content-Type: text/plain\r\nX-Amz-Acl:   private  to  me \r\n", "hello"),
            (
                "POST",
                "/items",
                "Content-Type: application/json\r\nX-Amz-Target: T.Put\r\nX-Amz-Meta-a: 1\r\nX-Amz-Meta-a: 2\r\n",
                "{}",
            ),
            ("DELETE", "/items/1%3A2", "User-Agent: me\r\nCookie: a=1; b=2\r\n", ""),
        ] {
            accepted(&ask(&house, method, target, fields, body.as_bytes()).await);
            let target = format!(
                "{target}{}X-Amz-Algorithm=AWS4-HMAC-SHA256&x-amz-credential=AKIAOWN&X-Amz-%53ignature=00&X-Amz-Expires=900",
                if target.contains('?') { '&' } else { '?' }
            );
            accepted(&ask(&house, method, &target, &format!("{fields}{OWN}"), body.as_bytes()).await);
        }
        let (seen, record) = (seen(&web), serde_json::to_string(&house.events().unwrap()).unwrap());
        assert!(seen.len() == 14 && !serde_json::to_string(&seen).unwrap().contains("OWN"), "{seen:?}");
        assert!(
            !record.contains("AKIAOWN") && !record.contains("the/secret+key") && !record.contains("session=="),
            "{record}"
        );
    }
}

#[tokio::test]
async fn bodies_are_signed_where_the_service_asks_for_it() {
    let limits = || Limits { command: 1 << 20, ..Limits::default() };
    let large = vec![b'x'; 3 << 20];
    // S3 takes over TLS what is not signed, so that it streams.
    let (web, house) = service("s3", limits());
    accepted(&ask(&house, "PUT", "/bucket/large", "", &large).await);
    let seen = self::seen(&web);
    assert_eq!(seen[0]["length"], 3 << 20);
    assert!(seen[0]["headers"].to_string().contains("UNSIGNED-PAYLOAD"), "{seen:?}");
    // Others do not.
    let (web, house) = service("execute-api", limits());
    let mut client = house.connect();
    let head = format!(
        "PUT /large HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        large.len()
    );
    client.write_all(head.as_bytes()).await.unwrap();
    let mut out = Vec::new();
    client.read_to_end(&mut out).await.unwrap();
    let answer = answers(&out).remove(0);
    assert_eq!(answer.status, 413, "{answer:?}");
    assert!(answer.problem()["detail"].as_str().unwrap().contains("the signature needs the whole body"));
    accepted(&ask(&house, "PUT", "/small", "", b"hello").await);
    let seen = self::seen(&web);
    assert!(seen.len() == 1 && !seen[0]["headers"].to_string().contains("UNSIGNED-PAYLOAD"), "{seen:?}");
}

#[tokio::test]
async fn what_is_signed_piece_by_piece_is_refused_with_a_remedy() {
    let (web, house) = service("s3", Limits::default());
    for field in [
        "X-Amz-Content-SHA256: STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
        "x-amz-content-sha256: STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        "Content-Encoding: aws-chunked",
        "X-Amz-Decoded-Content-Length: 5",
    ] {
        let answer =
            ask(&house, "PUT", "/bucket/key", &format!("{field}\r\n"), b"5;chunk-signature=0\r\nhello\r\n").await;
        assert_eq!(answer.status, 501, "{field}: {answer:?}");
        assert!(answer.problem()["detail"].as_str().unwrap().contains("when_required"), "{answer:?}");
    }
    assert!(seen(&web).is_empty());
    let record = serde_json::to_string(&house.events().unwrap()).unwrap();
    assert_eq!(record.matches("http signature").count(), 4, "{record}");
}

#[tokio::test]
async fn keys_that_change_are_noticed_and_a_refusal_is_passed_on() {
    let (web, house) = service("execute-api", Limits::default());
    accepted(&ask(&house, "GET", "/x", "", b"").await);
    // On one connection, whose keys end between two requests.
    let mut client = house.connect();
    client.write_all(b"GET /one HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut out = Vec::new();
    while answers(&out).is_empty() {
        assert!(client.read_buf(&mut out).await.unwrap() > 0);
    }
    keys(&web, "ASIANEXT", "another/secret", "another//token");
    credential(&web, "ASIANEXT", "another/secret", "another//token");
    client.write_all(b"GET /two HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    client.read_to_end(&mut out).await.unwrap();
    assert_eq!(answers(&out).iter().map(|answer| answer.status).collect::<Vec<_>>(), [200, 200]);
    let before = seen(&web).len();
    assert_eq!(before, 4, "one more for the key that had ended");
    // Where there is no other key, 403 is an answer like any other.
    keys(&web, "ASIAELSE", "x", "");
    let answer = ask(&house, "GET", "/three", "", b"").await;
    assert_eq!((answer.status, seen(&web).len()), (403, before + 1), "{answer:?}");
    assert!(!answer.body.contains("another//token"), "{answer:?}");
}
