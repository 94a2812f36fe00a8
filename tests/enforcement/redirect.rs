//! Connections of a governed process come to the enforcer, with the right origin; the client sees what it asked for.

use std::process::Stdio;

use crate::world::{Direct, ECONNREFUSED, Namespace, World};

/// What the enforcer answers: origin, cgroup, pid, uid, name. The first word is what `getpeername` showed.
fn connected(world: &World, address: &str) -> Vec<String> {
    let line = world.act("agents/one", &["connect", address]);
    line.strip_prefix("ok ").unwrap_or_else(|| panic!("{address}: {line}")).split(' ').map(str::to_owned).collect()
}

#[test]
fn origin_identity_and_peer_name_are_right_for_each_family() {
    let world = World::new();
    for address in ["192.0.2.77:5432", "127.0.0.1:5432", "[2001:db8::7]:443", "[::1]:80", "[::ffff:192.0.2.77]:22"] {
        let words = connected(&world, address);
        assert_eq!(words[0], address, "getpeername");
        assert_eq!(words[1], address, "origin");
        assert_eq!(words[2], world.id("agents/one").to_string(), "cgroup");
        assert_eq!(words[4], "0", "uid");
        assert_eq!(words[5], "probe", "name");
    }
}

#[test]
fn a_connection_that_is_closed_at_once_keeps_its_origin() {
    let mut world = World::new();
    for (ip, first) in [("192.0.2.1", 10_000), ("2001:db8::1", 20_000), ("::ffff:192.0.2.1", 30_000)] {
        assert_eq!(world.act("agents/one", &["brief", &first.to_string(), "2000", ip]), "ok");
        let mut all = std::collections::BTreeMap::new();
        // The last ones may still be waiting to be accepted.
        crate::world::eventually(|| {
            let seen = world.tell("seen");
            let (origins, without) = seen.split_once(' ').unwrap_or((&seen, ""));
            assert_eq!(without, "", "connections without origin");
            for origin in origins.split(',').filter(|o| !o.is_empty()) {
                let (address, count) = origin.rsplit_once('=').unwrap_or_default();
                *all.entry(address.parse::<std::net::SocketAddr>().expect("an address")).or_insert(0) +=
                    count.parse::<usize>().expect("a count");
            }
            all.values().sum::<usize>() >= 2000
        });
        let wanted = (first..first + 2000)
            .map(|port: u16| (std::net::SocketAddr::new(ip.parse().expect("an address"), port), 1));
        assert!(all.into_iter().eq(wanted), "{ip}: each origin exactly once");
    }
}

#[test]
fn the_enforcer_itself_is_no_destination() {
    let mut world = World::new();
    let (v4, v6) = (world.enforcer().port4, world.enforcer().port6);
    for address in
        [format!("127.0.0.1:{v4}"), format!("[::ffff:127.0.0.1]:{v4}"), format!("0.0.0.0:{v4}"), format!("[::1]:{v6}")]
    {
        let line = world.act("agents/one", &["connect", &address]);
        assert!(line.split(' ').nth(2).is_none_or(str::is_empty), "{address} was answered: {line}");
        assert!(world.tell("seen").contains("Enforcer"), "{address}");
    }
}

#[test]
fn who_connects_to_the_enforcer_without_the_redirect_has_no_origin() {
    let mut world = World::new();
    let address = format!("127.0.0.1:{}", world.enforcer().port4);
    let line = world.act("free", &["connect", &address]);
    assert_eq!(line, format!("ok {address}"), "no answer");
    assert!(world.tell("seen").contains("Missing"));
}

#[test]
fn in_a_network_namespace_without_a_listener_of_ours_everything_is_refused() {
    let mut world = World::new();
    let other = Namespace::new();
    let act = |world: &World, address: &str| {
        let output = other.command(world, "agents/one", &["connect", address]).output().expect("the probe");
        String::from_utf8(output.stdout).expect("text").trim_end().to_owned()
    };
    // Somebody else has the enforcer's port there.
    let thief = other.listen(&format!("127.0.0.1:{}", world.enforcer().port4));
    for address in ["192.0.2.1:1", "[::ffff:192.0.2.1]:1", "[2001:db8::1]:1", &thief.address, "[::1]:1"] {
        assert_eq!(act(&world, address), ECONNREFUSED, "{address}");
    }
    assert_eq!(thief.reached(), 0);
    assert!(world.tell("refused").contains("namespace=5"));
    drop(thief);
    assert_eq!(world.tell(&format!("listen {}", other.pid)), "ok");
    for address in ["192.0.2.1:1", "[::ffff:192.0.2.1]:1", "[2001:db8::1]:1", "[::1]:1"] {
        assert!(act(&world, address).starts_with(&format!("ok {address} {address} ")), "{address}");
    }
}

#[test]
fn ungoverned_processes_are_left_alone() {
    let world = World::new();
    let direct = Direct::new("127.0.0.1");
    let mut client =
        world.command("free", &["connect", &direct.address]).stdout(Stdio::null()).spawn().expect("the probe");
    assert!(crate::world::eventually(|| direct.reached() == 1), "the direct server was not reached");
    assert!(client.wait().expect("it ends").success());
    assert_eq!(world.act("free", &["datagram", &direct.address]), "ok");
}

#[test]
fn two_daemons_side_by_side_do_not_mix() {
    let (mut one, mut other) = (World::new(), World::new());
    assert!(one.act("agents/one", &["connect", "192.0.2.1:1"]).starts_with("ok 192.0.2.1:1 192.0.2.1:1"));
    assert!(other.act("agents/one", &["connect", "192.0.2.2:2"]).starts_with("ok 192.0.2.2:2 192.0.2.2:2"));
    assert_eq!(one.tell("seen"), "192.0.2.1:1=1 ");
    assert_eq!(other.tell("seen"), "192.0.2.2:2=1 ");
    // What one allows counts for its own hooks only.
    let id = other.id("agents/two");
    assert_eq!(one.tell(&format!("allow {id}")), "ok");
    assert_eq!(other.act("agents/two", &["connect", "192.0.2.2:2"]), ECONNREFUSED);
}
