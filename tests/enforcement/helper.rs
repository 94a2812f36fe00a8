//! The privileged helper, spoken to by a daemon that somebody took over, and without one.

use std::{
    collections::BTreeSet,
    fs,
    io::Read,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::MetadataExt, net::UnixListener, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, sendmsg, setsockopt, socketpair, sockopt,
};
use portcullis_tests::{Daemon, Postgres, SHOP_POLICY, binary};
use serde_json::{Value, json};

use crate::world::{cgroup_root, eventually};

/// As `identity::new_session_id` makes them.
const SESSIONS: [&str; 3] = ["00000000000000000000000001", "00000000000000000000000002", "00000000000000000000000003"];

/// A helper, and whoever took the daemon over.
struct Taken {
    process: Child,
    socket: OwnedFd,
    dir: tempfile::TempDir,
    root: PathBuf,
    slice: String,
    control: UnixListener,
}

impl Taken {
    fn new(name: &str) -> Self {
        let mut command = Command::new(binary().expect("a binary"));
        command.arg("privileged-helper").stdout(Stdio::null());
        Self::started_by(name, command)
    }

    fn started_by(name: &str, mut command: Command) -> Self {
        let (socket, its) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).expect("a pair");
        // A test that waits in vain fails.
        let patience = nix::sys::time::TimeVal::new(60, 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &patience).expect("a time-out");
        let dir = tempfile::tempdir().expect("a folder");
        let slice = format!("portcullis-h{}-{name}.slice", std::process::id());
        let policy = SHOP_POLICY
            .replace("{slice}", &slice)
            .replace("{port}", "9")
            .replace("{ca}", "/dev/null")
            .replace("{password}", "/dev/null");
        fs::create_dir(dir.path().join("policies")).expect("a folder");
        fs::write(dir.path().join("policies/bot.toml"), policy).expect("a policy");
        let control = UnixListener::bind(dir.path().join("control")).expect("a socket");
        let process = command.stdin(Stdio::from(its)).process_group(0).spawn().expect("it starts");
        drop(command);
        let taken = Self { process, socket, dir, root: cgroup_root(), slice, control };
        let setup = json!({
            "cgroup_root": taken.root, "policy_dir": taken.dir.path().join("policies"),
            "control": taken.dir.path().join("control"), "credentials": null, "addresses": ["127.0.0.1:9"], "sessions": 3,
            "filter": "off", "format": "text",
        });
        let ready = taken.ask(&setup);
        // Which manager of services it found is the host's affair.
        assert!(ready["ready"].is_object(), "{ready}");
        taken
    }

    fn send(&self, message: &[u8], with: &[&dyn AsRawFd]) {
        let numbers: Vec<i32> = with.iter().map(|fd| fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&numbers)];
        let rights = if numbers.is_empty() { &[][..] } else { &rights[..] };
        let parts = [std::io::IoSlice::new(message)];
        sendmsg::<()>(self.socket.as_raw_fd(), &parts, rights, MsgFlags::MSG_NOSIGNAL, None).expect("sent");
    }

    /// The next answer; `None` if the helper ended.
    fn answer(&self) -> Option<Value> {
        let mut answer = vec![0; 64 << 10];
        match recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty()) {
            Ok(0) | Err(nix::errno::Errno::ECONNRESET) => None,
            received => Some(serde_json::from_slice(&answer[..received.expect("an answer in time")]).expect("JSON")),
        }
    }

    fn ask(&self, request: &Value) -> Value {
        self.ask_with(request, &[])
    }

    fn ask_with(&self, request: &Value, with: &[&dyn AsRawFd]) -> Value {
        self.send(request.to_string().as_bytes(), with);
        self.answer().expect("the helper goes on")
    }

    fn refuses(&self, request: &Value, with: &[&dyn AsRawFd], why: &str) {
        let answer = self.ask_with(request, with);
        let message = answer["failed"]["message"].as_str().unwrap_or_default();
        assert!(message.contains(why), "{request}: {answer}");
    }

    fn govern(&self) {
        let governed = format!("{}/bot", self.slice);
        assert_eq!(self.ask(&json!({"govern": {}})), json!({"governed": {"cgroups": [governed]}}));
    }

    fn make(&self, session: &str) -> PathBuf {
        let made = self.ask(&json!({"make": {"workload": "bot", "session": session}}));
        let cgroup = PathBuf::from(made["made"]["cgroup"].as_str().expect("a cgroup"));
        assert_eq!(cgroup, Path::new(&self.slice).join("bot").join(session));
        assert_eq!(made["made"]["id"], json!(self.id(&cgroup)));
        cgroup
    }

    fn id(&self, cgroup: &Path) -> u64 {
        fs::metadata(self.root.join(cgroup)).expect("a cgroup").ino()
    }

    /// A process that connects, and the daemon's end of its connection.
    fn launcher(&self) -> (Asleep, OwnedFd) {
        let script = "import socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\nsys.stdin.read()";
        let mut command = Command::new("python3");
        command.args(["-c", script]).arg(self.dir.path().join("control"));
        let process = Asleep::start(command);
        (process, self.control.accept().expect("a connection").0.into())
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let slice = self.root.join(&self.slice);
        for session in SESSIONS {
            let _ = fs::write(slice.join("bot").join(session).join("cgroup.kill"), "1");
        }
        for path in
            SESSIONS.map(|session| slice.join("bot").join(session)).into_iter().chain([slice.join("bot"), slice])
        {
            let _ = eventually(|| !path.exists() || fs::remove_dir(&path).is_ok());
        }
    }
}

/// A process that waits for its end.
struct Asleep(Child);

impl Asleep {
    fn new() -> Self {
        Self::start(Command::new("cat"))
    }

    fn start(mut command: Command) -> Self {
        Self(command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("a process"))
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn cgroup(&self) -> String {
        let text = fs::read_to_string(format!("/proc/{}/cgroup", self.pid())).expect("it lives");
        text.lines().find_map(|line| line.strip_prefix("0::/")).expect("a cgroup").to_owned()
    }

    fn lives(&mut self) -> bool {
        self.0.try_wait().expect("it can be told").is_none()
    }
}

impl Drop for Asleep {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn nothing_leads_out_of_the_governed_cgroups() {
    let taken = Taken::new("out");
    let one = format!("{}/bot/{}", taken.slice, SESSIONS[0]);
    // Before it has read the policies, nothing is governed.
    taken.refuses(&json!({"make": {"workload": "bot", "session": SESSIONS[0]}}), &[], "no policy");
    taken.refuses(&json!({"kill": {"cgroup": one, "id": 1}}), &[], "not below a governed");
    taken.govern();
    taken.make(SESSIONS[0]);
    let (id, parent) = (taken.id(Path::new(&one)), format!("{}/bot", taken.slice));
    let victim = Asleep::new();
    let beside = taken.root.join(&taken.slice).join("beside");
    fs::create_dir(&beside).expect("a cgroup");
    fs::write(beside.join("cgroup.procs"), victim.pid().to_string()).expect("moved");
    let (slice, mut victim) = (taken.slice.as_str(), victim);
    for out in [
        format!("{parent}/../beside"),
        format!("{one}/../../beside"),
        format!("{slice}/beside"),
        slice.to_owned(),
        parent.clone(),
        format!("{parent}/"),
        format!("{parent}/."),
        format!("{parent}//{}", SESSIONS[0]),
        format!("/{one}"),
        format!("{}/{slice}/beside", taken.root.display()),
        format!("{parent}-other/x"),
        format!("{parent}/\0"),
        ".".to_owned(),
        String::new(),
    ] {
        let id = fs::metadata(taken.root.join(out.trim_start_matches('/').replace('\0', "0"))).map_or(id, |m| m.ino());
        for what in ["kill", "freeze"] {
            taken.refuses(&json!({what: {"cgroup": out, "id": id}}), &[], "");
        }
        taken.refuses(&json!({"elsewhere": {"cgroup": out}}), &[], "");
        taken.refuses(&json!({"remove": {"cgroup": out}}), &[], "no cgroup of a session");
    }
    assert!(victim.lives());
    drop(victim);
    assert!(eventually(|| fs::remove_dir(&beside).is_ok()), "it was not removed by anybody else");

    // Another cgroup has come to the place of the one that was meant.
    taken.refuses(&json!({"kill": {"cgroup": one, "id": id + 1}}), &[], "another cgroup");
    // Names that are no session's, workloads that no policy is for, and what is there already.
    for session in ["", "x", "../beside", "0000000000000000000000000/", SESSIONS[0]] {
        taken.refuses(&json!({"make": {"workload": "bot", "session": session}}), &[], "no name of a new session");
    }
    taken.refuses(&json!({"make": {"workload": "other", "session": SESSIONS[1]}}), &[], "no policy");
    // So many as the settings allow.
    taken.make(SESSIONS[1]);
    taken.make(SESSIONS[2]);
    let more = "00000000000000000000000004";
    taken.refuses(&json!({"make": {"workload": "bot", "session": more}}), &[], "as many cgroups");
    // What it made goes again.
    for session in SESSIONS {
        let cgroup = format!("{parent}/{session}");
        assert_eq!(taken.ask(&json!({"remove": {"cgroup": cgroup}})), json!({"removed": {"gone": true}}));
        assert!(!taken.root.join(cgroup).exists());
    }
}

#[test]
fn a_process_is_moved_that_asked_for_it_and_once() {
    let taken = Taken::new("move");
    taken.govern();
    let one = taken.make(SESSIONS[0]);
    let two = taken.make(SESSIONS[1]);
    let enter = |session: &str| json!({"enter": {"session": session}});
    let (launcher, connection) = taken.launcher();
    let before = launcher.cgroup();

    // By number nobody is moved: there is no place for one.
    taken.refuses(&enter(SESSIONS[0]), &[], "0 descriptors");
    taken.refuses(&enter(SESSIONS[0]), &[&connection, &connection], "2 descriptors");
    // Not whoever another socket of the daemon's leads to: a pair's other end, a service that it connected to, a pidfd.
    let other = Asleep::new();
    let elsewhere = UnixListener::bind(taken.dir.path().join("other")).expect("a socket");
    let service = std::os::unix::net::UnixStream::connect(taken.dir.path().join("other")).expect("connected");
    let (accepted, _) = elsewhere.accept().expect("accepted");
    let mine = std::os::unix::net::UnixStream::connect(taken.dir.path().join("control")).expect("connected");
    let (pair, _its) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let own = taken.control.accept().expect("my own").0;
    let file = fs::File::open(format!("/proc/{}", other.pid())).expect("a folder");
    for wrong in [&service as &dyn AsRawFd, &accepted, &mine, &pair, &taken.control, &file, &taken.socket] {
        taken.refuses(&enter(SESSIONS[0]), &[wrong], "no connection of a launcher");
    }
    // This process is the helper's parent, as a daemon is.
    taken.refuses(&enter(SESSIONS[0]), &[&own], "not a launcher's");
    // One that is gone.
    let (gone, closed) = taken.launcher();
    drop(gone);
    taken.refuses(&enter(SESSIONS[0]), &[&closed], "is closed");
    // Into what the helper did not make.
    taken.refuses(&enter(SESSIONS[2]), &[&connection], "no cgroup was made");
    assert_eq!(launcher.cgroup(), before);

    assert_eq!(taken.ask_with(&enter(SESSIONS[0]), &[&connection]), json!({"done": {}}));
    assert_eq!(Path::new(&launcher.cgroup()), one);
    // Neither a second one in, nor the first one on.
    let (second, another) = taken.launcher();
    taken.refuses(&enter(SESSIONS[0]), &[&another], "was moved into this session before");
    taken.refuses(&enter(SESSIONS[1]), &[&connection], "governed already");
    assert_eq!(second.cgroup(), before);
    assert_eq!(fs::read_to_string(taken.root.join(two).join("cgroup.procs")).expect("its processes"), "");

    // Which program: of what is governed, and of no one else.
    let program = |pid: u32| taken.ask(&json!({"executable": {"pid": pid}}))["executable"]["path"].clone();
    assert!(program(launcher.pid()).as_str().is_some_and(|path| path.contains("python")));
    for pid in [second.pid(), std::process::id(), 1, 0, u32::MAX] {
        assert_eq!(program(pid), Value::Null, "{pid}");
    }
    // Files that policies name as credentials, and no other, by whatever name.
    assert_eq!(taken.ask(&json!({"credential": {"path": "/dev/null"}})), json!({"opened": {}}));
    for path in ["/etc/shadow", "/etc/passwd", "null", "", "/dev/../etc/shadow", "/dev/null/../../etc/shadow"] {
        taken.refuses(&json!({"credential": {"path": path}}), &[], "as a credential");
    }
    // A namespace that no process of the session is in is not entered.
    let home = fs::metadata("/proc/self/ns/net").expect("a namespace");
    for namespace in [json!([home.dev(), home.ino()]), json!([0, 1])] {
        let listen = json!({"listen": {"cgroup": one, "namespace": namespace}});
        taken.refuses(&listen, &[], "no process of the session");
    }
    let mut launcher = launcher;
    let kill = json!({"kill": {"cgroup": one, "id": taken.id(&one)}});
    assert_eq!(taken.ask(&kill), json!({"done": {}}));
    assert!(eventually(|| !launcher.lives()));
}

#[test]
fn what_is_not_understood_ends_it() {
    let padded = json!({"remove": {"cgroup": "a".repeat(70_000)}}).to_string();
    let with_number = json!({"kill": {"cgroup": "a", "id": 1, "pid": 1}}).to_string();
    let unknown = json!({"run": {"program": "/bin/sh"}}).to_string();
    let setup = json!({"cgroup_root": "/", "policy_dir": "/"}).to_string();
    for (n, message) in ["{", "\"govern\"x", &unknown, &setup, &with_number, &padded].into_iter().enumerate() {
        let mut taken = Taken::new(&format!("end{n}"));
        taken.send(message.as_bytes(), &[]);
        assert_eq!(taken.answer(), None, "{message:.40}");
        let status = taken.process.wait().expect("it ends");
        assert!(!status.success(), "{message:.40}");
    }
    // More descriptors than any request has.
    let mut taken = Taken::new("many");
    let file = fs::File::open("/dev/null").expect("a file");
    taken.send(json!({"govern": {}}).to_string().as_bytes(), &[&file as &dyn AsRawFd; 5]);
    assert_eq!(taken.answer(), None);
    assert!(!taken.process.wait().expect("it ends").success());
    // A daemon that ends is the usual end.
    let mut taken = Taken::new("closed");
    let closed = std::mem::replace(&mut taken.socket, fs::File::open("/dev/null").expect("a file").into());
    drop(closed);
    assert!(taken.process.wait().expect("it ends").success());
}

#[test]
fn it_closes_what_was_left_open_for_it() {
    let (ours, left_open) = std::os::unix::net::UnixStream::pair().expect("a pair");
    ours.set_read_timeout(Some(Duration::from_secs(60))).expect("a time-out");
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" privileged-helper 9<&1 >/dev/null"]).arg(binary().expect("a binary"));
    command.stdout(OwnedFd::from(left_open));
    let mut taken = Taken::started_by("open", command);
    assert_eq!((&ours).read(&mut [0]).expect("closed by the helper too"), 0);
    assert!(taken.process.try_wait().expect("a process").is_none(), "it lives");
}

#[test]
fn it_keeps_few_powers() {
    let taken = Taken::new("powers");
    let status = fs::read_to_string(format!("/proc/{}/status", taken.process.id())).expect("it lives");
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).expect(name).trim().to_owned();
    // SYS_NICE, SYS_ADMIN, SYS_PTRACE, NET_BIND_SERVICE, DAC_OVERRIDE.
    let kept = (1_u64 << 23) | (1 << 21) | (1 << 19) | (1 << 10) | (1 << 1);
    for set in ["CapEff:", "CapPrm:"] {
        assert_eq!(u64::from_str_radix(&field(set), 16).expect("a set"), kept, "{set}");
    }
    assert_eq!((field("NoNewPrivs:"), field("Seccomp:"), field("Threads:")), ("1".into(), "2".into(), "1".into()));
    // No listener, no connection: one socket, which is that to the daemon, and one to systemd where that runs. Where it
    // logs to is the host's affair.
    let descriptors = fs::read_dir(format!("/proc/{}/fd", taken.process.id())).expect("its descriptors");
    let descriptors = descriptors.flatten().filter(|fd| fd.file_name() != "2");
    let targets = descriptors.filter_map(|fd| fs::read_link(fd.path()).ok());
    let sockets: BTreeSet<_> = targets.filter(|target| target.to_string_lossy().starts_with("socket:")).collect();
    let systemd = Path::new("/run/systemd/system").is_dir();
    assert_eq!(sockets.len(), 1 + usize::from(systemd), "{sockets:?}");
}

#[test]
fn without_its_helper_a_daemon_starts_again_and_nothing_opens_meanwhile() {
    let server = Postgres::start().expect("a server");
    let mut daemon = Daemon::start(&server, SHOP_POLICY).expect("a daemon");
    let database = format!("host=127.0.0.1 port={} dbname=shop user=agent", server.port);
    let script = format!("while read line; do psql -X -A -t '{database}' -c 'SELECT 41 + 1' 2>&1 | head -1; done");
    let mut run = daemon.governed("sh", &["-c", &script]).expect("a command");
    let mut run = run.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
    let mut input = run.stdin.take().expect("piped");
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(run.stdout.take().expect("piped")));
    let mut ask = || {
        std::io::Write::write_all(&mut input, b"again\n").expect("it reads");
        lines.next().expect("a line").expect("text")
    };
    assert_eq!(ask(), "42", "{}", daemon.log());

    // One that is killed takes the daemon with it, more than once and early.
    for _ in 0..2 {
        let before = daemon.pid().expect("it runs");
        let helper = helper_of(before);
        kill("KILL", helper);
        daemon.recovered(before).expect("it comes back");
        assert!(eventually(|| ask() == "42"), "{}", daemon.log());
    }
    // The other way round: no helper outlives its daemon.
    let before = daemon.pid().expect("it runs");
    let helper = helper_of(before);
    kill("KILL", before);
    daemon.recovered(before).expect("it comes back");
    assert!(eventually(|| !is_running(helper)), "a helper outlives its daemon");
    assert!(eventually(|| ask() == "42"), "{}", daemon.log());
    // While it hangs nothing is opened.
    let helper = helper_of(daemon.pid().expect("it runs"));
    kill("STOP", helper);
    let mut late = daemon.governed("echo", &["reached"]).expect("a command");
    let mut late = late.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    std::thread::sleep(Duration::from_millis(500));
    assert!(late.try_wait().expect("it can be told").is_none(), "a session was opened without the helper");
    kill("CONT", helper);
    let mut said = String::new();
    late.stdout.take().expect("piped").read_to_string(&mut said).expect("text");
    assert!(late.wait().expect("it ends").success() && said == "reached\n", "{said}");
    drop((input, lines));
    assert!(run.wait().expect("it ends").success());
}

/// The helper of a daemon: its only child.
fn helper_of(daemon: u32) -> u32 {
    let all = || -> Vec<u32> {
        let tasks = fs::read_dir(format!("/proc/{daemon}/task")).into_iter().flatten().flatten();
        let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
        lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
    };
    let found = all();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0]
}

fn kill(signal: &str, pid: u32) {
    portcullis_tests::signal(signal, pid.cast_signed()).expect("it is there");
}

fn is_running(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
}
