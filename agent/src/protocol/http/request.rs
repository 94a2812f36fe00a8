//! What a request would do: its verbs, targets and facts, and the head that is judged, shown and sent.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use smallvec::SmallVec;

use super::{
    coding,
    json::json,
    path::{self, PathError},
    sigv4,
    websocket::{self, Offer},
};
use crate::{
    action::{Action, Body, Clarity, Facts, Fields, HttpFacts, LlmFacts, Part, ProtocolId, Target, Verb},
    policy::{CredentialRef, CredentialSource, Inject, PLACEHOLDER, Route},
    session::{Command, Lasting, Shape, Standing},
};

/// Fields of one connection, not of a request (RFC 9110 section 7.6.1), and what would change how it is framed.
const HOP_BY_HOP: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];
/// Fields by which servers take a request for one of another method.
const OVERRIDES: &[&str] = &["x-http-method-override", "x-http-method", "x-method-override"];
/// Fields in which clients send a credential. Where one is put in, those of the agent are taken out.
const CREDENTIALS: &[&str] = &["authorization", "x-api-key", "api-key", "x-goog-api-key", "x-auth-token"];
/// Fields by which servers take a request for one of another path or host.
const REROUTES: &[&str] =
    &["x-original-url", "x-rewrite-url", "x-forwarded-host", "forwarded", "x-host", "x-forwarded-prefix"];
/// Most parameters of a query that are facts.
const PARAMETERS_MAX: usize = 256;

/// Why a request cannot be judged. Shown to the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The path has no one meaning.
    #[error(transparent)]
    Path(#[from] PathError),
    /// It would leave HTTP.
    #[error("an upgrade to another protocol than WebSocket is not spoken here")]
    Upgrade,
    /// It asks for WebSocket, and not as it must.
    #[error("{0}")]
    Handshake(&'static str),
    /// It asks for another version of WebSocket, or for none.
    #[error("WebSocket is spoken in version 13 here")]
    WebSocketVersion,
    /// It is for another host than the connection.
    #[error("the request names a host that this connection is not for")]
    Host,
    /// It would be read as one for another path or host.
    #[error("the request has a field that sends it to another path or host: {0}")]
    Reroutes(&'static str),
    /// Its body is signed by the client, piece by piece.
    #[error(
        "the body is signed piece by piece (aws-chunked), and requests are signed anew here: send it whole, in boto3 and \
         the AWS CLI with AWS_REQUEST_CHECKSUM_CALCULATION=when_required"
    )]
    Pieces,
}

/// A request, as it is judged and sent.
#[derive(Clone, Debug)]
pub struct Request {
    /// As sent by the client.
    pub method: Method,
    /// Path and query in the form in which they are sent.
    pub target: String,
    /// Fields that are sent, but for a credential.
    pub headers: HeaderMap,
    /// Name or address that it is for, in lower case, without a port.
    pub host: String,
    protocol: ProtocolId,
    /// What it offers, if it would go on as WebSocket.
    pub offer: Option<Offer>,
    /// Whether the client says that it reads interim responses: `Expect: 100-continue` of HTTP/1.1.
    pub reads_interim: bool,
    facts: Arc<HttpFacts>,
    parts: SmallVec<[Part; 2]>,
}

/// Whether an Upgrade field offers nothing but HTTP/2 in the clear, as Java's client does by itself. It is declined by
/// going on in HTTP/1.1 (RFC 9110, section 7.8; RFC 9113, section 3.1, has no such upgrade any more). Its fields go no
/// further.
pub fn is_h2c(offer: &http::HeaderValue) -> bool {
    offer.to_str().is_ok_and(|offer| offer.split(',').all(|one| one.trim().eq_ignore_ascii_case("h2c")))
}

/// Name or address of a Host field or of an address, in lower case, without port, brackets and the dot at its end.
pub fn bare_host(authority: &str) -> String {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    };
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

impl Request {
    /// Reads the head of a request that the guard let pass.
    ///
    /// # Errors
    /// It cannot be judged.
    pub fn read(
        head: &http::request::Parts,
        credential: &CredentialRef,
        routes: &[Route],
    ) -> Result<Self, RequestError> {
        let fields = &head.headers;
        let offer = websocket::offered(head)?;
        let mut names = fields.keys().map(HeaderName::as_str);
        if let Some(name) = names.find_map(|name| REROUTES.iter().find(|reroutes| **reroutes == name)) {
            return Err(RequestError::Reroutes(name));
        }
        if matches!(credential.inject, Inject::SigV4(_)) && sigv4::is_streaming(fields) {
            return Err(RequestError::Pieces);
        }
        let authority = fields.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let (path, query) = (head.uri.path(), head.uri.query());
        let readings = if path == "*" { smallvec::smallvec!["*".to_owned()] } else { path::readings(path)? };
        let query = query.map(|query| strip_parameter(query, credential));
        let target = match query.as_deref() {
            Some(query) if !query.is_empty() => format!("{}?{query}", readings[0]),
            _ => readings[0].clone(),
        };
        let parameters = parameters(query.as_deref().unwrap_or_default());
        let mut methods: SmallVec<[Cow<'_, str>; 2]> = smallvec::smallvec![head.method.as_str().into()];
        let named = fields.iter().filter(|(name, _)| OVERRIDES.contains(&name.as_str()));
        let named = named.filter_map(|(_, value)| value.to_str().ok());
        let asked = parameters.get("_method").cloned().flatten();
        for method in named.map(str::to_owned).chain(asked) {
            let method = method.trim().to_ascii_uppercase();
            if !method.is_empty() && !methods.iter().any(|known| *known == method) {
                methods.push(method.into());
            }
        }
        let mut parts = SmallVec::new();
        for method in &methods {
            for reading in &readings {
                let target = [method, " ", reading].concat();
                let usual = if path == "*" { Verb::Read } else { verb(method) };
                parts.push((Route::verb(routes, &target).unwrap_or(usual), Target::new(target)));
            }
        }
        // Besides what its GET does: whoever lets all be read has not let a channel be opened.
        for reading in readings.iter().filter(|_| offer.is_some()) {
            let target = format!("{} {reading}", websocket::METHOD);
            parts.push((Route::verb(routes, &target).unwrap_or(Verb::Execute), Target::new(target)));
        }
        let mut headers = forwarded(fields, credential);
        if offer.is_some() {
            websocket::ask(&mut headers);
        }
        let facts = HttpFacts {
            method: head.method.as_str().to_owned(),
            host: bare_host(authority),
            path: readings[0].clone(),
            query: parameters,
            headers: shown(&headers),
            upgrade: if offer.is_some() { "websocket".to_owned() } else { String::new() },
            body: Body::None,
            llm: None,
        };
        Ok(Self {
            method: head.method.clone(),
            target,
            headers,
            host: facts.host.clone(),
            protocol: ProtocolId::Http,
            offer,
            reads_interim: head.version == http::Version::HTTP_11
                && fields
                    .get(header::EXPECT)
                    .is_some_and(|expects| expects.as_bytes().eq_ignore_ascii_case(b"100-continue")),
            facts: Arc::new(facts),
            parts,
        })
    }

    /// Says what is known of its body.
    pub fn set_body(&mut self, body: Body) {
        Arc::make_mut(&mut self.facts).body = body;
    }

    /// What it would do.
    pub fn action(&self) -> Action {
        let facts = Facts::Http(Arc::clone(&self.facts));
        Action { protocol: self.protocol, parts: self.parts.clone(), clarity: Clarity::Parsed, facts }
    }

    /// Whether it is of a protocol that is spoken within HTTP.
    pub fn spoken_as(&mut self, protocol: ProtocolId) {
        self.protocol = protocol;
    }

    /// Every `METHOD /path` that servers may read it as.
    pub fn readings(&self) -> impl ExactSizeIterator<Item = &str> {
        self.parts.iter().map(|(_, target)| target.as_str())
    }

    /// Its body, once read, and if it is JSON of one meaning.
    pub fn body_json(&self) -> Option<&serde_json::Value> {
        match &self.facts.body {
            Body::Json(value) => Some(value),
            _ => None,
        }
    }

    /// A header field as rules see it.
    pub fn header(&self, name: &str) -> Option<String> {
        self.facts.headers.by_name().remove(name)
    }

    /// Judges it as what it asks of a model, not by its method and path.
    pub fn judge_as(&mut self, verb: Verb, target: Target, llm: LlmFacts) {
        self.parts = smallvec::smallvec![(verb, target)];
        Arc::make_mut(&mut self.facts).llm = Some(llm);
    }

    /// Has the response sent in no coding.
    pub fn ask_plain(&mut self) {
        self.headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }

    /// The head in the bytes in which it is judged: what is sent, less the credential.
    pub fn head(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.pieces().map(<[u8]>::len).sum());
        for piece in self.pieces() {
            out.extend_from_slice(piece);
        }
        out.into()
    }

    /// Whether bytes begin with [`Request::head`].
    pub fn begins(&self, bytes: &[u8]) -> bool {
        let rest = self.pieces().try_fold(bytes, |rest, piece| rest.strip_prefix(piece));
        rest.is_some()
    }

    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let line = [self.method.as_str().as_bytes(), b" ", self.target.as_bytes(), b" HTTP/1.1\r\n"];
        let field = |(name, value)| [HeaderName::as_str(name).as_bytes(), b": ", HeaderValue::as_bytes(value), b"\r\n"];
        let fields = self.headers.iter().flat_map(field);
        line.into_iter().chain(fields).chain([&b"\r\n"[..]])
    }

    /// The command for the gate. `body` is all of the body where it was read before it is judged.
    pub fn command(&self, body: Option<&Bytes>) -> Command {
        let head = self.head();
        let bytes = match body {
            Some(body) if !body.is_empty() => [&head[..], &body[..]].concat().into(),
            _ => head,
        };
        Command {
            action: self.action(),
            hash: *blake3::hash(&bytes).as_bytes(),
            text: self.text(body).into(),
            shape: Shape::OfRequest,
            bytes,
            standing: Standing::New,
            lasting: Lasting::AtOnce,
        }
    }

    /// For people: what is sent, without what a client's own credential says.
    fn text(&self, body: Option<&Bytes>) -> String {
        let fields: usize = self.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 3).sum();
        let mut out = String::with_capacity(self.target.len() + fields + body.map_or(0, Bytes::len) + 32);
        for piece in [self.method.as_str(), " ", &self.target, "\n"] {
            out.push_str(piece);
        }
        for (name, value) in &self.headers {
            let hidden = is_credential(name);
            let value = if hidden { "[not recorded]".into() } else { String::from_utf8_lossy(value.as_bytes()) };
            for piece in [name.as_str(), ": ", &value, "\n"] {
                out.push_str(piece);
            }
        }
        if let Some(body) = body.filter(|body| !body.is_empty()) {
            out.push('\n');
            out.push_str(&String::from_utf8_lossy(body));
            return out;
        }
        out.truncate(out.trim_end().len());
        out
    }
}

/// Whether a field has a credential of the agent's own. A placeholder is one of the policy's, which `placeholder` judges.
fn is_own(name: &HeaderName, value: &HeaderValue) -> bool {
    let holds_place = || memchr::memmem::find(value.as_bytes(), PLACEHOLDER.as_bytes()).is_some();
    *name == header::AUTHORIZATION || (CREDENTIALS.contains(&name.as_str()) && !holds_place())
}

fn is_credential(name: &HeaderName) -> bool {
    matches!(*name, header::COOKIE | header::PROXY_AUTHORIZATION) || CREDENTIALS.contains(&name.as_str())
}

/// What a method does, as far as RFC 9110 section 9 says. POST may do anything that a write may.
fn verb(method: &str) -> Verb {
    match method {
        "GET" | "HEAD" | "OPTIONS" => Verb::Read,
        "POST" | "PUT" | "PATCH" => Verb::Write,
        "DELETE" => Verb::Delete,
        _ => Verb::Unknown,
    }
}

/// The fields to send: none of the connection, none where the credential goes, none that would let a response come in a
/// form that cannot be looked into.
fn forwarded(fields: &HeaderMap, credential: &CredentialRef) -> HeaderMap {
    let listed: HashSet<String> = fields
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    let injects = credential.source != CredentialSource::None;
    // With room for what is put in here, and the credential.
    let mut out = HeaderMap::with_capacity(fields.len() + 2);
    for (name, value) in fields {
        let text = name.as_str();
        // A client cannot have fields taken out that a rule was told of, nor the host.
        let hop = HOP_BY_HOP.contains(&text) || (listed.contains(text) && !matches!(text, "host" | "content-length"));
        let taken = match &credential.inject {
            Inject::Header(other) if injects && text == other => true,
            Inject::SigV4(_) if injects && sigv4::OWN.contains(&text) => true,
            _ => injects && is_own(name, value),
        };
        let ours = matches!(*name, header::ACCEPT_ENCODING | header::RANGE | header::IF_RANGE | header::EXPECT)
            || *name == header::PROXY_AUTHORIZATION
            || text == "content-length";
        if hop || taken || ours {
            continue;
        }
        match &credential.inject {
            Inject::Cookie(cookie) if injects && *name == header::COOKIE => {
                if let Some(rest) = without_cookie(value, cookie) {
                    out.append(name.clone(), rest);
                }
            }
            _ => {
                out.append(name.clone(), value.clone());
            }
        }
    }
    // Messages of gRPC come unencoded then.
    out.remove("grpc-accept-encoding");
    out.insert(header::ACCEPT_ENCODING, coding::accepted(fields));
    out
}

/// The cookies of a field but one; `None` if none is left.
fn without_cookie(value: &HeaderValue, cookie: &str) -> Option<HeaderValue> {
    let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
    let kept: Vec<&str> = text
        .split(';')
        .map(str::trim)
        .filter(|pair| !pair.is_empty() && pair.split('=').next().is_some_and(|name| name.trim() != cookie))
        .collect();
    if kept.is_empty() { None } else { HeaderValue::from_str(&kept.join("; ")).ok() }
}

/// Takes the parameters out in which the credential goes.
fn strip_parameter(query: &str, credential: &CredentialRef) -> String {
    if credential.source == CredentialSource::None {
        return query.to_owned();
    }
    let ours = |name: &str| match &credential.inject {
        Inject::Query(own) => name == own,
        Inject::SigV4(_) => sigv4::OWN.iter().any(|own| name.eq_ignore_ascii_case(own)),
        Inject::Bearer | Inject::Basic | Inject::Header(_) | Inject::Cookie(_) => false,
    };
    let stays = |pair: &&str| !ours(&decoded(pair.split('=').next().unwrap_or_default()));
    query.split('&').filter(stays).collect::<Vec<_>>().join("&")
}

/// Parameters of a query; one that stands there twice has no one value.
fn parameters(query: &str) -> BTreeMap<String, Option<String>> {
    let mut found = BTreeMap::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()).take(PARAMETERS_MAX) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = Some(decoded(value));
        found.entry(decoded(name)).and_modify(|value| *value = None).or_insert(value);
    }
    found
}

/// Decodes `application/x-www-form-urlencoded` (URL Standard section 5.1).
pub fn decoded(text: &str) -> String {
    String::from_utf8_lossy(&decoded_bytes(text)).into_owned()
}

/// The same of what may be no text.
pub fn decoded_bytes(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let hex = |at: usize| bytes.get(at).and_then(|b| char::from(*b).to_digit(16));
        match (bytes[at], hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push(u8::try_from(high * 16 + low).unwrap_or_default());
                at += 3;
                continue;
            }
            (b'+', ..) => out.push(b' '),
            (byte, ..) => out.push(byte),
        }
        at += 1;
    }
    out
}

/// Fields for rules.
fn shown(headers: &HeaderMap) -> Fields {
    let bytes = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    let mut out = Fields::with_capacity(headers.len(), bytes);
    for (name, value) in headers.iter().filter(|(name, _)| !is_credential(name)) {
        out.push(name.as_str(), &String::from_utf8_lossy(value.as_bytes()));
    }
    out
}

/// What a line `METHOD /path` of a decision case or a question would do.
pub fn classify(line: &str, routes: &[Route]) -> Action {
    let request = request_of(line, routes);
    request.map_or_else(|| Action::opaque(ProtocolId::Http, Target::new("http:opaque")), |request| request.action())
}

/// The request of such a line, which header fields may follow and, after an empty line, a body.
pub fn request_of(line: &str, routes: &[Route]) -> Option<Request> {
    let (line, body) = line.split_once("\n\n").unwrap_or((line, ""));
    let mut lines = line.lines();
    let (method, target) = lines.next()?.trim().split_once(' ')?;
    let upgrades = method == websocket::METHOD;
    let mut head = http::Request::builder().method(if upgrades { "GET" } else { method }).uri(target.trim());
    if upgrades {
        let fields =
            [("connection", "upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", websocket::VERSION)];
        head = fields.into_iter().fold(head, |head, (name, value)| head.header(name, value));
        head = head.header("sec-websocket-key", data_encoding::BASE64.encode(&[0; 16]));
    }
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        head = head.header(name.trim(), value.trim());
    }
    let none = CredentialRef::plain("".into(), CredentialSource::None);
    let (mut parts, ()) = head.body(()).ok()?.into_parts();
    if let Some(host) = parts.uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok()) {
        parts.headers.insert(header::HOST, host);
    }
    let mut request = Request::read(&parts, &none, routes).ok()?;
    request.set_body(json(body.as_bytes()));
    Some(request)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
