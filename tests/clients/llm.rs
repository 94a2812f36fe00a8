//! The official clients of models' services, governed, toward a server that speaks the real formats.

use std::fs;

use portcullis::record::{EventBody, read};
use portcullis_tests::{Daemon, PASSWORD, Server as _, Web};

use crate::{
    languages::{copy, run, tools},
    web::site,
};

const POLICY: &str = r#"
[workload]
name = "bot"
cgroup = "{slice}/bot/*"
autonomy = "confirm"

[[upstream]]
name = "models"
protocol = "llm"
address = ["localhost:{port}"]
tls = { ca = "{ca}" }
credential = { source = "file", path = "{password}" }
price = [{ model = "stand-in-*", input = 2.5, output = 10.0 }]
session_budget = { tokens = 1000000, cost = 20.0, per = "1h" }

[[rule]]
name = "models"
verbs = ["read"]
targets = ["model:stand-in-*"]
effect = "allow"

[[mask]]
detect = ["email"]
with = "redact"
"#;

#[test]
fn openai_and_anthropic() {
    let model = Web::start_model().unwrap();
    let daemon = Daemon::start(&model, POLICY).unwrap();
    let packages = copy(&daemon, &tools().join("python/lib"), "python");
    let file = daemon.path("llm_client.py");
    fs::write(&file, include_str!("llm_client.py")).unwrap();
    let arguments = ["-B", &file.display().to_string(), &format!("https://localhost:{}", model.port())];
    let mut command = daemon.governed("/usr/bin/python3", &arguments).unwrap();
    run(&daemon, command.env("PYTHONPATH", site(&packages)));
    let seen = model.seen().unwrap();
    let credential = format!("Bearer {PASSWORD}");
    assert!(seen.iter().all(|seen| seen.header("authorization") == Some(&*credential)), "{seen:?}");
    assert!(seen.iter().all(|seen| seen.header("x-api-key").is_none()), "{seen:?}");
    // What was refused was asked once: the clients do not try again.
    let (mut refused, mut turns, mut answers) = (0, 0, 0);
    for recorded in read::events(daemon.path("state/record")).unwrap() {
        match &recorded.unwrap().event.body {
            EventBody::Command { decision, .. } if !decision.passed() => refused += 1,
            EventBody::Turn { .. } => turns += 1,
            EventBody::Answer { failed: false, usage, .. } if !usage.estimated => answers += 1,
            _ => {}
        }
    }
    // The stream that asks for no usage of OpenAI's is guessed.
    assert_eq!((refused, turns, answers), (4, seen.len(), seen.len() - 1));
}
