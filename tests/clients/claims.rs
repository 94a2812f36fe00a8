//! Cgroups that others make: a service manager's, a container runtime's.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use portcullis_tests::{Daemon, Postgres, SHOP_POLICY};

fn policy() -> String {
    SHOP_POLICY.replace("cgroup = \"{slice}/bot/*\"", "cgroup = \"{slice}/unit-*.service\"\nclaim = true")
}

/// A cgroup, as a service manager makes one for a unit. Gone when dropped.
struct Unit(PathBuf);

impl Unit {
    fn make(daemon: &Daemon, name: &str) -> Self {
        let path = daemon.cgroups().remove(0).join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Runs psql in it, as a unit's main process: moved before it starts.
    fn psql(&self, port: u16, sql: &str) -> Output {
        let procs = self.0.join("cgroup.procs");
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$1\" && exec psql -XAt -h 127.0.0.1 -p \"$2\" -U x -d shop -c \"$3\"", "sh"]);
        command.arg(procs).arg(port.to_string()).arg(sql).env("PGSSLMODE", "disable").env("PGCONNECT_TIMEOUT", "5");
        command.stdin(Stdio::null()).output().unwrap()
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Sessions of the daemon by the cgroup they were claimed for.
fn live(daemon: &Daemon) -> Vec<(String, String)> {
    let listed = daemon.ok(&["sessions", "--json"]).unwrap();
    let rows = listed.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let live = rows.filter(|row| row["state"] == "live");
    live.map(|row| (row["command"][0].as_str().unwrap().to_owned(), row["session"].as_str().unwrap().to_owned()))
        .collect()
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn a_unit_that_others_start_is_a_session() {
    let server = Postgres::start().unwrap();
    let mut daemon = Daemon::start(&server, &policy()).unwrap();
    let mail = "SELECT email FROM customers WHERE id = 7";
    let unit = Unit::make(&daemon, "unit-a.service");
    let claimed = |daemon: &Daemon, unit: &Unit| live(daemon).iter().any(|(path, _)| path.ends_with(&name(&unit.0)));
    wait("it is claimed", || claimed(&daemon, &unit));
    let output = unit.psql(server.port, mail);
    assert!(output.status.success() && !said(&output).contains("customer7@"), "{}", said(&output));
    let refused = unit.psql(server.port, "DROP TABLE orders");
    assert!(said(&refused).contains("refused by rule"), "{}", said(&refused));

    // What no policy claims reaches nothing, though it lies below the same parent.
    let stranger = Unit::make(&daemon, "other.service");
    let output = stranger.psql(server.port, "SELECT 1");
    assert!(said(&output).contains("Connection refused"), "{}", said(&output));
    let output = daemon.governed("true", &[]).unwrap().output().unwrap();
    assert!(said(&output).contains("cgroups that others make"), "{}", said(&output));

    // It lives as long as its cgroup, with or without processes, and through a restart of the daemon.
    let before = live(&daemon);
    daemon.kill().unwrap();
    assert!(said(&unit.psql(server.port, "SELECT 1")).contains("Connection refused"));
    daemon.launch().unwrap();
    assert_eq!(live(&daemon), before);
    assert_eq!(said(&unit.psql(server.port, "SELECT 1")).trim(), "1");

    // The unit starts again: another cgroup of the same name, another session.
    let path = unit.0.clone();
    drop(unit);
    let unit = Unit::make(&daemon, &name(&path));
    wait("the new one alone is claimed", || {
        let now = live(&daemon);
        now.len() == 1 && now != before
    });
    assert_eq!(said(&unit.psql(server.port, "SELECT 1")).trim(), "1");

    // Quarantined it is not claimed again, by this daemon or the next.
    let session = live(&daemon).remove(0).1;
    daemon.ok(&["quarantine", &session]).unwrap();
    fs::write(unit.0.join("cgroup.freeze"), "0").unwrap();
    let output = unit.psql(server.port, "SELECT 1");
    assert!(said(&output).contains("Connection refused"), "{}{}", said(&output), daemon.log());
    daemon.kill().unwrap();
    daemon.launch().unwrap();
    thread::sleep(Duration::from_secs(3));
    assert!(said(&unit.psql(server.port, "SELECT 1")).contains("Connection refused"));
    assert!(live(&daemon).is_empty(), "{:?}", live(&daemon));
}

#[test]
fn what_runs_before_its_policy_is_claimed_with_it() {
    let server = Postgres::start().unwrap();
    let daemon = Daemon::start(&server, &SHOP_POLICY.replace("{slice}/bot/*", "{slice}/*")).unwrap();
    let unit = Unit::make(&daemon, "unit-b.service");
    assert!(said(&unit.psql(server.port, "SELECT 1")).contains("Connection refused"));
    let file = daemon.path("policies/bot.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("[workload]\n", "[workload]\nclaim = true\n")).unwrap();
    wait("it is claimed", || !live(&daemon).is_empty());
    assert_eq!(said(&unit.psql(server.port, "SELECT 1")).trim(), "1");
}
