//! The connection toward the upstream, and the credential that goes into what is sent on it.

use std::sync::Arc;

use bytes::Bytes;
use data_encoding::BASE64;
use http::{HeaderMap, HeaderName, HeaderValue, Response, header};
use http_body_util::{BodyExt, Empty, Full, combinators::UnsyncBoxBody};
use hyper::{
    body::Incoming,
    client::conn::http1::{Builder, SendRequest},
};
use hyper_util::rt::TokioIo;
use secrecy::{ExposeSecret, SecretString};
use tokio::task::AbortHandle;

use super::{body::BodyError, request::Request};
use crate::{
    policy::{Inject, TlsMode},
    secrets::Lease,
    session::{ConnectionCx, NetError, Permit},
};

/// A body on its way upstream.
pub type Outgoing = UnsyncBoxBody<Bytes, BodyError>;

/// Nothing came back. What is displayed may be shown to the client.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// No connection.
    #[error(transparent)]
    Network(#[from] NetError),
    /// No credential; the text is for the log.
    #[error("the credential for this upstream is not available")]
    Credential(String),
    /// It does not speak HTTP/1.1, or closed.
    #[error("the upstream broke off the request")]
    Broken(#[source] hyper::Error),
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
}

impl Sends {
    /// Once more, if it can be.
    pub fn again(&self) -> Option<Self> {
        match self {
            Self::Nothing => Some(Self::Nothing),
            Self::All(bytes) => Some(Self::All(bytes.clone())),
            Self::Streams(_) => None,
        }
    }

    fn body(self) -> Outgoing {
        match self {
            Self::Nothing => Empty::new().map_err(|never| match never {}).boxed_unsync(),
            Self::All(bytes) => Full::new(bytes).map_err(|never| match never {}).boxed_unsync(),
            Self::Streams(incoming) => incoming.map_err(Into::into).boxed_unsync(),
        }
    }
}

/// A connection to the upstream, made when it is first needed and again when it was closed.
#[derive(Default)]
pub struct Upstream {
    open: Option<Open>,
}

struct Open {
    sender: SendRequest<Outgoing>,
    lease: Lease,
    task: AbortHandle,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Upstream {
    /// Sends a request that was permitted, and waits for the head of its response. If the upstream says that the credential
    /// is no good, or closed the connection before it had read anything, it is tried once more, where that can be done.
    ///
    /// # Errors
    /// Nothing came back.
    pub async fn send(
        &mut self,
        cx: &Arc<ConnectionCx>,
        address: &str,
        permit: Permit,
        request: &Request,
        judged: &Bytes,
        sends: Sends,
    ) -> Result<Response<Incoming>, UpstreamError> {
        if !permit.covers(judged) || !judged.starts_with(&request.head()) {
            return Err(UpstreamError::Changed);
        }
        let again = sends.again();
        let idle = self.open.as_ref().is_some_and(|open| !open.sender.is_closed());
        let answer = self.once(cx, address, request, sends).await;
        let retry = match (&answer, again) {
            // A connection that stood idle may have been closed by the upstream just now.
            (Err(UpstreamError::Broken(error)), Some(again)) if idle && error.is_canceled() => again,
            (Ok(response), Some(again)) if response.status() == 401 && self.has_secret() => again,
            _ => return answer,
        };
        self.open = None;
        self.once(cx, address, request, retry).await
    }

    fn has_secret(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.lease.password.is_some())
    }

    async fn once(
        &mut self,
        cx: &Arc<ConnectionCx>,
        address: &str,
        request: &Request,
        sends: Sends,
    ) -> Result<Response<Incoming>, UpstreamError> {
        if self.open.as_ref().is_some_and(|open| open.sender.is_closed()) {
            self.open = None;
        }
        let open = match &mut self.open {
            Some(open) => open,
            None => self.open.insert(connect(cx, address).await?),
        };
        open.sender.ready().await.map_err(UpstreamError::Broken)?;
        let mut headers = request.headers.clone();
        let mut target = request.target.clone();
        inject(&cx.upstream.credential.inject, &open.lease, &mut headers, &mut target)?;
        let uri = target.parse().map_err(|_| UpstreamError::Changed)?;
        let mut outgoing = http::Request::new(sends.body());
        *outgoing.method_mut() = request.method.clone();
        *outgoing.uri_mut() = uri;
        *outgoing.headers_mut() = headers;
        open.sender.send_request(outgoing).await.map_err(UpstreamError::Broken)
    }
}

async fn connect(cx: &Arc<ConnectionCx>, address: &str) -> Result<Open, UpstreamError> {
    let lease = cx.house.secrets.lease(&cx.upstream.credential).await;
    let lease = lease.map_err(|error| UpstreamError::Credential(error.detail()))?;
    let network = &cx.house.network;
    let mut io = network.dial(address).await?;
    if cx.upstream.tls.mode != TlsMode::Disable {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        io = network.secure(io, host, &cx.upstream.tls).await?.io;
    }
    let handshake = Builder::new().handshake(TokioIo::new(io)).await;
    let (sender, connection) = handshake.map_err(UpstreamError::Broken)?;
    let task = tokio::spawn(async move {
        // Whoever waits for a response is told by the sender.
        let _ = connection.await;
    });
    Ok(Open { sender, lease, task: task.abort_handle() })
}

/// Puts the credential in its place, where nothing of the client's is left.
fn inject(inject: &Inject, lease: &Lease, headers: &mut HeaderMap, target: &mut String) -> Result<(), UpstreamError> {
    let Some(secret) = &lease.password else { return Ok(()) };
    let mut set = |name: HeaderName, value: String| {
        let value = SecretString::from(value);
        let mut value = HeaderValue::from_str(value.expose_secret())
            .map_err(|_| UpstreamError::Credential("the secret cannot stand in a header field".into()))?;
        value.set_sensitive(true);
        headers.insert(name, value);
        Ok(())
    };
    let secret = secret.expose_secret();
    match inject {
        Inject::Bearer => set(header::AUTHORIZATION, format!("Bearer {secret}")),
        Inject::Basic => {
            let user = lease.user.as_deref().unwrap_or_default();
            set(header::AUTHORIZATION, format!("Basic {}", BASE64.encode(format!("{user}:{secret}").as_bytes())))
        }
        Inject::Header(name) => {
            let name = HeaderName::try_from(name.as_str())
                .map_err(|_| UpstreamError::Credential("the name of the header field is none".into()))?;
            set(name, secret.to_owned())
        }
        Inject::Query(name) => {
            target.push(if target.contains('?') { '&' } else { '?' });
            target.push_str(name);
            target.push('=');
            for byte in secret.bytes() {
                match byte {
                    b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                        target.push(char::from(byte))
                    }
                    _ => target.push_str(&format!("%{byte:02X}")),
                }
            }
            Ok(())
        }
        Inject::Cookie(name) => {
            let others = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
            let mut cookies: Vec<String> = others.map(str::to_owned).collect();
            cookies.push(format!("{name}={secret}"));
            let all = cookies.join("; ");
            let mut value = HeaderValue::from_str(&all)
                .map_err(|_| UpstreamError::Credential("the secret cannot stand in a cookie".into()))?;
            value.set_sensitive(true);
            headers.insert(header::COOKIE, value);
            Ok(())
        }
    }
}
