//! What a policy asks maskers to hide: plain data, so that policy and masking need not know each other.

use serde::{Deserialize, Serialize};

/// What a mask puts in place of a value, from strict to lax.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MaskWith {
    /// NULL.
    Null,
    /// A fixed text.
    Redact,
    /// A keyed hash: equal values stay equal within a daemon's life, nothing else is told.
    Hash,
    /// Most of the value hidden, its shape kept.
    Partial,
}

/// A kind of sensitive value that is found by its looks. Known secrets are always masked and need no naming.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Detector {
    /// Payment card numbers, with their Luhn digit.
    CreditCard,
    /// IBANs, with their check digits (ISO 13616).
    Iban,
    /// E-mail addresses.
    Email,
    /// PEM private keys.
    PrivateKey,
    /// Tokens of common services, by their published prefixes, and JWTs.
    ApiToken,
}

impl Detector {
    /// The name that policies and records use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CreditCard => "credit_card",
            Self::Iban => "iban",
            Self::Email => "email",
            Self::PrivateKey => "private_key",
            Self::ApiToken => "api_token",
        }
    }
}

/// What a mask hides values in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// What comes back from the upstream.
    #[default]
    Response,
    /// What the workload sends.
    Request,
}

/// What happens to a result whose values nobody can trace to where they come from, where columns are masked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Unresolved {
    /// The values are hidden.
    Mask,
    /// The statement is refused.
    #[default]
    Deny,
}

/// What happens to a command that uses a masked column without returning it: in a condition, an order, a group, a join.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Inference {
    /// It passes.
    Allow,
    /// It waits for a reviewer.
    #[default]
    Hold,
    /// It is refused.
    Deny,
}

/// One `[[mask]]` of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaskSpec {
    /// Globs over `schema.table.column`, validated by the policy that carried them.
    pub columns: Vec<String>,
    /// Globs over places in JSON: keys and numbers joined by `/`.
    pub json: Vec<String>,
    /// Detectors over text.
    pub detect: Vec<Detector>,
    /// What takes the value's place.
    pub with: MaskWith,
    /// Which way the values go.
    pub direction: Direction,
    /// For what cannot be traced. The strictest of an upstream's column masks counts.
    pub unresolved: Unresolved,
    /// For what tells of hidden values without returning them. The strictest of an upstream's column masks counts.
    pub inference: Inference,
}

impl MaskSpec {
    /// One that hides nothing yet.
    pub fn new(with: MaskWith) -> Self {
        let (direction, unresolved, inference) = Default::default();
        Self { columns: Vec::new(), json: Vec::new(), detect: Vec::new(), with, direction, unresolved, inference }
    }
}
