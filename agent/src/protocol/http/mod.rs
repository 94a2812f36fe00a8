//! HTTP/1.1 and 1.0, in the clear and over TLS, toward upstreams that a policy names with `protocol = "http"`.
//!
//! Inspected: every request by its method, path, query, header fields and, where a rule or a reviewer needs it, its body.
//! Targets are `METHOD /path`; verbs follow the method (GET, HEAD, OPTIONS read; POST, PUT, PATCH write; DELETE deletes;
//! others are unknown). A path is judged in every way in which servers may read it (`path`), and sent in its normal form.
//! The credential goes in on the way upstream, in the place that the policy says; what the client has there is taken out.
//!
//! Refused: requests with more than one reading (`guard`), names that are not the upstream's in SNI or Host, CONNECT,
//! upgrades (WebSocket, h2c), HTTP/2, encoded responses that nobody asked for, request fields that send a request
//! elsewhere. Taken out: ranges, trailers, fields of one connection, `Alt-Svc`.
//!
//! Masked: JSON by place, and JSON, server-sent events, text and header fields by detectors and known secrets (`body`).
//! Responses are asked for unencoded, so that they can be looked into.
//!
//! A refusal is 403 with problem details (RFC 9457) that name rule and reason; the connection goes on. A hold keeps the
//! request waiting, without a word; its body is read before, and is part of what is approved. Limits: heads of 64 KiB, 96
//! fields, inspected bodies as `limits.command`; other bodies stream in constant memory.

mod body;
mod deny;
pub mod fuzz;
mod guard;
mod guarded;
mod path;
mod request;
mod serve;
mod upstream;

pub use request::classify;

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::{
    action::ProtocolId,
    session::{BoxIo, ConnectionCx, Ended, Protocol, SessionError},
};

/// The protocol.
#[derive(Debug)]
pub struct Http;

impl Protocol for Http {
    fn id(&self) -> ProtocolId {
        ProtocolId::Http
    }

    fn serve<'a>(&'a self, client: BoxIo, cx: &'a Arc<ConnectionCx>) -> BoxFuture<'a, Result<Ended, SessionError>> {
        Box::pin(serve::serve(client, cx))
    }
}
