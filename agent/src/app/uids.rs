//! User ids that sessions have for themselves.
//!
//! An id is free when no live session has it, no process runs by it, and the host knows no user or group by it. Files of
//! an earlier session are not in the way: they are in temporary folders that went with its last process. Ids are given
//! out in turn, so each rests as long as it can.

use std::{
    collections::BTreeSet,
    fs, io,
    sync::{Arc, Mutex, PoisonError},
};

use nix::unistd::{Gid, Group, Uid, User};

use crate::{config::UidRange, identity::Sessions};

/// Why there is no user id for a session.
#[derive(Debug, thiserror::Error)]
pub(super) enum UidError {
    /// None are set aside.
    #[error("the policy gives each session a user of its own, and no users are set aside for that")]
    None,
    /// All are in use.
    #[error("all users that are set aside for sessions, {} to {}, are in use", .0.first, .0.last)]
    Exhausted(UidRange),
    /// Who is in use cannot be told.
    #[error("cannot tell which users have processes: {0}")]
    Processes(#[source] io::Error),
}

impl UidError {
    /// What to do about it.
    pub(super) fn help(&self) -> &'static str {
        match self {
            Self::None => "set `uids` in `[sessions]` of the daemon's settings, such as \"59000-59999\"",
            Self::Exhausted(_) => "wait until sessions end, or set aside more with `sessions.uids`",
            Self::Processes(_) => "is proc mounted with `hidepid`, so that the daemon does not see other processes?",
        }
    }
}

/// Gives them out.
#[derive(Debug, Default)]
pub(super) struct Uids {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last: Option<u32>,
    /// Given to sessions that are not in the table yet.
    pending: BTreeSet<u32>,
}

/// One that is taken. The session must be in the table, or be given up, before this is dropped.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) uid: u32,
    uids: Arc<Uids>,
}

impl Uids {
    /// Takes one. Reads every process's user; may block.
    pub(super) fn take(self: &Arc<Self>, range: Option<UidRange>, sessions: &Sessions) -> Result<Taken, UidError> {
        let range = range.ok_or(UidError::None)?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut used = running(range).map_err(UidError::Processes)?;
        used.extend(sessions.list().iter().filter_map(|session| session.uid));
        let free = |uid: &u32| {
            let known = |found: nix::Result<bool>| found.unwrap_or(true);
            !used.contains(uid)
                && !state.pending.contains(uid)
                && !known(User::from_uid(Uid::from_raw(*uid)).map(|user| user.is_some()))
                && !known(Group::from_gid(Gid::from_raw(*uid)).map(|group| group.is_some()))
        };
        let uid = range.after(state.last).find(free).ok_or(UidError::Exhausted(range))?;
        state.last = Some(uid);
        state.pending.insert(uid);
        Ok(Taken { uid, uids: self.clone() })
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.uids.state.lock().unwrap_or_else(PoisonError::into_inner).pending.remove(&self.uid);
    }
}

/// The ids of this range by which processes run, whether as their real, effective, saved or file system user or group.
fn running(range: UidRange) -> io::Result<BTreeSet<u32>> {
    // Who cannot see the first process does not see the others.
    fs::metadata("/proc/1/status")?;
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        if !entry.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit) {
            continue;
        }
        let status = match fs::read_to_string(entry.path().join("status")) {
            Ok(status) => status,
            // It ended meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) => {
                continue;
            }
            Err(error) => return Err(error),
        };
        for line in status.lines() {
            let Some(ids) = ["Uid:", "Gid:", "Groups:"].iter().find_map(|name| line.strip_prefix(name)) else {
                continue;
            };
            let ids = ids.split_whitespace().filter_map(|id| id.parse().ok());
            found.extend(ids.filter(|id| (range.first..=range.last).contains(id)));
        }
    }
    Ok(found)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::identity::NewSession;

    fn session(uid: u32, cgroup_id: u64) -> NewSession {
        NewSession { workload: "bot".into(), cgroup_id, uid: Some(uid), ..NewSession::default() }
    }

    #[test]
    fn each_session_has_another_and_none_is_given_twice() {
        let (uids, sessions) = (Arc::new(Uids::default()), Sessions::in_memory());
        let range = Some(UidRange { first: 1_879_100_000, last: 1_879_100_002 });
        let take = || uids.take(range, &sessions);
        let first = take().unwrap();
        let live = sessions.insert(session(first.uid, 1)).unwrap();
        drop(first);
        let (second, third) = (take().unwrap(), take().unwrap());
        let given: BTreeSet<u32> = [live.uid.unwrap(), second.uid, third.uid].into();
        assert_eq!(given.len(), 3);
        assert!(matches!(take(), Err(UidError::Exhausted(_))));
        // One that was given up is free; one whose session lives is not.
        let again = second.uid;
        drop(second);
        assert_eq!(take().unwrap().uid, again);
        sessions.end(&live.id, crate::identity::EndReason::Exited);
        assert_eq!(take().unwrap().uid, live.uid.unwrap());
        assert!(matches!(uids.take(None, &sessions), Err(UidError::None)));
    }

    #[test]
    fn who_is_known_or_runs_is_passed_over() {
        let (uids, sessions) = (Arc::new(Uids::default()), Sessions::in_memory());
        // Whoever runs this test, and `nobody`, whom every host knows.
        for uid in [Uid::current().as_raw(), 65_534] {
            let range = Some(UidRange { first: uid, last: uid });
            assert!(matches!(uids.take(range, &sessions), Err(UidError::Exhausted(_))), "{uid}");
        }
    }
}
