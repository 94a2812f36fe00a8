//! The table of live sessions.

use std::{
    collections::{HashMap, HashSet},
    fmt, io,
    path::PathBuf,
    sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    ids,
    persist::{self, Restored, Saved, Store},
    turns::Turns,
};
use crate::{
    action::{ProcessFacts, Subject},
    policy::Temporary,
    wire::Budget,
};

/// The longest sleep between looks at the wall clock, which may be set or may have run on while the host slept.
const WALL_CLOCK_CHECK: Duration = Duration::from_secs(30);

/// Why a session could not be made, saved or restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The system gave no random bytes.
    #[error("the system's random number generator failed")]
    Random,
    /// The cgroup belongs to a live session already.
    #[error("cgroup {cgroup} already belongs to session {session}")]
    CgroupTaken {
        /// Kernel id of the cgroup.
        cgroup: u64,
        /// The session that has it.
        session: Arc<str>,
    },
    /// The id is in use already.
    #[error("session {0} exists already")]
    IdTaken(Arc<str>),
    /// An id or trace id is not of the right form.
    #[error("`{0}` is not a valid {1}")]
    Malformed(String, &'static str),
    /// The state folder could not be read or written.
    #[error("cannot {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Why a session ended; the names are those of the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndReason {
    /// Its last process exited.
    Exited,
    /// Its time to live ran out.
    Expired,
    /// A person took its rights away.
    Quarantined,
    /// The daemon was told to end it with itself.
    Shutdown,
    /// Its cgroup was gone, or another one, when the daemon came back.
    Lost,
}

impl EndReason {
    /// The name that records use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exited => "exited",
            Self::Expired => "expired",
            Self::Quarantined => "quarantined",
            Self::Shutdown => "shutdown",
            Self::Lost => "lost",
        }
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What becomes of a session's processes when its time runs out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expiry {
    /// They are refused everything, and run on.
    #[default]
    Refuse,
    /// They are killed.
    Kill,
}

/// Whose a session's cgroup is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Home {
    /// Ours: made for the session, and removed with it.
    #[default]
    Made,
    /// A transient scope that the service manager made for the session, and removes when it is empty.
    Scope,
    /// Another's, such as a service manager's: the session lives as long as it, whether processes are in it or not.
    Claimed,
}

/// What a new session is made of.
#[derive(Clone, Debug, Default)]
pub struct NewSession {
    /// Its id, where the caller made one with [`ids::new_session_id`] to name the cgroup by; else one is made.
    pub id: Option<Arc<str>>,
    /// Workload name.
    pub workload: Arc<str>,
    /// Tenant of the workload.
    pub tenant: Option<Arc<str>>,
    /// Why it runs.
    pub intent: Option<Arc<str>>,
    /// W3C trace id to join; else one is made.
    pub trace_id: Option<Arc<str>>,
    /// Kernel id of its cgroup.
    pub cgroup_id: u64,
    /// Folder of its cgroup, absolute.
    pub cgroup_path: PathBuf,
    /// How long it may live.
    pub ttl: Option<Duration>,
    /// What happens then.
    pub expiry: Expiry,
    /// Whose its cgroup is.
    pub home: Home,
    /// Whose temporary folders it sees.
    pub temporary: Temporary,
    /// The user id that is its alone.
    pub uid: Option<u32>,
    /// Command line that it was started with.
    pub command: Vec<String>,
    /// Who started it.
    pub operator: String,
}

/// One run of a workload.
#[derive(Debug)]
pub struct Session {
    /// Its id: 26 characters that sort by time.
    pub id: Arc<str>,
    /// Workload name.
    pub workload: Arc<str>,
    /// Tenant of the workload.
    pub tenant: Option<Arc<str>>,
    /// Why it runs.
    pub intent: Option<Arc<str>>,
    /// W3C trace id.
    pub trace_id: Arc<str>,
    /// Kernel id of its cgroup.
    pub cgroup_id: u64,
    /// Folder of its cgroup, absolute.
    pub cgroup_path: PathBuf,
    /// When it began.
    pub started_at: SystemTime,
    /// When its rights end.
    pub ends_at: Option<SystemTime>,
    /// What happens then to its processes.
    pub expiry: Expiry,
    /// Whose its cgroup is.
    pub home: Home,
    /// Whose temporary folders it sees, for all of its life.
    pub temporary: Temporary,
    /// The user id that is its alone.
    pub uid: Option<u32>,
    /// Cancelled when it ended. Everything that serves the session stops then.
    pub ended: CancellationToken,
    /// Command line that it was started with.
    pub command: Vec<String>,
    /// Who started it.
    pub operator: String,
    /// Memory for what is sent on its connections; set by the first of them.
    pub memory: OnceLock<Arc<Budget>>,
    /// Its conversations with models.
    pub turns: Arc<Turns>,
    deadline: Option<Instant>,
    reason: OnceLock<EndReason>,
}

impl Session {
    /// Why it ended; `None` while it lives.
    pub fn end_reason(&self) -> Option<EndReason> {
        self.reason.get().copied()
    }

    /// Whether its time to live has run out, by the steady clock or by the wall clock, whichever says so first.
    pub fn is_over(&self) -> bool {
        self.reason.get().is_some()
            || self.deadline.is_some_and(|at| at <= Instant::now())
            || self.ends_at.is_some_and(|at| at <= SystemTime::now())
    }

    pub(super) fn restored(saved: Saved) -> Self {
        let left = saved.ends_at.map(|at| at.duration_since(SystemTime::now()).unwrap_or_default());
        Self {
            id: saved.id,
            workload: saved.workload,
            tenant: saved.tenant,
            intent: saved.intent,
            trace_id: saved.trace_id,
            cgroup_id: saved.cgroup_id,
            cgroup_path: saved.cgroup_path,
            started_at: saved.started_at,
            ends_at: saved.ends_at,
            expiry: saved.expiry,
            home: saved.home,
            temporary: saved.temporary,
            uid: saved.uid,
            ended: CancellationToken::new(),
            command: saved.command,
            operator: saved.operator,
            memory: OnceLock::new(),
            turns: Arc::default(),
            deadline: left.and_then(|left| Instant::now().checked_add(left)),
            reason: OnceLock::new(),
        }
    }
}

/// The live sessions. Clones share one table.
#[derive(Clone, Debug)]
pub struct Sessions {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    table: RwLock<Table>,
    store: Option<Store>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Table {
    by_id: HashMap<Arc<str>, Arc<Session>>,
    by_cgroup: HashMap<u64, Arc<Session>>,
    /// Claimed cgroups whose sessions have ended before them: they get no second one.
    spent: HashSet<u64>,
}

impl Sessions {
    /// A table that forgets with the process.
    pub fn in_memory() -> Self {
        Self::with(Table::default(), None)
    }

    /// A table that is saved in `dir` (made with mode 0700), a file per session. Sessions found there whose cgroup is
    /// still the same, in the same boot, and whose time has not run out live on; the others are reported.
    pub fn open(dir: impl Into<PathBuf>) -> Result<(Self, Restored), IdentityError> {
        let store = Store::open(dir.into())?;
        let restored = persist::restore(&store)?;
        let mut table = Table { spent: restored.spent.iter().copied().collect(), ..Table::default() };
        for session in &restored.adopted {
            table.by_id.insert(session.id.clone(), session.clone());
            table.by_cgroup.insert(session.cgroup_id, session.clone());
        }
        Ok((Self::with(table, Some(store)), restored))
    }

    fn with(table: Table, store: Option<Store>) -> Self {
        Self { inner: Arc::new(Inner { table: RwLock::new(table), store, changed: Notify::new() }) }
    }

    /// Begins a session. It is on disk when this returns. Errors: its cgroup or id has a live session already, an id is
    /// malformed, or it could not be saved; then there is no session.
    pub fn insert(&self, new: NewSession) -> Result<Arc<Session>, IdentityError> {
        let id = match new.id {
            Some(id) if ids::is_session_id(&id) => id,
            Some(id) => return Err(IdentityError::Malformed(id.to_string(), "session id")),
            None => ids::new_session_id()?,
        };
        let trace_id = match new.trace_id {
            Some(id) if ids::is_trace_id(&id) => id,
            Some(id) => return Err(IdentityError::Malformed(id.to_string(), "trace id")),
            None => ids::new_trace_id()?,
        };
        let started_at = SystemTime::now();
        let session = Arc::new(Session {
            id,
            workload: new.workload,
            tenant: new.tenant,
            intent: new.intent,
            trace_id,
            cgroup_id: new.cgroup_id,
            cgroup_path: new.cgroup_path,
            started_at,
            // A time to live beyond what the clock can name is none.
            ends_at: new.ttl.and_then(|ttl| started_at.checked_add(ttl)),
            expiry: new.expiry,
            home: new.home,
            temporary: new.temporary,
            uid: new.uid,
            ended: CancellationToken::new(),
            command: new.command,
            operator: new.operator,
            memory: OnceLock::new(),
            turns: Arc::default(),
            deadline: new.ttl.and_then(|ttl| Instant::now().checked_add(ttl)),
            reason: OnceLock::new(),
        });
        {
            let mut table = self.write();
            if let Some(other) = table.by_cgroup.get(&session.cgroup_id) {
                return Err(IdentityError::CgroupTaken { cgroup: session.cgroup_id, session: other.id.clone() });
            }
            if table.by_id.contains_key(&session.id) {
                return Err(IdentityError::IdTaken(session.id.clone()));
            }
            if let Some(store) = &self.inner.store {
                store.save(&session)?;
            }
            table.by_id.insert(session.id.clone(), session.clone());
            table.by_cgroup.insert(session.cgroup_id, session.clone());
        }
        self.inner.changed.notify_one();
        Ok(session)
    }

    /// The live session that owns a cgroup. One whose time has run out is not found, even before it was ended.
    pub fn by_cgroup(&self, id: u64) -> Option<Arc<Session>> {
        self.read().by_cgroup.get(&id).filter(|session| !session.is_over()).cloned()
    }

    /// Whether a claimed cgroup's session was ended before the cgroup was.
    pub fn is_spent(&self, id: u64) -> bool {
        self.read().spent.contains(&id)
    }

    /// The live session of this id, as [`Sessions::by_cgroup`].
    pub fn get(&self, id: &str) -> Option<Arc<Session>> {
        self.read().by_id.get(id).filter(|session| !session.is_over()).cloned()
    }

    /// Every session that was not ended yet, oldest first.
    pub fn list(&self) -> Vec<Arc<Session>> {
        let mut all: Vec<_> = self.read().by_id.values().cloned().collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    }

    /// Ends a session: it is no longer found, its file is removed, and `ended` is cancelled. The session is returned
    /// to the one caller that ended it.
    pub fn end(&self, id: &str, why: EndReason) -> Option<Arc<Session>> {
        let session = {
            let mut table = self.write();
            let session = table.by_id.remove(id)?;
            table.by_cgroup.remove(&session.cgroup_id);
            // First and only: the table gave it to nobody else.
            let _ = session.reason.set(why);
            let spent = session.home == Home::Claimed && matches!(why, EndReason::Expired | EndReason::Quarantined);
            if spent {
                table.spent.insert(session.cgroup_id);
            }
            if let Some(store) = &self.inner.store {
                if spent { store.spend(&session, why) } else { store.remove(&session.id) }
            }
            session
        };
        session.ended.cancel();
        self.inner.changed.notify_one();
        Some(session)
    }

    /// Waits for the next session whose time runs out, ends it as [`EndReason::Expired`] and returns it. For one task
    /// of the daemon; cancel safe.
    pub async fn next_expired(&self) -> Arc<Session> {
        loop {
            let all = self.list();
            if let Some(over) = all.iter().find(|session| session.is_over())
                && let Some(ended) = self.end(&over.id, EndReason::Expired)
            {
                return ended;
            }
            let next = all.iter().filter_map(|session| session.deadline).min();
            let check = Instant::now() + WALL_CLOCK_CHECK;
            let until = next.map_or(check, |next| next.min(check));
            tokio::select! {
                () = self.inner.changed.notified() => {}
                () = tokio::time::sleep_until(until), if next.is_some() => {}
            }
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.inner.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.inner.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What policy needs to know about a process of a session.
pub fn subject(session: &Session, process: ProcessFacts) -> Subject {
    Subject {
        workload: session.workload.clone(),
        tenant: session.tenant.clone(),
        session: session.id.clone(),
        cgroup: session.cgroup_id,
        intent: session.intent.clone(),
        trace_id: session.trace_id.clone(),
        ends_at: session.ends_at,
        process,
    }
}
