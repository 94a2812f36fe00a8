//! Upstreams that want a client certificate, which the enforcer has and the agent does not.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use portcullis_tests::{TestHouse, Web};

use crate::http::{Answer, ask};

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
credential = { source = "file", path = "{password}" }
client_certificate = { source = "file", path = "{folder}/client.pem" }

[[rule]]
name = "everything"
targets = ["**"]
effect = "allow"
"#;

/// Makes a certificate by the CA in the folder, or by none, and its key: each as PEM.
fn make(web: &Web, name: &str, days: &str, by_it: bool) -> (String, String) {
    let by = if by_it { "-CA ca.crt -CAkey ca.key -CAcreateserial" } else { "-signkey client.key" };
    let script = format!(
        "set -e; openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj '/CN={name}' \
             -keyout client.key -out client.csr; \
         openssl x509 -req -in client.csr {by} -days {days} -out client.crt"
    );
    let output = Command::new("/bin/sh").args(["-c", &script]).current_dir(web.folder()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let read = |file: &str| fs::read_to_string(web.folder().join(file)).unwrap();
    (read("client.crt"), read("client.key"))
}

fn give(web: &Web, pem: &str) {
    let path = web.folder().join("client.pem");
    fs::write(&path, pem).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn setting() -> (Web, TestHouse) {
    let web = Web::start_script(include_str!("client_certificates.py"), Path::new("/nowhere")).unwrap();
    let house = TestHouse::new(&web, &POLICY.replace("{folder}", &web.folder().display().to_string())).unwrap();
    (web, house)
}

async fn get(house: &TestHouse) -> Answer {
    ask(house, "GET", "/x", "", b"").await
}

#[tokio::test]
async fn a_certificate_is_shown_afresh_beside_a_credential() {
    let (web, house) = setting();
    for name in ["first", "second"] {
        let (certificate, key) = make(&web, name, "2", true);
        // In either order, with the issuer or without.
        let issuer = fs::read_to_string(web.folder().join("ca.crt")).unwrap();
        let pem = if name == "first" { [certificate, issuer, key].concat() } else { [key, certificate].concat() };
        give(&web, &pem);
        let answer = get(&house).await;
        assert!(answer.status == 200 && answer.body.contains(&format!("\"name\": \"{name}\"")), "{answer:?}");
        assert!(answer.body.contains("\"authorization\": \"Bearer [redacted]\""), "{answer:?}");
    }
}

#[tokio::test]
async fn its_key_does_not_come_back() {
    let (web, house) = setting();
    let (certificate, key) = make(&web, "first", "2", true);
    give(&web, &[certificate.clone(), key.clone()].concat());
    let lines: Vec<&str> = key.lines().filter(|line| line.len() > 24 && !line.starts_with("---")).collect();
    assert!(lines.len() >= 2);
    for said in [key.clone(), lines.concat(), format!("x {} y", lines[1]), certificate.clone()] {
        fs::write(web.folder().join("said"), &said).unwrap();
        let answer = get(&house).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(lines.iter().all(|line| !answer.body.contains(line)), "{answer:?}");
        // What everybody may know stays.
        assert!(said != certificate || answer.body.contains(certificate.lines().nth(1).unwrap()), "{answer:?}");
    }
    let record = serde_json::to_string(&house.events().unwrap()).unwrap();
    assert!(lines.iter().all(|line| !record.contains(line)));
}

#[tokio::test]
async fn one_that_is_not_taken_or_cannot_be_used_is_a_bad_gateway() {
    let (web, house) = setting();
    let good = make(&web, "good", "2", true);
    let other = make(&web, "other", "2", true);
    let stranger = make(&web, "stranger", "2", false);
    let expired = make(&web, "expired", "0", true);
    // Its last second.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let cases = [
        (None, "not available"),
        (Some(String::new()), "not available"),
        (Some(good.0.clone()), "not available"),
        (Some(good.1.clone()), "not available"),
        (Some("-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----\n".into()), "not available"),
        (Some([&*good.0, &*other.1].concat()), "not available"),
        (Some([&*expired.0, &*expired.1].concat()), "not available"),
        (Some([&*stranger.0, &*stranger.1].concat()), "the upstream broke off the request"),
        (Some([&*good.0, &*good.1].concat()), ""),
    ];
    for (number, (pem, said)) in cases.iter().enumerate() {
        if let Some(pem) = pem {
            give(&web, pem);
        }
        let answer = get(&house).await;
        let events = house.events().unwrap();
        let last = serde_json::to_string(&events).unwrap();
        if said.is_empty() {
            assert_eq!(answer.status, 200, "{answer:?}");
            continue;
        }
        assert_eq!(answer.status, 502, "{number} {answer:?}");
        let problem = answer.problem().to_string();
        assert!(problem.contains(said), "{number} {problem}");
        let folder = web.folder().display().to_string();
        for secret in ["PRIVATE", "CERTIFICATE", "good", "stranger", &folder, good.1.lines().nth(1).unwrap()] {
            assert!(!problem.contains(secret) && !last.contains(good.1.lines().nth(1).unwrap()), "{number} {problem}");
        }
        // What was let through, and what came of it.
        assert_eq!(last.matches(said).count(), number_of(&cases[..=number], said), "{number} {last}");
    }
}

fn number_of(cases: &[(Option<String>, &str)], said: &str) -> usize {
    cases.iter().filter(|case| case.1 == said).count()
}
