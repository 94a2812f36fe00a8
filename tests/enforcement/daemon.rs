//! What only a whole daemon shows: policies that change under a running session, and ordinary programs in one.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    process::{Output, Stdio},
};

use portcullis_tests::{Daemon, Postgres, SHOP_POLICY};

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
    let refused = ask();
    assert!(refused.contains("Connection refused"), "{refused}");
    assert!(!server.log().contains("SELECT 1"), "it reached the server");

    // The same running session gains what a new policy lists, and loses it again.
    let file = daemon.path("policies/bot.toml");
    let before = fs::read_to_string(&file).expect("the policy");
    let key = |text: &str| text.lines().find(|line| line.starts_with("unix =")).expect("the key").to_owned();
    fs::write(&file, before.replace(&key(&before), &key(&listed))).expect("written");
    daemon.ok(&["reload"]).expect("reloaded");
    assert_eq!(ask(), "1");
    assert!(server.log().contains("SELECT 1"));
    fs::write(&file, &before).expect("written");
    daemon.ok(&["reload"]).expect("reloaded");
    let refused = ask();
    assert!(refused.contains("Connection refused"), "{refused}");
    drop((input, lines));
    assert!(run.wait().expect("it ends").success());
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
