//! How refusals, holds and ends look to the client, and the frames that make the upstream refuse with us.
//!
//! A refused command is not swallowed silently: in its place goes a constant frame that the upstream's parser rejects
//! ([`refuse_query`], [`refuse_extended`]). So the upstream itself answers with an error at the right place of the
//! pipeline, skips to Sync, and fails the transaction as it would have for a right that is missing. The client then gets our
//! error instead of that one. Were the refused command only left out, a script's COMMIT would commit the other half of
//! its transaction.

use bytes::{Bytes, BytesMut};

use super::codec::{put, put_cstr};

/// `insufficient_privilege`: refused by policy or by a reviewer.
pub const REFUSED: &str = "42501";
/// `protocol_violation`.
pub const PROTOCOL: &str = "08P01";
/// `admin_shutdown`.
pub const SHUTDOWN: &str = "57P01";
/// `invalid_authorization_specification`.
pub const LOGIN: &str = "28000";
/// `sqlclient_unable_to_establish_sqlconnection`.
pub const UNREACHABLE: &str = "08001";
/// `connection_failure`.
pub const LOST: &str = "08006";
/// `out_of_memory`.
pub const MEMORY: &str = "53200";
/// `feature_not_supported`.
pub const UNSUPPORTED: &str = "0A000";

/// A severity of PostgreSQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The command failed.
    Error,
    /// The connection ends.
    Fatal,
    /// For information.
    Notice,
}

/// An error or notice of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// How bad it is.
    pub severity: Severity,
    /// SQLSTATE.
    pub code: &'static str,
    /// One sentence.
    pub message: String,
    /// More, if there is any.
    pub detail: Option<String>,
    /// What to do.
    pub hint: Option<String>,
}

impl Message {
    /// An error with only a sentence.
    pub fn error(code: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, code, message: message.into(), detail: None, hint: None }
    }

    /// The same, ending the connection.
    pub fn fatal(code: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Fatal, ..Self::error(code, message) }
    }

    /// A notice.
    pub fn notice(message: impl Into<String>) -> Self {
        Self { severity: Severity::Notice, ..Self::error("00000", message) }
    }

    /// As ErrorResponse or NoticeResponse.
    pub fn encode(&self) -> Bytes {
        let (tag, severity) = match self.severity {
            Severity::Error => (b'E', "ERROR"),
            Severity::Fatal => (b'E', "FATAL"),
            Severity::Notice => (b'N', "NOTICE"),
        };
        let mut out = BytesMut::new();
        put(&mut out, tag, |b| {
            let fields = [
                (b'S', Some(severity)),
                (b'V', Some(severity)),
                (b'C', Some(self.code)),
                (b'M', Some(self.message.as_str())),
                (b'D', self.detail.as_deref()),
                (b'H', self.hint.as_deref()),
            ];
            for (kind, value) in fields {
                if let Some(value) = value {
                    b.extend_from_slice(&[kind]);
                    put_cstr(b, value.as_bytes());
                }
            }
            b.extend_from_slice(&[0]);
        });
        out.freeze()
    }
}

/// A bare word that no version of PostgreSQL parses as a statement.
const WORD: &[u8] = b"refused_by_portcullis";

/// Query that the upstream rejects without reading a name: answered by ErrorResponse and ReadyForQuery.
pub fn refuse_query() -> Bytes {
    let mut out = BytesMut::new();
    put(&mut out, b'Q', |b| put_cstr(b, WORD));
    out.freeze()
}

/// Parse that the upstream rejects: answered by ErrorResponse, then it skips to Sync. Named, so that the unnamed
/// statement stays as it is.
pub fn refuse_extended() -> Bytes {
    let mut out = BytesMut::new();
    put(&mut out, b'P', |b| {
        put_cstr(b, WORD);
        put_cstr(b, WORD);
        b.extend_from_slice(&[0, 0]);
    });
    out.freeze()
}

/// The fields of an ErrorResponse or NoticeResponse: (kind, text).
pub fn fields(body: &[u8]) -> Option<Vec<(u8, &[u8])>> {
    let mut r = crate::wire::Reader::new(body);
    let mut fields = Vec::with_capacity(12);
    loop {
        match r.u8().ok()? {
            0 => break,
            kind => fields.push((kind, r.cstr().ok()?)),
        }
    }
    r.all().ok()?;
    Some(fields)
}
