//! Commands that wait for a reviewer, over the real redirect.

use std::{
    io::Read as _,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use portcullis::record::{EventBody, read};
use portcullis_tests::{Daemon, Postgres, SHOP_POLICY};

use crate::text;

const UPDATE: &str = "UPDATE products SET price = 9.99 WHERE id = 1";

/// How long the hold waits: `$PORTCULLIS_HOLD_SECONDS`, else ten seconds.
fn patience() -> Duration {
    let seconds = std::env::var("PORTCULLIS_HOLD_SECONDS").ok().and_then(|s| s.parse().ok());
    Duration::from_secs(seconds.unwrap_or(10))
}

/// Hashes and effects of the commands on record with this text.
fn recorded(daemon: &Daemon, text: &str) -> Vec<(String, String)> {
    let events = read::events(daemon.path("state/record")).unwrap();
    events
        .filter_map(|recorded| match &recorded.unwrap().event.body {
            EventBody::Command { command, hash, decision, .. } if &**command == text => {
                Some((hash.clone(), decision.effect.to_string()))
            }
            _ => None,
        })
        .collect()
}

#[test]
fn psql_waits_untouched_and_what_was_approved_is_what_runs() {
    let server = Postgres::start().unwrap();
    let daemon = Daemon::start(&server, SHOP_POLICY).unwrap();
    let url = format!("host=127.0.0.1 port={} dbname=shop user=agent", server.port);
    let mut psql = daemon.governed("psql", &["-X", &url, "-c", UPDATE]).unwrap();
    let mut psql = psql.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let hold = daemon.held().unwrap();
    let until = Instant::now() + patience();
    while Instant::now() < until {
        thread::sleep(Duration::from_secs(1));
        assert!(psql.try_wait().unwrap().is_none(), "psql did not wait");
        assert_eq!(server.sql("shop", "SELECT price FROM products WHERE id = 1").unwrap(), "1.50");
    }
    let waiting = daemon.held().unwrap();
    assert_eq!((&waiting["id"], &waiting["hash"]), (&hold["id"], &hold["hash"]));
    daemon.ok(&["approve", hold["id"].as_str().unwrap()]).unwrap();
    let status = psql.wait().unwrap();
    let (mut out, mut err) = (String::new(), String::new());
    psql.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    psql.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert!(status.success() && out.contains("UPDATE 1"), "{out}{err}");
    assert!(err.contains("held for approval"), "{err}");
    assert_eq!(server.sql("shop", "SELECT price FROM products WHERE id = 1").unwrap(), "9.99");
    // The hash of the hold is that of the frame that psql sent, and of what is on record.
    let mut frame = vec![b'Q'];
    frame.extend_from_slice(&u32::try_from(UPDATE.len() + 5).unwrap().to_be_bytes());
    frame.extend_from_slice(UPDATE.as_bytes());
    frame.push(0);
    let hash = blake3::hash(&frame).to_hex().to_string();
    assert_eq!(hold["hash"], hash);
    assert_eq!(recorded(&daemon, UPDATE), [(hash, "hold".to_owned())]);
    assert_eq!(server.log().matches(&format!("statement: {UPDATE}")).count(), 1, "it ran once, as it was sent");
}

#[test]
fn a_reset_in_mid_hold_withdraws_it_and_nobody_else_notices() {
    let server = Postgres::start().unwrap();
    let daemon = Daemon::start(&server, SHOP_POLICY).unwrap();
    let port = server.port.to_string();
    // Closes with a reset: linger of zero seconds.
    let script = "import socket,struct,sys,time\n\
        s=socket.create_connection(('127.0.0.1',int(sys.argv[1])))\n\
        b=struct.pack('!i',196608)+b'user\\0x\\0database\\0shop\\0\\0'\n\
        s.sendall(struct.pack('!i',len(b)+4)+b)\n\
        seen=b''\n\
        while b'Z\\0\\0\\0\\x05I' not in seen: seen+=s.recv(65536)\n\
        q=sys.argv[2].encode()+b'\\0'\n\
        s.sendall(b'Q'+struct.pack('!i',len(q)+4)+q)\n\
        while b'held for approval' not in seen: seen+=s.recv(65536)\n\
        print('waiting',flush=True)\n\
        sys.stdin.read()\n\
        s.setsockopt(socket.SOL_SOCKET,socket.SO_LINGER,struct.pack('ii',1,0))\n\
        s.close()\n";
    let url = format!("host=127.0.0.1 port={port} dbname=shop user=agent");
    let mut bystander = daemon.governed("psql", &["-X", "-At", &url]).unwrap();
    let mut bystander = bystander.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut command = daemon.governed("/usr/bin/python3", &["-c", script, &port, UPDATE]).unwrap();
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let hold = daemon.held().unwrap();
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    let id = hold["id"].as_str().unwrap();
    let gone = || {
        let listed = daemon.ok(&["held", "--json"]).unwrap();
        listed.lines().any(|line| line.contains(id) && line.contains("\"withdrawn\""))
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while !gone() {
        assert!(Instant::now() < deadline, "not withdrawn: {}", daemon.log());
        thread::sleep(Duration::from_millis(50));
    }
    let effects: Vec<String> = recorded(&daemon, UPDATE).into_iter().map(|(_, effect)| effect).collect();
    assert_eq!(effects, ["deny"]);
    std::io::Write::write_all(&mut bystander.stdin.take().unwrap(), b"SELECT price FROM products WHERE id = 1;\n")
        .unwrap();
    let output = bystander.wait_with_output().unwrap();
    assert_eq!(text(&output).trim(), "1.50");
}
