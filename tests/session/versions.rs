//! Which version of HTTP a connection gets where the client leaves it open, and what goes upstream to find out.

use std::{
    net::TcpListener,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use portcullis::{
    net::{Net, RuntimeCa, Scope},
    policy::{TlsMode, TlsSpec},
    session::{Network as _, Secured},
};
use portcullis_tests::{Server, TestHouse, Web, reviewer};
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
name = "reads"
verbs = ["read"]
targets = ["**"]
effect = "allow"
"#;

/// A server that counts who connects, and says nothing.
struct Counting {
    port: u16,
    connected: Arc<AtomicUsize>,
}

impl Counting {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, connected) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&connected);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                count.fetch_add(1, SeqCst);
                drop(stream);
            }
        });
        Self { port, connected }
    }
}

impl Server for Counting {
    fn port(&self) -> u16 {
        self.port
    }

    fn ca(&self) -> PathBuf {
        "/dev/null".into()
    }
}

/// A client's TLS that offers both versions.
async fn offer_both(house: &TestHouse) -> Secured {
    let net = Net::new(Arc::new(RuntimeCa::new(Duration::from_secs(60), &Scope::default()).unwrap()));
    let unchecked = TlsSpec { mode: TlsMode::Require, ca: None, client: None };
    net.secure(Box::new(house.connect()), "localhost", &unchecked, &[b"h2", b"http/1.1"], None).await.unwrap()
}

async fn ask(secured: &mut Secured) -> String {
    secured.io.write_all(b"GET /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut out = Vec::new();
    let _ = secured.io.read_to_end(&mut out).await;
    String::from_utf8_lossy(&out).into_owned()
}

#[tokio::test]
async fn nothing_goes_upstream_for_a_connection_that_is_refused() {
    let server = Counting::start();
    let deny = "[[rule]]\nname = \"closed\"\nverbs = [\"connect\"]\neffect = \"deny\"\n";
    let house = TestHouse::new(&server, &format!("{POLICY}{deny}")).unwrap();
    let mut client = offer_both(&house).await;
    assert_eq!(client.protocol.as_deref(), Some(&b"http/1.1"[..]));
    let answer = ask(&mut client).await;
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("closed"), "{answer}");
    assert_eq!(server.connected.load(SeqCst), 0, "somebody connected");
    // The same where all is allowed: the server is asked, so that the count says something.
    let house = TestHouse::new(&server, POLICY).unwrap();
    drop(offer_both(&house).await);
    // It counts in a thread of its own.
    for _ in 0..200 {
        if server.connected.load(SeqCst) == 1 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("nobody connected");
}

#[tokio::test]
async fn nothing_goes_upstream_for_a_connection_that_waits() {
    let server = Counting::start();
    let hold = "[[rule]]\nname = \"asked\"\nverbs = [\"connect\"]\neffect = \"hold\"\nreviewers = [\"group:dba\"]\n";
    let house = TestHouse::new(&server, &format!("{POLICY}{hold}")).unwrap();
    let mut client = offer_both(&house).await;
    let (answer, ()) = tokio::join!(ask(&mut client), async {
        let held = house.held().await;
        assert_eq!(server.connected.load(SeqCst), 0, "somebody connected while it waited");
        house.house.holds.deny(&held.id, &reviewer("dora"), None).unwrap();
    });
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("dora"), "{answer}");
    assert_eq!(server.connected.load(SeqCst), 0, "somebody connected");
}

/// Speaks HTTP/2 in its first handshake and closes; speaks nothing but HTTP/1.1 from then on.
const CHANGES: &str = r#"
import socket, ssl, sys, os, threading
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
def context(protocol):
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(os.path.join(sys.argv[1], "server.crt"), os.path.join(sys.argv[1], "server.key"))
    made.set_alpn_protocols([protocol])
    return made
first = True
while True:
    client, _ = listener.accept()
    with context("h2" if first else "http/1.1").wrap_socket(client, server_side=True) as stream:
        first = False
"#;

#[tokio::test]
async fn an_upstream_that_stops_to_speak_what_was_agreed_on_is_refused() {
    let server = Web::start_script(CHANGES, std::path::Path::new("/")).unwrap();
    let house = TestHouse::new(&server, POLICY).unwrap();
    let client = offer_both(&house).await;
    assert_eq!(client.protocol.as_deref(), Some(&b"h2"[..]));
    let (mut sender, connection) =
        http2::handshake::<_, _, Empty<Bytes>>(TokioExecutor::new(), TokioIo::new(client.io)).await.unwrap();
    tokio::spawn(connection);
    loop {
        let request = hyper::Request::get("https://localhost/x").body(Empty::new()).unwrap();
        let (head, body) = sender.send_request(request).await.unwrap().into_parts();
        let body = String::from_utf8_lossy(&body.collect().await.unwrap().to_bytes()).into_owned();
        assert_eq!(head.status, 502, "{body}");
        // It may not be known yet that the first connection is closed.
        if !body.contains("broke off the request") {
            assert!(body.contains("the upstream does not speak HTTP/2: use HTTP/1.1"), "{body}");
            break;
        }
    }
    let record = serde_json::to_string(&house.events().unwrap()).unwrap();
    assert!(record.contains("broken off: the upstream does not speak HTTP/2"), "{record}");
}
