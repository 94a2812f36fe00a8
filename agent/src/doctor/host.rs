//! What this host can do, found by asking and by loading.

use std::{
    io,
    time::{Duration, Instant, SystemTime},
};

use super::{Finding, attempts};
use crate::{bpf, config::cgroup, control::proto::NamesOver};

/// Landlock as of which processes and abstract sockets outside are out of reach: `landlock(7)`, Linux 6.12.
pub(super) const LANDLOCK_SCOPES: i32 = 6;
/// Before this a clock was never set, after that it was set wrong: 2025-01-01 and 2100-01-01, in seconds.
const YEARS: std::ops::Range<u64> = 1_735_689_600..4_102_444_800;
/// How far wall and monotonic clock may part while doctor runs.
const STEP: Duration = Duration::from_secs(1);

/// What the kernel lacks where it does not judge unix sockets.
pub(super) const LACKS_UNIX: &str =
    "hooks for unix sockets (Linux 6.7), or BPF as a security module (`bpf` in the kernel's lsm=, CONFIG_BPF_LSM)";
/// What it lacks where nobody judges who uses a socket.
pub(super) const LACKS_LSM: &str =
    "BPF as a security module: `bpf` in the kernel's lsm=, and a kernel that takes its programs (CONFIG_BPF_LSM)";
const WITHOUT_LSM: &str = "a process outside that shares a socket with a session can pass it others, which no hook sees;                            of workloads that others start, nothing but systemd refuses bpf, tracing and cgroups";

/// When doctor began, by both clocks.
#[derive(Debug)]
pub struct Clocks {
    wall: SystemTime,
    monotonic: Instant,
}

impl Clocks {
    /// Now.
    pub fn now() -> Self {
        Self { wall: SystemTime::now(), monotonic: Instant::now() }
    }

    /// Whether the time of day can be right, and did not jump since.
    pub fn finding(&self) -> Finding {
        let since_1970 = self.wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M:%S UTC").to_string();
        let fix = "set the clock (timedatectl set-ntp true) and restart the daemon";
        if !YEARS.contains(&since_1970.as_secs()) {
            let means = "times on record are wrong, certificates are refused, grants and sessions end at random";
            return Finding::open("clock", format!("it is set to {now}"), means, fix);
        }
        let monotonic = self.monotonic.elapsed();
        let wall = self.wall.elapsed().unwrap_or_default();
        if wall.abs_diff(monotonic) > STEP {
            let found = format!("it went {wall:.1?} while {monotonic:.1?} passed");
            return Finding::open("clock", found, "times on record do not tell what came first", fix);
        }
        Finding::closed("clock", now)
    }
}

/// What the kernel has.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    /// Landlock's version; 0 for none.
    pub landlock: i32,
    /// Whether it has hooks for unix sockets; `None` if that cannot be told.
    pub unix_hooks: Option<bool>,
    /// Whether its security module takes our programs; `None` if that cannot be told.
    pub lsm: Option<bool>,
}

/// What the kernel has, and findings about it.
pub fn features() -> (Features, Vec<Finding>) {
    let landlock = attempts::landlock_version();
    let mut features = Features { landlock, unix_hooks: None, lsm: None };
    let mut findings = hooks(&mut features);
    findings.extend([landlock_finding(landlock), seccomp(), cgroups()]);
    (features, findings)
}

fn hooks(features: &mut Features) -> Vec<Finding> {
    const CHECK: &str = "kernel hooks";
    if !nix::unistd::geteuid().is_root() {
        let means = "whether this kernel takes the programs is not known";
        return vec![Finding::cannot(
            CHECK,
            "only root can load programs",
            means,
            "the right to look: run it with sudo",
        )];
    }
    let (probed, no_lsm) = match bpf::probe() {
        Ok(bpf::Probe { hooks, no_lsm }) => (hooks, no_lsm),
        Err(error) => {
            let mut found = error.to_string();
            if let Some(cause) = io::Error::other(error).into_inner().and_then(|e| e.source().map(ToString::to_string))
            {
                found = format!("{found}: {cause}");
            }
            let means = "nothing can be enforced on this host";
            let fix = "use a kernel with CONFIG_CGROUP_BPF (Linux 5.8 or later)";
            return vec![Finding::open(CHECK, found, means, fix)];
        }
    };
    let refused: Vec<&bpf::Probed> = probed.iter().filter(|probed| probed.refused.is_some()).collect();
    let (unix, others): (Vec<&bpf::Probed>, Vec<_>) = refused.iter().partition(|probed| probed.hook.ends_with("_unix"));
    let names = |list: &[&bpf::Probed]| list.iter().map(|probed| probed.hook).collect::<Vec<_>>().join(", ");
    let loaded = format!("{} of {} load", probed.len() - refused.len(), probed.len());
    let finding = match (&*others, &*unix) {
        ([], []) => Finding::closed(CHECK, loaded),
        ([], _) if no_lsm.is_none() => {
            Finding::closed(CHECK, format!("{loaded}; of unix sockets the security module judges the peers"))
        }
        ([], unix) => Finding::cannot(
            CHECK,
            format!("{loaded}; not {}", names(unix)),
            "sessions of `portcullis run` make no unix sockets; workloads that others start reach every one that their \
             user may: databases, D-Bus, docker.sock",
            LACKS_UNIX,
        ),
        (others, _) => Finding::open(
            CHECK,
            format!("{loaded}; not {}", names(others)),
            "the daemon does not start, and nothing runs",
            "use a kernel that takes them (Linux 5.8 or later)",
        ),
    };
    features.unix_hooks = Some(unix.is_empty() || no_lsm.is_none());
    features.lsm = Some(no_lsm.is_none());
    vec![finding, security_module(no_lsm)]
}

fn security_module(missing: Option<String>) -> Finding {
    const CHECK: &str = "security module";
    match missing {
        None => Finding::closed(CHECK, "the kernel takes and calls our programs"),
        Some(why) => Finding::cannot(CHECK, why, WITHOUT_LSM, LACKS_LSM),
    }
}

/// What the daemon says of its programs of the security module, where the kernel would take them.
pub fn security_module_of_daemon(missing: &str) -> Finding {
    let found = format!("the daemon's programs do not enforce, or not all: {missing}");
    Finding::open("security module", found, WITHOUT_LSM, "restart the daemon (systemctl restart portcullis)")
}

fn landlock_finding(version: i32) -> Finding {
    const CHECK: &str = "Landlock";
    match version {
        ..1 => Finding::open(
            CHECK,
            "the kernel has none",
            "no session starts: processes outside of it would be within its reach",
            "add `landlock` to the kernel's `lsm=` (Linux 5.13 or later)",
        ),
        1..LANDLOCK_SCOPES => Finding::cannot(
            CHECK,
            format!("version {version}"),
            "a session can signal processes of its user outside of it",
            format!("Landlock version {LANDLOCK_SCOPES} (Linux 6.12)"),
        ),
        _ => Finding::closed(CHECK, format!("version {version}")),
    }
}

fn seccomp() -> Finding {
    const ACTIONS: &str = "/proc/sys/kernel/seccomp/actions_avail";
    let actions = std::fs::read_to_string(ACTIONS).unwrap_or_default();
    if actions.split_whitespace().any(|action| action == "errno") {
        return Finding::closed("seccomp", "the kernel filters system calls");
    }
    Finding::open(
        "seccomp",
        "the kernel does not filter system calls",
        "no session starts: io_uring and other families of sockets pass every hook",
        "use a kernel with CONFIG_SECCOMP_FILTER",
    )
}

/// Which resolvers find names in a session.
pub fn names(reach: NamesOver) -> Finding {
    names_by(reach, &std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
}

fn names_by(reach: NamesOver, resolv_conf: &str) -> Finding {
    const CHECK: &str = "names";
    const LACKS: &str = "UDP sockets of the daemon: `ListenDatagram=` as in deploy/portcullis.socket, taken up when \
                         portcullis.socket restarts; without systemd the daemon's log says why it has none";
    match reach {
        NamesOver::TcpAndUdp => Finding::closed(CHECK, "sessions ask over UDP and TCP"),
        NamesOver::Tcp if over_tcp(resolv_conf) => Finding::cannot(
            CHECK,
            "sessions ask over TCP alone, as /etc/resolv.conf says",
            "clients with musl's resolver find no names",
            LACKS,
        ),
        NamesOver::Tcp => Finding::cannot(
            CHECK,
            "sessions ask over TCP alone",
            "Go without cgo finds no names in a session, nor does musl",
            LACKS,
        ),
    }
}

/// Whether resolv.conf(5) says so: of several lines of options all hold.
fn over_tcp(resolv_conf: &str) -> bool {
    let mut lines = resolv_conf.lines().map(str::split_whitespace);
    lines.any(|mut words| words.next() == Some("options") && words.any(|word| word == "use-vc"))
}

fn cgroups() -> Finding {
    match cgroup::root() {
        Ok(root) => Finding::closed("cgroup tree", root.display().to_string()),
        Err(error) => Finding::open(
            "cgroup tree",
            error.to_string(),
            "there is nothing to attach hooks to",
            "mount one: mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Grade;

    #[test]
    fn resolvers_ask_over_tcp_where_the_options_say_so() {
        for (text, says_so) in [
            ("nameserver 192.0.2.53\noptions use-vc\n", true),
            ("options ndots:2\noptions edns0 use-vc trust-ad", true),
            ("nameserver 192.0.2.53\n", false),
            ("# options use-vc\noptions no-use-vc", false),
            ("search use-vc", false),
            ("", false),
        ] {
            let found = names_by(NamesOver::Tcp, text);
            assert_eq!(found.grade, Grade::Cannot, "{text}");
            assert_eq!(found.means.is_some_and(|means| !means.contains("Go")), says_so, "{text}");
            assert_eq!(names_by(NamesOver::TcpAndUdp, text).grade, Grade::Closed);
        }
    }
}
