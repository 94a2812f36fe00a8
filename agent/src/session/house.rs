//! What all sessions share, and how one connection goes through it.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;

use super::{
    BoxIo, ConnectionCx, Gate, LiveTable, Network,
    cx::{Judge, Masks},
    live::connect,
    names::{self, Answered},
    permit::{Command, Lasting, Refusal, Standing},
    which::{self, Found},
};
use crate::{
    action::{Direction, ProcessFacts, ProtocolId},
    hold::HoldStore,
    identity::{self, Session, Sessions},
    mask::MaskSet,
    policy::{Decision, Policy, PolicySet, UpstreamSpec},
    record::{DecisionNote, Event, EventBody, Recorder},
    secrets::Secrets,
    wire::{Budget, Limits, OverBudget},
};

/// A protocol that the enforcer speaks.
pub trait Protocol: Send + Sync {
    /// Its id.
    fn id(&self) -> ProtocolId;

    /// Serves one connection until it ends. The error is for the record; whatever the client may know it was told.
    fn serve<'a>(&'a self, client: BoxIo, cx: &'a Arc<ConnectionCx>) -> BoxFuture<'a, Result<Ended, SessionError>>;
}

/// How much a connection carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Bytes from the client.
    pub bytes_in: u64,
    /// Bytes to the client.
    pub bytes_out: u64,
}

/// A connection ended badly. Says which side was at fault.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The client broke the protocol or a limit.
    #[error("client: {0}")]
    Client(String),
    /// The upstream broke the protocol, refused or vanished.
    #[error("upstream: {0}")]
    Upstream(String),
    /// It would take more memory than it may.
    #[error("limit: {0}")]
    Limit(#[from] OverBudget),
    /// Policy, a reviewer or an operator ended it.
    #[error("ended: {0}")]
    Ended(String),
    /// We failed.
    #[error("enforcer: {0}")]
    Enforcer(String),
    /// A socket failed.
    #[error("socket: {0}")]
    Io(#[from] std::io::Error),
}

/// A policy, the name of one of its upstreams, and the masks of both.
pub type CompiledMasks = (Arc<Policy>, Box<str>, Masks);

/// Everything that sessions share.
pub struct House {
    /// Policies in force.
    pub policies: ArcSwap<PolicySet>,
    /// The record.
    pub recorder: Recorder,
    /// What waits for reviewers.
    pub holds: HoldStore,
    /// Live sessions.
    pub sessions: Sessions,
    /// Credentials.
    pub secrets: Arc<Secrets>,
    /// The network.
    pub network: Arc<dyn Network>,
    /// Live connections.
    pub live: LiveTable,
    /// Caps.
    pub limits: Limits,
    /// Memory for what peers send.
    pub memory: Arc<Budget>,
    /// Key of hashing masks: random, for this daemon's life.
    pub mask_key: [u8; 32],
    /// Protocols.
    pub protocols: Vec<Arc<dyn Protocol>>,
    /// Connections so far.
    pub connections: AtomicU64,
    /// What names were answered with. Start with none.
    pub answered: Answered,
    /// Masks compiled so far, by policy and upstream. Start with none.
    pub compiled: Mutex<Vec<CompiledMasks>>,
}

impl fmt::Debug for House {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("House").finish_non_exhaustive()
    }
}

/// A connection that was accepted.
pub struct Arrival {
    /// Its stream.
    pub io: BoxIo,
    /// Where the client wanted to go.
    pub origin: SocketAddr,
    /// Whose it is.
    pub session: Arc<Session>,
    /// Which process opened it.
    pub process: ProcessFacts,
}

impl House {
    /// The upstream of a workload by name, with what judges it.
    pub(super) fn judge(&self, workload: &str, upstream: &str) -> Option<(Arc<UpstreamSpec>, Judge)> {
        let policies = self.policies.load();
        let policy = policies.by_workload(workload)?;
        let spec = policy.upstream(upstream)?;
        let masks = self.masks(policy, upstream)?;
        Some((Arc::clone(spec), Judge { policy: Arc::clone(policy), masks: masks.of_its_own() }))
    }

    /// The compiled masks of a policy for an upstream, compiled once and kept while the policy is in force.
    fn masks(&self, policy: &Arc<Policy>, upstream: &str) -> Option<Masks> {
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        let known = compiled.iter().find(|(of, name, _)| Arc::ptr_eq(of, policy) && &**name == upstream);
        if let Some((_, _, masks)) = known {
            return Some(masks.clone());
        }
        // Masks that do not compile were refused when the policy was loaded; should one still fail, nothing passes.
        let compile = |direction| {
            let specs = policy.masks(upstream).iter().filter(|spec| spec.direction == direction);
            MaskSet::compile(&specs.cloned().collect::<Vec<_>>(), self.mask_key)
                .inspect_err(|error| tracing::error!(%error, upstream, "masks do not compile"))
                .map(Arc::new)
                .ok()
        };
        let masks = Masks { response: compile(Direction::Response)?, request: compile(Direction::Request)? };
        let policies = self.policies.load();
        compiled.retain(|(of, ..)| policies.policies().iter().any(|p| Arc::ptr_eq(p, of)));
        compiled.push((Arc::clone(policy), upstream.into(), masks.clone()));
        Some(masks)
    }

    /// The upstreams of the workload that the client may have asked for, each by the first of its addresses that fits.
    async fn find_upstreams(&self, workload: &str, origin: SocketAddr) -> Vec<Found> {
        let mut all = Vec::new();
        let Some(policy) = self.policies.load().by_workload(workload).cloned() else { return all };
        'upstreams: for upstream in policy.upstreams() {
            for address in &upstream.addresses {
                let Some((host, port)) = address.rsplit_once(':') else { continue };
                if port.parse() != Ok(origin.port()) {
                    continue;
                }
                let host = host.trim_start_matches('[').trim_end_matches(']');
                // A name that does not resolve now is not where the client went; other addresses still count.
                let found = self.network.resolve(host).await.unwrap_or_default();
                let is_here = |ip: &IpAddr| ip.to_canonical() == origin.ip().to_canonical();
                if found.iter().any(is_here) || self.answered.has(&bare_name(host), origin.ip()) {
                    all.push((Arc::clone(upstream), address.as_str().into()));
                    continue 'upstreams;
                }
            }
        }
        all
    }

    pub(super) fn refused(&self, session: &Session, what: String, process: ProcessFacts) {
        let event = Event {
            timestamp: String::new(),
            tenant: session.tenant.clone(),
            workload: Arc::clone(&session.workload),
            session_id: Arc::clone(&session.id),
            connection_id: 0,
            trace_id: Some(Arc::clone(&session.trace_id)),
            upstream: None,
            body: EventBody::Refused { what, process },
        };
        if let Err(error) = self.recorder.append(event) {
            tracing::error!(%error, "a refused connection could not be recorded");
        }
    }
}

/// A name as it is asked for.
pub(super) fn bare_name(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// Serves one connection to its end. Never fails outward: whatever happens is recorded and the connection closed.
pub async fn serve(house: Arc<House>, arrival: Arrival) {
    let Arrival { io, origin, session, process } = arrival;
    if session.is_over() {
        return house.refused(&session, format!("{origin}: the session is over"), process);
    }
    let found = house.find_upstreams(&session.workload, origin).await;
    if found.is_empty() && origin.port() == names::PORT {
        return names::serve(&house, &session, &process, io).await;
    }
    let chosen = which::choose(&*house.network, found, origin, io, &session.ended).await;
    let Some(((spec, address), io)) = chosen else {
        return house.refused(&session, format!("{origin}: no upstream of the policy has this address"), process);
    };
    let Some((upstream, judge)) = house.judge(&session.workload, &spec.name) else {
        return house.refused(&session, format!("{origin}: the policy changed"), process);
    };
    let Some(protocol) = house.protocols.iter().find(|p| p.id() == upstream.protocol).cloned() else {
        return house.refused(&session, format!("{origin}: protocol {} is not spoken", upstream.protocol), process);
    };
    let id = house.connections.fetch_add(1, Ordering::Relaxed) + 1;
    let subject = identity::subject(&session, process);
    let session_memory = session.memory.get_or_init(|| Budget::share(&house.memory, house.limits.session_memory()));
    let memory = Budget::share(session_memory, house.limits.connection_memory());
    let shared = (Arc::clone(&session.turns), memory);
    let cx = Arc::new(ConnectionCx::new(id, subject, upstream, address, Arc::clone(&house), shared, judge));
    let entry = house.live.enter(&cx);
    let stop = {
        let cx = Arc::clone(&cx);
        let ended = session.ended.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = ended.cancelled() => cx.end("the session ended"),
                () = cx.terminate.cancelled() => {}
            }
        })
    };
    let outcome = protocol.serve(io, &cx).await;
    stop.abort();
    let (why, ended) = match outcome {
        Ok(ended) => ("closed".to_owned(), ended),
        Err(error) => (error.to_string(), Ended::default()),
    };
    tracing::debug!(connection = id, why, "connection ended");
    let body = EventBody::Disconnect { why: why.into(), bytes_in: ended.bytes_in, bytes_out: ended.bytes_out };
    // Recording failed: already logged, and there is nobody left to refuse.
    let _ = cx.record(body);
    drop(entry);
}

/// Judges and records the opening of a connection; a hold is waited for like any other. `database` is what the login asked
/// for, for the record.
///
/// # Errors
/// It may not be opened.
pub async fn may_connect(cx: &Arc<ConnectionCx>, database: Option<Arc<str>>) -> Result<(), Refusal> {
    let decision = cx.decide(&connect(cx));
    let reason = match &decision {
        Decision::Allow(_) => None,
        Decision::Hold(spec) => Some(&spec.reason.text),
        Decision::Suggest(reason) | Decision::Deny(reason) => Some(&reason.text),
    };
    let note = DecisionNote {
        effect: decision.effect().as_str().into(),
        rule: Arc::clone(decision.rule()),
        reviewers: Vec::new(),
        reason: reason.cloned(),
    };
    cx.record(EventBody::Connect {
        address: Arc::clone(&cx.address),
        protocol: Some(cx.upstream.protocol.as_str().into()),
        database,
        process: cx.subject.process.clone(),
        decision: note,
    })?;
    match decision {
        Decision::Allow(_) => Ok(()),
        Decision::Hold(_) => gate(cx).authorize(connect_command(cx)).await.map(drop),
        Decision::Suggest(reason) | Decision::Deny(reason) => Err(Refusal {
            message: format!("refused by rule \"{}\": {}", reason.rule, reason.text),
            rule: reason.rule,
            hint: None,
            seq: 0,
        }),
    }
}

/// Whether the policy in force lets this connection open without asking anybody. Nothing is recorded.
pub fn would_connect(cx: &ConnectionCx) -> bool {
    matches!(cx.decide(&connect(cx)), Decision::Allow(_))
}

/// The command of opening a connection, for the gate: holds and grants apply to it as to any other.
fn connect_command(cx: &ConnectionCx) -> Command {
    let text: Arc<str> = format!("connect {} ({})", cx.upstream.name, cx.address).into();
    Command {
        action: connect(cx),
        bytes: bytes::Bytes::new(),
        hash: *blake3::hash(text.as_bytes()).as_bytes(),
        shape: Arc::clone(&text).into(),
        text,
        standing: Standing::New,
        lasting: Lasting::AtOnce,
    }
}

/// A gate for a connection.
pub fn gate(cx: &Arc<ConnectionCx>) -> Gate {
    Gate::new(Arc::clone(cx))
}
