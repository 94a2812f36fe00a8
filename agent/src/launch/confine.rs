//! What a governed process gives up before its command runs.
//!
//! The cgroup hooks follow the cgroup that made a socket; other families, inherited and passed descriptors, io_uring and
//! privileges that undo hooks pass them all. So this is not optional: each step must succeed, or nothing is run.
//!
//! Order: the bounding set while there is still the privilege to shrink it; the user; what is left of capabilities; no
//! new privileges; a Landlock domain; descriptors; the system call filters last, since they refuse some of the steps
//! before.

pub mod filter;
pub mod landlock;
mod standard;
mod sys;
#[cfg(test)]
mod tests;

pub(crate) use sys::close_what_was_inherited;

use std::io;

use caps::{CapSet, Capability, CapsHashSet};
use nix::unistd::{Gid, Uid};

use crate::bpf::UnixHooks;

/// How to confine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The user to become; absent, the process stays who it is.
    pub user: Option<User>,
    /// Whether the kernel judges unix sockets. If not, none can be made but pairs that stay with each other.
    pub unix: UnixHooks,
    /// As what the user appears to the process itself.
    pub inside: Inside,
}

/// As what a process appears to itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Inside {
    /// As what it is on the host.
    #[default]
    Host,
    /// As root of a user namespace of its own in which there is no other user. Not without becoming another user first.
    RootOfItsOwn,
}

/// A user to become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// User id: real, effective and saved.
    pub uid: u32,
    /// Group id: real, effective and saved.
    pub gid: u32,
    /// All supplementary groups; others are given up.
    pub groups: Vec<u32>,
}

/// Why a process could not be confined. The command must not run then.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// Another thread would stay as it is.
    #[error("the process has more than one thread")]
    Threads,
    /// The user could not be taken on.
    #[error("cannot become user {uid}")]
    User {
        /// Which.
        uid: u32,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Root of the host has no namespace that keeps it in.
    #[error("root of a user namespace must be another user outside of it")]
    HostRoot,
    /// The user namespace could not be made.
    #[error("a user namespace cannot be made; does the host allow them (`user.max_user_namespaces`)?")]
    Namespace(#[source] io::Error),
    /// Capabilities could not be given up.
    #[error("capabilities cannot be given up")]
    Capabilities(#[source] caps::errors::CapsError),
    /// They are still there.
    #[error("{0} is still there after it was given up")]
    Kept(&'static str),
    /// Privileges could still be gained.
    #[error("new privileges cannot be ruled out")]
    NewPrivileges(#[source] io::Error),
    /// Processes outside of the session would stay within reach.
    #[error(
        "the processes of others cannot be put out of reach; the kernel must have Landlock (`lsm=` names `landlock`)"
    )]
    Landlock(#[from] landlock::LandlockError),
    /// One of the three that are inherited is a road out.
    #[error("standard {name} is {what}, which no hook sees: give the command a pipe or a file (`</dev/null`, `| cat`)")]
    Standard {
        /// Which.
        name: &'static str,
        /// What it is.
        what: &'static str,
    },
    /// Descriptors would be inherited.
    #[error("open descriptors cannot be kept from the command")]
    Descriptors(#[source] io::Error),
    /// The filter could not be made or installed.
    #[error("system calls cannot be filtered")]
    Filter(#[source] seccompiler::Error),
}

/// What host root may keep if it must stay root: none of these, by which it would undo or pass by the hooks.
const DANGEROUS: [Capability; 18] = [
    Capability::CAP_BPF,
    Capability::CAP_CHECKPOINT_RESTORE,
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_MAC_ADMIN,
    Capability::CAP_MAC_OVERRIDE,
    Capability::CAP_MKNOD,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_NET_RAW,
    Capability::CAP_PERFMON,
    Capability::CAP_SETFCAP,
    Capability::CAP_SYSLOG,
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SYS_BOOT,
    Capability::CAP_SYS_MODULE,
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_SYS_RAWIO,
    Capability::CAP_SYS_RESOURCE,
    Capability::CAP_SYS_TIME,
];

/// Confines the calling process, for good and for all that it starts. Call it in a process of a single thread, directly
/// before exec: afterwards every descriptor but the standard three closes at exec.
pub fn confine(settings: &Settings) -> Result<(), ConfineError> {
    if std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count) != 1 {
        return Err(ConfineError::Threads);
    }
    if let Some((name, what)) = standard::road().map_err(ConfineError::Descriptors)? {
        return Err(ConfineError::Standard { name, what });
    }
    let filters = filter::filters(settings.unix).map_err(ConfineError::Filter)?;
    let stays_root = match &settings.user {
        Some(user) => user.uid == 0,
        None => Uid::current().is_root() || Uid::effective().is_root(),
    };
    let keep: CapsHashSet = if stays_root { harmless() } else { CapsHashSet::new() };
    shrink_bounding_set(&keep)?;
    if settings.inside == Inside::RootOfItsOwn && settings.user.as_ref().is_none_or(|user| user.uid == 0) {
        return Err(ConfineError::HostRoot);
    }
    if let Some(user) = &settings.user {
        become_user(user).map_err(|source| ConfineError::User { uid: user.uid, source })?;
        // Back to root must fail, or the change was not for good.
        if user.uid != 0 && nix::unistd::setuid(Uid::from_raw(0)).is_ok() {
            return Err(ConfineError::Kept("user 0"));
        }
    }
    let keep = match (settings.inside, &settings.user) {
        (Inside::RootOfItsOwn, Some(user)) => {
            namespace(user).map_err(ConfineError::Namespace)?;
            // There, all capabilities are back, in the bounding set as well.
            let keep = harmless();
            shrink_bounding_set(&keep)?;
            keep
        }
        _ => keep,
    };
    give_up_capabilities(&keep)?;
    nix::sys::prctl::set_no_new_privs().map_err(|e| ConfineError::NewPrivileges(e.into()))?;
    landlock::enter()?;
    sys::close_at_exec_from(3).map_err(ConfineError::Descriptors)?;
    for filter in &filters {
        seccompiler::apply_filter(filter).map_err(ConfineError::Filter)?;
    }
    Ok(())
}

/// Takes from the bounding set what must not come back through a file's capabilities or its set-user-id bit. Without the
/// privilege to do so there is nothing to gain either: no new privileges are ruled out below.
fn shrink_bounding_set(keep: &CapsHashSet) -> Result<(), ConfineError> {
    let may = caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).map_err(ConfineError::Capabilities)?;
    if !may {
        return Ok(());
    }
    for capability in caps::read(None, CapSet::Bounding).map_err(ConfineError::Capabilities)? {
        if !keep.contains(&capability) {
            caps::drop(None, CapSet::Bounding, capability).map_err(ConfineError::Capabilities)?;
        }
    }
    Ok(())
}

/// What root keeps.
fn harmless() -> CapsHashSet {
    caps::all().into_iter().filter(|capability| !DANGEROUS.contains(capability)).collect()
}

/// Enters a user namespace in which this user, whom the process has become, is root and the only one.
fn namespace(user: &User) -> io::Result<()> {
    // The change of the user made this process's own files in proc root's: proc(5), `/proc/PID`.
    nix::sys::prctl::set_dumpable(true)?;
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER)?;
    // Without it, giving up groups would be a way around permissions that refuse a group: user_namespaces(7).
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("0 {} 1", user.uid))?;
    std::fs::write("/proc/self/gid_map", format!("0 {} 1", user.gid))?;
    if Uid::current().is_root() && Gid::current().as_raw() == 0 {
        Ok(())
    } else {
        Err(io::Error::other("the mapping does not hold"))
    }
}

fn become_user(user: &User) -> io::Result<()> {
    let groups: Vec<Gid> = user.groups.iter().copied().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    nix::unistd::setgroups(&groups)?;
    nix::unistd::setresgid(gid, gid, gid)?;
    nix::unistd::setresuid(uid, uid, uid)?;
    Ok(())
}

fn give_up_capabilities(keep: &CapsHashSet) -> Result<(), ConfineError> {
    let failed = ConfineError::Capabilities;
    caps::clear(None, CapSet::Ambient).map_err(failed)?;
    caps::clear(None, CapSet::Inheritable).map_err(failed)?;
    for set in [CapSet::Effective, CapSet::Permitted] {
        let kept = caps::read(None, set).map_err(failed)?.intersection(keep).copied().collect();
        caps::set(None, set, &kept).map_err(failed)?;
    }
    for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        if !caps::read(None, set).map_err(failed)?.is_subset(keep) {
            return Err(ConfineError::Kept("a capability"));
        }
    }
    Ok(())
}
