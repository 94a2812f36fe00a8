//! Cgroups that others make, claimed by a whole daemon.

use std::fs;

use portcullis::record::EventBody;
use portcullis_tests::{Daemon, SHOP_POLICY};

use crate::world::eventually;

#[test]
fn a_claim_beyond_the_limit_is_refused_on_the_record_and_made_good_when_there_is_room() {
    let policy = SHOP_POLICY.replace("cgroup = \"{slice}/bot/*\"", "cgroup = \"{slice}/unit-*\"\nclaim = true");
    let daemon = Daemon::start_alone(&policy, "[limits]\nsessions = 1\n").expect("a daemon");
    let [folder] = &daemon.cgroups()[..] else { panic!("{:?}", daemon.cgroups()) };
    let lines = |arguments: &[&str]| -> Vec<serde_json::Value> {
        let text = daemon.ok(arguments).expect("it answers");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    };
    let live = || -> Vec<String> {
        let all = lines(&["sessions", "--json"]).into_iter().filter(|session| session["state"] == "live");
        all.map(|session| session["command"].to_string()).collect()
    };
    let refused = || -> Vec<String> {
        let events = portcullis::record::read::events(daemon.path("state/record")).expect("the record");
        let events = events.map(|event| event.expect("an event").event);
        let all = events.filter_map(|event| match &event.body {
            EventBody::Refused { what, .. } => Some(format!("{}: {what}", event.workload)),
            _ => None,
        });
        all.filter(|what| what.contains("cannot be claimed")).collect()
    };
    let is_live = |name: &str| matches!(&live()[..], [one] if one.contains(name));

    fs::create_dir(folder.join("unit-1")).expect("a cgroup");
    assert!(eventually(|| is_live("unit-1")), "{:?}", live());
    assert_eq!(refused(), [""; 0]);
    fs::create_dir(folder.join("unit-2")).expect("a cgroup");
    assert!(eventually(|| !refused().is_empty()), "{}", daemon.log());
    let first = refused();
    assert!(first[0].contains("unit-2") && first[0].contains("limits.sessions"), "{first:?}");
    assert!(first[0].starts_with("bot: "), "{first:?}");

    // Each new cgroup is a reason to look again.
    for name in ["other-1", "other-2", "other-3"] {
        fs::create_dir(folder.join(name)).expect("a cgroup");
    }
    fs::remove_dir(folder.join("unit-1")).expect("an empty cgroup");
    assert!(eventually(|| is_live("unit-2")), "{:?}", live());
    assert_eq!(refused(), first, "once for each cgroup");
}
