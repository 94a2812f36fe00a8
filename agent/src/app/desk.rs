//! Answers on the control socket.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::sync::broadcast::error::RecvError;

use super::{evidence, governor::Governor, lifecycle::Lifecycle, policies::Policies, resolver::Resolver};
use crate::{
    action::ProcessFacts,
    bpf::{Kernel, Problem, Remedy},
    config::Settings,
    control::{
        peer::Barred,
        proto::{Code, Decided, Examined, Failure, ProblemView, Request, SessionRow, StatusView},
        server::{Caller, Desk, Replies},
    },
    hold::{Approval, HoldError, HoldView, ReviewerIdentity},
    identity,
    policy::Reviewer,
    record::{Event, EventBody, RecordError},
    session::House,
};

/// A governed process that tries the socket again and again is recorded this often.
const BARRED_EVERY: Duration = Duration::from_secs(1);
/// `held --watch` shows at least this often, so that expired time is seen.
const WATCH_EVERY: Duration = Duration::from_secs(15);

/// The daemon's side of the control socket.
pub(super) struct ControlDesk {
    pub(super) house: Arc<House>,
    pub(super) lifecycle: Arc<Lifecycle>,
    pub(super) policies: Arc<Policies>,
    pub(super) governor: Arc<Governor>,
    pub(super) settings: Arc<Settings>,
    pub(super) listen: Vec<String>,
    pub(super) problems: Arc<dyn Fn() -> Vec<String> + Send + Sync>,
    pub(super) kernel: Arc<Kernel>,
    pub(super) resolver: Arc<Resolver>,
    pub(super) ready_at: Instant,
    pub(super) last_barred: Mutex<Option<Instant>>,
}

impl Desk for ControlDesk {
    fn answer<'a>(
        &'a self,
        caller: &'a Caller,
        request: Request,
        replies: &'a mut Replies<'_>,
    ) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>> {
        Box::pin(async move {
            match request {
                Request::OpenSession(asked) => {
                    self.must_operate(caller)?;
                    replies.item(&self.lifecycle.open(caller, asked).await?).await
                }
                Request::Held { watch: false } => {
                    for hold in self.holds_for(caller)? {
                        replies.item(&hold).await?;
                    }
                    Ok(())
                }
                Request::Held { watch: true } => self.watch(caller, replies).await,
                Request::Approve { id, grant_seconds, reason } => {
                    replies.item(&self.approve(caller, &id, grant_seconds, reason)?).await
                }
                Request::Deny { id, reason } => replies.item(&self.deny(caller, &id, reason)?).await,
                Request::Grants {} => {
                    self.must_operate(caller)?;
                    for grant in self.house.holds.grants() {
                        replies.item(&grant).await?;
                    }
                    Ok(())
                }
                Request::Revoke { id } => replies.item(&self.revoke(caller, &id)?).await,
                Request::Sessions {} => {
                    self.must_operate(caller)?;
                    for row in self.sessions().await? {
                        replies.item(&row).await?;
                    }
                    Ok(())
                }
                Request::Replay { session } => {
                    self.must_operate(caller)?;
                    for event in self.events_of(session).await? {
                        replies.item(&event).await?;
                    }
                    Ok(())
                }
                Request::Follow {} => {
                    self.must_operate(caller)?;
                    self.follow(replies).await
                }
                Request::AuditVerify {} => {
                    self.must_operate(caller)?;
                    let dir = self.settings.record_dir();
                    let verified = aside(move || evidence::verify(&dir)).await?;
                    replies.item(&verified).await
                }
                Request::Status {} => {
                    self.must_operate(caller)?;
                    replies.item(&self.status()).await
                }
                Request::Examine {} => {
                    self.must_operate(caller)?;
                    replies.item(&self.examine().await?).await
                }
                Request::Reload {} => {
                    self.must_operate(caller)?;
                    let hash = self.policies.reload("asked for").await.map_err(|refused| {
                        Failure::new(Code::Failed, format!("the policies were refused, the old ones stay:\n{refused}"))
                            .help("`portcullis policy check` shows the places")
                    })?;
                    replies.item(&format!("policies loaded: {hash}")).await
                }
                Request::Quarantine { session } => {
                    self.must_operate(caller)?;
                    caller.check_again()?;
                    let session = self.lifecycle.quarantine(&session)?;
                    let by = format!("session {} was quarantined by {}", session.id, caller.person.name);
                    self.note(Event {
                        workload: session.workload.clone(),
                        session_id: session.id.clone(),
                        ..Event::daemon(by)
                    });
                    let kill = session.cgroup_path.join("cgroup.kill");
                    replies
                        .item(&format!("session {} has no rights any more; its processes are frozen", session.id))
                        .await?;
                    replies.item(&format!("kill them with: echo 1 > {}", kill.display())).await
                }
            }
        })
    }

    fn barred(&self, pid: u32, uid: u32, why: &Barred) {
        {
            let mut last = self.last_barred.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let now = Instant::now();
            if last.is_some_and(|last| now.duration_since(last) < BARRED_EVERY) {
                return;
            }
            *last = Some(now);
        }
        tracing::warn!(pid, uid, %why, "refused at the control socket");
        let exe = tokio::task::block_in_place(|| self.governor.helper().executable(pid));
        let process = ProcessFacts { pid, uid, exe, ..identity::process_facts(pid) };
        let what = format!("control socket: {why}");
        self.note(Event { body: EventBody::Refused { what, process }, ..Event::daemon("") });
    }
}

impl ControlDesk {
    /// Root and the operators of the settings.
    fn must_operate(&self, caller: &Caller) -> Result<(), Failure> {
        if caller.person.uid == 0 || caller.person.is_named_by(&self.settings.control.operators) {
            return Ok(());
        }
        let names: Vec<String> = self.settings.control.operators.iter().map(Reviewer::to_string).collect();
        Err(Failure::new(Code::Denied, format!("{} is not an operator of this daemon", caller.person.name))
            .help(format!("operators are root and {} (`control.operators`)", names.join(", "))))
    }

    /// All holds for operators; those that they may decide for others.
    fn holds_for(&self, caller: &Caller) -> Result<Vec<HoldView>, Failure> {
        let mut holds = self.house.holds.list();
        if self.must_operate(caller).is_err() {
            holds.retain(|hold| {
                let asked: Vec<Reviewer> =
                    hold.reviewers.iter().filter_map(|name| Reviewer::try_from(name.clone()).ok()).collect();
                let asked = if asked.is_empty() { &self.settings.reviewers } else { &asked };
                caller.person.is_named_by(asked)
            });
        }
        Ok(holds)
    }

    async fn watch(&self, caller: &Caller, replies: &mut Replies<'_>) -> Result<(), Failure> {
        let mut changes = self.house.holds.changes();
        loop {
            caller.check_again()?;
            replies.item(&self.holds_for(caller)?).await?;
            tokio::select! {
                biased;
                () = replies.closed() => return Ok(()),
                change = changes.recv() => match change {
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return Ok(()),
                },
                () = tokio::time::sleep(WATCH_EVERY) => {}
            }
        }
    }

    fn approve(
        &self,
        caller: &Caller,
        id: &str,
        grant_seconds: Option<u64>,
        reason: Option<String>,
    ) -> Result<Decided, Failure> {
        let by = reviewer(caller);
        let grant = grant_seconds.map(Duration::from_secs);
        caller.check_again()?;
        let approval = self.house.holds.approve(id, &by, reason, grant).map_err(|error| hold_failure(&error))?;
        Ok(match approval {
            Approval::Partial(view) => Decided {
                id: view.id.to_string(),
                outcome: "approved".into(),
                message: format!("{}: approved by you; it waits for another reviewer", view.id),
                grant: None,
            },
            Approval::Granted(view, grant) => Decided {
                id: view.id.to_string(),
                outcome: "granted".into(),
                message: match &grant {
                    None => format!("{}: approved; the command goes on", view.id),
                    Some(grant) => format!("{}: approved; grant {} is open for more of its kind", view.id, grant.id),
                },
                grant: grant.map(|grant| grant.id.to_string()),
            },
            Approval::Retry(view, grant) => Decided {
                id: view.id.to_string(),
                outcome: "retry".into(),
                message: format!(
                    "{}: its client is gone; the same command passes once if it comes again soon",
                    view.id
                ),
                grant: Some(grant.id.to_string()),
            },
        })
    }

    fn deny(&self, caller: &Caller, id: &str, reason: Option<String>) -> Result<Decided, Failure> {
        let by = reviewer(caller);
        caller.check_again()?;
        let view = self.house.holds.deny(id, &by, reason).map_err(|error| hold_failure(&error))?;
        let message = format!("{}: denied", view.id);
        Ok(Decided { id: view.id.to_string(), outcome: "denied".into(), message, grant: None })
    }

    fn revoke(&self, caller: &Caller, id: &str) -> Result<Decided, Failure> {
        let by = reviewer(caller);
        caller.check_again()?;
        let grant = self.house.holds.revoke(id, &by).map_err(|error| hold_failure(&error))?;
        self.house.live.close(grant.connections.iter().copied(), "the grant was revoked");
        let message = format!("{}: revoked; {} connections that used it are closed", grant.id, grant.connections.len());
        Ok(Decided { id: grant.id.to_string(), outcome: "revoked".into(), message, grant: None })
    }

    async fn sessions(&self) -> Result<Vec<SessionRow>, Failure> {
        let dir = self.settings.record_dir();
        let mut rows = aside(move || evidence::sessions(&dir)).await?;
        for row in &mut rows {
            if let Some(session) = self.house.sessions.get(&row.session) {
                row.state = "live".into();
                let ends_at = session.ends_at.and_then(|at| jiff::Timestamp::try_from(at).ok());
                row.ends_at = ends_at.map(|at| at.to_string());
            }
        }
        Ok(rows)
    }

    async fn events_of(&self, session: String) -> Result<Vec<Event>, Failure> {
        let dir = self.settings.record_dir();
        let wanted = session.clone();
        aside(move || evidence::session_events(&dir, &wanted)).await?.map_err(|found| {
            Failure::new(Code::NotFound, format!("{} recorded sessions begin with `{session}`", found.len()))
                .help("`portcullis sessions` lists them")
        })
    }

    async fn follow(&self, replies: &mut Replies<'_>) -> Result<(), Failure> {
        let mut follower = self.house.recorder.follow();
        loop {
            tokio::select! {
                biased;
                () = replies.closed() => return Ok(()),
                next = follower.next() => match next {
                    None => return Ok(()),
                    Some(Ok(recorded)) => replies.item(&*recorded.event).await?,
                    Some(Err(error)) => return Err(record_failure(&error)),
                },
            }
        }
    }

    fn status(&self) -> StatusView {
        let mut problems = (self.problems)();
        let refused = self.kernel.refused().unwrap_or_else(|error| {
            problems.push(format!("what the kernel refused cannot be read: {error}"));
            Vec::new()
        });
        let ca = self.policies.trust().status();
        problems.extend(ca.iter().filter_map(|ca| ca.problem.clone()));
        StatusView {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_seconds: self.ready_at.elapsed().as_secs(),
            listen: self.listen.clone(),
            policy: self.policies.status(),
            governed: self.governor.governed().iter().map(|path| path.display().to_string()).collect(),
            sessions: self.house.sessions.list().len(),
            connections: self.house.live.list().len(),
            holds: self.house.holds.list().len(),
            recorded: self.house.recorder.last().sequence(),
            refused: refused.into_iter().map(|(reason, count)| (reason.as_str().to_owned(), count)).collect(),
            ca,
            problems,
        }
    }

    async fn examine(&self) -> Result<Examined, Failure> {
        let kernel = self.kernel.clone();
        let found = tokio::task::spawn_blocking(move || kernel.verify()).await;
        let found = found.map_err(|_| Failure::new(Code::Failed, "the kernel side could not be examined"))?;
        let heartbeat = self.kernel.heartbeat_age();
        let heartbeat = heartbeat.map_err(|error| Failure::new(Code::Failed, error.to_string()))?;
        let view = |problem: &Problem| {
            let (fix, lacks) = match problem.remedy() {
                Remedy::Do(fix) => (Some(fix.to_owned()), None),
                Remedy::Kernel(lacks) => (None, Some(lacks.to_owned())),
            };
            ProblemView { message: problem.to_string(), fix, lacks }
        };
        Ok(Examined {
            hooks: self.kernel.hooks(),
            governed: self.governor.governed().into_iter().collect(),
            pin_dir: self.kernel.pin_dir().to_owned(),
            heartbeat_ms: heartbeat.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            problems: found.iter().map(view).collect(),
            no_lsm: self.kernel.no_lsm().map(str::to_owned),
            names: self.resolver.reach(),
        })
    }

    fn note(&self, event: Event) {
        if let Err(error) = self.house.recorder.append(event) {
            tracing::error!(%error, "an event of the control socket could not be recorded");
        }
    }
}

fn reviewer(caller: &Caller) -> ReviewerIdentity {
    let person = &caller.person;
    ReviewerIdentity { name: person.name.clone(), uid: person.uid, groups: person.groups.clone() }
}

fn hold_failure(error: &HoldError) -> Failure {
    let code = match error {
        HoldError::Unknown(_) => Code::NotFound,
        HoldError::NotReviewer { .. } | HoldError::SameUser(_) | HoldError::SecondReviewer(_) => Code::Denied,
        HoldError::GrantTooLong(_) | HoldError::GrantTooShort => Code::Usage,
        _ => Code::Failed,
    };
    Failure::new(code, error.to_string())
}

fn record_failure(error: &RecordError) -> Failure {
    Failure::new(Code::Failed, format!("the record cannot be read: {error}"))
        .help("`portcullis audit verify` tells where it is damaged")
}

/// Reads the record off the runtime's threads.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RecordError> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Failure::new(Code::Failed, "reading the record failed"))?
        .map_err(|error| record_failure(&error))
}
