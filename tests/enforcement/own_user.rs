//! The daemon's own user: what it is once it serves, what it took with it, and who else may be it.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
};

use portcullis_tests::{DAEMON, Daemon, Postgres, SHOP_POLICY};

use crate::world::eventually;

/// NET_ADMIN, PERFMON and BPF.
const THREE: u64 = (1 << 12) | (1 << 38) | (1 << 39);

fn status(pid: u32) -> impl Fn(&str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    move |name| status.lines().find_map(|line| line.strip_prefix(name)).expect(name).trim().replace('\t', " ")
}

fn capabilities(text: &str) -> u64 {
    u64::from_str_radix(text, 16).expect("a set")
}

/// Puts another user into the settings.
fn set_user(daemon: &Daemon, from: &str, to: &str) {
    let file = daemon.path("portcullis.toml");
    let settings = fs::read_to_string(&file).expect("the settings");
    let (from, to) = (format!("user = {from:?}"), format!("user = {to:?}"));
    assert!(settings.contains(&from), "{settings}");
    fs::write(file, settings.replace(&from, &to)).expect("written");
}

#[test]
fn a_daemon_that_serves_is_a_user_with_three_capabilities() {
    let daemon = Daemon::start_alone(SHOP_POLICY, "").expect("a daemon");
    // It answers a little before it has given up the last calls.
    assert!(eventually(|| daemon.log().contains(" ready ")), "{}", daemon.log());
    let pid = daemon.pid().expect("it runs");
    for thread in fs::read_dir(format!("/proc/{pid}/task")).expect("its threads") {
        let of = status(thread.expect("a thread").file_name().to_str().expect("text").parse().expect("a number"));
        let four = [DAEMON; 4].map(|id| id.to_string()).join(" ");
        assert_eq!([of("Uid:"), of("Gid:"), of("Groups:")], [four.clone(), four, String::new()]);
        for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
            assert_eq!(capabilities(&of(set)), THREE, "{set}");
        }
        for set in ["CapInh:", "CapAmb:"] {
            assert_eq!(capabilities(&of(set)), 0, "{set}");
        }
        assert_eq!([of("NoNewPrivs:"), of("Seccomp:")], ["1", "2"]);
    }
    let owner = |path: &str| {
        let found = fs::metadata(daemon.path(path)).expect(path);
        (found.uid(), found.permissions().mode() & 0o7777)
    };
    assert_eq!(owner("state"), (DAEMON, 0o700));
    assert_eq!(owner("state/record").0, DAEMON);
    // Launchers mount here, and trust what lies here.
    assert_eq!([owner("run"), owner("run/session")], [(0, 0o755); 2]);
    assert_eq!(owner("run/control.sock").0, 0);
    // Authorities come and go.
    assert_eq!([owner("run/trust"), owner("run/trust/ca.pem")], [(DAEMON, 0o755), (DAEMON, 0o644)]);
    assert_eq!(fs::metadata(daemon.pins()).expect("pins").uid(), DAEMON);
}

#[test]
fn what_it_starts_has_nothing_and_writes_nowhere_else() {
    let server = Postgres::start().expect("a server");
    let daemon = Daemon::start(&server, SHOP_POLICY).expect("a daemon");
    let open = daemon.path("open");
    fs::create_dir(&open).expect("a folder");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).expect("a mode");
    // By its permissions everybody may write there.
    let outside = format!("/dev/shm/portcullis-test-{}", std::process::id());
    let script = format!(
        "cd {0}; grep -E '^(Uid|CapEff|CapBnd)' /proc/self/status > said; (: > {outside}) && echo wrote >> said; \
         mv said all; echo wrong",
        open.display()
    );
    let program = daemon.path("ask");
    fs::write(&program, format!("#!/bin/sh\n{script}\n")).expect("a program");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a mode");
    let file = daemon.path("policies/bot.toml");
    let policy = fs::read_to_string(&file).expect("the policy");
    let line = policy.lines().find(|line| line.starts_with("credential =")).expect("a credential");
    let exec =
        format!("credential = {{ source = \"exec\", user = \"x\", argv = [{:?}] }}", program.display().to_string());
    fs::write(&file, policy.replace(line, &exec)).expect("written");
    daemon.ok(&["reload"]).expect("reloaded");
    let database = format!("host=127.0.0.1 port={} dbname=shop user=agent", server.port);
    let output = daemon.governed("psql", &["-X", &database, "-c", "SELECT 1"]).expect("a command").output();
    assert!(!output.expect("it runs").status.success(), "the password is wrong");
    assert!(eventually(|| open.join("all").exists()), "{}", daemon.log());
    let said = fs::read_to_string(open.join("all")).expect("what it said");
    let written = fs::remove_file(&outside).is_ok();
    let of = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)).expect(name).trim().to_owned();
    assert!(of("Uid:").starts_with(&DAEMON.to_string()), "{said}");
    assert_eq!(capabilities(&of("CapEff:")), 0, "{said}");
    assert_eq!(capabilities(&of("CapBnd:")), THREE, "{said}");
    assert!(!written && !said.contains("wrote"), "{said}");
}

#[test]
fn a_daemon_that_was_root_takes_its_files_along_and_back() {
    let mut daemon = Daemon::start_alone(SHOP_POLICY, "").expect("a daemon");
    let user = DAEMON.to_string();
    let all = |path: &std::path::Path| -> Vec<u32> {
        let mut found = vec![fs::symlink_metadata(path).expect("it is there").uid()];
        let mut folders = vec![path.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry")) {
                found.push(entry.metadata().expect("it is there").uid());
                if entry.file_type().expect("a kind").is_dir() {
                    folders.push(entry.path());
                }
            }
        }
        found
    };
    for (from, to, uid) in [(user.as_str(), "root", 0), ("root", user.as_str(), DAEMON)] {
        let output = daemon.governed("true", &[]).expect("a command").output().expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        daemon.stop().expect("it ends");
        set_user(&daemon, from, to);
        daemon.launch().expect("it starts");
        assert!(status(daemon.pid().expect("it runs"))("Uid:").starts_with(&uid.to_string()));
        for folder in [daemon.path("state"), daemon.pins()] {
            assert!(all(&folder).iter().all(|owner| *owner == uid), "{}: {:?}", folder.display(), all(&folder));
        }
        daemon.ok(&["audit", "verify"]).expect("the record goes on");
    }
    // Another's files are not taken.
    daemon.stop().expect("it ends");
    set_user(&daemon, &user, "nobody");
    let error = daemon.launch().expect_err("the state is another's").to_string();
    assert!(error.contains(&format!("belongs to user {DAEMON}")), "{error}");
    set_user(&daemon, "nobody", "no-such-user");
    let error = daemon.launch().expect_err("there is no such user").to_string();
    assert!(error.contains("there is no user `no-such-user`"), "{error}");
    // Nor is a session the daemon's user.
    fs::remove_dir_all(daemon.path("state")).expect("removed");
    set_user(&daemon, "no-such-user", "root");
    daemon.launch().expect("it starts");
    daemon.stop().expect("it ends");
    set_user(&daemon, "root", "nobody");
    daemon.launch().expect("it starts");
    let output = daemon.governed("true", &[]).expect("a command").output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("cannot run as the daemon's own user"), "{said}");
}

#[test]
fn the_capabilities_of_the_packaged_service_suffice() {
    let unit = include_str!("../../deploy/portcullis.service");
    let set = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).expect("a set");
    let set: String =
        set.split(' ').map(|name| format!(",+{}", name.trim_start_matches("CAP_").to_lowercase())).collect();
    let server = Postgres::start().expect("a server");
    let mut daemon = Daemon::start(&server, SHOP_POLICY).expect("a daemon");
    let database = format!("host=127.0.0.1 port={} dbname=shop user=agent", server.port);
    let psql = ["-X", "-A", "-t", &database, "-c", "SELECT 41 + 1"];
    // First of a folder that is root's, as before an upgrade, then of one that is the daemon's. Where systemd runs, the
    // slices and bpffs are there, as they are here by now.
    daemon.stop().expect("it ends");
    set_user(&daemon, &DAEMON.to_string(), "root");
    daemon.launch().expect("it starts");
    daemon.stop().expect("it ends");
    set_user(&daemon, "root", &DAEMON.to_string());
    // The supervisor stands for systemd here, which may signal the daemon.
    let bounding = format!("-all{set},+kill");
    for _ in 0..2 {
        // As the unit's UMask= has it; the cgroups are made anew.
        for cgroup in daemon.cgroups() {
            let _ = fs::remove_dir(cgroup.join("bot"));
        }
        let way = "umask 0077; exec setpriv --bounding-set \"$0\" --inh-caps -all \"$@\"";
        daemon.launch_by(&["sh", "-c", way, &bounding]).expect("it starts");
        let of = status(daemon.pid().expect("it runs"));
        assert_eq!(capabilities(&of("CapEff:")), THREE);
        let output = daemon.governed("psql", &psql).expect("a command").output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(said, "42\n", "{}{}", String::from_utf8_lossy(&output.stderr), daemon.log());
        daemon.ok(&["reload"]).expect("reloaded");
        daemon.stop().expect("it ends");
    }
}
