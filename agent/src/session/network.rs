//! What sessions and protocols ask of the network. `net` answers, so that protocols never import it and a session runs
//! over in-memory streams in tests.

use std::{fmt, net::IpAddr};

use futures_util::future::BoxFuture;
use secrecy::SecretString;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::policy::TlsSpec;

/// A byte stream.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A byte stream of any kind.
pub type BoxIo = Box<dyn Io>;

/// A stream after its TLS handshake.
pub struct Secured {
    /// The encrypted stream.
    pub io: BoxIo,
    /// `tls-server-end-point` channel binding (RFC 5929 section 4), where the certificate's signature allows it.
    pub endpoint_hash: Option<Vec<u8>>,
    /// What the server chose among the protocols that were offered.
    pub protocol: Option<Vec<u8>>,
}

impl fmt::Debug for Secured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secured").field("endpoint_hash", &self.endpoint_hash).finish_non_exhaustive()
    }
}

/// A protocol within TLS, as ALPN names it (RFC 7301).
pub type Alpn = &'static [u8];

/// A client's TLS handshake, of which the first message was read and nothing is answered yet.
pub trait Hello: Send {
    /// The name that the client asks for (SNI, RFC 6066 section 3).
    fn server_name(&self) -> Option<&str>;

    /// Whether the client offers a protocol.
    fn offers(&self, protocol: Alpn) -> bool;

    /// Goes on with a leaf of the runtime CA, choosing `protocol`. It is valid for these DNS names and addresses, or those of
    /// them that an authority which the client may know of vouches for: the name that it asks for is among them.
    fn accept(self: Box<Self>, names: &[String], protocol: Option<Alpn>) -> BoxFuture<'_, Result<BoxIo, NetError>>;
}

/// What is known of the name that a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// It has not said it yet.
    More,
    /// This one, or none.
    For(Option<String>),
}

/// Dialing, naming and encrypting.
pub trait Network: Send + Sync {
    /// Addresses of a host, or the literal itself. Answers are cached for a short while.
    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Vec<IpAddr>, NetError>>;

    /// Connects to `host:port`, with a time limit.
    fn dial<'a>(&'a self, address: &'a str) -> BoxFuture<'a, Result<BoxIo, NetError>>;

    /// TLS as a client, checked as `tls` says against `host`, offering `protocols`, and showing the `certificate` that is
    /// given (certificates and key, PEM) or that `tls` names. Not to be called with mode `disable`.
    fn secure<'a>(
        &'a self,
        io: BoxIo,
        host: &'a str,
        tls: &'a TlsSpec,
        protocols: &'a [Alpn],
        certificate: Option<&'a SecretString>,
    ) -> BoxFuture<'a, Result<Secured, NetError>>;

    /// The name that the beginning of a client's TLS handshake asks for (SNI). It is only looked at.
    fn asked_name(&self, first: &[u8]) -> Asked;

    /// Begins TLS as a server.
    fn read_hello(&self, io: BoxIo) -> BoxFuture<'_, Result<Box<dyn Hello>, NetError>>;

    /// TLS as a server, whatever name and protocols the client asks for.
    fn accept_tls<'a>(&'a self, io: BoxIo, names: &'a [String]) -> BoxFuture<'a, Result<BoxIo, NetError>> {
        Box::pin(async move { self.read_hello(io).await?.accept(names, None).await })
    }
}

/// The network failed. What is displayed may be shown to an agent; the source may not.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// A name did not resolve.
    #[error("the upstream's name could not be resolved")]
    Dns(#[source] Source),
    /// No address answered.
    #[error("the upstream could not be reached")]
    Connect(#[source] Source),
    /// The handshake failed or the certificate was not accepted.
    #[error("no trusted TLS connection could be made")]
    Tls(#[source] Source),
    /// There is no client certificate to show, or none that can be used.
    #[error("the credential for this upstream is not available")]
    Credential(#[source] Source),
    /// It took too long.
    #[error("the upstream did not answer in time")]
    Timeout,
    /// A file or value of the policy cannot be used.
    #[error("the upstream's settings cannot be used")]
    Settings(#[source] Source),
}

/// Detail for the operator.
pub type Source = Box<dyn std::error::Error + Send + Sync>;
