//! Large bodies through a whole daemon: however much streams, it keeps little of it.

use std::fs;

use portcullis::record::read;
use portcullis_tests::{Daemon, Server as _, Web};

use crate::{governed, text};

const POLICY: &str = r#"
[workload]
name = "bot"
cgroup = "{slice}/bot/*"
autonomy = "autonomous"

[[upstream]]
name = "api"
protocol = "http"
address = ["localhost:{port}"]
tls = { mode = "disable" }
credential = { source = "file", path = "{password}" }

[[rule]]
name = "reads and writes"
verbs = ["read", "write"]
targets = ["**"]
effect = "allow"

[[mask]]
detect = ["email"]
with = "redact"
"#;

/// By how much memory may grow, in KiB. What streams is many times that.
const MOST: u64 = 6 << 10;

/// A field of what the kernel says of a process's memory, in KiB (proc_pid_status(5)).
fn memory(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse().unwrap()
}

#[test]
fn memory_does_not_grow_with_what_streams() {
    let web = Web::start_clear().unwrap();
    let daemon = Daemon::start(&web, POLICY).unwrap();
    let url = format!("https://localhost:{}", web.port());
    let run = |line: &str| {
        let said = text(&governed(&daemon, "/bin/sh", &["-c", line, &url]));
        assert!(!said.contains("curl:"), "{line}: {said} {}", daemon.log());
        said
    };
    let download = |kind: &str, mib: u64| {
        run(&format!("curl -sS \"$0/large?mib={mib}&type={kind}\" | wc -c")).trim().parse::<u64>().unwrap()
    };
    let upload = |mib: u64| {
        let zeros = format!("head -c {mib}M /dev/zero");
        run(&format!("{zeros} | curl -sS -H Expect: -X POST -T - \"$0/discard\"")).parse::<u64>().unwrap()
    };
    // What is kept for whoever comes next is there before.
    for mib in [1, 4] {
        download("text/plain", mib);
        download("application/octet-stream", mib);
        upload(mib);
    }
    let pid = daemon.pid().unwrap();
    let masked = "[redacted]".len() as u64;
    let mail = "someone@example.com".len() as u64;
    let scenarios: [(&str, &dyn Fn() -> u64, u64); 3] = [
        ("a response, looked into", &|| download("text/plain", 64), (64 << 20) - 64 * 16 * (mail - masked)),
        ("a response, not looked into", &|| download("application/octet-stream", 256), 256 << 20),
        ("an upload", &|| upload(256), 256 << 20),
    ];
    for (name, transfer, size) in scenarios {
        // The peak begins anew (proc_pid_clear_refs(5)).
        fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
        let before = memory(pid, "VmRSS:");
        assert_eq!(transfer(), size, "{name}");
        let most = memory(pid, "VmHWM:");
        println!("{name}: {before} KiB before, {most} KiB at most");
        assert!(most < before + MOST, "{name}: {before} KiB before, {most} KiB at most");
    }
    let events = read::events(daemon.path("state/record")).unwrap();
    let record: Vec<String> = events.map(|e| serde_json::to_string(&*e.unwrap().event).unwrap()).collect();
    assert!(record.iter().any(|line| line.contains("\"masked\":{\"count\":1024,")), "{}", record.join("\n"));
}
