//! Names over UDP: questions come to the enforcer with whose they are, answers to the socket that asked, and nothing else
//! goes anywhere by UDP.

use std::{
    io::{BufRead, BufReader, Write},
    net::UdpSocket,
    process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio},
};

use portcullis::record::EventBody;
use portcullis_tests::{Daemon, Postgres, SHOP_POLICY};

use crate::world::{ECONNREFUSED, EPERM, Namespace, World, eventually};

const SERVERS: [&str; 3] = ["192.0.2.53:53", "[2001:db8::53]:53", "[::ffff:192.0.2.53]:53"];
const HOW: [&str; 2] = ["connected", "unconnected"];
/// Length of most questions here.
const LENGTH: &str = "40";

/// A client that does as it is told.
struct Client {
    process: Child,
    input: ChildStdin,
    lines: BufReader<ChildStdout>,
}

impl Client {
    fn start(mut command: Command) -> Self {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the probe");
        let (input, lines) = (process.stdin.take().expect("piped"), process.stdout.take().expect("piped"));
        Self { process, input, lines: BufReader::new(lines) }
    }

    fn new(world: &World, cgroup: &str, how: &str, id: u16, server: &str) -> Self {
        let mut client = Self::start(world.command(cgroup, &["ask", how, &id.to_string(), LENGTH, server]));
        if how == "connected" {
            assert_eq!(client.line(), format!("peer {server}"), "getpeername");
        }
        client
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    }

    fn tell(&mut self, line: &str) -> String {
        writeln!(self.input, "{line}").expect("it listens");
        self.line()
    }

    fn ask(&mut self) -> String {
        self.tell("ask")
    }

    /// What came back.
    fn answer(&mut self) -> String {
        self.tell("listen")
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// One that answers.
fn resolving() -> World {
    let mut world = World::new();
    assert_eq!(world.tell("resolve"), "ok");
    world.allow("two");
    world
}

/// Questions since the last time, each as words: asked, cgroup, client, length.
fn questions(world: &mut World) -> Vec<Vec<String>> {
    let all = world.tell("questions");
    all.split(';').filter(|s| !s.is_empty()).map(|s| s.split(' ').map(str::to_owned).collect()).collect()
}

#[test]
fn a_question_is_told_with_its_session_and_the_answer_comes_from_whom_was_asked() {
    let mut world = resolving();
    let cgroup = world.id("agents/one").to_string();
    let mut number = 0;
    for server in SERVERS {
        for how in HOW {
            let mut client = Client::new(&world, "agents/one", how, 7, server);
            assert_eq!(client.ask(), "sent", "{how} {server}");
            let told = questions(&mut world);
            let [question] = &told[..] else { panic!("{how} {server}: {told:?}") };
            assert_eq!([&question[0], &question[1], &question[3]], [server, &cgroup, LENGTH]);
            assert_eq!(world.tell(&format!("answer {number} {number}")), "ok");
            assert_eq!(client.answer(), format!("{LENGTH} from {server}"), "{how}");
            // It was for one answer.
            assert_eq!(client.answer(), "nothing");
            number += 1;
        }
    }
    world.assert_well();
}

#[test]
fn an_answer_arrives_at_the_socket_that_asked_and_at_no_other() {
    let mut world = resolving();
    for (round, server) in SERVERS.iter().enumerate() {
        let first = round * 3;
        // The same id, as whoever means to be sent another's answer would have it.
        let mut clients = ["agents/one", "agents/two", "agents/one"]
            .map(|cgroup| Client::new(&world, cgroup, "unconnected", 7, server));
        for client in &mut clients {
            assert_eq!(client.ask(), "sent");
        }
        assert_eq!(questions(&mut world).len(), 3);
        // As if its port were another's by now, of another session or of the same.
        assert_eq!(world.tell(&format!("answer {} {first}", first + 1)), "ok");
        assert_eq!(world.tell(&format!("answer {} {first}", first + 2)), "ok");
        for client in &mut clients {
            assert_eq!(client.answer(), "nothing", "{server}");
        }
        assert!(world.tell("refused").contains("ingress="));
        for (number, client) in clients.iter_mut().enumerate() {
            let number = first + number;
            assert_eq!(world.tell(&format!("answer {number} {number}")), "ok");
            assert_eq!(client.answer(), format!("{LENGTH} from {server}"));
        }
    }
}

#[test]
fn what_is_no_question_to_a_name_server_goes_nowhere() {
    let mut world = resolving();
    let servers: Vec<UdpSocket> =
        ["127.0.0.1:0", "[::1]:0"].iter().map(|any| UdpSocket::bind(any).expect("a port")).collect();
    for server in &servers {
        server.set_nonblocking(true).expect("a socket");
        let address = server.local_addr().expect("bound").to_string();
        let connect = world.act("agents/one", &["ask", "connected", "7", LENGTH, &address]);
        assert_eq!(connect, ECONNREFUSED, "{address}");
        let mut client = Client::new(&world, "agents/one", "unconnected", 7, &address);
        assert_eq!(client.ask(), EPERM, "{address}");
    }
    // The enforcer's own port is no name server's.
    for address in [format!("127.0.0.1:{}", world.enforcer().port4), format!("[::1]:{}", world.enforcer().port6)] {
        assert_eq!(world.act("agents/one", &["ask", "connected", "7", LENGTH, &address]), ECONNREFUSED);
    }
    // Shorter than a header, longer than any question.
    for (length, how) in ["11", "513", "1500", "60000"].iter().flat_map(|length| HOW.map(|how| (*length, how))) {
        let command = world.command("agents/one", &["ask", how, "7", length, SERVERS[0]]);
        let mut client = Client::start(command);
        if how == "connected" {
            client.line();
        }
        assert_eq!(client.ask(), EPERM, "{how} {length}");
    }
    assert_eq!(questions(&mut world), Vec::<Vec<String>>::new());
    assert!(servers.iter().all(|server| server.recv(&mut [0; 8]).is_err()), "it was reached");
    let told = world.tell("refusals");
    for words in ["not-tcp ", "datagram ", "egress ", "by UDP: only name servers are asked by it, at port 53"] {
        assert!(told.contains(words), "{words}: {told}");
    }
    // Nor does anybody who is not governed ask.
    let outside = UdpSocket::bind("127.0.0.1:0").expect("a port");
    outside.send_to(&[0; 40], ("127.0.0.1", world.enforcer().port4)).expect("sent");
    assert_eq!(questions(&mut world), Vec::<Vec<String>>::new());
}

#[test]
fn no_port_can_be_named_and_no_other_kind_of_datagram_is_sent() {
    let world = resolving();
    let made = world.act("agents/one", &["sockets"]);
    let internet: Vec<_> = made.split(' ').filter(|s| s.starts_with("2/") || s.starts_with("10/")).collect();
    assert_eq!(internet, ["2/1/0", "2/1/6", "2/2/0", "2/2/17", "10/1/0", "10/1/6", "10/2/0", "10/2/17"]);
    let script = r"
import errno, socket, struct
def refused(what, *numbers):
    try: what()
    except OSError as error: assert error.errno in numbers, error
    else: raise SystemExit('not refused')
for family, here in ((socket.AF_INET, '127.0.0.1'), (socket.AF_INET6, '::1')):
    udp = lambda: socket.socket(family, socket.SOCK_DGRAM)
    for port in (53, 7777): refused(lambda: udp().bind((here, port)), errno.EPERM)
    # Corked, cut by the kernel, disguised, joined, tied to a device: by options and in messages.
    for level, name, value in ((17, 1, 1), (17, 103, 40), (17, 100, 1), (1, 25, b'lo\0'), (0, 4, b'\1\1\1\0'),
                               (0, 35, struct.pack('4s4s', b'\xef\1\1\1', b'\x7f\0\0\1')), (41, 57, bytes(24))):
        refused(lambda: udp().setsockopt(level, name, value), errno.EPERM)
    # Two that mean each other.
    a, b = udp(), udp()
    b.bind((here, 0)); b.settimeout(0.3)
    refused(lambda: a.sendto(b'x' * 40, b.getsockname()), errno.EPERM)
    # A message that names another source or device, or a way there, does not get to the enforcer either.
    name = ('192.0.2.53' if family == socket.AF_INET else '2001:db8::53', 53)
    for level, kind, data in ((0, 8, struct.pack('I4s4s', 0, bytes([127, 0, 0, 1]), bytes(4))),):
        if family == socket.AF_INET: assert udp().sendmsg([b'q' * 40], [(level, kind, data)], 0, name) == 40
    ways = ((0, 7, b'\x83\x07\x04\xc6\x33\x64\x01\0'),) if family == socket.AF_INET else (
        (41, 57, bytes([0, 2, 0, 1]) + bytes(4) + socket.inet_pton(family, '2001:db8::1')),)
    for way in ways:
        refused(lambda: udp().sendmsg([b'q' * 40], [way], 0, name), errno.EPERM, errno.EINVAL, errno.ENETUNREACH)
print('ok')
";
    let output = python(&world, script);
    assert_eq!(text(&output), "ok\n");
}

fn python(world: &World, script: &str) -> Output {
    let procs = world.cgroup("agents/one").join("cgroup.procs");
    let enter = format!("echo 0 > {} && exec /usr/bin/python3 -c \"$0\"", procs.display());
    Command::new("sh").args(["-c", &enter, script]).output().expect("python3")
}

#[test]
fn a_flood_is_cut_off_and_counted() {
    let mut world = resolving();
    let passed = world.act("agents/one", &["flood", "2000", SERVERS[0]]);
    let passed: u64 = passed.strip_prefix("ok ").and_then(|n| n.parse().ok()).expect("a count");
    // As many as there is room for in a second, or two.
    assert!((100..=400).contains(&passed), "{passed}");
    assert!(world.tell("refused").contains(&format!("questions={}", 2000 - passed)));
    assert_eq!(questions(&mut world).len() as u64, passed);
    // Another session asks as ever.
    assert_eq!(Client::new(&world, "agents/two", "connected", 7, SERVERS[0]).ask(), "sent");
}

#[test]
fn who_is_no_session_asks_nothing() {
    let mut world = resolving();
    let mut before = HOW.map(|how| Client::new(&world, "agents/one", how, 7, SERVERS[0]));
    let id = world.id("agents/one");
    assert_eq!(world.tell(&format!("forget {id}")), "ok");
    for client in &mut before {
        assert!(client.ask().starts_with("error "));
    }
    assert_eq!(world.act("agents/one", &["ask", "connected", "7", LENGTH, SERVERS[0]]), ECONNREFUSED);
    assert_eq!(questions(&mut world), Vec::<Vec<String>>::new());
}

#[test]
fn after_the_enforcer_nobody_is_asked() {
    let mut world = resolving();
    let clients = |world: &World| HOW.map(|how| Client::new(world, "agents/one", how, 7, SERVERS[0]));
    // One that hangs.
    let mut before = clients(&world);
    assert_eq!(world.tell("fall-silent"), "ok");
    assert!(eventually(|| before.iter_mut().all(|client| client.ask().starts_with("error "))), "still sent");
    drop(before);
    let mut world = resolving();
    let mut before = clients(&world);
    for client in &mut before {
        assert_eq!(client.ask(), "sent");
    }
    let ports = [format!("127.0.0.1:{}", world.enforcer().port4), format!("[::1]:{}", world.enforcer().port6)];
    world.kill_enforcer();
    // The last heartbeat is fresh for two seconds yet.
    let thieves = ports.map(|port| UdpSocket::bind(port).expect("the port is free"));
    for client in &mut before {
        assert!(client.ask().starts_with("error "));
    }
    for kind in ["2", "10"] {
        assert!(world.act("agents/one", &["socket", kind, "2", "17", "1"]).starts_with("0 "));
    }
    for thief in &thieves {
        thief.set_nonblocking(true).expect("a socket");
        assert!(thief.recv(&mut [0; 8]).is_err(), "a thief was sent something");
    }
    // The next one is asked by the same sockets.
    drop(thieves);
    world.start();
    world.govern();
    world.allow("one");
    assert_eq!(world.tell("resolve"), "ok");
    for client in &mut before {
        assert_eq!(client.ask(), "sent");
    }
    assert_eq!(questions(&mut world).len(), 4, "those of before, and these");
}

#[test]
fn in_another_network_namespace_names_are_answered_where_the_enforcer_has_a_socket() {
    let mut world = resolving();
    let other = Namespace::new();
    let arguments = ["ask", "connected", "7", LENGTH, SERVERS[0]];
    let command = |world: &World| other.command(world, "agents/one", &arguments);
    let said = command(&world).output().expect("the probe");
    assert_eq!(text(&said).trim_end(), EPERM, "no such socket");
    assert_eq!(world.tell(&format!("resolve {}", other.pid)), "ok");
    let mut client = Client::start(command(&world));
    assert_eq!(client.line(), format!("peer {}", SERVERS[0]));
    assert_eq!(client.ask(), "sent");
    assert_eq!(questions(&mut world).len(), 1);
    assert_eq!(world.tell("answer 0 0"), "ok");
    assert_eq!(client.answer(), format!("{LENGTH} from {}", SERVERS[0]));
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn refused(daemon: &Daemon) -> Vec<String> {
    let events = portcullis::record::read::events(daemon.path("state/record")).expect("the record");
    let refused = events.filter_map(|recorded| match &recorded.expect("an event").event.body {
        EventBody::Refused { what, .. } => Some(what.clone()),
        _ => None,
    });
    refused.collect()
}

/// Asks name servers for what the policy names and for other things.
const ASK: &str = r#"
import socket, struct
def question(name, kind, id):
    labels = b"".join(bytes([len(l)]) + l for l in name.encode().split(b".") if l)
    return struct.pack(">6H", id, 0x100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", kind, 1)
def ask(name, kind, server):
    with socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(5)
        s.sendto(question(name, kind, 4711), (server, 53))
        answer, source = s.recvfrom(4096)
    assert source[:2] == (server, 53), source
    assert answer[:2] == struct.pack(">H", 4711) and len(answer) <= 512
    return answer[3] & 15, struct.unpack(">H", answer[6:8])[0]
for server in ["9.9.9.9", "127.0.0.53", "127.0.0.1", "2001:db8::53", "::1", "::ffff:192.0.2.53"]:
    code, count = ask("localhost", 1, server)
    assert code == 0 and count >= 1, (server, code, count)
    for name in ["evil.example", ".".join(["secret-" + "x" * 50] * 4), "localhost.evil.example"]:
        for kind in [1, 16, 28, 255]:
            assert ask(name, kind, server) == (3, 0), (server, name, kind)
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.settimeout(1)
    for junk in [b"x" * 40, b"\xff" * 12, b"\xff" * 512]:
        s.sendto(junk, ("9.9.9.9", 53))
    try:
        raise SystemExit(s.recv(512))
    except TimeoutError:
        pass
print("ok")
"#;

#[test]
fn the_daemon_answers_over_udp_as_over_tcp_and_records_it() {
    let server = Postgres::start().expect("a server");
    let mut daemon =
        Daemon::start(&server, SHOP_POLICY.replace("127.0.0.1:", "localhost:").as_str()).expect("a daemon");
    let output = daemon.governed("/usr/bin/python3", &["-B", "-c", ASK]).expect("a command").output().expect("it runs");
    assert_eq!(text(&output), "ok\n", "{}", daemon.log());
    let refused = refused(&daemon);
    for words in ["dns evil.example TXT: no upstream of the policy has this name", "what was sent is no question"] {
        assert!(refused.iter().any(|what| what.contains(words)), "{words}: {refused:?}");
    }
    // With the daemon dead nobody answers, whoever has its port.
    let status = daemon.status().expect("an answer");
    let address = status["listen"][0].as_str().expect("an address").to_owned();
    let script = "import socket, sys\n\
                  s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('9.9.9.9', 53)); s.settimeout(1)\n\
                  print('ready', flush=True); sys.stdin.readline()\n\
                  def tried(what):\n    try: what()\n    except OSError: return\n    raise SystemExit('REACHED')\n\
                  tried(lambda: s.send(b'q' * 40) and s.recv(512))\n\
                  tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))\n\
                  print('nothing')";
    let mut client = daemon.governed("/usr/bin/python3", &["-c", script]).expect("a command");
    let mut client = client.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
    let mut lines = BufReader::new(client.stdout.take().expect("piped")).lines();
    assert_eq!(lines.next().expect("a line").expect("text"), "ready");
    daemon.kill().expect("killed");
    let thief = UdpSocket::bind(&address).expect("with its supervisor dead the port is free");
    thief.set_nonblocking(true).expect("a socket");
    writeln!(client.stdin.take().expect("piped")).expect("it listens");
    assert_eq!(lines.next().expect("a line").expect("text"), "nothing");
    assert!(thief.recv(&mut [0; 8]).is_err(), "a thief was asked");
    client.wait().expect("it ends");
}

#[test]
fn the_next_daemon_answers_too_and_so_does_one_in_another_network_namespace() {
    let server = Postgres::start().expect("a server");
    let mut daemon = Daemon::start(&server, &SHOP_POLICY.replace("127.0.0.1:", "localhost:")).expect("a daemon");
    let other = Namespace::new();
    let ask = |daemon: &Daemon| {
        let command = daemon.governed("/usr/bin/python3", &["-B", "-c", ASK]).expect("a command");
        let there = other.inside(&command);
        [command, there].map(|mut command| text(&command.output().expect("it runs")))
    };
    assert_eq!(ask(&daemon), ["ok\n", "ok\n"], "{}", daemon.log());
    let before = daemon.pid().expect("it runs");
    daemon.signal("KILL").expect("killed");
    daemon.recovered(before).expect("it comes back");
    assert_eq!(ask(&daemon), ["ok\n", "ok\n"], "{}", daemon.log());
}
