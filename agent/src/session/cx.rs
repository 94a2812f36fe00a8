//! What one connection is and has: down-scoped handles, not the world.

use std::{
    fmt,
    future::poll_fn,
    pin::pin,
    sync::{Arc, OnceLock},
    task::{Poll, Waker},
};

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;

use super::{Alpn, BoxIo, House, NetError, Secured, permit::Refusal};
use crate::{
    action::{Action, PromptRef, ProtocolId, Resource, Subject, trace_in},
    identity::Turns,
    mask::MaskSet,
    policy::{CredentialRef, Decision, Policy, Reason, Remembered, UpstreamSpec},
    record::{Event, EventBody, Parts, Position, Told},
    wire::{Budget, Limits},
};

/// One connection.
pub struct ConnectionCx {
    /// Number within the daemon's life.
    pub id: u64,
    /// Who opened it.
    pub subject: Arc<Subject>,
    /// Where it goes.
    pub upstream: Arc<UpstreamSpec>,
    /// The address of the upstream to dial, `host:port` of the policy.
    pub address: Arc<str>,
    /// The rest of the house.
    pub house: Arc<House>,
    /// Conversations of its session with models.
    pub turns: Arc<Turns>,
    /// Memory for what its peers send.
    pub memory: Arc<Budget>,
    /// Cancelled when the connection must end; the reason is in `ending`.
    pub terminate: CancellationToken,
    /// Why it must end.
    pub ending: OnceLock<&'static str>,
    /// As policy judges it; the second from when its database is known.
    resource: (Resource, OnceLock<Resource>),
    policy: ArcSwap<Judge>,
    told: Told,
}

/// The policy of this connection's workload and the masks compiled from it.
pub struct Judge {
    /// The policy.
    pub policy: Arc<Policy>,
    /// Its masks for the connection's upstream.
    pub masks: Masks,
}

/// Masks of one upstream, compiled.
#[derive(Clone, Debug)]
pub struct Masks {
    /// For what comes back.
    pub response: Arc<MaskSet>,
    /// For what the workload sends.
    pub request: Arc<MaskSet>,
}

impl Masks {
    /// The same, with reference counts that only one connection changes.
    pub(super) fn of_its_own(&self) -> Self {
        Self { response: Arc::new(MaskSet::clone(&self.response)), request: Arc::new(MaskSet::clone(&self.request)) }
    }
}

impl fmt::Debug for ConnectionCx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionCx")
            .field("id", &self.id)
            .field("upstream", &self.upstream.name)
            .finish_non_exhaustive()
    }
}

impl ConnectionCx {
    pub(super) fn new(
        id: u64,
        subject: Subject,
        upstream: Arc<UpstreamSpec>,
        address: Arc<str>,
        house: Arc<House>,
        (turns, memory): (Arc<Turns>, Arc<Budget>),
        judge: Judge,
    ) -> Self {
        let resource = Resource {
            upstream: Arc::clone(&upstream.name),
            protocol: upstream.protocol,
            address: Arc::clone(&address),
            database: None,
        };
        Self {
            id,
            subject: Arc::new(subject),
            upstream,
            address,
            resource: (resource, OnceLock::new()),
            house,
            turns,
            memory,
            terminate: CancellationToken::new(),
            ending: OnceLock::new(),
            policy: ArcSwap::from_pointee(judge),
            told: Told::default(),
        }
    }

    /// TLS toward the upstream as the policy has it, with the client certificate that it names, fetched for this once.
    ///
    /// # Errors
    /// There is no certificate to show, or no trusted connection.
    pub async fn secure(&self, io: BoxIo, host: &str, protocols: &[Alpn]) -> Result<Secured, NetError> {
        let mut certificate = None;
        if let Some(source) = &self.upstream.client_certificate {
            let secret = CredentialRef::plain(Arc::clone(&self.upstream.name), source.clone());
            let lease = self.house.secrets.lease(&secret).await;
            certificate = lease.map_err(|error| NetError::Credential(error.detail().into()))?.password;
        }
        self.house.network.secure(io, host, &self.upstream.tls, protocols, certificate.as_ref()).await
    }

    /// Ends the connection. The first reason stays.
    pub fn end(&self, why: &'static str) {
        let _ = self.ending.set(why);
        self.terminate.cancel();
    }

    /// Limits.
    pub fn limits(&self) -> &Limits {
        &self.house.limits
    }

    /// Names the database once the login has told it.
    pub fn set_database(&self, database: &str) {
        let (unknown, known) = &self.resource;
        let _ = known.set(Resource { database: Some(database.into()), ..unknown.clone() });
    }

    /// The database, once known.
    pub fn database(&self) -> Option<&Arc<str>> {
        self.resource.1.get()?.database.as_ref()
    }

    /// Runs what the connection does for as long as it may; `None` where it had to end.
    pub async fn until_ended<F: Future>(&self, does: F) -> Option<F::Output> {
        let (mut does, mut ended) = (pin!(does), pin!(self.terminate.cancelled()));
        let mut told: Option<Waker> = None;
        poll_fn(|task| {
            // Asking costs two locks, and most who wake this task have come for something else.
            let known = told.as_ref().is_some_and(|waker| waker.will_wake(task.waker()));
            if self.ending.get().is_some() || !known {
                if ended.as_mut().poll(task).is_ready() {
                    return Poll::Ready(None);
                }
                told = Some(task.waker().clone());
            }
            does.as_mut().poll(task).map(Some)
        })
        .await
    }

    /// The masks in force for what comes back.
    pub fn masks(&self) -> Arc<MaskSet> {
        Arc::clone(&self.policy.load().masks.response)
    }

    /// The masks in force for what the workload sends.
    pub fn request_masks(&self) -> Arc<MaskSet> {
        Arc::clone(&self.policy.load().masks.request)
    }

    /// Whether the policy in force asks for bound parameters.
    pub fn asks_params(&self) -> bool {
        self.policy.load().policy.asks_params()
    }

    /// Whether the policy in force asks for bodies of requests.
    pub fn asks_body(&self) -> bool {
        self.policy.load().policy.asks_body(&self.upstream)
    }

    /// Whether the policy in force has placeholders for secrets, of this upstream or another.
    pub fn has_placeholders(&self) -> bool {
        !self.upstream.placeholders.is_empty()
            || self.policy.load().policy.upstreams().iter().any(|upstream| !upstream.placeholders.is_empty())
    }

    /// Whether a placeholder of this name belongs to some upstream of the policy in force.
    pub fn is_placeholder(&self, name: &str) -> bool {
        let policy = self.policy.load();
        policy.policy.upstreams().iter().any(|upstream| upstream.placeholders.iter().any(|known| &*known.name == name))
    }

    /// Asks the policy in force. A session that is over may do nothing more.
    pub fn decide(&self, action: &Action) -> Decision {
        self.over().unwrap_or_else(|| self.policy.load().policy.decide(&self.subject, self.resource(), action))
    }

    /// The same for an action that comes again, unchanged, on this connection; asked first once its database is known.
    pub fn decide_again(&self, action: &Action, last: &Remembered) -> Decision {
        let decide = || last.decide(&self.policy.load().policy, &self.subject, self.resource(), action);
        self.over().unwrap_or_else(decide)
    }

    fn resource(&self) -> &Resource {
        self.resource.1.get().unwrap_or(&self.resource.0)
    }

    fn over(&self) -> Option<Decision> {
        let is_over = self.subject.ends_at.is_some_and(|end| end <= std::time::SystemTime::now());
        let reason = || Reason { rule: "session".into(), text: "the session's time is over".into() };
        is_over.then(|| Decision::Deny(reason()))
    }

    /// The turn of a conversation that a command belongs to. A request to a model is a turn itself.
    pub(super) fn prompt_ref(&self, action: &Action, text: &str) -> Option<PromptRef> {
        if action.protocol == ProtocolId::Llm || self.turns.is_empty() {
            return None;
        }
        self.turns.prompt_ref(trace_in(text))
    }

    /// Puts another policy in force for what comes next.
    pub(super) fn judge_by(&self, judge: Judge) {
        self.policy.store(Arc::new(judge));
    }

    /// Appends to the record. Failing that, nothing may happen.
    pub fn record(&self, body: EventBody) -> Result<Position, Refusal> {
        let appended = self.house.recorder.append_of(&self.told, self.id, body, |body| self.event(body));
        appended.map_err(|error| unrecorded(&error))
    }

    /// The same for what others have the parts of.
    pub fn record_parts(&self, parts: Parts<'_>) -> Result<Position, Refusal> {
        let appended = self.house.recorder.append_parts(&self.told, self.id, parts, |body| self.event(body));
        appended.map_err(|error| unrecorded(&error))
    }

    fn event(&self, body: EventBody) -> Event {
        Event {
            timestamp: String::new(),
            tenant: self.subject.tenant.clone(),
            workload: Arc::clone(&self.subject.workload),
            session_id: Arc::clone(&self.subject.session),
            connection_id: self.id,
            trace_id: Some(Arc::clone(&self.subject.trace_id)),
            upstream: Some(Arc::clone(&self.upstream.name)),
            body,
        }
    }

    /// Waits until the record is on disk.
    pub async fn sync(&self, position: Position) -> Result<(), Refusal> {
        self.house.recorder.sync(position).await.map_err(|error| unrecorded(&error))
    }
}

fn unrecorded(error: &dyn std::error::Error) -> Refusal {
    tracing::error!(%error, "the record cannot be written: traffic stops");
    Refusal {
        message: "refused: it could not be recorded".into(),
        rule: "record".into(),
        hint: Some("The host's operator must make room for the record.".into()),
        seq: 0,
    }
}
