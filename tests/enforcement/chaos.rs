//! The enforcer dies, hangs, is replaced or changes its mind in the middle of a thousand connections. Nothing reaches a
//! destination past it, nobody who takes its port is sent anything, and when it is back, so is service.
//!
//! What was reached is told by the destinations. Times are printed, not asserted: a loaded machine is slow.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use portcullis_tests::{Daemon, Postgres, SHOP_POLICY};
use socket2::{Domain, Socket, Type};

use crate::world::{Direct, PROBE};

/// Connections before anything happens, and in all.
const BEFORE: usize = 300;
const ALL: usize = 1000;
const DEADLINE: Duration = Duration::from_secs(20);

/// One connection of the client.
#[derive(Clone, Debug)]
struct Knock {
    began: u64,
    ended: u64,
    how: String,
}

/// A daemon, a client that does not cease to connect, and the places that it must not reach.
struct Chaos {
    server: Postgres,
    daemon: Daemon,
    direct: [Direct; 2],
    client: Child,
    knocks: Arc<Mutex<Vec<Knock>>>,
    reader: Option<JoinHandle<()>>,
}

impl Chaos {
    /// Of a running daemon; returns in the middle of the connections.
    fn begin(server: Postgres, daemon: Daemon) -> Self {
        let direct = [Direct::new("127.0.0.1"), Direct::new("::1")];
        // Where the session's user may enter.
        let probe = daemon.path("probe");
        fs::copy(PROBE, &probe).expect("a copy of the probe");
        let database = format!("127.0.0.1:{}", server.port);
        let action = ["act", "knock", &database, &direct[0].address, &direct[1].address];
        let mut client = daemon.governed(probe.to_str().expect("text"), &action).expect("a command");
        let mut client = client.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
        let knocks = Arc::new(Mutex::new(Vec::new()));
        let lines = BufReader::new(client.stdout.take().expect("piped")).lines();
        let reader = {
            let knocks = knocks.clone();
            thread::spawn(move || {
                for line in lines.map_while(Result::ok) {
                    lock(&knocks).push(Knock::parse(&line));
                }
            })
        };
        let chaos = Self { server, daemon, direct, client, knocks, reader: Some(reader) };
        chaos
            .wait("served before", |knocks| knocks.len() >= BEFORE && knocks.iter().any(|knock| knock.how == "served"));
        chaos
    }

    fn new() -> Self {
        let server = Postgres::start_with(&["log_connections=on"]).expect("a server");
        let daemon = Daemon::start(&server, SHOP_POLICY).expect("a daemon");
        Self::begin(server, daemon)
    }

    /// Waits until this holds of the connections so far.
    fn wait(&self, what: &str, holds: impl Fn(&[Knock]) -> bool) {
        let start = Instant::now();
        while !holds(&lock(&self.knocks)) {
            let last = lock(&self.knocks).iter().rev().take(8).cloned().collect::<Vec<_>>();
            assert!(start.elapsed() < DEADLINE, "not {what}: {last:?}\n{}", self.daemon.log());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for a connection that began later and went so; tells how many milliseconds later it ended.
    fn wait_for(&self, how: &str, since: u64) -> u64 {
        self.wait(how, |knocks| first(knocks, how, since).is_some());
        first(&lock(&self.knocks), how, since).map_or(0, |knock| knock.ended - since)
    }

    /// Every connection that began in this time was refused.
    fn all_refused(&self, from: u64, to: u64) {
        for knock in lock(&self.knocks).iter().filter(|knock| knock.began > from && knock.ended < to) {
            assert_eq!(knock.how, "refused", "{knock:?}, after {from}");
        }
    }

    /// The addresses of the daemon's listeners.
    fn listens_on(&self) -> Vec<SocketAddr> {
        let status = self.daemon.status().expect("well");
        let listen = status["listen"].as_array().expect("addresses");
        listen.iter().map(|address| address.as_str().and_then(|a| a.parse().ok()).expect("an address")).collect()
    }

    /// Ends the connections when there were enough, and looks at what came of them.
    fn end(mut self, what: &str) {
        self.wait("a thousand connections", |knocks| knocks.len() >= ALL);
        drop(self.client.stdin.take());
        assert!(self.client.wait().expect("it ends").success(), "{}", self.daemon.log());
        self.reader.take().map(JoinHandle::join).expect("once").expect("it reads");
        let mut counts = std::collections::BTreeMap::new();
        for knock in lock(&self.knocks).iter() {
            *counts.entry(knock.how.clone()).or_insert(0_usize) += 1;
        }
        println!("{what}: {counts:?}");
        let known = ["served", "closed", "refused", "cut", "silent", "told"];
        assert!(counts.keys().all(|how| known.contains(&how.as_str())), "{counts:?}");
        for direct in &self.direct {
            assert_eq!(direct.reached(), 0, "{} was reached directly", direct.address);
        }
        let log = self.server.log();
        assert!(log.contains("user=shop_agent"), "the server does not log who comes");
        assert!(!log.contains("user=agent"), "the client itself came to the server");
    }
}

impl Knock {
    fn parse(line: &str) -> Self {
        let mut words = line.splitn(3, ' ');
        let mut word = || words.next().expect("a word");
        Self { began: word().parse().expect("a time"), ended: word().parse().expect("a time"), how: word().to_owned() }
    }
}

fn first(knocks: &[Knock], how: &str, since: u64) -> Option<Knock> {
    knocks.iter().filter(|knock| knock.began > since && knock.how == how).min_by_key(|knock| knock.ended).cloned()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The clock of the client.
fn now() -> u64 {
    portcullis_tests::monotonic_ms()
}

fn signal(name: &str, pid: u32) {
    portcullis_tests::signal(name, pid.cast_signed()).expect("it is there");
}

/// Somebody who wants the enforcer's ports.
struct Thief {
    stop: Arc<AtomicBool>,
    work: JoinHandle<(usize, usize)>,
}

impl Thief {
    fn new(addresses: Vec<SocketAddr>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let work = thread::spawn(move || {
            let mut wanted = addresses;
            let mut taken: Vec<TcpListener> = Vec::new();
            let mut got = 0;
            while !stopped.load(Ordering::Relaxed) {
                wanted.retain(|address| match steal(*address) {
                    Ok(listener) => {
                        taken.push(listener);
                        false
                    }
                    Err(_) => true,
                });
                for (mut stream, _) in taken.iter().filter_map(|listener| listener.accept().ok()) {
                    got += 1;
                    let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
                    let mut bytes = [0; 64];
                    let n = stream.read(&mut bytes).unwrap_or(0);
                    eprintln!("the thief got {:?}", String::from_utf8_lossy(&bytes[..n]));
                }
                thread::sleep(Duration::from_millis(1));
            }
            (taken.len(), got)
        });
        Self { stop, work }
    }

    /// How many ports it got, and how many connections.
    fn end(self) -> (usize, usize) {
        self.stop.store(true, Ordering::Relaxed);
        self.work.join().expect("it ends")
    }
}

/// Takes a port with every option that helps.
fn steal(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(128)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// What all deaths have in common: `kill` ends or stops the daemon while its supervisor cannot start another.
fn dies(what: &str, kill: impl FnOnce(&Daemon) -> u64, revive: impl FnOnce(&Daemon)) {
    let chaos = Chaos::new();
    let thief = Thief::new(chaos.listens_on());
    let supervisor = chaos.daemon.supervisor().expect("it runs");
    signal("STOP", supervisor);
    let dead = kill(&chaos.daemon);
    let refused = chaos.wait_for("refused", dead);
    let from = now();
    thread::sleep(Duration::from_millis(300));
    let to = now();
    chaos.all_refused(from, to);
    let back = now();
    revive(&chaos.daemon);
    signal("CONT", supervisor);
    let served = chaos.wait_for("served", back);
    assert_eq!(thief.end(), (0, 0), "ports and connections that a thief got");
    chaos.end(&format!("{what}: refused after {refused} ms, served {served} ms after it was let start"));
}

#[test]
fn a_killed_daemon_refuses_and_the_next_serves() {
    let kill = |daemon: &Daemon| {
        daemon.signal("KILL").expect("killed");
        now()
    };
    dies("kill -9", kill, |_| {});
}

#[test]
fn a_stopped_daemon_refuses_and_serves_when_it_goes_on() {
    let stop = |daemon: &Daemon| {
        daemon.signal("STOP").expect("stopped");
        now()
    };
    dies("SIGSTOP", stop, |daemon| daemon.signal("CONT").expect("it goes on"));
}

#[test]
fn a_daemon_out_of_memory_refuses_and_the_next_serves() {
    let mut limit = None;
    let exhaust = |daemon: &Daemon| {
        let pid = daemon.pid().expect("it runs");
        let limit = limit.insert(MemoryLimit::of(pid));
        let start = Instant::now();
        while !is_dead(pid) {
            assert!(start.elapsed() < DEADLINE, "the kernel does not kill it: {}", limit.tell());
            thread::sleep(Duration::from_millis(5));
        }
        assert!(limit.killed() >= 1, "it died of something else: {}", limit.tell());
        now()
    };
    dies("out of memory", exhaust, |_| {});
}

/// Ended, and for its parent to see.
fn is_dead(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with('Z') || rest.starts_with('X'))
}

/// A memory cgroup with no room in it, around a process.
struct MemoryLimit {
    cgroup: PathBuf,
    is_own: bool,
}

impl MemoryLimit {
    fn of(pid: u32) -> Self {
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let write = |path: PathBuf, text: String| fs::write(&path, text).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        if v1.join("cgroup.procs").exists() {
            let cgroup = v1.join(format!("portcullis-test-{pid}"));
            fs::create_dir(&cgroup).expect("a memory cgroup");
            // What it has stays charged where it was: the next it asks for is too much.
            write(cgroup.join("memory.limit_in_bytes"), (256 << 10).to_string());
            write(cgroup.join("cgroup.procs"), pid.to_string());
            return Self { cgroup, is_own: true };
        }
        // The cgroup2 tree: the daemon's own cgroup, of which it is by far the largest process.
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("it runs");
        let cgroup = Path::new("/sys/fs/cgroup").join(cgroup.trim_end().rsplit(":/").next().expect("a path"));
        write(cgroup.parent().expect("the root at least").join("cgroup.subtree_control"), "+memory".into());
        let now = fs::read_to_string(cgroup.join("memory.current")).expect("its memory");
        let now: u64 = now.trim().parse().expect("a number");
        write(cgroup.join("memory.max"), (now / 2).to_string());
        Self { cgroup, is_own: false }
    }

    fn tell(&self) -> String {
        let v1 = fs::read_to_string(self.cgroup.join("memory.oom_control"));
        v1.or_else(|_| fs::read_to_string(self.cgroup.join("memory.events"))).unwrap_or_default()
    }

    /// How many processes the kernel killed in it.
    fn killed(&self) -> usize {
        let tell = self.tell();
        let count = tell.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("no count of kills in {tell:?}"))
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        if self.is_own {
            for _ in 0..100 {
                if fs::remove_dir(&self.cgroup).is_ok() {
                    return;
                }
                thread::sleep(Duration::from_millis(20));
            }
        } else {
            let _ = fs::write(self.cgroup.join("memory.max"), "max");
        }
    }
}

#[test]
fn when_all_that_held_the_port_is_killed_whoever_takes_it_is_sent_nothing() {
    let mut chaos = Chaos::new();
    let thief = Thief::new(chaos.listens_on());
    chaos.daemon.kill().expect("killed");
    let dead = now();
    // At once: nothing waits for a heartbeat here.
    let refused = chaos.wait_for("refused", dead);
    thread::sleep(Duration::from_millis(500));
    chaos.all_refused(dead, now());
    let back = now();
    chaos.daemon.launch().expect("it starts again");
    let served = chaos.wait_for("served", back);
    let (ports, got) = thief.end();
    assert_eq!((ports, got), (2, 0), "ports and connections that a thief got");
    chaos.end(&format!("all killed: refused after {refused} ms, served {served} ms after the start"));
}

#[test]
fn an_upgrade_refuses_or_serves() {
    let server = Postgres::start_with(&["log_connections=on"]).expect("a server");
    let mut daemon = Daemon::start(&server, SHOP_POLICY).expect("a daemon");
    daemon.kill().expect("killed");
    let program = daemon.path("portcullis");
    let install = || {
        let new = program.with_extension("new");
        fs::copy(portcullis_tests::binary().expect("a binary"), &new).expect("a copy");
        fs::rename(&new, &program).expect("put in place");
    };
    let way = format!("exec '{}' \"$@\"", program.display());
    let way = ["/bin/sh", "-c", way.as_str()];
    install();
    daemon.launch_by(&way).expect("it starts");
    let mut chaos = Chaos::begin(server, daemon);
    let exe = |daemon: &Daemon| fs::read_link(format!("/proc/{}/exe", daemon.pid().expect("it runs"))).expect("a link");

    // In place: the next daemon that the supervisor starts is the new program.
    let thief = Thief::new(chaos.listens_on());
    let before = chaos.daemon.pid().expect("it runs");
    install();
    assert_ne!(exe(&chaos.daemon), program, "the old program runs");
    chaos.daemon.signal("KILL").expect("killed");
    let back = now();
    chaos.daemon.recovered(before).expect("it comes back");
    assert_eq!(exe(&chaos.daemon), program);
    let served = chaos.wait_for("served", back);
    assert_eq!(thief.end(), (0, 0), "ports and connections that a thief got");

    // Supervisor and all.
    let thief = Thief::new(chaos.listens_on());
    install();
    chaos.daemon.stop().expect("it ends");
    let stopped = now();
    chaos.wait_for("refused", stopped);
    chaos.all_refused(stopped, now());
    let back = now();
    chaos.daemon.launch_by(&way).expect("it starts");
    let whole = chaos.wait_for("served", back);
    let (_, got) = thief.end();
    assert_eq!(got, 0, "connections that a thief got");
    chaos.end(&format!("upgrade: in place served after {served} ms, stopped and started {whole} ms after the start"));
}

#[test]
fn new_policies_apply_to_the_next_connection() {
    let chaos = Chaos::new();
    let file = chaos.daemon.path("policies/bot.toml");
    let before = fs::read_to_string(&file).expect("the policy");
    let elsewhere = before.replace(&format!("127.0.0.1:{}", chaos.server.port), "192.0.2.1:5432");
    assert_ne!(before, elsewhere);
    for _ in 0..2 {
        fs::write(&file, &elsewhere).expect("written");
        chaos.daemon.ok(&["reload"]).expect("reloaded");
        let from = now();
        thread::sleep(Duration::from_millis(300));
        for knock in lock(&chaos.knocks).iter().filter(|knock| knock.began > from) {
            assert_ne!(knock.how, "served", "the policy has no such address any more");
        }
        fs::write(&file, &before).expect("written");
        chaos.daemon.ok(&["reload"]).expect("reloaded");
        chaos.wait_for("served", now());
    }
    chaos.end("policies reloaded");
}
