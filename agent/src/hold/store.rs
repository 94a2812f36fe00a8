//! The pending store.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, broadcast, oneshot},
    time::Instant,
};

use super::{
    grants::{Covered, GrantView},
    id,
    reviewer::ReviewerIdentity,
    view::{Estimate, GrantState, HoldChange, HoldView},
};
use crate::{
    action::{Part, ProcessFacts, TurnNote},
    policy::{HoldSpec, Reviewer},
};

mod state;

use state::State;

/// Whether a reviewer may decide for a process that runs as the same user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SameUser {
    /// No: what the process can do as that user, it could do to approve itself.
    #[default]
    Refuse,
    /// Yes: for a host with one user, who accepts that.
    Permit,
}

/// Limits and defaults.
#[derive(Clone, Debug)]
pub struct HoldSettings {
    /// Who is asked where a rule names nobody. Root always is, then.
    pub reviewers: Vec<Reviewer>,
    /// Whether a reviewer may decide for a process that runs as the same user.
    pub same_user: SameUser,
    /// Holds of one session at a time, withdrawn ones not counted.
    pub max_per_session: usize,
    /// Holds in all, withdrawn ones counted.
    pub max_total: usize,
    /// Bytes of command text of all holds together.
    pub max_bytes: usize,
    /// The longest grant.
    pub max_grant: Duration,
    /// How long an approval for a retry is good.
    pub retry: Duration,
}

impl Default for HoldSettings {
    fn default() -> Self {
        Self {
            reviewers: Vec::new(),
            same_user: SameUser::Refuse,
            max_per_session: 16,
            max_total: 1024,
            max_bytes: 256 << 20,
            max_grant: Duration::from_secs(8 * 3600),
            retry: Duration::from_secs(600),
        }
    }
}

/// Where changes are recorded before they take effect. Called with the store locked, in order: it must be quick and
/// must not call back into the store.
pub trait Journal: Send + Sync {
    /// Records a change. An error keeps the change from happening, unless it only takes rights away.
    fn note(&self, change: &HoldChange) -> Result<(), JournalError>;
}

/// Why a change could not be recorded.
#[derive(Debug, thiserror::Error)]
#[error("the change could not be recorded")]
pub struct JournalError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HoldError {
    /// Too many commands wait already.
    #[error("too many commands are waiting for a reviewer already ({0})")]
    TooMany(&'static str),
    /// No hold or grant has this id.
    #[error("no hold has the id `{0}`; `portcullis held` lists those that wait")]
    Unknown(String),
    /// It was decided before.
    #[error("hold {id} was {} already", state.as_str())]
    Decided {
        /// The hold.
        id: Arc<str>,
        /// How.
        state: super::HoldState,
    },
    /// This person is not one whom the rule asks.
    #[error("{who} may not review this; it asks {asked}")]
    NotReviewer {
        /// User name.
        who: String,
        /// Whom the rule asks.
        asked: String,
    },
    /// The process runs as the reviewer's own user.
    #[error("{0} may not decide for a process that runs as the same user; ask another reviewer")]
    SameUser(String),
    /// The same person approved before, and two are needed.
    #[error("{0} has approved already; a second reviewer is needed")]
    SecondReviewer(String),
    /// The grant would last too long.
    #[error("a grant may last {} minutes at most", .0.as_secs() / 60)]
    GrantTooLong(Duration),
    /// A grant of no time.
    #[error("a grant must last some time")]
    GrantTooShort,
    /// The rule asks for an impossible number of reviewers.
    #[error("a hold needs one or two reviewers, not {0}")]
    Required(u8),
    /// The system gave no random bytes.
    #[error("the system's random number generator failed")]
    Random,
    /// The change could not be recorded, so it did not happen.
    #[error(transparent)]
    Unrecorded(#[from] JournalError),
}

/// A command that asks.
#[derive(Clone, Debug)]
pub struct HoldRequest {
    /// Workload name.
    pub workload: Arc<str>,
    /// Session id.
    pub session: Arc<str>,
    /// Connection within the daemon's life.
    pub connection_id: u64,
    /// Number of the command within the connection.
    pub seq: u64,
    /// Who asks.
    pub process: ProcessFacts,
    /// Why the session runs.
    pub intent: Option<Arc<str>>,
    /// The turns of conversations with models that it belongs to; several are candidates.
    pub turns: Vec<TurnNote>,
    /// Upstream name.
    pub upstream: Arc<str>,
    /// Database, where the protocol has one.
    pub database: Option<Arc<str>>,
    /// The exact command, as text for people.
    pub command: Arc<str>,
    /// BLAKE3 of the exact bytes.
    pub hash: [u8; 32],
    /// What it would do.
    pub action: Vec<Part>,
    /// What the policy asks for.
    pub spec: HoldSpec,
    /// The command with its literals removed, for grants.
    pub shape: Arc<str>,
}

/// A command of which [`HoldStore::covered`] is asked.
#[derive(Clone, Copy, Debug)]
pub struct Command<'a> {
    /// Workload name.
    pub workload: &'a str,
    /// Session id.
    pub session: &'a str,
    /// Connection within the daemon's life.
    pub connection_id: u64,
    /// Upstream name.
    pub upstream: &'a str,
    /// Database, where the protocol has one.
    pub database: Option<&'a str>,
    /// BLAKE3 of the exact bytes.
    pub hash: &'a [u8; 32],
    /// The command with its literals removed.
    pub shape: &'a str,
    /// What it would do.
    pub action: &'a [Part],
    /// What the policy asks for.
    pub spec: &'a HoldSpec,
}

impl HoldRequest {
    /// The question whether a grant covers this already.
    pub fn as_command(&self) -> Command<'_> {
        Command {
            workload: &self.workload,
            session: &self.session,
            connection_id: self.connection_id,
            upstream: &self.upstream,
            database: self.database.as_deref(),
            hash: &self.hash,
            shape: &self.shape,
            action: &self.action,
            spec: &self.spec,
        }
    }
}

/// How a hold ended, for the one who waits.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Forward it.
    Approved {
        /// Everyone who approved.
        reviewers: Vec<String>,
        /// What the last of them said.
        reason: Option<String>,
    },
    /// Refuse it.
    Denied {
        /// Who.
        reviewer: String,
        /// Why.
        reason: Option<String>,
    },
    /// Nobody answered in time.
    Expired,
    /// The session ended or lost its rights.
    Revoked,
}

/// What an approval did.
#[derive(Clone, Debug)]
pub enum Approval {
    /// One of two: the hold waits for another reviewer.
    Partial(Arc<HoldView>),
    /// The command goes on. With the grant, if one was asked for or the rule's scope opens one.
    Granted(Arc<HoldView>, Option<Arc<GrantView>>),
    /// Its client is gone: the command may be retried once.
    Retry(Arc<HoldView>, Arc<GrantView>),
}

/// The holds of this daemon. Clones share one store.
#[derive(Clone)]
pub struct HoldStore {
    inner: Arc<Inner>,
}

struct Inner {
    settings: HoldSettings,
    journal: Option<Arc<dyn Journal>>,
    changes: broadcast::Sender<HoldChange>,
    state: Mutex<State>,
    timer: Notify,
}

impl HoldStore {
    /// A store whose changes are only broadcast.
    pub fn new(settings: HoldSettings) -> Self {
        Self::build(settings, None)
    }

    /// A store whose changes are recorded before they take effect.
    pub fn with_journal(settings: HoldSettings, journal: Arc<dyn Journal>) -> Self {
        Self::build(settings, Some(journal))
    }

    fn build(settings: HoldSettings, journal: Option<Arc<dyn Journal>>) -> Self {
        let inner = Inner {
            settings,
            journal,
            changes: broadcast::channel(1024).0,
            state: Mutex::new(State::default()),
            timer: Notify::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Every change from now on, for those who watch. A watcher that falls 1,024 changes behind is told that it did and
    /// should list anew; the record does not depend on this channel (see [`Journal`]).
    pub fn changes(&self) -> broadcast::Receiver<HoldChange> {
        self.inner.changes.subscribe()
    }

    /// Lets a command wait. Ask [`HoldStore::covered`] first. Errors: too many wait already, or it cannot be recorded.
    pub fn request(&self, request: HoldRequest) -> Result<Pending, HoldError> {
        let (sender, receiver) = oneshot::channel();
        let request = Arc::new(request);
        let (id, deadline) = self.inner.lock().request(&self.inner, request.clone(), sender)?;
        self.inner.timer.notify_one();
        Ok(Pending { inner: self.inner.clone(), request, id, deadline, outcome: Some(receiver) })
    }

    /// Attaches what is known about the effect of a hold. Unknown ids are ignored: it was decided meanwhile.
    pub fn set_estimate(&self, id: &str, estimate: Estimate) {
        self.inner.lock().set_estimate(&self.inner, id, estimate);
    }

    /// Holds that wait or may be approved for a retry, oldest first.
    pub fn list(&self) -> Vec<HoldView> {
        let mut state = self.inner.lock();
        state.expire(&self.inner, Instant::now());
        state.views()
    }

    /// The view of one hold that waits or may be approved for a retry.
    pub fn view(&self, id: &str) -> Option<HoldView> {
        let id = id::normalise(id);
        self.list().into_iter().find(|view| *view.id == *id)
    }

    /// One reviewer approves. With `grant`, also commands of this shape in this session for so long; where two must
    /// approve, the grant is the shorter of what both said, and none if one said none.
    pub fn approve(
        &self,
        id: &str,
        by: &ReviewerIdentity,
        reason: Option<String>,
        grant: Option<Duration>,
    ) -> Result<Approval, HoldError> {
        let approval = self.inner.lock().approve(&self.inner, &id::normalise(id), by, reason, grant)?;
        self.inner.timer.notify_one();
        Ok(approval)
    }

    /// A reviewer denies. One is enough.
    pub fn deny(&self, id: &str, by: &ReviewerIdentity, reason: Option<String>) -> Result<HoldView, HoldError> {
        self.inner.lock().deny(&self.inner, &id::normalise(id), by, reason)
    }

    /// A grant or retry permit that covers this command; a retry permit is used up by asking. `None` too where its use
    /// could not be recorded.
    pub fn covered(&self, command: &Command<'_>) -> Option<Covered> {
        self.inner.lock().covered(&self.inner, command)
    }

    /// Grants and unused retry permits, oldest first.
    pub fn grants(&self) -> Vec<GrantView> {
        let mut state = self.inner.lock();
        state.expire(&self.inner, Instant::now());
        state.grant_views()
    }

    /// A reviewer takes a grant back. The answer names the connections that used it, which the caller closes.
    pub fn revoke(&self, id: &str, by: &ReviewerIdentity) -> Result<GrantView, HoldError> {
        self.inner.lock().revoke(&self.inner, &id::normalise(id), by)
    }

    /// A session is over: those who wait are told [`Outcome::Revoked`], and its grants end. What its clients had
    /// withdrawn may still be approved for a retry in another session of the workload.
    pub fn end_session(&self, session: &str) {
        self.inner.lock().end_session(&self.inner, session, state::Leftovers::Keep);
    }

    /// As [`HoldStore::end_session`], and nothing of it may be retried.
    pub fn quarantine_session(&self, session: &str) {
        self.inner.lock().end_session(&self.inner, session, state::Leftovers::Drop);
    }

    /// Expires holds and grants when their time comes, for ever. For one task of the daemon; without it, time is looked
    /// at when the store is asked. Cancel safe.
    pub async fn run_timer(&self) {
        loop {
            let next = {
                let mut state = self.inner.lock();
                state.expire(&self.inner, Instant::now());
                state.next_deadline()
            };
            match next {
                Some(at) => tokio::select! {
                    () = self.inner.timer.notified() => {}
                    () = tokio::time::sleep_until(at) => {}
                },
                None => self.inner.timer.notified().await,
            }
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a change and tells watchers; an error means that it must not happen.
    fn note(&self, change: HoldChange) -> Result<(), JournalError> {
        if let Some(journal) = &self.journal {
            journal.note(&change)?;
        }
        // Nobody watches: fine.
        let _ = self.changes.send(change);
        Ok(())
    }

    /// Records a change that only takes rights away, and so happens whatever the journal says.
    fn note_anyway(&self, change: HoldChange) {
        if let Some(journal) = &self.journal
            && let Err(error) = journal.note(&change)
        {
            tracing::error!(error = %error.0, "a withdrawn right could not be recorded");
        }
        let _ = self.changes.send(change);
    }

    fn note_grant(&self, view: GrantView, state: GrantState, by: Option<String>) {
        self.note_anyway(HoldChange::Grant { view: Arc::new(view), state, by });
    }
}

/// A command that waits. Dropping it withdraws the hold.
pub struct Pending {
    inner: Arc<Inner>,
    request: Arc<HoldRequest>,
    id: Arc<str>,
    deadline: Instant,
    /// Taken once the outcome was handed out.
    outcome: Option<oneshot::Receiver<Outcome>>,
}

impl Pending {
    /// The hold's id, to show to the client.
    pub fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// The hold as reviewers see it; `None` once it was decided.
    pub fn view(&self) -> Option<HoldView> {
        self.inner.lock().view(&self.id)
    }

    /// Waits for the decision. Cancel safe: a decision that was not handed out stays. After it was handed out, and only
    /// then, asking again answers [`Outcome::Revoked`].
    pub async fn outcome(&mut self) -> Outcome {
        let Some(receiver) = self.outcome.as_mut() else { return Outcome::Revoked };
        let answer = tokio::select! {
            biased;
            answer = &mut *receiver => answer,
            () = tokio::time::sleep_until(self.deadline) => {
                // Whatever decided first is in the channel when this returns.
                self.inner.lock().expire(&self.inner, Instant::now());
                receiver.await
            }
        };
        self.outcome = None;
        // A sender that went without a word means that the store forgot the hold: no right came of it.
        answer.unwrap_or(Outcome::Revoked)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(mut receiver) = self.outcome.take() {
            self.inner.lock().withdraw(&self.inner, self, &mut receiver);
            self.inner.timer.notify_one();
        }
    }
}
