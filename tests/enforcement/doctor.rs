//! `portcullis doctor` on a whole daemon: what is closed it calls closed, and what was really opened it finds.

use std::{
    fs,
    os::unix::{
        fs::PermissionsExt,
        process::{CommandExt, ExitStatusExt},
    },
    process::{Command, Output, Stdio},
};

use portcullis::doctor::{Finding, Grade};
use portcullis_tests::{Daemon, Postgres, SHOP_POLICY};

use crate::{
    escape::rooted,
    world::{eventually, kernel_can_all, kernel_judges_unix, kernel_takes_lsm, unix_is_judged},
};

/// Hooks that are taken away.
const GONE: [&str; 6] = ["egress", "ingress", "connect4", "sock_create", "sendmsg4", "connect_unix"];

fn gone() -> impl Iterator<Item = &'static str> {
    GONE.into_iter().filter(|hook| !hook.ends_with("unix") || kernel_judges_unix())
}

fn doctor(daemon: &Daemon) -> (Option<i32>, Vec<Finding>, Output) {
    let output = daemon.cli(&["doctor", "--json"]).expect("it runs");
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let findings = lines.lines().map(|line| serde_json::from_str(line).expect("a finding")).collect();
    (output.status.code(), findings, output)
}

fn named<'a>(findings: &'a [Finding], check: &str) -> &'a Finding {
    findings.iter().find(|finding| finding.check == check).unwrap_or_else(|| panic!("{check} in {findings:#?}"))
}

#[test]
fn a_healthy_host_is_closed() {
    let server = Postgres::start().expect("a server");
    // Below the host's own, and of no other test.
    let own = 1_879_190_010;
    let settings = format!("[sessions]\nuids = \"{own}-{}\"\n", own + 9);
    let daemon = Daemon::start_with(&server, SHOP_POLICY, &settings).expect("a daemon");
    daemon.add_policy("rooted", &rooted(&daemon)).expect("a policy");
    let (code, findings, output) = doctor(&daemon);
    assert_eq!(code, Some(0), "{output:?}");
    for finding in findings.iter().filter(|finding| finding.grade != Grade::Closed) {
        // Older kernels cannot all of it, and that is named.
        assert_eq!(finding.grade, Grade::Cannot, "{finding:?}");
        let lacks = |what: &str| finding.fix.as_ref().is_some_and(|lacks| lacks.contains(what));
        let is_known = (!kernel_can_all() && lacks("Linux 6.")) || (!kernel_takes_lsm() && lacks("lsm="));
        assert!(is_known, "{finding:?}");
    }
    assert_eq!(named(&findings, "names").grade, Grade::Closed);
    let tried: usize = findings.iter().filter_map(|finding| finding.attempts).sum();
    assert!(tried >= 400, "{tried}");
    // What the security module alone closes is closed, or named with what is lacking.
    let grade = if kernel_takes_lsm() { Grade::Closed } else { Grade::Cannot };
    assert_eq!(named(&findings, "security module").grade, grade);
    let passed: Vec<&Finding> = findings.iter().filter(|finding| finding.check == "passed sockets").collect();
    assert!(passed.len() == 2 && passed.iter().all(|finding| finding.grade == grade), "{passed:#?}");
    for workload in ["bot", "rooted"] {
        let roads = findings.iter().filter(|finding| finding.workload.as_deref() == Some(workload)).count();
        assert_eq!(roads, 12, "{findings:#?}");
    }
    // It leaves nothing behind but its session on record.
    assert!(!daemon.pins().join("escape_decoy").exists());
    assert!(daemon.ok(&["sessions"]).expect("sessions").contains("portcullis doctor"));
}

#[test]
fn what_is_open_is_found_and_named() {
    let server = Postgres::start().expect("a server");
    let mut daemon = Daemon::start(&server, SHOP_POLICY).expect("a daemon");
    fs::set_permissions(daemon.path("state"), fs::Permissions::from_mode(0o755)).expect("a mode");
    // What somebody with root's powers might do, and what enforces nothing from then on.
    let links = daemon.pins().join("links");
    for cgroup in fs::read_dir(&links).expect("links").flatten() {
        for hook in gone() {
            fs::remove_file(cgroup.path().join(hook)).expect("a link");
        }
    }
    for hook in fs::read_dir(daemon.pins().join("lsm")).expect("links").flatten() {
        fs::remove_file(hook.path()).expect("a link");
    }
    fs::write(daemon.path("policies/bot.toml"), "[workload]\n").expect("a policy");
    let (code, findings, output) = doctor(&daemon);
    assert_eq!(code, Some(1), "{output:?}");
    let open = |check: &str| {
        let finding = named(&findings, check);
        assert_eq!(finding.grade, Grade::Open, "{finding:?}");
        assert!(finding.means.is_some() && finding.fix.is_some(), "{finding:?}");
        finding
    };
    let hooks: Vec<&str> =
        findings.iter().filter(|f| f.check == open("hooks and pins").check).map(|f| &*f.found).collect();
    for hook in gone() {
        let wanted = format!("`{hook}` is not attached");
        assert!(hooks.iter().any(|found| found.contains(&wanted)), "{wanted} in {hooks:?}");
    }
    if kernel_takes_lsm() {
        assert!(hooks.iter().any(|found| found.contains("`lsm_file_receive` is not attached")), "{hooks:?}");
        assert!(open("passed sockets").reached.iter().any(|name| name == "udp socket, over standard error"));
    }
    let state = daemon.path("state").display().to_string();
    assert_eq!(open("permissions").fix.as_deref(), Some(&*format!("chmod 0700 {state}")));
    assert!(open("policies").found.contains("refused") || open("policies").found.contains("does not load"));
    // Watched from outside: what is open is reached.
    let mut roads = vec![("TCP", "tcp v4"), ("UDP, ICMP, raw", "udp v4 sendto")];
    if unix_is_judged() {
        roads.extend([("unix sockets", "unix path stream"), ("passed sockets", "socket given by another process")]);
    }
    for (road, attempt) in roads {
        assert!(open(road).reached.iter().any(|name| name == attempt), "{attempt} in {:?}", open(road));
    }
    // And what these hooks have no part in is not.
    for road in ["other families", "cgroups", "namespaces", "kernel interfaces"] {
        assert_eq!(named(&findings, road).grade, Grade::Closed, "{:?}", named(&findings, road));
    }

    daemon.kill().expect("it runs");
    let output = daemon.cli(&["doctor"]).expect("it runs");
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("kernel hooks") && text.lines().all(|line| line.chars().count() <= 80), "{text}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("help:"), "{output:?}");
}

#[test]
fn an_operator_who_is_not_root_is_told_what_they_cannot_see() {
    let server = Postgres::start().expect("a server");
    let control = "[control]\ngroup = \"nogroup\"\noperators = [\"group:nogroup\"]\n";
    let daemon = Daemon::start_with(&server, SHOP_POLICY, control).expect("a daemon");
    // Where every user can run it.
    let program = daemon.path("portcullis");
    fs::copy(portcullis_tests::binary().expect("a binary"), &program).expect("a copy");
    let mut command = Command::new("setpriv");
    command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]).arg(program);
    command.arg("--config").arg(daemon.path("portcullis.toml")).args(["doctor", "--json"]).current_dir("/");
    let output = command.output().expect("it runs");
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let findings: Vec<Finding> = lines.lines().map(|line| serde_json::from_str(line).expect("a finding")).collect();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    for check in ["kernel hooks", "packets"] {
        let finding = named(&findings, check);
        assert_eq!(finding.grade, Grade::Cannot, "{finding:?}");
        assert!(finding.fix.as_ref().is_some_and(|fix| fix.contains("sudo")), "{finding:?}");
    }
    assert_eq!(named(&findings, "TCP").grade, Grade::Closed);
}

#[test]
fn an_interrupted_doctor_leaves_nothing() {
    let daemon = Daemon::start_alone(SHOP_POLICY, "").expect("a daemon");
    let left = || -> Vec<String> {
        let all = fs::read_dir(daemon.path("run")).expect("a folder").flatten();
        let names = all.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with("witness-")).collect()
    };
    let live = || daemon.ok(&["sessions", "--json"]).expect("sessions").contains("\"state\":\"live\"");
    // Alone, as by a service manager; and with the session, as at a terminal.
    for (signal, number, group) in [("TERM", libc::SIGTERM, 1), ("INT", libc::SIGINT, -1)] {
        let doctor = daemon.command(&["doctor"]).expect("a command");
        // Who runs the tests in the background may have them ignore SIGINT, which programs inherit.
        let mut command = Command::new("env");
        command.arg("--default-signal=INT,TERM").arg(doctor.get_program()).args(doctor.get_args()).stdin(Stdio::null());
        let doctor = command.process_group(0).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut doctor = doctor.expect("it starts");
        assert!(eventually(|| !left().is_empty() && live()), "it began");
        assert_eq!(doctor.try_wait().expect("a child"), None);
        portcullis_tests::signal(signal, group * doctor.id().cast_signed()).expect("it runs");
        assert_eq!(doctor.wait().expect("it ends").signal(), Some(number), "as whoever sent it expects");
        assert_eq!(left(), [""; 0]);
        assert!(!daemon.pins().join("escape_decoy").exists());
        assert!(eventually(|| !live()), "its session ended with it");
    }
}
