//! Many connections of every kind at the same time: each must come with its own origin, and leave nothing behind.

use std::{collections::BTreeMap, process::Stdio, time::Instant};

use crate::world::{Namespace, World, eventually};

/// Processes that connect at the same time, and how many connections each makes: over 100,000 in all.
const PROCESSES: usize = 64;
const EACH: usize = 1566;

/// `right 1 wrong 0`: numbers by name.
fn numbers(line: &str) -> BTreeMap<String, usize> {
    let words: Vec<&str> = line.split_whitespace().collect();
    words.chunks(2).map(|pair| (pair[0].to_owned(), pair[1].parse().expect(line))).collect()
}

#[test]
fn nobody_gets_a_neighbours_origin() {
    let (home, other) = (Namespace::new(), Namespace::new());
    let mut world = World::bare();
    world.start_in(&home);
    world.govern();
    let sessions = ["one", "two"];
    for session in sessions {
        world.allow(session);
    }
    assert_eq!(world.tell(&format!("listen {}", other.pid)), "ok");
    assert_eq!(world.tell("compare"), "ok");

    let start = Instant::now();
    let clients: Vec<_> = (0..PROCESSES)
        .map(|process| {
            let cgroup = format!("agents/{}", sessions[process / 2 % 2]);
            let folder = world.cgroup(&cgroup).display().to_string();
            let action = ["load", &folder, &process.to_string(), &EACH.to_string()];
            let namespace = [&home, &other][process % 2];
            namespace.command(&world, &cgroup, &action).stdout(Stdio::piped()).spawn().expect("the probe")
        })
        .collect();
    let mut done = BTreeMap::new();
    for client in clients {
        let output = client.wait_with_output().expect("it ends");
        assert!(output.status.success(), "a client ended with {}", output.status);
        for (name, count) in numbers(&String::from_utf8_lossy(&output.stdout)) {
            *done.entry(name).or_insert(0) += count;
        }
    }
    let took = start.elapsed();
    assert_eq!((done["wrong"], done["failed"]), (0, 0), "{done:?}");
    let claimed = done["answered"] + done["left"];
    assert_eq!(claimed + done["reset"], PROCESSES * EACH);

    // The last ones may still be waiting to be accepted.
    let mut compared = BTreeMap::new();
    eventually(|| {
        compared = numbers(&world.tell("compared"));
        compared["right"] + compared["wrong"] + compared["missing"] >= claimed
    });
    println!("connects {}, in {took:.1?}: {done:?}; the enforcer: {compared:?}", PROCESSES * EACH);
    assert_eq!((compared["right"], compared["wrong"], compared["missing"]), (claimed, 0, 0), "{compared:?}");
    assert!(compared["silent"] <= done["reset"], "{compared:?}");
    let opened_fast = fast_opens(&home).min(fast_opens(&other));
    println!("fast opens in each namespace at least {opened_fast}");
    assert!(opened_fast > PROCESSES * EACH / 20, "Fast Open was hardly used: {opened_fast}");
    assert!(compared["ports"] * 5 < PROCESSES * EACH, "ports were hardly used again");

    // Nothing is left of them, nor of the sessions.
    let entries = |world: &mut World| numbers(&world.tell("entries"));
    assert!(eventually(|| entries(&mut world)["TUPLES"] == 0), "origins are left: {:?}", entries(&mut world));
    assert_eq!(entries(&mut world)["SESSIONS"], sessions.len());
    for session in sessions {
        let id = world.id(&format!("agents/{session}"));
        assert_eq!(world.tell(&format!("forget {id}")), "ok");
    }
    // What is left is the enforcer's own: listeners of two families in two namespaces.
    let left: BTreeMap<_, _> = entries(&mut world).into_iter().filter(|(_, count)| *count > 0).collect();
    assert_eq!(left, BTreeMap::from([("LISTENERS".to_owned(), 4)]));
}

/// How many connections came to servers of a namespace with data in their first packet: `TCPFastOpenPassive`.
fn fast_opens(namespace: &Namespace) -> usize {
    let text = std::fs::read_to_string(format!("/proc/{}/net/netstat", namespace.pid)).expect("counters");
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let mut pairs = names.split(' ').zip(values.split(' '));
    pairs
        .find_map(|(name, value)| (name == "TCPFastOpenPassive").then(|| value.parse().expect("a number")))
        .expect("it")
}
