//! Enforcement outlives the enforcer, and has no gap between two of them.

use std::process::Stdio;

use crate::world::{Direct, ECONNREFUSED, Namespace, World, eventually};

const ADDRESSES: [&str; 3] = ["192.0.2.1:1", "[2001:db8::1]:1", "[::ffff:192.0.2.1]:1"];

#[test]
fn after_kill_9_nothing_connects_anywhere() {
    let mut world = World::new();
    let (v4, v6) = (Direct::new("127.0.0.1"), Direct::new("::1"));
    world.kill_enforcer();
    for address in ADDRESSES.iter().copied().chain([v4.address.as_str(), v6.address.as_str()]) {
        assert_eq!(world.act("agents/one", &["connect", address]), ECONNREFUSED, "{address}");
    }
    assert_eq!(world.act("agents/one", &["datagram", "127.0.0.1:53"]), "error 1");
    assert_eq!((v4.reached(), v6.reached()), (0, 0));
}

#[test]
fn whoever_takes_the_port_of_a_killed_enforcer_is_sent_nothing() {
    let (home, other) = (Namespace::new(), Namespace::new());
    let mut world = World::bare();
    world.start_in(&home);
    world.govern();
    world.allow("one");
    assert_eq!(world.tell(&format!("listen {}", other.pid)), "ok");
    let act = |world: &World, namespace: &Namespace, address: &str| {
        let output = namespace.command(world, "agents/one", &["connect", address]).output().expect("the probe");
        String::from_utf8(output.stdout).expect("text").trim_end().to_owned()
    };
    let namespaces = [&home, &other];
    for namespace in namespaces {
        assert!(act(&world, namespace, ADDRESSES[0]).starts_with("ok "));
    }
    let ports = [format!("127.0.0.1:{}", world.enforcer().port4), format!("[::1]:{}", world.enforcer().port6)];
    world.kill_enforcer();
    // The last heartbeat is fresh for two seconds yet.
    let thieves: Vec<_> = namespaces.iter().flat_map(|n| ports.iter().map(|port| n.listen(port))).collect();
    for namespace in namespaces {
        for address in ADDRESSES {
            assert_eq!(act(&world, namespace, address), ECONNREFUSED, "{address}");
        }
    }
    assert!(thieves.iter().all(|thief| thief.reached() == 0), "a thief was sent something");
}

#[test]
fn a_stale_heartbeat_refuses_although_the_listener_is_there() {
    let mut world = World::new();
    assert!(world.act("agents/one", &["connect", ADDRESSES[0]]).starts_with("ok "));
    assert_eq!(world.tell("fall-silent"), "ok");
    assert!(
        eventually(|| world.act("agents/one", &["connect", ADDRESSES[0]]) == ECONNREFUSED),
        "a silent enforcer is still connected to"
    );
    world.tell("seen");
    for address in ADDRESSES {
        assert_eq!(world.act("agents/one", &["connect", address]), ECONNREFUSED, "{address}");
    }
    assert_eq!(world.tell("seen"), " ", "nothing came to the listener");
}

#[test]
fn an_enforcer_that_stops_refuses_at_once() {
    let mut world = World::new();
    assert_eq!(world.tell("stop"), "ok");
    assert_eq!(world.act("agents/one", &["connect", ADDRESSES[0]]), ECONNREFUSED);
}

#[test]
fn a_new_enforcer_takes_over_and_forgets_the_old_ones_sessions() {
    let mut world = World::new();
    world.kill_enforcer();
    world.start();
    // Pinned hooks are taken over before anything is governed again.
    assert_eq!(world.act("agents/one", &["connect", ADDRESSES[0]]), ECONNREFUSED, "the session is not known any more");
    world.govern();
    world.assert_well();
    assert_eq!(world.act("agents/one", &["connect", ADDRESSES[0]]), ECONNREFUSED);
    world.allow("one");
    for address in ADDRESSES {
        assert!(world.act("agents/one", &["connect", address]).starts_with(&format!("ok {address} {address} ")));
    }
    // Governing again changes nothing.
    world.govern();
    world.assert_well();
}

#[test]
fn there_is_no_moment_without_enforcement() {
    let mut world = World::new();
    let (v4, v6) = (Direct::new("127.0.0.1"), Direct::new("::1"));
    let hammers: Vec<_> = (0..2)
        .map(|_| {
            world
                .command("agents/one", &["hammer", &v4.address, &v6.address])
                .stdout(Stdio::null())
                .spawn()
                .expect("the probe")
        })
        .collect();
    for _ in 0..5 {
        world.kill_enforcer();
        world.start();
        world.govern();
        world.allow("one");
        world.assert_well();
        // It is the redirect that kept the hammers from the servers.
        assert!(eventually(|| world.tell("seen").contains(&v4.address)), "the hammers connect");
    }
    for mut hammer in hammers {
        hammer.kill().expect("it runs");
        hammer.wait().expect("it ends");
    }
    assert_eq!((v4.reached(), v6.reached()), (0, 0), "reached directly");
}

#[test]
fn two_enforcers_cannot_have_the_same_pins() {
    let world = World::new();
    let second = std::process::Command::new(crate::world::PROBE)
        .arg("enforcer")
        .args([&world.pins(), world.root(), &world.cgroup("free")])
        .args(["0", "0"])
        .stdin(Stdio::null())
        .output()
        .expect("the probe");
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("another daemon uses"), "{second:?}");
}

#[test]
fn a_lost_link_or_a_deleted_cgroup_is_noticed() {
    let mut world = World::new();
    let link = world.pins().join("links").join(world.id("agents").to_string());
    std::fs::remove_file(link.join("egress")).expect("the link is pinned");
    assert!(world.tell("verify").contains("`egress` is not attached"));
    // Governing again repairs it.
    world.govern();
    world.assert_well();

    for child in ["agents/one", "agents/two", "agents"] {
        std::fs::remove_dir(world.cgroup(child)).expect("it is empty");
    }
    assert!(world.tell("verify").contains("was deleted"));
    std::fs::create_dir_all(world.cgroup("agents/one")).expect("a cgroup");
    assert!(world.tell("verify").contains("was deleted"), "another cgroup at the same path is not governed");
    world.govern();
    world.allow("one");
    world.assert_well();
    assert!(world.act("agents/one", &["connect", ADDRESSES[0]]).starts_with("ok "));
}
