//! What only a whole daemon shows: policies that change under a running session, and ordinary programs in one.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    process::{Output, Stdio},
};

use portcullis::record::EventBody;
use portcullis_tests::{Daemon, Postgres, SHOP_POLICY};

use crate::world::{NOT_JUDGED, Namespace, eventually, kernel_judges_unix, unix_is_judged};

/// The example policy with one more key of the workload.
fn policy(key: &str) -> String {
    SHOP_POLICY.replacen("autonomy =", &format!("{key}\nautonomy ="), 1)
}

fn socket(server: &Postgres) -> String {
    server.socket_dir().join(format!(".s.PGSQL.{}", server.port)).display().to_string()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_database_is_not_reached_by_its_unix_socket_but_where_the_policy_lists_it() {
    let server = Postgres::start().expect("a server");
    let listed = policy(&format!("unix = [{:?}]", socket(&server)));
    let daemon = Daemon::start(&server, &policy("unix = [\"/run/nothing\"]")).expect("a daemon");
    let script = r#"while read host; do psql -X -A -t "host=$host dbname=shop user=postgres" -c 'SELECT 1' 2>&1 | head -1; done"#;
    let mut run = daemon.governed("sh", &["-c", script]).expect("a command");
    run.env("PGPORT", server.port.to_string());
    let mut run = run.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
    let mut input = run.stdin.take().expect("piped");
    let mut lines = BufReader::new(run.stdout.take().expect("piped")).lines();
    let folder = server.socket_dir().display().to_string();
    let mut ask = || {
        writeln!(input, "{folder}").expect("it reads");
        lines.next().expect("a line").expect("text")
    };
    // Without hooks for it, a session can make no such socket at all.
    let words = if unix_is_judged() { "Connection refused" } else { "Address family not supported" };
    let refused = ask();
    assert!(refused.contains(words), "{refused}");
    assert!(!server.log().contains("SELECT 1"), "it reached the server");

    // The same running session gains what a new policy lists, and loses it again.
    let file = daemon.path("policies/bot.toml");
    let before = fs::read_to_string(&file).expect("the policy");
    let key = |text: &str| text.lines().find(|line| line.starts_with("unix =")).expect("the key").to_owned();
    fs::write(&file, before.replace(&key(&before), &key(&listed))).expect("written");
    daemon.ok(&["reload"]).expect("reloaded");
    let answer = ask();
    if unix_is_judged() {
        assert_eq!(answer, "1");
        assert!(server.log().contains("SELECT 1"));
    } else {
        assert!(answer.contains(words), "{answer}");
        assert!(!server.log().contains("SELECT 1"), "it reached the server");
        assert!(text(&daemon.cli(&["status"]).expect("an answer")).contains(NOT_JUDGED));
    }
    fs::write(&file, &before).expect("written");
    daemon.ok(&["reload"]).expect("reloaded");
    let refused = ask();
    assert!(refused.contains(words), "{refused}");
    drop((input, lines));
    assert!(run.wait().expect("it ends").success());
}

#[test]
fn a_session_in_another_network_namespace_is_served_by_a_listener_there() {
    let server = Postgres::start().expect("a server");
    let mut daemon = Daemon::start(&server, SHOP_POLICY).expect("a daemon");
    let other = Namespace::new();
    let status = daemon.status().expect("an answer");
    let address = status["listen"][0].as_str().expect("an address").to_owned();
    let ls = daemon.governed("ls", &["/"]).expect("a command");
    {
        let _taken = other.try_listen(&address).expect("a free port");
        let output = other.inside(&ls).output().expect("it runs");
        let said = text(&output);
        assert!(!output.status.success() && said.contains("in the caller's network namespace"), "{said}");
    }
    assert!(other.inside(&ls).stdout(Stdio::null()).status().expect("it runs").success());

    let database = format!("host=127.0.0.1 port={} dbname=shop user=agent", server.port);
    let script = format!("while read line; do psql -X -A -t '{database}' -c 'SELECT 41 + 1' 2>&1 | head -1; done");
    let run = daemon.governed("sh", &["-c", &script]).expect("a command");
    let mut run = other.inside(&run).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
    let mut input = run.stdin.take().expect("piped");
    let mut lines = BufReader::new(run.stdout.take().expect("piped")).lines();
    let mut ask = || {
        writeln!(input, "again").expect("it reads");
        lines.next().expect("a line").expect("text")
    };
    assert_eq!(ask(), "42", "{}", daemon.log());

    // The next daemon listens there again, although no session begins there.
    let before = daemon.pid().expect("it runs");
    daemon.signal("KILL").expect("killed");
    daemon.recovered(before).expect("it comes back");
    assert!(eventually(|| ask() == "42"), "{}", daemon.log());

    // With the session the listener goes, and the port is free.
    assert!(other.try_listen(&address).is_err(), "the daemon does not listen there");
    drop((input, lines));
    assert!(run.wait().expect("it ends").success());
    assert!(eventually(|| other.try_listen(&address).is_ok()), "the listener stays: {}", daemon.log());
}

#[test]
fn ordinary_programs_run_in_a_session() {
    let server = Postgres::start().expect("a server");
    let daemon = Daemon::start(&server, SHOP_POLICY).expect("a daemon");
    let database = format!("host=127.0.0.1 port={} dbname=shop user=agent", server.port);
    let pairs = "import socket, multiprocessing, subprocess\n\
                 a, b = socket.socketpair(); a.send(b'x'); assert b.recv(1) == b'x'\n\
                 assert multiprocessing.Pool(1).map(abs, [-1]) == [1]\n\
                 print(socket.getaddrinfo('localhost', 80)[0][0] > 0)";
    let child = "const c = require('child_process').fork('/dev/null', [], { stdio: 'inherit' });\
                 c.on('exit', code => require('dns').lookup('localhost', (e, a) => console.log(!e && code === 0)))";
    for (program, arguments, wanted) in [
        ("getent", &["hosts", "localhost"][..], "localhost"),
        ("getent", &["passwd", "root"], "root:"),
        ("psql", &["-X", "-A", "-t", &database, "-c", "SELECT count(*) FROM products"], "\n"),
        ("python3", &["-c", pairs], "True"),
        ("node", &["-e", child], "true"),
    ] {
        let output = daemon.governed(program, arguments).expect("a command").output().expect("it runs");
        let said = text(&output);
        assert!(output.status.success() && said.contains(wanted), "{program} {arguments:?}: {said}");
    }
}

#[test]
fn what_the_kernel_and_the_policy_refuse_is_on_record_with_session_and_process() {
    let server = Postgres::start().expect("a server");
    let daemon = Daemon::start(&server, SHOP_POLICY).expect("a daemon");
    let script = "import os, socket\n\
                  def refused(what):\n    try: what()\n    except OSError: return\n    raise SystemExit('not refused')\n\
                  unlisted = socket.create_connection(('127.0.0.1', 9))\n\
                  assert unlisted.recv(1) == b''\n\
                  refused(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136))\n\
                  refused(lambda: socket.socket().bind(('0.0.0.0', 7777)))\n\
                  refused(lambda: socket.socket(socket.AF_UNIX).connect('/run/docker.sock'))\n\
                  for _ in range(500): refused(lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM, 136))\n\
                  print(os.getpid())";
    let output = daemon.governed("python3", &["-c", script]).expect("a command").output().expect("it runs");
    assert!(output.status.success(), "{}", text(&output));
    let pid: u32 = text(&output).lines().find_map(|line| line.trim().parse().ok()).expect("a pid");
    let nobody = 65534;
    let refusals = || {
        let events = portcullis::record::read::events(daemon.path("state/record")).expect("the record");
        let mut session = None;
        let mut found = Vec::new();
        for recorded in events {
            let event = recorded.expect("an event").event;
            match &event.body {
                EventBody::SessionStart { .. } => session = Some(event.session_id.clone()),
                EventBody::Refused { what, process } => {
                    let ours = Some(&event.session_id) == session.as_ref() && &*event.workload == "bot";
                    found.push((what.clone(), ours && process.pid == pid && process.uid == nobody));
                }
                _ => {}
            }
        }
        found
    };
    let judged = kernel_judges_unix();
    let missing = || {
        let found = refusals();
        let wanted = [
            "127.0.0.1:9: no upstream of the policy has this address",
            "UDP-Lite socket: only TCP sockets are made",
            "bind to 0.0.0.0:7777: nothing is offered to others from a session",
            "unix socket /run/docker.sock: the policy does not list it",
        ];
        // Where the security module judges, the kernel has found before that nobody listens there.
        let mut wanted = wanted.into_iter().filter(|wanted| judged || !wanted.starts_with("unix"));
        wanted.find(|wanted| !found.iter().any(|(what, ours)| what == wanted && *ours))
    };
    assert!(eventually(|| missing().is_none()), "{:?} is not among {:?}", missing(), refusals());
    // A flood is on record in part, with a count of the rest, and in the counters whole.
    assert!(eventually(|| refusals().iter().any(|(what, _)| what.contains("left out"))), "{:?}", refusals());
    assert!(refusals().len() < 100, "{}", refusals().len());
    let status = daemon.cli(&["status", "--json"]).expect("an answer");
    assert_eq!(status.status.success(), unix_is_judged(), "{}", text(&status));
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).expect("JSON");
    let unix = u32::from(judged);
    assert_eq!([&status["refused"]["socket"], &status["refused"]["unix"], &status["refused"]["bind"]], [501, unix, 1]);
    let words = if judged { "by the kernel: bind 1, socket 501, unix 1" } else { "by the kernel: bind 1, socket 501" };
    assert!(text(&daemon.cli(&["status"]).expect("an answer")).contains(words));
}
