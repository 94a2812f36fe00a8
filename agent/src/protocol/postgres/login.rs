//! Login at the upstream, with the real credential: TLS as the policy says, then SCRAM-SHA-256 (with channel binding
//! where TLS allows), MD5, cleartext (only inside TLS), or a client certificate.
//!
//! Errors: what an agent may be told is [`LoginError`]'s display; the rest is for the operator's log. The password is
//! in the lease's wiped memory and in the outgoing buffer, which is wiped after it is written.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use fallible_iterator::FallibleIterator;
use postgres_protocol::{
    authentication::{
        md5_hash,
        sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256},
    },
    message::{backend, frontend},
};
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroize;

use super::{
    codec::{self, Frame},
    deny,
};
use crate::{
    policy::{TlsMode, UpstreamSpec},
    secrets::Lease,
    session::{BoxIo, NetError, Network},
    wire::pump::Side,
};

/// Largest frame before the upstream is ready.
const FRAME_MAX: usize = 64 << 10;
/// Most frames before the upstream is ready.
const FRAMES_MAX: usize = 1000;

/// An upstream that is ready for queries.
pub struct Connected {
    /// Its stream, with bytes that it sent ahead.
    pub side: Side<BoxIo>,
    /// Its ParameterStatus messages.
    pub parameters: BTreeMap<String, String>,
    /// Its BackendKeyData, for cancelling.
    pub key: Option<(u32, Bytes)>,
    /// Notices it sent on the way.
    pub notices: Vec<Frame>,
}

/// No login. What is displayed may be shown to an agent.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// It could not be reached, or not safely.
    #[error(transparent)]
    Network(#[from] NetError),
    /// It does not offer TLS, and the policy asks for it.
    #[error("the upstream does not offer TLS, which the policy requires")]
    NoTls,
    /// It refused the credential.
    #[error("the upstream did not accept the credential of this policy")]
    Credential(String),
    /// It refused for another reason.
    #[error("{message}")]
    Server {
        /// SQLSTATE.
        code: String,
        /// Its message: of the server, about the database or its state.
        message: String,
    },
    /// It asks for a method that we do not speak, or not there.
    #[error("the upstream asks for an authentication method that is not supported here")]
    Method(String),
    /// It broke the protocol.
    #[error("the upstream does not follow the protocol")]
    Protocol(String),
    /// The connection failed.
    #[error("the connection to the upstream failed")]
    Io(#[from] std::io::Error),
}

impl LoginError {
    /// For the operator.
    pub fn detail(&self) -> String {
        match self {
            Self::Network(error) => match std::error::Error::source(error) {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            },
            Self::Credential(detail) | Self::Method(detail) | Self::Protocol(detail) => format!("{self}: {detail}"),
            Self::Server { code, message } => format!("{code}: {message}"),
            Self::Io(error) => format!("{self}: {error}"),
            Self::NoTls => self.to_string(),
        }
    }
}

/// Dials and secures, without logging in. Also returns the channel binding.
pub async fn open(
    network: &dyn Network,
    upstream: &UpstreamSpec,
    address: &str,
) -> Result<(BoxIo, Option<Vec<u8>>, Encrypted), LoginError> {
    let io = network.dial(address).await?;
    if upstream.tls.mode == TlsMode::Disable {
        return Ok((io, None, Encrypted::No));
    }
    let mut side = Side::new(io, BytesMut::new());
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    side.output.extend(&request);
    side.flush().await?;
    if !side.fill().await? {
        return Err(LoginError::Protocol("it closed the connection on SSLRequest".into()));
    }
    match side.input.as_ref() {
        b"S" => {}
        b"N" => return Err(LoginError::NoTls),
        // Bytes after the answer would be taken for encrypted ones (CVE-2021-23222); an error here is no answer we trust.
        _ => return Err(LoginError::Protocol("it sent bytes before the TLS handshake".into())),
    }
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let secured = network.secure(side.into_io(), host, &upstream.tls, &[], None).await?;
    Ok((secured.io, secured.endpoint_hash, Encrypted::Yes))
}

/// Whether a stream is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encrypted {
    /// It is.
    Yes,
    /// It is not.
    No,
}

/// Logs in. The caller bounds the time.
pub async fn login(
    network: &dyn Network,
    upstream: &UpstreamSpec,
    address: &str,
    database: &str,
    settings: &[(String, String)],
    lease: &Lease,
) -> Result<Connected, LoginError> {
    let user = lease.user.as_deref().ok_or_else(|| LoginError::Credential("the policy names no user".into()))?;
    let (io, binding, encrypted) = open(network, upstream, address).await?;
    let mut connected =
        Connected { side: Side::new(io, BytesMut::new()), parameters: BTreeMap::new(), key: None, notices: Vec::new() };
    let mut startup = BytesMut::new();
    let pairs = [("user", user), ("database", database)];
    let pairs = pairs.into_iter().chain(settings.iter().map(|(n, v)| (n.as_str(), v.as_str())));
    frontend::startup_message(pairs, &mut startup)?;
    connected.side.output.extend(&startup);
    authenticate(&mut connected.side, user, lease.password.as_ref(), binding, encrypted).await?;
    for _ in 0..FRAMES_MAX {
        let frame = read(&mut connected.side).await?;
        match frame.tag() {
            b'Z' => return Ok(connected),
            b'S' => {
                let mut r = frame.reader();
                let (name, value) = (r.cstr(), r.cstr());
                let (Ok(name), Ok(value)) = (name, value) else { return Err(broken("ParameterStatus")) };
                let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
                connected.parameters.insert(text(name), text(value));
            }
            b'K' => {
                let mut r = frame.reader();
                let pid = r.u32().map_err(|_| broken("BackendKeyData"))?;
                connected.key = Some((pid, frame.bytes().slice_ref(r.rest())));
            }
            b'N' => connected.notices.push(frame),
            b'E' => return Err(server_error(&frame)),
            _ => return Err(broken("an unexpected frame after authentication")),
        }
    }
    Err(broken("too many frames before it was ready"))
}

/// Logs in with a fresh lease; if the credential was refused, fetches another once, so that a rotation goes unnoticed.
pub async fn login_with_refetch(
    cx: &crate::session::ConnectionCx,
    database: &str,
    settings: &[(String, String)],
) -> Result<Connected, LoginError> {
    let mut refused = None;
    for _ in 0..2 {
        let lease = cx
            .house
            .secrets
            .lease(&cx.upstream.credential)
            .await
            .map_err(|error| LoginError::Credential(error.detail()))?;
        match login(&*cx.house.network, &cx.upstream, &cx.address, database, settings, &lease).await {
            Err(error @ LoginError::Credential(_)) => refused = Some(error),
            other => return other,
        }
    }
    Err(refused.unwrap_or_else(|| LoginError::Credential("no attempt was made".into())))
}

async fn authenticate(
    side: &mut Side<BoxIo>,
    user: &str,
    password: Option<&SecretString>,
    binding: Option<Vec<u8>>,
    encrypted: Encrypted,
) -> Result<(), LoginError> {
    let secret =
        || password.ok_or_else(|| LoginError::Credential("it asks for a password, the policy has none".into()));
    loop {
        let frame = read(side).await?;
        match frame.tag() {
            b'N' => continue,
            b'E' => return Err(server_error(&frame)),
            b'v' => continue,
            b'R' => {}
            _ => return Err(broken("an unexpected frame during authentication")),
        }
        match message(&frame)? {
            backend::Message::AuthenticationOk => return Ok(()),
            backend::Message::AuthenticationCleartextPassword if encrypted == Encrypted::Yes => {
                send_password(side, secret()?.expose_secret().as_bytes()).await?;
            }
            backend::Message::AuthenticationCleartextPassword => {
                return Err(LoginError::Method("a cleartext password outside of TLS".into()));
            }
            backend::Message::AuthenticationMd5Password(body) => {
                let mut hash = md5_hash(user.as_bytes(), secret()?.expose_secret().as_bytes(), body.salt());
                let sent = send_password(side, hash.as_bytes()).await;
                hash.zeroize();
                sent?;
            }
            backend::Message::AuthenticationSasl(body) => {
                let mechanisms: Vec<String> =
                    body.mechanisms().map(|m| Ok(m.to_owned())).collect().map_err(LoginError::Io)?;
                scram(side, &mechanisms, secret()?, binding.clone()).await?;
            }
            _ => return Err(LoginError::Method("neither SCRAM-SHA-256, MD5 nor a password".into())),
        }
    }
}

async fn send_password(side: &mut Side<BoxIo>, password: &[u8]) -> Result<(), LoginError> {
    let mut out = BytesMut::new();
    frontend::password_message(password, &mut out)?;
    side.output.extend(&out);
    out.as_mut().zeroize();
    Ok(side.flush().await?)
}

async fn scram(
    side: &mut Side<BoxIo>,
    mechanisms: &[String],
    password: &SecretString,
    binding: Option<Vec<u8>>,
) -> Result<(), LoginError> {
    let offers = |name: &str| mechanisms.iter().any(|m| m == name);
    let (mechanism, binding) = match binding {
        Some(hash) if offers(SCRAM_SHA_256_PLUS) => (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(hash)),
        // We could bind but the server says it cannot: SCRAM itself tells it so, and it ends a downgrade.
        Some(_) if offers(SCRAM_SHA_256) => (SCRAM_SHA_256, ChannelBinding::unrequested()),
        None if offers(SCRAM_SHA_256) => (SCRAM_SHA_256, ChannelBinding::unsupported()),
        _ => return Err(LoginError::Method(format!("SASL with {}", mechanisms.join(", ")))),
    };
    let mut exchange = ScramSha256::new(password.expose_secret().as_bytes(), binding);
    let mut out = BytesMut::new();
    frontend::sasl_initial_response(mechanism, exchange.message(), &mut out)?;
    side.output.extend(&out);
    let backend::Message::AuthenticationSaslContinue(body) = answer(side).await? else {
        return Err(broken("no SASL continuation"));
    };
    exchange.update(body.data()).map_err(|e| LoginError::Protocol(e.to_string()))?;
    let mut out = BytesMut::new();
    frontend::sasl_response(exchange.message(), &mut out)?;
    side.output.extend(&out);
    let backend::Message::AuthenticationSaslFinal(body) = answer(side).await? else {
        return Err(broken("no SASL outcome"));
    };
    // The server must prove that it knows the password, too.
    exchange.finish(body.data()).map_err(|e| LoginError::Protocol(e.to_string()))
}

async fn answer(side: &mut Side<BoxIo>) -> Result<backend::Message, LoginError> {
    let frame = read(side).await?;
    match frame.tag() {
        b'E' => Err(server_error(&frame)),
        b'R' => message(&frame),
        _ => Err(broken("an unexpected frame during authentication")),
    }
}

fn message(frame: &Frame) -> Result<backend::Message, LoginError> {
    let mut bytes = BytesMut::from(frame.bytes().as_ref());
    backend::Message::parse(&mut bytes)?.ok_or_else(|| broken("an authentication request"))
}

/// Writes what waits, then reads one frame.
pub(super) async fn read(side: &mut Side<BoxIo>) -> Result<Frame, LoginError> {
    side.flush().await?;
    loop {
        match codec::cut(&mut side.input, |_| FRAME_MAX) {
            Ok(Some(frame)) => return Ok(frame),
            Ok(None) => {}
            Err(error) => return Err(LoginError::Protocol(error.to_string())),
        }
        if !side.fill().await? {
            return Err(LoginError::Protocol("it closed the connection".into()));
        }
    }
}

fn broken(what: &str) -> LoginError {
    LoginError::Protocol(what.into())
}

pub(super) fn server_error(frame: &Frame) -> LoginError {
    let fields = deny::fields(frame.body()).unwrap_or_default();
    let field = |kind| {
        let found = fields.iter().find(|(k, _)| *k == kind);
        found.map_or_else(String::new, |(_, text)| String::from_utf8_lossy(text).into_owned())
    };
    let (code, message) = (field(b'C'), field(b'M'));
    // 28000, 28P01: the message names the real login, which is not the agent's to know.
    if code.starts_with("28") {
        LoginError::Credential(format!("{code}: {message}"))
    } else {
        LoginError::Server { code, message }
    }
}
