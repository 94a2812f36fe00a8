//! How the daemon is: its hooks, its listener, its files, its policies.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use nix::sys::statvfs::{FsFlags, statvfs};

use super::Finding;
use crate::{
    bpf::HEARTBEAT_STALE_NS,
    config::Settings,
    control::proto::{CaStatus, Examined, StatusView},
    policy::PolicySet,
};

/// Below this much space, in bytes, the record may end soon, and with it everything.
const LITTLE_SPACE: u64 = 256 << 20;
/// State of a listening socket in /proc/net/tcp: proc_pid_net(5).
const LISTENING: &str = "0A";

/// Looks at all of it.
pub fn findings(settings: &Settings, status: &StatusView, examined: &Examined) -> Vec<Finding> {
    let mut all = hooks(examined);
    all.push(heartbeat(examined));
    all.extend(status.listen.iter().map(|address| listener(address, status.pid)));
    all.extend(namespaces(status));
    all.push(policies(settings, status));
    all.push(space(&settings.state_dir));
    all.push(permissions(settings, status.pid, examined));
    all.push(user(status.pid));
    all.extend(status.ca.as_ref().map(authority));
    all
}

fn authority(ca: &CaStatus) -> Finding {
    const CHECK: &str = "certificate authority";
    let found = ca.to_string();
    if let Some(problem) = &ca.problem {
        let means = "clients refuse upstreams that are new, or all of them once the authority that they know has ended";
        return Finding::open(CHECK, problem.as_str(), means, "mend that folder, or restart the daemon");
    }
    if ca.is_limited {
        return Finding::closed(CHECK, found);
    }
    let means = "whoever got its key out of the daemon's memory could pose as any server toward governed clients";
    Finding::open(CHECK, found, means, "have the policies of this host name fewer upstreams")
}

fn hooks(examined: &Examined) -> Vec<Finding> {
    let means = "a session below it may have a road past the enforcer; what is tried below tells which";
    let mut all: Vec<Finding> = examined
        .problems
        .iter()
        .map(|problem| match (&problem.fix, &problem.lacks) {
            (_, Some(lacks)) => Finding::cannot("hooks and pins", &*problem.message, means, lacks.as_str()),
            (fix, None) => {
                let fix = fix.as_deref().unwrap_or("restart the daemon (systemctl restart portcullis)");
                Finding::open("hooks and pins", &*problem.message, means, fix)
            }
        })
        .collect();
    if examined.governed.is_empty() {
        all.push(Finding::open(
            "hooks and pins",
            "no cgroup is governed",
            "no policy names a workload, so nothing is enforced",
            "write a policy: `portcullis policy schema` and the examples tell how",
        ));
    }
    if all.is_empty() {
        let governed: Vec<String> = examined.governed.iter().map(|path| path.display().to_string()).collect();
        let found = format!("{} hooks on {}, pinned", examined.hooks, governed.join(", "));
        all.push(Finding::closed("hooks and pins", found));
    }
    all
}

fn heartbeat(examined: &Examined) -> Finding {
    let stale = HEARTBEAT_STALE_NS / 1_000_000;
    match examined.heartbeat_ms {
        Some(age) if age < stale => Finding::closed("heartbeat", format!("{age} ms ago; refused after {stale} ms")),
        age => Finding::open(
            "heartbeat",
            age.map_or("the daemon stops".into(), |age| format!("{age} ms ago")),
            "the kernel takes the daemon for dead, and refuses every connection",
            "the daemon is overloaded or stops: see its log, and give it more processor time",
        ),
    }
}

fn listener(address: &str, daemon: u32) -> Finding {
    let check = format!("listener {address}");
    let means = "whoever has the port is sent what governed clients say";
    let holders = address.parse().map_err(io::Error::other).and_then(|address| holders(&address));
    match holders {
        Err(error) => Finding::open(&check, error.to_string(), means, "restart the daemon"),
        Ok(None) => Finding::open(&check, "nobody listens there", "every connection is refused", "restart the daemon"),
        Ok(Some(Holders { others: true, .. })) if !nix::unistd::geteuid().is_root() => Finding::cannot(
            &check,
            "somebody listens there",
            "whose socket it is only root can see",
            "the right to look: run it with sudo",
        ),
        Ok(Some(Holders { pids, .. })) => {
            let ours = fs::metadata(format!("/proc/{daemon}/exe")).ok().map(|exe| (exe.dev(), exe.ino()));
            // The service manager, our supervisor, and the daemon.
            let is_ours = |pid: &u32| {
                let exe = fs::metadata(format!("/proc/{pid}/exe")).ok().map(|exe| (exe.dev(), exe.ino()));
                *pid == 1 || *pid == daemon || (exe.is_some() && exe == ours)
            };
            let strangers: Vec<String> = pids.iter().filter(|pid| !is_ours(pid)).map(u32::to_string).collect();
            if !pids.contains(&daemon) {
                let found = format!("it is held by process {}, not by the daemon", strangers.join(", "));
                Finding::open(&check, found, means, "end that process, then restart the daemon")
            } else if strangers.is_empty() {
                Finding::closed(&check, format!("held by the daemon ({} processes)", pids.len()))
            } else {
                let found = format!("process {} holds it, too", strangers.join(", "));
                Finding::open(&check, found, means, "end that process")
            }
        }
    }
}

/// Only where it matters: no host must have sessions in namespaces of their own.
fn namespaces(status: &StatusView) -> Option<Finding> {
    let count = status.refused.get("namespace").filter(|count| **count > 0)?;
    Some(Finding::cannot(
        "network namespaces",
        format!(
            "{count} connections refused: their sessions are in network namespaces where the daemon does not listen"
        ),
        "containers and units with a network of their own reach nothing",
        "the right to enter them: for the service, the drop-in namespaces.conf (examples of the package, or deploy/)",
    ))
}

struct Holders {
    pids: Vec<u32>,
    /// Whether some process could not be looked at.
    others: bool,
}

/// Who holds the socket that listens on an address. `None` if there is none.
fn holders(address: &SocketAddr) -> io::Result<Option<Holders>> {
    let table = if address.is_ipv4() { "/proc/net/tcp" } else { "/proc/net/tcp6" };
    let wanted = in_table(address);
    let text = fs::read_to_string(table)?;
    let inode = text.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let listens = fields.get(1) == Some(&&*wanted) && fields.get(3) == Some(&LISTENING);
        listens.then(|| fields.get(9).copied()).flatten().map(str::to_owned)
    });
    let Some(inode) = inode else { return Ok(None) };
    let name = format!("socket:[{inode}]");
    let mut found = Holders { pids: Vec::new(), others: false };
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        match fs::read_dir(entry.path().join("fd")) {
            Ok(fds) => {
                let holds = |fd: fs::DirEntry| fs::read_link(fd.path()).is_ok_and(|link| link.as_os_str() == &*name);
                if fds.flatten().any(holds) {
                    found.pids.push(pid);
                }
            }
            // It ended meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => found.others = true,
        }
    }
    Ok(Some(found))
}

/// An address as the kernel prints it: words of the host's order, in hexadecimal.
fn in_table(address: &SocketAddr) -> String {
    let octets: Vec<u8> = match address {
        SocketAddr::V4(v4) => v4.ip().octets().to_vec(),
        SocketAddr::V6(v6) => v6.ip().octets().to_vec(),
    };
    let words = octets.chunks_exact(4).map(|word| word.try_into().map_or(0, u32::from_ne_bytes));
    let ip: String = words.map(|word| format!("{word:08X}")).collect();
    format!("{ip}:{:04X}", address.port())
}

fn policies(settings: &Settings, status: &StatusView) -> Finding {
    const CHECK: &str = "policies";
    let means = "what is decided now is not what the files say";
    if let Some(refused) = &status.policy.refused {
        let first = refused.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let found = format!("a newer set was refused: {}", first.trim());
        return Finding::open(CHECK, found, means, "mend it: `portcullis policy check` shows the places");
    }
    match PolicySet::load(&settings.policy_dir) {
        Err(error) => Finding::open(
            CHECK,
            format!("{} does not load: {error}", settings.policy_dir.display()),
            means,
            "mend it: `portcullis policy check` shows the places",
        ),
        Ok(set) if set.hash() != status.policy.hash => {
            let found = format!("{} was changed since {}", settings.policy_dir.display(), status.policy.loaded_at);
            Finding::open(CHECK, found, means, "load them: `portcullis reload`")
        }
        Ok(set) => {
            Finding::closed(CHECK, format!("{} ({:.12}), as on disk", status.policy.workloads.join(", "), set.hash()))
        }
    }
}

fn space(state: &Path) -> Finding {
    const CHECK: &str = "state folder";
    let means = "what cannot be recorded does not happen: every command is refused";
    let shown = state.display();
    let found = match statvfs(state) {
        Ok(found) => found,
        Err(error) => {
            return Finding::open(CHECK, format!("{shown}: {error}"), means, "make it, and restart the daemon");
        }
    };
    if found.flags().contains(FsFlags::ST_RDONLY) {
        return Finding::open(CHECK, format!("{shown} is mounted read-only"), means, "mount it read-write");
    }
    let free = found.blocks_available() * found.fragment_size();
    let inodes = found.files() == 0 || found.files_available() > 0;
    if free < LITTLE_SPACE || !inodes {
        let found = format!("{} MiB are free in {shown}", free >> 20);
        return Finding::open(CHECK, found, means, "make room, or move `record.dir` to a larger disk");
    }
    if nix::unistd::geteuid().is_root() {
        let probe = state.join(format!(".doctor-{}", std::process::id()));
        let written = fs::write(&probe, b"doctor").and_then(|()| fs::File::open(&probe)?.sync_all());
        let _ = fs::remove_file(&probe);
        if let Err(error) = written {
            return Finding::open(CHECK, format!("{shown} cannot be written: {error}"), means, "mend the disk");
        }
    }
    Finding::closed(CHECK, format!("{shown}, {} MiB free", free >> 20))
}

fn user(daemon: u32) -> Finding {
    const CHECK: &str = "user of the daemon";
    match crate::identity::process_facts(daemon) {
        facts if facts.pid == 0 => Finding::open(CHECK, "it is gone", "everything is refused", "start the daemon"),
        facts if facts.uid == 0 => Finding::open(
            CHECK,
            "it runs as root",
            "whoever takes it over by what it is sent has the host",
            "make a user `portcullis` (deploy/portcullis.sysusers), or name one as `user` in `[daemon]`, and restart it",
        ),
        facts => Finding::closed(CHECK, format!("{}, with a helper that stays root", facts.uid)),
    }
}

fn permissions(settings: &Settings, daemon: u32, examined: &Examined) -> Finding {
    // Its folder in proc is root's: it cannot be dumped.
    let owner = crate::identity::process_facts(daemon).uid;
    let (socket, trust) = (settings.control_socket(), settings.trust_dir());
    // What others may do to each, as a mask of what they must not.
    let mut wrong = Vec::new();
    let mut fixes = Vec::new();
    for (path, forbidden, mode) in [
        (settings.state_dir.as_path(), 0o077, "0700"),
        (settings.runtime_dir.as_path(), 0o022, "0755"),
        (trust.as_path(), 0o022, "0755"),
        (settings.policy_dir.as_path(), 0o022, "0755"),
        (socket.as_path(), 0o007, "0660"),
        (examined.pin_dir.as_path(), 0o077, "0700"),
    ] {
        let Ok(found) = fs::metadata(path) else {
            // The pins lie where only root can look.
            if nix::unistd::geteuid().is_root() {
                wrong.push(format!("{} is not there", path.display()));
                fixes.push("systemctl restart portcullis".to_owned());
            }
            continue;
        };
        let bits = found.permissions().mode() & 0o7777;
        if bits & forbidden != 0 {
            wrong.push(format!("{} has mode {bits:04o}", path.display()));
            fixes.push(format!("chmod {mode} {}", path.display()));
        }
        if found.uid() != owner && found.uid() != 0 {
            wrong.push(format!("{} belongs to user {}", path.display(), found.uid()));
            fixes.push(format!("chown root {}", path.display()));
        }
    }
    if wrong.is_empty() {
        return Finding::closed("permissions", "state, policies, socket and pins are kept from others");
    }
    let means = "other users of the host read the record, or change what the daemon relies on";
    Finding::open("permissions", wrong.join("; "), means, fixes.join("; "))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_found_as_the_kernel_prints_them() {
        if cfg!(target_endian = "little") {
            assert_eq!(in_table(&"127.0.0.1:943".parse().unwrap()), "0100007F:03AF");
            assert_eq!(in_table(&"[::1]:943".parse().unwrap()), "00000000000000000000000001000000:03AF");
        }
    }

    #[test]
    fn who_listens_is_found() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let listener = std::net::TcpListener::bind(any).unwrap();
            let address = listener.local_addr().unwrap();
            assert_eq!(holders(&address).unwrap().unwrap().pids, [std::process::id()]);
            drop(listener);
            assert!(holders(&address).unwrap().is_none());
        }
    }
}
