//! One connection: who it is for, and each of its requests through the gate.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Full};
use hyper::{body::Body as _, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    sync::Mutex,
};

use super::{
    body::{MaskError, MaskedBody, Masker, Report},
    deny::{AnyBody, Problem},
    guarded::{Guarded, Traffic, Wrong},
    request::{self, Request, RequestError, bare_host},
    upstream::{Sends, Upstream, UpstreamError},
};
use crate::{
    action::{Action, Body, ProtocolId, Target},
    mask::{Hits, KnownSecrets, MaskSet, Masked},
    policy::{ClientTls, Decision},
    session::{self, Begun, BoxIo, Command, ConnectionCx, Ended, Gate, Lasting, Refusal, SessionError, Standing, gate},
    wire::Charge,
};

/// What a connection may hold beside bodies that are inspected, in bytes.
const MEMORY: usize = 192 << 10;
/// How long a client may take to send a head, and may be idle between two.
const HEAD_TIME: Duration = Duration::from_secs(600);
/// Largest response that is masked as a whole, so that its length can be told.
const WHOLE: u64 = 64 << 10;
/// Fields of a response that are of one connection, or lead the client past us (`Alt-Svc`, RFC 7838).
const TAKEN: &[&str] = &[
    "alt-svc",
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// Fields that are true of the body as it came only.
const OF_BODY: &[&str] = &["content-md5", "digest", "content-digest", "repr-digest", "accept-ranges", "content-range"];

/// One connection's state.
struct Connection {
    cx: Arc<ConnectionCx>,
    gate: Gate,
    wrong: Arc<Wrong>,
    /// What every request is answered.
    refused: Option<Problem>,
    /// The name that the client asked for in its TLS handshake.
    server_name: Option<String>,
    /// Name or address that all requests are for, and where to dial it.
    host: OnceLock<(String, String)>,
    upstream: Mutex<Upstream>,
}

/// Serves a connection to its end.
pub async fn serve(mut client: BoxIo, cx: &Arc<ConnectionCx>) -> Result<Ended, SessionError> {
    let _memory = cx.memory.charge(MEMORY)?;
    let mut first = BytesMut::with_capacity(1024);
    let read = tokio::select! {
        biased;
        () = cx.terminate.cancelled() => return Ok(Ended::default()),
        read = tokio::time::timeout(HEAD_TIME, client.read_buf(&mut first)) => read,
    };
    if !matches!(read, Ok(Ok(1..))) {
        return Ok(Ended::default());
    }
    // A TLS record of the handshake (RFC 8446 section 5.1). No method begins with this byte.
    let encrypted = first[0] == 22;
    let (io, first, server_name) = if encrypted {
        if cx.upstream.client_tls == ClientTls::Refuse {
            return Err(SessionError::Client("TLS, which the policy refuses toward this upstream".into()));
        }
        let names: Vec<String> = hosts(cx).map(|(host, _)| host).collect();
        let accepted =
            cx.house.network.accept_tls(Box::new(Prefixed { first: first.freeze(), io: client }), &names).await;
        let accepted = accepted.map_err(|error| {
            SessionError::Client(format!("TLS: {error}; a client that pins certificates cannot be inspected"))
        })?;
        (accepted.io, BytesMut::new(), accepted.server_name.map(|name| bare_host(&name)))
    } else {
        (client, first, None)
    };
    let refused = if !encrypted && cx.upstream.client_tls == ClientTls::Require {
        Some(Problem::new(StatusCode::FORBIDDEN, "TLS required", "the policy requires TLS: use https"))
    } else {
        session::may_connect(cx, server_name.as_deref().map(Into::into))
            .await
            .err()
            .map(|refusal| Problem::refused(&refusal, None))
    };
    let (wrong, traffic) = (Wrong::new()?, Arc::new(Traffic::default()));
    let guarded = Guarded::new(io, first, Arc::clone(&wrong), Arc::clone(&traffic));
    let connection = Arc::new(Connection {
        gate: gate(cx),
        cx: Arc::clone(cx),
        wrong,
        refused,
        server_name: server_name.or_else(|| encrypted.then(String::new)),
        host: OnceLock::new(),
        upstream: Mutex::default(),
    });
    let answer = service_fn(|request| {
        let connection = Arc::clone(&connection);
        async move { Ok::<_, Infallible>(connection.answer(request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .pipeline_flush(true)
        .serve_connection(TokioIo::new(guarded), answer);
    let outcome = tokio::select! {
        biased;
        () = cx.terminate.cancelled() => {
            return Err(SessionError::Ended((*cx.ending.get().unwrap_or(&"terminated")).into()));
        }
        outcome = served => outcome,
    };
    let load = |count: &std::sync::atomic::AtomicU64| count.load(std::sync::atomic::Ordering::Relaxed);
    match outcome {
        Ok(()) => Ok(Ended { bytes_in: load(&traffic.read), bytes_out: load(&traffic.written) }),
        Err(error) => Err(SessionError::Client(error.to_string())),
    }
}

/// Names and addresses of the upstream, as clients and its certificate have them, each with its place in the policy.
fn hosts(cx: &ConnectionCx) -> impl Iterator<Item = (String, String)> + '_ {
    let port = |address: &str| address.rsplit_once(':').map(|(_, port)| port.to_owned());
    let here = port(&cx.address);
    let same = move |address: &&String| port(address) == here;
    cx.upstream.addresses.iter().filter(same).map(|address| (bare_host(address), address.clone()))
}

impl Connection {
    async fn answer(&self, incoming: http::Request<Incoming>) -> Response<AnyBody> {
        if incoming.uri().path() == self.wrong.target {
            let why = self.wrong.violation.get().map(ToString::to_string).unwrap_or_default();
            return self.refuse(Problem::bad_request(why), "http framing").await;
        }
        if let Some(problem) = &self.refused {
            return self.refuse(problem.clone(), "http connection").await;
        }
        let (head, body) = incoming.into_parts();
        let request = Request::read(&head, &self.cx.upstream.credential);
        match request.and_then(|request| self.is_for_us(&request).map(|address| (request, address))) {
            Ok((request, address)) => self.judge(request, body, &address).await,
            Err(RequestError::Host) => {
                let text = RequestError::Host.to_string();
                self.refuse(Problem::new(StatusCode::MISDIRECTED_REQUEST, "Misdirected request", text), "http host")
                    .await
            }
            Err(error @ RequestError::Upgrade) => {
                let problem = Problem::new(StatusCode::NOT_IMPLEMENTED, "Not implemented", error.to_string());
                self.refuse(problem, "http upgrade").await
            }
            Err(error) => self.refuse(Problem::bad_request(error.to_string()), "http request").await,
        }
    }

    /// Where a request goes: its host must be a name of the upstream, that of the TLS handshake, and that of the requests
    /// before it.
    fn is_for_us(&self, request: &Request) -> Result<String, RequestError> {
        if let Some((host, address)) = self.host.get() {
            return if *host == request.host { Ok(address.clone()) } else { Err(RequestError::Host) };
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
        let (_, address) = self.host.get_or_init(|| (host, address));
        Ok(address.clone())
    }

    /// Refuses what the protocol itself refuses, and records it.
    async fn refuse(&self, problem: Problem, rule: &'static str) -> Response<AnyBody> {
        let text: Arc<str> = format!("refused: {}", problem.detail).into();
        let command = Command {
            action: Action::opaque(ProtocolId::Http, Target::new("http:opaque")),
            bytes: Bytes::new(),
            hash: *blake3::hash(text.as_bytes()).as_bytes(),
            shape: Arc::clone(&text),
            text,
            standing: Standing::New,
            lasting: Lasting::AtOnce,
        };
        if let Begun::Wait { answer, .. } = self.gate.refuse_by_protocol(command, rule, problem.detail.clone()) {
            let _ = answer.await;
        }
        problem.response()
    }

    async fn judge(&self, mut request: Request, body: Incoming, address: &str) -> Response<AnyBody> {
        let (sends, _held_memory) = if body.is_end_stream() {
            (Sends::Nothing, Charge::default())
        } else {
            request.set_body(Body::Pending);
            if self.cx.asks_body() || matches!(self.cx.decide(&request.action()), Decision::Hold(_)) {
                match self.read(body).await {
                    Ok((bytes, charge)) => {
                        request.set_body(request::json(&bytes));
                        (Sends::All(bytes), charge)
                    }
                    Err(problem) => return self.refuse(problem, "http body").await,
                }
            } else {
                // A body that no rule asks for is none that a rule could have been told of.
                request.set_body(Body::Unknown);
                (Sends::Streams(body), Charge::default())
            }
        };
        let command = match &sends {
            Sends::All(bytes) => request.command(Some(bytes)),
            Sends::Nothing | Sends::Streams(_) => request.command(None),
        };
        let judged = command.bytes.clone();
        let (answer, hold) = match self.gate.begin(command) {
            Begun::Ready(answer) => (answer, None),
            Begun::Wait { hold: Some(_), .. } if matches!(sends, Sends::Streams(_)) => {
                // The policy changed since it was asked. Nobody can approve what was not read.
                let detail = "the policy changed while this was judged: send it again";
                let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "Try again", detail);
                return self.refuse(problem, "http policy").await;
            }
            Begun::Wait { hold, answer } => (answer.await, hold.map(|hold| hold.id)),
        };
        let permit = match answer {
            Ok(permit) => permit,
            Err(refusal) => return refused(&refusal, hold.as_deref()),
        };
        let (seq, started) = (permit.seq(), Instant::now());
        let sent = self.upstream.lock().await.send(&self.cx, address, permit, &request, &judged, sends).await;
        match sent {
            Ok(response) => self.respond(&request, response, seq, started).await,
            Err(error) => {
                let detail = match &error {
                    UpstreamError::Credential(detail) => detail.clone(),
                    error => format!("{error}: {:?}", std::error::Error::source(error).map(ToString::to_string)),
                };
                tracing::warn!(upstream = %self.cx.upstream.name, connection = self.cx.id, error = detail, "no response");
                let problem = match error {
                    UpstreamError::Network(crate::session::NetError::Timeout) => {
                        Problem::new(StatusCode::GATEWAY_TIMEOUT, "Gateway timeout", error.to_string())
                    }
                    error => Problem::upstream(error.to_string()),
                };
                Report::new(Arc::clone(&self.cx), seq, problem.status, started).end(Some(&problem.detail));
                problem.response()
            }
        }
    }

    /// Reads all of a body, for a rule or a reviewer.
    async fn read(&self, mut body: Incoming) -> Result<(Bytes, Charge), Problem> {
        let limit = self.cx.limits().command;
        let too_large = || {
            let detail = format!("a rule needs the whole body, and it is over {limit} bytes");
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

    /// The upstream's response, masked.
    async fn respond(
        &self,
        request: &Request,
        response: Response<Incoming>,
        seq: u64,
        started: Instant,
    ) -> Response<AnyBody> {
        let (mut head, body) = response.into_parts();
        let mut report = Report::new(Arc::clone(&self.cx), seq, head.status, started);
        let (masks, secrets) = (self.cx.masks(), self.cx.house.secrets.known());
        let refuse = |report: Report, why: &str| {
            report.end(Some(why));
            Problem::upstream(format!("the upstream answered, and its response is not passed on: {why}")).response()
        };
        let encodings = head.headers.get_all(header::CONTENT_ENCODING).iter();
        let encoded = encodings.flat_map(|value| value.as_bytes().split(|b| *b == b',')).any(|encoding| {
            let encoding = encoding.trim_ascii();
            !encoding.is_empty() && !encoding.eq_ignore_ascii_case(b"identity")
        });
        let empty = body.is_end_stream() || request.method == http::Method::HEAD;
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return refuse(report, "it changes the protocol");
        }
        if (encoded || head.status == StatusCode::PARTIAL_CONTENT) && !empty {
            return refuse(report, "it is encoded or partial, which nobody asked for, and cannot be looked into");
        }
        // A reason phrase of the upstream's own, which nothing masks; and the version that it speaks.
        head.extensions.clear();
        head.version = http::Version::HTTP_11;
        for name in TAKEN {
            head.headers.remove(*name);
        }
        mask_headers(&mut head.headers, &masks, &secrets, &mut report);
        let content_type =
            head.headers.get(header::CONTENT_TYPE).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        if empty {
            if !matches!(Masker::new(&masks, &secrets, content_type.as_deref().unwrap_or_default()), Ok(Masker::Pass)) {
                // Of the body that a GET would have got masked.
                head.headers.remove(header::CONTENT_LENGTH);
            }
            report.end(None);
            return Response::from_parts(head, nothing());
        }
        let masker = match Masker::new(&masks, &secrets, content_type.as_deref().unwrap_or_default()) {
            Ok(masker) => masker,
            Err(error) => return refuse(report, &error.to_string()),
        };
        if matches!(masker, Masker::Pass) {
            return Response::from_parts(head, MaskedBody::new(body, masker, report).boxed_unsync());
        }
        if body.size_hint().exact().is_some_and(|length| length <= WHOLE) {
            return match mask_whole(body, masker).await {
                Ok((bytes, changed, hits)) => {
                    head.headers.remove(header::CONTENT_LENGTH);
                    if changed {
                        OF_BODY.iter().for_each(|name| drop(head.headers.remove(*name)));
                        head.headers.remove(header::ETAG);
                    }
                    report.masked(&hits);
                    report.sent(&bytes);
                    report.end(None);
                    Response::from_parts(head, Full::new(bytes).map_err(|never| match never {}).boxed_unsync())
                }
                Err(why) => refuse(report, &why),
            };
        }
        head.headers.remove(header::CONTENT_LENGTH);
        OF_BODY.iter().for_each(|name| drop(head.headers.remove(*name)));
        weaken(&mut head.headers);
        Response::from_parts(head, MaskedBody::new(body, masker, report).boxed_unsync())
    }
}

fn nothing() -> AnyBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

fn refused(refusal: &Refusal, hold: Option<&str>) -> Response<AnyBody> {
    Problem::refused(refusal, hold).response()
}

/// Masks a small body as a whole; says whether it changed.
async fn mask_whole(mut body: Incoming, mut masker: Masker) -> Result<(Bytes, bool, Hits), String> {
    let (mut out, mut changed, mut original) = (Vec::new(), false, Vec::new());
    while let Some(frame) = body.frame().await {
        let Ok(piece) = frame.map_err(|error| error.to_string())?.into_data() else { continue };
        original.extend_from_slice(&piece);
        masker.push(&piece, &mut out).map_err(|error: MaskError| error.to_string())?;
    }
    let hits = masker.finish(&mut out).map_err(|error| error.to_string())?;
    changed |= out != original;
    Ok((out.into(), changed, hits))
}

/// Masks what is found in the values of header fields.
fn mask_headers(headers: &mut HeaderMap, masks: &MaskSet, secrets: &KnownSecrets, report: &mut Report) {
    if secrets.is_empty() && !masks.has_detectors() {
        return;
    }
    let mut hits = Hits::default();
    for value in headers.values_mut() {
        if let masked @ (Masked::Text(_) | Masked::Null) = masks.scrub(value.as_bytes(), secrets, &mut hits) {
            let text = masked.or_text(b"").into_owned();
            // What takes a value's place is text.
            *value = HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static(crate::mask::REDACTED));
        }
    }
    report.masked(&hits);
}

/// A body that may be masked is not the upstream's to the byte (RFC 9110 section 8.8.1).
fn weaken(headers: &mut HeaderMap) {
    let Some(tag) = headers.get(header::ETAG).filter(|tag| !tag.as_bytes().starts_with(b"W/")) else { return };
    if let Ok(weak) = HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat()) {
        headers.insert(header::ETAG, weak);
    }
}

/// A stream of which the first bytes were read already.
struct Prefixed {
    first: Bytes,
    io: BoxIo,
}

impl AsyncRead for Prefixed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let len = self.first.len().min(buf.remaining());
        buf.put_slice(&self.first.split_to(len));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Prefixed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
