//! What only the programs of the security module close. Here processes are root, and confined by nothing but hooks. Where
//! the kernel does not take these programs the same attempts get through, as `doctor` says they do.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    os::{
        fd::OwnedFd,
        unix::net::{UnixDatagram, UnixListener, UnixStream},
    },
    process::{Child, Command, Stdio},
};

use portcullis::doctor::{Finding, Grade};

use crate::world::{World, kernel_judges_unix, kernel_takes_lsm};

/// Before every script. `tell` prints what an attempt failed with, or 0.
const BEGIN: &str = r"
import ctypes, os, socket, struct, sys, time
def tell(name, act):
    try: act(); print(name + '=0')
    except OSError as e: print(name + '=%d' % e.errno)
libc = ctypes.CDLL(None, use_errno=True)
def call(*numbers):
    if libc.syscall(*[ctypes.c_long(n) for n in numbers]) < 0: raise OSError(ctypes.get_errno(), '')
";

/// Starts a script in a cgroup, with a socket as its standard input.
fn start(world: &World, cgroup: &str, script: &str, arguments: &[&str], input: Stdio) -> Child {
    let mut command = Command::new("sh");
    let join =
        format!("echo $$ > {}/cgroup.procs; exec /usr/bin/python3 -c \"$0\" \"$@\"", world.cgroup(cgroup).display());
    command.args(["-e", "-c", &join, &format!("{BEGIN}{script}")]).args(arguments);
    command.stdin(input).stdout(Stdio::piped()).spawn().expect("python")
}

/// What a script prints.
fn run(world: &World, cgroup: &str, script: &str, arguments: &[&str], input: Stdio) -> Vec<String> {
    said(start(world, cgroup, script, arguments, input))
}

fn said(child: Child) -> Vec<String> {
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect()
}

/// A session with cgroups below it: one that is allowed, another, and one that nobody knows.
fn world() -> World {
    let mut world = World::new();
    world.allow("two");
    std::fs::create_dir(world.cgroup("agents/one/child")).expect("a cgroup");
    world.assert_well();
    world
}

/// Whether all of this was refused and told, or went through and was not.
fn assert_told(world: &mut World, reasons: &[&str]) {
    let told = world.tell("refusals");
    let counted = world.tell("refused");
    for reason in reasons {
        let found = told.split(';').any(|line| line.starts_with(&format!("{reason} ")));
        let counts = counted.split(' ').any(|count| count.starts_with(&format!("{reason}=")));
        assert_eq!([found, counts], [kernel_takes_lsm(); 2], "{reason} in {told} {counted}");
    }
}

const GOVERNED: [&str; 4] = ["agents/one", "agents/two", "agents/one/child", "agents"];

#[test]
fn sockets_of_other_families_are_not_made() {
    let mut world = world();
    let script = "for f, k, p in ((16, 3, 4), (16, 3, 15), (17, 3, 0), (38, 5, 0)): tell('%d' % f, lambda: socket.socket(f, k, p))\n\
                  tell('unix', lambda: socket.socket(1)); tell('tcp', lambda: socket.socket())\n\
                  tell('routes', lambda: socket.socket(16, 3, 0))";
    let free = run(&world, "free", script, &[], Stdio::null());
    assert!(free.starts_with(&["16=0", "16=0", "17=0"].map(str::to_owned)), "{free:?}");
    for cgroup in GOVERNED {
        let governed = run(&world, cgroup, script, &[], Stdio::null());
        let refused = ["16=97", "16=97", "17=97", "38=97", "unix=0", "tcp=0", "routes=0"].map(str::to_owned);
        assert_eq!(governed, if kernel_takes_lsm() { refused.to_vec() } else { free.clone() }, "{cgroup}");
    }
    assert_told(&mut world, &["family"]);
}

/// Uses the socket that is its standard input in every way. Argument: a port of this host.
const USE: &str = r"
s = socket.socket(fileno=0); to = ('127.0.0.1', int(sys.argv[1])); s.setblocking(False)
tell('option', lambda: s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1))
tell('receive', lambda: s.recv(1))
tell('read', lambda: os.read(0, 1))
tell('send', lambda: s.send(b'x'))
tell('write', lambda: os.write(0, b'x'))
tell('send to', lambda: s.sendto(b'x', to))
tell('many', lambda: s.sendmsg([b'x']))
tell('sendfile', lambda: os.sendfile(0, os.open('/bin/sh', os.O_RDONLY), 0, 1))
def splice():
    r, w = os.pipe(); os.write(w, b'x'); call(275, r, 0, 0, 0, 1, 0)
tell('splice', splice)
tell('connect', lambda: s.connect(to))
tell('accept', s.accept)
tell('listen', lambda: s.listen(1))
tell('bind', lambda: s.bind(('127.0.0.1', 0)))
";

#[test]
fn a_socket_that_was_made_outside_cannot_be_used() {
    let mut world = world();
    let udp_server = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    udp_server.set_nonblocking(true).expect("a socket");
    for kind in ["udp", "connected udp", "connection", "tcp", "listener"] {
        let server = TcpListener::bind("127.0.0.1:0").expect("a port");
        server.set_nonblocking(true).expect("a listener");
        let port = if kind.contains("udp") { udp_server.local_addr() } else { server.local_addr() };
        let port = port.expect("an address").port();
        let make = || -> (OwnedFd, Option<TcpStream>) {
            let udp = || UdpSocket::bind("127.0.0.1:0").expect("a socket");
            match kind {
                "udp" => (udp().into(), None),
                "connected udp" => {
                    let socket = udp();
                    socket.connect(("127.0.0.1", port)).expect("a peer");
                    (socket.into(), None)
                }
                "connection" => {
                    let stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
                    (stream.into(), Some(server.accept().expect("it came").0))
                }
                "tcp" => {
                    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
                    (socket.expect("a socket").into(), None)
                }
                _ => (TcpListener::bind("127.0.0.1:0").expect("a listener").into(), None),
            }
        };
        let arrived = |other: Option<TcpStream>| {
            let datagrams = std::iter::from_fn(|| udp_server.recv(&mut [0; 8]).ok()).count();
            let bytes = other.map_or(0, |mut stream| {
                stream.set_nonblocking(true).expect("a stream");
                stream.read(&mut [0; 64]).unwrap_or(0)
            });
            datagrams + bytes + std::iter::from_fn(|| server.accept().ok()).count()
        };
        let (socket, other) = make();
        let free = run(&world, "free", USE, &[&port.to_string()], socket.into());
        assert!(free.iter().all(|line| !line.ends_with("=1")), "{kind}: {free:?}");
        assert!(arrived(other) > 0 || kind == "listener", "{kind}: the attempts are real");
        for cgroup in GOVERNED {
            let (socket, other) = make();
            let governed = run(&world, cgroup, USE, &[&port.to_string()], socket.into());
            if kernel_takes_lsm() {
                assert!(governed.iter().all(|line| line.ends_with("=1")), "{kind} in {cgroup}: {governed:?}");
                assert_eq!(arrived(other), 0, "{kind} in {cgroup}");
            } else {
                assert!(arrived(other) > 0 || kind == "listener", "{kind} in {cgroup}: {governed:?}");
            }
        }
    }
    assert_told(&mut world, &["foreign"]);
}

#[test]
fn a_socket_of_ones_own_is_used_as_before() {
    let world = world();
    assert!(world.act("agents/one", &["connect", "192.0.2.1:1"]).starts_with("ok 192.0.2.1:1 192.0.2.1:1 "));
    assert_eq!(world.act("agents/one", &["unix-pairs"]), "ok");
    // Standard input and output of programs are often unix sockets.
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    (&ours).write_all(b"x").expect("written");
    let script = "tell('read', lambda: os.read(0, 1)); tell('write', lambda: os.write(0, b'x'))";
    assert_eq!(run(&world, "agents/one", script, &[], OwnedFd::from(theirs).into()), ["read=0", "write=0"]);
    let script = "a, b = socket.socketpair(); c = socket.socket()\n\
                  socket.send_fds(a, [b'x'], [c.fileno(), 1, b.fileno()])\n\
                  print(len(socket.recv_fds(b, 1, 9)[1]))";
    assert_eq!(run(&world, "agents/one", script, &[], Stdio::null()), ["3"], "its own, passed by itself");
}

/// Gives away what others made or are: over its standard input, one after the other. Arguments: which.
const GIVE: &str = r"
s = socket.socket(fileno=0)
array = ctypes.create_string_buffer(struct.pack('IIII', 2, 4, 8, 1) + bytes(100))
def table():
    fd = libc.syscall(321, 0, ctypes.byref(array), 72)
    if fd < 0: raise OSError(ctypes.get_errno(), 'no table')
    return fd
made = {'udp': lambda: socket.socket(2, 2).detach(), 'tcp': lambda: socket.socket().detach(),
    'netlink': lambda: socket.socket(16, 3, 0).detach(), 'unix': lambda: socket.socketpair()[0].detach(),
    'table': table,
    'file': lambda: os.open('/bin/sh', os.O_RDONLY), 'pipe': lambda: os.pipe()[0],
    'memory': lambda: os.memfd_create('x'), 'event': lambda: libc.eventfd(0, 0),
    'epoll': lambda: libc.epoll_create1(0)}
for kind in sys.argv[1:]: socket.send_fds(s, [b'x'], [made[kind]()])
";

/// Prints how many descriptors came with each message.
const TAKE: &str = r"
s = socket.socket(fileno=0)
while True:
    said, fds, flags, _ = socket.recv_fds(s, 1, 9)
    if not said: break
    print(len(fds))
";

/// How many descriptors of each kind a process of one cgroup gets from one of another.
fn passed(world: &World, from: &str, to: &str, kinds: &[&str]) -> Vec<String> {
    let (giver, taker) = UnixStream::pair().expect("a pair");
    let giver = start(world, from, GIVE, kinds, OwnedFd::from(giver).into());
    let taken = run(world, to, TAKE, &[], OwnedFd::from(taker).into());
    said(giver);
    taken
}

#[test]
fn a_socket_that_another_process_passes_does_not_arrive() {
    let mut world = world();
    let roads = ["udp", "tcp", "netlink", "unix", "table"];
    let harmless = ["file", "pipe", "memory", "event", "epoll"];
    let all = [&roads[..], &harmless].concat();
    let can = vec!["1"; all.len()];
    assert_eq!(passed(&world, "free", "free", &all), can);
    for cgroup in GOVERNED {
        let mut wanted = can.clone();
        if kernel_takes_lsm() {
            wanted[..roads.len()].fill("0");
        }
        assert_eq!(passed(&world, "free", cgroup, &all), wanted, "{cgroup}");
    }
    assert_told(&mut world, &["foreign"]);
    // One session's socket is not another's: it would speak in that one's name.
    let wanted = if kernel_takes_lsm() { "0" } else { "1" };
    assert_eq!(passed(&world, "agents/two", "agents/one", &["tcp"]), [wanted]);
    assert_eq!(passed(&world, "agents/one", "agents/one", &["tcp"]), ["1"]);
    assert_eq!(passed(&world, "agents/one", "free", &["tcp"]), ["1"], "nobody else is judged");
}

/// What reaches other processes and the kernel. Arguments: a process outside, the root of the cgroups, a cgroup.
const TASKS: &str = r"
outside, root, here = int(sys.argv[1]), sys.argv[2], sys.argv[3]
tell('trace', lambda: call(101, 0x4206, outside, 0, 0))
tell('memory', lambda: os.open('/proc/%d/mem' % outside, os.O_RDONLY))
tell('environment', lambda: os.open('/proc/%d/environ' % outside, os.O_RDONLY))
array = ctypes.create_string_buffer(struct.pack('IIII', 2, 4, 8, 1) + bytes(100))
tell('bpf', lambda: call(321, 0, ctypes.addressof(array), 72))
attributes = ctypes.create_string_buffer(struct.pack('IIQ', 1, 112, 0) + bytes(96))
tell('perf', lambda: call(298, ctypes.addressof(attributes), 0, -1, -1, 0))
tell('open', lambda: os.open(here + '/cgroup.procs', os.O_WRONLY))
tell('freeze', lambda: os.open(here + '/cgroup.freeze', os.O_WRONLY))
tell('make', lambda: (os.mkdir(here + '/made'), os.rmdir(here + '/made')))
def clone():
    fd = os.open(here, os.O_RDONLY)
    child = libc.syscall(435, struct.pack('QQQQQQQQQQQ', 0x200000000, 0, 0, 0, 17, 0, 0, 0, 0, 0, fd), 88)
    if child == 0: os._exit(0)
    if child < 0: raise OSError(ctypes.get_errno(), '')
tell('clone', clone)
child = os.fork()
if child == 0: time.sleep(60)
tell('its own', lambda: call(101, 0x4206, child, 0, 0))
os.kill(child, 9)
tell('read', lambda: os.open(here + '/cgroup.procs', os.O_RDONLY))
";

struct Outside(Child);

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn other_processes_the_kernel_and_cgroups_are_out_of_reach() {
    let mut world = world();
    let outside = Outside(Command::new("sleep").arg("600").stdout(Stdio::null()).spawn().expect("a process"));
    let (pid, root, free) = (outside.0.id().to_string(), world.root().display().to_string(), world.cgroup("free"));
    let arguments = [pid.as_str(), &root, free.to_str().expect("text")];
    let names = ["trace", "memory", "environment", "bpf", "perf", "open", "freeze", "make", "clone"];
    let harmless = ["its own=0", "read=0"].map(str::to_owned);
    let all_through = names.map(|name| format!("{name}=0")).into_iter().chain(harmless.clone()).collect::<Vec<_>>();
    assert_eq!(run(&world, "free", TASKS, &arguments, Stdio::null()), all_through);
    for cgroup in GOVERNED {
        let refused = names.map(|name| format!("{name}=1")).into_iter().map(|line| {
            // The kernel's own words for these.
            if line.starts_with("memory") || line.starts_with("environment") { line.replace("=1", "=13") } else { line }
        });
        let wanted = if kernel_takes_lsm() { refused.chain(harmless.clone()).collect() } else { all_through.clone() };
        assert_eq!(run(&world, cgroup, TASKS, &arguments, Stdio::null()), wanted, "{cgroup}");
    }
    assert_told(&mut world, &["trace", "bpf", "perf", "cgroup"]);
}

#[test]
fn who_leaves_by_a_descriptor_that_was_opened_before_does_not() {
    let world = world();
    let procs = std::fs::File::options().write(true).open(world.cgroup("free").join("cgroup.procs")).expect("a file");
    let moved = run(&world, "agents/one", "tell('move', lambda: os.write(0, b'0'))", &[], procs.into());
    assert_eq!(moved, [if kernel_takes_lsm() { "move=1" } else { "move=0" }]);
}

#[test]
fn a_task_moves_others_into_its_own_cgroup_and_no_other() {
    let mut world = world();
    let script = "for file in sys.argv[1:]: tell('', lambda: os.open(file, os.O_WRONLY))";
    let own = world.cgroup("agents/one");
    let own = |file: &str| own.join(file).display().to_string();
    let others = [
        own("cgroup.threads"),
        own("cgroup.subtree_control"),
        own("cgroup.max.depth"),
        own("child/cgroup.procs"),
        world.cgroup("agents").join("cgroup.procs").display().to_string(),
        world.cgroup("agents/two").join("cgroup.procs").display().to_string(),
        world.root().join("cgroup.procs").display().to_string(),
    ];
    let files = std::iter::once(own("cgroup.procs")).chain(others).collect::<Vec<_>>();
    let answers =
        run(&world, "agents/one", script, &files.iter().map(String::as_str).collect::<Vec<_>>(), Stdio::null());
    let refused = if kernel_takes_lsm() { "=1" } else { "=0" };
    let mut wanted = vec![refused; files.len()];
    wanted[0] = "=0";
    assert_eq!(answers, wanted, "{files:?}");
    if kernel_takes_lsm() {
        assert_told(&mut world, &["cgroup"]);
    }
}

#[test]
fn a_datagram_reaches_the_peer_that_was_handed_down_and_no_other() {
    let world = world();
    let folder = tempfile::tempdir().expect("a folder");
    let other = folder.path().join("other");
    let server = UnixDatagram::bind(&other).expect("a socket");
    server.set_nonblocking(true).expect("a socket");
    let script = "s = socket.socket(fileno=0)\n\
                  tell('peer', lambda: s.send(b'x'))\n\
                  tell('other', lambda: s.sendto(b'x', sys.argv[1]))\n\
                  tell('connect', lambda: s.connect(sys.argv[1]))\n\
                  tell('after', lambda: s.send(b'y'))";
    // A socket that was made outside is judged by the cgroup it was made in, where only hooks below cgroups judge.
    let judged = kernel_takes_lsm();
    for (cgroup, other_reached) in [("free", true), ("agents/one", !judged), ("agents", !judged)] {
        let (ours, theirs) = UnixDatagram::pair().expect("a pair");
        let path = other.to_str().expect("text");
        let said = run(&world, cgroup, script, &[path], OwnedFd::from(theirs).into());
        ours.set_nonblocking(true).expect("a socket");
        let told: String = std::iter::from_fn(|| {
            let mut byte = [0];
            ours.recv(&mut byte).is_ok().then(|| char::from(byte[0]))
        })
        .collect();
        let arrived = std::iter::from_fn(|| server.recv(&mut [0; 8]).ok()).count();
        if other_reached {
            assert_eq!((told.as_str(), arrived), ("x", 2), "{cgroup}: {said:?}");
        } else {
            assert_eq!(said, ["peer=0", "other=111", "connect=111", "after=0"], "{cgroup}");
            assert_eq!((told.as_str(), arrived), ("xy", 0), "{cgroup}");
        }
    }
}

#[test]
fn peers_of_unix_sockets_are_known_by_their_cgroups() {
    let mut world = world();
    if kernel_judges_unix() || !kernel_takes_lsm() {
        // Judged by path, or not at all: `super::unix` has it.
        world.assert_well();
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    // A server and a client of one session, or of two.
    let serve = "s = socket.socket(1, int(sys.argv[2])); s.bind(sys.argv[1].replace('@', '\\0'))\n\
                 if sys.argv[2] != '2': s.listen(9)\n\
                 print('ready', flush=True); socket.socket(fileno=0).recv(1)";
    let reach = "def go():\n  s = socket.socket(1, int(sys.argv[2])); s.connect(sys.argv[1].replace('@', '\\0')); s.send(b'x')\n\
                 tell('reached', go)";
    let name = format!("@portcullis-lsm-{}", std::process::id());
    for (kind, socket) in
        [("1", path("stream")), ("2", path("datagram")), ("5", path("packets")), ("1", name.clone()), ("2", name)]
    {
        let (input, theirs) = UnixStream::pair().expect("a pair");
        let mut server = start(&world, "agents/one", serve, &[&socket, kind], OwnedFd::from(theirs).into());
        let mut ready = [0; 6];
        server.stdout.as_mut().expect("piped").read_exact(&mut ready).expect("it is ready");
        for (cgroup, wanted) in [
            ("agents/one", "reached=0"),
            ("agents/two", "reached=111"),
            ("agents", "reached=111"),
            ("free", "reached=0"),
        ] {
            let answer = run(&world, cgroup, reach, &[&socket, kind], Stdio::null());
            assert_eq!(answer, [wanted], "{kind} {socket} of one from {cgroup}");
        }
        drop(input);
        said(server);
    }
    // Those of the host by the list, whichever way they are named.
    let (stream, datagram) = (path("host-stream"), path("host-datagram"));
    let server = UnixListener::bind(&stream).expect("a socket");
    let receiver = UnixDatagram::bind(&datagram).expect("a socket");
    server.set_nonblocking(true).expect("a socket");
    receiver.set_nonblocking(true).expect("a socket");
    std::os::unix::fs::symlink(&stream, path("link")).expect("a link");
    let id = world.id("agents/one");
    let tries =
        [("1", &stream), ("2", &datagram), ("1", &path("link")), ("1", &format!("{}/./host-stream", path(".")))];
    let reached = |server: &UnixListener| {
        std::iter::from_fn(|| server.accept().ok()).count()
            + std::iter::from_fn(|| receiver.recv(&mut [0; 8]).ok()).count()
    };
    for (list, one) in [("", "reached=111"), (&format!(" {stream} {datagram}"), "reached=0"), ("", "reached=111")] {
        assert_eq!(world.tell(&format!("unix {id}{list}")), "ok");
        for (kind, socket) in tries.iter().copied() {
            assert_eq!(run(&world, "agents/one", reach, &[socket, kind], Stdio::null()), [one], "{socket} {list}");
            assert_eq!(run(&world, "agents/two", reach, &[socket, kind], Stdio::null()), ["reached=111"], "{socket}");
        }
        assert_eq!(reached(&server), if one == "reached=0" { tries.len() } else { 0 }, "{list}");
    }
    // With the enforcer dead, nobody would end the session.
    assert_eq!(world.tell(&format!("unix {id} {stream}")), "ok");
    assert_eq!(run(&world, "agents/one", reach, &[&stream, "1"], Stdio::null()), ["reached=0"]);
    world.kill_enforcer();
    let refused = || run(&world, "agents/one", reach, &[&stream, "1"], Stdio::null()) == ["reached=111"];
    assert!(crate::world::eventually(refused), "a dead enforcer's list counts");
}

#[test]
fn the_programs_outlive_the_enforcer_and_are_put_back() {
    let mut world = world();
    let script = "tell('bpf', lambda: call(321, 0, 0, 0))";
    let bpf = |world: &World| run(world, "agents/one", script, &[], Stdio::null());
    let (closed, open) = (["bpf=1"], ["bpf=22"]);
    let links = world.pins().join("lsm");
    let names = |links: &std::path::Path| {
        let mut all: Vec<_> = std::fs::read_dir(links).expect("pins").map(|e| e.expect("a pin").file_name()).collect();
        all.sort();
        all
    };
    let before = names(&links);
    if !kernel_takes_lsm() {
        assert_eq!((before.len(), bpf(&world)), (0, open.map(str::to_owned).to_vec()), "nothing is left half done");
        return;
    }
    assert!(before.len() >= 13, "{before:?}");
    assert_eq!(bpf(&world), closed);
    world.kill_enforcer();
    assert_eq!(bpf(&world), closed);
    world.start();
    assert_eq!(bpf(&world), closed, "before anything is governed again");
    assert_eq!(names(&links), before);
    world.govern();
    world.assert_well();
    // What is taken away is named, and put back by the next one.
    std::fs::remove_file(links.join("lsm_bpf")).expect("a link");
    assert_eq!(world.tell("verify"), "`lsm_bpf` is not attached to the kernel's security module");
    assert_eq!(bpf(&world), open);
    world.kill_enforcer();
    world.start();
    world.govern();
    world.assert_well();
    assert_eq!(bpf(&world), closed);
    // Whoever is governed no longer is let go.
    let agents = world.cgroup("agents").display().to_string();
    assert_eq!(world.tell(&format!("release {agents}")), "ok");
    assert_eq!(bpf(&world), open);
}

#[test]
fn two_capabilities_are_enough_to_load_them() {
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-all,+bpf,+perfmon", "--inh-caps=-all"]).arg(portcullis_tests::binary().expect("it"));
    let output = command.args(["--socket", "/nonexistent", "doctor", "--json"]).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut findings = said.lines().map(|line| serde_json::from_str::<Finding>(line).expect("a finding"));
    let module = findings.find(|finding| finding.check == "security module").expect("it is looked at");
    assert_eq!(module.grade, if kernel_takes_lsm() { Grade::Closed } else { Grade::Cannot }, "{module:?}");
}
