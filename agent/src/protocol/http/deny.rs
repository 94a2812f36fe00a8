//! Answers of our own: problem details (RFC 9457), so that a client's author reads what happened and why.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Full, combinators::UnsyncBoxBody};
use serde::Serialize;

use super::body::BodyError;
use crate::session::Refusal;

/// Any body of a response.
pub type AnyBody = UnsyncBoxBody<Bytes, BodyError>;

/// What went wrong, for the client.
#[derive(Clone, Debug, Serialize)]
pub struct Problem {
    /// HTTP status.
    #[serde(serialize_with = "number")]
    pub status: StatusCode,
    /// In a few words.
    pub title: &'static str,
    /// One sentence.
    pub detail: String,
    /// The rule that decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Id of the hold that it waited in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold: Option<String>,
    /// What can be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// For clients that read another form (RFC 9457 section 3.2: extension members).
    #[serde(flatten)]
    pub extension: serde_json::Map<String, serde_json::Value>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn number<S: serde::Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}

impl Problem {
    /// Without a rule.
    pub fn new(status: StatusCode, title: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            title,
            detail: detail.into(),
            rule: None,
            hold: None,
            hint: None,
            extension: serde_json::Map::new(),
        }
    }

    /// A request that cannot be read, or not by everybody in the same way.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "Bad request", detail)
    }

    /// The upstream did not do its part.
    pub fn upstream(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, "Bad gateway", detail)
    }

    /// What the gate said.
    pub fn refused(refusal: &Refusal, hold: Option<&str>) -> Self {
        Self {
            rule: Some(refusal.rule.to_string()),
            hold: hold.map(str::to_owned),
            hint: refusal.hint.clone(),
            ..Self::new(StatusCode::FORBIDDEN, "Refused by policy", refusal.message.as_str())
        }
    }

    /// As an answer. A request that could not be read to its end takes its connection of HTTP/1.1 with it.
    pub fn response(&self) -> Response<AnyBody> {
        let text = serde_json::to_vec(self).unwrap_or_default();
        let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync();
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            // What a budget refuses, it refuses again: clients of models need not try.
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        if self.status == StatusCode::BAD_REQUEST {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if self.status == StatusCode::UPGRADE_REQUIRED {
            headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static(super::websocket::VERSION));
        }
        response
    }

    /// As an answer to a call of gRPC: a status of its own in a head without a body ("PROTOCOL-HTTP2", Trailers-Only).
    pub fn grpc(&self) -> Response<AnyBody> {
        let code = match self.status {
            StatusCode::FORBIDDEN => "7",
            StatusCode::BAD_REQUEST | StatusCode::MISDIRECTED_REQUEST => "3",
            StatusCode::PAYLOAD_TOO_LARGE => "8",
            StatusCode::NOT_IMPLEMENTED => "12",
            StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT => "4",
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE => "14",
            _ => "2",
        };
        let mut text = self.detail.clone();
        for more in
            [&self.hold.as_ref().map(|hold| format!(" (hold {hold})")), &self.hint.as_ref().map(|h| format!(" {h}"))]
        {
            text.push_str(more.as_deref().unwrap_or_default());
        }
        let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from_static(code));
        if let Ok(message) = HeaderValue::try_from(percent(&text)) {
            headers.insert("grpc-message", message);
        }
        response
    }
}

/// Printable ASCII but `%` as it is, every other byte encoded, as gRPC wants its messages.
fn percent(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_refused_call_of_grpc_has_a_status_and_a_reason() {
        let problem = Problem::new(StatusCode::FORBIDDEN, "Refused by policy", "50 % of \u{fc}ber\n");
        let response = problem.grpc();
        assert_eq!(
            (response.status(), &response.headers()["grpc-status"]),
            (StatusCode::OK, &HeaderValue::from_static("7"))
        );
        assert_eq!(response.headers()["grpc-message"].to_str().unwrap(), "50 %25 of %C3%BCber%0A");
        assert!(http_body::Body::is_end_stream(response.body()));
    }
}
