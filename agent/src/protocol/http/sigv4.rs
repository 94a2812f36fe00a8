//! Signatures of AWS, Version 4 ("Signing AWS API requests" in the IAM User Guide).
//!
//! What the client signed is worth nothing here: its signature is taken out, in fields and in the query, and what is sent
//! is signed anew. Signed are all fields but those that proxies change on the way, and the body by its hash. S3 takes a
//! body that is not signed, over TLS; for others it is read whole. A body that is signed piece by piece (`aws-chunked`)
//! is refused: its pieces carry signatures of the client's own. Failure mode: the service refuses the request.

use std::time::SystemTime;

use aws_lc_rs::{digest, hmac};
use data_encoding::HEXLOWER;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use super::request::decoded_bytes;
use crate::policy::{Inject, SigningScope, TlsMode, UpstreamSpec};

/// Fields and parameters that are a signature, or go with one.
pub const OWN: &[&str] = &[
    "x-amz-algorithm",
    "x-amz-content-sha256",
    "x-amz-credential",
    "x-amz-date",
    "x-amz-expires",
    "x-amz-region-set",
    "x-amz-s3session-token",
    "x-amz-security-token",
    "x-amz-signature",
    "x-amz-signedheaders",
];
/// Fields that are not signed: those that are of one connection, and those that proxies in front of a service change.
const UNSIGNED: &[&str] = &[
    "accept-encoding",
    "authorization",
    "connection",
    "content-length",
    "expect",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "user-agent",
    "x-amzn-trace-id",
];
const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// Who signs.
pub struct Keys<'a> {
    /// Access key id.
    pub id: &'a str,
    /// Secret access key.
    pub secret: &'a SecretString,
    /// Session token of temporary credentials.
    pub token: Option<&'a SecretString>,
}

/// What is said of the body.
#[derive(Clone, Copy, Debug)]
pub enum Payload<'a> {
    /// All of it.
    Whole(&'a [u8]),
    /// Nothing.
    Unsigned,
}

/// Something in the request cannot be signed or sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the request cannot be signed")]
pub struct Unsignable;

/// Whether a body comes with signatures of its own, or with trailers that only those announce.
pub fn is_streaming(fields: &HeaderMap) -> bool {
    let texts =
        |name: &str| fields.get_all(name).iter().map(|value| value.as_bytes().to_ascii_lowercase()).collect::<Vec<_>>();
    texts("x-amz-content-sha256").iter().any(|value| value.starts_with(b"streaming-"))
        || texts("content-encoding").iter().any(|value| memchr::memmem::find(value, b"aws-chunked").is_some())
        || fields.contains_key("x-amz-decoded-content-length")
        || fields.contains_key("x-amz-trailer")
}

/// Whether all of a body must be read before a request to this upstream can be signed.
pub fn needs_body(upstream: &UpstreamSpec) -> bool {
    match &upstream.credential.inject {
        Inject::SigV4(scope) => !is_s3(scope) || upstream.tls.mode == TlsMode::Disable,
        _ => false,
    }
}

fn is_s3(scope: &SigningScope) -> bool {
    matches!(&*scope.service, "s3" | "s3express" | "s3-outposts" | "s3-object-lambda")
}

/// Signs a request that is otherwise as it is sent.
///
/// # Errors
/// It cannot be signed.
pub fn sign(
    method: &Method,
    target: &str,
    headers: &mut HeaderMap,
    payload: Payload<'_>,
    scope: &SigningScope,
    keys: &Keys<'_>,
    now: SystemTime,
) -> Result<(), Unsignable> {
    let now = jiff::Timestamp::try_from(now).map_err(|_| Unsignable)?;
    let (time, date) = (now.strftime("%Y%m%dT%H%M%SZ").to_string(), now.strftime("%Y%m%d").to_string());
    let hash = match payload {
        Payload::Whole(bytes) => HEXLOWER.encode(digest::digest(&digest::SHA256, bytes).as_ref()),
        Payload::Unsigned => "UNSIGNED-PAYLOAD".to_owned(),
    };
    set(headers, "x-amz-date", &time)?;
    set(headers, "x-amz-content-sha256", &hash)?;
    if let Some(token) = keys.token {
        set(headers, "x-amz-security-token", token.expose_secret())?;
    }
    let (signed, canonical) = canonical(method, target, headers, &hash, scope);
    let hashed = HEXLOWER.encode(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref());
    let scoped = format!("{date}/{}/{}/aws4_request", scope.region, scope.service);
    let text = format!("{ALGORITHM}\n{time}\n{scoped}\n{hashed}");
    let first = Zeroizing::new(format!("AWS4{}", keys.secret.expose_secret()));
    let mut key = tag(first.as_bytes(), &date);
    for part in [&*scope.region, &*scope.service, "aws4_request"] {
        key = tag(key.as_ref(), part);
    }
    let signature = HEXLOWER.encode(tag(key.as_ref(), &text).as_ref());
    let value = format!("{ALGORITHM} Credential={}/{scoped}, SignedHeaders={signed}, Signature={signature}", keys.id);
    set(headers, "authorization", &value)
}

fn tag(key: &[u8], text: &str) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes())
}

fn set(headers: &mut HeaderMap, name: &'static str, value: &str) -> Result<(), Unsignable> {
    let mut value = HeaderValue::from_str(value).map_err(|_| Unsignable)?;
    value.set_sensitive(true);
    headers.insert(HeaderName::from_static(name), value);
    Ok(())
}

/// Names of the signed fields, and the canonical request.
fn canonical(method: &Method, target: &str, headers: &HeaderMap, hash: &str, scope: &SigningScope) -> (String, String) {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let path = if is_s3(scope) { encode(&decoded_path(path), b"/") } else { encode(tidy(path).as_bytes(), b"/") };
    let mut pairs: Vec<(String, String)> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (encode(&decoded_bytes(name), b""), encode(&decoded_bytes(value), b"")))
        .collect();
    pairs.sort();
    let query = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&");
    let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).filter(|name| !UNSIGNED.contains(name)).collect();
    names.sort_unstable();
    let mut fields = String::new();
    for name in &names {
        let values: Vec<String> = headers.get_all(*name).iter().map(|value| plain(value.as_bytes())).collect();
        fields.push_str(&format!("{name}:{}\n", values.join(",")));
    }
    let signed = names.join(";");
    let text = format!("{method}\n{path}\n{query}\n{fields}\n{signed}\n{hash}");
    (signed, text)
}

/// A value without spaces around it, and one in place of several within it.
fn plain(value: &[u8]) -> String {
    let text = String::from_utf8_lossy(value);
    text.split([' ', '\t']).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// A path without empty segments and dots, as services other than S3 read it.
fn tidy(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(kept.pop()),
            segment => kept.push(segment),
        }
    }
    let end = if path.ends_with('/') && !kept.is_empty() { "/" } else { "" };
    format!("/{}{end}", kept.join("/"))
}

/// Decodes percent-encodings, and nothing else.
fn decoded_path(path: &str) -> Vec<u8> {
    decoded_bytes(&path.replace('+', "%2B"))
}

/// Everything but unreserved characters (RFC 3986 section 2.3) and `also` encoded.
fn encode(bytes: &[u8], also: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(*byte)),
            byte if also.contains(byte) => out.push(char::from(*byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn scope(service: &str) -> SigningScope {
        SigningScope { region: "us-east-1".into(), service: service.into() }
    }

    fn fields(all: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in all {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn a_canonical_request_has_one_form() {
        let headers = fields(&[
            ("host", "example.amazonaws.com"),
            ("x-b", "  two   words "),
            ("x-a", "1"),
            ("x-a", "2"),
            ("user-agent", "any"),
            ("accept-encoding", "gzip"),
        ]);
        let (signed, text) =
            canonical(&Method::GET, "/a//./b/../c%20d:e/?z=%7e&b=+&b=%21&empty", &headers, "hash", &scope("x"));
        assert_eq!(signed, "host;x-a;x-b");
        assert_eq!(
            text,
            "GET\n/a/c%2520d%3Ae/\nb=%20&b=%21&empty=&z=~\nhost:example.amazonaws.com\nx-a:1,2\nx-b:two words\n\n\
             host;x-a;x-b\nhash"
        );
        // S3 has keys that are no tidy paths.
        let (_, text) = canonical(&Method::PUT, "/bucket//a%20b/../c(1)+2", &fields(&[]), "hash", &scope("s3"));
        assert!(text.starts_with("PUT\n/bucket//a%20b/../c%281%29%2B2\n\n"), "{text}");
    }

    #[test]
    fn signatures_are_those_of_the_published_suite() {
        // Case `get-vanilla`: its keys, its time, its request. Its hash of the body is not sent, so the steps are taken one
        // by one.
        let secret = SecretString::from("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY");
        let headers = fields(&[("host", "example.amazonaws.com"), ("x-amz-date", "20150830T123600Z")]);
        let empty = HEXLOWER.encode(digest::digest(&digest::SHA256, b"").as_ref());
        let (_, text) = canonical(&Method::GET, "/", &headers, &empty, &scope("service"));
        let hashed = HEXLOWER.encode(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
        assert_eq!(hashed, "bb579772317eb040ac9ed261061d46c1f17a8133879d6129b6e1c25292927e63");
        let first = format!("AWS4{}", secret.expose_secret());
        let mut key = tag(first.as_bytes(), "20150830");
        for part in ["us-east-1", "service", "aws4_request"] {
            key = tag(key.as_ref(), part);
        }
        let text = format!("AWS4-HMAC-SHA256\n20150830T123600Z\n20150830/us-east-1/service/aws4_request\n{hashed}");
        let signature = HEXLOWER.encode(tag(key.as_ref(), &text).as_ref());
        assert_eq!(signature, "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31");
    }

    #[test]
    fn what_is_signed_piece_by_piece_is_known() {
        for (name, value) in [
            ("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"),
            ("x-amz-content-sha256", "streaming-unsigned-payload-trailer"),
            ("content-encoding", "gzip, AWS-Chunked"),
            ("x-amz-decoded-content-length", "5"),
            ("x-amz-trailer", "x-amz-checksum-crc32"),
        ] {
            assert!(is_streaming(&fields(&[(name, value)])), "{name}: {value}");
        }
        assert!(!is_streaming(&fields(&[("x-amz-content-sha256", "UNSIGNED-PAYLOAD"), ("content-encoding", "gzip")])));
    }
}
