//! What an approval is good for beyond the command that asked.

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::store::Command;
use crate::policy::{HoldScope, HoldSpec};

/// What a grant reaches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum GrantScope {
    /// Commands of one shape, in one session.
    Shape {
        /// The command with its literals removed.
        shape: Arc<str>,
    },
    /// Everything that only reads, in one session.
    SessionReads,
    /// Exactly these bytes, once, in any session of the workload: a retry.
    OneTime {
        /// BLAKE3 of the bytes, hex.
        hash: String,
    },
}

/// A grant as shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GrantView {
    /// Its id: that of the hold it came from.
    pub id: Arc<str>,
    /// Workload name.
    pub workload: Arc<str>,
    /// Session that has it; for a retry, the one that asked.
    pub session: Arc<str>,
    /// Upstream name.
    pub upstream: Arc<str>,
    /// Database, where the protocol has one.
    pub database: Option<Arc<str>>,
    /// What it reaches.
    pub scope: GrantScope,
    /// The rule that it satisfies.
    pub rule: Arc<str>,
    /// Who gave it.
    pub reviewers: Vec<String>,
    /// When it began.
    pub granted_at: Timestamp,
    /// When it ends; `None`: with its session.
    pub expires_at: Option<Timestamp>,
    /// How many commands it let pass.
    pub uses: u64,
    /// Connections that used it: what a revocation must close.
    pub connections: BTreeSet<u64>,
}

/// A grant that covers a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Covered {
    /// Id of the grant, which is that of the hold it came from.
    pub id: Arc<str>,
    /// Who gave it.
    pub reviewers: Vec<String>,
    /// Why it covers, for the record.
    pub why: Arc<str>,
}

/// A grant as kept.
#[derive(Debug)]
pub(super) struct Grant {
    pub(super) view: GrantView,
    pub(super) spec: HoldSpec,
    pub(super) hash: Option<[u8; 32]>,
    pub(super) deadline: Option<Instant>,
}

impl Grant {
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|at| at <= now)
    }

    /// Whether it lets this command pass. The command must be held by the same rule, for the same reviewers: a command
    /// that has come under a stricter rule since is asked about again.
    pub(super) fn covers(&self, command: &Command<'_>) -> bool {
        let v = &self.view;
        let same_place = *v.workload == *command.workload
            && *v.upstream == *command.upstream
            && v.database.as_deref() == command.database;
        let same_rule = self.spec.reason.rule == command.spec.reason.rule
            && self.spec.reviewers == command.spec.reviewers
            && self.spec.required >= command.spec.required;
        let reach = match &v.scope {
            GrantScope::Shape { shape } => *v.session == *command.session && **shape == *command.shape,
            GrantScope::SessionReads => {
                *v.session == *command.session
                    && command.spec.scope == HoldScope::SessionReads
                    && command.action.iter().all(|(verb, _)| !verb.changes())
            }
            GrantScope::OneTime { .. } => self.hash.as_ref() == Some(command.hash),
        };
        same_place && same_rule && reach
    }

    pub(super) fn covered(&self) -> Covered {
        let who = self.view.reviewers.join(", ");
        let why = match &self.view.scope {
            GrantScope::Shape { .. } => format!("grant {} by {who} for commands of this shape", self.view.id),
            GrantScope::SessionReads => format!("grant {} by {who} for reads of this session", self.view.id),
            GrantScope::OneTime { .. } => format!("retry of hold {}, approved by {who}", self.view.id),
        };
        Covered { id: self.view.id.clone(), reviewers: self.view.reviewers.clone(), why: why.into() }
    }
}
