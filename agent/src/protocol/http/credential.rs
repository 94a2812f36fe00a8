//! What goes into a request on its way upstream, and is in no record: values of placeholders, the credential, a signature.

use std::time::SystemTime;

use data_encoding::BASE64;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use secrecy::{ExposeSecret, SecretString};

use super::{
    placeholder::{self, Values},
    request::Request,
    sigv4::{self, Keys, Payload},
    upstream::{Sends, UpstreamError},
};
use crate::{policy::Inject, secrets::Lease, session::ConnectionCx};

/// A request as the upstream gets it.
pub struct Complete {
    /// Fields.
    pub headers: HeaderMap,
    /// Path and query.
    pub target: String,
    /// Body.
    pub body: Sends,
}

/// Completes a request that was permitted: placeholders first, so that what is signed is what is sent.
///
/// # Errors
/// A secret cannot stand where it should.
pub fn complete(
    cx: &ConnectionCx,
    request: &Request,
    body: Sends,
    lease: Option<&Lease>,
    values: &Values,
) -> Result<Complete, UpstreamError> {
    let (headers, target) = (request.headers.clone(), request.target.clone());
    let mut all = Complete { headers, target, body };
    if !values.is_empty() {
        all = placeholder::fill(all, values).map_err(|why| UpstreamError::Credential(why.to_string()))?;
    }
    let Some(lease) = lease else { return Ok(all) };
    inject(&cx.upstream.credential.inject, lease, &mut all.headers, &mut all.target)?;
    if let (Inject::SigV4(scope), Some(secret)) = (&cx.upstream.credential.inject, &lease.password) {
        let payload = match &all.body {
            Sends::Nothing => Payload::Whole(b""),
            Sends::All(bytes) => Payload::Whole(bytes),
            Sends::Streams(_) | Sends::Watched(_) if sigv4::needs_body(&cx.upstream) => {
                return Err(UpstreamError::Changed);
            }
            Sends::Streams(_) | Sends::Watched(_) => Payload::Unsigned,
        };
        let id = lease.user.as_deref().unwrap_or_default();
        let keys = Keys { id, secret, token: lease.session_token.as_ref() };
        sigv4::sign(&request.method, &all.target, &mut all.headers, payload, scope, &keys, SystemTime::now())?;
    }
    Ok(all)
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
        Inject::Bearer => set(header::AUTHORIZATION, ["Bearer ", secret].concat()),
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
        // Once all else stands.
        Inject::SigV4(_) => Ok(()),
    }
}
