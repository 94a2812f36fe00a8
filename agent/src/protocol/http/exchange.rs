//! One request: whom it is for, what the gate says, and what comes back.

use std::{
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http::{HeaderMap, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::{
    body::{Body as _, Incoming},
    upgrade::OnUpgrade,
};

use super::{
    body::Report,
    deny::{AnyBody, Problem},
    guarded::Wrong,
    json::json,
    lens::Lens,
    outgoing::{self, Outgoing},
    placeholder::{self, Watched},
    request::{Request, RequestError},
    resets::Reset,
    respond::{respond, respond_upgrade},
    serve::hosts,
    sigv4, strict,
    upstream::{Judged, Keep, Sends, Upstream, UpstreamError, Version},
    websocket::{self, Channel, Offer},
};
use crate::{
    action::{Action, Body, ProtocolId, Target},
    mask::Hits,
    policy::Decision,
    session::{Begun, Command, ConnectionCx, DataRight, Gate, Lasting, NetError, Standing},
    wire::Charge,
};

/// After which silences a client is told that its request waits still. With the one that asks for the body, it is told as
/// often as Go's client lets anybody before it gives up (`net/http` up to 1.22: five interim responses).
const SILENCES: [Duration; 4] =
    [Duration::from_secs(15), Duration::from_secs(30), Duration::from_secs(60), Duration::from_secs(120)];

/// One connection's state.
pub struct Connection {
    /// What it is.
    pub cx: Arc<ConnectionCx>,
    /// Judges its requests.
    pub gate: Gate,
    /// What the guard of HTTP/1.1 did not let pass.
    pub wrong: Arc<Wrong>,
    /// What every request is answered.
    pub refused: Option<Problem>,
    /// Whether the client uses TLS.
    pub encrypted: bool,
    /// The name that the client asked for in its TLS handshake; empty for none.
    pub server_name: Option<String>,
    /// Name or address that all requests are for, and where to dial it.
    pub host: OnceLock<(String, Arc<str>)>,
    /// What is spoken.
    pub version: Version,
    /// Where permitted requests go.
    pub upstream: Upstream,
    /// What is spoken within HTTP.
    pub lens: Option<Arc<dyn Lens>>,
    /// What becomes of the connection once both sides have agreed to an upgrade.
    pub channel: Mutex<Option<Channel>>,
}

impl Connection {
    /// Answers a request, with a response of the upstream or a refusal in the client's own protocol.
    pub async fn answer(&self, incoming: http::Request<Incoming>) -> Response<AnyBody> {
        let grpc = self.version == Version::Http2 && is_grpc(incoming.headers());
        // Boxed: the library moves what it is given more than once, and all that a request may wait for is large.
        match Box::pin(self.exchange(incoming)).await {
            Ok(response) => response,
            Err(problem) if grpc => problem.grpc(),
            Err(mut problem) => {
                if let Some(lens) = &self.lens {
                    lens.refusal(&mut problem);
                }
                problem.response()
            }
        }
    }

    async fn exchange(&self, incoming: http::Request<Incoming>) -> Answered {
        if self.version == Version::Http1 && incoming.uri().path() == self.wrong.target {
            let why = self.wrong.violation.get().map(ToString::to_string).unwrap_or_default();
            return self.refuse(Problem::bad_request(why), "http framing").await;
        }
        if let Some(problem) = &self.refused {
            return self.refuse(problem.clone(), "http connection").await;
        }
        let (mut head, body) = incoming.into_parts();
        if self.version == Version::Http2
            && let Err(violation) = strict::check(&mut head, self.encrypted)
        {
            return self.refuse(Problem::bad_request(violation.to_string()), "http framing").await;
        }
        let request = Request::read(&head, &self.cx.upstream.credential, &self.cx.upstream.routes);
        match request.and_then(|request| self.is_for_us(&request).map(|address| (request, address))) {
            Ok((mut request, address)) => {
                request.spoken_as(self.protocol());
                self.judge(request, body, head.extensions.remove(), &address).await
            }
            Err(RequestError::Host) => {
                let text = RequestError::Host.to_string();
                self.refuse(Problem::new(StatusCode::MISDIRECTED_REQUEST, "Misdirected request", text), "http host")
                    .await
            }
            Err(error @ (RequestError::Upgrade | RequestError::Pieces)) => {
                let rule = if error == RequestError::Upgrade { "http upgrade" } else { "http signature" };
                let problem = Problem::new(StatusCode::NOT_IMPLEMENTED, "Not implemented", error.to_string());
                self.refuse(problem, rule).await
            }
            Err(error @ RequestError::WebSocketVersion) => {
                let problem = Problem::new(StatusCode::UPGRADE_REQUIRED, "Upgrade required", error.to_string());
                self.refuse(problem, "http upgrade").await
            }
            Err(error) => self.refuse(Problem::bad_request(error.to_string()), "http request").await,
        }
    }

    /// Where a request goes: its host must be a name of the upstream, that of the TLS handshake, and that of the requests
    /// before it.
    fn is_for_us(&self, request: &Request) -> Result<Arc<str>, RequestError> {
        if let Some((host, address)) = self.host.get() {
            return if *host == request.host { Ok(Arc::clone(address)) } else { Err(RequestError::Host) };
        }
        let (host, address) = hosts(&self.cx).find(|(host, _)| *host == request.host).ok_or(RequestError::Host)?;
        match &self.server_name {
            Some(name) if name.is_empty() => {
                // Clients send no name for an address (RFC 6066 section 3).
                host.parse::<std::net::IpAddr>().map_err(|_| RequestError::Host)?;
            }
            Some(name) if *name != host => return Err(RequestError::Host),
            _ => {}
        }
        let (_, address) = self.host.get_or_init(|| (host, address.into()));
        Ok(Arc::clone(address))
    }

    fn protocol(&self) -> ProtocolId {
        self.lens.as_ref().map_or(ProtocolId::Http, |lens| lens.id())
    }

    /// Refuses what the protocol itself refuses, and records it.
    fn refuse(&self, problem: Problem, rule: &'static str) -> BoxFuture<'_, Answered> {
        Box::pin(self.refuse_and_record(problem, rule))
    }

    async fn refuse_and_record(&self, problem: Problem, rule: &'static str) -> Answered {
        let text: Arc<str> = format!("refused: {}", problem.detail).into();
        let command = Command {
            action: Action::opaque(self.protocol(), Target::new("http:opaque")),
            bytes: Bytes::new(),
            hash: *blake3::hash(text.as_bytes()).as_bytes(),
            shape: Arc::clone(&text).into(),
            text,
            standing: Standing::New,
            lasting: Lasting::AtOnce,
        };
        if let Begun::Wait { answer, .. } = self.gate.refuse_by_protocol(command, rule, problem.detail.clone()) {
            let _ = answer.await;
        }
        Err(Box::new(problem))
    }

    /// Records what the library of HTTP/2 has refused by itself.
    pub async fn refuse_reset(&self, reset: Reset) {
        // The client was told.
        let _ = self.refuse(Problem::bad_request(reset.to_string()), "http framing").await;
    }

    async fn judge(&self, mut request: Request, body: Incoming, client: Option<OnUpgrade>, address: &str) -> Answered {
        let lens = self.lens.as_ref().filter(|lens| lens.takes(&request));
        let (sends, hits, _held_memory) = match self.sends(&mut request, body, lens.is_some()).await {
            Ok(sends) => sends,
            Err((problem, rule)) => return self.refuse(problem, rule).await,
        };
        let mut taken = match (lens, &sends) {
            (None, _) => None,
            (Some(lens), Sends::All(bytes)) => match lens.read(&self.cx, &mut request, bytes) {
                Ok(taken) => Some(taken),
                Err(problem) => return self.refuse(problem, "llm request").await,
            },
            (Some(_), _) => {
                return self.refuse(Problem::bad_request("the request has no body"), "llm request").await;
            }
        };
        let command = match &sends {
            Sends::All(bytes) => request.command(Some(bytes)),
            Sends::Nothing | Sends::Streams(_) | Sends::Watched(_) => request.command(None),
        };
        let placeholders = match placeholder::check(&self.cx, &request, sends.bytes()) {
            Ok(placeholders) => placeholders,
            Err(misplaced) => return Box::pin(self.misplaced(command, &misplaced)).await,
        };
        let bytes = command.bytes.clone();
        let (answer, hold) = match self.gate.begin(command) {
            Begun::Ready(answer) => (answer, None),
            Begun::Wait { hold: Some(_), .. } if matches!(sends, Sends::Streams(_) | Sends::Watched(_)) => {
                // The policy changed since it was asked. Nobody can approve what was not read.
                let detail = "the policy changed while this was judged: send it again";
                let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "Try again", detail);
                return self.refuse(problem, "http policy").await;
            }
            Begun::Wait { hold: Some(hold), answer } if request.reads_interim => {
                (Box::pin(self.telling(answer)).await, Some(hold.id))
            }
            Begun::Wait { hold, answer } => (answer.await, hold.map(|hold| hold.id)),
        };
        let permit = match answer {
            Ok(permit) => permit,
            Err(refusal) => return Err(Box::new(Problem::refused(&refusal, hold.as_deref()))),
        };
        let (seq, right, started) = (permit.seq(), permit.data_right(), Instant::now());
        if let Some(Err(problem)) = taken.as_mut().map(|taken| taken.goes(seq)) {
            return Err(Box::new(problem));
        }
        let watch = taken.map(|taken| taken.watch(started));
        let (found, sends) = self.watch(sends);
        let judged = Judged { request: &request, bytes: &bytes, placeholders: &placeholders };
        let sent = self.upstream.send(&self.cx, address, permit, judged, sends).await;
        match sent {
            Ok((response, keep)) => {
                if let (Some(offer), Some(client), 101) = (&request.offer, client, response.status().as_u16()) {
                    let upgraded = self.upgrade(offer, client, response, keep, (right, started));
                    return upgraded.map_err(|why| {
                        let report = Report::new(Arc::clone(&self.cx), seq, StatusCode::BAD_GATEWAY, started);
                        report.end(Some(why));
                        Box::new(Problem::upstream(format!("the upstream's upgrade is not passed on: {why}")))
                    });
                }
                let report = Report::new(Arc::clone(&self.cx), seq, response.status(), started);
                let mut report = report.watched(watch);
                report.masked(&hits);
                respond(&request, response, keep, report).await.map_err(Box::new)
            }
            Err(error) => {
                let detail = match &error {
                    UpstreamError::Credential(detail) => detail.clone(),
                    error => causes(error),
                };
                tracing::warn!(upstream = %self.cx.upstream.name, connection = self.cx.id, error = detail, "no response");
                let problem = match error {
                    _ if found.is_some_and(|found| found.load(Ordering::Relaxed)) => {
                        let text = placeholder::Misplaced::Body.to_string();
                        Problem::new(StatusCode::FORBIDDEN, "Refused by policy", text)
                    }
                    UpstreamError::Network(NetError::Timeout) => {
                        Problem::new(StatusCode::GATEWAY_TIMEOUT, "Gateway timeout", error.to_string())
                    }
                    error => Problem::upstream(error.to_string()),
                };
                let report = Report::new(Arc::clone(&self.cx), seq, problem.status, started);
                report.watched(watch).end(Some(&problem.detail));
                Err(Box::new(problem))
            }
        }
    }

    /// Waits, and has the client told now and then that it is not forgotten.
    async fn telling<T>(&self, answer: impl Future<Output = T>) -> T {
        let mut answer = std::pin::pin!(answer);
        for silence in SILENCES {
            tokio::select! {
                biased;
                answer = &mut answer => {
                    self.wrong.waits.store(false, Ordering::Release);
                    return answer;
                }
                // This future is polled where the stream is flushed afterwards.
                () = tokio::time::sleep(silence) => self.wrong.waits.store(true, Ordering::Release),
            }
        }
        let answer = answer.await;
        // A response must not be followed by an interim one.
        self.wrong.waits.store(false, Ordering::Release);
        answer
    }

    /// Refuses a request with a placeholder that must not be there, and records all of it.
    async fn misplaced(&self, command: Command, misplaced: &placeholder::Misplaced) -> Answered {
        let detail = misplaced.to_string();
        let problem = Problem {
            rule: Some(placeholder::RULE.to_owned()),
            ..Problem::new(StatusCode::FORBIDDEN, "Refused by policy", detail.clone())
        };
        if let Begun::Wait { answer, .. } = self.gate.refuse_by_protocol(command, placeholder::RULE, detail) {
            let _ = answer.await;
        }
        Err(Box::new(problem))
    }

    /// Has a body that streams looked through for placeholders, where the policy has any.
    fn watch(&self, sends: Sends) -> (Option<Arc<AtomicBool>>, Sends) {
        match sends {
            Sends::Streams(body) if self.cx.has_placeholders() => {
                let found = Arc::<AtomicBool>::default();
                let watched = Watched::new(body, &self.cx, &found);
                (Some(found), Sends::Watched(watched))
            }
            sends => (None, sends),
        }
    }

    /// Both sides agree to WebSocket: what follows on this connection are its frames.
    fn upgrade(
        &self,
        offer: &Offer,
        client: OnUpgrade,
        mut response: Response<Incoming>,
        keep: Keep,
        (right, started): (DataRight, Instant),
    ) -> Result<Response<AnyBody>, &'static str> {
        websocket::check_answer(offer, response.headers())?;
        let upstream = hyper::upgrade::on(&mut response);
        let answer = respond_upgrade(offer, std::mem::take(response.headers_mut()), &self.cx);
        let channel = Channel { cx: Arc::clone(&self.cx), client, upstream, keep, right, started };
        *self.channel.lock().unwrap_or_else(PoisonError::into_inner) = Some(channel);
        // Before the client can have read that it may go on.
        self.wrong.upgraded.store(true, Ordering::Release);
        Ok(answer)
    }

    /// The body as it will be sent, and what was masked in it. It is read now where a rule asks for it, a person must
    /// decide, or it is masked.
    async fn sends(
        &self,
        request: &mut Request,
        body: Incoming,
        whole: bool,
    ) -> Result<(Sends, Hits, Charge), (Problem, &'static str)> {
        let masks = self.cx.request_masks();
        let outgoing = (!masks.is_empty()).then(|| Outgoing { masks, secrets: self.cx.house.secrets.known() });
        if let Some(outgoing) = &outgoing {
            outgoing.head(request).map_err(|problem| (problem, outgoing::RULE))?;
        }
        if body.is_end_stream() {
            return Ok((Sends::Nothing, Hits::default(), Charge::default()));
        }
        request.set_body(Body::Pending);
        // A stream of calls may wait for answers before it ends. Whatever a rule asks of its body has no answer.
        let filled = placeholder::fills_body(&self.cx, &request.headers)
            && body.size_hint().lower() <= self.cx.limits().command as u64;
        let asked = whole
            || outgoing.is_some()
            || filled
            || sigv4::needs_body(&self.cx.upstream)
            || (self.cx.asks_body() && !is_grpc(&request.headers));
        if !asked && !matches!(self.cx.decide(&request.action()), Decision::Hold(_)) {
            // A body that no rule asks for is none that a rule could have been told of.
            request.set_body(Body::Unknown);
            return Ok((Sends::Streams(body), Hits::default(), Charge::default()));
        }
        let (bytes, charge) = Box::pin(self.read(body)).await.map_err(|problem| (problem, "http body"))?;
        let (bytes, hits) = match outgoing {
            Some(outgoing) => outgoing.body(request, &bytes).map_err(|problem| (problem, outgoing::RULE))?,
            None => (bytes, Hits::default()),
        };
        request.set_body(json(&bytes));
        Ok((Sends::All(bytes), hits.of_request(), charge))
    }

    /// Reads all of a body, for a rule, a reviewer or a signature.
    async fn read(&self, mut body: Incoming) -> Result<(Bytes, Charge), Problem> {
        let limit = self.cx.limits().command;
        let too_large = || {
            let who = if sigv4::needs_body(&self.cx.upstream) { "the signature" } else { "a rule" };
            let detail = format!("{who} needs the whole body, and it is over {limit} bytes");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "Content too large", detail)
        };
        // What is told to be too large is not waited for.
        if body.size_hint().lower() > limit as u64 {
            return Err(too_large());
        }
        let mut bytes = BytesMut::new();
        let mut charge = Charge::default();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Problem::bad_request("the body is broken or ended early"))?;
            let Ok(piece) = frame.into_data() else { continue };
            if bytes.len() + piece.len() > limit {
                return Err(too_large());
            }
            bytes.extend_from_slice(&piece);
            if bytes.capacity() > charge.bytes() {
                drop(std::mem::take(&mut charge));
                charge = self.cx.memory.charge(bytes.capacity()).map_err(|over| {
                    Problem::new(StatusCode::INSUFFICIENT_STORAGE, "Out of memory", over.to_string())
                })?;
            }
        }
        Ok((bytes.freeze(), charge))
    }
}

/// A response, or why there is none.
type Answered = Result<Response<AnyBody>, Box<Problem>>;

/// Whether fields are those of a call of gRPC ("PROTOCOL-HTTP2", Content-Type).
fn is_grpc(fields: &HeaderMap) -> bool {
    let kind = fields.get(header::CONTENT_TYPE).map(|kind| kind.as_bytes());
    kind.is_some_and(|kind| kind.get(..16).is_some_and(|kind| kind.eq_ignore_ascii_case(b"application/grpc")))
}

/// An error and all that it comes of, for the log.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(deeper) = cause {
        text.push_str(&format!(": {deeper}"));
        cause = deeper.source();
    }
    text
}
