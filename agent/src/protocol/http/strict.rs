//! What is wrong with a request of HTTP/2 (RFC 9113) beyond what the library refuses itself.
//!
//! The library checks frames, field names and lengths. Here is what would have a second reading once the request is
//! written down for somebody who speaks HTTP/1.1, so that one rule holds for both. Failure mode: 400.

use http::{HeaderValue, Method, header, request::Parts, uri::Scheme};

use super::guard::{FIELDS_MAX, Violation};

/// Checks the head of a request, and moves its `:authority` to a Host field, where everybody looks for it.
///
/// # Errors
/// It has more than one reading, or none.
pub fn check(head: &mut Parts, encrypted: bool) -> Result<(), Violation> {
    let method = head.method.as_str();
    if head.method == Method::CONNECT {
        return Err(Violation("CONNECT is refused: there is no proxy here, and WebSocket is spoken over HTTP/1.1"));
    }
    if method.len() > 32 || !method.bytes().all(|b| b.is_ascii_uppercase() || b == b'-') {
        return Err(Violation("the method has characters that no method has"));
    }
    let scheme = if encrypted { Scheme::HTTPS } else { Scheme::HTTP };
    if head.uri.scheme() != Some(&scheme) {
        return Err(Violation("the scheme is not that of the connection"));
    }
    let target = head.uri.path_and_query().map_or("", |target| target.as_str());
    let fits = target.starts_with('/') && target.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
    let of_server = target == "*" && head.method == Method::OPTIONS;
    if !fits && !of_server {
        return Err(Violation("the target of a request begins with `/` and is printable ASCII"));
    }
    if head.headers.len() > FIELDS_MAX {
        return Err(Violation("the request has too many header fields"));
    }
    for name in ["content_length", "transfer_encoding"] {
        if head.headers.contains_key(name) {
            return Err(Violation("a header field has a name that others read in another way"));
        }
    }
    let mut lengths = head.headers.get_all(header::CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next() {
        let digits = !length.is_empty() && length.len() <= 18 && length.as_bytes().iter().all(u8::is_ascii_digit);
        if !digits {
            return Err(Violation("Content-Length is not a number"));
        }
        if lengths.next().is_some() {
            return Err(Violation("Content-Length stands there twice"));
        }
    }
    host(head)
}

/// One name, in `:authority`, in Host, or the same in both.
fn host(head: &mut Parts) -> Result<(), Violation> {
    let authority = head.uri.authority().map(|authority| authority.as_str().to_owned());
    let mut hosts = head.headers.get_all(header::HOST).iter();
    let (named, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err(Violation("Host stands there twice"));
    }
    let agree = match (&authority, named) {
        (Some(authority), Some(host)) => host.as_bytes().eq_ignore_ascii_case(authority.as_bytes()),
        (None, None) => return Err(Violation("Host is missing")),
        _ => true,
    };
    if !agree {
        return Err(Violation("Host is not what `:authority` says"));
    }
    if let Some(authority) = authority {
        if authority.contains('@') {
            return Err(Violation("the host of a request has no user name"));
        }
        let host = HeaderValue::try_from(authority).map_err(|_| Violation("the host is no name"))?;
        head.headers.insert(header::HOST, host);
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn checked(method: &str, uri: &str, fields: &[(&str, &str)]) -> Result<Parts, Violation> {
        let mut request = http::Request::builder().method(method).uri(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let (mut head, ()) = request.body(()).unwrap().into_parts();
        check(&mut head, true).map(|()| head)
    }

    #[test]
    fn what_has_one_reading_passes_with_a_host() {
        for (method, uri, fields) in [
            ("GET", "https://api.example/v1?x=1", &[][..]),
            ("OPTIONS", "https://api.example/*", &[]),
            ("POST", "https://api.example:443/", &[("content-length", "3"), ("host", "API.example:443")]),
        ] {
            let head = checked(method, uri, fields).unwrap();
            assert_eq!(head.headers[header::HOST], *head.uri.authority().unwrap().as_str(), "{method} {uri}");
        }
    }

    #[test]
    fn what_has_two_readings_is_refused() {
        for (method, uri, fields) in [
            ("CONNECT", "https://api.example/", &[][..]),
            ("get", "https://api.example/", &[]),
            ("G!T", "https://api.example/", &[]),
            ("GET", "http://api.example/", &[]),
            ("GET", "/only/a/path", &[]),
            ("GET", "https://user@api.example/", &[]),
            ("GET", "https://api.example/", &[("host", "other.example")]),
            ("GET", "https://api.example/", &[("host", "api.example"), ("host", "api.example")]),
            ("POST", "https://api.example/", &[("content-length", "3"), ("content-length", "3")]),
            ("POST", "https://api.example/", &[("content-length", "+3")]),
            ("POST", "https://api.example/", &[("content-length", "")]),
            ("POST", "https://api.example/", &[("content_length", "3")]),
            ("POST", "https://api.example/", &[("transfer_encoding", "chunked")]),
        ] {
            assert!(checked(method, uri, fields).is_err(), "{method} {uri} {fields:?}");
        }
        let many: Vec<String> = (0..=FIELDS_MAX).map(|n| format!("x-{n}")).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|name| (name.as_str(), "1")).collect();
        assert!(checked("GET", "https://api.example/", &many).is_err());
    }
}
