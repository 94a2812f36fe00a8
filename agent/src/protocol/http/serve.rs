//! One connection: who it is for, what is spoken on it, and its requests as they come.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use bytes::BytesMut;
use http::StatusCode;
use hyper::{
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

use super::{
    deny::Problem,
    exchange::Connection,
    guard::HEAD_MAX,
    guarded::{Counted, Guarded, Traffic, Wrong},
    lens::Lens,
    request::bare_host,
    resets::Overheard,
    upstream::{HTTP1, HTTP2, Tasks, Upstream, Version, WINDOWS},
};
use crate::{
    policy::ClientTls,
    session::{self, BoxIo, ConnectionCx, Ended, SessionError, gate},
};

/// What a connection may hold beside bodies that are inspected, in bytes: of HTTP/1.1, and of HTTP/2.
const MEMORY: (usize, usize) = (256 << 10, 2 << 20);
/// How long a client may take to send a head, and may be idle between two.
const HEAD_TIME: Duration = Duration::from_secs(600);
/// What a client begins with that speaks HTTP/2 (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Requests at once on a connection of HTTP/2.
const STREAMS: u32 = 100;

/// A connection of which it is known what is spoken on it.
struct Begun {
    io: BoxIo,
    /// What was read of it.
    first: BytesMut,
    encrypted: bool,
    /// The name that the client asked for in its TLS handshake.
    server_name: Option<String>,
    version: Version,
    upstream: Upstream,
}

/// Serves a connection to its end; `lens` is what is spoken within HTTP.
pub async fn serve(client: BoxIo, cx: &Arc<ConnectionCx>, lens: Option<Arc<dyn Lens>>) -> Result<Ended, SessionError> {
    let Some(begun) = begin(client, cx).await? else { return Ok(Ended::default()) };
    let memory = if begun.version == Version::Http2 { MEMORY.1 } else { MEMORY.0 };
    let _memory = cx.memory.charge(memory)?;
    let (encrypted, server_name) = (begun.encrypted, begun.server_name);
    let refused = if !encrypted && cx.upstream.client_tls == ClientTls::Require {
        Some(Problem::new(StatusCode::FORBIDDEN, "TLS required", "the policy requires TLS: use https"))
    } else {
        let connected = session::may_connect(cx, server_name.as_deref().map(Into::into)).await;
        connected.err().map(|refusal| Problem::refused(&refusal, None))
    };
    let (wrong, traffic) = (Wrong::new()?, Arc::new(Traffic::default()));
    let io = Counted::new(begun.first.freeze(), begun.io, Arc::clone(&traffic));
    let connection = Arc::new(Connection {
        gate: gate(cx),
        cx: Arc::clone(cx),
        wrong: Arc::clone(&wrong),
        refused,
        encrypted,
        server_name: server_name.or_else(|| encrypted.then(String::new)),
        host: OnceLock::new(),
        version: begun.version,
        upstream: begun.upstream,
        lens,
        channel: Mutex::default(),
    });
    let answer = service_fn(|request| {
        let connection = Arc::clone(&connection);
        async move { Ok::<_, Infallible>(connection.answer(request).await) }
    });
    let over = CancellationToken::new();
    let _over = over.clone().drop_guard();
    let (tell, mut resets) = tokio::sync::mpsc::unbounded_channel();
    let refusals = async {
        while let Some(reset) = resets.recv().await {
            connection.refuse_reset(reset).await;
        }
    };
    let served = async {
        match begun.version {
            Version::Http1 => {
                drop(tell);
                let io = TokioIo::new(Guarded::new(io, wrong));
                let mut builder = http1::Builder::new();
                // Not with `pipeline_flush`: whatever comes would be buffered then, however slowly the client reads.
                builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME);
                builder.serve_connection(io, answer).with_upgrades().await
            }
            Version::Http2 => {
                let mut builder = http2::Builder::new(Tasks(over));
                builder
                    .timer(TokioTimer::new())
                    .max_concurrent_streams(STREAMS)
                    .initial_stream_window_size(WINDOWS.0)
                    .initial_connection_window_size(WINDOWS.1)
                    .max_header_list_size(u32::try_from(HEAD_MAX).unwrap_or(u32::MAX))
                    .max_send_buf_size(64 << 10);
                builder.serve_connection(TokioIo::new(Overheard::new(io, tell)), answer).await
            }
        }
    };
    // What was told before the end is recorded before it, too.
    let Some((outcome, ())) = cx.until_ended(async { tokio::join!(served, refusals) }).await else {
        return Err(SessionError::Ended((*cx.ending.get().unwrap_or(&"terminated")).into()));
    };
    let load = |count: &std::sync::atomic::AtomicU64| count.load(std::sync::atomic::Ordering::Relaxed);
    let channel = connection.channel.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let (Some(channel), Ok(())) = (channel, &outcome) {
        Box::pin(async { channel.open().await?.run().await }).await?;
    }
    match outcome {
        Ok(()) => Ok(Ended { bytes_in: load(&traffic.read), bytes_out: load(&traffic.written) }),
        Err(error) => Err(SessionError::Client(match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        })),
    }
}

/// Finds out what is spoken; `None` if nothing is.
async fn begin(mut client: BoxIo, cx: &Arc<ConnectionCx>) -> Result<Option<Begun>, SessionError> {
    let mut first = BytesMut::with_capacity(1024);
    let read = async {
        // As long as it may be what HTTP/2 begins with.
        while first.len() < PREFACE.len() && PREFACE.starts_with(&first) {
            if client.read_buf(&mut first).await.is_ok_and(|count| count > 0) {
                continue;
            }
            break;
        }
    };
    tokio::select! {
        biased;
        () = cx.terminate.cancelled() => return Ok(None),
        read = tokio::time::timeout(HEAD_TIME, read) => if read.is_err() { return Ok(None) },
    }
    // A TLS record of the handshake (RFC 8446 section 5.1). No method begins with this byte.
    match first.first() {
        None => Ok(None),
        Some(22) if cx.upstream.client_tls == ClientTls::Refuse => {
            Err(SessionError::Client("TLS, which the policy refuses toward this upstream".into()))
        }
        Some(22) => begin_tls(Box::new(Counted::new(first.freeze(), client, Arc::default())), cx).await.map(Some),
        Some(_) => {
            let version = if first.starts_with(PREFACE) { Version::Http2 } else { Version::Http1 };
            let upstream = Upstream::new(version);
            Ok(Some(Begun { io: client, first, encrypted: false, server_name: None, version, upstream }))
        }
    }
}

async fn begin_tls(client: BoxIo, cx: &Arc<ConnectionCx>) -> Result<Begun, SessionError> {
    let failed = |error: session::NetError| {
        SessionError::Client(format!("TLS: {error}; a client that pins certificates cannot be inspected"))
    };
    let hello = cx.house.network.read_hello(client).await.map_err(failed)?;
    let server_name = hello.server_name().map(bare_host);
    let (version, upstream) = agree((hello.offers(HTTP2), hello.offers(HTTP1)), server_name.as_deref(), cx).await;
    let protocol = match version {
        Version::Http2 => Some(HTTP2),
        Version::Http1 => hello.offers(HTTP1).then_some(HTTP1),
    };
    let names: Vec<String> = hosts(cx).map(|(host, _)| host).collect();
    let io = hello.accept(&names, protocol).await.map_err(failed)?;
    Ok(Begun { io, first: BytesMut::new(), encrypted: true, server_name, version, upstream })
}

/// The version that both sides speak. Where the client offers both, the upstream has the choice.
async fn agree((http2, http1): (bool, bool), server_name: Option<&str>, cx: &Arc<ConnectionCx>) -> (Version, Upstream) {
    let fixed = |version| (version, Upstream::new(version));
    if !http2 {
        return fixed(Version::Http1);
    }
    if !http1 {
        return fixed(Version::Http2);
    }
    let address = hosts(cx).find(|(host, _)| server_name.is_none_or(|name| name == host));
    match address {
        // Nothing goes upstream for a connection that may be refused, not even a handshake.
        Some((_, address)) if session::would_connect(cx) => Upstream::negotiated(cx, &address).await,
        _ => fixed(Version::Http1),
    }
}

/// Names and addresses of the upstream, as clients and its certificate have them, each with its place in the policy.
pub fn hosts(cx: &ConnectionCx) -> impl Iterator<Item = (String, String)> + '_ {
    let port = |address: &str| address.rsplit_once(':').map(|(_, port)| port.to_owned());
    let here = port(&cx.address);
    let same = move |address: &&String| port(address) == here;
    cx.upstream.addresses.iter().filter(same).map(|address| (bare_host(address), address.clone()))
}
