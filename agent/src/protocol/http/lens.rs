//! What a protocol that is spoken within HTTP makes of requests and responses. It judges, refuses and watches; what it does
//! not take for its own is a plain request.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use http::StatusCode;

use super::{deny::Problem, masker::MaskError, request::Request};
use crate::{
    action::ProtocolId,
    mask::{Hits, KnownSecrets, MaskSet},
    session::ConnectionCx,
};

/// A protocol within HTTP.
pub trait Lens: Send + Sync {
    /// Its id.
    fn id(&self) -> ProtocolId;

    /// Whether a request is its own: its body is then read before it is judged.
    fn takes(&self, request: &Request) -> bool;

    /// Reads such a request with its whole body, and says in the request what it would do.
    ///
    /// # Errors
    /// It cannot be understood, or may not go on.
    fn read(&self, cx: &Arc<ConnectionCx>, request: &mut Request, body: &Bytes) -> Result<Box<dyn Taken>, Problem>;

    /// A refusal in the form that clients of this protocol read.
    fn refusal(&self, problem: &mut Problem);
}

/// A request that was read. Dropped, it is not sent.
pub trait Taken: Send {
    /// It is permitted as the command `seq`, and goes out after this.
    ///
    /// # Errors
    /// It could not be recorded.
    fn goes(&mut self, seq: u64) -> Result<(), Problem>;

    /// Who looks at the response.
    fn watch(self: Box<Self>, started: Instant) -> Box<dyn Watch>;
}

/// Looks at one response, as the client gets it.
pub trait Watch: Send {
    /// Its head came. Answers what masks its body, where that is not for this module to say.
    fn begins(
        &mut self,
        status: StatusCode,
        content_type: &str,
        masks: &Arc<MaskSet>,
        secrets: &Arc<KnownSecrets>,
    ) -> Option<Box<dyn MaskPieces>>;

    /// The next piece of its body, masked.
    fn sees(&mut self, piece: &[u8]);

    /// It ended, or was broken off.
    fn ends(self: Box<Self>, broken: Option<&str>);
}

/// Masks a body that comes in pieces.
pub trait MaskPieces: Send {
    /// Takes the next piece and appends to `out` what can be sent by now.
    ///
    /// # Errors
    /// It cannot be looked into.
    fn push(&mut self, piece: &[u8], out: &mut Vec<u8>) -> Result<(), MaskError>;

    /// Bytes that wait for what is still to come, beyond some KiB.
    fn held(&self) -> usize;

    /// Ends the body.
    ///
    /// # Errors
    /// It ends where it must not.
    fn finish(self: Box<Self>, out: &mut Vec<u8>) -> Result<Hits, MaskError>;
}
