//! Every road out, tried from inside a real session, and watched where it would arrive: by listeners and a packet sniffer
//! in a network namespace of its own, by listeners and a sniffer on loopback, and by what is there to be changed. The
//! attempt's own word counts only where it says that the kernel let an effect happen.
//!
//! The sniffers are not the product's: what it cannot see, they may.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::unix::fs::PermissionsExt,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use portcullis::doctor::{
    Runner,
    attempts::{self, Target},
    witness::{Aim, Setup, Whose, Witness},
};
use portcullis_tests::{Daemon, Postgres, SHOP_POLICY, binary};

use crate::world::{eventually, kernel_can_all, kernel_takes_lsm};

/// What must get through outside of any session.
const CONTROLS: &str = include_str!("escape.controls");
/// What only Landlock's scopes stop [Linux 6.12].
const BEYOND_OLDER: &str = "signal to another process";
/// Whether this kernel lacks what alone would stop an attempt. Doctor names it.
fn is_beyond(name: &str) -> bool {
    (name == BEYOND_OLDER && !kernel_can_all()) || (name.ends_with(attempts::PASSED) && !kernel_takes_lsm())
}

/// Number of what proves a sniffer awake.
const AWAKE: usize = 99_999;
const NOBODY: u32 = 65534;

/// Prints a line for each packet that matters. Arguments: marker, device, the witness's addresses, the enforcer's
/// ports, its own ports. Off loopback it listens on them, too, so that connections come about.
const SNIFFER: &str = r"
import socket, struct, sys
marker, device, host4, host6, enforcer = sys.argv[1].encode(), sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5].split(',')
ports = [int(p) for p in sys.argv[6:]]
inet, inet6 = socket.AF_INET, socket.AF_INET6
here = {socket.inet_pton(inet, host4), socket.inet_pton(inet6, host6)}
group = bytes([239,77,77])
keep = []
if device != 'lo':
    for family, host in ((inet, host4), (inet6, host6)):
        for port in ports:
            t = socket.socket(family); t.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            t.bind((host, port)); t.listen(64); keep.append(t)
            u = socket.socket(family, socket.SOCK_DGRAM); u.bind((host, port)); keep.append(u)
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)
s.bind((device, 0))
def judge(p):
    kind, body, to, ports_of, protocol = p[12:14], p[14:], None, None, None
    if kind == b'\x08\x00' and len(body) >= 20:
        to, protocol, rest = body[16:20], body[9], body[(body[0] & 15) * 4:int.from_bytes(body[2:4], 'big')]
    elif kind == b'\x86\xdd' and len(body) >= 40:
        to, protocol, rest = body[24:40], body[6], body[40:40 + int.from_bytes(body[4:6], 'big')]
    if protocol in (6, 17) and len(rest) >= 4: ports_of = struct.unpack('!HH', rest[:4])
    if ports_of and any(str(p) in enforcer for p in ports_of) and (protocol == 6 or to in here): return None
    at = p.find(marker)
    number = p[at + len(marker):][:5] if at >= 0 else b''
    if len(number) == 5 and number.isdigit():
        return 'awake' + str(len(to)) if number == b'99999' and to else 'tag ' + number.decode()
    # An answer of a connection that was seen when it began: it may come long after.
    if protocol == 6 and len(rest) >= 20 and not rest[13] & 2 and len(rest) <= (rest[12] >> 4) * 4: return None
    if to in here and ports_of and ports_of[1] in ports: return 'port %d' % ports_of[1]
    if device == 'lo': return None
    if to in here and not (protocol == 58 and rest and rest[0] in range(133, 138)): return 'other'
    at = body.find(group) if protocol == 2 else -1
    if 0 <= at < len(body) - 3: return 'group %d' % body[at + 3]
print('ready', flush=True)
while True:
    p, where = s.recvfrom(65535)
    if where[2] == socket.PACKET_OUTGOING: continue
    said = judge(p)
    if said: print(said, device, p[12:80].hex(), flush=True)
";

/// A sniffer and what it said since it was asked last.
struct Sniffer {
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
}

impl Sniffer {
    fn start(mut command: Command, witness: &Witness, device: &str, hosts: [&str; 2], enforcer: &[u16]) -> Self {
        command.args(["/usr/bin/python3", "-c", SNIFFER, witness.marker(), device, hosts[0], hosts[1]]);
        let enforcer: Vec<String> = enforcer.iter().map(u16::to_string).collect();
        command.arg(enforcer.join(",")).args(witness.ports().iter().map(u16::to_string));
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("the sniffer");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        assert_eq!(lines.next().expect("a line").expect("text"), "ready");
        let said = Arc::new(Mutex::new(Vec::new()));
        let saying = Arc::clone(&said);
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                saying.lock().expect("not poisoned").push(line);
            }
        });
        Self { child, said }
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.said.lock().expect("not poisoned"))
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The other namespace, and the sniffers in it and on loopback.
struct Elsewhere {
    sniffers: Vec<Sniffer>,
    namespace: String,
    aim: Aim,
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("ip");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Elsewhere {
    /// Addresses are this process's own, of the ranges for benchmarks and for documentation (RFC 2544, RFC 3849): one that
    /// the host has already would lead nowhere.
    fn new() -> Self {
        let id = std::process::id();
        let (namespace, near, far) = (format!("portcullis-{id}"), format!("esc{id}a"), format!("esc{id}b"));
        let [high, low] = ((id % (1 << 15)) as u16 * 2).to_be_bytes();
        let net = u32::from_be_bytes([198, 18, 0, 0]) + (u32::from(high) << 9 | u32::from(low) << 1);
        let (near4, v4) = (Ipv4Addr::from(net + 1), Ipv4Addr::from(net + 2));
        let v6 = |host| Ipv6Addr::new(0x2001, 0xdb8, (id >> 16) as u16, id as u16, 0, 0, 0, host);
        ip(&format!("netns add {namespace}"));
        ip(&format!("link add {near} type veth peer name {far} netns {namespace}"));
        ip(&format!("address add {near4}/30 dev {near}"));
        ip(&format!("address add {}/64 dev {near} nodad", v6(1)));
        ip(&format!("link set {near} up"));
        let within = format!("netns exec {namespace} ip");
        ip(&format!("{within} link set lo up"));
        ip(&format!("{within} address add {v4}/30 dev {far}"));
        ip(&format!("{within} address add {}/64 dev {far} nodad", v6(2)));
        ip(&format!("{within} link set {far} up"));
        let aim = Aim { v4, v6: v6(2), device: near, at: Whose::Another };
        Self { sniffers: Vec::new(), namespace, aim }
    }

    fn sniff(&mut self, witness: &Witness, enforcer: &[u16]) {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace]);
        let far = self.aim.device.replace('a', "b");
        let hosts = [self.aim.v4.to_string(), self.aim.v6.to_string()];
        self.sniffers.push(Sniffer::start(command, witness, &far, [&hosts[0], &hosts[1]], &[]));
        self.sniffers.push(Sniffer::start(Command::new("env"), witness, "lo", ["127.0.0.1", "::1"], enforcer));
    }

    /// What the sniffers saw since the last call.
    fn seen(&self, witness: &Witness, evidence: &mut Vec<String>) -> BTreeSet<usize> {
        let said = self.sniffers.iter().flat_map(Sniffer::take);
        let number = |line: &str| match *line.split(' ').collect::<Vec<_>>() {
            ["tag", number, ..] => Some(number.parse().expect("a number")),
            ["port", port, ..] => Some(witness.taker(Some(port.parse().expect("a port")))),
            // Told by a timer, perhaps late.
            ["group", last, ..] => witness.joiner(last.parse().expect("a number")),
            _ => Some(witness.taker(None)),
        };
        let said: Vec<String> = said.filter(|line| !line.starts_with("awake")).collect();
        said.iter()
            .filter_map(|line| number(line).inspect(|number| evidence.push(format!("{number}: {line}"))))
            .collect()
    }

    /// Everybody who watches sees what is sent from outside of any session, or the test fails: a dead sniffer would find
    /// nothing.
    fn prove_awake(&self, witness: &mut Witness) {
        self.seen(witness, &mut Vec::new());
        witness.prove_awake().expect("the witness sees");
        let text = attempts::tag(witness.marker(), AWAKE);
        for (any, host) in [("0.0.0.0:0", self.aim.v4.to_string()), ("[::]:0", self.aim.v6.to_string())] {
            let socket = UdpSocket::bind(any).expect("a socket");
            socket.send_to(text.as_bytes(), (host.as_str(), witness.ports()[0])).expect("sent");
        }
        for (sniffer, place) in self.sniffers.iter().zip(["the other namespace", "loopback"]) {
            let mut said = BTreeSet::new();
            let all = || {
                said.extend(sniffer.take());
                ["awake4 ", "awake16 "].iter().all(|wanted| said.iter().any(|line: &String| line.starts_with(wanted)))
            };
            assert!(eventually(all), "the sniffer of {place} does not see what arrives: {said:?}");
        }
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        self.sniffers.clear();
        let _ = Command::new("ip").args(["link", "delete", &self.aim.device]).output();
        let _ = Command::new("ip").args(["netns", "delete", &self.namespace]).output();
    }
}

/// What the table says of a user's column.
enum Column {
    /// Outside of any session: what [`CONTROLS`] says of these must get through, or the attempts are not real.
    Free(&'static [&'static str]),
    /// In a session: nothing may get through.
    Promised,
    /// In a session, as root of the host, who cannot be kept in: that is said, not promised.
    Listed,
}

struct User {
    name: &'static str,
    column: Column,
    command: Command,
}

/// A policy whose sessions are root of a user namespace of their own.
pub fn rooted(daemon: &Daemon) -> String {
    let policy = fs::read_to_string(daemon.path("policies/bot.toml")).expect("the policy");
    let policy = policy.replacen("name = \"bot\"", "name = \"rooted\"", 1).replacen("/bot/*", "/rooted/*", 1);
    policy.replacen("autonomy =", "private_tmp = true\nuser = \"root\"\nautonomy =", 1)
}

/// A held command, and the client that waits for it.
fn hold(daemon: &Daemon, server: &Postgres) -> (Child, String) {
    let url = format!("host=127.0.0.1 port={} dbname=shop user=agent", server.port);
    let sql = "UPDATE products SET price = 9.99 WHERE id = 1";
    let mut waiting = daemon.governed("psql", &["-X", &url, "-c", sql]).expect("a command");
    let waiting = waiting.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("psql");
    let hold = daemon.held().expect("a hold");
    (waiting, hold["id"].as_str().expect("an id").to_owned())
}

#[test]
fn no_attempt_reaches_anything() {
    let server = Postgres::start().expect("a server");
    // Below the host's own, and of no other test.
    let own = 1_879_190_000;
    let settings = format!("[sessions]\nuids = \"{own}-{}\"\n", own + 9);
    let daemon = Daemon::start_with(&server, SHOP_POLICY, &settings).expect("a daemon");
    daemon.add_policy("rooted", &rooted(&daemon)).expect("a policy");
    // Not well on kernels that lack something, which it names.
    let status = daemon.cli(&["status", "--json"]).expect("it runs");
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).expect("JSON");
    let listen = status["listen"].as_array().expect("a list").iter().filter_map(|address| address.as_str());
    let enforcer: Vec<u16> = listen.map(|address| address.parse::<SocketAddr>().expect("an address").port()).collect();
    assert_eq!(enforcer.len(), 2, "IPv4 first, then IPv6");
    let mut elsewhere = Elsewhere::new();
    let mut witness = Witness::new(Setup {
        aim: elsewhere.aim.clone(),
        user: Some((NOBODY, NOBODY)),
        folder: daemon.path("."),
        enforcer: enforcer.clone(),
        control: daemon.path("run/control.sock"),
        pins: daemon.pins(),
        workload: "bot".into(),
    })
    .expect("a witness");
    elsewhere.sniff(&witness, &enforcer);
    // Where every user can run it.
    let program = witness.folder().join("portcullis");
    fs::copy(binary().expect("a binary"), &program).expect("a copy");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a mode");
    let program = program.display().to_string();
    let attempts = ["escape-attempts"];

    let mut nobody = Command::new("setpriv");
    nobody.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups", &program]).args(attempts);
    let mut root = Command::new(&program);
    root.args(attempts);
    let run = ["run", "--workload", "bot", "--i-know-root-escapes", "--intent", "escape", "--", &program];
    let mut as_root = daemon.command(&run).expect("a command");
    as_root.args(attempts);
    // In its own temporary folders, so what it runs and aims at comes along with the folder that it works in.
    let rooted = ["run", "--workload", "rooted", "--intent", "escape", "--", &program];
    let mut rooted = daemon.command(&rooted).expect("a command");
    rooted.args(attempts).current_dir(witness.folder());
    let users = [
        User { name: "free", column: Column::Free(&["anyone"]), command: nobody },
        User { name: "free root", column: Column::Free(&["anyone", "root"]), command: root },
        User {
            name: "governed",
            column: Column::Promised,
            command: daemon.governed(&program, &attempts).expect("a command"),
        },
        User { name: "own root", column: Column::Promised, command: rooted },
        User { name: "root", column: Column::Listed, command: as_root },
    ];
    let names: Vec<String> = attempts::all().into_iter().map(|attempt| attempt.name).collect();
    let (mut waiting, held) = hold(&daemon, &server);
    let mut wrong = Vec::new();
    let mut summary = String::new();
    let mut columns = Vec::new();
    for user in users {
        elsewhere.prove_awake(&mut witness);
        let hold = if matches!(user.column, Column::Free(_)) { "no-such-hold" } else { &held };
        let target: Target = witness.target(hold);
        assert!(!target.decoy.is_empty() && !target.other_user.is_empty(), "{target:?}");
        // What the sniffers saw, packet by packet.
        let mut evidence = Vec::new();
        let mut command = user.command;
        command.stderr(witness.standard_error().expect("a socket"));
        let mut runner = Runner::start(command, &target).expect("the attempts");
        let reached = runner
            .run(&mut witness, 0..names.len(), |witness| elsewhere.seen(witness, &mut evidence))
            .expect("answers");
        elsewhere.prove_awake(&mut witness);
        let named: BTreeSet<&str> = reached.iter().map(|number| names[*number].as_str()).collect();
        let (count, all) = (named.len(), names.len());
        let line = match user.column {
            Column::Free(must) => {
                let must =
                    CONTROLS.lines().filter_map(|line| line.split_once(": ")).filter(|(who, _)| must.contains(who));
                let missing = must.filter(|(_, name)| !named.contains(name));
                wrong.extend(missing.map(|(_, name)| format!("{} does not reach: {name}", user.name)));
                format!("{}, not in a session: {count} of {all} reach\n", user.name)
            }
            Column::Promised => {
                let beyond: BTreeSet<&str> = names.iter().map(String::as_str).filter(|name| is_beyond(name)).collect();
                // What is said to be beyond it gets through, or it could be promised. Signals a user may lack the right to.
                let closed: Vec<&&str> = beyond.difference(&named).filter(|name| **name != BEYOND_OLDER).collect();
                assert!(closed.is_empty(), "{} does not reach: {closed:?}", user.name);
                let named: Vec<&str> = named.difference(&beyond).copied().collect();
                let (count, all) = (named.len(), all - beyond.len());
                if count > 0 {
                    wrong.append(&mut evidence);
                }
                wrong.extend(named.iter().map(|name| format!("{} reaches: {name}", user.name)));
                let beyond: String = beyond
                    .iter()
                    .map(|name| format!("this kernel cannot refuse it, so it does not count: {name}\n"))
                    .collect();
                format!("{beyond}attempts {all}, reached {count}\n")
            }
            Column::Listed => format!("host root, not promised: attempts {all}, reached {count}\n"),
        };
        summary += &line;
        columns.push((user.name, reached));
    }
    let holds = daemon.ok(&["held", "--json"]).expect("the holds");
    assert!(holds.contains(&held) && holds.contains("\"requested\""), "an attempt decided its own hold: {holds}");
    waiting.kill().expect("it waits");
    waiting.wait().expect("it ends");

    let mut table = format!("{:<44}", "attempt");
    for (name, _) in &columns {
        table += &format!(" {name:>10}");
    }
    for (number, name) in names.iter().enumerate() {
        table += &format!("\n{name:<44}");
        for (_, reached) in &columns {
            table += &format!(" {:>10}", if reached.contains(&number) { "REACHED" } else { "-" });
        }
    }
    table += &format!("\n{summary}");
    // Not by the macro: what passes is seen, too.
    std::io::stdout().write_all(table.as_bytes()).expect("an output");
    assert!(names.len() >= 100, "{}", names.len());
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "two attempts have one name");
    assert!(wrong.is_empty(), "{wrong:#?}");
}
