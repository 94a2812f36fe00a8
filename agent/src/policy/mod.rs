//! Policy: one TOML file per workload, compiled to an immutable [`Policy`] whose [`Policy::decide`] is pure.
//!
//! Nothing matches: deny. Several rules match: the strictest effect wins, whatever the order.

mod decision;
mod spec;

pub use decision::{Decision, Effect, HoldScope, HoldSpec, Obligations, Reason};
pub use spec::{
    Autonomy, ClientTls, CredentialRef, CredentialSource, Reviewer, Tier, TlsMode, TlsSpec, UpstreamSpec, WorkloadSpec,
};
