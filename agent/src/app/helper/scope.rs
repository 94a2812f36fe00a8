//! Sessions as transient scopes of systemd, where it is the service manager and the workload's cgroups lie in one of its
//! slices: `systemctl status` and `systemd-cgls` then know them, and systemd, which owns the attributes of every cgroup
//! in its slices, sets their limits.
//!
//! systemd makes the cgroup and moves the launcher in by one call, so the launcher is there before the session has any
//! rights: it is refused everything until then. systemd skips a limit that it cannot set and says nothing; whoever
//! starts a scope looks whether the kernel has it.
//!
//! A scope ends with its last process. Nothing here kills: a scope of which something failed holds its launcher, which
//! was told so, and has no rights.

use std::{
    fs,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::bus::{self, Bus, BusError, Method, Out, Value};
use crate::{config::cgroup, identity, policy::LimitSpec};

/// Where systemd mounts the cgroup2 tree if it puts everything there (`systemd.unified_cgroup_hierarchy`).
const UNIFIED: &str = "/sys/fs/cgroup";
/// There where systemd is the service manager: sd_booted(3).
const BOOTED: &str = "/run/systemd/system";
/// For systemd to do what it said it would.
const PATIENCE: Duration = Duration::from_secs(8);
/// Time between looks whether the launcher was moved.
const LOOK: Duration = Duration::from_millis(5);
/// Between these stands the session's id.
const NAME: (&str, &str) = ("portcullis-", ".scope");

/// Who manages the cgroups of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(in crate::app) enum Manager {
    /// systemd, which can be asked for scopes.
    Systemd,
    /// Nobody, or nobody who can be asked.
    Nobody,
}

/// Why there is no scope.
#[derive(Debug, thiserror::Error)]
pub(super) enum ScopeError {
    /// systemd said no, or could not be asked.
    #[error("systemd makes no scope for the session: {0}")]
    Refused(#[from] BusError),
    /// It said yes and did not do it.
    #[error("systemd did not move process {pid} into {wanted} within {} seconds", PATIENCE.as_secs())]
    NotMoved {
        /// The launcher.
        pid: u32,
        /// Where it should be.
        wanted: String,
    },
    /// The launcher is gone.
    #[error("the launcher is gone: {0}")]
    Gone(#[source] cgroup::CgroupError),
}

impl ScopeError {
    /// What to do about it.
    pub(super) fn help(&self) -> &'static str {
        match self {
            Self::Refused(BusError::Io(_) | BusError::Malformed(_) | BusError::Lost) => {
                "restart the daemon: it connects to the bus when it starts"
            }
            Self::Refused(_) | Self::NotMoved { .. } => "`journalctl -b _PID=1` has what systemd says of it",
            Self::Gone(_) => "it was killed while its session was made",
        }
    }
}

impl Manager {
    /// The scope that a session below `parent`, relative to the root of the tree, is to live in, if it is to be one.
    pub(super) fn scope(self, parent: &str, session: &str) -> Option<Scope> {
        let slice = slice(parent).filter(|_| self == Self::Systemd)?;
        let name = format!("{}{session}{}", NAME.0, NAME.1);
        let relative = Path::new(parent).join(&name);
        Some(Scope { name, slice: slice.into(), relative })
    }
}

/// The bus over which systemd can be asked for scopes in the cgroup2 tree at `root`. `None`: it is not the manager there,
/// has no bus, or does not number processes as we do: it must be process 1 of ours.
pub(super) fn systemd(root: &Path) -> Option<Bus> {
    let is_manager = root == Path::new(UNIFIED)
        && Path::new(BOOTED).is_dir()
        && fs::read_to_string("/proc/1/comm").is_ok_and(|name| name.trim_end() == "systemd")
        && fs::metadata(bus::SOCKET).is_ok_and(|metadata| metadata.file_type().is_socket());
    let bus = is_manager.then(Bus::system)?;
    bus.inspect_err(|error| tracing::warn!(%error, "no session is made a scope of systemd's")).ok()
}

/// A scope that a session is to live in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scope {
    name: String,
    /// The slice it is in.
    slice: String,
    /// Its cgroup, relative to the root of the tree.
    pub(super) relative: PathBuf,
}

impl Scope {
    /// Has systemd make it, limit it and move the process in; returns when that has been seen.
    ///
    /// The process is named by its id (Debian 12 has systemd 252, which takes no descriptor of one): whether it is still
    /// the one that was meant is for the caller to look at, after.
    pub(super) fn start(
        &self,
        bus: &mut Bus,
        description: &str,
        pid: u32,
        limits: &LimitSpec,
    ) -> Result<(), ScopeError> {
        bus.call(&START, self.arguments(description, pid, limits))?;
        let wanted = format!("/{}", self.relative.display());
        let start = Instant::now();
        loop {
            if cgroup::of_process(pid).map_err(ScopeError::Gone)? == wanted {
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                return Err(ScopeError::NotMoved { pid, wanted });
            }
            thread::sleep(LOOK);
        }
    }

    fn arguments(&self, description: &str, pid: u32, limits: &LimitSpec) -> Out {
        let mut out = Out::default();
        out.text(&self.name);
        out.text("fail");
        out.properties(&self.properties(description, &[pid], limits));
        // No units beside it.
        out.nothing();
        out
    }

    /// systemd.scope(5), systemd.resource-control(5), by their names on the bus.
    fn properties<'a>(
        &'a self,
        description: &'a str,
        pids: &'a [u32],
        limits: &LimitSpec,
    ) -> Vec<(&'a str, Value<'a>)> {
        let mut all = vec![
            ("Description", Value::Text(description)),
            ("Slice", Value::Text(&self.slice)),
            ("PIDs", Value::Numbers(pids)),
            ("CollectMode", Value::Text("inactive-or-failed")),
            ("Delegate", Value::Flag(false)),
        ];
        if let Some(bytes) = limits.memory {
            all.extend([("MemoryMax", Value::Number(bytes)), ("MemorySwapMax", Value::Number(0))]);
        }
        all.extend(limits.pids.map(|pids| ("TasksMax", Value::Number(pids.into()))));
        // Microseconds of each second.
        all.extend(limits.cpu.map(|hundredths| ("CPUQuotaPerSecUSec", Value::Number(u64::from(hundredths) * 10_000))));
        all
    }
}

/// org.freedesktop.systemd1(5)
const fn manager(member: &'static str, signature: &'static str) -> Method {
    Method {
        destination: "org.freedesktop.systemd1",
        path: "/org/freedesktop/systemd1",
        interface: "org.freedesktop.systemd1.Manager",
        member,
        signature,
    }
}

const START: Method = manager("StartTransientUnit", "ssa(sv)a(sa(sv))");
const FREEZE: Method = manager("FreezeUnit", "s");

/// The session of a scope's cgroup.
pub(super) fn session_of(cgroup: &Path) -> Option<&str> {
    let name = cgroup.file_name()?.to_str()?;
    let id = name.strip_prefix(NAME.0)?.strip_suffix(NAME.1)?;
    identity::is_session_id(id).then_some(id)
}

/// Tells systemd that the scope of a session is frozen, which was done already: so that it shows it, and `systemctl thaw`
/// ends it.
pub(super) fn tell_frozen(bus: &mut Bus, session: &str) -> Result<(), ScopeError> {
    let mut out = Out::default();
    out.text(&format!("{}{session}{}", NAME.0, NAME.1));
    Ok(bus.call(&FREEZE, out)?)
}

/// The slice that a cgroup path is, if systemd would put one there: `a.slice/a-b.slice` is `a-b.slice`
/// (systemd.slice(5)).
fn slice(path: &str) -> Option<&str> {
    let mut above = String::new();
    let mut last = None;
    for segment in path.split('/') {
        let stem = segment.strip_suffix(".slice")?;
        let own = stem.strip_prefix(&*above)?;
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | ':');
        if own.is_empty() || !own.chars().all(is_part) {
            return None;
        }
        above = format!("{stem}-");
        last = Some(segment);
    }
    last
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn only_what_systemd_would_make_is_a_slice() {
        assert_eq!(slice("portcullis.slice"), Some("portcullis.slice"));
        let nested = "portcullis.slice/portcullis-support.slice";
        assert_eq!(slice(nested), Some("portcullis-support.slice"));
        assert_eq!(slice(&format!("{nested}/portcullis-support-eu.slice")), Some("portcullis-support-eu.slice"));
        for other in [
            "",
            "portcullis.slice/bot",
            "portcullis.slice/support.slice",
            "portcullis-support.slice",
            "portcullis.slice/portcullis-a-b.slice",
            "portcullis.slice/portcullis-.slice",
            "-.slice",
            ".slice",
            "bot/bot-a.slice",
            "portcullis.slice/portcullis-a\u{e4}.slice",
            "portcullis.slice/",
        ] {
            assert_eq!(slice(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_asked_for_is_what_the_policy_says() {
        let limits = LimitSpec { memory: Some(64 << 20), pids: Some(7), cpu: Some(150), wall: None };
        let id = "01arz3ndektsv4rrffq69g5fav";
        let scope = Manager::Systemd.scope("portcullis.slice/portcullis-support.slice", id).unwrap();
        let name = format!("portcullis-{id}.scope");
        assert_eq!(scope.relative, Path::new("portcullis.slice/portcullis-support.slice").join(&name));
        assert_eq!(session_of(&scope.relative), Some(id));
        let text = format!("{:?}", scope.properties("some session", &[42], &limits));
        assert_eq!(
            text,
            "[(\"Description\", Text(\"some session\")), (\"Slice\", Text(\"portcullis-support.slice\")), \
             (\"PIDs\", Numbers([42])), (\"CollectMode\", Text(\"inactive-or-failed\")), (\"Delegate\", Flag(false)), \
             (\"MemoryMax\", Number(67108864)), (\"MemorySwapMax\", Number(0)), (\"TasksMax\", Number(7)), \
             (\"CPUQuotaPerSecUSec\", Number(1500000))]"
        );
        assert_eq!(scope.properties("some session", &[42], &LimitSpec::default()).len(), 5);
    }

    #[test]
    fn only_systemds_own_tree_has_scopes() {
        let id = "01arz3ndektsv4rrffq69g5fav";
        assert!(systemd(Path::new("/sys/fs/cgroup/unified")).is_none());
        assert_eq!(Manager::Nobody.scope("portcullis.slice", id), None);
        assert_eq!(Manager::Systemd.scope("portcullis.slice/bot", id), None);
        for other in ["portcullis.slice", "portcullis-x.scope", &format!("portcullis-{id}.slice"), id, ""] {
            assert_eq!(session_of(Path::new(other)), None, "{other}");
        }
    }
}
