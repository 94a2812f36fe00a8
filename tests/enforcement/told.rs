//! What is refused is counted, and told with who tried.

use std::collections::BTreeMap;

use crate::world::{World, kernel_judges_unix};

/// What was told since the last time, as words: reason, cgroup, pid, uid, name, left out, sentence.
fn told(world: &mut World) -> Vec<Vec<String>> {
    let all = world.tell("refusals");
    all.split(';').filter(|s| !s.is_empty()).map(|s| s.splitn(7, ' ').map(str::to_owned).collect()).collect()
}

fn counted(world: &mut World) -> BTreeMap<String, u64> {
    let all = world.tell("refused");
    let counts = all.split(' ').filter_map(|s| s.split_once('='));
    counts.map(|(reason, count)| (reason.to_owned(), count.parse().expect("a count"))).collect()
}

#[test]
fn every_reason_is_counted_and_told_in_words() {
    let mut world = World::new();
    let cgroup = world.id("agents/one").to_string();
    let unknown = world.id("agents/two").to_string();
    const UDP: &str = "UDP socket: only TCP sockets are made where names are not answered over UDP";
    let nothing = std::path::Path::new("/nonexistent/socket");
    let path = nothing.to_str().expect("text");
    assert_eq!(world.tell("refusals"), "");
    assert_eq!(world.tell("refused"), "");
    for (session, action, reason, words) in [
        ("one", &["socket", "2", "2", "17", "1"][..], "socket", UDP),
        ("one", &["socket", "10", "3", "58", "1"], "socket", "raw (58) socket: only TCP sockets are made"),
        ("one", &["socket", "2", "1", "262", "1"], "socket", "MPTCP socket: only TCP sockets are made"),
        (
            "one",
            &["bind", "127.0.0.1:7777"],
            "bind",
            "bind to 127.0.0.1:7777: nothing is offered to others from a session",
        ),
        ("one", &["bind", "[::1]:7777"], "bind", "bind to [::1]:7777: nothing is offered to others from a session"),
        (
            "one",
            &["unix", "stream", "exact", path],
            "unix",
            "unix socket /nonexistent/socket: the policy does not list it",
        ),
        (
            "one",
            &["unix", "send", "dirty", path],
            "unix",
            "unix socket /nonexistent/socket: the policy does not list it",
        ),
        ("one", &["unix", "stream", "exact", "@name"], "unix", "unix socket @name: the policy does not list it"),
        ("two", &["connect", "192.0.2.1:80"], "session", "connect to 192.0.2.1:80: the cgroup is no session"),
        ("two", &["connect", "[2001:db8::1]:80"], "session", "connect to [2001:db8::1]:80: the cgroup is no session"),
        (
            "two",
            &["unix", "stream", "exact", path],
            "session",
            "connect to unix socket /nonexistent/socket: the cgroup is no session",
        ),
    ] {
        let before = counted(&mut world).remove(reason).unwrap_or(0);
        if action[0] == "unix" && !kernel_judges_unix() {
            world.assert_well();
            assert_ne!(world.act(&format!("agents/{session}"), action), "ok", "nobody listens there");
            assert_eq!((told(&mut world), counted(&mut world).remove(reason).unwrap_or(0)), (Vec::new(), before));
            continue;
        }
        let answer = world.act(&format!("agents/{session}"), action);
        let told = told(&mut world);
        let [refusal] = &told[..] else { panic!("{action:?}: {told:?}") };
        let id = if session == "one" { &cgroup } else { &unknown };
        assert_eq!([&refusal[0], &refusal[1], &refusal[3], &refusal[4]], [reason, id, "0", "probe"], "{refusal:?}");
        assert_eq!(refusal[6], words);
        if action[0] == "socket" {
            assert_eq!(answer, format!("0 {}", refusal[2]), "nothing made, by this process");
        }
        assert_eq!(counted(&mut world)[reason], before + 1, "{action:?}");
    }
    assert!(world.act("agents/one", &["options"]).contains("nodelay"));
    assert!(
        told(&mut world).iter().any(|t| t[0] == "option" && t[6].contains("option 25 of level 1:")),
        "BINDTODEVICE"
    );
    assert_eq!(world.tell("stop"), "ok");
    // Of a cgroup that was not told of so often as to be left out.
    world.act("agents/two", &["connect", "[::ffff:192.0.2.1]:80"]);
    let told = told(&mut world);
    assert_eq!(
        [&*told[0][0], &*told[0][6]],
        ["enforcer", "connect to [::ffff:192.0.2.1]:80: no enforcer was alive to take it"]
    );
    // What is allowed is not counted.
    let before = counted(&mut world);
    world.act("free", &["socket", "2", "2", "17", "9"]);
    assert_eq!(counted(&mut world), before);
}

#[test]
fn a_flood_is_counted_whole_told_in_part_and_nobody_elses_business() {
    let mut world = World::new();
    world.allow("two");
    const TIMES: u64 = 5000;
    let times = TIMES.to_string();
    assert!(world.act("agents/one", &["socket", "2", "2", "17", &times]).starts_with("0 "));
    assert_eq!(counted(&mut world)["socket"], TIMES);
    let first = told(&mut world);
    assert!(!first.is_empty() && first.len() < 200, "{} were told", first.len());
    // Another is told of at once.
    world.act("agents/two", &["socket", "2", "2", "17", "1"]);
    assert_eq!(told(&mut world).len(), 1);
    // With the next window comes how many were left out.
    let mut all = first.len() as u64;
    let mut tried = TIMES;
    assert!(crate::world::eventually(|| {
        world.act("agents/one", &["socket", "2", "2", "17", "1"]);
        tried += 1;
        let told = told(&mut world);
        all += told.len() as u64;
        told.last().is_some_and(|last| last[5].parse::<u64>().expect("a count") + all == tried)
    }));
}

#[test]
fn packets_are_told_without_a_process() {
    use std::{
        io::{BufRead, BufReader, Write},
        net::{TcpListener, UdpSocket},
        process::Stdio,
    };
    let mut world = World::bare();
    world.start();
    let stream = TcpListener::bind("127.0.0.1:0").expect("a port");
    let datagram = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let (to, other) = (stream.local_addr().expect("bound"), datagram.local_addr().expect("bound"));
    let mut client = world
        .command("agents/one", &["earlier", &to.to_string(), &other.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the probe");
    let mut lines = BufReader::new(client.stdout.take().expect("piped")).lines();
    let mut input = client.stdin.take().expect("piped");
    lines.next();
    world.govern();
    world.allow("one");
    writeln!(input).expect("it listens");
    lines.next();
    let cgroup = world.id("agents/one").to_string();
    let told = told(&mut world);
    for (to, protocol) in [(to, "TCP"), (other, "UDP")] {
        let words = format!("packet to {to} by {protocol}: only the enforcer is reached");
        let found = told.iter().find(|refusal| refusal[6] == words);
        let found = found.unwrap_or_else(|| panic!("{words} among {told:?}"));
        assert_eq!(found[..5], ["egress", &*cgroup, "-", "-", "-"]);
    }
    assert!(counted(&mut world)["egress"] >= 2);
    drop((input, lines));
    client.wait().expect("it ends");
}
