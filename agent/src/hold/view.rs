//! What reviewers, the record and `held --json` see.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::grants::GrantView;
use crate::action::{Part, ProcessFacts, TurnNote};

/// Where a hold stands; the names are those of the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HoldState {
    /// It waits.
    Requested,
    /// One of two reviewers approved; it waits for the other.
    Approved,
    /// Approved: the command is forwarded, or may be retried where its client is gone.
    Granted,
    /// A reviewer said no.
    Denied,
    /// Nobody answered in time.
    Expired,
    /// Its client went away or cancelled. It may be approved for a retry until it expires.
    Withdrawn,
    /// Its session ended or lost its rights.
    Revoked,
}

impl HoldState {
    /// The name that records use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Approved => "approved",
            Self::Granted => "granted",
            Self::Denied => "denied",
            Self::Expired => "expired",
            Self::Withdrawn => "withdrawn",
            Self::Revoked => "revoked",
        }
    }
}

/// One reviewer's approval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalNote {
    /// User name.
    pub reviewer: String,
    /// What they said.
    pub reason: Option<String>,
    /// When.
    pub at: Timestamp,
}

/// What the command is expected to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Estimate {
    /// Rows that it changed in a dry run, or else that the planner expects; `None` where neither could be had.
    pub rows: Option<u64>,
    /// One sentence for the reviewer.
    pub note: String,
    /// The rows were counted in a dry run.
    #[serde(default)]
    pub counted: bool,
    /// Some of the rows, from a dry run.
    #[serde(default)]
    pub sample: Option<Sample>,
}

/// Some of the rows that a command would change, masked as the agent would see them. Written in part by the agent: escape
/// control characters before they meet a terminal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Names of the columns.
    pub columns: Vec<String>,
    /// The rows.
    pub rows: Vec<SampleRow>,
}

/// A row before and after a command. `None` inside is NULL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleRow {
    /// As it is; `None` if it would be new, or is not known.
    pub before: Option<Vec<Option<String>>>,
    /// As it would be; `None` if it would be gone.
    pub after: Option<Vec<Option<String>>>,
}

/// A hold as shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HoldView {
    /// Its id.
    pub id: Arc<str>,
    /// Where it stands.
    pub state: HoldState,
    /// Workload name.
    pub workload: Arc<str>,
    /// Session id.
    pub session: Arc<str>,
    /// Connection within the daemon's life.
    pub connection_id: u64,
    /// Number of the command within the connection.
    pub seq: u64,
    /// Who asked.
    pub process: ProcessFacts,
    /// Why the session runs.
    pub intent: Option<Arc<str>>,
    /// The turns of conversations with models that it belongs to; several are candidates. Written by agent and model: escape
    /// control characters before they meet a terminal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub turns: Vec<TurnNote>,
    /// Upstream name.
    pub upstream: Arc<str>,
    /// Database, where the protocol has one.
    pub database: Option<Arc<str>>,
    /// The exact command, as text. Written by the agent: escape control characters before it meets a terminal.
    pub command: Arc<str>,
    /// BLAKE3 of the exact bytes, hex.
    pub hash: String,
    /// What it would do.
    pub action: Vec<Part>,
    /// Rule that asked.
    pub rule: Arc<str>,
    /// The rule's sentence.
    pub reason: Arc<str>,
    /// Who may decide; empty for the daemon's reviewers.
    pub reviewers: Vec<String>,
    /// How many distinct reviewers must approve.
    pub required: u8,
    /// Who approved so far.
    pub approvals: Vec<ApprovalNote>,
    /// What it is expected to do.
    pub estimate: Option<Estimate>,
    /// When it began to wait.
    pub requested_at: Timestamp,
    /// When it stops waiting.
    pub expires_at: Timestamp,
}

/// What became of a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GrantState {
    /// It began.
    Opened,
    /// A one-time permit was used.
    Used,
    /// Its time ran out.
    Expired,
    /// A reviewer took it back.
    Revoked,
    /// Its session ended.
    SessionEnded,
}

/// A change of the store, in the order in which changes happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
pub enum HoldChange {
    /// A hold changed state.
    Hold {
        /// The hold after the change.
        view: Arc<HoldView>,
        /// Who changed it; `None` for time and the client.
        by: Option<String>,
        /// What they said.
        reason: Option<String>,
    },
    /// The estimate of a hold became known.
    Estimated {
        /// The hold with it.
        view: Arc<HoldView>,
    },
    /// A grant changed.
    Grant {
        /// The grant.
        view: Arc<GrantView>,
        /// What became of it.
        state: GrantState,
        /// Who did it; `None` for time and the client.
        by: Option<String>,
    },
}
