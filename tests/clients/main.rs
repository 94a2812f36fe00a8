//! Real clients through the real redirect, as root.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod claims;
mod compiled;
mod languages;
mod llm;
mod secrecy;
mod streams;
mod waiting;
mod web;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader, Write},
    os::unix::fs::PermissionsExt,
    process::{Command, Output, Stdio},
    thread,
};

use portcullis::record::{EventBody, read, verify};
use portcullis_tests::{Daemon, Postgres, SHOP_POLICY};

/// All of the shop and of pgbench is allowed.
fn open_policy() -> String {
    let allow = "\n[[rule]]\nname = \"all of public\"\nupstream = \"shop\"\n\
        verbs = [\"read\", \"write\", \"delete\", \"schema\"]\ntargets = [\"**\"]\neffect = \"allow\"\n";
    let base = SHOP_POLICY.split("[[rule]]").next().unwrap();
    let masks = SHOP_POLICY.split_once("[[mask]]").unwrap().1;
    format!("{base}{allow}\n[[mask]]{masks}")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn governed(daemon: &Daemon, program: &str, arguments: &[&str]) -> Output {
    daemon.governed(program, arguments).unwrap().output().unwrap()
}

#[test]
fn pgbench_runs_in_every_mode_and_every_statement_is_on_record() {
    let server = Postgres::start().unwrap();
    let port = server.port.to_string();
    let socket = server.socket_dir().display().to_string();
    let mut init = Command::new("pgbench");
    init.args(["-i", "-q", "-h", &socket, "-p", &port, "-U", "postgres", "shop"]);
    assert!(init.output().unwrap().status.success());
    server.sql("shop", "GRANT ALL ON ALL TABLES IN SCHEMA public TO shop_agent").unwrap();
    let daemon = Daemon::start(&server, &open_policy()).unwrap();
    for mode in ["simple", "extended", "prepared"] {
        for script in ["tpcb-like", "select-only"] {
            let arguments = [
                "-n",
                "-M",
                mode,
                "-b",
                script,
                "-c",
                "4",
                "-t",
                "50",
                "-h",
                "127.0.0.1",
                "-p",
                &port,
                "-U",
                "x",
                "shop",
            ];
            let output = governed(&daemon, "pgbench", &arguments);
            let text = text(&output);
            assert!(output.status.success() && text.contains("number of failed transactions: 0"), "{mode}: {text}");
        }
    }
    let arguments =
        ["-n", "-M", "prepared", "-c", "16", "-j", "2", "-T", "20", "-h", "127.0.0.1", "-p", &port, "-U", "x"];
    // A line for each transaction: the counts that pgbench prints are added up by threads without a lock.
    let log = daemon.path("pgbench");
    std::fs::create_dir(&log).unwrap();
    std::fs::set_permissions(&log, std::fs::Permissions::from_mode(0o777)).unwrap();
    let prefix = format!("--log-prefix={}/log", log.display());
    let arguments = [&arguments[..], &["-b", "tpcb-like@1", "-b", "select-only@9", "--log", &prefix, "shop"]].concat();
    let output = governed(&daemon, "pgbench", &arguments);
    let text = text(&output);
    assert!(output.status.success() && text.contains("number of failed transactions: 0"), "{text}");
    let mut per_script = [0; 2];
    for file in std::fs::read_dir(&log).unwrap() {
        for line in std::fs::read_to_string(file.unwrap().path()).unwrap().lines() {
            // client, transaction, latency, script, time
            per_script[line.split(' ').nth(3).unwrap().parse::<usize>().unwrap()] += 1;
        }
    }
    let [tpcb, select] = per_script;
    assert!(text.contains(&format!("actually processed: {}", tpcb + select)), "{tpcb} and {select}: {text}");
    let mut commands: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for recorded in read::events(daemon.path("state/record")).unwrap() {
        let event = recorded.unwrap().event;
        let counts = commands.entry(event.session_id.to_string()).or_default();
        match &event.body {
            EventBody::Command { command, .. } if !command.contains("count(") => counts.0 += 1,
            EventBody::Result { .. } => counts.1 += 1,
            _ => {}
        }
    }
    let largest = commands.values().map(|c| c.0).max().unwrap();
    assert_eq!(largest, tpcb * 7 + select, "recorded against sent: {text}");
}

#[test]
fn pg_dump_and_pg_restore_carry_the_masked_shop() {
    let server = Postgres::start().unwrap();
    server.sql("shop", "DROP TABLE payroll").unwrap();
    server.sql("postgres", "CREATE DATABASE copy OWNER shop_agent").unwrap();
    let daemon = Daemon::start(&server, &open_policy()).unwrap();
    let port = server.port.to_string();
    let dump = std::env::temp_dir().join(format!("portcullis-dump-{}", server.port));
    let file = dump.display().to_string();
    let connection = ["-h", "127.0.0.1", "-p", &port, "-U", "x"];
    let output = governed(
        &daemon,
        "pg_dump",
        &[&connection[..], &["-Fc", "--no-owner", "--no-acl", "-f", &file, "shop"]].concat(),
    );
    assert!(output.status.success(), "pg_dump: {}\n{}", text(&output), daemon.log());
    let restore = [&connection[..], &["--no-owner", "--no-acl", "-d", "copy", &file]].concat();
    let output = governed(&daemon, "pg_restore", &restore);
    std::fs::remove_file(&dump).unwrap();
    assert!(output.status.success(), "pg_restore: {}\n{}", text(&output), daemon.log());
    assert_eq!(server.sql("copy", "SELECT count(*) FROM orders").unwrap(), "5000");
    assert_eq!(server.sql("copy", "SELECT count(*) FROM customers WHERE email LIKE '%example%'").unwrap(), "0");
}

#[test]
fn what_was_acknowledged_before_a_kill_is_on_record() {
    let server = Postgres::start().unwrap();
    let mut daemon = Daemon::start(&server, SHOP_POLICY).unwrap();
    let url = format!("host=127.0.0.1 port={} dbname=shop user=agent", server.port);
    let mut psql = daemon.governed("psql", &["-X", "-At", "-q", &url]).unwrap();
    let mut psql = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut stdin = psql.stdin.take().unwrap();
    let insert = |id: u64| format!("INSERT INTO orders VALUES ({id}, 1, 1, 1) RETURNING id;");
    let writer = thread::spawn(move || {
        for id in 10_000.. {
            // Ends when psql has gone.
            if writeln!(stdin, "{}", insert(id)).is_err() {
                break;
            }
        }
    });
    let mut acknowledged = Vec::new();
    for line in BufReader::new(psql.stdout.take().unwrap()).lines() {
        acknowledged.push(line.unwrap().parse::<u64>().unwrap());
        if acknowledged.len() == 500 {
            daemon.kill().unwrap();
        }
    }
    psql.wait().unwrap();
    writer.join().unwrap();
    assert!(acknowledged.len() >= 500, "{}", acknowledged.len());
    daemon.launch().unwrap();
    let report = verify(&daemon.path("state/record")).unwrap();
    assert!(report.problem.is_none(), "{report:?}");
    let recorded: BTreeSet<String> = read::events(daemon.path("state/record"))
        .unwrap()
        .filter_map(|recorded| match &recorded.unwrap().event.body {
            EventBody::Command { command, .. } => Some(command.to_string()),
            _ => None,
        })
        .collect();
    for id in &acknowledged {
        assert!(recorded.contains(&insert(*id)), "{id} was acknowledged and is not on record");
    }
    // And nothing ran that is not on record.
    for id in server.sql("shop", "SELECT id FROM orders WHERE id >= 10000").unwrap().lines() {
        assert!(recorded.contains(&insert(id.parse().unwrap())), "{id} ran and is not on record");
    }
}

/// Where the daemon listens, as it says itself.
fn listen(daemon: &Daemon) -> Vec<String> {
    // `status` fails where something is amiss on this host; what it prints counts.
    let output = daemon.cli(&["status", "--json"]).unwrap();
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    status["listen"].as_array().unwrap().iter().map(|a| a.as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_listener_outlives_the_daemon() {
    let server = Postgres::start().unwrap();
    let mut daemon = Daemon::start(&server, SHOP_POLICY).unwrap();
    let url = format!("host=127.0.0.1 port={} dbname=shop user=agent", server.port);
    let query = ["-X", "-At", &url, "-c", "SELECT count(*) FROM orders"];
    let addresses = listen(&daemon);
    assert_eq!(addresses.len(), 2, "{addresses:?}");
    for round in 0..3 {
        let before = daemon.pid().unwrap();
        daemon.signal("KILL").unwrap();
        for address in &addresses {
            let thief = std::net::TcpListener::bind(address).unwrap_err();
            assert_eq!(thief.kind(), std::io::ErrorKind::AddrInUse, "round {round}");
        }
        daemon.recovered(before).unwrap();
        let output = governed(&daemon, "psql", &query);
        assert_eq!(text(&output), "5000\n", "round {round}: {}", daemon.log());
        assert_eq!(listen(&daemon), addresses);
    }
    assert!(verify(&daemon.path("state/record")).unwrap().problem.is_none());
}

#[test]
fn ordinary_work_goes_on_in_a_session() {
    let server = Postgres::start().unwrap();
    let daemon = Daemon::start(&server, SHOP_POLICY).unwrap();
    let script = "set -e; cd $(mktemp -d); mkdir a b; echo one > a/f; mv a/f b/; ln b/f a/g; mv b c; cat a/g c/f
        sleep 60 & kill $!; wait $! || true
        python3 -c 'import socket,subprocess; a, b = socket.socketpair(); a.send(b\"two\"); print(b.recv(3).decode())
subprocess.run([\"true\"], check=True)'
        rm -r a c; pwd | xargs rmdir; echo done";
    let output = governed(&daemon, "/bin/sh", &["-c", script]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "one\none\ntwo\ndone\n", "{}", text(&output));
}

#[test]
fn what_is_pinned_goes_only_by_uninstall() {
    let server = Postgres::start().unwrap();
    let mut daemon = Daemon::start(&server, SHOP_POLICY).unwrap();
    let mut sleeper = daemon.governed("sleep", &["60"]).unwrap().spawn().unwrap();
    let command = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    while !secrecy::governed_processes(&daemon).iter().any(|pid| command(pid) == "sleep\n") {
        thread::sleep(std::time::Duration::from_millis(20));
    }
    let refused = |daemon: &Daemon, why: &str| {
        let output = daemon.cli(&["uninstall"]).unwrap();
        assert!(!output.status.success() && text(&output).contains(why), "{}", text(&output));
    };
    refused(&daemon, "the daemon runs");
    daemon.kill().unwrap();
    refused(&daemon, "1 governed processes run in");
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    let said = daemon.ok(&["uninstall"]).unwrap();
    assert!(said.contains("no longer governed") && said.contains(daemon.slice()), "{said}");
    assert!(!daemon.path("run/bpf").exists());
    // Again: nothing is there, and that is well.
    daemon.ok(&["uninstall"]).unwrap();
    daemon.launch().unwrap();
}

/// What a service manager does: makes the sockets in a cgroup of its own, and hands them over as sd_listen_fds(3) says.
const ACTIVATE: &str = r"
import os, socket, sys
root = next(r for r in ('/sys/fs/cgroup/unified', '/sys/fs/cgroup') if os.path.exists(r + '/cgroup.procs'))
def enter(name):
    os.makedirs(root + name, exist_ok=True)
    open(root + name + '/cgroup.procs', 'w').write(str(os.getpid()))
enter(sys.argv[1] + '/socket')
made = []
for family, host in ((socket.AF_INET, '127.0.0.1'), (socket.AF_INET6, '::1')):
    s = socket.socket(family); s.bind((host, 0)); s.listen(64); made.append(os.dup2(s.fileno(), 30 + len(made)))
enter(sys.argv[1] + '/service')
for i, fd in enumerate(made): os.dup2(fd, 3 + i, inheritable=True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(made)))
os.execv(sys.argv[2], sys.argv[2:])
";

#[test]
fn sockets_of_a_service_manager_are_taken_over() {
    let server = Postgres::start().unwrap();
    let mut daemon = Daemon::start(&server, SHOP_POLICY).unwrap();
    daemon.kill().unwrap();
    // Its name is that of a cgroup which is taken away with the daemon.
    let cgroup = format!("/{}-daemon", daemon.slice());
    daemon.launch_by(&["/usr/bin/python3", "-c", ACTIVATE, &cgroup]).unwrap();
    let url = format!("host=127.0.0.1 port={} dbname=shop user=agent", server.port);
    let output = governed(&daemon, "psql", &["-X", "-At", &url, "-c", "SELECT count(*) FROM orders"]);
    assert_eq!(text(&output), "5000\n", "{}", daemon.log());
}

#[test]
fn a_daemon_that_hangs_is_refused_until_it_goes_on() {
    let server = Postgres::start().unwrap();
    let daemon = Daemon::start(&server, SHOP_POLICY).unwrap();
    let port = server.port.to_string();
    let script = "import socket,sys\nfor _ in sys.stdin:\n  try:\n    \
        s=socket.create_connection(('127.0.0.1',int(sys.argv[1])),5); s.close()\n    \
        print('open', flush=True)\n  except ConnectionRefusedError: print('refused', flush=True)\n";
    let mut child = daemon.governed("/usr/bin/python3", &["-c", script, &port]).unwrap();
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut until = |wanted: &str| {
        for _ in 0..1000 {
            stdin.write_all(b"\n").unwrap();
            if lines.next().unwrap().unwrap() == wanted {
                return;
            }
            thread::sleep(std::time::Duration::from_millis(20));
        }
        panic!("never {wanted}");
    };
    until("open");
    daemon.signal("STOP").unwrap();
    until("refused");
    daemon.signal("CONT").unwrap();
    until("open");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn with_the_daemon_killed_no_road_is_open_and_the_record_is_whole() {
    let server = Postgres::start().unwrap();
    let mut daemon = Daemon::start(&server, SHOP_POLICY).unwrap();
    let port = server.port.to_string();
    let script = "import socket,sys\nfor _ in sys.stdin:\n  try:\n    \
        s=socket.create_connection(('127.0.0.1',int(sys.argv[1])),5); s.sendall(bytes([0,0,0,8,4,210,22,47]))\n    \
        print('answer', s.recv(1), flush=True)\n  except OSError as e: print('refused', e, flush=True)\n";
    let mut command = daemon.governed("/usr/bin/python3", &["-c", script, &port]).unwrap();
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    stdin.write_all(b"\n").unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "answer b'S'", "{}", daemon.log());
    daemon.kill().unwrap();
    for _ in 0..3 {
        stdin.write_all(b"\n").unwrap();
        let line = lines.next().unwrap().unwrap();
        assert!(line.starts_with("refused"), "a road is open: {line}");
    }
    daemon.launch().unwrap();
    let report = verify(&daemon.path("state/record")).unwrap();
    assert!(report.problem.is_none(), "{report:?}");
    drop(stdin);
    child.wait().unwrap();
    let output =
        governed(&daemon, "psql", &["-X", "-At", "-c", "SELECT 1", &format!("host=127.0.0.1 port={port} dbname=shop")]);
    assert!(text(&output).contains('1'), "{}", text(&output));
}
