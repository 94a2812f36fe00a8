//! What policy answers.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::spec::Reviewer;

/// What a rule asks for, from lax to strict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// Forward.
    Allow,
    /// Forward, and tell reviewers afterwards.
    Notify,
    /// Wait for a reviewer.
    Hold,
    /// Never forward; record what the agent wanted so that a person may run it.
    Suggest,
    /// Refuse.
    Deny,
}

impl Effect {
    /// The name that policies and records use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Notify => "notify",
            Self::Hold => "hold",
            Self::Suggest => "suggest",
            Self::Deny => "deny",
        }
    }
}

/// The answer to one action. It has no default on purpose.
#[must_use]
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Forward, with these obligations.
    Allow(Obligations),
    /// Wait for a reviewer.
    Hold(HoldSpec),
    /// Do not forward; keep it for a person.
    Suggest(Reason),
    /// Refuse.
    Deny(Reason),
}

impl Decision {
    /// The effect that this answer stands for.
    pub fn effect(&self) -> Effect {
        match self {
            Self::Allow(o) if o.notify => Effect::Notify,
            Self::Allow(_) => Effect::Allow,
            Self::Hold(_) => Effect::Hold,
            Self::Suggest(_) => Effect::Suggest,
            Self::Deny(_) => Effect::Deny,
        }
    }

    /// Name of the rule that decided.
    pub fn rule(&self) -> &Arc<str> {
        match self {
            Self::Allow(o) => &o.rule,
            Self::Hold(h) => &h.reason.rule,
            Self::Suggest(r) | Self::Deny(r) => &r.rule,
        }
    }
}

/// What comes with a permission.
#[derive(Clone, Debug, PartialEq)]
pub struct Obligations {
    /// The rule that allowed it.
    pub rule: Arc<str>,
    /// Reviewers are told afterwards.
    pub notify: bool,
}

/// Why something was held or refused. Shown to the agent, so it never carries a secret or an internal path.
#[derive(Clone, Debug, PartialEq)]
pub struct Reason {
    /// Name of the rule; `default` where none matched.
    pub rule: Arc<str>,
    /// One sentence for a person.
    pub text: Arc<str>,
}

/// How long an approval reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HoldScope {
    /// This command only.
    Command,
    /// All reads of this session on this upstream (tier `production-read`).
    SessionReads,
}

/// A hold that policy asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct HoldSpec {
    /// Rule and sentence.
    pub reason: Reason,
    /// Who may decide. Empty: any reviewer the daemon's settings name.
    pub reviewers: Arc<[Reviewer]>,
    /// How many distinct reviewers must approve: 1 or 2.
    pub required: u8,
    /// How long it waits.
    pub expires: Duration,
    /// How long an approval reaches.
    pub scope: HoldScope,
    /// Whether a change is tried and rolled back while it waits.
    pub dry_run: bool,
}
