//! PostgreSQL, protocol 3.0 (3.2 clients are negotiated down).
//!
//! Inspected: every Query, Parse, Bind, Execute and FunctionCall; COPY by its command; cancel requests by the key that
//! only the session's own connections were given. Refused: GSSAPI encryption, replication, COPY BOTH, protocol 2,
//! settings that change how text is read or who runs it, text that is not UTF-8, frames over the limits. Masked: rows
//! (text and binary), COPY out, errors, notices, notifications, function results. A refusal is an ErrorResponse with
//! SQLSTATE 42501 in the command's place of the pipeline, and the transaction fails as it would for a missing right
//! (see [`deny`]); a hold is a NoticeResponse, then silence on the same socket. Limits are [`crate::wire::Limits`].
//!
//! Inert frames, which go upstream without a permit: Sync, Flush, Terminate, Close, Describe, and the two constants of
//! [`deny`].

mod catalog;
mod codec;
mod copy;
mod deny;
mod dry_run;
mod estimate;
mod flux;
pub mod fuzz;
mod hidden;
mod login;
mod mask;
mod message;
mod names;
mod params;
pub mod paths;
mod prepared;
mod query;
mod relay;
mod serve;
mod startup;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

use self::catalog::Catalogs;
use crate::{
    action::ProtocolId,
    session::{BoxIo, ConnectionCx, Ended, Protocol, SessionError},
};

/// The protocol, with what its connections share.
#[derive(Default)]
pub struct Postgres {
    catalogs: Mutex<HashMap<Database, Arc<Catalogs>>>,
    keys: Arc<Keys>,
}

/// Workload (another may have another credential, and with it other rights), upstream name, address, database.
type Database = (Arc<str>, Arc<str>, Arc<str>, Arc<str>);

type Keys = Mutex<HashMap<u32, Key>>;

/// What a cancel request of a client reaches.
struct Key {
    secret: [u8; 4],
    session: Arc<str>,
    cx: Arc<ConnectionCx>,
    upstream: Option<(u32, Bytes)>,
    relay: mpsc::Sender<oneshot::Sender<relay::Cancelled>>,
}

/// Takes a key out when its connection ends.
struct KeyGuard {
    keys: Arc<Keys>,
    pid: u32,
}

impl Drop for KeyGuard {
    fn drop(&mut self) {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.pid);
    }
}

impl Protocol for Postgres {
    fn id(&self) -> ProtocolId {
        ProtocolId::Postgres
    }

    fn serve<'a>(&'a self, client: BoxIo, cx: &'a Arc<ConnectionCx>) -> BoxFuture<'a, Result<Ended, SessionError>> {
        Box::pin(self.connection(client, cx))
    }
}

/// Whether a ParameterStatus leaves text read as it is judged.
fn safe_parameter(name: &[u8], value: &[u8]) -> bool {
    match name {
        b"client_encoding" => value == b"UTF8",
        b"standard_conforming_strings" => value == b"on",
        _ => true,
    }
}
