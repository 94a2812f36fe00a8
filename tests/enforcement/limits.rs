//! What a session may use of the host, shown by programs that want more.

use std::{
    fs,
    io::BufRead,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::Output,
};

use portcullis::record::EventBody;
use portcullis_tests::{Daemon, SHOP_POLICY};

use crate::world::eventually;

const SIGKILL: i32 = 9;

/// A daemon whose only policy has these limits.
fn daemon(workload: &str) -> Daemon {
    let policy = SHOP_POLICY.replacen("autonomy =", &format!("{workload}\nautonomy ="), 1);
    Daemon::start_alone(&policy, "").expect("a daemon")
}

fn run(daemon: &Daemon, script: &str) -> Output {
    daemon.governed("python3", &["-c", script]).expect("a command").output().expect("it runs")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Makes children that stay until no more can be made, and prints how many there were.
const BOMB: &str = "import errno, os, signal\n\
    children = []\n\
    try:\n\
    \x20   while len(children) < 300:\n\
    \x20       child = os.fork()\n\
    \x20       if child == 0: signal.pause()\n\
    \x20       children.append(child)\n\
    except OSError as error: assert error.errno == errno.EAGAIN, error\n\
    print(len(children), flush=True)\n\
    for child in children: os.kill(child, signal.SIGKILL)";

/// Touches 160 MiB.
const HOG: &str = "b = bytearray(160 << 20)\nfor i in range(0, len(b), 4096): b[i] = 1\nprint('had it')";

#[test]
fn a_fork_bomb_ends_at_the_limit_of_processes() {
    let daemon = daemon("limits = { pids = 20 }");
    let output = run(&daemon, BOMB);
    // One of the twenty is the program itself.
    assert_eq!(text(&output).trim(), "19");
    // Per session, not per workload or user: the next one has them all again, and another does not take from it.
    let mut other = daemon.governed("sh", &["-c", "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 60 & done; wait"]);
    let mut other = other.as_mut().expect("a command").spawn().expect("it runs");
    assert_eq!(text(&run(&daemon, BOMB)).trim(), "19");
    other.kill().expect("it runs");
    other.wait().expect("it ends");
    let free = self::daemon("limits = {}");
    assert_eq!(text(&run(&free, BOMB)).trim(), "300");
}

#[test]
fn who_takes_more_memory_than_the_session_may_have_is_killed() {
    let small = daemon("limits = { memory = '64MiB' }");
    let output = run(&small, HOG);
    assert_eq!(output.status.signal(), Some(SIGKILL), "{}", text(&output));
    // All processes together: none of these has too much for itself.
    let parts = "import os\nfor _ in range(8):\n  if os.fork() == 0:\n    b = b'x' * (20 << 20); os.write(1, b'.'); \
                 os.read(0, 1); os._exit(0)\nprint(sorted(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(8))[0])";
    let (hold, held) = std::io::pipe().expect("a pipe");
    let mut command = small.governed("python3", &["-c", parts]).expect("a command");
    let child = command.stdin(hold).stdout(std::process::Stdio::piped()).spawn().expect("it runs");
    drop(command);
    // Until the first was killed: those that live hold what they have.
    assert!(eventually(|| events(&small, "oom_kill ").is_some_and(|kills| kills > 1)), "none was killed");
    drop(held);
    let output = child.wait_with_output().expect("it ends");
    assert!(text(&output).trim_end().ends_with("-9"), "{}", text(&output));
    let large = daemon("limits = { memory = '1GiB' }");
    assert_eq!(text(&run(&large, HOG)), "had it\n");
}

#[test]
fn processor_time_is_shared_out() {
    let daemon = daemon("limits = { cpu = 0.2 }");
    // A second of work: four seconds' worth of waiting, in slices.
    let script = "import time\nwhile time.process_time() < 1: pass\nimport sys; sys.stdin.read()";
    let (hold, held) = std::io::pipe().expect("a pipe");
    let mut command = daemon.governed("python3", &["-c", script]).expect("a command");
    let mut child = command.stdin(hold).stdout(std::process::Stdio::null()).spawn().expect("it runs");
    drop(command);
    assert!(eventually(|| events(&daemon, "nr_throttled ").is_some_and(|times| times >= 5)), "nobody waits");
    drop(held);
    child.wait().expect("it ends");
}

/// A counter of the workload's sessions that the kernel keeps, in whatever tree it is.
fn events(daemon: &Daemon, name: &str) -> Option<u64> {
    let trees = ["", "unified", "memory", "cpu", "cpu,cpuacct"];
    let sessions = trees.iter().flat_map(|tree| {
        let parent = Path::new("/sys/fs/cgroup").join(tree).join(daemon.slice()).join("bot");
        fs::read_dir(parent).into_iter().flatten().flatten()
    });
    let files = ["memory.events", "memory.oom_control", "cpu.stat"];
    let texts = sessions.flat_map(|session| files.map(|file| fs::read_to_string(session.path().join(file))));
    let lines: Vec<String> =
        texts.flatten().flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
    lines.iter().filter_map(|line| line.strip_prefix(name)?.parse().ok()).max()
}

#[test]
fn when_the_time_of_a_session_is_over_its_processes_are_killed() {
    let mut daemon = daemon("limits = { wall = '2s' }");
    // A child that left its parent and its terminal goes the same way.
    let script = "setsid sleep 600 & exec sleep 600";
    let output = daemon.governed("sh", &["-c", script]).expect("a command").output().expect("it runs");
    assert_eq!(output.status.signal(), Some(SIGKILL), "{}", text(&output));
    let ends = |daemon: &Daemon| -> Vec<String> {
        let events = portcullis::record::read::events(daemon.path("state/record")).expect("the record");
        let ends = events.filter_map(|recorded| match &recorded.expect("an event").event.body {
            EventBody::SessionEnd { why } => Some(why.to_string()),
            _ => None,
        });
        ends.collect()
    };
    assert!(eventually(|| ends(&daemon) == ["expired"]), "{:?}", ends(&daemon));
    assert!(eventually(|| left(&daemon).is_empty()), "{:?}", left(&daemon));

    // Also when it runs out while no daemon runs.
    let mut command = daemon.governed("sh", &["-c", "echo ready; exec sleep 600"]).expect("a command");
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().expect("it runs");
    let mut line = String::new();
    std::io::BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("text");
    assert_eq!(line, "ready\n");
    daemon.kill().expect("killed");
    std::thread::sleep(std::time::Duration::from_millis(2200));
    let early = child.try_wait().expect("a child");
    assert!(early.is_none_or(|status| status.signal() == Some(SIGKILL)), "{early:?}");
    daemon.launch().expect("a daemon");
    assert_eq!(child.wait().expect("it ends").signal(), Some(SIGKILL));
    assert!(eventually(|| ends(&daemon) == ["expired", "expired"]), "{:?}", ends(&daemon));
}

#[test]
fn what_limits_need_is_taken_away_with_the_session() {
    let daemon = daemon("limits = { memory = '1GiB', pids = 100, cpu = 1, wall = '1h' }");
    let output = daemon.governed("cat", &["/proc/self/cgroup"]).expect("a command").output().expect("it runs");
    let listing = text(&output);
    assert!(output.status.success(), "{listing}");
    let session = listing.lines().find_map(|line| line.strip_prefix("0::/")).expect("a cgroup");
    let at = |path: &str| listing.lines().filter(|line| line.ends_with(&format!(":/{path}"))).count();
    // On a hybrid host: in each of the three trees beside the one of the hooks.
    let hybrid = Path::new("/sys/fs/cgroup/pids").is_dir();
    assert_eq!(at(session), if hybrid { 4 } else { 1 }, "{listing}");
    assert!(eventually(|| left(&daemon).is_empty()), "{:?}", left(&daemon));
}

/// Cgroups of the daemon's sessions, in every tree.
fn left(daemon: &Daemon) -> Vec<PathBuf> {
    let roots = ["", "unified", "memory", "pids", "cpu"];
    let parents = roots.map(|root| Path::new("/sys/fs/cgroup").join(root).join(daemon.slice()).join("bot"));
    let entries = parents.iter().flat_map(|parent| fs::read_dir(parent).into_iter().flatten().flatten());
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

#[test]
fn a_limit_that_the_host_cannot_hold_refuses_the_session() {
    let mut daemon = daemon("limits = { pids = 20 }");
    assert_eq!(text(&run(&daemon, "print('ran')")), "ran\n");
    assert!(eventually(|| left(&daemon).is_empty()), "{:?}", left(&daemon));
    daemon.kill().expect("killed");
    // The same host without that controller, as the daemon sees it.
    let without = "if [ -d /sys/fs/cgroup/pids ]; then umount /sys/fs/cgroup/pids
        else mount --bind /dev/null /sys/fs/cgroup/cgroup.controllers; fi; exec \"$0\" \"$@\"";
    daemon.launch_by(&["unshare", "--mount", "sh", "-c", without]).expect("a daemon");
    let output = run(&daemon, "print('ran')");
    let said = text(&output);
    assert!(!output.status.success() && !said.contains("ran"), "{said}");
    assert!(said.contains("limits `pids`, and this host has no cgroup controller of that name"), "{said}");
    assert!(eventually(|| left(&daemon).is_empty()), "{:?}", left(&daemon));
}
