//! HTTP/1.1, 1.0 and 2, in the clear and over TLS, toward upstreams that a policy names with `protocol = "http"`. Both
//! sides speak the same version; where the client leaves it open, the upstream has the choice.
//!
//! Inspected: every request by its method, path, query, header fields and, where a rule or a reviewer needs it, its body.
//! Targets are `METHOD /path`; verbs follow the method (GET, HEAD, OPTIONS read; POST, PUT, PATCH write; DELETE deletes;
//! others are unknown). A path is judged in every way in which servers may read it (`path`), and sent in its normal form.
//! The credential goes in on the way upstream, in the place that the policy says; what the client has there is taken out.
//! It may be a signature over the request (`sigv4`), and placeholders of the client's own choice (`placeholder`).
//!
//! Refused: requests with more than one reading (`guard`, `strict`), names that are not the upstream's in SNI or Host,
//! CONNECT, upgrades but to WebSocket, responses in encodings that are not known, request fields that send a request
//! elsewhere. Taken out: ranges, trailers of requests, fields of one connection (an offer of h2c is one), `Alt-Svc`.
//!
//! Masked: JSON by place, and JSON, server-sent events, messages of gRPC, text and header fields by detectors and known
//! secrets (`masker`); encoded bodies are decoded for it and encoded again (`coding`).
//!
//! WebSocket begins with a request of HTTP/1.1 that is judged as its GET and as `execute WEBSOCKET /path`; its messages are
//! masked as bodies are, and each is recorded (`websocket`).
//!
//! A refusal is 403 with problem details (RFC 9457) that name rule and reason, or a status of gRPC; the connection goes on. A hold keeps the
//! request waiting, without a word but to a client that says it reads interim responses (`guarded`); its body is read
//! before, and is part of what is approved. Limits: heads of 64 KiB, 96 fields, inspected bodies as `limits.command`; other
//! bodies stream in constant memory.

mod body;
mod coding;
mod credential;
mod deny;
mod exchange;
pub mod fuzz;
mod guard;
mod guarded;
mod json;
mod lens;
mod masker;
mod outgoing;
mod path;
mod placeholder;
mod request;
mod resets;
mod respond;
mod serve;
mod sigv4;
mod strict;
mod upstream;
mod websocket;

pub use deny::Problem;
pub use lens::{Lens, MaskPieces, Taken, Watch};
pub use masker::{EVENT_MAX, MaskError, is_whole_event, mask_event};
pub use request::{Request, classify, request_of};
pub use serve::serve;

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
        Box::pin(serve::serve(client, cx, None))
    }
}
