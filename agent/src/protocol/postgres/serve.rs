//! One connection from its first byte to the relay: negotiation, the client's login, the decision to connect, the
//! login upstream.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::{mpsc, oneshot};

use super::{
    Catalogs, Key, KeyGuard, Postgres, catalog,
    codec::{self, put, put_cstr},
    deny::{self, Message},
    login::{self, Connected, LoginError},
    names::NameState,
    relay::{Cancelled, Relay},
    safe_parameter,
    startup::{First, Login},
};
use crate::{
    policy::ClientTls,
    session::{self, BoxIo, ConnectionCx, Ended, SessionError, gate},
    wire::pump::Side,
};

/// Protocol 3.0, the newest that is spoken to clients.
const VERSION: i32 = 3 << 16;

/// The client hears `message`, the record `error`.
struct Refused {
    message: Message,
    error: SessionError,
}

impl Refused {
    fn client(code: &'static str, why: impl Into<String>) -> Self {
        let why = why.into();
        Self { message: Message::fatal(code, format!("portcullis: {why}")), error: SessionError::Client(why) }
    }
}

impl From<std::io::Error> for Refused {
    fn from(error: std::io::Error) -> Self {
        Self { message: Message::fatal(deny::LOST, "portcullis: the connection failed"), error: error.into() }
    }
}

/// What a client turned out to want.
enum Wants {
    Login(Login),
    Cancel { pid: u32, secret: Bytes },
    Nothing,
}

impl Postgres {
    pub(super) async fn connection(&self, client: BoxIo, cx: &Arc<ConnectionCx>) -> Result<Ended, SessionError> {
        let mut side = Some(Side::new(client, BytesMut::new()));
        let patience = cx.limits().login_time;
        let negotiated = tokio::select! {
            biased;
            () = cx.terminate.cancelled() => return Err(ended(cx)),
            wants = tokio::time::timeout(patience, negotiate(&mut side, cx)) => {
                wants.map_err(|_| SessionError::Client("the login took too long".into()))?
            }
        };
        let Some(mut side) = side else {
            return Err(SessionError::Client("the TLS handshake failed".into()));
        };
        let outcome = match negotiated {
            Ok(Wants::Nothing) => return Ok(Ended::default()),
            Ok(Wants::Cancel { pid, secret }) => {
                self.cancel(cx, pid, &secret).await;
                return Ok(Ended::default());
            }
            Ok(Wants::Login(login)) => self.login(&mut side, cx, login).await,
            Err(refused) => Err(refused),
        };
        match outcome {
            Ok((login, connected, catalogs, names)) => self.relay(side, cx, &login, connected, catalogs, names).await,
            Err(Refused { message, error }) => {
                side.output.push(message.encode());
                let _ = tokio::time::timeout(Duration::from_secs(2), side.shutdown()).await;
                Err(error)
            }
        }
    }

    async fn login(
        &self,
        side: &mut Side<BoxIo>,
        cx: &Arc<ConnectionCx>,
        login: Login,
    ) -> Result<(Login, Connected, Arc<Catalogs>, NameState), Refused> {
        cx.set_database(&login.database);
        tokio::select! {
            biased;
            () = cx.terminate.cancelled() => return Err(Refused {
                message: Message::fatal(deny::SHUTDOWN, "portcullis: the connection was ended"),
                error: ended(cx),
            }),
            allowed = may_connect(cx, &login) => allowed?,
            gone = hangs_up(side) => return Err(gone),
        }
        let patience = cx.limits().login_time;
        let opened = async {
            let catalogs = self.catalogs(cx);
            let connected = login::login_with_refetch(cx, &login.database, &login.settings).await?;
            let catalog = match catalogs.current() {
                // It is read again before the first command where that is due.
                Some(catalog) => catalog,
                None => catalogs.read(cx, catalog::AGE).await?,
            };
            let names = NameState::new(catalog, login.search_path());
            Ok::<_, LoginError>((connected, catalogs, names))
        };
        let opened = tokio::time::timeout(patience, opened).await;
        match opened {
            Ok(Ok((connected, catalogs, names))) => {
                if !connected.parameters.iter().all(|(n, v)| safe_parameter(n.as_bytes(), v.as_bytes())) {
                    return Err(Refused {
                        message: Message::fatal(
                            deny::UNREACHABLE,
                            "portcullis: the upstream reads text in another way",
                        ),
                        error: SessionError::Upstream("client_encoding or standard_conforming_strings".into()),
                    });
                }
                Ok((login, connected, catalogs, names))
            }
            Ok(Err(error)) => Err(refuse_login(cx, &error)),
            Err(_) => Err(refuse_login(cx, &LoginError::Network(crate::session::NetError::Timeout))),
        }
    }

    fn catalogs(&self, cx: &ConnectionCx) -> Arc<Catalogs> {
        let database = cx.database().cloned().unwrap_or_else(|| "".into());
        let workload = Arc::clone(&cx.subject.workload);
        let key = (workload, Arc::clone(&cx.upstream.name), Arc::clone(&cx.address), database);
        let mut all = self.catalogs.lock().unwrap_or_else(PoisonError::into_inner);
        // Databases that do not exist must not fill the memory.
        if all.len() > 256 {
            all.retain(|_, catalogs| catalogs.current().is_some());
        }
        Arc::clone(all.entry(key).or_default())
    }

    async fn relay(
        &self,
        mut side: Side<BoxIo>,
        cx: &Arc<ConnectionCx>,
        login: &Login,
        connected: Connected,
        catalogs: Arc<Catalogs>,
        names: NameState,
    ) -> Result<Ended, SessionError> {
        let (cancel, cancelled) = mpsc::channel(1);
        let (guard, secret) = self.register(cx, connected.key, cancel)?;
        let mut out = BytesMut::new();
        put(&mut out, b'R', |b| b.put_i32(0));
        if !login.unknown_options.is_empty() {
            tracing::debug!(options = ?login.unknown_options, "protocol options that are not spoken");
        }
        for notice in connected.notices {
            out.extend_from_slice(notice.bytes());
        }
        parameters(&mut out, &connected.parameters);
        put(&mut out, b'K', |b| {
            b.put_u32(guard.pid);
            b.put_slice(&secret);
        });
        put(&mut out, b'Z', |b| b.put_u8(b'I'));
        side.output.extend(&out);
        Relay::new(Arc::clone(cx), gate(cx), side, connected.side, catalogs, names, cancelled).run().await
    }

    fn register(
        &self,
        cx: &Arc<ConnectionCx>,
        upstream: Option<(u32, Bytes)>,
        relay: mpsc::Sender<oneshot::Sender<Cancelled>>,
    ) -> Result<(KeyGuard, [u8; 4]), SessionError> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let mut random = [0; 8];
            aws_lc_rs::rand::fill(&mut random).map_err(|_| SessionError::Enforcer("no random numbers".into()))?;
            let [a, b, c, d, secret @ ..] = random;
            // As positive as a process id.
            let pid = u32::from_be_bytes([a & 0x7f, b, c, d]);
            if pid == 0 || keys.contains_key(&pid) {
                continue;
            }
            let session = Arc::clone(&cx.subject.session);
            keys.insert(pid, Key { secret, session, cx: Arc::clone(cx), upstream, relay });
            return Ok((KeyGuard { keys: Arc::clone(&self.keys), pid }, secret));
        }
    }

    /// Cancels a command of another connection of the same session: one that is held is withdrawn, one that runs is
    /// cancelled upstream. As with PostgreSQL, the client is told nothing.
    async fn cancel(&self, cx: &ConnectionCx, pid: u32, secret: &[u8]) {
        let found = {
            let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
            keys.get(&pid)
                .filter(|key| key.secret == secret && key.session == cx.subject.session)
                .map(|key| (Arc::clone(&key.cx), key.upstream.clone(), key.relay.clone()))
        };
        let Some((target, upstream, relay)) = found else { return };
        // A relay that does not answer has nothing that waits, or is over.
        let (asker, answer) = oneshot::channel();
        if relay.try_send(asker).is_ok()
            && let Ok(Ok(Cancelled::Held)) = tokio::time::timeout(Duration::from_secs(1), answer).await
        {
            return;
        }
        let Some((pid, secret)) = upstream else { return };
        let send = async {
            let (io, ..) = login::open(&*target.house.network, &target.upstream, &target.address).await?;
            let mut side = Side::new(io, BytesMut::new());
            let mut out = BytesMut::new();
            out.put_i32(i32::try_from(12 + secret.len()).unwrap_or(16));
            out.put_i32(80_877_102);
            out.put_u32(pid);
            out.put_slice(&secret);
            side.output.extend(&out);
            side.shutdown().await?;
            // The upstream closes once it has passed the request on.
            while side.fill().await? {
                side.input.clear();
            }
            Ok::<_, LoginError>(())
        };
        if let Ok(Err(error)) = tokio::time::timeout(Duration::from_secs(10), send).await {
            tracing::warn!(error = error.detail(), "a cancel request did not reach the upstream");
        }
    }
}

fn ended(cx: &ConnectionCx) -> SessionError {
    SessionError::Ended((*cx.ending.get().unwrap_or(&"terminated")).into())
}

fn parameters(out: &mut BytesMut, parameters: &BTreeMap<String, String>) {
    for (name, value) in parameters {
        put(out, b'S', |b| {
            put_cstr(b, name.as_bytes());
            put_cstr(b, value.as_bytes());
        });
    }
}

/// Packets before the login. On return `side` is the encrypted one, if TLS was negotiated.
async fn negotiate(slot: &mut Option<Side<BoxIo>>, cx: &ConnectionCx) -> Result<Wants, Refused> {
    let mut encrypted = false;
    let mut gss_refused = false;
    loop {
        let Some(side) = slot.as_mut() else { return Ok(Wants::Nothing) };
        let body = loop {
            match codec::cut_untagged(&mut side.input, cx.limits().login) {
                Ok(Some(body)) => break body,
                Ok(None) => {}
                Err(error) => return Err(Refused::client(deny::PROTOCOL, error.to_string())),
            }
            if !side.fill().await? {
                return Ok(Wants::Nothing);
            }
        };
        let first = First::read(&body).map_err(|error| Refused::client(deny::PROTOCOL, error.to_string()))?;
        match first {
            // Bytes behind the request would be read as if they had come encrypted (CVE-2021-23214).
            First::Ssl | First::GssEnc if !side.input.is_empty() => {
                return Err(Refused::client(deny::PROTOCOL, "bytes came before the encryption handshake"));
            }
            First::Ssl if encrypted => return Err(Refused::client(deny::PROTOCOL, "TLS was asked for twice")),
            First::Ssl if cx.upstream.client_tls == ClientTls::Refuse => {
                side.output.extend(b"N");
                side.flush().await?;
            }
            First::Ssl => {
                side.output.extend(b"S");
                side.flush().await?;
                let Some(side) = slot.take() else { return Ok(Wants::Nothing) };
                let names = leaf_names(cx);
                let accepted = cx.house.network.accept_tls(side.into_io(), &names).await.map_err(|error| Refused {
                    message: Message::fatal(deny::PROTOCOL, "portcullis: the TLS handshake failed"),
                    error: SessionError::Client(format!("TLS: {error}")),
                })?;
                *slot = Some(Side::new(accepted, BytesMut::new()));
                encrypted = true;
            }
            First::GssEnc if gss_refused || encrypted => {
                return Err(Refused::client(deny::PROTOCOL, "GSSAPI encryption was asked for out of order"));
            }
            First::GssEnc => {
                gss_refused = true;
                side.output.extend(b"N");
                side.flush().await?;
            }
            First::Cancel { pid, secret } => return Ok(Wants::Cancel { pid, secret }),
            First::Version { major } => {
                let why = format!("protocol version {major} is not supported; 3.0 is");
                return Err(Refused::client(deny::UNSUPPORTED, why));
            }
            First::Startup { .. } if !encrypted && cx.upstream.client_tls == ClientTls::Require => {
                return Err(Refused::client(deny::LOGIN, "the policy requires TLS; use sslmode=require or stricter"));
            }
            First::Startup { minor, parameters } => {
                let login = Login::check(parameters).map_err(|why| Refused::client(deny::LOGIN, why.to_string()))?;
                if minor > 0 || !login.unknown_options.is_empty() {
                    negotiate_version(side, &login.unknown_options);
                }
                return Ok(Wants::Login(login));
            }
        }
    }
}

fn negotiate_version(side: &mut Side<BoxIo>, unknown: &[String]) {
    let mut out = BytesMut::new();
    put(&mut out, b'v', |b| {
        b.put_i32(VERSION);
        b.put_i32(i32::try_from(unknown.len()).unwrap_or(0));
        for option in unknown {
            put_cstr(b, option.as_bytes());
        }
    });
    side.output.extend(&out);
}

/// Names that the client may have used for this upstream.
fn leaf_names(cx: &ConnectionCx) -> Vec<String> {
    let host = |address: &str| {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        host.trim_start_matches('[').trim_end_matches(']').to_owned()
    };
    let mut names: Vec<String> = cx.upstream.addresses.iter().map(|a| host(a)).collect();
    names.push("localhost".into());
    names.sort();
    names.dedup();
    names
}

/// Judges and records the connect.
async fn may_connect(cx: &Arc<ConnectionCx>, login: &Login) -> Result<(), Refused> {
    let database = format!("{}@{}", login.user, login.database).into();
    session::may_connect(cx, Some(database)).await.map_err(|refusal| Refused {
        message: Message::fatal(deny::LOGIN, format!("portcullis: {}", refusal.message)),
        error: SessionError::Ended(format!("refused by rule {}", refusal.rule)),
    })
}

/// Resolves when the client goes away while it should wait. A client that talks before its login is answered is at fault.
async fn hangs_up(side: &mut Side<BoxIo>) -> Refused {
    match side.fill().await {
        Ok(true) => Refused::client(deny::PROTOCOL, "data came before the login was answered"),
        Ok(false) => Refused::client(deny::LOST, "the client went away"),
        Err(error) => error.into(),
    }
}

fn refuse_login(cx: &ConnectionCx, error: &LoginError) -> Refused {
    tracing::warn!(upstream = %cx.upstream.name, connection = cx.id, error = error.detail(), "login upstream failed");
    let (code, hint) = match error {
        LoginError::Credential(_) => (deny::LOGIN, Some("The host's operator finds the reason in the daemon's log.")),
        // The database does not exist, too many connections, shutting down: what the server says is the client's to know.
        LoginError::Server { code, .. } => (server_code(code), None),
        _ => (deny::UNREACHABLE, None),
    };
    let mut message = Message::fatal(code, format!("portcullis: {error}"));
    message.hint = hint.map(Into::into);
    Refused { message, error: SessionError::Upstream(error.to_string()) }
}

fn server_code(code: &str) -> &'static str {
    match code {
        "3D000" => "3D000",
        "53300" => "53300",
        "57P03" => "57P03",
        "22023" => "22023",
        _ => deny::UNREACHABLE,
    }
}
