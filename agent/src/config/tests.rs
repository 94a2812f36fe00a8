use std::path::Path;

use super::*;

fn refusal(text: &str) -> (String, Option<String>, String) {
    let error = parse(text, "portcullis.toml").unwrap_err();
    let ConfigError::Parse { message, span, help, .. } = error else { panic!("{error:?}") };
    let place = span.map_or(String::new(), |s| text[s.offset()..s.offset() + s.len()].to_owned());
    (message, help, place)
}

#[test]
fn empty_text_is_the_defaults() {
    assert_eq!(parse("", "x").unwrap(), Settings::default());
    let settings = Settings::default();
    assert_eq!(settings.control_socket(), Path::new("/run/portcullis/control.sock"));
    assert_eq!(settings.record_dir(), Path::new("/var/lib/portcullis/record"));
}

#[test]
fn the_packaged_file_says_the_defaults_commented_out_or_not() {
    let packaged = include_str!("../../../deploy/portcullis.toml");
    assert_eq!(parse(packaged, "x").unwrap(), Settings::default());
    let effective: String = packaged
        .lines()
        .filter_map(|line| line.strip_prefix('#'))
        .filter(|line| !line.starts_with(' '))
        .fold(String::new(), |all, line| all + line + "\n");
    assert_eq!(effective.lines().filter(|line| line.contains('=')).count(), 16, "{effective}");
    assert_eq!(parse(&effective, "x").unwrap(), Settings::default());
}

#[test]
fn every_key_is_taken() {
    let settings = parse(
        r#"
        policy_dir = "/t/p"
        state_dir = "/t/s"
        runtime_dir = "/t/r"
        reviewers = ["user:ann", "group:dba"]
        [daemon]
        user = "house"
        [listen]
        v4 = "127.0.0.5:0"
        v6 = "off"
        [kernel]
        cgroup_root = "/t/cg"
        pin_dir = "/t/bpf"
        daemon_cgroup = "a/b"
        heartbeat = "250ms"
        [log]
        format = "json"
        filter = "debug"
        [control]
        group = "ops"
        operators = ["user:bob"]
        max_request = 200000
        [limits]
        connections = 5
        sessions = 6
        drain = "1m 30s"
        [sessions]
        uids = "59000-59999"
        [record]
        dir = "/t/rec"
        segment_bytes = 1048576
        [ca]
        lifetime = "48h"
        "#,
        "x",
    )
    .unwrap();
    assert_eq!(settings.listen.v4.to_string(), "127.0.0.5:0");
    assert_eq!(settings.listen.v6, None);
    assert_eq!(settings.sessions.uids, Some(UidRange { first: 59_000, last: 59_999 }));
    assert_eq!(settings.daemon.user.as_deref(), Some("house"));
    assert_eq!(settings.limits.drain, Duration::from_secs(90));
    assert_eq!(settings.record_dir(), Path::new("/t/rec"));
    assert_eq!(settings.control.operators, [Reviewer::User("bob".into())]);
    assert_eq!(settings.kernel.heartbeat, Duration::from_millis(250));
    assert_eq!(settings.ca.lifetime, Duration::from_secs(48 * 3600));
}

#[test]
fn an_unknown_key_is_refused_with_place_and_suggestion() {
    let (message, help, place) = refusal("state_dir = \"/x\"\npolicy_dirr = \"/y\"\n");
    assert!(message.contains("unknown field `policy_dirr`"), "{message}");
    assert_eq!(help.as_deref(), Some("did you mean `policy_dir`?"));
    assert_eq!(place, "policy_dirr");
    let (_, help, place) = refusal("[listen]\nv5 = \"127.0.0.1:1\"\n");
    assert!(help.is_some());
    assert_eq!(place, "v5");
    let (_, help, _) = refusal("completely_different = 1\n");
    assert_eq!(help, None);
}

#[test]
fn what_cannot_work_is_refused_where_it_stands() {
    for (text, says, at) in [
        ("[listen]\nv4 = \"0.0.0.0:943\"\n", "not a loopback address", "\"0.0.0.0:943\""),
        ("[listen]\nv4 = \"[::1]:943\"\n", "not an address and port", "\"[::1]:943\""),
        ("[listen]\nv6 = \"[::]:943\"\n", "not a loopback address", "\"[::]:943\""),
        ("[listen]\nv6 = \"[::ffff:127.0.0.1]:943\"\n", "not a loopback address", "\"[::ffff:127.0.0.1]:943\""),
        ("state_dir = \"var\"\n", "absolute path", "\"var\""),
        ("[kernel]\ndaemon_cgroup = \"../x\"\n", "without `..`", "daemon_cgroup = \"../x\""),
        ("[kernel]\nheartbeat = \"10s\"\n", "at most 1s", "heartbeat = \"10s\""),
        ("[limits]\nsessions = 1\nconnections = 0\n", "at least 1", "connections = 0"),
        ("[limits]\ndrain = \"0s\"\n", "length of time", "\"0s\""),
        ("[limits]\ndrain = \"-3s\"\n", "length of time", "\"-3s\""),
        ("reviewers = [\"dba\"]\n", "user:NAME", "[\"dba\"]"),
        ("[sessions]\nuids = \"500-600\"\n", "the host's own", "\"500-600\""),
        ("[sessions]\nuids = \"65000-66000\"\n", "the host's own", "\"65000-66000\""),
        ("[sessions]\nuids = \"4294967000-4294967295\"\n", "the host's own", "\"4294967000-4294967295\""),
        ("[sessions]\nuids = \"2000-1000\"\n", "ends before", "\"2000-1000\""),
        ("[sessions]\nuids = \"100000-999999\"\n", "more than", "\"100000-999999\""),
        ("[sessions]\nuids = \"59000\"\n", "not a range", "\"59000\""),
        ("runtime_dir = \"/x\"\nstate_dir = \"/x\"\n", "must not be `state_dir`", "\"/x\""),
    ] {
        let (message, _, place) = refusal(text);
        assert!(message.contains(says), "{text}: {message}");
        assert_eq!(place, at, "{text}: {message}");
    }
}

#[test]
fn user_ids_go_round() {
    let range = UidRange { first: 5000, last: 5003 };
    let from = |last| range.after(last).collect::<Vec<_>>();
    assert_eq!(from(None), [5000, 5001, 5002, 5003]);
    assert_eq!(from(Some(5001)), [5002, 5003, 5000, 5001]);
    assert_eq!(from(Some(5003)), from(None));
    assert_eq!(from(Some(9)), from(None));
    assert_eq!(from(Some(u32::MAX)), from(None));
}

#[test]
fn a_named_file_must_exist() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("none.toml");
    assert!(matches!(load(Some(&path)), Err(ConfigError::Read { .. })));
    std::fs::write(&path, "[log]\nfilter = \"warn\"\n").unwrap();
    assert_eq!(load(Some(&path)).unwrap().log.filter, "warn");
}

#[test]
fn the_cgroup2_tree_is_found_on_hybrid_and_pure_hosts() {
    let hybrid = "30 23 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro\n\
        31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw\n\
        32 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
    assert_eq!(cgroup::root_in(hybrid).unwrap(), Path::new("/sys/fs/cgroup/unified"));
    let pure = "31 30 0:27 / /sys/fs/cgroup rw shared:4 master:2 - cgroup2 cgroup rw,nsdelegate\n";
    assert_eq!(cgroup::root_in(pure).unwrap(), Path::new("/sys/fs/cgroup"));
    let odd = "31 30 0:27 /sub /part rw - cgroup2 c rw\n32 30 0:27 / /my\\040cgroups rw - cgroup2 c rw\n";
    assert_eq!(cgroup::root_in(odd).unwrap(), Path::new("/my cgroups"));
    assert_eq!(cgroup::root_in("31 30 0:27 / /cgroup2 rw - tmpfs cgroup2 rw\nrubbish\n"), None);
}

#[test]
fn the_trees_of_v1_controllers_are_found() {
    let hybrid = "31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,memory\n\
        32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw shared:3 - cgroup cgroup rw,cpu,cpuacct\n\
        33 30 0:29 /docker/x /my\\040pids rw - cgroup cgroup rw,pids\nrubbish - \n";
    let tree = |root: &str, point: &str| cgroup::V1Tree { root: root.into(), point: point.into() };
    assert_eq!(cgroup::v1_tree(hybrid, "cpu"), Some(tree("/", "/sys/fs/cgroup/cpu,cpuacct")));
    assert_eq!(cgroup::v1_tree(hybrid, "pids"), Some(tree("/docker/x", "/my pids")));
    assert_eq!(cgroup::v1_tree(hybrid, "memory"), None, "an option of another file system");
    let listing = "9:name=systemd:/s\n8:pids:/p:q\n4:cpu,cpuacct:/c\n0::/x\n";
    assert_eq!(cgroup::in_v1_listing(listing, "pids"), Some("/p:q"));
    assert_eq!(cgroup::in_v1_listing(listing, "cpu"), Some("/c"));
    assert_eq!(cgroup::in_v1_listing(listing, "memory"), None);
}

#[test]
fn membership_is_by_segment() {
    assert!(cgroup::is_within("/a/b", "/a/b"));
    assert!(cgroup::is_within("/a/b/c", "/a/b/"));
    assert!(!cgroup::is_within("/a/bc", "/a/b"));
    assert!(!cgroup::is_within("/a", "/a/b"));
    assert!(cgroup::is_within("/x", "/"));
    assert_eq!(cgroup::in_listing("9:name=systemd:/0::/x\n0::/u/v:w\n"), Some("/u/v:w"));
    assert_eq!(cgroup::in_listing("9:cpu:/a\n"), None);
}

#[test]
fn the_root_is_never_governed() {
    assert!(cgroup::may_be_governed("portcullis.slice/bot"));
    for bad in ["", "/", "a/../b", "..", "./a", "a//b", "a/"] {
        assert!(!cgroup::may_be_governed(bad), "{bad}");
    }
}

#[test]
fn durations() {
    assert_eq!(parse_duration("90s").unwrap(), Duration::from_secs(90));
    assert_eq!(parse_duration("1h30m").unwrap(), Duration::from_secs(5400));
    for bad in ["", "5", "0s", "-1m", "1y", "soon"] {
        assert!(parse_duration(bad).is_err(), "{bad}");
    }
}
