//! Sessions as transient scopes of the systemd that booted the system.

use std::{fs, path::PathBuf};

use crate::{
    installed::{Installed, eventually, run, text},
    session::Session,
};

/// Below the slice that the package brings, so that systemd makes it when the first scope is asked for.
const SLICE: &str = "portcullis.slice/portcullis-scoped.slice";

/// Gives the host workloads whose sessions are scopes: `scoped`, and `brief`, which is killed after some seconds.
fn add_workloads(host: &Installed) {
    let policy = fs::read_to_string("/etc/portcullis/policies/bot.toml").expect("a policy");
    let of = |name: &str, slice: &str, limits: &str| {
        let policy = policy
            .replace("name = \"bot\"", &format!("name = \"{name}\"\nlimits = {limits}"))
            .replace("portcullis.slice/bot/*", &format!("{slice}/*"));
        fs::write(format!("/etc/portcullis/policies/{name}.toml"), policy).expect("a policy");
    };
    of("scoped", SLICE, "{ memory = \"256MiB\", pids = 40, cpu = 1.5 }");
    of("brief", "portcullis.slice/portcullis-brief.slice", "{ wall = \"30s\" }");
    host.reload("bot, brief, indexer, scoped");
}

/// The one scope of sessions that systemd knows, if there is one.
fn scope() -> Option<String> {
    let listed = run("systemctl", &["list-units", "--all", "--plain", "--no-legend", "portcullis-*.scope"]);
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let mut names = listed.lines().filter_map(|line| line.split_whitespace().next());
    let name = names.next().map(str::to_owned);
    assert_eq!(names.next(), None, "{listed}");
    name
}

fn property(unit: &str, name: &str) -> String {
    let shown = run("systemctl", &["show", "--value", "--property", name, unit]);
    String::from_utf8_lossy(&shown.stdout).trim_end().to_owned()
}

fn file(unit: &str, name: &str) -> String {
    let path = PathBuf::from("/sys/fs/cgroup").join(property(unit, "ControlGroup").trim_start_matches('/')).join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).trim_end().to_owned()
}

/// The state that the table of sessions gives the session of a scope.
fn state(unit: &str) -> String {
    let id = unit.trim_start_matches("portcullis-").trim_end_matches(".scope");
    let all = text(&run("portcullis", &["sessions", "--json"]));
    let line = all.lines().find(|line| line.contains(id)).unwrap_or_else(|| panic!("{id} is not in {all}"));
    let state = line.split("\"state\":\"").nth(1).and_then(|rest| rest.split('"').next());
    state.unwrap_or_else(|| panic!("no state in {line}")).to_owned()
}

#[test]
fn a_session_in_a_slice_is_a_scope() {
    let host = Installed::new();
    add_workloads(&host);
    let mut session = Session::of(&host, "scoped");
    assert_eq!(session.psql("SELECT count(*) > 0 FROM products"), "t");
    session.try_direct();
    let unit = scope().expect("systemd knows the session");
    assert_eq!(property(&unit, "ControlGroup"), format!("/{SLICE}/{unit}"));
    assert_eq!(property(&unit, "Slice"), "portcullis-scoped.slice");
    assert!(property(&unit, "Description").ends_with(" of scoped"), "{}", property(&unit, "Description"));
    assert_eq!(property(&unit, "Delegate"), "no");
    for (name, value) in [("MemoryMax", "268435456"), ("MemorySwapMax", "0"), ("TasksMax", "40")] {
        assert_eq!(property(&unit, name), value, "{name}");
    }
    assert_eq!(property(&unit, "CPUQuotaPerSecUSec"), "1.500000s");
    // systemd may say so and not do it.
    for (name, value) in [("memory.max", "268435456"), ("pids.max", "40"), ("cpu.max", "150000 100000")] {
        assert_eq!(file(&unit, name), value, "{name}");
    }
    assert_eq!(state(&unit), "live");

    // The next daemon takes it over.
    let before = host.pid();
    assert!(run("systemctl", &["restart", "portcullis.service"]).status.success());
    assert_ne!(host.pid(), before);
    assert_eq!(session.psql("SELECT 5"), "5");
    assert_eq!((scope(), state(&unit)), (Some(unit.clone()), "live".into()));

    // systemd undoes nothing of ours when it reads its units again.
    assert!(run("systemctl", &["daemon-reload"]).status.success());
    assert_eq!(session.psql("SELECT 6"), "6");

    session.end();
    assert!(eventually(|| scope().is_none()), "it ends with its last process");
    assert!(eventually(|| state(&unit) == "exited"), "{}", state(&unit));
    assert_eq!(host.reached(), 0, "reached directly");
}

#[test]
fn a_scope_stopped_is_a_session_ended_and_a_session_stopped_is_a_scope_frozen() {
    let host = Installed::new();
    add_workloads(&host);
    let mut session = Session::of(&host, "scoped");
    assert_eq!(session.psql("SELECT 1"), "1");
    let unit = scope().expect("systemd knows the session");
    assert!(run("systemctl", &["stop", &unit]).status.success());
    assert!(session.was_ended(), "stopped by systemd, its processes are killed");
    assert!(eventually(|| state(&unit) == "exited"), "{}", state(&unit));

    let mut session = Session::of(&host, "scoped");
    assert_eq!(session.psql("SELECT 2"), "2");
    let hammer = Session::hammer(&host);
    let unit = scope().expect("systemd knows the session");
    let id = unit.trim_start_matches("portcullis-").trim_end_matches(".scope");
    let quarantined = run("portcullis", &["quarantine", id]);
    assert!(quarantined.status.success(), "{}", text(&quarantined));
    assert!(file(&unit, "cgroup.events").contains("frozen 1"), "{}", file(&unit, "cgroup.events"));
    assert!(eventually(|| property(&unit, "FreezerState") == "frozen"), "{}", property(&unit, "FreezerState"));
    assert_eq!(state(&unit), "quarantined");
    assert!(run("systemctl", &["thaw", &unit]).status.success());
    session.try_direct();
    let said = session.psql("SELECT 3");
    assert!(said.contains("refused") || said.contains("not permitted"), "it has no rights any more: {said}");
    let counts = hammer.counts();
    assert!(eventually(|| hammer.counts().served > counts.served), "another session goes on");
    drop(hammer);
    assert!(run("systemctl", &["stop", &unit]).status.success());
    assert!(session.was_ended());

    let session = Session::of(&host, "brief");
    let unit = scope().expect("systemd knows the session");
    assert!(session.was_ended(), "killed when its time is over");
    assert!(eventually(|| scope().is_none()) && eventually(|| state(&unit) == "expired"), "{}", state(&unit));
    assert_eq!(host.reached(), 0, "reached directly");
}
