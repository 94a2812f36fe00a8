//! Every road out, tried from inside a real session, and watched where it would arrive: by listeners and a packet sniffer
//! in a network namespace of its own, by listeners on loopback, and by unix sockets. The attempt's own word counts only
//! where it says that the kernel let an effect happen.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixDatagram, UnixListener},
    },
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use portcullis_tests::{Daemon, Postgres, SHOP_POLICY};

const ESCAPE: &str = env!("CARGO_BIN_EXE_escape");
const MARKER: &str = "portcullis-escape-marker";
/// Addresses for documentation: RFC 5737, RFC 3849. Routed to the test's own namespace only.
const V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);

/// Watches in the other namespace: prints a line for each packet that matters. Arguments: marker, port, device.
const SNIFFER: &str = r"
import socket, sys
marker, port, device = sys.argv[1].encode(), int(sys.argv[2]), sys.argv[3]
v4, v6, group = bytes([192,0,2,2]), bytes.fromhex('20010db8000000000000000000000002'), bytes([239,77,77,77])
keep = []
for family, host in ((socket.AF_INET, '192.0.2.2'), (socket.AF_INET6, '2001:db8::2')):
    t = socket.socket(family); t.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    t.bind((host, port)); t.listen(64); keep.append(t)
    u = socket.socket(family, socket.SOCK_DGRAM); u.bind((host, port)); keep.append(u)
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.bind((device, 0))
print('ready', flush=True)
while True:
    p, where = s.recvfrom(65535)
    if where[2] == socket.PACKET_OUTGOING: continue
    kind, body = p[12:14], p[14:]
    hit = marker in p
    if kind == b'\x08\x00': hit |= body[16:20] in (v4, group) or body[9] == 2
    if kind == b'\x86\xdd': hit |= body[24:40] == v6 and not (body[6] == 58 and body[40] in range(133, 138))
    if hit: print('packet', flush=True)
";

/// The other namespace, the sniffer in it, and the listeners on loopback and on unix sockets.
struct Witness {
    sniffer: Child,
    folder: tempfile::TempDir,
    seen: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    namespace: String,
    near: String,
    port: u16,
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("ip");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Witness {
    fn new() -> Self {
        let id = std::process::id();
        let (namespace, near, far) = (format!("portcullis-{id}"), format!("esc{id}a"), format!("esc{id}b"));
        let port = UdpSocket::bind("127.0.0.1:0").and_then(|s| s.local_addr()).expect("a free port").port();
        ip(&format!("netns add {namespace}"));
        ip(&format!("link add {near} type veth peer name {far} netns {namespace}"));
        ip(&format!("address add 192.0.2.1/24 dev {near}"));
        ip(&format!("address add 2001:db8::1/64 dev {near} nodad"));
        ip(&format!("link set {near} up"));
        for command in
            ["link set lo up", "address add 192.0.2.2/24 dev FAR", "address add 2001:db8::2/64 dev FAR nodad"]
        {
            ip(&format!("netns exec {namespace} ip {}", command.replace("FAR", &far)));
        }
        ip(&format!("netns exec {namespace} ip link set {far} up"));
        let mut sniffer = Command::new("ip")
            .args(["netns", "exec", &namespace, "/usr/bin/python3", "-c", SNIFFER, MARKER, &port.to_string(), &far])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the sniffer");
        let mut lines = BufReader::new(sniffer.stdout.take().expect("piped")).lines();
        assert_eq!(lines.next().expect("a line").expect("text"), "ready");
        let (seen, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let count = Arc::clone(&seen);
        thread::spawn(move || {
            for _ in lines {
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        let folder = tempfile::Builder::new().prefix("portcullis-esc-").tempdir().expect("a folder");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("a mode");
        let witness = Self { sniffer, folder, seen, stop, namespace, near, port };
        witness.listen();
        witness
    }

    fn path(&self) -> String {
        self.folder.path().display().to_string()
    }

    /// Loopback and unix: whatever arrives with the marker counts.
    fn listen(&self) {
        for host in ["127.0.0.1", "::1"] {
            let tcp = TcpListener::bind((host, self.port)).expect("the port of the witness is free");
            self.watch(tcp, |tcp| tcp.set_nonblocking(true), |tcp| tcp.accept().map(|_| true));
            let udp = UdpSocket::bind((host, self.port)).expect("the port of the witness is free");
            let read = |udp: &UdpSocket| udp.recv_from(&mut [0; 256]).map(|_| true);
            self.watch(udp, |udp| udp.set_nonblocking(true), read);
        }
        use std::os::linux::net::SocketAddrExt;
        let address = |name: &str, is_abstract: bool| {
            let path = self.folder.path().join(name);
            if is_abstract {
                std::os::unix::net::SocketAddr::from_abstract_name(path.as_os_str().as_encoded_bytes())
            } else {
                std::os::unix::net::SocketAddr::from_pathname(&path)
            }
            .expect("an address")
        };
        for is_abstract in [false, true] {
            let stream = UnixListener::bind_addr(&address("stream", is_abstract)).expect("a socket");
            self.watch(stream, |s| s.set_nonblocking(true), |s| s.accept().map(|_| true));
            let datagrams = UnixDatagram::bind_addr(&address("dgram", is_abstract)).expect("a socket");
            self.watch(datagrams, |s| s.set_nonblocking(true), |s| s.recv(&mut [0; 256]).map(|_| true));
        }
        for entry in fs::read_dir(self.folder.path()).expect("a folder") {
            let path = entry.expect("an entry").path();
            fs::set_permissions(path, fs::Permissions::from_mode(0o777)).expect("a mode");
        }
    }

    fn watch<T: Send + 'static>(
        &self,
        socket: T,
        prepare: impl Fn(&T) -> std::io::Result<()>,
        arrived: impl Fn(&T) -> std::io::Result<bool> + Send + 'static,
    ) {
        prepare(&socket).expect("a socket that does not block");
        let (seen, stop) = (Arc::clone(&self.seen), Arc::clone(&self.stop));
        thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                if arrived(&socket).is_ok() {
                    seen.fetch_add(1, Ordering::SeqCst);
                } else {
                    thread::sleep(Duration::from_millis(2));
                }
            }
        });
    }

    /// Whether anything arrived since the last call. What is under way has time to come.
    fn reached(&self) -> bool {
        thread::sleep(Duration::from_millis(25));
        self.seen.swap(0, Ordering::SeqCst) > 0
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = self.sniffer.kill();
        let _ = self.sniffer.wait();
        let _ = Command::new("ip").args(["link", "delete", &self.near]).output();
        let _ = Command::new("ip").args(["netns", "delete", &self.namespace]).output();
    }
}

/// The program of attempts, wherever it runs.
struct Escape {
    child: Child,
    input: ChildStdin,
    lines: BufReader<ChildStdout>,
}

impl Escape {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the attempts");
        let input = child.stdin.take().expect("piped");
        let mut lines = BufReader::new(child.stdout.take().expect("piped"));
        let mut ready = String::new();
        lines.read_line(&mut ready).expect("a line");
        assert_eq!(ready, "ready\n");
        Self { child, input, lines }
    }

    /// Runs every attempt; returns which got through.
    fn run(&mut self, witness: &Witness, attempts: usize) -> BTreeSet<usize> {
        witness.reached();
        (0..attempts)
            .filter(|number| {
                writeln!(self.input, "{number}").expect("it listens");
                let mut answer = String::new();
                self.lines.read_line(&mut answer).expect("it answers");
                assert!(!answer.is_empty(), "the program ended at attempt {number}");
                witness.reached() || answer == "effect\n"
            })
            .collect()
    }
}

impl Drop for Escape {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the list names.
fn names(program: &Path) -> Vec<String> {
    let output = Command::new(program).arg("list").output().expect("the list");
    String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect()
}

#[test]
fn no_attempt_reaches_anything() {
    let server = Postgres::start().expect("a server");
    let daemon = Daemon::start(&server, SHOP_POLICY).expect("a daemon");
    let witness = Witness::new();
    // Where every user can run it.
    let program = witness.folder.path().join("escape");
    fs::copy(ESCAPE, &program).expect("a copy");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a mode");
    let names = names(&program);
    let mut outside = Command::new("setpriv")
        .args(["--reuid=nobody", "--regid=nogroup", "--clear-groups", "sleep", "600"])
        .spawn()
        .expect("a process outside");
    let log = daemon.log();
    let listening = log.split("listen=[\"127.0.0.1:").nth(1).and_then(|rest| rest.split('"').next());
    let arguments: Vec<String> = [
        V4.to_string(),
        V6.to_string(),
        witness.port.to_string(),
        witness.path(),
        witness.near.clone(),
        outside.id().to_string(),
        listening.expect("the daemon says where it listens").into(),
        daemon.path("run/control.sock").display().to_string(),
        MARKER.into(),
    ]
    .into();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let program = program.display().to_string();

    // Without us: that the attempts are real.
    let mut command = Command::new("setpriv");
    command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups", &program]).args(&words);
    let free = Escape::start(command).run(&witness, names.len());
    let mut command = Command::new(&program);
    command.args(&words);
    let free_root = Escape::start(command).run(&witness, names.len());

    let mut governed = Escape::start(daemon.governed(&program, &words).expect("a session"));
    let reached = governed.run(&witness, names.len());
    drop(governed);
    let root = ["run", "--workload", "bot", "--i-know-root-escapes", "--intent", "escape", "--", &program];
    let mut command = daemon.command(&root).expect("a session");
    command.args(&words);
    let as_root = Escape::start(command).run(&witness, names.len());
    outside.kill().expect("it runs");
    outside.wait().expect("it ends");

    let mut table = format!("{:<44} {:>10} {:>10} {:>10} {:>10}\n", "attempt", "free", "free root", "governed", "root");
    for (number, name) in names.iter().enumerate() {
        let cell = |set: &BTreeSet<usize>| if set.contains(&number) { "REACHED" } else { "-" };
        let cells = [cell(&free), cell(&free_root), cell(&reached), cell(&as_root)];
        table += &format!("{name:<44} {:>10} {:>10} {:>10} {:>10}\n", cells[0], cells[1], cells[2], cells[3]);
    }
    table += &format!("ungoverned: nobody {}, root {} of {} reach\n", free.len(), free_root.len(), names.len());
    table += &format!("host root, not promised: attempts {}, reached {}\n", names.len(), as_root.len());
    table += &format!("attempts {}, reached {}\n", names.len(), reached.len());
    // Not by the macro: what passes is seen, too.
    std::io::stdout().write_all(table.as_bytes()).expect("an output");
    assert!(names.len() >= 100 && free.len() >= 40 && free_root.len() >= 60, "the attempts are vacuous");
    let open: Vec<&String> = reached.iter().map(|number| &names[*number]).collect();
    assert!(open.is_empty(), "reached: {open:?}");
}
