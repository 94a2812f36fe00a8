//! Placeholders: texts `PORTCULLIS_SECRET_NAME` in a client's request, in whose place its upstream is sent a secret.
//!
//! A placeholder stands in a value of a header field (within the base64 of `Basic`, too), of the query, or of a body that
//! is JSON, a form or plain text. What is judged, shown to people and recorded has the placeholder; the secret goes in
//! afterwards, in the encoding of its place. One that belongs to another upstream, or stands where it may not, refuses the
//! request: somebody may be carrying it out. So does one in the path, in a name, or in a text with escapes of JSON, where
//! two readers may not agree on it. Bodies that are not read whole are watched for placeholders as they are written: what
//! comes before one has been sent by then.
//!
//! A name is all the letters, digits and `_` that follow. What is encoded twice, compressed or cut in two is no
//! placeholder: it goes upstream as it is, and no secret with it. Failure mode: refusal.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    ops::Range,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use data_encoding::BASE64;
use http::{HeaderMap, HeaderValue, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use memchr::memmem;
use secrecy::{ExposeSecret, SecretString};

use super::{
    body::BodyError,
    credential::Complete,
    json::json,
    request::{self, Request, decoded_bytes},
    upstream::Sends,
};
use crate::{
    action::Body as Known,
    policy::{PLACEHOLDER, Place, Placeholder},
    record::EventBody,
    session::ConnectionCx,
};

/// The rule of refusals, for the record.
pub const RULE: &str = "http placeholder";

/// Names of the placeholders that a request has.
pub type Used = BTreeSet<Arc<str>>;

/// Secrets by name.
pub type Values = HashMap<Arc<str>, SecretString>;

/// Why a request is refused. Shown to the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misplaced {
    /// It is another's.
    #[error("the placeholder {PLACEHOLDER}{0} belongs to another upstream of the policy")]
    Elsewhere(String),
    /// It is nobody's.
    #[error("the policy has no placeholder {PLACEHOLDER}{0}")]
    Unknown(String),
    /// Not there.
    #[error("the policy does not have {PLACEHOLDER}{0} stand in {1}")]
    Place(String, String),
    /// In no request.
    #[error("a placeholder stands in a value of a header field, the query or a body, and this request has one in {0}")]
    Nowhere(&'static str),
    /// The body is none of those that can be written anew.
    #[error(
        "a placeholder stands in a body that is JSON, a form or plain text, and says so, whole and with no escape in it"
    )]
    Body,
    /// The secret has characters that its place does not take.
    #[error("a secret cannot stand in place of its placeholder in a header field")]
    Value,
}

/// Where a placeholder was found.
#[derive(Clone, Copy)]
enum At<'a> {
    Header(&'a str),
    Query(&'a str),
    Body,
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "the header field `{name}`"),
            Self::Query(name) => write!(f, "the query's `{name}`"),
            Self::Body => f.write_str("the body"),
        }
    }
}

/// What takes a placeholder's place.
type Resolve<'a> = dyn FnMut(&str, At<'_>) -> Result<SecretString, Misplaced> + 'a;

/// Looks for placeholders in a request, and says which ones it has.
///
/// # Errors
/// One must not be there.
pub fn check(cx: &ConnectionCx, request: &Request, body: Option<&Bytes>) -> Result<Used, Misplaced> {
    let mut used = Used::new();
    if !cx.has_placeholders() {
        return Ok(used);
    }
    let mut resolve = |name: &str, at: At<'_>| {
        let Some(placeholder) = cx.upstream.placeholders.iter().find(|known| *known.name == *name) else {
            let name = name.to_owned();
            return Err(if cx.is_placeholder(&name) { Misplaced::Elsewhere(name) } else { Misplaced::Unknown(name) });
        };
        if !may_stand(placeholder, at) {
            return Err(Misplaced::Place(name.to_owned(), at.to_string()));
        }
        used.insert(Arc::clone(&placeholder.name));
        // Only whether it may be there is asked now.
        Ok(SecretString::from(""))
    };
    rewrite_target(&request.target, &mut resolve)?;
    rewrite_fields(&mut request.headers.clone(), &mut resolve)?;
    if let Some(body) = body {
        rewrite_body(&request.headers, body, &mut resolve)?;
    }
    Ok(used)
}

fn may_stand(placeholder: &Placeholder, at: At<'_>) -> bool {
    placeholder.places.iter().any(|place| match (place, at) {
        (Place::Header(None), At::Header(_)) | (Place::Query(None), At::Query(_)) | (Place::Body, At::Body) => true,
        (Place::Header(Some(only)), At::Header(name)) | (Place::Query(Some(only)), At::Query(name)) => only == name,
        _ => false,
    })
}

/// Puts secrets in place of the placeholders that [`check`] found.
///
/// # Errors
/// A secret cannot stand there.
pub fn fill(request: Complete, values: &Values) -> Result<Complete, Misplaced> {
    let Complete { mut headers, target, body } = request;
    let mut resolve = |name: &str, _: At<'_>| values.get(name).cloned().ok_or(Misplaced::Unknown(name.to_owned()));
    let target = rewrite_target(&target, &mut resolve)?;
    // Its type is read before its fields change.
    let body = match body {
        Sends::All(bytes) => Sends::All(rewrite_body(&headers, &bytes, &mut resolve)?),
        other => other,
    };
    rewrite_fields(&mut headers, &mut resolve)?;
    Ok(Complete { headers, target, body })
}

/// Whether a body of this kind is read whole, so that its placeholders can be filled in.
pub fn fills_body(cx: &ConnectionCx, headers: &HeaderMap) -> bool {
    let wanted = cx.upstream.placeholders.iter().any(|placeholder| placeholder.places.contains(&Place::Body));
    wanted && Kind::of(headers) != Kind::Other
}

/// How a body is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Json,
    Form,
    Text,
    Other,
}

impl Kind {
    fn of(headers: &HeaderMap) -> Self {
        if headers.contains_key(header::CONTENT_ENCODING) {
            return Self::Other;
        }
        let mut kinds = headers.get_all(header::CONTENT_TYPE).iter();
        let (first, second) = (kinds.next(), kinds.next());
        let said = first.filter(|_| second.is_none()).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let kind = said.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match &*kind {
            "application/json" | "text/json" => Self::Json,
            kind if kind.ends_with("+json") => Self::Json,
            "application/x-www-form-urlencoded" => Self::Form,
            "text/plain" => Self::Text,
            _ => Self::Other,
        }
    }
}

/// Whether there is a placeholder's beginning.
fn has(text: &[u8]) -> bool {
    memmem::find(text, PLACEHOLDER.as_bytes()).is_some()
}

/// Every placeholder of a text.
fn find(text: &[u8]) -> Vec<(Range<usize>, String)> {
    let mut found = Vec::new();
    for start in memmem::find_iter(text, PLACEHOLDER.as_bytes()) {
        let from = start + PLACEHOLDER.len();
        let rest = text.get(from..).unwrap_or_default();
        let length = rest.iter().take_while(|b| b.is_ascii_alphanumeric() || **b == b'_').count();
        let name = String::from_utf8_lossy(rest.get(..length).unwrap_or_default()).into_owned();
        found.push((start..from + length, name));
    }
    // A name may hold another's beginning: it is one name then.
    let mut end = 0;
    found.retain(|(range, _)| {
        let stays = range.start >= end;
        end = end.max(range.end);
        stays
    });
    found
}

/// Replaces each placeholder of a text. `write` puts a secret in the form of its place.
fn replace(
    text: &[u8],
    at: At<'_>,
    resolve: &mut Resolve<'_>,
    write: impl Fn(&str, &mut Vec<u8>),
) -> Result<Vec<u8>, Misplaced> {
    let (mut out, mut end) = (Vec::with_capacity(text.len()), 0);
    for (range, name) in find(text) {
        let value = resolve(&name, at)?;
        out.extend_from_slice(text.get(end..range.start).unwrap_or_default());
        write(value.expose_secret(), &mut out);
        end = range.end;
    }
    out.extend_from_slice(text.get(end..).unwrap_or_default());
    Ok(out)
}

fn plain(value: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(value.as_bytes());
}

fn rewrite_target(target: &str, resolve: &mut Resolve<'_>) -> Result<String, Misplaced> {
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    // A `+` of a path is one.
    if has(&decoded_bytes(path)) {
        return Err(Misplaced::Nowhere("its path"));
    }
    let Some(query) = query else { return Ok(target.to_owned()) };
    let query = rewrite_pairs(query, Pairs::Query, resolve)?;
    Ok(format!("{path}?{query}"))
}

/// Whose names and values.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pairs {
    Query,
    Form,
}

/// Names and values of a query or a form, each decoded once; a value with a placeholder is written anew.
fn rewrite_pairs(text: &str, of: Pairs, resolve: &mut Resolve<'_>) -> Result<String, Misplaced> {
    let mut out = String::with_capacity(text.len());
    for (n, pair) in text.split('&').enumerate() {
        if n > 0 {
            out.push('&');
        }
        let Some((name, value)) = pair.split_once('=').filter(|(name, _)| !has(&decoded_bytes(name))) else {
            if has(&decoded_bytes(pair)) {
                return Err(Misplaced::Nowhere(match of {
                    Pairs::Query => "the name of a parameter",
                    Pairs::Form => "the name of a form's field",
                }));
            }
            out.push_str(pair);
            continue;
        };
        out.push_str(name);
        out.push('=');
        let decoded = decoded_bytes(value);
        if !has(&decoded) {
            out.push_str(value);
            continue;
        }
        let name = request::decoded(name);
        let at = if of == Pairs::Query { At::Query(&name) } else { At::Body };
        for byte in replace(&decoded, at, resolve, plain)? {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
                byte => out.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    Ok(out)
}

fn rewrite_fields(headers: &mut HeaderMap, resolve: &mut Resolve<'_>) -> Result<(), Misplaced> {
    for (name, value) in headers.iter_mut() {
        let at = At::Header(name.as_str());
        let basic = basic(value.as_bytes()).filter(|pair| *name == header::AUTHORIZATION && has(pair));
        let text = match &basic {
            Some(pair) => {
                let pair = replace(pair, at, resolve, plain)?;
                format!("Basic {}", BASE64.encode(&pair)).into_bytes()
            }
            None if has(value.as_bytes()) && *name == header::HOST => return Err(Misplaced::Nowhere("its host")),
            None if has(value.as_bytes()) => replace(value.as_bytes(), at, resolve, plain)?,
            None => continue,
        };
        let mut filled = HeaderValue::from_bytes(&text).map_err(|_| Misplaced::Value)?;
        filled.set_sensitive(true);
        *value = filled;
    }
    Ok(())
}

/// The user and password of `Basic` (RFC 7617).
fn basic(value: &[u8]) -> Option<Vec<u8>> {
    let (scheme, rest) = value.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    BASE64.decode(rest.trim_ascii()).ok()
}

fn rewrite_body(headers: &HeaderMap, body: &Bytes, resolve: &mut Resolve<'_>) -> Result<Bytes, Misplaced> {
    let kind = Kind::of(headers);
    match kind {
        Kind::Json => rewrite_json(body, resolve),
        Kind::Form => match std::str::from_utf8(body) {
            Ok(text) => Ok(rewrite_pairs(text, Pairs::Form, resolve)?.into()),
            Err(_) if has(body) => Err(Misplaced::Body),
            Err(_) => Ok(body.clone()),
        },
        Kind::Text if has(body) => Ok(replace(body, At::Body, resolve, plain)?.into()),
        Kind::Other if has(body) => {
            // Whose it is comes first.
            replace(body, At::Body, resolve, plain)?;
            Err(Misplaced::Body)
        }
        Kind::Text | Kind::Other => Ok(body.clone()),
    }
}

fn rewrite_json(body: &Bytes, resolve: &mut Resolve<'_>) -> Result<Bytes, Misplaced> {
    // An escape that can stand for a letter is one of four digits.
    let escapes = memmem::find(body, b"\\u00").is_some();
    if !has(body) && !escapes {
        return Ok(body.clone());
    }
    let Known::Json(value) = json(body) else {
        replace(body, At::Body, resolve, plain)?;
        return if has(body) { Err(Misplaced::Body) } else { Ok(body.clone()) };
    };
    let mut read = Vec::new();
    collect(&value, &mut read)?;
    for name in &read {
        resolve(name, At::Body)?;
    }
    if read.len() != find(body).len() {
        return Err(Misplaced::Body);
    }
    let written = |value: &str, out: &mut Vec<u8>| {
        let text = serde_json::to_string(value).unwrap_or_default();
        out.extend_from_slice(text.trim_start_matches('"').strip_suffix('"').unwrap_or_default().as_bytes());
    };
    Ok(replace(body, At::Body, resolve, written)?.into())
}

/// Names of all placeholders in the texts of a JSON value.
fn collect(value: &serde_json::Value, names: &mut Vec<String>) -> Result<(), Misplaced> {
    match value {
        serde_json::Value::String(text) => names.extend(find(text.as_bytes()).into_iter().map(|(_, name)| name)),
        serde_json::Value::Array(items) => items.iter().try_for_each(|item| collect(item, names))?,
        serde_json::Value::Object(members) => {
            for (name, value) in members {
                if has(name.as_bytes()) {
                    return Err(Misplaced::Nowhere("a name of its JSON"));
                }
                collect(value, names)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// A body that is not read whole. It ends where a placeholder begins.
pub struct Watched {
    inner: Incoming,
    /// What may be a placeholder's beginning.
    held: BytesMut,
    over: bool,
    found: Arc<AtomicBool>,
    cx: Arc<ConnectionCx>,
}

impl Watched {
    /// Watches a body. `found` tells whether it had one.
    pub fn new(inner: Incoming, cx: &Arc<ConnectionCx>, found: &Arc<AtomicBool>) -> Self {
        Self { inner, held: BytesMut::new(), over: false, found: Arc::clone(found), cx: Arc::clone(cx) }
    }

    /// Takes the next piece, and gives back what no placeholder begins in; `None` where one is.
    fn pass(held: &mut BytesMut, piece: &[u8]) -> Option<Bytes> {
        held.extend_from_slice(piece);
        if has(held) {
            return None;
        }
        let sign = PLACEHOLDER.as_bytes();
        let most = held.len().min(sign.len() - 1);
        let kept = (1..=most).rev().find(|length| held.ends_with(sign.get(..*length).unwrap_or_default())).unwrap_or(0);
        Some(held.split_to(held.len() - kept).freeze())
    }

    fn stop(&mut self) -> BodyError {
        self.over = true;
        self.found.store(true, Ordering::Relaxed);
        let what =
            format!("a placeholder in a body toward `{}` that is not read whole: cut off", self.cx.upstream.name);
        // A record that fails refuses all that follows.
        let _ = self.cx.record(EventBody::Refused { what, process: self.cx.subject.process.clone() });
        Misplaced::Body.into()
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        while !this.over {
            match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    // Trailers are of no rule's knowledge.
                    let Ok(piece) = frame.into_data() else { continue };
                    match Self::pass(&mut this.held, &piece) {
                        None => return Poll::Ready(Some(Err(this.stop()))),
                        Some(piece) if piece.is_empty() => {}
                        Some(piece) => return Poll::Ready(Some(Ok(Frame::data(piece)))),
                    }
                }
                Some(Err(error)) => {
                    this.over = true;
                    return Poll::Ready(Some(Err(error.into())));
                }
                None => {
                    this.over = true;
                    let rest = std::mem::take(&mut this.held).freeze();
                    if !rest.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(rest))));
                    }
                }
            }
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.over || (self.held.is_empty() && self.inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        // What is held is still to be sent.
        let (inner, held) = (self.inner.size_hint(), self.held.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower() + held);
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + held);
        }
        hint
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
