//! Tokens of OAuth 2.0, from a server that gives them out to one that wants them.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc};

use portcullis::{
    net::{Net, RuntimeCa, Scope},
    policy::{CredentialRef, PolicySet},
    secrets::Secrets,
};
use portcullis_tests::{Server as _, TestHouse, Web};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::http::{Answer, answers, ask};

const SECRET: &str = "hush-4711 &co";

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

[upstream.credential]
source = "oauth2"
token_url = "https://localhost:{port}/token"
token_tls = { ca = "{ca}" }
client_id = "the bot"
client_secret = { source = "file", path = "{folder}/client-secret" }
scopes = ["invoices:read", "invoices:write"]
audience = "https://api.example"

[[rule]]
name = "everything"
targets = ["**"]
effect = "allow"
"#;

struct Setting {
    web: Web,
    policy: String,
}

impl Setting {
    fn new(policy: &str) -> Self {
        let web = Web::start_script(include_str!("oauth2.py"), Path::new("/nowhere")).unwrap();
        private(&web, "client-secret", SECRET);
        let policy = policy.replace("{folder}", &web.folder().display().to_string());
        Self { web, policy }
    }

    fn house(&self) -> TestHouse {
        TestHouse::new(&self.web, &self.policy).unwrap()
    }

    fn mode(&self, mode: &str) {
        // In one step: it is read at any time.
        let next = self.web.folder().join("mode.next");
        fs::write(&next, mode).unwrap();
        fs::rename(next, self.web.folder().join("mode")).unwrap();
    }

    fn log(&self, name: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.web.folder().join(name)).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// How often a token was asked for.
    fn asked(&self) -> usize {
        self.log("asked").len()
    }

    /// The bearer tokens that the API was sent.
    fn sent(&self) -> Vec<String> {
        let each = |call: Value| call["authorization"][0].as_str().unwrap_or_default().to_owned();
        self.log("called").into_iter().map(each).collect()
    }

    /// Secrets of a daemon that is started anew, in the same state folder.
    fn restarted(&self, state: &Path) -> (Secrets, CredentialRef) {
        let text = self.policy.replace("{port}", &self.web.port().to_string());
        let text = text.replace("{ca}", &self.web.ca().display().to_string());
        let set = PolicySet::from_texts([("bot.toml", text)]).unwrap();
        let credential = set.by_workload("bot").unwrap().upstream("api").unwrap().credential.clone();
        let ca = RuntimeCa::new(std::time::Duration::from_secs(3600), &Scope::default()).unwrap();
        (Secrets::new(None).dialing(Arc::new(Net::new(Arc::new(ca)))).keeping(state.join("tokens")), credential)
    }
}

fn private(web: &Web, name: &str, text: &str) {
    let path = web.folder().join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

async fn get(house: &TestHouse, path: &str) -> Answer {
    ask(house, "GET", path, "Authorization: Bearer mine\r\naUTHORIZATION: Bearer mine-too\r\n", b"").await
}

#[tokio::test]
async fn a_token_is_fetched_once_and_goes_in_and_does_not_come_back() {
    let setting = Setting::new(POLICY);
    let house = setting.house();
    setting.mode("slow");
    // All at once, each on a connection of its own: one of them asks.
    let all = futures_util::future::join_all((0..12).map(|_| get(&house, "/x"))).await;
    assert!(all.iter().all(|answer| answer.status == 200), "{all:?}");
    let (asked, sent) = (setting.log("asked"), setting.sent());
    assert_eq!((asked.len(), sent.len()), (1, 12));
    assert_eq!(asked[0]["form"]["scope"][0], "invoices:read invoices:write");
    assert_eq!(asked[0]["form"]["audience"][0], "https://api.example");
    assert!(asked[0]["form"].get("client_secret").is_none(), "{asked:?}");
    assert!(sent.iter().all(|token| *token == sent[0] && token.starts_with("Bearer token-1-")), "{sent:?}");
    let token = sent[0].trim_start_matches("Bearer ");
    for answer in &all {
        assert!(answer.body.contains("Bearer [redacted]"), "{answer:?}");
        assert!(!answer.body.contains(token) && !answer.head.contains(token), "{answer:?}");
    }
    let record = serde_json::to_string(&house.events().unwrap()).unwrap();
    assert!(!record.contains(token) && !record.contains(SECRET) && !record.contains("Bearer mine"), "{record}");
}

#[tokio::test]
async fn a_token_that_is_not_taken_is_replaced_once() {
    let setting = Setting::new(POLICY);
    let house = setting.house();
    assert_eq!(get(&house, "/revoke").await.status, 200);
    let answer = get(&house, "/x").await;
    assert_eq!((answer.status, setting.asked()), (200, 2), "{answer:?}");
    // Whoever says no to every token does not make us ask for one each time.
    for _ in 0..5 {
        let answer = get(&house, "/never").await;
        assert_eq!(answer.status, 401);
        assert!(!answer.body.contains("token-"), "{answer:?}");
    }
    assert_eq!((setting.asked(), setting.sent().len()), (2, 8), "{:?}", setting.sent());
    assert_eq!(get(&house, "/x").await.status, 200);
}

#[tokio::test]
async fn what_streamed_is_not_sent_twice_and_the_next_request_has_another_token() {
    let setting = Setting::new(POLICY);
    let house = setting.house();
    assert_eq!(get(&house, "/revoke").await.status, 200);
    let mut client = house.connect();
    let first = "POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello";
    client.write_all(first.as_bytes()).await.unwrap();
    let mut out = Vec::new();
    while answers(&out).is_empty() {
        assert!(client.read_buf(&mut out).await.unwrap() > 0);
    }
    assert_eq!((answers(&out)[0].status, setting.asked()), (401, 1));
    let second = first.replace("Host", "Connection: close\r\nHost");
    client.write_all(second.as_bytes()).await.unwrap();
    client.read_to_end(&mut out).await.unwrap();
    assert_eq!((answers(&out)[1].status, setting.asked(), setting.sent().len()), (200, 2, 3));
}

#[tokio::test]
async fn a_token_is_not_used_beyond_its_end() {
    let setting = Setting::new(POLICY);
    let house = setting.house();
    setting.mode("short");
    let one = "GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let last = "GET /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let mut client = house.connect();
    client.write_all(format!("{one}{one}{last}").as_bytes()).await.unwrap();
    let mut out = Vec::new();
    client.read_to_end(&mut out).await.unwrap();
    assert_eq!(answers(&out).iter().map(|answer| answer.status).collect::<Vec<_>>(), [200; 3]);
    let sent = setting.sent();
    assert!(setting.asked() == 3 && sent[0] != sent[1] && sent[1] != sent[2], "{sent:?}");
}

#[tokio::test]
async fn an_endpoint_that_fails_is_an_error_that_says_nothing() {
    let policy = POLICY.replace("client_id", "timeout = \"1s\"\nclient_id");
    let setting = Setting::new(&policy);
    for mode in ["hang", "huge", "broken", "redirect", "error", "html"] {
        setting.mode(mode);
        let (house, before) = (setting.house(), setting.asked());
        let answer = get(&house, "/x").await;
        assert_eq!(answer.status, 502, "{mode}: {answer:?}");
        assert_eq!(answer.problem()["detail"], "the credential for this upstream is not available", "{mode}");
        assert_eq!(setting.asked(), before + 1, "{mode}");
        let record = serde_json::to_string(&house.events().unwrap()).unwrap();
        assert!(!record.contains("hush-4711") && !record.contains("/token"), "{record}");
        // It comes back.
        setting.mode("");
        while get(&house, "/x").await.status != 200 {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
    // Nobody that is not trusted is sent a secret.
    let before = setting.asked();
    let untrusted = setting.policy.replace("token_tls = { ca = \"{ca}\" }", "");
    let house = TestHouse::new(&setting.web, &untrusted).unwrap();
    assert_eq!((get(&house, "/x").await.status, setting.asked()), (502, before));
    assert!(setting.sent().iter().all(|token| token.starts_with("Bearer token-")));
}

#[tokio::test]
async fn a_refresh_token_that_is_replaced_outlives_the_daemon() {
    let policy = POLICY.replace(
        "client_secret = { source = \"file\", path = \"{folder}/client-secret\" }",
        "client_auth = \"client_secret_post\"\nclient_secret = { source = \"file\", path = \"{folder}/client-secret\" }\n\
         refresh_token = { source = \"exec\", argv = [\"/bin/cat\", \"{folder}/refresh\"] }",
    );
    let setting = Setting::new(&policy);
    private(&setting.web, "refresh", "first refresh/token\n");
    let state = tempfile::tempdir().unwrap();
    setting.mode("rotate");
    for run in 0..3 {
        let (secrets, credential) = setting.restarted(state.path());
        for _ in 0..2 {
            let lease = secrets.lease(&credential).await.unwrap_or_else(|error| panic!("{run}: {}", error.detail()));
            assert!(lease.password.is_some());
            secrets.rejected(&credential, &lease).await;
        }
    }
    let asked = setting.log("asked");
    let used: Vec<&str> = asked.iter().map(|asked| asked["form"]["refresh_token"][0].as_str().unwrap()).collect();
    assert_eq!((used.len(), used[0]), (6, "first refresh/token"));
    assert!((1..6).all(|n| used[n] != used[n - 1] && used[n].starts_with("refresh-")), "{used:?}");
    assert_eq!(asked[0]["form"]["client_secret"][0], SECRET);
    // Each of them is a known secret.
    let (secrets, credential) = setting.restarted(state.path());
    secrets.lease(&credential).await.unwrap();
    let last = setting.log("asked").pop().unwrap()["form"]["refresh_token"][0].as_str().unwrap().to_owned();
    assert!(secrets.known().are_in(last.as_bytes()) && secrets.known().are_in(SECRET.as_bytes()));
    // Whoever authorizes anew puts the new one in the source, and that counts.
    setting.mode("");
    private(&setting.web, "refresh", &last);
    let (secrets, credential) = setting.restarted(state.path());
    let error = secrets.lease(&credential).await.unwrap_err();
    assert!(
        error.detail().contains("invalid_grant") && error.detail().contains("authorize anew"),
        "{}",
        error.detail()
    );
    assert_eq!(setting.log("asked").pop().unwrap()["form"]["refresh_token"][0], last);
}
