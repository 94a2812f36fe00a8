//! What a governed process cannot do, whatever it is: here it is root, and confined by nothing but the hooks.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Stdio,
    time::Duration,
};

use crate::world::{Direct, ECONNREFUSED, EPERM, World};

#[test]
fn only_tcp_sockets_of_the_internet_families_are_made() {
    let world = World::new();
    let made = world.act("agents/one", &["sockets"]);
    let internet: Vec<_> = made.split(' ').filter(|s| s.starts_with("2/") || s.starts_with("10/")).collect();
    assert_eq!(internet, ["2/1/0", "2/1/6", "10/1/0", "10/1/6"]);
    // The same attempts make others where nothing governs: the probe does try.
    let free = world.act("free", &["sockets"]);
    for kind in ["2/2/17", "2/3/1", "2/3/255", "10/2/17", "10/3/58"] {
        assert!(free.split(' ').any(|s| s == kind), "{kind} among {free}");
    }
}

#[test]
fn datagrams_are_refused() {
    let world = World::new();
    assert_eq!(world.act("agents/one", &["datagram", "127.0.0.1:53"]), EPERM);
}

#[test]
fn an_unknown_cgroup_below_the_governed_one_reaches_nothing() {
    let mut world = World::new();
    std::fs::create_dir(world.cgroup("agents/one/child")).expect("a cgroup");
    let direct = Direct::new("127.0.0.1");
    for cgroup in ["agents", "agents/two", "agents/one/child"] {
        for address in ["192.0.2.1:1", "[2001:db8::1]:1", "[::ffff:192.0.2.1]:1", &direct.address] {
            assert_eq!(world.act(cgroup, &["connect", address]), ECONNREFUSED, "{cgroup} {address}");
        }
    }
    assert_eq!(direct.reached(), 0);
    assert_eq!(world.tell("seen"), " ");
}

#[test]
fn a_forgotten_session_reaches_nothing() {
    let mut world = World::new();
    assert!(world.act("agents/one", &["connect", "192.0.2.1:1"]).starts_with("ok "));
    let id = world.id("agents/one");
    assert_eq!(world.tell(&format!("forget {id}")), "ok");
    assert_eq!(world.tell(&format!("forget {id}")), "ok", "twice is no error");
    assert_eq!(world.act("agents/one", &["connect", "192.0.2.1:1"]), ECONNREFUSED);
}

#[test]
fn options_that_choose_a_road_are_refused_and_others_are_not() {
    let world = World::new();
    assert_eq!(world.act("agents/one", &["options"]), "nodelay keepalive reuseaddr tos v6only");
    let free = world.act("free", &["options"]);
    for name in ["DEVICE", "MARK", "OPTIONS", "TRANSPARENT", "REPAIR"] {
        assert!(free.contains(name), "{name} among {free}: the probe does try");
    }
}

#[test]
fn no_port_and_no_address_of_the_host_can_be_named() {
    let world = World::new();
    for address in ["127.0.0.1:7777", "0.0.0.0:7777", "[::1]:7777", "[::]:7777", "[::ffff:127.0.0.1]:7777"] {
        assert_eq!(world.act("agents/one", &["bind", address]), EPERM, "{address}");
    }
    for address in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"] {
        assert!(world.act("agents/one", &["bind", address]).starts_with("ok"), "{address}");
    }
}

#[test]
fn nobody_reaches_a_listener_in_a_session() {
    let world = World::new();
    for (cgroup, wanted) in [("free", "somebody"), ("agents/one", "nobody")] {
        let mut listener =
            world.command(cgroup, &["listen"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the probe");
        let mut lines = BufReader::new(listener.stdout.take().expect("piped"));
        let mut line = String::new();
        lines.read_line(&mut line).expect("a line");
        let address: SocketAddr = format!("127.0.0.1:{}", line.trim()).parse().expect("a port");
        // On the loopback device an answer comes at once or never.
        let reached = TcpStream::connect_timeout(&address, Duration::from_millis(700)).is_ok();
        assert_eq!(reached, wanted == "somebody", "{cgroup}");
        writeln!(listener.stdin.take().expect("piped")).expect("it listens");
        line.clear();
        lines.read_line(&mut line).expect("a line");
        assert_eq!(line.trim(), wanted);
        assert!(listener.wait().expect("it ends").success());
    }
}

#[test]
fn a_second_redirector_is_refused_above_below_and_beside() {
    let mut world = World::new();
    let mut other = World::bare();
    other.start();
    for cgroup in [world.cgroup("agents"), world.cgroup("agents/one"), world.cgroup("")] {
        let answer = other.tell(&format!("govern {}", cgroup.display()));
        assert!(answer.contains("changed by another BPF program"), "{}: {answer}", cgroup.display());
    }
    // Nor one's own within one another, nor around the enforcer.
    for cgroup in [world.cgroup("agents/one"), world.cgroup("")] {
        let answer = world.tell(&format!("govern {}", cgroup.display()));
        assert!(answer.contains("must not lie in one another"), "{}: {answer}", cgroup.display());
    }
    let own = other.cgroup("enforcer");
    assert!(other.tell(&format!("govern {}", own.display())).contains("must not lie in one another"));
    world.assert_well();
    assert!(world.act("agents/one", &["connect", "192.0.2.1:1"]).starts_with("ok "));
}

#[test]
fn sockets_from_before_governing_are_cut_off() {
    for cgroup in ["free", "agents/one"] {
        let mut world = World::bare();
        world.start();
        let stream = TcpListener::bind("127.0.0.1:0").expect("a port");
        let datagram = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let address = |found: std::io::Result<SocketAddr>| found.expect("an address").to_string();
        let mut client = world
            .command(cgroup, &["earlier", &address(stream.local_addr()), &address(datagram.local_addr())])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the probe");
        let mut lines = BufReader::new(client.stdout.take().expect("piped"));
        let mut input = client.stdin.take().expect("piped");
        let mut line = String::new();
        lines.read_line(&mut line).expect("a line");
        let (mut stream, _) = stream.accept().expect("it has connected");
        world.govern();
        world.allow("one");
        writeln!(input).expect("it listens");
        lines.read_line(&mut line).expect("a line");
        assert_eq!(line, "ok\nok\n");
        // What was sent over the loopback device is here by now, or was dropped.
        stream.set_nonblocking(true).expect("a stream");
        datagram.set_nonblocking(true).expect("a socket");
        let came = (stream.read(&mut [0; 8]).ok(), datagram.recv(&mut [0; 8]).ok());
        assert_eq!(came, if cgroup == "free" { (Some(1), Some(1)) } else { (None, None) }, "{cgroup}");
        drop(input);
        client.wait().expect("it ends");
    }
}
