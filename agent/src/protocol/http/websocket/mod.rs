//! WebSocket (RFC 6455): the upgrade of a request of HTTP/1.1, and the messages that follow.
//!
//! The upgrade is judged as its GET and, besides, as `execute WEBSOCKET /path` (a route may name another verb): a rule that
//! lets everything be read opens no channel. Extensions are taken out of the offer, so that frames can be looked into.
//! Frames are read strictly ([`frames`]), messages are put together and masked as bodies are ([`relay`]), and each is
//! recorded before it is sent on, as one frame. Pings are answered here and not passed on: what they carry nobody would see.
//!
//! Failure mode: what breaks the protocol, cannot be looked into or cannot be recorded closes both sides, with a code that
//! says why (RFC 6455 section 7.4.1), and is on record. Not spoken: extensions, and WebSocket over HTTP/2 (RFC 8441).

pub mod frames;
mod mask;
mod relay;

pub use relay::Channel;

use aws_lc_rs::digest;
use data_encoding::BASE64;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header, request::Parts};

use super::request::{self, RequestError};

/// What is hashed with a client's key (RFC 6455 section 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// The method of targets that are judged for an upgrade.
pub const METHOD: &str = "WEBSOCKET";
/// The version that is spoken.
pub const VERSION: &str = "13";

/// What a client offers.
#[derive(Clone, Debug)]
pub struct Offer {
    /// What the other side must answer to the client's key.
    accept: HeaderValue,
    protocols: Vec<String>,
}

/// Values of a field that is a list, or stands there several times.
fn items<'a>(fields: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    let all = fields.get_all(name).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
    all.map(<[u8]>::trim_ascii).filter(|item| !item.is_empty())
}

fn lists(fields: &HeaderMap, name: &HeaderName, word: &[u8]) -> bool {
    items(fields, name).any(|item| item.eq_ignore_ascii_case(word))
}

/// The value of a field that stands there once.
fn once<'a>(fields: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut all = fields.get_all(name).iter();
    all.next().filter(|_| all.next().is_none())
}

/// What a request offers, if it asks for WebSocket (RFC 6455 section 4.2.1).
///
/// # Errors
/// It asks for something else, or not as it must.
pub fn offered(head: &Parts) -> Result<Option<Offer>, RequestError> {
    let fields = &head.headers;
    if head.method.as_str() == METHOD {
        return Err(RequestError::Handshake("WEBSOCKET is how policies name an upgrade, and no method of a request"));
    }
    let mut offers = fields.get_all(header::UPGRADE).iter().peekable();
    if offers.peek().is_some() && offers.all(request::is_h2c) {
        return Ok(None);
    }
    if fields.contains_key("http2-settings") {
        return Err(RequestError::Upgrade);
    }
    if !fields.contains_key(header::UPGRADE) {
        return Ok(None);
    }
    let asked = once(fields, &header::UPGRADE).filter(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    if asked.is_none() {
        return Err(RequestError::Upgrade);
    }
    if head.version != Version::HTTP_11 || head.method != Method::GET {
        return Err(RequestError::Handshake("WebSocket begins with a GET of HTTP/1.1"));
    }
    if !lists(fields, &header::CONNECTION, b"upgrade") {
        return Err(RequestError::Handshake("the Connection field of an upgrade does not name `upgrade`"));
    }
    let length = fields.get(header::CONTENT_LENGTH).is_none_or(|length| length.as_bytes() == b"0");
    if !length || fields.contains_key(header::TRANSFER_ENCODING) {
        return Err(RequestError::Handshake("the request for an upgrade has a body"));
    }
    if once(fields, &header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version.as_bytes() != VERSION.as_bytes()) {
        return Err(RequestError::WebSocketVersion);
    }
    let key = once(fields, &header::SEC_WEBSOCKET_KEY)
        .filter(|key| BASE64.decode(key.as_bytes()).is_ok_and(|nonce| nonce.len() == 16))
        .ok_or(RequestError::Handshake("Sec-WebSocket-Key is not 16 bytes in base64, once"))?;
    let mut protocols: Vec<String> = Vec::new();
    for name in items(fields, &header::SEC_WEBSOCKET_PROTOCOL) {
        let name = std::str::from_utf8(name).unwrap_or_default().to_owned();
        if name.is_empty() || protocols.contains(&name) {
            return Err(RequestError::Handshake("Sec-WebSocket-Protocol has a name twice, or one that is none"));
        }
        protocols.push(name);
    }
    Ok(Some(Offer { accept: accept(key.as_bytes()), protocols }))
}

/// The answer to a key (RFC 6455 section 4.2.2).
fn accept(key: &[u8]) -> HeaderValue {
    let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &[key, GUID].concat());
    HeaderValue::try_from(BASE64.encode(hash.as_ref())).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Makes fields that go upstream those of an upgrade. No extension is offered: with one, frames could not be looked into.
pub fn ask(fields: &mut HeaderMap) {
    fields.remove(header::SEC_WEBSOCKET_EXTENSIONS);
    fields.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    fields.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
}

/// Checks what the upstream answered to an offer (RFC 6455 section 4.1).
///
/// # Errors
/// It is no answer to it. The text may be shown to the client.
pub fn check_answer(offer: &Offer, fields: &HeaderMap) -> Result<(), &'static str> {
    let upgrades = once(fields, &header::UPGRADE).is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"));
    if !upgrades || !lists(fields, &header::CONNECTION, b"upgrade") {
        return Err("it changes the protocol to another one than was asked for");
    }
    if once(fields, &header::SEC_WEBSOCKET_ACCEPT) != Some(&offer.accept) {
        return Err("its Sec-WebSocket-Accept is not the answer to the key");
    }
    if items(fields, &header::SEC_WEBSOCKET_EXTENSIONS).next().is_some() {
        return Err("it uses an extension of WebSocket that nobody offered");
    }
    if fields.contains_key(header::SEC_WEBSOCKET_PROTOCOL) {
        let chosen = once(fields, &header::SEC_WEBSOCKET_PROTOCOL);
        if !chosen.is_some_and(|chosen| offer.protocols.iter().any(|known| known.as_bytes() == chosen.as_bytes())) {
            return Err("it chose a subprotocol of WebSocket that nobody offered");
        }
    }
    Ok(())
}

/// Makes fields of a response, of which those of one connection were taken out, those of an upgrade to `offer`.
pub fn answer(offer: &Offer, fields: &mut HeaderMap) {
    for name in [header::SEC_WEBSOCKET_EXTENSIONS, header::CONTENT_LENGTH] {
        fields.remove(name);
    }
    fields.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    fields.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    fields.insert(header::SEC_WEBSOCKET_ACCEPT, offer.accept.clone());
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
