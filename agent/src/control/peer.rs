//! Who is on the other end of the control socket, told by the kernel.

use std::{
    fmt, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{getsockopt, sockopt},
    unistd::{Gid, Group, Uid, User, getgrouplist},
};

use crate::{config::cgroup, policy::Reviewer};

/// Which cgroups are governed.
pub trait Fence: Send + Sync {
    /// Whether a process in this cgroup2 path (`/a/b`) is governed.
    fn is_governed(&self, cgroup: &str) -> bool;
    /// The cgroup2 path of a process.
    fn cgroup_of(&self, pid: u32) -> io::Result<String> {
        cgroup::of_process(pid).map_err(io::Error::other)
    }
}

/// Why a peer may not speak.
#[derive(Debug, thiserror::Error)]
pub enum Barred {
    /// It is governed.
    #[error("processes of a governed session may not use the control socket")]
    Governed,
    /// Nobody can tell who it is.
    #[error("the calling process could not be identified: {0}")]
    Unknown(&'static str),
}

/// The process that connected.
pub struct Peer {
    /// Its id, in our pid namespace.
    pub pid: u32,
    /// Its effective user when it connected.
    pub uid: u32,
    /// Its effective group when it connected.
    pub gid: u32,
    identity: Identity,
    /// Our end of its connection.
    connection: OwnedFd,
}

/// What tells the process from a later one with the same pid.
enum Identity {
    /// [Linux 6.5]
    Pidfd(OwnedFd),
    /// Start time in clock ticks since boot, field 22 of /proc/PID/stat. Taken after connect(), so a process that had
    /// exited by then is not told from a new one with its pid; the check of its uid narrows that to the same user.
    Start(u64),
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer").field("pid", &self.pid).field("uid", &self.uid).field("gid", &self.gid).finish()
    }
}

impl Peer {
    /// Asks the kernel who connected.
    pub fn of(stream: &impl AsFd) -> Result<Self, Barred> {
        let credentials =
            getsockopt(stream, sockopt::PeerCredentials).map_err(|_| Barred::Unknown("no credentials"))?;
        let pid = u32::try_from(credentials.pid()).unwrap_or(0);
        if pid == 0 {
            return Err(Barred::Unknown("it lives in another pid namespace"));
        }
        let identity = match getsockopt(stream, sockopt::PeerPidfd) {
            Ok(pidfd) => Identity::Pidfd(pidfd),
            Err(Errno::ENOPROTOOPT | Errno::EINVAL) => {
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
                let start = stat.ok().and_then(|stat| start_time(&stat)).ok_or(Barred::Unknown("it exited"))?;
                Identity::Start(start)
            }
            // ESRCH and ENODATA: reaped already.
            Err(_) => return Err(Barred::Unknown("it exited")),
        };
        let connection = stream.as_fd().try_clone_to_owned().map_err(|_| Barred::Unknown("no descriptor is left"))?;
        let peer = Self { pid, uid: credentials.uid(), gid: credentials.gid(), identity, connection };
        peer.check_alive()?;
        Ok(peer)
    }

    /// Refuses a peer that exited, whose pid may now be another's, or that is governed. What is read of `/proc/PID` is
    /// the peer's own only if it is still alive after the reading, so life is checked last.
    pub fn check(&self, fence: &dyn Fence) -> Result<(), Barred> {
        let cgroup = fence.cgroup_of(self.pid).map_err(|_| Barred::Unknown("its cgroup cannot be read"))?;
        // Outside of our cgroup namespace, or deleted: nobody can tell what that is.
        if !cgroup.starts_with('/') || cgroup.starts_with("/..") || cgroup.ends_with(" (deleted)") {
            return Err(Barred::Unknown("its cgroup cannot be told"));
        }
        if fence.is_governed(&cgroup) {
            return Err(Barred::Governed);
        }
        self.check_alive()
    }

    /// Our end of its connection: for others to ask the kernel themselves who it is.
    pub fn connection(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }

    /// Refuses a peer that exited.
    pub fn check_alive(&self) -> Result<(), Barred> {
        let alive = match &self.identity {
            Identity::Pidfd(pidfd) => {
                // A pidfd becomes readable when its process exits: pidfd_open(2).
                let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
                poll(&mut fds, PollTimeout::ZERO) == Ok(0)
            }
            Identity::Start(start) => std::fs::read_to_string(format!("/proc/{}/stat", self.pid))
                .ok()
                .and_then(|stat| start_time(&stat))
                .is_some_and(|now| now == *start),
        };
        if alive { Ok(()) } else { Err(Barred::Unknown("it exited")) }
    }
}

/// Field 22 of /proc/PID/stat: proc_pid_stat(5). The name in field 2 may hold spaces and parentheses.
fn start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// A person, as the host's user database knows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    /// Login name, or `uid:1234` where the database has none.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Names of the groups that the database gives them, and of the group they connected as.
    pub groups: Vec<String>,
}

impl Person {
    /// Looks a user up. May block on the name service: not for an async task.
    pub fn look_up(uid: u32, gid: u32) -> Self {
        let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
        let mut gids = vec![Gid::from_raw(gid)];
        if let Some(user) = &user
            && let Ok(name) = std::ffi::CString::new(user.name.as_str())
        {
            gids.extend(getgrouplist(&name, user.gid).unwrap_or_default());
        }
        gids.sort_by_key(|gid| gid.as_raw());
        gids.dedup();
        let groups = gids.into_iter().filter_map(|gid| Group::from_gid(gid).ok().flatten()).map(|g| g.name).collect();
        // A name with a colon cannot be in the database, so this stands for no one else.
        let name = user.map_or_else(|| format!("uid:{uid}"), |user| user.name);
        Self { name, uid, groups }
    }

    /// Whether a list of users and groups names this person.
    pub fn is_named_by(&self, list: &[Reviewer]) -> bool {
        list.iter().any(|entry| match entry {
            Reviewer::User(name) => *name == self.name,
            Reviewer::Group(name) => self.groups.contains(name),
        })
    }
}

/// How long a peer may take to say its request, and to take each line of the answer.
pub const PATIENCE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_cannot_forge_the_start_time() {
        let fields = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20";
        assert_eq!(start_time(&format!("7 (x) {fields}")), Some(4242));
        assert_eq!(start_time(&format!("7 (a) S 9 9 (b) {fields}")), Some(4242));
        assert_eq!(start_time("7 (x) S 1"), None);
        assert_eq!(start_time(""), None);
    }

    #[test]
    fn people_are_who_the_user_database_says() {
        let root = Person::look_up(0, 0);
        assert_eq!(root.name, "root");
        assert!(root.groups.contains(&"root".to_owned()), "{root:?}");
        let nobody_known = Person::look_up(3_999_999_999, 3_999_999_999);
        assert_eq!(nobody_known.name, "uid:3999999999");
        assert!(nobody_known.groups.is_empty());
        assert!(root.is_named_by(&[Reviewer::User("root".into())]));
        assert!(root.is_named_by(&[Reviewer::User("x".into()), Reviewer::Group("root".into())]));
        assert!(!root.is_named_by(&[Reviewer::User("group".into()), Reviewer::Group("no-such-group".into())]));
        assert!(!root.is_named_by(&[]));
    }
}
