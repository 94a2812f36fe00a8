//! The Debian package on a system that boots: installed, started, killed, upgraded, removed and purged. Truth is what
//! came to a listener that only somebody past the enforcer reaches.
//!
//! It changes the system it runs on, so it runs in a virtual machine alone: `cargo xtask test package`, which says by
//! `PORTCULLIS_PACKAGES` which two versions of the package to take. The tests share the one system: one at a time.

mod installed;
mod scope;
mod session;
mod unit;

use std::{collections::BTreeSet, fs, process::Command};

use installed::{Installed, eventually, files, run, text};
use session::Session;
use unit::{MayEnter, run_unit};

#[test]
fn an_installed_service_is_active_and_serves() {
    let host = Installed::new();
    for unit in ["portcullis.socket", "portcullis.service", "portcullis.slice"] {
        assert_eq!(text(&run("systemctl", &["is-active", unit])), "active\n", "{unit}");
    }
    for unit in ["portcullis.socket", "portcullis.service"] {
        assert_eq!(text(&run("systemctl", &["is-enabled", unit])), "enabled\n", "{unit}");
    }
    assert_eq!(text(&run("dpkg", &["--verify", "portcullis"])), "");
    let security = text(&run("systemd-analyze", &["security", "--no-pager", "portcullis.service"]));
    let score =
        security.lines().last().and_then(|line| line.split(": ").nth(1)?.split(' ').next()?.parse::<f32>().ok());
    assert!(score.is_some_and(|score| score <= 3.0), "{security}");
    let status = text(&run("portcullis", &["status"]));
    assert!(status.contains("governs     agents.slice, portcullis.slice"), "{status}");

    let mut session = Session::start(&host);
    assert_eq!(session.psql("SELECT count(*) > 0 FROM products"), "t");
    assert!(session.psql("SELECT * FROM payroll").starts_with("ERROR"), "the policy is in force");
    session.try_direct();
    session.end();
    assert_eq!(host.reached(), 0);
    // Not by a mistake of the test's: nothing else keeps anybody from it.
    assert!(std::net::TcpStream::connect(host.direct()).is_ok());
    assert_eq!(host.reached(), 1);
}

#[test]
fn a_unit_with_the_drop_in_is_governed() {
    let host = Installed::new();
    let program = format!(
        "import socket, subprocess\n\
         try: socket.create_connection(('127.0.0.1', {})).recv(1); print('answered')\n\
         except OSError as e: print(e)\n\
         print(subprocess.run(['psql', '-XAt', 'host=127.0.0.1 port={} dbname=shop user=x', '-c', 'SELECT 42'],\n\
         \x20                    capture_output=True, text=True))\n\
         names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); names.settimeout(20)\n\
         names.sendto(b'\\0\\7\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\1x\\0\\0\\1\\0\\1', ('192.0.2.53', 53))\n\
         print('named', names.recv(512)[3] & 15)",
        host.direct().port(),
        host.server().port
    );
    let ran = run_unit(&program, "");
    assert!(ran.is_well && ran.said.contains("stdout='42\\n'"), "{ran:?}");
    // By the socket that systemd holds: this name does not exist.
    assert!(ran.said.contains("named 3"), "{ran:?}");
    assert_eq!(host.reached(), 0, "{ran:?}");
}

#[test]
fn a_unit_with_a_network_of_its_own_is_refused_and_named_where_the_daemon_may_not_enter() {
    let host = Installed::new();
    let program = format!(
        "import os, subprocess\n\
         print(sorted(os.listdir('/sys/class/net')))\n\
         print(subprocess.run(['psql', '-XAt', 'host=127.0.0.1 port={} dbname=shop user=x', '-c', 'SELECT 42'],\n\
         \x20                    capture_output=True, text=True))",
        host.server().port
    );
    let ran = run_unit(&program, "PrivateNetwork=yes");
    assert!(ran.said.contains("['lo']") && ran.said.contains("Connection refused"), "{ran:?}");
    let status = text(&run("portcullis", &["status"]));
    assert!(status.contains("namespace "), "{status}");
    let doctor = text(&run("portcullis", &["doctor", "--workload", "bot", "--json"]));
    assert!(doctor.contains("network namespaces") && doctor.contains("namespaces.conf"), "{doctor}");
    assert_eq!(host.reached(), 0, "{ran:?}");
}

#[test]
fn a_container_of_podman_is_a_session() {
    let host = Installed::new();
    let policy = fs::read_to_string("/etc/portcullis/policies/indexer.toml").expect("a policy");
    let policy = policy
        .replace("name = \"indexer\"", "name = \"container\"")
        .replace("agents.slice/indexer.service", "agents.slice/libpod-*.scope/container");
    fs::write("/etc/portcullis/policies/container.toml", policy).expect("a policy");
    host.reload("bot, container, indexer");
    let _may_enter = MayEnter::new();
    let image = "/var/tmp/portcullis-image";
    let make = format!(
        "mkdir -p {image}/bin; cp /bin/busybox {image}/bin; for name in sh nc printf sleep; do ln -sf busybox {image}/bin/$name; \
         done; tar -C {image} -c . | podman import - localhost/agent:local; rm -r {image}"
    );
    let made = run("sh", &["-e", "-c", &make]);
    assert!(made.status.success(), "{}", text(&made));
    // Asks for TLS as PostgreSQL's clients do, until there is a listener: S is yes. Then says something elsewhere.
    let script = format!(
        "for try in $(busybox seq 60); do answer=$(printf '\\0\\0\\0\\10\\4\\322\\26\\57' | nc -w 9 127.0.0.1 {} 2>&1); \
         [ \"$answer\" = S ] && break; sleep 1; done; echo \"answer $answer\"; echo hello | nc -w 3 127.0.0.1 {}; echo end",
        host.server().port,
        host.direct().port()
    );
    for network in ["none", "host"] {
        let mut podman = Command::new("podman");
        podman.args(["run", "--rm", &format!("--network={network}"), "--cgroup-parent=agents.slice", "--cap-drop=ALL"]);
        podman.args(["--security-opt=no-new-privileges", "localhost/agent:local", "/bin/sh", "-c", &script]);
        let said = text(&podman.output().expect("podman"));
        assert!(said.contains("answer S\n") && said.contains("end\n"), "{network}: {said}");
        assert_eq!(host.reached(), 0, "{network}: {said}");
    }
    let sessions = text(&run("portcullis", &["sessions", "--json"]));
    assert_eq!(sessions.matches("\"workload\":\"container\"").count(), 2, "{sessions}");
}

#[test]
fn a_killed_or_hung_daemon_refuses_and_recovers() {
    let host = Installed::new();
    let mut session = Session::start(&host);
    let hammer = Session::hammer(&host);
    for signal in ["KILL", "STOP"] {
        let before = host.pid();
        assert!(eventually(|| hammer.counts().served > 0), "served before");
        let counts = hammer.counts();
        assert!(run("kill", &[&format!("-{signal}"), &before]).status.success());
        if signal == "STOP" {
            assert!(eventually(|| hammer.counts().refused > counts.refused), "a hung daemon's clients are refused");
        }
        assert!(eventually(|| host.pid() != before && host.is_active()), "systemd starts it again after {signal}");
        assert_eq!(session.psql("SELECT 7"), "7", "the session goes on after {signal}");
        let counts = hammer.counts();
        assert!(eventually(|| hammer.counts().served > counts.served), "served after {signal}");
    }
    println!("{:?}", hammer.counts());
    assert_eq!(host.reached(), 0, "reached directly");
}

#[test]
fn an_upgrade_leaves_no_moment_without_enforcement() {
    let host = Installed::new();
    let mut session = Session::start(&host);
    assert_eq!(session.psql("SELECT 1"), "1");
    let hammer = Session::hammer(&host);
    assert!(eventually(|| hammer.counts().served > 0));
    let since = |unit: &str| text(&run("systemctl", &["show", "--property=ActiveEnterTimestampMonotonic", unit]));
    let links = || -> BTreeSet<String> {
        files("/sys/fs/bpf/portcullis_run_portcullis/links").into_iter().map(|file| format!("{file:?}")).collect()
    };
    let (pid, socket, pinned) = (host.pid(), since("portcullis.socket"), links());
    assert!(pinned.len() > 20, "{pinned:?}");
    host.upgrade();
    assert!(eventually(|| host.is_active() && host.pid() != pid), "the new daemon runs");
    assert_eq!(since("portcullis.socket"), socket, "the socket was never closed");
    assert_eq!(links(), pinned, "the links are the same");
    assert_eq!(session.psql("SELECT 2"), "2", "the same session");
    let counts = hammer.counts();
    assert!(eventually(|| hammer.counts().served > counts.served), "served after");
    println!("{:?}", hammer.counts());
    assert_eq!(host.reached(), 0, "reached directly");
}

#[test]
fn a_removal_is_refused_while_governed_processes_run() {
    let host = Installed::new();
    let mut session = Session::start(&host);
    let hammer = Session::hammer(&host);
    let output = run("dpkg", &["--remove", "portcullis"]);
    assert!(!output.status.success() && text(&output).contains("governed processes run in"), "{}", text(&output));
    assert!(eventually(|| host.is_active()), "the daemon is started again");
    assert_eq!(session.psql("SELECT 3"), "3");
    assert_eq!(host.reached(), 0, "reached directly");
    drop(hammer);
    session.end();
    let output = run("dpkg", &["--remove", "portcullis"]);
    assert!(output.status.success(), "{}", text(&output));
    for kept in ["/etc/portcullis/policies/bot.toml", "/var/lib/portcullis/record"] {
        assert!(fs::exists(kept).expect("it can be told"), "{kept} is kept");
    }
    assert!(!fs::exists("/sys/fs/bpf/portcullis_run_portcullis").expect("it can be told"));
}

#[test]
fn a_purge_leaves_nothing() {
    let everything = || {
        let mut all: BTreeSet<String> = ["/etc", "/usr", "/var/lib", "/run", "/sys/fs/bpf", "/sys/fs/cgroup"]
            .into_iter()
            .flat_map(files)
            .map(|file| file.path)
            .collect();
        // What dpkg, systemd and the database keep of themselves comes and goes.
        let theirs =
            ["/var/lib/dpkg/", "/run/systemd/", "/run/udev/", "/run/log/", "/var/lib/systemd/", "/run/credentials"];
        all.retain(|path| path.contains("portcullis") || !theirs.iter().any(|of| path.starts_with(of)));
        all.retain(|path| {
            !path.starts_with("/sys/fs/cgroup/") || path.contains("portcullis") || path.contains("agents")
        });
        all
    };
    let users = || (fs::read("/etc/passwd").expect("users"), fs::read("/etc/group").expect("groups"));
    let units = || text(&run("systemctl", &["list-unit-files", "--no-pager", "--no-legend", "*portcullis*"]));
    // Once before, so that what others make at the first installation is there.
    drop(Installed::new());
    let (before, accounts) = (everything(), users());
    assert_eq!(units(), "");
    let host = Installed::new();
    let mut session = Session::start(&host);
    assert_eq!(session.psql("SELECT 4"), "4");
    session.end();
    let server = host.purge();
    let left: Vec<String> = everything().difference(&before).cloned().collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!((users(), units()), (accounts, String::new()));
    // Nor is anything enforced: a process below what was governed goes where it likes.
    fs::create_dir_all("/sys/fs/cgroup/portcullis.slice/bot/x").expect("a cgroup");
    let script = format!(
        "echo $$ > /sys/fs/cgroup/portcullis.slice/bot/x/cgroup.procs; exec psql -XAt -h 127.0.0.1 -p {} -U x -d shop",
        server.port
    );
    let said = text(&Command::new("sh").args(["-c", &script]).output().expect("a shell"));
    for folder in ["bot/x", "bot", ""] {
        fs::remove_dir(format!("/sys/fs/cgroup/portcullis.slice/{folder}")).expect("a cgroup");
    }
    assert!(said.contains("password"), "the server itself answers: {said}");
}
