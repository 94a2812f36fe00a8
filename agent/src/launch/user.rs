//! Which user a governed command runs as.
//!
//! Root of the host cannot be kept in by cgroup hooks (core_pattern, cgroup.procs, usermode helpers), so root never
//! becomes the command by accident.

use nix::unistd::{Gid, Uid, User, getgrouplist};

use crate::control::proto::SeenAs;

/// Whether host root may run the command as itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostRoot {
    /// It may not.
    Refused,
    /// The caller said that they know.
    Accepted,
}

/// A user to become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Login name.
    pub name: String,
    /// User id; never 0.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home folder.
    pub home: std::path::PathBuf,
    /// Login shell.
    pub shell: std::path::PathBuf,
}

impl Target {
    /// The user that a session has for itself. Its home is in its private temporary folder.
    pub(super) fn of_session(uid: u32, seen: SeenAs) -> Self {
        let name = match seen {
            SeenAs::Itself => "session",
            SeenAs::Root => "root",
        };
        let (home, shell) = ("/tmp/home".into(), "/bin/sh".into());
        Self { name: name.into(), uid, gid: uid, groups: Vec::new(), home, shell }
    }
}

impl From<Target> for super::confine::User {
    fn from(target: Target) -> Self {
        Self { uid: target.uid, gid: target.gid, groups: target.groups }
    }
}

/// Why there is no user to run as.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// Root, and nothing says who else.
    #[error("root of this host cannot be kept in, so the command needs another user")]
    Root,
    /// `--user` by somebody else than root.
    #[error("only root can run a command as another user")]
    NotRoot,
    /// No such user.
    #[error("the host has no user `{0}`")]
    Unknown(String),
    /// A name for root.
    #[error("`{0}` is root of this host, who cannot be kept in")]
    IsRoot(String),
    /// Another than the policy's.
    #[error("the policy gives each session a user of its own")]
    PolicysOwn,
}

impl UserError {
    /// What to do about it.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Root | Self::IsRoot(_) => {
                Some("add `--user NAME`, or `--i-know-root-escapes` to run it without protection from root".into())
            }
            Self::PolicysOwn => Some("leave `--user` out".into()),
            Self::NotRoot => Some("leave `--user` out, or run it with sudo".into()),
            Self::Unknown(_) => None,
        }
    }
}

/// Who calls `run`.
#[derive(Debug)]
pub(super) struct Invoker {
    pub(super) uid: u32,
    pub(super) sudo_user: Option<String>,
}

impl Invoker {
    pub(super) fn of_this_process() -> Self {
        // Either of them being root makes a process that root's powers can be had from.
        let (real, effective) = (Uid::current(), Uid::effective());
        let uid = if real.is_root() || effective.is_root() { 0 } else { real.as_raw() };
        Self { uid, sudo_user: std::env::var("SUDO_USER").ok().filter(|name| !name.is_empty() && name != "root") }
    }
}

/// The user to become; `None` to stay who we are.
pub(super) fn target(named: Option<&str>, root: HostRoot, invoker: &Invoker) -> Result<Option<Target>, UserError> {
    if invoker.uid != 0 {
        return match named {
            None => Ok(None),
            Some(_) => Err(UserError::NotRoot),
        };
    }
    if root == HostRoot::Accepted {
        return Ok(None);
    }
    let name = named.or(invoker.sudo_user.as_deref()).ok_or(UserError::Root)?;
    let user = User::from_name(name).ok().flatten().ok_or_else(|| UserError::Unknown(name.to_owned()))?;
    if user.uid.is_root() {
        return Err(UserError::IsRoot(name.to_owned()));
    }
    let groups = std::ffi::CString::new(user.name.as_str())
        .ok()
        .and_then(|name| getgrouplist(&name, user.gid).ok())
        .unwrap_or_else(|| vec![user.gid]);
    Ok(Some(Target {
        name: user.name,
        uid: user.uid.as_raw(),
        gid: user.gid.as_raw(),
        groups: groups.into_iter().map(Gid::as_raw).collect(),
        home: user.dir,
        shell: user.shell,
    }))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn root(sudo_user: Option<&str>) -> Invoker {
        Invoker { uid: 0, sudo_user: sudo_user.map(str::to_owned) }
    }

    #[test]
    fn root_never_becomes_the_command_by_accident() {
        assert_eq!(target(None, HostRoot::Refused, &root(None)), Err(UserError::Root));
        assert_eq!(target(Some("root"), HostRoot::Refused, &root(None)), Err(UserError::IsRoot("root".into())));
        assert_eq!(target(None, HostRoot::Accepted, &root(None)), Ok(None));
        let nobody = target(Some("nobody"), HostRoot::Refused, &root(Some("daemon"))).unwrap().unwrap();
        assert_eq!(nobody.name, "nobody");
        assert_ne!(nobody.uid, 0);
        assert!(nobody.groups.contains(&nobody.gid));
        assert_eq!(target(None, HostRoot::Refused, &root(Some("daemon"))).unwrap().unwrap().name, "daemon");
        let missing = target(Some("no-such-user-here"), HostRoot::Refused, &root(None));
        assert_eq!(missing, Err(UserError::Unknown("no-such-user-here".into())));
    }

    #[test]
    fn others_stay_who_they_are() {
        let alice = Invoker { uid: 1000, sudo_user: Some("daemon".into()) };
        assert_eq!(target(None, HostRoot::Refused, &alice), Ok(None));
        assert_eq!(target(Some("nobody"), HostRoot::Refused, &alice), Err(UserError::NotRoot));
    }
}
