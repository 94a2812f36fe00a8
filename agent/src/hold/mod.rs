//! Commands that wait for a person, and what a person's answer is good for.
//!
//! A hold has exactly one outcome, decided under one lock: approved, denied, expired, withdrawn or revoked. A
//! command whose client went away may still be approved for a retry: a one-time permit for the same bytes. An approval
//! may also open a grant: the same shape of command in the same session, for a while.
//!
//! Trade-off: everything is in memory, so a restart withdraws every hold; it never approves one. A change that cannot
//! be journaled does not happen, unless it only takes rights away.

mod grants;
mod id;
mod reviewer;
mod store;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
mod view;

pub use grants::{Covered, GrantScope, GrantView};
pub use reviewer::ReviewerIdentity;
pub use store::{
    Approval, Command, HoldError, HoldRequest, HoldSettings, HoldStore, Journal, JournalError, Outcome, Pending,
    SameUser,
};
pub use view::{ApprovalNote, Estimate, GrantState, HoldChange, HoldState, HoldView, Sample, SampleRow};
