//! Users that sessions have for themselves, and root that is nobody outside of its session.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::{MetadataExt, PermissionsExt},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use portcullis_tests::{Daemon, SHOP_POLICY};

use crate::world::eventually;

/// Two user ids that no other test has: daemons side by side see one another's processes.
fn range() -> (u32, u32) {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    let first = 1_879_200_000 + (std::process::id() % 100_000) * 64 + TAKEN.fetch_add(2, Ordering::Relaxed);
    (first, first + 1)
}

/// A daemon with two users for sessions.
fn daemon(user: &str) -> (Daemon, (u32, u32)) {
    let (first, last) = range();
    (daemon_with(user, &format!("[sessions]\nuids = \"{first}-{last}\"\n")), (first, last))
}

fn daemon_with(user: &str, settings: &str) -> Daemon {
    let keys = format!("private_tmp = true\nuser = '{user}'\nautonomy =");
    Daemon::start_alone(&SHOP_POLICY.replacen("autonomy =", &keys, 1), settings).expect("a daemon")
}

fn command(daemon: &Daemon, script: &str) -> Command {
    let mut command = daemon.command(&["run", "--workload", "bot", "--", "sh", "-c", script]).expect("a command");
    command.current_dir("/");
    command
}

fn run(daemon: &Daemon, script: &str) -> Output {
    command(daemon, script).output().expect("it runs")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(output));
    text(output)
}

/// A session that waits until its input ends, and its user.
struct Waiting {
    child: Child,
    uid: u32,
}

impl Waiting {
    fn start(daemon: &Daemon) -> Self {
        let mut command = command(daemon, "id -u; read line; true");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it runs");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("text");
        Self { child, uid: line.trim().parse().expect("a user id") }
    }

    fn end(mut self) {
        drop(self.child.stdin.take());
        self.child.wait().expect("it ends");
    }
}

fn refused(daemon: &Daemon, why: &str) -> bool {
    let output = run(daemon, "echo ran");
    let text = text(&output);
    !output.status.success() && !text.contains("ran\n") && text.contains(why)
}

const EXHAUSTED: &str = "are in use";

#[test]
fn each_session_has_a_user_that_no_other_has() {
    let (mut daemon, (first, last)) = daemon("dedicated");
    let (one, two) = (Waiting::start(&daemon), Waiting::start(&daemon));
    assert_eq!([one.uid.min(two.uid), one.uid.max(two.uid)], [first, last]);
    assert!(refused(&daemon, EXHAUSTED), "a third");
    // The next daemon knows who has which.
    daemon.kill().expect("killed");
    daemon.launch().expect("a daemon");
    assert!(refused(&daemon, EXHAUSTED), "a third");
    let free = one.uid;
    one.end();
    assert!(eventually(|| text(&run(&daemon, "id -u")).trim() == free.to_string()));
    two.end();
}

#[test]
fn a_user_rests_while_a_process_has_it() {
    let (daemon, _) = daemon("dedicated");
    let (one, two) = (Waiting::start(&daemon), Waiting::start(&daemon));
    let session = |line: &str| -> String {
        let session: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert!(session["operator"].as_str().expect("text").contains("the session's own user"), "{session}");
        session["session"].as_str().expect("text").to_owned()
    };
    let list = daemon.ok(&["sessions", "--json"]).expect("a list");
    // It ends, and its processes do not: they are frozen.
    daemon.ok(&["quarantine", &session(list.lines().next().expect("a session"))]).expect("quarantined");
    let status = daemon.cli(&["status", "--json"]).expect("an answer");
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).expect("JSON");
    assert_eq!(status["sessions"], 1);
    assert!(refused(&daemon, EXHAUSTED), "its processes are still there");
    for cgroup in daemon.cgroups() {
        fs::write(cgroup.join("bot/cgroup.kill"), "1").expect("killed");
    }
    // Those that nobody waited for are processes, too.
    one.end();
    two.end();
    assert!(eventually(|| run(&daemon, "true").status.success()));
}

#[test]
fn such_a_user_has_a_name_a_home_and_nothing_else() {
    let (daemon, (first, last)) = daemon("dedicated");
    let script = "id -un; id -gn; id -G; cd && pwd && touch x && stat -c %U%a . && getent passwd session root | cut -d: -f1; \
                  python3 -c 'import pwd, os; print(pwd.getpwuid(os.getuid()).pw_dir)'; ls -A /tmp | grep -v portcullis-d-";
    let said = said(&run(&daemon, script));
    let uid = said.lines().nth(2).expect("groups");
    assert!((first..=last).contains(&uid.parse().expect("one group")), "{said}");
    let wanted = format!("session\nsession\n{uid}\n/tmp/home\nsession700\nsession\nroot\n/tmp/home\nhome\n");
    assert_eq!(said, wanted);
    assert!(!fs::read_to_string("/etc/passwd").expect("it is there").contains(":/tmp/home:"), "the host's own");
}

#[test]
fn who_else_it_could_be_is_refused() {
    let (daemon, (first, last)) = daemon("dedicated");
    let output = daemon.governed("true", &[]).expect("a command").output().expect("it runs");
    assert!(!output.status.success() && text(&output).contains("a user of its own"), "{}", text(&output));
    assert!(refused(&daemon_with("dedicated", ""), "no users are set aside"));
    let settings = format!(
        "[sessions]\nuids = \"{first}-{last}\"\n[control]\ngroup = \"nogroup\"\noperators = [\"user:nobody\"]\n"
    );
    let daemon = daemon_with("root", &settings);
    let inner = command(&daemon, "true");
    let mut other = Command::new("setpriv");
    other.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]).arg(inner.get_program()).args(inner.get_args());
    let output = other.current_dir("/").output().expect("it runs");
    assert!(!output.status.success() && text(&output).contains("only root can arrange"), "{}", text(&output));
    // Without such a policy, root still becomes the command by nobody's accident.
    let plain = Daemon::start_alone(SHOP_POLICY, "").expect("a daemon");
    assert!(refused(&plain, "root of this host cannot be kept in"));
}

#[test]
fn root_of_a_session_is_root_there_and_nobody_elsewhere() {
    let (daemon, (first, last)) = daemon("root");
    let place = tempfile::tempdir_in("/var").expect("a folder");
    let at = |name: &str| place.path().join(name);
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o777)).expect("a mode");
    fs::write(at("secret"), "of root").expect("a file");
    fs::set_permissions(at("secret"), fs::Permissions::from_mode(0o600)).expect("a mode");
    let mut outside = Command::new("sleep").arg("600").spawn().expect("a process");
    let script = format!(
        "cd {0}; whoami; id -u; cat /proc/self/uid_map /proc/self/gid_map | tr -s ' '; touch made && chown 0:0 made; \
         echo home > ~/x && cat ~/x; grep -E 'CapEff|CapBnd|NoNewPrivs|Seccomp:' /proc/self/status; \
         cat secret; chown 1 made; chmod 777 secret; echo x >> /etc/passwd; kill {1}; mount -t tmpfs x /mnt; unshare -U true; \
         unshare -n true; unshare -m true; chroot / true; hostname x; mknod dev c 1 3; setpriv --reuid=1 true; \
         echo 0 > /proc/sys/kernel/core_pattern; ls /proc/1/root; ip link add x type dummy",
        place.path().display(),
        outside.id()
    );
    let output = run(&daemon, &script);
    let alive = outside.try_wait().expect("a process").is_none();
    outside.kill().expect("it runs");
    outside.wait().expect("it ends");
    assert!(alive, "{}", text(&output));
    let stdout = String::from_utf8_lossy(&output.stdout);
    let uid = fs::metadata(at("made")).expect("it was made").uid();
    assert!((first..=last).contains(&uid), "{uid}");
    assert!(stdout.starts_with(&format!("root\n0\n 0 {uid} 1\n 0 {uid} 1\nhome\n")), "{}", text(&output));
    let capabilities = |name: &str| {
        let line = stdout.lines().find_map(|line| line.strip_prefix(name)).expect("a line of status");
        u64::from_str_radix(line.trim(), 16).expect("a number")
    };
    // NET_ADMIN, NET_RAW, SYS_MODULE, SYS_PTRACE, SYS_ADMIN, MKNOD, BPF: linux/capability.h
    let forbidden = [12, 13, 16, 19, 21, 27, 39].iter().fold(0_u64, |all, bit| all | 1 << bit);
    for name in ["CapEff:", "CapBnd:"] {
        assert_eq!(capabilities(name) & forbidden, 0, "{name}");
        assert_ne!(capabilities(name) & 1, 0, "{name}: it may change owners, among those that there are");
    }
    assert!(stdout.contains("NoNewPrivs:\t1\nSeccomp:\t2\n") && stdout.ends_with("Seccomp:\t2\n"), "{}", text(&output));
    // Each of the others said that it may not.
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    let complaints_of = complaints.lines().filter(|line| !line.is_empty() && !line.starts_with(' '));
    assert_eq!(complaints_of.count(), 16, "{complaints}");
    assert_eq!(fs::read_to_string(at("secret")).expect("it is there"), "of root");
    assert_eq!(fs::metadata(at("secret")).expect("it is there").mode() & 0o777, 0o600);
}
