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

/// One `[[mask]]` of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaskSpec {
    /// Globs over `schema.table.column`, validated by the policy that carried them.
    pub columns: Vec<String>,
    /// Detectors over text.
    pub detect: Vec<Detector>,
    /// What takes the value's place.
    pub with: MaskWith,
}
