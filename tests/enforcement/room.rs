//! What a session sees of the host's files: temporary folders and unix sockets of its own, a host that it cannot write, and
//! nothing of what governs it.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::Path,
    process::{Command, Output, Stdio},
};

use portcullis_tests::{Daemon, SHOP_POLICY};

use crate::world::{kernel_judges_unix, unix_is_judged};

fn daemon(workload: &str) -> Daemon {
    let policy = SHOP_POLICY.replacen("autonomy =", &format!("{workload}\nautonomy ="), 1);
    Daemon::start_alone(&policy, "").expect("a daemon")
}

/// A folder that everybody may use.
fn folder(place: &str) -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("portcullis-room-").tempdir_in(place).expect("a folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("a mode");
    folder
}

fn sh(daemon: &Daemon, here: &Path, script: &str) -> Output {
    let mut command = daemon.governed("sh", &["-c", script]).expect("a command");
    command.current_dir(here).output().expect("it runs")
}

fn python(daemon: &Daemon, here: &Path, script: &str, arguments: &[&str]) -> Output {
    let arguments = [&["-c", script][..], arguments].concat();
    let mut command = daemon.governed("/usr/bin/python3", &arguments).expect("a command");
    command.current_dir(here).output().expect("it runs")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(output));
    text(output)
}

const PRIVATE: &str = "private_tmp = true";

#[test]
fn temporary_folders_are_the_sessions_own_and_end_with_it() {
    let daemon = daemon(PRIVATE);
    for place in ["/tmp", "/var/tmp", "/dev/shm"] {
        let host = folder(place);
        let (name, secret) = (host.path().display().to_string(), host.path().join("secret"));
        fs::write(&secret, "of the host").expect("a file");
        let mark = format!("{place}/portcullis-mark-{}", std::process::id());
        let script = format!("ls -d {name} 2>&1; echo mine > {mark} && cat {mark}; stat -c %a {place}");
        let output = sh(&daemon, Path::new("/"), &script);
        let seen = said(&output);
        assert!(seen.contains("No such file") && seen.ends_with("mine\n1777\n"), "{seen}");
        assert!(!Path::new(&mark).exists(), "{mark}");
        // Nor does the next session see it, nor one that stands where the host's folder was.
        let output =
            sh(&daemon, Path::new(place), &format!("ls -A; ls -A .. | grep -c portcullis-room; test ! -e {mark}"));
        let names = text(&output);
        assert!(!names.contains("portcullis-room-") && names.lines().last() == Some("0"), "{place}: {names}");
    }
}

#[test]
fn the_working_folder_is_there_wherever_it_is() {
    let daemon = daemon(PRIVATE);
    let host = folder("/tmp");
    fs::create_dir(host.path().join("work")).expect("a folder");
    fs::set_permissions(host.path().join("work"), fs::Permissions::from_mode(0o777)).expect("a mode");
    fs::write(host.path().join("work/given"), "given\n").expect("a file");
    fs::write(host.path().join("beside"), "beside\n").expect("a file");
    let output =
        sh(&daemon, &host.path().join("work"), "cat given; echo made > made; ln -s made link; cat link; ls -A ..; pwd");
    let wanted = format!("given\nmade\nwork\n{}/work\n", host.path().display());
    assert_eq!(said(&output), wanted);
    assert_eq!(fs::read_to_string(host.path().join("work/made")).expect("it was made"), "made\n");
    // What clients need of ours is there as well, and cannot be changed.
    let output =
        sh(&daemon, Path::new("/"), "head -c 27 $PGSSLROOTCERT; echo; echo x 2>&1 >> $PGSSLROOTCERT || echo no");
    assert!(said(&output).starts_with("-----BEGIN CERTIFICATE-----\n"), "{}", text(&output));
    assert!(text(&output).ends_with("no\n"));
}

/// A server and a client in one session. Arguments: the socket.
const MEET: &str = "import os, socket, sys\n\
    s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(1)\n\
    if os.fork() == 0:\n  c = socket.socket(socket.AF_UNIX); c.connect(sys.argv[1]); c.send(b'met'); os._exit(0)\n\
    if os.wait()[1]: raise SystemExit('refused')\n\
    print(s.accept()[0].recv(3).decode())";

#[test]
fn unix_sockets_of_its_own_are_reached_in_their_folder_and_nowhere_else() {
    let daemon = daemon(PRIVATE);
    let runtime = said(&sh(&daemon, Path::new("/"), "echo $XDG_RUNTIME_DIR; stat -c '%a %u %g' $XDG_RUNTIME_DIR"));
    let (runtime, mode) = runtime.split_once('\n').expect("two lines");
    assert_eq!(mode, "700 65534 65534\n");
    let met = python(&daemon, Path::new("/"), MEET, &[&format!("{runtime}/s")]);
    if !unix_is_judged() {
        // Without hooks for it, a session can make no such socket at all.
        assert!(text(&met).contains("Address family not supported"), "{}", text(&met));
        return;
    }
    assert_eq!(said(&met), "met\n");
    // Where they are judged by path. By their peers, they are known wherever they are.
    let elsewhere_is = if kernel_judges_unix() { "refused" } else { "met\n" };
    for elsewhere in ["/tmp/s", "s"] {
        let output = python(&daemon, Path::new("/tmp"), MEET, &[elsewhere]);
        assert!(text(&output).contains(elsewhere_is), "{elsewhere}: {}", text(&output));
    }
    // Programs that need it.
    let agent = "eval $(ssh-agent -a $XDG_RUNTIME_DIR/agent) >/dev/null; ssh-add -l; kill $SSH_AGENT_PID";
    assert!(text(&sh(&daemon, Path::new("/"), agent)).contains("no identities"));
    let forkserver = "import multiprocessing as m\nif __name__ == '__main__':\n  m.set_start_method('forkserver')\n  \
                      with m.Pool(2) as p: print(p.map(abs, [-1, -2]))";
    let script = format!("cd /tmp && cat > f.py <<'E'\n{forkserver}\nE\nTMPDIR=$XDG_RUNTIME_DIR /usr/bin/python3 f.py");
    assert_eq!(said(&sh(&daemon, Path::new("/"), &script)), "[1, 2]\n");
    // A restarted daemon knows it still; a session without such a folder gains none by a policy that gives it.
    let shared = self::daemon("");
    let file = shared.path("policies/bot.toml");
    let asks = "read line; python3 -c \"$0\" \"$1\" 2>&1; read line; python3 -c \"$0\" \"$1\" 2>&1";
    let place = folder("/var");
    let socket = place.path().join("s").display().to_string();
    let mut command = shared.governed("sh", &["-c", asks, MEET, &socket]).expect("a command");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it runs");
    let policy = fs::read_to_string(&file).expect("the policy");
    fs::write(&file, policy.replacen("autonomy", "private_tmp = true\nautonomy", 1)).expect("written");
    shared.ok(&["reload"]).expect("reloaded");
    drop(child.stdin.take());
    let output = child.wait_with_output().expect("it ends");
    let met = text(&output).contains("met");
    assert!(text(&output).contains(elsewhere_is) && met != kernel_judges_unix(), "{}", text(&output));
}

#[test]
fn a_session_outlives_the_daemon_with_its_sockets() {
    let mut daemon = daemon(PRIVATE);
    let script = "echo ready; read line; exec /usr/bin/python3 -c \"$0\" $XDG_RUNTIME_DIR/s";
    let mut command = daemon.governed("sh", &["-c", script, MEET]).expect("a command");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it runs");
    let mut output = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    output.read_line(&mut line).expect("it says so");
    daemon.kill().expect("killed");
    daemon.launch().expect("a daemon");
    drop(child.stdin.take());
    output.read_line(&mut line).expect("text");
    assert_eq!(line, if unix_is_judged() { "ready\nmet\n" } else { "ready\n" });
    child.wait().expect("it ends");
}

/// Tries to reach a socket of the host by way of the session's own folder. Arguments: the socket. Prints what got through.
const ATTACK: &str = r"
import ctypes, os, socket, sys
target, own = sys.argv[1], os.environ['XDG_RUNTIME_DIR']
libc = ctypes.CDLL(None, use_errno=True)
folder, name = os.path.split(target)
def attempt(what, prepare, path):
    # In a child: some change what the next ones would see.
    if os.fork(): return os.wait()
    try: prepare()
    except OSError as error: print('#', what, 'not made:', error)
    try: socket.socket(socket.AF_UNIX).connect(path); print('reached by', what)
    except OSError as error: print('#', what, 'not reached:', error)
    sys.stdout.flush(); os._exit(0)
nothing = lambda: None
def call(what, number, *arguments):
    if libc.syscall(number, *arguments) != 0: raise OSError(ctypes.get_errno(), what)
def namespaces(flags):
    call('unshare', 272, flags)
    call('umount2', 166, own.encode(), 2)
jail = os.environ['JAIL']
def prison():
    os.makedirs(jail + own)
    os.symlink('/' + name, jail + own + '/s')
    try: os.link(target, jail + '/' + name)
    except OSError: pass
    os.chroot(jail)
attempt('a link', lambda: os.symlink(target, own + '/link'), own + '/link')
attempt('a link to its folder', lambda: os.symlink(folder, own + '/dir'), own + '/dir/' + name)
attempt('a link to the root', lambda: os.symlink('/', own + '/root'), own + '/root' + target)
attempt('a relative link', lambda: os.symlink('../' * 20 + target[1:], own + '/up'), own + '/up')
attempt('a link to own root', lambda: os.symlink('/proc/self/root', own + '/self'), own + '/self' + target)
attempt('dots', nothing, own + '/..' * 5 + target)
attempt('dots from below', lambda: os.mkdir(own + '/a'), own + '/a' + '/..' * 6 + target)
attempt('a hard link', lambda: os.link(target, own + '/hard'), own + '/hard')
attempt('a link to a link', lambda: os.link(own + '/link', own + '/hardlink', follow_symlinks=False), own + '/hardlink')
attempt('another root', prison, own + '/s')
attempt('namespaces', lambda: namespaces(0x10020000), own + '/link')
attempt('its own mounts', lambda: namespaces(0x20000), own + '/link')
attempt('other attributes', lambda: call('remount', 165, None, own.encode(), None, 32 | 4096, None), own + '/link')
attempt('no mount', lambda: call('umount2', 166, own.encode(), 2), own + '/link')
attempt('a mount', lambda: call('mount', 165, folder.encode(), own.encode(), None, 4096, None), own + '/' + name)
attempt('a folder in its place', lambda: (os.rename(own, own + '2'), os.symlink(folder, own)), own + '/' + name)
attempt('no folder in its place', lambda: (os.rmdir(own), os.symlink(folder, own)), own + '/' + name)
attempt('a moved socket', lambda: os.rename(target, own + '/moved'), own + '/moved')
";

#[test]
fn no_socket_of_the_host_is_reached_through_that_folder() {
    let daemon = daemon(PRIVATE);
    let host = folder("/var");
    let path = host.path().join("host.sock");
    let server = UnixListener::bind(&path).expect("a socket");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("a mode");
    server.set_nonblocking(true).expect("a socket");
    let target = path.display().to_string();
    let reached = || std::iter::from_fn(|| server.accept().ok()).count();
    // The attempts are real: where nothing governs, they get through.
    let free = folder("/var");
    let runtime = free.path().join("run");
    fs::create_dir(&runtime).expect("a folder");
    let jail = folder("/var");
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-c", ATTACK, &target]).env("XDG_RUNTIME_DIR", &runtime).env("JAIL", jail.path().join("j"));
    let output = command.output().expect("it runs");
    assert!(reached() >= 12, "{}", text(&output));
    let _ = Command::new("umount").arg("-l").arg(&runtime).output();
    // One attempt moved it away.
    drop(server);
    let _ = fs::remove_file(&path);
    let server = UnixListener::bind(&path).expect("a socket");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("a mode");
    server.set_nonblocking(true).expect("a socket");
    let reached = || std::iter::from_fn(|| server.accept().ok()).count();
    for user in [&["--user", "nobody"][..], &["--i-know-root-escapes"]] {
        let jail = folder("/var");
        let run = [&["run", "--workload", "bot"], user, &["--", "/usr/bin/python3", "-c", ATTACK, &target]].concat();
        let mut command = daemon.command(&run).expect("a command");
        command.current_dir("/").env("JAIL", jail.path().join("j"));
        let output = command.output().expect("it runs");
        let said = text(&output);
        assert!(said.contains("# a moved socket not reached"), "all were tried: {said}");
        assert!(!said.contains("reached by"), "{user:?}: {said}");
        assert_eq!(reached(), 0, "{user:?}: {said}");
    }
}

#[test]
fn a_read_only_host_is_written_in_the_working_folder_alone() {
    let daemon = daemon("private_tmp = true\nfilesystem = 'read-only'");
    let (work, other) = (folder("/var"), folder("/var"));
    let (other, file) = (other.path(), other.path().join("there"));
    fs::write(&file, "as it was").expect("a file");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).expect("a mode");
    let script = format!(
        "echo a > made && mkdir sub && echo b > sub/made && echo c > /tmp/c && echo d > /dev/shm/d && echo e > /dev/null \
         && echo f > $XDG_RUNTIME_DIR/f && echo 500 > /proc/self/oom_score_adj || echo stopped\n\
         for f in {0}/there {0}/new; do echo x > $f; done 2>&1\nchmod 600 {0}/there 2>&1\nmount -o remount,rw / 2>&1\n\
         touch /var/tmp/g && cat made sub/made",
        other.display()
    );
    for user in [&["--user", "nobody"][..], &["--i-know-root-escapes"]] {
        let run = [&["run", "--workload", "bot"], user, &["--", "sh", "-c", &script]].concat();
        let output = daemon.command(&run).expect("a command").current_dir(work.path()).output().expect("it runs");
        let said = said(&output);
        assert!(said.ends_with("a\nb\n") && !said.contains("stopped"), "{user:?}: {said}");
        assert!(said.matches("Read-only file system").count() >= 2, "{user:?}: {said}");
        assert_eq!(fs::read_to_string(&file).expect("it is there"), "as it was");
        assert_eq!(fs::metadata(&file).expect("it is there").permissions().mode() & 0o777, 0o666);
        assert!(!other.join("new").exists());
        fs::remove_dir_all(work.path().join("sub")).expect("it was made");
        fs::remove_file(work.path().join("made")).expect("it was made");
    }
    let output = sh(&daemon, Path::new("/"), "echo ran");
    assert!(
        !output.status.success() && text(&output).contains("the working folder, and that is `/`"),
        "{}",
        text(&output)
    );
    // The host itself is as it was.
    fs::write(other.join("new"), "by the host").expect("written");
}

#[test]
fn what_governs_it_is_not_there_to_be_seen() {
    let daemon = daemon("");
    let here = fs::read_to_string("/proc/self/mountinfo").expect("proc");
    let kinds = ["bpf", "tracefs", "debugfs", "cgroup", "cgroup2"];
    let points: Vec<&str> = here
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            kinds.contains(&right.split(' ').next()?).then(|| left.split(' ').nth(4))?
        })
        .collect();
    assert!(!points.is_empty());
    let look = "cut -d' ' -f5- /proc/self/mountinfo | grep -E ' - (bpf|tracefs|debugfs|cgroup|cgroup2) '\n\
                for point in \"$@\"; do ls -A $point 2>/dev/null; mkdir $point/x 2>/dev/null && echo made $point/x; done\n\
                cat /proc/1/root/etc/hostname 2>&1 | grep -v denied; echo looked";
    for user in [&["--user", "nobody"][..], &["--i-know-root-escapes"]] {
        let run = [&["run", "--workload", "bot"], user, &["--", "sh", "-c", look, "sh"], &points].concat();
        let output = daemon.command(&run).expect("a command").current_dir("/").output().expect("it runs");
        assert_eq!(said(&output), "looked\n", "{user:?}");
    }
    assert!(!daemon.cgroups().is_empty(), "the host keeps its own");
}

#[test]
fn only_root_gives_a_session_files_of_its_own() {
    let settings = "[control]\ngroup = \"nogroup\"\noperators = [\"user:nobody\"]\n";
    let start = |workload: &str| {
        let policy = SHOP_POLICY.replacen("autonomy =", &format!("{workload}\nautonomy ="), 1);
        Daemon::start_alone(&policy, settings).expect("a daemon")
    };
    let as_nobody = |daemon: &Daemon| {
        let command = daemon.command(&["run", "--workload", "bot", "--", "echo", "ran"]).expect("a command");
        let mut other = Command::new("setpriv");
        other.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]).arg(command.get_program());
        other.args(command.get_args()).current_dir("/").output().expect("it runs")
    };
    assert_eq!(said(&as_nobody(&start(""))), "ran\n");
    let refused = as_nobody(&start(PRIVATE));
    assert!(!refused.status.success() && text(&refused).contains("only root can arrange"), "{}", text(&refused));
}
