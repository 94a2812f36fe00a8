//! Bearer tokens of OAuth 2.0 (RFC 6749): by the client's own credentials (section 4.4) or a refresh token (section 6).
//!
//! A token is kept in memory until shortly before its end, one for each client that a policy describes, however many
//! connections use it; only one request for a new one is under way at a time. A token that the upstream answered with 401
//! is asked for anew, but not again and again. The endpoint's answers are bounded in size and time, and no redirect is
//! followed. Failure mode: no credential.
//!
//! A server may replace the refresh token whenever it is used (section 6), and the one before is then worth nothing. So
//! the new one is written to the state folder, readable by the daemon alone, before the token that came with it is used,
//! and it counts as long as the source still gives the one it replaced. An exchange that has begun goes on when nobody
//! waits for it any more.
//!
//! One file, because fetching, keeping and replacing a token are one protocol, of which each half relies on the other.

use std::{
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use data_encoding::{BASE64, HEXLOWER};
use futures_util::future::BoxFuture;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Mutex as AsyncMutex, OwnedMutexGuard},
    time::{Instant, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use zeroize::Zeroizing;

use super::{Known, SecretFault, VALUE_MAX, file};
use crate::policy::{ClientAuth, CredentialSource, OAuth2Spec, TlsSpec};

/// Longest answer of a token endpoint, in bytes: room for two secrets.
const ANSWER_MAX: usize = 2 * VALUE_MAX;
/// Longest head of one.
const HEAD_MAX: usize = 64 << 10;
/// How long before its end a token is not used any more, at most.
const MARGIN: Duration = Duration::from_secs(60);
/// How long a token is used whose end the server does not tell.
const UNTOLD: Duration = Duration::from_secs(300);
/// How long a token is used at most.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// How often a token may be replaced because an upstream did not take it.
const REPLACED: Duration = Duration::from_secs(30);
/// How long a failure stands for whoever asks next.
const FAILED: Duration = Duration::from_secs(1);
/// Clients that are remembered; beyond it those that nobody uses go.
const CLIENTS_MAX: usize = 256;

/// A byte stream.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Why there is no connection.
pub type DialError = Box<dyn std::error::Error + Send + Sync>;

/// Connects to token endpoints. The network answers, which this module does not know.
pub trait Dialer: Send + Sync {
    /// Connects to `host:port`, with time limits; over TLS that is checked against the host where `tls` says how.
    fn reach<'a>(
        &'a self,
        address: &'a str,
        host: &'a str,
        tls: Option<&'a TlsSpec>,
    ) -> BoxFuture<'a, Result<Box<dyn Stream>, DialError>>;
}

/// Why there is no token. For the operator.
#[derive(Debug, thiserror::Error)]
pub enum TokenFault {
    /// Nothing can be dialed here.
    #[error("no network to ask for a token")]
    NoNetwork,
    /// No connection.
    #[error("the token endpoint cannot be reached")]
    Unreachable(#[source] DialError),
    /// It is too slow.
    #[error("the token endpoint did not answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// It does not speak HTTP, or broke off.
    #[error("the token endpoint broke off")]
    Broken(#[source] hyper::Error),
    /// It says no.
    #[error("the token endpoint answered {status}{}{}", named(error), advice(error))]
    Refused {
        /// Its status.
        status: StatusCode,
        /// Its error (RFC 6749 section 5.2), if it tells one.
        error: Option<String>,
    },
    /// Its answer is too long.
    #[error("the token endpoint's answer is longer than {ANSWER_MAX} bytes")]
    TooLong,
    /// Its answer is none (RFC 6749 section 5.1).
    #[error("the token endpoint's answer is not JSON with an `access_token`: wrong at line {line}, column {column}")]
    NotJson {
        /// Line of the first mistake, from 1.
        line: usize,
        /// Its column.
        column: usize,
    },
    /// It gave out something else.
    #[error("the token endpoint gave out no bearer token that can stand in a request")]
    NotBearer,
    /// A task of ours died.
    #[error("the exchange ended without an answer")]
    Lost,
}

fn named(error: &Option<String>) -> String {
    error.as_ref().map(|error| format!(" ({error})")).unwrap_or_default()
}

fn advice(error: &Option<String>) -> &'static str {
    match error.as_deref() {
        Some("invalid_grant") => {
            ": the refresh token is used up or was revoked; authorize anew and put the new one in its source"
        }
        Some("invalid_client") => ": check `client_id`, `client_secret` and `client_auth`",
        _ => "",
    }
}

/// A token, and until when it is used.
#[derive(Clone)]
pub(super) struct Token {
    pub(super) value: SecretString,
    pub(super) until: Instant,
}

/// Tokens of all clients.
#[derive(Default)]
pub(super) struct Tokens {
    dialer: Option<Arc<dyn Dialer>>,
    /// Where refresh tokens are kept that a server has replaced.
    kept: Option<PathBuf>,
    clients: Mutex<Vec<(OAuth2Spec, Arc<AsyncMutex<Client>>)>>,
}

/// What is known of one client.
#[derive(Default)]
struct Client {
    token: Option<Token>,
    /// When a token was last given up because an upstream did not take it.
    replaced: Option<Instant>,
    failed: Option<(Instant, Arc<TokenFault>)>,
    /// The refresh token that counts, and the hash of the one of the source that it came from.
    refresh: Option<(blake3::Hash, SecretString)>,
}

/// Secrets of a client, fetched for one exchange.
pub(super) struct Secrets {
    pub(super) client: Option<SecretString>,
    pub(super) refresh: Option<SecretString>,
}

/// Whether another credential can be expected in place of one that was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// It is worth another try.
    Expected,
    /// It would be the same one.
    Useless,
}

/// What there is for now.
pub(super) enum Found {
    Token(Token),
    /// None: whoever has this may ask for one, and nobody else meanwhile.
    Turn(Turn),
}

/// The right to ask for a client's next token.
pub(super) struct Turn(OwnedMutexGuard<Client>);

impl Tokens {
    pub(super) fn dialing(self, dialer: Arc<dyn Dialer>) -> Self {
        Self { dialer: Some(dialer), ..self }
    }

    pub(super) fn keeping(self, directory: PathBuf) -> Self {
        Self { kept: Some(directory), ..self }
    }

    /// The token in use, or the turn to ask for one. Cancel safe.
    pub(super) async fn find(&self, spec: &OAuth2Spec) -> Result<Found, Arc<TokenFault>> {
        let client = self.client(spec).lock_owned().await;
        if let Some(token) = client.token.as_ref().filter(|token| token.until > Instant::now()) {
            return Ok(Found::Token(token.clone()));
        }
        match &client.failed {
            // Whoever waited for it shares its failure.
            Some((at, fault)) if at.elapsed() < FAILED => Err(Arc::clone(fault)),
            _ => Ok(Found::Turn(Turn(client))),
        }
    }

    /// Asks for a token. Once begun, the exchange ends by itself, whether or not somebody waits for it.
    pub(super) async fn fetch(
        &self,
        turn: Turn,
        spec: &OAuth2Spec,
        secrets: Secrets,
        known: Arc<Known>,
    ) -> Result<Token, Arc<TokenFault>> {
        let Some(dialer) = self.dialer.clone() else { return Err(Arc::new(TokenFault::NoNetwork)) };
        let (spec, kept) = (spec.clone(), self.kept.clone());
        let exchange = tokio::spawn(async move {
            let mut client = turn.0;
            let got = exchange(&mut client, &*dialer, &spec, secrets, kept, &known).await.map_err(Arc::new);
            match &got {
                Ok(token) => {
                    client.token = Some(token.clone());
                    client.failed = None;
                }
                Err(fault) => client.failed = Some((Instant::now(), Arc::clone(fault))),
            }
            got
        });
        exchange.await.unwrap_or_else(|_| Err(Arc::new(TokenFault::Lost)))
    }

    /// Gives a token up that an upstream did not take. One that came meanwhile stays.
    pub(super) async fn rejected(&self, spec: &OAuth2Spec, value: &SecretString) -> Renewal {
        let mut client = self.client(spec).lock_owned().await;
        let known = client.token.as_ref().is_some_and(|token| same(&token.value, value));
        if !known {
            return Renewal::Expected;
        }
        if client.replaced.is_some_and(|at| at.elapsed() < REPLACED) {
            return Renewal::Useless;
        }
        client.replaced = Some(Instant::now());
        client.token = None;
        Renewal::Expected
    }

    fn client(&self, spec: &OAuth2Spec) -> Arc<AsyncMutex<Client>> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, client)) = clients.iter().find(|(known, _)| known == spec) {
            return Arc::clone(client);
        }
        if clients.len() >= CLIENTS_MAX {
            // A refresh token that could not be written stays with us.
            clients.retain(|(_, client)| {
                Arc::strong_count(client) > 1 || client.try_lock().is_ok_and(|client| client.refresh.is_some())
            });
        }
        let client = Arc::<AsyncMutex<Client>>::default();
        clients.push((spec.clone(), Arc::clone(&client)));
        client
    }
}

fn same(a: &SecretString, b: &SecretString) -> bool {
    a.expose_secret() == b.expose_secret()
}

/// One exchange with the token endpoint.
async fn exchange(
    client: &mut Client,
    dialer: &dyn Dialer,
    spec: &OAuth2Spec,
    secrets: Secrets,
    kept: Option<PathBuf>,
    known: &Known,
) -> Result<Token, TokenFault> {
    let began = Instant::now();
    let source = secrets.refresh.as_ref().map(|token| blake3::hash(token.expose_secret().as_bytes()));
    let place = kept.map(|folder| folder.join(format!("{}.token", identity(spec))));
    if let Some(source) = source
        && client.refresh.as_ref().is_none_or(|(of, _)| *of != source)
    {
        client.refresh = stored(place.clone()).await.filter(|(of, _)| *of == source);
    }
    let refresh = client.refresh.as_ref().map(|(_, token)| token.clone()).or(secrets.refresh);
    refresh.iter().for_each(|token| known.learn(token));
    let request = request(spec, secrets.client.as_ref(), refresh.as_ref())?;
    let answered = timeout(spec.timeout, ask(dialer, spec, request)).await;
    let (status, answer) = answered.map_err(|_| TokenFault::TimedOut(spec.timeout))??;
    let answer = read(status, &answer)?;
    [&answer.token].into_iter().chain(&answer.refresh).for_each(|token| known.learn(token));
    if let (Some(next), Some(source), Some(last)) = (answer.refresh, source, refresh)
        && !same(&next, &last)
    {
        client.refresh = Some((source, next.clone()));
        store(place, source, next, spec).await;
    }
    let lives = answer.lives.unwrap_or(UNTOLD).min(LONGEST);
    Ok(Token { value: answer.token, until: began + lives.saturating_sub(MARGIN.min(lives / 4)) })
}

/// What tells one refresh token's line from another's.
fn identity(spec: &OAuth2Spec) -> String {
    let source = match &spec.refresh_token {
        Some(CredentialSource::File { path }) => path.display().to_string(),
        Some(CredentialSource::Exec { argv, .. }) => argv.join("\0"),
        _ => String::new(),
    };
    let text = [&*spec.endpoint.address(), &spec.endpoint.target, &spec.client_id, &source].join("\n");
    HEXLOWER.encode(&blake3::hash(text.as_bytes()).as_bytes()[..16])
}

/// The refresh token that came last, and the hash of the source's own.
async fn stored(place: Option<PathBuf>) -> Option<(blake3::Hash, SecretString)> {
    let place = place?;
    let read = tokio::task::spawn_blocking(move || match file::read(place.clone(), None) {
        Err(SecretFault::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
        Err(fault) => {
            tracing::error!(%fault, "a refresh token that was kept cannot be read");
            None
        }
        Ok(bytes) => Some(bytes),
    });
    let bytes = read.await.ok()??;
    let (of, token) = std::str::from_utf8(&bytes).ok()?.split_once('\n')?;
    let of = blake3::Hash::from_hex(of).ok()?;
    Some((of, SecretString::from(token.strip_suffix('\n')?)))
}

/// Keeps a refresh token over a restart. What cannot be kept is told, each time: it ends with the daemon.
async fn store(place: Option<PathBuf>, of: blake3::Hash, token: SecretString, spec: &OAuth2Spec) {
    let Some(place) = place else {
        tracing::warn!(client = spec.client_id, "the server replaced a refresh token; it is kept in memory only");
        return;
    };
    let shown = place.display().to_string();
    let written = tokio::task::spawn_blocking(move || write(&place, of, &token)).await;
    if let Err(error) = written.unwrap_or_else(|_| Err(io::ErrorKind::Other.into())) {
        let client = &spec.client_id;
        tracing::error!(
            client, path = shown, %error,
            "the server replaced a refresh token, and the new one cannot be written: it is lost when the daemon ends"
        );
    }
}

fn write(place: &Path, of: blake3::Hash, token: &SecretString) -> io::Result<()> {
    let folder = place.parent().ok_or(io::ErrorKind::NotFound)?;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let next = place.with_extension("next");
    let _ = std::fs::remove_file(&next);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&next)?;
    let text = Zeroizing::new(format!("{}\n{}\n", of.to_hex(), token.expose_secret()));
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&next, place)?;
    std::fs::File::open(folder)?.sync_all()
}

/// The request for a token.
fn request(
    spec: &OAuth2Spec,
    secret: Option<&SecretString>,
    refresh: Option<&SecretString>,
) -> Result<Request<Full<Bytes>>, TokenFault> {
    let mut form = Zeroizing::new(String::with_capacity(ANSWER_MAX));
    match refresh {
        Some(token) => {
            field(&mut form, "grant_type", "refresh_token");
            field(&mut form, "refresh_token", token.expose_secret());
        }
        None => field(&mut form, "grant_type", "client_credentials"),
    }
    if !spec.scopes.is_empty() {
        field(&mut form, "scope", &spec.scopes.join(" "));
    }
    if let Some(audience) = &spec.audience {
        field(&mut form, "audience", audience);
    }
    let mut authorization = None;
    match (secret, spec.client_auth) {
        (Some(secret), ClientAuth::Basic) => {
            let mut pair = Zeroizing::new(String::with_capacity(4 * VALUE_MAX));
            encode(&mut pair, &spec.client_id);
            pair.push(':');
            encode(&mut pair, secret.expose_secret());
            let text = Zeroizing::new(format!("Basic {}", BASE64.encode(pair.as_bytes())));
            let mut value = HeaderValue::from_str(&text).map_err(|_| TokenFault::NotBearer)?;
            value.set_sensitive(true);
            authorization = Some(value);
        }
        (Some(secret), ClientAuth::Post) => {
            field(&mut form, "client_id", &spec.client_id);
            field(&mut form, "client_secret", secret.expose_secret());
        }
        // A public client is known by its name alone (RFC 6749 section 3.2.1).
        (None, _) => field(&mut form, "client_id", &spec.client_id),
    }
    let endpoint = &spec.endpoint;
    let usual = if spec.tls.is_some() { 443 } else { 80 };
    let host = if endpoint.port == usual { endpoint.host.clone() } else { endpoint.address() };
    let mut request = Request::post(&endpoint.target)
        .header(header::HOST, host)
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .header(header::ACCEPT, "application/json")
        .header(header::CONNECTION, "close");
    if let Some(authorization) = authorization {
        request = request.header(header::AUTHORIZATION, authorization);
    }
    request.body(Full::new(Bytes::copy_from_slice(form.as_bytes()))).map_err(|_| TokenFault::NotBearer)
}

/// Appends a field of a form (URL Standard section 5.2).
fn field(form: &mut String, name: &str, value: &str) {
    if !form.is_empty() {
        form.push('&');
    }
    form.push_str(name);
    form.push('=');
    encode(form, value);
}

fn encode(out: &mut String, text: &str) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'*' => out.push(char::from(byte)),
            b' ' => out.push('+'),
            _ => {
                out.push('%');
                out.push(char::from(DIGITS[usize::from(byte >> 4)]));
                out.push(char::from(DIGITS[usize::from(byte & 15)]));
            }
        }
    }
}

/// Sends it and reads all of the answer.
async fn ask(
    dialer: &dyn Dialer,
    spec: &OAuth2Spec,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Zeroizing<Vec<u8>>), TokenFault> {
    let (address, host) = (spec.endpoint.address(), &spec.endpoint.host);
    let stream = dialer.reach(&address, host, spec.tls.as_ref()).await.map_err(TokenFault::Unreachable)?;
    let handshake = hyper::client::conn::http1::Builder::new().max_buf_size(HEAD_MAX).handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(TokenFault::Broken)?;
    let _driver = AbortOnDropHandle::new(tokio::spawn(connection));
    let response = sender.send_request(request).await.map_err(TokenFault::Broken)?;
    let (head, mut body) = response.into_parts();
    let mut answer = Zeroizing::new(Vec::with_capacity(ANSWER_MAX));
    while let Some(frame) = body.frame().await {
        let Ok(piece) = frame.map_err(TokenFault::Broken)?.into_data() else { continue };
        if answer.len() + piece.len() > ANSWER_MAX {
            return Err(TokenFault::TooLong);
        }
        answer.extend_from_slice(&piece);
    }
    Ok((head.status, answer))
}

/// What a token endpoint gives out.
struct Answer {
    token: SecretString,
    refresh: Option<SecretString>,
    lives: Option<Duration>,
}

/// RFC 6749 section 5.1.
#[derive(Deserialize)]
struct Issued {
    access_token: String,
    token_type: String,
    refresh_token: Option<String>,
    expires_in: Option<Seconds>,
}

/// Some servers write the number as a text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Seconds {
    Number(f64),
    Text(String),
}

/// RFC 6749 section 5.2.
#[derive(Deserialize)]
struct Error {
    error: String,
}

fn read(status: StatusCode, answer: &[u8]) -> Result<Answer, TokenFault> {
    if status != StatusCode::OK {
        // What it calls the error is for the log; anything else it says may quote a secret.
        let error = serde_json::from_slice::<Error>(answer).ok().map(|told| told.error);
        let fits = |error: &String| error.len() <= 40 && error.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        return Err(TokenFault::Refused { status, error: error.filter(fits) });
    }
    let mut issued: Issued = serde_json::from_slice(answer)
        .map_err(|error| TokenFault::NotJson { line: error.line(), column: error.column() })?;
    // RFC 6749 appendix A.12 and A.17.
    let token = secret(&mut issued.access_token, b'!');
    let refresh = issued.refresh_token.as_mut().map(|text| secret(text, b' '));
    if !issued.token_type.eq_ignore_ascii_case("bearer") {
        return Err(TokenFault::NotBearer);
    }
    let seconds = issued.expires_in.and_then(|seconds| match seconds {
        Seconds::Number(number) => Some(number),
        Seconds::Text(text) => text.parse().ok(),
    });
    let lives = seconds.map(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(LONGEST));
    let refresh = refresh.map(|token| token.ok_or(TokenFault::NotBearer)).transpose()?;
    Ok(Answer { token: token.ok_or(TokenFault::NotBearer)?, refresh, lives })
}

/// A token of printable ASCII from a character on; `None` for what is none.
fn secret(text: &mut String, from: u8) -> Option<SecretString> {
    let text = Zeroizing::new(std::mem::take(text));
    let fits = !text.is_empty() && text.len() <= VALUE_MAX && text.bytes().all(|b| (from..=b'~').contains(&b));
    fits.then(|| SecretString::from(text.as_str()))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
