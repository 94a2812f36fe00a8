//! The connection toward the upstream: made, kept, given up, and what is sent on it, once or twice. One file, because who
//! may use a connection again depends on all of these.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderValue, Response, Uri, header, uri::Scheme};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Empty, Full, combinators::UnsyncBoxBody};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
    rt::Executor,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    body::BodyError,
    credential::{Complete, complete},
    placeholder::{Used, Values, Watched},
    request::Request,
    sigv4::Unsignable,
};
use crate::{
    policy::{CredentialRef, Inject, TlsMode},
    secrets::{Lease, Renewal},
    session::{Alpn, ConnectionCx, NetError, Permit},
};

/// HTTP/2 within TLS (RFC 9113 section 3.2).
pub const HTTP2: Alpn = b"h2";
/// HTTP/1.1 within TLS (RFC 7301 section 6).
pub const HTTP1: Alpn = b"http/1.1";
/// What may be under way on one stream of HTTP/2, in bytes, and on all of a connection.
pub const WINDOWS: (u32, u32) = (256 << 10, 1 << 20);
/// Longest head of a response, in bytes.
const HEAD_MAX: u32 = 64 << 10;

/// A body on its way upstream.
pub type Outgoing = UnsyncBoxBody<Bytes, BodyError>;

/// What is spoken on a connection: on both sides the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.1, and 1.0 of clients.
    Http1,
    /// HTTP/2.
    Http2,
}

/// Nothing came back. What is displayed may be shown to the client.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// No connection.
    #[error(transparent)]
    Network(#[from] NetError),
    /// No credential; the text is for the log.
    #[error("the credential for this upstream is not available")]
    Credential(String),
    /// It does not speak what was agreed on, or closed.
    #[error("the upstream broke off the request")]
    Broken(#[source] hyper::Error),
    /// The client speaks HTTP/2 and the upstream does not.
    #[error("the upstream does not speak HTTP/2: use HTTP/1.1")]
    Version,
    /// A field, the path or the body cannot be sent with what goes into it.
    #[error(transparent)]
    Unsignable(#[from] Unsignable),
    /// What was to be sent is not what was judged.
    #[error("the request changed after it was judged")]
    Changed,
}

/// The body of a request.
pub enum Sends {
    /// None.
    Nothing,
    /// All of it is here, so it can be sent again.
    All(Bytes),
    /// It comes from the client as it goes.
    Streams(Incoming),
    /// The same, and no placeholder may be in it.
    Watched(Watched),
}

/// A request as it was judged.
#[derive(Clone, Copy)]
pub struct Judged<'a> {
    /// What it is.
    pub request: &'a Request,
    /// What the permit is for.
    pub bytes: &'a Bytes,
    /// The placeholders that it has.
    pub placeholders: &'a Used,
}

impl Sends {
    /// Once more, if it can be.
    pub fn again(&self) -> Option<Self> {
        match self {
            Self::Nothing => Some(Self::Nothing),
            Self::All(bytes) => Some(Self::All(bytes.clone())),
            Self::Streams(_) | Self::Watched(_) => None,
        }
    }

    /// All of it, where it is here.
    pub fn bytes(&self) -> Option<&Bytes> {
        match self {
            Self::All(bytes) => Some(bytes),
            Self::Nothing | Self::Streams(_) | Self::Watched(_) => None,
        }
    }

    fn body(self) -> Outgoing {
        match self {
            Self::Nothing => Empty::new().map_err(|never| match never {}).boxed_unsync(),
            Self::All(bytes) => Full::new(bytes).map_err(|never| match never {}).boxed_unsync(),
            Self::Streams(incoming) => Untrailed(incoming).boxed_unsync(),
            Self::Watched(watched) => watched.boxed_unsync(),
        }
    }
}

/// A request's body without its trailers, which no rule has seen.
struct Untrailed(Incoming);

impl Body for Untrailed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            match ready!(Pin::new(&mut self.0).poll_frame(cx)) {
                Some(Ok(frame)) if frame.is_trailers() => {}
                other => return Poll::Ready(other.map(|frame| frame.map_err(Into::into))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

/// Runs what the library does beside the requests, until its connection is over.
#[derive(Clone, Debug)]
pub struct Tasks(pub CancellationToken);

impl<F> Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, future: F) {
        let over = self.0.clone();
        tokio::spawn(async move { over.run_until_cancelled_owned(future).await.map(drop) });
    }
}

/// Keeps a connection open, and runs it: one of HTTP/1.1 has one request at a time, and whoever waits for its response runs
/// it meanwhile. So a request takes one task, which nobody has to wake for another.
#[derive(Clone)]
pub enum Keep {
    /// HTTP/1.1, until it is over.
    Runs(Arc<Mutex<Option<Running>>>),
    /// HTTP/2, or what streams upstream: it runs in tasks of its own.
    Beside(Arc<DropGuard>),
}

type Running = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Keep {
    fn running(connection: impl Future<Output = ()> + Send + 'static) -> Self {
        Self::Runs(Arc::new(Mutex::new(Some(Box::pin(connection)))))
    }

    /// Does what can be done now.
    pub fn poll(&self, task: &mut Context<'_>) {
        let Self::Runs(running) = self else { return };
        let mut running = running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.as_mut().is_some_and(|connection| connection.as_mut().poll(task).is_ready()) {
            *running = None;
        }
    }

    /// Runs it while something of it is waited for.
    pub async fn run<F: Future>(&self, waited: F) -> F::Output {
        let mut waited = pin!(waited);
        poll_fn(|task| {
            if let Poll::Ready(output) = waited.as_mut().poll(task) {
                return Poll::Ready(output);
            }
            self.poll(task);
            waited.as_mut().poll(task)
        })
        .await
    }

    /// Has it run in a task of its own from now on: what the client streams must go on when nobody waits for a response.
    fn beside(&mut self) {
        let Self::Runs(running) = self else { return };
        let running = running.lock().unwrap_or_else(PoisonError::into_inner).take();
        let over = CancellationToken::new();
        if let Some(running) = running {
            Tasks(over.clone()).execute(running);
        }
        *self = Self::Beside(Arc::new(over.drop_guard()));
    }

    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Runs(one), Self::Runs(other)) => Arc::ptr_eq(one, other),
            (Self::Beside(one), Self::Beside(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

/// A connection to the upstream, made when it is first needed and again when it was closed.
pub struct Upstream {
    version: Version,
    open: tokio::sync::Mutex<Option<Open>>,
    values: tokio::sync::Mutex<Values>,
}

/// How an upstream says that a credential is no good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Denied {
    Unauthorized,
    Forbidden,
}

struct Open {
    sender: Sender,
    lease: Option<Arc<Lease>>,
    keep: Keep,
}

enum Sender {
    Http1(http1::SendRequest<Outgoing>),
    Http2(http2::SendRequest<Outgoing>),
}

impl Open {
    async fn is_closed(&self) -> bool {
        // What has come since the last request was its end.
        poll_fn(|task| {
            self.keep.poll(task);
            Poll::Ready(())
        })
        .await;
        match &self.sender {
            Sender::Http1(sender) => sender.is_closed(),
            Sender::Http2(sender) => sender.is_closed(),
        }
    }

    /// For another request at the same time.
    fn shared(&self) -> Option<Self> {
        match &self.sender {
            Sender::Http1(_) => None,
            Sender::Http2(sender) => {
                Some(Self { sender: Sender::Http2(sender.clone()), lease: self.lease.clone(), keep: self.keep.clone() })
            }
        }
    }
}

impl Upstream {
    /// That speaks a version, not connected yet.
    pub fn new(version: Version) -> Self {
        Self { version, open: tokio::sync::Mutex::default(), values: tokio::sync::Mutex::default() }
    }

    /// Connects and lets the upstream choose the version, if that can be known before a request is sent.
    pub async fn negotiated(cx: &Arc<ConnectionCx>, address: &str) -> (Version, Self) {
        let failed = (Version::Http1, Self::new(Version::Http1));
        if cx.upstream.tls.mode == TlsMode::Disable {
            return failed;
        }
        // Why there is no connection, the first request will be told.
        let Ok((version, open)) = connect(cx, address, &[HTTP2, HTTP1]).await else { return failed };
        (version, Self { version, open: tokio::sync::Mutex::new(Some(open)), values: tokio::sync::Mutex::default() })
    }

    /// Sends a request that was permitted, and waits for the head of its response. If the upstream says that the credential
    /// is no good, or closed the connection before it had read anything, it is tried once more, where that can be done.
    ///
    /// # Errors
    /// Nothing came back.
    pub async fn send(
        &self,
        cx: &Arc<ConnectionCx>,
        address: &str,
        permit: Permit,
        judged: Judged<'_>,
        sends: Sends,
    ) -> Result<(Response<Incoming>, Keep), UpstreamError> {
        let Judged { request, bytes, placeholders } = judged;
        if !permit.covers(bytes) || !request.begins(bytes) {
            return Err(UpstreamError::Changed);
        }
        let again = sends.again();
        let (mut open, idle) = self.take(cx, address).await?;
        let values = self.values(cx, placeholders).await?;
        let answer = once(cx, &mut open, request, sends, &values).await;
        let idled = matches!(&answer, Err(UpstreamError::Broken(error)) if idle && error.is_canceled());
        let denied = match &answer {
            Ok(response) if response.status() == 401 => Some(Denied::Unauthorized),
            // AWS says so of keys that have ended.
            Ok(response) if response.status() == 403 && matches!(cx.upstream.credential.inject, Inject::SigV4(_)) => {
                Some(Denied::Forbidden)
            }
            _ => None,
        };
        let mut worth = Renewal::Useless;
        if let Some(denied) = denied {
            worth = Box::pin(self.rejected(cx, &mut open, denied)).await;
        }
        if denied == Some(Denied::Unauthorized) && !placeholders.is_empty() {
            self.values.lock().await.clear();
            worth = Renewal::Expected;
        }
        let retry = match again {
            // A connection that stood idle may have been closed by the upstream just now.
            Some(again) if idled || worth == Renewal::Expected => again,
            // What streamed cannot be sent again: the next request has another credential.
            _ => return self.give_back(open, answer).await,
        };
        self.forget(&open).await;
        drop(open);
        let (mut open, _) = self.take(cx, address).await?;
        let values = self.values(cx, placeholders).await?;
        let answer = once(cx, &mut open, request, retry, &values).await;
        self.give_back(open, answer).await
    }

    /// A connection to send one request on, and whether it was open already.
    async fn take(&self, cx: &Arc<ConnectionCx>, address: &str) -> Result<(Open, bool), UpstreamError> {
        let mut slot = self.open.lock().await;
        let mut known = slot.take();
        if let Some(open) = &known
            && open.is_closed().await
        {
            known = None;
        }
        let idle = known.is_some();
        let mut open = match known {
            Some(open) => open,
            None => {
                let offered = if self.version == Version::Http2 { HTTP2 } else { HTTP1 };
                let (version, open) = Box::pin(connect(cx, address, &[offered])).await?;
                if version != self.version {
                    return Err(UpstreamError::Version);
                }
                open
            }
        };
        if !open.lease.as_ref().is_some_and(|lease| lease.is_fresh()) {
            let lease = Box::pin(cx.house.secrets.lease(&cx.upstream.credential)).await;
            open.lease = Some(Arc::new(lease.map_err(|error| UpstreamError::Credential(error.detail()))?));
        }
        *slot = open.shared();
        Ok((open, idle))
    }

    async fn give_back(
        &self,
        open: Open,
        answer: Result<Response<Incoming>, UpstreamError>,
    ) -> Result<(Response<Incoming>, Keep), UpstreamError> {
        let keep = open.keep.clone();
        if answer.is_ok() && matches!(open.sender, Sender::Http1(_)) {
            *self.open.lock().await = Some(open);
        }
        answer.map(|response| (response, keep))
    }

    /// Gives the credential up that the upstream did not take.
    async fn rejected(&self, cx: &ConnectionCx, open: &mut Open, answer: Denied) -> Renewal {
        let Some(lease) = open.lease.clone() else { return Renewal::Useless };
        let (secrets, credential) = (&cx.house.secrets, &cx.upstream.credential);
        let renewal = match answer {
            Denied::Unauthorized => secrets.rejected(credential, &lease).await,
            // It may as well be about what the key may do: worth a try only if there is another one.
            Denied::Forbidden => match secrets.lease(credential).await {
                Ok(now) if !now.is_same(&lease) => Renewal::Expected,
                _ => Renewal::Useless,
            },
        };
        if renewal == Renewal::Expected {
            open.lease = None;
            if let Some(kept) = self.open.lock().await.as_mut().filter(|kept| kept.keep.is_same(&open.keep)) {
                kept.lease = None;
            }
        }
        renewal
    }

    /// The secrets that this request's placeholders stand for, kept while the connection is.
    async fn values(&self, cx: &ConnectionCx, placeholders: &Used) -> Result<Values, UpstreamError> {
        if placeholders.is_empty() {
            return Ok(Values::new());
        }
        let mut known = self.values.lock().await;
        for name in placeholders {
            if known.contains_key(name) {
                continue;
            }
            let placeholder = cx.upstream.placeholders.iter().find(|placeholder| placeholder.name == *name);
            let source = placeholder.ok_or(UpstreamError::Changed)?.source.clone();
            let secret = CredentialRef::plain(Arc::clone(&cx.upstream.name), source);
            let lease = cx.house.secrets.lease(&secret).await;
            let lease = lease.map_err(|error| UpstreamError::Credential(error.detail()))?;
            known.insert(Arc::clone(name), lease.password.ok_or(UpstreamError::Changed)?);
        }
        Ok(known.clone())
    }

    async fn forget(&self, open: &Open) {
        let mut slot = self.open.lock().await;
        if slot.as_ref().is_some_and(|kept| kept.keep.is_same(&open.keep)) {
            *slot = None;
        }
    }
}

async fn once(
    cx: &Arc<ConnectionCx>,
    open: &mut Open,
    request: &Request,
    sends: Sends,
    values: &Values,
) -> Result<Response<Incoming>, UpstreamError> {
    if matches!(sends, Sends::Streams(_) | Sends::Watched(_)) {
        open.keep.beside();
    }
    let Complete { mut headers, target, body } = complete(cx, request, sends, open.lease.as_deref(), values)?;
    let mut outgoing = http::Request::new(body.body());
    *outgoing.method_mut() = request.method.clone();
    match &mut open.sender {
        Sender::Http1(sender) => {
            open.keep.run(sender.ready()).await.map_err(UpstreamError::Broken)?;
            // The library would leave the body of a GET out where nobody says how long it is.
            if outgoing.body().size_hint().exact().is_none() {
                headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            }
            *outgoing.uri_mut() = target.parse().map_err(|_| UpstreamError::Changed)?;
            *outgoing.headers_mut() = headers;
            open.keep.run(sender.send_request(outgoing)).await.map_err(UpstreamError::Broken)
        }
        Sender::Http2(sender) => {
            sender.ready().await.map_err(UpstreamError::Broken)?;
            // The same host, where HTTP/2 has its place for it (RFC 9113 section 8.3.1).
            let host = headers.remove(header::HOST).ok_or(UpstreamError::Changed)?;
            let scheme = if cx.upstream.tls.mode == TlsMode::Disable { Scheme::HTTP } else { Scheme::HTTPS };
            let uri = Uri::builder().scheme(scheme).authority(host.as_bytes()).path_and_query(target);
            *outgoing.uri_mut() = uri.build().map_err(|_| UpstreamError::Changed)?;
            *outgoing.version_mut() = http::Version::HTTP_2;
            // gRPC asks every proxy whether it takes trailers: this one does.
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
            *outgoing.headers_mut() = headers;
            sender.send_request(outgoing).await.map_err(UpstreamError::Broken)
        }
    }
}

/// Connects, and says which of the offered protocols was chosen. In the clear there is no choice: it is the last.
async fn connect(cx: &Arc<ConnectionCx>, address: &str, offered: &[Alpn]) -> Result<(Version, Open), UpstreamError> {
    let network = &cx.house.network;
    let mut io = network.dial(address).await?;
    let mut chosen = offered.last().copied() == Some(HTTP2);
    if cx.upstream.tls.mode != TlsMode::Disable {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let secured = cx.secure(io, host, offered).await?;
        chosen = secured.protocol.as_deref() == Some(HTTP2);
        io = secured.io;
    }
    // Whoever waits for a response is told by the sender what became of the connection.
    let (version, sender, keep) = if chosen {
        let over = CancellationToken::new();
        let tasks = Tasks(over.clone());
        let handshake = http2::Builder::new(tasks.clone())
            .timer(TokioTimer::new())
            .initial_stream_window_size(WINDOWS.0)
            .initial_connection_window_size(WINDOWS.1)
            .max_header_list_size(HEAD_MAX)
            .max_send_buf_size(64 << 10)
            .handshake(TokioIo::new(io))
            .await;
        let (sender, connection) = handshake.map_err(UpstreamError::Broken)?;
        tasks.execute(async { drop(connection.await) });
        (Version::Http2, Sender::Http2(sender), Keep::Beside(Arc::new(over.drop_guard())))
    } else {
        let handshake = http1::Builder::new().handshake(TokioIo::new(io)).await;
        let (sender, connection) = handshake.map_err(UpstreamError::Broken)?;
        let keep = Keep::running(async { drop(connection.with_upgrades().await) });
        (Version::Http1, Sender::Http1(sender), keep)
    };
    Ok((version, Open { sender, lease: None, keep }))
}
