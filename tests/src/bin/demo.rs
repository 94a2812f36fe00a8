//! The demo: the main job, end to end, on a private PostgreSQL. Every step asserts.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use portcullis_tests::{Daemon, PASSWORD, Postgres, SHOP_POLICY, Server as _, Web, secret};

/// The model's service beside the shop.
const MODELS: &str = r#"
[[upstream]]
name = "models"
protocol = "llm"
address = ["localhost:{models}"]
tls = { ca = "{models_ca}" }
credential = { source = "file", path = "{password}" }
price = [{ model = "stand-in-*", input = 2.5, output = 10.0 }]
session_budget = { cost = 1.0 }

[[rule]]
name = "models"
upstream = "models"
verbs = ["read"]
targets = ["model:stand-in-*"]
effect = "allow"
"#;

/// An agent that does what a model says. It waits at its end, so that it can be searched.
const AGENT: &str = r#"
import json, subprocess, sys, urllib.request

URL, DATABASE = sys.argv[1:3]
TOOLS = [{"type": "function", "function": {"name": "query", "description": "runs SQL", "parameters": {"type": "object"}}}]


def ask(messages):
    body = json.dumps({"model": "stand-in-1", "max_tokens": 200, "messages": messages, "tools": TOOLS}).encode()
    head = {"Content-Type": "application/json", "Authorization": "Bearer none"}
    with urllib.request.urlopen(urllib.request.Request(URL + "/v1/chat/completions", body, head)) as answer:
        return json.load(answer)["choices"][0]["message"]


messages = [{"role": "user", "content": "please look up how many orders there are"}]
message = ask(messages)
call = message["tool_calls"][0]
sql = json.loads(call["function"]["arguments"])["sql"]
rows = subprocess.run(["psql", "-XAtc", sql, DATABASE], capture_output=True, text=True, check=True).stdout.strip()
result = {"role": "tool", "tool_call_id": call["id"], "content": rows}
print(ask([*messages, message, result])["content"], flush=True)
sys.stdin.read()
"#;

fn main() -> Result<()> {
    let keep = std::env::args().any(|a| a == "--keep");
    say(
        "A private PostgreSQL 15 (SCRAM, TLS, a seeded shop), a stand-in for a model's service, and a daemon are starting.",
    );
    let server = Postgres::start()?;
    let model = Web::start_model()?;
    let models =
        MODELS.replace("{models}", &model.port().to_string()).replace("{models_ca}", &model.ca().display().to_string());
    let daemon = Daemon::start(&server, &format!("{SHOP_POLICY}{models}"))?;
    let url = format!("host=127.0.0.1 port={} dbname=shop user=agent", server.port);
    let psql = |arguments: &[&str]| -> Result<(bool, String)> {
        let mut command = daemon.governed("psql", &["-X", &url])?;
        let output = command.args(arguments).output()?;
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        println!("{text}{}", if output.status.success() { "" } else { "(psql failed)\n" });

        Ok((output.status.success(), text))
    };

    say("1. The agent reads customers. It gave no password; look at email, ssn and card: masked.");
    let (ok, text) = psql(&["-c", "SELECT id, name, email, ssn, card FROM customers ORDER BY id LIMIT 3"])?;
    ensure!(ok && text.contains("Customer 1"), "the read failed: {}", daemon.log());
    ensure!(!text.contains("customer1@") && !text.contains("12-3456") && !text.contains("4111111111111111"), "leak");

    say("2. The agent changes a price. The rule holds it: psql waits on its open connection.");
    let sql = "UPDATE products SET price = 9.99 WHERE id = 1";
    let mut waiting = daemon.governed("psql", &["-X", &url, "-c", sql])?;
    let waiting = waiting.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let hold = daemon.held()?;
    println!("{}", daemon.ok(&["held"])?);
    let id = hold["id"].as_str().context("a hold has an id")?;
    say("   It is tried and rolled back, so that a reviewer sees the row before and after.");
    let tried = shown(&daemon, id)?;
    println!("{tried}");
    ensure!(tried.contains("price=1.50") && tried.contains("+ price=9.99"), "no dry run");
    ensure!(server.sql("shop", "SELECT price FROM products WHERE id = 1")? == "1.50", "it did not wait");
    say("   root, who is not the agent, approves it.");
    println!("{}", daemon.ok(&["approve", id, "--reason", "agreed with sales"])?);
    let output = waiting.wait_with_output()?;
    print!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "the approved UPDATE failed");
    ensure!(server.sql("shop", "SELECT price FROM products WHERE id = 1")? == "9.99", "the row did not change");

    say("3. The agent drops a table: refused, with the rule's name, and the session goes on.");
    let (_, text) = psql(&["-c", "DROP TABLE orders", "-c", "SELECT count(*) FROM orders"])?;
    ensure!(text.contains("no drops") && text.contains("5000"), "the refusal was not as it should be");

    say(
        "4. The agent tries to get round the mask: by computing, by an error that quotes the value, by searching for it.",
    );
    let (ok, text) = psql(&[
        "-c",
        "SELECT reverse(c.email), left(s.x, 9), row_to_json(c) FROM customers c, LATERAL (SELECT c.email AS x) s LIMIT 1",
    ])?;
    ensure!(ok && text.contains("[redacted]") && !text.contains("customer") && !text.contains("elpmaxe"), "leak");
    let (ok, text) = psql(&["-c", "SELECT email::integer FROM customers WHERE id = 1"])?;
    ensure!(!ok && text.contains("[redacted]") && !text.contains("customer1@"), "the error tells the value");
    let mut search =
        daemon.governed("psql", &["-X", &url, "-c", "SELECT id FROM customers WHERE email LIKE 'customer1@%'"])?;
    let search = search.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let searched = daemon.held()?;
    daemon.ok(&[
        "deny",
        searched["id"].as_str().context("a hold has an id")?,
        "--reason",
        "look customers up by number",
    ])?;
    let output = search.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("{text}");
    ensure!(text.contains("masked column") && text.contains("look customers up by number"), "the search was not held");

    say("5. The agent tries a road of its own: a socket to a port that no policy names, and UDP.");
    let direct = "import socket,sys\n\
        for kind, name in ((socket.SOCK_STREAM, 'tcp'), (socket.SOCK_DGRAM, 'udp')):\n\
        \x20   try:\n\
        \x20       s = socket.socket(socket.AF_INET, kind); s.connect(('127.0.0.1', int(sys.argv[1])))\n\
        \x20       s.send(b'x'); s.settimeout(3); print(name, 'REACHED' if s.recv(10) else 'closed')\n\
        \x20   except OSError as e: print(name, 'failed:', e)";
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = std::io::Write::write_all(&mut &stream, b"hello");
        }
    });
    let output = daemon.governed("/usr/bin/python3", &["-c", direct, &port.to_string()])?.output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("{text}{}", String::from_utf8_lossy(&output.stderr));
    ensure!(text.contains("tcp") && text.contains("udp") && !text.contains("REACHED"), "a road was open");

    say("6. Nothing of the agent holds the password: environment, command line, memory.");
    let mut idle = daemon.governed("psql", &["-X", &url])?;
    let mut idle = idle.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    std::io::Write::write_all(&mut idle.stdin.as_ref().context("no input")?, b"SELECT count(*) FROM customers;\n")?;
    thread::sleep(Duration::from_secs(1));
    let searched = secret::not_in_process(idle.id())?;
    println!("searched {searched} bytes of process {}: not found\n", idle.id());
    drop(idle.stdin.take());
    idle.wait()?;
    for place in ["state", "log"] {
        secret::not_in_files(&daemon.path(place))?;
    }

    say(
        "7. A scripted agent gets a prompt, asks a model, which asks for a tool, and queries the shop: prompt and SQL are joined.",
    );
    let agent = daemon.path("agent.py");
    std::fs::write(&agent, AGENT)?;
    let arguments = ["-B", &agent.display().to_string(), &format!("https://localhost:{}", model.port()), &url];
    let mut agent = daemon.governed("/usr/bin/python3", &arguments)?;
    let mut agent = agent.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut said = String::new();
    BufReader::new(agent.stdout.as_mut().context("no output")?).read_line(&mut said)?;
    println!("{said}");
    ensure!(said.contains("There are 5000."), "the agent got no answer: {}", daemon.log());
    let searched = secret::not_in_process(agent.id())?;
    println!("The model's key is nowhere in the agent: searched {searched} bytes of process {}.\n", agent.id());
    drop(agent.stdin.take());
    ensure!(agent.wait()?.success(), "the agent failed");
    let key = model.seen()?.iter().all(|seen| seen.header("authorization") == Some(&*format!("Bearer {PASSWORD}")));
    ensure!(key, "the model got no key, or the agent's own");
    let replay = daemon.ok(&["replay", &latest(&daemon)?])?;
    println!("{replay}");
    let why = replay.split("why: [").nth(1).context("the prompt does not stand beside the SQL")?;
    ensure!(why.contains("please look up how many orders"), "another prompt");

    say("8. The record: every session, and one of them replayed.");
    println!("{}", daemon.ok(&["sessions"])?);
    let session = hold["session"].as_str().context("a hold has a session")?;
    let replay = daemon.ok(&["replay", session])?;
    println!("{replay}");
    ensure!(replay.contains("UPDATE products") && replay.contains("agreed with sales"), "the replay lacks the change");
    println!("{}", daemon.ok(&["audit", "verify"])?);

    say("9. The doctor: what the host can do, how the daemon is, and every way out, tried from inside a session.");
    let table = daemon.ok(&["doctor", "--workload", "bot"])?;
    println!("{table}");
    // What this host cannot close is named, with what it lacks; nothing that it could close is open.
    let cannot = table.lines().filter(|line| line.starts_with("cannot: ")).count();
    let lacks = table.lines().filter(|line| line.trim_start().starts_with("lacks ")).count();
    ensure!(table.contains(&format!(" closed, 0 open, {cannot} cannot; attempts ")), "something is open");
    ensure!(cannot == lacks && (cannot > 0 || table.contains(", reached 0\n")), "something is not named");

    say("Done: every step was as it should be.");
    if keep {
        println!("Left running. Try, in another terminal (Ctrl-C here ends it):\n");
        let config = daemon.path("portcullis.toml");
        let bin = std::env::var("PORTCULLIS_BIN").unwrap_or_default();
        println!("  {bin} --config {} run --workload bot --user nobody -- psql '{url}'", config.display());
        println!("  {bin} --config {} held --watch", config.display());
        println!("  {bin} --config {} follow", config.display());
        Command::new("sleep").arg("infinity").status()?;
    }
    Ok(())
}

/// The session that was started last.
fn latest(daemon: &Daemon) -> Result<String> {
    let lines = daemon.ok(&["sessions", "--json"])?;
    let sessions = lines.lines().map(serde_json::from_str).collect::<Result<Vec<serde_json::Value>, _>>()?;
    // Ids sort by time.
    let ids = sessions.iter().filter_map(|session| session["session"].as_str());
    Ok(ids.max().context("no session")?.to_owned())
}

/// A hold in full, once it is known what its command would do.
fn shown(daemon: &Daemon, id: &str) -> Result<String> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let text = daemon.ok(&["held", id])?;
        if !text.contains("not known") {
            return Ok(text);
        }
        ensure!(Instant::now() < deadline, "no estimate: {}", daemon.log());
        thread::sleep(Duration::from_millis(50));
    }
}

fn say(text: &str) {
    println!("\x1b[1m{text}\x1b[0m\n");
}
