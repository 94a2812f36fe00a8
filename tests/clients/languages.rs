//! Drivers of other languages, as agents use them. Each script asserts for itself and ends with `ok`.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use portcullis_tests::{Daemon, Postgres, SHOP_POLICY, Server as _};

use crate::text;

/// Where `cargo xtask setup` put the drivers.
pub(crate) fn tools() -> PathBuf {
    std::env::var_os("PORTCULLIS_TOOLS").expect("PORTCULLIS_TOOLS is not set: run `cargo xtask test`").into()
}

/// A copy in the daemon's folder, which every user can reach, whatever the modes above the original are.
pub(crate) fn copy(daemon: &Daemon, from: &Path, name: &str) -> PathBuf {
    let to = daemon.path(name);
    let output = Command::new("cp").arg("-r").arg(from).arg(&to).output().unwrap();
    assert!(output.status.success(), "{} is missing: {}", from.display(), text(&output));
    to
}

/// Runs a script in a session and expects `ok`.
pub(crate) fn run(daemon: &Daemon, command: &mut Command) {
    let output = command.output().unwrap();
    let said = text(&output);
    assert!(output.status.success() && said.trim_end().ends_with("ok"), "{said}\n{}", daemon.log());
}

/// The rows that the scripts change, as they were.
fn restore(server: &Postgres) {
    server.sql("shop", "DELETE FROM orders WHERE id > 5000; UPDATE orders SET status = 'open'").unwrap();
}

/// Types that a driver knows nothing about before it asks.
const MOODS: &str = "CREATE TYPE mood AS ENUM ('calm', 'cross');
    CREATE TYPE spot AS (x integer, y integer);
    CREATE DOMAIN small AS integer CHECK (VALUE < 10);
    CREATE TABLE moods (id integer PRIMARY KEY, mood mood, spot spot, small small, history mood[]);
    GRANT ALL ON moods TO shop_agent";

/// The shop's policy, and all may be done with the table of moods.
fn policy() -> String {
    let moods = "\n[[rule]]\nname = \"moods change\"\nupstream = \"shop\"\nverbs = [\"write\", \"delete\"]\n\
        targets = [\"public.moods\"]\neffect = \"allow\"\n";
    format!("{SHOP_POLICY}{moods}")
}

fn python(script: &str, source: &str) {
    let server = Postgres::start().unwrap();
    server.sql("shop", MOODS).unwrap();
    let daemon = Daemon::start(&server, &policy()).unwrap();
    let packages = copy(&daemon, &tools().join("python/lib"), "python");
    let site = std::fs::read_dir(packages).unwrap().next().unwrap().unwrap().path().join("site-packages");
    let file = daemon.path(script);
    std::fs::write(&file, source).unwrap();
    copy(&daemon, &server.ca(), "other-ca.pem");
    for tls in ["disable", "verify-full"] {
        let arguments = ["-B", &file.display().to_string(), &server.port.to_string(), tls];
        let mut command = daemon.governed("/usr/bin/python3", &arguments).unwrap();
        run(&daemon, command.env("PYTHONPATH", &site));
        restore(&server);
    }
}

#[test]
fn psycopg() {
    python("psycopg_client.py", include_str!("psycopg_client.py"));
}

#[test]
fn asyncpg() {
    python("asyncpg_client.py", include_str!("asyncpg_client.py"));
}

#[test]
fn node_postgres() {
    let server = Postgres::start().unwrap();
    let daemon = Daemon::start(&server, SHOP_POLICY).unwrap();
    copy(&daemon, &tools().join("node/node_modules"), "node_modules");
    let file = daemon.path("node_client.js");
    std::fs::write(&file, include_str!("node_client.js")).unwrap();
    for tls in ["disable", "verify-full"] {
        let arguments = [&file.display().to_string(), &server.port.to_string(), tls];
        run(&daemon, &mut daemon.governed("node", &arguments).unwrap());
        restore(&server);
    }
}

#[test]
fn tokio_postgres() {
    let server = Postgres::start().unwrap();
    let daemon = Daemon::start(&server, SHOP_POLICY).unwrap();
    let client = copy(&daemon, Path::new(env!("CARGO_BIN_EXE_tokio-client")), "tokio-client");
    let arguments = [&server.port.to_string()[..]];
    run(&daemon, &mut daemon.governed(&client.display().to_string(), &arguments).unwrap());
}
