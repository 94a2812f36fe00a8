//! Sessions from cradle to grave: a cgroup each, known to the kernel only while the session lives.
//!
//! Rights are given last and taken first. A session exists when its cgroup, its file, its record entry and its kernel
//! entry exist, and only then is the launcher moved in (but for a scope, which begins with it); if any step fails, all
//! before it are undone. It ends when its last process exits, its time runs out, or an operator says so; its connections
//! are closed, its holds and grants revoked, and whatever still runs in the cgroup is refused everything.

use std::{
    collections::HashSet,
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{
    asked,
    governor::Governor,
    helper::{HelperError, Made},
    limits,
    namespaces::Namespaces,
    uids::{Taken, Uids},
};
use crate::{
    config::Settings,
    control::{
        proto::{Code, Failure, OpenSession, Opened},
        server::Caller,
    },
    identity::{self, EndReason, Expiry, Home, LostSession, NewSession, Session},
    policy::{RunAs, Temporary, WorkloadSpec},
    record::{Event, EventBody},
    session::House,
};

/// Time between looks at which sessions have no process left.
pub(super) const SWEEP: Duration = Duration::from_millis(500);
/// Longest command line that is recorded, in bytes.
const MAX_COMMAND: usize = 128 << 10;

/// Begins and ends sessions.
pub(super) struct Lifecycle {
    house: Arc<House>,
    governor: Arc<Governor>,
    settings: Arc<Settings>,
    namespaces: Arc<Namespaces>,
    uids: Arc<Uids>,
    /// Ids whose launcher is not in yet: an empty cgroup does not end them.
    starting: Mutex<HashSet<Arc<str>>>,
    /// Cgroups of ended sessions that could not be removed yet.
    leftover: Mutex<Vec<PathBuf>>,
}

impl Lifecycle {
    pub(super) fn new(
        house: Arc<House>,
        governor: Arc<Governor>,
        settings: Arc<Settings>,
        namespaces: Arc<Namespaces>,
    ) -> Self {
        Self {
            house,
            governor,
            settings,
            namespaces,
            uids: Arc::default(),
            starting: Mutex::default(),
            leftover: Mutex::default(),
        }
    }

    /// Makes a session for the caller and moves the calling process into it.
    pub(super) async fn open(&self, caller: &Caller, asked: OpenSession) -> Result<Opened, Failure> {
        let policies = self.house.policies.load_full();
        let policy = policies.by_workload(&asked.workload).ok_or_else(|| {
            let known: Vec<&str> = policies.policies().iter().map(|p| &*p.workload().name).collect();
            Failure::new(Code::NotFound, format!("no policy is for a workload `{}`", asked.workload))
                .help(format!("there is: {}", known.join(", ")))
        })?;
        let workload = policy.workload();
        if workload.claim {
            let message = format!("`{}` is a workload of cgroups that others make", workload.name);
            return Err(Failure::new(Code::Denied, message).help(format!("start it in `{}`", workload.cgroup)));
        }
        asked::may_launch(caller.peer.uid, workload)?;
        asked::is_another(caller.peer.uid, asked.user.as_deref())?;
        let intent = asked::intent(&asked, workload)?;
        let ttl = asked::ttl(asked.ttl_seconds, workload)?;
        if asked.command.is_empty() || asked.command.iter().map(String::len).sum::<usize>() > MAX_COMMAND {
            return Err(Failure::new(Code::Usage, format!("a command line has 1 to {MAX_COMMAND} bytes")));
        }
        self.check_room()?;
        let id = identity::new_session_id().map_err(failed)?;
        let (home, place) = self.governor.helper().place(policy.cgroup_parent(), &id);
        let relative = Some(place)
            .filter(|path| {
                let owner = path.to_str().and_then(|path| policies.by_cgroup(path));
                owner.is_some_and(|owner| owner.workload().name == workload.name)
            })
            .ok_or_else(|| {
                let message = format!("a session's cgroup would not match the policy's pattern `{}`", workload.cgroup);
                Failure::new(Code::Failed, message)
                    .help("end the pattern with `/*`, and give no two workloads the same")
            })?;
        let unset = asked::secret_variables(&self.house, policy, &asked.variables).await;
        let taken = match workload.run_as {
            RunAs::Caller => None,
            RunAs::Dedicated | RunAs::Root => Some(self.take_uid().await?),
        };
        let uid = taken.as_ref().map(|taken| taken.uid);
        let operator = match (uid, &asked.user) {
            (Some(uid), _) => format!("{} as the session's own user {uid}", caller.person.name),
            (None, Some(user)) => format!("{} as {user}", caller.person.name),
            (None, None) => caller.person.name.clone(),
        };
        let path = self.governor.root().join(&relative);
        let made = self.make(home, &workload.name, &id, caller).await?;
        if made.cgroup != relative {
            self.remove(self.governor.root().join(&made.cgroup));
            let message = "the policies changed while the session was made";
            return Err(Failure::new(Code::Failed, message).help("try it again"));
        }
        let new = NewSession {
            id: Some(id),
            workload: workload.name.clone(),
            tenant: workload.tenant.clone(),
            intent,
            trace_id: asked.trace_id.map(Into::into),
            cgroup_id: made.id,
            cgroup_path: path.clone(),
            ttl,
            expiry: if workload.limits.wall.is_some() { Expiry::Kill } else { Expiry::Refuse },
            home,
            temporary: workload.temporary,
            uid,
            command: asked.command,
            operator,
        };
        match self.begin(new, ttl, caller).await {
            Ok(session) => {
                let cgroup = format!("/{}", relative.display());
                let unix = self.governor.kernel().unix_hooks();
                asked::opened(&self.settings, workload, &session, cgroup, &made.others, unix, unset).map_err(failed)
            }
            Err(failure) => {
                self.remove(path);
                Err(failure)
            }
        }
    }

    /// Begins a session for a cgroup that others made.
    pub(super) async fn claim(&self, workload: &WorkloadSpec, relative: &Path, cgroup_id: u64) -> Result<(), Failure> {
        let ttl = [workload.ttl, workload.limits.wall].into_iter().flatten().min();
        let new = NewSession {
            workload: workload.name.clone(),
            tenant: workload.tenant.clone(),
            cgroup_id,
            cgroup_path: self.governor.root().join(relative),
            ttl,
            expiry: if workload.limits.wall.is_some() { Expiry::Kill } else { Expiry::Refuse },
            home: Home::Claimed,
            command: vec![relative.display().to_string()],
            operator: "cgroup".into(),
            ..NewSession::default()
        };
        self.check_room()?;
        let session = self.house.sessions.insert(new).map_err(failed)?;
        let given = self.give(&session, ttl).await;
        if given.is_err() {
            self.end(&session.id, EndReason::Lost);
        }
        given
    }

    fn check_room(&self) -> Result<(), Failure> {
        if self.house.sessions.list().len() < self.settings.limits.sessions {
            return Ok(());
        }
        Err(Failure::new(Code::Failed, "as many sessions run as may (`limits.sessions`)"))
    }

    async fn take_uid(&self) -> Result<Taken, Failure> {
        let (uids, range, sessions) = (self.uids.clone(), self.settings.sessions.uids, self.house.sessions.clone());
        let taken = tokio::task::spawn_blocking(move || uids.take(range, &sessions)).await.map_err(failed)?;
        taken.map_err(|error| Failure::new(Code::Failed, error.to_string()).help(error.help()))
    }

    /// Makes the session's cgroup. A scope has the caller in it from the first, without rights yet.
    async fn make(&self, home: Home, workload: &Arc<str>, id: &Arc<str>, caller: &Caller) -> Result<Made, Failure> {
        let (helper, workload, id) = (self.governor.helper().clone(), workload.clone(), id.clone());
        let made = if home == Home::Scope {
            // Once it is in, it is governed: so before.
            caller.check_again()?;
            let connection = caller.peer.connection().try_clone_to_owned().map_err(failed)?;
            tokio::task::spawn_blocking(move || helper.make_scope(&workload, &id, connection.as_fd())).await
        } else {
            tokio::task::spawn_blocking(move || helper.make(&workload, &id)).await
        };
        made.map_err(failed)?.map_err(undone)
    }

    async fn begin(&self, new: NewSession, ttl: Option<Duration>, caller: &Caller) -> Result<Arc<Session>, Failure> {
        let id = new.id.clone().unwrap_or_default();
        let _starting = Starting::mark(&self.starting, id);
        let session = self.house.sessions.insert(new).map_err(failed)?;
        match self.admit(&session, ttl, caller).await {
            Ok(()) => Ok(session),
            Err(failure) => {
                self.end(&session.id, EndReason::Exited);
                Err(failure)
            }
        }
    }

    /// What comes after the table knows it: its rights, and the launcher's move.
    async fn admit(&self, session: &Arc<Session>, ttl: Option<Duration>, caller: &Caller) -> Result<(), Failure> {
        self.give(session, ttl).await?;
        if session.home == Home::Made {
            caller.check_again()?;
            let connection = caller.peer.connection().try_clone_to_owned().map_err(failed)?;
            let (helper, id) = (self.governor.helper().clone(), session.id.clone());
            let entered = tokio::task::spawn_blocking(move || helper.enter(&id, connection.as_fd()));
            entered.await.map_err(failed)?.map_err(undone)?;
        }
        // Still the same process: so it was it that was moved.
        caller.peer.check_alive().map_err(|error| Failure::new(Code::Denied, error.to_string()))?;
        let (namespaces, session) = (self.namespaces.clone(), session.clone());
        let entered = tokio::task::spawn_blocking(move || namespaces.enter(&session)).await.map_err(failed)?;
        entered.map_err(|error| {
            Failure::new(Code::Failed, format!("no listener in the caller's network namespace: {error:?}"))
                .help("give the daemon CAP_SYS_ADMIN and CAP_SYS_PTRACE, and keep the port of `listen` free there")
        })
    }

    /// Records a session's begin, then gives it its rights.
    async fn give(&self, session: &Session, ttl: Option<Duration>) -> Result<(), Failure> {
        let start = EventBody::SessionStart {
            intent: session.intent.clone(),
            command: session.command.clone(),
            operator: session.operator.clone(),
            cgroup: session.cgroup_id,
            ttl_seconds: ttl.map(|ttl| ttl.as_secs()),
        };
        let position = self.house.recorder.append(event(session, start)).map_err(failed)?;
        self.house.recorder.sync(position).await.map_err(failed)?;
        self.allow(session)
            .map_err(|error| Failure::new(Code::Failed, format!("the kernel side did not take the session: {error}")))
    }

    /// Gives a session its rights in the kernel.
    fn allow(&self, session: &Session) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.governor.kernel().allow_session(session.cgroup_id)?;
        if session.temporary == Temporary::Private {
            // As clients will write it: the launcher is given the same.
            let folder = asked::sockets(&self.settings)?;
            let folder = folder.to_str().ok_or("the runtime folder's name is not text")?;
            self.governor.kernel().set_unix_folder(session.cgroup_id, &format!("{folder}/"))?;
        }
        self.governor.give_unix(&self.house.policies, session)
    }

    /// Takes a session's rights, if it is live. Idempotent.
    pub(super) fn end(&self, id: &str, why: EndReason) {
        if let Some(session) = self.house.sessions.end(id, why) {
            self.ended(&session, why);
        }
    }

    /// What follows when the table has let a session go.
    pub(super) fn ended(&self, session: &Session, why: EndReason) {
        if let Err(error) = self.governor.kernel().forget_session(session.cgroup_id) {
            // The table has let it go, so its connections are closed on arrival all the same.
            tracing::error!(session = &*session.id, error, "the kernel side did not forget a session");
        }
        match why {
            EndReason::Quarantined => self.house.holds.quarantine_session(&session.id),
            _ => self.house.holds.end_session(&session.id),
        }
        self.house.live.close_session(&session.id, "the session ended");
        tracing::info!(session = &*session.id, workload = &*session.workload, %why, "session ended");
        self.record_end(event(session, EventBody::SessionEnd { why: why.as_str().into() }));
        if why == EndReason::Expired && session.expiry == Expiry::Kill && is_there(session) {
            self.kill(&session.id, &session.cgroup_path, session.cgroup_id);
        }
        if session.home != Home::Claimed {
            self.remove(session.cgroup_path.clone());
        }
    }

    /// Ends a session and stops its processes where they are.
    pub(super) fn quarantine(&self, prefix: &str) -> Result<Arc<Session>, Failure> {
        let wanted = prefix.to_ascii_lowercase();
        let mut found = self.house.sessions.list();
        found.retain(|session| !wanted.is_empty() && session.id.to_ascii_lowercase().starts_with(&wanted));
        let [session] = found.as_slice() else {
            let message = format!("{} live sessions begin with `{prefix}`", found.len());
            return Err(Failure::new(Code::NotFound, message).help("`portcullis sessions` lists them"));
        };
        self.end(&session.id, EndReason::Quarantined);
        if is_there(session)
            && let Err(error) = self.governor.helper().freeze(self.relative(&session.cgroup_path), session.cgroup_id)
        {
            tracing::warn!(session = &*session.id, %error, "processes of a quarantined session could not be frozen");
        }
        Ok(session.clone())
    }

    /// Takes over what the last daemon left: sessions that live on, ends of those that do not, empty cgroups.
    pub(super) fn adopt(&self, adopted: &[Arc<Session>], lost: &[LostSession]) {
        for session in adopted {
            let known = self.house.policies.load().by_workload(&session.workload).is_some();
            let taken = known && self.allow(session).is_ok();
            if taken {
                tracing::info!(session = &*session.id, workload = &*session.workload, "session lives on");
            } else {
                self.end(&session.id, EndReason::Lost);
            }
        }
        for session in lost {
            if let Some(cgroup) = &session.kill
                && let Ok(id) = identity::cgroup_id(cgroup)
            {
                self.kill(&session.id, cgroup, id);
            }
            let end = EventBody::SessionEnd { why: session.why.as_str().into() };
            self.record_end(Event {
                tenant: session.tenant.clone(),
                workload: session.workload.clone(),
                session_id: session.id.clone(),
                trace_id: Some(session.trace_id.clone()),
                body: end,
                ..Event::daemon("")
            });
        }
        let live: HashSet<PathBuf> = self.house.sessions.list().iter().map(|s| s.cgroup_path.clone()).collect();
        for parent in self.governor.governed() {
            for left in limits::left_in(&parent).iter().filter(|left| !live.contains(&self.governor.root().join(left)))
            {
                let _ = self.governor.helper().remove(left);
            }
            let Ok(children) = std::fs::read_dir(self.governor.root().join(parent)) else { continue };
            for child in children.flatten().filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir())) {
                let ours = child.file_name().to_str().is_some_and(identity::is_session_id);
                if ours && !live.contains(&child.path()) {
                    // Only succeeds where nobody lives.
                    let _ = self.governor.helper().remove(self.relative(&child.path()));
                }
            }
        }
    }

    /// Ends sessions without processes, removes what is empty, and listens where processes are. Reads two small files per
    /// session and asks for each of its processes; may block.
    pub(super) fn sweep(&self) {
        for session in self.house.sessions.list() {
            if lock(&self.starting).contains(&session.id) {
                continue;
            }
            match is_alive(&session) {
                Ok(true) => {}
                Ok(false) => self.end(&session.id, EndReason::Exited),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.end(&session.id, EndReason::Exited);
                }
                Err(error) => tracing::warn!(session = &*session.id, %error, "cannot tell whether a session lives"),
            }
        }
        self.namespaces.tend(&self.house.sessions.list());
        let leftover = std::mem::take(&mut *lock(&self.leftover));
        for path in leftover {
            self.remove(path);
        }
    }

    /// Removes a cgroup, with those of its limits, now or when it is empty.
    fn remove(&self, path: PathBuf) {
        match self.governor.helper().remove(self.relative(&path)) {
            Ok(true) => {}
            Ok(false) | Err(HelperError::Gone(_)) => lock(&self.leftover).push(path),
            Err(HelperError::Failed(error)) => tracing::warn!(%error, "a cgroup stays"),
        }
    }

    /// Kills every process of a cgroup.
    fn kill(&self, session: &str, cgroup: &Path, id: u64) {
        if let Err(error) = self.governor.helper().kill(self.relative(cgroup), id) {
            // Refused everything they are all the same.
            tracing::error!(session, %error, "processes of a session whose time ran out could not be killed");
        }
    }

    /// A cgroup's path as the helper knows it.
    fn relative<'a>(&self, path: &'a Path) -> &'a Path {
        path.strip_prefix(self.governor.root()).unwrap_or(path)
    }

    fn record_end(&self, event: Event) {
        if let Err(error) = self.house.recorder.append(event) {
            tracing::error!(%error, "the end of a session could not be recorded");
        }
    }
}

/// Keeps a session from being swept until its launcher is in.
struct Starting<'a> {
    set: &'a Mutex<HashSet<Arc<str>>>,
    id: Arc<str>,
}

impl<'a> Starting<'a> {
    fn mark(set: &'a Mutex<HashSet<Arc<str>>>, id: Arc<str>) -> Self {
        lock(set).insert(id.clone());
        Self { set, id }
    }
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        lock(self.set).remove(&self.id);
    }
}

/// Whether a session's cgroup has processes, or, if it is another's, is still there.
fn is_alive(session: &Session) -> io::Result<bool> {
    match session.home {
        Home::Made | Home::Scope => is_populated(&session.cgroup_path),
        Home::Claimed => Ok(is_there(session)),
    }
}

/// Whether the folder of a session's cgroup is still that cgroup's: others may have made another in its place.
fn is_there(session: &Session) -> bool {
    identity::cgroup_id(&session.cgroup_path).is_ok_and(|id| id == session.cgroup_id)
}

/// `populated 1` in cgroup.events: some process lives in the cgroup or below it (cgroup-v2.rst).
fn is_populated(cgroup: &Path) -> io::Result<bool> {
    let text = std::fs::read_to_string(cgroup.join("cgroup.events"))?;
    let value = text.lines().find_map(|line| line.strip_prefix("populated "));
    match value {
        Some("0") => Ok(false),
        Some("1") => Ok(true),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "cgroup.events says nothing of processes")),
    }
}

fn event(session: &Session, body: EventBody) -> Event {
    Event {
        tenant: session.tenant.clone(),
        workload: session.workload.clone(),
        session_id: session.id.clone(),
        trace_id: Some(session.trace_id.clone()),
        body,
        ..Event::daemon("")
    }
}

fn undone(error: HelperError) -> Failure {
    let failure = Failure::new(Code::Failed, error.to_string());
    match error.help() {
        Some(help) => failure.help(help),
        None => failure,
    }
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::new(Code::Failed, format!("the session could not be made: {error}"))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
