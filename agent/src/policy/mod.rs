//! Policy: one TOML file per workload, compiled to an immutable [`Policy`] whose [`Policy::decide`] is pure.
//!
//! Nothing matches: deny. Several rules match: the strictest effect wins, whatever the order. A set with an error is
//! refused whole ([`PolicyErrors`] has every finding with its place), so the failure mode of a mistake is that the set
//! that was in force stays.

pub mod cases;
mod check;
mod compiled;
mod credential;
mod decision;
mod duration;
mod error;
mod explain;
mod file;
pub mod fuzz;
mod index;
mod read;
mod remembered;
mod rule;
mod set;
mod size;
mod spec;
mod when;

pub use compiled::Policy;
pub use credential::{ClientAuth, OAuth2Spec, PLACEHOLDER, Place, Placeholder, Scheme, SigningScope, TokenEndpoint};
pub use decision::{Decision, Effect, HoldScope, HoldSpec, Obligations, Reason};
pub use error::{PolicyError, PolicyErrors};
pub use explain::{Explanation, HoldExplanation, PartExplanation, RuleExplanation};
pub use file::schema;
pub use remembered::Remembered;
pub use rule::{DEFAULT_EXPIRES, Origin, RuleSpec};
pub use set::PolicySet;
pub use spec::{
    Autonomy, Budget, ClientTls, CredentialRef, CredentialSource, Filesystem, Inject, Injection, LimitSpec, ModelSpec,
    Price, Reviewer, Route, RunAs, Temporary, Tier, TlsMode, TlsSpec, UpstreamSpec, WorkloadSpec,
};

#[cfg(test)]
mod tests;
