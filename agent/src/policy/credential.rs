//! What a credential is made of beyond one secret: tokens of OAuth 2.0, the scope of a signature, placeholders.

use std::{net::IpAddr, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{CredentialSource, TlsSpec};

/// What the name of a placeholder stands behind in a request.
pub const PLACEHOLDER: &str = "PORTCULLIS_SECRET_";

/// How a bearer token is obtained (RFC 6749): by the refresh token where there is one (section 6), else by the client's own
/// credentials (section 4.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OAuth2Spec {
    /// Where tokens are given out.
    pub endpoint: TokenEndpoint,
    /// How its TLS is checked; `None` for one in the clear, on loopback only.
    pub tls: Option<TlsSpec>,
    /// Name of the client.
    pub client_id: String,
    /// Its secret; `None` for a public client, which has a refresh token alone.
    pub client_secret: Option<CredentialSource>,
    /// How the secret is sent.
    pub client_auth: ClientAuth,
    /// Where the first refresh token comes from.
    pub refresh_token: Option<CredentialSource>,
    /// What the token is to be good for.
    pub scopes: Vec<String>,
    /// Whom the token is for, where the server asks for it by `audience`.
    pub audience: Option<String>,
    /// For one answer of the endpoint.
    pub timeout: Duration,
}

/// A token endpoint's URL, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenEndpoint {
    /// Name or address, the latter of IPv6 in brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Path and query.
    pub target: String,
    /// Whether it is `https`.
    pub scheme: Scheme,
}

/// Of a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// In the clear.
    Http,
    /// Over TLS.
    Https,
}

impl TokenEndpoint {
    /// Takes a URL apart: `https`, or `http` toward loopback.
    ///
    /// # Errors
    /// It is no such URL; the text says what is wrong with it.
    pub fn parse(url: &str) -> Result<Self, &'static str> {
        let (scheme, rest) = match url.split_once("://") {
            Some(("https", rest)) => (Scheme::Https, rest),
            Some(("http", rest)) => (Scheme::Http, rest),
            _ => return Err("it does not begin with `https://`"),
        };
        if !rest.bytes().all(|b| b.is_ascii_graphic()) || rest.contains(['#', '"', '<', '>', '\\', '^', '`', '{', '}'])
        {
            return Err("it has characters that no URL has, or a fragment");
        }
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(end);
        if authority.contains('@') {
            return Err("it has a user in it: name the client by `client_id` and `client_secret`");
        }
        let bracketed = authority.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        let (host, port) = match bracketed {
            Some((address, port)) => {
                address.parse::<std::net::Ipv6Addr>().map_err(|_| "its address is none of IPv6")?;
                (format!("[{address}]"), port.strip_prefix(':').or(port.is_empty().then_some("")))
            }
            None => {
                let (host, port) = authority.split_once(':').unwrap_or((authority, ""));
                (host.to_owned(), Some(port))
            }
        };
        let usual = if scheme == Scheme::Https { 443 } else { 80 };
        let port = match port {
            Some("") => usual,
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
                digits.parse().ok().filter(|port| *port > 0).ok_or("its port is none")?
            }
            _ => return Err("its port is none"),
        };
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let is_name = !host.is_empty() && bare.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_:".contains(&b));
        if !is_name {
            return Err("its host is no name and no address");
        }
        let loopback =
            bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        if scheme == Scheme::Http && !loopback {
            return Err("a secret is sent there, so it must be `https` (`http` is for loopback)");
        }
        let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
        Ok(Self { host, port, target, scheme })
    }

    /// `host:port`, for dialing.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// How a client shows who it is (RFC 6749 section 2.3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum ClientAuth {
    /// In a field `Authorization`.
    #[default]
    #[serde(rename = "client_secret_basic")]
    Basic,
    /// In the body.
    #[serde(rename = "client_secret_post")]
    Post,
}

/// What a signature of AWS is good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SigningScope {
    /// Such as `eu-central-1`.
    pub region: Box<str>,
    /// As it is signed: `s3`, `execute-api`, `bedrock`.
    pub service: Box<str>,
}

impl SigningScope {
    /// From `REGION/SERVICE`.
    pub fn parse(text: &str) -> Option<Self> {
        let (region, service) = text.split_once('/')?;
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let part = |part: &str| !part.is_empty() && part.len() <= 64 && part.bytes().all(fits);
        (part(region) && part(service)).then(|| Self { region: region.into(), service: service.into() })
    }
}

/// A text in a client's requests that stands for a secret: [`PLACEHOLDER`] and its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placeholder {
    /// Letters, digits and `_`.
    pub name: Arc<str>,
    /// The secret.
    pub source: CredentialSource,
    /// Where it may stand.
    pub places: Vec<Place>,
}

/// A part of a request in which placeholders are filled in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub enum Place {
    /// Values of header fields, or of one, its name in lower case.
    Header(Option<String>),
    /// Values of the query, or of one parameter.
    Query(Option<String>),
    /// The body: JSON, a form, or plain text.
    Body,
}

impl TryFrom<String> for Place {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let fits = |name: &str| !name.is_empty() && name.len() <= 128 && name.bytes().all(|b| b.is_ascii_graphic());
        match text.split_once(':') {
            None if text == "header" => Ok(Self::Header(None)),
            None if text == "query" => Ok(Self::Query(None)),
            None if text == "body" => Ok(Self::Body),
            Some(("header", name)) if fits(name) => Ok(Self::Header(Some(name.to_ascii_lowercase()))),
            Some(("query", name)) if fits(name) => Ok(Self::Query(Some(name.to_owned()))),
            _ => Err(format!("`header`, `header:NAME`, `query`, `query:NAME` or `body`, not `{text}`")),
        }
    }
}

impl From<Place> for String {
    fn from(place: Place) -> Self {
        match place {
            Place::Header(None) => "header".into(),
            Place::Header(Some(name)) => format!("header:{name}"),
            Place::Query(None) => "query".into(),
            Place::Query(Some(name)) => format!("query:{name}"),
            Place::Body => "body".into(),
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn urls_of_token_endpoints() {
        for (url, host, port, target) in [
            ("https://login.example/oauth2/token?x=1", "login.example", 443, "/oauth2/token?x=1"),
            ("https://login.example:8443", "login.example", 8443, "/"),
            ("https://login.example?x", "login.example", 443, "/?x"),
            ("https://[2001:db8::1]:444/t", "[2001:db8::1]", 444, "/t"),
            ("http://127.0.0.1:81/t", "127.0.0.1", 81, "/t"),
            ("http://[::1]/t", "[::1]", 80, "/t"),
            ("http://localhost/t", "localhost", 80, "/t"),
        ] {
            let endpoint = TokenEndpoint::parse(url).unwrap();
            assert_eq!((&*endpoint.host, endpoint.port, &*endpoint.target), (host, port, target), "{url}");
        }
        for url in [
            "login.example/token",
            "ftp://login.example/",
            "http://login.example/",
            "http://127.0.0.1.evil.example/",
            "http://localhost@evil.example/",
            "https://user:pass@login.example/",
            "https://login.example:0/",
            "https://login.example:+1/",
            "https://login.example:x/",
            "https://login.example/#x",
            "https://login.example/a b",
            "https://login.example/a\r\nb",
            "https:///token",
            "https://[::1/token",
            "https://[::1]x/token",
        ] {
            assert!(TokenEndpoint::parse(url).is_err(), "{url}");
        }
    }
}
