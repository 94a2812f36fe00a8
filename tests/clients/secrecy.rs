//! No secret in the agent, in the record, in the logs, in a core.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::PermissionsExt,
    process::{Child, Stdio},
};

use portcullis_tests::{Daemon, PASSWORD, Postgres, SHOP_POLICY, secret};

use crate::{governed, text};

/// Every process in the cgroups of the daemon's workloads.
pub fn governed_processes(daemon: &Daemon) -> Vec<u32> {
    let mut all = Vec::new();
    for root in daemon.cgroups() {
        let mut folders = vec![root];
        while let Some(folder) = folders.pop() {
            let Ok(procs) = fs::read_to_string(folder.join("cgroup.procs")) else { continue };
            all.extend(procs.lines().map(|pid| pid.parse::<u32>().unwrap()));
            let children = fs::read_dir(&folder).unwrap().flatten().map(|entry| entry.path());
            folders.extend(children.filter(|path| path.is_dir()));
        }
    }
    all
}

/// Starts a client that answers a line for each line it gets, and has it use its connection once.
fn busy(daemon: &Daemon, program: &str, arguments: &[&str], line: &str) -> Child {
    let mut command = daemon.governed(program, arguments).unwrap();
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    writeln!(child.stdin.as_mut().unwrap(), "{line}").unwrap();
    let mut answer = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut answer).unwrap();
    assert!(answer.contains("1000"), "{answer}{}", daemon.log());
    child
}

#[test]
fn the_password_is_nowhere_but_in_the_daemon() {
    let server = Postgres::start().unwrap();
    let mut daemon = Daemon::start(&server, SHOP_POLICY).unwrap();
    let port = server.port.to_string();
    let url = format!("host=127.0.0.1 port={port} dbname=shop user=agent");
    let query = "SELECT count(*) FROM customers;";
    let mut clients = vec![
        busy(&daemon, "psql", &["-X", "-At", &url], query),
        busy(&daemon, "psql", &["-X", "-At", &format!("{url} sslmode=require")], query),
        // A shell with a client below it: more than one process in the session.
        busy(&daemon, "/bin/sh", &["-c", "psql -X -At \"$0\"; true", &url], query),
    ];
    // Refusals, errors and holds do not carry it either.
    for sql in ["DROP TABLE orders", "SELECT 1/0", "SELECT pg_read_file('/etc/passwd')", "\\password"] {
        let output = governed(&daemon, "psql", &["-X", &url, "-c", sql]);
        assert!(!text(&output).contains(PASSWORD));
    }
    let processes = governed_processes(&daemon);
    assert!(processes.len() >= 4, "{processes:?}");
    for pid in &processes {
        secret::not_in_process(*pid).unwrap();
    }
    // A governed process can read neither the daemon's memory nor its environment nor the credential.
    let steal = format!(
        "for f in /proc/{pid}/mem /proc/{pid}/environ /proc/{pid}/maps {file}; do \
           head -c 1 $f >/dev/null 2>&1 && echo read $f; done; kill -ABRT {pid} 2>/dev/null && echo killed; true",
        pid = daemon.pid().unwrap(),
        file = daemon.path("credential").display()
    );
    assert_eq!(text(&governed(&daemon, "/bin/sh", &["-c", &steal])), "");
    for client in &mut clients {
        drop(client.stdin.take());
        client.wait().unwrap();
    }
    // A crash leaves no core, whatever limit the daemon was started with.
    let before = daemon.pid().unwrap();
    daemon.signal("ABRT").unwrap();
    daemon.recovered(before).unwrap();
    let log = daemon.log();
    assert!(log.contains("signal 6") && !log.contains("with a core"), "{log}");
    let credential = daemon.path("credential");
    fs::remove_file(credential).unwrap();
    let searched = secret::not_in_files(&daemon.path("")).unwrap();
    assert!(searched > 10_000, "only {searched} bytes of record and log");
}

#[test]
fn what_the_daemon_gave_up_nobody_gets_through_it() {
    let server = Postgres::start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    // The program runs as the daemon's user.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let (script, log) = (folder.path().join("fetch"), folder.path().join("log"));
    let tries = format!(
        "#!/bin/sh\nexec 2>>{log}\nfor t in 'unshare -n true' 'mount -t tmpfs none /mnt' 'umount /proc' 'dmesg -C' \
         'nsenter -t 1 -m true' 'strace true' 'python3 -c \"import socket; socket.socket(40)\"'; do \
         sh -c \"$t\" >/dev/null && echo \"got: $t\" >&2; done; echo done >&2; echo {PASSWORD}\n",
        log = log.display()
    );
    fs::write(&script, tries).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let exec = format!("source = \"exec\", user = \"shop_agent\", argv = [{:?}]", script.display().to_string());
    let policy = SHOP_POLICY.replace("source = \"file\", user = \"shop_agent\", path = \"{password}\"", &exec);
    assert!(policy.contains("exec"));
    let daemon = Daemon::start(&server, &policy).unwrap();
    let url = format!("host=127.0.0.1 port={} dbname=shop user=agent", server.port);
    let output = governed(&daemon, "psql", &["-X", "-At", &url, "-c", "SELECT count(*) FROM customers"]);
    assert_eq!(text(&output), "1000\n", "{}", daemon.log());
    let said = fs::read_to_string(&log).unwrap();
    assert!(said.contains("done") && !said.contains("got:"), "{said}");
    for thread in fs::read_dir(format!("/proc/{}/task", daemon.pid().unwrap())).unwrap() {
        let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        assert!(status.contains("Seccomp:\t2") && status.contains("NoNewPrivs:\t1"), "{status}");
    }
}
